"""Whole runs on engines, through the command: a worker is killed, and the folder is that of a run in one process."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # every worker loads torch: half a minute on a busy machine

SUITE = """\
title: A test
version: 1
source: ours
methods: [none]
headline: H_o
forms:
  embedded:
    dataset: testbed
    requests: [{each: [cat, airplane], keep: [dog, frog]}]
    prompts:
      erased: {templates: ["a photo of the {concept}"], images: 6}
      synonym: {templates: ["a photo of the {concept}"], images: 2}
      kept: {templates: ["a photo of the {concept}"], images: 2}
    sampler: {scheduler: ddim, steps: 2, guidance: 3.0, size: 64}
    batch: 4
    primary: testbed/top1
    protocols: [testbed/top1]
"""
RUN = ("--model", "random-unet", "--methods", "none,uce,noise,grey", "--quiet")
FREE = ("costs.json", "log/", "store/costs/", "store/tmp/", "store/damaged/")
ENGINES: dict[str, tuple[str, ...]] = {
    "local": (),
    "ray": ("--executor", "ray"),
    "slurm": ("--executor", "slurm", "--slurm", "cluster=local", "--slurm", "timeout_min=30"),
}
PACKAGES = {"ray": "ray", "slurm": "submitit"}


def command(folder: Path, out: Path, *arguments: str) -> list[str]:
    """As the console script does; the suite file lies in `folder`."""
    code = "from benchmark.cli import main; main()"
    return [sys.executable, "-P", "-c", code, "run", str(folder / "tiny.yaml"), "--out", str(out), *RUN, *arguments]


def snapshot(out: Path) -> dict[str, bytes]:
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in sorted(files.items()) if not name.startswith(FREE)}


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the suite, and the run in one process that all others are compared with."""
    folder = tmp_path_factory.mktemp("serial")
    (folder / "tiny.yaml").write_text(SUITE)
    done = subprocess.run(command(folder, folder / "out"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def at_work(out: Path) -> int | None:
    """The process that draws a batch of images right now."""
    for claim in (out / "store" / "leases").glob("images.*"):
        try:
            return int(json.loads(claim.read_bytes())["pid"])
        except (OSError, ValueError):
            continue
    return None


@pytest.mark.parametrize("name", ENGINES)
def test_a_worker_is_killed_and_the_run_is_the_same_bytes(name: str, serial: Path, tmp_path: Path):
    if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
        pytest.skip(f"needs {PACKAGES[name]}")
    out, killed = tmp_path / "out", None
    arguments = command(serial, out, "--workers", "2", *ENGINES[name])
    with (tmp_path / "stderr.txt").open("w") as lines:
        head = subprocess.Popen(arguments, stdout=lines, stderr=lines)
        while head.poll() is None:
            if killed is None and (pid := at_work(out)) is not None:
                os.kill(pid, signal.SIGKILL)
                killed = pid
            time.sleep(0.002)
    told = (tmp_path / "stderr.txt").read_text()
    assert head.returncode == 0, told
    assert killed is not None and "was killed by SIGKILL; it is started anew" in told
    assert snapshot(out) == snapshot(serial / "out")
    assert not list((out / "log").iterdir()), "logs of workers go with the success of their run"
