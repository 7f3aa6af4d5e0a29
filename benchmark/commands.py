"""How the commands are listed and what a slip of the pen is told: plain text, no renderer, no imports of ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, final

from typer.core import TyperCommand, TyperGroup

PANELS = {
    "Run": "run plan fetch erase rescore",
    "Look": "list show board page plot tables power compare cite",
    "Check": "doctor verify baseline regress claims perf",
    "Extend": "new-method check-method neighbours",
    "Keep": "gc export import",
}
"""Headings of `--help`, and what stands under each, in this order."""
OTHER = "More"
_TYPE = re.compile(r" <(str|list\[\w+\]|path|file|directory)>$")
_MARKED = re.compile(r"[{\[]((?<=\{)[^{}]+|\[[^\[\]]+\])[}\]]")
_CLAUSE = re.compile(r"[.;:](?:\s|$)")


@final
class Group(TyperGroup):
    """Commands under the headings of `PANELS`."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write them with the first clause of what they say of themselves, wrapped and never cut off."""
        shown = {name: command for name in self.list_commands(ctx) if not (command := self.commands[name]).hidden}
        width = max(map(len, shown), default=0)
        for heading, names in _panels(list(shown)):
            with formatter.section(heading):
                # Padded, so that the second column stands at one place under all headings.
                formatter.write_dl([(f"{name:<{width}}", summary(shown[name].help or "")) for name in names])

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return _with_hint(super().parse_args, ctx, args)


@final
class Command(TyperCommand):
    """A command that says which option may have been meant, and names arguments as our texts do."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return _with_hint(super().parse_args, ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """`[OPTIONS] SUITE|FILE.yaml`."""
        return [plain(piece) for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then options, without the types of Python."""
        for heading, kind in (("Arguments", "argument"), ("Options", "option")):
            told = [p.get_help_record(ctx) for p in self.get_params(ctx) if p.param_type_name == kind]
            if rows := [(_TYPE.sub("", record[0]), record[1]) for record in told if record]:
                with formatter.section(heading):
                    formatter.write_dl(rows)


def plain(piece: str) -> str:
    """A piece of a usage line without the marks that the library puts around ours.

    >>> plain("{SUITE|FILE.yaml}"), plain("[[RUN]]"), plain("{DIR...}..."), plain("[OPTIONS]")
    ('SUITE|FILE.yaml', '[RUN]', 'DIR...', '[OPTIONS]')
    """
    return _MARKED.sub(r"\1", piece).replace("......", "...")


def summary(help_: str) -> str:
    """The first clause.

    >>> summary("Run a suite from edits to its board; what is done already is not done again.")
    'Run a suite from edits to its board'
    """
    return _CLAUSE.split(help_.strip(), maxsplit=1)[0].replace("\n", " ")


def _panels(names: list[str]) -> Iterator[tuple[str, list[str]]]:
    placed = {name for panel in PANELS.values() for name in panel.split()}
    several = ("Commands",) if placed.isdisjoint(names) else (*PANELS, OTHER)
    for heading in several:
        wanted = PANELS[heading].split() if heading in PANELS else [n for n in names if n not in placed]
        if here := [name for name in wanted if name in names]:
            yield heading, here


def _with_hint(parse: Any, ctx: Any, args: list[str]) -> list[str]:
    """Parse; an unknown option's message gets the nearest one in words."""
    try:
        found: list[str] = parse(ctx, args)
        return found
    except Exception as error:  # the parser's own classes stand in other modules from version to version
        if near := getattr(error, "possibilities", None):
            error.message = f"{error.message}. Did you mean {near[0]}?"  # type: ignore[attr-defined]
            error.possibilities = None  # type: ignore[attr-defined]
        raise
