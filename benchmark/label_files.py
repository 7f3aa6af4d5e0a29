"""Oxford Flowers' MATLAB files: the class of every image, and which images are for training. Numbers count from 1."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import BadInput
from benchmark.untrusted import read_bytes

MOST = 64 * 1024
"""Bytes: what they hold is packed by a thousand at most, so that a larger file could fill the memory."""
LABELS = ("labels",)
"""Variable of `imagelabels.mat`."""
SPLITS = ("trnid", "valid", "tstid")
"""Variables of `setid.mat`."""


def labels(path: Path) -> tuple[int, ...]:
    """The class of image 1, of image 2, and so on, from `imagelabels.mat`; BadInput if it is no such file."""
    return _read(path, LABELS)["labels"]


def splits(path: Path) -> dict[str, tuple[int, ...]]:
    """The numbers of the images for training, validation and test, from `setid.mat`; BadInput if it is no such file, or
    if an image is in two of them."""
    found = _read(path, SPLITS)
    every = [number for numbers in found.values() for number in numbers]
    if len(set(every)) < len(every):
        raise BadInput(f"{path}: an image is there twice in {', '.join(SPLITS)}; get the file again")
    return found


def _read(path: Path, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    content = _variables(path, read_bytes(path, MOST), names)
    if lacks := [name for name in names if name not in content]:
        raise BadInput(f"{path}: expected variables {', '.join(names)}, found no {lacks[0]}")
    return {name: _whole(path, name, content[name]) for name in names}


def _variables(path: Path, content: bytes, names: Sequence[str]) -> Mapping[str, object]:
    from scipy.io import loadmat

    source: Any = io.BytesIO(content)  # the stubs know of names of files alone
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a variable that is there twice
            return dict(loadmat(source, variable_names=list(names)))
    except Exception as error:  # of many kinds, by where the file is wrong
        raise BadInput(f"{path}: cannot be read as a MATLAB file (version 4 to 7.2): {error}") from None


def _whole(path: Path, name: str, values: object) -> tuple[int, ...]:
    """The numbers of one row, `(1, n)`."""
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iuf" or not _counts(values):
        found = f"{values.dtype} of shape {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
        raise BadInput(f"{path}: {name}: expected one row of whole numbers from 1, found {found}")
    return tuple(int(value) for value in values[0])


def _counts(values: NDArray[Any]) -> bool:
    row = values.ndim == 2 and values.shape[0] == 1 and values.size > 0
    return row and bool(((values >= 1) & (values < 2**31) & (values == np.floor(values))).all())
