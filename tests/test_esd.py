"""ESD: the target, the latents, the trained layers, and that training does what the paper says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from benchmark import edits, registry
from benchmark.backbones.base import Backbone
from benchmark.backbones.random_models import random_flux, random_unet, unet_components
from benchmark.backbones.unet import UNetBackbone
from benchmark.errors import BadInput, BenchError
from benchmark.interface import Request, Target
from methods import _distill
from methods._lora import LoRA
from methods.esd import ESD

CAT = Target(name="cat")
REQUEST = Request(erase=(CAT, Target(name="dog")), seed=3)
SHORT = ESD(iterations=6, steps=5, lr=1e-3, batch=2, latents_from="frozen")


@pytest.fixture(scope="module", params=["unet", "flux"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return random_unet() if request.param == "unet" else random_flux()


def plan(method: ESD, concepts: int = 2) -> list[_distill.Sample]:
    return [s for samples in _distill.draw(np.random.default_rng(0), method, concepts) for s in samples]


def task(backbone: Backbone, method: ESD) -> _distill.Task:
    return _distill.Task(backbone, backbone.embed(["cat", "dog"]), None, backbone.embed([""]), method)


# --- the target -------------------------------------------------------------------------------------------------------
def test_target_by_hand() -> None:
    """ε(∅) = 1, ε(c) = 3, η = 2: 1 − 2·(3 − 1) = −3."""
    null, concept = torch.tensor(1.0), torch.tensor(3.0)
    assert _distill.away(null, null, concept, 2.0).item() == -3


def test_erase_from_starts_at_the_prompt_that_loses_the_concept(backbone: Backbone) -> None:
    """ε(f) − η[ε(c) − ε(∅)], with the student asked for f; in float64 from the plain predictions."""
    from_cat = _distill.Task(backbone, backbone.embed(["cat"]), backbone.embed(["dog"]), backbone.embed([""]), SHORT)
    x, t = backbone.noise([1]), backbone.timesteps(5)[2]
    ours = _distill.example(from_cat, x, [_distill.Sample(0, 0, 0, 2, 5, 2)])
    with torch.no_grad():
        null, cat, dog = (backbone.predict(x, t, backbone.embed([p])).double() for p in ("", "cat", "dog"))
    torch.testing.assert_close(ours.target.double(), cat - SHORT.eta * (dog - null), atol=1e-5, rtol=1e-5)
    assert torch.equal(ours.text.tokens, backbone.embed(["cat"]).tokens)


def test_erase_from_is_another_edit() -> None:
    plain, moved = (edits.make(replace(SHORT, erase_from=f), random_unet(), REQUEST) for f in ("", "bird"))
    assert edits.edit_hash(plain) != edits.edit_hash(moved)
    assert moved.notes["prompts"] == ["bird", "bird"]


def test_eta_2_of_the_2025_code_is_the_paper_s_1(backbone: Backbone) -> None:
    """That code starts from ε(c), not from ε(∅): ε(c) − 2[ε(c) − ε(∅)] = ε(∅) − 1[ε(c) − ε(∅)]."""
    method, x = ESD(**{**ESD.variants["2025"], "steps": 5}), backbone.noise([1, 2])
    samples = [_distill.Sample(concept, 0, 0, 2, 5, 2) for concept in (0, 1)]
    ours = _distill.example(task(backbone, method), x, samples)
    with torch.no_grad():
        concept = backbone.predict(x, backbone.timesteps(5)[2], backbone.embed(["cat", "dog"]))
        null = backbone.predict(x, backbone.timesteps(5)[2], backbone.embed(["", ""]))
    torch.testing.assert_close(ours.target, concept - 2 * (concept - null), atol=1e-5, rtol=1e-5)


# --- the latents ------------------------------------------------------------------------------------------------------
def one_by_one(backbone: Backbone, sample: _distill.Sample, method: ESD) -> tuple[Tensor, Tensor]:
    """A sample alone, through the base's own trajectory and guidance."""
    text, empty = backbone.embed([["cat", "dog"][sample.concept]]), backbone.embed([""])
    x = backbone.trajectory(
        backbone.noise([sample.seed]),
        text,
        empty,
        steps=method.steps,
        guidance=method.start_guidance,
        start=sample.start,
        stop=sample.stop,
    )
    t = backbone.timesteps(sample.grid)[sample.time]
    with torch.no_grad():
        null, concept = backbone.predict(x, t, empty), backbone.predict(x, t, text)
    return x, null - method.eta * (concept - null)


@pytest.mark.quick("flux-*", "unet-aligned")
@pytest.mark.parametrize("rule", ["aligned", "alt", "compvis"])
def test_packed_walks_are_the_sequential_ones(backbone: Backbone, rule: Any) -> None:
    method = replace(SHORT, iterations=10, timestep_rule=rule)  # 20 samples: one full pack and one that is not
    samples = plan(method)
    x, target = _distill.packed(task(backbone, method), samples)
    assert len({s.stop for s in samples}) > 2
    for i, sample in enumerate(samples):
        alone, goal = one_by_one(backbone, sample, method)
        torch.testing.assert_close(x[i], alone[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(target[i], goal[0], atol=1e-4, rtol=0)


def test_packing_does_the_sequential_work(backbone: Backbone) -> None:
    """Per sample: two predictions a step and two for the target; per trained sample one more, with a backward."""
    edit = edits.make(SHORT, backbone, REQUEST)
    samples = [s for part in _distill.draw(np.random.default_rng(REQUEST.seed), SHORT, 2) for s in part]
    assert edit.cost.denoiser_forwards == sum(2 * (s.stop - s.start) + 3 for s in samples)
    assert edit.cost.denoiser_backwards == len(samples)


@pytest.mark.parametrize("rule", ["aligned", "alt", "compvis"])
def test_times_of_the_three_rules(rule: Any) -> None:
    """`alt` calls the latent at 961 one of 980; `compvis` calls that at 20k − 39 one of 20k to 20k + 19."""
    backbone, method = random_unet(), ESD(timestep_rule=rule, iterations=300)
    grid = [*backbone.timesteps(50).tolist(), -19]
    for s in plan(method):
        level, t = grid[s.stop], int(_distill.times(backbone, [s]))
        if rule == "aligned":
            assert (s.start, t) == (0, level)
        elif rule == "alt":
            assert (s.start, t) == (0, level + 19) and s.stop > 0
        elif s.stop < 50:
            assert s.start == 1 and 39 <= t - level < 59
        else:  # k of 0 and 1 walk to the very end
            assert 1 <= t < 40


def test_plan_covers_all_steps_and_concepts() -> None:
    samples = plan(replace(ESD(), iterations=2000), concepts=3)
    assert {s.stop for s in samples} == set(range(50))
    assert np.bincount([s.concept for s in samples]).min() > 550
    assert len({s.seed for s in samples}) == 2000


@pytest.mark.slow
def test_student_s_latents_follow_the_student() -> None:
    """The student's walks change as it learns; with a learning rate of nearly nothing they are the frozen ones."""
    backbone = random_unet()
    still, moving = replace(SHORT, lr=1e-12), replace(SHORT, lr=1e-2)
    for method, same in ((still, True), (moving, False)):
        frozen, student = (
            edits.make(replace(method, latents_from=who), backbone, REQUEST).notes["loss_last"]
            for who in ("frozen", "student")
        )
        assert (student == pytest.approx(frozen, rel=1e-4)) == same


# --- the layers -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def stable_diffusion() -> UNetBackbone:
    """SD 1.x's U-Net without memory behind it."""
    parts = unet_components()
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)  # type: ignore[no-untyped-call]
        vae = AutoencoderKL(latent_channels=4)  # type: ignore[no-untyped-call]
    scheduler = parts["scheduler"].config
    rest = {k: parts[k] for k in ("text_encoder", "tokenizer")}
    return UNetBackbone("sd-meta", unet=unet, vae=vae, scheduler=scheduler, device="meta", **rest)


@pytest.mark.parametrize(
    ("train", "tensors", "parameters"),
    [
        ("x", 80, 43_962_560),
        ("x-strict", 32, 19_169_280),
        ("u", 598, 813_495_680),
        ("u-2025", 388, 815_358_084),
        ("self", 80, 49_574_080),
        ("all", 468, 859_320_644),
    ],
)
def test_trained_sets_of_stable_diffusion(
    stable_diffusion: UNetBackbone, train: str, tensors: int, parameters: int
) -> None:
    """Counted in the released code: `xattn`/`esd-x`, `esd-x-strict`, the paper's `noxattn`, and `esd-u` of 2025."""
    names, live = _distill.trained_names(stable_diffusion.layers(), train), stable_diffusion.tensors()
    assert (len(names), sum(live[n].numel() for n in names)) == (tensors, parameters)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("train", ["x", "x-strict", "u", "u-2025", "self", "all"])
def test_each_set_changes_itself_alone(backbone: Backbone, train: Any) -> None:
    edit = edits.make(replace(SHORT, iterations=2, train=train), backbone, REQUEST)
    assert edit.weights and set(edit.weights) <= set(_distill.trained_names(backbone.layers(), train))


def test_a_model_without_such_layers_is_said() -> None:
    with pytest.raises(BadInput, match="'x'.*none of them"):
        _distill.trained_names([], "x")


@pytest.mark.parametrize(
    ("kinds", "train"),
    [
        (["object"], "u"),
        (["identity"], "x"),
        (["style", "identity"], "x"),
        (["style", "object"], "u"),
        (["explicit"], "u"),
    ],
)
def test_layers_by_kind(kinds: list[Any], train: str) -> None:
    request = Request(erase=tuple(Target(name=str(i), kind=k) for i, k in enumerate(kinds)))
    assert ESD().trained(request) == train
    assert ESD(train="x-strict").trained(request) == "x-strict"


# --- the training -----------------------------------------------------------------------------------------------------
@pytest.mark.quick("flux")
def test_loss_falls_and_the_student_meets_the_target(backbone: Backbone) -> None:
    method = ESD(iterations=60, steps=5, lr=1e-4, batch=4, train="u", latents_from="frozen")
    edit = edits.make(method, backbone, replace(REQUEST, erase=(CAT,)))
    assert edit.notes["loss_last"] < 0.5 * edit.notes["loss_first"]
    unseen = _distill.example(task(backbone, method), backbone.noise([99]), [_distill.Sample(0, 99, 0, 0, 5, 0)])
    with torch.no_grad():
        before = backbone.predict(unseen.x, unseen.t, unseen.text)
        with edits.apply(backbone, edit):
            after = backbone.predict(unseen.x, unseen.t, unseen.text)
    assert (after - unseen.target).norm() < 0.8 * (before - unseen.target).norm()


@pytest.mark.parametrize("train", ["x", "u"])
def test_the_loss_of_training_is_the_formula(train: str) -> None:
    """‖ε_θ(x_t, t, c) − (ε(∅) − η[ε(c) − ε(∅)])‖², in float64 with θ as it stands, at every step of a training."""
    unet = random_unet(dtype=torch.float64)
    work, names = task(unet, replace(SHORT, eta=1.5)), _distill.trained_names(unet.layers(), train)
    student = unet.student(names)
    live = student.tensors()
    truths: list[float] = []

    def examples(i: int) -> _distill.Example:
        x, t = unet.noise([i, i + 10]).double(), unet.timesteps(5)[i]
        with torch.no_grad():
            null, concept = (unet.predict(x, t, unet.embed(p)) for p in (["", ""], ["cat", "dog"]))
            with unet.substituted({n: live[n].detach().clone() for n in names}):
                asked = unet.predict(x, t, unet.embed(["cat", "dog"]))
        truths.append((asked - (null - 1.5 * (concept - null))).square().mean().item())
        return _distill.example(work, x, [_distill.Sample(c, 0, 0, i, 5, i) for c in (0, 1)])

    losses = _distill.fit(student, [live[n] for n in names], examples, 4, 1e-3, unet.journal)
    assert len(set(truths)) == 4 and losses == pytest.approx(truths, rel=1e-6)


def test_first_step_is_adam_s() -> None:
    """Adam's first step moves every weight that has a gradient by lr, whatever the gradient's size."""
    backbone = random_unet()
    edit = edits.make(ESD(iterations=1, steps=4, lr=1e-3, train="x-strict"), backbone, REQUEST)
    name, new = next(iter(edit.weights.items()))
    moved = (new - backbone.tensors()[name]).abs().median()
    assert moved.item() == pytest.approx(1e-3, rel=1e-2)


def test_half_precision_learns_through_float32_masters() -> None:
    """Steps far below bfloat16's spacing add up over iterations, and the edit keeps the model's dtype."""
    backbone = random_unet(dtype=torch.bfloat16)
    method = ESD(iterations=8, steps=2, lr=1e-5, train="x-strict", latents_from="frozen")
    edit = edits.make(method, backbone, REQUEST)
    assert {v.dtype for v in edit.weights.values()} == {torch.bfloat16}
    tiny = edits.make(replace(method, iterations=1, lr=1e-9), backbone, REQUEST)
    assert sum(v.numel() for v in tiny.weights.values()) < sum(v.numel() for v in edit.weights.values())


def test_divergence_names_the_iteration() -> None:
    with pytest.raises(BenchError, match=r"loss is (nan|inf) at iteration \d+ of training; lower lr"):
        edits.make(ESD(iterations=50, steps=4, lr=1e30, train="u"), random_unet(), REQUEST)


def test_template_makes_the_prompt() -> None:
    edit = edits.make(replace(SHORT, iterations=1, template="a photo of a {}"), random_unet(), REQUEST)
    assert edit.notes["prompts"] == ["a photo of a cat", "a photo of a dog"]


@pytest.mark.quick("flux")
def test_iterations_per_concept_are_as_many_times_the_iterations(backbone: Backbone) -> None:
    each = edits.make(replace(SHORT, iterations=3, per_concept=True), backbone, REQUEST)
    together = edits.make(replace(SHORT, iterations=6), backbone, REQUEST)
    assert edits.edit_hash(each) == edits.edit_hash(replace(together, notes=each.notes))
    alone = replace(REQUEST, erase=(CAT,))
    counted = edits.make(replace(SHORT, per_concept=True), backbone, alone)
    assert edits.edit_hash(counted) == edits.edit_hash(edits.make(SHORT, backbone, alone))


# --- on FLUX ----------------------------------------------------------------------------------------------------------
FLUX = replace(ESD(**ESD.variants["flux"]), iterations=6, steps=4, lr=1e-3)


def test_flux_changes_the_attention_projections_by_low_ranks_and_nothing_else() -> None:
    flux = random_flux()
    edit = edits.make(FLUX, flux, REQUEST)
    double = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    names = {f"transformer.transformer_blocks.0.attn.{part}.weight" for part in double}
    names |= {f"transformer.single_transformer_blocks.0.attn.{part}.weight" for part in ("to_q", "to_k", "to_v")}
    assert not edit.weights and set(edit.deltas) == names
    assert {(up.shape[1], down.shape[0]) for up, down in edit.deltas.values()} == {(8, 8)}
    assert edit.notes["reading"] == "harness variant"
    assert "reading" not in edits.make(SHORT, random_unet(), REQUEST).notes


@pytest.mark.parametrize("dev", [False, True])
def test_the_loss_of_low_rank_training_is_the_formula_on_velocities(dev: bool) -> None:
    """‖v_θ(x, t, c) − (v(∅) − η[v(c) − v(∅)])‖², in float64 with W + U D written out, along our own training."""
    flux = random_flux(dtype=torch.float64, guidance_embeds=dev)
    work, live = task(flux, replace(FLUX, eta=1.5)), flux.tensors()
    base = {n: live[n] for n in _distill.trained_names(flux.layers(), "attention") if live[n].ndim == 2}
    lora = LoRA(base, 2, scale=1.0, generator=torch.Generator().manual_seed(1))
    for up in lora.up.values():
        up.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(2))
    x, t = flux.noise([1, 2]).double(), flux.timesteps(4)[2]
    item = _distill.example(work, x, [_distill.Sample(c, 0, 0, 2, 4, 2) for c in (0, 1)])
    with flux.substituted(lora.weights()):
        ours = _distill._loss(flux, item).item()
    changed = {n: w + lora.up[n].detach().double() @ lora.down[n].detach().double() for n, w in base.items()}
    with torch.no_grad():
        null, concept = (flux.predict(x, t, flux.embed(p)) for p in (["", ""], ["cat", "dog"]))
        with flux.substituted(changed):
            student = flux.predict(x, t, flux.embed(["cat", "dog"]))
    truth = (student - (null - 1.5 * (concept - null))).square().mean().item()
    assert ours == pytest.approx(truth, rel=1e-6)


def test_low_rank_training_lowers_the_loss_and_starts_at_the_model() -> None:
    flux = random_flux()
    edit = edits.make(replace(FLUX, iterations=60, batch=4), flux, replace(REQUEST, erase=(CAT,)))
    assert edit.notes["loss_last"] < 0.9 * edit.notes["loss_first"]
    unseen = _distill.example(task(flux, FLUX), flux.noise([99]), [_distill.Sample(0, 99, 0, 0, 4, 0)])
    with torch.no_grad():
        before = flux.predict(unseen.x, unseen.t, unseen.text)
        with edits.apply(flux, edit):
            after = flux.predict(unseen.x, unseen.t, unseen.text)
    assert (after - unseen.target).norm() < (before - unseen.target).norm()


def test_walks_of_the_flux_variant_have_no_second_branch() -> None:
    """One prediction a step of the walk, two for the target, one that is trained; the guidance is embedded in dev."""
    edit = edits.make(FLUX, random_flux(), REQUEST)
    samples = [s for part in _distill.draw(np.random.default_rng(REQUEST.seed), FLUX, 2) for s in part]
    assert edit.cost.denoiser_forwards == sum(s.stop - s.start + 3 for s in samples)


def test_low_rank_walks_follow_the_trained_model() -> None:
    flux = random_flux()
    for lr, same in ((1e-12, True), (3e-2, False)):
        frozen, student = (
            edits.make(replace(FLUX, lr=lr, latents_from=who), flux, REQUEST).notes["loss_last"]  # type: ignore[arg-type]
            for who in ("frozen", "student")
        )
        assert (student == pytest.approx(frozen, rel=1e-4)) == same


def test_a_rank_that_is_not_used_leaves_keys_and_records_as_they_were() -> None:
    assert "rank" not in registry.resolve("esd").fields
    assert registry.resolve("esd@flux").fields["rank"] == 8
    assert registry.resolve("esd", passed={"rank": 2}).fields["rank"] == 2
