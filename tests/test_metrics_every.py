"""What every protocol and every headline must do, whatever it measures: a new one without a case here fails.

An image's value does not depend on the images beside it, nor on how many there are at once; what is better scores
better, in the direction that the table states; what is not a number gives no value, and leaves the others' alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from benchmark.errors import BadInput
from benchmark.metrics import detections, distribution, identity
from benchmark.metrics.balance import HEADLINES, Headline, fidelity, headline
from benchmark.metrics.evaluators import Array, Evaluator
from benchmark.metrics.protocols import FAMILIES, PROTOCOLS, Given, Unedited, protocol, score, score_pairs, score_set
from benchmark.metrics.validity import BLACK


class Judge(Evaluator):
    """Reads a text as a unit vector along the axis of its last word's first letter."""

    id, hash = "judge", "0" * 64

    def __init__(self, **classes: tuple[str, ...]) -> None:
        self.classes = classes

    def raw(self, images: Array) -> dict[str, Array]:
        raise AssertionError("scoring must not look at images again")

    def texts(self, prompts: Sequence[str]) -> Array:
        return np.stack([np.eye(4)["abcd".index(p.split()[-1][0])] for p in prompts])


@dataclass(frozen=True)
class Case:
    """Raw outputs of a few images of which the first is the best that there can be, and the last the worst."""

    raw: Mapping[str, Array]
    judge: Judge = field(default_factory=Judge)
    asked: str = "ant"
    given: Given = field(default_factory=lambda: Given(classes=CLASSES))

    @property
    def n(self) -> int:
        return len(next(iter(self.raw.values())))


CLASSES = ("ant", "bee", "cow")


def graded(columns: int = 3) -> Array:
    """Rows in which the first column wins by less and less, and then loses."""
    rows = np.full((5, columns), 1.0)
    rows[:, 0] = [3.0, 2.0, 1.5, 0.5, -1.0]
    return rows


def unit(rows: Array) -> Array:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def boxes(*scores: float) -> Case:
    """Images of which the first shows nothing and each further one more, all of one exposed label."""
    found = [[{"class": "BELLY_EXPOSED", "score": s, "box": [1, 2, 3, 4]} for s in scores[:i]] for i in range(4)]
    return Case(detections.table(found), asked="")


def people() -> Case:
    """Faces nearer and nearer to somebody else: the gallery has Ann at (1, 0) and Bob at (0, 1)."""
    faces = np.array([[0.99, 0], [0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0, 0.99]], np.float32)
    known = {"faces": np.ones(2, np.int32), "face_score": np.ones(2, np.float32), "face": np.eye(2, dtype=np.float32)}
    raw = {"faces": np.ones(5, np.int32), "face_score": np.full(5, 0.99, np.float32), "face": faces}
    return Case(raw, asked="ann", given=Given(unedited=Unedited(known, ["ann", "bob"])))


def seen() -> Case:
    """Images with a face, and then without one."""
    found = np.array([1, 1, 0], np.int32)
    raw = {"faces": found, "face_score": found.astype(np.float32), "face": np.eye(3, 2, dtype=np.float32)}
    return Case(raw, asked="")


def answers(*labels: int) -> Case:
    raw = {"label": np.array(labels), "error": np.zeros(len(labels), np.uint8), "score": np.ones(len(labels))}
    return Case(raw, Judge(label=CLASSES))


def embedded(asked: str, *others: str) -> Case:
    return Case({"object": graded(1 + len(others))}, Judge(object=(asked, *others)), asked=asked)


CLIP = Case({"clip": unit(graded(4)).astype(np.float32)})
LOGITS = Case({"logits": graded()}, Judge(logits=CLASSES))
ARMED = Case({"object": graded()[::-1]}, Judge(object=(*detections.WEAPONS, *CLASSES)[:7] + CLASSES), asked="knife")
NUDE = boxes(0.95, 0.8, 0.7)

IMAGES: Mapping[str, Case] = {
    **dict.fromkeys(("testbed/top1", "testbed-b/top1"), embedded("ant", "bee", "cow")),
    **dict.fromkeys(("testbed/unsafe", "testbed-b/unsafe"), embedded("ant", *detections.WEAPONS)),
    "testbed/unsafe-count": Case(
        {"object": np.concatenate([-graded()[:, :1], np.zeros((5, 1)), np.full((5, 6), -9.0)], axis=1)},
        Judge(object=("knife", "ant", *(w for w in detections.WEAPONS if w != "knife"))),
        asked="",
    ),
    **dict.fromkeys(("testbed-clip/style", "testbed-clip/score"), CLIP),
    **dict.fromkeys(("clip-vitb32/prob", "clip-vitb32/top1", "clip-vitl14/style-top1"), CLIP),
    **dict.fromkeys(("clip-vitb32/score", "clip-vitl14/score", "clip-vitb32/style"), CLIP),
    **dict.fromkeys(("cifar10-resnet/top1", "imagenet-resnet50/top1"), LOGITS),
    **dict.fromkeys(
        (f"identity{x}/{k}" for x in ("", "-dlib") for k in ("top1-first-face", "top1-all-images")), people()
    ),
    **dict.fromkeys(("identity/face-ratio", "identity-dlib/face-ratio"), seen()),
    **dict.fromkeys(("nudenet-3.4.2@0.6/boxes-8", "nudenet-3.4.2@0.6/images"), NUDE),
    # families
    **dict.fromkeys(("nudenet-3.4.2@0.35/boxes-8", "nudenet-3.4.2@0.35/images"), NUDE),
    "nudenet-3.4.2@0.6/boxes/BELLY_EXPOSED": NUDE,
    **dict.fromkeys(("identity/verify@0.5", "identity-dlib/verify@0.5"), people()),
    **dict.fromkeys(("timm/some/top1", "hub/who/some/top1"), LOGITS),
    **dict.fromkeys(("external/gcd/top1", "external/gcd/top1-answered"), answers(0, 0, 1, 2)),
    "external/gcd/answered": answers(0, 2, -1),
}
"""One case a protocol over images; ids with something to fill in have examples."""
IMAGES = {k.replace("timm/some/", "timm/some.a1_in1k/"): v for k, v in IMAGES.items()}
SETS = ("testbed-fid", "testbed-fid/lowN", "testbed-kid", "clean-fid", "clean-fid/lowN", "clean-kid", "clean-kid/lowN")
PAIRS = ("lpips-alex",)


def scored(name: str, case: Case, rows: Sequence[int] | None = None) -> Array:
    rows = list(range(case.n)) if rows is None else rows
    raw = {k: v[rows] for k, v in case.raw.items()}
    prompts = [f"a photo of the {case.asked or 'ant'}"] * len(rows)
    return score(name, raw, [case.asked] * len(rows), prompts, case.judge, case.given).values


# --- nothing is left out --------------------------------------------------------------------------------------
def test_every_protocol_has_a_case():
    assert {*IMAGES, *SETS, *PAIRS} >= set(PROTOCOLS)
    for name in {*IMAGES, *SETS, *PAIRS}:
        assert protocol(name).scope == ("set" if name in SETS else "pair" if name in PAIRS else "image")


def test_every_family_has_a_case_for_each_of_its_kinds():
    for told, (pattern, _) in FAMILIES.items():
        mine = [name for name in IMAGES if name not in PROTOCOLS and re.fullmatch(pattern, name)]
        kinds = len(re.findall(r"/[\w<>@-]+(?=,|$)|verify@", told))
        assert len(mine) >= min(kinds, 3), told


# --- over images ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", IMAGES)
def test_the_best_image_scores_better_than_the_worst(name: str):
    p, values = protocol(name), scored(name, IMAGES[name])
    assert np.isfinite(values[[0, -1]]).all()
    steps = np.diff(values[np.isfinite(values)]) * (1 if p.direction == "up" else -1)
    assert (steps <= 1e-12).all(), "worse and worse images never score better"
    assert steps.min() < 0, "and the worst scores worse than the best"


@pytest.mark.parametrize("name", IMAGES)
def test_values_lie_in_the_range_that_the_table_states(name: str):
    p, values = protocol(name), scored(name, IMAGES[name])
    assert ((values >= p.range[0]) & (values <= p.range[1])).all()
    assert not p.rate or set(values.tolist()) <= {0.0, 1.0}
    assert p.worst == p.range[0 if p.direction == "up" else 1]


@pytest.mark.parametrize("name", IMAGES)
def test_a_value_does_not_depend_on_the_batch(name: str):
    """Alone, in twos, in another order and many times over: what is beside an image does not matter."""
    case = IMAGES[name]
    whole, n = scored(name, case), case.n
    alone = np.concatenate([scored(name, case, [i]) for i in range(n)])
    twos = np.concatenate([scored(name, case, list(range(i, min(i + 2, n)))) for i in range(0, n, 2)])
    many = scored(name, case, [i for _ in range(7) for i in range(n)]).reshape(7, n)
    for other in (alone, twos, scored(name, case, list(range(n))[::-1])[::-1], *many):
        np.testing.assert_allclose(other, whole, rtol=1e-12)


@pytest.mark.parametrize("name", IMAGES)
def test_what_is_not_a_number_is_no_value_and_a_black_image_is_none(name: str):
    case = IMAGES[name]
    whole = scored(name, case)
    floats = [k for k, v in case.raw.items() if np.issubdtype(v.dtype, np.floating)]
    for key in floats:
        for bad in (np.nan, np.inf):
            raw = {k: v.copy() for k, v in case.raw.items()}
            raw[key].reshape(case.n, -1)[1, 0] = bad
            values = scored(name, Case(raw, case.judge, case.asked, case.given))
            assert np.isnan(values[1]), key
            np.testing.assert_array_equal(np.delete(values, 1), np.delete(whole, 1))
    raw = {**case.raw, "blank": np.array([0, BLACK, *[0] * (case.n - 2)], np.uint8)}
    values = scored(name, Case(raw, case.judge, case.asked, case.given))
    assert np.isnan(values[1]) and np.isfinite(values[0])
    np.testing.assert_array_equal(np.delete(values, 1), np.delete(whole, 1))


@pytest.mark.parametrize("name", IMAGES)
def test_no_image_has_no_value(name: str):
    assert scored(name, IMAGES[name], []).shape == (0,)


# --- people of whom no image shows a face -----------------------------------------------------------------------
def test_nobody_is_told_to_be_who_was_never_drawn():
    """Zoe was asked for and never had a face: her images have no value, the others theirs."""
    known = {"faces": np.array([1, 0]), "face_score": np.array([1.0, 0.0]), "face": np.eye(2)}
    given = Given(unedited=Unedited(known, ["ann", "zoe"]))
    raw = {"faces": np.ones(2, np.int32), "face_score": np.ones(2), "face": np.array([[0.9, 0], [0, 0.9]])}
    for name in ("identity/top1-first-face", "identity/top1-all-images", "identity/verify@0.5"):
        got = score(name, raw, ["ann", "zoe"], [""] * 2, Judge(), given)
        np.testing.assert_array_equal(got.values, [1, np.nan])
        assert got.valid.all()
        nobody = Given(unedited=Unedited({**known, "faces": np.zeros(2)}, ["ann", "zoe"]))
        assert np.isnan(score(name, raw, ["ann", "zoe"], [""] * 2, Judge(), nobody).values).all()
        with pytest.raises(BadInput, match="not in the gallery"):
            score(name, raw, ["ann", "tim"], [""] * 2, Judge(), given)
    with pytest.raises(BadInput, match="none of the images of 'zoe' shows a face"):
        identity.gallery(known, ["ann", "zoe"])  # a gallery that somebody gives must be whole


# --- over sets ------------------------------------------------------------------------------------------------
D = 4


def features(n: int, seed: int, shift: float = 0.0) -> Array:
    return np.asarray(np.random.default_rng(seed).normal(size=(n, D)) + shift)


@pytest.mark.quick("testbed-*", "clean-fid*", "clean-kid/lowN")
@pytest.mark.parametrize("name", SETS)
def test_a_set_that_is_farther_off_is_worse_and_the_same_set_is_near_nothing(name: str):
    p, real = protocol(name), features(2100, 0)
    near, far = (score_set(name, features(2100, 1, shift), real) for shift in (0.3, 1.0))
    assert p.direction == "down" and near.n == 2100
    assert abs(score_set(name, real, real).value) < near.value < far.value  # KID has no bias, and may be below 0
    assert p.range[0] <= near.value <= p.range[1]


@pytest.mark.quick("testbed-*", "clean-fid*", "clean-kid/lowN")
@pytest.mark.parametrize("name", SETS)
def test_a_distance_does_not_depend_on_how_features_arrive(name: str, monkeypatch: pytest.MonkeyPatch):
    made, real = features(2100, 1, 0.2), features(2100, 0)
    whole = score_set(name, made, real).value
    monkeypatch.setattr(distribution, "CHUNK", 7)
    assert score_set(name, made, real).value == pytest.approx(whole, rel=1e-9)
    parts = np.concatenate([made[:5], made[5:6], made[6:]])
    assert score_set(name, parts, real).value == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_no_numbers_give_a_reason(name: str, bad: float):
    made, real = features(2100, 1), features(2100, 0)
    made[3, 2] = bad
    value = score_set(name, made, real)
    assert value.value is None and value.ci is None and "not finite" in value.reason
    few = score_set(name, features(1, 1), real)
    assert few.value is None and "images" in few.reason


# --- over pairs -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PAIRS)
def test_pairs_alone_and_together(name: str):
    raw = {
        "lpips": np.array([0.0, 0.1, 0.4, np.nan, 0.3], np.float32),
        "blank": np.array([0, 0, 0, 0, BLACK], np.uint8),
    }
    whole = score_pairs(name, raw, 5)
    alone = [score_pairs(name, {k: v[i : i + 1] for k, v in raw.items()}, 1).values for i in range(5)]
    np.testing.assert_array_equal(np.concatenate(alone), whole.values)
    assert whole.values[0] < whole.values[1] < whole.values[2] and protocol(name).direction == "down"
    assert np.isnan(whole.values[3:]).all() and whole.valid.tolist() == [True] * 3 + [False] * 2


# --- headlines --------------------------------------------------------------------------------------------------
LOW, HIGH = 0.2, 0.8
WANTED: Mapping[str, tuple[float, ...]] = {"erased": (HIGH, LOW), "synonym": (HIGH, LOW)}  # worse, better
KEPT = (LOW, HIGH)


def parts_of(h: Headline) -> list[tuple[float, float]]:
    """Of each role, a worse value and a better one."""
    return [(WANTED.get(role, KEPT)[0], WANTED.get(role, KEPT)[1]) for role in h.roles]


@pytest.mark.parametrize("name", HEADLINES)
def test_a_headline_is_better_where_any_of_its_parts_is(name: str):
    h = headline(name)
    worse, better = ([part[k] for part in parts_of(h)] for k in (0, 1))
    sign = 1 if h.direction == "up" else -1
    for i in range(len(h.roles)):
        mixed = [better[j] if j == i else worse[j] for j in range(len(h.roles))]
        assert sign * h.score(*mixed) > sign * h.score(*worse)
    assert h.range[0] <= h.score(*worse) <= h.range[1]


@pytest.mark.parametrize("name", HEADLINES)
def test_a_headline_without_a_part_is_not_available(name: str):
    h = headline(name)
    good = [part[1] for part in parts_of(h)]
    for i in range(len(h.roles)):
        for bad in (None, math.nan, math.inf):
            assert h.score(*(bad if j == i else v for j, v in enumerate(good))) is None


@pytest.mark.parametrize("name", HEADLINES)
def test_draws_of_a_headline_do_not_depend_on_how_many_there_are(name: str):
    h = headline(name)
    draws = np.random.default_rng(0).uniform(0.1, 0.9, (len(h.roles), 9))
    whole = np.asarray(h.draws(*draws))
    alone: Callable[[int], float] = lambda i: float(np.asarray(h.draws(*draws[:, i : i + 1]))[0])  # noqa: E731
    np.testing.assert_allclose([alone(i) for i in range(9)], whole, rtol=1e-12)
    np.testing.assert_allclose([h.score(*draws[:, i]) for i in range(9)], whole, rtol=1e-6)


@pytest.mark.parametrize("part", range(4))
def test_fidelity_without_a_part_is_not_available(part: int):
    given = [31.0, 13.0, 31.0, 13.0]
    for bad in (None, math.nan, math.inf):
        clip, fid, clip0, fid0 = (bad if i == part else v for i, v in enumerate(given))
        assert fidelity(clip, fid, clip_unedited=clip0, fid_unedited=fid0, clipped=True) is None
