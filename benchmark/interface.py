"""What a method must provide, and all it may ask for: the one interface between harness and methods.

Nothing here loads torch, so that planning and tables answer at once on a machine without a GPU stack.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, get_args

from benchmark.errors import BadInput, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from benchmark.backbones.base import Backbone

Kind = Literal["object", "identity", "style", "explicit", "fine-grained"]
"""What sort of thing a concept is; presets and templates may depend on it."""

Family = Literal["unet-epsilon", "transformer-flow"]
"""Denoiser architecture and what it predicts: noise (epsilon) or velocity (flow)."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One concept to erase, as a method sees it. BadInput without a name, and for a kind that there is not."""

    name: str
    kind: Kind = "object"
    anchor: str = ""
    """What erased prompts should map to: a superclass or a neutral phrase; "" is the empty prompt."""
    synonyms: tuple[str, ...] = ()
    """Other names. Papers test on them, so a method that reads them says so in its docstring."""
    adjacent: tuple[str, ...] = ()
    """Its nearest concepts, nearest first, as frozen in the data set; () where none were computed."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise BadInput(f"expected the name of a concept to erase, such as 'cat'; got {self.name!r}")
        if self.kind not in get_args(Kind):
            raise BadInput(f"{self.name}: {did_you_mean(str(self.kind), get_args(Kind), 'kind')}")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a method is asked: forget these, keep those."""

    erase: tuple[Target, ...]
    keep: tuple[str, ...] = ()
    general: tuple[str, ...] = ()
    """Prompts that name no concept of the request, for methods that hold on to general ability (papers: captions)."""
    seed: int = 0
    """Training seed: with the backbone and the fields of the method it fixes the edit."""
    given: Mapping[str, Edit] = field(default_factory=lambda: MappingProxyType({}))
    """Edits of other methods for the same request, by the names in `Method.needs`."""


class LowRank(NamedTuple):
    """A low-rank change of one weight: `weight + up @ down`."""

    up: Tensor
    """`(out, rank)`"""
    down: Tensor
    """`(rank, in)`"""


@dataclass(frozen=True, kw_only=True)
class Gates:
    """Residual attention gates, one a concept, that stay beside the model and act on text projections.

    Lee et al. 2025, CPE (ICLR): each token's residual comes from the one concept whose gate is highest for it.
    `benchmark.gates` computes them. Weights stay as they are, so gates come off without a trace.
    """

    query: Tensor
    """`(concepts, dim, width)`: W_q, with which tokens attend to each other."""
    key: Tensor
    """`(concepts, dim, width)`: W_k; modules as released tie it to W_q."""
    vector: Tensor
    """`(concepts, dim)`: w of the gate σ(w · ê)."""
    changes: Mapping[str, LowRank]
    """U and D by projection: up `(concepts, out, rank)`, scale included; down `(concepts, rank, dim)`."""


@dataclass(frozen=True, kw_only=True)
class PromptRule:
    """Prompts that hold one of `words` (whole words, any case) are replaced as a whole."""

    words: tuple[str, ...]
    replacement: str = ""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What an edit took. Counts are exact on every machine; seconds and bytes are this machine's."""

    seconds: float = 0.0
    peak_bytes: int = 0
    denoiser_forwards: int = 0
    """Samples (not batches) that went forward through the denoiser; guidance counts twice."""
    denoiser_backwards: int = 0
    text_encodes: int = 0
    decodes: int = 0
    """Latents that were decoded to images."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What a method returns: the change alone, never the whole model.

    Names are those of `Backbone.tensors()`, such as `unet.….attn2.to_k.weight`. An empty edit is the unedited model.
    """

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """New values, of the same shape and dtype as the old."""
    deltas: Mapping[str, LowRank] = field(default_factory=dict)
    gates: Gates | None = None
    prompts: PromptRule | None = None
    output: Literal["grey"] | None = None
    """`grey`: every image is uniformly grey, whatever was asked (a control)."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What the method resolved on the way (token positions, solver, losses): JSON values, the same in every run."""
    cost: Cost = field(default_factory=Cost)


def later(default: Any) -> Any:
    """A field that a method got after results of it existed.

    Where it has its default, keys and records leave it out, so that they stay what they were.
    """
    return field(default=default, metadata={"later": True})


@dataclass(frozen=True, kw_only=True)
class Method(abc.ABC):
    """Base of every adapter. Fields are the hyperparameters; their defaults are the paper's.

    Subclasses are final, frozen and keyword-only; one file a method.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    """Raised whenever the same fields give another edit; older edits are then made anew."""
    role: ClassVar[Literal["baseline", "erasure", "control"]]
    paper: ClassVar[str]
    """Citation, such as `arXiv:2308.14761`; "" for controls."""
    families: ClassVar[frozenset[Family]]
    max_concepts: ClassVar[int | None] = None
    """How many concepts one edit can erase; None is any number. Above it, the plan goes one by one or refuses."""
    sequential: ClassVar[bool] = True
    """Whether concepts can be erased one after another; False where the edit is ready made, whatever is asked."""
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})
    """Variant name (after the `@`) to the fields it sets."""
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Fields with which an edit takes a second or so on a tiny model. Checks of plumbing use them, results never."""

    def refusal(self, family: Family) -> str | None:
        """Why these fields make no sense on models of a declared family, in one sentence; None where they do."""
        return None

    @property
    def needs(self) -> tuple[str, ...]:
        """Methods (`name` or `name@variant`) whose edits must be in `request.given`."""
        return ()

    @abc.abstractmethod
    def edit(self, backbone: Backbone, request: Request) -> Edit:
        """Return the edit; the backbone is left bit for bit as it was found."""
