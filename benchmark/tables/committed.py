"""A folder of results that are kept: of each suite the records, packed, and its board; and one leaderboard over suites.

`python -m benchmark.tables.committed results/testbed-3 runs/all/testbed/objects …` takes the records of these runs in,
and makes all boards of the folder anew. Boards and leaderboard depend on the records alone.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmark import atomic
from benchmark.errors import BadInput, BenchError
from benchmark.record import PACKED, listed
from benchmark.tables import board, overall

LEADERBOARD = "leaderboard"
APART = {
    "ablation": "it compares variants of a method, by the protocol of fade_adv",
    "kinds": "it is a look at one concept of each kind, near and far, for the explanation",
}
"""Suites that have boards here and no column of the leaderboard, and why."""
_FORMATS = ("md", "csv", "tex")


def suites(root: Path) -> list[Path]:
    """The folders of suites in `root`; BadInput if there are none."""
    found = sorted(path.parent for path in root.glob("*/records"))
    if not found:
        raise BadInput(f"{root}: expected folders of suites with records/ in them, such as results/testbed-3")
    return found


def boards(root: Path) -> dict[Path, bytes]:
    """What each suite's board and the leaderboard hold, by path."""
    made = {
        folder / name: content
        for folder in suites(root)
        for name, content in board.files(board.read_records(folder)).items()
    }
    compared = [folder for folder in suites(root) if folder.name not in APART]
    whole = overall.build(overall.read_suites(compared))
    whole["left_out"] |= {f.name: why for f in suites(root) if (why := APART.get(f.name))}
    for kind in _FORMATS:
        text = overall.render(whole, kind, intervals=True)
        made[root / f"{LEADERBOARD}.{kind}"] = text.encode("utf-8")
    return made


def take_in(run: Path, root: Path) -> Path:
    """Pack a run's records into `root/<suite>`, in place of those there; that folder.

    Raises what `board.read_records` does: records of which no board can be made are not taken in.
    """
    records = board.read_records(run)
    names = {str(r["suite"]) for r in records}
    if len(names) != 1:
        raise BadInput(f"{run}: expected records of one suite, found {', '.join(sorted(names))}")
    out = root / names.pop() / "records"
    with atomic.folder(out, replace=True) as temporary:
        for path in listed(run / "records"):
            content = path.read_bytes()
            if path.suffix == PACKED:
                (temporary / path.name).write_bytes(content)
            else:  # no time and no name: the same record gives the same file
                (temporary / f"{path.name}{PACKED}").write_bytes(gzip.compress(content, 9, mtime=0))
    return out.parent


def main(arguments: Sequence[str]) -> int:
    """Take runs in and make the boards; the exit status."""
    if not arguments:
        print("python -m benchmark.tables.committed FOLDER [RUN …], such as results/testbed-3", file=sys.stderr)
        return 2
    root, *runs = map(Path, arguments)
    try:
        for run in runs:
            print(take_in(run, root))
        for path, content in boards(root).items():
            atomic.write(path, content)
    except BenchError as error:
        print(f"erasure-bench: {error}", file=sys.stderr)
        return error.exit_code
    print(root / f"{LEADERBOARD}.md")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
