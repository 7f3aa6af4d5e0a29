"""FLUX.1's family: a transformer that predicts velocity and reads T5 tokens and one pooled CLIP vector."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, final, get_args

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from benchmark.backbones import _shared, placement
from benchmark.backbones.base import Backbone, Change, Counts, Embedding, Layer, Part, Projection
from benchmark.backbones.kernels import Launch, Launcher
from benchmark.errors import BadInput, did_you_mean
from benchmark.interface import Family
from benchmark.speed import Offload

_TIME_SCALE = 1000  # times are σ·1000, as the pipeline hands them on
_HOME = torch.device("cpu")  # where what is off the device lies


@final
class FluxBackbone(Backbone):
    """`FluxTransformer2DModel` + `CLIPTextModel` (pooled) + `T5EncoderModel` (tokens) + `AutoencoderKL`.

    Latents are packed: 2×2 neighbours of the autoencoder's latent are one token. `scheduler` is the configuration
    of the model's `FlowMatchEulerDiscreteScheduler`. `size` is the image's height and width in pixels, by default
    the pipeline's.

    Two guidances exist. `Backbone.guided` is true classifier-free guidance, two predictions a step. Models with a
    guidance embedding (FLUX.1-dev) also take a number as input, `guidance`, in every prediction; other models
    ignore it. Sampling FLUX.1-dev as published is `guidance=3.5` here and a classifier-free guidance of 1.

    `offload` and `checkpointing` make a large model fit, and change no bit (see `benchmark.backbones.placement`).
    Offload `text`: the text encoders are on the device only while they encode. `blocks`: the transformer's blocks too
    come one at a time; such a model makes images and trains nothing. Checkpointing: blocks keep no activations for the
    way back, and compute them again, except while attention is recorded.
    """

    family: Family = "transformer-flow"
    guidance: float
    """What the guidance embedding is given, where there is one."""

    def __init__(
        self,
        name: str,
        *,
        transformer: Any,
        text_encoder: Any,
        tokenizer: Any,
        text_encoder_2: Any,
        tokenizer_2: Any,
        vae: Any,
        scheduler: Mapping[str, Any],
        device: torch.device | str = "cpu",
        size: tuple[int, int] | None = None,
        guidance: float = 3.5,
        offload: Offload = "none",
        checkpointing: bool = False,
    ) -> None:
        if offload not in get_args(Offload):
            raise BadInput(did_you_mean(offload, get_args(Offload), "offload"))
        self.name = name
        self.device = torch.device(device)
        self.dtype = transformer.dtype
        self.guidance = guidance
        self.offload: Offload = offload
        self._text_home = self.device if offload == "none" else _HOME
        self._transformer = self._settled(transformer)
        if checkpointing:
            self._transformer.enable_gradient_checkpointing(placement.recomputed)
        self._text_encoder = _shared.settle(text_encoder, self._text_home)
        self._text_encoder_2 = _shared.settle(text_encoder_2, self._text_home)
        self._vae = _shared.settle(vae, self.device)
        self._tokenizer, self._tokenizer_2 = tokenizer, tokenizer_2
        self._pooled_length: int = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
        # the released models were trained on 512 (dev) and 256 (schnell) T5 tokens
        self._length: int = min(tokenizer_2.model_max_length, 512 if transformer.config.guidance_embeds else 256)
        self._scheduler = _euler(scheduler)
        self._known: dict[int, Tensor] = {}
        self._shape(size)
        self._meter = _shared.Meter()
        self._substitutes = _shared.Substitutes("transformer")
        self._launcher = Launcher()

    def _settled(self, transformer: Any) -> Any:
        """On the device, or only what is not in a block where these are streamed."""
        if self.offload != "blocks":
            return _shared.settle(transformer, self.device)
        settled = _shared.settle(transformer, _HOME)
        for name, part in settled.named_children():
            if name not in _BLOCKS:
                part.to(self.device)
        placement.Streamed([*settled.transformer_blocks, *settled.single_transformer_blocks], self.device)
        return settled

    def _shape(self, size: tuple[int, int] | None) -> None:
        config = self._vae.config
        if self._transformer.config.in_channels != 4 * config.latent_channels:
            raise BadInput(
                f"expected a transformer over {4 * config.latent_channels} channels (2x2 latents of "
                f"{config.latent_channels}), got {self._transformer.config.in_channels}"
            )
        factor = 2 ** (len(config.block_out_channels) - 1)
        height, width = size or (128 * factor, 128 * factor)
        if height % (2 * factor) or width % (2 * factor) or min(height, width) < 2 * factor:
            raise BadInput(f"expected image sides that are multiples of {2 * factor} pixels, got {height}x{width}")
        self.image_size = (height, width)
        self._grid = (height // factor // 2, width // factor // 2)  # tokens down and across
        self.latent_shape = (self._grid[0] * self._grid[1], 4 * config.latent_channels)

    # --- text -------------------------------------------------------------------------------------------------

    def embed(self, prompts: Sequence[str]) -> Embedding:
        """T5's last hidden states, and CLIP's pooled vector; `ids` and `last` are T5's.

        Padding is not masked, as in the pipeline. T5 has no BOS: the last content token of an empty prompt is the first
        padding position.
        """
        ids, mask = (part.to(self.device) for part in _shared.tokenize(self._tokenizer_2, prompts, self._length))
        clip_ids, _ = _shared.tokenize(self._tokenizer, prompts, self._pooled_length)
        self._meter.text(len(ids))
        # one after the other, so that the larger is never there beside the smaller
        with placement.visiting([self._text_encoder_2], self.device, self._text_home):
            states = self._text_encoder_2(ids).last_hidden_state.to(self.dtype)
        with placement.visiting([self._text_encoder], self.device, self._text_home):
            pooled = self._text_encoder(clip_ids.to(self.device)).pooler_output.to(self.dtype)
        used = mask.sum(1)  # content and one EOS
        return Embedding(states, pooled, ids, torch.where(used > 1, used - 2, used))

    def span(self, prompt: str, phrase: str) -> range:
        """See the base; positions of T5's tokens, whole words, any case."""
        return _shared.span(self._tokenizer_2, prompt, phrase, self._length)

    # --- denoiser ---------------------------------------------------------------------------------------------

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """See the base; drawn unpacked in float32 on the CPU, then packed and moved."""
        channels = self._vae.config.latent_channels
        shape = (channels, 2 * self._grid[0], 2 * self._grid[1])
        return self._pack(_shared.draw(seeds, shape)).to(self.device, self.dtype)

    def timesteps(self, steps: int) -> Tensor:
        """σ·1000 of the shifted schedule, float32, from noise (1000) to image."""
        return self._sigmas(steps)[:-1] * _TIME_SCALE

    def _sigmas(self, steps: int) -> Tensor:
        """The pipeline's `(steps + 1,)` noise levels, ending at 0; the shift depends on the number of image tokens.

        On the device, made once for each number of steps: a step then waits for nothing.
        """
        if steps not in self._known:
            self._known[steps] = self._shifted(steps)
        return self._known[steps]

    def _shifted(self, steps: int) -> Tensor:
        if steps < 1:
            raise BadInput(f"expected at least 1 sampling step, got {steps}")
        c = self._scheduler.config
        slope = (c.max_shift - c.base_shift) / (c.max_image_seq_len - c.base_image_seq_len)
        mu = self.latent_shape[0] * slope + c.base_shift - slope * c.base_image_seq_len
        self._scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
        sigmas: Tensor = self._scheduler.sigmas.to(self.device)
        return sigmas

    def predict(self, x: Tensor, t: Tensor, text: Embedding) -> Tensor:
        """See the base; the velocity, noise − image."""
        guided = self._transformer.config.guidance_embeds
        scale = torch.full((len(x),), self.guidance, device=self.device) if guided else None
        pooled = text.pooled
        assert pooled is not None  # this family's `embed` makes one
        given = (
            x,
            text.tokens,
            pooled,
            t.expand(len(x)).to(x.dtype) / _TIME_SCALE,
            *([] if scale is None else [scale]),
        )
        return self._meter.denoiser(self._launcher(self._denoised, *given, place=self._grid))

    def _denoised(self, x: Tensor, tokens: Tensor, pooled: Tensor, t: Tensor, scale: Tensor | None = None) -> Tensor:
        out: Tensor = self._substitutes.call(
            self._transformer,
            hidden_states=x,
            encoder_hidden_states=tokens,
            pooled_projections=pooled,
            timestep=t,
            guidance=scale,
            img_ids=self._image_positions(x.dtype),
            txt_ids=torch.zeros(tokens.shape[1], 3, device=self.device, dtype=x.dtype),
            return_dict=False,
        )[0]
        return out

    def _image_positions(self, dtype: torch.dtype) -> Tensor:
        """`(tokens, 3)`: zero, row, column, for the rotary embedding."""
        rows, columns = (torch.arange(n, device=self.device, dtype=dtype) for n in self._grid)
        row, column = torch.meshgrid(rows, columns, indexing="ij")
        return torch.stack([torch.zeros_like(row), row, column], dim=-1).flatten(0, 1)

    def clean(self, x: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        """x₀ = x − tv, with t in [0, 1]."""
        return (x - self._time(t, x) * prediction).to(x.dtype)

    def noisy(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """(1 − t)x₀ + tε, with t in [0, 1]; Lipman et al. 2023, eq. 22 with its time reversed and σ_min = 0."""
        s = self._time(t, clean)
        return ((1 - s) * clean + s * noise).to(clean.dtype)

    def step(self, x: Tensor, index: int, prediction: Tensor, steps: int) -> Tensor:
        """Euler: x + (t' − t)v."""
        sigmas = self._sigmas(steps)
        # of one dimension, so that half-precision latents move in float32, as diffusers does it
        dt = _shared.per_sample(sigmas[index + 1] - sigmas[index], x)
        return (x + dt * prediction).to(x.dtype)

    def _time(self, t: Tensor, x: Tensor) -> Tensor:
        return _shared.per_sample(t.float() / _TIME_SCALE, x)

    # --- images -----------------------------------------------------------------------------------------------

    def decode(self, latents: Tensor) -> Tensor:
        """See the base."""
        c = self._vae.config
        z = self._unpack(latents) / c.scaling_factor + (c.shift_factor or 0.0)
        self._meter.decoded(len(latents))
        images: Tensor = self._vae.decode(z, return_dict=False)[0]
        return (images / 2 + 0.5).clamp(0, 1)

    def encode(self, images: Tensor) -> Tensor:
        """See the base; packed."""
        c = self._vae.config
        posterior = self._vae.encode(images.to(self.device, self.dtype) * 2 - 1).latent_dist
        return self._pack((posterior.mean - (c.shift_factor or 0.0)) * c.scaling_factor)

    def _pack(self, z: Tensor) -> Tensor:
        """`b c (h 2) (w 2) -> b (h w) (c 2 2)`"""
        h, w = self._grid
        return z.reshape(len(z), -1, h, 2, w, 2).permute(0, 2, 4, 1, 3, 5).reshape(len(z), h * w, -1)

    def _unpack(self, x: Tensor) -> Tensor:
        """`b (h w) (c 2 2) -> b c (h 2) (w 2)`"""
        h, w = self._grid
        return x.reshape(len(x), h, w, -1, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(len(x), -1, 2 * h, 2 * w)

    # --- weights ----------------------------------------------------------------------------------------------

    def tensors(self) -> Mapping[str, Tensor]:
        """See the base; components `transformer`, `text_encoder` (CLIP) and `text_encoder_2` (T5)."""
        components = {
            "transformer": self._transformer,
            "text_encoder": self._text_encoder,
            "text_encoder_2": self._text_encoder_2,
        }
        return self._substitutes.over(_shared.tensors(components))

    def projections(self) -> list[Projection]:
        """The two linear maps through which all text enters; both have a bias, which is not part of the weight."""
        context, pooled = "context_embedder.weight", "time_text_embed.text_embedder.linear_1.weight"
        live = self.tensors()
        return [
            Projection(f"transformer.{context}", live[f"transformer.{context}"], "context"),
            Projection(f"transformer.{pooled}", live[f"transformer.{pooled}"], "pooled"),
        ]

    def layers(self) -> list[Layer]:
        """See the base. There is no cross-attention proper; the parts stand for what comes nearest:

        - `cross-attention`: the text side of a double-stream block's attention (add_q/k/v_proj, to_add_out, norms);
        - `self-attention`: its image side, and the joint attention of single-stream blocks;
        - `feed-forward`: both sides' MLPs and the single-stream `proj_mlp`; `projection`: the single-stream `proj_out`;
        - `residual`: the modulations that time and pooled text give each block;
        - `input`: `x_embedder` and `context_embedder`; `time`: `time_text_embed`, pooled text included.
        """
        return _shared.layers("transformer", self._transformer, _part)

    def student(self, names: Collection[str] | None = None) -> FluxBackbone:
        """See the base."""
        self._check_trainable()
        twin = copy.copy(self)
        twin._substitutes = self._substitutes.own(self._transformer, names)
        twin._launcher = Launcher()  # a recording would read the weights of the model that it was made with
        return twin

    def of_size(self, size: tuple[int, int]) -> FluxBackbone:
        """See the base."""
        twin = copy.copy(self)
        twin._known = {}  # the shift depends on the size
        twin._shape(size)
        return twin

    def at_guidance(self, guidance: float) -> FluxBackbone:
        """See the base."""
        if not self._transformer.config.guidance_embeds or guidance == self.guidance:
            return self
        twin = copy.copy(self)
        twin.guidance = guidance
        return twin

    def use(self, launch: Launch) -> None:
        """See the base."""
        if launch != "eager" and self.offload == "blocks":
            raise BadInput(f"blocks that come to the device one at a time are launched one by one, got {launch}")
        self._launcher.use(launch, self._transformer, self.device)

    @property
    def refused(self) -> str | None:
        """See the base."""
        return self._launcher.refused

    @contextmanager
    def substituted(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """See the base."""
        self._check_trainable()
        with self._launcher.held(), self._substitutes.given(self._transformer, tensors):
            yield

    def _check_trainable(self) -> None:
        if self.offload == "blocks":
            raise BadInput(f"{self.name} has its blocks off the device: so it makes images, and trains nothing")

    @contextmanager
    def attached(self, changes: Mapping[str, Change]) -> Iterator[None]:
        """See the base; the two maps through which text enters. The pooled one's input is `(batch, dim)`."""
        with self._launcher.held(), _shared.attached(self._readers(), changes):
            yield

    def _readers(self) -> dict[str, Any]:
        """The modules behind `projections`, by the names of their weights."""
        return {
            "transformer.context_embedder.weight": self._transformer.context_embedder,
            "transformer.time_text_embed.text_embedder.linear_1.weight": (
                self._transformer.time_text_embed.text_embedder.linear_1
            ),
        }

    def remembering(self) -> AbstractContextManager[None]:
        """See the base; keys and values proper depend on the time here, and are not kept."""
        return _shared.remembering(self._readers().values()) if self._launcher.remembers else nullcontext()

    def attention_layers(self) -> list[str]:
        """See the base; the joint attentions, of double-stream blocks first, then of single-stream ones."""
        return list(self._attentions())

    def _attentions(self) -> dict[str, Any]:
        return {
            f"transformer.{kind}.{i}.attn": block.attn
            for kind in _BLOCKS
            for i, block in enumerate(getattr(self._transformer, kind))
        }

    @contextmanager
    def attention_maps(
        self, layers: Collection[str] | None = None, *, text_rows: bool = False
    ) -> Iterator[list[Tensor]]:
        """See the base; T5's positions are the columns, CLIP's vector takes no part.

        Activations are kept meanwhile, checkpointing or not: an attention that was computed again would be recorded
        again.
        """
        tokens, checkpointing = self.latent_shape[0], self._transformer.gradient_checkpointing

        def recorder(maps: list[Tensor]) -> _Recorder:
            return _Recorder(maps, pixels=tokens, text_rows=text_rows)

        self._transformer.gradient_checkpointing = False
        try:
            with self._launcher.held(), _shared.recording(self._attentions(), layers, recorder) as maps:
                yield maps
        finally:
            self._transformer.gradient_checkpointing = checkpointing

    def counting(self) -> AbstractContextManager[Counts]:
        """See the base."""
        return self._meter.counting()


_BLOCKS = ("transformer_blocks", "single_transformer_blocks")


class _Recorder:
    """Joint attention with its probabilities kept: what diffusers' own processor computes, without the fused kernel."""

    def __init__(self, maps: list[Tensor], *, pixels: int, text_rows: bool) -> None:
        self._maps, self._pixels, self._text_rows = maps, pixels, text_rows

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Of a double-stream block image and text apart, of a single-stream one both as one sequence, text first."""
        query, key, value = _joint(attn, hidden_states, encoder_hidden_states)
        if image_rotary_emb is not None:
            query, key = (apply_rotary_emb(part, image_rotary_emb, sequence_dim=1) for part in (query, key))
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        weights = (query.float() @ key.float().mT / attn.head_dim**0.5).softmax(-1)
        length = weights.shape[-1] - self._pixels
        self._maps.append(weights[:, :, 0 if self._text_rows else length :, :length])
        out: Tensor = (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)
        if encoder_hidden_states is None:
            return out
        text, image = out[:, :length], out[:, length:]
        return attn.to_out[1](attn.to_out[0](image)), attn.to_add_out(text)


def _joint(attn: Any, image: Tensor, text: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values `(batch, length + pixels, heads, width)`, queries and keys normalised."""

    def heads(linear: Any, states: Tensor) -> Tensor:
        split: Tensor = linear(states).unflatten(-1, (-1, attn.head_dim))
        return split

    parts = attn.norm_q(heads(attn.to_q, image)), attn.norm_k(heads(attn.to_k, image)), heads(attn.to_v, image)
    if text is None:
        return parts
    added = (
        attn.norm_added_q(heads(attn.add_q_proj, text)),
        attn.norm_added_k(heads(attn.add_k_proj, text)),
        heads(attn.add_v_proj, text),
    )
    query, key, value = (torch.cat([a, b], dim=1) for a, b in zip(added, parts, strict=True))
    return query, key, value


_UNSUPPORTED = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "stochastic_sampling",
    "use_flow_sigmas",
)


def _euler(config: Mapping[str, Any]) -> Any:
    config = _shared.plain(config)
    odd = [key for key in _UNSUPPORTED if config.get(key)]
    if odd or config.get("num_train_timesteps", _TIME_SCALE) != _TIME_SCALE:
        raise BadInput(f"expected a plain flow-match Euler schedule over {_TIME_SCALE} times, got {odd or config}")
    untyped: Any = FlowMatchEulerDiscreteScheduler
    return untyped.from_config(config)


_TEXT_SIDE = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "norm_added_q", "norm_added_k")

_PLACES: tuple[tuple[str, Part], ...] = (
    ("x_embedder", "input"),
    ("context_embedder", "input"),
    ("time_text_embed.", "time"),
    ("norm_out.", "output"),
    ("proj_out", "output"),
)


def _part(name: str) -> Part:
    for start, part in _PLACES:
        if name.startswith(start):
            return part
    inside = name.split(".")[2:]  # after transformer_blocks.N or single_transformer_blocks.N
    if inside[0] == "attn":
        return "cross-attention" if inside[1] in _TEXT_SIDE else "self-attention"
    if inside[0].startswith("norm"):
        return "residual"
    return "projection" if inside[0] == "proj_out" else "feed-forward"
