"""How fast a device is asked to be: number format, and how kernels are launched. No torch: plans are keyed by it.

On a CPU nothing of this is used: float32, kernels one by one, layouts as they come. So its images keep their bits.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

from benchmark import device
from benchmark.device import Kind
from benchmark.errors import BadInput, did_you_mean
from benchmark.interface import Family

Launch = Literal["eager", "graph", "compile"]
Offload = Literal["none", "text", "blocks"]
"""What of a model is off the device while it does not work there: see `benchmark.backbones.placement`."""
EXACT, HALF = "float32", "bfloat16"
BFLOAT16 = (8, 0)
"""Compute capability from which NVIDIA's matrix units take bfloat16."""
OFFLOAD, CHECKPOINTING = "ERASURE_BENCH_OFFLOAD", "ERASURE_BENCH_CHECKPOINTING"
"""Environment variables: where a machine's weights lie is its own matter, and changes no bit of a result."""
GRAPH_FORWARDS = 200
"""Batched forwards from which recording a graph pays: it costs about five of them."""
COMPILE_IMAGES = 2000
"""Images of one shape from which compiled blocks pay: compiling takes a minute or so, and saves some hundredths of
each image (harness default)."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What is chosen for a run, and why."""

    kind: Kind
    dtype: str = EXACT
    """Of the model that makes images."""
    edits: str = EXACT
    """Of the model that methods work on."""
    launch: Launch = "eager"
    why: str = ""
    """Of `launch`."""
    offload: Offload = "none"
    """Of the model that makes images; methods work on one whose transformer stays on the device."""
    checkpointing: bool = False
    """Whether methods compute activations again instead of keeping them."""

    @property
    def separate(self) -> bool:
        """Whether images are made by another copy of the model than methods work on."""
        return self.dtype != self.edits or self.offload != self.edits_offload

    @property
    def edits_offload(self) -> Offload:
        """Of the model that methods work on: training with streamed blocks is not supported."""
        return "text" if self.offload == "blocks" else self.offload

    def keyed(self) -> dict[str, Any]:
        """What an image's key holds of it, beside `dtype`: compiled blocks round otherwise, graphs do not."""
        return {"launch": "compile"} if self.launch == "compile" else {}

    def told(self) -> dict[str, str]:
        """What a record's provenance says of it; nothing on a CPU, where nothing is chosen."""
        if self.kind == "cpu":
            return {}
        layout = {"memory_format": "channels_last", "attention": "scaled_dot_product"}
        if self.offload != "none":
            layout |= {"offload": self.offload, "edits_offload": self.edits_offload}
        if self.checkpointing:
            layout |= {"checkpointing": "edits"}
        return {**layout, "edits_dtype": self.edits, "launch": self.launch, "launch_why": self.why}


def choose(
    *,
    kind: Kind,
    family: Family,
    images: int,
    forwards: int,
    capability: tuple[int, int] | None,
    compiler: str | None,
    dtype: str | None = None,
    offload: Offload = "none",
    checkpointing: bool = False,
) -> Speed:
    """What a run is made with.

    `images` is how many the plan makes of its most frequent shape and `forwards` how many batches go through the
    denoiser for them, whatever the store has already, so that a run that is resumed or sharded chooses the same.
    `capability` is the GPU's, None if it is not known. `compiler` says what compiling lacks here, None if nothing.
    `dtype` is one that was asked for. `offload` and `checkpointing` are for flow transformers, the large ones; others
    stay as they are.
    """
    if kind == "cpu":
        return Speed(kind=kind, dtype=dtype or EXACT, edits=dtype or EXACT, why="a CPU launches kernels one by one")
    half = capability is not None and capability >= BFLOAT16
    made = dtype or (HALF if half else EXACT)
    # transformers of this family are published in bfloat16, and do not fit in float32
    edits = made if dtype or family == "transformer-flow" else EXACT
    if family != "transformer-flow":
        offload, checkpointing = "none", False
    launch, why = _launch(images, forwards, compiler, separate=edits != made)
    if offload == "blocks":
        launch, why = "eager", "blocks come to the device one at a time"
    return Speed(
        kind=kind, dtype=made, edits=edits, launch=launch, why=why, offload=offload, checkpointing=checkpointing
    )


def _launch(images: int, forwards: int, compiler: str | None, *, separate: bool) -> tuple[Launch, str]:
    if forwards < GRAPH_FORWARDS:
        return "eager", f"{forwards} batched forwards; recording a graph pays from {GRAPH_FORWARDS} on"
    graph = f"{forwards} batched forwards, from {GRAPH_FORWARDS} on"
    if images < COMPILE_IMAGES:
        return "graph", f"{graph}; compiling pays from {COMPILE_IMAGES} images of one shape on, here are {images}"
    if compiler is not None:
        return "graph", f"{graph}; compiling would pay, but {compiler}"
    if not separate:
        return "graph", f"{graph}; compiling would pay, but methods train the same model"
    return "compile", f"{images} images of one shape, from {COMPILE_IMAGES} on"


def asked_offload() -> Offload:
    """What `ERASURE_BENCH_OFFLOAD` says, `none` without it; BadInput for anything but an `Offload`."""
    said = os.environ.get(OFFLOAD, "none")
    for known in get_args(Offload):
        if said == known:
            found: Offload = known
            return found
    raise BadInput(did_you_mean(said, get_args(Offload), f"value of {OFFLOAD}"))


def asked_checkpointing() -> bool:
    """Whether `ERASURE_BENCH_CHECKPOINTING` is 1; BadInput for anything but 0 and 1."""
    said = os.environ.get(CHECKPOINTING, "0")
    if said not in ("0", "1"):
        raise BadInput(f"expected {CHECKPOINTING} to be 0 or 1, got {said!r}")
    return said == "1"


# --- what is here -----------------------------------------------------------------------------------------------------
@cache
def capability() -> tuple[int, int] | None:
    """The compute capability of the GPU in use, as its driver tells it; None on a CPU, or if it does not tell."""
    if device.kind() == "cpu":
        return None
    asked = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return least(told)


def least(told: str) -> tuple[int, int] | None:
    """The lowest of the capabilities that `nvidia-smi` tells, a line a card; None for what is none.

    >>> least("9.0\\n8.6\\n")
    (8, 6)
    >>> least("[N/A]")
    """
    try:
        found = [tuple(map(int, line.strip().split("."))) for line in told.splitlines() if line.strip()]
        (major, minor) = min(found)
    except ValueError:
        return None
    return major, minor


def compiler() -> str | None:
    """What compiling blocks for a GPU lacks here; None if nothing."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return "no C compiler is found"
    return None
