"""Models by name: where weights are looked for, what is said when they are not there, and what their hash covers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmark import models
from benchmark.errors import BadInput, Missing


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No model anywhere, and a cache of our own."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", models.ENVIRONMENT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def pipeline(folder: Path, kind: str = "StableDiffusionPipeline") -> Path:
    """A diffusers folder in form, with a few bytes for weights."""
    denoiser = "transformer" if kind.startswith("Flux") else "unet"
    parts = {denoiser: "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
    index = {"_class_name": kind, "safety_checker": [None, None], "feature_extractor": ["transformers", "F"]}
    for part, weights in parts.items():
        index[part] = ["diffusers", "X"]
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text("{}")
        (folder / part / f"{weights}.safetensors").write_bytes(part.encode())
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("name", models.names())
def test_the_table_says_all_of_each_model(name: str):
    spec = models.describe(name)
    assert spec.name == name and spec.licence
    assert spec.form == ("paper" if spec.hub else "embedded")
    assert spec.size > 0 or spec.built_in


def test_unknown_models_are_refused_with_the_nearest():
    with pytest.raises(
        BadInput, match=r"unknown model 'testbde'; did you mean 'testbed'\? .* path of a diffusers folder"
    ):
        models.describe("testbde")
    with pytest.raises(BadInput, match="no folder ./nowhere"):
        models.describe("./nowhere")


@pytest.mark.parametrize(("folder", "name"), [("testbed", "testbed-folder"), ("random-sd", "random-sd"), ("x", "x")])
def test_a_folder_is_itself_whatever_it_is_called(nowhere: Path, folder: str, name: str):
    """Not the model of that name with its presets, and never one that is built in code."""
    spec = models.describe(str(pipeline(nowhere / folder)))
    assert (spec.name, spec.form, spec.built_in) == (name, "paper", False)
    assert models.resolve(str(nowhere / folder)) == (nowhere / folder).resolve()


def test_missing_weights_are_told_with_place_size_licence_and_what_to_do(nowhere: Path):
    with pytest.raises(Missing) as caught:
        models.resolve("sd14")
    told = str(caught.value)
    for part in ("CompVis/stable-diffusion-v1-4", "ERASURE_BENCH_MODELS", "4.3 GB", "OpenRAIL", "--model PATH"):
        assert part in told
    assert str(nowhere / "hf" / "hub" / "models--CompVis--stable-diffusion-v1-4") in told
    assert models.missing("sd14") == {
        "what": "weights of sd14 (CompVis/stable-diffusion-v1-4)",
        "where": models._where(models.describe("sd14")),
        "size": 4300000000,
        "licence": "CreativeML OpenRAIL-M",
    }


def test_weights_are_found_by_environment_and_in_the_hub_cache(nowhere: Path, monkeypatch: pytest.MonkeyPatch):
    repository = nowhere / "hf" / "hub" / "models--CompVis--stable-diffusion-v1-4"
    first = pipeline(repository / "snapshots" / "aaa")
    assert models.resolve("sd14") == first
    main = pipeline(repository / "snapshots" / "bbb")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("bbb\n")
    assert models.resolve("sd14") == main
    monkeypatch.setenv(models.ENVIRONMENT, str(nowhere / "own"))
    assert models.resolve("sd14") == main
    by_repository = pipeline(nowhere / "own" / "stable-diffusion-v1-4")
    assert models.resolve("sd14") == by_repository
    assert models.resolve("sd14") == by_repository and models.missing("sd14") is None
    assert models.resolve("sd14") != pipeline(nowhere / "own" / "sd14") == models.resolve("sd14")


def test_a_download_that_stopped_is_told(nowhere: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(models.ENVIRONMENT, str(nowhere))
    half = pipeline(nowhere / "sd14")
    (half / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(Missing, match="incomplete: .*sd14 lacks unet"):
        models.resolve("sd14")


def test_a_folder_is_a_model_by_its_path(nowhere: Path):
    folder = pipeline(nowhere / "mine")
    spec = models.describe(str(folder))
    assert (spec.name, spec.family, spec.form) == ("mine", "unet-epsilon", "paper")
    assert models.resolve(str(folder)) == folder and spec.size > 0
    assert models.describe(str(pipeline(nowhere / "flux", "FluxPipeline"))).family == "transformer-flow"
    (folder / "transformer").mkdir()
    for text, distilled in (('{"guidance_embeds": true}', True), ('{"guidance_embeds": false}', False), ("{", False)):
        (folder / "transformer" / "config.json").write_text(text)
        assert models.describe(str(folder)).distilled is distilled
    with pytest.raises(BadInput, match="holds a OtherPipeline; expected one of"):
        models.describe(str(pipeline(nowhere / "other", "OtherPipeline")))
    (nowhere / "empty").mkdir()
    with pytest.raises(BadInput, match="not a diffusers folder"):
        models.describe(str(nowhere / "empty"))


def test_the_hash_covers_what_is_loaded_and_nothing_else(nowhere: Path):
    folder = pipeline(nowhere / "mine")
    before = models.model_hash(str(folder))
    assert models.model_hash(str(pipeline(nowhere / "copy" / "other name"))) == before
    (folder / "README.md").write_text("hello")
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"variant")
    (folder / "v1.ckpt").write_bytes(b"unused")
    assert models.model_hash(str(folder)) == before
    for part in ("unet/diffusion_pytorch_model.safetensors", "vae/config.json", "text_encoder/model.safetensors"):
        content = (folder / part).read_bytes()
        (folder / part).write_bytes(content + b" ")
        assert models.model_hash(str(folder)) != before
        (folder / part).write_bytes(content)
    assert models.model_hash(str(folder)) == before


def test_the_hash_of_a_large_file_is_remembered_by_size_and_time(nowhere: Path, monkeypatch: pytest.MonkeyPatch):
    folder = pipeline(nowhere / "mine")
    monkeypatch.setattr(models, "_LARGE", 3)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    before = models.model_hash(str(folder))
    status = weights.stat()
    weights.write_bytes(b"UNET")
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert models.model_hash(str(folder)) == before, "same size and time: not read again"
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert models.model_hash(str(folder)) != before
    # What lies there and is no hash is not believed.
    for remembered in (nowhere / "cache" / "erasure-bench" / "hashes").iterdir():
        remembered.write_text("half")
    assert models.model_hash(str(folder)) != before


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(nowhere: Path, monkeypatch: pytest.MonkeyPatch):
    (nowhere / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(nowhere / "file"))
    monkeypatch.setattr(models, "_LARGE", 3)
    assert models.model_hash(str(pipeline(nowhere / "mine")))


def test_models_built_in_code_have_no_folder_and_hashes_of_their_own():
    assert models.resolve("random-unet") is None and models.missing("random-unet") is None
    assert models.model_hash("random-unet") != models.model_hash("random-flux")
