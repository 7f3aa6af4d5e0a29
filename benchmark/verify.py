"""Whether what lies in a run's folder is what the run wrote: checksums, boards from records, records from their rows,
images in the store. What needs a judge is in `recompute`."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmark import record as schema
from benchmark.errors import BadInput
from benchmark.keys import EDITS, pixel_hash
from benchmark.metrics import summary
from benchmark.metrics.distribution import Value
from benchmark.metrics.protocols import protocol
from benchmark.tables import board

SUMS = "SHA256SUMS"
SEALED = ("board.*", "records/*.json", "grids/*.png")


def seal(out: Path) -> None:
    """Write `SHA256SUMS` over boards, records and grids, the same in every run; `sha256sum -c` reads it too."""
    lines = [f"{_sha256(path)}  {path.relative_to(out).as_posix()}\n" for path in _sealed(out)]
    (out / SUMS).write_text("".join(lines), encoding="utf-8")


def verify(out: Path, store: Path | None = None) -> list[str]:
    """What is wrong in the folder of a run, one line each with the file's name; empty if all is as it was written.

    `store` is the run's store if it is not `out/store`. BadInput if `out` is not the folder of a finished run.
    """
    if not (out / "records").is_dir():
        raise BadInput(f"{out} is not the folder of a run: it has no records/; give the --out of `erasure-bench run`")
    folder = out / "store" if store is None else store
    of_records = [*_boards(out), *_summaries(out)]
    return [*_sums(out), *of_records, *_artifacts(folder), *_images(out, folder), *_edits(out, folder)]


# --- checksums ------------------------------------------------------------------------------------------------


def _sums(out: Path) -> Iterator[str]:
    path = out / SUMS
    if not path.is_file():
        yield f"{SUMS}: not there; the run was not finished, or the file was removed"
        return
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in path.read_text().splitlines())}
    present = {file.relative_to(out).as_posix() for file in _sealed(out)}
    for name in sorted(listed.keys() | present):
        if name not in present:
            yield f"{name}: listed in {SUMS}, but not there"
        elif name not in listed:
            yield f"{name}: not listed in {SUMS}"
        elif _sha256(out / name) != listed[name]:
            yield f"{name}: changed since it was written"


def _sealed(out: Path) -> list[Path]:
    return sorted(path for pattern in SEALED for path in out.glob(pattern) if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- boards from records --------------------------------------------------------------------------------------


def _boards(out: Path) -> Iterator[str]:
    """Compare the written boards with those that the records give now."""
    records, broken = _records(out)
    yield from broken
    if broken:
        yield "board.*: cannot be recomputed before the records are mended"
        return
    try:
        boards = board.files(records.values())
    except Exception as error:  # whatever a tampered record makes of itself, it is a finding
        yield f"board.*: cannot be recomputed from the records ({type(error).__name__}: {error})"
        return
    for name, expected in boards.items():
        path = out / name
        if not path.is_file():
            yield f"{name}: not there"
        elif (found := path.read_bytes()) != expected:
            yield f"{name}: not what the records give ({_where(found, expected)})"


def _where(found: bytes, expected: bytes) -> str:
    pairs = zip(found, expected, strict=False)
    byte = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(found), len(expected)))
    return f"first at byte {byte}, line {found[:byte].count(10) + 1}"


def _records(out: Path) -> tuple[dict[str, Any], list[str]]:
    records: dict[str, Any] = {}
    broken: list[str] = []
    for path in sorted((out / "records").glob("*.json")):
        try:
            records[path.name] = json.loads(path.read_bytes())
        except ValueError as error:
            broken.append(f"records/{path.name}: cannot be read: {error}")
    return records, broken


# --- records from their rows ----------------------------------------------------------------------------------
Json = dict[str, Any]
CLOSE = 1e-9
"""Relative difference of numbers that are computed anew: sums in another library's order end in other digits."""


def _summaries(out: Path) -> Iterator[str]:
    """Compare what a record says of its rows, hashes and numbers, with what the rows give."""
    written = {name: r for name, r in _records(out)[0].items() if isinstance(r, dict) and r.get("summary")}
    made: dict[str, Json] = {}
    for name, r in written.items():
        try:
            if name not in made:
                made[name] = _made(r)
            base = next((b for b in written if _is_base_of(r, written[b])), None)
            if base is not None and base not in made:
                made[base] = _made(written[base])
            found = next(_of_record(r, made[name], None if base is None else made[base]), None)
        except Exception as error:  # a tampered record may be anything
            found = f"cannot be recomputed from its rows ({type(error).__name__}: {error})"
        if found:
            yield f"records/{name}: {found}"


def _is_base_of(r: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    same = other["request"]["name"] == r["request"]["name"]
    return bool(same and other["method"]["role"] == "baseline" and other["status"] == "ok")


def _of_record(r: Mapping[str, Any], made: Json, base: Json | None) -> Iterator[str]:
    if "hashes" in r and r["hashes"] != schema.hashes(r["rows"]):
        yield "hashes: not those of its rows"
    whole = made if base is None else summary.with_unedited(made, base)
    for place, expected, there in differences(whole, r["summary"]):
        yield f"summary {place}: {there!r}, but its rows give {expected!r}"


def _made(r: Mapping[str, Any]) -> Json:
    """The summary of a record's rows; distances, which need features, as the record has them."""
    names = list(r["protocols"])
    sets = {column: _value(r["summary"], column) for column in r["summary"]["metrics"] if _is_set(column)}
    return summary.summarise(r["rows"], primary=r["primary"], headline_id=r["headline"], protocols=names, sets=sets)


def _is_set(column: str) -> bool:
    return protocol(column).scope == "set"


def _value(of: Mapping[str, Any], column: str) -> Value:
    interval, tail = of["metrics_ci"][column], column.rpartition("/")[2]
    ci = None if interval is None else (interval[0], interval[1])
    reason = of["reasons"].get(column, "")
    return Value(of["metrics"][column], ci, reason, int(tail) if tail.isdigit() else 0)


def differences(made: Any, there: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Place, what was made, what is there, wherever the second is not the first; numbers may differ by `CLOSE`.

    What is made and not there passes: a record of an earlier version of this harness has fewer numbers.
    """
    if isinstance(made, Mapping) and isinstance(there, Mapping):
        for name, value in there.items():
            yield from differences(made.get(name), value, f"{place}.{name}".lstrip("."))
    elif isinstance(made, list | tuple) and isinstance(there, list | tuple) and len(made) == len(there):
        for i, (a, b) in enumerate(zip(made, there, strict=True)):
            yield from differences(a, b, f"{place}[{i}]")
    elif not _equal(made, there):
        yield place, made, there


def _equal(a: Any, b: Any) -> bool:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (a, b))
    return math.isclose(a, b, rel_tol=CLOSE, abs_tol=CLOSE) if numbers else bool(a == b)


# --- store ----------------------------------------------------------------------------------------------------


def _artifacts(store: Path) -> Iterator[str]:
    """Check every file of every artifact against its manifest."""
    if not store.is_dir():
        yield f"{store.name}/: no store there; name it with --store"
        return
    for manifest in sorted(store.rglob("manifest.json")):
        folder = manifest.parent
        if folder.relative_to(store).parts[0] in ("tmp", "damaged"):
            continue
        for name, problem in _damage(manifest):
            yield f"{store.name}/{(folder / name).relative_to(store).as_posix()}: {problem}"


def _damage(manifest: Path) -> Iterator[tuple[str, str]]:
    try:
        files = json.loads(manifest.read_bytes())["files"]
        entries = {name: (entry["sha256"], entry["bytes"]) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        yield manifest.name, "cannot be read"
        return
    for name, (sha256, size) in entries.items():
        path = manifest.parent / name
        if not path.is_file():
            yield name, "not there"
        elif path.stat().st_size != size or _sha256(path) != sha256:
            yield name, f"changed since it was written ({path.stat().st_size} bytes, were {size})"


def _images(out: Path, store: Path) -> Iterator[str]:
    """Every image that a record names must be in the store under that hash."""
    if not store.is_dir():
        return
    known = {digest for items in sorted(store.glob("images/*/*/items.json")) for digest in _hashes(items)}
    for name, record in _records(out)[0].items():
        try:
            hashes = [str(digest) for digest in record["rows"]["image"] if digest]
        except (KeyError, TypeError):
            continue  # no record of ours: the boards, which cannot be made from it, have told
        gone = [digest for digest in hashes if digest not in known]
        if gone:
            yield f"records/{name}: {len(gone)} of {len(hashes)} images are not in the store; the first is {gone[0]}"


def _hashes(items: Path) -> list[str]:
    """The hashes of a shard's images, as listed where their pixels have them."""
    try:
        listed = [entry["sha256"] for entry in json.loads(items.read_bytes())]
        images = np.load(io.BytesIO((items.parent / "images.npy").read_bytes()), allow_pickle=False)
        return [digest for digest, image in zip(listed, images, strict=True) if pixel_hash(image) == digest]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # its manifest has already told


def _edits(out: Path, store: Path) -> Iterator[str]:
    """The hash of the edit that a record names must be that of the edit in the store."""
    if not store.is_dir():
        return
    for name, record in _records(out)[0].items():
        edit = record.get("edit") if isinstance(record, dict) else None
        if not edit or not edit["hash"]:  # failed, or the unedited model
            continue
        about = store / EDITS / edit["key"] / "about.json"
        try:
            stored = json.loads(about.read_bytes())["hash"]
        except OSError:
            yield f"records/{name}: its edit {edit['key']} is not in the store"
        except (ValueError, KeyError, TypeError):
            continue  # its manifest has already told
        else:
            if stored != edit["hash"]:
                yield f"records/{name}: edit {edit['key']} has the hash {edit['hash']}, in the store it is {stored}"
