"""One cell's images, made by the worker as runs make them, again and again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmark import keys, worker
from benchmark.items import Item
from benchmark.perf import suites
from benchmark.perf.bench import Did
from benchmark.perf.rig import Rig
from benchmark.plan import make_plan
from benchmark.progress import Stage
from benchmark.sample import to_uint8
from benchmark.store import Store


class Drawing:
    """A model, loaded once, and a cell of the unedited model with `rig.images` images in whole batches."""

    def __init__(self, rig: Rig, folder: Path) -> None:
        self.rig, self.root = rig, folder / "store"
        self.backbone = rig.backbone()
        self.size = self.backbone.image_size[0]
        templates = min(4, rig.images)
        file = suites.celebrity(
            folder,
            steps=rig.steps,
            batch=rig.batch,
            size=self.size,
            images=rig.images // templates,
            templates=templates,
            scores=False,
        )
        self.plan = make_plan(str(file), model=rig.named, methods=["none"])
        (self.cell,) = self.plan.cells
        self.items: tuple[Item, ...] = self.cell.items

    def turn(self, judge: Any = None) -> Did:
        """All images into an empty store, and their scores by a judge that is loaded already."""
        shutil.rmtree(self.root, ignore_errors=True)
        spent, stage, made = worker.Spent(), Stage("", None, "images", lambda: 0.0), self._worker()
        with self.backbone.counting() as counts:
            shards = made.images(self.cell, stage, spent)
        if judge is not None:
            vars(made)["judge"] = lambda name: judge
            made.scores(self.cell, shards, stage, spent)
        names = ("denoiser_forwards", "text_encodes", "decodes")
        return Did({name: getattr(counts, name) for name in names})

    def _worker(self) -> worker.Worker:
        made = worker.Worker(self.plan, Store(self.root), threads=self.rig.threads, say=lambda text: None)
        # loaded already, and on a GPU of a size that no plan's model has
        vars(made).update(backbone=self.backbone, maker=self.backbone)
        return made

    @torch.no_grad()
    def bare(self) -> None:
        """The same batches without any harness: texts, noise, steps, decoder, levels."""
        backbone, batch = self.backbone, self.rig.batch
        backbone.use(self.plan.speed.launch)
        unique = sorted({i.prompt for i in self.items})
        texts = backbone.embed([*unique, *[unique[-1]] * (keys.TEXT_BATCH - len(unique))])
        empty = backbone.embed([""] * keys.TEXT_BATCH)[:1].expand(batch)
        for start in range(0, len(self.items), batch):
            part = self.items[start : start + batch]
            text = texts[[unique.index(i.prompt) for i in part]]
            noise = backbone.noise([i.seed for i in part])
            latents = backbone.trajectory(noise, text, empty, steps=self.rig.steps, guidance=self.rig.guidance)
            to_uint8(backbone.decode(latents))

    def images(self) -> NDArray[np.uint8]:
        """Those of the last turn, in the order of the items."""
        found: dict[tuple[str, int], NDArray[np.uint8]] = {}
        made = self._worker()
        assert self.cell.images_key is not None
        for shard in made.store.children(keys.IMAGES, self.cell.images_key):
            pixels = made.load_images(self.cell.images_key, shard)
            found |= dict(zip(made.pairs(self.cell.images_key, shard), pixels, strict=True))
        return np.stack([found[i.prompt, i.seed] for i in self.items])

    def settings(self) -> dict[str, Any]:
        """For the report."""
        return {
            "model": self.rig.model,
            "dtype": self.rig.dtype,
            "images": len(self.items),
            "prompts": len({i.prompt for i in self.items}),
            "pixels": self.size,
            "steps": self.rig.steps,
            "guidance": self.rig.guidance,
            "batch": {"ours": self.rig.batch, "peer": 1},
        }
