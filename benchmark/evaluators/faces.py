"""Faces: MTCNN detects, then facenet-pytorch's InceptionResnetV1 (VGGFace2) or dlib's ResNet embeds the first face.

MTCNN: Zhang et al. 2016, arXiv:1604.02878, through facenet-pytorch, with its weights. The first face is the one with
the highest detection score. Images go through one by one: MTCNN's boxes move in the last digits with the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmark.errors import Damaged
from benchmark.evaluators import pickles
from benchmark.evaluators.batches import check, place
from benchmark.image_folders import ImageFile, pixels
from benchmark.metrics import identity
from benchmark.metrics.evaluators import Array, Evaluator
from benchmark.metrics.validity import blank

Embed = Callable[[NDArray[np.uint8], NDArray[np.float32]], NDArray[np.float32]]
"""An image `(h, w, 3)` and the box of a face (x0, y0, x1, y1) to its embedding `(dim,)`."""
FACE = 160
"""Pixels a side of the crop that facenet's network was trained on."""


class Face(NamedTuple):
    """The first face of an image."""

    number: int
    score: float
    box: NDArray[np.float32]
    embedding: NDArray[np.float32]


@final
class FaceEvaluator(Evaluator):
    """Raw outputs: those of `benchmark.metrics.identity`; `blank`.

    A folder `gallery/<name>/` of images beside the embedding's weights makes the gallery; without one, protocols take
    the unedited model's images.
    """

    def __init__(self, name: str, digest: str, detector: Path, weights: Path) -> None:
        from facenet_pytorch import MTCNN

        self.id, self.hash = name, digest
        self.classes: Mapping[str, tuple[str, ...]] = {}
        self.detector: Any = MTCNN(keep_all=True, select_largest=False, device=torch.device(place()))
        self.embed, self.dim = _dlib(weights) if name == "identity-dlib" else _facenet(weights)
        folder = weights / "gallery"
        self.gallery = self._gallery(folder) if folder.is_dir() else None

    def raw(self, images: NDArray[np.uint8]) -> dict[str, Array]:
        """The first face of each of uint8 images `(n, h, w, 3)` of any size."""
        check(self.id, images)
        n = len(images)
        raw: dict[str, Array] = {
            "faces": np.zeros(n, np.int32),
            "face_score": np.zeros(n, np.float32),
            "face_box": np.zeros((n, 4), np.float32),
            "face": np.zeros((n, self.dim), np.float32),
            "blank": blank(images),
        }
        for i, image in enumerate(images):
            if (face := self._first(image)) is not None:
                raw["faces"][i], raw["face_score"][i] = face.number, face.score
                raw["face_box"][i], raw["face"][i] = face.box, face.embedding
        return raw

    def _first(self, image: NDArray[np.uint8]) -> Face | None:
        picture = np.ascontiguousarray(image)
        boxes, scores = self.detector.detect(picture)
        if boxes is None:
            return None
        best = int(np.argmax(np.asarray(scores, np.float64)))
        box = np.asarray(boxes[best], np.float32)
        if not _has_area(box, picture):
            return None
        return Face(len(boxes), float(scores[best]), box, self.embed(picture, box))

    def _gallery(self, folder: Path) -> identity.Gallery:
        files = [(p, person.name) for person in sorted(folder.iterdir()) for p in sorted(person.glob("*.*"))]
        rows = [self.raw(pixels(ImageFile(p, p.name))[None]) for p, _ in files]
        raw = {k: np.concatenate([r[k] for r in rows]) for k in rows[0]} if rows else self.raw(_NO_IMAGES)
        return identity.gallery(raw, [name for _, name in files])


_NO_IMAGES = np.zeros((0, FACE, FACE, 3), np.uint8)


def _has_area(box: NDArray[np.float32], image: NDArray[np.uint8]) -> bool:
    """Whether the part of a box inside the image has any pixels: MTCNN's boxes may hang over the edge."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = box
    return int(min(x1, width)) > int(max(x0, 0)) and int(min(y1, height)) > int(max(y0, 0))


# --- embeddings -----------------------------------------------------------------------------------------------
def _facenet(folder: Path) -> tuple[Embed, int]:
    """InceptionResnetV1 with VGGFace2's weights: unit embeddings of 512 numbers. Schroff et al. 2015."""
    from facenet_pytorch import InceptionResnetV1, extract_face, fixed_image_standardization

    network = InceptionResnetV1(pretrained=None).eval()
    path = folder / "20180402-114759-vggface2.pt"
    found = network.load_state_dict(pickles.tensors(path), strict=False)
    extra = [k for k in found.unexpected_keys if not k.startswith("logits.")]  # the classifier it was trained with
    if found.missing_keys or extra:
        raise Damaged(f"{path} is not InceptionResnetV1: missing {found.missing_keys[:2]}, not known {extra[:2]}")
    network.to(place())

    @torch.no_grad()
    def embed(image: NDArray[np.uint8], box: NDArray[np.float32]) -> NDArray[np.float32]:
        face = fixed_image_standardization(extract_face(Image.fromarray(image), box, image_size=FACE))
        return np.asarray(network(face[None].to(place()))[0].cpu().numpy(), np.float32)

    return embed, 512


def _dlib(folder: Path) -> tuple[Embed, int]:
    """dlib's ResNet: embeddings of 128 numbers, not of unit length, aligned by its five-point predictor. King 2017.

    The predictor was trained on square boxes, so MTCNN's is made square about its centre.
    """
    import importlib

    dlib: Any = importlib.import_module("dlib")
    align = dlib.shape_predictor(str(folder / "shape_predictor_5_face_landmarks.dat"))
    network = dlib.face_recognition_model_v1(str(folder / "dlib_face_recognition_resnet_model_v1.dat"))

    def embed(image: NDArray[np.uint8], box: NDArray[np.float32]) -> NDArray[np.float32]:
        x0, y0, x1, y1 = (float(v) for v in box)
        half, x, y = max(x1 - x0, y1 - y0) / 2, (x0 + x1) / 2, (y0 + y1) / 2
        square = dlib.rectangle(int(x - half), int(y - half), int(x + half), int(y + half))
        return np.array(network.compute_face_descriptor(image, align(image, square)), np.float32)

    return embed, 128
