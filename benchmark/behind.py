"""Work that is done behind the scenes while the next of it is prepared: one thread, one thing at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self, final


@final
class Behind:
    """Does what it is given in order, one at a time; whoever gives it the next waits for the last.

    So at most one batch is held besides the one that is made, however fast they come. What fails there is raised here,
    when the next is given or the block ends. When the block ends with an error, that one is raised, after what was
    under way has ended.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="behind")
        self._last: Future[None] | None = None

    def do(self, work: Callable[[], None]) -> None:
        """Have this done, once the last is."""
        self.wait()
        self._last = self._thread.submit(work)

    def wait(self) -> None:
        """Until the last is done; raises what it raised."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._thread.shutdown()
