"""Protocols: accuracies from raw outputs, the table itself, and that planning needs no torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmark.errors import BadInput, Missing
from benchmark.metrics import accuracy, evaluators
from benchmark.metrics.evaluators import Evaluator
from benchmark.metrics.protocols import PROTOCOLS, protocol, score, score_set


class Fake(Evaluator):
    """Knows two objects and a style; a prompt's text vector is one-hot by its first letter."""

    id, hash = "fake", "0" * 64
    classes = {"object": ("cat", "dog"), "style": ("ink",)}

    def raw(self, images):
        raise AssertionError("scoring must not look at images again")

    def texts(self, prompts):
        return np.stack([np.eye(4)["cdxy".index(p[0])] for p in prompts])

    def reference(self, concepts):
        return np.zeros((3, 2))


def test_top1_and_probability():
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [np.nan, 1.0]])
    asked = accuracy.columns(["cat", "cat", "dog"], ["cat", "dog"])
    np.testing.assert_array_equal(accuracy.top1(logits, asked), [1, 0, np.nan])
    np.testing.assert_allclose(
        accuracy.probability(logits, asked), [1 / (1 + np.exp(-2)), 1 / (1 + np.e), np.nan], rtol=1e-12
    )
    assert accuracy.probability(np.array([[1000.0, 0.0]]), np.array([0]))[0] == 1.0  # no overflow


def test_unknown_class_is_an_error_with_a_suggestion():
    with pytest.raises(BadInput, match="did you mean 'cat'"):
        accuracy.columns(["cats"], ["cat", "dog"])


def test_clip_score_is_a_hundred_cosines():
    images, texts = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]]), np.array([[1.0, 0.0], [-2.0, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(accuracy.clip_score(images, texts), [60.0, -100.0, np.nan])
    with pytest.raises(BadInput, match="one text embedding"):
        accuracy.clip_score(images, texts[:1])


def test_testbed_top1_reads_the_head_that_knows_the_concept():
    raw = {"object": np.array([[5.0, 1.0], [5.0, 1.0], [5.0, 1.0]]), "style": np.array([[1.0], [1.0], [1.0]])}
    got = score("testbed/top1", raw, ["cat", "dog", "ink"], ["", "", ""], Fake())
    np.testing.assert_array_equal(got.values, [1, 0, 1])
    assert got.valid.all()


def test_black_and_not_finite_images_are_invalid_not_wrong():
    raw = {"object": np.array([[5.0, 1.0], [np.inf, 1.0], [5.0, 1.0]]), "style": np.ones((3, 1))}
    raw["blank"] = np.array([1, 0, 0], np.uint8)
    got = score("testbed/top1", raw, ["cat"] * 3, [""] * 3, Fake())
    np.testing.assert_array_equal(got.valid, [False, False, True])
    np.testing.assert_array_equal(got.values, [np.nan, np.nan, 1])


def test_clip_score_pairs_each_image_with_its_own_prompt():
    got = score("testbed-clip/score", {"clip": np.eye(4)[[0, 1, 0]]}, ["cat"] * 3, ["c", "d", "d"], Fake())
    np.testing.assert_allclose(got.values, [100, 100, 0])
    assert score("testbed-clip/score", {"clip": np.zeros((0, 4))}, [], [], Fake()).values.shape == (0,)


def test_raw_of_another_length_is_refused():
    with pytest.raises(BadInput, match="one raw row"):
        score("testbed-clip/score", {"clip": np.eye(4)}, ["cat"], ["c"], Fake())


def test_set_protocols_score_sets_and_image_protocols_images():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 5))
    assert score_set("testbed-fid", x, x).value == pytest.approx(0, abs=1e-9)
    assert score_set("testbed-kid", x, x).n == 120
    with pytest.raises(BadInput, match="over a set"):
        score("testbed-fid", {}, [], [], Fake())
    with pytest.raises(BadInput, match="image by image"):
        score_set("testbed/top1", x, x)


def test_table_is_complete():
    for name, p in PROTOCOLS.items():
        assert p.id == name and p.version >= 1 and p.title and p.unit
        assert p.range[0] <= p.worst <= p.range[1]
        assert p.worst == p.range[0 if p.direction == "up" else 1]
        evaluators.spec_of(p.evaluator)
        assert p.as_json()["scope"] == p.scope


def test_column_tells_how_many_images_a_distance_is_over():
    assert protocol("testbed-fid").column(180) == "testbed-fid/180"
    assert protocol("testbed-fid/180").id == "testbed-fid"
    assert protocol("testbed/top1").column(180) == "testbed/top1"
    with pytest.raises(BadInput, match="did you mean 'testbed-fid'"):
        protocol("testbed_fid")


def test_missing_evaluators_say_what_is_needed(tmp_path: Path):
    with pytest.raises(Missing, match="clip-vit-base-patch32"):
        evaluators.load("clip-vitb32")
    with pytest.raises(Missing, match="make testbed"):
        evaluators.load("testbed-a", tmp_path)
    assert "605 MB" in evaluators.missing("clip-vitb32")
    with pytest.raises(BadInput, match="did you mean 'testbed-b'"):
        evaluators.load("testbed-c")


@pytest.mark.parametrize(
    "module",
    ["metrics.protocols", "metrics.balance", "metrics.summary", "metrics.evaluators", "stats", "tables.board"],
)
def test_no_torch(module):
    code = f"import sys, benchmark.{module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
