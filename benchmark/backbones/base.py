"""What methods and the sampler need of a model, the same for a U-Net with epsilon and a transformer with flow."""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from benchmark.backbones import journal as journals
from benchmark.backbones.kernels import Launch
from benchmark.interface import Family


@dataclass(frozen=True)
class Embedding:
    """Encoded prompts: what the denoiser reads."""

    tokens: Tensor
    """`(batch, length, dim)`: hidden states of all positions, padding included."""
    pooled: Tensor | None
    """`(batch, dim')`: the pooled text vector, where the family has one."""
    ids: Tensor
    """`(batch, length)`: the token ids behind `tokens`."""
    last: Tensor
    """`(batch,)`: index of the last content token; the BOS index (0) for an empty prompt where there is a BOS,
    else the first padding position."""

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __getitem__(self, rows: slice | Tensor | Sequence[int]) -> Embedding:
        """The given rows, in that order; repeats are allowed."""
        index = rows if isinstance(rows, slice | Tensor) else torch.tensor(rows)
        pooled = None if self.pooled is None else self.pooled[index]
        return Embedding(self.tokens[index], pooled, self.ids[index], self.last[index])

    def expand(self, batch: int) -> Embedding:
        """One prompt repeated `batch` times."""
        return self[torch.zeros(batch, dtype=torch.long)]


def concatenate(parts: Sequence[Embedding]) -> Embedding:
    """Stack embeddings along the batch."""
    pooled = None if parts[0].pooled is None else torch.cat([p.pooled for p in parts if p.pooled is not None])
    return Embedding(
        torch.cat([p.tokens for p in parts]),
        pooled,
        torch.cat([p.ids for p in parts]),
        torch.cat([p.last for p in parts]),
    )


@dataclass(frozen=True)
class Projection:
    """A linear map that reads text: where closed-form methods edit."""

    name: str
    """Name of its weight in `Backbone.tensors()`."""
    weight: Tensor
    """`(out, dim)`, live: it shows the model's present state."""
    role: Literal["key", "value", "context", "pooled"]
    """Cross-attention key or value; or the single projection of all tokens, or of the pooled vector (flow)."""


Part = Literal[
    "cross-attention", "self-attention", "feed-forward", "residual", "resample", "projection", "time", "input", "output"
]


@dataclass(frozen=True)
class Layer:
    """One layer of the denoiser: what training methods choose among."""

    name: str
    """Dotted name in `Backbone.tensors()` without the parameter's own name."""
    kind: Literal["linear", "conv", "norm", "other"]
    part: Part
    """Its place: `projection` is a transformer's way in and out (proj_in, proj_out) and the time projections of
    residual blocks are `residual`; `time`, `input` and `output` are the model's own embeddings and end layers."""
    parameters: tuple[str, ...]
    """Names of its parameters in `Backbone.tensors()`."""


Change = Callable[[Tensor, Tensor], Tensor]
"""What an attached module makes of a projection: `(input, output) -> new output`, `(batch, length, …)` each."""


class Backbone(abc.ABC):
    """A loaded model in eval mode, without gradients. All latents, times and predictions are the model's own."""

    name: str
    """The model's name in records (`testbed`, `sd14`, …)."""
    family: Family
    device: torch.device
    dtype: torch.dtype
    latent_shape: tuple[int, ...]
    """Shape of one image's latent as `predict` takes it: `(channels, h, w)`, or packed `(tokens, channels)`."""
    image_size: tuple[int, int]
    """`(height, width)` in pixels of a decoded image."""
    journal: journals.Journal = journals.NONE
    """Where a method may say what it has done, so that a kill does not cost all of it; see there."""

    # --- text -------------------------------------------------------------------------------------------------
    @abc.abstractmethod
    def embed(self, prompts: Sequence[str]) -> Embedding:
        """Encode prompts, one row each."""

    @abc.abstractmethod
    def span(self, prompt: str, phrase: str) -> range:
        """Token positions of `phrase` (its first occurrence) within `prompt`; ValueError if it is not in it."""

    # --- denoiser ---------------------------------------------------------------------------------------------
    @abc.abstractmethod
    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Initial latents `(batch, *latent_shape)`, one CPU generator per seed: independent of the batch."""

    @abc.abstractmethod
    def timesteps(self, steps: int) -> Tensor:
        """The `(steps,)` times that `predict` takes, from noise to image."""

    @abc.abstractmethod
    def predict(self, x: Tensor, t: Tensor, text: Embedding) -> Tensor:
        """Noise or velocity at `t` (scalar or `(batch,)`), without guidance; differentiable if gradients are on."""

    @abc.abstractmethod
    def clean(self, x: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        """The clean latent that `prediction` implies: (x − σε)/α for epsilon, x − tv for flow."""

    @abc.abstractmethod
    def noisy(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The forward process at time `t`: αx₀ + σε, or (1 − t)x₀ + tε."""

    @abc.abstractmethod
    def step(self, x: Tensor, index: int, prediction: Tensor, steps: int) -> Tensor:
        """One deterministic sampler step from `timesteps(steps)[index]` to the next (DDIM eta 0; Euler for flow)."""

    # --- images -----------------------------------------------------------------------------------------------
    @abc.abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Images `(batch, 3, height, width)` in [0, 1], clipped."""

    @abc.abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Latents (mean of the posterior) of images `(batch, 3, height, width)` in [0, 1]."""

    # --- weights ----------------------------------------------------------------------------------------------
    @abc.abstractmethod
    def tensors(self) -> Mapping[str, Tensor]:
        """All parameters and buffers of the denoiser and the text encoders, live, by `component.name`."""

    @abc.abstractmethod
    def projections(self) -> list[Projection]:
        """The linear maps that read text, in a fixed order."""

    @abc.abstractmethod
    def layers(self) -> list[Layer]:
        """The denoiser's parameter-bearing layers, in a fixed order."""

    @abc.abstractmethod
    def student(self, names: Collection[str] | None = None) -> Backbone:
        """A view with values of its own for the named denoiser tensors (None: all), which shares everything else.

        Its `tensors()` shows its own values as leaves; nothing that is done to them reaches this backbone.
        """

    @abc.abstractmethod
    def substituted(self, tensors: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """While the block runs, the denoiser computes with `tensors` (names of `tensors()`) in place of its own.

        Gradients flow to what is given, so weights are trained without a second copy of the model: pass leaves, or
        a weight plus its low-rank change. The model's own tensors are never written. Blocks nest; the innermost counts.
        Backward may run after the block. `BadInput` for a name that the denoiser does not have, or another shape.
        """

    @abc.abstractmethod
    def attached(self, changes: Mapping[str, Change]) -> AbstractContextManager[None]:
        """While the block runs, the output of each named projection (see `projections`) goes through its change."""

    @abc.abstractmethod
    def remembering(self) -> AbstractContextManager[None]:
        """While the block runs, projections that read the very same text tensor again give what they gave before.

        Exact, bit for bit, whatever edit is on and whatever is attached: see `benchmark.backbones._shared.remembering`.
        """

    @abc.abstractmethod
    def attention_layers(self) -> list[str]:
        """Dotted names of the attentions that read text, in module order: what `attention_maps` can record."""

    @abc.abstractmethod
    def attention_maps(
        self, layers: Collection[str] | None = None, *, text_rows: bool = False
    ) -> AbstractContextManager[list[Tensor]]:
        """While the block runs, every prediction appends its attention to the text, softmax(QKᵀ/√d), to the list.

        One float32 map `(batch, heads, pixels, length)` a layer, in module order; differentiable. `layers` are some of
        `attention_layers`; None is all. Rows are the image's queries. Where image and text attend jointly they sum to
        less than 1, for the image's own columns are left out; `text_rows` puts the text's queries before them,
        `(batch, heads, length + pixels, length)`. `BadInput` for a layer that is not there, or for `text_rows` where
        text does not ask.
        """

    @abc.abstractmethod
    def at_guidance(self, guidance: float) -> Backbone:
        """A view whose guidance embedding is given this number, sharing everything else; itself where there is none.

        Not classifier-free guidance (see `guided`), of which it is a distilled form: one prediction a step.
        """

    @abc.abstractmethod
    def of_size(self, size: tuple[int, int]) -> Backbone:
        """A view that makes images of another (height, width) in pixels and shares everything else, weights included.

        `BadInput` for a size that the model cannot make.
        """

    @abc.abstractmethod
    def use(self, launch: Launch) -> None:
        """Launch the denoiser's kernels like this from now on, in all views too: see `benchmark.backbones.kernels`.

        `BadInput` for anything but `eager` on a CPU.
        """

    @property
    @abc.abstractmethod
    def refused(self) -> str | None:
        """Why recording a graph has failed, if it has: kernels are then launched one by one, to the same bits."""

    @abc.abstractmethod
    def counting(self) -> AbstractContextManager[Counts]:
        """Count denoiser and text-encoder work of this backbone and its students while the block runs."""

    # --- the same for every family ----------------------------------------------------------------------------
    @final
    def guided(self, x: Tensor, t: Tensor, text: Embedding, empty: Embedding, guidance: float) -> Tensor:
        """Classifier-free guidance, u + g(c − u), in one batched call. Ho and Salimans 2022, eq. 6 with g = w + 1."""
        return self._guided(x, t, _read(text, empty, guidance), guidance)

    @final
    def _guided(self, x: Tensor, t: Tensor, read: Embedding, guidance: float) -> Tensor:
        if guidance == 1:
            return self.predict(x, t, read)
        times = t if t.ndim == 0 else torch.cat([t, t])
        u, c = self.predict(torch.cat([x, x]), times, read).chunk(2)
        return u + guidance * (c - u)

    @final
    def trajectory(
        self,
        x: Tensor,
        text: Embedding,
        empty: Embedding,
        *,
        steps: int,
        guidance: float,
        start: int = 0,
        stop: int | None = None,
    ) -> Tensor:
        """Walk from step `start` to just before step `stop` (default: to the end); `stop == start` returns `x`.

        What projections make of the text is computed once for all steps.
        """
        last = x
        with self.remembering():
            for _, latents in self.walk(x, text, empty, steps=steps, guidance=guidance, start=start, stop=stop):
                last = latents
        return last

    @final
    def walk(
        self,
        x: Tensor,
        text: Embedding,
        empty: Embedding,
        *,
        steps: int,
        guidance: float,
        start: int = 0,
        stop: int | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield `(index + 1, x)` after every sampler step: the latents of one trajectory as they come."""
        times, read = self.timesteps(steps), _read(text, empty, guidance)
        for i in range(start, steps if stop is None else stop):
            with torch.no_grad():
                x = self.step(x, i, self._guided(x, times[i], read, guidance), steps)
            yield i + 1, x


def _read(text: Embedding, empty: Embedding, guidance: float) -> Embedding:
    """What the denoiser reads in one guided step: unconditional rows first."""
    return text if guidance == 1 else concatenate([empty, text])


@dataclass
class Counts:
    """Work done on a backbone, in samples."""

    denoiser_forwards: int = 0
    denoiser_backwards: int = 0
    text_encodes: int = 0
    decodes: int = 0
