"""What a long command shows of its way: a live display on a terminal, one plain line per stage anywhere else.

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

if TYPE_CHECKING:
    from rich import progress as rich_progress


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


@final
class Progress:
    """Shows stages with done and left, speed and estimate.

    `whole` is how many `unit` the entire command will do, over all its stages; with it there is a line for the whole.
    `quiet`, a stream that is no terminal, and TERM=dumb give one plain line when a stage ends, without control codes.
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
        self.whole, self.unit = whole, unit
        self.live = not quiet and self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self._clock = clock
        self._bars = _bars(self.stream) if self.live else None
        self._total: rich_progress.TaskID | None = None

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
        """One line beside the display."""
        if self._bars is None:
            print(line, file=self.stream, flush=True)
        else:
            # emoji off: rich would draw the `:cat:` of "erase:cat: 40/40".
            self._bars.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def _attach(self, stage: Stage) -> rich_progress.TaskID | None:
        if self._bars is None:
            return None
        bars, total = self._bars, self._total
        bar = bars.add_task(stage.name, total=stage.total, unit=stage.unit)

        def hook(count: int) -> None:
            bars.advance(bar, count)
            if total is not None and stage.unit == self.unit:
                bars.advance(total, count)

        stage._hook = hook
        return bar


def _bars(stream: IO[str]) -> rich_progress.Progress:
    from rich import progress as p
    from rich.console import Console
    from rich.text import Text

    class Speed(p.ProgressColumn):
        def render(self, task: p.Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.3g} {task.fields['unit']}/s" if speed else "")

    columns = (
        p.TextColumn("{task.description}", markup=False),
        p.BarColumn(bar_width=24),
        p.MofNCompleteColumn(),
        Speed(),
        p.TimeElapsedColumn(),
        p.TextColumn("left"),
        p.TimeRemainingColumn(),
    )
    # A minute of history: batches on a CPU come seconds apart, and a jumping estimate is no estimate.
    return p.Progress(*columns, console=Console(file=stream, stderr=False), speed_estimate_period=60.0)
