"""FID and KID against closed forms, scipy's matrix root and a second implementation."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from benchmark.errors import BadInput
from benchmark.metrics import distribution
from benchmark.metrics.distribution import fid, frechet, kid


def features(n=400, d=12, seed=0, shift=0.0, scale=1.0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) @ np.diag(np.linspace(0.5, 2, d)) * scale + shift).astype(np.float32)


def moments(x):
    return x.mean(0, dtype=np.float64), np.cov(x.astype(np.float64), rowvar=False)


def test_fid_equals_scipy_and_the_cholesky_form():
    x, y = features(seed=1, shift=0.3), features(seed=2, scale=1.4)
    (m, C), (n, D) = moments(x), moments(y)
    by_root = (m - n) @ (m - n) + np.trace(C + D - 2 * sqrtm(C @ D).real)
    assert fid(x, y).value == pytest.approx(by_root, abs=1e-9)
    assert frechet(m, C, n, D) == pytest.approx(by_root, abs=1e-9)


def test_fid_of_two_gaussians_in_closed_form():
    """One set scaled by a about its mean and shifted by s: |s|² + (1 − a)² Tr C, exactly, since C₂ = a²C₁."""
    x = features(seed=1).astype(np.float64)
    a, s = 1.5, np.linspace(0, 1, 12)
    y = (x - x.mean(0)) * a + x.mean(0) + s
    expected = s @ s + (1 - a) ** 2 * np.trace(np.cov(x, rowvar=False))
    assert fid(x, y).value == pytest.approx(expected, rel=1e-9)


def test_wide_features_take_cholesky_factors_to_the_same_number(monkeypatch):
    x, y = features(seed=1, shift=0.3), features(seed=2, scale=1.4)
    by_library = fid(x, y).value
    monkeypatch.setattr(distribution, "WIDE", 12)
    assert fid(x, y).value == pytest.approx(by_library, rel=1e-9)
    assert fid(x, y).value != by_library, "the other way was taken"
    assert fid(x, x).value == pytest.approx(0.0, abs=1e-9)


def test_singular_covariances_stay_with_the_library(monkeypatch):
    flat = features(seed=1)
    flat[:, 3] = 0  # a dimension without spread on both sides: no Cholesky factor
    by_library = fid(flat, flat[::-1] * 2).value
    few = fid(features(n=9), features(n=11, seed=2), least=2).value
    monkeypatch.setattr(distribution, "WIDE", 12)
    assert fid(flat, flat[::-1] * 2).value == by_library
    assert fid(features(n=9), features(n=11, seed=2), least=2).value == few


def test_fid_of_a_set_with_itself_is_zero_and_symmetric():
    x, y = features(seed=1), features(seed=2, shift=0.2)
    assert fid(x, x).value == pytest.approx(0.0, abs=1e-9)
    assert fid(x, y).value == pytest.approx(fid(y, x).value, abs=1e-9)


def test_worse_images_score_worse():
    x, near, far = features(seed=1), features(seed=2, shift=0.1), features(seed=2, shift=1.0)
    assert fid(near, x).value < fid(far, x).value
    assert kid(near, x).value < kid(far, x).value


def test_batches_do_not_matter():
    x, y = features(seed=1), features(seed=2)
    assert fid(x, y, chunk=7).value == pytest.approx(fid(x, y).value, abs=1e-10)
    assert fid(x[::-1].copy(), y).value == pytest.approx(fid(x, y).value, abs=1e-10)


def test_too_few_samples_give_a_reason():
    value = fid(features(n=12), features())
    assert value.value is None and "at least 13 images" in value.reason and "12 against 400" in value.reason
    value = kid(features(n=99), features())
    assert value.value is None and value.ci is None and "at least 100" in value.reason
    broken = features()
    broken[0, 0] = np.nan
    assert fid(broken, features()).reason == "features are not finite"
    with pytest.raises(BadInput, match=r"\(n, d\) and \(m, d\)"):
        fid(features(d=3), features(d=4))


def test_kid_is_seeded_and_leaves_the_global_generator_alone():
    x, y = features(seed=1), features(seed=2, shift=0.2)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = kid(x, y)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    assert kid(x, y) == first
    assert kid(x, y, seed=1).value != first.value
    assert first.ci[0] < first.value < first.ci[1] and first.n == 400


def test_kid_subsets_average_to_the_unbiased_estimator_of_all_samples():
    """A random subset's estimate has the full one as its mean: off-diagonal means of k(x,x') and k(y,y') minus twice
    the mean of k(x,y), with k = (x·y/d + 1)³. So the mean of 2,000 subsets is within 4 standard errors of it."""
    x, y = features(n=120, seed=1), features(n=120, seed=2, shift=0.4)

    def k(a, b):
        return (a.astype(np.float64) @ b.T.astype(np.float64) / a.shape[1] + 1) ** 3

    off = ~np.eye(120, dtype=bool)
    expected = k(x, x)[off].mean() + k(y, y)[off].mean() - 2 * k(x, y).mean()
    value = kid(x, y, subsets=2000)
    deviation = (value.ci[1] - value.value) / 1.96 / np.sqrt(50 / 120)
    assert abs(value.value - expected) < 4 * deviation / np.sqrt(2000)
    assert deviation / np.sqrt(2000) < 0.05 * expected


def test_kid_of_the_same_distribution_is_about_zero():
    value = kid(features(seed=1), features(seed=2))
    assert value.ci[0] < 0.05 and abs(value.value) < 0.2
