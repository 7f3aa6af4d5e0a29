"""An embedded model's quality report: judges on held-out renders, generated images by group, how far judges agree."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmark import atomic
from benchmark.backbones.base import Backbone
from benchmark.backbones.load import load
from benchmark.keys import TEXT_BATCH, image_seed
from benchmark.metrics import distribution
from benchmark.models import index
from benchmark.neighbours import cohesion, nearest
from benchmark.sample import Sampler, encode, sample, to_uint8
from benchmark.testbed import autoencoder, judges
from benchmark.testbed.artwork import concepts, styles
from benchmark.testbed.data import Renders, class_names, to_unit
from benchmark.testbed.evaluator import Classifier, TestbedClip, TestbedEvaluator
from benchmark.testbed.recipe import Recipe
from benchmark.testbed.render import drawn_concepts

SAMPLER = Sampler(steps=25, guidance=4.0, size=64)
"""Of the U-Net model; the flow model's is in the recipe (`sampler_of`)."""
BATCH = 20
PROMPT = "a photo of the {}"


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
    prompts += [(f"a photo of the {n}, in the {s} style", n, s, False, 3) for s in styles() for n in drawn]
    return [
        Ask(p, image_seed("quality report", 1, p, i), concept, style, synonym)
        for p, concept, style, synonym, count in prompts
        for i in range(count)
    ]


def sampler_of(weights: Path, recipe: Recipe) -> Sampler:
    """How this model is sampled where its quality is measured."""
    if pipeline_of(weights) == "FluxPipeline":
        return Sampler(**recipe["flow"]["sampler"], size=64)
    return SAMPLER


def pipeline_of(weights: Path) -> str:
    """The class of a model's pipeline."""
    return str(index(weights)["_class_name"])


def generate(model: str, wanted: Sequence[Ask], sampler: Sampler = SAMPLER) -> NDArray[np.uint8]:
    """Images `(n, 64, 64, 3)` of the asks, in order."""
    backbone = load(model, size=sampler.size)
    return np.concatenate([images for _, images in sample(backbone, wanted, sampler, BATCH)])


@torch.no_grad()
def judged(judges_in: Path, images: NDArray[np.uint8]) -> dict[str, Any]:
    """Class indices by evaluators A and B (object and style heads), and by the in-domain CLIP (objects)."""
    unit = [to_unit(images[i : i + 100]) for i in range(0, len(images), 100)]
    found: dict[str, Any] = {}
    for letter, folder in (("a", "evaluator"), ("b", "evaluator_b")):
        outputs = [Classifier.load(judges_in / folder)(x) for x in unit]
        for head in ("object", "style"):
            found[f"{letter}/{head}"] = torch.cat([o[head] for o in outputs]).argmax(1).numpy()
        found[f"{letter}/features"] = torch.cat([o["features"] for o in outputs]).numpy()
    found["clip/object"] = clip_classes(judges_in, unit).numpy()
    return found


def clip_classes(judges_in: Path, images: Iterable[Tensor]) -> Tensor:
    """Zero-shot class of each image by the in-domain CLIP, among all drawn concepts."""
    from benchmark.testbed.tokens import load_tokenizer

    clip, tokenizer = TestbedClip.load(judges_in / "clip"), load_tokenizer(judges_in / "tokenizer")
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
        "confused": confused(wanted, [objects[k] for k in found["a/object"]], name),
        "concept": by(name, [a.concept for a in wanted]),
        "synonyms": by(synonym, [a.prompt for a in wanted]),
    }


def confused(wanted: Sequence[Ask], found: Sequence[str], mask: NDArray[np.bool_], most: int = 12) -> dict[str, int]:
    """The commonest mistakes on the masked images: `"axe → knife": 3`."""
    pairs = Counter(
        f"{a.concept} → {f}" for a, f, used in zip(wanted, found, mask, strict=True) if used and a.concept != f
    )
    return dict(sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:most])


def spread(wanted: Sequence[Ask], images: NDArray[np.uint8], features: NDArray[np.float32]) -> dict[str, float]:
    """How far images of one prompt lie apart: mean absolute difference of pixels (of 255), and distance of A's features
    (1 − cosine), over all pairs of seeds; beside it the feature distance of images of different concepts."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    rows = [i for i, a in enumerate(wanted) if not a.synonym and not a.style]
    pairs = [(i, j) for i in rows for j in rows if i < j and wanted[i].prompt == wanted[j].prompt]
    levels = [float(np.abs(images[i].astype(int) - images[j]).mean()) for i, j in pairs]
    other = [
        (i, j) for i, j in zip(rows, rows[len(rows) // 2 :], strict=False) if wanted[i].concept != wanted[j].concept
    ]
    return {
        "pixels": round(float(np.mean(levels)), 2),
        "pixels_least": round(float(np.min(levels)), 2),
        "features": round(float(np.mean([1 - unit[i] @ unit[j] for i, j in pairs])), 4),
        "features_other_concepts": round(float(np.mean([1 - unit[i] @ unit[j] for i, j in other])), 4),
    }


def distances(judges_in: Path, wanted: Sequence[Ask], features: NDArray[np.float32], test: Renders) -> dict[str, Any]:
    """testbed-fid of images asked for by name against the shipped reference, and of as many test renders for scale."""
    rows = [i for i, a in enumerate(wanted) if not a.synonym and not a.style]
    judge = TestbedEvaluator(judges_in)
    names = [c.name for c in drawn_concepts()]
    reference = judge.reference(names)
    real = judge.raw(np.array(test.images[: len(rows)]))["features"]
    return {
        "images": len(rows),
        "reference": len(reference),
        "generated": fid_of(features[rows], reference),
        "renders": fid_of(real, reference),
    }


def fid_of(features: NDArray[np.float32], reference: NDArray[np.float64]) -> float | str:
    """The distance, or why there is none."""
    found = distribution.fid(features.astype(np.float64), reference)
    return found.reason if found.value is None else round(found.value, 3)


def neighbours(judges_in: Path, wanted: Sequence[Ask], images: NDArray[np.uint8], top: int = 5) -> dict[str, Any]:
    """Concept Neighbourhood of the fine-grained concepts on these images, by the in-domain CLIP, among all concepts."""
    rows = [i for i, a in enumerate(wanted) if not a.synonym and not a.style]
    embedded = TestbedEvaluator(judges_in).raw(images[rows])["clip"]
    names = np.array([wanted[i].concept for i in rows])
    targets = [c.name for c in concepts() if c.group in ("bird", "pet", "flower")]
    found = nearest({n: embedded[names == n] for n in dict.fromkeys(names.tolist())}, targets, top)
    listed = {name: [neighbour.name for neighbour in near] for name, near in found.items()}
    together = cohesion(listed, {c.name: (c.group,) for c in concepts()})
    return {"top": top, "targets": together.targets, "whole": together.whole, "inside": together.inside, "of": listed}


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


def measure(
    weights: Path, test: Renders, recipe: Recipe, per_concept: int = 8, judges: Path | None = None
) -> dict[str, Any]:
    """Measure the model in `weights` and write its `report.json`; what stands out is printed.

    `judges` is the folder of the judges, if it is not the model's own; how good they are is then told there.
    """
    judges_in, sampler, wanted = judges or weights, sampler_of(weights, recipe), asks(per_concept)
    images = generate(str(weights), wanted, sampler)
    found = judged(judges_in, images)
    generated = shares(wanted, found)
    generated["fid"] = distances(judges_in, wanted, found["a/features"], test)
    generated["seeds"] = spread(wanted, images, found["a/features"])
    from benchmark.testbed.damage import damage  # which asks for images as this module does

    settled = {"model": model_name(weights, recipe), "guidance": sampler.guidance, "steps": sampler.steps}
    report: dict[str, Any] = {**settled, "generated": generated}
    if pipeline_of(weights) == "FluxPipeline":
        report["readers"] = readers(weights, judges_in, sampler)
    if judges is None:
        report["renders"] = on_renders(weights, test)
    report["damage"] = damage(weights, judges_in, sampler)
    report["neighbours"] = neighbours(judges_in, wanted, images)
    atomic.write(weights / "report.json", json.dumps(report, indent=1) + "\n")
    shown = {k: v for k, v in generated.items() if k not in ("concept", "synonyms")}
    near = {k: v for k, v in report["neighbours"].items() if k != "of"}
    print(json.dumps({**report, "generated": shown, "neighbours": near}, indent=1), flush=True)
    return report


def model_name(weights: Path, recipe: Recipe) -> str:
    """The version of the model in `weights`."""
    return str(recipe["flow"]["name"] if pipeline_of(weights) == "FluxPipeline" else recipe["name"])


def readers(
    weights: Path, judges_in: Path, sampler: Sampler, asked: Sequence[str] | None = None, images: int = 2
) -> dict[str, float]:
    """Which of the two texts a FLUX reads: CLIP's vector of one concept beside T5's states of another.

    Shares of images in which evaluator A finds the concept that T5 named, and the one that CLIP named. Each concept
    `asked` for (by default each that is drawn) is paired with the one half a list away, mostly of another group.
    """
    backbone, judge = load(str(weights), size=sampler.size), Classifier.load(judges_in / "evaluator")
    names, half = class_names("object"), len(class_names("object")) // 2
    other = dict(zip(names, names[half:] + names[:half], strict=True))
    pairs = [(name, other[name]) for name in asked or names]
    wanted = [(t, c, image_seed("readers", 1, f"{t}|{c}", k)) for t, c in pairs for k in range(images)]
    objects: list[int] = []
    for start in range(0, len(wanted), TEXT_BATCH):
        objects += _mixed(backbone, judge, wanted[start : start + TEXT_BATCH], sampler)
    found = [names[k] for k in objects]
    return {
        "t5": round(float(np.mean([f == t for f, (t, _, _) in zip(found, wanted, strict=True)])), 4),
        "clip": round(float(np.mean([f == c for f, (_, c, _) in zip(found, wanted, strict=True)])), 4),
    }


@torch.no_grad()
def _mixed(backbone: Backbone, judge: Classifier, part: Sequence[tuple[str, str, int]], sampler: Sampler) -> list[int]:
    states, vectors = (encode(backbone, [PROMPT.format(row[i]) for row in part]) for i in (0, 1))
    empty = encode(backbone, [""]).expand(len(part))
    text, noise = replace(states, pooled=vectors.pooled), backbone.noise([seed for _, _, seed in part])
    latents = backbone.trajectory(noise, text, empty, steps=sampler.steps, guidance=sampler.guidance)
    return [int(k) for k in judge(to_unit(to_uint8(backbone.decode(latents))))["object"].argmax(1)]
