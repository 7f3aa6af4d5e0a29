"""CLIP score, CLIP accuracy and features for FID of images: one pass in memory against three over files.

The peer's way, read in MACE (commit 057e7a6, `metrics/evaluate_clip_score.py`, `metrics/evaluate_clip_accuracy.py`):
every metric is a script that opens each PNG again, at batch 1, runs the text tower for every image (the accuracy
script encodes all class prompts for every image) and waits for each number; features for FID in batches of 32 over
files (clean-fid). Ours is the judge that runs score with: images as they come from the decoder, both towers' and the
classifier's outputs in one pass of full batches, every distinct prompt and every class encoded once. Both have the
same networks, loaded before, and the same images; the peer's files are written before. Numbers are compared. The
networks are the embedded model's judge, on the CPU: there is no such bench on a GPU yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmark.metrics import accuracy, evaluators, protocols
from benchmark.perf.bench import Bench, Did, NotMeasured, Target, Trial, rounded
from benchmark.perf.rig import Rig
from benchmark.testbed.evaluator import TestbedEvaluator

CLASSES = ("cat", "dog", "bird", "horse", "ship", "truck", "frog", "deer", "airplane", "automobile")
FID_BATCH = 32
PIXELS = 64


@final
class ScoreThroughput(Bench):
    """Images a second."""

    name = "score_throughput"
    title = "CLIP score, CLIP accuracy and FID features of images"
    unit = "images/s"
    peer_way = "a pass over the PNGs for each metric, batch 1, texts encoded for every image (MACE 057e7a6 metrics/)"
    targets = {"cpu": Target("≥ 2×", 2.0), "cuda": Target("≥ 20×", 20.0)}

    @contextmanager
    def ready(self, rig: Rig, folder: Path) -> Iterator[Trial]:
        if rig.kind == "cuda":
            raise NotMeasured("there is no such bench on a GPU yet: the embedded model's judge runs on the CPU")
        yield _Trial(rig, folder, images=8 if rig.small else 128)


class _Trial(Trial):
    def __init__(self, rig: Rig, folder: Path, images: int) -> None:
        judge = evaluators.load("testbed-a")
        assert isinstance(judge, TestbedEvaluator)
        self.judge, self.amount = judge, float(images)
        self.concepts = [CLASSES[i % len(CLASSES)] for i in range(images)]
        self.prompts = [f"a photo of the {concept}" for concept in self.concepts]
        self.images = _pictures(images)
        self.paths = [folder / f"{i:05d}.png" for i in range(images)]
        for path, image in zip(self.paths, self.images, strict=True):
            Image.fromarray(image).save(path)
        self.found: dict[str, tuple[float, float, NDArray[Any]]] = {}
        _ = judge.clip  # loads it

    def ours(self) -> Did:
        work = {"image_passes": 2 * len(self.images), "text_encodes": 0, "png_reads": 0}
        raw = self.judge.raw(self.images)
        score = protocols.score("testbed-clip/score", raw, self.concepts, self.prompts, self.judge).values
        work["text_encodes"] += len(set(self.prompts))
        texts = self.judge.texts([f"a photo of the {c}" for c in CLASSES])
        work["text_encodes"] += len(CLASSES)
        hits = accuracy.top1(accuracy.cosines(raw["clip"], texts), accuracy.columns(self.concepts, CLASSES))
        self.found["ours"] = float(score.mean()), float(hits.mean()), raw["features"]
        return Did(work)

    @torch.inference_mode()
    def peer(self) -> Did:
        work: Counter[str] = Counter(image_passes=0, text_encodes=0, png_reads=0)
        scores = [self._score(path, prompt, work) for path, prompt in zip(self.paths, self.prompts, strict=True)]
        hits = [self._hit(path, concept, work) for path, concept in zip(self.paths, self.concepts, strict=True)]
        features = [self._features(self.paths[i : i + FID_BATCH], work) for i in range(0, len(self.paths), FID_BATCH)]
        self.found["peer"] = float(np.mean(scores)), float(np.mean(hits)), np.concatenate(features)
        return Did(dict(work))

    def _score(self, path: Path, prompt: str, work: Counter[str]) -> float:
        image, text = self._towers([path], [prompt], work)
        return float((100 * image @ text.T).item())

    def _hit(self, path: Path, concept: str, work: Counter[str]) -> bool:
        image, texts = self._towers([path], [f"a photo of the {c}" for c in CLASSES], work)
        return CLASSES[int((image @ texts.T).argmax().item())] == concept

    def _towers(self, paths: Sequence[Path], texts: list[str], work: Counter[str]) -> tuple[Tensor, Tensor]:
        image = self.judge.clip.image_embeds(_opened(paths, work))
        ids = self.judge._tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        work["text_encodes"] += len(texts)
        return image, self.judge.clip.text_embeds(ids)

    def _features(self, paths: Sequence[Path], work: Counter[str]) -> NDArray[Any]:
        found: NDArray[Any] = self.judge.network(_opened(paths, work))["features"].numpy()
        return found

    def settings(self) -> dict[str, Any]:
        return {
            "images": len(self.images),
            "pixels": PIXELS,
            "prompts": len(set(self.prompts)),
            "classes": len(CLASSES),
            "judge": self.judge.id,
        }

    def checks(self) -> dict[str, Any]:
        (score, hits, features), (other, theirs, rows) = self.found["ours"], self.found["peer"]
        return {
            "clip_score_apart": rounded(abs(score - other)),
            "accuracy_apart": rounded(abs(hits - theirs)),
            "features_apart": rounded(float(np.abs(features - rows).max())),
        }


def _opened(paths: Sequence[Path], work: Counter[str]) -> Tensor:
    """`(n, 3, h, w)`, uint8."""
    work.update(png_reads=len(paths), image_passes=len(paths))
    return torch.from_numpy(np.stack([np.asarray(Image.open(p)) for p in paths])).permute(0, 3, 1, 2).contiguous()


def _pictures(count: int) -> NDArray[np.uint8]:
    """Smooth pictures `(count, 64, 64, 3)`, so that files are about as large as those of drawings."""
    rng = np.random.default_rng(0)
    small = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(count)]
    return np.stack([np.asarray(image.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)) for image in small])
