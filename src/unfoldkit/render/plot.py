"""Draw figures with matplotlib; equal data give equal bytes."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from unfoldkit.errors import user_error
from unfoldkit.render.formatting import strip_controls
from unfoldkit.report import Figure, Report, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

# medium tones, which are legible on white and on black
COLOURS = ("#0891b2", "#77808e", "#d97706", "#8b5cf6", "#16a34a", "#ef4444", "#3b82f6", "#a16207")
# colour alone does not distinguish lines that overlap, in grey print, or for colour-blind readers
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
MARKERS = ("o", "s", "^", "D")
INK = "#1f2937"
LEGEND_LETTERS = 72
MAX_LANE_LABELS = 12
NAME_LETTERS = 64
MANY_NAMES = 16
TALL = 4.2
LEGEND_ROW = 14
FREE_ROWS = 3
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "unfoldkit",
    "svg.fonttype": "none",
    "text.parse_math": False,  # two prices in one text are not a formula
    "font.size": 10.0,
    "font.family": ["DejaVu Sans"],
    **dict.fromkeys(["text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"], INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
}


def render(report: Report) -> bytes:
    """Render the figures of a report as one PNG, one above the other.

    Raises:
        UnfoldError: The report has no figure.
    """
    report = strip_controls(report)
    if not report.figures:
        raise user_error(f"{report.verb} of {report.name} has no plot", hint="--out with .json, .html or .md")
    return _draw(report.figures, "png")


def svg(figure: Figure) -> str:
    """Render one figure as an SVG element for a page, in the page's colour and without a title.

    Its ids begin with the figure's name, so that a page can hold several.
    """
    text = _draw([replace(figure, title="")], "svg").decode()
    text = re.sub(r'( id="|url\(#|href="#)', lambda match: f"{match[0]}{figure.name}-", text)
    return text[text.index("<svg") :].replace(INK, "currentColor").replace("<svg", '<svg aria-hidden="true"', 1)


def _draw(figures: Sequence[Figure], form: str) -> bytes:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=(7.6, sum(map(_height, figures))), layout="constrained")
        FigureCanvasAgg(canvas)
        for index, figure in enumerate(figures):
            _axes(canvas.add_subplot(len(figures), 1, index + 1), figure)
        stream = io.BytesIO()
        metadata = {"Date": None} if form == "svg" else {"Software": None}
        canvas.savefig(stream, format=form, dpi=144, metadata=metadata, transparent=form == "svg")
    return stream.getvalue()


def _axes(axes: Axes, figure: Figure) -> None:
    for index, series in enumerate(figure.series):
        # matplotlib leaves names with a leading underscore out of legends
        labelled = replace(series, name=f" {series.name}") if series.name.startswith("_") else series
        _series(axes, labelled, index, len(figure.series))
    axes.set_xlabel(figure.x)
    axes.set_ylabel(figure.y)
    _plain(axes, figure)
    _scales(axes, figure)
    if any(_level(series) for series in figure.series):
        _lanes(axes)
    if len(figure.series) > 1:
        _legend(axes, figure)
    axes.set_title(figure.title, loc="left", fontsize=11, pad=6 + LEGEND_ROW * _rows(figure))


def _legend(axes: Axes, figure: Figure) -> None:
    """Place the legend above the plot, where it hides nothing."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=_columns(figure), frameon=False, fontsize=9, borderaxespad=0.2,
        columnspacing=1.4, handlelength=2.2,
    )  # fmt: skip


def _columns(figure: Figure) -> int:
    return 4 if sum(len(series.name) for series in figure.series[:4]) <= LEGEND_LETTERS else 2


def _rows(figure: Figure) -> int:
    return math.ceil(len(figure.series) / _columns(figure)) if len(figure.series) > 1 else 0


def _height(figure: Figure) -> float:
    """Return the height of a figure in inches; a long legend makes the figure taller."""
    return TALL + LEGEND_ROW / 72 * max(0, _rows(figure) - FREE_ROWS)


def _series(axes: Axes, series: Series, index: int, count: int) -> None:
    x, y, colour = list(series.x), list(series.y), COLOURS[index % len(COLOURS)]
    turn = (index + index // len(COLOURS)) % len(DASHES)
    if series.style in ("line", "steps") and len(x) == 1:
        # a line of one point is invisible
        series = replace(series, style="points")
    if series.style == "points":
        axes.scatter(x, y, s=44, color=colour, label=series.name, zorder=3, marker=MARKERS[turn])
    elif series.style == "bars":
        width = 0.8 / count
        axes.bar(
            [value + (index - (count - 1) / 2) * width for value in x],
            y,
            width,
            color=colour,
            label=series.name,
        )
    elif series.style == "segments":
        _segments(axes, series, colour)
    elif series.style == "steps":
        axes.step(x, y, where="post", color=colour, label=series.name, linewidth=1.8, linestyle=DASHES[turn])
    else:
        axes.plot(x, y, color=colour, label=series.name, linewidth=1.8, linestyle=DASHES[turn])


def _segments(axes: Axes, series: Series, colour: str) -> None:
    from matplotlib.collections import LineCollection

    points = list(zip(series.x, series.y, strict=True))
    pairs = list(zip(points[::2], points[1::2], strict=False))
    level = _level(series)
    width = 5.0 if level else 0.8
    axes.add_collection(LineCollection(pairs, colors=colour, linewidths=width, label=series.name, capstyle="butt"))
    if level:
        # mark the beginning of each bar: two that touch would look like one
        x, y = zip(*(first for first, _ in pairs), strict=True)
        axes.scatter(x, y, s=40, color=INK, marker="|", linewidths=0.8, zorder=3)
    axes.autoscale_view()


def _level(series: Series) -> bool:
    return series.style == "segments" and bool(series.y) and series.y[::2] == series.y[1::2]


def _lanes(axes: Axes) -> None:
    """Show complete lanes, and the time from its beginning."""
    from matplotlib.ticker import FixedLocator

    (bottom, top), left = axes.dataLim.intervaly, axes.dataLim.xmin
    axes.set_ylim(bottom - 0.6, top + 0.6)
    axes.set_xlim(left=min(0.0, left))
    axes.yaxis.set_major_locator(FixedLocator(range(math.ceil(bottom), int(top) + 1), nbins=MAX_LANE_LABELS))


def _plain(axes: Axes, figure: Figure) -> None:
    """Label the axes with plain numbers or names; counts start at 0 and have no fractions."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    values = [float(y) for series in figure.series for y in series.y if math.isfinite(y)]
    styles = {series.style for series in figure.series}
    whole = "steps" in styles and all(value.is_integer() for value in values)
    level = bool(values) and min(values) == max(values)
    if ("bars" in styles or whole or level) and not figure.log_y and min(values, default=-1.0) >= 0:
        axes.set_ylim(bottom=0)
    positions = {float(x) for series in figure.series for x in series.x}
    if len(positions) == 1 and min(positions) >= 0 and not figure.log_x and not figure.names:
        # a single position would be centred on an axis that begins below 0
        axes.set_xlim(left=0)
    if whole:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if figure.names:
        crowded = sum(map(len, figure.names)) > NAME_LETTERS
        tilt: dict[str, Any] = {"rotation": 20, "ha": "right"} if crowded else {}
        if len(figure.names) > MANY_NAMES:
            tilt = {"rotation": 90, "fontsize": 6}
        axes.set_xticks(range(1, len(figure.names) + 1), figure.names, **tilt)


def _scales(axes: Axes, figure: Figure) -> None:
    finite = [
        (x, y) for series in figure.series for x, y in zip(series.x, series.y, strict=True) if math.isfinite(x + y)
    ]
    if figure.log_x and finite and min(x for x, _ in finite) > 0:
        axes.set_xscale("log")
        _ticks(axes.xaxis, [x for x, _ in finite])
    if figure.log_y and finite and min(y for _, y in finite) > 0:
        axes.set_yscale("log")
        _ticks(axes.yaxis, [y for _, y in finite])


def _ticks(axis: Axis, values: Sequence[float]) -> None:
    """Label a logarithmic axis with enough plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    decades = math.log10(max(values) / min(values))
    dense = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    steps = dense if decades <= 1 else (1.0, 2.0, 5.0) if decades <= 2 else (1.0, 3.0) if decades <= 4 else (1.0,)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())
