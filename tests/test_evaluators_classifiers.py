"""Classifiers from folders in timm's and transformers' formats, and ImageNet's class names against our data sets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmark import data
from benchmark.errors import BadInput, Damaged
from benchmark.metrics import evaluators
from benchmark.metrics.accuracy import matched
from benchmark.metrics.protocols import score

IMAGES = np.random.default_rng(0).integers(0, 256, (11, 40, 60, 3), dtype=np.uint8)
NAMES = ["n01-Ant", "n02-Bee", "n03-Cow"]


def timm_folder(out: Path, **changes: object) -> Path:
    import timm
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", pretrained=False, num_classes=3)
    save_file(network.state_dict(), out / "model.safetensors")
    pretrained = {
        "input_size": [3, 32, 32],
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "label_names": ["a", "b", "c"],
    }
    pretrained["label_descriptions"] = dict(zip("abc", ["ant", "bee", "cow"], strict=True))
    config = {"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": pretrained | changes}
    (out / "config.json").write_text(json.dumps(config))
    return out


def transformers_folder(out: Path) -> Path:
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    labels = dict(enumerate(["ant", "bee", "cow"]))
    config = ViTConfig(**size, image_size=32, patch_size=8, id2label=labels, label2id={v: k for k, v in labels.items()})
    ViTForImageClassification(config).save_pretrained(out)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(out)
    return out


@pytest.mark.parametrize("make", [timm_folder, transformers_folder])
def test_a_checkpoint_folder_judges(make, tmp_path: Path):
    judge = evaluators.load("hub/who/animals", make(tmp_path / "w"))
    assert judge.classes["logits"] == ("ant", "bee", "cow")
    raw = judge.raw(IMAGES)
    assert raw["logits"].shape == (11, 3) and raw["logits"].dtype == np.float32
    assert np.ptp(raw["logits"], axis=0).min() > 0  # it looks at the image
    alone = np.concatenate([judge.raw(IMAGES[i : i + 1])["logits"] for i in range(11)])
    np.testing.assert_array_equal(alone, raw["logits"])
    best = [judge.classes["logits"][i] for i in raw["logits"].argmax(axis=1)]
    assert score("hub/who/animals/top1", raw, best, [""] * 11, judge).values.mean() == 1.0
    with pytest.raises(BadInput, match="cannot judge this: unknown class 'elk'"):
        score("hub/who/animals/top1", raw, ["elk"] * 11, [""] * 11, judge)


def test_timm_logits_are_timms_own(tmp_path: Path):
    import timm
    from PIL import Image
    from timm.data import create_transform

    judge = evaluators.load("cifar10-resnet", timm_folder(tmp_path / "w"))
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", pretrained=False, num_classes=3).eval()
    prepare = create_transform((3, 32, 32), interpolation="bilinear", crop_pct=1.0)
    pixels = torch.stack([prepare(Image.fromarray(i)) for i in IMAGES])
    with torch.no_grad():
        expected = network(pixels).numpy()
    np.testing.assert_allclose(judge.raw(IMAGES)["logits"], expected, atol=1e-5)


def test_concepts_may_be_mapped_to_classes_and_the_map_counts_in_the_hash(tmp_path: Path):
    folder = timm_folder(tmp_path / "w")
    before = evaluators.weights_hash("hub/who/animals", folder)
    (folder / "classes.json").write_text('{"insect": "ant"}')
    assert evaluators.weights_hash("hub/who/animals", folder) != before
    judge = evaluators.load("hub/who/animals", folder)
    got = score("hub/who/animals/top1", judge.raw(IMAGES), ["insect"] * 11, [""] * 11, judge)
    want = score("hub/who/animals/top1", judge.raw(IMAGES), ["ant"] * 11, [""] * 11, judge)
    np.testing.assert_array_equal(got.values, want.values)


def test_a_checkpoint_that_does_not_name_its_classes_is_refused_but_for_cifar(tmp_path: Path):
    folder = timm_folder(tmp_path / "w", label_names=None, label_descriptions=None)
    with pytest.raises(BadInput, match="does not name its classes"):
        evaluators.load("hub/who/animals", folder)
    assert evaluators.load("cifar10-resnet", folder).classes["logits"][0] == "airplane"


def test_weights_that_do_not_fit_are_damaged(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    folder = timm_folder(tmp_path / "w")
    state = load_file(folder / "model.safetensors")
    state.pop(next(name for name in state if name.endswith(".weight")))
    save_file(state, folder / "model.safetensors")
    with pytest.raises(Damaged, match="1 tensors are missing"):
        evaluators.load("hub/who/animals", folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(Damaged, match="is not JSON"):
        evaluators.load("hub/who/animals", folder)


def test_a_pickle_that_runs_code_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = timm_folder(tmp_path / "w")
    (folder / "model.safetensors").unlink()
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (marker.write_text, ("x",))

    torch.save({"a": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match="is a pickle; set ERASURE_BENCH_ALLOW_PICKLE=1"):
        evaluators.load("hub/who/animals", folder)
    monkeypatch.setenv("ERASURE_BENCH_ALLOW_PICKLE", "1")
    with pytest.raises(Damaged, match="code in it is never run"):
        evaluators.load("hub/who/animals", folder)
    assert not marker.exists()


# --- ImageNet -------------------------------------------------------------------------------------------------
def test_resnet50_is_torchvisions(tmp_path: Path):
    from torchvision.models import ResNet50_Weights, resnet50

    from benchmark.evaluators.classifiers import TorchvisionClassifier

    torch.manual_seed(0)
    network = resnet50(weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "resnet50-11ad3fa6.pth")
    with pytest.raises(Damaged, match="expected a file with SHA-256 11ad3fa6"):
        evaluators.load("imagenet-resnet50", tmp_path)
    judge = TorchvisionClassifier("imagenet-resnet50", "0" * 64, tmp_path)
    from PIL import Image

    prepare = ResNet50_Weights.IMAGENET1K_V2.transforms()
    with torch.no_grad():
        expected = network(torch.stack([prepare(Image.fromarray(i)) for i in IMAGES[:2]])).numpy()
    np.testing.assert_allclose(judge.raw(IMAGES[:2])["logits"], expected, atol=1e-3 * np.abs(expected).max())
    assert len(judge.classes["logits"]) == 1000


@pytest.mark.parametrize("name", ["imagenette", "imagenet"])
def test_our_imagenet_concepts_are_classes_of_torchvision(name: str):
    from torchvision.models import ResNet50_Weights

    categories = ResNet50_Weights.IMAGENET1K_V2.meta["categories"]
    concepts = [c.name for c in data.load(name).concepts]
    found = matched(concepts, categories)
    assert len(set(found.tolist())) == len(concepts)
