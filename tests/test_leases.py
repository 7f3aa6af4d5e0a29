"""Claims: one owner at a time, given up by the dead, kept by the living, and never in the way of a new one."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmark import leases as module
from benchmark import owner
from benchmark.errors import BadInput
from benchmark.leases import Busy, Leases, file_time

OLD_S = 10_000.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "leases"


@pytest.fixture(params=["with links", "without"], autouse=True)
def linking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything holds on file systems that know no hard links too."""
    if request.param == "without":

        def refuse(*_: Any) -> None:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

        monkeypatch.setattr(os, "link", refuse)


def elsewhere(folder: Path, name: str, *, age_s: float = 0.0, **told: Any) -> Path:
    """A claim by a process of another machine, last touched so long ago."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(json.dumps({"token": "t", "host": "b", "place": "another", "pid": 1, "born": "1", **told}))
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def test_one_owner_at_a_time_and_no_trace_afterwards(folder: Path):
    a, b = Leases(folder), Leases(folder)
    with a.hold("images", "k", "s"):
        assert not b.acquire("images.k.s") and not b.free("images.k.s") and not a.acquire("images.k.s")
        with pytest.raises(Busy, match="images.k.s"), b.hold("images", "k", "s"):
            raise AssertionError("held twice")
        with b.hold("images", "k", "other"):
            assert a.live() == ["images.k.other", "images.k.s"]
    assert b.free("images.k.s") and not folder.exists()
    with b.hold("images", "k", "s"):
        assert not a.free("images.k.s")


def test_a_claim_is_given_back_when_the_work_fails(folder: Path):
    a = Leases(folder)
    with pytest.raises(ZeroDivisionError), a.hold("x"):
        raise ZeroDivisionError
    assert a.free("x")


def test_of_many_at_once_exactly_one_gets_it(folder: Path):
    owners, barrier = [Leases(folder) for _ in range(16)], threading.Barrier(16)

    def attempt(owner: Leases) -> bool:
        barrier.wait()
        return owner.acquire("x")

    for _ in range(20):
        with ThreadPoolExecutor(16) as pool:
            got = list(pool.map(attempt, owners))
        assert sum(got) == 1
        owners[got.index(True)].release("x")


def test_of_many_that_find_a_dead_claim_exactly_one_gets_it(folder: Path):
    owners, barrier = [Leases(folder) for _ in range(16)], threading.Barrier(16)

    def attempt(owner: Leases) -> bool:
        barrier.wait()
        return owner.acquire("x")

    for _ in range(20):
        elsewhere(folder, "x", age_s=OLD_S)
        with ThreadPoolExecutor(16) as pool:
            got = list(pool.map(attempt, owners))
        assert sum(got) <= 1, "two are at one work"
        for one, had in zip(owners, got, strict=True):
            if had:
                one.release("x")
        assert owners[0].acquire("x"), "in the way of nobody"
        owners[0].release("x")


def test_a_claim_from_elsewhere_holds_until_it_expires(folder: Path):
    a = Leases(folder, expiry_s=60)
    elsewhere(folder, "x", age_s=30)
    assert not a.free("x") and not a.acquire("x")
    elsewhere(folder, "x", age_s=90)
    assert a.free("x") and a.acquire("x")
    a.release("x")
    assert not folder.exists()


def test_an_owner_stopped_while_it_wrote_counts_until_it_expires(folder: Path):
    a = Leases(folder, expiry_s=60)
    path = elsewhere(folder, "x")
    path.write_text('{"tok')
    assert not a.acquire("x")
    then = time.time() - 90
    os.utime(path, (then, then))
    assert a.acquire("x")
    a.release("x")


def test_expiry_is_told_by_the_clock_of_the_file_system(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """A machine whose clock is an hour ahead breaks nobody's claim."""
    a = Leases(folder, expiry_s=60)
    elsewhere(folder, "x")
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)
    assert not a.free("x")


def test_the_living_stay_owners(folder: Path):
    """Touched every 20 ms, a claim outlives its expiry of 200 ms for an observer who cannot see the process."""
    a, b = Leases(folder, expiry_s=0.2, beat_s=0.02), Leases(folder, expiry_s=0.2)
    with a.hold("x"):
        path = folder / "x"
        told = json.loads(path.read_bytes())
        path.write_text(json.dumps({**told, "place": "another"}))
        until = time.monotonic() + 0.8
        while time.monotonic() < until:
            assert not b.free("x")
            time.sleep(0.02)


def test_who_lost_a_claim_does_not_take_it_from_its_new_owner(folder: Path):
    a, b = Leases(folder), Leases(folder)
    assert a.acquire("x")
    (folder / "x").unlink()  # as if it had slept past its expiry
    assert b.acquire("x")
    a.release("x")
    assert not a.free("x")
    b.release("x")
    assert b.free("x")


def test_a_claim_that_changed_hands_while_it_was_broken_is_put_back(folder: Path, monkeypatch: pytest.MonkeyPatch):
    a, b = Leases(folder), Leases(folder)
    elsewhere(folder, "x", age_s=OLD_S)
    real = os.rename

    def rename(source: Any, target: Any) -> None:
        if not b._held:  # between our look and our rename its owner wakes and gives it back, and another claims it
            monkeypatch.setattr(os, "rename", real)
            (folder / "x").unlink()
            assert b.acquire("x")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    linked = os.link.__name__ == "link"
    assert a.acquire("x") is False
    assert a.free("x") is not linked, "without links it is lost: both may work then, and nothing breaks"
    b.release("x")


def test_a_dead_claim_is_broken_by_one_at_a_time(folder: Path):
    a, b = Leases(folder), Leases(folder)
    elsewhere(folder, "x", age_s=OLD_S)
    mark = f".x.broken.{module._look(folder / 'x').token}"  # type: ignore[union-attr]
    elsewhere(folder, mark, age_s=0)
    assert a.acquire("x") is False and (folder / "x").exists(), "another is breaking it"
    elsewhere(folder, mark, age_s=OLD_S)
    assert a.acquire("x") is False and not (folder / mark).exists(), "that one is gone: its mark goes"
    assert b.acquire("x") and not (folder / mark).exists()
    b.release("x")


def dead() -> tuple[int, str]:
    """A process that has ended, and when it began."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    born = owner.born(process.pid)
    process.communicate()
    return process.pid, born or ""


def test_the_dead_of_this_machine_hold_nothing(folder: Path):
    a, (pid, born) = Leases(folder), dead()
    elsewhere(folder, "x", place=owner.place(), pid=pid, born=born)
    assert a.free("x") and a.acquire("x")
    a.release("x")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell when a process began")
def test_a_number_used_again_is_another_process(folder: Path):
    a = Leases(folder)
    elsewhere(folder, "x", place=owner.place(), pid=os.getpid(), born="1")
    assert a.free("x")


def test_a_killed_owner_is_followed_at_once(folder: Path):
    def work() -> None:
        Leases(folder).acquire("x")
        time.sleep(60)

    process = multiprocessing.get_context("spawn" if sys.platform == "win32" else "fork").Process(target=work)
    process.start()
    a = Leases(folder)
    _until(lambda: (folder / "x").exists() and (folder / "x").read_bytes().endswith(b"\n"))
    assert not a.acquire("x")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    _until(lambda: a.acquire("x"))  # also before anybody has waited for the dead
    process.join()
    a.release("x")


def test_waiting_ends_when_the_owner_is_done(folder: Path):
    a, b = Leases(folder), Leases(folder)
    order = []
    with a.hold("board"):
        thread = threading.Thread(target=lambda: _with(b.wait("board"), lambda: order.append("b")))
        thread.start()
        time.sleep(0.05)
        order.append("a")
    thread.join(10)
    assert order == ["a", "b"]


def test_sweeping_takes_what_the_dead_left_and_nothing_else(folder: Path):
    a, (pid, born) = Leases(folder, expiry_s=60), dead()
    elsewhere(folder, "live")
    elsewhere(folder, "old", age_s=90)
    elsewhere(folder, "dead", place=owner.place(), pid=pid, born=born)
    elsewhere(folder, ".part.1", age_s=90)
    with a.hold("mine"):
        a.sweep()
        assert sorted(p.name for p in folder.iterdir()) == ["live", "mine"]


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot claim work in"):
        Leases(tmp_path / "file").acquire("x")


@pytest.mark.parametrize("name", ["", "../x", ".x", "a/b"])
def test_names_are_no_paths(folder: Path, name: str):
    with pytest.raises(ValueError, match="not a name"):
        Leases(folder).acquire(name)


def test_the_clock_of_a_folder_goes_on_and_leaves_nothing(folder: Path):
    first = file_time(folder)
    time.sleep(0.02)
    assert file_time(folder) > first and list(folder.iterdir()) == []


def _until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)


def _with(context: Any, work: Callable[[], None]) -> None:
    with context:
        work()


@pytest.fixture(autouse=True)
def quiet_threads() -> Iterator[None]:
    """No thread outlives its claims."""
    before = set(threading.enumerate())
    yield
    _until(lambda: not any(t.name == "leases" for t in set(threading.enumerate()) - before))
