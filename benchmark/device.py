"""What the bits of edits and images depend on besides their inputs. No torch: plans are keyed by it."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import Any, Literal

from benchmark.errors import BadInput

THREADS = 2
"""Fixed, not one a core: sums over other numbers of threads end in other bits; boards shall be the same anywhere."""
LIBRARIES = ("torch", "diffusers", "transformers")

Kind = Literal["cpu", "cuda"]


def kind() -> Kind:
    """`cuda` where an NVIDIA driver shows a card that is not hidden, else `cpu`.

    Kernels differ between kinds, so their images are kept apart; cards of different models are told apart by the
    record's device class only.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    return "cuda" if Path("/dev/nvidiactl").exists() and not hidden else "cpu"


def threads() -> int:
    """Torch threads of this process: OMP_NUM_THREADS if set, else `THREADS`. BadInput for what is no number above 0."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told and not (told.isdecimal() and int(told) > 0):
        raise BadInput(f"OMP_NUM_THREADS: expected a whole number above 0, got {told!r}")
    return int(told) if told else THREADS


def setting() -> dict[str, Any]:
    """The part of the determinism contract that no input shows; artifacts made under another one are others."""
    versions = {name: _version(name) for name in LIBRARIES}
    return {"device": kind(), "threads": threads(), **versions}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
