"""Images the way that most published scripts make them: one at a time through a diffusers pipeline, saved as PNG.

What they do, read in their repositories: MACE (`src/sample_images_from_csv.py`, commit 057e7a6) goes through a CSV
row by row at batch 1 in float32, encodes prompt and empty prompt for every image, skips a row whose PNG is there; HUB
(ml-postech, commit 3f4957b), UCE (28c81ed) and UnlearnCanvas (920cfd1) do the same in half precision. This is that
loop in our own words, without their barriers, safety checkers and global seeds, which would only slow it down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmark.perf.rig import Parts


class Row(NamedTuple):
    """One image to make."""

    prompt: str
    seed: int


class Rows:
    """A plain pipeline and the loop over rows; `work` counts what went through it, in samples."""

    def __init__(self, parts: Parts, *, steps: int, guidance: float, size: int) -> None:
        import diffusers

        untyped: Any = diffusers
        self.pipe = untyped.StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
        self.pipe.set_progress_bar_config(disable=True)
        self.steps, self.guidance, self.size = steps, guidance, size
        self.work: Counter[str] = Counter()
        count(parts, self.work)

    def image(self, row: Row) -> Any:
        """A Pillow image."""
        generator = torch.Generator().manual_seed(row.seed)
        return self.pipe(
            row.prompt,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            generator=generator,
            height=self.size,
            width=self.size,
        ).images[0]

    def into(self, folder: Path, rows: Iterable[Row]) -> list[Path]:
        """One PNG a row, each written before the next image is begun; a row whose file is there is passed over."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for number, row in enumerate(rows):
            path = folder / f"{number:05d}.png"
            paths.append(path)
            if not path.exists():
                self.image(row).save(path)
                self.work["png_writes"] += 1
        return paths


def count(parts: Parts, work: Counter[str]) -> None:
    """Count samples that go through the U-Net, the text encoder and the decoder of plain parts."""

    def counted(name: str) -> Any:
        return lambda module, inputs, output: work.update({name: _samples(output)})

    parts["unet"].register_forward_hook(counted("denoiser_forwards"))
    parts["text_encoder"].register_forward_hook(counted("text_encodes"))
    parts["vae"].decoder.register_forward_hook(counted("decodes"))


def _samples(output: Any) -> int:
    first = output if isinstance(output, torch.Tensor) else output[0]
    return len(first)


def since(work: Counter[str], before: Counter[str]) -> dict[str, float]:
    """What was done since a copy of the counts was taken."""
    return {name: n - before[name] for name, n in sorted(work.items()) if n > before[name]}
