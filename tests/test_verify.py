"""Verify: every changed byte is found, and its file named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmark import verify
from benchmark.errors import BadInput
from benchmark.store import Store

IMAGES = ("images", "a" * 32, "b" * 32)


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run with one record, a board of its rows, and one shard of images."""
    monkeypatch.setattr("benchmark.tables.board.files", lambda records: {"board.md": _board(list(records))})
    record = {"schema": 1, "rows": {"image": ["c" * 64]}}
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "uce.json").write_text(json.dumps(record))
    (tmp_path / "board.md").write_bytes(_board([record]))
    items = json.dumps([{"prompt": "a cat", "seed": 1, "sha256": "c" * 64}]).encode()
    Store(tmp_path / "store").put(*IMAGES, files={"images.npy": b"pixels", "items.json": items})
    verify.seal(tmp_path)
    return tmp_path


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
