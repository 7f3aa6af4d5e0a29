"""Whether erasure means anything here: what a crude edit of one bird does to other birds, and to far things."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmark import edits, registry
from benchmark.backbones.base import Backbone
from benchmark.backbones.load import load
from benchmark.interface import Request
from benchmark.keys import image_seed
from benchmark.sample import Sampler, sample
from benchmark.testbed.artwork import Concept, concepts
from benchmark.testbed.data import class_names, to_unit
from benchmark.testbed.evaluator import Classifier
from benchmark.testbed.report import BATCH, Ask

BIRDS = ("duck", "owl", "turkey")  # of the validation split: nothing that a suite erases is tried here
FAR = ("flower", "object")
METHOD = "uce"
CRUDE: dict[str, Any] = {"preserve": "none"}
"""UCE as released, but for its list of concepts to keep: only the empty prompt is held."""


def damage(weights: Path, judges: Path, sampler: Sampler, images: int = 4) -> dict[str, Any]:
    """Share of images still recognised after the crude edit of each bird: itself, the other birds, far concepts.

    `kept` is the unedited model's share on the same prompts and seeds.
    """
    backbone, judge = load(str(weights), size=sampler.size), Classifier.load(judges / "evaluator")
    before = recognised(backbone, judge, sampler, images)
    found: dict[str, Any] = {"method": METHOD, "fields": CRUDE, "images": images, "birds": {}}
    for bird in BIRDS:
        with edits.apply(backbone, crude(backbone, bird)):
            after = recognised(backbone, judge, sampler, images)
        found["birds"][bird] = {place: _shares(before, after, names) for place, names in places(bird).items()}
    for place in ("itself", "near", "far"):
        rows = [b[place] for b in found["birds"].values()]
        found[place] = {k: round(float(np.mean([r[k] for r in rows])), 4) for k in ("before", "after")}
    return found


def crude(backbone: Backbone, bird: str) -> Any:
    """The edit."""
    method = registry.resolve(METHOD, passed=CRUDE).instance
    target = next(c for c in concepts() if c.name == bird)
    return edits.make(method, backbone, Request(erase=(_target(target),)))


def _target(concept: Concept) -> Any:
    from benchmark import data

    return data.load("testbed").concept(concept.name).target()


def places(bird: str) -> dict[str, list[str]]:
    """Names of the concepts that are asked for, by how near they are."""
    near = [c.name for c in concepts() if c.group == "bird" and c.name != bird]
    return {"itself": [bird], "near": near, "far": far()}


def far() -> list[str]:
    """Every third concept of the groups that hold no animal."""
    return [c.name for c in concepts() if c.group in FAR][::3]


def recognised(backbone: Backbone, judge: Classifier, sampler: Sampler, images: int) -> dict[str, float]:
    """Share of images in which evaluator A finds the bird or far concept that was asked for."""
    wanted = list(_asks(images))
    made = np.concatenate([part for _, part in sample(backbone, wanted, sampler, BATCH)])
    names = class_names("object")
    right = [names[k] == ask.concept for k, ask in zip(_classes(judge, made), wanted, strict=True)]
    labels = np.array([ask.concept for ask in wanted])
    return {name: float(np.array(right)[labels == name].mean()) for name in dict.fromkeys(labels.tolist())}


@torch.no_grad()
def _classes(judge: Classifier, images: NDArray[np.uint8]) -> list[int]:
    return [int(k) for i in range(0, len(images), 100) for k in judge(to_unit(images[i : i + 100]))["object"].argmax(1)]


def _asks(images: int) -> Iterator[Ask]:
    for name in [*(c.name for c in concepts() if c.group == "bird"), *far()]:
        prompt = f"a photo of the {name}"
        for i in range(images):
            yield Ask(prompt, image_seed("crude edit", 1, prompt, i), name)


def _shares(before: dict[str, float], after: dict[str, float], names: Sequence[str]) -> dict[str, float]:
    return {
        "before": round(float(np.mean([before[n] for n in names])), 4),
        "after": round(float(np.mean([after[n] for n in names])), 4),
    }
