"""Every policy on every backend: the placements of the simulator, and the same laws."""

from __future__ import annotations

import math

import pytest

from plugins.placement.tests.cases import policy
from plugins.placement.tests.live.scenarios import cases
from plugins.placement.tests.live.stage import order, perform, placements, simulated
from plugins.placement.tests.live.worlds import Open
from unfold_placement.laws import audit
from unfold_placement.options import CLASSES


@pytest.mark.parametrize("name", cases(1.0))
def test_a_policy_places_as_in_the_simulator(opened: Open, name: str) -> None:
    """The same object on a live cluster: the same nodes, the same order but for ties, every law, nobody starved."""
    with opened(cases(1.0)[name].nodes) as world:
        scenario = cases(world.pace)[name]
        live, model = perform(world, scenario), simulated(scenario)
        assert list(audit(live, policy(**scenario.policy))) == []
        assert placements(live) == placements(model)
        assert order(live, 0.5 * world.pace) == order(model, 0.5 * world.pace)
        assert live.refused.keys() == model.refused.keys()
        late = [
            task for task, end in zip(live.tasks, live.end, strict=True) if math.isfinite(end) and end > task.deadline
        ]
        assert not late
        handle = world.handle()
        assert {item.name for item in handle.snapshot().names if item.until} == set()


def test_every_policy_has_a_scenario() -> None:
    """No policy is left out of this suite."""
    parts = {key for scenario in cases(1.0).values() for key in scenario.policy}
    assert {name.replace("_", "-") for name in CLASSES} <= parts
