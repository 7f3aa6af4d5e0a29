"""What runs a plan's workers: processes of this machine, actors of a Ray cluster, jobs of a Slurm cluster.

Every worker goes through all cells and takes what no other has claimed (`benchmark.leases`), so an engine only has to
start workers, and to start those anew that die. Nothing an engine does can change a result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmark import device
from benchmark.engines.base import Engine
from benchmark.errors import BadInput

NAMES = ("local", "ray", "slurm")
WORTH_A_WORKER = 100
"""Images for which another process on a CPU is worth its start; harness default."""


def engine(
    name: str,
    *,
    workers: int | None = None,
    cells: int,
    images: int = 0,
    address: str | None = None,
    slurm: Mapping[str, Any] | None = None,
) -> Engine | None:
    """The engine of that name, checked but not started; None where this process alone does the work.

    `workers` left out: one a GPU (local, Ray), or as many as there are cells, four at most (Slurm); of a CPU's cores as
    many as `images`, those of a small model still to be made, keep busy. `address` is a Ray cluster's, `slurm`
    submitit's parameters. BadInput for what does not go together, Missing for a package that is not there.
    """
    _check(name, workers, address, slurm)
    if name == "ray":
        from benchmark.engines.ray import RayEngine

        return RayEngine(workers=workers, address=address, threads=device.threads())
    if name == "slurm":
        from benchmark.engines.slurm import SlurmEngine

        return SlurmEngine(workers=workers or min(cells, 4), parameters=slurm or {}, threads=device.threads())
    from benchmark.engines.local import LocalEngine

    gpus = device.gpus()
    count = workers or by_itself(cells, images)
    return None if count == 1 else LocalEngine(workers=count, gpus=gpus)


def by_itself(cells: int, images: int) -> int:
    """How many workers the local engine takes where nobody says: see `engine`.

    On a CPU no more than cores, and none that would hardly do more than load the model.
    """
    on_cores = min(device.cores() // device.threads(), device.MOST_WORKERS, cells, images // WORTH_A_WORKER)
    return len(device.gpus()) or max(1, on_cores)


def _check(name: str, workers: int | None, address: str | None, slurm: Mapping[str, Any] | None) -> None:
    if name not in NAMES:
        raise BadInput(f"--executor: expected one of {', '.join(NAMES)}; got {name!r}")
    if workers is not None and workers < 1:
        raise BadInput(f"--workers: expected at least 1, got {workers}")
    if address is not None and name != "ray":
        raise BadInput(f"--ray-address goes with --executor ray; got --executor {name}")
    if slurm and name != "slurm":
        raise BadInput(f"--slurm goes with --executor slurm; got --executor {name}")
