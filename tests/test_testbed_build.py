"""The embedded model's command on a shortened recipe, with made-up drawings in place of the artwork."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from benchmark.testbed import artwork, assemble, build, card
from benchmark.testbed import recipe as module
from benchmark.testbed.recipe import HERE, Recipe, rate_at

STAGES = ["tokenizer", "vae", "clip", "evaluator", "evaluator_b", "unet", "assemble"]


@pytest.fixture(scope="module")
def drawings() -> np.ndarray:
    """A blob of its own colour for every drawing of the list: `(n, 128, 128, 4)` uint8."""
    rng = np.random.default_rng(0)
    count, side = len(artwork.drawings()), artwork.PIXELS
    small = rng.integers(0, 256, (count, 8, 8, 4), dtype=np.uint8)
    small[..., 3] |= 128
    return small.repeat(side // 8, 1).repeat(side // 8, 2)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped recipe with stages of two or three steps, and images enough for one batch."""
    values = yaml.safe_load((HERE / "recipe.yaml").read_text())
    values["renders"] = {"train": 96, "validation": 32, "test": 32}
    for stage in ("clip", "evaluator_a", "evaluator_b", "autoencoder", "denoiser"):
        values[stage] |= {"steps": 3, "batch": 8}
    values["kin"]["steps"] = 3
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def prepared(work: Path, drawings: np.ndarray) -> Path:
    """A work folder that has its drawings."""
    (work / "drawings").mkdir(parents=True)
    artwork._save(work / "drawings" / "drawings.npz", drawings)
    return work


def train(work: Path, recipe: Path, stages: list[str]) -> None:
    build.main(["--node-modules", "absent", "--work", str(work), "--recipe", str(recipe), *stages])


@pytest.fixture(scope="module", autouse=True)
def _few_references():
    """Rendering what the judges' distances are taken to would last longer than all of the training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assemble, "REFERENCES", 2)
        yield


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, drawings: np.ndarray, recipe: Path) -> Path:
    work = prepared(tmp_path_factory.mktemp("first"), drawings)
    train(work, recipe, STAGES)
    return work


@pytest.fixture(autouse=True)
def _threads():
    """The command sets torch's threads for its process; here others run in it too."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_two_trainings_have_equal_hashes(first, tmp_path, drawings, recipe):
    second = prepared(tmp_path / "second", drawings)
    train(second, recipe, STAGES)
    assert card.hashes(first / "weights") == card.hashes(second / "weights")
    assert len(card.hashes(first / "weights")) == 7


def test_another_seed_is_another_model(first, tmp_path, drawings, recipe):
    other = tmp_path / "recipe.yaml"
    other.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {"seed": 5}))
    work = prepared(tmp_path / "work", drawings)
    train(work, other, ["vae"])
    name = "vae/diffusion_pytorch_model.safetensors"
    assert (work / "model" / name).read_bytes() != (first / "model" / name).read_bytes()


def test_an_interrupted_stage_goes_on_to_the_same_bytes(first, tmp_path, drawings, recipe, monkeypatch):
    work = prepared(tmp_path / "work", drawings)
    clock = itertools.count(step=1000)  # so much time passes that every step is followed by a checkpoint
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    saved, real = [], module.Stage._save

    def stop_after_two(stage: module.Stage, step: int) -> None:
        real(stage, step)
        saved.append(step)
        if step == 2 and saved.count(2) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(module.Stage, "_save", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        train(work, recipe, ["vae"])
    train(work, recipe, ["vae"])
    name = "vae/diffusion_pytorch_model.safetensors"
    assert (work / "model" / name).read_bytes() == (first / "model" / name).read_bytes()


def test_curves_are_logged(first):
    for stage in ("autoencoder", "clip", "evaluator_a", "evaluator_b", "denoiser"):
        rows = [json.loads(line) for line in (first / "checkpoints" / f"{stage}.jsonl").read_text().splitlines()]
        assert rows[-1]["step"] == 3 and rows[-1]["loss"] > 0


def test_the_budget_in_bytes(first):
    """The recipe's own sizes: U-Net model, judges and CLIP within 26 MiB."""
    parts = [p for p in (first / "weights").rglob("*.safetensors") if "reference" not in p.parts]
    assert sum(p.stat().st_size for p in parts) <= 26 * 2**20


def test_contact_sheets(first, recipe, capsys):
    train(first, recipe, ["data"])
    sheets = sorted(p.name for p in (first / "sheets").iterdir())
    assert "renders-bird.png" in sheets and len(sheets) == 7
    assert str(first / "sheets" / "renders-bird.png") in capsys.readouterr().out


def test_the_rate_falls_to_a_hundredth():
    rates = [rate_at(s, 100, 1.0, 10, 0.5) for s in (0, 9, 10, 50, 75, 99)]
    assert rates == pytest.approx([0.1, 1.0, 1.0, 1.0, 0.5, 0.02])


def test_shortened_keeps_sizes():
    whole, short = Recipe.load(), Recipe.load().shortened(0.01)
    assert short["denoiser"]["channels"] == whole["denoiser"]["channels"]
    assert short["denoiser"]["steps"] == round(0.01 * whole["denoiser"]["steps"])
    assert short["name"].endswith("-short")
