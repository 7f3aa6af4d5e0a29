"""Papers' tables as files: from the ledger, the layouts and committed records to text, the same bytes each time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmark import atomic, paths
from benchmark.claims import ledger as ledgers
from benchmark.errors import BadInput
from benchmark.tables import layouts
from benchmark.tables.paper_formats import FORMATS
from benchmark.tables.papers import build


def texts(
    paper: str | None, formats: Sequence[str], *, results: Path | None = None, ledger: Path | None = None
) -> dict[str, str]:
    """File name → text, for one paper or all, by paper and format. `results` is laid out as `results/` is."""
    if results is not None and not results.is_dir():
        raise BadInput(f"no folder {results}; expected one with <model>/<suite>/records in it")
    claims = ledgers.read(ledger)
    chosen = [layouts.load(name) for name in ([paper] if paper else layouts.names())]
    built = [build(layout, claims, results or paths.results()) for layout in chosen]
    return {f"{p.layout.name}.{f}": FORMATS[f](p) for p in built for f in formats}


def write(made: Mapping[str, str], out: Path) -> list[Path]:
    """Write the files into `out`, which is made if it is not there; BadInput if that cannot be."""
    for name, text in made.items():
        atomic.write(out / name, text)
    return [out / name for name in made]
