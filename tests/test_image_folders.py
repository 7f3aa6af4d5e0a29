"""Folders of real images: class folders, flat ones, what is refused, and pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmark import data, data_files, image_folders
from benchmark.errors import BadInput, Damaged


def picture(
    path: Path, colour: tuple[int, ...] = (255, 0, 0), mode: str = "RGB", size: tuple[int, int] = (6, 4)
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour if len(colour) > 1 else colour[0]).save(path)
    return path


def test_class_folders_and_their_concepts(tmp_path: Path):
    """As Stanford Dogs unpacks: folders are named by synset and name, other files lie about."""
    picture(tmp_path / "n02085620-Chihuahua" / "n02085620_10074.jpg")
    picture(tmp_path / "n02085620-Chihuahua" / "more" / "n02085620_1.JPEG")
    picture(tmp_path / "n02106662-German_shepherd" / "n02106662_1.png")
    picture(tmp_path / ".cache" / "thumb.png")
    (tmp_path / "readme.txt").write_text("no image")
    images = image_folders.listed(tmp_path)
    assert [i.name for i in images] == [
        "n02085620-Chihuahua/more/n02085620_1.JPEG",
        "n02085620-Chihuahua/n02085620_10074.jpg",
        "n02106662-German_shepherd/n02106662_1.png",
    ]
    by_concept = image_folders.of_concepts(images, data.load("stanford_dogs").concepts)
    assert {name: len(of) for name, of in by_concept.items()} == {"Chihuahua": 2, "German shepherd": 1}


@pytest.mark.parametrize(
    ("dataset", "folder", "concept"),
    [
        ("cub200", "073.Blue_Jay", "Blue Jay"),
        ("imagenette", "n03445777", "golf ball"),
        ("imagenet", "n02129165", "lion"),
        ("cifar10", "cat", "cat"),
    ],
)
def test_folders_are_named_by_label_or_name(tmp_path: Path, dataset: str, folder: str, concept: str):
    picture(tmp_path / folder / "a.jpg")
    found = image_folders.of_concepts(image_folders.listed(tmp_path), data.load(dataset).concepts)
    assert list(found) == [concept]


def test_folders_of_no_concept_are_refused(tmp_path: Path):
    picture(tmp_path / "cats" / "a.jpg")
    with pytest.raises(BadInput, match="folder 'cats' is of none of these concepts"):
        image_folders.of_concepts(image_folders.listed(tmp_path), data.load("cifar10").concepts)
    with pytest.raises(BadInput, match="lies in no class folder"):
        image_folders.of_concepts(image_folders.listed(tmp_path / "cats"), data.load("cifar10").concepts)


def test_images_of_coco_come_in_the_order_asked(tmp_path: Path):
    for i in (203564, 179765, 16977):
        picture(tmp_path / f"COCO_val2014_{i:012d}.jpg")
    images = image_folders.listed(tmp_path)
    assert [i.folder for i in images] == ["", "", ""]
    found = image_folders.of_coco(images, [203564, 16977])
    assert [i.name for i in found] == ["COCO_val2014_000000203564.jpg", "COCO_val2014_000000016977.jpg"]
    with pytest.raises(BadInput, match="1 of 2 images of COCO are not in the folder, the first with id 7"):
        image_folders.of_coco(images, [16977, 7])


def test_images_of_oxford_flowers_are_those_of_their_labels(tmp_path: Path):
    """`image_00001.jpg` is the first of imagelabels.mat; class 1 is the pink primrose, 102 the blackberry lily."""
    for number in (1, 2, 3):
        picture(tmp_path / f"image_{number:05d}.jpg")
    images, concepts = image_folders.listed(tmp_path), data.load("oxford_flowers").concepts
    found = image_folders.of_labels(images, [1, 102, 1], concepts)
    assert {name: [i.name for i in of] for name, of in found.items()} == {
        "pink primrose": ["image_00001.jpg", "image_00003.jpg"],
        "blackberry lily": ["image_00002.jpg"],
    }
    with pytest.raises(BadInput, match=r"image_00003.jpg: class None, expected image 1 to 2"):
        image_folders.of_labels(images, [1, 1], concepts)
    with pytest.raises(BadInput, match=r"image_00002.jpg: class 103, which no concept has"):
        image_folders.of_labels(images, [1, 103, 1], concepts)


def test_what_is_no_folder_of_images_is_refused(tmp_path: Path):
    with pytest.raises(BadInput, match="expected a folder of images"):
        image_folders.listed(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="no image in it"):
        image_folders.listed(tmp_path)
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "cat" / "b.jpg")
    with pytest.raises(BadInput, match=r"found both \(a.jpg lies beside folders\)"):
        image_folders.listed(tmp_path)


def test_links_may_not_lead_out(tmp_path: Path):
    outside = picture(tmp_path / "outside" / "secret.png")
    picture(tmp_path / "inside" / "a.png")
    (tmp_path / "inside" / "b.png").symlink_to(tmp_path / "inside" / "a.png")
    assert len(image_folders.listed(tmp_path / "inside")) == 2
    (tmp_path / "inside" / "c.png").symlink_to(outside)
    with pytest.raises(BadInput, match="c.png: leads out of"):
        image_folders.listed(tmp_path / "inside")


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [("RGB", (255, 0, 10), (255, 0, 10)), ("L", (7,), (7, 7, 7)), ("RGBA", (1, 2, 3, 0), (1, 2, 3))],
)
def test_pixels_are_rgb(tmp_path: Path, mode: str, colour: tuple[int, ...], expected: tuple[int, ...]):
    picture(tmp_path / "a.png", colour, mode)
    (image,) = image_folders.listed(tmp_path)
    values = image_folders.pixels(image)
    assert values.shape == (4, 6, 3) and values.dtype == np.uint8
    assert (values == expected).all()


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_images_cut_short_or_of_other_bytes_are_damaged(tmp_path: Path, suffix: str):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"a{suffix}"
    Image.fromarray(noise).save(path)
    (image,) = image_folders.listed(tmp_path)
    assert image_folders.pixels(image).shape == (64, 64, 3)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(Damaged, match="cannot be decoded"):
        image_folders.pixels(image)
    path.write_text("<html>not found</html>")
    with pytest.raises(Damaged, match="cannot be decoded"):
        image_folders.pixels(image)


def test_huge_images_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture(tmp_path / "a.png", size=(100, 100))
    (image,) = image_folders.listed(tmp_path)
    monkeypatch.setattr(image_folders, "MOST_PIXELS", 9_999)
    monkeypatch.setattr(Image.Image, "convert", lambda *a: pytest.fail("decoded"))
    with pytest.raises(BadInput, match="more than 9999 pixels"):
        image_folders.pixels(image)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow's own limit comes first where it is lower
    with pytest.raises(BadInput, match="more than 9999 pixels"):
        image_folders.pixels(image)


def test_digests_follow_names_and_bytes(tmp_path: Path):
    picture(tmp_path / "a.png")
    first = image_folders.digest(image_folders.listed(tmp_path))
    assert image_folders.digest(image_folders.listed(tmp_path)) == first
    (tmp_path / "a.png").rename(tmp_path / "b.png")
    renamed = image_folders.digest(image_folders.listed(tmp_path))
    picture(tmp_path / "b.png", (0, 0, 0))
    assert len({first, renamed, image_folders.digest(image_folders.listed(tmp_path))}) == 3


def test_folders_are_verified_against_their_manifest(tmp_path: Path):
    paths = [picture(tmp_path / "cat" / "a.png"), picture(tmp_path / "dog" / "b.png", (0, 9, 0))]
    lines = [f"{data_files.sha256(p)}  {p.relative_to(tmp_path).as_posix()}\n" for p in paths]
    (tmp_path / "SHA256SUMS").write_text("".join(lines) + f"{'0' * 64}  readme.txt\n")
    assert image_folders.verify(tmp_path) == 2
    more = picture(tmp_path / "dog" / "c.png")
    with pytest.raises(Damaged, match=r"dog/c.png is there, but no line promises it \(0 lack, 1 are beyond"):
        image_folders.verify(tmp_path)
    more.unlink()
    picture(paths[1], (0, 8, 0))
    with pytest.raises(Damaged, match="b.png: SHA-256 is"):
        image_folders.verify(tmp_path)
    paths[1].unlink()
    with pytest.raises(Damaged, match="dog/b.png is promised but not there"):
        image_folders.verify(tmp_path)
