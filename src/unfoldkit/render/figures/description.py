"""Figures in words and in tables: for screen readers, and below every figure of a page."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from unfoldkit.figure_data import (
    AnyFigure,
    Bar,
    Figure,
    Flow,
    Graph,
    IntervalPlot,
    Marker,
    Series,
    StepArea,
    Timeline,
    Tone,
    type_name,
)
from unfoldkit.format import format_count, format_number, format_percent
from unfoldkit.report import Cell, Column, Table

MAX_POINTS = 24
"""Points of a series that a table lists; of longer series it has the range."""
MAX_BARS = 200
"""Bars of a timeline that a table lists; of more bars it sums up each lane."""
MAX_DESCRIBED = 24


def describe_figure(figure: AnyFigure) -> str:
    """Describe a figure in words, with its main values."""
    return DESCRIBERS[type_name(figure)](figure)


def tabulate_figure(figure: AnyFigure) -> Table:
    """Return what a figure shows as a table."""
    return TABULATORS[type_name(figure)](figure)


def _describe_plot(figure: Figure) -> str:
    """Describe a plot: its axes, and where each series begins and ends."""
    return f"{figure.title}: {figure.y} over {figure.x}. {_describe_ends(figure.series)}"


def _describe_ends(series: Sequence[Series]) -> str:
    return "; ".join(
        f"{s.name} from {format_number(s.y[0])} at {format_number(s.x[0])} to {format_number(s.y[-1])} at "
        f"{format_number(s.x[-1])}" for s in series if s.y
    )  # fmt: skip


def _tabulate_plot(figure: Figure) -> Table:
    return tabulate_series(figure.title, figure.x, figure.series, figure.names)


def tabulate_series(name: str, x: str, series: Sequence[Series], names: Sequence[str] = ()) -> Table:
    """Return series as a table: a row per x of short ones, and the range of each where there are many points."""
    places = sorted({value for curve in series for value in curve.x if value is not None and math.isfinite(value)})
    if len(places) <= MAX_POINTS and not any(curve.style == "segments" for curve in series):
        values = [dict(zip(curve.x, curve.y, strict=True)) for curve in series]
        rows = tuple((_name_place(place, names), *(_to_cell(held.get(place)) for held in values)) for place in places)
        return Table(name, (Column(x), *(Column(curve.name) for curve in series)), rows)
    columns = (Column("series"), Column("points"), Column(f"first {x}"), Column(f"last {x}"), Column("least"),
               Column("greatest"), Column("last"))  # fmt: skip
    return Table(name, columns, tuple(_summarize(curve) for curve in series if curve.y))


def _name_place(place: float, names: Sequence[str]) -> Cell:
    index = int(place) - 1
    return names[index] if place == index + 1 and 0 <= index < len(names) else _to_cell(place)


def _summarize(series: Series) -> tuple[Cell, ...]:
    finite = [value for value in series.y if value is not None and math.isfinite(value)]
    least, greatest = (min(finite), max(finite)) if finite else (None, None)
    return (series.name, len(series.x), series.x[0], series.x[-1], least, greatest, series.y[-1])


def _to_cell(value: float | None) -> Cell:
    return int(value) if value is not None and math.isfinite(value) and value == int(value) else value


def _describe_graph(graph: Graph) -> str:
    parts, has_copies = [], any(node.count != 1 for node in graph.nodes)
    for node in graph.nodes:
        facts = [*node.facts, *([f"{node.count:,} {graph.count}"] if has_copies else [])]
        if node.load is not None:
            facts.append(f"{graph.load} {format_percent(round(node.load, 3))}")
        if node.share is not None:
            facts.append(f"{graph.share} {format_percent(round(node.share, 3))}")
        targets = [edge.target for edge in graph.edges if edge.source == node.name]
        onward = f", on to {' and '.join(targets)}" if targets else ""
        parts.append(f"{node.name}: {', '.join(facts)}{onward}")
    return f"{graph.title}. {'; '.join(parts)}"


def _tabulate_graph(graph: Graph) -> Table:
    # a column without a value of any node would be empty
    measured = [any(node.load is not None for node in graph.nodes), any(node.share is not None for node in graph.nodes)]
    measures = (Column(graph.load, "%", 0), Column(graph.share, "%", 0))
    columns = (Column("name"), Column("facts"), Column(graph.count), *itertools.compress(measures, measured),
               Column(f"to ({graph.weight})"))  # fmt: skip
    rows = []
    for node in graph.nodes:
        targets = [f"{e.target} ({format_number(e.weight)})" for e in graph.edges if e.source == node.name]
        values = itertools.compress((node.load, node.share), measured)
        percents = [None if value is None else value * 100 for value in values]
        rows.append((node.name, " · ".join(node.facts), node.count, *percents, ", ".join(targets)))
    return Table(graph.title, columns, tuple(rows))


def _describe_timeline(timeline: Timeline) -> str:
    lanes = []
    for lane in timeline.lanes[:MAX_DESCRIBED]:
        bars = [bar for bar in timeline.bars if bar.lane == lane]
        marks = describe_markers([item for item in timeline.markers if item.lane == lane])
        if bars:
            ends = format_number(min(bar.start for bar in bars)), format_number(max(bar.end for bar in bars))
            marks = [f"{format_count(len(bars), 'bar')} from {ends[0]} to {ends[1]}", *marks]
        if marks:
            lanes.append(f"{lane}: {', '.join(marks)}")
    moments = describe_markers([item for item in timeline.markers if not item.lane])
    return f"{timeline.title}, in {timeline.unit}. {'; '.join([*lanes, *moments])}"


def describe_markers(markers: Sequence[Marker]) -> list[str]:
    """Describe each moment or interval of a time axis with its name and its time."""
    return [
        f"{item.name} at {format_number(item.at)}" + (f" to {format_number(item.end)}" if item.end is not None else "")
        for item in markers
    ]


def _tabulate_timeline(timeline: Timeline) -> Table:
    unit = timeline.unit
    if len(timeline.bars) <= MAX_BARS:
        order = {lane: index for index, lane in enumerate(timeline.lanes)}
        columns = (Column("lane"), Column("bar"), Column("group"), Column("start", unit), Column("end", unit))
        spans = [(bar.lane, bar.name, bar.group, bar.start, bar.end) for bar in timeline.bars]
        marks = [item for item in timeline.markers if item.lane]
        spans += [(item.lane, item.name, "", item.at, item.at if item.end is None else item.end) for item in marks]
        rows = tuple(sorted(spans, key=lambda span: (order[span[0]], *span[3:])))
        return Table(timeline.title, columns, rows)
    columns = (Column("lane"), Column("bars"), Column("first start", unit), Column("last end", unit),
               Column("busy", unit))  # fmt: skip
    sums = tuple(_summarize_lane(lane, bars) for lane, bars in timeline.bars_by_lane().items())
    return Table(timeline.title, columns, sums[:MAX_BARS])


def _summarize_lane(lane: str, bars: Sequence[Bar]) -> tuple[Cell, ...]:
    if not bars:
        return (lane, 0, None, None, 0.0)
    busy, reached = 0.0, -math.inf
    for bar in sorted(bars, key=lambda bar: bar.start):
        busy += max(0.0, bar.end - max(bar.start, reached))
        reached = max(reached, bar.end)
    return (lane, len(bars), min(bar.start for bar in bars), reached, busy)


def _describe_flow(flow: Flow) -> str:
    links = [f"{format_number(trim_fraction(link.value))} {flow.unit} from {link.source} to {link.target}"
             f"{_name_tone(flow, link.tone)}" for link in flow.links if link.value]  # fmt: skip
    return f"{flow.title}. {'; '.join(links)}"


def _name_tone(flow: Flow, tone: Tone) -> str:
    return {"good": f", {flow.good}", "bad": f", {flow.bad}", "neutral": ""}[tone]


def trim_fraction(value: float) -> float:
    """Turn a float without a fraction into an integer, which is written in full instead of with three digits."""
    return int(value) if float(value).is_integer() else value


def _tabulate_flow(flow: Flow) -> Table:
    facts = {stop.name: " · ".join(stop.facts) for stop in flow.stops}
    columns = (Column("from"), Column("facts"), Column("to"), Column("result"), Column(flow.unit))
    rows = tuple(
        (
            link.source,
            facts[link.source],
            link.target,
            _name_tone(flow, link.tone).removeprefix(", "),
            trim_fraction(link.value),
        )
        for link in flow.links
    )
    return Table(flow.title, columns, rows)


def _describe_step_area(figure: StepArea) -> str:
    parts = [f"{panel.name}: {_describe_ends(panel.series)}" for panel in figure.panels]
    return f"{figure.title}, in {figure.unit}. {'; '.join([*parts, *describe_markers(figure.markers)])}"


def _tabulate_step_area(figure: StepArea) -> Table:
    series = [replace(curve, name=f"{panel.name}: {curve.name}" if curve.name != panel.name else curve.name)
              for panel in figure.panels for curve in panel.series]  # fmt: skip
    return tabulate_series(figure.title, figure.unit, series)


def _describe_interval_plot(figure: IntervalPlot) -> str:
    parts = [f"{item.name} {format_number(item.value)} ({format_number(item.low)} to {format_number(item.high)})"
             for item in figure.intervals]  # fmt: skip
    target = "" if figure.target is None else f" {figure.target_name}: {format_number(figure.target)}."
    return f"{figure.title}, {figure.axis}.{target} {'; '.join(parts)}"


def _tabulate_interval_plot(figure: IntervalPlot) -> Table:
    columns = (Column("name"), Column("group"), *([Column(figure.at)] if figure.at else []), Column(figure.axis),
               Column("low"), Column("high"))  # fmt: skip
    rows = tuple(
        (item.name, item.group, *([item.at] if figure.at else []), item.value, item.low, item.high)
        for item in figure.intervals
    )
    return Table(figure.title, columns, rows)


DESCRIBERS: Mapping[str, Callable[[Any], str]] = {
    "plot": _describe_plot,
    "graph": _describe_graph,
    "timeline": _describe_timeline,
    "flow": _describe_flow,
    "steps": _describe_step_area,
    "intervals": _describe_interval_plot,
}
TABULATORS: Mapping[str, Callable[[Any], Table]] = {
    "plot": _tabulate_plot,
    "graph": _tabulate_graph,
    "timeline": _tabulate_timeline,
    "flow": _tabulate_flow,
    "steps": _tabulate_step_area,
    "intervals": _tabulate_interval_plot,
}
