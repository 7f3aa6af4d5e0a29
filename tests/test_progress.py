"""Progress: plain where nobody watches, and never a control code there."""

from __future__ import annotations

import io

import pytest

from benchmark.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Each look at it costs a second."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def run_one_stage(stream: io.StringIO, **options: bool) -> str:
    with Progress(whole=40, stream=stream, clock=Clock(), **options) as progress:
        with progress.stage("images uce erase:cat", total=40) as stage:
            stage.advance(20)
            stage.advance(20)
    return stream.getvalue()


def test_plain_log_is_one_line_per_stage():
    assert run_one_stage(io.StringIO()) == "images uce erase:cat: 40/40 images, 1.0 s, 40 images/s\n"


def test_quiet_on_a_terminal_is_plain(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b" not in run_one_stage(Terminal(), quiet=True)


def test_dumb_terminal_is_plain(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in run_one_stage(Terminal())


def test_terminal_is_live_and_keeps_the_finished_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    shown = run_one_stage(Terminal())
    assert "\x1b" in shown and "images uce erase:cat: 40/40 images" in shown


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
    assert stream.getvalue() == "scores: 0 rows, 1.0 s\n"
