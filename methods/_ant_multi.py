"""ANT's path for several concepts: low-rank factors for each, and one set of weights out of them all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmark.backbones.base import Backbone, Projection
from benchmark.interface import LowRank
from methods import _ant
from methods._ant import Recipe
from methods._lora import LoRA, linear_weights
from methods._mace_cache import sums
from methods._mace_fusion import fuse_all

_CAPTIONS = 616_767  # of COCO 2014, train and val: what the released prior is a sum over

_ATTENTION = {
    "unet-epsilon": (("self-attention", "cross-attention"), (".to_q", ".to_k", ".to_v", ".to_out.0")),
    "transformer-flow": (("cross-attention",), (".add_q_proj", ".add_k_proj", ".add_v_proj", ".to_add_out")),
}


def attention_weights(backbone: Backbone) -> dict[str, Tensor]:
    """What the factors change while they are trained: by family, live."""
    parts, ends = _ATTENTION[backbone.family]
    return linear_weights(backbone.layers(), backbone, parts=parts, ends=ends)


def train(
    backbone: Backbone, prompt: str, recipe: Recipe, *, rank: int, alpha: float, seed: tuple[int, int]
) -> tuple[LoRA, list[tuple[float, ...]]]:
    """The factors of one concept, trained on the unedited model, and the four losses of each iteration."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    lora = LoRA(attention_weights(backbone), rank, scale=alpha / rank, generator=generator)
    work, plan = _ant.job(backbone, [prompt], recipe), _ant.draw(rng, recipe, 1)
    adam = torch.optim.AdamW(lora.parameters(), lr=recipe.lr)
    return lora, _ant.fit(work, plan, lora.weights, lora.parameters(), adam)


def kept_part(backbone: Backbone, lora: LoRA) -> dict[str, LowRank]:
    """What goes into the model: of a U-Net the keys and values of cross-attention alone, as released."""
    changes = lora.deltas()
    if backbone.family == "transformer-flow":
        return changes
    return {p.name: changes[p.name] for p in backbone.projections()}


# --- one set of weights -----------------------------------------------------------------------------------------------
def fused(
    backbone: Backbone,
    changes: Sequence[Mapping[str, LowRank]],
    prompts: Sequence[Sequence[str]],
    kept: Tensor,
    *,
    scale: float,
    ridge: float,
) -> dict[str, Tensor]:
    """MACE's fusion on the unedited matrices W: new keys and values of all cross-attentions, those that change.

    W* = (λW + Σᵢ Σ_e (W + sΔWᵢ) e eᵀ + W K)(λI + Σᵢ Σ_e e eᵀ + K)⁻¹, with e all positions of concept i's `prompts` and
    K = `kept` `(d, d)`. Lu et al. 2024, eq. 6.
    """
    readers = backbone.projections()
    base = {p.name: p.weight.detach().double() for p in readers}
    grams = [sums(backbone, phrases).gram for phrases in prompts]
    edited = [_Edited(base, change, scale) for change in changes]
    new = fuse_all(base, edited, grams, ridge, kept, base)
    return _as_own(readers, new)


def _as_own(readers: Sequence[Projection], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In the model's dtype; without those that stay as they are."""
    cast = {p.name: (new[p.name].to(p.weight.dtype), p.weight) for p in readers}
    return {name: w for name, (w, old) in cast.items() if not torch.equal(w, old)}


class _Edited(Mapping[str, Tensor]):
    """W + sΔW by name, made when asked for: a hundred concepts' matrices would not fit into memory."""

    def __init__(self, base: Mapping[str, Tensor], change: Mapping[str, LowRank], scale: float) -> None:
        self._base, self._change, self._scale = base, change, scale

    def __getitem__(self, name: str) -> Tensor:
        up, down = self._change[name]
        return self._base[name] + self._scale * up.double() @ down.double()

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


def kept_sum(
    backbone: Backbone, general: Sequence[str], domain: Sequence[str], *, prior_scale: float, domain_scale: float
) -> Tensor:
    """K `(d, d)` float64: the scaled sums over general prompts and over the domain's.

    The released prior is a sum over all captions of COCO; ours over `general` is scaled up to their number.
    """
    prior = sums(backbone, general).scaled(_CAPTIONS)
    return prior_scale * prior + domain_scale * sums(backbone, domain).gram


def merged(changes: Sequence[Mapping[str, LowRank]], scale: float) -> dict[str, LowRank]:
    """The sum of all concepts' changes, scaled, for models whose text-side projections read more than text."""
    return {
        name: LowRank(
            torch.cat([scale * change[name].up for change in changes], dim=1),
            torch.cat([change[name].down for change in changes], dim=0),
        )
        for name in changes[0]
    }
