"""Nodes that leave and come back under a controller, in process: gangs stay whole, resources are created again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from plugins.placement.tests.cases import cluster, job, policy
from plugins.placement.tests.live.worlds import LocalWorld, local_world
from unfold_placement.core.types import Task
from unfold_placement.live import backend as kinds
from unfold_placement.live.actuator import Actuator
from unfold_placement.live.control_loop import ControlLoop
from unfold_placement.policies.registry import build_policies

PARTS: dict[str, Any] = {"gang": {}, "anti-affinity": {"density": 4}}


def controller(world: LocalWorld, who: str = "me", **parts: Any) -> ControlLoop:
    """Return a controller that leads for long."""
    rules = policy(**(parts or PARTS))
    return ControlLoop(world.handle(), lambda: build_policies(rules), who, "spec", 1e6, 2e6)


def settle(live: ControlLoop) -> None:
    """Let a controller work until nothing changes."""
    for _ in range(12):
        live.step(0.0)


def gang_on_two_nodes() -> tuple[LocalWorld, ControlLoop]:
    """Return a cluster that a gang of eight fills, and its controller."""
    world = local_world(cluster(2))
    live = controller(world)
    for task in job("a", 8, run=1e5):
        world.submit(task)
    settle(live)
    return world, live


def run_to_end(world: LocalWorld, live: ControlLoop, tasks: Iterable[Task]) -> None:
    """Let tasks of less than 50 s run from the beginning to their end."""
    for task in tasks:
        world.submit(task)
    settle(live)
    world.clock.time = 50.0
    settle(live)


def running(world: LocalWorld) -> dict[str, int]:
    """Return how many tasks of each job run."""
    return dict(Counter(item.task.job for item in world.register.records.values() if item.state == kinds.RUNNING))


def test_a_controller_that_adopts_a_torn_gang_stops_the_rest_of_it() -> None:
    """Part of a gang is recorded as running on a node that has left: all of it waits again, and starts as a whole."""
    world = local_world(cluster(3))
    first = controller(world)
    for task in job("a", 6, run=1e5):
        world.submit(task)
    settle(first)
    assert running(world) == {"a": 6}
    lost = world.register.records["a-0"].node
    # as on Kubernetes, where the store forgets the node and the leader is to stop what ran there
    node = world.register.nodes.pop(lost)
    first.actuator = None
    settle(first)
    assert running(world) == {"a": 6}
    assert lost not in {item.node for item in world.register.records.values()}
    world.register.join(replace(node))
    settle(first)
    assert running(world) == {"a": 6}


def test_a_node_that_comes_back_gets_its_resources_again() -> None:
    """The resources of standing rules went with the node; they exist again before a task needs them there."""
    world, live = gang_on_two_nodes()
    node = world.register.nodes["n1"]
    world.register.leave("n1")
    settle(live)
    assert running(world) == {}
    world.register.join(node)
    settle(live)
    assert running(world) == {"a": 8}
    assert ("apart-job-a", "n1") in world.register.resources


def test_a_node_that_leaves_and_returns_between_two_looks_gets_its_resources_again() -> None:
    """Both changes in one batch: nothing is taken for granted that went with the node."""
    world, live = gang_on_two_nodes()
    node = world.register.nodes["n1"]
    world.register.leave("n1")
    world.register.join(node)
    settle(live)
    assert running(world) == {"a": 8}
    assert ("apart-job-a", "n1") in world.register.resources


def test_a_node_that_leaves_during_a_decision_costs_only_its_own_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resources for it are left out; the rest of the decision is carried out by the controller that made it."""
    world = local_world(cluster(3))
    live = controller(world)
    settle(live)
    adopted = live.actuator
    flush = Actuator.flush

    def leave_first(actuator: Actuator) -> None:
        if "n1" in world.register.nodes and actuator.actions:
            world.register.leave("n1")
        flush(actuator)

    monkeypatch.setattr(Actuator, "flush", leave_first)
    for task in job("a", 8, run=1e5):
        world.submit(task)
    errors = []
    for _ in range(12):
        live.step(0.0)
        errors.append(live.last_error)
    assert errors == [""] * 12
    assert live.actuator is adopted
    assert running(world) == {"a": 8}
    assert "n1" not in world.register.nodes


def test_gangs_that_ended_on_a_node_that_left_leave_nothing_to_the_next_controller() -> None:
    """Their slots are not created again: what ended there is replayed as having run."""
    world = local_world(cluster(2))
    live = controller(world)
    run_to_end(world, live, job("a", 8, run=10.0))
    assert {item.state for item in world.register.records.values()} == {kinds.DONE}
    world.register.leave("n1")
    second = controller(world, "you")
    live.stop()
    settle(second)
    assert second.last_error == ""
    assert not [name for name, _ in world.register.resources if name.startswith("gang-")]


def test_a_stage_that_ended_on_a_node_that_left_is_over_for_the_next_controller() -> None:
    """The stage behind it starts, although the new controller never saw the node."""
    world = local_world(cluster(2))
    live = controller(world, barrier={})
    run_to_end(world, live, job("map", 8, run=10.0))
    world.register.leave("n1")
    world.register.leave("n0")
    world.register.join(replace(cluster(1)[0], name="n9"))
    live.stop()
    second = controller(world, "you", barrier={})
    for task in job("reduce", 2, run=10.0, after=("map",)):
        world.submit(task)
    settle(second)
    assert running(world) == {"reduce": 2}


def test_replacements_of_a_withdrawn_gang_start() -> None:
    """A gang that waits loses its tasks and gets others, as a Job's pods are replaced: these start as the gang."""
    world = local_world(cluster(1))
    live = controller(world, gang={})
    for task in job("full", 4, run=1e5):
        world.submit(task)
    settle(live)
    for task in job("g", 4, run=1e5):
        world.submit(task)
    settle(live)
    for index in range(4):
        world.register.withdraw(f"g-{index}")
    settle(live)
    for task in job("g", 4, run=1e5):
        world.submit(replace(task, name=f"{task.name}-again"))
    settle(live)
    for index in range(4):
        world.register.end(f"full-{index}", 1)
    settle(live)
    assert running(world) == {"g": 4}


def test_tasks_wait_for_a_cluster_without_nodes() -> None:
    """No node is up, or none has a kind: tasks wait, of old and of new, and run as soon as a node has it."""
    world = local_world([])
    live = controller(world)
    for name in ("a", "b"):
        for task in job(name, 2, run=1e5):
            world.submit(task)
        settle(live)
        assert live.last_error == ""
    assert {item.state for item in world.register.records.values()} == {kinds.WAITING}
    world.register.join(replace(cluster(1)[0], capacity={"cpu": 8000}))
    settle(live)
    assert {item.state for item in world.register.records.values()} == {kinds.WAITING}
    world.register.join(replace(cluster(1)[0], name="n9"))
    settle(live)
    assert running(world) == {"a": 2, "b": 2}


@pytest.mark.parametrize("seed", range(6))
def test_random_churn_and_crashes_leave_no_part_of_a_gang(seed: int) -> None:
    """Nodes go and come, controllers are replaced at any moment: whenever it is quiet every gang is whole or waits."""
    rng = np.random.default_rng(seed)
    world = local_world(cluster(4))
    away: dict[str, Any] = {}
    live = controller(world, "c0")
    for index, size in enumerate((6, 5, 3, 7)):
        for task in job(f"g{index}", size, run=1e5, user=f"u{index}"):
            world.submit(task)
    for _ in range(25):
        name = f"n{rng.integers(4)}"
        if name in away:
            world.register.join(away.pop(name))
        elif rng.random() < 0.5:
            # as a store that only forgets the node
            with world.register.changed:
                away[name] = world.register.nodes.pop(name)
                world.register.record_change(kinds.LEFT, node=name)
        else:
            away[name] = world.register.nodes[name]
            world.register.leave(name)
        if rng.random() < 0.3:
            live.actuator = None
        if rng.random() < 0.5:
            live.step(0.0)
            continue
        settle(live)
        assert live.last_error == ""
        sizes = {f"g{index}": size for index, size in enumerate((6, 5, 3, 7))}
        assert all(count == sizes[name] for name, count in running(world).items()), running(world)
        nodes = {item.node for item in world.register.records.values() if item.state == kinds.RUNNING}
        assert not nodes & away.keys()
    for name in list(away):
        world.register.join(away.pop(name))
    settle(live)
    assert sum(running(world).values()) >= 13
    names = {name for name, _ in world.register.resources}
    assert {name for name in names if name.startswith("gang-")} == {f"gang-{job_name}-" for job_name in running(world)}
