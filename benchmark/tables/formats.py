"""A board as text: terminal, Markdown, CSV, JSON, LaTeX. Rates are fractions in JSON and CSV, percent elsewhere.

All but the terminal's are the same bytes for the same board: no times, no paths, no host names.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmark.inert import csv_cell as csv_cell
from benchmark.inert import json_text
from benchmark.inert import md as md
from benchmark.inert import printable as printable
from benchmark.inert import tex as tex
from benchmark.metrics.balance import headline
from benchmark.metrics.protocols import protocol
from benchmark.metrics.summary import ROLES
from benchmark.stats import FEW
from benchmark.tables.board import MEAN
from benchmark.tables.columns import Board, Row, columns, natural

MARK = {"up": "↑", "down": "↓"}
DASH = "–"
EMBEDDED = "embedded model: 64×64 artwork; not comparable with papers' numbers"


# --- what all tables share ------------------------------------------------------------------------------------
def title(board: Board) -> str:
    """`objects v1 · testbed (embedded model: …)`."""
    label = f" ({EMBEDDED})" if board["form"] == "embedded" else ""
    thinned = "" if board["scale"] == 1 else f" · scaled by {board['scale']:g}"
    return f"{board['suite']} v{board['suite_version']} · {board['model']}{label}{thinned}"


def sections(board: Board) -> list[tuple[str, list[Row]]]:
    """Rows by request; the mean stands last, and is left out where there is one request."""
    names = list(dict.fromkeys(r["request"] for r in board["rows"]))
    shown = [n for n in names if n != MEAN or len(names) != 2]
    return [(n, [r for r in board["rows"] if r["request"] == n]) for n in shown]


def heading(name: str, rows: Sequence[Row]) -> str:
    """A column's short name in tables read by people."""
    if name == "headline":
        return str(next((r["headline_id"] for r in rows if r["headline_id"]), "headline"))
    return name.removeprefix("acc_").removeprefix("testbed-").removesuffix("/score")


def is_rate(name: str, row: Row | None = None) -> bool:
    """Whether a column holds fractions, shown in percent; of the headline the row says which it is."""
    if name == "headline":
        known = row["headline_id"] if row else None
        return known is None or headline(known).unit == "fraction"
    if name.startswith("acc_"):
        return True
    p = protocol(name)
    return p.scope == "image" and p.unit == "fraction"


def shown(name: str, value: float | None, digits: int = 1, row: Row | None = None) -> str:
    """A value as tables show it; not available is a dash, never a guess."""
    if value is None:
        return DASH
    if is_rate(name, row):
        return f"{100 * value:.{digits}f}"
    return f"{value:.4f}" if 0 < abs(value) < 1 else f"{value:.2f}"


def interval_of(row: Row, name: str) -> str:
    """`94–100` in percent for rates; "" where there is no interval (or none is shown)."""
    metric = row.get("metrics_ci", {}).get(name)
    ci = row.get(f"{name}_ci") if metric is None else metric
    if ci is None:
        return ""
    if is_rate(name, row):
        return f"{100 * ci[0]:.0f}–{100 * ci[1]:.0f}"
    digits = 1 if metric is None or max(map(abs, ci)) >= 10 else 2
    ends = [f"{v:.{digits}f}" for v in ci]
    return (" to " if ci[0] < 0 else "–").join(ends)


def place(row: Row) -> str:
    """Rank among ranked rows, `=` if tied with the best; `base` and `ctrl` say what the others are, `invalid` that the
    unedited model is outside its gate; a row without numbers shows its status."""
    if row["status"] != "ok":
        return str(row["status"])
    if row["gate"]:
        return "invalid"
    tie = "=" if row["tied"] else ""
    fixed = {"baseline": "base", "control": "ctrl"}.get(row["role"])
    return fixed + tie if fixed else DASH if row["rank"] is None else f"{row['rank']}{tie}"


def notes(board: Board) -> list[str]:
    """What a reader must know beside the numbers, one line each."""
    rows = board["rows"]
    primary = next((r["primary"] for r in rows if r["primary"]), None)
    few = f"by image where a role has fewer than {FEW} prompts"
    lines = [f"Rates in %, by {primary}, with 95 % intervals (Wilson; means and headline: bootstrap by prompt, {few})."]
    if any(r["rank"] for r in rows):
        lines.append("Ranks count controls; = tied with the best method (paired permutation, Holm, p ≥ .05).")
    if any(r["strategy"] == "sequential" for r in rows):
        lines.append("Sequential: " + _listed(r for r in rows if r["strategy"] == "sequential"))
    lines += [_spread(r) for r in rows if r["spread"]]
    lines += _gates(rows)
    lines += _won([r for r in rows if r["wins"]])
    lines += [f"Not scored: {_where(r)}: {_invalid(r)}." for r in rows if r["n_invalid"] and r["request"] != MEAN]
    lines += [f"{_where(r)}: {r['status']}: {r['reason']}" for r in rows if r["status"] != "ok"]
    return lines + _shared_reasons(rows)


def _gates(rows: Sequence[Row]) -> list[str]:
    """What makes requests invalid, and where the unedited model was not run to tell."""
    faults = {r["request"]: r["gate"] for r in rows if r["gate"] and r["request"] != MEAN}
    unknown = sorted({r["request"] for r in rows if r["gate"] is None and r["request"] != MEAN}, key=natural)
    lines = [f"{request}: {why}; no number of it means anything." for request, why in faults.items()]
    missing = f"Not checked: whether the unedited model does what is asked, which was not run ({', '.join(unknown)})."
    return lines + ([missing] if unknown else [])


def _spread(row: Row) -> str:
    """Which part of a score's luck is training's; intervals hold the other part only."""
    spread, unit = row["spread"], 100 if is_rate("headline", row) else 1
    training, sampling = (f"{unit * spread[k]:.1f}" for k in ("training_sd", "sampling_sd"))
    seeds = f"{len(spread['seeds'])} training seeds"
    return f"{_where(row)}: {seeds}; the headline's deviation is {training} over trainings, {sampling} from sampling."


def _where(row: Row) -> str:
    return f"{row['method']}, {row['request']}"


def _listed(rows: Any) -> str:
    return "; ".join(map(_where, rows)) + "."


def _won(rows: Sequence[Row]) -> list[str]:
    """A warning for each control and set of columns that it wins, with the requests."""
    found: dict[tuple[str, str], list[str]] = {}
    for r in rows:
        names = ", ".join(heading(n, rows) for n in r["wins"])
        found.setdefault((r["method"], names), []).append(r["request"])
    return [f"A control beats all methods: {m} on {names} ({', '.join(q)})." for (m, names), q in found.items()]


def _invalid(row: Row) -> str:
    parts = []
    for role, n in row["n_invalid"].items():
        every = row["acc_all_images"].get(role)
        counted = "" if every is None else f" ({100 * every:.1f} % of all images)"
        parts.append(f"{n} of {n + (row[f'n_{role}'] or 0)} {role}{counted}")
    return ", ".join(parts)


def _shared_reasons(rows: Sequence[Row]) -> list[str]:
    """Reasons for missing numbers, each once with the number of rows that it holds for."""
    count: dict[str, int] = {}
    for r in rows:
        for reason in r["reason"].split("; ") if r["status"] == "ok" and r["reason"] else ():
            count[reason] = count.get(reason, 0) + 1
    return [f"Not available in {n} row{'s' if n > 1 else ''}: {reason}." for reason, n in count.items()]


# --- terminal -------------------------------------------------------------------------------------------------
def term(board: Board, *, width: int = 100, colour: bool = False) -> str:
    """A table a request, at most `width` columns wide; columns that do not fit are named below."""
    out = io.StringIO()
    # legacy_windows and the environment must not change what is written.
    console = Console(file=out, width=width, force_terminal=colour, color_system="standard" if colour else None)
    console.print(Text(printable(title(board)), style="bold"))
    left_out: list[str] = []
    for name, rows in sections(board):
        table, dropped = _table(name, rows, width)
        left_out += [d for d in dropped if d not in left_out]
        console.print(table)
    if left_out:
        console.print(Text(f"Too wide to show: {', '.join(left_out)}; see board.md.", style="dim"))
    for line in notes(board):
        console.print(Text(printable(line), style="dim"))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _table(name: str, rows: Sequence[Row], width: int) -> tuple[Table, list[str]]:
    every = columns(rows)
    cells = {c: [_cell(r, c) for r in rows] for c, _, _ in every}
    heads = {c: f"{heading(c, rows)} {MARK[d]}" for c, d, _ in every}
    label = max([len(r["method"]) for r in rows] + [6])
    label = min(label, max(12, width // 4))
    kept: list[str] = []
    room = width - label - 2 - max(6, 2 + max(len(place(r)) for r in rows))
    for c, _, _ in every:
        need = 2 + max(len(heads[c]), *(len(t) for t in cells[c]))
        if need > room:
            break
        room, kept = room - need, [*kept, c]
    table = Table(box=None, pad_edge=False, title=_section(name, rows), title_justify="left", padding=(0, 2, 0, 0))
    table.add_column("method", no_wrap=True, overflow="ellipsis", width=label)
    table.add_column("rank", no_wrap=True)
    for c in kept:
        table.add_column(heads[c], justify="right", no_wrap=True)
    for i, r in enumerate(rows):
        table.add_row(Text(printable(r["method"]), style=_style(r)), place(r), *(cells[c][i] for c in kept))
    return table, [heading(c, rows) for c, _, _ in every if c not in kept]


def _section(name: str, rows: Sequence[Row]) -> Text:
    counts = next((r for r in rows if r["status"] == "ok"), None)
    sizes = [f"{counts[f'n_{role}']} {role}" for role in ROLES if counts[f"n_{role}"]] if counts else []
    what = "mean over requests" if name == MEAN else name
    return Text.assemble("\n", (printable(what), "bold"), (f"  images: {', '.join(sizes)}" if sizes else "", "dim"))


def _style(row: Row) -> str:
    return "bold" if row["best"] else "dim" if row["role"] == "control" else ""


def _cell(row: Row, name: str) -> Text:
    """A value and its interval, padded so that values stand under each other."""
    value = row["headline"] if name == "headline" else row.get(name, row["metrics"].get(name))
    bold = "bold" if name == "headline" and row["best"] else ""
    text = Text(shown(name, value, row=row), style=bold)
    if name == "headline" or name.startswith("acc_"):
        text.append(f" {interval_of(row, name):>6}" if value is not None else " " * 7, style="dim not bold")
    return text


# --- files ----------------------------------------------------------------------------------------------------
def as_json(board: Board) -> str:
    return json_text(json.dumps(board, indent=1, ensure_ascii=False, allow_nan=False)) + "\n"


FLAT = ("method", "role", "request", "strategy", "status", "reason", "gate", "primary")
RANKING = ("rank", "best", "p_vs_best", "tied", "gap_vs_best")


def as_csv(board: Board) -> str:
    """The same rows, flat, each with what the board is of: intervals as `_lo` and `_hi`, metrics by their id.

    Not available is empty.
    """
    rows = flat(board)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: csv_cell(v) for k, v in row.items()} for row in rows)
    return out.getvalue()


def flat(board: Board) -> list[dict[str, Any]]:
    """The rows of `board.csv`, as they are before text is made safe for spreadsheets."""
    metrics = list(dict.fromkeys(c for r in board["rows"] for c in r["metrics"]))
    of = {k: board[k] for k in ("suite", "suite_version", "model", "form")}
    return [of | _flat(r, metrics) for r in board["rows"]]


def _flat(row: Row, metrics: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {k: row[k] for k in FLAT}
    found |= {f"n_{role}": row[f"n_{role}"] for role in ROLES}
    for role in ROLES:
        found |= {f"acc_{role}": row[f"acc_{role}"]} | _ends(f"acc_{role}", row[f"acc_{role}_ci"])
    found |= {"headline_id": row["headline_id"], "headline": row["headline"]} | _ends("headline", row["headline_ci"])
    for m in metrics:
        found |= {m: row["metrics"].get(m)} | _ends(m, row["metrics_ci"].get(m))
    found |= {f"n_invalid_{role}": row["n_invalid"].get(role, 0) for role in ROLES}
    found |= {k: row[k] for k in RANKING} | _ends("rank", row["rank_ci"]) | {"wins": " ".join(row["wins"])}
    found |= _ends("gap_vs_best", row["gap_vs_best_ci"])
    found |= {"marks": " ".join(f"{column}:{mark}" for column, mark in row["marks"].items())}
    found |= {k: (row["spread"] or {}).get(k) for k in ("training_sd", "sampling_sd")}
    return found


def _ends(name: str, ci: Sequence[float] | None) -> dict[str, float | None]:
    return {f"{name}_lo": None if ci is None else ci[0], f"{name}_hi": None if ci is None else ci[1]}


def as_md(board: Board) -> str:
    parts = [f"# {md(title(board))}\n"]
    for name, rows in sections(board):
        every = columns(rows)
        heads = ["method", "rank", *(f"{heading(c, rows)} {MARK[d]}" for c, d, _ in every)]
        parts.append(f"## {md('mean over requests' if name == MEAN else name)}\n")
        parts.append("| " + " | ".join(map(md, heads)) + " |")
        parts.append("|---|---|" + "---:|" * len(every))
        parts += [_md_row(r, [c for c, _, _ in every]) for r in rows]
        parts.append("")
    return "\n".join([*parts, *(f"- {md(line)}" for line in notes(board))]) + "\n"


def _md_row(row: Row, names: Sequence[str]) -> str:
    method = f"**{md(row['method'])}**" if row["best"] else md(row["method"])
    return "| " + " | ".join([method, place(row), *(_spelled(row, n) for n in names)]) + " |"


def _spelled(row: Row, name: str) -> str:
    value = row["headline"] if name == "headline" else row.get(name, row["metrics"].get(name))
    ci = interval_of(row, name)
    return shown(name, value, row=row) + (f" ({ci})" if value is not None and ci else "")


MARKS = {"best": r"\textbf", "second": r"\underline"}
MARKED = (
    "Bold: best of the methods, underlined: second, only where paired tests (McNemar, permutation; Holm over the "
    "board, p < .05) tell it from every method below it; distances have no such test."
)


def as_tex(board: Board, *, intervals: bool = False) -> str:
    """One `tabular` with booktabs rules, a block a request; best and second marked where the paired tests say so."""
    blocks = sections(board)
    every = columns([r for _, rows in blocks for r in rows])
    heads = ["Method", *(f"{heading(c, board['rows'])} {MARK[d]}" for c, d, _ in every)]
    lines = [f"% {printable(title(board))}", "% needs \\usepackage{booktabs}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * len(every)}}}", r"\toprule"]
    if board["form"] == "embedded":  # a comment would stay behind when the table is typeset
        lines.append(rf"\multicolumn{{{len(heads)}}}{{l}}{{{tex(EMBEDDED)}}} \\")
    lines.append(" & ".join(map(tex, heads)) + r" \\")
    for name, rows in blocks:
        lines += [r"\midrule", rf"\multicolumn{{{len(heads)}}}{{l}}{{\textit{{{tex(_block(name, rows))}}}}} \\"]
        lines += [_tex_row(r, [c for c, _, _ in every], intervals) for r in rows]
    said = [*notes(board), MARKED]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *(f"% {printable(n)}" for n in said)]) + "\n"


def _block(name: str, rows: Sequence[Row]) -> str:
    what = "mean over requests" if name == MEAN else name
    return f"{what} (invalid: see below)" if any(r["gate"] for r in rows) else what


def tex_method(row: Row) -> str:
    """A method's name, and what it is if it is no method."""
    return tex(row["method"] + {"baseline": " (unedited)", "control": " (control)"}.get(row["role"], ""))


def tex_marked(text: str, mark: str | None) -> str:
    """Bold for a best, underlined for a second."""
    return text if mark is None else rf"{MARKS[mark]}{{{text}}}"


def tex_interval(text: str) -> str:
    """An interval in small print, "" if there is none."""
    return rf" {{\scriptsize ({tex(text)})}}" if text else ""


def _tex_row(row: Row, names: Sequence[str], intervals: bool) -> str:
    if row["status"] != "ok":
        said = tex(f"{row['status']}: {row['reason']}")
        return rf"{tex_method(row)} & \multicolumn{{{len(names)}}}{{l}}{{\textit{{{said}}}}} \\"
    cells = [tex_method(row)]
    for n in names:
        value = row["headline"] if n == "headline" else row.get(n, row["metrics"].get(n))
        text = tex_marked(tex(shown(n, value, row=row)), row["marks"].get(n))
        cells.append(text + (tex_interval(interval_of(row, n)) if intervals and value is not None else ""))
    return " & ".join(cells) + r" \\"


FORMATS: Mapping[str, Callable[[Board], str]] = {
    "term": term,
    "md": as_md,
    "csv": as_csv,
    "json": as_json,
    "tex": as_tex,
}
