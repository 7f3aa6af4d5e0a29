"""Kill runs until they have come to their end: `python -m benchmark.torture --kills 50 --seed 0`.

It goes on where it was stopped, with the same `--work`. Exit code 1 if one byte differs, or anything is left behind.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark import atomic
from benchmark.errors import BadInput, BenchError
from benchmark.torture import kills
from benchmark.torture.kills import Event, Measure

SCHEMA = 2
FOR_ALL_STAGES = 30
"""Kills from which a campaign goes on until each stage was struck, up to three times as many processes."""


@dataclass
class State:
    """What has been done, as it stands in `torture.json`."""

    command: list[str]
    seed: int
    measure: Measure | None = None
    events: list[Event] = field(default_factory=list)
    rounds: int = 0
    """Rounds that came to their end, byte for byte."""

    @property
    def within(self) -> bool:
        """Whether a round has begun and not come to its end."""
        return bool(self.events) and self.events[-1].code != 0

    def save(self, path: Path) -> None:
        """Write it."""
        values: dict[str, Any] = {"schema": SCHEMA, "command": self.command, "seed": self.seed, "rounds": self.rounds}
        if self.measure is not None:
            values["measure"] = vars(self.measure)
            values["figures"] = kills.figures(self.events, self.measure, self.rounds)
        values["events"] = [kills.plain(e) for e in self.events]
        atomic.write(path, json.dumps(values, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path, command: Sequence[str], seed: int) -> State:
        """What an earlier call left; BadInput if that was told something else."""
        if not path.is_file():
            return cls(list(command), seed)
        found = json.loads(path.read_bytes())
        if (found["schema"], found["command"], found["seed"]) != (SCHEMA, list(command), seed):
            raise BadInput(f"{path} is of another suite or seed; name another --work, or remove its folder")
        measure = Measure(**found["measure"]) if "measure" in found else None
        return cls(list(command), seed, measure, [Event(**e) for e in found["events"]], found["rounds"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    given = _parser().parse_args(arguments)
    command = ["run", given.suite, "--model", given.model, "--methods", given.methods, "--scale", given.scale]
    command += [word for value in given.set or () for word in ("--set", value)]
    try:
        return _torture(given, [*command, "--quiet"])
    except BenchError as error:
        print(f"torture: {error}", file=sys.stderr)
        return 1 if error.exit_code != BadInput.exit_code else BadInput.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmark.torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="so many real kills (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--round", type=int, default=8, help="about so many kills until a run ends (%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/torture"), help="where it runs (%(default)s)")
    parser.add_argument("--suite", default="smoke")
    parser.add_argument("--model", default="testbed")
    parser.add_argument("--methods", default="none,uce,esd")
    parser.add_argument("--scale", default="0.25")
    parser.add_argument("--set", action="append", help="a field of a method (esd.iterations=12, unless one is given)")
    parser.set_defaults(set=None)
    return parser


def _torture(given: argparse.Namespace, command: list[str]) -> int:
    if given.set is None and "esd" in given.methods.split(","):
        command = [*command, "--set", "esd.iterations=12"]
    given.work.mkdir(parents=True, exist_ok=True)
    path, reference = given.work / "torture.json", given.work / "reference"
    state = State.load(path, command, given.seed)
    kills.load_ahead()
    if state.measure is None:
        shutil.rmtree(reference, ignore_errors=True)
        state.measure = _undisturbed(command, reference, given.work)
        state.save(path)
    expected = kills.snapshot(reference)
    while _more(state, given.kills) or state.within:
        _step(state, given.work, expected, 2 / given.round, path, kill=_more(state, given.kills))
    print(json.dumps(kills.figures(state.events, state.measure, state.rounds), indent=1))
    return 0


def _more(state: State, most: int) -> bool:
    """Whether there are too few kills, or, in a campaign that can meet all, a stage was not met by any."""
    struck = [e.stage for e in state.events if e.killed]
    missing = most >= FOR_ALL_STAGES and len(state.events) < 3 * most and set(kills.STAGES) - set(struck)
    return len(struck) < most or bool(missing)


def _undisturbed(command: Sequence[str], out: Path, work: Path) -> Measure:
    event, (_, _, calls) = kills.run([*command, "--out", str(out)], work / "log.txt", "none", 0, number=-1, root=out)
    if event.code:
        raise BenchError(f"the undisturbed run ended with {event.code}; see {work / 'log.txt'}")
    print(f"undisturbed: {event.seconds:.1f} s, {calls} calls of the disk", flush=True)
    return Measure(event.seconds, calls)


def _step(state: State, work: Path, expected: dict[str, bytes], share: float, path: Path, *, kill: bool) -> None:
    """One process: killed, or the last of its round, which is then compared and cleared away."""
    assert state.measure is not None
    out, number = work / "round", len(state.events)
    harm, at = kills.drawn(state.seed, number, state.measure, share) if kill else ("none", 0.0)
    command = [*state.command, "--out", str(out)]
    event, _ = kills.run(command, work / "log.txt", harm, at, number=state.rounds, root=out)
    kills.sound(out)
    state.events.append(event)
    print(f"{number} round {state.rounds}: {_told(event)}", flush=True)
    if not event.struck and event.code:
        raise BenchError(f"a run that nobody harmed ended with {event.code}; see {work / 'log.txt'}")
    if event.code == 0:
        kills.same(out, expected)
        state.rounds += 1
        state.save(path)
        shutil.rmtree(out)
    state.save(path)


def _told(event: Event) -> str:
    if not event.struck:
        return f"came to its end after {event.seconds:.1f} s"
    where = f"{event.stage}{', in a write' if event.writing else ''}"
    return f"{event.harm}{_when(event)} ({where}); lost {event.lost:.1f} s"


def _when(event: Event) -> str:
    if event.harm == "SIGKILL at a stage":
        return f"'s {'end' if event.at % 1 else 'begin'}"
    return f" at {event.at:g} {'s' if event.harm in ('SIGKILL', 'SIGTERM') else 'th call'}"


if __name__ == "__main__":
    sys.exit(main())
