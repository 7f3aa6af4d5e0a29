"""What the harness relies on in every method, as rules that are measured on tiny random models in seconds."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from benchmark import edits, gates, registry
from benchmark.backbones.base import Backbone
from benchmark.backbones.random_models import random_flux, random_unet
from benchmark.errors import BadInput, BenchError, did_you_mean
from benchmark.interface import Edit, Family, LowRank, Method, Request, Target

FAMILIES: tuple[Family, ...] = get_args(Family)
_MODELS: Mapping[Family, Callable[[], Backbone]] = {"unet-epsilon": random_unet, "transformer-flow": random_flux}
_DENOISERS = (UNet2DConditionModel, FluxTransformer2DModel)

CONCEPTS = (
    Target(name="cat", anchor="animal", synonyms=("kitty",), adjacent=("deer", "horse")),
    Target(name="dog", anchor="animal", synonyms=("hound",), adjacent=("deer", "horse")),
    Target(name="truck", anchor="vehicle", synonyms=("lorry",), adjacent=("ship", "automobile")),
)
_KEEP = ("deer", "horse", "ship", "bird")
_GENERAL = ("a photo of the sky", "a picture of a person")
_SEED = 7


class Finding(NamedTuple):
    """What one rule measured."""

    ok: bool
    detail: str


@dataclass(frozen=True)
class Report:
    """All rules of one method."""

    method: str
    rules: Mapping[str, Finding]

    @property
    def ok(self) -> bool:
        """Whether it keeps them all."""
        return all(f.ok for f in self.rules.values())

    def as_json(self) -> dict[str, Any]:
        """The stable form: `method`, `rules` by name with `ok` and `detail`, `ok`."""
        rules = {name: {"ok": f.ok, "detail": f.detail} for name, f in self.rules.items()}
        return {"method": self.method, "rules": rules, "ok": self.ok}

    def lines(self) -> list[str]:
        """To be read."""
        width = max(map(len, self.rules))
        kept = sum(f.ok for f in self.rules.values())
        shown = [f"{'ok  ' if f.ok else 'FAIL'}  {name:<{width}}  {f.detail}" for name, f in self.rules.items()]
        return [*shown, f"{self.method} keeps {kept} of {len(self.rules)} rules"]


def check(label: str) -> Report:
    """Measure every rule of a method: `name`, `name@variant`, `module:Class` or `FILE.py:Class`.

    `BadInput` if there is no such method. Fields are the method's own with those in `Method.quick` in their place.
    """
    with tempfile.TemporaryDirectory(prefix="erasure-bench-") as folder, registry.importable():
        case = Case(label, Path(folder))
        return Report(label, {name: _measured(rule, case) for name, rule in RULES.items()})


def _measured(rule: Callable[[Case], Finding], case: Case) -> Finding:
    try:
        return rule(case)
    except Exception as error:  # whatever a method under work may raise
        return Finding(False, f"{type(error).__name__}: {error}")


# --- running ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Outcome:
    """One call of `edit`."""

    edit: Edit | None
    error: Exception | None
    changed: tuple[str, ...]
    """What the call left changed in the model."""
    touched_random: bool
    """Whether the process's own random numbers moved on."""
    counted: int
    """Denoiser samples by the backbone's count."""
    counted_outside: int
    """The same by a count on the networks themselves."""


class Case:
    """A method under check with its models. Every call starts from an untouched model."""

    def __init__(self, label: str, folder: Path) -> None:
        self.label = label
        self._folder = folder
        self._models: dict[Family, Backbone] = {}
        name, _, variant = label.partition("@")
        self.cls = registry.find(name)
        if variant and variant not in self.cls.variants:
            raise BadInput(did_you_mean(variant, self.cls.variants, f"variant of {name}"))
        self._variant = self.cls.variants[variant] if variant else {}

    @property
    def families(self) -> list[Family]:
        """The families that it declares, of those there are, and that the variant does not refuse."""
        declared = [f for f in FAMILIES if f in self.cls.families]
        if self.cls.refusal is Method.refusal:
            return declared
        method = registry.build(self.label, self.cls, {**self._variant, **self.cls.quick})
        return [f for f in declared if method.refusal(f) is None]

    def backbone(self, family: Family) -> Backbone:
        """A tiny model of the family."""
        if family not in self._models:
            self._models[family] = _MODELS[family]()
        return self._models[family]

    def method(self, family: Family) -> Method:
        """The method with quick fields; one that reads a file gets one that fits the family."""
        given = {**self._variant, **self.cls.quick}
        if self.cls.name == "checkpoint":
            given["path"] = str(_release(self.backbone(family), self._folder / f"{family}.safetensors"))
        return registry.build(self.label, self.cls, given)

    def request(self, concepts: int, *, seed: int = _SEED, start: int = 0) -> Request:
        """So many concepts, others to keep."""
        return Request(erase=CONCEPTS[start : start + concepts], keep=_KEEP, general=_GENERAL, seed=seed)

    @property
    def at_once(self) -> int:
        """Concepts of the usual request: two, where the method takes two."""
        most = self.cls.max_concepts
        return 2 if most is None else min(2, most)

    @cached_property
    def usual(self) -> dict[Family, Outcome]:
        """The usual request on every declared family."""
        return {family: self.run(family, self.request(self.at_once)) for family in self.families}

    @property
    def edits(self) -> dict[Family, Edit]:
        """The edits of those calls that gave one; BenchError if none did."""
        found = {f: o.edit for f, o in self.usual.items() if o.edit is not None}
        if not found:
            raise BenchError("there is no edit to look at: it failed on every declared family")
        return found

    def run(self, family: Family, request: Request) -> Outcome:
        """One call of `edit`, with all that it did besides."""
        backbone = self.backbone(family)
        method = self.method(family)
        request = replace(request, given=self._given(family, method, request))
        before, state = _looks(backbone), torch.get_rng_state()
        edit, error = None, None
        with backbone.counting() as counts, _forwards() as outside:
            try:
                edit = method.edit(backbone, request)
            except Exception as raised:
                error = raised
        counted, forwards = counts.denoiser_forwards, sum(outside)
        touched = not torch.equal(torch.get_rng_state(), state)
        torch.set_rng_state(state)
        changed = _differences(before, _looks(backbone))
        if changed:
            del self._models[family]  # the next call starts from an untouched one
        return Outcome(edit, error, changed, touched, counted, forwards)

    def _given(self, family: Family, method: Method, request: Request) -> dict[str, Edit]:
        """Edits of the methods that this one needs, quick ones too."""
        if not request.erase:
            return {need: Edit() for need in method.needs}
        made = {}
        for need in method.needs:
            cls = registry.method_class(need.partition("@")[0])
            of_variant = cls.variants[need.partition("@")[2]] if "@" in need else {}
            other = registry.build(need, cls, {**of_variant, **cls.quick})
            with_needs = replace(request, given=self._given(family, other, request))
            made[need] = edits.make(other, self.backbone(family), with_needs)
        return made


def _release(backbone: Backbone, path: Path) -> Path:
    """A file such as ESD and UCE release: a projection that was scaled."""
    projection = backbone.projections()[0]
    save_file({projection.name: (projection.weight * 1.1).contiguous()}, path)
    return path


def _looks(backbone: Backbone) -> dict[str, Any]:
    """The model's bits, and a prediction, in which what was left attached would show."""
    text, x = backbone.embed(["a photo of the cat"]), backbone.noise([0])
    with torch.no_grad():
        prediction = backbone.predict(x, backbone.timesteps(4)[1], text)
    return {**edits.fingerprints(backbone), "a prediction": prediction.numpy().tobytes()}


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(n for n in {*before, *after} if before.get(n) != after.get(n)))


@contextmanager
def _forwards() -> Iterator[list[int]]:
    """Samples that go forward through any denoiser while the block runs."""
    samples: list[int] = []

    def seen(module: Any, _: Any, output: Any) -> None:
        if isinstance(module, _DENOISERS):
            samples.append(len(output[0]))

    hook = torch.nn.modules.module.register_module_forward_hook(seen)
    try:
        yield samples
    finally:
        hook.remove()


# --- rules: the declaration -------------------------------------------------------------------------------------------
def _fields(case: Case) -> Finding:
    """A frozen, keyword-only dataclass of JSON values, whose variants and quick fields exist."""
    cls = case.cls
    if wrong := [what for what, right in _declared(cls).items() if not right]:
        return Finding(False, f"expected {', '.join(wrong)}")
    kinds = {"": {}, "quick": cls.quick, **{f"@{name}": given for name, given in cls.variants.items()}}
    for what, given in kinds.items():
        method: Any = registry.build(f"{cls.name}{what}", cls, given)
        if cls(**_from_json(cls, asdict(method))) != method:
            return Finding(False, f"{cls.name}{what}: the fields do not come back from JSON as they were")
    return Finding(True, f"{len(fields(cls))} fields, {len(cls.variants)} variants")


def _declared(cls: type[Method]) -> dict[str, bool]:
    own = is_dataclass(cls) and "__dataclass_params__" in vars(cls)
    return {
        "@dataclass(frozen=True, kw_only=True)": own
        and vars(cls)["__dataclass_params__"].frozen
        and all(f.kw_only for f in fields(cls)),
        "name of lower-case letters, digits and _": _is_name(getattr(cls, "name", None)),
        "version of at least 1": isinstance(getattr(cls, "version", None), int) and cls.version >= 1,
        "role baseline, erasure or control": getattr(cls, "role", None) in ("baseline", "erasure", "control"),
        'paper, "" if there is none': isinstance(getattr(cls, "paper", None), str),
    }


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier() and name == name.lower()


def _from_json(cls: type[Method], values: Mapping[str, Any]) -> dict[str, Any]:
    return asdict(registry.build(cls.name, cls, json.loads(json.dumps(values, allow_nan=False))))


_HEAVY = ("torch", "diffusers", "transformers", "peft")


def _no_torch_at_import(case: Case) -> Finding:
    """Planning and listing load every method's file."""
    code = (
        "import sys; from benchmark import registry\n"
        f"with registry.importable(): registry.find({case.label.partition('@')[0]!r})\n"
        f"print(*sorted({set(_HEAVY)!r} & set(sys.modules)))"
    )
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return Finding(False, f"the file cannot be loaded on its own: {done.stderr.strip().splitlines()[-1:]}")
    heavy = done.stdout.strip()
    return Finding(not heavy, f"loading the file loads {heavy}; import it inside `edit`" if heavy else "none is loaded")


def _declared_support(case: Case) -> Finding:
    """Declared families and numbers of concepts work, and more concepts are refused."""
    declared, most = case.cls.families, case.cls.max_concepts
    if not case.families or (isinstance(declared, Set) and declared - set(FAMILIES)):
        return Finding(False, f"expected families out of {', '.join(FAMILIES)}, got {declared!r}")
    if most is not None and (not isinstance(most, int) or most < 1):
        return Finding(False, f"expected max_concepts of at least 1 or None, got {most!r}")
    for family, outcome in case.usual.items():
        if outcome.error is not None:
            return Finding(False, f"declares {family}, and fails there: {_told(outcome.error)}")
    # any number is tried with three, where one and two may have been written out
    count = min(3, most or 3)
    outcome = case.run(case.families[0], case.request(count))
    if outcome.error is not None:
        return Finding(False, f"declares max_concepts {most}, and fails with {count}: {_told(outcome.error)}")
    if most is not None and most < len(CONCEPTS) and not _refused(case, case.families[0], most + 1):
        return Finding(False, f"declares max_concepts {most}, and {most + 1} are not refused")
    return Finding(
        True, f"works on {', '.join(case.families)}; {count} concepts at once, {most or 'any number'} declared"
    )


def _refuses_family(case: Case) -> Finding:
    """Families that are not declared are refused, and the message says which are."""
    others = [f for f in FAMILIES if f not in case.families]
    for family in others:
        message = _refused(case, family, 1)
        if message is None:
            return Finding(False, f"{family} is not declared, and not refused")
        if not all(repr(f) in message for f in case.families) or not isinstance(case.cls.families, Set):
            return Finding(False, f"the refusal of {family} does not say what is declared: {message}")
    return Finding(True, f"{', '.join(others)} refused" if others else "declares every family there is")


def _refused(case: Case, family: Family, concepts: int) -> str | None:
    """The message with which the harness refuses, or None."""
    try:
        edits.make(case.method(case.families[0]), case.backbone(family), case.request(concepts))
    except BadInput as error:
        return str(error)
    except Exception:
        return None
    return None


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


# --- rules: what a call does ------------------------------------------------------------------------------------------
def _leaves_model(case: Case) -> Finding:
    """Every tensor, and what the model predicts, is bit for bit as before."""
    for family, outcome in case.usual.items():
        if outcome.changed:
            more = f" and {len(outcome.changed) - 1} more" if len(outcome.changed) > 1 else ""
            return Finding(False, f"on {family} it changed {outcome.changed[0]}{more}")
    tensors = sum(len(case.backbone(f).tensors()) for f in case.families)
    return Finding(True, f"{tensors} tensors and a prediction on each model bit-equal")


def _deterministic(case: Case) -> Finding:
    """The same request gives the same bytes whatever the process's random numbers, which it leaves alone."""
    follows = []
    for family, first in case.edits.items():
        with _other_random():
            second = case.run(family, case.request(case.at_once))
        if second.edit is None or _content(first) != _content(second.edit):
            return Finding(False, f"on {family} the same seed gave another edit")
        if case.usual[family].touched_random or second.touched_random:
            return Finding(False, f"on {family} it drew from, or seeded, the process's own random numbers")
        other = case.run(family, case.request(case.at_once, seed=_SEED + 1)).edit
        follows.append(other is not None and edits.edit_hash(other) != edits.edit_hash(first))
    return Finding(True, f"same bytes twice; another seed gives {'another' if any(follows) else 'the same'} edit")


def _content(edit: Edit) -> tuple[str, str]:
    return edits.edit_hash(edit), repr(sorted(edit.notes.items()))


@contextmanager
def _other_random() -> Iterator[None]:
    """Other global random numbers while the block runs."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(991)
    np.random.seed(991)
    torch.default_generator.manual_seed(991)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _empty_request(case: Case) -> Finding:
    """Nothing to erase is no edit."""
    for family in case.edits:
        outcome = case.run(family, case.request(0))
        if outcome.error is not None:
            return Finding(False, f"on {family}: {_told(outcome.error)}")
        if outcome.edit is None or edits.edit_hash(outcome.edit) != edits.edit_hash(Edit()):
            return Finding(False, f"on {family} it edits although nothing is to be erased")
    return Finding(True, "no edit")


def _cost_recorded(case: Case) -> Finding:
    """The work goes through the backbone that was given, whose counts are what is reported."""
    work = []
    for family, outcome in case.usual.items():
        if outcome.counted != outcome.counted_outside:
            return Finding(
                False,
                f"on {family} {outcome.counted_outside} samples went through the denoiser, but its backbone counted "
                f"{outcome.counted}: work on the backbone itself, its student or substituted tensors",
            )
        work.append(f"{outcome.counted} on {family}")
    return Finding(True, f"denoiser samples counted: {', '.join(work)}")


# --- rules: what an edit is -------------------------------------------------------------------------------------------
def _changes_something(case: Case) -> Finding:
    """An erasure changes the model; a control changes something."""
    role = case.cls.role
    if role == "baseline":
        return Finding(True, "a baseline: nothing is asked to change")
    for family, edit in case.edits.items():
        changes = _changes(case.backbone(family), edit)
        if not changes and (role == "erasure" or edits.edit_hash(edit) == edits.edit_hash(Edit())):
            return Finding(False, f"on {family} nothing differs from the unedited model")
    return Finding(True, ", ".join(_size(e) for e in case.edits.values()))


def _changes(backbone: Backbone, edit: Edit) -> bool:
    live = backbone.tensors()
    own = any(not _same(v, live.get(n)) for n, v in edit.weights.items())
    low = any(bool((d.up.double() @ d.down.double()).any()) for d in edit.deltas.values())
    return own or low or (edit.gates is not None and gates.acts(edit.gates))


def _same(value: Tensor, base: Tensor | None) -> bool:
    return base is not None and value.shape == base.shape and torch.equal(value.to(base), base.detach())


def _size(edit: Edit) -> str:
    parts = {"tensors": edit.weights, "low-rank changes": edit.deltas}
    found = [f"{len(of)} {what}" for what, of in parts.items() if of]
    found += [f"gates of {len(edit.gates.vector)}"] if edit.gates is not None else []
    found += ["a prompt rule"] if edit.prompts else []
    return " and ".join([*found, *([str(edit.output)] if edit.output else [])]) or "no change"


def _fits(case: Case) -> Finding:
    """Every tensor has a name of the model, its shape and dtype, and carries no gradient."""
    count = 0
    for family, edit in case.edits.items():
        live = case.backbone(family).tensors()
        for name, value in _tensors(edit):
            count += 1
            if value.requires_grad:
                return Finding(False, f"on {family} {name} still carries a gradient: detach it")
        for name in {*edit.weights, *edit.deltas}:
            if wrong := _misfit(live.get(name), edit.weights.get(name), edit.deltas.get(name)):
                return Finding(False, f"on {family} {name} {wrong}")
        if edit.gates is not None and not _infinite(edit):
            gates.check(case.backbone(family), edit.gates)
    return Finding(True, f"{count} tensors")


def _misfit(base: Tensor | None, value: Tensor | None, delta: LowRank | None) -> str:
    if base is None:
        return "is not a tensor of the model"
    if value is not None and (value.shape != base.shape or value.dtype != base.dtype):
        return f"should be {tuple(base.shape)} {base.dtype}, is {tuple(value.shape)} {value.dtype}"
    out, rest = base.shape[0], base.numel() // base.shape[0]
    if delta is not None:
        (up, down), rank = (tuple(part.shape) for part in delta), delta.down.shape[0]
        if (up, down) != ((out, rank), (rank, rest)):
            return f"should change by ({out}, rank) and (rank, {rest}), changes by {up} and {down}"
    return ""


def _finite(case: Case) -> Finding:
    """No NaN, no infinity."""
    for family, edit in case.edits.items():
        if bad := _infinite(edit):
            return Finding(False, f"on {family} {bad} holds values that are not finite")
    return Finding(True, "all values finite")


def _infinite(edit: Edit) -> str | None:
    return next((name for name, t in _tensors(edit) if not t.isfinite().all()), None)


def _tensors(edit: Edit) -> Iterator[tuple[str, Tensor]]:
    yield from edit.weights.items()
    for name, delta in edit.deltas.items():
        yield f"up of {name}", delta.up
        yield f"down of {name}", delta.down
    if edit.gates is not None:
        yield from (("query", edit.gates.query), ("key", edit.gates.key), ("vector", edit.gates.vector))
        for name, delta in edit.gates.changes.items():
            yield f"gated up of {name}", delta.up
            yield f"gated down of {name}", delta.down


def _saves_and_loads(case: Case) -> Finding:
    """Written and read it is the same, put on it acts the same, taken off the model is as before."""
    size, tried = 0, True
    for family, edit in case.edits.items():
        files = edits.serialise(edit)
        again = edits.deserialise(files)
        size += len(files["edit.safetensors"])
        if edits.edit_hash(again) != edits.edit_hash(edit) or dict(again.notes) != dict(edit.notes):
            return Finding(False, f"on {family} the edit does not come back from its files as it was, notes included")
        if not _usable(case.backbone(family), edit):
            tried = False  # for the rule that says why
            continue
        before = _looks(case.backbone(family))
        if _edited(case.backbone(family), edit) != _edited(case.backbone(family), again):
            return Finding(False, f"on {family} the edit acts differently after it was written and read")
        if _differences(before, _looks(case.backbone(family))):
            return Finding(False, f"on {family} the model was not as before after the edit was taken off")
    return Finding(True, f"{size} bytes, {'put on and taken off' if tried else 'not put on, as other rules fail'}")


def _usable(backbone: Backbone, edit: Edit) -> bool:
    try:
        edits.check(backbone, edit)
    except BenchError:
        return False
    return True


def _edited(backbone: Backbone, edit: Edit) -> dict[str, Any]:
    with edits.apply(backbone, edit):
        return _looks(backbone)


def _batch_of_concepts(case: Case) -> Finding:
    """Several concepts in one request all count: at once, or one after another where one is the most."""
    if case.cls.role != "erasure" or not case.cls.sequential:
        return Finding(True, "the edit is not a matter of which concepts are asked")
    for family in case.edits:
        whole = _erased(case, family, case.request(2))
        alone = [_erased(case, family, case.request(1, start=i)) for i in range(2)]
        if any(whole == part for part in alone):
            return Finding(False, f"on {family} erasing two concepts is erasing one of them")
    how = "at once" if case.at_once > 1 else "one after another"
    return Finding(True, f"two concepts {how} differ from each alone")


def _erased(case: Case, family: Family, request: Request) -> str:
    """Hash of the edit; several concepts go one after another where the method takes one."""
    if len(request.erase) <= case.at_once:
        outcome = case.run(family, request)
        if outcome.edit is None:
            raise outcome.error or BenchError("no edit")
        return edits.edit_hash(outcome.edit)
    method = case.method(family)
    return edits.edit_hash(edits.make(method, case.backbone(family), request, "sequential"))


RULES: Mapping[str, Callable[[Case], Finding]] = {
    "fields": _fields,
    "no-torch-at-import": _no_torch_at_import,
    "declared-support": _declared_support,
    "refuses-family-with-reason": _refuses_family,
    "leaves-model": _leaves_model,
    "deterministic": _deterministic,
    "empty-request": _empty_request,
    "batch-of-concepts": _batch_of_concepts,
    "changes-something": _changes_something,
    "fits": _fits,
    "finite": _finite,
    "saves-and-loads": _saves_and_loads,
    "cost-recorded": _cost_recorded,
}
"""By name; docs and reports call them so."""
