"""Every number of a run again, from the raw outputs in its store: what `verify` does with the judges at hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark import rescore
from benchmark.errors import BadInput, BenchError, Missing
from benchmark.metrics.protocols import protocol
from benchmark.store import Store
from benchmark.tables import board
from benchmark.verify import differences

Record = dict[str, Any]


@dataclass
class Recomputed:
    """What came of it: `wrong` are findings; `skipped` says what could not be recomputed here, and why."""

    wrong: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    values: int = 0
    """Values of images that were computed anew."""


def recompute(out: Path, store: Path | None = None) -> Recomputed:
    """Score all of a run's images again from stored raw outputs, and compare values and summaries with its records.

    Nothing is written. A judge that is not here, or has other weights than the run's, is skipped and told.
    """
    found = Recomputed()
    try:
        records = [dict(r) for r in board.read_records(out)]
    except BenchError as error:
        found.wrong.append(f"records: {error}")
        return found
    stored = rescore.Stored(Store(store or out / "store", readonly=True), found.wrong.append)
    usable = _usable(records, stored, found)
    for r in (r for r in records if r["status"] == "ok"):
        _record(r, records, [name for name in r["protocols"] if name in usable], stored, found)
    return found


def _usable(records: Sequence[Record], stored: rescore.Stored, found: Recomputed) -> set[str]:
    """Protocols whose judge is here, with the weights that the run had."""
    usable = set()
    for name in dict.fromkeys(name for r in records for name in r["protocols"]):
        r = next(r for r in records if name in r["protocols"])
        part = r["protocols"][name]
        try:
            here = stored.weights(part["evaluator"], r)
            version = protocol(name).version
        except BenchError as error:
            found.skipped.append(f"{name}: {error}")
            continue
        if version != part["version"]:
            found.skipped.append(f"{name}: the run's is version {part['version']}, this harness has {version}")
        elif here != part["evaluator_hash"]:
            found.skipped.append(f"{name}: {part['evaluator']} has other weights here than in the run")
        else:
            usable.add(name)
    return usable


def _record(
    r: Record, records: Sequence[Record], names: Sequence[str], stored: rescore.Stored, found: Recomputed
) -> None:
    where = f"{r['method']['label']} on {r['request']['name']}"
    try:
        made = rescore.rescored(r, records, names, r["primary"], stored)
    except (Missing, KeyError) as error:
        found.skipped.append(f"{where}: {error}")
        return
    except (BadInput, ValueError) as error:
        found.wrong.append(f"{where}: cannot be scored again: {error}")
        return
    found.wrong += _differing(where, made, r)
    found.values += sum(len(made["rows"]["values"].get(name, ())) for name in names)


def _differing(where: str, made: Record, r: Record) -> Iterator[str]:
    """The first value of each protocol, and the first number of the summary, that raw outputs do not give."""
    for name, values in r["rows"]["values"].items():
        for place, expected, there in differences(made["rows"]["values"][name], values):
            yield f"{where}: {name}, row {place}: {there!r}, but the raw outputs give {expected!r}"
            break
    for name in ("valid", "image"):
        if list(made["rows"][name]) != list(r["rows"][name]):
            yield f"{where}: {name}: not what the raw outputs give"
    for place, expected, there in differences(made["summary"], r["summary"]):
        yield f"{where}: summary {place}: {there!r}, but the raw outputs give {expected!r}"
        break
