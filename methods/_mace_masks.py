"""Where a concept is in images: by Grounding DINO and SAM, where their weights are here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from huggingface_hub.constants import HF_HUB_CACHE
from torch import Tensor

from benchmark.backbones.base import Backbone
from benchmark.errors import Missing

DETECTOR = "IDEA-Research/grounding-dino-base"
SEGMENTER = "facebook/sam-vit-huge"
BOX, TEXT = 0.3, 0.25  # thresholds, as released

Finder = Callable[[Tensor, str], Tensor]
"""Latents `(n, *latent_shape)` and a name to masks `(n, height, width)`, 1.0 where the concept is."""
Detect = Callable[[Any, str], Tensor]
"""An image `(3, height, width)` in [0, 1] and a name to boxes `(boxes, 4)`: left, top, right, bottom, in pixels."""
Segment = Callable[[Any, Tensor], Tensor]
"""An image and boxes (at least one) to a mask for each: `(boxes, height, width)` bool."""

_loaders: Any = transformers  # its loaders have no types


def finder(mode: str, backbone: Backbone) -> Finder | None:
    """What finds the concept; None where all pixels count. Missing if its weights are not here."""
    if mode != "segmenter":
        return None
    detect, segment = detector(backbone), segmenter(backbone)

    def find(latents: Tensor, name: str) -> Tensor:
        with torch.no_grad():
            return torch.stack([found(backbone.decode(x[None])[0].float(), name, detect, segment) for x in latents])

    return find


def found(image: Tensor, name: str, detect: Detect, segment: Segment) -> Tensor:
    """The union of the masks of all boxes, `(height, width)` 0 or 1; all ones where nothing is detected."""
    boxes = detect(image, name)
    if not len(boxes):
        return torch.ones(image.shape[1:], device=image.device)
    return segment(image, boxes).any(0).to(image)


def detector(backbone: Backbone) -> Detect:
    """Grounding DINO on the backbone's device."""
    processor = _load("AutoProcessor", DETECTOR)
    model = _model("AutoModelForZeroShotObjectDetection", DETECTOR, backbone)
    return grounded(model, processor)


def segmenter(backbone: Backbone) -> Segment:
    """SAM on the backbone's device."""
    processor = _load("SamProcessor", SEGMENTER)
    model = _model("SamModel", SEGMENTER, backbone)
    return segmented(model, processor)


def grounded(model: Any, processor: Any) -> Detect:
    """Boxes of a name by a Grounding DINO."""

    def detect(image: Tensor, name: str) -> Tensor:
        inputs = processor(images=_pixels(image), text=f"{name.lower()}.", return_tensors="pt").to(model.device)
        outputs, size = model(**inputs), [tuple(image.shape[1:])]
        made = processor.post_process_grounded_object_detection(
            outputs, inputs.input_ids, threshold=BOX, text_threshold=TEXT, target_sizes=size
        )
        boxes: Tensor = made[0]["boxes"]
        return boxes

    return detect


def segmented(model: Any, processor: Any) -> Segment:
    """One mask a box by a SAM."""

    def segment(image: Tensor, boxes: Tensor) -> Tensor:
        inputs = processor(_pixels(image), input_boxes=[boxes.tolist()], return_tensors="pt")
        sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
        outputs = model(
            pixel_values=inputs["pixel_values"].to(model.device),
            input_boxes=inputs["input_boxes"].to(model.device, torch.float32),
            multimask_output=False,
        )
        masks: Tensor = processor.image_processor.post_process_masks(outputs.pred_masks.cpu(), *sizes)[0]
        return masks[:, 0].bool()

    return segment


def _pixels(image: Tensor) -> Any:
    """`(height, width, 3)` uint8, as the processors read images."""
    return (image.permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()


def _load(kind: str, name: str, **options: Any) -> Any:
    try:
        return getattr(_loaders, kind).from_pretrained(name, local_files_only=True, **options)
    except (OSError, ValueError) as error:
        raise Missing(
            f"mace's mask `segmenter` needs {name}, which is not in the hub cache {HF_HUB_CACHE}; "
            f"get it with `hf download {name}`, or set mask to ones"
        ) from error


def _model(kind: str, name: str, backbone: Backbone) -> Any:
    return _load(kind, name, use_safetensors=True).to(backbone.device).eval()  # pickles run code
