"""Draw the figures of a report with matplotlib; equal data give equal bytes."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Any

from unfoldkit.errors import user_error
from unfoldkit.figure_data import AnyFigure, type_name
from unfoldkit.render.figures.chart import draw_chart, measure_chart
from unfoldkit.render.figures.description import describe_figure
from unfoldkit.render.figures.flow import draw_flow, measure_flow
from unfoldkit.render.figures.graph import draw_graph, measure_graph
from unfoldkit.render.figures.interval_plot import draw_interval_plot, measure_interval_plot
from unfoldkit.render.figures.step_area import draw_step_area, measure_step_area
from unfoldkit.render.figures.style import COLOURS, INK, STYLE, WIDTH_PT, shorten_to
from unfoldkit.render.figures.timeline import draw_timeline, measure_timeline
from unfoldkit.render.formatting import strip_controls
from unfoldkit.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLOURS", "INK", "render", "svg"]
FIGURE_WIDTH_IN = 7.6
TAG = re.compile(r"<[^>]*>")
NUMBER = re.compile(r"-?[0-9]+\.[0-9]{2,}(?=[^0-9e])")
DRAWERS: Mapping[str, tuple[Callable[[Axes, Any], None], Callable[[Any], float]]] = {
    "plot": (draw_chart, measure_chart),
    "graph": (draw_graph, measure_graph),
    "timeline": (draw_timeline, measure_timeline),
    "flow": (draw_flow, measure_flow),
    "steps": (draw_step_area, measure_step_area),
    "intervals": (draw_interval_plot, measure_interval_plot),
}
"""What draws a type of figure, and what returns its height in inches."""


def render(report: Report) -> bytes:
    """Render the figures of a report as one PNG, one above the other.

    Raises:
        UnfoldError: The report has no figure.
    """
    report = strip_controls(report)
    if not report.figures:
        raise user_error(f"{report.verb} of {report.name} has no plot", hint="--out with .json, .html or .md")
    return _draw([replace(figure, title=shorten_to(figure.title, WIDTH_PT, 11)) for figure in report.figures], "png")


def svg(figure: AnyFigure) -> str:
    """Render one figure as an SVG element for a page, in the page's colour, with a title and a description in words.

    Its ids begin with the figure's name, so that a page can hold several.
    """
    text = _draw([replace(figure, title="")], "svg").decode()
    prefix = re.sub(r"[^A-Za-z0-9_]", "_", figure.name)
    text = re.sub(r'( id="|url\(#|href="#)', lambda match: f"{match[0]}{prefix}-", text)
    # what describes the file names other sites
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # coordinates stand in tags; the numbers of labels stay as they are
    text = TAG.sub(lambda match: NUMBER.sub(_round, match[0]), text)
    text = re.sub(r"\s*\n\s*", " ", text).replace("> <", "><")
    words = f'<title id="{prefix}-title">{escape(figure.title)}</title>'
    words += f'<desc id="{prefix}-desc">{escape(describe_figure(figure))}</desc>'
    opening, rest = text.replace(INK, "currentColor").split(">", 1)
    role = f' role="img" aria-labelledby="{prefix}-title {prefix}-desc"'
    return f"{opening}{role}>{words}{rest}"


def _round(match: re.Match[str]) -> str:
    """Round a coordinate to a tenth of a point, which is finer than a screen shows, and keep small factors."""
    value = float(match[0])
    return f"{value:.4g}" if abs(value) < 1 else f"{value:.1f}".removesuffix(".0")


def _draw(figures: Sequence[AnyFigure], form: str) -> bytes:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    drawers = [DRAWERS[type_name(figure)] for figure in figures]
    heights = [measure(figure) for (_, measure), figure in zip(drawers, figures, strict=True)]
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        canvas = Canvas(figsize=(FIGURE_WIDTH_IN, sum(heights)), layout="constrained")
        FigureCanvasAgg(canvas)
        grid = canvas.add_gridspec(len(figures), 1, height_ratios=heights)
        for index, figure in enumerate(figures):
            drawers[index][0](canvas.add_subplot(grid[index]), figure)
        stream = io.BytesIO()
        metadata = {"Date": None} if form == "svg" else {"Software": None}
        # a page has the fonts of its reader; a PNG shows a box for what the bundled font lacks
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        canvas.savefig(stream, format=form, dpi=144, metadata=metadata, transparent=form == "svg")
    return stream.getvalue()
