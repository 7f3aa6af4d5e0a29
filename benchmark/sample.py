"""Prompts and seeds to images, such that an image depends on its own prompt and seed alone.

Three things make it so: one CPU generator per image; every batch of one fixed shape, the last padded; every text
encoded in a batch of one fixed shape. Rows of a batch do not influence each other bit for bit, but the batch's
shape chooses the kernels: at another batch size values may differ by one level of 255.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmark.backbones.base import Backbone, Embedding, concatenate
from benchmark.errors import BadInput, BenchError
from benchmark.interface import PromptRule
from benchmark.keys import TEXT_BATCH


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How images are made from noise."""

    scheduler: Literal["ddim"] = "ddim"
    """DDIM with eta 0; for flow models the same first-order deterministic step, which is Euler's."""
    steps: int
    guidance: float
    """Classifier-free guidance g in u + g(c − u); 1 is none."""
    size: int | tuple[int, int] | None = None
    """Side of the square image, or (height, width), in pixels that the backbone must have been loaded for; None is
    whatever it has."""
    negative_prompt: str = ""
    """What u is conditioned on."""


class Item(Protocol):
    """What is sampled: any object with a prompt and a seed."""

    @property
    def prompt(self) -> str: ...

    @property
    def seed(self) -> int: ...


AnyItem = TypeVar("AnyItem", bound=Item)


def sample(
    backbone: Backbone,
    items: Iterable[AnyItem],
    sampler: Sampler,
    batch: int,
    prompts: PromptRule | None = None,
    wanted: Callable[[Sequence[AnyItem]], bool] | None = None,
) -> Iterator[tuple[list[AnyItem], NDArray[np.uint8]]]:
    """Yield each batch's items, in order, with their images `(n, height, width, 3)`, uint8.

    Every batch is computed at `batch` samples; the last repeats its last item and drops the surplus. Values are
    `round(255·v)` of the decoded v in [0, 1], halves to the even level. `prompts` replaces prompts before they are
    encoded. `wanted` is asked of each batch right before it is computed; what it refuses is passed over. The model is
    read while batches are taken: an edit must stay on it until the last. Raises BadInput at once for what cannot be
    sampled, and BenchError, naming prompt and seed, when a latent or an image is not finite.
    """
    _check(backbone, sampler, batch)
    return _batches(backbone, list(items), sampler, batch, prompts, wanted)


def _batches(
    backbone: Backbone,
    everything: Sequence[AnyItem],
    sampler: Sampler,
    batch: int,
    prompts: PromptRule | None,
    wanted: Callable[[Sequence[AnyItem]], bool] | None,
) -> Iterator[tuple[list[AnyItem], NDArray[np.uint8]]]:
    texts = Texts(backbone, [rewrite(item.prompt, prompts) for item in everything])
    empty = encode(backbone, [sampler.negative_prompt]).expand(batch)
    for start in range(0, len(everything), batch):
        part = list(everything[start : start + batch])
        asked = [rewrite(item.prompt, prompts) for item in part]
        if wanted is not None and not wanted(part):
            texts.skip(asked)
            continue
        text = texts.take(asked)
        yield part, _images(backbone, part, _padded(text, batch), empty, sampler, batch)


def rewrite(prompt: str, rule: PromptRule | None) -> str:
    """The prompt, or the rule's replacement if one of the rule's words is in it, whole and in any case.

    >>> rewrite("a photo of the Cat.", PromptRule(words=("cat",), replacement="a photo"))
    'a photo'
    >>> rewrite("a photo of cattle", PromptRule(words=("cat",)))
    'a photo of cattle'
    """
    words = [r"\s+".join(map(re.escape, word.split())) for word in (rule.words if rule else ()) if word.strip()]
    if rule and words and re.search(rf"(?<!\w)(?:{'|'.join(words)})(?!\w)", prompt, re.IGNORECASE):
        return rule.replacement
    return prompt


def encode(backbone: Backbone, prompts: Sequence[str]) -> Embedding:
    """At most `TEXT_BATCH` prompts, encoded at exactly that batch shape: a row depends on its own prompt alone."""
    with torch.no_grad():
        return backbone.embed([*prompts, *[prompts[-1]] * (TEXT_BATCH - len(prompts))])[: len(prompts)]


class Texts:
    """Embeddings of prompts that will be asked for in a known order: each encoded once, when it is first needed,
    and let go after its last use, so that ten thousand different prompts need no room of their own."""

    def __init__(self, backbone: Backbone, order: Sequence[str]) -> None:
        self._backbone = backbone
        self._uses = Counter(order)
        self._rows: dict[str, Embedding] = {}
        unique = list(self._uses)
        self._chunks = iter([unique[i : i + TEXT_BATCH] for i in range(0, len(unique), TEXT_BATCH)])

    def take(self, prompts: Sequence[str]) -> Embedding:
        """One row per prompt; the prompts must be the next ones of the order given."""
        while any(prompt not in self._rows for prompt in prompts):
            self._rows |= self._encode([prompt for prompt in next(self._chunks) if prompt in self._uses])
        text = concatenate([self._rows[prompt] for prompt in prompts])
        self._release(Counter(prompts))
        return text

    def skip(self, prompts: Sequence[str]) -> None:
        """Pass over the next prompts of the order."""
        self._release(Counter(prompts))

    def _encode(self, prompts: Sequence[str]) -> Mapping[str, Embedding]:
        if not prompts:
            return {}
        rows = encode(self._backbone, prompts)
        return {prompt: rows[[i]] for i, prompt in enumerate(prompts)}  # copies: a slice would keep the whole batch

    def _release(self, used: Counter[str]) -> None:
        self._uses -= used
        for prompt in used:
            if prompt not in self._uses:
                self._rows.pop(prompt, None)


@torch.no_grad()
def _images(
    backbone: Backbone, items: Sequence[Item], text: Embedding, empty: Embedding, sampler: Sampler, batch: int
) -> NDArray[np.uint8]:
    seeds = [item.seed for item in items]
    noise = backbone.noise(seeds + seeds[-1:] * (batch - len(seeds)))
    latents = backbone.trajectory(noise, text, empty, steps=sampler.steps, guidance=sampler.guidance)
    _check_finite(items, latents, "latent")
    images = backbone.decode(latents)
    _check_finite(items, images, "image")
    return to_uint8(images[: len(items)])


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """`(n, 3, height, width)` in [0, 1] to `(n, height, width, 3)`: `round(255·v)`, halves to the even level."""
    levels: NDArray[np.uint8] = (images.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return np.ascontiguousarray(levels)


def _padded(text: Embedding, batch: int) -> Embedding:
    last = len(text) - 1
    return text[[min(i, last) for i in range(batch)]]


def _check(backbone: Backbone, sampler: Sampler, batch: int) -> None:
    if batch < 1:
        raise BadInput(f"expected a batch of at least 1 image, got {batch}")
    if sampler.scheduler != "ddim":
        raise BadInput(f"expected scheduler 'ddim', got {sampler.scheduler!r}; no other is implemented")
    size = (sampler.size, sampler.size) if isinstance(sampler.size, int) else sampler.size
    if size is not None and backbone.image_size != size:
        height, width = backbone.image_size
        raise BadInput(
            f"expected a model for {size[0]}x{size[1]} pixels, got {backbone.name} for {height}x{width}; "
            f"load it with size={sampler.size}"
        )
    backbone.timesteps(sampler.steps)  # refuses a number of steps that the model's schedule does not have


def _check_finite(items: Sequence[Item], values: Tensor, what: str) -> None:
    for item, fine in zip(items, torch.isfinite(values).flatten(1).all(1).tolist(), strict=False):
        if not fine:
            raise BenchError(
                f"the {what} for prompt {item.prompt!r}, seed {item.seed} is not finite; "
                "look at the edit's weights, or sample in float32"
            )
