"""Flows with conditions: what a reference that walks the graph once visits is what the routes visit, in any order."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from unfold_pipeline.flow_syntax import parse_condition
from unfold_pipeline.problem.pipeline import Edge, Pipeline, Stage
from unfold_pipeline.problem.routing import Item, RouteDrawer

TEST = parse_condition("output > 0")


def draw_graph(rng: random.Random) -> Pipeline:
    """A random graph; about half of its flows have a condition, the others are certain."""
    stages: list[Stage] = []
    for index in range(rng.randint(2, 7)):
        parents = [parent for parent in range(index) if rng.random() < 0.5]
        edges = tuple(Edge(p, 0.3, TEST) if rng.random() < 0.5 else Edge(p) for p in parents)
        stages.append(Stage(f"s{index}", edges, ()))
    return Pipeline(tuple(stages))


def visit_reference(graph: Pipeline, followed: dict[tuple[int, int], bool]) -> set[int]:
    """The stages that run: entries, and those that a followed flow of a stage that runs reaches."""
    visited: set[int] = set()
    for index, stage in enumerate(graph.stages):
        if not stage.parents or any(e.parent in visited and followed[e.parent, index] for e in stage.parents):
            visited.add(index)
    return visited


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 10**9))
def test_conditions_skip_exactly_what_no_flow_reaches(seed: int) -> None:
    """Each query ends once, visits the stages of the reference, and a join runs after all of its parents that run."""
    rng = random.Random(seed)  # noqa: S311
    graph = draw_graph(rng)
    drawer = RouteDrawer(graph, np.random.default_rng(seed))
    for _ in range(5):
        routes, query = drawer.draw_next()
        followed = {
            (edge.parent, index): edge.condition is None or rng.random() < 0.5
            for index, stage in enumerate(graph.stages)
            for edge in stage.parents
        }
        expected = visit_reference(graph, followed)
        ready: list[Item] = list(routes.find_entries(query))
        done: list[int] = []
        ends = 0
        while ready:
            item = ready.pop(rng.randrange(len(ready)))
            parents = {edge.parent for edge in graph.stages[item[0]].parents}
            assert parents & expected <= set(done)
            done.append(item[0])
            ready += routes.release_children(item, lambda child, stage=item[0], flows=followed: flows[stage, child])
            ends += routes.complete_item(item)
        assert sorted(done) == sorted(expected)
        assert ends == 1


def test_shares_apply_where_no_condition_does() -> None:
    """A flow with a condition is open to every query; one with a share alone is drawn."""
    graph = Pipeline((Stage("in", (), ()), Stage("if", (Edge(0, 0.2, TEST),), ()), Stage("some", (Edge(0, 0.2),), ())))
    drawer, counts = RouteDrawer(graph, np.random.default_rng(1)), [0, 0, 0]
    for _ in range(2000):
        routes, query = drawer.draw_next()
        (entry,) = routes.find_entries(query)
        for child, _ in routes.release_children(entry):
            counts[child] += 1
    assert counts[1] == 2000
    assert 330 < counts[2] < 470
