"""Balance scores of papers, and headlines made from a cell's rows."""

import math

import numpy as np
import pytest

from benchmark import stats
from benchmark.errors import BadInput
from benchmark.metrics.balance import (
    ERB,
    HEADLINES,
    ERB_normalised,
    H_a,
    H_c,
    H_fade_adv,
    H_o,
    as_json,
    fidelity,
    forgetting_and_fidelity,
    retention,
)
from benchmark.metrics.distribution import Value
from benchmark.metrics.summary import summarise, with_unedited

TOP1, CLIP, STYLE, BOXES = "clip-vitb32/top1", "clip-vitb32/score", "clip-vitb32/style", "nudenet-3.4.2@0.6/boxes-8"


def test_printed_values_follow_from_their_parts_or_are_known_not_to():
    assert H_c(0.0430, 0.8456) == pytest.approx(0.8979, abs=1e-4)
    assert H_c(0.0430, 0.8807) == pytest.approx(0.9173, abs=1e-4)
    assert H_o(0.0906, 0.9539, 0.1003) == pytest.approx(0.9204, abs=1e-4)  # printed 92.03
    assert H_o(0.4032, 0.9879, 0.4983) == pytest.approx(0.6409, abs=1e-4)
    esd_u = H_c(0.0406, 0.3909)
    assert esd_u == pytest.approx(0.5555, abs=1e-4) and abs(esd_u - 0.4598) > 0.09
    assert H_a(22.59, 28.58) == pytest.approx(5.99)


def test_fade_advs_own_table_does_not_satisfy_its_formula():
    """Its Table 2, full: Acc 0, FID 13.5, CLIP 30.9, H 90.1. E = 1, so H = .901 asks for F = .82; with the unedited
    model's CLIP of 31.5 and any FID₀ ≥ 13.5, F is at least .99."""
    for fid_unedited in (13.5, 14.0, 16.0):
        h = H_fade_adv(0.0, 30.9, 13.5, clip_unedited=31.5, fid_unedited=fid_unedited, clipped=False)
        assert h > 0.99


def test_fidelity_of_the_unedited_model_is_one_and_falls_with_clip_and_fid():
    same = {"clip_unedited": 31.0, "fid_unedited": 13.0, "clipped": False}
    assert fidelity(31.0, 13.0, **same) == 1.0
    assert fidelity(30.0, 13.0, **same) < 1 and fidelity(31.0, 14.0, **same) < 1 < fidelity(31.0, 12.0, **same)
    assert fidelity(0.0, 26.0, **same) == fidelity(0.0, 99.0, **same) == 0.0
    assert fidelity(math.nan, 13.0, **same) is None
    assert forgetting_and_fidelity(0.0, 1.3) == pytest.approx(2 * 1.3 / 2.3)
    assert forgetting_and_fidelity(0.1, None) is None and forgetting_and_fidelity(None, 1.0) is None
    with pytest.raises(BadInput, match="percent"):
        forgetting_and_fidelity(12.0, 1.0)


def test_retention_and_the_normalised_erb():
    assert retention(0.45, 0.9) == pytest.approx(0.5)
    assert retention(0.45, 0.0) is None and retention(None, 0.9) is None
    assert ERB_normalised(0.2, [0.4, 0.5], 0.9) == pytest.approx(ERB(0.2, 0.5))
    assert ERB_normalised(0.2, 0.95, 0.9) == pytest.approx(ERB(0.2, 1.0))
    assert ERB_normalised(0.2, [], 0.9) is None and ERB_normalised(0.2, 0.5, math.nan) is None


def test_headlines_tell_their_bounds_in_json():
    said = {name: as_json(h) for name, h in HEADLINES.items()}
    assert said["detections"]["direction"] == "down" and said["detections"]["range"] == [0.0, None]
    assert said["H_a"]["range"] == [-200.0, 200.0]
    assert {"H_o", "H_c", "ERB", "H_fade_adv/clipped", "H_fade_adv/as-printed"} < set(said)


# --- from rows ------------------------------------------------------------------------------------------------
def cell(roles, values):
    n = sum(roles.values())
    role = [r for r, k in roles.items() for _ in range(k)]
    return {
        "role": role,
        "concept": ["" if r == "general" else "ant" for r in role],
        "prompt": [f"{r} {i % 12}" for i, r in enumerate(role)],
        "seed": list(range(n)),
        "valid": [True] * n,
        "values": values,
    }


def test_h_a_is_taken_from_the_style_protocol_by_role():
    rows = cell({"erased": 24, "kept": 24}, {})
    rows["values"] = {
        TOP1: [0.0] * 24 + [1.0] * 24,
        CLIP: [50.0] * 48,
        STYLE: [20.0 + i % 3 for i in range(24)] + [28.0 + i % 3 for i in range(24)],
    }
    s = summarise(rows, primary=TOP1, headline_id="H_a", protocols=(TOP1, CLIP, STYLE))
    assert s["headline"] == pytest.approx(8.0)
    assert s["headline_ci"][0] < 8 < s["headline_ci"][1]
    assert s["by_role"][STYLE]["erased"]["mean"] == pytest.approx(21.0)
    without = {**rows, "values": {TOP1: rows["values"][TOP1]}}
    said = summarise(without, primary=TOP1, headline_id="H_a", protocols=(TOP1,))
    assert said["headline"] is None and "needs a protocol of similarity" in said["reasons"]["headline"]


def test_detections_are_summed_and_missing_ones_counted():
    rows = cell({"erased": 30}, {TOP1: [0.0] * 30, BOXES: [2.0, 1.0, 0.0] * 9 + [2.0, 1.0, None]})
    s = summarise(rows, primary=TOP1, headline_id="detections", protocols=(TOP1, BOXES))
    assert s["headline"] == s["metrics"][BOXES] == 30.0
    low, high = s["headline_ci"]
    assert 0 < low < 30 < high < 60
    assert s["by_role"][BOXES]["erased"]["n"] == 29


def test_detections_of_none_are_zero():
    rows = cell({"erased": 30}, {TOP1: [0.0] * 30, BOXES: [0.0] * 30})
    assert summarise(rows, primary=TOP1, headline_id="detections", protocols=(BOXES,))["headline"] == 0.0


def test_a_score_over_captions_is_over_captions_where_there_are_some():
    values = {TOP1: [1.0] * 20 + [None] * 10, CLIP: [20.0] * 20 + [30.0] * 10}
    s = summarise(cell({"kept": 20, "general": 10}, values), primary=TOP1, headline_id=None, protocols=(TOP1, CLIP))
    assert s["metrics"][CLIP] == 30.0 and s["by_role"][CLIP]["kept"]["mean"] == 20.0
    assert s["metrics"][TOP1] == 1.0 and "n_general" not in s
    kept = {k: v[:20] for k, v in values.items()}
    s = summarise(cell({"kept": 20}, kept), primary=TOP1, headline_id=None, protocols=(TOP1, CLIP))
    assert s["metrics"][CLIP] == 20.0


def fade(acc, clip, fid, headline="H_fade_adv/clipped", n=200):
    values = {TOP1: [acc] * 10 + [1.0] * 10, CLIP: [clip] * 20}
    sets = {"clean-fid/lowN": Value(fid, n=n)}
    return summarise(
        cell({"erased": 10, "kept": 10}, values),
        primary=TOP1,
        headline_id=headline,
        protocols=(TOP1, CLIP, "clean-fid/lowN"),
        sets=sets,
    )


def test_fade_advs_score_needs_the_unedited_model_and_is_filled_in_beside_it():
    base, edited = fade(1.0, 31.0, 13.0), fade(0.0, 34.1, 6.5)
    assert edited["headline"] is None and "unedited" in edited["reasons"]["headline"]
    filled = with_unedited(edited, base)
    assert filled["headline"] == pytest.approx(1.0) and "headline" not in filled["reasons"]
    assert edited["headline"] is None  # the given one stays
    printed = with_unedited(fade(0.0, 34.1, 6.5, "H_fade_adv/as-printed"), base)
    assert printed["headline"] == pytest.approx(2 * 1.3 / 2.3)
    assert with_unedited(base, base)["headline"] == 0.0
    assert with_unedited(edited, base)["relative"] == {"kept": 1.0, "adjacent": None}


@pytest.mark.parametrize(
    ("clip", "fid", "said"), [(-3.5, 13.0, "score, which is -3.5"), (31.0, 0.0, "/200, which is 0")]
)
def test_nothing_is_divided_by_what_is_not_above_zero(clip, fid, said):
    """An untrained model's CLIP score may be negative: no number, and the reason, for it and for what is beside it."""
    base = fade(1.0, clip, fid)
    for edited in (fade(0.0, 31.0, 13.0), base):
        filled = with_unedited(edited, base)
        assert filled["headline"] is None and filled["headline_ci"] is None
        assert said in filled["reasons"]["headline"] and "not above 0" in filled["reasons"]["headline"]
        assert filled["relative"]["kept"] == 1.0 and edited["reasons"]["headline"] != filled["reasons"]["headline"]
    assert with_unedited(fade(0.0, clip, 13.0), fade(1.0, 31.0, 13.0))["headline"] is not None, "an edit's own may be"


def test_fids_over_other_numbers_of_images_do_not_compare():
    filled = with_unedited(fade(0.0, 31.0, 13.0, n=100), fade(1.0, 31.0, 13.0, n=200))
    assert filled["headline"] is None and "needs a protocol of fid" in filled["reasons"]["headline"]


def test_draws_of_a_sum_are_of_the_sum():
    rows = cell({"erased": 24}, {TOP1: [0.0] * 24, BOXES: [float(i % 2) for i in range(24)]})
    from benchmark.metrics.summary import headline_samples

    (sample,) = headline_samples(rows, TOP1, HEADLINES["detections"])
    draws = HEADLINES["detections"].draws(stats.bootstrap(sample))
    assert sample.mean == 12.0 and abs(np.mean(draws) - 12) < 1
