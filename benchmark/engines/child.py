"""A worker as a process of its own: started the same way by every engine, so that its surroundings are the same.

It ends when whoever started it is gone: its standard input then closes.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from benchmark.engines.base import Handle, Job, Outcome, environment, log
from benchmark.errors import BadInput, BenchError

_ORPHANED = 75
_POLITE_S = 5.0


@final
class Child(Handle):
    """A worker process of this machine; `own` is added to its environment."""

    def __init__(self, job: Job, number: int, **own: str) -> None:
        self.place = Path(job.folder)
        if not self.place.is_dir():
            raise BadInput(f"{self.place} is not there: all workers must see the --out folder of the head")
        self.report = self.place / f"report-{number + 1}.json"
        self.report.unlink(missing_ok=True)
        # -P as well: the folder `datasets/` beside us must not be taken for the library of that name
        command = [sys.executable, "-P", "-m", "benchmark.engines.child", str(self.report)]
        with log(job, number).open("ab") as lines:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=lines, stderr=lines, env=environment(job, **own)
            )
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(job.to_json()).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:  # it died at once: `poll` tells
            pass

    def poll(self) -> Outcome | None:
        code = self.process.poll()
        if code is None:
            return None
        self.stop()
        return self._outcome(code)

    def wait(self) -> Outcome:
        """How it ended, once it has; whatever interrupts the waiting ends it."""
        try:
            return self._outcome(self.process.wait())
        finally:
            self.stop()

    def stop(self) -> None:
        if self.process.stdin is not None:
            try:
                self.process.stdin.close()
            except BrokenPipeError:
                pass
        if self.process.poll() is None:
            try:
                self.process.wait(_POLITE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _outcome(self, code: int) -> Outcome:
        try:
            return Outcome(**json.loads(self.report.read_bytes()))
        except (OSError, ValueError, TypeError):
            pass
        finally:
            self.report.unlink(missing_ok=True)
        how = f"was killed by {_signal(-code)}" if code < 0 else f"ended with exit code {code} and no report"
        return Outcome(died=f"({_host()}, process {self.process.pid}) {how}")


def call(job: Job) -> Outcome:
    """Do the job in this process."""
    try:
        os.chdir(job.cwd)
        module, _, name = job.entry.partition(":")
        return Outcome(report=getattr(importlib.import_module(module), name)(job.payload))
    except FileNotFoundError as error:
        if error.filename != job.cwd:
            raise
        return Outcome(
            kind="BadInput", message=f"{job.cwd} is not there on {_host()}: workers start where the head does"
        )
    except BenchError as error:
        return Outcome(kind=type(error).__name__, message=str(error))
    except Exception as error:
        traceback.print_exc()
        message = (
            f"unexpected {type(error).__name__}: {error} (a bug of ours; the worker's log in {job.folder} has more)"
        )
        return Outcome(kind="Unexpected", message=message)


def main() -> None:
    """Read the job from the standard input, do it, and leave the outcome where the first argument says."""
    if "SUBMITIT_EXECUTOR" in os.environ:
        _leave_signals_to_parent()
    job = Job.from_json(json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _leave(Path(sys.argv[1]), call(job).to_json())


def _leave_signals_to_parent() -> None:
    """A scheduler tells all processes of a job that its time is up; the one that waits for us has it queued again."""
    for name in ("SIGUSR1", "SIGUSR2", "SIGTERM"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _end_with_parent() -> None:
    os.read(0, 1)  # not through sys.stdin, whose lock the end of the interpreter would wait for
    os._exit(_ORPHANED)


def _leave(path: Path, outcome: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.write_text(json.dumps(outcome), encoding="utf-8")
    os.replace(temporary, path)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _host() -> str:
    import socket

    return socket.gethostname()


if __name__ == "__main__":
    main()
