"""Inception features and LPIPS: the code around the published networks, with stand-ins of the same form."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmark.errors import BadInput, Damaged, Missing
from benchmark.evaluators.inception import InceptionEvaluator, pictures, resized
from benchmark.evaluators.perceptual import TRUNK, LpipsEvaluator, build
from benchmark.metrics import evaluators, weights
from benchmark.metrics.protocols import score_pairs, score_set
from benchmark.metrics.validity import BLACK

IMAGES = np.random.default_rng(0).integers(0, 256, (11, 70, 90, 3), dtype=np.uint8)


# --- Inception ------------------------------------------------------------------------------------------------
class Layers(nn.Module):
    """`layers` of the published TorchScript file: a normalised image to 2,048 features."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(6), nn.Flatten(), nn.Linear(108, 2048))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Layers]:
    folder = tmp_path_factory.mktemp("inception")
    torch.manual_seed(0)
    network = Layers().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and what the published file is
        torch.jit.script(network).save(str(folder / "inception-2015-12-05.pt"))
    return folder, network


def test_features_are_of_clean_fids_resize_and_scale(stand_in):
    folder, network = stand_in
    judge = InceptionEvaluator("inception", "0" * 64, folder)
    raw = judge.raw(IMAGES)
    assert raw["features"].shape == (11, 2048) and raw["features"].dtype == np.float32
    with torch.no_grad():
        expected = network((torch.from_numpy(resized(IMAGES)).permute(0, 3, 1, 2) - 128) / 128).numpy()
    np.testing.assert_allclose(raw["features"], expected, atol=1e-5)
    alone = np.concatenate([judge.raw(IMAGES[i : i + 1])["features"] for i in range(3)])
    np.testing.assert_array_equal(alone, raw["features"][:3])
    assert judge.raw(IMAGES[:0])["features"].shape == (0, 2048)


def test_no_other_torchscript_file_is_opened(stand_in):
    with pytest.raises(Damaged, match="expected a file with SHA-256 f58cb9b6"):
        evaluators.load("inception", stand_in[0])


def test_reference_images_are_the_concepts_own_where_there_are_folders(stand_in, tmp_path, monkeypatch):
    for i, name in enumerate(["cat/1.png", "cat/2.jpg", "dog/1.png", "notes.txt"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith("txt"):
            (tmp_path / name).write_text("x")
        else:
            Image.fromarray(IMAGES[i]).save(tmp_path / name)
    assert [p.name for p in pictures(tmp_path, ["cat"])] == ["1.png", "2.jpg"]
    assert len(pictures(tmp_path, ["cat", "elk"])) == 3  # elk has no folder: all images, as of captions
    named = InceptionEvaluator("inception", "0" * 64, stand_in[0], tmp_path)
    monkeypatch.setenv(evaluators.REFERENCE, str(tmp_path))
    judge = InceptionEvaluator("inception", "0" * 64, stand_in[0])
    np.testing.assert_array_equal(named.reference(["dog"]), judge.features_of([tmp_path / "dog" / "1.png"]))
    real = judge.reference(["cat"])
    assert real.shape == (2, 2048) and real.dtype == np.float64
    np.testing.assert_array_equal(real[0], judge.raw(IMAGES[:1])["features"][0])
    value = score_set(
        "clean-fid/lowN", judge.raw(IMAGES)["features"].astype(np.float64), judge.reference(["dog", "cat"])
    )
    assert value.value is not None and value.value > 0
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no images"):
        pictures(tmp_path / "empty", [])


@pytest.mark.weights
def test_fid_is_clean_fids_on_the_same_images(tmp_path, monkeypatch):
    """|ΔFID| < 1e-3 against clean-fid from folders, with its own Inception network."""
    try:
        weights.find(evaluators.INCEPTION)
    except Missing as error:
        pytest.skip(str(error))
    from cleanfid import fid as cleanfid

    monkeypatch.setenv(evaluators.REFERENCE, str(tmp_path / "real"))
    sets = {"real": IMAGES, "made": 255 - IMAGES[::-1] // 2}
    for name, images in sets.items():
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{i}.png")
    judge = evaluators.load("inception")
    ours = score_set("clean-fid/lowN", judge.raw(sets["made"])["features"].astype(np.float64), judge.reference([]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folders = str(tmp_path / "made"), str(tmp_path / "real")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        theirs = cleanfid.compute_fid(*folders, device=device, num_workers=0, use_dataparallel=False, verbose=False)
    assert abs(ours.value - theirs) < 1e-3


# --- LPIPS ----------------------------------------------------------------------------------------------------
pytest_lpips = pytest.mark.skipif(importlib.util.find_spec("lpips") is None, reason="needs lpips (extra fid)")


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory: pytest.TempPathFactory):
    from torchvision.models import alexnet as make

    folder = tmp_path_factory.mktemp("alexnet")
    torch.manual_seed(0)
    network = make(weights=None).eval()
    features = {k: v for k, v in network.state_dict().items() if k.startswith("features.")}
    torch.save(features, folder / TRUNK)
    return folder, network


def heads() -> Path:
    return weights.find(evaluators.LPIPS_HEADS)


@pytest_lpips
def test_lpips_is_the_papers_formula(alexnet):
    """Σ over five layers of the mean over places of w · (â − b̂)², with the published w: Zhang et al., equation 1."""
    folder, network = alexnet
    judge = LpipsEvaluator("lpips-alex", "0" * 64, heads(), folder)
    a, b = IMAGES[:4], IMAGES[4:8]
    state = torch.load(heads() / "alex.pth", map_location="cpu", weights_only=True)
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))

    def layers(images):
        x = (torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1 - shift) / scale
        found = []
        for i, layer in enumerate(network.features):
            x = layer(x)
            if i in (1, 4, 7, 9, 11):
                found.append(x / (x.pow(2).sum(dim=1, keepdim=True).sqrt() + 1e-10))
        return found

    with torch.no_grad():
        parts = [(x - y) ** 2 for x, y in zip(layers(a), layers(b), strict=True)]
        expected = sum(
            (part * state[f"lin{i}.model.1.weight"].view(1, -1, 1, 1)).sum(dim=1).mean(dim=(1, 2))
            for i, part in enumerate(parts)
        )
    np.testing.assert_allclose(judge.pairs(a, b)["lpips"], expected.numpy(), rtol=1e-4)


@pytest_lpips
def test_lpips_is_zero_for_the_same_image_and_grows_with_the_change(alexnet):
    judge = LpipsEvaluator("lpips-alex", "0" * 64, heads(), alexnet[0])
    noise = np.random.default_rng(1).normal(size=IMAGES.shape)
    near, far = (np.clip(IMAGES + s * noise, 0, 255).astype(np.uint8) for s in (8, 60))
    same = judge.pairs(IMAGES, IMAGES)["lpips"]
    assert np.abs(same).max() < 1e-6
    assert (judge.pairs(near, IMAGES)["lpips"] < judge.pairs(far, IMAGES)["lpips"]).all()
    whole = judge.pairs(far, IMAGES)["lpips"]
    np.testing.assert_array_equal(judge.pairs(far[5:6], IMAGES[5:6])["lpips"][0], whole[5])
    black = IMAGES.copy()
    black[2] = 0
    raw = judge.pairs(IMAGES, black)
    assert raw["blank"].tolist() == [BLACK if i == 2 else 0 for i in range(11)]
    assert np.isnan(score_pairs("lpips-alex", raw, 11).values[2])


@pytest_lpips
def test_pairs_and_files_that_do_not_fit_are_refused(alexnet, tmp_path):
    judge = LpipsEvaluator("lpips-alex", "0" * 64, heads(), alexnet[0])
    with pytest.raises(BadInput, match="in pairs"):
        judge.pairs(IMAGES, IMAGES[:3])
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / TRUNK)
    with pytest.raises(Damaged, match="is not AlexNet"):
        build(heads(), tmp_path)
    with pytest.raises(Damaged, match="SHA-256 7be5be79"):
        evaluators.load_pair("lpips-alex", tmp_path)
