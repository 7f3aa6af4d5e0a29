"""Which kind of device images are made on. No torch: plans are keyed by it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

Kind = Literal["cpu", "cuda"]


def kind() -> Kind:
    """`cuda` where an NVIDIA driver shows a card that is not hidden, else `cpu`.

    Kernels differ between kinds, so their images are kept apart; cards of different models are told apart by the
    record's device class only.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    return "cuda" if Path("/dev/nvidiactl").exists() and not hidden else "cpu"
