"""Figures as data: they read back, and contradictions are found."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from unfoldkit.figure_data import (
    Bar,
    Edge,
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
    find_figure_problems,
    order_layers,
    parse_figure,
)
from unfoldkit.report import Report, Verdict, from_data, to_data, validate_report

GRAPH = Graph(
    name="g",
    title="G",
    nodes=(Node(name="a", facts=("cpu",), count=2, load=0.5), Node(name="b", share=1.0)),
    edges=(Edge("a", "b", 0.5),),
)
TIMELINE = Timeline(
    name="t",
    title="T",
    unit="s",
    lanes=("one", "two"),
    bars=(Bar(lane="one", start=0.0, end=2.0, group="x", name="job"), Bar(lane="two", start=1.0, end=1.0)),
    markers=(Marker("deadline", 3.0), Marker("likely end", 2.0, 2.5), Marker("event", 1.5, lane="two")),
    groups=("x",),
)
FLOW = Flow(
    name="f",
    title="F",
    unit="cases",
    stops=(Stop("small", ("$1",)), Stop("large"), Stop("answered")),
    links=(
        Link("small", "answered", 70.0, "good"),
        Link("small", "large", 30.0),
        Link("large", "answered", 5.0, "bad"),
    ),
)
STEPS = StepArea(
    name="s",
    title="S",
    unit="min",
    panels=(Panel("instances", (Series("instances", (0.0, 1.0, 2.0), (4.0, 2.0, 2.0), "steps"),)),),
    markers=(Marker("deadline", 2.5),),
)
INTERVALS = IntervalPlot(
    name="i",
    title="I",
    axis="loss points",
    intervals=(Interval(name="a", value=1.0, low=0.5, high=2.0), Interval(name="b", value=2.0, low=2.0, high=2.0)),
    target=1.5,
)
EVERY = (GRAPH, TIMELINE, FLOW, STEPS, INTERVALS)
REPORT = Report("k", "plan", "n", Verdict.YES, "yes", figures=EVERY)


def test_every_type_reads_back() -> None:
    """A figure of each type is equal after it was written as JSON and read back."""
    data = json.loads(json.dumps(to_data(REPORT), allow_nan=False))
    assert from_data(data) == REPORT
    assert [figure["type"] for figure in data["figures"]] == ["graph", "timeline", "flow", "steps", "intervals"]
    assert not list(validate_report(REPORT, "k", "plan"))


@pytest.mark.parametrize(
    "change",
    [{"type": "pie"}, {"nodes": 3}, {"nodes": [{"name": "a", "load": "much"}]}, {"edges": [{"source": "a"}]}],
)
def test_data_of_another_shape_is_refused(change: dict[str, object]) -> None:
    """An unknown type, and values of another type, are errors; nothing of them is guessed."""
    data = to_data(REPORT)["figures"][0] | change
    with pytest.raises(ValueError, match=r"pie|nodes|edges"):
        parse_figure(data)


@pytest.mark.parametrize(
    ("figure", "problem"),
    [
        (replace(GRAPH, edges=(Edge("a", "c"),)), "no node 'c'"),
        (replace(GRAPH, edges=(Edge("a", "b"), Edge("b", "a"))), "cycle"),
        (replace(GRAPH, edges=(Edge("a", "a"),)), "cycle"),
        (replace(GRAPH, edges=(Edge("a", "b", -1.0),)), "negative"),
        (replace(GRAPH, nodes=(*GRAPH.nodes, Node(name="a"))), "one name"),
        (replace(GRAPH, nodes=(Node(name="a", load=float("nan")), Node(name="b"))), "not finite"),
        (replace(TIMELINE, lanes=("one",)), "no lane 'two'"),
        (replace(TIMELINE, bars=(Bar(lane="one", start=2.0, end=1.0),)), "ends before"),
        (replace(TIMELINE, markers=(Marker("event", 1.0, lane="three"),)), "no lane 'three'"),
        (replace(FLOW, links=(Link("small", "small", 1.0),)), "cycle"),
        (replace(FLOW, links=(Link("small", "nowhere", 1.0),)), "no node 'nowhere'"),
        (replace(STEPS, panels=(Panel("p", (Series("s", (1.0,), ()),)),)), "1 x, 0 y"),
        (replace(INTERVALS, intervals=(Interval(name="a", value=3.0, low=0.0, high=1.0),)), "outside"),
        (replace(INTERVALS, at="MAC"), "no position"),
        ("a text", "type str"),
    ],
)
def test_contradictions_are_found(figure: object, problem: str) -> None:
    """What no renderer can show is reported to the author of the plugin, by name."""
    problems = list(find_figure_problems(figure))
    assert any(problem in text for text in problems), problems


def test_layers_are_the_longest_paths() -> None:
    """An edge always leads to a later layer, also where a shorter way exists."""
    assert order_layers(["a", "b", "c"], [("a", "b"), ("b", "c"), ("a", "c")]) == {"a": 0, "b": 1, "c": 2}
    assert order_layers([], []) == {}
