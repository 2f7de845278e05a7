"""Draw plots of series over two axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from unfoldkit.figure_data import Figure, Series
from unfoldkit.render.figures.style import COLOURS, DASHES, INK, MARKERS, fit_legend, shorten_middle, thin_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

MAX_LANE_LABELS = 12
NAME_LETTERS = 64
TICK_LETTERS = 28
MANY_NAMES = 16
MAX_POINTS = 2000
"""Points of all series of a plot that are drawn; of more the lowest and highest of neighbours."""
TALL = 4.2
LEGEND_ROW = 14
FREE_ROWS = 3


def draw_chart(axes: Axes, figure: Figure) -> None:
    """Draw the series of a plot with its axes and legend."""
    names = fit_legend([series.name for series in figure.series])[1]
    for index, (series, name) in enumerate(zip(figure.series, names, strict=True)):
        _series(axes, replace(series, name=name), index, len(figure.series))
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
    return fit_legend([series.name for series in figure.series])[0]


def _rows(figure: Figure) -> int:
    return math.ceil(len(figure.series) / _columns(figure)) if len(figure.series) > 1 else 0


def measure_chart(figure: Figure) -> float:
    """Return the height of a figure in inches; a long legend makes the figure taller."""
    return TALL + LEGEND_ROW / 72 * max(0, _rows(figure) - FREE_ROWS)


def _series(axes: Axes, series: Series, index: int, count: int) -> None:
    x, y, colour = list(series.x), list(series.y), COLOURS[index % len(COLOURS)]
    if series.style in ("line", "steps", "points"):
        x, y = thin_points(x, y, MAX_POINTS // count)
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
    if not figure.log_x and all(position.is_integer() for position in positions):
        # half an engine or half an iteration is nothing
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if figure.names:
        names = [shorten_middle(name, TICK_LETTERS) for name in figure.names]
        crowded = sum(map(len, names)) > NAME_LETTERS
        tilt: dict[str, Any] = {"rotation": 20, "ha": "right"} if crowded else {}
        if len(figure.names) > MANY_NAMES:
            tilt = {"rotation": 90, "fontsize": 6}
        axes.set_xticks(range(1, len(names) + 1), names, **tilt)


def _scales(axes: Axes, figure: Figure) -> None:
    finite = [
        (x, y) for series in figure.series for x, y in zip(series.x, series.y, strict=True) if math.isfinite(x + y)
    ]
    if figure.log_x and finite and min(x for x, _ in finite) > 0:
        axes.set_xscale("log")
        label_log_axis(axes.xaxis, [x for x, _ in finite])
    if figure.log_y and finite and min(y for _, y in finite) > 0:
        axes.set_yscale("log")
        label_log_axis(axes.yaxis, [y for _, y in finite])


def label_log_axis(axis: Axis, values: Sequence[float]) -> None:
    """Label a logarithmic axis with enough plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    decades = math.log10(max(values) / min(values))
    dense = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    steps = dense if decades <= 1 else (1.0, 2.0, 5.0) if decades <= 2 else (1.0, 3.0) if decades <= 4 else (1.0,)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())
