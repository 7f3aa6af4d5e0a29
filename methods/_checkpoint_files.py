"""Checkpoints on disk to named tensors: safetensors, pickles without code, and the folders that hold them."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from benchmark.errors import BadInput

PICKLES = frozenset({".pt", ".pth", ".bin", ".ckpt"})
_WEIGHTS = ("diffusion_pytorch_model", "model", "adapter_model", "pytorch_lora_weights", "pytorch_model")


@dataclass(frozen=True)
class State:
    """Named tensors, and what a file says about them."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_file(path: Path, *, pickles: bool) -> State:
    """Tensors of one file, on the CPU. `BadInput` for what cannot be read, and for a pickle unless `pickles`."""
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix not in PICKLES:
        raise BadInput(f"checkpoint: expected .safetensors, or {', '.join(sorted(PICKLES))}; got {path}")
    if not pickles:
        raise BadInput(
            f"checkpoint: {path} is a pickle; set allow_pickle=true to read its tensors (nothing in it is executed), "
            "or give a .safetensors file"
        )
    return State(_flat(path, _unpickled(path)))


def _safetensors(path: Path) -> State:
    try:
        with safe_open(path, framework="pt") as file:
            return State({name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {}))
    except (SafetensorError, OSError) as error:
        raise BadInput(f"checkpoint: {path} cannot be read as safetensors: {error}") from None


def _unpickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # of pickle protocols; what they cannot hold is an error anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        first = str(error).strip().split("\n")[0]
        raise BadInput(
            f"checkpoint: {path} cannot be read as tensors alone, and code in it is never run: {first}; convert it to "
            "safetensors where you trust it"
        ) from None


def _flat(path: Path, content: Any) -> dict[str, Tensor]:
    """`{"state_dict": …}` is opened; `{module: {name: tensor}}`, as ESD's script for diffusers saves, is joined."""
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise BadInput(f"checkpoint: expected named tensors in {path}, found {type(content).__name__}")
    flat: dict[str, Tensor] = {}
    for name, value in content.items():
        parts = {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {str(name): value}
        flat |= {k: v for k, v in parts.items() if isinstance(v, Tensor)}
    if not flat:
        raise BadInput(f"checkpoint: {path} holds no tensors")
    return flat


# --- folders ----------------------------------------------------------------------------------------------------------
def read_part(folder: Path, *, pickles: bool) -> State:
    """Tensors of a model's or adapter's folder, shards together; without a variant such as fp16, if there are any."""
    named = [p for p in sorted(folder.iterdir()) if p.name.startswith(_WEIGHTS) and p.is_file()]
    files = [p for p in named if p.suffix == ".safetensors"] or [p for p in named if p.suffix in PICKLES]
    plain = [p for p in files if "." not in p.stem] or files
    if not plain:
        raise BadInput(f"checkpoint: no weights in {folder}: expected *.safetensors named as diffusers or peft do")
    states = [read_file(p, pickles=pickles) for p in plain]
    tensors = {name: value for state in states for name, value in state.tensors.items()}
    return State(tensors, states[0].metadata)


def read_json(path: Path) -> dict[str, Any]:
    """`BadInput` if it is not a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"checkpoint: expected a JSON file {path}: {error}") from None
    if not isinstance(content, dict):
        raise BadInput(f"checkpoint: expected an object in {path}, found {type(content).__name__}")
    return content
