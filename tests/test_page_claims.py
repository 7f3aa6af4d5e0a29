"""Claims beside measurements on the page: the numbers of the committed tables, escaped, linked, embedded ones apart."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from benchmark.claims.ledger import read
from benchmark.page import claims, runs, site
from benchmark.tables import committed as kept
from benchmark.tables import layouts, paper_formats, papers
from benchmark.tables.layouts import Column, Group
from benchmark.tables.measured import Measured
from benchmark.tables.papers import Block, Cell

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "testbed-3"
NASTY = '</td><script>alert(1)</script>"&'


@pytest.fixture(scope="module")
def committed() -> list[runs.Run]:
    return runs.read_runs([RESULTS / name for name in ("objects", "celebrity")])


@pytest.fixture(scope="module")
def views(committed: list[runs.Run]) -> dict[str, claims.Json]:
    return {view["name"]: view for view in claims.views(committed)}


def cells(view: claims.Json, kind: str, *, embedded: bool) -> list[claims.Json]:
    sections = [s for t in view["tables"] for s in (t["embedded"] if embedded else [t])]
    return [c for s in sections for b in s["blocks"] for r in b["rows"] for c in r["cells"] if c["kind"] == kind]


def page(view: claims.Json) -> str:
    values = {"view": view, "runs": [], "here": view["page"], "embedded_note": "embedded model: small"}
    return site.templates().get_template("claims.html").render(values)


# --- numbers ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def every() -> dict[str, claims.Json]:
    """Of all suites whose records the papers' tables are made from."""
    folders = [folder for folder in kept.suites(RESULTS) if folder.name not in kept.APART]
    return {view["name"]: view for view in claims.views(runs.read_runs(folders))}


@pytest.mark.parametrize("name", ["mace", "ant"])
def test_numbers_are_those_of_the_committed_tables(every: dict[str, claims.Json], name: str):
    """The same cells in the same order as `erasure-bench tables` writes them from the same records."""
    built = papers.build(layouts.load(name), read(None), ROOT / "results")
    claimed = [c for t in built.tables for b in t.blocks for _, row in b.rows for c in row if c.column.claimed]
    assert [c["text"] for c in cells(every[name], "claimed", embedded=False)] == [
        paper_formats.spelled(c, "claimed") for c in claimed
    ]
    measured = [c for t in built.tables for s in t.embedded for b in s.blocks for _, row in b.rows for c in row]
    assert len(measured) > 10
    assert [c["text"] for c in cells(every[name], "measured", embedded=True)] == [
        paper_formats.of_measured(c.measured, c.column) for c in measured
    ]


def test_embedded_numbers_never_stand_beside_claims(views: dict[str, claims.Json]):
    for view in views.values():
        assert view["embedded"] and view["counts"]["measured"] == 0
        assert not cells(view, "measured", embedded=False), "no column for what no run of this page measured"
        assert not cells(view, "claimed", embedded=True)
        assert "No run of this page measured any of it" in page(view)


def test_claims_that_do_not_follow_are_marked_and_explained(views: dict[str, claims.Json]):
    marked = [c for c in cells(views["mace"], "claimed", embedded=False) if c["title"]]
    assert {"6.11†"} <= {c["text"] for c in marked}
    assert all("printed" in c["title"] or "count" in c["title"] for c in marked)
    assert views["mace"]["counts"]["marked"] == len(marked)


def measured_block() -> Block:
    column = Column(title="Acc_e", metric="acc_erased", unit="percent", better="down")
    group = Group(title=NASTY, suite="objects")
    found = Cell(column, measured=Measured(0.124, (0.11, 0.139), 200, "uce"), verdict="above")
    refused = Cell(column, measured=Measured(method="esd", why="1 of 10 requests measured"))
    return Block(group, (column,), ((NASTY, (found,)), ("ESD", (refused,))))


def test_what_was_measured_has_a_column_with_verdict_and_reason():
    block = measured_block()
    shown = claims._block(block, claims._kinds(block), claims._claimed)
    assert shown["columns"] == [{"name": "Acc_e % ↓", "kinds": ["claimed", "measured"]}]
    found, refused = (row["cells"][1] for row in shown["rows"])
    assert (found["text"], found["verdict"], found["title"]) == ("12.4 (11.0–13.9)", "above", "uce, 200 images")
    assert refused["none"] and refused["title"] == "1 of 10 requests measured"


def test_whatever_a_ledger_says_is_text(views: dict[str, claims.Json]):
    block = claims._block(measured_block(), claims._kinds(measured_block()), claims._claimed)
    view = views["mace"] | {
        "title": NASTY,
        "notes": [NASTY],
        "tables": [views["mace"]["tables"][0] | {"blocks": [block]}],
    }
    text = page(view)
    assert "<script>alert" not in text and NASTY in unescape(text)
    assert text.count("<script") == 1, "the page's own"


# --- which papers, which runs -----------------------------------------------------------------------------------------
def test_papers_are_those_of_the_runs_suites(committed: list[runs.Run], views: dict[str, claims.Json]):
    assert {"mace", "ant"} <= set(views) and "fade_adv" not in views
    assert claims.views(runs.read_runs([RESULTS / "smoke"])) == []
    assert [r["id"] for r in views["mace"]["runs"]] == [run.id for run in committed]


def test_of_two_runs_of_one_suite_the_first_counts(committed: list[runs.Run]):
    objects = committed[0]
    halved = [{**r, "scale": 0.5} for r in objects.records]
    other = replace(objects, id="other", records=halved)
    (first,) = (v for v in claims.views([objects, other]) if v["name"] == "mace")
    (second,) = (v for v in claims.views([other, objects]) if v["name"] == "mace")
    assert cells(first, "measured", embedded=True) and not cells(second, "measured", embedded=True)


def test_a_board_without_records_measures_nothing(committed: list[runs.Run]):
    (view,) = (v for v in claims.views([replace(committed[0], records=(), files=())]) if v["name"] == "mace")
    assert not cells(view, "measured", embedded=True)


# --- the site ---------------------------------------------------------------------------------------------------------
def test_boards_lead_to_claims_and_back(tmp_path: Path):
    said: list[str] = []
    made = site.write([RESULTS / "objects"], tmp_path / "page", say=said.append)
    names = sorted(p.name for p in (tmp_path / "page").glob("claims.*.html"))
    assert names and made.pages == 3 + len(names)
    for start in ("index.html", "objects-testbed-v2.html"):
        links = re.findall(r'href="([^"#]+)', (tmp_path / "page" / start).read_text("utf-8"))
        assert set(names) <= set(links)
    for name in names:
        text = (tmp_path / "page" / name).read_text("utf-8")
        links = {link for link in re.findall(r'href="([^"#]+)', text) if not link.startswith("data:")}
        assert "objects-testbed-v2.html" in links
        assert all((tmp_path / "page" / link).is_file() for link in links)
        ids = re.findall(r' id="([^"]+)"', text)
        assert len(ids) == len(set(ids)) and set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)
        regions = re.findall(r'role="region" aria-label="([^"]+)"', text)
        assert len(regions) == len(set(regions)), "each table has a name of its own"
