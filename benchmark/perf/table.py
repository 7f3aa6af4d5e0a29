"""`results/perf/<device>.json`, and the table `results/perf/README.md` made from all of them. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark import atomic
from benchmark.errors import BadInput

Entry = Mapping[str, Any]
KINDS = {"cpu": "CPU, embedded model", "cuda": "One GPU, random weights of Stable Diffusion 1.x's size"}
NOT_MEASURED = "not measured"


def slug(device: str) -> str:
    """A file name for a device.

    >>> slug("NVIDIA H100 80GB HBM3")
    'nvidia-h100-80gb-hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def profile_of(device: str) -> str:
    """Name of the file that tells where the time of a run on a device goes, beside its timings.

    >>> profile_of("cpu")
    'cpu-profile.txt'
    """
    return f"{slug(device)}-profile.txt"


def write(out: Path, found: Mapping[str, Any], order: Sequence[str]) -> Path:
    """Write a device's file, and the table anew; entries of benches that were not run now stay as they were."""
    path = out / f"{slug(found['device'])}.json"
    kept = {e["name"]: e for e in _read(path)["benches"]} if path.exists() else {}
    kept |= {e["name"]: e for e in found["benches"]}
    benches = [kept[name] for name in order if name in kept]
    atomic.write(path, json.dumps({**found, "benches": benches}, indent=1, ensure_ascii=False) + "\n")
    atomic.write(out / "README.md", render(out, order))
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found["benches"], list) or not all("name" in e for e in found["benches"]):
            raise KeyError("benches")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: expected timings that `erasure-bench perf` wrote, got {error!r}; remove it") from None
    return dict(found)


# --- the table --------------------------------------------------------------------------------------------------------
_HEAD = """\
# How fast, beside the usual way

Made by `make perf` (`erasure-bench perf`), never by hand. Each bench does the same work twice in one session, with the
same model, steps, number format and threads: this harness's way, and the way of published code, written again in our
own words (`benchmark/perf/`, a file a bench; its docstring says where that way is seen). The sides take turns; numbers
are medians over `runs` turns: five of ours, and of the usual way as many, or the second number where it takes so long
here that the whole would not end in a quarter of an hour. **Ratio** is how many times longer the usual way takes;
**without start-up** leaves interpreters and imports out of both. `noisy` marks times taken while the machine was busy
with something else: read the counts then. Counts are exact on every machine and are held by tests; times never are.
"""


def render(out: Path, order: Sequence[str]) -> str:
    """The whole page, from the device files of a folder."""
    files = [_read(path) for path in sorted(out.glob("*.json"))]
    profiled = {f["device"]: (out / profile_of(f["device"])).exists() for f in files}
    parts = [_HEAD]
    for kind, title in KINDS.items():
        of_kind = [f for f in files if f["kind"] == kind]
        parts += [_section(title, f, profiled[f["device"]]) for f in of_kind] or [
            f"## {title}\n\n{NOT_MEASURED.capitalize()}: no such device.\n"
        ]
    return "\n".join(parts)


def _section(title: str, found: Mapping[str, Any], profiled: bool) -> str:
    c = found["conditions"]
    machine = (
        f"{c['cpu']}, {c['threads']} thread{'s' * (c['threads'] != 1)}" if found["kind"] == "cpu" else found["device"]
    )
    told = f"{machine}; torch {c['torch']}, diffusers {c['diffusers']}; load {c['load']} at the start; {c['date']}."
    if profiled:
        name = profile_of(found["device"])
        told += f"\nWhere the time of a run goes, and why it cannot go lower without other images: [{name}]({name})."
    lines = [f"## {title}", "", told, "", _row(_COLUMNS), _row(["---", *["---:"] * 5, "---", "---"])]
    lines += [_line(e) for e in found["benches"]]
    return "\n".join([*lines, "", *_details(found["benches"])]) + "\n"


_COLUMNS = ("bench", "ours", "usual way", "ratio", "without start-up", "runs", "target", "met")


def _line(e: Entry) -> str:
    if "not_measured" in e:
        return _row([e["name"], NOT_MEASURED, "", "", "", "", e["target"] or "", ""])
    ratios = [_times(e[name]) for name in ("ratio", "ratio_without_startup")]
    met = {True: "yes", False: "**no**", None: ""}[e["met"]] + (" (noisy)" if e["noisy"] else "")
    values = [_value(e[side], e["unit"]) for side in ("ours", "peer")]
    return _row([e["name"], *values, *ratios, _turns(e), e["target"] or "", met])


def _turns(e: Entry) -> str:
    ours, peer = e["runs"], e["peer_runs"]
    return str(ours) if ours == peer else f"{ours}, {peer}"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _value(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:g} {unit}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3g}×"


def _details(benches: Sequence[Entry]) -> list[str]:
    """What each bench did: sizes, counts of both sides, checks."""
    lines = []
    for e in benches:
        lines += [f"**{e['name']}**: {e['title']}. Usual way: {e['peer_way']}.", ""]
        if "not_measured" in e:
            lines += [f"- not measured: {e['not_measured']}", ""]
            continue
        for what in ("settings", "counts", "checks"):
            if e[what]:
                lines.append(f"- {what}: {_flat(e[what])}")
        lines.append("")
    return lines


def _flat(values: Mapping[str, Any], under: str = "") -> str:
    """`{"a": 1, "b": {"c": 2}}` → `a 1; b: c 2`."""
    plain = [f"{k.replace('_', ' ')} {_said(v)}" for k, v in values.items() if not isinstance(v, Mapping)]
    deep = [f"{k.replace('_', ' ')}: {_flat(v)}" for k, v in values.items() if isinstance(v, Mapping)]
    return "; ".join([", ".join(plain), *deep] if plain else deep)


def _said(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
