"""Statistics against closed forms, exact enumeration and simulated coverage."""

import itertools
import math

import numpy as np
import pytest

from benchmark import stats
from benchmark.errors import BadInput
from benchmark.metrics.balance import HEADLINES


def rows(values, prompts=1, name="p"):
    """Values spread evenly over some prompts."""
    return stats.sample(values, [f"{name}{i % prompts}" for i in range(len(values))], range(len(values)))


# --- Wilson ---------------------------------------------------------------------------------------------------
def test_wilson_solves_its_own_equation():
    """The bounds are the p with (p̂ − p)² = z² p(1−p)/n."""
    z = 1.959963984540054
    for k, n in ((1, 20), (7, 20), (59, 60), (90, 180)):
        for p in stats.wilson(k, n):
            assert (k / n - p) ** 2 == pytest.approx(z * z * p * (1 - p) / n, rel=1e-9)


def test_wilson_ends_and_known_value():
    assert stats.wilson(0, 60)[0] == 0.0 and stats.wilson(60, 60)[1] == 1.0
    assert stats.wilson(0, 60)[1] == pytest.approx(0.0601714, abs=1e-6)  # z²/(n + z²)
    with pytest.raises(BadInput, match="successes"):
        stats.wilson(3, 2)
    with pytest.raises(BadInput, match="n > 0"):
        stats.wilson(0, 0)


def test_wilson_covers_on_average_and_dips_near_the_ends():
    n = 60
    bounds = [stats.wilson(k, n) for k in range(n + 1)]
    ps = np.linspace(0.0005, 0.9995, 1500)
    covered = [
        sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k, (lo, hi) in enumerate(bounds) if lo <= p <= hi)
        for p in ps
    ]
    assert 0.945 < np.mean(covered) < 0.96
    assert 0.83 < min(covered) < 0.9  # as its docstring says


# --- bootstrap ------------------------------------------------------------------------------------------------
def test_bootstrap_deviation_is_students_standard_error():
    """The variance of gamma-weighted means is s²(k−1)/k/(ka+1), set to (t/z)²·s²/k."""
    k = 12
    values = np.random.default_rng(1).random(k)
    draws = stats.bootstrap(rows(values, prompts=k), resamples=20000)
    t = 2.200985  # Student, 11 degrees of freedom
    assert draws.std() == pytest.approx(t / 1.959964 * values.std(ddof=1) / math.sqrt(k), rel=0.03)
    assert draws.mean() == pytest.approx(values.mean(), abs=0.005)


@pytest.mark.parametrize(("df", "t"), [(7, 2.364624), (19, 2.093024), (74, 1.992543)])
def test_student_quantile(df, t):
    from benchmark.stats.resampling import _student

    assert _student(1.959964, df) == pytest.approx(t, rel=1e-3)


@pytest.mark.parametrize("clusters", [8, 20])
def test_bootstrap_covers_with_few_clusters(clusters):
    rng = np.random.default_rng(clusters)
    hits = 0
    for _ in range(300):
        rates = rng.beta(8, 2, clusters)
        values = rng.binomial(1, np.repeat(rates, 10)).astype(float)
        prompts = [f"p{i // 10}" for i in range(len(values))]
        lo, hi = stats.percentile(stats.bootstrap(stats.sample(values, prompts, range(len(values)))))
        hits += lo <= 0.8 <= hi
    assert 0.90 <= hits / 300 <= 0.985


def test_images_of_one_prompt_are_not_independent():
    """Ten prompts of 20 equal images tell as much as ten images: clustering must see it."""
    values = np.repeat(np.arange(10) % 2, 20).astype(float)
    prompts = [f"p{i // 20}" for i in range(200)]
    clustered = stats.bootstrap(stats.sample(values, prompts, range(200)))
    naive = stats.bootstrap(stats.sample(values, prompts, range(200), few=11))
    assert clustered.std() > 3 * naive.std()


def test_few_prompts_make_images_the_clusters():
    assert len(set(rows([0.0, 1.0] * 10, prompts=1).clusters)) == 20
    assert len(set(rows([0.0, 1.0] * 10, prompts=stats.FEW).clusters)) == stats.FEW


def test_draws_do_not_depend_on_row_order_or_on_what_was_drawn_before():
    values, prompts, seeds = [0.0, 1.0, 1.0, 0.0, 1.0], list("abcde"), list(range(5))
    before = stats.bootstrap(stats.sample(values, prompts, seeds))
    stats.bootstrap(rows([0.0, 1.0, 0.5]))
    after = stats.bootstrap(stats.sample(values[::-1], prompts[::-1], seeds[::-1]))
    np.testing.assert_array_equal(before, after)
    assert not np.array_equal(before, stats.bootstrap(stats.sample(values, prompts, seeds), seed=1))
    assert len(before) == stats.RESAMPLES >= 2000


def test_methods_on_the_same_images_are_paired():
    """B = A + .1 on every image: the difference is .1 in every draw."""
    a = np.random.default_rng(0).random(30) * 0.8
    gap = stats.bootstrap(rows(a + 0.1)) - stats.bootstrap(rows(a))
    np.testing.assert_allclose(gap, 0.1, atol=1e-12)


def test_a_rate_of_zero_is_not_certain():
    draws = stats.bootstrap(rows([0.0] * 60))
    lo, hi = stats.around(0.0, draws)
    assert lo == 0.0 and hi == pytest.approx(0.041, abs=0.004)  # Beta(.5, 60.5), 97.5 %: .0410
    assert stats.around(0.3, stats.bootstrap(rows([0.3] * 60))) is None


def test_bootstrap_refuses_what_it_cannot_use():
    with pytest.raises(BadInput, match="finite"):
        rows([0.0, math.nan])
    with pytest.raises(BadInput, match="at least one"):
        stats.bootstrap(rows([]))
    with pytest.raises(BadInput, match="as many values"):
        stats.sample([1.0], ["a", "b"], [1, 2])


# --- paired tests ---------------------------------------------------------------------------------------------
def test_mcnemar_against_the_binomial():
    a = [True] * 8 + [False] * 1 + [True] * 20
    b = [False] * 8 + [True] * 1 + [True] * 20
    assert stats.mcnemar(a, b) == pytest.approx(2 * (1 + 9) / 2**9)
    assert stats.mcnemar(a, a) == 1.0
    assert stats.mcnemar(a, b) == stats.mcnemar(b, a)
    with pytest.raises(BadInput, match="paired"):
        stats.mcnemar([True], [])


def test_paired_permutation_against_enumeration():
    rng = np.random.default_rng(3)
    a, b = rng.random(8), rng.random(8) * 0.7
    flips = np.array(list(itertools.product([1, -1], repeat=8)))
    exact = np.mean(np.abs(flips @ (a - b)) >= abs((a - b).sum()) - 1e-12)
    difference, p = stats.paired_permutation(lambda x: x, [[rows(a)]], [[rows(b)]], resamples=20000)
    assert difference == pytest.approx((a - b).mean())
    assert p == pytest.approx(exact, abs=0.01)


def test_paired_permutation_of_a_headline_sees_a_difference_and_none():
    h = HEADLINES["H_c"]
    good = [rows([0.0] * 55 + [1.0] * 5, name="e"), rows([1.0] * 90 + [0.0] * 10, prompts=10, name="k")]
    bad = [rows([0.0] * 20 + [1.0] * 40, name="e"), rows([1.0] * 85 + [0.0] * 15, prompts=10, name="k")]
    difference, p = stats.paired_permutation(h.draws, [good], [bad])
    assert difference > 0.2 and p < 0.01
    assert stats.paired_permutation(h.draws, [good], [good]) == (0.0, 1.0)
    other = stats.paired_permutation(h.draws, [bad], [good])
    assert other[0] == -difference


def test_paired_permutation_keeps_its_level():
    """Under the null, p ≤ .05 in about 5 % of trials."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        a, b = rng.random(20), rng.random(20)
        hits += stats.paired_permutation(lambda x: x, [[rows(a)]], [[rows(b)]], resamples=400)[1] <= 0.05
    assert hits / 200 < 0.1


def test_unpaired_rows_are_refused():
    with pytest.raises(BadInput, match="paired rows"):
        stats.paired_permutation(lambda x: x, [[rows([1.0, 0.0])]], [[rows([1.0, 0.0, 1.0])]])


def test_holm():
    """Adjusted by hand: .01·3, max(.03, .02·2), max(.04, .04·1)."""
    assert stats.holm({"c": 0.04, "a": 0.01, "b": 0.02}) == pytest.approx({"c": 0.04, "a": 0.03, "b": 0.04})
    assert stats.holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert stats.holm({}) == {}


# --- ranks ----------------------------------------------------------------------------------------------------
def test_ranks_share_the_better_place():
    assert stats.ranks({"a": 0.9, "b": 0.9, "c": 0.5}) == {"a": 1, "b": 1, "c": 3}
    assert stats.ranks({"a": 0.9, "b": 0.1}, "down") == {"a": 2, "b": 1}


def test_rank_intervals():
    rng = np.random.default_rng(0)
    draws = {"far": rng.normal(5, 0.1, 2000), "x": rng.normal(0, 1, 2000), "y": rng.normal(0.1, 1, 2000)}
    assert stats.rank_intervals(draws) == {"far": (1, 1), "x": (2, 3), "y": (2, 3)}
    assert stats.rank_intervals(draws, "down")["far"] == (3, 3)


def test_mean_ranks_average_places_over_tables():
    """Places 1 2 3 up, then 3 1 2 down; c is in the first table only; equal scores share the mean of their places."""
    first = {"a": np.array([3.0]), "b": np.array([2.0]), "c": np.array([1.0])}
    second = {"a": np.array([9.0]), "b": np.array([1.0])}
    found = stats.mean_ranks([first, second], ["up", "down"])
    assert {k: float(v[0]) for k, v in found.items()} == {"a": 1.5, "b": 1.5, "c": 3.0}
    tied = stats.mean_ranks([dict.fromkeys("xyz", np.array([0.5]))], ["up"])
    assert {float(v[0]) for v in tied.values()} == {2.0}


# --- differences and subsets ----------------------------------------------------------------------------------
def test_difference_of_a_headline_with_its_interval():
    h = HEADLINES["H_c"]
    a = [rows([0.0] * 55 + [1.0] * 5, name="e"), rows([1.0] * 90 + [0.0] * 10, prompts=10, name="k")]
    b = [rows([0.0] * 20 + [1.0] * 40, name="e"), rows([1.0] * 85 + [0.0] * 15, prompts=10, name="k")]
    value, (low, high) = stats.difference(h.draws, a, b)
    assert value == pytest.approx(h.score(5 / 60, 0.9) - h.score(40 / 60, 0.85))
    assert 0 < low < value < high
    assert stats.difference(h.draws, a, a) == (0.0, None)


def test_subset_interval_by_hand():
    low, high = stats.subset_interval(1.0, 0.2, n=100, size=50, subsets=100)
    assert (high - low) / 2 == pytest.approx(1.959964 * 0.2 * math.sqrt(1 + 0.01), rel=1e-6)
    with pytest.raises(BadInput, match="subsets"):
        stats.subset_interval(1.0, 0.2, n=50, size=50, subsets=100)


# --- training seeds -------------------------------------------------------------------------------------------
def test_split_finds_the_training_part_and_not_what_images_explain():
    """Scores = training effect (.05) + prompts that all seeds share (.02) + noise of each seed's images (.03)."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        values = rng.normal(0, 0.05, 5) + rng.normal(0, 0.02) + rng.normal(0, 0.03, 5)
        shared = rng.normal(0, 0.02, 500)
        found.append(stats.split(values, [v + shared + rng.normal(0, 0.03, 500) for v in values]))
    assert np.mean([f.training**2 for f in found]) == pytest.approx(0.05**2, rel=0.12)
    assert np.mean([f.sampling for f in found]) == pytest.approx(math.sqrt(0.02**2 + 0.03**2 / 5), rel=0.05)


def test_split_of_equal_trainings_is_sampling_alone():
    draws = [np.random.default_rng(0).normal(0.5, 0.1, 2000)] * 3
    assert stats.split([0.5, 0.5, 0.5], draws) == (0.0, pytest.approx(0.1, rel=0.05))
    with pytest.raises(BadInput, match="two or more"):
        stats.split([0.5], draws[:1])
