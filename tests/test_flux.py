"""The flow family beyond what every backbone keeps: against diffusers' own pipeline, attention, memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from torch import Tensor, nn

from benchmark.backbones import placement
from benchmark.backbones.flux import FluxBackbone
from benchmark.backbones.random_models import flux_components, random_flux, random_unet
from benchmark.errors import BadInput

PROMPTS = ["a photo of the cat", "an oil painting of mira talvane"]


def pair(dev: bool, size: tuple[int, int] = (64, 96), **options: Any) -> tuple[Any, FluxBackbone]:
    """Diffusers' pipeline and ours of the same random parts, as FLUX.1-dev or as FLUX.1-schnell."""
    parts = flux_components(guidance_embeds=dev)
    if not dev:  # its schedule is not shifted
        parts["scheduler"] = FlowMatchEulerDiscreteScheduler(shift=1.0)
    backbone = FluxBackbone("tiny", size=size, **parts | {"scheduler": parts["scheduler"].config}, **options)
    pipe = FluxPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe, backbone


def levels(images: Tensor) -> Tensor:
    """As 8-bit pixels."""
    return (images * 255).round()


# --- velocity, noise, clean latent ------------------------------------------------------------------------------------
@pytest.mark.parametrize("time", [1.0, 137.0, 500.0, 999.0, 1000.0])
def test_velocity_noise_and_clean_latent_are_one_thing_in_three_forms(time: float) -> None:
    """x_t = (1 − t) x₀ + t ε and v = ε − x₀, so x₀ = x_t − t v and ε = x_t + (1 − t) v."""
    model, t = random_flux(), torch.tensor([time])
    clean, noise = model.noise([1]), model.noise([2])
    x, v, s = model.noisy(clean, noise, t), noise - clean, time / 1000
    torch.testing.assert_close(x.double(), (1 - s) * clean.double() + s * noise.double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(model.clean(x, t, v), clean, atol=2e-6, rtol=0)
    torch.testing.assert_close(x + (1 - s) * v, noise, atol=2e-6, rtol=0)
    torch.testing.assert_close((x - model.clean(x, t, v)) / s, v, atol=3e-6 / s, rtol=0)


def test_distances_of_velocities_and_of_what_noise_they_imply_differ_by_time_alone() -> None:
    """So losses on ε carry over: at one (x_t, t), ε − ε' = (1 − t)(v − v'), and x₀ − x₀' = −t (v − v')."""
    model, t = random_flux(), torch.tensor([300.0])
    x, text = model.noise([1]), model.embed(PROMPTS)
    with torch.no_grad():
        v, other = (model.predict(x, t, text[[i]]).double() for i in (0, 1))
    eps = [x.double() + 0.7 * each for each in (v, other)]
    torch.testing.assert_close((eps[0] - eps[1]).square().mean(), 0.49 * (v - other).square().mean())
    clean = [model.clean(x.double(), t, each) for each in (v, other)]
    torch.testing.assert_close(
        (clean[0] - clean[1]).square().mean(), 0.09 * (v - other).square().mean(), rtol=1e-6, atol=0
    )


# --- against diffusers ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(64, 64), (64, 96), (96, 32)])
def test_packing_is_diffusers_own(size: tuple[int, int]) -> None:
    _, backbone = pair(True, size)
    h, w = size[0] // 8, size[1] // 8
    z = torch.randn(2, 16, h, w, generator=torch.Generator().manual_seed(0))
    packed = backbone._pack(z)
    assert torch.equal(packed, FluxPipeline._pack_latents(z, 2, 16, h, w))
    assert torch.equal(backbone._unpack(packed), FluxPipeline._unpack_latents(packed, *size, 8))
    assert torch.equal(backbone._unpack(packed), z)
    ids = FluxPipeline._prepare_latent_image_ids(2, h // 2, w // 2, "cpu", torch.float32)
    assert torch.equal(backbone._image_positions(torch.float32), ids)


@pytest.mark.parametrize("dev", [True, False], ids=["dev", "schnell"])
@pytest.mark.parametrize("true_cfg", [1.0, 3.0])
@pytest.mark.parametrize("embedded", [1.0, 3.5])
def test_images_are_the_pipelines_within_one_level(dev: bool, true_cfg: float, embedded: float) -> None:
    """Guidance as a number that is embedded and true classifier-free guidance are two things; both are as there."""
    pipe, backbone = pair(dev)
    expected = pipe(
        PROMPTS,
        negative_prompt=["", ""] if true_cfg > 1 else None,
        true_cfg_scale=true_cfg,
        guidance_scale=embedded,
        height=64,
        width=96,
        num_inference_steps=5,
        max_sequence_length=24,
        generator=[torch.Generator().manual_seed(s) for s in (3, 4)],
        output_type="pt",
    ).images
    model = backbone.at_guidance(embedded)
    text, empty = model.embed(PROMPTS), model.embed([""]).expand(2)
    made = model.decode(model.trajectory(model.noise([3, 4]), text, empty, steps=5, guidance=true_cfg))
    off = (levels(made) - levels(expected)).abs()
    assert off.max() <= 1 and (off > 0).float().mean() < 1e-3


def test_a_view_at_another_guidance_leaves_the_model_at_its_own() -> None:
    model = random_flux(guidance_embeds=True)
    x, t, text = model.noise([1]), model.timesteps(4)[1], model.embed(["cat"])
    with torch.no_grad():
        own, other = model.predict(x, t, text), model.at_guidance(1.0).predict(x, t, text)
        assert not torch.equal(own, other) and torch.equal(model.predict(x, t, text), own)
    assert model.at_guidance(model.guidance) is model and model.guidance == 3.5
    for plain in (random_flux(), random_unet()):  # nothing is embedded there
        assert plain.at_guidance(1.0) is plain


# --- attention --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text_rows", [False, True])
def test_attention_maps_are_shares_of_a_joint_softmax_and_leave_the_prediction(text_rows: bool) -> None:
    model = random_flux()
    x, t, text = model.noise([1, 2]), model.timesteps(4)[1], model.embed(["cat", "a dog"])
    with torch.no_grad():
        plain = model.predict(x, t, text)
        with model.attention_maps(text_rows=text_rows) as maps:
            recorded = model.predict(x, t, text)
        torch.testing.assert_close(recorded, plain, atol=1e-5, rtol=1e-5)
        assert torch.equal(model.predict(x, t, text), plain)  # the processors are back
    length, pixels = text.tokens.shape[1], model.latent_shape[0]
    assert [m.shape for m in maps] == [(2, 2, pixels + (length if text_rows else 0), length)] * 2
    for layer in maps:
        shares = layer.sum(-1)
        assert layer.min() > 0 and shares.min() > 0 and shares.max() < 1
    assert model.attention_layers() == [
        "transformer.transformer_blocks.0.attn",
        "transformer.single_transformer_blocks.0.attn",
    ]


def test_a_map_is_the_attention_computed_by_hand() -> None:
    """Of the first block, in float64, from what the block itself is given."""
    model = random_flux()
    block, seen = model._transformer.transformer_blocks[0], {}
    handle = block.attn.register_forward_hook(lambda m, a, k, out: seen.update(k), with_kwargs=True)
    with torch.no_grad(), model.attention_maps([model.attention_layers()[0]]) as maps:
        model.predict(model.noise([1]), model.timesteps(4)[1], model.embed(["cat"]))
    handle.remove()

    def rotated(h: Tensor) -> Tensor:
        cos, sin = (part.double() for part in seen["image_rotary_emb"])
        a, b = h.unflatten(-1, (-1, 2)).unbind(-1)
        return h * cos[:, None] + torch.stack([-b, a], -1).flatten(-2) * sin[:, None]

    def heads(linear: nn.Linear, norm: Any, h: Tensor) -> Tensor:
        out = (h.double() @ linear.weight.double().T + linear.bias.double()).unflatten(-1, (2, 16))
        return out / (out.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight.double()

    attn, image, words = block.attn, seen["hidden_states"], seen["encoder_hidden_states"]
    q = rotated(torch.cat([heads(attn.add_q_proj, attn.norm_added_q, words), heads(attn.to_q, attn.norm_q, image)], 1))
    k = rotated(torch.cat([heads(attn.add_k_proj, attn.norm_added_k, words), heads(attn.to_k, attn.norm_k, image)], 1))
    full = (torch.einsum("bqhd,bkhd->bhqk", q, k) / 4).softmax(-1)
    length = words.shape[1]
    torch.testing.assert_close(maps[0].double(), full[:, :, length:, :length], atol=1e-6, rtol=1e-5)


def test_attention_layers_that_are_not_there_are_refused() -> None:
    flux, unet = random_flux(), random_unet()
    with pytest.raises(BadInput, match="unknown attention layer"), flux.attention_maps(["transformer.x"]):
        pass
    with pytest.raises(BadInput, match="asks nothing"), unet.attention_maps(text_rows=True):
        pass
    first = unet.attention_layers()[0]
    with torch.no_grad(), unet.attention_maps([first]) as maps:
        unet.predict(unet.noise([1]), unet.timesteps(4)[1], unet.embed(["cat"]))
    assert first.endswith(".attn2") and len(maps) == 1


# --- memory -----------------------------------------------------------------------------------------------------------
def gradients(model: FluxBackbone, *, late: bool) -> dict[str, Tensor]:
    """Of a loss by all attention weights, which stand in for the model's own; `late`: after they have gone again."""
    names = [n for la in model.layers() if ".attn." in la.name for n in la.parameters]
    own = model.tensors()
    leaves = {n: (own[n] * 1.1).detach().requires_grad_() for n in names}
    x, t, text = model.noise([1]), model.timesteps(4)[1], model.embed(["cat"])
    with model.substituted({n: leaf * 1.0 for n, leaf in leaves.items()}):
        loss = model.predict(x, t, text).square().mean()
        if not late:
            loss.backward()
    if late:
        loss.backward()
    return {n: leaf.grad for n, leaf in leaves.items() if leaf.grad is not None}


@pytest.mark.parametrize("late", [False, True])
def test_checkpointing_changes_no_bit_of_a_gradient(late: bool) -> None:
    """Also where the way back begins after `substituted` has ended: blocks are computed again with its weights."""
    _, plain = pair(False, (64, 64))
    expected = gradients(plain, late=late)
    _, model = pair(False, (64, 64), checkpointing=True)
    found = gradients(model, late=late)
    assert found.keys() == expected.keys() and len(found) == 28
    assert all(torch.equal(found[n], expected[n]) for n in expected)


def test_checkpointing_keeps_fewer_activations() -> None:
    def kept(model: FluxBackbone) -> int:
        sizes: list[int] = []
        leaf = model.projections()[0]
        given = {leaf.name: leaf.weight.detach().clone().requires_grad_()}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            with model.substituted(given):
                model.predict(model.noise([1]), model.timesteps(4)[1], model.embed(["cat"]))
        return sum(sizes)

    assert kept(pair(False, checkpointing=True)[1]) < 0.5 * kept(pair(False)[1])


def test_attention_is_recorded_once_where_activations_are_computed_again() -> None:
    _, model = pair(False, (64, 64), checkpointing=True)
    p = model.projections()[0]
    leaf = p.weight.detach().clone().requires_grad_()
    with model.substituted({p.name: leaf}), model.attention_maps() as maps:
        model.predict(model.noise([1]), model.timesteps(4)[1], model.embed(["cat"]))
        torch.stack([m.square().sum() for m in maps]).sum().backward()
    assert len(maps) == 2 and leaf.grad is not None and model._transformer.gradient_checkpointing


class Noted(nn.Module):
    """Notes where its weight is while it computes, and where its neighbours' are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2), requires_grad=False)
        self.others: list[Noted] = []
        self.seen: list[tuple[str, list[str]]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((self.weight.device.type, [other.weight.device.type for other in self.others]))
        return x


def test_streamed_blocks_are_on_the_device_one_at_a_time() -> None:
    """`meta` stands in for a device here: what counts is where weights are, and that they come back as they were."""
    blocks = [Noted(), Noted()]
    blocks[0].others, blocks[1].others = [blocks[1]], [blocks[0]]
    placement.Streamed(blocks, torch.device("meta"))
    for _ in range(2):
        for block in blocks:
            block(torch.ones(1))
    assert [b.seen for b in blocks] == [[("meta", ["cpu"])] * 2] * 2
    assert all(torch.equal(b.weight, torch.ones(2)) for b in blocks)


def test_streamed_blocks_come_back_from_a_forward_that_fails() -> None:
    block = Noted()
    placement.Streamed([block], torch.device("meta"))
    with pytest.raises(TypeError):
        block(1, 2)
    assert block.weight.device.type == "cpu"


def test_visiting_modules_go_home_whatever_happens() -> None:
    module = nn.Linear(2, 2)
    with pytest.raises(ZeroDivisionError), placement.visiting([module], torch.device("cpu"), torch.device("cpu")):
        1 / 0  # noqa: B018
    moves: list[str] = []
    module.to = lambda device: moves.append(str(device))  # type: ignore[method-assign,assignment,return-value]
    with placement.visiting([module], torch.device("meta"), torch.device("cpu")):
        assert moves == ["meta"]
    assert moves == ["meta", "cpu"]


@pytest.mark.parametrize("offload", ["text", "blocks"])
def test_offloading_changes_no_bit_and_moves_what_it_names(offload: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU nothing has to move; who is asked to, and when, is the same."""
    visits: list[list[str]] = []
    plain = placement.visiting

    def spied(modules: list[nn.Module], device: torch.device, home: torch.device) -> Any:
        visits.append([type(m).__name__ for m in modules])
        assert home.type == "cpu"
        return plain(modules, device, home)

    monkeypatch.setattr(placement, "visiting", spied)
    fetched: list[str] = []
    fetch = placement.Streamed._fetch
    monkeypatch.setattr(
        placement.Streamed, "_fetch", lambda self, b, i: (fetched.append(type(b).__name__), fetch(self, b, i))[1]
    )
    images = []
    for kind in ("none", offload):
        _, model = pair(False, (64, 64), offload=kind)
        text, empty = model.embed(["cat"]), model.embed([""])
        images.append(model.decode(model.trajectory(model.noise([1]), text, empty, steps=2, guidance=1)))
    assert torch.equal(*images)
    assert visits[-2:] == [["T5EncoderModel"], ["CLIPTextModel"]]
    assert fetched == (["FluxTransformerBlock", "FluxSingleTransformerBlock"] * 2 if offload == "blocks" else [])


def test_a_model_with_streamed_blocks_trains_nothing() -> None:
    _, model = pair(False, (64, 64), offload="blocks")
    with pytest.raises(BadInput, match="trains nothing"):
        model.student([])
    with pytest.raises(BadInput, match="trains nothing"), model.substituted({}):
        pass
    with pytest.raises(BadInput, match="one by one"):
        model.use("graph")
    with pytest.raises(BadInput, match="unknown offload 'block'; did you mean 'blocks'"):
        pair(False, (64, 64), offload="block")
