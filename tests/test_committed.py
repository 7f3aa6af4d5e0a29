"""Results that are kept: boards and the leaderboard under results/ are those of the records beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmark import record, suite
from benchmark.errors import BadInput
from benchmark.tables import board, committed

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "testbed-3"
SMOKE, OBJECTS = RESULTS / "smoke", RESULTS / "objects"


def test_every_board_and_the_leaderboard_are_what_the_records_give():
    made = committed.boards(RESULTS)
    stale = [str(path.relative_to(ROOT)) for path, content in made.items() if path.read_bytes() != content]
    assert not stale, "run: make boards"
    assert {p for p in RESULTS.glob("*/board.*")} <= set(made)


def test_no_board_is_of_an_older_version_of_its_suite():
    """Else its numbers are of prompts and settings that nobody can run any longer."""
    made = {folder.name: board.read_records(folder)[0]["suite_version"] for folder in committed.suites(RESULTS)}
    assert made == {name: _version(name) for name in made}


def _version(name: str) -> int:
    """Of a suite by its name, or of one of the embedded model's own, which are named by their files."""
    own = ROOT / "suites" / "embedded" / f"{name}.yaml"
    return suite.load(name if name in suite.names() else str(own)).version


def test_a_run_is_taken_in_packed_and_gives_the_same_board_and_bytes(tmp_path: Path):
    root = tmp_path / "kept"
    assert committed.take_in(SMOKE, root) == root / "smoke"
    first = {p.name: p.read_bytes() for p in (root / "smoke" / "records").iterdir()}
    assert first and all(name.endswith(".json.gz") for name in first)
    assert sum(map(len, first.values())) < sum(p.stat().st_size for p in (SMOKE / "records").iterdir()) / 2
    assert board.read_records(root / "smoke") == board.read_records(SMOKE)
    again = tmp_path / "again"
    committed.take_in(root / "smoke", again)  # packed ones too
    assert {p.name: p.read_bytes() for p in (again / "smoke" / "records").iterdir()} == first


def test_records_that_a_new_run_has_not_leave_with_the_old_one(tmp_path: Path):
    root, run = tmp_path / "kept", tmp_path / "run"
    committed.take_in(SMOKE, root)
    shutil.copytree(SMOKE, run)
    gone = next(p for p in (run / "records").iterdir() if not p.name.startswith("none"))
    gone.unlink()
    committed.take_in(run, root)
    assert not (root / "smoke" / "records" / f"{gone.name}.gz").exists()


def test_variants_have_a_board_and_no_column(tmp_path: Path):
    committed.take_in(OBJECTS, tmp_path)
    shutil.copytree(RESULTS / "ablation", tmp_path / "ablation")
    made = committed.boards(tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in made} == {
        *(f"{suite}/board.{kind}" for suite in ("ablation", "objects") for kind in ("json", "csv", "md")),
        *(f"leaderboard.{kind}" for kind in ("md", "csv", "tex")),
    }
    assert b"objects" in made[tmp_path / "leaderboard.csv"] and b"ablation" not in made[tmp_path / "leaderboard.csv"]


def test_mixed_and_absent_records_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(SMOKE, tmp_path / "mixed")
    other = json.loads(json.dumps(record.values_of(record.listed(OBJECTS / "records")[0])))
    (tmp_path / "mixed" / "records" / "other.json").write_text(json.dumps(other))
    with pytest.raises(BadInput, match="expected records of one suite, found objects, smoke"):
        committed.take_in(tmp_path / "mixed", tmp_path / "kept")
    assert not (tmp_path / "kept").exists(), "nothing half-written stays"
    assert committed.main([]) == 2
    assert committed.main([str(tmp_path / "nothing")]) == 2
    assert "expected folders of suites with records/ in them" in capsys.readouterr().err
