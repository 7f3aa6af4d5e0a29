"""Intervals in closed form: of a rate, and of a mean over subsets."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import BadInput

Floats = NDArray[np.float64]
Interval = tuple[float, float]
LEVEL = 0.95


def wilson(successes: int, n: int, level: float = LEVEL) -> Interval:
    """Wilson's (1927) score interval of a rate. Its coverage is near `level` on average over the rate and dips for
    rates near 0 and 1 (to about 0.84 at 95 %)."""
    if not 0 <= successes <= n or n == 0:
        raise BadInput(f"expected 0 ≤ successes ≤ n and n > 0, got {successes} of {n}")
    z, p = NormalDist().inv_cdf((1 + level) / 2), successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the bound is the rate itself; said outright, because rounding misses it by 1e-17.
    return (0.0 if successes == 0 else max(0.0, middle - half), 1.0 if successes == n else min(1.0, middle + half))


def subset_interval(
    mean: float, deviation: float, *, n: int, size: int, subsets: int, level: float = LEVEL
) -> Interval:
    """Of a distance that is the mean over `subsets` random subsets of `size` of `n` samples, such as KID.

    Subsets of one sample overlap, so that their deviation s is too small by √(1 − size/n) and their mean is not that of
    independent ones: half the width is z·s·√(size/(n − size) + 1/subsets). The second term is the choice of subsets.
    """
    if not 1 < size < n or subsets < 2:
        raise BadInput(f"expected subsets of 2 to n − 1 of n samples, at least 2; got {subsets} of {size} of {n}")
    half = NormalDist().inv_cdf((1 + level) / 2) * deviation * math.sqrt(size / (n - size) + 1 / subsets)
    return mean - half, mean + half
