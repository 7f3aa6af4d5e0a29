"""What is set in a protocol's definition, readable: its function and the thresholds, labels and templates in it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmark.metrics.protocols import Protocol


def rule(p: Protocol) -> dict[str, Any]:
    """The function that a protocol scores by, and what is bound to it: `{"function": "_exposed", "threshold": 0.6}`.

    Two definitions that differ in a threshold differ here even where their author forgot to raise the version. Code
    inside the function does not show.
    """
    function = p.per_image or p.per_set or p.per_pair
    assert function is not None  # every protocol has one of them
    name, bound = _bound(function)
    settings = {"over": list(p.over), "rate": p.rate, "total": p.total, "by_concept": p.by_concept}
    return {"function": name, **bound, **settings}


def _bound(function: Callable[..., Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(function, partial):
        name, inner = _bound(function.func)
        return name, inner | {key: _plain(value) for key, value in function.keywords.items()}
    return getattr(function, "__name__", type(function).__name__).lstrip("_"), {}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return _bound(value)[0] if callable(value) else value
