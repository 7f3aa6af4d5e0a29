"""A closed-form edit of Stable Diffusion 1.x's 32 keys and values: one factorisation against one inverse each.

The peer's way, as in UCE (commit 28c81ed, `trainscripts/uce_sd_erase.py`) and in MACE's closed-form fusion (057e7a6):
for every projection, over every concept to erase and to keep, outer products are added up into two matrices, and the
second is inverted, in float32. Ours is the method `uce` itself. The left matrix does not depend on the projection and
the target is the projection's own output, so one Cholesky factor serves all 32, and what is kept enters that factor
alone. Both get the same concepts, as ready-made embeddings of CLIP's size (one row a prompt, with a mean direction
that all share, as CLIP's have), and the same weights; text encoding is outside both. Either side gives back the memory
of its last turn before it begins: fresh pages for 77 MB take as long as ours computes, and longer on a virtual machine.
The error is of the change of the weights, against the same formula in float64.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, final

import torch
from torch import Tensor

from benchmark import registry
from benchmark.backbones.base import Embedding, Projection
from benchmark.interface import Request
from benchmark.interface import Target as Concept
from benchmark.perf.bench import Bench, Did, Target, Trial, rounded
from benchmark.perf.rig import Rig

if TYPE_CHECKING:
    from benchmark.backbones.base import Backbone

WIDTH = 768
BLOCKS = (320, 320, 640, 640, 1280, 1280, 1280, 1280, 1280, 1280, 640, 640, 640, 320, 320, 320)
"""Widths of the sixteen cross-attentions of Stable Diffusion 1.x, each with keys and values."""
RIDGE = 0.5


@final
class ClosedFormEdit(Bench):
    """Seconds an edit."""

    unit = "s"
    peer_way = (
        "outer products of every concept added up for every projection, an inverse for each (UCE 28c81ed, MACE 057e7a6)"
    )
    targets = {
        "cpu": Target("≥ 50×, error < 10⁻⁵", 50.0, lambda entry: entry["checks"]["error_ours"] < 1e-5),
        "cuda": Target("≥ 20×, error < 10⁻⁵", 20.0, lambda entry: entry["checks"]["error_ours"] < 1e-5),
    }

    def __init__(self, erased: int, kept: int) -> None:
        self.erased, self.kept = erased, kept
        self.peer_once = kept >= 1000  # a minute a turn
        self.name = f"closed_form_edit_{erased}_{kept}"
        self.title = f"closed-form edit, {erased} erased and {kept:,} kept, 32 projections of Stable Diffusion 1.x"

    warm_up = False  # ours is warmed when it is made ready; a turn of the peer's way is long, and has nothing to warm

    @contextmanager
    def ready(self, rig: Rig, folder: Path) -> Iterator[Trial]:
        trial = _Trial(rig, 2, 3, BLOCKS[:2]) if rig.small else _Trial(rig, self.erased, self.kept, BLOCKS)
        trial.ours()
        yield trial


class _Trial(Trial):
    def __init__(self, rig: Rig, erased: int, kept: int, blocks: Sequence[int]) -> None:
        self.rig = rig
        self.erased = [f"erased {i}" for i in range(erased)]
        self.kept = [f"kept {i}" for i in range(kept)]
        self.model = _Readers(blocks, rig.kind, [*self.erased, *self.kept, ""])
        # one row a prompt, kept prompts at the weight of erased ones, nothing else preserved: the plain formula
        fields = {"rows": "last", "preserve_scale": 1.0, "preserve_empty": False, "ridge": RIDGE}
        self.method = registry.method_class("uce")(**fields)
        self.request = Request(erase=tuple(Concept(name=n) for n in self.erased), keep=tuple(self.kept))
        self.made: dict[str, Mapping[str, Tensor]] = {}

    def ours(self) -> Did:
        self.made.pop("ours", None)  # on both sides: what is written anew takes the place of what was written before
        self.made["ours"] = self.method.edit(cast("Backbone", self.model), self.request).weights
        self._wait()
        return Did({"factorisations": 1, "inverses": 0, "outer_products": 0})

    @torch.no_grad()
    def peer(self) -> Did:
        self.made.pop("peer", None)
        rows = self.model.rows
        done = {"factorisations": 0, "inverses": 0, "outer_products": 0}
        made = {}
        for p in self.model.projections():
            target, gram = RIDGE * p.weight, RIDGE * torch.eye(WIDTH, device=p.weight.device)
            pairs = [(n, "") for n in self.erased] + [(n, n) for n in self.kept]
            for source, guide in pairs:
                c, v = rows[source][:, None], p.weight @ rows[guide][:, None]
                target += v @ c.T
                gram += c @ c.T
                done["outer_products"] += 2
            made[p.name] = target @ torch.inverse(gram)
            done["inverses"] += 1
        self.made["peer"] = made
        self._wait()
        return Did(done)

    def settings(self) -> dict[str, Any]:
        shapes = [tuple(p.weight.shape) for p in self.model.projections()]
        return {"erased": len(self.erased), "kept": len(self.kept), "projections": len(shapes), "text_width": WIDTH}

    def checks(self) -> dict[str, Any]:
        """Relative errors of the change, ‖ΔW − ΔW₆₄‖/‖ΔW₆₄‖, the worst over projections."""
        errors = {side: 0.0 for side in self.made}
        for p in self.model.projections():
            truth = self._truth(p.weight.double())
            for side, made in self.made.items():
                change = made[p.name].double() - p.weight.double()
                errors[side] = max(errors[side], float((change - truth).norm() / truth.norm()))
        return {f"error_{side}": rounded(error) for side, error in errors.items()}

    def _truth(self, w: Tensor) -> Tensor:
        """The change in float64, by one solve."""
        rows = {name: row.double() for name, row in self.model.rows.items()}
        c, k = (torch.stack([rows[n] for n in names]) for names in (self.erased, self.kept))
        guides = rows[""].expand_as(c)
        eye = RIDGE * torch.eye(WIDTH, dtype=w.dtype, device=w.device)
        gram, wanted = eye + c.T @ c + k.T @ k, w @ (guides.T @ c + k.T @ k + eye)
        new: Tensor = torch.linalg.solve(gram, wanted, left=False)
        return new - w

    def _wait(self) -> None:
        if self.rig.kind == "cuda":
            torch.cuda.synchronize()


@final
class _Readers:
    """As much of a backbone as a closed-form method asks for: projections, and texts that are encoded already."""

    name, family = "sd1x-readers", "unet-epsilon"

    def __init__(self, blocks: Sequence[int], kind: str, prompts: Sequence[str]) -> None:
        generator = torch.Generator().manual_seed(0)
        shared = 2 * torch.randn(WIDTH, generator=generator)
        self.rows = {prompt: _row(prompt, shared).to(kind) for prompt in prompts}
        self._projections = []
        for i, width in enumerate(blocks):
            for role in ("key", "value"):
                weight = torch.randn(width, WIDTH, generator=generator) / WIDTH**0.5
                self._projections.append(Projection(f"unet.{i}.{role}.weight", weight.to(kind), cast(Any, role)))

    def projections(self) -> list[Projection]:
        return self._projections

    def embed(self, prompts: Sequence[str]) -> Embedding:
        """One content token each, between the begin and the padding."""
        rows = torch.stack([self.rows[p] for p in prompts])
        tokens = torch.stack([rows, rows], dim=1)
        zeros = torch.zeros(len(prompts), dtype=torch.long, device=rows.device)
        return Embedding(tokens, None, torch.zeros(len(prompts), 2, dtype=torch.long, device=rows.device), zeros)


def _row(prompt: str, shared: Tensor) -> Tensor:
    return shared + torch.randn(WIDTH, generator=torch.Generator().manual_seed(zlib.crc32(prompt.encode())))
