"""What a bench is, how its two sides are timed side by side, and what is written of it. No torch.

The sides take turns, so that a machine that slows down slows both; the first turn of each is a warm-up and is not
counted. Where the peer's way takes so long that a session would not end in a quarter of an hour, it leaves the last
turns to ours. Everything is kept: every timing, the processor time beside the wall time, the work that each side did.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmark.perf.clock import Time, load, median, watched
from benchmark.perf.rig import Rig

Kind = Literal["cpu", "cuda"]


class NotMeasured(Exception):
    """A bench that this machine or installation cannot run; its text is the reason."""


@dataclass(frozen=True)
class Did:
    """What one turn of one side did."""

    work: Mapping[str, float] = field(default_factory=dict)
    """Counts: they are the same on every machine."""
    startup: float = 0.0
    """Seconds of it until interpreters had their imports; 0 for work inside this process."""
    seconds: float | None = None
    """What the turn took, where it is not the whole call: many swaps in one, say."""
    value: float | None = None
    """What the bench is about, where that is no time; there is no ratio then."""


@dataclass(frozen=True)
class Target:
    """What is asked of a bench on one kind of device."""

    text: str
    ratio: float | None = None
    """The least ratio; None where the target is no ratio."""
    holds: Callable[[Mapping[str, Any]], bool] | None = None
    """Of the written entry, where it is more, or other, than the ratio."""

    def met(self, entry: Mapping[str, Any]) -> bool:
        """Whether an entry reaches it."""
        enough = self.ratio is None or (entry["ratio"] is not None and entry["ratio"] >= self.ratio)
        return enough and (self.holds is None or self.holds(entry))


class Trial(abc.ABC):
    """A bench made ready: inputs are there, models loaded, nothing of it in the timings."""

    amount: float = 1.0
    """Units of one turn, where the bench's unit is a rate: images, say."""

    @abc.abstractmethod
    def ours(self) -> Did:
        """One turn of this harness."""

    @abc.abstractmethod
    def peer(self) -> Did | None:
        """One turn of the peer's way; None where it has none."""

    def settings(self) -> dict[str, Any]:
        """Sizes and steps: the same for both sides."""
        return {}

    def checks(self) -> dict[str, Any]:
        """What holds between the sides' results, such as how far they differ; asked for after the turns."""
        return {}


class Bench(abc.ABC):
    """One comparison. Subclasses are final, one file a bench; the module's docstring tells the peer's way."""

    name: str
    title: str
    unit: str
    """Of `ours` and `peer`: `s`, `ms` or a rate such as `images/s`."""
    peer_way: str
    """What the peer's way does, and where that is seen."""
    targets: Mapping[Kind, Target]
    warm_up: bool = True
    once: bool = False
    """Whether one turn tells all: a check, not a time."""
    peer_once: bool = False
    """Whether the peer's way takes a single turn: a long one, so far behind that its spread decides nothing."""
    fewest: int = 3
    """Turns that the peer's way takes however long they are; ours takes all that were asked for."""
    patience: float = 50.0
    """Seconds of turns from which the peer's way, after `fewest` of its own, takes no more of them."""

    @abc.abstractmethod
    def ready(self, rig: Rig, folder: Path) -> AbstractContextManager[Trial]:
        """Make it ready; `folder` is empty and its own. NotMeasured where that cannot be."""


# --- running ----------------------------------------------------------------------------------------------------------
def run(bench: Bench, rig: Rig, folder: Path, runs: int) -> dict[str, Any]:
    """The bench's entry, see `entry`; with the reason in place of numbers where it cannot be measured here."""
    before = load()
    try:
        with bench.ready(rig, folder) as trial:
            sides = _turns(bench, trial, 1 if bench.once else runs)
            return entry(bench, rig, trial, sides, before)
    except NotMeasured as error:
        return absent(bench, str(error), rig.kind)


@dataclass
class _Side:
    did: list[Did] = field(default_factory=list)
    times: list[Time] = field(default_factory=list)

    def turn(self, work: Callable[[], Did | None]) -> None:
        with watched() as watch:
            done = work()
        if done is not None:
            self.did.append(done)
            self.times.append(watch.time)

    def seconds(self) -> list[float]:
        """Wall time of each turn."""
        return [t.wall if d.seconds is None else d.seconds for d, t in zip(self.did, self.times, strict=True)]

    def processor(self) -> list[float]:
        """Processor time of each turn; where a turn is a part of its call, in proportion."""
        return [
            t.cpu if d.seconds is None else t.cpu * d.seconds / t.wall
            for d, t in zip(self.did, self.times, strict=True)
        ]

    def without_startup(self) -> list[float]:
        """Wall time of each turn without that of imports."""
        return [s - d.startup for s, d in zip(self.seconds(), self.did, strict=True)]

    def values(self) -> list[float]:
        return [d.value for d in self.did if d.value is not None]


def _turns(bench: Bench, trial: Trial, runs: int) -> tuple[_Side, _Side]:
    ours, peer = _Side(), _Side()
    if bench.warm_up and not bench.once:
        trial.ours(), trial.peer()
    begun = time.monotonic()
    for turn in range(runs):
        ours.turn(trial.ours)
        enough = turn >= bench.fewest and time.monotonic() - begun > bench.patience
        if not enough and not (bench.peer_once and turn):
            peer.turn(trial.peer)
    return ours, peer


# --- what is written --------------------------------------------------------------------------------------------------
def entry(bench: Bench, rig: Rig, trial: Trial, sides: tuple[_Side, _Side], before: float | None) -> dict[str, Any]:
    """Medians, ratios (ours better than the peer's way is above 1), counts, checks, and all that they rest on."""
    ours, peer = sides
    rate = bench.unit.endswith("/s")
    made: dict[str, Any] = {
        "name": bench.name,
        "title": bench.title,
        "unit": bench.unit,
        "ours": _value(bench, trial, ours),
        "peer": _value(bench, trial, peer),
        "ratio": _ratio(sides, _Side.seconds),
        "ratio_without_startup": _ratio(sides, _Side.without_startup),
        "ratio_cpu": _ratio(sides, _Side.processor),
        "counts": {name: dict(side.did[-1].work) for name, side in (("ours", ours), ("peer", peer)) if side.did},
        "runs": len(ours.did),
        "peer_runs": len(peer.did),
        "noisy": any(t.noisy for side in sides for t in side.times),
        "settings": {"device": rig.kind, "threads": rig.threads, "load": before, **trial.settings()},
        "checks": trial.checks(),
        "times": {name: _times(side) for name, side in (("ours", ours), ("peer", peer)) if side.did},
        "higher_is_better": rate,
        "peer_way": bench.peer_way,
    }
    target = bench.targets.get(rig.kind)
    return {**made, "target": target and target.text, "met": target and target.met(made)}


def absent(bench: Bench, reason: str, kind: Kind) -> dict[str, Any]:
    """The entry of a bench that was not measured, with the reason."""
    target = bench.targets.get(kind)
    empty = dict.fromkeys(("ours", "peer", "ratio", "ratio_without_startup", "ratio_cpu", "met"))
    return {
        "name": bench.name,
        "title": bench.title,
        "unit": bench.unit,
        **empty,
        "counts": {},
        "runs": 0,
        "not_measured": reason,
        "target": target and target.text,
        "peer_way": bench.peer_way,
    }


_SCALE = {"s": 1.0, "ms": 1e3}


def _value(bench: Bench, trial: Trial, side: _Side) -> float | None:
    values = side.values()
    if values or not side.did:
        return rounded(median(values)) if values else None
    middle = median(side.seconds())
    return rounded(trial.amount / middle if bench.unit not in _SCALE else middle * _SCALE[bench.unit])


def _ratio(sides: tuple[_Side, _Side], seconds: Callable[[_Side], list[float]]) -> float | None:
    """How many times longer the peer's way takes."""
    ours, peer = map(seconds, sides)
    if not ours or not peer or median(ours) <= 0 or any(side.values() for side in sides):
        return None
    return rounded(median(peer) / median(ours))


def _times(side: _Side) -> dict[str, list[float | None]]:
    return {
        "wall": [rounded(s) for s in side.seconds()],
        "cpu": [rounded(s) for s in side.processor()],
        "startup": [rounded(d.startup) for d in side.did],
        "others": [None if t.others is None else rounded(t.others) for t in side.times],
    }


def rounded(value: float) -> float:
    """Four significant digits: more is noise."""
    return float(f"{value:.4g}")
