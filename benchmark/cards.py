"""The catalogue to be read: a line for each entry, or a card for one. Pure text, no colours.

`width` is the columns to wrap at; None leaves every line whole, for programs that search.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Entry = Mapping[str, Any]
Pairs = Iterable[tuple[str, Any]]
_LISTED = 24  # more names than this hide what they are examples of


# --- all --------------------------------------------------------------------------------------------------------------
def lines(entries: Mapping[str, Sequence[Entry]], width: int | None = None) -> list[str]:
    """The catalogue: a line each, by kind."""
    shown: list[str] = []
    for kind, of_kind in entries.items():
        longest = max((len(entry["name"]) for entry in of_kind), default=0)
        shown += ["", kind] if shown else [kind]
        for entry in of_kind:
            shown += _hung(f"  {entry['name']:<{longest}}  ", _summary(kind, entry), width)
    return shown


def _summary(kind: str, entry: Entry) -> str:
    if kind == "models":
        here = "here" if entry["here"] else "weights not here"
        return f"{entry['family']}, {entry['form']} form, {here}"
    if kind == "datasets":
        return f"{entry['title']} ({_n(entry['size'], 'concept')})"
    variants = "".join(f" @{variant}" for variant in entry.get("variants", []))
    return f"{entry['title'].rstrip('.')}; variants{variants}" if variants else str(entry["title"])


# --- one --------------------------------------------------------------------------------------------------------------
def card(kind: str, entry: Entry, width: int | None = None) -> list[str]:
    """One entry as `catalogue.find` gives it."""
    return _CARDS[kind](entry, width)


def _method(e: Entry, width: int | None) -> list[str]:
    at_once = "any number of concepts" if e["max_concepts"] is None else _n(e["max_concepts"], "concept")
    one_by_one = " at once, more of them one after another" if e["max_concepts"] and e["sequential"] else ""
    told = [
        ("paper", e["paper"] or "none: a control"),
        ("erases", f"{at_once}{one_by_one}" if e["kind"] == "erasure" else ""),
        ("models", f"{', '.join(e['models'])}, or a folder ({', '.join(e['families'])})"),
        ("file", e["file"]),
    ]
    return [
        *_head(e["name"], f"{e['kind']} method, version {e['version']}", e["title"], width),
        *_pairs(told, width),
        *_section("Fields", _fields(e, width)),
        *_section("Variants", _pairs(_variants(e), width)),
        *_section("Presets, in place of defaults", _pairs(_presets(e), width)),
        *_try(f"run smoke --methods none,{e['name']}"),
    ]


def _fields(e: Entry, width: int | None) -> list[str]:
    found: list[str] = []
    for name, value in e["fields"].items():
        default = e["defaults"].get(name, value)
        unlike = "" if value == default else f" (default {_value(default)})"
        found += _hung("  ", f"{name} = {_value(value)}{unlike}", width)
        found += _hung("      ", told, width) if (told := e["fields_help"].get(name)) else []
    return found


def _variants(e: Entry) -> Pairs:
    method = e["name"].partition("@")[0]
    return [(f"{method}@{v}", _given(given) or "the defaults") for v, given in e["variant_fields"].items()]


def _presets(e: Entry) -> Pairs:
    return [
        (f"{model}, {'any kind' if kind == '*' else kind}", _given(given))
        for model, kinds in e["presets"].items()
        for kind, given in kinds.items()
    ]


def _suite(e: Entry, width: int | None) -> list[str]:
    told = [
        ("source", e["source"]),
        ("methods", ", ".join(e["methods"])),
        ("headline", f"{e['headline']}, {e['headline_title']}" if e["headline"] else "none"),
    ]
    found = [*_head(e["name"], f"suite, version {e['version']}", e["title"], width), *_pairs(told, width)]
    for name, form in e["forms"].items():
        found += _section(f"{name.capitalize()} form", _pairs(_form(form, e["of_forms"][name]), width))
    notes = [line for note in e["notes"] for line in _hung("  - ", note, width)]
    return [*found, *_section("Notes", notes), *_try(f"run {e['name']}")]


def _form(form: Entry, counted: Entry) -> Pairs:
    dataset = form["dataset"] if isinstance(form["dataset"], str) else ", ".join(form["dataset"])
    sampler, roles = form["sampler"], counted["images"]
    sizes = " or ".join(f"{n:,}" for n in counted["at_once"])
    return [
        ("dataset", dataset),
        ("requests", f"{len(form['requests'])}, of {sizes} at once: {_some(form['requests'])}"),
        ("images", f"{sum(roles.values()):,} a method: " + ", ".join(f"{n:,} {role}" for role, n in roles.items())),
        (
            "sampler",
            f"{sampler['scheduler']}, {sampler['steps']} steps, guidance {sampler['guidance']:g}, "
            f"{sampler['size']}×{sampler['size']} pixels",
        ),
        ("primary", form["primary"]),
        ("also", ", ".join(p for p in form["protocols"] if p != form["primary"])),
        ("not here", "; ".join(dict.fromkeys(counted["missing"]))),
    ]


def _model(e: Entry, width: int | None) -> list[str]:
    told = [
        ("runs", f"suites in their {e['form']} form"),
        ("weights", _weights(e)),
        ("looked in", e["where"]),
        ("licence", e["licence"]),
        ("methods", ", ".join(e["methods"])),
    ]
    suite = "smoke" if e["form"] == "embedded" else "objects"
    return [
        *_head(e["name"], f"model, {e['family']}", "", width),
        *_pairs(told, width),
        *_try(f"{'run' if e['here'] else 'plan'} {suite} --model {e['name']}"),
    ]


def _weights(e: Entry) -> str:
    if not e["bytes"]:
        return "random, made in code"
    size = f"{e['hub'] or 'ship with this package'}, {_size(e['bytes'])}"
    return size if e["here"] else f"{size}, not here"


def _protocol(e: Entry, width: int | None) -> list[str]:
    lo, hi = e["range"]
    bounds = "" if lo is None and hi is None else f", from {_end(lo)} to {_end(hi)}"
    better = "high" if e["direction"] == "up" else "low"
    rate = "; on erased and synonym prompts low" if e["measure"] == "accuracy" else ""
    known = ("function", "over", "rate", "total", "by_concept")
    settings = {k: v for k, v in e["rule"].items() if k not in known}
    told = [
        ("measures", f"{e['measure']}; unit: {e['unit']}{bounds}"),
        ("better", f"{better} on {' or '.join(e['over'])} prompts, worst {_end(e['worst'])}{rate}"),
        ("scored", {"image": "image by image", "set": "one number for a set", "pair": "pair by pair"}[e["scope"]]),
        ("judge", e["evaluator"]),
        ("set to", _given(settings)),
        *((f"{form} form", f"of {', '.join(names)}") for form, names in e["suites"].items()),
    ]
    return [
        *_head(e["name"], f"protocol, version {e['version']}", e["title"], width),
        *_pairs(told, width),
        *_try(f"rescore runs/RUN --protocol {e['name']}"),
    ]


def _dataset(e: Entry, width: int | None) -> list[str]:
    told = [
        ("concepts", f"{e['size']:,}, of kind {', '.join(e['kinds'])}" if e["size"] else "none: prompts alone"),
        ("source", e["source"]),
        ("licence", e["licence"]),
        ("cite", e["citation"]),
        ("get", e["get"]),
        ("suites", ", ".join(e["suites"])),
    ]
    groups = [(group, f"{len(names):,}: {_some(names)}") for group, names in e["concepts"].items()]
    notes = [line for note in e["notes"] for line in _hung("  - ", note, width)]
    files = [(f["name"], _datafile(f, here=e["files_here"][f["name"]])) for f in e["files"]]
    return [
        *_head(e["name"], "dataset", e["title"], width),
        *_pairs(told, width),
        *_section("Groups", _pairs(groups, width)),
        *_section("Files that do not ship", _pairs(files, width)),
        *_section("Notes", notes),
        *(_try(f"run {e['suites'][0]}") if e["suites"] else []),
    ]


def _datafile(f: Entry, *, here: bool) -> str:
    count = f"{f['rows']:,} {f['kind']}" if f["rows"] else f["kind"]
    at = f" at {f['revision'][:12]}" if f["revision"] else ""
    told = [
        f"{f['file']}: {count}",
        _size(f["size"]) if f["size"] else "",
        f"licence {f['licence']}",
        f["hub"] or f["url"],
    ]
    where = f"${f['env']} names it elsewhere" if f["env"] else ""
    parts = [*told[:-1], f"{told[-1]}{at}", "here" if here else "not here", where, f["by_hand"]]
    return "; ".join(part for part in parts if part)


_CARDS: Mapping[str, Callable[[Entry, int | None], list[str]]] = {
    "methods": _method,
    "suites": _suite,
    "models": _model,
    "protocols": _protocol,
    "datasets": _dataset,
}


# --- parts ------------------------------------------------------------------------------------------------------------
def _head(name: str, kind: str, title: str, width: int | None) -> list[str]:
    return [f"{name} · {kind}", *(_hung("", title, width) if title else []), ""]


def _section(heading: str, body: Sequence[str]) -> list[str]:
    return ["", heading, *body] if body else []


def _try(command: str) -> list[str]:
    return ["", f"Try: erasure-bench {command}"]


def _pairs(told: Pairs, width: int | None) -> list[str]:
    """`label  text` in two columns; what has no text is left out."""
    shown = [(label, str(text)) for label, text in told if text]
    longest = max((len(label) for label, _ in shown), default=0)
    return [line for label, text in shown for line in _hung(f"  {label:<{longest}}  ", text, width)]


def _hung(before: str, text: str, width: int | None) -> list[str]:
    """`before` and the text, wrapped so that it stays in a column of its own."""
    if width is None:
        return [f"{before}{text}".rstrip()]
    indent = " " * min(len(before), width // 2)
    made = textwrap.wrap(
        text, width, initial_indent=before, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return made or [before.rstrip()]


def _some(names: Sequence[str]) -> str:
    more = f", … {len(names):,} in all" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _given(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_value(value)}" for name, value in fields.items())


def _value(value: Any) -> str:
    """As `--set` takes it."""
    return json.dumps(value, ensure_ascii=False)


def _n(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _end(value: float | None) -> str:
    return "no bound" if value is None else f"{value:g}"


def _size(count: int) -> str:
    return f"{count / 1e9:.2g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
