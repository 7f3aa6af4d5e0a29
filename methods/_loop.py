"""The training loop that methods share: one optimizer step a loss, and an end when a loss is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmark.errors import BenchError


def minimise(
    method: str,
    parameters: Sequence[Tensor],
    loss_at: Callable[[int], Tensor],
    *,
    iterations: int,
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[int], float] | None = None,
    clip: float | None = None,
    after: Callable[[int], Any] | None = None,
) -> list[float]:
    """Minimise `loss_at(i)` for i in 0 … iterations − 1; returns the losses.

    `schedule(i)` is the learning rate of step i, `clip` the largest norm of the gradient, `after(i)` is called when a
    step is done. BenchError when a loss is not finite, naming the iteration.
    """
    losses = []
    with torch.enable_grad():
        for i in range(iterations):
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
            if after is not None:
                after(i)
    return losses


def ends(losses: Sequence[float]) -> dict[str, float]:
    """Mean loss over the first and the last tenth, for an edit's notes."""
    tail = max(1, len(losses) // 10)
    return {"loss_first": sum(losses[:tail]) / tail, "loss_last": sum(losses[-tail:]) / tail} if losses else {}
