"""A run as one file: everything of it with a checksum, packed here, checked and unpacked whole or not at all there.

The archive is a zip with the files of the run's folder, the artifacts of its store that its records rest on, and, as
its last member, `manifest.json` with the size and SHA-256 of each. The same run gives the same bytes. Logs stay: they
may name places of the machine.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from benchmark import atomic, referenced
from benchmark.errors import BadInput, Damaged
from benchmark.store import Store
from benchmark.untrusted import DATA, parse_json, plain_name
from benchmark.verify import SUMS, intact

MANIFEST = "manifest.json"
SCHEMA = 1
LIMIT = 200 * 10**9
"""Bytes that an archive may unpack to, unless told otherwise (harness default)."""
_PARTS = ("board.json", "board.csv", "board.md", "costs.json", SUMS)
_FOLDERS = ("records", "grids")
_STORED = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@=+-]*")  # names of artifacts and of their files
_CHUNK = 1 << 20
_FIRST = (1980, 1, 1, 0, 0, 0)  # of a zip; times would differ from machine to machine
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    KeyError,
    OverflowError,
    ValueError,
)


# --- out --------------------------------------------------------------------------------------------------------------
def export(run: Path, out: Path, store: Path | None = None) -> tuple[int, str]:
    """Pack a finished run; how many files, and the archive's SHA-256.

    BadInput if `out` exists or cannot be written, or the run is not finished; Damaged if a byte of it is not what was
    written: a damaged run is mended by running it again.
    """
    if out.exists():
        raise BadInput(f"--out: {out} is there already, and nothing is overwritten; name another file")
    if wrong := intact(run, store):
        raise Damaged(f"{run} cannot be moved: {wrong[0]}; {len(wrong)} findings in all, see `erasure-bench verify`")
    root = store or run / "store"
    used = referenced.referenced(referenced.read([run]), Store(root, readonly=True))
    try:
        with atomic.file(out) as temporary:
            count = _pack(temporary, {**_of_folder(run), **_of_store(root, used)})
    except OSError as error:
        raise BadInput(f"cannot write {out}: {error.strerror or error}") from error
    with out.open("rb") as file:
        return count, hashlib.file_digest(file, "sha256").hexdigest()


def _of_folder(run: Path) -> dict[str, Path]:
    files = [run / name for name in _PARTS] + [p for name in _FOLDERS for p in sorted((run / name).glob("[!.]*"))]
    return {path.relative_to(run).as_posix(): path for path in files if path.is_file()}


def _of_store(root: Path, used: referenced.Referenced) -> dict[str, Path]:
    folders = [root.joinpath(*address) for address in Store(root, readonly=True).addresses() if address in used]
    return {f"store/{p.relative_to(root).as_posix()}": p for f in folders for p in sorted(f.iterdir()) if p.is_file()}


def _pack(out: Path, files: Mapping[str, Path]) -> int:
    listed = []
    with zipfile.ZipFile(out, "x", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in sorted(files):
            with files[name].open("rb") as source, archive.open(_entry(name), "w", force_zip64=True) as target:
                size, digest = _copy(source, target)
            listed.append({"name": name, "bytes": size, "sha256": digest})
        about = json.dumps({"schema": SCHEMA, "files": listed}, indent=0).encode() + b"\n"
        with archive.open(_entry(MANIFEST), "w") as target:
            target.write(about)
    return len(listed)


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _FIRST)
    entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
    return entry


def _copy(source: IO[bytes], target: IO[bytes] | None, most: int | None = None) -> tuple[int, str]:
    """Size and SHA-256 of what was copied; ValueError as soon as it is more than `most`."""
    digest, size = hashlib.sha256(), 0
    while part := source.read(_CHUNK):
        size += len(part)
        if most is not None and size > most:
            raise ValueError(f"more than the {most} bytes that its manifest tells")
        digest.update(part)
        if target is not None:
            target.write(part)
    return size, digest.hexdigest()


# --- in ---------------------------------------------------------------------------------------------------------------
def unpack(
    archive: Path, out: Path, store: Path | None = None, *, sha256: str | None = None, limit: int = LIMIT
) -> int:
    """Unpack a run into the new or empty folder `out`; how many files. Its artifacts go to `out/store`, or to `store`.

    BadInput if `out` holds something, or the archive is none of ours or too large; Damaged if a byte is not what the
    manifest promises, or the run is not whole. Then nothing is left of it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"--out: expected a new or empty folder, and {out} is there already; name another")
    _check_hash(archive, sha256)
    try:
        with atomic.folder(out) as temporary:
            count = _unpack(archive, temporary, limit)
            if wrong := intact(temporary):
                raise Damaged(f"{archive} is not a whole run: {wrong[0]}; {len(wrong)} findings in all")
            if store is not None:
                _merge(temporary / "store", Store(store))
            return count
    except OSError as error:
        raise BadInput(f"cannot write {out}: {error.strerror or error}") from error


def _check_hash(archive: Path, sha256: str | None) -> None:
    try:
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest() if sha256 else None
    except OSError as error:
        raise BadInput(f"cannot read {archive}: {error.strerror or error}") from None
    if found and sha256 and found != sha256.lower():
        raise Damaged(f"{archive} has the SHA-256 {found}, expected {sha256}; copy it again")


def _unpack(archive: Path, out: Path, limit: int) -> int:
    try:
        with zipfile.ZipFile(archive) as packed:
            files = _listed(packed, limit, shutil.disk_usage(out).free)
            for name, (size, digest) in files.items():
                target = out / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with packed.open(name) as source, target.open("xb") as file:
                    found = _copy(source, file, size)
                if found != (size, digest):
                    raise ValueError(f"{name} is not what was packed")
    except _BROKEN as error:
        raise Damaged(f"{archive} is damaged, or no archive of ours: {_told(error)}; copy it again") from None
    return len(files)


def _listed(packed: zipfile.ZipFile, limit: int, free: int) -> dict[str, tuple[int, str]]:
    """The files that the manifest names; ValueError unless these, once each, and nothing else are in the archive."""
    with packed.open(MANIFEST) as file:
        content = file.read(DATA + 1)
    if len(content) > DATA:
        raise ValueError(f"{MANIFEST} has more than {DATA} bytes")
    told = list(_entries(parse_json(content)))
    files, inside = dict(told), [entry.filename for entry in packed.infolist()]
    if sorted(inside) != sorted([*(name for name, _ in told), MANIFEST]):
        raise ValueError("its files are not those that its manifest names")
    total = sum(size for size, _ in files.values())
    if total > min(limit, free):
        room = f"{free} are free" if free < limit else f"{limit} are allowed, see --limit"
        raise BadInput(f"the archive unpacks to {total} bytes, and {room}")
    return files


def _entries(manifest: Any) -> Iterator[tuple[str, tuple[int, str]]]:
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA or not isinstance(manifest["files"], list):
        raise ValueError(f"{MANIFEST} is not one of schema {SCHEMA}")
    for entry in manifest["files"]:
        if not isinstance(entry, dict) or {*entry} != {"name", "bytes", "sha256"}:
            raise ValueError(f"{MANIFEST}: expected name, bytes and sha256 of each file")
        name, size, digest = entry["name"], entry["bytes"], entry["sha256"]
        whole = type(size) is int and size >= 0 and isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)
        if not whole or not isinstance(name, str) or not _belongs(name):
            raise ValueError(f"{MANIFEST}: {ascii(name)} is no file of a run")
        yield name, (size, digest)


def _belongs(name: str) -> bool:
    """Whether it is the name of a file that a run has, so that none leads out of the folder."""
    folder, *rest = name.split("/")
    if folder == "store":
        return len(rest) >= 2 and all(_STORED.fullmatch(part) for part in rest)
    if folder in _FOLDERS and len(rest) == 1:
        return not rest[0].startswith(".") and plain_name(rest[0]) == rest[0]
    return name in _PARTS


def _merge(source: Path, store: Store) -> None:
    """Put the artifacts into another store, and take their folder away."""
    packed = Store(source, readonly=True)
    for address in packed.addresses():
        store.put(*address, files=packed.get(*address))
    shutil.rmtree(source)


def _told(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
