"""What others made: a released or own checkpoint, LoRA or gate file is evaluated as the edit. No paper of its own.

The difference to the model at hand is the edit, whatever concepts are asked for. Every tensor of the file has to find
its place in the model, with its shape; what is left over, or lacking in a file that should be whole, is an error that
lists the names. Values that equal the model's own at the file's precision count as unchanged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from benchmark.errors import BadInput
from benchmark.interface import Edit, Family, Method, Request
from methods._fields import number, one_of
from methods._files import file_hash

if TYPE_CHECKING:
    from benchmark.backbones.base import Backbone

Format = Literal["auto", "diffusers", "unet", "partial", "lora", "spm", "cpe", "compvis", "edit"]

READ = frozenset({".safetensors", ".json", ".pt", ".pth", ".bin", ".ckpt"})
"""Suffixes of what is read in a folder, and hashed."""


@final
@dataclass(frozen=True, kw_only=True)
class Checkpoint(Method):
    """`path` must be given. The file stands for the answer to any request: it is never applied concept by concept."""

    name: ClassVar[str] = "checkpoint"
    version: ClassVar[int] = 1
    role: ClassVar[Literal["baseline", "erasure", "control"]] = "erasure"
    paper: ClassVar[str] = ""
    families: ClassVar[frozenset[Family]] = frozenset({"unet-epsilon", "transformer-flow"})
    sequential: ClassVar[bool] = False
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})

    path: str = ""
    """A file or a folder."""
    format: Format = "auto"
    """What it holds; `auto` looks.

    `diffusers`: a pipeline's folder (denoiser and text encoders), or that of its denoiser alone; whole.
    `unet`: a whole denoiser's tensors under diffusers' names, such as UCE's first releases.
    `partial`: some of them, such as the releases of ESD and UCE for diffusers.
    `lora`: low-rank factors as diffusers, peft or kohya's scripts name them; merged.
    `spm`: one-dimensional membranes of SPM, merged at full strength for every prompt: an approximation, for SPM scales
    them by how near the prompt is to the concept. It erases at least as much, and is never chosen by `auto`.
    `cpe`: gates of CPE's release, one file, or a folder of `*_last.safetensors`, one a concept.
    `compvis`: a whole Stable Diffusion checkpoint under CompVis's names.
    `edit`: this harness's own `edit.safetensors` and `edit.json`, or a folder that `erasure-bench erase` wrote."""
    scale: float = 1.0
    """Strength at which low-rank factors are merged."""
    allow_pickle: bool = False
    """Read `.pt`, `.pth`, `.bin` and `.ckpt`: tensors only, nothing in them is executed."""
    ignore: str = ""
    """Names that may be left over: shell patterns with commas between, such as `*.lora_layer.*`."""
    sha256: str = ""
    """Of the content. Found when left out, so that another content is another edit; checked when given."""

    def __post_init__(self) -> None:
        one_of(self, "format", Format)
        number(self, "scale", above=True)
        if self.path:
            object.__setattr__(self, "sha256", self._checked(content_hash(Path(self.path).expanduser())))

    def _checked(self, found: str) -> str:
        if self.sha256 not in ("", found):
            raise BadInput(f"checkpoint: {self.path} should have sha256 {self.sha256}, but has {found}; get it again")
        return found

    def edit(self, backbone: Backbone, request: Request) -> Edit:
        from methods._checkpoint import read

        if not request.erase:
            return Edit()
        if not self.path:
            raise BadInput(
                "checkpoint: path must be given: the file or folder to evaluate, such as path=mine.safetensors"
            )
        return read(backbone, self)


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of all that is read in a folder with the names; `BadInput` if it is not there."""
    if not path.exists():
        raise BadInput(f"checkpoint: expected a file or folder at path, and there is no {path}")
    if path.is_file():
        return file_hash(path)
    digest = hashlib.sha256()
    for file in files_in(path):
        digest.update(f"{file.relative_to(path).as_posix()} {file_hash(file)}\n".encode())
    return digest.hexdigest()


def files_in(folder: Path) -> Iterator[Path]:
    """All that may be read, in order of name. `BadInput` for a link that leads out of the folder.

    The hub's cache holds links, from a snapshot's folder to the blobs of the same repository: these are followed.
    """
    root = folder.resolve()
    home = root.parent.parent if root.parent.name == "snapshots" else root
    for path in sorted(folder.rglob("*")):
        if path.suffix in READ and path.is_file():
            if not path.resolve().is_relative_to(home):
                raise BadInput(f"checkpoint: {path} leads out of {folder}; copy the file into it")
            yield path
