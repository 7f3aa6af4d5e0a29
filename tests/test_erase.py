"""One method on one model: a folder that plain diffusers loads, with the edit and a card, or nothing at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

import methods
from benchmark import cli, edits, erase, merged, models, registry
from benchmark.backbones.load import load
from benchmark.backbones.random_models import random_flux, random_unet
from benchmark.errors import BadInput, BenchError
from benchmark.interface import Edit, Gates, LowRank, PromptRule, Request, Target

ONE = Request(erase=(Target(name="cat", anchor="animal"),))


def read(folder: Path) -> Edit:
    return edits.deserialise({path.name: path.read_bytes() for path in folder.iterdir()})


def pipeline(folder: Path) -> Any:
    """As somebody without this harness loads it."""
    untyped: Any = diffusers
    found = untyped.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    found.set_progress_bar_config(disable=True)
    return found


def erased(edit: Edit, model: str = "random-unet", method: str = "uce") -> erase.Erased:
    return erase.Erased(edit, registry.resolve(method), models.describe(model), ONE)


# --- merged weights ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("model", ["random-unet", "random-flux"])
def test_plain_diffusers_loads_the_edited_weights(tmp_path: Path, model: str):
    made = erase.erase("uce", model, ["cat", "dog"])
    erase.write(made, model, tmp_path / "out")
    assert edits.edit_hash(read(tmp_path / "out" / "edit")) == edits.edit_hash(made.edit)
    backbone = load(model)
    pipe = pipeline(tmp_path / "out")
    denoiser = pipe.unet if model == "random-unet" else pipe.transformer
    name = "unet" if model == "random-unet" else "transformer"
    with edits.apply(backbone, made.edit):
        expected = {n: t.clone() for n, t in backbone.tensors().items() if n.startswith(f"{name}.")}
    found = {f"{name}.{n}": t for n, t in denoiser.state_dict().items()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], t) for n, t in expected.items())
    images = pipe("a photo of the cat", num_inference_steps=2, height=64, width=64, output_type="np").images
    assert images.shape == (1, 64, 64, 3)


def test_our_own_loader_takes_the_folder_as_a_model(tmp_path: Path):
    made = erase.erase("uce", "random-unet", ["cat"])
    erase.write(made, "random-unet", tmp_path / "out")
    backbone, base = load(tmp_path / "out"), random_unet()
    with edits.apply(base, made.edit):
        wrong = [n for n, t in base.tensors().items() if not torch.equal(t, backbone.tensors()[n])]
    assert wrong == []


def test_the_checkpoint_method_gives_the_edit_back(tmp_path: Path):
    made = erase.erase("uce", "random-unet", ["cat"])
    erase.write(made, "random-unet", tmp_path / "out")
    for fields in ({}, {"format": "diffusers"}):
        again = erase.erase("checkpoint", "random-unet", ["cat"], passed={"path": str(tmp_path / "out"), **fields})
        assert edits.edit_hash(again.edit) == edits.edit_hash(made.edit)


def change(backbone: Any) -> Edit:
    """Weights, low-rank changes, and a text encoder's tensor."""
    first, second = (p.name for p in backbone.projections()[:2])
    live = backbone.tensors()
    text = next(n for n in live if n.startswith("text_encoder.") and n.endswith("q_proj.weight"))
    up, down = torch.full((live[second].shape[0], 1), 1e-4), torch.ones(1, live[second].shape[1])
    return Edit(weights={first: live[first] * 1.5, text: live[text] * 1.1}, deltas={second: LowRank(up, down)})


def halved(folder: Path) -> None:
    """A model as hubs have them: half precision, a stated dtype, a variant's name, the old level of names."""
    for file in folder.glob("*/*.safetensors"):
        part = file.parent.name
        state = {n: t.half() if t.is_floating_point() else t for n, t in load_file(file).items()}
        if part == "text_encoder":
            state = {f"text_model.{n}": t for n, t in state.items()}
            config = json.loads((file.parent / "config.json").read_text())
            (file.parent / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
        file.unlink()
        save_file(state, file.with_name(f"{file.stem}.fp16.safetensors"), {"format": "pt"})


def test_half_precision_does_not_take_small_edits_back(tmp_path: Path):
    """Everything is written in float32, and loads in one dtype under plain names."""
    merged._built("random-unet").save_pretrained(tmp_path / "base")
    halved(tmp_path / "base")
    base = load(tmp_path / "base")
    edit = change(base)
    erase.write(erased(edit), str(tmp_path / "base"), tmp_path / "out")
    assert "float32, as edited" in (tmp_path / "out" / "README.md").read_text()
    pipe = pipeline(tmp_path / "out")
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float32}
    loaded = load(tmp_path / "out").tensors()
    with edits.apply(base, edit):
        assert [n for n, t in base.tensors().items() if not torch.equal(t, loaded[n])] == []
    assert pipe("a photo of the cat", num_inference_steps=1, output_type="np").images.shape[0] == 1


def test_a_model_in_several_files_stays_in_several(tmp_path: Path):
    built = merged._built("random-unet")
    built.save_pretrained(tmp_path / "base", max_shard_size="300KB")
    shards = sorted(p.name for p in (tmp_path / "base" / "unet").glob("*.safetensors"))
    assert len(shards) > 1
    edit = change(random_unet())
    erase.write(erased(edit), str(tmp_path / "base"), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out" / "unet").glob("*.safetensors")) == shards
    loaded, base = load(tmp_path / "out").tensors(), random_unet()
    with edits.apply(base, edit):
        assert [n for n, t in base.tensors().items() if not torch.equal(t, loaded[n])] == []


def test_what_is_not_edited_is_the_same_file_or_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    merged._built("random-unet").save_pretrained(tmp_path / "base")
    monkeypatch.setattr(merged, "_LINKED", 1)
    edit = Edit(weights={"unet.conv_in.bias": torch.ones(32)})
    erase.write(erased(edit), str(tmp_path / "base"), tmp_path / "out")
    file = "vae/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "out" / file).samefile(tmp_path / "base" / file)
    config = "vae/config.json"  # people edit these in place
    assert not (tmp_path / "out" / config).samefile(tmp_path / "base" / config)
    before = load_file(tmp_path / "base/unet/diffusion_pytorch_model.safetensors")
    assert not torch.equal(before["conv_in.bias"], torch.ones(32)), "the base model was written to"


def test_a_part_that_is_not_there_stays_away(tmp_path: Path):
    """A safety checker that the index names, and that only pickles hold, must not keep the folder from loading."""
    merged._built("random-unet").save_pretrained(tmp_path / "base")
    index = json.loads((tmp_path / "base" / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (tmp_path / "base" / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "base" / "safety_checker").mkdir()
    (tmp_path / "base" / "safety_checker" / "pytorch_model.bin").write_bytes(b"")
    erase.write(erased(change(random_unet())), str(tmp_path / "base"), tmp_path / "out")
    assert pipeline(tmp_path / "out").safety_checker is None


# --- all or nothing ---------------------------------------------------------------------------------------------------
def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "out").mkdir()
    with pytest.raises(BenchError, match="no weight file of random-unet holds unet.gone"):
        erase.write(erased(Edit(weights={"unet.gone": torch.ones(1)})), "random-unet", tmp_path / "out")

    def broken(*_: Any, **__: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(erase, "card", broken)
    with pytest.raises(KeyboardInterrupt):
        erase.write(erased(change(random_unet())), "random-unet", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and not any((tmp_path / "out").iterdir())


def test_nothing_is_overwritten(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("keep")
    result = CliRunner().invoke(
        cli.app, ["erase", "uce", "--model", "random-unet", "--concept", "cat", "--out", str(tmp_path)]
    )
    assert result.exit_code == 2 and "expected a new or empty folder" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# --- the card ---------------------------------------------------------------------------------------------------------
def test_the_card_says_what_was_done(tmp_path: Path):
    arguments = ["erase", "uce@2025", "--model", "random-unet", "--concept", "cat", "--set", "ridge=0.25"]
    shown = CliRunner().invoke(cli.app, [*arguments, "--out", str(tmp_path / "out")])
    assert shown.exit_code == 0 and "14 tensors changed" in shown.stdout, shown.output
    card = (tmp_path / "out" / "README.md").read_text()
    for part in (
        "# random-unet, cat erased by uce@2025",
        "**Embedded model**",
        "Never set its results beside published numbers",
        "cat (object)",
        "licence (Apache-2.0)",
        "arXiv:2308.14761",
        "| `ridge` | `0.25` |",
        "StableDiffusionPipeline.from_pretrained",
        "14 weight tensors, merged here",
    ):
        assert part in card, part
    assert "not the edited model" not in card


def test_what_is_to_be_kept_reaches_the_method_and_the_card(tmp_path: Path):
    """UCE preserves the names; the general prompts are those of its request."""
    arguments = ["erase", "uce", "--model", "random-unet", "--concept", "cat", "--keep", "dog", "--keep", "horse"]
    prompts = ["--general", "a photo of the sea", "--general", "*music*"]
    shown = CliRunner().invoke(cli.app, [*arguments, *prompts, "--out", str(tmp_path / "out")])
    assert shown.exit_code == 0, shown.output
    request = replace(ONE, keep=("dog", "horse"), general=("a photo of the sea", "*music*"))
    alone = erase.erase("uce", "random-unet", ["cat"], keep=request.keep, general=request.general)
    assert (alone.request.keep, alone.request.general) == (request.keep, request.general)
    assert read(tmp_path / "out" / "edit").notes["kept_prompts"] == 3, "the empty prompt and two names"
    assert edits.edit_hash(read(tmp_path / "out" / "edit")) == edits.edit_hash(alone.edit)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- **Concepts to keep**, as given to the method: dog; horse\n" in card
    assert "- **General prompts**, as given to the method: a photo of the sea; \\*music\\*\n" in card
    assert "to keep" not in erase.card(erased(Edit())), "nothing was given"


def test_fade_fg_takes_adjacent_concepts_from_what_is_kept():
    with pytest.raises(BadInput, match="name concepts to keep"):
        erase.erase("fade_fg", "random-unet", ["cat"])
    short = {"iterations": 1, "images": 1, "steps": 2}
    made = erase.erase("fade_fg", "random-unet", ["cat"], keep=["dog"], passed=short)
    assert (made.edit.notes["adjacent"], made.edit.notes["adjacent_from"]) == (["dog"], "keep")


@pytest.mark.parametrize(
    ("keep", "general", "message"),
    [
        (["dgo"], [], "did you mean 'dog'"),
        (["dog", "cat"], [], "--keep: expected concepts that are not erased, got cat"),
        (["dog", "dog"], [], "--keep: expected different concepts"),
        ([" "], [], "--keep: expected concepts, got an empty one"),
        ([], ["a sea", "a sea"], "--general: expected different prompts"),
        ([], [""], "--general: expected prompts, got an empty one"),
    ],
)
def test_what_cannot_be_kept_is_told(keep: list[str], general: list[str], message: str):
    with pytest.raises(BadInput, match=message):
        erase.erase("uce", "random-unet", ["cat"], keep=keep, general=general)


def test_full_size_models_keep_any_name_but_the_erased_ones():
    [cat] = erase.targets(["cat"], "paper")
    assert erase.kept(["a thing unheard of"], [cat], "paper") == ("a thing unheard of",)
    with pytest.raises(BadInput, match="not erased, got cat"):
        erase.kept(["Cat"], [cat], "paper")


def test_the_card_of_a_hub_s_model_names_its_licence_and_no_label():
    card = erase.card(erased(Edit(weights={"unet.x": torch.ones(1)}), "sd14"))
    assert 'base_model: "CompVis/stable-diffusion-v1-4"' in card and "CreativeML OpenRAIL-M" in card
    assert "Embedded model" not in card


def gates(backbone: Any) -> Gates:
    p = backbone.projections()[0]
    out, dim = p.weight.shape
    g = torch.Generator().manual_seed(0)
    wide = torch.randn(1, dim, 2, generator=g)
    change = LowRank(torch.ones(1, out, 1), torch.ones(1, 1, dim))
    return Gates(query=wide, key=wide, vector=wide[..., 0], changes={p.name: change})


@pytest.mark.parametrize("what", ["gates", "prompts", "output"])
def test_what_is_no_weight_is_beside_the_model_and_the_card_says_so(tmp_path: Path, what: str):
    base = random_unet()
    made = {
        "gates": Edit(gates=gates(base)),
        "prompts": Edit(prompts=PromptRule(words=("cat",))),
        "output": Edit(output="grey"),
    }[what]
    erase.write(erased(made), "random-unet", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "**The pipeline alone is not the edited model**" in card and "in `edit/`" in card
    assert edits.edit_hash(read(tmp_path / "out" / "edit")) == edits.edit_hash(made)
    own: dict[str, Tensor] = dict(load(tmp_path / "out").tensors())
    assert all(torch.equal(t, own[n]) for n, t in base.tensors().items())
    again = erase.erase("checkpoint", "random-unet", ["cat"], passed={"path": str(tmp_path / "out")})
    assert edits.edit_hash(again.edit) == edits.edit_hash(made)


# --- what is asked ----------------------------------------------------------------------------------------------------
def test_a_control_gets_the_edit_whose_norm_it_copies():
    assert (
        erase.erase("noise", "random-unet", ["cat"]).edit.weights.keys()
        == erase.erase("uce", "random-unet", ["cat"]).edit.weights.keys()
    )


def test_embedded_models_know_their_own_concepts_only():
    with pytest.raises(BadInput, match="did you mean 'cat'"):
        erase.targets(["catt"], "embedded")


def test_full_size_models_take_any_name():
    airplane, unheard = erase.targets(["airplane", "a thing unheard of"], "paper")
    assert airplane.synonyms and not unheard.synonyms


@pytest.mark.parametrize(
    ("given", "message"),
    [("ridge", "expected field=value"), ("ridg=1", "did you mean 'ridge'"), ("ridge=x", "uce: ridge: ")],
)
def test_a_field_that_cannot_be_set_is_told(tmp_path: Path, given: str, message: str):
    arguments = ["erase", "uce", "--model", "random-unet", "--concept", "cat", "--out", str(tmp_path / "o")]
    shown = CliRunner().invoke(cli.app, [*arguments, "--set", given])
    assert shown.exit_code == 2 and message in shown.stderr


def test_fields_are_json_or_else_text():
    assert cli._set(["lr=1e-4", "train=x", "words=[1]", "path=a=b", "flag=true", "n=null"]) == {
        "lr": 1e-4,
        "train": "x",
        "words": [1],
        "path": "a=b",
        "flag": True,
        "n": None,
    }


# --- from Python ------------------------------------------------------------------------------------------------------
def test_classes_are_in_the_package_by_name():
    classes = {getattr(methods, name) for name in methods.__all__}
    built_in = {registry.method_class(name) for name in registry._files("methods")}
    assert classes == built_in
    with pytest.raises(AttributeError, match="its methods are .*ESD"):
        _ = methods.Esd


def test_three_lines_of_python_edit_a_model():
    backbone = random_flux()
    edit = methods.UCE(ridge=0.1).edit(backbone, ONE)
    with edits.apply(backbone, edit):
        assert all(torch.equal(backbone.tensors()[n], t) for n, t in edit.weights.items())
