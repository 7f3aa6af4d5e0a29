"""Images from prompts and seeds to files: batches against one image at a time.

The peer's way is `rows`: batch 1, prompt and empty prompt encoded for every image, PNG written before the next
begins. Ours is the worker that runs make images with: one batch shape, every distinct prompt encoded once, images and
their hashes stored and synced. Both have the same model, steps, guidance, number format, threads, prompts and seeds;
the model is loaded before. The images are compared.

`bare` is the sampling loop alone, in the same batches without any harness: what the harness adds stands beside it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np

from benchmark.perf.bench import Bench, Did, Target, Trial
from benchmark.perf.clock import median, watched
from benchmark.perf.drawing import Drawing
from benchmark.perf.rig import Rig
from benchmark.perf.rows import Row, Rows, since


@final
class GenThroughput(Bench):
    """Images a second."""

    name = "gen_throughput"
    title = "generate images into files"
    unit = "images/s"
    peer_way = "one image at a time, texts encoded for each, PNG (MACE 057e7a6 src/sample_images_from_csv.py; HUB, UCE)"
    targets = {"cpu": Target("≥ 1.15×", 1.15), "cuda": Target("≥ 4× over the same loop in half precision", 4.0)}

    @contextmanager
    def ready(self, rig: Rig, folder: Path) -> Iterator[Trial]:
        yield _Trial(rig, folder)


class _Trial(Trial):
    def __init__(self, rig: Rig, folder: Path) -> None:
        self.rig, self.folder = rig, folder
        self.drawing = Drawing(rig, folder)
        self.rows = Rows(rig.parts(), steps=rig.steps, guidance=rig.guidance, size=self.drawing.size)
        self.rows.pipe.to(rig.kind)
        self.asked = [Row(i.prompt, i.seed) for i in self.drawing.items]
        self.amount = float(len(self.asked))
        self._bare: list[tuple[float, float]] = []

    def ours(self) -> Did:
        return self.drawing.turn()

    def peer(self) -> Did:
        before, out = self.rows.work.copy(), self.folder / "png"
        shutil.rmtree(out, ignore_errors=True)
        self.rows.into(out, self.asked)
        return Did(since(self.rows.work, before))

    def settings(self) -> dict[str, Any]:
        return self.drawing.settings()

    def checks(self) -> dict[str, Any]:
        """How far images of the two sides are apart, forwards over what is needed, and what the harness adds."""
        needed = self.amount * self.rig.steps * 2
        return {
            "executed_over_needed": self.drawing.turn().work["denoiser_forwards"] / needed,
            **self._apart(),
            "harness_over_bare": self._overhead(),
        }

    def _apart(self) -> dict[str, float]:
        from PIL import Image

        theirs = np.stack([np.asarray(Image.open(p)) for p in sorted((self.folder / "png").glob("*.png"))])
        levels = np.abs(theirs.astype(int) - self.drawing.images().astype(int))
        return {"levels_apart": int(levels.max()), "values_apart": float((levels > 0).mean())}

    def _overhead(self) -> float:
        """Processor time of a turn over that of the loop alone, less one; medians of three."""
        whole, bare = [], []
        for _ in range(3):
            with watched() as watch:
                self.drawing.turn()
            whole.append(watch.time.cpu)
            with watched() as watch:
                self.drawing.bare()
            bare.append(watch.time.cpu)
        return float(f"{median(whole) / median(bare) - 1:.3g}")
