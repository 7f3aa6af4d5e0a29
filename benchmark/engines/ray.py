"""Actors of a Ray cluster, each with a worker process that keeps its models loaded; a GPU each where there are any."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import Any, Self, final

from benchmark.engines.base import Engine, Handle, Job, Outcome, WorkersLost
from benchmark.errors import Missing

_OBJECTS = 80 * 2**20  # bytes of shared memory that a cluster of our own takes: nothing but outcomes pass through it
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_worker_niceness": "0"}
"""Whatever the system: the node's address is 127.0.0.1, and Ray's servers listen there and nowhere else."""


@final
class RayEngine(Engine):
    """`address` as `ray.init` takes it; without one a cluster of this machine alone is started, and ended afterwards.

    An actor is never restarted by Ray: `supervise` starts another one, and counts.
    """

    def __init__(self, *, workers: int | None, address: str | None, threads: int) -> None:
        """Missing if Ray is not installed; `workers` None is one a GPU, or as many as the CPUs have threads for."""
        if importlib.util.find_spec("ray") is None:
            raise Missing("--executor ray needs the package ray: pip install 'erasure-bench[ray]'")
        self.asked, self.address, self.threads = workers, address, threads
        self.workers = workers or 1

    def __enter__(self) -> Self:
        # read by Ray when it is imported and when its processes start
        os.environ.update(_QUIET if self.address is not None else _QUIET | _ALONE)
        import ray

        untyped: Any = ray
        self._connect(untyped)
        resources = untyped.cluster_resources()
        self.gpu = resources.get("GPU", 0) >= 1
        self.workers = self.asked or self._fitting(resources)
        self._actor = untyped.remote(max_restarts=0, max_task_retries=0)(_Actor)
        return self

    def _connect(self, ray: Any) -> None:
        told = {"log_to_driver": False, "logging_level": "error"}
        if self.address is None:
            cpus = None if self.asked is None else self.asked * self.threads
            self._start(ray, num_cpus=cpus, object_store_memory=_OBJECTS, include_dashboard=False, **told)
            if (at := ray.util.get_node_ip_address()) != "127.0.0.1":
                ray.shutdown()
                raise WorkersLost(f"Ray was to stay on this machine, but listens at {at}; start without Ray imported")
            return
        try:
            ray.init(address=self.address, **told)
        except (ConnectionError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise Missing(f"--ray-address: no cluster answers at {self.address}: {reason}") from error

    def _start(self, ray: Any, **told: Any) -> None:
        """Start a cluster. Ray gives its own processes 15 s to come up, too little for a busy machine: so thrice."""
        for left in (2, 1, 0):
            try:
                ray.init(**told)
                return
            except Exception as error:  # Ray raises just that
                ray.shutdown()
                if not left:
                    raise WorkersLost(f"Ray could not start on this machine: {error}") from error

    def _fitting(self, resources: Mapping[str, float]) -> int:
        return max(1, int(resources["GPU"] if self.gpu else resources.get("CPU", 1) // self.threads))

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()

    def launch(self, job: Job, numbers: Sequence[int]) -> list[Handle]:
        placed = self._actor.options(num_cpus=self.threads, num_gpus=1 if self.gpu else 0)
        return [_RayHandle(placed.remote(), job, number) for number in numbers]


class _Actor:
    """Lives in the cluster; holds one worker."""

    def work(self, job: Mapping[str, Any], number: int) -> dict[str, Any]:
        from benchmark.engines.child import Child

        return Child(Job.from_json(job), number).wait().to_json()


@final
class _RayHandle(Handle):
    def __init__(self, actor: Any, job: Job, number: int) -> None:
        self.actor = actor
        self.result = actor.work.remote(job.to_json(), number)

    def poll(self) -> Outcome | None:
        import ray

        ready, _ = ray.wait([self.result], timeout=0)
        if not ready:
            return None
        try:
            return Outcome(**ray.get(self.result))
        except ray.exceptions.RayTaskError as error:
            return Outcome(kind="Unexpected", message=f"the actor could not start its worker: {error.cause or error}")
        except ray.exceptions.RayError as error:
            return Outcome(died=f"was lost by Ray: {str(error).splitlines()[0]}")
        finally:
            self.stop()

    def stop(self) -> None:
        import ray

        ray.kill(self.actor)
