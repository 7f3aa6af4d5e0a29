"""Rates for each image, from a classifier's logits or a pair of embeddings. Arrays in, arrays out; no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import BadInput, did_you_mean

Array = NDArray[Any]
Floats = NDArray[np.float64]


def columns(concepts: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """The column of each asked concept among the classifier's classes; a class it does not know is an error."""
    index = {c: i for i, c in enumerate(classes)}
    unknown = sorted({c for c in concepts if c not in index})
    if unknown:
        raise BadInput(f"the evaluator cannot judge this: {did_you_mean(unknown[0], classes, 'class')}")
    return np.array([index[c] for c in concepts], dtype=np.int64)


def matched(
    concepts: Sequence[str], classes: Sequence[str], given: Mapping[str, str] | None = None
) -> NDArray[np.int64]:
    """The column of each asked concept among a published classifier's class names, which are spelled in many ways.

    Names agree if they do without case, punctuation, a leading number or synset, and alternatives after a comma
    (`n02085620-Chihuahua`, `001.Black_footed_Albatross`, `tench, Tinca tinca`). `given` maps concepts to class names
    where that is not enough. BadInput for a class that the checkpoint does not know, or knows twice.
    """
    index: dict[str, set[int]] = {}
    for column, name in enumerate(classes):
        for form in {plain(name), *map(plain, name.split(","))}:
            index.setdefault(form, set()).add(column)
    wanted = {c: (given or {}).get(c, c) for c in dict.fromkeys(concepts)}
    found: dict[str, int] = {}
    for concept, name in wanted.items():
        # The exact spelling decides where the loose one does not: ImageNet has two classes "crane".
        exact = [i for i, c in enumerate(classes) if c == name]
        columns = set(exact) if len(exact) == 1 else index.get(plain(name), set())
        if not columns:
            raise BadInput(f"the evaluator cannot judge this: {did_you_mean(name, classes, 'class')}")
        if len(columns) > 1:
            alike = ", ".join(f"{i} ({classes[i]})" for i in sorted(columns))
            raise BadInput(f"{name!r} is several classes of the evaluator: {alike}; map it in classes.json")
        found[concept] = columns.pop()
    return np.array([found[c] for c in concepts], dtype=np.int64)


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes that a checkpoint's `config.json` names, timm's or transformers', in the order of the logits; () if
    it names none.
    """
    if "architecture" not in config:  # transformers says `architectures`
        labels = {int(k): str(v) for k, v in (config.get("id2label") or {}).items()}
        return tuple(labels[i] for i in sorted(labels))
    said = config.get("pretrained_cfg") or {}
    names = config.get("label_names") or said.get("label_names") or ()
    described = config.get("label_descriptions") or said.get("label_descriptions") or {}
    return tuple(str(described.get(n, n)) for n in names)


def plain(name: str) -> str:
    """A class name in lower case, words apart by one space, without a leading synset or number."""
    words = re.sub(r"[\W_]+", " ", name.casefold()).strip()
    return re.sub(r"^(n\d{8}|\d+) (?=.)", "", words)


def top1(logits: Array, asked: NDArray[np.int64]) -> Floats:
    """1.0 where the largest of logits `(n, classes)` is the asked class, else 0.0; NaN in rows that are not finite."""
    hit = np.argmax(np.nan_to_num(logits, nan=-np.inf), axis=1) == asked
    return np.where(np.isfinite(logits).all(axis=1), hit.astype(np.float64), np.nan)


def probability(logits: Array, asked: NDArray[np.int64]) -> Floats:
    """Softmax probability of the asked class, in [0, 1]; NaN in rows that are not finite."""
    finite = np.asarray(np.isfinite(logits).all(axis=1))
    x = np.where(finite[:, None], logits, 0.0).astype(np.float64)
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return np.where(finite, e[np.arange(len(e)), asked] / e.sum(axis=1), np.nan)


def cosines(images: Array, texts: Array) -> Floats:
    """100·cos of each image embedding `(n, dim)` with each text's `(classes, dim)`: zero-shot logits `(n, classes)`.

    Radford et al. 2021, section 3.1: CLIP's own scale, exp(logit_scale), is 100 in the published weights.
    """
    i, t = images.astype(np.float64), texts.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        i = i / np.linalg.norm(i, axis=1, keepdims=True)
        t = t / np.linalg.norm(t, axis=1, keepdims=True)
    logits: Floats = 100 * (i @ t.T)
    return logits


def clip_score(images: Array, texts: Array) -> Floats:
    """100·cos of each image embedding with its own text's, both `(n, dim)`: in [−100, 100]; NaN where one is zero.

    Not clipped at 0, unlike Hessel et al. 2021's CLIPScore (2.5·max(cos, 0)).
    """
    if images.shape != texts.shape:
        raise BadInput(f"expected one text embedding for each image, got {images.shape} and {texts.shape}")
    i, t = images.astype(np.float64), texts.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        cos: Floats = (i * t).sum(1) / (np.linalg.norm(i, axis=1) * np.linalg.norm(t, axis=1))
    return 100 * cos
