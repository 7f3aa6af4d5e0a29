"""The embedded model's judges: classifiers "a" and "b", and the in-domain pair of image and text towers.

Weights lie as `config.json` + `model.safetensors` (half precision on disk, float32 in memory). Images enter as uint8,
or as floats in [0, 1], `(n, 3, 64, 64)`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast, final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmark import atomic
from benchmark.errors import BadInput, Damaged, Missing, did_you_mean
from benchmark.metrics.evaluators import EVALUATORS, Array, Evaluator, hash_files

HALF_MAX = torch.finfo(torch.float16).max
HEADS = ("object", "style", "background")
CLASSES = {"object": "objects", "style": "styles", "background": "backgrounds"}
"""Head to the key of its class names in config.json."""


def pixels(images: Tensor) -> Tensor:
    """uint8 in [0, 255] or floats in [0, 1], `(n, 3, h, w)`, to float32 in [-1, 1]."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise BadInput(f"expected images (n, 3, h, w), got {tuple(images.shape)}; move the channels to axis 1")
    x = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    return 2 * x - 1


# --- weights on disk ------------------------------------------------------------------------------------------
def save_weights(module: nn.Module, config: Mapping[str, Any], folder: Path, skip: str = "\0") -> None:
    """Write config and weights, without tensors whose name starts with `skip`. Bytes depend on the values alone."""
    state = {k: v for k, v in module.state_dict().items() if not k.startswith(skip)}
    bad = [k for k, v in state.items() if v.is_floating_point() and not bool((v.abs() <= HALF_MAX).all())]
    if bad:
        raise BadInput(f"{bad[0]} holds values that half precision cannot (not finite, or above {HALF_MAX:.0f})")
    half = {k: (v.half() if v.is_floating_point() else v).cpu().contiguous() for k, v in sorted(state.items())}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(half, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a weights folder."""
    try:
        return cast(dict[str, Any], json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise Missing(_absent("config.json", folder)) from None
    except json.JSONDecodeError as e:
        raise Damaged(f"{folder / 'config.json'} is not JSON ({e}); restore it from the repository") from None


def _absent(what: str, folder: Path) -> str:
    return f"no {what} in {folder}; the embedded model's weights belong there (`make testbed` trains them anew)"


def load_weights(module: nn.Module, folder: Path, skip: str = "\0") -> None:
    """Fill `module` (float32) from a weights folder; names and shapes must agree, but for names after `skip`."""
    path = folder / "model.safetensors"
    if not path.exists():
        raise Missing(_absent("model.safetensors", folder))
    found = module.load_state_dict(load_file(path), strict=False)  # copies, and casts half to float32
    missing = [k for k in found.missing_keys if not k.startswith(skip)]
    if missing or found.unexpected_keys:
        raise Damaged(f"{path} does not fit its config.json: missing {missing}, unexpected {found.unexpected_keys}")


# --- parts ----------------------------------------------------------------------------------------------------
def conv_pair(inner: int, outer: int, activation: type[nn.Module]) -> nn.Sequential:
    """Two 3×3 convolutions, each with batch norm and activation."""
    layers: list[nn.Module] = []
    for i in (inner, outer):
        layers += [nn.Conv2d(i, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer), activation()]
    return nn.Sequential(*layers)


def plain_trunk(widths: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    """Convolution pairs with 2×2 max pooling between, then the global average: `(n, 3, h, w)` → `(n, widths[-1])`."""
    layers: list[nn.Module] = []
    for inner, outer in zip((3, *widths[:-1]), widths, strict=True):
        layers += [conv_pair(inner, outer, activation), nn.MaxPool2d(2)]
    return nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten())


class ConvNeXtBlock(nn.Module):
    """Depthwise 7×7, norm, 1×1 up, GELU, 1×1 down, residual. Liu et al. 2022, figure 4, with group norm and ratio 3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 7, padding=3, groups=width),
            nn.GroupNorm(1, width),
            nn.Conv2d(width, 3 * width, 1),
            nn.GELU(),
            nn.Conv2d(3 * width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.layers(x))


def convnext_trunk(widths: Sequence[int], depth: int) -> nn.Sequential:
    """A stem of stride 2, then `depth` blocks a width with strided 2×2 convolutions between; pooled and normalised."""
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.GroupNorm(1, widths[0])]
    for inner, outer in zip((widths[0], *widths[:-1]), widths, strict=True):
        if len(layers) > 2:
            layers += [nn.GroupNorm(1, inner), nn.Conv2d(inner, outer, 2, stride=2)]
        layers += [ConvNeXtBlock(outer) for _ in range(depth)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(widths[-1]))


# --- networks -------------------------------------------------------------------------------------------------
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "a": {"widths": [24, 48, 96, 144]},
    "b": {"widths": [40, 80, 144], "depth": 2},
}


@final
class Classifier(nn.Module):
    """One trunk, three linear heads. Config: `architecture` ("a": plain CNN; "b": ConvNeXt-like, no batch norm),
    `objects`, `styles`, `backgrounds` (class names, in the order of the logits), `widths`, `depth` ("b" only), `size`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        kind = str(config.get("architecture"))
        if kind not in DEFAULTS:
            raise BadInput(f"unknown evaluator architecture {kind!r}; known: {', '.join(DEFAULTS)}")
        self.config: dict[str, Any] = {"size": 64, **DEFAULTS[kind], **config}
        widths = self.config["widths"]
        self.trunk = plain_trunk(widths, nn.ReLU) if kind == "a" else convnext_trunk(widths, self.config["depth"])
        self.heads = nn.ModuleDict({h: nn.Linear(widths[-1], len(self.config[CLASSES[h]])) for h in HEADS})

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        return cls(config)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`object`, `style`, `background`: logits `(n, classes)`; `features`: `(n, widths[-1])`."""
        features = self.trunk(pixels(images))
        return {**{h: head(features) for h, head in self.heads.items()}, "features": features}

    def save(self, folder: str | Path) -> None:
        save_weights(self, self.config, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The network of a weights folder, in eval mode."""
        model = cls(read_config(Path(folder)))
        load_weights(model, Path(folder))
        return model.eval()


@final
class ImageTower(nn.Module):
    """A CNN of its own: `(n, 3, 64, 64)` → `(n, dim)`, not normalised. Config: `widths`, `dim`, and `shrink`, the
    factor by which images are averaged down first (a third view may well be a coarser one; it costs a quarter).
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"widths": [32, 64, 128], "dim": 128, "shrink": 2, **config}
        width = self.config["widths"][-1]
        self.trunk = plain_trunk(self.config["widths"], nn.GELU)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, self.config["dim"], bias=False))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        return cls(config)

    def forward(self, images: Tensor) -> Tensor:
        x = F.avg_pool2d(pixels(images), self.config["shrink"])
        return cast(Tensor, self.head(self.trunk(x)))

    def save(self, folder: str | Path) -> None:
        save_weights(self, self.config, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        model = cls(read_config(Path(folder)))
        load_weights(model, Path(folder))
        return model.eval()


@final
class TestbedClip(nn.Module):
    """Image tower and text tower in one space, CLIP's form (Radford et al. 2021, figure 3).

    `text_model` is a transformers `CLIPTextModel`; its `config.eos_token_id` must be the tokenizer's, because the
    text's vector is read at that token. Config: `image` (that of `ImageTower`).
    """

    __test__ = False  # not a pytest class, whatever its name

    def __init__(self, text_model: nn.Module, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.image = ImageTower(config.get("image", {}))
        self.config: dict[str, Any] = {"image": self.image.config}
        self.text_model = text_model
        hidden: int = cast(Any, text_model).config.hidden_size
        self.text_projection = nn.Linear(hidden, self.image.config["dim"], bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6593))  # log(1 / 0.07)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], text_model: nn.Module) -> Self:
        return cls(text_model, config)

    def image_embeds(self, images: Tensor) -> Tensor:
        """`(n, dim)`, unit length."""
        return F.normalize(self.image(images), dim=-1)

    def text_embeds(self, input_ids: Tensor) -> Tensor:
        """`(n, length)` ids to `(n, dim)`, unit length. Causal, read at EOS: padding after it plays no part."""
        return F.normalize(self.text_projection(self.text_model(input_ids=input_ids).pooler_output), dim=-1)

    def forward(self, images: Tensor, input_ids: Tensor) -> dict[str, Tensor]:
        """`image`, `text`: unit embeddings; `logits`: `(images, texts)`, scaled cosines."""
        image, text = self.image_embeds(images), self.text_embeds(input_ids)
        return {"image": image, "text": text, "logits": self.logit_scale.exp() * image @ text.T}

    def save(self, folder: str | Path, *, text: bool = False) -> None:
        """Write the image tower and the projection; with `text` the text tower too, else it is `../text_encoder`."""
        save_weights(self, self.config, Path(folder), skip="text_model.")
        if text:
            cast(Any, copy.deepcopy(self.text_model)).half().save_pretrained(Path(folder) / "text_encoder")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """In eval mode; the text tower is `folder/text_encoder` if there is one, else `../text_encoder`."""
        from transformers import CLIPTextModel

        source = beside(Path(folder), "text_encoder")
        text = CLIPTextModel.from_pretrained(source, dtype=torch.float32, local_files_only=True)
        model = cls(text, read_config(Path(folder)))
        load_weights(model, Path(folder), skip="text_model.")
        return model.eval()


def beside(folder: Path, part: str) -> Path:
    """`folder/part` if it exists, else the neighbour `folder/../part`."""
    for path in (folder / part, folder.parent / part):
        if path.is_dir():
            return path
    raise Missing(_absent(part, folder.parent))


# --- the judge of the embedded model --------------------------------------------------------------------------
BATCH = 32
"""Images and prompts go through in batches of exactly this shape, padded: kernels differ with the shape."""


@final
class TestbedEvaluator(Evaluator):
    """Evaluator "a" and the in-domain CLIP. Raw outputs, one row an image:

    `object`, `style`: logits over `classes`; `features` `(n, 144)`; `clip`: unit image embedding `(n, 128)`;
    `blank`: 1 where all pixels are 0, which is how pipelines show a withheld or not-a-number image.
    """

    __test__ = False
    id = "testbed-a"

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.hash = hash_files(self.root, EVALUATORS[self.id].parts)
        self.network = Classifier.load(self.root / "evaluator")
        self.classes = {h: tuple(self.network.config[CLASSES[h]]) for h in ("object", "style")}
        self._clip: TestbedClip | None = None
        self._tokenizer: Any = None

    @property
    def clip(self) -> TestbedClip:
        """The pair of towers, loaded when first asked for."""
        if self._clip is None:
            from transformers import CLIPTokenizer

            self._clip = TestbedClip.load(self.root / "clip")
            source = beside(self.root / "clip", "tokenizer")
            self._tokenizer = CLIPTokenizer.from_pretrained(source, local_files_only=True)
        return self._clip

    def raw(self, images: NDArray[np.uint8]) -> dict[str, Array]:
        """Outputs for uint8 images `(n, 64, 64, 3)`, float32 but for `blank` (uint8)."""
        self._check(images)
        chunks = [self._raw_batch(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
        chunks = chunks or [{k: v[:0] for k, v in self._raw_batch(np.zeros((1, *images.shape[1:]), np.uint8)).items()}]
        return {k: np.concatenate([c[k] for c in chunks]) for k in chunks[0]}

    def texts(self, prompts: Sequence[str]) -> Array:
        """Unit text embeddings `(n, 128)`, float32. Prompts longer than the text tower reads are cut, as in CLIP."""
        chunks = [self._text_batch(list(prompts[i : i + BATCH])) for i in range(0, len(prompts), BATCH)]
        return np.concatenate(chunks) if chunks else np.zeros((0, self.clip.image.config["dim"]), np.float32)

    def reference(self, concepts: Sequence[str]) -> Array:
        """Features `(m, 144)`, float64, of the held-out renders of these concepts; of all where none is named."""
        features, classes = self._reference
        if not concepts:
            return features.astype(np.float64)
        unknown = [c for c in concepts if c not in self.classes["object"]]
        if unknown:
            raise BadInput(f"evaluator {self.id!r}: " + did_you_mean(unknown[0], self.classes["object"], "class"))
        wanted = [self.classes["object"].index(c) for c in concepts]
        return features[np.isin(classes, wanted)].astype(np.float64)

    @property
    def _reference(self) -> tuple[Array, Array]:
        path = self.root / "reference" / "features.safetensors"
        if not path.exists():
            raise Missing(f"no reference features at {path}; they ship with the embedded model (`make testbed`)")
        with safe_open(path, framework="np") as f:
            made_by = (f.metadata() or {}).get("evaluator")
            features, classes = f.get_tensor("features"), f.get_tensor("class")
        if made_by != hash_files(self.root, ["evaluator"]):
            raise Damaged(f"{path} was made by another evaluator than the one beside it; make it anew (`make testbed`)")
        return features, classes

    def _check(self, images: NDArray[np.uint8]) -> None:
        size = self.network.config["size"]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3):
            came = f"{images.dtype} {images.shape}"
            raise BadInput(f"evaluator {self.id!r} expects uint8 images (n, {size}, {size}, 3), got {came}")

    @torch.inference_mode()
    def _raw_batch(self, images: NDArray[np.uint8]) -> dict[str, Array]:
        n = len(images)
        padded = np.zeros((BATCH, *images.shape[1:]), np.uint8)
        padded[:n] = images
        x = torch.from_numpy(padded).permute(0, 3, 1, 2).contiguous()
        out = {**self.network(x), "clip": self.clip.image_embeds(x)}
        rows = {k: out[k][:n].numpy().copy() for k in ("object", "style", "features", "clip")}
        return {**rows, "blank": (images.reshape(n, -1).max(1) == 0).astype(np.uint8)}

    @torch.inference_mode()
    def _text_batch(self, prompts: list[str]) -> Array:
        clip = self.clip  # also loads the tokenizer
        padded = prompts + [""] * (BATCH - len(prompts))
        ids = self._tokenizer(padded, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return clip.text_embeds(ids)[: len(prompts)].numpy().copy()


def write_reference(root: str | Path, images: NDArray[np.uint8], concepts: Sequence[str]) -> Path:
    """Store evaluator "a"'s features of held-out renders `(n, 64, 64, 3)` of the named concepts, in half precision."""
    judge = TestbedEvaluator(root)
    if len(images) != len(concepts):
        raise BadInput(f"expected one concept for each image, got {len(images)} images and {len(concepts)} concepts")
    known = {c: i for i, c in enumerate(judge.classes["object"])}
    features = torch.from_numpy(judge.raw(images)["features"]).half()
    path = judge.root / "reference" / "features.safetensors"
    tensors = {"features": features, "class": torch.tensor([known[c] for c in concepts], dtype=torch.int32)}
    with atomic.file(path) as temporary:
        save_file(tensors, temporary, metadata={"evaluator": hash_files(judge.root, ["evaluator"])})
    return path
