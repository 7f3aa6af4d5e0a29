"""Artifacts of a store that no run rests on, and taking them away: `erasure-bench gc`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark import atomic, referenced
from benchmark.errors import BadInput
from benchmark.leases import Leases
from benchmark.referenced import Address, Referenced
from benchmark.store import Store

CLAIMS = "leases"
"""Folder of a store with the claims of processes at work; see the worker."""
DAY_S = 24 * 3600.0


@dataclass(frozen=True)
class Found:
    """Something that may go."""

    name: str
    """Its address, or a path for what was set aside or left over."""
    kind: str
    bytes: int
    days: float
    """Since it was written."""
    address: Address | None
    path: Path | None = None


@dataclass(frozen=True)
class Report:
    """What may go from a store, and why the rest stays."""

    store: Path
    runs: int
    unused: tuple[Found, ...]
    used: int
    """Artifacts that stay because a run rests on them, or may."""
    young: int
    """Artifacts in no record that stay because they were just made: a run may be at work on them."""
    open: dict[str, str]
    """Kinds of which all stay, and why."""

    @property
    def bytes(self) -> int:
        """What would be free."""
        return sum(found.bytes for found in self.unused)


def find(
    folders: Sequence[Path],
    store: Path | None = None,
    *,
    older_than: float = 7.0,
    only: Sequence[str] = (),
    now: Callable[[], float] = time.time,
) -> list[Report]:
    """What may go: artifacts in no record of these runs, `older_than` so many days; damaged ones of that age, and what
    dead writers left. `only` names kinds (`edits`, `images`, `raw`, `scores`, `journals`, `damaged`, `tmp`).

    `store` is the one that the runs share; without, each run has its own. BadInput for a folder that is no run, and
    where a process is at work in the store.
    """
    if older_than < 0:
        raise BadInput(f"--older-than: expected days, at least 0; got {older_than:g}")
    runs = referenced.runs(folders)
    records = referenced.read(runs)
    roots = [store] if store is not None else [run / "store" for run in runs if (run / "store").is_dir()]
    if not roots or not all(root.is_dir() for root in roots):
        raise BadInput(f"no store in {runs[0]}; name the one that the runs share with --store")
    return [
        _of(Store(root, readonly=True), records, len(runs), older_than, only, now()) for root in dict.fromkeys(roots)
    ]


def _of(store: Store, records: Sequence[Any], runs: int, older_than: float, only: Sequence[str], now: float) -> Report:
    if working := Leases(store.root / CLAIMS).live():
        raise BadInput(f"a run is at work in {store.root} ({len(working)} claims); try again when it has ended")
    used = referenced.referenced(records, store)
    unused, kept, young = [], 0, 0
    for address in store.addresses():
        size, written = store.weigh(*address)
        days = (now - written) / DAY_S
        if address in used:
            kept += 1
        elif days < older_than:
            young += 1
        elif not only or address[0] in only:
            unused.append(Found("/".join(address), address[0], size, round(days, 2), address))
    unused += [
        f for f in _left(store, now) if (f.kind == "tmp" or f.days >= older_than) and (not only or f.kind in only)
    ]
    return Report(store.root, runs, tuple(unused), kept, young, _open(used))


def _open(used: Referenced) -> dict[str, str]:
    return dict(sorted(used.open.items()))


def _left(store: Store, now: float) -> list[Found]:
    found = []
    for path in store.leftovers():
        files = [p for p in (path, *path.rglob("*")) if p.is_file()]
        days = round((now - path.stat().st_mtime) / DAY_S, 2)
        kind, size = path.parent.name, sum(p.stat().st_size for p in files)
        found.append(Found(f"{kind}/{path.name}", kind, size, days, None, path))
    return found


def delete(report: Report) -> int:
    """Take away what the report names; the bytes that are free now."""
    store, free = Store(report.store), 0
    for found in report.unused:
        if found.address is not None:
            store.remove(*found.address)
        elif found.path is not None:
            atomic.disk.remove(found.path)
        free += found.bytes
    return free


def lines(report: Report, *, deleted: bool) -> list[str]:
    """The report to be read: by kind, then what stays."""
    kinds = dict.fromkeys(found.kind for found in report.unused)
    did = "deleted" if deleted else "would delete"
    told = [_line(did, kind, [f for f in report.unused if f.kind == kind]) for kind in kinds]
    runs = "1 run" if report.runs == 1 else f"{report.runs} runs"
    stay = f"{report.used} artifacts stay for the records of {runs}"
    return [
        f"{report.store}: {did} {size(report.bytes)} in {len(report.unused)} artifacts",
        *told,
        f"  {stay}, and {report.young} in no record that are too young to tell",
        *(f"  all {kind} stay: {why}" for kind, why in report.open.items()),
        *([] if deleted or not report.unused else ["  nothing was deleted; --delete does it"]),
    ]


def _line(did: str, kind: str, found: Sequence[Found]) -> str:
    return f"  {did} {kind}: {len(found)}, {size(sum(f.bytes for f in found))}, from {found[0].name}"


def size(count: int) -> str:
    """Bytes to be read: `3.1 MB`."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"


def as_json(report: Report, *, deleted: bool) -> dict[str, Any]:
    """The report for programs."""
    return {
        "schema": 1,
        "store": str(report.store),
        "runs": report.runs,
        "bytes": report.bytes,
        "unused": [{"name": f.name, "kind": f.kind, "bytes": f.bytes, "days": f.days} for f in report.unused],
        "used": report.used,
        "young": report.young,
        "open": report.open,
        "deleted": deleted,
    }
