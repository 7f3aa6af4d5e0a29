"""Getting weights from their hub: only when asked for, only formats that run no code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmark import models
from benchmark.errors import BadInput, Missing
from benchmark.plan import Plan, missing

PATTERNS = ("*.json", "*.txt", "*.model", "*.safetensors")
"""What a diffusers folder needs; pickles (.bin, .ckpt, .pt) stay away."""

Download = Callable[[str, Sequence[str]], str]
"""Hub id and patterns to the local folder."""


def fetch(plan: Plan, *, download: Download | None = None) -> list[str]:
    """Get what the plan lacks and a hub has; returns the folders. Missing, with the list, if something is left."""
    folders = [_model(plan, download or snapshot)] if _lacks_model(plan) else []
    left = missing(plan)
    if left:
        raise Missing("not on a hub that is known here: " + "; ".join(f"{i['what']} ({i['where']})" for i in left))
    return folders


def enough(plan: Plan) -> bool:
    """Whether the model's weights are all that the plan lacks: else gigabytes would arrive and nothing could run."""
    weights = _lacks_model(plan)
    return weights is not None and missing(plan) == [weights]


def _lacks_model(plan: Plan) -> dict[str, Any] | None:
    return models.missing(str(plan.model.folder or plan.model.name))


def _model(plan: Plan, download: Download) -> str:
    if not plan.model.hub:
        raise BadInput(f"{plan.model.name} is on no hub; {_lacks_model(plan)}")
    return download(plan.model.hub, PATTERNS)


def snapshot(hub: str, patterns: Sequence[str]) -> str:
    """Download into the hub's own cache. Missing, in one line, if the hub cannot be reached or refuses."""
    from huggingface_hub import snapshot_download

    try:
        return str(Path(snapshot_download(hub, allow_patterns=list(patterns))))
    except Exception as error:  # the library raises many kinds: network, gated, not found
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = "accept its licence there, log in, or give a local folder"
        raise Missing(f"cannot download {hub}: {first}; {hint}") from None
