"""Scores that weigh forgetting against keeping. All rates are fractions in [0, 1]; no torch, no state.

Decided once: a harmonic mean with a part at 0 is 0; a part that is None or not a number makes the score None ("not
available"); a rate outside [0, 1] is refused. A score depends on its own parts alone, never on other methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import BadInput, did_you_mean

Number = float | None
Draws = NDArray[np.float64]


def harmonic_mean(*parts: Number) -> Number:
    """n / Σ 1/pᵢ of fractions; 0 if any part is 0, None if any is not available."""
    values = _rates(parts)
    if values is None:
        return None
    return 0.0 if 0 in values else len(values) / sum(1 / v for v in values)


def H_o(acc_erased: Number, acc_kept: Number, acc_synonym: Number) -> Number:
    """3 / (1/(1−Acc_e) + 1/Acc_s + 1/(1−Acc_g)): MACE, arXiv:2403.06135, objects. An average is the mean of H_o."""
    return harmonic_mean(_forgot(acc_erased), acc_kept, _forgot(acc_synonym))


def H_c(acc_erased: Number, acc_kept: Number) -> Number:
    """2 / (1/(1−Acc_e) + 1/Acc_s): MACE, arXiv:2403.06135, celebrities."""
    return harmonic_mean(_forgot(acc_erased), acc_kept)


def H_a(clip_erased: Number, clip_kept: Number) -> Number:
    """CLIP_s − CLIP_e on the ×100 scale: MACE's artistic styles. A difference, which may be negative; not harmonic."""
    if not (available(clip_erased) and available(clip_kept)):
        return None
    assert clip_erased is not None and clip_kept is not None
    return clip_kept - clip_erased


def H_fade_adv(
    acc_erased: Number, clip: Number, fid: Number, *, clip_unedited: Number, fid_unedited: Number, clipped: bool
) -> Number:
    """2EF/(E+F), E = 1−Acc_e, F = `fidelity`: FADE-adv, Appendix B.

    CLIP₀ and FID₀ are the unedited model's, of the same run. As printed, F can pass 1; `clipped` holds it in [0, 1].
    The paper's own tables do not satisfy the formula.
    """
    F = fidelity(clip, fid, clip_unedited=clip_unedited, fid_unedited=fid_unedited, clipped=clipped)
    return forgetting_and_fidelity(acc_erased, F)


def fidelity(clip: Number, fid: Number, *, clip_unedited: Number, fid_unedited: Number, clipped: bool) -> Number:
    """F = ½(CLIP/CLIP₀ + max(2·FID₀−FID, 0)/FID₀) of `H_fade_adv`: 1 for the unedited model."""
    if not all(map(available, (clip, fid, clip_unedited, fid_unedited))):
        return None
    assert clip is not None and fid is not None and clip_unedited is not None and fid_unedited is not None
    if clip_unedited <= 0 or fid_unedited <= 0:
        raise BadInput(f"expected CLIP and FID of the unedited model above 0, got {clip_unedited} and {fid_unedited}")
    F = (clip / clip_unedited + max(2 * fid_unedited - fid, 0) / fid_unedited) / 2
    return min(max(F, 0.0), 1.0) if clipped else F


def forgetting_and_fidelity(acc_erased: Number, F: Number) -> Number:
    """2EF/(E+F), E = 1−Acc_e; 0 if a part is at 0 or below. F is not held to [0, 1]."""
    E = _forgot(acc_erased)
    if E is None or F is None or not available(F):
        return None
    return 0.0 if E == 0 or F <= 0 else 2 * E * F / (E + F)


def ERB(acc_erased: Number, acc_adjacent: Number | Sequence[Number]) -> Number:
    """2·A_er·Â_adj / (A_er + Â_adj + η), A_er = 1 − Acc_e, η = 1e-8 (guards 0/0): FADE-fg.

    `acc_adjacent` is the mean over the adjacent classes, or their accuracies one by one.
    """
    rates = _rates([acc_erased, *(acc_adjacent if isinstance(acc_adjacent, Sequence) else [acc_adjacent])])
    if rates is None or len(rates) < 2:
        return None
    A_er, A_adj = 1 - rates[0], sum(rates[1:]) / (len(rates) - 1)
    return 2 * A_er * A_adj / (A_er + A_adj + 1e-8)


def ERB_normalised(
    acc_erased: Number, acc_adjacent: Number | Sequence[Number], acc_adjacent_unedited: Number
) -> Number:
    """`ERB` with Â_adj replaced by min(`retention`, 1): what the unedited model cannot do is not held against an edit.

    Ours, beside FADE-fg's ERB, not in its place.
    """
    rates = _rates(acc_adjacent if isinstance(acc_adjacent, Sequence) else [acc_adjacent])
    if not rates:
        return None
    kept = retention(sum(rates) / len(rates), acc_adjacent_unedited)
    return ERB(acc_erased, None if kept is None else min(kept, 1.0))


def retention(acc: Number, acc_unedited: Number) -> Number:
    """Accuracy as a share of the unedited model's, such as Â_adj / Â_adj₀; can pass 1. None where that is 0."""
    rates = _rates([acc, acc_unedited])
    return None if rates is None or rates[1] == 0 else rates[0] / rates[1]


def available(value: Number) -> bool:
    """Whether this is a number: not None, not NaN, not infinite."""
    return value is not None and math.isfinite(value)


def _rates(parts: Sequence[Number]) -> list[float] | None:
    """The parts as fractions; None if one is not available; BadInput if one is outside [0, 1]."""
    if not all(map(available, parts)):
        return None
    values = [float(p) for p in parts if p is not None]
    for v in values:
        if not 0 <= v <= 1:
            percent = f"; is it in percent? then pass {v / 100:g}" if 1 < v <= 100 else ""
            raise BadInput(f"expected a rate as a fraction in [0, 1], got {v:g}{percent}")
    return values


def _forgot(acc: Number) -> Number:
    """1 − accuracy, with the accuracy's own check, so that 9.06 (percent) is not called −8.06."""
    rates = _rates([acc])
    return None if rates is None else 1 - rates[0]


# --- the same over bootstrap draws ----------------------------------------------------------------------------
def harmonic_draws(*parts: Draws) -> Draws:
    """`harmonic_mean` along arrays of draws."""
    stacked = np.stack(parts)
    with np.errstate(divide="ignore"):  # 1/0 is inf, and n/inf the 0 that is wanted
        result: Draws = len(parts) / np.sum(1 / np.maximum(stacked, 0.0), axis=0)
    return result


@dataclass(frozen=True)
class Headline:
    """A board's main score: which roles' values it takes, and how. `draws` is the same over arrays of draws."""

    id: str
    title: str
    roles: tuple[str, ...]
    score: Callable[..., Number]
    draws: Callable[..., Draws]
    direction: str = "up"
    range: tuple[float, float] = (0.0, 1.0)
    worst: float = 0.0
    unit: str = "fraction"
    measure: str = "accuracy"
    """Of which kind of protocol the values are: the primary one, or the first of that kind."""
    fidelity: str = ""
    """`as-printed` or `clipped` where the second part is `fidelity`, which needs the unedited model's values."""


def _erb_draws(erased: Draws, adjacent: Draws) -> Draws:
    result: Draws = 2 * (1 - erased) * adjacent / (1 - erased + adjacent + 1e-8)
    return result


def _fidelity_draws(erased: Draws, F: Draws) -> Draws:
    return harmonic_draws(1 - erased, F)


HEADLINES: Mapping[str, Headline] = {
    h.id: h
    for h in (
        Headline(
            "H_o",
            "harmonic mean of forgetting, keeping and forgetting synonyms (MACE, objects)",
            ("erased", "kept", "synonym"),
            H_o,
            lambda e, s, g: harmonic_draws(1 - e, s, 1 - g),
        ),
        Headline(
            "H_c",
            "harmonic mean of forgetting and keeping (MACE, celebrities)",
            ("erased", "kept"),
            H_c,
            lambda e, s: harmonic_draws(1 - e, s),
        ),
        Headline("ERB", "erasing-retention balance (FADE-fg)", ("erased", "adjacent"), ERB, _erb_draws),
        Headline(
            "H_a",
            "CLIP score of kept minus erased prompts, a difference (MACE, styles)",
            ("erased", "kept"),
            H_a,
            lambda e, s: s - e,
            range=(-200.0, 200.0),
            worst=-200.0,
            unit="100·cos",
            measure="similarity",
        ),
        Headline(
            "detections",
            "detections on erased prompts in all (MACE, explicit content)",
            ("erased",),
            lambda n: float(n) if available(n) else None,
            lambda n: n,
            direction="down",
            range=(0.0, math.inf),
            worst=math.inf,
            unit="boxes",
            measure="count",
        ),
        *(
            Headline(
                f"H_fade_adv/{kind}",
                f"harmonic mean of forgetting and fidelity (FADE-adv), {kind}",
                ("erased", "fidelity"),
                forgetting_and_fidelity,
                _fidelity_draws,
                range=(0.0, 2.0 if kind == "as-printed" else 1.0),
                fidelity=kind,
            )
            for kind in ("clipped", "as-printed")
        ),
    )
}


def headline(name: str) -> Headline:
    """The headline of this id; BadInput with a suggestion if there is none."""
    if name not in HEADLINES:
        raise BadInput(did_you_mean(name, HEADLINES, "headline"))
    return HEADLINES[name]


def as_json(h: Headline) -> dict[str, Any]:
    """What `list` and `show` tell of a headline."""
    said = {"id": h.id, "title": h.title, "direction": h.direction, "unit": h.unit, "measure": h.measure}
    low, high, worst = (v if math.isfinite(v) else None for v in (*h.range, h.worst))
    return {**said, "range": [low, high], "worst": worst, "roles": list(h.roles)}
