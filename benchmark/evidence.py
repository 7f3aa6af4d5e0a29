"""What can be compared: a record, a run, a baseline, a board, or what a commit holds of them. No torch."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmark import baseline, paths, record
from benchmark.consistency import faults
from benchmark.errors import BadInput, Damaged
from benchmark.tables import board, written
from benchmark.untrusted import gunzip, parse_json, read_bytes

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Records, or where only a board was kept, its rows."""

    label: str
    records: tuple[Record, ...] = ()
    board: Record | None = None
    reason: str | None = None
    """Of a baseline: why it became what it is."""

    @property
    def suite(self) -> str:
        return str(self.records[0]["suite"] if self.records else self.board and self.board["suite"])

    @property
    def model(self) -> str:
        return str(self.records[0]["model"]["name"] if self.records else self.board and self.board["model"])


def load(text: str, *, like: Evidence | None = None) -> Evidence:
    """Read `text`: a run's folder, a record, a baseline or a board by path, or `COMMIT`, or `COMMIT:PATH`.

    Of a commit without a path, the results for `like`'s suite and model are taken. BadInput for what is none of these.
    """
    path = Path(text)
    if path.exists():
        return _folder(path) if path.is_dir() else _file(path.name, read_bytes(path), text)
    return _commit(text, like)


def _folder(path: Path) -> Evidence:
    if (path / "records").is_dir() or list(path.glob("*.seed*.json*")):
        return Evidence(label=str(path), records=tuple(dict(r) for r in board.read_records(path)))
    if (path / "board.json").is_file():
        return _file("board.json", read_bytes(path / "board.json"), str(path))
    raise BadInput(f"{path} holds neither records/ nor board.json; give the --out of a run, or a folder of results/")


def _file(name: str, content: bytes, label: str) -> Evidence:
    try:
        values = parse_json(gunzip(content) if name.endswith(record.PACKED) else content)
    except ValueError as error:
        raise BadInput(f"{label} is not JSON ({error}); give a record, a baseline, a board.json or a run") from None
    try:
        if baseline.is_one(values):
            found = baseline.parse(values)
            return Evidence(label=label, records=found.records, reason=found.reasons[-1].reason)
        if isinstance(values, dict) and isinstance(values.get("rows"), list):
            return Evidence(label=label, board=written.parse(values))
        made = record.parse(record.upgraded(values)).model_dump(mode="json", by_alias=True)
    except BadInput as error:
        raise BadInput(f"{label}: {error}") from None
    for _, fault in faults({name: made}):
        raise Damaged(f"{label}: {fault}; get the record again, or run again")
    return Evidence(label=label, records=(made,))


# --- commits ----------------------------------------------------------------------------------------------------------
def _commit(text: str, like: Evidence | None) -> Evidence:
    commit, colon, path = text.partition(":")
    if _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}") is None:
        raise BadInput(f"{text} is no file, folder or commit here; give a run, a record, a baseline, or COMMIT[:PATH]")
    if colon:
        return _of_commit(commit, path)
    if like is None:
        raise BadInput(f"{text} is a commit; give the run first, or name a path in it: {text}:results/…")
    for name in _candidates(commit, like):
        found = _of_commit(commit, name)
        if (found.suite, found.model) == (like.suite, like.model):
            return found
    raise BadInput(f"commit {text} holds no results of {like.suite} on {like.model} under results/; name a path in it")


def _candidates(commit: str, like: Evidence) -> list[str]:
    """Where a commit may keep results: its baseline first, which has the images' outcomes, then records and boards."""
    listed = _listed(commit, "results/")
    wanted = f"results/baselines/{like.suite}-{like.model}.json"
    boards = [name for name in listed if name.endswith(f"/{like.suite}/board.json")]
    return [name for name in listed if name == wanted] + [name.removesuffix("/board.json") for name in boards]


def _listed(commit: str, folder: str) -> list[str]:
    return (_git("ls-tree", "-r", "--name-only", commit, "--", folder) or b"").decode().splitlines()


def _of_commit(commit: str, path: str) -> Evidence:
    label, root = f"{commit}:{path}", path.rstrip("/")
    if made := [r for name in _listed(commit, f"{root}/records/") for r in _in_commit(commit, name).records]:
        return Evidence(label=label, records=tuple(made))
    for name in (path, f"{root}/board.json"):
        kind = _git("cat-file", "-t", f"{commit}:{name}")
        if kind is not None and kind.strip() == b"blob":
            return replace(_in_commit(commit, name), label=label)
    raise BadInput(f"{label}: no such record, baseline, or folder with records or a board.json in that commit")


def _in_commit(commit: str, name: str) -> Evidence:
    return _file(name, _git("show", f"{commit}:{name}") or b"", f"{commit}:{name}")


def _git(*arguments: str) -> bytes | None:
    """What git says of our checkout, else of where we stand; None if it fails."""
    command: Sequence[str] = ["git", "-C", str(paths.checkout() or Path()), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
