"""One method on one model, outside any suite: an edited model that plain diffusers loads, with the edit beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark import atomic, data, device, models, registry
from benchmark.errors import BadInput
from benchmark.inert import md, md_code
from benchmark.interface import Edit, Request, Target
from benchmark.models import ModelSpec
from benchmark.registry import MethodSpec
from benchmark.suite import FormName

if TYPE_CHECKING:
    from benchmark.backbones.base import Backbone

EDIT = "edit"
"""Folder of the edit's own files within the model's."""


@dataclass(frozen=True)
class Erased:
    """What was made of what."""

    edit: Edit
    method: MethodSpec
    model: ModelSpec
    request: Request


def targets(names: Sequence[str], form: FormName) -> tuple[Target, ...]:
    """The concepts as methods see them.

    The embedded model knows the concepts of its own dataset and no others. For full-size models the datasets lend kind,
    anchor and synonyms where they have the name; any other name is taken as an object.
    """
    _each_once("--concept", "concepts", names)
    if form == "embedded":
        testbed = data.load("testbed")
        return tuple(testbed.concept(name).target() for name in names)
    known = {c.name: c.target() for name in data.names() if name != "testbed" for c in data.load(name).concepts}
    return tuple(known.get(name, Target(name=name)) for name in names)


def kept(names: Sequence[str], erase: Sequence[Target], form: FormName) -> tuple[str, ...]:
    """The names to keep. BadInput for one that is erased, twice there or empty, or that the embedded model lacks."""
    _each_once("--keep", "concepts", names)
    if form == "embedded":
        testbed = data.load("testbed")
        names = [testbed.concept(name).name for name in names]
    if both := sorted({name.casefold() for name in names} & {t.name.casefold() for t in erase}):
        raise BadInput(f"--keep: expected concepts that are not erased, got {', '.join(both)}; leave it out of one")
    return tuple(names)


def _each_once(option: str, what: str, given: Sequence[str]) -> None:
    if not all(text.strip() for text in given):
        raise BadInput(f"{option}: expected {what}, got an empty one")
    if len(set(given)) < len(given):
        raise BadInput(f"{option}: expected different {what}, got {', '.join(given)}")


def kind_of(erase: Sequence[Target]) -> str:
    """The kind of all, or `*` if they differ, with `+` for several: what presets are chosen by."""
    kinds = {target.kind for target in erase}
    return (kinds.pop() if len(kinds) == 1 else "*") + ("+" if len(erase) > 1 else "")


def erase(
    label: str,
    model: str,
    concepts: Sequence[str],
    *,
    keep: Sequence[str] = (),
    general: Sequence[str] = (),
    seed: int = 0,
    passed: Mapping[str, Any] | None = None,
) -> Erased:
    """Load the model, run the method, and return its checked edit with its cost.

    `keep` are names of concepts, `general` prompts that name none of all these, for methods that hold on to such;
    `passed` are fields of the method. BadInput for an unknown method, field, model or concept; Missing if the model's
    weights are not here.
    """
    spec = models.describe(model)
    erased = targets(concepts, spec.form)
    _each_once("--general", "prompts", general)
    request = Request(erase=erased, keep=kept(keep, erased, spec.form), general=tuple(general), seed=seed)
    # a typo is told before anything heavy loads
    method = registry.resolve(label, model=spec.name, kind=kind_of(request.erase), passed=passed)
    models.resolve(model)
    from benchmark.backbones.load import load

    return Erased(_made(method, load(model, device=device.kind()), request), method, spec, request)


def _made(method: MethodSpec, backbone: Backbone, request: Request) -> Edit:
    """The edit, after the edits that it needs."""
    from benchmark import edits

    kind = kind_of(request.erase)
    needs = {need: registry.resolve(need, model=backbone.name, kind=kind) for need in method.instance.needs}
    given = {need: _made(spec, backbone, request) for need, spec in needs.items()}
    most = method.instance.max_concepts
    strategy: edits.Strategy = "sequential" if most is not None and len(request.erase) > most else "joint"
    return edits.make(method.instance, backbone, replace(request, given=given), strategy)


# --- the folder -------------------------------------------------------------------------------------------------------
def write(erased: Erased, model: str, out: Path) -> None:
    """Write the edited model into the new folder `out`, with `edit/` (the edit alone) and `README.md` (its card).

    All of it or nothing: it is made beside `out` and moved there when it is whole.
    """
    from benchmark import merged
    from benchmark.edits import serialise

    check_new(out)
    with atomic.folder(out) as half_made:
        wide = merged.write(erased.edit, model, half_made)
        (half_made / EDIT).mkdir()
        for name, content in serialise(erased.edit).items():
            (half_made / EDIT / name).write_bytes(content)
        (half_made / "README.md").write_text(card(erased, wide=wide), encoding="utf-8")


def check_new(out: Path) -> None:
    """BadInput unless `out` can be made: nothing is ever overwritten."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"--out: expected a new or empty folder, and {out} is there already; name another")


# --- the card ---------------------------------------------------------------------------------------------------------
def card(erased: Erased, *, wide: bool = False) -> str:
    """The model card, Markdown: what was erased, how, from what, and how to use the result."""
    method, model, edit = erased.method, erased.model, erased.edit
    names = [t.name for t in erased.request.erase]
    base = model.hub or model.name
    head = {"library_name": "diffusers", "base_model": model.hub, "tags": ["concept-erasure", method.name]}
    said = {name: json.dumps(value, ensure_ascii=False) for name, value in method.fields.items()}
    fields = [f"| {md_code(name)} | {md_code(value)} |" for name, value in said.items()]
    cls = type(method.instance)
    paper = f" ({cls.paper})" if cls.paper else ""
    return "\n".join(
        [
            "---",
            *(f"{key}: {json.dumps(value)}" for key, value in head.items() if value),
            "---",
            f"# {md(base)}, {md(', '.join(names))} erased by {md(method.label)}",
            "",
            *(_embedded() if model.form == "embedded" else []),
            f"- **Concepts erased**: {md(', '.join(f'{t.name} ({t.kind})' for t in erased.request.erase))}",
            *_held(erased.request),
            f"- **Base model**: {md(base)}. Its licence ({md(model.licence)}) and its terms of use hold for this "
            "model too.",
            f"- **Method**: `{method.label}`, version {cls.version}{paper}; training seed {erased.request.seed}"
            + (f"; preset `{method.preset}`" if method.preset else ""),
            f"- **Changed**: {_changed(edit)}",
            *(["- **Precision**: float32, as edited; the base model is stored in half precision."] if wide else []),
            "",
            "Erasure is never complete: other wordings, languages, inversion or further training can bring a concept",
            "back. Nothing here was measured; a benchmark run does that.",
            "",
            *_usage(edit, model),
            "## Fields",
            "",
            "| field | value |",
            "|---|---|",
            *(fields or ["| none | |"]),
            "",
        ]
    )


def _embedded() -> list[str]:
    return ["**Embedded model**: a small test model. Never set its results beside published numbers.", ""]


def _held(request: Request) -> list[str]:
    """What the method was told to hold on to; how much of that it reads is its own matter."""
    lists = {"Concepts to keep": request.keep, "General prompts": request.general}
    return [f"- **{what}**, as given to the method: {md('; '.join(texts))}" for what, texts in lists.items() if texts]


def _changed(edit: Edit) -> str:
    tensors = len({*edit.weights, *edit.deltas})
    found = [f"{tensors} weight tensors, merged here"] if tensors else []
    if edit.gates is not None:
        found.append(
            f"gates of {len(edit.gates.vector)} concept(s) on {len(edit.gates.changes)} projections, in `edit/`"
        )
    if edit.prompts is not None:
        found.append(
            f"prompts that name {md(', '.join(edit.prompts.words))} become {md(repr(edit.prompts.replacement))}; "
            "in `edit/`"
        )
    return "; ".join([*found, *([f"every image is {md(edit.output)}; in `edit/`"] if edit.output else [])]) or "nothing"


def _usage(edit: Edit, model: ModelSpec) -> list[str]:
    """How to load it; what is no weight has to be put on, and a card that hid this would hand out an unedited model."""
    pipeline = {"unet-epsilon": "StableDiffusionPipeline", "transformer-flow": "FluxPipeline"}[model.family]
    plain = [
        "## Use",
        "",
        "```python",
        f"from diffusers import {pipeline}",
        "",
        f'pipe = {pipeline}.from_pretrained("this/folder")',
        "```",
        "",
    ]
    if edit.gates is None and edit.prompts is None and edit.output is None:
        return [*plain, "`edit/` holds the change alone, as safetensors.", ""]
    return [
        *plain,
        "**The pipeline alone is not the edited model**: what is said above to be in `edit/` is no weight, and is put",
        "on while images are made:",
        "",
        "```python",
        "from pathlib import Path",
        "",
        "from benchmark import edits",
        "from benchmark.backbones.load import load",
        "",
        f"backbone = load({json.dumps(model.name if model.folder is None else 'the/base/model')})",
        'edit = edits.deserialise({p.name: p.read_bytes() for p in Path("this/folder/edit").iterdir()})',
        "with edits.apply(backbone, edit):",
        "    ...  # benchmark.sample.sample(backbone, …, prompts=edit.prompts)",
        "```",
        "",
        "In a benchmark it is the method `checkpoint` with this folder as its `path`.",
        "",
    ]
