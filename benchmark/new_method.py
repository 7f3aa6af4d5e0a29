"""A working method to start from, and its test: `erasure-bench new-method`. No torch."""

from __future__ import annotations

import keyword
from pathlib import Path

from benchmark import atomic, registry
from benchmark.errors import BadInput


def write(name: str, folder: Path) -> tuple[Path, Path]:
    """Write `NAME.py` and `test_NAME.py` into the folder, which is made if need be, and return both paths.

    BadInput for a name that is taken or cannot be one, and for files that are there already.
    """
    _check_name(name)
    files = {folder / f"{name}.py": _METHOD, folder / f"test_{name}.py": _TEST}
    for path in files:
        if path.exists():
            raise BadInput(f"--dir: {path} is there already, and nothing is overwritten; name another method or folder")
    for path, text in files.items():
        atomic.write(path, text.replace("NAME", name).replace("Class_", class_name(name)))
    method, test = files
    return method, test


def class_name(name: str) -> str:
    """`my_method` → `MyMethod`."""
    return "".join(part.capitalize() for part in name.split("_"))


def _check_name(name: str) -> None:
    if not name.isidentifier() or name != name.lower() or name.startswith(("_", "test_")) or keyword.iskeyword(name):
        raise BadInput(f"expected a name of lower-case letters, digits and _, such as my_method; got {name!r}")
    if name in registry.method_names():
        raise BadInput(f"there is a method {name!r} already; `erasure-bench list` shows all")


_METHOD = '''"""Class_: what it does, in one line. Authors, venue year.

The formula that it minimises or solves, in the paper's letters. This one, to start from: every projection W that reads
text loses the direction e of the erased name, as far as it is not the anchor's:

    W' = W − s (W e) eᵀ / ‖e‖²,   e = embedding(name) − embedding(anchor) at the last content token
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from benchmark.errors import BadInput
from benchmark.interface import Edit, Family, Method, Request

if TYPE_CHECKING:
    from torch import Tensor

    from benchmark.backbones.base import Backbone, Projection


@final
@dataclass(frozen=True, kw_only=True)
class Class_(Method):
    """Fields are the hyperparameters; their defaults are the paper's."""

    name: ClassVar[str] = "NAME"
    version: ClassVar[int] = 1  # raise it whenever the same fields give another edit
    role: ClassVar[Literal["baseline", "erasure", "control"]] = "erasure"
    paper: ClassVar[str] = "arXiv:0000.00000"
    families: ClassVar[frozenset[Family]] = frozenset({"unet-epsilon", "transformer-flow"})
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({"half": {"strength": 0.5}})
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({})  # such as {"iterations": 3}, where it trains

    strength: float = 1.0
    """s of the formula; 1 takes the direction out altogether."""

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise BadInput(f"NAME: strength must be above 0 and at most 1, got {self.strength!r}")

    def edit(self, backbone: Backbone, request: Request) -> Edit:
        if not request.erase:
            return Edit()
        return Edit(weights={p.name: self._edited(backbone, p, request) for p in backbone.projections()})

    def _edited(self, backbone: Backbone, projection: Projection, request: Request) -> Tensor:
        w = projection.weight.detach().float()
        for target in request.erase:
            e = _read(backbone, projection, target.name) - _read(backbone, projection, target.anchor)
            w = w - self.strength * (w @ e).outer(e) / e.square().sum().clamp(min=1e-12)
        return w.to(projection.weight)


def _read(backbone: Backbone, projection: Projection, prompt: str) -> Tensor:
    """What the projection reads of a prompt, `(dim,)`: the pooled vector, or the last content token."""
    text = backbone.embed([prompt])
    if projection.role == "pooled" and text.pooled is not None:
        return text.pooled[0].detach().float()
    return text.tokens[0, text.last[0]].detach().float()
'''

_TEST = '''"""NAME keeps the harness's rules, and does what it claims."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmark import conformance, registry
from benchmark.backbones.random_models import random_unet
from benchmark.interface import Request, Target

METHOD = f"{Path(__file__).with_name('NAME.py')}:Class_"


def test_it_keeps_the_rules() -> None:
    report = conformance.check(METHOD)
    assert report.ok, "\\n".join(report.lines())


def test_the_name_reads_like_its_anchor() -> None:
    """The paper's claim, in numbers: here, that a projection no longer tells the name from the anchor."""
    backbone = random_unet()
    method = registry.build("NAME", registry.find(METHOD), {})
    edit = method.edit(backbone, Request(erase=(Target(name="cat", anchor="animal"),)))
    cat, animal = (text.tokens[0, text.last[0]] for text in map(backbone.embed, (["cat"], ["animal"])))
    for projection in backbone.projections():
        w = edit.weights[projection.name]
        torch.testing.assert_close(w @ cat, w @ animal, rtol=1e-4, atol=1e-5)
'''
