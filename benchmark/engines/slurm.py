"""A job array of a Slurm cluster, through submitit; jobs that are preempted or run out of time are queued again."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, final

from benchmark.engines.base import Engine, Handle, Job, Outcome
from benchmark.errors import BadInput, Missing

TIMEOUT_MIN = 240
"""Of one job, after which it is queued again and goes on; harness default."""


@final
class SlurmEngine(Engine):
    """`parameters` are submitit's, such as `slurm_partition`, `timeout_min`, `gpus_per_node`, as text or numbers;
    `cluster=local` runs the jobs as processes of this machine, to try things out."""

    def __init__(self, *, workers: int, parameters: Mapping[str, Any], threads: int) -> None:
        """Missing if submitit or `sbatch` is not here."""
        if importlib.util.find_spec("submitit") is None:
            raise Missing("--executor slurm needs the package submitit: pip install 'erasure-bench[slurm]'")
        self.workers = workers
        self.parameters = {"timeout_min": TIMEOUT_MIN, "cpus_per_task": threads, **parameters}
        self.cluster = str(self.parameters.pop("cluster", "slurm"))
        if self.cluster not in ("slurm", "local"):
            raise BadInput(f"--slurm cluster=: expected slurm or local, got {self.cluster!r}")
        self.parameters.setdefault("gpus_per_node", 1 if self.cluster == "slurm" else 0)
        if self.cluster == "slurm" and not _there():
            raise Missing(
                "--executor slurm needs sbatch on the path: run on a machine that submits jobs, or try things out with "
                "--slurm cluster=local"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def launch(self, job: Job, numbers: Sequence[int]) -> list[Handle]:
        executor = self._executor(Path(job.folder) / "slurm")
        jobs = executor.map_array(_Share(), [job.to_json()] * len(numbers), list(numbers))
        return [_SlurmHandle(submitted) for submitted in jobs]

    def _executor(self, folder: Path) -> Any:
        import submitit

        try:
            executor = submitit.AutoExecutor(folder=folder, cluster=self.cluster, slurm_max_num_timeout=1000)
            executor.update_parameters(name="erasure-bench", **self.parameters)
        except (TypeError, ValueError, NameError, AssertionError) as error:
            raise BadInput(f"--slurm: {' '.join(str(error).split())}") from None
        return executor


class _Share:
    """What a job runs; pickled by submitit, with its arguments."""

    def __call__(self, job: Mapping[str, Any], number: int) -> dict[str, Any]:
        from benchmark.engines.child import Child

        return Child(Job.from_json(job), number).wait().to_json()

    def checkpoint(self, job: Mapping[str, Any], number: int) -> Any:
        """Asked for before the job is queued again: all that is done is in the store, so it starts the same way."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, job, number)


@final
class _SlurmHandle(Handle):
    def __init__(self, job: Any) -> None:
        self.job = job

    def poll(self) -> Outcome | None:
        if not self.job.done():
            return None
        try:
            return Outcome(**self.job.result())
        except Exception as error:  # submitit wraps whatever ended the job
            return Outcome(died=f"(job {self.job.job_id}, {self.job.state}) gave no result: {_first_line(error)}")

    def stop(self) -> None:
        self.job.cancel(check=False)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _there() -> bool:
    import shutil

    return shutil.which("sbatch") is not None
