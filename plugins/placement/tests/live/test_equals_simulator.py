"""Every policy on every backend: the placements of the simulator, and the same laws."""

from __future__ import annotations

import math

import pytest

from plugins.placement.tests.cases import policy, starts
from plugins.placement.tests.live.scenarios import cases
from plugins.placement.tests.live.stage import order, perform, placements, simulated
from plugins.placement.tests.live.worlds import Open
from unfold_placement.policies.registry import CLASSES
from unfold_placement.simulation.audit import find_violations
from unfold_placement.simulation.simulator import SimulationResult

SLOWER = (1, 2, 4)


@pytest.mark.parametrize("name", cases(1.0))
def test_a_policy_places_as_in_the_simulator(staged: Open, name: str) -> None:
    """The same scenario on a live cluster: the same nodes, the same order but for ties, every law, no starvation."""
    # what is compiled is compiled before a clock runs
    simulated(cases(1.0)[name])
    # a machine that cannot keep up sees what comes in another order; a policy that errs does so at every pace
    for factor in SLOWER:
        live, model, gap, stepped = played(staged, name, factor)
        if stepped or same(live, model, gap):
            break
    assert placements(live) == placements(model)
    assert order(live, gap) == order(model, gap)
    assert live.rejections.keys() == model.rejections.keys()
    late = [
        task for task, end in zip(live.tasks, live.end_s, strict=True) if math.isfinite(end) and end > task.deadline
    ]
    assert not late
    # a clock that waits for the cluster leaves nothing to chance
    assert not stepped or starts(live) == pytest.approx(starts(model))


def played(opened: Open, name: str, factor: int) -> tuple[SimulationResult, SimulationResult, float, bool]:
    """Play a scenario, slower where the clock does not wait for the cluster.

    Return it, its model, what is a tie, and whether the clock waits. Laws hold at any pace.
    """
    with opened(cases(1.0)[name].nodes) as world:
        pace = world.pace * factor
        scenario = cases(pace)[name]
        live = perform(world, scenario)
        assert list(find_violations(live, policy(**scenario.policy))) == []
        assert {item.name for item in world.handle().snapshot().names if item.until} == set()
        return live, simulated(scenario), 0.5 * pace, world.stepped


def same(live: SimulationResult, model: SimulationResult, gap: float) -> bool:
    """Return whether placements and order are those of the model."""
    return placements(live) == placements(model) and order(live, gap) == order(model, gap)


def test_every_policy_has_a_scenario() -> None:
    """No policy is left out of this suite."""
    parts = {key for scenario in cases(1.0).values() for key in scenario.policy}
    assert {name.replace("_", "-") for name in CLASSES} <= parts
