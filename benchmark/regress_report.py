"""The gate's report to be read: lines for a terminal, Markdown for a pull request, JUnit XML for a CI."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmark import atomic
from benchmark.inert import md, xml
from benchmark.inputs import Change
from benchmark.regress import Finding, Report, among, number, told

_MOST = 20  # rows of a table in a pull request; the rest is counted


def verdict(report: Report) -> str:
    """One line: passed or not, on how many cells, by which rule."""
    n, exact = len(report.cells), len(report.exact)
    rule = f"{exact} by their bytes, {n - exact} by paired tests" if exact < n else "all by their bytes"
    found = "no regression" if report.ok else _count(len(report.findings), "finding")
    return f"{report.suite} on {report.model}: {found}; {_count(n, 'cell')}, {rule}"


def lines(report: Report) -> list[str]:
    """For a terminal: the inputs that differ, then what was found."""
    out = [verdict(report)]
    if report.reason:
        out.append(f"baseline: {report.reason}")
    if report.changes:
        out += ["what differs in the inputs:", *(f"  {_change(c, w, report)}" for c, w in report.changes.items())]
    else:
        out.append("no input differs")
    out += [f"  note: {note}" for note in report.notes]
    if report.findings:
        out += ["found:", *(f"  {_finding(f)}" for f in report.findings)]
    return out


def _change(change: Change, where: Sequence[str], report: Report) -> str:
    return f"{change}{among(where, len(report.cells))}"


def _finding(f: Finding) -> str:
    return f"[{f.kind}] {f'{f.where}: ' if f.where else ''}{f.text}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


# --- Markdown ---------------------------------------------------------------------------------------------------------
def markdown(report: Report) -> str:
    """A summary for a pull request."""
    parts = [f"### {'✅' if report.ok else '❌'} {md(verdict(report))}"]
    if report.reason:
        parts.append(f"Baseline: {md(report.reason)}")
    changed = [[f"{c.kind} {c.name}".strip(), c.before, c.after, _cells(w, report)] for c, w in report.changes.items()]
    parts += _table("Inputs that differ", ["input", "baseline", "run", "cells"], changed)
    parts += _table("Findings", ["kind", "cell", "what"], [[f.kind, f.where or "all", f.text] for f in report.findings])
    parts += _table("Numbers that moved", ["cell", "number", "baseline", "run", "difference"], list(_numbers(report)))
    parts += [f"- {md(note)}" for note in report.notes]
    return "\n\n".join(parts) + "\n"


def _cells(where: Sequence[str], report: Report) -> str:
    return "all" if len(where) == len(report.cells) else f"{len(where)}, such as {where[0]}"


def _numbers(report: Report) -> Iterator[list[str]]:
    for cell, moved in report.numbers.items():
        for name, (a, b) in moved.items():
            difference = "–" if a is None or b is None else f"{b - a:+.4g}"
            yield [cell, name, number(a), number(b), difference]


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A heading and a table; nothing without rows."""
    if not rows:
        return []
    more = [f"… and {len(rows) - _MOST} more"] if len(rows) > _MOST else []
    listed = [[md(" ".join(text.split())) for text in row] for row in rows[:_MOST]]
    body = "\n".join("| " + " | ".join(row) + " |" for row in [list(head), ["---"] * len(head), *listed])
    return [f"**{title}**", body, *more]


# --- JUnit ------------------------------------------------------------------------------------------------------------
def junit(report: Report) -> bytes:
    """A test case for the inputs, for each cell, and for each method over its requests; findings are failures."""
    pooled = [t.cell for t in report.tests if t.cell not in report.cells]
    names = ["inputs", *dict.fromkeys([*report.cells, *pooled])]
    by = {name: [f for f in report.findings if (f.where or "inputs") == name] for name in names}
    suite = ElementTree.Element("testsuite", _attributes(report, by))
    for name, findings in by.items():
        place = {"classname": xml(f"{report.suite}.{report.model}"), "name": xml(name)}
        case = ElementTree.SubElement(suite, "testcase", place)
        if findings:
            about = {"type": xml(findings[0].kind), "message": xml(findings[0].text)}
            failure = ElementTree.SubElement(case, "failure", about)
            failure.text = xml("\n".join(map(_finding, findings)))
        ran = [told(t) for t in report.tests if t.cell == name]
        if ran:
            ElementTree.SubElement(case, "system-out").text = xml("\n".join(ran))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    content: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return content + b"\n"


def _attributes(report: Report, by: Mapping[str, Sequence[Finding]]) -> dict[str, str]:
    failed = sum(bool(findings) for findings in by.values())
    name = xml(f"regress {report.suite}-{report.model}")
    return {"name": name, "tests": str(len(by)), "failures": str(failed), "errors": "0", "skipped": "0"}


# --- JSON, files ------------------------------------------------------------------------------------------------------
def as_json(report: Report) -> dict[str, Any]:
    """For programs."""
    return {
        "suite": report.suite,
        "model": report.model,
        "ok": report.ok,
        "reason": report.reason,
        "cells": len(report.cells),
        "exact": len(report.exact),
        "changes": [{**vars(c), "cells": list(w)} for c, w in report.changes.items()],
        "findings": [vars(f) for f in report.findings],
        "notes": list(report.notes),
        "numbers": {cell: {n: list(v) for n, v in moved.items()} for cell, moved in report.numbers.items()},
    }


def write(path: Path, content: bytes) -> None:
    """Write a report's file."""
    atomic.write(path, content)
