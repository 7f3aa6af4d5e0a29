"""One cell's rows to the numbers of its board row. Pure: columns in, a JSON-ready dict out; no torch.

Rows that could not be scored are left out of every mean and counted beside it. What is not available is None, with its
reason under `reasons`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmark import stats
from benchmark.errors import BadInput
from benchmark.metrics.balance import Headline, available, fidelity, headline, retention
from benchmark.metrics.distribution import Value
from benchmark.metrics.protocols import Protocol, protocol

VERSION = 2
"""Raised with any change that moves a summary: stored ones are then made anew."""
ROLES = ("erased", "kept", "synonym", "adjacent")
GROUPS = (*ROLES, "general")
"""Roles that protocols speak of; only `ROLES` have accuracies."""
COLUMNS = ("role", "concept", "prompt", "seed", "valid", "values")
Rows = Mapping[str, Any]
"""A record's `rows`: lists of one length, and `values`: {protocol id: list}."""
Json = dict[str, Any]


def summarise(
    rows: Rows,
    *,
    primary: str,
    headline_id: str | None,
    protocols: Sequence[str],
    sets: Mapping[str, Value] | None = None,
    seed: int = 0,
) -> Json:
    """The summary of one cell: `n_*`, `acc_*`, `headline`, `metrics`, intervals (`*_ci`), `n_invalid`, `reasons`.

    `metrics` holds, for each protocol over images or pairs, the mean (or the sum, if the protocol says so) over the
    role that it is over, and for each per-set protocol its number under the id with the count of images
    (`testbed-fid/180`); `by_role` has every role. Headlines that need the unedited model's values are filled in later,
    by `with_unedited`.
    Raises BadInput for columns that are missing or of different lengths, and for unknown protocols or headlines.
    """
    check(rows)
    asked = [protocol(p) for p in protocols]
    parts = [*(_accuracy(rows, role, protocol(primary), seed) for role in ROLES)]
    by_id = {protocol(name).id: value for name, value in (sets or {}).items()}
    parts += [_headline(rows, primary, headline_id, seed), _metrics(rows, asked, by_id, seed)]
    merged: Json = {"primary": primary, "headline_id": headline_id}
    for key in ("reasons", "n_invalid", "acc_all_images"):
        merged[key] = {k: v for part in parts for k, v in part.pop(key, {}).items()}
    for part in parts:
        merged |= part
    return merged


def check(rows: Rows) -> None:
    """BadInput unless all columns are there and equally long."""
    absent = [c for c in COLUMNS if c not in rows]
    if absent:
        raise BadInput(f"expected rows with columns {', '.join(COLUMNS)}; {absent[0]!r} is missing")
    lengths = {c: len(rows[c]) for c in COLUMNS if c != "values"} | {p: len(v) for p, v in rows["values"].items()}
    if len(set(lengths.values())) > 1:
        raise BadInput(f"expected columns of one length, got {lengths}")


def scored(rows: Rows, role: str, protocol_id: str) -> list[int]:
    """Indices of the role's rows that have a value under this protocol."""
    values = rows["values"].get(protocol_id, [])
    return [i for i, v in enumerate(values) if rows["role"][i] == role and rows["valid"][i] and available(v)]


def role_sample(rows: Rows, role: str, protocol_id: str) -> stats.Sample | None:
    """The role's values with their clusters; None if there is no value.

    Of a protocol that is shown as a sum, values are times their number, so that their mean is the sum.
    """
    index = scored(rows, role, protocol_id)
    if not index:
        return None
    values = [rows["values"][protocol_id][i] for i in index]
    found = stats.sample(values, [rows["prompt"][i] for i in index], [rows["seed"][i] for i in index])
    n = len(index)
    return replace(found, values=found.values * n, unit=float(n)) if protocol(protocol_id).total else found


# --- accuracies -----------------------------------------------------------------------------------------------
def _accuracy(rows: Rows, role: str, primary: Protocol, seed: int) -> Json:
    """`n_*`, `acc_*` and its interval for one role, with what could not be scored."""
    total = sum(r == role for r in rows["role"])
    sample = role_sample(rows, role, primary.id)
    n = 0 if sample is None else len(sample.values)
    mean = None if sample is None else sample.mean
    said: Json = {f"n_{role}": n, f"acc_{role}": mean, f"acc_{role}_ci": interval(sample, rate=primary.rate, seed=seed)}
    if total > n:
        said["n_invalid"] = {role: total - n}
    if total and primary.rate:  # an image that could not be scored does not show what was asked
        said["acc_all_images"] = {role: 0.0 if sample is None else float(sample.values.sum()) / total}
    if mean is None:
        said["reasons"] = {f"acc_{role}": absence(rows, role, primary.id)}
    return said


def interval(sample: stats.Sample | None, *, rate: bool, seed: int = 0) -> list[float] | None:
    """Wilson's for rates, else the clustered bootstrap's; None if nothing varies."""
    if sample is None:
        return None
    if rate:
        return list(stats.wilson(round(float(sample.values.sum())), len(sample.values)))
    return stats.around(sample.mean, stats.bootstrap(sample, seed=seed))


def absence(rows: Rows, role: str, protocol_id: str) -> str:
    """Why a role has no value."""
    total = sum(r == role for r in rows["role"])
    if not total:
        return f"no {role} prompts"
    if protocol_id not in rows["values"]:
        return f"{protocol_id} was not scored"
    return f"none of {total} {role} images could be scored"


# --- headline -------------------------------------------------------------------------------------------------
def source(rows: Rows, primary: str, h: Headline) -> str | None:
    """The protocol whose values the headline takes: the primary one, or the first of its measure; None if none is.

    Among several of a measure, one named for the purpose (`…/style`) comes before a general one.
    """
    if h.measure == "accuracy":
        return primary
    kin = [p for p in rows["values"] if protocol(p).measure == h.measure]
    return min(kin, key=lambda p: (not p.endswith("/style"), p), default=None)


def headline_samples(rows: Rows, primary: str, h: Headline) -> list[stats.Sample] | None:
    """The samples of the headline's roles in its order; None if one is missing, or is not made of this cell's rows."""
    name = source(rows, primary, h)
    samples = [] if name is None else [role_sample(rows, role, name) for role in h.roles]
    found = [s for s in samples if s is not None]
    return found if name is not None and len(found) == len(samples) else None


def _headline(rows: Rows, primary: str, name: str | None, seed: int) -> Json:
    if name is None:
        return _no_headline("the suite has no headline")
    h = headline(name)
    if h.fidelity:
        return _no_headline(f"{name} needs the unedited model's CLIP score and FID")
    by = source(rows, primary, h)
    if by is None:
        return _no_headline(f"{name} needs a protocol of {h.measure}, and none was scored")
    samples = headline_samples(rows, primary, h)
    if samples is None:
        without = next(r for r in h.roles if role_sample(rows, r, by) is None)
        part = f"acc_{without}" if by == primary else f"{by} on {without} prompts"
        return _no_headline(f"{name} needs {part}: {absence(rows, without, by)}")
    value = h.score(*(s.mean for s in samples))
    assert value is not None  # samples hold finite values only
    return {"headline": value, "headline_ci": stats.around(value, stats.bootstrap_of(h.draws, samples, seed=seed))}


def _no_headline(reason: str) -> Json:
    return {"headline": None, "headline_ci": None, "reasons": {"headline": reason}}


# --- beside the unedited model --------------------------------------------------------------------------------
def with_unedited(summary: Json, unedited: Json) -> Json:
    """The summary with what compares it with the unedited model's of the same request; that one with itself too.

    Adds `relative` (accuracies on kept and adjacent prompts as a share of the unedited model's) and fills the headlines
    of FADE-adv, which have no interval, since FID has none. They divide by the unedited model's CLIP score and FID:
    where one of these is not above 0 there is no headline, and the reason says so. Pure; the given summaries stay.
    """
    relative = {role: retention(summary[f"acc_{role}"], unedited[f"acc_{role}"]) for role in ("kept", "adjacent")}
    filled = {**summary, "relative": relative}
    h = None if summary["headline_id"] is None else headline(summary["headline_id"])
    if h is None or not h.fidelity:
        return filled
    parts = {m: _column(summary, unedited, m) for m in ("similarity", "fid")}
    absent = [m for m, column in parts.items() if column is None]
    if absent:
        said = f"{h.id} needs a protocol of {absent[0]} with a value here and for the unedited model"
        return filled | _without(summary, said)
    clip, fid = str(parts["similarity"]), str(parts["fid"])
    for column in (clip, fid):
        if (value := unedited["metrics"][column]) <= 0:
            said = f"{h.id} divides by the unedited model's {column}, which is {value:g}, not above 0"
            return filled | _without(summary, said)
    F = fidelity(
        summary["metrics"][clip],
        summary["metrics"][fid],
        clip_unedited=unedited["metrics"][clip],
        fid_unedited=unedited["metrics"][fid],
        clipped=h.fidelity == "clipped",
    )
    value = h.score(summary["acc_erased"], F)
    reasons = {k: v for k, v in summary["reasons"].items() if k != "headline"}
    if value is None:
        reasons["headline"] = f"{h.id} needs acc_erased: {summary['reasons'].get('acc_erased', 'not available')}"
    return filled | {"headline": value, "reasons": reasons}


def _without(summary: Json, reason: str) -> Json:
    """No headline, beside the reasons that the summary has."""
    return {"headline": None, "headline_ci": None, "reasons": {**summary["reasons"], "headline": reason}}


def _column(summary: Json, unedited: Json, measure: str) -> str | None:
    """The first column of this measure that both have a value in; of distances, over the same number of images."""
    for column, value in summary["metrics"].items():
        if protocol(column).measure == measure and available(value) and available(unedited["metrics"].get(column)):
            return str(column)
    return None


# --- metrics --------------------------------------------------------------------------------------------------
def _metrics(rows: Rows, protocols: Sequence[Protocol], sets: Mapping[str, Value], seed: int) -> Json:
    values: Json = {}
    intervals: Json = {}
    reasons: Json = {}
    by_role: Json = {}
    for p in protocols:
        if p.scope == "set" or p.id in sets:
            value = sets.get(p.id, Value(None, reason="was not scored"))
            column = p.column(value.n)
        else:
            by_role[p.id] = {role: _mean(rows, role, p, seed) for role in GROUPS if role in rows["role"]}
            value, column = _over(rows, p, by_role[p.id]), p.id
        values[column], intervals[column] = value.value, None if value.ci is None else list(value.ci)
        if value.value is None:
            reasons[column] = value.reason
    return {"metrics": values, "metrics_ci": intervals, "by_role": by_role, "reasons": reasons}


def _mean(rows: Rows, role: str, p: Protocol, seed: int) -> Json:
    sample = role_sample(rows, role, p.id)
    if sample is None:
        return {"mean": None, "ci": None, "n": 0}
    return {"mean": sample.mean, "ci": interval(sample, rate=p.rate, seed=seed), "n": len(sample.values)}


def _over(rows: Rows, p: Protocol, by_role: Json) -> Value:
    role = column_role(p, by_role)
    found = by_role.get(role)
    if found is None or found["mean"] is None:
        return Value(None, reason=absence(rows, role, p.id))
    return Value(found["mean"], None if found["ci"] is None else (found["ci"][0], found["ci"][1]), n=found["n"])


def column_role(p: Protocol, by_role: Mapping[str, Any]) -> str:
    """The role whose images a protocol's column is over, given the roles that a cell has."""
    return next((r for r in p.over if r in by_role), p.over[-1])


def finite(values: Sequence[float]) -> list[float | None]:
    """Values for a record: NaN, which JSON does not have, becomes None."""
    return [float(v) if np.isfinite(v) else None for v in values]
