"""Stable Diffusion checkpoints under CompVis's names: the U-Net by diffusers' conversion, text by prefix."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from benchmark.errors import BadInput
from methods._checkpoint_files import State
from methods._checkpoint_names import Places

DENOISER = "model.diffusion_model."
_TEXT = "cond_stage_model.transformer."
_ELSEWHERE = ("first_stage_model.", "model_ema.", "cond_stage_model.model.")
"""The autoencoder, averaged weights that sampling does not use, and SD 2's text encoder, which edits leave alone."""
_SCHEDULE = re.compile(r"betas|logvar|scale_factor|posterior_\w+|\w*alphas_cumprod(_prev)?")


def converted(places: Places, state: State) -> tuple[dict[str, Tensor], set[str]]:
    """Tensors under the model's names, by component, and the names that belong to parts that edits do not touch."""
    if places.denoiser != "unet":
        raise BadInput(f"checkpoint: CompVis checkpoints hold a U-Net, and {places.model} has a {places.denoiser}")
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    own = {n: t for n, t in state.tensors.items() if n.startswith(DENOISER)}
    convert: Any = convert_ldm_unet_checkpoint  # diffusers gives it no types
    try:
        unet = convert(own, {"layers_per_block": _layers_per_block(places)})
    except (KeyError, IndexError) as error:
        raise BadInput(
            f"checkpoint: the U-Net cannot be converted from CompVis's names, {error} is not where it should be; "
            f"is it of the same architecture as {places.model}?"
        ) from None
    tensors = {f"unet.{n}": t for n, t in unet.items()}
    tensors |= {f"text_encoder.{n.removeprefix(_TEXT)}": t for n, t in state.tensors.items() if n.startswith(_TEXT)}
    return tensors, {n for n in state.tensors if n.startswith(_ELSEWHERE) or _SCHEDULE.fullmatch(n)}


def _layers_per_block(places: Places) -> int:
    first = re.compile(r"unet\.down_blocks\.0\.resnets\.(\d+)\.")
    return 1 + max(int(m[1]) for n in places.live if (m := first.match(n)))
