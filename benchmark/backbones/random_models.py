"""Tiny models with random weights, built in code in milliseconds: for tests and for trying a method's plumbing.

Module names are those of Stable Diffusion and FLUX.1, sizes those of the embedded model or smaller: 64-pixel
images, 8×8×16 latents, text of 24 positions and width 128. Weights come from a fixed seed, the same in every
process. The pictures mean nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import diffusers
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from benchmark.backbones.flux import FluxBackbone
from benchmark.backbones.unet import UNetBackbone

_diffusers: Any = diffusers  # its constructors have no types

LENGTH = 24
WIDTH = 128
PIXELS = 64
CHANNELS = 16

WORDS = tuple(
    """
    a an the of in at by with and photo picture image portrait sketch painting oil style art drawing official public
    event capturing airplane aircraft plane jet automobile car vehicle motorcar bird avian fowl winged creature cat
    feline kitty housecat deer hart stag doe dog canine pooch hound frog amphibian anuran tadpole horse equine steed
    mount ship vessel boat watercraft truck lorry rig hauler animal thing plant tool person sky ground mira talvane
    oskar brindle juno pellarin tobias krell selma ostrow kofi ardenne lena varkas hugo fenwright
    """.split()
)
"""Words that are one token each; any other text is spelt."""


def unet_components(seed: int = 0) -> dict[str, Any]:
    """The parts of a Stable Diffusion pipeline, by the names under which it takes them."""
    tokenizer = clip_tokenizer(WORDS, LENGTH)
    with _seeded(seed):
        parts: dict[str, Any] = {
            "unet": _diffusers.UNet2DConditionModel(
                sample_size=PIXELS // 8,
                in_channels=CHANNELS,
                out_channels=CHANNELS,
                layers_per_block=1,
                block_out_channels=(32, 64),
                down_block_types=("CrossAttnDownBlock2D",) * 2,
                up_block_types=("CrossAttnUpBlock2D",) * 2,
                cross_attention_dim=WIDTH,
                attention_head_dim=2,
                norm_num_groups=8,
            ),
            "text_encoder": _clip_text(tokenizer),
            "vae": _autoencoder(quantised=True),
        }
    scheduler = _diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return {name: part.eval() for name, part in parts.items()} | {"tokenizer": tokenizer, "scheduler": scheduler}


def flux_components(seed: int = 0, *, guidance_embeds: bool = False) -> dict[str, Any]:
    """The parts of a FLUX.1 pipeline, by the names under which it takes them; `guidance_embeds` as dev has them."""
    tokenizer, tokenizer_2 = clip_tokenizer(WORDS, LENGTH), t5_tokenizer(WORDS, LENGTH)
    with _seeded(seed):
        parts: dict[str, Any] = {
            "transformer": _diffusers.FluxTransformer2DModel(
                in_channels=4 * CHANNELS,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=WIDTH,
                pooled_projection_dim=WIDTH,
                guidance_embeds=guidance_embeds,
                axes_dims_rope=(4, 6, 6),
            ),
            "text_encoder": _clip_text(tokenizer),
            "text_encoder_2": T5EncoderModel(
                T5Config(
                    vocab_size=len(tokenizer_2),
                    d_model=WIDTH,
                    d_kv=32,
                    d_ff=2 * WIDTH,
                    num_layers=2,
                    num_heads=4,
                    feed_forward_proj="gated-gelu",
                )
            ),
            "vae": _autoencoder(quantised=False),
        }
    named = {name: part.eval() for name, part in parts.items()}
    scheduler = _diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    return named | {"tokenizer": tokenizer, "tokenizer_2": tokenizer_2, "scheduler": scheduler}


def random_unet(
    *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
) -> UNetBackbone:
    """A backbone named `random-unet` over `unet_components`."""
    parts = _cast(unet_components(seed), dtype)
    return UNetBackbone("random-unet", device=device, **parts)


def random_flux(
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    guidance_embeds: bool = False,
) -> FluxBackbone:
    """A backbone named `random-flux` over `flux_components`."""
    parts = _cast(flux_components(seed, guidance_embeds=guidance_embeds), dtype)
    return FluxBackbone("random-flux", device=device, size=(PIXELS, PIXELS), **parts)


def _cast(parts: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    # Module.to, not diffusers' own `to`, which warns of modules to keep in float32 where there are none
    cast = {k: torch.nn.Module.to(v, dtype) if isinstance(v, torch.nn.Module) else v for k, v in parts.items()}
    return cast | {"scheduler": parts["scheduler"].config}


class _seeded:
    """Draw what is inside from a generator state of its own, and leave the global one as it was."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __enter__(self) -> None:
        self._state = torch.get_rng_state()
        torch.default_generator.manual_seed(self._seed)

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self._state)


# --- components -----------------------------------------------------------------------------------------------


def _clip_text(tokenizer: Any) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _autoencoder(*, quantised: bool) -> Any:
    return _diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        latent_channels=CHANNELS,
        norm_num_groups=4,
        sample_size=PIXELS,
        scaling_factor=1.0 if quantised else 0.3611,
        shift_factor=None if quantised else 0.1159,  # FLUX's autoencoder shifts, and has no quant convolutions
        use_quant_conv=quantised,
        use_post_quant_conv=quantised,
    )


# --- tokenizers -----------------------------------------------------------------------------------------------

_BOS, _EOS, _END = "<|startoftext|>", "<|endoftext|>", "</w>"


def clip_tokenizer(words: Iterable[str], length: int) -> Any:
    """CLIP's byte-level BPE with a vocabulary of its own: `words` are one token each, any other text is spelt."""
    letters = sorted(ByteLevel.alphabet())
    merges = byte_pair_merges(words)
    tokens = [*letters, *(c + _END for c in letters), *dict.fromkeys(a + b for a, b in merges), _BOS, _EOS]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    untyped: Any = CLIPTokenizer  # its annotations know merges as text only
    return untyped(vocab=vocabulary, merges=merges, model_max_length=length)


def byte_pair_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Merges that make every word one token: the commonest pair first, ties in alphabetical order."""
    spelt = [[*word[:-1], word[-1] + _END] for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for word in spelt for pair in zip(word, word[1:], strict=False)):
        pair = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(pair)
        spelt = [_merge(word, pair) for word in spelt]
    return merges


def _merge(word: Sequence[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for part in word:
        # a part made just now cannot be merged again: it is no longer the pair's first half alone
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


def t5_tokenizer(words: Iterable[str], length: int) -> T5Tokenizer:
    """T5's unigram pieces: each of `words` after a space, then single ASCII characters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -2.0) for word in sorted(set(words))]
    known = {piece for piece, _ in pieces}
    singles = ["▁", *map(chr, range(33, 127))]
    pieces += [(c, -10.0) for c in singles if c not in known]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=length)
