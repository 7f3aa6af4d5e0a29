"""Where a large model's weights lie while it works, and which activations are kept: so that it fits on one card.

Moving weights and computing activations again change no bit of what comes out, only what it takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def visiting(modules: Iterable[nn.Module], device: torch.device, home: torch.device) -> Iterator[None]:
    """The modules are on `device` while the block runs, and back at `home` after it; nothing moves if these are one."""
    moved = [] if device == home else list(modules)
    try:
        for module in moved:
            module.to(device)
        yield
    finally:
        for module in moved:
            module.to(home)


@final
class Streamed:
    """Blocks whose weights live elsewhere and come to `device` for their own forward alone, one block at a time.

    For forwards without gradients. What comes is a copy: a weight that is written to at home is the one that comes next
    time. Buffers stay where they are: the blocks in use have none.
    """

    def __init__(self, blocks: Iterable[nn.Module], device: torch.device) -> None:
        self._device = device
        self._homes: dict[nn.Module, list[tuple[nn.Module, str, Any]]] = {}
        for block in blocks:
            block.register_forward_pre_hook(self._fetch)
            block.register_forward_hook(self._release, always_call=True)

    def _fetch(self, block: nn.Module, _: Any) -> None:
        """Copies stand in the places of the parameters, which stay the objects they are."""
        own = [(m, name, p) for m in block.modules() for name, p in m._parameters.items() if p is not None]
        self._homes[block] = own
        for module, name, parameter in own:
            untyped: Any = module._parameters  # copies are no parameters
            untyped[name] = parameter.detach().to(self._device, non_blocking=True)

    def _release(self, block: nn.Module, *_: Any) -> None:
        for module, name, parameter in self._homes.pop(block):
            module._parameters[name] = parameter


def recomputed(block: nn.Module, *inputs: Any) -> Any:
    """The block's outputs, whose way back computes its activations again instead of keeping them.

    With the weights that the block has now, also if others stand in their place by then: `Backbone.substituted` may
    have ended before the way back begins. Chen et al. 2016, arXiv:1604.06174.
    """
    weights: dict[str, Tensor] = dict(block.named_parameters())

    def run(*given: Any) -> Any:
        return torch.func.functional_call(block, weights, given)

    untyped: Any = checkpoint
    return untyped(run, *inputs, use_reentrant=False, preserve_rng_state=False)
