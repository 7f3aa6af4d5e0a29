"""Any command as a judge: image paths go in, one a line, and one JSON object a line comes out, in the same order.

For judges that need a Python or libraries of their own, such as MACE's celebrity detector. The judge's folder holds
`command.json`:

    {"command": ["python3.6", "judge.py"], "labels": ["Adam Driver", …], "timeout": 600, "memory": 8000000000}

`command` is run in that folder as it stands, without a shell, without core files, and without the environment variables
that hold tokens. An answer is `{"label": …, "score": …}`; `"label": null` says that there is nothing to name (no face,
say), and `{"error": "…"}` that the image could not be judged. `timeout` is in seconds for one batch of images, `memory`
in bytes of address space; both may be left out (600 s; no more data than the machine has memory). Answers of more than
16 MiB end the command.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchmark.errors import BadInput
from benchmark.evaluators.batches import check
from benchmark.inert import is_secret, printable, redacted
from benchmark.metrics.evaluators import Array, Evaluator
from benchmark.metrics.validity import blank

ERRORS = ("", "said so", "no answer", "timed out", "not the format", "unknown label")
"""Names of the codes in the raw output `error`."""
REASON = 160
"""Bytes of UTF-8 kept of each reason."""
Failure = Literal["said so", "no answer", "timed out", "not the format", "unknown label"]
MOST = 16 * 2**20
"""Bytes of answers to one batch of images."""
TAIL = 2**16
"""Bytes of complaints of which the last line is kept."""
_PATIENCE_S = 10.0  # for pipes that something else still holds
_GONE = "erasure-bench: no such command"
# Sets the limits and becomes the command; a hook between fork and exec in this process may lock up under threads.
# Address space where a limit was asked for; else data of the machine's size: drivers reserve addresses without end.
_LIMITED = f"""
import os, resource, sys
asked, machine = int(sys.argv[1]), int(sys.argv[2])
for kind, most in ((resource.RLIMIT_AS, asked), (resource.RLIMIT_DATA, machine), (resource.RLIMIT_CORE, 0)):
    hard = resource.getrlimit(kind)[1]
    if most or kind == resource.RLIMIT_CORE:
        resource.setrlimit(kind, (most if hard < 0 else min(most, hard),) * 2)
try:
    os.execvp(sys.argv[3], sys.argv[3:])
except OSError:
    sys.exit({_GONE!r})
"""


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
            kept = printable(redacted(answer.reason)).encode("utf-8", "replace")[:REASON]
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
    limits = [str(command.memory or 0), str(_machine_bytes())]
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _LIMITED, *limits, *command.command]
            if os.name == "posix"
            else command.command,
            cwd=folder,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # so that what it starts ends with it
        )
    except OSError as error:
        raise BadInput(f"cannot run {command.command[0]!r}: {error.strerror}; see command.json in {folder}") from None
    said, rest = _talk(process, command, "".join(f"{file}\n" for file in files))
    if rest.reason.endswith(f"; {_GONE}"):
        raise BadInput(f"cannot run {command.command[0]!r}: no such command; see command.json in {folder}")
    return [line for line in said.splitlines() if line.strip()], rest


def environment() -> dict[str, str]:
    """The variables that a command gets: all but those that hold tokens, which are none of a judge's business."""
    return {name: value for name, value in os.environ.items() if not is_secret(name)}


def _machine_bytes() -> int:
    """The machine's memory, 0 if it does not say: more than that no judge can need."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


def _talk(process: subprocess.Popen[bytes], command: Command, told: str) -> tuple[str, Answer]:
    """What it said within its time; of an endless answer no more than `MOST` is kept, and the command is ended."""
    pipes = (process.stdin, process.stdout, process.stderr)
    assert all(pipe is not None for pipe in pipes)
    said, complaints = _Heard(pipes[1], process, MOST), _Heard(pipes[2], None, TAIL)
    teller = threading.Thread(target=_tell, args=(pipes[0], told), daemon=True)
    teller.start()
    try:
        process.wait(command.timeout)
        late = False
    except subprocess.TimeoutExpired:
        late = True
    finally:
        _end(process)  # what it started and left behind, too: their pipes would keep us waiting
        process.wait()
        for thread in (teller, said, complaints):
            thread.join(_PATIENCE_S)
    text = said.text()
    if late:
        return text, Answer(failure="timed out", reason=f"after {command.timeout:g} s")
    if said.full:
        return "", Answer(failure="not the format", reason=f"more than {MOST:,} bytes of answers")
    last = complaints.text().strip().splitlines()[-1:]
    return text, Answer(failure="no answer", reason="; ".join([f"exit status {process.returncode}", *last]))


def _tell(pipe: Any, text: str) -> None:
    with suppress(OSError, ValueError), pipe:  # a command may end without having read everything
        pipe.write(text.encode("utf-8", "surrogateescape"))


class _Heard(threading.Thread):
    """Reads a pipe to its end and keeps the last `most` bytes; with a process, ends it once there are more."""

    def __init__(self, pipe: Any, ends: subprocess.Popen[bytes] | None, most: int) -> None:
        super().__init__(daemon=True)
        self.pipe, self.ends, self.most = pipe, ends, most
        self.kept, self.full = b"", False
        self.start()

    def run(self) -> None:
        with suppress(OSError, ValueError), self.pipe:
            while part := self.pipe.read1(1 << 16):
                self.kept += part
                self.full = self.full or len(self.kept) > self.most
                if self.full and self.ends is not None:
                    _end(self.ends)
                    return
                self.kept = self.kept[-self.most :]

    def text(self) -> str:
        """What was kept."""
        return self.kept.decode("utf-8", "replace")


def _end(process: subprocess.Popen[bytes]) -> None:
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
    except RecursionError:
        return Answer(failure="not the format", reason="not JSON: nested without end")
    if not isinstance(said, dict) or not ({"label", "error"} & said.keys()):
        return Answer(failure="not the format", reason=f"expected an object with label or error: {line}")
    if said.get("error"):
        return Answer(failure="said so", reason=str(said["error"]))
    label, score = said.get("label"), said.get("score", 1.0)
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        return Answer(failure="not the format", reason=f"expected score to be a finite number: {line}")
    if label is None:
        return Answer(score=float(score))
    if not isinstance(label, str) or label not in labels:
        return Answer(failure="unknown label", reason=str(label))
    return Answer(labels.index(label), float(score))
