"""Images of a store, found by their hashes: thumbnails on sheets of 64, and how far two images differ."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmark import keeping, keys
from benchmark.errors import Damaged
from benchmark.store import Store
from benchmark.untrusted import images

Pixels = NDArray[np.uint8]
SIDE = 8
"""Tiles along each side of a sheet: few enough that a page loads what one looks at, many enough that it asks seldom."""
QUALITY = 90
GROUND = (128, 128, 128)
"""Behind images that are not square."""
_SHARDS = 16  # held in memory: neighbours on a sheet lie in few shards


class Place(NamedTuple):
    """Where an image lies in the store."""

    key: str
    shard: str
    row: int


class Images:
    """The images of a store, read only. An artifact that is damaged counts as absent, and is told once."""

    def __init__(self, store: Store | None, say: Callable[[str], object] = print) -> None:
        self.store, self.say = store, say
        self._told: set[str] = set()
        self.places: Mapping[str, Place] = {} if store is None else dict(self._listed(store))
        self._shard = lru_cache(_SHARDS)(self._load_shard)

    def _listed(self, store: Store) -> Iterable[tuple[str, Place]]:
        folder = store.root / keys.IMAGES
        for key in sorted(p.name for p in folder.iterdir()) if folder.is_dir() else ():
            for shard in store.children(keys.IMAGES, key):
                content = self._read(keys.IMAGES, key, shard, file="items.json")
                try:
                    entries = [] if content is None else keys.parse_items(content)
                except Damaged as error:
                    self.say(f"{keys.IMAGES}/{key}/{shard}: {error}")
                    continue
                yield from ((e["sha256"], Place(key, shard, row)) for row, e in enumerate(entries))

    def _read(self, *address: str, file: str) -> bytes | None:
        if self.store is None:
            return None
        try:
            return self.store.read(*address, file=file)
        except KeyError:
            return None
        except Damaged as error:
            if str(error) not in self._told:
                self._told.add(str(error))
                self.say(str(error))
            return None

    def _load_shard(self, key: str, shard: str) -> Pixels | None:
        content = self._read(keys.IMAGES, key, shard, file="images.npy")
        try:
            return None if content is None else images(content)
        except ValueError as error:
            self.say(f"{keys.IMAGES}/{key}/{shard}/images.npy cannot be read: {error}")
            return None

    def load(self, digest: str) -> Pixels | None:
        """The image `(h, w, 3)` of this hash; None if it is not in the store, or damaged there."""
        place = self.places.get(digest)
        if place is None or self.store is None:
            return None
        shard = self._shard(place.key, place.shard)
        return self._alone(place.key, digest) if shard is None else shard[place.row]

    def _alone(self, key: str, digest: str) -> Pixels | None:
        """An image that was kept without the others of its batch."""
        assert self.store is not None
        try:
            return keeping.one(self.store, key, digest)
        except Damaged as error:
            self.say(str(error))
            return None

    def raw(self, place: Place, evaluator: str, weights: str) -> tuple[str, bytes] | None:
        """Address and content of a judge's raw outputs for the shard of this image; None if they are not stored."""
        key = keys.raw_key(place.key, place.shard, evaluator=evaluator, weights=weights)
        content = self._read(keys.RAW, key, file="raw.safetensors")
        return None if content is None else (f"{keys.RAW}/{key}", content)


# --- sheets -----------------------------------------------------------------------------------------------------------
class Sheets(NamedTuple):
    """Which image stands on which sheet: tile `t` of sheet `s` has the number `s · SIDE² + t`."""

    sheets: Sequence[Sequence[str]]
    number: Mapping[str, int]


def planned(columns: Iterable[Iterable[str]]) -> Sheets:
    """Sheets for columns of image hashes: each image once, neighbours of one column together."""
    sheets: list[list[str]] = []
    number: dict[str, int] = {}
    for column in columns:
        new = [digest for digest in dict.fromkeys(column) if digest not in number]
        for start in range(0, len(new), SIDE**2):
            part = new[start : start + SIDE**2]
            number |= {digest: len(sheets) * SIDE**2 + i for i, digest in enumerate(part)}
            sheets.append(part)
    return Sheets(sheets, number)


def draw(digests: Sequence[str], images: Images, tile: int) -> bytes:
    """One sheet as WebP, tiles in rows of `SIDE`: the same images give the same bytes."""
    rows = -(-len(digests) // SIDE)
    sheet = Image.new("RGB", (SIDE * tile, rows * tile), GROUND)
    for i, digest in enumerate(digests):
        pixels = images.load(digest)
        if pixels is not None:
            thumb = thumbnail(pixels, tile)
            corner = (i % SIDE * tile + (tile - thumb.width) // 2, i // SIDE * tile + (tile - thumb.height) // 2)
            sheet.paste(thumb, corner)
    out = io.BytesIO()
    sheet.save(out, format="WEBP", quality=QUALITY, method=4)
    return out.getvalue()


def thumbnail(pixels: Pixels, tile: int) -> Image.Image:
    """The image `(h, w, 3)` made to fit a square of `tile` pixels; small ones stay as they are."""
    image = Image.fromarray(pixels)
    share = tile / max(image.size)
    if share >= 1:
        return image
    size = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    return image.resize(size, Image.Resampling.LANCZOS)


def tile_size(digests: Iterable[str], images: Images, largest: int) -> int:
    """Side of a tile: that of the images, at most `largest`; they are not enlarged."""
    for digest in digests:
        pixels = images.load(digest)
        if pixels is not None:
            height, width = pixels.shape[:2]
            return min(largest, int(max(height, width)))
    return largest


# --- difference -------------------------------------------------------------------------------------------------------
class Differences:
    """Mean absolute difference of two images' pixels, a fraction of the full range; each pair is computed once."""

    def __init__(self, images: Images) -> None:
        self.images = images
        self._known: dict[tuple[str, str], float | None] = {}

    def __call__(self, digest: str, unedited: str) -> float | None:
        """0 for the same image; None where one is not in the store, or their sizes differ."""
        if digest == unedited:
            return 0.0
        pair = (digest, unedited)
        if pair not in self._known:
            self._known[pair] = difference(self.images.load(digest), self.images.load(unedited))
        return self._known[pair]


def difference(a: Pixels | None, b: Pixels | None) -> float | None:
    """Mean of |a − b| / 255 over pixels and channels."""
    if a is None or b is None or a.shape != b.shape:
        return None
    return float(np.mean(np.abs(a.astype(np.int16) - b.astype(np.int16)))) / 255
