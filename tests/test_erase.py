"""One method on one model, written as files."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmark import cli, edits, erase
from benchmark.errors import BadInput


def test_written_edit_reads_back(tmp_path: Path):
    made = erase.erase("uce", "random-unet", ["cat", "dog"])
    erase.write(made, tmp_path / "edit")
    files = {path.name: path.read_bytes() for path in (tmp_path / "edit").iterdir()}
    assert edits.edit_hash(edits.deserialise(files)) == edits.edit_hash(made)


def test_a_control_gets_the_edit_whose_norm_it_copies():
    assert (
        erase.erase("noise", "random-unet", ["cat"]).weights.keys()
        == erase.erase("uce", "random-unet", ["cat"]).weights.keys()
    )


def test_embedded_models_know_their_own_concepts_only():
    with pytest.raises(BadInput, match="did you mean 'cat'"):
        erase.targets(["catt"], "embedded")


def test_full_size_models_take_any_name():
    airplane, unheard = erase.targets(["airplane", "a thing unheard of"], "paper")
    assert airplane.synonyms and not unheard.synonyms


def test_nothing_is_overwritten(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("keep")
    result = CliRunner().invoke(
        cli.app, ["erase", "uce", "--model", "random-unet", "--concept", "cat", "--out", str(tmp_path)]
    )
    assert result.exit_code == 2 and "expected a new or empty folder" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
