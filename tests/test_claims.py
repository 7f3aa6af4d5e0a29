"""The ledger of claims: what the check finds in ours; planted faults and nothing else; from the numbers alone."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmark import cli
from benchmark.claims import check as checks
from benchmark.claims import fidelity, granularity
from benchmark.claims.ledger import Claim, default_file, read
from benchmark.claims.numbers import parse
from benchmark.errors import BadInput
from benchmark.metrics.balance import H_fade_adv

HEADER = "source,table,row,suite,concept,metric,value,unit,images,status,note"


@pytest.fixture(scope="module")
def claims() -> list[Claim]:
    return read()


@pytest.fixture(scope="module")
def report(claims: list[Claim]) -> checks.Report:
    return checks.check(claims)


def ledger(tmp_path: Path, *lines: str, header: str = HEADER) -> Path:
    path = tmp_path / "claims.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def found(report: checks.Report) -> dict[str, list[tuple[str, ...]]]:
    """Findings as (row, metric), by kind."""
    said = report.as_json()
    return {
        kind: [(f["row"], f["metric"]) for f in said[kind]] for kind in ("inconsistent", "contested", "granularity")
    }


# --- our ledger -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("source", "table", "row", "metric", "printed", "recomputed"),
    [
        ("2504.12782", "Table 2", "ESD-u", "H_c", 0.4598, 0.5555),
        ("2504.12782", "Table 2", "SLD-M", "H_c", 0.2237, 0.2226),
        ("2504.12782", "Table 2", "AC", "H_c", 0.1977, 0.1942),
        ("2504.12782", "Table 1", "CE-SDWV", "boxes/total", 84, 83),
        ("2403.06135", "Table 1", "AC", "H_o", 6.11, 7.03),
    ],
)
def test_known_faults_are_found(report, source, table, row, metric, printed, recomputed):
    (finding,) = (
        f
        for f in report.as_json()["inconsistent"]
        if source in f["source"] and (f["table"], f["row"], f["metric"]) == (table, row, metric)
    )
    assert finding["printed"] == printed
    assert finding["recomputed"] == pytest.approx(recomputed, abs=6 * 10 ** -(2 + 2 * (printed < 1)))


def test_all_that_is_inconsistent_in_the_ledger(report):
    """Everything else that can be made again agrees with what is printed."""
    rows = [(f["source"].split(",")[0], f["table"], f["row"]) for f in report.as_json()["inconsistent"]]
    known = [("MACE", "Table 1", "AC"), ("ANT", "Table 1", "CE-SDWV")]
    known += [("ANT", "Table 2", row) for row in ("ESD-u", "SLD-M", "AC")]
    known += [("FADE-adv", "Table 2", r) for r in ("FADE-adv", "w/o adversary", "w/o preservation", "w/o saliency")] * 2
    known += [("Semantic Surgery (NeurIPS 2025)", "Table 2", "Receler")]
    assert sorted(rows) == sorted(known)
    assert len(report.recomputed) > 140


@pytest.mark.parametrize(("row", "H"), [("MACE", 0.8979), ("ANT", 0.9173)])
def test_golden_values_agree(claims, report, row, H):
    (claim,) = (c for c in claims if (c.source[:3], c.table, c.row, c.metric) == ("ANT", "Table 2", row, "H_c"))
    assert claim.value == H and abs(report.recomputed[claim.line].value - H) < 1e-4
    assert "inconsistent" not in report.flags().get(claim.line, ())


def test_fade_adv_by_its_own_formula(claims):
    """No FID₀ serves Table 2: the least-squares one is 10.91, and leaves 11.5 points of H."""
    table = fidelity.rows([c for c in claims if c.source.startswith("FADE-adv") and c.table == "Table 2"])
    clip = fidelity.unedited(claims, table[0].H.source, "clip")
    assert clip is not None and clip.value == 31.5 and len(table) == 8
    fit = fidelity.fit(table, clip)
    rows = [(r.acc.value, r.clip.value, r.fid.value, r.H.value) for r in table]
    again = [H_fade_adv(a, c, f, clip_unedited=31.5, fid_unedited=fit.fid, clipped=False) for a, c, f, _ in rows]
    rms = (sum((x - r[3]) ** 2 for x, r in zip(again, rows, strict=True)) / 8) ** 0.5
    assert fit.fid == pytest.approx(10.91, abs=0.02) and 100 * rms == pytest.approx(11.5, abs=0.1)


def test_granularity_of_fade_adv(report):
    """50 prompts of each concept: 18.7 % of 500 images is no count; 15.2 % is."""
    said = {(f["concept"], f["row"]): f for f in report.as_json()["granularity"] if f["table"] == "Table 1"}
    assert said["10 people", "ESD"]["nearest"] == [{"count": 93, "value": 18.6}, {"count": 94, "value": 18.8}]
    assert ("10 objects", "ESD") not in said
    assert {row for concept, row in said if concept == "10 objects"} == {"MACE", "ANT", "unedited"}
    assert len(said) == 18


def test_contested_cells_name_both(report):
    (cell,) = (
        f
        for f in report.as_json()["contested"]
        if (f["suite"], f["row"], f["metric"]) == ("styles", "UCE", "clip_kept")
    )
    assert {p["text"] for p in cell["printed"]} == {"25.70", "26.32"}
    assert len({p["source"] for p in cell["printed"]}) == 3


def test_status_says_what_the_check_finds(claims, report):
    flags = report.flags()
    for c in claims:
        first, *rest = c.status.split(" ")
        assert first in ("primary", "secondary")
        assert rest == [f for f in flags.get(c.line, ()) if f != "impossible"], f"line {c.line}"


def test_note_and_status_are_not_read(tmp_path, report):
    rows = list(csv.DictReader(io.StringIO(default_file().read_text(encoding="utf-8"))))
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**r, "note": "H recomputed = 0.1", "status": ""} for r in rows)
    path = tmp_path / "silent.csv"
    path.write_text(out.getvalue(), encoding="utf-8")
    assert checks.check(read(path)).as_json() == report.as_json()


# --- planted faults -------------------------------------------------------------------------------------------
CLEAN = [
    "P,T1,good,s,x,acc_erased,4.30,percent,,,",
    "P,T1,good,s,x,acc_kept,84.56,percent,,,",
    "P,T1,good,s,x,H_c,89.79,percent,,,inconsistent!",
    "P,T2,sums,s,x,boxes/a,3,count,,,",
    "P,T2,sums,s,x,boxes/b,4,count,,,",
    "P,T2,sums,s,x,boxes/total,7,count,,,",
    "P,T3,erb,s,x,acc_erased,0.10,fraction,50,,",
    "P,T3,erb,s,x,acc_adjacent,0.50,fraction,,,",
    "P,T3,erb,s,x,ERB,0.64,fraction,,,",
    "P,T4,m,s,one,H_o,50.0,percent,,,",
    "P,T4,m,s,two,H_o,70.0,percent,,,",
    "P,T4,m,s,mean of 2,H_o,60.0,percent,,,",
    "P,T5,cut off,s,x,acc_erased,76.05,percent,142,,",
    "Q,T9,good,s,x,acc_erased,.043,fraction,,,",
]


def test_a_clean_ledger_has_no_findings(tmp_path):
    report = checks.check(read(ledger(tmp_path, *CLEAN)))
    assert report.ok and not report.flags()
    assert len(report.recomputed) == 4


@pytest.mark.parametrize(
    ("line", "now", "kind", "where"),
    [
        (2, "P,T1,good,s,x,H_c,89.29,percent,,,", "inconsistent", ("good", "H_c")),
        (5, "P,T2,sums,s,x,boxes/total,8,count,,,", "inconsistent", ("sums", "boxes/total")),
        (8, "P,T3,erb,s,x,ERB,0.66,fraction,,,", "inconsistent", ("erb", "ERB")),
        (11, "P,T4,m,s,mean of 2,H_o,61.0,percent,,,", "inconsistent", ("m", "H_o")),
        (6, "P,T3,erb,s,x,acc_erased,0.09,fraction,50,,", "granularity", ("erb", "acc_erased")),
        (13, "Q,T9,good,s,x,acc_erased,.053,fraction,,,", "contested", ("good", "acc_erased")),
    ],
)
def test_a_planted_fault_is_found_and_nothing_else(tmp_path, line, now, kind, where):
    report = checks.check(read(ledger(tmp_path, *[now if i == line else text for i, text in enumerate(CLEAN)])))
    assert found(report) == {k: [where] if k == kind else [] for k in ("inconsistent", "contested", "granularity")}


def fade_rows(fid_unedited: float, wrong: int | None = None) -> list[str]:
    """Four rows that satisfy the formula at one FID₀, and one that does not."""
    lines = ["F,text,unedited,s,,clip,31.5,100·cos,,,"]
    for i, (acc, fid, clip) in enumerate([(0.0, 13.5, 30.9), (7.8, 13.6, 31.0), (0.4, 20.3, 25.5), (12.5, 16.1, 29.1)]):
        H = H_fade_adv(acc / 100, clip, fid, clip_unedited=31.5, fid_unedited=fid_unedited, clipped=False)
        assert H is not None
        H = 100 * H - (9 if i == wrong else 0)
        parts = {"acc_erased": f"{acc}", "fid": f"{fid}", "clip": f"{clip}", "H_fade_adv": f"{H:.1f}"}
        units = {"acc_erased": "percent", "H_fade_adv": "percent"}
        lines += [f"F,T2,row {i},s,x,{m},{v},{units.get(m, '')},,," for m, v in parts.items()]
    return lines


@pytest.mark.parametrize("fid", [9.0, 12.0, 13.5, 30.0])
def test_a_table_that_satisfies_the_formula_at_a_fid_that_is_not_printed(tmp_path, fid):
    report = checks.check(read(ledger(tmp_path, *fade_rows(fid))))
    assert report.ok and len(report.recomputed) == 4


@pytest.mark.parametrize("wrong", range(4))
def test_one_wrong_row_does_not_blame_the_others(tmp_path, wrong):
    report = checks.check(read(ledger(tmp_path, *fade_rows(13.5, wrong))))
    assert found(report)["inconsistent"] == [(f"row {wrong}", "H_fade_adv")]


def test_a_printed_fid_is_used(tmp_path):
    lines = [*fade_rows(13.5), "F,text,unedited,s,,fid,20.0,distance,,,"]
    assert len(checks.check(read(ledger(tmp_path, *lines))).inconsistent) == 4


def test_a_mean_of_scores_is_not_the_score_of_means(tmp_path):
    lines = [f"P,T,m,s,mean of 10,{m},{v},percent,,," for m, v in (("acc_erased", 13.54), ("acc_kept", 98.45))]
    lines += [f"P,T,m,s,mean of 10,{m},{v},percent,,," for m, v in (("acc_synonym", 23.18), ("H_o", 85.48))]
    assert not checks.check(read(ledger(tmp_path, *lines))).recomputed


# --- numbers --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("0.4598", (0.45975, 0.45985)),
        ("~40", (39, 41)),
        ("65..70", (64.5, 70.5)),
        ("-0.73", (-0.735, -0.725)),
        ("7", (6.5, 7.5)),
    ],
)
def test_printed_numbers(text, interval):
    printed = parse(text)
    assert (printed.lo, printed.hi) == pytest.approx(interval)
    assert (printed.lo + printed.hi) / 2 == pytest.approx(printed.value)


@pytest.mark.parametrize("text", ["", "abc", "1e-3", "nan", "5..3", "1,5", "12 %"])
def test_what_is_no_number_is_refused(text):
    with pytest.raises(ValueError):
        parse(text)


@pytest.mark.parametrize("n", [7, 50, 142, 250, 500])
@pytest.mark.parametrize("decimals", [0, 1, 2])
def test_every_count_passes_rounded_and_cut_off(tmp_path, n, decimals):
    """No false alarm: whatever k of n is printed as, by either habit, is possible."""
    cut = [int(100 * k / n * 10**decimals + 1e-9) / 10**decimals for k in range(n + 1)]
    values = {f"{v:.{decimals}f}" for k in range(n + 1) for v in (100 * k / n, cut[k])}
    path = ledger(tmp_path, *(f"P,T,{v},s,x,acc_erased,{v},percent,{n},," for v in sorted(values)))
    assert not [c.printed.text for c in read(path) if granularity.check(c)]


def test_a_mean_of_scores_and_an_upper_bound_are_no_shares(tmp_path):
    lines = ["P,T,a,s,x,acc_erased,18.7,mean percent,500,,", "P,T,b,s,x,acc_erased,18.7,percent,<=500,,"]
    assert checks.check(read(ledger(tmp_path, *lines))).ok


# --- files and command ----------------------------------------------------------------------------------------
def test_names_of_other_collections_are_known(tmp_path):
    header = "source,table,status,suite,method,backbone,metric,value,note"
    lines = [
        f"A,T2,primary,celeb,ESD-u,SD,{m},{v}," for m, v in (("acc_e", 0.0406), ("acc_p", 0.3909), ("H_c", 0.4598))
    ]
    lines += [f"A,T1,primary,i2p,X,SD,{m},{v}," for m, v in (("armpits", 3), ("belly", 4), ("total", 9))]
    report = checks.check(read(ledger(tmp_path, *lines, header=header)))
    assert found(report)["inconsistent"] == [("ESD-u", "H_c"), ("X", "boxes/total")]


@pytest.mark.parametrize(
    ("header", "line", "said"),
    [
        ("source,table,row,metric", "a,b,c,d", "'value' is missing"),
        ("source,table,row,metric,value", "a,b,c,acc_erased,many", "line 2: value"),
        ("source,table,row,metric,value", "a,b,,acc_erased,1", "line 2: row is empty"),
    ],
)
def test_a_bad_ledger_says_where(tmp_path, header, line, said):
    with pytest.raises(BadInput, match=said):
        read(ledger(tmp_path, line, header=header))


def test_the_command(tmp_path):
    run = CliRunner()
    bad = run.invoke(cli.app, ["claims", "check", "--json"])
    assert bad.exit_code == 1
    fields = {"source", "table", "row", "metric", "printed", "recomputed"}
    assert all(fields <= set(f) for f in json.loads(bad.stdout)["inconsistent"])
    good = run.invoke(cli.app, ["claims", "check", "--ledger", str(ledger(tmp_path, *CLEAN))])
    assert (good.exit_code, good.stdout) == (
        0,
        "0 inconsistent, 0 contested, 0 impossible among 14 claims, 4 of them recomputed\n",
    )
    absent = run.invoke(cli.app, ["claims", "check", "--ledger", "nowhere.csv"])
    assert absent.exit_code == 2 and "nowhere.csv" in absent.stderr
