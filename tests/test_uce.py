"""UCE: what the paper claims of its closed form, and the formula itself written out a second time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmark import edits
from benchmark.backbones.base import Backbone
from benchmark.backbones.random_models import random_flux, random_unet
from benchmark.errors import BadInput
from benchmark.interface import Request, Target
from methods._closed_form import System, _Fast
from methods.uce import UCE, Pair

CAT = Target(name="cat", anchor="animal")
SHIP = Target(name="oil painting of a ship", anchor="vessel")


@pytest.fixture(scope="module", params=["unet", "flux"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return random_unet() if request.param == "unet" else random_flux()


def outputs(backbone: Backbone, weights: dict[str, Tensor], prompt: str) -> dict[str, Tensor]:
    """What each projection makes of the prompt's last content token, or of its pooled vector."""
    return {
        p.name: kept_rows(backbone, prompt, p.role, "last").float() @ weights[p.name].T for p in backbone.projections()
    }


def originals(backbone: Backbone) -> dict[str, Tensor]:
    return {p.name: p.weight for p in backbone.projections()}


@pytest.mark.parametrize("rows", ["last", "aligned"])
def test_erased_lands_on_guide_and_kept_stays(backbone: Backbone, rows: str) -> None:
    method = UCE(rows=rows, ridge=1e-7, guide="anchor", preserve_empty=False, preserve_scale=1.0)  # type: ignore[arg-type]
    edit = method.edit(backbone, Request(erase=(CAT,), keep=("horse",)))
    old = originals(backbone)
    for prompt, wanted in (("cat", "animal"), ("horse", "horse")):
        new, then = outputs(backbone, dict(edit.weights), prompt), outputs(backbone, old, wanted)
        far = outputs(backbone, old, "cat")
        for name in new:
            assert (new[name] - then[name]).norm() < 0.05 * (far[name] - outputs(backbone, old, "animal")[name]).norm()


def test_large_ridge_is_no_edit(backbone: Backbone) -> None:
    edit = UCE(ridge=1e10).edit(backbone, Request(erase=(CAT,)))
    for name, w in originals(backbone).items():
        torch.testing.assert_close(edit.weights.get(name, w), w, atol=1e-6, rtol=0)


def test_concept_that_is_its_own_guide_is_no_edit(backbone: Backbone) -> None:
    assert not UCE(guide="anchor").edit(backbone, Request(erase=(Target(name="cat", anchor="cat"),))).weights


def explicit(backbone: Backbone, method: UCE, request: Request, s_p: float) -> dict[str, Tensor]:
    """The formula of the paper (eq. 7) in float64, row by row and projection by projection."""
    new = {}
    for p in backbone.projections():
        w = p.weight.double()
        left, right = method.ridge * w, method.ridge * torch.eye(w.shape[1], dtype=torch.float64)
        for t in request.erase:
            guide = "" if method.guide == "unconditional" else t.anchor
            c, g = rows(backbone, t.name, guide, p.role, method.rows)
            values = [w @ row for row in g]
            if method.technique == "tensor":
                u = torch.stack([w @ row for row in c])
                u = u / u.norm()
                overlap = (u * torch.stack(values)).sum()
                values = [v - overlap * part for v, part in zip(values, u, strict=True)]
            for context, value in zip(c, values, strict=True):
                left = left + method.erase_scale * torch.outer(value, context)
                right = right + method.erase_scale * torch.outer(context, context)
        for name in dict.fromkeys([""] * method.preserve_empty + list(request.keep)):
            for row in kept_rows(backbone, name, p.role, method.rows):
                left = left + s_p * torch.outer(w @ row, row)
                right = right + s_p * torch.outer(row, row)
        new[p.name] = torch.linalg.solve(right.T, left.T).T
    return new


def rows(backbone: Backbone, concept: str, guide: str, role: str, kind: str) -> tuple[Tensor, Tensor]:
    old, new = backbone.embed([concept]), backbone.embed([guide])
    if role == "pooled":
        assert old.pooled is not None and new.pooled is not None
        return old.pooled.double(), new.pooled.double()
    i, j, length = int(old.last), int(new.last), old.tokens.shape[1]
    if kind == "last":
        return old.tokens[:, i].double(), new.tokens[:, j].double()
    far = max(i, j)
    return old.tokens[0, i : length - (far - i)].double(), new.tokens[0, j : length - (far - j)].double()


def kept_rows(backbone: Backbone, name: str, role: str, kind: str) -> Tensor:
    text = backbone.embed([name])
    if role == "pooled":
        assert text.pooled is not None
        return text.pooled.double()
    return text.tokens[0].double() if kind == "aligned" else text.tokens[:, int(text.last)].double()


CASES: list[tuple[dict[str, Any], float]] = [
    ({}, 1 / 3),  # '' and two names
    ({"technique": "tensor"}, 1 / 3),
    ({"guide": "anchor", "ridge": 0.2, "erase_scale": 3.0}, 1 / 3),
    ({"rows": "last", "preserve_scale": 1.0, "preserve_empty": False}, 1.0),
    ({"rows": "last", "technique": "tensor", "guide": "anchor", "preserve_scale": 0.2}, 0.2),
]


@pytest.mark.parametrize(("fields", "s_p"), CASES)
def test_both_solvers_are_the_formula(backbone: Backbone, fields: dict[str, Any], s_p: float) -> None:
    request = Request(erase=(CAT, SHIP), keep=("dog", "blue bird"))
    truth = explicit(backbone, UCE(**fields), request, s_p)
    fast = UCE(**fields).edit(backbone, request).weights
    slow = UCE(**fields, solver="reference").edit(backbone, request).weights
    for name, w in originals(backbone).items():
        size = (truth[name] - w).norm()
        assert (fast[name] - truth[name]).norm() < 1e-5 * size
        # the released float32 inverse is coarser: 0.05 to 0.4 % of the edit on Stable Diffusion's shapes
        assert (slow[name] - truth[name]).norm() < 1e-2 * size


def test_many_rows_take_the_merged_way(backbone: Backbone) -> None:
    """With more rows than dimensions the thin factors are multiplied first, and nothing else changes."""
    names = ("cat", "dog", "bird", "deer", "frog", "horse", "ship", "truck", "car")
    request = Request(erase=tuple(Target(name=n) for n in names))
    truth = explicit(backbone, UCE(), request, 1.0)
    fast = UCE().edit(backbone, request).weights
    for name, w in originals(backbone).items():
        assert (fast[name] - truth[name]).norm() < 1e-5 * (truth[name] - w).norm()


@pytest.mark.parametrize(("erased", "kept"), [(1, 0), (3, 20), (3, 60), (40, 60), (100, 300)])
@pytest.mark.parametrize("technique", ["replace", "tensor"])
def test_the_smaller_system_gives_the_same_factor(erased: int, kept: int, technique: str) -> None:
    """Rows against their Gram matrix, below, at and above a quarter of 96 columns: one edit, the formula's, in float64.

    R(λI + RᵀR)⁻¹ = (λI + RRᵀ)⁻¹R holds for any R; the first rows of both sides, times √s_e, are K.
    """
    draw = torch.Generator().manual_seed(0)
    c, g, p = (torch.randn(n, 96, generator=draw, dtype=torch.float64) + 1 for n in (erased, erased, kept))
    few = System(c, g, (1,) * erased, p, True, p.sum(0), 0.3, 2.0, 0.7)
    many = replace(few, kept=p.T @ p, few=False)
    wanted = 2.0 * torch.linalg.solve(0.3 * torch.eye(96).double() + 2.0 * c.T @ c + 0.7 * p.T @ p, c, left=False)
    torch.testing.assert_close(few.factor(), wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(many.factor(), wanted, rtol=1e-9, atol=1e-9)
    w = torch.randn(64, 96, generator=draw, dtype=torch.float64)
    torch.testing.assert_close(_Fast(few, technique)(w), _Fast(many, technique)(w), rtol=1e-8, atol=1e-8)


def test_few_prompts_take_the_smaller_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """No matrix of the text's width is factorised for one row a prompt, and it is for all rows of many."""
    sizes: list[int] = []
    plain = torch.linalg.cholesky
    monkeypatch.setattr(torch.linalg, "cholesky", lambda a: (sizes.append(len(a)), plain(a))[1])
    backbone = random_unet()
    width = backbone.projections()[0].weight.shape[1]
    UCE(rows="last").edit(backbone, Request(erase=(CAT,), keep=("dog", "blue bird")))
    UCE().edit(backbone, Request(erase=(CAT,), keep=("dog", "blue bird")))
    assert sizes == [4, width], "cat and three kept ones, the empty prompt among them"


def test_all_projections_change_and_nothing_else(backbone: Backbone) -> None:
    edit = UCE().edit(backbone, Request(erase=(CAT,)))
    assert sorted(edit.weights) == sorted(originals(backbone))


def test_released_defaults() -> None:
    request = Request(erase=(CAT,), keep=("CAT", "dog", "dog"))
    assert UCE().kept(request) == ["", "dog"]
    assert UCE(preserve="none").kept(request) == [""]
    assert UCE(**UCE.variants["2025"]).kept(request) == ["dog"]
    assert UCE().pairs(request) == [Pair("cat", "")]
    assert UCE(guide="anchor").pairs(request) == [Pair("cat", "animal")]


def test_guides_and_templates_by_kind() -> None:
    style = Request(erase=(Target(name="Van Gogh", kind="style"),))
    released = UCE(**{**UCE.variants["2025"], "with_templates": True})
    assert released.pairs(style)[:2] == [Pair("Van Gogh", "art"), Pair("painting by Van Gogh", "painting by art")]
    assert UCE(with_templates=True).pairs(style)[1] == Pair("painting by Van Gogh", "")
    assert UCE(with_templates=True).pairs(Request(erase=(CAT,)))[1] == Pair("image of cat", "")
    assert len(UCE(with_templates=True).pairs(style)) == 6


@pytest.mark.parametrize(("keep", "scale"), [((), 1.0), (("dog",), 0.5), (tuple(f"dog {i}" for i in range(30)), 0.1)])
def test_preserve_scale_of_the_paper_s_code(keep: tuple[str, ...], scale: float) -> None:
    edit = UCE().edit(random_unet(), Request(erase=(CAT,), keep=keep))
    assert edit.notes["preserve_scale"] == pytest.approx(scale)


def test_notes_say_which_tokens() -> None:
    notes = UCE().edit(random_unet(), Request(erase=(SHIP,))).notes
    assert notes["pairs"] == [{"erased": SHIP.name, "guide": "", "token": 5, "guide_token": 0}]


def test_half_precision_keeps_its_dtype() -> None:
    backbone = random_unet(dtype=torch.bfloat16)
    edit = UCE().edit(backbone, Request(erase=(CAT,)))
    assert {v.dtype for v in edit.weights.values()} == {torch.bfloat16}


# --- as released for FLUX ---------------------------------------------------------------------------------------------
def biased(backbone: Backbone, method: UCE, request: Request) -> dict[str, Tensor]:
    """The released target, the layer's whole output, in float64: row by row, layer by layer."""
    live, new = backbone.tensors(), {}
    for p in backbone.projections():
        w, b = p.weight.double(), live[p.name.replace(".weight", ".bias")].double()
        left, right = method.ridge * w, method.ridge * torch.eye(w.shape[1], dtype=torch.float64)

        def row(prompt: str, role: str = p.role) -> Tensor:
            text = backbone.embed([prompt])
            if role == "pooled":
                assert text.pooled is not None
                return text.pooled[0].double()
            return text.tokens[0, int((text.ids != 0).sum()) - 2].double()  # padding is 0; all content and one EOS

        for pair in method.pairs(request):
            left = left + torch.outer(w @ row(pair.guide) + b, row(pair.erased))
            right = right + torch.outer(row(pair.erased), row(pair.erased))
        for name in method.kept(request):
            left = left + torch.outer(w @ row(name) + b, row(name))
            right = right + torch.outer(row(name), row(name))
        new[p.name] = torch.linalg.solve(right.T, left.T).T
    return new


@pytest.mark.parametrize("anchored", [False, True])
def test_flux_is_the_released_formula_with_its_bias_twice(anchored: bool) -> None:
    flux, request = random_flux(), Request(erase=(CAT, SHIP), keep=("dog", "blue bird"))
    fields = {**UCE.variants["flux"], "guide": "anchor" if anchored else "unconditional"}
    method = UCE(**fields)
    truth, found = biased(flux, method, request), method.edit(flux, request).weights
    slow = UCE(**fields, solver="reference").edit(flux, request).weights
    for name, w in originals(flux).items():
        assert (found[name] - truth[name]).norm() < 1e-5 * truth[name].norm()
        assert (found[name] - truth[name]).norm() < 1e-4 * (truth[name] - w).norm()
        assert (slow[name] - truth[name]).norm() < 1e-2 * (truth[name] - w).norm()


@pytest.mark.parametrize(("technique", "times"), [("replace", 1), ("doubled-bias", 2)])
def test_what_the_edited_layer_of_flux_puts_out(technique: str, times: int) -> None:
    """With little ridge: the guide's output, to which the released target adds the bias once more. Kept names too."""
    flux = random_flux()
    method = UCE(rows="last", guide="anchor", ridge=1e-7, preserve_scale=1.0, preserve_empty=False, technique=technique)  # type: ignore[arg-type]
    new, live = method.edit(flux, Request(erase=(CAT,), keep=("horse",))).weights, flux.tensors()
    for p in flux.projections():
        bias = live[p.name.replace(".weight", ".bias")]
        for prompt, wanted in (("cat", "animal"), ("horse", "horse")):
            at, target = (kept_rows(flux, text, p.role, "last")[0].float() for text in (prompt, wanted))
            out = new[p.name] @ at + bias
            torch.testing.assert_close(out, p.weight @ target + times * bias, atol=2e-3, rtol=0)


def test_an_empty_prompt_is_read_at_its_end_as_released() -> None:
    flux, request = random_flux(), Request(erase=(CAT,))
    [wrapped] = UCE(**UCE.variants["flux"]).edit(flux, request).notes["pairs"]
    [first] = UCE(**UCE.variants["2025"]).edit(flux, request).notes["pairs"]
    assert (wrapped["guide"], wrapped["guide_token"], first["guide_token"]) == ("", 23, 1)
    assert wrapped["token"] == first["token"]
    unet = random_unet()  # its empty prompt has a BOS
    same = [UCE(rows=r).edit(unet, request) for r in ("last", "last-wrapped")]  # type: ignore[arg-type]
    assert all(torch.equal(same[0].weights[n], w) for n, w in same[1].weights.items())


def test_the_doubled_bias_makes_no_sense_without_biases() -> None:
    with pytest.raises(BadInput, match="uce's doubled bias works on .*no bias; random-unet is unet-epsilon"):
        edits.make(UCE(**UCE.variants["flux"]), random_unet(), Request(erase=(CAT,)))
