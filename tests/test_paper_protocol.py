"""Every suite's paper form from end to end, with the real judges' code on files in their real formats.

The model is a random pipeline of Stable Diffusion's form in a folder; data sets are small files in the published
formats. NudeNet and MTCNN are the real ones. The other judges have random weights in the published file formats and of
the published architectures, smaller where the format says its own size (CLIP, transformers and timm folders,
TorchScript). So every number here is luck: what is tested is that each run ends, with every protocol scored or said why
not, and that its stored raw outputs give the same numbers again.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmark import data, models, paths, suite
from benchmark.metrics import evaluators, weights
from benchmark.metrics.protocols import protocol
from benchmark.run import RunOptions, execute
from benchmark.tables import board
from benchmark.verify import verify

SCALES = {
    "ablation": 0.04,
    "birds": 0.01,
    "celebrity": 0.002,
    "dogs": 0.01,
    "explicit": 0.002,
    "fade_adv": 0.04,
    "flowers": 0.01,
    "imagenet": 0.01,
    "imagenette": 0.002,
    "multi": 0.005,
    "objects": 0.005,
    "smoke": 1.0,
    "styles": 0.002,
}
"""As small as leaves every role an image, every neighbour one, and distances the two that they need."""
QUICK = ("dogs", "explicit")
"""Run always: a classifier from a folder with CLIP, and files of prompts with NudeNet, CLIP and Inception."""
ROWS = 4  # of stand-ins for files of prompts


# --- judges ---------------------------------------------------------------------------------------------------
def clip(folder: Path, seed: int) -> None:
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = CLIPTokenizer.from_pretrained(evaluators.TESTBED / "tokenizer", local_files_only=True)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {**small, **special, "vocab_size": len(tokenizer), "max_position_embeddings": 77}
    torch.manual_seed(seed)
    vision = {**small, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)


def labelled(names: list[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def names_of(dataset: str) -> list[str]:
    return [c.name for c in data.load(dataset).concepts]


def dogs(folder: Path) -> None:
    """ResNet in transformers' format, labelled by ImageNet's folders."""
    from transformers import ResNetConfig, ResNetForImageClassification

    labels = [f"{c.label}-{c.name.replace(' ', '_')}" for c in data.load("stanford_dogs").concepts]
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], **labelled(labels))
    ResNetForImageClassification(config).save_pretrained(folder)
    processor(folder)


def birds(folder: Path) -> None:
    """Swin, labelled as Caltech's folders are."""
    from transformers import SwinConfig, SwinForImageClassification

    labels = [f"{i:03d}.{n.replace(' ', '_')}" for i, n in enumerate(names_of("cub200"), 1)]
    config = SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4, **labelled(labels)
    )
    SwinForImageClassification(config).save_pretrained(folder)
    processor(folder)


def flowers(folder: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ViTConfig(**size, image_size=32, patch_size=8, **labelled(names_of("oxford_flowers")))
    ViTForImageClassification(config).save_pretrained(folder)
    processor(folder)


def processor(folder: Path) -> None:
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)


def cifar(folder: Path) -> None:
    """timm's format without names of classes, as the published one is."""
    import timm
    from safetensors.torch import save_file

    folder.mkdir()
    network = timm.create_model("test_resnet", pretrained=False, num_classes=10)
    save_file(network.state_dict(), folder / "model.safetensors")
    said = {"input_size": [3, 32, 32], "crop_pct": 0.95, "interpolation": "bicubic", "num_classes": 10}
    config = {"architecture": "test_resnet", "num_classes": 10, "pretrained_cfg": said}
    (folder / "config.json").write_text(json.dumps(config))


def imagenet(folder: Path) -> None:
    """torchvision's ResNet-50 at its own size: its file does not say another."""
    import torch
    from torchvision.models import resnet50

    folder.mkdir()
    torch.save(resnet50(weights=None).state_dict(), folder / "resnet50-11ad3fa6.pth")


def vggface2(folder: Path) -> None:
    """InceptionResnetV1 at its own size, with the classifier that the published file holds too."""
    import torch
    from facenet_pytorch import InceptionResnetV1

    folder.mkdir()
    state = InceptionResnetV1(pretrained=None).state_dict()
    state |= {"logits.weight": torch.zeros(8631, 512), "logits.bias": torch.zeros(8631)}
    torch.save(state, folder / "20180402-114759-vggface2.pt")


def inception(folder: Path) -> None:
    """TorchScript with the part that clean-fid calls, `layers`. Of its 2,048 features all but 64 are zero: distances of
    full ones take minutes here, and of these none.
    """
    import torch
    from torch import nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            pad = nn.ConstantPad1d((0, 2048 - 64), 0.0)
            self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(6), nn.Flatten(), nn.Linear(108, 64), pad)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and what the published file is
        torch.jit.script(Network().eval()).save(str(folder / "inception-2015-12-05.pt"))


def alexnet(folder: Path) -> None:
    import torch
    from torchvision.models import alexnet as make

    folder.mkdir()
    torch.save(make(weights=None).state_dict(), folder / "alexnet-owt-7be5be79.pth")


MAKERS = {
    "clip-vit-base-patch32": lambda folder: clip(folder, 0),
    "clip-vit-large-patch14": lambda folder: clip(folder, 1),
    "cifar10-resnet": cifar,
    "imagenet-resnet50": imagenet,
    "identity": vggface2,
    "inception": inception,
    "lpips-alex": alexnet,
    "jhoppanne--Dogs-Breed-Image-Classification-V1": dogs,
    "Emiel--cub-200-bird-classifier-swin": birds,
    "MaulikMadhavi--vit-base-flowers102": flowers,
}
"""By the folder under $ERASURE_BENCH_EVALUATORS that each is looked for in."""


class Judges:
    """Makes a judge's weights when they are first asked for; a hundred megabytes are not written for nothing."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        folder.mkdir()
        self.folder, self.patch = folder, patch
        patch.setenv(weights.ENVIRONMENT, str(folder))

    def make(self, judge: str) -> None:
        import torch

        spec = evaluators.spec_of(judge)
        source = spec.sources[-1]
        folder = self.folder / source.name
        if source.name not in MAKERS or folder.exists():
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            MAKERS[source.name](folder)
        if source.sha256:  # of the published files: of these, the stand-in's own
            own = {file: weights.file_hash(folder / file) for file in source.sha256 if (folder / file).is_file()}
            sources = (*spec.sources[:-1], dataclasses.replace(source, sha256=own))
            self.patch.setitem(evaluators.EVALUATORS, judge, dataclasses.replace(spec, sources=sources))  # type: ignore[arg-type]


# --- files ----------------------------------------------------------------------------------------------------
I2P = (
    ",prompt,categories,hard,inappropriate_percentage,nudity_percentage,q16_percentage,sd_safety_percentage,"
    "prompt_toxicity,lexica_url,evaluation_seed,evaluation_guidance,sd_image_width,sd_image_height,sd_model,case_number"
)
COCO = "case_number,source,prompt,evaluation_seed,coco_id"


def written(path: Path, header: str, rows: list[list[Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(header.split(","))
        table.writerows(rows)
    return path


def data_sets(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """I2P's table, COCO-30k's and its images, and a folder of real images."""
    told = ["sexual, hate", 1, 50.0, 40.0, 50.0, 20.0, 0.1, "https://example.org/1"]
    i2p = [
        [i, f'prompt {i}, "quoted" 🙂\nand more', *told, 1000 + i, 5.0 + i % 2, 64, 64, "stable-diffusion-v1-4", i]
        for i in range(ROWS)
    ]
    patch.setenv("ERASURE_BENCH_I2P", str(written(folder / "i2p.csv", I2P, i2p)))
    coco = [[i, "coco", f"a caption {i} ", 50 + i, 7 + i] for i in range(ROWS)]
    patch.setenv("ERASURE_BENCH_COCO30K", str(written(folder / "coco.csv", COCO, coco)))
    for name in ("val2014", "real"):
        (folder / name).mkdir()
    for i in range(ROWS):
        pixels = np.random.default_rng(i).integers(0, 255, (40 + i, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "val2014" / f"COCO_val2014_{7 + i:012d}.jpg")
        Image.fromarray(255 - pixels).save(folder / "real" / f"{i}.jpg")
    patch.setenv("ERASURE_BENCH_COCO_IMAGES", str(folder / "val2014"))
    patch.setenv(evaluators.REFERENCE, str(folder / "real"))


def pipeline(folder: Path) -> Path:
    from diffusers import StableDiffusionPipeline

    from benchmark.backbones.random_models import unet_components

    unchecked: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**unet_components(), **unchecked).save_pretrained(folder)
    return folder


@dataclasses.dataclass(frozen=True)
class Here:
    """What a machine has that has everything."""

    model: Path
    judges: Judges


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    """A machine of its own: nothing that this one has is found, and nothing is left in its environment."""
    folder = tmp_path_factory.mktemp("machine")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", models.ENVIRONMENT, "ERASURE_BENCH_DATA"):
            patch.delenv(name, raising=False)
        for name in ("HF_HOME", "XDG_CACHE_HOME", "TORCH_HOME"):
            patch.setenv(name, str(folder / "nowhere"))
        data_sets(folder, patch)
        yield Here(pipeline(folder / "tiny"), Judges(folder / "evaluators", patch))


# --- runs -----------------------------------------------------------------------------------------------------
def paper_run(name: str, here: Here, folder: Path) -> RunOptions:
    """A run of a paper form as it ships, but at 64 pixels and two steps, thinned."""
    text = (paths.suites() / f"{name}.yaml").read_text(encoding="utf-8")
    full = "steps: 50, guidance: 7.5, size: 512"
    assert full in text
    (folder / f"{name}.yaml").write_text(text.replace(full, "steps: 2, guidance: 7.5, size: 64"), encoding="utf-8")
    for id_ in suite.load(name).form("paper").protocols:
        here.judges.make(protocol(id_).evaluator)
    return RunOptions(
        suite=str(folder / f"{name}.yaml"),
        model=str(here.model),
        methods=("none", "uce"),
        scale=SCALES[name],
        out=folder / "out",
        quiet=True,
    )


def runs_end_to_end(name: str, here: Here, folder: Path) -> list[dict[str, Any]]:
    """Run it, check that nothing is missing without a reason, and return its records."""
    options = paper_run(name, here, folder)
    form = suite.load(name).form("paper")
    assert execute(options) == 0
    records = [dict(r) for r in board.read_records(options.out)]
    told = board.build(records)
    assert told["form"] == "paper" and {r["status"] for r in told["rows"]} == {"ok"}
    assert {r["primary"] for r in told["rows"]} == {form.primary}
    assert (options.out / "board.md").is_file() and list((options.out / "grids").glob("*.png"))
    for r in records:
        assert set(r["protocols"]) == set(form.protocols)
        for id_, made in r["protocols"].items():
            assert made["evaluator_hash"], id_
        summary = r["summary"]
        for column, value in summary["metrics"].items():
            assert value is not None or summary["reasons"][column], column
        assert summary["headline"] is not None or summary["reasons"]["headline"]
    return records


def scored(records: list[dict[str, Any]], id_: str) -> list[float]:
    return [v for r in records for v in r["rows"]["values"][id_] if v is not None]


def columns(records: list[dict[str, Any]], id_: str) -> list[float]:
    found = [v for r in records for c, v in r["summary"]["metrics"].items() if protocol(c).id == id_]
    return [v for v in found if v is not None]


def recomputed(out: Path) -> None:
    """The stored raw outputs give the same numbers, by the judges anew."""
    from benchmark.recompute import recompute

    assert verify(out) == []
    again = recompute(out)
    assert again.wrong == [] and again.values > 0


def test_there_is_a_scale_for_every_suite():
    assert sorted(SCALES) == sorted(suite.names()) and set(QUICK) <= set(SCALES)


def test_dogs_by_a_classifier_from_a_folder(here: Here, tmp_path: Path):
    records = runs_end_to_end("dogs", here, tmp_path)
    form = suite.load("dogs").form("paper")
    values = scored(records, form.primary)
    assert len(values) == len(records) * 6 and set(values) <= {0.0, 1.0}
    assert all(r["summary"]["headline_id"] == "ERB" and r["summary"]["headline"] is not None for r in records)
    assert -100 <= min(scored(records, "clip-vitb32/score")) < max(scored(records, "clip-vitb32/score")) <= 100
    recomputed(tmp_path / "out")


def test_explicit_with_files_of_prompts_and_real_images(here: Here, tmp_path: Path):
    records = runs_end_to_end("explicit", here, tmp_path)
    for r in records:
        assert r["rows"]["role"] == ["erased", "general"] and r["rows"]["seed"] == [1000, 50]
        assert r["reference"] == {"images": "coco30k/images", "prompts": "coco30k/prompts"}
        assert "at least 2048 images" in r["summary"]["reasons"]["clean-fid/1"]
        assert r["summary"]["headline"] == 0.0  # a random model's pictures: the real NudeNet sees nothing in them
    assert set(scored(records, "nudenet-3.4.2@0.6/images")) == {0.0}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(SCALES) - set(QUICK)))
def test_every_other_paper_form(name: str, here: Here, tmp_path: Path):
    records = runs_end_to_end(name, here, tmp_path)
    for id_ in suite.load(name).form("paper").protocols:
        p = protocol(id_)
        if p.evaluator == "identity" and not id_.endswith("face-ratio"):
            continue  # a random model draws no face: nobody is known, and that is what the reason says
        if p.scope == "set":
            assert columns(records, id_) or id_ != "clean-fid/lowN", id_  # the others ask for more images than are here
        else:
            assert scored(records, id_), id_
    recomputed(tmp_path / "out")


@pytest.mark.slow
def test_people_without_a_face_have_no_accuracy_and_no_headline(here: Here, tmp_path: Path):
    for r in runs_end_to_end("celebrity", here, tmp_path):
        assert r["summary"]["metrics"]["identity/face-ratio"] == 0.0
        assert r["summary"]["acc_erased"] is None and r["summary"]["headline"] is None
        assert "could be scored" in r["summary"]["reasons"]["headline"]


@pytest.mark.slow
def test_a_run_is_rescored_by_judges_that_it_did_not_have(here: Here, tmp_path: Path):
    """LPIPS needs the images in pairs, and another threshold of NudeNet nothing but what is stored."""
    from benchmark.rescore import rescore

    runs_end_to_end("smoke", here, tmp_path)
    names = ("lpips-alex", "cifar10-resnet/top1", "nudenet-3.4.2@0.3/images")
    for name in names:
        here.judges.make(protocol(name).evaluator)
    found = [dict(r) for r in board.read_records(rescore(tmp_path / "out", names, say=lambda text: None))]
    by = {r["method"]["label"]: r for r in found}
    assert set(scored([by["none"]], "lpips-alex")) == {0.0}, "the unedited model beside itself"
    assert by["uce"]["summary"]["metrics"]["lpips-alex"] >= 0
    assert by["uce"]["summary"]["by_role"]["lpips-alex"].keys() >= {"erased", "kept"}
    assert set(scored(found, "cifar10-resnet/top1")) <= {0.0, 1.0}


@pytest.mark.slow
def test_a_second_run_does_no_work(here: Here, tmp_path: Path):
    options = paper_run("flowers", here, tmp_path)
    assert execute(options) == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").glob("board.*")}
    assert execute(options) == 0
    costs = json.loads((tmp_path / "out" / "costs.json").read_text())
    assert costs["last_run"]["images_made"] == 0
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").glob("board.*")} == before
