"""Concepts and datasets: what can be erased or kept, read from `datasets/<name>/{card.yaml,concepts.csv}`.

A dataset may also hold `neighbours.json`: the nearest concepts of some, computed once and frozen.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from benchmark import paths
from benchmark.declared import Some, Strict, Tuple, read
from benchmark.errors import BadInput, did_you_mean
from benchmark.interface import Kind, Target
from benchmark.untrusted import parse_json, read_bytes

FROZEN = "neighbours.json"
"""File of a dataset's frozen neighbourhoods."""
COLUMNS = ("name", "group", "kind", "synonyms", "anchor", "split", "weight")
LABEL = "label"
"""A last column that real datasets may have."""
Split = Literal["validation", "test"]
"""`validation`: presets may be chosen on it; `test`: never."""


class DataFile(Strict):
    """A file, or a folder of images, that a dataset needs and that is not ours to ship."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """What suites call it; once in a dataset."""
    kind: Literal["prompts", "captions", "images", "labels", "splits"]
    """`prompts`: a CSV; `captions`: COCO's JSON; `images`: a folder; `labels`, `splits`: Oxford Flowers'
    MATLAB files."""
    file: str
    """Relative path, as in its hub repository or its publisher's archive."""
    licence: str
    hub: str = ""
    """Hub id of the dataset repository that holds it."""
    revision: str = ""
    """Commit of that repository."""
    url: str = ""
    """Where it lies if on no hub."""
    size: int | None = Field(None, gt=0)
    """Bytes, roughly; None: not recorded."""
    rows: int | None = Field(None, gt=0)
    """Prompts, images or labels in the published file, images that captions are of; None: not recorded."""
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """None: not recorded."""
    env: str = Field("", pattern=r"^(ERASURE_BENCH_[A-Z0-9_]+)?$")
    """Environment variable that names the file or folder itself."""
    by_hand: str = ""
    """What to do where one request to `url` does not give the file: `fetch` leaves it to you."""
    optional: bool = False
    """Whether a suite may use the dataset without it."""

    @model_validator(mode="after")
    def _can_be_found(self) -> Self:
        path = PurePosixPath(self.file)
        if path.is_absolute() or not path.parts or ".." in path.parts:
            raise ValueError(f"file: expected a path inside a folder, got {self.file!r}")
        if bool(self.hub) == bool(self.url):
            raise ValueError("expected one of hub and url")
        if bool(self.hub) != bool(re.fullmatch("[0-9a-f]{40}", self.revision)):
            raise ValueError("revision: expected the commit, 40 hexadecimal digits, with hub and only with it")
        if self.url and not self.url.startswith(("https://", "http://")):
            raise ValueError(f"url: expected http or https, got {self.url!r}")
        if self.kind == "images" and not self.by_hand:
            raise ValueError("by_hand: say how to get a folder of images")
        return self


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
    files: Tuple[DataFile] = ()
    """What is not shipped, with where it comes from."""

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        named = [file.name for file in self.files]
        if len(set(named)) < len(named):
            raise ValueError(f"files: expected different names, got {', '.join(named)}")
        return self


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
    label: str = ""
    """What classifiers and image folders call it (a synset, a class number), where that is not its name."""
    adjacent: tuple[str, ...] = ()
    """Its nearest concepts, nearest first, from `neighbours.json`; () where none are frozen."""

    def target(self) -> Target:
        """The concept as a method sees it."""
        return Target(
            name=self.name, kind=self.kind, anchor=self.anchor, synonyms=self.synonyms, adjacent=self.adjacent
        )


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
    label: str = ""


@dataclass(frozen=True)
class Dataset:
    """A named list of concepts with its card."""

    name: str
    card: Card
    concepts: tuple[Concept, ...]

    @property
    def neighbours(self) -> dict[str, tuple[str, ...]]:
        """Concept to its nearest, nearest first, for those that have frozen neighbourhoods."""
        return {c.name: c.adjacent for c in self.concepts if c.adjacent}

    def file(self, name: str) -> DataFile:
        """The file of that name that the card tells of; `BadInput` with the nearest name otherwise."""
        for file in self.card.files:
            if file.name == name:
                return file
        raise BadInput(did_you_mean(name, (f.name for f in self.card.files), f"file of dataset {self.name}"))

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
    return sorted(p.parent.name for p in paths.datasets().glob("*/card.yaml"))


def load(name: str) -> Dataset:
    """Read a dataset; `BadInput` for an unknown one or a malformed file."""
    if name not in names():
        raise BadInput(did_you_mean(name, names(), "dataset"))
    folder = paths.datasets() / name
    card = read(folder / "card.yaml", Card)
    found = _listed(folder / "concepts.csv", card)
    frozen = folder / FROZEN
    adjacent = neighbourhood(frozen, [c.name for c in found]).names() if frozen.is_file() else {}
    found = tuple(replace(c, adjacent=adjacent.get(c.name, ())) for c in found)
    return Dataset(name, card, found)


def _listed(path: Path, card: Card) -> tuple[Concept, ...]:
    if path.is_file():
        return concepts(path)
    if card.files:  # captions, say, which are of no concept
        return ()
    raise BadInput(f"{path}: expected this file, or files: in the card beside it")


def concepts(path: Path) -> tuple[Concept, ...]:
    """Read a `concepts.csv`: the columns are `COLUMNS`, and `LABEL` or not; `|` stands between groups and synonyms."""
    try:
        rows = csv.DictReader(io.StringIO(read_bytes(path).decode("utf-8"), newline=""), strict=True)
        if tuple(rows.fieldnames or ()) not in (COLUMNS, (*COLUMNS, LABEL)):
            came = ",".join(rows.fieldnames or ())
            raise BadInput(f"{path}, line 1: expected the columns {','.join(COLUMNS)}, found {came[:200] or 'nothing'}")
        found = tuple(_concept(path, rows.line_num, row) for row in rows)
    except (csv.Error, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not a CSV in UTF-8: {error}") from None
    _distinct(path, [c.name for c in found])
    return found


def _concept(path: Path, line: int, row: dict[str, str]) -> Concept:
    if None in row or None in row.values():
        fields = len(row.keys() - {None})
        raise BadInput(f"{path}, line {line}: expected {fields} fields; quote a field that holds a comma")
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
        label=r.label,
    )


def _list(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split("|") if part)


def _distinct(path: Path, found: list[str]) -> None:
    twice = sorted(name for name, count in Counter(found).items() if count > 1)
    if twice or not found:
        raise BadInput(f"{path}: " + (f"{twice[0]!r} is listed twice" if twice else "no concept in it"))


# --- neighbours -----------------------------------------------------------------------------------------------------
class Near(Strict):
    """One neighbour."""

    name: str
    similarity: float = Field(ge=-1, le=1)
    """Cosine of the two concepts' mean features."""


class Neighbourhood(Strict):
    """`neighbours.json`: the nearest concepts of a dataset's targets, and all that they follow from."""

    format: Literal[1] = Field(default=1, alias="schema")
    dataset: str
    model: str
    model_hash: str
    """Of the unedited model whose images were compared."""
    encoder: str
    encoder_hash: str
    top: int = Field(ge=1)
    settings: dict[str, Any]
    """How the images were made: prompts, seeds, sampler, machine."""
    among: Tuple[str]
    """The concepts compared, in the dataset's order."""
    neighbours: dict[str, Tuple[Near]]
    """Target to its `top` nearest, nearest first."""

    def names(self) -> dict[str, tuple[str, ...]]:
        """Target to the names of its nearest."""
        return {target: tuple(near.name for near in nearest) for target, nearest in self.neighbours.items()}


def neighbourhood(path: Path, known: Iterable[str]) -> Neighbourhood:
    """Read a `neighbours.json` whose concepts are all among `known`; `BadInput` for a malformed or an outdated one."""
    try:
        found = Neighbourhood.model_validate(parse_json(read_bytes(path)))
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"{path}: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}") from None
    except ValueError as error:
        raise BadInput(f"{path}: the file is not JSON: {error}") from None
    _consistent(path, found, set(known))
    return found


def _consistent(path: Path, found: Neighbourhood, known: set[str]) -> None:
    again = "; delete the file and compute it anew with `erasure-bench neighbours`"
    for target, nearest in found.names().items():
        for name in (target, *nearest):
            if name not in known:
                raise BadInput(f"{path}: {did_you_mean(name, known, 'concept')}{again}")
        if len({target, *nearest}) != 1 + found.top:
            raise BadInput(f"{path}: {target}: expected {found.top} different neighbours, got {list(nearest)}{again}")
