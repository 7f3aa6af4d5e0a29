"""How the flow model is best sampled: guidances and numbers of steps tried on validation concepts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmark import atomic
from benchmark.keys import image_seed
from benchmark.sample import Sampler
from benchmark.testbed.artwork import concepts
from benchmark.testbed.data import class_names
from benchmark.testbed.evaluator import TestbedEvaluator
from benchmark.testbed.report import Ask, confused, fid_of, generate, judged

GUIDANCES = (1.5, 2.0, 3.0, 4.0, 5.0)
STEPS = (8, 12, 16, 25)
IMAGES = 8


def asks() -> list[Ask]:
    """Names of the validation concepts, with seeds that no suite and no report has."""
    rows = [c for c in concepts() if c.split == "validation" and c.group != "style"]
    prompts = [("a portrait of {}" if c.group == "identity" else "a photo of the {}").format(c.name) for c in rows]
    return [
        Ask(prompt, image_seed("tune", 1, prompt, i), c.name)
        for c, prompt in zip(rows, prompts, strict=True)
        for i in range(IMAGES)
    ]


def measure(weights: Path, judges: Path, out: Path) -> list[dict[str, Any]]:
    """Accuracy (evaluator A) and testbed-fid against the reference, for every guidance and number of steps."""
    reference = TestbedEvaluator(judges).reference([c.name for c in concepts() if c.group != "style"])
    rows = []
    for guidance in GUIDANCES:
        for steps in STEPS:
            rows.append(_one(weights, judges, reference, Sampler(steps=steps, guidance=guidance, size=64)))
            print(json.dumps(rows[-1]), flush=True)
            atomic.write(out, json.dumps(rows, indent=1) + "\n")
    return rows


def _one(weights: Path, judges: Path, reference: Any, sampler: Sampler) -> dict[str, Any]:
    wanted = asks()
    found = judged(judges, generate(str(weights), wanted, sampler))
    names = class_names("object")
    said = [names[k] for k in found["a/object"]]
    right = float(np.mean([s == a.concept for s, a in zip(said, wanted, strict=True)]))
    return {
        "guidance": sampler.guidance,
        "steps": sampler.steps,
        "images": len(wanted),
        "right": round(right, 4),
        "fid": fid_of(found["a/features"], reference),
        "confused": confused(wanted, said, np.ones(len(wanted), bool), most=4),
    }
