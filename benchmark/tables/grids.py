"""Image grids: the same prompts and seeds for every method, one row a method, the unedited model first. No torch."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from benchmark import atomic
from benchmark.errors import BadInput
from benchmark.inert import printable
from benchmark.tables.board import ORDER, natural

Record = Mapping[str, Any]
Pixels = NDArray[np.uint8]
Load = Callable[[Record, int], Pixels]
"""`(record, row index)` to that row's image `(h, w, 3)`."""

PER_ROLE = {"erased": 4, "synonym": 3, "kept": 5, "adjacent": 5, "general": 2}
SMALL, LARGE = 128, 256
"""Narrower images are enlarged by whole factors, wider ones reduced."""
GAP, FONT, PAD = 4, 15, 8
_SHOWN = 400  # characters of a prompt that are measured at all: more never fit
_LABEL = 60  # characters of a method's name
INK, PAPER, FAINT = (20, 20, 20), (255, 255, 255), (110, 110, 110)


class Column(NamedTuple):
    """What one column shows."""

    role: str
    concept: str
    prompt: str
    seed: int


def draw(records: Iterable[Record], load: Load, out: str | Path) -> list[Path]:
    """Write `out/grids/<request>.png` for every request with images; the same records give the same bytes.

    `/`, `:` and the like in a request's name become `_` in the file's name.
    """
    folder = Path(out) / "grids"
    written = []
    for request, group in _by_request(records).items():
        path = folder / f"{file_name(request)}.png"
        atomic.write(path, png(grid(group, load)))
        written.append(path)
    return written


def file_name(request: str) -> str:
    """A request's name as a file's."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in request).lstrip(".") or "_"


def png(image: Image.Image) -> bytes:
    """The image as PNG, without times or other metadata."""
    out = io.BytesIO()
    image.save(out, format="PNG", compress_level=6)
    return out.getvalue()


def grid(records: Sequence[Record], load: Load) -> Image.Image:
    """One request's grid; BadInput if the methods have no prompt and seed in common."""
    records = sorted(records, key=_order)
    shown = choose(records)
    if not shown:
        raise BadInput("expected methods with common prompts and seeds to draw; these records share none")
    rows = [[load(r, _index(r)[c]) for c in shown] for r in records]
    return _compose([printable(r["method"]["label"])[:_LABEL] for r in records], shown, rows)


def choose(records: Sequence[Record]) -> list[Column]:
    """The columns: for each role the first common ones, taken in turn from its concepts and prompts."""
    common = set.intersection(*(set(_index(r)) for r in records))
    first = [c for c in _index(records[0]) if c in common]
    columns: list[Column] = []
    for role, count in PER_ROLE.items():
        columns += _spread([c for c in first if c.role == role])[:count]
    return columns


def _spread(columns: Sequence[Column]) -> list[Column]:
    """Every prompt's first image, then every prompt's second, …, so that concepts come before repeats."""
    seen: dict[tuple[str, str], int] = {}
    turns: list[tuple[int, int]] = []
    for i, c in enumerate(columns):
        key = (c.concept, c.prompt)
        turns.append((seen.get(key, 0), i))
        seen[key] = seen.get(key, 0) + 1
    return [columns[i] for _, i in sorted(turns)]


def _index(record: Record) -> dict[Column, int]:
    rows = record["rows"]
    keys = zip(rows["role"], rows["concept"], rows["prompt"], rows["seed"], strict=True)
    return {Column(*key): i for i, key in reversed(list(enumerate(keys)))} if rows["role"] else {}


def _by_request(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Scored records of each request, the first training seed of each method."""
    groups: dict[str, dict[str, Record]] = {}
    for r in sorted(records, key=lambda r: r["request"]["seed"]):
        if r["status"] == "ok":
            groups.setdefault(r["request"]["name"], {}).setdefault(r["method"]["label"], r)
    return {name: list(groups[name].values()) for name in sorted(groups, key=natural)}


def _order(record: Record) -> tuple[Any, ...]:
    method = record["method"]
    return (ORDER.get(method["role"], 1), natural(method["label"]))


# --- drawing --------------------------------------------------------------------------------------------------
def _compose(labels: Sequence[str], columns: Sequence[Column], rows: Sequence[Sequence[Pixels]]) -> Image.Image:
    height, width = rows[0][0].shape[:2]
    w, h = _size(width, height)
    font = ImageFont.load_default(FONT)
    left = PAD + max(int(font.getlength(t)) for t in labels) + PAD
    top = PAD + 2 * (FONT + 5) + PAD
    starts = _starts(columns, left, w)
    sheet = Image.new("RGB", (starts[-1] + w + PAD, top + len(rows) * (h + GAP) + PAD), PAPER)
    pen = ImageDraw.Draw(sheet)
    _label_columns(pen, columns, starts, w, font)
    for y, (label, images) in enumerate(zip(labels, rows, strict=True)):
        pen.text((PAD, top + y * (h + GAP) + h // 2), label, fill=INK, font=font, anchor="lm")
        for x, pixels in zip(starts, images, strict=True):
            how = Image.Resampling.LANCZOS if w < width else Image.Resampling.NEAREST
            sheet.paste(Image.fromarray(pixels).resize((w, h), how), (x, top + y * (h + GAP)))
    return sheet


def _size(width: int, height: int) -> tuple[int, int]:
    """Size on the sheet."""
    if width > LARGE:
        return LARGE, round(height * LARGE / width)
    scale = max(1, -(-SMALL // width))
    return width * scale, height * scale


def _starts(columns: Sequence[Column], left: int, w: int) -> list[int]:
    """Left edges; a wider gap between roles."""
    edges, x = [], left
    for i, c in enumerate(columns):
        x += 0 if i == 0 else w + (GAP if c.role == columns[i - 1].role else 4 * GAP)
        edges.append(x)
    return edges


def _label_columns(
    pen: ImageDraw.ImageDraw, columns: Sequence[Column], starts: Sequence[int], w: int, font: Any
) -> None:
    """The role once above its columns, and each column's concept, or the word asked for where it is a synonym."""
    for i, (c, x) in enumerate(zip(columns, starts, strict=True)):
        if i == 0 or columns[i - 1].role != c.role:
            pen.text((x, PAD), c.role, fill=INK, font=font)
        text = c.prompt if c.role == "synonym" or not c.concept else c.concept
        pen.text((x, PAD + FONT + 5), _fitted(text, w, font), fill=FAINT, font=font)


def _fitted(text: str, w: int, font: Any) -> str:
    """The text, its start cut off if it is too wide: prompts end in what they ask for."""
    text = " ".join(text[-_SHOWN:].split())  # a line of text only: the font measures no more
    if font.getlength(text) <= w:
        return text
    while text and font.getlength("…" + text) > w:
        text = text[1:]
    return "…" + text
