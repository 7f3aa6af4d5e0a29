"""A small suite from nothing to its table: one process that loads each model once against a script for every stage.

The peer's way is `scripts`. Ours is `run`, as `erasure-bench run` calls it: edits, images, scores, records, board and
grids. Both start without any artifact; model, edits, prompts, seeds, steps and the metrics' networks are the same.
Start-up (interpreter and imports) is in the times of both; `ratio_without_startup` leaves it out of both.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any, final

from benchmark.perf import stage, suites
from benchmark.perf.bench import Bench, Did, Target, Trial, rounded
from benchmark.perf.rig import Rig, embedded
from benchmark.perf.scripts import Scripts
from benchmark.plan import make_plan

METHODS = ("none", "uce")


@final
class SuiteE2E(Bench):
    """Seconds a suite."""

    name = "suite_e2e"
    title = "a suite of two methods from nothing to its table"
    unit = "s"
    peer_way = (
        "a process for each edit, sampling and metric; models loaded anew, PNGs between (MACE 057e7a6, ESD 25613d2)"
    )
    targets = {"cpu": Target("≥ 3× cold", 3.0), "cuda": Target("≥ 6× cold", 6.0)}
    warm_up = False  # every turn starts processes of its own
    fewest = 2  # seven processes a turn, two minutes of them on a slow machine
    patience = 150.0

    @contextmanager
    def ready(self, rig: Rig, folder: Path) -> Iterator[Trial]:
        yield _Trial(embedded(rig), folder)


class _Trial(Trial):
    def __init__(self, rig: Rig, folder: Path) -> None:
        self.rig, self.out, self.scripts_folder = rig, folder / "ours", folder / "peer"
        templates = 2 if rig.small else suites.TEMPLATES
        self.suite = suites.celebrity(folder, steps=rig.steps, batch=rig.batch, templates=templates)
        self.plan = make_plan(str(self.suite), model=rig.named, methods=METHODS)

    def ours(self) -> Did:
        shutil.rmtree(self.out, ignore_errors=True)
        told = {"suite": str(self.suite), "methods": METHODS, "out": str(self.out), "lazy": False}
        return stage.together([stage.call("run", self.rig, self.out.parent, **told)])

    def peer(self) -> Did:
        shutil.rmtree(self.scripts_folder, ignore_errors=True)
        self.scripts = Scripts(self.plan, self.suite, self.rig, self.scripts_folder)
        return self.scripts.run(METHODS)

    def settings(self) -> dict[str, Any]:
        sampler = self.plan.form.sampler
        return {
            "model": self.rig.model,
            "methods": list(METHODS),
            "images": sum(len(cell.items) for cell in self.plan.cells),
            "steps": sampler.steps,
            "batch": {"ours": self.plan.batch, "peer": 1},
        }

    def checks(self) -> dict[str, Any]:
        """How far the two tables are apart."""
        apart = {metric: 0.0 for metric in ("class", "clip")}
        for cell in self.plan.cells:
            record = json.loads((self.out / "records" / f"{cell.slug}.json").read_text(encoding="utf-8"))
            values = record["rows"]["values"]
            for metric, protocol in (("class", "testbed/top1"), ("clip", "testbed-clip/score")):
                ours = fmean(v for v in values[protocol] if v is not None)
                apart[metric] = max(apart[metric], abs(ours - self.scripts.mean(cell.method.label, metric)))
        needed = sum(len(cell.items) for cell in self.plan.cells) * self.plan.form.sampler.forwards
        return {
            "accuracy_apart": rounded(apart["class"]),
            "clip_apart": rounded(apart["clip"]),
            "forwards_needed": needed,
        }
