"""Prompts of a request as items, one image each, in a fixed order; thinned evenly where a scale asks for fewer."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from benchmark import data, prompt_files
from benchmark.data import Concept
from benchmark.errors import BadInput, Missing
from benchmark.keys import image_seed
from benchmark.prompt_files import PromptRow
from benchmark.suite import Prompts, RequestSpec, Role

MOST = 1_000_000
"""Images of one request and method: thirty times COCO-30k. A few numbers in a suite could ask for more than memory."""


@dataclass(frozen=True)
class Item:
    """One image to make and score."""

    role: Role
    concept: str
    """The concept it is scored against; of a synonym, the concept that it stands for; "" where it asks for none."""
    prompt: str
    replicate: int
    seed: int
    guidance: float | None = None
    """Where the prompt's file gives it one of its own that counts."""
    size: tuple[int, int] | None = None
    """Width and height in pixels, likewise."""


Rows = Callable[[str, str], Sequence[PromptRow]]
"""Dataset and file to the rows of that file of prompts."""


def rows_of(dataset: str, file: str) -> Sequence[PromptRow]:
    """The rows of a file; where it is not on this machine, `placeholders`, so that a plan can count them."""
    try:
        return prompt_files.load(dataset, file)
    except Missing:
        return placeholders(dataset, file)


def placeholders(dataset: str, file: str) -> Sequence[PromptRow]:
    """As many rows as the published file has, without its texts; BadInput if its card does not say how many."""
    count = data.load(dataset).file(file).rows
    if count is None:
        raise BadInput(f"{dataset}/{file} is not here, and its card does not say how many prompts it holds")
    return [PromptRow(prompt=f"<{dataset}/{file} {case}>", seed=case, case=case) for case in range(count)]


def stands_in(item: Item) -> bool:
    """Whether it is a placeholder's, whose prompt and seed nobody knows here."""
    return _STAND_IN.fullmatch(item.prompt) is not None


_STAND_IN = re.compile(r"<[a-z0-9_-]+/[a-z0-9_-]+ \d+>")


def request_items(
    suite: str, version: int, request: RequestSpec, scale: float = 1.0, rows: Rows = rows_of
) -> tuple[Item, ...]:
    """All items of a request: by role, concept, template, replicate; those of a file in its order.

    `scale` thins each role: `images * scale`, halves rounded up, per template and concept. Where that is below one
    image, one image is made for the same share of the (concept, template) pairs, spread evenly over both. Of a file the
    same share of prompts stays, spread evenly over it.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise BadInput(f"scale must be a number above 0, such as 0.1, got {scale}")
    every = (
        item
        for role, prompts in request.prompts.items()
        for item in (
            _from_file(role, prompts, request, scale, rows)
            if prompts.file is not None
            else _from_texts(suite, version, role, prompts, request, scale)
        )
    )
    found = tuple(islice(every, MOST + 1))
    if len(found) > MOST:
        raise BadInput(f"{request.name}: more than {MOST:,} images; make it several suites, or --scale smaller")
    return found


# --- templates and fixed prompts --------------------------------------------------------------------------------------
Asked = tuple[str, Sequence[str]]
"""A concept, and the prompts that ask for it."""


def _from_texts(
    suite: str, version: int, role: Role, prompts: Prompts, request: RequestSpec, scale: float
) -> Iterator[Item]:
    assert prompts.images is not None  # only a file has none
    counted = prompts.seeds == "counted"
    for concept, prompt, images in _thinned(_asked(request, role, prompts), prompts.images * scale):
        for replicate in range(images):
            seed = replicate + 1 if counted else image_seed(suite, version, prompt, replicate)
            yield Item(role, concept, prompt, replicate, seed)


def _asked(request: RequestSpec, role: Role, prompts: Prompts) -> list[Asked]:
    if prompts.prompts is not None:
        # One that implies a concept without naming it stands for what is erased; the first has the name.
        return [("" if role == "general" else request.erase[0].name, prompts.prompts)]
    return [
        (concept.name, [t.replace("{concept}", words) for t in prompts.of_kind(concept.kind)])
        for concept, words in _phrases(request, role)
    ]


def _phrases(request: RequestSpec, role: Role) -> list[tuple[Concept, str]]:
    """Concept and the words that the prompt uses for it."""
    if role == "synonym":
        return [(c, synonym) for c in request.erase for synonym in c.synonyms]
    of_role = {"erased": request.erase, "kept": request.keep, "adjacent": request.adjacent}
    return [(c, c.name) for c in of_role.get(role, ())]


def _thinned(asked: Sequence[Asked], images: float) -> Iterator[tuple[str, str, int]]:
    """Concept, prompt, and how many images of it."""
    one_at_least = sum(len(texts) for _, texts in asked) * images < 1
    start = 0
    for i, (concept, texts) in enumerate(asked):
        for j, prompt in enumerate(texts):
            # Along diagonals, so that a share of pairs is not always the same template.
            place = start + (i + j) % len(texts)
            count = math.floor(images + 0.5) if images >= 1 else picked(place, images)
            if count or (one_at_least and place == 0):
                yield concept, prompt, max(1, count)
        start += len(texts)


def picked(place: int, share: float) -> int:
    """1 for a `share` of all places, evenly spaced, else 0."""
    return math.floor((place + 1) * share + 1e-9) - math.floor(place * share + 1e-9)


# --- files ------------------------------------------------------------------------------------------------------------
def _from_file(role: Role, prompts: Prompts, request: RequestSpec, scale: float, rows: Rows) -> Iterator[Item]:
    assert prompts.dataset is not None and prompts.file is not None
    mine = _named([r for r in rows(prompts.dataset, prompts.file) if r.role in (None, role)], role, request)
    if not mine:
        raise BadInput(f"{prompts.dataset}/{prompts.file} holds no prompt of type {role}")
    for place, row in enumerate(mine):
        if scale >= 1 or picked(place, scale) or (place == 0 and len(mine) * scale < 1):
            own = (row.guidance, row.size) if prompts.honour_row_settings else (None, None)
            yield Item(role, row.concept, row.prompt, 0, row.seed, *own)


def _named(rows: Sequence[PromptRow], role: Role, request: RequestSpec) -> Sequence[PromptRow]:
    """With the concept in each prompt, in files that tell erased from kept and do not name it."""
    if not rows or rows[0].role is None or rows[0].concept:
        return rows
    of_role = request.erase if role == "erased" else request.keep
    return prompt_files.with_concepts(rows, [c.name for c in of_role])
