"""Which images count: black and constant ones, rows that are not numbers; and whether the unedited model passes.

Pure: arrays in, arrays or words out; no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import BadInput
from benchmark.metrics.failures import FAILED

BLACK, CONSTANT = 1, 2
"""Codes of the raw output `blank`; 0 is a picture."""


def blank(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`BLACK` where all pixels of `(n, h, w, 3)` are 0, `CONSTANT` where all are one other colour, else 0.

    Black is how pipelines show a withheld image and one whose latent was not a number: it cannot be scored. A constant
    colour is a picture that a model or a control made: it is scored, and counted.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise BadInput(f"expected uint8 images (n, h, w, 3), got {images.dtype} {images.shape}")
    flat = images.reshape(len(images), images.shape[1] * images.shape[2], 3)
    constant = (flat == flat[:, :1]).all(axis=(1, 2))
    black = ~flat.any(axis=(1, 2))
    codes: NDArray[np.uint8] = np.where(black, BLACK, np.where(constant, CONSTANT, 0)).astype(np.uint8)
    return codes


def scorable(raw: Mapping[str, NDArray[Any]], n: int) -> NDArray[np.bool_]:
    """Where an image is not black, its judge did not fail on it, and all its raw outputs are finite numbers."""
    codes = raw.get("blank", np.zeros(n, np.uint8))
    valid: NDArray[np.bool_] = (codes != BLACK) & (raw.get(FAILED, np.zeros(n, np.uint8)) == 0)
    for values in raw.values():
        if np.issubdtype(values.dtype, np.floating):
            valid = valid & np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    return valid


def accounting(raw: Mapping[str, NDArray[Any]], values: NDArray[np.float64]) -> dict[str, int]:
    """How many images there are, and how many are `black`, `constant`, `not_finite`, or have `no_value` though valid.

    `black`, `not_finite` and `no_value` do not overlap: with `scored` they make up `images`.
    """
    n = len(values)
    codes = raw.get("blank", np.zeros(n, np.uint8))
    valid, black = scorable(raw, n), codes == BLACK
    has = np.isfinite(values)
    counts = {
        "images": n,
        "scored": int((valid & has).sum()),
        "black": int(black.sum()),
        "not_finite": int((~valid & ~black).sum()),
        "no_value": int((valid & ~has).sum()),
        "constant": int((codes == CONSTANT).sum()),
    }
    return counts


# --- gate -----------------------------------------------------------------------------------------------------
class Verdict(NamedTuple):
    """Whether the unedited model does what the suite takes for granted."""

    ok: bool
    why: str
    """What is outside its window, or not available; "" if nothing is."""


def gate(rates: Mapping[str, float | None], windows: Mapping[str, tuple[float, float]]) -> Verdict:
    """Compare the unedited model's accuracies with a suite's windows, both by role; bounds count as inside.

    Outside, the prompts, the model or the evaluator are not those of the protocol: no method's number means anything
    then. BadInput for a window that is none.
    """
    faults = [fault for role, window in windows.items() if (fault := _fault(role, rates.get(role), window))]
    return Verdict(not faults, "; ".join(faults))


def _fault(role: str, rate: float | None, window: tuple[float, float]) -> str:
    low, high = window
    if not 0 <= low <= high <= 1:
        raise BadInput(f"expected a window of fractions, low ≤ high, in [0, 1] for {role}, got {low:g} to {high:g}")
    if rate is None or not np.isfinite(rate):
        return f"the unedited model has no {role} accuracy"
    if low <= rate <= high:
        return ""
    return f"the unedited model's {role} accuracy is {rate:.3f}, expected {low:g} to {high:g}"
