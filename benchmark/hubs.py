"""Whether hubs of models and data are asked. No imports from the rest."""

from __future__ import annotations

import os


def ask(download: bool) -> None:
    """Only when told to, whatever is set outside; the libraries read this when they are imported."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ[name] = "0" if download else "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
