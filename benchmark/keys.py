"""Keys of artifacts: what goes into a stage, and nothing else, decides whether it must be done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmark.errors import Damaged
from benchmark.untrusted import parse_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EDITS, IMAGES, RAW, SCORES = "edits", "images", "raw", "scores"
"""First part of an artifact's address: `(EDITS, edit key)`, `(IMAGES, images key, shard)`, `(RAW, raw key)`,
`(SCORES, scores key)`."""

JOURNALS = "journals"
"""First part of the address of what is done of an edit under way: `(JOURNALS, edit key, name@steps)`."""

LENGTH = 32  # hex digits kept as a folder name: 128 bits


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces; NaN and infinity are refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, shortened to `LENGTH` hex digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:LENGTH]


def image_seed(suite: str, version: int, prompt: str, replicate: int) -> int:
    """Seed of one image, 63 bits: it depends on these four alone, never on batch, order, role or method."""
    text = f"{suite}|{version}|{prompt}|{replicate}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def edit_key(
    *,
    method: str,
    version: int,
    fields: Mapping[str, Any],
    model: str,
    request: Mapping[str, Any],
    given: Mapping[str, str],
    size: int,
    dtype: str,
    made_on: Mapping[str, Any],
) -> str:
    """Key of an edit: `model` is a hash, `request` what the method is told, `given` the keys of edits it needs.

    `size` is that of the images: training methods walk through latents of it. `made_on` is `device.setting()`.
    """
    return digest(
        {
            "stage": "edit",
            "method": method,
            "version": version,
            "fields": dict(fields),
            "model": model,
            "request": dict(request),
            "given": dict(given),
            "size": size,
            "dtype": dtype,
            "made_on": dict(made_on),
        }
    )


def base_key(model: str) -> str:
    """Key of the empty edit: the unedited model is the same for every request, so its images are made once."""
    return digest({"stage": "edit", "method": None, "model": model})


TEXT_BATCH = 8
"""Prompts are always encoded this many at a time."""


def images_key(edit: str, *, sampler: Mapping[str, Any], batch: int, dtype: str, made_on: Mapping[str, Any]) -> str:
    """Key of a growing folder of images: all that their bits depend on, but the prompt and seed of each.

    `batch` is the fixed batch shape and `made_on` is `device.setting()`: kernels differ with both.
    """
    shape = {"batch": batch, "texts": TEXT_BATCH, "dtype": dtype, "made_on": dict(made_on)}
    return digest({"stage": "images", "edit": edit, "sampler": dict(sampler), **shape})


def shard_name(items: Sequence[tuple[str, int]]) -> str:
    """Name of one batch of images within its folder, from its `(prompt, seed)` pairs in order."""
    return digest([[prompt, seed] for prompt, seed in items])


def raw_key(images: str, shard: str, *, evaluator: str, weights: str) -> str:
    """Key of an evaluator's raw outputs for one shard; `weights` is the hash of the evaluator's weights."""
    return digest({"stage": "raw", "images": images, "shard": shard, "evaluator": evaluator, "weights": weights})


def pixel_hash(image: NDArray[np.uint8]) -> str:
    """SHA-256 of an image's shape and pixels."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def items_json(entries: Sequence[tuple[str, int, str]]) -> bytes:
    """`items.json` of a shard, from `(prompt, seed, SHA-256 of the image)`, in the order of the images."""
    listed = [{"prompt": prompt, "seed": seed, "sha256": sha256} for prompt, seed, sha256 in entries]
    return canonical(listed).encode() + b"\n"


def parse_items(content: bytes) -> list[dict[str, Any]]:
    """The entries of `items.json`: `prompt`, `seed`, `sha256`. Damaged if it holds anything else."""
    try:
        found = parse_json(content)
        if all(isinstance(e, dict) and {k: type(v) for k, v in e.items()} == _ENTRY for e in found):
            return list(found)
        problem = "expected entries of prompt, seed and sha256"
    except (TypeError, ValueError) as error:
        problem = str(error)
    raise Damaged(f"items.json of some images cannot be read: {problem}; delete their folder and run again")


_ENTRY = {"prompt": str, "seed": int, "sha256": str}
