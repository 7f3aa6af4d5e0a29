"""The static site: pages, data as scripts, sheets of thumbnails and copies of the records, written as a whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from benchmark import atomic, record
from benchmark.errors import BadInput
from benchmark.page import anchors, boards, cells, claims, explorer, figures, images
from benchmark.page.explorer import Group
from benchmark.page.runs import Run, read_runs
from benchmark.tables import formats

ASSETS = Path(__file__).with_name("assets")
SHIPPED = ("style.css", "site.js", "table.js", "figures.js", "details.js", "explorer.js")
MARKER = "page.json"
SCHEMA = 1
THUMBNAIL = 128
PER_ROLE = 500
"""Rows of the explorer for each request and role, at most: coco's 30,000 images are no use to the eye."""
Json = dict[str, Any]


@dataclass(frozen=True)
class Written:
    """What was made."""

    pages: int
    images: int
    absent: int
    """Of these, how many are not in the store."""
    size: int
    """Bytes of the whole site."""


def write(
    folders: Sequence[Path],
    out: Path,
    *,
    store: Path | None = None,
    thumbnail: int = THUMBNAIL,
    per_role: int = PER_ROLE,
    say: Callable[[str], object] = print,
) -> Written:
    """Write the site of these runs to `out`, which is replaced as a whole if it is such a site already.

    BadInput if `out` holds anything else, or if a folder is no run. The same runs give the same bytes.
    """
    if not (16 <= thumbnail <= 1024 and per_role >= 1):
        raise BadInput(f"expected thumbnails of 16 to 1024 pixels, and at least 1 row; got {thumbnail} and {per_role}")
    _check(out)
    runs = read_runs(folders, store)
    papers = claims.views(runs)
    try:
        with atomic.folder(out, replace=True) as temporary:
            (temporary / "assets").mkdir()
            shown = [_run(run, runs, papers, temporary, thumbnail, per_role, say) for run in runs]
            _overview(runs, papers, temporary)
            for paper in papers:
                _claims(runs, paper, temporary)
            for name in SHIPPED:
                shutil.copyfile(ASSETS / name, temporary / "assets" / name)
            (temporary / MARKER).write_text(_json({"schema": SCHEMA, "runs": [r.id for r in runs]}) + "\n", "utf-8")
            size = sum(p.stat().st_size for p in temporary.rglob("*") if p.is_file())
    except OSError as error:
        raise BadInput(f"cannot write {out}: {error.strerror or error}; name another folder with --out") from error
    return Written(1 + 2 * len(runs) + len(papers), sum(n for n, _ in shown), sum(n for _, n in shown), size)


def _check(out: Path) -> None:
    if out.exists() and not (out.is_dir() and ((out / MARKER).is_file() or not any(out.iterdir()))):
        raise BadInput(f"--out: {out} holds something else than a page of ours; name another folder")


# --- one run ----------------------------------------------------------------------------------------------------------
def _run(
    run: Run,
    runs: Sequence[Run],
    papers: Sequence[Json],
    out: Path,
    thumbnail: int,
    per_role: int,
    say: Callable[[str], object],
) -> tuple[int, int]:
    """Write all of one run; returns how many images are shown, and how many of them are not in the store."""
    found = images.Images(run.store, say)
    groups = explorer.groups(run, per_role)
    sheets = images.planned(c for g in groups for c in explorer.digests(g))
    tile = images.tile_size(sheets.number, found, thumbnail)
    _sheets(run, sheets, found, tile, out)
    differ = images.Differences(found)
    for group in groups:
        _data(
            out,
            f"{run.id}/{anchors.slug(group.request)}",
            explorer.data(group, sheets, differ, found.places.__contains__),
        )
    _cells(run, groups, found, out)
    _data(out, run.id, _about(run, groups, sheets, tile))
    _pages(run, runs, papers, groups, out)
    shown = [d for g in groups for column in explorer.digests(g) for d in column]
    return len(shown), sum(d not in found.places for d in shown)


def _sheets(run: Run, sheets: images.Sheets, found: images.Images, tile: int, out: Path) -> None:
    folder = out / "sheets" / run.id
    folder.mkdir(parents=True)
    for n, digests in enumerate(sheets.sheets):
        if any(d in found.places for d in digests):
            (folder / f"{n}.webp").write_bytes(images.draw(digests, found, tile))


def _about(run: Run, groups: Sequence[Group], sheets: images.Sheets, tile: int) -> Json:
    """What all pages of a run read first."""
    return {
        "id": run.id,
        "embedded": run.embedded,
        "tile": tile,
        "side": images.SIDE,
        "rows": [-(-len(s) // images.SIDE) for s in sheets.sheets],
        "folder": f"sheets/{run.id}",
        "requests": [{"name": g.request, "slug": anchors.slug(g.request), "rows": len(g.items)} for g in groups],
        "figures": {
            "erase_keep": figures.erase_keep(run.board["rows"]),
            "concepts": figures.concepts(run),
            "interference": figures.interference(run),
            "cost": figures.cost(run),
        },
    }


def _cells(run: Run, groups: Sequence[Group], found: images.Images, out: Path) -> None:
    """A script with the details of each cell, and a copy of its record."""
    columns = {c.slug: c for g in groups for c in g.columns}
    for (r, slug), file in zip(run.named(), run.files, strict=True):
        copy = f"records/{run.id}/{anchors.slug(slug)}.json"
        (out / copy).parent.mkdir(parents=True, exist_ok=True)
        (out / copy).write_bytes(record.content(file))
        name = f"{run.id}/cells/{anchors.slug(slug)}"
        _data(out, name, cells.detail(r, slug, copy, columns.get(slug), found))


def _pages(run: Run, runs: Sequence[Run], papers: Sequence[Json], groups: Sequence[Group], out: Path) -> None:
    slugs: dict[str, str] = {}
    for r, slug in reversed(run.named()):  # of several training seeds the first
        slugs[anchors.cell(r["request"]["name"], r["method"]["label"])] = anchors.slug(slug)
    values = {"run": run, "runs": runs, "view": boards.view(run), "files": slugs}
    values |= {"pictures": explorer.count(groups), "papers": [p for p in papers if run.id in _ids(p)]}
    _page(out / f"{run.id}.html", "run.html", values | {"here": run.id})
    values |= {"groups": groups, "explicit": any(g.explicit for g in groups), "here": f"{run.id}.images"}
    _page(out / f"{run.id}.images.html", "images.html", values)


def _overview(runs: Sequence[Run], papers: Sequence[Json], out: Path) -> None:
    views = {run.id: formats.title(run.board) for run in runs}
    values = {"runs": runs, "view": boards.overall(runs), "titles": views, "papers": papers, "here": "index"}
    _page(out / "index.html", "index.html", values)


def _claims(runs: Sequence[Run], paper: Json, out: Path) -> None:
    """A paper's claims beside what these runs measured."""
    _page(out / f"{paper['page']}.html", "claims.html", {"runs": runs, "view": paper, "here": paper["page"]})


def _ids(paper: Json) -> list[str]:
    return [run["id"] for run in paper["runs"]]


# --- writing ----------------------------------------------------------------------------------------------------------
def _page(path: Path, template: str, values: Mapping[str, Any]) -> None:
    text = templates().get_template(template).render({**values, "embedded_note": formats.EMBEDDED})
    path.write_text(text + "\n", "utf-8", "replace")


@cache
def templates() -> jinja2.Environment:
    """The templates; whatever they are given is escaped, and a name they lack is an error."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"slug": anchors.slug, "zip2": _pairs}
    return made


def _pairs(values: Iterable[str], texts: Iterable[str] | None = None) -> list[tuple[str, str]]:
    """Values with the texts that a menu shows for them, by default themselves."""
    listed = list(values)
    return list(zip(listed, listed if texts is None else texts, strict=True))


def _data(out: Path, name: str, value: Json) -> None:
    """A script that hands its value over by name: a page opened from disk may load scripts, and no other file."""
    path = out / "data" / f"{name}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"erasureBench.put({_json(name)},{_json(value)});\n", "utf-8")


def _json(value: Any) -> str:
    """JSON in ASCII that is harmless inside a script, wherever that stands."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
