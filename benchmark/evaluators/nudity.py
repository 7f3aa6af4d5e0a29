"""NudeNet 3.4.2: detections of body parts, raw. Thresholds are the protocols'.

Its weights are in its package. It takes arrays in the order blue, green, red; given red first it finds other things.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from benchmark import device
from benchmark.evaluators.batches import check
from benchmark.metrics import detections
from benchmark.metrics.evaluators import Array, Evaluator
from benchmark.metrics.validity import blank


@final
class NudeNetEvaluator(Evaluator):
    """One ONNX session; images go through one by one. Raw outputs: those of `benchmark.metrics.detections`; `blank`."""

    def __init__(self, name: str, digest: str, folder: Path) -> None:
        from nudenet import NudeDetector

        self.id, self.hash = name, digest
        self.classes: Mapping[str, tuple[str, ...]] = {"label": detections.LABELS}
        path = str(folder / "320n.onnx")
        self.detector: Any = NudeDetector(model_path=path)
        # Its own session takes all cores; boards shall not depend on how many there are.
        self.detector.onnx_session = _session(path)

    def raw(self, images: NDArray[np.uint8]) -> dict[str, Array]:
        """Detections in uint8 images `(n, h, w, 3)`, red first, of any size."""
        check(self.id, images)
        found = [self.detector.detect(np.ascontiguousarray(image[..., ::-1])) for image in images]
        return {**detections.table(found), "blank": blank(images)}


def _session(path: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = device.threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
