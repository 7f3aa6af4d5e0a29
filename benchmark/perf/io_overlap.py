"""How much of the time nothing is computed while images are made, saved and scored.

The peer's way: each image is saved as PNG before the next is begun, and read again to be scored (MACE, commit
057e7a6). Ours is the worker: batches are stored and scored as they are. Computing is what goes on inside the
denoiser's walks, the decoder and the judge's networks; the rest of the wall time is idle. On a GPU it is the time in
which no kernel runs.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmark.metrics import evaluators
from benchmark.perf.bench import Bench, Did, Target, Trial
from benchmark.perf.drawing import Drawing
from benchmark.perf.rig import Rig
from benchmark.perf.rows import Row, Rows


@final
class IoOverlap(Bench):
    """Percent idle."""

    name = "io_overlap"
    title = "share of the time in which nothing is computed while images are made, saved and scored"
    unit = "% idle"
    peer_way = "PNG saved before the next image is begun, and read again for scoring (MACE 057e7a6)"
    targets = {
        "cpu": Target("≤ 5 % idle", None, lambda entry: entry["ours"] <= 5),
        "cuda": Target("≤ 3 % idle", None, lambda entry: entry["ours"] <= 3),
    }

    @contextmanager
    def ready(self, rig: Rig, folder: Path) -> Iterator[Trial]:
        yield _Trial(rig, folder)


class _Trial(Trial):
    def __init__(self, rig: Rig, folder: Path) -> None:
        self.rig, self.folder = rig, folder
        self.drawing = Drawing(rig, folder)
        self.judge: Any = evaluators.load("testbed-a") if self.drawing.size == 64 else None
        self.rows = Rows(rig.parts(), steps=rig.steps, guidance=rig.guidance, size=self.drawing.size)
        self.rows.pipe.to(rig.kind)
        self.meter = _Meter()
        backbone = self.drawing.backbone
        for owner, names in ((backbone, ("embed", "trajectory", "decode")), (self.judge, ("raw",))):
            for name in names if owner is not None else ():
                vars(owner)[name] = self.meter.timed(getattr(owner, name))
        vars(self.rows)["image"] = self.meter.timed(self.rows.image)
        self._judged = self.meter.timed(self._judge_one)

    def ours(self) -> Did:
        return self._share(self._ours)

    def peer(self) -> Did:
        return self._share(self._peer)

    def _ours(self) -> dict[str, float]:
        did = self.drawing.turn(judge=self.judge)
        return {**did.work, "png_writes": 0}

    def _peer(self) -> dict[str, float]:
        out = self.folder / "png"
        shutil.rmtree(out, ignore_errors=True)
        paths = self.rows.into(out, [Row(i.prompt, i.seed) for i in self.drawing.items])
        for path in paths if self.judge is not None else ():
            self._judged(np.asarray(Image.open(path)).copy())
        return {"png_writes": len(paths), "png_reads": len(paths)}

    @torch.inference_mode()
    def _judge_one(self, image: NDArray[np.uint8]) -> None:
        x = torch.from_numpy(image).permute(2, 0, 1)[None].contiguous()
        self.judge.network(x), self.judge.clip.image_embeds(x)

    def _share(self, work: Callable[[], dict[str, float]]) -> Did:
        self.meter.seconds, started = 0.0, time.perf_counter()
        busy, done = _on_gpu(work) if self.rig.kind == "cuda" else (None, work())
        took = time.perf_counter() - started
        computed = self.meter.seconds if busy is None else busy
        return Did(done, value=max(0.0, 100 * (1 - computed / took)))

    def settings(self) -> dict[str, Any]:
        return {**self.drawing.settings(), "scored": self.judge is not None}


class _Meter:
    """Seconds inside what is timed, calls inside calls once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._deep = 0

    def timed(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            self._deep += 1
            started = time.perf_counter()
            try:
                return plain(*args, **options)
            finally:
                self._deep -= 1
                if not self._deep:
                    self.seconds += time.perf_counter() - started

        return called


def _on_gpu(work: Callable[[], dict[str, float]]) -> tuple[float, dict[str, float]]:
    """Seconds in which a kernel ran or memory was copied, and what the work returned."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        done = work()
        torch.cuda.synchronize()
    spans = sorted((e.time_range.start, e.time_range.end) for e in found.events() if "CUDA" in str(e.device_type))
    return union(spans) / 1e6, done


def union(spans: list[tuple[float, float]]) -> float:
    """Length of all spans together, overlaps once; they are sorted by their start."""
    total, reached = 0.0, float("-inf")
    for start, end in spans:
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
