"""Judges whose weights are pickles: read as tensors alone, and only if their hash is known or somebody allowed them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

from benchmark.errors import BadInput, Damaged
from benchmark.metrics.evaluators import spec_of

ALLOW = "ERASURE_BENCH_ALLOW_PICKLE"
"""Environment variable: 1 allows pickles whose hash is not known here."""
PICKLE = "pytorch_model.bin"


def check(evaluator: str, folder: Path) -> None:
    """BadInput if the folder's weights are a pickle alone, which is neither known by its hash nor allowed."""
    if any(folder.glob("*.safetensors")) or not (folder / PICKLE).is_file():
        return
    known = any(PICKLE in weights.sha256 for weights in spec_of(evaluator).sources)  # compared before they are loaded
    if not known and os.environ.get(ALLOW) != "1":
        raise BadInput(
            f"evaluator {evaluator!r}: {folder / PICKLE} is a pickle; set {ALLOW}=1 to read its tensors (nothing in it "
            "is executed), or get model.safetensors"
        )


def tensors(path: Path) -> dict[str, Any]:
    """The tensors of a pickle; Damaged if it holds anything else. Nothing in it is executed."""
    import torch

    try:
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        first = next(iter(str(error).strip().split("\n")), "")
        raise Damaged(
            f"{path} cannot be read as tensors alone, and code in it is never run: {first}; get it again"
        ) from None
    return found
