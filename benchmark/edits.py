"""Edits: made once by a method and checked, put on a model and taken off to the bit, kept as bytes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Literal, final

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from benchmark import gates, memory
from benchmark.backbones.base import Backbone
from benchmark.errors import BadInput, BenchError, Damaged, did_you_mean
from benchmark.interface import Cost, Edit, Gates, LowRank, Method, PromptRule, Request
from benchmark.journal import StoreJournal

Strategy = Literal["joint", "sequential"]

_UP, _DOWN = "up:", "down:"  # before the names of a delta's two factors; no model's tensor names hold a colon
_GATE = "gate:"  # before the names of all tensors of gates, those of their changes with `up:` and `down:` besides
_CHUNK = 1 << 22  # elements fingerprinted at once: 32 MiB of scratch


# --- making -----------------------------------------------------------------------------------------------------------
def make(
    method: Method,
    backbone: Backbone,
    request: Request,
    strategy: Strategy = "joint",
    journal: StoreJournal | None = None,
) -> Edit:
    """Run the method and return its checked edit with its cost. With a journal, from where that stands.

    `sequential` erases the concepts one after another, each on the result of the last, and returns the whole as one
    edit of the unedited model; controls are made jointly all the same. BenchError if the method left the backbone
    changed, or returned what `check` refuses; BadInput for a family or a number of concepts it does not support.
    """
    _supported(method, backbone, request, strategy)
    before = fingerprints(backbone)
    memory.reset()
    started = time.perf_counter()
    run = _sequential if _one_by_one(method, request, strategy) else _joint
    with backbone.counting() as counts, nullcontext() if journal is None else journal.of(backbone, counts):
        edit = run(method, backbone, request)
    seconds = time.perf_counter() - started
    _unchanged(method, before, fingerprints(backbone))
    check(backbone, edit)
    earlier = Cost() if journal is None else journal.earlier
    cost = Cost(
        seconds=earlier.seconds + seconds,
        peak_bytes=max(earlier.peak_bytes, memory.peak()),
        denoiser_forwards=counts.denoiser_forwards,
        denoiser_backwards=counts.denoiser_backwards,
        text_encodes=counts.text_encodes,
        decodes=counts.decodes,
    )
    return replace(edit, cost=cost)


def _one_by_one(method: Method, request: Request, strategy: Strategy) -> bool:
    # a control copies a whole edit's norm, or has one rule: there is nothing to put in sequence
    return strategy == "sequential" and len(request.erase) > 1 and method.role == "erasure" and method.sequential


def _joint(method: Method, backbone: Backbone, request: Request) -> Edit:
    return method.edit(backbone, request)


def _sequential(method: Method, backbone: Backbone, request: Request) -> Edit:
    whole = Edit()
    for i, target in enumerate(request.erase):
        alone = partial(_state, method, backbone, replace(request, erase=(target,)))
        with apply(backbone, whole):
            part = _of_state(backbone.journal.once(f"concept-{i}", alone))
        whole = compose([whole, part])
    return whole


def _state(method: Method, backbone: Backbone, request: Request) -> dict[str, Any]:
    """The method's edit as a journal keeps it."""
    edit = method.edit(backbone, request)
    return {"tensors": _tensors(edit), **_content(edit), "notes": dict(edit.notes)}


def _of_state(state: Mapping[str, Any]) -> Edit:
    return _edit(state["tensors"], state)


def _supported(method: Method, backbone: Backbone, request: Request, strategy: Strategy) -> None:
    if backbone.family not in method.families:
        raise BadInput(f"{method.name} works on {sorted(method.families)}, but {backbone.name} is {backbone.family}")
    if reason := method.refusal(backbone.family):
        raise BadInput(f"{reason}; {backbone.name} is {backbone.family}")
    most, asked = method.max_concepts, len(request.erase)
    if most is not None and asked > most and not _one_by_one(method, request, strategy):
        raise BadInput(f"{method.name} erases at most {most} concept(s) at once, got {asked}; use strategy: sequential")


def compose(edits: Sequence[Edit]) -> Edit:
    """One edit that does what the given ones do, each made on the result of those before it.

    Gates are stacked: of several concepts, the one with the highest gate acts on a token, and it alone. BenchError if
    two edits replace prompts by different texts.
    """
    weights: dict[str, Tensor] = {}
    deltas: dict[str, LowRank] = {}
    for edit in edits:
        for name, value in edit.weights.items():
            weights[name] = value
            deltas.pop(name, None)  # the new value was computed from the old one with its delta
        for name, delta in edit.deltas.items():
            deltas[name] = _stacked(deltas[name], delta) if name in deltas else delta
    notes = [dict(e.notes) for e in edits if e.notes]
    return Edit(
        weights=weights,
        deltas=deltas,
        gates=gates.stacked(parts) if (parts := [e.gates for e in edits if e.gates is not None]) else None,
        prompts=_one_rule([e.prompts for e in edits if e.prompts]),
        output=next((e.output for e in edits if e.output), None),
        notes={"sequence": [n for note in notes for n in note.get("sequence", [note])]} if notes else {},
        cost=_total([e.cost for e in edits]),
    )


def _stacked(first: LowRank, second: LowRank) -> LowRank:
    return LowRank(torch.cat([first.up, second.up], dim=1), torch.cat([first.down, second.down], dim=0))


def _one_rule(rules: Sequence[PromptRule]) -> PromptRule | None:
    replacements = sorted({r.replacement for r in rules})
    if len(replacements) > 1:
        raise BenchError(f"expected prompt rules of one replacement, got {replacements}; erase the concepts jointly")
    words = tuple(dict.fromkeys(w for r in rules for w in r.words))
    return PromptRule(words=words, replacement=replacements[0]) if rules else None


def _total(costs: Sequence[Cost]) -> Cost:
    sums: dict[str, Any] = {k: sum(getattr(c, k) for c in costs) for k in asdict(Cost())}
    return Cost(**{**sums, "peak_bytes": max((c.peak_bytes for c in costs), default=0)})


# --- putting on and taking off ----------------------------------------------------------------------------------------
@contextmanager
def apply(backbone: Backbone, edit: Edit) -> Iterator[Backbone]:
    """The backbone with the edit's weights, in place, and its gates attached; on exit, however it comes, the gates are
    off and every byte is as before.

    Prompt rules and outputs are the sampler's matter. BenchError for an edit that `check` refuses, and if a tensor
    could not be restored.
    """
    mount = Mount(backbone)
    try:
        mount.put(mount.ready(edit))
        with nullcontext() if edit.gates is None else gates.attached(backbone, edit.gates):
            yield backbone
    finally:
        mount.put({})
    if wrong := mount.strange():
        raise BenchError(f"{wrong[0]} did not come back as it was; the model may have been reloaded or cast in between")


@final
class Mount:
    """A model whose weights change from one edit to the next in place, its tensors looked up once.

    Values are copied into the memory that the model has: what was captured or compiled with it stays right.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._live = backbone.tensors()
        self._own: dict[str, Tensor] = {}  # the model's own values of all that was ever changed
        self._on: Collection[str] = ()

    def ready(self, edit: Edit) -> dict[str, Tensor]:
        """The values that the edit gives to the tensors it changes, checked: see `check`. Gates are no part of it."""
        base = {**self._live, **self._own}
        _check(self._backbone, base, edit)
        return {name: edited(base[name], name, edit) for name in _touched(edit)}

    @torch.no_grad()
    def put(self, ready: Mapping[str, Tensor]) -> None:
        """Take off what is on, and put these values on: {} is the unedited model."""
        self._own |= {name: self._live[name].detach().clone() for name in ready if name not in self._own}
        before, self._on = self._on, {*self._on, *ready}
        for name in before:
            if name not in ready:
                self._live[name].copy_(self._own[name])
        for name, value in ready.items():
            self._live[name].copy_(value)
        self._on = ready.keys()

    def strange(self) -> list[str]:
        """Names of tensors that should hold the model's own values by now, and do not, to the bit."""
        now = self._backbone.tensors()
        return [name for name, own in self._own.items() if name not in self._on and not _same_bits(now[name], own)]


def in_dtype(edit: Edit, backbone: Backbone) -> Edit:
    """The edit for a model in another number format than the one it was made on: new values are rounded to that of the
    tensors that they replace. Deltas and gates are summed in float32 as ever. The same edit where nothing differs."""
    live = backbone.tensors()
    weights = {n: v.to(live[n].dtype) if n in live and v.is_floating_point() else v for n, v in edit.weights.items()}
    return edit if all(weights[n] is v for n, v in edit.weights.items()) else replace(edit, weights=weights)


def check(backbone: Backbone, edit: Edit) -> None:
    """BenchError unless every tensor of the edit exists, fits, is finite, and the whole changes something."""
    _check(backbone, backbone.tensors(), edit)


def _check(backbone: Backbone, base: Mapping[str, Tensor], edit: Edit) -> None:
    for name in _touched(edit):
        if name not in base:
            raise BenchError(f"the edit does not fit {backbone.name}: {did_you_mean(name, base, what='tensor')}")
        _check_tensor(base[name], name, edit)
    if edit.gates is not None:
        gates.check(backbone, edit.gates)
        if gates.acts(edit.gates):
            return
    names = _touched(edit)
    if names and all(torch.equal(edited(base[n], n, edit), base[n]) for n in names):
        raise BenchError(
            f"the edit names {len(names)} tensors, but all equal {backbone.name}'s own: nothing is erased; "
            "was this model edited before?"
        )
    if edit.gates is not None and not names:
        raise BenchError("every change of the edit's gates is zero: nothing is erased; was the method trained at all?")


def _check_tensor(base: Tensor, name: str, edit: Edit) -> None:
    value = edit.weights.get(name)
    if value is not None and (value.shape != base.shape or value.dtype != base.dtype):
        raise BenchError(
            f"the edit's {name} should be {tuple(base.shape)} {base.dtype}, got {tuple(value.shape)} {value.dtype}"
        )
    if name in edit.deltas:
        up, down = (tuple(part.shape) for part in edit.deltas[name])
        out, rest, rank = base.shape[0], base.numel() // base.shape[0], next(iter(up[1:]), 0)
        if (up, down) != ((out, rank), (rank, rest)):
            raise BenchError(
                f"the edit's delta of {name} should be ({out}, rank) and (rank, {rest}), got {up} and {down}"
            )
    # not summed in half precision, where large finite weights overflow
    if not all(t.isfinite().all() for t in (value, *edit.deltas.get(name, ())) if t is not None):
        raise BenchError(f"the edit's {name} holds values that are not finite: the method diverged")


def _touched(edit: Edit) -> list[str]:
    return sorted({*edit.weights, *edit.deltas})


def edited(base: Tensor, name: str, edit: Edit) -> Tensor:
    """A tensor of the model as the edit makes it: the new value or else the base's, plus the delta, summed in float32
    or wider."""
    old = base.detach()
    new = edit.weights[name].to(old) if name in edit.weights else old
    if name in edit.deltas:
        wide = torch.promote_types(old.dtype, torch.float32)
        up, down = (part.to(old.device, wide) for part in edit.deltas[name])
        new = (new.to(wide) + (up @ down).view_as(old)).to(old.dtype)
    return new


# --- bit equality -----------------------------------------------------------------------------------------------------
def fingerprints(backbone: Backbone) -> dict[str, tuple[int, int]]:
    """Two 64-bit sums of the bits of each tensor, computed on its device; any one changed element changes them."""
    return {name: _fingerprint(tensor) for name, tensor in backbone.tensors().items()}


def _fingerprint(tensor: Tensor) -> tuple[int, int]:
    bits = _bits(tensor)
    plain = weighted = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, bits.numel(), _CHUNK):
        part = bits[start : start + _CHUNK].to(torch.int64)
        place = torch.arange(start, start + part.numel(), device=bits.device)
        plain = plain + part.sum()
        weighted = weighted + (part * (2 * place + 1)).sum()  # sees elements that changed places; wraps around
    return int(plain), int(weighted)


def _bits(tensor: Tensor) -> Tensor:
    """The elements' bits as integers, flat."""
    flat = tensor.detach().contiguous().flatten()
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return flat.view(integers[flat.element_size()])


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(_bits(a), _bits(b))


def _unchanged(method: Method, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    wrong = sorted(n for n in {*before, *after} if before.get(n) != after.get(n))
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise BenchError(
            f"{method.name} must leave the model as it found it, but changed {wrong[0]}{more}; "
            "let it work on backbone.student()"
        )


# --- bytes ------------------------------------------------------------------------------------------------------------
def serialise(edit: Edit) -> dict[str, bytes]:
    """Files of an edit: `edit.safetensors` and `edit.json`, equal for equal edits, and `cost.json`, of this run."""
    cost = {**asdict(edit.cost), "seconds": round(edit.cost.seconds, 3)}
    document = {"schema": 1, **_content(edit), "notes": dict(edit.notes)}
    return {"edit.safetensors": _tensor_bytes(edit), "edit.json": _json(document), "cost.json": _json(cost)}


def deserialise(files: Mapping[str, bytes]) -> Edit:
    """The edit behind `serialise`'s files, on the CPU. Damaged if they cannot be read."""
    try:
        edit = _edit(load_tensors(files["edit.safetensors"]), json.loads(files["edit.json"]))
        return replace(edit, cost=Cost(**json.loads(files.get("cost.json", b"{}"))))
    except Exception as error:  # safetensors raises several kinds of its own
        raise Damaged(f"expected an edit's files, got {sorted(files)}: {error}; delete them and run again") from error


def _edit(tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> Edit:
    """The edit of these tensors, whose `_content` and notes the document holds."""
    rule, deltas = document["prompts"], document["deltas"]
    return Edit(
        weights={name: tensors[name] for name in document["weights"]},
        deltas={name: LowRank(tensors[_UP + name], tensors[_DOWN + name]) for name in deltas},
        gates=_gates(tensors, document["gates"]) if "gates" in document else None,
        prompts=None if rule is None else PromptRule(words=tuple(rule["words"]), replacement=rule["replacement"]),
        output=document["output"],
        notes=document["notes"],
    )


def edit_hash(edit: Edit) -> str:
    """SHA-256 of all that changes images: tensors, prompt rule, output; not notes or cost."""
    digest = hashlib.sha256(_json(_content(edit)))
    digest.update(_tensor_bytes(edit))
    return digest.hexdigest()


def _content(edit: Edit) -> dict[str, Any]:
    rule = edit.prompts and {"words": list(edit.prompts.words), "replacement": edit.prompts.replacement}
    named = {"weights": sorted(edit.weights), "deltas": sorted(edit.deltas)}
    if edit.gates is not None:  # left out otherwise: edits without gates keep the bytes and the hash they had
        named["gates"] = sorted(edit.gates.changes)
    return {**named, "prompts": rule, "output": edit.output}


def _tensor_bytes(edit: Edit) -> bytes:
    tensors = _tensors(edit)
    # a clone each: safetensors refuses tensors that share memory
    return save_tensors({n: tensors[n].detach().cpu().contiguous().clone() for n in sorted(tensors)})


def _tensors(edit: Edit) -> dict[str, Tensor]:
    """All tensors of the edit by the names they are stored under; `_edit` is the way back."""
    tensors = dict(edit.weights)
    for name, delta in edit.deltas.items():
        tensors[_UP + name], tensors[_DOWN + name] = delta
    return tensors | ({} if edit.gates is None else _gate_tensors(edit.gates))


def _gate_tensors(found: Gates) -> dict[str, Tensor]:
    """All tensors of the gates by the names they are stored under; `_gates` is the way back."""
    tensors = {_GATE + "query": found.query, _GATE + "key": found.key, _GATE + "vector": found.vector}
    for name, change in found.changes.items():
        tensors[_GATE + _UP + name], tensors[_GATE + _DOWN + name] = change
    return tensors


def _gates(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Gates:
    return Gates(
        query=tensors[_GATE + "query"],
        key=tensors[_GATE + "key"],
        vector=tensors[_GATE + "vector"],
        changes={name: LowRank(tensors[_GATE + _UP + name], tensors[_GATE + _DOWN + name]) for name in names},
    )


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode()
