"""Control: weight noise, in every tensor as large as another method's change. Is that change more than damage?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, final

from benchmark.errors import BadInput
from benchmark.interface import Edit, Family, Method, Request

if TYPE_CHECKING:
    from benchmark.backbones.base import Backbone


@final
@dataclass(frozen=True, kw_only=True)
class Noise(Method):
    """Gaussian noise in the tensors that the other edit changes, with the same Frobenius norm in each."""

    name: ClassVar[str] = "noise"
    version: ClassVar[int] = 1
    role: ClassVar[Literal["baseline", "erasure", "control"]] = "control"
    paper: ClassVar[str] = ""
    families: ClassVar[frozenset[Family]] = frozenset({"unet-epsilon", "transformer-flow"})

    like: str = "uce"
    """The method, `name` or `name@variant`, whose edit's norms are copied."""

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.like,)

    def edit(self, backbone: Backbone, request: Request) -> Edit:
        from methods._noise import equal_norm

        if not request.erase:
            return Edit()
        if self.like not in request.given:
            given = sorted(request.given) or "no edit"
            raise BadInput(f"noise copies the norm of {self.like!r}, but was given {given}; make that edit first")
        weights = equal_norm(backbone.tensors(), request.given[self.like], request.seed)
        if not weights:
            raise BadInput(f"noise copies the norm of {self.like!r}, which changes no weights; choose another `like`")
        return Edit(weights=weights, notes={"like": self.like, "tensors": len(weights)})
