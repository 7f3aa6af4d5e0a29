"""Runs that are killed again and again, in earnest: real processes, real signals, at random moments and inside writes.

A round is one folder: the same command is started in it until it comes to its end, and then all bytes must be those of
a run that nobody disturbed. What was drawn for the n-th harm depends on the seed and n alone.
"""

from __future__ import annotations

import importlib
import json
import mmap
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Literal, get_args

from benchmark import atomic
from benchmark.errors import BenchError, Damaged
from benchmark.store import Store
from benchmark.torture.faults import FaultyDisk, Kind

STAGES = ("start", "edit", "images", "scores", "record", "board", "grids", "seal")
_HOOKS = (
    ("benchmark.worker", "Worker", "edit", "edit"),
    ("benchmark.worker", "Worker", "images", "images"),
    ("benchmark.worker", "Worker", "scores", "scores"),
    ("benchmark.record", None, "write", "record"),
    ("benchmark.tables.board", None, "write", "board"),
    ("benchmark.tables.grids", None, "draw", "grids"),
    ("benchmark.run", None, "seal", "seal"),
)
"""Where a run is: module, class, function, stage."""
_AHEAD = (
    "benchmark.cli",
    "benchmark.run",
    "benchmark.edits",
    "benchmark.journal",
    "benchmark.sample",
    "benchmark.backbones.unet",
    "benchmark.testbed.evaluator",
)
"""Imported once, before processes are forked: that takes longer than all the rest of a cycle."""
FREE = ("costs.json", "log/", "store/costs/", "store/tmp/", "store/damaged/")
"""What may differ between runs, or be left of one that was stopped."""
_LONGEST_S = 1800.0
CHECKPOINTS_S = 0.5
"""Seconds between two checkpoints of a training; runs in earnest have more, and their trainings last longer."""

Harm = Literal[
    "SIGKILL", "SIGTERM", "SIGKILL in a write", "SIGKILL at a stage", "no space", "input/output", "short write", "none"
]
_DRAWN: Sequence[tuple[Harm, int]] = (
    ("SIGKILL", 4),
    ("SIGTERM", 3),
    ("SIGKILL in a write", 4),
    ("no space", 1),
    ("input/output", 1),
    ("short write", 1),
)
"""And how often, of so many."""
_AIMED = 4
"""Every so many-th process is killed where a stage begins or ends, one stage after the other: some take so little time
that a random moment hardly ever meets them."""


@dataclass(frozen=True)
class Event:
    """One process of a round, and how it ended."""

    round: int
    harm: Harm
    at: float
    """Seconds after its start; or which call of the disk; or the stage's place in `STAGES`, and a half for its end."""
    struck: bool
    """Whether it was hit; else it came to its end before."""
    stage: str
    writing: bool
    """Whether it was in the middle of a write."""
    seconds: float
    lost: float
    """Seconds between the last artifact that was finished (checkpoints of trainings too), or the start, and the end."""
    code: int
    """Exit status, negative for a signal."""

    @property
    def killed(self) -> bool:
        """Whether it was a kill: of the other harms the process itself ends, with a message."""
        return self.struck and self.harm.startswith("SIG")


@dataclass(frozen=True)
class Measure:
    """What an undisturbed run takes: harms are drawn from as much."""

    seconds: float
    calls: int


class Watch:
    """A page of memory shared with the child, which says in it where it is."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, 16)

    def enter(self, stage: str) -> int:
        """The stage before."""
        before = self._page[0]
        self._page[0] = STAGES.index(stage)
        return before

    def back(self, before: int) -> None:
        self._page[0] = before

    def writing(self, on: bool) -> None:
        self._page[1] = on

    def count(self, calls: int) -> None:
        self._page[8:16] = calls.to_bytes(8)

    @property
    def seen(self) -> tuple[str, bool, int]:
        """Stage, whether in a write, calls of the disk."""
        return STAGES[self._page[0]], bool(self._page[1]), int.from_bytes(self._page[8:16])


class WatchedDisk(FaultyDisk):
    """A disk that says when it is written to; with `kill` it ends its process for good in the call `at`, half done."""

    def __init__(self, watch: Watch, kind: Kind = "input/output", at: int | None = None, *, kill: bool = False) -> None:
        super().__init__("killed" if kill else kind, at)
        self._watch = watch

    def _call(self, name: str, half: object = None) -> None:
        if self.kind == "killed" and self._is_next():
            if callable(half):
                half()
            os.kill(os.getpid(), signal.SIGKILL)
        super()._call(name, half)
        self._watch.count(len(self.calls))

    def create(self, path: Path) -> int:
        self._watch.writing(True)
        return super().create(path)

    def replace(self, source: Path, target: Path) -> None:
        super().replace(source, target)
        self._watch.writing(False)

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self._watch.writing(False)


# --- one process ------------------------------------------------------------------------------------------------------
def load_ahead() -> None:
    """Import what every run needs, before the first fork."""
    for name in _AHEAD:
        importlib.import_module(name)


def run(
    command: Sequence[str], log: Path, harm: Harm, at: float, *, number: int, root: Path
) -> tuple[Event, tuple[str, bool, int]]:
    """Start the command in a process of its own, do it harm, and tell how it ended."""
    watch = Watch()
    process = multiprocessing.get_context("fork").Process(target=_child, args=(command, log, harm, at, watch))
    started = time.time()
    process.start()
    if harm in ("SIGKILL", "SIGTERM"):
        process.join(at)
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL if harm == "SIGKILL" else signal.SIGTERM)
    process.join(_LONGEST_S)
    if process.is_alive():
        process.kill()
        process.join()
        raise BenchError(f"a run took more than {_LONGEST_S:g} s; see {log}")
    ended, code = time.time(), int(process.exitcode or 0)
    stage, writing, calls = watch.seen
    done = max([started, *(p.stat().st_mtime for p in root.rglob("manifest.json"))])
    struck = code not in (0, 4) or (harm == "short write" and calls > at)
    event = Event(number, harm, at, struck, stage, writing, ended - started, max(0.0, ended - done), code)
    return event, watch.seen


def _child(command: Sequence[str], log: Path, harm: Harm, at: float, watch: Watch) -> None:
    from benchmark import cli

    if journal := sys.modules.get("benchmark.journal"):  # loaded ahead; what is only played trains nothing
        vars(journal).update(EVERY_S=CHECKPOINTS_S, SHARE=1.0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    aimed = at if harm == "SIGKILL at a stage" else None
    for module, owner, name, stage in _HOOKS:
        place = importlib.import_module(module)
        _hook(place if owner is None else getattr(place, owner), name, stage, watch, aimed)
    kind: Kind = harm if harm in ("no space", "input/output", "short write") else "input/output"
    by_call = harm == "SIGKILL in a write" or harm == kind
    disk = WatchedDisk(watch, kind, int(at) if by_call else None, kill=harm == "SIGKILL in a write")
    atomic.disk = disk
    with log.open("a", encoding="utf-8") as out:
        sys.stdout = sys.stderr = out
        sys.argv = ["erasure-bench", *command]
        cli.main()


def _hook(owner: Any, name: str, stage: str, watch: Watch, aimed: float | None) -> None:
    real: Callable[..., Any] = getattr(owner, name)
    begin = STAGES.index(stage)

    def reached(place: float) -> None:
        if place == aimed:
            os.kill(os.getpid(), signal.SIGKILL)

    @wraps(real)
    def hooked(*arguments: Any, **named: Any) -> Any:
        before = watch.enter(stage)
        try:
            reached(begin)
            value = real(*arguments, **named)
            reached(begin + 0.5)
            return value
        finally:
            watch.back(before)

    setattr(owner, name, hooked)


# --- one round --------------------------------------------------------------------------------------------------------
def snapshot(out: Path) -> dict[str, bytes]:
    """Every file of a run's folder whose bytes are promised."""
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in sorted(files.items()) if not name.startswith(FREE)}


def sound(out: Path) -> None:
    """Damaged if anything in the folder of a run that was stopped is half written."""
    for path in [*out.glob("records/*.json"), *out.glob("board.json"), *out.glob("costs.json")]:
        try:
            json.loads(path.read_bytes())
        except ValueError as error:
            raise Damaged(f"{path} is torn: {error}") from None
    store = Store(out / "store", readonly=True)
    for address in store.addresses():
        store.get(*address)


def same(out: Path, expected: dict[str, bytes]) -> None:
    """Damaged unless a finished run has the bytes of the undisturbed one, and nothing is left lying about."""
    found = snapshot(out)
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            how = "is not there" if name not in found else "is too much" if name not in expected else "differs"
            raise Damaged(f"{out / name} {how}: the end of a run that was killed is not that of one that was not")
    left = [*out.rglob("*.part"), *out.glob("store/tmp/*"), *out.glob("store/damaged/*"), *out.glob("store/leases/*")]
    if left:
        raise Damaged(f"{left[0]} was left behind ({len(left)} in all)")


def drawn(seed: int, number: int, measure: Measure, share: float) -> tuple[Harm, float]:
    """The n-th harm and its moment, up to `share` of what a whole run takes."""
    rng = random.Random(f"{seed}|{number}")
    if number % _AIMED == _AIMED - 1:
        place = number // _AIMED % (len(STAGES) - 1) + 1  # all but the start, which random moments meet
        return "SIGKILL at a stage", place + rng.choice((0.0, 0.5))
    (harm,) = rng.choices([h for h, _ in _DRAWN], [n for _, n in _DRAWN])
    far = measure.seconds if harm in ("SIGKILL", "SIGTERM") else measure.calls
    at = rng.uniform(0, share * far)
    return harm, round(at, 3) if harm in ("SIGKILL", "SIGTERM") else int(at)


# --- figures ----------------------------------------------------------------------------------------------------------
def figures(events: Sequence[Event], measure: Measure, rounds: int) -> dict[str, Any]:
    """What is shown: kills, where they struck, recoveries, lost work."""
    kills = [e for e in events if e.killed]
    faults = [e for e in events if e.struck and not e.killed]
    lost = sorted(e.lost for e in kills)
    stages = {s: sum(e.stage == s for e in kills) for s in STAGES}
    return {
        "kills": len(kills),
        "by_signal": {h: sum(e.harm == h for e in kills) for h in get_args(Harm) if h.startswith("SIG")},
        "by_stage": {stage: n for stage, n in stages.items() if n},
        "in_writes": sum(e.writing or e.harm.endswith("write") for e in kills),
        "faults": {h: sum(e.harm == h for e in faults) for h, _ in _DRAWN if not h.startswith("SIG")},
        "recoveries": sum(e.struck for e in events),
        "rounds_byte_equal": rounds,
        "undisturbed_s": round(measure.seconds, 2),
        "lost_s_median": round(lost[len(lost) // 2], 2) if lost else 0.0,
        "lost_s_most": round(lost[-1], 2) if lost else 0.0,
        "lost_s_all": round(sum(lost), 1),
        "lost_s_most_in_edits": round(max((e.lost for e in kills if e.stage == "edit"), default=0.0), 2),
        "seconds": round(sum(e.seconds for e in events), 1),
    }


def plain(event: Event) -> dict[str, Any]:
    """As JSON."""
    return asdict(event)
