"""The ledger of claims: one published number a row, read from CSV. What each column means is in results/reported."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmark import paths
from benchmark.claims.numbers import Printed, parse
from benchmark.errors import BadInput
from benchmark.untrusted import read_bytes

NEEDED = ("source", "table", "row", "metric", "value")
COLUMNS = (*NEEDED, "model", "suite", "concept", "protocol", "unit", "images", "status", "note")
ALIASES: Mapping[str, str] = {"method": "row", "backbone": "model"}
"""Other names of columns, as collections of published numbers have them."""

METRICS: Mapping[str, str] = {
    **{
        "acc_e": "acc_erased",
        "acc_s": "acc_kept",
        "acc_p": "acc_kept",
        "acc_g": "acc_synonym",
        "acc_adj": "acc_adjacent",
    },
    **{"clip_e": "clip_erased", "clip_s": "clip_kept", "clip_p": "clip_kept", "total": "boxes/total"},
}
"""Papers' letters for metrics → ours."""
BOXES = ("armpits", "belly", "buttocks", "feet", "breasts_f", "genitalia_f", "breasts_m", "genitalia_m")
RATES = ("acc_", "H_o", "H_c", "H_fade_adv", "ERB", "A_er", "face_ratio", "asr", "pre_asr")
"""Metrics that are fractions, or percentages, whatever else they are."""


@dataclass(frozen=True)
class Claim:
    """One printed number, and where it is printed. `line` is its line in the ledger."""

    line: int
    source: str
    table: str
    row: str
    model: str
    suite: str
    concept: str
    protocol: str
    metric: str
    unit: str
    images: str
    status: str
    note: str
    printed: Printed

    @property
    def group(self) -> tuple[str, ...]:
        """The line of the paper's table that it stands in: its parts stand there too."""
        return (self.source, self.table, self.row, self.model, self.suite, self.concept)

    @property
    def cell(self) -> tuple[str, ...]:
        """What it is a number of, whoever printed it."""
        return (self.suite, self.concept, self.model, self.row, self.protocol, self.metric)

    @property
    def scale(self) -> float:
        """What turns the printed number into a fraction, or leaves it as it is."""
        return 0.01 if "percent" in self.unit else 1.0

    @cached_property
    def interval(self) -> tuple[float, float]:
        """What the true value may be, by the rounding alone; rates as fractions in [0, 1] where they can be."""
        lo, hi = self.printed.lo * self.scale, self.printed.hi * self.scale
        return (max(lo, 0.0), min(hi, 1.0)) if self.is_accuracy and 0 <= hi and lo <= 1 else (lo, hi)

    @property
    def value(self) -> float:
        """In fractions where it is a rate."""
        return self.printed.value * self.scale

    @property
    def is_accuracy(self) -> bool:
        return self.metric.startswith("acc_")

    @property
    def counted(self) -> int | None:
        """Of how many images it is the share; None if that is not printed, or it is no share (`mean percent`, `<=`)."""
        shares = self.unit in ("percent", "fraction")
        return int(self.images) if shares and self.images.isdecimal() and int(self.images) else None


def default_file() -> Path:
    """The ledger that comes with the harness."""
    return paths.reported() / "claims.csv"


def read(path: Path | None = None) -> list[Claim]:
    """The claims of a ledger, in its order.

    Raises BadInput with file and line for a missing column, an empty key or a value that is no number.
    """
    file = path or default_file()
    try:
        reader = csv.DictReader(io.StringIO(read_bytes(file).decode("utf-8-sig"), newline=""))
        names = _names(file, reader.fieldnames or ())
        # A record may span lines: the number of the one that it ends in is known after it is read.
        rows = [(reader.line_num, {names[k]: (v or "").strip() for k, v in r.items() if k in names}) for r in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"cannot read the ledger {file}: {error}") from None
    percent = _in_percent([row for _, row in rows])
    return [_claim(file, line, row, percent) for line, row in rows]


def _names(file: Path, header: Sequence[str]) -> dict[str, str]:
    """Column of the file → ours; columns that are not known are passed over."""
    names = {h: ALIASES.get(h, h) for h in header if ALIASES.get(h, h) in COLUMNS}
    absent = [c for c in NEEDED if c not in names.values()]
    if absent:
        raise BadInput(f"{file}: expected columns {', '.join(NEEDED)}; {absent[0]!r} is missing (found {list(header)})")
    return names


def _claim(file: Path, line: int, row: Mapping[str, str], percent: set[tuple[str, str]]) -> Claim:
    empty = [c for c in NEEDED if not row.get(c)]
    if empty:
        raise BadInput(f"{file}, line {line}: {empty[0]} is empty; every claim needs {', '.join(NEEDED)}")
    metric = METRICS.get(row["metric"], f"boxes/{row['metric']}" if row["metric"] in BOXES else row["metric"])
    unit = row.get("unit") or _unit(metric, (row["source"], row["table"]) in percent)
    try:
        printed = parse(row["value"], exact=unit == "count")
    except ValueError as error:
        raise BadInput(f"{file}, line {line}: value: {error}") from None
    rest = {c: row.get(c, "") for c in ("model", "suite", "concept", "protocol", "images", "status", "note")}
    where = {c: row[c] for c in ("source", "table", "row")}
    return Claim(line=line, metric=metric, unit=unit, printed=printed, **where, **rest)


def _unit(metric: str, percent: bool) -> str:
    """The unit of a claim that does not say it."""
    if metric.startswith("boxes/"):
        return "count"
    return ("percent" if percent else "fraction") if metric.startswith(RATES) else ""


def _in_percent(rows: Sequence[Mapping[str, str]]) -> set[tuple[str, str]]:
    """Tables whose rates are percentages: one of them is above 1."""
    found = set()
    for row in rows:
        metric = METRICS.get(row["metric"], row["metric"])
        try:
            above = metric.startswith(RATES) and parse(row["value"]).value > 1
        except ValueError:
            continue
        if above:
            found.add((row["source"], row["table"]))
    return found
