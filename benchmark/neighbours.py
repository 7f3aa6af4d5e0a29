"""The Concept Neighbourhood: which concepts look most alike, from features of their images.

Mean feature of each concept, cosine of the means, the K nearest others: FADE, arXiv:2503.19783.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import BadInput, did_you_mean

Features = Mapping[str, NDArray[Any]]
"""Concept to the features of its images, `(images, dim)`."""


class Neighbour(NamedTuple):
    """A concept near another."""

    name: str
    similarity: float
    """Cosine of the two mean features, in [-1, 1]."""


def nearest(features: Features, targets: Iterable[str], top: int) -> dict[str, tuple[Neighbour, ...]]:
    """The `top` other concepts most similar to each target, nearest first; equal cosines in order of name.

    A pair's cosine depends on the two concepts' own features alone, to the bit: more concepts, or another order,
    change none. BadInput for too few concepts, an unknown target, and features that have no mean direction.
    """
    if not 1 <= top < len(features):
        raise BadInput(f"expected 1 to {len(features) - 1} neighbours among {len(features)} concepts, got {top}")
    names = sorted(features)
    units = _units(names, features)
    return {target: _nearest(target, names, units, top) for target in targets}


def _nearest(target: str, names: list[str], units: NDArray[np.float64], top: int) -> tuple[Neighbour, ...]:
    if target not in names:
        raise BadInput(did_you_mean(target, names, "concept among those compared"))
    # not a matrix product, whose rounding may change with the number of rows
    cosines = (units * units[names.index(target)]).sum(axis=1).clip(-1, 1)
    order = np.argsort(-cosines, kind="stable")  # names are sorted, so ties are in order of name
    return tuple(Neighbour(names[i], float(cosines[i])) for i in order if names[i] != target)[:top]


def _units(names: Iterable[str], features: Features) -> NDArray[np.float64]:
    """`(concepts, dim)`: mean features, normalised after the mean."""
    means = {name: _mean(name, features[name]) for name in names}
    shapes = {mean.shape for mean in means.values()}
    if len(shapes) > 1:
        raise BadInput(f"expected features of one width for all concepts, got {sorted(s[0] for s in shapes)}")
    return np.stack([mean / np.sqrt((mean * mean).sum()) for mean in means.values()])


def _mean(name: str, features: NDArray[Any]) -> NDArray[np.float64]:
    if features.ndim != 2 or not features.size:
        raise BadInput(f"{name}: expected features (images, dim), at least one each, got {features.shape}")
    mean: NDArray[np.float64] = features.astype(np.float64).mean(axis=0)
    if not np.isfinite(mean).all() or not mean.any():
        raise BadInput(f"{name}: the mean of its features has no direction: it is zero or not finite")
    return mean


# --- are they neighbours? -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Cohesion:
    """How well neighbourhoods agree with the groups that concepts were sorted into."""

    targets: int
    whole: float
    """Share of targets whose neighbours are all of a group of their own, in [0, 1]."""
    inside: float
    """Mean share of neighbours of a target that are of a group of its own, in [0, 1]."""


def cohesion(neighbours: Mapping[str, Iterable[str]], groups: Mapping[str, Iterable[str]]) -> Cohesion:
    """The agreement over all targets; `groups` gives each concept's groups. BadInput if there is no target."""
    shares = [_inside(groups[target], [groups[n] for n in nearest]) for target, nearest in neighbours.items()]
    if not shares:
        raise BadInput("expected at least one target with neighbours, got none")
    return Cohesion(len(shares), sum(s == 1 for s in shares) / len(shares), sum(shares) / len(shares))


def _inside(own: Iterable[str], others: list[Iterable[str]]) -> float:
    return sum(bool(set(own) & set(other)) for other in others) / len(others)
