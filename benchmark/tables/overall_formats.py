"""A leaderboard over suites as text: terminal, Markdown, CSV, JSON, LaTeX. The same bytes for the same leaderboard."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmark.inert import json_text
from benchmark.tables.columns import Row
from benchmark.tables.formats import (
    DASH,
    EMBEDDED,
    MARK,
    csv_cell,
    interval_of,
    md,
    printable,
    shown,
    tex,
    tex_interval,
    tex_marked,
    tex_method,
)
from benchmark.tables.overall import Leaderboard

RANK = f"mean rank {MARK['down']}"
PARTIAL = "*"
FIXED = {"baseline": "base", "control": "ctrl"}
Suite = Mapping[str, Any]


# --- what all tables share ------------------------------------------------------------------------------------
def title(made: Leaderboard) -> str:
    label = f" ({EMBEDDED})" if made["form"] == "embedded" else ""
    return f"{len(made['suites'])} suites · {made['model']}{label}"


def head(suite: Suite) -> str:
    return f"{suite['suite']} {suite['headline_id']} {MARK[suite['direction']]}"


def value(cell: Row) -> str:
    """The headline; without one, what the cell is instead. `=` if tied with the suite's best."""
    if cell["status"] != "ok":
        return str(cell["status"])
    if cell["gate"]:
        return "invalid"
    return shown("headline", cell["headline"], row=cell) + ("=" if cell["tied"] else "")


def interval(cell: Row) -> str:
    """The headline's interval, "" where there is none or no number to hold it."""
    return "" if cell["status"] != "ok" or cell["gate"] else interval_of(cell, "headline")


def rank(row: Row) -> str:
    """The mean rank with its interval; `*` if it is over some suites only, and compares with no other."""
    if row["role"] in FIXED:
        return FIXED[row["role"]]
    if row["mean_rank"] is None:
        return DASH
    ci = row["mean_rank_ci"]
    span = "" if ci is None else f" ({ci[0]:.1f}–{ci[1]:.1f})"
    return f"{row['mean_rank']:.2f}{span}" + (PARTIAL if row["ranked_in"] < row["ranked_of"] else "")


def notes(made: Leaderboard) -> list[str]:
    """What a reader must know beside the numbers, one line each."""
    rows, suites = made["rows"], made["suites"]
    counted = [s["suite"] for s in suites if not s["why"]]
    lines = [
        "A column is a suite's headline, the mean over its requests: in % or its own unit, with 95 % intervals "
        "(bootstrap by prompt). Scores of different suites are not averaged.",
        f"Mean rank: the place among erasure methods, ties sharing theirs, over {len(counted)} suites, with the 95 % "
        "interval of the joint bootstrap. The unedited model and controls are not ranked.",
    ]
    if any(c["tied"] for r in rows for c in r["cells"].values()):
        lines.append("= tied with the suite's best method (paired permutation, Holm, p ≥ .05).")
    lines += _partial(rows)
    lines += [f"{s['suite']} does not count for the mean rank: {s['why']}." for s in suites if s["why"]]
    lines += [
        f"A control beats all methods on {s['suite']}: {', '.join(w)}." for s in suites if (w := s["won_by_controls"])
    ]
    unchecked = [s["suite"] for s in suites if not s["gate_checked"]]
    if unchecked:
        lines.append(f"Not checked: whether the unedited model does what is asked ({', '.join(unchecked)}).")
    lines += _certain(rows, suites)
    lines += [f"{s['suite']} is scaled by {s['scale']:g}." for s in suites if s["scale"] != 1]
    lines += [f"{suite} is not shown: {why}." for suite, why in made["left_out"].items()]
    return lines + _absent(rows)


def _partial(rows: Sequence[Row]) -> list[str]:
    some = [r for r in rows if r["mean_rank"] is not None and r["ranked_in"] < r["ranked_of"]]
    named = ", ".join(f"{r['method']} {r['ranked_in']} of {r['ranked_of']}" for r in some)
    return (
        [f"{PARTIAL} not in every suite that counts, so that the rank compares with no other: {named}."] if some else []
    )


def _certain(rows: Sequence[Row], suites: Sequence[Suite]) -> list[str]:
    """Suites whose headline has no interval: their places enter the mean rank as if they were certain."""
    having = {s["suite"]: [c for r in rows if (c := r["cells"][s["suite"]])["headline"] is not None] for s in suites}
    none = [name for name, cells in having.items() if cells and all(c["headline_ci"] is None for c in cells)]
    said = "places by headlines without an interval enter the mean rank as if they were certain"
    return [f"{', '.join(none)}: {said}."] if none else []


def _absent(rows: Sequence[Row]) -> list[str]:
    """Cells without a number, each with its reason."""
    every = [(r["method"], suite, cell) for r in rows for suite, cell in r["cells"].items()]
    lines = [f"{m}, {suite}: {c['status']}: {c['reason']}" for m, suite, c in every if c["status"] != "ok"]
    empty = [(m, suite, c) for m, suite, c in every if c["status"] == "ok" and c["headline"] is None]
    return lines + [f"{m}, {suite}: no headline: {c['reason'] or 'not available'}" for m, suite, c in empty]


# --- terminal -------------------------------------------------------------------------------------------------
def term(made: Leaderboard, *, width: int = 100, colour: bool = False) -> str:
    """Tables at most `width` columns wide, as many as the suites need."""
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=colour, color_system="standard" if colour else None)
    console.print(Text(printable(title(made)), style="bold"))
    for columns in _pages(made, width):
        console.print(_table(made["rows"], columns, width))
    for line in notes(made):
        console.print(Text(printable(line), style="dim"))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


Column = tuple[str, list[str]]


def _pages(made: Leaderboard, width: int) -> list[list[Column]]:
    """The columns, parted so that each table fits beside the methods' names."""
    rows = made["rows"]
    every: list[Column] = [(RANK, [rank(r) for r in rows])]
    every += [(head(s), [_spelled(r["cells"][s["suite"]]) for r in rows]) for s in made["suites"]]
    pages: list[list[Column]] = [[]]
    room = full = width - _label(rows, width) - 2
    for column in every:
        need = 2 + max(map(len, [column[0], *column[1]]))
        if need > room and pages[-1]:
            pages.append([])
            room = full
        pages[-1].append(column)
        room -= need
    return pages


def _label(rows: Sequence[Row], width: int) -> int:
    return min(max([len(r["method"]) for r in rows] + [6]), max(12, width // 4))


def _table(rows: Sequence[Row], columns: Sequence[Column], width: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title="")
    table.add_column("method", no_wrap=True, overflow="ellipsis", width=_label(rows, width))
    for name, _ in columns:
        table.add_column(Text(printable(name)), justify="right", no_wrap=True)
    for i, r in enumerate(rows):
        style = "dim" if r["role"] == "control" else ""
        table.add_row(Text(printable(r["method"]), style=style), *(Text(texts[i]) for _, texts in columns))
    return table


def _spelled(cell: Row) -> str:
    ci = interval(cell)
    return value(cell) + (f" ({ci})" if ci else "")


# --- files ----------------------------------------------------------------------------------------------------
def as_json(made: Leaderboard) -> str:
    return json_text(json.dumps(made, indent=1, ensure_ascii=False, allow_nan=False)) + "\n"


def as_csv(made: Leaderboard) -> str:
    """One line a method and suite, with the method's mean rank on each. Not available is empty."""
    flat = [_flat(made, r, s) for r in made["rows"] for s in made["suites"]]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(flat[0]) if flat else ["method"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _flat(made: Leaderboard, row: Row, suite: Suite) -> dict[str, Any]:
    cell = row["cells"][suite["suite"]]
    flat = {k: made[k] for k in ("model", "form")} | {k: suite[k] for k in ("suite", "suite_version")}
    flat |= {k: row[k] for k in ("method", "role")} | {k: cell[k] for k in ("status", "reason", "gate")}
    flat |= {"headline_id": suite["headline_id"], "direction": suite["direction"]}
    for name in ("headline", "gap_vs_best"):
        flat |= {name: cell[name]} | _ends(name, cell[f"{name}_ci"])
    flat |= {"tied": cell["tied"], "mark": cell["mark"], "mean_rank": row["mean_rank"]}
    flat |= _ends("mean_rank", row["mean_rank_ci"]) | {k: row[k] for k in ("ranked_in", "ranked_of")}
    return {k: csv_cell(v) for k, v in flat.items()}


def _ends(name: str, ci: Sequence[float] | None) -> dict[str, float | None]:
    return {f"{name}_lo": None if ci is None else ci[0], f"{name}_hi": None if ci is None else ci[1]}


def as_md(made: Leaderboard) -> str:
    heads = ["method", RANK, *map(head, made["suites"])]
    parts = [f"# {md(title(made))}\n", "| " + " | ".join(map(md, heads)) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    parts += [_md_row(r, made["suites"]) for r in made["rows"]]
    return "\n".join([*parts, "", *(f"- {md(line)}" for line in [*notes(made), BOLD])]) + "\n"


BOLD = (
    "Bold: the suite's best method, where paired tests (Holm over the suite's board, p < .05) tell it from every other."
)


def _md_row(row: Row, suites: Sequence[Suite]) -> str:
    cells = [row["cells"][s["suite"]] for s in suites]
    texts = [f"**{md(_spelled(c))}**" if c["mark"] == "best" else md(_spelled(c)) for c in cells]
    return "| " + " | ".join([md(row["method"]), md(rank(row)), *texts]) + " |"


def as_tex(made: Leaderboard, *, intervals: bool = False) -> str:
    """One `tabular` with booktabs rules; a suite's best and second are marked where its paired tests say so."""
    suites = made["suites"]
    wide = len(suites) > _PAGE
    lines = [f"% {printable(title(made))}", f"% needs \\usepackage{{booktabs{',graphicx' if wide else ''}}}"]
    lines += [r"\resizebox{\linewidth}{!}{"] if wide else []
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(suites) + 1)}}}", r"\toprule"]
    if made["form"] == "embedded":  # a comment would stay behind when the table is typeset
        lines.append(rf"\multicolumn{{{len(suites) + 2}}}{{l}}{{{tex(EMBEDDED)}}} \\")
    lines.append(" & ".join(["Method", tex(RANK), *(tex(s["suite"]) for s in suites)]) + r" \\")
    under = (f"{s['headline_id']} {MARK[s['direction']]}" for s in suites)
    lines += [" & ".join(["", "", *map(tex, under)]) + r" \\", r"\midrule"]
    lines += [_tex_row(r, suites, intervals) for r in made["rows"]]
    said = [f"% {printable(n)}" for n in [*notes(made), UNDERLINED]]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}" + ("}" if wide else ""), *said]) + "\n"


_PAGE = 5
"""Suites that fit on a page with intervals; more are scaled down to its width."""
UNDERLINED = f"{BOLD} Underlined: the second, where it is told from the best and from every one below."


def _tex_row(row: Row, suites: Sequence[Suite], intervals: bool) -> str:
    texts = []
    for cell in (row["cells"][s["suite"]] for s in suites):
        text = tex_marked(tex(value(cell)), cell["mark"])
        texts.append(text + (tex_interval(interval(cell)) if intervals else ""))
    return " & ".join([tex_method(row), tex(rank(row)), *texts]) + r" \\"


FORMATS: Mapping[str, Callable[[Leaderboard], str]] = {"md": as_md, "csv": as_csv, "json": as_json}
