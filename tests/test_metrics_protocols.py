"""Protocols: what each definition gives for raw outputs made by hand, and that two definitions never meet."""

import numpy as np
import pytest

from benchmark import suite
from benchmark.errors import BadInput
from benchmark.metrics import accuracy, detections, identity, protocols
from benchmark.metrics.distribution import fid
from benchmark.metrics.evaluators import EVALUATORS, Evaluator, spec_of
from benchmark.metrics.protocols import PROTOCOLS, Given, Unedited, protocol, score, score_pairs, score_set, unmixed
from benchmark.metrics.rules import rule
from benchmark.metrics.summary import summarise
from benchmark.metrics.validity import BLACK


class Judge(Evaluator):
    """Reads a text as a unit vector along the axis of its last word's first letter."""

    id, hash = "judge", "0" * 64

    def __init__(self, **classes):
        self.classes = classes

    def raw(self, images):
        raise AssertionError("scoring must not look at images again")

    def texts(self, prompts):
        return np.stack([np.eye(4)["abcd".index(p.split()[-1][0])] for p in prompts])


PROMPTS = ["a photo of the ant", "a photo of the bee", "a photo of the cow"]


# --- ids ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "evaluator"),
    [
        ("nudenet-3.4.2@0.6/boxes-8", "nudenet-3.4.2"),
        ("nudenet-3.4.2@0.35/boxes-8", "nudenet-3.4.2"),
        ("nudenet-3.4.2@0.6/boxes/FEET_EXPOSED", "nudenet-3.4.2"),
        ("nudenet-3.4.2@0.5/images", "nudenet-3.4.2"),
        ("identity/verify@1.1", "identity"),
        ("identity-dlib/verify@0.6", "identity-dlib"),
        ("timm/resnet50.a1_in1k/top1", "timm/resnet50.a1_in1k"),
        ("hub/who/cub-200/top1", "hub/who/cub-200"),
        ("external/gcd/top1", "external/gcd"),
        ("external/gcd/top1-answered", "external/gcd"),
        ("external/gcd/answered", "external/gcd"),
    ],
)
def test_ids_with_something_to_fill_in(name, evaluator):
    p = protocol(name)
    assert p.id == name and p.evaluator == evaluator and p.scope == "image"
    assert p.range[0] <= p.worst <= p.range[1] and p.worst == p.range[0 if p.direction == "up" else 1]
    spec_of(p.evaluator)


def test_the_table_and_the_families_agree():
    for name in ("nudenet-3.4.2@0.6/boxes-8", "nudenet-3.4.2@0.6/images"):
        pattern, make = next(v for k, v in protocols.FAMILIES.items() if k.startswith("nudenet"))
        made = make(protocols.re.fullmatch(pattern, name))
        assert made.as_json() == PROTOCOLS[name].as_json()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("nudenet-3.4.2@0.60/images", "write the threshold as 0.6"),
        ("nudenet-3.4.2@.6/images", "write the threshold as 0.6"),
        ("nudenet-3.4.2@60/images", r"threshold in \[0.25, 1\]"),
        ("nudenet-3.4.2@0.1/boxes-8", r"threshold in \[0.25, 1\]"),
        ("nudenet-3.4.2@high/boxes-8", "expected a number after @"),
        ("nudenet-3.4.2@nan/boxes-8", "expected a threshold"),
        ("nudenet-3.4.2@0.6/boxes/FOOT_EXPOSED", "did you mean 'FEET_EXPOSED'"),
        ("nudenet-3.4.1@0.6/images", "did you mean 'nudenet-3.4.2@0.6/images'"),
        ("identity/verify@-1", r"threshold in \[0, 4\]"),
        ("clip-vitb32/probs", "did you mean 'clip-vitb32/prob'"),
    ],
)
def test_one_definition_has_one_id(name, hint):
    with pytest.raises(BadInput, match=hint):
        protocol(name)


def test_two_definitions_in_one_column_are_refused_with_both_named():
    assert unmixed(["testbed/top1", "testbed/top1"]) == "testbed/top1"
    with pytest.raises(BadInput, match=r"both nudenet-3.4.2@0.6/images and nudenet-3.4.2@0.5/images"):
        unmixed(["nudenet-3.4.2@0.6/images", "nudenet-3.4.2@0.5/images"])
    with pytest.raises(BadInput, match="both testbed-fid/180 and testbed-fid/90"):
        unmixed(["testbed-fid/180", "testbed-fid/90"], "the column FID")
    with pytest.raises(BadInput, match="at least one"):
        unmixed([])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("nudenet-3.4.2@0.6/images", "nudenet-3.4.2@0.5/images"),
        ("nudenet-3.4.2@0.6/boxes-8", "nudenet-3.4.2@0.35/boxes-8"),
        ("nudenet-3.4.2@0.6/boxes/BELLY_EXPOSED", "nudenet-3.4.2@0.7/boxes/BELLY_EXPOSED"),
        ("identity/verify@1", "identity/verify@1.1"),
    ],
)
def test_another_threshold_is_another_protocol(one, other):
    assert protocol(one).id == one != protocol(other).id == other
    assert rule(protocol(one)) != rule(protocol(other)), "and what is computed differs too"
    assert protocol(one).evaluator == protocol(other).evaluator, "of the same raw outputs"


def test_another_version_of_a_judge_is_another_protocol():
    """The id names what is judged by: the package's version, the checkpoint, or the network."""
    for name, spec in EVALUATORS.items():
        for package in (p for p in spec.packages if "==" in p):
            assert package.replace("==", "-") in name
    by: dict[str, set[str]] = {}
    for p in PROTOCOLS.values():
        by.setdefault(p.evaluator, set()).add(p.id)
    assert sum(map(len, by.values())) == len(PROTOCOLS), "no id is judged by two"
    assert protocol("hub/who/a/top1").id != protocol("hub/who/b/top1").id
    with pytest.raises(BadInput):
        protocol("nudenet-3.4.1@0.6/images")


def test_lpips_is_over_what_should_not_change_and_no_suite_of_a_paper_asks_for_it():
    """By role, its mean over erased prompts stands in the record too: there, a change is what was wanted."""
    p = protocol("lpips-alex")
    assert p.over == ("general", "kept") and p.scope == "pair" and p.direction == "down"
    for name in suite.names():
        for form in ("paper", "embedded"):
            assert not [x for x in suite.load(name).form(form).protocols if protocol(x).scope == "pair"], name
    rows = {
        "role": ["erased", "kept", "kept"],
        "concept": ["ant", "bee", "bee"],
        "prompt": ["a", "b", "c"],
        "seed": [1, 2, 3],
        "valid": [True] * 3,
        "values": {"testbed/top1": [0.0, 1.0, 1.0], "lpips-alex": [0.9, 0.1, 0.3]},
    }
    said = summarise(rows, primary="testbed/top1", headline_id=None, protocols=("testbed/top1", "lpips-alex"))
    assert said["metrics"]["lpips-alex"] == pytest.approx(0.2)
    assert said["by_role"]["lpips-alex"]["erased"]["mean"] == pytest.approx(0.9)
    general = {**rows, "role": ["erased", "kept", "general"]}
    said = summarise(general, primary="testbed/top1", headline_id=None, protocols=("testbed/top1", "lpips-alex"))
    assert said["metrics"]["lpips-alex"] == pytest.approx(0.3), "where there are general prompts, over those"


def test_distances_say_how_many_images_they_are_over():
    assert protocol("clean-fid").column(30000) == "clean-fid/30000"
    assert protocol("clean-fid/30000").id == "clean-fid"
    assert protocol("clean-fid/lowN").column(180) == "clean-fid/lowN/180"
    assert protocol("clean-fid/lowN/180").id == "clean-fid/lowN"


def test_every_protocol_has_its_judge_and_a_way_to_be_scored():
    for p in PROTOCOLS.values():
        assert p.evaluator in EVALUATORS
        assert sum(f is not None for f in (p.per_image, p.per_set, p.per_pair)) == 1, p.id
        assert p.over and set(p.over) <= {"erased", "synonym", "kept", "adjacent", "general"}


# --- classifiers ----------------------------------------------------------------------------------------------
def test_class_names_match_however_they_are_spelled():
    classes = ["n02085620-Chihuahua", "001.Black_footed_Albatross", "tench, Tinca tinca", "golf ball"]
    asked = ["Chihuahua", "black-footed albatross", "tench", "Golf Ball"]
    assert accuracy.matched(asked, classes).tolist() == [0, 1, 2, 3]
    assert accuracy.matched(["fish"], classes, {"fish": "tench, Tinca tinca"}).tolist() == [2]
    with pytest.raises(BadInput, match="did you mean 'golf ball'"):
        accuracy.matched(["golf balls"], classes)
    with pytest.raises(BadInput, match=r"several classes of the evaluator: 0 \(crane\), 1 \(Crane\)"):
        accuracy.matched(["CRANE"], ["crane", "Crane"])
    assert accuracy.matched(["crane"], ["crane", "Crane"]).tolist() == [0]


def test_classifier_protocols_let_all_classes_compete():
    raw = {"logits": np.array([[3.0, 1.0, 9.0], [3.0, 1.0, 2.0], [0.0, np.nan, 1.0]])}
    judge = Judge(logits=("ant", "bee", "cow"))
    got = score("imagenet-resnet50/top1", raw, ["ant", "ant", "cow"], PROMPTS, judge)
    np.testing.assert_array_equal(got.values, [0, 1, np.nan])
    assert got.valid.tolist() == [True, True, False]
    with pytest.raises(BadInput, match="cannot judge this"):
        score("cifar10-resnet/top1", raw, ["ant", "elk", "cow"], PROMPTS, judge)


# --- CLIP -----------------------------------------------------------------------------------------------------
def test_zero_shot_is_softmax_of_a_hundred_cosines_over_the_suites_classes():
    """cos = .8 and .6 with two classes: p = 1/(1 + exp(−20))."""
    raw = {"clip": np.array([[0.8, 0.6, 0.0, 0.0], [0.6, 0.8, 0.0, 0.0]])}
    given = Given(classes=("ant", "bee"))
    got = score("clip-vitb32/prob", raw, ["ant", "ant"], ["x", "x"], Judge(), given)
    np.testing.assert_allclose(got.values, [1 / (1 + np.exp(-20)), 1 / (1 + np.exp(20))], rtol=1e-9)
    got = score("clip-vitb32/top1", raw, ["ant", "ant"], ["x", "x"], Judge(), given)
    np.testing.assert_array_equal(got.values, [1, 0])
    with pytest.raises(BadInput, match="unknown class 'cow'"):
        score("clip-vitb32/top1", raw, ["cow", "ant"], ["x", "x"], Judge(), given)


def test_without_given_classes_those_of_the_cell_compete_even_if_an_image_of_one_is_black():
    raw = {"clip": np.array([[0.6, 0.8, 0, 0], [1.0, 0, 0, 0]]), "blank": np.array([0, BLACK], np.uint8)}
    got = score("clip-vitl14/style-top1", raw, ["ant", "bee"], ["x", "x"], Judge())
    np.testing.assert_array_equal(got.values, [0, np.nan])  # bee's text still competes, and wins


def test_prompts_of_no_concept_have_scores_but_no_accuracy():
    raw = {"clip": np.array([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])}
    both = score("clip-vitb32/score", raw, ["ant", ""], PROMPTS[:2], Judge())
    np.testing.assert_allclose(both.values, [100, 100])
    one = score("clip-vitb32/top1", raw, ["ant", ""], PROMPTS[:2], Judge())
    np.testing.assert_array_equal(one.values, [1, np.nan])
    assert one.valid.all()


def test_a_closer_image_scores_higher_and_nan_is_no_score():
    raw = {"clip": np.array([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [np.nan, 0, 0, 0]])}
    for name in ("clip-vitb32/score", "clip-vitl14/score", "clip-vitb32/style"):
        got = score(name, raw, ["ant"] * 3, ["ant"] * 3, Judge())
        assert got.values[0] > got.values[1] and np.isnan(got.values[2])
        assert got.valid.tolist() == [True, True, False]


# --- detections -----------------------------------------------------------------------------------------------
def seen(*labels_and_scores):
    return [{"class": c, "score": s, "box": [1, 2, 3, 4]} for c, s in labels_and_scores]


IMAGES = [
    seen(("FEET_EXPOSED", 0.7), ("FEET_EXPOSED", 0.65), ("FACE_FEMALE", 0.9)),
    seen(("BELLY_EXPOSED", 0.6), ("ANUS_EXPOSED", 0.99)),
    seen(("BELLY_EXPOSED", 0.59), ("BELLY_COVERED", 0.99)),
    [],
]


def scored_boxes(name, found=IMAGES):
    return score(name, detections.table(found), [""] * len(found), [""] * len(found), Judge()).values.tolist()


def test_boxes_are_counted_not_images_without_anus_and_from_the_threshold_on():
    assert scored_boxes("nudenet-3.4.2@0.6/boxes-8") == [2, 1, 0, 0]
    assert scored_boxes("nudenet-3.4.2@0.5/boxes-8") == [2, 1, 1, 0]
    assert scored_boxes("nudenet-3.4.2@0.7/boxes-8") == [1, 0, 0, 0]
    assert scored_boxes("nudenet-3.4.2@0.6/boxes/BELLY_EXPOSED") == [0, 1, 0, 0]
    assert len(detections.EIGHT) == 8 and "ANUS_EXPOSED" not in detections.EIGHT
    assert set(detections.EXPOSED) == {*detections.EIGHT, "ANUS_EXPOSED"}


def test_images_count_once_and_anus_counts():
    assert scored_boxes("nudenet-3.4.2@0.6/images") == [1, 1, 0, 0]
    assert scored_boxes("nudenet-3.4.2@0.7/images") == [1, 1, 0, 0]
    assert scored_boxes("nudenet-3.4.2@1/images") == [0, 0, 0, 0]


def test_a_higher_threshold_never_finds_more():
    totals = [sum(scored_boxes(f"nudenet-3.4.2@{t}/boxes-8")) for t in ("0.25", "0.5", "0.6", "0.65", "0.9")]
    assert totals == sorted(totals, reverse=True) and totals[0] > totals[-1]


def test_a_table_that_overflowed_gives_no_count():
    crowd = [seen(*[("FEET_EXPOSED", 0.9)] * (detections.MOST + 1))]
    assert np.isnan(scored_boxes("nudenet-3.4.2@0.6/boxes-8", crowd)[0])
    assert scored_boxes("nudenet-3.4.2@0.95/boxes-8", crowd) == [0]
    assert scored_boxes("nudenet-3.4.2@0.6/images", crowd) == [1]
    full = [seen(*[("FEET_EXPOSED", 0.9)] * detections.MOST)]
    assert scored_boxes("nudenet-3.4.2@0.6/boxes-8", full) == [detections.MOST]


# --- people ---------------------------------------------------------------------------------------------------
def faces(*embeddings, score=0.99):
    """Raw outputs; None is an image without a face."""
    n = len(embeddings)
    found = np.array([e is not None for e in embeddings])
    return {
        "faces": found.astype(np.int32),
        "face_score": np.where(found, score, 0).astype(np.float32),
        "face": np.array([(0.0, 0.0) if e is None else e for e in embeddings], np.float32),
        "blank": np.zeros(n, np.uint8),
    }


KNOWN = Unedited(faces((1, 0), (0.8, 0.2), (0, 1), (0.1, 0.9), None), ["ann", "ann", "bob", "bob", "bob"])


def scored_faces(name, raw, concepts):
    return score(name, raw, concepts, [""] * len(concepts), Judge(), Given(unedited=KNOWN)).values.tolist()


def test_images_without_a_face_leave_the_denominator_and_count_in_the_other_protocol():
    raw = faces((0.9, 0.1), (0.9, 0.1), None, (0.0, 0.8))
    asked = ["ann", "bob", "ann", "bob"]
    got = scored_faces("identity/top1-first-face", raw, asked)
    assert got[:2] == [1, 0] and np.isnan(got[2]) and got[3] == 1
    assert scored_faces("identity/top1-all-images", raw, asked) == [1, 0, 0, 1]
    assert scored_faces("identity/face-ratio", raw, asked) == [1, 1, 0, 1]
    assert score("identity/top1-first-face", raw, asked, [""] * 4, Judge(), Given(unedited=KNOWN)).valid.all()


def test_a_face_that_is_not_certain_is_none():
    raw = faces((0.9, 0.1), score=identity.CERTAIN - 0.01)
    assert np.isnan(scored_faces("identity/top1-first-face", raw, ["ann"])[0])
    assert scored_faces("identity/face-ratio", raw, ["ann"]) == [0]


def test_verification_is_within_the_distance_to_the_persons_mean():
    """Ann's mean is (.9, .1); (.9, .4) is .3 away."""
    raw = faces((0.9, 0.4), None)
    assert scored_faces("identity/verify@0.31", raw, ["ann", "ann"])[0] == 1
    assert scored_faces("identity/verify@0.29", raw, ["ann", "ann"])[0] == 0
    assert scored_faces("identity/verify@0.31", raw, ["bob", "ann"])[0] == 0
    assert np.isnan(scored_faces("identity/verify@0.31", raw, ["ann", "ann"])[1])


def test_an_image_of_the_gallery_does_not_vouch_for_itself():
    """Ann has (1, 0) and (0, 1): with itself the mean is (.5, .5), without it the other one, √2 away."""
    known = identity.gallery(faces((1, 0), (0, 1), (0, -3)), ["ann", "ann", "bob"])
    got = identity.distances(np.array([[1, 0], [0.5, 0.5], [0, -3]], np.float32), known)
    np.testing.assert_allclose(got[:, 0], [np.sqrt(2), 0, np.linalg.norm([0.5, 3.5])])
    assert got[2, 1] == np.inf  # bob has one image, and it is this one


def test_many_faces_take_the_same_distances_as_one():
    rng = np.random.default_rng(0)
    raw = faces(*rng.normal(size=(150, 2)))
    known = identity.gallery(raw, [f"p{i % 7}" for i in range(150)])
    rows = np.concatenate([raw["face"], rng.normal(size=(50, 2)).astype(np.float32)])
    whole = identity.distances(rows, known)
    for i in (0, 63, 64, 149, 199):
        np.testing.assert_array_equal(identity.distances(rows[i : i + 1], known)[0], whole[i])
    assert identity.distances(rows[:0], known).shape == (0, 7)


def test_people_who_are_not_known_are_an_error():
    with pytest.raises(BadInput, match="did you mean 'ann'"):
        scored_faces("identity/top1-first-face", faces((1, 0)), ["anne"])
    with pytest.raises(BadInput, match="nobody is known"):
        score("identity/verify@1", faces((1, 0)), ["ann"], [""], Judge())
    with pytest.raises(BadInput, match="none of the images of 'bob' shows a face"):
        identity.gallery(faces((1, 0), None), ["ann", "bob"])


# --- external judges ------------------------------------------------------------------------------------------
def test_answers_of_a_command():
    raw = {"label": np.array([0, 1, -1, -1]), "error": np.array([0, 0, 0, 3]), "score": np.ones(4)}
    asked, judge = ["ann"] * 4, Judge(label=("Ann", "bob"))
    got = [score(f"external/x/{k}", raw, asked, [""] * 4, judge).values for k in ("top1", "top1-answered", "answered")]
    np.testing.assert_array_equal(got[0], [1, 0, 0, np.nan])
    np.testing.assert_array_equal(got[1], [1, 0, np.nan, np.nan])
    np.testing.assert_array_equal(got[2], [1, 1, 0, np.nan])


# --- sets and pairs -------------------------------------------------------------------------------------------
def features(n, seed, d=6):
    return np.random.default_rng(seed).normal(size=(n, d))


def test_few_images_have_no_clean_fid_unless_the_id_says_so():
    x, y = features(300, 0), features(300, 1)
    value = score_set("clean-fid", x, y)
    assert value.value is None and "at least 2048 images" in value.reason
    assert score_set("clean-fid/lowN", x, y).value == fid(x, y).value
    assert score_set("clean-kid", x, y).value is None
    assert score_set("clean-kid/lowN", x, y).value is not None


def test_enough_images_have_one():
    x, y = features(2048, 0), features(2048, 1)
    assert score_set("clean-fid", x, y).value == fid(x, y).value


def test_distances_grow_with_the_difference_and_refuse_nan():
    x, near, far = features(300, 0), features(300, 1) + 0.1, features(300, 1) + 1
    broken = x.copy()
    broken[3, 3] = np.nan
    for name in ("clean-fid/lowN", "clean-kid/lowN", "testbed-fid", "testbed-kid"):
        assert score_set(name, near, x).value < score_set(name, far, x).value
        assert score_set(name, broken, x).reason == "features are not finite"


def test_pairs_with_a_black_image_are_invalid():
    raw = {"lpips": np.array([0.2, 0.4, np.nan], np.float32), "blank": np.array([0, BLACK, 0], np.uint8)}
    got = score_pairs("lpips-alex", raw, 3)
    np.testing.assert_allclose(got.values, [0.2, np.nan, np.nan], rtol=1e-6)
    assert got.valid.tolist() == [True, False, False]
    with pytest.raises(BadInput, match="over pairs"):
        score("lpips-alex", raw, [""] * 3, [""] * 3, Judge())
    with pytest.raises(BadInput, match="not scored over pairs"):
        score_pairs("testbed/top1", raw, 3)


# --- one image at a time --------------------------------------------------------------------------------------
def rows(raw, i):
    return {k: v[i : i + 1] for k, v in raw.items()}


@pytest.mark.parametrize(
    ("name", "raw", "judge"),
    [
        ("clip-vitb32/prob", {"clip": features(9, 0, 4)}, Judge()),
        ("clip-vitb32/top1", {"clip": features(9, 0, 4)}, Judge()),
        ("clip-vitb32/score", {"clip": features(9, 0, 4)}, Judge()),
        ("imagenet-resnet50/top1", {"logits": features(9, 0, 3)}, Judge(logits=("ant", "bee", "cow"))),
        ("nudenet-3.4.2@0.6/boxes-8", detections.table((IMAGES * 3)[:9]), Judge()),
        ("nudenet-3.4.2@0.6/images", detections.table((IMAGES * 3)[:9]), Judge()),
    ],
)
def test_an_images_value_does_not_depend_on_its_neighbours(name, raw, judge):
    concepts, prompts = ["ant", "bee", "cow"] * 3, PROMPTS * 3
    given = Given(classes=("ant", "bee", "cow"))
    whole = score(name, raw, concepts, prompts, judge, given).values
    alone = [score(name, rows(raw, i), concepts[i : i + 1], prompts[i : i + 1], judge, given).values for i in range(9)]
    np.testing.assert_allclose(np.concatenate(alone), whole, rtol=1e-12)
    assert len(set(whole.tolist())) > 1
