"""Tests of two methods on the same prompts and seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import BadInput
from benchmark.stats.intervals import Floats
from benchmark.stats.resampling import RESAMPLES, Sample, by_cluster, generator, score

CHUNK = 512
"""Clusters whose swaps are multiplied at once: thousands of them would take gigabytes."""


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Exact two-sided p of McNemar's test on paired outcomes: binomial on the pairs that differ.

    Pairs count as independent; where several share a prompt, `paired_permutation` by prompt is the test.
    """
    if len(a) != len(b):
        raise BadInput(f"expected paired outcomes, got {len(a)} and {len(b)}")
    from scipy.special import bdtr

    x, y = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    only_a, only_b = int((x & ~y).sum()), int((y & ~x).sum())
    return float(min(1.0, 2 * bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


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
    observed = float(np.mean([score(function, x) - score(function, y) for x, y in zip(a, b, strict=True)]))
    null = np.mean(swapped, axis=0)
    # Differences equal up to rounding count as reached.
    reached = int(np.sum(np.abs(null) >= abs(observed) - 1e-12))
    return observed, (1 + reached) / (1 + resamples)


def _swapped(
    function: Callable[..., Floats], a: Sequence[Sample], b: Sequence[Sample], seed: int, resamples: int
) -> Floats:
    """`(resamples,)` differences of one request under random swaps."""
    means = [_swapped_means(x, y, seed, resamples) for x, y in zip(a, b, strict=True)]
    result: Floats = function(*(m[0] for m in means)) - function(*(m[1] for m in means))
    return result


def _swapped_means(x: Sample, y: Sample, seed: int, resamples: int) -> tuple[Floats, Floats]:
    names, in_x, n_x = by_cluster(x)
    other, in_y, n_y = by_cluster(y)
    if names != other or not np.array_equal(n_x, n_y):
        raise BadInput("expected paired rows: both methods scored on the same prompts and seeds, image by image")
    moved = sum(
        (in_y - in_x)[i : i + CHUNK] @ _swaps(tuple(names[i : i + CHUNK]), seed, resamples)
        for i in range(0, len(names), CHUNK)
    )
    return (in_x.sum() + moved) / n_x.sum(), (in_y.sum() - moved) / n_y.sum()


@lru_cache(maxsize=64)
def _swaps(names: tuple[str, ...], seed: int, resamples: int) -> NDArray[np.uint8]:
    """`(clusters, resamples)` of 0 and 1, each row from its cluster's name: all methods share them."""
    swaps = np.stack([generator(name, seed).integers(0, 2, resamples).astype(np.uint8) for name in names])
    swaps.flags.writeable = False  # shared by all callers
    return swaps


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's (1979) step-down adjusted p-values: family-wise error control without assumptions on dependence."""
    adjusted, worst = {}, 0.0
    for rank, name in enumerate(sorted(p, key=lambda n: (p[n], n))):
        worst = max(worst, min(1.0, (len(p) - rank) * p[name]))
        adjusted[name] = worst
    return {name: adjusted[name] for name in p}
