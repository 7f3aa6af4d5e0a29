"""Papers' tables: only the right records measure, embedded results stay apart, and files come back byte for byte."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmark import cli, paths, registry
from benchmark import suite as suites
from benchmark.claims import ledger as ledgers
from benchmark.claims.ledger import Claim
from benchmark.errors import BadInput
from benchmark.metrics.distribution import Value
from benchmark.metrics.protocols import protocol
from benchmark.metrics.summary import summarise
from benchmark.tables import layouts, measured, reproduce
from benchmark.tables.paper_formats import CAVEAT
from benchmark.tables.verdict import verdict

PAPERS = ("ant", "cpe", "fade_adv", "fade_fg", "mace")
OBJECTS = "airplane automobile bird cat deer dog frog horse ship truck".split()
COUNTS = {"erased": 45, "kept": 90, "synonym": 36}  # of nine prompts each


@pytest.fixture(scope="module")
def claims() -> list[Claim]:
    return ledgers.read()


# --- records, made up -----------------------------------------------------------------------------------------
def record(method: str, concept: str, rates: dict[str, float], *, form: str = "paper", **changes):
    """A record of `objects` whose rows have these means."""
    primary = "clip-vitb32/prob" if form == "paper" else "testbed/top1"
    rows = {c: [] for c in ("role", "concept", "prompt", "replicate", "seed", "image", "valid")}
    values = []
    for role, n in COUNTS.items():
        for i in range(n):
            what = (role, concept, f"a photo of the {concept} {role} {i % 9}", i, i, f"{i:064x}", True)
            for c, v in zip(rows, what, strict=True):
                rows[c].append(v)
            mean = rates[role]
            # A probability that differs a little by prompt, around the mean; hits and misses for a rate.
            values.append(mean + 0.005 * (i % 9 - 4) if form == "paper" else float(i < round(mean * n)))
    rows["values"] = {primary: values}
    request = f"erase:{concept}"
    made = {
        "schema": 1,
        "suite": "objects",
        "suite_version": suites.load("objects").version,
        "form": form,
        "scale": 1.0,
        "model": {"name": "sd14" if form == "paper" else "testbed", "hash": "ab" * 16, "family": "unet-epsilon"},
        "method": {
            **{"label": method, "name": method.partition("@")[0], "variant": None, "version": 1},
            **{"role": "baseline" if method == "none" else "erasure"},
            **{"paper": "", "fields": {}, "passed": {}, "preset": None},
        },
        "request": {
            **{"name": request, "keep": ["dog"], "strategy": "joint", "seed": 0},
            "erase": [{"name": concept, "kind": "object", "anchor": "", "synonyms": []}],
        },
        "status": "ok",
        "reason": None,
        "sampler": {"steps": 50},
        "batch": 8,
        "primary": primary,
        "headline": "H_o",
        "gate": {},
        "reference": None,
        "protocols": {primary: {"version": protocol(primary).version, "evaluator": "x", "evaluator_hash": "cd" * 32}},
        "edit": None,
        "rows": rows,
        "provenance": {
            **{"commit": None, "dirty": None, "packages": {}, "python": "3.11", "machine": "x86_64"},
            **{"device_class": "cpu", "threads": 1, "dtype": "float32", "determinism": "contract 1"},
        },
    }
    sets: dict[str, Value] = {}
    made["summary"] = summarise(rows, primary=primary, headline_id="H_o", protocols=[primary], sets=sets)
    return made | changes


GOOD = {"erased": 0.0906, "kept": 0.9539, "synonym": 0.1003}
BAD = {"erased": 0.5, "kept": 0.5, "synonym": 0.5}


def put(results: Path, folder: str, *records) -> Path:
    """Records under results/<model>/<suite>/records."""
    place = results / folder / "records"
    place.mkdir(parents=True, exist_ok=True)
    for r in records:
        name = f"{r['method']['label']}.{r['request']['name'].replace(':', '_')}.seed{r['request']['seed']}.json"
        (place / name).write_text(json.dumps(r), encoding="utf-8")
    return results


def mace(results: Path) -> list[dict[str, str]]:
    """The cells of MACE's Table 1."""
    text = reproduce.texts("mace", ["csv"], results=results)["mace.csv"]
    return [r for r in csv.DictReader(io.StringIO(text)) if r["table"] == "table-1"]


def cell(rows, group: str, row: str, column: str) -> dict[str, str]:
    (only,) = (r for r in rows if (r["group"], r["row"], r["column"], r["heading"]) == (group, row, column, ""))
    return only


# --- measured -------------------------------------------------------------------------------------------------
def test_a_measurement_stands_beside_its_claim(tmp_path):
    rows = mace(put(tmp_path, "sd14/objects", record("mace", "airplane", GOOD), record("uce", "airplane", BAD)))
    good = cell(rows, "airplane", "MACE", "Acc_e")
    assert (good["claimed"], good["verdict"], good["measured_method"]) == ("9.06", "inside", "mace")
    assert float(good["measured"]) == pytest.approx(9.06)
    assert float(good["measured_lo"]) < 9.06 < float(good["measured_hi"])
    H = cell(rows, "airplane", "MACE", "H_o")
    assert (H["claimed"], H["recomputed"][:5]) == ("92.03", "92.04")
    assert float(H["measured"]) == pytest.approx(92.04, abs=0.02)
    assert cell(rows, "airplane", "UCE", "Acc_e")["verdict"] == "above"
    assert cell(rows, "airplane", "UCE", "Acc_s")["verdict"] == "below"
    for group, row in (("airplane", "ESD-u"), ("bird", "MACE"), ("airplane", "FMN")):
        assert (cell(rows, group, row, "Acc_e")["measured"], cell(rows, group, row, "Acc_e")["why"]) == (
            "",
            "not measured",
        )


def test_an_average_needs_every_request(tmp_path):
    put(tmp_path, "sd14/objects", *(record("mace", c, GOOD) for c in OBJECTS[:9]))
    partial = cell(mace(tmp_path), "average of ten classes", "MACE", "H_o")
    assert (partial["measured"], partial["why"]) == ("", "9 of 10 requests measured")
    put(tmp_path, "sd14/objects", record("mace", "truck", GOOD))
    whole = cell(mace(tmp_path), "average of ten classes", "MACE", "H_o")
    assert float(whole["measured"]) == pytest.approx(92.04, abs=0.02) and whole["verdict"] == "below"  # claimed: 92.61


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": "sd15", "hash": "ab" * 16, "family": "unet-epsilon"}},
        {"suite_version": 99},
        {"scale": 0.1},
        {"form": "embedded"},
        {"protocols": {"clip-vitb32/prob": {"version": 99, "evaluator": "x", "evaluator_hash": "cd" * 32}}},
    ],
    ids=lambda c: next(iter(c)),
)
def test_other_models_versions_scales_forms_and_protocols_do_not_measure(tmp_path, changes):
    rows = mace(put(tmp_path, "sd14/objects", record("mace", "airplane", GOOD, **changes)))
    assert not [r for r in rows if r["measured"]]
    assert cell(rows, "airplane", "MACE", "Acc_e")["claimed"] == "9.06"


def test_a_record_of_another_suite_is_refused(tmp_path):
    put(tmp_path, "sd14/objects", record("mace", "airplane", GOOD, suite="celebrity"))
    with pytest.raises(BadInput, match="expected records of the suite objects"):
        mace(tmp_path)


def test_a_board_without_records_measures_nothing(tmp_path):
    folder = tmp_path / "sd14" / "objects"
    folder.mkdir(parents=True)
    (folder / "board.json").write_text('{"rows": [{"method": "mace", "acc_erased": 0.1}]}')
    assert not [r for r in mace(tmp_path) if r["measured"] or r["embedded"]]


def test_failed_cells_say_why(tmp_path):
    failed = record("mace", "airplane", GOOD, status="failed", reason="out of memory")
    rows = mace(put(tmp_path, "sd14/objects", failed))
    assert cell(rows, "airplane", "MACE", "Acc_e")["why"] == "failed: out of memory"


def test_requests_outside_the_window_of_the_unedited_model_are_invalid(tmp_path):
    window = {"erased": [0.9, 1.0]}
    pair = (record("none", "airplane", BAD, gate=window), record("mace", "airplane", GOOD, gate=window))
    found = cell(mace(put(tmp_path, "sd14/objects", *pair)), "airplane", "MACE", "Acc_e")
    assert found["measured"] == "" and found["why"].startswith("invalid: erase:airplane")


# --- embedded -------------------------------------------------------------------------------------------------
@pytest.fixture
def embedded(tmp_path: Path) -> Path:
    """Results of the embedded model alone."""
    wanted = measured.requests("objects", "embedded", layouts.Requests())
    made = [record(m, q.removeprefix("erase:"), GOOD, form="embedded") for q in wanted for m in ("none", "esd")]
    return put(tmp_path, "testbed-9/objects", *made)


def test_embedded_results_have_their_own_heading_and_columns(embedded):
    rows = mace(embedded)
    own = [r for r in rows if r["heading"]]
    assert {r["heading"] for r in own} == {"Embedded model: testbed-9"}
    assert {r["row"] for r in own} == {"none", "esd"}
    assert all(r["embedded"] and not r["claimed"] and not r["measured"] for r in own)
    assert not [r for r in rows if not r["heading"] and (r["embedded"] or r["measured"])]
    H = next(r for r in own if (r["row"], r["column"]) == ("esd", "H_o"))
    assert float(H["embedded_lo"]) <= float(H["embedded"]) <= float(H["embedded_hi"])


def test_embedded_results_in_text(embedded):
    made = reproduce.texts("mace", ["md", "tex"], results=embedded)
    table, _, rest = made["mace.md"].partition(f"### Embedded model: testbed-9 ({CAVEAT})")
    assert "| esd |" not in table and "| esd |" in rest.partition("## Celebrity")[0]
    heads = next(line for line in rest.splitlines() if line.startswith("| method"))
    assert "claimed" not in heads and "Acc\\_e % ↓" in heads
    assert "Embedded model: testbed-9" in made["mace.tex"]


# --- layouts and ledger ---------------------------------------------------------------------------------------
def test_all_papers_have_a_layout():
    assert layouts.names() == sorted(PAPERS)


@pytest.mark.parametrize("name", PAPERS)
def test_layouts_name_what_exists(name, claims):
    """Suites, requests, methods and protocols of both forms; and every row is one of the ledger's, or a method's."""
    printed = {(c.source, c.table, c.row) for c in claims}
    for table in layouts.load(name).tables:
        for group in table.groups:
            for suite in group.suites or (group.suite,) if group.paper or group.embedded else ():
                for form, chosen in (("paper", group.paper), ("embedded", group.embedded)):
                    if chosen is not None:
                        assert measured.requests(suite, form, chosen)
        for line in table.rows:
            for label in line.methods:
                method, _, variant = label.partition("@")
                assert method in registry.method_names()
                assert not variant or variant in registry.method_class(method).variants, label
            known = any((p.source, p.table, line.claimed) in printed for p in table.claims)
            assert known or name in ("cpe", "fade_fg") or line.methods, (table.id, line.claimed)
        for column in table.columns:
            for measure in (column.measured, column.embedded):
                assert measure is None or measure.headline or protocol(measure.protocol)


@pytest.mark.parametrize("name", [n for n in PAPERS if n != "cpe"])
def test_no_claim_of_a_papers_own_table_is_lost(name, claims, tmp_path):
    """What the ledger holds of the tables that a layout shows is in its tables, cell for cell."""
    text = reproduce.texts(name, ["csv"], results=tmp_path)[f"{name}.csv"]
    shown = sorted(
        (r["claimed_source"], r["claimed_table"], r["row"], r["metric"], r["claimed"])
        for r in csv.DictReader(io.StringIO(text))
        if r["claimed"]
    )
    places = {(p.source, p.table) for t in layouts.load(name).tables for p in t.claims}
    held = sorted((c.source, c.table, c.row, c.metric, c.printed.text) for c in claims if (c.source, c.table) in places)
    shown, held = ([r for r in rows if r[3] != "time_h"] for rows in (shown, held))
    assert shown == held


def test_fade_adv_has_all_three_columns(tmp_path):
    text = reproduce.texts("fade_adv", ["md"], results=tmp_path)["fade_adv.md"]
    one, two = re.findall(r"^## Table.*?(?=^## )", text, flags=re.M | re.S)
    for table, row in (
        (one, "| FADE-adv | 0.0 | not measured | 90.1 |"),
        (two, "| w/o saliency | 0.0 | not measured |"),
    ):
        heads = next(line for line in table.splitlines() if line.startswith("| method"))
        assert all(f"H % ↑ {kind}" in heads for kind in ("claimed", "measured", "recomputed"))
        assert row in table
    assert "70.2† | not measured | 89.5" in two
    assert "18.7§" in one


def test_a_column_of_another_unit_is_refused(claims, tmp_path):
    rows = list(csv.DictReader(io.StringIO(ledgers.default_file().read_text(encoding="utf-8"))))
    for r in rows:
        r["unit"] = r["unit"].replace("mean percent", "fraction")
    path = tmp_path / "claims.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(BadInput, match="the column Acc_e is in percent"):
        reproduce.texts("mace", ["md"], results=tmp_path, ledger=path)


# --- verdict --------------------------------------------------------------------------------------------------
def claim(tmp_path: Path, value: str, unit: str = "percent", images: str = "") -> Claim:
    path = tmp_path / "one.csv"
    path.write_text(f"source,table,row,metric,value,unit,images\nP,T,m,acc_erased,{value},{unit},{images}\n")
    return ledgers.read(path)[0]


@pytest.mark.parametrize(
    ("value", "ci", "text", "images", "said"),
    [
        (0.10, (0.08, 0.12), "10.0", "", "inside"),
        (0.10, (0.08, 0.12), "12.0", "", "inside"),
        (0.10, (0.08, 0.12), "12.04", "", "below"),
        (0.10, (0.08, 0.12), "12.04", "500", "inside"),  # the claim is a sample too
        (0.10, (0.08, 0.12), "7.9", "", "above"),
        (0.10, (0.08, 0.12), "8", "", "inside"),
        (0.10, (0.08, 0.12), "30.0", "500", "below"),
        (0.10, None, "10.0", "", None),
        (0.10, (0.08, 0.12), "~10", "", None),
    ],
)
def test_the_window_is_two_sided(tmp_path, value, ci, text, images, said):
    assert verdict(value, ci, claim(tmp_path, text, images=images)) == said


# --- files ----------------------------------------------------------------------------------------------------
def test_the_same_bytes_wherever_they_are_made(embedded, tmp_path):
    copy = shutil.copytree(embedded, tmp_path / "elsewhere" / "copy")
    formats = ["md", "csv", "tex"]
    first, second = (reproduce.texts("mace", formats, results=at) for at in (embedded, copy))
    assert first == second
    assert str(tmp_path) not in "".join(first.values())


def test_committed_tables_come_back_byte_for_byte(tmp_path):
    """With the generated tables deleted, the command brings every one back from what is committed."""
    kept = {p.name: p.read_bytes() for p in (paths.checkout() / "results" / "tables").iterdir()}
    assert set(kept) == {f"{p}.{f}" for p in PAPERS for f in ("md", "csv", "tex")}
    done = CliRunner().invoke(cli.app, ["tables", "--out", str(tmp_path / "tables")])
    assert done.exit_code == 0, done.output
    assert {p.name: p.read_bytes() for p in (tmp_path / "tables").iterdir()} == kept


@pytest.mark.parametrize("name", PAPERS)
def test_latex_is_well_formed(name, tmp_path):
    """Environments are closed, every row has the columns that its tabular declares, and nothing is left unescaped."""
    text = reproduce.texts(name, ["tex"], results=tmp_path)[f"{name}.tex"]
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert body.isascii() and body.count(r"\begin{table}") == body.count(r"\end{table}") > 0
    for columns, inner in re.findall(r"\\begin\{tabular\}\{(l?r*)\}(.*?)\\end\{tabular\}", body, flags=re.S):
        for row in (line for line in inner.splitlines() if line.endswith(r"\\") and "multicolumn" not in line):
            assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1, row
        assert inner.count(r"\toprule") == inner.count(r"\bottomrule") == 1
    assert not re.search(r"(?<![\\$^])_(?!0)|(?<!\\)%|(?<!\\)#", body), "an unescaped character"


@pytest.mark.parametrize("name", PAPERS)
def test_markdown_rows_have_the_columns_of_their_head(name, tmp_path):
    lines = reproduce.texts(name, ["md"], results=tmp_path)[f"{name}.md"].splitlines()
    width = 0
    for line in (text for text in lines if text.startswith("|")):
        width = line.count("|") if line.startswith("| method") else width
        assert line.count("|") == width, line


def test_the_command(tmp_path):
    run = CliRunner()
    shown = run.invoke(cli.app, ["tables", "--paper", "fade_adv", "--results", str(tmp_path)])
    assert shown.exit_code == 0 and shown.stdout.startswith("# FADE (adversarial)")
    written = run.invoke(cli.app, ["tables", "--paper", "cpe", "--format", "tex", "--out", str(tmp_path / "out")])
    assert written.exit_code == 0 and [p.name for p in (tmp_path / "out").iterdir()] == ["cpe.tex"]
    unknown = run.invoke(cli.app, ["tables", "--paper", "fade"])
    assert unknown.exit_code == 2 and "unknown paper 'fade'" in unknown.stderr
    nowhere = run.invoke(cli.app, ["tables", "--results", str(tmp_path / "nowhere")])
    assert nowhere.exit_code == 2 and "expected one with <model>/<suite>/records" in nowhere.stderr
