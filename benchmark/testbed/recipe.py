"""The recipe's configuration, and the one training loop that every stage shares."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from benchmark import atomic, device

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Recipe:
    """Sizes, seeds and lengths of all stages, as `recipe.yaml` has them."""

    values: dict[str, Any]

    @classmethod
    def load(cls, path: Path | None = None) -> Recipe:
        return cls(yaml.safe_load((path or HERE / "recipe.yaml").read_text()))

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def shortened(self, factor: float) -> Recipe:
        """The same recipe with every stage `factor` as long, for tests of the recipe itself."""

        def short(value: Any) -> Any:
            if not isinstance(value, dict):
                return value
            return {k: max(2, round(v * factor)) if k == "steps" else short(v) for k, v in value.items()}

        renders = {k: max(256, round(v * factor)) for k, v in self["renders"].items()}
        return Recipe({**short(self.values), "renders": renders, "name": f"{self['name']}-short"})


def work_device() -> torch.device:
    """Where stages train: the GPU that `device.kind` shows, else the CPU. Random numbers come from the CPU always."""
    return torch.device(device.kind())


def native_bfloat16(where: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware; elsewhere it is emulated and many times slower."""
    if where.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.backends.cpu.get_cpu_capability().startswith("AVX512")) and "avx512_bf16" in _cpu_flags()


def _cpu_flags() -> str:
    info = Path("/proc/cpuinfo")
    return info.read_text() if info.exists() else ""


def step_generator(seed: int, stage: str, step: int) -> torch.Generator:
    """Randomness of one training step, on its own: a resumed run draws what an uninterrupted one draws."""
    mixed = torch.tensor([hash_int(f"{seed}|{stage}|{step}")])
    return torch.Generator().manual_seed(int(mixed))


def hash_int(text: str) -> int:
    """A 63-bit integer from a text, the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rate_at(step: int, steps: int, rate: float, warmup: int, decay: float) -> float:
    """Linear warm-up, constant, then linear decay to a hundredth over the last `decay` share of the steps."""
    if step < warmup:
        return rate * (step + 1) / warmup
    left = (steps - step) / (decay * steps)
    return rate * max(0.01, min(1.0, left))


@dataclass
class Stage:
    """A resumable training run: `modules`, their optimizer and averages, checkpointed under `folder`."""

    name: str
    folder: Path
    modules: nn.Module
    optimizer: torch.optim.Optimizer
    average: nn.Module | None = None
    """A copy of `modules` that follows them slowly."""
    decay: float = 0.999
    every: float = 120.0
    """Seconds between checkpoints."""

    def run(
        self, steps: int, loss_at: Callable[[int], tuple[Tensor, dict[str, float]]], schedule: Callable[[int], float]
    ) -> None:
        """Minimise `loss_at(step)` for steps not done yet; returns at once when all are done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        step, saved, began = self._resume(), time.monotonic(), time.monotonic()
        first = step
        while step < steps:
            for group in self.optimizer.param_groups:
                group["lr"] = schedule(step)
            loss, shown = loss_at(step)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
            self.optimizer.step()
            step += 1
            self._follow(step)
            if step % 50 == 0 or step == steps:
                self._log(step, steps, float(loss.detach()), shown, (time.monotonic() - began) / (step - first))
            if time.monotonic() - saved > self.every or step == steps:
                self._save(step)
                saved = time.monotonic()

    def _follow(self, step: int) -> None:
        """Exponential moving average, with a short memory at the start (decay (1 + n)/(10 + n) up to the limit)."""
        if self.average is None:
            return
        decay = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for slow, fast in zip(self.average.parameters(), self.modules.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
            for kept, new in zip(self.average.buffers(), self.modules.buffers(), strict=True):
                kept.copy_(new)

    def _log(self, step: int, steps: int, loss: float, shown: dict[str, float], seconds: float) -> None:
        row = {"step": step, "loss": round(loss, 5), **{k: round(v, 5) for k, v in shown.items()}}
        with (self.folder / f"{self.name}.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")
        if step % 200 == 0 or step == steps:
            print(f"{self.name} {step}/{steps} {row} {seconds * 1000:.0f} ms/step", flush=True)

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.name}.ckpt"

    def _save(self, step: int) -> None:
        state = {"step": step, "modules": self.modules.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.average is not None:
            state["average"] = self.average.state_dict()
        with atomic.file(self._path) as temporary:
            torch.save(state, temporary)

    def _resume(self) -> int:
        if not self._path.exists():
            return 0
        state = torch.load(self._path, weights_only=True, map_location="cpu")  # copied to the modules' own device
        self.modules.load_state_dict(state["modules"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        print(f"{self.name}: resumed at step {state['step']}", flush=True)
        return int(state["step"])
