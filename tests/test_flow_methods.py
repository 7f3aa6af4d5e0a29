"""What methods do on FLUX beyond what their own tests hold on both families: closed forms and losses a second time."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import softmax

from benchmark import edits, registry
from benchmark.backbones.random_models import random_flux, random_unet
from benchmark.errors import BadInput
from benchmark.interface import Method, Request, Target
from methods import _ant, _cpe, _fade_adv, _mace, _saliency
from methods._lora import LoRA
from methods.ant import ANT
from methods.cpe import CPE
from methods.fade_adv import FadeAdv
from methods.fade_fg import FADE
from methods.mace import MACE

CAT = Target(name="cat", anchor="animal")
TRUCK = Target(name="truck", anchor="vehicle")
REQUEST = Request(erase=(CAT, TRUCK), keep=("dog", "horse"), general=("a photo of the sky", "a tree"), seed=7)
CONTEXT = "transformer.context_embedder.weight"
POOLED = "transformer.time_text_embed.text_embedder.linear_1.weight"


def quick(label: str, **fields: Any) -> Method:
    name, _, variant = label.partition("@")
    cls = registry.method_class(name)
    return cls(**{**cls.variants[variant], **cls.quick, **fields})


@pytest.mark.parametrize("name", ["esd", "ant", "fade_fg", "fade_adv", "mace", "cpe"])
def test_what_is_not_the_authors_own_is_marked(name: str) -> None:
    request = replace(REQUEST, erase=(CAT,))
    assert edits.make(quick(f"{name}@flux"), random_flux(), request).notes["reading"] == "harness variant"
    told = " ".join((importlib.import_module(f"methods.{name}").__doc__ or "").split())
    assert "harness variant" in told or "harness's variant" in told


@pytest.mark.parametrize("name", ["mace", "cpe"])
def test_what_makes_no_sense_is_refused_with_its_reason(name: str) -> None:
    cls = registry.method_class(name)
    with pytest.raises(BadInput, match=rf"{name} works on \['unet-epsilon'\]: .*no text alone.*{name}@flux"):
        edits.make(cls(**cls.quick), random_flux(), REQUEST)
    with pytest.raises(BadInput, match=rf"{name}@flux works on \['transformer-flow'\]"):
        edits.make(quick(f"{name}@flux"), random_unet(), REQUEST)


# --- MACE's closed form -----------------------------------------------------------------------------------------------
def common(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def refined(method: MACE, train_scale: float, domain: float, ridge: float) -> dict[str, Tensor]:
    """Stage 1 in float64 on both projections, sums written out row by row."""
    flux = random_flux()
    live, length = flux.tensors(), 24

    def rows(prompt: str) -> tuple[list[int], Tensor, Tensor]:
        text = flux.embed([prompt])
        assert text.pooled is not None
        ids = text.ids[0].tolist()
        return ids[: ids.index(1) + 1], text.tokens[0].double(), text.pooled[0].double()  # T5 ends with 1

    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {CONTEXT: [], POOLED: []}
    for target in REQUEST.erase:
        for own, other in zip(method.prompts(target, target.name), method.prompts(target, target.anchor), strict=True):
            (a, ea, pa), (b, eb, pb) = rows(own), rows(other)
            k = common(a, b)
            s = common(a[k:][::-1], b[k:][::-1])
            pad = length - max(len(a), len(b))
            at = [*range(k), *range(len(a) - s, len(a) + pad)], [*range(k), *range(len(b) - s, len(b) + pad)]
            pairs[CONTEXT] += list(zip(ea[at[0]], eb[at[1]], strict=True))
            pairs[POOLED].append((pa, pb))
    kept = {
        CONTEXT: [[row for p in prompts for row in rows(p)[1]] for prompts in (REQUEST.general, method.kept(REQUEST))],
        POOLED: [[rows(p)[2] for p in prompts] for prompts in (REQUEST.general, method.kept(REQUEST))],
    }
    found = {}
    for name, both in pairs.items():
        w = live[name].double()
        left, right = ridge * w, ridge * torch.eye(w.shape[1], dtype=torch.float64)
        for c, g in both:
            left, right = left + torch.outer(w @ g, c), right + torch.outer(c, c)
        for scale, more in zip((train_scale**2, train_scale**2 * domain), kept[name], strict=True):
            for row in more:
                left, right = left + scale * torch.outer(w @ row, row), right + scale * torch.outer(row, row)
        found[name] = torch.linalg.solve(right.T, left.T).T
    return found


@pytest.mark.parametrize(("train_scale", "domain", "ridge"), [(0.0, 0.0, 100.0), (0.3, 0.5, 1.0)])
def test_mace_s_refinement_of_the_text_projections_is_the_formula(
    train_scale: float, domain: float, ridge: float
) -> None:
    method: Any = quick(
        "mace@flux",
        iterations=0,
        templates="short",
        ridge=ridge,
        train_scale=train_scale,
        domain_weight=domain,
        prior_captions=0,
    )
    truth, edit = refined(method, train_scale, domain, ridge), method.edit(random_flux(), REQUEST)
    assert edit.weights.keys() == truth.keys() == {CONTEXT, POOLED}
    for name, w in edit.weights.items():
        assert (w.double() - truth[name]).norm() < 1e-5 * truth[name].norm()
        assert (w.double() - truth[name]).norm() < 1e-4 * (truth[name] - random_flux().tensors()[name]).norm()


def test_mace_s_refinement_maps_the_pooled_vector_to_the_anchor_s() -> None:
    """With little ridge and nothing kept; and with a large one nothing moves."""
    flux = random_flux()
    [reader] = [p for p in flux.projections() if p.role == "pooled"]
    for ridge, moves in ((1e-6, True), (1e9, False)):
        method = quick("mace@flux", iterations=0, templates=("a photo of the {}",), ridge=ridge)
        new = method.edit(flux, REQUEST).weights.get(reader.name, reader.weight)
        own, anchor = (flux.embed([f"a photo of the {word}"]).pooled[0] for word in ("cat", "animal"))  # type: ignore[index]
        torch.testing.assert_close(new @ own, reader.weight @ (anchor if moves else own), atol=1e-3, rtol=0)


def test_mace_s_lora_lowers_what_the_image_gives_to_the_concept() -> None:
    flux = random_flux()
    method: Any = quick("mace@flux", iterations=40, lr=1e-2, templates="short", ridge=1e-3)
    edit = edits.make(method, flux, replace(REQUEST, erase=(CAT,)))
    [concept] = edit.notes["concepts"]
    assert concept["loss_last"] < concept["loss_first"] and set(edit.weights) == {CONTEXT, POOLED}
    x, t, prompt = flux.noise([1]), flux.timesteps(4)[2], "a photo of the cat"

    def loss() -> float:
        with torch.no_grad(), flux.attention_maps() as maps:
            flux.predict(x, t, flux.embed([prompt]))
        columns = _mace.attended(flux, prompt, "cat", flux.embed([prompt]))
        ours = _mace.attention(maps, columns, None).item()
        truth = sum(m.double()[..., columns].square().sum().sqrt() for m in maps)
        assert ours == pytest.approx(float(truth), rel=1e-6)
        return ours

    assert flux.embed([prompt]).ids[0][_mace.attended(flux, prompt, "cat", flux.embed([prompt]))].tolist()[-1] == 1
    before = loss()
    with edits.apply(flux, edit):
        assert loss() < before


def test_mace_s_files_of_sums_are_refused_there() -> None:
    with pytest.raises(BadInput, match="tokens alone"):
        quick("mace@flux", prior_cache="x.safetensors").edit(random_flux(), REQUEST)


# --- CPE's gates ------------------------------------------------------------------------------------------------------
def test_cpe_s_losses_on_the_context_projection_are_the_formulas() -> None:
    """Layer by layer and token by token in float64: attention, gate, residual, and σ(W) as the weight."""
    flux = random_flux()
    model, live = _cpe.read(flux, torch.float64), flux.tensors()
    w = live[CONTEXT].double()
    assert [g.names for g in model.groups] == [(CONTEXT,)]
    settings = CPE.settings(CPE(), CAT)
    generator = torch.Generator().manual_seed(3)
    module = _cpe.initial(model, replace(settings, rank=2), tied=True, generator=generator)
    for part in (*module.up, module.vector, module.query):
        part.data = torch.randn(part.shape, generator=generator, dtype=torch.float64) / 10
    e, n, a = (flux.embed([text]).tokens.double() for text in ("cat", "animal", "dog"))
    delta = torch.randn(2, *e.shape[1:], generator=generator, dtype=torch.float64) / 10
    ours = _cpe.module_loss(model, module, _cpe.Example(e, n, delta, a), _cpe.Weights(0.5, 0.7, 3.0)).item()

    def edited(text: Tensor) -> Tensor:
        rows = []
        for token in range(text.shape[1]):
            attended = softmax(text[0, token] @ module.query @ (text[0] @ module.query).T, dim=0) @ text[0]
            gate = 1 / (1 + (-(module.vector @ attended)).exp())
            rows.append(w @ text[0, token] + module.up[0][0] @ (module.down[0][0] @ (gate * attended)) / 2)
        return torch.stack(rows)

    sigma = torch.linalg.svdvals(w)[0]
    wanted = n[0] @ w.T + 0.5 * (n[0] - e[0]) @ w.T
    erase = sigma * (wanted - edited(e)).square().mean()
    adversarial = torch.stack([sigma * (wanted - edited(e + d[None])).square().mean() for d in delta]).mean()
    anchor = sigma * (a[0] @ w.T - edited(a)).square().mean()
    assert ours == pytest.approx((erase + 0.7 * adversarial + 3.0 * anchor).item(), rel=1e-6)


def test_cpe_s_gates_stand_on_the_context_projection_alone_and_act() -> None:
    flux = random_flux()
    edit = edits.make(quick("cpe@flux"), flux, REQUEST)
    assert edit.gates is not None and set(edit.gates.changes) == {CONTEXT} and not edit.weights
    x, t, text = flux.noise([1]), flux.timesteps(4)[2], flux.embed(["a photo of the cat"])
    with torch.no_grad():
        before = flux.predict(x, t, text)
        with edits.apply(flux, edit):
            assert not torch.equal(flux.predict(x, t, text), before)
        assert torch.equal(flux.predict(x, t, text), before)


# --- trajectories in flow time ----------------------------------------------------------------------------------------
def test_ant_s_losses_on_velocities_are_the_formulas() -> None:
    flux = random_flux(dtype=torch.float64)
    recipe = replace(ANT(**ANT.variants["flux"]).recipe(REQUEST), steps=4, before_step=2, loss_guidance=3.0, eta=1.5)
    work = _ant.job(flux, ["cat", "truck"], recipe)
    rng = np.random.default_rng(1)
    pairs = _ant.draw(rng, recipe, 2)[0]
    x = flux.noise([5, 6, 7, 8])
    item = _ant.example(work, x, _ant.samples(pairs))
    lora = LoRA(
        {n: w for n, w in flux.tensors().items() if n.endswith(("add_q_proj.weight", "add_k_proj.weight"))},
        2,
        scale=0.5,
        generator=torch.Generator().manual_seed(0),
    )
    for up in lora.up.values():
        up.data = torch.randn(up.shape, generator=torch.Generator().manual_seed(1)) / 3
    parts = _ant.losses(work, item, lora.weights)
    trained = {n: w + 0.5 * lora.up[n].detach().double() @ lora.down[n].detach().double() for n, w in lora.base.items()}
    names = [("cat", "truck")[s.concept] for s in _ant.samples(pairs)]

    @torch.no_grad()
    def answers() -> tuple[Tensor, Tensor]:
        null, c = flux.predict(x, item.t, flux.embed([""] * 4)), flux.predict(x, item.t, flux.embed(names))
        return null, null + 3.0 * (c - null)

    u, g = answers()
    with flux.substituted(trained):
        u_, g_ = answers()
    early, late = slice(0, 2), slice(2, 4)
    truth = (
        (g_[late] - (u - 1.5 * (g - u))[late]).square().mean(),
        (g_[early] - (u + 1.5 * (g - u))[early]).square().mean(),
        (u_[early] - u[early]).square().mean(),
        (u_[late] - u[late]).square().mean(),
    )
    assert [float(p.detach()) for p in parts] == pytest.approx([float(v) for v in truth], rel=1e-6)


def test_ant_preserves_where_the_flow_is_noise_and_erases_later() -> None:
    """Stages are steps of the model's own shifted schedule: B of them are behind what is erased, in flow time too."""
    flux, method = random_flux(), ANT(**ANT.variants["flux"])
    recipe, times = method.recipe(REQUEST), flux.timesteps(50)
    for pair in (p for batch in _ant.draw(np.random.default_rng(0), recipe, 2)[:60] for p in batch):
        keep, erase = (float(_ant._distill.times(flux, [s])) for s in pair)
        assert keep > times[recipe.before_step] >= erase
        assert (recipe.start_guidance, recipe.loss_guidance) == (1.0, 1.0)


# --- low ranks of what is salient -------------------------------------------------------------------------------------
def test_fade_adv_changes_the_most_salient_matrices_by_low_ranks() -> None:
    flux, method = random_flux(), quick("fade_adv@flux", saliency=0.3)
    edit = edits.make(method, flux, replace(REQUEST, erase=(CAT,)))
    candidates = {n for n in _saliency.candidates(flux, "x") if n.endswith(".weight")}
    assert len(candidates) == 6 and len(edit.deltas) == 2 and set(edit.deltas) < candidates and not edit.weights
    assert {up.shape[1] for up, _ in edit.deltas.values()} == {16}
    every = edits.make(quick("fade_adv@flux", saliency=1.0), flux, replace(REQUEST, erase=(CAT,)))
    assert set(every.deltas) == candidates


def test_the_foremost_are_a_share_of_all_in_their_own_order() -> None:
    means = {"a": 1.0, "b": 3.0, "c": 2.0, "d": 3.0}
    assert _saliency.foremost(means, 0.5) == ["b", "d"] and _saliency.foremost(means, 0.75) == ["b", "c", "d"]
    assert _saliency.foremost(means, 0.01) == ["b"]


def test_fade_adv_s_guidance_is_what_dev_is_given() -> None:
    """With no second branch, and the number 2 instead of the model's own 3.5, which stays as it is."""
    dev = random_flux(guidance_embeds=True)
    method: Any = quick("fade_adv@flux")
    assert (method.guidance, method.embedded_guidance) == (1.0, 2.0)
    two, own = (
        edits.make(replace(method, embedded_guidance=g), dev, replace(REQUEST, erase=(CAT,))) for g in (2.0, None)
    )
    assert edits.edit_hash(two) != edits.edit_hash(own) and dev.guidance == 3.5
    plain = random_flux()
    same = [
        edits.make(replace(method, embedded_guidance=g), plain, replace(REQUEST, erase=(CAT,))) for g in (2.0, None)
    ]
    assert edits.edit_hash(same[0]) == edits.edit_hash(same[1])


def test_fade_adv_s_losses_with_low_ranks_are_the_formulas() -> None:
    flux = random_flux(dtype=torch.float64)
    method: Any = quick("fade_adv@flux", removal="match", match=7.0)
    task = _fade_adv.prepare(flux, replace(REQUEST, erase=(CAT,)), method, np.random.default_rng(0))
    base = {n: w for n, w in _saliency.candidates(flux, "x").items() if w.ndim == 2}
    lora = LoRA(base, 2, scale=1.0, generator=torch.Generator().manual_seed(0))
    for up in lora.up.values():
        up.data = torch.randn(up.shape, generator=torch.Generator().manual_seed(1)) / 5
    contest = _fade_adv.Contest(task, lora, np.random.default_rng(1))
    batch = next(contest.batches)
    fixed = _fade_adv.targets(task, batch)
    with flux.substituted(lora.weights()):
        ours = float(contest._loss(batch, fixed).detach())
    changed = {n: w + lora.up[n].detach().double() @ lora.down[n].detach().double() for n, w in base.items()}
    with torch.no_grad():
        kept = flux.predict(batch.kept, batch.kept_t, batch.kept_text)
        wanted = flux.predict(batch.concept, batch.t, task.neutral[batch.rows])
        with flux.substituted(changed):
            kept_now = flux.predict(batch.kept, batch.kept_t, batch.kept_text)
            now = flux.predict(batch.concept, batch.t, task.concept[batch.rows])
    truth = 7 * (now - wanted).square().mean() + method.preservation * (kept_now - kept).square().mean()
    assert ours == pytest.approx(float(truth), rel=1e-6)


def test_fade_fg_on_flux_has_images_without_a_second_branch() -> None:
    method: Any = quick("fade_fg@flux")
    assert isinstance(method, FADE) and method.guidance == 1.0
    request = replace(REQUEST, erase=(replace(CAT, adjacent=("dog", "deer")),))
    counted = edits.make(method, random_flux(), request).cost.denoiser_forwards
    images, steps, iterations = 3 * method.images, method.steps, method.iterations
    assert counted == images * steps + iterations * (3 + 1 + 2) + iterations * 3  # frozen, then trained


def test_low_rank_fade_adv_leaves_element_wise_training_as_it_was() -> None:
    assert {"rank", "embedded_guidance"} & registry.resolve("fade_adv").fields.keys() == set()
    assert "where" not in registry.resolve("mace").fields and "where" not in registry.resolve("cpe").fields
    assert isinstance(FadeAdv().refusal("unet-epsilon"), type(None))
