"""A disk that fails at a chosen call: in one process, in seconds, with what a power cut loses."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from benchmark.atomic import Disk

Kind = Literal["no space", "input/output", "short write", "killed", "power cut", "power cut, renames first"]
"""`no space` and `input/output` are errors of the call, half done where it writes; `short write` writes half and says
so, which is no error; the last three end the writer, and after a power cut what was not synced is gone: with the
renames, or all but them."""
KINDS: tuple[Kind, ...] = (
    "no space",
    "input/output",
    "short write",
    "killed",
    "power cut",
    "power cut, renames first",
)
_ERRORS: Mapping[Kind, int] = {"no space": errno.ENOSPC, "input/output": errno.EIO}


class Killed(BaseException):
    """The end of the process, as far as one process can play it: nothing is written after it."""


class FaultyDisk(Disk):
    """Fails at the call `at`, counted from 0, and works otherwise; with `at` None it only counts `calls`.

    After the kinds that end the writer every further call ends it again, so that no cleaning up takes place. Nothing
    is synced in truth.
    """

    def __init__(self, kind: Kind = "input/output", at: int | None = None) -> None:
        self.kind, self.at = kind, at
        self.calls: list[str] = []
        self.dead = False
        self._open: dict[int, Path] = {}
        self._unsynced: set[Path] = set()  # files with bytes that only the cache has
        self._entries: list[tuple[Path, Path | None, bytes | None]] = []  # place, where from, what was there before

    # --- the calls ------------------------------------------------------------------------------------------------
    def create(self, path: Path) -> int:
        self._call(f"create {path.name}")
        handle = super().create(path)
        self._open[handle] = path
        self._unsynced.add(path)
        self._entries.append((path, None, None))
        return handle

    def write(self, handle: int, content: memoryview) -> int:
        half = content[: len(content) // 2]
        if self._is_next() and self.kind == "short write":
            self.calls.append("write")
            return super().write(handle, half or content)
        self._call("write", lambda: super(FaultyDisk, self).write(handle, half))
        return super().write(handle, content)

    def sync(self, handle: int) -> None:
        self._call("sync")  # and no more: what it would have saved is remembered instead, and it takes no time
        self._unsynced.discard(self._open.get(handle, Path()))

    def sync_folder(self, folder: Path) -> None:
        self._call(f"sync folder {folder.name}")
        self._entries = [entry for entry in self._entries if entry[0].parent != folder]

    def make(self, folder: Path) -> None:
        self._call(f"make {folder.name}")
        super().make(folder)
        self._entries.append((folder, None, None))

    def replace(self, source: Path, target: Path) -> None:
        self._call(f"replace {target.name}")
        before = target.read_bytes() if target.is_file() else None
        super().replace(source, target)
        self._moved(source, target, before)

    def rename(self, source: Path, target: Path) -> None:
        self._call(f"rename {target.name}")
        super().rename(source, target)
        self._moved(source, target, None)

    def remove(self, path: Path) -> None:
        if self.dead:
            raise Killed
        super().remove(path)

    # --- how it fails ---------------------------------------------------------------------------------------------
    def _is_next(self) -> bool:
        return self.at == len(self.calls) and not self.dead

    def _call(self, name: str, half: object = None) -> None:
        if self.dead:
            raise Killed
        failing = self._is_next()
        self.calls.append(name)
        if not failing or self.kind == "short write":
            return
        if callable(half):
            half()
        if self.kind in _ERRORS:
            number = _ERRORS[self.kind]
            raise OSError(number, os.strerror(number))
        self.dead = True
        if self.kind != "killed":
            self._lose(renames=self.kind == "power cut")
        raise Killed

    def _moved(self, source: Path, target: Path, before: bytes | None) -> None:
        """Follow what lies under a path that was renamed."""

        def now(path: Path) -> Path:
            return target / path.relative_to(source) if path.is_relative_to(source) else path

        self._unsynced = {now(path) for path in self._unsynced}
        self._open = {handle: now(path) for handle, path in self._open.items()}
        settled = [(now(p), s, b) for p, s, b in self._entries if p != source]
        self._entries = [*settled, (target, source, before)]

    def _lose(self, *, renames: bool) -> None:
        for path in self._unsynced:
            if path.is_file():
                os.truncate(path, path.stat().st_size // 2)
        for place, source, before in reversed(self._entries if renames else []):
            if source is not None and place.exists():
                os.replace(place, source)
            elif place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)
            if before is not None:
                place.write_bytes(before)
