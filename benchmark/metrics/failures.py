"""Images that a judge could not judge, and why: kept with its raw outputs, image by image. Pure; no torch.

A judge's own outputs may say so, as an external command's do (`error`, `reason`); for any other, what it raised stands
in two further outputs, which are there only where something was raised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
FAILED, WHY = "judge_failed", "judge_reason"
"""Names of raw outputs: `(n,)` uint8, 1 where the judge failed; `(n, LENGTH)` uint8, UTF-8 filled up with zeros."""
LENGTH = 160
"""Bytes kept of each reason."""


def mark(alone: Sequence[Mapping[str, Array] | Exception]) -> dict[str, Array]:
    """Raw outputs of images judged one by one, `(1, …)` each, or what was raised: one row each, in order.

    Rows of failed images hold NaN, or 0 where numbers are whole, so that they are never scored. At least one must have
    been judged.
    """
    fine = next(found for found in alone if not isinstance(found, Exception))
    rows = [_empty(fine) if isinstance(found, Exception) else found for found in alone]
    texts = [told(found) if isinstance(found, Exception) else "" for found in alone]
    made = {name: np.concatenate([row[name] for row in rows]) for name in fine}
    return {**made, FAILED: np.array([bool(t) for t in texts], np.uint8), WHY: np.stack([_bytes(t) for t in texts])}


def _empty(like: Mapping[str, Array]) -> dict[str, Array]:
    return {
        name: np.full_like(row, np.nan) if np.issubdtype(row.dtype, np.floating) else np.zeros_like(row)
        for name, row in like.items()
    }


def reasons(raw: Mapping[str, Array]) -> list[str]:
    """For each image why it could not be judged, "" where it was."""
    n = len(next(iter(raw.values())))
    ours, theirs = [""] * n, [""] * n
    if FAILED in raw:
        ours = [_text(why) if failed else "" for failed, why in zip(raw[FAILED], raw[WHY], strict=True)]
    if {"error", "reason"} <= raw.keys():
        theirs = [
            _text(why) or "failed" if error else "" for error, why in zip(raw["error"], raw["reason"], strict=True)
        ]
    return [a or b for a, b in zip(ours, theirs, strict=True)]


def told(error: Exception) -> str:
    """An error in one short line: `ValueError: no face`."""
    line = " ".join(f"{type(error).__name__}: {error}".split())
    return line.encode("utf-8", "replace")[:LENGTH].decode("utf-8", "ignore")


def _bytes(text: str) -> NDArray[np.uint8]:
    row = np.zeros(LENGTH, np.uint8)
    kept = text.encode("utf-8", "replace")[:LENGTH]
    row[: len(kept)] = np.frombuffer(kept, np.uint8)
    return row


def _text(row: NDArray[np.uint8]) -> str:
    return bytes(row[row != 0].tolist()).decode("utf-8", "replace")
