"""What a long command shows of its way: a live display where somebody watches, plain lines anywhere else.

Everything goes to stderr; stdout is for results.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self, final

from benchmark import memory
from benchmark.inert import lines, printable, redacted

if TYPE_CHECKING:
    from rich import progress as rich_progress

EVERY = 30.0
"""Seconds between the plain lines of a long stage."""


def terminal(stream: IO[str]) -> bool:
    """Whether control codes have a place there: no pipe or file, no dumb terminal, no NO_COLOR, no CI."""
    told = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or _ci()
    return stream.isatty() and not told


def _ci() -> bool:
    return os.environ.get("CI", "").casefold() not in ("", "0", "false", "no")


@final
class Stage:
    """One stage under way: `advance` it as work gets done."""

    def __init__(self, name: str, total: int | None, unit: str, clock: Callable[[], float]) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = 0
        self._clock, self._start = clock, clock()
        self._hook: Callable[[int], None] = lambda count: None

    def advance(self, count: int = 1) -> None:
        """`count` more of the stage's units are done."""
        self.done += count
        self._hook(count)

    @property
    def seconds(self) -> float:
        """Since the stage began."""
        return self._clock() - self._start

    def line(self) -> str:
        """`images uce erase:cat: 120/120 images, 31.0 s, 3.87 images/s`."""
        seconds, of = self.seconds, "" if self.total is None else f"/{self.total}"
        rate = f", {self.done / seconds:.3g} {self.unit}/s" if self.done and seconds >= 0.1 else ""
        return f"{self.name}: {self.done}{of} {self.unit}, {seconds:.1f} s{rate}"

    def under_way(self) -> str:
        """`images uce erase:cat: 40/120 images, 12.0 s, 3.33 images/s, 80 left, about 24 s`."""
        if self.total is None or not 0 < self.done < self.total:
            return self.line()
        left = self.total - self.done
        return f"{self.line()}, {left} left, about {duration(self.seconds / self.done * left)}"


@final
class Progress:
    """Shows stages with done and left, speed, estimate and memory.

    `whole` is how many `unit` the entire command will do, over all its stages; with it there is a line for the whole.
    Where nobody watches (see `terminal`) there is a plain line, without control codes, when a stage ends, and one in
    `EVERY` seconds of a long one; `quiet` leaves the first kind only.
    """

    def __init__(
        self,
        *,
        whole: int | None = None,
        unit: str = "images",
        quiet: bool = False,
        stream: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.whole, self.unit, self.quiet = whole, unit, quiet
        self.live = not quiet and terminal(self.stream)
        self._clock = clock
        self._bars = _bars(self.stream) if self.live else None
        self._total: rich_progress.TaskID | None = None
        self._done = 0

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
            if self.whole:
                self._total = self._bars.add_task("all", total=self.whole, unit=self.unit)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "images") -> Iterator[Stage]:
        """A stage of `total` units (None: unknown). It is reported when the block ends, however it ends."""
        stage = Stage(name, total, unit, self._clock)
        bar = self._attach(stage)
        try:
            yield stage
        finally:
            if self._bars is not None and bar is not None:
                self._bars.remove_task(bar)
            self.say(stage.line())

    def say(self, line: str) -> None:
        """One line beside the display, in which nothing of a stranger's acts on the terminal, and no token stands."""
        line = lines(redacted(line))
        if self._bars is None:
            print(line, file=self.stream, flush=True)
        else:
            # emoji off: rich would draw the `:cat:` of "erase:cat: 40/40".
            self._bars.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def _attach(self, stage: Stage) -> rich_progress.TaskID | None:
        if self._bars is None:
            stage._hook = self._plain(stage)
            return None
        bars, total = self._bars, self._total
        bar = bars.add_task(printable(stage.name), total=stage.total, unit=stage.unit)

        def hook(count: int) -> None:
            bars.advance(bar, count)
            if total is not None and stage.unit == self.unit:
                bars.advance(total, count)

        stage._hook = hook
        return bar

    def _plain(self, stage: Stage) -> Callable[[int], None]:
        """Tells of a stage from time to time."""
        last = self._clock()

        def hook(count: int) -> None:
            nonlocal last
            self._done += count if stage.unit == self.unit else 0
            now = self._clock()
            if not self.quiet and now - last >= EVERY and stage.done != stage.total:
                last = now
                self.say(f"{stage.under_way()}{self._whole()}, {amount(memory.used())}")

        return hook

    def _whole(self) -> str:
        return f"; all: {self._done}/{self.whole}" if self.whole else ""


# --- words --------------------------------------------------------------------------------------------------------
def duration(seconds: float) -> str:
    """`46 s`, `9 min`, `2 h 05 min`.

    >>> duration(45.6), duration(540), duration(7500)
    ('46 s', '9 min', '2 h 05 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def amount(size: int) -> str:
    """Bytes to be read: `340 MB`, `1.2 GB`."""
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"


# --- the live display ---------------------------------------------------------------------------------------------
_WIDE = 100  # columns from which there is room for what is left, and time elapsed


def _bars(stream: IO[str]) -> rich_progress.Progress:
    from rich import progress as p
    from rich.console import Console
    from rich.table import Column

    console = Console(file=stream, stderr=False)
    wide = console.width >= _WIDE
    told = _columns()
    columns: list[p.ProgressColumn] = [
        p.TextColumn(
            "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
        ),
        p.BarColumn(bar_width=24 if wide else 10),
        told["count"],
        *([told["left"]] if wide else []),
        told["speed"],
        *([p.TimeElapsedColumn()] if wide else []),
        told["estimate"],
        told["memory"],
    ]
    # A minute of history: batches on a CPU come seconds apart, and a jumping estimate is no estimate.
    return p.Progress(*columns, console=console, speed_estimate_period=60.0, expand=True)


def _columns() -> dict[str, rich_progress.ProgressColumn]:
    """Columns of text, by what they tell."""
    from rich import progress as p
    from rich.table import Column
    from rich.text import Text

    class Told(p.ProgressColumn):
        """What a function says of the task."""

        def __init__(self, tell: Callable[[p.Task], str], style: str = "") -> None:
            super().__init__(table_column=Column(no_wrap=True, justify="right"))
            self.tell, self.style = tell, style

        def render(self, task: p.Task) -> Text:
            return Text(self.tell(task), style=self.style)

    def speed(task: p.Task) -> str:
        found = task.finished_speed or task.speed
        return f"{found:.3g} {task.fields['unit']}/s" if found else ""

    def estimate(task: p.Task) -> str:
        return "" if task.time_remaining is None else f"{duration(task.time_remaining)} to go"

    return {
        "count": Told(lambda t: f"{t.completed:.0f}" + ("" if t.total is None else f"/{t.total:.0f}")),
        "left": Told(lambda t: "" if t.remaining is None else f"{t.remaining:.0f} left"),
        "speed": Told(speed),
        "estimate": Told(estimate, "cyan"),
        "memory": Told(lambda t: amount(memory.used()), "dim"),
    }
