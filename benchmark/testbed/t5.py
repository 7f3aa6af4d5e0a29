"""The flow model's T5: a tiny encoder over a word list, first taught to say what the frozen CLIP text tower says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTextModel, T5Config, T5EncoderModel, T5Tokenizer

from benchmark.backbones.random_models import t5_tokenizer
from benchmark.errors import BadInput
from benchmark.testbed.captions import caption, vocabulary
from benchmark.testbed.recipe import Recipe, Stage, native_bfloat16, rate_at, step_generator, work_device
from benchmark.testbed.render import Record
from benchmark.testbed.tokens import load_tokenizer


def build_tokenizer(recipe: Recipe) -> T5Tokenizer:
    """A T5Tokenizer with one piece for every word of the captions; any other text, upper case too, is spelt."""
    return t5_tokenizer(vocabulary(), recipe["t5"]["length"])


def build(recipe: Recipe, tokenizer: T5Tokenizer) -> T5EncoderModel:
    """An untrained encoder of the recipe's size. Without dropout: with data made afresh there is nothing to overfit."""
    size = recipe["t5"]
    torch.manual_seed(recipe["seed"] + 30)
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=size["hidden"],
            d_kv=size["hidden"] // size["heads"],
            d_ff=size["inner"],
            num_layers=size["layers"],
            num_heads=size["heads"],
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )
    )


def pieces(tokenizer: T5Tokenizer, texts: list[str]) -> Tensor:
    """Ids `(n, length)`, padded; padding is not masked anywhere, as in FLUX."""
    out = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    ids: Tensor = out.input_ids
    return ids


def train(recipe: Recipe, records: Sequence[Record], model: Path, checkpoints: Path, out: Path) -> None:
    """Regression of every position's state onto CLIP's, one further on there because of its start token.

    CLIP's tower reads from left to right and knows at a word only what came before it; T5 reads both ways and can
    learn to say the same. Its states then lie as CLIP's do: like meanings near each other. Saves tokenizer and encoder.
    """
    plan, device = recipe["t5"], work_device()
    if plan["length"] >= recipe["tokenizer"]["length"]:
        raise BadInput(f"expected t5.length below tokenizer.length, got {plan['length']}: each state needs its like")
    tokenizer, clip_tokenizer = build_tokenizer(recipe), load_tokenizer(model / "tokenizer")
    teacher = load_clip(model, device)
    student = build(recipe, tokenizer).train().to(device)
    optimizer = torch.optim.AdamW(student.parameters(), plan["rate"], betas=(0.9, 0.98), weight_decay=0.01)
    half = native_bfloat16(device)

    def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = step_generator(recipe["seed"], "t5", step)
        rng = np.random.default_rng(generator.initial_seed())
        rows = torch.randint(len(records), (plan["batch"],), generator=generator)
        texts = [caption(records[i], rng) for i in rows.tolist()]
        ids = clip_tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            wanted = teacher(input_ids=ids.to(device)).last_hidden_state[:, 1 : 1 + plan["length"]]
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            said = student(pieces(tokenizer, texts).to(device)).last_hidden_state
        error = (said.float() - wanted).square().mean()
        return error, {"unexplained": float(error.detach() / wanted.var())}

    stage = Stage("t5", checkpoints, student, optimizer)
    stage.run(plan["steps"], loss_at, lambda s: rate_at(s, plan["steps"], plan["rate"], 50, 0.5))
    student.cpu().eval().save_pretrained(out / "text_encoder_2")
    tokenizer.save_pretrained(out / "tokenizer_2")


def load_clip(model: Path, device: torch.device) -> CLIPTextModel:
    """The finished CLIP text tower, frozen, in float32."""
    folder = model / "clip" / "text_encoder"
    text: Any = CLIPTextModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    frozen: CLIPTextModel = text.eval().requires_grad_(False).to(device)
    return frozen
