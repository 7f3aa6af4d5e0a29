"""The stages of one cell on one machine: edit, images, raw outputs, scores. Each is done only if the store lacks it.

The model and the judges are loaded when a stage first needs them, so a run that finds everything done loads neither.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from itertools import takewhile
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmark import data_files, device, image_folders, keeping, keys, memory, prompt_files, scoring
from benchmark.behind import Behind
from benchmark.errors import BadInput, BenchError
from benchmark.items import Item
from benchmark.keeping import Keep
from benchmark.keys import pixel_hash
from benchmark.leases import Busy, Leases
from benchmark.metrics import evaluators, protocols, summary
from benchmark.plan import Cell, EditSpec, Pair, Plan, stored
from benchmark.progress import Stage
from benchmark.store import Store

if TYPE_CHECKING:
    from benchmark.backbones.base import Backbone
    from benchmark.interface import Edit
    from benchmark.journal import StoreJournal
    from benchmark.metrics.evaluators import Array, Evaluator, PairEvaluator
    from benchmark.metrics.protocols import Given
    from benchmark.speed import Offload

Image = NDArray[np.uint8]
Wanted = Callable[[Sequence[Item]], bool]
"""Asked of each batch right before it is made."""
GREY = 128
RAW = "raw.safetensors"
CLAIMS = "leases"
"""Folder of the store with the claims of processes at work: empty when none is."""
SHAPES = "shapes"
"""First part of the address of a note that an images key's batch did not fit into memory."""
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
    cell makes it anew. And every stage may raise Busy where another process is at what it needs: all that this one
    could do in the meantime is done then, and it is to be called again.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        *,
        threads: int,
        say: Callable[[str], None],
        keep: Keep = "all",
        judging: bool = False,
    ) -> None:
        """`keep` is the policy for pixels; `judging` has judges see each batch while it is in memory."""
        self.judging = judging
        self.plan, self.store, self.threads, self.say, self.keep = plan, store, threads, say, keep
        self.leases = Leases(store.root / CLAIMS)
        self._judges: dict[str, Evaluator] = {}
        self._pair_judges: dict[str, PairEvaluator] = {}
        self._theirs: tuple[str, dict[Pair, str]] | None = None  # the last unedited images key, with its shards
        self._said: set[str] = set()
        self._too_many: int | None = None  # the smallest batch that did not fit into memory
        self._again: tuple[str, dict[Pair, Image]] | None = None  # images key, and what was made again for its grid
        self._shown: dict[str, set[Pair]] = {}  # by the plan's images key: what grids show
        self._last: dict[str, tuple[str, dict[Pair, int], Image]] = {}
        self._bases: dict[str, dict[str, Any]] = {}  # by request: the unedited model's summary
        self._hashes: dict[str, str] = {}  # of judges' weights: megabytes, asked for in every cell
        self._failures: dict[str, str] = {}  # by edit key: an edit that several cells need is tried once a run

    @cached_property
    def backbone(self) -> Backbone:
        """The model that methods work on, loaded once."""
        chosen = self.plan.speed
        return self._loaded(chosen.edits, chosen.edits_offload, checkpointing=chosen.checkpointing)

    @cached_property
    def maker(self) -> Backbone:
        """The model that makes images: the same one, unless the plan has them made in another number format, or by
        blocks that come one at a time."""
        chosen = self.plan.speed
        return self._loaded(chosen.dtype, chosen.offload) if chosen.separate else self.backbone

    def _loaded(self, dtype: str, offload: Offload, *, checkpointing: bool = False) -> Backbone:
        """The model; torch's threads are set here, before its first work."""
        import torch

        from benchmark.backbones.load import load

        torch.set_num_threads(self.threads)
        spec, size = self.plan.model, self.plan.form.sampler.size
        form: torch.dtype = getattr(torch, dtype)
        return load(
            str(spec.folder or spec.name),
            device=device.kind(),
            dtype=form,
            size=size,
            offload=offload,
            checkpointing=checkpointing,
        )

    def sized(self, size: tuple[int, int]) -> Backbone:
        """The model for images of a (height, width): weights are shared, nothing is loaded anew."""
        return self.maker if self.maker.image_size == size else self.maker.of_size(size)

    @contextmanager
    def _launching(self, backbone: Backbone) -> Iterator[None]:
        """Kernels launched as the plan says. A model that methods work on too goes back to one by one."""
        backbone.use(self.plan.speed.launch)
        try:
            yield
        finally:
            if backbone.refused and backbone.refused not in self._said:
                self._said.add(backbone.refused)
                self.say(f"kernels are launched one by one, to the same bits; no graph: {backbone.refused}")
            if not self.plan.speed.separate:
                backbone.use("eager")

    def judge(self, name: str) -> Evaluator:
        """An evaluator, loaded once."""
        if name not in self._judges:
            import torch

            torch.set_num_threads(self.threads)
            self._judges[name] = evaluators.load(name)
        return self._judges[name]

    def pair_judge(self, name: str) -> PairEvaluator:
        """An evaluator of pairs, loaded once."""
        if name not in self._pair_judges:
            self._pair_judges[name] = evaluators.load_pair(name)
        return self._pair_judges[name]

    def _once(self, address: tuple[str, ...], make: Callable[[], None]) -> None:
        """Make an artifact that the store lacks, unless another process is at it: `Busy`."""
        if not self.store.has(*address):
            with self.leases.hold(*address):
                if not self.store.has(*address):
                    make()

    # --- edit -------------------------------------------------------------------------------------------------
    def edit(self, spec: EditSpec, spent: Spent) -> dict[str, Any]:
        """Make the edit and those it needs if they are not stored; returns its `about.json`."""
        for needed in spec.chain():
            if needed.empty:
                continue
            try:
                self._once((keys.EDITS, needed.key), partial(self._make, needed, spent))
                with suppress(BenchError):  # what resists stays for `gc`
                    self.store.remove_all(keys.JOURNALS, needed.key)
            except CellFailed as error:
                if needed is spec:
                    raise
                raise CellFailed(f"needs {needed.method.label}: {error}") from error
        if spec.empty:
            return {"hash": "", "notes": {}, "counts": {}, "output": None, "prompts": None}
        return dict(json.loads(self.store.read(keys.EDITS, spec.key, file="about.json")))

    def _make(self, spec: EditSpec, spent: Spent) -> None:
        from benchmark import journal

        if spec.key in self._failures:
            raise CellFailed(self._failures[spec.key])
        given = {name: self.load_edit(needed) for name, needed in spec.given.items()}
        backbone, code = self.backbone, journal.code_of(type(spec.method.instance))
        kept = journal.StoreJournal(self.store, spec.key, code=code, say=self.say)
        try:
            edit, files = _made(spec, backbone, given, kept)
        except journal.Unfit:
            self._forget_model()
            raise
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
        self.__dict__.pop("maker", None)

    def load_edit(self, spec: EditSpec) -> Edit:
        """A stored edit; the empty one for the unedited model."""
        from benchmark.edits import deserialise
        from benchmark.interface import Edit

        return Edit() if spec.empty else deserialise(self.store.get(keys.EDITS, spec.key))

    # --- images -----------------------------------------------------------------------------------------------
    def images(self, cell: Cell, stage: Stage, spent: Spent) -> dict[Pair, str]:
        """Make the images that the store lacks, a batch at a time; returns the shard of each (prompt, seed)."""
        already = stage.done
        while True:
            batch = self.batch(cell)
            try:
                found = self._images(cell, batch, stage, spent)
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                found = None
            # outside of the except: the traceback would hold what filled the memory
            if found is not None and self.batch(cell) == batch:
                self._complete(cell, found)
                return found
            if found is None:
                self._halve(cell, batch)
            stage.advance(already - stage.done)

    def _complete(self, cell: Cell, shards: Mapping[Pair, str]) -> None:
        """Where all pixels are to be kept, make those again that an earlier run did not keep."""
        if self.keep == "all" or self._compared_with(cell):
            key = self.key(cell)
            for shard in dict.fromkeys(shards.values()):
                if not keeping.complete(self.store, key, shard):
                    for image in self._made_again(key, self.pairs(key, shard)).values():
                        keeping.put(self.store, key, image)

    def batch(self, cell: Cell) -> int:
        """The batch shape of a cell's images: the plan's, halved as often as the store says that it did not fit."""
        batch = self.plan.batch
        while batch > 1 and cell.edit is not None and self.store.has(SHAPES, self._key(cell, batch)):
            batch //= 2
        return batch

    def key(self, cell: Cell) -> str:
        """The key of a cell's images at its batch shape."""
        return self._key(cell, self.batch(cell))

    def _key(self, cell: Cell, batch: int) -> str:
        _, planned = _edit_of(cell)
        return planned if batch == self.plan.batch else self.plan.images_key(cell, batch)

    def _halve(self, cell: Cell, batch: int) -> None:
        """Note that this batch does not fit: all of the cell is made at half of it, so that it has one shape."""
        import torch

        torch.cuda.empty_cache()  # nothing where no GPU is in use
        if batch == 1:
            raise CellFailed("images: not even one image at a time fits into the device's memory; use a larger device")
        self._too_many = min(batch, self._too_many or batch)
        self._note(cell, batch)
        self.say(f"{batch} images at once do not fit into memory: this cell is made anew with {batch // 2} at once")

    def _note(self, cell: Cell, batch: int) -> None:
        told = {"batch": batch, "fits": False}
        self.store.put(SHAPES, self._key(cell, batch), files={"shape.json": keys.canonical(told).encode()})

    def _images(self, cell: Cell, batch: int, stage: Stage, spent: Spent) -> dict[Pair, str]:
        edit, key = cell.edit, self._key(cell, batch)
        assert edit is not None
        found = stored(self.store, key, damaged=lambda error: self.say(str(error)))
        if not found and batch > 1 and self._too_many is not None and batch >= self._too_many:
            self._note(cell, batch)  # it would not fit here either
            return found
        stage.advance(sum((i.prompt, i.seed) in found for i in cell.items))
        share = _Share(self, key, cell, found, stage)
        for own in self._shares(cell):
            left = [i for i in own if (i.prompt, i.seed) not in found]
            if any(map(share.open, _parts(left, batch))):  # else no model need be loaded
                self._draw(edit, left, share, spent)
        if share.busy:
            raise Busy(share.busy[0])
        return found

    def _shares(self, cell: Cell) -> list[list[Item]]:
        """What is to be drawn for a cell, by the cell that it belongs to.

        Cells may share images; these are drawn in the batches of the first of them in the plan, whichever comes first
        here: so batches are the same whatever the order and the number of processes.
        """
        earlier = takewhile(lambda other: other.slug != cell.slug, self.plan.cells)
        seen: set[Pair] = set()
        shares = []
        for one in (*(c for c in earlier if c.images_key == cell.images_key), cell):
            own = [i for i in unique(iter(one.items)) if (i.prompt, i.seed) not in seen]
            seen |= {(i.prompt, i.seed) for i in own}
            shares.append(own)
        return shares

    def _draw(self, edit: EditSpec, left: Sequence[Item], share: _Share, spent: Spent) -> None:
        memory.reset()
        before, started = spent.images.get("peak_bytes", 0), time.perf_counter()
        _add(spent.images, made=0, seconds=0.0)  # others may have made all of it by the time that texts are encoded
        # however this ends, the edit comes off at once and the batch is free for others
        with closing(share), Behind() as behind, closing(self._batches(edit, left, share, spent)) as batches:
            for part, images in batches:
                judged = share.put(part, images, behind)
                now = time.perf_counter()
                _add(spent.images, made=len(part), seconds=now - started - judged)
                if judged:
                    _add(spent.scores, seconds=judged)
                spent.images["peak_bytes"] = max(before, memory.peak())
                started = now

    def _put_images(self, cell: Cell, key: str, part: Sequence[Item], images: Image) -> None:
        """Store a batch as the policy says: its hashes always, and last, for they say that all of it is there."""
        listed = [(i.prompt, i.seed, pixel_hash(image)) for i, image in zip(part, images, strict=True)]
        files = {"items.json": keys.items_json(listed)}
        if self.keep == "all" or self._compared_with(cell):
            files["images.npy"] = npy(images)
        elif self.keep == "sample":
            shown = self._on_grids(cell)
            for i, image in zip(part, images, strict=True):
                if (i.prompt, i.seed) in shown:
                    keeping.put(self.store, key, image)
        shard = keys.shard_name([(i.prompt, i.seed) for i in part])
        self.store.put(keys.IMAGES, key, shard, files=files)

    def _compared_with(self, cell: Cell) -> bool:
        """Whether other cells' images are compared with these one by one: then pixels are kept whatever the policy."""
        assert cell.edit is not None
        return cell.edit.empty and bool(_judges(self.plan, "pair"))

    def _on_grids(self, cell: Cell) -> set[Pair]:
        """Prompts and seeds that grids show of the cells that share this one's images."""
        _, planned = _edit_of(cell)
        if planned not in self._shown:
            alike = [c for c in self.plan.cells if c.images_key == planned]
            self._shown[planned] = {pair for c in alike for pair in on_grid(c.items)}
        return self._shown[planned]

    def _batches(
        self, spec: EditSpec, items: Sequence[Item], share: _Batches, spent: Spent
    ) -> Generator[tuple[list[Item], Image], None, None]:
        edit = self.load_edit(spec)
        if edit.output == "grey":
            yield from grey(items, share.batch, self.plan.form.sampler.size, share.take)
            return
        for own, part in _by_settings(items).items():
            yield from self._drawn(spec, edit, part, *own, share, spent)

    def _drawn(
        self,
        spec: EditSpec,
        edit: Edit,
        items: Sequence[Item],
        guidance: float | None,
        size: tuple[int, int] | None,
        share: _Batches,
        spent: Spent,
    ) -> Generator[tuple[list[Item], Image], None, None]:
        """Images of items of one guidance and size, by default the suite's."""
        from benchmark.edits import apply, in_dtype
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
        changes: AbstractContextManager[Any] = (
            nullcontext() if spec.empty else apply(backbone, in_dtype(edit, backbone))
        )
        try:
            with changes, self._launching(backbone), backbone.counting() as counts:
                try:
                    yield from sample(backbone, items, sampler, share.batch, edit.prompts, share.take)
                finally:
                    _add(spent.images, **{name: n for name, n in asdict(counts).items() if n})
        except BadInput:
            raise
        except BenchError as error:
            self._forget_model()
            raise CellFailed(f"images: {error}") from error

    def load_images(self, key: str, shard: str) -> Image:
        """The images `(n, h, w, 3)` of a shard; made again where their pixels were not kept."""
        kept = keeping.shard(self.store, key, shard)
        if kept is not None:
            return kept
        made = self._made_again(key, pairs := self.pairs(key, shard))
        return np.stack([made[pair] for pair in pairs])

    def picture(self, cell: Cell, pair: Pair, shard: str, row: int) -> Image:
        """One image `(h, w, 3)` of a cell's grid. Where it was not kept, all of the grid are made again at once."""
        key = self.key(cell)
        digest = keys.parse_items(self.store.read(keys.IMAGES, key, shard, file="items.json"))[row]["sha256"]
        kept = keeping.found(self.store, key, shard, row, digest)
        if kept is not None:
            return kept
        if self._again is None or self._again[0] != key or pair not in self._again[1]:
            self._again = key, self._made_again(key, sorted({*on_grid(cell.items), pair}))
        return self._again[1][pair]

    def _made_again(self, key: str, pairs: Sequence[Pair]) -> dict[Pair, Image]:
        """Images whose hashes are stored, by prompt and seed; BenchError if they do not come out as they were."""
        cells = [c for c in self.plan.cells if c.edit is not None and self.key(c) == key]
        if not cells or (edit := cells[0].edit) is None:
            raise keeping.not_kept(f"images {key}")
        known = {(i.prompt, i.seed): i for c in cells for i in c.items}
        wanted = [known.get(pair) or Item("general", "", pair[0], 0, pair[1]) for pair in pairs]
        made: dict[Pair, Image] = {}
        with closing(self._batches(edit, wanted, _Free(self.batch(cells[0])), Spent())) as batches:
            for part, images in batches:
                made |= {(i.prompt, i.seed): image for i, image in zip(part, images, strict=True)}
        hashes = self._hashes_of(key, set(stored(self.store, key).values()))
        if odd := next((pair for pair in pairs if pixel_hash(made[pair]) != hashes[pair]), None):
            raise BenchError(
                f"the image of {odd[0]!r}, seed {odd[1]} was not kept, and does not come out as it was when it is made "
                "again: the device or the libraries are others now; run again with --keep-images all in a new --out"
            )
        return made

    # --- scores -----------------------------------------------------------------------------------------------
    def scores(self, cell: Cell, shards: Mapping[Pair, str], stage: Stage, spent: Spent) -> dict[str, Any]:
        """Rows and summary of a cell, as its record has them, beside the unedited model of the same request."""
        found = self._scores(cell, shards, stage, spent)
        base = self._base_summary(cell, found["summary"])
        # a batch shape of its own is told; else the record has the plan's
        found |= {} if self.batch(cell) == self.plan.batch else {"batch": self.batch(cell)}
        return found if base is None else {**found, "summary": summary.with_unedited(found["summary"], base)}

    def _scores(self, cell: Cell, shards: Mapping[Pair, str], stage: Stage, spent: Spent) -> dict[str, Any]:
        address = (keys.SCORES, self._scores_key(cell))

        def make() -> None:
            memory.reset()
            started = time.perf_counter()
            scored = self._score(cell, shards, stage)
            self.store.put(*address, files={"scores.json": keys.canonical(scored).encode()})
            _add(spent.scores, seconds=time.perf_counter() - started)
            spent.scores["peak_bytes"] = memory.peak()

        self._once(address, make)
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
        against = {"classes": list(cell.request.classes), "unedited": base and self.key(base)}
        return keys.digest(
            {"images": self.key(cell), "items": asked, "protocols": by, "keep": keep, **settings, **against}
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

        def make() -> None:
            rows = [judge.raw(image_folders.pixels(i)[None])["features"] for i in self.reference_images]
            self.store.put(*address, files={RAW: save({"features": np.concatenate(rows)})})

        self._once(address, make)
        features: Array = load(self.store.read(*address, file=RAW))["features"]
        return features.astype(np.float64)

    def raw_rows(self, cell: Cell, judge: Evaluator, shards: Mapping[Pair, str], stage: Stage) -> dict[str, Array]:
        """A judge's raw outputs, one row an item, from the store or computed shard by shard."""
        key = self.key(cell)
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

    def judge_batch(self, cell: Cell, key: str, shard: str, part: Sequence[Item], images: Image) -> None:
        """Raw outputs of all judges of the form, from the images that are in memory."""
        from safetensors.numpy import save

        for name in _judges(self.plan, "image", "set"):
            judge = self.judge(name)
            address = self._raw_address(key, shard, judge)
            if not self.store.has(*address):  # nobody else can be at it: the batch is claimed, and not there yet
                self.store.put(*address, files={RAW: save(_judged(judge, images))})
        if self.keep != "all":
            for name in _judges(self.plan, "pair"):
                self._beside(cell, key, shard, part, images, self.pair_judge(name))

    def _beside(
        self, cell: Cell, key: str, shard: str, part: Sequence[Item], images: Image, judge: PairEvaluator
    ) -> None:
        """Raw outputs of a batch beside the unedited model's images, where those are there with their pixels."""
        from safetensors.numpy import save

        base = self.base(cell)
        if base is None or base is cell:
            return
        address = self._part_address(key, self.key(base), shard, judge)
        theirs = None if self.store.has(*address) else self._unedited(base, part)
        if theirs is not None:
            rows = [judge.pairs(images[i : i + 1], image[None]) for i, image in enumerate(theirs)]
            self.store.put(*address, files={RAW: save(_stacked(rows))})

    def _unedited(self, base: Cell, part: Sequence[Item]) -> list[Image] | None:
        """The unedited model's images of the same prompts and seeds; None unless all are stored with their pixels."""
        key = self.key(base)
        if self._theirs is None or self._theirs[0] != key:
            self._theirs = key, stored(self.store, key)
        shards, found = self._theirs[1], list[Image]()
        for pair in ((i.prompt, i.seed) for i in part):
            pixels = keeping.shard(self.store, key, shards[pair]) if pair in shards else None
            if pixels is None:
                return None
            found.append(pixels[self.pairs(key, shards[pair]).index(pair)])
        return found

    def _part_address(self, mine: str, other: str, shard: str, judge: PairEvaluator) -> tuple[str, str]:
        about = {"images": mine, "against": other, "evaluator": judge.id, "weights": judge.hash}
        return keys.RAW, keys.digest({**about, "shard": shard})

    def _raw_address(self, key: str, shard: str, judge: Evaluator) -> tuple[str, str]:
        return keys.RAW, keys.raw_key(key, shard, evaluator=judge.id, weights=judge.hash)

    def _raw(self, key: str, shard: str, judge: Evaluator) -> dict[str, Array]:
        from safetensors.numpy import load, save

        address = self._raw_address(key, shard, judge)

        def make() -> None:
            self.store.put(*address, files={RAW: save(_judged(judge, self.load_images(key, shard)))})

        self._once(address, make)
        return dict(load(self.store.read(*address, file=RAW)))

    def pair_rows(self, cell: Cell, base: Cell, judge: PairEvaluator, shards: Mapping[Pair, str]) -> dict[str, Array]:
        """A judge's raw outputs of each item's image beside the unedited model's, one row an item."""
        from safetensors.numpy import load, save

        mine, other = self.key(cell), self.key(base)
        about = {"images": mine, "against": other, "evaluator": judge.id, "weights": judge.hash}
        pairs = [(i.prompt, i.seed) for i in cell.items]
        address = (keys.RAW, keys.digest({**about, "pairs": pairs}))

        def make() -> None:
            theirs = self.images(base, _quiet(), Spent())
            known = self._compared(mine, other, set(shards.values()), judge)
            rows = [
                known.get(p) or judge.pairs(self._one(mine, shards[p], p), self._one(other, theirs[p], p))
                for p in pairs
            ]
            self._last.clear()
            self.store.put(*address, files={RAW: save(_stacked(rows))})

        self._once(address, make)
        return dict(load(self.store.read(*address, file=RAW)))

    def _compared(self, mine: str, other: str, shards: set[str], judge: PairEvaluator) -> dict[Pair, dict[str, Array]]:
        """What was computed while the images were in memory: one row a pair."""
        from safetensors.numpy import load

        found: dict[Pair, dict[str, Array]] = {}
        for shard in sorted(shards):
            address = self._part_address(mine, other, shard, judge)
            if self.store.has(*address):
                rows = load(self.store.read(*address, file=RAW))
                for r, pair in enumerate(self.pairs(mine, shard)):
                    found[pair] = {name: values[r : r + 1] for name, values in rows.items()}
        return found

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
        return self._hashes_of(self.key(cell), shards)

    def _hashes_of(self, key: str, shards: set[str]) -> dict[Pair, str]:
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


class _Batches(Protocol):
    """Which batches are made, and how large."""

    batch: int

    def take(self, part: Sequence[Item]) -> bool:
        """Whether to make this batch; asked right before it is made."""


@dataclass
class _Free:
    """All of them: for images that are made again and stored nowhere."""

    batch: int

    def take(self, part: Sequence[Item]) -> bool:
        return True


class _Share:
    """Images of one cell under way: which batches this process makes, and what is found and made so far."""

    def __init__(self, worker: Worker, key: str, cell: Cell, found: dict[Pair, str], stage: Stage) -> None:
        self.worker, self.key, self.found, self.stage = worker, key, found, stage
        self.cell, self.batch = cell, worker.batch(cell)
        self.asked = {(i.prompt, i.seed) for i in cell.items}
        self.busy: list[str] = []
        """Claims of other processes on batches that the cell needs."""
        self._claim: str | None = None

    def open(self, part: Sequence[Item]) -> bool:
        """Whether there may be something to make of this batch; notes what another process is at."""
        if not self.asked & {(i.prompt, i.seed) for i in part}:
            return False
        claim = ".".join(self._address(part))
        if not self.worker.leases.free(claim):
            self.busy.append(claim)
            return False
        return True

    def take(self, part: Sequence[Item]) -> bool:
        """Whether to make this batch: it is needed, and neither there nor another's by now."""
        pairs = [(i.prompt, i.seed) for i in part]
        if not self.asked & set(pairs):
            return False
        address = self._address(part)
        claim = ".".join(address)
        if not self.worker.leases.acquire(claim):
            self.busy.append(claim)
            return False
        self._claim = claim
        if self.worker.store.has(*address):
            self._found(pairs, address[2])
            self.close()
            return False
        return True

    def put(self, part: Sequence[Item], images: Image, behind: Behind) -> float:
        """Have a batch that was taken judged and stored, and give it back, while the next is made; returns the seconds
        that judges kept the next one waiting."""
        started = time.perf_counter()
        # on a CPU judges take the cores that the next batch needs, and threads of its own would end in other bits
        if self.worker.judging and device.kind() == "cpu":
            self._judge(part, images)
        judged = time.perf_counter() - started if self.worker.judging else 0.0
        behind.do(partial(self._store, part, images, self._claim))
        self._claim = None  # it goes with the batch; what was raised until here leaves it to `close`
        self._found([(i.prompt, i.seed) for i in part], self._address(part)[2])
        return judged

    def _judge(self, part: Sequence[Item], images: Image) -> None:
        self.worker.judge_batch(self.cell, self.key, self._address(part)[2], part, images)

    def _store(self, part: Sequence[Item], images: Image, claim: str | None) -> None:
        try:
            if self.worker.judging and device.kind() != "cpu":
                self._judge(part, images)
            self.worker._put_images(self.cell, self.key, part, images)
        finally:
            if claim is not None:
                self.worker.leases.release(claim)

    def close(self) -> None:
        """Give back the batch that was being made."""
        if self._claim is not None:
            self.worker.leases.release(self._claim)
            self._claim = None

    def _address(self, part: Sequence[Item]) -> tuple[str, str, str]:
        return keys.IMAGES, self.key, keys.shard_name([(i.prompt, i.seed) for i in part])

    def _found(self, pairs: Sequence[Pair], shard: str) -> None:
        self.found.update(dict.fromkeys(pairs, shard))
        self.stage.advance(sum(pair in self.asked for pair in pairs))


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
        if base is None:
            raise scoring.no_unedited(evaluator)
        judge = self.worker.pair_judge(evaluator)
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


def _judged(judge: Evaluator, images: Image) -> dict[str, Array]:
    try:
        return scoring.judged(judge, images)
    except scoring.JudgeFailed as error:  # the judge of a plug-in, perhaps: its fault is its cells', not the run's
        raise CellFailed(f"scores: {error}") from error


def _quiet() -> Stage:
    """For work beside a cell's own."""
    return Stage("beside", None, "images", time.monotonic)


def _judges(plan: Plan, *scopes: str) -> list[str]:
    """The evaluators behind a form's protocols of these scopes, each once."""
    asked = [protocols.protocol(name) for name in plan.form.protocols]
    return list(dict.fromkeys(p.evaluator for p in asked if p.scope in scopes))


def _stacked(rows: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def on_grid(items: Sequence[Item]) -> set[Pair]:
    """Prompts and seeds that the image grid of a request shows."""
    from benchmark.tables import grids

    columns = ("role", "concept", "prompt", "seed")
    rows = {name: [getattr(i, name) for i in items] for name in columns}
    return {(c.prompt, c.seed) for c in grids.choose([{"rows": rows}])}


def _out_of_memory(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def _by_settings(items: Sequence[Item]) -> dict[tuple[float | None, tuple[int, int] | None], list[Item]]:
    """Items by guidance and size of their own: a batch has one of each."""
    found: dict[tuple[float | None, tuple[int, int] | None], list[Item]] = {}
    for item in items:
        found.setdefault((item.guidance, item.size), []).append(item)
    return found


def _parts(items: Sequence[Item], batch: int) -> Iterator[list[Item]]:
    """The batches that these items are drawn in."""
    for own in _by_settings(items).values():
        for start in range(0, len(own), batch):
            yield own[start : start + batch]


def _made(
    spec: EditSpec, backbone: Backbone, given: Mapping[str, Edit], kept: StoreJournal
) -> tuple[Edit, dict[str, bytes]]:
    """The edit and its files; raises whatever the method does, and BenchError for what cannot be stored or counted."""
    from dataclasses import replace

    from benchmark import edits

    edit = edits.make(spec.method.instance, backbone, replace(spec.asked(), given=given), spec.strategy, kept)
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


def grey(items: Sequence[Item], batch: int, size: int, wanted: Wanted) -> Iterator[tuple[list[Item], Image]]:
    """Uniformly grey images in batches, `size` pixels a side where a row has no size of its own: the control needs no
    model."""
    for part in _parts(items, batch):
        if wanted(part):
            width, height = part[0].size or (size, size)
            yield part, np.full((len(part), height, width, 3), GREY, np.uint8)


def npy(images: Image) -> bytes:
    """The array in numpy's format, the same bytes for the same array."""
    out = io.BytesIO()
    np.save(out, images, allow_pickle=False)
    return out.getvalue()
