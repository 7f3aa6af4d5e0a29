"""FADE-adv's H against its own formula: H = 2EF/(E+F), F = ½(CLIP/CLIP₀ + max(2·FID₀−FID, 0)/FID₀).

The paper prints CLIP₀ and not FID₀. A table satisfies the formula if one FID₀ gives all its rows: each row allows an
interval of FID₀; the one value in most of them is taken, if they are more than half, and the other rows do not agree.
Where no value is in more than half, nothing in the table can be trusted to fix it: then it is the least-squares one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmark.claims.ledger import Claim
from benchmark.claims.numbers import SLACK, Interval, corners
from benchmark.metrics.balance import H_fade_adv

UNEDITED = ("unedited", "original", "SD v1.4", "SD v1.5")
WIDEST = (0.5, 200.0)
"""Where FID₀ is looked for: between a perfect model and a broken one."""


@dataclass(frozen=True)
class Row:
    """A printed H with its parts."""

    H: Claim
    acc: Claim
    fid: Claim
    clip: Claim


@dataclass(frozen=True)
class Fit:
    """FID₀ of a table: a value with what it may be, and what each row alone would need."""

    fid: float
    range: Interval
    implied: tuple[Interval | None, ...]
    given: bool = False

    @property
    def how(self) -> str:
        if self.given:
            return f"FID₀ = {self.fid:g} as printed"
        alone = sorted((lo + hi) / 2 for lo, hi in filter(None, self.implied))
        needed = f"; the rows alone need {alone[0]:.1f} to {alone[-1]:.1f}" if alone else ""
        return f"FID₀ is not printed: {self.fid:.2f} fits best{needed}"


def rows(table: Sequence[Claim]) -> list[Row]:
    """The rows of a table that have all parts of H."""
    groups: dict[tuple[str, ...], dict[str, Claim]] = {}
    for c in table:
        groups.setdefault(c.group, {}).setdefault(c.metric, c)
    needed = ("H_fade_adv", "acc_erased", "fid", "clip")
    return [Row(*(g[m] for m in needed)) for g in groups.values() if all(m in g and g[m].printed.plain for m in needed)]


def unedited(claims: Sequence[Claim], source: str, metric: str) -> Claim | None:
    """What a source prints of the unedited model."""
    return next((c for c in claims if (c.source, c.metric) == (source, metric) and c.row in UNEDITED), None)


def implied(H: Claim, acc: Claim) -> float | None:
    """F = EH/(2E−H), the fidelity that a printed H and accuracy imply; None if no F gives that H."""
    return _implied(1 - acc.value, H.value)


def _implied(E: float, H: float) -> float | None:
    return E * H / (2 * E - H) if 2 * E - H > SLACK else None


def _implied_fid(H: float, acc: float, fid: float, clip: float, clip_unedited: float) -> float | None:
    """The FID₀ that gives this H. None if none does."""
    F = _implied(1 - acc, H)
    left = None if F is None else 2 - 2 * F + clip / clip_unedited
    return fid / left if left is not None and left > SLACK else None


def fit(table: Sequence[Row], clip: Claim) -> Fit:
    """The FID₀ of a table."""
    alone = tuple(
        corners(_implied_fid, [r.H.interval, r.acc.interval, r.fid.interval, r.clip.interval, clip.interval])
        for r in table
    )
    found = [i for i in alone if i is not None]
    ends = sorted({end for i in found for end in i})
    count = {end: sum(lo - SLACK <= end <= hi + SLACK for lo, hi in found) for end in ends}
    most = max(count.values(), default=0)
    if 2 * most > len(table):
        agreed = [end for end in ends if count[end] == most]
        lo, hi = _first_run(agreed, ends)
        return Fit((lo + hi) / 2, (lo, hi), alone)
    best = _least_squares(table, clip)
    return Fit(best, (best, best), alone)


def _first_run(agreed: Sequence[float], ends: Sequence[float]) -> Interval:
    """The first stretch of neighbouring ends that all agree."""
    start = ends.index(agreed[0])
    run = [e for i, e in enumerate(ends[start:]) if i < len(agreed) and agreed[i] == e]
    return run[0], run[-1]


def _least_squares(table: Sequence[Row], clip: Claim) -> float:
    """The FID₀ with the smallest sum of squared differences of H, by a grid made finer three times."""
    lo, hi = WIDEST
    best = lo
    for _ in range(4):
        grid = np.linspace(lo, hi, 2001)
        losses = [sum(_residual(r, clip, float(f)) ** 2 for r in table) for f in grid]
        best = float(grid[int(np.argmin(losses))])
        step = (hi - lo) / 1000
        lo, hi = max(best - step, WIDEST[0]), best + step
    return best


def _residual(row: Row, clip: Claim, fid_unedited: float) -> float:
    again = _H(row.acc.value, row.clip.value, row.fid.value, clip.value, fid_unedited)
    return again - row.H.value


def _H(acc: float, clip: float, fid: float, clip_unedited: float, fid_unedited: float) -> float:
    """H as printed; 0 where an accuracy leaves nothing to balance."""
    value = H_fade_adv(acc, clip, fid, clip_unedited=clip_unedited, fid_unedited=fid_unedited, clipped=False)
    return 0.0 if value is None else value


def again(row: Row, clip: Claim, fitted: Fit) -> tuple[float, Interval, str] | None:
    """H of the parts: value, range over their rounding, and how; None if the accuracy is no rate."""
    if not 0 <= row.acc.value <= 1:
        return None
    parts = [row.acc.interval, row.clip.interval, row.fid.interval, clip.interval, fitted.range]
    bounds = corners(_H, parts)
    value = _H(row.acc.value, row.clip.value, row.fid.value, clip.value, fitted.fid)
    return None if bounds is None else (value, bounds, f"H_fade_adv of acc_erased, fid, clip; {fitted.how}")
