"""Control: every image is grey. It forgets perfectly and keeps nothing; a metric that it wins is flawed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, final

from benchmark.interface import Edit, Family, Method, Request

if TYPE_CHECKING:
    from benchmark.backbones.base import Backbone


@final
@dataclass(frozen=True, kw_only=True)
class Grey(Method):
    """Grey images, whatever is asked."""

    name: ClassVar[str] = "grey"
    version: ClassVar[int] = 1
    role: ClassVar[Literal["baseline", "erasure", "control"]] = "control"
    paper: ClassVar[str] = ""
    families: ClassVar[frozenset[Family]] = frozenset({"unet-epsilon", "transformer-flow"})

    def edit(self, backbone: Backbone, request: Request) -> Edit:
        return Edit(output="grey") if request.erase else Edit()
