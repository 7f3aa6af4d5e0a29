"""Boards → what the templates write: every cell's text, sorting value and interval bar. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmark.metrics.protocols import protocol
from benchmark.page import anchors
from benchmark.page.runs import Run
from benchmark.tables import formats
from benchmark.tables import overall as overall_tables
from benchmark.tables.board import MEAN
from benchmark.tables.columns import Row, columns, natural
from benchmark.tables.overall_formats import rank

Json = dict[str, Any]
KINDS = {"baseline": "unedited", "erasure": "method", "control": "control"}
TITLES = {
    "acc_erased": "accuracy on erased prompts: low is good",
    "acc_kept": "accuracy on kept prompts: high is good",
    "acc_synonym": "accuracy on synonyms of what is erased: low is good",
    "acc_adjacent": "accuracy on the nearest kept concepts: high is good",
}


def view(run: Run) -> Json:
    """A run's board: one section a request, the mean last, with notes."""
    sections = [_section(name, rows) for name, rows in formats.sections(run.board)]
    named = {c["id"]: c for s in sections for c in s["columns"]}
    return {
        "title": formats.title(run.board),
        "sections": sections,
        "columns": list(named.values()),
        "kinds": sorted({r["kind"] for s in sections for r in s["rows"]}),
        "notes": formats.notes(run.board),
        "shown": MEAN if any(s["request"] == MEAN for s in sections) else sections[0]["request"],
    }


def _section(request: str, rows: Sequence[Row]) -> Json:
    names = columns(rows)
    scales = {name: _scale(name, rows) for name, _, _ in names}
    return {
        "request": request,
        "slug": anchors.slug(request),
        "heading": "Mean over requests" if request == MEAN else request,
        "columns": [_column(name, direction, rows) for name, direction, _ in names],
        "rows": [_row(r, [_cell(name, get(r), r, scales[name]) for name, _, get in names]) for r in rows],
        "unscored": any(r["n_invalid"] for r in rows),
    }


def _column(name: str, direction: str, rows: Sequence[Row]) -> Json:
    short = formats.heading(name, rows)
    title = TITLES.get(name) or ("the suite's headline" if name == "headline" else protocol(name).title)
    by = next((r["primary"] for r in rows), "")
    of_primary = name == "headline" or name.startswith("acc_")
    return {
        "id": name,
        "name": short,
        "mark": formats.MARK[direction],
        "direction": direction,
        "title": f"{title}; {by}" if of_primary else title,
        "protocol": by if of_primary else name,
    }


def _row(r: Row, cells: Sequence[Json]) -> Json:
    return {
        "anchor": anchors.cell(r["request"], r["method"]),
        "method": r["method"],
        "slug": anchors.slug(r["method"]),
        "kind": KINDS.get(r["role"], r["role"]),
        "rank": r["rank"],
        "place": place(r),
        "best": r["best"],
        "tied": r["tied"],
        "ok": r["status"] == "ok",
        "status": r["status"],
        "reason": r["reason"] or "",
        "sequential": r["strategy"] == "sequential",
        "invalid": sum(r["n_invalid"].values()),
        "wins": list(r["wins"]),
        "cells": cells,
    }


def place(r: Row) -> str:
    """Rank with its interval, `2 = (1–3)`, where = says tied with the best; else what the row is."""
    if r["gate"]:
        return "invalid"
    if r["rank"] is None:
        return KINDS.get(r["role"], "–") if r["role"] != "erasure" else "–"
    tie = " =" if r["tied"] else ""
    ci = r["rank_ci"]
    return f"{r['rank']}{tie}" + (f" ({ci[0]}–{ci[1]})" if ci and ci[0] != ci[1] else "")


# --- one number -------------------------------------------------------------------------------------------------------
Scale = tuple[float, float]


def _interval(name: str, r: Row) -> Sequence[float] | None:
    found = r["metrics_ci"].get(name) if name in r["metrics"] else r.get(f"{name}_ci")
    return found


def _scale(name: str, rows: Sequence[Row]) -> Scale:
    """Of the bars in a column: 0 to 1 for rates, else from the lowest to the highest end."""
    if formats.is_rate(name, rows[0]):
        return 0.0, 1.0
    ends = [v for r in rows for v in (_interval(name, r) or ())]
    return (min(ends), max(ends)) if ends else (0.0, 1.0)


def _cell(name: str, value: float | None, r: Row, scale: Scale) -> Json:
    ci = _interval(name, r)
    return {
        "column": name,
        "text": formats.shown(name, value, row=r),
        "sort": "" if value is None else f"{value:.6g}",
        "ci": "" if ci is None or value is None else _range(name, ci, r),
        "bar": None if ci is None or value is None else [_at(v, scale) for v in (ci[0], value, ci[1])],
    }


def _range(name: str, ci: Sequence[float], r: Row) -> str:
    texts = [formats.shown(name, v, row=r) for v in ci]
    return f"{texts[0]} to {texts[1]}"


def _at(value: float, scale: Scale) -> float:
    """Where a value stands on a bar, in percent of its width."""
    low, high = scale
    share = 0.5 if high <= low else (value - low) / (high - low)
    return round(100 * min(1.0, max(0.0, share)), 2)


# --- over all suites --------------------------------------------------------------------------------------------------
def overall(runs: Sequence[Run]) -> Json:
    """A row for each method and model, a column for each board: headlines are not averaged over suites, since those of
    different definitions do not compare. `best` counts the boards on which a method is best or tied with it, `of` those
    on which it has a headline; `rank` is the leaderboard's mean rank over them, where there are several."""
    views = [(run, _overall_column(run)) for run in runs]
    found: dict[tuple[str, str], Json] = {}
    for run, column in views:
        for r in _final(run):
            key = (r["method"], run.board["model"])
            row = found.setdefault(key, _overall_row(r, run))
            cell = row["cells"][column["id"]] = _overall_cell(r, run)
            row["best"] += cell["best"] or cell["tied"]
            row["of"] += r["headline"] is not None
    for key, said in _mean_ranks(runs).items():
        found[key] |= said
    rows = sorted(found.values(), key=_overall_place)
    used = [column for _, column in views]
    return {
        "columns": used,
        "rows": rows,
        "kinds": sorted({r["kind"] for r in rows}),
        "models": sorted({r["model"] for r in rows}),
        "protocols": sorted({c["protocol"] for c in used}),
    }


_ORDER = {"unedited": 0, "method": 1, "control": 2}


def _overall_place(row: Json) -> tuple[Any, ...]:
    rank = row["mean_rank"]
    return (_ORDER[row["kind"]], rank is None, rank or 0.0, -row["best"], natural(row["method"]), row["model"])


def _mean_ranks(runs: Sequence[Run]) -> dict[tuple[str, str], Json]:
    """Of each method and model: the mean rank of `tables.overall`, over a model's boards if it has several suites, each
    once."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(str(run.board[k]) for k in overall_tables.SHARED), []).append(run)
    found: dict[tuple[str, str], Json] = {}
    for group in groups.values():
        made = {run.board["suite"]: (run.board, run.draws) for run in group if run.draws}
        if 1 < len(made) == len(group):
            for row in overall_tables.of_boards(made)["rows"]:
                said = {"mean_rank": row["mean_rank"], "rank": rank(row) if row["mean_rank"] is not None else ""}
                found[row["method"], group[0].board["model"]] = said
    return found


def _final(run: Run) -> list[Row]:
    """The rows that stand for the whole board: its means, or its one request's."""
    return list(formats.sections(run.board)[-1][1])


def _overall_column(run: Run) -> Json:
    rows = _final(run)
    return {
        "id": run.id,
        "suite": run.board["suite"],
        "version": run.board["suite_version"],
        "model": run.board["model"],
        "scale": run.board["scale"],
        "embedded": run.embedded,
        "headline": next((r["headline_id"] for r in rows if r["headline_id"]), None),
        "protocol": next((r["primary"] for r in rows), ""),
        "mark": next((formats.MARK[d] for n, d, _ in columns(rows) if n == "headline"), ""),
    }


def _overall_row(r: Row, run: Run) -> Json:
    kind = KINDS.get(r["role"], r["role"])
    counts = {"best": 0, "of": 0, "mean_rank": None, "rank": ""}
    return {"method": r["method"], "kind": kind, "model": run.board["model"], **counts, "cells": {}}


def _overall_cell(r: Row, run: Run) -> Json:
    rows = _final(run)
    cell = _cell("headline", r["headline"], r, _scale("headline", rows))
    shown = _row(r, ())
    link = f"{run.id}.html#{shown['anchor']}"
    return cell | {k: shown[k] for k in ("place", "best", "tied", "status", "reason", "ok")} | {"link": link}
