"""One plan from end to end: cells in order, then records, boards, grids and costs."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmark import device, keys, record
from benchmark.errors import BadInput, Missing
from benchmark.plan import Cell, Plan, make_plan, missing
from benchmark.progress import Progress
from benchmark.store import Store
from benchmark.tables import board, grids
from benchmark.verify import seal
from benchmark.worker import CellFailed, Spent, Worker

PARTIAL = 4
MOST_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What `erasure-bench run` was told."""

    suite: str
    model: str = "testbed"
    methods: tuple[str, ...] | None = None
    scale: float = 1.0
    out: Path
    store: Path | None = None
    seed: int = 0
    executor: str = "local"
    shard: tuple[int, int] | None = None
    """(i, n): only the i-th of n parts of the cells, from 1."""
    batch_size: int | None = None
    download: bool = False
    quiet: bool = False
    passed: Mapping[str, Any] = field(default_factory=dict)
    """The arguments that were typed."""


def execute(options: RunOptions) -> int:
    """Run a suite; returns the exit code: 0, or 4 if some cells failed and the rest is valid."""
    if options.executor != "local":
        raise BadInput(f"--executor: this version has local only, got {options.executor}; spread work with --shard i/n")
    plan = make_plan(
        options.suite,
        model=options.model,
        methods=options.methods,
        scale=options.scale,
        seed=options.seed,
        batch=options.batch_size,
    )
    _check_there(plan)
    _prepare(options.out)
    store = Store(options.store or options.out / "store")
    cells = plan.cells if options.shard is None else plan.cells[options.shard[0] - 1 :: options.shard[1]]
    with Progress(whole=sum(len(c.items) for c in cells if c.edit), quiet=options.quiet) as progress:
        runner = _Runner(plan, store, options, progress)
        for cell in cells:
            runner.cell(cell)
    return runner.finish()


def _check_there(plan: Plan) -> None:
    lacks = missing(plan)
    if lacks:
        lines = [f"{lack['what']}; looked in {lack['where']}" for lack in lacks]
        raise Missing("\n  ".join([f"{plan.suite.name} on {plan.model.name} needs what is not here:", *lines]))


def _prepare(out: Path) -> None:
    try:
        for name in ("records", "log"):
            (out / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out: cannot write to {out}: {error.strerror or error}; name another folder") from None


def threads() -> int:
    """Torch threads of this process: OMP_NUM_THREADS, else one a core up to 8. Part of the determinism contract."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdigit() and int(told) > 0 else min(os.cpu_count() or 1, MOST_THREADS)


class _Runner:
    """Runs cells one after another and writes what they leave."""

    def __init__(self, plan: Plan, store: Store, options: RunOptions, progress: Progress) -> None:
        self.plan, self.store, self.options, self.progress = plan, store, options, progress
        self.worker = Worker(plan, store, threads=threads(), say=progress.say)
        self.failed: list[str] = []
        self.costs: dict[str, Any] = {}
        self.started = time.perf_counter()
        self.provenance = record.provenance(device_class=device_class(), threads=threads(), dtype=plan.dtype)

    def cell(self, cell: Cell) -> None:
        """Bring one cell to its record, whatever becomes of it."""
        spent = Spent()
        values = {**record.start(self.plan, cell, self.provenance), "passed": dict(self.options.passed)}
        if cell.edit is not None:
            try:
                values |= self._stages(cell, spent)
            except CellFailed as error:
                values |= {"status": "failed", "reason": str(error)}
                self._failure(cell, error)
        record.write(self.options.out / "records" / f"{cell.slug}.json", record.parse(values))
        self.costs[cell.slug] = {k: v for k, v in asdict(spent).items() if v}

    def _stages(self, cell: Cell, spent: Spent) -> dict[str, Any]:
        name, worker = f"{cell.method.label} {cell.request.name}", self.worker
        assert cell.edit is not None
        if not cell.edit.empty and not self.store.has(keys.EDITS, cell.edit.key):
            with self.progress.stage(f"edit {name}", 1, "edits") as stage:
                worker.edit(cell.edit, spent)
                stage.advance()
        about = worker.edit(cell.edit, spent)
        with self.progress.stage(f"images {name}", len(cell.items)) as stage:
            shards = worker.images(cell, stage, spent)
        with self.progress.stage(f"scores {name}", len(cell.items), "scored") as stage:
            scored = worker.scores(cell, shards, stage, spent)
        edit = {"key": cell.edit.key, **{k: about[k] for k in ("hash", "notes", "counts")}}
        return {"protocols": worker.protocol_parts(), "edit": edit, **scored}

    def _failure(self, cell: Cell, error: CellFailed) -> None:
        self.failed.append(cell.slug)
        self.progress.say(f"failed {cell.method.label} {cell.request.name}: {error}")
        log = self.options.out / "log" / f"{cell.slug}.txt"
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")

    def finish(self) -> int:
        """Boards, grids and costs of all cells of the plan; with shards, once the last one has left its records."""
        self._write_costs()
        out = self.options.out
        paths = [out / "records" / f"{cell.slug}.json" for cell in self.plan.cells]
        absent = [p.name for p in paths if not p.is_file()]
        if absent:
            print(
                f"{len(absent)} of {len(paths)} cells belong to other shards and are not there yet; no board",
                file=sys.stderr,
            )
            return PARTIAL if self.failed else 0
        self._drop_others(paths)
        records = board.read_records(out)
        made = board.write(records, out)
        grids.draw(records, self._load, out)
        seal(out)
        if not self.options.quiet:
            print(board.render(made, "term", width=_width(), colour=sys.stdout.isatty()))
            print(f"\nboard, records and image grids: {out}")
        if self.failed:
            print(f"{len(self.failed)} cells failed; see {out / 'log'}", file=sys.stderr)
        return PARTIAL if self.failed else 0

    def _drop_others(self, paths: Sequence[Path]) -> None:
        """Records of an earlier run with other methods or requests leave the folder: the board is this run's."""
        for path in set((self.options.out / "records").glob("*.json")) - set(paths):
            path.unlink()

    def _load(self, of: Mapping[str, Any], row: int) -> Any:
        """The image of a record's row, from the store."""
        cell = self._by_slug[of["method"]["label"], of["request"]["name"]]
        assert cell.images_key is not None
        pair = (of["rows"]["prompt"][row], of["rows"]["seed"][row])
        if cell.images_key not in self._shards:
            self._shards[cell.images_key] = self._index(cell.images_key)
        shard, place = self._shards[cell.images_key][pair]
        return self.worker.load_images(cell.images_key, shard)[place]

    def _index(self, key: str) -> dict[tuple[str, int], tuple[str, int]]:
        index: dict[tuple[str, int], tuple[str, int]] = {}
        for shard in self.store.children(keys.IMAGES, key):
            listed = keys.parse_items(self.store.read(keys.IMAGES, key, shard, file="items.json"))
            index |= {(e["prompt"], e["seed"]): (shard, i) for i, e in enumerate(listed)}
        return index

    @property
    def _by_slug(self) -> dict[tuple[str, str], Cell]:
        return {(c.method.label, c.request.name): c for c in self.plan.cells}

    @property
    def _shards(self) -> dict[str, dict[tuple[str, int], tuple[str, int]]]:
        return self.__dict__.setdefault("_shard_index", {})  # type: ignore[no-any-return]

    def _write_costs(self) -> None:
        """Times and counts: those of this run replace a cell's earlier ones stage by stage, where it did anything."""
        path = self.options.out / "costs.json"
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            cells = dict(before["cells"])
        except (OSError, ValueError, KeyError, TypeError):
            cells = {}
        for slug, spent in self.costs.items():
            cells[slug] = {**cells.get(slug, {}), **spent}
        costs = {
            "schema": 1,
            "machine": {
                "device": device_class(),
                "cpu": _cpu_name(),
                "threads": threads(),
                "system": platform.system(),
            },
            "last_run": {
                "seconds": round(time.perf_counter() - self.started, 3),
                "peak_bytes": _peak_bytes(),
                "images_made": sum(s.get("images", {}).get("made", 0) for s in self.costs.values()),
            },
            "cells": {slug: cells[slug] for slug in sorted(cells)},
        }
        path.write_text(json.dumps(costs, indent=1) + "\n", encoding="utf-8")


def device_class() -> str:
    """`cpu`, or the GPU's product name. Torch is asked only where a GPU driver is there."""
    if device.kind() == "cpu":
        return "cpu"
    import torch

    return torch.cuda.get_device_name(0)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _peak_bytes() -> int:
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _width() -> int:
    import shutil

    return max(80, min(shutil.get_terminal_size((100, 24)).columns, 140))
