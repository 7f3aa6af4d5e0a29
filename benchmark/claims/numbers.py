"""A number as it is printed: its text, and what the true value may be, given how it was rounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

Interval = tuple[float, float]
SLACK = 1e-9
"""Of comparisons: far below any printed digit, far above the error of a sum."""


@dataclass(frozen=True)
class Printed:
    """`text` as in the ledger; `lo` ≤ `value` ≤ `hi` in its unit; `decimals` digits stand after the point."""

    text: str
    value: float
    lo: float
    hi: float
    decimals: int

    @property
    def shown(self) -> str:
        """`≈40`, `65–70`, `≥12`, or the text itself."""
        return self.text.replace("..", "–").replace("~", "≈").replace(">=", "≥").replace("-", "−")

    @property
    def cut(self) -> float:
        """How far from `value`, away from 0, the true one may be if digits were cut off and not rounded."""
        exact = self.lo == self.hi
        return 0.0 if exact or not self.plain else math.copysign(10.0**-self.decimals, self.value)

    @property
    def plain(self) -> bool:
        """Whether it is one number, not a range, a bound or an approximation."""
        return not self.text.startswith(("~", ">=")) and ".." not in self.text


def parse(text: str, *, exact: bool = False) -> Printed:
    """`0.4598` is within half a unit of its last digit, `~40` within one; `65..70` and `>=12` say it themselves.

    `exact` numbers (counts) are not rounded. ValueError if it is none of these.
    """
    if ".." in text:
        low, high = (parse(part) for part in text.split("..", 1))
        if low.value > high.value:
            raise ValueError(f"expected a range low..high, got {text!r}")
        return Printed(text, (low.value + high.value) / 2, low.lo, high.hi, max(low.decimals, high.decimals))
    if text.startswith(">="):
        bound = parse(text.removeprefix(">="))
        return Printed(text, bound.value, bound.lo, math.inf, bound.decimals)
    number = text.removeprefix("~")
    decimals = len(number.partition(".")[2])
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not number.removeprefix("-").replace(".", "", 1).isdecimal():
        raise ValueError(f"expected a number such as 0.4598, ~40, 65..70 or >=12, got {text!r}")
    half = 0.0 if exact else (1.0 if text.startswith("~") else 0.5) * 10.0**-decimals
    return Printed(text, value, value - half, value + half, decimals)


def meet(a: Interval, b: Interval) -> bool:
    """Whether two intervals have a point in common."""
    return a[0] <= b[1] + SLACK and b[0] <= a[1] + SLACK


def corners(function: Callable[..., float | None], parts: Sequence[Interval]) -> Interval | None:
    """The range of `function` over a box, for a function monotone in each argument: its extremes lie at corners.

    None if it has no value at one of them.
    """
    values = [function(*corner) for corner in product(*parts)]
    found = [v for v in values if v is not None]
    return (min(found), max(found)) if len(found) == len(values) else None
