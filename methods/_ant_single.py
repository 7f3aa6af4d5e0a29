"""ANT's path for one concept: saliency maps, their intersection, and fine-tuning of what it holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmark.backbones.base import Backbone
from benchmark.errors import BadInput
from methods import _ant
from methods._ant import Given, Job, Recipe
from methods._distill import trained_names


class Maps(NamedTuple):
    """How the saliency mask is made; no prompts is no mask."""

    prompts: tuple[str, ...]
    seeds: int
    """Maps a prompt."""
    iterations: int
    """Gradients summed up in one map."""
    lr: float
    """Adam's rate between the gradients of a map; 0 takes all of them at the unedited model."""
    keep: float
    """The share of each tensor's elements that a map keeps."""
    largest: bool
    """Whether a map keeps the elements of large gradient, or those of small."""


def tune(
    backbone: Backbone, prompts: Sequence[str], recipe: Recipe, train: str, maps: Maps, seed: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """New values of the tensors that training changed, and notes."""
    names = chosen(backbone, train)
    masks = mask(backbone, names, recipe, maps, seed) if maps.prompts else None
    leaves = masters(backbone, names if masks is None else [n for n in names if masks[n].any()])
    if masks is not None:
        confine(leaves, masks)
    work = _ant.job(backbone, prompts, recipe)
    plan = _ant.draw(np.random.default_rng([seed, 0]), recipe, len(prompts))
    parameters = list(leaves.values())
    adam = torch.optim.Adam(parameters, lr=recipe.lr)
    history = _ant.fit(work, plan, substitute(backbone, leaves), parameters, adam)
    notes = {"losses": _ant.course(history), "tensors": len(leaves), "trained_share": share(backbone, names, masks)}
    return _changed(backbone, leaves), notes


def chosen(backbone: Backbone, train: str) -> list[str]:
    """Names of the parameters in the set `full`, or one of ESD's `x`, `x-strict`, `u`."""
    if train == "full":
        return [name for layer in backbone.layers() for name in layer.parameters]
    return trained_names(backbone.layers(), train)


def masters(backbone: Backbone, names: Iterable[str]) -> dict[str, Tensor]:
    """Trainable copies of the named tensors, in float32 or wider: small steps round away in half precision."""
    live = backbone.tensors()
    wide = {n: torch.promote_types(live[n].dtype, torch.float32) for n in names}
    return {n: live[n].detach().to(dtype, copy=True).requires_grad_() for n, dtype in wide.items()}


def substitute(backbone: Backbone, leaves: Mapping[str, Tensor]) -> Given:
    """The masters as the model computes with them; gradients pass."""
    live = backbone.tensors()
    dtypes = {n: live[n].dtype for n in leaves}
    return lambda: {n: leaf.to(dtypes[n]) for n, leaf in leaves.items()}


def _changed(backbone: Backbone, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    live = backbone.tensors()
    new = {n: leaf.detach().to(live[n].dtype) for n, leaf in leaves.items()}
    return {n: w for n, w in new.items() if not torch.equal(w, live[n])}


# --- the mask ---------------------------------------------------------------------------------------------------------
def mask(backbone: Backbone, names: Sequence[str], recipe: Recipe, maps: Maps, seed: int) -> dict[str, Tensor]:
    """The intersection of all maps. BadInput if it is empty."""
    live, works = backbone.tensors(), jobs(backbone, recipe, maps)
    masks = {n: torch.ones_like(live[n], dtype=torch.bool) for n in names}
    count = len(works) * maps.seeds
    for k in range(backbone.journal.resume("maps", masks) or 0, count):
        narrow(masks, saliency(works, names, maps, seed, k), maps)
        backbone.journal.done("maps", k + 1, masks, hold=k + 1 == count)
    if not any(mask.any() for mask in masks.values()):
        raise BadInput(
            f"ant: no weight is in all {count} saliency maps of a share of {maps.keep:g} each; "
            "raise mask_keep or lower map_prompts or map_seeds"
        )
    return masks


def jobs(backbone: Backbone, recipe: Recipe, maps: Maps) -> list[Job]:
    """One a prompt of the maps."""
    short = replace(recipe, iterations=maps.iterations)
    if not maps.lr:  # nothing moves, so that the frozen model's latents are the trained one's
        short = replace(short, latents_from="frozen")
    return [_ant.job(backbone, [prompt], short) for prompt in maps.prompts]


def saliency(works: Sequence[Job], names: Sequence[str], maps: Maps, seed: int, k: int) -> dict[str, Tensor]:
    """The k-th map, by prompts and then seeds: the summed gradient of the whole loss, by tensor."""
    i, j = divmod(k, maps.seeds)
    leaves = masters(works[i].task.frozen, names)
    return gradients(works[i], leaves, np.random.default_rng([seed, 1, i, j]), maps.lr)


def gradients(work: Job, leaves: Mapping[str, Tensor], rng: np.random.Generator, lr: float) -> dict[str, Tensor]:
    """Σ of the loss's gradient over the recipe's iterations; with an `lr`, Adam steps the leaves between them."""
    plan, parameters = _ant.draw(rng, work.recipe, 1), list(leaves.values())
    sums = [torch.zeros_like(p) for p in parameters]
    given, adam = substitute(work.task.frozen, leaves), torch.optim.Adam(parameters, lr=lr)
    at = _ant.examples(work, plan, given)
    for i in range(len(plan)):
        item = at(i)
        with torch.enable_grad():
            loss = _ant.total(_ant.losses(work, item, given), work.recipe.weights)
            found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        for total, p, g in zip(sums, parameters, found, strict=True):
            total += g
            p.grad = g
        if lr:
            adam.step()
    return dict(zip(leaves, sums, strict=True))


def salient(gradient: Tensor, keep: float, *, largest: bool) -> Tensor:
    """The share `keep` of the elements with the largest (or smallest) magnitude, as booleans; ties are all in.

    Elements without gradient are never among the largest.
    """
    size, n = gradient.abs(), gradient.numel()
    count = max(1, math.ceil(keep * n))
    if largest:
        return (size >= size.flatten().kthvalue(n - count + 1).values) & (size > 0)
    return size <= size.flatten().kthvalue(count).values


def narrow(masks: Mapping[str, Tensor], gradient: Mapping[str, Tensor], how: Maps) -> None:
    """Take out of the masks, in place, what this map does not keep."""
    for name, g in gradient.items():
        masks[name].logical_and_(salient(g, how.keep, largest=how.largest))


def confine(leaves: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Let gradients reach the masked-in elements only: Adam then leaves the others as they are, to the bit."""
    for name, leaf in leaves.items():
        if name not in masks or masks[name].shape != leaf.shape:
            got = tuple(masks[name].shape) if name in masks else "none"
            raise BadInput(f"ant: expected a saliency mask of shape {tuple(leaf.shape)} for {name}, got {got}")
        hook: Any = leaf.register_hook  # torch gives it no types
        hook(masks[name].mul)


def share(backbone: Backbone, names: Sequence[str], masks: Mapping[str, Tensor] | None) -> float:
    """The share of the named tensors' elements that is trained."""
    live = backbone.tensors()
    everything = sum(live[n].numel() for n in names)
    return 1.0 if masks is None else sum(int(masks[n].sum()) for n in names) / everything
