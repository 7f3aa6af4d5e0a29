"""A committed baseline: the records of one run in one small file, with the reason for each refresh. No torch.

What cells share (provenance, prompts and seeds) is written once, and images by the first digits of their hashes; the
hash over all of a cell's images stays whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark import atomic, inputs, keys, paths, record
from benchmark.consistency import faults
from benchmark.errors import BadInput
from benchmark.untrusted import parse_json, read_bytes

SCHEMA = 1
KIND = "erasure-bench baseline"
DIGITS = 16
"""Of an image's hash: 64 bits tell images apart."""
_ASKED = ("role", "concept", "prompt", "replicate", "seed")
Record = dict[str, Any]


@dataclass(frozen=True)
class Reason:
    """Why the baseline became what it is, and with which code."""

    reason: str
    commit: str | None
    dirty: bool | None


@dataclass(frozen=True)
class Baseline:
    """Records, whose images are named by `DIGITS` digits, and the reasons, the newest last."""

    records: tuple[Record, ...]
    reasons: tuple[Reason, ...]


def default(suite: str, model: str) -> Path:
    """`results/baselines/<suite>-<model>.json` in the checkout, or from here where there is none."""
    root = paths.results() or Path("results")
    return root / "baselines" / f"{Path(suite).stem}-{Path(model).name}.json"


# --- writing ----------------------------------------------------------------------------------------------------------
def write(records: Sequence[Record], reason: str, file: Path | None = None) -> Path:
    """Write or refresh the baseline of these records; the reasons of earlier ones are kept.

    BadInput without a reason, and for records of several suites or models, or of cells that failed.
    """
    if not reason.strip():
        raise BadInput('a baseline needs a reason, such as --reason "new suite"; it is kept in the file')
    first = _checked(records)
    path = file or default(first["suite"], first["model"]["name"])
    came = first["provenance"]
    told = Reason(" ".join(reason.split()), came["commit"], came["dirty"])
    before = read(path).reasons if path.exists() else ()
    atomic.write(path, to_bytes(Baseline(tuple(records), (*before, told))))
    return path


def _checked(records: Sequence[Record]) -> Record:
    if not records:
        raise BadInput("expected at least one record; `erasure-bench run` writes them")
    of = {"suites": [r["suite"] for r in records], "models": [r["model"]["name"] for r in records]}
    for what, names in of.items():
        if len(found := sorted(set(names))) > 1:
            raise BadInput(f"expected records of one suite and model, got {len(found)} {what}: {', '.join(found)}")
    for r in records:
        if r["status"] in ("failed", "stale"):
            label, request = r["method"]["label"], r["request"]["name"]
            raise BadInput(f"{label} on {request} is {r['status']} ({r['reason']}); a baseline of it would let it pass")
    return records[0]


def to_bytes(baseline: Baseline) -> bytes:
    """The file: JSON, a line a part, the same bytes for the same baseline."""
    shared: dict[str, Any] = {}
    folded = [_folded(r, shared) for r in baseline.records]
    reasons = [vars(reason) for reason in baseline.reasons]
    head = {"kind": KIND, "schema": SCHEMA, "suite": baseline.records[0]["suite"]}
    lines = [f" {json.dumps(name)}: {_compact(value)}" for name, value in head.items()]
    lines += [
        f' "reasons": {_lines(reasons)}',
        f' "shared": {{\n{_named(shared)}\n }}',
        f' "records": {_lines(folded)}',
    ]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _folded(r: Record, shared: dict[str, Any]) -> Record:
    rows = r["rows"]
    asked = {name: list(rows[name]) for name in _ASKED}
    mine = {
        "image": [digest[:DIGITS] for digest in rows["image"]],
        "valid": None if all(rows["valid"]) else list(rows["valid"]),
        "values": {name: list(values) for name, values in rows["values"].items()},
    }
    return {**r, "rows": {"asked": _share(asked, shared), **mine}, "provenance": _share(r["provenance"], shared)}


def _share(value: Any, shared: dict[str, Any]) -> str:
    name = keys.digest(value)
    shared[name] = value
    return name


def _lines(values: Sequence[Any]) -> str:
    return "[\n" + ",\n".join(f"  {_compact(value)}" for value in values) + "\n ]"


def _named(values: Mapping[str, Any]) -> str:
    return ",\n".join(f"  {json.dumps(name)}: {_compact(value)}" for name, value in values.items())


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def as_run(baseline: Baseline) -> dict[str, Any]:
    """The arguments of a run that makes the same cells again: suite, model, methods, scale, seed, batch and fields."""
    first = baseline.records[0]
    methods = {r["method"]["label"]: r["method"]["passed"] for r in baseline.records}
    return {
        "suite": first["suite"],
        "model": first["model"]["name"],
        "methods": tuple(methods),
        "scale": first["scale"],
        "seed": first["request"]["seed"],
        "batch_size": first["batch"],
        "fields": {label: passed for label, passed in methods.items() if passed},
    }


# --- reading ----------------------------------------------------------------------------------------------------------
def read(path: Path) -> Baseline:
    """A baseline. BadInput if the file is not there, or is none: nothing then was compared, and nothing was found."""
    if not path.exists():
        raise BadInput(f'no baseline {path}; write one with `erasure-bench baseline RUN --reason "…"`')
    content = read_bytes(path)
    try:
        return parse(parse_json(content))
    except ValueError as error:
        raise BadInput(f"{path} is not JSON ({error}); take it from the repository again") from None
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None


def is_one(values: Any) -> bool:
    """Whether JSON values are a baseline's, of whatever schema."""
    return isinstance(values, dict) and values.get("kind") == KIND


def parse(values: Any) -> Baseline:
    """A baseline from its JSON values; BadInput if it is none of ours, or of another schema."""
    if not is_one(values):
        raise BadInput("expected a baseline, found other JSON; `erasure-bench baseline` writes one")
    if values.get("schema") != SCHEMA:
        raise BadInput(f"expected a baseline of schema {SCHEMA}, found {values.get('schema')!r}; refresh it")
    try:
        records = tuple(_unfolded(r, values["shared"]) for r in values["records"])
        reasons = tuple(Reason(**reason) for reason in values["reasons"])
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise BadInput(f"expected a whole baseline, found one without {error}; take it from the repository") from None
    if not (records and reasons and all(isinstance(r.reason, str) for r in reasons)):
        raise BadInput("expected a baseline with records and reasons, found none; take it from the repository")
    for name, fault in faults({inputs.cell(r): r for r in records}, whole=False):
        raise BadInput(f"{name}: {fault}; take the baseline from the repository, or refresh it")
    return Baseline(records, reasons)


def _unfolded(r: Record, shared: Mapping[str, Any]) -> Record:
    rows, asked = r["rows"], shared[r["rows"]["asked"]]
    valid = rows["valid"] or [True] * len(rows["image"])
    whole = {**asked, "image": rows["image"], "valid": valid, "values": rows["values"]}
    made = record.upgraded({**r, "rows": whole, "provenance": shared[r["provenance"]]})
    return record.parse(made).model_dump(mode="json", by_alias=True)
