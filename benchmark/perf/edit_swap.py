"""From one edit on the model to the next: values copied in place against the pipeline loaded anew.

The peer's way: every edited model is a pipeline of its own, loaded with `from_pretrained` and given the edited
tensors with `load_state_dict` before it samples, so going from one edit to the next loads all parts of the model
again. MACE (commit 057e7a6) saves and reloads the whole pipeline per edit; ESD's (25613d2) and UCE's (28c81ed)
evaluation scripts build a pipeline and load the edited weights into it. Ours: `edits.Mount` on the model that is
loaded already. On both sides the edits lie in memory, checked where ours checks them; the time ends where the first
step could begin. `whole_cell` in the checks is all that a cell's edit costs in a run: its tensors looked up and
checked, put on, taken off, and compared to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from benchmark import edits
from benchmark.interface import Edit
from benchmark.perf.bench import Bench, Did, Target, Trial, rounded
from benchmark.perf.clock import median
from benchmark.perf.rig import Rig

SWAPS = 200  # in one turn: a single one is too short to time
COMPONENT = "unet."


@final
class EditSwap(Bench):
    """Milliseconds from edit to edit."""

    name = "edit_swap"
    title = "go from edit A to edit B"
    unit = "ms"
    peer_way = (
        "a new from_pretrained and load_state_dict for every edit (MACE 057e7a6, ESD 25613d2 evalscripts, UCE 28c81ed)"
    )
    targets = {
        "cpu": Target("≥ 500×", 500.0),
        "cuda": Target("≥ 100×, under 20 ms", 100.0, lambda entry: entry["ours"] < 20),
    }

    @contextmanager
    def ready(self, rig: Rig, folder: Path) -> Iterator[Trial]:
        yield _Trial(rig, folder)


class _Trial(Trial):
    def __init__(self, rig: Rig, folder: Path) -> None:
        self.rig, self.folder = rig, folder / "model"
        self.backbone = rig.backbone()
        self.edits = [_scaled(self.backbone, factor) for factor in (0.9, 1.1)]
        self.mount = edits.Mount(self.backbone)
        self.ready = [self.mount.ready(edit) for edit in self.edits]
        _pipeline(rig.parts()).save_pretrained(self.folder)

    def ours(self) -> Did:
        self.mount.put(self.ready[0])
        _wait(self.rig)
        started = time.perf_counter()
        for turn in range(SWAPS):
            self.mount.put(self.ready[(turn + 1) % 2])
        _wait(self.rig)
        took = (time.perf_counter() - started) / SWAPS
        self.mount.put({})
        return Did({"model_loads": 0, "tensors_written": len(self.ready[0])}, seconds=took)

    def peer(self) -> Did:
        import diffusers

        untyped: Any = diffusers
        pipe = untyped.StableDiffusionPipeline.from_pretrained(
            self.folder, local_files_only=True, dtype=getattr(torch, self.rig.dtype), safety_checker=None
        )
        values = {name.removeprefix(COMPONENT): value for name, value in self.edits[1].weights.items()}
        pipe.unet.load_state_dict(values, strict=False)
        pipe.to(self.rig.kind)
        _wait(self.rig)
        return Did({"model_loads": 1, "tensors_written": len(values)})

    def settings(self) -> dict[str, Any]:
        changed = self.edits[0].weights
        megabytes = sum(t.numel() * t.element_size() for t in changed.values()) / 1e6
        return {"model": self.rig.model, "tensors": len(changed), "megabytes": rounded(megabytes)}

    def checks(self) -> dict[str, Any]:
        """What a cell's edit costs in a run, and whether the model is as it was."""
        whole = []
        for turn in range(20):
            started = time.perf_counter()
            with edits.apply(self.backbone, self.edits[turn % 2]):
                pass
            _wait(self.rig)
            whole.append((time.perf_counter() - started) * 1e3)
        return {"whole_cell_ms": rounded(median(whole)), "tensors_not_restored": len(self.mount.strange())}


def _scaled(backbone: Any, factor: float) -> Edit:
    """An edit of all keys and values of cross-attention: what UCE and MACE change."""
    weights: dict[str, Tensor] = {p.name: p.weight.detach() * factor for p in backbone.projections()}
    return Edit(weights=weights)


def _pipeline(parts: dict[str, Any]) -> Any:
    import diffusers

    untyped: Any = diffusers
    return untyped.StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def _wait(rig: Rig) -> None:
    if rig.kind == "cuda":
        torch.cuda.synchronize()
