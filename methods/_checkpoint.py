"""A checkpoint's tensors to the edit that turns the model into it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmark.backbones.base import Backbone
from benchmark.errors import BadInput
from benchmark.interface import Edit, Gates, LowRank, PromptRule
from methods import _checkpoint_compvis as compvis
from methods import _checkpoint_lora as lora
from methods._checkpoint_files import State, read_file, read_json, read_part
from methods._checkpoint_names import Places, all_used, computed, ignored, none_missing

if TYPE_CHECKING:
    from methods.checkpoint import Checkpoint

_MERGED = frozenset({"lora", "spm"})  # formats that `scale` applies to


@dataclass(frozen=True)
class Read:
    """What a format's reader made of a checkpoint."""

    edit: Edit
    used: frozenset[str]
    """Names of the file that found their place, or are known to need none."""
    notes: Mapping[str, Any] = field(default_factory=dict)


def read(backbone: Backbone, method: Checkpoint) -> Edit:
    """The edit, with notes on what the file held. `BadInput` for whatever does not fit."""
    path = Path(method.path).expanduser()
    state, kind = _opened(path, method)
    if method.scale != 1 and kind not in _MERGED:
        raise BadInput(f"checkpoint: scale is the strength of low-rank factors, and {path.name} is read as {kind}")
    places = Places.of(backbone)
    try:
        found = _READERS[kind](places, state, method)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # Shapes and numbers that make no sense together; what can be said better is said where it is found.
        raise BadInput(f"checkpoint: {path.name} cannot be read as {kind}: {type(error).__name__}: {error}") from error
    skipped = ignored(state.tensors.keys() - found.used, method.ignore)
    all_used(state.tensors.keys() - found.used - skipped, backbone.name)
    notes = {
        "format": kind,
        "file": path.name,
        "sha256": method.sha256,
        "tensors_in_file": len(state.tensors),
        "tensors_ignored": len(skipped),
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in state.tensors.values()}),
        **found.notes,
    }
    edit = found.edit
    return Edit(
        weights=edit.weights,
        deltas=edit.deltas,
        gates=edit.gates,
        prompts=edit.prompts,
        output=edit.output,
        notes=notes,
    )


# --- what it is -------------------------------------------------------------------------------------------------------
def _opened(path: Path, method: Checkpoint) -> tuple[State, str]:
    """The tensors, and the format they are in: the one that is asked for, or else what they look like."""
    asked, pickles = method.format, method.allow_pickle
    if (own := _own(path)) is not None and asked in ("auto", "edit"):
        document = _text(own.parent / "edit.json")
        return State(read_file(own, pickles=False).tensors, {"edit": document}), "edit"
    if asked == "edit":
        raise BadInput(f"checkpoint: expected edit.safetensors and edit.json in {path}")
    if path.is_dir() and asked in ("auto", "diffusers") and (path / "model_index.json").is_file():
        return _pipeline(path, pickles), "diffusers"
    state = _folder(path, pickles) if path.is_dir() else read_file(path, pickles=pickles)
    kind = asked if asked != "auto" else _looks_like(state)
    if asked == "auto" and kind == "spm":
        raise BadInput(
            f"checkpoint: {path.name} looks like SPM, whose strength follows each prompt's nearness to the concept; "
            "set format=spm to merge it at full strength for every prompt, an approximation"
        )
    return state, kind


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"checkpoint: {path} cannot be read: {error}") from None


def _own(path: Path) -> Path | None:
    for file in (path, path / "edit.safetensors", path / "edit" / "edit.safetensors"):
        if file.name == "edit.safetensors" and file.is_file() and (file.parent / "edit.json").is_file():
            return file
    return None


def _pipeline(path: Path, pickles: bool) -> State:
    """Denoiser and text encoders, named by component; the autoencoder takes no part in edits."""
    parts = [p for p in ("unet", "transformer", "text_encoder", "text_encoder_2") if (path / p).is_dir()]
    states = {part: read_part(path / part, pickles=pickles) for part in parts}
    return State({f"{part}.{name}": t for part, state in states.items() for name, t in state.tensors.items()})


def _folder(path: Path, pickles: bool) -> State:
    gates = [p for p in sorted(path.rglob("*_last.safetensors")) if "adv_prompts" not in p.name]
    if gates:
        return lora.stacked([read_file(p, pickles=False) for p in gates])
    state = read_part(path, pickles=pickles)
    config = path / "adapter_config.json"
    return State(state.tensors, lora.peft_metadata(read_json(config))) if config.is_file() else state


def _looks_like(state: State) -> str:
    names = state.tensors.keys()
    if any(n.startswith(compvis.DENOISER) for n in names):
        return "compvis"
    if any(n.startswith(lora.GATE) for n in names):
        return "cpe"
    if all(lora.is_factor(n) for n in names):
        return "spm" if "prompts" in state.metadata else "lora"
    return "partial"


# --- whole tensors ----------------------------------------------------------------------------------------------------
def _diffusers(places: Places, state: State, _: Checkpoint) -> Read:
    """A pipeline's folder, or its denoiser's: the denoiser must be whole."""
    return _tensors(places, state, whole=True)


def _partial(places: Places, state: State, _: Checkpoint) -> Read:
    return _tensors(places, state, whole=False)


def _compvis(places: Places, state: State, _: Checkpoint) -> Read:
    tensors, set_aside = compvis.converted(places, state)
    read = _tensors(places, State(tensors), whole=True)
    # the conversion renames and never copies: what it dropped, or named as the model does not, is not among these
    kept = {id(tensors[name]) for name in read.used}
    used = {name for name, t in state.tensors.items() if id(t) in kept} | set_aside
    return Read(read.edit, frozenset(used), {**read.notes, "tensors_set_aside": len(set_aside)})


def _tensors(places: Places, state: State, *, whole: bool) -> Read:
    """New values under diffusers' names; those that say nothing new are left out."""
    used, weights = set(), {}
    for name, value in state.tensors.items():
        target = places.tensor(name)
        if target is None:
            used |= {name} if computed(name) else set()
            continue
        used.add(name)
        live = places.live[target]
        places.fits(target, tuple(live.shape), tuple(value.shape))
        weights[target] = value
    if whole:
        none_missing(places.whole - weights.keys(), f"the {places.denoiser} of {places.model}")
    changed = {n: v.to(places.live[n]) for n, v in weights.items() if _differs(places.live[n], v)}
    return Read(Edit(weights=changed), frozenset(used), {"tensors_changed": len(changed)})


def _differs(live: Tensor, value: Tensor) -> bool:
    """A file of lower precision says nothing about digits that it cannot hold."""
    return not torch.equal(live.detach().to(value.dtype), value.to(live.device))


# --- low-rank factors and gates ---------------------------------------------------------------------------------------
def _lora(places: Places, state: State, method: Checkpoint) -> Read:
    deltas, used = lora.deltas(places, state, method.scale)
    return Read(Edit(deltas=deltas), frozenset(used), {"layers": len(deltas)})


def _spm(places: Places, state: State, method: Checkpoint) -> Read:
    read = _lora(places, state, method)
    note = {"approximation": "merged at full strength for every prompt", "prompts": state.metadata.get("prompts", "")}
    return Read(read.edit, read.used, {**read.notes, **note})


def _cpe(places: Places, state: State, _: Checkpoint) -> Read:
    gates, used = lora.gates(places, state)
    prompts = state.metadata.get("prompts", "")
    return Read(Edit(gates=gates), frozenset(used), {"concepts": len(gates.vector), "prompts": prompts})


# --- this harness's own -----------------------------------------------------------------------------------------------
def _edit(places: Places, state: State, _: Checkpoint) -> Read:
    """`edit.safetensors` and `edit.json` as the harness writes them; names are the model's own."""
    document = _document(state)
    tensors, used = state.tensors, set[str]()

    def take(name: str) -> Tensor:
        if name not in tensors:
            raise BadInput(f"checkpoint: edit.json names {name}, which edit.safetensors does not hold; copy both again")
        used.add(name)
        return tensors[name]

    def change(prefix: str, name: str) -> LowRank:
        return LowRank(take(f"{prefix}up:{name}"), take(f"{prefix}down:{name}"))

    weights = {name: take(name) for name in document["weights"]}
    deltas = {name: change("", name) for name in document["deltas"]}
    for name in (*weights, *deltas):
        if name not in places.live:
            raise BadInput(f"checkpoint: the edit changes {name}, which {places.model} does not have")
    for name, value in weights.items():
        places.fits(name, tuple(places.live[name].shape), tuple(value.shape))
    gates = None
    if "gates" in document:
        names = document["gates"]
        changes = {name: change("gate:", name) for name in names}
        gates = Gates(query=take("gate:query"), key=take("gate:key"), vector=take("gate:vector"), changes=changes)
    rule = document["prompts"]
    edit = Edit(
        weights={n: v.to(places.live[n]) for n, v in weights.items()},
        deltas=deltas,
        gates=gates,
        prompts=rule and PromptRule(words=tuple(rule["words"]), replacement=rule["replacement"]),
        output=document["output"],
    )
    return Read(edit, frozenset(used), {"notes": document.get("notes", {})})


_KEYS = {"schema", "weights", "deltas", "prompts", "output", "notes"}


def _document(state: State) -> dict[str, Any]:
    """`edit.json`, of the one schema that is known."""
    try:
        document = dict(json.loads(state.metadata["edit"]))
    except (RecursionError, ValueError, TypeError) as error:
        raise BadInput(f"checkpoint: edit.json cannot be read: {error}") from None
    if document.get("schema") != 1 or not document.keys() >= _KEYS or document.keys() - _KEYS - {"gates"}:
        raise BadInput(
            f"checkpoint: expected edit.json of schema 1 with {', '.join(sorted(_KEYS))}, got {sorted(document)[:20]}"
        )
    for name in ("weights", "deltas", "gates"):
        if not _texts(document.get(name, [])):
            raise BadInput(f"checkpoint: edit.json: {name}: expected a list of tensors' names")
    rule = document["prompts"]
    if rule is not None and not (
        isinstance(rule, dict) and _texts(rule.get("words")) and isinstance(rule.get("replacement"), str)
    ):
        raise BadInput("checkpoint: edit.json: prompts: expected null, or words and a replacement")
    if document["output"] not in (None, "grey") or not isinstance(document["notes"], dict):
        raise BadInput('checkpoint: edit.json: expected output null or "grey", and notes by name')
    return document


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


_READERS: Mapping[str, Callable[[Places, State, Any], Read]] = {
    "diffusers": _diffusers,
    "unet": _diffusers,
    "partial": _partial,
    "compvis": _compvis,
    "lora": _lora,
    "spm": _spm,
    "cpe": _cpe,
    "edit": _edit,
}
