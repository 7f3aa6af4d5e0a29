"""Plans: cells in order, keys that change with each ingredient and only with them, and forecasts that add up."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmark import device, engines, keys, models, registry
from benchmark.errors import BadInput, Damaged
from benchmark.plan import Calibration, Cell, Plan, make_plan, missing, plan_json, stored
from benchmark.store import Store
from benchmark.suite import load

METHOD = """
from dataclasses import dataclass
from typing import ClassVar, final
from benchmark.interface import Edit, Method

@final
@dataclass(frozen=True, kw_only=True)
class Fake(Method):
    name: ClassVar = "{name}"
    version: ClassVar = 1
    role: ClassVar = "{role}"
    paper: ClassVar = ""
    families: ClassVar = frozenset({families})
    max_concepts: ClassVar = {most}
    variants: ClassVar = {{"strong": {{"lr": 0.5}}}}
    lr: float = 0.1
    like: str = "{needs}"

    @property
    def needs(self):
        return (self.like,) if self.like else ()

    def edit(self, backbone, request):
        return Edit()
"""
BOTH = {"unet-epsilon", "transformer-flow"}
FAKES: dict[str, dict[str, Any]] = {
    "none": {"role": "baseline"},
    "plain": {},
    "single": {"most": 1},
    "pair": {"most": 2},
    "flowonly": {"families": {"transformer-flow"}},
    "control": {"role": "control", "needs": "single"},
    "needsflow": {"needs": "flowonly"},
    "circle": {"needs": "circle2"},
    "circle2": {"needs": "circle"},
    "lost": {"needs": "plian"},
}
SUITE = """
title: Mine
version: 1
source: ours
methods: [plain, none]
forms:
  embedded:
    dataset: cifar10
    requests:
    - {name: "erase:cat", erase: [cat], keep: [ship, frog]}
    - {name: "erase:three", erase: [cat, dog, horse], keep: [ship, frog]}
    prompts:
      erased: {templates: ["a photo of the {concept}"], images: 5}
      synonym: {templates: ["a photo of the {concept}"], images: 1}
      kept: {templates: ["a photo of the {concept}"], images: 3}
    sampler: {steps: 4, guidance: 4.0, size: 64}
    batch: 4
    primary: testbed/top1
    protocols: [testbed/top1]
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Fake methods in the place of `methods`, and a suite of our own."""
    folder = tmp_path / "plannedmethods"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    for name, changes in FAKES.items():
        given = {"role": "erasure", "families": BOTH, "most": None, "needs": "", **changes}
        (folder / f"{name}.py").write_text(METHOD.format(name=name, **given))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "PACKAGE", "plannedmethods")
    registry.method_class.cache_clear()
    registry.presets.cache_clear()
    suite = tmp_path / "mine.yaml"
    suite.write_text(SUITE)
    yield str(suite)
    for module in [m for m in sys.modules if m.partition(".")[0] == "plannedmethods"]:
        del sys.modules[module]
    registry.method_class.cache_clear()
    registry.presets.cache_clear()


def planned(suite: str, *labels: str, **options: Any) -> Plan:
    return make_plan(suite, model=options.pop("model", "random-unet"), methods=labels or None, **options)


def cell(plan: Plan, label: str, request: str = "erase:cat") -> Cell:
    (found,) = [c for c in plan.cells if c.method.label == label and c.request.name == request]
    return found


def edit_key(plan: Plan, label: str, request: str = "erase:cat") -> str:
    edit = cell(plan, label, request).edit
    assert edit is not None
    return edit.key


# --- cells ------------------------------------------------------------------------------------------------------
def test_the_unedited_model_comes_first_then_methods_after_what_they_need(package: str):
    plan = planned(package, "control", "plain", "single", "none", "plain")
    assert [c.method.label for c in plan.cells] == [m for m in ("none", "single", "control", "plain") for _ in range(2)]
    assert [c.request.name for c in plan.cells] == ["erase:cat", "erase:three"] * 4


def test_unset_methods_are_the_suites(package: str):
    assert [c.method.label for c in planned(package).cells[::2]] == ["none", "plain"]


def test_a_method_for_one_concept_goes_one_by_one_where_the_suite_allows_it(package: str, tmp_path: Path):
    plan = planned(package, "single", "pair", "plain", "control")
    strategies = {label: cell(plan, label, "erase:three").strategy for label in ("single", "pair", "plain", "control")}
    assert strategies == {"single": "sequential", "pair": "sequential", "plain": "joint", "control": "joint"}
    assert {cell(plan, label).strategy for label in strategies} == {"joint"}
    strict = tmp_path / "strict.yaml"
    strict.write_text(SUITE + "    sequential_ok: false\n")
    refused = cell(planned(str(strict), "single"), "single", "erase:three")
    assert (refused.status, refused.edit, refused.images_key) == ("not applicable", None, None)
    assert refused.reason == "single erases 1 at once; 3 are asked"


def test_a_sequential_request_makes_erasures_sequential_and_nothing_else(package: str, tmp_path: Path):
    path = tmp_path / "sequential.yaml"
    path.write_text(SUITE.replace("[cat, dog, horse],", "[cat, dog, horse], strategy: sequential,"))
    plan = planned(str(path), "none", "plain", "control")
    assert [cell(plan, n, "erase:three").strategy for n in ("none", "plain", "control")] == [
        "joint",
        "sequential",
        "joint",
    ]
    edit = cell(plan, "control", "erase:three").edit
    assert edit is not None and edit.given["single"].strategy == "sequential"


def test_presets_of_several_concepts_are_for_joint_requests(package: str, tmp_path: Path):
    (tmp_path / "plannedmethods" / "presets.yaml").write_text("random-unet: {plain: {'*': {lr: 1}, object+: {lr: 2}}}")
    one_by_one = tmp_path / "sequential.yaml"
    one_by_one.write_text(SUITE.replace("[cat, dog, horse],", "[cat, dog, horse], strategy: sequential,"))
    used = {suite: cell(planned(suite, "plain"), "plain", "erase:three").method for suite in (package, str(one_by_one))}
    assert [m.preset for m in used.values()] == ["random-unet/plain/object+", "random-unet/plain/*"]
    assert [m.fields["lr"] for m in used.values()] == [2, 1]
    assert cell(planned(package, "plain"), "plain").method.preset == "random-unet/plain/*"


def test_a_family_that_is_not_supported_is_not_applicable_with_the_reason(package: str):
    plan = planned(package, "flowonly", "needsflow")
    assert cell(plan, "flowonly").reason == "flowonly works on transformer-flow; random-unet is unet-epsilon"
    assert cell(plan, "needsflow").reason == f"needs flowonly: {cell(plan, 'flowonly').reason}"
    assert plan_json(plan)["cells"] == 0 and len(plan_json(plan)["not_applicable"]) == 4
    assert cell(planned(package, "flowonly", model="random-flux"), "flowonly").status == "ok"


@pytest.mark.parametrize(
    ("label", "options", "expected"),
    [
        ("plian", {}, "unknown method 'plian'; did you mean 'plain'?"),
        ("plain@stronk", {}, "unknown variant of plain 'stronk'; did you mean 'strong'?"),
        ("lost", {}, "unknown method 'plian'; did you mean 'plain'?"),
        ("circle", {}, "circle → circle2 → circle"),
        ("plain", {"model": "random-unit"}, "unknown model 'random-unit'; did you mean 'random-unet'?"),
        ("plain", {"scale": 0.0}, "scale must be a number above 0"),
        ("plain", {"batch": 0}, "batch size must be at least 1, got 0"),
        ("plain", {"passed": {"plain": {"lrr": 1}}}, "unknown field of plain 'lrr'; did you mean 'lr'?"),
        ("plain", {"passed": {"plane": {"lr": 1}}}, "fields are given for plane, which is not among the methods plain"),
        ("plain", {"form": "paper"}, "suite mine has no paper form"),
    ],
)
def test_what_is_unknown_is_one_error_before_anything_runs(
    package: str, label: str, options: dict[str, Any], expected: str
):
    with pytest.raises(BadInput) as caught:
        planned(package, label, **options)
    assert expected in str(caught.value)


def test_unknown_protocols_and_datasets_are_refused_with_the_nearest(package: str, tmp_path: Path):
    path = tmp_path / "other.yaml"
    for old, new, expected in (
        ("testbed/top1", "testbed/topone", "unknown protocol 'testbed/topone'; did you mean 'testbed/top1'?"),
        ("cifar10", "cifar100", "unknown dataset 'cifar100'; did you mean 'cifar10'?"),
    ):
        path.write_text(SUITE.replace(old, new))
        with pytest.raises(BadInput) as caught:
            planned(str(path))
        assert expected in str(caught.value)


def test_items_are_the_same_for_all_methods_and_seeds_of_training(package: str):
    plan, other = planned(package, "none", "plain", "control"), planned(package, "plain", seed=7, batch=8)
    for request in ("erase:cat", "erase:three"):
        items = {cell(plan, label, request).items for label in ("none", "plain", "control")}
        assert items == {cell(other, "plain", request).items}


def test_what_the_method_is_told(package: str):
    edit = cell(planned(package, "plain", seed=3), "plain", "erase:three").edit
    assert edit is not None
    asked = edit.asked()
    assert [t.name for t in asked.erase] == ["cat", "dog", "horse"] and asked.keep == ("ship", "frog")
    assert asked.seed == 3 and asked.erase[0].synonyms == ("feline", "kitty", "housecat")


def test_slugs_are_distinct_file_names(package: str):
    plan = planned(package, "none", "plain", "plain@strong")
    slugs = [c.slug for c in plan.cells]
    assert len(set(slugs)) == len(slugs)
    assert slugs[-1] == "plain@strong.erase_three.seed0"
    assert all(not set(s) & set('/\\: "') for s in slugs)


# --- keys -------------------------------------------------------------------------------------------------------
EDIT: dict[str, Any] = {
    "method": "esd",
    "version": 1,
    "fields": {"lr": 0.1},
    "model": "m",
    "request": {"erase": ["cat"]},
    "given": {},
    "size": 64,
    "dtype": "float32",
    "made_on": {"device": "cpu", "threads": 2, "torch": "2.15.0"},
}
IMAGES: dict[str, Any] = {"sampler": {"steps": 4}, "batch": 4, "dtype": "float32", "made_on": {"device": "cpu"}}
RAW: dict[str, Any] = {"images": "i", "shard": "s", "evaluator": "e", "weights": "w"}


@pytest.mark.parametrize("ingredient", EDIT)
def test_every_ingredient_changes_an_edits_key(ingredient: str):
    other = {"other": 1} if isinstance(EDIT[ingredient], dict) else 2 if ingredient == "version" else "other"
    assert keys.edit_key(**{**EDIT, ingredient: other}) != keys.edit_key(**EDIT)


def test_every_ingredient_changes_the_keys_of_images_and_raw_outputs():
    images = {keys.images_key("e", **IMAGES), keys.images_key("f", **IMAGES)}
    images |= {
        keys.images_key("e", **{**IMAGES, k: v})
        for k, v in [("sampler", {"steps": 5}), ("batch", 5), ("dtype", "x"), ("made_on", {"device": "cuda"})]
    }
    assert len(images) == 6
    raw = {keys.raw_key(**RAW)} | {keys.raw_key(**{**RAW, name: "other"}) for name in RAW}
    assert len(raw) == 5


def test_keys_do_not_depend_on_the_order_of_fields_but_on_that_of_items():
    fields = [("a", 1), ("b", [1, 2]), ("c", None)]
    assert len({keys.edit_key(**{**EDIT, "fields": dict(p)}) for p in itertools.permutations(fields)}) == 1
    assert keys.shard_name([("a", 1), ("b", 2)]) != keys.shard_name([("b", 2), ("a", 1)])
    with pytest.raises(ValueError):
        keys.digest({"lr": float("nan")})


def test_keys_are_stable_over_time():
    """Changing these would orphan every store."""
    assert keys.edit_key(**EDIT) == "5205c2ed34593fe0f3043b7cb6fc27cd"
    assert keys.images_key("e", **IMAGES) == "5218b15f1ee98bf37697396ec2625d6a"


def test_an_edits_key_changes_with_what_the_method_is_told_and_only_with_that(package: str, tmp_path: Path):
    base = planned(package, "plain", "plain@strong")
    key = edit_key(base, "plain")
    changed = {
        edit_key(base, "plain@strong"),
        edit_key(base, "plain", "erase:three"),
        edit_key(planned(package, "plain", seed=1), "plain"),
        edit_key(planned(package, "plain", model="random-flux"), "plain"),
        edit_key(planned(package, "plain", passed={"plain": {"lr": 0.2}}), "plain"),
    }
    assert len(changed | {key}) == 6
    # The label is a name; what counts is what it stands for.
    assert edit_key(planned(package, "plain", passed={"plain": {"lr": 0.5}}), "plain") == edit_key(base, "plain@strong")
    # Prompts, images, steps, batch and scores are no part of it, nor are the other methods.
    other = tmp_path / "other.yaml"
    other.write_text(
        SUITE.replace("images: 5", "images: 9").replace("steps: 4", "steps: 9").replace("version: 1", "version: 2")
    )
    for same in (
        planned(str(other), "plain"),
        planned(package, "none", "plain", "single", scale=0.5, batch=9),
    ):
        assert edit_key(same, "plain") == key


def test_an_edits_key_changes_with_the_latents_that_training_sees(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Another size, precision or kind of device gives other latents or other bits: never one edit for both."""
    larger = tmp_path / "larger.yaml"
    larger.write_text(SUITE.replace("size: 64", "size: 128"))
    found = {
        edit_key(planned(package, "plain"), "plain"),
        edit_key(planned(str(larger), "plain"), "plain"),
        edit_key(planned(package, "plain", dtype="float16"), "plain"),
    }
    monkeypatch.setattr("benchmark.device.kind", lambda: "cuda")
    assert len(found | {edit_key(planned(package, "plain"), "plain")}) == 4


def test_an_edits_key_changes_with_the_edits_it_needs(package: str):
    base = planned(package, "single", "control")
    assert edit_key(base, "control") == edit_key(planned(package, "control"), "control"), "listed or not, it is needed"
    other = planned(package, "single", "control", passed={"single": {"lr": 0.2}})
    assert edit_key(other, "control") != edit_key(base, "control")
    edit = cell(other, "control").edit
    assert edit is not None and edit.given["single"].key == edit_key(other, "single")
    assert [e.method.label for e in edit.chain()] == ["single", "control"]
    assert [e.method.label for e in other.edits] == ["single", "single", "control", "control"]


def test_the_unedited_model_is_one_edit_for_all_requests(package: str):
    plan = planned(package, "none", seed=5)
    assert len({edit_key(plan, "none", r) for r in ("erase:cat", "erase:three")}) == 1
    assert len({c.images_key for c in plan.cells}) == 1
    assert edit_key(plan, "none") == edit_key(planned(package, "none"), "none")
    assert plan.edits == []


def test_an_images_key_changes_with_edit_sampler_batch_and_dtype_and_only_with_them(package: str, tmp_path: Path):
    other = tmp_path / "mine2.yaml"
    base = cell(planned(package, "plain"), "plain").images_key
    changed = {base, cell(planned(package, "plain", batch=5), "plain").images_key}
    changed.add(cell(planned(package, "plain", dtype="bfloat16"), "plain").images_key)
    for old, new in (("steps: 4", "steps: 5"), ("guidance: 4.0", "guidance: 1.0"), ("size: 64", "size: 128")):
        other.write_text(SUITE.replace(old, new))
        changed.add(cell(planned(str(other), "plain"), "plain").images_key)
    assert len(changed) == 6
    # Another suite, prompt list or scale fills the same folder: an image in it is found by prompt and seed.
    other.write_text(SUITE.replace("images: 5", "images: 9").replace("a photo of", "a drawing of"))
    assert cell(planned(str(other), "plain", scale=0.5), "plain").images_key == base


# --- forecasts --------------------------------------------------------------------------------------------------
def fill(store: Store, found: Cell, count: int, batch: int = 4) -> None:
    """Put the first `count` images of a cell into the store, in shards."""
    assert found.images_key
    for start in range(0, count, batch):
        items = found.items[start : min(start + batch, count)]
        listed = keys.items_json([(i.prompt, i.seed, "0" * 64) for i in items])
        name = keys.shard_name([(i.prompt, i.seed) for i in items])
        store.put(keys.IMAGES, found.images_key, name, files={"images.npy": b"", "items.json": listed})


def test_a_model_with_guidance_distilled_into_it_is_sampled_without_a_true_one(tmp_path: Path):
    """With its own steps where it was distilled to few; a suite that asks for guidance 1 is taken as it is."""
    used = {
        m: make_plan("objects", model=m, methods=["none"]).form.sampler for m in ("sd14", "flux-dev", "flux-schnell")
    }
    assert {m: (s.steps, s.guidance) for m, s in used.items()} == {
        "sd14": (50, 7.5),
        "flux-dev": (50, 1.0),
        "flux-schnell": (4, 1.0),
    }
    text = (Path(__file__).resolve().parent.parent / "suites" / "objects.yaml").read_text()
    (tmp_path / "own.yaml").write_text(text.replace("steps: 50, guidance: 7.5", "steps: 7, guidance: 1"))
    own = make_plan(load(str(tmp_path / "own.yaml")), model="flux-schnell", methods=["none"])
    assert (own.form.sampler.steps, own.form.sampler.guidance) == (7, 1.0)
    told = [plan_json(make_plan("objects", model=m, methods=["none"])) for m in ("sd14", "flux-dev")]
    assert told[0]["denoiser_forwards"] == 2 * told[1]["denoiser_forwards"]


def test_a_forecast_adds_up(package: str):
    """erase:cat: 5 erased, 3 synonyms, 2 × 3 kept; erase:three: 15, 9, 6. The base's cells share the six kept."""
    told = plan_json(planned(package, "none", "plain"))
    assert told["requests"] == {
        "erase:cat": {"erased": 5, "synonym": 3, "kept": 6},
        "erase:three": {"erased": 15, "synonym": 9, "kept": 6},
    }
    assert told["images"] == {"erased": 20, "synonym": 12, "kept": 12, "total": 44}
    assert (told["cells"], told["edits"], told["cached"], told["seconds"]) == (4, 2, 0, None)
    # Base: 14 images, then 30 − 14 shared (cat's 5 and 3, the kept 6) = 16 more; plain: 14 and 30. Batches of 4.
    batches = 4 + 4 + 4 + 8
    assert told["denoiser_forwards"] == batches * 4 * 4 * 2
    assert told["disk_bytes"] > (14 + 16 + 14 + 30) * 64 * 64 * 3
    assert told["by_method"]["plain"]["images"] == told["images"], "two edits share nothing"
    assert told["by_method"]["none"]["images"] == {"erased": 15, "synonym": 9, "kept": 6, "total": 14 + 16}


def test_without_guidance_an_image_takes_half_the_forwards(package: str, tmp_path: Path):
    path = tmp_path / "unguided.yaml"
    path.write_text(SUITE.replace("guidance: 4.0", "guidance: 1.0"))
    halves = [plan_json(planned(s, "plain"))["denoiser_forwards"] for s in (package, str(path))]
    assert halves[0] == 2 * halves[1] > 0


def test_the_grey_control_takes_no_forward():
    with_grey, without = (
        plan_json(make_plan("smoke", model="random-unet", methods=m)) for m in (["none", "grey"], ["none"])
    )
    assert with_grey["denoiser_forwards"] == without["denoiser_forwards"] > 0


def test_seconds_come_from_a_calibration_only(package: str):
    told = plan_json(planned(package, "none", "plain"), calibration=Calibration(forward_s=0.01, edits_s={"plain": 3.0}))
    assert told["seconds"] == round(told["denoiser_forwards"] * 0.01 + 2 * 3.0, 1)
    assert told["seconds_without"] == ["scores"]
    images = 14 + 16 + 14 + 30  # see above
    whole = Calibration(forward_s=0.01, image_s=0.5, score_s=0.25, source="a guess")
    told = plan_json(planned(package, "none", "plain"), calibration=whole)
    assert told["seconds"] == round(told["denoiser_forwards"] * 0.01 + images * 0.75, 1)
    assert (told["seconds_from"], told["seconds_without"]) == ("a guess", ["edits of plain"])


def test_workers_that_a_run_takes_by_itself_share_the_time(package: str, monkeypatch: pytest.MonkeyPatch):
    """74 images, see above: on a CPU of two cores, a process for every 37 of them, but one by one for a large model."""
    monkeypatch.setattr(device, "gpus", lambda: [])
    monkeypatch.setattr(device, "cores", lambda: 2)
    monkeypatch.setattr(engines, "WORTH_A_WORKER", 37)
    plan, measured = planned(package, "none", "plain"), Calibration(forward_s=0.01, image_s=0.5)
    alone = plan_json(plan, calibration=measured)
    shared = plan_json(plan, calibration=measured, workers=engines.by_itself)
    assert (alone["workers"], shared["workers"]) == (1, 2)
    assert shared["seconds"] == pytest.approx(alone["seconds"] / 2, abs=0.1)
    large = plan_json(replace(plan, form_name="paper"), calibration=measured, workers=engines.by_itself)
    assert (large["workers"], large["seconds"]) == (1, alone["seconds"])


def test_what_is_in_the_store_is_not_counted_again(package: str, tmp_path: Path):
    plan, store = planned(package, "plain"), Store(tmp_path / "store")
    first = cell(plan, "plain")
    assert first.edit is not None
    fill(store, first, 6)
    store.put(keys.EDITS, first.edit.key, files={"edit.json": b"{}"})
    told = plan_json(plan, Store(store.root, readonly=True))
    assert told["requests"]["erase:cat"] == {"erased": 0, "synonym": 2, "kept": 6}
    assert (told["images"]["total"], told["cached"], told["edits"]) == (44 - 6, 6, 1)
    assert told["denoiser_forwards"] == (2 + 8) * 4 * 8
    for found in plan.cells:
        fill(store, found, len(found.items))
    told = plan_json(plan, store)
    assert (told["images"]["total"], told["cached"], told["denoiser_forwards"]) == (0, 44, 0)


def test_a_method_that_is_done_does_not_hide_what_another_has_to_do(package: str, tmp_path: Path):
    plan, store = planned(package, "none", "plain"), Store(tmp_path / "store")
    for request in ("erase:cat", "erase:three"):
        fill(store, cell(plan, "none", request), 30)
    told = plan_json(plan, store)
    assert told["images"]["total"] == 44 and told["cached"] == 0
    assert told["by_method"]["none"] == {
        "images": {"erased": 0, "synonym": 0, "kept": 0, "total": 0},
        "cached": 30,
    }


def test_what_requests_share_is_counted_once_for_the_unedited_model(package: str, tmp_path: Path):
    """Of erase:cat's 14 images the store has 6, of the 16 that erase:three adds none."""
    plan, store = planned(package, "none"), Store(tmp_path / "store")
    fill(store, cell(plan, "none"), 6)
    told = plan_json(plan, store)
    assert told["requests"]["erase:three"] == {"erased": 10, "synonym": 8, "kept": 6}, "5 cats and a synonym are there"
    assert told["images"] == {"erased": 10, "synonym": 8, "kept": 6, "total": 24} and told["cached"] == 6
    assert told["denoiser_forwards"] == (8 + 16) * 4 * 2


def test_the_papers_people_are_35350_images_of_the_unedited_model():
    """250 of one person, 250 of four more and the first with other seeds, and so on; the others kept once."""
    told = plan_json(make_plan("celebrity", model="sd14", methods=["none", "uce"]))["by_method"]
    erased = 250 + 250 + 125 + 2225  # what each request adds
    expected = {"erased": erased, "kept": 2500, "general": 30000, "total": erased + 32500}
    assert told["none"]["images"] == expected
    assert told["uce"]["images"]["total"] == 3 * 32750 + 35000


def test_damaged_shards_count_as_missing_and_are_told(package: str, tmp_path: Path):
    plan, store = planned(package, "plain"), Store(tmp_path / "store")
    found = cell(plan, "plain")
    assert found.images_key
    fill(store, found, 8)
    shard = store.children(keys.IMAGES, found.images_key)[0]
    (store.root / keys.IMAGES / found.images_key / shard / "items.json").write_bytes(b"[]")
    assert plan_json(plan, Store(store.root, readonly=True))["cached"] == 4
    told: list[Damaged] = []
    assert len(stored(store, found.images_key, told.append)) == 4
    assert shard in str(told[0]) and len(stored(store, found.images_key)) == 4


def test_missing_weights_and_judges_are_listed_and_the_plan_still_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", models.ENVIRONMENT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    plan = make_plan("celebrity", model="sd14")
    assert plan.model_hash is None
    told = plan_json(plan, Store(tmp_path / "store", readonly=True))
    assert all(set(m) == {"what", "where", "size", "licence"} for m in told["missing"])
    assert [m["what"].split()[:3] for m in missing(plan)][0] == ["weights", "of", "sd14"]
    assert told["missing"][0]["size"] > 10**9 and "OpenRAIL" in told["missing"][0]["licence"]
    assert any("clip-vitb32" in m["what"] for m in told["missing"])
    assert {r: n["erased"] for r, n in told["requests"].items()} == {
        "erase:identity_1": 250,
        "erase:identity_5": 250,
        "erase:identity_10": 250,
        "erase:identity_100": 2500,
    }
    assert {n["kept"] for n in told["requests"].values()} == {2500}


def test_the_papers_objects_are_2600_images_a_request():
    told = plan_json(make_plan("objects", model="sd14"))["requests"]
    assert len(told) == 10
    assert all(n == {"erased": 200, "synonym": 600, "kept": 1800} for n in told.values())


def test_embedded_sizes_of_the_shipped_suites():
    totals = {
        name: plan_json(make_plan(name, model="random-unet"))["requests"] for name in ("objects", "celebrity", "smoke")
    }
    assert {tuple(n.values()) for n in totals["objects"].values()} == {(60, 60, 180)}
    assert [tuple(n.values()) for n in totals["celebrity"].values()] == [(60, 150), (50, 150)]
    assert [tuple(n.values()) for n in totals["smoke"].values()] == [(8, 6, 6), (8, 0, 8)]


def test_a_plan_is_the_same_every_time_and_takes_a_suite_or_its_name():
    assert plan_json(make_plan("objects")) == plan_json(make_plan(load("objects")))
    first, second = make_plan("objects"), make_plan("objects")
    assert [c.images_key for c in first.cells] == [c.images_key for c in second.cells]


def test_all_is_the_suites_own_methods_and_every_other_that_needs_no_file():
    labels = [c.method.label for c in make_plan("ablation", model="random-unet", methods=["all"]).cells]
    found = list(dict.fromkeys(labels))
    assert found[0] == "none" and {"fade_adv@no-saliency", "uce", "esd", "noise", "grey", "blocklist"} <= set(found)
    assert "checkpoint" not in found and len(found) == len(set(found))
    few = make_plan("smoke", model="random-unet", methods=["uce", "all", "uce"]).cells
    assert [c.method.label for c in few].count("uce") == 2, "once a request"
