"""Compare: runs, records, baselines, boards and commits; what differs, and by how much."""

from __future__ import annotations

import copy
import gzip
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmark import baseline, cli, compare, evidence, paths, record
from benchmark.errors import BadInput
from benchmark.evidence import Evidence
from benchmark.metrics import summary
from benchmark.tables import board as boards

OLD = Path(__file__).parent / "data" / "record-1.json"
Record = dict[str, Any]


def one(request: str = "erase:horse", hits: int = 0) -> Record:
    """The stored record on a request, with the first erased images coming back."""
    r = record.read(OLD).model_dump(mode="json", by_alias=True)
    r["request"] |= {"name": request}
    for i in range(hits):
        r["rows"]["values"]["testbed/top1"][i] = 1.0
    names = list(r["protocols"])
    return r | {
        "summary": summary.summarise(r["rows"], primary=r["primary"], headline_id=r["headline"], protocols=names)
    }


def written(folder: Path, records: list[Record]) -> Path:
    for r in records:
        record.write(folder / "records" / f"esd.{r['request']['name'].replace(':', '_')}.json", record.parse(r))
    return folder


def board_of(changed: float = 0.25) -> Record:
    """A board.json with one method on one request, and over all."""
    made = boards.build([one()])
    rates = {"acc_erased": changed, "headline": 0.9, "metrics": {"testbed-fid/180": 30.0}, "metrics_ci": {}}
    return {**made, "model_hash": "a" * 32, "protocols": {}, "rows": [row | rates for row in made["rows"]]}


def test_equal_runs_differ_in_nothing(tmp_path: Path):
    a = evidence.load(str(written(tmp_path / "a", [one()])))
    found = compare.compare(a, a)
    assert not found.changes and not found.moved and found.cells == 1
    assert compare.lines(found)[-2:] == ["no input differs", "no number moved"]


def test_what_moved_and_by_how_much(tmp_path: Path):
    changed = one("erase:horse", hits=5)
    changed["provenance"]["packages"]["torch"] = "2.16.0"
    a = written(tmp_path / "a", [one(), one("erase:bird"), one("erase:truck")])
    b = written(tmp_path / "b", [changed, one("erase:bird"), one("erase:ship")])
    found = compare.compare(evidence.load(str(a)), evidence.load(str(b)))
    assert (found.only_a, found.only_b, found.cells) == (("esd on erase:truck",), ("esd on erase:ship",), 2)
    assert {str(c): list(w) for c, w in found.changes.items()} == {
        "package torch: 2.15.0 → 2.16.0": ["esd on erase:horse"]
    }
    assert found.moved["esd on erase:horse"]["acc_erased"] == (0.0, 0.5)
    assert found.moved["esd over all requests"]["acc_erased"] == (0.0, 0.25)
    assert "esd on erase:bird" not in found.moved
    text = "\n".join(compare.lines(found))
    assert "    acc_erased: 0 → 0.5 (+0.5)" in text and "only in B: esd on erase:ship" in text
    json.dumps(compare.as_json(found), allow_nan=False)


def test_changes_beyond_noise_are_told(tmp_path: Path):
    def many(hits: int) -> Evidence:
        r = one(hits=hits)
        columns = {k: v * 4 for k, v in r["rows"].items() if k != "values"}
        columns["seed"] = list(range(80))
        values = {k: v * 4 for k, v in r["rows"]["values"].items()}
        return Evidence(label="x", records=({**r, "rows": {**columns, "values": values}},))

    text = "\n".join(compare.lines(compare.compare(many(0), many(5))))
    assert "beyond noise, by paired tests:\n  esd on erase:horse: testbed/top1 on erased prompts: 0 → 0.5" in text


def test_two_records_of_any_kind(tmp_path: Path):
    other = one("erase:bird", hits=2)
    other["method"] |= {"label": "uce", "name": "uce"}
    a, b = (written(tmp_path / n, [r]) / "records" for n, r in (("a", one()), ("b", other)))
    files = [next(folder.glob("*.json")) for folder in (a, b)]
    found = compare.compare(*(evidence.load(str(f)) for f in files))
    told = {f"{c.kind} {c.name}" for c in found.changes}
    assert {"method name", "request name"} <= told and found.moved["uce on erase:bird"]["acc_erased"] == (0.0, 0.2)


def test_a_baseline_is_compared_like_a_run(tmp_path: Path):
    file = baseline.write([one()], "first", tmp_path / "b.json")
    run = written(tmp_path / "run", [one(hits=3)])
    found = compare.compare(evidence.load(str(file)), evidence.load(str(run)))
    assert found.moved["esd on erase:horse"]["acc_erased"] == (0.0, 0.3)


def test_boards_are_compared_by_their_numbers(tmp_path: Path):
    old, new = board_of(), board_of(0.5) | {"model_hash": "b" * 32, "suite_version": 2}
    del new["rows"][1]
    for name, values in (("a", old), ("b", new)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "board.json").write_text(json.dumps(values))
    found = compare.compare(evidence.load(str(tmp_path / "a")), evidence.load(str(tmp_path / "b" / "board.json")))
    assert found.moved == {"esd on erase:horse": {"acc_erased": (0.25, 0.5)}}
    assert [str(c) for c in found.changes] == [
        "model weights testbed: aaaaaaaaaaaa → bbbbbbbbbbbb",
        "suite version suite_version: 1 → 2",
    ]
    assert found.only_a == ("esd over all requests",) and found.notes


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose first commit holds a board and whose second one a baseline as well."""
    root = tmp_path / "checkout"
    root.mkdir()
    monkeypatch.setattr(paths, "checkout", lambda: root)
    git(root, "init", "-q")
    (root / "results" / "testbed-2" / "objects").mkdir(parents=True)
    (root / "results" / "testbed-2" / "objects" / "board.json").write_text(json.dumps(board_of()))
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "first")
    baseline.write([one()], "first", root / "results" / "baselines" / "objects-testbed.json")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "second")
    return root


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(root), *identity, *arguments], capture_output=True, check=True)


def test_a_run_against_what_a_commit_holds(repository: Path, tmp_path: Path):
    run = evidence.load(str(written(tmp_path / "run", [one(hits=3)])))
    second = evidence.load("HEAD", like=run)
    assert second.records and second.label == "HEAD:results/baselines/objects-testbed.json"
    assert compare.compare(second, run).moved["esd on erase:horse"]["acc_erased"] == (0.0, 0.3)
    first = evidence.load("HEAD~1", like=run)
    assert first.board and first.label == "HEAD~1:results/testbed-2/objects"
    assert evidence.load("HEAD~1:results/testbed-2/objects/board.json").board == first.board


def test_packed_records_of_a_commit_are_compared_whole(repository: Path):
    folder = repository / "results" / "testbed-2" / "objects"
    (folder / "records").mkdir()
    for hits in (0, 3):
        packed = gzip.compress(record.to_bytes(record.parse(one(hits=hits))), mtime=0)
        (folder / "records" / "esd.erase_horse.seed0.json.gz").write_bytes(packed)
        git(repository, "add", "-A")
        git(repository, "commit", "-q", "-m", f"{hits} hits")
    before, after = (evidence.load(f"{commit}:results/testbed-2/objects") for commit in ("HEAD~1", "HEAD"))
    assert len(before.records) == len(after.records) == 1
    assert compare.compare(before, after).moved["esd on erase:horse"]["acc_erased"] == (0.0, 0.3)
    assert evidence.load("HEAD", like=before).records, "its baseline"


def test_commits_that_hold_nothing_of_it_are_refused(repository: Path):
    other = Evidence(label="x", records=(one() | {"suite": "celebrity"},))
    for text, like, said in (
        ("HEAD", other, "holds no results of celebrity on testbed"),
        ("HEAD", None, "give the run first"),
        ("HEAD:nowhere", None, "no such record, baseline"),
        ("no-such-thing", other, "no file, folder or commit here"),
        ("--help", other, "no file, folder or commit here"),
    ):
        with pytest.raises(BadInput, match=said):
            evidence.load(text, like=like)


def test_what_holds_no_results_is_refused(tmp_path: Path):
    with pytest.raises(BadInput, match="neither records/ nor board.json"):
        evidence.load(str(tmp_path))
    for content, said in (("{", "is not JSON"), ("[]", "not a record of ours"), ('{"schema": 9}', "newer version")):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(BadInput, match=said):
            evidence.load(str(tmp_path / "x.json"))


def test_the_command(tmp_path: Path):
    a, b = (written(tmp_path / n, [one(hits=h)]) for n, h in (("a", 0), ("b", 2)))
    shown = CliRunner().invoke(cli.app, ["compare", str(a), str(b)])
    assert shown.exit_code == 0 and "acc_erased: 0 → 0.2 (+0.2)" in shown.output
    as_json = CliRunner().invoke(cli.app, ["compare", str(a), str(b), "--json"])
    assert json.loads(as_json.output)["moved"]["esd on erase:horse"]["acc_erased"] == [0.0, 0.2]
    assert CliRunner().invoke(cli.app, ["compare", str(a), "nowhere"]).exit_code == 2


def test_comparing_leaves_records_as_they_are(tmp_path: Path):
    a, b = one(), one(hits=2)
    before = copy.deepcopy((a, b))
    compare.compare(Evidence(label="a", records=(a,)), Evidence(label="b", records=(b,)))
    assert (a, b) == before
