"""Files of datasets: found in order, told when they are missing, refused with other bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from pydantic import ValidationError

from benchmark import data, data_files
from benchmark.data import DataFile
from benchmark.data_files import Wanted
from benchmark.errors import BadInput, Damaged, Missing

REVISION = "6594f223b0544fcbf63a6889417a6b9d2e40a77c"


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data file anywhere, and caches of our own."""
    for name in ("HUGGINGFACE_HUB_CACHE", "ERASURE_BENCH_DATA", "ERASURE_BENCH_I2P", "ERASURE_BENCH_COCO_IMAGES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def put(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def in_hub_cache(root: Path, revision: str = REVISION) -> Path:
    """As the hub's client lays a dataset's file down."""
    return put(root / "hub" / "datasets--AIML-TUDA--i2p" / "snapshots" / revision / "i2p_benchmark.csv")


def test_a_missing_file_is_told_with_all_that_is_needed_to_get_it():
    with pytest.raises(Missing) as caught:
        data_files.find(data_files.wanted("i2p", "prompts"))
    for part in (
        "no i2p/prompts: looked in $ERASURE_BENCH_I2P (not set), $ERASURE_BENCH_DATA/i2p/i2p_benchmark.csv (not set)",
        "the hub cache",
        f"AIML-TUDA/i2p (dataset on the hub) at revision {REVISION}",
        "size about 1.33 MB, licence MIT, SHA-256 not recorded",
        "or set ERASURE_BENCH_I2P",
    ):
        assert part in str(caught.value)
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)


def test_what_is_not_recorded_is_said_to_be_so():
    found = data_files.missing(data_files.wanted("coco30k", "prompts"))
    assert found is not None and found["size"] is None and found["what"].startswith("coco30k/prompts from https://")
    with pytest.raises(Missing, match="size not recorded, licence captions CC BY 4.0"):
        data_files.find(data_files.wanted("coco30k", "prompts"))


def test_places_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    what = data_files.wanted("i2p", "prompts")
    hub = in_hub_cache(tmp_path)
    assert data_files.find(what) == hub
    assert data_files.missing(what) is None
    cached = put(tmp_path / "cache" / "erasure-bench" / "data" / "i2p" / "i2p_benchmark.csv")
    assert data_files.find(what) == cached == data_files.home(what)
    monkeypatch.setenv("ERASURE_BENCH_DATA", str(tmp_path / "folder"))
    assert data_files.find(what) == cached
    in_folder = put(tmp_path / "folder" / "i2p" / "i2p_benchmark.csv")
    assert data_files.find(what) == in_folder == data_files.home(what)
    own = put(tmp_path / "own.csv")
    monkeypatch.setenv("ERASURE_BENCH_I2P", str(own))
    assert data_files.find(what) == own
    given = put(tmp_path / "given.csv")
    assert data_files.find(what, given) == given


def test_another_revision_in_the_hub_cache_is_not_the_one_meant(tmp_path: Path):
    in_hub_cache(tmp_path, "0" * 40)
    with pytest.raises(Missing):
        data_files.find(data_files.wanted("i2p", "prompts"))


def test_a_path_or_variable_that_leads_nowhere_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    what = data_files.wanted("i2p", "prompts")
    in_hub_cache(tmp_path)
    with pytest.raises(BadInput, match="i2p/prompts: no file"):
        data_files.find(what, tmp_path / "nothing.csv")
    monkeypatch.setenv("ERASURE_BENCH_I2P", str(tmp_path / "nothing.csv"))
    with pytest.raises(Missing, match=r"looked in \$ERASURE_BENCH_I2P \("):
        data_files.find(what)


def test_images_are_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    what = data_files.wanted("coco30k", "images")
    assert not what.fetchable
    with pytest.raises(Missing, match="To get it: download val2014.zip and unpack it"):
        data_files.find(what)
    monkeypatch.setenv("ERASURE_BENCH_COCO_IMAGES", str(put(tmp_path / "val2014" / "a.jpg")))
    with pytest.raises(Missing):
        data_files.find(what)
    monkeypatch.setenv("ERASURE_BENCH_COCO_IMAGES", str(tmp_path / "val2014"))
    assert data_files.find(what) == tmp_path / "val2014"


def test_unknown_datasets_and_files_are_refused_with_the_nearest():
    with pytest.raises(BadInput, match=r"unknown file of dataset i2p 'promts'; did you mean 'prompts'\?"):
        data_files.wanted("i2p", "promts")
    with pytest.raises(BadInput, match=r"unknown dataset 'i2pp'; did you mean 'i2p'\?"):
        data_files.wanted("i2pp", "prompts")


def test_a_declaration_names_its_files():
    form = {
        "dataset": "celebrities",  # its files are optional
        "prompts": {"general": {"dataset": "coco30k", "file": "prompts"}, "kept": None},
        "more": [{"dataset": "i2p"}, {"dataset": "celebrities", "file": "prompts_1"}, {"dataset": "i2p"}],
    }
    named = [what.name for what in data_files.named_in(form)]
    assert named == ["celebrities/prompts_1", "coco30k/prompts", "i2p/prompts"]
    assert [what.name for what in data_files.named_in({"dataset": "coco30k"})] == ["coco30k/images", "coco30k/prompts"]
    assert data_files.named_in({"dataset": "cifar10"}) == ()


# --- checksums ------------------------------------------------------------------------------------------------------
def file(**changes: object) -> DataFile:
    given = {"name": "prompts", "kind": "prompts", "file": "a.csv", "licence": "none", "url": "https://example.org/a"}
    return DataFile.model_validate({**given, **changes})


def test_other_bytes_than_the_card_promises_are_refused(tmp_path: Path):
    path = put(tmp_path / "a.csv", "prompt")
    promised = hashlib.sha256(b"prompt").hexdigest()
    assert data_files.find(Wanted("d", file(sha256=promised)), path) == path
    put(path, "prompts")
    with pytest.raises(Damaged, match=rf"a.csv: SHA-256 is [0-9a-f]{{64}}, expected {promised}"):
        data_files.find(Wanted("d", file(sha256=promised)), path)


def test_a_promise_beside_the_file_is_kept(tmp_path: Path):
    path, other = put(tmp_path / "a.csv", "a"), put(tmp_path / "b.csv", "b")
    data_files.promise(path)
    data_files.promise(other)
    assert data_files.manifest(tmp_path / "SHA256SUMS") == {p.name: data_files.sha256(p) for p in (path, other)}
    assert data_files.find(Wanted("d", file()), path) == path
    put(path, "c")
    with pytest.raises(Damaged):
        data_files.find(Wanted("d", file()), path)
    data_files.promise(path)
    assert data_files.find(Wanted("d", file()), path) == path


def test_manifests_are_those_of_sha256sum(tmp_path: Path):
    path = put(tmp_path / "SHA256SUMS", f"{'a' * 64}  sub/x y.jpg\n{'b' * 64} *z.png\n")
    assert data_files.manifest(path) == {"sub/x y.jpg": "a" * 64, "z.png": "b" * 64}


@pytest.mark.parametrize(
    "line", ["a  b", f"{'A' * 64}  b", f"{'a' * 64} b", f"{'a' * 64}  ../b", f"{'a' * 64}  /b", f"{'b' * 64}  first"]
)
def test_malformed_manifests_are_refused_with_their_line(tmp_path: Path, line: str):
    path = put(tmp_path / "SHA256SUMS", f"{'a' * 64}  first\n{line}\n")
    with pytest.raises(BadInput, match="SHA256SUMS, line 2: expected"):
        data_files.manifest(path)


# --- cards ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"file": "../a.csv"}, "expected a path inside a folder"),
        ({"file": "/a.csv"}, "expected a path inside a folder"),
        ({"url": ""}, "expected one of hub and url"),
        ({"hub": "a/b", "revision": REVISION}, "expected one of hub and url"),
        ({"url": "", "hub": "a/b", "revision": "main"}, "expected the commit"),
        ({"revision": REVISION}, "expected the commit"),
        ({"url": "file:///etc/passwd"}, "expected http or https"),
        ({"kind": "images"}, "say how to get a folder"),
        ({"sha256": "abc"}, "sha256"),
        ({"env": "HOME"}, "env"),
        ({"size": 0}, "size"),
        ({"colour": "red"}, "unknown key 'colour'"),
    ],
)
def test_malformed_files_in_cards_are_refused(changes: dict[str, object], expected: str):
    with pytest.raises(ValidationError, match=expected):
        file(**changes)


def test_every_file_of_a_shipped_card_can_be_told_of():
    for dataset in data.names():
        for one in data.load(dataset).card.files:
            found = data_files.missing(Wanted(dataset, one))
            assert found is not None and found["licence"] and found["where"] and one.file not in ("", ".")
