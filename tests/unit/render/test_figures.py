"""Figures in every format: what is drawn, what is written, and that a page stays small and by itself."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from rich.cells import cell_len

from tests.unit.test_figure_data import EVERY, FLOW, GRAPH, INTERVALS, REPORT, STEPS, TIMELINE
from unfoldkit.figure_data import (
    AnyFigure,
    Bar,
    Edge,
    Figure,
    Flow,
    Graph,
    Interval,
    IntervalPlot,
    Link,
    Marker,
    Node,
    Panel,
    Series,
    StepArea,
    Stop,
    Timeline,
    type_name,
)
from unfoldkit.render import html, md, plot, text
from unfoldkit.render.figures.compact import draw_gauge, draw_sparkline, write_compact
from unfoldkit.render.figures.description import describe_figure, tabulate_figure
from unfoldkit.render.figures.flow import layout_flow, place_ribbons
from unfoldkit.render.figures.graph import layout_graph
from unfoldkit.render.figures.mermaid import write_mermaid
from unfoldkit.render.figures.style import HATCHES, shorten_middle, thin_points
from unfoldkit.render.figures.timeline import MAX_LANES, list_groups, stack_bars
from unfoldkit.report import Report, Verdict

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = 'x"]<script>&|```\n**'


def parse(drawn: str) -> ET.Element:
    return ET.fromstring(drawn)  # noqa: S314 - made here


def texts(drawn: str) -> list[str]:
    return [element.text or "" for element in parse(drawn).iter(f"{SVG}text")]


def empty_figures() -> Iterator[AnyFigure]:
    yield replace(GRAPH, nodes=(), edges=())
    yield replace(TIMELINE, lanes=(), bars=(), markers=())
    yield replace(FLOW, stops=(), links=())
    yield replace(STEPS, panels=(), markers=())
    yield replace(INTERVALS, intervals=(), target=None)
    yield Figure("f", "F", "x", "y", ())


@pytest.mark.parametrize("figure", EVERY, ids=type_name)
def test_every_drawing_has_a_title_and_a_description(figure: AnyFigure) -> None:
    """A drawing is one image with a title, and a description that holds its main values."""
    root = parse(plot.svg(figure))
    assert root.get("role") == "img"
    ids = [element.get("id") for element in (root.find(f"{SVG}title"), root.find(f"{SVG}desc")) if element is not None]
    assert root.get("aria-labelledby") == " ".join(map(str, ids))
    assert root.findtext(f"{SVG}title") == figure.title
    assert root.findtext(f"{SVG}desc") == describe_figure(figure)
    assert root.find(f"{SVG}metadata") is None


@pytest.mark.parametrize("figure", [*EVERY, *empty_figures()], ids=type_name)
def test_every_figure_is_in_every_format(figure: AnyFigure) -> None:
    """Each type, also without content, is drawn, written as text and Markdown, and has a table with even rows."""
    report = replace(REPORT, figures=(figure,))
    assert plot.render(report).startswith(b"\x89PNG")
    assert "values of this figure" in html.render(report)
    table = tabulate_figure(figure)
    assert all(len(row) == len(table.columns) for row in table.rows)
    for width in (40, 80, 140):
        lines = text.render(report, width=width).splitlines()
        assert max(map(len, lines)) <= width
    if figure in EVERY:
        assert figure.title in text.render(report)
        assert f"### {figure.title}" in md.render(report)


@pytest.mark.parametrize("figure", EVERY, ids=type_name)
def test_equal_figures_give_equal_bytes(figure: AnyFigure) -> None:
    """A drawing is the same each time, so that a gallery does not change by itself."""
    assert plot.svg(figure) == plot.svg(figure)


def test_a_graph_shows_copies_load_and_the_critical_node() -> None:
    """A box has the name with its copies, the facts, the load and the share; the label of an edge is its weight."""
    drawn = texts(plot.svg(GRAPH))
    assert {"a ×2", "cpu", "load 50 %", "b", "share 100 %", "0.5"} <= set(drawn)
    lines = write_compact(GRAPH, 80)
    assert lines[1:] == ["  a     cpu  ×2  █████░░░░░ load   50 %", "  └─ b       ×1  share 100 %"]
    assert write_mermaid(GRAPH).splitlines() == [
        "flowchart LR",
        '    n0["**a** ×2<br/>cpu<br/>load 50 %"]',
        '    n1["**b**<br/>share 100 %"]',
        '    n0 -->|"0.500"| n1',
        "    style n1 stroke-width:4px",
    ]


def test_facts_of_a_short_graph_are_drawn_in_full() -> None:
    """Where the page has room, a box is as wide as its facts: the price at the end of one is not cut."""
    fact = "g4dn.xlarge · batch 16 · $0.53/h"
    nodes = tuple(Node(name=name, facts=(fact,)) for name in ("a", "b"))
    drawn = texts(plot.svg(Graph(name="g", title="G", nodes=nodes, edges=(Edge("a", "b"),))))
    assert drawn.count(fact) == 2


def test_boxes_of_a_graph_never_overlap() -> None:
    """Of 200 random graphs, no two boxes overlap, each edge leads onward, and all stay on the sheet."""
    rng = random.Random(7)  # noqa: S311 - no secret
    for _ in range(200):
        names = [f"n{index}" for index in range(rng.randint(1, 14))]
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if rng.random() < 0.3]
        graph = Graph(
            name="g", title="G", nodes=tuple(Node(name=name) for name in names), edges=tuple(Edge(*p) for p in pairs)
        )
        layout = layout_graph(graph)
        spots = list(layout.centres.values())
        width, height = layout.box_pt
        for index, (x, y) in enumerate(spots):
            assert x - width / 2 >= 0
            assert x + width / 2 <= 550
            assert y - height / 2 + 0.01 >= 0
            for other_x, other_y in spots[index + 1 :]:
                assert abs(x - other_x) >= width - 0.01 or abs(y - other_y) >= height - 0.01
        along = 1 if layout.is_vertical else 0
        assert all(a[along] < b[along] for route in layout.routes for a, b in itertools.pairwise(route))


def test_a_tree_of_text_shows_each_node_once() -> None:
    """A node with two parents has one line and one reference; a chain of 2,000 nodes is written without recursion."""
    names = [f"s{index}" for index in range(2000)]
    chain = Graph(
        name="g",
        title="G",
        nodes=tuple(Node(name=name) for name in names),
        edges=tuple(Edge(a, b) for a, b in itertools.pairwise(names)),
    )
    lines = write_compact(chain, 120)
    assert len(lines) == 2001
    diamond = replace(
        GRAPH,
        nodes=tuple(Node(name=name) for name in "abcd"),
        edges=(Edge("a", "b"), Edge("a", "c"), Edge("b", "d"), Edge("c", "d")),
    )
    written = "\n".join(write_compact(diamond, 120))
    assert written.count("→ d") == 1
    assert len(re.findall(r"─ d", written)) == 1


def test_bars_that_overlap_stand_in_rows_of_their_lane() -> None:
    """No two bars of a row overlap, and none is lost, unless it is thinner than a pixel and joins its neighbour."""
    rng = random.Random(3)  # noqa: S311 - no secret
    bars = [Bar(lane="n", start=(s := rng.uniform(0, 90)), end=s + rng.uniform(1, 20), name=str(i)) for i in range(40)]
    items = stack_bars(bars, 0.0)
    assert {item.bar.name for item in items} == {str(index) for index in range(40)}
    for row in range(items[0].rows):
        times = sorted((item.bar.start, item.bar.end) for item in items if item.row == row)
        assert all(end <= start + 1e-9 for (_, end), (start, _) in itertools.pairwise(times))
    thin = [Bar(lane="n", start=index * 1e-3, end=index * 1e-3 + 5e-4) for index in range(10_000)]
    assert sum(item.bar.end - item.bar.start for item in stack_bars(thin, 0.01)) == pytest.approx(10.0, rel=1e-3)
    assert len(stack_bars(thin, 0.01)) == 1


def test_a_timeline_has_a_second_channel_beside_colour() -> None:
    """Each of eight groups has a hatch of its own, and markers differ by their dashes."""
    bars = tuple(Bar(lane="n", start=index, end=index + 1, group=f"g{index}") for index in range(8))
    drawn = plot.svg(Timeline(name="t", title="T", unit="s", lanes=("n",), bars=bars))
    assert len(set(HATCHES)) == 8
    assert len(re.findall("<pattern", drawn)) == 7
    assert all(f"g{index}" in texts(drawn) for index in range(8))


def test_a_strip_shows_who_works_when() -> None:
    """A letter per part of the time axis is the group that has most of it; markers are named with their time."""
    lines = write_compact(TIMELINE, 40)
    assert lines[1].startswith("  one  █")
    assert lines[1].count("█") == pytest.approx(2 / 3.06 * 33, abs=1)
    assert "deadline at 3" in " ".join(lines)


def test_markers_of_a_lane_stand_on_it() -> None:
    """A marker of one lane is a shape on that lane, a letter in its strip, a row of the table, and in the legend."""
    lanes = ("a", "b")
    bars = tuple(Bar(lane=lane, start=0.0, end=10.0, group="work") for lane in lanes)
    marks = (Marker("event", 5.0, lane="b"), Marker("pause", 0.0, 4.0, lane="a"), Marker("event", 9.9, lane="b"))
    figure = Timeline(name="t", title="T", unit="h", lanes=lanes, bars=bars, markers=marks)
    assert {"event", "pause"} <= set(texts(plot.svg(figure)))
    first, second, legend = (line.split("  ", 2)[-1] for line in write_compact(figure, 60)[1:])
    assert (first.count("×"), first.count("◆")) == (1, 0)
    assert [place / len(second) for place, letter in enumerate(second) if letter == "◆"] == pytest.approx(
        [5 / 10.2, 9.9 / 10.2], abs=0.03
    )
    assert legend.endswith("█ work · ◆ event · × pause")
    assert ("b", "event", "", 5.0, 5.0) in tabulate_figure(figure).rows
    assert ("a", "pause", "", 0.0, 4.0) in tabulate_figure(figure).rows
    assert "b: 1 bar from 0 to 10.0, event at 5.00, event at 9.90" in describe_figure(figure)
    hidden = replace(figure, lanes=(*(f"n{index}" for index in range(MAX_LANES)), *lanes))
    assert "event" not in texts(plot.svg(hidden))


def test_groups_keep_the_colours_of_their_order() -> None:
    """A stated order fixes the colours, whatever begins first, also where some of the groups have no bar."""
    bars = (Bar(lane="n", start=0.0, end=1.0, group="late"), Bar(lane="n", start=2.0, end=3.0, group="early"))
    figure = Timeline(name="t", title="T", unit="h", lanes=("n",), bars=bars, groups=("none", "early", "late"))
    assert list_groups(figure) == {"early": 1, "late": 2}
    assert list_groups(replace(figure, groups=())) == {"late": 0, "early": 1}
    assert "none" not in texts(plot.svg(figure))


@pytest.mark.parametrize("letters", [2, 3, 8, 21])
def test_names_are_shortened_from_their_middle(letters: int) -> None:
    """A long serial name keeps both ends, and no shortened name is wider than its room, whatever its letters."""
    for name in ("patient-2024-ward-A-000123", "患者" * 20, "e\u0301" * 30, "👩‍⚕️" * 9, "short"):
        short = shorten_middle(name, letters)
        assert cell_len(short) <= letters or short == name
        assert short == name or "…" in short
    assert shorten_middle("patient-2024-ward-A-000123", 21) == "patient-20…d-A-000123"


def test_lanes_beyond_the_limit_are_counted() -> None:
    """Of a thousand lanes the first are drawn, and both forms state how many are left out."""
    lanes = tuple(f"n{index}" for index in range(1000))
    figure = replace(TIMELINE, lanes=lanes, bars=tuple(Bar(lane=lane, start=0.0, end=1.0) for lane in lanes))
    drawn = plot.svg(figure)
    assert f"s · {1000 - MAX_LANES} more lanes are in the table" in texts(drawn)
    assert "and 984 more" in "\n".join(write_compact(figure, 100))
    assert len(drawn) < 60_000


def test_ends_of_a_flow_stand_side_by_side() -> None:
    """Both ends are in the last column, though one way to an end is shorter than the other."""
    links = (Link("a", "b", 9.0), Link("b", "c", 4.0), Link("c", "good", 4.0), Link("b", "bad", 5.0))
    bars = layout_flow(replace(FLOW, stops=tuple(map(Stop, ("a", "b", "c", "good", "bad"))), links=links)).bars
    assert bars["good"][0] == bars["bad"][0] > bars["c"][0]


def test_a_model_and_its_stage_have_lines_of_their_own_in_a_long_flow() -> None:
    """Where many columns leave no room for ``stage: model`` on one line, neither is cut."""
    names = (*"abcde", "straight: network", "end")
    links = tuple(Link(source, target, 9.0) for source, target in itertools.pairwise(names))
    drawn = texts(plot.svg(replace(FLOW, stops=tuple(map(Stop, names)), links=links)))
    assert {"straight:", "network"} <= set(drawn)


def test_numbers_of_labels_are_not_rounded() -> None:
    """Only coordinates are shortened: amounts, versions and ticks read as they are."""
    drawn = plot.svg(replace(FLOW, stops=(Stop("small", facts=("$1,052.20", "v1.25.34")), *FLOW.stops[1:])))
    assert "$1,052.20 · v1.25.34" in drawn
    ticks = plot.svg(Figure("f", "F", "x", "y", (Series("s", (1.0, 2.0), (1.01, 1.04)),)))
    texts = [text for element in parse(ticks).iter(f"{SVG}text") for text in element.itertext()]
    assert {"1.01", "1.04"} <= set(texts), texts


def test_ribbons_from_two_rows_do_not_cross() -> None:
    """What leaves the upper of two stops arrives above what leaves the lower one."""
    links = (Link("a", "up", 4.0), Link("a", "down", 6.0), Link("up", "end", 4.0), Link("down", "end", 6.0))
    flow = replace(FLOW, stops=tuple(map(Stop, ("a", "up", "down", "end"))), links=links)
    arrivals = {
        link.source: end for link, (_, end, _) in place_ribbons(flow, layout_flow(flow)) if link.target == "end"
    }
    assert arrivals["up"] < arrivals["down"]


def test_ribbons_are_as_wide_as_their_share_and_fill_their_stops() -> None:
    """The widths are proportional to the values; no ribbon of a stop overlaps another one, at either end."""
    layout = layout_flow(FLOW)
    ribbons = place_ribbons(FLOW, layout)
    assert {link.value: width / layout.points_per_unit for link, (_, _, width) in ribbons} == pytest.approx(
        {70.0: 70.0, 30.0: 30.0, 5.0: 5.0}
    )
    for stop in FLOW.stops:
        for end in (0, 1):
            spans = sorted(
                (offsets[end], offsets[end] + offsets[2])
                for link, offsets in ribbons
                if (link.source, link.target)[end] == stop.name
            )
            assert all(stop_ <= start + 1e-9 for (_, stop_), (start, _) in itertools.pairwise(spans))
            assert all(high <= layout.bars[stop.name][2] + 1e-9 for _, high in spans)
    assert write_mermaid(FLOW).splitlines() == [
        "sankey-beta", "", '"small","answered",70', '"small","large",30', '"large","answered",5',
    ]  # fmt: skip


def test_thinned_points_keep_every_extreme() -> None:
    """Many points become few, with the highest and the lowest of all among them, in their order."""
    y = [1.0] * 5000
    y[3333], y[77] = 9.0, -3.0
    x, levels = thin_points(list(map(float, range(5000))), y, 300)
    assert len(x) == len(levels) <= 302
    assert (min(levels), max(levels)) == (-3.0, 9.0)
    assert x == sorted(x)
    assert thin_points((1.0, 2.0), (3.0, float("nan")), 300)[0] == [1.0, 2.0]


def test_a_sparkline_and_a_gauge_show_their_extremes() -> None:
    """The highest level is a full block and nothing an empty one; a gauge is full at one and beyond."""
    series = Series("s", (0.0, 5.0, 6.0), (0.0, 8.0, 2.0), "steps")
    line = draw_sparkline(series, 0.0, 10.0, 10)
    assert line == "▁▁▁▁▁█▃▃▃▃"
    assert draw_gauge(0.0) == "░" * 10
    assert draw_gauge(1.0) == draw_gauge(7.5) == "█" * 10
    assert draw_gauge(0.55) == "█████▌░░░░"


def test_intervals_over_a_second_axis_are_named_and_scaled() -> None:
    """With positions the values stand in a plane; without, each has a row with its name."""
    rows = texts(plot.svg(INTERVALS))
    assert {"a", "b", "target"} <= set(rows)
    plane = replace(
        INTERVALS, at="MAC", log_at=True, intervals=tuple(replace(item, at=100.0) for item in INTERVALS.intervals)
    )
    written = set(texts(plot.svg(plane)))
    assert {"MAC", "loss points", "a", "b", "100"} <= written
    assert not any("$" in text for text in written)


LONG = ("patient-2024-ward-A-intensive-000123", "患者-番号-" * 9, "e\u0301" * 50, "_hidden", "a\nb\tc", "$x_1$" * 9)


@pytest.mark.parametrize("figure", [*EVERY, Figure("c", "C", "x", "y", ())], ids=type_name)
def test_long_names_leave_room_for_the_drawing(figure: AnyFigure) -> None:
    """With long, wide and broken names the layout fits (matplotlib warns if not), and every line of text is one."""
    series = tuple(Series(name, (0.0, 1.0, 2.0), (1.0, 3.0, 2.0), "steps") for name in LONG)
    marks = tuple(Marker(name, 1.0) for name in LONG)
    changed: AnyFigure = figure
    if isinstance(figure, Graph):
        changed = replace(figure, nodes=tuple(Node(name=name, facts=LONG) for name in LONG), edges=())
    elif isinstance(figure, Timeline):
        bars = tuple(Bar(lane=name, start=0.0, end=2.0, group=name, name=name) for name in LONG)
        lane_marks = tuple(replace(mark, lane=mark.name) for mark in marks)
        changed = replace(figure, lanes=LONG, bars=bars, markers=(*marks, *lane_marks), groups=())
    elif isinstance(figure, Flow):
        links = tuple(Link(*pair, 1.0) for pair in itertools.pairwise(LONG))
        changed = replace(figure, stops=tuple(Stop(name, LONG) for name in LONG), links=links)
    elif isinstance(figure, StepArea):
        changed = replace(figure, panels=tuple(Panel(name, series) for name in LONG[:3]), markers=marks)
    elif isinstance(figure, IntervalPlot):
        items = tuple(Interval(name=name, value=1.0, low=0.0, high=2.0, group=name) for name in LONG)
        changed = replace(figure, intervals=items, target_name=LONG[0])
    else:
        changed = replace(figure, series=series)
    drawn = texts(plot.svg(changed))
    assert plot.render(replace(REPORT, figures=(replace(changed, title=" ".join(LONG)),))).startswith(b"\x89PNG")
    assert not any("\n" in text for text in drawn)
    assert not any("\n" in line or "\t" in line for line in write_compact(changed, 80))
    if not isinstance(figure, (Graph, Flow)):
        assert "_hidden" in [text.strip() for text in drawn]


def hostile() -> Report:
    figures = (
        replace(GRAPH, nodes=(Node(name=HOSTILE, facts=(HOSTILE,)), Node(name="b")), edges=(Edge(HOSTILE, "b"),)),
        replace(
            TIMELINE,
            lanes=(HOSTILE,),
            bars=(Bar(lane=HOSTILE, start=0.0, end=1.0, group=HOSTILE, name=HOSTILE),),
            markers=(Marker(HOSTILE, 0.5, lane=HOSTILE), Marker(HOSTILE, 0.7)),
        ),
        replace(FLOW, stops=(Stop(HOSTILE, (HOSTILE,)), Stop("b")), links=(Link(HOSTILE, "b", 1.0),)),
        replace(STEPS, panels=(Panel(HOSTILE, (Series(HOSTILE, (0.0,), (1.0,)),)),), markers=(Marker(HOSTILE, 0.5),)),
        replace(INTERVALS, intervals=tuple(replace(item, name=HOSTILE) for item in INTERVALS.intervals)),
    )
    return Report("k", "plan", "n", Verdict.YES, "yes", figures=tuple(replace(f, title=HOSTILE) for f in figures))


def test_names_are_never_markup() -> None:
    """Names with quotation marks, tags and fences break neither the page, nor a table, nor a diagram."""
    page = html.render(hostile())
    assert "<script" not in page
    for drawn in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        parse(drawn)
    written = md.render(hostile())
    assert "\n```\n**" not in written
    for line in write_mermaid(hostile().figures[0]).splitlines()[1:]:
        assert line.count('"') in (0, 2)


def test_a_page_with_every_type_is_small_and_loads_nothing() -> None:
    """A page with large figures of every type has at most 400 kB and no address of another site but names of XML."""
    rng = random.Random(1)  # noqa: S311 - no secret
    bars = tuple(
        Bar(lane=f"n{lane}", start=(s := rng.uniform(0, 1e4)), end=s + rng.uniform(0, 50), group=f"g{index % 7}")
        for lane in range(64)
        for index in range(60)
    )
    series = Series("s", tuple(map(float, range(50_000))), tuple(rng.random() for _ in range(50_000)), "steps")
    line = replace(series, style="line")
    figures = (
        Graph(
            name="g",
            title="G",
            nodes=tuple(Node(name=f"n{i}", facts=("gpu",), load=0.9, share=0.02) for i in range(20)),
            edges=tuple(Edge(f"n{i}", f"n{i + 1}") for i in range(19)),
        ),
        Timeline(name="t", title="T", unit="s", lanes=tuple(f"n{lane}" for lane in range(64)), bars=bars),
        FLOW,
        StepArea(name="s", title="S", unit="s", panels=tuple(Panel(f"p{i}", (series, series)) for i in range(2))),
        replace(INTERVALS, intervals=INTERVALS.intervals * 20),
        Figure("f", "F", "x", "y", (line, replace(series, name="b"))),
    )
    page = html.render(replace(REPORT, figures=figures))
    assert len(page.encode()) <= 400_000
    addresses = set(re.findall(r"(?:https?:)?//[a-z][^\"' )]*", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not re.findall(r"<(?:script|link|iframe|img|object)\b|@import|url\((?!#)", page)


def test_the_first_colours_differ_for_every_kind_of_sight() -> None:
    """The first four colours stay apart for deuteranopia, protanopia and tritanopia (Machado et al. 2009)."""
    sights = {
        "protanopia": ((0.1523, 1.0526, -0.2049), (0.1145, 0.7863, 0.0992), (-0.0039, -0.0481, 1.052)),
        "deuteranopia": ((0.3673, 0.8606, -0.228), (0.2801, 0.6725, 0.0474), (-0.0118, 0.0429, 0.9689)),
        "tritanopia": ((1.2555, -0.0767, -0.1788), (-0.0784, 0.9308, 0.1476), (0.0047, 0.6914, 0.3039)),
    }  # fmt: skip
    for name, matrix in sights.items():
        seen = [lab(apply(matrix, linear(colour))) for colour in plot.COLOURS[:4]]
        pairs = [(a, b) for i, a in enumerate(seen) for b in seen[i + 1 :]]
        least = min(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5 for a, b in pairs)
        assert least > 15, (name, least)


def linear(colour: str) -> list[float]:
    values = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    return [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]


def apply(matrix: tuple[tuple[float, ...], ...], rgb: list[float]) -> list[float]:
    return [min(1.0, max(0.0, sum(a * b for a, b in zip(row, rgb, strict=True)))) for row in matrix]


def lab(rgb: list[float]) -> tuple[float, float, float]:
    rows = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    white = (0.9505, 1.0, 1.089)
    xyz = [sum(a * b for a, b in zip(row, rgb, strict=True)) / w for row, w in zip(rows, white, strict=True)]
    x, y, z = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def test_an_interval_plot_states_its_target() -> None:
    """The description and the text hold the target with its name."""
    figure = replace(INTERVALS, target_name="allowed")
    assert isinstance(figure, IntervalPlot)
    assert "allowed: 1.50" in describe_figure(figure)
    assert "┊ allowed 1.50" in "\n".join(write_compact(figure, 100))
