"""Paired tests: exact against enumeration, errors of the family by simulation, power."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from benchmark import regress_stats
from benchmark.errors import BadInput


def enumerated(d: list[float]) -> float:
    """p of the mean over all sign patterns."""
    sums = [
        abs(sum(s * x for s, x in zip(signs, d, strict=True))) for signs in itertools.product((-1, 1), repeat=len(d))
    ]
    return sum(s >= abs(sum(d)) - 1e-12 for s in sums) / len(sums)


@pytest.mark.parametrize("seed", range(4))
def test_random_signs_are_the_exact_test_up_to_their_number(seed: int):
    d = np.random.default_rng(seed).normal(0.4, 1, 10)
    exact = enumerated(d.tolist())
    got = regress_stats.signs_p(d, resamples=20_000)
    assert abs(got - exact) < 5 * math.sqrt(exact / 20_000) + 1e-4
    assert got == regress_stats.signs_p(d, resamples=20_000), "the same differences, the same p"


def test_the_bound_stands_in_where_no_resample_reaches_and_is_never_below_the_exact_p():
    d = np.full(40, 1.0)
    assert regress_stats.signs_p(d) == pytest.approx(2 * math.exp(-20)) and 2 * math.exp(-20) >= 2 ** (1 - 40)
    few = np.array([1.0] * 8)
    assert regress_stats.signs_p(few) >= enumerated(few.tolist()) * 0.5  # here resamples reach it
    assert regress_stats.signs_p(np.zeros(5)) == 1.0


def test_mcnemar_of_known_counts():
    """Nine pairs changed for the worse, one for the better: 2·(1 + 10)/2¹⁰."""
    before, after = [1] * 9 + [0] + [1] * 50, [0] * 9 + [1] + [1] * 50
    test = regress_stats.rate("c", "testbed/top1", "kept", before, after)
    assert test.p == pytest.approx(22 / 1024) and (test.n, test.differing) == (60, 10)
    assert test.effect == pytest.approx(-8 / 60)


def test_effects_of_scores_are_in_standard_deviations():
    before = np.array([0.0, 2.0] * 50)
    test = regress_stats.score("c", "testbed-clip/score", "kept", before.tolist(), (before + 0.5).tolist())
    assert test.effect == pytest.approx(0.5) and regress_stats.family([test])[0].flagged
    level = regress_stats.score("c", "testbed-clip/score", "kept", [3.0] * 50, [3.5] * 50)
    assert math.isinf(level.effect) and regress_stats.family([level])[0].flagged, "where nothing varied, all counts"


def test_a_small_effect_does_not_count_however_sure_it_is():
    before = np.random.default_rng(0).normal(0, 1, 4000)
    test = regress_stats.family([regress_stats.score("c", "x", "kept", before.tolist(), (before + 0.05).tolist())])[0]
    assert test.adjusted < 1e-6 and not test.flagged
    rate = regress_stats.rate("c", "x", "kept", [1.0] * 4000, [0.0] * 40 + [1.0] * 3960)
    assert regress_stats.family([rate])[0].adjusted < 1e-6 and not regress_stats.family([rate])[0].flagged


def test_tests_that_cannot_reject_cost_the_others_nothing():
    real = regress_stats.rate("c", "x", "kept", [1.0] * 60, [0.0] * 10 + [1.0] * 50)
    idle = regress_stats.rate("c", "y", "kept", [1.0] * 60, [0.0] * 2 + [1.0] * 58)
    tests = regress_stats.family([real, *[idle] * 500])
    assert tests[0].adjusted == pytest.approx(real.p) and tests[0].flagged
    assert {t.adjusted for t in tests[1:]} == {1.0}
    assert regress_stats.tarone([1.0] * 9) == 1 and regress_stats.tarone([0.001] * 9) == 9


def test_wrong_input_is_refused():
    with pytest.raises(BadInput, match="outcomes of 0 or 1"):
        regress_stats.rate("c", "x", "kept", [0.5], [1.0])
    with pytest.raises(BadInput, match="as many values"):
        regress_stats.score("c", "x", "kept", [0.5], [1.0, 2.0])
    with pytest.raises(BadInput, match="at least one"):
        regress_stats.score("c", "x", "kept", [], [])


# --- errors by simulation -------------------------------------------------------------------------------------
def rerun(rng: np.random.Generator, rate: float, n: int, flips: float) -> tuple[list[float], list[float]]:
    """Outcomes, and those of a rerun in which images near the boundary fall to either side."""
    before = (rng.random(n) < rate).astype(float)
    near = rng.random(n) < flips
    a, b = (np.where(near, rng.integers(0, 2, n), before) for _ in range(2))
    return a.tolist(), b.tolist()


def test_the_family_wise_error_rate_of_rates_holds():
    """400 families of 30 tests without a change: at most 5 % may reject, within three standard errors."""
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(400):
        tests = [
            regress_stats.rate(str(i), "x", "kept", *rerun(rng, rng.uniform(0.05, 0.95), 100, 0.3)) for i in range(30)
        ]
        wrong += any(t.adjusted < regress_stats.LEVEL for t in regress_stats.family(tests))
    assert wrong / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400), wrong


def test_the_family_wise_error_rate_of_scores_holds():
    """150 families of 8 tests, heavy tails; noise as large as the values."""
    rng, wrong = np.random.default_rng(2), 0
    for _ in range(150):
        pairs = [(rng.standard_t(3, 40), rng.standard_t(3, 40)) for _ in range(8)]
        tests = [regress_stats.score(str(i), "x", "kept", a.tolist(), b.tolist()) for i, (a, b) in enumerate(pairs)]
        wrong += any(t.adjusted < regress_stats.LEVEL for t in regress_stats.family(tests))
    assert wrong / 150 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 150), wrong


def test_a_real_change_is_found_among_many_tests_and_more_surely_with_more_images():
    found = {}
    for n in (30, 60, 120):
        rng, found[n] = np.random.default_rng(n), 0
        for _ in range(40):
            tests = [regress_stats.rate(str(i), "x", "kept", *rerun(rng, 0.9, n, 0.02)) for i in range(40)]
            before = (rng.random(n) < 0.9).astype(float)
            after = np.where(rng.random(n) < 0.3, 0.0, before)
            tests.append(regress_stats.rate("real", "x", "kept", before.tolist(), after.tolist()))
            found[n] += regress_stats.family(tests)[-1].flagged
    assert found[30] <= found[60] <= found[120] and found[60] >= 36 and found[120] == 40, found
