"""Folders of real images: what is in them, whose class they are, and their pixels.

Either class folders, as torchvision reads them (`<class>/…/<image>`), or one flat folder. Nothing outside the folder is
read, whatever links point to.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmark import data_files
from benchmark.data import Concept
from benchmark.errors import BadInput, Damaged

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
"""Names of images end so, in capitals or not; other files are passed over."""
MOST_PIXELS = 64 * 2**20
"""A larger image is refused before it is decoded: a few kilobytes can stand for gigabytes of pixels."""


@dataclass(frozen=True)
class ImageFile:
    """One image of a folder."""

    path: Path
    name: str
    """Path inside the folder, with `/` between."""

    @property
    def folder(self) -> str:
        """Name of the class folder; "" in a flat one."""
        return self.name.partition("/")[0] if "/" in self.name else ""


def listed(folder: Path) -> tuple[ImageFile, ...]:
    """The images of a folder, by name. `BadInput` if there are none, if some lie in class folders and some beside them,
    or if a link leads out of the folder. Hidden files are passed over.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: expected a folder of images")
    root = folder.resolve()
    found = [ImageFile(path, path.relative_to(folder).as_posix()) for path in folder.rglob("*") if _is_image(path)]
    images = tuple(sorted((i for i in found if not _hidden(i.name)), key=lambda i: i.name))
    for image in images:
        if not image.path.resolve().is_relative_to(root):
            raise BadInput(f"{image.path}: leads out of {folder}; copy the image into it")
    if not images:
        raise BadInput(f"{folder}: no image in it; names end in {', '.join(sorted(SUFFIXES))}")
    if len({bool(image.folder) for image in images}) > 1:
        beside = next(image.name for image in images if not image.folder)
        raise BadInput(f"{folder}: expected class folders or a flat folder, found both ({beside} lies beside folders)")
    return images


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def of_concepts(images: Iterable[ImageFile], concepts: Iterable[Concept]) -> dict[str, tuple[ImageFile, ...]]:
    """Concept's name to its images. A class folder is a concept's if it bears its name or its label, or begins with
    `<label>-` as Stanford Dogs' do. `BadInput` for a folder that is no concept's.
    """
    known = {called: c.name for c in concepts for called in (c.name, c.label) if called}
    found: dict[str, list[ImageFile]] = {}
    for image in images:
        concept = known.get(image.folder) or known.get(image.folder.partition("-")[0])
        if concept is None:
            what = (
                f"folder {image.folder!r} is of none of these concepts" if image.folder else "lies in no class folder"
            )
            raise BadInput(f"{image.path}: {what}; known are {', '.join(sorted(known)[:6])}, …")
        found.setdefault(concept, []).append(image)
    return {concept: tuple(of) for concept, of in found.items()}


def of_coco(images: Iterable[ImageFile], ids: Sequence[int]) -> tuple[ImageFile, ...]:
    """The images with these COCO ids (`COCO_val2014_000000203564.jpg` is 203564), in the order of `ids`."""
    known = _numbered(images)
    gone = [i for i in ids if i not in known]
    if gone:
        raise BadInput(f"{len(gone)} of {len(ids)} images of COCO are not in the folder, the first with id {gone[0]}")
    return tuple(known[i] for i in ids)


def of_labels(
    images: Iterable[ImageFile], labels: Sequence[int], concepts: Iterable[Concept]
) -> dict[str, tuple[ImageFile, ...]]:
    """Concept's name to its images, where these are numbered from 1 (`image_00001.jpg`, as Oxford Flowers' are) and
    `labels` has the class of each. `BadInput` for an image without a class, or a class that is no concept's label.
    """
    known = {c.label: c.name for c in concepts}
    found: dict[str, list[ImageFile]] = {}
    for number, image in sorted(_numbered(images).items()):
        label = str(labels[number - 1]) if 0 < number <= len(labels) else None
        if label is None or label not in known:
            what = "which no concept has" if label else f"expected image 1 to {len(labels)}"
            raise BadInput(f"{image.path}: class {label}, {what}; are these labels of these images?")
        found.setdefault(known[label], []).append(image)
    return {concept: tuple(of) for concept, of in found.items()}


def _numbered(images: Iterable[ImageFile]) -> dict[int, ImageFile]:
    """By the number that a name ends in; those without one are left out."""
    found = ((re.search(r"(\d+)$", image.path.stem), image) for image in images)
    return {int(digits[1]): image for digits, image in found if digits}


def pixels(image: ImageFile) -> NDArray[np.uint8]:
    """RGB values `(height, width, 3)`, in 0..255, as they are stored: like other readers for FID, not turned by EXIF.

    `Damaged` if it cannot be decoded to the end; `BadInput` if it has more than `MOST_PIXELS`.
    """
    from PIL import Image

    try:
        with Image.open(image.path) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise _too_large(image)
            return np.asarray(opened.convert("RGB"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(image) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise Damaged(f"{image.path}: cannot be decoded: {error}") from None


def _too_large(image: ImageFile) -> BadInput:
    return BadInput(f"{image.path}: more than {MOST_PIXELS} pixels; make the image smaller or leave it out")


def digest(images: Iterable[ImageFile]) -> str:
    """SHA-256 over the names and the bytes of the images: what reference statistics were computed from."""
    total = hashlib.sha256()
    for image in images:
        total.update(f"{image.name}\0{data_files.sha256(image.path)}\n".encode())
    return total.hexdigest()


def verify(folder: Path, manifest: Mapping[str, str] | None = None) -> int:
    """Check the images against a manifest, the folder's `SHA256SUMS` by default; how many there are.

    `Damaged` names an image with other bytes, one that is not there, or one that no line promises.
    """
    promised = dict(manifest if manifest is not None else data_files.manifest(folder / data_files.MANIFEST))
    images = {image.name: image for image in listed(folder)}
    named: dict[str, Any] = {name: digest for name, digest in promised.items() if Path(name).suffix.lower() in SUFFIXES}
    gone, more = sorted(named.keys() - images.keys()), sorted(images.keys() - named.keys())
    if gone or more:
        what = f"{gone[0]} is promised but not there" if gone else f"{more[0]} is there, but no line promises it"
        raise Damaged(f"{folder}: {what} ({len(gone)} lack, {len(more)} are beyond the manifest)")
    for name, image in images.items():
        data_files.check(image.path, named[name])
    return len(images)
