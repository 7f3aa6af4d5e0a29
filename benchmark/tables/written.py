"""A board that was written, read back where its records are not here: of the right shape, or refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from benchmark.declared import Tuple, dotted
from benchmark.errors import BadInput
from benchmark.metrics.balance import headline
from benchmark.metrics.protocols import protocol
from benchmark.tables.columns import Board
from benchmark.untrusted import plain_name

Ends = Annotated[tuple[float, float], Field(strict=False)] | None
Numbers = dict[str, float | None]
Name = Annotated[str, AfterValidator(plain_name)]


def _known_headline(name: str | None) -> str | None:
    return name if name is None else headline(name).id


def _known_protocol(name: str) -> str:
    protocol(name)
    return name


class _Shape(BaseModel):
    """What pages and comparisons read; later versions may have written more."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)


class _Protocol(_Shape):
    version: int
    evaluator: str
    evaluator_hash: str


class _Spread(_Shape):
    seeds: Tuple[int]
    training_sd: float
    sampling_sd: float


class _Row(_Shape):
    method: str
    role: Literal["baseline", "erasure", "control"]
    request: str
    strategy: str | None
    seeds: Tuple[int]
    status: str
    reason: str | None
    primary: Annotated[str, AfterValidator(_known_protocol)]
    headline_id: Annotated[str | None, AfterValidator(_known_headline)]
    headline: float | None
    headline_ci: Ends
    n_erased: int | None
    n_kept: int | None
    n_synonym: int | None
    n_adjacent: int | None
    acc_erased: float | None
    acc_erased_ci: Ends
    acc_kept: float | None
    acc_kept_ci: Ends
    acc_synonym: float | None
    acc_synonym_ci: Ends
    acc_adjacent: float | None
    acc_adjacent_ci: Ends
    metrics: dict[Annotated[str, AfterValidator(_known_protocol)], float | None]
    metrics_ci: dict[str, Ends]
    n_invalid: dict[str, int]
    acc_all_images: Numbers
    relative: Numbers
    gate: str | None
    rank: int | None
    rank_ci: Ends
    best: bool
    p_vs_best: float | None
    tied: bool
    wins: Tuple[str]
    gap_vs_best: float | None
    gap_vs_best_ci: Ends
    marks: dict[str, str]
    spread: _Spread | None


class _Board(_Shape):
    format: Literal[1] = Field(alias="schema")
    suite: Name
    suite_version: int
    form: Literal["paper", "embedded"]
    model: Name
    model_hash: str
    scale: float
    protocols: dict[str, _Protocol]
    rows: Annotated[tuple[_Row, ...], Field(strict=False, min_length=1)]


def parse(values: Any) -> Board:
    """The values as they are, once they are a board of this schema; BadInput names the first wrong one."""
    try:
        _Board.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"board: {dotted(tuple(first['loc'])) or 'the board'}: {first['msg']}") from None
    board: Board = values
    return board
