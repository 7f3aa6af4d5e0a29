"""Erased Stable Diffusion: train the model to predict, for the concept, what guidance away from it would. ICCV 2023.

With ε* the frozen model, ε_θ the student, c the concept and ∅ the empty prompt (paper, eq. 6):

    ‖ε_θ(x_t, c, t) − (ε*(x_t, ∅, t) − η [ε*(x_t, c, t) − ε*(x_t, ∅, t)])‖²,  the mean over all elements

where x_t lies on a guided trajectory towards c. Flow models have velocities in ε's place. Gandikota et al.,
arXiv:2303.07345.

Flow transformers have no released code; everything here about them is a harness variant. All variants run there, on
velocities: `x` is then the text side of joint attention, the part that comes nearest to cross-attention. `flux` is the
variant for FLUX.1: low-rank changes of every attention projection of both kinds of blocks, walks without a second,
unconditional branch (dev is given its guidance as a number, schnell is distilled without), and rank, rate, steps and
iterations of the ESD term in EraseAnything's released code (arXiv:2412.20413), the one public setting there is.

Departures from the code released in 2025: float32 master weights (bfloat16 there, where many updates of its learning
rate round away), the model's own image size (1024 there, also for 512-pixel models), DDIM steps (PNDM there).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from benchmark.errors import BadInput
from benchmark.interface import Edit, Family, Method, Request, later
from methods._fields import HARNESS_VARIANT, number, one_of

if TYPE_CHECKING:
    from benchmark.backbones.base import Backbone

Train = Literal["by-kind", "x", "x-strict", "u", "u-2025", "self", "all", "attention"]
LatentsFrom = Literal["student", "frozen"]
TimestepRule = Literal["aligned", "alt", "compvis"]

_NAMED = frozenset({"style", "identity", "fine-grained"})  # kinds that a name calls up: the paper's ESD-x
_2025: Mapping[str, Any] = MappingProxyType(
    {"train": "x", "iterations": 200, "lr": 5e-5, "eta": 1.0, "latents_from": "frozen"}  # its η = 2 is the paper's 1
)


@final
@dataclass(frozen=True, kw_only=True)
class ESD(Method):
    """Defaults are the paper's, with x_t and t in step; `compvis` has the first released code's mismatch of the two.

    Several concepts are trained jointly: each sample draws one of them, uniformly.
    """

    name: ClassVar[str] = "esd"
    version: ClassVar[int] = 1
    role: ClassVar[Literal["baseline", "erasure", "control"]] = "erasure"
    paper: ClassVar[str] = "arXiv:2303.07345"
    families: ClassVar[frozenset[Family]] = frozenset({"unet-epsilon", "transformer-flow"})
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "paper": {},
            "x": {"train": "x"},
            "x-strict": {"train": "x-strict"},
            "u": {"train": "u"},
            "compvis": {"timestep_rule": "compvis"},
            "2025": _2025,
            "2025-x-strict": {**_2025, "train": "x-strict"},
            "2025-u": {**_2025, "train": "u-2025"},
            "flux": {
                "train": "attention",
                "rank": 8,
                "iterations": 200,
                "lr": 1e-3,
                "steps": 28,
                "start_guidance": 1.0,
                "latents_from": "frozen",
            },
        }
    )

    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"iterations": 3, "steps": 4, "lr": 1e-3})

    train: Train = "by-kind"
    """What is trained. `x`: cross-attention; `x-strict`: its keys and values alone; `u`: all but cross-attention, the
    time embedding and the output layers; `u-2025`: linear and convolution layers outside cross-attention, no norms.
    `self`: self-attention; `all`: every linear and convolution layer; `attention`: all linear layers of attention.
    `by-kind`: x for styles, identities and fine-grained names, u for all else, as in the paper."""
    iterations: int = 1000
    per_concept: bool = False
    """Whether `iterations` is for each concept of a joint request, or for all together (harness default: the paper's
    requests have one concept)."""
    lr: float = 1e-5
    eta: float = 1.0
    """η of the formula above. Released code of 2025 writes the same target with η + 1."""
    start_guidance: float = 3.0
    """Guidance on the way to x_t."""
    steps: int = 50
    """Steps of the whole trajectory; x_t is met after a uniformly drawn number of them."""
    batch: int = 1
    """Samples an iteration; more than the paper's 1 is this harness's extension."""
    latents_from: LatentsFrom = "student"
    """Who walks to x_t. The frozen model's walks do not depend on the training and are made in batches beforehand."""
    timestep_rule: TimestepRule = "aligned"
    """`aligned`: t is x_t's own time. `alt`: about 19/1000 above it, and never pure noise, as in the authors' second
    script for diffusers. `compvis`: x_t is 40 to 60/1000 cleaner than t, as in the first released code."""
    erase_from: str = ""
    """A prompt that shall lose the concept and stay itself, such as "cowboy" that loses "cowboy hat"; the walks lead
    to it, and the target is its own prediction − η [ε*(c) − ε*(∅)]. "": the concept itself is erased."""
    template: str = "{}"
    """The prompt for a name; the paper's is the plain name."""
    rank: int = later(0)
    """Of low-rank changes, which are trained in place of the linear weights of `train`; 0 trains these themselves, as
    in the paper. Harness variant."""

    def __post_init__(self) -> None:
        for field, literal in (("train", Train), ("latents_from", LatentsFrom), ("timestep_rule", TimestepRule)):
            one_of(self, field, literal)
        for field in ("iterations", "batch"):
            number(self, field, low=1, whole=True)
        number(self, "steps", low=2, whole=True)
        number(self, "rank", whole=True)
        number(self, "lr", above=True)
        number(self, "eta")
        number(self, "start_guidance")
        if "{}" not in self.template:
            raise BadInput(f"esd: template must hold {{}}, where the concept's name goes, got {self.template!r}")

    def edit(self, backbone: Backbone, request: Request) -> Edit:
        from methods._distill import distill

        if not request.erase:
            return Edit()
        train = self.trained(request)
        names = [self.template.replace("{}", t.name) for t in request.erase]
        prompts, removed = ([self.erase_from] * len(names), names) if self.erase_from else (names, None)
        settings = replace(self, iterations=self.iterations * len(names)) if self.per_concept else self
        made, losses = distill(backbone, prompts, settings, train, request.seed, removed)
        tail = max(1, len(losses) // 10)
        first, last = sum(losses[:tail]) / tail, sum(losses[-tail:]) / tail
        notes: dict[str, Any] = {"train": train, "prompts": prompts, "loss_first": first, "loss_last": last}
        if backbone.family == "transformer-flow" or self.rank:
            notes |= HARNESS_VARIANT
        return Edit(weights=made.weights, deltas=made.deltas, notes=notes)

    def trained(self, request: Request) -> str:
        """The set of layers that `by-kind` stands for; mixed requests take u."""
        if self.train != "by-kind":
            return self.train
        return "x" if all(t.kind in _NAMED for t in request.erase) else "u"
