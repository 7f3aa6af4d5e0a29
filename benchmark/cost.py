"""What a plan takes in operations and in time: by the model's architecture, and by what was measured on this machine.

No torch on top: a time from an earlier run needs none, operations and a calibration load it when they are asked for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from benchmark import device, models
from benchmark.errors import BadInput, Missing
from benchmark.plan import Calibration, Plan

if TYPE_CHECKING:
    from benchmark.backbones.base import Backbone

Config = Mapping[str, Any]
Configs = Mapping[str, Config]
"""By part of a pipeline."""


# --- time -------------------------------------------------------------------------------------------------------------
def earlier(costs: Path) -> Calibration | None:
    """What an earlier run took, from its `costs.json`; None if there is none, or it was made under other conditions.

    The conditions are the kind of device and the number of threads: a CPU's times say nothing of a GPU.
    """
    try:
        found = json.loads(costs.read_text(encoding="utf-8"))
        machine = found["machine"]
        same = machine["threads"] == device.threads() and (machine["device"] == "cpu") == (device.kind() == "cpu")
        return _from_cells(list(found["cells"].values()), f"an earlier run here ({costs.name})") if same else None
    except (ArithmeticError, AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError):
        return None


def _from_cells(cells: Sequence[Mapping[str, Any]], source: str) -> Calibration | None:
    drawn = [c["images"] for c in cells if c.get("images", {}).get("denoiser_forwards")]
    if not drawn:
        return None
    scored = [c for c in cells if "scores" in c and "images" in c]
    edits: dict[str, list[float]] = {}
    for cell in cells:
        for label, took in cell.get("edit", {}).items():
            edits.setdefault(label, []).append(took["seconds"])
    scored_images = sum(c["images"]["made"] for c in scored)
    return Calibration(
        forward_s=sum(i["seconds"] for i in drawn) / sum(i["denoiser_forwards"] for i in drawn),
        score_s=sum(c["scores"]["seconds"] for c in scored) / scored_images if scored_images else None,
        edits_s={label: fmean(seconds) for label, seconds in edits.items()},
        source=source,
    )


def calibrated(plan: Plan) -> Calibration | None:
    """One batch of the plan through one and through three steps; None where the model's weights are not here.

    Edits and scores are not tried: how long these take, an earlier run tells.
    """
    if plan.model_hash is None:
        return None
    import torch

    from benchmark.backbones.load import load

    torch.set_num_threads(device.threads())
    dtype = getattr(torch, plan.dtype)
    spec, size = plan.model, plan.form.sampler.size
    model = load(str(spec.folder or spec.name), device=device.kind(), size=size, dtype=dtype)
    _timed(model, plan, 1)  # a warm-up
    one, three = _timed(model, plan, 1), _timed(model, plan, 3)
    step = max(0.0, three - one) / 2
    per_sample = plan.form.sampler.forwards / plan.form.sampler.steps
    return Calibration(
        forward_s=step / plan.batch / per_sample,
        image_s=max(0.0, one - step) / plan.batch,
        source="a calibration just now (one batch, one and three steps)",
    )


def _timed(model: Backbone, plan: Plan, steps: int) -> float:
    """Seconds of one batch; the images come back from the device, so all of it is over."""
    from benchmark.sample import Sampler, sample

    items = (plan.cells[0].items * plan.batch)[: plan.batch]
    sampler = Sampler(steps=steps, guidance=plan.form.sampler.guidance)
    started = time.perf_counter()
    for _ in sample(model, items, sampler, plan.batch):
        pass
    return time.perf_counter() - started


# --- operations -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Flops:
    """Floating-point operations of one sample through each part: two for a multiplication with its addition.

    Matrix products, convolutions and attention, as `torch.utils.flop_counter` counts them.
    """

    forward: int
    """Of the denoiser; guidance takes two."""
    decode: int
    text: int
    """Of all text encoders together, once a distinct prompt."""


def operations(plan: Plan, forecast: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the forecast's images take: `total`, and its parts for one sample; None if the architecture is not known.

    Edits are not in it: a method's operations are not known before it ran. At the suite's image size.
    """
    found = flops(str(plan.model.folder or plan.model.name), plan.form.sampler.size)
    if found is None:
        return None
    images = forecast["denoiser_forwards"] // plan.form.sampler.forwards
    texts = len({item.prompt for cell in plan.cells for item in cell.items})
    total = forecast["denoiser_forwards"] * found.forward + images * found.decode + texts * found.text
    return {"total": total, "forward": found.forward, "decode": found.decode, "text": found.text, "without": ["edits"]}


def flops(model: str, size: int) -> Flops | None:
    """Counted on a model without memory for weights, from its configuration files or, without them, the known ones."""
    configs = configurations(model)
    if configs is None:
        return None
    import torch

    with torch.device("meta"):
        return _flow(configs, size) if "transformer" in configs else _unet(configs, size)


def configurations(model: str) -> Configs | None:
    """What the architecture of a model follows from; None if its files are not here and it is not a known one."""
    spec = models.describe(model)
    if spec.built_in:
        return _built_in(spec.name)
    try:
        folder = models.resolve(model)
    except Missing:
        return KNOWN.get(spec.name)
    assert folder is not None  # only built-in models have none
    parts = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2")
    return {name: _json(folder / name / "config.json") for name in parts if (folder / name).is_dir()}


def _json(path: Path) -> Config:
    try:
        found: Config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"expected the configuration of a model in {path}: {error}") from None
    return found


def _built_in(name: str) -> Configs:
    from benchmark.backbones import random_models

    made = random_models.unet_components() if name == "random-unet" else random_models.flux_components()
    parts = {k: v.config for k, v in made.items() if k in ("unet", "transformer", "vae")}
    texts = {k: v.config.to_dict() for k, v in made.items() if k.startswith("text_encoder")}
    return {**parts, **texts}


def _unet(configs: Configs, size: int) -> Flops:
    import diffusers
    import torch

    untyped: Any = diffusers
    unet = untyped.UNet2DConditionModel.from_config(dict(configs["unet"]))
    latent = size // factor(configs["vae"])
    x = torch.empty(1, unet.config.in_channels, latent, latent)
    length = configs["text_encoder"]["max_position_embeddings"]
    read = torch.empty(1, length, unet.config.cross_attention_dim)
    return Flops(
        forward=_count(lambda: unet(x, torch.tensor(1), encoder_hidden_states=read)),
        decode=_decode(configs["vae"], latent),
        text=_text(configs),
    )


def _flow(configs: Configs, size: int) -> Flops:
    """FLUX: 2×2 latent pixels make one token; ids are (time, row, column) of each token."""
    import diffusers
    import torch

    untyped: Any = diffusers
    denoiser = untyped.FluxTransformer2DModel.from_config(dict(configs["transformer"]))
    latent = size // factor(configs["vae"])
    tokens, length, config = (latent // 2) ** 2, flow_length(configs), denoiser.config
    given = {
        "hidden_states": torch.empty(1, tokens, config.in_channels),
        "encoder_hidden_states": torch.empty(1, length, config.joint_attention_dim),
        "pooled_projections": torch.empty(1, config.pooled_projection_dim),
        "timestep": torch.ones(1),
        "guidance": torch.ones(1) if config.guidance_embeds else None,
        "img_ids": torch.zeros(tokens, 3),
        "txt_ids": torch.zeros(length, 3),
    }
    return Flops(forward=_count(lambda: denoiser(**given)), decode=_decode(configs["vae"], latent), text=_text(configs))


def flow_length(configs: Configs) -> int:
    """Text tokens: dev reads 512 (T5's limit here), schnell 256; small models as many as their CLIP."""
    if configs["text_encoder"]["max_position_embeddings"] < 77:
        return int(configs["text_encoder"]["max_position_embeddings"])
    return 512 if configs["transformer"].get("guidance_embeds") else 256


def factor(vae: Config) -> int:
    """Pixels along one side of a latent's."""
    return int(2 ** (len(vae["block_out_channels"]) - 1))


def _decode(config: Config, latent: int) -> int:
    import diffusers
    import torch

    untyped: Any = diffusers
    vae = untyped.AutoencoderKL.from_config(dict(config))
    z = torch.empty(1, vae.config.latent_channels, latent, latent)
    return _count(lambda: vae.decode(z))


def _text(configs: Configs) -> int:
    import torch

    def read(encoder: Any, length: int) -> int:
        ids = torch.zeros(1, length, dtype=torch.long)
        return _count(lambda: encoder(input_ids=ids))

    clip, *more = text_encoders(configs)
    return read(clip, clip.config.max_position_embeddings) + sum(read(t5, flow_length(configs)) for t5 in more)


def text_encoders(configs: Configs) -> list[Any]:
    """CLIP, then T5 where there is one, on the device that is the default at the moment."""
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    made: list[Any] = [CLIPTextModel(CLIPTextConfig(**_own(configs["text_encoder"])))]
    if "text_encoder_2" in configs:
        made.append(T5EncoderModel(T5Config(**_own(configs["text_encoder_2"]))))
    return made


def _own(config: Config) -> dict[str, Any]:
    """What the architecture follows from, without what else a library writes there."""
    return {k: v for k, v in config.items() if k not in ("dtype", "torch_dtype", "architectures", "model_type")}


def _count(work: Any) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


# --- architectures whose files need not be here -----------------------------------------------------------------------
_AUTOENCODER: Config = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
}
_CLIP_L: Config = {
    "vocab_size": 49_408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
}
_T5_XXL: Config = {
    "vocab_size": 32_128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10_240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
_SD1: Configs = {
    "unet": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "vae": _AUTOENCODER,
    "text_encoder": _CLIP_L,
}
_SD2: Configs = {
    "unet": {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
    "vae": _AUTOENCODER,
    "text_encoder": {
        **_CLIP_L,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
    },
}
_FLUX_VAE: Config = {
    **_AUTOENCODER,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def _flux(*, guidance: bool) -> Configs:
    shared = {"vae": _FLUX_VAE, "text_encoder": _CLIP_L, "text_encoder_2": _T5_XXL}
    return {"transformer": {"guidance_embeds": guidance}, **shared}


KNOWN: Mapping[str, Configs] = {
    "sd14": _SD1,
    "sd15": _SD1,
    "sd21": _SD2,
    "flux-dev": _flux(guidance=True),
    "flux-schnell": _flux(guidance=False),
}
"""What of their published configuration files decides the operations, the rest being diffusers' defaults."""
