"""What went into a record, and what of it differs between two: the answer to "which input changed". Pure, no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]
"""A record as its JSON has it, in the present schema."""
Place = tuple[str, str, int]
"""Method, request, training seed: what two runs match cells by."""
CODE = "code"
SHAPES = ("package", "device", "batch")
"""Kinds that the determinism contract holds fixed: if one differs, bits may, and only tests can tell."""
KINDS = (
    CODE,
    *SHAPES,
    "suite version",
    "suite",
    "model",
    "model weights",
    "prompts",
    "protocol",
    "threshold",
    "evaluator weights",
    "method",
    "request",
    "sampler",
)
"""All kinds of inputs; `code` is the commit of this harness."""


@dataclass(frozen=True, order=True)
class Change:
    """One input that is not what it was."""

    kind: str
    name: str
    before: str
    after: str

    def __str__(self) -> str:
        name = f" {self.name}" if self.name else ""
        return f"{self.kind}{name}: {self.before} → {self.after}"


def changes(before: Record, after: Record) -> list[Change]:
    """The inputs that differ between two records of one cell, in the order of `KINDS`.

    What a record of an older schema does not tell is not compared.
    """
    found = [*_plain(before, after), *_protocols(before, after), *_prompts(before, after)]
    return sorted(found, key=lambda c: (KINDS.index(c.kind), c))


def gathered(pairs: Iterable[tuple[Record, Record]]) -> dict[Change, list[str]]:
    """The changes of many cells, each once, with the cells that have it."""
    found: dict[Change, list[str]] = {}
    for before, after in pairs:
        for change in changes(before, after):
            found.setdefault(change, []).append(cell(after))
    return dict(sorted(found.items(), key=lambda item: (KINDS.index(item[0].kind), item[0])))


def cell(r: Record) -> str:
    """`esd on erase:bird`, with the training seed where it is not 0."""
    request = r["request"]
    seed = f", seed {request['seed']}" if request["seed"] else ""
    return f"{r['method']['label']} on {request['name']}{seed}"


def place(r: Record) -> Place:
    """The cell that a record is of."""
    return r["method"]["label"], r["request"]["name"], r["request"]["seed"]


# --- values that stand in the record as they are ----------------------------------------------------------------------
def _plain(before: Record, after: Record) -> Iterator[Change]:
    old, new = _flat(before), _flat(after)
    for kind, name in dict.fromkeys([*old, *new]):
        a, b = old.get((kind, name), _UNKNOWN), new.get((kind, name), _UNKNOWN)
        if a != b and _UNKNOWN not in (a, b):
            yield Change(kind, name, told(a), told(b))


_UNKNOWN = object()


def _flat(r: Record) -> dict[tuple[str, str], Any]:
    """Kind and name → value; a name that is absent is not known."""
    came, method, request, model = r["provenance"], r["method"], r["request"], r["model"]
    flat: dict[tuple[str, str], Any] = {
        (CODE, "commit"): came["commit"],
        (CODE, "uncommitted changes"): came["dirty"],
        ("package", "python"): _minor(came["python"]),
        ("batch", "size"): r["batch"],
        ("suite", "name"): r["suite"],
        ("suite version", r["suite"]): r["suite_version"],
        ("model", "name"): model["name"],
        ("model weights", model["name"]): model["hash"],
        ("method", "name"): method["label"],
        ("request", "name"): request["name"],
        ("method", "version"): method["version"],
        ("method", "preset"): method["preset"],
        ("suite", "reference images"): r["reference"],
    }
    flat |= {("device", name): came[name] for name in ("device_class", "machine", "threads", "dtype", "determinism")}
    flat |= {("device", name): value for name, value in came["precision"].items()}
    flat |= {("package", name): version for name, version in came["packages"].items() if name != "erasure-bench"}
    flat |= {("suite", name): r[name] for name in ("form", "scale", "primary", "headline")}
    flat |= {("suite", f"gate of {role}"): list(window) for role, window in r["gate"].items()}
    flat |= {("method", name): value for name, value in method["fields"].items()}
    flat |= {("request", name): list(request[name]) for name in ("keep", "adjacent", "general")}
    flat |= {("request", "strategy"): request["strategy"]}
    flat |= {("sampler", name): value for name, value in r["sampler"].items()}
    for target in request["erase"]:
        known = {name: value for name, value in target.items() if value is not None}
        flat |= {("request", f"{target['name']}'s {name}"): value for name, value in known.items()}
    return flat | {("request", "erase"): [target["name"] for target in request["erase"]]}


def _minor(version: str) -> str:
    """Python's patch releases do not move a number."""
    return ".".join(version.split(".")[:2])


def told(value: Any) -> str:
    """A value in a line: short, hashes by their first digits."""
    if value is None:
        return "none"
    text = ", ".join(map(told, value)) if isinstance(value, list | tuple) else str(value)
    if re.fullmatch(r"[0-9a-f]{20,}", text):
        return text[:12]
    return text if len(text) <= 60 else f"{text[:57]}…"


# --- protocols --------------------------------------------------------------------------------------------------------
def _protocols(before: Record, after: Record) -> Iterator[Change]:
    if before["status"] == after["status"] == "ok":  # other cells have no protocols
        yield from of_protocols(before["protocols"], after["protocols"])
    for name in (p for p in before["rules"] if p in after["rules"]):
        yield from _rule(name, before["rules"][name], after["rules"][name])


def of_protocols(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    """Versions and judges; an id that differs in its number after @ alone is a threshold that moved."""
    gone, come = [p for p in old if p not in new], [p for p in new if p not in old]
    for a in list(gone):
        b = next((c for c in come if _without_threshold(c) == _without_threshold(a)), None)
        if b is not None:
            yield Change("threshold", _without_threshold(a), _threshold(a), _threshold(b))
            gone.remove(a)
            come.remove(b)
    yield from (Change("protocol", name, "scored", "not scored") for name in gone)
    yield from (Change("protocol", name, "not scored", "scored") for name in come)
    for name in (p for p in old if p in new):
        yield from _protocol(name, old[name], new[name])


def _without_threshold(name: str) -> str:
    return re.sub(r"@[^/]+", "", name)


def _threshold(name: str) -> str:
    found = re.search(r"@([^/]+)", name)
    return found[1] if found else "none"


def _protocol(name: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Change]:
    if a["version"] != b["version"]:
        yield Change("protocol", f"{name} version", told(a["version"]), told(b["version"]))
    if a["evaluator"] != b["evaluator"]:
        yield Change("protocol", f"{name} evaluator", a["evaluator"], b["evaluator"])
    elif a["evaluator_hash"] != b["evaluator_hash"]:
        yield Change("evaluator weights", a["evaluator"], told(a["evaluator_hash"]), told(b["evaluator_hash"]))


def _rule(name: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Change]:
    for key in dict.fromkeys([*a, *b]):
        old, new = a.get(key), b.get(key)
        if old != new:
            kind = "threshold" if _is_number(old) and _is_number(new) else "protocol"
            yield Change(kind, f"{name} {key}", told(old), told(new))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# --- prompts ----------------------------------------------------------------------------------------------------------
_ASKED = ("role", "concept", "prompt", "replicate")


def _prompts(before: Record, after: Record) -> Iterator[Change]:
    """What was asked for, row by row: the first difference stands for all of its kind."""
    a, b = before["rows"], after["rows"]
    if not a["role"] or not b["role"]:  # failed, or not applicable: nothing was asked
        return
    old, new = _column(a, _ASKED), _column(b, _ASKED)
    name = after["request"]["name"]
    if len(old) != len(new):
        yield Change("prompts", f"of {name}", f"{len(old)} images", f"{len(new)} images")
        return
    differ = [i for i, (x, y) in enumerate(zip(old, new, strict=True)) if x != y]
    if differ:
        i, more = differ[0], f" (and {len(differ) - 1} more rows)" if len(differ) > 1 else ""
        yield Change("prompts", f"of {name}, row {i + 1}", _asked(old[i]), _asked(new[i]) + more)
    elif a["seed"] and list(a["seed"]) != list(b["seed"]):
        at = [i for i, (x, y) in enumerate(zip(a["seed"], b["seed"], strict=True)) if x != y]
        more = f" (and {len(at) - 1} more rows)" if len(at) > 1 else ""
        yield Change(
            "prompts", f"of {name}, seed of row {at[0] + 1}", told(a["seed"][at[0]]), f"{b['seed'][at[0]]}{more}"
        )


def _column(rows: Mapping[str, Sequence[Any]], names: Sequence[str]) -> list[tuple[Any, ...]]:
    return list(zip(*(rows[name] for name in names), strict=True))


def _asked(row: tuple[Any, ...]) -> str:
    role, concept, prompt, _ = row
    return f"{role} {prompt!r}" + (f" for {concept}" if concept else "")
