"""EraseAnything: steps that erase by velocity and attention, and steps that keep what is near. Gao et al., ICML 2025.

Made for FLUX: low-rank changes of the text side's queries and keys in double-stream blocks, trained in turn (upper and
lower level, one optimizer step each). With v the velocity, p a prompt that names the concept, 0 the same without it, A
the joint attention of the last double-stream block, S the name's tokens, and F(w) the mean of A's columns at a word w:

    upper:  λ₁ ‖v(z, p, t) − (v(z, 0, t) − η [v(z, p, t) − v(z, 0, t)])‖²  +  λ₂ Σ_rows Σ_S ‖A[·, row, s]‖
    lower:  λ₃ ‖v(x_t, p, t) − (ε − x₀)‖²  +  λ₄ log [ e^(s₀/τ) / (e^(s₀/τ) + Σ_k e^(s_k/τ)) ]

with squared norms as means, the plain norm over heads, x_t a noised image x₀ of the concept, s₀ the cosine of the
concept's F and F(synonym), and s_k that of K irrelevant words' F and F(synonym). The last term (the paper's reverse
self-contrast) moves the concept's attention away from its synonym's; only the concept's carries a gradient.
arXiv:2412.20413.

As in the released code: z is the end of a whole walk of the trained model whatever t is, the target's v(0) and v(p)
are the trained model's own, F is of the first head, the lower step has the time of the upper one before it, a prompt's
words are shuffled with probability 0.9. `frozen` and `noised` are this harness's variants with the unedited model's
target, and with z noised to t.

Departures: images of the concept come from the unedited model (there from the user); irrelevant words are the request's
`keep`, or words of this harness (there from a language model); a word's columns are its own tokens (there those that
the concept has in its prompt); without synonyms the concept's bare name stands for one; float32 factors (bfloat16
there). FLUX.1-dev is given its guidance as a number; other models ignore it, and `true_guidance` is for those of them
that are not distilled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from benchmark.errors import BadInput
from benchmark.interface import Edit, Family, Method, Request, Target
from methods import _templates
from methods._fields import HARNESS_VARIANT, number, one_of

if TYPE_CHECKING:
    from benchmark.backbones.base import Backbone

Reference = Literal["student", "frozen"]
Latents = Literal["final", "noised"]

_WORDS = ("street", "river", "bread", "chair", "cloud", "bottle", "book", "bridge", "leaf", "clock", "lamp", "stone")


@final
@dataclass(frozen=True, kw_only=True)
class EraseAnything(Method):
    """One concept at a time, as released. `Target.anchor` makes the prompt without the concept; "" is the empty one."""

    name: ClassVar[str] = "erase_anything"
    version: ClassVar[int] = 1
    role: ClassVar[Literal["baseline", "erasure", "control"]] = "erasure"
    paper: ClassVar[str] = "arXiv:2412.20413"
    families: ClassVar[frozenset[Family]] = frozenset({"transformer-flow"})
    max_concepts: ClassVar[int | None] = 1
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "frozen": {"reference": "frozen"},
            "noised": {"latents": "noised"},
            "no-attention": {"attention_weight": 0.0},
            "no-lower": {"image_weight": 0.0, "contrast_weight": 0.0},
        }
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({"iterations": 4, "steps": 3, "images": 2})

    reference: Reference = "student"
    """Whose velocities make the upper target."""
    latents: Latents = "final"
    """`final`: the end of the walk, whatever the time; `noised`: that end noised to the time."""
    iterations: int = 200
    """Upper and lower steps together."""
    lr: float = 1e-3
    """AdamW's."""
    weight_decay: float = 1e-5
    rank: int = 8
    alpha: float = 8.0
    """Changes count alpha / rank."""
    eta: float = 1.0
    """η."""
    erase_weight: float = 1.0
    """λ₁."""
    attention_weight: float = 1e-3
    """λ₂; 0 leaves the term out, as with the two that follow."""
    image_weight: float = 0.1
    """λ₃."""
    contrast_weight: float = 0.1
    """λ₄."""
    temperature: float = 0.07
    """τ."""
    irrelevant: int = 3
    """K."""
    steps: int = 28
    """Sampler steps of all walks."""
    guidance: float = 3.0
    """What a model with a guidance embedding is given in walks and in the upper velocities."""
    image_guidance: float = 3.5
    """The same for noised images."""
    true_guidance: float = 1.0
    """Classifier-free guidance of all walks; 1 is none. Harness default: for models that are not distilled."""
    images: int = 4
    """Images of the concept; users give 3 to 5. Harness default."""
    shuffle: float = 0.9
    """How often a prompt's words are shuffled; a name stays together."""
    swap: float = 0.5
    """How often a synonym takes the concept's place in a prompt, where there are any."""
    template: str = "a photo of {}"
    """The prompt for a name; users write it. Harness default."""
    synonyms: bool = False
    """Read `Target.synonyms`, for prompts and for the contrast. Boards test on these, so this is off; the release takes
    them from WordNet."""

    def __post_init__(self) -> None:
        one_of(self, "reference", Reference)
        one_of(self, "latents", Latents)
        for field in ("iterations", "rank", "irrelevant", "steps", "images"):
            number(self, field, low=1, whole=True)
        for field in ("lr", "alpha", "temperature"):
            number(self, field, above=True)
        weights = ("erase_weight", "attention_weight", "image_weight", "contrast_weight")
        for field in ("weight_decay", "eta", "guidance", "image_guidance", "true_guidance", *weights):
            number(self, field)
        for field in ("shuffle", "swap"):
            number(self, field)
            if getattr(self, field) > 1:
                raise BadInput(f"erase_anything: {field} is a probability of at most 1, got {getattr(self, field)}")
        if not self.erase_weight and not self.attention_weight:
            raise BadInput("erase_anything: expected erase_weight or attention_weight above 0: the rest erases nothing")
        _templates.one_place(self.name, "template", self.template)

    def edit(self, backbone: Backbone, request: Request) -> Edit:
        from methods._erase_anything import train

        if not request.erase:
            return Edit()
        [target] = request.erase
        deltas, notes = train(backbone, target, self.words(target, request), self, request.seed)
        departs = self.reference != "student" or self.latents != "final"
        return Edit(deltas=deltas, notes={**notes, **(HARNESS_VARIANT if departs else {})})

    def known_as(self, target: Target) -> tuple[str, ...]:
        """Synonyms in use, or else the name itself."""
        return target.synonyms if self.synonyms and target.synonyms else (target.name,)

    def words(self, target: Target, request: Request) -> tuple[str, ...]:
        """What irrelevant words are drawn from: names to keep that are no names of the concept, filled up to K."""
        own = {name.casefold() for name in (target.name, *target.synonyms)}
        kept = [name for name in dict.fromkeys(request.keep) if name.casefold() not in own]
        others = [word for word in _WORDS if word not in own and word not in kept]
        found = tuple(kept if len(kept) >= self.irrelevant else [*kept, *others])
        if len(found) < self.irrelevant:
            raise BadInput(
                f"erase_anything: irrelevant is {self.irrelevant}, but there are {len(found)} words; name more to keep"
            )
        return found

    def without(self, target: Target) -> str:
        """The prompt without the concept."""
        return _templates.filled(self.template, target.anchor) if target.anchor else ""
