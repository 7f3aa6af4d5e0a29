"""Where the time of a run goes, as text: by stage, by kind of operation, beside what the device could do at best."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmark import atomic, cost, run
from benchmark.perf import suites, table
from benchmark.perf.drawing import Drawing
from benchmark.perf.rig import Rig, embedded
from benchmark.perf.session import conditions, device_name

KINDS: Mapping[str, tuple[str, ...]] = {
    "convolutions": ("conv",),
    "attention": ("scaled_dot_product", "flash_attention", "efficient_attention", "_softmax"),
    "matrix products": ("addmm", "::mm", "bmm", "matmul", "linear", "gemm"),
    "normalisation": ("group_norm", "layer_norm", "GroupNorm", "LayerNorm"),
    "activations and sums": ("silu", "gelu", "::add", "::mul", "::sub", "::div", "sigmoid", "clamp", "round", "::pow"),
    "copies and layout": ("copy", "::cat", "contiguous", "clone", "upsample", "::to", "transpose", "view", "chunk"),
}
"""Kinds of operations by parts of their names, the first that fits."""
REST = "all else, Python between operations included"
STEPS, IMAGES = 10, 16
_SIDE, _TRIES = 1024, 10  # of the matrices by which the device's rate is measured


def write(out: Path, rig: Rig) -> Path:
    """Profile a small run on this machine into `<out>/<device>-profile.txt`, which is returned."""
    path = out / table.profile_of(device_name())
    atomic.write(path, "\n".join(report(rig)) + "\n")
    return path


def report(rig: Rig) -> list[str]:
    """The lines: a whole run by its stages, then images of one method by operations."""
    rig.prepare()
    c = conditions(rig, 1)
    threads = f"{rig.threads} thread{'s' * (rig.threads != 1)}"
    told = f"{device_name()}, {c['cpu']}, {threads}, torch {c['torch']}; load {c['load']}; {c['date']}"
    with tempfile.TemporaryDirectory(prefix="perf-profile-") as folder:
        return ["Profile of a run", told, "", *_stages(embedded(rig), Path(folder)), "", *_inside(rig, Path(folder))]


# --- by stage ---------------------------------------------------------------------------------------------------------
def _stages(rig: Rig, folder: Path) -> list[str]:
    suite = suites.celebrity(folder, steps=rig.steps, batch=rig.batch)
    methods, out = ("none", "uce"), folder / "run"
    started = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        run.execute(run.RunOptions(suite=str(suite), model=rig.named, methods=methods, out=out, quiet=True))
    whole = time.perf_counter() - started
    costs = json.loads((out / "costs.json").read_text(encoding="utf-8"))
    spent = dict.fromkeys(("images", "scores", "edits"), 0.0)
    for cell in costs["cells"].values():
        spent["images"] += cell.get("images", {}).get("seconds", 0.0)
        spent["scores"] += cell.get("scores", {}).get("seconds", 0.0)
        spent["edits"] += sum(edit["seconds"] for edit in cell.get("edit", {}).values())
    spent["models loaded, records, board, grids"] = whole - sum(spent.values())
    made = costs["last_run"]["images_made"]
    title = f"A whole run: {', '.join(methods)}, {made} images of {rig.steps} steps, {whole:.2f} s"
    return [title, *_shares(spent, whole)]


# --- inside the images ------------------------------------------------------------------------------------------------
def _inside(rig: Rig, folder: Path) -> list[str]:
    drawing = Drawing(rig, folder)
    drawing.turn()  # a warm-up
    started = time.perf_counter()
    work = drawing.turn().work
    plain = time.perf_counter() - started
    spent = _operations(drawing, rig)
    known = sum(spent.values())
    spent[REST] = max(0.0, plain - known)
    images = len(drawing.items)
    lines = [f"Images of one method: {images} of {rig.steps} steps at batch {rig.batch}, {plain:.2f} s"]
    lines += _shares(spent, max(plain, known))
    return [*lines, "", *_account(rig, drawing, work, plain)]


def _operations(drawing: Drawing, rig: Rig) -> dict[str, float]:
    """Seconds in each kind of operation: of the CPU, or of the GPU's kernels."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = rig.kind == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as found:
        drawing.turn()
    rows: Iterable[Any] = found.key_averages()
    field = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    spent: dict[str, float] = {}
    for row in rows:
        spent[kind(row.key)] = spent.get(kind(row.key), 0.0) + getattr(row, field) / 1e6
    return spent


def kind(operation: str) -> str:
    """The kind of an operation by its name.

    >>> kind("aten::mkldnn_convolution")
    'convolutions'
    >>> kind("aten::native_group_norm")
    'normalisation'
    """
    return next((name for name, parts in KINDS.items() if any(part in operation for part in parts)), "other operations")


def _account(rig: Rig, drawing: Drawing, work: Mapping[str, float], seconds: float) -> list[str]:
    """What stands between the time and the best that the device does, in sentences with the numbers of this run."""
    found = cost.flops(rig.model, drawing.size) if rig.model != "sd-size" else cost.flops("sd14", drawing.size)
    assert found is not None  # models that are rigged here are known
    total = work["denoiser_forwards"] * found.forward + work["decodes"] * found.decode
    rate, dtype = _matrix_rate(rig), getattr(torch, rig.dtype)
    needed = len(drawing.items) * rig.steps * 2
    least = total / rate
    return [
        "What the device could do at best",
        f"  {total:.4g} operations: {work['denoiser_forwards']:.0f} forwards, {work['decodes']:.0f} decodes",
        f"  {rate / 1e9:.4g} GFLOP/s: products of {_SIDE}×{_SIDE} matrices in {dtype}, measured now",
        f"  {least:.2f} s at that rate; {100 * least / seconds:.0f} % of the time that was taken",
        f"  {work['denoiser_forwards'] / needed:.2f} forwards executed for each that is needed",
        "",
        "Why it cannot go lower without other images",
        "  Every forward is needed: steps and guidance are the suite's; an edit of cross-attention acts from the first",
        "  step on, with and without the prompt, so methods share no step with each other or with the unedited model.",
        "  What does not change is done once: distinct prompts, the empty one, keys and values of the text, images of",
        "  the unedited model. Batches are full. What is left beside matrix products and convolutions reads and writes",
        "  memory; fusing it (compiled blocks), another number format, a cache of features or fewer steps would be",
        "  faster, and would round or draw otherwise: such images are other images and have other keys.",
    ]


def _matrix_rate(rig: Rig) -> float:
    """Floating-point operations a second of a matrix product, the best of some tries."""
    a = torch.randn(_SIDE, _SIDE, dtype=getattr(torch, rig.dtype), device=rig.kind)
    best = float("inf")
    for _ in range(_TRIES):
        started = time.perf_counter()
        a @ a
        if rig.kind == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return float(2 * _SIDE**3 / best)


def _shares(spent: Mapping[str, float], whole: float) -> Sequence[str]:
    """Seconds and percent, the largest first."""
    longest = max(map(len, spent))
    ordered = sorted(spent.items(), key=lambda item: -item[1])
    return [f"  {name:<{longest}} {seconds:8.3f} s {100 * seconds / whole:5.1f} %" for name, seconds in ordered]
