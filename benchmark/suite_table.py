"""The table of suites as Markdown: suite → protocol → source → what it needs. `docs/suites.md` is this text.

`python -m benchmark.suite_table` writes it anew; a test tells when it is stale.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from benchmark import atomic, cite, data_files, items, suite
from benchmark.metrics import evaluators, weights
from benchmark.metrics.protocols import protocol
from benchmark.suite import Form, RequestSpec, Suite

HEAD = """# Suites

Every suite is one file in `suites/`, in two sizes: the *paper* form, for full-size models, and the *embedded* one, for
the small model that ships. Their numbers are never in one table. `erasure-bench show SUITE` tells more of one,
`erasure-bench plan SUITE --model M` what a run would make and what it lacks, `erasure-bench doctor` what is there.
Three more, of the embedded model alone, are run by their paths: `suites/embedded/kinds.yaml` compares kinds of
concepts, `presets.yaml` and `presets_many.yaml` choose hyperparameters.

This page is made from the files: `python -m benchmark.suite_table docs/suites.md`.
"""


def text() -> str:
    """The page."""
    suites = [suite.load(name) for name in suite.names()]
    tables = [_table(suites, "paper"), _table(suites, "embedded"), _protocols(suites), _judges(suites)]
    return "\n".join([HEAD, *tables, *map(_detail, suites)])


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


def _protocols(suites: Sequence[Suite]) -> str:
    """Suite → protocol → source → what it needs, of the paper forms."""
    lines = [
        "## Protocols of the paper forms\n",
        "A suite's source stands below its name, that of a protocol beside it. The judges are in the next table.",
        "The embedded forms need nothing that does not ship.\n",
        "| suite | protocol | what it is | source | needs |",
        "|---|---|---|---|---|",
    ]
    for one in suites:
        form, said = one.form("paper"), f"{one.name}<br>{_paper(one.source)}"
        for name, title in _told(form.protocols).items():
            judge = protocol(name.replace("<LABEL>", "BELLY_EXPOSED")).evaluator
            sources = _cited(f"protocol/{name}", f"evaluator/{judge}")
            lines.append(f"| {said} | `{name}` | {title} | {sources} | {_judge_needs(judge, form)} |")
            said = ""
        for what in data_files.named_in(form.model_dump(mode="json")):
            kind = "real images" if what.file.kind == "images" else "prompts"
            at = what.file.hub or _host(what.file.url)
            lines.append(f"|  | – | {kind} | {at} | {what.name} ({weights.amount(what.file.size)}) |")
    return "\n".join([*lines, ""])


def _told(names: Iterable[str]) -> dict[str, str]:
    """Protocol to title; those of single labels of a detector in one."""
    found: dict[str, str] = {}
    for name in names:
        head, _, label = name.rpartition("/boxes/")
        shared = f"{head}/boxes/<LABEL>" if head else name
        title = protocol(name).title
        found.setdefault(shared, title.replace(label, "each label") if head else title)
    return found


def _paper(source: str) -> str:
    """`arXiv:2403.06135` of a suite's source; "ours" where it names no paper."""
    found = re.findall(r"arXiv:\d{4}\.\d{5}", source)
    return ", ".join(dict.fromkeys(found)) or "ours"


def _cited(*uses: str) -> str:
    """The papers or pages of what is used, as `cite` knows them."""
    named = [r for r in cite.references().values() if any(fnmatchcase(u, c) for u in uses for c in r.cites)]
    told = [f"arXiv:{r.eprint}" if r.eprint else r.url or re.sub("[{}]", "", str(r.title)) for r in named]
    return ", ".join(told) or "its checkpoint's page"


def _judge_needs(judge: str, form: Form) -> str:
    compares = evaluators.spec_of(judge).compares and form.reference is None
    return ", ".join([f"`{judge}`", *(["real images" + f" (`{evaluators.REFERENCE}`)"] if compares else [])])


def _judges(suites: Sequence[Suite]) -> str:
    """What each judge of a paper form loads, where that comes from, and what its bytes are checked against."""
    lines = [
        "## Judges\n",
        "Looked for where `erasure-bench doctor --suite S --model M` says; `fetch` gets what has an address, at the",
        "commit or with the SHA-256 given here. Packages come with `make setup`.\n",
        "| judge | loads | size | licence | checked by |",
        "|---|---|---|---|---|",
    ]
    named = dict.fromkeys(protocol(p).evaluator for one in suites for p in one.form("paper").protocols)
    for judge in sorted({*named, *(e for e, spec in evaluators.EVALUATORS.items() if spec.sources)}):
        for w in evaluators.spec_of(judge).sources:
            loads = w.hub or w.url or f"the package {w.package}"
            checked = [f"commit `{w.revision}`"] if w.revision else []
            checked += [f"SHA-256 `{d[:16]}{'…' if len(d) > 16 else ''}`" for d in dict.fromkeys(w.sha256.values())]
            cells = [f"`{judge}`", loads, weights.amount(w.size), w.licence, "<br>".join(checked) or "what was fetched"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _host(url: str) -> str:
    return url.split("/")[2]


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
    atomic.write(sys.argv[1], text())
