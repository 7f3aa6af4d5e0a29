"""The documentation is true: links lead somewhere, commands parse, examples print what is shown, pages build."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

from benchmark import cli, suite

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *(p for p in DOCS.rglob("*.md") if "_build" not in p.parts),
        *ROOT.glob("*.md"),
        *(ROOT / "results").glob("**/README.md"),
    ]
)
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w{}-]*)\n(?P<text>.*?)^ *```$", re.M | re.S)


def module(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made


sys.modules["measured"] = measured = module("measured")  # as `generated` finds its neighbour
generated, examples, walk = module("generated"), module("run_examples"), module("walk")


def page(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    return [m["text"] for m in FENCE.finditer(page(path)) if m["language"] == language]


def prose(path: Path) -> str:
    """The page without its blocks."""
    return FENCE.sub("", page(path))


def each_page(function: Any) -> Any:
    return pytest.mark.parametrize("path", PAGES, ids=named)(function)


# --- links and names --------------------------------------------------------------------------------------------------
def anchors(path: Path) -> set[str]:
    """Headings as GitHub and MyST call them."""
    heads = re.findall(r"^#+ (.+)$", page(path), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@each_page
def test_links_lead_somewhere(path: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if not re.match(r"[a-z]+:", target):
            name, _, anchor = target.partition("#")
            there = (path.parent / name).resolve() if name else path
            assert there.exists(), f"{named(path)}: no {target}"
            assert not anchor or anchor in anchors(there), f"{named(path)}: {named(there)} has no heading #{anchor}"


def files_in(text: str) -> Iterator[str]:
    """Files of the checkout that a text names in backticks; `<…>` and `…` stand for any name."""
    known = "benchmark|datasets|docs|methods|results|suites|tests|\\.github|\\.ci"
    for said in re.findall(rf"`((?:{known})/[^`\s]*)`", text):
        yield re.sub(r"<[^>]*>|…|\{[^}]*\}", "*", said.partition("::")[0]).rstrip("/")


@each_page
def test_files_that_are_named_exist(path: Path):
    made = {
        "methods/mine.py",
        "methods/test_mine.py",
        "results/perf",
        "results/perf/*.json",
    }  # by tutorial, `make perf`
    for name in set(files_in(prose(path))) - made:
        assert any(ROOT.glob(name)), f"{named(path)} names {name}"


@each_page
def test_tests_that_are_named_exist(path: Path):
    """`tests/test_x.py::test_y`; `…::test_z` is one of the file named before it."""
    file = ""
    for before, test in re.findall(r"`(tests/\w+\.py|…)(?:::(\w+))?[^`]*`", prose(path)):
        file = file if before == "…" else before
        assert not test or f"def {test}(" in page(ROOT / file), f"{named(path)}: {file} has no {test}"


@each_page
def test_variables_that_are_named_are_read(path: Path):
    code = "".join(page(p) for p in [*(ROOT / "benchmark").rglob("*.py"), *(ROOT / "datasets").rglob("card.yaml")])
    for name in re.findall(r"ERASURE_BENCH_\w+", page(path)):
        assert f'"{name}"' in code or f"env: {name}" in code, f"{named(path)}: nothing reads {name}"


# --- commands -----------------------------------------------------------------------------------------------------
def lines_of(text: str) -> list[str]:
    """Commands of a block, those that go on in the next line put together, comments taken off."""
    joined = text.replace("\\\n", " ").splitlines()
    return [line.strip().removeprefix("$ ") for line in joined if line.strip()]


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that follows `erasure-bench`, and what it is given."""
    command: Any = typer.main.get_command(cli.app)
    while hasattr(command, "commands"):
        assert words and words[0] in command.commands, f"no such command: {' '.join(words[:1])}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def called(text: str, program: str) -> Iterator[list[str]]:
    for line in lines_of(text):
        if not re.search(rf"(^|[\s/]){program}\s", line):
            continue
        words = shlex.split(line, comments=True)
        at = next((i for i, word in enumerate(words) if word.rpartition("/")[2] == program), None)
        if at is not None:
            yield words[at + 1 :]


@each_page
def test_commands_in_blocks_parse(path: Path):
    for words in (w for text in blocks(path, "sh") for w in called(text, "erasure-bench")):
        command, given = command_of(words)
        command.make_context("x", list(given))  # what it does not know, or cannot read, it refuses


@each_page
def test_commands_in_lines_have_these_options(path: Path):
    for said in re.findall(r"`(?:\S*/)?erasure-bench ([^`]+)`", prose(path).replace("\n", " ")):
        if not re.match(r"[a-z]", said):
            continue  # `erasure-bench --help`
        command, given = command_of(said.split())
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        for word in given:
            assert not word.startswith("--") or word in known, f"{named(path)}: {said}"


@each_page
def test_targets_of_make_exist(path: Path):
    targets = set(re.findall(r"^([a-z-]+):", page(ROOT / "Makefile"), re.M))
    lines = [words[0] for text in [*blocks(path, "sh"), *blocks(path, "")] for words in called(text, "make") if words]
    for target in [*lines, *re.findall(r"`make ([a-z-]+)[^`]*`", prose(path))]:
        assert target in targets, f"{named(path)}: make {target}"


def test_the_checks_see_what_they_look_for():
    """A page with a wrong command, option, link and target would not pass."""
    with pytest.raises(AssertionError, match="no such command"):
        command_of(["rnu"])
    command, given = command_of(["run", "smoke", "--modle", "x"])
    with pytest.raises(Exception, match="--model"):
        command.make_context("x", given)
    assert list(called("make bench SUITE=x\n.venv/bin/erasure-bench list  # all", "erasure-bench")) == [["list"]]
    assert list(files_in("`docs/nowhere.md` and `results/<model>/board.md`")) == [
        "docs/nowhere.md",
        "results/*/board.md",
    ]


@each_page
def test_suites_that_are_shown_can_be_read(path: Path, tmp_path: Path):
    for i, text in enumerate(t for t in blocks(path, "yaml") if t.startswith("title:")):
        file = tmp_path / f"shown_{i}.yaml"
        file.write_text(text, encoding="utf-8")
        assert suite.requests(suite.load(str(file)).form("embedded"))


# --- examples -----------------------------------------------------------------------------------------------------
EVERY = examples.examples()


def test_every_command_has_an_executed_example():
    assert set(EVERY) == set(generated.command_names())
    kept = {path.name for path in examples.KEPT.glob("*.txt")}
    assert kept == {examples.path_of(name).name for name in EVERY}


@pytest.mark.parametrize("name", EVERY)
def test_an_example_is_of_its_command_and_printed_something(name: str):
    first, *printed = page(examples.path_of(name)).splitlines()
    assert first == f"$ erasure-bench {EVERY[name]['run']}"
    assert EVERY[name]["run"].startswith(name) and any(printed)


@pytest.mark.parametrize("name", [name for name, one in EVERY.items() if one["cost"] == "quick"])
def test_quick_examples_print_what_is_shown(name: str, tmp_path: Path):
    """If a command changed on purpose: `python docs/run_examples.py NAME`."""
    assert examples.executed(EVERY[name], tmp_path) == page(examples.path_of(name))


# --- tutorial -----------------------------------------------------------------------------------------------------
def test_the_walk_is_the_readme_and_the_whole_tutorial():
    assert [block.text.split()[:2] for block in walk.readme_commands(page(ROOT / "README.md"))] == [
        ["make", "bench"],
        ["make", "test"],
    ]
    tutorial = walk.blocks(page(DOCS / "tutorial.md"))
    assert [block.text for block in tutorial] == [text.strip() for text in blocks(DOCS / "tutorial.md", "sh")]
    assert any(re.search(r"make bench SUITE=smoke METHODS=\S*\bmine\b", block.text) for block in tutorial)
    assert 4 <= len(walk.quick(tutorial)) < len(tutorial)


def test_the_quick_part_of_the_walk(tmp_path: Path):
    """New method, then every command that reads methods: all of the tutorial that needs no torch."""
    tree = walk.sketch(tmp_path)
    walk.borrow(tree)
    typed = [text for text, _ in walk.walk(tree, walk.quick(walk.blocks(page(DOCS / "tutorial.md"))), say=False)]
    assert (tree / "methods" / "mine.py").is_file() and not (ROOT / "methods" / "mine.py").exists()
    assert any("show mine" in text for text in typed)
    again = [walk.Block("erasure-bench list", long=False)]
    assert len(list(walk.walk(tree, again, say=False))) == 1, "the new method's test is no method"


def test_a_walk_stops_where_a_block_fails(tmp_path: Path):
    steps = [walk.Block(text, long=False) for text in ("export A=1", '[ "$A" = 1 ]', "false\ntrue", "touch after")]
    done = walk.walk(tmp_path, steps, say=False)
    assert [next(done)[0], next(done)[0]] == ["export A=1", '[ "$A" = 1 ]']
    with pytest.raises(subprocess.CalledProcessError):
        next(done)
    assert not (tmp_path / "after").exists()


# --- notebook -----------------------------------------------------------------------------------------------------
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Its cells in order, as a kernel would run them, but for the kernel; the last line of each is shown, too."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(DOCS)
    space: dict[str, Any] = {}
    for text in (text for kind, text in generated.cells() if kind == "code"):
        tree = ast.parse(text)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "notebook", "exec"), space)
        if isinstance(last, ast.Expr):
            assert repr(eval(compile(ast.Expression(last.value), "notebook", "eval"), space))
    assert {"none", "uce", "esd"} <= set(space["mean"].index) and len(space["frame"]) > 1000
    assert "\\toprule" in capsys.readouterr().out


def test_the_notebook_is_one_and_keeps_no_output():
    nbformat = pytest.importorskip("nbformat")
    made = json.loads(page(DOCS / "notebook.ipynb"))
    nbformat.validate(nbformat.reads(json.dumps(made), 4))
    assert not [cell for cell in made["cells"] if cell.get("outputs") or cell.get("execution_count")]


# --- pages --------------------------------------------------------------------------------------------------------
def test_the_pages_build_without_a_warning(tmp_path: Path):
    for name in ("sphinx", "myst_parser", "furo", "sphinx_copybutton"):
        pytest.importorskip(name)
    build = [sys.executable, "-P", "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    done = subprocess.run(
        [*build, "-d", str(tmp_path / "trees"), str(DOCS), str(tmp_path / "html")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    out = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "html").rglob("*.html"))
    assert not re.search(r'<(script|link|img)[^>]*(src|href)="https?:', out), "a page asks the network for something"
    commands = (tmp_path / "html" / "reference" / "commands.html").read_text(encoding="utf-8")
    assert all(f"erasure-bench {name}" in commands for name in generated.command_names())


# --- measured tables ----------------------------------------------------------------------------------------------
@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Records of one request, by two judges: `good` meets the aim, `bad` leaves half, `grey` is a control."""
    rates = {"none": (1.0, 0.8), "good": (0.1, 0.7), "bad": (0.5, 0.4), "grey": (0.9, 0.0)}
    roles = {"none": "baseline", "grey": "control"}
    folder = tmp_path / "kinds" / "records"
    folder.mkdir(parents=True)
    for label, (erased, kept) in rates.items():
        by_role = {"erased": {"mean": erased}, "kept": {"mean": kept}}
        other = {"erased": {"mean": 1.0}, "kept": {"mean": kept}}
        record = {
            "method": {"label": label, "role": roles.get(label, "erasure")},
            "request": {"name": "erase:kofi_ardenne"},
            "summary": {"by_role": {"testbed/top1": by_role, "testbed-b/top1": other}},
        }
        (folder / f"{label}.json").write_text(json.dumps(record), encoding="utf-8")
    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    measured.records.cache_clear()
    yield tmp_path
    measured.records.cache_clear()


def test_tables_of_kinds_tell_both_judges_and_who_misses(planted: Path):
    erased, synonym, adjacent, kept = measured.kinds().split("\n\n**")
    assert [line.split(" |")[0] for line in erased.splitlines()[4:]] == ["| `none`", "| `bad`", "| `good`", "| `grey`"]
    assert "| `none` | 100 |" in erased and "| `bad` | 50 / 100 |" in erased and "| `bad` | 40 |" in kept
    assert "kofi ardenne" in erased and "| `none` |" in adjacent and "synonyms" in synonym
    assert measured.missed() == "- `bad`: kofi ardenne (50 % left), kofi ardenne (50 % kept)"


@pytest.mark.parametrize(("suite_", "parts"), [("kinds", ["kinds"]), ("ablation", ["adversarial", "finegrained"])])
def test_measured_tables_have_a_number_for_every_record(suite_: str, parts: list[str]):
    made = "\n".join(generated.PARTS[part]() for part in parts)
    assert measured.records(suite_) and all(f"| `{label}` |" in made for label in measured.methods(suite_))
    assert "n/a" not in made


# --- what stands beside the code ------------------------------------------------------------------------------------
def test_the_citation_file_is_one_and_of_this_version():
    """The Citation File Format 1.2.0: what it requires, and the names of types that it knows."""
    found = yaml.safe_load(page(ROOT / "CITATION.cff"))
    assert found["cff-version"] == "1.2.0" and found["type"] == "software"
    assert found["title"] and found["message"] and found["license"] == "Apache-2.0"
    assert all(author.get("name") or author.get("family-names") for author in found["authors"])
    version = re.search(r'^version = "(.+)"$', page(ROOT / "pyproject.toml"), re.M)
    assert version is not None and found["version"] == version[1]


def test_every_release_tells_code_and_protocol_apart():
    releases = re.split(r"^## ", page(ROOT / "CHANGELOG.md"), flags=re.M)[1:]
    assert releases
    for release in releases:
        assert re.findall(r"^### (\w+)$", release, re.M) == ["Code", "Protocol"], release.splitlines()[0]
