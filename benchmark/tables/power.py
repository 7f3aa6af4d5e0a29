"""What images can tell apart: of a finished run, the difference that they show and how many more would show one.

From the joint bootstrap of the difference to the best method, by normal theory: (z_α + z_power) deviations of it. More
images mean more prompts and images of each role in the same shares, by which the deviation falls as their square root.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from benchmark import stats
from benchmark.errors import BadInput
from benchmark.tables import board as boards
from benchmark.tables.columns import Record, Row
from benchmark.tables.formats import is_rate

Json = dict[str, Any]


def resolution(
    records: Sequence[Record],
    *,
    difference: float | None = None,
    power: float = stats.POWER,
    level: float = stats.LEVEL,
) -> Json:
    """For each erasure method beside the best of a run's mean headlines: its `gap`, the `detectable` difference, and
    how many `times` the images would show `difference` (by default the gap itself). The level is shared by all
    comparisons (Bonferroni), as Holm's first step shares it.

    BadInput if fewer than two erasure methods have a headline with an interval.
    """
    if difference is not None and difference <= 0:
        raise BadInput(f"expected a difference above 0, in the headline's unit; got {difference:g}")
    board, drawn = boards.with_draws(records)
    rows = [r for r in board["rows"] if r["request"] == boards.MEAN and _usable(r, drawn)]
    best = next((r for r in rows if r["best"]), None)
    others = [r for r in rows if r is not best]
    if best is None or not others:
        raise BadInput("expected two erasure methods with headlines that have intervals; run more methods")
    z = NormalDist().inv_cdf(1 - (1 - level) / 2 / len(others)) + NormalDist().inv_cdf(power)
    found = [_beside(r, z * _deviation(drawn[r["method"]], drawn[best["method"]]), difference) for r in others]
    said = {"suite": board["suite"], "headline_id": best["headline_id"], "percent": is_rate("headline", best)}
    return said | {"best": best["method"], "power": power, "level": level, "difference": difference, "methods": found}


def _usable(row: Row, drawn: dict[str, stats.Floats | None]) -> bool:
    return bool(row["role"] == "erasure" and row["rank"] is not None and drawn.get(row["method"]) is not None)


def _deviation(mine: stats.Floats | None, theirs: stats.Floats | None) -> float:
    assert mine is not None and theirs is not None  # rows without draws were left out
    return float(np.std(mine - theirs))


def _beside(row: Row, detectable: float, difference: float | None) -> Json:
    gap = abs(row["gap_vs_best"])
    wanted = gap if difference is None else difference
    times = (detectable / wanted) ** 2 if wanted > 0 else None
    return {"method": row["method"], "gap": gap, "detectable": detectable, "times": times}


def lines(found: Json) -> list[str]:
    """The same to be read."""
    unit, sign = (100, " points") if found["percent"] else (1, "")
    what = "its gap" if found["difference"] is None else f"{unit * found['difference']:.1f}{sign}"
    told = [
        f"{found['suite']}: {found['headline_id']} beside the best method, {found['best']}",
        f"(power {found['power']:.0%}, level {found['level']:.0%} shared by {len(found['methods'])} comparisons)",
    ]
    for m in found["methods"]:
        more = "no number of images" if m["times"] is None else f"{_rounded(m['times'])} times the images"
        told.append(
            f"{m['method']}: gap {unit * m['gap']:.1f}{sign}, detectable {unit * m['detectable']:.1f}{sign}; "
            f"{more} would show {what}"
        )
    return told


def _rounded(times: float) -> str:
    return f"{times:.1f}" if times < 10 else f"{math.ceil(times):,}"


def planned(
    rate: float,
    *,
    difference: float | None,
    images: int | None,
    power: float,
    level: float,
    agreement: float,
    per_prompt: int,
    alike: float,
) -> Json:
    """Before a run: images for a difference of two rates, or the difference that images show, or the power of both."""
    effect = stats.design_effect(per_prompt, alike)
    said: Json = {"rate": rate, "agreement": agreement, "design_effect": effect, "level": level}
    given = {"agreement": agreement, "level": level}
    if difference is not None and images is not None:
        got = stats.paired_power(max(1, int(images / effect)), rate, difference, **given)
        return said | {"images": images, "difference": difference, "power": got}
    if difference is not None:
        needed = math.ceil(effect * stats.images_needed(rate, difference, power=power, **given))
        return said | {"images": needed, "difference": difference, "power": power}
    if images is not None:
        down, up = stats.detectable(rate, max(1, int(images / effect)), power=power, **given)
        return said | {"images": images, "drop": down, "rise": up, "power": power}
    raise BadInput("expected --difference, --images, or both: such as --rate 0.1 --difference 0.05")


def planned_lines(found: Json) -> list[str]:
    """The same to be read."""
    start = f"from {100 * found['rate']:g} %, paired by prompt and seed, McNemar's exact test at {found['level']:.0%}"
    power, images = f"power {found['power']:.0%}", f"{found['images']:,} images a method"
    if "difference" in found:
        return [f"{start}: {images} show a difference of {100 * found['difference']:+g} points with {power}"]
    ends = [f"{word} of {100 * found[word]:.1f} points" for word in ("drop", "rise") if found[word] is not None]
    return [f"{start}: {images} show {' or '.join(ends) or 'no difference'} with {power}"]
