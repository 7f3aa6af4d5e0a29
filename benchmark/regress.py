"""The regression gate: a fresh run against a baseline. Pure: records in, a report out; no torch.

Each cell is judged by one of two rules. Where all that the determinism contract holds fixed is as it was (device class,
packages, threads, batch shape) and no input but the code differs, its bytes must be the same. Otherwise its outcomes
are tested in pairs, image by image, so that the noise of another batch shape passes and a change does not. An input
that should not change by itself (weights, prompts, thresholds, packages, versions) is a finding of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmark import inputs, regress_stats
from benchmark.baseline import DIGITS
from benchmark.errors import BadInput, did_you_mean
from benchmark.inputs import Change, Place
from benchmark.metrics.protocols import protocol
from benchmark.regress_stats import Paired

Record = Mapping[str, Any]
Pair = tuple[Record, Record]
"""The baseline's record of a cell, and the run's."""
Moved = Mapping[str, tuple[float | None, float | None]]
"""Number → what it was, what it is."""
ALLOWED = frozenset({inputs.CODE, "batch", "device"})
"""Kinds of inputs that may differ without being a finding: the gate is there to judge them."""
LEAST_DISTANCE = 0.1
"""Distances between sets of images (FID, KID) have no value for each image, hence no paired test: they count if they
move by this share of the earlier value and leave its interval, where there is one (harness default)."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What fails the gate."""

    kind: str
    """`input`, `status`, `bytes`, `score` or `distance`."""
    where: str
    """A cell, or "" for the whole run."""
    text: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """The gate's answer."""

    suite: str
    model: str
    reason: str | None
    """Why the baseline is what it is."""
    cells: tuple[str, ...]
    exact: tuple[str, ...]
    """Cells that were judged by their bytes; the others by tests."""
    changes: Mapping[Change, Sequence[str]]
    """Inputs that differ, with the cells."""
    findings: tuple[Finding, ...]
    tests: tuple[Paired, ...] = ()
    notes: tuple[str, ...] = ()
    numbers: Mapping[str, Moved] = field(default_factory=dict)
    """By cell: the numbers that moved."""

    @property
    def ok(self) -> bool:
        return not self.findings


def regress(
    before: Sequence[Record], after: Sequence[Record], *, allow: Collection[str] = (), reason: str | None = None
) -> Report:
    """Compare the records of a run with those of a baseline; `allow` are further kinds of inputs that may differ.

    BadInput if they are of different suites or models, or `allow` names no kind.
    """
    _check(allow)
    suite, model = _same(before, after)
    old, new = ({inputs.place(r): r for r in records} for records in (before, after))
    pairs = [(old[p], new[p]) for p in old if p in new]
    exact = [pair for pair in pairs if is_exact(*pair)]
    tested = [pair for pair in pairs if not is_exact(*pair)]
    changes = inputs.gathered(pairs)
    ran = regress_stats.family(paired(tested))
    findings = [
        *_inputs(changes, len(pairs), ALLOWED | set(allow)),
        *_absent(old, new),
        *(f for pair in pairs for f in _status(*pair)),
        *(f for pair in exact for f in _bytes(*pair)),
        *(Finding(kind="score", where=t.cell, text=told(t)) for t in ran if t.flagged),
        *(f for pair in tested for f in _distances(*pair)),
    ]
    return Report(
        suite=suite,
        model=model,
        reason=reason,
        cells=tuple(inputs.cell(r) for r in {**old, **new}.values()),
        exact=tuple(inputs.cell(r) for _, r in exact),
        changes=changes,
        findings=tuple(findings),
        tests=tuple(ran),
        notes=tuple(f"{inputs.cell(new[p])} is not in the baseline" for p in new if p not in old),
        numbers={inputs.cell(b): m for a, b in pairs if (m := moved(a, b))},
    )


def _check(allow: Collection[str]) -> None:
    for kind in allow:
        if kind not in inputs.KINDS:
            raise BadInput(did_you_mean(kind, inputs.KINDS, "kind of input"))


def _same(before: Sequence[Record], after: Sequence[Record]) -> tuple[str, str]:
    found = sorted({(r["suite"], r["model"]["name"]) for r in (*before, *after)})
    if not before or not after or len(found) > 1:
        kinds = ", ".join(f"{suite} on {model}" for suite, model in found) or "none"
        raise BadInput(f"expected two sets of records of one suite and model, got {kinds}; name another --baseline")
    return found[0]


# --- inputs and statuses ----------------------------------------------------------------------------------------------
def is_exact(before: Record, after: Record) -> bool:
    """Whether the contract promises the same bytes: nothing but the code may differ."""
    return {c.kind for c in inputs.changes(before, after)} <= {inputs.CODE}


def _inputs(changes: Mapping[Change, Sequence[str]], cells: int, permitted: Collection[str]) -> Iterator[Finding]:
    for change, where in changes.items():
        if change.kind not in permitted:
            yield Finding(kind="input", where="", text=f"{change}{among(where, cells)}")


def among(where: Sequence[str], cells: int) -> str:
    """` (esd on erase:bird, and 2 more cells)`; nothing if it is all of them."""
    if len(where) == cells:
        return ""
    return f" ({where[0]}{f', and {len(where) - 1} more cells' if len(where) > 1 else ''})"


def _absent(old: Mapping[Place, Record], new: Mapping[Place, Record]) -> Iterator[Finding]:
    for place in old:
        if place not in new:
            yield Finding(kind="status", where=inputs.cell(old[place]), text="in the baseline, not in the run")


def _status(before: Record, after: Record) -> Iterator[Finding]:
    if before["status"] != after["status"]:
        why = f": {after['reason']}" if after["reason"] else ""
        text = f"was {before['status']}, is {after['status']}{why}"
        yield Finding(kind="status", where=inputs.cell(after), text=text)


# --- the same bytes ---------------------------------------------------------------------------------------------------
def _bytes(before: Record, after: Record) -> Iterator[Finding]:
    """The first stage whose result is not the same: what follows from it differs for that reason."""
    if not before["status"] == after["status"] == "ok":
        return
    text = _edit(before, after) or _images(before, after) or _values(before, after) or _summary(before, after)
    if text:
        same = not inputs.changes(before, after)
        cause = "no input differs" if same else "nothing but the code differs"
        yield Finding(kind="bytes", where=inputs.cell(after), text=f"{text}; {cause}")


def _edit(before: Record, after: Record) -> str | None:
    a, b = before["edit"], after["edit"]
    if a["hash"] != b["hash"]:
        return f"the edit: other weights from the same inputs ({inputs.told(a['hash'])} → {inputs.told(b['hash'])})"
    counts = [n for n in a["counts"] if n in b["counts"] and a["counts"][n] != b["counts"][n]]
    if counts:
        n = counts[0]
        return f"the edit's cost: {n} {a['counts'][n]} → {b['counts'][n]}, for the same weights"
    return None


def _images(before: Record, after: Record) -> str | None:
    if before["hashes"]["images"] == after["hashes"]["images"]:
        return None
    a, b = before["rows"]["image"], after["rows"]["image"]
    at = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x[:DIGITS] != y[:DIGITS]]
    first = f", the first of {after['rows']['prompt'][at[0]]!r}" if at else ""
    return f"{len(at)} of {len(b)} images: other pixels from the same edit{first}"


def _values(before: Record, after: Record) -> str | None:
    a, b = before["rows"], after["rows"]
    names = [n for n in a["values"] if n in b["values"] and list(a["values"][n]) != list(b["values"][n])]
    if names:
        n = sum(x != y for x, y in zip(a["values"][names[0]], b["values"][names[0]], strict=True))
        version = after["protocols"][names[0]]["version"]
        return (
            f"{names[0]}: {n} other values for the same images, by the same judge under version {version}: "
            "its threshold or rule moved without a new version"
        )
    return "other images count as valid" if list(a["valid"]) != list(b["valid"]) else None


def _summary(before: Record, after: Record) -> str | None:
    if before["summary"] == after["summary"]:
        return None
    numbers = moved(before, after)
    if not numbers:
        return "the summary, though no number of it"
    name, (x, y) = next(iter(numbers.items()))
    return f"the summary of the same values: {name} {number(x)} → {number(y)}"


# --- tests ------------------------------------------------------------------------------------------------------------
def paired(pairs: Sequence[Pair]) -> list[Paired]:
    """A test for each cell, role and column, and for each method over all requests, where an image counts once."""
    usable = [p for p in pairs if p[0]["status"] == p[1]["status"] == "ok" and p[0]["rows"]["role"]]
    of_cells = {inputs.cell(b): list(_images_of(a, b)) for a, b in usable}
    by_method: dict[str, list[_Image]] = {}
    for _, r in usable:
        by_method.setdefault(f"{r['method']['label']} over all requests", []).extend(of_cells[inputs.cell(r)])
    pools = {name: list(dict.fromkeys(images)) for name, images in by_method.items()}
    several = {name: pool for name, pool in pools.items() if _requests(name, usable) > 1}
    return [test for name, images in {**of_cells, **several}.items() for test in _of(name, images)]


def _requests(name: str, pairs: Sequence[Pair]) -> int:
    return len({r["request"]["name"] for _, r in pairs if name == f"{r['method']['label']} over all requests"})


@dataclass(frozen=True)
class _Image:
    """One image under one column; equal ones are the same image, which requests share."""

    column: str
    role: str
    concept: str
    prompt: str
    seed: int
    hashes: tuple[str, str]
    values: tuple[float | None, float | None]


def _images_of(before: Record, after: Record) -> Iterator[_Image]:
    a, b = before["rows"], after["rows"]
    where = {key: i for i, key in enumerate(_keys(a))}
    names = [n for n in b["values"] if n in a["values"]]
    for i, key in enumerate(_keys(b)):
        if key not in where:  # another prompt: a finding of its own
            continue
        j, (role, concept, prompt, seed) = where[key], key
        hashes = (a["image"][j][:DIGITS], b["image"][i][:DIGITS])
        valid = (float(a["valid"][j]), float(b["valid"][i]))
        yield _Image("valid", role, concept, prompt, seed, hashes, valid)
        for n in names:
            yield _Image(n, role, concept, prompt, seed, hashes, (a["values"][n][j], b["values"][n][i]))


def _keys(rows: Mapping[str, Any]) -> list[tuple[str, str, str, int]]:
    return list(zip(rows["role"], rows["concept"], rows["prompt"], rows["seed"], strict=True))


def _of(name: str, images: Sequence[_Image]) -> Iterator[Paired]:
    groups: dict[tuple[str, str], list[_Image]] = {}
    for image in images:
        groups.setdefault((image.role, image.column), []).append(image)
    for (role, column), group in groups.items():
        values = [image.values for image in group]
        there = [(float(x is not None), float(y is not None)) for x, y in values]
        if any(x != y for x, y in there):  # such as portraits that have a face no longer
            yield regress_stats.rate(name, f"{column} has a value", role, *zip(*there, strict=True))
        both = [(x, y) for x, y in values if x is not None and y is not None]
        if both:
            test = regress_stats.rate if _is_rate(column) else regress_stats.score
            yield test(name, column, role, *zip(*both, strict=True))


def _is_rate(column: str) -> bool:
    return column == "valid" or protocol(column).rate


def told(t: Paired) -> str:
    """A test in words."""
    unit = "" if t.kind == "rate" else f", {t.effect:+.2f} standard deviations"
    return (
        f"{t.column} on {t.role} prompts: {number(t.before)} → {number(t.after)}{unit} "
        f"({t.differing} of {t.n} images differ, p = {t.adjusted:.2g} in the family)"
    )


# --- numbers ----------------------------------------------------------------------------------------------------------
def _distances(before: Record, after: Record) -> Iterator[Finding]:
    a, b = before["summary"].get("metrics", {}), after["summary"].get("metrics", {})
    for column in (c for c in a if c in b and protocol(c).scope == "set"):
        x, y = a[column], b[column]
        if x is None or y is None:
            if (x is None) != (y is None):
                text = f"{column}: {number(x)} → {number(y)}"
                yield Finding(kind="distance", where=inputs.cell(after), text=text)
            continue
        interval = before["summary"]["metrics_ci"].get(column)
        outside = interval is None or not interval[0] <= y <= interval[1]
        if abs(y - x) > LEAST_DISTANCE * abs(x) and outside:
            text = f"{column}: {number(x)} → {number(y)}, more than {LEAST_DISTANCE:.0%} and outside its interval"
            yield Finding(kind="distance", where=inputs.cell(after), text=text)


def numbers(r: Record) -> dict[str, float | None]:
    """The numbers of a record's board row: accuracies, headline, metrics."""
    s = r["summary"]
    named = {name: s[name] for name in s if name.startswith("acc_") and isinstance(s[name], float | int | None)}
    named = {name: value for name, value in named.items() if not name.endswith("_ci")}
    return {**named, "headline": s.get("headline"), **s.get("metrics", {})}


def moved(before: Record, after: Record) -> dict[str, tuple[float | None, float | None]]:
    """The numbers that differ, those that only one has included."""
    a, b = numbers(before), numbers(after)
    return {n: (a.get(n), b.get(n)) for n in dict.fromkeys([*a, *b]) if a.get(n) != b.get(n)}


def number(value: float | None) -> str:
    """A number in a line, a dash where there is none."""
    return "–" if value is None else f"{value:.4g}"
