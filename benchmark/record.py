"""The record of a cell: what was run, every image's scores, the summary and where it all comes from.

A record is the same bytes for the same run: no times, no host, no absolute path. What it costs is kept elsewhere.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from benchmark import atomic, data_files, paths
from benchmark.declared import Strict, Tuple, dotted
from benchmark.errors import BadInput, Damaged
from benchmark.keys import canonical
from benchmark.metrics import rules
from benchmark.metrics.protocols import protocol
from benchmark.plan import Cell, Plan
from benchmark.untrusted import gunzip, parse_json, plain_name, read_bytes

SCHEMA = 2
PACKED = ".gz"
"""Ends the name of a record that `gzip` has packed, as those under `results/` are; runs write them plain."""


def _to_2(values: dict[str, Any]) -> dict[str, Any]:
    """Schema 2 adds hashes, rules of protocols, precision, datasets and each target's adjacent concepts; what was not
    written is None or empty."""
    request = values["request"]
    erase = [{**c, "adjacent": None} for c in request["erase"]]
    return {**values, "request": {**request, "erase": erase}, "hashes": hashes(values.get("rows", {}))}


UPGRADES: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _to_2}
"""Schema number → what turns such a record into one of the next number."""

PACKAGES = (
    "erasure-bench",
    "torch",
    "diffusers",
    "transformers",
    "tokenizers",
    "safetensors",
    "torchvision",
    "torchmetrics",
    "numpy",
    "scipy",
    "pillow",
    "accelerate",
    "peft",
    "timm",
    "clean-fid",
    "torch-fidelity",
    "lpips",
    "nudenet",
    "onnxruntime",
    "facenet-pytorch",
)
"""What may move a number; one that is not installed is recorded as None."""
DETERMINISM = (
    "contract 1: equal bytes on one device class, library set, thread count and batch shape; "
    "every image from its own CPU generator, the last batch padded"
)


Name = Annotated[str, AfterValidator(plain_name)]
"""What stands in names of files and folders: never a path."""


class ModelPart(Strict):
    """The model that was edited."""

    name: Name
    hash: str
    family: str


class MethodPart(Strict):
    """The method with all its hyperparameters, and those given explicitly."""

    label: str
    name: str
    variant: str | None
    version: int
    role: Literal["baseline", "erasure", "control"]
    paper: str
    fields: dict[str, Any]
    passed: dict[str, Any]
    preset: str | None


def _concept(told: dict[str, Any]) -> dict[str, Any]:
    texts = [name for name in ("name", "kind", "anchor") if not isinstance(told.get(name, ""), str)]
    lists = [name for name in ("synonyms", "adjacent") if not _texts(told.get(name, []) or [])]
    if "name" not in told or texts or lists:
        raise ValueError(f"expected a concept with name, kind, anchor and lists of words, got {sorted(told)}")
    return told


def _texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)


Erased = Annotated[dict[str, Any], AfterValidator(_concept)]
"""A concept as the method saw it; records of schema 1 tell less."""


def _window(ends: tuple[float, ...]) -> tuple[float, ...]:
    if len(ends) != 2:
        raise ValueError(f"expected low and high, got {len(ends)} numbers")
    return ends


def _folders(named: dict[str, str] | None) -> dict[str, str] | None:
    """`images` and `prompts`, each `<dataset>/<file>`."""
    for name in ("images", "prompts") if named is not None else ():
        parts = (named or {}).get(name, "").split("/")
        if len(parts) != 2:
            raise ValueError(f"expected {name}: <dataset>/<file>")
        for part in parts:
            plain_name(part)
    return named


class RequestPart(Strict):
    """What the method was asked."""

    name: str
    erase: Tuple[Erased]
    keep: Tuple[str]
    adjacent: Tuple[str] = ()
    general: Tuple[str] = ()
    """General prompts that the method was told."""
    strategy: Literal["joint", "sequential"]
    seed: int


class ProtocolPart(Strict):
    """Which definition and which judge gave a column of values."""

    version: int
    evaluator: str
    evaluator_hash: str


class EditPart(Strict):
    """The edit that was used; `counts` are its exact costs, the same on every machine."""

    key: Name
    hash: str
    notes: dict[str, Any] = {}
    counts: dict[str, int] = {}


class Rows(Strict):
    """One entry per image and column, in the order of the plan."""

    role: Tuple[str] = ()
    concept: Tuple[str] = ()
    prompt: Tuple[str] = ()
    replicate: Tuple[int] = ()
    seed: Tuple[int] = ()
    image: Tuple[str] = ()
    """SHA-256 of the pixels."""
    valid: Tuple[bool] = ()
    """Whether the image could be scored by the primary protocol."""
    values: dict[str, Tuple[float | None]] = {}
    """Protocol id → value, None where there is none."""
    errors: dict[str, Tuple[str]] = {}
    """Protocol id → why its judge could not judge the image, "" where it could; only protocols with such images."""

    @model_serializer(mode="wrap")
    def _without_errors(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without errors the record is what it always was, byte for byte."""
        values: dict[str, Any] = plain(self)
        return values if self.errors else {k: v for k, v in values.items() if k != "errors"}

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        columns = {k: v for k, v in self if k not in ("values", "errors")}
        columns |= {f"{part}.{k}": v for part in ("values", "errors") for k, v in getattr(self, part).items()}
        lengths = {name: len(column) for name, column in columns.items()}
        wrong = [f"{name} has {n}" for name, n in lengths.items() if n != len(self.role)]
        if wrong:
            raise ValueError(f"columns must be of one length: role has {len(self.role)}, {', '.join(wrong)}")
        return self


class Provenance(Strict):
    """Which code, libraries and device class it comes from."""

    commit: str | None
    """None if the code is not a git checkout."""
    dirty: bool | None
    """Whether tracked or new files differ from the commit."""
    packages: dict[str, str | None]
    """None for one that is not installed."""
    python: str
    machine: str
    """Processor architecture, such as `x86_64`."""
    device_class: str
    threads: int
    dtype: str
    precision: dict[str, bool | str | None] = {}
    """`device.precision()`; empty in records of schema 1."""
    determinism: str = DETERMINISM


class Hashes(Strict):
    """Of all prompts, and of all images, of a record: SHA-256 over its rows in their order; "" without rows."""

    prompts: str = ""
    """Over role, concept, prompt, replicate and seed."""
    images: str = ""


class Record(Strict):
    """All of one cell."""

    schema_: int = Field(default=SCHEMA, alias="schema")
    suite: Name
    suite_version: int
    form: Literal["paper", "embedded"]
    scale: float
    model: ModelPart
    method: MethodPart
    request: RequestPart
    status: Literal["ok", "failed", "not applicable", "stale"]
    reason: str | None
    passed: dict[str, Any] = {}
    """The arguments that were typed, not defaulted."""
    sampler: dict[str, Any]
    batch: int
    primary: str
    headline: str | None
    gate: dict[str, Annotated[Tuple[float], AfterValidator(_window)]] = {}
    """By role: where the unedited model's accuracy must lie."""
    datasets: Tuple[str] = ()
    """That concepts, prompts and reference images come from; empty in records of schema 1."""
    reference: Annotated[dict[str, str] | None, AfterValidator(_folders)] = None
    """Whose real images the general prompts' are compared with."""
    protocols: dict[str, ProtocolPart]
    rules: dict[str, dict[str, Any]] = {}
    """By protocol: its rule with what is set in it, such as a threshold; empty in records of schema 1."""
    edit: EditPart | None
    hashes: Hashes = Hashes()
    rows: Rows = Rows()
    summary: dict[str, Any] = {}
    provenance: Provenance

    @model_validator(mode="after")
    def _reason_given(self) -> Self:
        if (self.status == "ok") != (self.reason is None):
            raise ValueError(f"a reason goes with every status but ok: status {self.status!r}, reason {self.reason!r}")
        return self


def start(plan: Plan, cell: Cell, provenance: Provenance) -> dict[str, Any]:
    """What the plan knows of a record; add `protocols`, `edit`, `rows` and `summary`, or a status and its reason."""
    method = cell.method
    part = {n: getattr(method, n) for n in ("label", "name", "variant", "fields", "passed", "preset")}
    part |= {n: getattr(method.instance, n) for n in ("version", "role", "paper")}
    told = ("name", "kind", "anchor", "synonyms", "adjacent")
    erase = [{what: _plain(getattr(c, what)) for what in told} for c in cell.request.erase]
    return {
        "schema": SCHEMA,
        "suite": plan.suite.name,
        "suite_version": plan.suite.version,
        "form": plan.form_name,
        "scale": plan.scale,
        "model": {"name": plan.model.name, "hash": plan.model_hash or "", "family": plan.model.family},
        "method": part,
        "request": {
            "name": cell.request.name,
            "erase": erase,
            "keep": [c.name for c in cell.request.keep],
            "adjacent": [c.name for c in cell.request.adjacent],
            "general": list(cell.request.general),
            "strategy": cell.strategy,
            "seed": cell.seed,
        },
        "status": cell.status,
        "reason": cell.reason,
        "sampler": plan.form.sampler.model_dump(mode="json"),
        "batch": plan.batch,
        "primary": plan.form.primary,
        "headline": plan.suite.headline,
        "gate": {role: list(window) for role, window in plan.form.gate.items()},
        "datasets": _datasets(plan),
        "reference": _reference(plan),
        "protocols": {},
        "rules": {name: rules.rule(protocol(name)) for name in plan.form.protocols},
        "edit": None,
        "provenance": provenance.model_dump(mode="json"),
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def hashes(rows: Mapping[str, Any]) -> dict[str, str]:
    """`Hashes` of a record's rows, as its JSON values have them."""
    if not rows.get("role"):
        return {"prompts": "", "images": ""}
    asked = {name: list(rows[name]) for name in ("role", "concept", "prompt", "replicate", "seed")}
    return {"prompts": _sha256(asked), "images": _sha256(list(rows["image"]))}


def _sha256(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def _datasets(plan: Plan) -> list[str]:
    """The form's own first, then those that its prompts and reference images name."""
    own = [plan.form.dataset] if isinstance(plan.form.dataset, str) else list(plan.form.dataset)
    return list(dict.fromkeys([*own, *(one.dataset for one in data_files.named_in(plan.form.model_dump(mode="json")))]))


def _reference(plan: Plan) -> dict[str, str] | None:
    """Folder of real images, and the file of prompts that says which of them."""
    reference, general = plan.form.reference, plan.form.prompts.general
    if reference is None or general is None or general.dataset is None or general.file is None:
        return None
    return {
        "images": f"{reference.dataset}/{reference.file}",
        "prompts": f"{general.dataset}/{general.file}",
    }


# --- provenance -----------------------------------------------------------------------------------------------------
def provenance(
    *, device_class: str, threads: int, dtype: str, precision: Mapping[str, bool | str | None] | None = None
) -> Provenance:
    """This process's provenance; `device_class` is `cpu` or a GPU's product name."""
    commit, dirty = _commit()
    return Provenance(
        commit=commit,
        dirty=dirty,
        packages=_versions(),
        python=platform.python_version(),
        machine=platform.machine(),
        device_class=device_class,
        threads=threads,
        dtype=dtype,
        precision=dict(precision or {}),
    )


def _versions() -> dict[str, str | None]:
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> tuple[str | None, bool | None]:
    root = paths.checkout()
    # A wheel may lie inside somebody else's repository: only our own checkout counts.
    if root is None or not (root / ".git").exists():
        return None, None
    commit, changes = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain")
    return commit or None, None if changes is None else bool(changes)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        # Without optional locks, so that a run never stands in the way of a commit.
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        command = ["git", "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


# --- bytes ----------------------------------------------------------------------------------------------------------
def parse(fields: Mapping[str, Any]) -> Record:
    """A record from its JSON values; `BadInput` names the first wrong one."""
    try:
        return Record.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"record: {dotted(tuple(first['loc'])) or 'the record'}: {first['msg']}") from None


def to_bytes(record: Record) -> bytes:
    """The record's file: JSON, a line per part, the same bytes for the same record.

    `ValueError` if it holds a number that is not finite, or an absolute path outside the prompts.
    """
    values = record.model_dump(mode="python", by_alias=True)
    _check(values, ())
    lines = [f" {json.dumps(name)}: {_compact(value)}" for name, value in values.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(", ", ": "), ensure_ascii=False, allow_nan=False)


def _check(value: Any, place: tuple[int | str, ...]) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"record: {dotted(place)} is {value}; write None and give a reason")
    if isinstance(value, str) and place[:2] != ("rows", "prompt") and _absolute(value):
        raise ValueError(f"record: {dotted(place)} holds an absolute path, which differs between machines: {value}")
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, child in children:
        _check(child, (*place, key))


def _absolute(text: str) -> bool:
    return os.path.isabs(text) or PureWindowsPath(text).is_absolute()


def write(path: Path, record: Record) -> None:
    """Write a record's file whole or not at all."""
    atomic.write(path, to_bytes(record))


def read(path: Path) -> Record:
    """Read a record, of this or an older schema; `Damaged` if it is not JSON, `BadInput` if it is no record."""
    try:
        values = values_of(path)
    except ValueError as error:
        raise Damaged(f"{path} is not JSON ({error}); delete it and run again") from None
    try:
        return parse(upgraded(values))
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None


def upgraded(values: Any, upgrades: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] | None = None) -> Any:
    """The values in the present schema; `BadInput` for a schema that is not known."""
    steps = UPGRADES if upgrades is None else upgrades
    number = values.get("schema") if isinstance(values, dict) else None
    while isinstance(number, int) and number in steps and number < SCHEMA:
        try:
            values = {**steps[number](values), "schema": number + 1}
        except (KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"expected a record of schema {number}, found one without {error}") from None
        number += 1
    if number != SCHEMA:
        newer = isinstance(number, int) and number > SCHEMA
        hint = "it was written by a newer version: update erasure-bench" if newer else "it is not a record of ours"
        raise BadInput(f"expected schema {SCHEMA}, found {number!r}: {hint}")
    return values


def values_of(path: Path) -> Any:
    """What the file of a record holds, packed or not; ValueError if that is not JSON."""
    return parse_json(content(path))


def content(path: Path) -> bytes:
    """The bytes of a record's file, unpacked; ValueError if they cannot be."""
    held = read_bytes(path)
    return gunzip(held) if path.suffix == PACKED else held


def listed(folder: Path) -> list[Path]:
    """The files of a folder's records, by name; BadInput for one that is there both packed and not."""
    found = {path.name: path for path in folder.glob("*.json")}
    packed = {path.stem: path for path in folder.glob(f"*.json{PACKED}")}
    if twice := sorted(found.keys() & packed.keys()):
        raise BadInput(f"{folder} has {twice[0]} and the same packed; remove one of them")
    both = found | packed
    return [both[name] for name in sorted(both)]


def read_all(folder: Path) -> list[Record]:
    """The records of a folder, by file name."""
    return [read(path) for path in listed(folder)]
