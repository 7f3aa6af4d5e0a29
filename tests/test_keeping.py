"""Which pixels are kept changes no record; what was not kept is made again; what does not fit is halved; and a run's
memory does not grow with its images. The model is a toy of a few tensors, the judge looks at colours."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from benchmark import cli, device, keeping, keys, memory, record, registry, rescore, verify, worker
from benchmark.backbones._shared import Meter
from benchmark.backbones.base import Backbone, Change, Counts, Embedding, Layer, Projection
from benchmark.backbones.kernels import Launch
from benchmark.behind import Behind
from benchmark.errors import BadInput, Missing
from benchmark.interface import Edit, Family, Method, Request
from benchmark.items import Item
from benchmark.leases import Leases
from benchmark.metrics import evaluators
from benchmark.metrics.evaluators import Array, Evaluator, PairEvaluator
from benchmark.page.images import Images
from benchmark.plan import Cell, Plan, make_plan
from benchmark.progress import Stage
from benchmark.store import Store
from benchmark.worker import CellFailed, Spent, Worker, on_grid

SIDE = 16
SUITE = """\
title: A test
version: 1
source: ours
methods: [none]
forms:
  embedded:
    dataset: testbed
    requests: [{{each: [cat], keep: [dog, frog]}}]
    prompts:
      erased: {{templates: ["a photo of the {{concept}}"], images: {images}}}
      kept: {{templates: ["a photo of the {{concept}}"], images: 3}}
    sampler: {{scheduler: ddim, steps: 3, guidance: 3.0, size: 16}}
    batch: {batch}
    primary: testbed/top1
    protocols: [testbed/top1{more}]
"""


# --- a toy model and a toy judge --------------------------------------------------------------------------------------
@final
class Toy(Backbone):
    """Latents are images; a prompt is a colour that noise is drawn to, and one tensor says how far."""

    name, family = "toy", "unet-epsilon"
    device, dtype = torch.device("cpu"), torch.float32
    latent_shape, image_size = (3, SIDE, SIDE), (SIDE, SIDE)
    fits: int | None = None
    """Samples at once that its memory holds."""

    def __init__(self) -> None:
        self.weight = torch.full((1, 3), 0.5)
        self.batches: list[int] = []
        self._meter = Meter()

    def embed(self, prompts: Sequence[str]) -> Embedding:
        self._meter.text(len(prompts))
        colours = [[b / 255 for b in hashlib.sha256(p.encode()).digest()[:3]] for p in prompts]
        n = len(prompts)
        return Embedding(torch.tensor(colours)[:, None], None, torch.zeros(n, 1), torch.zeros(n))

    def noise(self, seeds: Sequence[int]) -> Tensor:
        self.batches.append(len(seeds))
        draws = [torch.randn(self.latent_shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(draws)

    def timesteps(self, steps: int) -> Tensor:
        return torch.arange(steps, 0, -1)

    def predict(self, x: Tensor, t: Tensor, text: Embedding) -> Tensor:
        if self.fits is not None and len(x) > 2 * self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._meter.denoiser(x - (self.weight * text.tokens[:, 0])[:, :, None, None])

    def step(self, x: Tensor, index: int, prediction: Tensor, steps: int) -> Tensor:
        return x - prediction / (steps - index + 1)

    def decode(self, latents: Tensor) -> Tensor:
        self._meter.decoded(len(latents))
        return latents.clamp(0, 1)

    def tensors(self) -> Mapping[str, Tensor]:
        return {"unet.weight": self.weight}

    def counting(self) -> AbstractContextManager[Counts]:
        return self._meter.counting()

    def remembering(self) -> AbstractContextManager[None]:
        return nullcontext()

    def of_size(self, size: tuple[int, int]) -> Backbone:
        raise BadInput("one size")

    def use(self, launch: Launch) -> None:
        assert launch == "eager"

    @property
    def refused(self) -> str | None:
        return None

    # what sampling does not ask for
    def span(self, prompt: str, phrase: str) -> range:
        raise NotImplementedError

    def clean(self, x: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        raise NotImplementedError

    def noisy(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        raise NotImplementedError

    def encode(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def attention_layers(self) -> list[str]:
        return []

    def at_guidance(self, guidance: float) -> Backbone:
        return self

    def projections(self) -> list[Projection]:
        return []

    def layers(self) -> list[Layer]:
        return []

    def student(self, names: Collection[str] | None = None) -> Backbone:
        raise NotImplementedError

    def substituted(self, tensors: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        raise NotImplementedError

    def attached(self, changes: Mapping[str, Change]) -> AbstractContextManager[None]:
        raise NotImplementedError

    def attention_maps(self) -> AbstractContextManager[list[Tensor]]:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Tinting(Method):
    """An erasure: another weight."""

    name: ClassVar[str] = "tinting"
    version: ClassVar[int] = 1
    role: ClassVar[Literal["baseline", "erasure", "control"]] = "erasure"
    paper: ClassVar[str] = ""
    families: ClassVar[frozenset[Family]] = frozenset({"unet-epsilon"})

    def edit(self, backbone: Backbone, request: Request) -> Edit:
        return Edit(weights={"unet.weight": torch.full((1, 3), -0.5)})


class Colours(Evaluator):
    """The mean colour says what it is."""

    id, hash = "testbed-a", "c0"
    classes = {"object": ("cat", "dog", "frog"), "style": ("photo",)}
    seen = 0

    def raw(self, images: np.ndarray) -> dict[str, Array]:
        type(self).seen += len(images)
        mean = images.reshape(len(images), -1, 3).mean(1).astype(np.float32)
        return {"object": mean, "style": mean[:, :1], "blank": np.zeros(len(images), np.uint8)}


class Another(Colours):
    """A judge that has not seen the images."""

    id = "testbed-b"


class Apart(PairEvaluator):
    """Mean distance of the pixels."""

    id, hash = "lpips-alex", "d0"
    loaded = 0

    def pairs(self, images: np.ndarray, unedited: np.ndarray) -> dict[str, Array]:
        far = np.abs(images.astype(np.float32) - unedited).reshape(len(images), -1).mean(1)
        return {"lpips": far, "blank": np.zeros(len(images), np.uint8)}


Planned = Callable[..., Plan]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    model, known = Toy(), registry.method_class
    monkeypatch.setattr(worker.Worker, "_loaded", lambda *_, **__: model)
    monkeypatch.setattr(registry, "method_class", lambda name: Tinting if name == "tinting" else known(name))
    monkeypatch.setattr(evaluators, "load", lambda name, *_: Colours())
    monkeypatch.setattr(evaluators, "weights_hash", lambda name, *_, **__: "c0")
    monkeypatch.setattr(record, "_commit", lambda: (None, None))

    def pair(name: str) -> Apart:
        Apart.loaded += 1
        return Apart()

    monkeypatch.setattr(evaluators, "load_pair", pair)
    return model


@pytest.fixture
def planned(toy: Toy, tmp_path: Path) -> Planned:
    def plan(*methods: str, images: int = 5, batch: int = 4, more: str = "", **options: Any) -> Plan:
        path = tmp_path / "tiny.yaml"
        path.write_text(SUITE.format(images=images, batch=batch, more=more))
        return make_plan(str(path), model="random-unet", methods=methods or ("none", "tinting"), **options)

    return plan


def made(plan: Plan, folder: Path, keep: str = "all", judging: bool = True) -> Worker:
    return Worker(plan, Store(folder), threads=1, say=lambda line: None, keep=keeping.policy(keep), judging=judging)


def stage() -> Stage:
    return Stage("", None, "images", lambda: 0.0)


def scored(of: Worker, cell: Cell) -> dict[str, Any]:
    assert cell.edit is not None
    of.edit(cell.edit, Spent())
    return of.scores(cell, of.images(cell, stage(), Spent()), stage(), Spent())


def files(folder: Path, part: str) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted((folder / part).rglob("*.*"))}


def kept_alone(folder: Path) -> set[str]:
    return {p.parent.name for p in (folder / "pixels").rglob("*.webp")}


# --- policies ---------------------------------------------------------------------------------------------------------
def test_pixels_survive_lossless_webp():
    draw = np.random.default_rng(0)
    for shape in ((1, 1, 3), (16, 16, 3), (33, 7, 3)):
        for image in (draw.integers(0, 256, shape, np.uint8), np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8)):
            assert np.array_equal(keeping.decode(keeping.encode(image)), image)
            assert keeping.encode(image) == keeping.encode(image.copy())


@pytest.mark.parametrize("keep", ["sample", "none"])
def test_what_is_kept_changes_no_score_and_no_raw_output(planned: Planned, toy: Toy, tmp_path: Path, keep: str):
    plan = planned()
    whole, less = made(plan, tmp_path / "all"), made(plan, tmp_path / keep, keep)
    for cell in plan.cells:
        assert scored(less, cell) == scored(whole, cell)
    for part in ("raw", "scores", "edits"):
        assert files(tmp_path / keep, part) == files(tmp_path / "all", part)
    there, here = (files(tmp_path / folder, "images") for folder in ("all", keep))
    assert {n: b for n, b in there.items() if n.endswith("items.json")} == {
        n: b for n, b in here.items() if n.endswith("items.json")
    }
    assert any(n.endswith("images.npy") for n in there) and not any(n.endswith("images.npy") for n in here)
    shown = {keys.pixel_hash(_of(whole, c, p))[: keys.LENGTH] for c in plan.cells for p in on_grid(c.items)}
    assert kept_alone(tmp_path / keep) == (shown if keep == "sample" else set())
    assert 0 < len(shown) < sum(len(c.items) for c in plan.cells)


def _of(of: Worker, cell: Cell, pair: tuple[str, int]) -> Any:
    shards = of.images(cell, stage(), Spent())
    return of.picture(cell, pair, shards[pair], of.pairs(of.key(cell), shards[pair]).index(pair))


def test_raw_outputs_made_in_memory_are_those_made_from_the_store(planned: Planned, tmp_path: Path):
    plan = planned()
    for judging in (True, False):
        for cell in plan.cells:
            scored(made(plan, tmp_path / str(judging), judging=judging), cell)
    assert files(tmp_path / "True", "raw") == files(tmp_path / "False", "raw") != {}


def test_judges_see_each_image_once_and_in_memory(planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan = planned()
    of = made(plan, tmp_path, "none")
    monkeypatch.setattr(of, "load_images", lambda *_: pytest.fail("read back"))
    monkeypatch.setattr(Colours, "seen", 0)
    for cell in plan.cells:
        scored(of, cell)
    assert Colours.seen == sum(len({(i.prompt, i.seed) for i in c.items}) for c in plan.cells)


def test_an_image_that_was_not_kept_is_made_again_with_the_grids_others(planned: Planned, toy: Toy, tmp_path: Path):
    plan = planned()
    whole, less = made(plan, tmp_path / "all"), made(plan, tmp_path / "none", "none")
    for cell in plan.cells:
        scored(whole, cell), scored(less, cell)
    cell = plan.cells[1]
    pairs = sorted(on_grid(cell.items))
    expected = [_of(whole, cell, p) for p in pairs]
    toy.batches.clear()
    assert all(np.array_equal(_of(less, cell, p), image) for p, image in zip(pairs, expected, strict=True))
    assert toy.batches == [plan.batch] * -(-len(pairs) // plan.batch), "once for all of the grid"
    assert torch.equal(toy.weight, torch.full((1, 3), 0.5)), "and the edit is off"
    shards = less.images(cell, stage(), Spent())
    for shard in set(shards.values()):
        assert np.array_equal(less.load_images(less.key(cell), shard), whole.load_images(whole.key(cell), shard))


def test_images_that_do_not_come_out_as_they_were_are_refused(planned: Planned, toy: Toy, tmp_path: Path):
    plan = planned("none")
    of = made(plan, tmp_path, "none")
    scored(of, plan.cells[0])
    toy.weight.fill_(0.7)  # another device, say
    with pytest.raises(Exception, match="does not come out as it was"):
        _of(of, plan.cells[0], sorted(on_grid(plan.cells[0].items))[0])


def test_all_adds_the_pixels_that_an_earlier_run_did_not_keep(planned: Planned, toy: Toy, tmp_path: Path):
    plan = planned()
    for keep in ("none", "sample", "all", "all"):
        of = made(plan, tmp_path, keep)
        toy.batches.clear()
        for cell in plan.cells:
            scored(of, cell)
    assert toy.batches == [], "and nothing once they are there"
    assert len(kept_alone(tmp_path)) == sum(len({(i.prompt, i.seed) for i in c.items}) for c in plan.cells)
    whole = made(plan, tmp_path / "other")
    for cell in plan.cells:
        scored(whole, cell)
        shards = whole.images(cell, stage(), Spent())
        for shard in set(shards.values()):
            assert np.array_equal(of.load_images(of.key(cell), shard), whole.load_images(whole.key(cell), shard))


def test_pairs_are_compared_in_memory_and_one_judge_is_loaded(planned: Planned, toy: Toy, tmp_path: Path):
    plan = planned("none", "tinting", more=", lpips-alex")
    whole, less = made(plan, tmp_path / "all"), made(plan, tmp_path / "none", "none")
    expected = [scored(whole, c) for c in plan.cells]
    Apart.loaded = 0
    toy.batches.clear()
    assert [scored(less, c) for c in plan.cells] == expected
    images = sum(len({(i.prompt, i.seed) for i in c.items}) for c in plan.cells)
    assert sum(toy.batches) <= images + plan.batch * len(plan.cells), "none is made twice"
    assert Apart.loaded == 1
    assert any("images.npy" in name for name in files(tmp_path / "none", "images")), "the unedited ones are needed"
    assert files(tmp_path / "none", "scores") == files(tmp_path / "all", "scores")


# --- a run ------------------------------------------------------------------------------------------------------------
def call(folder: Path, out: Path, *arguments: str, code: int = 0) -> Result:
    suite = folder / "run.yaml"
    suite.write_text(SUITE.format(images=5, batch=4, more=""))
    given = ["run", str(suite), "--out", str(out), "--model", "random-unet", "--methods", "none,tinting", "--quiet"]
    result = CliRunner().invoke(cli.app, [*given, *arguments])
    assert result.exit_code == code, result.output
    return result


def public(out: Path) -> dict[str, bytes]:
    found = [p for part in ("board.*", "records/*", "grids/*", "SHA256SUMS") for p in out.glob(part)]
    return {str(p.relative_to(out)): p.read_bytes() for p in found}


def test_records_boards_and_grids_are_the_same_whatever_is_kept(toy: Toy, tmp_path: Path):
    call(tmp_path, tmp_path / "all")
    expected = public(tmp_path / "all")
    assert any(n.startswith("grids/") for n in expected) and "board.json" in expected
    for keep in ("sample", "none"):
        out = tmp_path / keep
        call(tmp_path, out, "--keep-images", keep)
        assert public(out) == expected
        toy.batches.clear()
        call(tmp_path, out, "--keep-images", keep)
        again = sum(len(on_grid(c.items)) > 0 for c in make_plan(str(tmp_path / "run.yaml"), model="random-unet").cells)
        assert bool(toy.batches) == (keep == "none" and again > 0), "only what grids show is made again"
        assert public(out) == expected
        assert verify.verify(out) == []
        images = sum(len(set(json.loads(p.read_bytes())["rows"]["image"])) for p in (out / "records").glob("*.json"))
        assert verify.unkept(out / "store") == images - len(kept_alone(out / "store"))
    assert verify.unkept(tmp_path / "all" / "store") == 0
    told = CliRunner().invoke(cli.app, ["verify", str(tmp_path / "none"), "--hashes"])
    assert told.exit_code == 0 and "the pixels were not kept, but hashes and raw outputs" in told.output


def test_a_pixel_that_was_changed_is_found(toy: Toy, tmp_path: Path):
    out = tmp_path / "out"
    call(tmp_path, out, "--keep-images", "sample")
    (first, *_) = sorted((out / "store" / "pixels").rglob("*.webp"))
    other = keeping.encode(np.zeros((SIDE, SIDE, 3), np.uint8))
    first.write_bytes(other)
    manifest = json.loads((first.parent / "manifest.json").read_bytes())
    entry = {"sha256": hashlib.sha256(other).hexdigest(), "bytes": len(other)}
    manifest["files"][keeping.FILE] = entry
    (first.parent / "manifest.json").write_text(json.dumps(manifest))
    assert any("not the image that it is named after" in line for line in verify.verify(out))


def test_a_new_judge_says_what_to_do_where_pixels_were_not_kept(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "none"
    call(tmp_path, out, "--keep-images", "none")
    monkeypatch.setattr(evaluators, "load", lambda name, *_: Another() if name == "testbed-b" else Colours())
    with pytest.raises(Missing, match="pixels were not kept; run the same command with --keep-images all"):
        rescore.rescore(out, ["testbed-b/top1"], say=lambda line: None)
    assert rescore.rescore(out, ["testbed/top1"], out=tmp_path / "again", say=lambda line: None).is_dir()


def test_pages_show_what_was_kept_and_count_the_rest(toy: Toy, tmp_path: Path):
    out = tmp_path / "sample"
    call(tmp_path, out, "--keep-images", "sample")
    images = Images(Store(out / "store", readonly=True), say=lambda line: None)
    alone = kept_alone(out / "store")
    shown = [digest for digest in images.places if images.load(digest) is not None]
    assert {digest[: keys.LENGTH] for digest in shown} == alone and len(shown) < len(images.places)
    assert all(keys.pixel_hash(found) == d for d in shown if (found := images.load(d)) is not None)


def test_a_policy_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(BadInput, match="expected one of all, sample, none, got 'some'"):
        keeping.policy("some")


# --- memory -----------------------------------------------------------------------------------------------------------
def test_what_does_not_fit_is_made_anew_at_half_the_batch(planned: Planned, toy: Toy, tmp_path: Path):
    plan, small = planned(batch=8), planned(batch=2)
    expected = [scored(made(small, tmp_path / "small"), c) for c in small.cells]
    toy.fits, said = 3, list[str]()
    of = made(plan, tmp_path / "store")
    of.say = said.append
    toy.batches.clear()
    found = [scored(of, c) for c in plan.cells]
    assert [f["batch"] for f in found] == [2, 2] and [of.batch(c) for c in plan.cells] == [2, 2]
    for a, b, cell, alike in zip(found, expected, plan.cells, small.cells, strict=True):
        assert a["rows"] == b["rows"] and a["summary"] == b["summary"], "one shape for the whole cell"
        assert of.key(cell) == alike.images_key, "found by a run at that batch"
    assert toy.batches.count(8) == 1 and toy.batches.count(4) == 1, "the second cell does not try again"
    assert sum("do not fit into memory" in line for line in said) == 2
    toy.batches.clear()
    later = made(plan, tmp_path / "store")
    assert [scored(later, c) for c in plan.cells] == found
    assert toy.batches == [], "nor does a later run, which finds all there"


def test_a_cell_that_was_begun_at_another_shape_is_one_shape_in_the_end(planned: Planned, toy: Toy, tmp_path: Path):
    plan = planned("none", batch=8)
    cell = plan.cells[0]
    begun = replace(cell, items=cell.items[:8])
    made(plan, tmp_path).images(begun, stage(), Spent())
    toy.fits = 4
    of, shown = made(plan, tmp_path), stage()
    shards = of.images(cell, shown, Spent())
    assert of.batch(cell) == 4 and shown.done == len(cell.items)
    assert {len(of.pairs(of.key(cell), s)) for s in set(shards.values())} <= {4, len(cell.items) % 4}


def test_where_not_even_one_image_fits_the_cell_fails(planned: Planned, toy: Toy, tmp_path: Path):
    toy.fits = 0
    plan = planned("none", batch=2)
    with pytest.raises(CellFailed, match="not even one image at a time"):
        made(plan, tmp_path).images(plan.cells[0], stage(), Spent())


def test_a_record_tells_the_batch_that_it_was_made_at(toy: Toy, tmp_path: Path):
    toy.fits = 2
    call(tmp_path, tmp_path / "out")
    records = [json.loads(p.read_bytes()) for p in (tmp_path / "out" / "records").glob("*.json")]
    assert {r["batch"] for r in records} == {2} and {r["status"] for r in records} == {"ok"}
    toy.batches.clear()
    before = public(tmp_path / "out")
    call(tmp_path, tmp_path / "out")
    assert toy.batches == [] and public(tmp_path / "out") == before


def test_memory_does_not_grow_with_the_number_of_images(
    planned: Planned, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """20,000 images against 2,000, from sampling to scores: 15 MB of pixels each 20,000 of which would be seen."""
    monkeypatch.setattr("os.fsync", lambda handle: None)
    monkeypatch.setattr(Toy, "decode", lambda self, x: x.clamp(0, 1).repeat(1, 1, 4, 4))
    monkeypatch.setattr(Toy, "image_size", (4 * SIDE, 4 * SIDE))
    peaks = {}
    for images in (2_000, 20_000):
        plan = planned("none", images=images, batch=250)
        plan = replace(plan, form=plan.form.model_copy(update={"sampler": _sized(plan)}))
        of = made(plan, tmp_path / str(images), "none")
        of.edit(plan.cells[0].edit, Spent())  # type: ignore[arg-type]
        memory.reset()
        found = scored(of, plan.cells[0])
        peaks[images] = memory.peak()
        assert len(found["rows"]["image"]) == images + 6
    held = 18_000 * 3 * (4 * SIDE) ** 2
    assert peaks[20_000] - peaks[2_000] < 0.5 * held, "images that are held, if only half of them, would be seen"
    assert peaks[20_000] <= 1.1 * peaks[2_000], peaks


def _sized(plan: Plan) -> Any:
    return plan.form.sampler.model_copy(update={"size": 4 * SIDE})


# --- behind -----------------------------------------------------------------------------------------------------------
def test_what_is_done_behind_is_done_in_order_and_one_at_a_time():
    done: list[int] = []
    with Behind() as behind:
        for i in range(50):
            behind.do(lambda i=i: done.append(i))  # type: ignore[misc]
            assert len(done) >= i, "at most one is waiting"
    assert done == list(range(50))


def test_what_fails_behind_is_raised_here_at_the_next_or_at_the_end():
    def fails() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), Behind() as behind:
        behind.do(fails)
        behind.do(lambda: pytest.fail("not after a failure"))
    with pytest.raises(OSError, match="disk full"), Behind() as behind:
        behind.do(fails)
    with pytest.raises(KeyError, match="mine"), Behind() as behind:
        behind.do(fails)
        raise KeyError("mine")


def test_a_batch_that_cannot_be_stored_fails_the_stage(
    planned: Planned, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plan = planned("none")
    of = made(plan, tmp_path)
    known = Store.put

    def full(self: Store, *address: str, files: Mapping[str, bytes]) -> None:
        if address[0] == keys.IMAGES:
            raise BadInput("no space left")
        known(self, *address, files=files)

    monkeypatch.setattr(Store, "put", full)
    with pytest.raises(BadInput, match="no space left"):
        of.images(plan.cells[0], stage(), Spent())
    monkeypatch.setattr(Store, "put", known)
    assert len(of.images(plan.cells[0], stage(), Spent())) == len({(i.prompt, i.seed) for i in plan.cells[0].items})
    assert of.leases.free("anything") and not list((tmp_path / "leases").glob("*")), "no claim is left"
    assert device.kind() == "cpu" and isinstance(plan.cells[0].items[0], Item)


def test_a_claims_folder_that_goes_in_between_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The thread that stores gives its claim back, and the empty folder goes, while the next batch is claimed."""
    known, tries = Path.mkdir, list[Path]()

    def gone(self: Path, *given: Any, **options: Any) -> None:
        tries.append(self)
        if len(tries) == 1:
            raise FileExistsError(17, "File exists", str(self))
        known(self, *given, **options)

    monkeypatch.setattr(Path, "mkdir", gone)
    leases = Leases(tmp_path / "leases")
    assert leases.acquire("work") and len(tries) > 1
    leases.release("work")
