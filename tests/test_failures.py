"""Images that a judge fails on: each by itself, with its reason, never scored; and a run that is told to give up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmark import cli, memory, record, rescore, run, scoring, verify, worker
from benchmark.errors import BadInput
from benchmark.metrics import failures, validity
from benchmark.torture import played
from benchmark.worker import CellFailed, Worker

IMAGES = np.arange(5 * 2 * 2 * 3, dtype=np.uint8).reshape(5, 2, 2, 3)


class Fragile:
    """Fails on images whose first pixel is in `on`."""

    id, hash = "testbed-a", "0" * 64

    def __init__(self, *on: int, error: Exception | None = None) -> None:
        self.on, self.error = on, error or ValueError("no\nface")

    def raw(self, images: np.ndarray) -> dict[str, np.ndarray]:
        if set(images[:, 0, 0, 0].tolist()) & set(self.on):
            raise self.error
        first = images[:, 0, 0, 0].astype(np.float32)
        return {"score": first, "box": np.stack([first, first], 1), "label": np.ones(len(images), np.int32)}


def test_an_error_is_the_images_alone():
    raw = scoring.judged(Fragile(24), IMAGES)  # type: ignore[arg-type]
    fine = scoring.judged(Fragile(), IMAGES)  # type: ignore[arg-type]
    assert fine.keys() == {"score", "box", "label"}, "as it was, where nothing fails"
    assert failures.reasons(fine) == [""] * 5
    assert failures.reasons(raw) == ["", "", "ValueError: no face", "", ""]
    assert validity.scorable(raw, 5).tolist() == [True, True, False, True, True]
    for name, values in fine.items():
        assert np.array_equal(np.delete(raw[name], 2, 0), np.delete(values, 2, 0)), name
    assert np.isnan(raw["box"][2]).all() and raw["label"][2] == 0
    assert validity.scorable({n: raw[n] for n in ("label", failures.FAILED)}, 5).tolist()[2] is False


def test_a_judge_that_fails_on_all_is_told_apart():
    with pytest.raises(scoring.JudgeFailed, match="fails on all 5 images of a batch: ValueError: no face"):
        scoring.judged(Fragile(0, 12, 24, 36, 48), IMAGES)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [MemoryError(), BadInput("no gallery"), RuntimeError("x: can't allocate memory: y")])
def test_what_is_no_images_fault_is_raised(error: Exception):
    with pytest.raises(type(error)):
        scoring.judged(Fragile(24, error=error), IMAGES)  # type: ignore[arg-type]


def test_reasons_are_short_and_a_command_of_others_has_its_own():
    long = failures.told(ValueError("ü" * 500))
    assert len(long.encode()) <= failures.LENGTH and long.startswith("ValueError: ü")
    reason = np.zeros((2, 160), np.uint8)
    reason[1, :4] = np.frombuffer(b"slow", np.uint8)
    assert failures.reasons({"error": np.array([0, 3], np.uint8), "reason": reason}) == ["", "slow"]
    assert not memory.exhausted(RuntimeError("shapes"))


# --- in a run -----------------------------------------------------------------------------------------------------
class Picky(played.Judge):
    """Fails on the image with one seed: the one whose pixels begin so."""

    def raw(self, images: Any) -> dict[str, Any]:
        if (images[:, 0, 0, 0] == Picky.bad).any():
            raise ValueError("cannot see it")
        return super().raw(images)

    bad = -1


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(played.SUITE)
    return path


def test_an_image_that_could_not_be_judged_is_in_the_record_with_its_reason(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    with played.playing(suite):
        assert run.execute(run.RunOptions(suite="tiny", out=out, quiet=True)) == 0
        plain = record.read(out / "records" / "uce.erase_cat.seed0.json")
        assert '"errors"' not in (out / "records" / "uce.erase_cat.seed0.json").read_text()
        key = worker_images(out, plain)
        with monkeypatch.context() as inner:  # undone before the play ends, or what was played would stay
            inner.setattr(Picky, "bad", int(key[0, 0, 0, 0]))
            inner.setattr(Worker, "judge", lambda self, name: Picky())
            assert run.execute(run.RunOptions(suite="tiny", out=tmp_path / "b", quiet=True)) == 0
    made = record.read(tmp_path / "b" / "records" / "uce.erase_cat.seed0.json")
    (reasons,) = made.rows.errors.values()
    (row,) = [i for i, reason in enumerate(reasons) if reason]
    assert reasons[row] == "ValueError: cannot see it" and not made.rows.valid[row]
    assert made.rows.values["testbed/top1"][row] is None and made.summary["n_invalid"] == {made.rows.role[row]: 1}
    assert "testbed/top1 could not judge 1 of 3 images; ValueError: cannot see it" in capsys.readouterr().err
    assert record.parse(json.loads(record.to_bytes(made))) == made
    assert verify.verify(tmp_path / "b") == []


def worker_images(out: Path, of: record.Record) -> np.ndarray:
    """The first image of a record, from the store."""
    stored = rescore.Stored(rescore.Store(out / "store", readonly=True), print)
    return stored.image(of.rows.image[0])


def test_a_run_told_so_stops_at_a_number_of_failed_cells_with_a_summary(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    arguments = ["run", "tiny", "--out", str(tmp_path / "out"), "--quiet"]

    def fails(*_: object) -> None:
        raise CellFailed("edit: the loss is nan")

    with played.playing(suite, methods=("none", "uce", "esd")):
        monkeypatch.setattr(worker, "_made", fails)
        result = CliRunner().invoke(cli.app, [*arguments, "--max-failures", "1"])
        assert result.exit_code == 4
        assert "stopped at 1 failed cells (--max-failures 1)" in result.stderr and "the loss is nan" in result.stderr
        left = {path.name for path in (tmp_path / "out" / "records").iterdir()}
        assert len(left) == 2 and not (tmp_path / "out" / "board.json").exists()
        assert CliRunner().invoke(cli.app, [*arguments, "--max-failures", "3"]).exit_code == 4
        assert (tmp_path / "out" / "board.json").exists(), "two fail, which is below the limit"
        monkeypatch.undo()
    with played.playing(suite, methods=("none", "uce", "esd")):
        assert CliRunner().invoke(cli.app, [*arguments, "--max-failures", "1"]).exit_code == 0
