"""The harness in Python, for notebooks and scripts: plan and run a suite, open results, tables as frames, figures.

Committed results are enough to try it:

>>> from benchmark import api
>>> objects = api.open_run("results/testbed-3/objects")
>>> objects
Results(objects v2 on testbed, embedded form: 36 records in results/testbed-3/objects)

One row an image and protocol; the values are as they were measured, fractions and not percent:

>>> frame = objects.records()
>>> rates = frame[frame.primary].pivot_table("value", "method", "role", observed=True).reset_index()
>>> print(rates[["method", "erased", "kept"]].round(3).to_string(index=False))
   method  erased  kept
      ant   0.161 0.926
blocklist   0.006 0.978
      cpe   0.000 0.978
      esd   0.006 0.863
 fade_adv   0.006 0.906
  fade_fg   0.017 0.969
     grey   0.000 0.000
     mace   0.011 0.706
    noise   0.967 0.983
     none   0.972 0.978
      uce   0.006 0.978

The board has a row for each method and request, and one for the mean over requests, with 95 % intervals:

>>> board = objects.board()
>>> mean = board[(board.request == "mean") & (board.role == "erasure") & board["rank"].notna()].round(3)
>>> print(mean[["method", "rank", "headline", "headline_lo", "headline_hi"]].to_string(index=False))
  method  rank  headline  headline_lo  headline_hi
     uce     1     0.983        0.966        0.993
     cpe     2     0.983        0.964        0.992
 fade_fg     3     0.982        0.966        0.989
fade_adv     4     0.963        0.940        0.976
     esd     5     0.943        0.915        0.960
    mace     6     0.871        0.804        0.908
     ant     7     0.841        0.803        0.870

>>> figure = objects.plot("erase_keep")
>>> figure.savefig("erase_keep.pdf")  # doctest: +SKIP

Nothing here loads torch, except `run`. Errors are those of `benchmark.errors`: `BadInput`, `Missing`, `Damaged`, each
with a message that says what was expected, what came and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

from benchmark import hubs, paths
from benchmark.errors import BadInput
from benchmark.suite import Suite
from benchmark.suite import load as load_suite

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from benchmark.page.runs import Run

__all__ = ["COLUMNS", "Comparison", "Results", "compare", "load_suite", "open_run", "plan", "plot", "run"]

Folder = str | PathLike[str]
FigureName = Literal["erase_keep", "concepts", "interference", "cost"]
Fields = Mapping[str, Mapping[str, Any]]
"""Values of methods' fields by label: `{"esd": {"iterations": 200}}`."""

COLUMNS: Mapping[str, str] = {
    "suite": "suite",
    "suite_version": "its version; rows of different versions do not compare",
    "form": "embedded or paper; rows of different forms do not compare",
    "model": "model that was edited",
    "method": "method, or method@variant",
    "kind": "baseline (the unedited model), erasure or control",
    "request": "what was asked for, such as erase:bird",
    "training_seed": "seed of the method's training",
    "role": "of the prompt: erased, synonym, kept, adjacent or general",
    "concept": "concept that the prompt shows; empty for general prompts",
    "prompt": "prompt",
    "replicate": "number of the image among those of its prompt, from 0",
    "seed": "seed of the image; the same prompt and seed start from the same noise under every method",
    "image": "SHA-256 of the pixels",
    "valid": "whether the suite's primary protocol could score the image",
    "protocol": "protocol that gave the value; values of different protocols do not compare",
    "primary": "whether that is the suite's primary protocol, which alone fills acc_* of boards",
    "unit": "of the value; a fraction lies between 0 and 1",
    "value": "what the protocol says of the image; NaN where it says nothing",
}
"""What `Results.records` has, column by column."""


@final
@dataclass(frozen=True)
class Results:
    """What a run left, or committed results: a folder with records."""

    folder: Path
    """The OUT of the run."""

    @property
    def suite(self) -> str:
        """Name of the suite."""
        return str(self._run.board["suite"])

    @property
    def model(self) -> str:
        """Name of the model that was edited."""
        return str(self._run.board["model"])

    @property
    def embedded(self) -> bool:
        """Whether the numbers come from the embedded model: they then compare with no paper's."""
        return self._run.embedded

    def records(self) -> pd.DataFrame:
        """Every image's values, tidy: a row an image and protocol, with the columns of `COLUMNS`.

        Cells that failed or were not applicable have no images, hence no rows: `board` names them. Distances between
        sets of images (FID, KID) belong to no image, and stand on the board alone. BadInput if the folder holds a
        board without its records.
        """
        from benchmark import frames

        if not self._run.records:
            raise BadInput(f"{self.folder} holds a board without its records; Results.board() reads it")
        return frames.records(self._run.records)

    def board(self) -> pd.DataFrame:
        """The rows and columns of `board.csv`: a row for each method and request, `mean` over requests last.

        Rates and H are fractions; `<name>_lo` and `<name>_hi` are the ends of a 95 % interval; what is not available
        is NaN, and `status` and `reason` say why. `rank` is an integer, or <NA> where there is none.
        """
        from benchmark import frames

        return frames.board(self._run.board)

    def plot(self, figure: FigureName, *, request: str | None = None, method: str | None = None) -> Figure:
        """`plot` of this run alone."""
        return plot([self], figure, request=request, method=method)

    def __repr__(self) -> str:
        board, n = self._run.board, len(self._run.records)
        named = f"{board['suite']} v{board['suite_version']} on {board['model']}, {board['form']} form"
        return f"Results({named}: {n} records in {self.folder})"

    @cached_property
    def _run(self) -> Run:
        from benchmark.page.runs import read_runs

        return read_runs([self.folder])[0]


@final
@dataclass(frozen=True)
class Comparison:
    """Two results side by side, as `erasure-bench compare` tells them; `print` it to read it."""

    inputs: pd.DataFrame
    """What differs in the inputs, a row each: `kind`, `name`, `a`, `b`, and in how many `cells`."""
    numbers: pd.DataFrame
    """Numbers that differ, a row each: `cell`, `quantity`, `a`, `b`, `difference` (b − a, in the quantity's unit)."""
    tests: pd.DataFrame
    """Paired tests of the images' outcomes: `cell`, `protocol`, `role`, `images`, `differing`, `a`, `b`, `effect`
    (rates: b − a; scores: in standard deviations of a), `p`, `adjusted` (Holm's, over all rows), `flagged`."""
    text: str

    def __str__(self) -> str:
        return self.text


def plan(
    suite: Suite | str,
    *,
    model: str = "testbed",
    methods: Sequence[str] | None = None,
    scale: float = 1.0,
    seed: int = 0,
    batch_size: int | None = None,
    fields: Fields | None = None,
    out: Folder | None = None,
    store: Folder | None = None,
) -> dict[str, Any]:
    """What `run` with the same arguments would do, and what is missing: the values of `erasure-bench plan --json`.

    Nothing is run, nothing written. BadInput for an unknown name or a value that cannot be.

    >>> forecast = plan("objects", methods=["none", "uce"], out="nowhere")
    >>> forecast["images"]["total"], forecast["edits"], forecast["denoiser_forwards"]
    (900, 3, 33600)
    """
    from benchmark import cost, engines
    from benchmark import plan as plans
    from benchmark.store import Store

    settled = plans.make_plan(
        suite, model=model, methods=_named(methods), scale=scale, seed=seed, batch=batch_size, passed=fields
    )
    folder = _out(out, suite if isinstance(suite, str) else suite.name, model)
    artifacts = Store(folder / "store" if store is None else Path(store), readonly=True)
    return plans.plan_json(settled, artifacts, cost.earlier(folder / "costs.json"), workers=engines.by_itself)


def run(
    suite: str,
    *,
    model: str = "testbed",
    methods: Sequence[str] | None = None,
    scale: float = 1.0,
    seed: int = 0,
    batch_size: int | None = None,
    fields: Fields | None = None,
    out: Folder | None = None,
    store: Folder | None = None,
    download: bool = False,
) -> Results:
    """Run a suite, by name or by the path of its YAML file, from edits to its board; what is done is not done again.

    `methods` are those of the suite if left out, `scale` is a share of the suite's images per prompt, `seed` that of
    the methods' training, `fields` values of their fields by label, `out` `runs/<suite>-<model>` if left out, and
    `store` `out/store`. Progress goes to stderr. Without `download` no hub is asked for anything.

    Cells that fail are rows of the board with their reason; the others are valid. BadInput for what cannot be run,
    Missing (which names it) for weights and packages that are not here.
    """
    hubs.ask(download)
    from benchmark.run import RunOptions, execute

    folder = _out(out, suite, model)
    execute(
        RunOptions(
            suite=suite,
            model=model,
            methods=_named(methods),
            scale=scale,
            out=folder,
            store=None if store is None else Path(store),
            seed=seed,
            batch_size=batch_size,
            download=download,
            quiet=True,
            fields=fields or {},
            passed=_passed(model=(model, "testbed"), scale=(scale, 1.0), seed=(seed, 0), batch_size=(batch_size, None)),
        )
    )
    return open_run(folder)


def open_run(folder: Folder) -> Results:
    """The results in a folder: the OUT of a run, its `records`, or a folder of `results/`.

    BadInput if there are neither records nor a board, or records that do not belong on one board.
    """
    found = Results(Path(folder))
    found._run  # noqa: B018 - read now, so that what is wrong is told now
    return found


def compare(a: Results | Folder, b: Results | Folder) -> Comparison:
    """Tell what differs in the inputs of two results, and by how much each number moved.

    Cells are matched by method, request and training seed. `a` and `b` may also be a record, a baseline, a board, or
    `COMMIT:PATH`, as `erasure-bench compare` takes them; BadInput for anything else.

    >>> same = compare("results/testbed-3/objects", "results/testbed-3/objects")
    >>> len(same.inputs), len(same.numbers), int(same.tests["flagged"].sum())
    (0, 0, 0)
    """
    from benchmark import compare as comparing
    from benchmark import evidence, frames

    first = evidence.load(_text(a))
    found = comparing.compare(first, evidence.load(_text(b), like=first))
    return Comparison(*frames.comparison(found), "\n".join(comparing.lines(found)))


def plot(
    runs: Sequence[Results | Folder] | Results | Folder,
    figure: FigureName,
    *,
    request: str | None = None,
    method: str | None = None,
) -> Figure:
    """Draw one of the figures that `erasure-bench plot` writes, a panel for each run; a notebook shows it as it is.

    `request` picks that of `erase_keep` (the mean if left out), `method` that of `interference` (all if left out).
    BadInput for an unknown name, and where a run has nothing to draw; Missing without matplotlib.
    """
    from benchmark.page import plots

    several = [runs] if isinstance(runs, Results | str | PathLike) else runs
    opened = [one if isinstance(one, Results) else open_run(one) for one in several]
    return plots.draw([one._run for one in opened], figure, request=request, method=method)


def _named(methods: Sequence[str] | None) -> tuple[str, ...] | None:
    if isinstance(methods, str):  # a sequence too, of letters
        raise BadInput(f'methods: expected a list of names, such as ["none", "uce"]; got the text {methods!r}')
    return None if methods is None else tuple(methods)


def _passed(**given: tuple[Any, Any]) -> dict[str, Any]:
    """What records say was typed: the arguments, each with its default, that are not the default; no paths."""
    said = {name: value for name, (value, default) in given.items() if value != default}
    return {name: Path(value).name if name == "model" else value for name, value in said.items()}


def _out(out: Folder | None, suite: str, model: str) -> Path:
    return paths.default_out(suite, model) if out is None else Path(out)


def _text(what: Results | Folder) -> str:
    return str(what.folder) if isinstance(what, Results) else str(what)
