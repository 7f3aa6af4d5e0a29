"""Paired tests of a run against an earlier one, image by image, and their family. No torch.

The null hypothesis is that nothing changed: then an image's two outcomes, before and after, may be swapped, whatever
the noise of the machine. Hence McNemar's exact test for outcomes that are 0 or 1, and random signs of the differences
for scores.

**The family.** Holm's procedure over all tests that could reject at all: with k pairs that differ, no arrangement of
signs gives a p below 2^(1−k). Tarone (1990, Biometrics 46, 515) leaves those out whose least p is above the level that
the rest has; they cost the others nothing, and the family-wise error rate stays, since k is what both tests condition
on.

**The minimum effect.** A rejected test counts only if the effect reaches it too. Both are harness defaults.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmark import stats
from benchmark.errors import BadInput

LEVEL = 0.05
"""Family-wise error rate of one comparison (harness default)."""
LEAST_RATE = 0.02
"""Least difference of a rate that counts, as a fraction (harness default)."""
LEAST_SCORE = 0.1
"""Least difference of a mean score that counts, in standard deviations of the earlier values (harness default)."""
RESAMPLES = 2000
_CHUNK = 1 << 24  # signs in memory at once

Kind = Literal["rate", "score"]


@dataclass(frozen=True, kw_only=True)
class Paired:
    """One paired test. `before`, `after` and `effect` are means over the pairs; the effect is in units of `least`'s."""

    cell: str
    column: str
    role: str
    kind: Kind
    n: int
    differing: int
    """Pairs whose values are not equal."""
    before: float
    after: float
    effect: float
    """Rates: after − before. Scores: that in standard deviations of the earlier values."""
    least: float
    p: float
    adjusted: float = 1.0
    """Holm's, over the family."""

    @property
    def flagged(self) -> bool:
        """Whether it is a change: significant in the family, and not small."""
        return self.adjusted < LEVEL and abs(self.effect) >= self.least


def rate(cell: str, column: str, role: str, before: Sequence[float], after: Sequence[float]) -> Paired:
    """McNemar's exact test on outcomes that are 0 or 1."""
    a, b = _pairs(before, after)
    if not set(np.unique(np.concatenate([a, b]))) <= {0.0, 1.0}:
        raise BadInput(f"{column}: expected outcomes of 0 or 1; test other values as scores")
    p = stats.mcnemar([bool(x) for x in a], [bool(x) for x in b])
    return _test(cell, column, role, "rate", a, b, 1.0, p)


def score(cell: str, column: str, role: str, before: Sequence[float], after: Sequence[float], seed: int = 0) -> Paired:
    """Random signs of the paired differences; the statistic is their mean."""
    a, b = _pairs(before, after)
    return _test(cell, column, role, "score", a, b, float(np.std(a)), signs_p(b - a, seed=seed))


def _pairs(before: Sequence[float], after: Sequence[float]) -> tuple[stats.Floats, stats.Floats]:
    a, b = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise BadInput(f"expected as many values before as after, and at least one, got {a.shape} and {b.shape}")
    return a, b


def _test(
    cell: str, column: str, role: str, kind: Kind, a: stats.Floats, b: stats.Floats, unit: float, p: float
) -> Paired:
    shift = float(np.mean(b) - np.mean(a))
    effect = shift / unit if unit > 0 else math.copysign(math.inf, shift) if shift else 0.0
    return Paired(
        cell=cell,
        column=column,
        role=role,
        kind=kind,
        n=len(a),
        differing=int(np.sum(a != b)),
        before=float(np.mean(a)),
        after=float(np.mean(b)),
        effect=effect,
        least=LEAST_RATE if kind == "rate" else LEAST_SCORE,
        p=p,
    )


def signs_p(differences: stats.Floats, *, seed: int = 0, resamples: int = RESAMPLES) -> float:
    """Two-sided p of the mean difference under random signs; the observed signs count, so it is never 0.

    Where no resample reaches the observed sum, the p of the resamples, 1 / (1 + resamples), is too coarse for a family
    of hundreds: Hoeffding's (1963) bound of the same tail, 2 exp(−S² / 2Σd²), stands in if it is lower. It is never
    below the exact p.
    """
    d = differences[differences != 0]
    if not len(d):
        return 1.0
    observed = abs(float(d.sum()))
    reached = int(np.sum(np.abs(_sums(d, seed, resamples)) >= observed * (1 - 1e-12)))
    p = (1 + reached) / (1 + resamples)
    return p if reached else min(p, 2 * math.exp(-(observed**2) / (2 * float(d @ d))))


def _sums(d: stats.Floats, seed: int, resamples: int) -> stats.Floats:
    """`(resamples,)` sums with random signs; the same for the same differences, whatever ran before."""
    name = hashlib.sha256(f"{seed}|{len(d)}".encode() + d.tobytes()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(name[:16], "big")))
    step = max(1, _CHUNK // len(d))
    parts: list[NDArray[np.float64]] = []
    for start in range(0, resamples, step):
        count = min(step, resamples - start) * len(d)
        bits = np.unpackbits(np.frombuffer(generator.bytes(-(-count // 8)), np.uint8), count=count)
        parts.append(2 * (bits.reshape(-1, len(d)) @ d) - d.sum())
    return np.concatenate(parts)


# --- the family -------------------------------------------------------------------------------------------------------
def family(tests: Sequence[Paired], level: float = LEVEL) -> list[Paired]:
    """The tests with `adjusted`: Holm's p over those that can reject at all, 1 for the others."""
    least = [2.0 ** (1 - t.differing) if t.differing else 1.0 for t in tests]
    most = tarone(least, level)
    able = [i for i, p in enumerate(least) if p <= level / most]
    adjusted = stats.holm({str(i): tests[i].p for i in able})
    return [replace(t, adjusted=adjusted.get(str(i), 1.0)) for i, t in enumerate(tests)]


def tarone(least: Sequence[float], level: float = LEVEL) -> int:
    """The smallest K such that at most K tests have a least attainable p of level / K or below."""
    k = 1
    while sum(p <= level / k for p in least) > k:
        k += 1
    return k
