"""How these pages are built: `make docs`. No network is used, and a warning fails the build."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # for `generated`, beside this file

import generated  # noqa: E402

project = "erasure-bench"
author = "the erasure-bench contributors"
release = importlib.metadata.version("erasure-bench")
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
nitpicky = True
# Names of other projects, and type variables: there is no inventory of them without a network.
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(torch|np|numpy|pd|pandas|matplotlib|collections|contextlib|pathlib|types|typing|abc|os|pydantic)(\..*)?",
    ),
    (
        "py:.*",
        r"(Tensor|Floats|NDArray|ArrayLike|Path|PathLike|Any|Figure|DataFrame|Mapping|Mapping\[str|Sequence|Callable)",
    ),
    ("py:.*", r"(Fields|FigureName|Folder|T|benchmark\.backbones\.journal\.T|benchmark\.suite\.Suite)"),
]

myst_enable_extensions = ["colon_fence"]  # no formulas: their renderer is fetched from the network
myst_heading_anchors = 3

# Signatures are read from the code; torch is not needed for that, and takes long to load.
autodoc_mock_imports = ["torch"]
autodoc_typehints = "signature"
autodoc_typehints_format = "fully-qualified"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
# Single backticks in docstrings are code.
default_role = "code"

html_theme = "furo"
html_title = f"erasure-bench {release}"
html_theme_options = {"top_of_page_buttons": []}
html_copy_source = False
html_show_sourcelink = False
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True


def setup(app: Any) -> None:
    """Fill in what pages take from the code, and lead links out of this folder to pages in it."""
    app.connect("source-read", _filled)


def _filled(app: Any, docname: str, source: list[str]) -> None:
    source[0] = generated.filled(generated.inside(source[0], docname))
