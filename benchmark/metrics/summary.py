"""One cell's rows to the numbers of its board row. Pure: columns in, a JSON-ready dict out; no torch.

Rows that could not be scored are left out of every mean and counted beside it. What is not available is None, with its
reason under `reasons`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmark import stats
from benchmark.errors import BadInput
from benchmark.metrics.balance import Headline, available, headline
from benchmark.metrics.distribution import Value
from benchmark.metrics.protocols import Protocol, protocol

VERSION = 1
"""Raised with any change that moves a summary: stored ones are then made anew."""
ROLES = ("erased", "kept", "synonym", "adjacent")
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

    `metrics` holds, for each per-image protocol, the mean over kept prompts, and for each per-set protocol its number
    under the id with the count of images (`testbed-fid/180`); `by_role` has per-image protocols for every role.
    Raises BadInput for columns that are missing or of different lengths, and for unknown protocols or headlines.
    """
    check(rows)
    asked = [protocol(p) for p in protocols]
    parts = [*(_accuracy(rows, role, protocol(primary), seed) for role in ROLES)]
    parts += [_headline(rows, primary, headline_id, seed), _metrics(rows, asked, sets or {}, seed)]
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
    """The role's values with their clusters; None if there is no value."""
    index = scored(rows, role, protocol_id)
    if not index:
        return None
    values = [rows["values"][protocol_id][i] for i in index]
    return stats.sample(values, [rows["prompt"][i] for i in index], [rows["seed"][i] for i in index])


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
def headline_samples(rows: Rows, primary: str, h: Headline) -> list[stats.Sample] | None:
    """The samples of the headline's roles in its order; None if one is missing."""
    samples = [role_sample(rows, role, primary) for role in h.roles]
    found = [s for s in samples if s is not None]
    return found if len(found) == len(samples) else None


def _headline(rows: Rows, primary: str, name: str | None, seed: int) -> Json:
    if name is None:
        return {"headline": None, "headline_ci": None, "reasons": {"headline": "the suite has no headline"}}
    h = headline(name)
    samples = headline_samples(rows, primary, h)
    if samples is None:
        without = next(r for r in h.roles if role_sample(rows, r, primary) is None)
        reason = f"{name} needs acc_{without}: {absence(rows, without, primary)}"
        return {"headline": None, "headline_ci": None, "reasons": {"headline": reason}}
    value = h.score(*(s.mean for s in samples))
    assert value is not None  # samples hold finite values only
    return {"headline": value, "headline_ci": stats.around(value, stats.bootstrap_of(h.draws, samples, seed=seed))}


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
            by_role[p.id] = {role: _mean(rows, role, p, seed) for role in ROLES if role in rows["role"]}
            value, column = _kept(rows, p, by_role[p.id]), p.id
        values[column], intervals[column] = value.value, None if value.ci is None else list(value.ci)
        if value.value is None:
            reasons[column] = value.reason
    return {"metrics": values, "metrics_ci": intervals, "by_role": by_role, "reasons": reasons}


def _mean(rows: Rows, role: str, p: Protocol, seed: int) -> Json:
    sample = role_sample(rows, role, p.id)
    if sample is None:
        return {"mean": None, "ci": None, "n": 0}
    return {"mean": sample.mean, "ci": interval(sample, rate=p.rate, seed=seed), "n": len(sample.values)}


def _kept(rows: Rows, p: Protocol, by_role: Json) -> Value:
    found = by_role.get("kept")
    if found is None or found["mean"] is None:
        return Value(None, reason=absence(rows, "kept", p.id))
    return Value(found["mean"], None if found["ci"] is None else (found["ci"][0], found["ci"][1]), n=found["n"])


def finite(values: Sequence[float]) -> list[float | None]:
    """Values for a record: NaN, which JSON does not have, becomes None."""
    return [float(v) if np.isfinite(v) else None for v in values]
