"""A new method: the skeleton works as it is written, and other packages' methods are found."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmark import catalogue, cli, conformance, new_method, registry
from benchmark.errors import BadInput


def test_the_skeleton_keeps_every_rule(tmp_path: Path):
    method, _ = new_method.write("my_idea", tmp_path)
    report = conformance.check(f"{method}:MyIdea")
    assert report.ok, "\n".join(report.lines())


@pytest.mark.slow
def test_the_skeleton_s_own_test_passes(tmp_path: Path):
    _, test = new_method.write("my_idea", tmp_path)
    command = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "--import-mode=importlib",
        "-q",
        "-p",
        "no:cacheprovider",
        str(test),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout


def test_the_skeleton_is_as_tidy_as_the_rest(tmp_path: Path):
    for path in new_method.write("my_idea", tmp_path):
        config = ["--config", str(Path(__file__).parents[1] / "pyproject.toml")]
        for command in (["check", "-q"], ["format", "-q", "--check"]):
            done = subprocess.run(
                [sys.executable, "-m", "ruff", *command, *config, str(path)],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr


def test_the_command_says_what_to_do_next(tmp_path: Path):
    shown = CliRunner().invoke(cli.app, ["new-method", "mine2", "--dir", str(tmp_path / "new")])
    assert shown.exit_code == 0, shown.output
    assert f"erasure-bench check-method {tmp_path / 'new' / 'mine2.py'}:Mine2" in shown.stdout
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["mine2.py", "test_mine2.py"]


@pytest.mark.parametrize("name", ["My", "a-b", "_a", "test_a", "class", "", "1a"])
def test_names_that_cannot_be_are_refused(tmp_path: Path, name: str):
    with pytest.raises(BadInput, match="expected a name of lower-case letters"):
        new_method.write(name, tmp_path)


def test_nothing_is_overwritten(tmp_path: Path):
    with pytest.raises(BadInput, match="there is a method 'uce' already"):
        new_method.write("uce", tmp_path)
    (tmp_path / "test_mine2.py").write_text("keep")
    with pytest.raises(BadInput, match="test_mine2.py is there already"):
        new_method.write("mine2", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["test_mine2.py"]


# --- other packages ---------------------------------------------------------------------------------------------------
@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package with a method in it, installed as pip leaves one: a module and its `dist-info`."""
    new_method.write("from_afar", tmp_path)
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\nfrom_afar = from_afar:FromAfar\n")
    monkeypatch.syspath_prepend(tmp_path)
    forget()
    yield "from_afar"
    sys.modules.pop("from_afar", None)
    monkeypatch.undo()
    forget()


def forget() -> None:
    registry._entry_points.cache_clear()
    registry.method_class.cache_clear()


def test_a_registered_method_is_loaded_only_when_it_is_named(installed: str):
    """Listing what there is, planning and showing others leave a stranger's code alone."""
    for arguments in (["list"], ["list", "--json"], ["show", "sd14"], ["show", "uce"], ["plan", "smoke"]):
        shown = CliRunner().invoke(cli.app, arguments)
        assert shown.exit_code == 0 and "from_afar" not in sys.modules, shown.output
    listed = {m["name"]: m for m in catalogue.catalogue("methods")["methods"]}
    assert listed[installed]["title"] == "plug-in from_afar:FromAfar, not loaded: `show from_afar` does"
    assert CliRunner().invoke(cli.app, ["show", installed]).exit_code == 0 and "from_afar" in sys.modules


def test_registered_methods_are_methods_like_any_other(installed: str):
    assert installed in registry.method_names()
    assert registry.resolve("from_afar@half").fields == {"strength": 0.5}
    report = conformance.check(installed)
    assert report.ok, "\n".join(report.lines())
    shown = CliRunner().invoke(cli.app, ["show", installed])
    assert shown.exit_code == 0 and "FromAfar: what it does" in shown.stdout
