"""The table of suites as Markdown: suite → protocol → source → what it needs. `docs/suites.md` is this text.

`python -m benchmark.suite_table` writes it anew; a test tells when it is stale.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from benchmark import data_files, items, suite
from benchmark.metrics import evaluators
from benchmark.metrics.protocols import protocol
from benchmark.suite import Form, RequestSpec, Suite

HEAD = """# Suites

Every suite is one file in `suites/`, in two sizes: the *paper* form, for full-size models, and the *embedded* one, for
the small model that ships. Their numbers are never in one table. `erasure-bench show SUITE` tells more of one,
`erasure-bench plan SUITE --model M` what a run would make and what it lacks, `erasure-bench doctor` what is there.

This page is made from the files: `python -m benchmark.suite_table docs/suites.md`.
"""


def text() -> str:
    """The page."""
    suites = [suite.load(name) for name in suite.names()]
    parts = [HEAD, _table(suites, "paper"), _table(suites, "embedded"), *map(_detail, suites)]
    return "\n".join(parts)


def _table(suites: Iterable[Suite], name: suite.FormName) -> str:
    lines = [
        f"## {name.capitalize()} form\n",
        "| suite | requests | images | primary | headline | needs |",
        "|---|---|---|---|---|---|",
    ]
    for one in suites:
        form = one.form(name)
        asked = suite.requests(form)
        cells = [
            one.name,
            _requests(asked),
            _images(one, asked),
            f"`{form.primary}`",
            one.headline or "–",
            _needs(form),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _requests(asked: tuple[RequestSpec, ...]) -> str:
    sizes = sorted({len(r.erase) for r in asked})
    return f"{len(asked)}, of {', '.join(map(str, sizes))} concept{'' if sizes == [1] else 's'}"


def _images(one: Suite, asked: tuple[RequestSpec, ...]) -> str:
    """Images of one method over all requests, by role."""
    counts: dict[str, int] = {}
    for request in asked:
        for item in items.request_items(one.name, one.version, request, rows=items.placeholders):
            counts[item.role] = counts.get(item.role, 0) + 1
    return ", ".join(f"{n:,} {role}" for role, n in counts.items())


def _needs(form: Form) -> str:
    """Evaluators that do not ship, and files of data sets."""
    judges = dict.fromkeys(protocol(name).evaluator for name in form.protocols)
    named = [f"`{j}`" for j in judges if evaluators.spec_of(j).sources]
    own = form.reference is None and any(evaluators.spec_of(j).compares for j in judges)
    files = [f"{what.name}" for what in data_files.named_in(form.model_dump(mode="json"))]
    real = [f"real images (`{evaluators.REFERENCE}`)"] if own else []
    return ", ".join([*named, *files, *real]) or "nothing"


def _detail(one: Suite) -> str:
    lines = [f"## {one.name}: {one.title}\n", f"Version {one.version}. Source: {one.source}.\n"]
    for name in ("paper", "embedded"):
        form = one.form(name)
        protocols = ", ".join(f"`{p}`" for p in form.protocols)
        lines.append(f"- {name}: {protocols}; gate {_gate(form)}.")
    lines.append(f"- methods by default: {', '.join(f'`{m}`' for m in one.methods)}.")
    return "\n".join([*lines, *(f"- {note}" for note in one.notes), ""])


def _gate(form: Form) -> str:
    windows = [f"{role} {low:g} to {high:g}" for role, (low, high) in form.gate.items()]
    return f"of the unedited model: {', '.join(windows)}" if windows else "none"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
