"""A judge's stored raw outputs, image by image, short enough to be read: the largest of many, the rest by address."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import BenchError
from benchmark.metrics import evaluators
from benchmark.page.images import Images, Place
from benchmark.untrusted import arrays

Array = NDArray[Any]
Json = dict[str, Any]
WHOLE = 8
"""Rows of at most this many numbers are shown whole."""
LARGEST = 5
EMBEDDINGS = frozenset({"clip", "features", "embedding", "reason"})
"""Vectors in which single numbers mean nothing."""


def outputs(record: Mapping[str, Any], at: Sequence[int | None], images: Images) -> list[Json]:
    """What each judge of a record said of the images at these rows: one entry a judge whose outputs are stored.

    `values` maps an output's name to one entry an image: a number, a short list, or `[[column, value], …]` of the
    largest. `shapes` has every output's shape for one image, `stored` the address of each image's outputs.
    """
    judges = {(p["evaluator"], p["evaluator_hash"]) for p in record["protocols"].values()}
    found = [_of_judge(name, digest, record["rows"]["image"], at, images) for name, digest in sorted(judges)]
    return [f for f in found if any(f["stored"])]


def _of_judge(evaluator: str, weights: str, hashes: Sequence[str], at: Sequence[int | None], images: Images) -> Json:
    said: Json = {"evaluator": evaluator, "names": class_names(evaluator, weights), "shapes": {}, "values": {}}
    stored: list[str | None] = []
    read = lru_cache(4)(lambda key, shard: _shard(images, key, shard, evaluator, weights))
    for i, row in enumerate(at):
        place = None if row is None else images.places.get(hashes[row])
        shard = None if place is None else read(place.key, place.shard)
        if place is None or shard is None:
            stored.append(None)
            continue
        address, held = shard
        stored.append(f"{address}/raw.safetensors row {place.row}")
        for name, values in held.items():
            if values.ndim == 0 or len(values) <= place.row:
                continue
            said["shapes"][name] = list(values.shape[1:])
            if (shown := readable(name, values[place.row])) is not None:
                said["values"].setdefault(name, [None] * len(at))[i] = shown
    return {**said, "stored": stored}


def _shard(images: Images, key: str, shard: str, evaluator: str, weights: str) -> tuple[str, dict[str, Array]] | None:
    found = images.raw(Place(key, shard, 0), evaluator, weights)
    if found is None:
        return None
    try:
        return found[0], dict(sorted(arrays(found[1]).items()))
    except ValueError as error:
        images.say(f"{found[0]}/raw.safetensors cannot be read: {error}")
        return None


def readable(name: str, row: Array) -> Any:
    """One image's output as the page shows it; None for vectors that say nothing to a reader."""
    if name in EMBEDDINGS or row.ndim > 1:
        return None
    if row.ndim == 0:
        return _number(row)
    if row.size <= WHOLE:
        return [_number(v) for v in row]
    largest = np.argsort(-row.astype(np.float64), kind="stable")[:LARGEST]
    return [[int(i), _number(row[i])] for i in largest]


def _number(value: Any) -> float | int | None:
    """To four digits; NaN, which JSON does not have, becomes None."""
    if np.issubdtype(value.dtype, np.integer) or value.dtype == bool:
        return int(value)
    return float(f"{float(value):.4g}") if np.isfinite(value) else None


@lru_cache(64)
def class_names(evaluator: str, weights: str) -> dict[str, list[str]]:
    """Output to the names of its columns, of the embedded judges; none where its weights here are others."""
    try:
        spec = evaluators.spec_of(evaluator)
        if spec.weights is None or evaluators.weights_hash(evaluator) != weights:
            return {}
        config = json.loads((spec.weights / spec.parts[0] / "config.json").read_text(encoding="utf-8"))
    except (BenchError, OSError, ValueError):
        return {}
    heads = {"object": "objects", "style": "styles"}
    return {head: list(config[key]) for head, key in heads.items() if key in config}
