"""A run in milliseconds, in which everything is real but the model and the judge: for tests of what runs leave.

Plan, store, claims, records, boards, grids and costs are the harness's own; images depend on edit, prompt and seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmark import atomic, device, memory, record, run, worker
from benchmark.interface import Cost, Edit
from benchmark.keys import canonical
from benchmark.metrics import evaluators
from benchmark.plan import make_plan
from benchmark.worker import Worker

SUITE = """\
title: A test
version: 1
source: ours
methods: [none, uce]
forms:
  embedded:
    dataset: testbed
    requests: [{each: [cat], keep: [dog]}]
    prompts:
      erased: {templates: ["a photo of the {concept}"], images: 2}
      kept: {templates: ["a photo of the {concept}"], images: 1}
    sampler: {scheduler: ddim, steps: 2, guidance: 3.0, size: 64}
    batch: 2
    primary: testbed/top1
    protocols: [testbed/top1]
"""
"""Two cells, four batches of images."""


class Judge:
    """Tells cats from dogs by the first pixel."""

    id = "testbed-a"
    classes: Mapping[str, tuple[str, ...]] = {"object": ("cat", "dog")}

    @property
    def hash(self) -> str:
        """Of the judge that it plays."""
        return evaluators.weights_hash(self.id)

    def raw(self, images: Any) -> dict[str, Any]:
        """Two logits."""
        first = images[:, 0, 0, 0] % 2
        return {"object": np.stack([1.0 - first, 0.0 + first], 1).astype(np.float32)}


@contextmanager
def playing(suite: Path, **options: Any) -> Iterator[None]:
    """In this block runs are those of the suite in the file, by a model and a judge that are played.

    Writers that are gone count as gone, though the process that played them lives.
    """
    plan = make_plan(str(suite), **options)
    here = record.provenance(device_class="cpu", threads=1, dtype="float32")
    origin = here.model_copy(update={"commit": None, "dirty": None})  # somebody's commit may come between two runs
    plays: list[tuple[Any, str, Any]] = [
        (run, "settled", lambda options: plan),
        (device, "kind", lambda: "cpu"),
        (record, "provenance", lambda **_: origin),
        (memory, "reset", lambda: None),
        (Worker, "backbone", SimpleNamespace()),
        (Worker, "judge", lambda self, name: Judge()),
        (Worker, "load_edit", lambda self, spec: Edit()),
        (Worker, "_drawn", _drawn),
        (worker, "_made", _made),
        (atomic, "lives", lambda pid: False),
    ]
    with ExitStack() as stack:
        for owner, name, value in plays:
            stack.enter_context(patch.object(owner, name, value))
        yield


def _drawn(self: Worker, spec: Any, edit: Any, items: Sequence[Any], *_: Any) -> Iterator[Any]:
    for start in range(0, len(items), self.plan.batch):
        part = list(items[start : start + self.plan.batch])
        digests = [hashlib.sha256(f"{spec.key}|{i.prompt}|{i.seed}".encode()).digest() for i in part]
        yield part, np.stack([np.resize(np.frombuffer(d, np.uint8), (64, 64, 3)) for d in digests])


def _made(*_: Any) -> tuple[Edit, dict[str, bytes]]:
    about: dict[str, Any] = {"hash": "1" * 64, "notes": {}, "counts": {}, "output": None, "prompts": None}
    files = {"edit.safetensors": bytes(99), "edit.json": b"{}", "cost.json": b"{}"}
    return Edit(cost=Cost()), {**files, "about.json": canonical(about).encode()}
