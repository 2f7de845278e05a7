"""Draw levels over time: panels one above the other with one time axis, and markers through all of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from unfoldkit.figure_data import Panel, StepArea
from unfoldkit.render.figures.style import COLOURS, DASHES, fit_legend, measure_legend, shorten_middle, thin_points
from unfoldkit.render.figures.timeline import draw_marker

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_PT = 104.0
NAME_LETTERS = 19
"""Letters of a name beside a panel."""
MAX_STEPS = 200
"""Steps of a series that are drawn; of longer series the lowest and highest of neighbours."""


def measure_step_area(figure: StepArea) -> float:
    """Return the height of a step area in inches."""
    names = [[series.name for series in panel.series] for panel in figure.panels]
    if names:
        names[0] += [marker.name for marker in figure.markers]
    return (PANEL_PT * max(1, len(figure.panels)) + 64 + sum(map(measure_legend, names))) / 72


def draw_step_area(axes: Axes, figure: StepArea) -> None:
    """Draw each panel with its first series filled and the others as dashed steps."""
    from matplotlib.figure import Figure as Canvas

    specification, canvas = axes.get_subplotspec(), axes.get_figure()
    axes.set_axis_off()
    axes.set_title(figure.title, loc="left", fontsize=11, pad=22)
    if specification is None or not isinstance(canvas, Canvas) or not figure.panels:
        return
    grid = specification.subgridspec(len(figure.panels), 1, hspace=0.25)
    first: Axes | None = None
    ends = [moment for panel in figure.panels for series in panel.series for moment in series.x]
    ends += [moment for marker in figure.markers for moment in (marker.at, marker.end) if moment is not None]
    for index, panel in enumerate(figure.panels):
        inner = canvas.add_subplot(grid[index], sharex=first)
        first = first or inner
        _draw_panel(inner, panel)
        for number, marker in enumerate(figure.markers):
            draw_marker(inner, marker, number)
        _draw_legend(inner, panel, has_markers=bool(figure.markers) and not index)
        is_last = index == len(figure.panels) - 1
        inner.tick_params(labelbottom=is_last)
        if is_last:
            inner.set_xlabel(figure.unit)
        if ends and max(ends) > min(ends):
            inner.set_xlim(min(ends), max(ends) + 0.01 * (max(ends) - min(ends)))


def _draw_panel(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for index, series in enumerate(panel.series):
        x, y = thin_points(series.x, series.y, MAX_STEPS)
        colour, dashes = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
        if not index:
            axes.fill_between(x, y, step="post", color=colour, alpha=0.25, linewidth=0)
        axes.step(x, y, where="post", color=colour, linewidth=1.5, linestyle=dashes, label=f" {series.name}")
    values = [value for series in panel.series for value in series.y if math.isfinite(value)]
    if min(values, default=0.0) >= 0:
        # an axis of nothing would have ticks of thousandths
        axes.set_ylim(bottom=0, top=None if any(values) else 1)
    is_whole = all(float(value).is_integer() for value in values)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=is_whole))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.set_ylabel(shorten_middle(panel.name, NAME_LETTERS), fontsize=9)


def _draw_legend(axes: Axes, panel: Panel, *, has_markers: bool) -> None:
    handles, labels = axes.get_legend_handles_labels()
    several = len(panel.series) if len(panel.series) > 1 else 0
    count = len(panel.series)
    handles = [*handles[:several], *(handles[count:] if has_markers else [])]
    labels = [*labels[:several], *(labels[count:] if has_markers else [])]
    if handles:
        columns, labels = fit_legend(labels)
        axes.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, fontsize=8.5, frameon=False,
            handlelength=1.8, borderaxespad=0.1,
        )  # fmt: skip
