"""Checkpoints on disk to named tensors: safetensors, pickles without code, and the folders that hold them."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from benchmark.errors import BadInput

PICKLES = frozenset({".pt", ".pth", ".bin", ".ckpt"})
_MOST_MEMBERS = 100_000  # of an archive: a tensor each
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
    # The library raises several kinds of its own for what is no tensor, such as a type that torch does not have.
    except (SafetensorError, AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise BadInput(f"checkpoint: {path} cannot be read as safetensors: {_first_line(error)}") from None


def _unpickled(path: Path) -> Any:
    try:
        _bounded(path)
        with warnings.catch_warnings():
            # Of pickle protocols, and of files from other systems; what they cannot hold is an error anyway.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file made up to harm fails in any way that a reader of pickles can
        raise BadInput(
            f"checkpoint: {path} cannot be read as tensors alone, and code in it is never run: {_first_line(error)}; "
            "convert it to safetensors where you trust it"
        ) from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().split("\n")), "") or type(error).__name__


def _bounded(path: Path) -> None:
    """ValueError for an archive whose header promises more than the file holds.

    torch writes its members as they are, one after another: compressed ones, or those that overlap, are a bomb.
    """
    if not zipfile.is_zipfile(path):
        return  # the format before torch 1.6, whose pickle is read as it comes
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        promised = sum(m.file_size for m in members)
    if len(members) > _MOST_MEMBERS or promised > path.stat().st_size:
        raise ValueError(
            f"an archive of {len(members)} members with {promised:,} bytes in a file of {path.stat().st_size:,}"
        )


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
    odd = [k for k, v in flat.items() if v.layout != torch.strided or v.is_quantized or v.is_meta]
    if odd:
        raise BadInput(
            f"checkpoint: {path}: expected plain tensors, and {odd[0][:100]!r} is sparse, quantised or empty"
        )
    if (held := sum(v.numel() * v.element_size() for v in flat.values())) > 4 * path.stat().st_size:
        # One number stretched over a large shape takes no room in a file, and all of the memory once it is used.
        raise BadInput(f"checkpoint: {path}: {held:,} bytes of tensors in a file of {path.stat().st_size:,}")
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
    except (OSError, RecursionError, ValueError) as error:
        raise BadInput(f"checkpoint: expected a JSON file {path}: {error}") from None
    if not isinstance(content, dict):
        raise BadInput(f"checkpoint: expected an object in {path}, found {type(content).__name__}")
    return content
