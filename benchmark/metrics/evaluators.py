"""The networks that judge images: what each must provide, and loading one by its id.

Importing this loads no torch; `load` does.
"""

from __future__ import annotations

import abc
import hashlib
import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import BadInput, Missing, did_you_mean

Array = NDArray[Any]
TESTBED = Path(__file__).parents[1] / "testbed" / "weights"


class Evaluator(abc.ABC):
    """A frozen judge. Raw outputs are stored for each image; protocols are derived from them later."""

    id: str
    hash: str
    """SHA-256 over its weight files: another judge, other raw outputs."""
    classes: Mapping[str, tuple[str, ...]]
    """Raw output name to the class names of its columns (`object` → `("cat", …)`)."""

    @abc.abstractmethod
    def raw(self, images: NDArray[np.uint8]) -> dict[str, Array]:
        """Outputs for images `(n, h, w, 3)`, one row each; an image's row does not depend on its neighbours."""

    @abc.abstractmethod
    def texts(self, prompts: Sequence[str]) -> Array:
        """Unit text embeddings `(n, dim)`, comparable to the raw output `clip`."""

    @abc.abstractmethod
    def reference(self, concepts: Sequence[str]) -> Array:
        """Features `(m, dim)` of held-out real images of these concepts, float64; BadInput if it has none."""


@dataclass(frozen=True)
class Spec:
    """Where an evaluator's code and weights lie."""

    target: str
    """`module:Class`; called with the weights folder. "" if this version does not have it."""
    weights: Path | None
    parts: tuple[str, ...] = ()
    """Sub-folders whose files decide what it says, in hashing order."""
    needs: str = ""
    """What a user must get for it: shown when it is not there."""


EVALUATORS: Mapping[str, Spec] = {
    "testbed-a": Spec(
        "benchmark.testbed.evaluator:TestbedEvaluator",
        TESTBED,
        ("evaluator", "clip", "text_encoder", "tokenizer", "reference"),
        "the embedded model's weights, which ship with the package (`make testbed` trains them anew)",
    ),
    "clip-vitb32": Spec("", None, (), "the scorer for openai/clip-vit-base-patch32 (MIT, 605 MB), not in this version"),
    "identity": Spec("", None, (), "a face detector and a classifier of the suite's people, not in this version"),
}


def spec_of(evaluator: str) -> Spec:
    """The entry of an evaluator id; BadInput with a suggestion if there is none."""
    if evaluator not in EVALUATORS:
        raise BadInput(did_you_mean(evaluator, EVALUATORS, "evaluator"))
    return EVALUATORS[evaluator]


def weights_hash(evaluator: str, root: Path | None = None) -> str:
    """SHA-256 over the evaluator's files, without loading them. Raises Missing if there are none."""
    return hash_files(_root(evaluator, root), spec_of(evaluator).parts)


def load(evaluator: str, root: Path | None = None) -> Evaluator:
    """The evaluator of this id, from `root` or where it ships. Raises Missing if its weights or code are not there."""
    folder = _root(evaluator, root)
    module, _, name = spec_of(evaluator).target.partition(":")
    return cast(Evaluator, getattr(importlib.import_module(module), name)(folder))


def missing(evaluator: str, root: Path | None = None) -> str:
    """What is missing for this evaluator, in one line; "" if all is there."""
    try:
        _root(evaluator, root)
    except Missing as e:
        return str(e)
    return ""


def _root(evaluator: str, root: Path | None) -> Path:
    spec = spec_of(evaluator)
    folder = root or spec.weights
    if not spec.target or folder is None:
        raise Missing(f"evaluator {evaluator!r} is missing: needs {spec.needs}")
    if not (folder / spec.parts[0] / "config.json").exists():
        raise Missing(f"evaluator {evaluator!r} is missing in {folder}: needs {spec.needs}")
    return folder


def hash_files(root: Path, parts: Iterable[str]) -> str:
    """SHA-256 over the relative names and the bytes of all files in these sub-folders of `root`."""
    total = hashlib.sha256()
    for part in parts:
        for path in sorted(p for p in (root / part).rglob("*") if p.is_file()):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            total.update(f"{path.relative_to(root).as_posix()}\0{digest}\n".encode())
    return total.hexdigest()
