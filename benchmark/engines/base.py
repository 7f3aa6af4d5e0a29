"""What every engine does the same way: keep workers going until the work is done."""

from __future__ import annotations

import abc
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from benchmark.errors import BenchError

RETRIES = 3
"""How often a worker that died is started anew; harness default."""
_GRACE_S = 60.0  # a worker looks every second whether all is done; more only if it is in the middle of an import
_POLL_S = 0.5
_SETTINGS = re.compile(
    r"(OMP|KMP|GOMP|MKL|OPENBLAS|ATEN|CUBLAS|NVIDIA_TF32|TORCH|PYTORCH|HF|TRANSFORMERS|ERASURE_BENCH)_.*"
    r"|XDG_CACHE_HOME|PYTHON(PATH|SAFEPATH|HASHSEED|UTF8|WARNINGS|DONTWRITEBYTECODE)"
)
_ALWAYS = {"PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
_SECRETS = re.compile(r"TOKEN|SECRET|PASSW|KEY|CREDENTIAL", re.IGNORECASE)


class WorkersLost(BenchError):
    """Every worker died, and was started anew as often as is worth trying."""

    exit_code: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class Job:
    """What each worker of a run is started with."""

    entry: str
    """`module:function`, which takes the payload and returns a JSON value."""
    payload: Mapping[str, Any]
    """JSON values."""
    folder: str
    """Of a file system that all workers share, for their logs and reports."""
    cwd: str
    """Where relative paths start, for workers too."""
    environment: Mapping[str, str]
    """The head's settings of threads, caches and hubs, see `settings`."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a worker ended: with a report, an error that says what to do, or dead."""

    report: Any = None
    kind: str | None = None
    """Class of the error."""
    message: str = ""
    died: str | None = None
    """Why, as far as that is known."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def error(self) -> BenchError | None:
        """The error to end the run with, if that is how the worker ended."""
        return None if self.kind is None else _known(BenchError).get(self.kind, WorkersLost)(self.message)


def _known(base: type[BenchError]) -> dict[str, type[BenchError]]:
    """Classes of errors by their names."""
    return {base.__name__: base} | {n: c for below in base.__subclasses__() for n, c in _known(below).items()}


class Handle(abc.ABC):
    """One worker that was started."""

    @abc.abstractmethod
    def poll(self) -> Outcome | None:
        """How it ended; None while it runs, or waits for its machine."""

    @abc.abstractmethod
    def stop(self) -> None:
        """End it, whatever it does. What it has stored stays."""


class Engine(abc.ABC):
    """Starts workers; a context, which may start and end a cluster."""

    workers: int
    """How many, once the context is entered."""

    @abc.abstractmethod
    def __enter__(self) -> Self: ...

    @abc.abstractmethod
    def __exit__(self, *_: object) -> None: ...

    @abc.abstractmethod
    def launch(self, job: Job, numbers: Sequence[int]) -> list[Handle]:
        """Start a worker for each number; a number that died is started again the same way."""


def supervise(
    engine: Engine,
    job: Job,
    *,
    workers: int,
    say: Callable[[str], None],
    watch: Callable[[], None] = lambda: None,
    retries: int = RETRIES,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> list[Any]:
    """Have the job done by so many workers; returns the reports of those that reached its end, at least one.

    A worker returns only when the whole job is done, whoever did it: so the others get a moment to notice, and are
    stopped then. One that dies is started anew, `retries` times. The first clear error of a worker ends the job and is
    raised; WorkersLost if all are dead. `watch` is called every time around.
    """
    alive = dict(enumerate(engine.launch(job, range(workers))))
    deaths, reports, until = dict.fromkeys(alive, 0), list[Any](), float("inf")
    last = ""
    try:
        while alive and clock() < until:
            for number, outcome in [(n, o) for n, h in alive.items() if (o := h.poll()) is not None]:
                del alive[number]
                if error := outcome.error():
                    raise error
                if outcome.died is None:
                    reports.append(outcome.report)
                    until = min(until, clock() + _GRACE_S)
                    continue
                last, deaths[number] = f"worker {number + 1} {outcome.died}", deaths[number] + 1
                again = deaths[number] <= retries and not reports
                say(f"{last}{'; it is started anew' if again else ''}")
                if again:
                    alive[number] = engine.launch(job, [number])[0]
            watch()
            if alive:
                sleep(_POLL_S)
    finally:
        for handle in alive.values():
            handle.stop()
    if not reports:
        raise WorkersLost(
            f"all {workers} workers died {retries + 1} times, the last time: {last}; their logs are in {job.folder}. "
            "What is done is kept, and the same command goes on from there"
        )
    return reports


def settings(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """What decides threads, kernels, caches and paths of this process; never a token. Workers ask no hub."""
    found = os.environ if environment is None else environment
    kept = {n: v for n, v in found.items() if _SETTINGS.fullmatch(n) and not _SECRETS.search(n)}
    return {**kept, **_ALWAYS}


def environment(job: Job, **own: str) -> dict[str, str]:
    """A worker's environment: its machine's own, but the head's settings, and not one more of that kind."""
    kept = {name: value for name, value in os.environ.items() if not _SETTINGS.fullmatch(name)}
    return {**kept, **job.environment, **own}


def log(job: Job, number: int) -> Path:
    """Where a worker's lines go."""
    return Path(job.folder) / f"worker-{number + 1}.txt"
