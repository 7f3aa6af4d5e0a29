"""OpenAI's CLIP through transformers: unit embeddings of images and texts, from which protocols make scores.

Radford et al. 2021, arXiv:2103.00020. The score is our own, since torchmetrics' is broken with transformers 5. Images
are resized by Pillow, as in CLIP's own code and in the evaluations of papers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmark.evaluators import pickles
from benchmark.evaluators.batches import check, in_batches, in_texts, place
from benchmark.metrics.evaluators import Array, Evaluator
from benchmark.metrics.validity import blank


@final
class ClipEvaluator(Evaluator):
    """Image and text towers of one CLIP. Raw outputs: `clip` `(n, dim)`, unit length, float32; `blank`."""

    def __init__(self, name: str, digest: str, folder: Path) -> None:
        self.id, self.hash = name, digest
        self.classes: Mapping[str, tuple[str, ...]] = {}
        self.device = place()
        pickles.check(name, folder)
        model: Any = CLIPModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        self.model: Any = model.eval().to(self.device)
        self.processor: Any = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
        self.tokenizer: Any = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        self.length: int = self.model.config.text_config.max_position_embeddings

    def raw(self, images: NDArray[np.uint8]) -> dict[str, Array]:
        """Embeddings of uint8 images `(n, h, w, 3)` of any size."""
        check(self.id, images)
        return {"clip": in_batches(self._images, images), "blank": blank(images)}

    def texts(self, prompts: Sequence[str]) -> Array:
        """Unit text embeddings `(n, dim)`, float32; texts longer than the tower reads are cut."""
        return in_texts(self._texts, prompts)

    @torch.no_grad()
    def _images(self, images: Array) -> Array:
        pixels = self.processor([Image.fromarray(i) for i in images], return_tensors="pt")["pixel_values"]
        return _unit(self.model.get_image_features(pixel_values=pixels.to(self.device)))

    @torch.no_grad()
    def _texts(self, texts: list[str]) -> Array:
        tokens = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        ).to(self.device)
        return _unit(self.model.get_text_features(**tokens))


def _unit(output: Any) -> Array:
    """The pooled and projected embedding; transformers 5 wraps it."""
    embedding = output if isinstance(output, torch.Tensor) else output.pooler_output
    return np.asarray(F.normalize(embedding.float(), dim=-1).cpu().numpy())
