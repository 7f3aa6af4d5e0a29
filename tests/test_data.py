"""Datasets: the shipped lists are what their cards say, and malformed files are refused with line and column."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmark import data
from benchmark.data import Selector
from benchmark.errors import BadInput

HEADER = "name,group,kind,synonyms,anchor,split,weight\n"


@pytest.mark.parametrize("name", data.names())
def test_shipped_datasets_load_with_distinct_names_and_a_full_card(name: str):
    dataset = data.load(name)
    names = [c.name for c in dataset.concepts]
    assert len(set(names)) == len(names)
    assert names or dataset.card.files
    assert all((dataset.card.title, dataset.card.source, dataset.card.licence, dataset.card.citation, dataset.card.get))


def test_the_shipped_datasets_are_there():
    public = "artists celebrities cifar10 coco30k cub200 i2p imagenet imagenette oxford_flowers stanford_dogs testbed"
    assert set(public.split()) <= set(data.names())


def test_cifar10_has_ten_classes_with_three_synonyms_each():
    concepts = data.load("cifar10").concepts
    assert [c.name for c in concepts] == "airplane automobile bird cat deer dog frog horse ship truck".split()
    assert all(len(c.synonyms) == 3 and c.anchor and c.kind == "object" for c in concepts)
    # An anchor that is a synonym, or another class, would map the erased class to what it is tested on.
    words = {c.name for c in concepts} | {s for c in concepts for s in c.synonyms}
    assert not words & {c.anchor for c in concepts}


def test_testbed_has_the_same_ten_classes_with_the_same_synonyms_and_splits():
    of_testbed = data.load("testbed").select(Selector(group="cifar"))
    of_cifar = data.load("cifar10").concepts
    assert [(c.name, c.synonyms, c.split) for c in of_testbed] == [(c.name, c.synonyms, c.split) for c in of_cifar]


@pytest.mark.parametrize(("group", "size"), [("erase_1", 1), ("erase_5", 5), ("erase_10", 10), ("erase_100", 100)])
def test_celebrity_groups_have_their_sizes(group: str, size: int):
    assert len(data.load("celebrities").select(Selector(group=group))) == size


def test_celebrity_groups_are_those_of_the_paper():
    dataset = data.load("celebrities")
    assert [c.name for c in dataset.select(Selector(group="erase_1"))] == ["Melania Trump"]
    assert [c.name for c in dataset.select(Selector(group="erase_5"))][0::4] == ["Adam Driver", "Andrew Garfield"]
    assert len(dataset.select(Selector(group="keep"))) == 100
    assert len(dataset.concepts) == 200


def test_select_combines_conditions_and_keeps_the_order_asked():
    dataset = data.load("cifar10")
    assert [c.name for c in dataset.select(Selector(split="validation"))] == ["airplane", "dog", "frog", "ship"]
    assert [c.name for c in dataset.select(Selector(names=("truck", "cat")))] == ["truck", "cat"]
    assert len(dataset.select(Selector())) == 10


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (Selector(names=("trukc",)), "unknown concept of dataset cifar10 'trukc'; did you mean 'truck'?"),
        (Selector(group="cifra"), "unknown group of dataset cifar10 'cifra'; did you mean 'cifar'?"),
        (Selector(split="tests"), "unknown split of dataset cifar10 'tests'; did you mean 'test'?"),
        (Selector(kind="style"), "no concept of dataset cifar10 has {'kind': 'style'}"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(selector: Selector, expected: str):
    with pytest.raises(BadInput) as caught:
        data.load("cifar10").select(selector)
    assert expected in str(caught.value)


def test_unknown_dataset_is_refused_with_the_nearest():
    with pytest.raises(BadInput, match=r"unknown dataset 'cifar'; did you mean 'cifar10'\?"):
        data.load("cifar")


def test_draw_is_the_published_one_and_depends_on_nothing_but_names_and_seed():
    """The expected names follow from sorting by `printf '2024|truck' | sha256sum`, and so on."""
    pool = data.load("cifar10").select(Selector(split="test"))
    drawn = [c.name for c in data.draw(pool, 3, 2024)]
    assert drawn == ["truck", "horse", "bird"]
    assert [c.name for c in data.draw(reversed(pool), 3, 2024)] == drawn
    assert [c.name for c in data.draw(pool, 2, 2024)] == drawn[:2]
    assert [c.name for c in data.draw(pool, 6, 2025)] != [c.name for c in data.draw(pool, 6, 2024)]
    with pytest.raises(BadInput, match="cannot draw 7 of 6"):
        data.draw(pool, 7, 2024)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("cat,a,objects,,,test,1\n", "line 2: kind: "),
        ("cat,a,object,,,train,1\n", "line 2: split: "),
        ("cat,a,object,,,test,heavy\n", "line 2: weight: "),
        ("cat,a,object,,,test,nan\n", "line 2: weight: "),
        ("cat,a,object,,,test,0\n", "line 2: weight: "),
        ("ok,a,object,,,test,1\n cat,a,object,,,test,1\n", "line 3: name: "),
        ("cat,a,object,,,test\n", "line 2: expected 7 fields"),
        ("cat,a,object,,,test,1,2\n", "line 2: expected 7 fields"),
        ("cat,a,object,,,test,1\ncat,b,object,,,test,1\n", "'cat' is listed twice"),
        ("", "no concept in it"),
    ],
)
def test_malformed_rows_are_refused_with_their_line(tmp_path: Path, rows: str, expected: str):
    path = tmp_path / "concepts.csv"
    path.write_text(HEADER + rows, encoding="utf-8")
    with pytest.raises(BadInput) as caught:
        data.concepts(path)
    assert expected in str(caught.value) and str(path) in str(caught.value)


def test_other_columns_are_refused(tmp_path: Path):
    path = tmp_path / "concepts.csv"
    path.write_text("name,group\ncat,a\n")
    with pytest.raises(BadInput, match="line 1: expected the columns name,group,kind,.* found name,group"):
        data.concepts(path)


def test_lists_are_split_at_bars(tmp_path: Path):
    path = tmp_path / "concepts.csv"
    path.write_text(HEADER + 'cat,a|b,object,feline|house cat,"animal, small",test,1.5\n')
    (cat,) = data.concepts(path)
    assert (cat.groups, cat.synonyms, cat.anchor, cat.weight) == (
        ("a", "b"),
        ("feline", "house cat"),
        "animal, small",
        1.5,
    )
    assert cat.target().synonyms == cat.synonyms and cat.target().anchor == "animal, small"


def test_a_label_may_come_last(tmp_path: Path):
    path = tmp_path / "concepts.csv"
    path.write_text(HEADER.strip() + ",label\ncat,a,object,,,test,1,n02123045\ndog,a,object,,,test,1,\n")
    assert [c.label for c in data.concepts(path)] == ["n02123045", ""]
    path.write_text(HEADER.strip() + ",label\ncat,a,object,,,test,1\n")
    with pytest.raises(BadInput, match="line 2: expected 8 fields"):
        data.concepts(path)
    path.write_text("label," + HEADER + "n1,cat,a,object,,,test,1\n")
    with pytest.raises(BadInput, match="line 1: expected the columns"):
        data.concepts(path)


def test_a_dataset_has_concepts_or_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmark.paths.datasets", lambda: tmp_path)
    card = "title: a\nsource: b\nlicence: c\ncitation: d\nget: e\n"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "card.yaml").write_text(card)
    with pytest.raises(BadInput, match="concepts.csv: expected this file, or files: in the card"):
        data.load("mine")
    one = "  - {name: x, kind: prompts, file: x.csv, licence: none, url: 'https://example.org/x.csv'}\n"
    (tmp_path / "mine" / "card.yaml").write_text(card + "files:\n" + one)
    assert data.load("mine").concepts == () and data.load("mine").file("x").url == "https://example.org/x.csv"
    (tmp_path / "mine" / "card.yaml").write_text(card + "files:\n" + one + one)
    with pytest.raises(BadInput, match="expected different names, got x, x"):
        data.load("mine")
    (tmp_path / "mine" / "card.yaml").write_text(card + "files:\n" + one.replace("kind: prompts, ", ""))
    with pytest.raises(BadInput, match=r"card.yaml, line 7: files\[0\].kind: this key is required"):
        data.load("mine")
