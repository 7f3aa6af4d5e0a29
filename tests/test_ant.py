"""ANT: the four losses, the two stages, the masks, the fusion, and that training does what the paper says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from benchmark import edits
from benchmark.backbones.base import Backbone
from benchmark.backbones.random_models import random_flux, random_unet, unet_components
from benchmark.backbones.unet import UNetBackbone
from benchmark.errors import BadInput, BenchError
from benchmark.interface import LowRank, Request, Target
from methods import _ant, _ant_multi, _ant_single
from methods.ant import ANT

CAT = Target(name="cat")
ONE = Request(erase=(CAT,), keep=("horse",), general=("a picture of the sky",), seed=3)
TWO = replace(ONE, erase=(CAT, Target(name="dog")))
SHORT = ANT(
    iterations=4,
    batch=2,
    steps=5,
    before_step=2,
    lr=1e-3,
    map_prompts=1,
    map_seeds=2,
    map_iterations=1,
    latents_from="frozen",
    rank=4,
)
SINGLE, MULTI = replace(SHORT, path="single"), replace(SHORT, path="multi")
OFFICIAL = replace(SINGLE, mode="official_code")


@pytest.fixture(scope="module", params=["unet", "flux"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return random_unet() if request.param == "unet" else random_flux()


@pytest.fixture(scope="module")
def unet() -> UNetBackbone:
    return random_unet()


def plan(method: ANT, request: Request = ONE, seed: int = 0) -> list[list[_ant.Pair]]:
    return _ant.draw(np.random.default_rng(seed), method.recipe(request), len(request.erase))


def job(backbone: Backbone, method: ANT, request: Request = ONE) -> _ant.Job:
    return _ant.job(backbone, [t.name for t in request.erase], method.recipe(request))


def moved(backbone: Backbone) -> dict[str, Tensor]:
    """Some other model: every attention weight half as large again, as leaves."""
    live = _ant_multi.attention_weights(backbone)
    return {n: (1.5 * w).detach().requires_grad_() for n, w in live.items()}


# --- the four losses --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", [SINGLE, OFFICIAL, MULTI, replace(SINGLE, eta=2.0)])
def test_losses_are_those_of_the_formulas(method: ANT) -> None:
    """Against predictions one by one and sums in float64, from the same float64 model."""
    backbone = random_unet(dtype=torch.float64)
    work, other = job(backbone, method), moved(backbone)
    item = _ant.examples(work, plan(method), lambda: other)(0)
    ours = _ant.losses(work, item, lambda: other)
    w, eta, cat, empty = work.recipe.loss_guidance, method.eta, backbone.embed(["cat"]), backbone.embed([""])

    def alone(row: int) -> tuple[np.ndarray, np.ndarray]:
        """(ε(∅), guided) of one row, as the model is now."""
        with torch.no_grad():
            x, t = item.x[row : row + 1], item.t[row]
            null, concept = (backbone.predict(x, t, text).numpy() for text in (empty, cat))
        return null, (1 - w) * null + w * concept

    frozen = [alone(row) for row in range(4)]
    with backbone.substituted({n: v.detach() for n, v in other.items()}):
        trained = [alone(row) for row in range(4)]

    def mean_square(rows: Any, goal: Any, of: int) -> float:
        return float(np.mean([(trained[i][of] - goal(*frozen[i])) ** 2 for i in rows]))

    preserved, erased = (0, 1), (2, 3)
    expected = {
        "erase": mean_square(erased, lambda u, g: u - eta * (g - u), 1),
        "preserve": mean_square(preserved, lambda u, g: u + eta * (g - u), 1),
        "uncond_early": mean_square(preserved, lambda u, g: u, 0),
        "uncond_late": mean_square(erased, lambda u, g: u, 0),
    }
    assert min(expected.values()) > 0
    for name, value in expected.items():
        assert getattr(ours, name).item() == pytest.approx(value, rel=1e-6), name


def test_losses_in_float32_are_near_float64() -> None:
    """Of the same numbers, with the reduction in float32."""
    rng = np.random.default_rng(0)
    x, u, g, null, guided = (rng.standard_normal((4, 16, 8, 8)).astype(np.float32) for _ in range(5))
    text = random_unet().embed([""] * 4)
    item = _ant.Example(torch.from_numpy(x), torch.zeros(4), text, torch.from_numpy(u), torch.from_numpy(g))
    ours = _ant.terms(item, torch.from_numpy(null), torch.from_numpy(guided), 1.0)
    u, g, null, guided = (a.astype(np.float64) for a in (u, g, null, guided))
    assert ours.erase.item() == pytest.approx(np.mean((guided - (2 * u - g))[2:] ** 2), rel=1e-6)
    assert ours.preserve.item() == pytest.approx(np.mean((guided - g)[:2] ** 2), rel=1e-6)
    assert ours.uncond_early.item() == pytest.approx(np.mean((null - u)[:2] ** 2), rel=1e-6)
    assert ours.uncond_late.item() == pytest.approx(np.mean((null - u)[2:] ** 2), rel=1e-6)


def test_released_weights_of_the_two_paths() -> None:
    """Single: L₃ + α₂L₄ + α₁(L₁ + α₂L₂), α = (1, 0.5); multi: L_e + α₁L_ul + α₂(L_p + α₁L_ue), α = (2.5, 0.5)."""
    parts = _ant.Terms(*(torch.tensor(v) for v in (1.0, 10.0, 100.0, 1000.0)))
    single, multi = (_ant.total(parts, m.recipe(ONE).weights).item() for m in (SINGLE, MULTI))
    assert single == 1 + 0.5 * 1000 + 1.0 * (10 + 0.5 * 100)
    assert multi == 1 + 2.5 * 1000 + 0.5 * (10 + 2.5 * 100)
    off = replace(MULTI, preserve_weight=0, early_weight=0)
    assert _ant.total(parts, off.recipe(ONE).weights).item() == 1 + 2.5 * 1000


@pytest.mark.parametrize(("method", "moves"), [(SINGLE, True), (MULTI, True), (OFFICIAL, False)])
def test_unconditional_losses_have_a_gradient_but_as_released(unet: UNetBackbone, method: ANT, moves: bool) -> None:
    work, other = job(unet, method), moved(unet)
    item = _ant.examples(work, plan(method), lambda: other)(0)
    with torch.enable_grad():
        parts = _ant.losses(work, item, lambda: other)
    assert parts.erase.requires_grad and parts.preserve.requires_grad
    for part in (parts.uncond_early, parts.uncond_late):
        assert part > 0 and part.requires_grad == moves
    with torch.enable_grad():
        grads = torch.autograd.grad(_ant.total(parts, work.recipe.weights), list(other.values()))
    assert all(g.abs().max() > 0 for g in grads)


# --- the two stages ---------------------------------------------------------------------------------------------------
def test_the_paper_preserves_early_and_erases_late(unet: UNetBackbone) -> None:
    """B = 7 of 50: the preserved latents have 0 to 6 steps behind them, at 981 to 861; the erased ones 7 to 49."""
    method = ANT(path="single", iterations=600, before_step=7)
    pairs = [p for batch in plan(method) for p in batch]
    assert {p.preserve.stop for p in pairs} == set(range(7))
    assert {p.erase.stop for p in pairs} == set(range(7, 50))
    assert all(p.preserve.seed == p.erase.seed and p.preserve.start == p.erase.start == 0 for p in pairs)
    grid = unet.timesteps(50).tolist()
    for p in pairs[:50]:
        times = [int(_ant._distill.times(unet, [s])) for s in p]
        assert times == [grid[p.preserve.stop], grid[p.erase.stop]]
        assert times[0] >= 1000 - 7 * 20 > times[1]


def test_the_released_stages_are_swapped(unet: UNetBackbone) -> None:
    """Preserved at times below 140, erased from there on."""
    method = ANT(path="single", mode="official_code", iterations=300, before_step=7)
    pairs = [p for batch in plan(method) for p in batch]
    preserved, erased = (
        [int(_ant._distill.times(unet, [p[stage]])) for p in pairs] for stage in (0, 1)
    )  # fmt: skip
    assert 1 <= min(preserved) and max(preserved) <= 140 < min(erased) and max(erased) > 950
    assert all(p.preserve.start == 1 and p.preserve.stop > p.erase.stop for p in pairs)


def test_several_concepts_are_the_same_in_both_modes() -> None:
    assert replace(MULTI, mode="official_code").recipe(TWO) == MULTI.recipe(TWO)
    assert OFFICIAL.recipe(ONE) != SINGLE.recipe(ONE)


def test_samples_of_an_iteration_share_their_steps_in_multi_alone() -> None:
    for method, most in ((MULTI, 1), (SINGLE, 2)):
        batches = plan(replace(method, iterations=50, steps=50, before_step=25))
        assert max(len({p.erase.stop for p in batch}) for batch in batches) == most
        assert all(len({p.erase.seed for p in batch}) == 2 for batch in batches)


def test_latents_made_beforehand_are_those_made_one_by_one(backbone: Backbone) -> None:
    method = replace(SHORT, iterations=6, path="multi")  # 24 samples: one full pack and one that is not
    work, batches = job(backbone, method, TWO), plan(method, TWO)
    texts = backbone.embed(["cat", "dog"])
    at = _ant.examples(work, batches, dict)
    for item, batch in ((at(k), batch) for k, batch in enumerate(batches)):
        for i, s in enumerate(_ant.samples(batch)):
            text, empty = texts[[s.concept]], backbone.embed([""])
            x = backbone.trajectory(backbone.noise([s.seed]), text, empty, steps=5, guidance=7.5, stop=s.stop)
            with torch.no_grad():
                guided = backbone.guided(x, item.t[i], text, empty, 7.5)
            torch.testing.assert_close(item.x[i], x[0], atol=1e-4, rtol=0)
            torch.testing.assert_close(item.guided[i], guided[0], atol=1e-3, rtol=0)


@pytest.mark.slow
def test_the_trained_model_s_latents_follow_it(unet: UNetBackbone) -> None:
    """With a learning rate of nearly nothing they are the frozen model's; else they are not."""
    for lr, same in ((1e-12, True), (1e-2, False)):
        frozen, student = (
            edits.make(replace(SINGLE, mask="none", lr=lr, latents_from=who), unet, ONE).notes["losses"]["erase"]
            for who in ("frozen", "student")
        )
        assert (student["loss_last"] == pytest.approx(frozen["loss_last"], rel=1e-4)) == same


# --- the table --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kinds", "row", "before_step", "iterations"),
    [
        (["explicit"], "nsfw", 7, 250),
        (["identity"], "celebrity", 10, 400),
        (["style", "style"], "art", 3, 400),
        (["style", "explicit"], "celebrity", 10, 400),
    ],
)
def test_table_6(kinds: list[Any], row: str, before_step: int, iterations: int) -> None:
    request = Request(erase=tuple(Target(name=str(i), kind=k) for i, k in enumerate(kinds)))
    recipe = ANT().recipe(request)
    assert (ANT().table_row(request), recipe.before_step, recipe.iterations) == (row, before_step, iterations)
    assert ANT().taken(request) == ("single" if len(kinds) == 1 else "multi")
    assert ANT(steps=25).recipe(request).before_step == round(before_step / 2)
    assert ANT(row="art").recipe(request).before_step == 3


def test_iterations_per_concept_are_as_many_times_the_iterations() -> None:
    several = Request(erase=tuple(Target(name=name) for name in ("cat", "dog", "bird")))
    each = ANT(path="single", iterations=40, per_concept=True)
    assert each.recipe(several).iterations == 120 and replace(each, per_concept=False).recipe(several).iterations == 40
    assert replace(each, path="multi").recipe(several).iterations == 40, "there they are each concept's anyway"


# --- the masks --------------------------------------------------------------------------------------------------------
def test_a_map_keeps_the_largest_half_or_as_released_the_smallest() -> None:
    gradient = torch.tensor([[0.1, -5.0, 0.3], [2.0, -0.2, 1.0]])
    assert _ant_single.salient(gradient, 0.5, largest=True).tolist() == [[False, True, False], [True, False, True]]
    assert _ant_single.salient(gradient, 0.5, largest=False).tolist() == [[True, False, True], [False, True, False]]
    assert SINGLE.maps(ONE).largest and not OFFICIAL.maps(ONE).largest
    assert not _ant_single.salient(torch.zeros(4), 0.5, largest=True).any()


@pytest.mark.parametrize("largest", [True, False])
def test_a_map_s_share_is_that_of_each_tensor(largest: bool) -> None:
    for n in (1, 2, 7, 100):
        mask = _ant_single.salient(torch.randn(n, generator=torch.Generator().manual_seed(n)), 0.3, largest=largest)
        assert mask.sum() == max(1, int(np.ceil(0.3 * n)))


def test_the_mask_is_what_all_maps_keep() -> None:
    maps = [{"w": torch.tensor([4.0, 3.0, 2.0, 1.0])}, {"w": torch.tensor([4.0, 1.0, 3.0, 2.0])}]
    for largest, kept in ((True, [True, False, False, False]), (False, [False, False, False, True])):
        masks = {"w": torch.ones(4, dtype=torch.bool)}
        for gradient in maps:
            _ant_single.narrow(masks, gradient, replace_maps(largest=largest))
        assert masks["w"].tolist() == kept


def test_maps_that_have_nothing_in_common_are_said(unet: UNetBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    def opposite(works: Any, names: Any, maps: Any, seed: int, k: int) -> dict[str, Tensor]:
        rising = {n: torch.arange(1.0, 1 + w.numel()).view_as(w) for n, w in unet.tensors().items() if n in names}
        return {n: g.flip(0, 1) if k else g for n, g in rising.items()}

    monkeypatch.setattr(_ant_single, "saliency", opposite)
    maps = replace_maps(largest=True)._replace(prompts=("cat", "a cat"), seeds=1)
    names = _ant_single.chosen(unet, "x-strict")
    with pytest.raises(BadInput, match="no weight is in all 2 saliency maps.*raise mask_keep"):
        _ant_single.mask(unet, names, SINGLE.recipe(ONE), maps, 3)


def replace_maps(**fields: Any) -> _ant_single.Maps:
    return SINGLE.maps(ONE)._replace(keep=0.5, **fields)


def test_a_map_is_the_sum_of_gradients_at_the_unedited_model(unet: UNetBackbone) -> None:
    method = replace(SINGLE, map_iterations=3, train="x-strict")
    names = _ant_single.chosen(unet, "x-strict")
    maps = method.maps(ONE)
    gradient = _ant_single.saliency(_ant_single.jobs(unet, method.recipe(ONE), maps), names, maps, seed=3, k=0)
    work = _ant.job(unet, ["cat"], replace(method.recipe(ONE), iterations=3))
    leaves = {n: unet.tensors()[n].detach().clone().requires_grad_() for n in names}
    with torch.enable_grad():
        at = _ant.examples(work, _ant.draw(np.random.default_rng([3, 1, 0, 0]), work.recipe, 1), dict)
        for item in map(at, range(3)):
            torch.autograd.backward(_ant.total(_ant.losses(work, item, lambda: leaves), work.recipe.weights))
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        torch.testing.assert_close(gradient[name], leaf.grad, rtol=1e-4, atol=1e-7)


def test_released_maps_move_the_model_between_gradients(unet: UNetBackbone) -> None:
    names = _ant_single.chosen(unet, "x-strict")
    recipe = replace(SINGLE, map_iterations=2).recipe(ONE)
    still, moving = (
        _ant_single.saliency(_ant_single.jobs(unet, recipe, maps), names, maps, seed=3, k=0)
        for maps in (replace_maps(iterations=2, lr=0.0), replace_maps(iterations=2, lr=0.01))
    )
    assert all(not torch.allclose(still[n], moving[n], rtol=1e-3, atol=0) for n in names)


@pytest.mark.quick("flux-*", "unet-method0")
@pytest.mark.parametrize("method", [SINGLE, OFFICIAL, replace(SINGLE, mask="one-map")])
def test_masked_out_elements_stay_to_the_bit(backbone: Backbone, method: ANT) -> None:
    names = _ant_single.chosen(backbone, "full")
    maps = method.maps(ONE)
    masks = _ant_single.mask(backbone, names, method.recipe(ONE), maps, ONE.seed)
    edit, live = edits.make(method, backbone, ONE), backbone.tensors()
    assert edit.weights
    inside = 0
    for name, new in edit.weights.items():
        assert torch.equal(new[~masks[name]], live[name][~masks[name]])
        inside += int((new != live[name]).sum())
    total = sum(int(m.sum()) for m in masks.values())
    assert 0.5 * total < inside <= total
    assert edit.notes["trained_share"] == pytest.approx(total / sum(live[n].numel() for n in names))


def test_the_mask_s_prompts() -> None:
    nudity = Request(erase=(Target(name="nudity", kind="explicit"),))
    assert ANT(mode="official_code").map_phrases(nudity) == ("nudity", "naked", "erotic", "sexual")
    assert len(ANT().map_phrases(nudity)) == len(set(ANT().map_phrases(nudity))) == 20
    assert ANT(mask="one-map").map_phrases(ONE) == ("cat",)
    assert ANT(mask="none").map_phrases(ONE) == ()
    assert all("cat" in p for p in ANT(templates="short").map_phrases(ONE))
    with pytest.raises(BadInput, match="map_prompts is 99, but templates 'short' make"):
        ANT(map_prompts=99, templates="short").map_phrases(ONE)


def test_a_missing_mask_is_said(unet: UNetBackbone) -> None:
    leaves = _ant_single.masters(unet, _ant_single.chosen(unet, "x-strict"))
    name = next(iter(leaves))
    with pytest.raises(BadInput, match="expected a saliency mask of shape .* got none"):
        _ant_single.confine(leaves, {})
    with pytest.raises(BadInput, match=r"expected a saliency mask of shape .* got \(3,\)"):
        _ant_single.confine(leaves, {name: torch.ones(3, dtype=torch.bool)})


# --- what is trained --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def stable_diffusion() -> UNetBackbone:
    """SD 1.x's U-Net without memory behind it."""
    parts = unet_components()
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)  # type: ignore[no-untyped-call]
        vae = AutoencoderKL(latent_channels=4)  # type: ignore[no-untyped-call]
    rest = {k: parts[k] for k in ("text_encoder", "tokenizer")}
    scheduler = parts["scheduler"].config
    return UNetBackbone("sd-meta", unet=unet, vae=vae, scheduler=scheduler, device="meta", **rest)


def test_trained_sets_of_stable_diffusion(stable_diffusion: UNetBackbone) -> None:
    """All of the U-Net; factors on 128 matrices, of which the 32 of cross-attention's keys and values are fused."""
    live, names = stable_diffusion.tensors(), _ant_single.chosen(stable_diffusion, "full")
    assert (len(names), sum(live[n].numel() for n in names)) == (686, 859_520_964)
    assert set(names) == {n for n in live if n.startswith("unet.")}
    weights = _ant_multi.attention_weights(stable_diffusion)
    assert len(weights) == 128
    assert len({p.name for p in stable_diffusion.projections()} & weights.keys()) == 32


def test_train_confines_the_single_path(unet: UNetBackbone) -> None:
    edit = edits.make(replace(SINGLE, train="x-strict"), unet, ONE)
    assert edit.weights and edit.weights.keys() <= {p.name for p in unet.projections()}


# --- the fusion -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ridge", [0.0, 3.0])
def test_fusion_is_the_formula(unet: UNetBackbone, ridge: float) -> None:
    """Row by row in float64, with numpy's solver, against released scales of the caches."""
    method = replace(MULTI, templates="short", ridge=ridge)
    rng = np.random.default_rng(0)
    changes = [
        {
            p.name: LowRank(
                torch.from_numpy(rng.normal(size=(len(p.weight), 4))).float() / 50,
                torch.from_numpy(rng.normal(size=(4, p.weight.shape[1]))).float(),
            )
            for p in unet.projections()
        }
        for _ in TWO.erase
    ]
    phrases = [method.fusion_phrases(t.name, t.kind) for t in TWO.erase]
    # many general prompts at a weight that counts: the system is then regular without a ridge too
    general, domain = [f"a photo of the {w}" for w in ("sky", "plant", "tool", "ground")], method.domain(TWO)
    assert domain and all("horse" in p for p in domain)
    kept = _ant_multi.kept_sum(unet, general, domain, prior_scale=1e-5, domain_scale=20)
    new = _ant_multi.fused(unet, changes, phrases, kept, scale=4.3, ridge=ridge)
    assert new.keys() == {p.name for p in unet.projections()}

    def rows(prompts: Any) -> np.ndarray:
        return unet.embed(list(prompts)).tokens.double().flatten(0, 1).numpy()

    g, d = rows(general), rows(domain)
    k = 1e-5 * (616_767 / 4) * g.T @ g + 20 * d.T @ d
    for p in unet.projections():
        w = p.weight.double().numpy()
        left, right = w @ k, np.array(k)
        for change, prompts in zip(changes, phrases, strict=True):
            up, down = (part.double().numpy() for part in change[p.name])
            e = rows(prompts)
            left += (e @ (w + 4.3 * up @ down).T).T @ e
            right += e.T @ e
        if ridge:
            expected = (ridge * w + left) @ np.linalg.inv(ridge * np.eye(len(k)) + right)
            np.testing.assert_allclose(new[p.name].numpy(), expected, atol=1e-5)
        else:  # the normal equations, whatever the rows span
            ours = new[p.name].double().numpy() @ right
            np.testing.assert_allclose(ours, left, atol=1e-5 * np.abs(left).max())


def test_fusion_forgets_all_but_keys_and_values_of_cross_attention(unet: UNetBackbone) -> None:
    edit = edits.make(MULTI, unet, TWO)
    assert not edit.deltas and edit.weights.keys() == {p.name for p in unet.projections()}
    assert edit.notes["fusion"] == "mace" and len(edit.notes["losses"]) == 2


def test_limits_of_the_fusion(unet: UNetBackbone) -> None:
    """An endless ridge is no edit; an endless domain stays; a concept alone gets what its factors do to its rows."""
    live, rng = unet.tensors(), np.random.default_rng(0)
    shape = {p.name: tuple(p.weight.shape) for p in unet.projections()}
    change = {
        n: LowRank(*(torch.from_numpy(rng.normal(size=s)).float() for s in ((o, 2), (2, i))))
        for n, (o, i) in shape.items()
    }
    phrases, kept = MULTI.fusion_phrases("cat", "object"), MULTI.domain(TWO)
    e, k = (unet.embed(list(prompts)).tokens.flatten(0, 1) for prompts in (phrases, kept))

    def shift(rows: Tensor, *, ridge: float, domain_scale: float) -> float:
        """How far the fusion moves the outputs of these rows, where 1 is as far as the factors themselves do."""
        c = _ant_multi.kept_sum(unet, (), kept, prior_scale=0.0, domain_scale=domain_scale)
        new = _ant_multi.fused(unet, [change], [phrases], c, scale=1.0, ridge=ridge)
        ours = sum(float((rows @ (new.get(n, live[n]) - live[n]).T).norm()) for n in shape)
        return ours / sum(float((rows @ (up @ down).T).norm()) for up, down in change.values())

    assert shift(e, ridge=1e12, domain_scale=0) < 1e-4
    assert shift(e, ridge=0, domain_scale=0) == pytest.approx(1, abs=1e-3)
    assert shift(k, ridge=0, domain_scale=1e9) < 1e-2 < shift(k, ridge=0, domain_scale=0)


def test_factors_are_the_released_ones(unet: UNetBackbone) -> None:
    """Rank 64 with alpha 1 counts 1/64; up is zero, so that training starts at the unedited model."""
    recipe = replace(ANT(path="multi").recipe(ONE), iterations=1, steps=2, before_step=1, lr=0.0)
    lora, history = _ant_multi.train(unet, "cat", recipe, rank=64, alpha=1.0, seed=(0, 2))
    assert lora.scale == 1 / 64 and len(lora.base) == 8 * 7  # of seven blocks
    assert all(not up.any() for up in lora.up.values())
    erase, preserve, early, late = history[0]
    assert erase > 0 and max(preserve, early, late) < 1e-10


def test_flow_merges_the_factors_of_its_text_side() -> None:
    flux = random_flux()
    edit, live = edits.make(MULTI, flux, TWO), flux.tensors()
    assert not edit.weights and edit.notes["fusion"] == "sum"
    ends = ("add_q_proj.weight", "add_k_proj.weight", "add_v_proj.weight", "to_add_out.weight")
    assert edit.deltas and all(n.endswith(ends) for n in edit.deltas)
    assert all(d.up.shape == (live[n].shape[0], 8) for n, d in edit.deltas.items())
    alone = [
        _ant_multi.train(flux, t.name, MULTI.recipe(TWO), rank=4, alpha=1.0, seed=(3, 2 + i))[0].deltas()
        for i, t in enumerate(TWO.erase)
    ]
    for name, delta in edit.deltas.items():
        total = sum(4.3 * a[name].up @ a[name].down for a in alone)
        torch.testing.assert_close(delta.up @ delta.down, total, rtol=1e-4, atol=1e-7)


# --- the training -----------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(("path", "lr"), [("single", 1e-4), ("multi", 3e-4)])
def test_training_turns_late_answers(unet: UNetBackbone, path: Any, lr: float) -> None:
    """On latents that it did not see, the erase loss falls. It starts with the other three at nothing."""
    alone = {"preserve_weight": 0, "early_weight": 0, "late_weight": 0}
    method = replace(SHORT, path=path, mask="none", iterations=30, lr=lr, **alone)
    work = job(unet, method)
    item = _ant.examples(work, plan(method, seed=99), dict)(0)
    with torch.no_grad():
        before = _ant.losses(work, item, dict)
        with trained(unet, method):
            after = _ant.losses(work, item, dict)
    assert before.erase > 0 and max(before.preserve, before.uncond_early, before.uncond_late) < 1e-10
    assert after.erase < 0.8 * before.erase


def trained(backbone: Backbone, method: ANT) -> Any:
    """The model as training leaves it: in `multi` with all factors, before the fusion."""
    if method.path == "single":
        return edits.apply(backbone, edits.make(method, backbone, ONE))
    lora, _ = _ant_multi.train(backbone, "cat", method.recipe(ONE), rank=64, alpha=64.0, seed=(3, 2))
    return backbone.substituted({n: w.detach() for n, w in lora.weights().items()})


def test_first_step_is_adam_s(unet: UNetBackbone) -> None:
    """By lr, whatever the gradient's size, as far as it is above Adam's ε."""
    edit = edits.make(replace(SINGLE, iterations=1, train="x-strict", mask="none"), unet, ONE)
    name, new = next(iter(edit.weights.items()))
    assert (new - unet.tensors()[name]).abs().median().item() == pytest.approx(1e-3, rel=0.1)


@pytest.mark.quick("method1")
@pytest.mark.parametrize("method", [SINGLE, MULTI])
def test_half_precision_learns_through_float32_masters(method: ANT) -> None:
    model = random_unet(dtype=torch.bfloat16)
    edit = edits.make(replace(method, fuse_scale=640.0), model, ONE)
    assert edit.weights and {v.dtype for v in edit.weights.values()} == {torch.bfloat16}


@pytest.mark.quick("flux-*")
@pytest.mark.parametrize("method", [SINGLE, OFFICIAL, MULTI])
def test_same_request_same_edit_and_the_model_stays(backbone: Backbone, method: ANT) -> None:
    before = edits.fingerprints(backbone)
    first, second = (edits.make(method, backbone, TWO) for _ in range(2))
    assert edits.edit_hash(first) == edits.edit_hash(second) and first.notes == second.notes
    assert edits.fingerprints(backbone) == before
    assert edits.edit_hash(edits.make(method, backbone, replace(TWO, seed=4))) != edits.edit_hash(first)


@pytest.mark.parametrize("method", [SINGLE, MULTI])
def test_save_load_apply(backbone: Backbone, method: ANT) -> None:
    edit = edits.make(method, backbone, TWO)
    loaded = edits.deserialise(edits.serialise(edit))
    assert edits.edit_hash(loaded) == edits.edit_hash(edit) and loaded.notes == edit.notes
    x, t, text = backbone.noise([1]), backbone.timesteps(5)[3], backbone.embed(["cat"])
    with torch.no_grad():
        base = backbone.predict(x, t, text)
        with edits.apply(backbone, edit):
            one = backbone.predict(x, t, text)
        with edits.apply(backbone, loaded):
            two = backbone.predict(x, t, text)
        assert torch.equal(one, two) and not torch.equal(one, base)
        assert torch.equal(backbone.predict(x, t, text), base)


def test_divergence_names_the_iteration(unet: UNetBackbone) -> None:
    with pytest.raises(BenchError, match=r"ant: the loss is (nan|inf) at iteration \d+ of training; lower"):
        edits.make(replace(SINGLE, mask="none", lr=1e30), unet, ONE)


# --- bad input --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"before_step": 50}, "before_step must be 1 to 49, below the 50 steps, got 50"),
        ({"before_step": 0}, "before_step must be a whole number of at least 1, got 0"),
        ({"mode": "offical_code"}, "did you mean 'official_code'"),
        ({"path": "both"}, "unknown path 'both'"),
        ({"mask": "two"}, "unknown mask 'two'"),
        ({"mask_keep": 1.5}, "mask_keep is a share, above 0 and up to 1, got 1.5"),
        ({"templates": "shrt"}, "did you mean 'short'"),
        ({"template": "a photo"}, "template must hold {} once"),
        ({"rank": 0}, "rank must be a whole number of at least 1"),
        ({"late_weight": -1}, "late_weight must be a number of at least 0"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        ANT(**fields)
