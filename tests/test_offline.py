"""Nothing goes over the network unless asked for, and no token gets into a record, a log or a message."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmark import cli, hubs, inert, run

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "hf_" + "Ab3" * 11
SECRETS = {"HF_TOKEN": TOKEN, "WANDB_API_KEY": "k3y-of-nobody-else", "DB_PASSWORD": "correct horse battery"}

GUARD = """
import socket, sys

def refused(*arguments, **more):
    raise AssertionError(f"the network was asked for: {arguments[1:] or arguments}")

for name in ("connect", "connect_ex", "sendto", "bind", "listen"):
    setattr(socket.socket, name, refused)
for name in ("create_connection", "getaddrinfo", "gethostbyname", "gethostbyname_ex"):
    setattr(socket, name, refused)
"""
ALL = """
import importlib, pkgutil
import benchmark, methods
skipped = ("benchmark.testbed.build", "benchmark.testbed.artwork", "benchmark._data")
for package in (benchmark, methods):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.startswith(skipped):
            importlib.import_module(module.name)
"""
COMMANDS = """
from typer.testing import CliRunner
from benchmark import cli
for arguments in {commands!r}:
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code in (0, 3), (arguments, done.output)
    assert not isinstance(done.exception, AssertionError), done.exception
"""


def python(code: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own whose network is a trap, with hubs set online outside."""
    online = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
    own = {"HF_HOME": str(tmp_path / "hub"), "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    env = {**os.environ, **online, **own, "PYTHONSAFEPATH": "1", **environment}
    return subprocess.run(
        [sys.executable, "-c", GUARD + code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )


def test_the_guard_guards(tmp_path: Path):
    done = python("import urllib.request; urllib.request.urlopen('http://127.0.0.1:9/')", tmp_path)
    assert done.returncode == 1 and "the network was asked for" in done.stderr


def test_plans_and_what_else_needs_no_model_ask_nobody(tmp_path: Path):
    asked = [
        ("smoke", "testbed"),
        ("smoke", "sd14"),
        ("explicit", "sd14"),
        ("styles", "sd15"),
        ("fade_adv", "flux-dev"),
    ]
    commands = [["plan", s, "--model", m, "--methods", "none,uce", "--scale", "0.01"] for s, m in asked]
    commands += [["list"], ["show", "sd14"], ["board", str(ROOT / "results" / "testbed-3" / "smoke")]]
    done = python(COMMANDS.format(commands=commands), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


def test_importing_all_of_it_asks_nobody(tmp_path: Path):
    done = python(ALL, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


SUITE = """\
title: A test
version: 1
source: ours
methods: [none, uce]
forms:
  embedded:
    dataset: testbed
    requests: [{each: [cat], keep: [dog]}]
    prompts:
      erased: {templates: ["a photo of the {concept}"], images: 1}
      kept: {templates: ["a photo of the {concept}"], images: 1}
    sampler: {scheduler: ddim, steps: 1, guidance: 3.0, size: 64}
    batch: 2
    primary: testbed/top1
    protocols: [testbed/top1]
"""
RUN = """
import sys
from benchmark import cli
sys.argv = ["erasure-bench", "run", "mine.yaml", "--model", "random-unet", "--out", "out", "--quiet"]
cli.main()
"""


def test_a_run_asks_nobody_and_keeps_no_token(tmp_path: Path):
    """With tokens in the environment and one in a failing method's message: none is in any file or line."""
    (tmp_path / "mine.yaml").write_text(SUITE)
    fails = "from methods import uce\nimport os\n"
    fails += "def edit(self, *a): raise RuntimeError('401 for https://me:' + os.environ['HF_TOKEN'] + '@hub/x')\n"
    fails += "uce.UCE.edit = edit\n"
    done = python(fails + RUN, tmp_path, **SECRETS)
    assert done.returncode == 4, done.stderr[-3000:]
    record = json.loads(next((tmp_path / "out" / "records").glob("uce*.json")).read_bytes())
    assert record["status"] == "failed" and "401 for" in record["reason"] and "***" in record["reason"]
    log = next((tmp_path / "out" / "log").glob("uce*")).read_text()
    assert "Traceback" in log and "401 for" in log
    said = [done.stdout, done.stderr]
    for path in (p for p in (tmp_path / "out").rglob("*") if p.is_file()):
        said.append(path.read_bytes().decode("utf-8", "replace"))
    for secret in SECRETS.values():
        assert not [text[:200] for text in said if secret in text]


# --- what is set ------------------------------------------------------------------------------------------------------
def test_every_command_is_offline_whatever_is_set_outside(monkeypatch: pytest.MonkeyPatch):
    from typer.testing import CliRunner

    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    for name in names:
        monkeypatch.setenv(name, "0")
    assert CliRunner().invoke(cli.app, ["show", "uce"]).exit_code == 0
    assert [os.environ[name] for name in names] == ["1"] * 3
    hubs.ask(True)
    assert [os.environ[name] for name in names] == ["0"] * 3
    hubs.ask(False)


# --- tokens -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"token {TOKEN} is wrong", "token *** is wrong"),
        ("https://me:p4ss@host/x", "https://***@host/x"),
        ("https://host/x?token=abc&n=1", "https://host/x?token=***&n=1"),
        (
            "https://s3/x?X-Amz-Signature=abc&X-Amz-Credential=d",
            "https://s3/x?X-Amz-Signature=***&X-Amz-Credential=***",
        ),
        ("Authorization: Bearer abcdefghijkl", "Authorization: Bearer ***"),
        ("key AKIAABCDEFGHIJKLMNOP", "key ***"),
        ("ghp_abcdefghijklmnop1234", "***"),
        ("the password is correct horse battery", "the password is ***"),
        ("esd@paper on erase:cat, a photo of the token ring", "esd@paper on erase:cat, a photo of the token ring"),
        ("half a photo of hf_x", "half a photo of hf_x"),
    ],
)
def test_tokens_are_hidden(text: str, shown: str):
    assert inert.redacted(text, SECRETS) == shown


def test_what_is_a_secret_by_its_name():
    assert all(map(inert.is_secret, (*SECRETS, "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY")))
    assert not any(map(inert.is_secret, ("PATH", "TOKENIZERS_PARALLELISM", "HOME", "KEYBOARD", "HF_HUB_OFFLINE")))


def test_reasons_hold_no_token(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_SECRET", "s3cr3t-and-long")
    assert "s3cr3t" not in run.told(RuntimeError("no s3cr3t-and-long today"))


def test_an_external_judge_gets_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import numpy as np

    from benchmark.evaluators import external
    from benchmark.metrics import evaluators

    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    code = "import json, os, sys\nfor line in sys.stdin: print(json.dumps({'error': ' '.join(os.environ.values())}))\n"
    (tmp_path / "judge.py").write_text(code)
    command: dict[str, Any] = {"command": [sys.executable, "judge.py"], "labels": ["a"]}
    (tmp_path / "command.json").write_text(json.dumps(command))
    raw = evaluators.load("external/x", tmp_path).raw(np.zeros((1, 8, 8, 3), np.uint8))
    assert external.ERRORS[int(raw["error"][0])] == "said so"
    assert not [v for v in external.environment().values() if v in SECRETS.values()]
    assert "PATH" in external.environment()
