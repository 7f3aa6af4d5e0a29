"""Training of the judges: classifiers of real renders, never of generated images."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark.testbed.data import Renders, class_names, to_unit
from benchmark.testbed.evaluator import HEADS, Classifier
from benchmark.testbed.recipe import Recipe, Stage, native_bfloat16, rate_at, step_generator, work_device


def disturb(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur, noise and small shifts on some of the images `(n, 3, 64, 64)`: decoded images are softer than renders."""
    n = len(images)
    draw = torch.rand(n, 3, generator=generator)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share = (draw[:, 0] < 0.4).float() * torch.rand(n, generator=generator)
    images = torch.lerp(images, blurred, share[:, None, None, None])
    level = (draw[:, 1] < 0.5).float() * 0.08 * torch.rand(n, generator=generator)
    images = images + level[:, None, None, None] * torch.randn(images.shape, generator=generator)
    dx, dy = (int(torch.randint(-3, 4, (), generator=generator)) for _ in range(2))
    return images.roll((dx, dy), dims=(2, 3)).clamp(0, 1)


def train(recipe: Recipe, letter: str, data: Renders, checkpoints: Path, out: Path) -> None:
    """Train evaluator `letter` ("a" or "b") and save it to `out`."""
    plan, device = recipe[f"evaluator_{letter}"], work_device()
    torch.manual_seed(recipe["seed"] + {"a": 10, "b": 11}[letter])
    config = {"architecture": letter, "objects": class_names("object"), "styles": class_names("style")}
    model = Classifier({**config, "backgrounds": class_names("background")}).train()
    model = model.to(device).to(memory_format=torch.channels_last)  # twice as fast on CPUs
    optimizer = torch.optim.AdamW(model.parameters(), plan["rate"], betas=(0.9, 0.99), weight_decay=0.05)
    labels = {h: data.labels(h).to(device) for h in HEADS}
    half = native_bfloat16(device)

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = step_generator(recipe["seed"], f"evaluator {letter}", step)
        rows = torch.randint(len(data.images), (plan["batch"],), generator=generator).sort().values
        images = disturb(to_unit(data.images[rows.numpy()]), generator).to(device)
        rows = rows.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            output = model(images.contiguous(memory_format=torch.channels_last))
        losses = {h: F.cross_entropy(output[h].float(), labels[h][rows], ignore_index=-1) for h in HEADS}
        right = (output["object"].argmax(1) == labels["object"][rows]).float().mean()
        return losses["object"] + 0.5 * losses["style"] + 0.3 * losses["background"], {"right": float(right)}

    stage = Stage(f"evaluator_{letter}", checkpoints, model, optimizer)
    stage.run(plan["steps"], loss_at, lambda s: rate_at(s, plan["steps"], plan["rate"], 150, 0.6))
    model.cpu().eval().save(out)


@torch.no_grad()
def accuracy(model: Classifier, data: Renders, count: int | None = None) -> dict[str, float]:
    """Top-1 of each head on a split; styles over the images that have one."""
    images = data.images[:count]
    outputs = [model(to_unit(images[i : i + 200])) for i in range(0, len(images), 200)]
    result = {}
    for head in HEADS:
        truth = data.labels(head)[: len(images)]
        guess = torch.cat([o[head] for o in outputs]).argmax(1)
        result[head] = float((guess == truth)[truth >= 0].float().mean())
    return result
