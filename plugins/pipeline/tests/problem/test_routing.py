"""Routes that are drawn ahead equal those of one sample."""

from __future__ import annotations

import numpy as np
import pytest

from unfold_pipeline.problem import routing
from unfold_pipeline.problem.pipeline import Edge, HardwareOption, Pipeline, Stage, interpolate_latency
from unfold_pipeline.problem.routing import ROUTES_PER_DRAW, RouteDrawer
from unfold_pipeline.problem.sample import draw_sample

CPU = HardwareOption("core", 0.05, interpolate_latency([(1, 0.05)]))
FORK = Pipeline((Stage("in", (), (CPU,)), Stage("out", (Edge(0, 0.3),), (CPU,), fan_out=2.5)))


def test_routes_drawn_ahead_equal_those_of_one_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries that arrive one by one follow the routes of one large sample, which is drawn rarely."""
    drawn: list[int] = []

    def counted(*given: object) -> object:
        drawn.append(1)
        return draw_sample(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(routing, "draw_sample", counted)
    ways, rng = RouteDrawer(FORK, np.random.default_rng(7)), np.random.default_rng(7)
    for _ in range(2):
        visits = draw_sample(FORK, np.zeros(ROUTES_PER_DRAW), rng).visits
        for number in range(ROUTES_PER_DRAW):
            way, place = ways.draw_next()
            entry = next(way.find_entries(place))
            assert len(list(way.release_children(entry))) == int((visits[1].query == number).sum())
    assert len(drawn) == 2
