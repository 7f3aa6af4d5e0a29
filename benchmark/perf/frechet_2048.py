"""The Fréchet distance of two Gaussians of 2,048 dimensions: symmetric eigenvalues against a matrix root.

The peer's way: Tr√(C₁C₂) by `scipy.linalg.sqrtm` of the product, which has no symmetry; so in clean-fid 0.1.35
(`cleanfid/fid.py`, `frechet_distance`), which MACE's evaluation calls, and in UnlearnCanvas (commit 920cfd1).
Ours is `benchmark.metrics.distribution.frechet`, which `fid` takes for features of this width: C₁ = LLᵀ, then the
eigenvalues of LᵀC₂L. Both get the same means and covariances, from samples with a spectrum that falls like that of
Inception features; both in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np

from benchmark.metrics.distribution import Array, frechet
from benchmark.perf.bench import Bench, Did, Target, Trial, rounded
from benchmark.perf.rig import Rig

WIDTH = 2048


@final
class Frechet2048(Bench):
    """Seconds a distance."""

    name = "frechet_2048"
    title = "Fréchet distance of 2,048 dimensions from means and covariances"
    unit = "s"
    peer_way = (
        "scipy.linalg.sqrtm of the product of covariances (clean-fid 0.1.35 as MACE calls it, UnlearnCanvas 920cfd1)"
    )
    targets = {
        "cpu": Target("≥ 5×, equal to 10⁻⁶", 5.0, lambda entry: entry["checks"]["relative_difference"] < 1e-6),
        "cuda": Target("the same, on the CPU", 5.0, lambda entry: entry["checks"]["relative_difference"] < 1e-6),
    }
    warm_up = False  # nothing is loaded or compiled, and a turn of the peer's way is long

    @contextmanager
    def ready(self, rig: Rig, folder: Path) -> Iterator[Trial]:
        yield _Trial(64 if rig.small else WIDTH)


class _Trial(Trial):
    def __init__(self, width: int) -> None:
        self.width = width
        rng = np.random.default_rng(0)
        self.gaussians = [_gaussian(rng, width, shift) for shift in (0.0, 0.1)]
        self.found: dict[str, float] = {}

    def ours(self) -> Did:
        (m, c), (n, d) = self.gaussians
        self.found["ours"] = frechet(m, c, n, d)
        return Did({"matrix_roots": 0, "symmetric_eigenvalues": 1})

    def peer(self) -> Did:
        from scipy.linalg import sqrtm

        (m, c), (n, d) = self.gaussians
        root = np.real(np.asarray(sqrtm(c @ d)))
        self.found["peer"] = float((m - n) @ (m - n) + np.trace(c) + np.trace(d) - 2 * np.trace(root))
        return Did({"matrix_roots": 1, "symmetric_eigenvalues": 0})

    def settings(self) -> dict[str, Any]:
        return {"dimensions": self.width, "dtype": "float64"}

    def checks(self) -> dict[str, Any]:
        ours, peer = self.found["ours"], self.found["peer"]
        return {"distance": rounded(ours), "relative_difference": rounded(abs(ours - peer) / abs(peer))}


def _gaussian(rng: np.random.Generator, width: int, shift: float) -> tuple[Array, Array]:
    """Mean `(width,)` and covariance `(width, width)` of half as many samples again as dimensions."""
    scales = np.arange(1, width + 1) ** -0.5
    rows = rng.standard_normal((3 * width // 2, width)) * scales + shift * scales
    return rows.mean(axis=0), np.cov(rows, rowvar=False)
