"""Places of methods, and how sure they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmark.stats.intervals import LEVEL, Floats


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


def mean_ranks(draws: Sequence[Mapping[str, Floats]], directions: Sequence[str]) -> dict[str, Floats]:
    """`(resamples,)` draws of each name's rank, averaged over the tables (suites) that it is in.

    In each draw of each table, equal scores share the mean of their places, so that ties favour none.
    """
    total: dict[str, Floats] = {}
    count: dict[str, int] = {}
    for table, direction in zip(draws, directions, strict=True):
        sign = {"up": -1.0, "down": 1.0}[direction]
        scores = sign * np.stack(list(table.values()))  # (names, resamples)
        below = (scores[None, :, :] < scores[:, None, :]).sum(1)
        equal = (scores[None, :, :] == scores[:, None, :]).sum(1)
        for name, place in zip(table, below + (equal + 1) / 2, strict=True):
            total[name] = total.get(name, np.zeros(place.shape)) + place
            count[name] = count.get(name, 0) + 1
    return {name: total[name] / count[name] for name in total}
