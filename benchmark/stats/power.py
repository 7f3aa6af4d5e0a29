"""What a number of images can show: exact power of McNemar's exact test on pairs of images."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import BadInput
from benchmark.stats.intervals import LEVEL, Floats

Counts = NDArray[np.int64]
POWER = 0.8
"""Harness default, as is usual."""
MOST = 10**8
"""Images beyond which no number is given."""
STEP = 1e-5
"""Differences are found to this."""


def discordant(rate: float, difference: float, agreement: float = 0.0) -> tuple[float, float]:
    """Shares of pairs in which only the first, and only the second image shows it, of rates `rate` and `rate` +
    `difference`.

    `agreement` 0: the two images of a pair are independent, which is the worst case of methods that are not opposed;
    1: as many pairs agree as the rates allow. BadInput for rates outside [0, 1].
    """
    second = rate + difference
    if not (0 <= rate <= 1 and -1e-12 <= second <= 1 + 1e-12 and 0 <= agreement <= 1):
        raise BadInput(
            f"expected rates and agreement as fractions in [0, 1], got {rate:g}, {second:g} and {agreement:g}"
        )
    second = min(max(second, 0.0), 1.0)
    first_only, second_only = rate * (1 - second), second * (1 - rate)
    shared = agreement * min(first_only, second_only)
    return first_only - shared, second_only - shared


def paired_power(n: int, rate: float, difference: float, *, agreement: float = 0.0, level: float = LEVEL) -> float:
    """Probability that McNemar's exact test on `n` pairs tells two such rates apart, exactly: by the number D of pairs
    that differ, D ~ Bin(n, ψ), and the smaller side's share of them."""
    if n < 1 or not 0 < level < 1:
        raise BadInput(f"expected n > 0 and a level between 0 and 1, got {n} and {level:g}")
    first, second = discordant(rate, difference, agreement)
    either = first + second
    if either == 0:
        return 0.0
    middle, reach = n * either, 10 * math.sqrt(n * either) + 10
    D = np.arange(max(0, math.floor(middle - reach)), min(n, math.ceil(middle + reach)) + 1)
    most = _critical(D, (1 - level) / 2)
    rejected = _at_most(most, D, first / either) + _at_most(most, D, second / either)
    return float(np.clip(np.sum(_share(D, n, either) * rejected), 0.0, 1.0))


def _critical(D: Counts, tail: float) -> Floats:
    """The largest c with P(Bin(D, ½) ≤ c) ≤ tail, −1 where there is none: the test rejects if one side has no more."""
    c = np.maximum(np.floor(D / 2 + NormalDist().inv_cdf(tail) * np.sqrt(D) / 2), -1.0)
    while (low := _at_most(c + 1, D, 0.5) <= tail).any():
        c = c + low
    while (high := (c >= 0) & (_at_most(c, D, 0.5) > tail)).any():
        c = c - high
    return c


def _at_most(k: Floats, n: Counts, p: float) -> Floats:
    """P(Bin(n, p) ≤ k), 0 for k = −1."""
    from scipy.special import bdtr

    result: Floats = np.where(k < 0, 0.0, bdtr(np.clip(k, 0, n), n, p))
    return result


def _share(k: Counts, n: int, p: float) -> Floats:
    """P(Bin(n, p) = k)."""
    from scipy.special import gammaln, xlog1py, xlogy

    ways = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    result: Floats = np.exp(ways + xlogy(k, p) + xlog1py(n - k, -p))
    return result


def images_needed(
    rate: float, difference: float, *, power: float = POWER, agreement: float = 0.0, level: float = LEVEL
) -> int:
    """The number of pairs that shows `difference` with this power. BadInput for one that `MOST` images do not show."""
    _check(power)
    enough = _least(
        lambda n: paired_power(n, rate, difference, agreement=agreement, level=level) >= power and difference != 0
    )
    if enough is None:
        raise BadInput(
            f"a difference of {difference:g} from {rate:g} needs more than {MOST:.0e} images; ask for a larger one"
        )
    return enough


def _least(enough: Callable[[int], bool]) -> int | None:
    """By doubling and halving. An exact test's power grows in steps back and forth: this may be some images off."""
    high = 1
    while not enough(high):
        high *= 2
        if high > MOST:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def detectable(
    rate: float, n: int, *, power: float = POWER, agreement: float = 0.0, level: float = LEVEL
) -> tuple[float | None, float | None]:
    """The smallest drop and the smallest rise from `rate` that `n` pairs show with this power; None where no rate
    below, or above, is far enough away."""
    _check(power)
    discordant(rate, 0.0, agreement)
    found = []
    for sign, room in ((-1, rate), (1, 1 - rate)):

        def seen(size: float, sign: int = sign) -> bool:
            return paired_power(n, rate, sign * size, agreement=agreement, level=level) >= power

        found.append(_smallest(seen, room) if room > 0 and seen(room) else None)
    return found[0], found[1]


def _smallest(seen: Callable[[float], bool], room: float) -> float:
    low, high = 0.0, room
    while high - low > STEP:
        middle = (low + high) / 2
        low, high = (low, middle) if seen(middle) else (middle, high)
    return high


def _check(power: float) -> None:
    if not 0 < power < 1:
        raise BadInput(f"expected power as a fraction between 0 and 1, such as 0.8; got {power:g}")


def design_effect(per_prompt: int, alike: float) -> float:
    """How many images count as one: 1 + (m − 1)ρ of m images a prompt with intraclass correlation ρ. Kish 1965."""
    if per_prompt < 1 or not 0 <= alike <= 1:
        raise BadInput(f"expected images per prompt > 0 and a correlation in [0, 1], got {per_prompt} and {alike:g}")
    return 1 + (per_prompt - 1) * alike
