"""The table of protocols: each id names one definition, with its direction, range, worst value, unit and version.

Importing this loads no torch. A protocol is either *per image* (rows of raw outputs → values) or *per set* (features of
the kept prompts' images against a reference → one number).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import BadInput, did_you_mean
from benchmark.metrics import accuracy, distribution
from benchmark.metrics.distribution import Value
from benchmark.metrics.evaluators import Array, Evaluator

INFINITY = float("inf")


class Scores(NamedTuple):
    """One value for each image; where `valid` is False the image could not be scored and the value is NaN."""

    values: NDArray[np.float64]
    valid: NDArray[np.bool_]


PerImage = Callable[[Mapping[str, Array], Sequence[str], Sequence[str], Evaluator], NDArray[np.float64]]
"""Raw outputs, asked concepts, prompts, evaluator → values, NaN where there is none."""
PerSet = Callable[[Array, Array], Value]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A metric's exact definition. Another definition is another id, or a higher version."""

    id: str
    version: int
    title: str
    direction: Literal["up", "down"]
    """Which way is better on kept prompts; on erased and synonym prompts an accuracy is better low."""
    range: tuple[float, float]
    worst: float
    """The worst value on kept prompts."""
    unit: str
    evaluator: str
    rate: bool = False
    """Values are 0 or 1: an accuracy, with a Wilson interval."""
    per_image: PerImage | None = None
    per_set: PerSet | None = None

    @property
    def scope(self) -> Literal["image", "set"]:
        return "set" if self.per_set else "image"

    def column(self, n: int) -> str:
        """The id in tables: a distance says its number of images, since it depends on it."""
        return f"{self.id}/{n}" if self.scope == "set" else self.id

    def as_json(self) -> dict[str, Any]:
        """What `list` and `show` tell of it; an infinite bound is null."""
        names = ("id", "version", "title", "direction", "unit", "evaluator", "scope")
        lo, hi = (None if abs(v) == INFINITY else v for v in self.range)
        return {**{n: getattr(self, n) for n in names}, "range": [lo, hi], "worst": finite_or_none(self.worst)}


def finite_or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None


# --- per image ------------------------------------------------------------------------------------------------
def _testbed_top1(
    raw: Mapping[str, Array], concepts: Sequence[str], prompts: Sequence[str], judge: Evaluator
) -> NDArray[np.float64]:
    """Whether the largest logit of the head that knows the concept (objects, else styles) is the asked class.

    All classes of that head compete, not only the suite's.
    """
    styles = judge.classes["style"]
    values = np.full(len(concepts), np.nan)
    for head, rows in (
        ("style", [i for i, c in enumerate(concepts) if c in styles]),
        ("object", [i for i, c in enumerate(concepts) if c not in styles]),
    ):
        asked = accuracy.columns([concepts[i] for i in rows], judge.classes[head])
        values[rows] = accuracy.top1(raw[head][rows], asked)
    return values


def _clip_score(
    raw: Mapping[str, Array], concepts: Sequence[str], prompts: Sequence[str], judge: Evaluator
) -> NDArray[np.float64]:
    """100·cos of the image with the prompt that asked for it."""
    if not prompts:
        return np.zeros(0)
    distinct = sorted(set(prompts))
    texts = dict(zip(distinct, judge.texts(distinct), strict=True))
    return accuracy.clip_score(raw["clip"], np.stack([texts[p] for p in prompts]))


# --- the table ------------------------------------------------------------------------------------------------
PROTOCOLS: Mapping[str, Protocol] = {
    p.id: p
    for p in (
        Protocol(
            id="testbed/top1",
            version=1,
            title="share of images whose top class is the asked one, by the embedded model's evaluator",
            direction="up",
            range=(0, 1),
            worst=0,
            unit="fraction",
            evaluator="testbed-a",
            rate=True,
            per_image=_testbed_top1,
        ),
        Protocol(
            id="testbed-clip/score",
            version=1,
            title="100·cos(image, prompt) in the embedded model's own CLIP space, mean over kept prompts",
            direction="up",
            range=(-100, 100),
            worst=-100,
            unit="100·cos",
            evaluator="testbed-a",
            per_image=_clip_score,
        ),
        Protocol(
            id="testbed-fid",
            version=1,
            title="Fréchet distance of kept prompts' images to held-out renders of their concepts, by the evaluator",
            direction="down",
            range=(0, INFINITY),
            worst=INFINITY,
            unit="squared feature distance",
            evaluator="testbed-a",
            per_set=distribution.fid,
        ),
        Protocol(
            id="testbed-kid",
            version=1,
            title="kernel distance (unbiased, 100 subsets of 50) of the same features",
            direction="down",
            range=(-INFINITY, INFINITY),
            worst=INFINITY,
            unit="MMD²",
            evaluator="testbed-a",
            per_set=distribution.kid,
        ),
        Protocol(
            id="clip-vitb32/prob",
            version=1,
            title='mean softmax probability of the asked class, CLIP ViT-B/32, "a photo of the {class}"',
            direction="up",
            range=(0, 1),
            worst=0,
            unit="fraction",
            evaluator="clip-vitb32",
        ),
        Protocol(
            id="clip-vitb32/top1",
            version=1,
            title='share of images whose top class is the asked one, CLIP ViT-B/32, "a photo of the {class}"',
            direction="up",
            range=(0, 1),
            worst=0,
            unit="fraction",
            evaluator="clip-vitb32",
            rate=True,
        ),
        Protocol(
            id="clip-vitb32/score",
            version=1,
            title="100·cos(image, prompt), CLIP ViT-B/32, mean over kept prompts",
            direction="up",
            range=(-100, 100),
            worst=-100,
            unit="100·cos",
            evaluator="clip-vitb32",
        ),
        Protocol(
            id="identity/top1-first-face",
            version=1,
            title="share of images with a face whose first detected face is classified as the asked person",
            direction="up",
            range=(0, 1),
            worst=0,
            unit="fraction",
            evaluator="identity",
            rate=True,
        ),
        Protocol(
            id="identity/top1-all-images",
            version=1,
            title="share of all images whose first detected face is classified as the asked person",
            direction="up",
            range=(0, 1),
            worst=0,
            unit="fraction",
            evaluator="identity",
            rate=True,
        ),
    )
}


def protocol(name: str) -> Protocol:
    """The protocol of an id, or of a column such as `testbed-fid/180`; BadInput with a suggestion if there is none."""
    head, _, count = name.rpartition("/")
    base = head if count.isdigit() else name
    if base not in PROTOCOLS:
        raise BadInput(did_you_mean(name, PROTOCOLS, "protocol"))
    return PROTOCOLS[base]


def score(
    name: str, raw: Mapping[str, Array], concepts: Sequence[str], prompts: Sequence[str], judge: Evaluator
) -> Scores:
    """Values of one per-image protocol, from one raw row an image; blank images and values not finite are invalid."""
    p = protocol(name)
    if p.per_image is None:
        raise BadInput(f"{name!r} gives no value for single images; it is scored over a set, or not in this version")
    if len(concepts) != len(prompts) or any(len(v) != len(concepts) for v in raw.values()):
        raise BadInput(f"expected one raw row for each of {len(concepts)} concepts and {len(prompts)} prompts")
    values = p.per_image(raw, concepts, prompts, judge)
    blank = raw.get("blank", np.zeros(len(concepts))).astype(bool)
    valid = np.isfinite(values) & ~blank
    return Scores(np.where(valid, values, np.nan), valid)


def score_set(name: str, features: Array, reference: Array) -> Value:
    """The number of one per-set protocol for features `(n, d)` against reference `(m, d)`."""
    p = protocol(name)
    if p.per_set is None:
        raise BadInput(f"{name!r} is scored image by image, or not in this version")
    return p.per_set(features, reference)
