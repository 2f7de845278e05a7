"""What policies promise where tasks are stopped, start together, differ by node, or share a tree."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from plugins.placement.tests.cases import cluster, job, places, policy, run, some_tasks, starts
from unfold_placement.core import kernel
from unfold_placement.core.types import Node, Task
from unfold_placement.live.recovery import end_task
from unfold_placement.policies.fairness.fair_share import Drf
from unfold_placement.policies.registry import build_policies
from unfold_placement.simulation.deadlock_check import find_counterexample
from unfold_placement.simulation.simulator import SimulationResult, collect_result, prepare_simulation, run_simulation


def stopped(found: SimulationResult) -> Counter[str]:
    """How often the tasks of each job were preempted."""
    rows = found.log.tasks[found.log.kinds == kernel.LOG_PREEMPTED]
    return Counter(found.tasks[row].job for row in rows)


@pytest.mark.e2e
@pytest.mark.parametrize("order", [{"priority": {}}, {"quota": {"quotas": {"y": 1}}}])
def test_a_preempted_task_runs_near_its_data_again(order: dict[str, Any]) -> None:
    """Whoever makes room waits for a node with its data anew, not for ever."""
    nodes = [Node("n0", {"gpu": 1000}, data=frozenset({"d"})), Node("n1", {"cpu": 1000})]
    tasks = [*job("x", 1, run=100, data=("d",)), *job("y", 1, at=5, priority=5)]
    found = run(nodes, tasks, locality={}, **order)
    assert starts(found) == {"x-0": 15.0, "y-0": 5.0}


def test_a_task_of_a_lost_node_runs_near_its_data_again() -> None:
    """Where a node with its data goes, the task starts on another that has them."""
    nodes = [Node(f"n{index}", {"gpu": 1000}, data=frozenset({"d"})) for index in range(2)]
    loop = run_simulation(
        prepare_simulation(nodes, job("x", 1, run=100, data=("d",)), build_policies(policy(locality={}))), until=10.0
    )
    loop.set_node_up("n0", is_up=False)
    found = collect_result(run_simulation(loop))
    assert (starts(found), places(found)) == ({"x-0": 10.0}, {"x-0": "n1"})


@given(st.integers(0, 10_000))
@example(6)
@settings(max_examples=30, deadline=None)
def test_gangs_start_with_policies_that_watch_starts(seed: int) -> None:
    """Whole gangs start, though each start is reported to another policy, which may open the next gang."""
    tasks = [
        replace(task, avoids=f"j{(int(task.job[1:]) + 1) % 8}" if int(task.job[1:]) % 2 else "")
        for task in some_tasks(seed)
    ]
    assert not run(cluster(3), tasks, avoid={}, gang={"patience": "4 s"}).stuck


@pytest.mark.e2e
@pytest.mark.parametrize("more", [{}, {"priority": {}}, {"drf": {}}])
def test_value_places_every_task_of_a_gang(more: dict[str, Any]) -> None:
    """Two tasks that start together are not both promised the one GPU on which either would end first."""
    nodes = [Node("n0", {"gpu": 1000}), Node("n1", {"gpu": 2000})]
    spec = policy(value={}, gang={}, **more)
    assert find_counterexample(nodes, job("a", 2), lambda: build_policies(spec)) is None
    assert set(starts(run(nodes, job("a", 2), value={}, gang={}, **more)).values()) == {0.0}


@pytest.mark.e2e
@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_gangs_under_value_never_wait_forever(seed: int) -> None:
    """Places that were chosen for a gang which another passed are chosen anew."""
    nodes = [replace(node, labels={"type": "ab"[place % 2]}) for place, node in enumerate(cluster(3))]
    tasks = [replace(task, run_on={"a": task.run / 2}) for task in some_tasks(seed)]
    assert not run(nodes, tasks, value={}, gang={"patience": f"{seed % 9} s"}).stuck


def test_gangs_are_grouped_by_job() -> None:
    """A task knows how many its job has, so that nothing else can be gathered by."""
    with pytest.raises(ValidationError, match="'job'"):
        policy(gang={"by": "user"})


def test_deadlines_are_tested_with_the_run_times_of_node_types() -> None:
    """What is on time only on a fast node is admitted; what runs on a slow one counts for as long as it takes there."""
    quick = Task("x", {"gpu": 1000}, 10.0, job="x", run_on={"fast": 5.0}, deadline=8.0)
    assert starts(run([Node("n", {"gpu": 1000}, {"type": "fast"})], [quick], edf={})) == {"x": 0.0}
    slow = Task("x", {"gpu": 1000}, 10.0, job="x", run_on={"slow": 20.0}, deadline=100.0)
    late = Task("y", {"gpu": 1000}, 10.0, 1.0, "y", deadline=25.0)
    assert set(run([Node("n", {"gpu": 1000}, {"type": "slow"})], [slow, late], edf={}).rejections) == {"y"}


def test_only_tasks_in_the_way_are_preempted() -> None:
    """A lower class on a node that is of no use to the urgent task goes on."""
    tasks = [
        *job("keep", 1, run=100, priority=9, demand={"gpu": 2000}),
        *job("low", 1, run=100, at=1, priority=1, demand={"gpu": 4000}),
        *job("lowest", 1, run=100, at=2, demand={"gpu": 2000}),
        *job("high", 1, at=5, priority=5, demand={"gpu": 4000}),
    ]
    found = run(cluster(2), tasks, priority={})
    assert starts(found)["high-0"] == 5.0
    assert stopped(found) == {"low": 1}


def test_no_more_is_reclaimed_than_was_borrowed() -> None:
    """A team that has one GPU more than it is owed gives one at most, however much another is owed."""
    found = run(cluster(2), [*job("b", 8, run=100), *job("a", 4, at=5)], quota={"quotas": {"a": 4, "b": 7}})
    assert stopped(found) == {"b": 1}
    whole = [*job("b", 8, run=100), *job("a", 1, at=5, demand={"gpu": 4000})]
    assert not stopped(run(cluster(2), whole, quota={"quotas": {"a": 4, "b": 7}}))


def test_a_team_within_quota_waits_for_no_other_team() -> None:
    """Where a team's task has no room, another within its quota still starts, and still takes back what was lent."""
    quotas = {"quotas": {"a": 8, "b": 1, "c": 9}}
    held = [*job("c", 1, run=100, demand={"gpu": 3000}), *job("c6", 1, run=100, user="c", demand={"gpu": 6000})]
    tasks = [*held, *job("a", 1, at=1, demand={"gpu": 8000}), *job("b", 1, at=2)]
    assert starts(run(cluster(2, gpu=8), tasks, quota=quotas))["b-0"] == 2.0
    assert starts(run(cluster(2, gpu=8), tasks, quota={**quotas, "backfill": False}))["b-0"] == 100.0
    lent = job("d", 7, run=50, at=0.5)
    found = run(cluster(2, gpu=8), [*tasks, *lent], quota=quotas)
    assert (starts(found)["b-0"], stopped(found)) == (2.0, {"d": 1})


ORDERS: list[dict[str, Any]] = [
    {"priority": {}}, {"drf": {}}, {"wfq": {}}, {"hierarchy": {}}, {"history": {}}, {"edf": {}},
    {"edf": {"backfill": True}}, {"quota": {"quotas": {"u": 9, "v": 9}}},
]  # fmt: skip


@pytest.mark.parametrize("gang", [{}, {"gang": {}}])
@pytest.mark.parametrize("order", ORDERS)
def test_a_task_behind_a_barrier_blocks_no_other_task(order: dict[str, Any], gang: dict[str, Any]) -> None:
    """A task that waits for the end of others is passed by them, first as it may be, and starts as soon as they end."""
    first = {"priority": 9, "deadline": 200.0}
    tasks = [
        *job("late", 2, user="u", after=("early",), **first), *job("last", 1, user="a", after=("late",), **first),
        *job("early", 2, user="u", deadline=900.0), *job("other", 1, user="v", run=5, deadline=950.0),
    ]  # fmt: skip
    found = starts(run(cluster(2), tasks, barrier={}, **order, **gang))
    assert found == {"late-0": 10, "late-1": 10, "last-0": 20, "early-0": 0, "early-1": 0, "other-0": 0}
    assert find_counterexample(cluster(2), tasks, lambda: build_policies(policy(barrier={}, **order, **gang))) is None


@pytest.mark.parametrize("order", [order for order in ORDERS if order != {"edf": {"backfill": True}}])
def test_a_follower_does_not_block_its_leader(order: dict[str, Any]) -> None:
    """A follower that is first waits for its leader beside the queue, and starts with it."""
    follows = job("f", 1, user="u", follows="lead", priority=9, deadline=200.0)
    found = starts(run(cluster(2), [*follows, *job("lead", 1, user="u", deadline=900.0)], affinity={}, **order))
    assert found == {"f-0": 0.0, "lead-0": 0.0}


def test_no_user_starves_beside_a_sibling_with_all_of_another_resource() -> None:
    """Two groups share the processors equally, though a member of one of them holds every GPU."""
    asks = {"one": {"cpu": 1000}, "two/a": {"cpu": 1000}, "two/b": {"gpu": 1000}}
    tasks = [
        replace(task, demand=demand, run=10 + place % 5 / 10)
        for user, demand in asks.items()
        for place, task in enumerate(job(user, 100, user=user))
    ]
    found = run([Node("n", {"cpu": 10_000, "gpu": 10_000})], tasks, hierarchy={"backfill": True})
    for time in (5.0, 25.0, 55.0, 75.0):
        running = Counter(
            task.user
            for task, start, end in zip(found.tasks, found.start_s, found.end_s, strict=True)
            if start <= time < end
        )
        assert running["two/b"] == 10
        assert math.isclose(running["one"], running["two/a"], abs_tol=1)


NAMES: dict[str, dict[str, Any]] = {
    "anti-affinity": {"density": 2}, "spread": {}, "servers": {}, "avoid": {}, "affinity": {},
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@given(st.integers(0, 10_000))
@settings(max_examples=8, deadline=None)
def test_resources_of_a_group_are_deleted_with_its_last_task(name: str, seed: int) -> None:
    """A cluster that runs jobs for months does not fill up with their names, nor does what keeps account of them."""
    tasks = [
        replace(task, role="server" if task.name.endswith("0") else "", avoids="j0" if task.job == "j1" else "")
        for task in some_tasks(seed)
    ]
    loop = run_simulation(prepare_simulation(cluster(), tasks, build_policies(policy(**{name: NAMES[name]}))))
    assert np.isfinite(collect_result(loop).end_s).all()
    assert (loop.table.snapshot(), loop.owners) == ((), {})


def test_a_group_that_returns_is_kept_apart_again() -> None:
    """After its last task has ended a group's names are made anew, as many as before."""
    tasks = [*job("a", 4), *(replace(task, name=f"{task.name}-again", arrival=50.0) for task in job("a", 4))]
    for name in ("anti-affinity", "spread"):
        assert Counter(places(run(cluster(), tasks, **{name: {}})).values()) == dict.fromkeys(
            ("n0", "n1", "n2", "n3"), 2
        )


STOPS: list[dict[str, Any]] = [{"priority": {}}, {"priority": {"backfill": True}}, {"quota": {"quotas": {"u": 1}}}]


@pytest.mark.parametrize("order", STOPS)
def test_a_task_never_preempts_the_task_it_runs_beside(order: dict[str, Any]) -> None:
    """A worker makes no room by stopping the server, nor a follower its leader: without it there is no place."""
    nodes = [Node("n0", {"gpu": 1000})]
    beside = [*job("s", 1, run=50, user="x"), *job("w", 1, at=5, user="u", priority=5)]
    roles = [replace(task, job="s", role=role) for task, role in zip(beside, ("server", "worker"), strict=True)]
    follows = [beside[0], replace(beside[1], follows="s")]
    for tasks, parts in ((roles, {"servers": {}}), (follows, {"affinity": {}})):
        found = run(nodes, tasks, **parts, **order)
        assert (starts(found)["s-0"], stopped(found)) == (0.0, {})


def test_a_withdrawn_admitted_task_holds_nothing() -> None:
    """A task that was admitted, found no node and was withdrawn counts in no share."""
    loop = prepare_simulation(
        cluster(2, racks=2), job("a", 2, demand={"gpu": 4000}), build_policies(policy(drf={}, gang={}, pack={}))
    )
    run_simulation(loop, until=1.0)
    (shares,) = [part for part in loop.policies if isinstance(part, Drf)]
    assert shares.queue.dominant_share("a", loop.view) == 1.0
    for task in ("a-0", "a-1"):
        end_task(loop, task, has_finished=False)
    loop.process_events()
    assert shares.queue.dominant_share("a", loop.view) == 0.0


def test_a_preempted_gang_is_enqueued_once() -> None:
    """However many of its tasks stop, it is admitted once, so that no user is charged for two."""
    loop = run_simulation(
        prepare_simulation(cluster(2), job("a", 4, run=50), build_policies(policy(drf={}, gang={}, pack={}))), until=5.0
    )
    loop.set_node_up("n0", is_up=False)
    run_simulation(loop, until=6.0)
    (shares,) = [part for part in loop.policies if isinstance(part, Drf)]
    assert not shares.queue.queues
    assert shares.queue.dominant_share("a", loop.view) == 1.0
