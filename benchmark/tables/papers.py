"""A paper's layout, the ledger and committed records → its tables: claimed, measured, recomputed. Pure but for reading.

Embedded-model results stand under their own heading, in tables of their own, and never beside a claim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmark.claims import fidelity
from benchmark.claims.check import Report, check
from benchmark.claims.ledger import Claim
from benchmark.errors import BadInput
from benchmark.tables import measured
from benchmark.tables.layouts import Column, Group, Layout, Line, Table
from benchmark.tables.measured import NONE, Evidence, Measured
from benchmark.tables.verdict import RULE, Verdict, verdict

IMPLIED = "F_implied"
"""The fidelity that FADE-adv's printed H and accuracy imply: a column that is recomputed only."""
MARKS: Mapping[str, str] = {"inconsistent": "†", "contested": "‡", "impossible": "§"}
MEANING: Mapping[str, str] = {
    "†": "does not follow from the parts printed beside it",
    "‡": "printed otherwise by another source or table",
    "§": "no count over the stated number of images gives it",
}


@dataclass(frozen=True)
class Cell:
    """One metric of one row. `recomputed` is in the unit of the column, `claim` as printed."""

    column: Column
    claim: Claim | None = None
    flags: tuple[str, ...] = ()
    measured: Measured = Measured(why=NONE)
    verdict: Verdict | None = None
    recomputed: float | None = None

    @property
    def marks(self) -> str:
        return "".join(MARKS[f] for f in self.flags)


@dataclass(frozen=True)
class Block:
    """One group's rows."""

    group: Group
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True)
class Section:
    """What one embedded model gives in a table's layout; no blocks where nothing was measured."""

    title: str
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PaperTable:
    table: Table
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]
    embedded: tuple[Section, ...]


@dataclass(frozen=True)
class Paper:
    layout: Layout
    tables: tuple[PaperTable, ...]


def build(layout: Layout, claims: Sequence[Claim], results: Path | None) -> Paper:
    """All tables of a paper. BadInput if the layout names a unit that the ledger does not have there."""
    return of_evidence(layout, claims, measured.evidence(results, suites(layout)))


def suites(layout: Layout) -> list[str]:
    """The suites that measure a paper's claims, each once."""
    return sorted({n for t in layout.tables for g in t.groups for n in g.suites or (g.suite,)})


def of_evidence(layout: Layout, claims: Sequence[Claim], found: Sequence[Evidence]) -> Paper:
    """The same with what was measured at hand."""
    book = _Book(claims, check(claims))
    return Paper(layout, tuple(_table(t, book, found) for t in layout.tables))


class _Book:
    """The ledger by cell, with what is wrong in it."""

    def __init__(self, claims: Sequence[Claim], report: Report) -> None:
        self._claims = {(c.source, c.table, c.row, c.suite, c.concept, c.metric): c for c in claims}
        self._flags, self._again = report.flags(), report.recomputed

    def claim(self, table: Table, group: Group, row: str, metric: str) -> Claim | None:
        keys = ((p.source, p.table, row, group.suite, group.concept, metric) for p in group.claims or table.claims)
        return next((self._claims[k] for k in keys if k in self._claims), None)

    def flags(self, claim: Claim | None) -> tuple[str, ...]:
        return () if claim is None else self._flags.get(claim.line, ())

    def recomputed(self, claim: Claim | None) -> float | None:
        """In the unit that the claim is printed in."""
        again = None if claim is None else self._again.get(claim.line)
        return None if again is None or claim is None else again.value / claim.scale


# --- claimed, measured, recomputed ----------------------------------------------------------------------------
def _table(table: Table, book: _Book, found: Sequence[Evidence]) -> PaperTable:
    blocks = tuple(_block(table, group, book, found) for group in table.groups)
    own = {n for g in table.groups for n in g.suites or (g.suite,)}
    mine = [e for e in found if e.suite in own]
    return PaperTable(table, blocks, _notes(table, blocks, mine), _embedded(table, mine))


def _block(table: Table, group: Group, book: _Book, found: Sequence[Evidence]) -> Block:
    columns = tuple(table.columns_of(group))
    rows = tuple(
        (line.claimed, tuple(_cell(table, group, line, c, book, found) for c in columns)) for line in table.rows
    )
    # A group leaves out the rows that its paper does not have there.
    shown = [r for r in rows if any(c.claim is not None or c.measured.method for c in r[1])]
    return Block(group, columns, tuple(shown) or rows)


def _cell(table: Table, group: Group, line: Line, column: Column, book: _Book, found: Sequence[Evidence]) -> Cell:
    if column.metric == IMPLIED:
        return Cell(column, recomputed=_implied(table, group, line, book))
    claim = book.claim(table, group, line.claimed, column.metric) if column.claimed else None
    _check_unit(table, column, claim)
    model = line.model or table.model
    here = [e for e in found if e.form == "paper" and e.model == model]
    value = measured.measure(here, group, column.measured, line.methods)
    judged = None
    if claim is not None and value.value is not None and column.verdict:
        judged = verdict(value.value, value.ci, claim)
    again = book.recomputed(claim) if column.recomputed else None
    return Cell(column, claim, book.flags(claim), value, judged, again)


def _implied(table: Table, group: Group, line: Line, book: _Book) -> float | None:
    H, acc = (book.claim(table, group, line.claimed, m) for m in ("H_fade_adv", "acc_erased"))
    F = None if H is None or acc is None else fidelity.implied(H, acc)
    return None if F is None else 100 * F


def _check_unit(table: Table, column: Column, claim: Claim | None) -> None:
    """A percentage in a column of fractions would be read as a hundred times what it is."""
    rates = {"percent": "percent", "fraction": "fraction"}
    if claim is not None and column.unit in rates and rates[column.unit] not in claim.unit:
        raise BadInput(
            f"{table.id}: the column {column.title} is in {column.unit}, "
            f"and line {claim.line} of the ledger in {claim.unit}"
        )


# --- embedded -------------------------------------------------------------------------------------------------
def _embedded(table: Table, found: Sequence[Evidence]) -> tuple[Section, ...]:
    """A section for each embedded model that has records for this layout, by folder."""
    groups = [g for g in table.groups if g.embedded is not None]
    if not groups or not any(c.embedded for c in table.columns):
        return ()
    models: dict[str, list[Evidence]] = {}
    for e in found:
        if e.form == "embedded":
            models.setdefault(f"{e.folder.partition('/')[0]}", []).append(e)
    sections = (_section(model, table, groups, mine) for model, mine in sorted(models.items()))
    return tuple(s for s in sections if s.blocks) or (Section("", ()),)


def _section(model: str, table: Table, groups: Sequence[Group], found: Sequence[Evidence]) -> Section:
    methods = list(dict.fromkeys(m for e in found for m in e.methods))
    blocks = [b for b in (_embedded_block(table, g, methods, found) for g in groups) if b.rows]
    cells = [(label, c) for b in blocks for label, row in b.rows for c in row]
    why = dict.fromkeys(f"{label}: {c.measured.why}" for label, c in cells if c.measured.why not in ("", NONE))
    return Section(model, tuple(blocks), (*why, *(text for e in found for text in e.left_out)))


def _embedded_block(table: Table, group: Group, methods: Sequence[str], found: Sequence[Evidence]) -> Block:
    columns = tuple(c for c in table.columns_of(group) if c.embedded is not None)
    rows = [
        (m, tuple(Cell(c, measured=measured.measure(found, group, c.embedded, [m])) for c in columns)) for m in methods
    ]
    # the paper's heading ("100 artists") would be untrue of the few concepts that are erased here
    named = group.model_copy(update={"title": _asked(group)})
    return Block(named, columns, tuple(r for r in rows if any(c.measured.method for c in r[1])))


def _asked(group: Group) -> str:
    """What an embedded group is over: its suites and requests, by name."""
    assert group.embedded is not None
    of_suite = {name: measured.requests(name, "embedded", group.embedded) for name in group.suites or (group.suite,)}
    said = [f"{name} ({', '.join(q.removeprefix('erase:') for q in asked)})" for name, asked in of_suite.items()]
    most = sum(len(asked) for asked in of_suite.values())
    return ", ".join(said) + (f": mean over {most} requests" if most > 1 else "")


# --- notes ----------------------------------------------------------------------------------------------------
def _notes(table: Table, blocks: Sequence[Block], found: Sequence[Evidence]) -> tuple[str, ...]:
    """What a reader must know beside the numbers."""
    cells = [(b.group.title, label, c) for b in blocks for label, row in b.rows for c in row]
    marks = [m for m in MEANING if any(m in c.marks for _, _, c in cells)]
    lines = [f"{m} {MEANING[m]}." for m in marks]
    if any(c.verdict for _, _, c in cells):
        lines.append(RULE)
    used = {label: c.measured.method for _, label, c in cells if c.measured.value is not None}
    lines += [f"Measured for {label}: {method}, on {table.model}." for label, method in used.items() if method != label]
    why = dict.fromkeys(f"{g}, {label}: {c.measured.why}." for g, label, c in cells if c.measured.why not in ("", NONE))
    left_out = [f"Left out: {text}." for e in found if e.form == "paper" for text in e.left_out]
    return (*table.notes, *lines, *why, *left_out)
