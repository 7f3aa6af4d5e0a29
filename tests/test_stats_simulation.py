"""What the intervals and tests promise, by simulation or exact enumeration: coverage, error rates, power."""

import math

import numpy as np
import pytest
from scipy.special import bdtr, expit, gammaln, logit, xlog1py, xlogy

from benchmark import stats
from benchmark.errors import BadInput
from benchmark.metrics.balance import HEADLINES, H_o

RATES = np.linspace(0.02, 0.98, 97)


# --- Wilson ---------------------------------------------------------------------------------------------------
def wilson_coverage(n):
    """`(97,)` exact probabilities that the interval holds p, by binomial sums."""
    low, high = np.array([stats.wilson(k, n) for k in range(n + 1)]).T
    k = np.arange(n + 1)[:, None]
    ways = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    share = np.exp(ways + xlogy(k, RATES) + xlog1py(n - k, -RATES))
    return (share * ((low[:, None] <= RATES) & (high[:, None] >= RATES))).sum(axis=0)


def test_wilson_covers_95_percent_on_average_for_every_n_from_30():
    found = {n: wilson_coverage(n) for n in [*range(30, 201), 250, 500, 1000, 3000]}
    least = min(found, key=lambda n: float(found[n].min()))
    at = RATES[int(found[least].argmin())]
    means = [float(c.mean()) for c in found.values()]
    print(f"Wilson 95 %: mean coverage {min(means):.4f} to {max(means):.4f}; least {found[least].min():.4f}", end=" ")
    print(f"at n = {least}, p = {at:.2f}")
    assert all(0.93 <= m <= 0.97 for m in means)
    assert 0.83 < found[least].min() < 0.93, "it dips near the ends, as its docstring says"


# --- bootstrap ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def normal():
    return np.random.default_rng(9).normal(size=200_000)


def drawn(rng, name, prompts, per, middle, spread):
    """Outcomes of `per` images of each prompt, whose rates vary around `expit(middle)`."""
    return outcomes(name, rng.binomial(per, expit(rng.normal(middle, spread, prompts))), per)


def outcomes(name, hits, per):
    """The sample of a role whose prompts have so many hits among `per` images each."""
    values = (np.arange(per) < hits[:, None]).astype(float).ravel()
    return stats.sample(values, np.repeat([f"{name} {i}" for i in range(len(hits))], per).tolist(), range(len(values)))


def true_rate(middle, spread):
    """The mean rate over all prompts: a normal in logits, by Gauss–Hermite quadrature."""
    at, weight = np.polynomial.hermite.hermgauss(64)
    return float(expit(middle + spread * np.sqrt(2) * at) @ weight / np.sqrt(np.pi))


def draws_of_trials(name, hits, per):
    """`(trials, resamples)`: what `stats.bootstrap` gives each trial's outcomes, for all trials at once."""
    from benchmark.stats.resampling import RESAMPLES, _weights

    prompts = hits.shape[1]
    shape = stats.gamma_shape(prompts)
    weights = np.stack([_weights(f"{name} {i}", 0, RESAMPLES, shape) for i in range(prompts)])
    draws = (hits @ weights) / (per * weights.sum(axis=0))
    for same in (0, per):
        draws[(hits == same).all(axis=1)] = stats.bootstrap(outcomes(name, np.full(prompts, same), per))
    return draws


def intervals(headline, design, rng, trials):
    """`(trials,)` lower and upper ends, and the hits by role from which they come."""
    h = HEADLINES[headline]
    hits = {r: rng.binomial(per, expit(rng.normal(m, s, (trials, n)))) for r, (n, per, m, s) in design.items()}
    draws = h.draws(*(draws_of_trials(role, k, design[role][1]) for role, k in hits.items()))
    value = h.draws(*(k.mean(axis=1) / design[role][1] for role, k in hits.items()))
    low, high = np.quantile(draws, [0.025, 0.975], axis=1)
    return np.minimum(low, value), np.maximum(high, value), hits


def coverage(headline, design, rng, trials=4000, batch=500):
    """Share of trials in which the interval holds the score of the rates over all prompts."""
    true = HEADLINES[headline].score(*(true_rate(middle, spread) for _, _, middle, spread in design.values()))
    held = 0
    for _ in range(trials // batch):
        low, high, _ = intervals(headline, design, rng, batch)
        held += int(((low <= true) & (true <= high)).sum())
    return held / trials


DESIGNS = {
    "H_o": ("H_o", {"erased": (20, 6, -2, 1), "kept": (30, 6, 2, 1), "synonym": (20, 6, -1, 1)}),
    "H_o, ten prompts": ("H_o", {"erased": (60, 1, -3, 0), "kept": (10, 20, 2, 0.5), "synonym": (60, 1, -2, 0)}),
    "H_c": ("H_c", {"erased": (60, 1, -2, 0), "kept": (75, 2, 2, 1)}),
    "ERB": ("ERB", {"erased": (10, 10, -1, 1), "adjacent": (50, 4, 1, 1)}),
}
"""Of each part: prompts, images of a prompt, the middle of its prompts' rates in logits, their spread."""


@pytest.mark.parametrize("name", DESIGNS)
def test_all_trials_at_once_are_what_one_at_a_time_gives(name):
    headline, design = DESIGNS[name]
    h = HEADLINES[headline]
    rare = {role: (n, per, middle - 3, spread) for role, (n, per, middle, spread) in design.items()}
    for case in (design, rare):  # the rare ones have roles without a hit
        low, high, hits = intervals(headline, case, np.random.default_rng(12), 5)
        for trial in range(5):
            samples = [outcomes(role, k[trial], case[role][1]) for role, k in hits.items()]
            found = stats.around(h.score(*(s.mean for s in samples)), stats.bootstrap_of(h.draws, samples))
            assert found == pytest.approx([low[trial], high[trial]], abs=1e-12)


def test_intervals_of_headlines_cover():
    """93–97 % in every design, as of a share; 4,000 trials, so that chance is a third of a point."""
    found = {name: coverage(*design, np.random.default_rng(1)) for name, design in DESIGNS.items()}
    print("coverage of headlines:", ", ".join(f"{name} {share:.4f}" for name, share in found.items()))
    assert all(0.93 <= share <= 0.97 for share in found.values())


@pytest.mark.parametrize("headline", ["H_c", "H_o"])
@pytest.mark.parametrize("prompts", [30, 60, 120])
def test_intervals_of_H_cover_on_average_over_rates(headline, prompts):
    """As Wilson's: rates evenly over .02 to .98 in each part (trapezoids). In every second pair of rates the images of
    a prompt are alike."""
    rng, roles = np.random.default_rng(10), ["erased", "kept", "synonym"][: 2 if headline == "H_c" else 3]
    rates, share = np.linspace(0.02, 0.98, 7), np.array([0.5, 1, 1, 1, 1, 1, 0.5]) / 6
    found = np.zeros((7, 7))
    for i, j in np.ndindex(7, 7):
        middles = logit(rates[[i, j, i]][: len(roles)])
        design = {r: (prompts, 2, m, float((i + j) % 2)) for r, m in zip(roles, middles, strict=True)}
        found[i, j] = coverage(headline, design, rng, trials=150, batch=150)
    mean, (i, j) = float(share @ found @ share), np.unravel_index(found.argmin(), (7, 7))
    print(f"{headline}, {prompts} prompts: coverage {mean:.4f}; least {found.min():.3f}", end=" ")
    print(f"at rates {rates[i]:.2f}, {rates[j]:.2f}")
    assert 0.93 <= mean <= 0.97


@pytest.mark.parametrize("prompts", [30, 60, 120])
def test_intervals_of_means_cover(prompts):
    rng = np.random.default_rng(2)
    true, hits = 4.0, 0
    for _ in range(1500):  # scores of prompts are skew, those of one prompt alike
        values = np.repeat(rng.gamma(4, 1, prompts), 5) + rng.normal(0, 0.5, 5 * prompts)
        s = stats.sample(values, [f"p{i // 5}" for i in range(5 * prompts)], range(5 * prompts))
        low, high = stats.percentile(stats.bootstrap(s))
        hits += low <= true <= high
    print(f"mean of scores, {prompts} prompts: coverage {hits / 1500:.4f}")
    assert 0.93 <= hits / 1500 <= 0.97


def test_intervals_of_paired_differences_cover(normal):
    """Two methods on the same prompts: the difference is of each prompt, and the prompts' own level cancels."""
    h, rng, hits = HEADLINES["H_c"], np.random.default_rng(3), 0
    ends = [(-2.0, 2.0), (-1.0, 1.5)]
    true = float(np.subtract(*(h.score(*(float(expit(m + normal).mean()) for m in end)) for end in ends)))
    for _ in range(1000):
        level = {"erased": rng.normal(0, 1, 30), "kept": rng.normal(0, 1, 40)}
        sides = []
        for end in ends:
            rates = [expit(m + level[role]) for m, role in zip(end, level, strict=True)]
            outcomes = [(rng.random((len(r), 5)) < r[:, None]).astype(float).ravel() for r in rates]
            names = [[f"{role} {i // 5}" for i in range(len(o))] for role, o in zip(level, outcomes, strict=True)]
            sides.append([stats.sample(o, n, range(len(o))) for o, n in zip(outcomes, names, strict=True)])
        _, interval = stats.difference(h.draws, *sides)
        hits += interval[0] <= true <= interval[1]
    print(f"difference of H_c: coverage {hits / 1000:.4f}")
    assert 0.93 <= hits / 1000 <= 0.97


def test_bootstrap_of_H_is_what_a_slow_literal_one_gives():
    """The definition, one draw and one image at a time: every prompt has a weight, every mean is weighted, then H."""
    from benchmark.stats.resampling import _weights

    rng = np.random.default_rng(4)
    design = {"erased": (9, 3, -1, 1), "kept": (12, 2, 2, 1), "synonym": (8, 4, 0, 1)}
    samples = [drawn(rng, role, *part) for role, part in design.items()]
    fast = stats.bootstrap_of(HEADLINES["H_o"].draws, samples, resamples=200)
    for draw in range(200):
        means = []
        for s in samples:
            total = weight = 0.0
            for value, cluster in zip(s.values, s.clusters, strict=True):
                w = _weights(cluster, 0, 200, stats.gamma_shape(len(set(s.clusters))))[draw]
                total, weight = total + w * value, weight + w
            means.append(total / weight)
        assert fast[draw] == pytest.approx(H_o(*means), abs=1e-12)


def test_bootstrap_of_H_spreads_as_drawing_prompts_with_replacement_does():
    """For many prompts the weights are the classical cluster bootstrap."""
    rng = np.random.default_rng(5)
    design = {"erased": (60, 4, -1, 1), "kept": (60, 4, 2, 1), "synonym": (60, 4, 0, 1)}
    samples = [drawn(rng, role, *part) for role, part in design.items()]
    ours = stats.bootstrap_of(HEADLINES["H_o"].draws, samples)
    prompts = [s.values.reshape(60, 4).mean(axis=1) for s in samples]
    classical = [H_o(*(float(rng.choice(p, 60).mean()) for p in prompts)) for _ in range(2000)]
    assert ours.std() == pytest.approx(np.std(classical), rel=0.1)
    assert ours.mean() == pytest.approx(np.mean(classical), abs=0.2 * np.std(classical))


def test_subset_intervals_of_kid_cover():
    """Unbiased MMD² with KID's cubic kernel between shifted Gaussians, two to twenty subsets' worth of samples."""

    def mmd(x, y):
        a, b, c = ((p @ q.T / p.shape[1] + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
        n = len(x)
        return (a.sum() - np.trace(a) + b.sum() - np.trace(b)) / (n * (n - 1)) - 2 * c.mean()

    rng, size, subsets = np.random.default_rng(6), 20, 60
    true = np.mean([mmd(rng.normal(0.5, 1, (1500, 4)), rng.normal(0, 1, (1500, 4))) for _ in range(4)])
    for n in (40, 80, 400):
        hits = 0
        for _ in range(150):
            x, y = rng.normal(0.5, 1, (n, 4)), rng.normal(0, 1, (n, 4))
            found = [mmd(x[rng.permutation(n)[:size]], y[rng.permutation(n)[:size]]) for _ in range(subsets)]
            low, high = stats.subset_interval(np.mean(found), np.std(found), n=n, size=size, subsets=subsets)
            hits += low <= true <= high
        print(f"KID, subsets of {size} of {n}: coverage {hits / 150:.3f}")
        assert hits / 150 >= 0.88


# --- tests of two methods -------------------------------------------------------------------------------------
def test_mcnemar_keeps_its_level_exactly():
    """Of D pairs that differ, each side has Bin(D, ½): the exact test rejects at most 5 % for every D."""
    for D in range(1, 200):
        k = np.arange(D + 1)
        p = np.array(
            [stats.mcnemar([True] * i + [False] * (D - i), [False] * i + [True] * (D - i)) for i in (0, D // 3)]
        )
        assert p[0] == pytest.approx(min(1.0, 2 * 0.5**D))
        both = np.minimum(1.0, 2 * bdtr(np.minimum(k, D - k).astype(float), D, 0.5))
        assert p[1] == pytest.approx(both[D // 3])
        share = np.exp(gammaln(D + 1) - gammaln(k + 1) - gammaln(D - k + 1) - D * math.log(2))
        assert share[both <= 0.05].sum() <= 0.05


def test_permutation_of_H_keeps_its_level_where_images_of_a_prompt_are_alike():
    """Equal methods, whose luck differs by prompt: testing by image would reject far too often."""
    h, rng = HEADLINES["H_c"], np.random.default_rng(7)
    by_prompt = by_image = 0
    for _ in range(250):
        a, b = ([], [])
        for side in (a, b):
            for role, middle in (("e", -1), ("k", 1)):
                side.append(drawn(rng, role, 15, 6, middle, 1.5))
        by_prompt += stats.paired_permutation(h.draws, [a], [b], resamples=300)[1] <= 0.05
        loose = [[stats.Sample(s.values, tuple(map(str, range(90)))) for s in side] for side in (a, b)]
        by_image += stats.paired_permutation(h.draws, [loose[0]], [loose[1]], resamples=300)[1] <= 0.05
    print(f"permutation of H_c, nominal .05: by prompt {by_prompt / 250:.3f}, by image {by_image / 250:.3f}")
    assert by_prompt / 250 <= 0.08 < by_image / 250


def test_holm_keeps_the_family_wise_error():
    """Ten comparisons without a difference: at least one is called in at most 5 % of families; unadjusted in 40 %."""
    rng = np.random.default_rng(8)
    p = rng.random((2000, 10))
    family = [min(stats.holm({str(i): float(v) for i, v in enumerate(row)}).values()) <= 0.05 for row in p]
    assert 0.035 <= np.mean(family) <= 0.065
    assert (p.min(axis=1) <= 0.05).mean() > 0.35


# --- power ----------------------------------------------------------------------------------------------------
def literal_power(n, first, second, level=0.95):
    """Every way in which pairs can fall out, one by one."""
    total = 0.0
    for i in range(n + 1):
        for j in range(n - i + 1):
            if stats.mcnemar([True] * i + [False] * j, [False] * i + [True] * j) <= 1 - level:
                ways = math.comb(n, i) * math.comb(n - i, j)
                total += ways * first**i * second**j * (1 - first - second) ** (n - i - j)
    return total


@pytest.mark.parametrize(
    ("n", "rate", "difference", "agreement"), [(20, 0.3, 0.3, 0), (12, 0.2, 0.5, 1), (25, 0.6, -0.4, 0.5)]
)
def test_power_is_the_sum_over_all_outcomes(n, rate, difference, agreement):
    from benchmark.stats.power import discordant

    found = stats.paired_power(n, rate, difference, agreement=agreement)
    assert found == pytest.approx(literal_power(n, *discordant(rate, difference, agreement)), abs=1e-9)


def test_power_grows_with_images_difference_and_agreement():
    by_n = [stats.paired_power(n, 0.1, 0.05) for n in (50, 100, 200, 400, 800, 1600)]
    assert by_n == sorted(by_n) and by_n[0] < 0.1 and by_n[-1] > 0.95
    by_size = [stats.paired_power(200, 0.1, d) for d in (0.01, 0.05, 0.1, 0.2)]
    assert by_size == sorted(by_size)
    assert stats.paired_power(200, 0.1, 0.05, agreement=1) > stats.paired_power(200, 0.1, 0.05)
    assert stats.paired_power(200, 0.3, 0.0) < 0.05, "without a difference it is the error rate"
    assert stats.paired_power(200, 0.0, 0.0) == 0.0


def test_images_and_differences_answer_each_other():
    n = stats.images_needed(0.1, 0.05)
    assert stats.paired_power(n, 0.1, 0.05) >= 0.8 > stats.paired_power(n - 20, 0.1, 0.05)
    _, rise = stats.detectable(0.1, n)
    assert rise == pytest.approx(0.05, abs=0.001)
    down, up = stats.detectable(0.0, 60)
    assert down is None and 0.1 < up < 0.15, "a rate of 0 is not known without error"
    assert stats.detectable(0.05, 60)[0] is None, "no drop from .05 shows in 60 images"
    assert stats.images_needed(0.1, 0.05, power=0.95) > n


@pytest.mark.parametrize(("rate", "difference"), [(1.2, 0.0), (0.9, 0.2), (0.1, -0.2), (5, 1)])
def test_rates_outside_are_refused(rate, difference):
    with pytest.raises(BadInput, match="fractions"):
        stats.paired_power(10, rate, difference)


def test_a_difference_of_nothing_needs_more_than_all_images():
    with pytest.raises(BadInput, match="ask for a larger one"):
        stats.images_needed(0.1, 0.0)
    assert stats.design_effect(10, 0.2) == pytest.approx(2.8) and stats.design_effect(1, 0.9) == 1
