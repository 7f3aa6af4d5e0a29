"""The page's figures as files for papers: PDF, SVG or PNG, one style, told apart by shape as well as colour.

The same runs give the same bytes: no dates, a fixed salt for SVG's names, the font that matplotlib ships.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmark import atomic
from benchmark.errors import BadInput, Missing, did_you_mean
from benchmark.page import figures
from benchmark.page.runs import Run
from benchmark.tables import formats
from benchmark.tables.board import MEAN
from benchmark.tables.columns import natural

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Json = dict[str, Any]
KINDS = ("pdf", "svg", "png")
# Dark enough on white for lines and marks, and different to all three kinds of colour blindness (after Okabe and Ito).
COLOURS = ("#0072b2", "#c44e00", "#007a5a", "#a8518a", "#7a5c00", "#4b4bb8")
SHAPES = ("o", "s", "^", "D", "v", "P")
CONTROL = "#6a707b"
STYLE: Mapping[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#8a919e",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "grid.color": "#d3d7de",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 5.5,
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
    "svg.fonttype": "path",
    "svg.hashsalt": "erasure-bench",
    "text.parse_math": False,  # a name with dollar signs is a name
}
NOTHING: Mapping[str, Mapping[str, Any]] = {
    "pdf": {"CreationDate": None, "Creator": "erasure-bench", "Producer": None},
    "svg": {"Date": None, "Creator": "erasure-bench"},
    "png": {"Software": None},
}
"""What a file says of its making: nothing that differs between two makings."""


def write(
    runs: Sequence[Run], figure: str, out: Path, *, request: str | None = None, method: str | None = None
) -> None:
    """Draw one figure, a panel for each run, as the kind that the file's name ends in.

    `request` picks that of `erase_keep` (the mean if left out), `method` that of `interference` (all if left out).
    BadInput for an unknown figure, kind, request or method, and where a run has nothing to draw; Missing without
    matplotlib.
    """
    kind = out.suffix.removeprefix(".").lower()
    if kind not in KINDS:
        raise BadInput(f"--out: expected a file that ends in .pdf, .svg or .png, got {out.name}")
    content = render(runs, figure, kind, request=request, method=method)
    atomic.write(out, content)


def render(
    runs: Sequence[Run], figure: str, kind: str, *, request: str | None = None, method: str | None = None
) -> bytes:
    """The file's bytes."""
    with _style():
        out = io.BytesIO()
        sheet = _drawn(runs, figure, request, method)
        sheet.savefig(out, format=kind, metadata=dict(NOTHING[kind]))
        return out.getvalue()


def draw(runs: Sequence[Run], figure: str, *, request: str | None = None, method: str | None = None) -> Figure:
    """The figure itself, for who wants to change or save it in another way; `write` says what is refused."""
    with _style():
        return _drawn(runs, figure, request, method)


@contextmanager
def _style() -> Iterator[None]:
    """Our style alone, whatever is set outside; Missing without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise Missing(
            f"plots need matplotlib, which is not here ({error}); get it with: pip install matplotlib"
        ) from None
    style: dict[Any, Any] = {**matplotlib.rcParamsDefault, **STYLE, "backend": "agg"}
    with matplotlib.rc_context(style):
        yield


def _drawn(runs: Sequence[Run], figure: str, request: str | None, method: str | None) -> Figure:
    from benchmark.page.sheet import Sheet

    if figure not in figures.FIGURES:
        raise BadInput(did_you_mean(figure, figures.FIGURES, "figure"))
    sheet = Sheet(layout="constrained")
    _DRAW[figure](sheet, runs, request, method)
    if any(run.embedded for run in runs):
        sheet.supxlabel(formats.EMBEDDED, fontsize=6.5, color="#8f3b00")
    return sheet


# --- what all figures share -------------------------------------------------------------------------------------------
def _panels(sheet: Figure, count: int, width: float, height: float, across: int = 3) -> list[Axes]:
    columns = min(count, across)
    rows = -(-count // columns)
    sheet.set_size_inches(width * columns, height * rows + 0.2)
    made = sheet.subplots(rows, columns, squeeze=False).flatten().tolist()
    for spare in made[count:]:
        spare.set_visible(False)
    return list(made[:count])


def _checked(run: Run, found: Json) -> Json:
    if found["reason"]:
        raise BadInput(f"{formats.title(run.board)}: nothing to draw: {found['reason']}")
    return found


def _name(run: Run) -> str:
    """A panel's heading; that it is embedded stands below the whole sheet too."""
    scale = "" if run.board["scale"] == 1 else f" · scaled by {run.board['scale']:g}"
    return f"{run.board['suite']} v{run.board['suite_version']} · {run.board['model']}{scale}"


def looks(methods: Mapping[str, str]) -> dict[str, Json]:
    """By method: how it is drawn. Colour and shape follow the names' order, and tell 36 methods apart."""
    named = sorted(methods, key=natural)
    erasing = [m for m in named if methods[m] == "erasure"]
    controls = [m for m in named if methods[m] == "control"]
    found: dict[str, Json] = {}
    for m in named:
        if m in erasing:
            i = erasing.index(m)
            colour, shape = COLOURS[i % 6], SHAPES[(i + i // 6) % 6]
            found[m] = {"color": colour, "marker": shape, "markerfacecolor": colour}
        elif m in controls:
            shape = SHAPES[controls.index(m) % 6]
            found[m] = {"color": CONTROL, "marker": shape, "markerfacecolor": "white"}
        else:
            found[m] = {"color": "black", "marker": "*", "markerfacecolor": "black", "markersize": 9}
    return found


def _all_looks(runs: Sequence[Run]) -> dict[str, Json]:
    return looks({r["method"]: r["role"] for run in runs for r in run.board["rows"]})


def _errors(value: float, ci: Sequence[float] | None, scale: float = 1) -> list[list[float]] | None:
    """Lengths of an interval's arms, as matplotlib wants them."""
    return None if ci is None else [[scale * max(0.0, value - ci[0])], [scale * max(0.0, ci[1] - value)]]


def _legend(sheet: Figure, panels: Sequence[Axes]) -> None:
    handles = {label: h for a in panels for h, label in zip(*a.get_legend_handles_labels(), strict=True)}
    shown = sorted(handles, key=natural)
    if shown:
        sheet.legend([handles[m] for m in shown], shown, loc="outside upper center", ncols=min(6, len(shown)))


def _headline_axis(axes: Axes, found: Json) -> float:
    """Name the y axis after the headline; returns what its values are multiplied by."""
    unit = ", %" if found["rate"] else ""
    axes.set_ylabel(f"{found['headline']}{unit} ({'high' if found['direction'] == 'up' else 'low'} is good)")
    if found["rate"]:
        axes.set_ylim(-3, 103)
    return 100.0 if found["rate"] else 1.0


# --- the four figures -------------------------------------------------------------------------------------------------
def _erase_keep(sheet: Figure, runs: Sequence[Run], request: str | None, method: str | None) -> None:
    how, panels = _all_looks(runs), _panels(sheet, len(runs), 3.4, 3.0)
    for run, axes in zip(runs, panels, strict=True):
        found = _checked(run, figures.erase_keep(run.board["rows"]))
        chosen = _request(found["requests"], request)
        _erase_keep_panel(axes, found["requests"][chosen], found["keep"], how)
        axes.set_title(_name(run) + ("" if chosen == MEAN else f"\n{chosen}"), fontsize=8)
    _legend(sheet, panels)


def _request(found: Mapping[str, Any], asked: str | None) -> str:
    if asked is None:
        return MEAN if MEAN in found else next(iter(found))
    if asked not in found:
        raise BadInput(did_you_mean(asked, found, "request"))
    return asked


def _erase_keep_panel(axes: Axes, points: Sequence[Json], keep: str, how: Mapping[str, Json]) -> None:
    front = [(100 * x, 100 * y) for x, y in figures.front_line(points)]
    if front:
        xs, ys = zip(*[(-3.0, front[0][1]), *front, (front[-1][0], -3.0)], strict=True)
        axes.step(xs, ys, where="pre", color="black", linestyle=(0, (4, 3)), linewidth=0.8)
    for p in points:
        arms: Json = {"xerr": _errors(p["x"], p["x_ci"], 100), "yerr": _errors(p["y"], p["y_ci"], 100)}
        axes.errorbar(
            100 * p["x"], 100 * p["y"], **arms, **how[p["method"]], linestyle="", elinewidth=0.8, label=p["method"]
        )
    axes.set(xlim=(-3, 103), ylim=(-3, 103), xlabel="forgotten: 100 − accuracy on erased prompts, %")
    axes.set_ylabel(f"kept: accuracy on {keep} prompts, %")


def _concepts(sheet: Figure, runs: Sequence[Run], request: str | None, method: str | None) -> None:
    how, panels = _all_looks(runs), _panels(sheet, len(runs), 3.4, 2.8)
    for run, axes in zip(runs, panels, strict=True):
        found = _checked(run, figures.concepts(run))
        scale, counts = _headline_axis(axes, found), sorted({p["n"] for p in found["points"]})
        for line in found["lines"]:
            xs, ys = zip(*line["means"], strict=True)
            dotted = ":" if line["role"] == "control" else "-"
            plain = {k: v for k, v in how[line["method"]].items() if k == "color"}
            axes.plot(xs, [scale * y for y in ys], linestyle=dotted, **plain)
        for p in found["points"]:
            arms = _errors(p["headline"], p["ci"], scale)
            look = how[p["method"]]
            axes.errorbar(
                p["n"], scale * p["headline"], yerr=arms, **look, linestyle="", elinewidth=0.8, label=p["method"]
            )
        if counts[-1] >= 10 * counts[0]:
            axes.set_xscale("log")
        axes.set_xticks(counts, [str(n) for n in counts])
        axes.minorticks_off()
        axes.set_xlabel("concepts erased at once")
        axes.set_title(_name(run), fontsize=8)
    _legend(sheet, panels)


def _interference(sheet: Figure, runs: Sequence[Run], request: str | None, method: str | None) -> None:
    found = [(run, _checked(run, figures.interference(run))) for run in runs]
    wanted = [(run, f, m) for run, f in found for m in f["methods"] if method in (None, m)]
    if not wanted:
        raise BadInput(did_you_mean(str(method), {m for _, f in found for m in f["methods"]}, "method"))
    widest, tallest = max(len(f["columns"]) for _, f in found), max(len(f["requests"]) for _, f in found)
    panels = _panels(sheet, len(wanted), 1.3 + 0.3 * widest, 1.0 + 0.25 * tallest, across=2 if widest <= 20 else 1)
    for (run, f, name), axes in zip(wanted, panels, strict=True):
        _matrix(axes, f, f["methods"][name], numbers=widest <= 40)
        axes.set_title(f"{name}: change of accuracy, points · {_name(run)}", fontsize=8)


def _matrix(axes: Axes, found: Json, cells: Sequence[Json], *, numbers: bool) -> None:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    colours = LinearSegmentedColormap.from_list("change", ["#d9691a", "#ffffff", "#3f86d0"])
    rows, columns = found["requests"], found["columns"]
    grid = [[float("nan")] * len(columns) for _ in rows]
    for c in cells:
        y, x = rows.index(c["request"]), columns.index(c["concept"])
        grid[y][x] = 100 * c["change"]
        if numbers:
            axes.text(x, y, _signed(c["change"]), ha="center", va="center", fontsize=6.5)
        if c["erased"]:
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, linewidth=1.2, edgecolor="black", zorder=3))
    axes.imshow(grid, cmap=colours, vmin=-100, vmax=100, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=90)
    axes.set_yticks(range(len(rows)), rows)
    axes.grid(False)


def _signed(change: float) -> str:
    points = round(100 * change)
    return "0" if points == 0 else f"{points:+d}".replace("-", "−")


def _cost(sheet: Figure, runs: Sequence[Run], request: str | None, method: str | None) -> None:
    how, panels = _all_looks(runs), _panels(sheet, len(runs), 3.4, 2.8)
    for run, axes in zip(runs, panels, strict=True):
        found = _checked(run, figures.cost(run))
        by = "seconds" if found["timed"] else "denoiser_forwards"
        points = [p for p in found["points"] if p[by] and p["headline"] is not None]
        if not points:
            raise BadInput(f"{_name(run)}: nothing to draw: no edit has a cost above 0 and a headline")
        scale = _headline_axis(axes, found)
        for p in points:
            arms, look = _errors(p["headline"], p["ci"], scale), how[p["method"]]
            axes.errorbar(
                p[by], scale * p["headline"], yerr=arms, **look, linestyle="", elinewidth=0.8, label=p["method"]
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.set_xlabel(_where(found) if found["timed"] else "denoiser samples forward of one edit")
        axes.set_title(_name(run), fontsize=8)
    _legend(sheet, panels)


def _where(found: Json) -> str:
    machine = found["machine"]
    threads = f"{machine['threads']} threads" if machine.get("threads") else ""
    named = [t for t in (machine.get("device"), machine.get("cpu"), threads) if t]
    return "seconds of one edit" + (f" ({', '.join(named)})" if named else "")


_DRAW: Mapping[str, Callable[[Figure, Sequence[Run], str | None, str | None], None]] = {
    "erase_keep": _erase_keep,
    "concepts": _concepts,
    "interference": _interference,
    "cost": _cost,
}
