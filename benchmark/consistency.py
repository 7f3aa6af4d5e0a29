"""Whether a record's summary is what its rows give: no table may show a number that nothing stands behind. No torch.

Distances between sets of images need features and are taken as they stand; checksums guard them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from benchmark import record as schema
from benchmark.metrics import summary
from benchmark.metrics.balance import headline
from benchmark.metrics.distribution import Value
from benchmark.metrics.protocols import protocol

Json = dict[str, Any]
CLOSE = 1e-9
"""Relative difference of numbers that are computed anew: sums in another library's order end in other digits."""


def faults(records: Mapping[str, Any], *, whole: bool = True) -> Iterator[tuple[str, str]]:
    """Name and fault of each record, by name, that is not what its rows give; whatever a record holds, nothing raises.

    Records may be of any schema, as their JSON has them; those without a summary are passed over unless they are `ok`.
    `whole` is False for those of baselines, whose rows name images by the first digits of their hashes.
    """
    written = {name: r for name, r in records.items() if isinstance(r, dict) and _has_summary(r)}
    made: dict[str, Json] = {}
    for name, r in written.items():
        try:
            if name not in made:
                made[name] = _made(r)
            base = next((b for b in written if _is_base_of(r, written[b])), None)
            if base is not None and base not in made:
                made[base] = _made(written[base])
            found = next(_of_record(r, made[name], None if base is None else made[base], whole), None)
        except Exception as error:  # a tampered record may be anything
            found = f"cannot be recomputed from its rows ({type(error).__name__}: {error})"
        if found:
            yield name, found


def _has_summary(r: Mapping[str, Any]) -> bool:
    return bool(r.get("summary")) or r.get("status") == "ok"


def _is_base_of(r: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    same = other["request"]["name"] == r["request"]["name"]
    return bool(same and other["method"]["role"] == "baseline" and other["status"] == "ok")


def _of_record(r: Mapping[str, Any], made: Json, base: Json | None, whole: bool) -> Iterator[str]:
    hashes, found = r.get("hashes"), schema.hashes(r["rows"])
    if hashes is not None and any(hashes[name] != found[name] for name in (found if whole else ("prompts",))):
        yield "hashes: not those of its rows"
    absent = [name for name in made if name not in r["summary"]]
    if absent:
        yield f"summary: {absent[0]} is not there"
    every, told = (made, _alone(made, r)) if base is None else (summary.with_unedited(made, base), r["summary"])
    for place, expected, there in differences(every, told):
        yield f"summary {place}: {there!r}, but its rows give {expected!r}"


def _alone(made: Json, r: Mapping[str, Any]) -> Json:
    """A record's summary without what compares it with the unedited model, whose record is not here."""
    kept = {name: value for name, value in r["summary"].items() if name != "relative"}
    if r["headline"] is None or not headline(r["headline"]).fidelity:
        return kept
    reasons = {k: v for k, v in kept["reasons"].items() if k != "headline"} | {
        k: v for k, v in made["reasons"].items() if k == "headline"
    }
    return {**kept, "headline": made["headline"], "headline_ci": made["headline_ci"], "reasons": reasons}


def _made(r: Mapping[str, Any]) -> Json:
    """The summary of a record's rows; distances, which need features, as the record has them."""
    names = list(r["protocols"])
    sets = {column: _value(r["summary"], column) for column in r["summary"]["metrics"] if _is_set(column)}
    return summary.summarise(r["rows"], primary=r["primary"], headline_id=r["headline"], protocols=names, sets=sets)


def _is_set(column: str) -> bool:
    return protocol(column).scope == "set"


def _value(of: Mapping[str, Any], column: str) -> Value:
    interval, tail = of["metrics_ci"][column], column.rpartition("/")[2]
    ci = None if interval is None else (_number(interval[0]), _number(interval[1]))
    value, reason = of["metrics"][column], of["reasons"].get(column, "")
    return Value(None if value is None else _number(value), ci, reason, int(tail) if tail.isdigit() else 0)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"expected a number, found {value!r}")
    return value


def differences(made: Any, there: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Place, what was made, what is there, wherever the second is not the first; numbers may differ by `CLOSE`.

    What is made and not there passes: a record of an earlier version of this harness has fewer numbers.
    """
    if isinstance(made, Mapping) and isinstance(there, Mapping):
        for name, value in there.items():
            yield from differences(made.get(name), value, f"{place}.{name}".lstrip("."))
    elif isinstance(made, list | tuple) and isinstance(there, list | tuple) and len(made) == len(there):
        for i, (a, b) in enumerate(zip(made, there, strict=True)):
            yield from differences(a, b, f"{place}[{i}]")
    elif not _equal(made, there):
        yield place, made, there


def _equal(a: Any, b: Any) -> bool:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (a, b))
    return math.isclose(a, b, rel_tol=CLOSE, abs_tol=CLOSE) if numbers else bool(a == b)
