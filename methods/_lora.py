"""Low-rank changes of linear weights, trained beside a frozen model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from benchmark.backbones.base import Backbone, Layer
from benchmark.errors import BadInput
from benchmark.interface import LowRank


class LoRA:
    """W + scale · up · down for each named weight; up starts at zero, so that training starts at the base model.

    Hu et al. 2022, arXiv:2106.09685, section 4.1. Factors are float32 whatever the model's dtype.
    """

    def __init__(
        self, base: Mapping[str, Tensor], rank: int, *, scale: float, generator: torch.Generator, init: str = "kaiming"
    ) -> None:
        """`base`: the weights changed, `(out, in)` each. `init` of down: `kaiming` (uniform, a = √5) or `gauss`
        (standard deviation 1/rank)."""
        self.base, self.scale = dict(base), scale
        self.up = {n: torch.zeros(w.shape[0], rank, device=w.device, requires_grad=True) for n, w in base.items()}
        self.down = {n: _initial(w, rank, init, generator) for n, w in base.items()}

    def parameters(self) -> list[Tensor]:
        """All factors, in a fixed order."""
        return [factor for name in self.base for factor in (self.up[name], self.down[name])]

    def weights(self) -> dict[str, Tensor]:
        """The changed weights, for `Backbone.substituted`; gradients reach the factors."""
        return {n: (w.float() + self.scale * self.up[n] @ self.down[n]).to(w.dtype) for n, w in self.base.items()}

    def deltas(self) -> dict[str, LowRank]:
        """The changes alone, with the scale in `up`."""
        return {
            n: LowRank((self.scale * self.up[n]).detach().clone(), self.down[n].detach().clone()) for n in self.base
        }


def _initial(weight: Tensor, rank: int, init: str, generator: torch.Generator) -> Tensor:
    shape = (rank, weight.shape[1])
    if init == "gauss":
        down = torch.randn(shape, generator=generator) / rank
    else:  # kaiming_uniform_ with a = √5
        bound = 1 / math.sqrt(shape[1])
        down = (torch.rand(shape, generator=generator) * 2 - 1) * bound
    return down.to(weight.device).requires_grad_()


def linear_weights(
    layers: Sequence[Layer], backbone: Backbone, *, parts: Sequence[str], ends: Sequence[str]
) -> dict[str, Tensor]:
    """Weights of the linear layers of the given parts whose names end so, live; BadInput if there are none."""
    names = [layer.name for layer in layers if layer.kind == "linear" and layer.part in parts]
    chosen = [name for name in names if any(name.endswith(end) for end in ends)]
    if not chosen:
        raise BadInput(f"expected linear layers {', '.join(ends)} in {', '.join(parts)}; {backbone.name} has none")
    live = backbone.tensors()
    return {f"{name}.weight": live[f"{name}.weight"] for name in chosen}
