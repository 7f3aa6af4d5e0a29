"""Low-rank files: LoRA as diffusers, peft and kohya's scripts name it, SPM's membranes, and CPE's gates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmark.errors import BadInput
from benchmark.interface import Gates, LowRank
from methods._checkpoint_files import State
from methods._checkpoint_names import Places

GATE = "attention_gate."
_ATTENTION = GATE + "encoder_layer.slf_attn."
_QUERY = _ATTENTION + "attention_module1.w_qs.weight"
_KEY = _ATTENTION + "attention_module1.w_ks.weight"
_VECTOR = _ATTENTION + "gate.scaler.weight"

_ENDINGS: tuple[tuple[str, str], ...] = (
    # down, up; the longer endings first, of which others are the end
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora_down.weight", ".lora_up.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),  # to_q_lora and the like, of attention processors
    (".lora_A.weight", ".lora_B.weight"),
)
_ALPHA = ".alpha"
_PLAIN = {"lora_alpha", "r"}
_HARMLESS = {
    "alpha_pattern",
    "rank_pattern",
    "use_rslora",
    "use_dora",
    "lora_bias",
    "fan_in_fan_out",
    "modules_to_save",
}
"""What a peft configuration may hold, as long as it is empty: it would change what factors mean."""


def is_factor(name: str) -> bool:
    """Whether the name is that of a low-rank factor or its α."""
    return name.endswith(_ALPHA) or any(name.endswith(pair) for pair in _ENDINGS)


def deltas(places: Places, state: State, strength: float) -> tuple[dict[str, LowRank], set[str]]:
    """α/r · up · down for each layer, and the names used. Without an α it is r, as diffusers and peft have it."""
    found: dict[str, LowRank] = {}
    used: set[str] = set()
    for name in state.tensors:
        for down, up in _ENDINGS:
            if name.endswith(down):
                module = name.removesuffix(down)
                target = _layer(places, module)
                if target is None or module + up not in state.tensors:
                    break
                alpha = state.tensors.get(module + _ALPHA)
                factors = (state.tensors[module + up], state.tensors[name])
                scale = strength * _over_rank(state, module, alpha, factors[1].shape[0])
                found[target] = _delta(places, target, factors, scale)
                used |= {name, module + up} | ({module + _ALPHA} if alpha is not None else set())
                break
    return found, used


def _layer(places: Places, module: str) -> str | None:
    """The weight of a layer by any of the spellings."""
    if module.startswith("lora_"):
        return places.flattened(module)
    plain = module.removeprefix("base_model.model.").replace(".processor.", ".")
    return places.module(plain) or (places.module(f"{plain}.0") if plain.endswith(".to_out") else None)


def _delta(places: Places, target: str, factors: tuple[Tensor, Tensor], scale: float) -> LowRank:
    """Convolutions' factors are flattened: `(out, r, 1, 1)` and `(r, in, k, k)` to matrices."""
    out = places.live[target].shape[0]
    rest, rank = places.live[target].numel() // out, factors[1].shape[0]
    up, down = (f.float().flatten(1) for f in factors)
    places.fits(target, (out, rank), tuple(up.shape), f"up of {target}")
    places.fits(target, (rank, rest), tuple(down.shape), f"down of {target}")
    return LowRank(up * scale, down)


def _over_rank(state: State, module: str, alpha: Tensor | None, rank: int) -> float:
    """α/r of one layer: the file's own α, or that of the configuration that came with it."""
    if alpha is not None:
        return float(alpha) / rank
    config = _config(state)
    component = module.split(".")[0]
    value = config.get(f"{component}.lora_alpha", config.get("lora_alpha"))
    return 1.0 if value is None else float(value) / rank


# --- configurations ---------------------------------------------------------------------------------------------------
_CONFIG = "lora_adapter_metadata"
"""Under which diffusers keeps peft's configuration in the file, `unet.lora_alpha` and so on."""


def peft_metadata(config: Mapping[str, Any]) -> dict[str, str]:
    """peft's `adapter_config.json` as diffusers would keep it in the file."""
    return {_CONFIG: json.dumps(dict(config))}


def _config(state: State) -> dict[str, Any]:
    """`BadInput` for variants of low-rank change whose factors mean something else."""
    try:
        config = dict(json.loads(state.metadata.get(_CONFIG, "{}")))
    except (ValueError, TypeError) as error:
        raise BadInput(f"checkpoint: the configuration in the file's header cannot be read: {error}") from None
    odd = sorted(k for k, v in config.items() if k.split(".")[-1] in _HARMLESS and v)
    if odd:
        raise BadInput(f"checkpoint: expected plain low-rank factors, and the configuration sets {', '.join(odd)}")
    return config


# --- CPE --------------------------------------------------------------------------------------------------------------
def stacked(states: Sequence[State]) -> State:
    """CPE's files, one a concept, as one: tensors joined along their first dimension, as its release loads them."""
    first = states[0]
    for state in states:
        if _QUERY not in state.tensors:
            raise BadInput("checkpoint: a folder of *_last.safetensors is read as gates of CPE, and one of them is not")
        if {n: t.shape for n, t in state.tensors.items()} != {n: t.shape for n, t in first.tensors.items()}:
            raise BadInput("checkpoint: expected gates of CPE that are all of one size; evaluate them apart")
        if any(t.ndim == 0 and not torch.equal(t, first.tensors[n]) for n, t in state.tensors.items()):
            raise BadInput("checkpoint: expected gates of CPE that have one alpha; evaluate them apart")
    tensors = {n: t if t.ndim == 0 else torch.cat([s.tensors[n] for s in states]) for n, t in first.tensors.items()}
    prompts = ",".join(s.metadata.get("prompts", "") for s in states)
    return State(tensors, {**first.metadata, "prompts": prompts})


def gates(places: Places, state: State) -> tuple[Gates, set[str]]:
    """CPE's gates as released, and the names used. Its code computes keys with W_q too, so its W_k is not read."""
    for name in (_QUERY, _VECTOR):
        if name not in state.tensors:
            raise BadInput(f"checkpoint: expected gates of CPE with {name}, which is not in the file")
    query = state.tensors[_QUERY].float()
    used = {_QUERY, _VECTOR} | ({_KEY} & state.tensors.keys())
    changes = {}
    for name, down in state.tensors.items():
        module = name.removesuffix(".lora_down.weight")
        target = places.flattened(module) if module != name else None
        up = state.tensors.get(f"{module}.lora_up.weight")
        if target is None or up is None:
            continue
        alpha = state.tensors.get(module + _ALPHA)
        rank = down.shape[-1]
        scale = 1 / rank if alpha is None else float(alpha) / rank
        changes[target] = LowRank(up.float().mT * scale, down.float().mT)
        used |= {name, f"{module}.lora_up.weight"} | ({module + _ALPHA} if alpha is not None else set())
    return Gates(query=query, key=query, vector=state.tensors[_VECTOR].float()[..., 0], changes=changes), used
