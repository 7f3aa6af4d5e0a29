"""One method on one model, outside any suite: the edit is written as files that others can load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark import data, device, models, registry
from benchmark.errors import BadInput
from benchmark.interface import Edit, Request, Target
from benchmark.suite import FormName

if TYPE_CHECKING:
    from benchmark.backbones.base import Backbone


def targets(names: Sequence[str], form: FormName) -> tuple[Target, ...]:
    """The concepts as methods see them.

    The embedded model knows the concepts of its own dataset and no others. For full-size models the datasets lend kind,
    anchor and synonyms where they have the name; any other name is taken as an object.
    """
    if len(set(names)) < len(names):
        raise BadInput(f"--concept: expected different concepts, got {', '.join(names)}")
    if form == "embedded":
        testbed = data.load("testbed")
        return tuple(testbed.concept(name).target() for name in names)
    known = {c.name: c.target() for name in data.names() if name != "testbed" for c in data.load(name).concepts}
    return tuple(known.get(name, Target(name=name)) for name in names)


def kind_of(erase: Sequence[Target]) -> str:
    """The kind of all, or `*` if they differ: what presets are chosen by."""
    kinds = {target.kind for target in erase}
    return kinds.pop() if len(kinds) == 1 else "*"


def erase(label: str, model: str, concepts: Sequence[str], *, seed: int = 0) -> Edit:
    """Load the model, run the method, and return its checked edit with its cost.

    BadInput for an unknown method, model or concept; Missing if the model's weights are not here.
    """
    spec = models.describe(model)
    request = Request(erase=targets(concepts, spec.form), seed=seed)
    registry.resolve(label, model=spec.name, kind=kind_of(request.erase))  # a typo is told before anything heavy loads
    models.resolve(model)
    from benchmark.backbones.load import load

    return _made(label, load(model, device=device.kind()), request)


def _made(label: str, backbone: Backbone, request: Request) -> Edit:
    """The edit, after the edits that it needs."""
    from benchmark import edits

    method = registry.resolve(label, model=backbone.name, kind=kind_of(request.erase)).instance
    given = {need: _made(need, backbone, request) for need in method.needs}
    most = method.max_concepts
    strategy: edits.Strategy = "sequential" if most is not None and len(request.erase) > most else "joint"
    return edits.make(method, backbone, replace(request, given=given), strategy)


def write(edit: Edit, out: Path) -> None:
    """Write `edit.safetensors`, `edit.json` and `cost.json` into the new folder `out`."""
    from benchmark.edits import serialise

    check_new(out)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in serialise(edit).items():
        (out / name).write_bytes(content)


def check_new(out: Path) -> None:
    """BadInput unless `out` can be made: nothing is ever overwritten."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"--out: expected a new or empty folder, and {out} is there already; name another")
