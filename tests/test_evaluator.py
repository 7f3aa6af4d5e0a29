"""The embedded model's judges: sizes, round trips, and that a score does not depend on its neighbours."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmark.errors import BadInput, Damaged, Missing
from benchmark.metrics import evaluators
from benchmark.testbed.evaluator import BATCH, Classifier, ImageTower, TestbedClip, TestbedEvaluator, write_reference

NAMES = {"objects": ["cat", "dog", "identity_1"], "styles": ["ink", "flat"], "backgrounds": ["red"]}
FULL = {"objects": ["x"] * 110, "styles": ["x"] * 6, "backgrounds": ["x"] * 10}


def text_tower(tokenizer):
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=24,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config).eval()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A weights folder of random networks, the text tower beside the CLIP folder as it ships."""
    from benchmark.testbed.tokens import build_tokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    Classifier({"architecture": "a", **NAMES}).save(folder / "evaluator")
    tokenizer = build_tokenizer(["cat", "dog", "photo"], 120, 24)
    tokenizer.save_pretrained(folder / "tokenizer")
    tower = text_tower(tokenizer)
    tower.half().save_pretrained(folder / "text_encoder")
    TestbedClip(tower.float(), {"image": {"widths": [8, 16]}}).save(folder / "clip")
    return folder


@pytest.fixture(scope="module")
def judge(root) -> TestbedEvaluator:
    return evaluators.load("testbed-a", root)


def images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 64, 64, 3), dtype=np.uint8)


# --- networks -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("kind", "most"), [("a", 600_000), ("b", 500_000)])
def test_classifiers_are_small_and_take_bytes_or_floats(kind, most):
    torch.manual_seed(0)
    model = Classifier.from_config({"architecture": kind, **FULL}).eval()
    assert sum(p.numel() for p in model.parameters()) <= most
    x = torch.from_numpy(images(2)).permute(0, 3, 1, 2)
    out = model(x)
    assert {k: tuple(v.shape) for k, v in out.items()} == {
        "object": (2, 110),
        "style": (2, 6),
        "background": (2, 10),
        "features": (2, 144),
    }
    torch.testing.assert_close(model(x / 255)["object"], out["object"])


def test_image_tower_is_small():
    assert sum(p.numel() for p in ImageTower.from_config({}).parameters()) <= 500_000


@pytest.mark.parametrize("kind", ["a", "b"])
def test_save_and_load_keep_config_and_statistics(kind, tmp_path):
    torch.manual_seed(0)
    model = Classifier({"architecture": kind, **NAMES})
    x = torch.rand(8, 3, 64, 64)
    for _ in range(3):
        model(x)  # moves batch norm's statistics off their start
    model.save(tmp_path)
    model.save(tmp_path / "again")
    again = Classifier.load(tmp_path)
    assert again.config == model.config and not again.training
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    torch.testing.assert_close(again(x)["object"], model.eval()(x)["object"], atol=5e-3, rtol=5e-3)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_second_judge_scores_each_image_by_itself(tmp_path):
    torch.manual_seed(1)
    Classifier({"architecture": "b", **NAMES}).save(tmp_path / "evaluator_b")
    second = evaluators.load("testbed-b", tmp_path)
    assert second.hash == evaluators.weights_hash("testbed-b", tmp_path)
    many = images(70)
    many[3] = 0
    raw = second.raw(many)
    assert raw["object"].shape == (70, len(NAMES["objects"])) and raw["blank"].nonzero()[0].tolist() == [3]
    alone = second.raw(many[66:67])
    assert all(np.array_equal(alone[k], raw[k][66:67]) for k in raw)
    assert {k: len(v) for k, v in second.raw(many[:0]).items()} == dict.fromkeys(raw, 0)
    with pytest.raises(BadInput, match="uint8 images"):
        second.raw(many.astype(np.float32))


def test_damaged_weights_are_named(tmp_path):
    with pytest.raises(Missing, match=r"config\.json"):
        Classifier.load(tmp_path)
    Classifier({"architecture": "a", **NAMES}).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architecture": "b", "depth": 1}))
    with pytest.raises(Damaged, match="does not fit"):
        Classifier.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(Missing, match=r"model\.safetensors"):
        Classifier.load(tmp_path)
    with pytest.raises(BadInput, match="architecture 'c'"):
        Classifier({"architecture": "c", **NAMES})


def test_weights_that_half_precision_cannot_hold_are_refused(tmp_path):
    model = Classifier({"architecture": "a", **NAMES})
    model.heads["style"].bias.data.fill_(1e6)
    with pytest.raises(BadInput, match=r"heads\.style\.bias"):
        model.save(tmp_path)


def test_clip_round_trip_with_its_own_text_tower(tmp_path):
    from benchmark.testbed.tokens import build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer(["cat"], 100, 24)
    clip = TestbedClip(text_tower(tokenizer), {"image": {"widths": [8, 16]}}).eval()
    clip.save(tmp_path, text=True)
    again = TestbedClip.load(tmp_path)
    ids = tokenizer(["cat", ""], padding="max_length", return_tensors="pt").input_ids
    x = torch.rand(2, 3, 64, 64)
    for k, v in clip(x, ids).items():
        torch.testing.assert_close(again(x, ids)[k], v, atol=2e-2, rtol=0)
    assert {p.dtype for p in clip.parameters()} == {torch.float32}  # saving in half left the live one alone


# --- scorer ---------------------------------------------------------------------------------------------------
def test_raw_outputs(judge):
    raw = judge.raw(images(3))
    assert {k: v.shape for k, v in raw.items()} == {
        "object": (3, 3),
        "style": (3, 2),
        "features": (3, 144),
        "clip": (3, 128),
        "blank": (3,),
    }
    np.testing.assert_allclose(np.linalg.norm(raw["clip"], axis=1), 1, rtol=1e-5)
    assert {k: v.shape[0] for k, v in judge.raw(images(0)).items()} == dict.fromkeys(raw, 0)


def test_an_image_scores_the_same_bytes_alone_or_among_others(judge):
    many = images(BATCH + 5)
    together = judge.raw(many)
    for i in (0, 7, BATCH - 1, BATCH + 4):
        alone = judge.raw(many[i : i + 1])
        for k, v in together.items():
            np.testing.assert_array_equal(alone[k][0], v[i], err_msg=f"{k} of image {i}")


def test_a_prompt_embeds_to_the_same_bytes_alone_or_among_others(judge):
    prompts = [f"photo {i}" for i in range(BATCH)] + ["cat", "a very long photo " * 20]
    together = judge.texts(prompts)
    np.testing.assert_array_equal(judge.texts(["cat"])[0], together[BATCH])
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    assert judge.texts([]).shape == (0, 128)


def test_black_images_are_marked(judge):
    both = np.stack([np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 128, np.uint8)])
    np.testing.assert_array_equal(judge.raw(both)["blank"], [1, 0])


def test_wrong_images_are_refused(judge):
    for bad in (images(1).astype(np.float32), images(1)[:, :32], images(1)[0]):
        with pytest.raises(BadInput, match="expects uint8 images"):
            judge.raw(bad)


def test_reference_features_belong_to_their_evaluator(root, judge):
    with pytest.raises(Missing, match="no reference features"):
        judge.reference(["cat"])
    pictures = images(6)
    write_reference(root, pictures, ["cat", "dog", "cat", "identity_1", "dog", "cat"])
    got = judge.reference(["cat", "dog"])
    assert got.shape == (5, 144) and got.dtype == np.float64
    np.testing.assert_allclose(got, judge.raw(pictures)["features"][[0, 1, 2, 4, 5]], atol=2e-3)
    with pytest.raises(BadInput, match="did you mean 'cat'"):
        judge.reference(["cats"])


def test_hash_follows_every_weight_file(root, tmp_path):
    import shutil

    copy = tmp_path / "weights"
    shutil.copytree(root, copy)
    before = evaluators.weights_hash("testbed-a", copy)
    assert before == evaluators.weights_hash("testbed-a", root)
    path = copy / "clip" / "config.json"
    path.write_text(path.read_text() + " ")
    assert evaluators.weights_hash("testbed-a", copy) != before
