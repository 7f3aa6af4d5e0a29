"""MACE: both solves and the loss written out a second time, the limits that theory gives, and what training does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmark import edits, registry
from benchmark.backbones.base import Backbone
from benchmark.backbones.random_models import random_flux, random_unet
from benchmark.errors import BadInput, BenchError, Missing
from benchmark.interface import Kind, Request, Target
from methods import _mace, _mace_cache, _mace_fusion, _mace_masks, _templates
from methods.mace import MACE

CAT = Target(name="cat", anchor="animal")
TRUCK = Target(name="blue truck", anchor="thing")
REQUEST = Request(erase=(CAT, TRUCK), keep=("horse", "CAT"), general=("the sky by the ship", "a person"), seed=5)
PROMPTS = ("a photo of the {}", "{} in the sky", "{}")
SHORT = MACE(
    templates=PROMPTS,
    iterations=6,
    lr=1e-2,
    images=2,
    image_steps=3,
    ridge=0.5,
    train_scale=0.3,
    fuse_scale=0.2,
    domain_weight=2.0,
    prior_captions=0,
)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_unet()


def base(backbone: Backbone) -> dict[str, Tensor]:
    return {p.name: p.weight for p in backbone.projections()}


def ready(backbone: Backbone, method: MACE, request: Request = REQUEST) -> tuple[list[_mace.Concept], _mace.Kept]:
    pairs = [(t, method.anchor_of(t)) for t in request.erase]
    kept = _mace.keep(backbone, request, method, method.settled(request))
    return _mace.read(backbone, pairs, method), kept


def refined(backbone: Backbone, method: MACE, request: Request = REQUEST) -> dict[str, Tensor]:
    concepts, kept = ready(backbone, method, request)
    return _mace.refine(base(backbone), concepts, kept, method, method.settled(request))


# --- positions --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("a", "b", "of_a", "of_b"),
    [
        # one word each: all but that word
        ([0, 5, 7, 9], [0, 5, 8, 9], [0, 1, 3, 4, 5, 6, 7], [0, 1, 3, 4, 5, 6, 7]),
        # two words against one: what follows is shifted, and one padding position fits no other
        ([0, 5, 7, 7, 9], [0, 5, 8, 9], [0, 1, 4, 5, 6, 7], [0, 1, 3, 4, 5, 6]),
        ([0, 8, 9], [0, 7, 7, 7, 9], [0, 2, 3, 4, 5], [0, 4, 5, 6, 7]),
        # a word shared between concept and anchor counts as common, once
        ([0, 3, 7, 9], [0, 3, 9], [0, 1, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6]),
        ([0, 3, 3, 9], [0, 3, 9], [0, 1, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6]),
        ([0, 5, 9], [0, 5, 9], [0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]),
        # the anchor ends the prompt: the end token is common
        ([0, 9], [0, 5, 6, 9], [0, 1, 2, 3, 4, 5], [0, 3, 4, 5, 6, 7]),
    ],
)
def test_common_positions(a: list[int], b: list[int], of_a: list[int], of_b: list[int]) -> None:
    assert _mace_fusion.matched(a, b, 8) == (of_a, of_b)


def test_positions_of_stable_diffusion() -> None:
    """A photo of the airplane → sky: 76 of 77, all but the word."""
    a, b = [0, 1, 2, 3, 4, 50, 9], [0, 1, 2, 3, 4, 60, 9]
    assert _mace_fusion.matched(a, b, 77)[0] == [i for i in range(77) if i != 5]


def test_concept_end_and_padding_are_attended(backbone: Backbone) -> None:
    text = backbone.embed(["a photo of the blue truck in"])
    columns = _mace.attended(backbone, "a photo of the blue truck in", "blue truck", text).tolist()
    assert columns[: len(columns) - (24 - int(text.last) - 1)] == [
        *backbone.span("a photo of the blue truck", "blue truck")
    ]
    assert columns[-(24 - int(text.last) - 1) :] == list(range(int(text.last) + 1, 24))


# --- the solves -------------------------------------------------------------------------------------------------------
def stacked(blocks: Sequence[tuple[float, np.ndarray, np.ndarray]]) -> np.ndarray:
    """W of the least squares Σ weight ‖W e − v‖² over all rows e, v of all blocks: one tall system, no normal form."""
    left = np.concatenate([np.sqrt(weight) * e for weight, e, _ in blocks])
    right = np.concatenate([np.sqrt(weight) * v for weight, _, v in blocks])
    return np.asarray(np.linalg.lstsq(left, right, rcond=None)[0].T)


def rows(backbone: Backbone, prompt: str) -> np.ndarray:
    return np.asarray(backbone.embed([prompt]).tokens[0].double())


def coexisting(backbone: Backbone, prompt: str, guide: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the words that both prompts have, found from the two ends."""
    texts = backbone.embed([prompt, guide])
    a, b = (ids[: last + 2].tolist() for ids, last in zip(texts.ids, texts.last, strict=True))
    i = 0
    while i < min(len(a), len(b)) and a[i] == b[i]:
        i += 1
    j = 0
    while j < min(len(a), len(b)) - i and a[-1 - j] == b[-1 - j]:
        j += 1
    e, g = rows(backbone, prompt), rows(backbone, guide)
    pads = 24 - max(len(a), len(b))
    after = [(len(a) - j + k, len(b) - j + k) for k in range(j + pads)]
    both = [(k, k) for k in range(i)] + after
    return np.stack([e[k] for k, _ in both]), np.stack([g[k] for _, k in both])


def kept_blocks(backbone: Backbone, w: np.ndarray, scale: float) -> list[tuple[float, np.ndarray, np.ndarray]]:
    domain = [p.replace("{}", "horse") for p in PROMPTS]
    scales = [(scale, p) for p in REQUEST.general] + [(scale * 2.0, p) for p in domain]
    return [(s, rows(backbone, p), rows(backbone, p) @ w.T) for s, p in scales]


@pytest.mark.parametrize("squared", [True, False])
def test_refinement_is_the_least_squares(backbone: Backbone, squared: bool) -> None:
    new = refined(backbone, replace(SHORT, squared_preserve=squared))
    for name, weight in base(backbone).items():
        w = np.asarray(weight.double())
        blocks = [(0.5, np.eye(128), w.T), *kept_blocks(backbone, w, 0.3**2 if squared else 0.3)]
        for t in REQUEST.erase:
            for p in PROMPTS:
                e, g = coexisting(backbone, p.replace("{}", t.name), p.replace("{}", t.anchor))
                blocks.append((1.0, e, g @ w.T))
        truth = stacked(blocks)
        assert np.linalg.norm(new[name].numpy() - truth) < 1e-5 * np.linalg.norm(truth - w)


def test_fusion_is_the_least_squares(backbone: Backbone) -> None:
    concepts, kept = ready(backbone, SHORT)
    torch.manual_seed(0)
    before = {n: w.double() + 0.1 * torch.randn(w.shape) for n, w in base(backbone).items()}
    tuned = [{n: w + 0.1 * torch.randn(w.shape) for n, w in before.items()} for _ in REQUEST.erase]
    new = _mace.fused(base(backbone), before, tuned, concepts, kept, SHORT, SHORT.settled(REQUEST))
    for name, weight in base(backbone).items():
        w = np.asarray(weight.double())
        blocks = [(0.5, np.eye(128), before[name].numpy().T), *kept_blocks(backbone, w, 0.2)]
        for t, matrices in zip(REQUEST.erase, tuned, strict=True):
            for p in PROMPTS:
                e = rows(backbone, p.replace("{}", t.name))
                blocks.append((1.0, e, e @ matrices[name].numpy().T))
        truth = stacked(blocks)
        assert np.linalg.norm(new[name].numpy() - truth) < 1e-5 * np.linalg.norm(truth - w)
        # one by one, from rows
        contexts = np.concatenate([e for _, e, _ in blocks[-6:]])
        targets = np.concatenate([v for _, _, v in blocks[-6:]])
        c2 = kept.gram(0.2, SHORT, SHORT.settled(REQUEST))
        alone = _mace_fusion.fuse(
            before[name], torch.from_numpy(contexts), torch.from_numpy(targets), 0.5, weight.double() @ c2, c2
        )
        torch.testing.assert_close(alone, new[name], rtol=1e-6, atol=1e-8)


def test_rows_that_do_not_span_change_nothing_else() -> None:
    """Without λ the system is singular: the rows get their values, and what is orthogonal to them stays."""
    torch.manual_seed(0)
    w, e, v = torch.randn(4, 9).double(), torch.randn(3, 9).double(), torch.randn(3, 4).double()
    new = _mace_fusion.fuse(w, e, v, 0.0)
    torch.testing.assert_close(e @ new.T, v)
    away = torch.linalg.svd(e).Vh[3:]
    torch.testing.assert_close(away @ new.T, away @ w.T)


def test_mean_of_the_loras(backbone: Backbone) -> None:
    concepts, kept = ready(backbone, SHORT)
    tuned = [{n: w.double() + k for n, w in base(backbone).items()} for k in (1, 3)]
    naive = replace(SHORT, fusion="mean")
    new = _mace.fused(base(backbone), base(backbone), tuned, concepts, kept, naive, naive.settled(REQUEST))
    for name, w in base(backbone).items():
        torch.testing.assert_close(new[name], w.double() + 2)


# --- limits -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fields", [{"ridge": 1e12}, {"train_scale": 1e12, "squared_preserve": False}])
def test_large_scales_are_no_edit(backbone: Backbone, fields: dict[str, Any]) -> None:
    """The ridge holds every weight; so does a prior that spans all dimensions."""
    method = replace(SHORT, **fields)
    concepts, kept = ready(backbone, method)
    everything = kept._replace(prior=_mace_cache.Cache(torch.eye(128).double(), 1))
    new = _mace.refine(base(backbone), concepts, everything, method, method.settled(REQUEST))
    loose = _mace.refine(base(backbone), concepts, kept, SHORT, SHORT.settled(REQUEST))
    for name, w in base(backbone).items():
        assert (new[name] - w).norm() < 1e-6 * (loose[name] - w).norm()


def test_words_beside_the_concept_land_on_those_beside_the_anchor(backbone: Backbone) -> None:
    free = replace(SHORT, templates=("a photo of the {} in the sky",), ridge=0.0, train_scale=0.0)
    new = refined(backbone, free, replace(REQUEST, erase=(TRUCK,)))
    e, g = (
        torch.from_numpy(r)
        for r in coexisting(backbone, "a photo of the blue truck in the sky", "a photo of the thing in the sky")
    )
    for name, w in base(backbone).items():
        wanted, before = g @ w.double().T, e @ w.double().T
        assert (e @ new[name].T - wanted).norm() < 1e-5 * (before - wanted).norm()


def test_kept_prompts_stay_when_the_scale_is_large(backbone: Backbone) -> None:
    def moved(scale: float) -> float:
        new = refined(backbone, replace(SHORT, train_scale=scale))
        e = torch.from_numpy(np.concatenate([rows(backbone, p.replace("{}", "horse")) for p in PROMPTS]))
        return float(sum((e @ (new[n] - w).T).norm() for n, w in base(backbone).items()))

    assert moved(1e4) < 1e-3 * moved(0.0)


def test_large_fuse_scale_keeps_what_the_original_made(backbone: Backbone) -> None:
    edit = replace(SHORT, fuse_scale=1e6, ridge=0.0).edit(backbone, REQUEST)
    e = torch.from_numpy(rows(backbone, "a photo of the horse"))
    for name, w in base(backbone).items():
        assert (e @ (edit.weights[name] - w).double().T).norm() < 1e-3 * (e @ w.double().T).norm()


def test_the_released_square(backbone: Backbone) -> None:
    as_released = refined(backbone, replace(SHORT, train_scale=1e-2))
    once = refined(backbone, replace(SHORT, train_scale=1e-4, squared_preserve=False))
    other = refined(backbone, replace(SHORT, train_scale=1e-2, squared_preserve=False))
    for name in base(backbone):
        torch.testing.assert_close(as_released[name], once[name], rtol=1e-9, atol=1e-12)
        assert (as_released[name] - other[name]).norm() > 1e-3 * as_released[name].norm()


def test_prior_weighs_as_so_many_captions(backbone: Backbone) -> None:
    concepts, _ = ready(backbone, SHORT)
    row = SHORT.settled(REQUEST)
    as_two = _mace.keep(backbone, REQUEST, SHORT, row)
    as_ten = replace(SHORT, prior_captions=10)
    more = as_ten.kept(REQUEST)
    assert more == [p.replace("{}", "horse") for p in PROMPTS] and as_two.prior.prompts == 2
    domain = 2.0 * as_two.domain.gram
    torch.testing.assert_close(as_two.gram(1.0, as_ten, row) - domain, 5 * (as_two.gram(1.0, SHORT, row) - domain))


# --- the loss ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("squared", [True, False])
def test_attention_loss_by_hand(backbone: Backbone, squared: bool) -> None:
    """Sum over layers of the norm over heads, pixels of the mask and columns, pixel by pixel in float64."""
    text, x = backbone.embed(["a photo of the cat"]), backbone.noise([3])
    with torch.no_grad(), backbone.attention_maps() as maps:
        backbone.predict(x, torch.tensor([300]), text)
    columns = _mace.attended(backbone, "a photo of the cat", "cat", text)
    mask = torch.zeros(64, 64)
    mask[8:40, 16:] = 1
    ours = _mace.attention([m.double() for m in maps], columns, mask, squared=squared)
    truth = 0.0
    for m in maps:
        side = {64: 8, 16: 4}[m.shape[2]]
        total = 0.0
        for head in m[0].double().numpy():
            for pixel, probabilities in enumerate(head):
                y, z = pixel // side * (64 // side), pixel % side * (64 // side)
                if mask[y, z] > 0.5:
                    total += sum(probabilities[c] ** 2 for c in columns.tolist())
        truth += total if squared else total**0.5
    assert float(ours) == pytest.approx(truth, rel=1e-6)
    assert {m.shape[2] for m in maps} == {64, 16}


def test_no_mask_is_all_pixels(backbone: Backbone) -> None:
    maps = [torch.rand(1, 2, 64, 24), torch.rand(1, 2, 16, 24)]
    columns = torch.tensor([3, 20])
    torch.testing.assert_close(_mace.attention(maps, columns, None), _mace.attention(maps, columns, torch.ones(64, 64)))
    wide = [torch.rand(1, 2, 32, 24)]
    assert _mace.attention(wide, columns, torch.ones(32, 64)) > _mace.attention(
        wide, columns, torch.cat([torch.ones(32, 32), torch.zeros(32, 32)], 1)
    )


def test_focal_times() -> None:
    """86 % in [200, 400), 1 and 99 % at about 155 and 445."""
    p = _mace.chances("importance", MACE())
    cumulative = p.cumsum()
    assert p.sum() == pytest.approx(1)
    assert p[200:400].sum() == pytest.approx(0.86, abs=0.005)
    assert [int(np.searchsorted(cumulative, q)) for q in (0.01, 0.99)] == pytest.approx([155, 445], abs=2)
    drawn = np.array([d.time for d in _mace.draw(np.random.default_rng(0), 4000, 30, 8, p)])
    assert ((drawn >= 200) & (drawn < 400)).mean() == pytest.approx(0.86, abs=0.02)
    flat = _mace.draw(np.random.default_rng(0), 4000, 30, 8, _mace.chances("uniform", MACE()))
    assert np.mean([d.time for d in flat]) == pytest.approx(499.5, abs=15)
    assert {d.prompt for d in flat} == set(range(30)) and {d.image for d in flat} == set(range(8))


# --- training ---------------------------------------------------------------------------------------------------------
LAST = "unet.up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_v.weight"
"""The last values of the model: no attention map depends on them, so that training leaves them alone."""


def still(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    return [name for name in before if torch.equal(before[name], after[name])]


@pytest.mark.slow
def test_training_brings_attention_down(backbone: Backbone) -> None:
    edit = edits.make(replace(SHORT, iterations=40, times="uniform"), backbone, REQUEST)
    assert sorted(edit.weights) == sorted(base(backbone))
    for note in edit.notes["concepts"]:
        assert note["loss_last"] < 0.9 * note["loss_first"]
    # per concept: two samples of three guided steps, then a forward and a backward a step
    assert edit.cost.denoiser_forwards == 2 * (2 * 2 * 3 + 40)
    assert edit.cost.denoiser_backwards == 2 * 40


def test_lora_is_of_its_rank_and_on_the_refined_weights(backbone: Backbone) -> None:
    concepts, _ = ready(backbone, SHORT)
    before = refined(backbone, SHORT)
    changes, losses = _mace.train(backbone, before, concepts[0], SHORT, SHORT.settled(REQUEST), 5, None)
    new = _mace.moved(before, changes)
    assert len(losses) == 6
    assert still(before, new) == [LAST]
    for name in before.keys() - {LAST}:
        size = torch.linalg.svdvals(new[name] - before[name])
        assert size[1] < 1e-6 * size[0]


def test_other_concepts_do_not_shift_the_draws(backbone: Backbone) -> None:
    concepts, _ = ready(backbone, SHORT)
    backwards, _ = ready(backbone, SHORT, replace(REQUEST, erase=(TRUCK, CAT)))
    row = SHORT.settled(REQUEST)
    before = {n: w.double() for n, w in base(backbone).items()}
    one, two, other = (
        _mace.moved(before, _mace.train(backbone, before, concept, SHORT, row, seed, None)[0])
        for concept, seed in ((concepts[1], 5), (backwards[0], 5), (concepts[1], 6))
    )
    assert all(torch.equal(one[n], two[n]) for n in before)
    assert still(one, other) == [LAST]


def test_without_steps_it_is_refinement_alone(backbone: Backbone) -> None:
    edit = edits.make(replace(SHORT, iterations=0), backbone, REQUEST)
    for name, w in refined(backbone, SHORT).items():
        torch.testing.assert_close(edit.weights[name], w.float(), rtol=0, atol=0)
    assert edit.cost.denoiser_forwards == 0


def test_edit_survives_its_files_and_comes_off_again(backbone: Backbone) -> None:
    edit = edits.make(SHORT, backbone, REQUEST)
    again = edits.deserialise(edits.serialise(edit))
    assert edits.edit_hash(again) == edits.edit_hash(edit)
    before = edits.fingerprints(backbone)
    with edits.apply(backbone, again):
        assert edits.fingerprints(backbone) != before
    assert edits.fingerprints(backbone) == before


def test_one_by_one_goes_too(backbone: Backbone) -> None:
    joint, single = (edits.make(SHORT, backbone, REQUEST, s) for s in ("joint", "sequential"))
    assert edits.edit_hash(joint) != edits.edit_hash(single)
    assert len(single.notes["sequence"]) == 2


def test_half_precision_keeps_its_dtype() -> None:
    edit = edits.make(SHORT, random_unet(dtype=torch.bfloat16), REQUEST)
    assert {v.dtype for v in edit.weights.values()} == {torch.bfloat16}


# --- caches -----------------------------------------------------------------------------------------------------------
def test_cache_is_the_paper_s_two_sums(backbone: Backbone) -> None:
    built = _mace_cache.build(backbone, REQUEST.general)
    assert built.keys() == base(backbone).keys()
    e = np.concatenate([rows(backbone, p) for p in REQUEST.general])
    for name, (c1, c2) in built.items():
        w = np.asarray(base(backbone)[name].double())
        np.testing.assert_allclose(c2.numpy(), sum(np.outer(r, r) for r in e), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(c1.numpy(), sum(np.outer(w @ r, r) for r in e), rtol=1e-6, atol=1e-6)


def test_caches_round_trip_and_stand_in(backbone: Backbone, tmp_path: Path) -> None:
    row, paths = SHORT.settled(REQUEST), (tmp_path / "prior.safetensors", tmp_path / "deep" / "domain.safetensors")
    kept = _mace.keep(backbone, REQUEST, SHORT, row)
    for path, cache in zip(paths, kept, strict=True):
        _mace_cache.save(path, backbone, cache)
        read = _mace_cache.load(path, backbone)
        assert torch.equal(read.gram, cache.gram) and read.prompts == cache.prompts
    by_file = replace(SHORT, prior_cache=str(paths[0]), domain_cache=str(paths[1]))
    bare = replace(REQUEST, keep=(), general=())
    here, there = (refined(backbone, m, r) for m, r in ((SHORT, REQUEST), (by_file, bare)))
    assert all(torch.equal(here[n], there[n]) for n in here)


def test_another_content_of_a_cache_is_another_edit(backbone: Backbone, tmp_path: Path) -> None:
    path, key = tmp_path / "cache.safetensors", "prior_sha256"

    def fields() -> Mapping[str, Any]:
        return registry.resolve("mace", passed={"prior_cache": str(path)}).fields

    assert key not in registry.resolve("mace").fields and key not in fields()  # older keys stay what they were
    found = set()
    for prompts in (["a cat"], ["a dog"]):
        _mace_cache.save(path, backbone, _mace_cache.sums(backbone, prompts))
        found.add(fields()[key])
    assert len(found) == 2
    with pytest.raises(BadInput, match=f"should have sha256 {'0' * 64}, but has"):
        MACE(prior_cache=str(path), prior_sha256="0" * 64)


def test_command_writes_a_cache(backbone: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, out = tmp_path / "captions.txt", tmp_path / "cache.safetensors"
    text.write_text("\n".join([*REQUEST.general, "", " "]))
    _mace_cache.main(["random-unet", str(text), str(out)])
    assert "2 prompts" in capsys.readouterr().out
    assert torch.equal(_mace_cache.load(out, backbone).gram, _mace_cache.sums(backbone, REQUEST.general).gram)
    text.write_text("\n")
    with pytest.raises(SystemExit) as end:
        _mace_cache.main(["random-unet", str(text), str(out)])
    assert end.value.code == 2 and "got none" in capsys.readouterr().err


def test_no_general_prompts_keep_the_empty_one(backbone: Backbone) -> None:
    kept = _mace.keep(backbone, replace(REQUEST, general=()), SHORT, SHORT.settled(REQUEST))
    torch.testing.assert_close(kept.prior.gram, _mace_cache.sums(backbone, [""]).gram)
    nothing = replace(SHORT, train_scale=0.0, fuse_scale=0.0)
    assert _mace.keep(backbone, REQUEST, nothing, nothing.settled(REQUEST)).prior.prompts == 0


def test_bad_caches(backbone: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "cache.safetensors"
    lacking = replace(SHORT, prior_cache=str(path))
    with pytest.raises(Missing, match=r"no such file; write one with: python -m methods\._mace_cache random-unet"):
        lacking.edit(backbone, REQUEST)
    path.write_bytes(b"no tensors")
    with pytest.raises(BadInput, match="expected a cache of prompts"):
        lacking.edit(backbone, REQUEST)
    other = random_unet(seed=1)
    _mace_cache.save(path, other, _mace_cache.sums(other, ["a cat"]))
    with pytest.raises(BadInput, match="text encoder, and random-unet has another"):
        lacking.edit(backbone, REQUEST)


# --- masks ------------------------------------------------------------------------------------------------------------
def test_segmenter_says_what_is_missing(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mace_masks, "DETECTOR", "nobody/no-such-detector")
    with pytest.raises(Missing, match=r"needs nobody/no-such-detector.*hub cache.*hf download.*mask to ones"):
        replace(SHORT, mask="segmenter").edit(backbone, REQUEST)
    assert _mace_masks.finder("none", backbone) is None and _mace_masks.finder("ones", backbone) is None


def boxes_mask(image: Tensor, boxes: Tensor) -> Tensor:
    out = torch.zeros(len(boxes), *image.shape[1:], dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(out, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    return out


def test_union_of_what_is_found_or_all() -> None:
    image = torch.rand(3, 8, 8)
    two = torch.tensor([[0, 0, 2, 2], [4, 4, 8, 8]])
    mask = _mace_masks.found(image, "cat", lambda *_: two, boxes_mask)
    assert mask.sum() == 4 + 16 and mask[7, 7] == 1 and mask[3, 3] == 0
    assert _mace_masks.found(image, "cat", lambda *_: torch.zeros(0, 4), boxes_mask).sum() == 64


def test_masks_steer_the_training(backbone: Backbone) -> None:
    concepts, _ = ready(backbone, SHORT)
    before, row = {n: w.double() for n, w in base(backbone).items()}, SHORT.settled(REQUEST)

    def trained(find: _mace_masks.Finder | None) -> dict[str, Tensor]:
        return _mace.moved(before, _mace.train(backbone, before, concepts[0], SHORT, row, 5, find)[0])

    def corner(latents: Tensor, name: str) -> Tensor:
        mask = torch.zeros(len(latents), 64, 64)
        mask[:, :32, :32] = 1
        return mask

    plain, all_ones, some = trained(None), trained(lambda x, _: torch.ones(len(x), 64, 64)), trained(corner)
    assert all(torch.equal(plain[name], all_ones[name]) for name in before)
    for name in before.keys() - {LAST}:
        assert (plain[name] - some[name]).norm() > 1e-3 * (plain[name] - before[name]).norm()


def test_tiny_sam_gives_a_mask_a_box() -> None:
    import transformers

    untyped: Any = transformers

    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 16,
        "global_attn_indexes": [0],
        "window_size": 2,
        "output_channels": 16,
        "mlp_dim": 16,
        "num_pos_feats": 8,
    }
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    decoder = {
        "hidden_size": 16,
        "mlp_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 16,
    }
    config: Any = untyped.SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    size: Any = {"longest_edge": 64}
    pad: Any = {"height": 64, "width": 64}
    processor: Any = untyped.SamProcessor(untyped.SamImageProcessor(size=size, pad_size=pad))
    with torch.no_grad():
        segment = _mace_masks.segmented(untyped.SamModel(config).eval(), processor)
        masks = segment(torch.rand(3, 48, 32), torch.tensor([[1.0, 2.0, 20.0, 30.0], [4.0, 4.0, 30.0, 40.0]]))
    assert masks.shape == (2, 48, 32) and masks.dtype == torch.bool


# --- fields -----------------------------------------------------------------------------------------------------------
def names(count: int, kind: Any) -> Request:
    return Request(erase=tuple(Target(name=f"n{i}", kind=kind, anchor="a person") for i in range(count)))


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (names(1, "object"), ("object", 1e-5, 50, 0.0, 0.0, 1e2, "importance")),
        (names(1, "fine-grained"), ("object", 1e-5, 50, 0.0, 0.0, 1e2, "importance")),
        (names(1, "identity"), ("identity", 1e-4, 50, 1e-4, 8e3, 0.0, "importance")),
        (names(5, "identity"), ("identity", 1e-4, 50, 1e-4, 5e4, 0.0, "importance")),
        (names(10, "identity"), ("identity", 1e-4, 50, 1e-4, 8e4, 0.0, "importance")),
        (names(100, "identity"), ("identity", 1e-4, 50, 1e-4, 2e5, 0.0, "importance")),
        (names(4, "explicit"), ("explicit", 1e-5, 120, 7e-7, 0.0, 0.0, "uniform")),
        (names(100, "style"), ("style", 1e-4, 50, 1e-4, 8e4, 0.0, "importance")),
    ],
)
def test_released_configurations(request_: Request, expected: tuple[Any, ...]) -> None:
    row = MACE().settled(request_)
    found = (MACE().kind(request_), row.lr, row.iterations, row.train_scale, row.domain_weight, row.ridge, row.times)
    assert found == expected and row.fuse_scale == row.train_scale


def test_fields_count_more_than_the_setting() -> None:
    method = MACE(setting="explicit", lr=3e-3, ridge=0.5, times="importance", iterations=7)
    row = method.settled(names(1, "object"))
    assert (row.lr, row.ridge, row.times, row.iterations, row.train_scale) == (3e-3, 0.5, "importance", 7, 7e-7)
    assert MACE().kind(replace(REQUEST, erase=(CAT, Target(name="x", kind="style")))) == "object"


def test_templates() -> None:
    style, person = Target(name="ink", kind="style"), Target(name="mira", kind="identity")
    for target in (CAT, style, person):
        assert len(set(MACE().prompts(target, target.name))) == 30
        for which in ("paper", "short"):
            assert all(t.count("{}") == 1 for t in _templates.templates(which, target.kind))
    short = MACE(templates="short")
    assert short.prompts(style, "ink")[0] == short.image_prompt(style) == "a picture in the ink style"
    assert short.image_prompt(person) == "a portrait of mira"
    assert MACE().image_prompt(CAT) == "a photo of the cat"
    assert MACE().image_prompt(style) == "a photo in the style of ink"
    assert MACE(image_template="{}!").image_prompt(CAT) == "cat!"
    assert SHORT.prompts(CAT, "a{b}")[0] == "a photo of the a{b}"


def test_short_templates_are_in_the_embedded_model_s_words() -> None:
    from benchmark.testbed.captions import vocabulary, words

    known = set(vocabulary())
    kinds: tuple[Kind, ...] = ("object", "identity", "style")
    for kind in kinds:
        for template in _templates.templates("short", kind):
            assert set(words(template.replace("{}", "cat"))) <= known


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask": "one"}, "unknown mask 'one'; did you mean 'ones'"),
        ({"setting": "celebrity"}, "unknown setting"),
        ({"times": "cfis"}, "unknown times"),
        ({"fusion": "sum"}, "unknown fusion"),
        ({"loss": "l2"}, "unknown loss"),
        ({"templates": "long"}, "unknown set of templates 'long'"),
        ({"templates": ()}, "at least one"),
        ({"templates": ("a photo",)}, "templates must hold {} once"),
        ({"image_template": "{} {}"}, "image_template must hold {} once"),
        ({"rank": 0}, "rank"),
        ({"iterations": -1}, "iterations"),
        ({"lr": 0}, "lr must be a number above 0"),
        ({"ridge": float("nan")}, "ridge"),
        ({"times_from": 400}, "times_from must be below times_to"),
        ({"times_to": 1001}, "at most 1000"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        MACE(**fields)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target(name="cat"), "maps 'cat' to an anchor, and it has none; set the field anchor"),
        (Target(name="cat " * 30, anchor="animal"), "cut off.*shorten the name"),
    ],
)
def test_bad_concepts(backbone: Backbone, target: Target, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        SHORT.edit(backbone, Request(erase=(target,)))


def test_an_anchor_for_all(backbone: Backbone) -> None:
    edit = replace(SHORT, anchor="plant").edit(backbone, Request(erase=(Target(name="cat"), TRUCK)))
    assert [c["anchor"] for c in edit.notes["concepts"]] == ["plant", "plant"]


def test_flow_models_are_refused_but_for_their_variant() -> None:
    with pytest.raises(BadInput, match="mace works on .*unet-epsilon.*mace@flux.*transformer-flow"):
        edits.make(SHORT, random_flux(), REQUEST)
    with pytest.raises(BadInput, match="mace@flux works on .*transformer-flow.*unet-epsilon"):
        edits.make(replace(SHORT, where="text"), random_unet(), REQUEST)


def test_divergence_names_the_iteration(backbone: Backbone) -> None:
    with pytest.raises(BenchError, match="mace: the loss is (nan|inf) at iteration"):
        replace(SHORT, lr=1e30).edit(backbone, REQUEST)
