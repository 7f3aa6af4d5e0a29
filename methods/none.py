"""No erasure: the unedited model, which every other row is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, final

from benchmark.interface import Edit, Family, Method, Request

if TYPE_CHECKING:
    from benchmark.backbones.base import Backbone


@final
@dataclass(frozen=True, kw_only=True)
class NoErasure(Method):
    """The empty edit."""

    name: ClassVar[str] = "none"
    version: ClassVar[int] = 1
    role: ClassVar[Literal["baseline", "erasure", "control"]] = "baseline"
    paper: ClassVar[str] = ""
    families: ClassVar[frozenset[Family]] = frozenset({"unet-epsilon", "transformer-flow"})

    def edit(self, backbone: Backbone, request: Request) -> Edit:
        return Edit()
