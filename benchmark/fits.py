"""What of a flow transformer fits on a card: sizes from its configuration alone, nothing loaded, nothing measured.

Weights are counted in bfloat16. Activations are what a step of one image keeps for its way back, counted by torch on
blocks without memory behind them, attention as fused kernels keep it, without its square of probabilities. Kernels' own
workspace and fragments are not in it, so `ROOM` of a card is left free.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmark import cost

if TYPE_CHECKING:
    from benchmark.plan import Plan

CARDS = {"training": 80, "sampling": 24}
"""GB (10⁹ bytes) of the cards that the modes are for."""
ROOM = 0.05
"""The share of a card that is left to the driver, the libraries and fragments."""
RANK = 16
"""Of the low-rank changes that training is counted with: the largest of the `flux` variants but for ANT's 64."""
_BYTES = 2  # bfloat16
_MASTER = 4 * 4  # float32: a factor, its gradient and AdamW's two moments

Config = Mapping[str, Any]


class Mode(NamedTuple):
    """One way to run a model on one card."""

    name: str
    settings: str
    """The environment variables that make it so."""
    use: str
    """`training` or `sampling`."""
    size: int
    """Bytes at the most."""

    @property
    def card(self) -> int:
        """GB."""
        return CARDS[self.use]

    @property
    def fits(self) -> bool:
        """Whether it leaves the card its room."""
        return self.size <= (1 - ROOM) * self.card * 10**9


class Sizes(NamedTuple):
    """Bytes."""

    transformer: int
    blocks: int
    """Of the transformer, what its blocks hold; they come one at a time where they are streamed."""
    block: int
    """The largest of them."""
    texts: tuple[int, ...]
    """Of each text encoder."""
    vae: int
    attention: int
    """All attention projections, which low-rank training has a changed copy of."""
    factors: int
    """Numbers in low-rank changes of rank 1 of these."""
    double: int
    """Kept for the way back by one double-stream block, and so on."""
    single: int
    carried: int
    """Kept of each block where its activations are computed again: what goes into it."""
    decoding: int
    """The autoencoder's widest layer, in and out."""


def memory(plan: Plan) -> list[dict[str, Any]] | None:
    """The modes at a plan's image size; None for a model that is small enough for any card, or that is not known."""
    configs = cost.configurations(str(plan.model.folder or plan.model.name))
    if configs is None or "transformer" not in configs:
        return None
    found = modes(configs, plan.form.sampler.size, cost.flow_length(configs))
    return [{**m._asdict(), "card_gb": m.card, "fits": m.fits, "measured": False} for m in found]


def modes(configs: Mapping[str, Config], size: int, length: int) -> list[Mode]:
    """The ways to train and to sample for images of `size` pixels and `length` text tokens, one image at a time."""
    s, layers = sizes(configs, size, length), _layers(configs)
    texts, activations = sum(s.texts), layers[0] * s.double + layers[1] * s.single
    widest = max(s.double, s.single)
    trained = s.transformer + s.vae + s.attention + RANK * s.factors * _MASTER
    recomputed = sum(layers) * s.carried + widest
    rest = s.transformer - s.blocks
    # text encoders, where they come for encoding alone, are never there with the widest activations
    return [
        Mode("all on the card", "", "training", trained + texts + activations),
        Mode("text encoders off", "OFFLOAD=text", "training", max(trained + activations, _coming(trained, s))),
        Mode(
            "text encoders off, activations computed again",
            "OFFLOAD=text CHECKPOINTING=1",
            "training",
            max(trained + recomputed, _coming(trained, s)),
        ),
        Mode("all on the card", "", "sampling", s.transformer + texts + s.vae + max(widest, s.decoding)),
        Mode(
            "text encoders off",
            "OFFLOAD=text",
            "sampling",
            max(s.transformer + s.vae + max(widest, s.decoding), _coming(s.transformer + s.vae, s)),
        ),
        Mode(
            "text encoders off, blocks come one at a time",
            "OFFLOAD=blocks",
            "sampling",
            max(rest + s.vae + max(widest + s.block, s.decoding), _coming(rest + s.vae, s)),
        ),
    ]


def _coming(there: int, s: Sizes) -> int:
    """While the largest text encoder is on the card."""
    return there + max(s.texts)


def sizes(configs: Mapping[str, Config], size: int, length: int) -> Sizes:
    """All of them, of parts that are built without memory."""
    import torch

    with torch.device("meta"):
        return _sizes(configs, size, length)


def _sizes(configs: Mapping[str, Config], size: int, length: int) -> Sizes:
    import diffusers

    untyped: Any = diffusers
    transformer = untyped.FluxTransformer2DModel.from_config(dict(configs["transformer"]))
    vae = untyped.AutoencoderKL.from_config(dict(configs["vae"]))
    blocks = [_size(b) for b in (*transformer.transformer_blocks, *transformer.single_transformer_blocks)]
    attention = [p for n, p in transformer.named_parameters() if ".attn." in n and p.ndim == 2]
    tokens, width = (size // cost.factor(configs["vae"]) // 2) ** 2, transformer.inner_dim
    double, single = _kept(configs["transformer"], tokens, length)
    return Sizes(
        transformer=_size(transformer),
        blocks=sum(blocks),
        block=max(blocks),
        texts=tuple(map(_size, cost.text_encoders(configs))),
        vae=_size(vae),
        attention=_BYTES * sum(p.numel() for p in attention),
        factors=sum(sum(p.shape) for p in attention),
        double=double,
        single=single,
        carried=_BYTES * width * (tokens + length + 1),
        decoding=2 * _BYTES * size**2 * max(configs["vae"]["block_out_channels"][:2]),
    )


def _size(module: Any) -> int:
    return _BYTES * sum(int(p.numel()) for p in module.parameters())


def _layers(configs: Mapping[str, Config]) -> tuple[int, int]:
    config = configs["transformer"]
    return config.get("num_layers", 19), config.get("num_single_layers", 38)


def _kept(config: Config, tokens: int, length: int) -> tuple[int, int]:
    """Bytes kept for the way back by a double-stream and by a single-stream block, as differences of whole models."""
    one, more_double, more_single = (
        _saved({**config, "num_layers": a, "num_single_layers": b}, tokens, length) for a, b in ((1, 1), (2, 1), (1, 2))
    )
    return more_double - one, more_single - one


def _saved(config: Config, tokens: int, length: int) -> int:
    """Bytes of all that autograd keeps of one forward but weights, each memory once."""
    import diffusers
    import torch

    untyped: Any = diffusers
    # Module.to, not diffusers' own `to`, which warns of modules to keep in float32 where there are none
    model = torch.nn.Module.to(untyped.FluxTransformer2DModel.from_config(dict(config)), torch.bfloat16)
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    seen: dict[int, Any] = {}  # storages are held, so that no number is given out twice

    def pack(tensor: Any) -> Any:
        storage, square = tensor.untyped_storage(), 2 * (tokens + length,)
        if storage._cdata not in weights and tuple(tensor.shape[-2:]) != square:
            seen[storage._cdata] = storage
        return tensor

    def empty(*shape: int) -> Any:
        return torch.empty(*shape, dtype=torch.bfloat16)

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        out = model(
            hidden_states=empty(1, tokens, model.config.in_channels),
            encoder_hidden_states=empty(1, length, model.config.joint_attention_dim),
            pooled_projections=empty(1, model.config.pooled_projection_dim),
            timestep=empty(1),
            guidance=empty(1) if model.config.guidance_embeds else None,
            img_ids=torch.zeros(tokens, 3),
            txt_ids=torch.zeros(length, 3),
            return_dict=False,
        )
    total = sum(storage.nbytes() for storage in seen.values())
    del out
    return int(total)
