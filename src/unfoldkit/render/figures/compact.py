"""Write figures as a few lines of text: a graph as an indented tree, levels as sparklines, time as strips."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size

from unfoldkit.figure_data import AnyFigure, Bar, Flow, Graph, IntervalPlot, Node, Series, StepArea, Timeline, type_name
from unfoldkit.format import format_number, format_percent
from unfoldkit.render.figures.description import describe_markers, trim_fraction
from unfoldkit.render.figures.flow import get_total, sum_flow
from unfoldkit.render.figures.style import shorten_middle
from unfoldkit.render.figures.timeline import get_range, list_groups, list_lane_marks

GAUGE_CELLS = 10
MAX_LABEL = 40
MAX_STEM = 18
MAX_LANES = 16
MAX_STRIP = 72
MIN_PART = 0.05
GROUP_LETTERS = "█▓▒░ABCD"
MARK_LETTERS = "◆×▲●"
SPARKS = "▁▂▃▄▅▆▇█"
BREAKS = re.compile(r"[\n\t]+")
BLOCKS = "▏▎▍▌▋▊▉█"


def write_compact(figure: AnyFigure, width: int) -> list[str]:
    """Return a figure as lines of at most ``width`` cells; none for a plot, which text cannot show."""
    writer = WRITERS.get(type_name(figure))
    if writer is None:
        return []
    lines = list(writer(figure, width - 2))
    return [cut_line(f"  {BREAKS.sub(' ', line)}".rstrip(), width) for line in (figure.title, *lines)] if lines else []


def cut_line(line: str, width: int) -> str:
    """Cut a line to a width; an ellipsis stands for the rest."""
    return line if cell_len(line) <= width else set_cell_size(line, width - 1).rstrip() + "…"


def pad_all(texts: Sequence[str], limit: int = MAX_LABEL) -> list[str]:
    """Pad texts to the width of the longest one; longer texts than ``limit`` are cut."""
    texts = [BREAKS.sub(" ", text) for text in texts]
    width = min(limit, max(map(cell_len, texts), default=0))
    return [set_cell_size(cut_line(text, width), width) for text in texts]


def _join_parts(parts: Sequence[str], width: int) -> Iterator[str]:
    """Join parts to lines, as many to each as fit."""
    line = ""
    for part in parts:
        if line and cell_len(line) + cell_len(part) + 3 > width:
            yield line
            line = part
        else:
            line = f"{line} · {part}" if line else part
    if line:
        yield line


def draw_gauge(fraction: float) -> str:
    """Return a bar of ten letters that is filled up to a fraction; more than 1 is full."""
    eighths = round(min(max(fraction, 0.0), 1.0) * GAUGE_CELLS * 8)
    bar = "█" * (eighths // 8) + (BLOCKS[eighths % 8 - 1] if eighths % 8 else "")
    return bar.ljust(GAUGE_CELLS, "░")


def _write_graph(graph: Graph, width: int) -> Iterator[str]:
    del width
    branches = list(_walk(graph))
    labels = pad_all([stem + name for stem, name, _ in branches])
    facts = pad_all([" · ".join(node.facts) if node else "" for _, _, node in branches])
    counts = pad_all([f"×{node.count:,}" if node else "" for _, _, node in branches])
    for label, fact, count, (_, _, node) in zip(labels, facts, counts, branches, strict=True):
        parts = [label, fact, count, *(_write_measures(graph, node) if node else ())]
        yield "  ".join(parts)


def _write_measures(graph: Graph, node: Node) -> Iterator[str]:
    if node.load is not None:
        yield f"{draw_gauge(node.load)} {graph.load} {format_percent(round(node.load, 2)):>6}"
    if node.share is not None:
        yield f"{graph.share} {format_percent(round(node.share, 2))}"


def _walk(graph: Graph) -> Iterator[tuple[str, str, Node | None]]:
    """Yield the stem, the name and the node of each line of a tree; a node that was shown already has no node."""
    nodes = {node.name: node for node in graph.nodes}
    targets = {edge.target for edge in graph.edges}
    shown: set[str] = set()
    # a stack instead of recursion: a chain may be longer than Python's limit
    stack = [(node.name, "", "") for node in reversed(graph.nodes) if node.name not in targets]
    while stack:
        name, stem, onward = stack.pop()
        if name in shown:
            yield stem, f"→ {name}", None
            continue
        shown.add(name)
        yield stem, name, nodes[name]
        children = [edge.target for edge in graph.edges if edge.source == name]
        # a deep tree keeps its last levels in one column
        is_deep = len(onward) >= MAX_STEM
        for index in range(len(children) - 1, -1, -1):
            is_last = index == len(children) - 1
            stem, indent = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
            stack.append((children[index], onward + stem, onward if is_deep else onward + indent))


def _write_timeline(timeline: Timeline, width: int) -> Iterator[str]:
    groups = list_groups(timeline)
    first, last = get_range(timeline)
    lanes = timeline.lanes[:MAX_LANES]
    labels = pad_all([*(shorten_middle(lane, 24) for lane in lanes), *(["·"] if timeline.markers else [])], 24)
    marks = dict(zip(list_lane_marks(timeline), itertools.cycle(MARK_LETTERS), strict=False))
    cells = max(10, min(MAX_STRIP, width - cell_len(labels[0]) - 2)) if labels else 10
    cell = (last - first) / cells
    by_lane = timeline.bars_by_lane()
    for label, lane in zip(labels, lanes, strict=False):
        strip = list(_draw_strip(by_lane[lane], groups, first, cell, cells))
        for marker in timeline.markers:
            if marker.lane == lane:
                strip[min(int((marker.at - first) / cell), cells - 1)] = marks[marker.name]
        yield f"{label}  {''.join(strip)}"
    if len(timeline.lanes) > len(lanes):
        yield f"and {len(timeline.lanes) - len(lanes):,} more"
    ends = f"{format_number(first)} to {format_number(last)} {timeline.unit}"
    named = [f"{GROUP_LETTERS[number]} {name}" for name, number in groups.items() if name][: len(GROUP_LETTERS)]
    named += [f"{letter} {name}" for name, letter in marks.items()]
    moments = describe_markers([item for item in timeline.markers if not item.lane])
    yield from _join_parts([ends, *named, *moments], width)


def _draw_strip(bars: Sequence[Bar], groups: Mapping[str, int], first: float, cell: float, cells: int) -> str:
    """Return a letter per cell: the group that has most of it, or a dot where nothing happens."""
    totals: list[dict[int, float]] = [{} for _ in range(cells)]
    for bar in bars:
        start, end = (bar.start - first) / cell, (bar.end - first) / cell
        for index in range(max(0, int(start)), min(cells, int(end) + 1)):
            part = min(end, index + 1) - max(start, index)
            number = groups[bar.group]
            totals[index][number] = totals[index].get(number, 0.0) + part
    return "".join(
        GROUP_LETTERS[max(total, key=lambda n: total[n])] if sum(total.values()) > MIN_PART else "·" for total in totals
    )


def _write_flow(flow: Flow, width: int) -> Iterator[str]:
    del width
    totals, total = sum_flow(flow), get_total(flow) or 1.0
    labels = pad_all([stop.name for stop in flow.stops])
    facts = pad_all([" · ".join(stop.facts) for stop in flow.stops])
    for label, fact, stop in zip(labels, facts, flow.stops, strict=True):
        share = totals[stop.name] / total
        words = [f"{format_percent(round(share, 4)):>7}"]
        for tone, word in (("good", flow.good), ("bad", flow.bad)):
            ends = [link.value for link in flow.links if tone == link.tone and link.source == stop.name]
            if ends:
                words.append(f"{word} {format_percent(round(sum(ends) / total, 4))}")
        yield "  ".join([label, fact, draw_gauge(share), *words])


def _write_step_area(figure: StepArea, width: int) -> Iterator[str]:
    pairs = [(panel, series) for panel in figure.panels for series in panel.series if series.x]
    names = [panel.name if series.name == panel.name else f"{panel.name}: {series.name}" for panel, series in pairs]
    moments = [moment for _, series in pairs for moment in series.x]
    for label, (_, series) in zip(pad_all(names), pairs, strict=True):
        low, high = min(series.y), max(series.y)
        ends = f"{_format_end(low)} to {_format_end(high)}" if high > low else _format_end(low)
        cells = max(8, min(MAX_STRIP, width - cell_len(label) - len(ends) - 4))
        yield f"{label}  {draw_sparkline(series, min(moments), max(moments), cells)}  {ends}"
    if moments:
        ends = f"{_format_end(min(moments))} to {_format_end(max(moments))} {figure.unit}"
        yield from _join_parts([ends, *describe_markers(figure.markers)], width)


def draw_sparkline(series: Series, first: float, last: float, cells: int) -> str:
    """Return a letter for the largest level in each of ``cells`` parts of a time axis; a full block is the highest."""
    high = max([*series.y, 0.0])
    levels, position, current = [], 0, series.y[0]
    for cell in range(cells):
        start, end = (first + (last - first) * index / cells for index in (cell, cell + 1))
        while position < len(series.x) and series.x[position] <= start:
            current = series.y[position]
            position += 1
        level = current
        while position < len(series.x) and (series.x[position] < end or cell == cells - 1):
            current = series.y[position]
            level = max(level, current)
            position += 1
        levels.append(level)
    return "".join(SPARKS[round(max(level, 0.0) / high * (len(SPARKS) - 1))] if high else SPARKS[0] for level in levels)


def _write_interval_plot(figure: IntervalPlot, width: int) -> Iterator[str]:
    items = figure.intervals
    edges = [edge for item in items for edge in (item.low, item.high)]
    edges += [] if figure.target is None else [figure.target]
    if not edges:
        return
    low, high = min(edges), max(edges)
    labels = pad_all([item.name for item in items])
    cells = max(10, min(MAX_STRIP // 2, width - cell_len(labels[0]) - 40))

    def find_cell(value: float) -> int:
        return round((value - low) / (high - low) * (cells - 1)) if high > low else 0

    for label, item in zip(labels, items, strict=True):
        strip = [" "] * cells
        if figure.target is not None:
            strip[find_cell(figure.target)] = "┊"
        for index in range(find_cell(item.low), find_cell(item.high) + 1):
            strip[index] = "─"
        strip[find_cell(item.value)] = "●"
        interval = f"{format_number(item.value)} ({format_number(item.low)} to {format_number(item.high)})"
        yield "  ".join([label, "".join(strip), interval, *([item.group] if item.group else [])])
    target = f" · ┊ {figure.target_name} {format_number(figure.target)}" if figure.target is not None else ""
    yield f"{figure.axis}{target}"


def _format_end(value: float) -> str:
    return format_number(trim_fraction(value))


WRITERS: Mapping[str, Callable[[Any, int], Iterator[str]]] = {
    "graph": _write_graph,
    "timeline": _write_timeline,
    "flow": _write_flow,
    "steps": _write_step_area,
    "intervals": _write_interval_plot,
}
"""What writes a type of figure as text."""
