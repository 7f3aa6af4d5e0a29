"""One plan from end to end: cells in order, then records, boards, grids and costs."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from benchmark import device, keys, memory, record
from benchmark.errors import BadInput, Damaged, Missing
from benchmark.fetch import enough, fetch
from benchmark.plan import Cell, Pair, Plan, make_plan, missing
from benchmark.progress import Progress, Stage
from benchmark.store import Store
from benchmark.tables import board, grids
from benchmark.verify import seal
from benchmark.worker import CellFailed, Spent, Worker, unique

T = TypeVar("T")
PARTIAL = 4
_LONGEST = 400  # characters of a reason
_FOLDERS = re.compile(r"(?<![\w/.:])/(?:[^\s/'\"]+/)+")
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")
_SETTLED = ("schema", "suite", "suite_version", "form", "scale", "model", "method", "request", "sampler", "batch")
"""Fields of a record that tell the runs of one folder apart."""


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
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Fields of methods, by label."""
    passed: Mapping[str, Any] = field(default_factory=dict)
    """The arguments that were typed."""


def execute(options: RunOptions) -> int:
    """Run a suite; returns the exit code: 0, or 4 if some cells failed and the rest is valid."""
    if options.executor != "local":
        raise BadInput(f"--executor: this version has local only, got {options.executor}; spread work with --shard i/n")
    plan = settled(options)
    if options.download and enough(plan):
        fetch(plan)
        plan = settled(options)
    _check_there(plan)
    _prepare(options.out)
    store = Store(options.store or options.out / "store")
    cells = plan.cells if options.shard is None else plan.cells[options.shard[0] - 1 :: options.shard[1]]
    with Progress(whole=sum(len(c.items) for c in cells if c.edit), quiet=options.quiet) as progress:
        runner = _Runner(plan, store, options, progress)
        for cell in cells:
            runner.cell(cell)
    return runner.finish()


def settled(options: RunOptions) -> Plan:
    """The plan of these options; its keys hold the model's hash, so it is made anew once weights have arrived."""
    return make_plan(
        options.suite,
        model=options.model,
        methods=options.methods,
        scale=options.scale,
        seed=options.seed,
        batch=options.batch_size,
        passed=options.fields,
    )


def _check_there(plan: Plan) -> None:
    lacks = missing(plan)
    if lacks:
        lines = [_lack(lack) for lack in lacks]
        raise Missing("\n  ".join([f"{plan.suite.name} on {plan.model.name} needs what is not here:", *lines]))


def _lack(lack: Mapping[str, Any]) -> str:
    size = f"; about {lack['size'] / 1e9:.2g} GB" if lack["size"] else ""
    licence = f"; licence {lack['licence']}" if lack["licence"] else ""
    return f"{lack['what']}; looked in {lack['where']}{size}{licence}"


def _prepare(out: Path) -> None:
    """Make the folder; whether it can be written is found out now, not after the work."""
    try:
        for folder in (out, out / "records", out / "log"):
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
    except OSError as error:
        raise BadInput(f"--out: cannot write to {out}: {error.strerror or error}; name another folder") from None


class _Runner:
    """Runs cells one after another and writes what they leave."""

    def __init__(self, plan: Plan, store: Store, options: RunOptions, progress: Progress) -> None:
        self.plan, self.store, self.options, self.progress = plan, store, options, progress
        self.worker = Worker(plan, store, threads=device.threads(), say=progress.say)
        self.failed: list[str] = []
        self.images_made = 0
        self._places: dict[str, dict[Pair, tuple[str, int]]] = {}  # by cell, of those whose images are drawn
        self.started = time.perf_counter()
        self.begun = datetime.now(UTC).isoformat(timespec="seconds")
        self.id = uuid.uuid4().hex
        self.provenance = record.provenance(
            device_class=device_class(), threads=device.threads(), dtype=plan.dtype, precision=device.precision()
        )

    def cell(self, cell: Cell) -> None:
        """Bring one cell to its record, whatever becomes of it."""
        spent = Spent()
        values = {**record.start(self.plan, cell, self.provenance), "passed": dict(self.options.passed)}
        try:
            if cell.edit is not None:
                values |= self._mended(lambda: self._stages(cell, spent))
                values["hashes"] = record.hashes(values["rows"])
            self._log(cell).unlink(missing_ok=True)
        except CellFailed as error:
            values |= {"status": "failed", "reason": told(error)}
            self._failure(cell, error)
        finally:
            self._spend(cell, spent)
        record.write(self._record(cell), record.parse(values))

    def _mended(self, work: Callable[[], T]) -> T:
        """Do the work; what it finds damaged the store sets aside, so that doing it again makes that anew.

        Damaged if the same thing is damaged once more: then it is not the artifact.
        """
        seen: set[str] = set()
        while True:
            try:
                return work()
            except Damaged as error:
                what = str(error).partition("; ")[0]  # the rest says where this one was set aside
                if what in seen:
                    raise
                seen.add(what)
                self.progress.say(str(error))

    def _record(self, cell: Cell) -> Path:
        return self.options.out / "records" / f"{cell.slug}.json"

    def _log(self, cell: Cell) -> Path:
        return self.options.out / "log" / f"{cell.slug}.txt"

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
        self._log(cell).write_text("".join(traceback.format_exception(error)), encoding="utf-8")

    def finish(self) -> int:
        """Boards, grids and costs of all cells of the plan; with shards, once the last one has left its records."""
        out = self.options.out
        absent = [cell for cell in self.plan.cells if not self._there(cell)]
        if absent:
            self._write_costs()
            print(
                f"{len(absent)} of {len(self.plan.cells)} cells belong to other shards and are not there yet; no board",
                file=sys.stderr,
            )
            return PARTIAL if self.failed else 0
        _keep_only({self._record(cell) for cell in self.plan.cells}, out / "records", "*.json")
        records = board.read_records(out)
        made = board.write(records, out)
        _keep_only(set(grids.draw(records, self._load, out)), out / "grids", "*.png")
        seal(out)
        self._write_costs()
        if not self.options.quiet:
            print(board.render(made, "term", width=_width(), colour=sys.stdout.isatty()))
            print(f"\nboard, records and image grids: {out}")
        failed = sum(r["status"] == "failed" for r in records)  # those of other shards too
        if failed:
            print(f"{failed} cells failed; see {out / 'log'}", file=sys.stderr)
        return PARTIAL if failed else 0

    def _there(self, cell: Cell) -> bool:
        """Whether the cell's record is there; a shard may find those of an earlier run, or half of one."""
        asked = record.start(self.plan, cell, self.provenance)
        try:
            found = json.loads(self._record(cell).read_bytes())
            return all(found[name] == asked[name] for name in _SETTLED)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _load(self, of: Mapping[str, Any], row: int) -> Any:
        """The image of a record's row, from the store; made anew if it is damaged there."""
        cell = self._cells[of["method"]["label"], of["request"]["name"]]
        return self._mended(lambda: self._image(cell, (of["rows"]["prompt"][row], of["rows"]["seed"][row])))

    def _image(self, cell: Cell, pair: Pair) -> Any:
        assert cell.images_key is not None
        if cell.slug not in self._places:
            self._places[cell.slug] = self._found(cell, cell.images_key)
        shard, place = self._places[cell.slug][pair]
        try:
            return self.worker.load_images(cell.images_key, shard)[place]
        except Damaged:
            self._places.clear()  # cells may share the shard that is now set aside
            raise

    def _found(self, cell: Cell, key: str) -> dict[Pair, tuple[str, int]]:
        """Shard and place of each image of a cell, those made anew that the store has lost."""
        spent = Spent()
        shards = self.worker.images(cell, Stage("grid", None, "images", time.monotonic), spent)
        if spent.images:
            self._spend(cell, spent)
        places = {shard: self.worker.pairs(key, shard) for shard in set(shards.values())}
        return {pair: (shard, places[shard].index(pair)) for pair, shard in shards.items()}

    @cached_property
    def _cells(self) -> dict[tuple[str, str], Cell]:
        return {(c.method.label, c.request.name): c for c in self.plan.cells}

    def _spend(self, cell: Cell, spent: Spent) -> None:
        """Note what a cell took; written at once, for the run may be stopped before its end."""
        new = {stage: took for stage, took in asdict(spent).items() if took}
        if new:
            self.images_made += spent.images.get("made", 0)
            self._write_costs(cell, new)

    def _write_costs(self, cell: Cell | None = None, new: Mapping[str, Any] | None = None) -> None:
        """Times and counts: what a cell took replaces what it took earlier, stage by stage.

        Of its images, those of a run that was stopped and of the one that went on are added up.
        """
        path = self.options.out / "costs.json"
        before = _costs(path)
        cells, runs = dict(before.get("cells", {})), [r for r in before.get("runs", []) if r["id"] != self.id]
        if cell is not None and new is not None:
            cells[cell.slug] = _merged(cells.get(cell.slug, {}), new, len(unique(iter(cell.items))))
        costs = {
            "schema": 1,
            "machine": _machine(),
            "last_run": self._taken(),
            "cells": {slug: cells[slug] for slug in sorted(cells)},
            "runs": [*runs, {"id": self.id, "started": self.begun, **self._taken(), **self._told()}],
        }
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        temporary.write_text(json.dumps(costs, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)

    def _taken(self) -> dict[str, Any]:
        return {
            "seconds": round(time.perf_counter() - self.started, 3),
            "peak_bytes": memory.overall(),
            "images_made": self.images_made,
        }

    def _told(self) -> dict[str, Any]:
        """What this invocation was told, given or defaulted, by which code, on what."""
        told = {n: v for n, v in asdict(self.options).items() if n not in ("out", "store", "passed")}
        arguments = {**told, "suite": Path(self.options.suite).name, "model": Path(self.options.model).name}
        code = {"commit": self.provenance.commit, "dirty": self.provenance.dirty}
        passed = dict(self.options.passed)
        return {"arguments": arguments, "passed": passed, **code, "machine": _machine()}


def _machine() -> dict[str, Any]:
    return {
        "device": device_class(),
        "cpu": _cpu_name(),
        "threads": device.threads(),
        "system": platform.system(),
        "release": platform.release(),
        "driver": device.driver(),
    }


def _costs(path: Path) -> dict[str, Any]:
    """An earlier `costs.json`; empty if there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _merged(before: Mapping[str, Any], new: Mapping[str, Any], whole: int) -> dict[str, Any]:
    earlier, now = before.get("images"), new.get("images")
    if earlier and now and now["made"] < whole:
        added = {name: now.get(name, 0) + earlier.get(name, 0) for name in {**earlier, **now}}
        peaks = [part["peak_bytes"] for part in (earlier, now) if "peak_bytes" in part]
        new = {**new, "images": added | ({"peak_bytes": max(peaks)} if peaks else {})}
    return {**before, **new}


def _keep_only(paths: set[Path], folder: Path, pattern: str) -> None:
    """What an earlier run with other methods or requests left goes out of the folder: its board is this run's."""
    for path in set(folder.glob(pattern)) - paths:
        path.unlink()


def told(error: BaseException) -> str:
    """An error as a record may hold it: one line, not endless, without folders and addresses of this machine."""
    text = _ADDRESS.sub("0x…", _FOLDERS.sub("", " ".join(str(error).split())))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


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


def _width() -> int:
    import shutil

    return max(80, min(shutil.get_terminal_size((100, 24)).columns, 140))
