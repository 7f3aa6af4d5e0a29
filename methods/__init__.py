"""Erasure methods: one file a method, named as on the command line. A leading underscore marks what they share.

Adapters import torch only when they edit, so that listing and planning answer at once. Their classes are here by name,
`from methods import ESD`; each file is loaded when its class is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from methods.ant import ANT
    from methods.blocklist import Blocklist
    from methods.checkpoint import Checkpoint
    from methods.cpe import CPE
    from methods.erase_anything import EraseAnything
    from methods.esd import ESD
    from methods.fade_adv import FadeAdv
    from methods.fade_fg import FADE as FadeFG
    from methods.grey import Grey
    from methods.mace import MACE
    from methods.noise import Noise
    from methods.none import NoErasure
    from methods.uce import UCE

__all__ = [
    "ANT",
    "CPE",
    "ESD",
    "MACE",
    "UCE",
    "Blocklist",
    "Checkpoint",
    "EraseAnything",
    "FadeAdv",
    "FadeFG",
    "Grey",
    "NoErasure",
    "Noise",
]

_WHERE = {
    "ANT": "ant",
    "Blocklist": "blocklist",
    "CPE": "cpe",
    "Checkpoint": "checkpoint",
    "ESD": "esd",
    "EraseAnything": "erase_anything",
    "FadeAdv": "fade_adv",
    "FadeFG": "fade_fg",  # its own name there, FADE, would say as little here as `fade` does on the command line
    "Grey": "grey",
    "MACE": "mace",
    "NoErasure": "none",
    "Noise": "noise",
    "UCE": "uce",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its methods are {', '.join(__all__)}")
    module = importlib.import_module(f"{__name__}.{_WHERE[name]}")
    return getattr(module, "FADE" if name == "FadeFG" else name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
