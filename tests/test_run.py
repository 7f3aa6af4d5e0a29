"""Whole runs: the same bytes whatever happens on the way, nothing done twice, faults named and kept to their cells."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import safetensors.torch
from typer.testing import CliRunner, Result

from benchmark import (
    baseline,
    cli,
    consistency,
    evidence,
    keys,
    models,
    paths,
    recompute,
    record,
    registry,
    regress,
    run,
    verify,
    worker,
)
from benchmark.backbones import load as loading
from benchmark.backbones.base import Backbone
from benchmark.interface import Edit, Family, Method, Request
from benchmark.leases import Leases
from benchmark.metrics import accuracy, evaluators, summary
from benchmark.plan import make_plan
from benchmark.run import Drawn
from benchmark.store import Store
from benchmark.tables import grids
from benchmark.testbed import evaluator

ROOT = Path(__file__).resolve().parent.parent
ALL = ("--model", "testbed", "--methods", "none,uce,esd,noise,grey,blocklist")
FEW = ("--model", "random-unet", "--methods", "none,uce,noise")
SUITE = """\
title: A test
version: 1
source: ours
methods: [none]
headline: H_o
forms:
  embedded:
    dataset: testbed
    requests: [{each: [cat, airplane], keep: [dog, frog]}]
    prompts:
      erased: {templates: ["a photo of the {concept}"], images: 2}
      synonym: {templates: ["a photo of the {concept}"], images: 1}
      kept: {templates: ["a photo of the {concept}"], images: 1}
    sampler: {scheduler: ddim, steps: 2, guidance: 3.0, size: 64}
    batch: 4
    primary: testbed/top1
    protocols: [testbed/top1, testbed-clip/score]
"""
CELLS = [f"{m}.erase_{c}.seed0" for m in ("none", "uce", "noise") for c in ("cat", "airplane")]
IMAGES = 6 * 7 - 2  # seven a cell; of the unedited model, the two kept ones are shared
Snapshot = dict[str, bytes]
Seeded = Callable[[pytest.MonkeyPatch, Path, Path], Path]


@dataclass(frozen=True, kw_only=True)
class Faulty(Method):
    """Does what its test tells it."""

    name: ClassVar[str] = "faulty"
    version: ClassVar[int] = 1
    role: ClassVar[Literal["baseline", "erasure", "control"]] = "erasure"
    paper: ClassVar[str] = ""
    families: ClassVar[frozenset[Family]] = frozenset({"unet-epsilon"})
    scale: ClassVar[float] = 1.0
    """Of all projections; at 0 it raises."""

    def edit(self, backbone: Backbone, request: Request) -> Edit:
        if not type(self).scale:
            raise OSError(2, "No such file or directory", f"{os.getcwd()}/lost.bin")
        return Edit(weights={p.name: p.weight * type(self).scale for p in backbone.projections()})


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "tiny.yaml"
    path.write_text(SUITE)
    return path


@pytest.fixture(scope="module", autouse=True)
def patched() -> Any:
    """`faulty` is a method, nobody's commit comes in between two runs, and what takes long takes less."""
    known = registry.method_class
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "method_class", lambda name: Faulty if name == "faulty" else known(name))
        patch.setattr(registry, "presets", lambda: {"testbed": {"esd": {"*": {"iterations": 2, "steps": 2}}}})
        patch.setattr(record, "_commit", lambda: (None, None))
        patch.setattr(evaluator, "BATCH", 8)
        patch.setattr(grids, "png", lambda image: image.resize((99, 99)).tobytes())
        yield


def call(suite: Path, out: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["run", str(suite), "--out", str(out), "--quiet", *arguments])


def done(suite: Path, out: Path, *arguments: str, code: int = 0) -> Result:
    result = call(suite, out, *arguments)
    assert result.exit_code == code, result.output
    return result


def snapshot(out: Path) -> Snapshot:
    """Every file of a run's folder, but what may differ: costs, logs, and what was cut off or set aside."""
    free = ("costs.json", "log/", "store/costs/", "store/tmp/", "store/damaged/")
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in sorted(files.items()) if not name.startswith(free)}


def costs(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "costs.json").read_bytes()))


def rows(out: Path) -> dict[tuple[str, str], Any]:
    return {(r["method"], r["request"]): r for r in json.loads((out / "board.json").read_bytes())["rows"]}


@pytest.fixture(scope="module")
def few(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: to be compared with and copied, not changed."""
    out = tmp_path_factory.mktemp("few") / "out"
    done(suite, out, *FEW)
    return out


@pytest.fixture(scope="module")
def finished(few: Path) -> Snapshot:
    return snapshot(few)


@pytest.fixture
def copy(few: Path, tmp_path: Path) -> Path:
    """A finished run to be harmed."""
    shutil.copytree(few, tmp_path / "out")
    return tmp_path / "out"


# --- the same bytes -------------------------------------------------------------------------------------------
def test_two_runs_from_scratch_are_the_same_bytes_and_a_third_does_nothing(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    done(suite, tmp_path / "a", *ALL)
    first = snapshot(tmp_path / "a")
    assert {"board.json", "board.csv", "board.md", "SHA256SUMS", "grids/erase_cat.png"} <= first.keys()
    assert len([name for name in first if name.startswith("records/")]) == 12
    assert {r["status"] for r in rows(tmp_path / "a").values()} == {"ok"}

    done(suite, tmp_path / "b", *ALL)
    assert snapshot(tmp_path / "b") == first

    def no(*_: Any, **__: Any) -> Any:
        raise AssertionError("loaded in a run that has nothing to do")

    monkeypatch.setattr(loading, "load", no)
    monkeypatch.setattr(evaluators, "load", no)
    before = costs(tmp_path / "a")
    done(suite, tmp_path / "a", *ALL)
    assert snapshot(tmp_path / "a") == first
    after = costs(tmp_path / "a")
    assert after["last_run"]["images_made"] == 0 and before["last_run"]["images_made"] > 0
    assert after["cells"] == before["cells"], "what it took then is still known"


def test_images_of_the_unedited_model_are_made_once(few: Path):
    cells = costs(few)["cells"]
    assert cells.keys() == set(CELLS) and costs(few)["last_run"]["images_made"] == IMAGES
    made = {slug: cells[slug]["images"]["made"] for slug in CELLS}
    assert made.pop("none.erase_airplane.seed0") == 5 and set(made.values()) == {7}
    assert all(cells[slug]["scores"]["seconds"] > 0 for slug in CELLS)


def test_costs_tell_each_stage_and_every_invocation(suite: Path, copy: Path):
    of = costs(copy)["cells"]["uce.erase_cat.seed0"]
    assert of["images"]["peak_bytes"] > 1 << 20 and of["scores"]["peak_bytes"] > 1 << 20
    # seven images in batches of four: two, the last padded; two steps with guidance; seven prompts and the empty one
    assert of["images"]["denoiser_forwards"] == 2 * 4 * 2 * 2 and of["images"]["decodes"] == 2 * 4
    assert of["images"]["text_encodes"] >= 8
    done(suite, copy, *FEW, "--scale", "1")
    first, second = costs(copy)["runs"]
    assert first["images_made"] == IMAGES and second["images_made"] == 0 and first["id"] != second["id"]
    assert second["arguments"]["methods"] == ["none", "uce", "noise"] and second["passed"]["scale"] == 1
    assert second["arguments"]["suite"] == "tiny.yaml" and "driver" in second["machine"]


def test_records_hash_their_prompts_and_images(few: Path):
    records = record.read_all(few / "records")
    assert all(r.hashes.model_dump() == record.hashes(r.rows.model_dump(mode="json")) for r in records)
    by_request = {r.request.name: set() for r in records}
    for r in records:
        by_request[r.request.name].add(r.hashes.prompts)
    assert all(len(found) == 1 for found in by_request.values()), "all methods are asked the same"
    assert len({r.hashes.images for r in records}) == len(records)


def test_every_number_is_recomputed_from_raw_outputs(few: Path, copy: Path):
    before = snapshot(few)
    found = recompute.recompute(few)
    assert not found.wrong and not found.skipped and found.values == 6 * 7 * 2
    assert verify.verify(few) == [] and snapshot(few) == before, "nothing is written"
    path = copy / "records" / "uce.erase_cat.seed0.json"
    values = json.loads(path.read_bytes())
    column = values["rows"]["values"]["testbed-clip/score"]
    column[2] += 1
    # whoever forges a number makes the rest of the record fit, and its checksum: only the raw outputs tell
    base = json.loads((copy / "records" / "none.erase_cat.seed0.json").read_bytes())
    values["hashes"] = record.hashes(values["rows"])
    values["summary"] = summary.with_unedited(consistency._made(values), consistency._made(base))
    path.write_text(json.dumps(values))
    verify.seal(copy)
    found_value, *of_summary = recompute.recompute(copy).wrong
    assert of_summary and all("summary" in line for line in of_summary)
    assert (
        found_value.startswith("uce on erase:cat: testbed-clip/score, row [2]: ") and "raw outputs give" in found_value
    )


@pytest.mark.quick("3")
@pytest.mark.parametrize("batch", [1, 3, 5])
def test_a_rerun_with_another_batch_size_passes_the_gate(suite: Path, few: Path, tmp_path: Path, batch: int):
    before = baseline.write(list(evidence.load(str(few)).records), "first", tmp_path / "b.json")
    done(suite, tmp_path / "out", *FEW, "--batch-size", str(batch))
    after = evidence.load(str(tmp_path / "out")).records
    report = regress.regress(baseline.read(before).records, after)
    assert report.ok and not report.exact, report.findings
    assert [str(c) for c in report.changes] == [f"batch size: 4 → {batch}"]
    same = regress.regress(baseline.read(before).records, evidence.load(str(few)).records)
    assert same.ok and len(same.exact) == 6


SEEDED = ("--model", "testbed", "--methods", "none,uce")


@pytest.fixture(scope="module")
def unharmed(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A baseline of the embedded model's own weights."""
    out = tmp_path_factory.mktemp("unharmed")
    done(suite, out / "out", *SEEDED)
    return baseline.read(baseline.write(list(evidence.load(str(out / "out")).records), "first", out / "b.json"))


def _another_weight(patch: pytest.MonkeyPatch, suite: Path, folder: Path) -> Path:
    """One value of one tensor of the denoiser, as a damaged or exchanged file would have it."""
    model = folder / "weights"
    shutil.copytree(paths.testbed_weights(), model)
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    name = next(n for n in tensors if n.endswith("attn2.to_v.weight"))
    tensors[name][0, 0] += 1
    safetensors.torch.save_file(tensors, file)
    patch.setattr(paths, "testbed_weights", lambda name="testbed": model)
    return suite


def _another_prompt(patch: pytest.MonkeyPatch, suite: Path, folder: Path) -> Path:
    other = folder / suite.name
    other.write_text(SUITE.replace('kept: {templates: ["a photo of', 'kept: {templates: ["a picture of'))
    return other


def _another_package(patch: pytest.MonkeyPatch, suite: Path, folder: Path) -> Path:
    known = record._version
    patch.setattr(record, "_version", lambda name: "0.0.1" if name == "diffusers" else known(name))
    return suite


def _another_threshold(patch: pytest.MonkeyPatch, suite: Path, folder: Path) -> Path:
    """A picture counts where the judge gives what was asked more than 0.99, not where it is first; nothing says so."""
    sure = accuracy.probability
    patch.setattr(accuracy, "top1", lambda logits, asked: np.where(sure(logits, asked) > 0.99, 1.0, 0.0))
    return suite


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        (_another_weight, "input", "model weights testbed: "),
        (_another_prompt, "input", "kept 'a photo of the dog' for dog → kept 'a picture of the dog' for dog"),
        (_another_package, "input", "package diffusers: "),
        (_another_threshold, "bytes", "its threshold or rule moved without a new version"),
    ],
)
def test_a_fault_that_is_seeded_into_a_real_run_is_caught_and_named(
    unharmed: Any, suite: Path, tmp_path: Path, fault: Seeded, kind: str, said: str
):
    with pytest.MonkeyPatch.context() as patch:
        done(fault(patch, suite, tmp_path), tmp_path / "out", *SEEDED)
    report = regress.regress(unharmed.records, evidence.load(str(tmp_path / "out")).records)
    assert not report.ok
    assert any(f.kind == kind and said in f.text for f in report.findings), [f.text for f in report.findings]


def test_without_raw_outputs_or_the_judge_nothing_is_claimed(copy: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.rmtree(copy / "store" / "raw")
    found = recompute.recompute(copy)
    assert not found.wrong and found.values == 0 and len(found.skipped) == 6
    assert "has no raw outputs of testbed-a" in found.skipped[0]
    monkeypatch.setattr(evaluators, "weights_hash", lambda *_, **__: "0" * 64)
    skipped = recompute.recompute(copy).skipped
    assert skipped[0] == "testbed/top1: testbed-a has other weights here than in the run"


def test_nothing_of_this_machine_or_hour_is_written_where_bytes_count(few: Path, finished: Snapshot):
    for name, content in finished.items():
        if name.startswith("store/"):
            continue
        for private in (str(few), str(ROOT), str(Path.home()), socket.gethostname()):
            assert len(private) < 6 or private.encode() not in content, (name, private)
    for name in (n for n in finished if n.startswith("records/")):
        assert not {"seconds", "time", "date", "peak_bytes"} & _names(json.loads(finished[name]))


def _names(value: Any) -> set[str]:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set(value if isinstance(value, dict) else ()).union(*map(_names, children))


def test_shards_together_are_one_run(suite: Path, tmp_path: Path, finished: Snapshot):
    out = tmp_path / "out"
    first = done(suite, out, *FEW, "--shard", "1/2")
    assert "3 of 6 cells belong to other shards" in first.stderr and not (out / "board.json").exists()
    done(suite, out, *FEW, "--shard", "2/2")
    assert snapshot(out) == finished
    assert costs(out)["cells"].keys() == set(CELLS)
    done(suite, out, *FEW)
    assert snapshot(out) == finished and costs(out)["last_run"]["images_made"] == 0


@pytest.mark.slow
def test_shards_in_the_other_order_give_the_same_board(suite: Path, tmp_path: Path, finished: Snapshot):
    for part in ("2/2", "1/2"):
        done(suite, tmp_path, *FEW, "--shard", part)
    assert snapshot(tmp_path) == finished


def test_shards_of_machines_that_share_nothing_are_merged_by_copying(suite: Path, tmp_path: Path, finished: Snapshot):
    out = tmp_path / "out"
    for part in (1, 2):
        done(suite, tmp_path / str(part), *FEW, "--shard", f"{part}/2")
        shutil.copytree(tmp_path / str(part), out, dirs_exist_ok=True)
    done(suite, out, *FEW)
    assert snapshot(out) == finished and costs(out)["last_run"]["images_made"] == 0


# --- several processes ----------------------------------------------------------------------------------------
def start(suite: Path, out: Path, log: Path, *arguments: str) -> multiprocessing.Process:
    """A run in a process of its own, which logs every artifact that it makes and puts away a claim now and then."""

    def work() -> None:
        real = Store.put

        def put(store: Store, *address: str, files: Any) -> None:
            with log.open("a") as file:
                file.write(f"{os.getpid()} {'/'.join(address)}\n")
            real(store, *address, files=files)

        Store.put = put  # type: ignore[method-assign]
        with log.with_suffix(f".{os.getpid()}").open("w") as sys.stderr:
            sys.argv = ["erasure-bench", "run", str(suite), "--out", str(out), "--quiet", *FEW, *arguments]
            cli.main()

    process = multiprocessing.get_context("fork").Process(target=work)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    return process


def joined(processes: list[multiprocessing.Process], log: Path) -> None:
    for process in processes:
        process.join(300)
        told = log.with_suffix(f".{process.pid}")
        assert process.exitcode == 0, told.read_text() if told.exists() else "no log"


def made(log: Path) -> list[str]:
    """Addresses of what was made, once each time; times of edits apart, which are of each making."""
    return [line.split()[1] for line in log.read_text().splitlines() if " costs/" not in line]


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_on_one_folder_do_each_thing_once(count: int, suite: Path, tmp_path: Path, finished: Snapshot):
    out, log = tmp_path / "out", tmp_path / "made.txt"
    joined([start(suite, out, log) for _ in range(count)], log)
    assert snapshot(out) == finished
    addresses = made(log)
    assert len(addresses) == len(set(addresses)), "something was made twice"
    told = costs(out)
    assert sum(run["images_made"] for run in told["runs"]) == IMAGES and len(told["runs"]) == count
    assert len({line.split()[0] for line in log.read_text().splitlines()}) == count, "all of them worked"
    assert told["cells"].keys() == set(CELLS) and not list((out / "log").iterdir())
    assert sum(told["cells"][slug]["images"]["made"] for slug in CELLS) == IMAGES, "no cost is lost"


def test_processes_with_folders_of_their_own_share_a_store(suite: Path, tmp_path: Path, finished: Snapshot):
    log, store = tmp_path / "made.txt", tmp_path / "store"
    joined([start(suite, tmp_path / n, log, "--store", str(store)) for n in "ab"], log)
    for name in "ab":
        assert snapshot(tmp_path / name) == _but_the_store(finished)
    assert len(made(log)) == len(set(made(log))), "something was made twice"
    assert not (store / "leases").exists()


def test_what_others_finish_while_texts_are_encoded_is_taken(
    suite: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Snapshot
):
    real = worker._Share.take

    def late(share: worker._Share, part: Any) -> bool:
        if not (tmp_path / "costs.json").exists():
            shutil.copytree(few / "store" / "images", tmp_path / "store" / "images", dirs_exist_ok=True)
            shutil.copy(few / "costs.json", tmp_path)
        return real(share, part)

    monkeypatch.setattr(worker._Share, "take", late)
    done(suite, tmp_path, *FEW)
    assert snapshot(tmp_path) == finished
    told, theirs = costs(tmp_path), costs(few)
    assert told["last_run"]["images_made"] == 0 and len(told["runs"]) == 2
    ours, before = ([run["cells"][slug]["images"] for slug in CELLS] for run in (told, theirs))
    assert [images["made"] for images in ours] == [images["made"] for images in before]
    assert sum(i["text_encodes"] for i in ours) > sum(i["text_encodes"] for i in before)


def test_one_of_two_processes_is_killed_and_the_other_ends_the_work(suite: Path, tmp_path: Path, finished: Snapshot):
    out, log = tmp_path / "out", tmp_path / "made.txt"
    first, second = start(suite, out, log), start(suite, out, log)
    until = time.monotonic() + 120
    while not log.exists() or f"{first.pid} images/" not in log.read_text():
        assert time.monotonic() < until and first.is_alive()
        time.sleep(0.01)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    joined([second], log)
    first.join()
    assert snapshot(out) == finished
    addresses = made(log)
    assert len(addresses) - len(set(addresses)) <= 1, "more than the killed one's batch was made again"


def test_a_run_of_other_settings_does_not_enter_the_folder_of_one_at_work(suite: Path, copy: Path):
    with Leases(copy / "log" / "leases").hold("run.another", "process"):
        assert "1 runs with other settings are at work" in done(suite, copy, *FEW, code=2).stderr
    done(suite, copy, *FEW)


def test_what_another_process_has_failed_is_not_tried_twice(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A record of this run's, as another process of it leaves them, is taken; one of an earlier run is not."""
    options = run.RunOptions(
        suite=str(suite), model="random-unet", methods=("none", "faulty"), out=tmp_path, quiet=True
    )
    monkeypatch.setattr(Faulty, "scale", 0.0)
    tried = []
    real = worker.Worker._make
    monkeypatch.setattr(worker.Worker, "_make", lambda *given: (tried.append(1), real(*given)))
    run._prepare(tmp_path)
    plan = run.settled(options)
    with run._runner(plan, options) as first:
        first.work()
    assert len(tried) == 2
    with run._runner(plan, options, first.since) as second:
        second.work()
    assert len(tried) == 2, "of the same run"
    with run._runner(plan, options) as later:
        later.work()
    assert len(tried) == 4, "a new run tries again"


def _but_the_store(files: Snapshot) -> Snapshot:
    return {name: content for name, content in files.items() if not name.startswith("store/")}


@pytest.mark.parametrize("how", ["another seed", "half written"])
def test_a_shard_takes_no_other_runs_record_for_its_own(suite: Path, copy: Path, how: str):
    path = copy / "records" / f"{CELLS[1]}.json"
    if how == "half written":
        path.write_bytes(path.read_bytes()[:100])
    else:
        path.write_text(path.read_text().replace('"scale": 1.0', '"scale": 0.5'))
    first = done(suite, copy, *FEW, "--shard", "1/2")
    assert "1 of 6 cells belong to other shards" in first.stderr


def test_what_an_earlier_run_with_more_left_is_taken_away(suite: Path, copy: Path, tmp_path: Path):
    smaller = tmp_path / "tiny.yaml"
    smaller.write_text(SUITE.replace("[cat, airplane]", "[cat]"))
    done(smaller, copy, "--model", "random-unet", "--methods", "none,uce")
    done(smaller, tmp_path / "new", "--model", "random-unet", "--methods", "none,uce")
    assert _but_the_store(snapshot(copy)) == _but_the_store(snapshot(tmp_path / "new"))


# --- stopped and resumed --------------------------------------------------------------------------------------
def stopped(suite: Path, out: Path, hook: Callable[[], None]) -> int:
    """Run in a process of its own, with its hook in place; returns its exit code, negative for a signal."""

    def work() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        hook()
        with (out.parent / "stderr.txt").open("w") as sys.stderr:
            sys.argv = ["erasure-bench", "run", str(suite), "--out", str(out), *FEW]
            cli.main()

    process = multiprocessing.get_context("fork").Process(target=work)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forks of several threads: the others only wait here
        process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def after(owner: Any, name: str, calls: int, number: signal.Signals, *, done: bool) -> Callable[[], None]:
    """A hook that sends this process a signal in the n-th call of a function, when it is `done` or before."""
    real = getattr(owner, name)
    count = iter(range(calls - 1, -1, -1))

    def replaced(*arguments: Any, **named: Any) -> Any:
        last = next(count, -1) == 0
        result = real(*arguments, **named) if done or not last else None
        if last:
            os.kill(os.getpid(), number)
        return result

    return lambda: setattr(owner, name, replaced)


KILLS: dict[str, tuple[Any, str, int, bool]] = {
    "after the first batch": (worker.Worker, "_put_images", 1, True),
    "in a batch of an edited model": (worker.Worker, "_put_images", 6, False),
    "in the edit that a control needs": (worker, "_made", 3, False),
    "in scoring": (worker.Worker, "_raw", 3, True),
    "while an artifact is written": (Store, "_publish", 2, False),
    "before a record": (record, "write", 3, False),
    "before the grids": (grids, "draw", 1, False),
}


@pytest.mark.quick("in a batch of an edited model", "while an artifact is written")
@pytest.mark.parametrize("point", KILLS)
def test_a_killed_run_goes_on_to_the_same_bytes(point: str, suite: Path, tmp_path: Path, finished: Snapshot):
    out = tmp_path / "out"
    owner, name, calls, whole = KILLS[point]
    assert stopped(suite, out, after(owner, name, calls, signal.SIGKILL, done=whole)) == -signal.SIGKILL
    assert snapshot(out) != finished
    done(suite, out, *FEW)
    assert snapshot(out) == finished


def test_an_interrupted_run_says_so_and_goes_on(suite: Path, tmp_path: Path, finished: Snapshot):
    out = tmp_path / "out"
    hook = after(worker.Worker, "_put_images", 6, signal.SIGINT, done=True)
    assert stopped(suite, out, hook) == 130
    told = (tmp_path / "stderr.txt").read_text()
    assert "interrupted; what is done is kept" in told and "Traceback" not in told
    made = costs(out)["last_run"]["images_made"]
    assert 0 < made < IMAGES, "what it took is written down"
    done(suite, out, *FEW)
    assert snapshot(out) == finished
    # The batch at whose end the signal came is kept, though it was not counted.
    assert made + costs(out)["last_run"]["images_made"] in (IMAGES, IMAGES - 3, IMAGES - 4)
    assert costs(out)["cells"].keys() == set(CELLS)


# --- damage ---------------------------------------------------------------------------------------------------
def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0 if path.name == "manifest.json" else len(content) // 2] ^= 1
    path.write_bytes(content)


def key_of(out: Path, slug: str) -> str:
    return str(json.loads((out / "records" / f"{slug}.json").read_bytes())["edit"]["key"])


def first(out: Path, pattern: str) -> Path:
    return sorted(out.glob(pattern))[0]


DAMAGE = {
    "what records need of an edit": ("edits/{uce}/about.json", ()),
    "an edit that images need": ("edits/{uce}/edit.safetensors", ("images", "raw", "scores")),
    "an edit that another edit needs": ("edits/{uce}/edit.safetensors", ("edits/{noise}",)),
    "an edit's manifest": ("edits/{noise}/manifest.json", ()),
    "images that the grids need": ("images/*/*/images.npy", ()),
    "images that judges need": ("images/*/*/images.npy", ("raw", "scores")),
    "the list of a batch": ("images/*/*/items.json", ()),
    "raw outputs": ("raw/*/raw.safetensors", ("scores",)),
    "scores": ("scores/*/scores.json", ()),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_damaged_is_named_set_aside_and_made_anew(what: str, suite: Path, copy: Path, finished: Snapshot):
    harmed, removed = DAMAGE[what]
    names = {m: key_of(copy, f"{m}.erase_cat.seed0") for m in ("uce", "noise")}
    path = first(copy / "store", harmed.format(**names))
    flip(path)
    for name in removed:
        shutil.rmtree(copy / "store" / name.format(**names))
    result = done(suite, copy, *FEW)
    assert f"damaged artifact {path.parent}: {path.name}" in result.stderr
    assert "set aside" in result.stderr and "failed" not in result.stderr
    assert len(list((copy / "store" / "damaged").iterdir())) == 1
    assert snapshot(copy) == finished


def test_every_batch_damaged_is_still_one_run(suite: Path, copy: Path, finished: Snapshot):
    for path in (copy / "store" / "images").rglob("images.npy"):
        flip(path)
    shutil.rmtree(copy / "store" / "raw")
    shutil.rmtree(copy / "store" / "scores")
    done(suite, copy, *FEW)
    assert snapshot(copy) == finished


def test_what_is_damaged_again_and_again_ends_the_run(suite: Path, copy: Path, monkeypatch: pytest.MonkeyPatch):
    """A failing disk: the run must not try for ever."""
    real = Store.put

    def put(store: Store, *address: str, files: Any) -> None:
        real(store, *address, files=files)
        if address[0] == "scores":
            flip(store.root.joinpath(*address, "scores.json"))

    monkeypatch.setattr(Store, "put", put)
    shutil.rmtree(copy / "store" / "scores")
    assert "damaged artifact" in done(suite, copy, *FEW, code=1).stderr


# --- failures -------------------------------------------------------------------------------------------------
FAULTY = ("--model", "random-unet", "--methods", "none,uce,noise,faulty")


@pytest.mark.parametrize(
    ("scale", "reason"),
    [
        (0.0, "edit: FileNotFoundError: [Errno 2] No such file or directory: 'lost.bin'"),
        (float("nan"), "not finite"),
        (1.0, "nothing is erased"),
    ],
    ids=["raises", "nan", "base"],
)
def test_a_failed_method_fails_alone_and_is_tried_again(
    scale: float, reason: str, suite: Path, copy: Path, finished: Snapshot, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Faulty, "scale", scale)
    result = done(suite, copy, *FAULTY, code=4)
    assert "2 cells failed" in result.stderr and f"see {copy / 'log'}" in result.stderr
    found = rows(copy)
    for request in ("erase:cat", "erase:airplane"):
        row = found["faulty", request]
        assert row["status"] == "failed" and reason in row["reason"] and row["headline"] is None
        log = copy / "log" / f"faulty.{request.replace(':', '_')}.seed0.txt"
        assert "Traceback" in log.read_text()
    assert found["faulty", "mean"]["status"] == "failed"
    assert "faulty, erase:cat: failed" in (copy / "board.md").read_text()
    now = snapshot(copy)
    others = [n for n in finished if n.startswith("records/")]
    assert all(now[n] == finished[n] for n in others), "the other cells are as they were"

    monkeypatch.setattr(Faulty, "scale", 0.5)
    done(suite, copy, *FAULTY)
    assert {r["status"] for r in rows(copy).values()} == {"ok"} and not list((copy / "log").iterdir())


def test_a_cell_that_failed_in_another_shard_counts(suite: Path, copy: Path, monkeypatch: pytest.MonkeyPatch):
    methods = ("--model", "random-unet", "--methods", "none,faulty")
    monkeypatch.setattr(Faulty, "scale", 0.0)
    done(suite, copy, *methods, "--shard", "1/2", code=4)
    monkeypatch.setattr(Faulty, "scale", 0.5)
    done(suite, copy, *methods, "--shard", "2/2", code=4)


def test_if_all_fail_there_is_a_board_all_the_same(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Faulty, "scale", 0.0)
    done(suite, tmp_path, "--model", "random-unet", "--methods", "faulty", code=4)
    assert {r["status"] for r in rows(tmp_path).values()} == {"failed"}


def test_reasons_are_one_short_line_without_places_of_this_machine():
    error = OSError("cannot read '/var/x/secret.bin' or /var/y.txt:\n  <T object at 0x7f12ab34cd56>, and/or 1/2")
    assert run.told(error) == "cannot read 'secret.bin' or y.txt: <T object at 0x…>, and/or 1/2"
    assert run.told(OSError("see https://huggingface.co/a/b")) == "see https://huggingface.co/a/b"
    assert len(run.told(OSError("x" * 9999))) == 400


# --- bad input ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["smok"], "did you mean 'smoke'"),
        (["smoke", "--methods", "none,uec"], "did you mean 'uce'"),
        (["smoke", "--methods", "uce@2032"], "did you mean '202"),
        (["smoke", "--model", "testbd"], "did you mean 'testbed'"),
        (["smoke", "--executor", "loca"], "local"),
        (["smoke", "--ray-address", "auto"], "--ray-address goes with --executor ray"),
        (["smoke", "--workers", "0"], "--workers: expected at least 1"),
        (["smoke", "--executor", "slurm", "--slurm", "timeout"], "--slurm: expected field=value"),
        (["none.yaml"], "no suite file none.yaml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_unknown_names_end_at_once_with_the_nearest(arguments: list[str], said: str, tmp_path: Path):
    result = CliRunner().invoke(cli.app, ["run", *arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2 and said in result.stderr
    assert "Traceback" not in result.stderr and not (tmp_path / "out").exists()


def test_missing_weights_are_named_before_anything_is_written(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lack = {"what": "weights of sd99", "where": "/models/sd99", "size": 4_300_000_000, "licence": "OpenRAIL"}
    monkeypatch.setattr(models, "missing", lambda name: lack)
    result = done(suite, tmp_path / "out", *FEW, code=3)
    for said in ("weights of sd99", "/models/sd99", "4.3 GB", "OpenRAIL"):
        assert said in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_out_that_is_no_folder_is_refused(suite: Path, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        assert f"--out: cannot write to {out}" in done(suite, out, *FEW, code=2).stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_a_store_that_is_no_folder_is_refused(suite: Path, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    for store in (tmp_path / "file", tmp_path / "file" / "store"):
        result = done(suite, tmp_path / "out", *FEW, "--store", str(store), code=2)
        assert "cannot write to the store" in result.stderr and "--store" in result.stderr


@pytest.mark.parametrize("closed", [".", "records"])
def test_a_folder_that_cannot_be_written_is_found_before_the_work(
    closed: str, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Root may write anywhere, so the system's refusal is played."""
    real = Path.touch

    def touch(path: Path, *arguments: Any, **named: Any) -> None:
        if path.parent == tmp_path / closed:
            raise PermissionError(13, "Permission denied", str(path))
        real(path, *arguments, **named)

    monkeypatch.setattr(Path, "touch", touch)
    result = done(suite, tmp_path, *FEW, code=2)
    assert "--out: cannot write to" in result.stderr and "Permission denied" in result.stderr


def test_half_written_results_are_mended(suite: Path, copy: Path, finished: Snapshot):
    for name in (f"records/{CELLS[2]}.json", "board.json", "SHA256SUMS", "grids/erase_cat.png", "costs.json"):
        path = copy / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done(suite, copy, *FEW)
    assert snapshot(copy) == finished
    assert costs(copy)["last_run"]["images_made"] == 0


def test_a_store_of_its_own_can_be_shared(suite: Path, tmp_path: Path, few: Path, finished: Snapshot):
    store = tmp_path / "store"
    shutil.copytree(few / "store", store)
    done(suite, tmp_path / "out", *FEW, "--store", str(store))
    assert snapshot(tmp_path / "out") == _but_the_store(finished)
    assert costs(tmp_path / "out")["last_run"]["images_made"] == 0


def test_images_there_are_counted_once_and_never_too_many(tmp_path: Path):
    plan = make_plan("smoke", model="random-unet", methods=["none", "uce"])
    drawn, store = Drawn(plan, plan.cells), Store(tmp_path)
    alike = {
        c.images_key: {(i.prompt, i.seed) for k in plan.cells if k.images_key == c.images_key for i in k.items}
        for c in plan.cells
    }
    assert drawn.whole == sum(map(len, alike.values()))
    assert drawn.there(Store(tmp_path / "absent", readonly=True)) == 0
    key = plan.cells[0].images_key
    assert key is not None
    for shard in range(9):  # more batches than a cell of these has
        store.put(keys.IMAGES, key, f"s{shard}", files={"items.json": b"[]"})
    assert drawn.there(store) == len(alike[key])
