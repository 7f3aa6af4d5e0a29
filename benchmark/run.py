"""One plan from end to end: cells in order, then records, boards, grids and costs."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from benchmark import atomic, device, engines, keeping, keys, memory, needs, record
from benchmark.engines.base import Engine, Job, settings, supervise
from benchmark.errors import BadInput, BenchError, Damaged, Missing
from benchmark.fetch import enough, fetch
from benchmark.inert import lines, redacted
from benchmark.leases import Leases, file_time
from benchmark.plan import Cell, Pair, Plan, make_plan, missing
from benchmark.progress import Progress, Stage, terminal
from benchmark.store import Store
from benchmark.tables import board, grids
from benchmark.turns import patiently, take_turns
from benchmark.untrusted import parse_json, read_bytes
from benchmark.verify import SUMS, seal
from benchmark.worker import CellFailed, Spent, Worker, unique

T = TypeVar("T")
PARTIAL = 4
_LONGEST = 400  # characters of a reason
_FOLDERS = re.compile(r"(?<![\w/.:])/(?:[^\s/'\"]+/)+")
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")
_MADE = {"status", "reason", "protocols", "edit", "hashes", "rows", "summary"}
"""Fields of a record that the plan does not know."""
_LOOK_S = 2.0  # between two looks at how far the workers are
_SETTLED = ("schema", "suite", "suite_version", "form", "scale", "model", "method", "request", "sampler", "batch")
"""Fields of a record that tell the runs of one folder apart."""


class TooManyFailures(BenchError):
    """A run that was told to end at so many failed cells."""

    exit_code = PARTIAL


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
    workers: int | None = None
    """How many the executor starts; None is its own choice, see `engines.engine`."""
    ray_address: str | None = None
    """Of an existing cluster; None is one of this machine."""
    slurm: Mapping[str, Any] = field(default_factory=dict)
    """Submitit's parameters."""
    shard: tuple[int, int] | None = None
    """(i, n): only the i-th of n parts of the cells, from 1."""
    batch_size: int | None = None
    max_failures: int | None = None
    """So many failed cells end the run; None lets it go on to the last."""
    keep_images: str = "all"
    """Which images' pixels stay in the store: all, sample or none; see `benchmark.keeping`."""
    download: bool = False
    quiet: bool = False
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Fields of methods, by label."""
    passed: Mapping[str, Any] = field(default_factory=dict)
    """The arguments that were typed."""


def execute(options: RunOptions) -> int:
    """Run a suite; returns the exit code: 0, or 4 if some cells failed and the rest is valid."""
    plan = settled(options)
    engine = engines.engine(
        options.executor,
        workers=options.workers,
        cells=len(plan.cells),
        images=_light(plan, options),
        address=options.ray_address,
        slurm=options.slurm,
    )
    if options.download and enough(plan):
        fetch(plan)
        plan = settled(options)
    _check_there(plan)
    _prepare(options.out)
    with _runner(plan, options) as runner, runner.alone_with_plan():
        if engine is None:
            runner.work()
            return runner.finish()
        return runner.spread(engine)


def _light(plan: Plan, options: RunOptions) -> int:
    """How many images are still to be made by a model small enough for one a core; 0 for those that fill the memory."""
    if plan.form_name != "embedded":
        return 0
    drawn = Drawn(plan, _part(plan, options.shard))
    return drawn.whole - drawn.there(Store(options.store or options.out / "store", readonly=True))


def work(given: Mapping[str, Any]) -> int:
    """What a worker of an engine does: `given` is the payload of `_Runner.spread`; returns how many images it made.

    BadInput if this worker is not such that its records would be those of the others.
    """
    with _worker(given) as runner:
        _check_alike(Path(given["session"]), runner.provenance)
        runner.work()
        return runner.images_made


def conclude(given: Mapping[str, Any]) -> int:
    """The end of a run where the head is another kind of machine than its workers; returns the exit code."""
    with _worker(given) as runner:
        return runner.finish()


@contextmanager
def _runner(plan: Plan, options: RunOptions, since: int | None = None) -> Iterator[_Runner]:
    store, cells = Store(options.store or options.out / "store"), _part(plan, options.shard)
    with Progress(whole=sum(len(c.items) for c in cells if c.edit), quiet=options.quiet) as progress:
        yield _Runner(plan, store, options, progress, since)


@contextmanager
def _worker(given: Mapping[str, Any]) -> Iterator[_Runner]:
    options = _options(given["options"])
    if not options.out.is_dir():
        raise BadInput(f"{options.out} is not there: all workers must see the --out folder of the head")
    plan = settled(options)
    _check_there(plan)
    with _runner(plan, options, int(given["since"])) as runner:
        yield runner


def _part(plan: Plan, shard: tuple[int, int] | None) -> tuple[Cell, ...]:
    return plan.cells if shard is None else plan.cells[shard[0] - 1 :: shard[1]]


def _plain(options: RunOptions) -> dict[str, Any]:
    """Options as JSON values."""
    values = asdict(options)
    paths = {name: str(value.absolute()) for name in ("out", "store") if (value := values[name]) is not None}
    return {**values, **paths}


def _options(plain: Mapping[str, Any]) -> RunOptions:
    """The options of a worker: plain lines, nothing fetched, no engine of its own."""
    of = dict(plain)
    for name, make in (("out", Path), ("store", Path), ("methods", tuple), ("shard", tuple)):
        of[name] = None if of[name] is None else make(of[name])
    return RunOptions(**{**of, "quiet": True, "download": False})


def _check_alike(session: Path, provenance: record.Provenance) -> None:
    """The first worker says what it is, the others must be the same: code, packages, device class, threads."""
    mine, path = provenance.model_dump(mode="json"), session / "provenance.json"
    with Leases(session / "leases").wait("provenance"):
        if not path.exists():
            atomic.write(path, json.dumps(mine))
        first = json.loads(path.read_bytes())
    if different := [f"{name} {first[name]!r} and {mine[name]!r}" for name in mine if first[name] != mine[name]]:
        raise BadInput(
            f"workers are of two kinds, so their records would be: {'; '.join(different)}. "
            "Place them on one kind of machine, with one installation"
        )


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
    if wrong := needs.misfits(plan.form):
        raise BadInput("\n  ".join([f"{plan.suite.name} would be judged by what does not know its concepts:", *wrong]))


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
            atomic.sweep(folder)
        atomic.sweep(out / "grids")
    except OSError as error:
        raise BadInput(f"--out: cannot write to {out}: {error.strerror or error}; name another folder") from None


class Drawn:
    """How many images of some cells there are; cells that share images are counted once. Counts folders, reads none."""

    def __init__(self, plan: Plan, cells: Sequence[Cell]) -> None:
        self._batch = plan.batch
        self._asked: dict[str, set[Pair]] = {}
        for cell in cells:
            if cell.images_key is not None:
                self._asked.setdefault(cell.images_key, set()).update((i.prompt, i.seed) for i in cell.items)
        self.whole = sum(map(len, self._asked.values()))

    def there(self, store: Store) -> int:
        """As batches may be partly filled, up to a batch too many of a cell until it is complete."""
        made = {key: len(store.children(keys.IMAGES, key)) for key in self._asked}
        return sum(min(made[key] * self._batch, len(asked)) for key, asked in self._asked.items())


class _Runner:
    """Runs cells one after another and writes what they leave; others may do the same with the same folders."""

    def __init__(
        self, plan: Plan, store: Store, options: RunOptions, progress: Progress, since: int | None = None
    ) -> None:
        """`since`, by the clock of the folder's file system: a record younger than that is of this run."""
        self.plan, self.store, self.options, self.progress = plan, store, options, progress
        self.cells = _part(plan, options.shard)
        keep = keeping.policy(options.keep_images)
        self.worker = Worker(plan, store, threads=device.threads(), say=progress.say, keep=keep, judging=True)
        self.claims = Leases(options.out / "log" / "leases")
        self.since = file_time(options.out / "log") if since is None else since
        self.images_made = 0
        self._places: dict[str, dict[Pair, tuple[str, int]]] = {}  # by cell, of those whose images are drawn
        self.started = time.perf_counter()
        self.begun = datetime.now(UTC).isoformat(timespec="seconds")
        self.id = uuid.uuid4().hex
        self.provenance = record.provenance(
            device_class=device_class(),
            threads=device.threads(),
            dtype=plan.dtype,
            precision={**device.precision(), **_driver(), **plan.speed.told()},
        )

    @contextmanager
    def alone_with_plan(self) -> Iterator[None]:
        """For a head: BadInput if a run of another plan is at work in the folder, whose records each would remove."""
        self._sweep()
        plan = f"run.{keys.digest([[c.slug, c.images_key] for c in self.plan.cells])}"
        if others := [claim for claim in self.claims.live() if claim.startswith("run.") and not claim.startswith(plan)]:
            raise BadInput(
                f"--out: {len(others)} runs with other settings are at work in {self.options.out}; "
                "name another folder, or wait for their end"
            )
        with self.claims.hold(plan, self.id):
            yield
        self._sweep()

    def _sweep(self) -> None:
        """Remove the claims of the dead, those of this run's end included."""
        self.claims.sweep()
        self.worker.leases.sweep()

    def work(self) -> None:
        """Bring all cells to their records, together with all other processes at the same."""
        by_name = {cell.slug: cell for cell in self.cells}
        take_turns(
            {name: partial(self.cell, cell) for name, cell in by_name.items()},
            self.worker.leases,
            done=lambda name: self._done_by_another(by_name[name]),
        )

    def spread(self, engine: Engine) -> int:
        """Have workers of an engine do it, then end the run; the exit code."""
        out, left = self.options.out.absolute(), list(self.cells)
        session = out / "log" / f"workers-{self.id[:8]}"
        session.mkdir()
        payload = {"options": _plain(self.options), "since": self.since, "session": str(session)}
        job = Job(
            entry="benchmark.run:work",
            payload=payload,
            folder=str(session),
            cwd=os.getcwd(),
            environment=settings(),
        )
        drawn = Drawn(self.plan, self.cells)
        before = drawn.there(self.worker.store)
        with engine:
            with self.progress.stage(f"{engine.workers} workers", drawn.whole - before) as stage:
                look = partial(self._look, left, lambda: drawn.there(self.worker.store) - before, stage)
                made = supervise(
                    engine, job, workers=engine.workers, say=self.progress.say, watch=_every(_LOOK_S, look)
                )
                look()
            self.images_made += sum(made)
            theirs = json.loads((session / "provenance.json").read_bytes())
            if theirs == self.provenance.model_dump(mode="json"):
                code = self.finish()
            else:  # keys of images are theirs, so grids must be drawn there
                end = replace(job, entry="benchmark.run:conclude")
                (code,) = supervise(engine, end, workers=1, say=self.progress.say)
                self._show(board.build(board.read_records(out)) if (out / "board.json").exists() else None)
        shutil.rmtree(session, ignore_errors=True)
        return int(code)

    def _look(self, left: list[Cell], made: Callable[[], int], stage: Stage) -> None:
        """Tell how far the workers are: images made, and cells that have their record, which leave `left`."""
        stage.advance(made() - stage.done)
        found = [cell for cell in left if self._younger(cell) and self._there(cell)]
        left[:] = [cell for cell in left if cell not in found]
        for cell in found:
            how = "failed" if self._failed(cell) else "done"
            self.progress.say(f"{how} {cell.method.label} {cell.request.name}")
        if found:
            self.progress.say(f"{len(self.cells) - len(left)} of {len(self.cells)} cells")

    def _younger(self, cell: Cell) -> bool:
        try:
            return self._record(cell).stat().st_mtime_ns > self.since
        except OSError:
            return False

    def _done_by_another(self, cell: Cell) -> bool:
        """Whether another process of this run has left the very record that this one would, or that it failed."""
        if not self._younger(cell):
            return False
        try:
            found = record.read(self._record(cell))
        except (BadInput, Damaged):
            return False
        asked = record.parse({**self._start(cell), "status": "ok", "reason": None})
        return found.model_dump(exclude=_MADE) == asked.model_dump(exclude=_MADE)

    def _start(self, cell: Cell) -> dict[str, Any]:
        passed, batch = dict(self.options.passed), self.worker.batch(cell)
        return {**record.start(self.plan, cell, self.provenance), "passed": passed, "batch": batch}

    def cell(self, cell: Cell) -> None:
        """Bring one cell to its record, whatever becomes of it; Busy where another process is at what it needs."""
        spent = Spent()
        values = self._start(cell)
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
        if values["status"] == "failed":
            self._check_failures()

    def _check_failures(self) -> None:
        """TooManyFailures if this run has as many failed cells by now as it was told to end at."""
        most = self.options.max_failures
        failed = [cell for cell in self.plan.cells if self._younger(cell) and self._failed(cell)] if most else []
        if most and len(failed) >= most:
            told = [f"{c.slug}: {record.read(self._record(c)).reason}" for c in failed]
            raise TooManyFailures(
                "\n  ".join([f"stopped at {len(failed)} failed cells (--max-failures {most})", *told])
                + "\nwhat is done is kept; the same command goes on, and tries the failed ones again"
            )

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
        self._errors(name, scored["rows"])
        edit = {"key": cell.edit.key, **{k: about[k] for k in ("hash", "notes", "counts")}}
        return {"protocols": worker.protocol_parts(), "edit": edit, **scored}

    def _errors(self, name: str, rows: Mapping[str, Any]) -> None:
        for protocol, reasons in rows.get("errors", {}).items():
            of = [reason for reason in reasons if reason]
            self.progress.say(f"{name}: {protocol} could not judge {len(of)} of {len(reasons)} images; {of[0]}")

    def _failure(self, cell: Cell, error: CellFailed) -> None:
        self.progress.say(f"failed {cell.method.label} {cell.request.name}: {error}")
        atomic.write(self._log(cell), lines(redacted("".join(traceback.format_exception(error)))))

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
            return PARTIAL if any(self._failed(cell) for cell in self.cells) else 0
        with self.claims.wait("board"):
            _keep_only({self._record(cell) for cell in self.plan.cells}, out / "records", "*.json")
            (out / SUMS).unlink(missing_ok=True)  # an earlier run's; until this one is sealed nothing is promised
            records = board.read_records(out)
            made = board.write(records, out)
            _keep_only(set(grids.draw(records, self._load, out)), out / "grids", "*.png")
            seal(out)
        self._write_costs()
        self._show(made)
        failed = sum(r["status"] == "failed" for r in records)  # those of other shards too
        if failed:
            print(f"{failed} cells failed; see {out / 'log'}", file=sys.stderr)
        return PARTIAL if failed else 0

    def _show(self, made: Any) -> None:
        if made is not None and not self.options.quiet:
            print(board.render(made, "term", width=_width(), colour=terminal(sys.stdout)))
            print(f"\nboard, records and image grids: {self.options.out}")

    def _failed(self, cell: Cell) -> bool:
        return bool(record.read(self._record(cell)).status == "failed")

    def _there(self, cell: Cell) -> bool:
        """Whether the cell's record is there; a shard may find those of an earlier run, or half of one."""
        asked = self._start(cell)
        try:
            found = json.loads(self._record(cell).read_bytes())
            return all(found[name] == asked[name] for name in _SETTLED)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _load(self, of: Mapping[str, Any], row: int) -> Any:
        """The image of a record's row, from the store; made anew if it is damaged there."""
        cell = self._cells[of["method"]["label"], of["request"]["name"]]
        pair = (of["rows"]["prompt"][row], of["rows"]["seed"][row])
        return self._mended(lambda: patiently(lambda: self._image(cell, pair), self.worker.leases))

    def _image(self, cell: Cell, pair: Pair) -> Any:
        if cell.slug not in self._places:
            self._places = {cell.slug: self._found(cell)}  # of one cell at a time: each has thousands
        shard, place = self._places[cell.slug][pair]
        try:
            return self.worker.picture(cell, pair, shard, place)
        except Damaged:
            self._places.clear()  # cells may share the shard that is now set aside
            raise

    def _found(self, cell: Cell) -> dict[Pair, tuple[str, int]]:
        """Shard and place of each image of a cell, those made anew that the store has lost."""
        spent = Spent()
        shards = self.worker.images(cell, Stage("grid", None, "images", time.monotonic), spent)
        if spent.images:
            self._spend(cell, spent)
        key = self.worker.key(cell)
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
        with self.claims.wait("costs"):
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
            atomic.write(path, redacted(json.dumps(costs, indent=1)) + "\n")

    def _taken(self) -> dict[str, Any]:
        return {
            "seconds": round(time.perf_counter() - self.started, 3),
            "peak_bytes": memory.overall(),
            "images_made": self.images_made,
        }

    def _told(self) -> dict[str, Any]:
        """What this invocation was told, given or defaulted, by which code, on what."""
        hidden = ("out", "store", "passed", "ray_address", "slurm")  # places and accounts
        told = {n: v for n, v in asdict(self.options).items() if n not in hidden}
        arguments = {**told, "suite": Path(self.options.suite).name, "model": Path(self.options.model).name}
        code = {"commit": self.provenance.commit, "dirty": self.provenance.dirty}
        passed = dict(self.options.passed)
        return {"arguments": arguments, "passed": passed, **code, "machine": _machine()}


def _every(seconds: float, look: Callable[[], None]) -> Callable[[], None]:
    """`look`, but not more often than that."""
    last = [time.monotonic()]

    def now_and_then() -> None:
        if time.monotonic() - last[0] >= seconds:
            look()
            last[0] = time.monotonic()

    return now_and_then


def _machine() -> dict[str, Any]:
    return {
        "device": device_class(),
        "cpu": device.processor(),
        "threads": device.threads(),
        "system": platform.system(),
        "release": platform.release(),
        "driver": device.driver(),
    }


def _costs(path: Path) -> dict[str, Any]:
    """An earlier `costs.json`; empty if there is none that can be read."""
    try:
        found = parse_json(read_bytes(path))
        cells, runs = found.get("cells", {}), found.get("runs", [])
        whole = all(isinstance(cell, dict) for cell in cells.values()) and all("id" in run for run in runs)
    except (AttributeError, BadInput, TypeError, ValueError):
        return {}
    return dict(found) if whole else {}


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
    text = _ADDRESS.sub("0x…", _FOLDERS.sub("", " ".join(redacted(str(error)).split())))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def device_class() -> str:
    """`cpu`, or the GPU's product name. Torch is asked only where a GPU driver is there."""
    if device.kind() == "cpu":
        return "cpu"
    import torch

    return torch.cuda.get_device_name(0)


def _driver() -> dict[str, str | None]:
    """The driver where images are made on a card: a newer one may bring other kernels."""
    return {} if device.kind() == "cpu" else {"driver": device.driver()}


def _width() -> int:
    import shutil

    return max(80, min(shutil.get_terminal_size((100, 24)).columns, 140))
