"""Fine-grained attenuation: images of the concepts, what the frozen model predicts on them, three losses, one loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, final

import numpy as np
import torch
from torch import Tensor

from benchmark.backbones.base import Backbone, Embedding, concatenate
from benchmark.backbones.journal import Resumable
from benchmark.interface import LowRank
from methods._loop import Keeping, ends, minimise
from methods._lora import LoRA, linear_weights

_PACK = 16  # samples that go through the frozen model together
_FINE = 1000  # the grid of times that t is drawn from
_ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")
_TEXT_SIDE = (".add_q_proj", ".add_k_proj", ".add_v_proj", ".to_add_out")  # of a flow transformer's double blocks

Pair = tuple[int, int]
"""Whose noised image, and the prompt it is looked at with: 0 is the target, 1 … K the adjacent, −1 the empty prompt."""
OWN, NULL = (0, 0), (0, -1)


class Settings(Protocol):
    """The fields of FADE that training reads."""

    @property
    def lambda_erasing(self) -> float: ...
    @property
    def lambda_guidance(self) -> float: ...
    @property
    def lambda_adjacency(self) -> float: ...
    @property
    def margin(self) -> float: ...
    @property
    def rank(self) -> int: ...
    @property
    def scale(self) -> float: ...
    @property
    def self_attention(self) -> bool: ...
    @property
    def iterations(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def batch(self) -> int: ...
    @property
    def images(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def guidance(self) -> float: ...


class Draw(NamedTuple):
    """One image, time and noise, shared by all concepts."""

    image: int
    time: int
    """t is `timesteps(1000)[time]`."""
    seed: int
    """Of the noise."""


class Example(NamedTuple):
    """Training data of one iteration."""

    noisy: Mapping[int, Tensor]
    """Concept to its x_t, `(batch, *latent_shape)`."""
    t: Tensor
    """`(batch,)`"""
    frozen: Mapping[Pair, Tensor]
    """What the frozen model predicts, as `noisy`."""


@dataclass(frozen=True)
class Task:
    """What all iterations share."""

    backbone: Backbone
    texts: Embedding
    """Target, adjacent ones, empty prompt: `(K + 2, …)`."""
    latents: Tensor
    """Clean ones: `(K + 1, images, *latent_shape)`."""
    settings: Settings

    @property
    def adjacent(self) -> range:
        """Indices of the adjacent concepts."""
        return range(1, len(self.latents))

    @property
    def trained(self) -> list[Pair]:
        """What the model with its modules predicts in an iteration."""
        kept = [(k, k) for k in self.adjacent] if self.settings.lambda_adjacency else []
        return [OWN, *kept]

    @property
    def asked(self) -> list[Pair]:
        """What of the frozen model the terms in use need."""
        s = self.settings
        erasing = [OWN, *((0, k) for k in self.adjacent)] if s.lambda_erasing else []
        guidance = [NULL] if s.lambda_guidance else []
        return [*erasing, *guidance, *((k, k) for k in self.adjacent if s.lambda_adjacency)]


def train(
    backbone: Backbone, prompts: Sequence[str], settings: Settings, seed: int
) -> tuple[dict[str, LowRank], dict[str, Any]]:
    """The modules' changes, and notes; `prompts` are the target's and those of its adjacent concepts.

    BenchError when a loss is not finite. All randomness comes from `seed`, through generators of our own.
    """
    rng = np.random.default_rng(seed)
    task = prepare(backbone, prompts, settings, rng)
    lora = modules(backbone, settings, seed)
    examples = Examples(task, draw(rng, settings))
    parameters = lora.parameters()
    losses = minimise(
        "fade_fg",
        parameters,
        lambda i: total(task, lora, examples(i)),
        iterations=settings.iterations,
        optimizer=torch.optim.AdamW(parameters, lr=settings.lr),
        keeping=Keeping(backbone.journal, also={"examples": examples}),
    )
    return lora.deltas(), {"prompts": list(prompts), "modules": len(lora.base), **ends(losses)}


def modules(backbone: Backbone, settings: Settings, seed: int) -> LoRA:
    """Untrained modules on the attention's queries, keys, values and outputs."""
    joint = backbone.family == "transformer-flow"
    parts = ["cross-attention", *(["self-attention"] if settings.self_attention or joint else [])]
    base = linear_weights(backbone.layers(), backbone, parts=parts, ends=(*_ATTENTION, *_TEXT_SIDE))
    return LoRA(base, settings.rank, scale=settings.scale, generator=torch.Generator().manual_seed(seed))


# --- what it is trained on --------------------------------------------------------------------------------------------
@torch.no_grad()
def prepare(backbone: Backbone, prompts: Sequence[str], settings: Settings, rng: np.random.Generator) -> Task:
    """Encode the prompts and make the images of each, from the same noises, by the frozen model."""
    seeds = [int(s) for s in rng.integers(2**31, size=settings.images)]
    texts = backbone.embed([*prompts, ""])
    rows = [(concept, seed) for concept in range(len(prompts)) for seed in seeds]
    packs = [rows[i : i + _PACK] for i in range(0, len(rows), _PACK)]
    latents = backbone.journal.once(
        "images", lambda: torch.cat([_walk(backbone, texts, pack, settings) for pack in packs])
    )
    return Task(backbone, texts, latents.reshape(len(prompts), settings.images, *latents.shape[1:]), settings)


def _walk(backbone: Backbone, texts: Embedding, rows: Sequence[tuple[int, int]], settings: Settings) -> Tensor:
    noise, text = backbone.noise([seed for _, seed in rows]), texts[[concept for concept, _ in rows]]
    empty = texts[[-1] * len(rows)]
    return backbone.trajectory(noise, text, empty, steps=settings.steps, guidance=settings.guidance)


def draw(rng: np.random.Generator, settings: Settings) -> list[Draw]:
    """`iterations · batch` draws; the first time of the grid is left out: there nothing but noise is left to see."""
    count = settings.iterations * settings.batch
    columns = (rng.integers(low, high, size=count) for low, high in ((0, settings.images), (1, _FINE), (0, 2**31)))
    return [Draw(int(image), int(time), int(seed)) for image, time, seed in zip(*columns, strict=True)]


@final
class Examples(Resumable):
    """One an iteration. The frozen model does not depend on the training: it predicts for many at once, the last of
    which are held."""

    def __init__(self, task: Task, draws: Sequence[Draw]) -> None:
        self._task, self._draws = task, draws
        self._pack = max(1, _PACK // task.settings.batch)  # iterations
        self._which, self._made = -1, Example({}, torch.empty(0), {})

    def __call__(self, i: int) -> Example:
        batch = self._task.settings.batch
        self._have(i // self._pack)
        start = i % self._pack * batch
        part = slice(start, start + batch)
        noisy = {c: x[part] for c, x in self._made.noisy.items()}
        return Example(noisy, self._made.t[part], {p: y[part] for p, y in self._made.frozen.items()})

    def _have(self, which: int) -> None:
        if which != self._which:
            size = self._pack * self._task.settings.batch
            self._which, self._made = which, example(self._task, self._draws[which * size : (which + 1) * size])

    def state(self) -> int:
        """Which are held; they are soon made again."""
        return self._which

    def load(self, state: int) -> None:
        """See the base."""
        self._have(state)


@torch.no_grad()
def example(task: Task, draws: Sequence[Draw]) -> Example:
    """Noise the drawn images of all concepts, and ask the frozen model."""
    b, images = task.backbone, [d.image for d in draws]
    t, noise = b.timesteps(_FINE)[[d.time for d in draws]], b.noise([d.seed for d in draws])
    used = sorted({concept for concept, _ in (*task.trained, *task.asked)})
    noisy = {c: b.noisy(task.latents[c, images], noise, t) for c in used}
    frozen = {(c, p): b.predict(noisy[c], t, task.texts[[p] * len(draws)]) for c, p in task.asked}
    return Example(noisy, t, frozen)


# --- the losses -------------------------------------------------------------------------------------------------------
def distance(a: Tensor, b: Tensor) -> Tensor:
    """‖a − b‖² as the mean over all elements, float32 or wider."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return (a.to(wide) - b.to(wide)).square().mean()


def erasing(own: Tensor, adjacent: Sequence[Tensor], target: Tensor, margin: float) -> Tensor:
    """max(0, mean_a ‖own − a‖² − ‖own − target‖² + δ): nearer to the neighbours than to itself, by δ."""
    near = torch.stack([distance(own, a) for a in adjacent]).mean()
    return (near - distance(own, target) + margin).relu()


def adjacency(changed: Sequence[Tensor], frozen: Sequence[Tensor]) -> Tensor:
    """mean_a ‖changed − frozen‖²."""
    return torch.stack([distance(c, f) for c, f in zip(changed, frozen, strict=True)]).mean()


def total(task: Task, lora: LoRA, example: Example) -> Tensor:
    """The weighted sum of the terms in use."""
    with task.backbone.substituted(lora.weights()):
        changed = predictions(task, example)
    return objective(task, changed, example.frozen)


def predictions(task: Task, example: Example) -> dict[Pair, Tensor]:
    """What the model, as it is now, predicts for the trained pairs: one batch."""
    pairs, batch = task.trained, len(example.t)
    x = torch.cat([example.noisy[c] for c, _ in pairs])
    text = concatenate([task.texts[[p] * batch] for _, p in pairs])
    out = task.backbone.predict(x, example.t.repeat(len(pairs)), text)
    return dict(zip(pairs, out.chunk(len(pairs)), strict=True))


def objective(task: Task, changed: Mapping[Pair, Tensor], frozen: Mapping[Pair, Tensor]) -> Tensor:
    """λ_er L_er + λ_guid L_guid + λ_adj L_adj; a term whose λ is 0 is not computed."""
    s, own = task.settings, changed[OWN]
    near, kept = [(0, k) for k in task.adjacent], [(k, k) for k in task.adjacent]
    loss = torch.zeros((), device=own.device)
    if s.lambda_erasing:
        loss = loss + s.lambda_erasing * erasing(own, [frozen[p] for p in near], frozen[OWN], s.margin)
    if s.lambda_guidance:
        loss = loss + s.lambda_guidance * distance(own, frozen[NULL])
    if s.lambda_adjacency:
        loss = loss + s.lambda_adjacency * adjacency([changed[p] for p in kept], [frozen[p] for p in kept])
    return loss
