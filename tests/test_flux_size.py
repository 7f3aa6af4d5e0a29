"""Every method on FLUX.1's widths: one step or solve, which parameters it touches, and its file in plain diffusers.

The transformer has the widths of the real one, one double-stream and one single-stream block of its 19 and 38, and
random weights; the text encoders are small but put out vectors of the real widths, 4096 and 768; images are of 64×64
pixels and prompts of 24 tokens, on which no parameter depends. The pictures mean nothing, but names, shapes and counts
are those of the real model's first blocks. Needs about 12 GB of memory and 8 GB of disk for the time of the run.
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
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from benchmark import edits, erase, models, registry
from benchmark.backbones.flux import FluxBackbone
from benchmark.backbones.random_models import LENGTH, WORDS, clip_tokenizer, t5_tokenizer
from benchmark.interface import Edit, Method, Request, Target

pytestmark = pytest.mark.slow

_diffusers: Any = diffusers  # its constructors have no types
_GB = 10**9
MATRIX = 3072**2
TEXT_MAPS = 3072 * 4096 + 3072 * 768
ATTENTION = r"\.attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)\.weight$"
READERS = r"\.context_embedder\.weight$|\.text_embedder\.linear_1\.weight$"
ONE = Request(
    erase=(Target(name="cat", anchor="animal", adjacent=("dog", "deer")),),
    keep=("dog", "horse", "ship"),
    general=("a photo of the sky", "a tree"),
)


def available() -> int:
    """Bytes of memory that are free for a run, as Linux counts them; elsewhere a run is left to its user."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 10**15
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    """FLUX.1-dev's transformer of two blocks, small text encoders of the real widths, a small autoencoder."""
    if available() < 12 * _GB:
        pytest.skip("needs 12 GB of free memory")
    tokenizer, tokenizer_2 = clip_tokenizer(WORDS, LENGTH), t5_tokenizer(WORDS, LENGTH)
    clip = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=768,
        num_hidden_layers=1,
        num_attention_heads=12,
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    t5 = T5Config(
        vocab_size=len(tokenizer_2),
        d_model=4096,
        d_kv=64,
        d_ff=256,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = {
            "transformer": _diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True),
            "text_encoder": CLIPTextModel(clip),
            "text_encoder_2": T5EncoderModel(t5),
            "vae": _diffusers.AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(8, 8, 16, 16),
                latent_channels=16,
                norm_num_groups=4,
                shift_factor=0.1159,
                scaling_factor=0.3611,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ),
        }
    scheduler = _diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    named = {name: part.eval() for name, part in made.items()}
    return named | {"tokenizer": tokenizer, "tokenizer_2": tokenizer_2, "scheduler": scheduler}


@pytest.fixture(scope="module")
def model(parts: dict[str, Any]) -> FluxBackbone:
    return FluxBackbone("flux-size", **{**parts, "scheduler": parts["scheduler"].config}, size=(64, 64))


def quick(label: str, **fields: Any) -> Method:
    """The method with its variant's fields, then its quick ones, then these, in one iteration where it has any."""
    name, _, variant = label.partition("@")
    cls = registry.method_class(name)
    once = {"iterations": 1} if "iterations" in cls.quick else {}
    return cls(**{**(cls.variants[variant] if variant else {}), **cls.quick, **once, **fields})


def matching(model: FluxBackbone, pattern: str) -> set[str]:
    return {n for n in model.tensors() if n.startswith("transformer.") and re.search(pattern, n)}


def touched(model: FluxBackbone, edit: Edit) -> set[str]:
    """Names of the tensors that the edit makes other than they are."""
    live = model.tensors()
    return {n for n in {*edit.weights, *edit.deltas} if not torch.equal(edits.edited(live[n], n, edit), live[n])}


def report(edit: Edit) -> None:
    """For `-s`: what it took."""
    print(f"\n{edit.cost.seconds:.1f} s, peak {edit.cost.peak_bytes / _GB:.2f} GB", end=" ")


def test_its_blocks_are_the_real_one_s(parts: dict[str, Any]) -> None:
    """The real one, without memory behind it: 11.90 billion parameters, of which ours are the first of each kind."""
    with torch.device("meta"):
        real = _diffusers.FluxTransformer2DModel(guidance_embeds=True)
    assert sum(p.numel() for p in real.parameters()) == 11_901_408_320
    shapes = {name: p.shape for name, p in real.named_parameters()}
    ours = dict(parts["transformer"].named_parameters())
    assert all(shapes[name] == p.shape for name, p in ours.items())
    assert {n for n in shapes if not re.search(r"blocks\.(?!0\.)\d+\.", n)} == ours.keys()


CASES = [
    pytest.param(quick("uce@flux"), READERS, (2, TEXT_MAPS), id="uce"),
    pytest.param(quick("esd@flux"), ATTENTION, (11, 11 * MATRIX), id="esd"),
    pytest.param(quick("esd@x"), r"\.attn\.(add_[qkv]_proj|to_add_out)\.", (8, 4 * (MATRIX + 3072)), id="esd-x"),
    pytest.param(quick("fade_fg@flux"), ATTENTION, (11, 11 * MATRIX), id="fade_fg"),
    pytest.param(
        quick("fade_adv@flux", saliency=1.0), r"\.(to|add)_[kv](_proj)?\.weight$", (6, 6 * MATRIX), id="fade_adv"
    ),
    pytest.param(quick("ant@flux"), r"\.attn\.(add_[qkv]_proj|to_add_out)\.weight$", (4, 4 * MATRIX), id="ant"),
    pytest.param(quick("mace@flux", templates="short"), READERS, (2, TEXT_MAPS), id="mace"),
    pytest.param(quick("erase_anything"), r"\.attn\.add_[qk]_proj\.weight$", (2, 2 * MATRIX), id="erase_anything"),
]


@pytest.mark.parametrize(("method", "pattern", "count"), CASES)
def test_a_step_touches_what_the_method_names_and_no_more(
    model: FluxBackbone, method: Method, pattern: str, count: tuple[int, int]
) -> None:
    edit = edits.make(method, model, ONE)
    report(edit)
    names, live = matching(model, pattern), model.tensors()
    assert touched(model, edit) == {*edit.weights, *edit.deltas} == names
    assert (len(names), sum(live[n].numel() for n in names)) == count
    assert edit.gates is None and edit.cost.peak_bytes < 16 * _GB


def test_saliency_leaves_one_matrix_of_six(model: FluxBackbone) -> None:
    """FADE-adv's variant trains the most salient tenth of its candidates as wholes: here one, at least one always."""
    edit = edits.make(quick("fade_adv@flux"), model, ONE)
    report(edit)
    [name] = edit.deltas
    assert name in matching(model, r"\.(to|add)_[kv](_proj)?\.weight$") and edit.deltas[name].up.shape == (3072, 16)


def test_a_gate_stands_beside_the_context_projection(model: FluxBackbone) -> None:
    edit = edits.make(quick("cpe@flux", iterations=2), model, ONE)
    report(edit)
    assert not edit.weights and not edit.deltas and edit.gates is not None
    gates = edit.gates
    assert set(gates.changes) == matching(model, r"\.context_embedder\.weight$")
    assert (gates.query.shape, gates.key.shape, gates.vector.shape) == (*[(1, 4096, 16)] * 2, (1, 4096))
    [change] = gates.changes.values()
    assert (change.up.shape, change.down.shape) == ((1, 3072, 1), (1, 1, 4096))


# --- the file ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The unedited model as others have it."""
    path = tmp_path_factory.mktemp("flux-size") / "base"
    if shutil.disk_usage(path.parent).free < 8 * _GB:
        pytest.skip(f"needs 8 GB of free disk at {path.parent}")
    _diffusers.FluxPipeline(**parts).save_pretrained(path)
    yield path
    shutil.rmtree(path)


FILES = [
    quick("uce@flux"),
    quick("esd@flux"),
    quick("mace@flux", templates="short", iterations=0),
    quick("ant@flux"),
    quick("fade_fg@flux"),
    quick("fade_adv@flux"),
    quick("erase_anything"),
    quick("cpe@flux", iterations=2),
]


@pytest.mark.parametrize("method", FILES, ids=lambda method: method.name)
def test_plain_diffusers_loads_the_file(model: FluxBackbone, folder: Path, tmp_path: Path, method: Method) -> None:
    """New weights, low-rank changes (merged), and gates, which leave the transformer as it was and lie beside it."""
    edit = method.edit(model, ONE)  # the other tests check it as the harness does
    out = tmp_path / "out"
    made = erase.Erased(edit, registry.resolve(method.name), models.describe(str(folder)), ONE)
    try:
        erase.write(made, str(folder), out)
        loaded = _diffusers.FluxTransformer2DModel.from_pretrained(out / "transformer")
        found = {f"transformer.{n}": t for n, t in loaded.named_parameters()}
        files = {path.name: path.read_bytes() for path in (out / "edit").iterdir()}
    finally:
        shutil.rmtree(out, ignore_errors=True)
    live = {n: t for n, t in model.tensors().items() if n.startswith("transformer.")}
    assert found.keys() == live.keys()
    assert {n for n, t in found.items() if not torch.equal(t, live[n])} == touched(model, edit)
    assert all(torch.equal(found[n], edits.edited(t, n, edit)) for n, t in live.items())
    assert edits.edit_hash(edits.deserialise(files)) == edits.edit_hash(edit)
