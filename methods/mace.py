"""MACE: refine the words around a concept, unlearn each concept in a LoRA of its own, fuse all. Lu et al., CVPR 2024.

Three stages, all on the keys and values of cross-attention (arXiv:2403.06135, section 3):

1. Closed-form refinement: where a prompt with the concept and the same prompt with its anchor have a token in common,
   the first shall be projected like the second, so that no other word, end token or padding tells of the concept.
2. For every concept a LoRA on the refined model that brings down the attention to the concept's tokens, the end token
   and the padding, in the concept's own images and at the times where it takes shape.
3. Closed-form fusion: one weight that gives on every concept's prompts what that concept's own LoRA gives.

Kept in both solves: a prior (sums over general prompts) and a domain (the same over prompts of kept concepts).

Departures from the released code: float64 solves (float32 inverses there); templates in our own words; images of the
concept are seeded, walked by DDIM and used as latents (unseeded, DPM-Solver++, through JPEG files and normalised by
ImageNet's statistics there); hyphens in names stay. The domain's captions are unpublished: here the request's kept
names in the same templates. The prior is summed over the request's general prompts, and weighted as COCO's captions are
there.

On flow transformers keys and values read text that has mixed with the image, at a time: they are no closed form's
matter, and `mace` refuses. `flux` is this harness's variant for them: all three stages on the projection of the text
tokens, the one map that reads text alone (`where`). Its LoRA brings down what the image's rows of joint attention give
to the concept's tokens, in all blocks. The vector of pooled text, which is CLIP's end token, is refined like an end
token, by the first stage's solve on its own projection. Times are the flow's, of the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, final

from benchmark.errors import BadInput
from benchmark.interface import Edit, Family, Method, Request, Target, later
from methods import _templates
from methods._fields import HARNESS_VARIANT, number, one_of
from methods._files import file_hash

if TYPE_CHECKING:
    from benchmark.backbones.base import Backbone

Setting = Literal["by-kind", "object", "identity", "explicit", "style"]
Mask = Literal["none", "ones", "segmenter"]
Times = Literal["by-setting", "importance", "uniform"]
Fusion = Literal["closed-form", "mean"]
Loss = Literal["released", "paper"]
Where = Literal["cross-attention", "text"]

_IMAGE = {"style": "a photo in the style of {}", "*": "a photo of the {}"}  # as released


class Row(NamedTuple):
    """What a released configuration sets."""

    lr: float
    iterations: int
    train_scale: float
    fuse_scale: float
    domain_weight: float
    ridge: float
    times: str


# released configurations: automobile (bird has ridge 10, ship 1000), celebrities, nudity, artists
_ROWS: Mapping[str, Row] = MappingProxyType(
    {
        "object": Row(1e-5, 50, 0.0, 0.0, 0.0, 1e2, "importance"),
        "identity": Row(1e-4, 50, 1e-4, 1e-4, 8e3, 0.0, "importance"),
        "explicit": Row(1e-5, 120, 7e-7, 7e-7, 0.0, 0.0, "uniform"),
        "style": Row(1e-4, 50, 1e-4, 1e-4, 8e4, 0.0, "importance"),
    }
)
_CROWDS = ((1, 8e3), (5, 5e4), (10, 8e4))  # domain weight of up to so many celebrities; of more, 2e5


@final
@dataclass(frozen=True, kw_only=True)
class MACE(Method):
    """Defaults are the released configuration of the request's kind; any number of concepts is erased jointly."""

    name: ClassVar[str] = "mace"
    version: ClassVar[int] = 1
    role: ClassVar[Literal["baseline", "erasure", "control"]] = "erasure"
    paper: ClassVar[str] = "arXiv:2403.06135"
    families: ClassVar[frozenset[Family]] = frozenset({"unet-epsilon", "transformer-flow"})
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "object": {"setting": "object"},
            "celebrity": {"setting": "identity"},
            "explicit": {"setting": "explicit"},
            "style": {"setting": "style"},
            # rows of the paper's ablation, its table 4
            "cfr-only": {"iterations": 0},
            "mean-uniform": {"fusion": "mean", "times": "uniform"},
            "uniform": {"times": "uniform"},
            "flux": {"where": "text", "image_guidance": 1.0, "image_steps": 28},
        }
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"iterations": 3, "images": 2, "image_steps": 3})

    setting: Setting = "by-kind"
    """The released configuration whose values stand in for None. `by-kind`: that of the concepts' kind; object's for
    fine-grained names and mixed requests."""
    anchor: str | None = None
    """What all concepts become; None is each concept's own anchor."""
    templates: str | tuple[str, ...] = "paper"
    """`paper`: thirty, as many as released; `short`: what the embedded model reads; or texts with {} for the name."""
    rank: int = 1
    iterations: int | None = None
    """Steps of training for each LoRA; 0 is refinement alone, without LoRA and fusion."""
    lr: float | None = None
    loss: Loss = "released"
    """`released`: the sum over layers of the norm of the attention; `paper`: of its square (eq. 3)."""
    mask: Mask = "ones"
    """Pixels where attention is brought down. `segmenter`: where Grounding DINO and SAM find the concept, or all where
    they find nothing, as released for objects and people; both must be in the hub cache. `ones` and `none`: all pixels,
    as released for styles; harness default, for it needs no other model."""
    times: Times = "by-setting"
    """`importance`: drawn from σ(0.05 (t − times_from)) − σ(0.05 (t − times_to)), up to its sum."""
    times_from: int = 200
    times_to: int = 400
    images: int = 8
    """Images that the unedited model makes of each concept, to train on."""
    image_steps: int = 30
    image_guidance: float = 7.5
    image_template: str = ""
    """Their prompt. "": as released ("a photo of the {}"), or the first of the templates if these are not `paper`."""
    ridge: float | None = None
    """λ of both solves: pulls towards the weights before."""
    train_scale: float | None = None
    """Scale of what is kept in the refinement; see `squared_preserve`."""
    fuse_scale: float | None = None
    """Scale of what is kept in the fusion."""
    squared_preserve: bool = True
    """As released, the refinement multiplies by `train_scale` twice."""
    domain_weight: float | None = None
    """Weight of the domain against the prior."""
    prior_captions: int = 616_767
    """The prior weighs as if it summed over so many prompts (COCO 2014's captions, the released one); 0: as many as it
    has. Harness default: the released scales are made for that sum."""
    prior_cache: str | None = None
    """A file of `python -m methods._mace_cache` in place of the request's general prompts (without any: of "")."""
    domain_cache: str | None = None
    """The same in place of the request's kept names in the templates."""
    prior_sha256: str = later("")
    """Of that file's content. Found when left out, so that another content is another edit; checked when given."""
    domain_sha256: str = later("")
    """The same of `domain_cache`."""
    fusion: Fusion = "closed-form"
    """`mean`: the mean of the LoRAs on the refined weights, the paper's naive fusion."""
    where: Where = later("cross-attention")
    """What is edited: keys and values of a U-Net's cross-attention; or `text`, a flow transformer's projections of text
    tokens and of the pooled vector. Harness variant."""

    def __post_init__(self) -> None:
        literals = {"setting": Setting, "mask": Mask, "times": Times, "fusion": Fusion, "loss": Loss, "where": Where}
        for field, literal in literals.items():
            one_of(self, field, literal)
        for field in ("rank", "images", "image_steps"):
            number(self, field, low=1, whole=True)
        for field in ("times_from", "times_to", "prior_captions"):
            number(self, field, whole=True)
        number(self, "image_guidance")
        self._check_optional()
        for cache in ("prior", "domain"):
            self._settle_hash(cache)
        _templates.check(self.name, self.templates)
        if self.image_template:
            _templates.one_place(self.name, "image_template", self.image_template)
        if not self.times_from < self.times_to <= 1000:
            raise BadInput(
                f"mace: times_from must be below times_to, and that at most 1000, got {self.times_from} "
                f"and {self.times_to}"
            )

    def _check_optional(self) -> None:
        if self.iterations is not None:
            number(self, "iterations", whole=True)
        if self.lr is not None:
            number(self, "lr", above=True)
        for field in ("ridge", "train_scale", "fuse_scale", "domain_weight"):
            if getattr(self, field) is not None:
                number(self, field)

    def _settle_hash(self, cache: str) -> None:
        path, said = getattr(self, f"{cache}_cache"), getattr(self, f"{cache}_sha256")
        if path is None or not Path(path).is_file():
            return  # what is not there is told when it is needed
        if said not in ("", found := file_hash(Path(path))):
            raise BadInput(f"mace: {path} should have sha256 {said}, but has {found}; make or get it again")
        object.__setattr__(self, f"{cache}_sha256", found)

    def refusal(self, family: Family) -> str | None:
        if self.where == "cross-attention" and family == "transformer-flow":
            return (
                "mace works on ['unet-epsilon']: a flow transformer's keys and values read no text alone, and "
                "mace@flux is this harness's variant for it"
            )
        if self.where == "text" and family == "unet-epsilon":
            return "mace@flux works on ['transformer-flow']: on a U-Net the method is mace itself"
        return None

    def edit(self, backbone: Backbone, request: Request) -> Edit:
        """BadInput for a concept without an anchor; Missing for a cache or a segmenter that is not there."""
        from methods._mace import erase

        if not request.erase:
            return Edit()
        pairs = [(target, self.anchor_of(target)) for target in request.erase]
        if self.where == "text" and (self.prior_cache or self.domain_cache):
            raise BadInput(
                "mace@flux: a file of sums holds those of tokens alone, and the pooled vector's are needed too"
            )
        weights, notes = erase(backbone, request, pairs, self, self.settled(request))
        if self.where == "text":
            notes |= HARNESS_VARIANT
        return Edit(weights=weights, notes=notes)

    def anchor_of(self, target: Target) -> str:
        """What the concept becomes."""
        anchor = target.anchor if self.anchor is None else self.anchor
        if not anchor.strip():
            raise BadInput(f"mace maps {target.name!r} to an anchor, and it has none; set the field anchor")
        return anchor

    def settled(self, request: Request) -> Row:
        """All values that depend on the kind and number of concepts."""
        kind = self.kind(request)
        row = _ROWS[kind]
        if kind == "identity":
            crowd = next((w for most, w in _CROWDS if len(request.erase) <= most), 2e5)
            row = row._replace(domain_weight=crowd)
        given = {f: getattr(self, f) for f in row._fields if f != "times" and getattr(self, f) is not None}
        return row._replace(**given, times=row.times if self.times == "by-setting" else self.times)

    def kind(self, request: Request) -> str:
        """The released configuration's name that `setting` stands for."""
        if self.setting != "by-kind":
            return self.setting
        kinds = {t.kind for t in request.erase}
        return kind if len(kinds) == 1 and (kind := kinds.pop()) in _ROWS else "object"

    def prompts(self, target: Target, name: str) -> list[str]:
        """The templates of the target's kind with `name` in them."""
        return [_templates.filled(t, name) for t in _templates.templates(self.templates, target.kind)]

    def image_prompt(self, target: Target) -> str:
        """The prompt of the images to train on."""
        released = _IMAGE.get(target.kind, _IMAGE["*"])
        first = released if self.templates == "paper" else _templates.templates(self.templates, target.kind)[0]
        return _templates.filled(self.image_template or first, target.name)

    def kept(self, request: Request) -> list[str]:
        """Kept names in the templates of the erased kinds: without repeats, and without erased names (any case)."""
        erased = {t.name.casefold() for t in request.erase}
        names = [k for k in request.keep if k.casefold() not in erased]
        return list(dict.fromkeys(p for t in request.erase for k in names for p in self.prompts(t, k)))
