"""Records → what the image explorer shows: the same prompt and seed in one row, a column for each method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmark.items import picked
from benchmark.metrics.balance import available
from benchmark.metrics.protocols import protocol
from benchmark.page import anchors
from benchmark.page.images import Sheets
from benchmark.page.runs import Run
from benchmark.tables.board import ORDER
from benchmark.tables.columns import Record, natural

Json = dict[str, Any]
EXPLICIT = "explicit"


class Item(NamedTuple):
    """One row of the explorer."""

    role: str
    concept: str
    prompt: str
    seed: int
    replicate: int


@dataclass(frozen=True)
class Column:
    """One method's images of a request."""

    id: str
    record: Record
    slug: str
    """Name of the record's file."""
    at: Sequence[int | None]
    """The record's row of each item; None where it has none."""


@dataclass(frozen=True)
class Group:
    """One request: its rows and columns, the unedited model first."""

    request: str
    items: Sequence[Item]
    columns: Sequence[Column]
    left_out: Mapping[str, int]
    """By role: how many rows are not shown."""

    @property
    def base(self) -> Column | None:
        """The unedited model's images."""
        return next((c for c in self.columns if c.record["method"]["role"] == "baseline"), None)

    @property
    def explicit(self) -> bool:
        """Whether its images are hidden until the reader asks for them."""
        return any(c.get("kind") == EXPLICIT for c in self.columns[0].record["request"]["erase"])


def groups(run: Run, limit: int) -> list[Group]:
    """The run's requests with images; of each role at most `limit` rows, spread evenly."""
    by_request: dict[str, list[tuple[Record, str]]] = {}
    for r, slug in run.named():
        if r["status"] == "ok":
            by_request.setdefault(r["request"]["name"], []).append((r, slug))
    return [_group(name, by_request[name], limit) for name in sorted(by_request, key=natural)]


def _group(request: str, named: Sequence[tuple[Record, str]], limit: int) -> Group:
    ordered = sorted(named, key=lambda n: _place(n[0]))
    indices = [_index(r) for r, _ in ordered]
    every = list(dict.fromkeys(item for index in indices for item in index))
    items = _thinned(every, limit)
    columns = [
        Column(anchors.column(r["method"]["label"], r["request"]["seed"]), r, slug, [index.get(i) for i in items])
        for (r, slug), index in zip(ordered, indices, strict=True)
    ]
    return Group(request, items, columns, _left_out(every, items))


def _place(r: Record) -> tuple[Any, ...]:
    return (ORDER.get(r["method"]["role"], 1), natural(r["method"]["label"]), r["request"]["seed"])


def _index(r: Record) -> dict[Item, int]:
    rows = r["rows"]
    columns = (rows[name] for name in ("role", "concept", "prompt", "seed", "replicate"))
    return {Item(*values): i for i, values in enumerate(zip(*columns, strict=True))}


def _thinned(items: Sequence[Item], limit: int) -> list[Item]:
    kept: list[Item] = []
    for role in dict.fromkeys(i.role for i in items):
        of_role = [i for i in items if i.role == role]
        share = min(1.0, limit / len(of_role))
        kept += [item for place, item in enumerate(of_role) if share == 1 or picked(place, share)]
    return kept


def _left_out(every: Sequence[Item], kept: Sequence[Item]) -> dict[str, int]:
    left = {role: sum(i.role == role for i in every) for role in dict.fromkeys(i.role for i in every)}
    for item in kept:
        left[item.role] -= 1
    return {role: n for role, n in left.items() if n}


def digests(group: Group) -> list[list[str]]:
    """The hashes of each column's images, in the order of the rows."""
    return [[c.record["rows"]["image"][i] for i in c.at if i is not None] for c in group.columns]


# --- data -------------------------------------------------------------------------------------------------------------
def data(group: Group, sheets: Sheets, differ: Callable[[str, str], float | None], has: Callable[[str], bool]) -> Json:
    """What the page's script reads of one request; texts are listed once, and rows name them by their place."""
    texts = {name: list(dict.fromkeys(getattr(i, name) for i in group.items)) for name in ("role", "concept", "prompt")}
    place = {name: {text: n for n, text in enumerate(values)} for name, values in texts.items()}
    primary = group.columns[0].record["primary"]
    return {
        "request": group.request,
        "slug": anchors.slug(group.request),
        "explicit": group.explicit,
        "primary": primary,
        "decides": decides(primary),
        "erased": [c["name"] for c in group.columns[0].record["request"]["erase"]],
        "left_out": dict(group.left_out),
        "texts": texts,
        "rows": {name: [place[name][getattr(i, name)] for i in group.items] for name in texts}
        | {"seed": [str(i.seed) for i in group.items], "replicate": [i.replicate for i in group.items]}
        | {"key": [anchors.image(i.role, i.concept, i.prompt, i.seed) for i in group.items]},
        "columns": [_column(c, group.base, sheets, differ, has) for c in group.columns],
    }


def decides(primary: str) -> bool:
    """Whether a value of this protocol says that a concept is there (½ or more) or not: of rates, shares and counts."""
    return protocol(primary).measure in ("accuracy", "share", "count")


def _column(
    c: Column,
    base: Column | None,
    sheets: Sheets,
    differ: Callable[[str, str], float | None],
    has: Callable[[str], bool],
) -> Json:
    rows, method = c.record["rows"], c.record["method"]
    hashes = [None if i is None else rows["image"][i] for i in c.at]
    theirs = [None] * len(hashes) if base is None else [None if i is None else _image(base, i) for i in base.at]
    return {
        "id": c.id,
        "label": method["label"] + (f" seed {c.record['request']['seed']}" if c.record["request"]["seed"] else ""),
        "role": method["role"],
        "cell": anchors.slug(c.slug),
        "thumb": [-1 if h is None or not has(h) else sheets.number[h] for h in hashes],
        "valid": "".join("-" if i is None else "1" if rows["valid"][i] else "0" for i in c.at),
        "values": {p: [None if i is None else short(v[i]) for i in c.at] for p, v in sorted(rows["values"].items())},
        "difference": [
            None if a is None or b is None else short(differ(a, b)) for a, b in zip(hashes, theirs, strict=True)
        ],
    }


def _image(c: Column, row: int) -> str:
    return str(c.record["rows"]["image"][row])


def short(value: float | None) -> float | int | None:
    """To four digits, whole numbers as such: what a page shows, in few bytes."""
    if value is None or not available(value):
        return None
    rounded = float(f"{value:.4g}")
    return int(rounded) if rounded.is_integer() else rounded


def count(groups: Iterable[Group]) -> int:
    """Images shown: cells of the explorer that hold one."""
    return sum(i is not None for g in groups for c in g.columns for i in c.at)
