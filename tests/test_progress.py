"""Progress: plain where nobody watches, and never a control code there."""

from __future__ import annotations

import io
import re
import time

import pytest

from benchmark.progress import Progress, duration, terminal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Stands still until it is told to go on."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody sits before a terminal, wherever these tests run."""
    monkeypatch.setenv("TERM", "xterm")
    for name in ("CI", "NO_COLOR", "COLUMNS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


def run_one_stage(stream: io.StringIO, seconds: float = 1.0, **options: bool) -> str:
    """40 images in two halves, `seconds` apart; the second half begins when the first is told of."""
    clock = Clock()
    with Progress(whole=80, stream=stream, clock=clock, **options) as progress:
        with progress.stage("images uce erase:cat", total=40) as stage:
            clock.now += seconds / 2
            stage.advance(20)
            clock.now += seconds / 2
            stage.advance(20)
    return stream.getvalue()


def test_plain_log_is_one_line_per_stage():
    assert run_one_stage(io.StringIO()) == "images uce erase:cat: 40/40 images, 1.0 s, 40 images/s\n"


def test_long_stage_is_told_of_on_its_way():
    first, last = run_one_stage(io.StringIO(), seconds=80).splitlines()
    told, memory = first.rsplit(", ", 1)
    assert told == ("images uce erase:cat: 20/40 images, 40.0 s, 0.5 images/s, 20 left, about 40 s; all: 20/80")
    assert re.fullmatch(r"\d+(\.\d)? [MG]B", memory)
    assert last == "images uce erase:cat: 40/40 images, 80.0 s, 0.5 images/s"


def test_lines_of_a_long_stage_are_not_many():
    stream, clock = io.StringIO(), Clock()
    with Progress(stream=stream, clock=clock).stage("images", total=1000) as stage:
        for _ in range(1000):
            clock.now += 1
            stage.advance()
    assert len(stream.getvalue().splitlines()) == 1000 // 30 + 1


def test_quiet_tells_ends_of_stages_only():
    assert len(run_one_stage(io.StringIO(), seconds=80, quiet=True).splitlines()) == 1


def test_quiet_on_a_terminal_is_plain():
    assert "\x1b" not in run_one_stage(Terminal(), quiet=True)


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("NO_COLOR", "1"), ("CI", "true"), ("CI", "1")])
def test_plain_where_control_codes_have_no_place(name: str, value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, value)
    assert "\x1b" not in run_one_stage(Terminal(), seconds=80)


def test_a_terminal_is_one_unless_it_says_otherwise(monkeypatch: pytest.MonkeyPatch):
    assert terminal(Terminal()) and not terminal(io.StringIO())
    monkeypatch.setenv("CI", "false")
    monkeypatch.setenv("NO_COLOR", "")  # empty does not count, by the convention
    assert terminal(Terminal())


def test_terminal_is_live_and_keeps_the_finished_line():
    shown = run_one_stage(Terminal())
    assert "\x1b" in shown and "images uce erase:cat: 40/40 images" in shown


@pytest.mark.parametrize("width", [80, 120])
def test_live_display_fits_and_tells_all(width: int, monkeypatch: pytest.MonkeyPatch):
    """Stage, done of total, left, speed, estimate, memory, in one line each, with names and numbers that are long."""
    monkeypatch.setenv("COLUMNS", str(width))
    stream = Terminal()
    with Progress(whole=103_000, stream=stream) as progress:
        with progress.stage("images fade_adv@no-preservation erase:identity_100", total=10_300) as stage:
            for count in (40, 40, 40):
                time.sleep(0.02)
                stage.advance(count)
            progress._bars.refresh()
            lines = text_of(stream).splitlines()
    shown = [line for line in lines if "120/" in line][-2:]
    assert len(shown) == 2 and all(len(line) <= width for line in shown)
    for line, total in zip(shown, ("103000", "10300"), strict=True):
        assert f"120/{total}" in line and "images/s" in line and "to go" in line and re.search(r"\d [MG]B", line)
    assert ("left" in shown[0]) == (width >= 100)


def text_of(stream: io.StringIO) -> str:
    """What a terminal was sent, without the codes."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).replace("\r", "\n")


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (99, "99 s"), (100, "2 min"), (5940, "99 min"), (7500, "2 h 05 min")]
)
def test_durations(seconds: float, said: str):
    assert duration(seconds) == said


def test_interrupted_stage_says_how_far_it_came():
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Progress(stream=stream, clock=Clock()) as progress:
        with progress.stage("images", total=40) as stage:
            stage.advance(20)
            raise KeyboardInterrupt
    assert stream.getvalue().startswith("images: 20/40 images")


def test_unknown_total():
    stream = io.StringIO()
    with Progress(stream=stream, clock=Clock()).stage("scores", unit="rows"):
        pass
    assert stream.getvalue() == "scores: 0 rows, 0.0 s\n"
