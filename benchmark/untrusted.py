"""Files from strangers read within bounds: no file without end, no nesting without end, no name that is a path.

What is wrong raises ValueError, for the caller knows what was expected and says it; `read_bytes` raises BadInput.
"""

from __future__ import annotations

import io
import json
import math
import stat
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from benchmark.errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TEXT = 16 * 2**20
"""Bytes of a declaration: the longest of ours has some ten thousand."""
DATA = 2**30
"""Bytes of a record, a baseline, a ledger or a table of prompts."""
DEPTH = 64
"""Levels of nesting."""
_DIGITS = 20  # of 64 bits


def read_bytes(path: Path, most: int = DATA) -> bytes:
    """The bytes of a regular file. BadInput if it is none, if it has more than `most`, or if it cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for whoever writes to it
            raise BadInput(f"cannot read {path}: expected a file, found something else")
        with path.open("rb") as file:
            content = file.read(most + 1)
    except ValueError as error:  # a null byte in its name
        raise BadInput(f"cannot read {path}: {error}") from None
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}") from None
    if len(content) > most:
        raise BadInput(f"{path}: more than {most:,} bytes; this is none of ours")
    return content


def gunzip(content: bytes, most: int = DATA) -> bytes:
    """What gzip packed; ValueError if it is not whole, has something behind it, or would be more than `most` bytes."""
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        found = unpacker.decompress(content, most + 1)
    except zlib.error as error:
        raise ValueError(f"not what gzip writes: {error}") from None
    if len(found) > most:
        raise ValueError(f"more than {most:,} bytes unpacked; this is none of ours")
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError("not one whole gzip file")
    return found


# --- JSON -------------------------------------------------------------------------------------------------------------
def parse_json(content: bytes | str) -> Any:
    """JSON as this project writes it, UTF-8.

    ValueError for anything else, and for what JSON does not have or nobody means: NaN and infinity, whole numbers
    beyond 64 bits, one key twice, half a character, more than `DEPTH` levels.
    """
    text = content if isinstance(content, str) else content.decode("utf-8")
    try:
        value = json.loads(
            text, parse_constant=_no_constant, parse_float=_finite, parse_int=_whole, object_pairs_hook=_once
        )
        _shallow(value, DEPTH)
    except RecursionError:
        raise ValueError(f"more than {DEPTH} levels of nesting") from None
    if "\\u" in text:
        encodable(json.dumps(value, ensure_ascii=False))
    return value


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {_short(text)} is too large")
    return value


def _whole(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"the number {_short(text)} has more than 64 bits")
    return int(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {_short(next(n for n in names if names.count(n) > 1))} is there twice")
    return found


def _shallow(value: Any, left: int) -> None:
    if not left:
        raise ValueError(f"more than {DEPTH} levels of nesting")
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(child, dict | list):
            _shallow(child, left - 1)


def _short(text: str) -> str:
    return ascii(text if len(text) <= 40 else f"{text[:37]}...")


def encodable(text: str) -> str:
    """The text; ValueError if it holds half a character (a lone surrogate), which no file could hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"half a character: {ascii(text[error.start])}") from None
    return text


# --- names ------------------------------------------------------------------------------------------------------------
def plain_name(text: str) -> str:
    """The text; ValueError unless it is one name of a file or folder: no path, nothing that cannot be printed."""
    if text in ("", ".", "..") or not text.isprintable() or any(c in text for c in "/\\\0") or text[1:2] == ":":
        raise ValueError(f"expected a name, not a path: {_short(text)}")
    return text


def inside(root: Path, path: Path) -> bool:
    """Whether a path stays in the folder, whatever `..` and links it goes by."""
    return path.resolve().is_relative_to(root.resolve())


# --- arrays -----------------------------------------------------------------------------------------------------------
def images(content: bytes) -> NDArray[np.uint8]:
    """The images `(n, h, w, 3)` of an `.npy`, uint8.

    ValueError unless the header says just what the bytes are: numpy would make room for whatever it claims first.
    """
    import numpy as np
    from numpy.lib import format as npy

    stream = io.BytesIO(content)
    try:
        if npy.read_magic(stream) != (1, 0):  # what np.save writes
            raise ValueError("expected version 1.0 of the format")
        shape, fortran, dtype = npy.read_array_header_1_0(stream)
    except Exception as error:  # numpy lets through what Python's own reader of literals makes of the header
        raise ValueError(f"not an .npy file: {' '.join(str(error).split())[:200]}") from None
    left = len(content) - stream.tell()
    if (
        min(shape, default=0) < 0
        or dtype != np.uint8
        or len(shape) != 4
        or shape[3] != 3
        or fortran
        or math.prod(shape) != left
    ):
        raise ValueError(f"expected images (n, h, w, 3) of uint8 in {left} bytes, found {dtype} {shape}")
    return np.frombuffer(content, np.uint8, left, stream.tell()).reshape(shape).copy()


def arrays(content: bytes, rows: int | None = None) -> dict[str, NDArray[Any]]:
    """The arrays of a `.safetensors`, by name; ValueError for other bytes, or for arrays that have not `rows` rows."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        found = dict(load(content))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not safetensors: {' '.join(str(error).split())}") from None
    for name, values in found.items():
        if rows is not None and values.shape[:1] != (rows,):
            raise ValueError(f"{_short(name)} has the shape {values.shape}, expected {rows} rows")
    return found
