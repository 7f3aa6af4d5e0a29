"""Auto-steering denoising trajectories: keep the early steps, turn the later ones away from the concept. 2025.

With U and C the frozen model's unconditional and conditional answers, G = U + w (C − U) the guided one, and Û, Ĝ the
trained model's, at a latent z₊ with fewer than B of the sampler's steps behind it, and one z₋ with B or more:

    L = a·‖Ĝ(z₋) − (U − η(G − U))‖²  +  b·‖Ĝ(z₊) − (U + η(G − U))‖²  +  c·‖Û(z₊) − U‖²  +  d·‖Û(z₋) − U‖²

the mean over all elements: erase, preserve, uncond-early, uncond-late. Flow models answer with velocities.
Li et al., arXiv:2504.12782.

One concept (path `single`): fine-tuning of the weights that stand out in every one of many gradient maps. Several
(path `multi`): low-rank factors on all attention projections for each concept, of which the keys and values of
cross-attention are fused into the model in MACE's closed form; all else of the factors is left out, as released.

Where the released code for one concept contradicts the paper, `mode` says who is followed. In `official_code`
(a) the two stages are swapped: B counts steps from the image, so that the cleanest latents are preserved; and the
    latents are slightly cleaner than the time that the model is told, as in ESD's first code (the sampler's details are
    inferred from that code);
(b) the unconditional losses have no gradient;
(c) maps keep the half of the elements with the smallest gradients;
(d) Adam moves the model between the gradients of a map. The paper's maps are taken here as those of the unedited model.
The path for several concepts is the same in both modes.

On flow transformers all of it is a harness variant. The stages are counted in steps of the model's own shifted
schedule, so that z₊ is where little but noise is left, as there; answers are velocities. `multi` has factors on the
text side of joint attention, and their sum instead of a fusion. `flux` is the variant for FLUX.1: that path also for
one concept, with walks and answers without a second, unconditional branch, which FLUX.1 is distilled to do without.

The equations are those of the released code: the paper's text was not at hand. Its table of hyperparameters (Table 6)
gives B, the iterations and the rate; the losses' factors are the code's. Departures: float32 masters and factors
(bfloat16 there), float64 fusion; one rule for the random numbers; prompts and caches of our own (see the fields).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar, final

from benchmark.errors import BadInput
from benchmark.interface import Edit, Family, Kind, LowRank, Method, Request, Target
from methods._fields import HARNESS_VARIANT, number, one_of
from methods._templates import check, filled, one_place, templates

if TYPE_CHECKING:
    from benchmark.backbones.base import Backbone
    from methods._ant import Recipe
    from methods._ant_single import Maps

T = TypeVar("T")
Mode = Literal["paper", "official_code"]
Path = Literal["by-count", "single", "multi"]
Row = Literal["by-kind", "nsfw", "celebrity", "art"]
LatentsFrom = Literal["by-path", "student", "frozen"]
Train = Literal["full", "x", "x-strict", "u"]
Mask = Literal["intersection", "one-map", "none"]


class _Row(NamedTuple):
    """A row of the paper's Table 6, B on its 50 steps, with the released scales of what fusion preserves."""

    before_step: int
    iterations: int
    prior_scale: float
    domain_scale: float


_ROWS = {
    "nsfw": _Row(7, 250, 2e-12, 20),  # scales: harness default, the celebrities'; released for one concept only
    "celebrity": _Row(10, 400, 2e-12, 20),
    "art": _Row(3, 400, 1e-12, 7),
}
_STEPS = 50  # that Table 6 counts on
_ROW_OF = {"explicit": "nsfw", "style": "art"}  # all other kinds: celebrity
_NUDITY = ("nudity", "naked", "erotic", "sexual")  # the released maps' prompts
_WEIGHTS = {"single": (1.0, 1.0, 0.5, 0.5), "multi": (1.0, 0.5, 1.25, 2.5)}
_MAP_PROMPTS = {"paper": 20, "official_code": 4}


@final
@dataclass(frozen=True, kw_only=True)
class ANT(Method):
    """Fields that are None take the released value of the path, the mode or the row of the paper's table.

    Synonyms are not read. Latents of the frozen model are made in batches before the training. On flow models `multi`
    is this harness's variant: factors on the text side of the joint attention, and their sum instead of a fusion, whose
    closed form needs projections that read text alone.
    """

    name: ClassVar[str] = "ant"
    version: ClassVar[int] = 1
    role: ClassVar[Literal["baseline", "erasure", "control"]] = "erasure"
    paper: ClassVar[str] = "arXiv:2504.12782"
    families: ClassVar[frozenset[Family]] = frozenset({"unet-epsilon", "transformer-flow"})
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {
            "paper": {},
            "official_code": {"mode": "official_code"},
            "single": {"path": "single"},
            "multi": {"path": "multi"},
            "nsfw": {"path": "single", "row": "nsfw"},
            "celebrity": {"path": "multi", "row": "celebrity"},
            "art": {"path": "multi", "row": "art"},
            "one-map": {"path": "single", "mask": "one-map"},
            "no-mask": {"path": "single", "mask": "none"},
            "flux": {"path": "multi", "start_guidance": 1.0, "loss_guidance": 1.0},
        }
    )
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"iterations": 3, "steps": 4, "lr": 1e-3, "map_prompts": 1, "map_seeds": 2, "map_iterations": 1, "rank": 4}
    )

    mode: Mode = "paper"
    path: Path = "by-count"
    """`by-count`: single for one concept, multi for more. Several concepts in `single` are trained jointly, each sample
    of one of them (the papers' has one)."""
    row: Row = "by-kind"
    """Of Table 6. `by-kind`: nsfw for explicit concepts, art for styles, celebrity for identities and (harness
    default) for all else and for requests of several rows."""

    # --- training -------------------------------------------------------------------------------------------------
    iterations: int | None = None
    """None: 250 for nsfw, 400 for celebrity and art; of each concept in `multi`."""
    per_concept: bool = False
    """Harness default. Whether `single` trains several concepts for so many iterations each, not all of them for as
    many as one."""
    lr: float = 5e-4
    batch: int | None = None
    """Trajectories an iteration; None: 1 in `single`, 2 in `multi`."""
    steps: int = _STEPS
    """Steps of a whole trajectory."""
    before_step: int | None = None
    """B, 1 to `steps` − 1; None: 7 for nsfw, 10 for celebrity, 3 for art, of 50 steps, in proportion for others."""
    start_guidance: float | None = None
    """Guidance on the way to the latents; None: 3 in `single`, 7.5 in `multi`."""
    loss_guidance: float | None = None
    """w; None: 1 in `single`, that is plain conditional answers, 7.5 in `multi`."""
    eta: float = 1.0
    erase_weight: float | None = None
    """a; None: 1. At 0 the loss is off, as for the three that follow."""
    preserve_weight: float | None = None
    """b; None: 1 in `single`, 0.5 in `multi`."""
    early_weight: float | None = None
    """c; None: 0.5 in `single`, 1.25 in `multi`."""
    late_weight: float | None = None
    """d; None: 0.5 in `single`, 2.5 in `multi`."""
    latents_from: LatentsFrom = "by-path"
    """Who walks to the latents; `by-path`: the trained model in `single`, the frozen one in `multi`."""
    template: str = "{}"
    """The prompt for a name; the paper's is the plain name."""

    # --- one concept ----------------------------------------------------------------------------------------------
    train: Train = "full"
    """All of the denoiser, or one of ESD's sets."""
    mask: Mask = "intersection"
    """`one-map` is that of the first prompt and seed, `none` trains all; the paper's Table 5."""
    mask_keep: float = 0.5
    """The share of each tensor's elements that a map keeps, above 0 and up to 1."""
    map_prompts: int | None = None
    """None: up to 20 in mode `paper` (with 5 seeds the hundred maps at which it sees convergence), 4 as released. They
    are the name, or the four released words where it is one of them, then its templates (harness default)."""
    map_seeds: int = 5
    map_iterations: int = 10
    """Gradients summed up in one map."""
    map_lr: float | None = None
    """Adam's rate between them; None: 0 in mode `paper`, 0.01 as released."""

    # --- several concepts -----------------------------------------------------------------------------------------
    rank: int = 64
    alpha: float = 1.0
    """The factors count alpha / rank while they are trained."""
    fuse_scale: float = 4.3
    """By how much more they count in the fusion."""
    ridge: float = 0.0
    """λ of the fusion. At 0, what its rows do not span stays as it is."""
    templates: str = "paper"
    """The set of templates that fills the fusion, the domain and the maps: `paper`, or `short` as the embedded model
    reads."""
    prior_scale: float | None = None
    """Of the sum over the request's `general` prompts, scaled up to the 616,767 captions of the released prior; None:
    2e-12 for celebrity, 1e-12 for art."""
    domain_scale: float | None = None
    """Of the sum over the templates of the request's `keep`, without the erased names; None: 20 for celebrity, 7 for
    art. The captions behind the released sums are unpublished."""

    def __post_init__(self) -> None:
        for field, literal in (
            ("mode", Mode),
            ("path", Path),
            ("row", Row),
            ("latents_from", LatentsFrom),
            ("train", Train),
            ("mask", Mask),
        ):
            one_of(self, field, literal)
        self._check_numbers()
        if self.before_step is not None and self.before_step >= self.steps:
            raise BadInput(
                f"ant: before_step must be 1 to {self.steps - 1}, below the {self.steps} steps, got {self.before_step}"
            )
        one_place(self.name, "template", self.template)
        check(self.name, self.templates)

    def _check_numbers(self) -> None:
        for field in ("iterations", "batch", "before_step", "map_prompts", "map_seeds", "map_iterations", "rank"):
            if getattr(self, field) is not None:
                number(self, field, low=1, whole=True)
        number(self, "steps", low=2, whole=True)
        for field in ("lr", "alpha", "fuse_scale", "mask_keep"):
            number(self, field, above=True)
        if self.mask_keep > 1:
            raise BadInput(f"ant: mask_keep is a share, above 0 and up to 1, got {self.mask_keep}")
        optional = ("start_guidance", "loss_guidance", "erase_weight", "preserve_weight", "early_weight", "late_weight")
        for field in ("eta", "ridge", *optional, "map_lr", "prior_scale", "domain_scale"):
            if getattr(self, field) is not None:
                number(self, field)

    def edit(self, backbone: Backbone, request: Request) -> Edit:
        if not request.erase:
            return Edit()
        recipe, path = self.recipe(request), self.taken(request)
        edit = self._single if path == "single" else self._multi
        about: dict[str, Any] = {
            "path": path,
            "mode": self.mode,
            "row": self.table_row(request),
            "before_step": recipe.before_step,
        }
        if backbone.family == "transformer-flow":
            about |= HARNESS_VARIANT
        made = edit(backbone, request, recipe)
        return Edit(weights=made.weights, deltas=made.deltas, notes={**about, **made.notes})

    # --- what fields stand for ------------------------------------------------------------------------------------
    def taken(self, request: Request) -> Literal["single", "multi"]:
        """The path that `by-count` stands for."""
        if self.path != "by-count":
            return self.path
        return "single" if len(request.erase) == 1 else "multi"

    def table_row(self, request: Request) -> str:
        """The row that `by-kind` stands for."""
        rows = {_ROW_OF.get(t.kind, "celebrity") for t in request.erase}
        if self.row != "by-kind":
            return self.row
        return rows.pop() if len(rows) == 1 else "celebrity"

    def recipe(self, request: Request) -> Recipe:
        """The numbers of the training."""
        from methods._ant import Recipe, Weights

        path, row = self.taken(request), _ROWS[self.table_row(request)]
        multi, released = path == "multi", path == "single" and self.mode == "official_code"
        given = (self.erase_weight, self.preserve_weight, self.early_weight, self.late_weight)
        each = len(request.erase) if self.per_concept and not multi else 1
        return Recipe(
            iterations=_or(self.iterations, row.iterations) * each,
            batch=_or(self.batch, 2 if multi else 1),
            lr=self.lr,
            eta=self.eta,
            start_guidance=_or(self.start_guidance, 7.5 if multi else 3.0),
            steps=self.steps,
            latents_from=("frozen" if multi else "student") if self.latents_from == "by-path" else self.latents_from,
            timestep_rule="compvis" if released else "aligned",
            loss_guidance=_or(self.loss_guidance, 7.5 if multi else 1.0),
            before_step=_or(self.before_step, max(1, round(row.before_step * self.steps / _STEPS))),
            weights=Weights(*map(_or, given, _WEIGHTS[path])),
            null_gradient=not released,
            shared_steps=multi,
        )

    def map_phrases(self, request: Request) -> tuple[str, ...]:
        """The prompts of the saliency maps; none without a mask."""
        if self.mask == "none":
            return ()
        count = 1 if self.mask == "one-map" else self.map_prompts
        return tuple(p for t in request.erase for p in self._phrases(t, count))

    def _phrases(self, target: Target, count: int | None) -> tuple[str, ...]:
        first = _NUDITY if target.name.casefold() in _NUDITY else (target.name,)
        known = tuple(dict.fromkeys((*first, *self.fusion_phrases(target.name, target.kind))))
        if count is not None and count > len(known):
            raise BadInput(
                f"ant: map_prompts is {count}, but templates {self.templates!r} make {len(known)} prompts of "
                f"{target.name!r}; lower it, or raise map_seeds"
            )
        return known[: _or(count, _MAP_PROMPTS[self.mode])]

    def fusion_phrases(self, name: str, kind: Kind) -> tuple[str, ...]:
        """The templates, filled with the name."""
        return tuple(filled(t, name) for t in templates(self.templates, kind))

    # --- the two paths --------------------------------------------------------------------------------------------
    def _single(self, backbone: Backbone, request: Request, recipe: Recipe) -> Edit:
        from methods._ant_single import tune

        maps = self.maps(request)
        prompts = [filled(self.template, t.name) for t in request.erase]
        weights, notes = tune(backbone, prompts, recipe, self.train, maps, request.seed)
        return Edit(weights=weights, notes={**notes, "prompts": prompts, "map_prompts": list(maps.prompts)})

    def maps(self, request: Request) -> Maps:
        """How the mask is made."""
        from methods._ant_single import Maps

        return Maps(
            prompts=self.map_phrases(request),
            seeds=1 if self.mask == "one-map" else self.map_seeds,
            iterations=self.map_iterations,
            lr=_or(self.map_lr, 0.01 if self.mode == "official_code" else 0.0),
            keep=self.mask_keep,
            largest=self.mode == "paper",
        )

    def _multi(self, backbone: Backbone, request: Request, recipe: Recipe) -> Edit:
        from methods import _ant_multi

        prompts = [filled(self.template, t.name) for t in request.erase]
        changes, courses = [], []
        for i, prompt in enumerate(prompts):
            alone = partial(self._trained, backbone, prompt, recipe, (request.seed, 2 + i))
            change, course = backbone.journal.once(f"name-{i}", alone)
            changes.append({name: LowRank(*factors) for name, factors in change.items()})
            courses.append({"prompt": prompt, **course})
        if backbone.family == "transformer-flow":
            return Edit(deltas=_ant_multi.merged(changes, self.fuse_scale), notes={"losses": courses, "fusion": "sum"})
        general, domain = request.general, self.domain(request)
        row = _ROWS[self.table_row(request)]
        kept = _ant_multi.kept_sum(
            backbone,
            general,
            domain,
            prior_scale=_or(self.prior_scale, row.prior_scale),
            domain_scale=_or(self.domain_scale, row.domain_scale),
        )
        phrases = [self.fusion_phrases(t.name, t.kind) for t in request.erase]
        weights = _ant_multi.fused(backbone, changes, phrases, kept, scale=self.fuse_scale, ridge=self.ridge)
        notes = {"losses": courses, "fusion": "mace", "general_prompts": len(general), "domain_prompts": len(domain)}
        return Edit(weights=weights, notes=notes)

    def _trained(
        self, backbone: Backbone, prompt: str, recipe: Recipe, seed: tuple[int, int]
    ) -> tuple[dict[str, LowRank], dict[str, dict[str, float]]]:
        """The factors that one concept leaves, and the course of its losses."""
        from methods import _ant, _ant_multi

        lora, history = _ant_multi.train(backbone, prompt, recipe, rank=self.rank, alpha=self.alpha, seed=seed)
        return _ant_multi.kept_part(backbone, lora), _ant.course(history)

    def domain(self, request: Request) -> tuple[str, ...]:
        """The preserved names in all templates, as of the first target's kind; without the erased ones (any case)."""
        erased = {t.name.casefold() for t in request.erase}
        kept = [name for name in dict.fromkeys(request.keep) if name.casefold() not in erased]
        return tuple(p for name in kept for p in self.fusion_phrases(name, request.erase[0].kind))


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
