"""FADE fine-grained: the three losses, what they are computed on, the modules, and that training does what it says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor

from benchmark import edits, registry
from benchmark.backbones.base import Backbone
from benchmark.backbones.random_models import random_flux, random_unet, unet_components
from benchmark.backbones.unet import UNetBackbone
from benchmark.errors import BadInput, BenchError
from benchmark.interface import Edit, Request, Target
from methods import _fade_fg
from methods.fade_fg import FADE

CAT = Target(name="cat", adjacent=("dog", "deer", "horse"))
REQUEST = Request(erase=(CAT,), seed=3)
SHORT = FADE(iterations=4, images=2, steps=3, lr=1e-3, batch=2, neighbours=2)
PROMPTS = ["a photo of a cat", "a photo of a dog", "a photo of a deer"]
LAMBDAS = ("lambda_erasing", "lambda_guidance", "lambda_adjacency")


@pytest.fixture(scope="module", params=["unet", "flux"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return random_unet() if request.param == "unet" else random_flux()


def prepared(backbone: Backbone, method: FADE = SHORT) -> tuple[_fade_fg.Task, list[_fade_fg.Draw]]:
    rng = np.random.default_rng(0)
    task = _fade_fg.prepare(backbone, PROMPTS, method, rng)
    return task, _fade_fg.draw(rng, method)


def shaken(backbone: Backbone, method: FADE = SHORT) -> Any:
    """Modules that do something."""
    lora = _fade_fg.modules(backbone, method, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for up in lora.up.values():
            up.copy_(0.1 * torch.randn(up.shape, generator=generator))
    return lora


# --- the losses, against float64 --------------------------------------------------------------------------------------
def squared(a: Tensor, b: Tensor) -> np.float64:
    difference = a.detach().numpy().astype(np.float64) - b.detach().numpy().astype(np.float64)
    return np.float64((difference**2).mean())


def by_hand(method: FADE, changed: dict[Any, Tensor], frozen: Any) -> float:
    """The formulas of the docstring, term by term, for two adjacent concepts."""
    own = changed[0, 0]
    near = (squared(own, frozen[0, 1]) + squared(own, frozen[0, 2])) / 2
    erasing = max(0.0, near - squared(own, frozen[0, 0]) + method.margin)
    guidance = squared(own, frozen[0, -1])
    adjacency = (squared(changed[1, 1], frozen[1, 1]) + squared(changed[2, 2], frozen[2, 2])) / 2
    return float(
        method.lambda_erasing * erasing + method.lambda_guidance * guidance + method.lambda_adjacency * adjacency
    )


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 1, 0), (0, 1, 1), (0.5, 2, 3)])
def test_losses_are_the_formulas(backbone: Backbone, weights: tuple[float, ...]) -> None:
    """On a model's own predictions, with modules that do something."""
    task, draws = prepared(backbone)
    example, lora = _fade_fg.example(task, draws[:2]), shaken(backbone)
    method = replace(SHORT, **dict(zip(LAMBDAS, weights, strict=True)))
    with torch.no_grad():
        with backbone.substituted(lora.weights()):
            changed = _fade_fg.predictions(task, example)
        loss = _fade_fg.objective(replace(task, settings=method), changed, example.frozen)
    assert loss.item() == pytest.approx(by_hand(method, changed, example.frozen), rel=1e-6)


def random_pairs() -> tuple[dict[Any, Tensor], dict[Any, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = lambda: torch.randn(2, 3, 4, 4, generator=generator)  # noqa: E731
    changed = {pair: made().requires_grad_() for pair in [(0, 0), (1, 1), (2, 2)]}
    return changed, {pair: made() for pair in [(0, 0), (0, 1), (0, 2), (0, -1), (1, 1), (2, 2)]}


def gradients(task: _fade_fg.Task, method: FADE, changed: Any, frozen: Any) -> list[Tensor | None]:
    loss = _fade_fg.objective(replace(task, settings=method), changed, frozen)
    return list(torch.autograd.grad(loss, list(changed.values()), allow_unused=True))


def test_a_lambda_of_0_removes_its_term_exactly(backbone: Backbone) -> None:
    """Gradients are those of the other terms alone, bit for bit: what only the term read may even be absent."""
    task, _ = prepared(backbone)
    changed, frozen = random_pairs()
    full = replace(SHORT, margin=9.0)
    own = list(changed.values())[0]
    for method, needed in (
        (replace(full, lambda_erasing=0), [(0, -1), (1, 1), (2, 2)]),
        (replace(full, lambda_guidance=0), [(0, 0), (0, 1), (0, 2), (1, 1), (2, 2)]),
        (replace(full, lambda_adjacency=0), [(0, 0), (0, 1), (0, 2), (0, -1)]),
    ):
        got = gradients(task, method, changed, {pair: frozen[pair] for pair in needed})
        assert replace(task, settings=method).asked == needed
        loss = by_hand(method, changed, frozen)
        assert _fade_fg.objective(replace(task, settings=method), changed, frozen).item() == pytest.approx(loss)
        assert (got[1] is None) == (got[2] is None) == (not method.lambda_adjacency)
    alone = gradients(task, replace(full, lambda_erasing=0, lambda_adjacency=0), changed, frozen)[0]
    [guidance] = torch.autograd.grad(_fade_fg.distance(own, frozen[0, -1]), [own])
    assert alone is not None and torch.equal(alone, guidance)


def test_the_hinge_is_active_until_the_margin_is_met() -> None:
    """own = (0, 0), one neighbour at distance² 1, itself at distance² 4: 1 − 4 + δ is active from δ = 3 on. There the
    gradient is 2(own − a)/2 − 2(own − c)/2 = c − a in two elements, wherever own is."""
    own = torch.zeros(2, requires_grad=True)
    near, itself = torch.tensor([1.0, 1.0]), torch.tensor([2.0, -2.0])
    assert _fade_fg.erasing(own, [near], itself, 2.5).item() == 0
    [none] = torch.autograd.grad(_fade_fg.erasing(own, [near], itself, 2.5), [own])
    assert torch.equal(none, torch.zeros(2))
    active = _fade_fg.erasing(own, [near], itself, 3.5)
    [gradient] = torch.autograd.grad(active, [own])
    assert active.item() == 0.5 and torch.equal(gradient, itself - near)


def test_half_precision_is_compared_in_float32() -> None:
    a, b = torch.full((1000,), 300.0, dtype=torch.float16), torch.zeros(1000, dtype=torch.float16)
    assert _fade_fg.distance(a, b).item() == 90_000


# --- what they are computed on ----------------------------------------------------------------------------------------
def test_images_are_the_frozen_model_s_and_noise_is_shared(backbone: Backbone) -> None:
    """Each latent and prediction is that of one image walked, noised and asked alone."""
    method = replace(SHORT, images=7)  # 21 walks: one full pack and one that is not
    task, draws = prepared(backbone, method)
    seeds = np.random.default_rng(0).integers(2**31, size=7).tolist()
    text, empty = backbone.embed([*PROMPTS, ""]), backbone.embed([""])
    made = _fade_fg.example(task, draws[:3])
    for i, d in enumerate(draws[:3]):
        t, noise = backbone.timesteps(1000)[d.time], backbone.noise([d.seed])
        for concept in range(3):
            start = backbone.noise([seeds[d.image]])
            clean = backbone.trajectory(start, text[[concept]], empty, steps=3, guidance=7.5)
            x = backbone.noisy(clean, noise, t)
            torch.testing.assert_close(made.noisy[concept][i], x[0], atol=1e-4, rtol=0)
            for own, prompt in task.asked:
                if own == concept:
                    with torch.no_grad():
                        alone = backbone.predict(x, t, text[[prompt % 4]])  # −1 is the fourth row
                    torch.testing.assert_close(made.frozen[own, prompt][i], alone[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("batch", [1, 3, 20])
def test_examples_come_in_order_one_an_iteration(batch: int) -> None:
    """In packs that hold whole iterations only, the last one shorter."""
    backbone, method = random_unet(), replace(SHORT, batch=batch, iterations=7)
    task, draws = prepared(backbone, method)
    made = list(map(_fade_fg.Examples(task, draws), range(7)))
    assert [len(e.t) for e in made] == [batch] * 7
    times = torch.cat([e.t for e in made])
    assert torch.equal(times, backbone.timesteps(1000)[[d.time for d in draws]])
    last = _fade_fg.example(task, draws[-batch:])
    torch.testing.assert_close(made[-1].frozen[0, 2], last.frozen[0, 2], atol=1e-5, rtol=0)


def test_draws_cover_times_and_images_and_do_not_depend_on_the_losses() -> None:
    """Ablations see the same images, times and noises."""
    long = replace(SHORT, iterations=4000)
    draws = _fade_fg.draw(np.random.default_rng(5), long)
    assert {d.image for d in draws} == {0, 1} and len({d.seed for d in draws}) == 8000
    times: NDArray[Any] = np.array([d.time for d in draws])
    assert (times.min(), times.max()) == (1, 999) and abs(times.mean() - 500) < 10
    assert _fade_fg.draw(np.random.default_rng(5), replace(long, lambda_erasing=0)) == draws


def test_work_is_what_the_terms_need(backbone: Backbone) -> None:
    """Walks: two predictions a step of each image. An iteration asks the frozen model for c, A and ∅ on c's image and
    for each of A on its own, and trains on c and A; without adjacency on c alone."""
    walks, samples = 3 * 2 * 3 * 2, 4 * 2
    for method, asked, trained in (
        (SHORT, 1 + 2 + 1 + 2, 3),
        (replace(SHORT, lambda_erasing=0), 1 + 2, 3),
        (replace(SHORT, lambda_guidance=0), 1 + 2 + 2, 3),
        (replace(SHORT, lambda_adjacency=0), 1 + 2 + 1, 1),
    ):
        cost = edits.make(method, backbone, REQUEST).cost
        assert cost.denoiser_forwards == walks + samples * (asked + trained)
        assert cost.denoiser_backwards == samples * trained
        assert cost.text_encodes == 4


# --- the modules ------------------------------------------------------------------------------------------------------
def test_untrained_modules_are_the_base_model_bit_for_bit(backbone: Backbone) -> None:
    task, draws = prepared(backbone)
    example, lora = _fade_fg.example(task, draws[:2]), _fade_fg.modules(backbone, SHORT, seed=0)
    with torch.no_grad():
        plain = _fade_fg.predictions(task, example)
        with backbone.substituted(lora.weights()):
            changed = _fade_fg.predictions(task, example)
        with backbone.substituted(shaken(backbone).weights()):
            other = _fade_fg.predictions(task, example)
    assert all(torch.equal(changed[pair], plain[pair]) for pair in task.trained)
    assert not any(torch.equal(other[pair], plain[pair]) for pair in task.trained)


def test_modules_sit_on_attention() -> None:
    unet, flux = random_unet(), random_flux()
    cross, both = (set(_fade_fg.modules(unet, replace(SHORT, self_attention=s), 0).base) for s in (False, True))
    ends = ("to_q", "to_k", "to_v", "to_out.0")
    named = {
        f"{n.removesuffix('.weight')}.weight" for n in unet.tensors() if n.endswith(tuple(f"{e}.weight" for e in ends))
    }
    assert cross == {n for n in named if ".attn2." in n} and both == named
    text = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    double = {f"transformer.transformer_blocks.0.attn.{e}.weight" for e in (*ends, *text)}
    single = {f"transformer.single_transformer_blocks.0.attn.{e}.weight" for e in ends[:3]}
    assert set(_fade_fg.modules(flux, SHORT, 0).base) == double | single


def test_modules_of_stable_diffusion() -> None:
    """16 cross-attentions, 5 of width 320, 5 of 640, 6 of 1280: rank · (6d + 2·768) parameters each."""
    parts = unet_components()
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)  # type: ignore[no-untyped-call]
        vae = AutoencoderKL(latent_channels=4)  # type: ignore[no-untyped-call]
    rest = {k: parts[k] for k in ("text_encoder", "tokenizer")}
    model = UNetBackbone("sd-meta", unet=unet, vae=vae, scheduler=parts["scheduler"].config, device="meta", **rest)
    lora = _fade_fg.modules(model, FADE(), 0)
    expected = 4 * sum(count * (6 * width + 2 * 768) for count, width in ((5, 320), (5, 640), (6, 1280)))
    assert (len(lora.base), sum(p.numel() for p in lora.parameters())) == (64, expected) == (64, 397_824)


def test_deltas_survive_the_store_and_come_off_to_the_bit(backbone: Backbone) -> None:
    before = edits.fingerprints(backbone)
    edit = edits.make(SHORT, backbone, REQUEST)
    again = edits.deserialise(edits.serialise(edit))
    assert edits.edit_hash(again) == edits.edit_hash(edit) and not edit.weights
    assert {d.up.shape[1] for d in edit.deltas.values()} == {4}
    x, t, text = backbone.noise([5]), backbone.timesteps(4)[1], backbone.embed(["a photo of a cat"])
    with torch.no_grad():
        plain = backbone.predict(x, t, text)
        with edits.apply(backbone, again):
            changed = backbone.predict(x, t, text)
        assert torch.equal(backbone.predict(x, t, text), plain) and not torch.equal(changed, plain)
    assert edits.fingerprints(backbone) == before


def test_scale_is_in_the_deltas(backbone: Backbone) -> None:
    """What is applied is what was trained."""
    lora, (task, draws) = shaken(backbone, replace(SHORT, scale=2.5)), prepared(backbone)
    example = _fade_fg.example(task, draws[:1])
    with torch.no_grad(), backbone.substituted(lora.weights()):
        trained = _fade_fg.predictions(task, example)[0, 0]
    with torch.no_grad(), edits.apply(backbone, Edit(deltas=lora.deltas())):
        applied = _fade_fg.predictions(task, example)[0, 0]
    torch.testing.assert_close(applied, trained, atol=1e-5, rtol=1e-5)


# --- the training -----------------------------------------------------------------------------------------------------
def moved(backbone: Backbone, method: FADE, seeds: range) -> tuple[float, float]:
    """How far the erased concept is from ∅, and the adjacent from themselves, on unseen noise; 1 is the unedited cat's
    own distance from ∅."""
    x, t = backbone.noise(seeds), backbone.timesteps(4)[1]
    cat, dog, null = (backbone.embed([p] * len(seeds)) for p in (*PROMPTS[:2], ""))
    edit = edits.make(method, backbone, REQUEST)
    with torch.no_grad():
        empty, was, kept = (backbone.predict(x, t, text) for text in (null, cat, dog))
        with edits.apply(backbone, edit):
            erased, still = (backbone.predict(x, t, text) for text in (cat, dog))
    unit = (was - empty).norm()
    return float((erased - empty).norm() / unit), float((still - kept).norm() / unit)


@pytest.mark.slow
def test_guidance_leads_to_the_empty_prompt_and_adjacency_holds_the_neighbours() -> None:
    backbone, seeds = random_unet(), range(100, 108)
    method = replace(SHORT, iterations=60, lr=3e-3, batch=4, lambda_erasing=0.0)
    to_null, drift = moved(backbone, replace(method, lambda_adjacency=10.0), seeds)
    _, free = moved(backbone, replace(method, lambda_adjacency=0.0), seeds)
    assert to_null < 0.8 and drift < 0.7 * free


@pytest.mark.slow
def test_erasing_brings_the_concept_nearer_to_its_neighbours_than_to_itself() -> None:
    backbone = random_unet()
    method = replace(SHORT, iterations=60, lr=3e-3, batch=4, lambda_guidance=0.0, lambda_adjacency=0.0)
    edit = edits.make(method, backbone, REQUEST)
    task, draws = prepared(backbone, replace(method, images=3))
    unseen = _fade_fg.example(task, draws[:8])
    with edits.apply(backbone, edit), torch.no_grad():
        own = _fade_fg.predictions(task, unseen)[0, 0]
    near = [unseen.frozen[0, k] for k in (1, 2)]
    assert _fade_fg.erasing(unseen.frozen[0, 0], near, unseen.frozen[0, 0], 0.0) > 0  # as it was
    assert _fade_fg.erasing(own, near, unseen.frozen[0, 0], 0.0) == 0


def test_switches_change_the_edit_by_name() -> None:
    backbone, fields = random_unet(), {"iterations": 2, "steps": 2, "images": 1, "lr": 1e-3}
    labels = ("fade_fg", "fade_fg@no-erasing", "fade_fg@no-guidance", "fade_fg@no-adjacency")
    made = [edits.make(registry.resolve(label, passed=fields).instance, backbone, REQUEST) for label in labels]
    assert len({edits.edit_hash(edit) for edit in made}) == 4


def test_same_seed_same_edit_and_another_seed_another() -> None:
    backbone = random_unet()
    one, two, other = (edits.edit_hash(edits.make(SHORT, backbone, replace(REQUEST, seed=seed))) for seed in (1, 1, 2))
    assert one == two != other


def test_divergence_names_the_iteration() -> None:
    with pytest.raises(BenchError, match=r"fade_fg: the loss is (nan|inf) at iteration \d+"):
        edits.make(replace(SHORT, iterations=20, lr=1e30), random_unet(), REQUEST)


# --- neighbours, and bad input ----------------------------------------------------------------------------------------
def test_adjacent_concepts_come_from_the_neighbourhood_or_else_from_what_is_kept() -> None:
    keep = ("cat", "ship", "dog", "dog", "truck")
    asked = replace(REQUEST, keep=keep)
    assert SHORT.adjacent(CAT, asked) == (("dog", "deer"), "neighbourhood")
    assert SHORT.adjacent(Target(name="cat"), asked) == (("ship", "dog"), "keep")
    assert FADE().adjacent(Target(name="cat"), asked) == (("ship", "dog", "truck"), "keep")
    alone = replace(SHORT, lambda_erasing=0.0, lambda_adjacency=0.0)
    assert alone.adjacent(CAT, REQUEST)[0] == ()
    with pytest.raises(BadInput, match="adjacent to 'cat', found none.*erasure-bench neighbours"):
        SHORT.adjacent(Target(name="cat"), replace(REQUEST, keep=("cat",)))


def test_notes_say_what_was_used() -> None:
    notes = edits.make(SHORT, random_unet(), REQUEST).notes
    assert notes["adjacent"] == ["dog", "deer"] and notes["adjacent_from"] == "neighbourhood"
    assert notes["prompts"] == PROMPTS and notes["modules"] > 0 and notes["loss_first"] > 0


def test_guidance_alone_needs_no_neighbours() -> None:
    method = replace(SHORT, lambda_erasing=0.0, lambda_adjacency=0.0)
    edit = edits.make(method, random_unet(), Request(erase=(Target(name="cat"),)))
    assert edit.deltas and edit.notes["prompts"] == PROMPTS[:1]


def test_several_concepts_go_one_after_another() -> None:
    backbone, two = random_unet(), replace(REQUEST, erase=(CAT, Target(name="ship", adjacent=("truck",))))
    with pytest.raises(BadInput, match="at most 1 concept"):
        edits.make(SHORT, backbone, two)
    edit = edits.make(SHORT, backbone, two, "sequential")
    assert {d.up.shape[1] for d in edit.deltas.values()} == {8}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lambda_erasing": 0, "lambda_guidance": 0}, "adjacency alone erases nothing"),
        ({"lambda_adjacency": -1}, "lambda_adjacency must be a number of at least 0"),
        ({"margin": float("nan")}, "margin"),
        ({"neighbours": 0}, "neighbours must be a whole number of at least 1"),
        ({"rank": 1.5}, "rank must be a whole number"),
        ({"lr": 0}, "lr must be a number above 0"),
        ({"images": 0}, "images"),
        ({"template": "a photo"}, "template must hold {}"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        FADE(**fields)


@pytest.mark.parametrize("label", ["fade", "fade@paper"])
def test_the_bare_name_is_refused_with_both_explained(label: str) -> None:
    with pytest.raises(BadInput, match=r"fade_fg is .*2503\.19783.*fade_adv is .*2507\.12283"):
        registry.resolve(label)
    assert "fade" not in registry.method_names()
