"""Whose face it is: distances of face embeddings to a gallery of known people. Arrays in, arrays out; no torch.

Raw outputs of a face judge, one row an image: `faces` `(n,)` how many were detected, `face_score` `(n,)` and `face_box`
`(n, 4)` (x0, y0, x1, y1) of the first, `face` `(n, dim)` its embedding; zeros where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import BadInput, did_you_mean

Array = NDArray[Any]
Floats = NDArray[np.float64]
CERTAIN = 0.9
"""Least score of a face that counts. Harness default: MTCNN's own least is 0.7, and then textures pass for faces."""


@dataclass(frozen=True)
class Gallery:
    """Embeddings of known people."""

    names: tuple[str, ...]
    embeddings: Floats
    """`(m, dim)`"""
    owners: NDArray[np.int64]
    """`(m,)`: whose each is, an index into `names`."""
    faceless: tuple[str, ...] = ()
    """People who were asked for and of whom no image shows a face: nobody can be told to be one of them."""


def has_face(raw: Mapping[str, Array]) -> NDArray[np.bool_]:
    """Where a face was detected with a score of at least `CERTAIN`."""
    found: NDArray[np.bool_] = (raw["faces"] > 0) & (raw["face_score"] >= CERTAIN)
    return found


def gallery(raw: Mapping[str, Array], people: Sequence[str]) -> Gallery:
    """The gallery from raw outputs of images of known people, "" for nobody; images without a face are left out.

    BadInput if a person has no image with a face.
    """
    found = gallery_of_model(raw, people)
    if found.faceless or not found.names:
        whose = f" of {found.faceless[0]!r}" if found.faceless else ""
        raise BadInput(f"no gallery: none of the images{whose} shows a face; give other images of that person")
    return found


def gallery_of_model(raw: Mapping[str, Array], people: Sequence[str]) -> Gallery:
    """The same from images that a model made: whom it never draws with a face is told apart, not refused.

    What was drawn is a finding about the model; a run of hours does not end for it.
    """
    asked = sorted({p for p in people if p})
    keep = has_face(raw) & np.array([bool(p) for p in people], dtype=bool)
    seen = {p for p, k in zip(people, keep, strict=True) if k}
    names = tuple(p for p in asked if p in seen)
    owners = np.array([names.index(p) for p, k in zip(people, keep, strict=True) if k], dtype=np.int64)
    return Gallery(names, raw["face"][keep].astype(np.float64), owners, tuple(p for p in asked if p not in seen))


def distances(embeddings: Array, known: Gallery) -> Floats:
    """Euclidean distance `(n, people)` of embeddings to each person's mean embedding.

    An embedding that is in the gallery itself is left out of the mean it is compared with, so that the unedited model
    is judged on its own images without looking at the answer; where nothing is left the distance is infinite.
    """
    rows = embeddings.astype(np.float64)
    if not known.names:
        return np.zeros((len(rows), 0))
    sums = np.stack([known.embeddings[known.owners == p].sum(axis=0) for p in range(len(known.names))])
    sizes = np.bincount(known.owners, minlength=len(known.names)).astype(np.float64)
    means = sums / sizes[:, None]
    found = np.concatenate([_apart(rows[i : i + _CHUNK], means) for i in range(0, max(len(rows), 1), _CHUNK)])
    own: dict[bytes, list[int]] = {}
    for e, owner in zip(known.embeddings, known.owners, strict=True):
        own.setdefault(e.tobytes(), []).append(int(owner))
    for i, row in enumerate(rows):
        owners = own.get(row.tobytes(), [])
        for owner in set(owners):
            times = owners.count(owner)
            left = sizes[owner] - times
            mean = (sums[owner] - times * row) / left if left else np.full_like(row, np.inf)
            found[i, owner] = np.linalg.norm(row - mean)
    return found


_CHUNK = 64  # rows at a time: the differences of all rows to all people would take gigabytes


def _apart(rows: Floats, means: Floats) -> Floats:
    result: Floats = np.linalg.norm(rows[:, None, :] - means, axis=2)
    return result


def columns(people: Sequence[str], known: Gallery) -> NDArray[np.int64]:
    """The gallery's column of each person, -1 for one without a face in it; BadInput for one never asked for."""
    unknown = sorted({p for p in people if p not in known.names and p not in known.faceless})
    if unknown:
        raise BadInput(f"not in the gallery: {did_you_mean(unknown[0], known.names, 'person')}")
    places = {name: i for i, name in enumerate(known.names)}
    return np.array([places.get(p, -1) for p in people], dtype=np.int64)


def nearest(raw: Mapping[str, Array], people: Sequence[str], known: Gallery) -> Floats:
    """1.0 where the first face is nearest to the asked person, else 0.0; NaN where there is no face, or nobody knows
    what that person looks like.
    """
    asked = columns(people, known)
    if not known.names:
        return np.full(len(asked), np.nan)
    hit = distances(raw["face"], known).argmin(axis=1) == asked
    return np.where(has_face(raw) & (asked >= 0), hit.astype(np.float64), np.nan)


def within(raw: Mapping[str, Array], people: Sequence[str], known: Gallery, threshold: float) -> Floats:
    """1.0 where the first face is within `threshold` of the asked person, else 0.0; NaN as in `nearest`."""
    asked = columns(people, known)
    if not known.names:
        return np.full(len(asked), np.nan)
    near = distances(raw["face"], known)[np.arange(len(asked)), asked] <= threshold
    return np.where(has_face(raw) & (asked >= 0), near.astype(np.float64), np.nan)
