"""The commands: what they answer, how fast, and how they fail."""

from __future__ import annotations

import doctest
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from benchmark import cli, commands
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
    "export",
    "fetch",
    "gc",
    "import",
    "list",
    "neighbours",
    "new-method",
    "page",
    "perf",
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

RUN = Path(__file__).resolve().parent.parent / "results" / "testbed-3" / "smoke"


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
    assert not re.search(r"[{<]|\[\[|\.{4}", shown.output.splitlines()[0]), "a usage line as our texts have it"
    assert "--quiet" in shown.output and "--debug" in shown.output


def test_all_commands_are_tested_here():
    assert set(get_command(cli.app).commands) == {command.split()[0] for command in COMMANDS}


def test_help_has_every_command_under_a_heading():
    shown = call("--help").output
    headings = re.findall(r"^([A-Z]\w+):$", shown, re.MULTILINE)
    assert headings[:5] == ["Options", "Run", "Look", "Check", "Extend"]
    assert "More" not in headings, "give the new command its place in benchmark.commands.PANELS"
    listed = re.findall(r"^  ([a-z-]+)  ", shown.partition("Run:")[2], re.MULTILINE)
    assert sorted(listed) == sorted({command.split()[0] for command in COMMANDS})


@pytest.mark.parametrize("width", [80, 120])
def test_help_fits_and_is_not_cut_off(width: int):
    shown = CliRunner(env={"COLUMNS": str(width), "TERMINAL_WIDTH": str(width)}).invoke(cli.app, ["--help"]).output
    assert max(map(len, shown.splitlines())) <= width
    assert "..." not in shown.partition("Run:")[2]


def test_pieces_of_the_help_are_as_they_are_shown():
    assert doctest.testmod(commands).failed == 0


def test_version():
    shown = call("--version")
    assert shown.exit_code == 0 and re.fullmatch(r"erasure-bench \d+\.\d+\S*\n", shown.output)


def test_light_commands_load_no_torch(tmp_path: Path):
    code = (
        "import os, sys, benchmark.cli as c\n"
        "def light(*arguments):\n"
        "    sys.argv = ['erasure-bench', *arguments]\n"
        "    try: c.main()\n"
        "    except SystemExit as end: assert end.code in (None, 0, 3), (arguments, end.code)\n"
        "    heavy = {'torch', 'pandas', 'scipy', 'matplotlib', 'transformers', 'diffusers'} & sys.modules.keys()\n"
        "    assert not heavy, (arguments, heavy)\n"
        "light('--help'), light('--version')\n"
        "assert not {'numpy', 'rich', 'pydantic'} & sys.modules.keys(), 'help needs none of these'\n"
        "light('list'), light('list', '--json'), light('show', 'objects'), light('show', 'i2p')\n"
        "light('plan', 'objects')\n"
        "os.environ['_ERASURE_BENCH_COMPLETE'] = 'complete_zsh'\n"
        "os.environ['_TYPER_COMPLETE_ARGS'] = 'erasure-bench plan objects --methods uce@'\n"
        "light()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_list_as_json():
    found = json.loads(call("list", "--json").output)
    assert set(found) == {"methods", "suites", "models", "protocols", "datasets"}
    assert {"name", "variants", "families", "max_concepts", "kind"} <= set(found["methods"][0])
    assert {"none", "uce", "esd", "noise", "grey", "blocklist"} <= {method["name"] for method in found["methods"]}
    assert {"smoke", "objects", "celebrity"} <= {suite["name"] for suite in found["suites"]}


def test_list_of_one_kind():
    assert set(json.loads(call("list", "suites", "--json").output)) == {"suites"}
    shown = call("list", "suites").output.splitlines()
    assert shown[0] == "suites" and all(line.startswith("  ") for line in shown[1:]) and len(shown) > 10


@pytest.mark.parametrize("name", ["uce@2025", "objects", "testbed", "testbed/top1", "cifar10"])
def test_show(name: str):
    shown = call("show", name)
    assert shown.exit_code == 0 and shown.output.startswith(name)
    assert json.loads(call("show", name, "--json").output)["name"] == name


# --- completion -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("typed", "found", "not_found"),
    [
        ("run ob", ["objects"], ["smoke"]),
        ("plan objects --methods none,es", ["none,esd"], ["none,none"]),
        ("plan objects --methods uce@", ["uce@2025"], ["uce"]),
        ("run objects --model te", ["testbed"], ["sd14"]),
        ("show testbed/", ["testbed/top1"], ["objects"]),
        ("list pro", ["protocols"], []),
        ("tables --paper ma", ["mace"], []),
        ("plot x --figure c", ["concepts", "cost"], ["erase_keep"]),
        ("re", ["rescore", "regress"], ["run"]),
        ("run objects --se", ["--seed", "--set"], []),
        ("show nowh", [], ["nowhere"]),
        ("plan objects --methods nowhere@", [], ["nowhere"]),
    ],
)
def test_the_shell_completes(typed: str, found: list[str], not_found: list[str], here: Path):
    asked = {"_ERASURE_BENCH_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": f"erasure-bench {typed}"}
    done = CliRunner(env=asked).invoke(cli.app, [])
    assert (done.exit_code, done.stderr) == (0, "")
    offered = set(re.findall(r'^.*?"([^"]+)"', done.stdout, re.MULTILINE))
    assert set(found) <= offered and not set(not_found) & offered


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
        (["run", "objects", "--modle", "sd14"], "Did you mean --model?"),
        (["claims", "check", "--jsno"], "Did you mean --json?"),
        (["claims", "chekc"], "Did you mean 'check'?"),
        (["list", "suits"], "did you mean 'suites'?"),
        (["tables", "--paper", "maec"], "did you mean 'mace'?"),
        (["plot", str(RUN), "--figure", "erase_kept", "--out", "x.pdf"], "did you mean 'erase_keep'?"),
        (["run", "objects", "--executor", "cloud"], "local"),
        (["verify", "nowhere"], "nowhere"),
        (["board", "nowhere"], "nowhere"),
        (["erase", "uce", "--concept", "cta", "--out", "edit"], "did you mean 'cat'?"),
        (["lits"], "Did you mean 'list'"),
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
    def fail(kind: str | None) -> None:
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
