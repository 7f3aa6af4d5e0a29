"""Two runs, records or boards side by side: what differs in the inputs, and by how much each number moved. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmark import inputs, regress, regress_stats
from benchmark.evidence import Evidence
from benchmark.inputs import Change
from benchmark.regress import Moved, number
from benchmark.regress_stats import Paired
from benchmark.tables import board

Numbers = Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A beside B."""

    a: str
    b: str
    cells: int
    """That both have."""
    changes: Mapping[Change, Sequence[str]]
    """Inputs that differ, with the cells."""
    moved: Mapping[str, Moved]
    """By cell, and by method over its requests: the numbers that differ."""
    tests: tuple[Paired, ...] = ()
    """Paired tests of the outcomes, where both have them."""
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())


def compare(a: Evidence, b: Evidence) -> Comparison:
    """What differs. Two single records are compared whatever they are of; else cells are matched by method, request and
    training seed."""
    if a.board or b.board:
        return _boards(a, b)
    if len(a.records) == len(b.records) == 1:
        pairs, only_a, only_b = [(a.records[0], b.records[0])], [], []
    else:
        old, new = ({inputs.place(r): r for r in e.records} for e in (a, b))
        pairs = [(old[p], new[p]) for p in old if p in new]
        only_a = [inputs.cell(old[p]) for p in old if p not in new]
        only_b = [inputs.cell(new[p]) for p in new if p not in old]
    cells = {inputs.cell(y): (regress.numbers(x), regress.numbers(y)) for x, y in pairs}
    return Comparison(
        a=a.label,
        b=b.label,
        cells=len(pairs),
        changes=inputs.gathered(pairs),
        moved=_moved({**cells, **_means(pairs)}),
        tests=tuple(regress_stats.family(regress.paired(pairs))),
        only_a=tuple(only_a),
        only_b=tuple(only_b),
    )


def _moved(numbers: Mapping[str, tuple[Numbers, Numbers]]) -> dict[str, Moved]:
    found: dict[str, Moved] = {}
    for cell, (x, y) in numbers.items():
        names = [n for n in dict.fromkeys([*x, *y]) if x.get(n) != y.get(n)]
        if names:
            found[cell] = {n: (x.get(n), y.get(n)) for n in names}
    return found


def _means(pairs: Sequence[regress.Pair]) -> dict[str, tuple[Numbers, Numbers]]:
    """By method: the means over the requests that both have, where there are several."""
    groups: dict[str, list[tuple[Numbers, Numbers]]] = {}
    for x, y in pairs:
        name = f"{y['method']['label']} over all requests"
        groups.setdefault(name, []).append((regress.numbers(x), regress.numbers(y)))
    return {n: (_mean([x for x, _ in g]), _mean([y for _, y in g])) for n, g in groups.items() if len(g) > 1}


def _mean(of: Sequence[Numbers]) -> Numbers:
    """Of what all have: distances over different numbers of images do not average."""
    values = {name: [v for n in of if (v := n.get(name)) is not None] for name in of[0]}
    return {name: sum(v) / len(v) for name, v in values.items() if len(v) == len(of)}


# --- boards -----------------------------------------------------------------------------------------------------------
_ABOUT = {"suite": "suite", "form": "suite", "scale": "suite", "model": "model", "suite_version": "suite version"}


def _boards(a: Evidence, b: Evidence) -> Comparison:
    """Where one side kept its board only, the other's is made from its records."""
    old, new = (e.board or board.build(e.records) for e in (a, b))
    x, y = _rows(old), _rows(new)
    both = [place for place in x if place in y]
    return Comparison(
        a=a.label,
        b=b.label,
        cells=len(both),
        changes={change: [] for change in sorted(_of_boards(old, new))},
        moved=_moved({place: (x[place], y[place]) for place in both}),
        only_a=tuple(place for place in x if place not in y),
        only_b=tuple(place for place in y if place not in x),
        notes=("a board tells suite, model and protocols; for all inputs and paired tests, compare records",),
    )


def _rows(of: Mapping[str, Any]) -> dict[str, Numbers]:
    """Cell → numbers, rows over all requests included."""
    found: dict[str, Numbers] = {}
    for row in of["rows"]:
        mean = row["request"] == board.MEAN
        name = f"{row['method']} over all requests" if mean else f"{row['method']} on {row['request']}"
        rates = {n: row[n] for n in row if n.startswith("acc_") and not isinstance(row[n], list | dict)}
        rates = {n: value for n, value in rates.items() if not n.endswith("_ci")}
        found[name] = {**rates, "headline": row["headline"], **row["metrics"]}
    return found


def _of_boards(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for name, kind in _ABOUT.items():
        if old[name] != new[name]:
            yield Change(kind, name, inputs.told(old[name]), inputs.told(new[name]))
    if old["model_hash"] != new["model_hash"]:
        yield Change("model weights", old["model"], inputs.told(old["model_hash"]), inputs.told(new["model_hash"]))
    yield from inputs.of_protocols(old["protocols"], new["protocols"])


# --- told -------------------------------------------------------------------------------------------------------------
def lines(c: Comparison) -> list[str]:
    """The comparison to be read."""
    out = [f"A {c.a}", f"B {c.b}", f"{c.cells} cells in both"]
    out += [f"only in A: {', '.join(c.only_a)}"] if c.only_a else []
    out += [f"only in B: {', '.join(c.only_b)}"] if c.only_b else []
    told = [f"  {change}{regress.among(where, c.cells) if where else ''}" for change, where in c.changes.items()]
    out += ["what differs in the inputs:", *told] if told else ["no input differs"]
    if not c.moved:
        return [*out, "no number moved", *(f"note: {n}" for n in c.notes)]
    out += ["numbers that moved (A → B):"]
    for cell, moved in c.moved.items():
        out += [f"  {cell}", *(f"    {n}: {number(x)} → {number(y)}{_by(x, y)}" for n, (x, y) in moved.items())]
    flagged = [t for t in c.tests if t.flagged]
    out += ["beyond noise, by paired tests:", *(f"  {t.cell}: {regress.told(t)}" for t in flagged)] if flagged else []
    return [*out, *(f"note: {n}" for n in c.notes)]


def _by(x: float | None, y: float | None) -> str:
    return "" if x is None or y is None else f" ({y - x:+.4g})"


def as_json(c: Comparison) -> dict[str, Any]:
    """For programs."""
    return {
        "a": c.a,
        "b": c.b,
        "cells": c.cells,
        "only_a": list(c.only_a),
        "only_b": list(c.only_b),
        "changes": [{**vars(change), "cells": list(where)} for change, where in c.changes.items()],
        "moved": {cell: {n: list(v) for n, v in moved.items()} for cell, moved in c.moved.items()},
        "tests": [{**vars(t), "effect": _finite(t.effect), "flagged": t.flagged} for t in c.tests],
        "notes": list(c.notes),
    }


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
