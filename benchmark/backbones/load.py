"""A model's name or folder to its backbone: local files only, safetensors only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from safetensors import SafetensorError

from benchmark import models
from benchmark.backbones import random_models
from benchmark.backbones.base import Backbone
from benchmark.backbones.flux import FluxBackbone
from benchmark.backbones.unet import UNetBackbone
from benchmark.errors import BadInput, Missing
from benchmark.models import describe, model_hash
from benchmark.speed import Offload
from benchmark.untrusted import TEXT, parse_json, read_bytes

__all__ = ["describe", "load", "model_hash"]

# a variant stands before or after the shard's number, as older and newer versions write it
_WEIGHTS = re.compile(r"(?:diffusion_pytorch_model|model)(?:\.(\w+))?(?:-\d+-of-\d+)?(?:\.(\w+))?\.safetensors")

_MODELS: dict[str, Any] = {
    "unet": diffusers.UNet2DConditionModel,
    "transformer": diffusers.FluxTransformer2DModel,
    "vae": diffusers.AutoencoderKL,
    "text_encoder": transformers.CLIPTextModel,
    "text_encoder_2": transformers.T5EncoderModel,
}
_TOKENIZERS: dict[str, Any] = {"tokenizer": transformers.CLIPTokenizer, "tokenizer_2": transformers.T5Tokenizer}
_PIPELINES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "StableDiffusionPipeline": (UNetBackbone, ("unet", "text_encoder", "tokenizer", "vae")),
    "FluxPipeline": (
        FluxBackbone,
        ("transformer", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "vae"),
    ),
}


def load(
    name_or_path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    size: int | tuple[int, int] | None = None,
    offload: Offload = "none",
    checkpointing: bool = False,
) -> Backbone:
    """Load a model of the table (`benchmark.models`) or a diffusers folder, in eval mode and without gradients.

    `dtype` is the dtype in memory, whatever the files hold. `size` is the side of the square image, or (height,
    width), in pixels, by default the model's own. `offload` and `checkpointing` make a flow transformer fit (see
    `FluxBackbone`); BadInput for other families. Nothing is downloaded: Missing says what to get and where it was
    looked for. BadInput for a pipeline of another class or parts that do not belong together.
    """
    spec = models.describe(str(name_or_path))
    placed: dict[str, Any] = {"offload": offload, "checkpointing": checkpointing}
    if spec.family != "transformer-flow":
        if offload != "none" or checkpointing:
            raise BadInput(f"offload and checkpointing are for flow transformers; {spec.name} is {spec.family}")
        placed = {}
    if spec.built_in:
        return _built(spec.name, device, dtype, size)  # so small that it fits as it is
    folder = models.resolve(str(name_or_path))
    assert folder is not None  # only built-in models have none
    pipeline = str(models.index(folder).get("_class_name"))
    if pipeline not in _PIPELINES:
        raise BadInput(f"{folder} holds a {pipeline}; expected one of {', '.join(sorted(_PIPELINES))}")
    kind, names = _PIPELINES[pipeline]
    with _quiet():
        parts = {name: _part(folder, name, dtype) for name in names}
    scheduler = _json(folder / "scheduler" / "scheduler_config.json")
    backbone: Backbone = kind(spec.name, **parts, scheduler=scheduler, device=device, size=_square(size), **placed)
    return backbone


def _built(name: str, device: torch.device | str, dtype: torch.dtype, size: int | tuple[int, int] | None) -> Backbone:
    if _square(size) not in (None, (random_models.PIXELS, random_models.PIXELS)):
        raise BadInput(f"{name} makes images of {random_models.PIXELS} pixels, got size {size}")
    make = random_models.random_unet if name == "random-unet" else random_models.random_flux
    return make(device=device, dtype=dtype)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of the libraries: the harness shows its own."""
    bars: Any = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _square(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else size


def _part(folder: Path, name: str, dtype: torch.dtype) -> Any:
    try:
        if name in _TOKENIZERS:
            return _TOKENIZERS[name].from_pretrained(folder / name, local_files_only=True)
        return _model(folder / name, _MODELS[name], dtype)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        first = str(error).strip().split("\n")[0]
        raise BadInput(f"cannot read {name} of the model in {folder}: {first}") from error


def _model(part: Path, kind: Any, dtype: torch.dtype) -> Any:
    models.check_shards(part)
    model, report = kind.from_pretrained(
        part,
        local_files_only=True,
        use_safetensors=True,
        variant=_variant(part),
        output_loading_info=True,
        **{"torch_dtype" if kind.__module__.startswith("diffusers") else "dtype": dtype},
    )
    if absent := sorted(report["missing_keys"]):  # the libraries fill these with random numbers
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise BadInput(f"{part} lacks the weight {absent[0]}{more}; get its files again")
    return model


def _variant(part: Path) -> str | None:
    """None for the plain weights where there are any, else the one variant that is there, such as fp16."""
    found = [m for p in part.glob("*.safetensors") if (m := _WEIGHTS.fullmatch(p.name))]
    variants = {m[1] or m[2] for m in found}
    if not variants:
        raise Missing(f"no weights in {part}: expected *.safetensors; pickled weights (.bin, .ckpt) are not read")
    if len(variants) > 1 and None not in variants:
        raise BadInput(f"expected plain weights or one variant in {part}, got {', '.join(sorted(variants))}")
    return None if None in variants else str(variants.pop())


def _json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_bytes(path, TEXT))
    except ValueError as error:
        raise BadInput(f"expected a JSON file {path}: {error}") from None
    if not isinstance(content, dict):
        raise BadInput(f"expected an object in {path}, found {type(content).__name__}")
    return content
