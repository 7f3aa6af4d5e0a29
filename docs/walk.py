"""A newcomer's walk, typed by a script: a fresh clone, the README's two commands, then the tutorial block by block.

    python docs/walk.py               all of it, with the environment that `make` builds in the clone
    python docs/walk.py --borrow      the same with this Python's packages, so that nothing is installed
    python docs/walk.py --no-readme   the tutorial alone
    python docs/walk.py --quick       what needs no image and no torch of it, with this Python's packages: seconds

Blocks of shell are executed in order, as a reader would paste them, each with what the last one exported. The walk ends
with the tutorial's own method as a row of the board, and says how long each block took.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TUTORIAL, README = Path("docs/tutorial.md"), Path("README.md")
# `make bench` and commands that sample images or load torch; the quick walk leaves them out.
_LONG = re.compile(r"^make |\berasure-bench (run|erase|rescore|doctor|check-method)\b", re.M)
_BLOCK = re.compile(r"^(?P<mark><!-- walk: \w+ -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
_METHOD = "mine"
_OURS = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHONPATH", "VIRTUAL_ENV"}
"""Variables of whoever started the walk that a newcomer's shell does not have."""


@dataclass(frozen=True)
class Block:
    """What a reader types at once."""

    text: str
    long: bool
    """Whether it takes torch, or minutes."""


def blocks(page: str) -> list[Block]:
    """The shell blocks of a page, in order; those under `<!-- walk: long -->` and those that make images are long."""
    found = [match for match in _BLOCK.finditer(page) if match["language"] == "sh"]
    return [Block(match["text"].strip(), bool(match["mark"] or _LONG.search(match["text"]))) for match in found]


def readme_commands(page: str) -> list[Block]:
    """The README's two commands: the first block under *Two commands*, a line each."""
    after = page.partition("## Two commands")[2]
    first = _BLOCK.search(after)
    assert first is not None, "the README has no block under Two commands"
    return [Block(line, long=True) for line in first["text"].splitlines()]


def quick(every: Sequence[Block]) -> list[Block]:
    """Blocks that need neither images nor torch, in order; a block that looks at a run needs one, too."""
    return [block for block in every if not block.long and "runs/" not in block.text]


# --- the clone ------------------------------------------------------------------------------------------------
def clone(place: Path, *, working: bool) -> Path:
    """A fresh clone of the last commit; with `working`, of the files as they are now."""
    to = place / "erasure-bench"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(to)], check=True)
    if working:
        git = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(git, check=True, capture_output=True, text=True).stdout.split("\0")
        for name in filter(None, names):
            _refresh(ROOT / name, to / name)
    return to


def _refresh(now: Path, then: Path) -> None:
    if not now.is_file():
        then.unlink(missing_ok=True)
        return
    then.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(now, then)


def sketch(place: Path) -> Path:
    """What looks like a clone in no time: links to everything, but a copy of what the tutorial writes into."""
    to = place / "erasure-bench"
    to.mkdir(parents=True)
    for name in ("benchmark", "datasets", "docs", "results", "suites", "README.md", "Makefile", "pyproject.toml"):
        (to / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "methods", to / "methods", ignore=shutil.ignore_patterns("__pycache__"))
    return to


def borrow(tree: Path) -> None:
    """Give the clone this Python and its packages as `.venv`, with the clone's own code before them.

    The two packages are linked from a folder of their own: with the root on the path, `datasets/` would be taken for a
    library.
    """
    own, tools = tree / ".venv" / "own", tree / ".venv" / "bin"
    own.mkdir(parents=True)
    tools.mkdir()
    for package in ("benchmark", "methods"):
        (own / package).symlink_to(tree / package)
    before = f'#!/bin/sh\nexport PYTHONPATH="{own}" PYTHONSAFEPATH=1\nexec "{sys.executable}" '
    _tool(tools / "python", f'{before} "$@"\n')
    _tool(tools / "erasure-bench", f"{before} -c 'import benchmark.cli as c; c.main()' \"$@\"\n")
    for module in ("pytest", "ruff", "mypy"):
        _tool(tools / module, f'{before} -m {module} "$@"\n')
    (tree / ".venv" / ".complete").touch()  # so that `make setup` has nothing to do


def _tool(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


# --- walking --------------------------------------------------------------------------------------------------
def walk(tree: Path, every: Sequence[Block], *, say: bool = True) -> Iterator[tuple[str, float]]:
    """Execute the blocks in one shell; yields what was typed and the seconds it took. CalledProcessError at the first
    that fails, with the end of what it printed."""
    state = tree.parent / "environment"  # what one block exports, the next one has
    environment = {k: v for k, v in os.environ.items() if k not in _OURS}
    for block in every:
        script = f'[ ! -f "{state}" ] || . "{state}"\nset -eo pipefail\n{block.text}\nexport -p > "{state}"\n'
        begun = time.monotonic()
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=tree,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, block.text, done.stdout[-4000:], done.stderr[-4000:])
        if say:
            print(f"$ {block.text}\n{done.stdout}", flush=True)
        yield block.text, time.monotonic() - begun


def on_the_board(tree: Path) -> bool:
    """Whether the tutorial's own method has a number on the board."""
    rows = json.loads((tree / "runs" / "smoke-testbed" / "board.json").read_text(encoding="utf-8"))["rows"]
    return any(row["method"] == _METHOD and row["acc_erased"] is not None for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only what needs no image and no torch")
    parser.add_argument("--borrow", action="store_true", help="use this Python's packages instead of building .venv")
    parser.add_argument("--no-readme", action="store_true", help="leave out the README's two commands")
    parser.add_argument(
        "--working", action="store_true", help="walk through the files as they are, uncommitted ones too"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        tree = sketch(Path(place)) if given.quick else clone(Path(place), working=given.working)
        if given.borrow or given.quick:
            borrow(tree)
        tutorial = blocks((tree / TUTORIAL).read_text(encoding="utf-8"))
        if given.quick:
            return _walked(tree, quick(tutorial), ends_on_board=False)
        readme = [] if given.no_readme else readme_commands((tree / README).read_text(encoding="utf-8"))
        return _walked(tree, [*readme, *tutorial], ends_on_board=True)


def _walked(tree: Path, every: Sequence[Block], *, ends_on_board: bool) -> int:
    took = []
    try:
        for text, seconds in walk(tree, every):
            took.append((text, seconds))
    except subprocess.CalledProcessError as error:
        print(f"{error.stdout}{error.stderr}\nfailed with {error.returncode}: {error.cmd}", file=sys.stderr)
        return 1
    for text, seconds in took:
        print(f"{seconds:8.1f} s  {text.splitlines()[0]}{' …' if chr(10) in text else ''}")
    print(f"{sum(seconds for _, seconds in took):8.1f} s  in all, {os.cpu_count()} CPU cores")
    if ends_on_board and not on_the_board(tree):
        print(f"the board has no number for {_METHOD}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
