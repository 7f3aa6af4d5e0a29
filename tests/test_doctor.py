"""Doctor: what it finds, and that its self-test can fail."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmark import cli, doctor, sample
from benchmark.backbones.load import load
from benchmark.doctor import Check


def test_exit_codes():
    ok, absent = Check("packages", "a", "ok", ""), Check("weights", "b", "absent", "")
    assert doctor.exit_code([ok, absent]) == 0
    assert doctor.exit_code([ok, Check("determinism", "c", "wrong", "")]) == 1
    assert doctor.exit_code([Check("packages", "d", "wrong", ""), Check("determinism", "c", "wrong", "")]) == 3


def test_packages_are_checked_against_their_ranges(monkeypatch: pytest.MonkeyPatch):
    named = ["numpy>=2", "scipy<1", "no-such-package>=1", 'no-such-extra>=1; extra == "slurm"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: named)
    states = {check.name: check.state for check in doctor.packages()}
    assert states == {"numpy": "ok", "scipy": "wrong", "no-such-package": "wrong", "no-such-extra": "absent"}


def test_facenet_half_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: Spec())
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.6.0")
    found = doctor.facenet()
    assert found.state == "wrong" and "pnet.pt" in found.detail


def test_shadowed_datasets_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "datasets").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "datasets", raising=False)
    assert doctor.shadowing().state == "wrong"


def test_images_of_the_random_model_are_exact_here():
    found = doctor.exactness(load("random-unet"))
    assert found.state == "ok", found.detail


def test_images_that_depend_on_their_batch_are_caught(monkeypatch: pytest.MonkeyPatch):
    exact = sample.sample

    def leaky(backbone, items, *rest):  # type: ignore[no-untyped-def]
        for part, images in exact(backbone, items, *rest):
            yield part, images ^ np.uint8(part[0].seed % 3)  # the first of a batch touches its neighbours

    monkeypatch.setattr(sample, "sample", leaky)
    found = doctor.exactness(load("random-unet"))
    assert found.state == "wrong" and "reversed: 3 level" in found.detail


def test_json_report(monkeypatch: pytest.MonkeyPatch):
    checks = [Check("packages", "python", "ok", "3.11"), Check("weights", "sd14", "absent", "4 GB")]
    monkeypatch.setattr(doctor, "report", lambda model: checks)
    shown = CliRunner().invoke(cli.app, ["doctor", "--json"])
    assert shown.exit_code == 0
    assert json.loads(shown.output) == {"schema": 1, "ok": True, "checks": [vars(check) for check in checks]}
