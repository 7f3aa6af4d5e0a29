"""Which images a run keeps, and where: pixels take room, while hashes and judges' raw outputs are kept of all.

- `all`: each batch's pixels lie beside its hashes, as `images.npy`.
- `sample`: only images that grids show, each as lossless WebP under its own hash.
- `none`: no pixels. Grids are drawn from images that are made again, to the same bytes.

An image is known by its hash whatever is kept, so records and boards are the same.
"""

from __future__ import annotations

import io
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from benchmark import keys
from benchmark.errors import BadInput, Damaged, Missing
from benchmark.keys import pixel_hash
from benchmark.store import Store
from benchmark.untrusted import images as arrays

Image = NDArray[np.uint8]
Keep = Literal["all", "sample", "none"]
PIXELS = "pixels"
"""First part of the address of one image: `(PIXELS, images key, hash)`."""
FILE = "image.webp"
AGAIN = "run the same command with --keep-images all to have them made again, to the same bytes"


def policy(name: str) -> Keep:
    """The policy of that name; BadInput if there is none."""
    for known in get_args(Keep):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise BadInput(f"--keep-images: expected one of {', '.join(get_args(Keep))}, got {name!r}")


def put(store: Store, key: str, image: Image) -> None:
    """Keep one image `(h, w, 3)`."""
    store.put(*_address(key, pixel_hash(image)), files={FILE: encode(image)})


def one(store: Store, key: str, digest: str) -> Image | None:
    """One image by the SHA-256 of its pixels, `(h, w, 3)`; None if it was not kept by itself."""
    try:
        return decode(store.read(*_address(key, digest), file=FILE))
    except KeyError:
        return None


def shard(store: Store, key: str, name: str) -> Image | None:
    """All images of a batch, `(n, h, w, 3)`; None unless all were kept."""
    if not whole(store, key, name):
        return _gathered(store, key, name)
    try:
        content = store.read(keys.IMAGES, key, name, file="images.npy")
    except KeyError:
        return None  # taken away meanwhile
    try:
        return arrays(content)
    except ValueError as error:
        raise Damaged(f"{keys.IMAGES}/{key}/{name}/images.npy cannot be read: {error}; delete it") from None


def whole(store: Store, key: str, name: str) -> bool:
    """Whether a batch's pixels lie together, as `all` keeps them; nothing is read."""
    return (store.root / keys.IMAGES / key / name / "images.npy").is_file()


def complete(store: Store, key: str, name: str) -> bool:
    """Whether a batch's pixels are all there, together or one by one; they are not read."""
    return whole(store, key, name) or all(store.has(*_address(key, digest)) for digest in _listed(store, key, name))


def _gathered(store: Store, key: str, name: str) -> Image | None:
    alone = []
    for digest in _listed(store, key, name):
        image = one(store, key, digest)
        if image is None:
            return None
        alone.append(image)
    return np.stack(alone) if alone else None


def _listed(store: Store, key: str, name: str) -> list[str]:
    return [e["sha256"] for e in keys.parse_items(store.read(keys.IMAGES, key, name, file="items.json"))]


def found(store: Store, key: str, name: str, row: int, digest: str) -> Image | None:
    """One image however it was kept: by itself, or as a row of its batch."""
    alone = one(store, key, digest)
    if alone is not None:
        return alone
    together = shard(store, key, name) if whole(store, key, name) else None
    return None if together is None else together[row]


def not_kept(what: str) -> Missing:
    """The error for pixels that are asked for and were not kept."""
    return Missing(f"{what}: hashes and raw outputs are there, but the pixels were not kept; {AGAIN}")


def encode(image: Image) -> bytes:
    """Lossless WebP: a quarter of the time and less room than PNG."""
    from PIL import Image as Pictures

    out = io.BytesIO()
    Pictures.fromarray(image).save(out, format="WEBP", lossless=True, quality=0, method=1, exact=True)
    return out.getvalue()


def decode(content: bytes) -> Image:
    """`encode`'s image, `(h, w, 3)`; Damaged if it is none."""
    from PIL import Image as Pictures

    try:
        with Pictures.open(io.BytesIO(content), formats=("WEBP",)) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Pictures.DecompressionBombError) as error:
        raise Damaged(f"{FILE} of an image cannot be read: {error}; delete its folder and run again") from error


def _address(key: str, digest: str) -> tuple[str, str, str]:
    return PIXELS, key, digest[: keys.LENGTH]
