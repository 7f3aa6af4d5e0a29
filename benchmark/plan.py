"""What a run will do: cells in order, each with its items and keys, and what it takes. No torch, nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from benchmark import data_files, device, keys, models, registry, speed
from benchmark.errors import BadInput, Damaged
from benchmark.interface import Request
from benchmark.items import Item, Rows, request_items, rows_of, stands_in
from benchmark.metrics import evaluators
from benchmark.metrics.balance import headline
from benchmark.metrics.protocols import protocol
from benchmark.models import ModelSpec
from benchmark.prompt_files import PromptRow
from benchmark.registry import MethodSpec, Values
from benchmark.speed import Speed
from benchmark.store import Store
from benchmark.suite import Form, FormName, RequestSpec, Sampler, Strategy, Suite, load, requests

DTYPE = speed.EXACT
Pair = tuple[str, int]
"""Prompt and seed: what identifies an image among those of one edit and sampler."""


@dataclass(frozen=True, kw_only=True)
class EditSpec:
    """An edit to be made, with the edits that it needs."""

    method: MethodSpec
    request: RequestSpec
    seed: int
    strategy: Strategy
    given: Mapping[str, EditSpec] = field(default_factory=dict)
    """By the names in `Method.needs`."""
    key: str

    @property
    def empty(self) -> bool:
        """Whether it is the unedited model."""
        return self.method.name == "none"

    def asked(self) -> Request:
        """What the method is told, without `given`, which takes the edits themselves."""
        erase = tuple(c.target() for c in self.request.erase)
        keep = tuple(c.name for c in self.request.keep)
        return Request(erase=erase, keep=keep, general=self.request.general, seed=self.seed)

    def chain(self) -> list[EditSpec]:
        """The edits it needs and itself, in the order of making."""
        return [*(e for g in self.given.values() for e in g.chain()), self]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method on one request."""

    method: MethodSpec
    request: RequestSpec
    seed: int
    """Training seed of the method."""
    strategy: Strategy
    items: tuple[Item, ...]
    edit: EditSpec | None
    """None where the method is not applicable."""
    images_key: str | None
    reason: str | None = None
    """Why it is not applicable."""
    own: str | None = None
    """Digest of what prompts' files say of guidance and size, where that counts: part of `images_key`."""

    @property
    def status(self) -> Literal["ok", "not applicable"]:
        return "not applicable" if self.edit is None else "ok"

    @property
    def slug(self) -> str:
        """A file name: `esd@paper.erase_airplane.seed0`."""
        return f"{self.method.label}.{self.request.name}.seed{self.seed}".translate(str.maketrans(": /\\", "____"))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run, settled."""

    suite: Suite
    form_name: FormName
    form: Form
    """Sampled as the model is: see `declared`."""
    declared: Sampler
    """What the suite says of sampling."""
    model: ModelSpec
    model_hash: str | None
    """None if the weights are not there: keys then are those of no model, and nothing can be run."""
    scale: float
    seed: int
    batch: int
    dtype: str
    """Of the model that makes images."""
    speed: Speed
    cells: tuple[Cell, ...]
    """The unedited model first, then by method, each after those whose edits it needs."""

    def images_key(self, cell: Cell, batch: int) -> str:
        """Key of an applicable cell's images at another batch shape than the plan's."""
        if cell.edit is None:
            raise ValueError(f"cell {cell.slug} is not applicable")
        return _images_key(cell.edit, self.form, batch, self.speed, cell.own)

    @property
    def edits(self) -> list[EditSpec]:
        """All edits to make, each once, in order; the empty one is left out."""
        chains = [e for c in self.cells if c.edit for e in c.edit.chain() if not e.empty]
        return list({e.key: e for e in chains}.values())


def make_plan(
    suite: Suite | str,
    *,
    model: str = "testbed",
    methods: Sequence[str] | None = None,
    scale: float = 1.0,
    seed: int = 0,
    batch: int | None = None,
    form: FormName | None = None,
    dtype: str | None = None,
    passed: Mapping[str, Values] | None = None,
) -> Plan:
    """Settle a run: `passed` gives fields by method label, `batch` and `form` replace the suite's and the model's.

    `methods` may hold `all`: the suite's own and every method of ours that needs no file. `dtype` replaces the one that
    `speed.choose` takes for this device, for edits and images alike.
    `BadInput` with the nearest name for anything unknown. Missing weights are no error here: see `missing`.
    """
    suite = load(suite) if isinstance(suite, str) else suite
    spec = models.describe(model)
    form_name = form or spec.form
    chosen = _sampled(suite.form(form_name), spec)
    hashed = None if models.missing(model) else models.model_hash(model)
    builder = _Builder(
        suite=suite,
        form=chosen,
        model=spec,
        # No digest has this form: keys made without the weights never meet an artifact.
        model_hash=hashed or f"absent:{spec.name}",
        scale=scale,
        seed=seed,
        batch=_batch(chosen.batch if batch is None else batch),
        speed=Speed(kind=device.kind()),
        passed=passed or {},
    )
    labels = _labels(methods or suite.methods, suite)
    builder = builder.chosen(labels, dtype)
    cells = builder.cells(labels)
    return Plan(
        suite=suite,
        form_name=form_name,
        form=chosen,
        declared=suite.form(form_name).sampler,
        model=spec,
        model_hash=hashed,
        scale=scale,
        seed=seed,
        batch=builder.batch,
        dtype=builder.speed.dtype,
        speed=builder.speed,
        cells=cells,
    )


def _sampled(form: Form, model: ModelSpec) -> Form:
    """The form as this model is sampled: one that guidance was distilled into does without a true one, on top of it.

    A suite that asks for none (guidance 1) is taken as it is, its steps too.
    """
    declared = form.sampler
    if not model.distilled or declared.guidance == 1:
        return form
    steps = declared.steps if model.steps is None else model.steps
    sampler = declared.model_copy(update={"steps": steps, "guidance": 1.0, "negative_prompt": ""})
    return form.model_copy(update={"sampler": sampler})


def _labels(asked: Sequence[str], suite: Suite) -> tuple[str, ...]:
    """Each method once, with what `all` stands for in its place."""
    found = [name for label in asked for name in (_every(suite) if label == registry.ALL else [label])]
    return tuple(dict.fromkeys(found))


def _every(suite: Suite) -> list[str]:
    return [*suite.methods, *registry.everything()]


def _batch(batch: int) -> int:
    if batch < 1:
        raise BadInput(f"batch size must be at least 1, got {batch}")
    return batch


@dataclass(frozen=True, kw_only=True)
class _Builder:
    """Cells from a suite's form, once everything is named."""

    suite: Suite
    form: Form
    model: ModelSpec
    model_hash: str
    scale: float
    seed: int
    batch: int
    speed: Speed
    passed: Mapping[str, Values]

    def chosen(self, labels: Sequence[str], dtype: str | None) -> _Builder:
        """With the speed that a run of all these methods is worth."""
        images = 0 if self.speed.kind == "cpu" else _most_of_one_shape(self._asked(), labels)
        steps = self.form.sampler.steps
        found = speed.choose(
            kind=self.speed.kind,
            family=self.model.family,
            images=images,
            forwards=-(-images // self.batch) * steps,
            capability=speed.capability(),
            compiler=speed.compiler(),
            dtype=dtype,
            offload=speed.asked_offload(),
            checkpointing=speed.asked_checkpointing(),
        )
        return replace(self, speed=found)

    def _asked(self) -> dict[str, tuple[Item, ...]]:
        rows = _remembered(rows_of)
        suite = self.suite
        return {r.name: request_items(suite.name, suite.version, r, self.scale, rows) for r in requests(self.form)}

    def cells(self, labels: Sequence[str]) -> tuple[Cell, ...]:
        self._check_scores()
        for label in self.passed.keys() - set(labels):
            raise BadInput(f"fields are given for {label}, which is not among the methods {', '.join(labels)}")
        asked = requests(self.form)
        rows = _remembered(rows_of)
        items = self._asked()
        own = {r.name: _own_settings(r, rows) for r in asked}
        return tuple(
            self._cell(label, r, items[r.name], own[r.name]) for label in self._ordered(labels, asked) for r in asked
        )

    def _check_scores(self) -> None:
        """BadInput unless all protocols are known, and the headline's kind of quantity is among them."""
        measures = {protocol(name).measure for name in self.form.protocols}
        if self.suite.headline is None:
            return
        h = headline(self.suite.headline)
        needed = {"similarity", "fid"} if h.fidelity else {h.measure}
        if lacks := sorted(needed - measures - {"accuracy"}):
            raise BadInput(f"headline {h.id} needs a protocol of {' and of '.join(lacks)} among the form's protocols")

    def _ordered(self, labels: Sequence[str], asked: Sequence[RequestSpec]) -> list[str]:
        """Each label once, `none` first, and after the labels that it needs."""
        ordered: list[str] = []

        def place(label: str) -> None:
            if label not in ordered:
                needs = {n for r in asked for n in self._method(label, r, ()).instance.needs}
                for need in (n for n in labels if n in needs):
                    place(need)
                ordered.append(label)

        for label in sorted(labels, key=lambda name: name != "none"):
            place(label)
        return ordered

    def _cell(self, label: str, request: RequestSpec, items: tuple[Item, ...], own: str | None) -> Cell:
        method = self._method(label, request, ())
        made = self._edit(label, request)
        edit, reason = (made, None) if isinstance(made, EditSpec) else (None, made)
        return Cell(
            method=method,
            request=request,
            seed=self.seed,
            strategy=edit.strategy if edit else request.strategy,
            items=items,
            edit=edit,
            images_key=_images_key(edit, self.form, self.batch, self.speed, own) if edit else None,
            reason=reason,
            own=own,
        )

    def _method(self, label: str, request: RequestSpec, above: tuple[str, ...]) -> MethodSpec:
        method = registry.resolve(label, model=self.model.name, kind=request.preset_kind, passed=self.passed.get(label))
        if label in above:
            raise BadInput(f"methods need each other's edits in a circle: {' → '.join((*above, label))}")
        # An unknown name among the needs is found here, before anything runs.
        for need in method.instance.needs:
            self._method(need, request, (*above, label))
        return method

    def _edit(self, label: str, request: RequestSpec) -> EditSpec | str:
        """The edit, or why the method is not applicable."""
        method = self._method(label, request, ())
        if refusal := self._refusal(method, request):
            return refusal
        strategy = self._strategy(method, request)
        given: dict[str, EditSpec] = {}
        for need in method.instance.needs:
            made = self._edit(need, request)
            if isinstance(made, str):
                return f"needs {need}: {made}"
            given[need] = made
        key = self._key(method, request, strategy, given)
        return EditSpec(method=method, request=request, seed=self.seed, strategy=strategy, given=given, key=key)

    def _refusal(self, method: MethodSpec, request: RequestSpec) -> str | None:
        """Why the method cannot do the request on this model, if it cannot."""
        families = ", ".join(sorted(method.instance.families))
        if self.model.family not in method.instance.families:
            return f"{method.label} works on {families}; {self.model.name} is {self.model.family}"
        if reason := method.instance.refusal(self.model.family):
            return f"{reason}; {self.model.name} is {self.model.family}"
        one_by_one = method.instance.role == "erasure" and (self.form.sequential_ok or request.strategy == "sequential")
        if _too_many(method, request) and not one_by_one:
            return f"{method.label} erases {method.instance.max_concepts} at once; {len(request.erase)} are asked"
        return None

    def _strategy(self, method: MethodSpec, request: RequestSpec) -> Strategy:
        # nothing of a control, the base or what is ready made can be put in sequence
        if method.instance.role != "erasure" or not method.instance.sequential:
            return "joint"
        return "sequential" if _too_many(method, request) else request.strategy

    def _key(self, method: MethodSpec, request: RequestSpec, strategy: Strategy, given: Mapping[str, EditSpec]) -> str:
        if method.name == "none":
            return keys.base_key(self.model_hash)
        told = ("name", "kind", "anchor", "synonyms", "adjacent")
        erase = [{what: getattr(c, what) for what in told} for c in request.erase]
        keep = [c.name for c in request.keep]
        return keys.edit_key(
            method=method.name,
            version=method.instance.version,
            fields=method.fields,
            model=self.model_hash,
            request={
                "erase": erase,
                "keep": keep,
                "general": list(request.general),
                "seed": self.seed,
                "strategy": strategy,
            },
            given={name: edit.key for name, edit in given.items()},
            size=self.form.sampler.size,
            dtype=self.speed.edits,
            made_on=device.setting(),
        )


def _images_key(edit: EditSpec, form: Form, batch: int, chosen: Speed, own: str | None) -> str:
    """`own` is the digest of what prompts' files say of guidance and size, where that counts."""
    sampler = form.sampler.model_dump(mode="json") | ({"own": own} if own else {})
    made_on = device.setting() | chosen.keyed()
    return keys.images_key(edit.key, sampler=sampler, batch=batch, dtype=chosen.dtype, made_on=made_on)


def _most_of_one_shape(asked: Mapping[str, Sequence[Item]], labels: Sequence[str]) -> int:
    """Images of the most frequent size and guidance: each of the unedited model once, of other methods each request's.

    All methods count, applicable or not: an upper bound is enough to tell long runs from short ones.
    """
    counts: Counter[tuple[object, object]] = Counter()
    every = {(i.prompt, i.seed): i for items in asked.values() for i in items}
    counts.update((i.guidance, i.size) for i in every.values() if "none" in labels)
    others = sum(label != "none" for label in labels)
    for items in asked.values():
        for i in {(i.prompt, i.seed): i for i in items}.values():
            counts[i.guidance, i.size] += others
    return max(counts.values(), default=0)


def _remembered(read: Rows) -> Rows:
    """Each file is read once a plan: requests share it."""
    known: dict[tuple[str, str], Sequence[PromptRow]] = {}

    def rows(dataset: str, file: str) -> Sequence[PromptRow]:
        if (dataset, file) not in known:
            known[dataset, file] = read(dataset, file)
        return known[dataset, file]

    return rows


def _own_settings(request: RequestSpec, rows: Rows) -> str | None:
    """Digest of the guidance and size of every prompt whose file's settings count; None if none do.

    It is part of the images' key, in which an image is known by prompt and seed: BadInput if these have two settings.
    """
    found: dict[Pair, tuple[float | None, tuple[int, int] | None]] = {}
    for prompts in request.prompts.values():
        if not prompts.honour_row_settings or prompts.dataset is None or prompts.file is None:
            continue
        for row in rows(prompts.dataset, prompts.file):
            if found.setdefault((row.prompt, row.seed), (row.guidance, row.size)) != (row.guidance, row.size):
                raise BadInput(
                    f"{prompts.dataset}/{prompts.file}: {row.prompt!r} is there twice with seed {row.seed}, "
                    "with different settings; honour_row_settings needs them to be equal"
                )
    return keys.digest([[*pair, *own] for pair, own in sorted(found.items(), key=repr)]) if found else None


def _too_many(method: MethodSpec, request: RequestSpec) -> bool:
    most = method.instance.max_concepts
    return most is not None and len(request.erase) > most


# --- what is there, and what it takes -------------------------------------------------------------------------------
def stored(store: Store, images_key: str, damaged: Callable[[Damaged], None] = lambda _: None) -> dict[Pair, str]:
    """The images of an images key that the store has, with their shards; `damaged` is told of what was set aside."""
    found: dict[Pair, str] = {}
    for shard in store.children(keys.IMAGES, images_key):
        try:
            listed = keys.parse_items(store.read(keys.IMAGES, images_key, shard, file="items.json"))
        except Damaged as error:
            damaged(error)
            continue
        found |= {(entry["prompt"], entry["seed"]): shard for entry in listed}
    return found


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was measured on this machine, in seconds; `benchmark.cost` finds it."""

    forward_s: float
    """One sample through the denoiser, in a full batch."""
    image_s: float = 0.0
    """What an image takes besides, such as the decoder."""
    score_s: float | None = None
    """Scoring one image; None if it is not known."""
    edits_s: Mapping[str, float] = field(default_factory=dict)
    """One edit, by the method's label; those that are absent are not known."""
    source: str = ""
    """Where it is from."""


_RAW_BYTES = 2048  # an evaluator's raw outputs for one image: some hundred numbers
_LISTED_BYTES = 256  # an image's line in items.json and its share of the manifest
_EDIT_SHARE = 0.1  # of the model's weights, a little above the share of cross-attention


def plan_json(
    plan: Plan,
    store: Store | None = None,
    calibration: Calibration | None = None,
    *,
    keep: str = "all",
    workers: Callable[[int, int], int] | None = None,
) -> dict[str, Any]:
    """The forecast of a run that keeps these images' pixels, as `plan --json` prints it.

    `by_method` counts what each method still has to make, and what the store has of it: images that its requests share
    count once, under the role that asks for them first. `images` and `cached` are those of the method with the most
    left, `requests` the most that a method has left of each request by itself. `denoiser_forwards`, `edits`,
    `disk_bytes` and `seconds` are for the whole plan: padded batches in full, grey ones take no forward. `disk_bytes`
    is an estimate. `workers`, given the numbers of cells and of images that a small model has yet to make, tells how
    many processes share the work evenly: `seconds` are those of one over their number; one if left out.
    """
    left = _Left(plan, store)
    count = workers(len(plan.cells), left.light()) if workers else 1
    by_method = {label: left.counts([c for c in plan.cells if c.method.label == label]) for label in left.labels}
    most = {r: left.most(r) for r in dict.fromkeys(c.request.name for c in plan.cells)}
    longest = max(by_method.values(), key=lambda n: (n["images"]["total"], n["cached"]))
    return {
        "suite": plan.suite.name,
        "suite_version": plan.suite.version,
        "form": plan.form_name,
        "model": plan.model.name,
        "scale": plan.scale,
        "sampler": plan.form.sampler.model_dump(mode="json"),
        "sampler_of_suite": plan.declared.model_dump(mode="json"),
        "cells": len(left.applicable),
        "not_applicable": [
            {"method": c.method.label, "request": c.request.name, "reason": c.reason}
            for c in plan.cells
            if c.edit is None
        ],
        "images": longest["images"],
        "requests": most,
        "distinct": {r: _distinct(left.asked(r)) for r in most},
        "cached": longest["cached"],
        "by_method": by_method,
        "denoiser_forwards": left.forwards(),
        "edits": len(left.edits()),
        "disk_bytes": left.disk_bytes(keep),
        "seconds": calibration and round(left.seconds(calibration) / count, 1),
        "workers": count,
        "seconds_from": calibration and calibration.source,
        "seconds_without": calibration and left.unknown(calibration),
        "missing": missing(plan),
    }


def missing(plan: Plan) -> list[dict[str, Any]]:
    """What the plan needs and this machine lacks: `what`, `where`, `size` in bytes, `licence`; null where not known."""
    weights = models.missing(str(plan.model.folder or plan.model.name))
    judges = dict.fromkeys(protocol(name).evaluator for name in plan.form.protocols)
    wanted = data_files.named_in(plan.form.model_dump(mode="json"))
    files = [lack for what in wanted if (lack := data_files.missing(what))]
    return ([weights] if weights else []) + [_lack(x) for judge in judges for x in lacks(judge, plan.form)] + files


def lacks(judge: str, form: Form) -> list[dict[str, Any]]:
    """What this machine lacks for an evaluator; real images to compare with are the form's, where it names them."""
    found = evaluators.lacks(judge)
    return [x for x in found if form.reference is None or x["where"] != f"${evaluators.REFERENCE}"]


def _lack(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in ("what", "where", "size", "licence")}


class _Left:
    """What of a plan is not in the store yet."""

    def __init__(self, plan: Plan, store: Store | None) -> None:
        self.plan = plan
        self.store = store
        self.applicable = [c for c in plan.cells if c.edit is not None]
        self.labels = list(dict.fromkeys(c.method.label for c in plan.cells))
        found = {c.images_key for c in self.applicable if c.images_key}
        self.have = {key: set(stored(store, key)) if store else set[Pair]() for key in found}
        self.new = self._new()

    def items(self, cell: Cell) -> list[Item]:
        """The cell's items whose images are not there."""
        have = self.have.get(cell.images_key or "", set())
        return [i for i in cell.items if (i.prompt, i.seed) not in have]

    def most(self, request: str) -> dict[str, int]:
        """By role, for the method that has the most left to do on this request."""
        cells = [c for c in self.applicable if c.request.name == request]
        counts = [_by_role(c, self.items(c)) for c in cells]
        return max(counts, key=lambda c: sum(c.values()), default={})

    def asked(self, request: str) -> Sequence[Item]:
        """All items of a request, whatever is there."""
        return next(c.items for c in self.plan.cells if c.request.name == request)

    def counts(self, cells: Sequence[Cell]) -> dict[str, Any]:
        """Of one method: an image that several cells ask for is made once."""
        roles: dict[tuple[str, Pair], str] = {}
        cells = [c for c in cells if c.edit is not None]
        for cell in cells:
            for i in cell.items:
                roles.setdefault((cell.images_key or "", (i.prompt, i.seed)), i.role)
        left: dict[str, int] = dict.fromkeys((role for c in cells for role in c.request.prompts), 0)
        for (key, pair), role in roles.items():
            left[role] += pair not in self.have[key]
        total = sum(left.values())
        return {"images": {**left, "total": total}, "cached": len(roles) - total}

    def _new(self) -> list[int]:
        """Images that each cell adds, when all run in order."""
        made = {key: set(have) for key, have in self.have.items()}
        counts = []
        for cell in self.applicable:
            have = made[cell.images_key or ""]
            wanted = {(i.prompt, i.seed) for i in cell.items}
            counts.append(len(wanted - have))
            have |= wanted
        return counts

    def forwards(self) -> int:
        drawn = (n for c, n in zip(self.applicable, self.new, strict=True) if c.method.name != "grey")
        batches = sum(-(-n // self.plan.batch) for n in drawn)
        return batches * self.plan.batch * self.plan.form.sampler.forwards

    def edits(self) -> list[EditSpec]:
        return [e for e in self.plan.edits if not (self.store and self.store.has(keys.EDITS, e.key))]

    def disk_bytes(self, keep: str) -> int:
        pixels = 3 * self.plan.form.sampler.size**2 if keep == "all" else 0  # a sample is some twenty images a cell
        image = pixels + _RAW_BYTES + _LISTED_BYTES
        return sum(self.new) * image + len(self.edits()) * int(self.plan.model.size * _EDIT_SHARE)

    def light(self) -> int:
        """Images still to be made by a model small enough for one a core; 0 for those that fill the memory."""
        return sum(self.new) if self.plan.form_name == "embedded" else 0

    def seconds(self, measured: Calibration) -> float:
        """Of all whose time is known, by one process: see `unknown`."""
        images = sum(self.new)
        edits = sum(measured.edits_s.get(e.method.label, 0.0) for e in self.edits())
        sampling = self.forwards() * measured.forward_s + images * measured.image_s
        return sampling + images * (measured.score_s or 0.0) + edits

    def unknown(self, measured: Calibration) -> list[str]:
        """What is to be done and is not in `seconds`."""
        labels = dict.fromkeys(e.method.label for e in self.edits() if e.method.label not in measured.edits_s)
        scores = ["scores"] if measured.score_s is None and sum(self.new) > 0 else []
        return [f"edits of {label}" for label in labels] + scores


def _by_role(cell: Cell, items: Iterable[Item]) -> dict[str, int]:
    counts: dict[str, int] = dict.fromkeys(cell.request.prompts, 0)
    for item in items:
        counts[item.role] += 1
    return counts


def _distinct(items: Iterable[Item]) -> dict[str, dict[str, Any]]:
    """By role: how many images, prompts and seeds there are, and the seeds' range, cached or not.

    Of a file of prompts that is not here, seeds are None: it has them.
    """
    by_role: dict[str, list[Item]] = {}
    for item in items:
        by_role.setdefault(item.role, []).append(item)
    return {role: _of_role(of) for role, of in by_role.items()}


def _of_role(items: Sequence[Item]) -> dict[str, Any]:
    prompts, seeds = {i.prompt for i in items}, {i.seed for i in items}
    known = not any(map(stands_in, items))  # the seeds of a file that is not here are in it
    return {
        "images": len(items),
        "prompts": len(prompts),
        "seeds": len(seeds) if known else None,
        "seed_range": [min(seeds), max(seeds)] if known else None,
    }


def prompts_json(plan: Plan) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Every prompt with its concept and seeds, by request and role: what `plan --json --prompts` adds."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for cell in plan.cells:
        if cell.request.name in found:
            continue
        grouped: dict[tuple[str, str, str], list[int]] = {}
        for item in cell.items:
            grouped.setdefault((item.role, item.concept, item.prompt), []).append(item.seed)
        of_request = found.setdefault(cell.request.name, {})
        for (role, concept, prompt), seeds in grouped.items():
            of_request.setdefault(role, []).append({"prompt": prompt, "concept": concept, "seeds": seeds})
    return found
