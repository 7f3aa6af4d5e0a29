"""All benches, or one of them, on this machine: run, collected, written."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmark import device
from benchmark.errors import BadInput, did_you_mean
from benchmark.perf import bench as benches
from benchmark.perf import table
from benchmark.perf.bench import Bench
from benchmark.perf.clock import load
from benchmark.perf.rig import Rig, here

LEAST = 5
"""Runs of which a median is reported."""


def known() -> list[Bench]:
    """All benches, in the order of the table."""
    from benchmark.perf.closed_form_edit import ClosedFormEdit
    from benchmark.perf.edit_swap import EditSwap
    from benchmark.perf.esd_precompute import EsdPrecompute
    from benchmark.perf.frechet_2048 import Frechet2048
    from benchmark.perf.gen_throughput import GenThroughput
    from benchmark.perf.io_overlap import IoOverlap
    from benchmark.perf.resume_noop import ResumeNoop
    from benchmark.perf.score_throughput import ScoreThroughput
    from benchmark.perf.shard_invariance import ShardInvariance
    from benchmark.perf.suite_e2e import SuiteE2E

    return [
        GenThroughput(),
        SuiteE2E(),
        ResumeNoop(),
        ScoreThroughput(),
        ClosedFormEdit(10, 100),
        ClosedFormEdit(100, 1000),
        EsdPrecompute(),
        EditSwap(),
        Frechet2048(),
        ShardInvariance(),
        IoOverlap(),
    ]


def chosen(only: str | None) -> list[Bench]:
    """The bench of a name, those of a family (`closed_form_edit`), or all; BadInput for another name."""
    everything = known()
    found = [b for b in everything if only is None or b.name == only or b.name.startswith(f"{only}_")]
    if not found:
        raise BadInput(did_you_mean(only or "", [b.name for b in everything], "bench"))
    return found


def measure(
    only: str | None = None,
    *,
    runs: int = LEAST,
    out: Path,
    rig: Rig | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Run benches and write `<out>/<device>.json` and `<out>/README.md`; returns the former."""
    if runs < 1:
        raise BadInput(f"--runs: expected at least 1, got {runs}")
    asked, rig = chosen(only), rig or here()
    found = {"schema": 1, "device": device_name(), "kind": rig.kind, "conditions": conditions(rig, runs), "benches": []}
    rig.prepare()
    order = [b.name for b in known()]
    path = out
    for one in asked:
        with tempfile.TemporaryDirectory(prefix=f"perf-{one.name}-") as folder:
            say(f"{one.name}: {one.title} …")
            made = benches.run(one, rig, Path(folder), runs)
        say(told(made))
        path = table.write(out, {**found, "benches": [made]}, order)  # at once: what is measured is kept
    return path


def told(entry: dict[str, Any]) -> str:
    """One line of what was found."""
    if "not_measured" in entry:
        return f"{entry['name']}: not measured: {entry['not_measured']}"
    ratio = f", {entry['ratio']:g}×" if entry["ratio"] is not None else ""
    met = {True: "met", False: "NOT MET", None: "no target"}[entry["met"]]
    noisy = ", noisy" if entry["noisy"] else ""
    sides = f"ours {entry['ours']:g}, usual way {entry['peer']:g} {entry['unit']}"
    return f"{entry['name']}: {sides}{ratio} ({entry['target']}: {met}{noisy})"


def device_name() -> str:
    """As in records: `cpu`, or the GPU's product name."""
    from benchmark.run import device_class

    return device_class()


def conditions(rig: Rig, runs: int) -> dict[str, Any]:
    """What the times depend on besides the code."""
    return {
        "cpu": device.processor(),
        "processors": os.cpu_count(),
        "threads": rig.threads,
        "system": f"{platform.system()} {platform.release()}",
        "driver": device.driver(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers", "numpy", "scipy")},
        "runs": runs,
        "load": load(),
        "date": datetime.now(UTC).date().isoformat(),
    }
