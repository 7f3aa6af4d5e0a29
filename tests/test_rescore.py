"""Rescoring: further protocols from what a run left, nothing generated, nothing of the run touched, no mixing."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmark import cli, rescore, run, worker
from benchmark.errors import BadInput, Missing
from benchmark.metrics import evaluators, protocols
from benchmark.run import RunOptions, execute
from benchmark.tables import board
from benchmark.testbed import evaluator
from benchmark.verify import verify

SUITE = """\
title: A test
version: 1
source: ours
methods: [none]
headline: H_c
forms:
  embedded:
    dataset: testbed
    requests: [{each: [axe], keep: [dog, frog]}]
    prompts:
      erased: {templates: ["a photo of the {concept}"], images: 3}
      kept: {templates: ["a photo of the {concept}"], images: 2}
      general: {prompts: [a photo of the house], images: 2}
    sampler: {scheduler: ddim, steps: 2, guidance: 3.0, size: 64}
    batch: 4
    primary: testbed/top1
    protocols: [testbed/top1, testbed-fid/lowN]
    gate: {erased: [0.9, 1]}
"""
NEW = ("testbed/unsafe", "testbed-clip/score", "testbed-kid")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the embedded model's suite on random weights."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.yaml").write_text(SUITE)
    out = folder / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "BATCH", 8)
        options = RunOptions(
            suite=str(folder / "tiny.yaml"), model="random-unet", methods=("none", "grey"), out=out, quiet=True
        )
        assert execute(options) == 0
    return out


known = lru_cache(evaluators.load)


@pytest.fixture(autouse=True)
def nothing_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("rescoring must not generate")

    monkeypatch.setattr(evaluator, "BATCH", 8)
    monkeypatch.setattr(evaluators, "load", known)  # a judge is loaded once for all tests
    monkeypatch.setattr(worker.Worker, "images", refuse)
    monkeypatch.setattr(run, "execute", refuse)


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def by_method(folder: Path) -> dict[str, Any]:
    return {r["method"]["label"]: r for r in board.read_records(folder)}


def test_new_columns_stand_beside_the_old_ones(done: Path, tmp_path: Path):
    before = files(done)
    out = rescore.rescore(done, NEW, out=tmp_path / "again", store=done / "store")
    assert files(done) == before | {k: v for k, v in files(done).items() if k.startswith("store/")}
    old, new = by_method(done), by_method(out)
    assert new.keys() == old.keys()
    for label, r in new.items():
        assert set(r["protocols"]) == {"testbed/top1", "testbed-fid/lowN", *NEW}
        assert set(r["rules"]) == set(r["protocols"])
        assert r["rows"]["values"]["testbed/top1"] == old[label]["rows"]["values"]["testbed/top1"]
        for column, value in old[label]["summary"]["metrics"].items():
            assert r["summary"]["metrics"][column] == value, "a distance keeps its number"
        assert r["summary"]["headline"] == old[label]["summary"]["headline"]
        assert r["summary"]["relative"] == old[label]["summary"]["relative"]
        assert {k: v for k, v in r.items() if k not in ("rows", "summary", "protocols", "rules")} == {
            k: v for k, v in old[label].items() if k not in ("rows", "summary", "protocols", "rules")
        }
    assert verify(out, done / "store") == []


def test_rescoring_gives_what_a_run_under_these_protocols_would_have_given(done: Path, tmp_path: Path):
    out = rescore.rescore(done, ("testbed/top1", "testbed-fid/lowN"), out=tmp_path / "again", store=done / "store")
    for name in ("board.json", "board.csv", "board.md"):
        assert (out / name).read_bytes() == (done / name).read_bytes()
    assert {p.name: p.read_bytes() for p in (out / "records").iterdir()} == {
        p.name: p.read_bytes() for p in (done / "records").iterdir()
    }


def test_another_primary_fills_the_accuracies_and_the_headline(done: Path, tmp_path: Path):
    out = rescore.rescore(
        done, ["testbed/unsafe"], primary="testbed/unsafe", out=tmp_path / "again", store=done / "store"
    )
    for r in by_method(out).values():
        values = r["rows"]["values"]["testbed/unsafe"]
        erased = [v for v, role in zip(values, r["rows"]["role"], strict=True) if role == "erased"]
        assert r["primary"] == r["summary"]["primary"] == "testbed/unsafe"
        assert r["summary"]["acc_erased"] == sum(erased) / len(erased)
    assert all(row["primary"] == "testbed/unsafe" for row in json.loads((out / "board.json").read_text())["rows"])


def test_two_definitions_in_one_column_are_refused_by_name(done: Path, tmp_path: Path):
    out = rescore.rescore(
        done, ["testbed/unsafe"], primary="testbed/unsafe", out=tmp_path / "again", store=done / "store"
    )
    mixed = [by_method(done)["none"], by_method(out)["grey"]]
    with pytest.raises(BadInput, match=r"acc_\* cannot hold both (testbed/top1|testbed/unsafe) and testbed/"):
        board.build(mixed)


def test_a_headline_does_not_change_its_protocol_in_silence(done: Path, tmp_path: Path):
    """A headline of similarities takes the protocol named for it: adding one would turn it into another number."""
    r = by_method(done)["none"]
    values = {**r["rows"]["values"], "testbed-clip/score": [20.0] * len(r["rows"]["role"])}
    styled = {**r, "headline": "H_a", "rows": {**r["rows"], "values": values}}
    with pytest.raises(BadInput, match="H_a cannot hold both testbed-clip/score and testbed-clip/style"):
        rescore._same_headline(styled, ["testbed-clip/style"])
    rescore._same_headline(styled, ["testbed/unsafe"])


@pytest.mark.parametrize(
    ("names", "primary", "expected"),
    [
        ([], None, "at least one protocol"),
        (["testbed/top5"], None, "unknown protocol 'testbed/top5'"),
        (["testbed/unsafe", "testbed/unsafe"], None, "testbed/unsafe is given twice"),
        (["testbed/unsafe"], "testbed-clip/score", "testbed-clip/score is not among"),
        (["testbed-kid"], "testbed-kid", "gives no value for single images"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    done: Path, tmp_path: Path, names: list[str], primary: str | None, expected: str
):
    with pytest.raises(BadInput, match=expected):
        rescore.rescore(done, names, primary=primary, out=tmp_path / "again", store=done / "store")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_and_half_a_result_is_none(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "again"
    out.mkdir()
    with pytest.raises(BadInput, match="exists"):
        rescore.rescore(done, NEW, out=out, store=done / "store")
    out.rmdir()

    def fail(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rescore, "seal", fail)
    with pytest.raises(BadInput, match="No space left on device"):
        rescore.rescore(done, NEW, out=out, store=done / "store")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_stored_is_missing_and_what_is_no_run_is_refused(done: Path, tmp_path: Path):
    with pytest.raises(Missing, match="is not in .*; name the run's store with --store"):
        rescore.rescore(done, NEW, out=tmp_path / "again", store=tmp_path / "empty")
    with pytest.raises(BadInput, match="is not the folder of a run"):
        rescore.rescore(tmp_path, NEW)


def test_the_command_writes_beside_the_run(done: Path):
    result = CliRunner().invoke(cli.app, ["rescore", str(done), "--protocol", "testbed/unsafe", "--quiet"])
    assert result.exit_code == 0, result.output
    assert (done.with_name("out-rescored") / "board.json").is_file()
    told = CliRunner().invoke(cli.app, ["rescore", str(done), "--protocol", "testbed/unsfe", "--quiet"])
    assert told.exit_code == 2


def test_a_threshold_is_an_id_of_its_own():
    assert protocols.protocol("nudenet-3.4.2@0.7/images").id != protocols.protocol("nudenet-3.4.2@0.6/images").id
