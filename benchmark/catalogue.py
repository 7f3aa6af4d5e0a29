"""All that has a name here: what `list` lists and `show` shows. No torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from benchmark import data, models, registry, suite
from benchmark.errors import BadInput, did_you_mean
from benchmark.metrics.protocols import PROTOCOLS

Entry = dict[str, Any]
"""One named thing, as JSON values."""


def catalogue() -> dict[str, list[Entry]]:
    """Everything, by kind: methods, suites, models, protocols, datasets; each entry has a `name`."""
    return {kind: [entry(name) for name in names()] for kind, (names, entry) in _KINDS.items()}


def find(name: str) -> tuple[str, Entry]:
    """The kind and the entry of a name, a suite before a dataset of the same name; BadInput with the nearest name."""
    method = name.partition("@")[0]
    for kind, (names, entry) in _KINDS.items():
        if (method if kind == "methods" else name) in names():
            return kind, entry(name)
    raise BadInput(did_you_mean(name, [known for names, _ in _KINDS.values() for known in names()]))


def lines(entries: Mapping[str, Iterable[Entry]]) -> list[str]:
    """The catalogue to be read: one line each, by kind."""
    shown = []
    for kind, of_kind in entries.items():
        rows = [(entry["name"], _summary(kind, entry)) for entry in of_kind]
        width = max((len(name) for name, _ in rows), default=0)
        shown += [kind, *(f"  {name:<{width}}  {text}" for name, text in rows)]
    return shown


def detail(kind: str, entry: Entry) -> list[str]:
    """One entry to be read: `key: value` lines, nested ones indented."""
    return [f"{entry['name']} ({kind.removesuffix('s')})", *_indented(entry, "  ")]


def _indented(entry: Mapping[str, Any], by: str) -> list[str]:
    shown = []
    for key, value in entry.items():
        if isinstance(value, dict) and value:
            shown += [f"{by}{key}:", *_indented(value, by + "  ")]
        elif key != "name":
            shown.append(f"{by}{key}: {_plain(value)}")
    return shown


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "-"
    return "-" if value is None else str(value)


# --- entries --------------------------------------------------------------------------------------------------


def _method(label: str) -> Entry:
    cls = registry.method_class(label.partition("@")[0])
    spec = registry.resolve(label)
    return {
        "name": label,
        "title": _title(inspect.getmodule(cls)),
        "kind": cls.role,
        "paper": cls.paper,
        "version": cls.version,
        "families": sorted(cls.families),
        "max_concepts": cls.max_concepts,
        "variants": sorted(cls.variants),
        "fields": dict(spec.fields),
    }


def _title(module: object) -> str:
    return (inspect.getdoc(module) or "").partition("\n")[0]


def _suite(name: str) -> Entry:
    found = suite.load(name)
    forms = {form: _form(found, form) for form in ("embedded", "paper") if getattr(found.forms, form) is not None}
    return {
        "name": name,
        "title": found.title,
        "version": found.version,
        "source": found.source,
        "methods": list(found.methods),
        "headline": found.headline,
        "forms": forms,
    }


def _form(found: suite.Suite, name: Any) -> Entry:
    form = found.form(name)
    requests = suite.requests(form)
    return {
        "dataset": form.dataset if isinstance(form.dataset, str) else list(form.dataset),
        "requests": [request.name for request in requests],
        "sampler": form.sampler.model_dump(mode="json"),
        "primary": form.primary,
        "protocols": list(form.protocols),
    }


def _model(name: str) -> Entry:
    spec = models.describe(name)
    return {
        "name": name,
        "family": spec.family,
        "form": spec.form,
        "hub": spec.hub,
        "bytes": spec.size,
        "licence": spec.licence,
        "here": models.missing(name) is None,
    }


def _protocol(name: str) -> Entry:
    return {"name": name, **PROTOCOLS[name].as_json()}


def _dataset(name: str) -> Entry:
    found = data.load(name)
    groups = sorted({group for concept in found.concepts for group in concept.groups})
    concepts = {group: [c.name for c in found.concepts if group in c.groups] for group in groups}
    return {"name": name, **found.card.model_dump(mode="json"), "size": len(found.concepts), "concepts": concepts}


_KINDS: dict[str, tuple[Callable[[], list[str]], Callable[[str], Entry]]] = {
    "methods": (registry.method_names, _method),
    "suites": (suite.names, _suite),
    "models": (models.names, _model),
    "protocols": (lambda: sorted(PROTOCOLS), _protocol),
    "datasets": (data.names, _dataset),
}


def _summary(kind: str, entry: Entry) -> str:
    if kind == "models":
        here = "here" if entry["here"] else "weights not here"
        return f"{entry['family']}, {entry['form']} form, {here}"
    if kind == "datasets":
        return f"{entry['title']} ({entry['size']} concepts)"
    variants = "".join(f" @{variant}" for variant in entry.get("variants", []))
    return f"{entry['title']}{'; variants' + variants if variants else ''}"
