"""A suite run by a chain of scripts, a process each, as the code of papers is used. No torch here.

MACE (commit 057e7a6) and ESD (25613d2) have one script that makes an edit, one that samples a CSV with it, and one
for each metric; each loads its models anew, and images pass between them as PNG files. In favour of this way: the
unedited model is sampled once, not once a method, and every script that is there needs no look-up by hand.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmark.perf import stage
from benchmark.perf.bench import Did
from benchmark.perf.rig import Rig
from benchmark.plan import Plan

METRICS = ("clip", "class")


class Scripts:
    """The chain for a plan's methods, in a folder of its own."""

    def __init__(self, plan: Plan, suite: Path, rig: Rig, folder: Path) -> None:
        self.suite, self.rig, self.folder = suite, rig, folder
        self.rows = [[i.prompt, i.seed, i.concept] for i in plan.cells[0].items]
        self.size = plan.form.sampler.size

    def run(self, methods: Sequence[str]) -> Did:
        """All stages of the methods, one after another."""
        return stage.together([did for method in methods for did in self._method(method)])

    def generate(self, method: str) -> Did:
        """A method's images alone; with its edit, where that was made."""
        place = self.folder / method
        weights, images = place / "edit.safetensors", place / "images"
        told = {"weights": str(weights) if weights.exists() else "", "rows": self.rows, "size": self.size}
        return stage.call("generate", self.rig, place, images=str(images), **told)

    def _method(self, method: str) -> list[Did]:
        place = self.folder / method
        weights, images = place / "edit.safetensors", place / "images"
        place.mkdir(parents=True, exist_ok=True)
        done = []
        if method != "none" and not weights.exists():
            told = {"suite": str(self.suite), "method": method, "weights": str(weights)}
            done.append(stage.call("edit", self.rig, place, **told))
        done.append(self.generate(method))
        for metric in METRICS:
            scores = str(place / f"{metric}-scores.json")
            done.append(
                stage.call("score", self.rig, place, rows=self.rows, images=str(images), metric=metric, scores=scores)
            )
        return done

    def mean(self, method: str, metric: str) -> float:
        """What the table at the end would say."""
        values = json.loads((self.folder / method / f"{metric}-scores.json").read_text(encoding="utf-8"))
        return float(sum(values) / len(values))
