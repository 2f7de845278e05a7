"""Figures drawn with matplotlib, the same bytes for the same data."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unfoldkit.errors import fail
from unfoldkit.report import Figure, Report, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0e7490", "#9ca3af", "#d97706", "#7c3aed", "#16a34a", "#dc2626", "#2563eb", "#a16207")
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "unfoldkit",
    "svg.fonttype": "none",
    "font.size": 10.0,
    "font.family": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
}


def render(report: Report) -> bytes:
    """Return the report's figures as one PNG, one above the other.

    Raises:
        UnfoldError: the report has no figure.
    """
    if not report.figures:
        raise fail(f"{report.verb} of {report.name} has no plot", hint="--out with .json, .html or .md")
    return _draw(report.figures, "png")


def svg(figure: Figure) -> str:
    """Return one figure as an SVG element that can stand in a page."""
    text = _draw([figure], "svg").decode()
    return text[text.index("<svg") :]


def _draw(figures: Sequence[Figure], form: str) -> bytes:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=(7.6, 4.2 * len(figures)), layout="constrained")
        FigureCanvasAgg(canvas)
        for index, figure in enumerate(figures):
            _axes(canvas.add_subplot(len(figures), 1, index + 1), figure)
        stream = io.BytesIO()
        metadata = {"Date": None} if form == "svg" else {"Software": None}
        canvas.savefig(stream, format=form, dpi=144, metadata=metadata, transparent=form == "svg")
    return stream.getvalue()


def _axes(axes: Axes, figure: Figure) -> None:
    for index, series in enumerate(figure.series):
        _series(axes, series, COLOURS[index % len(COLOURS)], index, len(figure.series))
    axes.set_title(figure.title, loc="left", fontsize=11)
    axes.set_xlabel(figure.x)
    axes.set_ylabel(figure.y)
    _scales(axes, figure)
    if len(figure.series) > 1:
        axes.legend(frameon=False, fontsize=9)


def _series(axes: Axes, series: Series, colour: str, index: int, count: int) -> None:
    x, y = list(series.x), list(series.y)
    if series.style == "points":
        axes.scatter(x, y, s=44, color=colour, label=series.name, zorder=3)
    elif series.style == "bars":
        width = 0.8 / count
        axes.bar(
            [value + (index - (count - 1) / 2) * width for value in x],
            y,
            width,
            color=colour,
            label=series.name,
        )
    elif series.style == "steps":
        axes.step(x, y, where="post", color=colour, label=series.name, linewidth=1.8)
    else:
        axes.plot(x, y, color=colour, label=series.name, linewidth=1.8)


def _scales(axes: Axes, figure: Figure) -> None:
    finite = [
        (x, y) for series in figure.series for x, y in zip(series.x, series.y, strict=True) if math.isfinite(x + y)
    ]
    if figure.log_x and finite and min(x for x, _ in finite) > 0:
        axes.set_xscale("log")
    if figure.log_y and finite and min(y for _, y in finite) > 0:
        axes.set_yscale("log")
