"""BibTeX for exactly what a run used: methods, protocols, evaluators, data sets, model and sampler. No torch.

The entries are a data file of ours, `references.yaml`. What a run used and the file has no entry of, or none with
authors, title and year, is told and left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Literal

from benchmark import declared, suite
from benchmark.declared import Some, Strict
from benchmark.errors import BadInput, BenchError
from benchmark.inert import printable

FILE = Path(__file__).with_name("references.yaml")
NEEDED = ("author", "title", "year")
FIELDS = ("author", "title", "booktitle", "journal", "institution", "number", "year", "eprint", "url")
"""In the order in which they are printed."""
OWN = ("model/testbed", "model/random-*", "dataset/testbed", "evaluator/testbed-*", "protocol/testbed*", "headline/*")
"""What is this harness's own, or has no paper of its own: without an entry, nothing is lacking."""


class Reference(Strict):
    """One entry; absent facts are None."""

    type: Literal["inproceedings", "article", "techreport", "misc"]
    author: str | None = None
    title: str | None = None
    booktitle: str | None = None
    journal: str | None = None
    institution: str | None = None
    number: str | None = None
    year: int | None = None
    eprint: str | None = None
    url: str | None = None
    cites: Some[str]
    """Names of uses that bring it in."""

    @property
    def lacks(self) -> list[str]:
        """The facts without which it is no citation."""
        return [name for name in NEEDED if getattr(self, name) is None]


@dataclass(frozen=True)
class Cited:
    """What to print, and what could not be."""

    bibtex: str
    keys: tuple[str, ...]
    warnings: tuple[str, ...]


@cache
def references(file: Path = FILE) -> Mapping[str, Reference]:
    """All entries by key, in the file's order."""
    values, _ = declared.load(file)
    try:
        return {str(key): Reference.model_validate(value) for key, value in dict(values or {}).items()}
    except (TypeError, ValueError) as error:
        raise BadInput(f"{file}: expected entries by key: {' '.join(str(error).split())}") from None


def cite(records: Sequence[Mapping[str, Any]], known: Mapping[str, Reference] | None = None) -> Cited:
    """The entries of all that these records used, in the order of the file, each once."""
    known = references() if known is None else known
    used = list(dict.fromkeys(use for r in records for use in uses(r)))
    by = {use: [key for key, entry in known.items() if _brings(entry, use)] for use in used}
    wanted = {key for keys in by.values() for key in keys}
    whole = [key for key in known if key in wanted and not known[key].lacks]
    lacking = [f"{key} lacks {', '.join(known[key].lacks)}: left out" for key in known if key in wanted - set(whole)]
    without = [f"no entry for {use}: left out" for use, keys in by.items() if not keys and not _own(use)]
    return Cited("\n".join(bibtex(key, known[key]) for key in whole), tuple(whole), (*lacking, *without))


def _brings(entry: Reference, use: str) -> bool:
    return any(fnmatchcase(use, name) for name in entry.cites)


def _own(use: str) -> bool:
    """Whether it needs no entry: our own, or a protocol, whose evaluator is cited."""
    return use.startswith(("protocol/", "sampler/")) or any(fnmatchcase(use, name) for name in OWN)


# --- what a record used -----------------------------------------------------------------------------------------------
def uses(r: Mapping[str, Any]) -> Iterator[str]:
    """Names of what went into a record: `arXiv:2308.14761`, `evaluator/testbed-a`, `dataset/cifar10`, …

    Nothing of a cell that was not run.
    """
    if r["status"] != "ok":
        return
    yield f"model/{r['model']['name']}"
    yield f"sampler/{r['sampler'].get('scheduler', 'ddim')}"
    if r["sampler"].get("guidance") != 1:
        yield "sampler/guidance"
    method = r["method"]
    if method["paper"] or method["role"] == "erasure":
        yield method["paper"] or f"method/{method['name']}"
    for name, part in r["protocols"].items():
        yield f"protocol/{name}"
        yield f"evaluator/{part['evaluator']}"
    if r["headline"]:
        yield f"headline/{r['headline']}"
    yield from (f"dataset/{name}" for name in _datasets(r))


def _datasets(r: Mapping[str, Any]) -> list[str]:
    """Those that the record names; of a record of schema 1, those of the shipped suite of that name."""
    if r["datasets"]:
        return list(r["datasets"])
    if r["suite"] not in suite.names():  # a record names a suite, never a file
        return []
    try:
        found = suite.load(r["suite"]).form(r["form"]).dataset
    except BenchError:
        return []
    return [found] if isinstance(found, str) else list(found)


# --- BibTeX -----------------------------------------------------------------------------------------------------------
_ESCAPED = {"&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "~": r"\textasciitilde{}", "^": r"\^{}"}
_ACCENTS = {"ń": r"{\'n}", "ł": r"{\l}", "ö": r"{\"o}", "á": r"{\'a}", "é": r"{\'e}", "ü": r"{\"u}"}


def bibtex(key: str, entry: Reference) -> str:
    """One entry, in ASCII, so that any BibTeX reads it."""
    facts = {name: value for name in FIELDS if (value := getattr(entry, name)) is not None}
    if "eprint" in facts:
        facts |= {"archiveprefix": "arXiv"}
    lines = [f"  {name} = {{{_text(name, str(value))}}}" for name, value in facts.items()]
    return f"@{entry.type}{{{key},\n" + ",\n".join(lines) + "\n}\n"


def _text(name: str, text: str) -> str:
    """The text of a field; braces that keep capitals stay, and one without its fellow, which would end the entry, goes.

    A backslash would begin a command: it goes too.
    """
    table = _ACCENTS if name == "url" else _ACCENTS | _ESCAPED
    return "".join(table.get(character, character) for character in _balanced(printable(text).replace("\\", "")))


def _balanced(text: str) -> str:
    depth = 0
    for character in text:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            break
    return text if depth == 0 else text.replace("{", "").replace("}", "")
