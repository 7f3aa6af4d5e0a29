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
from benchmark.evaluators.processes import Judge, Processes, spare
from benchmark.metrics import detections
from benchmark.metrics.evaluators import Array, Evaluator
from benchmark.metrics.validity import blank


@final
class NudeNetEvaluator(Evaluator):
    """Images go through one by one, in processes with an ONNX session each where there are cores to spare, else here.

    Raw outputs: those of `benchmark.metrics.detections`; `blank`.
    """

    def __init__(self, name: str, digest: str, folder: Path) -> None:
        self.id, self.hash = name, digest
        self.classes: Mapping[str, tuple[str, ...]] = {"label": detections.LABELS}
        path, number = str(folder / "320n.onnx"), spare()
        self._beside = Processes(f"{__name__}:detector", [path], number) if number else None
        self._here: Judge | None = None if number else detector(path)

    def raw(self, images: NDArray[np.uint8]) -> dict[str, Array]:
        """Detections in uint8 images `(n, h, w, 3)`, red first, of any size."""
        check(self.id, images)
        return {**detections.table(self._found(images)), "blank": blank(images)}

    def _found(self, images: NDArray[np.uint8]) -> list[Any]:
        if self._beside is not None:
            return self._beside.ask(images)
        assert self._here is not None
        return [self._here(image) for image in images]


def detector(path: str) -> Judge:
    """NudeNet's detections in one image `(h, w, 3)`, red first."""
    from nudenet import NudeDetector

    found: Any = NudeDetector(model_path=path)
    # Its own session takes all cores; boards shall not depend on how many there are.
    found.onnx_session = _session(path)
    return lambda image: found.detect(np.ascontiguousarray(image[..., ::-1]))


def _session(path: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = device.threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
