"""Conditions that let through another fraction of the queries than the plan assumes are found."""

from __future__ import annotations

import numpy as np
import pytest

from unfold_pipeline.flow_syntax import parse_condition
from unfold_pipeline.problem.branches import measure_branches
from unfold_pipeline.problem.pipeline import Edge, HardwareOption, Pipeline, Stage, interpolate_latency

CORE = (HardwareOption("core", 0.05, interpolate_latency([(1, 0.05)])),)
TEST = parse_condition('label == "car"')
GRAPH = Pipeline(
    (
        Stage("detect", (), CORE),
        Stage("plates", (Edge(0, 0.3, TEST),), CORE),
        Stage("area", (Edge(0, 0.5),), CORE),
        Stage("join", (Edge(1, 1.0, TEST), Edge(2, 1.0, TEST)), CORE),
    )
)
PLANNED = [1.0, 0.3, 0.5, 0.65]


def test_only_conditions_are_measured() -> None:
    """Stages without a condition follow the plan; before the first query there is nothing to measure."""
    assert measure_branches(GRAPH, PLANNED, [0, 0, 0, 0]) == ()
    plates, join = measure_branches(GRAPH, PLANNED, [1000, 600, 500, 900])
    assert (plates.stage, plates.planned, plates.measured, plates.items) == ("plates", 0.3, 0.6, 1000)
    assert (join.stage, join.planned, join.measured) == ("join", 0.65 / 0.8, 900 / 1100)
    assert (plates.deviates, join.deviates) == (True, False)


@pytest.mark.parametrize(("queries", "passed"), [(50, 30), (200, 70), (100_000, 30_500), (0, 0)])
def test_chance_and_small_differences_are_no_deviation(queries: int, passed: int) -> None:
    """Few queries, 3 sigma, or a tenth."""
    assert not any(branch.deviates for branch in measure_branches(GRAPH, PLANNED, [queries, passed, 0, 0])[:1])


def test_samples_of_the_plan_hardly_ever_deviate() -> None:
    """Queries that follow the plan deviate at 3 sigma: in less than one of a hundred services."""
    passed = np.random.default_rng(0).binomial(400, 0.3, 2000)
    found = [measure_branches(GRAPH, PLANNED, [400, int(count), 0, 0])[0].deviates for count in passed]
    assert np.mean(found) < 0.01
