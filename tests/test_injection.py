"""Prompts, names and notes of strangers come out as text and nothing else, whatever is written of them."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmark import baseline, cite, cli, compare, evidence, inert, record, regress, regress_report
from benchmark.claims import check
from benchmark.claims.ledger import Claim
from benchmark.claims.numbers import parse
from benchmark.errors import BadInput
from benchmark.metrics.summary import summarise, with_unedited
from benchmark.page import cells, site
from benchmark.progress import Progress
from benchmark.tables import board, grids, layouts, overall, paper_formats, papers

EVIL = {
    "html": "<script>window.pwned=1</script><img src=x onerror='window.pwned=1'>",
    "attribute": "\"' onmouseover=window.pwned=1 x=\"'><svg onload=window.pwned=1>",
    "script": "</script><script>window.pwned=1</script>';window.pwned=1//\u2028window.pwned=1",
    "template": "{{7*7}}{% raw %}${7*7}#{7*7}%s%n{0}{name.__class__}",
    "latex": r"\input{/etc/passwd}\write18{id} $x$ %& # _ {} ~ ^ ^^M \\ [2cm] \end{tabular}",
    "row": "[3cm] *",
    "formula": '=HYPERLINK("http://evil.test/","x")',
    "plus": "+1+cmd|' /C calc'!A0",
    "minus": "-2+3",
    "at": "@SUM(1)",
    "tab": "\t=1+1",
    "wide": "＝1+1",
    "ansi": "\x1b[2J\x1b]0;title\x07\x1b[31mred\x1b[0m\x9b31m\x08\x7f",
    "right_to_left": "photo\u202egnp.exe \u2066hidden\u2069 \u200fabc",
    "arabic": "صورة قطة and תמונה של חתול",
    "lines": "a cat\n# heading\r\n- item\n\n| a | b |\n|---|---|\n\x0bx\x0cy\x85z",
    "markdown": "[x](javascript:alert(1)) ![y](http://evil.test/z.png) **b** `c` ~~d~~ <b> https://e.test www.a.test",
    "heading": "# big",
    "listing": "1. one",
    "emoji": "👩‍👩‍👧‍👦💥🏳️‍🌈",
    "long": "a very long prompt " * 550,
    "xml": "]]></testsuite><!DOCTYPE x><!ENTITY y 'z'>&y;\ufffe\uffff\x00",
    "shell": '\'; touch pwned; echo $(id) `id` \\ "x" !!\n',
    "path": "../../../etc/passwd",
}
TOP1, CLIP = "testbed/top1", "testbed-clip/score"
JUDGE = {"version": 1, "evaluator": "testbed-a", "evaluator_hash": "e" * 64}
Record = dict[str, Any]


def evil(*names: str) -> Any:
    return pytest.mark.parametrize("text", [EVIL[n] for n in names or EVIL], ids=list(names or EVIL))


def cell(label: str, request: str, text: str, *, role: str = "erasure", status: str = "ok") -> Record:
    """A record in which every text that a stranger can choose is `text`."""
    roles = ["erased", "erased", "kept", "kept", "synonym"]
    hits = [float(role == "baseline"), 0.0, 1.0, 1.0, 0.0]
    rows = {
        **{"role": roles, "concept": [text] * 5, "prompt": [f"{text}{i}" for i in range(5)], "replicate": [0] * 5},
        **{"seed": list(range(5)), "image": ["0" * 64] * 5, "valid": [True] * 5},
        "values": {TOP1: hits, CLIP: [20 + h for h in hits]},
    }
    ok = status == "ok"
    made: Record = {
        **{"schema": record.SCHEMA, "suite": "objects", "suite_version": 1, "form": "embedded", "scale": 1.0},
        "model": {"name": "testbed", "hash": "ab" * 16, "family": "unet-epsilon"},
        "method": {
            **{"label": label, "name": text, "variant": text, "version": 1, "role": role, "paper": text},
            **{"fields": {"lr": 0.5, text: text}, "passed": {"note": text}, "preset": text},
        },
        "request": {
            "name": request,
            "erase": [{"name": text, "kind": text, "anchor": text, "synonyms": [text], "adjacent": [text]}],
            **{"keep": [text], "adjacent": [text], "general": [text], "strategy": "joint", "seed": 0},
        },
        **{"status": status, "reason": None if ok else text, "sampler": {"steps": 2, "note": text}, "batch": 4},
        **{"passed": {"x": text}, "primary": TOP1, "headline": "H_o", "protocols": {TOP1: JUDGE, CLIP: JUDGE}},
        "datasets": [text],
        "edit": {"key": "k" * 32, "hash": "h", "notes": {"said": text}, "counts": {}} if ok else None,
        "rows": rows if ok else {},
        "summary": summarise(rows, primary=TOP1, headline_id="H_o", protocols=[TOP1, CLIP]) if ok else {},
        "provenance": {
            **{"commit": text, "dirty": False, "packages": {"torch": text}, "python": text, "machine": text},
            **{"device_class": text, "threads": 1, "dtype": text, "precision": {}, "determinism": text},
        },
    }
    return {**made, "hashes": record.hashes(made["rows"])} if ok else made


def records(text: str) -> list[Record]:
    base = cell("none", text, text, role="baseline")
    made = [base, cell(text, text, text), cell("other", text, text), cell("failed", text, text, status="failed")]
    made[1]["rows"]["values"][TOP1][0] = 1.0
    for r in made[:3]:
        said = summarise(r["rows"], primary=TOP1, headline_id="H_o", protocols=[TOP1, CLIP])
        r["summary"] = with_unedited(said, base["summary"])
    return [record.parse(r).model_dump(mode="json", by_alias=True) for r in made]


# --- what inert means, format by format -------------------------------------------------------------------------------
def on_terminal(text: str) -> None:
    for line in text.split("\n"):
        strange = [c for c in line if not c.isprintable() and c not in "\u200c\u200d"]
        assert not strange, [hex(ord(c)) for c in strange]


def in_csv(text: str) -> list[list[str]]:
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert len({len(row) for row in rows}) == 1, "no cell breaks out of its place"
    for value in (v for row in rows for v in row):
        number = re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", value)
        assert number or not value.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")), value
        on_terminal(value)
    return rows


PLAIN = {"h1", "h2", "h3", "p", "ul", "ol", "li", "strong", "table", "thead", "tbody", "tr", "th", "td", "code", "hr"}


def in_markdown(text: str) -> str:
    """Rendered as GitHub does, it holds no element but those that we write; returns what a reader sees."""
    it = pytest.importorskip("markdown_it", reason="needs markdown-it-py").MarkdownIt("commonmark", {"html": True})
    shown = it.enable(["table", "strikethrough"]).render(text)
    found = Elements(shown)
    assert {tag for tag, _ in found.found} <= PLAIN, shown[:2000]
    assert not [a for _, attributes in found.found for a in attributes if a != "style"]
    for address in re.findall(r"\S*(?:://|www\.)\S*", text):
        assert re.search(r":\\?/|www\\\.", address) and "://" not in address and "www." not in address, address
    on_terminal(text)
    return found.text


COMMANDS = {
    *("textbackslash", "textasciitilde", "textasciicircum", "uparrow", "downarrow", "times", "cdot", "geq", "leq"),
    *("approx", "dagger", "ddagger", "S", "eta", "ldots", "begin", "end", "toprule", "midrule", "bottomrule", "textbf"),
    *("underline", "multicolumn", "textit", "scriptsize", "cmidrule", "caption", "centering", "footnotesize", "par"),
    *("raggedright", "usepackage", "medskip", "smallskip"),
}


def in_latex(text: str) -> None:
    for line in text.splitlines():
        code = re.split(r"(?<!\\)%", line)[0]  # a comment ends with its line, and no line is broken
        assert set(re.findall(r"\\([A-Za-z]+)", code)) <= COMMANDS, line[:300]
        assert "^^" not in code and not re.match(r"\s*[\[*]", code), line[:300]
        bare = re.sub(r"\\[{}\\]", "", code)
        assert bare.count("{") == bare.count("}"), line[:300]
    begun, ended = (re.findall(rf"^\\{what}{{(\w+)}}", text, re.M) for what in ("begin", "end"))
    assert sorted(begun) == sorted(ended)
    on_terminal(text)


class Elements(HTMLParser):
    """All elements of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


# --- boards and leaderboards ------------------------------------------------------------------------------------------
@evil()
def test_boards(text: str):
    made = board.build(records(text))
    on_terminal(board.render(made, "term"))
    in_latex(board.render(made, "tex", intervals=True))
    rows = in_csv(board.render(made, "csv"))
    assert any(inert.printable(text)[:50] in value for row in rows for value in row), "the text is there, as text"
    in_markdown(board.render(made, "md"))
    shown = board.render(made, "json")
    assert json.loads(shown) == json.loads(json.dumps(made)), "programs get every character"
    on_terminal(shown)


@evil()
def test_leaderboards(text: str):
    second = [{**r, "suite": "smoke"} for r in records(text)]
    made = overall.build({"objects": records(text), "smoke": second})
    on_terminal(overall.render(made, "term"))
    on_terminal(overall.render(made, "json"))
    in_latex(overall.render(made, "tex", intervals=True))
    in_csv(overall.render(made, "csv"))
    in_markdown(overall.render(made, "md"))


def test_the_colours_of_a_board_are_its_own():
    shown = board.render(board.build(records(EVIL["ansi"])), "term", colour=True)
    assert set(re.findall(r"\x1b\[[\d;]*(.)", shown)) == {"m"} and "\x1b]" not in shown and "\x9b" not in shown


# --- papers' tables and claims ----------------------------------------------------------------------------------------
def claim(text: str) -> Claim:
    values = dict.fromkeys(("source", "table", "row", "model", "suite", "concept", "protocol", "images", "note"), text)
    return Claim(line=2, metric="acc_erased", unit="percent", status=text, printed=parse("12.5"), **values)


@evil()
def test_papers_tables(text: str):
    layout = layouts.Layout(
        name="evil",
        title=text,
        notes=(text,),
        tables=(
            {
                **{"id": text, "title": text, "model": text, "notes": (text,)},
                "claims": ({"source": text, "table": text},),
                "columns": ({"title": text, "metric": "acc_erased", "unit": "percent", "better": "down"},),
                "groups": ({"title": text, "suite": text, "concept": text},),
                "rows": ({"claimed": text, "model": text},),
            },
        ),
    )
    made = papers.build(layout, [claim(text)], None)
    in_markdown(paper_formats.as_md(made))
    in_csv(paper_formats.as_csv(made))
    in_latex(paper_formats.as_tex(made).replace(r"\begin{table}", "").replace(r"\end{table}", ""))


@evil()
def test_findings_on_claims(text: str, capsys: pytest.CaptureFixture[str]):
    second = Claim(**{**vars(claim(text)), "line": 3, "printed": parse("99")})
    cli._say(check.check([claim(text), second]).lines())
    cli._say(check.check([claim(text), second]).as_json())
    on_terminal(capsys.readouterr().out)


# --- the gate ---------------------------------------------------------------------------------------------------------
@evil()
def test_reports_of_the_gate(text: str, capsys: pytest.CaptureFixture[str]):
    before, after = records(text)[:3], records(text)[:3]
    for r in after:
        r["provenance"]["packages"] = {"torch": f"{text} 2"}
        r["rows"]["prompt"][0] += "!"
    report = regress.regress(before, after, reason=text)
    assert report.findings and report.changes
    in_markdown(regress_report.markdown(report))
    suite = ElementTree.fromstring(regress_report.junit(report))
    assert {e.tag for e in suite.iter()} <= {"testsuites", "testsuite", "testcase", "failure", "system-out"}
    cli._say(regress_report.lines(report))
    cli._say(regress_report.as_json(report))
    a, b = (evidence.Evidence(label=text, records=tuple(rs)) for rs in (before, after))
    cli._say(compare.lines(compare.compare(a, b)))
    on_terminal(capsys.readouterr().out)


@evil()
def test_baselines_give_back_what_they_were_given(text: str, tmp_path: Path):
    file = baseline.write(records(text)[:3], text + "why", tmp_path / "b.json")
    assert baseline.read(file).records[1]["request"]["name"] == text
    assert all(json.dumps(line) for line in file.read_text(encoding="utf-8").splitlines())


# --- citations --------------------------------------------------------------------------------------------------------
@evil()
def test_citations(text: str, capsys: pytest.CaptureFixture[str]):
    entry = cite.Reference(type="misc", author=text, title=text, year=2024, cites=("model/testbed",))
    found = cite.cite(records(text), {"key": entry})
    assert found.keys == ("key",) and found.warnings
    inner = re.fullmatch(r"@misc\{key,\n((?:  \w+ = \{.*\},?\n)*)\}\n", found.bibtex)
    assert inner, found.bibtex[:500]
    for line in inner[1].splitlines():
        value = re.sub(r"\\[{}]", "", line.partition(" = ")[2].rstrip(","))
        depth = 0
        for i, character in enumerate(value):
            depth += {"{": 1, "}": -1}.get(character, 0)
            assert depth > 0 or i == len(value) - 1, "the field ends where it should"
        assert set(re.findall(r"\\([A-Za-z]+)", value)) <= {"textasciitilde", "l"}
    for warning in found.warnings:
        cli._tell(warning)
    on_terminal(capsys.readouterr().err)


# --- terminals --------------------------------------------------------------------------------------------------------
@evil()
def test_messages(text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    for debug in (False, True):
        with pytest.raises(BaseException) as ended:
            try:
                raise BadInput(f"unknown suite {text}")
            except BadInput as error:
                cli._end(error, debug=debug)
        assert getattr(ended.value, "exit_code", None) == 2
    cli._say([text])
    cli._say({text: [text]})
    out = capsys.readouterr()
    on_terminal(out.out)
    on_terminal(out.err)
    stream = io.StringIO()
    with Progress(stream=stream) as progress, progress.stage(text, 2) as stage:
        stage.advance(2)
        progress.say(text)
    on_terminal(stream.getvalue())


# --- shells -----------------------------------------------------------------------------------------------------------
@evil()
def test_the_command_that_a_page_shows_is_one_line_of_words(text: str):
    r = records(text)[1]
    command = cells.command(r)
    on_terminal(command)
    assert "\n" not in command
    bash = shutil.which("bash")
    if bash is None or "\x00" in text:
        return
    given = subprocess.run([bash, "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True, cwd="/")
    words = given.stdout.decode("utf-8").split("\0")[:-1]
    assert words[:3] == ["erasure-bench", "run", "objects"] and f"none,{text}" in words


# --- grids ------------------------------------------------------------------------------------------------------------
def test_grids_of_any_texts_are_drawn_in_no_time():
    black = np.zeros((16, 16, 3), np.uint8)
    started = time.process_time()
    for text in EVIL.values():
        drawn = grids.grid(records(text)[:3], lambda r, i: black)
        assert drawn.width < 4000 and drawn.height < 4000
        assert re.fullmatch(r"[\w-][\w.-]*", grids.file_name(text))
    assert time.process_time() - started < 20


# --- the page ---------------------------------------------------------------------------------------------------------
def make_site(texts: Sequence[str], folder: Path) -> Path:
    for n, text in enumerate(texts):
        for i, r in enumerate(records(text)):
            r["method"]["label"] = f"{text}{n}{i}" if i else "none"
            r["request"]["name"] = f"{text}{n}"
            record.write(folder / "run" / "records" / f"r{n:02}_{i}.json", record.parse(r))
    site.write([folder / "run"], folder / "site", say=lambda _: None)
    return folder / "site"


@pytest.fixture(scope="module")
def evil_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_site(list(EVIL.values()), tmp_path_factory.mktemp("evil"))


def test_pages_hold_the_texts_as_texts(evil_site: Path):
    pages = sorted(evil_site.glob("*.html"))
    assert len(pages) >= 3
    for page in pages:
        found = Elements(page.read_text(encoding="utf-8"))
        for tag, attributes in found.found:
            assert tag not in ("iframe", "object", "embed", "form") or tag == "form", tag
            assert not [a for a in attributes if a.startswith("on")], attributes
            assert tag != "script" or re.match(r"(assets|data)/[\w~.@/-]+\.js$", attributes["src"] or "")
            for name in ("href", "src"):
                assert not re.match(r"\s*(javascript|https?|file|//)", attributes.get(name) or "", re.I), attributes
            assert tag != "img"
    whole = "".join(Elements(page.read_text(encoding="utf-8")).text for page in pages)
    assert EVIL["html"] in whole and EVIL["attribute"] in whole


def test_data_of_pages_is_ascii_without_markup(evil_site: Path):
    scripts = sorted(evil_site.rglob("data/**/*.js"))
    assert len(scripts) > len(EVIL)
    for script in scripts:
        content = script.read_bytes()
        assert content.isascii() and not set(content) & set(b"<>&") and content.count(b"\n") == 1
        assert script.resolve().is_relative_to(evil_site.resolve())


@pytest.mark.browser
def test_no_script_of_a_stranger_runs(evil_site: Path, chromium: Any):
    """All pages, dialogs of cells and of an image: nothing sets what the texts try to set, and nobody is asked."""
    page = chromium.new_page()
    faults: list[str] = []
    page.on("dialog", lambda d: faults.append(f"dialog {d.message}") or d.dismiss())
    page.on("pageerror", lambda e: faults.append(str(e)))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else faults.append(r.url))
    name = "objects-testbed-v1"
    page.goto(f"file://{evil_site}/index.html")
    page.goto(f"file://{evil_site}/{name}.html")
    requests = page.locator("#request option").evaluate_all("options => options.map(o => o.value)")
    assert len(requests) == len(EVIL) + 1
    for request in requests:
        page.select_option("#request", request)
        buttons = page.locator(".request:not([hidden]) .open")
        for i in range(buttons.count())[:2]:  # the method that bears the text, and what stands beside it
            buttons.nth(i).evaluate("e => e.click()")
            page.locator("dialog[open]").wait_for()
            page.keyboard.press("Escape")
    page.goto(f"file://{evil_site}/{name}.images.html")
    page.locator(".gridrow").first.wait_for()
    page.select_option("#request", "")
    page.wait_for_function(f"document.getElementById('count').textContent.startsWith('{5 * len(EVIL)} of')")
    for top in range(0, 5 * len(EVIL) * 150, 900):
        page.evaluate(f"document.getElementById('grid').scrollTop = {top}")
        page.wait_for_timeout(10)
    page.evaluate("document.getElementById('grid').scrollTop = 0")
    page.locator(".gridrow .tile").first.evaluate("e => e.click()")  # ten thousand letters as a heading cover it
    page.locator("dialog[open]").wait_for()
    assert page.evaluate("window.pwned") is None and not faults, faults
    page.close()
