"""Concepts and datasets: what can be erased or kept, read from `datasets/<name>/{card.yaml,concepts.csv}`."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, ValidationError

from benchmark import paths
from benchmark.declared import Some, Strict, Tuple, read
from benchmark.errors import BadInput, did_you_mean
from benchmark.interface import Kind, Target

COLUMNS = ("name", "group", "kind", "synonyms", "anchor", "split", "weight")
Split = Literal["validation", "test"]
"""`validation`: presets may be chosen on it; `test`: never."""


class Card(Strict):
    """Where a dataset comes from, and what one may do with it."""

    title: str
    source: str
    licence: str
    citation: str
    get: str
    """How to get what is not shipped; for shipped lists, that nothing is needed."""
    notes: Tuple[str] = ()
    """Deviations and decisions of ours."""


@dataclass(frozen=True, kw_only=True)
class Concept:
    """Something to forget or to keep."""

    name: str
    groups: tuple[str, ...]
    kind: Kind
    synonyms: tuple[str, ...] = ()
    anchor: str = ""
    """What erased prompts should map to: a superclass or a neutral phrase."""
    split: Split = "test"
    weight: float = 1.0
    """How often the embedded model's training shows it, relative to the others."""

    def target(self) -> Target:
        """The concept as a method sees it."""
        return Target(name=self.name, kind=self.kind, anchor=self.anchor, synonyms=self.synonyms)


class Selector(Strict):
    """Concepts by group, kind, split or name; what is left out does not restrict."""

    group: str | None = None
    kind: Kind | None = None
    split: str | None = None
    names: Some[str] | None = None


class _Row(BaseModel):
    """A line of `concepts.csv`: texts, of which `weight` must read as a number."""

    name: str = Field(pattern=r"^\S(.*\S)?$")
    group: str
    kind: Kind
    synonyms: str
    anchor: str
    split: Split
    weight: float = Field(gt=0, allow_inf_nan=False)


@dataclass(frozen=True)
class Dataset:
    """A named list of concepts with its card."""

    name: str
    card: Card
    concepts: tuple[Concept, ...]

    def concept(self, name: str) -> Concept:
        """The concept of that name; `BadInput` with the nearest name otherwise."""
        for concept in self.concepts:
            if concept.name == name:
                return concept
        raise BadInput(did_you_mean(name, (c.name for c in self.concepts), f"concept of dataset {self.name}"))

    def select(self, selector: Selector) -> tuple[Concept, ...]:
        """The selected concepts, in the order of `names` or else of the dataset; `BadInput` if there are none."""
        self._check(selector.group, (g for c in self.concepts for g in c.groups), "group")
        self._check(selector.split, (c.split for c in self.concepts), "split")
        pool = self.concepts if selector.names is None else tuple(map(self.concept, selector.names))
        found = tuple(c for c in pool if _matches(c, selector))
        if not found:
            wanted = selector.model_dump(exclude_none=True)
            raise BadInput(f"no concept of dataset {self.name} has {wanted}")
        return found

    def _check(self, value: str | None, known: Iterable[str], what: str) -> None:
        names = set(known)
        if value is not None and value not in names:
            raise BadInput(did_you_mean(value, names, f"{what} of dataset {self.name}"))


def _matches(concept: Concept, selector: Selector) -> bool:
    return (
        (selector.group is None or selector.group in concept.groups)
        and (selector.kind is None or selector.kind == concept.kind)
        and (selector.split is None or selector.split == concept.split)
    )


def draw(concepts: Iterable[Concept], count: int, seed: int) -> tuple[Concept, ...]:
    """The first `count` concepts by SHA-256 of `<seed>|<name>`; a smaller draw is the start of a larger one."""
    pool = sorted(concepts, key=lambda c: hashlib.sha256(f"{seed}|{c.name}".encode()).hexdigest())
    if count > len(pool):
        raise BadInput(f"cannot draw {count} of {len(pool)} concepts")
    return tuple(pool[:count])


def names() -> list[str]:
    """The datasets that are there."""
    return sorted(p.parent.name for p in paths.datasets().glob("*/concepts.csv"))


def load(name: str) -> Dataset:
    """Read a dataset; `BadInput` for an unknown one or a malformed file."""
    if name not in names():
        raise BadInput(did_you_mean(name, names(), "dataset"))
    folder = paths.datasets() / name
    return Dataset(name, read(folder / "card.yaml", Card), concepts(folder / "concepts.csv"))


def concepts(path: Path) -> tuple[Concept, ...]:
    """Read a `concepts.csv`: the columns are `COLUMNS`; groups and synonyms are lists with `|` between."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if tuple(rows.fieldnames or ()) != COLUMNS:
            came = ",".join(rows.fieldnames or ())
            raise BadInput(f"{path}, line 1: expected the columns {','.join(COLUMNS)}, found {came or 'nothing'}")
        found = tuple(_concept(path, rows.line_num, row) for row in rows)
    _distinct(path, [c.name for c in found])
    return found


def _concept(path: Path, line: int, row: dict[str, str]) -> Concept:
    if None in row or None in row.values():
        raise BadInput(f"{path}, line {line}: expected {len(COLUMNS)} fields; quote a field that holds a comma")
    try:
        r = _Row.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"{path}, line {line}: {first['loc'][0]}: {first['msg']}, got {first['input']!r}") from None
    return Concept(
        name=r.name,
        groups=_list(r.group),
        kind=r.kind,
        synonyms=_list(r.synonyms),
        anchor=r.anchor,
        split=r.split,
        weight=r.weight,
    )


def _list(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split("|") if part)


def _distinct(path: Path, found: list[str]) -> None:
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice or not found:
        raise BadInput(f"{path}: " + (f"{twice[0]!r} is listed twice" if twice else "no concept in it"))
