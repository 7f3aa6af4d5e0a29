"""LPIPS between two images, by its authors' package. Zhang et al. 2018, arXiv:1801.03924, version 0.1, AlexNet."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmark.errors import BadInput, Damaged
from benchmark.evaluators.batches import check, in_batches, place
from benchmark.metrics.evaluators import Array, PairEvaluator
from benchmark.metrics.validity import BLACK, CONSTANT, blank

TRUNK = "alexnet-owt-7be5be79.pth"


@final
class LpipsEvaluator(PairEvaluator):
    """Raw outputs, one row a pair: `lpips` `(n,)`, float32; `blank`, where either image is."""

    def __init__(self, name: str, digest: str, heads: Path, trunk: Path) -> None:
        self.id, self.hash = name, digest
        self.network: Any = build(heads, trunk).to(place())

    def pairs(self, images: NDArray[np.uint8], unedited: NDArray[np.uint8]) -> dict[str, Array]:
        """Distances of uint8 images `(n, h, w, 3)`, at least 64 pixels a side, each from its own partner."""
        check(self.id, images)
        check(self.id, unedited)
        if images.shape != unedited.shape:
            raise BadInput(f"evaluator {self.id!r} expects images in pairs, got {images.shape} and {unedited.shape}")
        both = np.stack([images, unedited], axis=1)
        codes = np.stack([blank(images), blank(unedited)])
        worst = np.where((codes == BLACK).any(axis=0), BLACK, np.where((codes == CONSTANT).any(axis=0), CONSTANT, 0))
        return {"lpips": in_batches(self._distances, both), "blank": worst.astype(np.uint8)}

    @torch.no_grad()
    def _distances(self, both: Array) -> Array:
        a, b = (_pixels(both[:, i]).to(place()) for i in (0, 1))
        return np.asarray(self.network(a, b).reshape(-1).float().cpu().numpy())


def _pixels(images: Array) -> Tensor:
    """uint8 `(n, h, w, 3)` to floats in [-1, 1], `(n, 3, h, w)`."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def build(heads: Path, trunk: Path) -> Any:
    """The network, filled from both files here: the package itself would download the trunk."""
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks torchvision for an empty trunk in a way that is deprecated
        network = lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False)
    network.load_state_dict(torch.load(heads / "alex.pth", map_location="cpu", weights_only=True), strict=False)
    _fill_trunk(network.net, torch.load(trunk / TRUNK, map_location="cpu", weights_only=True), trunk / TRUNK)
    return network.eval()


def _fill_trunk(net: Any, state: dict[str, Tensor], path: Path) -> None:
    """AlexNet's convolutions keep their number in `features`; in LPIPS the slice that they are in comes before it."""
    own = net.state_dict()
    named = {f"{name.split('.', 1)[1]}": name for name in own}  # "slice2.3.weight" → "3.weight"
    given = {named[k.removeprefix("features.")]: v for k, v in state.items() if k.removeprefix("features.") in named}
    if given.keys() != own.keys():
        raise Damaged(f"{path} is not AlexNet: it lacks {sorted(own.keys() - given.keys())[:2]}; get it again")
    net.load_state_dict(given)
