"""Unified Concept Editing: one least-squares solve for each projection that reads text. Gandikota et al., WACV 2024.

Minimises, for every projection W₀ that reads text (keys and values of cross-attention; in flow transformers the
projections of the tokens and of the pooled vector), over rows c of erased, g of guide and k of kept prompts:

    s_e Σ ‖W c − W₀ g‖²  +  s_p Σ ‖W k − W₀ k‖²  +  λ ‖W − W₀‖²

Two generations of released code differ in which rows these are; see `rows` and `variants`.

Of the paper's three uses two are here: erasing, and moderating, whose guide is the empty prompt. Debiasing is not. It
repeats the solve with targets W₀ (c + Σ r_k a_k), where r_k is by how much the share of an attribute a_k among new
images falls short of the desired one; a method is given a model and a request, and no judge that could count shares.

On FLUX the two projections have biases, which take no part in the formula above. The released code for FLUX, variant
`flux`, takes the layer's whole output W₀ g + b as the target of the weight alone, so that the edited layer, which adds
b again, gives W₀ g + 2b (`technique` doubled-bias); and it reads an empty prompt at T5's last padding position (`rows`
last-wrapped). `2025` is the same with both put right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, final

from benchmark.interface import Edit, Family, Method, Request, Target
from methods._fields import number, one_of

if TYPE_CHECKING:
    from benchmark.backbones.base import Backbone

Rows = Literal["aligned", "last", "last-wrapped"]
Guide = Literal["unconditional", "anchor", "by-kind"]
Preserve = Literal["request", "none"]
Technique = Literal["replace", "tensor", "doubled-bias"]
Solver = Literal["fast", "reference"]

_2025: Mapping[str, Any] = MappingProxyType(
    {"rows": "last", "preserve_scale": 1.0, "preserve_empty": False, "guide": "by-kind", "templated_guides": True}
)

_STYLE = ("painting by {}", "art by {}", "artwork by {}", "picture by {}", "style of {}")
_OBJECT = ("image of {}", "photo of {}", "portrait of {}", "picture of {}", "painting of {}")


class Pair(NamedTuple):
    """A prompt to erase, and the prompt whose outputs it shall get."""

    erased: str
    guide: str


@final
@dataclass(frozen=True, kw_only=True)
class UCE(Method):
    """Defaults are those of the paper's code (September 2023); `2025` is the authors' rewrite for diffusers, and `flux`
    what that does on FLUX."""

    name: ClassVar[str] = "uce"
    version: ClassVar[int] = 2  # products in another order: other bits
    role: ClassVar[Literal["baseline", "erasure", "control"]] = "erasure"
    paper: ClassVar[str] = "arXiv:2308.14761"
    families: ClassVar[frozenset[Family]] = frozenset({"unet-epsilon", "transformer-flow"})
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "2023": {},
            "2025": _2025,
            "flux": {**_2025, "rows": "last-wrapped", "technique": "doubled-bias"},
        }
    )

    rows: Rows = "aligned"
    """`aligned`: the last content token, the end token and all padding of an erased prompt, each to the guide's; all
    rows of a kept prompt. `last`: the last content token alone (the empty prompt's first), of kept prompts too.
    `last-wrapped`: the same, but of an empty prompt without BOS (T5's) the last position of all."""
    ridge: float = 0.5
    """λ: pulls the solve towards no edit."""
    erase_scale: float = 1.0
    preserve_scale: float | None = None
    """s_p; None is max(0.1, 1 / kept prompts), the empty one included."""
    preserve: Preserve = "request"
    """Whether the request's `keep` is preserved."""
    preserve_empty: bool = True
    """Preserve the empty prompt always."""
    guide: Guide = "unconditional"
    """`by-kind`: "art" for styles, the empty prompt for all else."""
    technique: Technique = "replace"
    """`tensor`: take the erased direction itself out of the guide's outputs. `doubled-bias`: targets hold the layer's
    bias, which the layer then adds again, as released for FLUX."""
    with_templates: bool = False
    """Erase five phrases a name as well, of styles ("painting by …") or else of objects ("image of …")."""
    templated_guides: bool = False
    """With templates: put the guide into the same phrase, instead of the guide itself."""
    solver: Solver = "fast"
    """`fast`: one float64 factorisation for all projections. `reference`: one float32 inverse for each, as released."""

    def __post_init__(self) -> None:
        for field, literal in (
            ("rows", Rows),
            ("guide", Guide),
            ("preserve", Preserve),
            ("technique", Technique),
            ("solver", Solver),
        ):
            one_of(self, field, literal)
        number(self, "ridge", above=True)  # 0 leaves the system singular
        number(self, "erase_scale")
        if self.preserve_scale is not None:
            number(self, "preserve_scale")

    def refusal(self, family: Family) -> str | None:
        if self.technique == "doubled-bias" and family != "transformer-flow":
            return "uce's doubled bias works on ['transformer-flow']: keys and values of a U-Net have no bias"
        return None

    def edit(self, backbone: Backbone, request: Request) -> Edit:
        from methods._closed_form import solve_all

        if not request.erase:
            return Edit()
        pairs, kept = self.pairs(request), self.kept(request)
        scale = self.preserve_scale if self.preserve_scale is not None else max(0.1, 1 / max(1, len(kept)))
        weights, tokens = solve_all(
            backbone,
            pairs,
            kept,
            rows=self.rows,
            ridge=self.ridge,
            erase_scale=self.erase_scale,
            keep_scale=scale,
            technique=self.technique,
            solver=self.solver,
        )
        named = [
            {"erased": p.erased, "guide": p.guide, "token": a, "guide_token": b}
            for p, (a, b) in zip(pairs, tokens, strict=True)
        ]
        return Edit(weights=weights, notes={"pairs": named, "kept_prompts": len(kept), "preserve_scale": scale})

    def pairs(self, request: Request) -> list[Pair]:
        """What is erased, and towards what, in the request's order."""
        return [p for t in request.erase for p in self._pairs(t)]

    def kept(self, request: Request) -> list[str]:
        """Preserved prompts, without repeats and without the erased names (any case)."""
        erased = {t.name.casefold() for t in request.erase}
        names = [k for k in request.keep if k.casefold() not in erased] if self.preserve == "request" else []
        return list(dict.fromkeys([""] * self.preserve_empty + names))

    def _pairs(self, target: Target) -> list[Pair]:
        guide = self._guide(target)
        pairs = [Pair(target.name, guide)]
        if self.with_templates:
            templates = _STYLE if target.kind == "style" else _OBJECT
            pairs += [
                Pair(t.format(target.name), t.format(guide) if self.templated_guides else guide) for t in templates
            ]
        return pairs

    def _guide(self, target: Target) -> str:
        if self.guide == "anchor":
            return target.anchor
        return "art" if self.guide == "by-kind" and target.kind == "style" else ""
