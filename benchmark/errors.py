"""The errors that users see: each says what was expected, what came and what to do, in one to a few lines."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar

_LONGEST = 100  # characters of a name in a message
_LISTED = 12  # more known names than this make the line unreadable; `erasure-bench list` shows them all


class BenchError(Exception):
    """Base of all errors that end a command with one message and no traceback."""

    exit_code: ClassVar[int] = 2


class BadInput(BenchError):
    """What the user gave cannot be used: an unknown name, a wrong key or type, an unwritable folder."""

    exit_code: ClassVar[int] = 2


class Missing(BenchError):
    """Weights, a package or a device that the command needs is not there."""

    exit_code: ClassVar[int] = 3


class Damaged(BenchError):
    """An artifact does not have the bytes that its manifest promises."""

    exit_code: ClassVar[int] = 1


def did_you_mean(name: str, known: Iterable[str], what: str = "name") -> str:
    """`unknown suite 'objets'; did you mean 'objects'? (known: celebrity, objects, smoke)`; `what` is "suite"."""
    names = sorted(set(known))
    near = nearest(name[:_LONGEST], names)
    hint = f"; did you mean {near!r}?" if near else ""
    name = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
    listed = ", ".join(names[:_LISTED]) + (f", … {len(names)} in all" if len(names) > _LISTED else "")
    return f"unknown {what} {name!r}{hint} (known: {listed or 'none'})"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name` (case ignored), or None if nothing is near."""
    folded = {k.casefold(): k for k in sorted(set(known), reverse=True)}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None
