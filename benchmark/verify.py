"""Whether what lies in a run's folder is what the run wrote: checksums, boards from records, images in the store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmark.errors import BadInput
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
    return [*_sums(out), *_boards(out), *_artifacts(folder), *_images(out, folder)]


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
    try:
        return [entry["sha256"] for entry in json.loads(items.read_bytes())]
    except (ValueError, KeyError, TypeError):
        return []  # its manifest has already told
