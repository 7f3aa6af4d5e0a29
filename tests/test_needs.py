"""What suites need: one list with places, sizes, licences and checksums, and judges that know what they shall judge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmark import needs, suite
from benchmark.errors import BadInput
from benchmark.metrics import evaluators, weights
from benchmark.metrics.accuracy import class_names


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("MODELS", "DATA", "EVALUATORS", "REFERENCE", "I2P", "COCO30K", "COCO_IMAGES")
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", *(f"ERASURE_BENCH_{n}" for n in names)):
        monkeypatch.delenv(name, raising=False)
    for name in ("HF_HOME", "XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "nowhere"))
    monkeypatch.setattr(weights, "cache_folder", lambda cache: tmp_path / "nowhere" / cache)


@pytest.mark.parametrize("name", suite.names())
def test_what_a_paper_form_needs_is_told_with_how_to_get_it(name: str):
    found = needs.of(suite.load(name).form("paper"), "sd14")
    assert found[0].kind == "model" and found[0].name == "sd14" and not found[0].here
    assert len({(n.kind, n.name, n.used_by) for n in found}) == len(found)
    for need in needs.lacking(found):
        assert need.where and need.get, need.name
        if need.kind in ("model", "judge", "data"):
            assert need.licence, need.name
        if need.fetchable and need.kind in ("model", "judge"):
            assert need.checksum != "not recorded", need.name
    assert all(n.here for n in needs.of(suite.load(name).form("embedded"), "testbed"))


def test_real_images_are_the_forms_own_where_it_names_them():
    objects = {n.kind for n in needs.of(suite.load("objects").form("paper"), "sd14")}
    celebrity = {n.kind for n in needs.of(suite.load("celebrity").form("paper"), "sd14")}
    assert "real images" in objects and "real images" not in celebrity and "data" in celebrity


def test_a_checkpoint_names_its_classes_in_either_format():
    timm = {
        "architecture": "resnet18",
        "pretrained_cfg": {"label_names": ["a", "b"], "label_descriptions": {"a": "ant"}},
    }
    assert class_names(timm) == ("ant", "b")
    assert class_names({"architectures": ["X"], "id2label": {"1": "bee", "0": "ant"}}) == ("ant", "bee")
    assert class_names({"architecture": "resnet18", "num_classes": 10}) == ()


# --- judges that do not know what they shall judge -------------------------------------------------------------------
@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the dogs' judge: as far as its classes go, it is there."""
    (source,) = evaluators.spec_of("hub/jhoppanne/Dogs-Breed-Image-Classification-V1").sources
    folder = tmp_path / "judges" / source.name
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"")
    monkeypatch.setenv(weights.ENVIRONMENT, str(tmp_path / "judges"))
    return folder


def described(folder: Path, labels: list[str]) -> None:
    config = {"architectures": ["ResNetForImageClassification"], "id2label": dict(enumerate(labels))}
    (folder / "config.json").write_text(json.dumps(config))


def test_a_judge_that_knows_all_or_is_not_here_is_no_misfit(judge: Path):
    form = suite.load("dogs").form("paper")
    assert needs.misfits(form) == [], "not here: that is said elsewhere"
    names = [c.name for r in suite.requests(form) for c in (*r.erase, *r.adjacent)]
    described(judge, [f"n0208{i:04d}-{n.replace(' ', '_')}" for i, n in enumerate(dict.fromkeys(names))])
    assert needs.misfits(form) == []
    assert needs.misfits(suite.load("objects").form("paper")) == []


def test_a_judge_that_does_not_know_a_breed_is_named_before_any_image(judge: Path, tmp_path: Path):
    form = suite.load("dogs").form("paper")
    names = list(dict.fromkeys(c.name for r in suite.requests(form) for c in (*r.erase, *r.adjacent)))
    described(judge, ["german_shepherd_dog", *(n for n in names if n != "German shepherd")])
    (told,) = needs.misfits(form)
    assert told.startswith("hub/jhoppanne/Dogs-Breed-Image-Classification-V1: ")
    assert "'German shepherd'" in told and "german_shepherd_dog" in told and "classes.json" in told
    (judge / "classes.json").write_text('{"German shepherd": "german_shepherd_dog"}')
    assert needs.misfits(form) == []


def test_a_run_stops_before_its_first_image(judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from benchmark import run

    described(judge, ["poodle"])
    monkeypatch.setattr(run, "missing", lambda plan: [])
    with pytest.raises(BadInput, match="dogs would be judged by what does not know its concepts"):
        run.execute(run.RunOptions(suite="dogs", model="sd14", methods=("none",), out=tmp_path / "out", quiet=True))
    assert not (tmp_path / "out").exists()


def test_free_bytes_are_those_of_the_nearest_folder_that_is_there(tmp_path: Path):
    assert needs.free_bytes(tmp_path / "not" / "there" / "yet") == pytest.approx(needs.free_bytes(tmp_path), rel=0.1)
