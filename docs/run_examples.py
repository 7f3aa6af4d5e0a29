"""Run the example of each command and keep what it prints: `python docs/run_examples.py [--runs DIR] [COMMAND …]`.

Without names, the quick ones. Those that need a run take `smoke-testbed` of DIR (default `runs`), and are given a copy.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from benchmark import cli

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
KEPT = HERE / "examples"
RUN = "smoke-testbed"
_ENVIRONMENT = {"COLUMNS": "100", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}  # put back afterwards


def examples() -> dict[str, dict[str, Any]]:
    """By command, all with a `cost`."""
    listed = yaml.safe_load((HERE / "examples.yaml").read_text(encoding="utf-8"))
    return {name: {"cost": "quick", "exit": 0, "head": None, "before": [], **one} for name, one in listed.items()}


def path_of(name: str) -> Path:
    return KEPT / f"{name.replace(' ', '-')}.txt"


def executed(example: Mapping[str, Any], folder: Path) -> str:
    """Run it in `folder`: the text of a console, the command first. AssertionError for another exit code."""
    if not (folder / "results").exists():
        (folder / "results").symlink_to(ROOT / "results")
    with contextlib.chdir(folder):
        for text in example["before"]:
            _run(text, 0)
        output = _run(example["run"], example["exit"])
    lines = [line.rstrip() for line in _without_places(output, folder).strip("\n").splitlines()]
    shown = lines if example["head"] is None or len(lines) <= example["head"] else [*lines[: example["head"]], "…"]
    return "\n".join([f"$ erasure-bench {example['run']}", *shown, ""])


def _run(text: str, code: int) -> str:
    done = CliRunner().invoke(cli.app, shlex.split(text), env=_ENVIRONMENT, prog_name="erasure-bench")
    assert done.exit_code == code, f"{text}: exit code {done.exit_code}\n{done.output}"
    return done.output


def _without_places(text: str, folder: Path) -> str:
    """What a reader's machine would not show: where this one keeps things."""
    for place, said in ((folder, "."), (ROOT, "."), (Path.home(), "~")):
        text = text.replace(str(place), said)
    return re.sub(r"^.*\d+%\|.*\n", "", re.sub(r"\x1b\[[0-9;]*m", "", text), flags=re.M)  # no colours, no bars


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", nargs="*")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    given = parser.parse_args()
    every = examples()
    for name in given.command or [name for name, one in every.items() if one["cost"] == "quick"]:
        with tempfile.TemporaryDirectory() as scratch:
            if every[name]["cost"] == "run":
                shutil.copytree(given.runs / RUN, Path(scratch) / "runs" / RUN)
            text = executed(every[name], Path(scratch))
        KEPT.mkdir(exist_ok=True)
        path_of(name).write_text(text, encoding="utf-8")
        print(path_of(name).relative_to(ROOT))


if __name__ == "__main__":
    main()
