"""What of FLUX.1 fits on a card, from its configuration alone; and the settings that make it fit."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from benchmark import cli, cost, fits, speed
from benchmark.backbones.flux import FluxBackbone
from benchmark.backbones.load import load
from benchmark.backbones.random_models import flux_components
from benchmark.errors import BadInput
from benchmark.plan import make_plan
from benchmark.speed import Speed, choose

_GB = 10**9


def tiny() -> dict[str, Any]:
    """The configurations of the tiny random model."""
    found = cost._built_in("random-flux")
    return {name: dict(part) for name, part in found.items()}


@pytest.fixture(scope="module")
def dev() -> fits.Sizes:
    return fits.sizes(cost.KNOWN["flux-dev"], 512, 512)


def test_sizes_of_flux_dev_need_no_weights(dev: fits.Sizes) -> None:
    """Two bytes a number: 11.90 billion in the transformer, 4.76 in T5, 0.12 in CLIP, 84 million in the VAE."""
    assert dev.transformer == 2 * 11_901_408_320
    assert dev.texts == (2 * 123_060_480, 2 * 4_762_310_656)
    assert dev.vae == 2 * 83_819_683
    assert dev.attention == 2 * (19 * 8 + 38 * 3) * 3072**2
    assert dev.factors == (19 * 8 + 38 * 3) * 2 * 3072
    assert dev.transformer - dev.blocks < _GB / 2 and dev.block < _GB


def test_flux_dev_trains_on_80_gb_and_samples_on_24(dev: fits.Sizes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits, "sizes", lambda *_: dev)
    found = {(m.use, m.settings): m for m in fits.modes(cost.KNOWN["flux-dev"], 512, 512)}
    assert found["training", "OFFLOAD=text CHECKPOINTING=1"].fits
    assert found["training", "OFFLOAD=text CHECKPOINTING=1"].size < found["training", "OFFLOAD=text"].size
    assert not found["sampling", ""].fits and not found["sampling", "OFFLOAD=text"].fits  # 23.8 GB of transformer
    assert found["sampling", "OFFLOAD=blocks"].fits


def test_activations_grow_with_the_tokens() -> None:
    """More than what goes into a block, all that is kept where they are computed again; more for more tokens."""
    configs = tiny()
    double, single = fits._kept(configs["transformer"], 16, 24)
    assert 0 < single and 0 < double
    carried = 2 * 32 * (16 + 24 + 1)
    assert carried < single  # what checkpointing keeps of a block is less than what the block keeps
    more = fits._kept(configs["transformer"], 64, 24)
    assert more[0] > 1.5 * double and more[1] > 1.5 * single


def test_plan_tells_what_fits_and_that_it_was_not_measured() -> None:
    plan = make_plan("smoke", model="random-flux", methods=["none"])
    found = fits.memory(plan)
    assert found is not None and {m["use"] for m in found} == {"training", "sampling"}
    assert all(m["fits"] and m["measured"] is False for m in found)
    assert fits.memory(make_plan("smoke", model="random-unet", methods=["none"])) is None
    lines = cli._memory(found)
    assert len(lines) == 6 and all(line.startswith("memory ") and "(computed, not measured)" in line for line in lines)
    assert cli._memory(None) == []


def test_the_command_shows_it() -> None:
    run = CliRunner().invoke(
        cli.app, ["plan", "smoke", "--model", "random-flux", "--methods", "none", "--cost", "--json"]
    )
    assert run.exit_code == 0, run.output
    modes = json.loads(run.output)["memory"]
    assert [m["use"] for m in modes] == ["training"] * 3 + ["sampling"] * 3


# --- the settings -----------------------------------------------------------------------------------------------------
def chosen(**given: Any) -> Speed:
    asked: dict[str, Any] = {"kind": "cuda", "family": "transformer-flow", "images": 10, "forwards": 1000}
    return choose(**{**asked, "capability": (9, 0), "compiler": None, **given})


def test_offloading_is_told_and_keyed_by_nothing() -> None:
    plain, placed = chosen(), chosen(offload="text", checkpointing=True)
    assert placed.keyed() == plain.keyed() == {}
    assert (placed.dtype, placed.edits, placed.launch) == (plain.dtype, plain.edits, plain.launch)
    told = placed.told()
    assert (told["offload"], told["checkpointing"]) == ("text", "edits")
    assert "offload" not in plain.told() and "checkpointing" not in plain.told()
    assert not plain.separate and not placed.separate


def test_streamed_blocks_are_launched_one_by_one_and_train_nothing() -> None:
    placed = chosen(offload="blocks")
    assert placed.launch == "eager" and "one at a time" in placed.why
    assert placed.edits_offload == "text" and placed.separate


def test_u_nets_are_left_as_they_are() -> None:
    assert (
        chosen(family="unet-epsilon", offload="blocks", checkpointing=True).told()
        == chosen(family="unet-epsilon").told()
    )
    with pytest.raises(BadInput, match="for flow transformers; random-unet is unet-epsilon"):
        load("random-unet", offload="text")


def test_the_environment_is_read_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert speed.asked_offload() == "none" and not speed.asked_checkpointing()
    monkeypatch.setenv(speed.OFFLOAD, "blocks")
    monkeypatch.setenv(speed.CHECKPOINTING, "1")
    assert speed.asked_offload() == "blocks" and speed.asked_checkpointing()
    monkeypatch.setenv(speed.OFFLOAD, "block")
    monkeypatch.setenv(speed.CHECKPOINTING, "yes")
    with pytest.raises(BadInput, match="did you mean 'blocks'"):
        speed.asked_offload()
    with pytest.raises(BadInput, match="to be 0 or 1, got 'yes'"):
        speed.asked_checkpointing()


def test_a_folder_is_loaded_as_asked(tmp_path: Any) -> None:
    from diffusers import FluxPipeline

    FluxPipeline(**flux_components()).save_pretrained(tmp_path / "flux")
    model = load(tmp_path / "flux", size=64, offload="blocks", checkpointing=True)
    assert isinstance(model, FluxBackbone) and model.offload == "blocks"
    plain = load(tmp_path / "flux", size=64)
    x, t, text = plain.noise([1]), plain.timesteps(2)[1], plain.embed(["cat"])
    with torch.no_grad():
        assert torch.equal(model.predict(x, t, model.embed(["cat"])), plain.predict(x, t, text))
