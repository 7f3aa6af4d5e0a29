"""Files and folders written whole or not at all: every writer of this project goes through here.

What is written lies beside its place under a name of its own, is synced, and takes its place by a rename, which is
synced too. So whoever reads, at whatever moment the writer was killed or the power went, finds the old or the new.
What a dead writer left is removed by the next one of the same file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from benchmark.errors import BadInput
from benchmark.owner import lives
from benchmark.owner import place as here

_STALE_S = 24 * 3600  # of writers elsewhere nobody knows whether they live: within a day they have ended
_OWNED = re.compile(r"(?:\.(?P<name>.+)\.)?(?P<machine>[0-9a-f]{8})-(?P<pid>\d{1,10})-[0-9a-f]{8}(?:\.part)?")
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF}


class Disk:
    """The system calls that a write is made of. A test puts one that fails in the place of `disk`."""

    def create(self, path: Path) -> int:
        """Open a new file for writing."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)

    def write(self, handle: int, content: memoryview) -> int:
        """Write some of it; how much."""
        return os.write(handle, content)

    def sync(self, handle: int) -> None:
        """Have the bytes on the disk."""
        os.fsync(handle)

    def sync_folder(self, folder: Path) -> None:
        """Have a folder's entries on the disk, where the system can (Windows cannot, nor can some network mounts)."""
        if not hasattr(os, "O_DIRECTORY"):
            return
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in _NO_FOLDER_SYNC:
                raise
        finally:
            os.close(handle)

    def make(self, folder: Path) -> None:
        """Make one folder."""
        folder.mkdir()

    def replace(self, source: Path, target: Path) -> None:
        """Give a file the place of another, or a free one."""
        os.replace(source, target)

    def rename(self, source: Path, target: Path) -> None:
        """Give a folder a free place; one that is there and not empty is an error."""
        os.rename(source, target)

    def remove(self, path: Path) -> None:
        """Take away a file, or a folder with all in it, as far as that goes."""
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


disk: Disk = Disk()


# --- files ------------------------------------------------------------------------------------------------------------
def write(path: Path | str, content: bytes | str) -> None:
    """Write a file (text as UTF-8, its line ends as they are) with the folders that it needs, whole or not at all.

    A device or a pipe, such as /dev/stdout, is written to and stays. BadInput, with the file as it was, if it cannot be
    written.
    """
    path = Path(path)
    try:
        if _is_stream(path):
            path.write_bytes(content.encode() if isinstance(content, str) else content)
            return
        with _beside(path) as temporary:
            new(temporary, content)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror or error}") from error


def _is_stream(path: Path) -> bool:
    system = path.absolute().parts[1:2] in (("dev",), ("proc",))
    return path.exists() and not path.is_dir() and (system or not path.is_file())


@contextmanager
def file(path: Path) -> Iterator[Path]:
    """A temporary path for a file that others write, which takes the place of `path` when the block ends without an
    error. OSError."""
    with _beside(path) as temporary:
        yield temporary
        _sync(temporary)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    path = path.absolute()
    make(path.parent)
    _sweep_of(path)
    temporary = path.with_name(f".{path.name}.{own_name()}.part")
    try:
        yield temporary
        disk.replace(temporary, path)
        disk.sync_folder(path.parent)
    finally:
        disk.remove(temporary)


def new(path: Path, content: bytes | str) -> None:
    """Write a new file and sync it; OSError. Not whole by itself: for folders that take their place as a whole."""
    data = memoryview(content.encode() if isinstance(content, str) else content).cast("B")
    handle = disk.create(path)
    try:
        while data:
            data = data[disk.write(handle, data) :]
        disk.sync(handle)
    finally:
        os.close(handle)


# --- folders ----------------------------------------------------------------------------------------------------------
def make(folder: Path) -> None:
    """Make a folder and those above it, synced; OSError."""
    if folder.is_dir():
        return
    make(folder.parent)
    try:
        disk.make(folder)
    except FileExistsError:  # another process was faster
        if not folder.is_dir():
            raise
        return
    disk.sync_folder(folder.parent)


@contextmanager
def folder(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder to fill, which takes the place of `out` when the block ends without an error.

    `out` must not be there, or be empty; with `replace`, what is there gives way: for a moment then there is neither.
    OSError.
    """
    out = out.absolute()
    make(out.parent)
    _sweep_of(out)
    temporary = out.with_name(f".{out.name}.{own_name()}.part")
    try:
        disk.make(temporary)
        yield temporary
        sync_tree(temporary)
        publish(temporary, out, replace=replace)
    finally:
        disk.remove(temporary)


def publish(temporary: Path, out: Path, *, replace: bool = False) -> None:
    """Give a synced folder its place, see `folder`; both paths absolute."""
    aside = out.with_name(f".{out.name}.{own_name()}.part")
    if replace and out.exists():
        disk.rename(out, aside)
    try:
        disk.rename(temporary, out)
    except OSError:
        if aside.exists():
            disk.rename(aside, out)
        raise
    disk.sync_folder(out.parent)
    disk.remove(aside)


def sync_tree(root: Path) -> None:
    """Sync all files and folders below, whoever wrote them."""
    for place, _, names in os.walk(root, topdown=False):
        for name in names:
            _sync(Path(place) / name)
        disk.sync_folder(Path(place))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        disk.sync(handle)
    finally:
        os.close(handle)


# --- what dead writers left -------------------------------------------------------------------------------------------
def own_name() -> str:
    """A new name for something temporary, from which `abandoned` reads whose it is."""
    return f"{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def sweep(folder: Path) -> None:
    """Remove the temporaries right inside a folder whose writers are gone."""
    _remove(p for p in _entries(folder) if p.name.endswith(".part") and abandoned(p))


def _sweep_of(path: Path) -> None:
    start = f".{path.name}."
    found = (p for p in _entries(path.parent) if p.name.startswith(start) and p.name.endswith(".part"))
    _remove(p for p in found if abandoned(p))


def abandoned(path: Path) -> bool:
    """Whether the writer of a temporary is gone: its process is not there, or, elsewhere, it is older than a day."""
    writer = _OWNED.fullmatch(path.name)
    if writer and writer["machine"] == _machine():
        return not lives(int(writer["pid"]))
    try:
        return time.time() - path.stat().st_mtime > _STALE_S
    except OSError:  # it has just gone
        return False


def _entries(folder: Path) -> list[Path]:
    with suppress(OSError):
        return list(folder.iterdir())
    return []


def _remove(paths: Iterator[Path]) -> None:
    for path in paths:
        disk.remove(path)


@cache
def _machine() -> str:
    """Of this start of this machine, and of the container: process numbers count only within both."""
    return hashlib.sha256(here().encode()).hexdigest()[:8]
