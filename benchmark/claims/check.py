"""What is wrong with a ledger of claims, from its numbers alone: status and note are never read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmark.claims import granularity
from benchmark.claims.formulas import Recomputed, recompute
from benchmark.claims.granularity import Impossible
from benchmark.claims.ledger import Claim
from benchmark.claims.numbers import meet

Json = dict[str, Any]
Contested = tuple[Claim, ...]
"""Claims of one cell that are not all the same number."""


@dataclass(frozen=True)
class Report:
    """All findings, in the order of the ledger."""

    claims: int
    recomputed: dict[int, Recomputed]
    inconsistent: tuple[tuple[Claim, Recomputed], ...]
    contested: tuple[Contested, ...]
    impossible: tuple[Impossible, ...]

    @property
    def ok(self) -> bool:
        return not (self.inconsistent or self.contested or self.impossible)

    def flags(self) -> dict[int, tuple[str, ...]]:
        """By line of the ledger: which of `inconsistent`, `contested`, `impossible` it is."""
        found: dict[int, list[str]] = {}
        for claim, _ in self.inconsistent:
            found.setdefault(claim.line, []).append("inconsistent")
        for claim in (c for cell in self.contested for c in cell):
            found.setdefault(claim.line, []).append("contested")
        for finding in self.impossible:
            found.setdefault(finding.claim.line, []).append("impossible")
        return {line: tuple(flags) for line, flags in found.items()}

    def as_json(self) -> Json:
        """`claims check --json`. Numbers are in the unit that the claim is printed in."""
        return {
            "inconsistent": [_inconsistent(c, r) for c, r in self.inconsistent],
            "contested": [_contested(cell) for cell in self.contested],
            "granularity": [_impossible(i) for i in self.impossible],
            "claims": self.claims,
            "recomputed": len(self.recomputed),
        }

    def lines(self) -> list[str]:
        """To be read."""
        shown: list[str] = []
        shown += _section(
            "Does not follow from the parts printed beside it", map(_inconsistent_line, self.inconsistent)
        )
        shown += _section("Printed differently by two tables", map(_contested_line, self.contested))
        shown += _section("No count over the stated number of images gives it", map(_impossible_line, self.impossible))
        counts = (
            f"{len(self.inconsistent)} inconsistent, {len(self.contested)} contested, {len(self.impossible)} impossible"
        )
        return [*shown, f"{counts} among {self.claims} claims, {len(self.recomputed)} of them recomputed"]


def check(claims: Sequence[Claim]) -> Report:
    """Recompute what can be, compare what is printed twice, and count what is a share of images."""
    again = recompute(claims)
    return Report(
        len(claims),
        again,
        tuple((c, again[c.line]) for c in claims if c.line in again and not again[c.line].agrees(c)),
        _cells(claims),
        tuple(i for i in map(granularity.check, claims) if i is not None),
    )


def _cells(claims: Sequence[Claim]) -> tuple[Contested, ...]:
    """Cells printed more than once whose roundings have no value in common."""
    cells: dict[tuple[str, ...], list[Claim]] = {}
    for c in claims:
        cells.setdefault(c.cell, []).append(c)
    return tuple(tuple(cell) for cell in cells.values() if not _agree(cell))


def _agree(cell: Sequence[Claim]) -> bool:
    return all(meet(a.interval, b.interval) for i, a in enumerate(cell) for b in cell[i + 1 :])


# --- as JSON --------------------------------------------------------------------------------------------------
def _where(c: Claim) -> Json:
    return {
        "source": c.source,
        "table": c.table,
        "row": c.row,
        "metric": c.metric,
        "suite": c.suite,
        "concept": c.concept,
    }


def _inconsistent(c: Claim, r: Recomputed) -> Json:
    digits = c.printed.decimals + 2
    value, *bounds = (round(v / c.scale, digits) for v in (r.value, *r.range))
    return {**_where(c), "printed": c.printed.value, "recomputed": value, "range": bounds, "how": r.how, "unit": c.unit}


def _contested(cell: Contested) -> Json:
    first = cell[0]
    names = ("suite", "concept", "model", "row", "protocol", "metric")
    of: Json = {name: getattr(first, name) for name in names}
    said = [{"source": c.source, "table": c.table, "value": c.printed.value, "unit": c.unit} for c in cell]
    return {**of, "printed": [{**s, "text": c.printed.text} for s, c in zip(said, cell, strict=True)]}


def _impossible(i: Impossible) -> Json:
    nearest = [{"count": k, "value": round(v, i.claim.printed.decimals + 3)} for k, v in i.nearest]
    return {**_where(i.claim), "printed": i.claim.printed.value, "images": i.images, "nearest": nearest}


# --- as lines -------------------------------------------------------------------------------------------------
def _section(title: str, lines: Any) -> list[str]:
    found = [f"  {line}" for line in lines]
    return [f"{title}:", *found, ""] if found else []


def _place(c: Claim) -> str:
    of = ", ".join(part for part in (c.suite, c.concept) if part)
    return f"{c.source}, {c.table}, {c.row}{f' ({of})' if of else ''}"


def _inconsistent_line(found: tuple[Claim, Recomputed]) -> str:
    c, r = found
    if c.unit == "count":
        return f"{_place(c)}: {c.metric} {c.printed.shown}, recomputed {r.value:g} ({r.how})"
    value, lo, hi = (f"{v / c.scale:.{c.printed.decimals}f}" for v in (r.value, *r.range))
    within = "" if lo == value == hi else f", {lo} to {hi} with their rounding"
    return f"{_place(c)}: {c.metric} {c.printed.shown}, recomputed {value}{within} ({r.how})"


def _contested_line(cell: Contested) -> str:
    first = cell[0]
    of = ", ".join(part for part in (first.suite, first.concept, first.model, first.row) if part)
    mark = {c.line: " %" if "percent" in c.unit else "" for c in cell}
    said = "; ".join(f"{c.printed.shown}{mark[c.line]} in {c.source}, {c.table}" for c in cell)
    return f"{of}: {first.metric} {said}"


def _impossible_line(i: Impossible) -> str:
    c = i.claim
    shown = " and ".join(f"{v:.{c.printed.decimals + 2}f} ({k})".replace("00 (", " (") for k, v in i.nearest)
    return f"{_place(c)}: {c.metric} {c.printed.shown} of {i.images} images; nearest {shown}"
