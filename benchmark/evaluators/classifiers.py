"""Published classifiers: any checkpoint of timm or transformers in a folder, and torchvision's ResNet-50 on ImageNet.

Raw outputs: `logits` `(n, classes)`, float32; `blank`. All classes of the checkpoint are kept, and compete. A file
`classes.json` beside the weights, `{concept: class}`, maps concepts that are spelled otherwise.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmark.errors import BadInput, Damaged
from benchmark.evaluators import pickles
from benchmark.evaluators.batches import check, in_batches, place
from benchmark.metrics.accuracy import class_names
from benchmark.metrics.evaluators import Array, Evaluator
from benchmark.metrics.validity import blank

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""In the data set's own order, for checkpoints that do not name their classes."""
Prepare = Callable[[Image.Image], Tensor]


class _Classifier(Evaluator):
    """What classifiers share once network, preparation and names of classes are there."""

    network: Any
    prepare: Prepare
    named: Mapping[str, str]
    """Concept to class, where the user said so."""

    def raw(self, images: NDArray[np.uint8]) -> dict[str, Array]:
        """Logits of uint8 images `(n, h, w, 3)` of any size."""
        check(self.id, images)
        return {"logits": in_batches(self._logits, images), "blank": blank(images)}

    @torch.no_grad()
    def _logits(self, images: Array) -> Array:
        pixels = torch.stack([self.prepare(Image.fromarray(i)) for i in images]).to(place())
        output = self.network(pixels)
        logits = output if isinstance(output, Tensor) else output.logits
        return np.asarray(logits.float().cpu().numpy())


@final
class FolderClassifier(_Classifier):
    """A checkpoint folder: `config.json` of timm (`architecture`) or of transformers (`architectures`), and weights."""

    def __init__(self, name: str, digest: str, folder: Path) -> None:
        self.id, self.hash = name, digest
        pickles.check(name, folder)
        config = _json(folder / "config.json")
        build = _timm if "architecture" in config else _transformers
        network, self.prepare, names = build(folder, config)
        self.network = network.eval().to(place())
        self.named = _json(folder / "classes.json") if (folder / "classes.json").is_file() else {}
        self.classes = {"logits": self._names(names, folder)}

    def _names(self, names: tuple[str, ...], folder: Path) -> tuple[str, ...]:
        if names:
            return names
        if self.id == "cifar10-resnet":
            return CIFAR10
        raise BadInput(
            f"{folder}/config.json does not name its classes; add label_names there, in the order of the logits"
        )


@final
class TorchvisionClassifier(_Classifier):
    """torchvision's ResNet-50 with its weights `IMAGENET1K_V2`, the default there, and their own preparation."""

    def __init__(self, name: str, digest: str, folder: Path) -> None:
        models: Any = importlib.import_module("torchvision.models")  # it has no type information

        self.id, self.hash = name, digest
        weights = models.ResNet50_Weights.IMAGENET1K_V2
        network = models.resnet50(weights=None)
        network.load_state_dict(torch.load(folder / Path(weights.url).name, map_location="cpu", weights_only=True))
        self.network = network.eval().to(place())
        self.prepare = weights.transforms()
        self.named = {}
        self.classes = {"logits": tuple(weights.meta["categories"])}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Damaged(f"{path} is not JSON ({error}); get it again") from None
    if not isinstance(found, dict):
        raise Damaged(f"{path}: expected an object, found {type(found).__name__}; get it again")
    return found


def _timm(folder: Path, config: Mapping[str, Any]) -> tuple[Any, Prepare, tuple[str, ...]]:
    timm: Any = importlib.import_module("timm")
    preparing: Any = importlib.import_module("timm.data")

    said = {k: v for k, v in (config.get("pretrained_cfg") or {}).items() if v is not None}
    count = config.get("num_classes", said.get("num_classes"))
    network = timm.create_model(
        config["architecture"], pretrained=False, num_classes=count, **config.get("model_args", {})
    )
    _fill(network, folder)
    prepare = preparing.create_transform(**preparing.resolve_data_config({}, pretrained_cfg=said), is_training=False)
    return network, prepare, class_names(config)


def _fill(network: Any, folder: Path) -> None:
    """Load `model.safetensors`, or a pickle as weights only."""
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    if path.is_file():
        state = load_file(path)
    else:
        path = folder / pickles.PICKLE
        state = pickles.tensors(path)
    found = network.load_state_dict(state, strict=False)
    if found.missing_keys or found.unexpected_keys:
        raise Damaged(f"{path} does not fit its config.json: {_first(found)}; get both from one place")


def _first(found: Any) -> str:
    missing, extra = found.missing_keys, found.unexpected_keys
    return f"{len(missing)} tensors are missing ({missing[:1]}), {len(extra)} are not known ({extra[:1]})"


def _transformers(folder: Path, config: Mapping[str, Any]) -> tuple[Any, Prepare, tuple[str, ...]]:
    transformers: Any = importlib.import_module("transformers")
    network = transformers.AutoModelForImageClassification.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32, trust_remote_code=False
    )
    processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)

    def prepare(image: Image.Image) -> Tensor:
        pixels: Tensor = processor(image, return_tensors="pt")["pixel_values"][0]
        return pixels

    return network, prepare, class_names(config)
