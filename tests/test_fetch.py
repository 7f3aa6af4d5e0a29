"""Weights come from a hub only when asked for; what no hub has is named."""

from __future__ import annotations

import email.message
import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmark import data_files, models, suite
from benchmark import fetch as fetching
from benchmark.data import DataFile
from benchmark.data_files import Wanted
from benchmark.errors import BadInput, Damaged, Missing
from benchmark.metrics import evaluators, weights
from benchmark.metrics.protocols import protocol
from benchmark.metrics.weights import Weights
from benchmark.plan import make_plan
from benchmark.run import RunOptions, execute


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    names = ("MODELS", "DATA", "I2P", "EVALUATORS", "REFERENCE")
    for name in ("HUGGINGFACE_HUB_CACHE", *(f"ERASURE_BENCH_{name}" for name in names)):
        monkeypatch.delenv(name, raising=False)


def test_only_the_model_is_asked_for_and_no_pickle():
    asked: list[tuple[str, Sequence[str], str]] = []

    def download(hub: str, patterns: Sequence[str], revision: str) -> str:
        asked.append((hub, patterns, revision))
        return "somewhere"

    # The stand-ins leave nothing behind, so the model and its judges are still lacking.
    judged: list[str] = []
    with pytest.raises(Missing, match="this takes hands, no address gives it: weights of sd14"):
        fetching.fetch(
            make_plan("objects", model="sd14"),
            download=download,
            judge=lambda w: Path(judged.append(w.hub or w.url) or "somewhere"),  # type: ignore[func-returns-value]
        )
    assert [(hub, revision) for hub, _, revision in asked] == [
        ("CompVis/stable-diffusion-v1-4", "133a221b8aa7292a167afc5127cb63fb5005638b")
    ]
    assert not any(p.endswith(fetching.PICKLES) for p in asked[0][1])
    assert judged[:2] == ["openai/clip-vit-base-patch32", "grodino/resnet18_cifar10"]
    assert judged[2].endswith("inception-2015-12-05.pt") and len(judged) == 3


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("unet/diffusion_pytorch_model.safetensors", True),
        ("tokenizer/merges.txt", True),
        ("model_index.json", True),
        ("unet/diffusion_pytorch_model.fp16.safetensors", False),
        ("unet/diffusion_pytorch_model.bin", False),
        ("safety_checker/model.safetensors", False),
        ("v1-5-pruned.safetensors", False),
        ("flux1-dev.safetensors", False),
    ],
)
def test_of_a_model_its_parts_are_taken_once_and_no_whole_checkpoint(name: str, wanted: bool):
    from huggingface_hub.utils import filter_repo_objects

    kept = filter_repo_objects([name], allow_patterns=fetching.PATTERNS, ignore_patterns=fetching.LEFT_OUT)
    assert list(kept) == ([name] if wanted else [])


def test_a_run_downloads_nothing_if_it_could_not_run_all_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Weights of Stable Diffusion alone give no board: the judge is lacking too."""
    monkeypatch.setattr(fetching, "snapshot", lambda hub, patterns, revision: pytest.fail("downloaded"))
    monkeypatch.setattr(fetching, "judge_weights", lambda w: pytest.fail("downloaded"))
    assert not fetching.enough(make_plan("objects", model="sd14"))
    with pytest.raises(Missing, match="clip-vitb32"):
        execute(RunOptions(suite="objects", model="sd14", out=tmp_path / "out", download=True))
    assert not (tmp_path / "out").exists()


def test_a_model_and_its_judges_are_enough_where_nothing_takes_hands(monkeypatch: pytest.MonkeyPatch):
    """smoke on sd14 lacks a model and a CLIP, and both have an address; a missing package has none."""
    plan = make_plan("smoke", model="sd14")
    assert fetching.enough(plan)
    monkeypatch.setattr(evaluators, "_gone", lambda package: True)
    assert fetching.enough(plan), "CLIP needs no package of its own"
    assert not fetching.enough(make_plan("fade_adv", model="sd14", methods=["none"]))


def test_nothing_is_downloaded_when_all_is_there():
    def never(hub: str, patterns: Sequence[str], revision: str) -> str:
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


def test_a_message_of_a_hub_shows_no_token(monkeypatch: pytest.MonkeyPatch):
    secret, other = "hf_" + "a1B2" * 9, "my-own-secret-of-no-form"
    monkeypatch.setenv("HF_TOKEN", other)

    def refused(*args: object, **kwargs: object) -> str:
        raise OSError(f"401 for https://me:{secret}@host/x?token={other} with Bearer {secret}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refused)
    with pytest.raises(Missing) as told:
        fetching.snapshot("some/model", ["*.json"])
    assert secret not in str(told.value) and other not in str(told.value)
    assert told.value.__cause__ is None and told.value.__suppress_context__


# --- judges -----------------------------------------------------------------------------------------------------------
COMMIT = "c" * 40


class Hub:
    """A hub with one repository, whose client keeps files as the real one does: links to what is named by its hash."""

    def __init__(self, cache: Path, files: dict[str, bytes]) -> None:
        self.cache, self.files, self.got = cache, files, list[str]()

    def published(self, hub: str, revision: str = "") -> fetching.Published:
        return fetching.Published(revision or COMMIT, tuple(self.files))

    def download(self, hub: str, name: str, *, revision: str, cache_dir: Path) -> str:
        self.got.append(name)
        repository = cache_dir / f"models--{hub.replace('/', '--')}"
        content = self.files[name]
        blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
        link = repository / "snapshots" / revision / name
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link.symlink_to(blob)
        return str(link)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    files = {"config.json": b"{}", "model.safetensors": b"w", "pytorch_model.bin": b"p", "README.md": b"r"}
    found = Hub(tmp_path / "hub", files)
    monkeypatch.setattr(fetching, "published", found.published)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", found.download)
    return found


def classifier(**changes: Any) -> Weights:
    files = ("config.json", "model.safetensors|pytorch_model.bin")
    given = {"name": "j", "hub": "who/judge", "files": files, "licence": "MIT", "optional": ("classes.json",)}
    return Weights(**{**given, **changes})


def test_a_judge_comes_at_its_commit_with_the_files_that_it_needs(hub: Hub):
    pinned = "d" * 40
    folder = fetching.judge_weights(classifier(revision=pinned))
    assert folder.name == pinned and hub.got == ["config.json", "model.safetensors"]
    assert weights.find(classifier(revision=pinned)) == folder
    assert fetching.judge_weights(classifier()).name == COMMIT, "of main, whatever it is now"


def test_a_pickle_is_fetched_where_its_hash_is_recorded_only(hub: Hub):
    del hub.files["model.safetensors"]
    with pytest.raises(Missing, match=r"only as a pickle without a recorded SHA-256 \(pytorch_model.bin\)"):
        fetching.judge_weights(classifier())
    known = classifier(sha256={"pytorch_model.bin": hashlib.sha256(b"p").hexdigest()})
    assert (fetching.judge_weights(known) / "pytorch_model.bin").read_bytes() == b"p"
    other = classifier(sha256={"pytorch_model.bin": "0" * 64}, hub="who/else")
    with pytest.raises(Damaged, match="expected a file with SHA-256 0000"):
        fetching.judge_weights(other)


def test_other_bytes_than_the_commit_promises_are_found(hub: Hub):
    folder = fetching.judge_weights(classifier())
    (folder / "model.safetensors").resolve().write_bytes(b"other")
    with pytest.raises(Damaged, match="other bytes came than its hub promises"):
        fetching.check_blobs([folder / "model.safetensors"])
    text = folder / "README.md"
    named = folder / hashlib.sha1(b"blob 1\0r", usedforsecurity=False).hexdigest()
    named.write_bytes(b"r")
    text.symlink_to(named)
    fetching.check_blobs([text, folder / "config.json"])
    named.write_bytes(b"R")
    with pytest.raises(Damaged):
        fetching.check_blobs([text])


def test_a_judge_of_no_hub_comes_into_the_cache_checked(web: dict[str, bytes | int], tmp_path: Path):
    digest = hashlib.sha256(CONTENT).hexdigest()
    known = Weights(
        name="j", url="https://example.org/b.csv", files=("b.csv",), licence="x", sha256={"b.csv": digest[:8]}
    )
    folder = fetching.judge_weights(known)
    assert folder == tmp_path / "cache" / "erasure-bench" / "evaluators" / "j" == weights.find(known)
    (folder / "b.csv").write_bytes(CONTENT + b"x")
    with pytest.raises(Damaged):
        weights.digest(known, folder)
    web["content"] = b"other" * 5 + b"\n\n"
    web["promised"] = len(b"other" * 5) + 2
    with pytest.raises(Damaged, match=f"expected SHA-256 {digest[:8]}, got .*nothing of it is kept"):
        fetching.judge_weights(known)
    unknown = Weights(name="p", url="https://example.org/b.pth", files=("b.pth",), licence="x")
    with pytest.raises(Missing, match="is a pickle, and no SHA-256 of it is recorded"):
        fetching.judge_weights(unknown)


def test_what_came_without_a_recorded_hash_is_held_to_what_it_was(web: object):
    w = Weights(name="j", url="https://example.org/b.csv", files=("b.csv",), licence="x")
    folder = fetching.judge_weights(w)
    before = weights.digest(w, folder)
    assert before == weights.digest(w, folder)
    (folder / "b.csv").write_bytes(CONTENT + b"x")
    with pytest.raises(Damaged, match="expected a file with SHA-256"):
        weights.digest(w, folder)


def test_a_judge_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def unreachable(hub: str, revision: str = "") -> fetching.Published:
        raise OSError("no route\nsecond line")

    monkeypatch.setattr(fetching, "published", unreachable)
    with pytest.raises(Missing, match="^cannot download who/judge: no route; accept"):
        fetching.judge_weights(classifier())


def test_every_judge_that_a_suite_names_is_pinned_or_has_its_hash():
    """A commit for what is on a hub, a hash for what is not: what is fetched today is what is fetched in a year."""
    for name in suite.names():
        for id_ in suite.load(name).form("paper").protocols:
            for w in evaluators.spec_of(protocol(id_).evaluator).sources:
                if w.hub:
                    assert re.fullmatch("[0-9a-f]{40}", w.revision), w.hub
                else:
                    assert w.sha256 and set(w.sha256) <= {f for file in w.files for f in file.split("|")}, w.name


def test_every_model_of_a_hub_is_pinned():
    specs = [models.describe(name) for name in models.names()]
    assert all(re.fullmatch("[0-9a-f]{40}", s.revision) for s in specs if s.hub)
    assert len({s.revision for s in specs if s.hub}) == sum(bool(s.hub) for s in specs)


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
    with pytest.raises(Missing, match="this takes hands, no address gives it: coco30k/images from http"):
        fetching.fetch(plan, get=get)
    assert asked == ["coco30k/prompts"]
    (tmp_path / "val2014").mkdir()
    monkeypatch.setenv("ERASURE_BENCH_COCO_IMAGES", str(tmp_path / "val2014"))
    assert fetching.fetch(plan, get=get) == [] and asked == ["coco30k/prompts"]
    data_files.home(files[1]).unlink()
    assert fetching.enough(plan)
