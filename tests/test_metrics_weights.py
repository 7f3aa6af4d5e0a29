"""Weights: where they are looked for, what is said when they are not there, and that another file is another judge."""

import hashlib
import re
from pathlib import Path

import pytest

from benchmark.errors import BadInput, Damaged, Missing
from benchmark.metrics import evaluators, weights
from benchmark.metrics.evaluators import EVALUATORS
from benchmark.metrics.weights import Weights

W = Weights(
    name="judge", hub="who/judge", files=("config.json", "a.safetensors|a.bin"), licence="MIT", size=605_000_000
)


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No weights of this machine are seen."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TORCH_HOME", weights.ENVIRONMENT, evaluators.REFERENCE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def put(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_own_folder_comes_before_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cached = put(tmp_path / "home/hub/models--who--judge/snapshots/abc", config__json="{}", a__bin="x")
    assert weights.find(W) == cached
    monkeypatch.setenv(weights.ENVIRONMENT, str(tmp_path / "own"))
    assert weights.find(W) == cached
    own = put(tmp_path / "own/judge", config__json="{}", a__safetensors="y")
    assert weights.find(W) == own
    assert weights.lack(W) is None


def test_a_pinned_revision_is_the_only_one(tmp_path: Path):
    put(tmp_path / "home/hub/models--who--judge/snapshots/abc", config__json="{}", a__bin="x")
    pinned = Weights(name="judge", hub="who/judge", revision="def", files=W.files, licence="MIT")
    with pytest.raises(Missing, match="size not recorded"):
        weights.find(pinned)


def test_missing_weights_are_named_with_place_size_licence_and_what_lacks(tmp_path: Path):
    put(tmp_path / "home/hub/models--who--judge/snapshots/abc", config__json="{}")
    with pytest.raises(Missing) as told:
        weights.find(W)
    text = str(told.value)
    for part in ("who/judge (605 MB, MIT)", "$ERASURE_BENCH_EVALUATORS/judge (not set)", "models--who--judge"):
        assert part in text
    assert "abc lacks a.safetensors|a.bin" in text and "To get them: download who/judge" in text
    assert weights.lack(W) == {
        "what": "who/judge (605 MB, MIT)",
        "where": weights.where(W),
        "size": 605_000_000,
        "licence": "MIT",
        "get": weights.how(W),
    }


def test_the_hash_is_of_what_is_used(tmp_path: Path):
    one = put(tmp_path / "1", config__json="{}", a__bin="x", other__txt="1")
    two = put(tmp_path / "2", config__json="{}", a__bin="x", other__txt="2")
    three = put(tmp_path / "3", config__json="{}", a__bin="y")
    assert weights.digest(W, one) == weights.digest(W, two) != weights.digest(W, three)
    (three / "a.bin").write_text("longer")
    assert weights.digest(W, three) != weights.digest(W, one)


def test_optional_files_count_where_they_are(tmp_path: Path):
    w = Weights(name="j", files=("a",), licence="MIT", optional=("map.json", "gallery"))
    folder = put(tmp_path / "j", a="x")
    plain = weights.digest(w, folder)
    put(folder / "gallery" / "ann", one__png="x")
    assert weights.digest(w, folder) != plain


def test_a_file_that_is_not_the_one_is_damaged(tmp_path: Path):
    right = hashlib.sha256(b"x").hexdigest()
    folder = put(tmp_path / "j", a__pth="x")
    known = Weights(name="j", files=("a.pth",), licence="MIT", url="https://where/a.pth", sha256={"a.pth": right[:8]})
    assert re.fullmatch("[0-9a-f]{64}", weights.digest(known, folder))
    put(folder, a__pth="z")
    with pytest.raises(Damaged, match=f"expected a file with SHA-256 {right[:8]}, found [0-9a-f]{{64}}; get it again"):
        weights.digest(known, folder)


def test_every_evaluator_says_what_it_needs_without_loading_anything():
    for name, spec in EVALUATORS.items():
        assert spec.target
        for w in spec.sources:
            assert w.licence and (w.hub or w.url or w.package) and w.files
            assert all(re.fullmatch("[0-9a-f]{8,64}", digest) for digest in w.sha256.values())
        for gone in evaluators.lacks(name):
            assert gone["what"].startswith(f"evaluator {name}") and gone["where"] and gone["get"]
        assert bool(evaluators.missing(name)) == bool(evaluators.lacks(name)), name


@pytest.mark.parametrize("name", ["clip-vitb32", "clip-vitl14", "cifar10-resnet", "imagenet-resnet50", "lpips-alex"])
def test_missing_evaluators_are_one_error(name: str):
    assert evaluators.missing(name).startswith(f"evaluator {name!r} is missing: needs ")
    with pytest.raises(Missing, match="licence|MIT|BSD|Apache"):
        evaluators.load(name)
    with pytest.raises(Missing):
        evaluators.weights_hash(name)


def test_evaluators_of_which_there_are_many():
    assert evaluators.spec_of("timm/resnet50.a1_in1k").sources[0].hub == "timm/resnet50.a1_in1k"
    assert evaluators.spec_of("hub/who/cub-200").sources[0].hub == "who/cub-200"
    assert evaluators.spec_of("external/gcd").sources[0].name == "external/gcd"
    assert "models--timm--resnet50.a1_in1k" in evaluators.missing("timm/resnet50.a1_in1k")
    for bad in ("timm/a/b", "hub/a", "external/../x", "clip-vitb33"):
        with pytest.raises(BadInput, match="unknown evaluator"):
            evaluators.spec_of(bad)


def test_another_version_of_a_package_is_not_the_evaluator(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "3.4.1")
    assert "nudenet==3.4.2" in evaluators.missing("nudenet-3.4.2")


def test_real_images_are_asked_for_and_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(Missing, match=r"set ERASURE_BENCH_REFERENCE to their folder: it is not set"):
        evaluators.reference_folder("inception")
    monkeypatch.setenv(evaluators.REFERENCE, str(tmp_path / "gone"))
    with pytest.raises(Missing, match="there is no folder"):
        evaluators.reference_folder("inception")
    folder = put(tmp_path / "real", a__png="1")
    monkeypatch.setenv(evaluators.REFERENCE, str(folder))
    assert evaluators.reference_folder("inception") == folder
