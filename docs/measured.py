"""Tables of the embedded model's committed records, for the pages that discuss them. No torch.

A page asks for one as for all that is generated (`generated.py`). Nothing here is typed by hand, so that a table is
never older than the records under `results/`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from benchmark.record import listed, values_of

RESULTS = Path(__file__).resolve().parent.parent / "results" / "testbed-3"
JUDGES = ("testbed/top1", "testbed-b/top1")
ROLES = {"erased": "erased ↓", "synonym": "synonyms ↓", "adjacent": "adjacent, kept ↑", "kept": "far, kept ↑"}
AIM = {"erased": 0.20, "kept": 0.80}
"""At most so much of what was erased is still recognised, and at least so much of what the unedited model shows."""
_ABSENT = "n/a"
Record = Mapping[str, Any]


@cache
def records(suite: str) -> tuple[Record, ...]:
    """The records of a suite, by method as the suite has them and by request."""
    return tuple(values_of(path) for path in listed(RESULTS / suite / "records"))


def methods(suite: str, order: Sequence[str] = ()) -> list[str]:
    """Labels: the unedited model first, controls last; `order` where it is given."""
    roles = {r["method"]["label"]: r["method"]["role"] for r in records(suite)}
    place = {"baseline": 0, "erasure": 1, "control": 2}
    found = sorted(roles, key=lambda label: (place.get(roles[label], 1), label))
    return [label for label in order if label in roles] if order else found


def requests(suite: str) -> list[str]:
    """Names of requests."""
    return sorted({r["request"]["name"] for r in records(suite)}, key=lambda name: (name[-1].isdigit(), name))


def share(record: Record, role: str, judge: str) -> float | None:
    """Share of a role's images in which a judge sees what was asked for; None where the suite asks for none."""
    found = record["summary"]["by_role"].get(judge, {}).get(role)
    return None if found is None else float(found["mean"])


# --- every kind -------------------------------------------------------------------------------------------------
def kinds() -> str:
    """One table a role: methods × requests, in percent, both judges where they differ."""
    return "\n\n".join(f"**{title}**\n\n{_by_role(role)}" for role, title in ROLES.items())


def _by_role(role: str) -> str:
    found = {(r["method"]["label"], r["request"]["name"]): r for r in records("kinds")}
    names = [n for n in requests("kinds") if any(share(r, role, JUDGES[0]) is not None for r in _of(n))]
    rows = [[_code(m), *(_both(found.get((m, n)), role) for n in names)] for m in methods("kinds")]
    return table(["method", *map(_asked, names)], rows)


def _of(request: str) -> Iterable[Record]:
    return (r for r in records("kinds") if r["request"]["name"] == request)


def _both(record: Record | None, role: str) -> str:
    if record is None:
        return _ABSENT
    a, b = (_percent(share(record, role, judge)) for judge in JUDGES)
    return a if a == b else f"{a} / {b}"


def missed() -> str:
    """Where a method misses its aim by the first judge, a line a method; controls are no methods."""
    lines = [f"- `{label}`: {', '.join(found)}" for label, found in _missed().items() if found]
    return "\n".join(lines) or "- none does"


def _missed() -> dict[str, list[str]]:
    base = {r["request"]["name"]: r for r in records("kinds") if r["method"]["role"] == "baseline"}
    found: dict[str, list[str]] = {}
    for record in records("kinds"):
        if record["method"]["role"] == "erasure":
            told = _misses(record, base[record["request"]["name"]])
            found.setdefault(record["method"]["label"], []).extend(told)
    return found


def _misses(record: Record, base: Record) -> list[str]:
    name = _asked(record["request"]["name"])
    erased, kept = (share(record, role, JUDGES[0]) for role in ("erased", "kept"))
    before = share(base, "kept", JUDGES[0])
    told = []
    if erased is not None and erased > AIM["erased"]:
        told.append(f"{name} ({_percent(erased)} % left)")
    if kept is not None and before and kept / before < AIM["kept"]:
        told.append(f"{name} ({_percent(kept / before)} % kept)")
    return told


# --- the ablation -----------------------------------------------------------------------------------------------
ADVERSARIAL = ("none", "fade_adv", "fade_adv@no-adversary", "fade_adv@no-preservation", "fade_adv@no-saliency")
MEASURES = {"testbed-clip/score": "CLIP ↑", "testbed-fid/lowN/90": "FID ↓"}
"""Of images that have nothing to do with the concept."""
FINE_GRAINED = ("none", "fade_fg", "fade_fg@no-erasing", "fade_fg@no-guidance", "fade_fg@no-adjacency")


def adversarial() -> str:
    """What is left of FADE-adv without each of its parts."""
    return _ablated(ADVERSARIAL)


def finegrained() -> str:
    """What is left of FADE-fg without each of its losses."""
    return _ablated(FINE_GRAINED)


def _ablated(order: Sequence[str]) -> str:
    names = requests("ablation")
    found = {(r["method"]["label"], r["request"]["name"]): r for r in records("ablation")}
    told = ("still seen ↓", *MEASURES.values(), "H ↑")
    head = ["method", *(f"{_asked(name)}: {what}" for name in names for what in told)]
    labels = methods("ablation", order)
    return table(head, [[_code(m), *(c for n in names for c in _cells(found.get((m, n))))] for m in labels])


def _cells(record: Record | None) -> tuple[str, ...]:
    if record is None:
        return (_ABSENT,) * (len(MEASURES) + 2)
    summary = record["summary"]
    low, high = (f"{100 * end:.0f}" for end in summary["acc_erased_ci"])
    measures = (_number(summary["metrics"].get(key), 1) for key in MEASURES)
    return f"{100 * summary['acc_erased']:.1f} ({low}–{high})", *measures, _number(summary["headline"], 100)


def _number(value: float | None, scale: float) -> str:
    return _ABSENT if value is None else f"{value * scale:.1f}"


# --- a table ----------------------------------------------------------------------------------------------------
def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown, the first column to the left."""
    marks = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, marks, *rows))


def _code(label: str) -> str:
    return f"`{label}`"


def _asked(request: str) -> str:
    """`erase:kofi_ardenne` → `kofi ardenne`, `erase:object_5` → `5 objects`."""
    name = request.removeprefix("erase:").replace("_", " ")
    many = {"object 5": "5 objects", "identity 5": "5 people"}
    return many.get(name, name)


def _percent(value: float | None) -> str:
    return _ABSENT if value is None else f"{100 * value:.0f}"
