"""Several runs → one leaderboard: a row per method, a column per suite, and the mean rank. Reads records only.

Scores of different suites are not averaged: they have no common scale, and one made from the best and worst method
present would move with every method that is added. What is averaged is the place among the erasure methods.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmark import stats
from benchmark.errors import BadInput, did_you_mean
from benchmark.metrics.balance import headline
from benchmark.stats import Floats
from benchmark.tables import board as boards
from benchmark.tables.columns import Board, Record, Row, natural

SCHEMA = 1
RUN = "not run"
Leaderboard = dict[str, Any]
Drawn = Mapping[str, Floats | None]
"""By method: draws of the mean headline of one suite."""
SHARED = ("model", "model_hash", "form")
CELL = ("status", "reason", "gate", "headline_id", "headline", "headline_ci", "tied", "gap_vs_best", "gap_vs_best_ci")


# --- reading --------------------------------------------------------------------------------------------------
def read_suites(folders: Iterable[str | Path]) -> dict[str, list[Record]]:
    """Records by suite, of runs and of folders of runs. Runs of one suite, such as shards, are put together.

    BadInput where there are no records, and where two runs hold one cell with different contents.
    """
    found: dict[str, dict[tuple[Any, ...], Record]] = {}
    for run in (run for folder in folders for run in _runs(Path(folder))):
        for r in boards.read_records(run):
            cell = (r["method"]["label"], r["request"]["name"], r["request"]["seed"], r["suite_version"])
            if found.setdefault(r["suite"], {}).setdefault(cell, r) != r:
                raise BadInput(
                    f"{run} has another record of {cell[0]} on {r['suite']}, {cell[1]}; name one run of the two"
                )
    return {suite: list(found[suite].values()) for suite in sorted(found, key=natural)}


def _runs(folder: Path) -> list[Path]:
    """The folder if it is a run, else the runs in it; the folder too if there are none, for the error to name."""
    if (folder / "records").is_dir() or not folder.is_dir():
        return [folder]
    return sorted(p.parent for p in folder.glob("*/records")) or [folder]


# --- leaderboard ----------------------------------------------------------------------------------------------
def build(suites: Mapping[str, Sequence[Record]]) -> Leaderboard:
    """The leaderboard of suites on one model. Every method of any suite has a row, the unedited model and controls too.

    BadInput for several models or forms: their numbers do not compare.
    """
    return of_boards({name: boards.with_draws(records) for name, records in suites.items()})


def of_boards(made: Mapping[str, tuple[Board, Drawn]]) -> Leaderboard:
    """The same from boards by suite, each with its draws, as `board.with_draws` makes them."""
    first = {k: _only([board for board, _ in made.values()], k) for k in SHARED}
    means = {name: _means(board) for name, (board, _) in made.items()}
    shown = [name for name, rows in means.items() if any(r["headline_id"] for r in rows.values())]
    described = [_suite(made[name][0], means[name]) for name in shown]
    rows = [_row(method, shown, means) for method in sorted({m for n in shown for m in means[n]}, key=natural)]
    _rank(rows, described, {name: made[name][1] for name in shown})
    rows.sort(key=_position)
    left_out = {name: "it has no headline" for name in made if name not in shown}
    return {"schema": SCHEMA, **first, "suites": described, "left_out": left_out, "rows": rows}


def _only(made: Sequence[Board], what: str) -> Any:
    found = sorted({board[what] for board in made}, key=str)
    if len(found) != 1:
        raise BadInput(
            f"runs of {len(found)} different {what} values ({', '.join(found[:2])}, …); a leaderboard has one"
        )
    return found[0]


def _means(board: Board) -> dict[str, Row]:
    """A suite's rows over all its requests, by method."""
    return {r["method"]: r for r in board["rows"] if r["request"] == boards.MEAN}


def _suite(board: Board, means: Mapping[str, Row]) -> dict[str, Any]:
    """What the leaderboard says of a suite; `why` it does not count for the mean rank, "" if it does."""
    name = next(r["headline_id"] for r in means.values() if r["headline_id"])
    requests = {r["request"] for r in board["rows"]} - {boards.MEAN}
    gate = next((r["gate"] for r in means.values() if r["gate"]), "")
    few = "fewer than two erasure methods have a number" if len(_comparable(means)) < 2 else ""
    said = {"suite": board["suite"], "suite_version": board["suite_version"], "scale": board["scale"]}
    said |= {"headline_id": name, "direction": headline(name).direction, "requests": len(requests)}
    wins = sorted(m for m, r in means.items() if "headline" in r["wins"])
    unchecked = any(r["gate"] is None for r in means.values())
    return said | {"why": gate or few, "gate_checked": not unchecked, "won_by_controls": wins}


def _comparable(means: Mapping[str, Row]) -> dict[str, Row]:
    """Erasure methods with a number in a suite whose gate is not failed."""
    return {
        m: r
        for m, r in means.items()
        if r["role"] == "erasure" and r["status"] == "ok" and not r["gate"] and r["headline"] is not None
    }


def _row(method: str, suites: Sequence[str], means: Mapping[str, Mapping[str, Row]]) -> Row:
    known = [means[s][method] for s in suites if method in means[s]]
    cells = {s: _cell(means[s].get(method)) for s in suites}
    ranking = {"mean_rank": None, "mean_rank_ci": None, "ranked_in": 0, "ranked_of": 0}
    return {"method": method, "role": known[0]["role"], **ranking, "cells": cells}


def _cell(row: Row | None) -> dict[str, Any]:
    if row is None:
        empty: dict[str, Any] = dict.fromkeys(CELL)
        return empty | {"status": RUN, "reason": "no run of this suite has it", "gate": "", "tied": False, "mark": None}
    return {k: row[k] for k in CELL} | {"mark": row["marks"].get("headline")}


# --- ranks ----------------------------------------------------------------------------------------------------
def _rank(rows: Sequence[Row], suites: Sequence[Mapping[str, Any]], drawn: Mapping[str, Drawn]) -> None:
    """Fill the mean ranks of erasure methods, over the suites that count and have them."""
    counted = [s for s in suites if not s["why"]]
    points = [_points(rows, s["suite"]) for s in counted]
    directions = [s["direction"] for s in counted]
    places = stats.mean_ranks([{m: np.array([v]) for m, v in p.items()} for p in points], directions)
    tables = [_draws(p, drawn[s["suite"]]) for p, s in zip(points, counted, strict=True)]
    draws = stats.mean_ranks(tables, directions)
    for row in rows:
        method = row["method"]
        row["ranked_in"], row["ranked_of"] = sum(method in p for p in points), len(counted)
        if method in places:
            row["mean_rank"] = float(places[method][0])
            row["mean_rank_ci"] = stats.around(row["mean_rank"], draws[method])


def _points(rows: Sequence[Row], suite: str) -> dict[str, float]:
    cells = {r["method"]: r["cells"][suite] for r in rows if r["role"] == "erasure"}
    return {m: c["headline"] for m, c in cells.items() if c["status"] == "ok" and c["headline"] is not None}


def _draws(points: Mapping[str, float], drawn: Drawn) -> dict[str, Floats]:
    """Draws of one suite's headlines; where one method has none, all stand still: a place among some is no place."""
    found = {m: drawn.get(m) for m in points}
    still = any(d is None for d in found.values())
    return {m: np.full(stats.RESAMPLES, points[m]) if still or d is None else d for m, d in found.items()}


def _position(row: Row) -> tuple[Any, ...]:
    """Unedited, methods in all suites by mean rank, methods in some, controls."""
    partial, rank = row["ranked_in"] < row["ranked_of"], row["mean_rank"]
    return (boards.ORDER.get(row["role"], 1), partial, rank is None, rank or 0.0, natural(row["method"]))


# --- writing --------------------------------------------------------------------------------------------------
def render(made: Leaderboard, kind: str, *, width: int = 100, colour: bool = False, intervals: bool = False) -> str:
    """The leaderboard as `term`, `md`, `csv`, `json` or `tex`; `intervals` puts them into `tex` too."""
    from benchmark.tables import overall_formats as formats

    if kind == "term":
        return formats.term(made, width=width, colour=colour)
    if kind == "tex":
        return formats.as_tex(made, intervals=intervals)
    if kind not in formats.FORMATS:
        raise BadInput(did_you_mean(kind, [*formats.FORMATS, "term", "tex"], "format"))
    return formats.FORMATS[kind](made)
