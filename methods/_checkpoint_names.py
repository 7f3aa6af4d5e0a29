"""The places that a model has for a checkpoint's tensors: names in files to names of `Backbone.tensors()`."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn, Self

from torch import Tensor

from benchmark.backbones.base import Backbone
from benchmark.errors import BadInput

_SHOWN = 8  # names in a message
_BUFFERS = (".position_ids",)  # written by older versions of the libraries, and computed by newer ones
_TIED = ("encoder.embed_tokens.weight", "shared.weight")  # T5's one embedding under two names


@dataclass(frozen=True)
class Places:
    """A model's tensors and how files call them."""

    model: str
    live: Mapping[str, Tensor]
    denoiser: str
    """The component that predicts: `unet` or `transformer`."""
    whole: frozenset[str]
    """All parameters of the denoiser."""

    @classmethod
    def of(cls, backbone: Backbone) -> Self:
        """The places of a backbone."""
        layers = backbone.layers()
        whole = frozenset(name for layer in layers for name in layer.parameters)
        return cls(backbone.name, backbone.tensors(), layers[0].name.split(".")[0], whole)

    @property
    def components(self) -> list[str]:
        """`unet`, `text_encoder` and so on, in order."""
        return list(dict.fromkeys(name.split(".")[0] for name in self.live))

    def tensor(self, name: str) -> str | None:
        """The full name of a tensor by a name with or without its component, in the denoiser if without; else None."""
        for known in (name, f"{self.denoiser}.{name}", _modern(name)):
            if known in self.live:
                return known
        return None

    def module(self, name: str) -> str | None:
        """The same for a layer: the full name of its weight."""
        return self.tensor(f"{name}.weight")

    def flattened(self, name: str) -> str | None:
        """The weight of a layer as kohya's scripts write it, with `_` for every `.`: `lora_unet_down_blocks_0_…`."""
        return self._flattened.get(name.replace("_text_model_", "_", 1))

    @cached_property
    def _flattened(self) -> dict[str, str]:
        short = {self.denoiser: "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
        found = {}
        for name in self.live:
            component, _, rest = name.partition(".")
            if rest.endswith(".weight") and component in short:
                flat = rest.removesuffix(".weight").replace(".", "_")
                found[f"{short[component]}_{flat}"] = name
        return found | {k.replace("lora_te_", "lora_te1_", 1): v for k, v in found.items() if k.startswith("lora_te_")}

    def fits(self, name: str, shape: tuple[int, ...], came: tuple[int, ...], what: str = "") -> None:
        """`BadInput` unless a tensor has the shape it should have."""
        if shape != came:
            raise BadInput(
                f"checkpoint: {what or name} should be {shape} for {self.model}, got {came}; is it for another model?"
            )


def _modern(name: str) -> str:
    """Text encoders have lost a level of names since most checkpoints were written."""
    return name.replace("text_encoder.text_model.", "text_encoder.", 1)


def computed(name: str) -> bool:
    """Whether a name that the model does not have is one that it computes or keeps under another name."""
    return name.endswith((*_BUFFERS, *_TIED))


def ignored(names: Iterable[str], patterns: str) -> set[str]:
    """Names that match one of the comma-separated shell patterns."""
    wanted = [p.strip() for p in patterns.split(",") if p.strip()]
    return {n for n in names if any(fnmatch.fnmatchcase(n, p) for p in wanted)}


def all_used(left: Iterable[str], model: str) -> None:
    """`BadInput` that lists what found no place."""
    if names := sorted(left):
        _listed(
            names, f"that {model} has no place for", "is it for another model? `ignore` takes patterns of what may stay"
        )


def none_missing(absent: Iterable[str], what: str) -> None:
    """`BadInput` that lists what a whole checkpoint lacks."""
    if names := sorted(absent):
        _listed(names, f"too few: {what} lacks", "a part of a model is read with format=partial")


def _listed(names: list[str], what: str, then: str) -> NoReturn:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    raise BadInput(f"checkpoint: {len(names)} tensors {what}: {', '.join(names[:_SHOWN])}{more}; {then}")
