"""Which images count, and whether the unedited model passes its suite's gate."""

import numpy as np
import pytest

from benchmark.errors import BadInput
from benchmark.metrics.validity import BLACK, CONSTANT, accounting, blank, gate, scorable


def test_black_and_constant_images_are_told_apart_from_pictures():
    images = np.zeros((4, 8, 8, 3), np.uint8)
    images[1] = 128
    images[2] = (10, 20, 30)
    images[3, 0, 0, 0] = 1
    assert blank(images).tolist() == [BLACK, CONSTANT, CONSTANT, 0]
    assert blank(images[:0]).shape == (0,)
    with pytest.raises(BadInput, match="uint8 images"):
        blank(images.astype(np.float32))


def test_black_images_and_rows_that_are_not_numbers_cannot_be_scored():
    raw = {"x": np.array([[1.0, 2.0], [np.nan, 0.0], [0.0, 0.0], [1.0, np.inf]]), "k": np.arange(4)}
    raw["blank"] = np.array([0, 0, BLACK, 0], np.uint8)
    assert scorable(raw, 4).tolist() == [True, False, False, False]
    assert scorable({"x": np.zeros((0, 3))}, 0).shape == (0,)


def test_accounting_adds_up():
    raw = {"x": np.array([1.0, np.nan, 0.0, 1.0, 1.0]), "blank": np.array([0, 0, BLACK, CONSTANT, 0], np.uint8)}
    counts = accounting(raw, np.array([1.0, np.nan, np.nan, 0.0, np.nan]))
    assert counts == {"images": 5, "scored": 2, "black": 1, "not_finite": 1, "no_value": 1, "constant": 1}
    assert counts["scored"] + counts["black"] + counts["not_finite"] + counts["no_value"] == counts["images"]


def test_gate_lets_a_fitting_model_through_and_says_why_not():
    windows = {"erased": (0.9, 1.0), "kept": (0.95, 1.0)}
    assert gate({"erased": 0.9, "kept": 1.0}, windows) == (True, "")
    verdict = gate({"erased": 0.41, "kept": None}, windows)
    assert not verdict.ok
    assert verdict.why == (
        "the unedited model's erased accuracy is 0.410, expected 0.9 to 1; the unedited model has no kept accuracy"
    )
    assert not gate({"erased": float("nan"), "kept": 1.0}, windows).ok
    assert gate({}, {}).ok
    with pytest.raises(BadInput, match="window of fractions"):
        gate({"erased": 0.5}, {"erased": (90, 100)})
