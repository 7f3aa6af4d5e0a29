"""The ridge regression behind closed-form editing, through one factorisation for all projections.

With rows C (erased), G (guides), P (kept), the minimiser of s_e‖C Wᵀ − G W₀ᵀ‖² + s_p‖P (W − W₀)ᵀ‖² + λ‖W − W₀‖² is

    W₀ (λI + s_e GᵀC + s_p PᵀP) A⁻¹  =  W₀ + W₀ (G − C)ᵀ K,   A = λI + s_e CᵀC + s_p PᵀP,   K = s_e C A⁻¹.

A and K know nothing of W₀, so all projections that read the same text share them, and kept prompts enter A alone.
Where C and P have few rows, R = [√s_e C; √s_p P] gives K from a smaller system: R A⁻¹ = (λI + RRᵀ)⁻¹ R.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from benchmark.backbones.base import Backbone, Embedding

_CHUNK = 32  # prompts encoded at once


@dataclass(frozen=True)
class System:
    """What the projections that read one kind of text (tokens, or the pooled vector) share."""

    erased: Tensor
    """C: `(n, d)`, float64."""
    guides: Tensor
    """G: `(n, d)`, float64."""
    sizes: tuple[int, ...]
    """How many rows each pair has; they sum to n."""
    kept: Tensor
    """P, `(m, d)`, where `few`; else PᵀP, `(d, d)`; float64."""
    few: bool
    """Whether C and P have so few rows that the system of rows is the smaller one by far."""
    ridge: float
    erase_scale: float
    keep_scale: float

    def kept_gram(self) -> Tensor:
        """PᵀP: `(d, d)`, float64."""
        return self.kept.T @ self.kept if self.few else self.kept

    def gram(self) -> Tensor:
        """A: `(d, d)`, float64."""
        made: Tensor = self.erase_scale * self.erased.T @ self.erased
        made.diagonal().add_(self.ridge)
        made += self.keep_scale * self.kept_gram()
        return made

    def factor(self) -> Tensor:
        """K = s_e C A⁻¹: `(n, d)`, float64."""
        if self.few:
            return self._factor_of_few()
        return self.erase_scale * torch.cholesky_solve(self.erased.T, torch.linalg.cholesky(self.gram())).T

    def _factor_of_few(self) -> Tensor:
        """As `factor`: √s_e times the first n rows of (λI + RRᵀ)⁻¹ R."""
        rows = torch.cat([sqrt(self.erase_scale) * self.erased, sqrt(self.keep_scale) * self.kept])  # R: (n + m, d)
        small = rows @ rows.T
        small.diagonal().add_(self.ridge)
        first = torch.eye(len(rows), len(self.erased), dtype=rows.dtype, device=rows.device)
        return sqrt(self.erase_scale) * torch.cholesky_solve(first, torch.linalg.cholesky(small)).T @ rows


@torch.no_grad()
def solve_all(
    backbone: Backbone,
    pairs: Sequence[tuple[str, str]],
    kept: Sequence[str],
    *,
    last_only: bool,
    ridge: float,
    erase_scale: float,
    keep_scale: float,
    technique: str,
    solver: str,
) -> tuple[dict[str, Tensor], list[tuple[int, int]]]:
    """New values of the projections that change, and the token index of each pair's (erased, guide) prompt.

    `pairs` are (erased, guide) prompts. Source: Gandikota et al. 2024, eq. 7, and the released code for the rows.
    """
    erased, guides = _embed(backbone, [p[0] for p in pairs]), _embed(backbone, [p[1] for p in pairs])
    projections = backbone.projections()
    solvers: dict[bool, _Fast | _Reference] = {}
    for pooled in sorted({p.role == "pooled" for p in projections}):
        rows = _pooled_rows(erased, guides) if pooled else _token_rows(erased, guides, last_only)
        old, new = torch.cat([c for c, _ in rows]), torch.cat([g for _, g in rows])
        each = 1 if pooled or last_only else erased.tokens.shape[1]
        few = 4 * (len(old) + each * len(kept)) < old.shape[1]  # the smaller system is less work then by far
        system = System(
            old,
            new,
            tuple(len(c) for c, _ in rows),
            _kept(backbone, kept, old, few, pooled=pooled, last_only=last_only),
            few,
            ridge,
            erase_scale,
            keep_scale,
        )
        solvers[pooled] = _Fast(system, technique) if solver == "fast" else _Reference(system, technique)
    weights = {p.name: solvers[p.role == "pooled"](p.weight.detach()) for p in projections}
    changed = {p.name: weights[p.name] for p in projections if not torch.equal(weights[p.name], p.weight)}
    return changed, list(zip(erased.last.tolist(), guides.last.tolist(), strict=True))


class _Fast:
    """W₀ + (W₀ (G − C)ᵀ) K: two thin products for each projection, in float32 or wider."""

    def __init__(self, system: System, technique: str) -> None:
        self.system, self.technique = system, technique
        self.factor = system.factor()
        self.step = system.guides - system.erased  # (n, d)
        self.merged = technique == "replace" and 2 * len(self.factor) >= self.factor.shape[1]
        if self.merged:  # so many rows that one (d, d) product for each projection is less work than two (d, n)
            self.step = self.step.T @ self.factor
        self._wide: dict[torch.dtype, tuple[Tensor, Tensor, Tensor, Tensor]] = {}  # rounded once for all projections

    def __call__(self, w: Tensor) -> Tensor:
        """`w`: `(out, d)`."""
        wide = torch.promote_types(w.dtype, torch.float32)
        step, factor, erased, guides = self._rounded(wide)
        v = w.to(wide)
        if self.merged:
            return (v @ step).add_(v).to(w.dtype)
        change = (step @ v.T).T  # with the weight on the right: a product of few columns takes twice as long
        if self.technique == "tensor":
            change = change - self._projected(v, erased, guides)
        return (change @ factor).add_(v).to(w.dtype)  # in place: half of the time goes into fresh memory

    def _rounded(self, wide: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if wide not in self._wide:
            s = self.system
            step, factor, erased, guides = (t.to(wide) for t in (self.step, self.factor, s.erased.T, s.guides.T))
            self._wide[wide] = step, factor, erased, guides
        return self._wide[wide]

    def _projected(self, v: Tensor, erased: Tensor, guides: Tensor) -> Tensor:
        """The part of each pair's W₀ Gᵀ that lies along its W₀ Cᵀ (as one vector over all its rows): `(out, n)`."""
        old, new = v @ erased, v @ guides
        parts = zip(_split(old, self.system.sizes, 1), _split(new, self.system.sizes, 1), strict=True)
        return torch.cat([_along(o, n) for o, n in parts], dim=1)


class _Reference:
    """The released arithmetic: sums pair by pair and one explicit float32 inverse for each projection."""

    def __init__(self, system: System, technique: str) -> None:
        self.system, self.technique = system, technique

    def __call__(self, w: Tensor) -> Tensor:
        """`w`: `(out, d)`."""
        s, v = self.system, w.float()
        eye = torch.eye(v.shape[1], device=v.device)
        left, right = s.ridge * v, s.ridge * eye  # λW₀ and λI
        pairs = zip(_split(s.erased.float(), s.sizes, 0), _split(s.guides.float(), s.sizes, 0), strict=True)
        for c, g in pairs:
            target = v @ g.T
            if self.technique == "tensor":
                target = target - _along(v @ c.T, target)
            left = left + s.erase_scale * target @ c
            right = right + s.erase_scale * c.T @ c
        kept = s.keep_scale * s.kept_gram().float()
        new: Tensor = (left + v @ kept) @ torch.linalg.inv(right + kept)
        return new.to(w.dtype)


def _along(old: Tensor, new: Tensor) -> Tensor:
    """The projection of `new` onto `old`, both taken as one long vector."""
    part: Tensor = (old * new).sum() / (old * old).sum() * old
    return part


def _split(rows: Tensor, sizes: Sequence[int], dim: int) -> Sequence[Tensor]:
    return torch.split(rows, list(sizes), dim)


def _embed(backbone: Backbone, prompts: Sequence[str]) -> Embedding:
    """All prompts, each encoded once."""
    unique = list(dict.fromkeys(prompts))
    return backbone.embed(unique)[[unique.index(p) for p in prompts]]


def _token_rows(erased: Embedding, guides: Embedding, last_only: bool) -> list[tuple[Tensor, Tensor]]:
    """For each pair its rows `(rows, d)` of the erased and the guide prompt, in float64, of equal number.

    They start at the last content token of each and are as many as fit both: content end on content end, end token on
    end token, padding on padding.
    """
    length, rows = erased.tokens.shape[1], []
    for old, new, i, j in zip(
        erased.tokens.double(), guides.tokens.double(), erased.last.tolist(), guides.last.tolist(), strict=True
    ):
        n = 1 if last_only else length - max(i, j)
        rows.append((old[i : i + n], new[j : j + n]))
    return rows


def _pooled_rows(erased: Embedding, guides: Embedding) -> list[tuple[Tensor, Tensor]]:
    """As `_token_rows`, of the one pooled vector."""
    assert erased.pooled is not None and guides.pooled is not None, "a pooled projection needs a pooled text vector"
    return list(zip(erased.pooled.double()[:, None], guides.pooled.double()[:, None], strict=True))


def _kept(backbone: Backbone, kept: Sequence[str], like: Tensor, few: bool, *, pooled: bool, last_only: bool) -> Tensor:
    """P `(m, d)`, if `few`, or PᵀP `(d, d)` of all rows (or the last content token) of the kept prompts.

    Of the dtype, device and width of `like`, `(rows, d)`; never more than `_CHUNK` prompts' rows beside the result.
    """
    chunks = (
        _kept_rows(backbone.embed(kept[start : start + _CHUNK]), pooled=pooled, last_only=last_only).to(like)
        for start in range(0, len(kept), _CHUNK)
    )
    if few:
        return torch.cat([like[:0], *chunks])
    gram = like.new_zeros(like.shape[1], like.shape[1])
    for rows in chunks:
        gram += rows.T @ rows
    return gram


def _kept_rows(text: Embedding, *, pooled: bool, last_only: bool) -> Tensor:
    """`(rows, d)`."""
    if pooled:
        assert text.pooled is not None, "a pooled projection needs a pooled text vector"
        return text.pooled
    if last_only:
        return text.tokens[torch.arange(len(text), device=text.last.device), text.last]
    return text.tokens.flatten(0, 1)
