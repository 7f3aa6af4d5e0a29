"""Inception features as clean-fid makes them: its resize, its network. Parmar et al. 2022, arXiv:2104.11222.

Only resize and network are clean-fid's: its distances break on newer SciPy, and take images from folders only.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from benchmark.errors import BadInput
from benchmark.evaluators.batches import check, in_batches, place
from benchmark.image_folders import ImageFile, pixels
from benchmark.metrics.evaluators import REFERENCE, Array, Evaluator, reference_folder
from benchmark.metrics.validity import blank

SIZE, DIM = 299, 2048
PICTURES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}


def resized(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 images `(n, h, w, 3)` to `(n, 299, 299, 3)` in [0, 255], not rounded: clean-fid's mode "clean".

    Each channel goes through Pillow's bicubic filter as floats, with the filter as wide as the shrinking asks for.
    """
    from cleanfid.resize import build_resizer

    shrink = build_resizer("clean")
    return np.stack([shrink(i) for i in images]) if len(images) else np.zeros((0, SIZE, SIZE, 3), np.float32)


@final
class InceptionEvaluator(Evaluator):
    """Raw outputs: `features` `(n, 2048)`, float32, before the last layer; `blank`."""

    def __init__(self, name: str, digest: str, folder: Path, images: Path | None = None) -> None:
        from cleanfid.inception_torchscript import InceptionV3W

        self.id, self.hash = name, digest
        self.classes: Mapping[str, tuple[str, ...]] = {}
        with warnings.catch_warnings():
            # TorchScript is deprecated; the published network is in it.
            warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)
            warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
            network: Any = InceptionV3W(str(folder), download=False, resize_inside=False)
        self.network: Any = network.eval().to(place())
        self.images = images
        self._known: dict[tuple[Path, ...], Array] = {}

    def raw(self, images: NDArray[np.uint8]) -> dict[str, Array]:
        """Features of uint8 images `(n, h, w, 3)` of any size."""
        check(self.id, images)
        return {"features": in_batches(self._features, images), "blank": blank(images)}

    @torch.no_grad()
    def _features(self, images: Array) -> Array:
        pixels = torch.from_numpy(resized(images)).permute(0, 3, 1, 2).to(place())
        return np.asarray(self.network(pixels).float().cpu().numpy())

    def reference(self, concepts: Sequence[str]) -> Array:
        """Features `(m, 2048)`, float64, of the real images: of these concepts' folders if there are, else of all."""
        return self.features_of(pictures(self.images or reference_folder(self.id), concepts))

    def features_of(self, files: Sequence[Path]) -> Array:
        """Features `(m, 2048)`, float64, of image files of any sizes; made once for all methods."""
        listed = tuple(files)
        if listed not in self._known:
            self._known[listed] = np.concatenate([self._of_file(f) for f in listed])
        return self._known[listed]

    def _of_file(self, path: Path) -> Array:
        image = pixels(ImageFile(path, path.name))
        return self.raw(image[None])["features"].astype(np.float64)


def pictures(folder: Path, concepts: Sequence[str]) -> list[Path]:
    """The image files of `folder/<concept>/` for all concepts, if each has such a folder; else all below `folder`.

    BadInput if there are none.
    """
    own = [folder / c for c in concepts]
    places = own if own and all(p.is_dir() for p in own) else [folder]
    found = sorted({p for place in places for p in place.rglob("*") if p.suffix.lower() in PICTURES and p.is_file()})
    if not found:
        raise BadInput(f"{REFERENCE}: no images ({', '.join(sorted(PICTURES))}) in {folder}")
    return found
