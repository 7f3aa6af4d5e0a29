"""The embedded model's quality report: judges on held-out renders, generated images by group, how far judges agree."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmark.backbones.load import load
from benchmark.keys import image_seed
from benchmark.sample import Sampler, sample
from benchmark.testbed import autoencoder, judges
from benchmark.testbed.artwork import concepts, styles
from benchmark.testbed.data import Renders, class_names, to_unit
from benchmark.testbed.evaluator import Classifier, TestbedClip
from benchmark.testbed.recipe import Recipe
from benchmark.testbed.render import drawn_concepts

SAMPLER = Sampler(steps=25, guidance=4.0, size=64)
BATCH = 20


@dataclass(frozen=True)
class Ask:
    """One generated image: what was asked, and what the judges should find."""

    prompt: str
    seed: int
    concept: str
    style: str = ""
    synonym: bool = False


def asks(per_concept: int) -> list[Ask]:
    """Names, synonyms and styles, each with seeds of its own."""
    prompts: list[tuple[str, str, str, bool, int]] = []
    for c in drawn_concepts():
        what = "a portrait of {}" if c.group == "identity" else "a photo of the {}"
        prompts.append((what.format(c.name), c.name, "", False, per_concept))
        prompts += [(what.format(s), c.name, "", True, max(1, per_concept // 2)) for s in c.synonyms]
    drawn = [c.name for c in drawn_concepts() if c.group != "identity"][::4]
    prompts += [(f"a photo of the {n}, in the {s} style", n, s, False, 2) for s in styles() for n in drawn]
    return [
        Ask(p, image_seed("quality report", 1, p, i), concept, style, synonym)
        for p, concept, style, synonym, count in prompts
        for i in range(count)
    ]


def generate(model: str, wanted: Sequence[Ask]) -> NDArray[np.uint8]:
    """Images `(n, 64, 64, 3)` of the asks, in order."""
    backbone = load(model)
    return np.concatenate([images for _, images in sample(backbone, wanted, SAMPLER, BATCH)])


@torch.no_grad()
def judged(weights: Path, images: NDArray[np.uint8]) -> dict[str, Any]:
    """Class indices by evaluators A and B (object and style heads), and by the in-domain CLIP (objects)."""
    unit = [to_unit(images[i : i + 100]) for i in range(0, len(images), 100)]
    found: dict[str, Any] = {}
    for letter, folder in (("a", "evaluator"), ("b", "evaluator_b")):
        outputs = [Classifier.load(weights / folder)(x) for x in unit]
        for head in ("object", "style"):
            found[f"{letter}/{head}"] = torch.cat([o[head] for o in outputs]).argmax(1).numpy()
    found["clip/object"] = clip_classes(weights, unit).numpy()
    return found


def clip_classes(weights: Path, images: Iterable[Tensor]) -> Tensor:
    """Zero-shot class of each image by the in-domain CLIP, among all drawn concepts."""
    from benchmark.testbed.tokens import load_tokenizer

    clip, tokenizer = TestbedClip.load(weights / "clip"), load_tokenizer(weights / "tokenizer")
    prompts = [f"a photo of the {name}" for name in class_names("object")]
    ids = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    text = clip.text_embeds(ids)
    return torch.cat([(clip.image_embeds(x) @ text.T).argmax(1) for x in images])


def shares(wanted: Sequence[Ask], found: dict[str, Any]) -> dict[str, Any]:
    """Accuracies by concept, group, synonym and style; agreement between the judges."""
    objects, style_names = class_names("object"), class_names("style")
    group = {c.name: c.group for c in concepts()}
    right = np.array([objects[k] == a.concept for k, a in zip(found["a/object"], wanted, strict=True)])
    name = np.array([not a.synonym and not a.style for a in wanted])
    synonym = np.array([a.synonym for a in wanted])
    styled = np.array([bool(a.style) for a in wanted])
    in_style = np.array([style_names[k] == a.style for k, a in zip(found["a/style"], wanted, strict=True)])

    def by(mask: NDArray[np.bool_], label: Sequence[str]) -> dict[str, float]:
        labels = np.array(label)
        return {
            key: round(float(right[mask & (labels == key)].mean()), 4) for key in dict.fromkeys(labels[mask].tolist())
        }

    return {
        "images": len(wanted),
        "group": by(name, [group[a.concept] for a in wanted]),
        "synonym": by(synonym, [group[a.concept] for a in wanted]),
        "style": {s: round(float(in_style[[a.style == s for a in wanted]].mean()), 4) for s in style_names},
        "object_in_style": round(float(right[styled].mean()), 4),
        "agree_a_b": round(float((found["a/object"] == found["b/object"]).mean()), 4),
        "agree_a_clip": round(float((found["a/object"] == found["clip/object"]).mean()), 4),
        "concept": by(name, [a.concept for a in wanted]),
        "synonyms": by(synonym, [a.prompt for a in wanted]),
    }


def on_renders(weights: Path, test: Renders) -> dict[str, Any]:
    """The judges on renders that no stage has seen, and the autoencoder's fidelity."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(weights / "vae", local_files_only=True, torch_dtype=torch.float32).eval()
    clip = clip_classes(weights, (to_unit(test.images[i : i + 100]) for i in range(0, 2000, 100)))
    scores = {
        letter: {k: round(v, 4) for k, v in judges.accuracy(Classifier.load(weights / folder), test).items()}
        for letter, folder in (("a", "evaluator"), ("b", "evaluator_b"))
    }
    return {
        "evaluators": scores,
        "evaluator_a_by_group": by_group(Classifier.load(weights / "evaluator"), test),
        "clip_zero_shot": round(float((clip == test.labels("object")[: len(clip)]).float().mean()), 4),
        "psnr_db": round(autoencoder.psnr(vae, test), 2),
    }


@torch.no_grad()
def by_group(model: Classifier, test: Renders) -> dict[str, float]:
    """Evaluator A's top-1 by concept group."""
    guess = torch.cat(
        [model(to_unit(test.images[i : i + 200]))["object"].argmax(1) for i in range(0, len(test.images), 200)]
    )
    right = (guess == test.labels("object")).numpy()
    groups = np.array([r.group for r in test.records])
    return {g: round(float(right[groups == g].mean()), 4) for g in dict.fromkeys(groups.tolist())}


def measure(weights: Path, test: Renders, recipe: Recipe, per_concept: int = 8) -> dict[str, Any]:
    """Measure the model in `weights` and write its `report.json`; what stands out is printed."""
    wanted = asks(per_concept)
    generated = shares(wanted, judged(weights, generate(str(weights), wanted)))
    report = {"model": recipe["name"], "guidance": SAMPLER.guidance, "steps": SAMPLER.steps, "generated": generated}
    report["renders"] = on_renders(weights, test)
    (weights / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    shown = {k: v for k, v in generated.items() if k not in ("concept", "synonyms")}
    print(json.dumps({**shown, "renders": report["renders"]}, indent=1), flush=True)
    return report
