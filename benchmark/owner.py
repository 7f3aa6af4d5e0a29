"""Which process something belongs to, and whether that one still runs."""

from __future__ import annotations

import os
import uuid
from functools import cache
from pathlib import Path


@cache
def place() -> str:
    """Where process numbers mean something: this start of this machine, and this container of it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{uuid.getnode():x}/{os.name}"


def lives(pid: int, began: str | None = None) -> bool:
    """Whether a process of this place runs, and where it is told, whether it is the one that began then.

    Where the system does not tell when one began, any with its number counts.
    """
    if Path("/proc/self/stat").exists():
        found = born(pid)
        return found is not None and began in (None, found)
    if os.name == "nt":  # asking would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is another's
        return True
    return True


def born(pid: int) -> str | None:
    """When a process began, in ticks; None if it is gone, has ended without being waited for, or nobody tells."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
