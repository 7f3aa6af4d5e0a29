"""Fine-grained Attenuation: train low-rank modules so that a concept moves to its neighbours, which stay. CVPR 2025.

With ε_θ the frozen model, ε_M the same with its modules, c the concept, A its adjacent concepts, ∅ the empty prompt:

    λ_er max(0, mean_{a∈A} ‖ε_M(c) − ε_θ(a)‖² − ‖ε_M(c) − ε_θ(c)‖² + δ)     erasing
    + λ_guid ‖ε_M(c) − ε_θ(∅)‖²                                              guidance
    + λ_adj mean_{a∈A} ‖ε_M(a) − ε_θ(a)‖²                                    adjacency

A is the Concept Neighbourhood, the K = 5 concepts whose images look most alike (`erasure-bench neighbours`). Flow
models have velocities in ε's place. Fine-grained Attenuation, arXiv:2503.19783.

The losses and K are known to us through summaries of the paper, and we know of no public code. All else is a harness
default: λ, δ, rank and place of the modules, iterations, learning rate, prompts, and the choice of x_t: the noised
image of the concept that the trained prompt names, at one (t, noise) for all terms of a step. Squared norms are means
over elements, so that δ does not depend on the size of the images.

On flow transformers all of it is a harness variant: at one (x_t, t), distances of velocities and of the noise that they
imply differ by a factor of t alone, and modules stand on all projections of joint attention. `flux` is the variant for
FLUX.1: images of the concepts come without a second, unconditional branch, in its own 28 steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from benchmark.errors import BadInput
from benchmark.interface import Edit, Family, Method, Request, Target
from methods._fields import HARNESS_VARIANT, number

if TYPE_CHECKING:
    from benchmark.backbones.base import Backbone


@final
@dataclass(frozen=True, kw_only=True)
class FADE(Method):
    """One concept at a time, as in the paper. `Target.synonyms` and `Target.anchor` are not read."""

    name: ClassVar[str] = "fade_fg"
    version: ClassVar[int] = 1
    role: ClassVar[Literal["baseline", "erasure", "control"]] = "erasure"
    paper: ClassVar[str] = "arXiv:2503.19783"
    families: ClassVar[frozenset[Family]] = frozenset({"unet-epsilon", "transformer-flow"})
    max_concepts: ClassVar[int | None] = 1
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "no-erasing": {"lambda_erasing": 0.0},
            "no-guidance": {"lambda_guidance": 0.0},
            "no-adjacency": {"lambda_adjacency": 0.0},
            "flux": {"guidance": 1.0, "steps": 28},
        }
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"iterations": 3, "steps": 3, "images": 2, "lr": 1e-3})

    lambda_erasing: float = 1.0
    """λ_er; harness default. 0 leaves the term out, as with the two others."""
    lambda_guidance: float = 1.0
    """λ_guid; harness default."""
    lambda_adjacency: float = 1.0
    """λ_adj; harness default."""
    margin: float = 0.1
    """δ, in units of the mean squared prediction; harness default."""
    neighbours: int = 5
    """K, the most adjacent concepts used; the paper's."""
    rank: int = 4
    """Of the modules; harness default."""
    scale: float = 1.0
    """Of the modules, before up · down (α/rank); harness default."""
    self_attention: bool = False
    """Modules in a U-Net's self-attention too, beside queries, keys, values and outputs of cross-attention. In a flow
    transformer image and text attend jointly: there all of it has modules. Harness default."""
    iterations: int = 500
    """Harness default."""
    lr: float = 1e-4
    """AdamW's, with its usual decay of 0.01; harness default."""
    batch: int = 1
    """Draws of (image, t, noise) an iteration; each trains the concept and all adjacent ones. Harness default."""
    images: int = 8
    """Images of each concept, made by the unedited model, that x_t is a noised one of; harness default."""
    steps: int = 50
    """Sampler steps of these images; harness default."""
    guidance: float = 7.5
    """Guidance of these images; harness default."""
    template: str = "a photo of a {}"
    """The prompt for a name; harness default."""

    def __post_init__(self) -> None:
        for field in ("lambda_erasing", "lambda_guidance", "lambda_adjacency"):
            number(self, field)
        for field in ("iterations", "batch", "images", "steps", "rank", "neighbours"):
            number(self, field, low=1, whole=True)
        for field in ("lr", "scale"):
            number(self, field, above=True)
        for field in ("margin", "guidance"):
            number(self, field)
        if not self.lambda_erasing and not self.lambda_guidance:
            raise BadInput(
                "fade_fg: expected lambda_erasing or lambda_guidance above 0: adjacency alone erases nothing"
            )
        if "{}" not in self.template:
            raise BadInput(f"fade_fg: template must hold {{}}, where the concept's name goes, got {self.template!r}")

    def edit(self, backbone: Backbone, request: Request) -> Edit:
        from methods._fade_fg import train

        if not request.erase:
            return Edit()
        [target] = request.erase
        adjacent, source = self.adjacent(target, request)
        prompts = [self.template.replace("{}", name) for name in (target.name, *adjacent)]
        deltas, notes = train(backbone, prompts, self, request.seed)
        reading = HARNESS_VARIANT if backbone.family == "transformer-flow" else {}
        return Edit(deltas=deltas, notes={"adjacent": list(adjacent), "adjacent_from": source, **notes, **reading})

    def adjacent(self, target: Target, request: Request) -> tuple[tuple[str, ...], str]:
        """A and where it is from: `neighbourhood`, or the first of `keep` where the data set has no neighbourhood;
        BadInput if there is neither and a term needs it."""
        if not self.lambda_erasing and not self.lambda_adjacency:
            return (), "none needed"
        if target.adjacent:
            return target.adjacent[: self.neighbours], "neighbourhood"
        kept = tuple(name for name in dict.fromkeys(request.keep) if name != target.name)[: self.neighbours]
        if not kept:
            raise BadInput(
                f"fade_fg: expected concepts adjacent to {target.name!r}, found none; compute the data set's with "
                "`erasure-bench neighbours DATASET --model M`, or name concepts to keep"
            )
        return kept, "keep"
