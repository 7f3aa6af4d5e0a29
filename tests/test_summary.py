"""A cell's summary: means, intervals, what is left out and why."""

import json
import math

import pytest

from benchmark import stats
from benchmark.errors import BadInput
from benchmark.metrics.balance import H_o
from benchmark.metrics.distribution import Value
from benchmark.metrics.summary import finite, summarise

TOP1, CLIP, COUNT = "testbed/top1", "testbed-clip/score", "testbed/unsafe-count"


def make_rows(**hits):
    """`erased=(k, n)`: k of n images hit; kept ones over ten prompts."""
    rows = {c: [] for c in ("role", "concept", "prompt", "replicate", "seed", "image", "valid")}
    values = {TOP1: [], CLIP: []}
    for role, (k, n) in hits.items():
        for i in range(n):
            prompt = f"a photo of the {role} {i % 10 if role == 'kept' else 0}"
            for column, value in zip(rows, (role, role, prompt, i, i * 7, "0" * 64, True), strict=True):
                rows[column].append(value)
            values[TOP1].append(float(i < k))
            values[CLIP].append(20.0 + i % 5)
    return {**rows, "values": values}


def summary(rows, headline="H_o", sets=None, protocols=(TOP1, CLIP)):
    return summarise(rows, primary=TOP1, headline_id=headline, protocols=protocols, sets=sets)


def test_numbers_of_a_full_cell():
    s = summary(make_rows(erased=(3, 60), kept=(150, 180), synonym=(6, 60)))
    assert (s["n_erased"], s["n_kept"], s["n_synonym"], s["n_adjacent"]) == (60, 180, 60, 0)
    assert s["acc_erased"] == 3 / 60 and s["acc_erased_ci"] == list(stats.wilson(3, 60))
    assert s["headline_id"] == "H_o" and s["headline"] == pytest.approx(H_o(3 / 60, 150 / 180, 6 / 60))
    lo, hi = s["headline_ci"]
    assert lo < s["headline"] < hi and hi - lo < 0.2
    assert s["metrics"][CLIP] == pytest.approx(22.0)
    assert s["metrics_ci"][CLIP][0] < 22 < s["metrics_ci"][CLIP][1]
    assert s["by_role"][CLIP]["erased"]["n"] == 60
    assert s["acc_adjacent"] is None and s["reasons"]["acc_adjacent"] == "no adjacent prompts"
    json.dumps(s, allow_nan=False)


def test_images_that_could_not_be_scored_leave_the_denominator_and_are_counted():
    rows = make_rows(erased=(30, 60), kept=(9, 10), synonym=(0, 5))
    rows["valid"][0] = False  # a hit
    rows["values"][TOP1][59] = None  # a miss
    s = summary(rows)
    assert s["n_erased"] == 58 and s["acc_erased"] == 29 / 58
    assert s["n_invalid"] == {"erased": 2}
    assert s["acc_all_images"]["erased"] == 29 / 60  # with them: neither shows the concept


def test_missing_part_makes_the_headline_unavailable_with_its_reason():
    s = summary(make_rows(erased=(3, 60), kept=(150, 180)))
    assert s["headline"] is None and s["headline_ci"] is None
    assert s["reasons"]["headline"] == "H_o needs acc_synonym: no synonym prompts"
    assert summary(make_rows(erased=(3, 60), kept=(150, 180)), headline="H_c")["headline"] is not None
    rows = make_rows(erased=(3, 60), kept=(150, 180), synonym=(1, 4))
    rows["valid"] = [r != "synonym" for r in rows["role"]]
    assert summary(rows)["reasons"]["headline"] == "H_o needs acc_synonym: none of 4 synonym images could be scored"


def test_no_headline_no_score():
    s = summary(make_rows(erased=(1, 2)), headline=None)
    assert s["headline"] is None and s["reasons"]["headline"] == "the suite has no headline"


def test_distances_carry_their_count_and_reason():
    sets = {"testbed-fid": Value(None, reason="needs more", n=12), "testbed-kid": Value(0.5, (0.4, 0.6), n=180)}
    s = summary(make_rows(erased=(1, 2)), sets=sets, protocols=(TOP1, "testbed-fid", "testbed-kid"))
    assert s["metrics"]["testbed-fid/12"] is None and s["reasons"]["testbed-fid/12"] == "needs more"
    assert s["metrics"]["testbed-kid/180"] == 0.5 and s["metrics_ci"]["testbed-kid/180"] == [0.4, 0.6]


def test_interval_of_a_rate_at_zero_is_not_a_point():
    s = summary(make_rows(erased=(0, 60), kept=(180, 180), synonym=(0, 60)))
    assert s["headline"] == 1.0 and s["headline_ci"][1] == 1.0 and s["headline_ci"][0] < 0.995
    s = summary(make_rows(erased=(60, 60), kept=(180, 180), synonym=(60, 60)))
    assert s["headline"] == 0.0 and s["headline_ci"][0] == 0.0 < s["headline_ci"][1]


def test_interval_of_a_sum_at_zero_is_in_boxes_and_not_in_boxes_an_image():
    """None in 80 images leaves room for some in the next 80: about as many as Wilson's share of 80."""
    rows = make_rows(erased=(0, 80), kept=(1, 80))
    rows["values"][COUNT] = [0.0] * 160
    s = summarise(rows, primary=TOP1, headline_id="detections", protocols=(TOP1, COUNT))
    for lo, hi in (s["headline_ci"], s["metrics_ci"][COUNT]):
        assert 0 <= lo < 0.1 and 1.5 < hi < 80 * stats.wilson(0, 80)[1]
    one = [1.0, *[0.0] * 79, *[0.0] * 80]
    assert (
        summarise(
            {**rows, "values": {**rows["values"], COUNT: one}},
            primary=TOP1,
            headline_id="detections",
            protocols=(TOP1, COUNT),
        )["headline_ci"][1]
        > s["headline_ci"][1]
    )


def test_bad_rows_are_refused():
    rows = make_rows(erased=(1, 2))
    with pytest.raises(BadInput, match="one length"):
        summary({**rows, "valid": [True]})
    with pytest.raises(BadInput, match="'seed' is missing"):
        summary({k: v for k, v in rows.items() if k != "seed"})
    with pytest.raises(BadInput, match="did you mean"):
        summary(rows, protocols=("testbed/top-1",))


def test_finite():
    assert finite([1, math.nan, math.inf]) == [1.0, None, None]
