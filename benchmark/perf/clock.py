"""Wall and processor time of a piece of work, and how much others used the machine meanwhile. No torch."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_STAT = Path("/proc/stat")
_WAITED = 1.5
"""Wall over processor time from which a time says more of the machine than of the work."""
_OTHERS = 0.15
"""Share of the machine's processors used by others from which it is not ours to measure on."""


@dataclass(frozen=True)
class Time:
    """One timing, in seconds."""

    wall: float
    cpu: float
    """Of this process, its threads and the children that it waited for."""
    others: float | None = None
    """Share of all processors that other processes took, 0 to 1; None where the system does not tell."""

    @property
    def noisy(self) -> bool:
        """Whether the work waited for the machine rather than for itself."""
        waited = self.cpu > 0 and self.wall > _WAITED * self.cpu
        return waited or (self.others is not None and self.others > _OTHERS)


@dataclass
class Watch:
    """A running timing; `time` is there once its block has ended."""

    time: Time = field(default_factory=lambda: Time(0.0, 0.0))


@contextmanager
def watched() -> Iterator[Watch]:
    """Time the block."""
    watch = Watch()
    wall, cpu, busy = time.perf_counter(), processor(), _busy()
    try:
        yield watch
    finally:
        watch.time = _since(wall, cpu, busy)


def _since(wall: float, cpu: float, busy: float | None) -> Time:
    took, used, now = time.perf_counter() - wall, processor() - cpu, _busy()
    if busy is None or now is None or took < 0.5:  # the system counts in hundredths of a second
        return Time(took, used)
    return Time(took, used, max(0.0, (now - busy - used) / (took * (os.cpu_count() or 1))))


def processor() -> float:
    """Seconds of processor time of this process and of its children that have ended."""
    t = os.times()
    return time.process_time() + t.children_user + t.children_system


def _busy() -> float | None:
    """Seconds that all processors together have been busy since the machine started."""
    try:
        user, nice, system, _, _, *rest = map(int, _STAT.read_text().split("\n", 1)[0].split()[1:8])
    except (OSError, ValueError):
        return None
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def load() -> float | None:
    """Processes that waited for a processor over the last minute, on average."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)
