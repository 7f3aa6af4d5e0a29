"""Distances against clean-fid's and torchmetrics' own on the same features, and our resize against clean-fid's."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark.evaluators.inception import resized
from benchmark.metrics.distribution import fid, frechet, kid


@pytest.fixture(scope="module")
def cleanfid():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cleanfid import fid as module
    return module


def features(n, seed, d=16, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / 3 + shift


def moments(x):
    return x.mean(axis=0), np.cov(x, rowvar=False)


@pytest.mark.parametrize("seed", range(3))
def test_fid_is_clean_fids_and_torchmetrics(cleanfid, seed):
    from torchmetrics.image.fid import _compute_fid

    x, y = features(400, seed), features(500, seed + 10, shift=0.3)
    (m, C), (n, D) = moments(x), moments(y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it passes an argument that SciPy is about to drop
        theirs = cleanfid.frechet_distance(m, C, n, D)
    others = float(_compute_fid(*(torch.from_numpy(v) for v in (m, C, n, D))))
    assert fid(x, y).value == pytest.approx(theirs, rel=1e-6)
    assert fid(x, y).value == pytest.approx(others, rel=1e-6)
    assert frechet(m, C, n, D) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("size", [50, 100])
def test_kid_is_clean_fids_on_the_same_subsets(cleanfid, size):
    """Both draw subsets at random; with those of torchmetrics given to clean-fid one by one, the numbers agree."""
    x, y = features(300, 1), features(260, 2, shift=0.3)
    ours = kid(x, y, seed=3, subsets=20, size=size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        pairs = [(torch.randperm(len(y))[:size].numpy(), torch.randperm(len(x))[:size].numpy()) for _ in range(20)]
    theirs = [cleanfid.kernel_distance(y[r], x[f], num_subsets=1, max_subset_size=size) for r, f in pairs]
    assert ours.value == pytest.approx(np.mean(theirs), rel=1e-6)


@pytest.mark.parametrize("size", [50, 100])
def test_kid_is_torchmetrics_on_the_same_subsets(size):
    """torchmetrics' own kernel distance, one subset at a time."""
    from torchmetrics.image.kid import poly_mmd

    x, y = features(300, 1), features(260, 2, shift=0.3)
    ours = kid(x, y, seed=3, subsets=20, size=size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        pairs = [(torch.randperm(len(y))[:size].numpy(), torch.randperm(len(x))[:size].numpy()) for _ in range(20)]
    theirs = [float(poly_mmd(torch.from_numpy(y[r]), torch.from_numpy(x[f]))) for r, f in pairs]
    assert ours.value == pytest.approx(np.mean(theirs), rel=1e-6)


@pytest.mark.parametrize("chunk", [7, 400, 10_000])
def test_fid_is_torchmetrics_whole_metric_fed_in_any_chunks(chunk):
    from torchmetrics.image.fid import FrechetInceptionDistance

    from benchmark.metrics.distribution import _identity

    x, y = features(400, 5), features(500, 6, shift=0.3)
    metric = FrechetInceptionDistance(feature=_identity(16)).set_dtype(torch.float64)
    for rows, real in ((y, True), (x, False)):
        metric.update(torch.from_numpy(rows), real=real)
    assert fid(x, y, chunk=chunk).value == pytest.approx(float(metric.compute()), rel=1e-6)


def test_kid_is_torchmetrics_on_the_whole_set():
    from torchmetrics.image.kid import poly_mmd

    x, y = features(120, 1), features(120, 2, shift=0.4)
    whole = float(poly_mmd(torch.from_numpy(y), torch.from_numpy(x)))
    value = kid(x, y, subsets=2000, size=50)
    assert value.value == pytest.approx(whole, rel=0.05)  # 2,000 subsets of 50 scatter by about 1 %


@pytest.mark.parametrize("shape", [(64, 64), (512, 512), (299, 299), (300, 451), (37, 700)])
def test_resize_in_memory_is_clean_fids_from_files(cleanfid, tmp_path, shape):
    from cleanfid.resize import build_resizer
    from cleanfid.utils import ResizeDataset

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    images[1] //= 4  # and a dark one
    paths = [str(tmp_path / f"{i}.png") for i in range(2)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    dataset = ResizeDataset(paths, mode="clean")
    dataset.fn_resize = build_resizer("clean")
    theirs = np.stack([dataset[i].numpy().transpose(1, 2, 0) for i in range(2)])
    assert resized(images).shape == (2, 299, 299, 3)
    assert np.abs(resized(images) - theirs).max() < 1e-3
    assert np.abs(resized(images[:1]) - resized(images)[:1]).max() == 0


def test_resize_of_a_constant_stays_in_range_and_of_nothing_is_nothing():
    assert np.allclose(resized(np.full((1, 20, 30, 3), 255, np.uint8)), 255)
    assert resized(np.zeros((0, 8, 8, 3), np.uint8)).shape == (0, 299, 299, 3)
