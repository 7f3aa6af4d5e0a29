"""Workflows: what they call exists, and no package registry is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def steps(path: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_targets_and_scripts_that_a_workflow_calls_exist(path: Path):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    scripts = "\n".join(step.get("run", "") for step in steps(path))
    for called in re.findall(r"\bmake ([a-z-]+)", scripts):
        assert called in targets, called
    for script in re.findall(r"\bbash (\S+)", scripts):
        assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_registry_and_no_secret_is_named(path: Path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"--(extra-)?index|pypi|pythonhosted|npmjs|/simple\b|secrets\.", text, re.I)
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}


def test_the_gate_runs_on_a_gpu_every_night_and_on_demand():
    text = (ROOT / ".github" / "workflows" / "regress.yml").read_text(encoding="utf-8")
    found = yaml.safe_load(text)
    when = found[True]  # YAML 1.1 reads `on` as a truth value
    assert "workflow_dispatch" in when and when["schedule"][0]["cron"]
    assert found["jobs"]["gpu"]["runs-on"] == ["self-hosted", "gpu"]
    used = {step.get("uses", "").partition("@")[0] for step in found["jobs"]["gpu"]["steps"]}
    assert {"actions/cache", "actions/upload-artifact"} <= used
