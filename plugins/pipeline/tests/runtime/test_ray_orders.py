"""Activation times of replicas on Ray Serve: each order counts from its own moment."""

from __future__ import annotations

import pytest

from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.problem.problem import PlacementPolicy
from unfold_pipeline.runtime import ray_serve
from unfold_pipeline.runtime.ray_serve import StageDeployment

SOURCE = ModelSource(code="models:any")


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the deployment."""
    clock = Clock()
    monkeypatch.setattr(ray_serve, "read_clock", clock)
    return clock


def build_stage(replicas: int) -> StageDeployment:
    stage = StageDeployment(
        name="a",
        app="a",
        source=SOURCE,
        max_batch=1,
        planned_batch=1,
        max_wait_s=0.0,
        target_replicas=replicas,
        gang_size=replicas,
        placement=PlacementPolicy(),
    )
    stage.update_replicas({f"r{index}" for index in range(replicas)})
    return stage


def order(stage: StageDeployment, target: int, now_s: float) -> None:
    stage.target_replicas = target
    stage.await_replicas(now_s)


def test_orders_on_top_of_each_other_are_measured_one_by_one(clock: Clock) -> None:
    """A replica that was ordered at 100 s and one of 103 s, serving at 106 and 108 s, took 6 and 5 s."""
    stage = build_stage(1)
    order(stage, 2, clock.now_s)
    clock.now_s = 103.0
    order(stage, 3, clock.now_s)
    clock.now_s = 106.0
    stage.update_replicas({"r0", "r1"})
    assert stage.activation.seconds == pytest.approx(6.0)
    clock.now_s = 108.0
    stage.update_replicas({"r0", "r1", "r2"})
    assert stage.activation.count == 2
    assert 5.0 < stage.activation.seconds < 6.0
    assert not stage.orders_s


def test_a_replica_that_is_awaited_for_longer_raises_the_estimate(clock: Clock) -> None:
    """Replicas that took 5 s, and one that does not serve after 12 s: a start takes at least 12 s now."""
    stage = build_stage(1)
    order(stage, 2, clock.now_s)
    clock.now_s = 105.0
    stage.update_replicas({"r0", "r1"})
    order(stage, 3, clock.now_s)
    clock.now_s = 107.0
    assert stage.activation_s == pytest.approx(5.0)
    clock.now_s = 117.0
    assert stage.activation_s == pytest.approx(12.0)
    order(stage, 2, clock.now_s)
    assert stage.activation_s == pytest.approx(5.0)


def test_an_order_that_is_withdrawn_is_not_measured(clock: Clock) -> None:
    """The latest orders are dropped when fewer replicas are wanted."""
    stage = build_stage(1)
    order(stage, 4, clock.now_s)
    clock.now_s = 101.0
    order(stage, 2, clock.now_s)
    clock.now_s = 104.0
    stage.update_replicas({"r0", "r1"})
    assert (stage.activation.count, stage.activation.seconds) == (1, pytest.approx(4.0))


def test_a_replica_that_dies_is_an_order(clock: Clock) -> None:
    """Ray starts another one, and its activation counts from the death."""
    stage = build_stage(2)
    clock.now_s = 110.0
    assert stage.update_replicas({"r1"}) == 1
    clock.now_s = 117.0
    assert stage.update_replicas({"r1", "r9"}) == 0
    assert stage.activation.seconds == pytest.approx(7.0)
