"""The same questions to both families, and each family against diffusers' own pipeline and scheduler."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmark.backbones import _shared, unet
from benchmark.backbones.base import Backbone
from benchmark.backbones.flux import FluxBackbone
from benchmark.backbones.load import _variant, load
from benchmark.backbones.random_models import (
    WORDS,
    byte_pair_merges,
    flux_components,
    random_flux,
    random_unet,
    unet_components,
)
from benchmark.backbones.unet import UNetBackbone
from benchmark.errors import BadInput, Missing

PROMPTS = ["a photo of the cat", "an oil painting of mira talvane", "", "a zebra's picture, and the winged  creature"]


def v_unet() -> UNetBackbone:
    parts = unet_components()
    scheduler = DDIMScheduler.from_config(parts["scheduler"].config, prediction_type="v_prediction")
    return UNetBackbone("random-v", **parts | {"scheduler": scheduler.config})


MAKERS = {
    "unet": random_unet,
    "unet-v": v_unet,
    "flux": random_flux,
    "flux-dev": lambda: random_flux(guidance_embeds=True),
}


@pytest.fixture(scope="module", params=MAKERS)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    made: Backbone = MAKERS[request.param]()
    return made


def digest(backbone: Backbone) -> str:
    total = hashlib.sha256()
    for name, tensor in backbone.tensors().items():
        total.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return total.hexdigest()


# --- text -----------------------------------------------------------------------------------------------------


def test_embedded_row_depends_on_its_prompt_alone(backbone: Backbone) -> None:
    order = [2, 0, 3, 1]
    there, back = backbone.embed(PROMPTS), backbone.embed([PROMPTS[i] for i in order])
    for i, row in enumerate(order):
        assert torch.equal(back.tokens[i], there.tokens[row])
        assert torch.equal(back.ids[i], there.ids[row]) and back.last[i] == there.last[row]
        assert there.pooled is None or back.pooled is None or torch.equal(back.pooled[i], there.pooled[row])


def test_last_is_the_last_token_of_the_last_word(backbone: Backbone) -> None:
    text = backbone.embed(PROMPTS)
    words = ["cat", "talvane", None, "creature"]
    for i, word in enumerate(words):
        expected = backbone.span(PROMPTS[i], word)[-1] if word else (0 if backbone.family == "unet-epsilon" else 1)
        assert text.last[i] == expected


def test_a_prompt_too_long_is_cut_and_its_last_token_is_before_the_end(backbone: Backbone) -> None:
    text = backbone.embed(["cat " * 100])
    assert text.last.tolist() == [text.tokens.shape[1] - 2]


def test_a_string_in_place_of_prompts_is_refused(backbone: Backbone) -> None:
    with pytest.raises(TypeError, match="wrap it in a list"):
        backbone.embed("cat")


@pytest.mark.parametrize(
    ("prompt", "phrase", "text"),
    [
        ("a photo of the cat", "cat", "cat"),
        ("a photo of the Cat.", "cat", "cat"),
        ("the cattle, a cat and a cat", "cat", "cat"),  # not within a word; the first
        ("a portrait of Mira Talvane, in oil", "mira talvane", "miratalvane"),
        ("a winged   creature", "winged creature", "wingedcreature"),
        ("the zebra's stripes", "zebra", "zebra"),  # spelt in several tokens
        ("(dog),(zebra)!", "zebra", "zebra"),
    ],
)
def test_span_covers_the_phrase(backbone: Backbone, prompt: str, phrase: str, text: str) -> None:
    found = backbone.span(prompt, phrase)
    tokenizer: Any = backbone._tokenizer if isinstance(backbone, UNetBackbone) else backbone._tokenizer_2  # type: ignore[attr-defined]
    ids = backbone.embed([prompt]).ids[0, list(found)]
    spelt = "".join(tokenizer.convert_ids_to_tokens(ids.tolist()))
    assert spelt.lower().replace("</w>", "").replace("▁", "") == text


@pytest.mark.parametrize("phrase", ["dog", "ca", "", "the dog"])
def test_span_of_what_is_not_there_is_refused(backbone: Backbone, phrase: str) -> None:
    with pytest.raises(ValueError, match="does not occur"):
        backbone.span("a photo of the cat", phrase)


def test_span_beyond_the_last_position_is_refused(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="cut off"):
        backbone.span("the " * 40 + "cat", "cat")


# --- noise, times, predictions --------------------------------------------------------------------------------


def test_noise_depends_on_the_seed_alone(backbone: Backbone) -> None:
    torch.manual_seed(1)
    one, many = backbone.noise([7]), backbone.noise([3, 7, 3])
    assert torch.equal(one[0], many[1]) and torch.equal(many[0], many[2])
    assert one.shape[1:] == backbone.latent_shape
    assert abs(backbone.noise(list(range(50))).std() - 1) < 0.02


def test_guidance_is_linear_in_its_scale(backbone: Backbone) -> None:
    x, t = backbone.noise([1, 2]), backbone.timesteps(10)[4]
    text = backbone.embed(PROMPTS[:2])
    empty = backbone.embed([""]).expand(2)
    u, c = backbone.predict(x, t, empty), backbone.predict(x, t, text)
    assert (u - c).abs().max() > 1e-3  # text matters, or the rest shows nothing
    for g in (0.0, 0.5, 1.0, 4.0):
        torch.testing.assert_close(backbone.guided(x, t, text, empty, g), u + g * (c - u), atol=2e-5, rtol=0)


def test_a_time_each_is_the_same_as_one_time(backbone: Backbone) -> None:
    x, t, text = backbone.noise([1, 2]), backbone.timesteps(10)[4], backbone.embed(PROMPTS[:2])
    torch.testing.assert_close(backbone.predict(x, t.expand(2), text), backbone.predict(x, t, text), atol=1e-6, rtol=0)
    assert torch.equal(backbone.clean(x, t.expand(2), x), backbone.clean(x, t, x))
    mixed = torch.stack([t, backbone.timesteps(10)[8]])
    assert torch.equal(backbone.noisy(x, x, mixed)[:1], backbone.noisy(x[:1], x[:1], t))


def test_a_walk_that_stops_and_goes_on_is_the_whole_walk(backbone: Backbone) -> None:
    x, text = backbone.noise([1, 2]), backbone.embed(PROMPTS[:2])
    empty = backbone.embed([""]).expand(2)
    seen = dict(backbone.walk(x, text, empty, steps=6, guidance=3.0))
    assert list(seen) == [1, 2, 3, 4, 5, 6]
    for k in (0, 2, 6):
        middle = backbone.trajectory(x, text, empty, steps=6, guidance=3.0, stop=k)
        assert torch.equal(middle, seen[k] if k else x)
        assert torch.equal(backbone.trajectory(middle, text, empty, steps=6, guidance=3.0, start=k), seen[6])


def test_clean_undoes_noisy_when_the_prediction_is_true(backbone: Backbone) -> None:
    """x = αx₀ + σε and a true prediction (ε, or v = ε − x₀ for flow) imply x₀, at one time or at one each."""
    x0, eps = backbone.noise([1, 2, 3]), backbone.noise([4, 5, 6])
    truth = eps if backbone.family == "unet-epsilon" else eps - x0
    for t in (backbone.timesteps(10)[0], backbone.timesteps(10)[9], backbone.timesteps(10)[[0, 5, 9]]):
        x = backbone.noisy(x0, eps, t)
        torch.testing.assert_close(backbone.clean(x, t, truth), x0, atol=2e-5, rtol=0)


def test_stepping_along_a_true_prediction_ends_at_the_clean_latent(backbone: Backbone) -> None:
    """With ε and x₀ fixed both samplers stay on x_t = α_t x₀ + σ_t ε; the last step ends at the final noise level."""
    x0, eps = backbone.noise([1]), backbone.noise([2])
    truth = eps if backbone.family == "unet-epsilon" else eps - x0
    times = backbone.timesteps(5)
    x = backbone.noisy(x0, eps, times[0])
    for i in range(4):
        x = backbone.step(x, i, truth, 5)
        torch.testing.assert_close(x, backbone.noisy(x0, eps, times[i + 1]), atol=1e-5, rtol=0)
    end = backbone.noisy(x0, eps, torch.tensor(0))  # set_alpha_to_one is off: the U-Net's schedule ends at time 0
    torch.testing.assert_close(backbone.step(x, 4, truth, 5), end, atol=1e-5, rtol=0)


@pytest.mark.parametrize("steps", [0, -1])
def test_a_number_of_steps_that_cannot_be_is_refused(backbone: Backbone, steps: int) -> None:
    with pytest.raises(BadInput, match="sampling step"):
        backbone.timesteps(steps)


def test_half_precision_keeps_its_dtype() -> None:
    for model in (random_unet(dtype=torch.bfloat16), random_flux(dtype=torch.bfloat16)):
        x, t, text = model.noise([1]), model.timesteps(4)[1], model.embed(["cat"])
        p = model.predict(x, t, text)
        made = [x, p, text.tokens, model.clean(x, t, p), model.noisy(x, x, t), model.step(x, 1, p, 4), model.decode(x)]
        assert {value.dtype for value in made} == {torch.bfloat16}


# --- images ---------------------------------------------------------------------------------------------------


def test_images_are_in_range_and_latents_have_their_shape(backbone: Backbone) -> None:
    images = backbone.decode(backbone.noise([1, 2]))
    assert images.shape == (2, 3, *backbone.image_size) and backbone.image_size == (64, 64)
    assert 0 <= images.min() and images.max() <= 1
    assert backbone.encode(images).shape == (2, *backbone.latent_shape)


# --- weights --------------------------------------------------------------------------------------------------


def test_tensors_are_unique_and_live(backbone: Backbone) -> None:
    tensors = backbone.tensors()
    assert len({t.data_ptr() for t in tensors.values() if t.numel()}) == len(tensors)
    assert not any(t.requires_grad for t in tensors.values())
    x, t, text = backbone.noise([1]), backbone.timesteps(4)[1], backbone.embed(["cat"])
    before = backbone.predict(x, t, text)
    for projection in backbone.projections():
        kept = tensors[projection.name].clone()
        with torch.no_grad():
            tensors[projection.name].zero_()
        assert not projection.weight.any()
        assert not torch.equal(backbone.predict(x, t, text), before)
        with torch.no_grad():
            tensors[projection.name].copy_(kept)
    assert torch.equal(backbone.predict(x, t, text), before)


def test_projections_read_text(backbone: Backbone) -> None:
    text = backbone.embed(["cat"])
    for projection in backbone.projections():
        read = text.pooled if projection.role == "pooled" else text.tokens
        assert read is not None and projection.weight.shape[1] == read.shape[-1]


def test_every_denoiser_parameter_is_in_one_layer(backbone: Backbone) -> None:
    component = "unet." if backbone.family == "unet-epsilon" else "transformer."
    listed = [name for layer in backbone.layers() for name in layer.parameters]
    expected = [name for name in backbone.tensors() if name.startswith(component)]
    assert sorted(listed) == sorted(expected)
    assert {p.name for p in backbone.projections()} <= set(listed)


def test_student_has_its_own_denoiser_and_shares_the_text_encoder(backbone: Backbone) -> None:
    student, before = backbone.student(), digest(backbone)
    mine, theirs = backbone.tensors(), student.tensors()
    assert list(mine) == list(theirs)
    for name in mine:
        shared = mine[name].data_ptr() == theirs[name].data_ptr()
        assert shared == name.startswith("text_encoder"), name
    name = backbone.projections()[0].name
    theirs[name].requires_grad_(True)
    x, t, text = backbone.noise([1]), backbone.timesteps(4)[1], backbone.embed(["cat"])
    student.predict(x, t, text).square().mean().backward()
    assert theirs[name].grad is not None and theirs[name].grad.any() and mine[name].grad is None
    with torch.no_grad():
        theirs[name].sub_(theirs[name].grad)
    assert not torch.equal(student.predict(x, t, text), backbone.predict(x, t, text))
    assert digest(backbone) == before


def test_student_of_some_names_copies_those_alone(backbone: Backbone) -> None:
    name, other = (p.name for p in backbone.projections()[:2])
    student = backbone.student([name])
    mine, theirs = backbone.tensors(), student.tensors()
    assert {n for n in mine if mine[n].data_ptr() != theirs[n].data_ptr()} == {name}
    x, t, text = backbone.noise([1]), backbone.timesteps(4)[1], backbone.embed(["cat"])
    assert torch.equal(student.predict(x, t, text), backbone.predict(x, t, text))
    theirs[name].mul_(2)
    assert not torch.equal(student.predict(x, t, text), backbone.predict(x, t, text))
    assert torch.equal(student.student([other]).predict(x, t, text), student.predict(x, t, text))
    with pytest.raises(BadInput, match="unknown tensor of the denoiser 'nothing'"):
        backbone.student(["nothing"])


# --- what methods lend ----------------------------------------------------------------------------------------
def test_substituted_weights_act_and_carry_gradients(backbone: Backbone) -> None:
    name, before = backbone.projections()[0].name, digest(backbone)
    weight = backbone.tensors()[name].clone().requires_grad_()
    x, t, text = backbone.noise([1]), backbone.timesteps(4)[1], backbone.embed(["cat"])
    plain = backbone.predict(x, t, text)
    with backbone.substituted({name: weight}):
        same = backbone.predict(x, t, text)
        with backbone.substituted({name: 2 * weight}):
            other = backbone.predict(x, t, text)
    assert torch.equal(plain, same) and not torch.equal(plain, other)
    same.square().mean().backward()
    assert weight.grad is not None and weight.grad.any()
    assert torch.equal(backbone.predict(x, t, text), plain) and digest(backbone) == before


def test_substituted_refuses_what_does_not_fit(backbone: Backbone) -> None:
    name = backbone.projections()[0].name
    with (
        pytest.raises(BadInput, match="unknown tensor of the denoiser"),
        backbone.substituted({"unet.x": torch.ones(1)}),
    ):
        pass
    with pytest.raises(BadInput, match="of shape"), backbone.substituted({name: torch.ones(1)}):
        pass


def test_attached_changes_act_and_come_off(backbone: Backbone) -> None:
    name = backbone.projections()[0].name
    x, t, text = backbone.noise([1]), backbone.timesteps(4)[1], backbone.embed(["cat"])
    plain, seen = backbone.predict(x, t, text), []

    def change(given: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        seen.append(given.shape)
        return 2 * output

    with backbone.attached({name: change}):
        other = backbone.predict(x, t, text)
    assert not torch.equal(plain, other) and len(seen) == 1
    assert torch.equal(backbone.predict(x, t, text), plain)
    with pytest.raises(BadInput, match="unknown projection"), backbone.attached({"unet.x": change}):
        pass


def test_attention_maps_are_probabilities_and_leave_the_prediction() -> None:
    backbone = random_unet()
    x, t, text = backbone.noise([1, 2]), backbone.timesteps(4)[1], backbone.embed(["cat", "a dog"])
    plain = backbone.predict(x, t, text)
    with backbone.attention_maps() as maps:
        recorded = backbone.predict(x, t, text)
    torch.testing.assert_close(recorded, plain, atol=1e-5, rtol=1e-5)
    assert len(maps) == sum(p.role == "key" for p in backbone.projections())
    for layer in maps:
        assert layer.shape[0] == 2 and layer.shape[-1] == text.tokens.shape[1]
        torch.testing.assert_close(layer.sum(-1), torch.ones(layer.shape[:-1]))
    assert torch.equal(backbone.predict(x, t, text), plain)  # the processors are back


def test_counts_are_in_samples_and_include_students(backbone: Backbone) -> None:
    student = backbone.student()
    student.tensors()[backbone.projections()[0].name].requires_grad_(True)
    x, t = backbone.noise([1, 2]), backbone.timesteps(4)[1]
    with backbone.counting() as outer:
        text, empty = backbone.embed(PROMPTS[:2]), backbone.embed([""]).expand(2)
        backbone.guided(x, t, text, empty, 3.0)
        with student.counting() as inner:
            student.predict(x, t, text).sum().backward()
        student.predict(x, t, text)  # no backward, none counted
    backbone.predict(x, t, text)
    assert (inner.denoiser_forwards, inner.denoiser_backwards, inner.text_encodes) == (2, 2, 0)
    assert (outer.denoiser_forwards, outer.denoiser_backwards, outer.text_encodes) == (4 + 2 + 2, 2, 3)


# --- the random models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [random_unet, random_flux])
def test_random_weights_do_not_depend_on_the_global_generator_nor_touch_it(make: Any) -> None:
    torch.manual_seed(1)
    first, state = digest(make()), torch.get_rng_state()
    torch.manual_seed(2)
    assert digest(make()) == first != digest(make(seed=1))
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_random_weights_are_the_same_in_another_process() -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from test_backbones import digest, random_flux, random_unet\n"
        "print(digest(random_unet()), digest(random_flux()))"
    )
    here = os.path.dirname(os.path.abspath(__file__))
    command = [sys.executable, "-P", "-c", code, here, os.path.dirname(here)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": "5"})
    assert out.stdout.split() == [digest(random_unet()), digest(random_flux())]


def test_known_words_are_one_token() -> None:
    assert len(byte_pair_merges(WORDS)) < 400
    for model in (random_unet(), random_flux()):
        assert all(len(model.span(f"the {word} and", word)) == 1 for word in WORDS)


# --- against diffusers: U-Net ---------------------------------------------------------------------------------


def unet_pipeline(prediction_type: str) -> tuple[StableDiffusionPipeline, UNetBackbone]:
    parts = unet_components()
    parts["scheduler"] = DDIMScheduler.from_config(parts["scheduler"].config, prediction_type=prediction_type)
    backbone = UNetBackbone("random", **parts | {"scheduler": parts["scheduler"].config})
    pipe = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe, backbone


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_unet_images_equal_the_pipelines(prediction_type: str, guidance: float) -> None:
    pipe, backbone = unet_pipeline(prediction_type)
    prompts, seeds = PROMPTS[:2], [11, 2**40 + 12]
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    expected = pipe(
        prompts, num_inference_steps=10, guidance_scale=guidance, generator=generators, output_type="pt"
    ).images
    text, empty = backbone.embed(prompts), backbone.embed([""]).expand(2)
    latents = backbone.trajectory(backbone.noise(seeds), text, empty, steps=10, guidance=guidance)
    torch.testing.assert_close(backbone.decode(latents), expected, atol=1e-5, rtol=0)


SCHEDULES: dict[str, dict[str, Any]] = {
    "sd": {"set_alpha_to_one": False, "steps_offset": 1},
    "to-one": {"set_alpha_to_one": True},
    "v": {"prediction_type": "v_prediction", "set_alpha_to_one": False, "steps_offset": 1},
    "trailing": {"timestep_spacing": "trailing"},
    "linspace": {"timestep_spacing": "linspace"},
}


@pytest.mark.parametrize("config", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_ddim_step_equals_the_schedulers(config: dict[str, Any], steps: int) -> None:
    reference = DDIMScheduler(1000, 0.00085, 0.012, "scaled_linear", clip_sample=False, **config)
    backbone = UNetBackbone("random", **unet_components() | {"scheduler": reference.config})
    reference.set_timesteps(steps)
    assert torch.equal(backbone.timesteps(steps), reference.timesteps)
    for i, t in enumerate(reference.timesteps):
        x, out = backbone.noise([2 * i]), backbone.noise([2 * i + 1])
        expected = reference.step(out, t, x).prev_sample
        a = reference.alphas_cumprod[t]
        eps = out if reference.config.prediction_type == "epsilon" else a**0.5 * out + (1 - a) ** 0.5 * x
        torch.testing.assert_close(backbone.step(x, i, eps, steps), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(backbone.noisy(x, out, t), reference.add_noise(x, out, t), atol=1e-6, rtol=0)


def test_a_pndm_config_is_read_as_ddim_and_latents_are_not_clipped() -> None:
    """Stable Diffusion 1.x has PNDM's config, which knows no `clip_sample`; DDIM's default would clip latents at 1."""
    pndm = PNDMScheduler(1000, 0.00085, 0.012, "scaled_linear", skip_prk_steps=True, steps_offset=1)
    backbone = UNetBackbone("random", **unet_components() | {"scheduler": pndm.config})
    assert backbone.timesteps(50)[[0, -1]].tolist() == [981, 1]
    x = torch.full((1, *backbone.latent_shape), 3.0)
    assert backbone.step(x, 49, torch.zeros_like(x), 50).min() > 2.9


@pytest.mark.parametrize("change", [{"prediction_type": "sample"}, {"rescale_betas_zero_snr": True}])
def test_schedules_that_cannot_be_read_are_refused(change: dict[str, Any]) -> None:
    parts = unet_components()
    with pytest.raises(BadInput, match="expected"):
        UNetBackbone("random", **parts | {"scheduler": dict(parts["scheduler"].config) | change})


def test_unet_encode_is_the_scaled_posterior_mean() -> None:
    parts = unet_components()
    parts["vae"].register_to_config(scaling_factor=0.25)
    backbone = UNetBackbone("random", **parts | {"scheduler": parts["scheduler"].config})
    images = backbone.decode(backbone.noise([1]))
    expected = parts["vae"].encode(images * 2 - 1).latent_dist.mode() * 0.25
    assert torch.equal(backbone.encode(images), expected)


def test_parts_of_stable_diffusion_count_as_esd_counts_them() -> None:
    """SD 1.x without weights: cross-attention's linear maps are 80 tensors, the other linear and conv layers 388."""
    with torch.device("meta"):
        model = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    named = dict(model.named_parameters())
    layers = _shared.layers("unet", model, unet._part)
    trained = [layer for layer in layers if layer.kind in ("linear", "conv")]

    def size(cross: bool) -> tuple[int, int]:
        names = [n for la in trained if (la.part == "cross-attention") == cross for n in la.parameters]
        return len(names), sum(named[n.removeprefix("unet.")].numel() for n in names)

    assert size(True) == (80, 43_962_560)
    assert size(False) == (388, 815_358_084)
    assert sum(p.numel() for p in named.values()) == 859_520_964
    ends = {layer.name: layer.part for layer in layers if layer.part in ("time", "input", "output")}
    assert ends == {
        "unet.conv_in": "input",
        "unet.time_embedding.linear_1": "time",
        "unet.time_embedding.linear_2": "time",
        "unet.conv_norm_out": "output",
        "unet.conv_out": "output",
    }


def test_unet_projections_are_keys_and_values_of_every_cross_attention() -> None:
    found = random_unet().projections()
    assert [p.role for p in found] == ["key", "value"] * 7
    assert found[0].name == "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"


def test_unets_that_need_more_than_text_are_refused() -> None:
    parts = unet_components()
    parts["unet"].register_to_config(in_channels=33)
    with pytest.raises(BadInput, match="inpainting"):
        UNetBackbone("random", **parts | {"scheduler": parts["scheduler"].config})


def test_sizes_are_multiples_of_the_autoencoders_factor() -> None:
    parts = unet_components()
    parts["scheduler"] = parts["scheduler"].config
    assert UNetBackbone("random", size=(64, 128), **parts).latent_shape == (16, 8, 16)
    with pytest.raises(BadInput, match="multiples of 8"):
        UNetBackbone("random", size=(60, 64), **parts)


# --- against diffusers: FLUX ----------------------------------------------------------------------------------


def flux_pipeline(dev: bool) -> tuple[FluxPipeline, FluxBackbone]:
    parts = flux_components(guidance_embeds=dev)
    if not dev:  # as schnell has it
        parts["scheduler"] = FlowMatchEulerDiscreteScheduler(shift=1.0)
    backbone = FluxBackbone("random", size=(64, 96), **parts | {"scheduler": parts["scheduler"].config})
    pipe = FluxPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe, backbone


@pytest.mark.parametrize("dev", [True, False])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_flux_images_equal_the_pipelines(dev: bool, guidance: float) -> None:
    pipe, backbone = flux_pipeline(dev)
    prompts, seeds = PROMPTS[:2], [11, 12]
    backbone.guidance = 2.5
    expected = pipe(
        prompts,
        negative_prompt=["", ""] if guidance > 1 else None,
        true_cfg_scale=guidance,
        guidance_scale=2.5,
        height=64,
        width=96,
        num_inference_steps=6,
        max_sequence_length=24,
        generator=[torch.Generator().manual_seed(s) for s in seeds],
        output_type="pt",
    ).images
    assert torch.equal(backbone.timesteps(6), pipe.scheduler.timesteps)
    text, empty = backbone.embed(prompts), backbone.embed([""]).expand(2)
    latents = backbone.trajectory(backbone.noise(seeds), text, empty, steps=6, guidance=guidance)
    torch.testing.assert_close(backbone.decode(latents), expected, atol=1e-5, rtol=0)


def test_the_guidance_embedding_matters_only_where_there_is_one() -> None:
    for dev in (True, False):
        model = random_flux(guidance_embeds=dev)
        x, t, text = model.noise([1]), model.timesteps(4)[1], model.embed(["cat"])
        low: Tensor = model.predict(x, t, text)
        model.guidance = 9.0
        assert torch.equal(model.predict(x, t, text), low) != dev


def test_flux_packing_is_undone() -> None:
    _, backbone = flux_pipeline(dev=True)
    z = torch.randn(2, 16, 8, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(backbone._unpack(backbone._pack(z)), z)


def test_flux_encode_undoes_the_scaling_of_decode() -> None:
    parts = flux_components()
    backbone = FluxBackbone("random", size=(64, 64), **parts | {"scheduler": parts["scheduler"].config})
    images = backbone.decode(backbone.noise([1]))
    mean = parts["vae"].encode(images * 2 - 1).latent_dist.mode()
    back = backbone._unpack(backbone.encode(images)) / 0.3611 + 0.1159
    torch.testing.assert_close(back, mean, atol=1e-5, rtol=1e-5)


def test_flux_parts_tell_text_from_image() -> None:
    parts = {layer.name.removeprefix("transformer."): layer.part for layer in random_flux().layers()}
    expected = {
        "transformer_blocks.0.attn.add_k_proj": "cross-attention",
        "transformer_blocks.0.attn.to_add_out": "cross-attention",
        "transformer_blocks.0.attn.to_k": "self-attention",
        "single_transformer_blocks.0.attn.to_v": "self-attention",
        "transformer_blocks.0.ff_context.net.2": "feed-forward",
        "single_transformer_blocks.0.proj_mlp": "feed-forward",
        "single_transformer_blocks.0.proj_out": "projection",
        "transformer_blocks.0.norm1_context.linear": "residual",
        "time_text_embed.text_embedder.linear_1": "time",
        "context_embedder": "input",
        "proj_out": "output",
    }
    assert {name: parts[name] for name in expected} == expected


@pytest.mark.parametrize("change", [{"use_karras_sigmas": True}, {"num_train_timesteps": 500}])
def test_flow_schedules_that_cannot_be_read_are_refused(change: dict[str, Any]) -> None:
    parts = flux_components()
    with pytest.raises(BadInput, match="flow-match"):
        FluxBackbone("random", **parts | {"scheduler": dict(parts["scheduler"].config) | change})


# --- loading --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    unchecked = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**unet_components(), **unchecked).save_pretrained(root / "sd")
    FluxPipeline(**flux_components()).save_pretrained(root / "flux")
    return {"sd": root / "sd", "flux": root / "flux"}


@pytest.mark.parametrize(("name", "make"), [("sd", random_unet), ("flux", random_flux)])
def test_a_saved_pipeline_loads_as_it_was(
    folders: dict[str, Path], name: str, make: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    loaded, made = load(folders[name], size=64), make()
    assert loaded.name == name and loaded.family == made.family and loaded.image_size == (64, 64)
    assert capfd.readouterr() == ("", "")
    assert digest(loaded) == digest(made)
    assert not any(t.requires_grad for t in loaded.tensors().values())
    assert torch.equal(loaded.embed(PROMPTS).tokens, made.embed(PROMPTS).tokens)
    assert torch.equal(loaded.timesteps(7), made.timesteps(7))
    assert torch.equal(loaded.decode(loaded.noise([1])), made.decode(made.noise([1])))
    assert load(folders[name], dtype=torch.bfloat16).dtype == torch.bfloat16


def test_models_of_the_table_that_are_built_in_code_load_by_name() -> None:
    assert (load("random-unet").name, load("random-flux", size=64).name) == ("random-unet", "random-flux")
    with pytest.raises(BadInput, match="64 pixels"):
        load("random-unet", size=512)


def test_a_lone_half_precision_variant_is_read(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folders["sd"], tmp_path / "half")
    for weights in list(copy.glob("*/*.safetensors")):
        weights.rename(weights.with_suffix(".fp16.safetensors"))
    assert digest(load(copy)) == digest(random_unet())


@pytest.mark.parametrize(
    ("names", "variant"),
    [
        (["model.safetensors", "model.fp16.safetensors", "diffusion_pytorch_model.non_ema.safetensors"], None),
        (["diffusion_pytorch_model-00001-of-00003.safetensors"], None),
        (["diffusion_pytorch_model.fp16-00001-of-00002.safetensors"], "fp16"),
        (["model-00001-of-00002.fp16.safetensors", "model-00002-of-00002.fp16.safetensors"], "fp16"),
    ],
)
def test_plain_weights_go_before_a_variant(tmp_path: Path, names: list[str], variant: str | None) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert _variant(tmp_path) == variant


def test_pickled_weights_are_not_read(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folders["sd"], tmp_path / "pickled")
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(Missing, match="unet"):
        load(copy)


def test_a_file_cut_short_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folders["sd"], tmp_path / "cut")
    weights = copy / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BadInput, match="cannot read text_encoder"):
        load(copy)


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder/model"])
def test_a_weight_that_is_not_there_is_named(folders: dict[str, Path], tmp_path: Path, part: str) -> None:
    """The libraries would fill it with random numbers and go on."""
    copy = shutil.copytree(folders["sd"], tmp_path / "lacking")
    weights = load_file(copy / f"{part}.safetensors")
    name = sorted(weights)[0]
    del weights[name]
    save_file(weights, copy / f"{part}.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=name):
        load(copy)


def test_other_pipelines_and_unknown_names_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folders["sd"], tmp_path / "xl")
    index = copy / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "StableDiffusionXLPipeline"))
    with pytest.raises(BadInput, match="StableDiffusionXLPipeline"):
        load(copy)
    with pytest.raises(BadInput, match="did you mean 'sd14'"):
        load("sd-14")
