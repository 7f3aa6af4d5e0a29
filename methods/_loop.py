"""The training loop that methods share: one optimizer step a loss, and an end when a loss is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmark.backbones.journal import NONE, Journal
from benchmark.errors import BenchError


class Keeping(NamedTuple):
    """How a loop goes on after a kill."""

    journal: Journal = NONE
    name: str = "training"
    also: Mapping[str, Any] = {}
    """What the loss changes beside the parameters: generators, histories."""
    followed: bool = False
    """Whether more is trained from where the loop ends, so that its end is to be kept."""


UNKEPT = Keeping()


def minimise(
    method: str,
    parameters: Sequence[Tensor],
    loss_at: Callable[[int], Tensor],
    *,
    iterations: int,
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[int], float] | None = None,
    clip: float | None = None,
    keeping: Keeping = UNKEPT,
) -> list[float]:
    """Minimise `loss_at(i)` for i in 0 … iterations − 1; returns the losses.

    `schedule(i)` is the learning rate of step i, `clip` the largest norm of the gradient. BenchError when a loss is not
    finite, naming the iteration.
    """
    losses: list[float] = []
    held = {"parameters": list(parameters), "optimizer": optimizer, "losses": losses, "also": keeping.also}
    with torch.enable_grad():
        for i in range(keeping.journal.resume(keeping.name, held) or 0, iterations):
            if schedule is not None:
                for group in optimizer.param_groups:
                    group["lr"] = schedule(i)
            loss = loss_at(i)
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                rate = optimizer.param_groups[0]["lr"]
                raise BenchError(
                    f"{method}: the loss is {losses[-1]} at iteration {i} of training; lower the rate, now {rate:g}"
                )
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()
            keeping.journal.done(keeping.name, i + 1, held, hold=keeping.followed and i + 1 == iterations)
    return losses


def ends(losses: Sequence[float]) -> dict[str, float]:
    """Mean loss over the first and the last tenth, for an edit's notes."""
    tail = max(1, len(losses) // 10)
    return {"loss_first": sum(losses[:tail]) / tail, "loss_last": sum(losses[-tail:]) / tail} if losses else {}
