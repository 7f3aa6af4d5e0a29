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


def test_data_files_are_shown_with_the_suites_that_need_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("ERASURE_BENCH_DATA", "ERASURE_BENCH_COCO30K"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    prompts = tmp_path / "i2p.csv"
    prompts.write_text("prompt,sd_seed\na,1\n")
    monkeypatch.setenv("ERASURE_BENCH_I2P", str(prompts))
    users = {"i2p/prompts": ["explicit"], "coco30k/prompts": ["explicit", "styles"]}
    monkeypatch.setattr(doctor, "_users", lambda: users)
    found = {check.name: check for check in doctor.data_sets()}
    assert found["i2p/prompts"].state == "ok" and found["i2p/prompts"].detail == f"for explicit; {prompts}"
    coco = found["coco30k/prompts"]
    assert coco.state == "absent" and coco.detail.startswith("for explicit, styles; coco30k/prompts from https://")
    assert "size not recorded, licence captions CC BY 4.0" in coco.detail and "COCO30K (not set)" in coco.detail
    assert coco.detail.endswith("`erasure-bench fetch explicit` gets it")
    assert "unpack it" in found["coco30k/images"].detail and "6.0 GB" in found["coco30k/images"].detail
    assert found["artists/prompts_100"].detail.startswith("no suite needs it")
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  i2p.csv\n")
    changed = {check.name: check for check in doctor.data_sets()}["i2p/prompts"]
    assert changed.state == "wrong" and "expected 0000" in changed.detail


def test_files_of_suites_are_found_in_their_forms(monkeypatch: pytest.MonkeyPatch):
    """In whatever part of the form they are named, by any suite."""

    class Forms:
        def __init__(self, form: dict[str, object]) -> None:
            self.form = form

        def model_dump(self) -> dict[str, object]:
            return {"paper": self.form, "embedded": None}

    class Suite:
        def __init__(self, form: dict[str, object]) -> None:
            self.forms = Forms(form)

    suites = {"a": Suite({"dataset": "i2p"}), "b": Suite({"dataset": "cifar10", "x": [{"dataset": "i2p"}]})}
    monkeypatch.setattr("benchmark.suite.names", lambda: sorted(suites))
    monkeypatch.setattr("benchmark.suite.load", lambda name: suites[name])
    assert doctor._users() == {"i2p/prompts": ["a", "b"]}


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
