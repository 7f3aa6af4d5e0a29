"""The journal of an edit under way: what a method has done by now, so that a kill does not cost all of it.

A method that is started again runs its code from the top. What takes long goes through the journal of its backbone,
which gives back what an earlier process has done, in place of doing it::

    images = backbone.journal.once("images", lambda: walk(...))
    held = {"weights": leaves, "optimizer": adam, "losses": losses}
    for i in range(backbone.journal.resume("training", held) or 0, iterations):
        losses.append(step(i))
        backbone.journal.done("training", i + 1, held)

What stands between such calls is done again, so it must come out the same again, and `held` must name all that the
steps change: generators of random numbers too. Names are unique within an edit. A method that uses none of this works
all the same, and is made from its beginning each time.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, TypeVar, final

T = TypeVar("T")


class Resumable(abc.ABC):
    """Something with a state of its own, to be held in a journal."""

    @abc.abstractmethod
    def state(self) -> Any:
        """All that its future depends on: tensors, numbers, texts, None, and lists and dicts of these."""

    @abc.abstractmethod
    def load(self, state: Any) -> None:
        """Take the state, as `state` gave it, for one's own; tuples have become lists."""


class Journal(abc.ABC):
    """What of an edit is done. Names are made of letters, digits, `.`, `_` and `-`; those after a dot are inside."""

    @abc.abstractmethod
    def once(self, name: str, make: Callable[[], T]) -> T:
        """What `make` returns, or returned in an earlier process: tensors, numbers, texts, lists and dicts of these,
        which nobody changes later. Names that `make` uses are inside `name`, and forgotten when it is done."""

    @abc.abstractmethod
    def resume(self, name: str, held: Any) -> int | None:
        """Bring what is held to where an earlier process left it; how many steps were done, None if it left nothing.

        `held`: lists and dicts of tensors, optimizers, modules, generators, lists of numbers, `Resumable` and None.
        """

    @abc.abstractmethod
    def done(self, name: str, steps: int, held: Any, *, hold: bool = False) -> None:
        """So many steps are done; the state of what is held is kept if it is time, and what is inside `name` forgotten.

        `hold` where what is held will move on without `name`, after the last step of one loop of several: the state is
        then kept the next time that anything is.
        """


@final
class NoJournal(Journal):
    """Keeps nothing: for edits that no store stands behind."""

    def once(self, name: str, make: Callable[[], T]) -> T:
        """See the base."""
        return make()

    def resume(self, name: str, held: Any) -> int | None:
        """See the base."""
        return None

    def done(self, name: str, steps: int, held: Any, *, hold: bool = False) -> None:
        """See the base."""


NONE: Journal = NoJournal()
