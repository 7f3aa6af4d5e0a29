"""FADE, the adversarial one: train the model until a discriminator cannot tell a concept's prompts from neutral ones.

With x_c and x_¬c what the model makes of a prompt with the concept and of the same prompt with a neutral phrase, D(·) =
σ(s(·)) the discriminator's belief that the concept was asked for, and Θ_salient the trained elements (section 4):

    D:  L_D = −E[log D(x_c) + log(1 − D(x_¬c))]
    Θ_salient:  L_total = L_rem + λ L_pres
    L_rem = −E[log(1 − D(x_c))],   L_pres = E‖ε_θ(z_t, y, t) − ε_orig(z_t, y, t)‖²,  y without the concept

At the equilibrium D is 1/2 everywhere, L_rem = log 2 and L_D = 2 log 2. Fair Adversarial Diffusion Erasure, Fu et al.,
arXiv:2507.12283 (another method of the name is Fine-grained Attenuation, arXiv:2503.19783).

The paper gives the losses, 1000 steps and guidance 2. It does not give λ, T0, learning rates, batch, optimizer,
discriminator, the saliency's loss and share, the sampler, or how gradients pass through sampling; every other default
below is a harness default. Where its text reads in several ways, each reading is a field (`pres_window`, `grad_mode`):

- D's printed signs clash (section 4.1 minimises −E, Algorithm 1 maximises the same symbol): the update is the same.
- Preservation: the prose keeps the early denoising steps, the formula (t = 1 … T0, walking from T to 0) the late ones,
  Algorithm 1 all; see `pres_window`. The squared norm is a mean over elements here, so that λ has one scale.
- The row "without adversary" needs something that still erases (the paper's erases to 7.8 %, and names no loss). Ours
  is the plainest without an adversary: the frozen model's prediction for the neutral prompt as a fixed target, in the
  one-step form ‖ε_θ(z_t, c, t) − ε_orig(z_t, ¬c, t)‖² (`removal="match"`). `frozen` has the pre-trained discriminator,
  never trained again: the adversary's loss without the contest.
- The paper names FLUX and gives neither settings nor a number: all of it there is a harness variant. With `rank` 0 the
  same element-wise selection is trained as on a U-Net, of keys and values on both streams. `flux` is the variant for
  FLUX.1: the salient tenth of these matrices as wholes, each by a low-rank change of rank 16, for gradients of all
  elements of 12 billion are beyond one card; ω is the number that dev is given, with no second branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from benchmark.errors import BadInput
from benchmark.interface import Edit, Family, Kind, Method, Request, Target, later
from methods._fields import HARNESS_VARIANT, number, one_of

if TYPE_CHECKING:
    from benchmark.backbones.base import Backbone

Removal = Literal["adversarial", "frozen", "match"]
GradMode = Literal["x0_onestep", "last_k", "full", "off_policy"]
Window = Literal["early", "all", "literal"]
Candidates = Literal["x", "x+up"]
PreserveOn = Literal["neutral", "keep"]
Heads = Literal["cross", "own"]

_THINGS = (
    "{}",
    "a photo of the {}",
    "a picture of the {}",
    "an image of the {}",
    "a drawing of the {}",
    "a painting of the {}",
    "a sketch of the {}",
    "an illustration of the {}",
    "a close photo of the {}",
    "a clear photo of the {}",
    "a small picture of the {}",
    "a photo of the {} in the park",
    "a photo of the {} on the street",
    "a photo of the {} at night",
    "a photo of the {} in the snow",
    "a picture of the {} on a white background",
    "a picture of the {} by the sea",
    "the {} in a room",
    "the {} on a table",
    "the {} under the open sky",
)
_NAMES = (
    "{}",
    "a photo of {}",
    "a portrait of {}",
    "a picture of {}",
    "an image of {}",
    "a drawing of {}",
    "a painting of {}",
    "a sketch of {}",
    "an oil painting of {}",
    "an illustration of {}",
    "a close photo of {}",
    "{} in an official photo",
    "an image capturing {} at a public event",
    "a photo of {} in the park",
    "a photo of {} on the street",
    "a photo of {} at night",
    "a picture of {} on a white background",
    "a photo of {} with a happy face",
    "{} in a room",
    "{} under the open sky",
)
_STYLES = (
    "a picture in the {} style",
    "a photo of the street, in the {} style",
    "a picture of the house, in the {} style",
    "a picture of the tree, in the {} style",
    "an image of the river, in the {} style",
    "an image of the mountain, in the {} style",
    "a drawing in the style of {}",
    "a painting in the style of {}",
    "an oil painting in the style of {}",
    "a sketch in the style of {}",
    "an illustration in the style of {}",
    "a portrait in the style of {}",
    "a landscape in the style of {}",
    "a town in the style of {}",
    "a garden in the style of {}",
    "flowers in the style of {}",
    "a woman in the style of {}",
    "a kitchen in the style of {}",
    "the sea at night in the style of {}",
    "a field in the style of {}",
)
TEMPLATES: Mapping[Kind, tuple[str, ...]] = MappingProxyType(
    {"object": _THINGS, "fine-grained": _THINGS, "identity": _NAMES, "explicit": _NAMES, "style": _STYLES}
)
"""Twenty a kind; `{}` takes the concept, or the neutral phrase."""


@final
@dataclass(frozen=True, kw_only=True)
class FadeAdv(Method):
    """Several concepts are erased jointly by one discriminator with a logit each.

    A target's `anchor` is its neutral phrase; "" makes the whole neutral prompt empty. Synonyms are read only where
    `synonyms` says so.
    """

    name: ClassVar[str] = "fade_adv"
    version: ClassVar[int] = 1
    role: ClassVar[Literal["baseline", "erasure", "control"]] = "erasure"
    paper: ClassVar[str] = "arXiv:2507.12283"
    families: ClassVar[frozenset[Family]] = frozenset({"unet-epsilon", "transformer-flow"})
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "no-adversary": {"removal": "match"},
            "frozen-adversary": {"removal": "frozen"},
            "no-preservation": {"preservation": 0.0},
            "no-saliency": {"saliency": 1.0},
            "flux": {"rank": 16, "lr": 1e-4, "guidance": 1.0, "embedded_guidance": 2.0},
        }
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"iterations": 3, "steps": 3, "pairs": 4, "pretrain": 2, "saliency_samples": 2, "d_width": 8, "lr": 1e-3}
    )

    removal: Removal = "adversarial"
    """What erases: the paper's L_rem; the same against a discriminator that is pre-trained and then left alone; or no
    discriminator, and a fixed target (see above)."""
    grad_mode: GradMode = "x0_onestep"
    """How gradients reach the weights from an image; harness default. `x0_onestep`: walk to a random step without
    gradients and judge the clean latent that the prediction there implies. `last_k`: judge the final latent, with
    gradients through the last `last_k` steps; `full`: through all. `off_policy`: as x0_onestep, at noised images that
    the unedited model made once."""
    last_k: int = 2
    """Steps with gradients where grad_mode is last_k. Harness default."""
    iterations: int = 1000
    """Steps of the model; the paper's N."""
    batch: int = 2
    """Pairs a step. Harness default."""
    lr: float = 1e-5
    """AdamW's. Harness default."""
    weight_decay: float = 0.0
    """AdamW's, on the trained elements alone: others cannot move. Harness default."""
    clip: float = 1.0
    """Largest norm of the gradient. Harness default."""
    steps: int = 20
    """Sampler steps of a walk. Harness default."""
    guidance: float = 2.0
    """The paper's ω. The unconditional part carries no gradient, except in last_k and full."""
    walkers: int = 0
    """Pairs that walk together; 0: as many as `batch`. Harness default."""
    refresh: int = 1
    """Steps for which the latents of a walk serve before the model, as it then is, walks again. Harness default."""
    bound: float = 5.0
    """One-step estimates are clamped to ±bound (latents have unit variance): near pure noise they blow up. Harness
    default."""

    preservation: float = 100.0
    """λ, on the mean over elements; 0 leaves the term out. Harness default."""
    pres_window: Window = "early"
    """Times of L_pres, with T0 = window · T: `early`, t ≥ T − T0 (what the prose means); `literal`, t ≤ T0 (the
    formula); `all` (Algorithm 1). Harness default."""
    window: float = 0.5
    """T0 / T, "mid-way" in the paper."""
    preserve_on: PreserveOn = "neutral"
    """Prompts of L_pres: the neutral halves of the pairs; or these, the request's `keep` names and its `general`
    prompts. Harness default."""
    match: float = 100.0
    """Weight of the fixed target's loss where removal is match, on the mean over elements. Harness default."""

    saliency: float = 0.1
    """Share of the candidates' elements that is trained, the most salient of all together; 1: all. Harness default."""
    saliency_samples: int = 32
    """Latents behind the saliency, Σ |∂/∂θ mean (ε_θ(z_t, c) − ε_θ(z_t, ¬c))²|. Harness default."""
    candidates: Candidates = "x+up"
    """`x`: the linear maps of cross-attention (FLUX: keys and values of both streams); `x+up`: also the convolutions on
    the way up (FLUX has none). Harness default."""

    d_width: int = 64
    """Channels of the discriminator's first stage; the others have 2, 4 and 4 times as many. Harness default."""
    d_lr: float = 2e-4
    """Adam's, with β = (0.5, 0.99). Harness default."""
    d_steps: int = 1
    """Steps of the discriminator for one of the model. Harness default."""
    d_batch: int = 16
    """Pairs a step where the discriminator is trained alone: before the start and for a stop test. Harness default."""
    pretrain: int = 200
    """Steps of the discriminator before the start, on the unedited model's images. Harness default."""
    pairs: int = 32
    """Pairs of walks behind pre-training, behind each stop test (and as many held out), and of off_policy. Harness
    default."""
    heads: Heads = "cross"
    """What a concept's logit learns to deny: `cross`, all neutral prompts and all other concepts (with different
    anchors the equilibrium is then their mixture); `own`, its own neutral prompts. One concept: no difference. Harness
    default."""

    stop_every: int = 100
    """Steps between stop tests; 0 never stops early. A test trains a fresh discriminator and measures its accuracy on
    walks from noise that it has not seen. Harness default."""
    stop_steps: int = 200
    """Training steps of the fresh discriminator. Harness default."""
    stop_accuracy: float = 0.55
    """The test is met at this accuracy or less; the paper's 55 %."""
    stop_checks: int = 3
    """Tests in a row that must be met. Harness default."""

    templates: tuple[str, ...] = ()
    """Prompts with `{}` for the concept or the neutral phrase; () takes `TEMPLATES` of each concept's kind. Harness
    default."""
    synonyms: bool = False
    """Also make pairs with a concept's synonyms. Boards test on these, so this is off. Harness default."""

    rank: int = later(0)
    """Of low-rank changes of whole matrices, of which `saliency` is then the share, by their mean saliency; 0 trains
    elements. Harness variant."""
    embedded_guidance: float | None = later(None)
    """What a model with a guidance embedding is given; None is its own. Others ignore it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "templates", tuple(self.templates))  # JSON gives a list
        literals = {
            "removal": Removal,
            "grad_mode": GradMode,
            "pres_window": Window,
            "preserve_on": PreserveOn,
            "candidates": Candidates,
            "heads": Heads,
        }
        for field, literal in literals.items():
            one_of(self, field, literal)
        self._check_numbers()
        self._check_texts()

    def _check_numbers(self) -> None:
        for field in ("iterations", "batch", "last_k", "steps", "refresh", "saliency_samples", "d_steps", "d_batch"):
            number(self, field, low=1, whole=True)
        for field in ("pairs", "stop_steps", "stop_checks"):
            number(self, field, low=1, whole=True)
        for field in ("walkers", "pretrain", "stop_every", "rank"):
            number(self, field, whole=True)
        if self.embedded_guidance is not None:
            number(self, "embedded_guidance")
        for field in ("lr", "clip", "bound", "d_lr", "match"):
            number(self, field, above=True)
        for field in ("guidance", "preservation", "weight_decay"):
            number(self, field)
        for field in ("saliency", "window", "stop_accuracy"):
            number(self, field, above=True)
            if getattr(self, field) > 1:
                raise BadInput(f"fade_adv: {field} is a share of at most 1, got {getattr(self, field)}")
        if self.grad_mode == "last_k" and self.last_k > self.steps:
            raise BadInput(f"fade_adv: last_k must be at most steps, {self.steps}, got {self.last_k}")
        if self.removal == "frozen" and not self.pretrain:
            raise BadInput("fade_adv: a discriminator that is never trained erases nothing; raise pretrain")
        number(self, "d_width", low=8, whole=True)
        if self.d_width % 8:
            raise BadInput(f"fade_adv: d_width must be a multiple of 8, its normalisation's groups, got {self.d_width}")

    def _check_texts(self) -> None:
        for template in self.templates:
            if not isinstance(template, str) or "{}" not in template:
                raise BadInput(f"fade_adv: templates must hold {{}}, where the concept goes, got {template!r}")
        if not isinstance(self.synonyms, bool):
            raise BadInput(f"fade_adv: synonyms must be true or false, got {self.synonyms!r}")

    def edit(self, backbone: Backbone, request: Request) -> Edit:
        from methods._fade_adv import erase

        if not request.erase:
            return Edit()
        for target in request.erase:
            _check_target(target)
        weights, deltas, notes = erase(backbone, request, self)
        if backbone.family == "transformer-flow" or self.rank:
            notes |= HARNESS_VARIANT
        return Edit(weights=weights, deltas=deltas, notes=notes)

    def prompts(self, target: Target) -> list[tuple[str, str]]:
        """Pairs of prompts, with the concept and with the neutral phrase, alike in all else."""
        names = (target.name, *(target.synonyms if self.synonyms else ()))
        templates = self.templates_of(target.kind)
        return [
            (t.replace("{}", name), t.replace("{}", target.anchor) if target.anchor else "")
            for name in names
            for t in templates
        ]

    def templates_of(self, kind: Kind) -> tuple[str, ...]:
        """The prompts' forms for a kind of concept."""
        return self.templates or TEMPLATES[kind]


def _check_target(target: Target) -> None:
    if target.name.casefold().split() == target.anchor.casefold().split():
        raise BadInput(
            f"fade_adv: {target.name!r} is its own neutral phrase, so there is nothing to tell apart; "
            "give it another anchor, such as its superclass"
        )
