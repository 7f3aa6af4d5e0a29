"""What looks at more than one row: ranks, ties, effect sizes, marks, and the warning that a control wins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from benchmark import stats
from benchmark.stats import Floats
from benchmark.tables.columns import RATES, Row, columns, sign
from benchmark.tables.draws import Draws, Groups, Pair, headline_of

ALPHA = 0.05
MARK_RESAMPLES = 5000
"""Swaps for a mark: Holm multiplies the smallest p by the number of marks on a board, which may pass a hundred."""
Cells = Mapping[str, Groups]
"""By method: its records in the rows that are compared."""


def compare(rows: Sequence[Row], cells: Cells, draws: Draws) -> list[Claim]:
    """Fill ranks, ties, gaps and flags of one request's rows; returns the marks that its columns lay claim to.

    The unedited model is not ranked, and requests that failed their gate are not compared.
    """
    able = [r for r in rows if r["status"] == "ok" and not r["gate"]]
    ranked = [r for r in able if r["role"] != "baseline" and r["headline"] is not None]
    if ranked:
        _rank(ranked, cells, draws)
    erasing = [r for r in ranked if r["role"] == "erasure"]
    if erasing:
        _beside_best(max(erasing, key=lambda r: r["headline"] * sign(r)), ranked, cells, draws)
    _flag(rows)
    return _claims([r for r in able if r["role"] == "erasure"], cells, draws)


def _rank(rows: Sequence[Row], cells: Cells, draws: Draws) -> None:
    found = {r["method"]: draws.headline(cells[r["method"]]) for r in rows}
    known = {m: d for m, d in found.items() if d is not None}
    direction = "up" if sign(rows[0]) > 0 else "down"
    intervals = stats.rank_intervals(known, direction) if known else {}
    places = stats.ranks({r["method"]: r["headline"] for r in rows}, direction)
    for r in rows:
        r["rank"] = places[r["method"]]
        r["rank_ci"] = list(intervals[r["method"]]) if r["method"] in intervals else None


def _beside_best(best: Row, ranked: Sequence[Row], cells: Cells, draws: Draws) -> None:
    """Ties with the best erasure method by the paired test under Holm, and how far each method is from it."""
    best["best"] = True
    others = [r for r in ranked if r is not best]
    found = {r["method"]: _p(cells[best["method"]], cells[r["method"]], "headline", draws) for r in others}
    adjusted = stats.holm({m: p for m, p in found.items() if p is not None})
    for r in others:
        r["p_vs_best"] = adjusted.get(r["method"])
        r["tied"] = adjusted.get(r["method"], 0.0) >= ALPHA
        r["gap_vs_best"] = r["headline"] - best["headline"]
        r["gap_vs_best_ci"] = _gap_interval(r, best, cells, draws)


def _gap_interval(row: Row, best: Row, cells: Cells, draws: Draws) -> list[float] | None:
    """Of the difference: both methods' draws share the weights of prompts, so that they are paired."""
    mine, theirs = (draws.headline(cells[r["method"]]) for r in (row, best))
    return None if mine is None or theirs is None else stats.around(row["gap_vs_best"], mine - theirs)


# --- paired tests ---------------------------------------------------------------------------------------------
def _p(a: Groups, b: Groups, column: str, draws: Draws, resamples: int = stats.RESAMPLES) -> float | None:
    """Paired two-sided p of a column's difference, on the images that both methods have; None if none pair up.

    Rates of single images by McNemar's exact test; the headline, and what is clustered, by permutation.
    """
    h = headline_of(a) if column == "headline" else None
    if len(a) != len(b) or (column == "headline" and h is None):
        return None
    roles = (column.removeprefix("acc_"),) if h is None else h.roles
    found = [draws.pair(x, y, roles, h) for x, y in zip(a, b, strict=True)]
    pairs = [p for p in found if p is not None]
    if len(pairs) < len(found):
        return None
    if h is None and _single_outcomes(pairs):
        (((x,), (y,)),) = pairs
        return stats.mcnemar((x.values > 0).tolist(), (y.values > 0).tolist())
    function = _same if h is None else h.draws
    return stats.paired_permutation(function, [x for x, _ in pairs], [y for _, y in pairs], resamples=resamples)[1]


def _same(values: Floats) -> Floats:
    return values


def _single_outcomes(pairs: Sequence[Pair]) -> bool:
    """Whether these are yes or no, one of each cluster, of one request: what McNemar's test is for."""
    if len(pairs) != 1:
        return False
    samples = [s for side in pairs[0] for s in side]
    outcomes = all(np.isin(s.values, (0.0, 1.0)).all() for s in samples)
    return outcomes and all(len(set(s.clusters)) == len(s.values) for s in samples)


# --- marks ----------------------------------------------------------------------------------------------------
class Claim(NamedTuple):
    """That a row is the best, or the second, of a column. It says so of itself only if the whole claim holds."""

    row: Row
    column: str
    place: Literal["best", "second"]
    p: float
    """The largest of its comparisons: a best is better than each of the others."""


def mark(claims: Iterable[Claim]) -> None:
    """Fill `marks` of the rows whose claims the paired tests support, by Holm over all claims of the board.

    A second is marked beside a best only.
    """
    every = list(claims)
    adjusted = stats.holm({str(i): c.p for i, c in enumerate(every)})
    best_of_column = False
    for i, claim in enumerate(every):
        supported = adjusted[str(i)] < ALPHA
        if supported and (claim.place == "best" or best_of_column):
            claim.row["marks"][claim.column] = claim.place
        if claim.place == "best":
            best_of_column = supported


def _claims(rows: Sequence[Row], cells: Cells, draws: Draws) -> list[Claim]:
    """Two for each column that has a test and something to tell apart: best, then second."""
    down = {f"acc_{role}": direction for role, direction in RATES}
    found: list[Claim] = []
    for column in (*down, "headline"):
        having = [r for r in rows if r[column] is not None]
        direction = down.get(column) or ("up" if having and sign(having[0]) > 0 else "down")
        ordered = sorted(having, key=lambda r: r[column] * (-1 if direction == "up" else 1))
        found += _column_claims(ordered, column, cells, draws)
    return found


def _column_claims(ordered: Sequence[Row], column: str, cells: Cells, draws: Draws) -> list[Claim]:
    """`ordered` from the best on. The last of two is no second."""
    if len(ordered) < 2:
        return []
    best = _beats(ordered[0], ordered[1:], column, cells, draws)
    if best is None:
        return []
    claims = [Claim(ordered[0], column, "best", best)]
    if len(ordered) < 3:
        return claims
    second = _beats(ordered[1], ordered[2:], column, cells, draws) if best < ALPHA else 1.0
    return claims if second is None else [*claims, Claim(ordered[1], column, "second", second)]


def _beats(row: Row, others: Sequence[Row], column: str, cells: Cells, draws: Draws) -> float | None:
    """The largest p against the others, the nearest first; it stops where the claim has failed. None without a test."""
    largest = 0.0
    for other in others:
        p = _p(cells[row["method"]], cells[other["method"]], column, draws, MARK_RESAMPLES)
        if p is None:
            return None
        largest = max(largest, p)
        if largest >= ALPHA:
            break
    return largest


# --- controls -------------------------------------------------------------------------------------------------
def _flag(rows: Sequence[Row]) -> None:
    """Name in `wins` the columns in which a control is strictly better than every erasure method."""
    erasing = [r for r in rows if r["role"] == "erasure" and r["status"] == "ok"]
    for control in (r for r in rows if r["role"] == "control" and r["status"] == "ok"):
        for name, direction, get in columns(rows):
            values = [v for v in (get(r) for r in erasing) if v is not None]
            mine, up = get(control), 1 if direction == "up" else -1
            if mine is not None and values and up * mine > max(up * v for v in values):
                control["wins"].append(name)
