"""The stages of a cell: images depend on prompt and seed alone, the model comes back, a fault stays inside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch

from benchmark import keys, registry
from benchmark.backbones.base import Backbone
from benchmark.interface import Edit, Family, Method, Request
from benchmark.items import Item
from benchmark.plan import Cell, Plan, make_plan
from benchmark.progress import Stage
from benchmark.store import Store
from benchmark.worker import CellFailed, Image, Spent, Worker, pixel_hash

METHODS = ("none", "uce", "esd", "noise", "grey", "blocklist")
SUITE = """\
title: A test
version: 1
source: ours
methods: [none]
forms:
  embedded:
    dataset: testbed
    requests: [{each: [cat], keep: [dog, frog]}]
    prompts:
      erased: {templates: ["a photo of the {concept}"], images: 3}
      kept: {templates: ["a photo of the {concept}"], images: 2}
    sampler: {scheduler: ddim, steps: 3, guidance: 3.0, size: 64}
    batch: 4
    primary: testbed/top1
    protocols: [testbed/top1]
"""
Pixels = dict[tuple[str, int], Image]
Made = Callable[..., Plan]


@dataclass(frozen=True, kw_only=True)
class Faulty(Method):
    """Does what its test tells it."""

    name: ClassVar[str] = "faulty"
    version: ClassVar[int] = 1
    role: ClassVar[Literal["baseline", "erasure", "control"]] = "erasure"
    paper: ClassVar[str] = ""
    families: ClassVar[frozenset[Family]] = frozenset({"unet-epsilon"})
    does: ClassVar[Callable[[Backbone], Edit]]

    def edit(self, backbone: Backbone, request: Request) -> Edit:
        return type(self).does(backbone)


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Plans of the tiny suite; `esd` trains for two iterations, and `faulty` is a method."""
    path = tmp_path / "tiny.yaml"
    path.write_text(SUITE)
    known = registry.method_class
    monkeypatch.setattr(registry, "method_class", lambda name: Faulty if name == "faulty" else known(name))
    monkeypatch.setattr(registry, "presets", lambda: {"testbed": {"esd": {"*": {"iterations": 2, "steps": 3}}}})

    def plan(*methods: str, **options: Any) -> Plan:
        return make_plan(str(path), methods=methods or ("none",), **options)

    return plan


def worker(plan: Plan, folder: Path) -> Worker:
    return Worker(plan, Store(folder), threads=1, say=lambda line: None)


def stage() -> Stage:
    return Stage("", None, "images", lambda: 0.0)


def images(of: Worker, cell: Cell, items: Iterable[Item] | None = None) -> Pixels:
    """A cell's images as the worker makes them, or finds them, in the order of these items."""
    cell = cell if items is None else replace(cell, items=tuple(items))
    assert cell.edit is not None and cell.images_key is not None
    of.edit(cell.edit, Spent())
    shards = of.images(cell, stage(), Spent())
    found: Pixels = {}
    for shard in set(shards.values()):
        pixels = of.load_images(cell.images_key, shard)
        found |= dict(zip(of.pairs(cell.images_key, shard), pixels, strict=True))
    return found


def hashes(found: Mapping[tuple[str, int], Image]) -> dict[tuple[str, int], str]:
    return {pair: pixel_hash(image) for pair, image in found.items()}


def test_images_are_the_same_in_other_batches_in_another_order_and_after_other_methods(planned: Made, tmp_path: Path):
    plan = planned(*METHODS)
    base = plan.cells[0]
    expected = hashes(images(worker(plan, tmp_path / "a"), base))
    assert len(set(expected.values())) == len(base.items)
    busy = worker(plan, tmp_path / "b")
    for cell in plan.cells[1:]:
        images(busy, cell)
    assert hashes(images(busy, base, base.items[::-1])) == expected
    alone = worker(plan, tmp_path / "c")
    for item in base.items[1:]:  # each alone in a padded batch, then the rest with the last that is left
        images(alone, base, [item])
    assert hashes(images(alone, base)) == expected


def test_at_another_batch_size_few_values_move_and_by_one_level(planned: Made, tmp_path: Path):
    plan, other = planned("none"), planned("none", batch=3)
    assert plan.cells[0].images_key != other.cells[0].images_key, "never mixed"
    a, b = (images(worker(p, tmp_path / str(p.batch)), p.cells[0]) for p in (plan, other))
    assert a.keys() == b.keys()
    moved = np.stack([np.abs(a[pair].astype(int) - b[pair].astype(int)) for pair in a])
    assert moved.max() <= 1 and (moved > 0).mean() < 1e-3


def test_the_model_is_the_same_bits_after_every_method(planned: Made, tmp_path: Path):
    plan = planned(*METHODS)
    busy = worker(plan, tmp_path)
    before = {name: tensor.clone() for name, tensor in busy.backbone.tensors().items()}
    loaded = busy.backbone
    for cell in plan.cells:
        made = images(busy, cell)
        assert len(made) == len(cell.items)
        after = busy.backbone.tensors()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before), cell.method.label
    assert busy.backbone is loaded


def test_a_stopped_batch_takes_the_edit_off(planned: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan = planned("none", "uce")
    busy = worker(plan, tmp_path)
    before = {name: tensor.clone() for name, tensor in busy.backbone.tensors().items()}

    def stopped(*_: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(busy, "_put_images", stopped)
    with pytest.raises(KeyboardInterrupt) as caught:
        images(busy, plan.cells[1])
    assert caught.tb is not None, "the frames are alive, and yet:"
    assert all(torch.equal(before[name], tensor) for name, tensor in busy.backbone.tensors().items())


def _raises(backbone: Backbone) -> Edit:
    raise ValueError("no such\nthing")


def _leaves(backbone: Backbone) -> Edit:
    raise SystemExit(0)


def _breaks_the_model(backbone: Backbone) -> Edit:
    with torch.no_grad():
        backbone.projections()[0].weight.zero_()
    raise ValueError("halfway")


def _changes_the_model(backbone: Backbone) -> Edit:
    with torch.no_grad():
        backbone.projections()[0].weight.zero_()
    return Edit(weights={backbone.projections()[1].name: backbone.projections()[1].weight * 0.5})


def _nan(backbone: Backbone) -> Edit:
    return Edit(weights={p.name: p.weight * float("nan") for p in backbone.projections()})


def _base(backbone: Backbone) -> Edit:
    return Edit(weights={p.name: p.weight.clone() for p in backbone.projections()})


def _noted(notes: Mapping[str, Any]) -> Callable[[Backbone], Edit]:
    return lambda backbone: Edit(weights={p.name: p.weight * 0.5 for p in backbone.projections()}, notes=notes)


FAULTS = {
    "raises": (_raises, "edit: ValueError: no such"),
    "exits": (_leaves, "edit: SystemExit"),
    "breaks the model": (_breaks_the_model, "edit: ValueError: halfway"),
    "changes the model": (_changes_the_model, "edit: faulty must leave the model as it found it"),
    "nan": (_nan, "not finite"),
    "base": (_base, "nothing is erased"),
    "empty": (lambda backbone: Edit(), "the edit is empty"),
    "nothing": (lambda backbone: None, "edit: AttributeError"),
    "a path in its notes": (_noted({"log": [{"at": "/tmp/x"}]}), "absolute path"),
    "nan in its notes": (_noted({"loss": float("nan")}), "edit: ValueError"),
    "no JSON in its notes": (_noted({"device": torch.device("cpu")}), "edit: TypeError"),
}


@pytest.mark.quick("raises", "exits", "changes the model", "nan", "nothing", "a path in its notes")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_method_is_its_cells_alone(
    fault: str, planned: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    does, reason = FAULTS[fault]
    monkeypatch.setattr(Faulty, "does", staticmethod(does), raising=False)
    plan = planned("faulty", "none", model="random-unet")
    busy = worker(plan, tmp_path)
    base, faulty = plan.cells
    expected = hashes(images(busy, base, base.items[:1]))
    with pytest.raises(CellFailed, match=reason):
        images(busy, faulty)
    assert faulty.edit is not None and not busy.store.has(keys.EDITS, faulty.edit.key), "tried again next time"
    left = hashes(images(busy, base))
    other = hashes(images(worker(plan, tmp_path / "other"), base))
    assert left == other and expected.items() <= other.items(), "what the method left in the model is gone"


def test_an_edit_that_others_need_is_tried_once_and_named(
    planned: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tries: list[int] = []

    def does(backbone: Backbone) -> Edit:
        tries.append(1)
        raise ValueError("no")

    monkeypatch.setattr(Faulty, "does", staticmethod(does), raising=False)
    plan = planned("faulty", "noise", model="random-unet", passed={"noise": {"like": "faulty"}})
    busy = worker(plan, tmp_path)
    reasons = ("^edit: ValueError: no$", "^needs faulty: edit: ValueError: no$")
    for cell, reason in zip(plan.cells, reasons, strict=True):
        with pytest.raises(CellFailed, match=reason):
            images(busy, cell)
    assert len(tries) == 1


def test_costs_are_no_part_of_an_edit(planned: Made, tmp_path: Path):
    """They differ between runs, and so would the edit's manifest."""
    plan = planned("uce", model="random-unet")
    made = []
    for name in "ab":
        images(worker(plan, tmp_path / name), plan.cells[0])
        made.append({p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.*")})
    a, b = ({path: made for path, made in files.items() if path.parts[0] != "costs"} for files in made)
    assert a == b and "cost.json" not in {path.name for path in a}
    assert [path.name for path in made[0] if path.parts[0] == "costs"].count("cost.json") == 1
