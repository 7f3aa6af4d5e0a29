"""Stable Diffusion's family: a U-Net that predicts noise and reads CLIP text through cross-attention."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, final

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from benchmark.backbones import _shared
from benchmark.backbones.base import Backbone, Change, Counts, Embedding, Layer, Part, Projection
from benchmark.backbones.kernels import Launch, Launcher
from benchmark.errors import BadInput
from benchmark.interface import Family


@final
class UNetBackbone(Backbone):
    """`UNet2DConditionModel` + `CLIPTextModel` + `CLIPTokenizer` + `AutoencoderKL`.

    `scheduler` is the configuration of the model's own scheduler, of any class; its noise schedule, spacing and
    offsets are read as diffusers' `DDIMScheduler.from_config` reads them. Latents are never clipped. A model with
    v-prediction (SD 2.1) answers in noise like the others. `size` is the image's height and width in pixels, by
    default the model's own.
    """

    family: Family = "unet-epsilon"

    def __init__(
        self,
        name: str,
        *,
        unet: Any,
        text_encoder: Any,
        tokenizer: Any,
        vae: Any,
        scheduler: Mapping[str, Any],
        device: torch.device | str = "cpu",
        size: tuple[int, int] | None = None,
    ) -> None:
        self.name = name
        self.device = torch.device(device)
        self.dtype = unet.dtype
        self._unet = _shared.settle(unet, self.device)
        self._text_encoder = _shared.settle(text_encoder, self.device)
        self._vae = _shared.settle(vae, self.device)
        self._tokenizer = tokenizer
        self._length: int = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
        self._scheduler = _ddim(scheduler)
        self._alphas_cumprod = self._scheduler.alphas_cumprod.to(self.device)
        self._schedules: dict[int, _Schedule] = {}
        _check_channels(unet.config, vae.config)
        self._shape(size)
        self._meter = _shared.Meter()
        self._substitutes = _shared.Substitutes("unet")
        self._launcher = Launcher()

    def _shape(self, size: tuple[int, int] | None) -> None:
        factor = 2 ** (len(self._vae.config.block_out_channels) - 1)
        native = self._unet.config.sample_size
        height, width = size or (native * factor, native * factor)
        if height % factor or width % factor or height < factor or width < factor:
            raise BadInput(f"expected image sides that are multiples of {factor} pixels, got {height}x{width}")
        self.image_size = (height, width)
        self.latent_shape = (self._unet.config.in_channels, height // factor, width // factor)

    # --- text -------------------------------------------------------------------------------------------------

    def embed(self, prompts: Sequence[str]) -> Embedding:
        """Last hidden states of all positions, after the final norm, as Stable Diffusion reads them."""
        ids, mask = (part.to(self.device) for part in _shared.tokenize(self._tokenizer, prompts, self._length))
        self._meter.text(len(ids))
        masked = getattr(self._text_encoder.config, "use_attention_mask", False)
        states = self._text_encoder(ids, attention_mask=mask if masked else None).last_hidden_state
        # the mask covers BOS, content and one EOS, so an empty prompt gives the BOS
        return Embedding(states.to(self.dtype), None, ids, mask.sum(1) - 2)

    def span(self, prompt: str, phrase: str) -> range:
        """See the base; whole words, any case."""
        return _shared.span(self._tokenizer, prompt, phrase, self._length)

    # --- denoiser ---------------------------------------------------------------------------------------------

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """See the base; drawn in float32 on the CPU, then moved."""
        return _shared.draw(seeds, self.latent_shape).to(self.device, self.dtype)

    def timesteps(self, steps: int) -> Tensor:
        """Integer times as `DDIMScheduler` spaces them, from noise to image."""
        return self._schedule(steps).times

    def _schedule(self, steps: int) -> _Schedule:
        """On the device, made once for each number of steps: a step then waits for nothing."""
        if steps not in self._schedules:
            most = self._scheduler.config.num_train_timesteps
            if not 1 <= steps <= most:
                raise BadInput(f"expected 1 to {most} sampling steps, got {steps}")
            self._scheduler.set_timesteps(steps)
            here: Tensor = self._scheduler.timesteps
            self._schedules[steps] = _Schedule(here, here.to(self.device), {})
        return self._schedules[steps]

    def _rates(self, index: int, steps: int) -> _Rates:
        """Of one step; the last one ends at the schedule's final alpha."""
        schedule = self._schedule(steps)
        if index not in schedule.rates:
            schedule.rates[index] = self._settled(schedule.here[index], steps)
        return schedule.rates[index]

    def _settled(self, t: Tensor, steps: int) -> _Rates:
        alphas = self._scheduler.alphas_cumprod
        before = t - self._scheduler.config.num_train_timesteps // steps
        end = self._scheduler.final_alpha_cumprod
        a, b = alphas[t], torch.where(before >= 0, alphas[before.clamp(min=0)], end)
        now, then = (v.reshape(-1, 1, 1, 1).to(self.device) for v in (a, b))
        return _Rates(now**0.5, (1 - now) ** 0.5, then**0.5, (1 - then) ** 0.5)

    def predict(self, x: Tensor, t: Tensor, text: Embedding) -> Tensor:
        """See the base; the noise, also for a model that was trained to predict v."""
        out = self._meter.denoiser(self._launcher(self._denoised, x, t, text.tokens))
        if self._scheduler.config.prediction_type == "epsilon":
            return out
        alpha, sigma = self._alpha_sigma(t, x)
        return (alpha * out + sigma * x).to(x.dtype)  # ε = αv + σx; Salimans and Ho 2022, appendix D

    def _denoised(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        out: Tensor = self._substitutes.call(self._unet, x, t, encoder_hidden_states=tokens, return_dict=False)[0]
        return out

    def clean(self, x: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        """x₀ = (x − σε)/α; Song et al. 2021, eq. 9."""
        return _clean(x, *self._alpha_sigma(t, x), prediction)

    def noisy(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """αx₀ + σε; Ho et al. 2020, eq. 4."""
        alpha, sigma = self._alpha_sigma(t, clean)
        return (alpha * clean + sigma * noise).to(clean.dtype)

    def step(self, x: Tensor, index: int, prediction: Tensor, steps: int) -> Tensor:
        """DDIM with eta 0: α'x₀ + σ'ε; Song et al. 2021, eq. 12. The last step ends at the schedule's final alpha."""
        r = self._rates(index, steps)
        return (r.alpha_next * _clean(x, r.alpha, r.sigma, prediction) + r.sigma_next * prediction).to(x.dtype)

    def _alpha_sigma(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        # picked on the device: indexing with a single time would wait for it to reach the host
        a = _shared.per_sample(self._alphas_cumprod.index_select(0, t.to(self.device).reshape(-1)), x)
        return a**0.5, (1 - a) ** 0.5

    # --- images -----------------------------------------------------------------------------------------------

    def decode(self, latents: Tensor) -> Tensor:
        """See the base."""
        self._meter.decoded(len(latents))
        images: Tensor = self._vae.decode(latents / self._vae.config.scaling_factor, return_dict=False)[0]
        return (images / 2 + 0.5).clamp(0, 1)

    def encode(self, images: Tensor) -> Tensor:
        """See the base."""
        latents: Tensor = self._vae.encode(images.to(self.device, self.dtype) * 2 - 1).latent_dist.mean
        return latents.mul(self._vae.config.scaling_factor)

    # --- weights ----------------------------------------------------------------------------------------------

    def tensors(self) -> Mapping[str, Tensor]:
        """See the base; components `unet` and `text_encoder`."""
        return self._substitutes.over(_shared.tensors({"unet": self._unet, "text_encoder": self._text_encoder}))

    def projections(self) -> list[Projection]:
        """Keys and values of every cross-attention (`attn2`), in module order, key before value."""
        live = self.tensors()
        return [
            Projection(f"unet.{name}.weight", live[f"unet.{name}.weight"], "key" if name.endswith("to_k") else "value")
            for name, _ in self._unet.named_modules()
            if name.endswith((".attn2.to_k", ".attn2.to_v"))
        ]

    def layers(self) -> list[Layer]:
        """See the base. A transformer block's norms belong to what they feed (`norm2` to cross-attention): methods that
        train linear and convolutional layers only, such as ESD, look at `kind` too."""
        return _shared.layers("unet", self._unet, _part)

    def student(self, names: Collection[str] | None = None) -> UNetBackbone:
        """See the base."""
        twin = copy.copy(self)
        twin._substitutes = self._substitutes.own(self._unet, names)
        twin._launcher = Launcher()  # a recording would read the weights of the model that it was made with
        return twin

    def of_size(self, size: tuple[int, int]) -> UNetBackbone:
        """See the base."""
        twin = copy.copy(self)
        twin._shape(size)
        return twin

    def use(self, launch: Launch) -> None:
        """See the base."""
        self._launcher.use(launch, self._unet, self.device)

    @property
    def refused(self) -> str | None:
        """See the base."""
        return self._launcher.refused

    @contextmanager
    def substituted(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """See the base."""
        with self._launcher.held(), self._substitutes.given(self._unet, tensors):
            yield

    @contextmanager
    def attached(self, changes: Mapping[str, Change]) -> Iterator[None]:
        """See the base; keys and values of the cross-attentions."""
        with self._launcher.held(), _shared.attached(self._readers(), changes):
            yield

    def _readers(self) -> dict[str, Any]:
        """The modules behind `projections`, by the names of their weights."""
        return {
            f"unet.{name}.weight": module
            for name, module in self._unet.named_modules()
            if name.endswith((".attn2.to_k", ".attn2.to_v"))
        }

    def remembering(self) -> AbstractContextManager[None]:
        """See the base; keys and values of all cross-attentions."""
        return _shared.remembering(self._readers().values()) if self._launcher.remembers else nullcontext()

    def at_guidance(self, guidance: float) -> UNetBackbone:
        """See the base: itself."""
        return self

    def attention_layers(self) -> list[str]:
        """See the base; `attn2` of every block."""
        return list(self._cross_attentions())

    def _cross_attentions(self) -> dict[str, Any]:
        return {f"unet.{name}": module for name, module in self._unet.named_modules() if name.endswith(".attn2")}

    @contextmanager
    def attention_maps(
        self, layers: Collection[str] | None = None, *, text_rows: bool = False
    ) -> Iterator[list[Tensor]]:
        """See the base; `attn2` of every block, in module order."""
        if text_rows:
            raise BadInput(f"{self.name} has cross-attention: its text is asked, and asks nothing")
        with self._launcher.held(), _shared.recording(self._cross_attentions(), layers, _Recorder) as maps:
            yield maps

    def counting(self) -> AbstractContextManager[Counts]:
        """See the base."""
        return self._meter.counting()


class _Recorder:
    """Cross-attention with its probabilities kept: what diffusers' own processors compute, without the fused kernel."""

    def __init__(self, maps: list[Tensor]) -> None:
        self._maps = maps

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for part in (attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states))
        )
        weights = (query.float() @ key.float().transpose(-1, -2) * attn.scale).softmax(-1)
        self._maps.append(weights)
        out = (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)
        result: Tensor = attn.to_out[1](attn.to_out[0](out))
        return result


class _Rates(NamedTuple):
    """What one step needs, `(1, 1, 1, 1)` each, on the device: α and σ of its time and of the time before."""

    alpha: Tensor
    sigma: Tensor
    alpha_next: Tensor
    sigma_next: Tensor


class _Schedule(NamedTuple):
    """A number of steps, settled: its times on the host and on the device, and what its steps need, as they come."""

    here: Tensor
    times: Tensor
    rates: dict[int, _Rates]


def _clean(x: Tensor, alpha: Tensor, sigma: Tensor, prediction: Tensor) -> Tensor:
    return ((x - sigma * prediction) / alpha).to(x.dtype)


def _ddim(config: Mapping[str, Any]) -> Any:
    untyped: Any = DDIMScheduler
    scheduler = untyped.from_config(_shared.plain(config))
    kind = scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise BadInput(f"expected prediction_type epsilon or v_prediction in the scheduler's config, got {kind!r}")
    if scheduler.config.rescale_betas_zero_snr:
        raise BadInput("expected a noise schedule that ends above zero signal, got rescale_betas_zero_snr: true")
    return scheduler


def _check_channels(unet: Any, vae: Any) -> None:
    if unet.in_channels != vae.latent_channels or unet.addition_embed_type is not None:
        raise BadInput(
            f"expected a text-to-image U-Net over {vae.latent_channels} latent channels with text alone, got "
            f"{unet.in_channels} input channels and addition_embed_type {unet.addition_embed_type!r}; "
            "inpainting, SDXL and the like are not supported"
        )


_PLACES: tuple[tuple[str, Part], ...] = (
    (".attn1.", "self-attention"),
    (".norm1.", "self-attention"),
    (".attn2.", "cross-attention"),
    (".norm2.", "cross-attention"),
    (".ff.", "feed-forward"),
    (".norm3.", "feed-forward"),
)


def _part(name: str) -> Part:
    block = name.split(".transformer_blocks.")
    if len(block) == 2:
        return next(part for mark, part in _PLACES if mark in f".{block[1]}.")
    for mark, part in (
        (".attentions.", "projection"),  # its norm, proj_in and proj_out
        (".resnets.", "residual"),
        ("samplers.", "resample"),
        ("conv_in", "input"),
        ("conv_norm_out", "output"),
        ("conv_out", "output"),
    ):
        if mark in name:
            return part  # type: ignore[return-value]
    return "time"
