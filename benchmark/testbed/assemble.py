"""The finished parts as folders: plain diffusers pipelines in half precision; the judges lie beside the U-Net one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, T5EncoderModel, T5Tokenizer

from benchmark import atomic
from benchmark.testbed import flow
from benchmark.testbed.artwork import load_drawings
from benchmark.testbed.denoiser import schedule
from benchmark.testbed.evaluator import write_reference
from benchmark.testbed.render import drawn_concepts, render_batch, sample_record
from benchmark.testbed.tokens import load_tokenizer

REFERENCES = 25  # held-out renders a concept, whose features ship for the Fréchet and kernel distances
JUDGES = ("evaluator", "evaluator_b", "clip")


def assemble(model: Path, out: Path, drawings: Path, seed: int) -> None:
    """Write the whole model to the new or empty folder `out`; all weights as float16 safetensors."""
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(model / "vae", local_files_only=True),
        text_encoder=_clip(model),
        tokenizer=load_tokenizer(model / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(model / "unet", local_files_only=True),
        scheduler=schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(out)
    for judge in JUDGES:
        shutil.copytree(model / judge, out / judge, ignore=shutil.ignore_patterns("text_encoder"))
    write_reference(out, *held_out(drawings, seed))


def assemble_flow(model: Path, out: Path) -> None:
    """Write the flow model to the new or empty folder `out`: a plain FluxPipeline in float16, judges not included.

    Autoencoder and CLIP are the U-Net model's, weight for weight; the autoencoder also gets the shift that FLUX's
    pipeline adds to latents, which is 0.
    """
    vae = AutoencoderKL.from_pretrained(model / "vae", local_files_only=True, torch_dtype=torch.float32)
    vae.register_to_config(shift_factor=0.0)
    pipeline = FluxPipeline(
        transformer=FluxTransformer2DModel.from_pretrained(model / "flow" / "transformer", local_files_only=True),
        text_encoder=_clip(model),
        tokenizer=load_tokenizer(model / "tokenizer"),
        text_encoder_2=T5EncoderModel.from_pretrained(
            model / "flow" / "text_encoder_2", dtype=torch.float32, local_files_only=True
        ),
        tokenizer_2=T5Tokenizer.from_pretrained(model / "flow" / "tokenizer_2", local_files_only=True),
        vae=vae,
        scheduler=flow.schedule(),
    )
    pipeline.to(torch.float16).save_pretrained(out)


def ship(weights: Path, place: Path, shipped: Path) -> None:
    """Replace the folder `place` by a copy of `weights` whose files that are also in `shipped` are links to them.

    The bytes of the autoencoder and the CLIP then stand in the repository once. The links are relative; what reads
    the folder, and what packs it into a wheel, sees plain files.
    """
    there = {path.read_bytes(): path for path in sorted(shipped.rglob("*.safetensors"))}
    with atomic.folder(place, replace=True) as temporary:
        shutil.copytree(weights, temporary, dirs_exist_ok=True)
        for path in sorted(temporary.rglob("*.safetensors")):
            if twin := there.get(path.read_bytes()):
                path.unlink()
                path.symlink_to(os.path.relpath(twin, place / path.parent.relative_to(temporary)))


def _clip(model: Path) -> CLIPTextModel:
    folder = model / "clip" / "text_encoder"
    return CLIPTextModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)


def held_out(drawings: Path, seed: int) -> tuple[np.ndarray, list[str]]:
    """`REFERENCES` test renders of every concept, and their names."""
    rng = np.random.default_rng([seed, 99])
    names = [c.name for c in drawn_concepts() for _ in range(REFERENCES)]
    records = [sample_record(rng, split="test", concept=name) for name in names]
    return render_batch(records, load_drawings(drawings)), names
