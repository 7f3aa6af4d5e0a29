"""Rendered images and their records, cached once per recipe and shared by all stages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmark import atomic
from benchmark.testbed.artwork import load_drawings, styles
from benchmark.testbed.render import BACKGROUNDS, Record, drawn_concepts, render_batch, sample_record


@dataclass(frozen=True)
class Renders:
    """A split: `images` `(n, 64, 64, 3)` uint8 beside the records that made them."""

    images: np.ndarray
    records: tuple[Record, ...]

    def labels(self, head: str) -> Tensor:
        """Class indices `(n,)` for `object`, `style` or `background`; −1 where there is none (style of portraits)."""
        names = class_names(head)
        field = {"object": "concept", "style": "style", "background": "background"}[head]
        index = {name: i for i, name in enumerate(names)}
        return torch.tensor([index.get(getattr(r, field), -1) for r in self.records])


def class_names(head: str) -> list[str]:
    """The classes of a judge's head, in order."""
    return {
        "object": [c.name for c in drawn_concepts()],
        "style": list(styles()),
        "background": list(BACKGROUNDS),
    }[head]


def draw_records(split: str, count: int, seed: int) -> tuple[Record, ...]:
    """The records of a split, the same for the same seed."""
    rng = np.random.default_rng([seed, sum(split.encode())])
    return tuple(sample_record(rng, split=split) for _ in range(count))


def load_renders(split: str, count: int, seed: int, drawings: Path, cache: Path) -> Renders:
    """Renders of a split, from `cache` when it holds them."""
    records = draw_records(split, count, seed)
    path = cache / f"{split}-{count}-{seed}.npy"
    if not path.exists():
        images = render_batch(records, load_drawings(drawings))
        with atomic.file(path) as temporary, temporary.open("wb") as file:
            np.save(file, images)
    return Renders(np.load(path, mmap_mode="r"), records)


def to_unit(images: np.ndarray) -> Tensor:
    """uint8 `(n, h, w, 3)` to float `(n, 3, h, w)` in [0, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255
