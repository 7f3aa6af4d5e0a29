"""The autoencoder: 64-pixel images to 8×8×16 latents of unit variance (f = 8, 16 channels)."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from benchmark.testbed.data import Renders, to_unit
from benchmark.testbed.recipe import Recipe, Stage, native_bfloat16, rate_at, step_generator, work_device


def build(recipe: Recipe) -> AutoencoderKL:
    """An untrained autoencoder of the recipe's widths."""
    size = recipe["autoencoder"]
    channels = tuple(size["channels"])
    torch.manual_seed(recipe["seed"] + 1)
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        latent_channels=size["latent"],
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=1.0,
    )


def train(recipe: Recipe, data: Renders, folder: Path) -> AutoencoderKL:
    """Reconstruction (L1 + 4·L2) and KL to the unit Gaussian, on crops first; then latents normalised per channel."""
    plan, device = recipe["autoencoder"], work_device()
    model = build(recipe).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), plan["rate"], betas=(0.9, 0.99), weight_decay=1e-3)
    half = native_bfloat16(device)

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = step_generator(recipe["seed"], "autoencoder", step)
        rows = torch.randint(len(data.images), (plan["batch"],), generator=generator)
        images = (to_unit(data.images[rows.sort().values.numpy()]) * 2 - 1).to(device)
        if step < plan["crops"] * plan["steps"]:
            images = crop(images, 32, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            moments = model.quant_conv(model.encoder(images)).float()
            mean, logvar = moments.chunk(2, dim=1)
            logvar = logvar.clamp(-20, 10)
            z = mean + (0.5 * logvar).exp() * torch.randn(mean.shape, generator=generator).to(device)
            output = model.decoder(model.post_quant_conv(z)).float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        error = output - images
        squared = error.square().mean()
        loss = error.abs().mean() + 4 * squared + plan["kl"] * kl
        return loss, {"psnr": float(10 * torch.log10(4 / squared.detach())), "kl": float(kl.detach())}

    stage = Stage("autoencoder", folder, model, optimizer)
    stage.run(plan["steps"], loss_at, lambda s: rate_at(s, plan["steps"], plan["rate"], 200, 0.4))
    normalise(model.cpu().eval(), data)
    return model


def crop(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """One random square of every image: a quarter of the work, and convolutions do not mind."""
    y, x = (int(torch.randint(images.shape[-1] - side + 1, (), generator=generator)) for _ in range(2))
    return images[:, :, y : y + side, x : x + side]


@torch.no_grad()
def normalise(model: AutoencoderKL, data: Renders, count: int = 2048) -> None:
    """Fold each latent channel's mean and deviation into the 1×1 convolutions, so that `scaling_factor` is 1."""
    z = encode(model, data, count)
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    channels = len(mean)
    quant, post = model.quant_conv, model.post_quant_conv
    quant.weight[:channels] /= std[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.bias[channels:] -= 2 * std.log()  # the posterior's variance shrinks with its mean
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std[None, :, None, None]


@torch.no_grad()
def encode(model: AutoencoderKL, data: Renders, count: int | None = None, batch: int = 128) -> Tensor:
    """Posterior means `(count, 16, 8, 8)` of the first renders."""
    images = data.images[:count]
    parts = [
        model.encode(to_unit(images[i : i + batch]) * 2 - 1).latent_dist.mean for i in range(0, len(images), batch)
    ]
    return torch.cat(parts)


@torch.no_grad()
def psnr(model: AutoencoderKL, data: Renders, count: int = 1024) -> float:
    """Mean over images of the peak signal-to-noise ratio of reconstructions, in decibels."""
    values = []
    for i in range(0, count, 128):
        images = to_unit(data.images[i : min(i + 128, count)]) * 2 - 1
        output = model.decode(model.encode(images).latent_dist.mean).sample.clamp(-1, 1)
        values.append(10 * torch.log10(4 / (output - images).square().flatten(1).mean(1)))
    return float(torch.cat(values).mean())
