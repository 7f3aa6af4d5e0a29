"""YAML under a strict schema: an unknown or repeated key or a wrong type is one error with file, line and key."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from benchmark.errors import BadInput, did_you_mean
from benchmark.untrusted import DEPTH, TEXT, encodable, read_bytes

T = TypeVar("T")
M = TypeVar("M", bound="Strict")
Place = tuple[int | str, ...]
"""Key path of a value: `("forms", "paper", "requests", 0)`."""

_MOST = 100_000  # a few nested aliases stand for millions of entries

Tuple = Annotated[tuple[T, ...], Field(strict=False)]
"""A YAML list; strict mode would refuse it where a tuple is declared."""


def _some(values: tuple[T, ...]) -> tuple[T, ...]:
    if not values:
        raise ValueError("expected at least one entry, found none")
    return values


# Not min_length: with a wrong entry, that reports the length too.
Some = Annotated[tuple[T, ...], Field(strict=False), AfterValidator(_some)]
"""A YAML list that is not empty."""


class Strict(BaseModel):
    """Base of all declarations: frozen, no unknown key, no conversion of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for key in data if isinstance(data, dict) else ():
            if key not in known:
                message = did_you_mean(str(key), known, "key")
                raise PydanticCustomError("unknown_key", "{message}", {"message": message, "key": key})
        return data


def read(path: Path, schema: type[M], **given: object) -> M:
    """Read a YAML file as `schema`, with the fields in `given` from us; `BadInput` says where it goes wrong."""
    data, lines = load(path)
    if not isinstance(data, dict):
        raise BadInput(f"{path}: expected keys and values, found {_short(data)}")
    try:
        for key in given.keys() & data.keys():
            known = schema.model_fields.keys() - given.keys()
            raise BadInput(f"{path}, line {lines.get((key,), 1)}: {did_you_mean(key, known, 'key')}")
        return schema.model_validate({**data, **given})
    except ValidationError as error:
        raise BadInput(_explain(path, error, lines)) from None


def load(path: Path) -> tuple[Any, dict[Place, int]]:
    """The plain values of a YAML file, and the line of every key path."""
    content = read_bytes(path, TEXT)
    try:
        text = content.decode("utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines = _lines(path, node) if node is not None else {}
        return yaml.safe_load(text), lines
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise BadInput(f"{path}{where}: not valid YAML: {problem}") from None
    except RecursionError:
        raise BadInput(f"{path}: not valid YAML: more than {DEPTH} levels of nesting") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # PyYAML lets these through where a tag promises what the text does not hold: a date in month 99, say.
        raise BadInput(f"{path}: not valid YAML: a value is not of the kind that it looks like: {error}") from None


def _lines(path: Path, root: yaml.Node) -> dict[Place, int]:
    lines: dict[Place, int] = {}

    def walk(node: yaml.Node, place: Place, above: tuple[int, ...]) -> None:
        at = f"{path}, line {node.start_mark.line + 1}"
        if id(node) in above:
            raise BadInput(f"{at}: {dotted(place)} contains itself")
        if len(above) >= DEPTH:
            raise BadInput(f"{at}: not valid YAML: more than {DEPTH} levels of nesting")
        if isinstance(node, yaml.ScalarNode) and not _whole(node.value):
            raise BadInput(f"{at}: {dotted(place)}: a text holds half a character, \\ud800 to \\udfff")
        for key, child, mark in _children(path, node):
            here = (*place, key)
            # PyYAML would let the last one win in silence.
            if here in lines:
                raise BadInput(f"{path}, line {mark}: {dotted(here)} is given twice (first in line {lines[here]})")
            lines[here] = mark
            if len(lines) > _MOST:
                raise BadInput(f"{path}: more than {_MOST} entries, aliases written out; it is no declaration")
            walk(child, here, (*above, id(node)))

    walk(root, (), ())
    return lines


def _whole(text: str) -> bool:
    try:
        encodable(text)
    except ValueError:
        return False
    return True


def _children(path: Path, node: yaml.Node) -> list[tuple[int | str, yaml.Node, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or not _whole(key.value):
                raise BadInput(f"{path}, line {key.start_mark.line + 1}: not valid YAML: expected a text as key")
        return [(k.value, v, k.start_mark.line + 1) for k, v in node.value]
    if isinstance(node, yaml.SequenceNode):
        return [(i, v, v.start_mark.line + 1) for i, v in enumerate(node.value)]
    return []


def _explain(path: Path, error: ValidationError, lines: dict[Place, int]) -> str:
    found = [_located(e, lines) for e in error.errors()]
    line, place, message = min(found, key=lambda f: (f[0], -len(f[1])))
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"{path}, line {line}: {dotted(place) or 'the file'}: {message}{more}"


def _located(error: ErrorDetails, lines: dict[Place, int]) -> tuple[int, Place, str]:
    place: Place = tuple(error["loc"])
    context = error.get("ctx", {})
    if error["type"] == "unknown_key":
        place = (*place, str(context["key"]))
    known = next((place[:n] for n in range(len(place), 0, -1) if place[:n] in lines), ())
    return lines.get(known, 1), place, _message(error)


def _message(error: ErrorDetails) -> str:
    if error["type"] == "missing":
        return "this key is required"
    message = error["msg"].removeprefix("Value error, ")
    kept = error["type"] in ("unknown_key", "value_error")
    return message if kept else f"{message[0].lower()}{message[1:]}, got {_short(error['input'])}"


def _short(value: Hashable | Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def dotted(place: Place) -> str:
    """`forms.paper.requests[0].keep`; of a key without end the beginning."""
    names = (p if isinstance(p, int) or len(p) <= 60 else f"{p[:57]}…" for p in place)
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in names).removeprefix(".")
