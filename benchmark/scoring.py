"""Raw outputs to the values and the summary of one cell, whoever has them: a run's store, or an older run rescored.

No torch and no files: a `Source` hands over judges, their raw outputs and what they compare with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from benchmark.errors import BadInput
from benchmark.metrics import evaluators, protocols, summary
from benchmark.metrics.distribution import Value
from benchmark.metrics.evaluators import Array, Evaluator
from benchmark.metrics.protocols import Given

Rows = dict[str, Any]


class Source(Protocol):
    """Where the raw outputs of a cell's images come from."""

    def judge(self, evaluator: str) -> Evaluator:
        """A judge of single images."""

    def raw(self, evaluator: str) -> Mapping[str, Array]:
        """Its raw outputs, one row an image, in the order of the cell's rows."""

    def pairs(self, evaluator: str) -> Mapping[str, Array]:
        """A judge's raw outputs of each image beside the unedited model's."""

    def reference(self, evaluator: str, role: str) -> Array:
        """Features of the real images that this role's are compared with."""

    def given(self, judge: Evaluator) -> Given:
        """What some protocols need besides."""


def scored(
    rows: Rows, *, names: Iterable[str], primary: str, headline: str | None, source: Source, told: Sequence[str] = ()
) -> dict[str, Any]:
    """`rows` with values (and `valid`, by the primary protocol), and `summary`. `told`: protocols with values already.

    The rows that are given stay as they are.
    """
    rows = {**rows, "values": dict(rows["values"])}
    sets: dict[str, Value] = {}
    names = list(names)
    for name in names:
        scope = protocols.protocol(name).scope
        if scope == "set":
            sets[name] = _of_set(name, rows, source)
            continue
        found = _of_pairs(name, rows, source) if scope == "pair" else _of_images(name, rows, source)
        rows["values"][name] = summary.finite(found.values.tolist())
        if name == primary:
            rows["valid"] = [bool(v) for v in found.valid]
    asked = list(dict.fromkeys([*told, *names]))
    said = summary.summarise(rows, primary=primary, headline_id=headline, protocols=asked, sets=sets)
    return {"rows": rows, "summary": said}


def _of_images(name: str, rows: Rows, source: Source) -> protocols.Scores:
    judge = source.judge(protocols.protocol(name).evaluator)
    return protocols.score(name, source.raw(judge.id), rows["concept"], rows["prompt"], judge, source.given(judge))


def _of_pairs(name: str, rows: Rows, source: Source) -> protocols.Scores:
    raw = source.pairs(protocols.protocol(name).evaluator)
    return protocols.score_pairs(name, raw, len(rows["role"]))


def _of_set(name: str, rows: Rows, source: Source) -> Value:
    p = protocols.protocol(name)
    role = next((r for r in p.over if r in rows["role"]), None)
    if role is None:
        return Value(None, reason=f"no {' or '.join(p.over)} prompts")
    at = [k for k, r in enumerate(rows["role"]) if r == role]
    features = source.raw(p.evaluator)["features"][at].astype(np.float64)
    return protocols.score_set(name, features, source.reference(p.evaluator, role))


def needs_gallery(judge: Evaluator) -> bool:
    """Whether it knows people only by images of them, and has none of its own."""
    return judge.id.startswith("identity") and getattr(judge, "gallery", None) is None


def load_pair_or_refuse(evaluator: str, there: bool) -> evaluators.PairEvaluator:
    """A judge of pairs; BadInput unless the unedited model's images are there to compare with."""
    if not there:
        raise BadInput(f"{evaluator} compares with the unedited model: run the method none too")
    return evaluators.load_pair(evaluator)
