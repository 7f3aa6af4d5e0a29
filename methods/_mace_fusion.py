"""MACE's two linear solves, and which positions of two prompts belong together. Lu et al., CVPR 2024, eqs. 2 and 6.

Both solves have one form. With rows e (contexts) and v (what they shall give), W* minimises

    Σ ‖W e − v‖²  +  the same over kept rows, summed up in C₁ = Σ v eᵀ and C₂ = Σ e eᵀ  +  λ ‖W − W₀‖²

so that W* = (λW₀ + Σ v eᵀ + C₁)(λI + Σ e eᵀ + C₂)⁻¹. Everything is float64. The released code inverts in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_CUTOFF = 1e-10  # eigenvalues below this share of the largest are rounding of the text encoder; their directions stay


# --- positions --------------------------------------------------------------------------------------------------------
def matched(a: Sequence[int], b: Sequence[int], length: int) -> tuple[list[int], list[int]]:
    """Positions that two prompts have in common, of `a` and of `b`, in order and of equal number.

    `a` and `b` are token ids from BOS to EOS without padding; both prompts are padded to `length`. Common are the
    longest common prefix, the longest common suffix of what remains, and as much padding as fits both. What differs,
    the concept and its anchor, is left out.
    """
    prefix = _common(a, b)
    suffix = _common(a[prefix:][::-1], b[prefix:][::-1])
    padding = length - max(len(a), len(b))
    head = list(range(prefix))
    of_a, of_b = ([*head, *range(len(ids) - suffix, len(ids) + padding)] for ids in (a, b))
    return of_a, of_b


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many elements two sequences share from their start."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


# --- solves -----------------------------------------------------------------------------------------------------------
def outer(values: Tensor, contexts: Tensor) -> Tensor:
    """Σ v eᵀ `(out, d)` over rows `values` `(n, out)` and `contexts` `(n, d)`, in float64."""
    return values.double().T @ contexts.double()


class Solver:
    """W ↦ (λW + L)(λI + G)⁻¹ for any number of matrices that read the same rows: one factorisation."""

    def __init__(self, gram: Tensor, ridge: float) -> None:
        """`gram`: G `(d, d)`, symmetric and of no negative eigenvalue. `ridge`: λ, 0 or more."""
        self.gram = gram.double()
        values, self._vectors = torch.linalg.eigh(self.gram)
        values = values.clamp(min=0) + ridge
        kept = values > _CUTOFF * values.max()
        self._inverse = torch.where(kept, 1 / values.where(kept, torch.ones_like(values)), 0)

    def __call__(self, w: Tensor, left: Tensor) -> Tensor:
        """`w`: `(out, d)`; `left`: L `(out, d)`; returns `(out, d)` float64.

        Solved for the change, W + (L − WG)(λI + G)⁻¹: where λ is 0 and the rows do not span all dimensions, W* is the
        minimiser nearest to W, the limit of small λ.
        """
        wide = w.double()
        rest = left.double() - wide @ self.gram
        solved: Tensor = wide + (rest @ self._vectors * self._inverse) @ self._vectors.T
        return solved


def fuse(
    w: Tensor,
    contexts: Tensor,
    targets: Tensor,
    lam: float,
    preserve_c1: Tensor | None = None,
    preserve_c2: Tensor | None = None,
) -> Tensor:
    """W* `(out, d)` float64 of rows `contexts` `(n, d)` that shall give `targets` `(n, out)`.

    `preserve_c1` `(out, d)` and `preserve_c2` `(d, d)` are the kept sums with all their scales multiplied in.
    """
    gram, left = outer(contexts, contexts), outer(targets, contexts)
    if preserve_c1 is not None and preserve_c2 is not None:
        gram, left = gram + preserve_c2.double(), left + preserve_c1.double()
    return Solver(gram, lam)(w, left)


def fuse_all(
    weights: Mapping[str, Tensor],
    changed: Sequence[Mapping[str, Tensor]],
    grams: Sequence[Tensor],
    ridge: float,
    kept: Tensor,
    originals: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """`fuse` for all matrices and concepts at once, without their rows: W* by name, float64.

    Concept i's rows are known by their sum of outer products `grams[i]` `(d, d)`, and its targets by the matrix that
    makes them, v = `changed[i][name]` e: then Σ v eᵀ is that matrix times the gram. `weights` are pulled to by λ. Kept
    rows, C₂ = `kept` `(d, d)` with all scales multiplied in, shall give what `originals` make of them.
    """
    solver = Solver(kept.double() + sum(g.double() for g in grams), ridge)
    return {name: solver(w, _left(name, changed, grams, kept, originals)) for name, w in weights.items()}


def _left(
    name: str,
    changed: Sequence[Mapping[str, Tensor]],
    grams: Sequence[Tensor],
    kept: Tensor,
    originals: Mapping[str, Tensor],
) -> Tensor:
    """Σ v eᵀ + C₁ `(out, d)`."""
    left = originals[name].double() @ kept.double()
    for matrices, gram in zip(changed, grams, strict=True):
        left = left + matrices[name].double() @ gram.double()
    return left
