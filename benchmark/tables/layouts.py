"""How papers lay out their tables: declared in YAML beside the ledger, one file a paper."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from benchmark import paths
from benchmark.declared import Some, Strict, Tuple, read
from benchmark.errors import BadInput, did_you_mean
from benchmark.interface import Kind

Unit = Literal["percent", "fraction", "points", "count"]
Role = Literal["erased", "kept", "synonym", "adjacent", "general"]


class Measure(Strict):
    """Which number of a record a column takes: a headline, a protocol on one role, or a protocol as boards show it."""

    headline: str | None = None
    protocol: str | None = None
    role: Role | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.headline is None) == (self.protocol is None):
            raise ValueError("expected one of headline, protocol")
        if self.role is not None and self.protocol is None:
            raise ValueError("role goes with protocol")
        return self


class Column(Strict):
    """A metric. What is not declared is not shown: `recomputed` goes with scores that are made of other columns."""

    title: str
    metric: str
    unit: Unit
    better: Literal["up", "down"] | None = None
    digits: int = 1
    measured: Measure | None = None
    embedded: Measure | None = None
    recomputed: bool = False
    claimed: bool = True
    verdict: bool = True
    """Whether a measured number can be held against the claimed one at all."""


class Requests(Strict):
    """Which of a suite's requests a group averages over: all, those named, or those of one kind and number at once."""

    names: Tuple[str] = ()
    kind: Kind | None = None
    at_once: int | None = Field(default=None, ge=1)


class Place(Strict):
    """A table of a source, as the ledger names them."""

    source: str
    table: str


class Group(Strict):
    """Columns of one setting, such as a class or a number of people. Without `paper` nothing here can measure it."""

    title: str
    suite: str
    """Of the claims; also the suite that measures it, unless the table names `suites`."""
    concept: str = ""
    claims: Tuple[Place] = ()
    """Where the claims stand, if not where the table's do."""
    suites: Tuple[str] = ()
    """Suites whose records are put together, if not `suite`."""
    paper: Requests | None = None
    embedded: Requests | None = None
    columns: Tuple[str] = ()
    """Titles of the table's columns that this group has; all if left out."""


class Line(Strict):
    """A row: its name in the ledger, and which of our methods is the same thing (the first that has records)."""

    claimed: str
    methods: Tuple[str] = ()
    model: str = ""
    """Of the claim, where it is not the table's."""


class Table(Strict):
    """One table of a paper."""

    id: str
    title: str
    claims: Some[Place]
    model: str
    """The model that the claims were made on, and that measured records must be of."""
    columns: Some[Column]
    groups: Some[Group]
    rows: Some[Line]
    notes: Tuple[str] = ()

    @model_validator(mode="after")
    def _known_columns(self) -> Self:
        titles = [c.title for c in self.columns]
        for group in self.groups:
            for name in group.columns:
                if name not in titles:
                    raise ValueError(did_you_mean(name, titles, "column"))
        return self

    def columns_of(self, group: Group) -> list[Column]:
        return [c for c in self.columns if not group.columns or c.title in group.columns]


class Layout(Strict):
    """All tables of a paper."""

    name: str
    title: str
    notes: Tuple[str] = ()
    tables: Some[Table]


def folder() -> Path:
    return paths.reported() / "layouts"


def names() -> list[str]:
    """Papers that have a layout."""
    return sorted(p.stem for p in folder().glob("*.yaml"))


def load(name: str) -> Layout:
    """A paper's layout; BadInput with a suggestion if there is none, or with file and line where it goes wrong."""
    if name not in names():
        raise BadInput(did_you_mean(name, names(), "paper"))
    return read(folder() / f"{name}.yaml", Layout, name=name)
