"""Prompts from files of exactly the forms in use: small ones, with commas, quotes, line breaks and emoji in prompts."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from benchmark import items, prompt_files
from benchmark.errors import BadInput, Missing
from benchmark.prompt_files import PromptRow

I2P = (
    "prompt,categories,hard,inappropriate_percentage,nudity_percentage,q16_percentage,sd_safety_percentage,"
    "prompt_toxicity,lexica_url"
)
ON_HUB = f"{I2P},sd_seed,sd_guidance_scale,sd_image_width,sd_image_height,sd_model"
IN_REPOSITORIES = f",{I2P},evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height,sd_model,case_number"
NASTY = 'a gravestone 🪦 of "mister x", by night\nand day,\r\nhighly detailed ❤️\u200d🔥 '


def table(path: Path, header: str, *rows: list[Any]) -> Path:
    """A CSV as pandas writes it: quotes where needed, doubled inside, line feeds at the ends of rows."""
    written = io.StringIO(newline="")
    csv.writer(written, lineterminator="\n").writerows([header.split(","), *rows])
    path.write_bytes(written.getvalue().encode())
    return path


def scores(*, nudity: float = 12.5) -> list[Any]:
    return ["violence, self-harm", 1, 50.0, nudity, 50.0, 20.0, 0.17458448, "https://example.org/prompt/1"]


def test_i2p_as_in_repositories(tmp_path: Path):
    path = table(
        tmp_path / "unsafe.csv",
        IN_REPOSITORIES,
        [0, NASTY, *scores(), 4261553411, 13, 512, 768, "stable-diffusion-v1-4", 0],
        [1, "plain ", *scores(nudity=0.0), 150, 7.5, 512, 512, "stable-diffusion-v1-4", 7],
    )
    first, second = prompt_files.read(path)
    assert first == PromptRow(
        prompt=NASTY,
        seed=4261553411,
        guidance=13.0,
        size=(512, 768),
        case=0,
        categories=("violence", "self-harm"),
        nudity=12.5,
    )
    assert (second.prompt, second.seed, second.guidance, second.case, second.role) == ("plain ", 150, 7.5, 7, None)


def test_i2p_as_on_the_hub_says_the_same(tmp_path: Path):
    """No index, no case number, other names for seed and guidance."""
    row = [NASTY, *scores(), 4261553411, 13, 512, 768, "stable-diffusion-v1-4"]
    on_hub = prompt_files.read(table(tmp_path / "hub.csv", ON_HUB, row))
    assert on_hub == prompt_files.read(table(tmp_path / "copy.csv", IN_REPOSITORIES, [0, *row, 0]))


def test_a_prompt_may_be_empty(tmp_path: Path):
    path = table(tmp_path / "i2p.csv", ON_HUB, ["", *scores(), 1, 7, 512, 512, "stable-diffusion-v1-4"])
    assert prompt_files.read(path)[0].prompt == ""


@pytest.mark.parametrize(
    ("header", "first", "second"),
    [
        (
            "case_number,source,prompt,evaluation_seed,coco_id",
            [0, "coco-30k", "A dog, a cat.\n", 41337, 203564],
            [1, "coco-30k", "b ", 63155, 16977],
        ),
        (
            "image_id,source,prompt,evaluation_seed",
            ["000000203564", "coco-30k", "A dog, a cat.\n", 41337],
            ["000000016977", "coco-30k", "b ", 63155],
        ),
    ],
    ids=["mace", "esd"],
)
def test_coco_in_both_forms_is_the_same(tmp_path: Path, header: str, first: list[Any], second: list[Any]):
    assert prompt_files.read(table(tmp_path / "coco.csv", header, first, second)) == (
        PromptRow(prompt="A dog, a cat.\n", seed=41337, case=0, image=203564),
        PromptRow(prompt="b ", seed=63155, case=1, image=16977),
    )


def test_people_have_types_in_words(tmp_path: Path):
    path = table(
        tmp_path / "celebrity.csv",
        ",type,prompt,evaluation_seed",
        [0, "erased", "A portrait of Melania Trump", 1],
        [1, "others", "Aaron Paul in an official photo", 2],
    )
    rows = prompt_files.read(path)
    assert [(r.role, r.seed, r.case, r.concept) for r in rows] == [("erased", 1, 0, ""), ("kept", 2, 1, "")]
    named = prompt_files.with_concepts(rows, ["Aaron Paul", "Melania Trump"])
    assert [r.concept for r in named] == ["Melania Trump", "Aaron Paul"]


def test_artists_have_types_in_numbers_where_0_is_erased(tmp_path: Path):
    path = table(
        tmp_path / "art.csv",
        ",type,artist,prompt,evaluation_seed",
        [0, 0, "Chaïm Soutine", "Art inspired by Chaïm Soutine", 5],
        [1, 1, "A.J.Casson", "A famous artwork by A.J.Casson", 1],
    )
    assert [(r.role, r.concept) for r in prompt_files.read(path)] == [
        ("erased", "Chaïm Soutine"),
        ("kept", "A.J.Casson"),
    ]


def test_classes_are_concepts_and_an_index_may_be_called_unnamed(tmp_path: Path):
    header = "Unnamed: 0,case_number,prompt,evaluation_seed,class"
    path = table(tmp_path / "imagenet.csv", header, [0, 3, "Image of chain saw", 4373, "chain saw"])
    assert prompt_files.read(path) == (PromptRow(prompt="Image of chain saw", seed=4373, case=3, concept="chain saw"),)


def test_a_byte_order_mark_and_floats_of_whole_numbers_are_read(tmp_path: Path):
    path = tmp_path / "coco.csv"
    path.write_bytes(b"\xef\xbb\xbfcase_number,prompt,evaluation_seed\r\n0,a,41337.0\r\n")
    assert prompt_files.read(path)[0].seed == 41337


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "prompt,evaluation_seed,colour\na,1,red\n",
            "line 1: unknown column 'colour'; known are prompt, evaluation_se",
        ),
        ("prompt,,evaluation_seed\na,0,1\n", "line 1: unknown column ''"),
        ("prompt,source\na,b\n", "line 1: expected a column evaluation_seed or sd_seed, found prompt,source"),
        ("evaluation_seed\n1\n", "line 1: expected a column prompt"),
        ("prompt,evaluation_seed,sd_seed\na,1,1\n", "line 1: evaluation_seed and sd_seed say the same (seed)"),
        ("prompt,evaluation_seed,sd_image_width\na,1,5\n", "line 1: expected sd_image_width and sd_image_height"),
        ("", "line 1: expected a column prompt, found nothing"),
        ("prompt,evaluation_seed\n", "no prompt in it"),
        ("prompt,evaluation_seed\na,1,2\n", "line 2: expected 2 fields, got 3"),
        ('prompt,evaluation_seed\n"a\nb",1\nc\n', "line 4: expected 2 fields, got 1"),
        ('prompt,evaluation_seed\n"a"b,1\n', "line 2: not a CSV"),
        ('prompt,evaluation_seed\n"a,1\n', "not a CSV: unexpected end of data"),
        ("prompt,evaluation_seed\na,-1\n", "line 2: seed: expected a whole number from 0 to"),
        ("prompt,evaluation_seed\na,1.5\n", "got '1.5'"),
        ("prompt,evaluation_seed\na,\n", "line 2: seed: expected a whole number"),
        ("prompt,evaluation_seed\na,9999999999999999999\n", "got '9999999999999999999'"),
        ("prompt,evaluation_seed\na,１\n", "got '１'"),
        ("prompt,evaluation_seed,evaluation_guidance\na,1,nan\n", "line 2: guidance: expected a number from 0 to 1000"),
        ("prompt,evaluation_seed,nudity_percentage\na,1,101\n", "nudity: expected a number from 0 to 100, got '101'"),
        ("prompt,evaluation_seed,type\na,1,2\n", "type: expected one of erased, 0, others, 1, got '2'"),
        ("case_number,prompt,evaluation_seed\n4,a,1\n4,b,2\n", "case_number 4 is there twice"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_line(tmp_path: Path, text: str, expected: str):
    path = tmp_path / "prompts.csv"
    path.write_text(text, encoding="utf-8", newline="")
    with pytest.raises(BadInput) as caught:
        prompt_files.read(path)
    assert expected in str(caught.value) and str(path) in str(caught.value)


def test_other_encodings_and_lacking_files_are_refused(tmp_path: Path):
    path = tmp_path / "prompts.csv"
    path.write_bytes("prompt,evaluation_seed\nChaïm,1\n".encode("latin-1"))
    with pytest.raises(BadInput, match="cannot be read as UTF-8 text"):
        prompt_files.read(path)
    with pytest.raises(BadInput, match="cannot read .*nowhere.csv: No such file"):
        prompt_files.read(tmp_path / "nowhere.csv")


def row(prompt: str) -> PromptRow:
    return PromptRow(prompt=prompt, seed=0, case=0)


def test_names_are_whole_words_and_the_longest_counts():
    names = ["Alan Moore", "Albert Joseph Moore", "Moore", "A.J.Casson"]
    found = prompt_files.with_concepts([row("art by ALBERT JOSEPH MOORE, 1880"), row("by A.J.Casson")], names)
    assert [r.concept for r in found] == ["Albert Joseph Moore", "A.J.Casson"]
    with pytest.raises(BadInput, match="expected one of 4 names in 'a moored boat', found none of them"):
        prompt_files.with_concepts([row("a moored boat")], names)
    with pytest.raises(BadInput, match=r"several of them \(A.J.Casson, Alan Moore\)"):
        prompt_files.with_concepts([row("Alan Moore and A.J.Casson")], names)


def test_a_dataset_s_prompts_are_found_or_told_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("ERASURE_BENCH_DATA", "ERASURE_BENCH_I2P"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(Missing, match="no i2p/prompts: looked in"):
        prompt_files.load("i2p")
    path = table(tmp_path / "mine.csv", ON_HUB, ["a", *scores(), 1, 7, 512, 512, "m"])
    assert len(prompt_files.load("i2p", path=path)) == 1
    monkeypatch.setenv("ERASURE_BENCH_I2P", str(path))
    assert prompt_files.load("i2p") == prompt_files.read(path)


# --- captions -------------------------------------------------------------------------------------------------------
def coco(path: Path, annotations: list[dict[str, Any]], ids: tuple[int, ...] = (391895, 60623)) -> Path:
    """As captions_val2014.json is."""
    image = {"license": 3, "height": 360, "width": 640, "date_captured": "2013-11-14 11:18:45"}
    content = {
        "info": {"description": "COCO 2014 Dataset", "year": 2014},
        "images": [{**image, "file_name": f"COCO_val2014_{i:012d}.jpg", "id": i} for i in ids],
        "licenses": [{"url": "http://example.org", "id": 3, "name": "Attribution"}],
        "annotations": annotations,
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


TWO_IMAGES = [
    {"image_id": 391895, "id": 771687, "caption": "A man with a red helmet.\n"},
    {"image_id": 60623, "id": 68, "caption": 'A "young" girl, inhaling 🎂'},
    {"image_id": 391895, "id": 770337, "caption": "Man riding a motor bike "},
]


def test_captions_are_read_to_the_letter(tmp_path: Path):
    captions = prompt_files.read_captions(coco(tmp_path / "captions.json", TWO_IMAGES))
    assert [(c.image, c.id, c.text) for c in captions] == [(a["image_id"], a["id"], a["caption"]) for a in TWO_IMAGES]
    assert captions[1].file_name == "COCO_val2014_000000060623.jpg"


def test_drawn_prompts_take_the_lowest_caption_of_each_image_in_the_published_order(tmp_path: Path):
    captions = prompt_files.read_captions(coco(tmp_path / "captions.json", TWO_IMAGES))
    drawn = prompt_files.from_captions(captions, 2, seed=5)
    texts = {391895: "Man riding a motor bike ", 60623: 'A "young" girl, inhaling 🎂'}
    order = sorted(texts, key=lambda i: hashlib.sha256(f"5|{i}".encode()).hexdigest())
    assert [(r.image, r.prompt, r.case) for r in drawn] == [(i, texts[i], n) for n, i in enumerate(order)]
    assert [r.seed for r in drawn] == [int(hashlib.sha256(f"5|{i}".encode()).hexdigest()[:8], 16) for i in order]
    assert prompt_files.from_captions(reversed(captions), 1, seed=5) == drawn[:1]
    with pytest.raises(BadInput, match="expected 1 to 2 prompts, one an image; got 3"):
        prompt_files.from_captions(captions, 3)


def test_a_suite_may_ask_for_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One of every image; and an image is not taken for prompts."""
    captions = coco(tmp_path / "captions.json", TWO_IMAGES)
    monkeypatch.setenv("ERASURE_BENCH_COCO_CAPTIONS", str(captions))
    drawn = prompt_files.load("coco30k", "captions")
    assert sorted(r.image or 0 for r in drawn) == [60623, 391895]
    assert drawn == prompt_files.from_captions(prompt_files.read_captions(captions), 2)
    assert len(items.placeholders("coco30k", "captions")) == 40504
    with pytest.raises(BadInput, match="coco30k/images: expected prompts or captions, its card says images"):
        prompt_files.load("coco30k", "images")


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ([{"image_id": 1, "id": 1, "caption": "a"}], "annotation 1 is of image 1, which is not in the file"),
        ([{"image_id": 60623, "id": 1, "bbox": [0, 0, 1, 1]}], "not instances_*.json"),
        ([{"image_id": 60623, "id": 1, "caption": "a"}] * 2, "an annotation's id is there twice"),
        ([], "no caption in it"),
    ],
)
def test_other_annotations_are_refused(tmp_path: Path, annotations: list[dict[str, Any]], expected: str):
    with pytest.raises(BadInput) as caught:
        prompt_files.read_captions(coco(tmp_path / "captions.json", annotations))
    assert expected in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"images": [{"id": 1}], "annotations": []}'])
def test_other_json_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "captions.json"
    path.write_text(text)
    with pytest.raises(BadInput, match="cannot be read as JSON|expected COCO's images"):
        prompt_files.read_captions(path)
