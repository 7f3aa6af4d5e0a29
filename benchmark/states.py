"""States of what trains (tensors, optimizers, generators, …): taken, given back to the bit, and as bytes, no pickle.

A state is made of tensors, numbers, texts, None, and lists and dicts of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from benchmark.backbones.journal import Resumable

State = Any
_FILE = 256 * 2**20  # bytes of tensors in one file: what a write needs in memory, beside the state itself
_WORD = 2**63


# --- taking and giving back -------------------------------------------------------------------------------------------
def state_of(held: Any) -> State:
    """The state of what is held, not copied: it changes with it. TypeError for what has none that is known here."""
    if isinstance(held, Tensor):
        return held.detach()
    if isinstance(held, torch.Generator):
        return held.get_state()
    if isinstance(held, np.random.Generator):
        return dict(held.bit_generator.state)
    if isinstance(held, torch.optim.Optimizer | nn.Module):
        return held.state_dict()
    if isinstance(held, Resumable):
        return state_of(held.state())
    if isinstance(held, Mapping):
        return {key: state_of(value) for key, value in held.items()}
    if isinstance(held, list | tuple):
        return [state_of(value) for value in held]
    if held is None or isinstance(held, bool | int | float | str):
        return held
    raise TypeError(f"expected something whose state is known, got {type(held).__name__}; make it a Resumable")


def restore(held: Any, state: State) -> None:
    """Give what is held a state that it had. ValueError, or what torch raises, for one that is not its own."""
    if isinstance(held, Tensor):
        _copy(held, state)
    elif isinstance(held, torch.Generator):
        held.set_state(state)
    elif isinstance(held, np.random.Generator):
        held.bit_generator.state = state
    elif isinstance(held, torch.optim.Optimizer):
        _restore_optimizer(held, state)
    elif isinstance(held, nn.Module):
        held.load_state_dict(state)
    elif isinstance(held, Resumable):
        held.load(state)
    elif isinstance(held, Mapping) and held.keys() == state.keys():
        for key, value in held.items():
            restore(value, state[key])
    elif isinstance(held, list) and not _numbers(held):
        for value, of in zip(held, state, strict=True):
            restore(value, of)
    elif isinstance(held, list):
        held[:] = state
    elif held is not None or state is not None:
        raise ValueError(f"expected the state of a {type(held).__name__}, got a {type(state).__name__}")


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(v, bool | int | float | str | list | tuple) for v in values)


def _copy(held: Tensor, state: Tensor) -> None:
    if held.shape != state.shape or held.dtype != state.dtype:
        raise ValueError(
            f"expected {tuple(held.shape)} {held.dtype}, got {tuple(state.shape)} {state.dtype}"
        )  # copy_ would broadcast and round
    with torch.no_grad():
        held.copy_(state)


def _restore_optimizer(held: torch.optim.Optimizer, state: State) -> None:
    held.load_state_dict(state)
    for parameter, own in held.state.items():
        for name, value in own.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                # laid out in memory as the parameter is, which is how optimizers make it
                own[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def copied(state: State) -> State:
    """The state apart from what it was taken of, in the machine's own memory."""
    document, tensors = pack(state)
    return unpack(document, [t.to("cpu", copy=True) for t in tensors])


# --- bytes ------------------------------------------------------------------------------------------------------------
def pack(state: State) -> tuple[Any, list[Tensor]]:
    """The state as JSON and the tensors that it refers to, in order. TypeError for what no state is made of."""
    tensors: list[Tensor] = []
    return _packed(state, tensors), tensors


def _packed(state: State, tensors: list[Tensor]) -> Any:
    if isinstance(state, Tensor):
        tensors.append(state)
        return {"tensor": len(tensors) - 1, "cpu": state.device.type == "cpu"}
    if isinstance(state, Mapping):  # as pairs: keys may be numbers
        return {"pairs": [[key, _packed(value, tensors)] for key, value in state.items()]}
    if isinstance(state, list | tuple):
        return [_packed(value, tensors) for value in state]
    if isinstance(state, int) and not -_WORD <= state < _WORD:
        return {"whole": str(state)}  # of a generator; JSON is read with 64 bits
    if state is None or isinstance(state, bool | int | float | str):
        return state
    raise TypeError(f"expected tensors, numbers and texts in a state, got {type(state).__name__}")


def unpack(document: Any, tensors: Sequence[Tensor], device: torch.device | str = "cpu") -> State:
    """The state behind `pack`; what was not on the CPU goes to `device`."""
    if isinstance(document, list):
        return [unpack(value, tensors, device) for value in document]
    if not isinstance(document, dict):
        return document
    if "pairs" in document:
        return {key: unpack(value, tensors, device) for key, value in document["pairs"]}
    if "whole" in document:
        return int(document["whole"])
    tensor = tensors[document["tensor"]]
    return tensor if document["cpu"] else tensor.to(device)


@final
class TensorFiles(Mapping[str, bytes]):
    """Tensors as files of safetensors, `000.safetensors` and so on, whose bytes are made when they are asked for."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._parts: dict[str, dict[str, Tensor]] = {}
        left = 0
        for i, tensor in enumerate(tensors):
            if left < tensor.nbytes or not self._parts:
                self._parts[f"{len(self._parts):03d}.safetensors"], left = {}, _FILE
            self._parts[f"{len(self._parts) - 1:03d}.safetensors"][str(i)] = tensor
            left -= tensor.nbytes

    def __getitem__(self, name: str) -> bytes:
        # a clone each: safetensors refuses tensors that share memory
        return save_tensors({i: t.detach().cpu().contiguous().clone() for i, t in self._parts[name].items()})

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def tensors_of(files: Mapping[str, bytes]) -> list[Tensor]:
    """The tensors behind such files, in their order."""
    found = {int(i): t for content in files.values() for i, t in load_tensors(content).items()}
    return [found[i] for i in range(len(found))]
