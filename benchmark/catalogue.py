"""All that has a name here, as JSON values: what `list` lists and `show` shows; `cards` makes it readable. No torch."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from benchmark import data, data_files, items, models, paths, registry, suite
from benchmark.errors import BadInput, did_you_mean
from benchmark.metrics import rules
from benchmark.metrics.balance import headline
from benchmark.metrics.protocols import PROTOCOLS, protocol
from benchmark.plan import lacks

Entry = dict[str, Any]
"""One named thing, as JSON values."""


def catalogue(kind: str | None = None) -> dict[str, list[Entry]]:
    """Everything, by kind: methods, suites, models, protocols, datasets; each entry has a `name`. Or of one kind alone;
    BadInput for a kind that there is not."""
    if kind is not None and kind not in KINDS:
        raise BadInput(did_you_mean(kind, KINDS, "kind"))
    entries = {k: entry for k, (_, entry, _) in KINDS.items()} | {"methods": _listed_method}
    return {k: [entries[k](name) for name in names()] for k, (names, _, _) in KINDS.items() if kind in (None, k)}


def names() -> list[str]:
    """All names, without their entries."""
    return [name for known, _, _ in KINDS.values() for name in known()]


def find(name: str) -> tuple[str, Entry]:
    """The kind and the entry of a name, with more than `catalogue` has; a suite before a dataset of the same name.

    BadInput with the nearest name.
    """
    method = name.partition("@")[0]
    for kind, (known, entry, more) in KINDS.items():
        if (method if kind == "methods" else name) in known():
            return kind, entry(name) | more(name)
    raise BadInput(did_you_mean(name, names()))


# --- entries --------------------------------------------------------------------------------------------------


def _listed_method(name: str) -> Entry:
    """As `_method`; of what another package registered only where it comes from: it is loaded when it is named."""
    plugin = registry.plugin(name)
    if plugin is None:
        return _method(name)
    unknown: Entry = dict.fromkeys(("kind", "paper", "version", "families", "max_concepts", "variants", "fields"))
    unknown |= {"kind": "plug-in", "families": [], "variants": [], "fields": {}}
    return {"name": name, "title": f"plug-in {plugin}, not loaded: `show {name}` does", **unknown}


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
        "fields": registry.every_field(spec),
    }


def _title(module: object) -> str:
    return (inspect.getdoc(module) or "").partition("\n")[0]


def _suite(name: str) -> Entry:
    found = suite.load(name)
    forms = {form: _form(found, form) for form in _forms(found)}
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


# --- what `show` adds -----------------------------------------------------------------------------------------------
def _of_method(label: str) -> Entry:
    name, _, variant = label.partition("@")
    cls = registry.method_class(name)
    presets = {m: of[label] for m, of in registry.presets().items() if label in of}
    return {
        "defaults": registry.every_field(registry.resolve(name)),
        "fields_help": {f.name: _documented(cls).get(f.name, "") for f in fields(cls)},
        "variant_fields": {v: dict(given) for v, given in cls.variants.items() if variant in ("", v)},
        "presets": presets,
        "models": [m for m in models.names() if models.describe(m).family in cls.families],
        "sequential": cls.sequential,
        "file": _file(cls),
    }


@cache
def _documented(cls: type) -> dict[str, str]:
    """What stands as text below each field, on one line."""
    (body,) = [n.body for n in ast.parse(textwrap.dedent(inspect.getsource(cls))).body if isinstance(n, ast.ClassDef)]
    found = {}
    for field, below in zip(body, body[1:], strict=False):
        text = below.value if isinstance(below, ast.Expr) else None
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Constant):
            found[field.target.id] = " ".join(str(text.value).split())
    return found


def _file(cls: type) -> str:
    """Where it stands: inside the checkout, or as its module is called."""
    path, root = Path(inspect.getfile(cls)), paths.checkout()
    return path.relative_to(root).as_posix() if root and path.is_relative_to(root) else cls.__module__


def _of_suite(name: str) -> Entry:
    found = suite.load(name)
    forms = {form: _counted(found, found.form(form)) for form in _forms(found)}
    about = {} if found.headline is None else {"headline_title": headline(found.headline).title}
    return {"notes": list(found.notes), **about, "of_forms": forms}


def _counted(found: suite.Suite, form: suite.Form) -> Entry:
    """What one method makes, by role, and what the form needs that does not ship."""
    asked = suite.requests(form)
    counts: dict[str, int] = {}
    for request in asked:
        for item in items.request_items(found.name, found.version, request, rows=items.placeholders):
            counts[item.role] = counts.get(item.role, 0) + 1
    judges = dict.fromkeys(protocol(p).evaluator for p in form.protocols)
    files = [lack for what in data_files.named_in(form.model_dump(mode="json")) if (lack := data_files.missing(what))]
    return {
        "images": counts,
        "at_once": sorted({len(r.erase) for r in asked}),
        "missing": [x["what"] for judge in judges for x in lacks(judge, form)] + [x["what"] for x in files],
    }


def _of_model(name: str) -> Entry:
    lack = models.missing(name)
    family, ours = models.describe(name).family, [m for m in registry.method_names() if registry.plugin(m) is None]
    erasing = [m for m in ours if family in registry.method_class(m).families]
    return {"where": lack and lack["where"], "methods": erasing}


def _of_protocol(name: str) -> Entry:
    using: dict[str, list[str]] = {}
    for one in map(suite.load, suite.names()):
        for form in _forms(one):
            if name in one.form(form).protocols:
                using.setdefault(form, []).append(one.name)
    return {"rule": rules.rule(protocol(name)), "suites": using}


def _of_dataset(name: str) -> Entry:
    found = data.load(name)
    wanted = [data_files.Wanted(name, file) for file in found.card.files]
    using = [
        one.name for one in map(suite.load, suite.names()) for form in _forms(one) if name in _data(one.form(form))
    ]
    return {
        "kinds": sorted({c.kind for c in found.concepts}),
        "files_here": {what.file.name: data_files.missing(what) is None for what in wanted},
        "suites": list(dict.fromkeys(using)),
    }


def _forms(found: suite.Suite) -> list[suite.FormName]:
    both: tuple[suite.FormName, ...] = ("embedded", "paper")
    return [form for form in both if getattr(found.forms, form) is not None]


def _data(form: suite.Form) -> set[str]:
    """Datasets of concepts, prompts and reference images."""
    own = [form.dataset] if isinstance(form.dataset, str) else form.dataset
    return {*own, *(what.dataset for what in data_files.named_in(form.model_dump(mode="json")))}


KINDS: dict[str, tuple[Callable[[], Iterable[str]], Callable[[str], Entry], Callable[[str], Entry]]] = {
    "methods": (registry.method_names, _method, _of_method),
    "suites": (suite.names, _suite, _of_suite),
    "models": (models.names, _model, _of_model),
    "protocols": (lambda: sorted(PROTOCOLS), _protocol, _of_protocol),
    "datasets": (data.names, _dataset, _of_dataset),
}
"""By kind: all names, the entry of one, and what `show` tells beyond it."""
