"""Judges in processes of their own give the answers that they give here, in order, and say why they end."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark import device
from benchmark.errors import BenchError
from benchmark.evaluators import processes
from benchmark.evaluators.processes import Array, Judge, Processes, answer, framed, spare

IMAGES = np.arange(7 * 4 * 5 * 3, dtype=np.uint8).reshape(7, 4, 5, 3)


def summing(scale: str) -> Judge:
    """A judge with a number of its own; it prints, as libraries do."""
    print("hello from a library")

    def judge(image: Array) -> Any:
        print("and again")
        if image.max() == 250 and scale == "raise":
            raise ValueError("cannot see")
        if image.max() == 250 and scale == "die":
            os._exit(3)
        return {"sum": float(scale.isdecimal() and int(scale) * float(image.sum()) / 3), "pid": os.getpid()}

    return judge


@pytest.fixture(autouse=True)
def found_by_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def bad() -> Array:
    images = IMAGES.copy()
    images[:] = np.minimum(images, 249)
    images[2, 0, 0, 0] = 250
    return images


@pytest.mark.parametrize("number", [1, 3, 9])
def test_answers_are_those_given_here_in_order(number: int):
    here = [summing("7")(image)["sum"] for image in IMAGES]
    pool = Processes("test_processes:summing", ["7"], number)
    for _ in range(2):
        answers = pool.ask(IMAGES)
        assert [a["sum"] for a in answers] == here
        assert len({a["pid"] for a in answers}) == min(number, len(IMAGES)) and os.getpid() not in {
            a["pid"] for a in answers
        }
    assert pool.ask(IMAGES[:0]) == []


def test_an_error_is_told_and_the_process_goes_on():
    pool = Processes("test_processes:summing", ["raise"], 1)
    with pytest.raises(BenchError, match="ValueError: cannot see"):
        pool.ask(bad())
    assert len(pool.ask(np.minimum(IMAGES, 9))) == 7


def test_a_process_that_dies_is_told():
    pool = Processes("test_processes:summing", ["die"], 1)
    with pytest.raises(BenchError, match="has ended"):
        pool.ask(bad())
    with pytest.raises(BenchError, match="has ended"):
        pool.ask(bad())


def test_a_judge_that_cannot_be_made_says_why():
    with pytest.raises(BenchError, match="has ended: .*no_such"):
        Processes("test_processes:no_such", [], 1).ask(IMAGES)


def test_processes_end_with_their_owner():
    pool = Processes("test_processes:summing", ["7"], 2)
    pids = {a["pid"] for a in pool.ask(IMAGES)}
    assert all(Path(f"/proc/{pid}").exists() for pid in pids) or not Path("/proc").exists()
    del pool
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_answers_are_a_line_each():
    said = io.BytesIO()
    answer(lambda image: int(image[0, 0, 0]), io.BytesIO(framed(IMAGES[:2]) + framed(IMAGES[2:3])), said)
    assert said.getvalue() == b"[0, 60]\n[120]\n"


@pytest.mark.parametrize(("cores", "threads", "number"), [(1, 1, 0), (2, 2, 0), (2, 1, 1), (4, 2, 1), (64, 2, 4)])
def test_cores_that_sampling_needs_are_left_to_it(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: int, number: int
):
    monkeypatch.setattr(device, "threads", lambda: threads)
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda pid: range(cores), raising=False)
    assert spare() == number
