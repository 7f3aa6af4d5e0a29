"""Every trained method on a model of Stable Diffusion 1.4's size: one step or solve, and which parameters it touches.

The U-Net and the text encoder have the sizes of the real ones and random weights; images are of 64×64 pixels, on which
no parameter depends. The pictures mean nothing, but names, shapes and counts are those of the real model. One concept,
one iteration. Needs about 12 GB of memory and 12 GB of disk for the time of the run.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from benchmark import edits, erase, memory, models, registry
from benchmark.backbones.random_models import WORDS, clip_tokenizer
from benchmark.backbones.unet import UNetBackbone
from benchmark.interface import Edit, Method, Request, Target

pytestmark = pytest.mark.slow

_diffusers: Any = diffusers  # its constructors have no types
_GB = 10**9
UNET = 859_520_964
KEYS_VALUES = r"\.attn2\.to_[kv]\.weight$"
CROSS = r"\.attn2\."
CROSS_AND_UP = r"\.attn2\.|\.up_blocks\..*(resnets|samplers)\.\d+\.conv"
OTHER = r"^unet\.(?!time_embedding\.|conv_out\.|conv_norm_out\.)(?!.*\.attn2\.)"  # ESD-u: names that hold none of these
ONE = Request(
    erase=(Target(name="cat", anchor="animal"),), keep=("dog", "horse"), general=("a photo of the sky", "a tree")
)
TWO = Request(erase=(*ONE.erase, Target(name="ship", anchor="boat")), keep=ONE.keep, general=ONE.general)


def available() -> int:
    """Bytes of memory that are free for a run, as Linux counts them; elsewhere a run is left to its user."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 10**15
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def needs(gigabytes: int) -> pytest.MarkDecorator:
    return pytest.mark.skipif(available() < gigabytes * _GB, reason=f"needs {gigabytes} GB of free memory")


# --- the model --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    """Stable Diffusion 1.4's parts by the sizes in its configuration files; a smaller autoencoder."""
    if available() < 12 * _GB:
        pytest.skip("needs 12 GB of free memory")
    tokenizer = clip_tokenizer(WORDS, 77)
    text = CLIPTextConfig(
        vocab_size=49_408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {
            "unet": _diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
            "text_encoder": CLIPTextModel(text),
            "vae": _diffusers.AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(8, 8, 16, 16),
                latent_channels=4,
                norm_num_groups=4,
            ),
            "tokenizer": tokenizer,
            "scheduler": _diffusers.PNDMScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
            ),
        }


@pytest.fixture(scope="module")
def model(parts: dict[str, Any]) -> UNetBackbone:
    return UNetBackbone("sd-size", **{**parts, "scheduler": parts["scheduler"].config}, size=(64, 64))


def quick(label: str, **fields: Any) -> Method:
    """The method with its quick fields, then its variant's, then these, in one iteration where it has iterations."""
    name, _, variant = label.partition("@")
    cls = registry.method_class(name)
    once = {"iterations": 1} if "iterations" in cls.quick else {}
    return cls(**{**cls.quick, **once, **cls.variants.get(variant, {}), **fields})


def matching(model: UNetBackbone, pattern: str) -> set[str]:
    return {n for n in model.tensors() if n.startswith("unet.") and re.search(pattern, n)}


def touched(model: UNetBackbone, edit: Edit) -> set[str]:
    """Names of the tensors that the edit makes other than they are."""
    live = model.tensors()
    return {n for n in {*edit.weights, *edit.deltas} if not torch.equal(edits.edited(live[n], n, edit), live[n])}


def size(model: UNetBackbone, names: set[str]) -> tuple[int, int]:
    live = model.tensors()
    return len(names), sum(live[n].numel() for n in names)


def test_it_has_the_real_one_s_size(model: UNetBackbone, parts: dict[str, Any]) -> None:
    assert size(model, matching(model, "")) == (686, UNET)
    assert sum(p.numel() for p in parts["text_encoder"].parameters()) == 123_060_480
    assert model.latent_shape == (4, 8, 8)


# --- what is touched --------------------------------------------------------------------------------------------------
CASES = [
    pytest.param(quick("esd@x"), ONE, CROSS, (80, 43_962_560), id="esd-x"),
    pytest.param(quick("esd@x-strict"), ONE, KEYS_VALUES, (32, 19_169_280), id="esd-x-strict"),
    pytest.param(quick("uce@2023"), ONE, KEYS_VALUES, (32, 19_169_280), id="uce-2023"),
    pytest.param(quick("uce@2025"), ONE, KEYS_VALUES, (32, 19_169_280), id="uce-2025"),
    pytest.param(quick("mace", templates="short"), ONE, KEYS_VALUES, (32, 19_169_280), id="mace"),
    pytest.param(quick("ant@single", train="x"), ONE, CROSS, (80, 43_962_560), id="ant-single-x"),
    pytest.param(quick("ant@multi", templates="short"), TWO, KEYS_VALUES, (32, 19_169_280), id="ant-multi"),
    pytest.param(
        quick("fade_fg"), ONE, r"\.attn2\.(to_[qkv]|to_out\.0)\.weight$", (64, 43_950_080), id="fade_fg"
    ),  # all of x but the 16 biases
    pytest.param(
        quick("fade_adv@no-saliency", candidates="x"), ONE, CROSS, (80, 43_962_560), id="fade_adv-x-no-saliency"
    ),
]
# 17 GB and more: beside the model a copy of all that is trained, its gradients and Adam's two moments
LARGE = [
    pytest.param(quick("esd@u"), ONE, OTHER, (598, 813_495_680), id="esd-u"),
    pytest.param(quick("ant@single"), ONE, "", (686, UNET), id="ant-single-full"),
    pytest.param(quick("fade_adv@no-saliency"), ONE, CROSS_AND_UP, (158, 401_680_640), id="fade_adv-no-saliency"),
]


@pytest.mark.parametrize(("method", "request_", "pattern", "count"), CASES)
def test_a_step_touches_what_the_method_names_and_no_more(
    model: UNetBackbone, method: Method, request_: Request, pattern: str, count: tuple[int, int]
) -> None:
    """And takes less memory than half of a second U-Net would."""
    memory.reset()
    before = memory.peak()
    edit = edits.make(method, model, request_)
    report(edit, before)
    names = matching(model, pattern)
    assert touched(model, edit) == {*edit.weights, *edit.deltas} == names
    assert size(model, names) == count
    assert edit.gates is None
    assert edit.cost.peak_bytes - before < 2 * UNET  # bytes: half of it, in float32


@needs(21)
@pytest.mark.parametrize(("method", "request_", "pattern", "count"), LARGE)
def test_a_step_of_nearly_all_weights(
    model: UNetBackbone, method: Method, request_: Request, pattern: str, count: tuple[int, int]
) -> None:
    edit = edits.make(method, model, request_)
    report(edit)
    names = matching(model, pattern)
    assert touched(model, edit) == names
    assert size(model, names) == count


def test_saliency_leaves_a_tenth(model: UNetBackbone) -> None:
    """FADE-adv trains the most salient tenth of its candidates' elements, all tensors together."""
    edit = edits.make(quick("fade_adv", candidates="x"), model, ONE)
    report(edit)
    assert (edit.notes["candidates"], edit.notes["trained"]) == (43_962_560, 4_396_256)
    assert touched(model, edit) <= matching(model, CROSS)
    live = model.tensors()
    moved = sum(int((w != live[n]).sum()) for n, w in edit.weights.items())
    assert 0.9 * 4_396_256 < moved <= 4_396_256


@pytest.mark.parametrize(
    ("setting", "width", "rank", "count"), [("celebrity", 16, 1, 74_880), ("explicit", 64, 4, 297_216)]
)
def test_gates_stand_beside_the_weights(model: UNetBackbone, setting: str, width: int, rank: int, count: int) -> None:
    """CPE: 32 residuals and one gate. The released modules count 32 more: each layer's constant α is stored."""
    edit = edits.make(quick(f"cpe@{setting}", iterations=2), model, ONE)
    report(edit)
    assert not edit.weights and not edit.deltas and edit.gates is not None
    gates = edit.gates
    assert set(gates.changes) == matching(model, KEYS_VALUES)
    assert (gates.query.shape, gates.key.shape, gates.vector.shape) == (*[(1, 768, width)] * 2, (1, 768))
    assert {change.down.shape for change in gates.changes.values()} == {(1, rank, 768)}
    residuals = sum(part.numel() for change in gates.changes.values() for part in change)
    assert gates.query.numel() + gates.key.numel() + gates.vector.numel() + residuals == count


def report(edit: Edit, before: int = 0) -> None:
    """For `-s`: what it took."""
    cost = edit.cost
    print(f"\n{cost.seconds:.1f} s, peak {cost.peak_bytes / _GB:.2f} GB, before {before / _GB:.2f} GB", end=" ")


# --- the file ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The unedited model as others have it."""
    path = tmp_path_factory.mktemp("sd-size") / "base"
    if shutil.disk_usage(path.parent).free < 12 * _GB:
        pytest.skip(f"needs 12 GB of free disk at {path.parent}")
    _diffusers.StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    ).save_pretrained(path)
    yield path
    shutil.rmtree(path)


FILES = [
    quick("uce"),
    quick("esd@x"),
    quick("mace", templates="short"),
    quick("ant@single", train="x"),
    quick("fade_fg"),
    quick("fade_adv", candidates="x"),
    quick("cpe", iterations=2),
]


@pytest.mark.parametrize("method", FILES, ids=lambda method: method.name)
def test_plain_diffusers_loads_the_file(model: UNetBackbone, folder: Path, tmp_path: Path, method: Method) -> None:
    """New weights, low-rank changes (merged), and gates, which leave the U-Net as it was and lie beside it."""
    edit = method.edit(model, ONE)  # the other tests check it as the harness does
    out = tmp_path / "out"
    made = erase.Erased(edit, registry.resolve(method.name), models.describe(str(folder)), ONE)
    try:
        erase.write(made, str(folder), out)
        found = _diffusers.UNet2DConditionModel.from_pretrained(out / "unet").named_parameters()
        found = {f"unet.{n}": t for n, t in found}
        files = {path.name: path.read_bytes() for path in (out / "edit").iterdir()}
    finally:
        shutil.rmtree(out, ignore_errors=True)
    live = {n: t for n, t in model.tensors().items() if n.startswith("unet.")}
    assert found.keys() == live.keys()
    assert {n for n, t in found.items() if not torch.equal(t, live[n])} == touched(model, edit)
    assert all(torch.equal(found[n], edits.edited(t, n, edit)) for n, t in live.items())
    assert edits.edit_hash(edits.deserialise(files)) == edits.edit_hash(edit)
