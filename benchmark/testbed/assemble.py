"""The finished parts as one folder: a plain diffusers pipeline in half precision, with its judges beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel

from benchmark.testbed.artwork import load_drawings
from benchmark.testbed.denoiser import schedule
from benchmark.testbed.evaluator import write_reference
from benchmark.testbed.render import drawn_concepts, render_batch, sample_record
from benchmark.testbed.tokens import load_tokenizer

REFERENCES = 25  # held-out renders a concept, whose features ship for the Fréchet and kernel distances
JUDGES = ("evaluator", "evaluator_b", "clip")


def assemble(model: Path, out: Path, drawings: Path, seed: int) -> None:
    """Write the whole model to the new or empty folder `out`; all weights as float16 safetensors."""
    text = CLIPTextModel.from_pretrained(model / "clip" / "text_encoder", dtype=torch.float32, local_files_only=True)
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(model / "vae", local_files_only=True),
        text_encoder=text,
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


def held_out(drawings: Path, seed: int) -> tuple[np.ndarray, list[str]]:
    """`REFERENCES` test renders of every concept, and their names."""
    rng = np.random.default_rng([seed, 99])
    names = [c.name for c in drawn_concepts() for _ in range(REFERENCES)]
    records = [sample_record(rng, split="test", concept=name) for name in names]
    return render_batch(records, load_drawings(drawings)), names
