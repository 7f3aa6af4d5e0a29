"""A judge in processes of its own, beside the one that makes images: one session of its network in each.

An answer is the same whoever gives it: every process judges one image at a time with as many threads as this one would.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, final

import numpy as np
from numpy.typing import NDArray

from benchmark import device
from benchmark.errors import BenchError

Array = NDArray[np.uint8]
Judge = Callable[[Array], Any]
"""One image `(h, w, 3)` to a JSON value."""
MOST = 4
"""Processes at most (harness default): more would starve the one that feeds them."""
_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {module} import serve; serve(*sys.argv[2:])"


def spare() -> int:
    """How many processes the cores are enough for, besides this one's threads; 0 where there are none left."""
    known = getattr(os, "sched_getaffinity", None)
    cores = len(known(0)) if known else os.cpu_count() or 1
    return max(0, min(MOST, (cores - device.threads()) // device.threads()))


@final
class Processes:
    """Judges made by `module:function` from the arguments, each in its process; they end with this object."""

    def __init__(self, made_by: str, arguments: Sequence[str], number: int) -> None:
        self._children = [_Child(made_by, arguments) for _ in range(number)]
        self._threads = ThreadPoolExecutor(number, thread_name_prefix="judges")

    def ask(self, images: Array) -> list[Any]:
        """One answer an image `(n, h, w, 3)`, in order. BenchError if a process raises or dies."""
        parts = np.array_split(images, len(self._children))
        asked = [self._threads.submit(c.ask, part) for c, part in zip(self._children, parts, strict=True) if len(part)]
        return [answer for each in asked for answer in each.result()]


class _Child:
    """One process: images go in as their shape and bytes, a line of JSON comes out for each call."""

    def __init__(self, made_by: str, arguments: Sequence[str]) -> None:
        self._said = tempfile.TemporaryFile()
        path = json.dumps([p for p in sys.path if p])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _CHILD.format(module=__name__), path, made_by, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
        )
        self._end = weakref.finalize(self, _end, self._process, self._said)

    def ask(self, images: Array) -> list[Any]:
        into, out = self._process.stdin, self._process.stdout
        assert into is not None and out is not None
        try:
            into.write(framed(images))
            into.flush()
            line = out.readline()
        except OSError:  # it has gone
            line = b""
        if not line:
            raise BenchError(f"a judge's process has ended: {self._last() or 'it said nothing'}; run again")
        answer = json.loads(line)
        if isinstance(answer, dict):
            raise BenchError(f"a judge's process failed: {answer['error']}")
        return list(answer)

    def _last(self) -> str:
        self._process.wait(timeout=60)
        self._said.seek(0)
        return next(reversed(self._said.read().decode("utf-8", "replace").strip().splitlines()), "")


def _end(process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        try:
            if stream is not None:
                stream.close()  # a closed input ends it
        except OSError:
            pass
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    said.close()


def framed(images: Array) -> bytes:
    """Images as the process reads them: a line with their shape, then their bytes."""
    return json.dumps(images.shape).encode() + b"\n" + images.tobytes()


# --- in the process itself --------------------------------------------------------------------------------------------
def serve(made_by: str, *arguments: str) -> None:
    """Make the judge, then answer until the input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    module, _, name = made_by.partition(":")
    judge: Judge = getattr(importlib.import_module(module), name)(*arguments)
    answer(judge, sys.stdin.buffer, answers)


def answer(judge: Judge, asked: IO[bytes], answers: IO[bytes]) -> None:
    """A line of JSON for each array of images: the list of answers, or an object with the error."""
    while header := asked.readline():
        shape = json.loads(header)
        images = np.frombuffer(asked.read(math.prod(shape)), np.uint8).reshape(shape)
        try:
            said: Any = [judge(image) for image in images]
        except Exception as error:  # whatever it is, whoever asked is to hear of it
            said = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(said).encode() + b"\n")
        answers.flush()
