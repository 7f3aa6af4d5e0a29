"""Records: the same bytes for the same run, nothing private in them, and no schema read that is not understood."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmark import paths, record
from benchmark.errors import BadInput, Damaged
from benchmark.plan import Plan, make_plan
from benchmark.record import Provenance, Record

OLD = Path(__file__).parent / "data" / "record-1.json"
PROVENANCE = record.provenance(device_class="cpu", threads=1, dtype="float32")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan("smoke", model="random-unet", methods=["none", "uce"])


def fields(plan: Plan) -> dict[str, Any]:
    """A record's values with two rows."""
    values = record.start(plan, plan.cells[-1], PROVENANCE)
    rows: dict[str, Any] = {
        "role": ["erased", "kept"],
        "concept": ["amara nyston", "yuki lorman"],
        "prompt": ["a portrait of amara nyston", "/starts like a path"],
        "replicate": [0, 1],
        "seed": [2**62, 1],
        "image": ["a" * 64, "b" * 64],
        "valid": [True, False],
        "values": {"testbed/top1": [0.1, None]},
    }
    values["rows"] = rows
    values["protocols"] = {"testbed/top1": {"version": 1, "evaluator": "testbed-a", "evaluator_hash": "c"}}
    values["edit"] = {"key": "k", "hash": "h", "notes": {"token": [1, 2]}, "counts": {"text_encodes": 3}}
    values["summary"] = {"acc_erased": 0.1, "acc_erased_ci": [0.0, 1 / 3], "headline": None, "name": "Zoë"}
    return values


def test_a_record_is_read_as_it_was_written(plan: Plan, tmp_path: Path):
    written = record.parse(fields(plan))
    record.write(tmp_path / "records" / "a.json", written)
    read = record.read(tmp_path / "records" / "a.json")
    assert read == written
    assert record.to_bytes(read) == (tmp_path / "records" / "a.json").read_bytes()
    assert read.rows.values["testbed/top1"] == (0.1, None) and read.rows.seed[0] == 2**62
    assert [p.name for p in (tmp_path / "records").iterdir()] == ["a.json"], "no temporary file stays"
    assert record.read_all(tmp_path / "records") == [written]


def test_a_record_tells_what_was_run(plan: Plan):
    values = json.loads(record.to_bytes(record.parse(fields(plan))))
    cell = plan.cells[-1]
    assert values["schema"] == record.SCHEMA and values["suite"] == "smoke" and values["form"] == "embedded"
    assert values["model"] == {"name": "random-unet", "hash": plan.model_hash, "family": "unet-epsilon"}
    assert values["method"]["label"] == "uce" and values["method"]["fields"] == dict(cell.method.fields)
    assert values["request"]["name"] == cell.request.name
    assert [e["name"] for e in values["request"]["erase"]] == [c.name for c in cell.request.erase]
    assert values["sampler"]["steps"] == 12 and values["batch"] == 20 and values["primary"] == "testbed/top1"


def test_the_same_record_is_the_same_bytes_in_another_process(plan: Plan, tmp_path: Path):
    """Dictionaries and sets may be ordered differently there: the hash seed is another."""
    path = tmp_path / "a.json"
    record.write(path, record.parse(fields(plan)))
    code = f"""
import sys
from pathlib import Path
from benchmark import record
sys.stdout.buffer.write(record.to_bytes(record.read(Path({str(path)!r}))))
assert "torch" not in sys.modules
"""
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, check=True, env=environment)
    assert done.stdout == path.read_bytes()


def test_nothing_private_is_in_a_record(plan: Plan):
    text = record.to_bytes(record.parse(fields(plan))).decode()
    assert str(Path.home()) + "/" not in text and str(paths.datasets()) not in text
    assert f'"{socket.gethostname()}"' not in text


@pytest.mark.parametrize("path", ["/home/someone/model", "C:\\models\\sd14", "\\\\server\\share\\x"])
def test_an_absolute_path_is_refused_wherever_it_hides(plan: Plan, path: str):
    values = fields(plan)
    values["edit"]["notes"] = {"from": [{"weights": path}]}
    with pytest.raises(ValueError, match=r"edit.notes.from\[0\].weights holds an absolute path"):
        record.to_bytes(record.parse(values))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused_with_its_place(plan: Plan, number: float):
    values = fields(plan)
    values["summary"] = {"acc_kept_ci": [0.0, number]}
    with pytest.raises(ValueError, match=r"summary.acc_kept_ci\[1\] is (nan|inf); write None"):
        record.to_bytes(record.parse(values))


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (("rows", "seed"), [1], "columns must be of one length: role has 2, seed has 1"),
        (("rows", "values", "testbed/top1"), [0.5], "role has 2, values.testbed/top1 has 1"),
        (("status",), "done", "record: status: "),
        (("status",), "failed", "a reason goes with every status but ok"),
        (("reason",), "because", "a reason goes with every status but ok"),
        (("batch",), "20", "record: batch: "),
        (("sampled",), {}, "unknown key 'sampled'; did you mean 'sampler'?"),
    ],
)
def test_what_does_not_fit_the_schema_is_refused(plan: Plan, place: tuple[str, ...], value: Any, expected: str):
    values = fields(plan)
    inner = values
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    with pytest.raises(BadInput) as caught:
        record.parse(values)
    assert expected in str(caught.value)


def written(folder: Path, values: Any) -> Path:
    path = folder / "a.json"
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    ("schema", "expected"),
    [(3, "expected schema 2, found 3: it was written by a newer version"), (0, "found 0: it is not a record of ours")],
)
def test_an_unknown_schema_is_refused(plan: Plan, tmp_path: Path, schema: int, expected: str):
    with pytest.raises(BadInput) as caught:
        record.read(written(tmp_path, {**fields(plan), "schema": schema}))
    assert expected in str(caught.value) and str(tmp_path / "a.json") in str(caught.value)


@pytest.mark.parametrize("values", [{}, [], "text", {"schema": None}, {"schema": "1"}])
def test_json_that_is_no_record_is_refused(tmp_path: Path, values: Any):
    with pytest.raises(BadInput, match="expected schema 2, found .*: it is not a record of ours"):
        record.read(written(tmp_path, values))


def test_older_schemas_are_brought_up_step_by_step():
    steps = {0: lambda v: {**v, "steps": [*v["steps"], "a"]}, 1: lambda v: {**v, "steps": [*v["steps"], "b"]}}
    assert record.upgraded({"schema": 0, "steps": []}, steps) == {"schema": 2, "steps": ["a", "b"]}
    assert record.upgraded({"schema": 2, "steps": []}, steps) == {"schema": 2, "steps": []}


def test_a_stored_record_of_schema_1_is_read():
    """As `erasure-bench run` wrote it then, with fewer rows."""
    stored = json.loads(OLD.read_bytes())
    assert stored["schema"] == 1 and "hashes" not in stored and "rules" not in stored
    read = record.read(OLD)
    assert read.schema_ == 2 and read.summary == stored["summary"] and len(read.rows.role) == 20
    assert read.hashes.model_dump() == record.hashes(stored["rows"])
    assert read.request.erase[0]["adjacent"] is None and read.provenance.precision == {} and read.rules == {}
    assert record.parse(json.loads(record.to_bytes(read))) == read, "and written in the present schema"


def test_half_a_record_of_schema_1_is_bad_input(tmp_path: Path):
    with pytest.raises(BadInput, match="expected a record of schema 1, found one without 'request'"):
        record.read(written(tmp_path, {"schema": 1}))


def test_a_cut_record_is_damaged_and_an_absent_one_bad_input(plan: Plan, tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_bytes(record.to_bytes(record.parse(fields(plan)))[:-100])
    with pytest.raises(Damaged, match="a.json is not JSON"):
        record.read(path)
    with pytest.raises(BadInput, match="cannot read"):
        record.read(tmp_path / "b.json")


def test_a_crash_while_writing_leaves_the_old_record(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.json"
    record.write(path, record.parse(fields(plan)))
    before = path.read_bytes()

    def crash(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(BadInput, match="cannot write .*a.json: No space left on device"):
        record.write(path, record.parse({**fields(plan), "status": "failed", "reason": "x"}))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_cell_that_is_not_applicable_is_a_record_with_its_reason(monkeypatch: pytest.MonkeyPatch):
    from benchmark import registry

    cls = registry.method_class("uce")
    monkeypatch.setattr(cls, "families", frozenset({"transformer-flow"}))
    plan = make_plan("smoke", model="random-unet", methods=["uce"])
    refused = record.parse(record.start(plan, plan.cells[0], PROVENANCE))
    assert refused.status == "not applicable" and refused.reason and "transformer-flow" in refused.reason
    assert refused.edit is None and refused.rows.role == ()


def test_a_record_holds_what_a_method_was_told_and_how_it_is_judged():
    plan = make_plan("dogs", model="random-unet", methods=["uce"])
    values = record.start(plan, plan.cells[0], PROVENANCE)
    (target,) = plan.cells[0].request.erase
    assert target.adjacent and values["request"]["erase"][0]["adjacent"] == list(target.adjacent)
    assert list(values["rules"]) == list(plan.form.protocols)
    assert values["rules"]["testbed/top1"]["function"] == "testbed_top1"
    assert values["datasets"][0] == "testbed"
    record.to_bytes(record.parse(values))


def test_hashes_tell_another_prompt_from_another_image(plan: Plan):
    rows = fields(plan)["rows"]
    whole = record.hashes(rows)
    prompt = record.hashes({**rows, "prompt": ["a portrait of amara", rows["prompt"][1]]})
    image = record.hashes({**rows, "image": ["c" * 64, rows["image"][1]]})
    assert prompt["images"] == whole["images"] and prompt["prompts"] != whole["prompts"]
    assert image["prompts"] == whole["prompts"] and image["images"] != whole["images"]
    assert record.hashes({}) == {"prompts": "", "images": ""}


# --- provenance -------------------------------------------------------------------------------------------------
def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(root), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_provenance_names_the_commit_and_whether_the_tree_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(paths, "checkout", lambda: tmp_path)
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "first")
    assert record._commit() == (git(tmp_path, "rev-parse", "HEAD"), False)
    (tmp_path / "new.py").write_text("")
    assert record._commit()[1] is True, "a new file may be a new method"
    (tmp_path / "new.py").unlink()
    (tmp_path / "a").write_text("2")
    assert record._commit()[1] is True


def test_outside_a_checkout_or_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(paths, "checkout", lambda: None)
    assert record._commit() == (None, None)
    monkeypatch.setattr(paths, "checkout", lambda: tmp_path)
    assert record._commit() == (None, None)
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", "")
    assert record._commit() == (None, None)


def test_provenance_names_versions_and_device_and_no_host():
    assert set(PROVENANCE.packages) == set(record.PACKAGES)
    assert PROVENANCE.packages["torch"] and PROVENANCE.packages["numpy"]
    assert (PROVENANCE.device_class, PROVENANCE.threads, PROVENANCE.dtype) == ("cpu", 1, "float32")
    assert set(Provenance.model_fields) == {
        "commit",
        "dirty",
        "packages",
        "python",
        "machine",
        "device_class",
        "threads",
        "dtype",
        "precision",
        "determinism",
    }


def test_the_schema_is_written_first_under_its_own_name(plan: Plan):
    assert record.to_bytes(record.parse(fields(plan))).startswith(b'{\n "schema": 2,\n "suite": "smoke",')
    assert isinstance(record.parse(fields(plan)), Record)
