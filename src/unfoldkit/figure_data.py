"""Figures of a report as data: what to show, not how it looks. Renderers draw them, or write them as text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, get_args

SeriesStyle = Literal["line", "steps", "points", "bars", "segments"]
Tone = Literal["good", "bad", "neutral"]


@dataclass(frozen=True, slots=True)
class Series:
    """One set of points of a figure; ``x`` and ``y`` have equal length.

    For the style ``segments``, each pair of points is one segment; horizontal ones are drawn as thick bars.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    style: SeriesStyle = "line"


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot of series over two axes. ``names`` label the x axis at 1, 2, and so on."""

    name: str
    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False
    timed: bool = False
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A part of a system that does work: what it runs on, how many copies it has, how busy it is.

    Args:
        name: Its name, unique in the graph.
        facts: Short facts below the name, such as the hardware and the batch size.
        count: Identical copies, such as replicas.
        load: Fraction of the capacity in use, above 1 for an overload; ``None`` if unknown.
        share: Fraction of the total that it contributes, such as the time of the slowest queries; ``None`` if unknown.
    """

    name: str
    facts: tuple[str, ...] = ()
    count: int = 1
    load: float | None = None
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Edge:
    """A connection from the node ``source`` to the node ``target``; ``weight`` is how much flows along it."""

    source: str
    target: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """The parts of a system and what flows between them, without cycles.

    Args:
        name: Its name, unique in the report.
        title: The heading.
        nodes: The parts, in the order of the text.
        edges: The connections.
        count: What ``Node.count`` counts, in the plural, such as ``replicas``.
        load: What ``Node.load`` measures.
        share: What ``Node.share`` is a fraction of.
        weight: What ``Edge.weight`` measures.
        timed: Whether a clock measured the values.
    """

    name: str
    title: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    count: str = "copies"
    load: str = "load"
    share: str = "share"
    weight: str = "weight"
    timed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """Work on a lane of a timeline from ``start`` to ``end``; bars of one ``group`` have one colour."""

    lane: str
    start: float
    end: float
    group: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Marker:
    """A moment of a time axis, such as a deadline; with ``end`` an interval, such as when a run may finish.

    With ``lane`` it concerns that lane of a timeline alone; markers of one name have one shape.
    """

    name: str
    at: float
    end: float | None = None
    lane: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """What happens when and where.

    Args:
        name: Its name, unique in the report.
        title: The heading.
        unit: The unit of the time axis.
        lanes: Where work happens, from top to bottom; none has two bars at a time unless it is shared.
        bars: The work.
        markers: Moments and intervals, of one lane or of all.
        timed: Whether a clock measured the values.
        groups: Groups of bars in the order of their colours; others follow in the order in which they begin.
    """

    name: str
    title: str
    unit: str
    lanes: tuple[str, ...]
    bars: tuple[Bar, ...]
    markers: tuple[Marker, ...] = ()
    timed: bool = False
    groups: tuple[str, ...] = ()

    def bars_by_lane(self) -> dict[str, list[Bar]]:
        """Return the bars of each lane, in the order of the lanes."""
        by_lane: dict[str, list[Bar]] = {lane: [] for lane in self.lanes}
        for bar in self.bars:
            by_lane[bar.lane].append(bar)
        return by_lane


@dataclass(frozen=True, slots=True)
class Stop:
    """A point that a flow passes or at which it ends, with short ``facts`` such as its cost."""

    name: str
    facts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Link:
    """A part of a flow from the stop ``source`` to the stop ``target``; ``tone`` states whether it ends well."""

    source: str
    target: str
    value: float
    tone: Tone = "neutral"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """The paths of a quantity through a system, without cycles (a Sankey diagram): the width of a link is its value.

    Args:
        name: Its name, unique in the report.
        title: The heading.
        unit: What flows, such as ``cases``.
        stops: Where it passes and ends.
        links: The parts of the flow.
        good: What the tone ``good`` means.
        bad: What the tone ``bad`` means.
        timed: Whether a clock measured the values.
    """

    name: str
    title: str
    unit: str
    stops: tuple[Stop, ...]
    links: tuple[Link, ...]
    good: str = "good"
    bad: str = "bad"
    timed: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """A y axis of a step area with its series; the first series is filled."""

    name: str
    series: tuple[Series, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepArea:
    """Levels over time, in panels one above the other with one time axis.

    Args:
        name: Its name, unique in the report.
        title: The heading.
        unit: The unit of the time axis.
        panels: From top to bottom.
        markers: Moments and intervals that concern every panel.
        timed: Whether a clock measured the values.
    """

    name: str
    title: str
    unit: str
    panels: tuple[Panel, ...]
    markers: tuple[Marker, ...] = ()
    timed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value with its interval from ``low`` to ``high``; ``at`` is its position on the other axis, if that has one."""

    name: str
    value: float
    low: float
    high: float
    group: str = ""
    at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalPlot:
    """Values with their intervals: a row each, or over a second axis if every interval has a position.

    Args:
        name: Its name, unique in the report.
        title: The heading.
        axis: The axis of the values, with its unit.
        intervals: The values.
        target: A limit to compare with, if there is one.
        target_name: What the limit is.
        at: The axis of the positions; empty for a row each.
        log_at: Whether the axis of the positions is logarithmic.
        timed: Whether a clock measured the values.
    """

    name: str
    title: str
    axis: str
    intervals: tuple[Interval, ...]
    target: float | None = None
    target_name: str = "target"
    at: str = ""
    log_at: bool = False
    timed: bool = False


AnyFigure = Figure | Graph | Timeline | Flow | StepArea | IntervalPlot
TYPES: Mapping[str, type[AnyFigure]] = {
    "plot": Figure,
    "graph": Graph,
    "timeline": Timeline,
    "flow": Flow,
    "steps": StepArea,
    "intervals": IntervalPlot,
}
"""The types of figures by the value of the key ``type`` in the data of a report."""


SCALARS = frozenset({str, int, float, bool, type(None)})


def figure_data(figure: AnyFigure) -> dict[str, Any]:
    """Convert a figure to dicts, tuples and scalars; the first key is the type, which a plot leaves out."""
    data: dict[str, Any] = _fields_data(figure)
    if isinstance(figure, Figure):
        return data if figure.names else {key: value for key, value in data.items() if key != "names"}
    return {"type": type_name(figure), **data}


def _fields_data(value: Any) -> Any:
    """Convert dataclasses to dicts; ``dataclasses.asdict`` would copy every number of a long series by itself."""
    if is_dataclass(value):
        return {item.name: _fields_data(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, tuple) and not SCALARS.issuperset(map(type, value)):
        return tuple(_fields_data(item) for item in value)
    return value


def type_name(figure: AnyFigure) -> str:
    """Return the name of a figure's type in the data of a report."""
    return next(name for name, cls in TYPES.items() if type(figure) is cls)


def parse_figure(data: Mapping[str, Any]) -> AnyFigure:
    """Convert the data of :func:`figure_data` back to a figure.

    Raises:
        ValueError: The type is unknown, or a value is missing or of another type.
    """
    name = data.get("type", "plot")
    if name not in TYPES:
        raise ValueError(f"figure type {name!r} is not one of {', '.join(TYPES)}")
    if name == "plot":
        _check_plot(data)
        series = tuple(Series(s["name"], tuple(s["x"]), tuple(s["y"]), s["style"]) for s in data["series"])
        return Figure(**{**data, "series": series, "names": tuple(data.get("names", ()))})
    from pydantic import TypeAdapter

    figure: AnyFigure = TypeAdapter(TYPES[name]).validate_python({k: v for k, v in data.items() if k != "type"})
    return figure


def _check_plot(data: Mapping[str, Any]) -> None:
    """Reject values of other types than those of a plot, on which the renderers rely.

    Raises:
        ValueError: The message has the field.
    """
    import msgspec

    try:
        # null stands for a value that is not finite
        msgspec.convert([[series["x"], series["y"]] for series in data["series"]], list[list[list[float | None]]])
        msgspec.convert({**data, "series": [{**series, "x": (), "y": ()} for series in data["series"]]}, Figure)
    except msgspec.ValidationError as error:
        raise ValueError(f"plot: {error}") from error


def find_figure_problems(figure: Any) -> Iterator[str]:
    """Yield, for a plugin's author, what keeps a value from being a figure that every renderer shows."""
    if not isinstance(figure, get_args(AnyFigure)):
        yield f"a figure is of type {type(figure).__name__}"
        return
    for series in _list_series(figure):
        if len(series.x) != len(series.y):
            yield f"figure {figure.name}: {series.name} has {len(series.x)} x, {len(series.y)} y"
    if not isinstance(figure, (Figure, StepArea)):
        if any(not math.isfinite(value) for value in _list_numbers(_fields_data(figure))):
            yield f"figure {figure.name}: a number is not finite"
            return
        yield from (f"figure {figure.name}: {problem}" for problem in _find_contradictions(figure))


def order_layers(names: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Return the layer of each node: the length of the longest path that ends in it.

    Raises:
        ValueError: The pairs form a cycle.
    """
    layers = dict.fromkeys(names, 0)
    for _ in range(len(layers) + 1):
        late = [(source, target) for source, target in pairs if layers[target] <= layers[source]]
        if not late:
            return layers
        for source, target in late:
            layers[target] = max(layers[target], layers[source] + 1)
    raise ValueError("the connections form a cycle")


def _find_contradictions(figure: Graph | Timeline | Flow | IntervalPlot) -> Iterator[str]:
    if isinstance(figure, Timeline):
        yield from _find_duplicates(figure.lanes, "lane")
        lanes = [bar.lane for bar in figure.bars] + [marker.lane for marker in figure.markers if marker.lane]
        yield from _find_strangers(lanes, figure.lanes, "lane")
        if any(bar.end < bar.start for bar in figure.bars):
            yield "a bar ends before it starts"
    elif isinstance(figure, IntervalPlot):
        if any(not item.low <= item.value <= item.high for item in figure.intervals):
            yield "a value lies outside of its interval"
        if figure.at and any(item.at is None for item in figure.intervals):
            yield "an interval has no position on the second axis"
    else:
        names = [item.name for item in (figure.nodes if isinstance(figure, Graph) else figure.stops)]
        edges = figure.edges if isinstance(figure, Graph) else figure.links
        pairs = [(edge.source, edge.target) for edge in edges]
        strangers = list(_find_strangers([end for pair in pairs for end in pair], names, "node"))
        yield from (*_find_duplicates(names, "node"), *strangers)
        if not strangers:
            try:
                order_layers(names, pairs)
            except ValueError as error:
                yield str(error)
        if any((edge.weight if isinstance(edge, Edge) else edge.value) < 0 for edge in edges):
            yield "a connection has a negative weight"


def _find_duplicates(names: Sequence[str], what: str) -> Iterator[str]:
    if len(set(names)) < len(names):
        yield f"two {what}s have one name"


def _find_strangers(used: Sequence[str], names: Sequence[str], what: str) -> Iterator[str]:
    strangers = sorted(set(used) - set(names))
    if strangers:
        yield f"there is no {what} {strangers[0]!r}"


def _list_series(figure: AnyFigure) -> list[Series]:
    if isinstance(figure, Figure):
        return list(figure.series)
    return [series for panel in figure.panels for series in panel.series] if isinstance(figure, StepArea) else []


def _list_numbers(value: Any) -> Iterator[float]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _list_numbers(item)
    elif isinstance(value, (int, float)):
        yield value
