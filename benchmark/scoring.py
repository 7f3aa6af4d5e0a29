"""Raw outputs to the values and the summary of one cell, whoever has them: a run's store, or an older run rescored.

No torch and no files: a `Source` hands over judges, their raw outputs and what they compare with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmark import memory
from benchmark.errors import BadInput, BenchError
from benchmark.metrics import evaluators, failures, protocols, summary
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
        if scope == "image" and any(texts := failures.reasons(source.raw(protocols.protocol(name).evaluator))):
            rows["errors"] = {**rows.get("errors", {}), name: texts}
    asked = list(dict.fromkeys([*told, *names]))
    said = summary.summarise(rows, primary=primary, headline_id=headline, protocols=asked, sets=sets)
    return {"rows": rows, "summary": said}


def _of_images(name: str, rows: Rows, source: Source) -> protocols.Scores:
    judge = source.judge(protocols.protocol(name).evaluator)
    return protocols.score(name, source.raw(judge.id), rows["concept"], rows["prompt"], judge, source.given(judge))


# --- images that a judge fails on -------------------------------------------------------------------------------------
class JudgeFailed(BenchError):
    """A judge that fails on every image of a batch: it is not the images."""


def judged(judge: Evaluator, images: NDArray[np.uint8]) -> dict[str, Array]:
    """The judge's raw outputs of images `(n, h, w, 3)`. Where it fails on some, each is judged alone: its error is
    theirs, see `failures.mark`.

    JudgeFailed if it fails on all; errors of ours, and want of memory, are the run's and not the images'.
    """
    try:
        return judge.raw(images)
    except Exception as error:
        if isinstance(error, BenchError) or memory.exhausted(error):
            raise
    alone = [_alone(judge, images[i : i + 1]) for i in range(len(images))]
    errors = [found for found in alone if isinstance(found, Exception)]
    if len(errors) == len(images):
        raise JudgeFailed(f"{judge.id} fails on all {len(images)} images of a batch: {failures.told(errors[0])}")
    return failures.mark(alone)


def _alone(judge: Evaluator, image: NDArray[np.uint8]) -> dict[str, Array] | Exception:
    try:
        return judge.raw(image)
    except Exception as error:
        if isinstance(error, BenchError) or memory.exhausted(error):
            raise
        return error


def _of_pairs(name: str, rows: Rows, source: Source) -> protocols.Scores:
    raw = source.pairs(protocols.protocol(name).evaluator)
    return protocols.score_pairs(name, raw, len(rows["role"]))


def _of_set(name: str, rows: Rows, source: Source) -> Value:
    p = protocols.protocol(name)
    role = next((r for r in p.over if r in rows["role"]), None)
    if role is None:
        return Value(None, reason=f"no {' or '.join(p.over)} prompts")
    raw = source.raw(p.evaluator)
    failed = raw.get(failures.FAILED, np.zeros(len(rows["role"]), np.uint8))
    at = [k for k, r in enumerate(rows["role"]) if r == role and not failed[k]]
    features = raw["features"][at].astype(np.float64)
    return protocols.score_set(name, features, source.reference(p.evaluator, role))


def needs_gallery(judge: Evaluator) -> bool:
    """Whether it knows people only by images of them, and has none of its own."""
    return judge.id.startswith("identity") and getattr(judge, "gallery", None) is None


def load_pair_or_refuse(evaluator: str, there: bool) -> evaluators.PairEvaluator:
    """A judge of pairs; BadInput unless the unedited model's images are there to compare with."""
    if not there:
        raise no_unedited(evaluator)
    return evaluators.load_pair(evaluator)


def no_unedited(evaluator: str) -> BadInput:
    """The error for a judge of pairs without the images that it compares with."""
    return BadInput(f"{evaluator} compares with the unedited model: run the method none too")
