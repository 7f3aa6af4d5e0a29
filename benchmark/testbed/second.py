"""Evaluator "b" as a judge of runs: another architecture and seed than "a", trained on the same real renders."""

from __future__ import annotations

from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from benchmark.errors import BadInput
from benchmark.metrics.evaluators import EVALUATORS, Array, Evaluator, hash_files
from benchmark.testbed.evaluator import BATCH, CLASSES, Classifier


@final
class SecondJudge(Evaluator):
    """Raw outputs, one row an image: `object`, `style`, logits over `classes`; `blank`: 1 where all pixels are 0.

    Boards are judged by "a"; what "b" makes of the same images tells whether a result is the judge's doing.
    """

    id = "testbed-b"

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.hash = hash_files(self.root, EVALUATORS[self.id].parts)
        self.network = Classifier.load(self.root / "evaluator_b")
        self.classes = {h: tuple(self.network.config[CLASSES[h]]) for h in ("object", "style")}

    def raw(self, images: NDArray[np.uint8]) -> dict[str, Array]:
        """Outputs for uint8 images `(n, 64, 64, 3)`, float32 but for `blank` (uint8)."""
        size = self.network.config["size"]
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            came = f"{images.dtype} {images.shape}"
            raise BadInput(f"evaluator {self.id!r} expects uint8 images (n, {size}, {size}, 3), got {came}")
        chunks = [self._raw_batch(images[i : i + BATCH]) for i in range(0, max(len(images), 1), BATCH)]
        return {k: np.concatenate([c[k] for c in chunks]) for k in chunks[0]}

    @torch.inference_mode()
    def _raw_batch(self, images: NDArray[np.uint8]) -> dict[str, Array]:
        n = len(images)
        # always the same shape: an image's row then does not depend on how many came with it
        padded = np.zeros((BATCH, *images.shape[1:]), np.uint8)
        padded[:n] = images
        out = self.network(torch.from_numpy(padded).permute(0, 3, 1, 2).contiguous())
        rows = {k: out[k][:n].numpy().copy() for k in ("object", "style")}
        return {**rows, "blank": (images.max(axis=(1, 2, 3), initial=0) == 0).astype(np.uint8)}
