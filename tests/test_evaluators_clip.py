"""CLIP on a tiny model of random weights in the published format, against transformers' own score."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmark.errors import BadInput, Missing
from benchmark.metrics import evaluators
from benchmark.metrics.protocols import Given, score

PROMPTS = ["a photo of the cat", "a portrait", "", "a picture in the ink style, and far more words " * 4]
WORDS = Path(evaluators.TESTBED) / "tokenizer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clip")
    tokenizer = CLIPTokenizer.from_pretrained(WORDS, local_files_only=True)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **small,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 24,
        "eos_token_id": tokenizer.eos_token_id,
    }
    text |= {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=16)
    model = CLIPModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(100))
        for p in model.parameters():  # as initialised, all images look alike to it
            if p.ndim > 1:
                p.mul_(3)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def judge(folder: Path):
    return evaluators.load("clip-vitb32", folder)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (11, 48, 72, 3), dtype=np.uint8)


def test_score_is_transformers_own(folder: Path, judge, images):
    """logits_per_image of the whole model, with the published scale of 100, one pair at a time."""
    model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
    processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    prompts = [PROMPTS[i % 4] for i in range(len(images))]
    expected = []
    for image, prompt in zip(images, prompts, strict=True):
        text = tokenizer([prompt], truncation=True, max_length=24, padding="max_length", return_tensors="pt")
        pixels = processor([Image.fromarray(image)], return_tensors="pt")
        with torch.no_grad():
            expected.append(float(model(**text, **pixels).logits_per_image[0, 0]))
    got = score("clip-vitb32/score", judge.raw(images), ["x"] * len(images), prompts, judge).values
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert np.ptp(got) > 1


def test_probability_is_the_softmax_of_the_models_logits(folder: Path, judge, images):
    model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
    processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    classes = ("cat", "dog", "ship")
    texts = tokenizer(
        [f"a photo of the {c}" for c in classes], padding="max_length", max_length=24, return_tensors="pt"
    )
    pixels = processor([Image.fromarray(i) for i in images], return_tensors="pt")
    with torch.no_grad():
        expected = model(**texts, **pixels).logits_per_image.softmax(dim=1)[:, 1].numpy()
    given = Given(classes=classes)
    got = score("clip-vitb32/prob", judge.raw(images), ["dog"] * 11, [""] * 11, judge, given).values
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_embeddings_are_unit_and_do_not_depend_on_neighbours(judge, images):
    raw = judge.raw(images)
    np.testing.assert_allclose(np.linalg.norm(raw["clip"], axis=1), 1, rtol=1e-6)
    alone = np.concatenate([judge.raw(images[i : i + 1])["clip"] for i in range(len(images))])
    np.testing.assert_array_equal(alone, raw["clip"])
    np.testing.assert_array_equal(judge.raw(images[::-1])["clip"][::-1], raw["clip"])
    texts = judge.texts(PROMPTS)
    np.testing.assert_array_equal(judge.texts(PROMPTS[1:2])[0], texts[1])
    assert judge.texts([]).shape == (0, 16) and judge.raw(images[:0])["clip"].shape == (0, 16)


def test_other_weights_are_another_judge(folder: Path, judge, tmp_path: Path):
    import shutil

    other = tmp_path / "clip"
    shutil.copytree(folder, other)
    assert evaluators.weights_hash("clip-vitb32", other) == judge.hash == evaluators.weights_hash("clip-vitb32", folder)
    config = other / "preprocessor_config.json"
    config.write_text(config.read_text().replace("32", "40"))
    assert evaluators.weights_hash("clip-vitb32", other) != judge.hash
    config.unlink()
    with pytest.raises(Missing, match=r"incomplete: .* lacks preprocessor_config.json"):
        evaluators.load("clip-vitb32", other)


def test_images_of_another_kind_are_refused(judge, images):
    with pytest.raises(BadInput, match="expects uint8 images"):
        judge.raw(images.astype(np.float32))
    with pytest.raises(BadInput, match="no reference images"):
        judge.reference(["cat"])
