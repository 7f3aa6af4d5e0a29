"""Methods by name: files of the package `methods`, and what other packages register; loaded when first asked for."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import pkgutil
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from benchmark import declared
from benchmark.errors import BadInput, did_you_mean
from benchmark.interface import Method

GROUP = "erasure_bench.methods"
"""Entry point group in which other packages register `name = "module:Class"`."""
PACKAGE = "methods"
ALL = "all"
"""In place of a method's name: the suite's own methods and `everything()`."""
_GIVEN = ("checkpoint",)
"""Methods that run on a file of their own."""
_AMBIGUOUS = {
    "fade": "'fade' names two methods: fade_fg is Fine-grained Attenuation (arXiv:2503.19783), "
    "fade_adv is Fair Adversarial Diffusion Erasure (arXiv:2507.12283); say which",
}

Values = Mapping[str, Any]


@dataclass(frozen=True)
class MethodSpec:
    """A method with its hyperparameters settled."""

    label: str
    """`name` or `name@variant`: how boards call it."""
    name: str
    variant: str | None
    fields: Values
    """All hyperparameters, as JSON values."""
    passed: Values
    """Those given explicitly."""
    preset: str | None
    """`<model>/<method>/<kind>`, where one was used."""
    instance: Method


def method_names() -> list[str]:
    """Names of all methods, built in and registered; nothing is loaded."""
    return sorted({*_files(PACKAGE), *_entry_points()})


def everything() -> list[str]:
    """Our methods that need nothing but a request: the unedited model, then erasure by name, then the controls."""
    asked = [name for name in _files(PACKAGE) if name not in _GIVEN]
    place = {"baseline": 0, "erasure": 1, "control": 2}
    return sorted(asked, key=lambda name: (place[method_class(name).role], name))


def plugin(name: str) -> str | None:
    """Where another package says that this method is (`module:Class`), without loading it; None for one of ours."""
    return None if name in _files(PACKAGE) or name not in _entry_points() else _entry_points()[name].value


@cache
def method_class(name: str) -> type[Method]:
    """The class of a method; `BadInput` if there is none or more than one of that name, or its file lacks it."""
    if name in _AMBIGUOUS:
        raise BadInput(_AMBIGUOUS[name])
    if name in _files(PACKAGE) and name in _entry_points():
        other = _entry_points()[name].value
        raise BadInput(f"method {name!r} is built in, and registered as {other}; rename the registered one")
    if name in _files(PACKAGE):
        return _class_in(_loaded(f"{PACKAGE}.{name}", lambda: importlib.import_module(f"{PACKAGE}.{name}")), name)
    if name in _entry_points():
        point = _entry_points()[name]
        return _checked(_loaded(point.value, point.load), name, point.value)
    raise BadInput(did_you_mean(name, method_names(), "method"))


def find(text: str) -> type[Method]:
    """The class of a method by its name, or by `module:Class` or `FILE.py:Class` where it is not registered (yet).

    `BadInput` if there is none. Modules beside the user are found inside `importable()` alone.
    """
    module, colon, attribute = text.rpartition(":")
    if not colon:
        return method_class(text)
    loaded = _loaded(
        module, lambda: _from_file(Path(module)) if module.endswith(".py") else importlib.import_module(module)
    )
    found = getattr(loaded, attribute, None)
    return _checked(found, getattr(found, "name", ""), text)


def _from_file(path: Path) -> ModuleType:
    """The module of a file that stands in no package; loaded once."""
    name = f"_method_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if name in sys.modules or spec is None or spec.loader is None:
        return sys.modules[name]
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def importable() -> Iterator[None]:
    """While the block runs, modules in the working folder can be imported, where commands do not look.

    It comes last, so that no folder of the user's shadows a library.
    """
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _files(package: str) -> list[str]:
    """Modules of the package that are methods: all but helpers (`_…`) and the tests that `new-method` writes."""
    found = importlib.util.find_spec(package)
    where = list(found.submodule_search_locations or ()) if found else []
    return [m.name for m in pkgutil.iter_modules(where) if not m.name.startswith(("_", "test_"))]


@cache
def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {e.name: e for e in importlib.metadata.entry_points(group=GROUP)}


def _loaded(where: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (Exception, SystemExit) as error:  # anything may stand in a file that is being written
        raise BadInput(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error


def _class_in(module: ModuleType, name: str) -> type[Method]:
    own = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__]
    found = [c for c in own if issubclass(c, Method) and getattr(c, "name", None) == name]
    if len(found) != 1:
        raise BadInput(f"{module.__name__}: expected one subclass of Method with name = {name!r}, found {len(found)}")
    return _checked(found[0], name, module.__name__)


def _checked(found: Any, name: str, where: str) -> type[Method]:
    if not (inspect.isclass(found) and issubclass(found, Method) and not inspect.isabstract(found)):
        raise BadInput(f"{where}: expected a subclass of benchmark.interface.Method with `edit`, found {found!r}")
    if getattr(found, "name", None) != name:
        raise BadInput(f"{where}: expected name = {name!r}, found {getattr(found, 'name', None)!r}")
    return found


# --- hyperparameters ------------------------------------------------------------------------------------------------
def resolve(label: str, *, model: str = "", kind: str = "*", passed: Values | None = None) -> MethodSpec:
    """A method by label with its fields: class defaults < variant < preset of model and kind < those passed.

    A kind with `+` at its end, such as `identity+`, is that of a request for several concepts at once: presets for
    such requests stand before those of one concept.

    `BadInput` for an unknown method, variant or field, or a value of the wrong type.
    """
    name, variant = split(label)
    cls = method_class(name)
    preset, from_preset = _preset(label, model, kind)
    given = {**(cls.variants[variant] if variant else {}), **from_preset, **(passed or {})}
    instance = build(label, cls, given)
    settled = {f.name: getattr(instance, f.name) for f in fields(instance) if _told(f, instance)}
    return MethodSpec(label, name, variant, _json(label, settled), _json(label, passed or {}), preset, instance)


def every_field(spec: MethodSpec) -> dict[str, Any]:
    """All fields of a settled method as JSON values, those that keys leave out too."""
    return _json(spec.label, {f.name: getattr(spec.instance, f.name) for f in fields(spec.instance)})


def _told(field: Field[Any], instance: Method) -> bool:
    """Whether keys and records hold the field: see `interface.later`."""
    return not field.metadata.get("later") or getattr(instance, field.name) != field.default


def build(label: str, cls: type[Method], given: Values) -> Method:
    """The method with the given fields; `BadInput` for an unknown one, or a value of the wrong type."""
    return cls(**_typed(label, cls, given))


def split(label: str) -> tuple[str, str | None]:
    """`esd@paper` → `("esd", "paper")`; `BadInput` if the method has no such variant."""
    name, at, variant = label.partition("@")
    known = method_class(name).variants
    if at and variant not in known:
        raise BadInput(did_you_mean(variant, known, f"variant of {name}"))
    return name, variant if at else None


def _typed(label: str, cls: type[Method], given: Values) -> dict[str, Any]:
    known = {f.name for f in fields(cls)}
    hints = _hints(cls)
    for key in given:
        if key not in known:
            raise BadInput(did_you_mean(key, known, f"field of {label}"))
    required = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    if absent := [n for n in required if n not in given]:
        raise BadInput(f"{label}: {', '.join(absent)} must be given: it has no default")
    return {key: _value(f"{label}: {key}", hints[key], value) for key, value in given.items()}


# Both are asked for by every cell of a plan.
_hints = cache(typing.get_type_hints)
_adapter = cache(TypeAdapter[Any])


def _value(where: str, hint: Any, value: Any) -> Any:
    try:
        # As JSON, a list stands for a tuple, and nothing else is converted.
        return _adapter(hint).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise BadInput(f"{where}: {error.errors()[0]['msg']}, got {value!r:.200}") from None
    except TypeError:
        raise BadInput(f"{where}: expected a JSON value, got {value!r}") from None


def _json(label: str, values: Values) -> dict[str, Any]:
    try:
        return dict(json.loads(json.dumps(dict(values), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise BadInput(f"{label}: fields must be JSON values: {error}") from None


# --- presets --------------------------------------------------------------------------------------------------------
def _preset(label: str, model: str, kind: str) -> tuple[str | None, Values]:
    """By the full label only: a preset of `esd` would make `esd@paper` something else than it is called."""
    of_label = presets().get(model, {}).get(label, {})
    alone = kind.removesuffix("+")
    for which in (kind, "*") if alone == kind else (kind, "*+", alone, "*"):
        if which in of_label:
            return f"{model}/{label}/{which}", of_label[which]
    return None, {}


@cache
def presets(path: Path | None = None) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """Model → label → kind, `*`, or either with `+` → fields, from `methods/presets.yaml`; empty if there is none."""
    path = path or _presets_path()
    if path is None or not path.is_file():
        return {}
    data, _ = declared.load(path)
    shape = TypeAdapter(dict[str, dict[str, dict[str, dict[str, Any]]]])
    try:
        return shape.validate_python(data or {}, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"{path}: {declared.dotted(tuple(first['loc']))}: {first['msg']}") from None


def _presets_path() -> Path | None:
    found = importlib.util.find_spec(PACKAGE)
    where = list(found.submodule_search_locations or ()) if found else []
    return Path(where[0]) / "presets.yaml" if where else None
