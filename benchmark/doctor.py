"""What this machine has and lacks for the harness: packages, device, weights, judges, data, room; whether images are
exact here; and which suite can run on which model.

Every check gives one line. The quick ones load no torch; the self-test renders a few images. For one suite on one model
there is a table of all that it needs instead, see `benchmark.needs`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmark import contents, data, data_files, models, needs, paths, suite
from benchmark.data_files import Wanted
from benchmark.device import kind as device_kind
from benchmark.errors import BenchError
from benchmark.metrics import evaluators
from benchmark.metrics.protocols import protocol
from benchmark.needs import Need

if TYPE_CHECKING:
    from benchmark.backbones.base import Backbone

DISTRIBUTION = "erasure-bench"
FORMS: tuple[suite.FormName, ...] = ("paper", "embedded")
State = Literal["ok", "absent", "wrong"]
"""`absent` is something optional that is not there; `wrong` makes doctor fail."""


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    group: str
    name: str
    state: State
    detail: str


@dataclass(frozen=True)
class Readiness:
    """One suite on one model."""

    suite: str
    model: str
    form: str
    lacks: tuple[str, ...]
    """Names of what is missing or damaged."""


@dataclass(frozen=True)
class Report:
    """What doctor found."""

    checks: tuple[Check, ...] = ()
    suites: tuple[Readiness, ...] = ()
    needs: tuple[Need, ...] = ()
    """All that the suites of the report need, each once."""
    asked: tuple[str, str] | None = None
    """The suite and the model that were named, if a suite was."""


def report(model: str | None = None, *, selftest: bool = True) -> Report:
    """All checks; with `selftest`, on the random tiny backbone and on `model` if one is named."""
    suites, needed = readiness()
    checks = [python(), *packages(), facenet(), shadowing(), *device(), disk(), *weights(), *judges(needed)]
    checks += data_sets()
    if selftest:
        checks += [determinism(name) for name in ("random-unet", *([model] if model else []))]
    return Report(tuple(checks), suites, needed)


def of_suite(name: str, model: str = "testbed") -> Report:
    """What one suite needs on one model, and the room that it takes. Renders nothing."""
    from benchmark.plan import make_plan, plan_json

    plan = make_plan(name, model=model)
    found = tuple(map(needs.verified, needs.of(plan.form, model)))
    one = Readiness(plan.suite.name, plan.model.name, plan.form_name, _names(found))
    told = plan_json(plan)
    room = int(told["disk_bytes"]) + sum(n.size or 0 for n in needs.lacking(found) if n.fetchable)
    checks = (python(), *device(), _gpu(plan.form, told["images"]["total"]), disk(room))
    return Report(tuple(c for c in checks if c), (one,), found, (one.suite, one.model))


def exit_code(found: Report) -> int:
    """0; 3 if a requirement is missing or wrong, or the suite that was named lacks something; 1 if all are there but
    images are not exact."""
    bad = {check.group for check in found.checks if check.state == "wrong"}
    if found.asked and any(one.lacks for one in found.suites):
        return 3
    return 0 if not bad else 1 if bad == {"determinism"} else 3


def as_json(found: Report) -> dict[str, Any]:
    """The report for programs."""
    return {
        "schema": 1,
        "ok": exit_code(found) == 0,
        "checks": [asdict(check) for check in found.checks],
        "suites": [{**asdict(one), "lacks": list(one.lacks), "ready": not one.lacks} for one in found.suites],
        "needs": [asdict(need) for need in found.needs],
    }


# --- suites on models -------------------------------------------------------------------------------------------
def readiness() -> tuple[tuple[Readiness, ...], tuple[Need, ...]]:
    """Every suite on every model with weights of its own, and all that they need, each once."""
    names = [name for name in models.names() if not models.describe(name).built_in]
    weighed = {name: needs.of_model(name) for name in names}
    rows: list[Readiness] = []
    known: dict[tuple[str, str, str], Need] = {(n.kind, n.name, n.used_by): n for n in weighed.values()}
    for declared in map(suite.load, suite.names()):
        forms = {form: _beside_the_model(declared.form(form), names[0]) for form in FORMS}
        for name in names:
            form = models.describe(name).form
            rows.append(Readiness(declared.name, name, form, _names((weighed[name], *forms[form]))))
        known |= {(n.kind, n.name, n.used_by): n for found in forms.values() for n in found}
    return tuple(rows), tuple(known.values())


def _beside_the_model(form: suite.Form, model: str) -> tuple[Need, ...]:
    return tuple(n for n in needs.of(form, model) if n.kind != "model")


def _names(found: Iterable[Need]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(n.name for n in needs.lacking(found)))


# --- packages -------------------------------------------------------------------------------------------------


def python() -> Check:
    """Python itself."""
    fits = sys.version_info >= (3, 11)
    version = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check("packages", "python", *(("ok", version) if fits else ("wrong", f"{version}; needs 3.11 or newer")))


def packages() -> list[Check]:
    """Every distribution that ours names, against the range it names; extras may be absent."""
    from packaging.requirements import Requirement

    try:
        named = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return [Check("packages", DISTRIBUTION, "wrong", "not installed; run: make setup")]
    return [_package(Requirement(text)) for text in named]


def _package(requirement: Any) -> Check:
    name, optional = requirement.name, requirement.marker is not None and "extra" in str(requirement.marker)
    wanted = f"{name}{requirement.specifier}"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        extra = str(requirement.marker).rpartition("==")[2].strip(" \"'") if optional else ""
        get = f"make setup EXTRAS=dev,{extra}, or pip install '{wanted}'" if optional else "make setup"
        return Check("packages", name, "absent" if optional else "wrong", f"not installed; to get it: {get}")
    if not requirement.specifier.contains(version, prereleases=True):
        return Check("packages", name, "wrong", f"{version}, but {wanted} is needed; run: pip install '{wanted}'")
    return Check("packages", name, "ok", version)


def facenet() -> Check:
    """facenet-pytorch stands outside the dependency list, since it pins a torch that is long gone."""
    how = "to get it: pip install --no-deps facenet-pytorch"
    spec = importlib.util.find_spec("facenet_pytorch")
    if spec is None or spec.origin is None:
        return Check("packages", "facenet-pytorch", "absent", f"not installed (identity scores need it); {how}")
    folder = Path(spec.origin).parent / "data"
    gone = [name for name in ("pnet.pt", "rnet.pt", "onet.pt") if not (folder / name).is_file()]
    version = importlib.metadata.version("facenet-pytorch")
    if gone:
        return Check("packages", "facenet-pytorch", "wrong", f"{version}, but without {', '.join(gone)}; {how}")
    return Check("packages", "facenet-pytorch", "ok", f"{version}, face detector included, installed beside its pins")


def shadowing() -> Check:
    """Whether our folder `datasets/` is taken for Hugging Face's library."""
    spec = importlib.util.find_spec("datasets")
    if spec is not None and spec.origin is None:
        where = next(iter(spec.submodule_search_locations or []), "?")
        advice = "set PYTHONSAFEPATH=1, or call erasure-bench instead of python -m"
        return Check("packages", "datasets", "wrong", f"{where} is taken for Hugging Face's library; {advice}")
    return Check("packages", "datasets", "ok", "not shadowed")


# --- machine --------------------------------------------------------------------------------------------------


def device() -> list[Check]:
    """Accelerator and threads. Loads torch."""
    try:
        import torch
    except Exception as error:  # a broken install fails in many ways; each is worth its own words
        return [Check("device", "torch", "wrong", f"cannot be imported: {type(error).__name__}: {error}")]
    waiting = os.environ.get("GOMP_SPINCOUNT", "unset")
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} cores, GOMP_SPINCOUNT={waiting}"
    return [Check("device", "accelerator", "ok", _accelerator(torch)), Check("device", "threads", "ok", threads)]


def _accelerator(torch: Any) -> str:
    if not torch.accelerator.is_available():
        return "none; running on the CPU"
    kind = torch.accelerator.current_accelerator().type
    if kind != "cuda":
        return str(kind)
    properties = torch.cuda.get_device_properties(0)
    return f"{torch.cuda.device_count()} × {properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def disk(wanted: int = 0) -> Check:
    """Free bytes where runs and downloads go; wrong if `wanted` is more."""
    runs, cache = Path("runs"), paths.hub_cache()
    free = needs.free_bytes(runs)
    detail = f"{_size(free)} free for runs, {_size(needs.free_bytes(cache))} for downloads in {cache}"
    if not wanted:
        return Check("device", "disk", "ok", detail)
    return Check("device", "disk", "ok" if wanted <= free else "wrong", f"{detail}; about {_size(wanted)} needed")


def _gpu(form: suite.Form, images: int) -> Check | None:
    """A word of warning where a full-size model meets a machine without an accelerator."""
    if form.sampler.size < 256 or device_kind() != "cpu":
        return None
    work = f"{images:,} images a method, of {form.sampler.size} pixels in {form.sampler.steps} steps"
    return Check("device", "GPU", "absent", f"none: {work} are work for one; on a CPU take a small --scale")


# --- weights --------------------------------------------------------------------------------------------------


def weights() -> list[Check]:
    """The models that have a name, and where their weights are or would come from."""
    return [_weights(name) for name in models.names()]


def _weights(name: str) -> Check:
    missing = models.missing(name)
    if missing is None:
        return Check("weights", name, "ok", "ready")
    # The embedded model ships with the code: without it nothing runs.
    detail = f"{missing['what']}, {_size(missing['size'])}, licence {missing['licence']}; looked in {missing['where']}"
    return Check("weights", name, "wrong" if name == "testbed" else "absent", detail)


def _size(size: int | None) -> str:
    if size is None:
        return "size not recorded"
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


# --- judges -----------------------------------------------------------------------------------------------------


def judges(found: Iterable[Need]) -> list[Check]:
    """Every evaluator that a suite asks for or that has a name: what it lacks, or where it is."""
    users = _judged_by()
    by: dict[str, list[Need]] = {name: [] for name in [*users, *evaluators.EVALUATORS]}
    for need in found:
        if need.used_by:
            by[need.used_by].append(need)
    return [_judge(name, of or list(needs.of_judge(name)), users.get(name, [])) for name, of in by.items()]


def _judged_by() -> dict[str, list[str]]:
    """Judge to the suites that ask for it."""
    users: dict[str, list[str]] = {}
    for name in suite.names():
        forms = [suite.load(name).form(form) for form in FORMS]
        for judge in dict.fromkeys(protocol(p).evaluator for form in forms for p in form.protocols):
            users.setdefault(judge, []).append(name)
    return users


def _judge(name: str, found: Sequence[Need], suites: Sequence[str]) -> Check:
    use = f"for {', '.join(suites)}" if suites else "no suite asks for it, `rescore` may"
    gone = needs.lacking(found)
    if not gone:
        places = "; ".join(dict.fromkeys(f"{n.name}: {n.where}" for n in found if n.kind != "package"))
        return Check("judges", name, "ok", f"{use}; {places}")
    damaged = any(n.state == "damaged" for n in gone)
    return Check("judges", name, "wrong" if damaged else "absent", f"{use}; " + "; ".join(map(_lacking, gone)))


def _lacking(need: Need) -> str:
    if need.state == "damaged":
        return need.where
    about = [_size(need.size), f"licence {need.licence}", f"checked by {need.checksum}"] if need.licence else []
    return f"{', '.join([need.name, *about])}; looked in {need.where}; to get it: {need.get}"


# --- data files -----------------------------------------------------------------------------------------------


def data_sets() -> list[Check]:
    """The files that data sets need and that are not shipped: for which suites, and where they are or come from."""
    users = _users()
    files = [Wanted(name, file) for name in data.names() for file in data.load(name).card.files]
    return [_data_file(what, users.get(what.name, [])) for what in files]


def _users() -> dict[str, list[str]]:
    """File to the suites that ask for it."""
    users: dict[str, list[str]] = {}
    for name in suite.names():
        for what in data_files.named_in(suite.load(name).forms.model_dump()):
            users.setdefault(what.name, []).append(name)
    return users


def _data_file(what: Wanted, suites: Sequence[str]) -> Check:
    use = f"for {', '.join(suites)}" if suites else "no suite needs it"
    try:
        missing = data_files.missing(what)
        if missing is None:
            place = data_files.find(what)
            return Check("data files", what.name, "ok", f"{use}; {contents.told(what, place)}; {place}")
    except BenchError as error:  # other bytes than promised, or another form
        return Check("data files", what.name, "wrong", f"{use}; {error}")
    licence = f"licence {missing['licence']}"
    fetched = f"`erasure-bench fetch {suites[0]}` gets it" if suites else "its path can be given, or put it there"
    get = what.file.by_hand or fetched
    detail = f"{use}; {missing['what']}, {_size(missing['size'])}, {licence}; looked in {missing['where']}; {get}"
    return Check("data files", what.name, "absent", detail)


# --- determinism ----------------------------------------------------------------------------------------------

BATCH = 4
STEPS = 4
PROMPTS = ("a photo of the cat", "a photo of the ship", "a portrait", "", "a photo of the dog")


@dataclass(frozen=True)
class _Item:
    prompt: str
    seed: int


def determinism(name: str) -> Check:
    """Whether an image depends on its prompt and seed alone on this machine: in another order, batch, and alone."""
    try:
        from benchmark.backbones.load import load

        return exactness(load(name, device=device_kind()))
    except BenchError as error:
        return Check("determinism", name, "absent", str(error))


def exactness(backbone: Backbone) -> Check:
    """Sample five images in several ways; report the largest difference in levels of 255."""
    items = [_Item(prompt, 1000 + i) for i, prompt in enumerate(PROMPTS)]
    first = _render(backbone, items, BATCH)
    same = {
        "again": _render(backbone, items, BATCH),
        "reversed": _render(backbone, items[::-1], BATCH)[::-1],
        "alone": _render(backbone, items[2:3], BATCH),
    }
    expected = {"again": first, "reversed": first, "alone": first[2:3]}
    worst = {how: _difference(expected[how], images)[0] for how, images in same.items()}
    levels, share = _difference(first, _render(backbone, items, BATCH // 2))
    other = f"at another batch shape up to {levels} level(s) on {share:.2%} of values"
    where = f"on {backbone.device.type}, {BATCH} a batch"
    if any(worst.values()):
        ways = ", ".join(f"{how}: {worst[how]} level(s)" for how in worst)
        return Check("determinism", backbone.name, "wrong", f"images differ {where} ({ways}); {other}")
    return Check("determinism", backbone.name, "ok", f"bit-equal again, reversed and alone {where}; {other}")


def _render(backbone: Backbone, items: Sequence[_Item], batch: int) -> Any:
    import numpy as np

    from benchmark.sample import Sampler, sample

    return np.concatenate([images for _, images in sample(backbone, items, Sampler(steps=STEPS, guidance=4.0), batch)])


def _difference(a: Any, b: Any) -> tuple[int, float]:
    """Largest difference in levels, and the share of values that differ."""
    import numpy as np

    gap = np.abs(a.astype(np.int16) - b.astype(np.int16))
    return int(gap.max()), float((gap > 0).mean())


# --- shown ----------------------------------------------------------------------------------------------------

_SIGNS: dict[State, str] = {"ok": "ok    ", "absent": "absent", "wrong": "WRONG "}


def show(found: Report, say: Callable[[str], object] = print) -> None:
    """One line per check, by group; then what the suite that was named needs, or which suites can run where."""
    _show_checks(found.checks, say)
    for line in _needs_table(found) if found.asked else _suites_table(found.suites):
        say(line)
    say(_verdict(found))


def _suites_table(rows: Sequence[Readiness]) -> list[str]:
    """Suites down, models across: `ready`, or how many things are lacking."""
    if not rows:
        return []
    names = list(dict.fromkeys(one.model for one in rows))
    width = max(len(one.suite) for one in rows)
    lines = ["suites on models: ready, or how many things are missing (doctor --suite S --model M lists them)"]
    lines.append(f"  {'':<{width}}  " + "  ".join(names))
    for name in dict.fromkeys(one.suite for one in rows):
        cells = {one.model: str(len(one.lacks)) if one.lacks else "ready" for one in rows if one.suite == name}
        lines.append(f"  {name:<{width}}  " + "  ".join(f"{cells[m]:<{len(m)}}" for m in names).rstrip())
    return lines


_STATES = {"here": "ok     ", "missing": "missing", "damaged": "DAMAGED"}


def _needs_table(found: Report) -> list[str]:
    """What a suite needs on a model: state, kind, name, size, licence, checksum; where it is, or how to get it."""
    (one,) = found.suites
    here = sum(need.here for need in found.needs)
    lines = [f"{one.suite} on {one.model}, {one.form} form: {here} of {len(found.needs)} things are here"]
    for need in found.needs:
        use = f" (for {need.used_by})" if need.used_by not in ("", need.name) else ""
        about = [] if need.kind in ("package", "real images") else [_size(need.size), str(need.licence), need.checksum]
        lines.append(f"  {_STATES[need.state]}  {need.kind:<11}  {', '.join([need.name + use, *about])}")
        lines.append(f"           {'' if need.here else 'looked in: '}{need.where}")
        if not need.here and need.get:
            lines.append(f"           to get it: {need.get}")
    return lines


def _show_checks(checks: Sequence[Check], say: Callable[[str], object]) -> None:
    width = max(len(check.name) for check in checks)
    for group in dict.fromkeys(check.group for check in checks):
        say(group)
        for check in checks:
            if check.group == group:
                say(f"  {_SIGNS[check.state]}  {check.name:<{width}}  {check.detail}")


def _verdict(found: Report) -> str:
    code, gone = exit_code(found), needs.lacking(found.needs)
    if found.asked and code and gone:
        fetched = sum(need.fetchable for need in gone)
        (name, model), how = found.asked, "pip or by hand"
        if fetched:
            how = f"`erasure-bench fetch {name} --model {model}` gets {fetched} of them, the others come by {how}"
        return f"{len(gone)} things are missing: {how}."
    return {
        0: "Everything that is needed is here.",
        1: "Images are not exact on this machine: see the lines marked WRONG under determinism.",
        3: "Something that is needed is missing: see the lines marked WRONG.",
    }[code]
