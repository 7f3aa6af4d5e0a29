"""Committed records → the measured cells of papers' tables: those of the right suite, model and protocol only.

What stands in the way of a number is said instead of it. Reads records only, no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from benchmark import stats, suite
from benchmark.errors import BadInput
from benchmark.metrics.balance import HEADLINES
from benchmark.metrics.protocols import protocol
from benchmark.metrics.summary import headline_samples, interval, role_sample, with_unedited
from benchmark.metrics.validity import gate
from benchmark.suite import FormName
from benchmark.tables.board import read_records
from benchmark.tables.columns import Record, natural
from benchmark.tables.draws import metric_draws
from benchmark.tables.layouts import Group, Measure, Requests

NONE = "not measured"
BASELINE = "none"


@dataclass(frozen=True)
class Measured:
    """A number with its interval and the images behind it, in fractions where it is a rate; or `why` there is none."""

    value: float | None = None
    ci: tuple[float, float] | None = None
    n: int = 0
    method: str = ""
    why: str = ""


@dataclass(frozen=True)
class Evidence:
    """The records of one folder under `results/`, by method label and request; several are training seeds."""

    folder: str
    suite: str
    form: FormName
    model: str
    cells: Mapping[tuple[str, str], Sequence[Record]]
    left_out: tuple[str, ...] = ()
    """Why records that lie there are not used."""
    invalid: Mapping[str, str] = field(default_factory=dict)
    """By request: what is wrong with the unedited model there."""

    @property
    def methods(self) -> list[str]:
        """Labels, the unedited model first, controls last."""
        roles = {label: group[0]["method"]["role"] for (label, _), group in self.cells.items()}
        order = {"baseline": 0, "erasure": 1, "control": 2}
        return sorted(roles, key=lambda m: (order.get(roles[m], 1), natural(m)))


# --- reading --------------------------------------------------------------------------------------------------
def evidence(results: Path | None, suites: Iterable[str]) -> list[Evidence]:
    """What lies under `results/<model>/<suite>/records`, for these suites, in the order of names."""
    wanted = sorted(set(suites))
    if results is None:
        return []
    folders = sorted(p for name in wanted for p in results.glob(f"*/{name}") if (p / "records").is_dir())
    return [e for folder in folders for e in _of_folder(folder)]


def _of_folder(folder: Path) -> list[Evidence]:
    """One for each model and form that the records are of: a folder holds one, unless somebody mixed them."""
    records = read_records(folder)
    strange = next((r for r in records if r["suite"] != folder.name), None)
    if strange is not None:
        raise BadInput(f"{folder}: expected records of the suite {folder.name}, found one of {strange['suite']}")
    return of_records(f"{folder.parent.name}/{folder.name}", records)


def of_records(place: str, records: Sequence[Record]) -> list[Evidence]:
    """The same of records that were read already; `place` is what to call them, `<model>/<suite>`."""
    kinds = sorted({(r["form"], r["model"]["name"], r["model"]["hash"]) for r in records})
    return [
        _evidence(place, [r for r in records if (r["form"], r["model"]["name"], r["model"]["hash"]) == kind])
        for kind in kinds
    ]


def _evidence(place: str, records: Sequence[Record]) -> Evidence:
    first = records[0]
    why = {id(r): _unfit(r) for r in records}
    cells: dict[tuple[str, str], list[Record]] = {}
    for r in sorted(records, key=lambda r: r["request"]["seed"]):
        if not why[id(r)]:
            cells.setdefault((r["method"]["label"], r["request"]["name"]), []).append(r)
    left_out = tuple(sorted({f"{place}: {text}" for text in why.values() if text}))
    return Evidence(place, first["suite"], first["form"], first["model"]["name"], cells, left_out, _invalid(cells))


def _unfit(r: Record) -> str:
    """Why a record cannot stand in a paper's table; "" if it can."""
    version = _suite(r["suite"]).version
    if r["suite_version"] != version:
        return f"made under version {r['suite_version']} of the suite, which is at {version}"
    if r["scale"] != 1:
        return f"thinned by {r['scale']:g}: not the paper's number of images"
    old = [name for name, made in r["protocols"].items() if made["version"] != protocol(name).version]
    if old:
        return f"scored by an older version of {old[0]}"
    return "" if r["status"] in ("ok", "failed", "not applicable") else f"{r['status']}: {r['reason']}"


def _invalid(cells: Mapping[tuple[str, str], Sequence[Record]]) -> dict[str, str]:
    """Requests on which the unedited model is outside the suite's window."""
    found = {}
    for (label, request), group in cells.items():
        r = group[0]
        windows = {role: (w[0], w[1]) for role, w in r.get("gate", {}).items()}
        if label == BASELINE and r["status"] == "ok" and windows:
            why = gate({role: r["summary"][f"acc_{role}"] for role in windows}, windows).why
            if why:
                found[request] = why
    return found


# --- choosing -------------------------------------------------------------------------------------------------
@lru_cache
def _suite(name: str) -> suite.Suite:
    return suite.load(name)


@lru_cache
def requests(name: str, form: FormName, chosen: Requests) -> tuple[str, ...]:
    """The names of a suite's requests that a group is over, as the suite declares them; BadInput if there are none."""
    every = suite.requests(_suite(name).form(form))
    found = tuple(
        r.name
        for r in every
        if (not chosen.names or r.name in chosen.names)
        and (chosen.kind is None or {c.kind for c in r.erase} == {chosen.kind})
        and (chosen.at_once is None or len(r.erase) == chosen.at_once)
    )
    if not found or (chosen.names and len(found) < len(chosen.names)):
        raise BadInput(f"the {form} form of {name} has no such requests: {chosen}; it has {[r.name for r in every]}")
    return found


def measure(found: Sequence[Evidence], group: Group, what: Measure | None, methods: Sequence[str]) -> Measured:
    """A group's number for the first of these methods that has records.

    `found` is of one model and form; where the group is over several suites, there is one for each.
    """
    form: FormName = found[0].form if found else "paper"
    chosen = group.paper if form == "paper" else group.embedded
    if what is None or chosen is None or not methods:
        return Measured(why=NONE)
    names = group.suites or (group.suite,)
    by_suite = {e.suite: e for e in found}
    if any(n not in by_suite for n in names):
        return Measured(why=NONE)
    wanted = [(by_suite[n], q) for n in names for q in requests(n, form, chosen)]
    for label in methods:
        groups = [(e, q, e.cells[label, q]) for e, q in wanted if (label, q) in e.cells]
        if groups:
            return _measured(label, groups, len(wanted), what)
    return Measured(why=NONE)


Cell = tuple[Evidence, str, Sequence[Record]]


def _measured(label: str, cells: Sequence[Cell], wanted: int, what: Measure) -> Measured:
    bad = next((r for _, _, group in cells for r in group if r["status"] != "ok"), None)
    if bad is not None:
        return Measured(method=label, why=f"{bad['status']}: {bad['reason']}")
    if len(cells) < wanted:
        return Measured(method=label, why=f"{len(cells)} of {wanted} requests measured")
    invalid = [f"{q}: {e.invalid[q]}" for e, q, _ in cells if q in e.invalid]
    if invalid:
        return Measured(method=label, why=f"invalid: {invalid[0]}")
    if what.headline is not None:
        return _headline(label, cells, what.headline)
    assert what.protocol is not None
    return _role(label, cells, what) if what.role else _column(label, cells, what.protocol)


# --- numbers --------------------------------------------------------------------------------------------------
def _role(label: str, cells: Sequence[Cell], what: Measure) -> Measured:
    """The mean over cells of a protocol's mean on one role, with a joint bootstrap; Wilson's interval for one cell."""
    name, role = str(what.protocol), str(what.role)
    samples = [role_sample(r["rows"], role, name) for _, _, group in cells for r in group]
    found = [s for s in samples if s is not None]
    if len(found) < len(samples):
        return Measured(method=label, why=f"not scored by {name} on {role} prompts")
    value, n = float(np.mean([s.mean for s in found])), sum(len(s.values) for s in found)
    if len(found) == 1:
        ci = interval(found[0], rate=protocol(name).rate)
    else:
        ci = stats.around(value, np.mean([stats.bootstrap(s) for s in found], axis=0))
    return Measured(value, _pair(ci), n, label)


def _column(label: str, cells: Sequence[Cell], name: str) -> Measured:
    """The mean over cells of a protocol as boards show it, with the interval that they show."""
    groups = [group for _, _, group in cells]
    records = [r for group in groups for r in group]
    columns = [_named(r["summary"]["metrics"], name) for r in records]
    values = [None if c is None else r["summary"]["metrics"][c] for c, r in zip(columns, records, strict=True)]
    found = [v for v in values if v is not None]
    if len(found) < len(values):
        return Measured(method=label, why=f"not scored by {name}")
    value = float(np.mean(found))
    if len(found) == 1:
        return Measured(value, _pair(records[0]["summary"]["metrics_ci"].get(columns[0])), 0, label)
    draws = metric_draws(groups, name)
    return Measured(value, None if draws is None else _pair(stats.around(value, draws)), 0, label)


def _named(metrics: Mapping[str, float | None], name: str) -> str | None:
    """The column of a protocol, whose name may end in a number of images."""
    return next((column for column in metrics if protocol(column).id == name), None)


def _headline(label: str, cells: Sequence[Cell], name: str) -> Measured:
    """The mean over cells of a headline, with its joint bootstrap where it has one."""
    records = [(e, q, r) for e, q, group in cells for r in group]
    values = [_headline_value(e, q, r, name) for e, q, r in records]
    found = [v for v in values if v is not None]
    if len(found) < len(values):
        return Measured(method=label, why=f"no {name} in the records")
    value, h = float(np.mean(found)), HEADLINES[name]
    samples = [headline_samples(r["rows"], r["summary"]["primary"], h) for _, _, r in records]
    draws = [stats.bootstrap_of(h.draws, s) for s in samples if s is not None and not h.fidelity]
    ci = stats.around(value, np.mean(draws, axis=0)) if len(draws) == len(records) else None
    return Measured(value, _pair(ci), sum(len(r["rows"]["role"]) for _, _, r in records), label)


def _headline_value(e: Evidence, request: str, r: Record, name: str) -> float | None:
    """A record's headline; FADE-adv's in the other way of writing it, if that is asked for."""
    said = r["summary"]["headline_id"]
    if said == name:
        value: float | None = r["summary"]["headline"]
        return value
    base = e.cells.get((BASELINE, request))
    if base is None or said not in HEADLINES or not (HEADLINES[said].fidelity and HEADLINES[name].fidelity):
        return None
    again: float | None = with_unedited({**r["summary"], "headline_id": name}, base[0]["summary"])["headline"]
    return again


def _pair(ci: Sequence[float] | None) -> tuple[float, float] | None:
    return None if ci is None else (float(ci[0]), float(ci[1]))
