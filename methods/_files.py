"""Hashes of files that a field names, so that another content is another edit."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path


def file_hash(path: Path) -> str:
    """SHA-256 of the content, in hex. It is read again only where size or time of change are others."""
    status = path.stat()
    return _hashed(str(path.resolve()), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _hashed(path: str, size: int, modified: int) -> str:
    # planning makes the method many times over; a file of gigabytes is read once
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
