"""The commands, thin: each turns its arguments into one call and its result into lines and an exit code.

Nothing heavy is imported before a command runs, so that help and lists answer at once.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn, ParamSpec

import typer

from benchmark import completion, inert
from benchmark.commands import Command, Group
from benchmark.errors import BadInput, BenchError
from benchmark.hubs import ask as _hub
from benchmark.paths import default_out as default_out
from benchmark.untrusted import parse_json

P = ParamSpec("P")

app = typer.Typer(
    name="erasure-bench",
    cls=Group,
    help="Benchmark concept erasure in text-to-image diffusion models.",
    epilog="Example: erasure-bench run objects",
    no_args_is_help=True,
    context_settings={"max_content_width": 100, "help_option_names": ["--help", "-h"]},
    # Plain messages of a few lines, on any terminal; and help need not load a renderer.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class Executor(StrEnum):
    """What runs the cells of a plan."""

    local = "local"
    ray = "ray"
    slurm = "slurm"


class Keep(StrEnum):
    """Which images a run keeps."""

    all = "all"
    sample = "sample"
    none = "none"


class TextFormat(StrEnum):
    """How papers' tables are written."""

    md = "md"
    csv = "csv"
    tex = "tex"


class Format(StrEnum):
    """How a board is written."""

    term = "term"
    md = "md"
    csv = "csv"
    json = "json"
    tex = "tex"


# --- options that several commands share ----------------------------------------------------------------------

Quiet = Annotated[bool, typer.Option("--quiet", help="Plain lines only, no live display.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")]
SuiteName = Annotated[
    str,
    typer.Argument(
        metavar="SUITE|FILE.yaml", help="A shipped suite, or a file of your own.", autocompletion=completion.suites
    ),
]
Model = Annotated[
    str,
    typer.Option(
        metavar="M", help="A model by name, or the path of a diffusers folder.", autocompletion=completion.models
    ),
]
Methods = Annotated[
    str | None,
    typer.Option(
        metavar="a,b@v",
        help="Methods, by comma, or all; the suite's own if left out.",
        autocompletion=completion.methods,
    ),
]
Scale = Annotated[float, typer.Option(metavar="S", help="Images per prompt, as a share of the suite's.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Results; runs/<suite>-<model> if left out.")]
Store = Annotated[Path | None, typer.Option(metavar="DIR", help="Artifacts; OUT/store if left out.")]
Seed = Annotated[int, typer.Option(metavar="N", min=0, help="Training seed of the methods.")]
Engine = Annotated[Executor, typer.Option(help="What runs the cells.")]
Shard = Annotated[str | None, typer.Option(metavar="i/n", help="Only the i-th of n parts of the work, from 1.")]
Workers = Annotated[
    int | None, typer.Option(metavar="N", help="Worker processes; if left out one a GPU, or a CPU's core.")
]
RayAddress = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="A Ray cluster that runs; one of this machine if left out.")
]
Slurm = Annotated[
    list[str] | None,
    typer.Option("--slurm", metavar="P=V", help="A parameter of submitit, such as timeout_min=240; many times."),
]
KeepImages = Annotated[Keep, typer.Option(help="Which images' pixels stay in the store; hashes and raw outputs do.")]
MaxFailures = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Stop when so many cells have failed; never, if left out.")
]
BatchSize = Annotated[int | None, typer.Option(metavar="N", help="Images at once; part of what an image is keyed by.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch missing weights from the hub.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="F=V", help="A field of the method; many times.")]
SetOf = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="M.F=V", help="A field of one of the methods, such as esd.lr=1e-4; many times."),
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The --out of a run.")]


class Terminated(KeyboardInterrupt):
    """The system asks this process to end: preempted, or out of its time. Ends as an interruption does."""


def _terminated(number: int, frame: object) -> NoReturn:
    raise Terminated


def command(example: str, to: typer.Typer | None = None) -> Callable[[Callable[P, int | None]], Callable[P, None]]:
    """Register a command, of `to` or of all.

    It returns its exit code (None is 0); its errors become one to a few lines on stderr.
    """

    def register(function: Callable[P, int | None]) -> Callable[P, None]:
        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
            _hub(False)  # those that may fetch say so themselves
            try:
                code = function(*args, **kwargs) or 0
            except (Exception, KeyboardInterrupt) as error:
                _end(error, debug=bool(kwargs.get("debug")))
            raise typer.Exit(code)

        name = function.__name__.strip("_").replace("_", "-")
        (to or app).command(name, cls=Command, epilog=f"Example: erasure-bench {example}")(guarded)
        return guarded

    return register


def _end(error: BaseException, *, debug: bool) -> NoReturn:
    """Say what went wrong and exit: with a traceback only if `debug`."""
    if isinstance(error, typer.Exit | typer.Abort) or getattr(error, "errno", None) == errno.EPIPE:
        raise error
    if debug:
        import traceback

        _tell("".join(traceback.format_exception(error)).rstrip("\n"))
    message, code = _explain(error)
    _tell(f"erasure-bench: {message}")
    raise typer.Exit(code)


def _explain(error: BaseException) -> tuple[str, int]:
    if isinstance(error, BenchError):
        return str(error), error.exit_code
    if isinstance(error, Terminated):
        return "stopped by the system (SIGTERM); what is done is kept, and the same command goes on from there", 143
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; what is done is kept, and the same command goes on from there", 130
    if isinstance(error, OSError):
        return f"{error.filename or 'input or output'}: {error.strerror or error}", 2
    if isinstance(error, MemoryError):
        return "out of memory; what is done is kept; try a smaller --batch-size, or a machine with more", 1
    return f"unexpected {type(error).__name__}: {error} (a bug of ours; --debug shows where)", 1


@app.callback()
def erasure_bench(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=lambda on: _version(on)),
    ] = False,
) -> None:
    """Its help is the app's."""


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"erasure-bench {version('erasure-bench')}")
        raise typer.Exit


# --- running --------------------------------------------------------------------------------------------------


@command("run objects --methods none,uce,esd@paper --scale 0.5")
def run(
    context: typer.Context,
    suite: SuiteName,
    model: Model = "testbed",
    methods: Methods = None,
    scale: Scale = 1.0,
    out: Out = None,
    store: Store = None,
    seed: Seed = 0,
    executor: Engine = Executor.local,
    workers: Workers = None,
    ray_address: RayAddress = None,
    slurm: Slurm = None,
    shard: Shard = None,
    batch_size: BatchSize = None,
    max_failures: MaxFailures = None,
    keep_images: KeepImages = Keep.all,
    set_: SetOf = None,
    download: Download = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Run a suite from edits to its board; what is done already is not done again."""
    arguments = _arguments(context.params)
    spread: dict[str, Any] = {"workers": workers, "ray_address": ray_address, "slurm": _set(slurm or (), "--slurm")}
    spread |= {"max_failures": max_failures}
    _hub(download)
    from benchmark.run import RunOptions, execute

    return execute(RunOptions(**arguments, **spread, keep_images=keep_images.value, passed=_passed(context)))


@command("plan celebrity --model sd14 --json")
def plan(
    context: typer.Context,
    suite: SuiteName,
    model: Model = "testbed",
    methods: Methods = None,
    scale: Scale = 1.0,
    out: Out = None,
    store: Store = None,
    seed: Seed = 0,
    executor: Engine = Executor.local,
    shard: Shard = None,
    batch_size: BatchSize = None,
    keep_images: KeepImages = Keep.all,
    set_: SetOf = None,
    download: Download = False,
    json_: Json = False,
    prompts: Annotated[bool, typer.Option("--prompts", help="With --json: every prompt and seed too.")] = False,
    cost: Annotated[
        bool, typer.Option("--cost", help="Operations too, and a time from a short try if need be.")
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Tell what a run would do: images, edits, disk, and what is missing. Nothing is run."""
    arguments = _arguments(context.params)
    from benchmark import cost as costs
    from benchmark import engines, fits
    from benchmark import plan as plans
    from benchmark.store import Store as Artifacts

    names = ("suite", "model", "methods", "scale", "seed")
    chosen = {name: arguments[name] for name in names}
    settled = plans.make_plan(**chosen, batch=batch_size, passed=arguments["fields"])
    artifacts = Artifacts(arguments["store"] or arguments["out"] / "store", readonly=True)
    workers = engines.by_itself if executor is Executor.local else None
    told = functools.partial(plans.plan_json, settled, artifacts, keep=keep_images.value, workers=workers)
    forecast = told(costs.earlier(arguments["out"] / "costs.json"))
    if cost:
        _hub(False)
        if forecast["seconds"] is None:
            forecast = told(costs.calibrated(settled))
        forecast["flops"] = costs.operations(settled, forecast)
        forecast["memory"] = fits.told(settled)
    if prompts:
        forecast["prompts"] = plans.prompts_json(settled)
    _say(forecast if json_ else _forecast(forecast))


@command("fetch objects --model sd14")
def fetch(
    suite: SuiteName,
    model: Model = "testbed",
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Download what a suite needs on a model, at pinned commits and checked: its weights, its judges, its files."""
    _hub(download=True)
    from benchmark import fetch as fetching
    from benchmark.plan import make_plan

    folders = fetching.fetch(make_plan(suite, model=model))
    _say([f"fetched {folder}" for folder in folders] or ["nothing to fetch: all is there"])


def _forecast(plan: Mapping[str, Any]) -> list[str]:
    """The forecast to be read."""
    roles = ", ".join(f"{n} {role}" for role, n in plan["images"].items() if role != "total")
    return [
        f"{plan['suite']} {plan['suite_version']} on {plan['model']}, {plan['form']} form, scale {plan['scale']:g}",
        *_sampler(plan["sampler"], plan["sampler_of_suite"], plan["model"]),
        f"cells      {plan['cells']} of {len(plan['by_method'])} methods on {len(plan['requests'])} requests",
        *(f"           {c['method']} on {c['request']}: not applicable, {c['reason']}" for c in plan["not_applicable"]),
        f"images     {plan['images']['total']} a method at most ({roles}), {plan['cached']} in the store already",
        *(f"           {request}: {_by_role(roles)}" for request, roles in plan["distinct"].items()),
        *(f"           {m}: {n['images']['total']} to make, {n['cached']} there" for m, n in plan["by_method"].items()),
        f"edits      {plan['edits']}",
        f"denoiser   {plan['denoiser_forwards']} samples forward",
        f"disk       about {plan['disk_bytes'] / 1e6:.0f} MB",
        *_operations(plan.get("flops")),
        *_memory(plan.get("memory")),
        f"time       {_duration(plan)}",
        *(f"missing    {lack['what']}: {lack['where']}" for lack in plan["missing"]),
    ]


def _sampler(used: Mapping[str, Any], declared: Mapping[str, Any], model: str) -> list[str]:
    """A line where a model is not sampled as the suite says."""
    if used == declared:
        return []
    return [
        f"sampler    {used['steps']} steps without classifier-free guidance, which was distilled into {model}; "
        f"the suite's {declared['steps']} steps and guidance {declared['guidance']:g} are of other models"
    ]


def _operations(flops: Mapping[str, Any] | None) -> list[str]:
    """`operations 2.3e+15, 8.03e+11 a forward, …`, if they were counted."""
    if flops is None:
        return []
    parts = ", ".join(f"{flops[part]:.3g} a {part}" for part in ("forward", "decode"))
    return [f"operations {flops['total']:.3g} floating-point for images ({parts}), without edits"]


def _memory(modes: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """A line a way to run the model on one card: `memory     training, all on the card: 40.1 GB, fits 80 GB`."""
    return [
        f"memory     {m['use']}, {m['name']}: {m['size'] / 1e9:.1f} GB, {'fits' if m['fits'] else 'does not fit'} "
        f"{m['card_gb']} GB (computed, not measured)"
        for m in modes or ()
    ]


def _duration(plan: Mapping[str, Any]) -> str:
    """`about 12 min, from …; without …`."""
    if plan["seconds"] is None:
        return "not yet measured here; --cost tries a batch"
    known = f"about {plan['seconds'] / 60:.0f} min" if plan["seconds"] >= 120 else f"about {plan['seconds']:.0f} s"
    without = f"; without {', '.join(plan['seconds_without'])}" if plan["seconds_without"] else ""
    spread = f" by {plan['workers']} workers at once" if plan["workers"] > 1 else ""
    return f"{known}{spread}, from {plan['seconds_from']}{without}"


def _by_role(roles: Mapping[str, Mapping[str, Any]]) -> str:
    """`250 erased (5 prompts, seeds 1 to 50), 2500 kept (500 prompts, seeds 1 to 5)`."""
    return ", ".join(f"{n['images']} {role} ({n['prompts']} prompts, {_seeds(n)})" for role, n in roles.items())


def _seeds(role: Mapping[str, Any]) -> str:
    if role["seed_range"] is None:
        return "seeds of a file that is not here"
    low, high = role["seed_range"]
    return f"seeds {low} to {high}" if high - low + 1 == role["seeds"] else f"{role['seeds']} seeds"


def _arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """What `run` and `plan` were given, checked and parsed."""
    out = given["out"] or default_out(given["suite"], given["model"])
    if not 0 < given["scale"] < float("inf"):
        raise BadInput(f"--scale: expected a positive number, such as 0.5; got {given['scale']:g}")
    return {
        **{name: given[name] for name in ("suite", "model", "scale", "store", "seed", "batch_size", "download")},
        "out": out,
        "methods": _methods(given["methods"]),
        "executor": given["executor"].value,
        "shard": _shard(given["shard"]),
        "fields": _set_of(given["set_"] or ()),
        "quiet": given["quiet"],
    }


def _methods(text: str | None) -> tuple[str, ...] | None:
    """`none,uce` → `("none", "uce")`."""
    names = None if text is None else tuple(name.strip() for name in text.split(","))
    if names is not None and (not all(names) or len(set(names)) < len(names)):
        raise BadInput(f"--methods: expected different names with commas between, such as none,uce; got {text!r}")
    return names


def _shard(text: str | None) -> tuple[int, int] | None:
    """`2/4` → `(2, 4)`."""
    if text is None:
        return None
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise BadInput(f"--shard: expected i/n with i from 1 to n, such as 2/4; got {text!r}")
    return int(part), int(parts)


def _passed(context: typer.Context) -> dict[str, Any]:
    """The arguments that decide results and were typed, not defaulted; no paths, for they stand in records."""
    typed = {n: v for n, v in context.params.items() if getattr(context.get_parameter_source(n), "name", "") == _TYPED}
    kept = {name: typed[name] for name in ("model", "scale", "seed", "batch_size") if name in typed}
    return {name: Path(value).name if name == "model" else value for name, value in kept.items()}


_TYPED = "COMMANDLINE"


@command("erase uce --concept cat --out edits/cat")
def erase(
    method: Annotated[
        str,
        typer.Argument(metavar="METHOD", help="A method, such as esd or esd@paper.", autocompletion=completion.method),
    ],
    concept: Annotated[list[str], typer.Option(metavar="C", help="What to erase; may be given several times.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the model is written; it must not exist yet.")],
    keep: Annotated[
        list[str] | None, typer.Option(metavar="C", help="A concept to keep; may be given several times.")
    ] = None,
    general: Annotated[
        list[str] | None,
        typer.Option(metavar="P", help="A prompt of none of these concepts, to hold on to as well; many times."),
    ] = None,
    model: Model = "testbed",
    seed: Seed = 0,
    set_: Set = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run one method on one model and write the edited model, which plain diffusers loads, with the edit and a card."""
    passed = _set(set_ or ())
    _hub(False)
    from benchmark import erase as single

    single.check_new(out)
    erased = single.erase(method, model, concept, keep=keep or (), general=general or (), seed=seed, passed=passed)
    single.write(erased, model, out)
    changed, seconds = len(erased.edit.weights) + len(erased.edit.deltas), erased.edit.cost.seconds
    gated = 0 if erased.edit.gates is None else len(erased.edit.gates.changes)
    what = f"gates on {gated} projections" if gated else f"{changed} tensors changed"
    beside = "" if changed else "; read its README.md: the change is no weight, and lies in edit/"
    _say([f"{out}: {method} on {model}, {what} in {seconds:.1f} s{beside}"])


def _set_of(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`["esd.lr=1e-4"]` → `{"esd": {"lr": 0.0001}}`: fields by method label."""
    by_label: dict[str, list[str]] = {}
    for text in given:
        left, equals, value = text.partition("=")
        label, dot, name = left.rpartition(".")
        if not (equals and dot and label):
            raise BadInput(f"--set: expected method.field=value, such as esd.lr=1e-4; got {text!r}")
        by_label.setdefault(label, []).append(f"{name}={value}")
    return {label: _set(texts) for label, texts in by_label.items()}


def _set(given: Sequence[str], option: str = "--set") -> dict[str, Any]:
    """`["lr=1e-4", "train=x"]` → `{"lr": 0.0001, "train": "x"}`: JSON where it is, else text."""
    fields: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier() or name in fields:
            such = "lr=1e-4" if option == "--set" else "timeout_min=240"
            raise BadInput(f"{option}: expected field=value, each field once, such as {such}; got {text!r}")
        try:
            fields[name] = parse_json(value)
        except ValueError:
            fields[name] = value
    return fields


@command("check-method uce --json")
def check_method(
    method: Annotated[
        str,
        typer.Argument(
            metavar="NAME|module:Class", help="A method, or FILE.py:Class.", autocompletion=completion.method
        ),
    ],
    json_: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Check that a method keeps the rules that the harness relies on, on tiny random models, in seconds."""
    _hub(False)
    from benchmark import conformance

    report = conformance.check(method)
    _say(report.as_json() if json_ else report.lines())
    return 0 if report.ok else 1


@command("new-method mine --dir methods")
def new_method(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What boards will call it: lower case.")],
    dir_: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where the two files are written.")] = Path("."),
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a working method to start from, and its test."""
    from benchmark import new_method as skeleton

    method, test = skeleton.write(name, dir_)
    _say(
        [
            f"{method}: a method that works; its test is {test}",
            f"check it with: erasure-bench check-method {method}:{skeleton.class_name(name)}",
        ]
    )


@command("neighbours testbed --group bird --out neighbours.json")
def neighbours(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="A dataset by name.", autocompletion=completion.datasets)
    ],
    model: Model = "testbed",
    group: Annotated[list[str] | None, typer.Option(metavar="G", help="Targets; all fine-grained if left out.")] = None,
    images: Annotated[int | None, typer.Option(metavar="m", help="Images of each concept; 16, full size 100.")] = None,
    top: Annotated[int, typer.Option(metavar="K", help="Neighbours of each target.")] = 5,
    encoder: Annotated[str | None, typer.Option(metavar="E", help="What sees the images; a CLIP if left out.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where it is frozen; with the dataset.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find and freeze the concepts nearest to a dataset's targets: images of all by the unedited model, compared."""
    _hub(False)
    from benchmark import neighbourhood

    file = out or neighbourhood.default_out(dataset)
    neighbourhood.check_new(file)
    found = neighbourhood.compute(
        dataset, model=model, groups=group or (), images=images, top=top, encoder=encoder, quiet=quiet
    )
    neighbourhood.write(found, file)
    _say(neighbourhood.as_json(found) if json_ else [*neighbourhood.lines(found), f"frozen in {file}"])


# --- papers ---------------------------------------------------------------------------------------------------


@command("tables --paper fade_adv")
def tables(
    paper: Annotated[
        str | None, typer.Option(metavar="NAME", help="One paper; all if left out.", autocompletion=completion.papers)
    ] = None,
    format_: Annotated[TextFormat | None, typer.Option("--format", help="md; with --out all.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="A file for each paper and format.")] = None,
    results: Annotated[Path | None, typer.Option(metavar="DIR", help="Records; those of results/.")] = None,
    ledger: Annotated[Path | None, typer.Option(metavar="FILE", help="Claims; results/reported/claims.csv.")] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write papers' tables: what they claim, what was measured here, and what their own numbers give."""
    from benchmark.tables import reproduce

    formats = [format_.value] if format_ else ["md", "csv", "tex"] if out else ["md"]
    made = reproduce.texts(paper, formats, results=results, ledger=ledger)
    if out is None:
        typer.echo("\n".join(made.values()), nl=False)
    else:
        _say([str(path) for path in reproduce.write(made, out)])


claims = typer.Typer(help="Published numbers and their arithmetic.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(claims, name="claims", epilog="Example: erasure-bench claims check")


@command("claims check --json", to=claims)
def check(
    ledger: Annotated[Path | None, typer.Option(metavar="FILE", help="CSV; results/reported/claims.csv.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Recompute published scores from their parts, and list what does not agree; exit code 1 if anything."""
    from benchmark.claims import check as checks
    from benchmark.claims.ledger import read

    report = checks.check(read(ledger))
    _say(report.as_json() if json_ else report.lines())
    return 0 if report.ok else 1


# --- looking --------------------------------------------------------------------------------------------------


@command("list --json")
def list_(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help="One kind alone.", autocompletion=completion.kinds)
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """List methods, suites, models, protocols and datasets."""
    from benchmark import cards, catalogue

    found = catalogue.catalogue(kind)
    _say(found if json_ else cards.lines(found, _columns()))


@command("show esd@paper")
def show(
    name: Annotated[
        str, typer.Argument(help="A method, suite, model, protocol or dataset.", autocompletion=completion.named)
    ],
    json_: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show one of the things that `list` lists."""
    from benchmark import cards, catalogue

    kind, entry = catalogue.find(name)
    _say({"kind": kind.removesuffix("s"), **entry} if json_ else cards.card(kind, entry, _columns()))


@command("doctor --model sd14")
def doctor(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="M", help="Also test this model's images for exactness.", autocompletion=completion.models
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="S", help="List all that this suite needs, on M or testbed.", autocompletion=completion.suites
        ),
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Check packages, device, weights, judges and data, and that images depend on prompt and seed alone here."""
    _hub(False)
    from benchmark import doctor as checks

    found = checks.of_suite(suite, model or "testbed") if suite else checks.report(model)
    if json_:
        _say(checks.as_json(found))
    else:
        checks.show(found, lambda line: _say([line]))
    return checks.exit_code(found)


@command("verify runs/objects-testbed")
def verify(
    directory: Folder,
    store: Store = None,
    hashes: Annotated[bool, typer.Option("--hashes", help="Hashes and tables only: load no judge.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Recompute every number from raw outputs, boards from records, and check every hash; name what changed."""
    from benchmark.verify import unkept
    from benchmark.verify import verify as check

    found, values = check(directory, store), 0
    if not hashes:
        _hub(False)
        from benchmark.recompute import recompute

        again = recompute(directory, store)
        found, values = [*found, *again.wrong], again.values
        for text in again.skipped:
            _tell(f"not recomputed: {text}")
    beside = f"; {values} values of images computed again" if values else ""
    if absent := unkept(store or directory / "store"):
        beside += f"; of {absent} images the pixels were not kept, but hashes and raw outputs"
    _say(found or [f"{directory}: all as it was written{beside}"])
    return 1 if found else 0


@command('baseline runs/smoke-testbed --reason "first baseline of smoke"')
def baseline(
    directory: Folder,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why it is made or refreshed; kept in the file.")] = "",
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="results/baselines/<suite>-<model>.json.")] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Make a run the baseline that later ones are compared with."""
    from benchmark import baseline as baselines
    from benchmark.tables import board as boards

    written = baselines.write([dict(r) for r in boards.read_records(directory)], reason, file)
    _say([f"baseline: {written}; commit it with its reason"])


@command("regress runs/smoke-testbed --summary summary.md")
def regress(
    directory: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="A run; if left out, one is made.")] = None,
    file: Annotated[Path | None, typer.Option("--baseline", metavar="FILE", help="By the run's suite, model.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Of the run that is made; it must be new.")] = None,
    allow: Annotated[list[str] | None, typer.Option(metavar="KIND", help="Inputs that may differ: package, …")] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Also as JUnit XML.")] = None,
    summary: Annotated[Path | None, typer.Option(metavar="FILE", help="Also as Markdown, for a pull request.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Compare a run with a committed baseline: by bytes where these must be equal, else by paired tests."""
    from benchmark import baseline as baselines
    from benchmark import evidence, regress_report
    from benchmark.regress import regress as compared

    if directory is None:
        directory = _again(file, out, quiet=quiet)
    run = evidence.load(str(directory))
    base = baselines.read(file or baselines.default(run.suite, run.model))
    report = compared(base.records, run.records, allow=allow or (), reason=base.reasons[-1].reason)
    if junit is not None:
        regress_report.write(junit, regress_report.junit(report))
    if summary is not None:
        regress_report.write(summary, regress_report.markdown(report).encode())
    _say(regress_report.as_json(report) if json_ else regress_report.lines(report))
    return 0 if report.ok else 1


def _again(file: Path | None, out: Path | None, *, quiet: bool) -> Path:
    """A fresh run of what the baseline holds; returns its folder."""
    from benchmark import baseline as baselines

    if file is None:
        raise BadInput("expected a run or a --baseline, such as results/baselines/smoke-testbed.json")
    arguments = baselines.as_run(baselines.read(file))
    folder = out or Path("runs") / "regress" / f"{arguments['suite']}-{arguments['model']}"
    if folder.exists():
        raise BadInput(f"{folder} exists, and a run in it would not be fresh: remove it, or give it as RUN")
    _hub(False)
    from benchmark.run import RunOptions, execute

    execute(RunOptions(**arguments, out=folder, quiet=True, passed={"batch_size": arguments["batch_size"]}))
    return folder


@command("compare runs/a runs/b")
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A run, record, baseline, board, or COMMIT[:PATH].")],
    b: Annotated[str, typer.Argument(metavar="B", help="Likewise; of a commit alone, its results of A's suite.")],
    json_: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Tell what differs in the inputs of two runs or records, and by how much each number moved."""
    from benchmark import compare as comparing
    from benchmark import evidence

    first = evidence.load(a)
    found = comparing.compare(first, evidence.load(b, like=first))
    _say(comparing.as_json(found) if json_ else comparing.lines(found))


@command("cite runs/objects-testbed")
def cite(directory: Folder, quiet: Quiet = False, debug: Debug = False) -> None:
    """Write BibTeX for exactly the methods, metrics, judges and data sets that a run used."""
    from benchmark import cite as citing
    from benchmark import evidence

    found = citing.cite(evidence.load(str(directory)).records)
    for text in found.warnings:
        _tell(f"erasure-bench: {text}")
    _say([found.bibtex.rstrip("\n")])


@command("rescore runs/explicit-sd14 --protocol nudenet-3.4.2@0.7/images")
def rescore(
    directory: Folder,
    protocol: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="A protocol to add; many times.", autocompletion=completion.protocols),
    ] = None,
    primary: Annotated[
        str | None,
        typer.Option(metavar="ID", help="The protocol of acc_*; the run's own.", autocompletion=completion.protocols),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="New records and boards; DIR-rescored.")] = None,
    store: Store = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Score a finished run by further protocols, from what is stored; nothing is generated."""
    _hub(False)
    from benchmark import rescore as again
    from benchmark.tables import board as boards

    made = again.rescore(directory, protocol or [], primary=primary, out=out, store=store, say=_tell)
    if not quiet:
        _say([boards.render(boards.build(boards.read_records(made)), "term").rstrip(), ""])
    _say([f"records and boards: {made}"])


@command("board runs/objects-testbed --format md")
def board(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Runs, or folders of runs.")],
    format_: Annotated[Format, typer.Option("--format", help="How to write it.")] = Format.term,
    intervals: Annotated[bool, typer.Option("--intervals", help="Intervals in LaTeX too.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a run's board to stdout, made anew from its records; of runs of several suites, one leaderboard."""
    from benchmark import progress
    from benchmark.tables import board as boards
    from benchmark.tables import overall

    suites = overall.read_suites(directories)
    width, colour = _width(), progress.terminal(sys.stdout)
    if len(suites) == 1:
        (records,) = suites.values()
        text = boards.render(boards.build(records), format_, width=width, colour=colour, intervals=intervals)
    else:
        text = overall.render(overall.build(suites), format_, width=width, colour=colour, intervals=intervals)
    typer.echo(text.rstrip("\n"))


@command("perf --only edit_swap --runs 5")
def perf(
    only: Annotated[str | None, typer.Option(metavar="NAME", help="One bench or family; all if left out.")] = None,
    runs: Annotated[int, typer.Option(metavar="N", min=1, help="Timed turns of each side; medians are told.")] = 5,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where <device>.json and the table go.")] = Path("runs/perf"),
    profile: Annotated[bool, typer.Option("--profile", help="Only where a run's time goes, no benches.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Time this harness beside the usual way of doing the same, on this machine, and write a table."""
    _hub(False)
    from benchmark.perf import session

    made = []
    if profile or only is None:  # first: the table names it
        from benchmark.perf import profile as profiles
        from benchmark.perf.rig import here

        made.append(profiles.write(out, here()))
    if not profile:
        made += [session.measure(only, runs=runs, out=out, say=_tell), out / "README.md"]
    _say([str(path) for path in made])


@command("power --rate 0.1 --difference 0.05")
def power(
    directory: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="A run: what its images show.")] = None,
    rate: Annotated[float | None, typer.Option(metavar="P", help="Without a run: the rate of one method.")] = None,
    difference: Annotated[float | None, typer.Option(metavar="D", help="What is to be seen, as a fraction.")] = None,
    images: Annotated[int | None, typer.Option(metavar="N", min=1, help="Images a method.")] = None,
    power_: Annotated[float, typer.Option("--power", metavar="B", help="Probability to see it.")] = 0.8,
    level: Annotated[float, typer.Option(metavar="L", help="1 minus the error rate of the test.")] = 0.95,
    agreement: Annotated[float, typer.Option(metavar="A", help="0: pairs are independent; 1: they agree.")] = 0.0,
    per_prompt: Annotated[int, typer.Option(metavar="m", min=1, help="Images of each prompt.")] = 1,
    alike: Annotated[float, typer.Option(metavar="r", help="Correlation of one prompt's images.")] = 0.0,
    json_: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Tell how many images show a difference, and which difference a number of images, or a finished run, can show."""
    from benchmark.tables import board as boards
    from benchmark.tables import power as powers

    if (directory is None) == (rate is None):
        raise BadInput("expected a run or --rate: erasure-bench power DIR, or power --rate 0.1 --difference 0.05")
    if not (0 < power_ < 1 and 0 < level < 1):
        raise BadInput(f"expected --power and --level as fractions between 0 and 1, got {power_:g} and {level:g}")
    if directory is not None:
        told = powers.resolution(boards.read_records(directory), difference=difference, power=power_, level=level)
        _say(told if json_ else powers.lines(told))
    elif rate is not None:
        told = powers.planned(
            rate,
            difference=difference,
            images=images,
            power=power_,
            level=level,
            agreement=agreement,
            per_prompt=per_prompt,
            alike=alike,
        )
        _say(told if json_ else powers.planned_lines(told))


# --- keeping --------------------------------------------------------------------------------------------------


@command("gc runs/objects-testbed --older-than 30 --delete")
def gc(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Runs, or folders of runs: all to keep.")],
    store: Annotated[Path | None, typer.Option(metavar="DIR", help="The store they share; of each its own.")] = None,
    older_than: Annotated[float, typer.Option(metavar="DAYS", help="Younger ones stay: a run may use them.")] = 7.0,
    only: Annotated[list[str] | None, typer.Option(metavar="KIND", help="edits, images, raw, scores, damaged…")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run/--delete", help="Show what would go, or let it go.")] = True,
    json_: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Free the room of artifacts that no run rests on; what is in the records of the named runs stays."""
    from benchmark import prune

    found = prune.find(directories, store, older_than=older_than, only=only or ())
    if not dry_run:
        for report in found:
            prune.delete(report)
    deleted = not dry_run
    if json_:
        _say({"schema": 1, "stores": [prune.as_json(report, deleted=deleted) for report in found]})
    else:
        _say([line for report in found for line in prune.lines(report, deleted=deleted)])


@command("export runs/objects-testbed --out objects.zip")
def export(
    directory: Folder,
    out: Annotated[Path, typer.Option(metavar="FILE.zip", help="The archive; nothing is overwritten.")],
    store: Store = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Pack a finished run into one archive with checksums; its logs, which may name places here, stay."""
    from benchmark import archive

    count, digest = archive.export(directory, out, store)
    _say([f"{out}: {count} files, {out.stat().st_size / 1e6:.1f} MB, SHA-256 {digest}"])


@command("import objects.zip --out runs/objects-testbed")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE.zip", help="What `export` wrote.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new or empty folder.")],
    store: Annotated[Path | None, typer.Option(metavar="DIR", help="Where artifacts go; OUT/store.")] = None,
    sha256: Annotated[str | None, typer.Option(metavar="HEX", help="What `export` printed; checked first.")] = None,
    limit: Annotated[float, typer.Option(metavar="GB", min=0, help="Unpack no more than that.")] = 200.0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Unpack an exported run, whole and checked, or not at all; the same command as there then goes on from it."""
    from benchmark import archive

    count = archive.unpack(file, out, store, sha256=sha256, limit=int(limit * 1e9))
    _say([f"{out}: {count} files, each as it was packed"])


# --- showing --------------------------------------------------------------------------------------------------

Runs = Annotated[list[Path], typer.Argument(metavar="RUNS...", help="The --out of each run.")]


@command("page runs/objects-testbed --out site")
def page(
    runs: Runs,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The site; one that is there is replaced.")],
    store: Store = None,
    thumbnail: Annotated[int, typer.Option(metavar="PX", help="Side of a thumbnail at most.")] = 128,
    rows: Annotated[int, typer.Option(metavar="N", help="Prompts and seeds of each role shown at most.")] = 500,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a static site that opens from disk: boards, figures and every image beside its score."""
    from benchmark.page import site

    made = site.write(runs, out, store=store, thumbnail=thumbnail, per_role=rows, say=_tell)
    absent = f", of which {made.absent} are not in a store" if made.absent else ""
    said = f"{made.pages} pages, {made.images} images{absent}, {made.size / 1e6:.1f} MB"
    _say([f"{out / 'index.html'}: {said}"])


@command("plot runs/objects-testbed --figure erase_keep --out erase_keep.pdf")
def plot(
    runs: Runs,
    figure: Annotated[
        str,
        typer.Option(
            metavar="F", help="erase_keep, concepts, interference or cost.", autocompletion=completion.figures
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="A .pdf, .svg or .png.")],
    request: Annotated[str | None, typer.Option(metavar="R", help="Of erase_keep: the mean if left out.")] = None,
    method: Annotated[str | None, typer.Option(metavar="M", help="Of interference: all if left out.")] = None,
    store: Store = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw one of the page's figures as a file for a paper, a panel for each run."""
    from benchmark.page import plots
    from benchmark.page.runs import read_runs

    plots.write(read_runs(runs, store), figure, out, request=request, method=method)
    _say([str(out)])


def _width() -> int:
    """Columns of the terminal; 100 where there is none."""
    return shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 100


def _columns() -> int | None:
    """Columns to wrap text at; None where nobody reads along: a line then stays a line, to be searched."""
    return max(40, min(_width(), 120)) if sys.stdout.isatty() else None


def _say(what: Any) -> None:
    """Lines as they are, anything else as JSON, to stdout."""
    if isinstance(what, list) and all(isinstance(line, str) for line in what):
        typer.echo("\n".join(map(inert.lines, what)))
    else:
        typer.echo(inert.json_text(json.dumps(what, indent=2, ensure_ascii=False, allow_nan=False)))


def _tell(text: str) -> None:
    """A message to stderr, in which nothing of a stranger's acts on the terminal and no token stands."""
    typer.echo(inert.lines(inert.redacted(text)), err=True)


def main() -> None:
    """The console script."""
    # Before torch is imported: threads that wait spin for some microseconds only, for the sake of busy machines.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    signal.signal(signal.SIGTERM, _terminated)
    app()


if __name__ == "__main__":
    main()
