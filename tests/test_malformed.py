"""Each class of malformed input has its message: what was expected, what came, and what to do, in a line."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmark import (
    baseline,
    cite,
    data,
    data_files,
    declared,
    evidence,
    image_folders,
    keys,
    models,
    prompt_files,
    record,
    rescore,
    suite,
    untrusted,
    verify,
)
from benchmark.errors import BadInput, BenchError, Damaged
from benchmark.page import images as pictures
from benchmark.page import runs
from benchmark.store import Store
from benchmark.tables import board

ROOT = Path(__file__).resolve().parent.parent
SMOKE = ROOT / "results" / "testbed-3" / "smoke"
Json = Any


def told(error: type[BenchError], said: str, read: Callable[[], object]) -> None:
    """It is refused with this in its one line, which is not endless."""
    with pytest.raises(error) as caught:
        read()
    message = str(caught.value)
    assert said in message, message
    assert "\n" not in message and len(message) < 1000


# --- YAML -------------------------------------------------------------------------------------------------------------
NESTED = "[" * 100 + "]" * 100
BOMB = "a: &a [x, x]\n" + "".join(f"{c}: &{c} [{', '.join([f'*{chr(ord(c) - 1)}'] * 9)}]\n" for c in "bcdefghij")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", "line 1: not valid YAML: "),
        ("a: 1\na: 2", "line 2: a is given twice (first in line 1)"),
        ("a: 2001-99-99", "a value is not of the kind that it looks like: month must be in 1..12"),
        ("a: 0x_", "a value is not of the kind that it looks like"),
        ("a: " + "1" * 5000, "a value is not of the kind that it looks like: Exceeds the limit"),
        ("a: !!timestamp x", "a value is not of the kind that it looks like"),
        ("a: !!python/object/apply:os.system [id]", "line 1: not valid YAML: could not determine a constructor"),
        (f"a: {NESTED}", "more than 64 levels of nesting"),
        ("a: " + "[" * 5000, "more than 64 levels of nesting"),
        (BOMB, "more than 100000 entries, aliases written out"),
        ("a: &a [*a]", "contains itself"),
        ("? [a, b]\n: c", "expected a text as key"),
        ("&a ? *a : b", "not valid YAML"),
        ('a: "\\ud800"', "a text holds half a character"),
        ("a: \x00", "not valid YAML: "),
        ("- a", "expected keys and values, found ['a']"),
        ("title: x\nlicense: y", "did you mean 'licence'?"),
        (b"\xff\xfe", "cannot be read: "),
    ],
)
def test_declarations(tmp_path: Path, text: str | bytes, said: str):
    path = tmp_path / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    told(BadInput, said, lambda: declared.read(path, data.Card))


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told(BadInput, "No such file", lambda: untrusted.read_bytes(tmp_path / "absent"))
    told(BadInput, "expected a file, found something else", lambda: untrusted.read_bytes(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    told(BadInput, "expected a file, found something else", lambda: untrusted.read_bytes(tmp_path / "pipe"))
    told(BadInput, "expected a file, found something else", lambda: untrusted.read_bytes(Path("/dev/zero")))
    (tmp_path / "long").write_bytes(b"x" * 101)
    told(BadInput, "more than 100 bytes", lambda: untrusted.read_bytes(tmp_path / "long", 100))
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10 * 2**30)
    told(BadInput, "more than 16,777,216 bytes", lambda: declared.load(tmp_path / "sparse"))


# --- suites -----------------------------------------------------------------------------------------------------------
def changed_suite(tmp_path: Path, old: str, new: str) -> Path:
    text = (ROOT / "suites" / "smoke.yaml").read_text(encoding="utf-8")
    assert old in text, old
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("dataset: testbed", "dataset: ../../etc", "unknown dataset '../../etc'"),
        ("dataset: testbed", "dataset: /etc", "unknown dataset '/etc'"),
        ("version: 2", "version: -1", "version"),
        ("version: 2", "verison: 2", "did you mean 'version'?"),
        ("steps: 12", "steps: 1000000000", "sampler.steps: input should be less than or equal to 100000"),
        ("size: 64", "size: 1000000", "sampler.size: input should be less than or equal to 8192"),
        ("images: 8", "images: 99999999999", "images: input should be less than or equal to 100000"),
    ],
)
def test_suites(tmp_path: Path, old: str, new: str, said: str):
    path = changed_suite(tmp_path, old, new)
    told(BadInput, said, lambda: suite.requests(suite.load(str(path)).form("embedded")))


@pytest.mark.parametrize("name", ["../../etc/passwd", "..", "objects/../objects", "a\nb", "x" * 5000])
def test_names_of_suites_are_no_paths(name: str):
    told(BadInput, "suite", lambda: suite.load(name))


def test_a_suite_that_asks_for_more_images_than_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from benchmark import items

    monkeypatch.setattr(items, "MOST", 10)
    found = suite.load("objects")
    asked = suite.requests(found.form("embedded"))[0]
    told(BadInput, "more than 10 images", lambda: items.request_items("objects", 1, asked))


# --- JSON -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"a": NaN}', "NaN is no number of JSON"),
        (b"[-Infinity]", "-Infinity is no number of JSON"),
        (b"[1e999]", "the number '1e999' is too large"),
        (b"[" + b"9" * 5000 + b"]", "has more than 64 bits"),
        (b'{"a": 1, "a": 2}', "the key 'a' is there twice"),
        (b'["\\ud800"]', "half a character"),
        (b"[" * 100 + b"]" * 100, "more than 64 levels of nesting"),
        (b"[" * 100_000, "more than 64 levels of nesting"),
        (b"{", "Expecting property name"),
        (b"\xff", "invalid start byte"),
        (b"", "Expecting value"),
    ],
)
def test_json(text: bytes, said: str):
    with pytest.raises(ValueError, match="^.*$") as caught:
        untrusted.parse_json(text)
    assert said in str(caught.value)


def test_json_that_is_fine():
    assert untrusted.parse_json('{"a": [1, -2.5, "\\ud83d\\ude00", null, true]}') == {"a": [1, -2.5, "😀", None, True]}


# --- records ----------------------------------------------------------------------------------------------------------
def a_record() -> Json:
    return json.loads(sorted((SMOKE / "records").glob("uce*.json"))[0].read_bytes())


def set_in(value: Json, place: str, new: Json) -> Json:
    *above, last = place.split(".")
    inner = value
    for name in above:
        inner = inner[int(name)] if isinstance(inner, list) else inner[name]
    inner[int(last) if isinstance(inner, list) else last] = new
    return value


@pytest.mark.parametrize(
    ("place", "new", "said"),
    [
        ("schema", 99, "expected schema 2, found 99: it was written by a newer version"),
        ("schema", None, "expected schema 2, found None: it is not a record of ours"),
        ("status", "fine", "status: Input should be 'ok', 'failed', 'not applicable' or 'stale'"),
        ("reason", "why", "a reason goes with every status but ok"),
        ("suite", "../../x", "suite: Value error, expected a name, not a path: '../../x'"),
        ("suite", "/etc/x", "expected a name, not a path"),
        ("model.name", "a/b", "model.name: Value error, expected a name, not a path"),
        ("model.name", "a\x1b[31m", "expected a name, not a path: 'a\\x1b[31m'"),
        ("edit.key", "../../x", "edit.key: Value error, expected a name, not a path"),
        ("method.role", "boss", "method.role: Input should be 'baseline', 'erasure' or 'control'"),
        ("request.erase.0", {"kind": "object"}, "expected a concept with name, kind, anchor"),
        ("gate", {"erased": [1.0]}, "expected low and high, got 1 numbers"),
        ("reference", {"images": "x"}, "expected images: <dataset>/<file>"),
        ("reference", {"images": "../x", "prompts": "a/b"}, "expected a name, not a path"),
        ("rows.role", ["erased"], "columns must be of one length"),
        ("rows.values", {"testbed/top1": ["x"]}, "rows.values.testbed/top1[0]: Input should be a valid number"),
        ("more", 1, "unknown key 'more'"),
    ],
)
def test_records(tmp_path: Path, place: str, new: Json, said: str):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(set_in(a_record(), place, new)))
    told(BadInput, said, lambda: record.read(path))


@pytest.mark.parametrize("content", [b"", b"{", b'{"schema": NaN}', b"\xff", b"[" * 10_000])
def test_a_record_that_is_no_json(tmp_path: Path, content: bytes):
    (tmp_path / "r.json").write_bytes(content)
    told(Damaged, "is not JSON", lambda: record.read(tmp_path / "r.json"))


@pytest.mark.parametrize(
    ("place", "new", "said"),
    [
        ("summary.acc_erased", 0.123, "summary acc_erased: 0.123, but its rows give"),
        ("summary.headline", 2.0, "summary headline: 2.0, but its rows give"),
        ("summary.acc_kept_ci", [0.0, 1.0], "summary acc_kept_ci[0]: 0.0, but its rows give"),
        ("summary.acc_erased", None, "summary acc_erased: None, but its rows give"),
        ("summary.n_erased", 10**6, "summary n_erased"),
        ("summary.metrics.testbed-clip/score", 99.0, "summary metrics.testbed-clip/score: 99.0"),
        ("summary.metrics.testbed-kid/9", 0.0, "cannot be recomputed from its rows"),
        ("summary", {}, "cannot be recomputed from its rows (KeyError: 'metrics')"),
        ("rows.prompt.0", "another", "hashes: not those of its rows"),
        ("rows.image.0", "0" * 64, "hashes: not those of its rows"),
        ("protocols", {}, "summary "),
        ("primary", "nothing/known", "cannot be recomputed from its rows (BadInput: unknown protocol"),
    ],
)
def test_records_whose_numbers_nothing_stands_behind_make_no_table(tmp_path: Path, place: str, new: Json, said: str):
    path = tmp_path / "records" / "r.json"
    path.parent.mkdir()
    path.write_text(json.dumps(a_record()))
    assert board.build(board.read_records(tmp_path))["rows"]
    path.write_text(json.dumps(set_in(a_record(), place, new)))
    told(Damaged, said, lambda: board.read_records(tmp_path))
    told(Damaged, said, lambda: evidence.load(str(path)))
    assert any(said in line for line in verify.verify(tmp_path)), "`verify` says the same"


def test_a_record_changed_after_the_run_was_sealed_makes_no_table(tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(SMOKE, folder)
    verify.seal(folder)
    path = sorted((folder / "records").glob("*.json"))[0]
    path.write_text(json.dumps(set_in(json.loads(path.read_bytes()), "provenance.python", "3.0.0")))
    told(Damaged, "changed since the run wrote SHA256SUMS", lambda: board.read_records(folder))


def packed(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def test_packed_records_are_the_same_records(tmp_path: Path):
    for path in (SMOKE / "records").glob("*.json"):
        (tmp_path / "records").mkdir(exist_ok=True)
        (tmp_path / "records" / f"{path.name}.gz").write_bytes(packed(path.read_bytes()))
    assert board.files(board.read_records(tmp_path)) == board.files(board.read_records(SMOKE))
    assert evidence.load(str(tmp_path)).records == evidence.load(str(SMOKE)).records
    one = next((tmp_path / "records").iterdir())
    assert evidence.load(str(one)).records == (record.read(one).model_dump(mode="json", by_alias=True),)
    (tmp_path / "records" / one.stem).write_bytes((SMOKE / "records" / one.stem).read_bytes())
    told(BadInput, f"has {one.stem} and the same packed", lambda: board.read_records(tmp_path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{}", "not what gzip writes"),
        (b"", "not one whole gzip file"),
        (packed(b"{}" * 999)[:-9], "not one whole gzip file"),
        (packed(b"{}") + packed(b"{}"), "not one whole gzip file"),
        (packed(b"{"), "is not JSON"),
    ],
)
def test_what_is_packed_wrongly_is_named(tmp_path: Path, content: bytes, said: str):
    path = tmp_path / "r.json.gz"
    path.write_bytes(content)
    told(Damaged, said, lambda: record.read(path))
    told(Damaged, said, lambda: board.read_records(tmp_path))
    told(BadInput, said, lambda: evidence.load(str(path)))


def test_a_small_file_that_unpacks_without_end_is_refused():
    packed_zeros = packed(bytes(10**6))
    assert len(packed_zeros) < 2000 and untrusted.gunzip(packed_zeros, most=10**6) == bytes(10**6)
    with pytest.raises(ValueError, match="more than 999,999 bytes unpacked"):
        untrusted.gunzip(packed_zeros, most=10**6 - 1)


def test_checksums(tmp_path: Path):
    for line in ("nothing", f"{'0' * 64}  ../x", f"{'0' * 64}  /etc/passwd", f"{'0' * 63}  x"):
        (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  a\n{line}\n")
        told(BadInput, "line 2: expected", lambda: data_files.manifest(tmp_path / "SHA256SUMS"))
        shutil.rmtree(tmp_path / "records", ignore_errors=True)
        (tmp_path / "records").mkdir()
        assert any(found.startswith("SHA256SUMS: ") for found in verify.verify(tmp_path))


def test_a_record_never_leads_to_a_file_elsewhere(tmp_path: Path):
    """Its suite is a name; its edit's key a name; a link in its folder stays in it."""
    (tmp_path / "secret.yaml").write_text("title: x")
    assert cite._datasets({"datasets": [], "suite": str(tmp_path / "secret.yaml"), "form": "embedded"}) == []
    folder = tmp_path / "run"
    (folder / "records").mkdir(parents=True)
    (tmp_path / "secret.json").write_text(json.dumps(a_record()))
    (folder / "records" / "r.json").symlink_to(tmp_path / "secret.json")
    told(BadInput, "leads out of", lambda: board.read_records(folder))
    (folder / "records" / "r.json").unlink()
    (folder / "store").mkdir()
    (folder / "records" / "r.json").write_text(json.dumps(set_in(a_record(), "edit.key", "../../secret")))
    assert any("edit.key: expected a name, not a path" in line for line in verify.verify(folder))


# --- baselines, boards, costs -----------------------------------------------------------------------------------------
def a_baseline() -> Json:
    return json.loads((ROOT / "results" / "baselines" / "smoke-testbed.json").read_bytes())


@pytest.mark.parametrize(
    ("place", "new", "said"),
    [
        ("kind", "other", "expected a baseline, found other JSON"),
        ("schema", 9, "expected a baseline of schema 1, found 9"),
        ("records", [], "expected a baseline with records and reasons"),
        ("reasons", [], "expected a baseline with records and reasons"),
        ("reasons", ["x"], "expected a whole baseline"),
        ("records", ["x"], "expected a whole baseline"),
        ("records.0.rows", 3, "expected a whole baseline"),
        ("shared", [], "expected a whole baseline"),
        ("records.0.suite", "../x", "suite: Value error, expected a name, not a path"),
        ("records.0.summary.acc_erased", 0.123, "summary acc_erased: 0.123, but its rows give"),
    ],
)
def test_baselines(tmp_path: Path, place: str, new: Json, said: str):
    (tmp_path / "b.json").write_text(json.dumps(set_in(a_baseline(), place, new)))
    told(BadInput, said, lambda: baseline.read(tmp_path / "b.json"))


@pytest.mark.parametrize(
    ("place", "new", "said"),
    [
        ("rows", [1], "rows[0]: Input should be a valid dictionary"),
        ("rows.0.acc_erased", "x", "rows[0].acc_erased: Input should be a valid number"),
        ("rows.0.metrics", {"evil/thing": 1.0}, "unknown protocol 'evil/thing'"),
        ("rows.0.headline_id", "H_x", "unknown headline 'H_x'"),
        ("schema", 7, "schema: Input should be 1"),
        ("model", "../x", "model: Value error, expected a name, not a path"),
    ],
)
def test_boards_without_their_records(tmp_path: Path, place: str, new: Json, said: str):
    values = json.loads((SMOKE / "board.json").read_bytes())
    (tmp_path / "board.json").write_text(json.dumps(set_in(values, place, new)))
    told(BadInput, said, lambda: runs.read_runs([tmp_path]))
    told(BadInput, said, lambda: evidence.load(str(tmp_path)))


@pytest.mark.parametrize("costs", [{"cells": []}, {"cells": {"a": {"edit": {"b": 1}}}}, {"machine": [1]}])
def test_costs(tmp_path: Path, costs: Json):
    shutil.copytree(SMOKE, tmp_path / "run")
    (tmp_path / "run" / "costs.json").write_text(json.dumps(costs))
    told(BadInput, "costs.json: ", lambda: runs.read_runs([tmp_path / "run"]))


# --- tables -----------------------------------------------------------------------------------------------------------
HEAD = "case_number,source,prompt,evaluation_seed,coco_id\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a column prompt"),
        ("prompt,evaluation_seed,secret\n", "unknown column 'secret'"),
        (HEAD, "no prompt in it"),
        (f"{HEAD}0,coco,a cat\n", "line 2: expected 5 fields, got 3"),
        (f"{HEAD}0,coco,a cat,-1,5\n", "seed: expected a whole number from 0"),
        (f"{HEAD}0,coco,a cat,{'9' * 30},5\n", "seed: expected a whole number from 0"),
        (f"{HEAD}0,coco,a,1,5\n0,coco,b,2,6\n", "case_number 0 is there twice"),
        (f'{HEAD}0,coco,"a cat,1,5\n', "not a CSV: "),
        (f"{HEAD}0,coco,{'x' * 200_000},1,5\n", "not a CSV: field larger than field limit"),
        (f"{HEAD}0,coco,a\x00b,1,5\n", "prompt: a null character"),
        (b"\xff\xfe", "cannot be read as UTF-8 text"),
    ],
)
def test_files_of_prompts(tmp_path: Path, text: str | bytes, said: str):
    (tmp_path / "p.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    told(BadInput, said, lambda: prompt_files.read(tmp_path / "p.csv"))


COLUMNS = ",".join(data.COLUMNS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected the columns"),
        ("a,b\n", "expected the columns"),
        (f"{COLUMNS}\ncat,a,object\n", "line 2: expected 7 fields"),
        (f"{COLUMNS}\ncat,a,beast,,,test,1\n", "line 2: kind: "),
        (f"{COLUMNS}\ncat,a,object,,,test,nan\n", "line 2: weight: "),
        (f"{COLUMNS}\ncat,a,object,,,test,1\ncat,a,object,,,test,1\n", "'cat' is listed twice"),
        (f'{COLUMNS}\n"cat\nx",a,object,,,test,1\n', "name: String should match pattern"),
        (f'{COLUMNS}\n"cat', "not a CSV in UTF-8"),
        (f"{COLUMNS}\n{'x' * 200_000},a,object,,,test,1\n", "not a CSV in UTF-8: field larger"),
        (b"\xff", "not a CSV in UTF-8"),
    ],
)
def test_lists_of_concepts(tmp_path: Path, text: str | bytes, said: str):
    (tmp_path / "c.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    told(BadInput, said, lambda: data.concepts(tmp_path / "c.csv"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "expected COCO's images"),
        ({"images": [], "annotations": []}, "no caption in it"),
        ({"images": [{"id": "x", "file_name": ""}], "annotations": []}, "cannot be read as JSON"),
        ({"images": [], "annotations": [{"id": 1, "image_id": 2}]}, "its annotations have no caption"),
        ({"images": [], "annotations": [{"id": 1, "image_id": 2, "caption": ""}]}, "which is not in the file"),
    ],
)
def test_captions(tmp_path: Path, content: Json, said: str):
    (tmp_path / "c.json").write_text(json.dumps(content))
    told(BadInput, said, lambda: prompt_files.read_captions(tmp_path / "c.json"))


# --- images and arrays ------------------------------------------------------------------------------------------------
def png(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (2**31 - 1, 2), (9000, 9000)])
def test_an_image_that_claims_gigabytes(tmp_path: Path, width: int, height: int):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(width, height))
    told(BadInput, "more than 67108864 pixels", lambda: image_folders.pixels(image_folders.ImageFile(path, path.name)))


def test_an_image_that_is_none(tmp_path: Path):
    for content in (b"", b"GIF89a", png(8, 8)[:40], b"\x89PNG\r\n\x1a\n" + b"\xff" * 99):
        (tmp_path / "x.png").write_bytes(content)
        told(
            Damaged,
            "cannot be decoded",
            lambda: image_folders.pixels(image_folders.ImageFile(tmp_path / "x.png", "x.png")),
        )


def npy(shape: str, descr: str = "|u1", rest: bytes = b"\0" * 12) -> bytes:
    head = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head = head.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + rest


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (npy("(100000, 512, 512, 3)"), "expected images (n, h, w, 3) of uint8 in 12 bytes, found uint8"),
        (npy("(1, 2, 2, 3)", "|O"), "found object"),
        (npy("(1, 2, 2, 3)", "<f8"), "found float64"),
        (npy("(12,)"), "found uint8 (12,)"),
        (npy("(-1, -2, 2, 3)"), "found uint8"),
        (npy("(" + "1," * 5000 + ")"), "not an .npy file"),
        (npy("__import__('os').system('id')"), "not an .npy file"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "not an .npy file"),
        (b"", "not an .npy file"),
        (b"\x80\x04.", "not an .npy file"),
    ],
)
def test_arrays_of_images(content: bytes, said: str):
    """Nothing is made room for, unpickled or evaluated."""
    with pytest.raises(ValueError, match="^.*$") as caught:
        untrusted.images(content)
    assert said in str(caught.value)


def test_arrays_of_images_that_are_some():
    for shape in ((2, 4, 5, 3), (0, 4, 4, 3)):
        given = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
        out = io.BytesIO()
        np.save(out, given, allow_pickle=False)
        found = untrusted.images(out.getvalue())
        assert found.shape == shape and (found == given).all() and found.flags.writeable


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 8, struct.pack("<Q", 10 * 2**30) + b"{}", struct.pack("<Q", 2**63) + b"{", b"\x80\x04N."],
)
def test_raw_outputs(content: bytes):
    with pytest.raises(ValueError, match="not safetensors"):
        untrusted.arrays(content)


def test_raw_outputs_of_another_number_of_images():
    from safetensors.numpy import save

    held = save({"a": np.zeros((3, 2))})
    assert untrusted.arrays(held, 3)["a"].shape == (3, 2)
    with pytest.raises(ValueError, match="expected 4 rows"):
        untrusted.arrays(held, 4)


# --- stores -----------------------------------------------------------------------------------------------------------
def test_a_link_out_of_the_store(tmp_path: Path):
    """Its target stays as it is, and is neither read nor moved."""
    (tmp_path / "secret").write_bytes(b"{}")
    store = Store(tmp_path / "store")
    store.put("images", "key", "shard", files={"a.json": b"{}"})
    place = store.root / "images" / "key" / "shard" / "a.json"
    place.unlink()
    place.symlink_to(tmp_path / "secret")
    told(Damaged, "a.json is a link out of the store", lambda: store.get("images", "key", "shard"))
    assert (tmp_path / "secret").read_bytes() == b"{}" and not store.has("images", "key", "shard")
    elsewhere = tmp_path / "elsewhere" / "shard"
    shutil.copytree(store.root / "damaged", elsewhere.parent, symlinks=True)
    other = next(elsewhere.parent.iterdir())
    (other / "a.json").unlink()
    (other / "a.json").write_bytes(b"{}")
    (store.root / "images" / "key" / "linked").symlink_to(other)
    told(Damaged, "a.json is a link out of the store", lambda: store.get("images", "key", "linked"))
    assert (other / "a.json").read_bytes() == b"{}"


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", ""])
def test_a_manifest_names_files_and_no_paths(tmp_path: Path, name: str):
    store = Store(tmp_path / "store")
    store.put("images", "key", "shard", files={"a.json": b"{}"})
    manifest = store.root / "images" / "key" / "shard" / "manifest.json"
    manifest.write_text(json.dumps({"schema": 1, "files": {name: {"sha256": "0" * 64, "bytes": 2}}}))
    (tmp_path / "records").mkdir()
    assert any("manifest.json: cannot be read" in line for line in verify.verify(tmp_path))
    told(Damaged, "manifest.json is not one of schema 1", lambda: store.get("images", "key", "shard"))


def test_a_store_of_a_stranger_with_fitting_checksums(tmp_path: Path):
    """Checksums say that bytes are those written, not that they are what they should be."""
    store = Store(tmp_path / "store")
    store.put("images", "key", "bad", files={"items.json": b'[{"prompt": 1}]', "images.npy": npy("(9, 9, 9, 3)")})
    listed = keys.items_json([("a", 1, "0" * 64)])
    store.put("images", "key", "good", files={"items.json": listed, "images.npy": npy("(1, 2, 2, 3)")})
    told(Damaged, "items.json of some images cannot be read", lambda: keys.parse_items(b'[{"prompt": 1}]'))
    said: list[str] = []
    found = rescore.Stored(Store(tmp_path / "store", readonly=True), said.append)
    assert list(found._places) == ["0" * 64] and "cannot be read" in said[0]
    told(Damaged, "images.npy cannot be read", lambda: found._images("key", "bad"))
    told(Damaged, "stored raw outputs of x cannot be read", lambda: rescore._loaded(b"xx", "x"))
    shown = pictures.Images(Store(tmp_path / "store", readonly=True), said.append)
    assert list(shown.places) == ["0" * 64] and shown._load_shard("key", "bad") is None


# --- models -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "expected the parts of a pipeline, found list"),
        ("{", "is not a diffusers folder"),
        ('{"_class_name": ["x"]}', "expected one of FluxPipeline, StableDiffusionPipeline"),
        ('{"_class_name": "StableDiffusionPipeline", "../../x": ["a", "b"]}', "expected a name, not a path: '../../x'"),
        ('{"_class_name": "StableDiffusionPipeline", "/etc": ["a", "b"]}', "expected a name, not a path: '/etc'"),
    ],
)
def test_folders_of_models(tmp_path: Path, content: str, said: str):
    (tmp_path / "model_index.json").write_text(content)
    told(BadInput, said, lambda: models.describe(str(tmp_path)))


def test_names_of_folders_that_records_could_not_hold(tmp_path: Path):
    folder = tmp_path / "a\nb"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(BadInput, match="rename the folder"):
        models.describe(str(folder))


@pytest.mark.parametrize("name", ["../../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", 3])
def test_lists_of_shards_name_files_beside_them(tmp_path: Path, name: Json):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    told(BadInput, "expected a weight_map of files beside it", lambda: models.check_shards(tmp_path))


def test_images_of_the_site_are_untouched_by_bombs(tmp_path: Path):
    """PIL's own limit stays as it is: nothing here lifts it."""
    assert Image.MAX_IMAGE_PIXELS is not None and Image.MAX_IMAGE_PIXELS <= 178956970
