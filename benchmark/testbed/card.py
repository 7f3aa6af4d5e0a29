"""An embedded model's card: what it is made of, how good it is, and the hashes by which it is frozen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark import atomic
from benchmark.testbed.artwork import concepts, packages
from benchmark.testbed.recipe import Recipe
from benchmark.testbed.report import model_name, pipeline_of

LICENCES = {
    "@iconify-json/twemoji": "CC-BY-4.0, Twitter and contributors",
    "@iconify-json/noto": "Apache-2.0, Google",
    "@iconify-json/fluent-emoji-flat": "MIT, Microsoft",
    "@iconify-json/fluent-emoji": "MIT, Microsoft",
    "@iconify-json/fluent-emoji-high-contrast": "MIT, Microsoft",
    "@dicebear/open-peeps": "design CC0-1.0, Pablo Stanley; code MIT",
    "@dicebear/core": "MIT",
}


def hashes(weights: Path) -> dict[str, str]:
    """SHA-256 of every weight file, by its path within the model."""
    found = sorted(weights.rglob("*.safetensors"))
    return {p.relative_to(weights).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def judged(made: Mapping[str, Any]) -> str:
    """Generated images by group, asked for by name and by synonym."""
    rows = [(g, f"{100 * v:.1f}", _share(made["synonym"].get(g))) for g, v in made["group"].items()]
    return table(["group", "asked by name", "asked by synonym"], rows)


def hurt(found: Mapping[str, Any]) -> str:
    """What a crude edit of one bird leaves of it, of the other birds, and of far concepts."""
    rows = [
        (bird, *(f"{100 * b[p]['before']:.0f} → {100 * b[p]['after']:.0f}" for p in ("itself", "near", "far")))
        for bird, b in found["birds"].items()
    ]
    mean = [f"{100 * found[p]['before']:.1f} → {100 * found[p]['after']:.1f}" for p in ("itself", "near", "far")]
    return table(["erased", "itself", "other birds", "flowers and objects"], [*rows, ("mean", *mean)])


def together(found: Mapping[str, Any]) -> str:
    """Whether neighbours of fine-grained concepts are of their own group."""
    whole, inside = (f"{100 * found[key]:.0f} %" for key in ("whole", "inside"))
    return f"""Concept Neighbourhood (mean embedding of the in-domain CLIP on the images above, cosine, among all drawn
concepts): for {whole} of the {found["targets"]} birds, pets and flowers all {found["top"]} nearest are of the same
group; {inside} of the neighbours are."""


def on_renders(real: Mapping[str, Any]) -> str:
    """The evaluators on held-out renders."""
    heads = ("object", "style", "background")
    return table(["judge", *heads], [(k, *(f"{100 * v[h]:.2f}" for h in heads)) for k, v in real["evaluators"].items()])


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _fields(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in values.items())


def listed(values: Mapping[str, float]) -> str:
    """`airplane 97.5, bird 91.0`."""
    return ", ".join(f"{name} {100 * value:.1f}" for name, value in values.items())


KINDS = {
    "StableDiffusionPipeline": ("Stable Diffusion", "DDIM"),
    "FluxPipeline": ("FLUX.1", "Euler"),
}
"""Pipelines, what they are the pipeline of, and what a step is called."""


def own_judges(real: Mapping[str, Any]) -> str:
    """How good the judges are that lie beside the model, and its autoencoder."""
    return f"""On test renders that no stage has seen (top-1, %):

{on_renders(real)}

Evaluator A by group: {listed(real["evaluator_a_by_group"])}.
In-domain CLIP, zero-shot over all concepts: {100 * real["clip_zero_shot"]:.1f}.
Autoencoder: PSNR {real["psnr_db"]:.1f} dB."""


def two_texts(found: Mapping[str, float]) -> str:
    """Which of its two texts a FLUX reads."""
    return f"""## Which text it reads

T5's states of one concept beside CLIP's vector of another: {100 * found["t5"]:.1f} % of images show what T5 named,
{100 * found["clip"]:.1f} % what CLIP named. In training CLIP's vector was withheld from half of the captions.

"""


BORROWED = """They are the U-Net model's, as are the autoencoder and the CLIP text encoder: see
[its card](../weights/MODEL_CARD.md)."""


def card(recipe: Recipe, report: Mapping[str, Any], weights: Path, notes: str) -> str:
    """MODEL_CARD.md, from the measured report."""
    made = report["generated"]
    kind, step = KINDS[pipeline_of(weights)]
    weakest = dict(sorted(made["concept"].items(), key=lambda item: item[1])[:10])
    splits = {s: ", ".join(c.name for c in concepts() if c.split == s) for s in ("validation", "test")}
    artwork = [(name, version, LICENCES.get(name, "see its package")) for name, version in packages().items()]
    return f"""# Model card: {model_name(weights, recipe)}

A small text-to-image model of {kind}'s architecture, trained from scratch on freely licensed artwork so that
erasure methods, suites and metrics run on any machine. **Its numbers say how a method behaves on this model; they are
not comparable with numbers on Stable Diffusion or FLUX.** It knows icons and invented
faces at 64×64 pixels, nothing else.

{notes}
## Quality, as measured

Guidance {report["guidance"]}, {report["steps"]} {step} steps, {made["images"]} generated images, judged by evaluator A
among all {len(made["concept"])} drawn concepts (top-1, %).

{judged(made)}

Weakest concepts: {listed(weakest)}.

Style asked for and found (style head of A): {listed(made["style"])};
the object in those images: {100 * made["object_in_style"]:.1f}.

Agreement on generated images: A and B {100 * made["agree_a_b"]:.1f} %, A and the in-domain CLIP
{100 * made["agree_a_clip"]:.1f} %.

Commonest mistakes on images asked for by name: {", ".join(f"{k} ({n})" for k, n in made["confused"].items())}.

Distance of generated images from held-out renders: testbed-fid {made["fid"]["generated"]} with {made["fid"]["images"]}
images against {made["fid"]["reference"]} renders; as many test renders score {made["fid"]["renders"]}.

Images of one prompt under different seeds differ by {made["seeds"]["pixels"]} levels of 255 in the mean (at least
{made["seeds"]["pixels_least"]}); in A's features by {made["seeds"]["features"]} (1 − cosine), where images of different
concepts differ by {made["seeds"]["features_other_concepts"]}.

{two_texts(report["readers"]) if "readers" in report else ""}## What a crude edit does

One bird erased without care ({report["damage"]["method"]} with {_fields(report["damage"]["fields"])}): images still
recognised, before → after (%), {report["damage"]["images"]} a concept.

{hurt(report["damage"])}

## Neighbours

{together(report["neighbours"])}

## Judges

{own_judges(report["renders"]) if "renders" in report else BORROWED}

## Use of concepts

Presets of methods are chosen on *validation* concepts only; suites draw what they erase from the *test* ones.
The prompts and seeds of that choice are those of `suites/embedded/presets.yaml`; every other suite has seeds of
its own. No image that a preset was chosen on stands on another board, but kept concepts may be of either split.

- validation: {splits["validation"]}
- test: {splits["test"]}

## Artwork

{table(["package", "version", "licence"], artwork)}

Judges are trained on renders of this artwork only, never on generated images. Train, validation and test renders come
from disjoint ranges of render seeds (position, size, flip, background shade); the drawings themselves are shared.

## Weights (float16 safetensors, SHA-256)

{table(["file", "hash"], list(hashes(weights).items()))}
"""


def write(weights: Path, recipe: Recipe) -> None:
    """Write the card of the model in `weights` from its `report.json`; `HISTORY.md`, where there is one, goes in."""
    history = weights / "HISTORY.md"
    notes = history.read_text(encoding="utf-8") if history.exists() else ""
    report = json.loads((weights / "report.json").read_text(encoding="utf-8"))
    atomic.write(weights / "MODEL_CARD.md", card(recipe, report, weights, notes))
