"""Weights come from a hub only when asked for; what no hub has is named."""

from __future__ import annotations

import email.message
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmark import data_files
from benchmark import fetch as fetching
from benchmark.data import DataFile
from benchmark.data_files import Wanted
from benchmark.errors import BadInput, Damaged, Missing
from benchmark.plan import make_plan
from benchmark.run import RunOptions, execute


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("ERASURE_BENCH_MODELS", "ERASURE_BENCH_DATA", "ERASURE_BENCH_I2P", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)


def test_only_the_model_is_asked_for_and_no_pickle():
    asked: list[tuple[str, Sequence[str]]] = []

    def download(hub: str, patterns: Sequence[str]) -> str:
        asked.append((hub, patterns))
        return "somewhere"

    # The stand-in leaves nothing behind, so the model and the judge are still lacking.
    with pytest.raises(Missing, match="not on a hub that is known here: weights of sd14"):
        fetching.fetch(make_plan("objects", model="sd14"), download=download)
    assert [hub for hub, _ in asked] == ["CompVis/stable-diffusion-v1-4"]
    assert not any(p.endswith((".bin", ".ckpt", ".pt")) for p in asked[0][1])


def test_a_run_downloads_nothing_if_it_could_not_run_all_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Weights of Stable Diffusion alone give no board: the judge is lacking too."""
    monkeypatch.setattr(fetching, "snapshot", lambda hub, patterns: pytest.fail("downloaded"))
    assert not fetching.enough(make_plan("objects", model="sd14"))
    with pytest.raises(Missing, match="clip-vitb32"):
        execute(RunOptions(suite="objects", model="sd14", out=tmp_path / "out", download=True))
    assert not (tmp_path / "out").exists()


def test_nothing_is_downloaded_when_all_is_there():
    def never(hub: str, patterns: Sequence[str]) -> str:
        raise AssertionError("downloaded")

    assert fetching.fetch(make_plan("smoke"), download=never) == []


def test_a_model_without_a_hub_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmark.models.candidates", lambda spec: [Path("nowhere")])
    with pytest.raises(BadInput, match="testbed is on no hub"):
        fetching.fetch(make_plan("smoke"))


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def unreachable(*args: object, **kwargs: object) -> str:
        raise OSError("no route\nsecond line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(Missing, match="^cannot download some/model: no route; accept"):
        fetching.snapshot("some/model", ["*.json"])


# --- data files -------------------------------------------------------------------------------------------------------
CONTENT = b"prompt,evaluation_seed\na,1\n"


def on_the_web(**changes: object) -> Wanted:
    given = {
        "name": "prompts",
        "kind": "prompts",
        "file": "a/b.csv",
        "licence": "x",
        "url": "https://example.org/b.csv",
    }
    return Wanted("mine", DataFile.model_validate({**given, **changes}))


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes | int]:
    """A web with one file; `promised` is the length that it tells."""
    state: dict[str, bytes | int] = {"content": CONTENT, "promised": len(CONTENT)}

    class Answer(io.BytesIO):
        headers = email.message.Message()

    def urlopen(url: str, timeout: float) -> Answer:
        assert url == "https://example.org/b.csv" and timeout
        answer = Answer(state["content"])  # type: ignore[arg-type]
        answer.headers = email.message.Message()
        answer.headers["Content-Length"] = str(state["promised"])
        return answer

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return state


def test_a_file_of_no_hub_comes_into_the_cache_with_its_checksum_beside_it(web: object, tmp_path: Path):
    what = on_the_web()
    place = fetching.data_file(what)
    assert place == tmp_path / "cache" / "erasure-bench" / "data" / "mine" / "a" / "b.csv" == data_files.find(what)
    assert place.read_bytes() == CONTENT
    assert data_files.manifest(place.with_name("SHA256SUMS")) == {"b.csv": hashlib.sha256(CONTENT).hexdigest()}
    assert sorted(p.name for p in place.parent.iterdir()) == ["SHA256SUMS", "b.csv"]


def test_the_folder_for_data_is_used_where_there_is_one(web: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ERASURE_BENCH_DATA", str(tmp_path / "folder"))
    assert fetching.data_file(on_the_web()) == tmp_path / "folder" / "mine" / "a" / "b.csv"


def test_other_bytes_than_the_card_promises_are_not_kept(web: dict[str, bytes | int]):
    what = on_the_web(sha256=hashlib.sha256(CONTENT).hexdigest())
    web["content"] = CONTENT.replace(b"1", b"2")
    with pytest.raises(Damaged, match="expected " + hashlib.sha256(CONTENT).hexdigest()):
        fetching.data_file(what)
    assert list(data_files.home(what).parent.iterdir()) == []
    web["content"] = CONTENT
    assert fetching.data_file(what).read_bytes() == CONTENT


def test_a_download_that_stops_is_one_line_and_leaves_nothing(web: dict[str, bytes | int]):
    web["promised"] = len(CONTENT) + 1
    with pytest.raises(
        Missing, match=r"^cannot download mine/prompts from https://.*27 of 28 bytes arrived; put it into"
    ):
        fetching.data_file(on_the_web())
    assert list(data_files.home(on_the_web()).parent.iterdir()) == []


def test_a_hub_s_file_is_asked_for_at_its_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    what = data_files.wanted("i2p", "prompts")
    place = tmp_path / "hub" / "datasets--AIML-TUDA--i2p" / "snapshots" / what.file.revision / what.file.file

    def download(hub: str, name: str, *, repo_type: str, revision: str, cache_dir: Path) -> str:
        assert (hub, name, repo_type, cache_dir) == ("AIML-TUDA/i2p", what.file.file, "dataset", tmp_path / "hub")
        assert revision == what.file.revision
        place.parent.mkdir(parents=True)
        place.write_bytes(CONTENT)
        return str(place)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert fetching.data_file(what) == place == data_files.find(what)


def test_a_hub_that_has_no_such_file_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def refused(*args: object, **kwargs: object) -> str:
        raise OSError("no route\nsecond line")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refused)
    with pytest.raises(
        Missing, match="^cannot download i2p/prompts from AIML-TUDA/i2p .*: no route; .* or set ERASURE"
    ):
        fetching.data_file(data_files.wanted("i2p", "prompts"))


def test_what_takes_hands_is_left_to_them():
    with pytest.raises(BadInput, match="coco30k/images: download val2014.zip and unpack it"):
        fetching.data_file(data_files.wanted("coco30k", "images"))


def test_a_plan_s_data_files_are_fetched_and_those_that_take_hands_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    asked: list[str] = []
    files = tuple(data_files.wanted("coco30k", name) for name in ("images", "prompts"))
    monkeypatch.setattr(data_files, "named_in", lambda form: files)

    def get(what: Wanted) -> Path:
        asked.append(what.name)
        place = data_files.home(what)
        place.parent.mkdir(parents=True)
        place.write_bytes(CONTENT)
        return place

    plan = make_plan("smoke")
    assert not fetching.enough(plan)  # the images cannot be had by one request
    with pytest.raises(Missing, match="not on a hub that is known here: coco30k/images from http"):
        fetching.fetch(plan, get=get)
    assert asked == ["coco30k/prompts"]
    (tmp_path / "val2014").mkdir()
    monkeypatch.setenv("ERASURE_BENCH_COCO_IMAGES", str(tmp_path / "val2014"))
    assert fetching.fetch(plan, get=get) == [] and asked == ["coco30k/prompts"]
    data_files.home(files[1]).unlink()
    assert fetching.enough(plan)
