"""The page and the plots, from runs made here: complete, escaped, the same bytes; and in a browser if there is one."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save
from typer.testing import CliRunner

from benchmark import cli, keys, record
from benchmark.errors import BadInput
from benchmark.metrics.summary import summarise, with_unedited
from benchmark.page import anchors, boards, cells, explorer, figures, images, plots, raws, runs, site
from benchmark.store import Store

TOP1, CLIP = "testbed/top1", "testbed-clip/score"
JUDGE = {"version": 1, "evaluator": "testbed-a", "evaluator_hash": "e" * 64}
ROLES = {"none": "baseline", "noise": "control", "grey": "control"}
HITS = {"none": (1, 1, 1), "esd": (0, 0.75, 0), "uce": (0.25, 1, 0.25), "noise": (1, 1, 1), "grey": (0, 0, 0)}
"""Share of erased, kept and synonym images in which the concept is found."""
NASTY = '</script><img src=x onerror="alert(1)"> & \u2028 $x$'
SIDE = 16


def items(request: str, erased: list[str], per: int) -> list[tuple]:
    asked = [("erased", c, f"a photo of the {c}") for c in erased]
    asked += [("synonym", erased[0], f"a photo of the other {erased[0]}")]
    asked += [("kept", c, f"a photo of the {c}") for c in ("dog", "ship")]
    named = [(role, concept, prompt, i) for role, concept, prompt in asked for i in range(per)]
    return [(*a, int(keys.digest([request, *a])[:15], 16)) for a in named]


def picture(method: str, request: str, i: int) -> np.ndarray:
    """A flat colour that tells method and row; the unedited model's is the same in all requests but the first."""
    level = int(keys.digest([method, request, i])[:2], 16)
    return np.full((SIDE, SIDE, 3), [level, (i * 37) % 256, 90], np.uint8)


def rows_of(method: str, request: str, erased: list[str], per: int) -> dict:
    names = ("role", "concept", "prompt", "replicate", "seed")
    listed = items(request, erased, per)
    rows = {name: [item[n] for item in listed] for n, name in enumerate(names)}
    share = dict(zip(("erased", "kept", "synonym"), HITS.get(method, (0.5, 0.5, 0.5)), strict=True))
    hits = [float(i < per * share[role]) for role, _, _, i, _ in listed]
    rows["image"] = [hashlib.sha256(picture(method, request, i).tobytes()).hexdigest() for i in range(len(listed))]
    rows["valid"] = [not (method == "esd" and i == len(listed) - 1) for i in range(len(listed))]
    scored = [h if ok else None for h, ok in zip(hits, rows["valid"], strict=True)]
    return {**rows, "values": {TOP1: scored, CLIP: [20 + 3.25 * h for h in hits]}}


def cell(method: str, request: str, erased: list[str], *, per: int, kind: str, suite: str) -> dict:
    rows = rows_of(method, request, erased, per)
    erase = [{"name": c, "kind": kind, "anchor": "thing", "synonyms": [f"other {c}"], "adjacent": None} for c in erased]
    return {
        **{"schema": record.SCHEMA, "suite": suite, "suite_version": 1, "form": "embedded", "scale": 1.0},
        "model": {"name": "testbed", "hash": "ab" * 16, "family": "unet-epsilon"},
        "method": {
            **{"label": method, "name": method, "variant": None, "version": 1, "role": ROLES.get(method, "erasure")},
            **{"paper": "", "fields": {"lr": 0.5}, "passed": {"lr": 0.5}, "preset": None},
        },
        "request": {"name": request, "erase": erase, "keep": ["dog", "ship"], "strategy": "joint", "seed": 0},
        **{"status": "ok", "reason": None, "sampler": {"steps": 2, "size": SIDE}, "batch": 4, "passed": {}},
        **{"primary": TOP1, "headline": "H_o", "protocols": {TOP1: JUDGE, CLIP: JUDGE}},
        "edit": {"key": "k" * 32, "hash": "h", "notes": {}, "counts": dict.fromkeys(figures.COUNTS, 7)},
        "hashes": record.hashes(rows),
        "rows": rows,
        "summary": summarise(rows, primary=TOP1, headline_id="H_o", protocols=[TOP1, CLIP]),
        "provenance": {
            **{"commit": "c" * 40, "dirty": False, "packages": {"numpy": "2"}, "python": "3.11", "machine": "x86_64"},
            **{"device_class": "cpu", "threads": 1, "dtype": "float32"},
        },
    }


def make_run(
    out: Path,
    *,
    requests: dict[str, list[str]] | None = None,
    methods: tuple[str, ...] = ("none", "esd", "uce", "noise", "grey"),
    per: int = 4,
    kind: str = "object",
    suite: str = "objects",
) -> Path:
    """A run's folder: records, costs, and a store with images and raw outputs."""
    store = Store(out / "store")
    costs = {}
    for request, erased in (requests or {"erase:cat": ["cat"], "erase:two": ["cat", "bird"]}).items():
        made = {m: cell(m, request, erased, per=per, kind=kind, suite=suite) for m in methods}
        for m, r in made.items():
            r["summary"] = with_unedited(r["summary"], made["none"]["summary"])
            slug = f"{m}.{request}.seed0".translate(str.maketrans(": /\\", "____"))
            costs[slug] = {"edit": {m: {"seconds": 2.5, "peak_bytes": 10**9}}, "images": {"made": 4, "seconds": 2.0}}
            record.write(out / "records" / f"{slug}.json", record.parse(r))
            put(store, m, request, r["rows"])
    machine = {"device": "cpu", "cpu": "a processor", "threads": 1}
    (out / "costs.json").write_text(json.dumps({"schema": 1, "machine": machine, "cells": costs}))
    return out


def put(store: Store, method: str, request: str, rows: dict) -> None:
    n, key = len(rows["role"]), keys.digest([method, request])
    pixels = np.stack([picture(method, request, i) for i in range(n)])
    listed = keys.items_json(list(zip(rows["prompt"], rows["seed"], rows["image"], strict=True)))
    shard, content = keys.shard_name([(method, 0)]), io.BytesIO()
    np.save(content, pixels, allow_pickle=False)
    store.put(keys.IMAGES, key, shard, files={"images.npy": content.getvalue(), "items.json": listed})
    raw = keys.raw_key(key, shard, evaluator="testbed-a", weights=JUDGE["evaluator_hash"])
    logits = np.arange(n * 20, dtype=np.float32).reshape(n, 20)
    arrays = {"object": logits, "style": logits[:, :3].copy(), "blank": np.zeros(n, np.uint8), "features": logits}
    store.put(keys.RAW, raw, files={"raw.safetensors": save(arrays)})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def made(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "page"
    site.write([run], out)
    return out


NAME = "objects-testbed-v1"


class Elements(HTMLParser):
    """All elements of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def ids(self) -> list[str]:
        return [str(a["id"]) for _, a in self.found if "id" in a]


def elements(path: Path) -> Elements:
    return Elements(path.read_text(encoding="utf-8"))


def data(out: Path, name: str) -> dict:
    text = (out / "data" / f"{name}.js").read_text(encoding="utf-8")
    found = re.fullmatch(r'erasureBench\.put\("((?:[^"\\]|\\.)*)",(.*)\);\n', text, re.S)
    assert found and json.loads(f'"{found[1]}"') == name
    return json.loads(found[2])


# --- the site ---------------------------------------------------------------------------------------------------------
def test_every_cell_has_an_anchor_details_and_its_record(run: Path, made: Path):
    ids = elements(made / f"{NAME}.html").ids()
    assert len(ids) == len(set(ids))
    for file in sorted((run / "records").glob("*.json")):
        r = json.loads(file.read_bytes())
        assert anchors.cell(r["request"]["name"], r["method"]["label"]) in ids
        detail = data(made, f"{NAME}/cells/{anchors.slug(file.stem)}")
        assert (made / detail["record"]).read_bytes() == file.read_bytes()
        assert detail["command"].startswith("erasure-bench run objects --model testbed --methods ")
        assert detail["image"] == r["rows"]["image"]
        assert all(detail["stored"]) and all(detail["raw"][0]["stored"])


def test_every_image_has_a_permanent_address(made: Path, run: Path):
    found = data(made, f"{NAME}/{anchors.slug('erase:cat')}")
    names = found["rows"]["key"]
    assert len(set(names)) == len(names) == 4 * 4
    r = json.loads((run / "records" / "esd.erase_cat.seed0.json").read_bytes())["rows"]
    first = (r["role"][0], r["concept"][0], r["prompt"][0], r["seed"][0])
    assert names[0] == anchors.image(*first)
    assert found["rows"]["seed"][0] == str(first[3]), "seeds are texts: they pass what a script's numbers can hold"
    assert [c["id"] for c in found["columns"]] == ["none", "esd", "uce", "grey", "noise"]


def test_sheets_hold_every_image_at_its_place(made: Path):
    about = data(made, NAME)
    for request in ("erase:cat", "erase:two"):
        found = data(made, f"{NAME}/{anchors.slug(request)}")
        for column in found["columns"]:
            for i, number in enumerate(column["thumb"]):
                sheet, at = divmod(number, about["side"] ** 2)
                with Image.open(made / about["folder"] / f"{sheet}.webp") as opened:
                    assert opened.height == about["rows"][sheet] * about["tile"]
                    x, y = at % about["side"] * about["tile"], at // about["side"] * about["tile"]
                    shown = np.asarray(opened.convert("RGB").crop((x + 4, y + 4, x + 12, y + 12)), np.float64)
                expected = picture(column["id"], request, i)[4:12, 4:12]
                assert np.abs(shown.mean((0, 1)) - expected.mean((0, 1))).max() < 8


def test_the_same_runs_give_the_same_bytes(run: Path, made: Path, tmp_path: Path):
    site.write([run], tmp_path / "again")
    files = [p.relative_to(made) for p in sorted(made.rglob("*")) if p.is_file()]
    assert files == [p.relative_to(tmp_path / "again") for p in sorted((tmp_path / "again").rglob("*")) if p.is_file()]
    assert len(files) > 20
    for name in files:
        assert (made / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_pages_name_only_files_that_are_there(made: Path):
    for page in made.glob("*.html"):
        for tag, attributes in elements(page).found:
            for name in ("href", "src"):
                target = (attributes.get(name) or "").partition("#")[0]
                if target and not target.startswith("data:"):
                    assert (made / target).is_file(), f"{page.name}: <{tag}> names {target}"


def test_nothing_is_asked_of_a_network():
    allowed = {"http://www.w3.org/2000/svg"}  # a name
    for path in sorted(site.ASSETS.iterdir()):
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"https?://[^\s\"'<)]*", text)) <= allowed, path.name
        assert not re.search(r"@import|\bfetch\s*\(|XMLHttpRequest|WebSocket|\bimport\s*\(|//cdn", text), path.name


def test_scripts_write_no_markup():
    for path in sorted(site.ASSETS.glob("*.js")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\(", text), path


def test_whatever_runs_say_is_text(tmp_path: Path):
    made_run = make_run(tmp_path / "r", requests={f"erase:{NASTY}": [NASTY]}, methods=("none", "uce"), per=2)
    for file in (made_run / "records").glob("uce*"):  # a name that no method of ours has
        file.write_text(file.read_text().replace('"label": "uce"', f'"label": {json.dumps(NASTY + "m")}'))
    site.write([made_run], tmp_path / "out")
    for page in (tmp_path / "out").glob("*.html"):
        found = elements(page)
        assert not [t for t, a in found.found if t == "img" or any(k.startswith("on") for k in a)]
        assert all(a.get("src") for t, a in found.found if t == "script")
    assert NASTY in elements(tmp_path / "out" / f"{NAME}.html").text
    scripts = sorted((tmp_path / "out" / "data").rglob("*.js"))
    assert len(scripts) == 4
    for script in scripts:
        assert not re.search(r"[<>\u2028]", script.read_text(encoding="utf-8"))
    read = data(tmp_path / "out", f"{NAME}/{anchors.slug('erase:' + NASTY)}")
    assert read["texts"]["concept"][0] == NASTY


def test_overall_counts_only_boards_on_which_a_method_has_a_headline(tmp_path: Path):
    """One has none at all, and a method of another family has none on the other."""
    committed = Path(__file__).resolve().parent.parent / "results" / "testbed-3"
    found = boards.overall(runs.read_runs([committed / name for name in ("birds", "smoke")]))
    counts = {r["method"]: (r["best"], r["of"]) for r in found["rows"]}
    assert counts["fade_fg"] == (1, 1) and counts["uce"] == (0, 1) and counts["erase_anything"] == (0, 0)


def test_embedded_results_say_so_on_every_page(made: Path):
    for page in made.glob("*.html"):
        assert "not comparable with papers" in elements(page).text, page.name


def test_a_folder_of_something_else_is_left_alone(run: Path, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(BadInput, match="something else"):
        site.write([run], tmp_path / "mine")
    assert [p.name for p in tmp_path.rglob("*")] == ["mine", "thesis.tex"]


def test_a_page_replaces_the_one_before(run: Path, tmp_path: Path):
    site.write([run], tmp_path / "p")
    (tmp_path / "p" / "old.html").write_text("old")
    site.write([run], tmp_path / "p")
    assert not (tmp_path / "p" / "old.html").exists() and (tmp_path / "p" / "index.html").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


def test_images_that_are_gone_are_counted_and_told(tmp_path: Path):
    folder = make_run(tmp_path / "r", requests={"erase:cat": ["cat"]}, methods=("none", "uce"))
    damaged = next((folder / "store" / "images" / keys.digest(["uce", "erase:cat"])).glob("*/images.npy"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    told: list[str] = []
    site.write([folder], tmp_path / "a", say=told.append)
    assert len(told) == 1 and "damaged artifact" in told[0]
    shutil.rmtree(folder / "store")
    written = site.write([folder], tmp_path / "b", say=told.append)
    assert (written.images, written.absent) == (32, 32)
    found = data(tmp_path / "b", f"{NAME}/{anchors.slug('erase:cat')}")
    assert set(found["columns"][1]["thumb"]) == {-1}


def test_a_board_without_records_is_shown_alone(run: Path, tmp_path: Path):
    from benchmark.tables import board

    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "board.json").write_bytes(board.files(board.read_records(run))["board.json"])
    site.write([tmp_path / "r"], tmp_path / "out")
    assert "cell/erase~3acat/uce" in elements(tmp_path / "out" / f"{NAME}.html").ids()
    assert "No records" in elements(tmp_path / "out" / f"{NAME}.images.html").text


def test_what_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(BadInput, match="no such folder"):
        site.write([tmp_path / "none"], tmp_path / "out")
    with pytest.raises(BadInput, match="neither records"):
        site.write([tmp_path], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_two_runs_of_one_suite_have_pages_of_their_own(run: Path, tmp_path: Path):
    site.write([run, run], tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").glob("*.html")} >= {f"{NAME}.html", f"{NAME}-2.html", "index.html"}


# --- names ------------------------------------------------------------------------------------------------------------
def test_different_texts_have_different_names():
    texts = ["a", "A", "a b", "a_b", "a/b", "a:b", "~", "a~3ab", "..", ".", "", "é", "x" * 300, "x" * 301, "a\ud800"]
    names = [anchors.slug(t) for t in texts]
    assert len(set(names)) == len(texts)
    assert all(re.fullmatch(r"[\w.@~-]{1,140}", n, re.ASCII) and not n.startswith(".") for n in names)


def test_the_command_names_what_was_typed():
    r = cell("esd", "erase:cat", ["cat"], per=1, kind="object", suite="my suite") | {"scale": 0.5}
    r["request"]["seed"] = 3
    expected = "erasure-bench run 'my suite' --model testbed --methods none,esd --scale 0.5 --seed 3 --set esd.lr=0.5"
    assert cells.command(r) == expected


# --- figures ----------------------------------------------------------------------------------------------------------
def row(method: str, erased: float, kept: float, role: str = "erasure") -> dict:
    said = {"method": method, "role": role, "request": "mean", "status": "ok", "primary": TOP1}
    return said | {"acc_erased": erased, "acc_erased_ci": [0.0, 1.0], "acc_kept": kept, "acc_kept_ci": None}


def test_the_front_is_what_no_other_method_beats():
    """a and c trade; b is below a; d equals c; the control, better than all, is no method."""
    rows = [row("a", 0.1, 0.9), row("b", 0.2, 0.9), row("c", 0.0, 0.5), row("d", 0.0, 0.5), row("e", 0, 1, "control")]
    points = figures.erase_keep(rows)["requests"]["mean"]
    assert {p["method"] for p in points if p["front"]} == {"a", "c", "d"}
    assert figures.front_line(points) == [(0.9, 0.9), (1.0, 0.5)]
    assert points[0]["x_ci"] == [0.0, 1.0] and points[0]["x"] == pytest.approx(0.9)


def test_interference_is_the_change_on_common_images(run: Path):
    found = figures.interference(runs.read_runs([run])[0])
    of = {(c["request"], c["concept"]): c for c in found["methods"]["esd"]}
    assert of["erase:cat", "cat"]["change"] == -1 and of["erase:cat", "cat"]["erased"]
    assert of["erase:cat", "dog"]["change"] == -0.25
    # the last image of the ship, a miss in any case, could not be scored: three of three remain
    assert (of["erase:cat", "ship"]["n"], of["erase:cat", "ship"]["change"]) == (3, 0)
    assert found["columns"][0] == "cat" and "none" not in found["methods"]


def test_concepts_and_cost(run: Path):
    one = runs.read_runs([run])[0]
    found = figures.concepts(one)
    assert {p["n"] for p in found["points"]} == {1, 2}
    assert all(len(line["means"]) == 2 for line in found["lines"])
    spent = figures.cost(one)
    assert {(p["seconds"], p["image_seconds"], p["text_encodes"]) for p in spent["points"]} == {(2.5, 0.5, 7)}
    assert spent["timed"] and spent["machine"]["cpu"] == "a processor"


def test_figures_say_why_they_are_not_there(run: Path):
    one = runs.read_runs([run])[0]
    bare = runs.Run(id="x", board=one.board)
    assert figures.interference(bare)["reason"] and figures.cost(bare)["reason"] and figures.concepts(bare)["reason"]
    other = [r | {"primary": CLIP} for r in one.board["rows"]]
    assert "not a rate" in figures.erase_keep(other)["reason"]


# --- images -----------------------------------------------------------------------------------------------------------
def test_differences_are_means_of_absolute_differences():
    black, white = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    half = black.copy()
    half[:2] = 255
    assert images.difference(black, white) == images.difference(white, black) == 1
    assert images.difference(half, black) == 0.5 and images.difference(black, black) == 0
    assert images.difference(black, None) is None and images.difference(black, white[:2]) is None


def test_each_image_stands_on_one_sheet():
    planned = images.planned([[str(i) for i in range(70)], ["3", "a", "3"]])
    assert [len(s) for s in planned.sheets] == [64, 6, 1]
    assert planned.number["64"] == 64 and planned.number["a"] == 128 and planned.number["3"] == 3


def test_large_images_fit_their_tile_and_small_ones_stay():
    assert images.thumbnail(np.zeros((512, 256, 3), np.uint8), 128).size == (64, 128)
    assert images.thumbnail(np.zeros((64, 64, 3), np.uint8), 128).size == (64, 64)


def test_long_lists_are_thinned_evenly(run: Path):
    group = explorer.groups(runs.read_runs([run])[0], 2)[0]
    of = [i.role for i in group.items]
    assert {role: of.count(role) for role in of} == {"erased": 2, "synonym": 2, "kept": 2}
    assert group.left_out == {"erased": 2, "synonym": 2, "kept": 6}
    assert {i.concept for i in group.items if i.role == "kept"} == {"dog", "ship"}


def test_raw_outputs_are_readable():
    assert raws.readable("blank", np.uint8(1)) == 1
    assert raws.readable("style", np.array([1.23456, np.nan], np.float32)) == [1.235, None]
    many = np.zeros(20, np.float32)
    many[7], many[3] = 2, 1
    assert raws.readable("object", many)[:2] == [[7, 2.0], [3, 1.0]]
    assert raws.readable("features", many) is None and raws.readable("box", np.zeros((2, 4))) is None


def test_explicit_suites_are_known_by_their_concepts(tmp_path: Path):
    folder = make_run(tmp_path / "r", requests={"erase:knife": ["knife"]}, methods=("none", "uce"), kind="explicit")
    assert explorer.groups(runs.read_runs([folder])[0], 9)[0].explicit


# --- plots ------------------------------------------------------------------------------------------------------------
@pytest.mark.quick("erase_keep", "concepts")
@pytest.mark.parametrize("figure", figures.FIGURES)
def test_plots_are_the_same_bytes_twice(run: Path, tmp_path: Path, figure: str):
    for kind in plots.KINDS:
        made = []
        for n in range(2):
            plots.write(runs.read_runs([run]), figure, tmp_path / f"{n}.{kind}")
            made.append((tmp_path / f"{n}.{kind}").read_bytes())
        assert made[0] == made[1] and len(made[0]) > 2000
    svg = (tmp_path / "0.svg").read_text(encoding="utf-8")
    assert "not comparable with papers" in svg and "<dc:date>" not in svg


def test_methods_look_different_without_colour():
    looks = plots.looks({f"m{i}": "erasure" for i in range(36)} | {"none": "baseline", "noise": "control"})
    assert len({(v["color"], v["marker"]) for v in looks.values()}) == 38
    six = [looks[f"m{i}"]["marker"] for i in range(6)]
    assert len(set(six)) == 6


def test_plots_refuse_what_they_cannot_draw(run: Path, tmp_path: Path):
    read = runs.read_runs([run])
    for kwargs, match in (
        ({"figure": "erase_kep", "out": tmp_path / "a.pdf"}, "did you mean 'erase_keep'"),
        ({"figure": "cost", "out": tmp_path / "a.jpg"}, "expected a file that ends in"),
        ({"figure": "erase_keep", "out": tmp_path / "a.pdf", "request": "erase:cta"}, "did you mean 'erase:cat'"),
        ({"figure": "interference", "out": tmp_path / "a.pdf", "method": "ucee"}, "did you mean 'uce'"),
    ):
        with pytest.raises(BadInput, match=match):
            plots.write(read, **kwargs)
    assert not list(tmp_path.iterdir())


# --- commands ---------------------------------------------------------------------------------------------------------
def test_commands(run: Path, tmp_path: Path):
    shown = CliRunner().invoke(cli.app, ["page", str(run), "--out", str(tmp_path / "site")])
    assert shown.exit_code == 0 and "4 pages, 180 images" in shown.output
    drawn = ["plot", str(run), "--figure", "cost", "--out", str(tmp_path / "cost.svg")]
    assert CliRunner().invoke(cli.app, drawn).exit_code == 0
    assert CliRunner().invoke(cli.app, ["page", str(tmp_path), "--out", str(tmp_path / "x")]).exit_code == 2


def test_the_page_loads_no_torch():
    code = (
        "import sys, benchmark.page.site, benchmark.page.plots\n"
        "print(sorted({'torch', 'pandas', 'matplotlib', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


# --- in a browser -----------------------------------------------------------------------------------------------------
@pytest.fixture
def tab(chromium):
    """Open a page of a site in a fresh visit; at the end nothing may have gone wrong, or been asked of a network."""
    faults: list[str] = []
    contexts = []

    def open_(address: str, **options):
        context = chromium.new_context(**{"viewport": {"width": 1200, "height": 900}} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: faults.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: faults.append(str(e)))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else faults.append(r.url))
        page.on("requestfailed", lambda r: faults.append(f"failed: {r.url}"))
        page.goto(address)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not faults


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of an explicit suite."""
    root = tmp_path_factory.mktemp("hidden")
    folder = make_run(root / "r", requests={"erase:knife": ["knife"]}, methods=("none", "uce"), kind="explicit")
    site.write([folder], root / "page")
    return root / "page"


def methods_of(page) -> list[str]:
    return page.eval_on_selector_all(
        "[data-request]:not([hidden]) tbody tr:not([hidden])", "rows => rows.map(r => r.id.split('/').pop())"
    )


@pytest.mark.browser
def test_boards_sort_and_filter(made: Path, tab):
    page = tab(f"file://{made}/{NAME}.html")
    page.select_option("#request", "erase~3acat")
    header = page.locator("[data-request='erase~3acat'] thead button", has_text="erased")
    header.click()
    values = page.eval_on_selector_all(
        "[data-request='erase~3acat'] tbody tr td:nth-child(3)", "cells => cells.map(c => Number(c.dataset.v))"
    )
    assert values == sorted(values) and values[0] < values[-1]
    assert page.locator("[data-request='erase~3acat'] th[aria-sort='ascending']").count() == 1
    header.click()
    assert methods_of(page)[-1] in {"esd", "grey"}
    page.select_option("#kind", "method")
    assert set(methods_of(page)) == {"esd", "uce"}
    assert page.locator("#count").inner_text() == "2 of 5 rows"
    page.select_option("#protocol", CLIP)
    heads = page.locator("[data-request='erase~3acat'] thead th:not([hidden])").all_inner_texts()
    assert len(heads) == 4 and heads[2].startswith("clip")


@pytest.mark.browser
def test_the_overview_filters_and_leads_on(made: Path, tab):
    page = tab(f"file://{made}/index.html")
    page.select_option("#kind", "control")
    assert page.locator("#overall tbody tr:visible").count() == 2
    page.select_option("#kind", "")
    page.locator("#overall tbody tr", has_text="uce").locator("td a").click()
    page.wait_for_url("**/objects-testbed-v1.html#cell/mean/uce")
    assert page.locator("tr.here").get_attribute("id") == "cell/mean/uce"


@pytest.mark.browser
def test_a_cell_opens_by_its_address_and_by_its_button(made: Path, tab):
    page = tab(f"file://{made}/{NAME}.html#cell/erase~3atwo/esd")
    dialog = page.locator("dialog[open]")
    dialog.wait_for()
    assert "esd on erase:two" in dialog.inner_text() and "erasure-bench run objects" in dialog.inner_text()
    assert page.locator("#request").input_value() == "erase~3atwo"
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    page.locator("[data-request='erase~3atwo'] .open", has_text="uce").click()
    dialog.wait_for()
    assert page.url.endswith("#cell/erase~3atwo/uce")


@pytest.mark.browser
def test_figures_are_drawn_with_their_numbers(made: Path, tab):
    page = tab(f"file://{made}/{NAME}.html")
    assert page.locator(".plot").count() == 3 and page.locator(".matrix td").count() > 0
    table = page.locator("#erase_keep details table tbody tr")
    assert table.count() == 5
    assert page.locator("#erase_keep .front").count() == 1


@pytest.mark.browser
def test_explorer_filters_by_role_concept_and_failure(made: Path, tab):
    page = tab(f"file://{made}/{NAME}.images.html")
    page.locator(".gridrow").first.wait_for()
    assert page.locator("[role=columnheader]").all_inner_texts()[1:] == ["none", "esd", "uce", "grey", "noise"]
    assert page.locator("#count").inner_text() == "16 of 16 rows, 80 images"
    page.select_option("#failure", "found")  # of uce, one erased and one synonym image
    assert page.locator("#count").inner_text().startswith("2 of 16")
    page.select_option("#method", "esd")
    assert page.locator("#count").inner_text().startswith("0 of 16")
    page.select_option("#failure", "lost")  # one dog; the ship that it lost could not be scored
    assert page.locator("#count").inner_text().startswith("1 of 16")
    assert "✗ not found" in page.locator(".gridrow .tile").nth(1).inner_text()
    page.select_option("#failure", "unscored")
    assert page.locator("#count").inner_text().startswith("1 of 16")
    page.select_option("#failure", "")
    page.select_option("#method", "")
    page.select_option("#role", "kept")
    page.select_option("#concept", "dog")
    assert page.locator("#count").inner_text().startswith("4 of 16")
    page.select_option("#request", "")  # its data are loaded first
    page.wait_for_function("document.getElementById('count').textContent.startsWith('8 of 36')")
    page.uncheck("#controls")
    assert page.locator("[role=columnheader]").count() == 4


@pytest.mark.browser
def test_explorer_by_keyboard(made: Path, tab):
    page = tab(f"file://{made}/{NAME}.images.html")
    page.locator(".gridrow").first.wait_for()
    page.locator(".tile[tabindex='0']").focus()
    where = "() => [document.activeElement.dataset.r, document.activeElement.dataset.c].map(Number)"
    for key, expected in (("ArrowDown", [1, 0]), ("ArrowRight", [1, 1]), ("End", [1, 4]), ("Home", [1, 0])):
        page.keyboard.press(key)
        assert page.evaluate(where) == expected
    for _ in range(15):
        page.keyboard.press("PageDown")
    assert page.evaluate(where) == [15, 0], "the last row exists once the keys reach it"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    dialog = page.locator("dialog[open]")
    dialog.wait_for()
    assert "esd, erase:cat" in dialog.inner_text()
    page.keyboard.press("ArrowRight")
    page.locator("dialog h2", has_text="uce, erase:cat").wait_for()
    page.keyboard.press("Escape")
    assert page.evaluate(where) == [15, 2]


@pytest.mark.browser
def test_an_image_leads_down_to_where_it_comes_from(made: Path, run: Path, tab):
    r = json.loads((run / "records" / "esd.erase_cat.seed0.json").read_bytes())["rows"]
    name = anchors.image(r["role"][5], r["concept"][5], r["prompt"][5], r["seed"][5])
    page = tab(f"file://{made}/{NAME}.images.html#image/erase~3acat/esd/{name}")
    dialog = page.locator("dialog[open]")
    dialog.wait_for()
    text = dialog.inner_text()
    for part in (r["prompt"][5], str(r["seed"][5]), r["image"][5], "raw/", "images.npy row 5", "none,esd", "embedded"):
        assert part in text
    assert dialog.locator("a", has_text="Record").get_attribute("href") == f"records/{NAME}/esd.erase_cat.seed0.json"
    assert page.evaluate("document.activeElement.closest('dialog') !== null")


@pytest.mark.browser
def test_rows_exist_only_in_view(tab, tmp_path: Path):
    folder = make_run(tmp_path / "r", requests={"erase:cat": ["cat"]}, methods=("none", "uce"), per=150)
    site.write([folder], tmp_path / "page")
    page = tab(f"file://{tmp_path}/page/{NAME}.images.html")
    page.locator(".gridrow").first.wait_for()
    assert page.locator("#count").inner_text().startswith("600 of 600")
    assert page.locator(".gridrow").count() < 20
    page.evaluate("document.getElementById('grid').scrollTop = 1e6")
    page.locator(".gridrow[aria-rowindex='601']").wait_for()
    assert page.locator(".gridrow").count() < 20


@pytest.mark.browser
def test_explicit_images_are_blurred_until_asked_for(hidden: Path, tab):
    page = tab(f"file://{hidden}/{NAME}.images.html")
    page.locator(".gridrow").first.wait_for()
    tiles = page.locator(".gridrow .tile")
    every = page.locator(".gridrow .clip")
    assert page.locator(".gridrow .clip.veiled").count() == every.count() > 8
    blurred = "e => getComputedStyle(e.querySelector('.pic')).filter"
    assert "blur" in tiles.nth(1).evaluate(blurred)
    tiles.nth(1).click()
    assert page.locator("dialog[open]").count() == 0, "the first click only shows"
    assert "blur" not in tiles.nth(1).evaluate(blurred) and "blur" in tiles.nth(0).evaluate(blurred)
    page.reload()
    page.locator(".gridrow").first.wait_for()
    assert "blur" not in tiles.nth(1).evaluate(blurred), "remembered for the visit"
    tiles.nth(1).click()
    dialog = page.locator("dialog[open]")
    dialog.wait_for()
    assert dialog.locator(".clip.veiled").count() == 2, "the unedited one and the difference stay blurred"
    page.keyboard.press("Escape")
    page.check("#difference")
    assert page.locator(".gridrow .tile").nth(1).locator(".veiled").count() == 1
    again = tab(f"file://{hidden}/{NAME}.images.html")
    again.locator(".gridrow").first.wait_for()
    assert "blur" in again.locator(".gridrow .tile").nth(1).evaluate(blurred), "another visit knows nothing of it"


@pytest.mark.browser
def test_theme_is_kept_for_the_visit(made: Path, tab):
    page = tab(f"file://{made}/index.html", color_scheme="light")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    page.goto(f"file://{made}/{NAME}.html")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize(
    "name", ["index", NAME, f"{NAME}.images", f"{NAME}#cell", f"{NAME}.images#image", "claims.mace"]
)
def test_accessibility(made: Path, run: Path, tab, scheme: str, width: int, name: str):
    from axe_playwright_python.sync_playwright import Axe

    r = json.loads((run / "records" / "esd.erase_cat.seed0.json").read_bytes())["rows"]
    image = anchors.image(r["role"][0], r["concept"][0], r["prompt"][0], r["seed"][0])
    file, _, what = name.partition("#")
    anchor = {"": "", "cell": "#cell/erase~3acat/esd", "image": f"#image/erase~3acat/esd/{image}"}[what]
    page = tab(f"file://{made}/{file}.html{anchor}", color_scheme=scheme, viewport={"width": width, "height": 800})
    page.wait_for_timeout(400)
    assert page.locator("dialog[open]").count() == bool(what)
    found = Axe().run(page, options={"preload": False}).response["violations"]
    told = [f"{v['id']}: {v['nodes'][0]['html'][:200]} {v['nodes'][0]['failureSummary'][:200]}" for v in found]
    assert not told, "\n".join(told)


@pytest.mark.browser
def test_nothing_is_wider_than_a_phone(made: Path, tab):
    for name in ("index", NAME, f"{NAME}.images", "claims.mace"):
        page = tab(f"file://{made}/{name}.html", viewport={"width": 360, "height": 740})
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, name


@pytest.mark.browser
def test_paper_shows_all_requests_and_images(made: Path, tab):
    page = tab(f"file://{made}/{NAME}.html")
    page.emulate_media(media="print")
    assert page.locator(".request:visible").count() == 3 and page.locator(".tools:visible").count() == 0
    page = tab(f"file://{made}/{NAME}.images.html")
    page.locator(".gridrow").first.wait_for()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".gridrow").count() == 16


@pytest.mark.slow
@pytest.mark.browser
def test_ten_thousand_images_stay_quick(tab, tmp_path: Path):
    """Best of five, since the machine may be busy: a load below 2 s, sorting and filtering below 0.1 s."""
    asked = {f"erase:c{i}": [f"c{i}"] for i in range(10)}
    folder = make_run(tmp_path / "r", requests=asked, methods=("none", "esd", "uce", "noise", "grey"), per=53)
    written = site.write([folder], tmp_path / "page")
    assert written.images > 10_000
    end = "performance.getEntriesByType('navigation')[0].loadEventEnd"
    took = SimpleNamespace(load=[], filter=[], sort=[])
    for _ in range(5):
        page = tab(f"file://{tmp_path}/page/{NAME}.images.html")
        page.locator(".gridrow").first.wait_for()
        took.load.append(page.evaluate(end))
        page.select_option("#request", "")
        page.wait_for_function("document.getElementById('count').textContent.startsWith('2,120 of')")
        timed = "() => { const s = document.getElementById('failure'), t = performance.now(); s.value = 'found'; "
        timed += "s.dispatchEvent(new Event('change')); document.body.offsetHeight; return performance.now() - t; }"
        took.filter.append(page.evaluate(timed))
        page = tab(f"file://{tmp_path}/page/{NAME}.html")
        took.load.append(page.evaluate(end))
        head = "document.querySelector('[data-request]:not([hidden]) thead th:nth-child(3) button')"
        sort = f"() => {{ const t = performance.now(); {head}.click(); document.body.offsetHeight; "
        took.sort.append(page.evaluate(sort + "return performance.now() - t; }"))
    print(written, {name: round(min(values), 1) for name, values in vars(took).items()})
    assert sorted(took.load)[1] < 2000 and min(took.filter) < 100 and min(took.sort) < 100
