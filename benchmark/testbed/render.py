"""64-pixel training images: a drawing on a plain background, mildly augmented."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from PIL import Image

from benchmark.testbed.artwork import PIXELS, Concept, concepts, drawings

T = TypeVar("T")

SIZE = 64  # side of an image in pixels
SCALE = (0.84, 0.94)  # drawing / image; wider ranges make the model's task much harder
SHIFT = 0.03  # largest displacement, fraction of the image side
JITTER = 9  # largest change of a background channel, of 255

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "red": (214, 84, 84),
    "orange": (240, 156, 80),
    "yellow": (246, 232, 134),
    "green": (118, 186, 120),
    "blue": (104, 150, 220),
    "purple": (150, 112, 196),
    "pink": (246, 180, 204),
    "brown": (146, 106, 80),
    "grey": (158, 160, 164),
    "white": (244, 244, 244),
}

# Disjoint ranges of render seeds: no image of one split can appear in another.
SEEDS: dict[str, tuple[int, int]] = {
    "train": (0, 1 << 40),
    "validation": (1 << 40, 2 << 40),
    "test": (2 << 40, 3 << 40),
}

DARK_INK, LIGHT_INK = (24, 24, 30), (250, 250, 250)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """All that determines an image; `drawing` indexes `artwork.drawings()`."""

    concept: str
    group: str
    style: str
    drawing: int
    background: str
    seed: int


def _is_ink(drawing: np.ndarray) -> bool:
    """Whether a drawing has no colour of its own: black wherever it is opaque."""
    return not drawing[..., :3].any()


def _ink(background: str) -> tuple[int, int, int]:
    """Light ink on the darker grounds, dark ink on the others, whatever the jitter."""
    return LIGHT_INK if np.dot(BACKGROUNDS[background], LUMA) < 140 else DARK_INK


def _ground(name: str, rng: np.random.Generator) -> np.ndarray:
    """A plain colour near the named one, `(3,)` float32 in [0, 255]."""
    jitter = rng.uniform(-JITTER, JITTER, 3)
    return np.clip(np.add(BACKGROUNDS[name], jitter), 0, 255).astype(np.float32)


def _box(rng: np.random.Generator, margin: int) -> tuple[float, float, float, float]:
    """The part of the padded drawing that fills the image (left, top, right, bottom)."""
    side = PIXELS / rng.uniform(*SCALE)
    x, y = margin + (PIXELS - side) / 2 + rng.uniform(-SHIFT, SHIFT, 2) * side
    return x, y, x + side, y + side


def _place(drawing: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The drawing scaled, shifted, perhaps flipped: `(64, 64, 4)` uint8.

    Pillow resizes RGBA with premultiplied alpha, so no dark fringes arise.
    """
    margin = PIXELS // 5  # room for the smallest scale and the largest shift
    padded = np.pad(drawing, ((margin, margin), (margin, margin), (0, 0)))
    box = _box(rng, margin)
    small = Image.fromarray(padded).resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box)
    placed = np.asarray(small)
    return placed[:, ::-1] if rng.random() < 0.5 else placed


def render(drawing: np.ndarray, background: str, rng: np.random.Generator) -> np.ndarray:
    """An image of the drawing on the named background.

    Args:
        drawing: RGBA `(128, 128, 4)` uint8, alpha not premultiplied.
        background: a key of `BACKGROUNDS`.
        rng: source of jitter, scale, shift and flip.

    Returns: RGB `(64, 64, 3)` uint8.
    """
    ground = _ground(background, rng)
    placed = _place(drawing, rng).astype(np.float32)
    colour = np.array(_ink(background), np.float32) if _is_ink(drawing) else placed[..., :3]
    alpha = placed[..., 3:] / 255
    return np.asarray(ground + alpha * (colour - ground) + 0.5, np.uint8)


def render_record(record: Record, rgba: np.ndarray) -> np.ndarray:
    """The image `(64, 64, 3)` uint8 of a record; `rgba` is `artwork.load_drawings(...)`."""
    return render(rgba[record.drawing], record.background, np.random.default_rng(record.seed))


def render_batch(records: Sequence[Record], rgba: np.ndarray) -> np.ndarray:
    """The images of several records, `(n, 64, 64, 3)` uint8."""
    return np.stack([render_record(record, rgba) for record in records])


# Sampling


@lru_cache
def drawn_concepts() -> tuple[Concept, ...]:
    """The concepts that have drawings: all but the styles."""
    return tuple(c for c in concepts() if c.group != "style")


@lru_cache
def _by_name() -> dict[str, Concept]:
    return {c.name: c for c in drawn_concepts()}


@lru_cache
def _cumulative() -> np.ndarray:
    weights = np.cumsum([c.weight for c in drawn_concepts()])
    return np.asarray(weights / weights[-1])


@lru_cache
def _choices() -> dict[str, dict[str, list[int]]]:
    """Concept → style → drawing indices."""
    table: dict[str, dict[str, list[int]]] = {c.name: {} for c in drawn_concepts()}
    for index, drawing in enumerate(drawings()):
        table[drawing.concept].setdefault(drawing.style, []).append(index)
    return table


def _pick(items: Sequence[T], rng: np.random.Generator) -> T:
    return items[int(rng.integers(len(items)))]


def _draw_concept(rng: np.random.Generator) -> Concept:
    return drawn_concepts()[int(np.searchsorted(_cumulative(), rng.random(), side="right"))]


def sample_record(
    rng: np.random.Generator,
    *,
    split: str = "train",
    concept: str | None = None,
    style: str | None = None,
    background: str | None = None,
) -> Record:
    """A random record: concept by weight, then style, then drawing, then background.

    What is given is kept; a `style` must be one in which the concept is drawn
    (`portrait` for identities, any of `artwork.styles()` for the rest).
    """
    row = _by_name()[concept] if concept is not None else _draw_concept(rng)
    choices = _choices()[row.name]
    style = style if style is not None else _pick(tuple(choices), rng)
    return Record(
        concept=row.name,
        group=row.group,
        style=style,
        drawing=_pick(choices[style], rng),
        background=background if background is not None else _pick(tuple(BACKGROUNDS), rng),
        seed=int(rng.integers(*SEEDS[split])),
    )
