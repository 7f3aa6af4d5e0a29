"""FADE-adv: the two players' losses, the gradients, the windows, the selected elements, the stop test, the switches."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from benchmark import edits
from benchmark.backbones.base import Backbone
from benchmark.backbones.flux import FluxBackbone
from benchmark.backbones.random_models import flux_components, random_flux, random_unet, unet_components
from benchmark.backbones.unet import UNetBackbone
from benchmark.errors import BadInput, BenchError
from benchmark.interface import Edit, Kind, Request, Target
from methods import _discriminator, _fade_adv, _saliency
from methods._discriminator import Views
from methods.fade_adv import TEMPLATES, FadeAdv

CAT, DOG = Target(name="cat", anchor="animal"), Target(name="dog", anchor="animal", synonyms=("hound",))
REQUEST = Request(erase=(CAT,), seed=3)
BOTH = replace(REQUEST, erase=(CAT, DOG))
SHORT = FadeAdv(
    iterations=2,
    steps=4,
    lr=1e-3,
    pairs=2,
    pretrain=2,
    d_width=8,
    saliency_samples=2,
    stop_every=0,
    stop_steps=2,
    templates=("a photo of the {}", "an image of the {}"),
)


@pytest.fixture(scope="module", params=["unet", "flux"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return random_unet() if request.param == "unet" else random_flux()


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def task_of(backbone: Backbone, method: FadeAdv = SHORT, request: Request = REQUEST) -> _fade_adv.Task:
    return _fade_adv.prepare(backbone, request, method, rng())


def elements_of(task: _fade_adv.Task, fraction: float = 1.0) -> _saliency.Elements:
    """All candidates, or an arbitrary part of them."""
    base = _saliency.candidates(task.backbone, task.settings.candidates)
    return _saliency.Elements(base, _saliency.top({n: w.detach().abs() for n, w in base.items()}, fraction))


def one_batch(task: _fade_adv.Task, seed: int = 1) -> _fade_adv.Batch:
    n = task.settings.batch
    return next(_fade_adv.Walking(task, rng(seed), torch.no_grad, walkers=n, batch=n, draws=1))


def wide(x: Tensor) -> np.ndarray[Any, Any]:
    return x.detach().double().numpy()


# --- the losses -------------------------------------------------------------------------------------------------------
def by_hand(concept: np.ndarray[Any, Any], neutral: np.ndarray[Any, Any], heads: list[int], how: str) -> float:
    """L_D, pair by pair and logit by logit, from D itself."""
    yes, no = [], []
    for i, head in enumerate(heads):
        for m in range(concept.shape[1]):
            d_c, d_n = 1 / (1 + math.exp(-concept[i, m])), 1 / (1 + math.exp(-neutral[i, m]))
            if m == head:
                yes.append(-math.log(d_c))
                no.append(-math.log(1 - d_n))
            elif how == "cross":
                no += [-math.log(1 - d_c), -math.log(1 - d_n)]
    return sum(yes) / len(yes) + sum(no) / len(no)


@pytest.mark.parametrize("how", ["cross", "own"])
@pytest.mark.parametrize("concepts", [1, 3])
def test_losses_of_both_players(concepts: int, how: str) -> None:
    generator = torch.Generator().manual_seed(0)
    concept, neutral = torch.randn(2, 5, concepts, generator=generator).unbind()
    heads = torch.tensor([0, 1, 2, 1, 0]) % concepts
    d = _discriminator.discriminator_loss(concept, neutral, heads, how)
    assert d.item() == pytest.approx(by_hand(wide(concept), wide(neutral), heads.tolist(), how), rel=1e-6)
    own = [wide(concept)[i, head] for i, head in enumerate(heads)]
    by_d = -np.mean([math.log(1 - 1 / (1 + math.exp(-s))) for s in own])
    assert _discriminator.removal_loss(concept, heads).item() == pytest.approx(by_d, rel=1e-6)


@pytest.mark.parametrize("how", ["cross", "own"])
@pytest.mark.parametrize("concepts", [1, 4])
def test_equilibrium(concepts: int, how: str) -> None:
    """D = 1/2 everywhere: L_D = 2 log 2 and L_rem = log 2, and equal distributions leave D no gradient there."""
    logits, heads = torch.zeros(8, concepts, requires_grad=True), torch.arange(8) % concepts
    loss = _discriminator.discriminator_loss(logits, logits, heads, how)
    assert loss.item() == pytest.approx(2 * math.log(2), rel=1e-6)
    assert _discriminator.removal_loss(logits, heads).item() == pytest.approx(math.log(2), rel=1e-6)
    [grad] = torch.autograd.grad(loss, logits)
    # one set of latents for all prompts: what counts is a logit's gradient summed over them
    torch.testing.assert_close(grad.sum(0), torch.zeros(concepts), atol=1e-7, rtol=0)


def test_labels_of_several_concepts() -> None:
    heads = torch.tensor([1, 0])
    assert _discriminator.labels(heads, 3).tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]
    own = _discriminator.supervised(heads, 3, "own").int().tolist()
    assert own == [[0, 1, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert _discriminator.supervised(heads, 3, "cross").all()


def test_pairs_carry_the_logit_of_their_concept(backbone: Backbone) -> None:
    task = task_of(backbone, request=BOTH)
    assert (task.concepts, task.heads.tolist()) == (2, [0, 0, 1, 1])
    torch.testing.assert_close(task.concept.tokens, backbone.embed(prompts("cat") + prompts("dog")).tokens)
    torch.testing.assert_close(task.neutral.tokens, backbone.embed(2 * prompts("animal")).tokens)
    seen = _fade_adv.views(task, batch := one_batch(task, seed=2))
    assert seen.heads.tolist() == [task.heads[row] for row in batch.rows]


def prompts(word: str) -> list[str]:
    return [t.replace("{}", word) for t in SHORT.templates]


def test_preservation_and_match(backbone: Backbone) -> None:
    """Against the predictions of the model with the same weights put on for good."""
    method = replace(SHORT, removal="match", match=7.0)
    task, batch = task_of(backbone, method), one_batch(task_of(backbone, method))
    changed = {n: w * 1.3 for n, w in _saliency.candidates(backbone, "x").items()}
    fixed = _fade_adv.targets(task, batch)
    with torch.no_grad(), backbone.substituted(changed):
        pres = _fade_adv.preservation(task, batch, fixed.kept)
        rem = _fade_adv.removal(task, batch, None, None, fixed.match)
    text, neutral = task.concept[batch.rows], task.neutral[batch.rows]
    with torch.no_grad():
        kept = backbone.predict(batch.kept, batch.kept_t, neutral)
        target = backbone.predict(batch.concept, batch.t, neutral)
        with edits.apply(backbone, Edit(weights=changed)):
            kept_now = backbone.predict(batch.kept, batch.kept_t, neutral)
            now = backbone.predict(batch.concept, batch.t, text)
    assert pres is not None and pres > 0
    assert pres.item() == pytest.approx(np.square(wide(kept_now) - wide(kept)).mean(), rel=1e-6)
    assert rem.item() == pytest.approx(7 * np.square(wide(now) - wide(target)).mean(), rel=1e-6)


def test_the_total_is_the_two_terms(backbone: Backbone) -> None:
    task = task_of(backbone, replace(SHORT, preservation=50.0, removal="frozen"))
    contest = _fade_adv.Contest(task, elements_of(task), rng())
    for _ in range(2):
        contest.step()
    batch = one_batch(task)
    fixed = _fade_adv.targets(task, batch)
    with torch.no_grad(), contest.student():
        total = contest._loss(batch, fixed)
    rem, pres = contest.log.removal[-1], contest.log.preservation[-1]
    assert pres > 0 and total.item() == pytest.approx(rem + 50 * pres, rel=1e-6)


# --- the latents ------------------------------------------------------------------------------------------------------
def test_batches_are_the_walks_of_the_pairs(backbone: Backbone) -> None:
    task = task_of(backbone, request=BOTH)
    rows, kept, seeds = _fade_adv.start(task, rng(5), 3)
    path = _fade_adv.walk(task, rows, kept, seeds, 3)
    for w, (row, seed) in enumerate(zip(rows.tolist(), seeds, strict=True)):
        for branch, text in enumerate((task.concept, task.neutral)):
            alone = backbone.trajectory(backbone.noise([seed]), text[[row]], task.empty, steps=4, guidance=2.0, stop=3)
            torch.testing.assert_close(path[3, branch, w], alone[0], atol=1e-4, rtol=0)
    assert torch.equal(path[0, 0], path[0, 1])  # the pair starts from the same noise


def test_a_batch_lies_at_its_times(backbone: Backbone) -> None:
    """The latent that a batch holds for step i is the one before step i, and preservation stays in its window."""
    task = task_of(backbone, replace(SHORT, steps=6))
    batches = _fade_adv.Walking(task, rng(2), torch.no_grad, walkers=4, batch=2, draws=2)
    replay = rng(2)
    rows, kept, seeds = _fade_adv.start(task, replay, 4)
    plan = [_fade_adv.draw(task, replay, 4, 2, False) for _ in range(2)]
    path = _fade_adv.walk(task, rows, kept, seeds, 5)
    for batch, d in ((next(batches), d) for d in plan):
        for k, (w, i, j) in enumerate(zip(*(v.tolist() for v in d), strict=True)):
            assert (batch.t[k], batch.kept_t[k]) == (task.times[i], task.times[j]) and j in task.window
            for ours, theirs in ((batch.concept, path[i, 0]), (batch.neutral, path[i, 1]), (batch.kept, path[j, 1])):
                torch.testing.assert_close(ours[k], theirs[w], atol=1e-4, rtol=0)


def test_off_policy_noises_one_image_alike(backbone: Backbone) -> None:
    """Both halves are the unedited model's images under the same unit noise, at the same time."""
    task, replay = task_of(backbone, replace(SHORT, grad_mode="off_policy", pairs=3)), rng(4)
    batch = next(_fade_adv.Noising(task, rng(4), batch=2))
    rows, kept, seeds = _fade_adv.start(task, replay, 3)
    walkers = _fade_adv.draw(task, replay, 3, 2, True).walkers
    images = _fade_adv.walk(task, rows, kept, seeds, 4)[-1][:, walkers]
    zero = torch.zeros_like(batch.concept)
    halves = zip((batch.concept, batch.neutral), images, strict=True)
    noise = [half - backbone.noisy(image, zero, batch.t) for half, image in halves]
    torch.testing.assert_close(noise[0], noise[1], atol=1e-4, rtol=0)
    sigma = backbone.noisy(zero, torch.ones_like(zero), batch.t).flatten(1)[:, 0]
    torch.testing.assert_close(noise[0].flatten(1).std(1), sigma, rtol=0.1, atol=0)


@pytest.mark.parametrize(
    ("which", "share", "unet", "flow"),
    [
        ("early", 0.5, [751, 501], lambda t: t >= 500),
        ("literal", 0.5, [251, 1], lambda t: t <= 500),
        ("all", 0.5, [751, 501, 251, 1], lambda t: t > 0),
        ("early", 0.25, [751], lambda t: t >= 750),
        ("literal", 0.75, [501, 251, 1], lambda t: t <= 750),
    ],
)
def test_windows(which: Any, share: float, unet: list[int], flow: Any) -> None:
    """Early is the noisy end in both families: t from T − T0 up."""
    for backbone in (random_unet(), random_flux()):
        task = task_of(backbone, replace(SHORT, pres_window=which, window=share, steps=4))
        times = backbone.timesteps(4).tolist()
        inside = [times[i] for i in task.window]
        assert inside == (unet if backbone.family == "unet-epsilon" else [t for t in times if flow(t)])
        assert inside


def test_kept_prompts_hold_no_erased_name(backbone: Backbone) -> None:
    request = replace(BOTH, keep=("horse", "hound", "Dog", "ship"), general=("the sky",))
    method = replace(SHORT, preserve_on="keep")
    kept = _fade_adv.kept_prompts(request, method, rng())
    assert set(kept) == {*prompts("animal"), "a photo of the horse", "an image of the ship", "the sky"}
    batch = one_batch(task := task_of(backbone, method, request))
    assert task.kept is not None and len(task.kept) == 5
    assert any(torch.equal(batch.kept_text.tokens[0], row) for row in task.kept.tokens)
    assert edits.make(method, backbone, request).weights


# --- the gradients ----------------------------------------------------------------------------------------------------
def gradient(task: _fade_adv.Task, batch: _fade_adv.Batch, leaf: str, weigh: Tensor) -> Tensor:
    """Of a linear judge's verdict on the concept's half, by one weight."""
    weight = task.backbone.tensors()[leaf].detach().clone().requires_grad_()
    with torch.enable_grad(), task.backbone.substituted({leaf: weight}):
        verdict = (_fade_adv.views(task, batch).concept * weigh).sum()
        [grad] = torch.autograd.grad(verdict, weight)
    return grad.flatten().double()


def leaf_of(backbone: Backbone) -> str:
    return next(n for n in _saliency.candidates(backbone, "x") if ".to_k." in n or "add_k" in n)


def at_step(task: _fade_adv.Task, batch: _fade_adv.Batch, path: Tensor, i: int) -> _fade_adv.Batch:
    return batch._replace(concept=path[i, 0], neutral=path[i, 1], t=task.times[[i] * len(batch.rows)])


def test_one_step_is_full_backprop_where_there_is_one_step(backbone: Backbone) -> None:
    """Flow's only step ends at the clean estimate itself; DDIM's at the schedule's last, not quite clean level."""
    method = replace(SHORT, steps=1, guidance=1.0, bound=1e6, preservation=0.0)
    one, full = (task_of(backbone, replace(method, grad_mode=m)) for m in ("x0_onestep", "full"))
    batch, weigh = one_batch(one), backbone.noise([9])
    a, b = (gradient(task, batch, leaf_of(backbone), weigh) for task in (one, full))
    assert a.norm() > 0
    if backbone.family == "transformer-flow":
        torch.testing.assert_close(a, b, rtol=1e-4, atol=float(1e-6 * a.abs().max()))
    else:
        assert torch.cosine_similarity(a, b, dim=0) > 0.999


@pytest.mark.parametrize("steps", [2, 4])
def test_one_step_agrees_with_full_backprop_in_direction(backbone: Backbone, steps: int) -> None:
    """The mean of the one-step gradients along a walk points the way of the gradient through all of it."""
    method = replace(SHORT, steps=steps, guidance=1.0, bound=1e6, preservation=0.0)
    one, full = (task_of(backbone, replace(method, grad_mode=m)) for m in ("x0_onestep", "full"))
    rows, kept, seeds = _fade_adv.start(full, rng(1), 2)
    path, batch, weigh = _fade_adv.walk(full, rows, kept, seeds, steps), one_batch(full), backbone.noise([9])
    batch = batch._replace(rows=rows)
    through = gradient(full, at_step(full, batch, path, 0), leaf_of(backbone), weigh)
    each = [gradient(one, at_step(one, batch, path, i), leaf_of(backbone), weigh) for i in range(steps)]
    assert torch.cosine_similarity(torch.stack(each).mean(0), through, dim=0) > 0.2


def test_last_steps_are_the_end_of_the_walk(backbone: Backbone) -> None:
    """Whatever k, the judged latents are the walk's last, at time 0; gradients differ."""
    grads = []
    for method in (replace(SHORT, grad_mode="last_k", last_k=1), replace(SHORT, grad_mode="full")):
        task = task_of(backbone, method)
        rows, kept, seeds = _fade_adv.start(task, rng(1), 2)
        path = _fade_adv.walk(task, rows, kept, seeds, 4)
        batch = at_step(task, one_batch(task)._replace(rows=rows), path, 4 - task.tail)
        seen = _fade_adv.views(task, batch)
        torch.testing.assert_close(seen.concept, path[4, 0], atol=1e-4, rtol=0)
        torch.testing.assert_close(seen.neutral, path[4, 1], atol=1e-4, rtol=0)
        assert seen.t.tolist() == [0, 0]
        grads.append(gradient(task, batch, leaf_of(backbone), backbone.noise([9])))
    assert not torch.allclose(grads[0], grads[1], rtol=1e-2)


def test_unconditional_part_has_no_gradient(backbone: Backbone) -> None:
    """u + g (c − u) with u as a constant: g times the gradient of the conditional estimate alone."""
    task = task_of(backbone, replace(SHORT, guidance=3.0, bound=1e6))
    batch, leaf, weigh = one_batch(task), leaf_of(backbone), backbone.noise([9])
    weight = backbone.tensors()[leaf].detach().clone().requires_grad_()
    with torch.enable_grad(), backbone.substituted({leaf: weight}):
        x, t, text = batch.concept, batch.t, task.concept[batch.rows]
        alone = (backbone.clean(x, t, 3 * backbone.predict(x, t, text)) * weigh).sum()
        [wanted] = torch.autograd.grad(alone, weight)
    got = gradient(task, batch, leaf, weigh)
    torch.testing.assert_close(got, wanted.flatten().double(), rtol=1e-4, atol=float(1e-5 * wanted.abs().max()))
    with torch.no_grad():
        guided = backbone.guided(x, t, text, task.empty.expand(2), 3.0)
        torch.testing.assert_close(
            _fade_adv.views(task, batch).concept, backbone.clean(x, t, guided), atol=1e-3, rtol=1e-4
        )


def test_estimates_are_bounded(backbone: Backbone) -> None:
    seen = _fade_adv.views(task := task_of(backbone, replace(SHORT, bound=0.5)), one_batch(task))
    assert seen.concept.abs().max() == seen.neutral.abs().max() == 0.5


# --- the discriminator ------------------------------------------------------------------------------------------------
def test_size_follows_the_latent() -> None:
    assert [_discriminator.depth(side) for side in (2, 4, 8, 16, 32, 64, 128)] == [1, 1, 2, 3, 4, 4, 4]
    judge = _discriminator.Discriminator((4, 64, 64), 3, 64)
    assert [c.out_channels for c in judge.convs] == [64, 128, 256, 256]
    assert judge(torch.zeros(2, 4, 64, 64), torch.tensor([1, 999])).shape == (2, 3)


def test_packed_latents_are_laid_out_as_the_image() -> None:
    """A wide image: the grid is found from its proportions, rows first."""
    parts = flux_components()
    parts["scheduler"] = parts["scheduler"].config
    wide_flux = FluxBackbone("wide", size=(64, 128), **parts)
    channels, rows, columns = _discriminator.grid(wide_flux)
    assert (channels, rows, columns) == (64, 4, 8)
    z = torch.arange(16 * 8 * 16, dtype=torch.float32).reshape(1, 16, 8, 16)
    folded = _discriminator.folded(wide_flux._pack(z), rows)
    torch.testing.assert_close(folded, torch.nn.functional.pixel_unshuffle(z, 2))


def test_it_reads_the_time_and_leaves_the_global_seed_alone(backbone: Backbone) -> None:
    state = torch.get_rng_state()
    one, two, other = (_discriminator.build(backbone, 2, 8, seed).eval() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    x, early, late = backbone.noise([0]), torch.tensor([900]), torch.tensor([10])
    assert torch.equal(one(x, early), two(x, early)) and not torch.equal(one(x, early), other(x, early))
    assert not torch.equal(one(x, early), one(x, late))


def test_weights_have_spectral_norm_1() -> None:
    judge = _discriminator.Discriminator((16, 8, 8), 1, 8)
    for layer in (*judge.convs, judge.head):
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.15)


def test_each_player_moves_itself_alone(backbone: Backbone) -> None:
    task = task_of(backbone)
    contest = _fade_adv.Contest(task, elements_of(task), rng())
    assert contest.judge is not None

    def state() -> tuple[list[Tensor], list[Tensor]]:
        mine, theirs = contest.elements.parameters(), contest.judge.parameters()  # type: ignore[union-attr]
        return [p.detach().clone() for p in mine], [p.detach().clone() for p in theirs]

    before = state()
    contest._learn(_fade_adv.views(task, one_batch(task)))
    after = state()
    assert all(map(torch.equal, before[0], after[0])) and not all(map(torch.equal, before[1], after[1]))
    assert all(p.grad is None for p in contest.elements.parameters())
    contest.step()
    assert not all(map(torch.equal, after[0], state()[0]))


# --- the elements -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0, 1e-9])
def test_exactly_the_highest_fraction_is_chosen(fraction: float) -> None:
    """Across tensors, with many ties at the border."""
    generator = torch.Generator().manual_seed(0)
    scores = {n: torch.randint(5, (7, size), generator=generator).float() for n, size in (("a", 11), ("b", 3))}
    rows = _saliency.top(scores, fraction)
    total = 7 * 14
    assert sum(map(len, rows.values())) == max(1, round(fraction * total))
    inside = torch.cat([scores[n].flatten()[r] for n, r in rows.items()])
    outside = torch.cat([np_delete(scores[n].flatten(), rows.get(n)) for n in scores])
    assert not len(outside) or inside.min() >= outside.max()
    assert all(r.diff().min() > 0 for r in rows.values() if len(r) > 1)


def np_delete(values: Tensor, rows: Tensor | None) -> Tensor:
    keep = torch.ones(len(values), dtype=torch.bool)
    keep[rows if rows is not None else []] = False
    return values[keep]


def test_saliency_is_the_gradient_of_the_squared_difference(backbone: Backbone) -> None:
    """Against finite differences in one weight; absolute values add up over samples."""
    name = leaf_of(backbone)
    base = {name: backbone.tensors()[name]}
    looks = [
        _saliency.Look(
            backbone.noise([s]), backbone.timesteps(4)[1:2], backbone.embed(["cat"]), backbone.embed(["ship"])
        )
        for s in (1, 2)
    ]
    scores = _saliency.saliency(backbone, base, looks)[name]
    each = [_saliency.saliency(backbone, base, [look])[name] for look in looks]
    torch.testing.assert_close(scores, each[0] + each[1])
    top = int(each[0].argmax())

    def difference(shift: float) -> float:
        moved = base[name].detach().clone()
        moved.view(-1)[top] += shift
        with torch.no_grad(), backbone.substituted({name: moved}):
            c, n = (backbone.predict(looks[0].x, looks[0].t, e) for e in (looks[0].concept, looks[0].neutral))
        return float(np.square(wide(c) - wide(n)).mean())

    slope = (difference(0.02) - difference(-0.02)) / 0.04
    assert each[0].view(-1)[top].item() == pytest.approx(abs(slope), rel=0.05)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_other_elements_stay_to_the_bit(backbone: Backbone, decay: float) -> None:
    method = replace(SHORT, saliency=0.05, weight_decay=decay)
    edit, live = edits.make(method, backbone, REQUEST), backbone.tensors()
    base = _saliency.candidates(backbone, "x+up")
    changed = sum(int((w != live[n]).sum()) for n, w in edit.weights.items())
    assert edit.notes["candidates"] == sum(w.numel() for w in base.values())
    assert edit.notes["trained"] == round(0.05 * edit.notes["candidates"])
    assert 0.9 * edit.notes["trained"] < changed <= edit.notes["trained"]
    assert set(edit.weights) <= set(base)
    task = task_of(backbone, method)
    rows = _fade_adv.chosen(task, base, rng(REQUEST.seed).spawn(4)[1])
    for name, new in edit.weights.items():
        others = torch.ones(new.numel(), dtype=torch.bool)
        others[rows[name]] = False
        same = new.flatten()[others].view(torch.int32) == live[name].detach().flatten()[others].view(torch.int32)
        assert same.all()


def test_decay_reaches_what_is_trained() -> None:
    """So that the test above would see it elsewhere."""
    task = task_of(random_unet(), replace(SHORT, weight_decay=100.0, lr=1e-3, removal="match"))
    elements = elements_of(task, 0.01)
    before = torch.cat([p.detach() for p in elements.parameters()]).norm()
    _fade_adv.Contest(task, elements, rng()).step()
    assert torch.cat([p.detach() for p in elements.parameters()]).norm() < 0.95 * before


@pytest.mark.parametrize(("which", "convs"), [("x", False), ("x+up", True)])
def test_candidates(which: str, convs: bool) -> None:
    unet, flow = (set(_saliency.candidates(b, which)) for b in (random_unet(), random_flux()))
    assert all(".attn2." in n or (convs and ".up_blocks." in n and "conv" in n) for n in unet)
    assert any("conv" in n for n in unet) == convs
    assert {n.split(".")[-2] for n in flow} == {"to_k", "to_v", "add_k_proj", "add_v_proj"}


def test_candidates_of_stable_diffusion() -> None:
    """Query, key, value, output weight and bias of 16 cross-attentions: 43,962,560, as counted for ESD-x."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)  # type: ignore[no-untyped-call]
        vae = AutoencoderKL(latent_channels=4)  # type: ignore[no-untyped-call]
    parts = unet_components()
    rest = {k: parts[k] for k in ("text_encoder", "tokenizer")}
    model = UNetBackbone("sd", unet=unet, vae=vae, scheduler=parts["scheduler"].config, device="meta", **rest)
    found = _saliency.candidates(model, "x")
    assert (len(found), sum(w.numel() for w in found.values())) == (80, 43_962_560)


def test_a_model_without_candidates_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UNetBackbone, "layers", lambda self: [])
    with pytest.raises(BadInput, match="'x'.*none of them"):
        _saliency.candidates(random_unet(), "x")


# --- the stop test ----------------------------------------------------------------------------------------------------
def constructed(backbone: Backbone, shift: float, seed: int) -> Views:
    """Latents of independent noise, the concept's moved by `shift` in half of the image."""
    noise = backbone.noise(list(range(seed, seed + 128)))
    concept, neutral = noise.chunk(2)
    concept = concept.clone()
    concept[:, : concept.shape[1] // 2] += shift
    return Views(concept, neutral, torch.full((64,), 500), torch.zeros(64, dtype=torch.long))


def test_a_fresh_discriminator_tells_what_can_be_told(backbone: Backbone) -> None:
    task = task_of(backbone, replace(SHORT, stop_steps=60, d_batch=16, d_lr=2e-3))
    accuracies = {
        shift: _fade_adv.fresh_accuracy(task, constructed(backbone, shift, 0), constructed(backbone, shift, 500), rng())
        for shift in (0.0, 2.0)
    }
    assert accuracies[2.0] > 0.9
    assert 0.35 < accuracies[0.0] < 0.65


@pytest.mark.quick("flux")
def test_stops_when_nothing_is_left_to_tell(backbone: Backbone) -> None:
    """With the same prompts on both sides the two halves are one latent, and every judge is right half of the time."""
    method = replace(SHORT, iterations=9, stop_every=2, stop_checks=3, stop_steps=2, pretrain=0)
    task = replace(task := task_of(backbone, method), neutral=task.concept)
    log = _fade_adv.train(task, elements_of(task), rng(), rng(1))
    assert log.accuracies == [0.5, 0.5, 0.5]
    assert log.stopped and len(log.removal) == 6


def test_goes_on_while_it_can_be_told(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(task: Any, r: np.random.Generator, student: Any) -> Views:
        return constructed(backbone, 3.0, int(r.integers(9999)))

    monkeypatch.setattr(_fade_adv, "collect", seen)
    method = replace(SHORT, iterations=2, stop_every=1, stop_checks=1, stop_steps=100, d_lr=5e-3)
    log = _fade_adv.train(task := task_of(backbone, method), elements_of(task), rng(), rng(1))
    assert len(log.removal) == len(log.accuracies) == 2
    assert not log.stopped and min(log.accuracies) > 0.7


def test_checks_must_be_met_in_a_row() -> None:
    assert _fade_adv.met([0.5, 0.55, 0.5], 0.55, 3)
    assert not _fade_adv.met([0.5, 0.56, 0.5], 0.55, 3)
    assert not _fade_adv.met([0.5, 0.5], 0.55, 3)


# --- the switches -----------------------------------------------------------------------------------------------------
def variant(name: str) -> FadeAdv:
    return replace(SHORT, **FadeAdv.variants[name])


@pytest.mark.quick("flux")
def test_each_switch_takes_away_its_part_alone(backbone: Backbone) -> None:
    names = ("no-adversary", "frozen-adversary", "no-preservation", "no-saliency")
    made = [edits.make(m, backbone, REQUEST) for m in (SHORT, *map(variant, names))]
    full, adversary, frozen, preservation, saliency = (dict(e.notes) for e in made)
    gone = [{k for k in full if k not in notes} for notes in (adversary, frozen, preservation, saliency)]
    contest = {"discriminator_loss_first", "discriminator_loss_last"}
    assert gone == [contest, contest, {"preservation_loss_first", "preservation_loss_last"}, set()]
    shares = [n["trained"] / n["candidates"] for n in (full, adversary, frozen, preservation, saliency)]
    assert shares == pytest.approx([0.1, 0.1, 0.1, 0.1, 1.0], rel=1e-3)
    assert len({edits.edit_hash(e) for e in made}) == 5


def test_without_preservation_no_teacher_is_asked() -> None:
    """With one step nothing walks: a pair costs its two views, and with preservation the model's and the teacher's
    prediction; the first view and the model's prediction go backward."""
    backbone = random_unet()
    bare = replace(SHORT, guidance=1.0, pretrain=0, saliency=1.0, steps=1, pres_window="all")
    with_it, without = (edits.make(replace(bare, preservation=v), backbone, REQUEST).cost for v in (1.0, 0.0))
    assert (without.denoiser_forwards, without.denoiser_backwards) == (2 * 2 * 2, 2 * 2)
    assert (with_it.denoiser_forwards, with_it.denoiser_backwards) == (2 * 2 * 4, 2 * 2 * 2)


def test_a_frozen_discriminator_stays(backbone: Backbone) -> None:
    task = task_of(backbone, variant("frozen-adversary"))
    contest = _fade_adv.Contest(task, elements_of(task), rng())
    assert contest.judge is not None
    before = [p.clone() for p in (*contest.judge.parameters(), *contest.judge.buffers())]
    contest.step()
    assert all(map(torch.equal, before, (*contest.judge.parameters(), *contest.judge.buffers())))


# --- the whole --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("what", "unet", "flow"), [("frozen", 3e-4, 5e-2), ("match", 3e-5, 1e-3)])
def test_training_lowers_what_it_trains(backbone: Backbone, what: Any, unet: float, flow: float) -> None:
    """On one batch, against a discriminator that holds still and towards the fixed target.

    The random transformer hardly listens to its text, hence the rates.
    """
    lr = unet if backbone.family == "unet-epsilon" else flow
    task = task_of(backbone, replace(SHORT, removal=what, lr=lr, preservation=0.0, guidance=4.0))
    contest = _fade_adv.Contest(task, elements_of(task), rng())
    contest.batches = itertools.repeat(one_batch(task))  # type: ignore[assignment]
    for _ in range(10):
        contest.step()
    assert contest.log.removal[-1] < 0.99 * contest.log.removal[0]


@pytest.mark.quick("flux-*")
@pytest.mark.parametrize("mode", ["x0_onestep", "last_k", "full", "off_policy"])
def test_every_mode_leaves_the_model_and_repeats(backbone: Backbone, mode: Any) -> None:
    method = replace(SHORT, grad_mode=mode, iterations=2, steps=3, d_steps=2, refresh=2, walkers=3, stop_every=2)
    before = edits.fingerprints(backbone)
    one, two = (edits.make(method, backbone, BOTH) for _ in range(2))
    assert edits.fingerprints(backbone) == before
    assert one.weights and len(one.notes["accuracies"]) == 1
    assert edits.edit_hash(one) == edits.edit_hash(two) and one.notes == two.notes
    assert edits.edit_hash(one) != edits.edit_hash(edits.make(method, backbone, replace(BOTH, seed=4)))


def test_edit_survives_its_files(backbone: Backbone) -> None:
    edit = edits.make(SHORT, backbone, REQUEST)
    assert edits.edit_hash(edits.deserialise(edits.serialise(edit))) == edits.edit_hash(edit)


def test_half_precision_learns_through_float32_leaves() -> None:
    backbone = random_unet(dtype=torch.bfloat16)
    edit = edits.make(replace(SHORT, saliency=0.01, candidates="x"), backbone, REQUEST)
    assert {w.dtype for w in edit.weights.values()} == {torch.bfloat16}


def test_divergence_names_the_iteration() -> None:
    with pytest.raises(BenchError, match=r"loss is (nan|inf) at iteration \d+ of training; lower lr"):
        edits.make(replace(SHORT, lr=1e30, iterations=20), random_unet(), REQUEST)


# --- prompts and bad input --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", list(TEMPLATES))
def test_templates(kind: Kind) -> None:
    target = Target(name="NAME", kind=kind, anchor="NEUTRAL", synonyms=("ALIAS",))
    pairs = FadeAdv().prompts(target)
    assert len(set(pairs)) == len(pairs) >= 20
    assert all(a.replace("NAME", "NEUTRAL") == b and "NAME" in a for a, b in pairs)
    assert len(FadeAdv(synonyms=True).prompts(target)) == 2 * len(pairs)
    assert {b for _, b in FadeAdv().prompts(replace(target, anchor=""))} == {""}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"removal": "mach"}, "unknown removal 'mach'; did you mean 'match'"),
        ({"grad_mode": "fall"}, "did you mean 'full'"),
        ({"pres_window": "late"}, "unknown pres_window 'late'"),
        ({"heads": "all"}, "unknown heads"),
        ({"candidates": "u"}, "unknown candidates"),
        ({"preserve_on": "all"}, "unknown preserve_on"),
        ({"iterations": 0}, "iterations must be a whole number of at least 1, got 0"),
        ({"saliency": 1.5}, "saliency is a share of at most 1, got 1.5"),
        ({"saliency": 0}, "saliency must be a number above 0"),
        ({"grad_mode": "last_k", "last_k": 30}, "last_k must be at most steps, 20, got 30"),
        ({"removal": "frozen", "pretrain": 0}, "raise pretrain"),
        ({"d_width": 12}, "d_width must be a multiple of 8"),
        ({"templates": ("a photo",)}, "templates must hold {}"),
        ({"synonyms": 1}, "synonyms must be true or false"),
        ({"lr": float("inf")}, "lr must be a number above 0"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        FadeAdv(**fields)


def test_a_concept_that_is_its_own_neutral_phrase_is_named() -> None:
    with pytest.raises(BadInput, match="its own neutral phrase"):
        SHORT.edit(random_unet(), Request(erase=(Target(name="cat", anchor="Cat "),)))


def test_an_empty_window_is_said(backbone: Backbone) -> None:
    """One step only: at time 1 in this U-Net's spacing, at 1000 in flow."""
    which: Any = "early" if backbone.family == "unet-epsilon" else "literal"
    with pytest.raises(BadInput, match=f"{which!r} of 0.5 holds none of the sampler's 1 times"):
        replace(SHORT, steps=1, pres_window=which).edit(backbone, REQUEST)
