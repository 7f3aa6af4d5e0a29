"""Records → board: a row per method and request, and one per method over all requests. Reads records only, no torch.

A row's score depends on its own records alone; only ranks, ties, gaps, marks and flags look at the other rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmark import atomic, data_files, stats
from benchmark.consistency import faults
from benchmark.errors import BadInput, Damaged, did_you_mean
from benchmark.metrics.balance import headline
from benchmark.metrics.protocols import protocol, unmixed
from benchmark.metrics.summary import ROLES, source
from benchmark.metrics.validity import gate
from benchmark.record import listed, read
from benchmark.tables.columns import Board as Board
from benchmark.tables.columns import Record as Record
from benchmark.tables.columns import Row as Row
from benchmark.tables.columns import natural as natural
from benchmark.tables.columns import sign
from benchmark.tables.compare import compare, mark
from benchmark.tables.draws import Draws, Groups, metric_draws, role_draws
from benchmark.untrusted import inside

SCHEMA = 1
MEAN = "mean"
ORDER = {"baseline": 0, "erasure": 1, "control": 2}


# --- reading --------------------------------------------------------------------------------------------------
def read_records(folder: str | Path) -> list[Record]:
    """All records of a run's `records` folder, or of the folder above it, by file name; an older schema is upgraded.

    Raises BadInput if there are none, and what `record.read` raises for damaged ones. Damaged for one whose summary is
    not what its rows give, or whose bytes are not those that the run's checksums promise: no table is made of it.
    """
    root = Path(folder)
    root = root / "records" if (root / "records").is_dir() else root
    paths = listed(root)
    if not paths:
        raise BadInput(f"no records (*.json) in {root}; `erasure-bench run` writes them under OUT/records")
    for path in paths:
        if not inside(root, path):
            raise BadInput(f"{path}: leads out of {root}; copy the record into it")
    found = {p.name: read(p).model_dump(mode="json", by_alias=True) for p in paths}
    for name, fault in faults(found):
        raise Damaged(f"{root / name}: {fault}; get the record again, or run again")
    _sealed(root, paths)
    return list(found.values())


def _sealed(root: Path, paths: Sequence[Path]) -> None:
    """Damaged if a finished run's checksums are beside it and a record is not the one that they name."""
    sums = root.parent / data_files.MANIFEST
    promised = data_files.manifest(sums) if root.name == "records" and sums.is_file() else {}
    for path in paths:
        if (digest := promised.get(f"records/{path.name}")) is not None and data_files.sha256(path) != digest:
            raise Damaged(f"{path}: changed since the run wrote {sums.name}; `erasure-bench verify` tells of the rest")


# --- board ----------------------------------------------------------------------------------------------------
def build(records: Iterable[Record]) -> Board:
    """The board of one suite on one model, as `board.json` holds it. Records of an older suite version are stale.

    Raises BadInput if records of several suites, forms or models are given: their numbers have no common column.
    """
    return with_draws(records)[0]


def with_draws(records: Iterable[Record]) -> tuple[Board, dict[str, stats.Floats | None]]:
    """The board as `build` gives it, and joint bootstrap draws of each method's mean headline, where there are any."""
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
    draws = Draws()
    rows = [cell_row(group, draws) for group in groups.values()]
    methods = sorted({method for method, _ in groups})
    means = {m: {q: groups[m, q] for q in requests if (m, q) in groups} for m in methods}
    rows += [mean_row(m, cells, requests, draws) for m, cells in means.items()]
    for row in rows:
        row["gate"] = _gate_of(row["request"], gates)
    claims = []
    for request in [*requests, MEAN]:
        here = [r for r in rows if r["request"] == request]
        claims += compare(here, {m: _cells(means[m], request) for m in methods}, draws)
    mark(claims)
    rows.sort(key=lambda r: (r["request"] == MEAN, natural(r["request"]), _position(r)))
    board = {"schema": SCHEMA, **first, "suite_version": version, "protocols": _protocols(fresh), "rows": rows}
    whole = {r["method"]: r for r in rows if r["request"] == MEAN and r["status"] == "ok"}
    return board, {m: draws.headline(_cells(means[m], MEAN)) for m in whole}


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
    best_first = 0 if score is None else -score * sign(row)
    return (ORDER.get(row["role"], 1), score is None, best_first, natural(row["method"]))


# --- rows -----------------------------------------------------------------------------------------------------
def cell_row(group: Sequence[Record], draws: Draws) -> Row:
    """The row of one method and request; several records are its training seeds, and their mean is shown."""
    r = group[0]
    row = _frame(r, r["request"]["name"], [x["request"]["seed"] for x in group])
    bad = next((x for x in group if x["status"] != "ok"), None)
    if bad is not None:
        return row | {"status": bad["status"], "reason": bad["reason"]}
    summaries = [x["summary"] for x in group]
    if len(group) == 1:
        return row | {k: summaries[0][k] for k in row if k in summaries[0]} | {"reason": _reasons(summaries[0])}
    return row | _averaged([group], summaries, draws)


def mean_row(method: str, cells: Mapping[str, Sequence[Record]], requests: Sequence[str], draws: Draws) -> Row:
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
    return row | _averaged(groups, [x["summary"] for g in groups for x in g], draws)


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
    beside: Row = {"gap_vs_best": None, "gap_vs_best_ci": None, "marks": {}, "spread": None}
    return row | empty | ranking | beside


def _reasons(summary: Mapping[str, Any]) -> str:
    """Reasons for what is missing; a role that the suite does not have is no news."""
    return "; ".join(f"{k}: {v}" for k, v in summary["reasons"].items() if not v.startswith("no "))


def _averaged(groups: Groups, summaries: Sequence[Mapping[str, Any]], draws: Draws) -> Row:
    """Means over cells with joint bootstrap intervals; a score that one cell lacks is not available."""
    reasons = {t for t in map(_reasons, summaries) if t} | _unequal(summaries)
    row: Row = {"reason": "; ".join(sorted(reasons))}
    for role in ROLES:
        row[f"n_{role}"] = sum(s[f"n_{role}"] for s in summaries)
        row[f"acc_{role}"] = _mean([s[f"acc_{role}"] for s in summaries])
        row[f"acc_{role}_ci"] = _interval(role_draws(groups, role), row[f"acc_{role}"])
    row["headline"] = _mean([s["headline"] for s in summaries])
    row["headline_ci"] = _interval(draws.headline(groups), row["headline"])
    row["spread"] = _spread(groups, draws)
    return row | _mean_metrics(groups, summaries) | _counts(summaries) | _relative(summaries)


def _relative(summaries: Sequence[Mapping[str, Any]]) -> Row:
    """Accuracies as a share of the unedited model's, where all cells have them."""
    every = [s.get("relative", {}) for s in summaries]
    return {"relative": {role: _mean([e.get(role) for e in every]) for role in every[0]}}


def _mean(values: Sequence[float | None]) -> float | None:
    found = [v for v in values if v is not None]
    return float(np.mean(found)) if found and len(found) == len(values) else None


def _mean_metrics(groups: Groups, summaries: Sequence[Mapping[str, Any]]) -> Row:
    """Only columns that all cells have: distances over different numbers of images do not average."""
    shared = [c for c in summaries[0]["metrics"] if all(c in s["metrics"] for s in summaries)]
    means = {c: _mean([s["metrics"][c] for s in summaries]) for c in shared}
    intervals = {c: _interval(metric_draws(groups, c), value) for c, value in means.items()}
    return {"metrics": means, "metrics_ci": intervals}


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


def _interval(draws: stats.Floats | None, value: float | None) -> list[float] | None:
    return None if draws is None or value is None else stats.around(value, draws)


def _spread(groups: Groups, draws: Draws) -> Row | None:
    """How much of the headline is luck of training, how much of sampling: with more than one training seed only."""
    by_seed = [{r["request"]["seed"]: r for r in g} for g in groups]
    seeds = sorted(set.intersection(*(set(b) for b in by_seed)))
    cells = [[[b[s]] for b in by_seed] for s in seeds]
    values = [_mean([r["summary"]["headline"] for (r,) in c]) for c in cells]
    drawn = [draws.headline(c) for c in cells]
    if len(seeds) < 2 or None in values or any(d is None for d in drawn):
        return None
    found = stats.split([v for v in values if v is not None], [d for d in drawn if d is not None])
    return {"seeds": seeds, "training_sd": found.training, "sampling_sd": found.sampling}


# --- writing --------------------------------------------------------------------------------------------------
def files(records: Iterable[Record]) -> dict[str, bytes]:
    """`board.json`, `board.csv` and `board.md` as bytes: they depend on the records alone."""
    board = build(records)
    return {f"board.{kind}": render(board, kind).encode("utf-8") for kind in ("json", "csv", "md")}


def write(records: Iterable[Record], out: str | Path) -> Board:
    """Write the board's files into `out`, each replaced as a whole, and return the board."""
    records = list(records)
    for name, data in files(records).items():
        atomic.write(Path(out) / name, data)
    return build(records)


def render(board: Board, kind: str, *, width: int = 100, colour: bool = False, intervals: bool = False) -> str:
    """The board as `term`, `md`, `csv`, `json` or `tex`; `intervals` puts them into `tex` too."""
    from benchmark.tables import formats

    if kind not in formats.FORMATS:
        raise BadInput(did_you_mean(kind, formats.FORMATS, "format"))
    if kind == "term":
        return formats.term(board, width=width, colour=colour)
    if kind == "tex":
        return formats.as_tex(board, intervals=intervals)
    return formats.FORMATS[kind](board)
