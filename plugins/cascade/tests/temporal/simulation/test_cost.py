"""Costs are linear in calls and purchases."""

from __future__ import annotations

import numpy as np
import pytest

from plugins.cascade.tests.temporal.simulation.worlds import (
    SEEDS,
    World,
    draw_world,
)
from unfold_cascade.temporal.simulation.cost import CallCosts, compute_bill, sum_costs


@pytest.fixture(params=SEEDS)
def world(request: pytest.FixtureRequest) -> World:
    return draw_world(request.param)


@pytest.mark.e2e
def test_bill_is_the_sum_of_calls_and_purchases(world: World) -> None:
    """The bill is the mean over hours of calls times their cost and purchases times their price."""
    scores, trajectories = world.scores, world.simulate()
    rates = CallCosts(*(np.random.default_rng(k).random(len(scores.p)) for k in range(4)))
    paid = sum(rates.price[m] * trajectories.calls[:, m].sum() for m in range(len(scores.p)))
    paid += sum(
        scores.purchase.price[g] * trajectories.purchases[:, g].sum() for g in range(len(scores.purchase.price))
    )
    assert sum_costs(trajectories, scores, rates, "price").sum() == pytest.approx(paid)
    assert compute_bill(trajectories, scores, rates)["price"] * len(trajectories.stage) == pytest.approx(paid)
    assert compute_bill(trajectories, scores, rates)["flops"] * len(trajectories.stage) == pytest.approx(
        float(trajectories.calls.sum(axis=0) @ rates.flops)
    )
