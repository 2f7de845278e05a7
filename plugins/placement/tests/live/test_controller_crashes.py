"""A controller that dies at any moment: the next one adopts what there is, and nothing leaks, in virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.placement.tests.cases import cluster, job, policy
from plugins.placement.tests.live.scenarios import Scenario, cases
from plugins.placement.tests.live.stage import Stage, outcome
from plugins.placement.tests.live.worlds import LocalWorld, local_world
from unfold_placement.core.types import EphemeralResource
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Start
from unfold_placement.live.control_loop import ControlLoop
from unfold_placement.live.local import LocalBackend
from unfold_placement.policies.registry import build_policies
from unfold_placement.simulation.audit import find_violations

LEASE = 15.0


class Death(BaseException):
    """The process is gone."""


@dataclass(slots=True)
class Mortal(LocalBackend):
    """A handle with a process that dies before its ``left``-th write, or just after it."""

    left: int = 0
    after: bool = False

    def create(self, *args: Any, **kwargs: Any) -> EphemeralResource:
        return self._write(LocalBackend.create, *args, **kwargs)

    def resize(self, *args: Any, **kwargs: Any) -> EphemeralResource:
        return self._write(LocalBackend.resize, *args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        return self._write(LocalBackend.delete, *args, **kwargs)

    def start(self, unit: Sequence[Start]) -> None:
        self._write(LocalBackend.start, unit)

    def preempt(self, task: str) -> None:
        self._write(LocalBackend.preempt, task)

    def _write(self, action: Any, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Death
        found = action(self, *args, **kwargs)
        if self.left == 0:
            raise Death
        return found


def begin(world: LocalWorld, scenario: Scenario, handle: LocalBackend, who: str) -> Stage:
    """Return a scenario with a controller on a handle."""
    live = ControlLoop(handle, lambda: build_policies(policy(**scenario.policy)), who, "spec", LEASE / 3, LEASE)
    return Stage(world, scenario, live, sorted(scenario.tasks, key=lambda task: task.arrival), 0.0)


def survive(scenario: Scenario, deaths: Sequence[int], *, after: bool) -> LocalWorld:
    """Play a scenario with a controller that dies again and again, and hold the laws."""
    world = local_world(scenario.nodes)
    played = begin(world, scenario, Mortal(world.register, world.first.end_times, left=deaths[0], after=after), "c0")
    for number, left in enumerate([*deaths[1:], 0], 1):
        try:
            played.finish()
            break
        except Death:
            # whoever comes next may lead as the dead one's lease ends; clients go on meanwhile
            world.clock.time += LEASE / 3 + 0.01
            played.come()
            handle = Mortal(world.register, world.first.end_times, left=left, after=after)
            played.live = begin(world, scenario, handle, f"c{number}").live
    played.finish()
    changes = world.register.watch(0, 0.0) or ()
    assert list(find_violations(outcome(scenario, changes, 0.0), policy(**scenario.policy))) == []
    return world


# properties of time and of position may fail while no controller runs
LASTING = [name for name in cases(1.0) if name not in {"edf", "locality", "value", "affinity", "servers"}]


@pytest.mark.parametrize("name", LASTING)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.booleans())
@settings(max_examples=15, deadline=None)
def test_every_task_ends_whenever_its_controller_dies(name: str, deaths: list[int], after: bool) -> None:
    """Killed before or after any write, again and again: every law holds, every task ends, and the last adopts all."""
    scenario = cases(1.0)[name]
    world = survive(scenario, deaths, after=after)
    states = {record.state for record in world.register.records.values()}
    assert states == {kinds.DONE}


def test_resources_of_a_dead_controller_expire() -> None:
    """Without a successor its resources disappear when its lease ends, and nothing else does."""
    scenario = cases(1.0)["anti-affinity"]
    world = local_world(scenario.nodes)
    played = begin(world, scenario, LocalBackend(world.register, world.first.end_times), "c0")
    world.handle().create("other", "n0", owner="somebody")
    played.come()
    for _ in range(3):
        played.live.step(0.0)
    assert len(world.register.snapshot().names) > 1
    world.clock.time += LEASE + 0.01
    assert [item.name for item in world.register.snapshot().names] == ["other"]


def test_one_of_two_controllers_leads() -> None:
    """The second waits while the first leads, adopts when its lease ends, and the first is ignored from then on."""
    scenario = Scenario(job("a", 4, run=60), {"gang": {}, "limit": {"most": 4}}, cluster(2))
    world = local_world(scenario.nodes)
    first, second = (
        begin(world, scenario, LocalBackend(world.register, world.first.end_times), who) for who in ("c0", "c1")
    )
    first.come()
    for _ in range(3):
        assert first.live.step(0.0)
        assert not second.live.step(0.0)
    world.clock.time += LEASE / 3 + 0.01
    assert second.live.step(0.0)
    assert not first.live.step(0.0)
    assert first.live.actuator is None
    running = [record for record in world.register.records.values() if record.state == kinds.RUNNING]
    assert len(running) == 4
    assert {record.attempt for record in running} == {1}
    assert second.live.actuator is not None
    assert len(second.live.actuator.controller.view.running()) == 4


@pytest.mark.parametrize("state", ["running", "done"])
def test_a_task_that_started_before_it_came_is_adopted(state: str) -> None:
    """The clock of the server says when a pod came, that of a controller when it started: they differ."""
    world = local_world(cluster(2))
    world.clock.time = 100.0
    world.submit(job("a", 1, run=50)[0])
    first = ControlLoop(world.handle(), lambda: build_policies(policy(gang={})), "one", "spec", LEASE, LEASE)
    first.step(0.0)
    record = world.register.records["a-0"]
    ended = 97.0 if state == "done" else record.ended
    world.register.records["a-0"] = replace(record, state=state, started=98.0, ended=ended)
    second = ControlLoop(world.handle(), lambda: build_policies(policy(gang={})), "two", "spec", LEASE, LEASE)
    world.clock.time += 2 * LEASE
    assert second.step(0.0)
    assert second.last_error == ""
    assert second.actuator is not None
    assert len(second.actuator.controller.view.running()) == (state == "running")


def test_a_clock_that_is_late_or_set_back_delays_no_election() -> None:
    """A controller leads by a clock that shows a time before the cluster's first, and renews when it is set back."""
    world = local_world(cluster(1))
    world.clock.time = -3600.0
    live = ControlLoop(world.handle(), lambda: build_policies(policy(gang={})), "one", "spec", LEASE, LEASE)
    assert live.step(0.0)
    until = world.register.leads_until
    world.clock.time -= 60.0
    live.step(0.0)
    assert world.register.leads_until == until - 60.0


def test_a_stopped_controller_hands_over_at_once() -> None:
    """Drained: names and tasks stay, the lead is free without waiting for the lease."""
    scenario = Scenario(job("a", 4, run=60), {"anti-affinity": {"density": 2}}, cluster(2))
    world = local_world(scenario.nodes)
    first, second = (
        begin(world, scenario, LocalBackend(world.register, world.first.end_times), who) for who in ("c0", "c1")
    )
    first.come()
    for _ in range(3):
        first.live.step(0.0)
    names = world.register.snapshot().names
    first.live.stop()
    assert second.live.step(0.0)
    assert world.register.snapshot().names == names


def test_tasks_of_a_node_that_leaves_run_elsewhere() -> None:
    """What ran there waits and runs again on another node; a node that comes is used."""
    scenario = Scenario(job("a", 6, run=10), {"wfq": {}}, cluster(2))
    world = local_world(scenario.nodes)
    played = begin(world, scenario, LocalBackend(world.register, world.first.end_times), "c0")
    played.come()
    for _ in range(3):
        played.live.step(0.0)
    world.register.leave("n0")
    world.register.join(cluster(3)[2])
    played.finish()
    done = world.register.records.values()
    assert {record.state for record in done} == {kinds.DONE}
    assert {record.node for record in done} <= {"n1", "n2"}
