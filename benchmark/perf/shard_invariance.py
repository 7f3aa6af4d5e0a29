"""Whether a board depends on how the work was spread: one worker, two shards, Ray with two workers, other batch shapes.

The peer's way, read in HUB (ml-postech, commit 3f4957b): one global seed, then noise drawn image after image, so what
an image looks like depends on how many were made before it in the same process. Its images are compared between one
process and two shards: it has no other way to be spread. Ours are compared byte for byte: boards and records of one
worker, of two shards, and of Ray's two workers where that is installed; and, pixel by pixel, images made at batch
shapes 4 and 8 with those at the suite's own, which the contract allows to differ by one level on under 0.1 % of
values. This is a check, not a time: it is made once.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from benchmark import run
from benchmark.errors import BenchError
from benchmark.perf import suites
from benchmark.perf.bench import Bench, Did, Target, Trial, rounded
from benchmark.perf.rig import Rig, embedded
from benchmark.perf.rows import Row, Rows
from benchmark.plan import make_plan
from benchmark.sample import Sampler, sample

METHODS = ("none", "uce")
SHAPES = (4, 8)
GLOBAL_SEED = 1


def _holds(entry: Mapping[str, Any]) -> bool:
    shapes = entry["checks"]["batch_shapes"].values()
    near = all(shape["levels_apart"] <= 1 and shape["values_apart"] < 1e-3 for shape in shapes)
    return entry["ours"] == 0 and near and isinstance(entry["checks"]["ray"], int)


def _has_ray() -> bool:
    return importlib.util.find_spec("ray") is not None


@final
class ShardInvariance(Bench):
    """Files that differ."""

    name = "shard_invariance"
    title = "files of a run (images, of the peer's way) that differ between one worker and two"
    unit = "files"
    peer_way = "one global seed, noise drawn image after image (HUB 3f4957b)"
    targets = {
        kind: Target("0 bytes over one worker, two shards and Ray; other batch shapes 1 level on < 0.1 %", None, _holds)
        for kind in ("cpu", "cuda")
    }
    once = True

    @contextmanager
    def ready(self, rig: Rig, folder: Path) -> Iterator[Trial]:
        yield _Trial(embedded(rig), folder)


class _Trial(Trial):
    def __init__(self, rig: Rig, folder: Path) -> None:
        self.rig, self.folder = rig, folder
        self.steps = min(rig.steps, 6)
        self.suite = suites.celebrity(folder, steps=self.steps, batch=4, templates=1)
        (self.cell,) = make_plan(str(self.suite), model=rig.named, methods=["none"]).cells
        self.found: dict[str, int | str] = {}

    def ours(self) -> Did:
        self._run("one")
        for part in (1, 2):
            self._run("shards", shard=(part, 2))
        self.found = {"shards": self._different("shards"), "ray": self._by_ray()}
        return Did({"files": len(self._files("one"))}, value=sum(n for n in self.found.values() if isinstance(n, int)))

    def _run(self, name: str, **options: Any) -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            out = self.folder / name
            run.execute(
                run.RunOptions(
                    suite=str(self.suite), model=self.rig.named, methods=METHODS, out=out, quiet=True, **options
                )
            )

    def _by_ray(self) -> int | str:
        if not _has_ray():
            return "not measured: ray is not installed"
        try:
            self._run("ray", executor="ray", workers=2)
        except BenchError as error:
            return f"not measured: {str(error).splitlines()[0]}"
        return self._different("ray")

    def _files(self, name: str) -> dict[str, bytes]:
        """Board and records of a run: what it is for."""
        out = self.folder / name
        paths = [*out.glob("board.*"), *out.glob("records/*.json")]
        return {str(path.relative_to(out)): path.read_bytes() for path in paths}

    def _different(self, name: str) -> int:
        one, other = self._files("one"), self._files(name)
        return sum(one.get(file) != other.get(file) for file in {*one, *other})

    def peer(self) -> Did:
        self.rows = Rows(self.rig.parts(), steps=self.steps, guidance=self.rig.guidance, size=64)
        self.rows.pipe.to(self.rig.kind)
        prompts = [item.prompt for item in self.cell.items]
        half = len(prompts) // 2
        whole, parts = self._global(prompts), [*self._global(prompts[:half]), *self._global(prompts[half:])]
        differ = sum(not np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))
        return Did({"images": len(prompts)}, value=differ)

    def _global(self, prompts: list[str]) -> list[NDArray[np.uint8]]:
        """One process: seeded once, then one image after another."""
        rows, generator = self.rows, torch.Generator().manual_seed(GLOBAL_SEED)
        return [
            np.asarray(
                rows.pipe(
                    prompt,
                    num_inference_steps=rows.steps,
                    guidance_scale=rows.guidance,
                    generator=generator,
                    height=rows.size,
                    width=rows.size,
                ).images[0]
            )
            for prompt in prompts
        ]

    def settings(self) -> dict[str, Any]:
        images = len(self.cell.items)
        return {"model": self.rig.model, "methods": list(METHODS), "images": images, "steps": self.steps}

    def checks(self) -> dict[str, Any]:
        backbone = self.rig.backbone()
        sampler = Sampler(steps=self.steps, guidance=self.rig.guidance)

        def made(batch: int) -> NDArray[np.int64]:
            parts = sample(backbone, [Row(i.prompt, i.seed) for i in self.cell.items], sampler, batch)
            return np.concatenate([images for _, images in parts]).astype(np.int64)

        own, shapes = made(2), {}
        for batch in SHAPES:
            levels = np.abs(made(batch) - own)
            shapes[str(batch)] = {
                "levels_apart": int(levels.max()),
                "values_apart": rounded(float((levels > 0).mean())),
            }
        return {**self.found, "batch_shapes": shapes, "compared_with_batch": 2}
