"""Boards from small made-up records: contract fields, means, ties, flags, escaping, bytes."""

import copy
import csv
import io
import json
import random

import numpy as np
import pytest

from benchmark.errors import BadInput, Damaged
from benchmark.metrics.distribution import Value
from benchmark.metrics.summary import summarise
from benchmark.tables import board as boards
from benchmark.tables import formats

TOP1, CLIP = "testbed/top1", "testbed-clip/score"
PROTOCOLS = [TOP1, "testbed-fid", CLIP]
ROLES = {"none": "baseline", "noise": "control", "grey": "control"}
# Hits of 60 erased, 180 kept and 40 synonym images.
HITS = {
    "none": (57, 170, 36),
    "esd": (6, 150, 8),
    "uce": (5, 152, 6),
    "weak": (40, 168, 30),
    "noise": (30, 90, 20),
    "grey": (0, 20, 0),
}


def make_rows(hits, request, order=0):
    """Misses fall on random images, the same for every method: the larger number of hits holds the smaller."""
    rows = {c: [] for c in ("role", "concept", "prompt", "replicate", "seed", "image", "valid")}
    values = {TOP1: [], CLIP: []}
    for role, k, n, prompts in zip(("erased", "kept", "synonym"), hits, (60, 180, 40), (1, 9, 2), strict=True):
        difficulty = np.random.default_rng([n, order]).permutation(n)
        for i in range(n):
            what = f"{request} {role} {i % prompts}"
            for c, v in zip(rows, (role, what, f"a photo of the {what}", i, i * 31, f"{i:064x}", True), strict=True):
                rows[c].append(v)
            values[TOP1].append(float(difficulty[i] < k))
            values[CLIP].append(20 + 5 * values[TOP1][-1] + i % 3)
    return {**rows, "values": values}


def record(method, request="erase:cat", hits=None, order=0, **changes):
    rows = make_rows(hits or HITS[method], request, order)
    fid = Value(3.0 + ROLES.get(method, "x").count("control"), n=180)
    made = {
        "schema": 1,
        "suite": "objects",
        "suite_version": 1,
        "form": "embedded",
        "scale": 1.0,
        "model": {"name": "testbed", "hash": "ab" * 32, "family": "unet-epsilon"},
        "method": {
            **{"label": method, "name": method, "variant": None, "version": 1, "role": ROLES.get(method, "erasure")},
            **{"paper": "", "fields": {}, "passed": {}, "preset": None},
        },
        "request": {"name": request, "erase": [{"name": "cat"}], "keep": ["dog"], "strategy": "joint", "seed": 0},
        "status": "ok",
        "reason": None,
        "sampler": {"steps": 25},
        "batch": 20,
        "primary": TOP1,
        "headline": "H_o",
        "edit": None,
        "protocols": {p: {"version": 1, "evaluator": "testbed-a", "evaluator_hash": "cd" * 32} for p in PROTOCOLS},
        "rows": rows,
        "provenance": {
            **{"commit": None, "dirty": None, "packages": {}, "python": "3.11", "machine": "x86_64"},
            **{"device_class": "cpu", "threads": 1, "dtype": "float32", "determinism": "contract 1"},
        },
        "summary": summarise(
            rows, primary=TOP1, headline_id="H_o", protocols=PROTOCOLS, sets={"testbed-fid": fid}, seed=0
        ),
    }
    return made | changes


@pytest.fixture(scope="module")
def records():
    return [record(m, q) for q in ("erase:cat", "erase:identity_10", "erase:identity_5") for m in HITS]


@pytest.fixture(scope="module")
def board(records):
    return boards.build(records)


def row(board, method, request="erase:cat"):
    return next(r for r in board["rows"] if (r["method"], r["request"]) == (method, request))


# --- rows -----------------------------------------------------------------------------------------------------
def test_contract_fields(board):
    assert (board["schema"], board["suite"], board["suite_version"], board["model"]) == (1, "objects", 1, "testbed")
    names = "method request strategy status reason primary headline_id headline headline_ci metrics metrics_ci".split()
    names += [f"{k}_{r}" for r in ("erased", "kept", "synonym", "adjacent") for k in ("n", "acc")]
    names += [f"acc_{r}_ci" for r in ("erased", "kept", "synonym", "adjacent")]
    for r in board["rows"]:
        assert set(names) <= set(r)
        differences = ("metrics_ci", "rank_ci", "gap_vs_best_ci")
        for key in (k for k in r if k.endswith("_ci") and r[k] and k not in differences):
            assert 0 <= r[key][0] <= r[key[:-3]] <= r[key][1] <= 1, key
    r = row(board, "esd")
    assert (r["acc_erased"], r["n_kept"], r["status"], r["primary"]) == (0.1, 180, "ok", TOP1)
    assert r["metrics"] == {TOP1: 150 / 180, "testbed-fid/180": 3.0, CLIP: pytest.approx(20 + 5 * 150 / 180 + 1)}
    assert r["acc_adjacent"] is None and r["reason"] == ""


def test_one_row_a_method_and_request_and_one_mean(board):
    assert len(board["rows"]) == len(HITS) * 4
    requests = list(dict.fromkeys(r["request"] for r in board["rows"]))
    assert requests == ["erase:cat", "erase:identity_5", "erase:identity_10", "mean"]
    assert [r["method"] for r in board["rows"]][:6] == ["none", "uce", "esd", "weak", "noise", "grey"]


def test_mean_is_the_mean_of_headlines_not_the_headline_of_means():
    made = [record("esd", "erase:a", (0, 180, 0)), record("esd", "erase:b", (60, 180, 0))]
    mean = row(boards.build(made), "esd", "mean")
    single = [r["summary"]["headline"] for r in made]
    assert mean["headline"] == pytest.approx(np.mean(single)) == pytest.approx(0.5)
    assert mean["acc_erased"] == 0.5 and mean["n_erased"] == 120
    assert mean["headline_ci"][0] <= 0.5 <= mean["headline_ci"][1]


def test_mean_without_a_request_is_not_available():
    made = [record("esd", "erase:a"), record("uce", "erase:a"), record("uce", "erase:b")]
    mean = row(boards.build(made), "esd", "mean")
    assert mean["headline"] is None and mean["status"] == "failed" and mean["reason"] == "no record for erase:b"
    made[0] = record(
        "esd",
        "erase:a",
        status="not applicable",
        reason="one concept only",
        rows={"role": [], "values": {}},
        summary={},
    )
    made.append(record("esd", "erase:b"))
    board = boards.build(made)
    assert row(board, "esd", "erase:a")["reason"] == "one concept only"
    mean = row(board, "esd", "mean")
    assert (mean["status"], mean["headline"]) == ("not applicable", None)
    assert mean["reason"] == "erase:a: one concept only"


def test_distances_over_different_counts_do_not_average():
    a, b = record("esd", "erase:a"), record("esd", "erase:b")
    b["summary"] = copy.deepcopy(b["summary"])
    b["summary"]["metrics"] = {"testbed-fid/95": 2.0, CLIP: 20.0}
    mean = row(boards.build([a, b]), "esd", "mean")
    assert "testbed-fid/95" not in mean["metrics"] and mean["metrics"][CLIP] is not None
    assert "testbed-fid: not over the same number of images" in mean["reason"]


def test_training_seeds_are_averaged():
    made = [record("esd", hits=(k, 150, 8), order=k) for k in (6, 12)]
    for seed, r in enumerate(made):
        r["request"] = {**r["request"], "seed": seed}
    r = row(boards.build(made), "esd")
    assert r["seeds"] == [0, 1] and r["acc_erased"] == pytest.approx(0.15) and r["n_erased"] == 120
    assert r["headline"] == pytest.approx(np.mean([x["summary"]["headline"] for x in made]))


def test_scores_do_not_move_when_a_method_is_added(records, board):
    fewer = boards.build([r for r in records if r["method"]["label"] in ("none", "esd")])
    for r in fewer["rows"]:
        full = row(board, r["method"], r["request"])
        moved = [k for k in r if r[k] != full[k]]
        beside = {"rank", "rank_ci", "best", "p_vs_best", "tied", "gap_vs_best", "gap_vs_best_ci", "marks"}
        assert set(moved) <= beside


# --- comparison -----------------------------------------------------------------------------------------------
def test_ties_ranks_and_p_values(board):
    best, tied, weak = (row(board, m) for m in ("uce", "esd", "weak"))
    assert best["best"] and best["rank"] == 1 and best["p_vs_best"] is None
    assert tied["tied"] and tied["p_vs_best"] > 0.05 and tied["rank"] == 2
    assert not weak["tied"] and weak["p_vs_best"] < 0.05
    assert weak["rank_ci"][0] > 2 and best["rank_ci"][0] == 1
    assert row(board, "none")["rank"] is None
    assert [r["method"] for r in board["rows"] if r["best"]] == ["uce"] * 4


def test_equal_methods_are_tied():
    a, b = record("esd"), record("uce", hits=HITS["esd"])
    board = boards.build([a, b])
    assert sorted(r["p_vs_best"] for r in board["rows"] if not r["best"]) == [1.0, 1.0]
    assert {r["rank"] for r in board["rows"]} == {1}


def test_a_control_that_wins_is_flagged(board):
    assert row(board, "grey")["wins"] == ["acc_erased", "acc_synonym"]
    assert row(board, "noise")["wins"] == []
    assert row(board, "none")["wins"] == []
    text = boards.render(board, "term")
    assert "A control beats all methods: grey on erased, synonym (" in text
    ruin = boards.build([record("esd"), record("noise", hits=(0, 180, 0))])
    assert "headline" in row(ruin, "noise")["wins"]


# --- records --------------------------------------------------------------------------------------------------
def test_older_suite_versions_are_stale():
    old = record("uce", suite_version=1)
    board = boards.build([old, record("esd", suite_version=2)])
    assert board["suite_version"] == 2
    r = row(board, "uce")
    assert r["status"] == "stale" and r["headline"] is None and "version 1" in r["reason"]


def test_records_that_do_not_belong_together_are_refused():
    with pytest.raises(BadInput, match=r"2 different model values \(sd14, testbed, …\)"):
        boards.build([record("esd"), record("uce", model={"name": "sd14", "hash": "ab" * 32})])
    with pytest.raises(BadInput, match="disagree on testbed/top1"):
        other = {TOP1: {"version": 2, "evaluator": "testbed-a", "evaluator_hash": ""}}
        boards.build([record("esd"), record("uce", protocols=other)])
    with pytest.raises(BadInput, match="at least one record"):
        boards.build([])


@pytest.mark.parametrize("other", ["testbed-b/top1", "nudenet-3.4.2@0.6/images", "nudenet-3.4.2@0.5/images"])
def test_a_table_that_would_mix_two_protocols_is_refused_with_both_named(other):
    """Another judge, another version of it, another threshold: another id, and no column holds two."""
    with pytest.raises(BadInput, match=f"acc_.* cannot hold both {TOP1} and {other}: .* rescore under one"):
        boards.build([record("esd"), record("uce", primary=other)])
    with pytest.raises(BadInput, match="the headline cannot hold both H_o and H_c"):
        boards.build([record("esd"), record("uce", headline="H_c")])
    made = [record(m, headline="H_a") for m in ("esd", "uce")]
    made[1]["rows"] = {**made[1]["rows"], "values": {**made[1]["rows"]["values"], "testbed-clip/style": [1.0] * 280}}
    with pytest.raises(BadInput, match="headline H_a cannot hold both testbed-clip/score and testbed-clip/style"):
        boards.build(made)


def test_one_id_by_two_judges_is_refused_with_both_named():
    """The same id, but other weights: a checkpoint that was published anew, say."""
    parts = [{TOP1: {"version": 1, "evaluator": "testbed-a", "evaluator_hash": h * 64}} for h in "ef"]
    with pytest.raises(BadInput, match=f"disagree on {TOP1} .*{'e' * 64}.*{'f' * 64}.*; rescore them under one"):
        boards.build([record(m, protocols=p) for m, p in zip(("esd", "uce"), parts, strict=True)])


def test_reading(tmp_path, records):
    with pytest.raises(BadInput, match="no records"):
        boards.read_records(tmp_path)
    folder = tmp_path / "records"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(records[0]))
    assert boards.read_records(tmp_path) == boards.read_records(folder)
    assert boards.render(boards.build(boards.read_records(folder)), "json") == boards.render(
        boards.build(records[:1]), "json"
    )
    (folder / "b.json").write_text("{")
    with pytest.raises(Damaged, match=r"b\.json is not JSON"):
        boards.read_records(tmp_path)
    (folder / "b.json").write_text('{"schema": 9}')
    with pytest.raises(BadInput, match=r"b\.json.*schema \d, found 9"):
        boards.read_records(tmp_path)


# --- formats --------------------------------------------------------------------------------------------------
def test_files_are_the_same_bytes_whatever_the_order(tmp_path, records):
    shuffled = records[:]
    random.Random(0).shuffle(shuffled)
    files = boards.files(records)
    assert files == boards.files(shuffled) and sorted(files) == ["board.csv", "board.json", "board.md"]
    boards.write(records, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == files


def test_csv_holds_the_same_rows_flat(board):
    read = list(csv.DictReader(io.StringIO(boards.render(board, "csv"))))
    assert len(read) == len(board["rows"])
    for flat, r in zip(read, board["rows"], strict=True):
        assert (flat["method"], flat["request"]) == (r["method"], r["request"])
        assert (flat["suite"], flat["form"]) == (board["suite"], "embedded"), "each row tells"
        assert float(flat["acc_erased"]) == r["acc_erased"]
        assert float(flat["headline_lo"]) == r["headline_ci"][0]
        assert float(flat["testbed-fid/180"]) == r["metrics"]["testbed-fid/180"]
        assert flat["acc_adjacent"] == ""


def test_terminal_board_fits_and_says_what_it_is(board):
    text = boards.render(board, "term")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100 and "\x1b" not in text
    assert "embedded model" in lines[0]
    for word in ("mean over requests", "H_o ↑", "erased ↓", "kept ↑", "fid/180 ↓", "ctrl", "base", "images: 60 erased"):
        assert word in text, word
    start = next(i for i, line in enumerate(lines) if line.startswith("method"))
    assert lines[start + 1].startswith("none ") and lines[start + 2].startswith("uce ")
    column = lines[start].index("H_o ↑") + len("H_o ↑")  # right-aligned under the arrow
    for line in lines[start + 1 : start + 3]:
        assert line[column - 1] != " " and not line[column : column + 1].strip()
    assert "\x1b" in boards.render(board, "term", colour=True)


def test_narrow_terminals_lose_columns_by_name(board):
    text = boards.render(board, "term", width=60)
    table = text[: text.index("Too wide")]
    assert max(map(len, table.splitlines()[1:])) <= 60
    assert "Too wide to show:" in text and "clip" in text.split("Too wide to show:")[1]


def test_names_are_text_in_every_format():
    evil = "=cmd|`[bold]x_y&</td>%\x1b[31m"
    made = record("esd")
    made["method"] = {**made["method"], "label": evil}
    board = boards.build([record("none"), made])
    cells = [r["method"] for r in csv.DictReader(io.StringIO(boards.render(board, "csv")))]
    assert "'" + evil.replace("\x1b", "�") in cells
    assert "[bold]x" in boards.render(board, "term") and "\x1b" not in boards.render(board, "term")
    md = boards.render(board, "md")
    assert r"\|\`\[bold\]x\_y&amp;\</td\>" in md
    table = [line for line in md.splitlines() if line.startswith("|")]
    assert len({line.replace(r"\|", "").count("|") for line in table[:4]}) == 1
    assert r"x\_y\&$<$/td$>$\%" in boards.render(board, "tex")


def test_latex(board):
    tex = boards.render(board, "tex")
    for piece in (r"\toprule", r"\bottomrule", r"none (unedited)", r"grey (control)", r"H\_o $\uparrow$"):
        assert piece in tex
    assert f"{{{formats.EMBEDDED.replace('×', '$' + chr(92) + 'times$')}}}" in tex, "said where it is typeset"
    widths = {line.count(" & ") for line in tex.splitlines() if line.endswith(r"\\") and "multicolumn" not in line}
    assert len(widths) == 1
    assert r"\scriptsize" not in tex and r" {\scriptsize (" in boards.render(board, "tex", intervals=True)


FAR = {"none": (57, 170, 36), "first": (2, 174, 2), "second": (20, 150, 14), "third": (48, 90, 34), "grey": (0, 0, 0)}


def marked(hits, requests=("erase:cat", "erase:dog")):
    made = boards.build([record(m, q, h) for m, h in hits.items() for q in requests])
    return made, {m: {q: row(made, m, q)["marks"] for q in (*requests, "mean")} for m in hits}


def test_best_and_second_are_marked_where_the_tests_tell_them_apart():
    made, marks = marked(FAR)
    for request in ("erase:cat", "erase:dog", "mean"):
        assert marks["first"][request]["headline"] == "best" and marks["second"][request]["headline"] == "second"
        assert marks["first"][request]["acc_erased"] == "best"
        assert marks["third"][request] == marks["none"][request] == marks["grey"][request] == {}
    lines = boards.render(made, "tex").splitlines()
    assert all(r"\textbf{" in line for line in lines if line.startswith("first "))
    assert all(r"\underline{" in line for line in lines if line.startswith("second "))
    assert not any(r"\textbf{" in line or r"\underline{" in line for line in lines if line.startswith(("grey", "none")))


def test_what_the_tests_do_not_tell_apart_has_no_mark(board):
    assert row(board, "uce")["best"] and "headline" not in row(board, "uce")["marks"]
    assert r"\textbf{" not in boards.render(boards.build([record("esd"), record("uce", hits=HITS["esd"])]), "tex")
    _, marks = marked({"first": FAR["first"], "second": FAR["second"]})
    assert marks["first"]["mean"]["headline"] == "best"
    assert "second" not in marks["second"]["mean"].values(), "the last of two is no second"
    near = {**FAR, "second": (20, 150, 14), "third": (21, 150, 14)}
    assert "headline" not in marked(near)[1]["second"]["mean"], "the second is not told from the third"


def test_marks_are_corrected_over_the_whole_board():
    """p = .02 (nine of ten pairs that differ) is enough for one claim, not for one of eight."""
    from benchmark.tables.compare import Claim, mark

    one, many = {"marks": {}}, {"marks": {}}
    mark([Claim(one, "headline", "best", 0.02)])
    mark([Claim(many, "headline", "best", 0.02), *(Claim({"marks": {}}, "acc_kept", "best", 0.9) for _ in range(7))])
    assert one["marks"] == {"headline": "best"} and many["marks"] == {}
    second = {"marks": {}}
    mark([Claim({"marks": {}}, "headline", "best", 0.3), Claim(second, "headline", "second", 0.001)])
    assert second["marks"] == {}, "a second beside no best"


def test_gaps_to_the_best_have_paired_intervals():
    made, _ = marked(FAR)
    best, second = row(made, "first", "mean"), row(made, "second", "mean")
    assert best["gap_vs_best"] is None
    assert second["gap_vs_best"] == pytest.approx(second["headline"] - best["headline"])
    low, high = second["gap_vs_best_ci"]
    assert low < second["gap_vs_best"] < high < 0
    flat = next(r for r in csv.DictReader(io.StringIO(boards.render(made, "csv"))) if r["method"] == "second")
    assert float(flat["gap_vs_best_lo"]) < 0 and flat["marks"].count("second") >= 1


def test_luck_of_training_is_told_from_luck_of_sampling():
    hits = [(4, 150, 6), (20, 150, 12), (30, 150, 20)]
    made = [record("esd", hits=h) for h in hits]
    for seed, r in enumerate(made):
        r["request"] = {**r["request"], "seed": seed}
    found = boards.build(made)
    spread = row(found, "esd")["spread"]
    assert spread["seeds"] == [0, 1, 2] and spread["training_sd"] > spread["sampling_sd"] > 0
    assert "3 training seeds; the headline's deviation is" in boards.render(found, "md")
    same = [record("esd", hits=hits[0]) for _ in range(2)]
    same[1]["request"] = {**same[1]["request"], "seed": 1}
    assert row(boards.build(same), "esd")["spread"]["training_sd"] == 0.0
    assert row(boards.build(same[:1]), "esd")["spread"] is None


def test_rows_without_numbers_show_their_status():
    bad = record("esd", status="failed", reason="out of memory", rows={"role": [], "values": {}}, summary={})
    board = boards.build([record("none"), record("uce"), bad])
    assert "| esd | failed | – |" in boards.render(board, "md")
    assert r"\textit{failed: out of memory}" in boards.render(board, "tex")
    assert any("esd" in line and "failed" in line for line in boards.render(board, "term").splitlines())


def test_failed_and_invalid_rows_are_told():
    bad = record("esd", status="failed", reason="out of memory", rows={"role": [], "values": {}}, summary={})
    dark = record("uce")
    dark["rows"]["valid"][0] = False
    sets = {"testbed-fid": Value(None, reason="needs at least 145 images", n=12)}
    dark["summary"] = summarise(dark["rows"], primary=TOP1, headline_id="H_o", protocols=PROTOCOLS, sets=sets)
    text = "\n".join(formats.notes(boards.build([bad, dark])))
    assert "esd, erase:cat: failed: out of memory" in text
    assert "Not scored: uce, erase:cat: 1 of 60 erased" in text
    assert "testbed-fid/12: needs at least 145 images" in text
    assert "–" in boards.render(boards.build([bad, dark]), "md")


def test_one_request_has_no_mean_section(records):
    board = boards.build([record("none"), record("esd")])
    assert {r["request"] for r in board["rows"]} == {"erase:cat", "mean"}
    assert "mean over requests" not in boards.render(board, "term")


def test_unknown_format_gets_a_suggestion(board):
    with pytest.raises(BadInput, match="did you mean 'json'"):
        boards.render(board, "jsn")
