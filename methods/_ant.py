"""Fine-tuning by the stage of the denoising trajectory: the latents of two stages, the four losses, the loop.

One iteration looks at two latents of a trajectory towards the concept: at one the trained model shall answer as before
(preserve), at the other it shall point away from the concept (erase). At both its unconditional answer shall stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmark.backbones.base import Backbone, Embedding, concatenate
from benchmark.backbones.journal import NONE, Journal
from methods import _distill
from methods._distill import Sample, Task
from methods._loop import Keeping, ends, minimise

_PACK = 16  # samples that walk together where the frozen model makes the latents
_FINE = 1000  # the grid of times of the released single-concept code

Given = Callable[[], Mapping[str, Tensor]]
"""The trained model, as what `Backbone.substituted` takes; a new graph at every call."""


class Weights(NamedTuple):
    """Factors of the four losses."""

    erase: float
    preserve: float
    uncond_early: float
    uncond_late: float


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The numbers of one path, nothing left to decide. `_distill` reads what it shares with ESD."""

    iterations: int
    batch: int
    lr: float
    eta: float
    """How far the erased answer points away, and the preserved one towards the concept; 1 is the frozen answer."""
    start_guidance: float
    steps: int
    latents_from: str
    timestep_rule: str
    """`aligned`, steps counted from noise; or `compvis`, counted from the image as in ESD's first code."""
    loss_guidance: float
    """Guidance of the answers that are compared; 1 compares plain conditional predictions."""
    before_step: int
    """B: preserved latents have fewer steps behind them (`compvis`: before them), erased ones so many or more."""
    weights: Weights
    null_gradient: bool
    """Whether gradients flow through the unconditional answers."""
    shared_steps: bool
    """All samples of an iteration stand at the same two steps."""


class Pair(NamedTuple):
    """The two latents of one trajectory."""

    preserve: Sample
    erase: Sample


class Example(NamedTuple):
    """Training data of one iteration: `2 · batch` rows, the preserved ones first."""

    x: Tensor
    t: Tensor
    text: Embedding
    null: Tensor
    """U: what the frozen model says unconditionally; as `x`."""
    guided: Tensor
    """G: what it says of the concept, with the loss's guidance; as `x`."""


class Terms(NamedTuple):
    """The four losses, scalars."""

    erase: Tensor
    preserve: Tensor
    uncond_early: Tensor
    """At the preserved latents, which the paper has early."""
    uncond_late: Tensor
    """At the erased latents."""


@dataclass(frozen=True)
class Job:
    """What all iterations share."""

    recipe: Recipe
    task: Task


def job(backbone: Backbone, prompts: Sequence[str], recipe: Recipe) -> Job:
    """Encode the concepts' prompts and the empty one, once."""
    texts, empty = backbone.embed(prompts), backbone.embed([""])
    return Job(recipe, Task(frozen=backbone, texts=texts, removed=None, empty=empty, settings=recipe))


# --- the latents ------------------------------------------------------------------------------------------------------
def draw(rng: np.random.Generator, recipe: Recipe, concepts: int) -> list[list[Pair]]:
    """All pairs of all iterations: `iterations` lists of `batch`."""
    return [_draw_batch(rng, recipe, concepts) for _ in range(recipe.iterations)]


def _draw_batch(rng: np.random.Generator, recipe: Recipe, concepts: int) -> list[Pair]:
    pairs = []
    for i in range(recipe.batch):
        if i == 0 or not recipe.shared_steps:
            steps = int(rng.integers(recipe.before_step)), int(rng.integers(recipe.before_step, recipe.steps))
        concept, seed = int(rng.integers(concepts)), int(rng.integers(2**31))
        pairs.append(Pair(*(_sample(rng, recipe, concept, seed, k) for k in steps)))
    return pairs


def _sample(rng: np.random.Generator, recipe: Recipe, concept: int, seed: int, k: int) -> Sample:
    steps = recipe.steps
    if recipe.timestep_rule == "aligned":
        return Sample(concept, seed, 0, k, steps, k)
    # as ESD's first code, from which the released one comes: see _distill for what its sampler does
    label = int(rng.integers(k * _FINE // steps, (k + 1) * _FINE // steps))
    return Sample(concept, seed, 1, min(steps, steps + 1 - k), _FINE, min(_FINE - label, _FINE - 1))


def samples(pairs: Sequence[Pair]) -> list[Sample]:
    """The preserved ones, then the erased ones."""
    return [p.preserve for p in pairs] + [p.erase for p in pairs]


def examples(
    work: Job, plan: Sequence[Sequence[Pair]], given: Given, journal: Journal = NONE
) -> Callable[[int], Example]:
    """That of an iteration; latents of the trained model are made when asked for, with the model of that moment."""
    return _beforehand(work, plan, journal) if work.recipe.latents_from == "frozen" else _as_it_goes(work, plan, given)


def _as_it_goes(work: Job, plan: Sequence[Sequence[Pair]], given: Given) -> Callable[[int], Example]:
    def at(i: int) -> Example:
        with torch.no_grad(), work.task.frozen.substituted(given()):
            x = _distill.latents(work.task, work.task.frozen, samples(plan[i]))
        return example(work, x, samples(plan[i]))

    return at


def _beforehand(work: Job, plan: Sequence[Sequence[Pair]], journal: Journal) -> Callable[[int], Example]:
    x, null, guided = journal.once("latents", lambda: _packed(work, [s for pairs in plan for s in samples(pairs)]))
    starts = np.cumsum([0, *(2 * len(pairs) for pairs in plan)]).tolist()

    def at(i: int) -> Example:
        here, rows = samples(plan[i]), slice(starts[i], starts[i + 1])
        times, text = _distill.times(work.task.frozen, here), work.task.text(here)
        return Example(x[rows], times, text, null[rows], guided[rows])

    return at


def _packed(work: Job, flat: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
    """Latents and answers of all samples, in their order: three of `(samples, *latent_shape)`."""
    # neighbours in this order stop at about the same step, so that packs stay full to their end
    order = sorted(range(len(flat)), key=lambda j: flat[j].stop)
    packs = [[flat[j] for j in order[i : i + _PACK]] for i in range(0, len(order), _PACK)]
    made = [example(work, _distill.latents(work.task, work.task.frozen, pack), pack) for pack in packs]
    back = torch.tensor(order).argsort()
    x, null, guided = (torch.cat([getattr(m, part) for m in made])[back] for part in ("x", "null", "guided"))
    return x, null, guided


@torch.no_grad()
def example(work: Job, x: Tensor, here: Sequence[Sample]) -> Example:
    """The latents with what the frozen model answers to them."""
    t, text = _distill.times(work.task.frozen, here), work.task.text(here)
    null, guided = answers(work.task.frozen, x, t, text, work.task.empty, work.recipe.loss_guidance)
    return Example(x, t, text, null, guided)


# --- the losses -------------------------------------------------------------------------------------------------------
def answers(
    model: Backbone,
    x: Tensor,
    t: Tensor,
    text: Embedding,
    empty: Embedding,
    guidance: float,
    null_gradient: bool = True,
) -> tuple[Tensor, Tensor]:
    """ε(∅) and ε(∅) + w (ε(c) − ε(∅)), each as `x`; without `null_gradient`, ε(∅) is a constant."""
    nothing = empty.expand(len(x))
    if null_gradient:
        both = model.predict(torch.cat([x, x]), torch.cat([t, t]), concatenate([nothing, text]))
        null, concept = both.chunk(2)
    else:
        concept = model.predict(x, t, text)
        with torch.no_grad():
            null = model.predict(x, t, nothing)
    return null, concept if guidance == 1 else null + guidance * (concept - null)


def terms(item: Example, null: Tensor, guided: Tensor, eta: float) -> Terms:
    """The four losses of the trained model's answers `null` (Û) and `guided` (Ĝ), in float32 or wider.

    L_preserve = MSE(Ĝ, U + η(G − U)) and L_uncond-early = MSE(Û, U) at the first half of the rows;
    L_erase = MSE(Ĝ, U − η(G − U)) and L_uncond-late = MSE(Û, U) at the second.
    """
    first, second = slice(len(null) // 2), slice(len(null) // 2, None)
    push = eta * (item.guided - item.null)
    return Terms(
        erase=_mse(guided[second], (item.null - push)[second]),
        preserve=_mse(guided[first], (item.null + push)[first]),
        uncond_early=_mse(null[first], item.null[first]),
        uncond_late=_mse(null[second], item.null[second]),
    )


def _mse(a: Tensor, b: Tensor) -> Tensor:
    wide = torch.promote_types(a.dtype, torch.float32)
    return torch.nn.functional.mse_loss(a.to(wide), b.to(wide))


def total(parts: Terms, weights: Weights) -> Tensor:
    """The weighted sum."""
    return torch.stack([w * part for w, part in zip(weights, parts, strict=True)]).sum()


def losses(work: Job, item: Example, given: Given) -> Terms:
    """The four losses of the trained model on an example; differentiable."""
    recipe, frozen = work.recipe, work.task.frozen
    with frozen.substituted(given()):
        null, guided = answers(
            frozen, item.x, item.t, item.text, work.task.empty, recipe.loss_guidance, recipe.null_gradient
        )
    return terms(item, null, guided, recipe.eta)


# --- the loop ---------------------------------------------------------------------------------------------------------
def fit(
    work: Job,
    plan: Sequence[Sequence[Pair]],
    given: Given,
    parameters: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
) -> list[tuple[float, ...]]:
    """Train `parameters`, one step an iteration of the plan; returns the four losses of each."""
    history: list[tuple[float, ...]] = []
    journal = work.task.frozen.journal
    at = examples(work, plan, given, journal)

    def loss_at(i: int) -> Tensor:
        parts = losses(work, at(i), given)
        history.append(tuple(float(part.detach()) for part in parts))
        return total(parts, work.recipe.weights)

    keeping = Keeping(journal, also={"history": history})
    minimise("ant", parameters, loss_at, iterations=len(plan), optimizer=optimizer, keeping=keeping)
    return history


def course(history: Sequence[tuple[float, ...]]) -> dict[str, dict[str, float]]:
    """Each loss over the first and the last tenth of the training, for an edit's notes."""
    return {name: ends([row[i] for row in history]) for i, name in enumerate(Terms._fields)}
