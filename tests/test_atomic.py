"""Writes: the old or the new, whatever call fails, wherever the process ends, whatever a power cut takes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmark import atomic
from benchmark.errors import BadInput
from benchmark.store import Store
from benchmark.torture.faults import KINDS, FaultyDisk, Killed, Kind

Work = Callable[[Path], object]
Tree = dict[str, bytes]
OLD, NEW = b"the old bytes\n", bytes(range(256)) * 40
ADDRESS, FILES = ("images", "abc", "shard1"), {"images.npy": NEW, "items.json": b"[]", "empty": b""}


@contextmanager
def on(disk: atomic.Disk) -> Iterator[None]:
    """Writes go to this disk; what the block leaves is that of a process that is gone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "disk", disk)
        yield


@pytest.fixture(autouse=True)
def gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "lives", lambda pid: False)


def tree(root: Path) -> Tree:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def _file(root: Path) -> None:
    atomic.write(root / "new" / "deep" / "board.json", NEW)
    atomic.write(root / "board.json", NEW)


def _folder(root: Path) -> None:
    with atomic.folder(root / "site", replace=True) as temporary:
        (temporary / "pages").mkdir()
        (temporary / "pages" / "index.html").write_bytes(NEW)
        (temporary / "empty").write_bytes(b"")


def _stream(root: Path) -> None:
    with atomic.file(root / "board.json") as temporary:
        temporary.write_bytes(NEW)


def _store(root: Path) -> None:
    Store(root / "store").put(*ADDRESS, files=FILES)


WORKS: dict[str, Work] = {"file": _file, "stream": _stream, "folder": _folder, "artifact": _store}


def calls(work: Work, root: Path) -> list[str]:
    """The calls of the work undisturbed."""
    (root / "board.json").parent.mkdir(parents=True)
    (root / "board.json").write_bytes(OLD)
    with on(disk := FaultyDisk()):
        work(root)
    return disk.calls


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", WORKS)
def test_after_a_fault_at_any_call_there_is_the_old_or_the_new_and_again_gives_the_new(
    what: str, kind: Kind, tmp_path: Path
):
    work = WORKS[what]
    count = len(calls(work, tmp_path / "fine"))
    fine = tree(tmp_path / "fine")
    assert count >= 3
    for at in range(count):
        root = tmp_path / str(at)
        root.mkdir()
        (root / "board.json").write_bytes(OLD)
        with on(disk := FaultyDisk(kind, at)):
            try:
                work(root)
            except (OSError, BadInput, Killed):
                pass
            else:
                assert kind == "short write" or disk.calls[at].startswith("write"), disk.calls[at]
        seen = {name: content for name, content in tree(root).items() if ".part" not in name and "/tmp/" not in name}
        for name, content in seen.items():
            assert content in (fine[name], OLD if name == "board.json" else fine[name]), (name, disk.calls[at])
        work(root)
        assert tree(root) == fine, (kind, disk.calls[at])
        assert not list(root.rglob("*.part")) and not [p for p in root.glob("store/tmp/*")], disk.calls[at]


def test_errors_of_the_disk_are_told_and_leave_nothing(tmp_path: Path):
    with on(FaultyDisk("no space", at=1)), pytest.raises(BadInput, match="cannot write .*f: No space left on device"):
        atomic.write(tmp_path / "f", NEW)
    assert not list(tmp_path.iterdir())


class NoSync(FaultyDisk):
    """What a writer would be that forgets to sync."""

    def sync(self, handle: int) -> None:
        self.calls.append("sync")


class NoFolderSync(FaultyDisk):
    def sync_folder(self, folder: Path) -> None:
        self._call("sync folder")


def test_without_syncing_a_power_cut_tears_what_is_written(tmp_path: Path):
    """The harness sees what it is there to see."""
    (tmp_path / "a").write_bytes(OLD)
    with on(NoSync("power cut, renames first", at=4)), pytest.raises(Killed):
        atomic.write(tmp_path / "a", NEW)
    assert (tmp_path / "a").read_bytes() == NEW[: len(NEW) // 2]
    with on(NoFolderSync("power cut", at=5)), pytest.raises(Killed):
        atomic.write(tmp_path / "b", NEW)
        assert (tmp_path / "b").read_bytes() == NEW
        atomic.write(tmp_path / "c", NEW)
    assert not (tmp_path / "b").exists(), "told to be written, and gone"


def test_what_was_told_to_be_written_outlasts_a_power_cut(tmp_path: Path):
    for kind in ("power cut", "power cut, renames first"):
        with on(FaultyDisk(kind, at=len(FaultyDisk().calls) + 6)), pytest.raises(Killed):
            atomic.write(tmp_path / "a", OLD)
            for _ in range(9):
                atomic.write(tmp_path / "b", NEW)
        assert (tmp_path / "a").read_bytes() == OLD


def test_temporaries_of_the_living_and_of_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    mine, elsewhere = atomic.own_name(), "00000000-1-00000000"
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead = f"{mine.split('-')[0]}-{int(child.stdout)}-12345678"
    for owner in (mine, elsewhere, dead):
        (tmp_path / f".board.json.{owner}.part").write_bytes(b"half")
    (tmp_path / ".other.part").write_bytes(b"theirs")
    (tmp_path / f".records.{dead}.part").mkdir()
    atomic.write(tmp_path / "board.json", NEW)
    left = {p.name for p in tmp_path.iterdir()} - {"board.json"}
    assert left == {f".board.json.{mine}.part", f".board.json.{elsewhere}.part", f".records.{dead}.part", ".other.part"}
    past = time.time() - 25 * 3600
    os.utime(tmp_path / f".board.json.{elsewhere}.part", (past, past))
    atomic.sweep(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"board.json", f".board.json.{mine}.part", ".other.part"}


def test_a_folder_takes_no_place_that_is_taken_unless_told(tmp_path: Path):
    (tmp_path / "out").mkdir()
    with atomic.folder(tmp_path / "out") as temporary:  # an empty one gives way
        (temporary / "a").write_bytes(OLD)
    with pytest.raises(OSError), atomic.folder(tmp_path / "out") as temporary:
        (temporary / "a").write_bytes(NEW)
    assert (tmp_path / "out" / "a").read_bytes() == OLD
    with atomic.folder(tmp_path / "out", replace=True) as temporary:
        (temporary / "b").write_bytes(NEW)
    assert tree(tmp_path) == {"out/b": NEW}


def test_a_pipe_is_written_to_and_stays(tmp_path: Path):
    """`--summary /dev/stdout` must not put a file in its place."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        atomic.write(tmp_path / "pipe", "told")
        assert os.read(reader, 99) == b"told" and (tmp_path / "pipe").is_fifo()
    finally:
        os.close(reader)
    assert not list(tmp_path.glob("*.part"))


def test_a_fault_in_the_block_leaves_the_old(tmp_path: Path):
    atomic.write(tmp_path / "f", "old")
    with pytest.raises(ZeroDivisionError), atomic.file(tmp_path / "f") as temporary:
        temporary.write_text(str(1 // 0))
    assert tree(tmp_path) == {"f": b"old"}


WHOLE = (
    "atomic.py",
    "engines/child.py",  # in the folder of one session of workers
    "erase.py",  # these three fill folders that take their place as a whole
    "merged.py",
    "page/site.py",
    "memory.py",  # no file, but a switch of the kernel's
    "perf/",  # scratch folders
    "testbed/evaluator.py",  # in a stage's folder, which appears as a whole
    "torture/",
)
"""Where files are written otherwise, and why they may be."""


def test_every_other_writer_goes_through_here():
    room = Path(atomic.__file__).parent
    plain = re.compile(r"\.write_text\(|\.write_bytes\(|os\.replace\(|\.open\(\"w")
    for path in sorted(room.rglob("*.py")):
        name = path.relative_to(room).as_posix()
        if not name.startswith(WHOLE):
            for line in path.read_text(encoding="utf-8").splitlines():
                known = "temporary" in line or " part.open" in line  # what atomic.file hands out
                assert known or not plain.search(line), f"{name}: {line.strip()}: write with benchmark.atomic"
