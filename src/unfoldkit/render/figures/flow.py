"""Draw a flow (Sankey diagram): bars for the stops, and ribbons as wide as what flows between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len

from unfoldkit.figure_data import Flow, Link, Stop, Tone, order_layers
from unfoldkit.format import format_number, format_percent
from unfoldkit.render.figures.style import (
    COLOURS,
    INK,
    LETTER_PT,
    WIDTH_PT,
    open_sheet,
    shorten_middle,
    shorten_to,
    write,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAR_PT = 9.0
FLOW_PT = 190.0
"""Height of everything that flows."""
GAP_PT = 34.0
LINE_PT = 11.0
NAME_SIZE, FACT_SIZE = 9.0, 7.5
BOLD_PT = 0.64
"""Mean width of a bold letter, as a share of the font size."""
LABEL_PT = 118.0
TONES: Mapping[Tone, tuple[str, str]] = {
    "good": (COLOURS[0], ""),
    "bad": (COLOURS[2], "////"),
    "neutral": (COLOURS[1], ""),
}
"""Colour and hatch by tone."""
PASSED_ON = "passed on"
TONE_ORDER: tuple[Tone, ...] = ("neutral", "good", "bad")


@dataclass(frozen=True, slots=True)
class FlowLayout:
    """The bar of each stop as left edge, top edge and height in points, the height of all, and the room for a name."""

    bars: Mapping[str, tuple[float, float, float]]
    height_pt: float
    points_per_unit: float
    label_pt: float


def measure_flow(flow: Flow) -> float:
    """Return the height of a flow in inches."""
    return (layout_flow(flow).height_pt + 46) / 72


def sum_flow(flow: Flow) -> dict[str, float]:
    """Return how much passes each stop: what arrives or, at the sources, what leaves."""
    arriving = {stop.name: sum(link.value for link in flow.links if link.target == stop.name) for stop in flow.stops}
    leaving = {stop.name: sum(link.value for link in flow.links if link.source == stop.name) for stop in flow.stops}
    return {name: max(value, leaving[name]) for name, value in arriving.items()}


def get_total(flow: Flow) -> float:
    """Return what flows in at the stops that nothing leads to."""
    targets = {link.target for link in flow.links}
    return sum(value for name, value in sum_flow(flow).items() if name not in targets)


def layout_flow(flow: Flow) -> FlowLayout:
    """Arrange the stops in layers from left to right."""
    layers = order_layers([stop.name for stop in flow.stops], [(link.source, link.target) for link in flow.links])
    totals, scale = sum_flow(flow), FLOW_PT / (get_total(flow) or 1.0)
    depth = max(layers.values(), default=0)
    sources = {link.source for link in flow.links}
    # the ends of a flow stand side by side, however short the way to them
    layers |= {link.target: depth for link in flow.links if link.target not in sources}
    step = (WIDTH_PT - LABEL_PT - BAR_PT) / max(depth, 1)
    columns = [[name for name, layer in layers.items() if layer == index] for index in range(depth + 1)]
    label_pt = min(LABEL_PT, step - 4)
    gap_pt = GAP_PT
    if label_pt < LABEL_PT:
        gap_pt += LINE_PT * max((len(_split_name(stop.name, label_pt)) for stop in flow.stops), default=1)
    heights = [sum(totals[name] * scale + gap_pt for name in column) for column in columns]
    height = max(heights, default=FLOW_PT) + 4
    bars: dict[str, tuple[float, float, float]] = {}
    for index, column in enumerate(columns):
        top = gap_pt
        for name in column:
            bars[name] = (2 + index * step, top, totals[name] * scale)
            top += totals[name] * scale + gap_pt
    return FlowLayout(bars, height, scale, label_pt)


def place_ribbons(flow: Flow, layout: FlowLayout) -> list[tuple[Link, tuple[float, float, float]]]:
    """Return each link with its offset on the bar of its source, that on the bar of its target, and its width."""
    ranks = {name: index for index, name in enumerate(layout.bars)}
    tops = {name: round(top, 3) for name, (_, top, _) in layout.bars.items()}
    # what comes from below arrives below, and what comes from far below what comes from near: ribbons cross little
    departures = sorted(flow.links, key=lambda link: (ranks[link.target], TONE_ORDER.index(link.tone)))
    arrivals = sorted(
        flow.links, key=lambda link: (tops[link.source], -ranks[link.source], TONE_ORDER.index(link.tone))
    )
    starts: dict[int, float] = {}
    ends: dict[int, float] = {}
    for links, offsets, is_start in ((departures, starts, True), (arrivals, ends, False)):
        used = dict.fromkeys(layout.bars, 0.0)
        for link in links:
            name = link.source if is_start else link.target
            offsets[id(link)] = used[name]
            used[name] += link.value * layout.points_per_unit
    widths = [(link, link.value * layout.points_per_unit) for link in departures]
    return [(link, (starts[id(link)], ends[id(link)], width)) for link, width in widths]


def draw_flow(axes: Axes, flow: Flow) -> None:
    """Draw ribbons below bars, and above each bar its name, its share and its facts."""
    layout = layout_flow(flow)
    open_sheet(axes, layout.height_pt)
    axes.set_title(flow.title, loc="left", fontsize=11)
    for link, offsets in place_ribbons(flow, layout):
        _draw_ribbon(axes, link, layout, offsets)
    totals, total = sum_flow(flow), get_total(flow) or 1.0
    for stop in flow.stops:
        _draw_stop(axes, layout.bars[stop.name], stop, totals[stop.name] / total, layout.label_pt)
    _draw_legend(axes, flow)


def _draw_ribbon(axes: Axes, link: Link, layout: FlowLayout, offsets: tuple[float, float, float]) -> None:
    from matplotlib.colors import to_rgba
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    (left, top, _), (right, bottom, _) = layout.bars[link.source], layout.bars[link.target]
    start, end, width = offsets
    x0, x1, y0, y1 = left + BAR_PT, right, top + start, bottom + end
    middle = (x0 + x1) / 2
    vertices = [(x0, y0), (middle, y0), (middle, y1), (x1, y1), (x1, y1 + width), (middle, y1 + width),
                (middle, y0 + width), (x0, y0 + width), (x0, y0)]  # fmt: skip
    codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
    colour, hatch = TONES[link.tone]
    shape = PathPatch(Path(vertices, codes), facecolor=to_rgba(colour, 0.4), edgecolor=INK, hatch=hatch, linewidth=0.4)
    axes.add_patch(shape)


def _draw_stop(axes: Axes, bar: tuple[float, float, float], stop: Stop, share: float, room_pt: float) -> None:
    from matplotlib.patches import Rectangle

    left, top, height = bar
    axes.add_patch(Rectangle((left, top), BAR_PT, max(height, 1.0), facecolor=INK, linewidth=0))
    # the ends of the flow have no stop to their right
    room_pt = LABEL_PT if left + BAR_PT + room_pt > WIDTH_PT - LABEL_PT else room_pt
    percent = format_percent(round(share, 4))
    if room_pt < LABEL_PT:
        # many layers: the share has a line of its own
        for row, text in enumerate(reversed(_split_name(stop.name, room_pt))):
            size = _fit_size(text, room_pt, NAME_SIZE, BOLD_PT)
            name = shorten_middle(text, int(room_pt / (size * BOLD_PT)))
            write(axes, left, top - 30 - row * LINE_PT, name, size=size, weight="bold")
        write(axes, left, top - 19, percent, size=8, weight="bold")
    else:
        name = shorten_middle(stop.name, int(room_pt / (NAME_SIZE * BOLD_PT)) - len(percent) - 2)
        write(axes, left, top - 19, f"{name}  {percent}", size=NAME_SIZE, weight="bold")
    if stop.facts:
        facts = " · ".join(stop.facts)
        size = _fit_size(facts, room_pt, FACT_SIZE, LETTER_PT)
        write(axes, left, top - 8, shorten_to(facts, room_pt, size), size=size)


def _split_name(name: str, room_pt: float) -> tuple[str, ...]:
    """Return the lines of a name: ``stage: model`` takes two where it has no room on one."""
    stage, separator, model = name.partition(": ")
    if not separator or _fit_size(name, room_pt, NAME_SIZE, BOLD_PT) > 0.75 * NAME_SIZE:
        return (name,)
    return (f"{stage}:", model)


def _fit_size(text: str, room_pt: float, size: float, letter_pt: float) -> float:
    """Return the font size, reduced by up to a fourth, at which a text has room; letters are shares of it wide."""
    return min(size, max(0.75 * size, room_pt / (letter_pt * max(cell_len(text), 1))))


def _draw_legend(axes: Axes, flow: Flow) -> None:
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Patch

    tones: tuple[tuple[Tone, str], ...] = (("good", flow.good), ("bad", flow.bad), ("neutral", PASSED_ON))
    patches = []
    for tone, word in tones:
        value = sum(link.value for link in flow.links if link.tone == tone)
        if value:
            colour, hatch = TONES[tone]
            number = format_number(int(value) if value == int(value) else value)
            # what is passed on counts at every stop
            label = f"{word} ({number} {flow.unit})" if tone != "neutral" else word
            patches.append(
                Patch(facecolor=to_rgba(colour, 0.4), edgecolor=INK, hatch=hatch, linewidth=0.4, label=label)
            )
    if patches:
        axes.legend(handles=patches, loc="upper left", bbox_to_anchor=(0, 0), ncols=3, frameon=False, fontsize=9)
