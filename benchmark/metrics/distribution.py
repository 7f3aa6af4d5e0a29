"""Distances between sets of features: FID and KID through torchmetrics, on features that an evaluator made.

Features in, number out, all in float64; too few samples give a reason in place of a number.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmark import stats
from benchmark.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor, nn

Array = NDArray[Any]
CHUNK = 1024
WIDE = 1024
"""Features' dimension from which Cholesky factors take the place of torchmetrics' eigenvalues of a matrix without
symmetry: the same number to nine digits, several times sooner."""
SUBSETS, SUBSET = 100, 50


class Value(NamedTuple):
    """A number or the reason why there is none."""

    value: float | None
    ci: tuple[float, float] | None = None
    reason: str = ""
    n: int = 0
    """Images of the method that went in."""


def fid(features: Array, reference: Array, *, chunk: int = CHUNK, least: int | None = None) -> Value:
    """Fréchet distance of Gaussians fitted to `(n, d)` and `(m, d)` features. Heusel et al. 2017, eq. 6.

    At least `least` samples on either side, by default d + 1: with fewer, the covariance is singular and the number
    tells their count. No interval: resampled images repeat, which moves FID up by more than it varies, and disjoint
    subsets would give the interval of the larger FID of fewer images. It falls with n: only equal n compare.
    """
    needed, why = (least, "so many that its bias is small") if least else (_width(features) + 1, _SINGULAR)
    reason = refusal(features, reference, least=needed, why=why)
    if reason:
        return Value(None, reason=reason, n=len(features))
    if _width(features) >= WIDE and (wide := _by_factors(features, reference)) is not None:
        return Value(wide, n=len(features))
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_identity(features.shape[1]))
    # The distance does not change when both sets move together; near zero, sums of squares lose fewer digits.
    centre = reference.mean(axis=0, dtype=np.float64)
    _feed(metric, features - centre, reference - centre, chunk)
    return Value(max(0.0, float(metric.compute())), n=len(features))


_SINGULAR = "one more than the features' dimension"


def _width(features: Array) -> int:
    return features.shape[1] if features.ndim == 2 else 0


def kid(features: Array, reference: Array, *, seed: int = 0, subsets: int = SUBSETS, size: int = SUBSET) -> Value:
    """Kernel distance (unbiased MMD², cubic kernel), the mean of `subsets` subsets of `size`. Bińkowski et al. 2018.

    The interval is `stats.subset_interval` of the deviation over subsets, n the smaller set's size.
    At least two disjoint subsets on either side. Subsets depend on the seed alone; no global generator moves.
    """
    reason = refusal(features, reference, least=2 * size, why=f"two disjoint subsets of {size}")
    if reason:
        return Value(None, reason=reason, n=len(features))
    import torch
    from torchmetrics.image.kid import KernelInceptionDistance

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance`")  # memory; n is small
        metric = KernelInceptionDistance(feature=_identity(features.shape[1]), subsets=subsets, subset_size=size)
    _feed(metric, features, reference, CHUNK)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, deviation = (float(v) for v in metric.compute())
    fewer = min(len(features), len(reference))
    ci = stats.subset_interval(mean, deviation, n=fewer, size=size, subsets=subsets)
    return Value(mean, ci, n=len(features))


def refusal(features: Array, reference: Array, *, least: int, why: str) -> str:
    """Why no distance can be given, in one line; "" if it can. BadInput for shapes that do not fit."""
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        raise BadInput(f"expected features (n, d) and (m, d), got {features.shape} and {reference.shape}")
    if not (np.isfinite(features).all() and np.isfinite(reference).all()):
        return "features are not finite"
    if min(len(features), len(reference)) < least:
        return f"needs at least {least} images ({why}), got {len(features)} against {len(reference)}"
    return ""


def frechet(mean: Array, covariance: Array, other_mean: Array, other_covariance: Array) -> float:
    """Fréchet distance of two Gaussians by Cholesky factors: Tr√(C₁C₂) = Σ√eig(LᵀC₂L), C₁ = LLᵀ.

    An independent form, for checks and for streamed statistics; the first covariance must be positive definite.
    """
    L = np.linalg.cholesky(covariance)
    roots = np.sqrt(np.maximum(np.linalg.eigvalsh(L.T @ other_covariance @ L), 0.0))
    shift = np.asarray(mean - other_mean)
    return float(shift @ shift + np.trace(covariance) + np.trace(other_covariance) - 2 * roots.sum())


def _by_factors(features: Array, reference: Array) -> float | None:
    """`frechet` of two sets; None where covariances are singular: too few samples, or dimensions without spread."""
    if min(len(features), len(reference)) <= _width(features):
        return None
    wide = (np.asarray(x, dtype=np.float64) for x in (reference, features))
    sides = [(x.mean(axis=0), np.cov(x, rowvar=False)) for x in wide]
    for one, other in (sides, sides[::-1]):
        try:
            return max(0.0, frechet(*one, *other))
        except np.linalg.LinAlgError:
            continue
    return None


def _identity(d: int) -> nn.Module:
    """What torchmetrics takes for a feature extractor: the features are there already."""
    from torch import nn

    module = nn.Identity()
    module.num_features = d  # type: ignore[assignment]
    return module


def _feed(metric: Any, features: Array, reference: Array, chunk: int) -> None:
    for rows, real in ((reference, True), (features, False)):
        for i in range(0, len(rows), chunk):
            metric.update(_double(rows[i : i + chunk]), real=real)


def _double(rows: Array) -> Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float64))
