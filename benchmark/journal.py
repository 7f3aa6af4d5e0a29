"""The journal of an edit, in a store: what is done of it, kept now and then until the edit itself is there.

A part of it is an artifact like any other, `(JOURNALS, edit key, name@steps)`: `state.json` with the tensors beside it.
Whatever parts are there, the edit comes out the same: each was written with the counts of work up to it, and without a
part its work is done again.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar, final

from benchmark import memory, states
from benchmark.backbones import journal as journals
from benchmark.backbones.base import Backbone, Counts
from benchmark.errors import BenchError, Damaged
from benchmark.interface import Cost
from benchmark.keys import JOURNALS, canonical
from benchmark.store import Store
from benchmark.untrusted import parse_json

T = TypeVar("T")
EVERY_S = 20.0
"""Seconds between two writes, at least."""
SHARE = 0.02
"""Of the time, that writes may take; before the first, at `_RATE` bytes a second."""
_RATE = 2e8
_STATE = "state.json"
_SCHEMA = 1


class Unfit(Damaged):
    """A part of a journal that its method cannot go on from; it was set aside, so the edit can be made again."""


@dataclass(frozen=True)
class Part:
    """What was done under one name."""

    steps: int
    state: states.State
    cost: Cost
    """Of the edit up to here, all processes together."""


@final
class StoreJournal(journals.Journal):
    """Of one edit, for whoever has the claim on it.

    What cannot be written is said, once, and the edit goes on without. What is damaged, or of another edit or other
    code, is named and set aside, and its work done again.
    """

    def __init__(
        self,
        store: Store,
        key: str,
        *,
        code: str,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`code` names what makes the edit: a part that other code has made is not gone on from."""
        self._store, self._key, self._say, self._clock = store, key, say, clock
        self._about = {"schema": _SCHEMA, "edit": key, "code": code}
        self._counts, self._device = Counts(), "cpu"
        self._earlier = Cost()
        self._begun = self._last = clock()
        self._next = self._last + EVERY_S
        self._waiting: dict[str, Part] = {}  # done, and not written
        self._inside = ""
        self._asked: set[str] = set()
        self._failed = False

    @contextmanager
    def of(self, backbone: Backbone, counts: Counts) -> Iterator[None]:
        """In this block the backbone has this journal; `counts` are the running ones of the edit."""
        self._counts, self._device = counts, str(backbone.device)
        self._begun = self._clock()
        backbone.journal = self
        try:
            yield
        finally:
            backbone.journal = journals.NONE

    @property
    def earlier(self) -> Cost:
        """What earlier processes took to come to where this one went on: seconds and peak memory."""
        return self._earlier

    # --- what methods ask -------------------------------------------------------------------------------------
    def once(self, name: str, make: Callable[[], T]) -> T:
        """See the base."""
        full = self._named(name)
        found = self._found(full)
        if found is not None:
            self._reached(found)
            state: T = found.state
            return state
        outside, self._inside = self._inside, f"{full}."
        try:
            value = make()
        finally:
            self._inside = outside
        self._waiting[full] = self._part(1, value)
        self._drop_inside(full)
        if self._due(self._waiting):
            self._write(self._waiting)
        return value

    def resume(self, name: str, held: Any) -> int | None:
        """See the base. Unfit for a state that is not one of what is held."""
        full = self._named(name)
        found = self._found(full)
        if found is None:
            return None
        try:
            states.restore(held, found.state)
        except Exception as error:  # torch raises several kinds
            self._refuse(full, found.steps, f"it does not fit: {' '.join(str(error).split())}")
        self._reached(found)
        return found.steps

    def done(self, name: str, steps: int, held: Any, *, hold: bool = False) -> None:
        """See the base."""
        due = self._clock() >= self._next
        if not (due or hold):
            return
        full = f"{self._inside}{name}"
        part = self._part(steps, states.state_of(held))
        self._drop_inside(full)
        if due and self._due({**self._waiting, full: part}):
            self._write({**self._waiting, full: part})
        elif hold:
            self._waiting[full] = Part(part.steps, states.copied(part.state), part.cost)

    # --- names ------------------------------------------------------------------------------------------------
    def _named(self, name: str) -> str:
        full = f"{self._inside}{name}"
        if full in self._asked or "@" in name:
            raise ValueError(f"a journal's names are unique within an edit, and without @; {full!r} is not")
        self._asked.add(full)
        return full

    def _address(self, full: str, steps: int) -> tuple[str, str, str]:
        return JOURNALS, self._key, f"{full}@{steps}"

    def _there(self) -> Iterator[tuple[str, int]]:
        for name in self._store.children(JOURNALS, self._key):
            full, _, steps = name.rpartition("@")
            if steps.isdecimal():
                yield full, int(steps)

    def _drop_inside(self, full: str) -> None:
        for name in [n for n in self._waiting if n.startswith(f"{full}.")]:
            del self._waiting[name]

    # --- reading ----------------------------------------------------------------------------------------------
    def _found(self, full: str) -> Part | None:
        for steps in sorted((steps for name, steps in self._there() if name == full), reverse=True):
            with suppress(KeyError):  # it has just gone
                try:
                    return self._read(full, steps)
                except Unfit as error:
                    self._say(f"{error}; what it stood for is done again")
        return None

    def _read(self, full: str, steps: int) -> Part:
        address = self._address(full, steps)
        try:
            files = self._store.get(*address)
            document = parse_json(files.pop(_STATE))
        except Damaged as error:
            raise Unfit(str(error)) from error
        except (KeyError, ValueError) as error:
            if not self._store.has(*address):
                raise KeyError(address) from None
            self._refuse(full, steps, f"{_STATE} cannot be read ({error})")
        if not isinstance(document, dict) or {**document, **self._about} != document:
            self._refuse(full, steps, "it is of another edit, or of other code")
        try:
            state = states.unpack(document["state"], states.tensors_of(files), self._device)
            return Part(steps, state, Cost(**document["cost"]))
        except Exception as error:  # safetensors raises several kinds of its own
            self._refuse(full, steps, f"it cannot be read ({error})")

    def _refuse(self, full: str, steps: int, why: str) -> NoReturn:
        try:
            self._store.set_aside(*self._address(full, steps), why=why)
        except Damaged as error:
            raise Unfit(str(error)) from error

    def _reached(self, part: Part) -> None:
        """The edit now stands where this part ended: with its counts, whatever was done to come here again."""
        for name in asdict(self._counts):
            setattr(self._counts, name, getattr(part.cost, name))
        self._earlier = part.cost

    # --- writing ----------------------------------------------------------------------------------------------
    def _part(self, steps: int, state: states.State) -> Part:
        seconds = self._earlier.seconds + self._clock() - self._begun
        peak = max(self._earlier.peak_bytes, memory.peak())
        return Part(steps, state, Cost(seconds=round(seconds, 3), peak_bytes=peak, **asdict(self._counts)))

    def _due(self, parts: Mapping[str, Part]) -> bool:
        """Whether it is time to write these: by the clock, and by how long that will take."""
        if self._clock() < self._next:
            return False
        size = sum(t.nbytes for part in parts.values() for t in states.pack(part.state)[1])
        self._next = max(self._next, self._last + size / _RATE / SHARE)
        return self._clock() >= self._next

    def _write(self, parts: Mapping[str, Part]) -> None:
        begun = self._clock()
        try:
            for full, part in parts.items():
                self._put(full, part)
            self._waiting.clear()
        except Exception as error:
            if not (isinstance(error, BenchError | OSError) or memory.exhausted(error)):
                raise
            if not self._failed:
                self._say(f"what is done of the edit cannot be kept, which goes on all the same: {error}")
            self._failed = True
        self._last = self._clock()
        self._next = self._last + max(EVERY_S, (self._last - begun) / SHARE)

    def _put(self, full: str, part: Part) -> None:
        state, tensors = states.pack(part.state)
        document = {**self._about, "cost": asdict(part.cost), "state": state}
        files = _Files(canonical(document).encode(), states.TensorFiles(tensors))
        self._store.put(*self._address(full, part.steps), files=files)
        for name, steps in list(self._there()):
            if name.startswith(f"{full}.") or (name == full and steps != part.steps):
                self._store.remove(*self._address(name, steps))


@final
class _Files(Mapping[str, bytes]):
    """`state.json` and the files of tensors."""

    def __init__(self, state: bytes, tensors: states.TensorFiles) -> None:
        self._state, self._tensors = state, tensors

    def __getitem__(self, name: str) -> bytes:
        return self._state if name == _STATE else self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        yield _STATE
        yield from self._tensors

    def __len__(self) -> int:
        return 1 + len(self._tensors)


@cache
def code_of(method: type) -> str:
    """Of the sources that an edit's bits may come from: the method's file with those beside it, and the backbones'.

    "" where the method has no file.
    """
    try:
        own = Path(inspect.getfile(method))
    except (OSError, TypeError):
        return ""
    files = sorted(own.parent.glob("*.py")) if (own.parent / "__init__.py").is_file() else [own]
    harness = sorted(Path(journals.__file__).parent.glob("*.py"))
    hashes = [[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in (*files, *harness)]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
