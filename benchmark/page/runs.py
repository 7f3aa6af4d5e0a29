"""What the page shows: the runs' records, boards and costs, read from their folders. Nothing is written here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from benchmark import record
from benchmark.declared import dotted
from benchmark.errors import BadInput
from benchmark.page.anchors import slug
from benchmark.stats import Floats
from benchmark.store import Store
from benchmark.tables import board as boards
from benchmark.tables import written
from benchmark.tables.columns import Board, Record
from benchmark.untrusted import parse_json, read_bytes


@dataclass(frozen=True)
class Run:
    """One run: a suite on a model."""

    id: str
    """Name of its pages, such as `objects-testbed-v1`."""
    board: Board
    records: Sequence[Record] = ()
    """None where the folder holds a board alone."""
    files: Sequence[Path] = ()
    """The records' files, in the order of `records`."""
    costs: Mapping[str, Any] = field(default_factory=dict)
    """The cells of `costs.json`, by slug."""
    machine: Mapping[str, Any] = field(default_factory=dict)
    """Where it was timed, as `costs.json` says it."""
    store: Store | None = None
    draws: Mapping[str, Floats | None] = field(default_factory=dict)
    """By method: draws of the mean headline, as `boards.with_draws` gives them."""

    def named(self) -> list[tuple[Record, str]]:
        """The records, each with its cell's name, such as `esd.erase_bird.seed0`."""
        names = [file.name.removesuffix(record.PACKED).removesuffix(".json") for file in self.files]
        return list(zip(self.records, names, strict=True))

    @property
    def embedded(self) -> bool:
        """Whether its numbers come from the embedded model, and compare with no paper's."""
        return bool(self.board["form"] == "embedded")


def read_runs(folders: Sequence[Path], store: Path | None = None) -> list[Run]:
    """The runs of these folders, each the OUT of a run or a folder with its records or its board.

    `store` is where all their images lie, if not in each OUT/store. BadInput for a folder that is none.
    """
    if not folders:
        raise BadInput("expected the folder of at least one run, such as runs/objects-testbed")
    taken: dict[str, int] = {}
    return [_read(folder, store, taken) for folder in folders]


def _read(folder: Path, store: Path | None, taken: dict[str, int]) -> Run:
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; give the --out of `erasure-bench run`")
    root = folder.parent if folder.name == "records" else folder
    records, files = _records(root)
    board, draws = boards.with_draws(records) if records else (_board(root), {})
    about = _about(root / "costs.json")
    where = store or root / "store"
    return Run(
        id=_name(board, taken),
        board=board,
        records=records,
        files=files,
        costs=about.get("cells", {}),
        machine=about.get("machine", {}),
        store=Store(where, readonly=True) if where.is_dir() else None,
        draws=draws,
    )


def _records(root: Path) -> tuple[list[Record], list[Path]]:
    files = record.listed(root / "records")
    return (boards.read_records(root) if files else []), files


def _board(root: Path) -> Board:
    """The board that was written, where its records are not here."""
    found = _json(root / "board.json")
    if not found.get("rows"):
        raise BadInput(f"{root} is not the folder of a run: it has neither records/*.json nor a board.json")
    try:
        return written.parse(found)
    except BadInput as error:
        raise BadInput(f"{root}/board.json: {error}") from None


def _json(path: Path) -> dict[str, Any]:
    """The file's values; none if it is not there."""
    if not path.is_file():
        return {}
    try:
        values = parse_json(read_bytes(path))
    except ValueError as error:
        raise BadInput(f"{path} is not JSON ({error}); run again, or remove it") from None
    return values if isinstance(values, dict) else {}


class _Took(BaseModel):
    """What one stage of a cell took."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)
    seconds: float = 0.0
    made: int = 0
    peak_bytes: int | None = None


class _Cell(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    edit: dict[str, _Took] = {}
    images: _Took = _Took()


class _Costs(BaseModel):
    """Of `costs.json`, what the page shows."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    cells: dict[str, _Cell] = {}
    machine: dict[str, str | int | float | None] = {}


def _about(path: Path) -> dict[str, Any]:
    found = _json(path)
    try:
        _Costs.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"{path}: {dotted(tuple(first['loc']))}: {first['msg']}; run again, or remove it") from None
    return found


def _name(board: Board, taken: dict[str, int]) -> str:
    """Suite, model and version; a second run of the same gets a number."""
    scale = "" if board["scale"] == 1 else f"-x{board['scale']:g}"
    name = slug(f"{board['suite']}-{board['model']}-v{board['suite_version']}{scale}")
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name}-{taken[name]}"
