"""Whether a measurement reproduces a claim. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from benchmark import stats
from benchmark.claims.ledger import Claim

Verdict = Literal["inside", "above", "below"]
RULE = (
    "Verdict: a claimed value is inside if 0 lies in the two-sided 95 % interval of measured − claimed, else measured "
    "is above or below it. Both intervals' half widths are added in squares; that of a claimed rate is Wilson's where "
    "its paper states the images, else none; the claim's rounding widens it. Without an interval there is no verdict."
)


def verdict(value: float, ci: Sequence[float] | None, claim: Claim) -> Verdict | None:
    """The rule above, for numbers in fractions (rates) or the unit they are printed in; None without an interval.

    The interval of the difference is Zou and Donner's (2008, Statistics in Medicine 27, 1693).
    """
    if ci is None or not claim.printed.plain:
        return None
    low, high = _of_claim(claim)
    rounding = (claim.printed.hi - claim.printed.lo) / 2 * claim.scale
    gap = value - claim.value
    below = math.hypot(value - ci[0], high - claim.value) + rounding
    above = math.hypot(ci[1] - value, claim.value - low) + rounding
    if gap - below > 0:
        return "above"
    return "below" if gap + above < 0 else "inside"


def _of_claim(claim: Claim) -> tuple[float, float]:
    """The claim's own interval from the images that it is the share of, if it states them."""
    n, value = claim.counted, claim.value
    if n is None or not 0 <= value <= 1:
        return value, value
    low, high = stats.wilson(round(value * n), n)
    return min(low, value), max(high, value)
