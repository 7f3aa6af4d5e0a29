"""MACE's three stages: closed-form refinement, one LoRA a concept against attention, closed-form fusion."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmark.backbones.base import Backbone, Embedding, concatenate
from benchmark.errors import BadInput
from benchmark.interface import LowRank, Request, Target
from methods import _mace_cache, _mace_masks
from methods._loop import Keeping, ends, minimise
from methods._lora import LoRA
from methods._mace_cache import Cache
from methods._mace_fusion import Solver, fuse_all, matched, outer

if TYPE_CHECKING:
    from methods.mace import MACE, Row

TIMES = 1000  # of the noise schedule
SLOPE = 0.05  # ξ: how steeply the times set in and out; supplement of the paper, released value
_CHUNK = 32  # prompts encoded, and images walked, at once
_CLIP = 1.0  # largest norm of the gradient, as released


@dataclass(frozen=True)
class Concept:
    """A concept with what all stages read of its prompts."""

    target: Target
    anchor: str
    text: Embedding
    """Its prompts, one row each."""
    columns: tuple[Tensor, ...]
    """Of each prompt, the positions whose attention is brought down."""
    shared: Tensor
    """Σ e_f e_fᵀ over the positions that prompt and anchor's prompt have in common: `(d, d)`, float64."""
    crossed: Tensor
    """Σ e_g e_fᵀ over the same, e_g of the anchor's prompt: `(d, d)`, float64."""


class Draw(NamedTuple):
    """One step of training."""

    prompt: int
    image: int
    time: int
    noise: int
    """Seed of the noise."""


class Kept(NamedTuple):
    """The sums over what shall stay."""

    prior: Cache
    domain: Cache

    def gram(self, scale: float, settings: MACE, row: Row) -> Tensor:
        """scale · (C₂ of the prior + weight · C₂ of the domain): `(d, d)`, float64."""
        prior = self.prior.scaled(settings.prior_captions or self.prior.prompts)
        return scale * (prior + row.domain_weight * self.domain.gram)


def erase(
    backbone: Backbone, request: Request, pairs: Sequence[tuple[Target, str]], settings: MACE, row: Row
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """New values of the projections that change, and notes. `pairs`: concepts and their anchors."""
    find = _mace_masks.finder(settings.mask, backbone) if row.iterations else None
    base = {p.name: p.weight.detach() for p in backbone.projections() if p.role != "pooled"}
    concepts = read(backbone, pairs, settings)
    kept = keep(backbone, request, settings, row)
    refined = refine(base, concepts, kept, settings, row)
    tuned, losses = [], []
    for i, concept in enumerate(concepts if row.iterations else ()):
        alone = partial(train, backbone, refined, concept, settings, row, request.seed, find)
        changes, course = backbone.journal.once(f"name-{i}", alone)
        tuned.append(moved(refined, changes))
        losses.append(ends(course))
    final = fused(base, refined, tuned, concepts, kept, settings, row)
    if settings.where == "text":
        [reader] = [p for p in backbone.projections() if p.role == "pooled"]
        base[reader.name] = reader.weight.detach()
        final = {**final, reader.name: refine_pooled(backbone, reader.weight, concepts, request, settings, row)}
    weights = {name: value.to(base[name].dtype) for name, value in final.items()}
    changed = {name: value for name, value in weights.items() if not torch.equal(value, base[name])}
    return changed, _notes(request, concepts, kept, losses, settings, row)


def _notes(
    request: Request,
    concepts: Sequence[Concept],
    kept: Kept,
    losses: Sequence[Mapping[str, float]],
    settings: MACE,
    row: Row,
) -> dict[str, Any]:
    named = [
        {"concept": c.target.name, "anchor": c.anchor, "prompts": len(c.text), "columns": c.columns[0].tolist()}
        for c in concepts
    ]
    return {
        "setting": settings.kind(request),
        "resolved": row._asdict(),
        "concepts": [{**a, **b} for a, b in zip(named, losses or [{}] * len(named), strict=True)],
        "prior_prompts": kept.prior.prompts,
        "domain_prompts": kept.domain.prompts,
    }


# --- text -------------------------------------------------------------------------------------------------------------
def read(backbone: Backbone, pairs: Sequence[tuple[Target, str]], settings: MACE) -> list[Concept]:
    """All concepts; every prompt is encoded once. BadInput for a name that does not fit into a prompt."""
    anchors: dict[tuple[str, ...], Embedding] = {}
    concepts = []
    for target, anchor in pairs:
        prompts, guides = settings.prompts(target, target.name), tuple(settings.prompts(target, anchor))
        if guides not in anchors:
            anchors[guides] = embed(backbone, guides)
        text = embed(backbone, prompts)
        shared, crossed = common(text, anchors[guides])
        columns = tuple(attended(backbone, p, target.name, text[[i]]) for i, p in enumerate(prompts))
        concepts.append(Concept(target, anchor, text, columns, shared, crossed))
    return concepts


def embed(backbone: Backbone, prompts: Sequence[str]) -> Embedding:
    """All prompts, encoded chunk by chunk."""
    return concatenate([backbone.embed(prompts[i : i + _CHUNK]) for i in range(0, len(prompts), _CHUNK)])


def common(text: Embedding, guides: Embedding) -> tuple[Tensor, Tensor]:
    """Σ e_f e_fᵀ and Σ e_g e_fᵀ `(d, d)`, float64, over the positions that each prompt and its guide share."""
    sources, goals = [], []
    for i, (a, b) in enumerate(zip(unpadded(text), unpadded(guides), strict=True)):
        of_a, of_b = matched(a, b, text.tokens.shape[1])
        sources.append(text.tokens[i, of_a].double())
        goals.append(guides.tokens[i, of_b].double())
    e, g = torch.cat(sources), torch.cat(goals)
    return outer(e, e), outer(g, e)


def unpadded(text: Embedding) -> list[list[int]]:
    """Token ids of each prompt from BOS to EOS."""
    return [ids[: last + 2] for ids, last in zip(text.ids.tolist(), text.last.tolist(), strict=True)]


def attended(backbone: Backbone, prompt: str, name: str, text: Embedding) -> Tensor:
    """Positions of the name in the prompt, then of the end token and of all padding that has its id."""
    try:
        own = list(backbone.span(prompt, name))
    except ValueError as error:
        raise BadInput(f"mace: {error}; shorten the name or give other templates") from None
    ids = text.ids[0].tolist()
    end = ids[int(text.last[0]) + 1]
    return torch.tensor(own + [i for i, token in enumerate(ids) if token == end], device=text.tokens.device)


# --- what is kept -----------------------------------------------------------------------------------------------------
def keep(backbone: Backbone, request: Request, settings: MACE, row: Row) -> Kept:
    """The prior and the domain, from their files or prompts; what no scale asks for is not summed up."""
    asked = bool(row.train_scale or row.fuse_scale)
    prior = _cache(backbone, settings.prior_cache, list(request.general) or [""], asked)
    return Kept(prior, _cache(backbone, settings.domain_cache, settings.kept(request), asked and row.domain_weight > 0))


def _cache(backbone: Backbone, path: str | None, prompts: Sequence[str], asked: bool) -> Cache:
    if path is not None:
        return _mace_cache.load(Path(path), backbone)
    return _mace_cache.sums(backbone, prompts if asked else [])


# --- solves -----------------------------------------------------------------------------------------------------------
def refine(
    base: Mapping[str, Tensor], concepts: Sequence[Concept], kept: Kept, settings: MACE, row: Row
) -> dict[str, Tensor]:
    """Stage 1: W' by name, float64. Eq. 2 with the released λ‖W' − W‖²."""
    stays = kept.gram(row.train_scale**2 if settings.squared_preserve else row.train_scale, settings, row)
    solver = Solver(stays + torch.stack([c.shared for c in concepts]).sum(0), row.ridge)
    goal = stays + torch.stack([c.crossed for c in concepts]).sum(0)
    return {name: solver(w, w.double() @ goal) for name, w in base.items()}


def refine_pooled(
    backbone: Backbone, weight: Tensor, concepts: Sequence[Concept], request: Request, settings: MACE, row: Row
) -> Tensor:
    """Stage 1 for the pooled vector: of a concept's prompts it is projected like that of the anchor's; float64."""
    names = [p for c in concepts for p in settings.prompts(c.target, c.anchor)]
    own, guides = torch.cat([pooled(c.text) for c in concepts]), pooled(embed(backbone, names))
    asked = bool(row.train_scale)
    prior = _pooled_sums(backbone, list(request.general) or [""], asked)
    kept = Kept(prior, _pooled_sums(backbone, settings.kept(request), asked and row.domain_weight > 0))
    stays = kept.gram(row.train_scale**2 if settings.squared_preserve else row.train_scale, settings, row)
    solver = Solver(stays + outer(own, own), row.ridge)
    return solver(weight, weight.double() @ (stays + outer(guides, own)))


def pooled(text: Embedding) -> Tensor:
    """The pooled vectors, `(batch, d)`."""
    assert text.pooled is not None, "a pooled projection needs a pooled text vector"
    return text.pooled


def _pooled_sums(backbone: Backbone, prompts: Sequence[str], asked: bool) -> Cache:
    rows = pooled(embed(backbone, prompts if asked and prompts else [""]))
    return Cache(outer(rows, rows), len(prompts)) if asked and prompts else Cache(outer(0 * rows, rows), 0)


def fused(
    base: Mapping[str, Tensor],
    refined: Mapping[str, Tensor],
    tuned: Sequence[Mapping[str, Tensor]],
    concepts: Sequence[Concept],
    kept: Kept,
    settings: MACE,
    row: Row,
) -> Mapping[str, Tensor]:
    """Stage 3: W* by name, float64, of the concepts' own matrices `tuned`. Eq. 6, or the mean that it replaces."""
    if not tuned:
        return refined
    if settings.fusion == "mean":
        return {name: torch.stack([m[name] for m in tuned]).mean(0) for name in refined}
    grams = [_mace_cache.gram_of(c.text) for c in concepts]
    return fuse_all(refined, tuned, grams, row.ridge, kept.gram(row.fuse_scale, settings, row), base)


# --- training ---------------------------------------------------------------------------------------------------------
def train(
    backbone: Backbone,
    refined: Mapping[str, Tensor],
    concept: Concept,
    settings: MACE,
    row: Row,
    seed: int,
    find: _mace_masks.Finder | None,
) -> tuple[dict[str, LowRank], list[float]]:
    """Stage 2: the concept's own ΔW and the loss of each step.

    All randomness comes from the seed and the concept's name, so that other concepts of the request do not shift it.
    """
    rng = np.random.default_rng(_seed(seed, concept.target.name))
    seeds = rng.integers(2**31, size=settings.images).tolist()
    images = partial(walk, backbone, settings.image_prompt(concept.target), seeds, settings)
    latents = backbone.journal.once("images", images)
    masks = find(latents, concept.target.name) if find else None
    plan = draw(rng, row.iterations, len(concept.text), settings.images, chances(row.times, settings))
    lora = LoRA(
        {name: w.to(backbone.dtype) for name, w in refined.items()},
        settings.rank,
        scale=1.0,
        generator=torch.Generator().manual_seed(int(rng.integers(2**31))),
        init="gauss",
    )

    def loss_at(i: int) -> Tensor:
        step = plan[i]
        t = torch.tensor([step.time], device=backbone.device)
        x = backbone.noisy(latents[step.image][None], backbone.noise([step.noise]), t)
        with backbone.substituted(lora.weights()), backbone.attention_maps() as maps:
            prediction = backbone.predict(x, t, concept.text[[step.prompt]])
        mask = None if masks is None else masks[step.image]
        loss = attention(maps, concept.columns[step.prompt], mask, squared=settings.loss == "paper")
        return loss + 0 * prediction.sum()  # so that the backward counts as one: costs are counted at the output

    adam = torch.optim.AdamW(lora.parameters(), lr=row.lr, weight_decay=0.01)
    losses = minimise(
        "mace",
        lora.parameters(),
        loss_at,
        iterations=row.iterations,
        optimizer=adam,
        clip=_CLIP,
        keeping=Keeping(backbone.journal),
    )
    return lora.deltas(), losses


def moved(refined: Mapping[str, Tensor], changes: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """The concept's own matrices W' + ΔW, float64."""
    factors = {name: LowRank(*changes[name]) for name in refined}
    return {name: w + factors[name].up.double() @ factors[name].down.double() for name, w in refined.items()}


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}|{name}".encode()).digest()[:8])


def walk(backbone: Backbone, prompt: str, seeds: Sequence[int], settings: MACE) -> Tensor:
    """Clean latents `(images, *latent_shape)` that the unedited model makes of the prompt."""
    text, empty = backbone.embed([prompt]), backbone.embed([""])
    return torch.cat(
        [
            backbone.trajectory(
                backbone.noise(part),
                text.expand(len(part)),
                empty.expand(len(part)),
                steps=settings.image_steps,
                guidance=settings.image_guidance,
            )
            for part in (seeds[i : i + _CHUNK] for i in range(0, len(seeds), _CHUNK))
        ]
    )


def chances(times: str, settings: MACE) -> np.ndarray:
    """How likely each time 0 … 999 is drawn; section 3.3 of the paper, concept-focal importance sampling."""
    if times == "uniform":
        return np.full(TIMES, 1 / TIMES)
    t = np.arange(TIMES)
    shape = _sigmoid(SLOPE * (t - settings.times_from)) - _sigmoid(SLOPE * (t - settings.times_to))
    return np.asarray(shape / shape.sum())


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


def draw(rng: np.random.Generator, steps: int, prompts: int, images: int, p: np.ndarray) -> list[Draw]:
    """All steps of one concept's training; times follow `p`, all else is uniform."""
    times = rng.choice(TIMES, size=steps, p=p)
    return [
        Draw(int(rng.integers(prompts)), int(rng.integers(images)), int(t), int(rng.integers(2**31))) for t in times
    ]


def attention(maps: Sequence[Tensor], columns: Tensor, mask: Tensor | None, *, squared: bool = False) -> Tensor:
    """Σ over layers ‖A[:, :, pixels in the mask, columns]‖, or of the squares; eq. 3 has the squares.

    `maps`: `(batch, heads, pixels, length)` each; `mask`: `(height, width)`, above 0.5 inside, of any size with the
    aspect of the latents; None is all pixels.
    """
    parts = [m[..., columns] if mask is None else m[:, :, _inside(mask, m.shape[2])][..., columns] for m in maps]
    return torch.stack([p.square().sum() if squared else torch.linalg.vector_norm(p) for p in parts]).sum()


def _inside(mask: Tensor, pixels: int) -> Tensor:
    """Which of a layer's pixels lie in the mask: `(pixels,)` bool, by the nearest of the mask's own."""
    height, width = mask.shape
    rows = round((pixels * height / width) ** 0.5)
    size = (rows, pixels // rows)
    small = torch.nn.functional.interpolate(mask[None, None].float(), size=size, mode="nearest")
    return small.flatten() > 0.5
