"""Ways that are drawn ahead are those of one sample."""

from __future__ import annotations

import numpy as np
import pytest

from unfold_pipeline.problem import routing
from unfold_pipeline.problem.pipeline import Edge, Option, Pipeline, Stage, table
from unfold_pipeline.problem.routing import AHEAD, Ways
from unfold_pipeline.problem.sample import draw

CPU = Option("core", 0.05, table([(1, 0.05)]))
FORK = Pipeline((Stage("in", (), (CPU,)), Stage("out", (Edge(0, 0.3),), (CPU,), fan_out=2.5)))


def test_ways_are_those_of_samples_drawn_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries that come one by one go the ways of one sample of hundreds, and so seldom is one drawn."""
    drawn: list[int] = []

    def counted(*given: object) -> object:
        drawn.append(1)
        return draw(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(routing, "draw", counted)
    ways, rng = Ways(FORK, np.random.default_rng(7)), np.random.default_rng(7)
    for _ in range(2):
        visits = draw(FORK, np.zeros(AHEAD), rng).visits
        for number in range(AHEAD):
            way, place = ways.next()
            entry = next(way.entries(place))
            assert len(list(way.after(entry))) == int((visits[1].owner == number).sum())
    assert len(drawn) == 2
