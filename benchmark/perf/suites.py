"""Suites that are small enough to be run many times, as text for a file. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

PORTRAITS = (
    "a portrait of {concept}",
    "a sketch of {concept}",
    "an oil painting of {concept}",
    "{concept} in an official photo",
    "an image capturing {concept} at a public event",
)
TEMPLATES = 2
"""Of a suite whose times are told: turns of whole suites are most of a session, and their starts most of a turn."""
ERASED, KEPT = "mira talvane", ("oskar brindle", "juno pellarin", "tobias krell")


def celebrity(
    folder: Path,
    *,
    steps: int,
    batch: int,
    size: int = 64,
    images: int = 1,
    templates: int = TEMPLATES,
    scores: bool = True,
) -> Path:
    """A file with one request: one identity erased, three kept, each in every template `images` times.

    4 · `templates` · `images` images a method. Without `scores` only the erased one's are asked for.
    """
    portraits = {"templates": list(PORTRAITS[:templates]), "images": images}
    form: dict[str, Any] = {
        "dataset": "testbed",
        "requests": [{"name": "erase:identity_1", "erase": [ERASED], "keep": list(KEPT)}],
        "prompts": {"erased": portraits, "kept": portraits} if scores else {"erased": portraits},
        "sampler": {"scheduler": "ddim", "steps": steps, "guidance": 7.5, "size": size},
        "batch": batch,
        "primary": "testbed/top1",
        "protocols": ["testbed/top1", "testbed-clip/score"],
    }
    suite: dict[str, Any] = {
        "title": "Identities, for timing",
        "version": 1,
        "source": "ours; the prompts are MACE's five templates",
        "methods": ["none"],
        "forms": {"embedded": form},
    }
    if scores:
        suite["headline"] = "H_c"
    path = folder / "celebrity-perf.yaml"
    path.write_text(yaml.safe_dump(suite, sort_keys=False), encoding="utf-8")
    return path
