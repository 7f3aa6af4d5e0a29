"""Random changes of given norms."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from benchmark.interface import Edit


def equal_norm(base: Mapping[str, Tensor], like: Edit, seed: int) -> dict[str, Tensor]:
    """New values of the tensors that `like` changes: the base's plus noise of that change's Frobenius norm."""
    weights = {}
    for name in sorted({*like.weights, *like.deltas}):
        norm = _change(base[name], name, like).norm()
        if norm > 0:
            weights[name] = _perturbed(base[name], norm, _generator(seed, name))
    return weights


def _change(w: Tensor, name: str, edit: Edit) -> Tensor:
    """New minus old, of `w`'s shape, in float64."""
    old = w.detach().double()
    new = edit.weights[name].to(old) if name in edit.weights else old
    if name in edit.deltas:
        up, down = (part.to(old) for part in edit.deltas[name])
        new = new + (up @ down).view_as(old)
    change: Tensor = new - old
    return change


def _perturbed(w: Tensor, norm: Tensor, generator: torch.Generator) -> Tensor:
    # drawn on the CPU, so that every device has the same noise
    noise = torch.randn(w.shape, generator=generator, dtype=torch.float64).to(w.device)
    return torch.add(w.detach().double(), noise * (norm / noise.norm())).to(w.dtype)


def _generator(seed: int, name: str) -> torch.Generator:
    """One generator a tensor: its noise does not depend on which others change."""
    digest = hashlib.sha256(f"{seed}|{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
