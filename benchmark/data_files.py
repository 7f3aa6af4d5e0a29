"""Where files that datasets need and we may not ship are looked for, and whether they are the ones meant. No network.

In order: the path that is given; the file's own environment variable; `$ERASURE_BENCH_DATA/<dataset>/<file>`; the
user's cache, where `fetch` puts what is on no hub; the hub's cache, at the revision that the card pins.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from benchmark import atomic, data, paths
from benchmark.data import DataFile
from benchmark.errors import BadInput, Damaged, Missing
from benchmark.untrusted import read_bytes

ENVIRONMENT = "ERASURE_BENCH_DATA"
"""Names a folder with one folder per dataset."""
MANIFEST = "SHA256SUMS"
"""Checksums beside files, as `sha256sum` writes them."""


@dataclass(frozen=True)
class Wanted:
    """One file of a dataset."""

    dataset: str
    file: DataFile

    @property
    def name(self) -> str:
        """As it is called in messages: `i2p/prompts`."""
        return f"{self.dataset}/{self.file.name}"

    @property
    def fetchable(self) -> bool:
        """Whether one request gets it."""
        return not self.file.by_hand

    @property
    def source(self) -> str:
        """Where it comes from, in words."""
        hub = f"{self.file.hub} (dataset on the hub) at revision {self.file.revision}"
        return hub if self.file.hub else self.file.url


def wanted(dataset: str, file: str) -> Wanted:
    """A dataset's file by name; `BadInput` if there is no such dataset or file."""
    return Wanted(dataset, data.load(dataset).file(file))


def named_in(declaration: object) -> tuple[Wanted, ...]:
    """The files that a declaration (a suite's form, dumped) asks for, each once, in order of name.

    Every mapping with a key `dataset` counts: with a key `file` beside it, that file; alone, what the dataset cannot
    be used without.
    """
    found: dict[str, Wanted] = {}
    for dataset, file in _mentioned(declaration):
        for one in _of(dataset, file):
            found[one.name] = one
    return tuple(found[name] for name in sorted(found))


def _mentioned(value: object) -> Iterator[tuple[str, str | None]]:
    if isinstance(value, Mapping):
        if isinstance(dataset := value.get("dataset"), str):
            yield dataset, value.get("file")
        for inner in value.values():
            yield from _mentioned(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _mentioned(inner)


def _of(dataset: str, file: str | None) -> tuple[Wanted, ...]:
    if file is not None:
        return (wanted(dataset, file),)
    return tuple(Wanted(dataset, f) for f in data.load(dataset).card.files if not f.optional)


# --- where they are ---------------------------------------------------------------------------------------------------
def find(what: Wanted, path: Path | None = None) -> Path:
    """The file or folder on this machine.

    `Missing` says what it is, where it was looked for and how to get it; `Damaged`, that it is there with other bytes
    than the card or a `SHA256SUMS` beside it promises; `BadInput`, that a path that was given leads nowhere.
    """
    for place in candidates(what, path):
        if place.is_dir() if what.file.kind == "images" else place.is_file():
            _check(place, what.file)
            return place
    if path is not None:
        kind = "folder of images" if what.file.kind == "images" else "file"
        raise BadInput(f"{what.name}: no {kind} {path}")
    raise Missing(_missing_text(what))


def candidates(what: Wanted, path: Path | None = None) -> list[Path]:
    """Places where it is looked for, in order. A path or a variable of its own leaves no other: both are meant."""
    if path is not None:
        return [path.expanduser()]
    if own := _own(what.file):
        return [Path(own).expanduser()]
    places = [base / what.dataset / what.file.file for base in _bases()]
    cached = _in_hub_cache(what.file) if what.file.hub else None
    return places + ([cached] if cached else [])


def _own(file: DataFile) -> str | None:
    return os.environ.get(file.env) if file.env else None


def home(what: Wanted) -> Path:
    """Where `fetch` puts it if it is on no hub."""
    return _bases()[0] / what.dataset / what.file.file


def _bases() -> list[Path]:
    own = os.environ.get(ENVIRONMENT)
    return ([Path(own).expanduser()] if own else []) + [paths.user_cache() / "data"]


def _in_hub_cache(file: DataFile) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        file.hub, file.file, cache_dir=paths.hub_cache(), revision=file.revision, repo_type="dataset"
    )
    return Path(found) if isinstance(found, str) else None


def missing(what: Wanted) -> dict[str, Any] | None:
    """What to get: `what`, `where`, `size` in bytes or None, `licence`; None if it is there. `Damaged` as `find`."""
    try:
        find(what)
    except Missing:
        where, licence = _where(what), what.file.licence
        return {"what": f"{what.name} from {what.source}", "where": where, "size": what.file.size, "licence": licence}
    return None


def _where(what: Wanted) -> str:
    if own := _own(what.file):
        return f"${what.file.env} ({own})"
    places = [f"${what.file.env} (not set)"] if what.file.env else []
    if not os.environ.get(ENVIRONMENT):
        places.append(f"${ENVIRONMENT}/{what.dataset}/{what.file.file} (not set)")
    places += [str(base / what.dataset / what.file.file) for base in _bases()]
    if what.file.hub:
        places.append(f"the hub cache {paths.hub_cache() / ('datasets--' + what.file.hub.replace('/', '--'))}")
    return ", ".join(places)


def _missing_text(what: Wanted) -> str:
    file = what.file
    size = "not recorded" if file.size is None else f"about {file.size / 1e6:.3g} MB"
    by_hand = file.by_hand or f"download it to {home(what)}"
    own = f" or set {file.env} to where it is" if file.env else ""
    return (
        f"no {what.name}: looked in {_where(what)}. It is {file.file} from {what.source}; "
        f"size {size}, licence {file.licence}, SHA-256 {file.sha256 or 'not recorded'}. To get it: {by_hand}{own}."
    )


# --- whether they are the ones meant ----------------------------------------------------------------------------------
def check(path: Path, expected: str) -> None:
    """`Damaged` unless the file's SHA-256 is the expected one, 64 lower-case hexadecimal digits."""
    if (found := sha256(path)) != expected:
        raise Damaged(f"{path}: SHA-256 is {found}, expected {expected}; get the file again, or find who changed it")


def _check(path: Path, file: DataFile) -> None:
    if file.kind == "images":
        return  # tens of thousands of files: `doctor --suite` checks them, by `image_folders.verify`
    if file.sha256:
        check(path, file.sha256)
    elif (beside := path.with_name(MANIFEST)).is_file() and (promised := manifest(beside).get(path.name)):
        check(path, promised)


def sha256(path: Path) -> str:
    """SHA-256 of a file, 64 lower-case hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest(path: Path) -> dict[str, str]:
    """Relative path to SHA-256 of a `SHA256SUMS`; `BadInput` for another form or a path that leaves the folder."""
    found: dict[str, str] = {}
    try:
        lines = read_bytes(path).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        parts = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if not parts:
            raise BadInput(f"{path}, line {number}: expected 64 hexadecimal digits, two spaces and a path")
        name = PurePosixPath(parts[2])
        if name.is_absolute() or ".." in name.parts or str(name) in found:
            raise BadInput(f"{path}, line {number}: expected a path inside the folder, once; got {parts[2]!r}")
        found[str(name)] = parts[1]
    return found


def promise(path: Path) -> None:
    """Write a file's SHA-256 into the `SHA256SUMS` beside it, so that a later change is seen."""
    beside = path.with_name(MANIFEST)
    known = manifest(beside) if beside.is_file() else {}
    known[path.name] = sha256(path)
    atomic.write(beside, "".join(f"{digest}  {name}\n" for name, digest in sorted(known.items())))
