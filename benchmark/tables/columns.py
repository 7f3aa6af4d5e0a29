"""The columns that rows have, and which way each is better."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmark.metrics.balance import headline
from benchmark.metrics.protocols import protocol

Record = Mapping[str, Any]
Row = dict[str, Any]
Board = dict[str, Any]
RATES = (("erased", "down"), ("kept", "up"), ("synonym", "down"), ("adjacent", "up"))


def natural(text: str) -> list[tuple[int, str]]:
    """A sorting key in which `identity_5` comes before `identity_10`."""
    return [(int(t), "") if t.isdigit() else (-1, t) for t in re.split(r"(\d+)", text) if t]


def sign(row: Row) -> int:
    """1 where a high headline is good, −1 where a low one is."""
    return -1 if row["headline_id"] is not None and headline(row["headline_id"]).direction == "down" else 1


def columns(rows: Sequence[Row]) -> list[tuple[str, str, Callable[[Row], float | None]]]:
    """The score columns of these rows: name, direction (up or down is better), getter."""
    found: list[tuple[str, str, Callable[[Row], float | None]]] = []
    for role, direction in RATES:
        if any(r[f"acc_{role}"] is not None for r in rows):
            found.append((f"acc_{role}", direction, lambda r, k=f"acc_{role}": r[k]))  # type: ignore[misc]
    if any(r["headline"] is not None for r in rows):
        down = any(sign(r) < 0 for r in rows)
        found.append(("headline", "down" if down else "up", lambda r: r["headline"]))
    for name in metric_columns(rows):
        found.append((name, protocol(name).direction, lambda r, k=name: r["metrics"].get(k)))  # type: ignore[misc]
    return found


def metric_columns(rows: Sequence[Row]) -> list[str]:
    """Ids under `metrics` in their first order, without the primary, which has columns of its own."""
    primaries = {r["primary"] for r in rows}
    return list(dict.fromkeys(c for r in rows for c in r["metrics"] if c not in primaries))
