"""A paper's tables as Markdown, CSV and LaTeX. Deterministic: no times, no paths, no host names."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence

from benchmark.inert import csv_cell
from benchmark.inert import md as _md
from benchmark.inert import printable as _printable
from benchmark.inert import tex as _tex
from benchmark.tables.layouts import Column
from benchmark.tables.measured import NONE, Measured
from benchmark.tables.papers import Block, Cell, Paper, PaperTable, Section

DASH = "–"
ARROW = {"up": " ↑", "down": " ↓", None: ""}
UNIT = {"percent": " %", "fraction": "", "points": "", "count": ""}
EMBEDDED = "Embedded model"
CAVEAT = "64×64 artwork: shows how methods behave there, and compares with no number of a paper"
NOTHING = "Nothing measured: no records for this layout under results/."
HOW = (
    "Claimed: as printed. Measured: by this harness, from committed records of the suite, model and protocol named, "
    "with 95 % intervals. Recomputed: made again from the parts that are printed beside the claim. A dash is a number "
    "that was not printed, or cannot be made again."
)


# --- cells ----------------------------------------------------------------------------------------------------
def kinds(column: Column) -> list[str]:
    """The columns under a metric."""
    shown = ["claimed", "measured"] if column.claimed else []
    return [*shown, "recomputed"] if column.recomputed else shown


def heading(column: Column) -> str:
    return f"{column.title}{UNIT[column.unit]}{ARROW[column.better]}"


def spelled(cell: Cell, kind: str) -> str:
    """A cell of a claimed, measured or recomputed column."""
    if kind == "claimed":
        return DASH if cell.claim is None else cell.claim.printed.shown + cell.marks
    if kind == "recomputed":
        digits = cell.column.digits if cell.claim is None else cell.claim.printed.decimals
        return DASH if cell.recomputed is None else _number(cell.recomputed, digits)
    shown = of_measured(cell.measured, cell.column)
    return shown if cell.verdict is None else f"{shown} {cell.verdict}"


def of_measured(m: Measured, column: Column) -> str:
    """`12.4 (11.0–13.9)`; what stands in its way where there is no number."""
    if m.value is None:
        return NONE if m.why in ("", NONE) else f"{NONE}: {m.why.partition(':')[0]}"
    value, ci = scaled(m, column)
    return _number(value, column.digits) + (
        "" if ci is None else f" ({'–'.join(_number(v, column.digits) for v in ci)})"
    )


def scaled(m: Measured, column: Column) -> tuple[float, tuple[float, float] | None]:
    """A measured number in the unit of its column."""
    assert m.value is not None
    by = 100.0 if column.unit == "percent" else 1.0
    return by * m.value, None if m.ci is None else (by * m.ci[0], by * m.ci[1])


def _number(value: float, digits: int) -> str:
    # Rounding can leave a sign in front of nothing.
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


# --- Markdown -------------------------------------------------------------------------------------------------
def as_md(paper: Paper) -> str:
    lines = [f"# {_md(paper.layout.title)}", "", HOW, *(f"\n{_md(n)}" for n in paper.layout.notes), ""]
    for table in paper.tables:
        lines += _md_table(table)
    return "\n".join(lines).rstrip("\n") + "\n"


def _md_table(found: PaperTable) -> list[str]:
    lines = [f"## {_md(found.table.title)}", ""]
    for block in found.blocks:
        lines += _md_block(block, kinds, spelled)
    lines += [f"- {_md(n)}" for n in found.notes]
    for section in found.embedded:
        lines += ["", f"### {_md(_title(section))}", "", *([] if section.blocks else [NOTHING])]
        for block in section.blocks:
            lines += _md_block(block, lambda c: [""], lambda cell, _: of_measured(cell.measured, cell.column))
        lines += [f"- {_md(n)}" for n in section.notes]
    return [*lines, ""]


def _title(section: Section) -> str:
    return f"{EMBEDDED}: {section.title} ({CAVEAT})" if section.title else EMBEDDED


def _md_block(block: Block, under: Callable[[Column], list[str]], spell: Callable[[Cell, str], str]) -> list[str]:
    heads = [f"{heading(c)} {kind}".strip() for c in block.columns for kind in under(c)]
    lines = [f"**{_md(block.group.title)}**", "", "| method | " + " | ".join(map(_md, heads)) + " |"]
    lines.append("|---|" + "---:|" * len(heads))
    for label, cells in block.rows:
        texts = [spell(cell, kind) for cell in cells for kind in under(cell.column)]
        lines.append("| " + " | ".join(map(_md, [label, *texts])) + " |")
    return [*lines, ""]


# --- CSV ------------------------------------------------------------------------------------------------------
FIELDS = (
    *("paper", "table", "heading", "group", "row", "column", "metric", "unit"),
    *("claimed", "claimed_source", "claimed_table", "status", "flags"),
    *("measured", "measured_lo", "measured_hi", "measured_method", "verdict", "recomputed"),
    *("embedded", "embedded_lo", "embedded_hi", "why"),
)
"""Claims and embedded-model results have columns of their own, and rows of their own."""


def as_csv(paper: Paper) -> str:
    """One row a cell. Not available is empty; `why` says what stands in the way of a measurement."""
    out = io.StringIO()
    writer = csv.DictWriter(out, FIELDS, restval="", lineterminator="\n")
    writer.writeheader()
    for found in paper.tables:
        of = {"paper": csv_cell(paper.layout.name), "table": csv_cell(found.table.id)}
        for block in found.blocks:
            writer.writerows(of | _csv_row(block, label, c) | _of_claim(c) for label, row in block.rows for c in row)
        for section in found.embedded:
            at = of | {"heading": csv_cell(f"{EMBEDDED}: {section.title}")}
            for block in section.blocks:
                rows = ((label, c) for label, row in block.rows for c in row)
                writer.writerows(at | _csv_row(block, label, c) | _numbers("embedded", c) for label, c in rows)
    return out.getvalue()


def _csv_row(block: Block, label: str, cell: Cell) -> dict[str, str]:
    column = cell.column
    where = {"group": block.group.title, "row": label, "column": column.title, "metric": column.metric}
    return {k: csv_cell(v) for k, v in (where | {"unit": column.unit, "why": cell.measured.why}).items()}


def _of_claim(cell: Cell) -> dict[str, str]:
    c = cell.claim
    where = {} if c is None else {"claimed_source": csv_cell(c.source), "claimed_table": csv_cell(c.table)}
    claimed = {} if c is None else {"claimed": c.printed.text, **where}  # a number, which may begin with its sign
    status = {} if c is None else {"status": csv_cell(c.status.split(" ")[0]), "flags": " ".join(cell.flags)}
    digits = (cell.column.digits if c is None else c.printed.decimals) + 2
    again = {} if cell.recomputed is None else {"recomputed": f"{cell.recomputed:.{digits}f}"}
    judged = {"verdict": cell.verdict or "", "measured_method": csv_cell(cell.measured.method)}
    return claimed | status | again | judged | _numbers("measured", cell)


def _numbers(name: str, cell: Cell) -> dict[str, str]:
    if cell.measured.value is None:
        return {}
    value, ci = scaled(cell.measured, cell.column)
    ends = {} if ci is None else {f"{name}_lo": f"{ci[0]:.6g}", f"{name}_hi": f"{ci[1]:.6g}"}
    return {name: f"{value:.6g}"} | ends


# --- LaTeX ----------------------------------------------------------------------------------------------------
_PAGE = 12
"""Columns of numbers that fit on a page; a wider tabular is scaled down to it."""


def as_tex(paper: Paper) -> str:
    """A `table` float for each table, with a booktabs `tabular` for each group, and one for each embedded model."""
    lines = [f"% {_printable(paper.layout.title)}", "% needs \\usepackage{booktabs,graphicx}", f"% {HOW}"]
    lines += [f"% {_printable(n)}" for n in paper.layout.notes]
    for found in paper.tables:
        lines += _tex_table(found.table.title, found.blocks, found.notes, kinds, spelled)
        for section in found.embedded:
            title = f"{found.table.title}. {_title(section)}"
            if section.blocks:
                lines += _tex_table(title, section.blocks, section.notes, lambda c: [""], _spelled_embedded)
            else:
                lines += ["", f"% {_printable(title)}: {NOTHING}"]
    return "\n".join(lines) + "\n"


def _spelled_embedded(cell: Cell, _: str) -> str:
    return of_measured(cell.measured, cell.column)


def _tex_table(
    title: str,
    blocks: Sequence[Block],
    notes: Sequence[str],
    under: Callable[[Column], list[str]],
    spell: Callable[[Cell, str], str],
) -> list[str]:
    told = f"The paper's {title}" if title.startswith("Table ") else title  # LaTeX numbers it by itself
    lines = ["", r"\begin{table}", r"\centering\footnotesize", rf"\caption{{{_tex(told)}}}"]
    for block in blocks:
        lines += _tex_block(block, under, spell)
    lines += [rf"\par\smallskip\raggedright {_tex(n)}" for n in notes]
    return [*lines, r"\end{table}"]


def _tex_block(block: Block, under: Callable[[Column], list[str]], spell: Callable[[Cell, str], str]) -> list[str]:
    spans = [(heading(c), under(c)) for c in block.columns]
    width = sum(len(kinds) for _, kinds in spans)
    scaled_down = width > _PAGE
    lines = [
        rf"\par\medskip\textit{{{_tex(block.group.title)}}}\par\smallskip",
        *([r"\resizebox{\linewidth}{!}{"] if scaled_down else []),
    ]
    lines += [rf"\begin{{tabular}}{{l{'r' * width}}}", r"\toprule"]
    lines.append(" & ".join(["", *(rf"\multicolumn{{{len(k)}}}{{c}}{{{_tex(h)}}}" for h, k in spans)]) + r" \\")
    if any(kind for _, names in spans for kind in names):
        lines.append("".join(_rules(spans)))
        lines.append(" & ".join(["Method", *(kind for _, names in spans for kind in names)]) + r" \\")
    lines.append(r"\midrule")
    for label, cells in block.rows:
        texts = [spell(cell, kind) for cell in cells for kind in under(cell.column)]
        lines.append(" & ".join(map(_tex, [label, *texts])) + r" \\")
    return [*lines, r"\bottomrule", r"\end{tabular}" + ("}" if scaled_down else "")]


def _rules(spans: Sequence[tuple[str, list[str]]]) -> list[str]:
    rules, at = [], 2
    for _, names in spans:
        rules.append(rf"\cmidrule(lr){{{at}-{at + len(names) - 1}}}")
        at += len(names)
    return rules


FORMATS: Mapping[str, Callable[[Paper], str]] = {"md": as_md, "csv": as_csv, "tex": as_tex}
