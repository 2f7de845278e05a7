"""No task that can run waits for ever, and none that cannot run blocks another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from plugins.placement.tests.cases import cluster, job, policy, run, starts
from unfold_placement.core.types import DOWN, UP, Node, NodeChange, Task
from unfold_placement.policies.registry import build_policies
from unfold_placement.simulation.audit import find_violations
from unfold_placement.simulation.simulator import prepare_simulation, run_simulation, simulate

ROUNDS = 20
GANG: dict[str, Any] = {"gang": {}}
ORDERS: dict[str, dict[str, Any]] = {
    "fifo": {"fifo": {}},
    "drf": {"drf": {}},
    "drf-backfill": {"drf": {"backfill": True}},
    "hierarchy": {"hierarchy": {}},
    "hierarchy-backfill": {"hierarchy": {"backfill": True}},
    "wfq": {"wfq": {}},
    "wfq-backfill": {"wfq": {"backfill": True}},
    "history": {"history": {}},
    "history-backfill": {"history": {"backfill": True}},
    "priority": {"priority": {}},
    "priority-backfill": {"priority": {"backfill": True}},
    "edf": {"edf": {"admit": False}},
    "edf-backfill": {"edf": {"admit": False, "backfill": True}},
    "quota": {"quota": {"quotas": {"a": 2, "b": 2, "0": 4, "z": 4}}},
}


def stream(user: str, rounds: int = ROUNDS) -> list[Task]:
    """Return tasks of one GPU that overlap, so that one runs at every time."""
    return [task for index in range(rounds) for task in job(f"s{index}", 1, run=90, at=60.0 * index, user=user)]


@pytest.mark.parametrize("user", ["0", "z"])
@pytest.mark.parametrize("extra", [{}, {"value": {}}, {"pack": {"fallback": ["any after 1 s"]}}])
@pytest.mark.parametrize("order", ORDERS)
def test_a_gang_starts_before_the_stream_of_small_tasks_ends(order: str, extra: dict[str, Any], user: str) -> None:
    """A gang as large as the cluster starts within three rounds, whether its user's name sorts first or last."""
    tasks = [*stream("a"), *job("g", 4, run=600, at=30, user=user)]
    found = starts(simulate(cluster(2, 2), tasks, build_policies(policy(**ORDERS[order], **GANG, **extra))))
    assert found["g-0"] <= 60 * 4


@pytest.mark.parametrize("user", ["0", "z"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_large_task_starts_before_the_stream_of_small_tasks_ends(order: str, user: str) -> None:
    """The same holds for a single task that needs a whole node."""
    tasks = [*stream("a"), *job("g", 1, run=600, at=30, user=user, demand={"gpu": 2000})]
    found = starts(simulate(cluster(1, 2), tasks, build_policies(policy(**ORDERS[order]))))
    assert found["g-0"] <= 60 * 4


@pytest.mark.parametrize("gang", [{}, GANG])
@pytest.mark.parametrize("user", ["0", "a", "z"])
@pytest.mark.parametrize("order", [*ORDERS, "none"])
def test_an_impossible_task_blocks_no_other(order: str, user: str, gang: dict[str, Any]) -> None:
    """A task larger than any node, first in the queue and in rank, is passed by its own user and by others."""
    first = {"priority": 9, "deadline": 50.0}
    impossible = job("i", 1, user=user, demand={"gpu": 3000}, **first)
    tasks = [*impossible, *job("s", 1, at=1, user="a"), *job("t", 1, at=1, user="b"), *job("g", 4, at=2, user="b")]
    tasks = [replace(task, deadline=min(task.deadline, 900.0)) for task in tasks]
    found = starts(simulate(cluster(2, 2), tasks, build_policies(policy(**ORDERS.get(order, {}), **gang))))
    assert (found["s-0"], found["t-0"]) == (1.0, 1.0)
    assert found["g-0"] <= 11.0


@pytest.mark.parametrize("order", [name for name in ORDERS if name != "quota"])
def test_a_gang_larger_than_the_cluster_or_its_limit_blocks_no_other(order: str) -> None:
    """A gang of six tasks on four GPUs, and one of three tasks with two licences, are set aside."""
    for extra, count in (({}, 6), ({"limit": {"most": 2, "by": "user"}}, 3)):
        tasks = [*job("i", count, user="z", priority=9, deadline=50.0), *job("s", 1, at=1, user="a", deadline=900.0)]
        found = starts(simulate(cluster(2, 2), tasks, build_policies(policy(**ORDERS[order], **GANG, **extra))))
        assert found["s-0"] == 1.0


def test_a_task_without_quota_does_not_block_its_team() -> None:
    """Where nothing is lent, a task above its team's whole quota is set aside with the reason."""
    tasks = [*job("i", 1, user="a", demand={"gpu": 2000}), *job("s", 1, at=1, user="a")]
    loop = prepare_simulation(cluster(1, 2), tasks, build_policies(policy(quota={"quotas": {"a": 1}, "borrow": False})))
    run_simulation(loop)
    (quota,) = loop.policies
    wait = quota.describe_wait(tasks[0], loop.view)  # type: ignore[attr-defined]
    assert loop.table.state.start_s[1] == 1.0
    assert wait.reason == "set aside: it demands 2 gpu, and the quota of a is 1"


@pytest.mark.parametrize("order", ORDERS)
def test_a_task_that_was_set_aside_runs_when_a_larger_node_joins(order: str) -> None:
    """What was impossible is looked at again when the nodes change."""
    nodes = [*cluster(1, 2), replace(cluster(1, 4)[0], name="big")]
    tasks = [*job("i", 1, user="a", demand={"gpu": 3000}, run=5), *job("s", 1, at=1, user="b")]
    loop = prepare_simulation(nodes, tasks, build_policies(policy(**ORDERS[order])))
    loop.begin()
    loop.set_node_up("big", is_up=False)
    run_simulation(loop, until=20.0)
    assert loop.table.state.start_s[1] == 1.0
    loop.set_node_up("big", is_up=True)
    run_simulation(loop)
    assert loop.table.state.start_s[0] == 20.0


@pytest.mark.parametrize("order", [*ORDERS])
def test_a_used_up_limit_blocks_its_own_group_only(order: str) -> None:
    """A task that lacks its user's licence is passed by another user's, whatever the order."""
    tasks = [
        *job("a", 1, user="a", run=50), *job("b", 1, at=1, user="a", priority=5, deadline=99.0),
        *job("c", 1, at=2, user="b", deadline=900.0),
    ]  # fmt: skip
    rules = policy(**ORDERS[order], limit={"most": 1, "by": "user"})
    assert starts(simulate(cluster(2, 2), tasks, build_policies(rules)))["c-0"] == 2.0


def test_a_borrowing_gang_is_stopped_a_few_times_at_most() -> None:
    """A team's gang above its quota is preempted three times at most, then it runs to its end."""
    quotas = {"quotas": {"a": 1, "b": 1, "z": 2}}
    tasks = [
        *(task for index in range(30) for task in job(f"s{index}", 1, run=10, at=60.0 * index, user="a")),
        *job("g", 4, run=200, at=30, user="z"),
    ]
    found = simulate(cluster(2, 2), tasks, build_policies(policy(quota=quotas, gang={})))
    stops = sum(
        kind == 3 and found.tasks[row].job == "g" for kind, row in zip(found.log.kinds, found.log.tasks, strict=True)
    )
    assert (stops, starts(found)["g-0"] < 60 * 10) == (12, True)


def test_a_lower_class_does_not_take_the_room_of_a_victim_that_is_not_queued_again_yet() -> None:
    """A victim that still fits nowhere keeps its place ahead of the lower class, which waits behind it."""
    gpus = {"low": 1000, "middle": 2000, "high": 1000, "higher": 1000}
    arrival = {"low": 0.0, "middle": 0.0, "high": 1.0, "higher": 1.0}
    level = {"low": 0, "middle": 1, "high": 2, "higher": 2}
    tasks = [Task(name, {"gpu": gpus[name]}, 10.0, arrival[name], name, priority=level[name]) for name in gpus]
    found = run([Node("big", {"gpu": 2000}), Node("small", {"gpu": 1000})], tasks, priority={})
    assert starts(found) == {"high": 1.0, "higher": 1.0, "middle": 11.0, "low": 11.0}


def test_a_class_that_no_node_can_hold_now_blocks_no_lower_one() -> None:
    """While the only node that is large enough is down, others run, and the audit agrees."""
    nodes = [Node("large", {"gpu": 4000}), Node("small", {"gpu": 1000})]
    tasks = [Task("high", {"gpu": 4000}, 10.0, 2.0, "high", priority=1), Task("low", {"gpu": 1000}, 10.0, 3.0, "low")]
    spec = policy(priority={})
    changes = [NodeChange(1.0, "large", DOWN), NodeChange(50.0, "large", UP)]
    found = simulate(nodes, tasks, build_policies(spec), changes)
    assert starts(found) == {"high": 50.0, "low": 3.0}
    assert not list(find_violations(found, spec))


def test_an_impossible_task_of_a_higher_class_takes_no_reservation() -> None:
    """The node stays reserved for the task that can run; a smaller one that arrives later does not delay it."""
    small, late = job("small", 1, run=30), job("late", 1, run=50, at=25)
    large = job("large", 1, run=10, at=10, demand={"gpu": 2000}, priority=1)
    huge = job("huge", 1, run=10, at=20, demand={"gpu": 8000}, priority=2)
    rules = policy(priority={"preempt": False, "backfill": True})
    found = starts(simulate(cluster(1, 2), [*small, *large, *huge, *late], build_policies(rules)))
    assert (found["large-0"], found["late-0"]) == (30.0, 40.0)


@pytest.mark.parametrize("gang", [{}, GANG])
@pytest.mark.parametrize("order", ORDERS)
def test_a_task_that_waits_for_its_own_rule_blocks_no_other(order: str, gang: dict[str, Any]) -> None:
    """Anti-affinity keeps the second task from the only node as long as the first runs: no node drains for it."""
    tasks = [*job("a", 2, run=1000), *job("b", 3, at=5)]
    tasks = [replace(task, size=1, job=task.name, role=task.job) for task in tasks]
    found = starts(run(cluster(1, 4), tasks, **ORDERS[order], **gang, **{"anti-affinity": {"by": "role"}}))
    assert (found["a-0"], found["a-1"]) == (0.0, 1000.0)
    assert [found[f"b-{index}"] for index in range(3)] == [5.0, 15.0, 25.0]


def test_a_large_task_with_a_rule_of_its_own_is_not_starved() -> None:
    """It may run on the node by its rule and lacks room alone, so the node drains for it."""
    large = job("g", 1, run=600, at=30, demand={"gpu": 2000}, role="g")
    tasks = [replace(task, size=1) for task in [*stream("a"), *large]]
    rules = policy(fifo={}, **{"anti-affinity": {"density": 2}})
    assert starts(simulate(cluster(1, 2), tasks, build_policies(rules)))["g-0"] <= 60 * 4
