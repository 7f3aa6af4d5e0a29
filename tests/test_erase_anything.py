"""EraseAnything: both levels' losses written out a second time, what is drawn, what is trained."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmark import edits
from benchmark.backbones.flux import FluxBackbone
from benchmark.backbones.random_models import random_flux, random_unet
from benchmark.errors import BadInput
from benchmark.interface import Request, Target
from methods import _erase_anything
from methods._erase_anything import Draw, Task
from methods.erase_anything import EraseAnything

CAT = Target(name="cat", anchor="animal", synonyms=("kitty", "feline"))
REQUEST = Request(erase=(CAT,), keep=("horse", "ship", "cat", "bird"), seed=7)
QUICK = EraseAnything(iterations=4, steps=3, images=2)
STEP = Draw(True, "a photo of cat", "cat", 1, 300, 11, 12, 1, "kitty", ("horse", "ship", "bird"))


def task(method: EraseAnything = QUICK, *, dev: bool = False) -> Task:
    """In float64, with changes that are not zero, so that the trained and the unedited model differ."""
    flux = random_flux(dtype=torch.float64, guidance_embeds=dev)
    plan = [STEP, STEP._replace(upper=False)]
    made = _erase_anything.prepare(flux, CAT, plan, method, np.random.default_rng(0))
    for i, up in enumerate(made.lora.up.values()):
        up.data = torch.randn(up.shape, generator=torch.Generator().manual_seed(i)) / 4
    return made


def changed(made: Task) -> dict[str, Tensor]:
    """W + (α/r) U D, written out."""
    scale = made.settings.alpha / made.settings.rank
    parts = made.lora.base.items()
    return {n: w + scale * made.lora.up[n].detach().double() @ made.lora.down[n].detach().double() for n, w in parts}


@torch.no_grad()
def attention(made: Task, model: FluxBackbone, x: Tensor, t: Tensor, prompt: str) -> tuple[Tensor, Tensor]:
    with model.substituted(changed(made)), model.attention_maps(text_rows=True) as maps:
        velocity = model.predict(x, t, model.embed([prompt]))
    return velocity, maps[0].double()  # the double-stream block; the single-stream one comes after


@pytest.mark.parametrize("dev", [False, True])
@pytest.mark.parametrize("fields", [{}, {"reference": "frozen"}, {"latents": "noised", "eta": 2.0, "alpha": 4.0}])
def test_upper_losses_are_the_formulas(fields: dict[str, Any], dev: bool) -> None:
    made = task(replace(QUICK, **fields), dev=dev)
    ours = {name: float(part.detach()) for name, part in _erase_anything.upper(made, STEP).items()}
    base, s, t = made.backbone, made.settings, torch.tensor([300.0])
    assert isinstance(base, FluxBackbone)
    model, noised = base.at_guidance(3.0), base.at_guidance(3.5)
    p, null = model.embed([STEP.prompt]), model.embed(["a photo of animal"])
    with torch.no_grad(), model.substituted(changed(made)):
        z = model.noise([12])
        for i in range(3):
            z = model.step(z, i, model.predict(z, model.timesteps(3)[i], p), 3)
        if s.latents == "noised":
            z = 0.7 * z + 0.3 * model.noise([11])
        v, v0 = model.predict(z, t, p), model.predict(z, t, null)
    vp = v
    if s.reference == "frozen":
        with torch.no_grad():
            v0, vp = model.predict(z, t, null), model.predict(z, t, p)
    truth = (v - (v0 - s.eta * (vp - v0))).square().mean().item()
    assert ours["erase"] == pytest.approx(truth, rel=1e-6)
    x = 0.7 * made.images[1][None] + 0.3 * model.noise([11])
    _, joint = attention(made, noised, x, t, STEP.prompt)
    norms = joint[..., list(model.span(STEP.prompt, "cat"))].square().sum((0, 1)).sqrt()
    assert norms.shape == (24 + 16, 1)
    assert ours["attention"] == pytest.approx(norms.sum().item(), rel=1e-6)


def test_lower_losses_are_the_formulas() -> None:
    made, step = task(), STEP._replace(upper=False)
    ours = {name: float(part.detach()) for name, part in _erase_anything.lower(made, step).items()}
    model, t = made.backbone, torch.tensor([300.0])
    assert isinstance(model, FluxBackbone)
    noise, clean = model.noise([11]), made.images[1][None]
    velocity, joint = attention(made, model, 0.7 * clean + 0.3 * noise, t, step.prompt)
    assert ours["image"] == pytest.approx((velocity - (noise - clean)).square().mean().item(), rel=1e-6)

    def feature(maps: Tensor, prompt: str, word: str) -> Tensor:
        return maps[0, 0][:, list(model.span(prompt, word))].mean(1)

    def of(word: str) -> Tensor:
        text = model.embed([word])
        with torch.no_grad(), model.substituted(changed(made)):
            x = model.noise([12])
            x = model.step(x, 0, model.predict(x, model.timesteps(3)[0], text), 3)
        return feature(attention(made, model, x, model.timesteps(3)[1], word)[1], word, word)

    synonym = of("kitty")
    cosines = [
        float(f @ synonym / (f.norm() * synonym.norm()))
        for f in (feature(joint, step.prompt, "cat"), *map(of, ("horse", "ship", "bird")))
    ]
    shares = [math.exp((c - max(cosines)) / 0.07) for c in cosines]
    assert ours["contrast"] == pytest.approx(math.log(shares[0] / sum(shares)), rel=1e-5)


def test_only_the_concept_s_own_attention_carries_the_contrast_s_gradient() -> None:
    own, synonym, others = torch.rand(5, requires_grad=True), torch.rand(5), torch.rand(3, 5)
    before = _erase_anything.contrast(own, synonym, others, 0.07)
    before.backward()
    assert own.grad is not None
    after = _erase_anything.contrast((own - 1e-3 * own.grad).detach(), synonym, others, 0.07)
    assert after < before  # going down leads away from the synonym
    made = task()
    parts = _erase_anything.lower(made, STEP._replace(upper=False))
    parts["contrast"].backward()
    assert any(up.grad is not None and up.grad.abs().max() > 0 for up in made.lora.up.values())


def test_limits_of_the_losses() -> None:
    """No attention, no loss; a concept like its synonym while nothing else is: log 1; one of many alike: log 1/n."""
    assert _erase_anything.suppression(torch.zeros(1, 2, 4, 3), [0, 1]).item() == 0
    one = torch.tensor([1.0, 0.0])
    assert _erase_anything.contrast(one, one, -one[None], 0.07).item() == pytest.approx(0, abs=1e-6)
    assert _erase_anything.contrast(one, one, one.expand(3, 2), 0.07).item() == pytest.approx(-math.log(4), rel=1e-6)
    v0, vp = torch.tensor(1.0), torch.tensor(3.0)
    assert _erase_anything.away(v0, vp, 1.0).item() == -1 and _erase_anything.away(v0, vp, 0.0).item() == 1


def test_levels_take_turns_and_the_lower_one_has_the_upper_one_s_time() -> None:
    plan = _erase_anything.draw(np.random.default_rng(0), CAT, ("a", "b", "c", "d"), replace(QUICK, iterations=200))
    assert [d.upper for d in plan[:4]] == [True, False, True, False]
    assert all(a.time == b.time for a, b in zip(plan[::2], plan[1::2], strict=True))
    times = [d.time for d in plan[::2]]
    assert min(times) < 100 and max(times) > 900 and all(len(set(d.words)) == 3 for d in plan)
    alone = EraseAnything(**{**EraseAnything.variants["no-lower"], "iterations": 6})
    assert all(d.upper for d in _erase_anything.draw(np.random.default_rng(0), CAT, ("a", "b", "c"), alone))


def test_words_are_shuffled_and_names_stay_whole() -> None:
    rng = np.random.default_rng(0)
    made = [_erase_anything.shuffled(rng, "a photo of {}", "mira talvane", 0.9) for _ in range(200)]
    assert all(
        "mira talvane" in text and sorted(text.split()) == sorted("a photo of mira talvane".split()) for text in made
    )
    assert 0.05 < made.count("a photo of mira talvane") / 200 < 0.25  # one in ten, and one in 24 of the shuffled
    assert len(set(made)) > 15


@pytest.mark.parametrize("reads", [True, False])
def test_synonyms_are_read_only_where_they_are_asked_for(reads: bool) -> None:
    method = replace(QUICK, synonyms=reads, iterations=200)
    plan = _erase_anything.draw(np.random.default_rng(0), CAT, ("a", "b", "c"), method)
    names = {d.name for d in plan} | {d.synonym for d in plan}
    assert names == ({"cat", "kitty", "feline"} if reads else {"cat"})


def test_irrelevant_words_are_kept_names_filled_up() -> None:
    assert QUICK.words(CAT, REQUEST) == ("horse", "ship", "bird")
    few = QUICK.words(CAT, replace(REQUEST, keep=("Kitty", "horse")))
    assert few[0] == "horse" and "Kitty" not in few and len(few) > 3
    with pytest.raises(BadInput, match="irrelevant is 99, but there are"):
        replace(QUICK, irrelevant=99).words(CAT, REQUEST)


def test_it_trains_queries_and_keys_of_the_text_side_alone() -> None:
    flux = random_flux()
    edit = edits.make(QUICK, flux, REQUEST)
    block = "transformer.transformer_blocks.0.attn"
    assert set(edit.deltas) == {f"{block}.add_q_proj.weight", f"{block}.add_k_proj.weight"} and not edit.weights
    assert {up.shape[1] for up, _ in edit.deltas.values()} == {8}
    assert edit.notes["attention"] == block
    assert set(edit.notes["losses"]) == {"erase", "attention", "image", "contrast"}
    assert "reading" not in edit.notes
    assert edits.make(replace(QUICK, reference="frozen"), flux, REQUEST).notes["reading"] == "harness variant"


@pytest.mark.parametrize(
    ("variant", "losses"),
    [("no-attention", {"erase", "image", "contrast"}), ("no-lower", {"erase", "attention"})],
)
def test_switches_take_their_terms_away(variant: str, losses: set[str]) -> None:
    method = replace(EraseAnything(**EraseAnything.variants[variant]), iterations=2, steps=2, images=1)
    assert set(edits.make(method, random_flux(), REQUEST).notes["losses"]) == losses


def test_attention_to_the_concept_falls() -> None:
    method = EraseAnything(
        iterations=30,
        steps=2,
        images=1,
        erase_weight=0,
        attention_weight=1.0,
        image_weight=0,
        contrast_weight=0,
        lr=1e-2,
    )
    notes = edits.make(method, random_flux(), REQUEST).notes["losses"]["attention"]
    assert notes["loss_last"] < 0.9 * notes["loss_first"]


def test_what_it_refuses() -> None:
    with pytest.raises(BadInput, match="erase_anything works on .*transformer-flow"):
        edits.make(QUICK, random_unet(), REQUEST)
    with pytest.raises(BadInput, match="at most 1 concept"):
        edits.make(QUICK, random_flux(), replace(REQUEST, erase=(CAT, Target(name="dog"))))
    with pytest.raises(BadInput, match="cut off"):
        edits.make(QUICK, random_flux(), Request(erase=(Target(name="cat " * 30),)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reference": "none"}, "unknown reference"),
        ({"shuffle": 1.5}, "at most 1"),
        ({"temperature": 0}, "temperature must be a number above 0"),
        ({"erase_weight": 0, "attention_weight": 0}, "the rest erases nothing"),
        ({"template": "a photo"}, "template"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        EraseAnything(**fields)
