"""The store: whole or not at all, checked when read, idempotent, shared by processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmark.errors import BadInput, Damaged
from benchmark.store import MANIFEST, Store

FILES = {"images.npy": b"pixels", "items.json": b"[]"}
ADDRESS = ("images", "abc", "shard1")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_what_is_put_is_got(store: Store):
    assert not store.has(*ADDRESS)
    store.put(*ADDRESS, files=FILES)
    assert store.has(*ADDRESS)
    assert store.get(*ADDRESS) == FILES
    assert store.read(*ADDRESS, file="items.json") == b"[]"
    assert Store(store.root).get(*ADDRESS) == FILES, "another process finds it"


def test_what_is_not_there_is_a_key_error(store: Store):
    with pytest.raises(KeyError):
        store.get(*ADDRESS)
    store.put(*ADDRESS, files=FILES)
    with pytest.raises(KeyError):
        store.read(*ADDRESS, file="other.npy")


def test_children_are_the_artifacts_right_below_sorted(store: Store):
    assert store.children("images", "abc") == []
    for name in ("b", "a", "c"):
        store.put("images", "abc", name, files=FILES)
    assert store.children("images", "abc") == ["a", "b", "c"]
    assert store.children("images") == []


def test_an_artifact_is_the_same_bytes_every_time(store: Store, tmp_path: Path):
    other = Store(tmp_path / "other")
    store.put(*ADDRESS, files=FILES)
    other.put(*ADDRESS, files=dict(reversed(FILES.items())))
    for path in store.root.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (other.root / path.relative_to(store.root)).read_bytes()


def test_put_of_what_is_there_changes_nothing(store: Store):
    store.put(*ADDRESS, files=FILES)
    before = {p: p.stat().st_mtime_ns for p in store.root.rglob("*") if p.is_file()}
    store.put(*ADDRESS, files={"images.npy": b"others"})
    assert store.get(*ADDRESS) == FILES
    assert {p: p.stat().st_mtime_ns for p in store.root.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_crash_before_the_rename_leaves_nothing_half(store: Store, monkeypatch: pytest.MonkeyPatch, call: str):
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, call, crash)
        with pytest.raises(KeyboardInterrupt):
            store.put(*ADDRESS, files=FILES)
    assert not store.has(*ADDRESS) and store.children("images", "abc") == []
    store.put(*ADDRESS, files=FILES)
    assert store.get(*ADDRESS) == FILES


def test_a_process_killed_while_writing_leaves_nothing_half(store: Store):
    """Killed for good, between the last byte and the rename: no `finally` runs."""
    code = f"""
import os
from benchmark.store import Store
os.rename = lambda *a: os.kill(os.getpid(), 9)
Store({str(store.root)!r}).put(*{ADDRESS!r}, files={FILES!r})
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], check=False)
    assert done.returncode == -9
    assert not store.has(*ADDRESS)
    assert len(list((store.root / "tmp").iterdir())) == 1, "what it left is out of the way"
    store.put(*ADDRESS, files=FILES)
    assert store.get(*ADDRESS) == FILES


def test_leftovers_older_than_a_day_are_cleaned_and_younger_ones_kept(store: Store):
    for name in ("old", "young"):
        (store.root / "tmp" / name).mkdir()
    past = time.time() - 25 * 3600
    os.utime(store.root / "tmp" / "old", (past, past))
    Store(store.root)
    assert [p.name for p in (store.root / "tmp").iterdir()] == ["young"]


def damage(store: Store, how: str) -> None:
    folder = store.root.joinpath(*ADDRESS)
    if how == "changed":
        (folder / "images.npy").write_bytes(b"piXels")
    elif how == "cut":
        (folder / "images.npy").write_bytes(b"pix")
    elif how == "deleted":
        (folder / "images.npy").unlink()
    elif how == "manifest":
        (folder / MANIFEST).write_bytes(b"{")
    elif how == "schema":
        (folder / MANIFEST).write_text(json.dumps({"schema": 99, "files": {}}))


@pytest.mark.parametrize("how", ["changed", "cut", "deleted", "manifest", "schema"])
def test_damage_is_named_set_aside_and_mended_by_doing_it_again(store: Store, how: str):
    store.put(*ADDRESS, files=FILES)
    damage(store, how)
    with pytest.raises(Damaged) as caught:
        store.get(*ADDRESS)
    told = str(caught.value)
    assert "images/abc/shard1" in told and ("images.npy" in told or MANIFEST in told) and "damaged/" in told
    assert not store.has(*ADDRESS)
    assert len(list((store.root / "damaged").iterdir())) == 1
    store.put(*ADDRESS, files=FILES)
    assert store.get(*ADDRESS) == FILES
    damage(store, how)
    with pytest.raises(Damaged):
        store.get(*ADDRESS)
    assert len(list((store.root / "damaged").iterdir())) == 2, "the first stays for looking at"


def test_a_folder_that_lost_its_manifest_is_made_anew(store: Store):
    store.put(*ADDRESS, files=FILES)
    (store.root.joinpath(*ADDRESS) / MANIFEST).unlink()
    assert not store.has(*ADDRESS)
    store.put(*ADDRESS, files=FILES)
    assert store.get(*ADDRESS) == FILES


def test_a_readonly_store_changes_nothing_even_on_damage(store: Store, tmp_path: Path):
    absent = Store(tmp_path / "absent", readonly=True)
    assert not absent.has(*ADDRESS) and absent.children("images") == [] and absent.size() == 0
    assert not absent.root.exists()
    store.put(*ADDRESS, files=FILES)
    damage(store, "changed")
    with pytest.raises(Damaged, match="a run sets it aside"):
        Store(store.root, readonly=True).get(*ADDRESS)
    assert store.has(*ADDRESS)


def test_size_is_the_bytes_of_all_files(store: Store):
    assert store.size() == 0
    store.put(*ADDRESS, files=FILES)
    manifest = store.root.joinpath(*ADDRESS) / MANIFEST
    assert store.size() == len(b"pixels") + len(b"[]") + manifest.stat().st_size


def test_a_root_that_cannot_be_written_is_bad_input(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(BadInput, match=f"cannot write to the store {root}: .*; name another with --store"):
            Store(root)


def test_a_full_disk_is_bad_input_and_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(BadInput, match="No space left on device"):
            store.put(*ADDRESS, files=FILES)
    assert list((store.root / "tmp").iterdir()) == [] and not store.has(*ADDRESS)


@pytest.mark.parametrize("address", [("..",), ("a/b",), ("",), (".hidden",), ("tmp", "x"), ("images", MANIFEST)])
def test_addresses_stay_within_the_store(store: Store, address: tuple[str, ...]):
    with pytest.raises(ValueError, match="not a name for an artifact"):
        store.put(*address, files=FILES)


@pytest.mark.parametrize("name", ["../x", MANIFEST, "a/b", ""])
def test_file_names_stay_within_the_artifact(store: Store, name: str):
    with pytest.raises(ValueError, match="not a name for a file"):
        store.put(*ADDRESS, files={name: b""})
    assert not store.has(*ADDRESS)


def test_two_processes_put_the_same_addresses_at_once(store: Store):
    """Both write the same forty artifacts, each in its own order; every one ends whole, and neither fails."""
    code = f"""
import sys
from benchmark.store import Store
store = Store({str(store.root)!r})
order = sorted(range(40), key=lambda i: i * int(sys.argv[1]) % 41)
print("ready", flush=True)
sys.stdin.readline()
for i in order:
    store.put("images", "abc", f"s{{i}}", files={{"a": bytes(1000), "b": b"%d" % i}})
"""
    command = [sys.executable, "-P", "-c", code]
    writers = [
        subprocess.Popen([*command, step], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for step in ("1", "40")
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    errors = [writer.communicate()[1] for writer in writers]
    assert [w.returncode for w in writers] == [0, 0], errors
    assert len(store.children("images", "abc")) == 40
    for i in range(40):
        assert store.get("images", "abc", f"s{i}") == {"a": bytes(1000), "b": b"%d" % i}
    assert list((store.root / "tmp").iterdir()) == []
    assert not (store.root / "damaged").exists()
