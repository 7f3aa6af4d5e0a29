"""Checks that adapters make of their fields, and the vocabulary that they share."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any, Literal, get_args

from benchmark.errors import BadInput, did_you_mean
from benchmark.interface import Method

HARNESS_VARIANT = MappingProxyType({"reading": "harness variant"})
"""What the notes of an edit say where a method works in a way that its authors neither described nor released."""

Replacement = Literal["empty", "anchor"]


def one_of(method: Method, field: str, literal: Any) -> None:
    """The field's value must be one of the `Literal`'s; BadInput otherwise."""
    value, known = getattr(method, field), get_args(literal)
    if value not in known:
        raise BadInput(f"{method.name}: {did_you_mean(str(value), known, what=field)}")


def number(method: Method, field: str, *, low: float = 0, above: bool = False, whole: bool = False) -> None:
    """The field must be a finite number, at least (or above) `low`, and an int where `whole`; BadInput otherwise."""
    value = getattr(method, field)
    right_type = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not right_type or not math.isfinite(value) or value < low or (above and value == low):
        kind, bound = "a whole number" if whole else "a number", "above" if above else "of at least"
        raise BadInput(f"{method.name}: {field} must be {kind} {bound} {low}, got {value!r}")
