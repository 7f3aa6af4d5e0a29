"""Intervals, paired tests, ranks, training seeds and power: numpy and scipy alone. No torch.

What covers what, and where it does not, stands with each function; the tests simulate it.
"""

from benchmark.stats.intervals import LEVEL, Floats, Interval, subset_interval, wilson
from benchmark.stats.paired import holm, mcnemar, paired_permutation
from benchmark.stats.power import POWER, design_effect, detectable, images_needed, paired_power
from benchmark.stats.ranks import mean_ranks, rank_intervals, ranks
from benchmark.stats.replicates import Split, split
from benchmark.stats.resampling import (
    FEW,
    RESAMPLES,
    Sample,
    around,
    bootstrap,
    bootstrap_of,
    difference,
    gamma_shape,
    percentile,
    sample,
    score,
)

__all__ = [
    "FEW",
    "LEVEL",
    "POWER",
    "RESAMPLES",
    "Floats",
    "Interval",
    "Sample",
    "Split",
    "around",
    "bootstrap",
    "bootstrap_of",
    "design_effect",
    "detectable",
    "difference",
    "gamma_shape",
    "holm",
    "images_needed",
    "mcnemar",
    "mean_ranks",
    "paired_permutation",
    "paired_power",
    "percentile",
    "rank_intervals",
    "ranks",
    "sample",
    "score",
    "split",
    "subset_interval",
    "wilson",
]
