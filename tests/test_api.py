"""The Python interface: what its docstrings show is so, on committed results; no torch but to run."""

from __future__ import annotations

import doctest
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from benchmark import api, cli
from benchmark.errors import BadInput
from benchmark.page import plots
from benchmark.page.runs import read_runs
from benchmark.record import listed

ROOT = Path(__file__).resolve().parent.parent
OBJECTS = ROOT / "results" / "testbed-3" / "objects"


@pytest.fixture(scope="module")
def objects() -> api.Results:
    return api.open_run(OBJECTS)


def test_docstrings_are_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    failed, tried = doctest.testmod(api)
    assert (failed, tried > 10) == (0, True)


def test_no_torch_until_something_runs():
    code = (
        "import sys\n"
        "from benchmark import api\n"
        "assert not {'torch', 'pandas', 'matplotlib'} & sys.modules.keys(), 'heavy at import'\n"
        f"one = api.open_run({str(OBJECTS)!r})\n"
        "one.records(), one.board(), one.plot('erase_keep'), api.plan('smoke', out='nowhere')\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys(), 'heavy in use'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- records ----------------------------------------------------------------------------------------------------------
def test_records_have_the_columns_that_are_documented(objects: api.Results):
    frame = objects.records()
    assert list(frame) == list(api.COLUMNS)
    assert all(api.COLUMNS.values())
    assert frame["value"].dtype == np.float64 and frame["valid"].dtype == bool


def test_a_row_is_an_image_and_protocol(objects: api.Results):
    frame = objects.records()
    assert not frame.duplicated(["method", "request", "training_seed", "role", "prompt", "seed", "protocol"]).any()
    of_one = frame[(frame.method == "uce") & (frame.request == "erase:bird") & frame.primary]
    assert of_one["role"].value_counts()[["erased", "kept", "synonym"]].tolist() == [60, 180, 60]


def test_rates_of_the_board_follow_from_the_records(objects: api.Results):
    frame, board = objects.records().astype({"method": str, "request": str, "role": str}), objects.board()
    found = frame[frame.primary & frame.valid].groupby(["method", "request", "role"])["value"].mean()
    rows = board[(board.request != "mean") & (board.status == "ok")].set_index(["method", "request"])
    for role in ("erased", "kept", "synonym"):
        mine = found.xs(role, level="role")
        pd.testing.assert_series_equal(rows[f"acc_{role}"].sort_index(), mine.sort_index(), check_names=False)


def test_a_board_without_records_is_read_and_its_records_are_refused(objects: api.Results, tmp_path: Path):
    (tmp_path / "board.json").write_bytes((OBJECTS / "board.json").read_bytes())
    alone = api.open_run(tmp_path)
    pd.testing.assert_frame_equal(alone.board(), objects.board())
    with pytest.raises(BadInput, match="without its records"):
        alone.records()


# --- board ------------------------------------------------------------------------------------------------------------
def test_board_is_the_csv_typed(objects: api.Results):
    made, read = objects.board(), pd.read_csv(OBJECTS / "board.csv")
    assert list(made) == list(read) and len(made) == len(read)
    pd.testing.assert_series_equal(made["acc_kept"], read["acc_kept"])
    assert made["rank"].dtype == "Int64" and made["best"].dtype == bool
    assert made[made.role == "baseline"]["rank"].isna().all()


def test_results_say_what_they_are(objects: api.Results):
    assert (objects.suite, objects.model, objects.embedded) == ("objects", "testbed", True)


# --- comparison -------------------------------------------------------------------------------------------------------
def test_comparison_of_two_suites_tells_inputs_and_reads_as_the_command(objects: api.Results):
    one, other = (next(p for p in listed(OBJECTS / "records") if p.name.startswith(m)) for m in ("uce.", "esd."))
    found = api.compare(one, other)
    assert "method" in set(found.inputs["kind"])
    moved = found.numbers.dropna()
    np.testing.assert_allclose(moved["b"] - moved["a"], moved["difference"])
    assert found.tests["p"].between(0, 1).all() and (found.tests["adjusted"] >= found.tests["p"]).all()
    assert str(found).startswith(f"A {one}\nB {other}\n")


# --- figures ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("figure", ["erase_keep", "interference"])
def test_figures_are_those_of_the_command(objects: api.Results, figure: api.FigureName):
    """Saved outside our style, after other settings of the user's: still the same picture, pixel by pixel."""
    import matplotlib

    drawn = api.plot([OBJECTS, objects], figure)
    out = io.BytesIO()
    with matplotlib.rc_context({"lines.linewidth": 9, "axes.grid": False, "figure.dpi": 30}):
        drawn.savefig(out, format="png", dpi=200, metadata={"Software": None})
    runs = read_runs([OBJECTS]) * 2
    assert out.getvalue() == plots.render(runs, figure, "png")


def test_a_notebook_shows_a_figure_as_it_is(objects: api.Results):
    data, size = objects.plot("erase_keep")._repr_png_()  # type: ignore[attr-defined]
    assert data.startswith(b"\x89PNG") and int.from_bytes(data[16:20]) == pytest.approx(2 * size["width"], abs=2)


# --- what is refused --------------------------------------------------------------------------------------------------
def test_bad_input_is_told(objects: api.Results, tmp_path: Path):
    with pytest.raises(BadInput, match="neither records"):
        api.open_run(tmp_path)
    with pytest.raises(BadInput, match="did you mean 'erase_keep'"):
        objects.plot("erase_kept")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="did you mean 'objects'"):
        api.load_suite("objcts")
    with pytest.raises(BadInput, match="did you mean 'uce'"):
        api.plan("objects", methods=["ucee"], out=tmp_path)
    with pytest.raises(BadInput, match="expected a list of names"):
        api.plan("objects", methods="none,uce", out=tmp_path)
    with pytest.raises(BadInput, match="no file, folder or commit"):
        api.compare(objects, tmp_path / "nowhere")


# --- planning ---------------------------------------------------------------------------------------------------------
def test_a_plan_is_the_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(cli.app, ["plan", "celebrity", "--methods", "none,uce", "--scale", "0.5", "--json"])
    made = api.plan(api.load_suite("celebrity"), methods=["none", "uce"], scale=0.5)
    assert json.loads(told.stdout) == json.loads(json.dumps(made))
    assert not list(tmp_path.iterdir())


# --- running ----------------------------------------------------------------------------------------------------------
def test_run_hands_its_arguments_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """What a run does is tested elsewhere; here, that it is told the right things, and no hub is asked."""
    told = {}

    class Stub:
        @staticmethod
        def execute(options: dict) -> int:
            told.update(options)
            (tmp_path / "board.json").write_bytes((OBJECTS / "board.json").read_bytes())
            return 0

        RunOptions = dict

    monkeypatch.setitem(sys.modules, "benchmark.run", Stub)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    made = api.run("objects", methods=["none", "uce"], scale=0.5, out=tmp_path, fields={"uce": {"ridge": 2.0}})
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert made.suite == "objects"
    assert told["methods"] == ("none", "uce") and told["out"] == tmp_path and told["fields"] == {"uce": {"ridge": 2.0}}
    assert told["passed"] == {"scale": 0.5}
