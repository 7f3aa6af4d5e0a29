"""The shipped lists of the public suites: sizes, labels, groups, anchors; against other sources where there are any."""

from __future__ import annotations

import csv

import pytest

from benchmark import data, paths
from benchmark.data import Selector


def names(dataset: str, group: str | None = None) -> list[str]:
    return [c.name for c in data.load(dataset).select(Selector(group=group))]


@pytest.mark.parametrize(
    ("dataset", "size", "kind", "anchor"),
    [
        ("stanford_dogs", 120, "fine-grained", "dog"),
        ("cub200", 200, "fine-grained", "bird"),
        ("oxford_flowers", 102, "fine-grained", "flower"),
        ("artists", 200, "style", "art"),
        ("celebrities", 200, "identity", "a person"),
        ("i2p", 10, "explicit", "a person wearing clothes"),
    ],
)
def test_lists_of_one_kind(dataset: str, size: int, kind: str, anchor: str):
    concepts = data.load(dataset).concepts
    assert len(concepts) == size
    assert {(c.kind, c.anchor, c.split, c.weight) for c in concepts} == {(kind, anchor, "test", 1.0)}


@pytest.mark.parametrize(
    ("dataset", "targets"),
    [
        ("stanford_dogs", ["Welsh springer spaniel", "German shepherd", "Pomeranian"]),
        ("oxford_flowers", ["yellow iris", "barbeton daisy", "blanket flower"]),
        ("cub200", ["Blue Jay", "Barn Swallow", "Black Tern"]),
        ("imagenet", ["lion", "acoustic guitar", "golf ball", "school bus"]),
    ],
)
def test_targets_of_fine_grained_erasure(dataset: str, targets: list[str]):
    assert names(dataset, "fade_fg") == targets


def test_dogs_are_synsets_of_imagenet_and_their_classes_a_run_of_its_outputs():
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    dogs = {c.label: c.name for c in data.load("stanford_dogs").concepts}
    assert len(dogs) == 120
    of_imagenet = [label for label in info.label_names() if label in dogs]
    assert len(of_imagenet) == 120
    lemmas = {label: info.label_name_to_description(label, detailed=False).casefold() for label in dogs}
    assert [name for label, name in dogs.items() if name.casefold() not in lemmas[label]] == []


def test_imagenet_stands_in_the_order_of_a_classifier_s_outputs():
    from timm.data import ImageNetInfo
    from torchvision.models import ResNet50_Weights

    concepts = data.load("imagenet").concepts
    assert [c.label for c in concepts] == ImageNetInfo("imagenet-1k").label_names()
    assert [c.name for c in concepts] == ResNet50_Weights.IMAGENET1K_V2.meta["categories"]


def test_imagenette_is_ten_classes_of_imagenet():
    imagenet = {c.name: c.label for c in data.load("imagenet").concepts}
    imagenette = data.load("imagenette").concepts
    assert len(imagenette) == 10 and all(imagenet[c.name] == c.label for c in imagenette)
    assert [c.label for c in imagenette] == sorted(c.label for c in imagenette)


def test_birds_are_labelled_by_their_folders_and_flowers_by_number():
    birds = data.load("cub200").concepts
    assert [c.label for c in birds] == [f"{i:03d}.{c.name.replace(' ', '_')}" for i, c in enumerate(birds, 1)]
    assert [c.label for c in data.load("oxford_flowers").concepts] == [str(i) for i in range(1, 103)]


@pytest.mark.parametrize("dataset", ["artists", "celebrities"])
def test_a_hundred_are_erased_and_a_hundred_others_kept(dataset: str):
    erased, kept = names(dataset, "erase_100"), names(dataset, "keep")
    assert len(erased) == len(kept) == 100 and not set(erased) & set(kept)
    assert names(dataset) == erased + kept
    assert (names(dataset, "erase_5"), names(dataset, "erase_10")) == (erased[:5], erased[:10])


def test_the_one_artist_is_the_first_and_the_one_person_the_last():
    assert names("artists", "erase_1") == ["Brent Heighton"] == names("artists")[:1]
    assert names("celebrities", "erase_1") == ["Melania Trump"] == names("celebrities", "erase_100")[-1:]
    assert {"Claude Monet", "Catrin Welz-Stein", "Chaïm Soutine"} <= set(names("artists", "erase_100"))


def test_explicit_terms():
    assert names("i2p", "explicit") == ["nudity", "naked", "erotic", "sexual"]
    assert [len(names("i2p", f"explicit_{n}")) for n in (5, 10)] == [5, 10]
    assert names("i2p", "explicit_5")[:4] == names("i2p", "explicit")


def test_captions_are_of_no_concept():
    coco = data.load("coco30k")
    assert coco.concepts == () and coco.file("prompts").rows == 30_000
    assert data.load("i2p").file("prompts").rows == 4_703


@pytest.mark.parametrize("dataset", [n for n in data.names() if n != "testbed"])
def test_an_anchor_is_neither_a_concept_nor_another_word_for_one(dataset: str):
    """It would map the erased concept to what it is tested on."""
    concepts = data.load(dataset).concepts
    words = {word.casefold() for c in concepts for word in (c.name, *c.synonyms)}
    assert all(c.anchor for c in concepts)
    assert not words & {c.anchor.casefold() for c in concepts}


@pytest.mark.parametrize("dataset", data.names())
def test_lists_are_written_as_they_are_read(dataset: str):
    """UTF-8, line feeds, no field with blanks around it, and labels that tell concepts apart."""
    path = paths.datasets() / dataset / "concepts.csv"
    if not path.exists():
        assert data.load(dataset).card.files
        return
    assert b"\r" not in path.read_bytes()
    with path.open(encoding="utf-8", newline="") as file:
        assert all(field == field.strip() for row in csv.reader(file) for field in row)
    labels = [c.label for c in data.load(dataset).concepts if c.label]
    assert len(set(labels)) == len(labels) and len(labels) in (0, len(data.load(dataset).concepts))
