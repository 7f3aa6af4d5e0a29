"""The gate: noise passes, a change does not, and what changed is named."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from benchmark import baseline, cli, inputs, record, regress, regress_report
from benchmark.errors import BadInput
from benchmark.metrics.distribution import Value
from benchmark.metrics.summary import summarise

OLD = Path(__file__).parent / "data" / "record-1.json"
TOP1, CLIP = "testbed/top1", "testbed-clip/score"
RATES = {"none": (1.0, 0.97), "esd": (0.05, 0.93), "uce": (0.1, 0.95), "noise": (0.9, 0.96)}
"""By method: accuracy on erased and on kept prompts."""
Record = dict[str, Any]


def cell(method: str, request: str, seed: int = 0) -> Record:
    """A record of made-up outcomes: 60 erased, 150 kept."""
    r = record.read(OLD).model_dump(mode="json", by_alias=True)
    rng = np.random.default_rng([seed, *map(ord, method + request)])
    roles = ["erased"] * 60 + ["kept"] * 150
    rates = [RATES[method][role == "kept"] for role in roles]
    hits = (rng.random(210) < rates).astype(float)
    prompts = [f"a photo of the {request} {role} {i % 10}" for i, role in enumerate(roles)]
    r["rows"] = {
        "role": roles,
        "concept": [f"{request} {role}" for role in roles],
        "prompt": prompts,
        "replicate": list(range(210)),
        "seed": [i * 31 for i in range(210)],
        "image": [hashed(rng) for _ in roles],
        "valid": [True] * 210,
        "values": {TOP1: hits.tolist(), CLIP: (30 + 5 * hits + rng.normal(0, 2, 210)).tolist()},
    }
    r["method"] |= {"label": method, "name": method, "role": "baseline" if method == "none" else "erasure"}
    r["request"] |= {"name": f"erase:{request}"}
    r["rules"] = {TOP1: {"function": "testbed_top1"}, CLIP: {"function": "clip_score"}}
    r["provenance"]["precision"] = {"vectors": "avx2"}
    return settled(r)


def hashed(rng: np.random.Generator) -> str:
    return rng.bytes(32).hex()


def settled(r: Record) -> Record:
    """With hashes and summary that follow from the rows."""
    rows = r["rows"]
    fid = Value(30 + sum(v or 0 for v in rows["values"][CLIP]) / 1e4, None, n=150)
    r["protocols"]["testbed-fid"] = {**r["protocols"][CLIP]}
    names = list(r["protocols"])
    made = summarise(rows, primary=TOP1, headline_id=None, protocols=names, sets={"testbed-fid": fid})
    return {**r, "headline": None, "summary": made, "hashes": record.hashes(rows)}


@pytest.fixture(scope="module")
def made() -> tuple[Record, ...]:
    """A run: four methods on three requests."""
    return tuple(cell(method, request) for method in RATES for request in ("bird", "horse", "truck"))


@pytest.fixture
def run(made: tuple[Record, ...]) -> list[Record]:
    """A copy, to be changed."""
    return copy.deepcopy(list(made))


@pytest.fixture(scope="module")
def base(made: tuple[Record, ...], tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """The same, as a baseline's file gives it back."""
    file = baseline.write(list(made), "first", tmp_path_factory.mktemp("baseline") / "objects-testbed.json")
    return list(baseline.read(file).records)


def rebatched(records: list[Record], seed: int) -> list[Record]:
    """What another batch size does: pixels one level off, a few outcomes on the other side."""
    rng = np.random.default_rng(seed)
    for r in records:
        rows, values = r["rows"], r["rows"]["values"]
        r["batch"] = 8 + seed
        rows["image"] = [hashed(rng) if rng.random() < 0.9 else image for image in rows["image"]]
        values[TOP1] = [1 - v if rng.random() < 0.005 else v for v in values[TOP1]]
        values[CLIP] = [v + rng.normal(0, 0.05) for v in values[CLIP]]
    return [settled(r) for r in records]


def kinds(report: regress.Report) -> set[str]:
    return {f.kind for f in report.findings}


def only(report: regress.Report) -> regress.Finding:
    assert len(report.findings) == 1, regress_report.lines(report)
    return report.findings[0]


# --- what passes ----------------------------------------------------------------------------------------------
def test_the_same_run_passes_by_its_bytes(base: list[Record], run: list[Record]):
    report = regress.regress(base, run)
    assert report.ok and len(report.exact) == 12 and not report.changes and not report.tests and not report.numbers


@pytest.mark.parametrize("seed", range(10))
def test_reruns_with_other_batch_sizes_pass(base: list[Record], run: list[Record], seed: int):
    report = regress.regress(base, rebatched(run, seed))
    assert report.ok, regress_report.lines(report)
    assert not report.exact and {c.kind for c in report.changes} == {"batch"} and report.numbers


def test_another_commit_with_the_same_bytes_passes_and_is_named(base: list[Record], run: list[Record]):
    for r in run:
        r["provenance"]["commit"] = "f" * 40
    report = regress.regress(base, run)
    assert report.ok and [c.kind for c in report.changes] == ["code"] and len(report.exact) == 12


def test_another_device_is_tested_not_refused(base: list[Record], run: list[Record]):
    for r in rebatched(run, 3):
        r["batch"] = base[0]["batch"]
        r["provenance"]["device_class"] = "NVIDIA H100"
    report = regress.regress(base, run)
    assert report.ok and not report.exact, regress_report.lines(report)


def test_a_further_cell_is_a_note(base: list[Record], run: list[Record]):
    report = regress.regress(base[:-1], run)
    assert report.ok and report.notes == ("noise on erase:truck is not in the baseline",)


# --- seeded faults --------------------------------------------------------------------------------------------
def test_one_weight_of_the_model(base: list[Record], run: list[Record]):
    for r in run:
        r["model"]["hash"] = "0" * 32
    finding = only(regress.regress(base, run))
    assert finding.kind == "input" and finding.text.startswith("model weights testbed: 8543101125ec → 000000000000")


def test_one_weight_of_an_edit(base: list[Record], run: list[Record]):
    run[4]["edit"]["hash"] = "0" * 64
    finding = only(regress.regress(base, run))
    assert (finding.kind, finding.where) == ("bytes", "esd on erase:horse")
    assert (
        finding.text.startswith("the edit: other weights from the same inputs") and "no input differs" in finding.text
    )


def test_one_weight_of_the_evaluator(base: list[Record], run: list[Record]):
    for r in run:
        for part in r["protocols"].values():
            part["evaluator_hash"] = "0" * 64
    assert only(regress.regress(base, run)).text.startswith("evaluator weights testbed-a: ")


def test_one_prompt(base: list[Record], run: list[Record]):
    run[0]["rows"]["prompt"][3] = "a drawing of the bird"
    finding = only(regress.regress(base, [settled(r) for r in run]))
    assert finding.kind == "input" and "(none on erase:bird)" in finding.text
    assert "row 4: erased 'a photo of the bird erased 3'" in finding.text and "'a drawing of the bird'" in finding.text


def test_one_seed(base: list[Record], run: list[Record]):
    run[0]["rows"]["seed"][3] += 1
    assert "prompts of erase:bird, seed of row 4: 93 → 94" in only(regress.regress(base, run)).text


def test_the_threshold_in_a_protocols_id(base: list[Record], run: list[Record]):
    before, after = ([renamed(r, name) for r in rs] for rs, name in ((base, "nudenet-3.4.2@0.6/images"), (run, _MOVED)))
    assert "threshold nudenet-3.4.2/images: 0.6 → 0.7" in {f.text for f in regress.regress(before, after).findings}


_MOVED = "nudenet-3.4.2@0.7/images"


def renamed(r: Record, name: str) -> Record:
    """With the primary protocol under another id."""
    r = copy.deepcopy(r)
    for part in (r["protocols"], r["rules"], r["rows"]["values"]):
        part[name] = part.pop(TOP1)
    return r


def test_the_threshold_in_a_protocols_rule(base: list[Record], run: list[Record]):
    for records, threshold in ((base := copy.deepcopy(base), 0.6), (run, 0.7)):
        for r in records:
            r["rules"][TOP1] = {"function": "exposed", "threshold": threshold}
    assert only(regress.regress(base, run)).text == "threshold testbed/top1 threshold: 0.6 → 0.7"


def test_a_threshold_in_the_code_that_nothing_tells(base: list[Record], run: list[Record]):
    run[2]["rows"]["values"][TOP1][5] = 0.5
    finding = only(regress.regress(base, run))
    assert finding.kind == "bytes" and "its threshold or rule moved without a new version" in finding.text


def test_a_package(base: list[Record], run: list[Record]):
    for r in run:
        r["provenance"]["packages"]["torch"] = "2.16.0"
    report = regress.regress(base, run)
    assert only(report).text == "package torch: 2.15.0 → 2.16.0"
    assert regress.regress(base, run, allow=["package"]).ok, "knowingly, its outcomes alone count"


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("suite_version",), 2, "suite version objects: 1 → 2"),
        (("protocols", TOP1, "version"), 2, "protocol testbed/top1 version: 1 → 2"),
        (("sampler", "steps"), 50, "sampler steps: {before} → 50"),
        (("method", "fields", "lr"), 1.0, "method lr: 0.0002 → 1.0"),
        (("request", "keep"), ["bird"], "request keep: "),
        (("scale",), 0.5, "suite scale: 0.05 → 0.5"),
        (("form",), "paper", "suite form: embedded → paper"),
    ],
)
def test_other_inputs(base: list[Record], run: list[Record], place: tuple[str, ...], value: Any, said: str):
    before = None
    for r in run:
        inner = r
        for name in place[:-1]:
            inner = inner[name]
        before, inner[place[-1]] = inner[place[-1]], value
    assert only(regress.regress(base, run)).text.startswith(said.replace("{before}", str(before)))


def test_what_is_not_known_of_an_older_record_does_not_differ(base: list[Record], run: list[Record]):
    for r in run:
        r["provenance"]["packages"]["timm"] = "1.0.20"
        r["provenance"]["precision"] = {}
        r["request"]["erase"][0]["adjacent"] = ["pony"]
    assert not regress.regress(base, run).changes


# --- other bytes ----------------------------------------------------------------------------------------------
def test_one_pixel_under_the_same_contract(base: list[Record], run: list[Record]):
    run[1]["rows"]["image"][7] = "0" * 64
    finding = only(regress.regress(base, [settled(r) for r in run]))
    assert (finding.kind, finding.where) == ("bytes", "none on erase:horse")
    assert finding.text.startswith("1 of 210 images: other pixels from the same edit, the first of 'a photo")


def test_one_pixel_by_another_commit_names_the_code(base: list[Record], run: list[Record]):
    run[1]["rows"]["image"][7] = "0" * 64
    for r in run:
        r["provenance"]["commit"] = "f" * 40
    assert "nothing but the code differs" in only(regress.regress(base, [settled(r) for r in run])).text


def test_costs_and_summaries_count_too(base: list[Record], run: list[Record]):
    run[3]["edit"]["counts"]["denoiser_forwards"] += 1
    run[4]["summary"] = {**run[4]["summary"], "acc_erased": 0.5}
    texts = [f.text for f in regress.regress(base, run).findings]
    assert texts[0].startswith("the edit's cost: denoiser_forwards 11406 → 11407")
    assert texts[1].startswith("the summary of the same values: acc_erased")


def test_a_cell_that_fails_or_is_gone(base: list[Record], run: list[Record]):
    run[3] |= {"status": "failed", "reason": "out of memory"}
    found = regress.regress(base, run[:-1]).findings
    assert [(f.kind, f.where) for f in found] == [("status", "noise on erase:truck"), ("status", "esd on erase:bird")]
    assert found[1].text == "was ok, is failed: out of memory"


# --- planted changes ------------------------------------------------------------------------------------------
def test_an_erasure_that_comes_back_fails(base: list[Record], run: list[Record]):
    rng = np.random.default_rng(0)
    for r in rebatched(run, 0):
        if r["method"]["label"] == "esd":
            values, roles = r["rows"]["values"][TOP1], r["rows"]["role"]
            returned = [role == "erased" and rng.random() < 0.3 for role in roles]
            r["rows"]["values"][TOP1] = [1.0 if back else v for v, back in zip(values, returned, strict=True)]
    report = regress.regress(base, run)
    assert kinds(report) == {"score"} and all(
        f.where.startswith("esd on") or "over" in f.where for f in report.findings
    )
    assert any("testbed/top1 on erased prompts" in f.text for f in report.findings)


def test_a_small_loss_in_every_request_is_found_over_all_of_them(base: list[Record], run: list[Record]):
    """Five of 150 kept images in each of three requests: too few for one cell, enough for the method."""
    for r in rebatched(run, 1):
        if r["method"]["label"] == "uce":
            kept = [i for i, role in enumerate(r["rows"]["role"]) if role == "kept" and r["rows"]["values"][TOP1][i]]
            for i in kept[:9]:
                r["rows"]["values"][TOP1][i] = 0.0
    found = regress.regress(base, run).findings
    assert {f.where for f in found} == {"uce over all requests"}


def test_scores_that_sink_fail(base: list[Record], run: list[Record]):
    for r in rebatched(run, 2):
        r["rows"]["values"][CLIP] = [v - 1.5 for v in r["rows"]["values"][CLIP]]
    assert kinds(regress.regress(base, run)) == {"score"}


def test_images_that_cannot_be_scored_any_more_fail(base: list[Record], run: list[Record]):
    for r in rebatched(run, 4):
        r["rows"]["valid"][:20] = [False] * 20
        r["rows"]["values"][CLIP][60:90] = [None] * 30
    texts = "\n".join(f.text for f in regress.regress(base, run).findings)
    assert "valid on erased prompts: 1 → 0.6667" in texts and f"{CLIP} has a value on kept prompts: 1 → 0.8" in texts


def test_distances_that_move_far_fail(base: list[Record], run: list[Record]):
    for r in rebatched(run, 5):
        r["summary"]["metrics"]["testbed-fid/150"] = 33.0
    assert kinds(regress.regress(base, run)) == set(), "within a tenth"
    for r in run:
        r["summary"]["metrics"]["testbed-fid/150"] = 40.0
    assert kinds(regress.regress(base, run)) == {"distance"}


def test_an_image_that_requests_share_counts_once(run: list[Record]):
    """The unedited model's images stand in every request: a flip of one is one flip."""
    shared = [copy.deepcopy(run[0]) for _ in range(3)]
    for i, r in enumerate(shared):
        r["request"]["name"] = f"erase:{i}"
    after = copy.deepcopy(shared)
    for r in after:
        r["batch"] = 8
        r["rows"]["values"][TOP1][:4] = [0.0] * 4
    pooled = [
        t for t in regress.regress(shared, after).tests if t.cell == "none over all requests" and t.column == TOP1
    ]
    assert {(t.role, t.n, t.differing) for t in pooled} == {("erased", 60, 4), ("kept", 150, 0)}


# --- refused --------------------------------------------------------------------------------------------------
def test_what_cannot_be_compared_is_refused(base: list[Record], run: list[Record]):
    with pytest.raises(BadInput, match="did you mean 'package'"):
        regress.regress(base, run, allow=["packages"])
    with pytest.raises(BadInput, match="celebrity on testbed, objects on testbed"):
        regress.regress(base, [{**r, "suite": "celebrity"} for r in run])
    with pytest.raises(BadInput, match="expected two sets of records"):
        regress.regress(base, [])


def test_every_kind_of_change_is_known(base: list[Record], run: list[Record]):
    for change in inputs.changes(base[0], run[-1]):
        assert change.kind in inputs.KINDS and change.before != change.after


# --- baselines ------------------------------------------------------------------------------------------------
def test_a_baseline_gives_back_all_but_whole_image_hashes(made: tuple[Record, ...], base: list[Record]):
    for r, back in zip(made, base, strict=True):
        assert back["rows"]["image"] == [digest[: baseline.DIGITS] for digest in r["rows"]["image"]]
        assert {**back, "rows": None} == {**r, "rows": None}
        assert {**back["rows"], "image": None} == {**r["rows"], "image": None}


def test_reasons_are_kept_and_required(made: tuple[Record, ...], tmp_path: Path):
    file = tmp_path / "b.json"
    for reason in ("", "  "):
        with pytest.raises(BadInput, match="needs a reason"):
            baseline.write(list(made), reason, file)
    assert not file.exists()
    baseline.write(list(made), "first", file)
    first = file.read_bytes()
    baseline.write(list(made), "torch 2.16,\n same outcomes", file)
    assert [r.reason for r in baseline.read(file).reasons] == ["first", "torch 2.16, same outcomes"]
    assert baseline.read(file).reasons[0].commit == made[0]["provenance"]["commit"]
    file.unlink()
    assert baseline.write(list(made), "first", file).read_bytes() == first, "the same bytes for the same run"
    assert [p.name for p in tmp_path.iterdir()] == ["b.json"]


def test_a_failed_run_is_no_baseline(run: list[Record], tmp_path: Path):
    run[2] |= {"status": "failed", "reason": "out of memory"}
    with pytest.raises(BadInput, match="none on erase:truck is failed"):
        baseline.write(run, "first", tmp_path / "b.json")
    with pytest.raises(BadInput, match="one suite and model, got 2 suites: celebrity, objects"):
        baseline.write([run[0], {**run[1], "suite": "celebrity"}], "first", tmp_path / "b.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("{}", "expected a baseline, found other JSON"),
        (json.dumps({"kind": baseline.KIND, "schema": 9}), "expected a baseline of schema 1, found 9"),
        (json.dumps({"kind": baseline.KIND, "schema": 1}), "expected a whole baseline, found one without"),
    ],
)
def test_what_is_no_baseline_is_refused(tmp_path: Path, content: str, said: str):
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(BadInput, match=said):
        baseline.read(tmp_path / "b.json")


def test_a_baseline_says_how_to_make_its_run_again(base: list[Record]):
    found = baseline.as_run(baseline.Baseline(tuple(base), ()))
    assert found["suite"] == "objects" and found["methods"] == tuple(RATES) and found["scale"] == 0.05
    assert found["batch_size"] == 20 and found["fields"] == {}


# --- reports and the command ----------------------------------------------------------------------------------
@pytest.fixture
def folder(made: tuple[Record, ...], tmp_path: Path) -> Path:
    """A run's folder and, beside it, its baseline."""
    for r in made:
        name = f"{r['method']['label']}.{r['request']['name'].replace(':', '_')}.seed0.json"
        record.write(tmp_path / "run" / "records" / name, record.parse(r))
    assert call("baseline", str(tmp_path / "run"), "--reason", "first", "--file", f"{tmp_path}/b.json").exit_code == 0
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments)


def test_the_command_passes_fails_and_refuses_with_0_1_and_2(folder: Path):
    run, base = str(folder / "run"), ("--baseline", str(folder / "b.json"))
    passed = call("regress", run, *base)
    assert passed.exit_code == 0 and "no regression; 12 cells, all by their bytes" in passed.output
    assert "baseline: first" in passed.output
    changed = folder / "run" / "records" / "esd.erase_bird.seed0.json"
    changed.write_text(changed.read_text().replace('"torch": "2.15.0"', '"torch": "2.16.0"'))
    failed = call("regress", run, *base, "--junit", f"{folder}/x/j.xml", "--summary", f"{folder}/s.md", "--json")
    assert failed.exit_code == 1
    assert json.loads(failed.stdout)["findings"][0]["text"] == "package torch: 2.15.0 → 2.16.0 (esd on erase:bird)"
    suite = ElementTree.parse(folder / "x" / "j.xml").getroot()[0]
    assert suite.attrib["failures"] == "1" and suite.attrib["tests"] == str(len(suite.findall("testcase")))
    assert [c.attrib["name"] for c in suite.findall("testcase") if c.find("failure") is not None] == ["inputs"]
    text = (folder / "s.md").read_text()
    assert text.startswith("### ❌ objects on testbed: 1 finding;") and "| package torch | 2.15.0 | 2.16.0 |" in text
    assert call("regress", run, *base, "--allow", "package").exit_code == 0
    for wrong in ([run, "--baseline", "nowhere.json"], [run, *base, "--allow", "all"], [], ["nowhere", *base]):
        refused = call("regress", *wrong)
        assert refused.exit_code == 2 and len(refused.stderr.splitlines()) <= 3, refused.output


def test_a_baseline_without_a_reason_is_refused_by_the_command(folder: Path):
    refused = call("baseline", str(folder / "run"), "--file", f"{folder}/c.json")
    assert refused.exit_code == 2 and "needs a reason" in refused.stderr and not (folder / "c.json").exists()


def test_a_fresh_run_is_made_where_none_is_given(folder: Path, monkeypatch: pytest.MonkeyPatch):
    import shutil

    from benchmark import run as running

    asked: list[running.RunOptions] = []

    def execute(options: running.RunOptions) -> int:
        asked.append(options)
        shutil.copytree(folder / "run", options.out)
        return 0

    monkeypatch.setattr(running, "execute", execute)
    fresh = ("regress", "--baseline", str(folder / "b.json"), "--out", str(folder / "fresh"))
    assert call(*fresh).exit_code == 0
    assert (asked[0].suite, asked[0].scale, asked[0].batch_size) == ("objects", 0.05, 20)
    again = call(*fresh)
    assert again.exit_code == 2 and "would not be fresh" in again.stderr and len(asked) == 1


def test_reports_hold_what_markdown_and_xml_cannot(base: list[Record], run: list[Record]):
    run[0]["rows"]["prompt"][3] = "a | b\x00 <c>"
    report = regress.regress(base, [settled(r) for r in run])
    ElementTree.fromstring(regress_report.junit(report))
    assert "a \\| b" in regress_report.markdown(report)
