"""Contact sheets: what the model was shown, and what it draws, group by group."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmark import atomic
from benchmark.backbones.load import load
from benchmark.keys import image_seed
from benchmark.sample import sample
from benchmark.testbed.artwork import concepts, load_drawings, styles
from benchmark.testbed.recipe import Recipe
from benchmark.testbed.render import drawn_concepts, render_batch, sample_record
from benchmark.testbed.report import BATCH, Ask, sampler_of

COLORS = 128  # of a sheet's palette: a quarter of the bytes, and flat artwork loses nothing to the eye
ACROSS = 20


def groups() -> list[str]:
    """The groups of drawn concepts, in order."""
    return list(dict.fromkeys(c.group for c in drawn_concepts()))


def of_renders(drawings: Path, out: Path, seed: int = 0) -> list[Path]:
    """One sheet a group: a column a concept, a row a style (for identities, five portraits)."""
    rgba, rows = load_drawings(drawings), len(styles())
    paths = []
    for group in groups():
        names = [c.name for c in drawn_concepts() if c.group == group]
        rng = np.random.default_rng(seed)
        records = [
            sample_record(rng, split="train", concept=name, style=None if group == "identity" else style)
            for style in styles()
            for name in names
        ]
        paths.append(_save(_tiled(render_batch(records, rgba), rows, len(names)), out / f"renders-{group}.png"))
    return paths


def of_samples(weights: Path, out: Path, recipe: Recipe, rows: int = 3) -> list[Path]:
    """One sheet a group: a column a concept, a row a seed; and one of styles, a row a style."""
    sampler, paths = sampler_of(weights, recipe), []
    backbone = load(str(weights), size=sampler.size)
    for group in [*groups(), "style"]:
        wanted, across = _styled() if group == "style" else _named(group, rows)
        images = np.concatenate([part for _, part in sample(backbone, wanted, sampler, BATCH)])
        paths.append(_save(_tiled(images, len(wanted) // across, across), out / f"samples-{group}.png"))
    return paths


def _named(group: str, rows: int) -> tuple[list[Ask], int]:
    names = [c.name for c in concepts() if c.group == group]
    what = "a portrait of {}" if group == "identity" else "a photo of the {}"
    return [_ask(what.format(name), name, i) for i in range(rows) for name in names], len(names)


def _styled() -> tuple[list[Ask], int]:
    names = [c.name for c in drawn_concepts() if c.group != "identity"][::10]
    return [_ask(f"a photo of the {n}, in the {s} style", n, 0) for s in styles() for n in names], len(names)


def _ask(prompt: str, concept: str, replicate: int) -> Ask:
    return Ask(prompt, image_seed("contact sheet", 1, prompt, replicate), concept)


def _tiled(images: NDArray[np.uint8], rows: int, across: int) -> NDArray[np.uint8]:
    """`(rows · across, h, w, 3)` to one picture; groups wider than `ACROSS` columns go on below."""
    grid = images.reshape(rows, across, *images.shape[1:])
    bands = []
    for start in range(0, across, ACROSS):
        band = grid[:, start : start + ACROSS]
        white = np.full((rows, min(ACROSS, across) - band.shape[1], *images.shape[1:]), 255, np.uint8)
        band = np.concatenate([band, white], axis=1)
        bands.append(band.transpose(0, 2, 1, 3, 4).reshape(rows * images.shape[1], -1, 3))
    return np.concatenate(bands)


def _save(picture: NDArray[np.uint8], path: Path) -> Path:
    image = Image.fromarray(picture).quantize(COLORS, dither=Image.Dither.NONE)
    with atomic.file(path) as temporary:
        image.save(temporary, format="PNG", optimize=True)
    return path
