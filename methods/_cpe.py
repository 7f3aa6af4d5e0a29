"""CPE's training: text in, gates out.

All losses are mean squares of W a + U D Ẽ, with Ẽ = g Ê the gated text, U with 1/r in it, and a an offset in the text:
(1 + η)(e − n) for the erasing loss, that plus δ for the adversarial one, δ alone for the adversary and 0 for anchors.
Multiplied out, they need nothing as wide as the projections' outputs: with z_ℓ = D_ℓ Ẽ,

    aᵀ M a + 2 Σ aᵀ B_ℓ z_ℓ + Σ z_ℓᵀ C_ℓ z_ℓ        M = Σ c_ℓ W_ℓᵀ W_ℓ,  B_ℓ = c_ℓ W_ℓᵀ U_ℓ,  C_ℓ = c_ℓ U_ℓᵀ U_ℓ

where c_ℓ is ω_ℓ over the numbers of layers and of outputs. So a step costs milliseconds without an accelerator.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from benchmark.backbones.base import Backbone
from benchmark.interface import Gates, LowRank
from methods._loop import UNKEPT, Keeping, ends, minimise

if TYPE_CHECKING:
    from methods.cpe import CPE, Settings, Task

_PACK = 64  # prompts encoded at once
_CYCLES = 2  # of the first stage's cosine


def train(backbone: Backbone, tasks: Sequence[Task], method: CPE, seed: int) -> tuple[Gates, list[dict[str, Any]]]:
    """The tasks' modules, stacked along the concepts in their order, and a note on each."""
    model, modules, notes = read(backbone), [], []
    for i, task in enumerate(tasks):
        alone = partial(_trained, backbone, model, task, method, _generator(seed, task.name))
        values, note = backbone.journal.once(f"name-{i}", alone)
        modules.append(_module(values))
        notes.append(note)
    return stacked(modules, model), notes


Values = tuple[Tensor, Tensor | None, Tensor, Sequence[Tensor], Sequence[Tensor]]
"""A module's query, key (None where it is the query), vector, up and down."""


def _trained(
    backbone: Backbone, model: Model, task: Task, method: CPE, generator: torch.Generator
) -> tuple[Values, dict[str, Any]]:
    """What a journal keeps of one concept."""
    module, note = _train(backbone, model, task, method, generator)
    m = module.frozen()
    return (m.query, None if m.key is m.query else m.key, m.vector, m.up, m.down), note


def _module(values: Values) -> Module:
    query, key, vector, up, down = values
    return Module(query, query if key is None else key, vector, tuple(up), tuple(down))


def _generator(seed: int, name: str) -> torch.Generator:
    """One a concept: its module does not depend on which others are erased, or in which order."""
    digest = hashlib.sha256(f"{seed}|{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


# --- the model --------------------------------------------------------------------------------------------------------
class Group(NamedTuple):
    """Projections of one shape."""

    names: tuple[str, ...]
    weight: Tensor
    """`(layers, out, dim)`"""
    share: Tensor
    """`(layers,)`: c, the Lipschitz weight over the numbers of outputs and of all layers."""


class Model(NamedTuple):
    """All that training needs of the denoiser."""

    groups: tuple[Group, ...]
    square: Tensor
    """`(dim, dim)`: M."""


def read(backbone: Backbone, dtype: torch.dtype = torch.float32) -> Model:
    """The projections that read text tokens, in groups of one shape."""
    omega = lipschitz(backbone)
    weights = {p.name: p.weight.detach().to(dtype) for p in backbone.projections() if p.name in omega}
    shapes = dict.fromkeys(w.shape for w in weights.values())
    grouped = [[n for n, w in weights.items() if w.shape == shape] for shape in shapes]
    groups = tuple(
        Group(
            tuple(names),
            torch.stack([weights[n] for n in names]),
            torch.stack([omega[n] for n in names]).to(dtype) / (len(weights[names[0]]) * len(weights)),
        )
        for names in grouped
    )
    parts = [torch.einsum("l,lod,loe->de", g.share, g.weight, g.weight) for g in groups]
    return Model(groups, torch.stack(parts).sum(0))


def lipschitz(backbone: Backbone) -> dict[str, Tensor]:
    """ω of each projection: σ(W_o) for a value, σ(W_o W_v) σ(W_q) / length for a key; σ is the largest singular value.

    Bounds on how far a change of keys or values moves what its attention puts out; `length` is the text's. Of a flow
    transformer's projection of text tokens, σ(W).
    """
    live, length, found = backbone.tensors(), backbone.embed([""]).tokens.shape[1], {}
    for p in backbone.projections():
        if p.role in ("context", "pooled"):
            if p.role == "context":
                found[p.name] = _sigma(p.weight.double())
            continue
        block = p.name.rsplit(".", 2)[0]
        query, value, out = (live[f"{block}.{part}.weight"].double() for part in ("to_q", "to_v", "to_out.0"))
        key = p.role == "key"
        found[p.name] = _sigma(out @ value) * _sigma(query) / length if key else _sigma(out)
    return found


def _sigma(matrix: Tensor) -> Tensor:
    sigma: Tensor = torch.linalg.matrix_norm(matrix, 2)
    return sigma


# --- the module -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Module:
    """One concept's attention, gate and residuals; `up` and `down` go by the model's groups."""

    query: Tensor
    """`(dim, width)`"""
    key: Tensor
    """`(dim, width)`; the same tensor as `query` where they are tied."""
    vector: Tensor
    """`(dim,)`"""
    up: tuple[Tensor, ...]
    """`(layers, out, rank)` each, without the scale 1/r."""
    down: tuple[Tensor, ...]
    """`(layers, rank, dim)` each."""

    def parameters(self) -> list[Tensor]:
        """What is trained, in a fixed order."""
        attention = [self.query] if self.key is self.query else [self.query, self.key]
        return [*attention, self.vector, *self.up, *self.down]

    def frozen(self) -> Module:
        """The same values, out of reach of gradients."""
        query = self.query.detach()
        key = query if self.key is self.query else self.key.detach()
        up, down = (tuple(t.detach() for t in side) for side in (self.up, self.down))
        return Module(query, key, self.vector.detach(), up, down)


def initial(model: Model, settings: Settings, *, tied: bool, generator: torch.Generator) -> Module:
    """W_q and W_k so small that all tokens attend alike, w = 0 (half open), U = 0: the base model.

    The first two are Kaiming-uniform over dim², with the fan of a `(1, dim, width)` tensor, dim · width: it gives the
    range of W_k in a released module, which no training touched.
    """
    dim, square = model.square.shape[0], model.square

    def uniform(shape: tuple[int, ...], fan: int) -> Tensor:
        drawn = torch.rand(shape, generator=generator, dtype=square.dtype) * 2 - 1
        return (drawn / math.sqrt(fan)).to(square.device)  # Kaiming-uniform with a = √5 has the bound 1/√fan

    wide = (dim, settings.width)
    query, key = (uniform(wide, dim * settings.width) / dim**2 for _ in range(2))
    down = [uniform((len(g.names), settings.rank, dim), dim) for g in model.groups]
    up = [square.new_zeros(*g.weight.shape[:2], settings.rank) for g in model.groups]
    module = Module(query, query if tied else key, square.new_zeros(dim), tuple(up), tuple(down))
    for parameter in module.parameters():
        parameter.requires_grad_()
    return module


def gated(module: Module, tokens: Tensor) -> Tensor:
    """Ẽ = σ(w · Ê) Ê, `(batch, length, dim)`."""
    attended = ((tokens @ module.query) @ (tokens @ module.key).mT).softmax(-1) @ tokens
    return (attended @ module.vector).sigmoid()[..., None] * attended


def stacked(modules: Sequence[Module], model: Model) -> Gates:
    """Modules as gates, one concept each, with 1/r in `up`; narrower or lower ones are filled with zeros."""
    width, rank = max(m.query.shape[1] for m in modules), max(m.up[0].shape[2] for m in modules)

    def wide(t: Tensor, size: int) -> Tensor:
        return torch.nn.functional.pad(t.detach(), (0, size - t.shape[-1]))

    changes: dict[str, LowRank] = {}
    for i, group in enumerate(model.groups):
        up = torch.stack([wide(m.up[i] / m.up[i].shape[2], rank) for m in modules])  # (concepts, layers, out, rank)
        down = torch.stack([wide(m.down[i].mT, rank).mT for m in modules])
        changes |= {name: LowRank(up[:, k].clone(), down[:, k].clone()) for k, name in enumerate(group.names)}
    return Gates(
        query=torch.stack([wide(m.query, width) for m in modules]),
        key=torch.stack([wide(m.key, width) for m in modules]),
        vector=torch.stack([m.vector.detach() for m in modules]),
        changes=changes,
    )


# --- the losses -------------------------------------------------------------------------------------------------------
class Residuals(NamedTuple):
    """What the losses need of a module's residuals, by group."""

    down: tuple[Tensor, ...]
    """`(layers, rank, dim)`"""
    cross: tuple[Tensor, ...]
    """B `(layers, dim, rank)`"""
    inner: tuple[Tensor, ...]
    """C `(layers, rank, rank)`"""


def residuals(model: Model, module: Module) -> Residuals:
    """B and C of the module as it is now."""
    cross, inner = [], []
    for group, up in zip(model.groups, module.up, strict=True):
        scaled = up / up.shape[2]
        weighted = group.share[:, None, None] * scaled
        cross.append(group.weight.mT @ weighted)
        inner.append(scaled.mT @ weighted)
    return Residuals(module.down, tuple(cross), tuple(inner))


def squares(model: Model, found: Residuals, text: Tensor, offset: Tensor | None) -> Tensor:
    """The mean over layers, tokens and outputs of ω (W a + U D Ẽ)², one number a row.

    `text` is Ẽ, and `offset` a; both `(batch, length, dim)`. None is no offset.
    """
    total = text.new_zeros(len(text))
    if offset is not None:
        total = total + ((offset @ model.square) * offset).sum((1, 2))
    for down, cross, inner in zip(*found, strict=True):
        z = text[:, None] @ down.mT  # (batch, layers, length, rank)
        total = total + ((z @ inner) * z).sum((1, 2, 3))
        if offset is not None:
            total = total + 2 * ((offset[:, None] @ cross) * z).sum((1, 2, 3))
    return total / text.shape[1]


class Example(NamedTuple):
    """The text of one step; `(rows, length, dim)` each."""

    concept: Tensor
    """One row, e."""
    neutral: Tensor
    """One row, n."""
    adversaries: Tensor
    """δ; no rows in the first stage."""
    anchors: Tensor
    """The empty prompt first."""


class Weights(NamedTuple):
    """Of the losses."""

    eta: float
    adversarial: float
    keep: float


def module_loss(model: Model, module: Module, example: Example, weights: Weights) -> Tensor:
    """L_er + adversarial · L_adv + keep · L_anc."""
    e, n, deltas, anchors = example
    away = (1 + weights.eta) * (e - n)  # W n + η (W n − W e) − G e = −(W a + U D Ẽ) with this a
    text, found = gated(module, torch.cat([e, e + deltas, anchors])), residuals(model, module)
    erased = 1 + len(deltas)
    missed = squares(model, found, text[:erased], torch.cat([away, away + deltas]))
    moved = squares(model, found, text[erased:], None)
    loss = missed[0] + weights.keep * moved.mean()
    return loss + weights.adversarial * missed[1:].mean() if len(deltas) else loss


def adversary_loss(model: Model, module: Module, found: Residuals, concept: Tensor, deltas: Tensor) -> Tensor:
    """How far the edited model at e + δ is from the original at e; `found` are the module's `residuals`."""
    return squares(model, found, gated(module, concept + deltas), deltas).mean()


# --- anchors ----------------------------------------------------------------------------------------------------------
@torch.no_grad()
def mixtures(pool: Tensor, count: int, noise: float, generator: torch.Generator) -> Tensor:
    """`count` mixtures of two embeddings each, drawn from `pool` `(prompts, length, dim)`, with noise.

    Each of the two has Gaussian noise of `noise` times its norm in every element, and their share is uniform, which is
    the release's Beta(1, 1). Mixed noises are one Gaussian again, so one is drawn.
    """
    if not len(pool):
        return pool
    pick = torch.randint(len(pool), (2, count), generator=generator)
    share = torch.rand(count, generator=generator).to(pool)[:, None, None]
    drawn = torch.randn(count, *pool.shape[1:], generator=generator).to(pool)
    first, second = share * pool[pick[0]], (1 - share) * pool[pick[1]]
    deviation = noise * (first.square().sum((1, 2)) + second.square().sum((1, 2))).sqrt()
    return first + second + deviation[:, None, None] * drawn


def nearest(concept: Tensor, names: Tensor, most: int) -> list[int]:
    """Rows of `names` `(names, length, dim)` with the highest cosine to `concept` `(1, length, dim)`, best first."""
    likeness = torch.nn.functional.cosine_similarity(names.flatten(1), concept.flatten(1))
    return torch.argsort(likeness, descending=True, stable=True)[:most].tolist()


def _embed(backbone: Backbone, prompts: Sequence[str]) -> Tensor:
    """`(prompts, length, dim)` in float32."""
    packs = [prompts[i : i + _PACK] for i in range(0, len(prompts), _PACK)]
    found = [backbone.embed(pack).tokens.float() for pack in packs]
    return torch.cat(found) if found else backbone.embed([""]).tokens.float()[:0]


def _pool(backbone: Backbone, task: Task, most: int) -> Tensor:
    """All anchors' embeddings: the nearest names in every template, and the prompts as they stand."""
    names = _embed(backbone, task.names)
    close = nearest(_embed(backbone, [task.name]), names, most) if len(names) else []
    filled = [t.replace("{}", task.names[i]) for i in close for t in task.templates]
    return _embed(backbone, list(dict.fromkeys([*filled, *task.prompts])))


# --- the loop ---------------------------------------------------------------------------------------------------------
class Text(NamedTuple):
    """Embeddings of a task, `(rows, length, dim)` each."""

    concept: Tensor
    """By template, like `neutral`."""
    neutral: Tensor
    empty: Tensor
    pool: Tensor


@torch.no_grad()
def _text(backbone: Backbone, task: Task, most: int) -> Text:
    concept, neutral = (_embed(backbone, side) for side in zip(*task.pairs, strict=True))
    return Text(concept, neutral, _embed(backbone, [""]), _pool(backbone, task, most))


def _train(
    backbone: Backbone, model: Model, task: Task, method: CPE, generator: torch.Generator
) -> tuple[Module, dict[str, Any]]:
    settings, text = task.settings, _text(backbone, task, method.nearest)
    module = initial(model, settings, tied=method.tied_qk, generator=generator)
    weights = Weights(settings.eta, method.adversarial_weight, settings.keep_weight)
    deltas, losses, journal = text.empty[:0], list[float](), backbone.journal
    held = {"module": module.parameters(), "generator": generator, "losses": losses}
    for stage in range(journal.resume("stages", held) or 0, settings.stages):
        keeping = Keeping(journal, f"stages.{stage}.training", also={"generator": generator})
        if stage and method.adversarial_weight:
            first = keeping._replace(name=f"stages.{stage}.adversary", followed=True)
            deltas = _adversaries(model, module.frozen(), text, task, method, generator, first)

        def loss_at(_: int, deltas: Tensor = deltas) -> Tensor:
            return module_loss(model, module, _example(text, deltas, task, method, generator), weights)

        losses[:] = _fit(module, loss_at, settings, method, keeping, first=stage == 0)
        journal.done("stages", stage + 1, held, hold=True)
    note = {"name": task.name, "neutral": settings.neutral, "anchors": len(text.pool), **ends(losses)}
    return module, note


def _example(text: Text, deltas: Tensor, task: Task, method: CPE, generator: torch.Generator) -> Example:
    k = _template(text, generator)
    drawn = mixtures(text.pool, task.settings.anchors, method.noise, generator)
    return Example(text.concept[k : k + 1], text.neutral[k : k + 1], deltas, torch.cat([text.empty, drawn]))


def _template(text: Text, generator: torch.Generator) -> int:
    return int(torch.randint(len(text.concept), (), generator=generator))


def _fit(
    module: Module, loss_at: Callable[[int], Tensor], settings: Settings, method: CPE, keeping: Keeping, *, first: bool
) -> list[float]:
    """One stage; its optimizer starts afresh."""
    steps = settings.iterations * (settings.first if first else 1)
    peak, cycles = (method.first_lr, _CYCLES) if first else (method.lr, 1)
    return minimise(
        "cpe",
        module.parameters(),
        loss_at,
        iterations=steps,
        optimizer=torch.optim.AdamW(module.parameters(), lr=peak),
        schedule=lambda i: peak * cosine(i, warmup=settings.warmup, steps=steps, cycles=cycles),
        keeping=keeping,
    )


def cosine(i: int, *, warmup: int, steps: int, cycles: int) -> float:
    """The share of the highest rate at step `i`: a linear warm-up from 0, then cosines to 0, each from the top."""
    if i < warmup:
        return i / warmup
    progress = (i - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * (cycles * progress % 1)))


def _adversaries(
    model: Model,
    module: Module,
    text: Text,
    task: Task,
    method: CPE,
    generator: torch.Generator,
    keeping: Keeping = UNKEPT,
) -> Tensor:
    """δ that bring the concept back through the module as it is, whatever the template."""
    length, dim = text.empty.shape[1:]
    drawn = torch.rand(task.settings.adversaries, length, dim, generator=generator) * 2 - 1
    deltas = (drawn / math.sqrt(length * dim) / dim**2).to(text.empty).requires_grad_()
    found = residuals(model, module)

    def loss_at(_: int) -> Tensor:
        k = _template(text, generator)
        return adversary_loss(model, module, found, text.concept[k : k + 1], deltas)

    optimizer = torch.optim.AdamW([deltas], lr=method.adversarial_lr)
    steps = task.settings.iterations
    minimise("cpe's adversary", [deltas], loss_at, iterations=steps, optimizer=optimizer, keeping=keeping)
    return deltas.detach()
