"""Training towards a guided target of the frozen model: the layers, the latents, the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from benchmark.backbones.base import Backbone, Embedding, Layer, concatenate
from benchmark.backbones.journal import Journal
from benchmark.errors import BadInput, BenchError
from benchmark.interface import LowRank
from methods._loop import Keeping, minimise
from methods._lora import LoRA

_PACK = 16  # samples that walk together where the walks are made beforehand
_KEYS_VALUES = (".to_k", ".to_v", ".add_k_proj", ".add_v_proj")  # of a U-Net's, of a flow transformer's text side
_FINE = 1000  # the grid of times that two of the rules take their t from


class Settings(Protocol):
    """The fields of ESD that the loop reads."""

    @property
    def iterations(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def eta(self) -> float: ...
    @property
    def start_guidance(self) -> float: ...
    @property
    def steps(self) -> int: ...
    @property
    def latents_from(self) -> str: ...
    @property
    def timestep_rule(self) -> str: ...


class Ranked(Settings, Protocol):
    """With the one that says whether low-rank changes are trained."""

    @property
    def rank(self) -> int: ...


class Sample(NamedTuple):
    """One noisy latent to train on, before it is made."""

    concept: int
    seed: int
    """Of the initial noise."""
    start: int
    stop: int
    """The walk takes the sampler's steps `start` to `stop - 1`."""
    grid: int
    time: int
    """t is `timesteps(grid)[time]`."""


@dataclass(frozen=True)
class Task:
    """What all samples share."""

    frozen: Backbone
    texts: Embedding
    """One row a concept: what the student is asked for, and the walks lead to."""
    removed: Embedding | None
    """One row a concept: what is taken out of the prompts in `texts`; None where they are the concepts themselves."""
    empty: Embedding
    settings: Settings

    def text(self, samples: Sequence[Sample]) -> Embedding:
        """`(batch, …)`: each sample's prompt."""
        return self.texts[[s.concept for s in samples]]


class Example(NamedTuple):
    """Training data of one iteration."""

    x: Tensor
    """`(batch, *latent_shape)`"""
    t: Tensor
    """`(batch,)`"""
    text: Embedding
    target: Tensor
    """As `x`."""


Examples = Callable[[int], Example]
"""The training data of an iteration, made when its turn comes."""


class Distilled(NamedTuple):
    """What training changed."""

    weights: dict[str, Tensor]
    """New values."""
    deltas: dict[str, LowRank]


def distill(
    backbone: Backbone,
    prompts: Sequence[str],
    settings: Ranked,
    train: str,
    seed: int,
    removed: Sequence[str] | None = None,
) -> tuple[Distilled, list[float]]:
    """What training changed, and the loss of each iteration.

    `removed`, where given, is what each prompt shall lose; else a prompt is itself what is erased.

    BenchError when a loss is not finite. All randomness comes from `seed`, through generators of our own.
    """
    gone = None if removed is None else backbone.embed(removed)
    task = Task(backbone, backbone.embed(prompts), gone, backbone.embed([""]), settings)
    plan = draw(np.random.default_rng(seed), settings, len(prompts))
    names = trained_names(backbone.layers(), train)
    return _low_rank(task, plan, names, settings, seed) if settings.rank else _weights(task, plan, names)


def _weights(task: Task, plan: Sequence[Sequence[Sample]], names: Sequence[str]) -> tuple[Distilled, list[float]]:
    """Train the named tensors themselves."""
    backbone, settings = task.frozen, task.settings
    student = backbone.student(names)  # only what is trained has a second copy
    live, before = student.tensors(), backbone.tensors()
    examples = beforehand(task, plan) if settings.latents_from == "frozen" else as_it_goes(task, student, plan)
    losses = fit(student, [live[n] for n in names], examples, len(plan), settings.lr, backbone.journal)
    changed = {n: live[n].detach().clone() for n in names if not torch.equal(live[n], before[n])}
    return Distilled(changed, {}), losses


def _low_rank(
    task: Task, plan: Sequence[Sequence[Sample]], names: Sequence[str], settings: Ranked, seed: int
) -> tuple[Distilled, list[float]]:
    """Train low-rank changes of those among the named tensors that are matrices."""
    backbone, live = task.frozen, task.frozen.tensors()
    base = {n: live[n] for n in names if live[n].ndim == 2}
    lora = LoRA(base, settings.rank, scale=1.0, generator=torch.Generator().manual_seed(seed), init="gauss")
    examples = beforehand(task, plan) if settings.latents_from == "frozen" else _walked(task, lora, plan)

    def loss_at(i: int) -> Tensor:
        example = examples(i)
        with backbone.substituted(lora.weights()):
            return _loss(backbone, example)

    adam, keeping = torch.optim.Adam(lora.parameters(), lr=settings.lr), Keeping(backbone.journal)
    losses = minimise("esd", lora.parameters(), loss_at, iterations=len(plan), optimizer=adam, keeping=keeping)
    return Distilled({}, lora.deltas()), losses


def _walked(task: Task, lora: LoRA, plan: Sequence[Sequence[Sample]]) -> Examples:
    """Latents from the model with its changes, as they are at that iteration."""

    def at(i: int) -> Example:
        with torch.no_grad(), task.frozen.substituted(lora.weights()):
            x = latents(task, task.frozen, plan[i])
        return example(task, x, plan[i])

    return at


# --- what is trained --------------------------------------------------------------------------------------------------
def trained_names(layers: Iterable[Layer], train: str) -> list[str]:
    """Names of the parameters in the set (see ESD's `train`); BadInput if the model has none of them."""
    names = [name for layer in layers if _is_trained(layer, train) for name in layer.parameters]
    if not names:
        raise BadInput(f"esd trains the layers {train!r}, but this model has none of them; set train to another set")
    return names


def _is_trained(layer: Layer, train: str) -> bool:
    reads_text = layer.part == "cross-attention" and layer.kind != "norm"
    if train == "attention":
        return layer.kind == "linear" and layer.part in ("cross-attention", "self-attention")
    if train == "x":
        return reads_text
    if train == "x-strict":
        return reads_text and layer.name.endswith(_KEYS_VALUES)
    if train == "self":
        return layer.part == "self-attention" and layer.kind != "norm"
    if train == "all":
        return layer.kind in ("linear", "conv")
    if train == "u":  # the first released code's `noxattn`: norms are trained, time embedding and output are not
        return not reads_text and layer.part not in ("time", "output")
    return not reads_text and layer.kind in ("linear", "conv")  # u-2025


# --- what it is trained on --------------------------------------------------------------------------------------------
def draw(rng: np.random.Generator, settings: Settings, concepts: int) -> list[list[Sample]]:
    """All samples of all iterations: `iterations` lists of `batch`."""
    return [[_draw(rng, settings, concepts) for _ in range(settings.batch)] for _ in range(settings.iterations)]


def _draw(rng: np.random.Generator, settings: Settings, concepts: int) -> Sample:
    steps, rule = settings.steps, settings.timestep_rule
    concept, seed = int(rng.integers(concepts)), int(rng.integers(2**31))
    k = int(rng.integers(1 if rule == "alt" else 0, steps))
    if rule == "aligned":
        return Sample(concept, seed, 0, k, steps, k)
    if rule == "alt":
        return Sample(concept, seed, 0, k, _FINE, k * _FINE // steps)
    # compvis counts k from the image's end; its sampler misses the first step and stops k early, or (k = 0) never
    label = int(rng.integers(k * _FINE // steps, (k + 1) * _FINE // steps))
    return Sample(concept, seed, 1, min(steps, steps + 1 - k), _FINE, min(_FINE - label, _FINE - 1))


def times(model: Backbone, samples: Sequence[Sample]) -> Tensor:
    """`(batch,)`"""
    return torch.stack([model.timesteps(s.grid)[s.time] for s in samples])


@torch.no_grad()
def latents(task: Task, model: Backbone, samples: Sequence[Sample]) -> Tensor:
    """Walk all samples at once, each to its own stop, where it leaves the batch: `(batch, *latent_shape)`."""
    steps, guidance = task.settings.steps, task.settings.start_guidance
    x, grid = model.noise([s.seed for s in samples]), model.timesteps(steps)
    for i in range(min(s.start for s in samples), max(s.stop for s in samples)):
        live = [j for j, s in enumerate(samples) if s.start <= i < s.stop]
        text, empty = task.text([samples[j] for j in live]), task.empty.expand(len(live))
        x[live] = model.step(x[live], i, model.guided(x[live], grid[i], text, empty, guidance), steps)
    return x


@torch.no_grad()
def example(task: Task, x: Tensor, samples: Sequence[Sample]) -> Example:
    """The latents with what the frozen model, guided away from the concept, predicts for them."""
    t, text = times(task.frozen, samples), task.text(samples)
    texts = [task.empty.expand(len(x)), text]
    if task.removed is not None:
        texts.append(task.removed[[s.concept for s in samples]])
    n = len(texts)
    predictions = task.frozen.predict(torch.cat([x] * n), torch.cat([t] * n), concatenate(texts)).chunk(n)
    null, concept = predictions[0], predictions[-1]
    start = null if task.removed is None else predictions[1]
    return Example(x, t, text, away(start, null, concept, task.settings.eta))


def away(start: Tensor, null: Tensor, concept: Tensor, eta: float) -> Tensor:
    """start − η [ε(c) − ε(∅)]. Paper, eq. 6, has start = ε(∅); with `erase_from` it is ε of that prompt (2025 code)."""
    return start - eta * (concept - null)


def as_it_goes(task: Task, student: Backbone, plan: Sequence[Sequence[Sample]]) -> Examples:
    """Latents from the student, as it is at that iteration."""
    return lambda i: example(task, latents(task, student, plan[i]), plan[i])


def beforehand(task: Task, plan: Sequence[Sequence[Sample]]) -> Examples:
    """Latents from the frozen model: nothing depends on the training, so all are made first, in full batches."""
    flat = [s for samples in plan for s in samples]
    x, target = task.frozen.journal.once("latents", lambda: packed(task, flat))
    starts = np.cumsum([0, *(len(samples) for samples in plan)]).tolist()

    def at(i: int) -> Example:
        part = slice(starts[i], starts[i + 1])
        return Example(x[part], times(task.frozen, plan[i]), task.text(plan[i]), target[part])

    return at


def packed(task: Task, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Latents and targets of all samples, in their order: two of `(samples, *latent_shape)`."""
    # neighbours in this order stop at about the same step, so that packs stay full to their end
    order = sorted(range(len(samples)), key=lambda j: samples[j].stop)
    packs = [[samples[j] for j in order[i : i + _PACK]] for i in range(0, len(order), _PACK)]
    made = [example(task, latents(task, task.frozen, pack), pack) for pack in packs]
    back = torch.tensor(order).argsort()
    return torch.cat([m.x for m in made])[back], torch.cat([m.target for m in made])[back]


# --- the loop ---------------------------------------------------------------------------------------------------------
def fit(
    student: Backbone, parameters: Sequence[Tensor], examples: Examples, iterations: int, lr: float, journal: Journal
) -> list[float]:
    """Train `parameters` of `student` in place by Adam, one step an example; returns the losses.

    Half-precision parameters have float32 masters: Adam's steps would round away in them.
    """
    for p in parameters:
        p.requires_grad_(True)
    masters = [p if p.dtype == torch.float32 else p.detach().float().requires_grad_() for p in parameters]
    adam = torch.optim.Adam(masters, lr=lr)
    losses: list[float] = []
    held = {"masters": masters, "adam": adam, "losses": losses}
    start = journal.resume("training", held) or 0
    _take(parameters, masters)
    with torch.enable_grad():
        for i in range(start, iterations):
            loss = _loss(student, examples(i))
            losses.append(loss.item())
            if not np.isfinite(losses[-1]):
                raise BenchError(f"esd: the loss is {losses[-1]} at iteration {i} of training; lower lr, now {lr:g}")
            adam.zero_grad()
            torch.autograd.backward(loss)
            _update(adam, parameters, masters)
            journal.done("training", i + 1, held)
    for p in parameters:
        p.requires_grad_(False)
    return losses


def _loss(student: Backbone, example: Example) -> Tensor:
    prediction = student.predict(example.x, example.t, example.text)
    return torch.nn.functional.mse_loss(prediction.float(), example.target.float())


def _update(adam: torch.optim.Adam, parameters: Sequence[Tensor], masters: Sequence[Tensor]) -> None:
    """One step on the masters, whose values the parameters then take."""
    for p, m in zip(parameters, masters, strict=True):
        if m is not p:
            m.grad, p.grad = None if p.grad is None else p.grad.float(), None
    adam.step()
    _take(parameters, masters)


def _take(parameters: Sequence[Tensor], masters: Sequence[Tensor]) -> None:
    """Give the parameters their masters' values."""
    with torch.no_grad():
        for p, m in zip(parameters, masters, strict=True):
            if m is not p:
                p.copy_(m)
