"""Which piece of shared work a process turns to next, when several go through the same pieces in the same order."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from benchmark import keys
from benchmark.leases import Busy, Leases

T = TypeVar("T")
_SHORTEST_S, _LONGEST_S = 0.02, 1.0


def take_turns(
    pieces: Mapping[str, Callable[[], None]],
    leases: Leases,
    *,
    done: Callable[[str], bool],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Do all pieces, by name and in order; returns when each is done, by this process or another.

    `done` tells whether another has done a piece meanwhile. A piece raises Busy where another process is at something
    it needs: it is put off until that is free. First come the pieces that nobody has begun; only then are others
    helped with theirs.
    """
    left, waiting = dict(pieces), dict[str, str]()
    pause = _SHORTEST_S
    while left:
        name = _next(left, waiting, leases)
        if name is None:
            sleep(pause)
            pause = min(2 * pause, _LONGEST_S)
            continue
        pause = _SHORTEST_S
        if done(name) or _finished(name, left[name], waiting, leases):
            del left[name]


def patiently(work: Callable[[], T], leases: Leases, *, sleep: Callable[[float], None] = time.sleep) -> T:
    """The result of the work, once nobody else is at what it needs."""
    pause = _SHORTEST_S
    while True:
        try:
            return work()
        except Busy as busy:
            while not leases.free(busy.claim):
                sleep(pause)
                pause = min(2 * pause, _LONGEST_S)


def _next(left: Mapping[str, object], waiting: Mapping[str, str], leases: Leases) -> str | None:
    """The first piece that can go on and that nobody has begun, else the first that can go on."""
    ready = [name for name in left if name not in waiting or leases.free(waiting[name])]
    return next((name for name in ready if leases.free(_begun(name))), ready[0] if ready else None)


def _finished(name: str, work: Callable[[], None], waiting: dict[str, str], leases: Leases) -> bool:
    leases.acquire(_begun(name))  # it may be another's, whom we help
    try:
        work()
    except Busy as busy:
        waiting[name] = busy.claim
        return False
    finally:
        leases.clear()  # a claim of our own that was forgotten would be waited for for ever
    return True


def _begun(name: str) -> str:
    return f"begun.{keys.digest(name)}"
