"""Concept Pinpoint Eraser: attention gates on the text projections, trained on text alone. Lee et al., ICLR 2025.

Beside each key and value projection W of cross-attention stands a low-rank residual on gated text, one module a concept
(`benchmark.gates` has the forward computation). With e the concept's prompt, n the same prompt of a neutral word, G the
projection with its residual, ω its Lipschitz weight, and means over all elements and layers, a module minimises

    ω ‖W n + η (W n − W e) − G e‖²  +  the same at e + δ_j  +  λ ω ‖W a − G a‖²

over anchors a: the empty prompt, and mixtures of other prompts. The adversarial δ_j minimise ω ‖G (e + δ_j) − W e‖²:
what would bring the concept back. Both are trained in turn, in stages. No image, latent or denoiser takes part.
arXiv:2506.22806; the values by setting are those of the released scripts.

Departures from the release: its optimizer keeps 8-bit states, this one float32; the last stage's adversaries, which it
trains and never uses, are not trained; templates are this harness's; anchors are the request's: of the names to keep
the nearest (as released) in all templates, its general prompts as they stand, or words of this harness where it has
none; adversaries have a constant rate (harness default: how the release changes theirs is not known to us).

In flow transformers text mixes with the image from the first block on, so that residuals on keys and values are no
matter of text alone, and `cpe` refuses. `flux` is this harness's variant for them: one residual on the projection of
the text tokens, with the same losses and σ(W) as its Lipschitz weight; the pooled vector, which has no tokens, is left
alone. It keeps fewer anchors, for on FLUX.1 an embedded prompt takes 8 MB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from benchmark.interface import Edit, Family, Kind, Method, Request, Target, later
from methods import _templates
from methods._fields import HARNESS_VARIANT, number, one_of

if TYPE_CHECKING:
    from benchmark.backbones.base import Backbone

Setting = Literal["by-kind", "celebrity", "artist", "explicit"]
Neutral = Literal["paper", "anchor"]
Where = Literal["keys-values", "context"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the release sets differently for each sort of concept; see the fields of `CPE`."""

    neutral: str
    eta: float
    keep_weight: float
    width: int
    rank: int
    stages: int
    iterations: int
    first: int
    warmup: int
    adversaries: int
    anchors: int


RELEASED: Mapping[str, Settings] = MappingProxyType(
    {
        "celebrity": Settings(
            neutral="a person",
            eta=0.3,
            keep_weight=1e5,
            width=16,
            rank=1,
            stages=5,
            iterations=450,
            first=4,
            warmup=5,
            adversaries=16,
            anchors=32,
        ),
        "artist": Settings(
            neutral="real photograph",
            eta=0.5,
            keep_weight=1e4,
            width=16,
            rank=1,
            stages=10,
            iterations=450,
            first=4,
            warmup=5,
            adversaries=16,
            anchors=16,
        ),
        "explicit": Settings(
            neutral="a person in modest clothing",
            eta=3.0,
            keep_weight=1e4,
            width=64,
            rank=4,
            stages=20,
            iterations=1200,
            first=2,
            warmup=10,
            adversaries=32,
            anchors=16,
        ),
    }
)
_OF_KIND: Mapping[Kind, str] = MappingProxyType({"identity": "celebrity", "style": "artist", "explicit": "explicit"})

_WORDS = tuple(
    """
    person man woman child animal bird fish insect tree flower leaf mountain river sea sky cloud sun house street city
    bridge road car boat train chair table book bottle bread fruit clothes music game sport night morning winter summer
    """.split()
)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One concept's training, in prompts."""

    name: str
    pairs: tuple[tuple[str, str], ...]
    """The concept's prompt and the neutral one, by template."""
    names: tuple[str, ...]
    """What the nearest anchors are chosen from."""
    templates: tuple[str, ...]
    """For the names; the bare name among them."""
    prompts: tuple[str, ...]
    """Anchors as they stand."""
    settings: Settings


@final
@dataclass(frozen=True, kw_only=True)
class CPE(Method):
    """Several concepts have a module each, trained apart and stacked: a token gets the residual of its highest gate.

    Where a field is None, the released value for the setting holds: celebrity / artist / explicit.
    """

    name: ClassVar[str] = "cpe"
    version: ClassVar[int] = 1
    role: ClassVar[Literal["baseline", "erasure", "control"]] = "erasure"
    paper: ClassVar[str] = "arXiv:2506.22806"
    families: ClassVar[frozenset[Family]] = frozenset({"unet-epsilon", "transformer-flow"})
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "celebrity": {"setting": "celebrity"},
            "artist": {"setting": "artist"},
            "explicit": {"setting": "explicit"},
            "text": {"tied_qk": False},
            "flux": {"where": "context", "templates": "short", "nearest": 10},
        }
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"stages": 2, "iterations": 4, "adversaries": 2, "anchors": 2, "templates": "short", "first_lr": 1e-2}
    )

    setting: Setting = "by-kind"
    """`by-kind`: celebrity for identities, artist for styles, explicit for explicit content; objects and fine-grained
    names, which the paper does not erase, as celebrities (harness default)."""
    neutral: Neutral = "paper"
    """What stands in the concept's place. `paper`: "a person" / "real photograph" / "a person in modest clothing", and
    by kind the anchor of objects and fine-grained names (harness default). `anchor`: each target's own. An empty anchor
    is the empty prompt."""
    templates: str | tuple[str, ...] = "paper"
    """Sentences for the concept, its neutral word and the names to keep: a set of `methods._templates` (harness
    default), or a list."""
    eta: float | None = None
    """η: how far beyond the neutral output to go, away from the concept. 0.3 / 0.5 / 3."""
    keep_weight: float | None = None
    """λ of the anchors. 1e5 / 1e4 / 1e4; the release's configuration file for explicit content says 1e5."""
    width: int | None = None
    """s: columns of W_q and W_k. 16 / 16 / 64."""
    rank: int | None = None
    """r of the residuals, which are divided by it. 1 / 1 / 4."""
    stages: int | None = None
    """Rounds of module and adversaries. 5 / 10 / 20; with 1 there are no adversaries."""
    iterations: int | None = None
    """Steps of a stage, and of its adversaries. 450 / 450 / 1200."""
    first: int | None = None
    """The first stage has so many times the steps. 4 / 4 / 2."""
    warmup: int | None = None
    """Steps of a stage over which the rate rises from 0. 5 / 5 / 10."""
    adversaries: int | None = None
    """How many δ_j. 16 / 16 / 32."""
    anchors: int | None = None
    """Anchors a step, the empty prompt apart. 32 / 16 / 16."""
    lr: float = 3e-5
    """Highest rate of a stage after the first; each follows a cosine, the first stage's twice (hard restart)."""
    first_lr: float = 3e-4
    """Highest rate of the first stage."""
    adversarial_lr: float = 0.01
    adversarial_weight: float = 1.0
    """Of the erasing loss at the adversaries; 0 leaves them out."""
    noise: float = 1e-3
    """Standard deviation of the noise in each element of an anchor, as a share of the embedding's norm."""
    nearest: int = 50
    """Of the names to keep, so many become anchors: those nearest the concept by cosine of the whole embedding."""
    tied_qk: bool = True
    """W_k = W_q, as in the released code, whose W_k is never used; False as in the text of the paper."""
    where: Where = later("keys-values")
    """Where residuals stand: keys and values of a U-Net's cross-attention; or `context`, a flow transformer's
    projection of text tokens, this harness's variant."""

    def __post_init__(self) -> None:
        one_of(self, "setting", Setting)
        one_of(self, "neutral", Neutral)
        one_of(self, "where", Where)
        _templates.check(self.name, self.templates)
        for field in ("width", "rank", "stages", "first", "adversaries", "anchors"):
            if getattr(self, field) is not None:
                number(self, field, low=1, whole=True)
        if self.iterations is not None:
            number(self, "iterations", low=2, whole=True)  # the first step of a warm-up has rate 0
        if self.warmup is not None:
            number(self, "warmup", whole=True)
        for field in ("eta", "keep_weight", "adversarial_weight", "noise"):
            if getattr(self, field) is not None:
                number(self, field)
        for field in ("lr", "first_lr", "adversarial_lr"):
            number(self, field, above=True)
        number(self, "nearest", whole=True)

    def refusal(self, family: Family) -> str | None:
        if self.where == "keys-values" and family == "transformer-flow":
            return (
                "cpe works on ['unet-epsilon']: a flow transformer's keys and values read no text alone, and "
                "cpe@flux is this harness's variant for it"
            )
        if self.where == "context" and family == "unet-epsilon":
            return "cpe@flux works on ['transformer-flow']: on a U-Net the method is cpe itself"
        return None

    def edit(self, backbone: Backbone, request: Request) -> Edit:
        from methods._cpe import train

        if not request.erase:
            return Edit()
        gates, notes = train(backbone, [self.task(t, request) for t in request.erase], self, request.seed)
        reading = HARNESS_VARIANT if self.where == "context" else {}
        return Edit(gates=gates, notes={"concepts": notes, **reading})

    def task(self, target: Target, request: Request) -> Task:
        """A target's prompts and settings; anchors never hold the name of an erased concept, in any case.

        Nor as part of a longer word: as released.
        """
        settings = self.settings(target)
        templates = _templates.templates(self.templates, target.kind)
        erased = [t.name.casefold() for t in request.erase]

        def free(texts: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(x for x in dict.fromkeys(texts) if not any(name in x.casefold() for name in erased))

        everything = ("{}", *templates)
        words = request.general or tuple(_templates.filled(t, word) for word in _WORDS for t in everything)
        return Task(
            name=target.name,
            pairs=tuple((_templates.filled(t, target.name), _filled(t, settings.neutral)) for t in templates),
            names=free(request.keep),
            templates=everything,
            prompts=free(words),
            settings=settings,
        )

    def settings(self, target: Target) -> Settings:
        """The released values for the target, with the fields that are given in their place."""
        by_kind = self.setting == "by-kind"
        own = RELEASED[_OF_KIND.get(target.kind, "celebrity") if by_kind else self.setting]
        unknown = by_kind and target.kind not in _OF_KIND
        neutral = target.anchor if self.neutral == "anchor" or unknown else own.neutral
        names = [f for f in Settings.__dataclass_fields__ if f != "neutral"]
        given = {f: getattr(self, f) for f in names if getattr(self, f) is not None}
        return replace(own, neutral=neutral, **given)


def _filled(template: str, neutral: str) -> str:
    # an anchor that is empty stands for the empty prompt, not for a template with a hole
    return _templates.filled(template, neutral) if neutral else ""
