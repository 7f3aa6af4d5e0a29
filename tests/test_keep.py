"""What runs leave is kept and moved: gc takes nothing that a run rests on, archives arrive whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from benchmark import archive, cli, keys, prune, referenced, run, verify
from benchmark.errors import BadInput, BenchError, Damaged
from benchmark.leases import Leases
from benchmark.store import Store
from benchmark.torture import played

Snapshot = dict[str, bytes]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "tiny.yaml"
    path.write_text(played.SUITE)
    return path


@pytest.fixture(scope="module")
def few(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, not to be changed."""
    out = tmp_path_factory.mktemp("few") / "out"
    execute(suite, out)
    return out


@pytest.fixture
def copy(few: Path, tmp_path: Path) -> Path:
    shutil.copytree(few, tmp_path / "out")
    return tmp_path / "out"


def execute(suite: Path, out: Path, **options: Any) -> None:
    with played.playing(suite, **options):
        assert run.execute(run.RunOptions(suite="tiny", out=out, quiet=True)) == 0


def snapshot(out: Path) -> Snapshot:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, list(map(str, arguments)))


def old(root: Path, days: float = 30) -> None:
    """As if it had been written long ago."""
    past = time.time() - days * 24 * 3600
    for path in root.rglob("*"):
        os.utime(path, (past, past))


# --- gc -----------------------------------------------------------------------------------------------------------
def test_nothing_that_a_run_rests_on_is_unused(few: Path):
    store = Store(few / "store", readonly=True)
    found = referenced.referenced(referenced.read([few]), store)
    assert not found.open
    assert set(store.addresses()) == {a for a in store.addresses() if a in found}
    kinds = {address[0] for address in store.addresses()}
    assert kinds == {"edits", "costs", "images", "raw", "scores"}


def test_gc_takes_what_no_run_rests_on_and_the_run_stays_as_it_was(suite: Path, copy: Path):
    """The seed of another run gives other edits, images, raw outputs and scores in the same store."""
    before = snapshot(copy)
    shutil.copytree(copy, other := copy.parent / "other")
    shutil.rmtree(other / "records")
    with played.playing(suite, methods=("uce",), seed=7):
        assert run.execute(run.RunOptions(suite="tiny", out=other, store=copy / "store", quiet=True)) == 0
    more = snapshot(copy).keys() - before.keys()
    assert len(more) > 10
    assert not prune.find([copy, other], copy / "store", older_than=0)[0].unused, "both runs are named"
    old(copy / "store")
    (report,) = prune.find([copy])
    assert {f.kind for f in report.unused} == {"edits", "costs", "images", "raw", "scores"}
    assert {f"store/{f.name}" for f in report.unused} == {str(Path(name).parent) for name in more}
    assert report.bytes == sum((copy / name).stat().st_size for name in more)
    assert snapshot(copy).keys() - before.keys() == more, "told, not done"
    assert prune.delete(report) == report.bytes
    assert snapshot(copy) == before
    assert verify.verify(copy) == []


def test_the_command_deletes_only_when_told(suite: Path, copy: Path):
    execute(suite, copy, methods=("none",))  # its folder is now a run of one method: the other's artifacts are unused
    old(copy / "store")
    before = snapshot(copy)
    shown = call("gc", copy)
    assert shown.exit_code == 0 and snapshot(copy) == before
    assert "would delete" in shown.output and "--delete does it" in shown.output
    told = json.loads(call("gc", copy, "--json").output)["stores"][0]
    assert told["bytes"] == sum(f["bytes"] for f in told["unused"]) > 0 and not told["deleted"]
    assert call("gc", copy, "--only", "images", "--delete").exit_code == 0
    gone = before.keys() - snapshot(copy).keys()
    assert gone and all(name.startswith("store/images/") for name in gone)
    assert call("gc", copy, "--delete").exit_code == 0
    assert call("gc", copy, "--delete").output.startswith(f"{copy / 'store'}: deleted 0 bytes in 0 artifacts")
    assert verify.verify(copy) == []


def test_young_artifacts_stay_for_a_run_may_be_at_work_on_them(suite: Path, copy: Path):
    execute(suite, copy, methods=("none",))
    (report,) = prune.find([copy])
    assert not report.unused and report.young > 0
    old(copy / "store", days=6.9)
    assert not prune.find([copy])[0].unused
    assert prune.find([copy], older_than=6.5)[0].unused


def test_what_was_set_aside_or_left_goes_too(copy: Path):
    store = Store(copy / "store")
    address = next(a for a in store.addresses() if a[0] == "scores")
    (store.root.joinpath(*address) / "scores.json").write_bytes(b"{")
    with pytest.raises(Damaged):
        store.get(*address)
    (store.root / "tmp" / "ffffffff-1-00000000").mkdir()
    old(store.root)
    (report,) = prune.find([copy])
    assert {f.kind for f in report.unused} == {"damaged", "tmp"}
    prune.delete(report)
    assert not list((store.root / "damaged").iterdir()) and not list((store.root / "tmp").iterdir())


def test_a_journal_that_nobody_goes_on_with_goes_and_is_not_exported(copy: Path, tmp_path: Path):
    store, address = Store(copy / "store"), (keys.JOURNALS, "0" * keys.LENGTH, "training@7")
    store.put(*address, files={"state.json": b"{}"})
    assert not prune.find([copy])[0].unused, "a run may go on with it"
    assert call("export", copy, "--out", tmp_path / "a.zip").exit_code == 0
    assert call("import", tmp_path / "a.zip", "--out", tmp_path / "b").exit_code == 0
    assert not list((tmp_path / "b" / "store").glob("journals/*"))
    old(copy / "store" / keys.JOURNALS)
    (report,) = prune.find([copy])
    assert [f.name for f in report.unused] == ["/".join(address)]
    prune.delete(report)
    assert not store.has(*address) and verify.verify(copy) == []


def test_where_records_cannot_tell_all_of_a_kind_stays(suite: Path, copy: Path, monkeypatch: pytest.MonkeyPatch):
    execute(suite, copy, methods=("none",))
    old(copy / "store")
    kinds = {f.kind for f in prune.find([copy])[0].unused}
    assert {"edits", "raw"} <= kinds
    monkeypatch.setattr(referenced, "_needs", lambda r: ("uce",))
    monkeypatch.setattr(referenced, "_hashes", lambda judge, records: {"0" * 64})
    (report,) = prune.find([copy])
    assert {f.kind for f in report.unused} == kinds - {"edits", "costs", "raw"}
    assert "needs an edit of uce" in report.open["edits"] and "testbed-a" in report.open["raw"]
    assert any("all edits stay" in line for line in prune.lines(report, deleted=False))


def test_gc_refuses_where_it_cannot_know(copy: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for arguments, said in (
        ([tmp_path / "empty"], "is no run and holds none"),
        ([copy, "--store", tmp_path / "empty" / "no"], "no store"),
        ([copy, "--older-than", "-1"], "expected days"),
    ):
        result = call("gc", *arguments)
        assert result.exit_code == 2 and said in result.stderr, result.stderr
    with Leases(copy / "store" / prune.CLAIMS).hold("edits", "x"):
        assert "a run is at work" in call("gc", copy).stderr
    record = next((copy / "records").iterdir())
    record.write_bytes(record.read_bytes()[:99])
    assert call("gc", copy, "--delete").exit_code == 1, "what that record rests on is not known"


# --- export and import --------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def packed(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "run.zip"
    archive.export(few, path)
    return path


def kept(out: Path) -> Snapshot:
    """Of a run, what moves."""
    return {name: content for name, content in snapshot(out).items() if not name.startswith("log/")}


def test_a_run_arrives_as_it_was_and_the_same_command_goes_on(suite: Path, few: Path, packed: Path, tmp_path: Path):
    shown = call("export", few, "--out", tmp_path / "again.zip")
    assert shown.exit_code == 0 and (tmp_path / "again.zip").read_bytes() == packed.read_bytes()
    digest = shown.output.split()[-1]
    came = call("import", packed, "--out", tmp_path / "out", "--sha256", digest)
    assert came.exit_code == 0, came.output
    assert snapshot(tmp_path / "out") == kept(few)
    assert verify.verify(tmp_path / "out") == []
    execute(suite, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "costs.json").read_bytes())["last_run"]["images_made"] == 0
    assert {n: c for n, c in kept(tmp_path / "out").items() if n != "costs.json"} == {
        n: c for n, c in kept(few).items() if n != "costs.json"
    }


def test_artifacts_can_go_to_a_shared_store_and_only_those_of_the_run_move(
    suite: Path, few: Path, packed: Path, tmp_path: Path
):
    shutil.copytree(few / "store", tmp_path / "shared")
    with played.playing(suite, methods=("uce",), seed=7):
        options = run.RunOptions(suite="tiny", out=tmp_path / "b", store=tmp_path / "shared", quiet=True)
        assert run.execute(options) == 0
    archive.export(few, tmp_path / "a.zip", tmp_path / "shared")
    assert (tmp_path / "a.zip").read_bytes() == packed.read_bytes()
    store = tmp_path / "there"
    assert call("import", packed, "--out", tmp_path / "out", "--store", store).exit_code == 0
    assert not (tmp_path / "out" / "store").exists()
    assert verify.verify(tmp_path / "out", store) == []
    expected = {n.removeprefix("store/"): c for n, c in kept(few).items() if n.startswith("store/")}
    assert snapshot(store) == expected


def test_nothing_is_overwritten(few: Path, packed: Path, tmp_path: Path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("mine")
    result = call("import", packed, "--out", tmp_path / "taken")
    assert result.exit_code == 2 and "expected a new or empty folder" in result.stderr
    result = call("export", few, "--out", tmp_path / "taken" / "mine")
    assert result.exit_code == 2 and "nothing is overwritten" in result.stderr
    assert snapshot(tmp_path) == {"taken/mine": b"mine"}


@pytest.mark.parametrize("name", ["board.json", "records/uce.erase_cat.seed0.json", "store"])
def test_a_damaged_run_is_not_exported(name: str, copy: Path, tmp_path: Path):
    path = next((copy / "store" / "images").rglob("images.npy")) if name == "store" else copy / name
    path.write_bytes(path.read_bytes()[:-3])
    result = call("export", copy, "--out", tmp_path / "a.zip")
    assert result.exit_code == 1 and "cannot be moved" in result.stderr
    assert not list(tmp_path.glob("*a.zip*"))


def refused(path: Path, tmp_path: Path, error: type[BenchError] = Damaged, **options: Any) -> str:
    """The message of an archive that is refused, after which nothing is left."""
    before = {p for p in tmp_path.rglob("*")}
    with pytest.raises(error) as caught:
        archive.unpack(path, tmp_path / "in" / "out", tmp_path / "store", **options)
    left = {p for p in tmp_path.rglob("*")} - before
    assert left <= {tmp_path / "in"}, left
    return str(caught.value)


def test_an_archive_with_any_byte_changed_or_cut_leaves_nothing_behind(packed: Path, tmp_path: Path):
    content = packed.read_bytes()
    step = max(1, len(content) // 40)
    for at in range(0, len(content), step):
        flipped = bytearray(content)
        flipped[at] ^= 0x10
        for name, harmed in (("flipped.zip", bytes(flipped)), ("cut.zip", content[:at])):
            (tmp_path / name).write_bytes(harmed)
            try:
                archive.unpack(tmp_path / name, tmp_path / "out")
            except BenchError:
                assert not (tmp_path / "out").exists()
            else:  # a byte that says nothing, such as a version or a time
                assert snapshot(tmp_path / "out") == _unpacked(packed, tmp_path)
                shutil.rmtree(tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} <= {"flipped.zip", "cut.zip", "fine"}


def _unpacked(packed: Path, tmp_path: Path) -> Snapshot:
    if not (tmp_path / "fine").exists():
        archive.unpack(packed, tmp_path / "fine")
    return snapshot(tmp_path / "fine")


Change = Callable[[dict[str, bytes], dict[str, Any]], None]


def _escape(name: str) -> Change:
    def change(files: dict[str, bytes], manifest: dict[str, Any]) -> None:
        files[name] = b"evil"
        digest = "4f7bfba0bb9c8b1a0a4b7f7bb8a7b0b1b9a7bb9bbd9d0f9d1e0f4cb0e8b0e1a1"
        manifest["files"].append({"name": name, "bytes": 4, "sha256": digest})

    return change


def _record(files: dict[str, bytes], manifest: dict[str, Any]) -> None:
    """A record changed, and its checksum in the manifest with it: the run's own checksums tell."""
    import hashlib

    name = next(n for n in files if n.startswith("records/"))
    files[name] = files[name].replace(b"cat", b"dog")
    entry = next(e for e in manifest["files"] if e["name"] == name)
    entry |= {"bytes": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()}


CHANGES: dict[str, tuple[Change, str]] = {
    "above": (_escape("../evil"), "no file of a run"),
    "deep above": (_escape("store/../../evil"), "no file of a run"),
    "absolute": (_escape("/tmp/evil"), "no file of a run"),
    "backslash": (_escape("records/..\\evil"), "no file of a run|expected a name"),
    "another place": (_escape("bin/evil"), "no file of a run"),
    "a page": (_escape("index.html"), "no file of a run"),
    "hidden": (_escape("records/.evil"), "no file of a run"),
    "not listed": (lambda files, manifest: files.update({"board.txt": b""}), "not those that its manifest names"),
    "listed only": (lambda files, manifest: files.pop("board.csv") and None, "not those that its manifest names"),
    "size": (lambda files, manifest: manifest["files"][0].update(bytes=1), "is not what was packed|more than the 1"),
    "negative": (lambda files, manifest: manifest["files"][0].update(bytes=-1), "no file of a run"),
    "hash": (lambda files, manifest: manifest["files"][0].update(sha256="0" * 64), "is not what was packed"),
    "schema": (lambda files, manifest: manifest.update(schema=99), "not one of schema 1"),
    "nothing": (lambda files, manifest: manifest.update(files=[]), "not those that its manifest names"),
    "no list": (lambda files, manifest: manifest.update(files={}), "not one of schema 1"),
    "twice": (lambda files, manifest: manifest["files"].append(manifest["files"][0]), "not those that its manifest"),
    "a record": (_record, "changed since it was written"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_an_archive_that_is_not_what_it_says_is_refused(what: str, packed: Path, tmp_path: Path):
    change, said = CHANGES[what]
    with zipfile.ZipFile(packed) as source:
        files = {name: source.read(name) for name in source.namelist()}
    manifest = json.loads(files.pop("manifest.json"))
    change(files, manifest)
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w") as target:
        for name, content in {**files, "manifest.json": json.dumps(manifest).encode()}.items():
            target.writestr(name, content)
    import re

    assert re.search(said, refused(path, tmp_path)), what


def test_bombs_are_refused_before_they_are_unpacked(packed: Path, tmp_path: Path):
    assert "--limit" in refused(packed, tmp_path, BadInput, limit=1000)
    path = tmp_path / "bomb.zip"
    manifest = {"schema": 1, "files": [{"name": "board.json", "bytes": 10 * 2**40, "sha256": "0" * 64}]}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("board.json", bytes(10**6))
        target.writestr("manifest.json", json.dumps(manifest))
    assert "unpacks to" in refused(path, tmp_path, BadInput)
    manifest["files"][0]["bytes"] = 1000  # type: ignore[index]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("board.json", bytes(10**6))
        target.writestr("manifest.json", json.dumps(manifest))
    assert "more than the 1000 bytes" in refused(path, tmp_path)


def test_what_is_no_archive_is_refused(packed: Path, tmp_path: Path):
    (tmp_path / "text").write_text("hello")
    assert "damaged, or no archive of ours" in refused(tmp_path / "text", tmp_path)
    assert "cannot read" in refused(tmp_path / "absent", tmp_path, BadInput)
    assert "expected 00" in refused(packed, tmp_path, sha256="0" * 64)


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path.parent / "evil").exists() and not Path("/tmp/evil").exists()
