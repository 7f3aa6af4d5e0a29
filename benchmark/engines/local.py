"""Worker processes of this machine: one a GPU, or as many as are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, final

from benchmark.engines.base import Engine, Handle, Job
from benchmark.engines.child import Child


@final
class LocalEngine(Engine):
    """`gpus`: names of cards as CUDA_VISIBLE_DEVICES has them; each worker sees one, in turn."""

    def __init__(self, *, workers: int, gpus: Sequence[str] = ()) -> None:
        self.workers, self.gpus = workers, tuple(gpus)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def launch(self, job: Job, numbers: Sequence[int]) -> list[Handle]:
        return [Child(job, number, **self._card(number)) for number in numbers]

    def _card(self, number: int) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": self.gpus[number % len(self.gpus)]} if self.gpus else {}
