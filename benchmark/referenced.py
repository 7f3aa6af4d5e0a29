"""Which artifacts of a store the records of runs rest on: what may not be pruned, and what moves with a run.

A record names its edit, its images by their hashes, and its judges; scores are known by the images in them, raw outputs
by the keys that follow from these. Where a key does not follow from records, nothing of that kind counts as unused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark import keys, registry
from benchmark.errors import BadInput, BenchError, Damaged
from benchmark.metrics import evaluators
from benchmark.metrics.protocols import protocol
from benchmark.store import Store
from benchmark.tables import board
from benchmark.untrusted import parse_json

Address = tuple[str, ...]
Record = Mapping[str, Any]
KINDS = (keys.EDITS, keys.IMAGES, keys.RAW, keys.SCORES)
"""Kinds of artifacts that records lead to; of others, such as notes on what fits into memory, all count as used."""
COSTS = "costs"
"""First part of the address of what an edit cost; see the worker."""


@dataclass
class Referenced:
    """The artifacts in use."""

    addresses: set[Address] = field(default_factory=set)
    open: dict[str, str] = field(default_factory=dict)
    """Kinds of artifacts of which all must count as used, and why."""

    def __contains__(self, address: Address) -> bool:
        if address[0] == keys.JOURNALS:  # of an edit that is not there yet, or of one that is
            return False
        kind = keys.EDITS if address[0] == COSTS else address[0]
        return kind not in KINDS or kind in self.open or address in self.addresses


def runs(folders: Iterable[Path]) -> list[Path]:
    """The folders that are runs, and the runs right inside the others; BadInput for one with none."""
    found: list[Path] = []
    for folder in folders:
        here = [folder] if (folder / "records").is_dir() else sorted(p.parent for p in folder.glob("*/records"))
        if not here:
            raise BadInput(f"{folder} is no run and holds none; give the --out of `erasure-bench run`")
        found += [run for run in here if run not in found]
    return found


def read(folders: Iterable[Path]) -> list[Record]:
    """All their records; an error for one that cannot be read, for what it rests on is not known then."""
    return [r for folder in folders for r in board.read_records(folder)]


def referenced(records: Sequence[Record], store: Store) -> Referenced:
    """What these records rest on in the store."""
    found = Referenced()
    for r in records:
        if r["edit"] is not None:
            found.addresses |= {(keys.EDITS, r["edit"]["key"]), (COSTS, r["edit"]["key"])}
    shards = _shards(records, store)
    found.addresses |= {(keys.IMAGES, key, shard) for key, shard in shards}
    found.addresses |= set(_scores(records, store))
    _needed_edits(records, found)
    _raws(records, shards, store, found)
    return found


def _shards(records: Sequence[Record], store: Store) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Batches with an image of these records, and what is listed in them."""
    wanted = {digest for r in records for digest in r["rows"]["image"]}
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for address in store.addresses():
        if address[0] == keys.IMAGES and len(address) == 3:
            try:
                listed = keys.parse_items(store.read(*address, file="items.json"))
            except (Damaged, KeyError):
                continue  # it is of no use to anybody
            if any(entry["sha256"] in wanted for entry in listed):
                found[address[1], address[2]] = [*listed]
    return found


def _scores(records: Sequence[Record], store: Store) -> Iterator[Address]:
    wanted = {tuple(r["rows"]["image"]) for r in records}
    for address in store.addresses():
        if address[0] == keys.SCORES:
            try:
                scored = parse_json(store.read(*address, file="scores.json"))
                if tuple(scored["rows"]["image"]) in wanted:
                    yield address
            except (Damaged, KeyError, TypeError, ValueError):
                continue


def _needed_edits(records: Sequence[Record], found: Referenced) -> None:
    """An edit that only another edit was made from stands in no record: then all edits stay."""
    told = {(r["request"]["name"], r["method"]["label"]) for r in records if r["edit"] is not None}
    for r in records:
        for label in _needs(r):
            if (r["request"]["name"], label) not in told:
                found.open[keys.EDITS] = f"{r['method']['label']} needs an edit of {label}, which is in no record"


def _needs(r: Record) -> tuple[str, ...]:
    try:
        return registry.method_class(r["method"]["name"])(**r["method"]["fields"]).needs
    except (BenchError, TypeError):  # a method that is not here
        return ("a method that is not here",)


def _raws(
    records: Sequence[Record],
    shards: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]],
    store: Store,
    found: Referenced,
) -> None:
    """Keys of raw outputs: of each batch by each judge, and of pairs of images."""
    if any(r["reference"] is not None for r in records):
        found.open[keys.RAW] = "features of real images stand in no record"
    for name, judge in sorted({(n, part["evaluator"]) for r in records for n, part in r["protocols"].items()}):
        if protocol(name).scope == "pair":
            found.open[keys.RAW] = f"{name} compares pairs of images, which stand in no record"
            continue
        hashes = _hashes(judge, records)
        made = {(keys.RAW, keys.raw_key(*at, evaluator=judge, weights=h)) for at in shards for h in hashes}
        if shards and not any(store.has(*address) for address in made):
            found.open.setdefault(keys.RAW, f"raw outputs of {judge} cannot be told from others")
        found.addresses |= made


def _hashes(judge: str, records: Sequence[Record]) -> set[str]:
    """Of its weights: as in the records, where images to compare with may be hashed along, and as they are here."""
    parts = (part for r in records for part in r["protocols"].values())
    told = {str(part["evaluator_hash"]) for part in parts if part["evaluator"] == judge}
    here = _weights(judge)
    return told if here is None else told | {here}


def _weights(judge: str) -> str | None:
    try:
        return evaluators.weights_hash(judge, reference=False)
    except BenchError:
        return None
