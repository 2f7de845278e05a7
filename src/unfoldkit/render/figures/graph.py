"""Draw a graph in layers, left to right or, if it is long, top to bottom (Sugiyama et al. 1981, with barycentres)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len

from unfoldkit.figure_data import Edge, Graph, Node, order_layers
from unfoldkit.format import format_percent
from unfoldkit.render.figures.style import COLOURS, INK, LETTER_PT, WIDTH_PT, open_sheet, shorten_to, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_COLUMNS = 5
"""Layers that stand side by side; a longer graph goes from top to bottom."""
SWEEPS = 4
LINE_PT = 12.5
GAP_PT = 18.0
ARROW_PT = 34.0
BOX_PT = 150.0
"""Width of a box, unless its facts need more and the page has room."""
BOX_MARGIN_PT = 14.0
FACT_SIZE = 8.5
LABEL_GAP_PT = 11.0
HIGH_LOAD = 0.8
Spot = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphLayout:
    """Where the boxes of a graph stand, and the points which each edge passes, in points."""

    centres: Mapping[str, Spot]
    routes: Sequence[Sequence[Spot]]
    box_pt: Spot
    height_pt: float
    is_vertical: bool


def measure_graph(graph: Graph) -> float:
    """Return the height of a graph in inches."""
    return (layout_graph(graph).height_pt + 28) / 72


def draw_graph(axes: Axes, graph: Graph) -> None:
    """Draw nodes as boxes with their facts, a bar for the load, and edges as wide as their weight."""
    layout = layout_graph(graph)
    open_sheet(axes, layout.height_pt)
    axes.set_title(graph.title, loc="left", fontsize=11)
    heaviest = max((edge.weight for edge in graph.edges), default=1.0) or 1.0
    for edge, route in zip(graph.edges, layout.routes, strict=True):
        _draw_edge(axes, edge, route, layout, heaviest)
    critical = find_critical(graph)
    for node in graph.nodes:
        _draw_node(axes, node, graph, layout, is_critical=node.name == critical)


def find_critical(graph: Graph) -> str:
    """Return the name of the node with the largest share; empty if no share is known."""
    known = [node for node in graph.nodes if node.share is not None]
    return max(known, key=lambda node: node.share or 0.0).name if known else ""


def layout_graph(graph: Graph) -> GraphLayout:
    """Arrange a graph in layers, with room for edges that skip a layer."""
    layers = order_layers([node.name for node in graph.nodes], [(edge.source, edge.target) for edge in graph.edges])
    chains = [_list_passed(index, edge, layers) for index, edge in enumerate(graph.edges)]
    rows = _order_rows(layers, chains)
    is_vertical = len(rows) > MAX_COLUMNS
    most = max(map(len, rows), default=1)
    lines = 1 + max((len(node.facts) for node in graph.nodes), default=0) + _count_bars(graph)
    box_height = LINE_PT * lines + 10
    if is_vertical:
        box = (min(BOX_PT * 1.4, WIDTH_PT / most - GAP_PT), box_height)
        pitch = (box[0] + GAP_PT, box[1] + ARROW_PT)
        height = len(rows) * pitch[1] - ARROW_PT + 8
    else:
        box = (min(_measure_box(graph), WIDTH_PT / max(len(rows), 1) - ARROW_PT), box_height)
        pitch = (box[1] + GAP_PT, (WIDTH_PT - box[0] - 4) / max(len(rows) - 1, 1))
        height = most * pitch[0] - GAP_PT + 8
    centres: dict[str, Spot] = {}
    for depth, row in enumerate(rows):
        for index, name in enumerate(row):
            offset = (index - (len(row) - 1) / 2) * pitch[0]
            across = WIDTH_PT / 2 + offset if is_vertical else height / 2 + offset
            along = (box[1] if is_vertical else box[0]) / 2 + 3 + depth * pitch[1]
            centres[name] = (across, along) if is_vertical else (along, across)
    routes = [[centres[name] for name in chain] for chain in chains]
    return GraphLayout(centres=centres, routes=routes, box_pt=box, height_pt=height, is_vertical=is_vertical)


def _measure_box(graph: Graph) -> float:
    """Return the width of a box, in points, in which no fact is shortened; ``BOX_PT`` if that is enough."""
    letters = max((cell_len(fact) for node in graph.nodes for fact in node.facts), default=0)
    return max(BOX_PT, (letters + 1) * FACT_SIZE * LETTER_PT + BOX_MARGIN_PT)


def _count_bars(graph: Graph) -> int:
    return any(node.load is not None for node in graph.nodes) + any(node.share is not None for node in graph.nodes)


def _list_passed(index: int, edge: Edge, layers: Mapping[str, int]) -> list[str]:
    """Return the ends of an edge, and between them a placeholder in every layer that it passes."""
    between = range(layers[edge.source] + 1, layers[edge.target])
    # no name of a node holds a line break and a number of an edge
    return [edge.source, *(f"\n{index} {layer}" for layer in between), edge.target]


def _order_rows(layers: Mapping[str, int], chains: Sequence[Sequence[str]]) -> list[list[str]]:
    rows: list[list[str]] = [[] for _ in range(max(layers.values(), default=-1) + 1)]
    for name, layer in layers.items():
        rows[layer].append(name)
    for chain in chains:
        for depth, name in enumerate(chain[1:-1], start=layers[chain[0]] + 1):
            rows[depth].append(name)
    steps = [pair for chain in chains for pair in itertools.pairwise(chain)]
    for sweep in range(SWEEPS):
        order = rows if sweep % 2 == 0 else rows[::-1]
        links: dict[str, list[str]] = {}
        for source, target in steps:
            links.setdefault(target if sweep % 2 == 0 else source, []).append(source if sweep % 2 == 0 else target)
        for previous, row in itertools.pairwise(order):
            ranks = {name: (index + 0.5) / len(previous) for index, name in enumerate(previous)}
            own = {name: (index + 0.5) / len(row) for index, name in enumerate(row)}
            row.sort(key=lambda name: _mean([ranks[other] for other in links.get(name, [])], own[name]))
    return rows


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _draw_node(axes: Axes, node: Node, graph: Graph, layout: GraphLayout, *, is_critical: bool) -> None:
    from matplotlib.colors import to_rgba
    from matplotlib.patches import FancyBboxPatch, Rectangle

    (x, y), (width, height) = layout.centres[node.name], layout.box_pt
    left, top, room = x - width / 2, y - height / 2, width - BOX_MARGIN_PT
    for shift in range(3, 3 * min(node.count, 3), 3):
        # the edges of sheets behind the first one stand for several copies
        right, upper = left + width + shift, top - shift
        edge = ([left + shift + 4, right, right], [upper, upper, top + height - shift - 4])
        axes.plot(*edge, color=COLOURS[0], linewidth=1.0, solid_joinstyle="round")
    shape = FancyBboxPatch((left, top), width, height, boxstyle="round,pad=0,rounding_size=4")
    axes.add_patch(shape)
    colours = to_rgba(COLOURS[0], 0.12), to_rgba(INK if is_critical else COLOURS[0])
    shape.set(facecolor=colours[0], edgecolor=colours[1], linewidth=2.2 if is_critical else 1.0)
    line = top + 5 + LINE_PT / 2
    times = f" ×{node.count:,}" if node.count != 1 else ""
    write(axes, left + 7, line, shorten_to(node.name, room - 6 * len(times), 9.5) + times, size=9.5, weight="bold")
    for fact in node.facts:
        line += LINE_PT
        write(axes, left + 7, line, shorten_to(fact, room, FACT_SIZE), size=FACT_SIZE)
    if node.load is not None:
        line += LINE_PT
        text = f"{graph.load} {100 * node.load:.0f} %"
        bar = max(16.0, room - len(text) * 8 * LETTER_PT - 5)
        axes.add_patch(Rectangle((left + 7, line - 3.5), bar, 7, fill=False, edgecolor=INK, linewidth=0.6))
        colour, hatch = (COLOURS[2], "////") if node.load > HIGH_LOAD else (COLOURS[0], "")
        filled = bar * min(node.load, 1.0)
        axes.add_patch(
            Rectangle((left + 7, line - 3.5), filled, 7, facecolor=colour, edgecolor=INK, hatch=hatch, linewidth=0)
        )
        write(axes, left + width - 7, line, text, size=8, ha="right")
    if node.share is not None:
        line += LINE_PT
        text = f"{graph.share} {format_percent(round(node.share, 2))}"
        write(axes, left + 7, line, shorten_to(text, room, 8), size=8, weight="bold" if is_critical else "normal")


def _draw_edge(axes: Axes, edge: Edge, route: Sequence[Spot], layout: GraphLayout, heaviest: float) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    (first, last), (width, height) = (route[0], route[-1]), layout.box_pt
    along = 1 if layout.is_vertical else 0
    half = (height if layout.is_vertical else width) / 2
    points = [_shift(first, along, half), *route[1:-1], _shift(last, along, -half - 1)]
    vertices, codes = [points[0]], [Path.MOVETO]
    for start, end in itertools.pairwise(points):
        bend = (end[along] - start[along]) / 2
        vertices += [_shift(start, along, bend), _shift(end, along, -bend), end]
        codes += [Path.CURVE4] * 3
    line_width = 0.8 + 2.4 * edge.weight / heaviest
    arrow = FancyArrowPatch(
        path=Path(vertices, codes), arrowstyle="-|>", mutation_scale=9, color=COLOURS[1], linewidth=line_width, zorder=0
    )
    axes.add_patch(arrow)
    if edge.weight != 1.0:
        middle = len(points) // 2
        (x0, y0), (x1, y1) = points[middle - 1], points[middle]
        # above a level edge, and beside a steep one, on the side that its curve leaves free
        beside = 0.0 if y0 == y1 else -LABEL_GAP_PT if y1 < y0 else LABEL_GAP_PT
        shift = (8.0, 0.0) if layout.is_vertical else (beside, -3.0 if beside else -7.0)
        write(axes, (x0 + x1) / 2 + shift[0], (y0 + y1) / 2 + shift[1], f"{edge.weight:.3g}", size=8, ha="center")


def _shift(spot: Spot, axis: int, length: float) -> Spot:
    return (spot[0], spot[1] + length) if axis else (spot[0] + length, spot[1])
