"""Any command as a judge: image paths go in, one a line, and one JSON object a line comes out, in the same order.

For judges that need a Python or libraries of their own, such as MACE's celebrity detector. The judge's folder holds
`command.json`:

    {"command": ["python3.6", "judge.py"], "labels": ["Adam Driver", …], "timeout": 600, "memory": 8000000000}

`command` is run in that folder as it stands, without a shell. An answer is `{"label": …, "score": …}`; `"label": null`
says that there is nothing to name (no face, say), and `{"error": "…"}` that the image could not be judged. `timeout` is
in seconds for one batch of images, `memory` in bytes of address space; both may be left out (600 s, no limit).
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchmark.errors import BadInput
from benchmark.evaluators.batches import check
from benchmark.metrics.evaluators import Array, Evaluator
from benchmark.metrics.validity import blank

ERRORS = ("", "said so", "no answer", "timed out", "not the format", "unknown label")
"""Names of the codes in the raw output `error`."""
REASON = 160
"""Bytes of UTF-8 kept of each reason."""
Failure = Literal["said so", "no answer", "timed out", "not the format", "unknown label"]
# Sets the limit and becomes the command; a hook between fork and exec in this process may lock up under threads.
_LIMITED = (
    "import os, resource, sys; n = int(sys.argv[1]); "
    "resource.setrlimit(resource.RLIMIT_AS, (n, n)); os.execvp(sys.argv[2], sys.argv[2:])"
)


class Command(BaseModel):
    """`command.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    command: tuple[str, ...] = Field(min_length=1)
    labels: tuple[str, ...] = Field(min_length=1)
    timeout: float = Field(600, gt=0, allow_inf_nan=False)
    memory: int | None = Field(None, gt=0)


class Answer(NamedTuple):
    """What came back for one image."""

    label: int = -1
    score: float = 0.0
    failure: Failure | None = None
    reason: str = ""


@final
class ExternalEvaluator(Evaluator):
    """Raw outputs: `label` `(n,)` (index into `classes["label"]`, -1 where none), `score` `(n,)`, `error` `(n,)` (index
    into `ERRORS`), `reason` `(n, REASON)` (UTF-8 bytes, filled up with zeros; see `reasons`), `blank`.
    """

    def __init__(self, name: str, digest: str, folder: Path) -> None:
        self.id, self.hash, self.folder = name, digest, folder
        self.command = read(folder / "command.json")
        self.classes: Mapping[str, tuple[str, ...]] = {"label": self.command.labels}

    def raw(self, images: NDArray[np.uint8]) -> dict[str, Array]:
        """Answers for uint8 images `(n, h, w, 3)`, which the command sees as PNG files."""
        check(self.id, images)
        answers = self._ask(images) if len(images) else []
        reasons = np.zeros((len(images), REASON), np.uint8)
        for row, answer in zip(reasons, answers, strict=True):
            kept = answer.reason.encode("utf-8", "replace")[:REASON]
            row[: len(kept)] = np.frombuffer(kept, np.uint8)
        return {
            "label": np.array([a.label for a in answers], np.int32),
            "score": np.array([a.score for a in answers], np.float32),
            "error": np.array([ERRORS.index(a.failure or "") for a in answers], np.uint8),
            "reason": reasons,
            "blank": blank(images),
        }

    def _ask(self, images: NDArray[np.uint8]) -> list[Answer]:
        with tempfile.TemporaryDirectory(prefix="erasure-bench-") as folder:
            files = [Path(folder) / f"{i:06d}.png" for i in range(len(images))]
            for file, image in zip(files, images, strict=True):
                Image.fromarray(image).save(file)
            lines, rest = run(self.command, files, self.folder)
        if len(lines) > len(files):  # which line is of which image cannot be known
            return [Answer(failure="not the format", reason=f"{len(lines)} lines for {len(files)} images")] * len(files)
        return [parse(lines[i], self.command.labels) if i < len(lines) else rest for i in range(len(files))]


def reasons(raw: Mapping[str, Array]) -> list[str]:
    """For each image why it could not be judged, "" where it could: `timed out: after 600 s`."""
    texts = [bytes(row[row != 0].tolist()).decode("utf-8", "replace") for row in raw["reason"]]
    return [": ".join(filter(None, (ERRORS[e], t))) for e, t in zip(raw["error"], texts, strict=True)]


def read(path: Path) -> Command:
    """The command of a file; BadInput names the key that is wrong."""
    try:
        return Command.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"{path}: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}") from None


def run(command: Command, files: Sequence[Path], folder: Path) -> tuple[list[str], Answer]:
    """The lines that the command printed for these files, and the answer for every file that has no line."""
    limited = [sys.executable, "-I", "-c", _LIMITED, str(command.memory)] if command.memory else []
    try:
        process = subprocess.Popen(
            [*limited, *command.command],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # so that what it starts ends with it
        )
    except OSError as error:
        raise BadInput(f"cannot run {command.command[0]!r}: {error.strerror}; see command.json in {folder}") from None
    said, rest = _talk(process, command, "".join(f"{file}\n" for file in files))
    return [line for line in said.splitlines() if line.strip()], rest


def _talk(process: subprocess.Popen[str], command: Command, told: str) -> tuple[str, Answer]:
    try:
        said, complaints = process.communicate(told, timeout=command.timeout)
    except subprocess.TimeoutExpired:
        _end(process)
        said, _ = process.communicate()
        return said, Answer(failure="timed out", reason=f"after {command.timeout:g} s")
    except BaseException:
        _end(process)
        raise
    last = complaints.strip().splitlines()[-1:]
    return said, Answer(failure="no answer", reason="; ".join([f"exit status {process.returncode}", *last]))


def _end(process: subprocess.Popen[str]) -> None:
    """End the command and what it started; nothing if all of it is gone."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def parse(line: str, labels: Sequence[str]) -> Answer:
    """One line of output."""
    try:
        said = json.loads(line)
    except ValueError:
        return Answer(failure="not the format", reason=f"not JSON: {line}")
    if not isinstance(said, dict) or not ({"label", "error"} & said.keys()):
        return Answer(failure="not the format", reason=f"expected an object with label or error: {line}")
    if said.get("error"):
        return Answer(failure="said so", reason=str(said["error"]))
    label, score = said.get("label"), said.get("score", 1.0)
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        return Answer(failure="not the format", reason=f"expected score to be a finite number: {line}")
    if label is None:
        return Answer(score=float(score))
    if label not in labels:
        return Answer(failure="unknown label", reason=str(label))
    return Answer(labels.index(label), float(score))
