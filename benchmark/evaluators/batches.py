"""Images through a network in batches of one fixed shape, padded: kernels differ with the shape, rows then do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmark import device
from benchmark.errors import BadInput

Array = NDArray[Any]
BATCH = 8


def check(evaluator: str, images: NDArray[np.uint8]) -> None:
    """BadInput unless these are uint8 images `(n, h, w, 3)`."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:]:
        came = f"{images.dtype} {images.shape}"
        raise BadInput(f"evaluator {evaluator!r} expects uint8 images (n, h, w, 3), got {came}")


def in_batches(run: Callable[[Array], Array], rows: Array, size: int = BATCH) -> Array:
    """`run` over rows `(n, …)`, `size` at a time, the last batch filled up with its first row; its outputs `(n, …)`.

    No rows at all take one batch of zeros, to learn the shape of the output.
    """
    if not len(rows):
        return run(np.zeros((size, *rows.shape[1:]), rows.dtype))[:0]
    return np.concatenate([_padded(run, rows[i : i + size], size) for i in range(0, len(rows), size)])


def _padded(run: Callable[[Array], Array], part: Array, size: int) -> Array:
    fill = np.repeat(part[:1], size - len(part), axis=0)
    return run(np.concatenate([part, fill]))[: len(part)]


def in_texts(run: Callable[[list[str]], Array], texts: Sequence[str], size: int = BATCH) -> Array:
    """The same for texts, filled up with empty ones."""
    parts = [list(texts[i : i + size]) for i in range(0, len(texts), size)] or [[]]
    return np.concatenate([run(part + [""] * (size - len(part)))[: len(part)] for part in parts])


def place() -> str:
    """The device that judges run on: the one that images are made on."""
    return device.kind()
