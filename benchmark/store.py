"""Content-addressed artifacts on disk: written whole or not at all, checked when read, never changed.

An address is a path of names, such as `("images", <key>, <shard>)`. An artifact is a folder there with its files and
a `manifest.json` of their hashes; its existence means that the work is done.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from benchmark.errors import BadInput, Damaged

MANIFEST = "manifest.json"
SCHEMA = 1
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@=+-]*")
_TEMPORARY = "tmp"
_DAMAGED = "damaged"
_STALE_S = 24 * 3600  # a live writer touches its folder within a day


class Store:
    """Artifacts under one folder; several processes may share it.

    `readonly` neither makes nor cleans anything, and the folder need not exist: for planning.
    """

    def __init__(self, root: Path | str, *, readonly: bool = False) -> None:
        """Open or make the store; `BadInput` if the folder cannot be written."""
        self.root = Path(root)
        self.readonly = readonly
        if not readonly:
            self._prepare()

    def has(self, *address: str) -> bool:
        """Whether the artifact is there (its bytes are checked when it is read)."""
        return (self._folder(address) / MANIFEST).is_file()

    def children(self, *address: str) -> list[str]:
        """Names of the artifacts right below an address, sorted; empty if there are none."""
        folder = self._folder(address)
        return sorted(p.name for p in folder.iterdir() if (p / MANIFEST).is_file()) if folder.is_dir() else []

    def put(self, *address: str, files: Mapping[str, bytes]) -> None:
        """Write an artifact whole; if it is there already, or another process is faster, this does nothing."""
        target = self._folder(address)
        if self.has(*address):
            return
        temporary = self.root / _TEMPORARY / uuid.uuid4().hex
        try:
            _write(temporary, files)
            target.parent.mkdir(parents=True, exist_ok=True)
            self._publish(temporary, target, address)
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def get(self, *address: str) -> dict[str, bytes]:
        """All files of an artifact, checked.

        `KeyError` if it is not there. If its bytes are not those written, it is set aside and `Damaged` names it:
        the caller does the work again.
        """
        return {name: self.read(*address, file=name) for name in self._manifest(address)}

    def read(self, *address: str, file: str) -> bytes:
        """One file of an artifact, checked like `get`; `KeyError` if the artifact has no such file."""
        entry = self._manifest(address)[file]
        try:
            content = (self._folder(address) / file).read_bytes()
        except OSError as error:
            self._set_aside(address, f"{file} cannot be read ({error.strerror})")
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            self._set_aside(address, f"{file} ({len(content)} bytes) is not what was written ({entry['bytes']} bytes)")
        return content

    def size(self) -> int:
        """Bytes of all artifacts, those set aside included."""
        return sum(p.stat().st_size for p in self.root.rglob("*") if p.is_file()) if self.root.is_dir() else 0

    # --- inside -----------------------------------------------------------------------------------------------
    def _folder(self, address: tuple[str, ...]) -> Path:
        for part in address:
            if not _NAME.fullmatch(part) or part in (_TEMPORARY, _DAMAGED, MANIFEST):
                raise ValueError(f"not a name for an artifact: {part!r} in {address}")
        return self.root.joinpath(*address)

    def _manifest(self, address: tuple[str, ...]) -> dict[str, Any]:
        if not self.has(*address):
            raise KeyError(address)
        try:
            manifest = json.loads((self._folder(address) / MANIFEST).read_bytes())
            files: dict[str, Any] = manifest["files"]
            whole = all(_NAME.fullmatch(n) and {"sha256", "bytes"} <= e.keys() for n, e in files.items())
            if whole and manifest["schema"] == SCHEMA:
                return files
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        self._set_aside(address, f"{MANIFEST} is not one of schema {SCHEMA}")

    def _set_aside(self, address: tuple[str, ...], why: str) -> NoReturn:
        folder = self._folder(address)
        aside = self.root / _DAMAGED / f"{'.'.join(address)}.{uuid.uuid4().hex[:8]}"
        done = f"set aside in {aside}; the same command makes it anew"
        if self.readonly:
            done = "a run sets it aside and makes it anew"
        else:
            try:
                aside.parent.mkdir(exist_ok=True)
                os.rename(folder, aside)
            except OSError as error:
                done = f"it could not be set aside ({error.strerror}): delete the folder"
        raise Damaged(f"damaged artifact {folder}: {why}; {done}")

    def _publish(self, temporary: Path, target: Path, address: tuple[str, ...]) -> None:
        # A folder without manifest is not ours to trust: something deleted a part of it.
        if target.exists() and not self.has(*address):
            aside = self.root / _DAMAGED / f"{'.'.join(address)}.{uuid.uuid4().hex[:8]}"
            aside.parent.mkdir(exist_ok=True)
            os.rename(target, aside)
        try:
            os.rename(temporary, target)
        except OSError:
            # Renaming onto a folder that is not empty fails: another process was first, with the same content.
            if not self.has(*address):
                raise
            return
        _sync(target.parent)

    def _prepare(self) -> None:
        try:
            (self.root / _TEMPORARY).mkdir(parents=True, exist_ok=True)
            probe = self.root / _TEMPORARY / uuid.uuid4().hex
            probe.mkdir()
            probe.rmdir()
        except OSError as error:
            raise self._unwritable(error) from error
        for folder in self._abandoned():
            shutil.rmtree(folder, ignore_errors=True)

    def _abandoned(self) -> Iterator[Path]:
        for folder in (self.root / _TEMPORARY).iterdir():
            try:
                if time.time() - folder.stat().st_mtime > _STALE_S:
                    yield folder
            except FileNotFoundError:  # its writer has just finished
                continue

    def _unwritable(self, error: OSError) -> BadInput:
        return BadInput(f"cannot write to the store {self.root}: {error.strerror or error}; name another with --store")


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir()
    entries = {n: {"sha256": hashlib.sha256(b).hexdigest(), "bytes": len(b)} for n, b in sorted(files.items())}
    manifest = json.dumps({"schema": SCHEMA, "files": entries}, sort_keys=True).encode() + b"\n"
    for name, content in {**files, MANIFEST: manifest}.items():
        if not _NAME.fullmatch(name) or (name == MANIFEST and MANIFEST in files):
            raise ValueError(f"not a name for a file of an artifact: {name!r}")
        with (folder / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    _sync(folder)


def _sync(folder: Path) -> None:
    """Make a folder's entries survive a power cut, where the system can (Windows cannot)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
