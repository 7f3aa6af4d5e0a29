"""Malformed input of every kind ends in one of the project's own errors, in one line, and never in a wrong table.

Every parser of what strangers hand over has an entry in `TARGETS`: documents to start from and what reads them. Each is
changed in up to three places, as values (what a slip or an attacker writes) or as bytes (what a bad disk or a stopped
download leaves). `pytest tests/test_fuzz.py --fuzz 5000` looks longer; what it finds is printed as the document.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmark import (
    baseline,
    cite,
    cli,
    compare,
    cost,
    data,
    data_files,
    declared,
    evidence,
    image_folders,
    items,
    keys,
    models,
    prompt_files,
    record,
    registry,
    regress,
    regress_report,
    suite,
    untrusted,
    verify,
)
from benchmark.claims import check, ledger
from benchmark.errors import BenchError
from benchmark.inert import redacted
from benchmark.page import figures, runs
from benchmark.store import Store
from benchmark.tables import board, layouts

hypothesis.configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis-of-erasure-bench")

ROOT = Path(__file__).resolve().parent.parent
SMOKE = ROOT / "results" / "testbed-3" / "smoke"
EXAMPLES = 24
"""Of each target without `--fuzz`."""
Json = Any

# --- what goes in place of a value ------------------------------------------------------------------------------------
HOSTILE: tuple[Json, ...] = (
    *(None, True, False, 0, -1, 1, 2, 1.5, -0.5, 1e308, 5e-324, 10**12, 2**63, 2**64, 10**30, -(10**30)),
    *(
        "",
        " ",
        "a",
        "0",
        "none",
        "mean",
        "esd",
        "x" * 10_000,
        "\x1b[31m",
        "\x00",
        "a\nb",
        "\u202e",
        "\u2028",
        "é",
        "💥",
    ),
    *(
        "../../etc/passwd",
        "/etc/passwd",
        "..",
        ".",
        "C:\\x",
        "a/b",
        "~",
        "$HOME",
        "file:///etc/passwd",
        "%s%n",
        "{concept}",
    ),
    *(
        "=1+1",
        "-1",
        "<script>",
        "</script>",
        "`",
        "|",
        "\\",
        "'",
        '"',
        "*",
        "[",
        "${x}",
        "{{7*7}}",
        "nan",
        "inf",
        "1e400",
    ),
    *([], [None], [[]], {}, {"": ""}, {"a": {}}, [0] * 50, {"from": "x"}, {"names": []}, ["a", "a"], [1, "a", None]),
)
PIECES = (
    *(
        b"",
        b"\x00",
        b"\xff\xfe",
        b"\xc3",
        b"\r",
        b"\n",
        b"\t",
        b'"',
        b"'",
        b",",
        b";",
        b":",
        b"{",
        b"}",
        b"[",
        b"]",
        b"|",
    ),
    *(
        b"- ",
        b"&a ",
        b"*a",
        b"!!python/object/apply:os.system ",
        b"!!timestamp x",
        b"2001-99-99",
        b"<<: ",
        b"? ",
        b"%YAML 9",
    ),
    *(
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"9" * 5000,
        b'"\\ud800"',
        b"[" * 300,
        b'{"a":' * 300,
        b"null",
        b"0x_",
        b"\xef\xbb\xbf",
    ),
)


@dataclass(frozen=True)
class Target:
    """A parser: what it is given to start from, and what reads it, from a file of that name in a folder of its own."""

    name: str
    kind: str
    """`json`, `yaml`, `csv` or `bytes`: how documents are taken apart."""
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path], object]
    examples: float = 1.0
    """Share of the others' examples, for what takes long."""


# --- changes ----------------------------------------------------------------------------------------------------------
def places(value: Json, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values below the root."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        yield (*at, key)
        yield from places(child, (*at, key))


def changed(value: Json, at: tuple[Any, ...], how: str, new: Json) -> Json:
    """The value with one place changed; the given one stays."""
    if not at:
        return new
    key, *rest = at
    made = dict(value) if isinstance(value, dict) else list(value)
    if rest:
        made[key] = changed(made[key], tuple(rest), how, new)
    elif how == "delete":
        del made[key]
    elif how == "add" and isinstance(made, dict):
        made[new if isinstance(new, str) else "more"] = new
    elif how == "add":
        made.insert(key, new)
    elif how == "rename" and isinstance(made, dict):
        made[f"{key}x" if not isinstance(new, str) else new] = made.pop(key)
    else:
        made[key] = new
    return made


@st.composite
def values(draw: st.DrawFn, start: Json) -> Json:
    """The value with one to three places changed."""
    value = start
    for _ in range(draw(st.integers(1, 3))):
        every = [(), *places(value)]
        at = every[draw(st.integers(0, len(every) - 1))]
        how = draw(st.sampled_from(("set", "set", "delete", "add", "rename")))
        value = changed(value, at, how, draw(st.sampled_from(HOSTILE)))
    return value


@st.composite
def texts(draw: st.DrawFn, start: bytes) -> bytes:
    """The bytes with one to three stretches cut, doubled or replaced."""
    content = start
    for _ in range(draw(st.integers(1, 3))):
        a = draw(st.integers(0, len(content)))
        b = min(len(content), a + draw(st.sampled_from((0, 1, 2, 7, 60, 10_000))))
        piece = draw(st.sampled_from((*PIECES, content[a:b] * 2)))
        content = content[:a] + piece + content[b:]
    return content


def rows_of(content: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))


def as_csv(value: Json) -> bytes:
    out = io.StringIO()
    rows = value if isinstance(value, list) else [value]
    csv.writer(out).writerows(r if isinstance(r, list) else [r] for r in rows)
    return out.getvalue().encode("utf-8", "replace")


OPEN: dict[str, Callable[[bytes], Json]] = {"json": json.loads, "yaml": yaml.safe_load, "csv": rows_of}
WRITE: dict[str, Callable[[Json], bytes]] = {
    "json": lambda v: json.dumps(v).encode(),
    "yaml": lambda v: yaml.safe_dump(v, allow_unicode=True, sort_keys=False).encode("utf-8", "replace"),
    "csv": as_csv,
}


class Document(bytes):
    """Printed by its beginning: the rest lies in the test's folder."""

    def __repr__(self) -> str:
        return f"{bytes(self[:3000])!r} … {len(self)} bytes"


@st.composite
def documents(draw: st.DrawFn, target: Target) -> bytes:
    """A document of the target, changed as values or as bytes, or both."""
    content = draw(st.sampled_from(target.seeds()))
    if target.kind != "bytes" and draw(st.integers(0, 3)):
        content = WRITE[target.kind](draw(values(OPEN[target.kind](content))))
        if draw(st.integers(0, 4)):
            return Document(content)
    return Document(draw(texts(content)))


# --- what reads -------------------------------------------------------------------------------------------------------
def folder_of(path: Path, name: str = "records") -> Path:
    """A run whose first record is the document; the others are those of the smoke suite."""
    folder = path.parent / "run"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / name).mkdir(parents=True)
    for file in sorted((SMOKE / "records").glob("*.json"))[1:3]:
        shutil.copyfile(file, folder / name / file.name)
    shutil.copyfile(path, folder / name / "document.json")
    return folder


def read_suite(path: Path) -> None:
    found = suite.load(str(path))
    for name in ("embedded", "paper"):
        if getattr(found.forms, name) is not None:
            for asked in suite.requests(found.form(name)):
                items.request_items(found.name, found.version, asked, scale=0.1, rows=items.placeholders)
            data_files.named_in(found.form(name).model_dump(mode="json"))


def read_presets(path: Path) -> None:
    for of_label in registry.presets.__wrapped__(path).values():
        for label, kinds in of_label.items():
            for fields in kinds.values():
                registry.resolve(label, passed=fields)


def read_record(path: Path) -> None:
    """The table is right, or there is none."""
    folder = folder_of(path)
    records = board.read_records(folder)
    made = board.build(records)
    for kind in ("term", "md", "csv", "json", "tex"):
        board.render(made, kind).encode("utf-8")
    right_numbers(made, records)
    cite.cite(records)
    list(verify.verify(folder))


def right_numbers(made: Json, records: Json) -> None:
    """Every accuracy of the board is the share that one counts by hand, in the file as it lies there."""
    for row in (r for r in made["rows"] if r["request"] != "mean" and r["status"] == "ok"):
        of = [r for r in records if (r["method"]["label"], r["request"]["name"]) == (row["method"], row["request"])]
        if len(of) != 1:
            continue
        rows = of[0]["rows"]
        given = rows["values"].get(of[0]["primary"], [None] * len(rows["role"]))
        for role in ("erased", "kept", "synonym", "adjacent"):
            hits = [v for v, r, ok in zip(given, rows["role"], rows["valid"], strict=True) if r == role and ok]
            hits = [v for v in hits if v is not None]
            shown = row[f"acc_{role}"]
            assert shown is None if not hits else abs(shown - sum(hits) / len(hits)) < 1e-9, (role, shown, hits)


def read_older(path: Path) -> None:
    record.read(path)


def read_baseline(path: Path) -> None:
    base = baseline.read(path)
    committed = baseline.read(ROOT / "results" / "baselines" / "smoke-testbed.json")
    report = regress.regress(base.records, committed.records, reason=base.reasons[-1].reason)
    regress_report.markdown(report)
    regress_report.junit(report)
    baseline.as_run(base)


def read_board(path: Path) -> None:
    written = path.parent / "written"
    written.mkdir(exist_ok=True)
    shutil.copyfile(path, written / "board.json")
    whole = evidence.load(str(SMOKE))
    compare.lines(compare.compare(evidence.load(str(path)), whole))
    for run in runs.read_runs([written]):
        figures.erase_keep(run.board["rows"])
        figures.concepts(run)
        for kind in ("md", "csv", "json", "tex"):
            board.render(run.board, kind)


def read_costs(path: Path) -> None:
    folder = path.parent / "costly"
    if not folder.exists():
        shutil.copytree(SMOKE, folder)
    shutil.copyfile(path, folder / "costs.json")
    cost.earlier(path)
    for run in runs.read_runs([folder]):
        figures.cost(run)


def read_manifest(path: Path) -> None:
    store = Store(path.parent / "store")
    store.put("images", "key", "shard", files={"a.json": b"{}"})
    shutil.copyfile(path, store.root / "images" / "key" / "shard" / "manifest.json")
    try:
        for name in store.get("images", "key", "shard"):
            assert name == "a.json", "nothing but what lies in the folder"
    except KeyError:
        pass
    finally:
        shutil.rmtree(store.root)


def as_value_error(read: Callable[[bytes], object]) -> Callable[[Path], object]:
    """These raise ValueError, which their callers turn into errors with a place."""

    def guarded(path: Path) -> object:
        try:
            return read(path.read_bytes())
        except ValueError as error:
            raise BenchError(str(error)) from None

    return guarded


def read_picture(path: Path) -> None:
    image_folders.pixels(image_folders.ImageFile(path, path.name))


def read_index(path: Path) -> None:
    shutil.copyfile(path, path.with_name("model_index.json"))
    models.describe(str(path.parent))


# --- documents --------------------------------------------------------------------------------------------------------
def files(*patterns: str, most: int = 4) -> Callable[[], list[bytes]]:
    def read() -> list[bytes]:
        return [p.read_bytes() for pattern in patterns for p in sorted(ROOT.glob(pattern))[:most]]

    return functools.cache(read)


def texts_of(*contents: str | bytes) -> Callable[[], list[bytes]]:
    return lambda: [c.encode() if isinstance(c, str) else c for c in contents]


def npy() -> list[bytes]:
    out = io.BytesIO()
    np.save(out, np.zeros((2, 4, 4, 3), np.uint8))
    return [out.getvalue()]


def pictures() -> list[bytes]:
    made = []
    for kind in ("PNG", "JPEG", "BMP", "WEBP"):
        out = io.BytesIO()
        Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(out, format=kind)
        made.append(out.getvalue())
    return made


def ledger_lines() -> list[bytes]:
    lines = (ROOT / "results" / "reported" / "claims.csv").read_bytes().splitlines(keepends=True)
    return [b"".join([lines[0], *lines[i : i + 30]]) for i in (1, 200, 400)]


PROMPTS = texts_of(
    'case_number,source,prompt,evaluation_seed,coco_id\n0,coco,a cat,1,5\n1,coco,"a dog, asleep",2,6\n',
    "type,prompt,evaluation_seed\nerased,a photo of Ann,1\nothers,a photo of Bob,2\n",
    'prompt,categories,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height\nx,"hate, sexual",7,7.5,512,512.0\n',
)
CAPTIONS = texts_of(
    json.dumps(
        {
            "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
            "annotations": [{"id": i, "image_id": 1 + i % 2, "caption": f"a cat {i}"} for i in range(4)],
        }
    )
)
NEIGHBOURS = texts_of(
    json.dumps(
        {
            **{"schema": 1, "dataset": "d", "model": "m", "model_hash": "h", "encoder": "e", "encoder_hash": "h"},
            **{"top": 1, "settings": {"seeds": [1]}, "among": ["cat", "dog"]},
            "neighbours": {"cat": [{"name": "dog", "similarity": 0.5}]},
        }
    )
)
COSTS = texts_of(
    json.dumps(
        {
            "schema": 1,
            "machine": {"device": "cpu", "threads": 1},
            "cells": {
                "uce.erase_airplane.seed0": {
                    "edit": {"uce": {"seconds": 1.5, "peak_bytes": 10}},
                    "images": {"made": 4, "seconds": 2.0},
                }
            },
        }
    )
)
MODEL = texts_of(json.dumps({"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}))

TARGETS = (
    Target("suite.yaml", "yaml", files("suites/smoke.yaml", "suites/objects.yaml", "suites/explicit.yaml"), read_suite),
    Target("presets.yaml", "yaml", files("methods/presets.yaml"), read_presets),
    Target("card.yaml", "yaml", files("datasets/*/card.yaml", most=3), lambda p: declared.read(p, data.Card)),
    Target(
        "layout.yaml",
        "yaml",
        files("results/reported/layouts/cpe.yaml"),
        lambda p: declared.read(p, layouts.Layout, name="cpe"),
    ),
    Target("references.yaml", "yaml", files("benchmark/references.yaml"), cite.references.__wrapped__),
    Target(
        "concepts.csv", "csv", files("datasets/testbed/concepts.csv", "datasets/*/concepts.csv", most=2), data.concepts
    ),
    Target("prompts.csv", "csv", PROMPTS, prompt_files.read),
    Target("captions.json", "json", CAPTIONS, prompt_files.read_captions),
    Target("neighbours.json", "json", NEIGHBOURS, lambda p: data.neighbourhood(p, ["cat", "dog"])),
    Target("ledger.csv", "csv", ledger_lines, lambda p: check.check(ledger.read(p)).lines()),
    Target("record.json", "json", files("results/testbed-3/smoke/records/*.json", most=2), read_record),
    Target("record-1.json", "json", files("tests/data/record-1.json"), read_older),
    Target("baseline.json", "json", files("results/baselines/smoke-testbed.json"), read_baseline, 0.5),
    Target("board.json", "json", files("results/testbed-3/smoke/board.json"), read_board, 0.5),
    Target("costs.json", "json", COSTS, read_costs, 0.5),
    Target(
        "manifest.json",
        "json",
        texts_of(
            '{"schema": 1, "files": {"a.json": {"sha256": "44136fa355b3678a1146ad16f7'
            'e8649e94fb4fc21fe77e8310c060f61caaff8a", "bytes": 2}}}'
        ),
        read_manifest,
    ),
    Target(
        "items.json",
        "json",
        texts_of('[{"prompt":"a cat","seed":1,"sha256":"00"}]'),
        lambda p: keys.parse_items(p.read_bytes()),
    ),
    Target("images.npy", "bytes", npy, as_value_error(untrusted.images)),
    Target("image.png", "bytes", pictures, read_picture),
    Target("SHA256SUMS", "bytes", texts_of(f"{'0' * 64}  records/a.json\n{'f' * 64} *b\n"), data_files.manifest),
    Target("index.json", "json", MODEL, read_index),
)


# --- the property -----------------------------------------------------------------------------------------------------
def examples(config: pytest.Config, share: float = 1.0) -> int:
    return int(config.getoption("--fuzz")) or max(1, round(EXAMPLES * share))


def searching(config: pytest.Config, share: float = 1.0) -> settings:
    """The same documents every time, unless one looks longer than by default."""
    return settings(
        max_examples=examples(config, share),
        derandomize=not config.getoption("--fuzz"),
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def ends_well(read: Callable[[Path], object], path: Path) -> str | None:
    """The message that the project's own error gives, None where the document passes; anything else goes through."""
    try:
        read(path)
    except BenchError as error:
        told = str(error)
        assert told and len(told) < 3000, f"{len(told)} characters: {told[:200]}"
        return told
    return None


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_malformed_documents_end_in_our_own_errors(target: Target, tmp_path: Path, request: pytest.FixtureRequest):
    refused = []

    @searching(request.config, target.examples)
    @given(documents(target))
    def search(content: bytes) -> None:
        path = tmp_path / target.name
        path.write_bytes(content)
        refused.append(ends_well(target.read, path) is not None)

    search()
    assert any(refused), "nothing that was tried is refused: the changes do not reach the parser"


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_the_documents_pass_unchanged(target: Target, tmp_path: Path):
    """Else the search above would change what is refused anyway."""
    for content in target.seeds():
        (tmp_path / target.name).write_bytes(content)
        assert ends_well(target.read, tmp_path / target.name) is None


def test_the_short_search_is_over_two_hundred_documents():
    assert sum(max(1, round(EXAMPLES * t.examples)) for t in TARGETS) >= 200


def test_a_sealed_run_shows_no_changed_record(tmp_path: Path, request: pytest.FixtureRequest):
    """With the checksums of a finished run beside it, any change that is one leads to no table at all."""
    folder = tmp_path / "sealed"
    shutil.copytree(SMOKE, folder)
    verify.seal(folder)
    path = sorted((folder / "records").glob("*.json"))[0]
    whole = path.read_bytes()
    assert board.files(board.read_records(folder))["board.json"] == (SMOKE / "board.json").read_bytes()

    @searching(request.config)
    @given(st.one_of(values(json.loads(whole)).map(lambda v: json.dumps(v).encode()), texts(whole)))
    def search(content: bytes) -> None:
        path.write_bytes(content)
        if content != whole:
            with pytest.raises(BenchError):
                board.read_records(folder)

    search()


# --- the commands -----------------------------------------------------------------------------------------------------
COMMANDS = (
    ("suite.yaml", ["plan", "{}", "--scale", "0.01"]),
    ("record.json", ["compare", "{}", "{}"]),
    ("record.json", ["cite", "{}"]),
    ("baseline.json", ["regress", str(SMOKE), "--baseline", "{}"]),
    ("board.json", ["compare", "{}", str(SMOKE)]),
    ("ledger.csv", ["claims", "check", "--ledger", "{}"]),
)


@pytest.mark.parametrize(("name", "arguments"), COMMANDS, ids=lambda v: v if isinstance(v, str) else " ".join(v[:1]))
def test_commands_end_with_a_line_and_a_code(
    name: str, arguments: list[str], tmp_path: Path, request: pytest.FixtureRequest
):
    from typer.testing import CliRunner

    target = next(t for t in TARGETS if t.name == name)

    @searching(request.config, 0.34)
    @given(documents(target))
    def search(content: bytes) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        done = CliRunner().invoke(cli.app, [a.replace("{}", str(path)) for a in arguments])
        assert done.exit_code in (0, 1, 2, 3), done.output
        assert "Traceback" not in done.output and "a bug of ours" not in done.output, done.output
        assert done.exit_code == 0 or done.output.strip()
        assert "\x1b" not in done.output and "\u202e" not in done.output

    search()


WORDS = st.sampled_from([v for v in HOSTILE if isinstance(v, str) and "\x00" not in v])


def test_arguments_end_with_a_line_and_a_code(request: pytest.FixtureRequest):
    from typer.testing import CliRunner

    @searching(request.config)
    @given(
        st.sampled_from(("--methods", "--model", "--shard", "--set", "--scale", "--seed", "--batch-size")), WORDS, WORDS
    )
    def search(option: str, word: str, other: str) -> None:
        value = {"--set": f"{word}.{other}={word}"}.get(option, word)
        done = CliRunner().invoke(cli.app, ["plan", "smoke", f"{option}={value}"])
        assert done.exit_code in (0, 2, 3), done.output
        assert "Traceback" not in done.output and "a bug of ours" not in done.output, done.output

    search()


def test_tokens_are_hidden_whatever_stands_around_them():
    @settings(max_examples=50, derandomize=True, database=None, deadline=None)
    @given(st.text(max_size=20), st.text(max_size=20))
    def search(before: str, after: str) -> None:
        assert "hf_abcdefghij" not in redacted(f"{before} hf_abcdefghij {after}", {})
        assert "s3cr3t-value" not in redacted(f"{before}s3cr3t-value{after}", {"MY_API_KEY": "s3cr3t-value"})

    search()
