"""What a run is made with: chosen from the device and its length, kept out of CPU keys and records, told on a GPU."""

from __future__ import annotations

from typing import Any

import pytest

from benchmark import device, keys, plan, speed
from benchmark.speed import COMPILE_IMAGES, GRAPH_FORWARDS, Speed, choose

LONG: dict[str, Any] = {
    "kind": "cuda",
    "family": "unet-epsilon",
    "images": COMPILE_IMAGES,
    "forwards": 10_000,
    "capability": (9, 0),
    "compiler": None,
}


def test_a_cpu_keeps_its_bits_whatever_the_length():
    for dtype in (None, "float32"):
        made = choose(**{**LONG, "kind": "cpu", "dtype": dtype})
        assert (made.dtype, made.edits, made.launch) == ("float32", "float32", "eager")
        assert made.keyed() == {} and made.told() == {}


@pytest.mark.parametrize(
    ("change", "launch", "why"),
    [
        ({}, "compile", "2000 images of one shape"),
        ({"forwards": GRAPH_FORWARDS - 1}, "eager", "recording a graph pays from 200"),
        ({"images": COMPILE_IMAGES - 1}, "graph", "here are 1999"),
        ({"compiler": "no C compiler is found"}, "graph", "but no C compiler is found"),
        ({"family": "transformer-flow"}, "graph", "methods train the same model"),
        ({"dtype": "float32"}, "graph", "methods train the same model"),
        ({"capability": (7, 5)}, "graph", "methods train the same model"),
    ],
)
def test_launching_is_chosen_by_length_and_by_what_is_here(change: dict[str, Any], launch: str, why: str):
    made = choose(**{**LONG, **change})
    assert made.launch == launch and why in made.why
    assert made.told()["launch"] == launch and why in made.told()["launch_why"]
    assert made.keyed() == ({"launch": "compile"} if launch == "compile" else {}), "graphs give the same bits"


@pytest.mark.parametrize(
    ("change", "images", "edits"),
    [
        ({}, "bfloat16", "float32"),
        ({"capability": (8, 0)}, "bfloat16", "float32"),
        ({"capability": (7, 5)}, "float32", "float32"),
        ({"capability": None}, "float32", "float32"),
        ({"family": "transformer-flow"}, "bfloat16", "bfloat16"),
        ({"dtype": "float16"}, "float16", "float16"),
    ],
)
def test_half_precision_only_where_the_device_has_it(change: dict[str, Any], images: str, edits: str):
    made = choose(**{**LONG, **change})
    assert (made.dtype, made.edits) == (images, edits)
    assert made.told()["edits_dtype"] == edits


def test_the_weakest_card_decides(monkeypatch: pytest.MonkeyPatch):
    assert speed.least("9.0\n7.5\n") == (7, 5)
    assert speed.least("10.0\n9.0") == (9, 0)
    assert speed.least("") is speed.least("Failed to initialize NVML") is None


def planned(monkeypatch: pytest.MonkeyPatch, **made: Any) -> plan.Plan:
    monkeypatch.setattr(device, "kind", lambda: "cuda")
    monkeypatch.setattr(speed, "capability", lambda: (9, 0))
    monkeypatch.setattr(speed, "compiler", lambda: None)
    return plan.make_plan("smoke", methods=("none", "uce"), **made)


def test_a_plan_chooses_once_for_all_its_cells(monkeypatch: pytest.MonkeyPatch):
    on_cpu = plan.make_plan("smoke", methods=("none", "uce"))
    assert on_cpu.speed == Speed(kind="cpu", why=on_cpu.speed.why)
    there = planned(monkeypatch)
    assert there.dtype == there.speed.dtype == "bfloat16" and there.speed.edits == "float32"
    monkeypatch.setattr(speed, "COMPILE_IMAGES", 1)
    monkeypatch.setattr(speed, "GRAPH_FORWARDS", 1)
    compiled = planned(monkeypatch)
    assert compiled.speed.launch == "compile"
    for a, b in zip(there.cells, compiled.cells, strict=True):
        assert a.images_key != b.images_key, "compiled blocks round otherwise: never mixed"
        assert a.edit and b.edit and a.edit.key == b.edit.key, "edits are made without them"


def test_the_length_is_the_plans_not_what_is_left(monkeypatch: pytest.MonkeyPatch):
    """Images of one shape, those of the unedited model once: from this a resumed or sharded run chooses the same."""
    seen: list[dict[str, Any]] = []
    known = speed.choose

    def told(**given: Any) -> Speed:
        seen.append(given)
        return known(**given)

    monkeypatch.setattr(speed, "choose", told)
    there = planned(monkeypatch)
    base, uce = ([c for c in there.cells if c.method.label == m] for m in ("none", "uce"))
    distinct = {(i.prompt, i.seed) for c in base for i in c.items}
    images = len(distinct) + sum(len({(i.prompt, i.seed) for i in c.items}) for c in uce)
    assert seen[0]["images"] == images
    assert seen[0]["forwards"] == -(-images // there.batch) * there.form.sampler.steps


def test_images_at_another_batch_have_the_key_of_a_run_at_that_batch():
    whole = plan.make_plan("smoke", methods=("none", "uce"))
    half = plan.make_plan("smoke", methods=("none", "uce"), batch=whole.batch // 2)
    for a, b in zip(whole.cells, half.cells, strict=True):
        assert whole.images_key(a, whole.batch) == a.images_key
        assert whole.images_key(a, half.batch) == b.images_key != a.images_key


def test_keys_on_a_cpu_are_as_they_were():
    """What committed results rest on: nothing of all this enters a CPU's key."""
    made = plan.make_plan("smoke", methods=("none",))
    (cell, *_) = made.cells
    assert cell.edit is not None
    sampler = made.form.sampler.model_dump(mode="json")
    key = keys.images_key(cell.edit.key, sampler=sampler, batch=made.batch, dtype="float32", made_on=device.setting())
    assert cell.images_key == key


def test_a_plan_tells_the_room_that_kept_pixels_take():
    made = plan.make_plan("smoke", methods=("none",))
    every, none = (plan.plan_json(made, keep=keep)["disk_bytes"] for keep in ("all", "none"))
    images = len({(i.prompt, i.seed) for c in made.cells for i in c.items})
    assert every - none == images * 3 * made.form.sampler.size**2 > 0
