"""What others made: every format lands on the weights it was made from, and what does not fit is named."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmark import edits, gates
from benchmark.backbones.base import Backbone
from benchmark.backbones.random_models import random_flux, random_unet
from benchmark.errors import BadInput
from benchmark.interface import Edit, Gates, LowRank, PromptRule, Request, Target
from methods.checkpoint import Checkpoint

REQUEST = Request(erase=(Target(name="cat"),))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_unet()


def made(backbone: Backbone, path: Path, **fields: Any) -> Edit:
    return edits.make(Checkpoint(path=str(path), **fields), backbone, REQUEST)


def unet(backbone: Backbone) -> dict[str, Tensor]:
    """The U-Net's tensors under diffusers' names."""
    live = backbone.tensors()
    return {
        n.removeprefix("unet."): t.clone(memory_format=torch.contiguous_format)
        for n, t in live.items()
        if n.startswith("unet.")
    }


def other(state: dict[str, Tensor], names: str = "") -> dict[str, Tensor]:
    """The same with the tensors that hold `names` made a little larger."""
    return {n: t * 1.01 + 0.001 if names in n else t for n, t in state.items()}


KV = "attn2.to_k"


# --- whole tensors ----------------------------------------------------------------------------------------------------
def test_a_release_of_some_tensors_is_exactly_these(backbone: Backbone, tmp_path: Path):
    """ESD's and UCE's files: diffusers names, with or without the component."""
    new = {n: t for n, t in other(unet(backbone)).items() if KV in n}
    for number, prefix in enumerate(("", "unet.")):
        save_file({prefix + n: t for n, t in new.items()}, tmp_path / f"{number}.safetensors")
        edit = made(backbone, tmp_path / f"{number}.safetensors")
        assert edit.notes["format"] == "partial"
        assert edit.weights.keys() == {f"unet.{n}" for n in new}
        assert all(torch.equal(edit.weights[f"unet.{n}"], t) for n, t in new.items())


def test_of_a_whole_model_the_change_alone_is_kept(backbone: Backbone, tmp_path: Path):
    save_file(other(unet(backbone), KV), tmp_path / "u.safetensors")
    edit = made(backbone, tmp_path / "u.safetensors", format="unet")
    assert edit.weights.keys() == {f"unet.{n}" for n in unet(backbone) if KV in n}


def test_rounding_to_half_precision_is_no_change(backbone: Backbone, tmp_path: Path):
    save_file({n: t.bfloat16() for n, t in other(unet(backbone), KV).items()}, tmp_path / "u.safetensors")
    edit = made(backbone, tmp_path / "u.safetensors")
    assert edit.weights.keys() == {f"unet.{n}" for n in unet(backbone) if KV in n}
    assert all(t.dtype == backbone.dtype for t in edit.weights.values())
    assert edit.notes["dtypes"] == ["bfloat16"]


def test_a_flow_transformer_has_its_places_too(tmp_path: Path):
    flux = random_flux()
    new = {"context_embedder.weight": flux.tensors()["transformer.context_embedder.weight"] * 1.1}
    save_file(new, tmp_path / "t.safetensors")
    assert list(made(flux, tmp_path / "t.safetensors").weights) == ["transformer.context_embedder.weight"]


def pipeline(backbone: Any, folder: Path) -> None:
    """A diffusers folder with this backbone's weights, by diffusers itself."""
    backbone._unet.save_pretrained(folder / "unet")
    backbone._text_encoder.save_pretrained(folder / "text_encoder")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')


def test_a_diffusers_folder_gives_denoiser_and_text_encoder(backbone: Backbone, tmp_path: Path):
    edited = random_unet()
    with torch.no_grad():
        names = ["unet.conv_in.weight", next(n for n in edited.tensors() if n.startswith("text_encoder."))]
        for name in names:
            edited.tensors()[name].mul_(1.5)
    pipeline(edited, tmp_path)
    whole, alone = made(backbone, tmp_path), made(backbone, tmp_path / "unet", format="diffusers")
    assert whole.weights.keys() == set(names) and alone.weights.keys() == {"unet.conv_in.weight"}
    assert all(torch.equal(whole.weights[n], edited.tensors()[n]) for n in names)


def test_a_folder_that_lacks_a_tensor_is_refused(backbone: Backbone, tmp_path: Path):
    state = other(unet(backbone), KV)
    del state["conv_in.weight"], state["conv_out.bias"]
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(BadInput, match=r"2 tensors too few.*lacks: unet.conv_in.weight, unet.conv_out.bias"):
        made(backbone, tmp_path, format="diffusers")


# --- CompVis ----------------------------------------------------------------------------------------------------------
def compvis_name(name: str) -> str:
    """CompVis's name of a tensor of the tiny U-Net: two levels of one block, attention in both, by the architecture."""
    inside = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    ends = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    }
    module, _, parameter = name.rpartition(".")
    if module in ends:
        return f"{ends[module]}.{parameter}"
    side, rest = re.match(r"(down_blocks\.\d|up_blocks\.\d|mid_block)\.(.*)", name).groups()  # type: ignore[union-attr]
    what, index, deep = re.match(r"(resnets|attentions)\.(\d)\.(.*)", rest).groups()  # type: ignore[union-attr]
    kind = 0 if what == "resnets" else 1
    if side == "mid_block":
        place = f"middle_block.{1 if kind else 2 * int(index)}"
    else:
        level = int(side[-1])
        block = {"d": [1, 3][level], "u": 2 * level + int(index)}[side[0]]
        place = f"{'input' if side[0] == 'd' else 'output'}_blocks.{block}.{kind}"
    if not kind:
        head, _, tail = deep.partition(".")
        deep = f"{inside[head]}.{tail}"
    return f"{place}.{deep}"


def compvis(backbone: Backbone, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A whole checkpoint as the first Stable Diffusion scripts saved it."""
    text = {n.removeprefix("text_encoder."): t for n, t in backbone.tensors().items() if n.startswith("text_encoder.")}
    return {
        **{f"model.diffusion_model.{compvis_name(n)}": t for n, t in state.items()},
        **{f"cond_stage_model.transformer.text_model.{n}": t.clone() for n, t in text.items()},
        "first_stage_model.encoder.conv_in.weight": torch.ones(3),
        "betas": torch.ones(4),
        "sqrt_recipm1_alphas_cumprod": torch.ones(4),
        "model_ema.decay": torch.tensor(0.5),
    }


def test_a_compvis_checkpoint_lands_where_its_tensors_came_from(backbone: Backbone, tmp_path: Path):
    new = other(unet(backbone))
    content = {"state_dict": compvis(backbone, new), "global_step": 7}
    torch.save(content, tmp_path / "model.ckpt")
    edit = made(backbone, tmp_path / "model.ckpt", allow_pickle=True)
    assert edit.notes["format"] == "compvis" and edit.notes["tensors_set_aside"] == 4
    assert edit.weights.keys() == {f"unet.{n}" for n in new}
    assert all(torch.equal(edit.weights[f"unet.{n}"], t) for n, t in new.items())


@pytest.mark.parametrize("extra", ["model.diffusion_model.new_block.0.weight", "control_model.input.weight"])
def test_what_the_conversion_drops_is_named(backbone: Backbone, tmp_path: Path, extra: str):
    torch.save({**compvis(backbone, other(unet(backbone))), extra: torch.ones(2)}, tmp_path / "model.pt")
    with pytest.raises(BadInput, match=f"1 tensors that random-unet has no place for: {re.escape(extra)}"):
        made(backbone, tmp_path / "model.pt", allow_pickle=True)


# --- low-rank ---------------------------------------------------------------------------------------------------------
LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
OUT = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
CONV = "mid_block.resnets.0.conv1"
TEXT = "encoder.layers.0.self_attn.q_proj"


def factors(backbone: Backbone, name: str, rank: int = 2) -> tuple[Tensor, Tensor]:
    """Up and down of a layer in the shapes that files have."""
    weight = backbone.tensors()[f"{name}.weight"]
    generator = torch.Generator().manual_seed(len(name))
    up, down = (
        torch.randn(shape, generator=generator) * 0.1
        for shape in ((weight.shape[0], rank, *[1] * (weight.ndim - 2)), (rank, *weight.shape[1:]))
    )
    return up, down


def product(up: Tensor, down: Tensor, like: Tensor, scale: float) -> Tensor:
    return (scale * up.double().flatten(1) @ down.double().flatten(1)).view_as(like)


def spelling(style: str, name: str) -> tuple[str, str]:
    """Names of down and up in one of the ways in which files are written; `name` with its component."""
    component, _, rest = name.partition(".")
    short = {"unet": "lora_unet", "text_encoder": "lora_te"}[component]
    old = rest.replace("encoder.layers", "text_model.encoder.layers") if component != "unet" else rest
    if style == "kohya":
        base = f"{short}_{old}".replace(".", "_")
        return f"{base}.lora_down.weight", f"{base}.lora_up.weight"
    if style == "peft":
        return f"base_model.model.{rest}.lora_A.weight", f"base_model.model.{rest}.lora_B.weight"
    if style == "processor":
        place, _, layer = rest.removesuffix(".0").rpartition(".")
        base = f"{component}.{place}.processor.{layer}_lora"
        return f"{base}.down.weight", f"{base}.up.weight"
    return f"{component}.{old}.lora_A.weight", f"{component}.{old}.lora_B.weight"


CASES = {
    "diffusers": (f"unet.{LINEAR}", f"unet.{CONV}", f"text_encoder.{TEXT}"),
    "kohya": (f"unet.{LINEAR}", f"unet.{OUT}", f"unet.{CONV}", f"text_encoder.{TEXT}"),
    "peft": (f"unet.{LINEAR}", f"unet.{CONV}"),
    "processor": (f"unet.{LINEAR}", f"unet.{OUT}"),
}


@pytest.mark.parametrize(
    ("style", "alpha"),
    # attention processors were saved without alphas
    [(style, alpha) for style in CASES for alpha in (None, 4.0) if alpha is None or style != "processor"],
)
def test_low_rank_files_are_merged_with_their_scale(
    backbone: Backbone, tmp_path: Path, style: str, alpha: float | None
):
    """W + strength · α/r · up · down, against float64; α is the rank where a file has none."""
    state, expected = {}, {}
    for name in CASES[style]:
        up, down = factors(backbone, name)
        down_name, up_name = spelling(style, name)
        state |= {down_name: down, up_name: up}
        if alpha is not None:
            state[re.split(r"[._]lora[._](?!unet|te)", down_name)[0] + ".alpha"] = torch.tensor(alpha)
        live = backbone.tensors()[f"{name}.weight"]
        expected[f"{name}.weight"] = live.double() + product(up, down, live, 0.5 * (alpha or 2.0) / 2)
    save_file(state, tmp_path / "l.safetensors")
    edit = made(backbone, tmp_path / "l.safetensors", scale=0.5)
    assert edit.deltas.keys() == expected.keys() and edit.notes["format"] == "lora"
    with edits.apply(backbone, edit):
        for name, value in expected.items():
            torch.testing.assert_close(backbone.tensors()[name].double(), value, rtol=1e-5, atol=1e-7)


def test_the_scale_of_an_adapter_is_in_its_configuration(backbone: Backbone, tmp_path: Path):
    up, down = factors(backbone, f"unet.{LINEAR}")
    names = spelling("peft", f"unet.{LINEAR}")
    save_file(dict(zip(names, (down, up), strict=True)), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 6, "use_dora": False}))
    delta = made(backbone, tmp_path).deltas[f"unet.{LINEAR}.weight"]
    torch.testing.assert_close(delta.up @ delta.down, 3 * up @ down)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 6, "use_dora": True}))
    with pytest.raises(BadInput, match="plain low-rank factors, and the configuration sets use_dora"):
        made(backbone, tmp_path)


def test_a_file_of_diffusers_may_hold_its_configuration(backbone: Backbone, tmp_path: Path):
    up, down = factors(backbone, f"unet.{LINEAR}")
    names = spelling("diffusers", f"unet.{LINEAR}")
    config = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 4, "unet.r": 2})}
    save_file(dict(zip(names, (down, up), strict=True)), tmp_path / "l.safetensors", config)
    delta = made(backbone, tmp_path / "l.safetensors").deltas[f"unet.{LINEAR}.weight"]
    torch.testing.assert_close(delta.up @ delta.down, 2 * up @ down)


def test_half_a_layer_and_other_kinds_of_factor_are_left_over(backbone: Backbone, tmp_path: Path):
    up, down = factors(backbone, f"unet.{LINEAR}")
    down_name, up_name = spelling("kohya", f"unet.{LINEAR}")
    dora = down_name.replace("lora_down.weight", "dora_scale")
    save_file({down_name: down, up_name: up, dora: torch.ones(1)}, tmp_path / "d.safetensors")
    with pytest.raises(BadInput, match=re.escape(dora)):
        made(backbone, tmp_path / "d.safetensors", format="lora")
    save_file({down_name: down}, tmp_path / "h.safetensors")
    with pytest.raises(BadInput, match="no place for: " + re.escape(down_name)):
        made(backbone, tmp_path / "h.safetensors")


def test_spm_is_merged_only_when_asked_for(backbone: Backbone, tmp_path: Path):
    up, down = factors(backbone, f"unet.{LINEAR}", rank=1)
    down_name, up_name = spelling("kohya", f"unet.{LINEAR}")
    alpha = down_name.replace("lora_down.weight", "alpha")
    state = {down_name: down, up_name: up, alpha: torch.tensor(1.0)}
    save_file(state, tmp_path / "s.safetensors", {"prompts": "cat", "rank": "1", "alpha": "1"})
    with pytest.raises(BadInput, match="looks like SPM.*set format=spm"):
        made(backbone, tmp_path / "s.safetensors")
    edit = made(backbone, tmp_path / "s.safetensors", format="spm")
    delta = edit.deltas[f"unet.{LINEAR}.weight"]
    torch.testing.assert_close(delta.up @ delta.down, up @ down)
    assert edit.notes["prompts"] == "cat" and "every prompt" in edit.notes["approximation"]


# --- CPE --------------------------------------------------------------------------------------------------------------
def released_gates(backbone: Backbone, seed: int) -> dict[str, Tensor]:
    """A file of CPE's release: `(1, dim, rank)` down, `(1, rank, out)` up, and the attention gate."""
    g = torch.Generator().manual_seed(seed)
    dim, state = backbone.projections()[0].weight.shape[1], {}
    for p in backbone.projections():
        base = "lora_unet_" + p.name.removeprefix("unet.").removesuffix(".weight").replace(".", "_")
        state[f"{base}.lora_down.weight"] = torch.randn(1, dim, 2, generator=g)
        state[f"{base}.lora_up.weight"] = torch.randn(1, 2, p.weight.shape[0], generator=g)
        state[f"{base}.alpha"] = torch.tensor(1.0)
    inside = "attention_gate.encoder_layer.slf_attn."
    for name in ("w_qs", "w_ks"):
        state[f"{inside}attention_module1.{name}.weight"] = torch.randn(1, dim, 4, generator=g)
    return state | {f"{inside}gate.scaler.weight": torch.randn(1, dim, 1, generator=g)}


def released_output(states: list[dict[str, Tensor]], base: str, tokens: Tensor) -> Tensor:
    """What CPE's release adds to one projection of `tokens` `(length, dim)`, written out token by token in float64."""
    inside, out = "attention_gate.encoder_layer.slf_attn.", []
    best = []
    for s in (dict((n, t.double()) for n, t in state.items()) for state in states):
        q = tokens @ s[f"{inside}attention_module1.w_qs.weight"][0]
        attended = (q @ q.T).softmax(-1) @ tokens  # its keys are made with W_q
        gate = (attended @ s[f"{inside}gate.scaler.weight"][0]).sigmoid()
        down, up = s[f"{base}.lora_down.weight"][0], s[f"{base}.lora_up.weight"][0]
        best.append(gate[:, 0])
        out.append(gate * attended @ down @ up / 2)  # alpha 1, rank 2
    winner = torch.stack(best).argmax(0)
    return torch.stack([out[int(w)][t] for t, w in enumerate(winner)])


@pytest.mark.parametrize("concepts", [1, 2])
def test_gates_of_cpe_act_as_its_release_writes_them(backbone: Backbone, tmp_path: Path, concepts: int):
    states = [released_gates(backbone, seed) for seed in range(concepts)]
    for number, state in enumerate(states):
        folder = tmp_path / f"concept{number}"
        folder.mkdir()
        save_file(state, folder / "cpe_last.safetensors", {"prompts": f"c{number}", "rank": "2", "alpha": "1.0"})
        save_file({"x": torch.ones(1)}, folder / "adv_prompts_last.safetensors")
    edit = made(backbone, tmp_path if concepts > 1 else tmp_path / "concept0" / "cpe_last.safetensors")
    assert edit.gates is not None and edit.notes["format"] == "cpe"
    assert edit.notes["prompts"] == ",".join(f"c{n}" for n in range(concepts))
    projection = backbone.projections()[1]
    base = "lora_unet_" + projection.name.removeprefix("unet.").removesuffix(".weight").replace(".", "_")
    tokens = backbone.embed(["a photo of the cat"]).tokens
    found = gates.residual(gates.gated(tokens, edit.gates), edit.gates.changes[projection.name])
    torch.testing.assert_close(
        found[0].double(), released_output(states, base, tokens[0].double()), rtol=1e-4, atol=1e-5
    )


# --- this harness's own -----------------------------------------------------------------------------------------------
def own(backbone: Backbone) -> Edit:
    first, second, third = (p.name for p in backbone.projections()[:3])
    live = backbone.tensors()
    dim = live[first].shape[1]
    g = torch.Generator().manual_seed(0)
    return Edit(
        weights={first: live[first] * 2},
        deltas={second: LowRank(torch.ones(live[second].shape[0], 1), torch.ones(1, dim))},
        gates=Gates(
            query=torch.randn(1, dim, 2, generator=g),
            key=torch.randn(1, dim, 2, generator=g),
            vector=torch.randn(1, dim, generator=g),
            changes={third: LowRank(torch.ones(1, live[third].shape[0], 1), torch.ones(1, 1, dim))},
        ),
        prompts=PromptRule(words=("cat",), replacement="dog"),
        notes={"why": "test"},
    )


@pytest.mark.parametrize("place", ["", "edit"])
def test_own_edits_come_back_whole(backbone: Backbone, tmp_path: Path, place: str):
    edit = own(backbone)
    (tmp_path / place).mkdir(exist_ok=True)
    for name, content in edits.serialise(edit).items():
        (tmp_path / place / name).write_bytes(content)
    assert edits.edit_hash(made(backbone, tmp_path)) == edits.edit_hash(edit)


def test_a_damaged_edit_is_told(backbone: Backbone, tmp_path: Path):
    files = edits.serialise(own(backbone))
    (tmp_path / "edit.safetensors").write_bytes(files["edit.safetensors"])
    document = json.loads(files["edit.json"])
    for broken, message in (
        ({**document, "weights": ["unet.gone"]}, "names unet.gone, which edit.safetensors does not hold"),
        ({**document, "schema": 9}, "expected edit.json of schema 1"),
    ):
        (tmp_path / "edit.json").write_text(json.dumps(broken))
        with pytest.raises(BadInput, match=message):
            made(backbone, tmp_path)


# --- bad input --------------------------------------------------------------------------------------------------------
class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_refused_unless_allowed_and_its_code_never_runs(backbone: Backbone, tmp_path: Path):
    torch.save({"conv_in.weight": torch.ones(1), "x": Bomb(tmp_path / "pwned")}, tmp_path / "bad.pt")
    with pytest.raises(BadInput, match="is a pickle; set allow_pickle=true"):
        made(backbone, tmp_path / "bad.pt")
    for protocol in (2, 4):
        (tmp_path / "old.ckpt").write_bytes(pickle.dumps(Bomb(tmp_path / "pwned"), protocol=protocol))
        for name in ("bad.pt", "old.ckpt"):
            with pytest.raises(BadInput, match="code in it is never run"):
                made(backbone, tmp_path / name, allow_pickle=True)
    assert not (tmp_path / "pwned").exists()
    pickle.loads((tmp_path / "old.ckpt").read_bytes())  # the test can fail: plain unpickling does run it
    assert (tmp_path / "pwned").exists()


def test_a_good_pickle_is_read_when_allowed(backbone: Backbone, tmp_path: Path):
    """`{module: state dict}`, as ESD's script for diffusers saves it."""
    module, weight = LINEAR, backbone.tensors()[f"unet.{LINEAR}.weight"] * 2
    torch.save({f"unet.{module}": {"weight": weight}}, tmp_path / "esd.pt")
    edit = made(backbone, tmp_path / "esd.pt", allow_pickle=True)
    assert torch.equal(edit.weights[f"unet.{module}.weight"], weight)


def test_left_over_tensors_are_listed_and_may_be_allowed(backbone: Backbone, tmp_path: Path):
    state = {f"{LINEAR}.weight": backbone.tensors()[f"unet.{LINEAR}.weight"] * 2}
    strays = {f"block.{n}.lora_layer.down.weight": torch.ones(1) for n in range(10)}
    save_file({**state, **strays}, tmp_path / "m.safetensors")
    with pytest.raises(BadInput, match=r"10 tensors that random-unet has no place for: block\.0.* and 2 more"):
        made(backbone, tmp_path / "m.safetensors")
    edit = made(backbone, tmp_path / "m.safetensors", ignore="nothing, *.lora_layer.*")
    assert len(edit.weights) == 1 and edit.notes["tensors_ignored"] == 10


def test_another_shape_is_named(backbone: Backbone, tmp_path: Path):
    save_file({f"{LINEAR}.weight": torch.ones(3, 5)}, tmp_path / "s.safetensors")
    with pytest.raises(BadInput, match=r"unet\.down_blocks.*to_k\.weight should be \(32, 128\).*got \(3, 5\)"):
        made(backbone, tmp_path / "s.safetensors")
    down_name, up_name = spelling("kohya", f"unet.{LINEAR}")
    save_file({down_name: torch.ones(2, 7), up_name: torch.ones(32, 2)}, tmp_path / "l.safetensors")
    with pytest.raises(BadInput, match=r"down of .* should be \(2, 128\).*got \(2, 7\)"):
        made(backbone, tmp_path / "l.safetensors")


def test_what_cannot_be_used_is_told_in_one_line(backbone: Backbone, tmp_path: Path):
    (tmp_path / "x.safetensors").write_bytes(b"not one")
    (tmp_path / "x.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.pt").write_bytes(b"")
    torch.save([1], tmp_path / "list.pt")
    save_file({f"{LINEAR}.weight": torch.ones(32, 128)}, tmp_path / "good.safetensors")
    for name, fields, message in (
        ("x.safetensors", {}, "cannot be read as safetensors"),
        ("x.txt", {}, "expected .safetensors, or"),
        ("empty", {}, "no weights in"),
        ("x.pt", {"allow_pickle": True}, "cannot be read as tensors alone"),
        ("list.pt", {"allow_pickle": True}, "expected named tensors.*found list"),
        ("good.safetensors", {"scale": 2.0}, "scale is the strength of low-rank factors"),
        ("good.safetensors", {"format": "edit"}, "expected edit.safetensors and edit.json"),
        ("good.safetensors", {"format": "cpe"}, "expected gates of CPE"),
    ):
        with pytest.raises(BadInput, match=message):
            made(backbone, tmp_path / name, **fields)
    with pytest.raises(BadInput, match="path must be given"):
        edits.make(Checkpoint(), backbone, REQUEST)
    with pytest.raises(BadInput, match="there is no .*gone"):
        Checkpoint(path=str(tmp_path / "gone"))
    with pytest.raises(BadInput, match="unknown format"):
        Checkpoint(format="kohya")  # type: ignore[arg-type]


# --- identity ---------------------------------------------------------------------------------------------------------
def test_the_content_is_part_of_the_fields(tmp_path: Path):
    """Another file under the same name is another edit; planning must see that without loading it."""
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"one")
    first = Checkpoint(path=str(file))
    assert Checkpoint(path=str(file), sha256=first.sha256) == first and len(first.sha256) == 64
    file.write_bytes(b"three")
    assert Checkpoint(path=str(file)).sha256 != first.sha256
    with pytest.raises(BadInput, match="should have sha256 "):
        Checkpoint(path=str(file), sha256=first.sha256)
    folder = Checkpoint(path=str(tmp_path)).sha256
    file.rename(tmp_path / "b.safetensors")
    assert Checkpoint(path=str(tmp_path)).sha256 != folder


def test_several_concepts_get_the_file_once(backbone: Backbone, tmp_path: Path):
    """Low-rank factors that were added for every concept of a request would be added twice."""
    up, down = factors(backbone, f"unet.{LINEAR}")
    save_file(dict(zip(spelling("diffusers", f"unet.{LINEAR}"), (down, up), strict=True)), tmp_path / "l.safetensors")
    two = Request(erase=(Target(name="cat"), Target(name="dog")))
    method = Checkpoint(path=str(tmp_path / "l.safetensors"))
    one_by_one, at_once = (edits.make(method, backbone, two, s) for s in ("sequential", "joint"))
    assert edits.edit_hash(one_by_one) == edits.edit_hash(at_once)
