"""Where the data folders are: beside the code in a checkout, packed inside `benchmark/_data` in a wheel."""

from __future__ import annotations

import os
from pathlib import Path

from benchmark.errors import Missing

_PACKAGE = Path(__file__).resolve().parent


def checkout() -> Path | None:
    """Root of the source checkout that this code runs from, or None when it is installed from a wheel."""
    root = _PACKAGE.parent
    # Both are asked for: site-packages may hold somebody else's `datasets`.
    return root if (root / "pyproject.toml").is_file() and (root / "suites").is_dir() else None


def data_root() -> Path:
    """The folder that holds `suites/` and `datasets/`; `Missing` if this installation has none."""
    root = checkout() or _PACKAGE / "_data"
    if not (root / "suites").is_dir():
        raise Missing(f"no folder suites/ in {_PACKAGE.parent} or {root}; install erasure-bench again")
    return root


def suites() -> Path:
    """Folder of the shipped suites, one YAML each."""
    return data_root() / "suites"


def datasets() -> Path:
    """Folder of the datasets, one folder each."""
    return data_root() / "datasets"


def reported() -> Path:
    """Folder of published numbers and of the papers' layouts: `results/reported/` in a checkout."""
    root = checkout()
    return _PACKAGE / "_data" / "reported" if root is None else root / "results" / "reported"


def results() -> Path | None:
    """Folder of committed results, or None when this is installed from a wheel, which holds none."""
    root = checkout()
    return None if root is None else root / "results"


EMBEDDED = {"testbed": "weights", "testbed-flux": "weights-flux"}
"""The embedded models, and the folders of their weights."""


def testbed_weights(model: str = "testbed") -> Path:
    """Folder of an embedded model's weights; it travels inside the package."""
    return _PACKAGE / "testbed" / EMBEDDED[model]


def default_out(suite: str, model: str) -> Path:
    """Where a run goes by itself: `runs/<suite>-<model>`, with the last part of a path for either."""
    return Path("runs") / f"{Path(suite).stem}-{Path(model).name}"


def hub_cache() -> Path:
    """The hub client's cache, by the same variables that it reads."""
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(home).expanduser() / "hub"


def user_cache() -> Path:
    """This harness's own folder in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "erasure-bench"
