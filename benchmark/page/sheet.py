"""A figure that notebooks show as it is, without a backend of pyplot's. Importing this loads matplotlib."""

from __future__ import annotations

import io
from typing import final

from matplotlib.figure import Figure

_SHOWN = 100  # pixels of the page for an inch; twice as many are drawn, for sharp screens


@final
class Sheet(Figure):
    """A matplotlib figure with a picture of itself."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """What IPython asks for: a PNG, and how large to show it."""
        out = io.BytesIO()
        self.savefig(out, format="png", dpi=2 * _SHOWN)
        width, height = (round(_SHOWN * inches) for inches in self.get_size_inches())
        return out.getvalue(), {"width": width, "height": height}
