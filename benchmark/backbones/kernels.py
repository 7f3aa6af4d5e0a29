"""How a denoiser's kernels are launched: one by one, as a replayed CUDA graph, or compiled block by block.

A graph replays the kernels that were launched while it was recorded, so it gives the same bits as launching them one by
one; compiled blocks round otherwise. Graphs read weights where they lie: an edit that is copied into them holds.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from benchmark.errors import BadInput

Launch = Literal["eager", "graph", "compile"]
Run = Callable[..., Tensor]
WARM_UP = 3
"""Calls before a recording: libraries choose kernels and take their work space in the first ones."""


@final
class Launcher:
    """How one denoiser is launched; a backbone, its students and its views of other sizes share it."""

    def __init__(self) -> None:
        self.launch: Launch = "eager"
        self.refused: str | None = None
        """Why graphs were given up, once recording one has failed."""
        self._held = 0
        self._recorded: _Recorded | None = None

    def use(self, launch: Launch, denoiser: nn.Module, device: torch.device) -> None:
        """Launch like this from now on. BadInput on a CPU, or where compiled blocks would have to go back."""
        if launch != "eager" and device.type != "cuda":
            raise BadInput(f"expected a GPU for {launch}, got {device}; a CPU launches its kernels one by one")
        if self.launch == "compile" and launch != "compile":
            raise BadInput("compiled blocks stay compiled: load the model anew")
        if launch == "compile" and self.launch != "compile":
            untyped: Any = denoiser
            untyped.compile_repeated_blocks(dynamic=False)
        if launch != self.launch:
            self.launch, self._recorded = launch, None

    @property
    def remembers(self) -> bool:
        """Whether text projections may be kept over steps: a recording or a compiled block computes its own."""
        return self.launch == "eager" or (self.launch == "graph" and not self._replays)

    @property
    def _replays(self) -> bool:
        return self.launch == "graph" and not self._held and self.refused is None

    @contextmanager
    def held(self) -> Iterator[None]:
        """While the block runs, nothing is recorded, replayed or compiled: Python code takes part in the forward."""
        self._held += 1
        try:
            # compiled blocks do not look for hooks that came after them
            with _uncompiled() if self.launch == "compile" else nullcontext():
                yield
        finally:
            self._held -= 1

    def __call__(self, run: Run, *inputs: Tensor, place: Hashable = None) -> Tensor:
        """`run(*inputs)`, replayed where graphs are on and nothing stands against it.

        `place` is what `run` depends on besides its inputs: another one is another recording.
        """
        if not self._replays or torch.is_grad_enabled():
            return run(*inputs)
        shape = (place, *((tuple(i.shape), i.dtype) for i in inputs))
        if self._recorded is None or self._recorded.shape != shape:
            self._recorded = None  # the old one's memory is given back before the new one takes its own
            try:
                self._recorded = _Recorded(run, inputs, shape)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self.refused = str(error).strip().split("\n")[0]
                return run(*inputs)
        return self._recorded(inputs)


def _uncompiled() -> AbstractContextManager[Any]:
    untyped: Any = torch.compiler
    stance: AbstractContextManager[Any] = untyped.set_stance("force_eager")
    return stance


class _Recorded:
    """One recording: inputs are copied to where it reads them, its output is copied from where it leaves it."""

    def __init__(self, run: Run, inputs: Sequence[Tensor], shape: Hashable) -> None:
        self.shape = shape
        self._inputs = [i.clone() for i in inputs]
        untyped: Any = torch.cuda
        beside, here = untyped.Stream(), untyped.current_stream()
        beside.wait_stream(here)
        with untyped.stream(beside):
            for _ in range(WARM_UP):
                run(*self._inputs)
        here.wait_stream(beside)
        self._graph = untyped.CUDAGraph()
        # judges may be at work in another thread: their calls are none of this recording's business
        with untyped.graph(self._graph, capture_error_mode="thread_local"):
            self._output = run(*self._inputs)

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        for there, given in zip(self._inputs, inputs, strict=True):
            there.copy_(given)
        self._graph.replay()
        return self._output.clone()  # the next replay writes over it
