"""Balance scores: values printed in papers, undefined cases, and the percent trap."""

import math

import numpy as np
import pytest

from benchmark.errors import BadInput
from benchmark.metrics.balance import ERB, HEADLINES, H_a, H_c, H_fade_adv, H_o, harmonic_mean, headline


@pytest.mark.parametrize(
    ("score", "printed"),
    [
        (H_c(0.0430, 0.8456), 0.8979),
        (H_c(0.0430, 0.8807), 0.9173),
        (H_o(0.0906, 0.9539, 0.1003), 0.9204),
        (H_o(0.4032, 0.9879, 0.4983), 0.6409),
    ],
)
def test_values_printed_in_papers(score, printed):
    assert score == pytest.approx(printed, abs=1e-4)


def test_esd_u_printed_celebrity_score_does_not_follow_from_its_parts():
    """The table prints .4598; 2 / (1/p + 1/q) of its parts is .5555: the claims checker must see the difference."""
    assert abs(0.5555 - 0.4598) > 0.05
    assert harmonic_mean(0.5555, 0.5555) == pytest.approx(0.5555)


def test_mean_of_scores_is_not_score_of_means():
    parts = [(0.0, 0.9, 0.0), (0.8, 0.9, 0.8)]
    of_means = H_o(*np.mean(parts, axis=0))
    assert np.mean([H_o(*p) for p in parts]) < of_means - 0.05


def test_a_part_at_zero_is_zero_and_a_missing_part_is_not_available():
    assert H_o(1.0, 0.9, 0.1) == 0.0
    assert harmonic_mean(0, 0) == 0.0
    for missing in (None, math.nan, math.inf):
        assert H_o(0.1, missing, 0.1) is None
        assert H_c(missing, 0.9) is None
        assert ERB(0.1, missing) is None
        assert ERB(0.1, [0.9, missing]) is None
        assert H_a(missing, 20.0) is None
    assert ERB(0.1, []) is None
    assert harmonic_mean(None, 0.5) is None


@pytest.mark.parametrize("bad", [9.06, -0.1, 1.0001, 95.39])
def test_percent_is_refused(bad):
    for call in (lambda: H_o(bad, 0.9, 0.1), lambda: H_c(0.1, bad), lambda: ERB(bad, 0.5), lambda: harmonic_mean(bad)):
        with pytest.raises(BadInput, match=r"fraction in \[0, 1\]"):
            call()


def test_percent_hint_says_what_to_pass():
    with pytest.raises(BadInput, match=r"in percent\? then pass 0\.9539"):
        H_c(0.04, 95.39)


def test_h_a_is_a_difference_and_may_be_negative():
    assert H_a(25.0, 28.5) == pytest.approx(3.5)
    assert H_a(28.5, 25.0) == pytest.approx(-3.5)


def test_h_fade_adv():
    same = {"clip_unedited": 31.0, "fid_unedited": 13.0}
    assert H_fade_adv(0.0, 31.0, 13.0, **same, clipped=False) == pytest.approx(1.0)  # E = F = 1
    # E = .5, F = ½(1 + max(26 − 26, 0)/13) = .5
    assert H_fade_adv(0.5, 31.0, 26.0, **same, clipped=False) == pytest.approx(0.5)
    better = H_fade_adv(0.0, 34.1, 6.5, **same, clipped=False)  # F = ½(1.1 + 1.5) = 1.3
    assert better == pytest.approx(2 * 1.3 / 2.3)
    assert H_fade_adv(0.0, 34.1, 6.5, **same, clipped=True) == pytest.approx(1.0)
    assert H_fade_adv(1.0, 31.0, 13.0, **same, clipped=True) == 0.0
    assert H_fade_adv(0.0, None, 13.0, **same, clipped=True) is None
    with pytest.raises(BadInput, match="above 0"):
        H_fade_adv(0.0, 31.0, 13.0, clip_unedited=31.0, fid_unedited=0.0, clipped=True)


def test_erb_takes_the_mean_of_adjacent_classes():
    assert ERB(0.2, [0.6, 1.0]) == pytest.approx(ERB(0.2, 0.8))
    assert ERB(0.2, 0.8) == pytest.approx(0.8, abs=1e-7)
    assert ERB(1.0, 0.0) == 0.0


def test_draws_agree_with_the_scores_they_stand_for():
    rng = np.random.default_rng(0)
    for h in HEADLINES.values():
        parts = rng.random((len(h.roles), 20))
        expected = [h.score(*p) for p in parts.T]
        np.testing.assert_allclose(h.draws(*parts), expected, rtol=1e-12)
    np.testing.assert_array_equal(HEADLINES["H_c"].draws(np.ones(2), np.ones(2)), [0, 0])


def test_better_parts_never_score_worse():
    assert H_o(0.1, 0.9, 0.1) < H_o(0.05, 0.9, 0.1) < H_o(0.05, 0.95, 0.1) < H_o(0.05, 0.95, 0.05)


def test_unknown_headline_gets_a_suggestion():
    with pytest.raises(BadInput, match="did you mean 'H_o'"):
        headline("h_o")
