"""What the page tells of one cell: how it was made and the command that makes it again. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from benchmark.inert import shell
from benchmark.page import raws
from benchmark.page.explorer import Column
from benchmark.page.images import Images
from benchmark.tables.columns import Record

Json = dict[str, Any]


def command(r: Record) -> str:
    """The command that regenerates a record's images and scores, for a POSIX shell."""
    method, words = r["method"], ["erasure-bench", "run", r["suite"], "--model", r["model"]["name"]]
    words += ["--methods", method["label"] if method["role"] == "baseline" else f"none,{method['label']}"]
    words += [] if r["scale"] == 1 else ["--scale", f"{r['scale']:g}"]
    words += ["--seed", str(r["request"]["seed"])] if r["request"]["seed"] else []
    words += ["--batch-size", str(r["batch"])] if "batch_size" in r["passed"] else []
    for name, value in sorted(method["passed"].items()):
        words += ["--set", f"{method['label']}.{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return shell(words)


def told(r: Record) -> list[list[Any]]:
    """`[heading, [[name, text], …]]` of a record, in the order in which a reader asks."""
    method, request, made = r["method"], r["request"], r["provenance"]
    fields = {"label": method["label"], "version": method["version"], "paper": method["paper"] or None}
    fields |= {"preset": method["preset"], **method["fields"]}
    return [
        ["Request", _pairs(_asked(request))],
        ["Method", _pairs(fields)],
        ["Edit", _pairs(_edit(r))],
        ["Sampler", _pairs({**r["sampler"], "batch": r["batch"]})],
        ["Protocols", [[name, _protocol(p)] for name, p in sorted(r["protocols"].items())]],
        ["Model", _pairs(r["model"])],
        ["Provenance", _pairs({k: v for k, v in made.items() if k != "packages"})],
        ["Packages", _pairs(made["packages"])],
    ]


def _asked(request: Mapping[str, Any]) -> Json:
    erase = [
        f"{c['name']} ({c.get('kind', 'object')}" + (f", anchor {c['anchor']})" if c.get("anchor") else ")")
        for c in request["erase"]
    ]
    synonyms = [s for c in request["erase"] for s in c.get("synonyms") or ()]
    lists = {"erase": erase, "synonyms": synonyms, "keep": request["keep"], "adjacent": request["adjacent"]}
    return {"name": request["name"], **lists, "strategy": request["strategy"], "training seed": request["seed"]}


def _edit(r: Record) -> Json:
    edit = r["edit"]
    return {} if edit is None else {"key": edit["key"], "hash": edit["hash"], **edit["counts"], **edit["notes"]}


def _protocol(p: Mapping[str, Any]) -> str:
    return f"version {p['version']}, judge {p['evaluator']}, weights {p['evaluator_hash'][:16]}"


def _pairs(values: Mapping[str, Any]) -> list[list[str]]:
    """Names and texts; what is empty is left out."""
    return [[str(k).replace("_", " "), text(v)] for k, v in values.items() if v not in (None, "", (), [], {})]


def text(value: Any) -> str:
    """A value as a reader wants it: lists with commas, yes and no, the rest as JSON has it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(text(v) for v in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def detail(r: Record, slug: str, record: str, column: Column | None, images: Images) -> Json:
    """What opens when a cell or one of its images is asked for: `record` is the address of the record's file."""
    said: Json = {
        "method": r["method"]["label"],
        "request": r["request"]["name"],
        "seed": r["request"]["seed"],
        "status": r["status"],
        "reason": r["reason"],
        "record": record,
        "command": command(r),
        "told": told(r),
        "image": [],
        "shards": [],
        "stored": [],
        "raw": [],
    }
    return said if column is None else said | _images(r, column, images)


def _images(r: Record, column: Column, images: Images) -> Json:
    hashes = [None if i is None else r["rows"]["image"][i] for i in column.at]
    places = [None if h is None else images.places.get(h) for h in hashes]
    shards = sorted({f"images/{p.key}/{p.shard}" for p in places if p is not None})
    number = {name: i for i, name in enumerate(shards)}
    stored = [None if p is None else [number[f"images/{p.key}/{p.shard}"], p.row] for p in places]
    return {"image": hashes, "shards": shards, "stored": stored, "raw": raws.outputs(r, list(column.at), images)}
