"""A whole run against a disk that fails at every call in turn: the same command goes on to the same bytes.

The model and the judge are played, so that a run takes milliseconds; plan, store, records, boards, grids are real.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmark import atomic, run
from benchmark.errors import BenchError
from benchmark.torture import played
from benchmark.torture.faults import KINDS, FaultyDisk, Killed, Kind

Snapshot = dict[str, bytes]


@pytest.fixture(scope="module", autouse=True)
def playing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    path = tmp_path_factory.mktemp("suite") / "tiny.yaml"
    path.write_text(played.SUITE)
    with played.playing(path):
        yield


def tried(out: Path, disk: FaultyDisk) -> int | BaseException:
    """The run's exit code, or how it ended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "disk", disk)
        try:
            return run.execute(run.RunOptions(suite="tiny", out=out, quiet=True))
        except (BenchError, OSError, Killed) as error:
            return error


def snapshot(out: Path) -> Snapshot:
    """All files but those that hold times."""
    free = ("costs.json", "store/costs/")
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in sorted(files.items()) if not name.startswith(free)}


@pytest.fixture(scope="module")
def fine(playing: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Snapshot, list[str]]:
    """A run undisturbed, and the calls of its writes."""
    out = tmp_path_factory.mktemp("fine") / "out"
    assert tried(out, disk := FaultyDisk()) == 0
    found = snapshot(out)
    assert {"board.json", "SHA256SUMS", "grids/erase_cat.png"} <= found.keys()
    assert sum(name.endswith("images.npy") for name in found) == 4
    return found, disk.calls


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_from_a_fault_at_any_call_to_the_same_bytes(
    kind: Kind, fine: tuple[Snapshot, list[str]], tmp_path: Path, request: pytest.FixtureRequest
):
    """Every call in turn; without `--slow` every 23rd, other ones for each kind."""
    expected, calls = fine
    step = 1 if request.config.getoption("--slow") else 23
    for at in range(KINDS.index(kind) % step, len(calls), step):
        out = tmp_path / str(at)
        ended = tried(out, FaultyDisk(kind, at))
        for file in out.glob("records/*.json"):
            json.loads(file.read_bytes())  # no torn one, at whatever moment
        if isinstance(ended, OSError):
            raise AssertionError(f"{calls[at]}: a bare error of the system: {ended!r}") from ended
        assert ended == 0 or isinstance(ended, BenchError | Killed), (calls[at], ended)
        assert tried(out, FaultyDisk()) == 0
        assert snapshot(out) == expected, f"{kind} at {calls[at]}"


@pytest.mark.parametrize("kind", ["killed", "power cut"])
def test_a_run_that_is_killed_again_and_again_still_comes_to_its_end(
    kind: Kind, fine: tuple[Snapshot, list[str]], tmp_path: Path
):
    expected, calls = fine
    for _ in range(9):
        ended = tried(tmp_path / "out", FaultyDisk(kind, 70))
        if not isinstance(ended, Killed):
            break
    assert len(calls) > 100
    assert ended == 0 and snapshot(tmp_path / "out") == expected


class FullAtTheThirdBatch(FaultyDisk):
    """Batches are written by a thread of their own: the number of the call is another in each run."""

    def create(self, path: Path) -> int:
        if path.name == "images.npy" and self.calls.count("create images.npy") == 2:
            self.at = len(self.calls)
        return super().create(path)


def test_what_was_finished_is_kept(fine: tuple[Snapshot, list[str]], tmp_path: Path):
    """Full after the third batch: the first two are not made again."""
    ended = tried(tmp_path, FullAtTheThirdBatch("no space"))
    assert "No space left on device" in str(ended) and "--store" in str(ended)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("store/images/*/*/images.npy")}
    assert len(kept) == 2
    assert tried(tmp_path, FaultyDisk()) == 0
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert json.loads((tmp_path / "costs.json").read_bytes())["last_run"]["images_made"] == 3
