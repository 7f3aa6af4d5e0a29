"""Cite: exactly what a run used, nothing invented, and what is lacking is told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmark import cite, cli, data, models, record, registry
from benchmark.metrics.balance import HEADLINES
from benchmark.metrics.evaluators import EVALUATORS
from benchmark.metrics.summary import summarise

OLD = Path(__file__).parent / "data" / "record-1.json"
Record = dict[str, Any]


def one(method: str = "esd", paper: str = "arXiv:2303.07345", **changes: Any) -> Record:
    r = record.read(OLD).model_dump(mode="json", by_alias=True)
    role = "baseline" if method == "none" else "erasure"
    r["method"] |= {"label": method, "name": method, "paper": paper, "role": role}
    return r | {"datasets": ["testbed"], **changes}


def protocols(*pairs: tuple[str, str]) -> Record:
    return {name: {"version": 1, "evaluator": judge, "evaluator_hash": ""} for name, judge in pairs}


def test_a_run_on_the_embedded_model_cites_methods_metrics_and_sampler_alone():
    found = cite.cite([one(), one("uce", "arXiv:2308.14761"), one("none", "")])
    assert set(found.keys) == {
        "gandikota2023esd",
        "gandikota2024uce",
        "song2021ddim",
        "ho2022cfg",
        "lu2024mace",  # whose headline it is
        "hessel2021clipscore",
    }
    assert not found.warnings


def test_judges_data_sets_and_the_model_bring_their_own():
    used = one(
        protocols=protocols(("clean-fid", "inception"), ("identity/top1-first-face", "identity")),
        datasets=["cifar10", "coco30k"],
        model={"name": "sd14", "hash": "", "family": "unet-epsilon"},
        headline=None,
    )
    assert set(cite.cite([used]).keys) == {
        "rombach2022ldm",
        "song2021ddim",
        "ho2022cfg",
        "gandikota2023esd",
        "heusel2017fid",
        "parmar2022cleanfid",
        "szegedy2016inception",
        "zhang2016mtcnn",
        "schroff2015facenet",
        "cao2018vggface2",
        "krizhevsky2009cifar",
        "lin2014coco",
    }


def test_nothing_of_a_cell_that_did_not_run():
    failed = one("mace", "arXiv:2403.06135", status="failed", reason="out of memory", headline=None)
    assert cite.cite([failed]) == cite.Cited("", (), ())
    assert "lu2024mace" not in cite.cite([one(headline=None), failed]).keys


def test_without_guidance_nothing_of_it():
    r = one()
    assert "ho2022cfg" not in cite.cite([one(sampler={**r["sampler"], "guidance": 1.0})]).keys


def test_what_has_no_entry_or_lacks_facts_is_told_and_left_out():
    r = one("mine", "doi:10.1/x", protocols=protocols(("nudenet-3.4.2@0.6/images", "nudenet-3.4.2")))
    known = dict(cite.references())
    known["nudenet"] = known["nudenet"].model_copy(update={"author": None, "year": None})
    found = cite.cite([r], known)
    assert "nudenet lacks author, year: left out" in found.warnings
    assert "no entry for doi:10.1/x: left out" in found.warnings and len(found.warnings) == 2
    assert "nudenet" not in found.bibtex
    assert "no entry for method/mine: left out" in cite.cite([one("mine", "")]).warnings
    assert "no entry for dataset/mine: left out" in cite.cite([one(datasets=["mine"])]).warnings


def test_an_older_record_takes_its_data_sets_from_the_suite():
    assert record.read(OLD).datasets == ()
    used = set(cite.uses(one(datasets=[], form="paper")))
    assert "dataset/cifar10" in used
    assert not [u for u in cite.uses(one(datasets=[], suite="gone")) if u.startswith("dataset/")]


# --- the entries ----------------------------------------------------------------------------------------------
def test_bibtex_is_well_formed_ascii():
    text = "\n".join(cite.bibtex(key, entry) for key, entry in cite.references().items() if not entry.lacks)
    assert text.isascii(), sorted({c for c in text if ord(c) > 127})
    assert text.count("{") == text.count("}") and "None" not in text
    for entry in text.split("\n@"):
        lines = entry.strip().splitlines()
        assert re.fullmatch(r"@?(inproceedings|article|techreport|misc)\{\w+,", lines[0]) and lines[-1] == "}"
        assert all(re.fullmatch(r"  [a-z]+ = \{.+\},?", line) for line in lines[1:-1]), entry
        assert all(line.endswith(",") for line in lines[1:-2]) and not lines[-2].endswith(",")
    assert r"Bj{\"o}rn Ommer" in text and r"Joanna Materzy{\'n}ska" in text and "  archiveprefix = {arXiv}" in text


def test_characters_that_tex_reads_are_escaped():
    entry = cite.Reference(
        type="misc", author="A & B", title="100% of_it", year=2020, url="https://a.org/b_c", cites=("x",)
    )
    text = cite.bibtex("k", entry)
    assert r"A \& B" in text and r"100\% of\_it" in text and "https://a.org/b_c" in text


def test_every_method_of_a_paper_and_every_judge_and_data_set_has_an_entry():
    """So that a new one is not forgotten; what is ours, or has no paper, is named here."""
    known = cite.references().values()
    papers = {registry.method_class(name).paper for name in registry.method_names()} - {""}
    wanted = papers | {f"evaluator/{name}" for name in EVALUATORS if not name.startswith("testbed")}
    wanted |= {f"dataset/{name}" for name in data.names() if name != "testbed"}
    wanted |= {f"model/{name}" for name in models.MODELS if name.startswith("sd")}
    without = sorted(use for use in wanted if not any(cite._brings(entry, use) for entry in known))
    assert without == []


def test_what_the_entries_name_exists():
    """A name with a slip of the pen would cite nothing, in silence."""
    named = {name for entry in cite.references().values() for name in entry.cites if "*" not in name}
    here = {f"dataset/{n}" for n in data.names()} | {f"model/{n}" for n in models.MODELS}
    here |= {f"evaluator/{n}" for n in EVALUATORS} | {f"headline/{n}" for n in HEADLINES}
    here |= {registry.method_class(n).paper for n in registry.method_names()} | {"sampler/ddim", "sampler/guidance"}
    assert sorted(n for n in named - here if not n.startswith("protocol/")) == []


def test_the_command(tmp_path: Path):
    r = one()
    r["protocols"] |= protocols(("nudenet-3.4.2@0.6/images", "nudenet-3.4.2"))
    r["summary"] = summarise(r["rows"], primary=r["primary"], headline_id=r["headline"], protocols=list(r["protocols"]))
    record.write(tmp_path / "records" / "esd.erase_horse.seed0.json", record.parse(r))
    shown = CliRunner().invoke(cli.app, ["cite", str(tmp_path)])
    assert shown.exit_code == 0 and shown.stdout.startswith("@inproceedings{song2021ddim,")
    assert "@misc{nudenet,\n  author = {Praneeth Bedapudi}," in shown.stdout and "nudenet" not in shown.stderr
    assert CliRunner().invoke(cli.app, ["cite", str(tmp_path / "nowhere")]).exit_code == 2


@pytest.mark.parametrize("key", list(cite.references()))
def test_entries_hold_no_slips(key: str):
    entry = cite.references()[key]
    assert entry.year is None or 1990 <= entry.year <= 2026
    assert entry.eprint is None or re.fullmatch(r"\d{4}\.\d{4,5}", entry.eprint)
    if entry.author:
        assert all(len(name.split()) >= 2 for name in entry.author.split(" and ")), "first and last names"
