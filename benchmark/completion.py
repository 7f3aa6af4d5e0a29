"""Names that the shell completes. No torch; what a list needs is imported when it is asked for.

A shell shows nothing where a function fails: half a line that is being typed is no place for an error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

Complete = Callable[[str], list[str]]


def _quietly(names: Callable[[str], Iterable[str]]) -> Complete:
    @functools.wraps(names)
    def complete(incomplete: str) -> list[str]:
        try:
            return [name for name in names(incomplete) if name.startswith(incomplete)]
        except Exception:
            return []

    return complete


@_quietly
def suites(incomplete: str) -> Iterable[str]:
    """Shipped suites."""
    from benchmark import suite

    return suite.names()


@_quietly
def models(incomplete: str) -> Iterable[str]:
    """Models that have a name."""
    from benchmark import models

    return models.names()


@_quietly
def method(incomplete: str) -> Iterable[str]:
    """Methods; once there is an `@`, that method's variants."""
    from benchmark import registry

    name, at, _ = incomplete.partition("@")
    return [f"{name}@{variant}" for variant in registry.method_class(name).variants] if at else registry.method_names()


@_quietly
def methods(incomplete: str) -> Iterable[str]:
    """The same for the last of several, with commas between; those that are there already are not offered again."""
    before, comma, last = incomplete.rpartition(",")
    taken = before.split(",")
    return [f"{before}{comma}{name}" for name in method(last) if name not in taken]


@_quietly
def named(incomplete: str) -> Iterable[str]:
    """All that `show` shows."""
    from benchmark import catalogue

    return [*catalogue.names(), *(method(incomplete) if "@" in incomplete else ())]


@_quietly
def kinds(incomplete: str) -> Iterable[str]:
    """What `list` lists."""
    from benchmark import catalogue

    return catalogue.KINDS


@_quietly
def protocols(incomplete: str) -> Iterable[str]:
    """Ids of protocols."""
    from benchmark.metrics.protocols import PROTOCOLS

    return sorted(PROTOCOLS)


@_quietly
def datasets(incomplete: str) -> Iterable[str]:
    """Data sets."""
    from benchmark import data

    return data.names()


@_quietly
def papers(incomplete: str) -> Iterable[str]:
    """Papers that have tables here."""
    from benchmark.tables import layouts

    return layouts.names()


@_quietly
def figures(incomplete: str) -> Iterable[str]:
    """Figures of the page."""
    from benchmark.page.figures import FIGURES

    return FIGURES
