"""Control: a prompt that holds an erased name is replaced. What any erasure of weights must beat on other wordings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, final

from benchmark.errors import BadInput
from benchmark.interface import Edit, Family, Method, PromptRule, Request
from methods._fields import Replacement, one_of

if TYPE_CHECKING:
    from benchmark.backbones.base import Backbone


@final
@dataclass(frozen=True, kw_only=True)
class Blocklist(Method):
    """Whole words, any case. By default it reads the names only, not the synonyms that papers test on."""

    name: ClassVar[str] = "blocklist"
    version: ClassVar[int] = 1
    role: ClassVar[Literal["baseline", "erasure", "control"]] = "control"
    paper: ClassVar[str] = ""
    families: ClassVar[frozenset[Family]] = frozenset({"unet-epsilon", "transformer-flow"})

    synonyms: bool = False
    replacement: Replacement = "empty"
    """The prompt that stands in: the empty one, or the anchor, which all erased concepts must then share."""

    def __post_init__(self) -> None:
        one_of(self, "replacement", Replacement)

    def edit(self, backbone: Backbone, request: Request) -> Edit:
        if not request.erase:
            return Edit()
        words = [w for t in request.erase for w in (t.name, *(t.synonyms if self.synonyms else ()))]
        return Edit(prompts=PromptRule(words=tuple(dict.fromkeys(words)), replacement=self._replacement(request)))

    def _replacement(self, request: Request) -> str:
        if self.replacement == "empty":
            return ""
        anchors = sorted({t.anchor for t in request.erase})
        if len(anchors) > 1:
            raise BadInput(
                f"blocklist replaces all erased names by one prompt, but their anchors are {anchors}; "
                "erase concepts of one anchor, or set replacement=empty"
            )
        return anchors[0]
