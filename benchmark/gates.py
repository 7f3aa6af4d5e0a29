"""Residual attention gates: what they add to text projections, how they are put on a model, checked and stacked.

Lee et al., "Concept Pinpoint Eraser", ICLR 2025 (arXiv:2506.22806). With E the text's tokens, for each concept

    Ê = softmax((E W_q)(E W_k)ᵀ) E        one head, temperature 1, no mask
    g_t = σ(w · Ê_t)                      the gate, one number a token

and a projection W puts out W E_t + U D g_t Ê_t, with all of g, Ê, U and D those of the concept whose g_t is highest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.nn.functional import pad

from benchmark.backbones.base import Backbone, Change, Projection
from benchmark.errors import BenchError, did_you_mean
from benchmark.interface import Gates, LowRank


# --- the forward computation ------------------------------------------------------------------------------------------
class Gated(NamedTuple):
    """What a gate makes of a text, the same for all projections."""

    tokens: Tensor
    """`(batch, length, dim)`: g Ê of the winning concept."""
    winner: Tensor
    """`(batch, length)`: index of the concept whose gate is highest; the first of equals."""


def gated(tokens: Tensor, gates: Gates) -> Gated:
    """Gated attention over `tokens` `(batch, length, dim)`; differentiable.

    Concepts are gone through one by one, so that the numbers of one do not depend on which others are stacked with it.
    """
    best, result = None, None
    winner = torch.zeros(tokens.shape[:2], dtype=torch.long, device=tokens.device)
    for n, (query, key, vector) in enumerate(zip(gates.query, gates.key, gates.vector, strict=True)):
        attended = ((tokens @ query) @ (tokens @ key).mT).softmax(-1) @ tokens
        gate = (attended * vector).sum(-1).sigmoid()  # (batch, length)
        if best is None or result is None:
            best, result = gate, gate[..., None] * attended
            continue
        higher = gate > best
        best, winner = torch.where(higher, gate, best), torch.where(higher, n, winner)
        result = torch.where(higher[..., None], gate[..., None] * attended, result)
    if result is None:
        raise ValueError("expected gates of at least one concept")
    return Gated(result, winner)


def residual(text: Gated, change: LowRank) -> Tensor:
    """`(batch, length, out)`: what one projection's output is increased by."""
    up, down = (
        change.up[text.winner],
        change.down[text.winner],
    )  # (batch, length, out, rank), (batch, length, rank, dim)
    inner = (down * text.tokens[..., None, :]).sum(-1)
    return (up * inner[..., None, :]).sum(-1)


# --- on a model -------------------------------------------------------------------------------------------------------
@contextmanager
def attached(backbone: Backbone, gates: Gates) -> Iterator[None]:
    """While the block runs, the gates act on the backbone's projections; its tensors are never written.

    Projections whose residual is zero whatever the text are left out: adding zeros would turn -0 into 0.
    """
    here = _on(gates, backbone.device)
    residuals = _Residuals(here)
    with backbone.attached({name: residuals.change(name) for name in here.changes if _acts(here.changes[name])}):
        yield


@final
class _Residuals:
    """Residuals of the last text seen: all projections and sampling steps share them, for text alone decides them."""

    def __init__(self, gates: Gates) -> None:
        self._gates = gates
        self._seen: tuple[Tensor, int] | None = None
        self._values: Tensor | None = None
        self._text: Gated | None = None
        self._made: dict[str, Tensor] = {}

    def change(self, name: str) -> Change:
        """What is attached to one projection."""

        def add(tokens: Tensor, output: Tensor) -> Tensor:
            return output + self._residual(name, tokens).to(output.dtype)

        return add

    def _residual(self, name: str, tokens: Tensor) -> Tensor:
        if tokens.requires_grad:  # a kept graph could be walked back only once
            return residual(gated(tokens.float(), self._gates), self._gates.changes[name])
        if self._text is None or not self._same(tokens):
            self._text, self._values, self._made = gated(tokens.float(), self._gates), tokens.clone(), {}
        self._seen = None if tokens.is_inference() else (tokens, tokens._version)
        if name not in self._made:
            self._made[name] = residual(self._text, self._gates.changes[name])
        return self._made[name]

    def _same(self, tokens: Tensor) -> bool:
        # within one forward all projections get one tensor; between forwards the values are compared, not trusted
        if self._seen is not None and self._seen[0] is tokens and self._seen[1] == tokens._version:
            return True
        return self._values is not None and tokens.dtype == self._values.dtype and torch.equal(tokens, self._values)


def _on(gates: Gates, device: torch.device) -> Gates:
    """Float32 whatever the model's dtype: one concept's gate must not tie with another's by rounding."""

    def moved(t: Tensor) -> Tensor:
        return t.detach().to(device, torch.float32)

    changes = {name: LowRank(moved(change.up), moved(change.down)) for name, change in gates.changes.items()}
    return Gates(query=moved(gates.query), key=moved(gates.key), vector=moved(gates.vector), changes=changes)


def acts(gates: Gates) -> bool:
    """Whether any projection's residual can be other than zero."""
    return any(_acts(change) for change in gates.changes.values())


def _acts(change: LowRank) -> bool:
    # per concept and rank: a residual needs both factors
    return bool((change.up.any(1) & change.down.any(2)).any())


# --- checking ---------------------------------------------------------------------------------------------------------
def check(backbone: Backbone, gates: Gates) -> None:
    """BenchError unless every tensor of the gates fits the backbone's projections and is finite."""
    readers = {p.name: p for p in backbone.projections() if p.role != "pooled"}  # a pooled vector has no tokens
    for name in gates.changes:
        if name not in readers:
            raise BenchError(f"the gates do not fit {backbone.name}: {did_you_mean(name, readers, what='projection')}")
    if not gates.changes or gates.vector.ndim != 2 or not len(gates.vector):
        raise BenchError(f"expected gates of at least one concept and one projection, got {_count(gates)}")
    for what, tensor, wanted in _shapes(gates, readers):
        _fits(what, tensor, wanted)


def _shapes(gates: Gates, readers: dict[str, Projection]) -> Iterator[tuple[str, Tensor, tuple[int, ...]]]:
    """Every tensor with its name and the shape it should have."""
    concepts, width = len(gates.vector), _last(gates.query)
    dim = readers[next(iter(gates.changes))].weight.shape[1]
    yield "vector", gates.vector, (concepts, dim)
    yield "query", gates.query, (concepts, dim, width)
    yield "key", gates.key, (concepts, dim, width)
    for name, (up, down) in gates.changes.items():
        out, dim = readers[name].weight.shape
        yield f"up of {name}", up, (concepts, out, _last(up))
        yield f"down of {name}", down, (concepts, _last(up), dim)


def _last(tensor: Tensor) -> int:
    return next(iter(tensor.shape[::-1]), 0)


def _count(gates: Gates) -> str:
    return f"a gate vector of shape {tuple(gates.vector.shape)} and {len(gates.changes)} projections"


def _fits(what: str, tensor: Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != wanted or not tensor.is_floating_point():
        raise BenchError(
            f"the gates' {what} should be {wanted} of floating point, got {tuple(tensor.shape)} {tensor.dtype}"
        )
    if not tensor.isfinite().all():
        raise BenchError(f"the gates' {what} holds values that are not finite: the method diverged")


# --- stacking ---------------------------------------------------------------------------------------------------------
def stacked(parts: Sequence[Gates]) -> Gates:
    """All concepts in one: the gates compete for every token, as modules that were trained apart do in the paper.

    Narrower attention, lower ranks and projections that a part leaves alone are filled with zeros: they change nothing.
    """
    if len(parts) == 1:
        return parts[0]
    width = max(g.query.shape[-1] for g in parts)
    names = list(dict.fromkeys(name for g in parts for name in g.changes))
    return Gates(
        query=torch.cat([_wider(g.query, width) for g in parts]),
        key=torch.cat([_wider(g.key, width) for g in parts]),
        vector=torch.cat([g.vector for g in parts]),
        changes={name: _stacked(name, parts) for name in names},
    )


def _stacked(name: str, parts: Sequence[Gates]) -> LowRank:
    known = [g.changes[name] for g in parts if name in g.changes]
    rank, like = max(c.up.shape[-1] for c in known), known[0]
    filled = [g.changes[name] if name in g.changes else _nothing(like, len(g.vector)) for g in parts]
    up = torch.cat([_wider(c.up, rank) for c in filled])
    return LowRank(up, torch.cat([_wider(c.down.mT, rank).mT for c in filled]))


def _nothing(like: LowRank, concepts: int) -> LowRank:
    return LowRank(*(part.new_zeros(concepts, *part.shape[1:]) for part in like))


def _wider(tensor: Tensor, width: int) -> Tensor:
    return pad(tensor, (0, width - tensor.shape[-1]))
