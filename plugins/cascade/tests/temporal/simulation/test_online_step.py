"""Entities advanced hour by hour follow the simulated trajectories."""

from __future__ import annotations

import numpy as np
import pytest

from plugins.cascade.tests.temporal.simulation.worlds import (
    SEEDS,
    World,
    draw_world,
)
from unfold_cascade.temporal.simulation.online_step import (
    advance_hour,
    build_online_stages,
    buy_feature_sets,
    is_call_free,
    new_case_state,
    no_purchases,
)


@pytest.fixture(params=SEEDS)
def world(request: pytest.FixtureRequest) -> World:
    return draw_world(request.param)


def test_online_steps_equal_the_simulation(world: World) -> None:
    """Advanced hour by hour, all entities in one batch, stages, calls and purchases equal the simulation's."""
    timeline, scores = world.timeline, world.scores
    expected, stages = world.simulate_reference(), build_online_stages(world.policy)
    states = [new_case_state(len(stages)) for _ in timeline.starts[:-1]]
    purchased_at = [no_purchases(scores.purchase) for _ in states]
    calls, purchases = np.zeros_like(expected.calls), np.zeros_like(expected.purchases)
    for offset in range(int(np.diff(timeline.starts).max())):
        active = np.flatnonzero(timeline.starts[:-1] + offset < timeline.starts[1:])
        rows = timeline.starts[active] + offset
        step = advance_hour(
            stages,
            world.transitions,
            [states[entity] for entity in active],
            lambda model, batch, _, rows=rows: scores.p[model, rows[list(batch)]].tolist(),
            lambda i, model, evaluated, active=active, rows=rows: is_call_free(
                scores.needs, model, evaluated, float(timeline.hour[rows[i]]), scores.purchase, purchased_at[active[i]]
            ),
        )
        assert step.stages == expected.stage[rows].tolist()
        for entity, row, entity_calls in zip(active, rows, step.calls, strict=True):
            for call in entity_calls:
                calls[entity, call.model] += 1
                needs, hour = int(scores.needs[call.model]), float(timeline.hour[row])
                purchases[entity, buy_feature_sets(needs, hour, scores.purchase, purchased_at[entity])] += 1
    np.testing.assert_array_equal(calls, expected.calls)
    np.testing.assert_array_equal(purchases, expected.purchases)
