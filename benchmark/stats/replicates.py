"""Training seeds as replicates: which part of a score's spread is training, and which is sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmark.errors import BadInput
from benchmark.stats.intervals import Floats


class Split(NamedTuple):
    """Standard deviations of one method's score."""

    training: float
    """Between trainings, had each been scored on infinitely many images."""
    sampling: float
    """Of the mean over these trainings, from the prompts and images that were drawn."""


def split(values: Sequence[float], draws: Sequence[Floats]) -> Split:
    """Variance of a score over training seeds, with the part that images explain taken off.

    `values[s]` is the score of training seed s, `draws[s]` its bootstrap draws, paired over s by shared weights. What
    images and training seeds have in common moves all seeds alike and is sampling; what is left of the draws after
    taking off their mean over seeds is noise within a seed: σ²_training = max(0, s² − Σ_s var(d_s − d̄) / (S − 1)).
    A method-of-moments estimate, as in analysis of variance with random effects; rough with few seeds.
    """
    if len(values) < 2 or len(values) != len(draws):
        raise BadInput(f"expected two or more training seeds with draws each, got {len(values)} and {len(draws)}")
    stacked = np.stack(draws)  # (seeds, resamples)
    common = stacked.mean(axis=0)
    noise = float((stacked - common).var(axis=1).sum()) / (len(values) - 1)
    between = float(np.var(values, ddof=1))
    return Split(math.sqrt(max(0.0, between - noise)), float(common.std()))
