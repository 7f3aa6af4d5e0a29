"""The flow model: a small FLUX transformer and its T5, trained together to predict velocity from captions."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from benchmark.errors import BadInput
from benchmark.testbed import t5
from benchmark.testbed.captions import caption
from benchmark.testbed.data import Renders
from benchmark.testbed.denoiser import cached_latents
from benchmark.testbed.recipe import Recipe, Stage, native_bfloat16, rate_at, step_generator, work_device
from benchmark.testbed.tokens import load_tokenizer

GRID = 4  # tokens down and across: 2×2 neighbours of an 8×8 latent are one


def build(recipe: Recipe) -> FluxTransformer2DModel:
    """An untrained transformer of the recipe's size.

    It has no guidance embedding: FLUX.1-dev's was distilled into it from a model without one, and there is no such
    model here to distil from. Guidance is the true one, with two predictions a step, as for FLUX.1-schnell's family.
    """
    size = recipe["flow"]
    if size["head"] % 16:
        raise BadInput(f"expected flow.head a multiple of 16, which rotates in pairs three ways, got {size['head']}")
    if min(size["double"], size["single"]) < 1:
        raise BadInput(f"expected blocks of both kinds, got {size['double']} double and {size['single']} single ones")
    side = 3 * size["head"] // 8  # of a head's width, rotated by row and by column; FLUX.1 has 56 of 128
    torch.manual_seed(recipe["seed"] + 31)
    model = FluxTransformer2DModel(
        in_channels=4 * recipe["autoencoder"]["latent"],
        num_layers=size["double"],
        num_single_layers=size["single"],
        attention_head_dim=size["head"],
        num_attention_heads=size["heads"],
        joint_attention_dim=recipe["t5"]["hidden"],
        pooled_projection_dim=recipe["text"]["hidden"],
        guidance_embeds=False,
        axes_dims_rope=(size["head"] - 2 * side, side, side),
    )
    _start(model)
    return model


def _start(model: FluxTransformer2DModel) -> None:
    """Initial weights of DiT (Peebles and Xie 2023, arXiv:2212.09748): every block does nothing yet (adaLN-Zero)."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for name, module in model.named_modules():
        if name == "proj_out" or (".norm" in f".{name}" and name.endswith(".linear")):
            nn.init.zeros_(module.weight)


def schedule() -> FlowMatchEulerDiscreteScheduler:
    """FLUX.1-dev's schedule: times shifted towards noise, the less the fewer tokens there are."""
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)


def shift(tokens: int) -> float:
    """μ of that schedule: e^μ is the factor on the odds t/(1 − t). For our 16 tokens it is 1.58."""
    c = schedule().config
    slope = (c.max_shift - c.base_shift) / (c.max_image_seq_len - c.base_image_seq_len)
    return float(c.base_shift + slope * (tokens - c.base_image_seq_len))


def pack(latents: Tensor) -> Tensor:
    """`b c (h 2) (w 2) -> b (h w) (c 2 2)`, as FLUX packs."""
    b, c, h, w = latents.shape
    return latents.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def positions(grid: int) -> Tensor:
    """`(tokens, 3)`: zero, row, column, for the rotary embedding."""
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).flatten(0, 1).float()


class Flow(nn.Module):
    """What is trained: the transformer, and the T5 that feeds it."""

    def __init__(self, transformer: FluxTransformer2DModel, text: T5EncoderModel) -> None:
        super().__init__()
        self.transformer, self.text = transformer, text

    def forward(self, x: Tensor, t: Tensor, ids: Tensor, pooled: Tensor) -> Tensor:
        """Velocity `(b, tokens, 4c)` of packed `x` at times `t` `(b,)` in [0, 1], given T5's ids and CLIP's vector."""
        states = self.text(ids).last_hidden_state
        velocity: Tensor = self.transformer(
            hidden_states=x,
            encoder_hidden_states=states,
            pooled_projections=pooled,
            timestep=t,
            img_ids=positions(math.isqrt(x.shape[1])).to(x.device),
            txt_ids=torch.zeros(ids.shape[1], 3, device=x.device),
            return_dict=False,
        )[0]
        return velocity


class Readers:
    """Prompts to what the model is given: T5's ids, and the frozen CLIP's pooled vector."""

    def __init__(self, tokenizer: T5Tokenizer, clip_tokenizer: CLIPTokenizer, clip: CLIPTextModel) -> None:
        self.tokenizer, self.clip_tokenizer, self.clip = tokenizer, clip_tokenizer, clip

    @torch.no_grad()
    def pooled(self, texts: list[str], shown: list[bool]) -> Tensor:
        """CLIP's pooled vectors `(n, d)`; where a text is not `shown`, that of the empty prompt.

        Padded to the longest only: the tower reads from left to right, so the end token knows nothing of what follows.
        """
        read = [text for text, seen in zip(texts, shown, strict=True) if seen]
        ids = self.clip_tokenizer([*read, ""], padding="longest", truncation=True, return_tensors="pt").input_ids
        vectors: Tensor = self.clip(input_ids=ids.to(self.clip.device)).pooler_output
        row = iter(range(len(read)))
        return vectors[[next(row) if seen else len(read) for seen in shown]]


def train(recipe: Recipe, data: Renders, model: Path, work: Path, out: Path) -> None:
    """Train on cached latents and fresh captions; save the averaged transformer and T5."""
    plan, device = recipe["flow"], work_device()
    latents = pack(cached_latents(work, model, data))
    clip_tokenizer, clip = load_tokenizer(model / "tokenizer"), t5.load_clip(model, device)
    tokenizer = T5Tokenizer.from_pretrained(model / "t5" / "tokenizer_2", local_files_only=True)
    text = T5EncoderModel.from_pretrained(model / "t5" / "text_encoder_2", dtype=torch.float32, local_files_only=True)
    flow = Flow(build(recipe), text).train().to(device)
    average = copy.deepcopy(flow).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(flow.parameters(), plan["rate"], betas=(0.9, 0.99), weight_decay=0.01)
    loss_at = lesson(recipe, data, latents, Readers(tokenizer, clip_tokenizer, clip), flow)
    stage = Stage("flow", work / "checkpoints", flow, optimizer, average, decay=plan["ema"])
    stage.run(plan["steps"], loss_at, lambda s: rate_at(s, plan["steps"], plan["rate"], plan["warmup"], plan["decay"]))
    average.cpu()
    average.transformer.save_pretrained(out / "transformer")
    average.text.save_pretrained(out / "text_encoder_2")
    tokenizer.save_pretrained(out / "tokenizer_2")


def lesson(
    recipe: Recipe, data: Renders, latents: Tensor, readers: Readers, flow: nn.Module
) -> Callable[[int], tuple[Tensor, dict[str, float]]]:
    """The loss of a step: rectified flow (Liu et al. 2023, arXiv:2209.03003) at logit-normal times (Esser et al. 2024,
    arXiv:2403.03206) whose median is that of the schedule that samples.

    CLIP's vector is withheld from half of the captions: told everything by it, the transformer would not learn to read
    T5, which is what FLUX reads and what methods edit. Some captions are empty altogether, for guidance.
    """
    plan, device = recipe["flow"], work_device()
    for share in ("drop", "withhold"):
        if not 0 <= plan[share] < 1:
            raise BadInput(f"expected flow.{share} as a share of captions from 0 to below 1, got {plan[share]}")
    if plan["spread"] <= 0:
        raise BadInput(f"expected flow.spread above 0, got {plan['spread']}: without it there is one time only")
    half, mean = native_bfloat16(device), shift(GRID * GRID)

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = step_generator(recipe["seed"], "flow", step)
        rng = np.random.default_rng(generator.initial_seed())
        rows = torch.randint(len(latents), (plan["batch"],), generator=generator)
        texts = ["" if rng.random() < plan["drop"] else caption(data.records[i], rng) for i in rows.tolist()]
        shown = [text != "" and rng.random() >= plan["withhold"] for text in texts]
        t = torch.sigmoid(mean + plan["spread"] * torch.randn(len(rows), generator=generator)).to(device)
        clean = latents[rows].to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        s = t[:, None, None]
        ids, pooled = t5.pieces(readers.tokenizer, texts).to(device), readers.pooled(texts, shown)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            guess = flow((1 - s) * clean + s * noise, t, ids, pooled)
        error = (guess.float() - (noise - clean)).square().mean()
        return error, {}

    return loss_at
