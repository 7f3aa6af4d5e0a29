"""Verify: every changed byte is found, and its file named."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmark import record, verify
from benchmark.errors import BadInput
from benchmark.keys import pixel_hash
from benchmark.store import Store

IMAGES = ("images", "a" * 32, "b" * 32)
PIXELS = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
HASHES = [pixel_hash(image) for image in PIXELS]
OLD = Path(__file__).parent / "data" / "record-1.json"


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run with one record, a board of its rows, and one shard of images."""
    monkeypatch.setattr("benchmark.tables.board.files", lambda records: {"board.md": _board(list(records))})
    record = {"schema": 1, "rows": {"image": HASHES}}
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "uce.json").write_text(json.dumps(record))
    (tmp_path / "board.md").write_bytes(_board([record]))
    shard(tmp_path / "store", PIXELS)
    verify.seal(tmp_path)
    return tmp_path


def shard(store: Path, images: np.ndarray) -> None:
    items = [{"prompt": "a cat", "seed": i, "sha256": digest} for i, digest in enumerate(HASHES)]
    content = io.BytesIO()
    np.save(content, images)
    files = {"images.npy": content.getvalue(), "items.json": json.dumps(items).encode()}
    Store(store).put(*IMAGES, files=files)


def _board(records: list[object]) -> bytes:
    return "\n".join(map(str, records)).encode()


def flip(path: Path, byte: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


def test_untouched_run_has_no_findings(out: Path):
    assert verify.verify(out) == []


def test_sealing_again_changes_nothing(out: Path):
    before = (out / verify.SUMS).read_bytes()
    verify.seal(out)
    assert (out / verify.SUMS).read_bytes() == before


@pytest.mark.parametrize(
    "name",
    [
        "board.md",
        "records/uce.json",
        "/".join(("store", *IMAGES, "images.npy")),
        "/".join(("store", *IMAGES, "items.json")),
    ],
)
def test_a_changed_byte_is_named(out: Path, name: str):
    flip(out / name)
    found = verify.verify(out)
    assert any(line.startswith(f"{name}: ") for line in found), found


def test_a_board_that_was_sealed_after_the_change_still_disagrees_with_the_records(out: Path):
    flip(out / "board.md", byte=5)
    verify.seal(out)
    assert verify.verify(out) == ["board.md: not what the records give (first at byte 5, line 1)"]


def test_a_record_that_was_sealed_after_the_change_names_an_image_that_nobody_made(out: Path):
    record = {"schema": 1, "rows": {"image": ["d" * 64]}}
    (out / "records" / "uce.json").write_text(json.dumps(record))
    (out / "board.md").write_bytes(_board([record]))
    verify.seal(out)
    (found,) = verify.verify(out)
    assert found.startswith("records/uce.json: 1 of 1 images are not in the store") and "d" * 64 in found


@pytest.mark.parametrize("name", ["board.md", "records/uce.json", "store/images"])
def test_what_is_gone_is_named(out: Path, name: str):
    (out / name).rename(out / "elsewhere")
    assert any(name.partition("/")[0] in line for line in verify.verify(out))


def test_what_came_from_elsewhere_is_named(out: Path):
    (out / "records" / "mine.json").write_text("{}")
    assert "records/mine.json: not listed in SHA256SUMS" in verify.verify(out)


@pytest.mark.parametrize("content", ["[1]", "null", '{"rows": 3}'])
def test_what_is_no_record_is_a_finding_and_no_crash(out: Path, content: str):
    (out / "records" / "uce.json").write_text(content)
    assert "records/uce.json: changed since it was written" in verify.verify(out)


def test_abandoned_work_is_not_judged(out: Path):
    half = out / "store" / "tmp" / "x"
    half.mkdir(parents=True)
    (half / "manifest.json").write_text("half")
    assert verify.verify(out) == []


def test_a_store_elsewhere(out: Path, tmp_path_factory: pytest.TempPathFactory):
    shared = tmp_path_factory.mktemp("shared") / "artifacts"
    (out / "store").rename(shared)
    assert "no store there" in "".join(verify.verify(out))
    assert verify.verify(out, shared) == []


def test_not_a_run(tmp_path: Path):
    with pytest.raises(BadInput, match="is not the folder of a run"):
        verify.verify(tmp_path)


def test_pixels_that_are_not_those_listed_are_found_even_under_a_fitting_manifest(out: Path):
    shutil.rmtree(out / "store")
    images = PIXELS.copy()
    images[1, 0, 0, 0] ^= 1
    shard(out / "store", images)
    (found,) = verify.verify(out)
    assert found.startswith("records/uce.json: 1 of 2 images are not in the store") and HASHES[1] in found


# --- records from their rows ----------------------------------------------------------------------------------
@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """The folder of a run with a real record; its store holds its edit and nothing else."""
    values = record.read(OLD).model_dump(mode="json", by_alias=True)
    record.write(tmp_path / "records" / "esd.json", record.parse(values))
    about = {"hash": values["edit"]["hash"], "notes": {}, "counts": {}}
    Store(tmp_path / "store").put("edits", values["edit"]["key"], files={"about.json": json.dumps(about).encode()})
    return tmp_path


def of_record(out: Path) -> list[str]:
    """Findings on the record alone, whose images and boards are not there."""
    found = [line for line in verify.verify(out) if line.startswith("records/") and "SHA256SUMS" not in line]
    return [line.removeprefix("records/esd.json: ") for line in found if "images are not in the store" not in line]


def changed(out: Path, change: Callable[[dict[str, Any]], object]) -> list[str]:
    path = out / "records" / "esd.json"
    values = json.loads(path.read_bytes())
    change(values)
    path.write_text(json.dumps(values))
    return of_record(out)


def test_a_record_follows_from_its_rows(whole: Path):
    assert of_record(whole) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r["summary"].update(acc_erased=0.1), "summary acc_erased: 0.1, but its rows give 0.0"),
        (lambda r: r["summary"].update(headline=0.95), "summary headline: 0.95, but its rows give 0.9375"),
        (lambda r: r["summary"]["acc_kept_ci"].__setitem__(0, 0.5), "summary acc_kept_ci[0]: 0.5, but"),
        (lambda r: r["summary"].update(n_kept=7), "summary n_kept: 7, but its rows give 6"),
        (lambda r: r["rows"]["values"]["testbed/top1"].__setitem__(0, 1.0), "summary "),
        (lambda r: r["rows"]["prompt"].__setitem__(0, "a cat"), "hashes: not those of its rows"),
        (lambda r: r["rows"]["image"].__setitem__(0, "0" * 64), "hashes: not those of its rows"),
        (lambda r: r["edit"].update(hash="0" * 64), "has the hash 0000"),
        (lambda r: r["edit"].update(key="0" * 32), "is not in the store"),
        (lambda r: r["protocols"].update({"gone/top1": {}}), "cannot be recomputed from its rows (BadInput"),
    ],
)
def test_what_does_not_follow_from_its_rows_is_named(whole: Path, change: Callable[[Any], object], said: str):
    assert any(said in line for line in changed(whole, change)), changed(whole, change)


def test_rounding_is_no_finding(whole: Path):
    assert changed(whole, lambda r: r["summary"].update(headline=0.9375 * (1 + 1e-12))) == []
    assert list(verify.differences({"a": [1.0, None], "b": 2}, {"a": [1.0 + 1e-12, None]})) == []
    assert list(verify.differences({"a": True}, {"a": 1.0})) == []  # equal in Python and in JSON's eyes alike
    assert list(verify.differences({"a": None}, {"a": 0.0})) == [("a", None, 0.0)]
