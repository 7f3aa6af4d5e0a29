"""Scores of papers, made again from the parts printed beside them. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmark.claims import fidelity
from benchmark.claims.ledger import Claim
from benchmark.claims.numbers import Interval, corners, meet
from benchmark.metrics.balance import ERB, H_a, H_c, H_o, Number

MEAN = re.compile(r"mean of (\d+)")
"""A concept that is an average: the mean of scores is not the score of means, so no formula holds for it."""

FORMULAS: Mapping[str, tuple[tuple[str, ...], Callable[..., Number]]] = {
    "H_o": (("acc_erased", "acc_kept", "acc_synonym"), H_o),
    "H_c": (("acc_erased", "acc_kept"), H_c),
    "H_a": (("clip_erased", "clip_kept"), H_a),
    "ERB": (("acc_erased", "acc_adjacent"), ERB),
}
"""Score → its parts, and what makes it of them; each is monotone in each part."""
TOTAL = "boxes/total"


@dataclass(frozen=True)
class Recomputed:
    """What a claim should be: the value of the parts as printed, and what their rounding allows. In fractions, as
    `Claim.value`. `how` says what it was made of."""

    value: float
    range: Interval
    how: str

    def agrees(self, claim: Claim) -> bool:
        """Whether true values of the parts that round to what is printed give what is printed, rounded or cut off."""
        lo, hi = claim.interval
        end = claim.value + claim.printed.cut * claim.scale
        return meet(self.range, (min(lo, end), max(hi, end)))


def recompute(claims: Sequence[Claim]) -> dict[int, Recomputed]:
    """By line of the ledger: every score whose parts are there."""
    groups: dict[tuple[str, ...], dict[str, Claim]] = {}
    for c in claims:
        groups.setdefault(c.group, {}).setdefault(c.metric, c)
    found: dict[int, Recomputed] = {}
    for group in groups.values():
        for claim in group.values():
            again = _again(claim, group)
            if again is not None:
                found[claim.line] = again
    return found | _means(claims) | _fade_adv(claims)


def _again(claim: Claim, group: Mapping[str, Claim]) -> Recomputed | None:
    if MEAN.fullmatch(claim.concept):
        return None
    if claim.metric == TOTAL:
        return _sum([c for m, c in group.items() if m.startswith("boxes/") and m != TOTAL])
    if claim.metric not in FORMULAS:
        return None
    names, function = FORMULAS[claim.metric]
    parts = [group[name] for name in names if name in group]
    if len(parts) < len(names) or not all(p.printed.plain for p in parts):
        return None
    return _applied(claim.metric, function, parts)


def _applied(metric: str, function: Callable[..., Number], parts: Sequence[Claim]) -> Recomputed | None:
    # A rate outside [0, 1] has no score; it shows as a missing one, not as an error of the ledger's reader.
    if any(p.is_accuracy and not 0 <= p.value <= 1 for p in parts):
        return None
    value, bounds = function(*(p.value for p in parts)), corners(function, [p.interval for p in parts])
    if value is None or bounds is None:
        return None
    return Recomputed(value, bounds, f"{metric} of {', '.join(p.metric for p in parts)}")


def _sum(parts: Sequence[Claim]) -> Recomputed | None:
    """The sum of counts; one part alone is no table of parts."""
    if len(parts) < 2:
        return None
    lo, hi = (sum(p.interval[i] for p in parts) for i in (0, 1))
    return Recomputed(sum(p.value for p in parts), (lo, hi), f"sum of {len(parts)} counts")


def _means(claims: Sequence[Claim]) -> dict[int, Recomputed]:
    """Averages over n concepts of which all n are printed."""
    columns: dict[tuple[str, ...], list[Claim]] = {}
    for c in claims:
        columns.setdefault((c.source, c.table, c.row, c.model, c.suite, c.protocol, c.metric), []).append(c)
    found: dict[int, Recomputed] = {}
    for column in columns.values():
        singles = [c for c in column if not MEAN.fullmatch(c.concept)]
        for c in column:
            named = MEAN.fullmatch(c.concept)
            if named and int(named[1]) == len(singles):
                lo, hi = (sum(s.interval[i] for s in singles) / len(singles) for i in (0, 1))
                value = sum(s.value for s in singles) / len(singles)
                found[c.line] = Recomputed(value, (lo, hi), f"mean over {len(singles)} concepts")
    return found


def _fade_adv(claims: Sequence[Claim]) -> dict[int, Recomputed]:
    """FADE-adv's H, table by table: see `fidelity`."""
    tables: dict[tuple[str, str], list[Claim]] = {}
    for c in claims:
        tables.setdefault((c.source, c.table), []).append(c)
    found: dict[int, Recomputed] = {}
    for (source, _), table in tables.items():
        rows = fidelity.rows(table)
        clip = fidelity.unedited(claims, source, "clip") if rows else None
        if clip is None:
            continue
        fid = fidelity.unedited(claims, source, "fid")
        fitted = fidelity.fit(rows, clip) if fid is None else fidelity.Fit(fid.value, fid.interval, (), given=True)
        for row in rows:
            again = fidelity.again(row, clip, fitted)
            if again is not None:
                found[row.H.line] = Recomputed(*again)
    return found
