"""What the files of data sets hold, read as a run would read them: said before a suite names them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmark import data, data_files, image_folders, label_files, prompt_files
from benchmark.data_files import Wanted
from benchmark.image_folders import ImageFile


def told(what: Wanted, place: Path) -> str:
    """In short, such as `4,703 prompts`. BadInput or Damaged if it is not such a file.

    Images are listed and told apart, not decoded; tens of thousands of them take seconds.
    """
    if what.file.kind == "images":
        return _images(what, place)
    if what.file.kind == "labels":
        numbers = label_files.labels(place)
        return f"{len(numbers):,} images of {len(set(numbers)):,} classes"
    if what.file.kind == "splits":
        return ", ".join(f"{len(numbers):,} {name}" for name, numbers in label_files.splits(place).items())
    return f"{len(prompt_files.load(what.dataset, what.file.name, place)):,} prompts"


def _images(what: Wanted, folder: Path) -> str:
    images = image_folders.listed(folder)
    known = _by_concept(what, images)
    return f"{len(images):,} images" + (f" of {len(known):,} concepts" if known else "")


def _by_concept(what: Wanted, images: tuple[ImageFile, ...]) -> Mapping[str, tuple[ImageFile, ...]]:
    """None where a flat folder's images have no labels here."""
    dataset = data.load(what.dataset)
    if dataset.concepts and images[0].folder:
        return image_folders.of_concepts(images, dataset.concepts)
    found = [Wanted(what.dataset, file) for file in dataset.card.files if file.kind == "labels"]
    here = [one for one in found if data_files.missing(one) is None]
    numbers = label_files.labels(data_files.find(here[0])) if here else ()
    return image_folders.of_labels(images, numbers, dataset.concepts) if numbers else {}
