"""Claims on work that several processes or machines could do at the same time: files with an owner and an expiry.

No lock of the system is asked for, so it holds on network file systems too: a claim is made by `link`, which only one
process can do for a name; its owner touches it while it works; whoever finds it expired renames it away, which again
only one can do. Ages are told by the file system's own clock, never by this machine's.

A claim saves work, it does not guard bytes: a process that sleeps past its expiry does work that another then does
too, and both publish the same artifact whole. So nothing is ever torn or wrong for want of a claim.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

from benchmark import owner
from benchmark.errors import BadInput

EXPIRY_S = 180.0
"""A claim untouched for so long is nobody's. Three times the minute that an NFS client may hold old times for."""
BEAT_S = 20.0
"""A claim is touched so often."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@=+-]*")
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_TRIES = 100


class Busy(Exception):
    """Another process is at this work; `claim` names its claim. To be asked for again once that is gone."""

    def __init__(self, claim: str) -> None:
        super().__init__(f"another process is at {claim}")
        self.claim = claim


@dataclass(frozen=True)
class _Seen:
    """A claim file as it was found."""

    token: str | None
    """None if its owner was stopped while it wrote."""
    touched: int
    """Nanoseconds on the file system's clock."""
    place: str
    pid: int
    born: str


@final
class Leases:
    """The claims of one folder, as one owner sees them; `expiry_s` must be the same for all who share the folder."""

    def __init__(self, folder: Path, *, expiry_s: float = EXPIRY_S, beat_s: float = BEAT_S) -> None:
        """Nothing is made before the first claim."""
        self.folder, self.expiry_s, self.beat_s = folder, expiry_s, beat_s
        self._held: dict[str, str] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def hold(self, *address: str) -> Iterator[None]:
        """Have the work to oneself while the block runs; `Busy` if another has it."""
        name = ".".join(address)
        if not self.acquire(name):
            raise Busy(name)
        try:
            yield
        finally:
            self.release(name)

    @contextmanager
    def wait(self, name: str, *, sleep: Callable[[float], None] = time.sleep) -> Iterator[None]:
        """`hold`, after waiting for whoever has it: for what takes a moment."""
        pause = 0.005
        while not self.acquire(name):
            sleep(pause)
            pause = min(2 * pause, 0.5)
        try:
            yield
        finally:
            self.release(name)

    def acquire(self, name: str) -> bool:
        """Claim the work; whether it is ours now. BadInput if the folder cannot be written."""
        token, path = uuid.uuid4().hex, self._path(name)
        try:
            if not (_create(path, _payload(token)) or (self._break(path) and _create(path, _payload(token)))):
                return False
        except OSError as error:
            raise BadInput(f"cannot claim work in {self.folder}: {error.strerror or error}") from error
        with self._lock:
            self._held[name] = token
            if self._thread is None:
                self._wake.clear()
                self._thread = threading.Thread(target=self._beat, name="leases", daemon=True)
                self._thread.start()
        return True

    def release(self, name: str) -> None:
        """Give the work back, done or not; what was taken from us meanwhile stays with who has it."""
        with self._lock:
            token = self._held.pop(name, None)
            if not self._held:
                self._wake.set()
        path = self._path(name)
        seen = _look(path)
        if seen is not None and seen.token == token:
            _take_away(path, lambda found: found.token == token)
        with suppress(OSError):  # a folder without claims goes too; it is in the way of nobody if it stays
            self.folder.rmdir()

    def clear(self) -> None:
        """Give back all that this owner has; between two pieces of work that is nothing, unless something failed."""
        with self._lock:
            names = list(self._held)
        for name in names:
            self.release(name)

    def free(self, name: str) -> bool:
        """Whether nobody alive has it."""
        seen = _look(self._path(name))
        return seen is None or self._dead(seen)

    def live(self) -> list[str]:
        """Names of the claims that somebody alive has."""
        found = sorted(self.folder.glob("[!.]*")) if self.folder.is_dir() else []
        return [path.name for path in found if not self.free(path.name)]

    def sweep(self) -> None:
        """Remove what dead owners left; nobody needs to, for each is removed when its work is asked for again."""
        for path in list(self.folder.glob("*")) if self.folder.is_dir() else []:
            if path.name.startswith("."):
                seen = _look(path)
                if seen is not None and self._old(seen):
                    path.unlink(missing_ok=True)
            elif path.is_file():
                self._break(path)
        with suppress(OSError):
            self.folder.rmdir()

    # --- inside -----------------------------------------------------------------------------------------------
    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(f"not a name for a claim: {name!r}")
        return self.folder / name

    def _break(self, path: Path) -> bool:
        """Remove a claim whose owner is gone; whether the name is free now.

        Only whoever makes the mark for this very claim may: of two that found it dead, the slower one would else remove
        what the faster one has put in its place.
        """
        seen = _look(path)
        if seen is None:
            return True
        if not self._dead(seen):
            return False
        mark = path.with_name(f".{path.name}.broken.{seen.token or seen.touched}")
        if not _create(mark, _payload(uuid.uuid4().hex)):
            by = _look(mark)
            if by is not None and self._dead(by):  # stopped at that moment; the next who asks goes on
                mark.unlink(missing_ok=True)
            return False
        try:
            again = _look(path)
            return again is None or (again == seen and _take_away(path, lambda found: found == seen))
        finally:
            mark.unlink(missing_ok=True)

    def _dead(self, seen: _Seen) -> bool:
        if seen.token is not None and seen.place == owner.place():
            return not owner.lives(seen.pid, seen.born)
        return self._old(seen)

    def _old(self, seen: _Seen) -> bool:
        return file_time(self.folder) - seen.touched > self.expiry_s * 1e9

    def _beat(self) -> None:
        while True:
            self._wake.wait(self.beat_s)
            with self._lock:
                held = dict(self._held)
                if not held:
                    self._thread = None
                    return
                self._wake.clear()
            for name, token in held.items():
                self._touch(self._path(name), token)

    def _touch(self, path: Path, token: str) -> None:
        seen = _look(path)
        if seen is not None and seen.token == token:
            with suppress(OSError):
                os.utime(path)  # without a time: the server's


def file_time(folder: Path) -> int:
    """Now, in nanoseconds on the clock of the file system that holds the folder, which is made if need be."""
    probe = folder / f".now.{uuid.uuid4().hex}"
    try:
        handle = _open_new(probe)
        try:
            return os.fstat(handle).st_mtime_ns
        finally:
            os.close(handle)
    finally:
        probe.unlink(missing_ok=True)


# --- files ------------------------------------------------------------------------------------------------------------
def _create(path: Path, content: bytes) -> bool:
    """Make the file with its content, whole; whether it is ours, not another's that was there."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    _write_new(temporary, content)
    try:
        os.link(temporary, path)
        return True
    except OSError as error:
        # An answer lost on the network: the link was made, and made again it exists.
        if os.stat(temporary).st_nlink == 2:
            return True
        if isinstance(error, FileExistsError):
            return False
        if error.errno not in _NO_LINKS:
            raise
    finally:
        temporary.unlink(missing_ok=True)
    return _create_in_place(path, content)


def _write_new(path: Path, content: bytes) -> None:
    with os.fdopen(_open_new(path), "wb") as file:
        file.write(content)


def _open_new(path: Path) -> int:
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):  # the folder was empty for a moment, and somebody removed it
            with suppress(FileExistsError):  # it was there, and gone again when it was asked whether it is a folder
                path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))


def _create_in_place(path: Path, content: bytes) -> bool:
    """For file systems without links: exclusive too, but for a moment the file is there without its content."""
    try:
        _write_new(path, content)
    except FileExistsError:
        return False
    return True


def _take_away(path: Path, ours: Callable[[_Seen], bool]) -> bool:
    """Remove a claim if it is still the one meant; whether it was.

    Should the claim have changed hands since it was looked at, it is put back; if it was claimed anew in that moment,
    two are at one work, which costs time and nothing else.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return False
    try:
        found = _look(aside)
        if found is not None and ours(found):
            return True
        with suppress(OSError):
            os.link(aside, path)
        return False
    finally:
        aside.unlink(missing_ok=True)


def _look(path: Path) -> _Seen | None:
    """The claim, None if there is none. Opened, not only asked for: then a network file system gives its true time."""
    try:
        with path.open("rb") as file:
            touched = os.fstat(file.fileno()).st_mtime_ns
            content = file.read(4096)
    except OSError:
        return None
    try:
        told = json.loads(content)
        return _Seen(str(told["token"]), touched, str(told["place"]), int(told["pid"]), str(told["born"]))
    except (ValueError, KeyError, TypeError):
        return _Seen(None, touched, "", 0, "")


# --- processes --------------------------------------------------------------------------------------------------------
def _payload(token: str) -> bytes:
    pid = os.getpid()
    told = {
        "token": token,
        "host": socket.gethostname(),
        "place": owner.place(),
        "pid": pid,
        "born": owner.born(pid) or "",
    }
    return json.dumps(told).encode() + b"\n"
