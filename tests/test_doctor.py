"""Doctor: what it finds, and that its self-test can fail."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from typer.testing import CliRunner

from benchmark import cli, data_files, doctor, models, needs, sample, suite
from benchmark.backbones.load import load
from benchmark.doctor import Check, Readiness, Report
from benchmark.errors import BadInput
from benchmark.metrics import evaluators, weights
from benchmark.metrics.protocols import protocol


def test_exit_codes():
    ok, absent = Check("packages", "a", "ok", ""), Check("weights", "b", "absent", "")
    inexact, gone = Check("determinism", "c", "wrong", ""), Check("packages", "d", "wrong", "")
    lacks, ready = Readiness("objects", "sd14", "paper", ("x",)), Readiness("objects", "testbed", "embedded", ())
    assert doctor.exit_code(Report((ok, absent))) == 0
    assert doctor.exit_code(Report((ok, inexact))) == 1
    assert doctor.exit_code(Report((gone, inexact))) == 3
    assert doctor.exit_code(Report((ok,), (lacks, ready))) == 0, "nobody asked for that suite"
    assert doctor.exit_code(Report((ok,), (lacks,), asked=("objects", "sd14"))) == 3
    assert doctor.exit_code(Report((ok,), (ready,), asked=("objects", "testbed"))) == 0


def test_packages_are_checked_against_their_ranges(monkeypatch: pytest.MonkeyPatch):
    named = ["numpy>=2", "scipy<1", "no-such-package>=1", 'no-such-extra>=1; extra == "slurm"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: named)
    states = {check.name: check.state for check in doctor.packages()}
    assert states == {"numpy": "ok", "scipy": "wrong", "no-such-package": "wrong", "no-such-extra": "absent"}


def test_facenet_half_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: Spec())
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.6.0")
    found = doctor.facenet()
    assert found.state == "wrong" and "pnet.pt" in found.detail


def test_shadowed_datasets_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "datasets").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "datasets", raising=False)
    assert doctor.shadowing().state == "wrong"


def test_data_files_are_shown_with_the_suites_that_need_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("ERASURE_BENCH_DATA", "ERASURE_BENCH_COCO30K"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    prompts = tmp_path / "i2p.csv"
    prompts.write_text("prompt,sd_seed\na,1\n")
    monkeypatch.setenv("ERASURE_BENCH_I2P", str(prompts))
    users = {"i2p/prompts": ["explicit"], "coco30k/prompts": ["explicit", "styles"]}
    monkeypatch.setattr(doctor, "_users", lambda: users)
    found = {check.name: check for check in doctor.data_sets()}
    assert found["i2p/prompts"].state == "ok" and found["i2p/prompts"].detail == f"for explicit; 1 prompts; {prompts}"
    coco = found["coco30k/prompts"]
    assert coco.state == "absent" and coco.detail.startswith("for explicit, styles; coco30k/prompts from https://")
    assert "size not recorded, licence captions CC BY 4.0" in coco.detail and "COCO30K (not set)" in coco.detail
    assert coco.detail.endswith("`erasure-bench fetch explicit` gets it")
    assert "unpack it" in found["coco30k/images"].detail and "6.0 GB" in found["coco30k/images"].detail
    assert found["artists/prompts_100"].detail.startswith("no suite needs it")
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  i2p.csv\n")
    changed = {check.name: check for check in doctor.data_sets()}["i2p/prompts"]
    assert changed.state == "wrong" and "expected 0000" in changed.detail


def test_files_that_are_here_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Folders of images by class or by label; one of another data set is told before a suite asks for it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("ERASURE_BENCH_DATA", str(tmp_path))
    flowers = tmp_path / "oxford_flowers"
    (flowers / "jpg").mkdir(parents=True)
    for number in range(1, 7):
        Image.new("RGB", (6, 4)).save(flowers / "jpg" / f"image_{number:05d}.jpg")
    for dataset, folder in (("stanford_dogs", "n02085620-Chihuahua"), ("imagenette", "n02085620-Chihuahua")):
        own = tmp_path / f"{dataset}_images"
        (own / folder).mkdir(parents=True)
        Image.new("RGB", (6, 4)).save(own / folder / "1.jpg")
        monkeypatch.setenv(f"ERASURE_BENCH_{dataset.upper()}", str(own))

    def found() -> dict[str, doctor.Check]:
        return {check.name: check for check in doctor.data_sets()}

    assert "; 1 images of 1 concepts; " in found()["stanford_dogs/images"].detail
    assert found()["imagenette/images"].state == "wrong", "of dogs it has the springer alone"
    assert "; 6 images; " in found()["oxford_flowers/images"].detail
    savemat(flowers / "imagelabels.mat", {"labels": np.array([[77, 77, 1, 102, 1, 77]], np.uint8)})
    savemat(flowers / "setid.mat", {"trnid": [[1, 2, 3]], "valid": [[4]], "tstid": [[5, 6]]})
    assert "; 6 images of 3 concepts; " in found()["oxford_flowers/images"].detail
    assert "; 6 images of 3 classes; " in found()["oxford_flowers/labels"].detail
    assert "; 3 trnid, 1 valid, 2 tstid; " in found()["oxford_flowers/splits"].detail
    savemat(flowers / "imagelabels.mat", {"labels": np.array([[77, 77]], np.uint8)})
    assert "expected image 1 to 2" in found()["oxford_flowers/images"].detail


def test_files_of_suites_are_found_in_their_forms(monkeypatch: pytest.MonkeyPatch):
    """In whatever part of the form they are named, by any suite."""

    class Forms:
        def __init__(self, form: dict[str, object]) -> None:
            self.form = form

        def model_dump(self) -> dict[str, object]:
            return {"paper": self.form, "embedded": None}

    class Suite:
        def __init__(self, form: dict[str, object]) -> None:
            self.forms = Forms(form)

    suites = {"a": Suite({"dataset": "i2p"}), "b": Suite({"dataset": "cifar10", "x": [{"dataset": "i2p"}]})}
    monkeypatch.setattr("benchmark.suite.names", lambda: sorted(suites))
    monkeypatch.setattr("benchmark.suite.load", lambda name: suites[name])
    assert doctor._users() == {"i2p/prompts": ["a", "b"]}


def test_images_of_the_random_model_are_exact_here():
    found = doctor.exactness(load("random-unet"))
    assert found.state == "ok", found.detail


def test_images_that_depend_on_their_batch_are_caught(monkeypatch: pytest.MonkeyPatch):
    exact = sample.sample

    def leaky(backbone, items, *rest):  # type: ignore[no-untyped-def]
        for part, images in exact(backbone, items, *rest):
            yield part, images ^ np.uint8(part[0].seed % 3)  # the first of a batch touches its neighbours

    monkeypatch.setattr(sample, "sample", leaky)
    found = doctor.exactness(load("random-unet"))
    assert found.state == "wrong" and "reversed: 3 level" in found.detail


def test_json_report(monkeypatch: pytest.MonkeyPatch):
    checks = (Check("packages", "python", "ok", "3.11"), Check("weights", "sd14", "absent", "4 GB"))
    ready = Readiness("objects", "testbed", "embedded", ())
    monkeypatch.setattr(doctor, "report", lambda model: Report(checks, (ready,)))
    shown = CliRunner().invoke(cli.app, ["doctor", "--json"])
    assert shown.exit_code == 0
    assert json.loads(shown.output) == {
        "schema": 1,
        "ok": True,
        "checks": [vars(check) for check in checks],
        "suites": [{"suite": "objects", "model": "testbed", "form": "embedded", "lacks": [], "ready": True}],
        "needs": [],
    }


# --- suites on models -------------------------------------------------------------------------------------------------
@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has nothing but what came with the packages."""
    names = ("MODELS", "DATA", "EVALUATORS", "REFERENCE", "I2P", "COCO30K", "COCO_IMAGES")
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", *(f"ERASURE_BENCH_{n}" for n in names)):
        monkeypatch.delenv(name, raising=False)
    for name in ("HF_HOME", "XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "nowhere"))
    monkeypatch.setattr(weights, "cache_folder", lambda cache: tmp_path / "nowhere" / cache)
    return tmp_path


def test_every_suite_and_model_is_in_the_table(nowhere: Path):
    rows, found = doctor.readiness()
    assert {one.suite for one in rows} == set(suite.names())
    named = {m for m in models.names() if not m.startswith("random-")}
    assert {(one.suite, one.model) for one in rows} == {(s, m) for s in suite.names() for m in named}
    by = {(one.suite, one.model): one for one in rows}
    assert all(not one.lacks for one in rows if one.model == "testbed"), "the embedded forms need nothing else"
    assert by["objects", "sd14"].lacks[0] == "sd14" and "real images to compare with" in by["objects", "sd14"].lacks
    assert "coco30k/images" in by["celebrity", "flux-dev"].lacks and "i2p/prompts" in by["explicit", "sd15"].lacks
    for need in found:
        assert need.here or need.get, need.name
        if need.kind in ("model", "judge", "data") and not need.here:
            assert need.licence and need.where, need.name
    shown = "\n".join(doctor._suites_table(rows))
    assert shown.count("ready") == 1 + len(suite.names()) and "explicit" in shown


def test_every_judge_of_a_suite_and_of_the_table_has_a_line(nowhere: Path):
    checks = {check.name: check for check in doctor.judges(doctor.readiness()[1])}
    asked = {protocol(p).evaluator for s in suite.names() for p in suite.load(s).form("paper").protocols}
    assert set(checks) >= {*asked, *evaluators.EVALUATORS}
    clip = checks["clip-vitb32"]
    assert clip.state == "absent" and clip.detail.startswith("for ") and "objects" in clip.detail
    for part in ("0.6 GB", "licence MIT", "commit 3d74acf9a28c", "sha256 a63082132ba4", "looked in", "to get it: "):
        assert part in clip.detail
    assert checks["testbed-a"].state == "ok"
    assert "no suite asks for it" in checks["lpips-alex"].detail


def test_a_suite_on_a_model_is_told_whole_and_exits_with_3(nowhere: Path):
    shown = CliRunner().invoke(cli.app, ["doctor", "--suite", "explicit", "--model", "sd14"])
    assert shown.exit_code == 3
    for part in (
        "explicit on sd14, paper form: ",
        "missing  model        sd14, 4.3 GB, CreativeML OpenRAIL-M, commit 133a221b8aa7",
        "missing  data         i2p/prompts, 1 MB, MIT, commit 6594f223b054",
        "openai/clip-vit-base-patch32 (for clip-vitb32)",
        "coco30k/images",
        "download val2014.zip and unpack it",
        "`erasure-bench fetch explicit --model sd14` gets ",
        "needed",
    ):
        assert part in shown.output, part
    told = json.loads(
        CliRunner().invoke(cli.app, ["doctor", "--suite", "explicit", "--model", "sd14", "--json"]).output
    )
    assert told["ok"] is False and not told["suites"][0]["ready"]
    by = {need["name"]: need for need in told["needs"]}
    assert by["nudenet==3.4.2"]["state"] == "here" and by["i2p/prompts"]["fetchable"] is True
    assert by["openai/clip-vit-base-patch32"]["sha256"]["pytorch_model.bin"].startswith("a6308213")
    assert by["coco30k/images"]["fetchable"] is False


def test_what_is_there_is_ready_and_exits_with_0(nowhere: Path):
    shown = CliRunner().invoke(cli.app, ["doctor", "--suite", "objects"])
    assert shown.exit_code == 0, shown.output
    assert "objects on testbed, embedded form: 2 of 2 things are here" in shown.output
    assert "Everything that is needed is here." in shown.output
    assert CliRunner().invoke(cli.app, ["doctor", "--suite", "objekts"]).exit_code == BadInput.exit_code


def test_a_file_that_is_not_the_one_is_damaged_not_here(nowhere: Path, monkeypatch: pytest.MonkeyPatch):
    folder = nowhere / "own" / "inception"
    folder.mkdir(parents=True)
    (folder / "inception-2015-12-05.pt").write_text("something else")
    monkeypatch.setenv(weights.ENVIRONMENT, str(nowhere / "own"))
    (found,) = [n for n in needs.of_judge("inception") if n.kind == "judge"]
    assert found.state == "damaged" and "expected a file with SHA-256 f58cb9b6" in found.where
    line = doctor.judges(needs.of_judge("inception"))
    assert next(c for c in line if c.name == "inception").state == "wrong"


def test_a_suite_has_its_folders_checked_against_their_manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ERASURE_BENCH_COCO_IMAGES", str(tmp_path))
    picture = tmp_path / "COCO_val2014_000000000007.jpg"
    Image.new("RGB", (6, 4)).save(picture)
    need = needs.of_file(data_files.wanted("coco30k", "images"))
    assert needs.verified(need) == need and need.here, "nothing promises anything"
    data_files.promise(picture)
    assert needs.verified(need) == need
    Image.new("RGB", (6, 4), (9, 9, 9)).save(picture)
    found = needs.verified(need)
    assert found.state == "damaged" and "SHA-256 is" in found.where
    told = doctor.of_suite("explicit", "sd14").needs
    assert next(n for n in told if n.name == "coco30k/images").state == "damaged"


def test_room_on_the_disk_is_compared_with_what_is_needed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(needs, "free_bytes", lambda folder: 10 * 10**9)
    assert doctor.disk().state == "ok" and "10.0 GB free" in doctor.disk().detail
    assert doctor.disk(9 * 10**9).state == "ok"
    assert doctor.disk(11 * 10**9) == Check("device", "disk", "wrong", doctor.disk(11 * 10**9).detail)
    assert "about 11.0 GB needed" in doctor.disk(11 * 10**9).detail


def test_no_token_is_in_a_report(nowhere: Path, monkeypatch: pytest.MonkeyPatch):
    secret = "hf_" + "x" * 30
    monkeypatch.setenv("HF_TOKEN", secret)
    shown = CliRunner().invoke(cli.app, ["doctor", "--suite", "objects", "--model", "flux-dev", "--json"])
    assert shown.exit_code == 3 and secret not in shown.output
