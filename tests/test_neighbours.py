"""The Concept Neighbourhood: nearest by hand, frozen with all that it follows from, and told to methods."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from benchmark import cli, data, erase, models, neighbourhood, paths
from benchmark.errors import BadInput, Missing
from benchmark.neighbours import Features, cohesion, nearest
from benchmark.plan import make_plan

HEADER = "name,group,kind,synonyms,anchor,split,weight\n"
ROWS = """owl,bird,fine-grained,,animal,validation,1
duck,bird|water,fine-grained,mallard,animal,validation,1
swan,bird|water,fine-grained,,animal,test,1
rose,flower,fine-grained,,plant,test,1
cup,object,object,,thing,test,1
ink,style,style,,plain,test,1
flat,style,style,,plain,test,1
"""
CARD = "title: t\nsource: s\nlicence: l\ncitation: c\nget: g\n"


def at(*degrees: float) -> NDArray[np.float64]:
    """One image's features in the plane, at each of the angles."""
    return np.array([[np.cos(np.radians(d)), np.sin(np.radians(d))] for d in degrees])


# --- the core ---------------------------------------------------------------------------------------------------------
def test_nearest_are_those_at_the_smallest_angles():
    """From 0°: 10° before −20° before 90°; cosines are those of the angles."""
    found = nearest({"a": at(0), "far": at(90), "near": at(10), "mid": at(-20)}, ["a", "far"], 2)
    assert [n.name for n in found["a"]] == ["near", "mid"] and [n.name for n in found["far"]] == ["near", "a"]
    assert [n.similarity for n in found["a"]] == pytest.approx([np.cos(np.radians(10)), np.cos(np.radians(20))])


def test_the_mean_comes_before_the_norm():
    """Mean of a long vector along x and a short one along y is nearly along x; unit vectors first would give 45°."""
    skewed = np.array([[100.0, 0.0], [0.0, 1.0]])
    found = nearest({"skewed": skewed, "along": at(0), "between": at(45)}, ["skewed"], 1)
    assert found["skewed"][0].name == "along"


def test_ties_are_in_order_of_name():
    features = {name: at(30) for name in ("d", "b", "c")} | {"a": at(0)}
    assert [n.name for n in nearest(features, ["a"], 3)["a"]] == ["b", "c", "d"]
    assert [n.name for n in nearest(features, ["c"], 2)["c"]] == ["b", "d"], "never itself, though nothing is nearer"


def random(names: str, images: int = 4, dim: int = 96) -> Features:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=(images, dim)).astype(np.float32) for name in names}


def test_a_pair_s_cosine_depends_on_the_pair_alone_to_the_bit():
    features = random("abcdefghijklmnopqrstuvwxyz")
    whole = {t: dict(near) for t, near in nearest(features, features, 25).items()}
    for some in ("az", "ydc", "qrstuv", "".join(reversed("abcdefghijklmnopqrstuvwxyz"))):
        part = nearest({name: features[name] for name in some}, some, len(some) - 1)
        assert all(n.similarity == whole[t][n.name] == whole[n.name][t] for t, near in part.items() for n in near)


@pytest.mark.parametrize(
    ("features", "targets", "top", "expected"),
    [
        (random("abc"), "a", 3, "expected 1 to 2 neighbours among 3 concepts, got 3"),
        (random("abc"), "a", 0, "got 0"),
        (random("abc"), "x", 1, "unknown concept among those compared 'x'"),
        (random("ab") | {"c": np.zeros((2, 96))}, "a", 1, "c: the mean of its features has no direction"),
        (random("ab") | {"c": np.full((2, 96), np.nan)}, "a", 1, "c: the mean of its features has no direction"),
        (random("ab") | {"c": np.zeros((0, 96))}, "a", 1, "c: expected features"),
        (random("ab") | {"c": np.ones(96)}, "a", 1, "c: expected features"),
        (random("ab") | {"c": np.ones((2, 5))}, "a", 1, "features of one width for all concepts, got [5, 96]"),
    ],
)
def test_bad_features_are_refused(features: Features, targets: str, top: int, expected: str):
    with pytest.raises(BadInput) as caught:
        nearest(features, targets, top)
    assert expected in str(caught.value)


def test_cohesion_by_hand():
    """a: both of its group; b: one of two; c shares one of its groups with each. Whole 2/3, inside (1 + ½ + 1)/3."""
    groups = {"a": ["x"], "b": ["x"], "c": ["x", "y"], "d": ["y"], "e": ["z"]}
    found = cohesion({"a": ["b", "c"], "b": ["a", "e"], "c": ["a", "d"]}, groups)
    assert (found.targets, found.whole, found.inside) == (3, pytest.approx(2 / 3), pytest.approx(2.5 / 3))
    with pytest.raises(BadInput, match="at least one target"):
        cohesion({}, groups)


# --- made and frozen --------------------------------------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set `small` in the place of those that ship."""
    folder = tmp_path / "datasets" / "small"
    folder.mkdir(parents=True)
    (folder / "concepts.csv").write_text(HEADER + ROWS)
    (folder / "card.yaml").write_text(CARD)
    monkeypatch.setattr(paths, "datasets", lambda: tmp_path / "datasets")
    return folder


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that are one grey a prompt, which the encoder takes for an angle: owl 0°, duck 10°, and so on."""
    angles = {"owl": 0, "duck": 10, "swan": 21, "rose": 33, "cup": 44, "the ink": 60, "the flat": 80}

    def sample(backbone: Any, plan: Any, sampler: Any, batch: int) -> Any:
        for start in range(0, len(plan), batch):
            part = plan[start : start + batch]
            greys = [next(angle for name, angle in angles.items() if name in image.prompt) for image in part]
            yield part, np.stack([np.full((4, 4, 3), grey, np.uint8) for grey in greys])

    monkeypatch.setattr("benchmark.sample.sample", sample)
    monkeypatch.setattr("benchmark.metrics.evaluators.load", lambda _: Greys())
    monkeypatch.setattr("benchmark.metrics.evaluators.weights_hash", lambda _: "of the greys")


class Greys:
    def raw(self, images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        degrees = images[:, 0, 0, 0].astype(float)
        return {"clip": at(*degrees), "features": at(*-degrees)}


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["neighbours", "small", "--model", "random-unet", *arguments])


def test_the_command_freezes_what_the_data_set_then_holds(folder: Path, colours: None):
    said = call("--images", "3", "--top", "2", "--json")
    assert said.exit_code == 0, said.stderr
    shown = json.loads(said.stdout)
    assert data.load("small").neighbours == {
        "owl": ("duck", "swan"),
        "duck": ("owl", "swan"),
        "swan": ("duck", "rose"),
        "rose": ("cup", "swan"),
    }
    assert shown["cohesion"] == {"targets": 4, "whole": 0.5, "inside": pytest.approx((1 + 1 + 0.5 + 0) / 4)}
    kept = json.loads((folder / "neighbours.json").read_text())
    assert kept == {name: value for name, value in shown.items() if name != "cohesion"}
    assert kept["among"] == ["owl", "duck", "swan", "rose", "cup"], "styles are no things"
    assert kept["model"] == "random-unet" and kept["model_hash"] == models.model_hash("random-unet")
    assert (kept["encoder"], kept["encoder_hash"]) == ("testbed-clip", "of the greys")
    assert kept["settings"]["images"] == 3 and kept["settings"]["guidance"] == 4.0
    assert kept["neighbours"]["owl"][0] == {
        "name": "duck",
        "similarity": pytest.approx(np.cos(np.radians(10)), abs=1e-6),
    }


def test_the_command_reports_whether_neighbours_are_of_the_group(folder: Path, colours: None):
    said = call("--top", "2", "--images", "1", "--out", str(folder / "mine.json"))
    assert "owl   duck 0.985, swan 0.934" in said.stdout
    assert "all 2 neighbours in the target's own group: 50% of 4 targets" in said.stdout
    assert "neighbours in the target's own group: 62% on average" in said.stdout
    assert not data.load("small").neighbours, "a file elsewhere is none of the data set's"


def test_groups_choose_targets_and_styles_meet_styles_only(folder: Path, colours: None):
    found = neighbourhood.compute("small", model="random-unet", groups=("water", "flower"), images=1, top=1)
    assert list(found.neighbours) == ["duck", "swan", "rose"] and len(found.among) == 5
    styles = neighbourhood.compute("small", model="random-unet", groups=("style",), images=1, top=1)
    assert styles.names() == {"ink": ("flat",), "flat": ("ink",)}
    with pytest.raises(BadInput, match="styles alone or none"):
        neighbourhood.compute("small", model="random-unet", groups=("style", "bird"), images=1, top=1)


def test_an_encoder_is_chosen_by_name(folder: Path, colours: None):
    found = neighbourhood.compute("small", model="random-unet", images=1, top=1, encoder="testbed-a")
    assert found.encoder == "testbed-a" and found.names()["rose"] == ("cup",)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--top", "5"], 2, "--top: expected 1 to 4 neighbours among 5 concepts, got 5"),
        (["--top", "0"], 2, "--top"),
        (["--images", "0"], 2, "--images"),
        (["--group", "brid"], 2, "did you mean 'bird'?"),
        (["--encoder", "testbed-b"], 2, "did you mean 'testbed-a'?"),
        (["--model", "random"], 2, "did you mean"),
        (["--out", "nowhere/file.json"], 2, "a folder that is there"),
        (["--encoder", "clip-vitl14", "--top", "1"], 3, "no weights of the encoder openai/clip-vit-large-patch14"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_said_before_any_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], code: int, said: str
):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(neighbourhood, "_features", lambda *_: pytest.fail("work was begun"))
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (code, "") and said in result.stderr, result.stderr
    assert not (folder / "neighbours.json").exists()


def test_a_frozen_file_is_never_replaced(folder: Path, colours: None):
    assert call("--images", "1", "--top", "1").exit_code == 0
    before = (folder / "neighbours.json").read_bytes()
    again = call("--images", "1", "--top", "2")
    assert again.exit_code == 2 and "is there already; delete it" in again.stderr
    assert (folder / "neighbours.json").read_bytes() == before


def test_a_model_s_own_images_give_the_same_file_twice(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Through sampler and encoder proper, on a random model with few steps."""
    few = replace(neighbourhood._DEFAULTS["embedded"], steps=2, batch=4)
    monkeypatch.setitem(neighbourhood._DEFAULTS, "embedded", few)  # type: ignore[arg-type]
    files = []
    for name in ("one.json", "two.json"):
        found = neighbourhood.compute("small", model="random-unet", images=2, top=2, quiet=True)
        neighbourhood.write(found, folder / name)
        files.append((folder / name).read_bytes())
    assert files[0] == files[1]
    assert all(-1 <= near.similarity <= 1 for nearest in found.neighbours.values() for near in nearest)


def test_the_large_clip_is_read_from_a_folder_and_sees_images_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    folder = tmp_path / "clip-vit-large-patch14"
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    torch.manual_seed(0)
    tower = CLIPVisionModelWithProjection(config).eval()
    tower.save_pretrained(folder)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    monkeypatch.setenv(models.ENVIRONMENT, str(tmp_path))
    images = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3)).astype(np.uint8)
    with neighbourhood._encoding("clip-vitl14") as (encode, digest):
        features = encode(images)
        alone = [encode(image[None]) for image in images]
    assert features.shape == (3, config.projection_dim) and np.array_equal(features, np.concatenate(alone))
    with torch.no_grad():
        expected = tower(**processor(images=list(images), return_tensors="pt")).image_embeds
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-5)
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    with neighbourhood._encoding("clip-vitl14") as (_, changed):
        assert changed != digest
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(Missing, match="preprocessor_config.json"), neighbourhood._encoding("clip-vitl14"):
        pass


# --- read and told to methods -----------------------------------------------------------------------------------------
FROZEN: dict[str, Any] = {
    "schema": 1,
    "dataset": "small",
    "model": "m",
    "model_hash": "h",
    "encoder": "e",
    "encoder_hash": "h",
    "top": 1,
    "settings": {"images": 2},
    "among": ["owl", "duck", "swan"],
    "neighbours": {"owl": [{"name": "duck", "similarity": 0.5}]},
}


def freeze(folder: Path, **changes: Any) -> None:
    (folder / "neighbours.json").write_text(json.dumps(FROZEN | changes))


def test_targets_tell_what_is_adjacent(folder: Path):
    assert data.load("small").concept("owl").target().adjacent == ()
    freeze(folder)
    small = data.load("small")
    assert small.neighbours == {"owl": ("duck",)}
    assert small.concept("owl").target().adjacent == ("duck",)
    assert small.concept("duck").target().adjacent == ()
    [owl] = erase.targets(["owl"], "paper")
    assert owl.adjacent == ("duck",)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schema": 2}, "schema"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"neighbours": {"owl": [{"name": "duckk", "similarity": 0.5}]}}, "did you mean 'duck'"),
        ({"neighbours": {"olw": [{"name": "duck", "similarity": 0.5}]}}, "did you mean 'owl'"),
        ({"neighbours": {"owl": [{"name": "owl", "similarity": 1.0}]}}, "owl: expected 1 different neighbours"),
        ({"neighbours": {"owl": []}}, "owl: expected 1 different neighbours"),
        ({"neighbours": {"owl": [{"name": "duck", "similarity": "high"}]}}, "neighbours.owl.0.similarity"),
        ({"neighbours": {"owl": [{"name": "duck", "similarity": 1.5}]}}, "neighbours.owl.0.similarity"),
    ],
)
def test_a_malformed_or_outdated_file_is_refused(folder: Path, changes: dict[str, Any], expected: str):
    freeze(folder, **changes)
    with pytest.raises(BadInput) as caught:
        data.load("small")
    assert expected in str(caught.value) and "neighbours.json" in str(caught.value)


def test_a_file_that_is_no_json_is_refused(folder: Path):
    (folder / "neighbours.json").write_text("{")
    with pytest.raises(BadInput, match=r"neighbours\.json: the file is not JSON: "):
        data.load("small")


SUITE = """
title: t
version: 1
source: s
methods: [none, uce]
forms:
  embedded:
    dataset: small
    requests: [{each: {names: [owl, swan]}, keep: {group: bird}}]
    prompts: {erased: {templates: ["a photo of the {concept}"], images: 1}}
    sampler: {scheduler: ddim, steps: 2, guidance: 4.0, size: 64}
    batch: 2
    primary: testbed/top1
    protocols: [testbed/top1]
"""


def test_plans_tell_methods_what_is_adjacent_and_key_edits_by_it(folder: Path, tmp_path: Path):
    suite = tmp_path / "suite.yaml"
    suite.write_text(SUITE)

    def edits() -> dict[str, Any]:
        plan = make_plan(str(suite), model="random-unet", methods=["uce"])
        return {c.request.name: c.edit for c in plan.cells}

    before = edits()
    assert before["erase:owl"].asked().erase[0].adjacent == ()
    freeze(folder)
    after = edits()
    assert after["erase:owl"].asked().erase[0].adjacent == ("duck",)
    assert after["erase:owl"].key != before["erase:owl"].key
    assert after["erase:swan"].key == before["erase:swan"].key


def check(name: str) -> None:
    """Frozen neighbourhoods are in order, and follow from the model as it is now, where that is here."""
    path, dataset = paths.datasets() / name / "neighbours.json", data.load(name)
    if not path.is_file():
        assert not dataset.neighbours
        return
    found = data.neighbourhood(path, [c.name for c in dataset.concepts])
    assert found.dataset == name and dataset.neighbours == found.names()
    for near in found.neighbours.values():
        assert [n.similarity for n in near] == sorted((n.similarity for n in near), reverse=True)
    if not models.missing(found.model):
        assert found.model_hash == models.model_hash(found.model), "frozen from another model: compute it anew"


@pytest.mark.parametrize("name", data.names())
def test_what_ships_follows_from_the_models_that_ship(name: str):
    check(name)


def test_the_check_above_finds_a_file_of_another_model(folder: Path):
    freeze(folder, model="random-unet")
    with pytest.raises(AssertionError, match="frozen from another model"):
        check("small")
    freeze(folder, model="random-unet", model_hash=models.model_hash("random-unet"))
    check("small")
