"""Whether what lies in a run's folder is what the run wrote: checksums, boards from records, records from their rows,
images in the store. What needs a judge is in `recompute`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmark import atomic, data_files
from benchmark.consistency import differences as differences
from benchmark.consistency import faults
from benchmark.errors import BadInput, BenchError
from benchmark.keeping import FILE, PIXELS, decode
from benchmark.keys import EDITS, LENGTH, parse_items, pixel_hash
from benchmark.record import listed, values_of
from benchmark.tables import board
from benchmark.untrusted import images, inside, parse_json, plain_name, read_bytes

SUMS = "SHA256SUMS"
SEALED = ("board.*", "records/*.json", "grids/*.png")


def seal(out: Path) -> None:
    """Write `SHA256SUMS` over boards, records and grids, the same in every run; `sha256sum -c` reads it too."""
    lines = [f"{_sha256(path)}  {path.relative_to(out).as_posix()}\n" for path in _sealed(out)]
    atomic.write(out / SUMS, "".join(lines))


def verify(out: Path, store: Path | None = None) -> list[str]:
    """What is wrong in the folder of a run, one line each with the file's name; empty if all is as it was written.

    `store` is the run's store if it is not `out/store`. BadInput if `out` is not the folder of a finished run.
    """
    folder = _store_of(out, store)
    of_records = [*_boards(out), *_summaries(out)]
    return [
        *_sums(out),
        *of_records,
        *_artifacts(folder),
        *_images(out, folder),
        *_pixels(folder),
        *_edits(out, folder),
    ]


def intact(out: Path, store: Path | None = None) -> list[str]:
    """As `verify`, but only whether the bytes are those that were written: another version may have written them."""
    folder = _store_of(out, store)
    return [*_sums(out), *_artifacts(folder), *_images(out, folder), *_edits(out, folder)]


def _store_of(out: Path, store: Path | None) -> Path:
    if not (out / "records").is_dir():
        raise BadInput(f"{out} is not the folder of a run: it has no records/; give the --out of `erasure-bench run`")
    return out / "store" if store is None else store


# --- checksums ------------------------------------------------------------------------------------------------


def _sums(out: Path) -> Iterator[str]:
    path = out / SUMS
    if not path.is_file():
        yield f"{SUMS}: not there; the run was not finished, or the file was removed"
        return
    try:
        listed = data_files.manifest(path)
    except BadInput as error:
        yield f"{SUMS}: {str(error).removeprefix(f'{path}')[2:]}"
        return
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
    for path in listed(out / "records"):
        try:
            records[path.name] = values_of(path)
        except (BadInput, ValueError) as error:
            broken.append(f"records/{path.name}: cannot be read: {error}")
    return records, broken


# --- records from their rows ----------------------------------------------------------------------------------


def _summaries(out: Path) -> Iterator[str]:
    """Compare what a record says of its rows, hashes and numbers, with what the rows give."""
    yield from (f"records/{name}: {fault}" for name, fault in faults(_records(out)[0]) if fault)


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
        files = parse_json(read_bytes(manifest))["files"]
        entries = {plain_name(name): (entry["sha256"], entry["bytes"]) for name, entry in files.items()}
    except (BadInput, ValueError, KeyError, TypeError, AttributeError):
        yield manifest.name, "cannot be read"
        return
    for name, (sha256, size) in entries.items():
        path = manifest.parent / name
        if not path.is_file():
            yield name, "not there"
        elif not inside(manifest.parent, path):
            yield name, "leads out of the store"
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
        except (KeyError, IndexError, TypeError):
            continue  # no record of ours: the boards, which cannot be made from it, have told
        gone = [digest for digest in hashes if digest not in known]
        if gone:
            yield f"records/{name}: {len(gone)} of {len(hashes)} images are not in the store; the first is {gone[0]}"
    yield from _pixels(store)


def _hashes(items: Path) -> list[str]:
    """The hashes of a shard's images, as listed where their pixels have them."""
    try:
        listed = [entry["sha256"] for entry in parse_items(read_bytes(items))]
        if _not_kept(items.parent):
            return listed
        pixels = images(read_bytes(items.parent / "images.npy"))
        return [digest for digest, image in zip(listed, pixels, strict=True) if pixel_hash(image) == digest]
    except (BenchError, ValueError):
        return []  # its manifest has already told


def _not_kept(shard: Path) -> bool:
    """Whether a batch was stored without its pixels: its manifest, which has been checked, does not list them."""
    try:
        return "images.npy" not in parse_json(read_bytes(shard / "manifest.json"))["files"]
    except (BenchError, ValueError, KeyError, TypeError):
        return False


def unkept(store: Path) -> int:
    """How many images' hashes are there without their pixels, because the run was told not to keep them."""
    alone = {path.name for path in store.glob(f"{PIXELS}/*/*")}
    listed = (_hashes(i) for i in sorted(store.glob("images/*/*/items.json")) if _not_kept(i.parent))
    return sum(digest[:LENGTH] not in alone for hashes in listed for digest in hashes)


def _pixels(store: Path) -> Iterator[str]:
    """Images that were kept one by one must be those that they are named after."""
    for path in sorted(store.glob(f"{PIXELS}/*/*/{FILE}")):
        try:
            right = pixel_hash(decode(read_bytes(path))).startswith(path.parent.name)
        except BenchError:
            right = False
        if not right:
            yield f"{store.name}/{path.relative_to(store).as_posix()}: not the image that it is named after"


def _edits(out: Path, store: Path) -> Iterator[str]:
    """The hash of the edit that a record names must be that of the edit in the store."""
    if not store.is_dir():
        return
    for name, record in _records(out)[0].items():
        edit = record.get("edit") if isinstance(record, dict) else None
        if not isinstance(edit, dict) or not edit.get("hash"):  # failed, or the unedited model
            continue
        try:
            about = store / EDITS / plain_name(str(edit.get("key"))) / "about.json"
        except ValueError as error:
            yield f"records/{name}: edit.key: {error}"
            continue
        try:
            stored = json.loads(about.read_bytes())["hash"]
        except OSError:
            yield f"records/{name}: its edit {edit['key']} is not in the store"
        except (ValueError, KeyError, TypeError):
            continue  # its manifest has already told
        else:
            if stored != edit["hash"]:
                yield f"records/{name}: edit {edit['key']} has the hash {edit['hash']}, in the store it is {stored}"
