"""Engines: workers that die are replaced, errors keep their words, nothing is lost or done twice; on a toy of work.

The toy (`toy.py`, written by a fixture) goes through pieces of parts under claims, as a worker goes through cells and
batches, but without torch. Whole runs on engines are in test_engines_run.py.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from benchmark import device, engines
from benchmark.engines import base
from benchmark.engines.base import Engine, Handle, Job, Outcome, WorkersLost, supervise
from benchmark.engines.child import Child
from benchmark.engines.local import LocalEngine
from benchmark.engines.slurm import SlurmEngine
from benchmark.errors import BadInput, BenchError, Missing
from benchmark.leases import Leases

TOY = '''
import json, os, sys, time
from pathlib import Path
from benchmark.errors import BadInput, Missing
from benchmark.leases import Leases
from benchmark.turns import take_turns

def work(given):
    """Each part leaves a file, and a line in a log that says who made it."""
    root, leases = Path(given["root"]), Leases(Path(given["root"]) / "leases")

    def piece(name):
        for k in range(given["parts"]):
            part = f"{name}.{k}"
            with leases.hold("part", part):  # asked for though the part be there: so a dead one's claim goes
                if not (root / part).exists():
                    time.sleep(given["seconds"])
                    (root.parent / part).write_text(part)
                    os.replace(root.parent / part, root / part)  # a kill leaves all of it or none
                    with (root / "made.txt").open("a") as log:
                        log.write(f"{part} {os.getpid()}\\n")

    pieces = {f"p{i}": (lambda i=i: piece(f"p{i}")) for i in range(given["pieces"])}
    take_turns(pieces, leases, done=lambda name: False)
    return {"pid": os.getpid()}

def surroundings(given):
    import importlib.util
    names = ("OMP_NUM_THREADS", "HF_TOKEN", "HF_HUB_OFFLINE", "PYTHONSAFEPATH", "CUDA_VISIBLE_DEVICES", "OMP_X")
    told = {name: os.environ.get(name) for name in names}
    return {**told, "cwd": os.getcwd(), "datasets": importlib.util.find_spec("datasets") is not None}

def missing(given):
    raise Missing("weights of sd99 are not here; fetch them")

def bug(given):
    return {}[given["root"]]

def kill(given):
    os.kill(os.getpid(), 9)
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:
    """Jobs of the toy, whose module workers find on their path."""
    for name in ("code", "session", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "code" / "toy.py").write_text(TOY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))

    def job(entry: str = "work", *, pieces: int = 4, parts: int = 4, seconds: float = 0.02) -> Job:
        payload = {"root": str(tmp_path / "work"), "pieces": pieces, "parts": parts, "seconds": seconds}
        return Job(
            entry=f"toy:{entry}",
            payload=payload,
            folder=str(tmp_path / "session"),
            cwd=os.getcwd(),
            environment=base.settings(),
        )

    return job


def made(job: Job) -> dict[str, str]:
    """Part → who made it; an error if one was made twice."""
    lines = [line.split() for line in (Path(job.payload["root"]) / "made.txt").read_text().splitlines()]
    assert len({part for part, _ in lines}) == len(lines), "a part was made twice"
    return dict(lines)


def whole(job: Job) -> None:
    """All parts are there, whole, and no claim is left; who is killed while it makes or gives back a claim leaves that
    claim's hidden file, which is nobody's and which a sweep takes."""
    leases = Path(job.payload["root"]) / "leases"
    assert not list(leases.glob("[!.]*"))
    Leases(leases, expiry_s=0).sweep()
    root, wanted = Path(job.payload["root"]), [f"p{i}.{k}" for i in range(4) for k in range(job.payload["parts"])]
    assert sorted(p.name for p in root.iterdir()) == sorted([*wanted, "made.txt"])
    assert all((root / name).read_text() == name for name in wanted)


@dataclass
class hit_one:
    """A watch that signals, once, the worker that has just made the third part, or the process `above` it."""

    job: Job
    number: int = signal.SIGKILL
    above: bool = False
    hit: list[int] = field(default_factory=list)

    def __call__(self) -> None:
        path = Path(self.job.payload["root"]) / "made.txt"
        if not self.hit and path.exists() and len(lines := path.read_text().splitlines()) >= 3:
            pid = int(lines[-1].split()[1])
            self.hit.append(_parent(Path(f"/proc/{pid}")) if self.above else pid)
            os.kill(self.hit[0], self.number)


# --- supervise ------------------------------------------------------------------------------------------------
class Scripted(Engine):
    """Workers that end as the script of each says, one entry a launch; None runs on."""

    def __init__(self, *scripts: Sequence[Outcome | None]) -> None:
        self.scripts, self.launched, self.stopped = [list(s) for s in scripts], list[int](), list[int]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def launch(self, job: Job, numbers: Sequence[int]) -> list[Handle]:
        self.launched += numbers
        return [_Scripted(self, n, self.scripts[n].pop(0)) for n in numbers]


class _Scripted(Handle):
    def __init__(self, engine: Scripted, number: int, outcome: Outcome | None) -> None:
        self.engine, self.number, self.outcome = engine, number, outcome

    def poll(self) -> Outcome | None:
        return self.outcome

    def stop(self) -> None:
        self.engine.stopped.append(self.number)


DONE, DEAD = Outcome(report=1), Outcome(died="was killed by SIGKILL")


def supervised(engine: Scripted, **kwargs: Any) -> tuple[list[Any], list[str]]:
    said: list[str] = []
    ticks = iter(range(10_000))
    job = Job(entry="", payload={}, folder="/f", cwd="", environment={})
    clock = {"sleep": lambda _: None, "clock": lambda: float(next(ticks))}
    return supervise(engine, job, workers=len(engine.scripts), say=said.append, **clock, **kwargs), said


def test_all_that_end_report():
    assert supervised(Scripted([DONE], [DONE]))[0] == [1, 1]


def test_the_dead_are_started_anew_and_that_is_said():
    engine = Scripted([DEAD, DEAD, DONE], [None])
    reports, said = supervised(engine)
    assert reports == [1] and engine.launched == [0, 1, 0, 0] and engine.stopped == [1]
    assert said == ["worker 1 was killed by SIGKILL; it is started anew"] * 2


def test_one_that_ends_means_that_all_is_done():
    """The other is given a minute to notice, then stopped; and nobody is started anew for nothing."""
    engine = Scripted([DONE], [None])
    assert supervised(engine)[0] == [1] and engine.stopped == [1]
    engine = Scripted([DONE], [DEAD])
    assert supervised(engine)[0] == [1] and engine.launched == [0, 1]


def test_if_all_die_again_and_again_it_is_said():
    engine = Scripted([DEAD] * 3, [DEAD] * 3)
    with pytest.raises(WorkersLost, match=r"all 2 workers died 3 times, the last time: worker 2 was killed") as caught:
        supervised(engine, retries=2)
    assert "logs are in /f" in str(caught.value) and caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("kind", "of", "code"), [("Missing", Missing, 3), ("BadInput", BadInput, 2), ("Unexpected", WorkersLost, 1)]
)
def test_a_clear_error_ends_the_run_with_its_own_words(kind: str, of: type[BenchError], code: int):
    engine = Scripted([None], [Outcome(kind=kind, message="fetch them")])
    with pytest.raises(of, match="fetch them") as caught:
        supervised(engine)
    assert caught.value.exit_code == code and engine.stopped == [0]


def test_an_interrupted_head_stops_its_workers():
    engine = Scripted([None], [None])

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        supervised(engine, watch=interrupt)
    assert engine.stopped == [0, 1]


# --- a process as a worker ------------------------------------------------------------------------------------
def test_workers_have_the_settings_of_the_head_and_no_token(toy: Callable[..., Job], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    job = toy("surroundings")
    assert "secret" not in json.dumps(job.to_json())
    monkeypatch.setenv("OMP_X", "set on that machine only")
    found = Child(job, 0, CUDA_VISIBLE_DEVICES="3").wait().report
    assert found == {
        "OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"],
        "HF_TOKEN": None,
        "HF_HUB_OFFLINE": "1",
        "PYTHONSAFEPATH": "1",
        "CUDA_VISIBLE_DEVICES": "3",
        "OMP_X": None,
        "cwd": os.getcwd(),
        "datasets": importlib.util.find_spec("datasets") is not None,
    }


def test_errors_of_a_worker_keep_their_class_and_words(toy: Callable[..., Job]):
    error = Child(toy("missing"), 0).wait().error()
    assert isinstance(error, Missing) and str(error) == "weights of sd99 are not here; fetch them"
    outcome = Child(toy("bug"), 0).wait()
    assert "unexpected KeyError" in str(outcome.error()) and "Traceback" in base.log(toy(), 0).read_text()


def test_a_killed_worker_is_dead_not_done(toy: Callable[..., Job]):
    outcome = Child(toy("kill"), 0).wait()
    assert outcome.error() is None and outcome.died is not None and "was killed by SIGKILL" in outcome.died


def test_a_folder_that_a_worker_does_not_see_is_said(toy: Callable[..., Job], tmp_path: Path):
    job = toy()
    outcome = Child(Job(**{**job.to_json(), "cwd": str(tmp_path / "nowhere")}), 0).wait()
    assert outcome.kind == "BadInput" and "nowhere is not there" in outcome.message
    with pytest.raises(BadInput, match="all workers must see the --out folder"):
        Child(Job(**{**job.to_json(), "folder": str(tmp_path / "nowhere")}), 0)


def test_a_worker_ends_with_whoever_started_it(toy: Callable[..., Job], tmp_path: Path):
    """The head is killed, so that it cannot stop anybody; its worker goes by itself."""
    (tmp_path / "job.json").write_text(json.dumps(toy(seconds=60.0).to_json()))
    code = (
        "import json, pathlib, time\n"
        "from benchmark.engines.base import Job\nfrom benchmark.engines.child import Child\n"
        f"job = Job.from_json(json.loads(pathlib.Path({str(tmp_path / 'job.json')!r}).read_text()))\n"
        "print(Child(job, 0).process.pid, flush=True)\ntime.sleep(60)"
    )
    head = subprocess.Popen([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, text=True)
    assert head.stdout is not None
    pid = int(head.stdout.readline())
    until(lambda: (tmp_path / "work" / "leases").exists())
    head.kill()
    head.communicate()
    until(lambda: not running(pid))


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


# --- engines --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("workers", [2, 4])
def test_local_workers_share_and_survive_a_kill(workers: int, toy: Callable[..., Job]):
    job, said = toy(parts=8, seconds=0.05), list[str]()
    watch = hit_one(job)
    with LocalEngine(workers=workers) as engine:
        reports = supervise(
            engine, job, workers=workers, say=said.append, watch=watch, sleep=lambda _: time.sleep(0.01)
        )
    assert reports and len(said) == 1 and "was killed by SIGKILL; it is started anew" in said[0]
    assert len(set(made(job).values())) >= 2
    whole(job)


def test_each_worker_sees_one_card(toy: Callable[..., Job]):
    with LocalEngine(workers=3, gpus=("4", "MIG-x")) as engine:
        seen = [h.wait().report["CUDA_VISIBLE_DEVICES"] for h in engine.launch(toy("surroundings"), range(3))]  # type: ignore[attr-defined]
    assert seen == ["4", "MIG-x", "4"]


needs_submitit = pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="needs submitit")
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")


@needs_submitit
@pytest.mark.parametrize("how", ["killed", "preempted"])
def test_slurm_jobs_share_and_survive(how: str, toy: Callable[..., Job], tmp_path: Path):
    """Through submitit's local executor; a preempted job ends in order, and starts anew where it was."""
    job, said = toy(parts=8, seconds=0.1), list[str]()
    engine = SlurmEngine(workers=2, parameters={"cluster": "local", "timeout_min": 5}, threads=1)
    number = signal.SIGKILL if how == "killed" else signal.SIGUSR2
    watch = hit_one(job, number, above=how == "preempted")
    with engine:
        assert supervise(engine, job, workers=2, say=said.append, watch=watch, sleep=lambda _: time.sleep(0.05))
    assert len(watch.hit) == 1
    logs = "".join(p.read_text() for p in (tmp_path / "session" / "slurm").glob("*_log.*"))
    if how == "killed":
        assert len(said) == 1 and "it is started anew" in said[0]
    else:
        assert said == [] and "Requeued job" in logs
    made(job)
    whole(job)


RAY = """
import json, pathlib, sys, time
from benchmark.engines.base import Job, supervise
from benchmark.engines.ray import RayEngine
import importlib.util
job = Job.from_json(json.loads(pathlib.Path({job!r}).read_text()))
spec = importlib.util.spec_from_file_location("toys", {test!r})
toys = sys.modules["toys"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toys)
watch, said = toys.hit_one(job), []
with RayEngine(workers=2, address=None, threads=1) as engine:
    listening = toys.listening()
    from ray._common.usage.usage_lib import usage_stats_enabled
    reports = supervise(engine, job, workers=2, say=said.append, watch=watch, sleep=lambda _: time.sleep(0.05))
told = {{"reports": reports, "said": said, "killed": watch.hit, "listening": listening, "tells": usage_stats_enabled()}}
print(json.dumps(told))
"""


def listening() -> list[str]:
    """Addresses on which this process's descendants accept connections, ends of `/proc/net/tcp*` lines as hex."""
    parents = {int(p.name): _parent(p) for p in Path("/proc").iterdir() if p.name.isdecimal()}
    ours = {pid for pid in parents if os.getpid() in _ancestors(pid, parents)}
    sockets = {s for pid in ours for s in _sockets(pid)}
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return sorted({w[1].split(":")[0] for w in lines if w[3] == "0A" and w[9] in sockets})


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid:
        yield pid
        pid = parents.get(pid, 0)


def _sockets(pid: int) -> Iterator[str]:
    try:
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            name = os.readlink(handle)
            if name.startswith("socket:["):
                yield name[8:-1]
    except OSError:
        return


LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@needs_ray
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="sockets are read from /proc")
def test_ray_actors_share_survive_a_kill_and_listen_to_this_machine_only(
    toy: Callable[..., Job], tmp_path: Path, request: pytest.FixtureRequest
):
    job = toy(parts=8, seconds=0.1)
    (tmp_path / "job.json").write_text(json.dumps(job.to_json()))
    code = RAY.format(test=__file__, job=str(tmp_path / "job.json"))
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=300)
    if "Ray could not start on this machine" in done.stderr and not request.config.getoption("--slow"):
        pytest.skip("Ray's own processes took more than 15 s to come up, three times")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["tells"] is False, "Ray sends statistics of its use"
    assert told["reports"] and len(told["killed"]) == 1, told
    assert len(told["said"]) == 1 and "it is started anew" in told["said"][0]
    assert told["listening"] and set(told["listening"]) <= LOOPBACK, "Ray listens where others can reach it"
    made(job)
    whole(job)


# --- choosing one ---------------------------------------------------------------------------------------------
def test_one_worker_here_needs_no_engine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(device, "gpus", lambda: ["0"])
    assert engines.engine("local", cells=9) is None
    assert engines.engine("local", cells=9, workers=1) is None
    monkeypatch.setattr(device, "gpus", lambda: ["0", "1", "2"])
    chosen = engines.engine("local", cells=9)
    assert isinstance(chosen, LocalEngine) and chosen.workers == 3 and chosen.gpus == ("0", "1", "2")


def test_cards_are_those_that_are_not_hidden(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(device, "kind", lambda: "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-5e")
    assert device.gpus() == ["2", "GPU-5e"]
    monkeypatch.setattr(device, "kind", lambda: "cpu")
    assert device.gpus() == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "condor"}, "expected one of local, ray, slurm; got 'condor'"),
        ({"name": "local", "workers": 0}, "--workers: expected at least 1"),
        ({"name": "local", "address": "auto"}, "--ray-address goes with --executor ray"),
        ({"name": "ray", "slurm": {"timeout_min": 3}}, "--slurm goes with --executor slurm"),
        ({"name": "slurm", "slurm": {"cluster": "debug"}}, "expected slurm or local, got 'debug'"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: dict[str, Any], said: str):
    with pytest.raises(BadInput, match=said):
        engines.engine(cells=9, **arguments)


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_package_is_named_with_what_to_install(name: str, package: str, monkeypatch: pytest.MonkeyPatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == package else real(n, *a))
    with pytest.raises(Missing, match=rf"needs the package {package}: pip install 'erasure-bench\[{name}\]'"):
        engines.engine(name, cells=9)


@needs_submitit
def test_slurm_needs_a_machine_that_submits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Missing, match="needs sbatch on the path"):
        engines.engine("slurm", cells=9)


@needs_submitit
def test_an_unknown_parameter_of_slurm_is_refused(toy: Callable[..., Job]):
    engine = SlurmEngine(workers=1, parameters={"cluster": "local", "partitoin": "gpu"}, threads=1)
    with pytest.raises(BadInput, match="--slurm: .*partitoin"):
        engine.launch(toy(), [0])


@pytest.mark.parametrize(
    ("cores", "cells", "images", "expected"),
    [(8, 20, 5000, 4), (2, 20, 5000, 2), (2, 1, 5000, None), (8, 20, 299, 2), (8, 20, 0, None), (1, 20, 5000, None)],
)
def test_a_cpu_gets_as_many_workers_as_have_work(
    cores: int, cells: int, images: int, expected: int | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(device, "cores", lambda: cores)
    monkeypatch.setattr(device, "gpus", lambda: [])
    chosen = engines.engine("local", cells=cells, images=images)
    assert (chosen and chosen.workers) == expected
    assert engines.engine("local", cells=cells, images=images, workers=1) is None, "unless told otherwise"
