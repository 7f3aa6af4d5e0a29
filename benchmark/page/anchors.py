"""Names that stay: of files, and of every cell and image on the page. They depend on what is named alone."""

from __future__ import annotations

import hashlib
import re

_PLAIN = re.compile(r"[A-Za-z0-9_@-]|(?<!^)\.")
_LONGEST = 120


def slug(text: str) -> str:
    """A text as part of an address and a file's name, different texts as different ones.

    >>> slug("erase:identity_10"), slug("esd@paper"), slug("../x")
    ('erase~3aidentity_10', 'esd@paper', '~2e.~2fx')
    """
    plain = "".join(
        c if _PLAIN.match(text, i) and not text.startswith("..", i) else _escaped(c) for i, c in enumerate(text)
    )
    if len(plain) <= _LONGEST:
        return plain or "~"
    return f"{plain[: _LONGEST - 18]}~~{_digest(text)}"


def _escaped(character: str) -> str:
    return "".join(f"~{byte:02x}" for byte in character.encode("utf-8", "surrogatepass"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def cell(request: str, method: str) -> str:
    """The anchor of a row of the board: one method on one request."""
    return f"cell/{slug(request)}/{slug(method)}"


def image(role: str, concept: str, prompt: str, seed: int) -> str:
    """What names an image within a cell, whatever else the cell holds: 16 hex digits."""
    return _digest("\0".join((role, concept, prompt, str(seed))))


def column(label: str, seed: int) -> str:
    """What names a method's column in the explorer; further training seeds of one method have columns of their own."""
    return slug(label) if seed == 0 else f"{slug(label)}~s{seed}"
