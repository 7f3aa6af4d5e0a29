"""What these pages take from code and records: commands, methods, protocols, a notebook, measured tables, as Markdown.

A page asks for one of them by a comment on a line of its own: `<!-- generated: commands -->`. No torch.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import measured
import typer
from typer.testing import CliRunner

from benchmark import catalogue, cli, registry

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE / "examples"
_MARK = re.compile(r"^<!-- generated: (?P<what>[a-z]+) -->$", re.M)
_OUTSIDE = {"benchmark/testbed/weights/MODEL_CARD.md": "model-card", "CHANGELOG.md": "changelog"}
"""Files of the repository that have a page here: links to them lead to the page."""


def filled(text: str) -> str:
    """The page with all that it asks for."""
    return _MARK.sub(lambda mark: PARTS[mark["what"]](), text)


def inside(text: str, docname: str) -> str:
    """Links to files outside this folder, led to the page that includes them, where there is one."""
    up = "../" * (docname.count("/") + 1)
    for path, page in _OUTSIDE.items():
        text = text.replace(f"]({up}{path})", f"]({up.removesuffix('../')}{page}.md)")
    return text


# --- commands -------------------------------------------------------------------------------------------------
def command_names() -> dict[str, Any]:
    """Every command by the words after `erasure-bench`, in the order of the help."""
    return dict(_walk(typer.main.get_command(cli.app), ""))


def _walk(group: Any, words: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _walk(command, f"{words}{name} ")
        elif not command.hidden:
            yield f"{words}{name}", command


def commands() -> str:
    """A section for each command: its help, and what its example printed."""
    return "\n".join(
        f"## {name}\n\n{_block('text', help_of(name))}\n{_block('text', example(name))}" for name in command_names()
    )


def help_of(name: str) -> str:
    """What `--help` says."""
    shown = CliRunner().invoke(cli.app, [*name.split(), "--help"], prog_name="erasure-bench", env={"COLUMNS": "100"})
    return shown.output


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text.strip()}\n```\n"


def example(name: str) -> str:
    """What `docs/run_examples.py` wrote for a command."""
    return (EXAMPLES / f"{name.replace(' ', '-')}.txt").read_text(encoding="utf-8")


# --- methods and protocols ------------------------------------------------------------------------------------
def methods() -> str:
    """A section for each method: what its file says, its variants, and its fields with their defaults."""
    return "\n".join(_method(catalogue.find(entry["name"])[1]) for entry in catalogue.catalogue()["methods"])


def _method(entry: Mapping[str, Any]) -> str:
    said = inspect.getdoc(inspect.getmodule(registry.method_class(entry["name"]))) or ""
    many = "any number of concepts at once" if entry["max_concepts"] is None else f"{entry['max_concepts']} at once"
    variants = entry["variant_fields"].items()
    facts = [
        f"- {entry['kind']}, version {entry['version']}, paper: {entry['paper'] or 'none'}",
        f"- {' and '.join(f'`{f}`' for f in entry['families'])}; {many}",
        *(f"- preset for `{model}`: see `methods/presets.yaml`" for model in entry["presets"]),
        *(f"- `{entry['name']}@{variant}`: {_fields(values)}" for variant, values in variants),
    ]
    rows = [_field(entry, name, value) for name, value in entry["fields"].items()]
    table = ["", "| field | default | |", "|---|---|---|", *rows] if rows else []
    return "\n".join([f"## {entry['name']}", "", _block("text", said), *facts, *table, ""])


def _field(entry: Mapping[str, Any], name: str, default: Any) -> str:
    cells = (f"`{name}`", f"`{json.dumps(default)}`", entry["fields_help"].get(name, ""))
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _fields(values: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}={json.dumps(_plain(value))}`" for name, value in values.items()) or "the defaults"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | frozenset) else value


def protocols() -> str:
    """The table of protocols."""
    head = ["| id | version | what | better | unit | judge |", "|---|---|---|---|---|---|"]
    return "\n".join(head + [_protocol(entry) for entry in catalogue.catalogue()["protocols"]])


def _protocol(entry: Mapping[str, Any]) -> str:
    cells = (f"`{entry['id']}`", entry["version"], entry["title"], entry["direction"], entry["unit"])
    return "| " + " | ".join(_cell(str(cell)) for cell in (*cells, f"`{entry['evaluator']}`")) + " |"


# --- the notebook ---------------------------------------------------------------------------------------------
def cells() -> list[tuple[str, str]]:
    """The notebook's cells in order: `markdown` or `code`, and the text."""
    made = json.loads((HERE / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in made]


def notebook() -> str:
    """The notebook to be read; its outputs are not kept."""
    return "\n\n".join(text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells()[1:])


PARTS: Mapping[str, Callable[[], str]] = {
    "adversarial": measured.adversarial,
    "commands": commands,
    "finegrained": measured.finegrained,
    "kinds": measured.kinds,
    "methods": methods,
    "missed": measured.missed,
    "notebook": notebook,
    "protocols": protocols,
}
