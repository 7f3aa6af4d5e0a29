"""Prompts of a request as items, one image each, in a fixed order; thinned evenly where a scale asks for fewer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmark.errors import BadInput
from benchmark.keys import image_seed
from benchmark.suite import RequestSpec, Role


@dataclass(frozen=True)
class Item:
    """One image to make and score."""

    role: Role
    concept: str
    """The concept it is scored against; of a synonym, the concept that it stands for."""
    prompt: str
    replicate: int
    seed: int


def request_items(suite: str, version: int, request: RequestSpec, scale: float = 1.0) -> tuple[Item, ...]:
    """All items of a request: by role, concept, template, replicate.

    `scale` thins each role: `images * scale`, halves rounded up, per template and concept. Where that is below one
    image, one image is made for the same share of the (concept, template) pairs, spread evenly over both.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise BadInput(f"scale must be a number above 0, such as 0.1, got {scale}")
    return tuple(
        Item(role, concept, prompt, replicate, image_seed(suite, version, prompt, replicate))
        for role, prompts in request.prompts.items()
        for concept, prompt, images in _thinned(_phrases(request, role), prompts.templates, prompts.images * scale)
        for replicate in range(images)
    )


def _phrases(request: RequestSpec, role: Role) -> list[tuple[str, str]]:
    """Concept and the words that the prompt uses for it."""
    if role == "synonym":
        return [(c.name, synonym) for c in request.erase for synonym in c.synonyms]
    return [(c.name, c.name) for c in (request.erase if role == "erased" else request.keep)]


def _thinned(
    phrases: Sequence[tuple[str, str]], templates: Sequence[str], images: float
) -> Iterator[tuple[str, str, int]]:
    one_at_least = len(phrases) * len(templates) * images < 1
    for i, (concept, words) in enumerate(phrases):
        for j, template in enumerate(templates):
            # Along diagonals, so that a share of pairs is not always the same template.
            place = i * len(templates) + (i + j) % len(templates)
            count = math.floor(images + 0.5) if images >= 1 else _picked(place, images)
            if count or (one_at_least and place == 0):
                yield concept, template.replace("{concept}", words), max(1, count)


def _picked(place: int, share: float) -> int:
    """1 for a `share` of all places, evenly spaced, else 0."""
    return math.floor((place + 1) * share + 1e-9) - math.floor(place * share + 1e-9)
