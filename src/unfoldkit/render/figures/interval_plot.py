"""Draw values with their intervals: a row each, or over a second axis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unfoldkit.figure_data import Interval, IntervalPlot
from unfoldkit.render.figures.chart import label_log_axis
from unfoldkit.render.figures.style import COLOURS, INK, MARKERS, fit_legend, measure_legend, shorten_middle, shorten_to

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW_PT = 24.0
PLANE_PT = 250.0
LABEL_LETTERS = 32
MAX_NAMES = 12
"""Values with names beside them in a plane."""


def measure_interval_plot(figure: IntervalPlot) -> float:
    """Return the height of an interval plot in inches."""
    names = [*dict.fromkeys(item.group for item in figure.intervals), figure.target_name]
    rows_pt = PLANE_PT if figure.at else ROW_PT * max(1, len(figure.intervals))
    return (rows_pt + 64 + measure_legend(names, list_row_labels(figure))) / 72


def list_row_labels(figure: IntervalPlot) -> list[str]:
    """Return the names of the rows, as short as there is room; none where values stand in a plane."""
    return [] if figure.at else [shorten_middle(item.name, LABEL_LETTERS) for item in figure.intervals]


def draw_interval_plot(axes: Axes, figure: IntervalPlot) -> None:
    """Draw each value as a marker on a line from the lower to the upper end of its interval."""
    from matplotlib.ticker import FuncFormatter

    groups = list(dict.fromkeys(item.group for item in figure.intervals))
    for number, group in enumerate(groups):
        members = [(row, item) for row, item in enumerate(figure.intervals) if item.group == group]
        _draw_group(axes, figure, members, number, group)
    value_axis = axes.yaxis if figure.at else axes.xaxis
    for axis in (axes.xaxis, axes.yaxis) if figure.at else (value_axis,):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    if figure.at:
        axes.set_xlabel(figure.at)
        axes.set_ylabel(figure.axis)
        _name_points(axes, figure)
    else:
        names = list_row_labels(figure)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlabel(figure.axis)
        axes.grid(visible=False, axis="y")
    positions = [item.at or 0.0 for item in figure.intervals]
    if figure.log_at and min(positions, default=0.0) > 0:
        axes.set_xscale("log")
        label_log_axis(axes.xaxis, positions)
    _draw_target(axes, figure)
    axes.set_title(figure.title, loc="left", fontsize=11, pad=22)
    if len([group for group in groups if group]) > 1 or figure.target is not None:
        handles, labels = axes.get_legend_handles_labels()
        columns, labels = fit_legend(labels, list_row_labels(figure))
        axes.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, fontsize=9,
            borderaxespad=0.2,
        )  # fmt: skip


def _draw_group(axes: Axes, figure: IntervalPlot, members: list[tuple[int, Interval]], number: int, group: str) -> None:
    values = [item.value for _, item in members]
    spans = [[item.value - item.low for _, item in members], [item.high - item.value for _, item in members]]
    positions = [float(item.at or 0.0) if figure.at else float(row) for row, item in members]
    x, y = (positions, values) if figure.at else (values, positions)
    x_spans, y_spans = (None, spans) if figure.at else (spans, None)
    marker, colour = MARKERS[number % len(MARKERS)], COLOURS[number % len(COLOURS)]
    axes.errorbar(
        x, y, xerr=x_spans, yerr=y_spans, fmt=marker, color=colour, capsize=4, markersize=6, linewidth=1.6,
        label=f" {group}" if group else "_nolegend_",
    )  # fmt: skip


def _name_points(axes: Axes, figure: IntervalPlot) -> None:
    if len(figure.intervals) > MAX_NAMES:
        return
    for item in figure.intervals:
        axes.annotate(
            shorten_to(item.name, 90),
            (item.at or 0.0, item.value),
            xytext=(6, 5),
            textcoords="offset points",
            fontsize=8,
        )


def _draw_target(axes: Axes, figure: IntervalPlot) -> None:
    if figure.target is None:
        return
    line = axes.axhline if figure.at else axes.axvline
    line(figure.target, color=INK, linewidth=1.2, linestyle=(0, (4, 2)), label=f" {figure.target_name}")
