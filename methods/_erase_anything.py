"""EraseAnything's training: prompts and words drawn beforehand, two kinds of steps in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss

from benchmark.backbones.base import Backbone, Embedding, concatenate
from benchmark.errors import BadInput
from benchmark.interface import LowRank, Target
from methods._loop import Keeping, ends, minimise
from methods._lora import LoRA, linear_weights

if TYPE_CHECKING:
    from methods.erase_anything import EraseAnything

_TIMES = 1000  # t is drawn from the whole numbers below
_PACK = 8  # prompts encoded, and images walked, at once


class Draw(NamedTuple):
    """One step of training."""

    upper: bool
    prompt: str
    name: str
    """What the concept is called in the prompt."""
    image: int
    time: int
    """The upper step's before, in a lower one."""
    seed: int
    """Of the noise on the image."""
    start: int
    """Seed of the walks."""
    moment: int
    """At which sampler step a lower step compares attention."""
    synonym: str
    words: tuple[str, ...]
    """Irrelevant ones."""


@dataclass(frozen=True)
class Task:
    """What all steps share."""

    backbone: Backbone
    settings: EraseAnything
    lora: LoRA
    texts: Mapping[str, Embedding]
    """By prompt, one row each."""
    neutral: str
    images: Tensor
    """Clean latents of the concept: `(images, *latent_shape)`."""
    layer: str
    """The attention that is looked at."""

    def student(self) -> AbstractContextManager[None]:
        """While the block runs, the backbone computes with its changes."""
        return self.backbone.substituted(self.lora.weights())


def train(
    backbone: Backbone, target: Target, words: Sequence[str], settings: EraseAnything, seed: int
) -> tuple[dict[str, LowRank], dict[str, Any]]:
    """The low-rank changes, and notes. All randomness comes from `seed`, through generators of our own."""
    rng = np.random.default_rng(seed)
    plan = draw(rng, target, words, settings)
    task = prepare(backbone, target, plan, settings, rng)
    history: list[tuple[str, float]] = []  # each term's name and value

    def loss_at(i: int) -> Tensor:
        parts = upper(task, plan[i]) if plan[i].upper else lower(task, plan[i])
        history.extend((name, float(part.detach())) for name, part in parts.items())
        return total(parts, settings)

    adam = torch.optim.AdamW(task.lora.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    keeping = Keeping(backbone.journal, also={"history": history})
    minimise("erase_anything", task.lora.parameters(), loss_at, iterations=len(plan), optimizer=adam, keeping=keeping)
    names = dict.fromkeys(name for name, _ in history)
    notes = {name: ends([value for term, value in history if term == name]) for name in names}
    return task.lora.deltas(), {"modules": len(task.lora.base), "attention": task.layer, "losses": notes}


# --- what is fixed beforehand -----------------------------------------------------------------------------------------
def draw(rng: np.random.Generator, target: Target, words: Sequence[str], settings: EraseAnything) -> list[Draw]:
    """All steps; without lower terms all are upper ones."""
    both = settings.image_weight > 0 or settings.contrast_weight > 0
    plan: list[Draw] = []
    for i in range(settings.iterations):
        is_upper = not both or i % 2 == 0
        known = settings.known_as(target)
        name = str(rng.choice(known)) if rng.random() < settings.swap else target.name
        drawn = Draw(
            upper=is_upper,
            prompt=shuffled(rng, settings.template, name, settings.shuffle),
            name=name,
            image=int(rng.integers(settings.images)),
            time=int(rng.integers(_TIMES)),
            seed=int(rng.integers(2**31)),
            start=int(rng.integers(2**31)),
            moment=int(rng.integers(settings.steps)),
            synonym=str(rng.choice(known)),
            words=tuple(words[j] for j in rng.choice(len(words), size=settings.irrelevant, replace=False)),
        )
        plan.append(drawn if is_upper else drawn._replace(time=plan[-1].time))
    return plan


def shuffled(rng: np.random.Generator, template: str, name: str, chance: float) -> str:
    """The filled template, its words in random order with that chance; the name's own words stay together."""
    parts = [name if word == "{}" else word.replace("{}", name) for word in template.split()]
    mixed = rng.permutation(len(parts)) if rng.random() < chance else range(len(parts))
    return " ".join(parts[i] for i in mixed)


@torch.no_grad()
def prepare(
    backbone: Backbone, target: Target, plan: Sequence[Draw], settings: EraseAnything, rng: np.random.Generator
) -> Task:
    """Encode every text once, make the concept's images, and start changes at none. BadInput if they have no place."""
    prompt, neutral = settings.template.replace("{}", target.name), settings.without(target)
    double = [name for name in backbone.attention_layers() if ".transformer_blocks." in name]
    if not double:
        raise BadInput(f"erase_anything: expected double-stream blocks with an attention, {backbone.name} has none")
    contrast = [word for d in plan if not d.upper and settings.contrast_weight for word in (d.synonym, *d.words)]
    needed = list(dict.fromkeys([prompt, neutral, "", *(d.prompt for d in plan), *contrast]))
    rows = concatenate([backbone.embed(needed[i : i + _PACK]) for i in range(0, len(needed), _PACK)])
    texts = {text: rows[[i]] for i, text in enumerate(needed)}
    base = linear_weights(backbone.layers(), backbone, parts=("cross-attention",), ends=(".add_q_proj", ".add_k_proj"))
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    lora = LoRA(base, settings.rank, scale=settings.alpha / settings.rank, generator=generator, init="gauss")
    seeds = rng.integers(2**31, size=settings.images).tolist()
    walker = backbone.at_guidance(settings.image_guidance)
    packs = [seeds[i : i + _PACK] for i in range(0, len(seeds), _PACK)]

    def drawn() -> Tensor:
        return torch.cat([walked(walker, texts[prompt], texts[""], pack, settings) for pack in packs])

    images = backbone.journal.once("images", drawn)
    return Task(backbone, settings, lora, texts, neutral, images, double[-1])


def walked(
    model: Backbone,
    text: Embedding,
    empty: Embedding,
    seeds: Sequence[int],
    settings: EraseAnything,
    stop: int | None = None,
) -> Tensor:
    """Latents `(seeds, *latent_shape)` of the model as it is, after `stop` steps or all."""
    n = len(seeds)
    return model.trajectory(
        model.noise(seeds),
        text.expand(n),
        empty.expand(n),
        steps=settings.steps,
        guidance=settings.true_guidance,
        stop=stop,
    )


# --- the upper level --------------------------------------------------------------------------------------------------
def upper(task: Task, step: Draw) -> dict[str, Tensor]:
    """The erasing terms in use."""
    parts = {}
    if task.settings.erase_weight:
        parts["erase"] = erasing(task, step)
    if task.settings.attention_weight:
        with task.student():
            _, attention = looked(task, step)
        parts["attention"] = suppression(attention, columns(task, step.prompt, step.name))
    return parts


def erasing(task: Task, step: Draw) -> Tensor:
    """mean (v − (v₀ − η (v_p − v₀)))²."""
    model, t = task.backbone.at_guidance(task.settings.guidance), torch.tensor([float(step.time)])
    text, neutral = task.texts[step.prompt], task.texts[task.neutral]
    t = t.to(model.device)
    with torch.no_grad(), task.student():
        z = walked(model, text, task.texts[""], [step.start], task.settings)
    if task.settings.latents == "noised":
        z = model.noisy(z, model.noise([step.seed]), t)
    target = away(*velocities(task, model, z, t, concatenate([neutral, text])), task.settings.eta)
    with task.student():
        velocity = model.predict(z, t, text)
    return mse_loss(velocity.float(), target.float())


@torch.no_grad()
def velocities(task: Task, model: Backbone, z: Tensor, t: Tensor, text: Embedding) -> tuple[Tensor, Tensor]:
    """v₀ and v_p, of the trained model or of the unedited one."""
    if task.settings.reference == "frozen":
        neutral, concept = model.predict(torch.cat([z, z]), t.expand(2), text).chunk(2)
    else:
        with task.student():
            neutral, concept = model.predict(torch.cat([z, z]), t.expand(2), text).chunk(2)
    return neutral, concept


def away(neutral: Tensor, concept: Tensor, eta: float) -> Tensor:
    """v₀ − η (v_p − v₀)."""
    return neutral - eta * (concept - neutral)


def suppression(attention: Tensor, tokens: Sequence[int]) -> Tensor:
    """Σ over rows and the tokens' columns of the norm over batch and heads; `attention` `(batch, heads, rows, length)`.

    Where a column is all zero, so is its gradient.
    """
    norms: Tensor = torch.linalg.vector_norm(attention[..., list(tokens)], dim=(0, 1))
    return norms.sum()


# --- the lower level --------------------------------------------------------------------------------------------------
def lower(task: Task, step: Draw) -> dict[str, Tensor]:
    """The keeping terms in use."""
    s, parts = task.settings, {}
    with task.student():
        velocity, attention = looked(task, step)
    if s.image_weight:
        wanted = task.backbone.noise([step.seed]) - task.images[step.image][None]
        parts["image"] = mse_loss(velocity.float(), wanted.float())
    if s.contrast_weight:
        own = feature(attention, columns(task, step.prompt, step.name))
        synonym, *others = [attended(task, step, word) for word in (step.synonym, *step.words)]
        parts["contrast"] = contrast(own, synonym, torch.stack(others), s.temperature)
    return parts


def looked(task: Task, step: Draw) -> tuple[Tensor, Tensor]:
    """Velocity and attention `(1, heads, length + pixels, length)` at the step's noised image, as the model is now."""
    model = task.backbone.at_guidance(task.settings.image_guidance)
    t = torch.tensor([float(step.time)], device=model.device)
    x = model.noisy(task.images[step.image][None], model.noise([step.seed]), t)
    with model.attention_maps([task.layer], text_rows=True) as maps:
        velocity = model.predict(x, t, task.texts[step.prompt])
    return velocity, maps[0]


@torch.no_grad()
def attended(task: Task, step: Draw, word: str) -> Tensor:
    """F(word) of the trained model, at the step's moment of a walk to the bare word."""
    model = task.backbone.at_guidance(task.settings.guidance)
    text = task.texts[word]
    with task.student():
        x = walked(model, text, task.texts[""], [step.start], task.settings, stop=step.moment)
        with model.attention_maps([task.layer], text_rows=True) as maps:
            model.predict(x, model.timesteps(task.settings.steps)[step.moment], text)
    return feature(maps[0], columns(task, word, word))


def columns(task: Task, prompt: str, name: str) -> list[int]:
    """The name's tokens in the prompt; BadInput if it is cut off."""
    try:
        return list(task.backbone.span(prompt, name))
    except ValueError as error:
        raise BadInput(f"erase_anything: {error}; shorten the name or the template") from None


def feature(attention: Tensor, tokens: Sequence[int]) -> Tensor:
    """`(rows,)`: the mean of the tokens' columns in the first head of `(1, heads, rows, length)`."""
    return attention[0, 0][:, list(tokens)].mean(1)


def contrast(own: Tensor, synonym: Tensor, others: Tensor, temperature: float) -> Tensor:
    """log of the softmax share of `own` among `own` and `others` `(K, rows)`, by cosines to `synonym` over τ."""
    likeness = cosine_similarity(torch.cat([own[None], others]), synonym[None]) / temperature
    return likeness.log_softmax(0)[0]


def total(parts: Mapping[str, Tensor], settings: EraseAnything) -> Tensor:
    """The weighted sum."""
    return torch.stack([getattr(settings, f"{name}_weight") * part for name, part in parts.items()]).sum()
