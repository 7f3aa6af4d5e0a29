"""The stages of one cell on one machine: edit, images, raw outputs, scores. Each is done only if the store lacks it.

The model and the judges are loaded when a stage first needs them, so a run that finds everything done loads neither.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmark import data_files, device, image_folders, keys, memory, prompt_files, scoring
from benchmark.errors import BadInput, BenchError
from benchmark.items import Item
from benchmark.keys import pixel_hash
from benchmark.metrics import evaluators, protocols, summary
from benchmark.plan import Cell, EditSpec, Pair, Plan, stored
from benchmark.progress import Stage
from benchmark.store import Store

if TYPE_CHECKING:
    from benchmark.backbones.base import Backbone
    from benchmark.interface import Edit
    from benchmark.metrics.evaluators import Array, Evaluator, PairEvaluator
    from benchmark.metrics.protocols import Given

Image = NDArray[np.uint8]
GREY = 128
RAW = "raw.safetensors"
COSTS = "costs"
"""First part of the address of what an edit cost: times differ between runs, so they stand in no edit's manifest."""


class CellFailed(BenchError):
    """A cell that cannot be completed; the others can."""


@dataclass
class Spent:
    """What a cell took in this process; nothing where the store had it."""

    edit: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)


class Worker:
    """Runs cells of a plan against a store, with one model loaded.

    Every stage may raise Damaged for an artifact that the store has just set aside: done again from the edit on, the
    cell makes it anew.
    """

    def __init__(self, plan: Plan, store: Store, *, threads: int, say: Callable[[str], None]) -> None:
        self.plan, self.store, self.threads, self.say = plan, store, threads, say
        self._judges: dict[str, Evaluator] = {}
        self._other: Backbone | None = None
        self._last: dict[str, tuple[str, dict[Pair, int], Image]] = {}
        self._bases: dict[str, dict[str, Any]] = {}  # by request: the unedited model's summary
        self._hashes: dict[str, str] = {}  # of judges' weights: megabytes, asked for in every cell
        self._failures: dict[str, str] = {}  # by edit key: an edit that several cells need is tried once a run

    @cached_property
    def backbone(self) -> Backbone:
        """The model, loaded once; torch's threads are set here, before its first work."""
        import torch

        from benchmark.backbones.load import load

        torch.set_num_threads(self.threads)
        spec = self.plan.model
        return load(str(spec.folder or spec.name), device=device.kind(), size=self.plan.form.sampler.size)

    def sized(self, size: tuple[int, int]) -> Backbone:
        """The model for images of another (height, width); the last such one is kept."""
        import torch

        from benchmark.backbones.load import load

        if size == (self.plan.form.sampler.size,) * 2:
            return self.backbone
        if self._other is None or self._other.image_size != size:
            torch.set_num_threads(self.threads)
            spec = self.plan.model
            self._other = load(str(spec.folder or spec.name), device=device.kind(), size=size)
        return self._other

    def judge(self, name: str) -> Evaluator:
        """An evaluator, loaded once."""
        if name not in self._judges:
            import torch

            torch.set_num_threads(self.threads)
            self._judges[name] = evaluators.load(name)
        return self._judges[name]

    # --- edit -------------------------------------------------------------------------------------------------
    def edit(self, spec: EditSpec, spent: Spent) -> dict[str, Any]:
        """Make the edit and those it needs if they are not stored; returns its `about.json`."""
        for needed in spec.chain():
            if needed.empty or self.store.has(keys.EDITS, needed.key):
                continue
            try:
                self._make(needed, spent)
            except CellFailed as error:
                if needed is spec:
                    raise
                raise CellFailed(f"needs {needed.method.label}: {error}") from error
        if spec.empty:
            return {"hash": "", "notes": {}, "counts": {}, "output": None, "prompts": None}
        return dict(json.loads(self.store.read(keys.EDITS, spec.key, file="about.json")))

    def _make(self, spec: EditSpec, spent: Spent) -> None:
        if spec.key in self._failures:
            raise CellFailed(self._failures[spec.key])
        given = {name: self.load_edit(needed) for name, needed in spec.given.items()}
        backbone = self.backbone
        try:
            edit, files = _made(spec, backbone, given)
        except (Exception, SystemExit) as error:  # a method is anybody's code: its faults are its cell's, not the run's
            self._forget_model()
            kind = "" if isinstance(error, BenchError) else f"{type(error).__name__}: "
            self._failures[spec.key] = f"edit: {kind}{error}"
            raise CellFailed(self._failures[spec.key]) from error
        self.store.put(COSTS, spec.key, files={"cost.json": files.pop("cost.json")})
        self.store.put(keys.EDITS, spec.key, files=files)
        spent.edit[spec.method.label] = asdict(edit.cost)

    def _forget_model(self) -> None:
        """After a fault nobody knows what was left in the model: whoever needs it next loads it again."""
        self.__dict__.pop("backbone", None)
        self._other = None

    def load_edit(self, spec: EditSpec) -> Edit:
        """A stored edit; the empty one for the unedited model."""
        from benchmark.edits import deserialise
        from benchmark.interface import Edit

        return Edit() if spec.empty else deserialise(self.store.get(keys.EDITS, spec.key))

    # --- images -----------------------------------------------------------------------------------------------
    def images(self, cell: Cell, stage: Stage, spent: Spent) -> dict[Pair, str]:
        """Make the images that the store lacks, a batch at a time; returns the shard of each (prompt, seed)."""
        edit, key = _edit_of(cell)
        found = stored(self.store, key, damaged=lambda error: self.say(str(error)))
        stage.advance(sum((i.prompt, i.seed) in found for i in cell.items))
        left = unique(i for i in cell.items if (i.prompt, i.seed) not in found)
        if not left:
            return found
        memory.reset()
        started = time.perf_counter()
        with closing(self._batches(edit, left, spent)) as batches:  # however this ends, the edit comes off at once
            for part, images in batches:
                shard = self._put_images(key, part, images)
                found |= {(i.prompt, i.seed): shard for i in part}
                stage.advance(len(part))
                now = time.perf_counter()
                _add(spent.images, made=len(part), seconds=now - started)
                spent.images["peak_bytes"] = memory.peak()
                started = now
        return found

    def _put_images(self, key: str, part: Sequence[Item], images: Image) -> str:
        shard = keys.shard_name([(i.prompt, i.seed) for i in part])
        listed = [(i.prompt, i.seed, pixel_hash(image)) for i, image in zip(part, images, strict=True)]
        files = {"images.npy": npy(images), "items.json": keys.items_json(listed)}
        self.store.put(keys.IMAGES, key, shard, files=files)
        return shard

    def _batches(
        self, spec: EditSpec, items: Sequence[Item], spent: Spent
    ) -> Generator[tuple[list[Item], Image], None, None]:
        edit = self.load_edit(spec)
        if edit.output == "grey":
            yield from grey(items, self.plan.batch, self.plan.form.sampler.size)
            return
        for own, part in _by_settings(items).items():
            yield from self._drawn(spec, edit, part, *own, spent)

    def _drawn(
        self,
        spec: EditSpec,
        edit: Edit,
        items: Sequence[Item],
        guidance: float | None,
        size: tuple[int, int] | None,
        spent: Spent,
    ) -> Generator[tuple[list[Item], Image], None, None]:
        """Images of items of one guidance and size, by default the suite's."""
        from benchmark.edits import apply
        from benchmark.sample import Sampler, sample

        declared = self.plan.form.sampler
        shape = (declared.size, declared.size) if size is None else (size[1], size[0])
        sampler = Sampler(
            steps=declared.steps,
            guidance=declared.guidance if guidance is None else guidance,
            size=shape,
            negative_prompt=declared.negative_prompt,
        )
        backbone = self.sized(shape)
        changes: AbstractContextManager[Any] = nullcontext() if spec.empty else apply(backbone, edit)
        try:
            with changes, backbone.counting() as counts:
                try:
                    yield from sample(backbone, items, sampler, self.plan.batch, edit.prompts)
                finally:
                    _add(spent.images, **{name: n for name, n in asdict(counts).items() if n})
        except BadInput:
            raise
        except BenchError as error:
            self._forget_model()
            raise CellFailed(f"images: {error}") from error

    def load_images(self, key: str, shard: str) -> Image:
        """The images `(n, h, w, 3)` of a shard."""
        content = self.store.read(keys.IMAGES, key, shard, file="images.npy")
        return np.asarray(np.load(io.BytesIO(content), allow_pickle=False))

    # --- scores -----------------------------------------------------------------------------------------------
    def scores(self, cell: Cell, shards: Mapping[Pair, str], stage: Stage, spent: Spent) -> dict[str, Any]:
        """Rows and summary of a cell, as its record has them, beside the unedited model of the same request."""
        found = self._scores(cell, shards, stage, spent)
        base = self._base_summary(cell, found["summary"])
        return found if base is None else {**found, "summary": summary.with_unedited(found["summary"], base)}

    def _scores(self, cell: Cell, shards: Mapping[Pair, str], stage: Stage, spent: Spent) -> dict[str, Any]:
        address = (keys.SCORES, self._scores_key(cell))
        if not self.store.has(*address):
            memory.reset()
            started = time.perf_counter()
            scored = self._score(cell, shards, stage)
            self.store.put(*address, files={"scores.json": keys.canonical(scored).encode()})
            _add(spent.scores, seconds=time.perf_counter() - started)
            spent.scores["peak_bytes"] = memory.peak()
        stage.advance(len(cell.items) - stage.done)
        return dict(json.loads(self.store.read(*address, file="scores.json")))

    def base(self, cell: Cell) -> Cell | None:
        """The unedited model's cell of the same request, if the plan has it."""
        same = (c for c in self.plan.cells if c.edit is not None and c.edit.empty)
        return next((c for c in same if c.request.name == cell.request.name), None)

    def _base_summary(self, cell: Cell, own: dict[str, Any]) -> dict[str, Any] | None:
        base, name = self.base(cell), cell.request.name
        if base is None or base is cell:
            self._bases |= {} if base is None else {name: own}
            return None if base is None else own
        if name not in self._bases:
            quiet, spent = _quiet(), Spent()
            try:
                self._bases[name] = self._scores(base, self.images(base, quiet, spent), quiet, spent)["summary"]
            except CellFailed:  # it has a record of its own that says so
                return None
        return self._bases[name]

    def _scores_key(self, cell: Cell) -> str:
        form, base = self.plan.form, self.base(cell)
        asked = [[i.role, i.concept, i.prompt, i.replicate, i.seed] for i in cell.items]
        by = {name: [protocols.protocol(name).version, self._weights(name)] for name in form.protocols}
        settings = {"primary": form.primary, "headline": self.plan.suite.headline, "summary": summary.VERSION}
        keep = [c.name for c in cell.request.keep]
        against = {"classes": list(cell.request.classes), "unedited": base and base.images_key}
        return keys.digest(
            {"images": cell.images_key, "items": asked, "protocols": by, "keep": keep, **settings, **against}
        )

    def _weights(self, protocol: str) -> str:
        """Of an evaluator's weights, and of the real images that it compares with."""
        judge = protocols.protocol(protocol).evaluator
        if judge not in self._hashes:
            named = self.plan.form.reference is not None and evaluators.spec_of(judge).compares
            found = evaluators.weights_hash(judge, reference=not named)
            both = f"{found}\n{image_folders.digest(self.reference_images)}" if named else ""
            self._hashes[judge] = hashlib.sha256(both.encode()).hexdigest() if named else found
        return self._hashes[judge]

    def _score(self, cell: Cell, shards: Mapping[Pair, str], stage: Stage) -> dict[str, Any]:
        form, items = self.plan.form, cell.items
        hashes = self._image_hashes(cell, set(shards.values()))
        rows: dict[str, Any] = {
            "role": [i.role for i in items],
            "concept": [i.concept for i in items],
            "prompt": [i.prompt for i in items],
            "replicate": [i.replicate for i in items],
            "seed": [i.seed for i in items],
            "image": [hashes[i.prompt, i.seed] for i in items],
            "valid": [True] * len(items),
            "values": {},
        }
        return scoring.scored(
            rows,
            names=form.protocols,
            primary=form.primary,
            headline=self.plan.suite.headline,
            source=_CellSource(self, cell, shards, stage),
        )

    @cached_property
    def reference_images(self) -> tuple[image_folders.ImageFile, ...]:
        """The real images that the form names: those whose captions are its general prompts."""
        form = self.plan.form
        general = form.prompts.general
        assert form.reference is not None and general is not None  # the form was checked for it
        assert general.dataset is not None and general.file is not None
        ids = [row.image for row in prompt_files.load(general.dataset, general.file) if row.image is not None]
        if not ids:
            raise BadInput(f"{general.dataset}/{general.file} names no images to compare with")
        folder = data_files.find(data_files.wanted(form.reference.dataset, form.reference.file))
        return image_folders.of_coco(image_folders.listed(folder), ids)

    def reference_features(self, judge: Evaluator) -> Array:
        """The judge's features of `reference_images`, computed once a store."""
        from safetensors.numpy import load, save

        about = {"reference": image_folders.digest(self.reference_images), "evaluator": judge.id, "weights": judge.hash}
        address = (keys.RAW, keys.digest(about))
        if not self.store.has(*address):
            rows = [judge.raw(image_folders.pixels(i)[None])["features"] for i in self.reference_images]
            self.store.put(*address, files={RAW: save({"features": np.concatenate(rows)})})
        features: Array = load(self.store.read(*address, file=RAW))["features"]
        return features.astype(np.float64)

    def raw_rows(self, cell: Cell, judge: Evaluator, shards: Mapping[Pair, str], stage: Stage) -> dict[str, Array]:
        """A judge's raw outputs, one row an item, from the store or computed shard by shard."""
        _, key = _edit_of(cell)
        wanted: dict[str, list[int]] = {}
        for k, item in enumerate(cell.items):
            wanted.setdefault(shards[item.prompt, item.seed], []).append(k)
        rows: dict[str, Array] = {}
        for shard, at in wanted.items():
            raw = self._raw(key, shard, judge)
            place = {pair: r for r, pair in enumerate(self.pairs(key, shard))}
            take = [place[cell.items[k].prompt, cell.items[k].seed] for k in at]
            for name, values in raw.items():
                if name not in rows:
                    rows[name] = np.zeros((len(cell.items), *values.shape[1:]), values.dtype)
                rows[name][at] = values[take]
            stage.advance(len(at) if stage.done + len(at) <= len(cell.items) else 0)
        return rows

    def _raw(self, key: str, shard: str, judge: Evaluator) -> dict[str, Array]:
        from safetensors.numpy import load, save

        address = (keys.RAW, keys.raw_key(key, shard, evaluator=judge.id, weights=judge.hash))
        if not self.store.has(*address):
            self.store.put(*address, files={RAW: save(judge.raw(self.load_images(key, shard)))})
        return dict(load(self.store.read(*address, file=RAW)))

    def pair_rows(self, cell: Cell, base: Cell, judge: PairEvaluator, shards: Mapping[Pair, str]) -> dict[str, Array]:
        """A judge's raw outputs of each item's image beside the unedited model's, one row an item."""
        from safetensors.numpy import load, save

        (_, mine), (_, other) = _edit_of(cell), _edit_of(base)
        about = {"images": mine, "against": other, "evaluator": judge.id, "weights": judge.hash}
        pairs = [(i.prompt, i.seed) for i in cell.items]
        address = (keys.RAW, keys.digest({**about, "pairs": pairs}))
        if not self.store.has(*address):
            theirs = self.images(base, _quiet(), Spent())
            rows = [judge.pairs(self._one(mine, shards[p], p), self._one(other, theirs[p], p)) for p in pairs]
            self._last.clear()
            self.store.put(*address, files={RAW: save({k: np.concatenate([r[k] for r in rows]) for k in rows[0]})})
        return dict(load(self.store.read(*address, file=RAW)))

    def _one(self, key: str, shard: str, pair: Pair) -> Image:
        """One image, `(1, h, w, 3)`; the last shard of each folder stays in memory, since neighbours are asked for."""
        if key not in self._last or self._last[key][0] != shard:
            self._last[key] = (
                shard,
                {p: i for i, p in enumerate(self.pairs(key, shard))},
                self.load_images(key, shard),
            )
        _, places, images = self._last[key]
        return images[places[pair] : places[pair] + 1]

    def pairs(self, key: str, shard: str) -> list[Pair]:
        """Prompt and seed of each image of a shard, in order."""
        listed = keys.parse_items(self.store.read(keys.IMAGES, key, shard, file="items.json"))
        return [(entry["prompt"], entry["seed"]) for entry in listed]

    def _image_hashes(self, cell: Cell, shards: set[str]) -> dict[Pair, str]:
        _, key = _edit_of(cell)
        listed = [
            e for s in sorted(shards) for e in keys.parse_items(self.store.read(keys.IMAGES, key, s, file="items.json"))
        ]
        return {(e["prompt"], e["seed"]): e["sha256"] for e in listed}

    def protocol_parts(self) -> dict[str, dict[str, Any]]:
        """The record's `protocols`."""
        found = {}
        for name in self.plan.form.protocols:
            p = protocols.protocol(name)
            found[name] = {"version": p.version, "evaluator": p.evaluator, "evaluator_hash": self._weights(name)}
        return found


class _CellSource:
    """Raw outputs of one cell, from the store or made."""

    def __init__(self, worker: Worker, cell: Cell, shards: Mapping[Pair, str], stage: Stage) -> None:
        self.worker, self.cell, self.shards, self.stage = worker, cell, shards, stage
        self._raws: dict[str, dict[str, Array]] = {}

    def judge(self, evaluator: str) -> Evaluator:
        return self.worker.judge(evaluator)

    def raw(self, evaluator: str) -> Mapping[str, Array]:
        if evaluator not in self._raws:
            self._raws[evaluator] = self.worker.raw_rows(self.cell, self.judge(evaluator), self.shards, self.stage)
        return self._raws[evaluator]

    def pairs(self, evaluator: str) -> Mapping[str, Array]:
        base = self.worker.base(self.cell)
        judge = scoring.load_pair_or_refuse(evaluator, base is not None)
        assert base is not None
        return self.worker.pair_rows(self.cell, base, judge, self.shards)

    def reference(self, evaluator: str, role: str) -> Array:
        judge = self.judge(evaluator)
        if role == "general" and self.worker.plan.form.reference is not None:
            return self.worker.reference_features(judge)
        return judge.reference([c.name for c in self.cell.request.keep] if role == "kept" else [])

    def given(self, judge: Evaluator) -> Given:
        base, known = self.worker.base(self.cell), None
        if base is not None and scoring.needs_gallery(judge):
            quiet = _quiet()
            raw = self.worker.raw_rows(base, judge, self.worker.images(base, quiet, Spent()), quiet)
            known = protocols.Unedited(raw, [i.concept for i in base.items])
        return protocols.Given(self.cell.request.classes, known)


def _quiet() -> Stage:
    """For work beside a cell's own."""
    return Stage("beside", None, "images", time.monotonic)


def _by_settings(items: Sequence[Item]) -> dict[tuple[float | None, tuple[int, int] | None], list[Item]]:
    """Items by guidance and size of their own: a batch has one of each."""
    found: dict[tuple[float | None, tuple[int, int] | None], list[Item]] = {}
    for item in items:
        found.setdefault((item.guidance, item.size), []).append(item)
    return found


def _made(spec: EditSpec, backbone: Backbone, given: Mapping[str, Edit]) -> tuple[Edit, dict[str, bytes]]:
    """The edit and its files; raises whatever the method does, and BenchError for what cannot be stored or counted."""
    from dataclasses import replace

    from benchmark import edits

    edit = edits.make(spec.method.instance, backbone, replace(spec.asked(), given=given), spec.strategy)
    if not (edit.weights or edit.deltas or edit.gates or edit.prompts or edit.output):
        raise BenchError("the edit is empty: nothing is erased")
    if path := next((t for t in _texts(edit.notes) if _absolute(t)), None):
        raise BenchError(f"the edit's notes hold an absolute path, which differs between machines: {path}")
    return edit, {**edits.serialise(edit), "about.json": _about(edit, edits.edit_hash(edit))}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    children = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for child in children:
        yield from _texts(child)


def _absolute(text: str) -> bool:
    return PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()


def _add(spent: dict[str, Any], **more: float) -> None:
    for name, value in more.items():
        spent[name] = spent.get(name, 0) + value


def _about(edit: Edit, hashed: str) -> bytes:
    """What records and samplers need of an edit without loading its tensors."""
    cost = asdict(edit.cost)
    counts = {k: cost[k] for k in ("denoiser_forwards", "denoiser_backwards", "text_encodes", "decodes")}
    rule = None if edit.prompts is None else asdict(edit.prompts)
    about = {"hash": hashed, "notes": dict(edit.notes), "counts": counts, "output": edit.output, "prompts": rule}
    return keys.canonical(about).encode()


def _edit_of(cell: Cell) -> tuple[EditSpec, str]:
    if cell.edit is None or cell.images_key is None:
        raise ValueError(f"cell {cell.slug} is not applicable")
    return cell.edit, cell.images_key


def unique(items: Iterator[Item]) -> list[Item]:
    """One item per (prompt, seed), in order: roles may share images."""
    return list({(i.prompt, i.seed): i for i in items}.values())


def grey(items: Sequence[Item], batch: int, size: int) -> Iterator[tuple[list[Item], Image]]:
    """Uniformly grey images in batches: the control needs no model."""
    for start in range(0, len(items), batch):
        part = list(items[start : start + batch])
        yield part, np.full((len(part), size, size, 3), GREY, np.uint8)


def npy(images: Image) -> bytes:
    """The array in numpy's format, the same bytes for the same array."""
    out = io.BytesIO()
    np.save(out, images, allow_pickle=False)
    return out.getvalue()
