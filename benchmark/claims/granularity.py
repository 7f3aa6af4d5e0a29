"""Whether a printed percentage can be a share of the stated number of images. Pure, in exact arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from benchmark.claims.ledger import Claim


@dataclass(frozen=True)
class Impossible:
    """A printed share that no count gives: the nearest that some do, in the unit of the claim, as (count, value)."""

    claim: Claim
    images: int
    nearest: tuple[tuple[int, float], ...]


def check(claim: Claim) -> Impossible | None:
    """None where a count rounds to what is printed, or is cut off to it, or the number of images is not known."""
    n = claim.counted
    if n is None or not claim.printed.plain:
        return None
    unit = 100 if "percent" in claim.unit else 1
    value, digit = Fraction(claim.printed.text), Fraction(1, 10**claim.printed.decimals)
    if any(
        value - digit / 2 <= share <= value + digit / 2 or value <= share < value + digit
        for share in _near(value, n, unit)
    ):
        return None
    counts = sorted({min(max(k, 0), n) for k in (math.floor(value * n / unit), math.ceil(value * n / unit))})
    return Impossible(claim, n, tuple((k, float(Fraction(k * unit, n))) for k in counts))


def _near(value: Fraction, n: int, unit: int) -> Iterator[Fraction]:
    """Shares around a value that counts of n images give: one below, one above, and their neighbours."""
    k = math.floor(value * n / unit)
    return (Fraction(i * unit, n) for i in range(k - 1, k + 3) if 0 <= i <= n)
