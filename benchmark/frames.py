"""Records, boards and comparisons as pandas frames. Pure; pandas is loaded when a frame is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmark.compare import Comparison
from benchmark.metrics.protocols import protocol
from benchmark.metrics.summary import ROLES
from benchmark.tables import formats
from benchmark.tables.board import Board, Record

if TYPE_CHECKING:
    import pandas as pd

Frames = tuple["pd.DataFrame", "pd.DataFrame", "pd.DataFrame"]
OF_IMAGE = ("role", "concept", "prompt", "replicate", "seed", "image", "valid")
REPEATED = ("suite", "form", "model", "method", "kind", "request", "role", "concept", "protocol", "unit")
COUNTS = ("rank", "rank_lo", "rank_hi", *(f"n_{role}" for role in ROLES))


def records(of: Sequence[Record]) -> pd.DataFrame:
    """A row an image and protocol, in the order of the records; `benchmark.api.COLUMNS` says what the columns are."""
    import pandas as pd

    parts = [_values(r, name) for r in of for name in r["rows"].get("values", {})]
    if not parts:
        return pd.DataFrame()
    frame = pd.concat([pd.DataFrame(part) for part in parts], ignore_index=True)
    frame["value"] = frame["value"].astype("float64")
    return frame.astype(dict.fromkeys(REPEATED, "category"))


def _values(r: Record, name: str) -> dict[str, Any]:
    """The columns of one record and protocol."""
    rows = r["rows"]
    return {
        **{k: r[k] for k in ("suite", "suite_version", "form")},
        "model": r["model"]["name"],
        "method": r["method"]["label"],
        "kind": r["method"]["role"],
        "request": r["request"]["name"],
        "training_seed": r["request"]["seed"],
        **{k: list(rows[k]) for k in OF_IMAGE},
        "protocol": name,
        "primary": name == r["primary"],
        "unit": protocol(name).unit,
        "value": list(rows["values"][name]),
    }


def board(of: Board) -> pd.DataFrame:
    """The rows and columns of `board.csv`."""
    import pandas as pd

    frame = pd.DataFrame(formats.flat(of))
    return frame.astype({name: "Int64" for name in COUNTS if name in frame})


def comparison(found: Comparison) -> Frames:
    """Inputs that differ, numbers that moved, paired tests."""
    import pandas as pd

    changes = [
        {"kind": c.kind, "name": c.name, "a": c.before, "b": c.after, "cells": len(where) or found.cells}
        for c, where in found.changes.items()
    ]
    numbers = [_moved(cell, name, *v) for cell, moved in found.moved.items() for name, v in moved.items()]
    tests = [_test(vars(t) | {"flagged": t.flagged}) for t in found.tests]
    return (
        pd.DataFrame(changes, columns=["kind", "name", "a", "b", "cells"]),
        pd.DataFrame(numbers, columns=["cell", "quantity", "a", "b", "difference"]),
        pd.DataFrame(tests, columns=[*TEST.values()]).astype({"flagged": bool}),
    )


def _moved(cell: str, name: str, a: float | None, b: float | None) -> dict[str, Any]:
    difference = None if a is None or b is None else b - a
    return {"cell": cell, "quantity": name, "a": a, "b": b, "difference": difference}


TEST: Mapping[str, str] = {
    "cell": "cell",
    "column": "protocol",
    "role": "role",
    "n": "images",
    "differing": "differing",
    "before": "a",
    "after": "b",
    "effect": "effect",
    "p": "p",
    "adjusted": "adjusted",
    "flagged": "flagged",
}
"""A paired test's fields, and what their columns are called."""


def _test(told: Mapping[str, Any]) -> dict[str, Any]:
    return {column: told[name] for name, column in TEST.items()}
