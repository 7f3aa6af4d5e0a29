"""The commands: what they answer, how fast, and how they fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from benchmark import cli
from benchmark.errors import BadInput

COMMANDS = (
    "baseline",
    "board",
    "check-method",
    "cite",
    "claims check",
    "compare",
    "doctor",
    "erase",
    "fetch",
    "list",
    "neighbours",
    "new-method",
    "page",
    "plan",
    "plot",
    "power",
    "regress",
    "rescore",
    "run",
    "show",
    "tables",
    "verify",
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps_with_an_example(command: str):
    shown = call(*command.split(), "--help")
    assert shown.exit_code == 0
    assert f"Example: erasure-bench {command}" in shown.output
    assert "--quiet" in shown.output and "--debug" in shown.output


def test_all_commands_are_tested_here():
    shown = call("--help").output.partition("Commands:")[2]
    named = {line.split()[0] for line in shown.splitlines() if line.startswith("  ") and line[2:3].strip()}
    assert named - {"Example:"} == {command.split()[0] for command in COMMANDS}


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["list", "--json"], ["plan", "objects"]], ids=" ".join)
def test_light_commands_load_no_torch(arguments: list[str], tmp_path: Path):
    code = (
        "import sys, benchmark.cli as c\n"
        f"sys.argv = ['erasure-bench', *{arguments!r}]\n"
        "try: c.main()\n"
        "except SystemExit as end: assert end.code in (0, 3), end.code\n"
        "heavy = {'torch', 'pandas', 'scipy', 'matplotlib', 'transformers', 'diffusers'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_list_as_json():
    found = json.loads(call("list", "--json").output)
    assert set(found) == {"methods", "suites", "models", "protocols", "datasets"}
    assert {"name", "variants", "families", "max_concepts", "kind"} <= set(found["methods"][0])
    assert {"none", "uce", "esd", "noise", "grey", "blocklist"} <= {method["name"] for method in found["methods"]}
    assert {"smoke", "objects", "celebrity"} <= {suite["name"] for suite in found["suites"]}


@pytest.mark.parametrize("name", ["uce@2025", "objects", "testbed", "testbed/top1", "cifar10"])
def test_show(name: str):
    shown = call("show", name)
    assert shown.exit_code == 0 and shown.output.startswith(name)
    assert json.loads(call("show", name, "--json").output)["name"] == name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "objcts"], "did you mean 'objects'?"),
        (["show", "uce@2052"], "did you mean '2025'?"),
        (["plan", "objets"], "did you mean 'objects'?"),
        (["plan", "objects", "--methods", "none,ucee"], "did you mean 'uce'?"),
        (["plan", "objects", "--model", "sd_14"], "did you mean 'sd14'?"),
        (["plan", "nowhere.yaml"], "no suite file nowhere.yaml"),
        (["plan", "objects", "--shard", "3"], "--shard"),
        (["plan", "objects", "--shard", "4/3"], "--shard"),
        (["plan", "objects", "--scale", "0"], "--scale"),
        (["plan", "objects", "--seed", "-1"], "--seed"),
        (["plan", "objects", "--batch-size", "0"], "batch size must be at least 1"),
        (["plan", "objects", "--methods", "none,,uce"], "--methods"),
        (["run", "objects", "--modle", "sd14"], "--model"),
        (["run", "objects", "--executor", "cloud"], "local"),
        (["verify", "nowhere"], "nowhere"),
        (["board", "nowhere"], "nowhere"),
        (["erase", "uce", "--concept", "cta", "--out", "edit"], "did you mean 'cat'?"),
        (["lits"], "list"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_short_message(arguments: list[str], said: str, here: Path):
    result = call(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 4
    assert not result.stdout
    assert not list(here.iterdir()), "a refused command leaves nothing behind"


def test_a_traceback_only_with_debug():
    assert "Traceback" in call("show", "objcts", "--debug").stderr


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "runs/x"), 2, "runs/x: No space left on device"),
        (ZeroDivisionError("division by zero"), 1, "--debug"),
    ],
)
def test_errors_from_within(error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch):
    def fail() -> None:
        raise error

    monkeypatch.setattr("benchmark.catalogue.catalogue", fail)
    result = call("list")
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr and "Traceback" not in result.stderr


def test_default_out():
    assert cli.default_out("objects", "sd14") == Path("runs/objects-sd14")
    assert cli.default_out("/home/me/mine.yaml", "/models/erased/") == Path("runs/mine-erased")


def test_fields_are_set_by_method_label():
    told = cli._set_of(["esd.lr=1e-4", "esd.train=x", "uce@2025.ridge=2"])
    assert told == {"esd": {"lr": 1e-4, "train": "x"}, "uce@2025": {"ridge": 2}}
    for bad in ("lr=1", "esd.lr", ".lr=1", "esd.=1"):
        with pytest.raises(BadInput, match="--set: expected"):
            cli._set_of([bad])
