"""What the figures show, as plain values: the page and the plots draw the same. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmark.errors import Damaged
from benchmark.metrics.balance import available, headline
from benchmark.metrics.protocols import protocol
from benchmark.page.runs import Run
from benchmark.tables.board import MEAN
from benchmark.tables.columns import Record, Row, natural
from benchmark.untrusted import parse_json

Json = dict[str, Any]
Point = dict[str, Any]
FIGURES = ("erase_keep", "concepts", "interference", "cost")


# --- erase versus keep ------------------------------------------------------------------------------------------------
def erase_keep(rows: Sequence[Row]) -> Json:
    """Forgetting against keeping for each request: points with 95 % intervals, those on the Pareto front marked.

    x is 1 − accuracy on erased prompts, y the accuracy on kept ones (adjacent ones where the suite has no kept), both
    fractions. `reason` says why a board has no such figure.
    """
    ok = [r for r in rows if r["status"] == "ok"]
    if reason := _no_rates(ok):
        return {"reason": reason, "keep": "kept", "requests": {}}
    keep = "kept" if any(r["acc_kept"] is not None for r in ok) else "adjacent"
    found: dict[str, list[Point]] = {}
    for r in ok:
        if r["acc_erased"] is not None and r[f"acc_{keep}"] is not None:
            found.setdefault(r["request"], []).append(_erase_keep_point(r, keep))
    for points in found.values():
        _mark_front(points)
    reason = "" if found else "no request has accuracies on both erased and kept prompts"
    return {"reason": reason, "keep": keep, "requests": found}


def _no_rates(rows: Sequence[Row]) -> str:
    other = next((r["primary"] for r in rows if protocol(r["primary"]).unit != "fraction"), None)
    return "" if other is None else f"{other} is not a rate between 0 and 1"


def _erase_keep_point(r: Row, keep: str) -> Point:
    x_ci, y_ci = r["acc_erased_ci"], r[f"acc_{keep}_ci"]
    return {
        "method": r["method"],
        "role": r["role"],
        "x": 1 - r["acc_erased"],
        "x_ci": None if x_ci is None else [1 - x_ci[1], 1 - x_ci[0]],
        "y": r[f"acc_{keep}"],
        "y_ci": y_ci,
        "front": False,
    }


def _mark_front(points: Sequence[Point]) -> None:
    """Of the erasure methods, those that no other one beats in one direction without losing in the other."""
    erasing = [p for p in points if p["role"] == "erasure"]
    for p in erasing:
        p["front"] = not any(_dominates(q, p) for q in erasing)


def _dominates(q: Point, p: Point) -> bool:
    return bool(q["x"] >= p["x"] and q["y"] >= p["y"] and (q["x"] > p["x"] or q["y"] > p["y"]))


def front_line(points: Iterable[Point]) -> list[tuple[float, float]]:
    """The front's corners from left to right, duplicates once."""
    return sorted({(p["x"], p["y"]) for p in points if p["front"]}, key=lambda c: (c[0], -c[1]))


# --- H against the number of concepts ---------------------------------------------------------------------------------
def concepts(run: Run) -> Json:
    """The headline of each method and request against how many concepts the request erases, and the means per count."""
    counts = {r["request"]["name"]: len(r["request"]["erase"]) for r in run.records}
    points = [_scored(r) | {"n": counts[r["request"]]} for r in _with_headline(run) if r["request"] in counts]
    lines: dict[str, Json] = {}
    for p in points:
        line = lines.setdefault(p["method"], {"method": p["method"], "role": p["role"], "means": {}})
        line["means"].setdefault(p["n"], []).append(p["headline"])
    for line in lines.values():
        line["means"] = [[n, sum(v) / len(v)] for n, v in sorted(line["means"].items())]
    reason = "" if points else "the records have no headline, or are not here"
    return {"reason": reason, **_axis(run), "points": points, "lines": list(lines.values())}


def _with_headline(run: Run) -> list[Row]:
    return [
        r
        for r in run.board["rows"]
        if r["request"] != MEAN and r["status"] == "ok" and r["headline"] is not None and r["role"] != "baseline"
    ]


def _scored(r: Row) -> Point:
    said = {k: r[k] for k in ("method", "role", "request", "headline")}
    return {**said, "ci": r["headline_ci"]}


def _axis(run: Run) -> Json:
    """How the headline is drawn: its name, whether low is good, and its range where it has one."""
    name = next((r["headline_id"] for r in run.board["rows"] if r["headline_id"]), None)
    if name is None:
        return {"headline": None, "direction": "up", "rate": True, "title": ""}
    h = headline(name)
    return {"headline": name, "direction": h.direction, "rate": h.unit == "fraction", "title": h.title}


# --- interference -----------------------------------------------------------------------------------------------------
def interference(run: Run) -> Json:
    """For each method: what each request (rows) does to the accuracy on each concept (columns), as a difference.

    `change` is the method's accuracy minus the unedited model's on the images (same prompt and seed) that both could be
    scored on, `n` their number. Cells of concepts that the request erases are marked `erased`.
    """
    ok = [r for r in run.records if r["status"] == "ok"]
    bases = {r["request"]["name"]: r for r in ok if r["method"]["role"] == "baseline"}
    if reason := _no_rates(run.board["rows"]) or ("" if bases else "the unedited model was not run"):
        return {"reason": reason, "columns": [], "requests": [], "methods": {}}
    methods: dict[str, list[Json]] = {}
    for r in ok:
        if r["method"]["role"] != "baseline" and r["request"]["name"] in bases:
            methods.setdefault(r["method"]["label"], []).extend(_changes(r, bases[r["request"]["name"]]))
    methods = {m: _pooled(cells) for m, cells in sorted(methods.items(), key=lambda e: natural(e[0]))}
    every = [c for cells in methods.values() for c in cells]
    asked = list(dict.fromkeys(c["concept"] for c in every if c["erased"]))
    columns = asked + [c for c in dict.fromkeys(c["concept"] for c in every) if c not in asked]
    requests = sorted({c["request"] for c in every}, key=natural)
    reason = "" if every else "no method has an image in common with the unedited model"
    return {"reason": reason, "columns": columns, "requests": requests, "methods": methods}


def _changes(r: Record, base: Record) -> list[Json]:
    """Hits of one record and of the unedited model, by concept."""
    mine, theirs = _values(r), _values(base)
    found: dict[tuple[str, bool], Json] = {}
    for key in [k for k in mine if k in theirs]:
        role, concept = key[0], key[1]
        of = found.setdefault((concept, role == "erased"), {"hits": 0.0, "base": 0.0, "n": 0})
        of["hits"], of["base"], of["n"] = of["hits"] + mine[key], of["base"] + theirs[key], of["n"] + 1
    request = r["request"]["name"]
    return [{"request": request, "concept": c, "erased": e, **of} for (c, e), of in found.items()]


def _values(r: Record) -> dict[tuple[str, str, str, int], float]:
    """Primary values that are there, by (role, concept, prompt, seed)."""
    rows = r["rows"]
    values = rows["values"].get(r["primary"], [None] * len(rows["role"]))
    columns = zip(rows["role"], rows["concept"], rows["prompt"], rows["seed"], rows["valid"], values, strict=True)
    kinds = ("erased", "kept", "adjacent")
    return {(a, c, p, s): v for a, c, p, s, ok, v in columns if ok and a in kinds and c and available(v)}


def _pooled(cells: Sequence[Json]) -> list[Json]:
    """One cell for each request and concept: training seeds of a method are taken together."""
    found: dict[tuple[str, str, bool], Json] = {}
    for c in cells:
        of = found.setdefault((c["request"], c["concept"], c["erased"]), {"hits": 0.0, "base": 0.0, "n": 0})
        for name in of:
            of[name] += c[name]
    return [
        {"request": q, "concept": c, "erased": e, "acc": of["hits"] / of["n"], "unedited": of["base"] / of["n"]}
        | {"change": (of["hits"] - of["base"]) / of["n"], "n": of["n"]}
        for (q, c, e), of in found.items()
    ]


# --- cost -------------------------------------------------------------------------------------------------------------
COUNTS = ("denoiser_forwards", "denoiser_backwards", "text_encodes")


def cost(run: Run) -> Json:
    """What each edit took beside its headline: seconds where they were measured, and counts that are the same anywhere.

    `seconds` are of one edit, `image_seconds` of one image, `peak_bytes` the process's largest memory; None if unknown.
    """
    rows = {(r["method"], r["request"]): r for r in run.board["rows"]}
    points = []
    for r, slug in run.named():
        row = rows.get((r["method"]["label"], r["request"]["name"]))
        if r["status"] == "ok" and row is not None and r["method"]["role"] != "baseline":
            points.append(_scored(row) | {"seed": r["request"]["seed"]} | _spent(run, r, slug))
    timed = any(p["seconds"] is not None for p in points)
    reason = "" if points else "the records are not here"
    return {"reason": reason, **_axis(run), "timed": timed, "machine": dict(run.machine), "points": points}


def _spent(run: Run, r: Record, slug: str) -> Json:
    of_cell = run.costs.get(slug, {})
    edits = list(of_cell.get("edit", {}).values()) or _stored_cost(run, r)
    images = of_cell.get("images", {})
    made = images.get("made", 0)
    counts = r["edit"]["counts"] if r["edit"] else {}
    return {
        "seconds": sum(e.get("seconds", 0.0) for e in edits) if edits else None,
        "peak_bytes": max((e["peak_bytes"] for e in edits if e.get("peak_bytes")), default=None),
        "image_seconds": images["seconds"] / made if made and "seconds" in images else None,
        **{name: counts.get(name) for name in COUNTS},
    }


def _stored_cost(run: Run, r: Record) -> list[Json]:
    """What the edit cost when it was made, which may have been in another run."""
    if run.store is None or not r["edit"] or not run.store.has("costs", r["edit"]["key"]):
        return []
    try:
        found = parse_json(run.store.read("costs", r["edit"]["key"], file="cost.json"))
        return [{"seconds": float(found["seconds"]), "peak_bytes": found.get("peak_bytes")}]
    except (AttributeError, Damaged, KeyError, TypeError, ValueError):
        return []
