"""The wheel carries the data inside `benchmark/` and never installs a package called `datasets`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tracked: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no build folder is left in the checkout."""
    pytest.importorskip("setuptools", minversion="77")
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for path in tracked:
        copy = tree / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    code = f"from setuptools.build_meta import build_wheel; build_wheel({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


def test_wheel_holds_code_and_data(wheel: Path, tracked: list[Path]):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    names = [path.relative_to(ROOT).as_posix() for path in tracked]
    code = {name for name in names if name.startswith(("benchmark/", "methods/"))}
    data = {f"benchmark/_data/{name}" for name in names if name.startswith(("datasets/", "suites/"))}
    reported = {f"benchmark/_data/{n.removeprefix('results/')}" for n in names if n.startswith("results/reported/")}
    assert inside == code | data | reported
    assert {"benchmark/py.typed", "methods/py.typed"} <= inside, "else its types are nobody's"


def test_installed_wheel_answers_away_from_the_checkout(wheel: Path, tmp_path: Path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = "import sys, benchmark.cli as c; print(c.__file__); sys.argv[1:] = ['list']; c.main()"
    env = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site)), "the checkout answered instead of the wheel"
    assert "objects" in done.stdout and "uce" in done.stdout
