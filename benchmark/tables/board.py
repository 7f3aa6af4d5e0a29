"""Records → board: a row per method and request, and one per method over all requests. Reads records only, no torch.

A row's score depends on its own records alone; only ranks, ties and flags look at the other rows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmark import stats
from benchmark.errors import BadInput, did_you_mean
from benchmark.metrics.balance import Headline, headline
from benchmark.metrics.protocols import protocol, unmixed
from benchmark.metrics.summary import ROLES, headline_samples, role_sample, scored, source
from benchmark.metrics.validity import gate
from benchmark.record import read

SCHEMA = 1
ALPHA = 0.05
MEAN = "mean"
ORDER = {"baseline": 0, "erasure": 1, "control": 2}
Record = Mapping[str, Any]
Row = dict[str, Any]
Board = dict[str, Any]


# --- reading --------------------------------------------------------------------------------------------------
def read_records(folder: str | Path) -> list[Record]:
    """All records of a run's `records` folder, or of the folder above it, by file name; an older schema is upgraded.

    Raises BadInput if there are none, and what `record.read` raises for damaged ones.
    """
    root = Path(folder)
    root = root / "records" if (root / "records").is_dir() else root
    paths = sorted(root.glob("*.json"))
    if not paths:
        raise BadInput(f"no records (*.json) in {root}; `erasure-bench run` writes them under OUT/records")
    return [read(p).model_dump(mode="json", by_alias=True) for p in paths]


# --- board ----------------------------------------------------------------------------------------------------
def build(records: Iterable[Record]) -> Board:
    """The board of one suite on one model, as `board.json` holds it. Records of an older suite version are stale.

    Raises BadInput if records of several suites, forms or models are given: their numbers have no common column.
    """
    records = sorted(records, key=_place)
    if not records:
        raise BadInput("expected at least one record; `erasure-bench run` writes them")
    first = {k: _only(records, k, get) for k, get in _COMMON.items()}
    version = max(r["suite_version"] for r in records)
    fresh = [r if r["suite_version"] == version else _stale(r, version) for r in records]
    _one_definition(fresh)
    groups = _grouped(fresh)
    gates = _gates(groups)
    requests = sorted({request for _, request in groups}, key=natural)
    rows = [cell_row(group) for group in groups.values()]
    methods = sorted({method for method, _ in groups})
    means = {m: {q: groups[m, q] for q in requests if (m, q) in groups} for m in methods}
    rows += [mean_row(m, cells, requests) for m, cells in means.items()]
    for row in rows:
        row["gate"] = _gate_of(row["request"], gates)
    for request in [*requests, MEAN]:
        here = [r for r in rows if r["request"] == request]
        _compare(here, {m: _cells(means[m], request) for m in methods})
    rows.sort(key=lambda r: (r["request"] == MEAN, natural(r["request"]), _position(r)))
    return {"schema": SCHEMA, **first, "suite_version": version, "protocols": _protocols(fresh), "rows": rows}


_COMMON: Mapping[str, Callable[[Record], Any]] = {
    "suite": lambda r: r["suite"],
    "form": lambda r: r["form"],
    "model": lambda r: r["model"]["name"],
    "model_hash": lambda r: r["model"]["hash"],
    "scale": lambda r: r["scale"],
}


def _only(records: Sequence[Record], what: str, get: Callable[[Record], Any]) -> Any:
    found = sorted({get(r) for r in records}, key=str)
    if len(found) > 1:
        raise BadInput(
            f"records of {len(found)} different {what} values ({found[0]}, {found[1]}, …); give each its own board"
        )
    return found[0]


def _place(record: Record) -> tuple[Any, ...]:
    request = record["request"]
    return (natural(record["method"]["label"]), natural(request["name"]), request["seed"])


def natural(text: str) -> list[tuple[int, str]]:
    """A sorting key in which `identity_5` comes before `identity_10`."""
    return [(int(t), "") if t.isdigit() else (-1, t) for t in re.split(r"(\d+)", text) if t]


def _stale(record: Record, version: int) -> Record:
    reason = f"made under version {record['suite_version']} of the suite, which is at {version}; run it again"
    return {**record, "status": "stale", "reason": reason}


def _grouped(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """Records by (method, request); several are training seeds of one cell. A stale one gives way to a fresh one."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for r in records:
        groups.setdefault((r["method"]["label"], r["request"]["name"]), []).append(r)
    return {k: [r for r in g if r["status"] != "stale"] or g for k, g in groups.items()}


def _protocols(records: Sequence[Record]) -> dict[str, Any]:
    """Protocols with version and evaluator, as the records that count have them."""
    found: dict[str, Any] = {}
    for r in records:
        for name, made in r["protocols"].items() if r["status"] == "ok" else ():
            if found.setdefault(name, made) != made:
                raise BadInput(f"records disagree on {name} ({found[name]}, {made}); rescore them under one evaluator")
    return {name: found[name] for name in sorted(found)}


def _one_definition(records: Sequence[Record]) -> None:
    """BadInput that names two protocols if `acc_*` or the headline would hold both: their numbers do not compare."""
    ok = [r for r in records if r["status"] == "ok"]
    if ok:
        unmixed([r["primary"] for r in ok], "acc_*")
        unmixed([str(r["headline"]) for r in ok], "the headline")
    if sources := [s for r in ok if (s := _headline_source(r)) is not None]:
        unmixed(sources, f"the headline {ok[0]['headline']}")


def _headline_source(record: Record) -> str | None:
    return source(record["rows"], record["primary"], headline(record["headline"])) if record["headline"] else None


# --- gate -----------------------------------------------------------------------------------------------------
Gates = Mapping[str, str | None]
"""By request: what is wrong with the unedited model, "" if nothing is, None if that is not known."""


def _gates(groups: Mapping[tuple[str, str], Sequence[Record]]) -> Gates:
    """For requests with a gate: whether the unedited model does what the suite takes for granted."""
    found: dict[str, str | None] = {}
    for (_, request), group in groups.items():
        windows = {role: (w[0], w[1]) for role, w in group[0].get("gate", {}).items()}
        if not windows:
            continue
        found.setdefault(request, None)
        base = group[0]
        if base["method"]["role"] == "baseline" and base["status"] == "ok":
            found[request] = gate({role: base["summary"][f"acc_{role}"] for role in windows}, windows).why
    return found


def _gate_of(request: str, gates: Gates) -> str | None:
    """A row's gate: "" passed, or there is none; `invalid: …`, and why; None: the unedited model was not run."""
    if request != MEAN:
        why = gates.get(request, "")
        return f"invalid: {why}" if why else why
    faults = [f"{q}: {why}" for q, why in gates.items() if why]
    return f"invalid: {'; '.join(faults)}" if faults else None if None in gates.values() else ""


def _cells(cells: Mapping[str, Sequence[Record]], request: str) -> list[Sequence[Record]]:
    return list(cells.values()) if request == MEAN else [cells[request]] if request in cells else []


def _position(row: Row) -> tuple[Any, ...]:
    score = row["headline"]
    best_first = 0 if score is None else -score * _sign(row)
    return (ORDER.get(row["role"], 1), score is None, best_first, natural(row["method"]))


def _sign(row: Row) -> int:
    """1 where a high headline is good, −1 where a low one is."""
    return -1 if row["headline_id"] is not None and headline(row["headline_id"]).direction == "down" else 1


# --- rows -----------------------------------------------------------------------------------------------------
def cell_row(group: Sequence[Record]) -> Row:
    """The row of one method and request; several records are its training seeds, and their mean is shown."""
    r = group[0]
    row = _frame(r, r["request"]["name"], [x["request"]["seed"] for x in group])
    bad = next((x for x in group if x["status"] != "ok"), None)
    if bad is not None:
        return row | {"status": bad["status"], "reason": bad["reason"]}
    summaries = [x["summary"] for x in group]
    if len(group) == 1:
        return row | {k: summaries[0][k] for k in row if k in summaries[0]} | {"reason": _reasons(summaries[0])}
    return row | _averaged([group], summaries)


def mean_row(method: str, cells: Mapping[str, Sequence[Record]], requests: Sequence[str]) -> Row:
    """The row over all requests: each score is the mean of the requests' scores: the mean of H, not H of means."""
    anyone = next(iter(cells.values()))[0]
    groups = list(cells.values())
    row = _frame(anyone, MEAN, sorted({x["request"]["seed"] for g in groups for x in g}))
    row["strategy"] = anyone["request"]["strategy"] if len({g[0]["request"]["strategy"] for g in groups}) == 1 else None
    bad = next((x for g in groups for x in g if x["status"] != "ok"), None)
    absent = [q for q in requests if q not in cells]
    if bad is not None:
        return row | {"status": bad["status"], "reason": f"{bad['request']['name']}: {bad['reason']}"}
    if absent:
        return row | {"status": "failed", "reason": f"no record for {', '.join(absent)}"}
    return row | _averaged(groups, [x["summary"] for g in groups for x in g])


def _frame(r: Record, request: str, seeds: Sequence[int]) -> Row:
    """A row with everything not available."""
    row: Row = {
        "method": r["method"]["label"],
        "role": r["method"]["role"],
        "request": request,
        "strategy": r["request"]["strategy"],
        "seeds": list(seeds),
        "status": "ok",
        "reason": "",
        "primary": r["primary"],
        "headline_id": r["headline"],
        "headline": None,
        "headline_ci": None,
    }
    for role in ROLES:
        row |= {f"n_{role}": None, f"acc_{role}": None, f"acc_{role}_ci": None}
    empty: Row = {"metrics": {}, "metrics_ci": {}, "n_invalid": {}, "acc_all_images": {}, "relative": {}, "gate": ""}
    ranking: Row = {"rank": None, "rank_ci": None, "best": False, "p_vs_best": None, "tied": False, "wins": []}
    return row | empty | ranking


def _reasons(summary: Mapping[str, Any]) -> str:
    """Reasons for what is missing; a role that the suite does not have is no news."""
    return "; ".join(f"{k}: {v}" for k, v in summary["reasons"].items() if not v.startswith("no "))


def _averaged(groups: Sequence[Sequence[Record]], summaries: Sequence[Mapping[str, Any]]) -> Row:
    """Means over cells with joint bootstrap intervals; a score that one cell lacks is not available."""
    reasons = {t for t in map(_reasons, summaries) if t} | _unequal(summaries)
    row: Row = {"reason": "; ".join(sorted(reasons))}
    for role in ROLES:
        row[f"n_{role}"] = sum(s[f"n_{role}"] for s in summaries)
        row[f"acc_{role}"] = _mean([s[f"acc_{role}"] for s in summaries])
        row[f"acc_{role}_ci"] = _interval(_role_draws(groups, role), row[f"acc_{role}"])
    row["headline"] = _mean([s["headline"] for s in summaries])
    row["headline_ci"] = _interval(headline_draws(groups), row["headline"])
    return row | _mean_metrics(summaries) | _counts(summaries) | _relative(summaries)


def _relative(summaries: Sequence[Mapping[str, Any]]) -> Row:
    """Accuracies as a share of the unedited model's, where all cells have them."""
    every = [s.get("relative", {}) for s in summaries]
    return {"relative": {role: _mean([e.get(role) for e in every]) for role in every[0]}}


def _mean(values: Sequence[float | None]) -> float | None:
    found = [v for v in values if v is not None]
    return float(np.mean(found)) if found and len(found) == len(values) else None


def _mean_metrics(summaries: Sequence[Mapping[str, Any]]) -> Row:
    """Only columns that all cells have: distances over different numbers of images do not average."""
    shared = [c for c in summaries[0]["metrics"] if all(c in s["metrics"] for s in summaries)]
    means = {c: _mean([s["metrics"][c] for s in summaries]) for c in shared}
    return {"metrics": means, "metrics_ci": dict.fromkeys(means)}


def _unequal(summaries: Sequence[Mapping[str, Any]]) -> set[str]:
    """A reason for each metric that has columns in all cells, but not the same one."""
    columns = [set(s["metrics"]) for s in summaries]
    partial = set.union(*columns) - set.intersection(*columns)
    return {f"{protocol(c).id}: not over the same number of images in every request" for c in partial}


def _counts(summaries: Sequence[Mapping[str, Any]]) -> Row:
    invalid: dict[str, int] = {}
    for s in summaries:
        for role, n in s["n_invalid"].items():
            invalid[role] = invalid.get(role, 0) + n
    every = [s["acc_all_images"] for s in summaries]
    shared = [r for r in every[0] if all(r in e for e in every)]
    return {"n_invalid": invalid, "acc_all_images": {r: _mean([e[r] for e in every]) for r in shared}}


# --- intervals of means ---------------------------------------------------------------------------------------
def _role_draws(groups: Sequence[Sequence[Record]], role: str) -> stats.Floats | None:
    """Joint bootstrap draws of the mean over cells of a role's accuracy; None if one cell has none."""
    samples = [role_sample(r["rows"], role, r["summary"]["primary"]) for g in groups for r in g]
    found = [s for s in samples if s is not None]
    if not found or len(found) < len(samples):
        return None
    draws: stats.Floats = np.mean([stats.bootstrap(s) for s in found], axis=0)
    return draws


def _interval(draws: stats.Floats | None, value: float | None) -> list[float] | None:
    return None if draws is None or value is None else stats.around(value, draws)


def headline_draws(groups: Sequence[Sequence[Record]]) -> stats.Floats | None:
    """Joint bootstrap draws of the mean headline over cells; None if one cell has none."""
    h = _headline_of(groups)
    cells = [r for g in groups for r in g]
    samples = [headline_samples(r["rows"], r["summary"]["primary"], h) for r in cells] if h else []
    found = [s for s in samples if s is not None]
    if h is None or not found or len(found) < len(cells):
        return None
    draws: stats.Floats = np.mean([stats.bootstrap_of(h.draws, s) for s in found], axis=0)
    return draws


def _headline_of(groups: Sequence[Sequence[Record]]) -> Headline | None:
    name = groups[0][0]["summary"]["headline_id"] if groups else None
    return None if name is None else headline(name)


# --- comparison -----------------------------------------------------------------------------------------------
def _compare(rows: Sequence[Row], cells: Mapping[str, list[Sequence[Record]]]) -> None:
    """Fill ranks, ties and flags of one request's rows. The unedited model is not ranked."""
    able = [r for r in rows if r["status"] == "ok" and not r["gate"]]  # what a failed gate leaves is no comparison
    ranked = [r for r in able if r["role"] != "baseline" and r["headline"] is not None]
    if ranked:
        _rank(ranked, cells)
    erasing = [r for r in ranked if r["role"] == "erasure"]
    if erasing:
        best = max(erasing, key=lambda r: r["headline"] * _sign(r))
        best["best"] = True
        others = {r["method"]: _p(cells[best["method"]], cells[r["method"]]) for r in ranked if r is not best}
        adjusted = stats.holm({m: p for m, p in others.items() if p is not None})
        for r in ranked:
            r["p_vs_best"] = adjusted.get(r["method"])
            r["tied"] = r is not best and adjusted.get(r["method"], 0.0) >= ALPHA
    _flag(rows)


def _rank(rows: Sequence[Row], cells: Mapping[str, list[Sequence[Record]]]) -> None:
    found = {r["method"]: headline_draws(cells[r["method"]]) for r in rows}
    draws = {m: d for m, d in found.items() if d is not None}
    direction = "up" if _sign(rows[0]) > 0 else "down"
    intervals = stats.rank_intervals(draws, direction) if draws else {}
    places = stats.ranks({r["method"]: r["headline"] for r in rows}, direction)
    for r in rows:
        r["rank"] = places[r["method"]]
        r["rank_ci"] = list(intervals[r["method"]]) if r["method"] in intervals else None


def _p(best: Sequence[Sequence[Record]], other: Sequence[Sequence[Record]]) -> float | None:
    """Paired permutation p of the headlines' difference, on the images that both methods have; None if none pair up."""
    h = _headline_of(best)
    if h is None or len(best) != len(other):
        return None
    pairs = [_paired(a, b, h) for a, b in zip(best, other, strict=True)]
    found = [p for p in pairs if p is not None]
    if len(found) < len(pairs):
        return None
    return stats.paired_permutation(h.draws, [a for a, _ in found], [b for _, b in found])[1]


Samples = list[stats.Sample]


def _paired(a: Sequence[Record], b: Sequence[Record], h: Headline) -> tuple[Samples, Samples] | None:
    """For each role of the headline, both methods' values on their common (concept, prompt, seed)."""
    left: Samples = []
    right: Samples = []
    for role in h.roles:
        x, y = _values(a, role, h), _values(b, role, h)
        keys = sorted(x.keys() & y.keys())
        if not keys:
            return None
        prompts, seeds = [k[1] for k in keys], [k[2] for k in keys]
        left.append(stats.sample([x[k] for k in keys], prompts, seeds))
        right.append(stats.sample([y[k] for k in keys], prompts, seeds))
    return left, right


def _values(group: Sequence[Record], role: str, h: Headline) -> dict[tuple[str, str, int], float]:
    """Values that the headline is of, by (concept, prompt, seed), averaged over training seeds."""
    found: dict[tuple[str, str, int], list[float]] = {}
    for r in group:
        rows, name = r["rows"], source(r["rows"], r["summary"]["primary"], h)
        for i in scored(rows, role, name) if name is not None else ():
            key = (rows["concept"][i], rows["prompt"][i], rows["seed"][i])
            found.setdefault(key, []).append(rows["values"][name][i])
    return {k: float(np.mean(v)) for k, v in found.items()}


def _flag(rows: Sequence[Row]) -> None:
    """Name in `wins` the columns in which a control is strictly better than every erasure method."""
    erasing = [r for r in rows if r["role"] == "erasure" and r["status"] == "ok"]
    for control in (r for r in rows if r["role"] == "control" and r["status"] == "ok"):
        for name, direction, get in columns(rows):
            values = [v for v in (get(r) for r in erasing) if v is not None]
            mine, sign = get(control), 1 if direction == "up" else -1
            if mine is not None and values and sign * mine > max(sign * v for v in values):
                control["wins"].append(name)


def columns(rows: Sequence[Row]) -> list[tuple[str, str, Callable[[Row], float | None]]]:
    """The score columns of these rows: name, direction (up or down is better), getter."""
    found: list[tuple[str, str, Callable[[Row], float | None]]] = []
    for role, direction in (("erased", "down"), ("kept", "up"), ("synonym", "down"), ("adjacent", "up")):
        if any(r[f"acc_{role}"] is not None for r in rows):
            found.append((f"acc_{role}", direction, lambda r, k=f"acc_{role}": r[k]))  # type: ignore[misc]
    if any(r["headline"] is not None for r in rows):
        down = any(_sign(r) < 0 for r in rows)
        found.append(("headline", "down" if down else "up", lambda r: r["headline"]))
    for name in metric_columns(rows):
        found.append((name, protocol(name).direction, lambda r, k=name: r["metrics"].get(k)))  # type: ignore[misc]
    return found


def metric_columns(rows: Sequence[Row]) -> list[str]:
    """Ids under `metrics` in their first order, without the primary, which has columns of its own."""
    primaries = {r["primary"] for r in rows}
    return list(dict.fromkeys(c for r in rows for c in r["metrics"] if c not in primaries))


# --- writing --------------------------------------------------------------------------------------------------
def files(records: Iterable[Record]) -> dict[str, bytes]:
    """`board.json`, `board.csv` and `board.md` as bytes: they depend on the records alone."""
    board = build(records)
    return {f"board.{kind}": render(board, kind).encode("utf-8") for kind in ("json", "csv", "md")}


def write(records: Iterable[Record], out: str | Path) -> Board:
    """Write the board's files into `out`, each replaced as a whole, and return the board."""
    records = list(records)
    for name, data in files(records).items():
        temporary = Path(out) / f".{name}.part"
        temporary.write_bytes(data)
        os.replace(temporary, Path(out) / name)
    return build(records)


def render(board: Board, kind: str, *, width: int = 100, colour: bool = False) -> str:
    """The board as `term`, `md`, `csv`, `json` or `tex`."""
    from benchmark.tables import formats

    if kind not in formats.FORMATS:
        raise BadInput(did_you_mean(kind, formats.FORMATS, "format"))
    if kind == "term":
        return formats.term(board, width=width, colour=colour)
    return formats.FORMATS[kind](board)
