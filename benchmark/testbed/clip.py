"""The in-domain CLIP: text and image towers trained together on renders; the text tower also feeds the denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmark.testbed.artwork import Concept
from benchmark.testbed.captions import caption
from benchmark.testbed.data import Renders, class_names, to_unit
from benchmark.testbed.evaluator import TestbedClip
from benchmark.testbed.recipe import Recipe, Stage, native_bfloat16, rate_at, step_generator, work_device
from benchmark.testbed.render import Record, drawn_concepts
from benchmark.testbed.tokens import load_tokenizer

HEADS = ("object", "style", "background")


def build_text(recipe: Recipe, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained text tower of the recipe's size."""
    size = recipe["text"]
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=size["hidden"],
        intermediate_size=4 * size["hidden"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=size["projection"],
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


@dataclass(frozen=True)
class Meaning:
    """What a caption says of an image: index of the concept, style, background, or −1 where it is silent."""

    object: int
    style: int
    background: int


def meaning(text: str, record: Record) -> Meaning:
    """Read a caption of `record` back: only what it states can be asked of an image."""
    concept = _CONCEPTS[record.concept]
    named = any(_holds(text, name) for name in (concept.name, *concept.synonyms))
    styled = f"{record.style} style" in text
    grounded = f"{record.background} background" in text
    return Meaning(
        _INDEX["object"][record.concept] if named else -1,
        _INDEX["style"].get(record.style, -1) if styled else -1,
        _INDEX["background"][record.background] if grounded else -1,
    )


def _holds(text: str, name: str) -> bool:
    return f" {name} " in f" {text.replace(',', ' ')} "


_CONCEPTS: dict[str, Concept] = {c.name: c for c in drawn_concepts()}
_INDEX = {head: {name: i for i, name in enumerate(class_names(head))} for head in HEADS}


def agreement(meanings: Sequence[Meaning], labels: dict[str, Tensor], heads: Sequence[str] = HEADS) -> Tensor:
    """Which captions hold, in what they say of `heads`, for which images: `(images, captions)` floats of 0 and 1."""
    fits = torch.ones(len(next(iter(labels.values()))), len(meanings), dtype=torch.bool)
    for head in heads:
        said = torch.tensor([getattr(m, head) for m in meanings])
        fits &= (said[None, :] < 0) | (said[None, :] == labels[head][:, None])
    return fits.float()


VEHICLES = ("airplane", "automobile", "ship", "truck")


def kin_of(concept: Concept) -> str:
    """The family of a concept: what it is near to. Objects and people are near to nothing but themselves."""
    if concept.group in ("object", "identity"):
        return concept.name
    if concept.group == "cifar":
        return "vehicle" if concept.name in VEHICLES else "animal"
    return concept.group


def kinship(meanings: Sequence[Meaning], labels: dict[str, Tensor]) -> Tensor:
    """Which captions name a relative of what which image shows, and are right in style.

    `(images, captions)` floats of 0 and 1. Were a relative in another style to fit, styles would lose their words.
    """
    kin = [kin_of(c) for c in drawn_concepts()]
    numbers = torch.tensor([sorted(set(kin)).index(k) for k in kin])
    said = torch.tensor([m.object for m in meanings])
    related = numbers[labels["object"]][:, None] == numbers[said.clamp(min=0)][None, :]
    return (related & (said >= 0)[None, :]).float() * agreement(meanings, labels, ("style",))


def contrastive(logits: Tensor, fits: Tensor) -> Tensor:
    """Symmetric cross-entropy with all fitting pairs as targets (Radford et al. 2021, figure 3, with soft targets)."""
    rows = -(fits / fits.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1)
    columns = -(fits / fits.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0)
    return (rows.mean() + columns.mean()) / 2


class Aids(nn.Module):
    """Linear heads on both towers' embeddings: they speed up training and are thrown away."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.image = nn.ModuleDict({h: nn.Linear(dim, len(class_names(h))) for h in HEADS})
        self.text = nn.ModuleDict({h: nn.Linear(dim, len(class_names(h))) for h in HEADS})


class Trained(nn.Module):
    """Everything that the optimizer sees."""

    def __init__(self, clip: TestbedClip, aids: Aids) -> None:
        super().__init__()
        self.clip, self.aids = clip, aids


def _aid(heads: nn.ModuleDict, embedding: Tensor, labels: dict[str, Tensor]) -> Tensor:
    return sum(
        (
            F.cross_entropy(heads[h](embedding), labels[h], ignore_index=-1)
            for h in HEADS
            if bool((labels[h] >= 0).any())
        ),
        start=torch.zeros(()),
    )


def train(recipe: Recipe, data: Renders, model: Path, checkpoints: Path, out: Path) -> None:
    """Train both towers; leave them in `out` (image tower, projections) and `out/text_encoder`.

    Two phases: captions against images; then `kin` steps in which captions that name a relative (another bird for a
    bird) fit a little too, so that concepts of a kind lie together, as they do for encoders that have read much.
    """
    plan, size, device = recipe["clip"], recipe["text"]["projection"], work_device()
    tokenizer = load_tokenizer(model / "tokenizer")
    torch.manual_seed(recipe["seed"] + 2)
    trained = (
        Trained(TestbedClip(build_text(recipe, tokenizer), {"image": {"dim": size}}), Aids(size)).train().to(device)
    )
    optimizer = torch.optim.AdamW(trained.parameters(), plan["rate"], betas=(0.9, 0.98), weight_decay=0.02)
    labels = {h: data.labels(h) for h in HEADS}
    half = native_bfloat16(device)

    def loss_at(step: int, phase: str = "clip", relatives: float = 0.0) -> tuple[Tensor, dict[str, float]]:
        generator = step_generator(recipe["seed"], phase, step)
        rows = torch.randint(len(data.images), (plan["batch"],), generator=generator).sort().values
        rng = np.random.default_rng(generator.initial_seed())
        records = [data.records[i] for i in rows.tolist()]
        texts = [caption(r, rng) for r in records]
        said = [meaning(t, r) for t, r in zip(texts, records, strict=True)]
        ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            output = trained.clip(to_unit(data.images[rows.numpy()]).to(device), ids.to(device))
        known = {h: labels[h][rows] for h in HEADS}
        fits = agreement(said, known).to(device)
        batch = {h: label.to(device) for h, label in known.items()}
        stated = {h: torch.tensor([getattr(m, h) for m in said], device=device) for h in HEADS}
        scale = trained.clip.logit_scale.exp().clamp(max=100)
        image, text = output["image"].float(), output["text"].float()
        wanted = fits if not relatives else fits.maximum(relatives * kinship(said, known).to(device))
        pair = contrastive(scale * image @ text.T, wanted)
        aid = _aid(trained.aids.image, 8 * image, batch) + _aid(trained.aids.text, 8 * text, stated)
        right = fits[torch.arange(len(rows)), (image @ text.T).argmax(1)].mean()
        return pair + 0.3 * aid, {"pair": float(pair.detach()), "aid": float(aid.detach()), "right": float(right)}

    stage = Stage("clip", checkpoints, trained, optimizer)
    stage.run(plan["steps"], loss_at, lambda s: rate_at(s, plan["steps"], plan["rate"], 150, 0.5))
    kin = recipe["kin"]
    second = torch.optim.AdamW(trained.parameters(), kin["rate"], betas=(0.9, 0.98), weight_decay=0.02)
    stage = Stage("kin", checkpoints, trained, second)
    stage.run(
        kin["steps"],
        lambda step: loss_at(step, "kin", kin["share"]),
        lambda s: rate_at(s, kin["steps"], kin["rate"], 50, 0.5),
    )
    trained.clip.cpu().eval().save(out, text=True)


@torch.no_grad()
def zero_shot(clip: TestbedClip, tokenizer: CLIPTokenizer, data: Renders, count: int = 2000) -> float:
    """Share of renders whose most similar prompt "a photo of the {name}" names their concept."""
    names = class_names("object")
    prompts = [f"a photo of the {name}" for name in names]
    ids = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    text = clip.text_embeds(ids)
    image = torch.cat([clip.image_embeds(to_unit(data.images[i : i + 100])) for i in range(0, count, 100)])
    return float(((image @ text.T).argmax(1) == data.labels("object")[:count]).float().mean())
