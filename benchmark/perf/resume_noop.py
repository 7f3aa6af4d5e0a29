"""The same command again: a suite that is complete, and one that was killed half-way.

The peer's way, as in MACE's sampling script (commit 057e7a6): the model is loaded, every row whose PNG is there is
passed over, then every metric's script scores all images again. It is given one method of the suite, ours all of them.
Ours is `run` in the same folder. No ratio is asked for, so the peer's way takes one turn. In the checks: seconds after
imports, and what a run that is killed with SIGKILL after half of its images has to make again.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from benchmark.perf import stage, suites
from benchmark.perf.bench import Bench, Did, Target, Trial, rounded
from benchmark.perf.clock import median
from benchmark.perf.rig import Rig, embedded
from benchmark.perf.scripts import Scripts
from benchmark.perf.suite_e2e import METHODS
from benchmark.plan import make_plan

BATCH = 4
_PATIENCE_S = 300.0


def _holds(entry: Mapping[str, Any]) -> bool:
    checks, counts = entry["checks"], entry["counts"]["ours"]
    again = checks["made_again_after_kill"] == 0 and checks["lost_with_kill_at_most"] <= BATCH
    nothing = counts["images_made"] == counts["model_loads"] == 0
    return bool(checks["seconds_after_imports"] < 1 and nothing and again)


@final
class ResumeNoop(Bench):
    """Seconds a rerun."""

    name = "resume_noop"
    title = "run a complete suite again"
    unit = "s"
    peer_way = "load the model, pass over PNGs that are there, score everything again (MACE 057e7a6)"
    targets = {
        kind: Target("under 1 s after imports, 0 images, a kill loses at most one batch", None, _holds)
        for kind in ("cpu", "cuda")
    }
    peer_once = True
    warm_up = False  # every turn starts processes of its own

    @contextmanager
    def ready(self, rig: Rig, folder: Path) -> Iterator[Trial]:
        yield _Trial(embedded(rig), folder)


class _Trial(Trial):
    def __init__(self, rig: Rig, folder: Path) -> None:
        self.rig, self.folder = rig, folder
        templates = 2 if rig.small else 1  # nothing of it is made in a turn
        self.suite = suites.celebrity(folder, steps=rig.steps, batch=min(BATCH, rig.batch), templates=templates)
        self.plan = make_plan(str(self.suite), model=rig.named, methods=METHODS)
        self.total = sum(len(cell.items) for cell in self.plan.cells)
        self.scripts = Scripts(self.plan, self.suite, rig, folder / "peer")
        self.after: list[float] = []
        whole = stage.start("run", rig, folder / "told", **self._told("whole", True))  # not timed: beside the others
        self.scripts.generate(METHODS[0])
        self.there = self._killed()
        stage.finished(whole, "run", folder / "told")

    def ours(self) -> Did:
        started = time.perf_counter()
        did = self._run("whole", lazy=True)
        self.after.append(time.perf_counter() - started - did.startup)
        return did

    def peer(self) -> Did:
        return self.scripts.run(METHODS[:1])

    def _told(self, name: str, lazy: bool) -> dict[str, Any]:
        return {"suite": str(self.suite), "methods": METHODS, "out": str(self.folder / name), "lazy": lazy}

    def _run(self, name: str, *, lazy: bool) -> Did:
        return stage.call("run", self.rig, self.folder, **self._told(name, lazy))

    def settings(self) -> dict[str, Any]:
        images = {"ours": self.total, "peer": len(self.plan.cells[0].items)}
        return {"model": self.rig.model, "images": images, "methods": {"ours": len(METHODS), "peer": 1}}

    def checks(self) -> dict[str, Any]:
        there, made = self.there, self._run("killed", lazy=False).work["images_made"]
        return {
            "seconds_after_imports": rounded(median(self.after)),
            "images_there_after_kill": there,
            "made_again_after_kill": made - (self.total - there),
            "lost_with_kill_at_most": self.plan.batch,
        }

    def _killed(self) -> int:
        """Images that are in the store after a run was killed once half of them were."""
        process = stage.start("run", self.rig, self.folder, **self._told("killed", False))
        deadline = time.monotonic() + _PATIENCE_S
        while self._stored() < self.total // 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return self._stored()

    def _stored(self) -> int:
        from benchmark.keys import parse_items

        shards = (self.folder / "killed" / "store" / "images").glob("*/*/items.json")
        return sum(len(parse_items(path.read_bytes())) for path in shards if (path.parent / "manifest.json").exists())
