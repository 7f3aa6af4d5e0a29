"""Records → samples and joint bootstrap draws of what boards show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np

from benchmark import stats
from benchmark.metrics.balance import Headline, headline
from benchmark.metrics.protocols import protocol
from benchmark.metrics.summary import column_role, headline_samples, role_sample, scored, source
from benchmark.stats import Floats, Sample
from benchmark.tables.columns import Record

Groups = Sequence[Sequence[Record]]
"""Records by request; several of one are its training seeds."""
Pair = tuple[list[Sample], list[Sample]]


def headline_of(groups: Groups) -> Headline | None:
    """The headline that these records are scored by."""
    name = groups[0][0]["summary"]["headline_id"] if groups else None
    return None if name is None else headline(name)


@final
class Draws:
    """Draws and samples of one board's records, each made once. It holds on to the records."""

    def __init__(self) -> None:
        self._headlines: dict[int, tuple[Record, Floats | None]] = {}
        self._values: dict[tuple[int, str, str], dict[tuple[str, str, int], float]] = {}
        self._held: list[Sequence[Record]] = []

    def headline(self, groups: Groups) -> Floats | None:
        """`(resamples,)` draws of the mean headline over cells; None if one cell has none, or none of its rows."""
        found = [d for d in map(self.of, (r for g in groups for r in g)) if d is not None]
        if not found or len(found) < sum(map(len, groups)):
            return None
        draws: Floats = np.mean(found, axis=0)
        return draws

    def of(self, record: Record) -> Floats | None:
        """Draws of one record's headline."""
        if id(record) not in self._headlines:
            self._headlines[id(record)] = (record, _headline_draws(record))
        return self._headlines[id(record)][1]

    def pair(self, a: Sequence[Record], b: Sequence[Record], roles: Sequence[str], h: Headline | None) -> Pair | None:
        """For each role, both cells' values on their common (concept, prompt, seed); None where there is none.

        Values are the headline's; without one, the primary protocol's.
        """
        left, right = [], []
        for role in roles:
            x, y = self._of(a, role, h), self._of(b, role, h)
            keys = list(x) if x.keys() == y.keys() else sorted(x.keys() & y.keys())
            if not keys:
                return None
            prompts, seeds = [k[1] for k in keys], [k[2] for k in keys]
            left.append(stats.sample([x[k] for k in keys], prompts, seeds))
            right.append(stats.sample([y[k] for k in keys], prompts, seeds))
        return left, right

    def _of(self, group: Sequence[Record], role: str, h: Headline | None) -> dict[tuple[str, str, int], float]:
        key = (id(group), role, "" if h is None else h.id)
        if key not in self._values:
            self._held.append(group)  # an id is its own only as long as its list is there
            self._values[key] = dict(sorted(_values(group, role, h).items()))
        return self._values[key]


def _headline_draws(r: Record) -> Floats | None:
    h = headline_of([[r]])
    samples = None if h is None else headline_samples(r["rows"], r["summary"]["primary"], h)
    return None if h is None or samples is None else stats.bootstrap_of(h.draws, samples)


def role_draws(groups: Groups, role: str) -> Floats | None:
    """Joint bootstrap draws of the mean over cells of a role's accuracy; None if one cell has none."""
    return _mean_draws([role_sample(r["rows"], role, r["summary"]["primary"]) for g in groups for r in g])


def metric_draws(groups: Groups, column: str) -> Floats | None:
    """Joint bootstrap draws of the mean over cells of a metric over images; None if one cell has none.

    Distances between sets have none either: their intervals in cells are over subsets, which are not drawn jointly.
    """
    p = protocol(column)
    if p.scope == "set":
        return None
    records = [r for g in groups for r in g]
    roles = [column_role(p, r["summary"]["by_role"].get(p.id, {})) for r in records]
    return _mean_draws([role_sample(r["rows"], role, p.id) for r, role in zip(records, roles, strict=True)])


def _mean_draws(samples: Sequence[Sample | None]) -> Floats | None:
    found = [s for s in samples if s is not None]
    if not found or len(found) < len(samples):
        return None
    draws: Floats = np.mean([stats.bootstrap(s) for s in found], axis=0)
    return draws


def _values(group: Sequence[Record], role: str, h: Headline | None) -> dict[tuple[str, str, int], float]:
    """Values by (concept, prompt, seed), averaged over training seeds."""
    found: dict[tuple[str, str, int], list[float]] = {}
    for r in group:
        rows, primary = r["rows"], r["summary"]["primary"]
        name = primary if h is None else source(rows, primary, h)
        for i in scored(rows, role, name) if name is not None else ():
            key = (rows["concept"][i], rows["prompt"][i], rows["seed"][i])
            found.setdefault(key, []).append(rows["values"][name][i])
    return {k: float(np.mean(v)) if len(v) > 1 else v[0] for k, v in found.items()}
