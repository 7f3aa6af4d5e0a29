"""Papers' claims beside what the page's runs measured: which papers, and what their templates write. Pure.

Numbers of the embedded model stand in sections of their own, as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmark.claims import ledger
from benchmark.page.anchors import slug
from benchmark.page.runs import Run
from benchmark.tables import layouts, measured, papers
from benchmark.tables import paper_formats as texts
from benchmark.tables.layouts import Column
from benchmark.tables.papers import Block, Cell, Paper, PaperTable, Section

Json = dict[str, Any]


def views(runs: Sequence[Run]) -> list[Json]:
    """A view for each paper whose claims one of these runs' suites is there to measure."""
    here = {run.board["suite"] for run in runs}
    wanted = [layout for layout in map(layouts.load, layouts.names()) if here.intersection(papers.suites(layout))]
    if not wanted:
        return []
    claims, found = ledger.read(None), _evidence(runs)
    return [_view(papers.of_evidence(layout, claims, _of(layout, found)), runs) for layout in wanted]


def _evidence(runs: Sequence[Run]) -> list[measured.Evidence]:
    """Of two runs of one suite on one model the first: a number has one source."""
    first: dict[tuple[str, str], Run] = {}
    for run in runs:
        if run.records:
            first.setdefault((run.board["model"], run.board["suite"]), run)
    known = {name for layout in map(layouts.load, layouts.names()) for name in papers.suites(layout)}
    return [
        e
        for (model, suite), run in first.items()
        if suite in known
        for e in measured.of_records(f"{model}/{suite}", run.records)
    ]


def _of(layout: layouts.Layout, found: Sequence[measured.Evidence]) -> list[measured.Evidence]:
    return [e for e in found if e.suite in papers.suites(layout)]


# --- one paper --------------------------------------------------------------------------------------------------------
def _view(paper: Paper, runs: Sequence[Run]) -> Json:
    layout = paper.layout
    mine = [run for run in runs if run.board["suite"] in papers.suites(layout)]
    return {
        "name": layout.name,
        "page": f"claims.{slug(layout.name)}",
        "title": layout.title,
        "notes": layout.notes,
        "runs": [{"id": run.id, "title": _title(run), "embedded": run.embedded} for run in mine],
        "embedded": any(run.embedded for run in mine),
        "tables": [_table(found) for found in paper.tables],
        "counts": _counts(paper),
    }


def _title(run: Run) -> str:
    scale = "" if run.board["scale"] == 1 else f" · scaled by {run.board['scale']:g}"
    return f"{run.board['suite']} v{run.board['suite_version']} · {run.board['model']}{scale}"


def _counts(paper: Paper) -> Json:
    """Claims, how many of them were measured, and how many do not follow from what is printed beside them."""
    cells = [c for t in paper.tables for b in t.blocks for _, row in b.rows for c in row if c.claim is not None]
    return {
        "claims": len(cells),
        "measured": sum(c.measured.value is not None for c in cells),
        "marked": sum(bool(c.flags) for c in cells),
    }


def _table(found: PaperTable) -> Json:
    return {
        "id": slug(found.table.id),
        "title": found.table.title,
        "model": found.table.model,
        "blocks": [_block(b, _kinds(b), _claimed) for b in found.blocks],
        "notes": found.notes,
        "embedded": [_section(s) for s in found.embedded if s.blocks],
    }


def _section(section: Section) -> Json:
    blocks = [_block(b, lambda c: ["measured"], lambda cell, _: _measured(cell)) for b in section.blocks]
    return {"title": section.title, "blocks": blocks, "notes": section.notes}


def _kinds(block: Block) -> Callable[[Column], list[str]]:
    """The columns under a metric, without measured ones where nothing of the block was: a wall of "not measured"."""
    tried = any(c.measured.method for _, row in block.rows for c in row)
    return lambda column: [kind for kind in texts.kinds(column) if tried or kind != "measured"]


def _block(block: Block, under: Callable[[Column], list[str]], cell: Callable[[Cell, str], Json]) -> Json:
    return {
        "title": block.group.title,
        "columns": [{"name": texts.heading(c), "kinds": under(c)} for c in block.columns if under(c)],
        "rows": [
            {"label": label, "cells": [cell(c, kind) for c in row for kind in under(c.column)]}
            for label, row in block.rows
        ],
        "measured": any("measured" in under(c) for c in block.columns),
    }


def _claimed(cell: Cell, kind: str) -> Json:
    if kind == "measured":
        return _measured(cell)
    meant = "; ".join(papers.MEANING[mark] for mark in cell.marks) if kind == "claimed" else ""
    text = texts.spelled(cell, kind)
    return {"text": text, "none": text == texts.DASH, "title": meant, "verdict": "", "kind": kind}


def _measured(cell: Cell) -> Json:
    m = cell.measured
    none = m.value is None
    return {
        "text": texts.of_measured(m, cell.column),
        "none": none,
        "title": m.why if none else f"{m.method}" + (f", {m.n:,} images" if m.n else ""),
        "verdict": cell.verdict or "",
        "kind": "measured",
    }
