"""Intervals, paired tests and ranks. No torch.

**The bootstrap** is Rubin's (1981, Annals of Statistics 9, 130): each cluster gets random weights in place of counts.
A cluster's weights are drawn from its own name and the seed, so that methods, roles and requests that share a prompt
share its weights: differences and ranks are paired without more ado, and a method's interval does not move when another
one is added. Rubin's exponential weights are too narrow for few clusters (they covered 85 % at 8 clusters for a nominal
95 %); gamma weights widened to Student's t cover 93 to 95 % from 8 clusters up, and are the same thing for many.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmark.errors import BadInput

Floats = NDArray[np.float64]
Interval = tuple[float, float]
LEVEL = 0.95
RESAMPLES = 2000
FEW = 8
"""With fewer prompts than this, prompts count as fixed and the images are the clusters."""


# --- one rate -------------------------------------------------------------------------------------------------
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


def detectable(rate: float, n: int, *, level: float = LEVEL, power: float = 0.8) -> float:
    """The smallest difference from `rate` that two samples of `n` images show with this power (normal theory)."""
    if not 0 <= rate <= 1 or n < 1:
        raise BadInput(f"expected a rate in [0, 1] and n > 0, got {rate} and {n}")
    z = NormalDist().inv_cdf((1 + level) / 2) + NormalDist().inv_cdf(power)
    return float(z * math.sqrt(2 * rate * (1 - rate) / n))


# --- bootstrap ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Sample:
    """Values of one role's images with the cluster of each: prompts, or images where prompts are few."""

    values: Floats
    clusters: tuple[str, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))


def sample(values: ArrayLike, prompts: Sequence[str], seeds: Sequence[int], few: int = FEW) -> Sample:
    """Values with their clusters: the prompt; with fewer than `few` prompts, (prompt, seed)."""
    array = np.asarray(values, dtype=np.float64)
    if not len(array) == len(prompts) == len(seeds):
        raise BadInput(f"expected as many values as prompts and seeds, got {len(array)}, {len(prompts)}, {len(seeds)}")
    if not np.isfinite(array).all():
        raise BadInput("expected finite values; leave rows that could not be scored out, and count them")
    single = len(set(prompts)) < few
    return Sample(array, tuple(f"{p}|{s}" if single else p for p, s in zip(prompts, seeds, strict=True)))


def _generator(name: str, seed: int) -> np.random.Generator:
    """A generator of one name and seed: the same in every process and whatever was drawn before."""
    digest = hashlib.sha256(f"{seed}|{name}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


@lru_cache(maxsize=4096)
def _stream(name: str, seed: int, resamples: int, shape: float | None) -> Floats:
    """`(resamples,)` draws that depend on these arguments alone: gamma weights, or 0/1 swaps if `shape` is None."""
    generator = _generator(name, seed)
    draws = generator.integers(0, 2, resamples) if shape is None else generator.standard_gamma(shape, resamples)
    result = draws.astype(np.float64)
    result.flags.writeable = False  # shared by all callers
    return result


def gamma_shape(clusters: int) -> float:
    """Shape a of the weights of k clusters, so that 1.96 deviations of the draws are Student's interval of the mean.

    Dirichlet(a, …, a) weights give the mean a variance of s²(k−1)/k / (ka+1); Student's is (t/z)²·s²/k, hence
    ka + 1 = (k−1)(z/t)². Below 6 clusters no weights are that wide; the shape then stays at a small positive number.
    """
    if clusters < 2:
        return 1.0
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    ratio = z / _student(z, clusters - 1)
    return max(0.05, ((clusters - 1) * ratio * ratio - 1) / clusters)


def _student(z: float, df: int) -> float:
    """Student's quantile from the normal one: Abramowitz and Stegun 26.7.5, good to 1 % from 4 degrees of freedom."""
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + g1 / df + g2 / df**2 + g3 / df**3


def bootstrap(s: Sample, *, seed: int = 0, resamples: int = RESAMPLES) -> Floats:
    """`(resamples,)` draws of the mean, by weights on whole clusters.

    A rate that is 0 (or 1) in every image has nothing to resample, which is no certainty: Jeffreys' posterior,
    Beta(½ + successes, ½ + failures), stands in.
    """
    names, sums, counts = _by_cluster(s)
    if s.values.min() == s.values.max() and s.values[0] in (0.0, 1.0):
        return _jeffreys(names[0], int(s.values.sum()), len(s.values), seed, resamples)
    shape = gamma_shape(len(names))
    weights = np.stack([_stream(c, seed, resamples, shape) for c in names])  # (clusters, resamples)
    weights = np.maximum(weights, np.finfo(np.float64).tiny)  # tiny shapes underflow, and all may at once
    draws: Floats = (sums @ weights) / (counts @ weights)
    return draws


def _jeffreys(name: str, successes: int, n: int, seed: int, resamples: int) -> Floats:
    """Draws of a rate's posterior from a stream of this name."""
    draws: Floats = _generator(name, seed).beta(0.5 + successes, 0.5 + n - successes, resamples)
    return draws


def _by_cluster(s: Sample) -> tuple[list[str], Floats, Floats]:
    """Cluster names in alphabetical order, with the sum and the number of values in each."""
    if not len(s.values):
        raise BadInput("expected at least one value; a role without images has no interval")
    names = sorted(set(s.clusters))
    index = {c: i for i, c in enumerate(names)}
    rows = np.array([index[c] for c in s.clusters])
    counts = np.bincount(rows, minlength=len(names)).astype(np.float64)
    return names, np.bincount(rows, s.values, len(names)).astype(np.float64), counts


def bootstrap_of(
    function: Callable[..., Floats], samples: Sequence[Sample], *, seed: int = 0, resamples: int = RESAMPLES
) -> Floats:
    """`(resamples,)` draws of `function(mean of each sample)`, such as a headline of role accuracies."""
    return function(*(bootstrap(s, seed=seed, resamples=resamples) for s in samples))


def percentile(draws: Floats, level: float = LEVEL) -> Interval:
    """The central interval of draws."""
    lo, hi = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(lo), float(hi)


def around(value: float, draws: Floats, level: float = LEVEL) -> list[float] | None:
    """The central interval of draws, stretched to hold the value itself; None if the draws do not vary."""
    if float(np.ptp(draws)) <= 1e-12 * max(1.0, abs(value)):  # equal up to rounding
        return None
    lo, hi = percentile(draws, level)
    return [min(lo, value), max(hi, value)]


# --- paired tests ---------------------------------------------------------------------------------------------
def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Exact two-sided p of McNemar's test on paired outcomes: binomial on the pairs that differ."""
    if len(a) != len(b):
        raise BadInput(f"expected paired outcomes, got {len(a)} and {len(b)}")
    only_a = sum(x and not y for x, y in zip(a, b, strict=True))
    only_b = sum(y and not x for x, y in zip(a, b, strict=True))
    n, k = only_a + only_b, min(only_a, only_b)
    return float(min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n))


def paired_permutation(
    function: Callable[..., Floats],
    a: Sequence[Sequence[Sample]],
    b: Sequence[Sequence[Sample]],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """Difference A − B and its two-sided p by swapping A and B cluster by cluster.

    `a[r][k]` is role k of request r; the statistic is the mean over requests of `function(role means)`. Pairs must have
    the same clusters with as many rows in each. p counts the observed labelling, so it is never 0.
    """
    swapped = [_swapped(function, x, y, seed, resamples) for x, y in zip(a, b, strict=True)]
    observed = float(np.mean([function(*_points(x))[0] - function(*_points(y))[0] for x, y in zip(a, b, strict=True)]))
    null = np.mean(swapped, axis=0)
    # Differences equal up to rounding count as reached.
    reached = int(np.sum(np.abs(null) >= abs(observed) - 1e-12))
    return observed, (1 + reached) / (1 + resamples)


def _points(samples: Sequence[Sample]) -> list[Floats]:
    return [np.array([s.mean]) for s in samples]


def _swapped(
    function: Callable[..., Floats], a: Sequence[Sample], b: Sequence[Sample], seed: int, resamples: int
) -> Floats:
    """`(resamples,)` differences of one request under random swaps."""
    means = [_swapped_means(x, y, seed, resamples) for x, y in zip(a, b, strict=True)]
    result: Floats = function(*(m[0] for m in means)) - function(*(m[1] for m in means))
    return result


def _swapped_means(x: Sample, y: Sample, seed: int, resamples: int) -> tuple[Floats, Floats]:
    names, in_x, n_x = _by_cluster(x)
    other, in_y, n_y = _by_cluster(y)
    if names != other or not np.array_equal(n_x, n_y):
        raise BadInput("expected paired rows: both methods scored on the same prompts and seeds, image by image")
    moved = (in_y - in_x) @ np.stack([_stream(c, seed, resamples, None) for c in names])
    return (in_x.sum() + moved) / n_x.sum(), (in_y.sum() - moved) / n_y.sum()


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's (1979) step-down adjusted p-values: family-wise error control without assumptions on dependence."""
    adjusted, worst = {}, 0.0
    for rank, name in enumerate(sorted(p, key=lambda n: (p[n], n))):
        worst = max(worst, min(1.0, (len(p) - rank) * p[name]))
        adjusted[name] = worst
    return {name: adjusted[name] for name in p}


# --- ranks ----------------------------------------------------------------------------------------------------
def ranks(scores: Mapping[str, float], direction: str = "up") -> dict[str, int]:
    """Rank 1 is best; equal scores share the better rank."""
    sign = {"up": -1.0, "down": 1.0}[direction]
    return {n: 1 + sum(sign * other < sign * s for other in scores.values()) for n, s in scores.items()}


def rank_intervals(
    draws: Mapping[str, Floats], direction: str = "up", level: float = LEVEL
) -> dict[str, tuple[int, int]]:
    """Central interval of each name's rank in the joint bootstrap (equal draws share the better rank)."""
    sign = {"up": -1.0, "down": 1.0}[direction]
    table = sign * np.stack(list(draws.values()))  # (names, resamples)
    by_draw = 1 + (table[None, :, :] < table[:, None, :]).sum(1)  # (names, resamples)
    lo = np.quantile(by_draw, (1 - level) / 2, axis=1, method="lower")
    hi = np.quantile(by_draw, (1 + level) / 2, axis=1, method="higher")
    return {name: (int(lo[i]), int(hi[i])) for i, name in enumerate(draws)}
