"""What the bits of edits and images depend on besides their inputs. No torch: plans are keyed by it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from functools import cache
from pathlib import Path
from typing import Any, Literal

from benchmark.errors import BadInput

THREADS = 1
"""Fixed, not one a core: sums over other numbers of threads end in other bits; boards shall be the same anywhere. One,
for a model this small is done sooner by two processes of one thread than by one of two, and threads that wait for each
other on a busy machine make it many times slower. A large model on a CPU wants more: OMP_NUM_THREADS."""
MOST_WORKERS = 4
"""Processes that a run on a CPU starts by itself, at the most: each loads torch and the model. Harness default."""
LIBRARIES = ("torch", "diffusers", "transformers")

Kind = Literal["cpu", "cuda"]


def kind() -> Kind:
    """`cuda` where an NVIDIA driver shows a card that is not hidden, else `cpu`.

    Kernels differ between kinds, so their images are kept apart; cards of different models are told apart by the
    record's device class only.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    return "cuda" if Path("/dev/nvidiactl").exists() and not hidden else "cpu"


def gpus() -> list[str]:
    """The cards that this process may use, as CUDA_VISIBLE_DEVICES names them; none on a CPU. No library is asked."""
    if kind() == "cpu":
        return []
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [name.strip() for name in told.split(",") if name.strip()]
    found = [path for path in Path("/dev").glob("nvidia*") if path.name.removeprefix("nvidia").isdecimal()]
    return [str(number) for number in range(len(found))]


def threads() -> int:
    """Torch threads of this process: OMP_NUM_THREADS if set, else `THREADS`. BadInput for what is no number above 0."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told and not (told.isdecimal() and int(told) > 0):
        raise BadInput(f"OMP_NUM_THREADS: expected a whole number above 0, got {told!r}")
    return int(told) if told else THREADS


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def setting() -> dict[str, Any]:
    """The part of the determinism contract that no input shows; artifacts made under another one are others."""
    versions = {name: _version(name) for name in LIBRARIES}
    return {"device": kind(), "threads": threads(), "layout": "channels_last", **versions}


def precision() -> dict[str, Any]:
    """What decides, beside the device class, how numbers are rounded: a CPU's widest vectors, a GPU's settings.

    None where it does not apply. On an accelerator torch is asked, and loaded for it.
    """
    if kind() == "cpu":
        return {"vectors": vectors(), **dict.fromkeys(_PRECISION)}
    import torch

    untyped: Any = torch  # its backends have no types
    cuda, cudnn = untyped.backends.cuda, untyped.backends.cudnn
    found = (
        bool(cuda.matmul.allow_tf32),
        bool(cudnn.allow_tf32),
        bool(cudnn.benchmark),
        bool(cudnn.deterministic),
        untyped.are_deterministic_algorithms_enabled(),
        bool(cuda.flash_sdp_enabled()),
        bool(cuda.mem_efficient_sdp_enabled()),
        str(untyped.version.cuda),
        str(cudnn.version()),
    )
    return {"vectors": None, **dict(zip(_PRECISION, found, strict=True))}


_PRECISION = (
    "tf32_matmul",
    "tf32_cudnn",
    "cudnn_benchmark",
    "cudnn_deterministic",
    "deterministic_algorithms",
    "flash_attention",
    "memory_efficient_attention",
    "cuda",
    "cudnn",
)


def vectors() -> str | None:
    """The widest vectors that torch's kernels use on this CPU, such as `avx512`; None if the system does not tell.

    Sums end in other bits with another width. ATEN_CPU_CAPABILITY chooses a smaller one.
    """
    if told := os.environ.get("ATEN_CPU_CAPABILITY"):
        return told
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return None
    known = {"avx512f": "avx512", "avx2": "avx2", "asimd": "asimd"}
    return next((name for flag, name in known.items() if flag in flags), None)


def processor() -> str:
    """The processor as its system names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def driver() -> str | None:
    """Version of the NVIDIA driver, None without one."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"Kernel Module(?: for \S+)?\s+(\d[\d.]+)", text)
    return found[1] if found else None


@cache
def _version(name: str) -> str | None:
    """Of an installed package, read once: every key of a plan asks for it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
