"""What a command says and returns when it cannot go on: a line with the next step, and the code of the contract."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from benchmark import cli, errors
from benchmark.errors import BadInput, Damaged, Missing

ROOT = Path(__file__).resolve().parent.parent
SMOKE = ROOT / "results" / "testbed-3" / "smoke"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def test_done_is_0():
    assert call("board", SMOKE, "--format", "md").exit_code == 0
    assert call("compare", SMOKE, SMOKE).exit_code == 0


def test_findings_are_1(tmp_path: Path):
    (tmp_path / "ledger.csv").write_text(
        "source,table,row,metric,value,unit\nx,T1,a,acc_erased,10,percent\nx,T2,a,acc_erased,90,percent\n"
    )
    assert call("claims", "check", "--ledger", tmp_path / "ledger.csv").exit_code == 1
    shutil.copytree(SMOKE, tmp_path / "run")
    path = next((tmp_path / "run" / "records").glob("uce*.json"))
    values = json.loads(path.read_bytes())
    values["summary"]["acc_erased"] = 0.777
    path.write_text(json.dumps(values))
    assert call("verify", tmp_path / "run", "--hashes").exit_code == 1
    assert call("board", tmp_path / "run").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "objets"], "did you mean 'objects'?"),
        (["plan", "objects", "--methods", "esdd"], "did you mean 'esd'?"),
        (["plan", "objects", "--model", "sd1"], "unknown model 'sd1'"),
        (["plan", "objects", "--scale", "0"], "--scale: expected a positive number"),
        (["plan", "objects", "--shard", "3/2"], "--shard: expected i/n"),
        (["plan", "objects", "--set", "esd"], "--set: expected method.field=value"),
        (["plan", "../x.yaml"], "no suite file"),
        (["board", "nowhere"], "no records"),
        (["compare", "nowhere", "nowhere"], "give a run, a record, a baseline"),
        (["verify", "nowhere"], "give the --out of"),
        (["claims", "check", "--ledger", "nowhere.csv"], "cannot read"),
        (["baseline", "nowhere"], "no records"),
        (["regress", "nowhere"], "is no file, folder or commit here"),
        (["cite", "nowhere"], "is no file, folder or commit here"),
        (["page", "nowhere", "--out", "x"], "give the --out of"),
        (["rescore", "nowhere", "--protocol", "x"], "give the --out of"),
        (["show", "nothing"], "unknown name 'nothing'"),
        (["tables", "--paper", "mice"], "did you mean 'mace'?"),
        (["power", "--rate", "0.1", "--level", "2"], "expected --power and --level as fractions"),
    ],
    ids=lambda v: " ".join(v)[:40] if isinstance(v, list) else None,
)
def test_bad_input_is_2_and_a_line(arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    done = call(*arguments)
    assert done.exit_code == 2 and said in done.stderr, done.output
    assert done.stderr.startswith("erasure-bench: ") and len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_usage_is_2():
    for arguments in (["plan"], ["plan", "objects", "--scale", "x"], ["fly"], ["board", "--format", "xml", SMOKE]):
        assert call(*arguments).exit_code == 2


def test_a_missing_requirement_is_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "ERASURE_BENCH_MODELS"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    done = call("run", "smoke", "--model", "sd14", "--out", tmp_path / "out")
    assert done.exit_code == 3 and "smoke on sd14 needs what is not here" in done.stderr
    assert all(line.startswith(("erasure-bench: ", "  ")) for line in done.stderr.strip().splitlines())


def test_every_error_has_its_code():
    codes = {kind: kind("x").exit_code for kind in (BadInput, Missing, Damaged)}
    assert codes == {BadInput: 2, Missing: 3, Damaged: 1}
    assert all(issubclass(kind, errors.BenchError) for kind in codes)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (BadInput("what to do"), 2, "what to do"),
        (FileNotFoundError(2, "No such file", "x"), 2, "x: No such file"),
        (PermissionError(13, "Permission denied", "x"), 2, "x: Permission denied"),
        (MemoryError(), 1, "out of memory"),
        (KeyboardInterrupt(), 130, "the same command goes on from there"),
        (ZeroDivisionError("division by zero"), 1, "--debug shows where"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, BaseException) else None,
)
def test_whatever_ends_a_command(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("benchmark.tables.overall.read_suites", fails)
    done = call("board", SMOKE)
    assert done.exit_code == code and said in done.stderr and "Traceback" not in done.stderr


def test_the_trace_is_shown_with_debug_alone(monkeypatch: pytest.MonkeyPatch):
    plain, full = call("show", "nothing"), call("show", "nothing", "--debug")
    assert plain.exit_code == full.exit_code == 2
    assert "Traceback" not in plain.stderr and "Traceback" in full.stderr
    assert full.stderr.endswith(plain.stderr)
