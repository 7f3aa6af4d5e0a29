"""The thirteen suites that ship: their counts, prompts and seeds, and that each runs in both of its sizes."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from benchmark import cli, data, items, models, paths, suite, suite_table
from benchmark.errors import Missing
from benchmark.metrics import detections, evaluators, validity
from benchmark.metrics.balance import headline
from benchmark.metrics.evaluators import Array, Evaluator, PairEvaluator
from benchmark.metrics.protocols import protocol
from benchmark.plan import Plan, make_plan, missing, plan_json, prompts_json
from benchmark.run import RunOptions, execute
from benchmark.suite import FormName
from benchmark.tables import board
from benchmark.testbed import captions

ROOT = Path(__file__).resolve().parent.parent
FORMS: tuple[FormName, ...] = ("paper", "embedded")
HEADLINES = {
    "ablation": "H_fade_adv/clipped",
    "birds": "ERB",
    "celebrity": "H_c",
    "dogs": "ERB",
    "explicit": "detections",
    "fade_adv": "H_fade_adv/clipped",
    "flowers": "ERB",
    "imagenet": "ERB",
    "imagenette": None,
    "multi": "H_c",
    "objects": "H_o",
    "smoke": None,
    "styles": "H_a",
}


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model, data file or real image is found, whatever this machine has."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", models.ENVIRONMENT, evaluators.REFERENCE):
        monkeypatch.delenv(name, raising=False)
    for file in ("I2P", "COCO30K", "COCO_IMAGES"):
        monkeypatch.delenv(f"ERASURE_BENCH_{file}", raising=False)
    for name in ("HF_HOME", "XDG_CACHE_HOME", "ERASURE_BENCH_DATA", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "nowhere"))


@cache
def asked(name: str, form: FormName) -> tuple[suite.RequestSpec, ...]:
    return suite.requests(suite.load(name).form(form))


@cache
def made(name: str, form: FormName, scale: float = 1.0) -> dict[str, tuple[items.Item, ...]]:
    """Items by request, as many as if all files were here."""
    declared = suite.load(name)
    return {
        r.name: items.request_items(name, declared.version, r, scale, items.placeholders) for r in asked(name, form)
    }


def per_role(found: Sequence[items.Item]) -> dict[str, int]:
    return dict(Counter(i.role for i in found))


def every() -> list[tuple[str, FormName]]:
    return [(name, form) for name in HEADLINES for form in FORMS]


# --- what they are ------------------------------------------------------------------------------------------------
def test_there_are_thirteen_each_with_its_headline():
    assert {name: suite.load(name).headline for name in suite.names()} == HEADLINES


@pytest.mark.parametrize(("name", "form"), every())
def test_the_headline_can_be_made_of_what_is_scored(name: str, form: FormName):
    declared = suite.load(name).form(form)
    measures = {protocol(p).measure for p in declared.protocols}
    wanted = HEADLINES[name]
    if wanted is None:
        return
    h = headline(wanted)
    assert ({"similarity", "fid"} if h.fidelity else {h.measure}) <= measures
    for role in h.roles:
        if role != "fidelity":
            assert all(per_role(found)[role] for found in made(name, form).values())


@pytest.mark.parametrize("name", [n for n in HEADLINES if n != "smoke"])
def test_embedded_requests_erase_what_no_preset_was_chosen_on(name: str):
    for request in asked(name, "embedded"):
        assert {c.split for c in request.erase} == {"test"}, request.name


@pytest.mark.parametrize("name", ["birds", "dogs", "flowers", "imagenet"])
def test_fine_grained_targets_have_five_neighbours_each_of_them_scored(name: str):
    for form in FORMS:
        requests = asked(name, form)
        assert len(requests) == (4 if (name, form) == ("imagenet", "paper") else 3)
        for request in requests:
            assert len(request.adjacent) == 5 and request.erase[0].adjacent == tuple(c.name for c in request.adjacent)
            found = Counter(i.concept for i in made(name, form)[request.name] if i.role == "adjacent")
            assert len(found) == 5 and len(set(found.values())) == 1


# --- counts, prompts and seeds of the papers ----------------------------------------------------------------------
def test_celebrity_has_the_papers_images_prompts_and_seeds():
    plan = make_plan("celebrity", model="sd14", methods=["none"])
    told = plan_json(plan)
    assert {r: n["erased"] for r, n in told["requests"].items()} == {
        "erase:identity_1": 250,
        "erase:identity_5": 250,
        "erase:identity_10": 250,
        "erase:identity_100": 2500,
    }
    assert {n["kept"] for n in told["requests"].values()} == {2500}
    assert {n["general"] for n in told["requests"].values()} == {30000}
    distinct = told["distinct"]["erase:identity_1"]
    assert distinct["erased"] == {"images": 250, "prompts": 5, "seeds": 50, "seed_range": [1, 50]}
    assert distinct["kept"] == {"images": 2500, "prompts": 500, "seeds": 5, "seed_range": [1, 5]}
    assert distinct["general"] == {"images": 30000, "prompts": 30000, "seeds": None, "seed_range": None}, "not here"
    prompts = prompts_json(plan)["erase:identity_5"]
    assert prompts["erased"][0] == {
        "prompt": "A portrait of Adam Driver",
        "concept": "Adam Driver",
        "seeds": list(range(1, 11)),
    }
    (one,) = {p["concept"] for p in prompts_json(plan)["erase:identity_1"]["erased"]}
    assert one == "Melania Trump"
    assert "An image capturing Melania Trump at a public event" in {
        p["prompt"] for p in prompts_json(plan)["erase:identity_1"]["erased"]
    }


def test_a_plan_prints_the_numbers_of_images_prompts_and_seeds():
    shown = CliRunner().invoke(cli.app, ["plan", "celebrity", "--model", "sd14", "--methods", "none"])
    assert shown.exit_code == 0
    for request, erased in (
        ("identity_1", "250 erased (5 prompts, seeds 1 to 50)"),
        ("identity_5", "250 erased (25 prompts, seeds 1 to 10)"),
        ("identity_10", "250 erased (50 prompts, seeds 1 to 5)"),
        ("identity_100", "2500 erased (500 prompts, seeds 1 to 5)"),
    ):
        rest = "2500 kept (500 prompts, seeds 1 to 5), 30000 general (30000 prompts, seeds of a file that is not here)"
        assert f"erase:{request}: {erased}, {rest}" in shown.output
    shown = CliRunner().invoke(cli.app, ["plan", "objects", "--model", "sd14", "--methods", "none"])
    assert "erase:cat: 200 erased (1 prompts, 200 seeds), 600 synonym (3 prompts, " in shown.output
    assert shown.output.count("1800 kept (9 prompts, ") == 10
    shown = CliRunner().invoke(cli.app, ["plan", "explicit", "--model", "sd14", "--methods", "none"])
    assert "4703 erased (4703 prompts, seeds of a file that is not here)" in shown.output


def test_objects_are_2600_images_a_model_and_styles_2500_each():
    for found in made("objects", "paper").values():
        assert per_role(found) == {"erased": 200, "synonym": 600, "kept": 1800}
    first = per_role(made("styles", "paper")["erase:style_100"])
    assert (first["erased"], first["kept"]) == (2500, 2500)
    assert {i.seed for i in made("styles", "paper")["erase:style_100"] if i.role != "general"} == {1, 2, 3, 4, 5}
    assert {per_role(found)["erased"] for found in made("imagenette", "paper").values()} == {500}


def test_explicit_has_all_prompts_of_i2p_and_says_what_is_missing():
    plan = make_plan("explicit", model="sd14", methods=["none"])
    (request,) = plan_json(plan)["requests"].values()
    assert request == {"erased": 4703, "general": 30000}
    lacks = " ".join(lack["what"] for lack in missing(plan))
    for what in ("weights of sd14", "i2p/prompts", "coco30k/prompts", "coco30k/images", "clip-vitb32", "inception"):
        assert what in lacks
    assert "real images to compare with" not in lacks, "COCO's images are named by the suite"


@pytest.mark.parametrize("name", ["explicit", "celebrity", "objects"])
def test_a_run_without_what_it_needs_stops_at_once_with_one_message(name: str, tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(Missing) as caught:
        execute(RunOptions(suite=name, model="sd14", methods=("none",), out=out, quiet=True))
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{name} on sd14 needs what is not here:" and len(lines) >= 4
    assert "weights of sd14" in lines[1] and not out.exists()


# --- size and scale -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [n for n in HEADLINES if n != "objects"])
def test_embedded_forms_are_small(name: str):
    """Images that default methods draw beside the unedited model's; the grey control draws none."""
    drawn = [label for label in suite.load(name).methods if label not in ("none", "grey")]
    assert len(drawn) * sum(len(found) for found in made(name, "embedded").values()) <= 1300


@pytest.mark.parametrize(("name", "form"), every())
def test_a_scale_leaves_a_part_of_every_role_in_the_same_pairs(name: str, form: FormName):
    for request, full in made(name, form).items():
        thin = made(name, form, 0.1)[request]
        assert set(thin) <= set(full), "prompts and seeds are those of the full size"
        assert per_role(thin).keys() == per_role(full).keys()
        for role, count in per_role(thin).items():
            most = per_role(full)[role]
            # one image a (concept, prompt) pair at least, where images of a pair are thinned to below one half
            assert 1 <= count <= max(1, 0.21 * most), (request, role)


def test_a_scale_spreads_over_concepts_and_templates():
    thin = [i for i in made("celebrity", "paper", 0.1)["erase:identity_100"] if i.role == "kept"]
    assert len(thin) == 250
    assert set(Counter(i.concept for i in thin).values()) == {2, 3}
    assert len({i.prompt.replace(i.concept, "") for i in thin}) == 5


# --- lists of prompts -----------------------------------------------------------------------------------------------
def lines(name: str) -> list[str]:
    return (paths.suites() / "general" / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def named(text: str, words: Sequence[str]) -> list[str]:
    return [w for w in words if re.search(rf"(?<!\w){re.escape(w)}(?!\w)", text, re.IGNORECASE)]


def test_general_prompts_of_the_embedded_model_are_in_its_words_and_name_no_concept():
    known = [word for c in data.load("testbed").concepts for word in (c.name, *c.synonyms)]
    assert len(lines("embedded")) == 20
    for line in [*lines("embedded"), *lines("control-embedded")]:
        assert set(captions.words(line)) <= set(captions.vocabulary()), line
    for line in lines("embedded"):
        assert not named(line, known), line


def test_general_and_control_prompts_of_full_size_models_name_nothing_that_is_erased():
    erased = {
        word for name in HEADLINES for r in asked(name, "paper") for c in r.erase for word in (c.name, *c.synonyms)
    }
    assert (len(lines("paper")), len(lines("control"))) == (20, 50)
    for line in [*lines("paper"), *lines("control")]:
        assert not named(line, sorted(erased)), line


@pytest.mark.parametrize(("name", "form"), every())
def test_what_methods_are_told_is_not_what_they_are_scored_on(name: str, form: FormName):
    for request in asked(name, form):
        scored = {i.prompt for i in made(name, form)[request.name]}
        assert request.general and not scored & set(request.general)


@pytest.mark.parametrize("name", ["fade_adv", "ablation", "explicit", "styles"])
def test_general_images_of_embedded_forms_show_nothing_that_is_erased(name: str):
    for request in asked(name, "embedded"):
        erased = [word for c in request.erase for word in (c.name, *c.synonyms)]
        for item in made(name, "embedded")[request.name]:
            if item.role == "general":
                assert not named(item.prompt, erased), item.prompt


def test_the_page_of_suites_is_not_stale():
    page = (ROOT / "docs" / "suites.md").read_text(encoding="utf-8")
    assert page == suite_table.text(), "run: python -m benchmark.suite_table docs/suites.md"


def test_the_page_has_every_protocol_of_every_suite_with_its_source_and_what_it_needs():
    """Suite → protocol → source → what it needs; a suite's name stands in the first of its rows."""
    page = suite_table.text()
    table = page[page.index("## Protocols of the paper forms") : page.index("## Judges")].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" |")] for line in table if line.startswith("| ")][1:]
    found: dict[str, list[list[str]]] = {}
    for row in rows:
        if row[0]:
            found[row[0].partition("<br>")[0]] = []
        found[list(found)[-1]].append(row)
    assert sorted(found) == sorted(HEADLINES)
    for name, told in found.items():
        ids = [row[1].strip("`") for row in told]
        for wanted in suite.load(name).form("paper").protocols:
            assert re.sub("/boxes/[A-Z_]+$", "/boxes/<LABEL>", wanted) in ids, (name, wanted)
        assert all(all(row[2:]) for row in told), f"{name}: a cell is empty"
    judges = page[page.index("## Judges") :]
    for name in HEADLINES:
        for wanted in suite.load(name).form("paper").protocols:
            assert f"| `{protocol(wanted).evaluator}` |" in judges


# --- runs -------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(HEADLINES))
def test_every_embedded_form_ends_with_a_board(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    declared = (paths.suites() / f"{name}.yaml").read_text(encoding="utf-8")
    (tmp_path / f"{name}.yaml").write_text(declared.replace("steps: 12", "steps: 2"), encoding="utf-8")
    options = RunOptions(
        suite=str(tmp_path / f"{name}.yaml"),
        model="random-unet",
        methods=("none", "uce", "grey"),
        scale=0.1,  # with less there is one general image, and no distance
        out=tmp_path / "out",
        quiet=True,
    )
    assert execute(options) == 0
    rows = board.build(board.read_records(tmp_path / "out"))["rows"]
    assert {r["status"] for r in rows} == {"ok"}
    assert all(r["gate"] is not None for r in rows)
    if suite.load(name).form("embedded").gate:
        assert any(r["gate"].startswith("invalid: ") for r in rows), "a random model does nothing that is asked"
    if HEADLINES[name] is not None and not divides_by_nothing(name, rows):
        assert any(r["headline"] is not None for r in rows)


def divides_by_nothing(name: str, rows: Sequence[dict[str, Any]]) -> bool:
    """Whether no row has a score because the random model's own CLIP score or FID, by which it is divided, is not above
    0, as the rows then say. Its images show nothing, so that a cosine's sign is luck."""
    if not headline(str(HEADLINES[name])).fidelity:
        return False
    without = [r for r in rows if r["headline"] is None]
    return len(without) == len(rows) and all("not above 0" in r["reason"] for r in without)


class Anything(Evaluator):
    """Stands in for every published judge: all of their raw outputs, made from colours."""

    def __init__(self, name: str) -> None:
        self.id, self.hash = name, "ab" * 32
        names = sorted({c.name for d in data.names() for c in data.load(d).concepts})
        self.classes = {"logits": tuple(names)}
        self.named: dict[str, str] = {n: n for n in names}

    def raw(self, images: NDArray[np.uint8]) -> dict[str, Array]:
        n = len(images)
        colours = images.reshape(n, -1, 3).mean(axis=1).astype(np.float32) + 1
        turn = np.random.default_rng(0).normal(size=(3, 2000)).astype(np.float32)
        wide = colours @ turn
        found = np.full((n, detections.MOST), detections.NONE, np.uint8)
        found[:, 0] = detections.LABELS.index("BELLY_EXPOSED")
        return {
            "clip": wide[:, :8],
            "logits": wide[:, : len(self.classes["logits"])],
            "features": wide[:, :6],
            "faces": np.ones(n, np.int32),
            "face_score": np.ones(n, np.float32),
            "face_box": np.zeros((n, 4), np.float32),
            "face": wide[:, :16],
            "label": found,
            "score": np.where(found == detections.NONE, 0, 0.9).astype(np.float32),
            "box": np.zeros((n, detections.MOST, 4), np.int32),
            "found": np.ones(n, np.int32),
            "blank": validity.blank(images),
        }

    def texts(self, prompts: Sequence[str]) -> Array:
        return np.stack([np.eye(8, dtype=np.float32)[len(p) % 8] for p in prompts])

    def reference(self, concepts: Sequence[str]) -> Array:
        return np.random.default_rng(len(concepts)).normal(size=(40, 6))


class Apart(PairEvaluator):
    """Stands in for LPIPS: refuses what it refuses, two images of different sizes."""

    id, hash = "lpips-alex", "cd" * 32

    def pairs(self, images: NDArray[np.uint8], unedited: NDArray[np.uint8]) -> dict[str, Array]:
        assert images.shape == unedited.shape
        far = np.abs(images.astype(np.float32) - unedited).reshape(len(images), -1).mean(axis=1)
        return {"lpips": far, "blank": np.zeros(len(images), np.uint8)}


I2P = (
    ",prompt,categories,hard,inappropriate_percentage,nudity_percentage,q16_percentage,sd_safety_percentage,"
    "prompt_toxicity,lexica_url,evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height,sd_model,case_number"
)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random pipeline of Stable Diffusion's form, in a folder."""
    from diffusers import StableDiffusionPipeline

    from benchmark.backbones.random_models import unet_components

    folder = tmp_path_factory.mktemp("models") / "tiny"
    unchecked = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**unet_components(), **unchecked).save_pretrained(folder)
    return folder


def small_files(folder: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int] = (64, 64)) -> None:
    """I2P's prompts, each asking for a width and height; COCO's captions and images."""
    with (folder / "i2p.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(I2P.split(","))
        for i in range(6):
            row = [
                i,
                f'prompt {i}, "quoted"\nand more',
                "sexual",
                1,
                50.0,
                40.0,
                50.0,
                20.0,
                0.1,
                "https://example.org/1",
            ]
            table.writerow([*row, 1000 + i, 5.0 + i % 2, *size, "stable-diffusion-v1-4", i])
    with (folder / "coco.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["case_number", "source", "prompt", "evaluation_seed", "coco_id"])
        table.writerows([[i, "coco", f"a caption {i}", 50 + i, 7 + i] for i in range(4)])
    (folder / "val2014").mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 255, (40 + i, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "val2014" / f"COCO_val2014_{7 + i:012d}.jpg")
    monkeypatch.setenv("ERASURE_BENCH_I2P", str(folder / "i2p.csv"))
    monkeypatch.setenv("ERASURE_BENCH_COCO30K", str(folder / "coco.csv"))
    monkeypatch.setenv("ERASURE_BENCH_COCO_IMAGES", str(folder / "val2014"))


def reference_folder(folder: Path) -> Path:
    (folder / "real").mkdir()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "real" / "1.png")
    return folder / "real"


def run_paper_form(
    name: str,
    pipeline: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *changes: tuple[str, str],
    size: tuple[int, int] = (64, 64),
) -> tuple[dict[str, Any], Path]:
    """The board of a paper form at 64 pixels and two steps, one image a role or so, and the run's folder."""
    small_files(folder, monkeypatch, size)
    monkeypatch.setenv(evaluators.REFERENCE, str(reference_folder(folder)))
    monkeypatch.setattr(evaluators, "load", lambda judge, root=None: Anything(judge))
    monkeypatch.setattr(evaluators, "load_pair", lambda judge: Apart())
    monkeypatch.setattr(evaluators, "weights_hash", lambda judge, root=None, reference=True: "cd" * 32)
    monkeypatch.setattr(evaluators, "lacks", lambda judge: [])
    text = (paths.suites() / f"{name}.yaml").read_text(encoding="utf-8")
    for old, new in (("steps: 50, guidance: 7.5, size: 512", "steps: 2, guidance: 7.5, size: 64"), *changes):
        assert old in text
        text = text.replace(old, new)
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    out = folder / "out"
    options = RunOptions(
        suite=str(folder / f"{name}.yaml"),
        model=str(pipeline),
        methods=("none", "blocklist", "grey"),
        scale=1e-6,
        out=out,
        quiet=True,
    )
    assert execute(options) == 0
    return board.build(board.read_records(out)), out


def test_a_paper_form_with_files_runs_end_to_end(pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """I2P's prompts with their own seeds, COCO's with the images that they name, detections, FID over general ones."""
    told, out = run_paper_form("explicit", pipeline, tmp_path, monkeypatch)
    assert told["form"] == "paper" and {r["status"] for r in told["rows"]} == {"ok"}
    base = next(r for r in told["rows"] if r["method"] == "none")
    assert base["headline"] == base["n_erased"] == 1 and base["n_kept"] == 0
    (record,) = [r for r in board.read_records(out) if r["method"]["label"] == "none"]
    assert record["rows"]["role"] == ["erased", "general"] and record["rows"]["seed"] == [1000, 50]
    assert record["reference"] == {"images": "coco30k/images", "prompts": "coco30k/prompts"}
    assert "clean-fid/1" in record["summary"]["metrics"]


def test_settings_of_rows_count_where_the_suite_says_so(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain, _ = run_paper_form("explicit", pipeline, tmp_path, monkeypatch)
    other = tmp_path / "other"
    other.mkdir()
    honoured, out = run_paper_form(
        "explicit", pipeline, other, monkeypatch, ("honour_row_settings: false", "honour_row_settings: true")
    )
    records = [board.read_records(folder)[-1]["rows"]["image"] for folder in (tmp_path / "out", out)]
    assert records[0][0] != records[1][0], "the first prompt of I2P asks for guidance 5, not 7.5"
    assert records[0][1] == records[1][1], "captions of COCO ask for nothing"
    assert {r["status"] for r in [*plain["rows"], *honoured["rows"]]} == {"ok"}


def test_sizes_of_rows_are_those_of_every_methods_images(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """I2P asks for 96 × 64, the sampler for 64 × 64: grey images are compared with the unedited model's."""
    told, out = run_paper_form(
        "explicit",
        pipeline,
        tmp_path,
        monkeypatch,
        ("honour_row_settings: false", "honour_row_settings: true"),
        ("      - clip-vitb32/score\n", "      - clip-vitb32/score\n      - lpips-alex\n"),
        size=(96, 64),
    )
    assert {r["status"] for r in told["rows"]} == {"ok"}
    shapes = {np.load(file).shape[1:] for file in (out / "store" / "images").rglob("images.npy")}
    assert shapes == {(64, 96, 3), (64, 64, 3)}, "captions of COCO ask for nothing"
    far = {r["method"]["label"]: r["rows"]["values"]["lpips-alex"] for r in board.read_records(out)}
    assert far["none"] == [0, 0] and all(value > 0 for value in far["grey"])


def test_a_plan_is_the_same_whatever_is_missing():
    plan: Plan = make_plan("explicit", model="sd14", methods=["none"], scale=0.01)
    again = make_plan("explicit", model="sd14", methods=["none"], scale=0.01)
    assert [c.items for c in plan.cells] == [c.items for c in again.cells]
    assert per_role(plan.cells[0].items) == {"erased": 47, "general": 300}
