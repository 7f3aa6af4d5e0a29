"""A discriminator of latents that knows their noise level: does a concept's prompt stand behind this one?"""

from __future__ import annotations

import math
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus
from torch.nn.utils.parametrizations import spectral_norm

from benchmark.backbones.base import Backbone

_MULTIPLES = (1, 2, 4, 4)  # of the width: 64, 128, 256, 256
_GROUPS = 8
_TIME = 64
_BETAS = (0.5, 0.99)


class Views(NamedTuple):
    """What a discriminator sees of pairs: the same noise, the same time, other words."""

    concept: Tensor
    """`(pairs, *latent_shape)`"""
    neutral: Tensor
    """As `concept`."""
    t: Tensor
    """`(pairs,)`: the model's own times; 0 for final latents."""
    heads: Tensor
    """`(pairs,)`: which concept was asked for."""

    def some(self, rows: Tensor) -> Views:
        """The pairs in `rows`."""
        return Views(self.concept[rows], self.neutral[rows], self.t[rows], self.heads[rows])


# --- the network ------------------------------------------------------------------------------------------------------
@final
class Discriminator(nn.Module):
    """Strided convolutions with spectral norms, group norms modulated by the time, a mean, one logit a concept.

    Stages halve the image until its shorter side is 2, four at most: four for 64×64, two for 8×8.
    """

    def __init__(self, grid: tuple[int, int, int], concepts: int, width: int) -> None:
        """`grid`: channels, rows and columns of a latent. `width`: a multiple of 8."""
        super().__init__()
        self.rows = grid[1]
        sizes = [grid[0], *(width * m for m in _MULTIPLES[: depth(min(grid[1:]))])]
        self.time = nn.Sequential(nn.Linear(_TIME, _TIME), nn.SiLU())
        self.convs = nn.ModuleList(
            spectral_norm(nn.Conv2d(a, b, 4, stride=2, padding=1)) for a, b in zip(sizes, sizes[1:], strict=False)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(_GROUPS, b) for b in sizes[1:])
        self.films = nn.ModuleList(nn.Linear(_TIME, 2 * b) for b in sizes[1:])
        self.head = spectral_norm(nn.Linear(sizes[-1], concepts))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Logits `(batch, concepts)` of latents `(batch, *latent_shape)` at times `(batch,)`."""
        h, e = folded(x.float(), self.rows), self.time(sinusoid(t))
        for conv, norm, film in zip(self.convs, self.norms, self.films, strict=True):
            scale, shift = film(e)[:, :, None, None].chunk(2, dim=1)
            h = silu(norm(conv(h)) * (1 + scale) + shift)
        logits: Tensor = self.head(h.mean((2, 3)))
        return logits


def depth(side: int) -> int:
    """Stages for a latent whose shorter side is `side`."""
    return max(1, min(len(_MULTIPLES), int(math.log2(max(side, 2))) - 1))


def sinusoid(t: Tensor) -> Tensor:
    """`(batch, 64)`: sines and cosines of times, as of positions in Vaswani et al. 2017, section 3.5."""
    rates = torch.exp(-math.log(10_000) * torch.arange(_TIME // 2, device=t.device) / (_TIME // 2))
    angles = t.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def grid(backbone: Backbone) -> tuple[int, int, int]:
    """Channels, rows and columns of a latent; packed tokens lie row by row, in the image's proportions."""
    if len(backbone.latent_shape) == 3:
        channels, height, width = backbone.latent_shape
        return channels, height, width
    tokens, channels = backbone.latent_shape
    rows = round(math.sqrt(tokens * backbone.image_size[0] / backbone.image_size[1]))
    return channels, rows, tokens // rows


def folded(x: Tensor, rows: int) -> Tensor:
    """`(batch, channels, rows, columns)`, from this or from `(batch, tokens, channels)`."""
    return x if x.ndim == 4 else x.transpose(1, 2).reshape(len(x), x.shape[2], rows, -1)


def build(backbone: Backbone, concepts: int, width: int, seed: int) -> Discriminator:
    """A new one on the backbone's device, in float32; its weights come from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds accelerators too
        made = Discriminator(grid(backbone), concepts, width)
    return made.to(backbone.device)


# --- the losses -------------------------------------------------------------------------------------------------------
def labels(heads: Tensor, concepts: int) -> Tensor:
    """`(2 · pairs, concepts)`: 1 where a concept's prompt meets its own logit, else 0; neutral prompts come last."""
    own = nn.functional.one_hot(heads, concepts).float()
    return torch.cat([own, torch.zeros_like(own)])


def supervised(heads: Tensor, concepts: int, how: str) -> Tensor:
    """`(2 · pairs, concepts)`, bool: the logits that a label reaches: all (`cross`), or each pair's own (`own`)."""
    own = nn.functional.one_hot(heads, concepts).bool()
    used = own if how == "own" else torch.ones_like(own)
    return torch.cat([used, used])


def discriminator_loss(concept: Tensor, neutral: Tensor, heads: Tensor, how: str = "cross") -> Tensor:
    """L_D = −E[log D | label 1] − E[log(1 − D) | label 0], of logits `(pairs, concepts)` each; section 4.1.

    Each mean is over its own labels, so that D = 1/2 is the optimum for equal distributions, whatever the number of
    concepts; the loss is then 2 log 2.
    """
    logits, wanted = torch.cat([concept, neutral]), labels(heads, concept.shape[1])
    used = supervised(heads, concept.shape[1], how)
    yes, no = used & (wanted == 1), used & (wanted == 0)
    return softplus(-logits[yes]).mean() + softplus(logits[no]).mean()


def own(logits: Tensor, heads: Tensor) -> Tensor:
    """`(pairs,)`: of each pair, the logit of its concept."""
    return logits.gather(1, heads[:, None])[:, 0]


def removal_loss(concept: Tensor, heads: Tensor) -> Tensor:
    """L_rem = −E[log(1 − D(x_c))], from logits `(pairs, concepts)`: softplus of the own one."""
    return softplus(own(concept, heads)).mean()


# --- the training -----------------------------------------------------------------------------------------------------
def optimizer(judge: Discriminator, lr: float) -> torch.optim.Adam:
    """Adam with β = (0.5, 0.99)."""
    return torch.optim.Adam(judge.parameters(), lr=lr, betas=_BETAS)


def learn(judge: Discriminator, adam: torch.optim.Adam, views: Views, how: str) -> float:
    """One step on all of `views`; returns L_D before it. Ends in eval mode, where spectral norms stand still."""
    both, times = torch.cat([views.concept, views.neutral]), torch.cat([views.t, views.t])
    with torch.enable_grad():
        concept, neutral = judge.train().requires_grad_(True)(both, times).chunk(2)
        loss = discriminator_loss(concept, neutral, views.heads, how)
        adam.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
    adam.step()
    judge.eval().requires_grad_(False)
    return float(loss.detach())


def fit(
    judge: Discriminator,
    adam: torch.optim.Adam,
    views: Views,
    rng: np.random.Generator,
    *,
    steps: int,
    batch: int,
    how: str,
) -> list[float]:
    """`steps` steps on random batches of `views`; returns the losses."""
    most = min(batch, len(views.t))
    draws = [torch.from_numpy(rng.choice(len(views.t), most, replace=False)) for _ in range(steps)]
    return [learn(judge, adam, views.some(rows.to(views.t.device)), how) for rows in draws]


@torch.no_grad()
def accuracy(judge: Discriminator, views: Views) -> float:
    """Share of the pairs' halves told right by the logit of their concept; a logit of 0 is half right."""
    judge.eval()
    concept, neutral = (own(judge(x, views.t), views.heads) for x in (views.concept, views.neutral))
    return float((1 + concept.sign() - neutral.sign() + 1).mean() / 4)
