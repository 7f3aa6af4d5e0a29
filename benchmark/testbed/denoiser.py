"""The denoiser: a Stable Diffusion U-Net on 8×8×16 latents, trained to predict noise from captions."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from benchmark import atomic
from benchmark.testbed import autoencoder
from benchmark.testbed.captions import caption
from benchmark.testbed.data import Renders
from benchmark.testbed.recipe import Recipe, Stage, native_bfloat16, rate_at, step_generator, work_device
from benchmark.testbed.tokens import load_tokenizer


def build(recipe: Recipe) -> UNet2DConditionModel:
    """An untrained denoiser of the recipe's size: cross-attention at both levels."""
    size = recipe["denoiser"]
    channels = tuple(size["channels"])
    torch.manual_seed(recipe["seed"] + 20)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=recipe["autoencoder"]["latent"],
        out_channels=recipe["autoencoder"]["latent"],
        layers_per_block=size["layers"],
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * len(channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(channels),
        cross_attention_dim=recipe["text"]["hidden"],
        attention_head_dim=size["heads"],
        norm_num_groups=16,
    )


def schedule() -> DDIMScheduler:
    """Stable Diffusion 1.x's noise schedule, sampled by DDIM."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def cached_latents(build_folder: Path, model: Path, data: Renders) -> Tensor:
    """Latents `(n, 16, 8, 8)` of all renders, encoded once."""
    encoder = hashlib.sha256((model / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()[:16]
    path = build_folder / f"latents-{encoder}-{len(data.images)}.npy"
    if not path.exists():
        vae = AutoencoderKL.from_pretrained(model / "vae", local_files_only=True).eval()
        with atomic.file(path) as temporary, temporary.open("wb") as file:
            np.save(file, autoencoder.encode(vae, data).numpy())
    return torch.from_numpy(np.load(path))


def min_snr_weight(alphas_cumprod: Tensor, gamma: float) -> Tensor:
    """Loss weight per time for noise prediction: min(SNR, γ)/SNR. Hang et al. 2023, eq. 5."""
    snr = alphas_cumprod / (1 - alphas_cumprod)
    return snr.clamp(max=gamma) / snr


def train(recipe: Recipe, data: Renders, model: Path, work: Path, out: Path) -> None:
    """Train on cached latents and fresh captions; save the averaged weights."""
    plan, device = recipe["denoiser"], work_device()
    latents = cached_latents(work, model, data)
    tokenizer = load_tokenizer(model / "tokenizer")
    text = CLIPTextModel.from_pretrained(model / "clip" / "text_encoder", dtype=torch.float32, local_files_only=True)
    text.train(False).to(device)
    alphas = schedule().alphas_cumprod.to(device)
    weight = min_snr_weight(alphas, plan["snr"])
    unet = build(recipe).train().to(device)
    average = copy.deepcopy(unet).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(unet.parameters(), plan["rate"], betas=(0.9, 0.99), weight_decay=0.01)
    half = native_bfloat16(device)

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = step_generator(recipe["seed"], "denoiser", step)
        rng = np.random.default_rng(generator.initial_seed())
        rows = torch.randint(len(latents), (plan["batch"],), generator=generator)
        x = latents[rows].to(device)
        texts = ["" if rng.random() < plan["drop"] else caption(data.records[i], rng) for i in rows.tolist()]
        ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            hidden = text(input_ids=ids.to(device)).last_hidden_state
        t = torch.randint(1000, (len(x),), generator=generator).to(device)
        noise = torch.randn(x.shape, generator=generator).to(device)
        a = alphas[t][:, None, None, None]
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            guess = unet(a.sqrt() * x + (1 - a).sqrt() * noise, t, hidden).sample
        error = (guess.float() - noise).square().mean((1, 2, 3))
        return (weight[t] * error).mean(), {"mse": float(error.detach().mean())}

    stage = Stage("denoiser", work / "checkpoints", unet, optimizer, average, decay=plan["ema"])
    stage.run(plan["steps"], loss_at, lambda s: rate_at(s, plan["steps"], plan["rate"], plan["warmup"], plan["decay"]))
    average.cpu().save_pretrained(out)
