"""Content-addressed artifacts on disk: written whole or not at all, checked when read, never changed.

An address is a path of names, such as `("images", <key>, <shard>)`. An artifact is a folder there with its files and
a `manifest.json` of their hashes; its existence means that the work is done.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from benchmark import atomic
from benchmark.errors import BadInput, Damaged
from benchmark.untrusted import inside, parse_json

MANIFEST = "manifest.json"
SCHEMA = 1
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@=+-]*")
_TEMPORARY = "tmp"
_DAMAGED = "damaged"


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
        temporary = self.root / _TEMPORARY / atomic.own_name()
        try:
            _write(temporary, files)
            atomic.make(target.parent)
            self._publish(temporary, target, address)
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            atomic.disk.remove(temporary)

    def get(self, *address: str) -> dict[str, bytes]:
        """All files of an artifact, checked.

        `KeyError` if it is not there. If its bytes are not those written, it is set aside and `Damaged` names it:
        the caller does the work again.
        """
        return {name: self.read(*address, file=name) for name in self._manifest(address)}

    def read(self, *address: str, file: str) -> bytes:
        """One file of an artifact, checked like `get`; `KeyError` if the artifact has no such file."""
        entry = self._manifest(address)[file]
        if not inside(self.root, self._folder(address) / file):
            self._set_aside(address, f"{file} is a link out of the store")
        try:
            content = (self._folder(address) / file).read_bytes()
        except OSError as error:
            self._set_aside(address, f"{file} cannot be read ({error.strerror})")
        if (hashlib.sha256(content).hexdigest(), len(content)) != (entry["sha256"], entry["bytes"]):
            self._set_aside(address, f"{file} ({len(content)} bytes) is not what was written ({entry['bytes']} bytes)")
        return content

    def size(self) -> int:
        """Bytes of all artifacts, those set aside included."""
        return sum(p.stat().st_size for p in self.root.rglob("*") if p.is_file()) if self.root.is_dir() else 0

    # --- all of it --------------------------------------------------------------------------------------------
    def addresses(self) -> Iterator[tuple[str, ...]]:
        """Where artifacts are, sorted."""
        for manifest in sorted(self.root.rglob(MANIFEST)):
            address = manifest.parent.relative_to(self.root).parts
            if _is_address(address):
                yield address

    def weigh(self, *address: str) -> tuple[int, float]:
        """Bytes of an artifact, and when it was put there (seconds since 1970); both 0 if it has just gone."""
        try:
            sizes = [p.stat().st_size for p in self._folder(address).iterdir()]
            return sum(sizes), (self._folder(address) / MANIFEST).stat().st_mtime
        except FileNotFoundError:
            return 0, 0.0

    def remove(self, *address: str) -> None:
        """Take an artifact away, at once and as a whole; nothing if it is not there."""
        away = self.root / _TEMPORARY / atomic.own_name()
        try:
            atomic.disk.rename(self._folder(address), away)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unwritable(error) from error
        atomic.disk.remove(away)

    def remove_all(self, *address: str) -> None:
        """Take away all artifacts right below an address, and the folder."""
        for name in self.children(*address):
            self.remove(*address, name)
        with suppress(OSError):  # not there, or somebody puts something in
            self._folder(address).rmdir()

    def set_aside(self, *address: str, why: str) -> NoReturn:
        """Put an artifact with the damaged ones, though its bytes are those written; raises Damaged, which names it."""
        self._set_aside(address, why)

    def leftovers(self) -> list[Path]:
        """What was set aside as damaged, and what writers left that are gone."""
        damaged = self.root / _DAMAGED
        aside = sorted(damaged.iterdir()) if damaged.is_dir() else []
        return [*aside, *sorted(self._abandoned())]

    # --- inside -----------------------------------------------------------------------------------------------
    def _folder(self, address: tuple[str, ...]) -> Path:
        if not _is_address(address):
            raise ValueError(f"not a name for an artifact: {address}")
        return self.root.joinpath(*address)

    def _manifest(self, address: tuple[str, ...]) -> dict[str, Any]:
        if not self.has(*address):
            raise KeyError(address)
        try:
            manifest = parse_json((self._folder(address) / MANIFEST).read_bytes())
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
                atomic.make(aside.parent)
                atomic.disk.rename(folder, aside)
            except OSError as error:
                done = f"it could not be set aside ({error.strerror}): delete the folder"
        raise Damaged(f"damaged artifact {folder}: {why}; {done}")

    def _publish(self, temporary: Path, target: Path, address: tuple[str, ...]) -> None:
        # A folder without manifest is not ours to trust: something deleted a part of it.
        if target.exists() and not self.has(*address):
            aside = self.root / _DAMAGED / f"{'.'.join(address)}.{uuid.uuid4().hex[:8]}"
            atomic.make(aside.parent)
            atomic.disk.rename(target, aside)
        try:
            atomic.disk.rename(temporary, target)
        except OSError:
            # Renaming onto a folder that is not empty fails: another process was first, with the same content.
            if not self.has(*address):
                raise
            return
        atomic.disk.sync_folder(target.parent)

    def _prepare(self) -> None:
        try:
            atomic.make(self.root / _TEMPORARY)
            probe = self.root / _TEMPORARY / atomic.own_name()
            atomic.disk.make(probe)
            probe.rmdir()
        except OSError as error:
            raise self._unwritable(error) from error
        for folder in self._abandoned():
            atomic.disk.remove(folder)

    def _abandoned(self) -> Iterator[Path]:
        temporary = self.root / _TEMPORARY
        found = temporary.iterdir() if temporary.is_dir() else ()
        return (folder for folder in found if atomic.abandoned(folder))

    def _unwritable(self, error: OSError) -> BadInput:
        return BadInput(f"cannot write to the store {self.root}: {error.strerror or error}; name another with --store")


def _is_address(address: tuple[str, ...]) -> bool:
    taken = (_TEMPORARY, _DAMAGED, MANIFEST)
    return bool(address) and all(_NAME.fullmatch(part) and part not in taken for part in address)


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    atomic.disk.make(folder)
    entries = {}
    for name in files:  # one at a time: a mapping may make the bytes of each when it is asked for them
        if not _NAME.fullmatch(name) or name == MANIFEST:
            raise ValueError(f"not a name for a file of an artifact: {name!r}")
        content = files[name]
        atomic.new(folder / name, content)
        entries[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    manifest = json.dumps({"schema": SCHEMA, "files": entries}, sort_keys=True).encode() + b"\n"
    atomic.new(folder / MANIFEST, manifest)
    atomic.disk.sync_folder(folder)
