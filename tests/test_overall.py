"""The leaderboard over suites: what is in it, what is not averaged, how ranks and their intervals come about."""

import csv
import io
import json

import numpy as np
import pytest

from benchmark.errors import BadInput
from benchmark.metrics.summary import summarise
from benchmark.tables import board as boards
from benchmark.tables import overall

TOP1 = "testbed/top1"
ROLES = {"none": "baseline", "grey": "control", "noise": "control"}


def make_rows(hits, order=0):
    """Misses fall on the same random images for every method."""
    rows = {c: [] for c in ("role", "concept", "prompt", "replicate", "seed", "image", "valid")}
    values = []
    for role, k in zip(("erased", "kept"), hits, strict=True):
        difficulty = np.random.default_rng([order, len(role)]).permutation(120)
        for i in range(120):
            for c, v in zip(rows, (role, role, f"{role} {i % 12}", i, i, "", True), strict=True):
                rows[c].append(v)
            values.append(float(difficulty[i] < k))
    return {**rows, "values": {TOP1: values}}


def record(method, suite="objects", hits=(6, 100), headline="H_c", **changes):
    rows = make_rows(hits)
    summary = summarise(rows, primary=TOP1, headline_id=headline, protocols=[TOP1])
    request = {"name": "erase:cat", "erase": [{"name": "cat"}], "keep": ["dog"], "strategy": "joint", "seed": 0}
    made = {
        "suite": suite,
        "suite_version": 1,
        "form": "embedded",
        "scale": 1.0,
        "model": {"name": "testbed", "hash": "ab", "family": "unet-epsilon"},
        "method": {"label": method, "role": ROLES.get(method, "erasure")},
        "request": request,
        "status": "ok",
        "reason": None,
        "primary": TOP1,
        "headline": headline,
        "protocols": {TOP1: {"version": 1, "evaluator": "testbed-a", "evaluator_hash": ""}},
        "rows": rows,
        "summary": summary,
    }
    return made | changes


def failed(method, suite, status="failed", reason="out of memory"):
    return record(method, suite, status=status, reason=reason, rows={"role": [], "values": {}}, summary={})


CLEAR = {"none": (118, 110), "good": (2, 108), "fair": (30, 100), "bad": (60, 60), "grey": (0, 0)}
"""Hits of 120 erased and 120 kept images: far enough apart to be told apart."""


def suite(name, hits=CLEAR, **changes):
    return [record(m, name, h, **changes) for m, h in hits.items()]


@pytest.fixture(scope="module")
def made():
    swapped = {**CLEAR, "good": CLEAR["fair"], "fair": CLEAR["good"]}
    return overall.build({"objects": suite("objects"), "people": suite("people"), "styles": suite("styles", swapped)})


def row(made, method):
    return next(r for r in made["rows"] if r["method"] == method)


# --- ranks ----------------------------------------------------------------------------------------------------
def test_mean_rank_is_the_mean_place_among_erasure_methods(made):
    ranks = {m: row(made, m)["mean_rank"] for m in ("good", "fair", "bad")}
    assert ranks == {"good": pytest.approx((1 + 1 + 2) / 3), "fair": pytest.approx((2 + 2 + 1) / 3), "bad": 3.0}
    assert [r["method"] for r in made["rows"]] == ["none", "good", "fair", "bad", "grey"]
    for method in ("none", "grey"):
        assert row(made, method)["mean_rank"] is None and set(row(made, method)["cells"]) == {
            "objects",
            "people",
            "styles",
        }
    assert row(made, "good")["mean_rank_ci"] is None, "no draw changes a place"


def test_an_interval_shows_that_near_methods_may_change_places():
    near = {"none": (118, 110), "a": (6, 100), "b": (9, 102), "c": (60, 60)}
    found = overall.build({"one": suite("one", near), "two": suite("two", near)})
    low, high = row(found, "a")["mean_rank_ci"]
    assert low == 1.0 and 1.0 < high <= 2.0 and row(found, "a")["mean_rank"] == 1.0
    assert row(found, "c")["mean_rank_ci"] is None


def test_low_is_best_where_the_headline_says_so(monkeypatch):
    """`detections` counts: fewer are better."""
    hits = {"none": (100, 0), "few": (3, 0), "many": (70, 0)}
    rows = [
        record(m, "explicit", h, headline="detections", primary="nudenet-3.4.2@0.6/boxes-8") for m, h in hits.items()
    ]
    boxes = "nudenet-3.4.2@0.6/boxes-8"
    for r in rows:
        r["rows"]["values"] = {boxes: r["rows"]["values"][TOP1]}
        r["protocols"] = {boxes: r["protocols"][TOP1]}
        r["summary"] = summarise(r["rows"], primary=boxes, headline_id="detections", protocols=[boxes])
    found = overall.build({"explicit": rows, "objects": suite("objects", {"few": (5, 100), "many": (50, 90)})})
    assert row(found, "few")["mean_rank"] == 1.0 and row(found, "many")["mean_rank"] == 2.0
    cells = {m: row(found, m)["cells"]["explicit"] for m in ("few", "many")}
    assert cells["few"]["mark"] == "best" and cells["few"]["headline"] == 3.0 and not cells["many"]["tied"]
    assert "explicit detections ↓" in overall.render(found, "md")


# --- what is missing ------------------------------------------------------------------------------------------
def test_methods_that_lack_a_suite_come_after_and_say_so():
    two = suite("two", {m: h for m, h in CLEAR.items() if m != "bad"})
    two.append(failed("bad", "two", "not applicable", "one concept only"))
    three = suite("three", {m: h for m, h in CLEAR.items() if m != "good"})
    found = overall.build({"one": suite("one"), "two": two, "three": three})
    assert [r["method"] for r in found["rows"]] == ["none", "fair", "good", "bad", "grey"]
    assert (row(found, "good")["ranked_in"], row(found, "good")["ranked_of"]) == (2, 3)
    md = overall.render(found, "md")
    assert r"1.00\*" in md and "good 2 of 3, bad 2 of 3" in md
    assert "not applicable" in md and "bad, two: not applicable: erase:cat: one concept only" in md
    assert row(found, "good")["cells"]["three"]["status"] == "not run" and "not run" in md


def test_failed_and_stale_are_shown_as_such():
    old = record("fair", "one", CLEAR["fair"], suite_version=1)
    new = [record(m, "one", h, suite_version=2) for m, h in CLEAR.items() if m not in ("fair", "bad")]
    bad = failed("bad", "one") | {"suite_version": 2}
    found = overall.build({"one": [old, *new, bad], "two": suite("two")})
    for kind in ("term", "md", "tex"):
        text = overall.render(found, kind)
        assert "stale" in text and "failed" in text and "out of memory" in text, kind


def test_suites_that_do_not_count_say_why():
    gate = {"kept": [0.99, 1.0]}
    broken = [r | {"gate": gate} for r in suite("broken")]
    lonely = suite("lonely", {m: CLEAR[m] for m in ("none", "good")})
    plain = [r | {"headline": None} for r in suite("plain")]
    for r in plain:
        r["summary"] = summarise(r["rows"], primary=TOP1, headline_id=None, protocols=[TOP1])
    found = overall.build({"broken": broken, "lonely": lonely, "one": suite("one"), "plain": plain})
    why = {s["suite"]: s["why"] for s in found["suites"]}
    assert why["broken"].startswith("invalid: ") and "fewer than two" in why["lonely"] and why["one"] == ""
    assert found["left_out"] == {"plain": "it has no headline"}
    assert {r["ranked_of"] for r in found["rows"]} == {1} and row(found, "good")["mean_rank"] == 1.0
    md = overall.render(found, "md")
    assert "broken does not count for the mean rank: invalid" in md and "plain is not shown" in md
    assert md.count("invalid |") == len(CLEAR)


def test_a_control_that_wins_is_told():
    ruined = {**CLEAR, "noise": (0, 120)}
    assert "A control beats all methods on one: noise." in overall.render(
        overall.build({"one": suite("one", ruined)}), "md"
    )


# --- runs -----------------------------------------------------------------------------------------------------
def test_scores_of_a_suite_are_those_of_its_own_board(made):
    board = boards.build(suite("objects"))
    means = {r["method"]: r for r in board["rows"] if r["request"] == "mean"}
    for r in made["rows"]:
        cell = r["cells"]["objects"]
        assert (cell["headline"], cell["headline_ci"]) == (
            means[r["method"]]["headline"],
            means[r["method"]]["headline_ci"],
        )


def test_runs_of_one_suite_are_put_together(tmp_path, monkeypatch):
    monkeypatch.setattr(boards, "read_records", lambda folder: json.loads((folder / "all.json").read_text()))
    every = suite("objects")
    for name, part in (("1", every[:3]), ("2", every[2:])):
        (tmp_path / name / "records").mkdir(parents=True)
        (tmp_path / name / "all.json").write_text(json.dumps(part))
    found = overall.read_suites([tmp_path])
    assert list(found) == ["objects"] and len(found["objects"]) == len(every)
    assert overall.read_suites([tmp_path / "1", tmp_path / "2"]) == found
    other = record("fair", "objects", (3, 3))
    (tmp_path / "2" / "all.json").write_text(json.dumps([other]))
    with pytest.raises(BadInput, match="another record of fair on objects, erase:cat"):
        overall.read_suites([tmp_path])


def test_folders_without_records_are_refused(tmp_path):
    with pytest.raises(BadInput, match="no records"):
        overall.read_suites([tmp_path])


def test_two_models_have_no_leaderboard_in_common():
    other = suite("two", model={"name": "sd14", "hash": "ab", "family": "unet-epsilon"})
    with pytest.raises(BadInput, match="2 different model values"):
        overall.build({"one": suite("one"), "two": other})


# --- formats --------------------------------------------------------------------------------------------------
def test_files_do_not_depend_on_order(made):
    swapped = {**CLEAR, "good": CLEAR["fair"], "fair": CLEAR["good"]}
    parts = {"objects": suite("objects"), "people": suite("people"), "styles": suite("styles", swapped)}
    again = overall.build({name: records[::-1] for name, records in parts.items()})
    for kind in ("md", "csv", "json", "tex", "term"):
        assert overall.render(made, kind) == overall.render(again, kind)


def test_csv_has_a_line_a_method_and_suite(made):
    read = list(csv.DictReader(io.StringIO(overall.render(made, "csv"))))
    assert len(read) == 5 * 3
    line = next(r for r in read if (r["method"], r["suite"]) == ("good", "styles"))
    cell = row(made, "good")["cells"]["styles"]
    assert float(line["headline"]) == cell["headline"] and float(line["headline_lo"]) == cell["headline_ci"][0]
    assert float(line["mean_rank"]) == pytest.approx(4 / 3) and line["headline_id"] == "H_c"


def test_latex_marks_what_the_tests_support(made):
    tex = overall.render(made, "tex")
    for piece in (
        r"\toprule",
        r"\bottomrule",
        "none (unedited)",
        "grey (control)",
        r"H\_c $\uparrow$",
        "embedded model",
    ):
        assert piece in tex
    body = [line for line in tex.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert len({line.count(" & ") for line in body}) == 1
    good = next(line for line in body if line.startswith("good"))
    assert good.count(r"\textbf{") == 2 and good.count(r"\underline{") == 1
    assert r"\textbf" not in next(line for line in body if line.startswith("grey"))
    assert r"\scriptsize" in overall.render(made, "tex", intervals=True) and r"\scriptsize" not in tex
    near = {"none": (118, 110), "a": (6, 100), "b": (6, 100)}
    tied = overall.render(overall.build({"one": suite("one", near)}), "tex")
    wide = overall.render(overall.build({name: suite(name, near) for name in "abcdef"}), "tex", intervals=True)
    assert wide.count("{") == wide.count("}") and "booktabs,graphicx" in wide
    assert r"\resizebox{\linewidth}{!}{" in wide and r"\resizebox" not in tied
    assert r"\textbf" not in tied and r"\underline" not in tied


def test_the_terminal_takes_several_tables_where_one_is_too_wide():
    found = overall.build({f"suite number {i}": suite(f"suite number {i}") for i in range(6)})
    text = overall.render(found, "term", width=80)
    tables = [line for line in text.splitlines() if line.startswith("method")]
    assert len(tables) > 2 and max(map(len, tables)) <= 80
    assert all(f"suite number {i} H_c" in text for i in range(6)) and "\x1b" not in text
    assert text.startswith("6 suites · testbed (embedded model")


def test_unknown_format_gets_a_suggestion(made):
    with pytest.raises(BadInput, match="did you mean 'json'"):
        overall.render(made, "jsn")
