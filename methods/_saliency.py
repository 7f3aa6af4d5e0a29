"""Which elements of a model's weights matter for a concept, and training of these elements alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from benchmark.backbones.base import Backbone, Embedding, Layer, concatenate
from benchmark.errors import BadInput

_KEYS_VALUES = (".to_k", ".to_v", ".add_k_proj", ".add_v_proj")  # of a flow transformer's two streams


class Look(NamedTuple):
    """A noisy latent, and the two prompts whose predictions are compared there."""

    x: Tensor
    """`(1, *latent_shape)`"""
    t: Tensor
    """`(1,)`"""
    concept: Embedding
    neutral: Embedding


def candidates(backbone: Backbone, which: str) -> dict[str, Tensor]:
    """Live tensors that may be trained, by name: `x` or `x+up`. BadInput if the model has none."""
    live = backbone.tensors()
    chosen = [layer for layer in backbone.layers() if _is_candidate(layer, backbone.family, which)]
    names = [name for layer in chosen for name in layer.parameters]
    if not names:
        raise BadInput(f"fade_adv trains the layers {which!r}, but {backbone.name} has none of them")
    return {name: live[name] for name in names}


def _is_candidate(layer: Layer, family: str, which: str) -> bool:
    if family == "transformer-flow":
        return layer.kind == "linear" and layer.name.endswith(_KEYS_VALUES)
    reads_text = layer.part == "cross-attention" and layer.kind == "linear"
    is_up = ".up_blocks." in layer.name and layer.part in ("residual", "resample")
    return reads_text or (which == "x+up" and layer.kind == "conv" and is_up)


def saliency(backbone: Backbone, base: Mapping[str, Tensor], looks: Iterable[Look]) -> dict[str, Tensor]:
    """Σ |∂/∂θ mean (ε_θ(z_t, c, t) − ε_θ(z_t, ¬c, t))²| over `looks`, float32, of each tensor's shape.

    The paper's "norm of the output difference with and without the concept", squared; absolute values a sample.
    """
    leaves = {name: w.detach().requires_grad_() for name, w in base.items()}  # same memory, never written
    scores = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in base.items()}
    for look in looks:
        for name, grad in zip(leaves, _gradient(backbone, leaves, look), strict=True):
            scores[name] += 0 if grad is None else grad.float().abs()
    return scores


def _gradient(backbone: Backbone, leaves: Mapping[str, Tensor], look: Look) -> Sequence[Tensor | None]:
    with torch.enable_grad(), backbone.substituted(leaves):
        both = concatenate([look.concept, look.neutral])
        out = backbone.predict(torch.cat([look.x, look.x]), torch.cat([look.t, look.t]), both)
        concept, neutral = out.float().chunk(2)
        return torch.autograd.grad((concept - neutral).square().mean(), list(leaves.values()), allow_unused=True)


def top(scores: Mapping[str, Tensor], fraction: float) -> dict[str, Tensor]:
    """Flat, ascending indices of the highest `fraction` of all elements together; tensors without any are left out.

    Exactly round(fraction · elements), at least 1; of equal scores at the border the first in order are taken.
    """
    flat = {name: s.flatten() for name, s in scores.items()}
    total = sum(s.numel() for s in flat.values())
    count = min(total, max(1, round(fraction * total)))
    border = torch.cat(list(flat.values())).kthvalue(total - count + 1).values
    ties = count - sum(int((s > border).sum()) for s in flat.values())
    chosen = {}
    for name, s in flat.items():
        at_border = (s == border).nonzero()[:ties, 0]
        ties -= len(at_border)
        chosen[name] = torch.cat([(s > border).nonzero()[:, 0], at_border]).sort().values
    return {name: rows for name, rows in chosen.items() if len(rows)}


def foremost(means: Mapping[str, float], fraction: float) -> list[str]:
    """Names of the highest `fraction`, at least one, in their own order; of equals at the border the first."""
    count = max(1, round(fraction * len(means)))
    best = sorted(means, key=lambda name: -means[name])[:count]  # stable
    return [name for name in means if name in best]


@final
class Elements:
    """The chosen elements as leaves of their own, so that nothing, weight decay included, can move the others.

    Leaves are float32 whatever the model's dtype.
    """

    def __init__(self, base: Mapping[str, Tensor], indices: Mapping[str, Tensor]) -> None:
        """`base`: the model's tensors; `indices`: flat positions in them."""
        self._base = {name: base[name].detach() for name in indices}
        self._indices = dict(indices)
        self._leaves = {n: b.flatten()[indices[n]].float().clone().requires_grad_() for n, b in self._base.items()}

    def parameters(self) -> list[Tensor]:
        """One leaf a tensor, in a fixed order."""
        return list(self._leaves.values())

    def weights(self) -> dict[str, Tensor]:
        """The tensors with the leaves in their places, for `Backbone.substituted`; gradients reach the leaves."""
        return {
            name: torch.index_copy(b.flatten(), 0, self._indices[name], self._leaves[name].to(b.dtype)).view_as(b)
            for name, b in self._base.items()
        }

    def changed(self) -> dict[str, Tensor]:
        """Those of the tensors that differ from the model's."""
        with torch.no_grad():
            return {name: w for name, w in self.weights().items() if not torch.equal(w, self._base[name])}
