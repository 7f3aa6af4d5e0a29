"""Training ESD: all noisy latents and targets made beforehand in packs against one walk for every iteration.

The peer's way, as in ESD's script for diffusers (commit 25613d2, `trainscripts/esd_sd.py`): every iteration draws a
step and a seed, walks there alone by the frozen model at batch 1 with guidance, predicts with and without the prompt,
one after the other, then trains. Ours is the method `esd` with `latents_from: frozen`: the frozen model's walks do
not depend on the training, so they are made first, sixteen at a time, each leaving the pack where it stops, and both
predictions in one call. Both make the same draws from the same seed and train the same layers (keys and values) with
the same optimizer; text embeddings are made once on both sides. The edits are compared: they differ by rounding,
which training carries on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from benchmark import registry
from benchmark.interface import Request
from benchmark.interface import Target as Concept
from benchmark.perf.bench import Bench, Did, Target, Trial, rounded
from benchmark.perf.rig import Rig

RATE, GUIDANCE, SEED, CONCEPT = 1e-5, 3.0, 3, "cat"
STEPS = 25  # on a CPU: half of the method's own, so that a turn is short; longer walks would only widen the ratio
COUNTED = ("denoiser_forwards", "denoiser_backwards", "text_encodes")


@final
class EsdPrecompute(Bench):
    """Seconds a training."""

    name = "esd_precompute"
    title = "train ESD on walks of the frozen model"
    unit = "s"
    peer_way = "a walk at batch 1 and separate predictions in every iteration (ESD 25613d2 trainscripts/esd_sd.py)"
    targets = {
        "cpu": Target("≥ 1.3×", 1.3),
        "cuda": Target("≥ 3×", 3.0),
    }

    @contextmanager
    def ready(self, rig: Rig, folder: Path) -> Iterator[Trial]:
        yield _Trial(rig, iterations=4 if rig.small else 8 if rig.kind == "cpu" else 200)


class _Trial(Trial):
    def __init__(self, rig: Rig, iterations: int) -> None:
        self.rig, self.iterations = rig, iterations
        self.steps = rig.steps if rig.small or rig.kind == "cuda" else STEPS
        self.model = rig.backbone()
        fields: dict[str, Any] = {
            "latents_from": "frozen",
            "train": "x-strict",
            "iterations": iterations,
            "steps": self.steps,
            "lr": RATE,
            "start_guidance": GUIDANCE,
        }
        self.method = registry.method_class("esd")(**fields)
        self.request = Request(erase=(Concept(name=CONCEPT),), seed=SEED)
        self.made: dict[str, Mapping[str, Tensor]] = {}

    def ours(self) -> Did:
        with self.model.counting() as counts:
            self.made["ours"] = self.method.edit(self.model, self.request).weights
        return Did({name: getattr(counts, name) for name in COUNTED})

    def peer(self) -> Did:
        with self.model.counting() as counts:
            self.made["peer"] = self._sequential()
        return Did({name: getattr(counts, name) for name in COUNTED})

    def _sequential(self) -> dict[str, Tensor]:
        model, steps = self.model, self.steps
        names = [p.name for p in model.projections()]
        student = model.student(names)
        live = [student.tensors()[n] for n in names]
        for tensor in live:
            tensor.requires_grad_(True)
        adam = torch.optim.Adam(live, lr=RATE)
        with torch.no_grad():
            text, empty = model.embed([CONCEPT]), model.embed([""])
        for seed, stop in self._draws():
            with torch.no_grad():
                x = model.noise([seed])
                for i in range(stop):
                    t = model.timesteps(steps)[i]
                    x = model.step(x, i, model.guided(x, t, text, empty, GUIDANCE), steps)
                t = model.timesteps(steps)[stop]
                null, concept = model.predict(x, t, empty), model.predict(x, t, text)
                target = null - (concept - null)
            loss = torch.nn.functional.mse_loss(student.predict(x, t, text), target)
            adam.zero_grad()
            torch.autograd.backward(loss)
            adam.step()
        return {n: t.detach() for n, t in zip(names, live, strict=True)}

    def _draws(self) -> list[tuple[int, int]]:
        """Seed and number of steps of each iteration, as the method draws them: concept, seed, step."""
        rng = np.random.default_rng(SEED)
        drawn = ((rng.integers(1), rng.integers(2**31), rng.integers(self.steps)) for _ in range(self.iterations))
        return [(int(seed), int(stop)) for _, seed, stop in drawn]

    def settings(self) -> dict[str, Any]:
        return {"model": self.rig.model, "iterations": self.iterations, "steps": self.steps, "trained": "x-strict"}

    def checks(self) -> dict[str, Any]:
        """Largest difference of the trained weights, over the largest change that training made."""
        base = self.model.tensors()
        ours, peer = (self.made[side] for side in ("ours", "peer"))
        apart = max(float((ours.get(n, base[n]) - v).abs().max()) for n, v in peer.items())
        moved = max(float((v - base[n]).abs().max()) for n, v in peer.items())
        needed = 2 * sum(stop for _, stop in self._draws()) + 3 * self.iterations
        return {"apart_over_moved": rounded(apart / moved), "forwards_needed": needed}
