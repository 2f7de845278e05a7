"""What each policy promises; every replay is audited by laws that know nothing of names."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from plugins.placement.tests.cases import cluster, job, places, policy, run, some_tasks, starts
from plugins.placement.tests.fairness import compute_fairness_error
from unfold_placement.core.cluster_view import View
from unfold_placement.core.types import (
    BEGAN,
    ENDED,
    MILLI,
    PODS,
    STARTED,
    STATIC,
    Ask,
    Event,
    Node,
    Put,
    Task,
    Transactions,
)
from unfold_placement.policies.registry import build_policies
from unfold_placement.simulation.audit import find_violations
from unfold_placement.simulation.simulator import simulate

GANG: dict[str, Any] = {"gang": {}}
ORDERS: dict[str, dict[str, Any]] = {
    "drf": {},
    "wfq": {},
    "hierarchy": {},
    "history": {"half_life": "10 s"},
    "priority": {},
    "edf": {"admit": False},
    "quota": {"quotas": {"u0": 4, "u1": 4, "u2": 4}},
}


@pytest.mark.e2e
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("more", [{}, GANG, {**GANG, "pack": {"level": "rack", "fallback": ["any after 5 s"]}}])
@given(st.integers(0, 10_000))
@settings(max_examples=8, deadline=None)
def test_all_tasks_run_under_every_queue_policy(order: str, more: dict[str, Any], seed: int) -> None:
    """No starvation: whatever comes, under each order of the queue, alone or with gangs, every task ends."""
    tasks = [replace(task, priority=seed % 3 + hash(task.job) % 2) for task in some_tasks(seed)]
    found = run(cluster(3), tasks, **{order: ORDERS[order]}, **more)
    assert not found.stuck
    assert np.isfinite(found.end_s).all()


@given(st.integers(0, 10_000), st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_gangs_start_completely_and_never_deadlock(seed: int, patience: int) -> None:
    """All or nothing: the tasks of a gang start at one instant, and two gangs never hold halves."""
    found = run(cluster(3), some_tasks(seed, most=8), gang={"patience": f"{patience} s"})
    assert not found.stuck
    times: dict[str, set[float]] = {}
    for name, at in starts(found).items():
        times.setdefault(name.partition("-")[0], set()).add(at)
    assert all(len(found) == 1 for found in times.values())


@given(st.integers(0, 10_000), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_anti_affinity_limits_tasks_per_node(seed: int, density: int) -> None:
    """Never more than ``density`` tasks of a group run on one node, gangs or not."""
    tasks = some_tasks(seed, most=3)
    assert not run(cluster(3), tasks, **{"anti-affinity": {"density": density}}).stuck
    assert not run(cluster(3), tasks, **{"anti-affinity": {"density": density}}, **GANG).stuck


def test_spread_keeps_counts_level() -> None:
    """With a skew of one, eight tasks on four nodes are two on each; without it the first nodes are filled."""
    assert set(Counter(places(run(cluster(), job("a", 8), spread={"skew": 1})).values()).values()) == {2}
    assert set(Counter(places(simulate(cluster(), job("a", 8))).values()).values()) == {4}


@given(st.integers(0, 10_000), st.integers(1, 2))
@example(41, 1)
@example(96, 1)
@settings(max_examples=20, deadline=None)
def test_spread_holds_at_every_start(seed: int, skew: int) -> None:
    """No start ever makes a node busier than the emptiest by more than the skew (the audit's law).

    In the examples tasks of several groups end at one instant.
    """
    assert not run(cluster(), some_tasks(seed, most=6), spread={"skew": skew}).stuck


@given(st.integers(0, 10_000), st.sampled_from(["priority", "drf", "gang"]))
@settings(max_examples=15, deadline=None)
def test_spread_holds_with_other_policies(seed: int, other: str) -> None:
    """The law holds at every start too where others order, stop or gather the tasks."""
    tasks = [replace(task, priority=5 * (int(task.job[1:]) % 3)) for task in some_tasks(seed, most=6)]
    run(cluster(), tasks, spread={"skew": 1}, **{other: {}})


@dataclass
class EventRecorder:
    """Opens a door wider with every ending, and records the events that it receives."""

    heard: list[str] = field(default_factory=list)
    phase: int = STATIC
    watches: frozenset[str] = frozenset({BEGAN, STARTED, ENDED})

    def request(self, task: Task) -> list[Ask]:
        return [Ask("door")]

    def react(self, event: Event, view: View) -> Transactions:
        self.heard.append(event.kind)
        yield [Put("door", "n0", 2 + self.heard.count(ENDED))]


def test_all_ends_of_an_instant_are_dispatched_before_any_start() -> None:
    """A policy that changes something at an ending sees no start before the others of that instant."""
    recorder = EventRecorder()
    simulate(cluster(1), job("a", 5), [recorder])
    assert recorder.heard == [BEGAN, STARTED, STARTED, ENDED, ENDED, STARTED, STARTED, STARTED, ENDED, ENDED, ENDED]


def test_followers_wait_for_their_leader_and_join_it() -> None:
    """Followers that come first wait; when the leader runs, they start on its node."""
    followers = job("b", 3, at=0, follows="a")
    found = run(cluster(), [*followers, *job("a", 1, run=50, at=5)], affinity={})
    assert {at for name, at in starts(found).items() if name.startswith("b")} == {5}
    assert len(set(places(found).values())) == 1


def test_a_task_avoids_another_but_not_the_other_way_round() -> None:
    """B never starts beside a running A; A may join B."""
    first, second = job("a", 1, run=50), job("b", 4, at=1, avoids="a")
    found = places(run(cluster(), [*first, *second], avoid={}))
    assert found["a-0"] not in {node for name, node in found.items() if name != "a-0"}
    other = places(run(cluster(), [*job("b", 1, run=50, avoids="a"), *job("a", 1, at=1)], avoid={}))
    assert other["a-0"] == other["b-0"]


def test_locality_falls_back_to_rack_then_any_node() -> None:
    """A task runs where its data is; where that is full, it takes the rack after a while, then any node."""
    nodes = [replace(node, data=frozenset({"x"}) if node.name == "n0" else frozenset()) for node in cluster()]
    tasks = job("a", 10, run=1000, data=("x",))
    found = run(nodes, tasks, locality={"rack_after": "10 s", "any_after": "30 s"})
    times = Counter((places(found)[name], at) for name, at in starts(found).items())
    assert times == {("n0", 0.0): 4, ("n2", 10.0): 4, ("n1", 30.0): 2}


def test_packing_keeps_an_empty_node_for_large_tasks() -> None:
    """Best fit: small tasks join each other, so that a task that needs a whole node still finds one."""
    small = [*job("a", 1, run=100), *job("b", 1, run=100, at=1), *job("c", 1, run=100, at=2)]
    large = Task("big", {"gpu": 4000}, 10, 3, "big", "u")
    nodes = [Node("n0", {"gpu": 4000}), Node("n1", {"gpu": 3000})]
    assert starts(run(nodes, [*small, large], pack={}))["big"] == 3
    assert starts(simulate(nodes, [*small, large]))["big"] == 102


def test_a_gang_is_packed_into_one_rack_until_its_fallback() -> None:
    """A gang that fits in no rack waits for the fallback's time, and then takes what there is."""
    blockers = [*job("x", 3, run=1000), *job("y", 8, at=1)]
    found = run(cluster(), blockers, gang={}, pack={"level": "rack", "fallback": ["any after 30 s"]})
    racks = {"n0": "r0", "n1": "r1", "n2": "r0", "n3": "r1"}
    assert {racks[node] for name, node in places(found).items() if name[0] == "y"} == {"r1"}
    full = [*job("x", 5, run=1000), *job("z", 5, run=1000, at=0.5), *job("y", 6, at=1)]
    assert starts(run(cluster(), full, gang={}, pack={"level": "rack", "fallback": ["any after 30 s"]}))["y-0"] == 31


def test_a_higher_class_preempts_a_lower_one() -> None:
    """Preemption: what is urgent starts as it comes; the latest of the lowest class makes room and runs again later."""
    low = job("low", 16, run=100)
    found = run(cluster(), [*low, *job("high", 4, at=10, priority=5)], priority={})
    assert {at for name, at in starts(found).items() if name.startswith("high")} == {10.0}
    assert Counter(at for name, at in starts(found).items() if name.startswith("low")) == {0.0: 12, 20.0: 4}
    calm = run(cluster(), [*low, *job("high", 4, at=10, priority=5)], priority={"preempt": False})
    assert starts(calm)["high-0"] == 100


@pytest.mark.parametrize("rules", [{"priority": {}}, {"quota": {"quotas": {"a": 8, "b": 8}, "borrow": True}}])
@pytest.mark.parametrize("preempts", [True, False])
def test_nothing_is_preempted_for_a_task_that_preempts_nothing(rules: dict[str, Any], *, preempts: bool) -> None:
    """It is ahead of lower classes, and waits until there is room, like a pod with ``preemptionPolicy: Never``."""
    tasks = [*job("low", 16, run=100, user="a"), *job("high", 2, at=10, priority=5, user="b")]
    tasks[-1] = replace(tasks[-1], preempts=preempts)
    found = starts(run(cluster(), tasks, gang={}, **rules))
    assert found["high-0"] == (10 if preempts else 100)


def test_a_gang_is_preempted_completely() -> None:
    """Taking one task of a gang takes all of them, and they start again together."""
    found = run(cluster(), [*job("low", 16, run=100), *job("high", 1, at=10, priority=5)], priority={}, gang={})
    assert {at for name, at in starts(found).items() if name.startswith("low")} == {20.0}


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_gangs_of_several_classes_do_not_preempt_each_other_for_ever(seed: int) -> None:
    """A gang counts as its highest member, so each preemption is by a higher class than all that it stops."""
    rng = np.random.default_rng(seed)
    jobs = [job(f"g{index}", int(rng.integers(1, 5)), run=20, at=float(index)) for index in range(6)]
    tasks = [replace(task, priority=int(rng.integers(0, 3))) for tasks in jobs for task in tasks]
    found = run(cluster(1), tasks, priority={}, gang={})
    assert set(starts(found)) == {task.name for task in tasks}


@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_weighted_shares_are_within_one_task(weights: list[int], gpu: int) -> None:
    """While all users have work, starts under WFQ are within one task of their weighted share at every instant."""
    tasks = [task for index in range(len(weights)) for task in job(f"u{index}", 30, run=7)]
    share = {f"u{index}": float(value) for index, value in enumerate(weights)}
    found = run(cluster(2, gpu), tasks, wfq={"weights": share})
    assert compute_fairness_error(found, share, dominant=False) <= 1 + 1e-9


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=2, max_size=4))
@settings(max_examples=30, deadline=None)
def test_dominant_shares_are_within_one_task(demands: list[tuple[int, int]]) -> None:
    """While all users have work, dominant shares under DRF differ by one task's at most."""
    tasks = [
        replace(task, demand={"cpu": cpu * MILLI, "gpu": gpu * MILLI})
        for index, (cpu, gpu) in enumerate(demands)
        for task in job(f"u{index}", 60, run=5)
    ]
    found = run([Node("n0", {"cpu": 30_000, "gpu": 20_000})], tasks, drf={})
    assert compute_fairness_error(found, {}, dominant=True) <= 1 + 1e-9


def test_drf_reproduces_the_example_of_the_paper() -> None:
    """9 CPUs and 18 GB, users with <1, 4> and <3, 1>: three and two tasks (Ghodsi et al., section 4.1)."""
    one = [replace(task, demand={"cpu": 1000, "memory": 4000}) for task in job("a", 9)]
    two = [replace(task, demand={"cpu": 3000, "memory": 1000}) for task in job("b", 9)]
    found = run([Node("n", {"cpu": 9000, "memory": 18_000})], [*one, *two], drf={})
    assert Counter(name[0] for name, at in starts(found).items() if at == 0) == {"a": 3, "b": 2}


def test_hierarchical_shares_follow_the_tree() -> None:
    """Two groups share equally whatever their number of users."""
    users = {"a/x": 20, "b/x": 20, "b/y": 20, "b/z": 20}
    tasks = [task for name, count in users.items() for task in job(name.replace("/", ""), count, user=name)]
    found = run(cluster(3), tasks, hierarchy={})
    first = Counter(task.user for task, at in zip(found.tasks, found.start_s, strict=True) if at == 0)
    assert first == {"a/x": 6, "b/x": 2, "b/y": 2, "b/z": 2}


def test_past_use_counts_and_decays() -> None:
    """A user with much past use is served later; after many half-lives it is forgotten."""

    def first(gap: float) -> str:
        tasks = [*job("a", 4, run=50), *job("a2", 4, at=gap, user="a"), *job("b", 4, at=gap)]
        found = starts(run(cluster(1), tasks, history={"half_life": "20 s"}))
        return min(("a2-0", "b-0"), key=lambda name: found[name])

    assert first(60) == "b-0"
    assert first(100_000) == "a2-0"


def test_borrowed_quota_is_reclaimed() -> None:
    """A team may use what others leave; as its owner wants it, borrowed tasks make room at once."""
    borrowed, owner = job("a", 16, run=100), job("b", 8, at=10)
    parts = {"quota": {"quotas": {"a": 8, "b": 8}}}
    found = run(cluster(), [*borrowed, *owner], **parts)
    assert Counter(at for name, at in starts(found).items() if name.startswith("b")) == {10.0: 8}
    kept = run(cluster(), [*borrowed, *owner], quota={"quotas": {"a": 8, "b": 8}, "borrow": False})
    assert Counter(at for name, at in starts(kept).items() if name.startswith("a")) == {0.0: 8, 100.0: 8}


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30)), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_edf_meets_all_deadlines_that_any_order_meets(jobs: list[tuple[int, int]]) -> None:
    """On one machine with everything there, EDF is late only where every order is, and admits exactly what it keeps."""
    tasks = [Task(f"t{i}", {"gpu": 1000}, float(length), 0.0, f"t{i}", deadline=float(due))
             for i, (length, due) in enumerate(jobs)]  # fmt: skip
    found = run([Node("n", {"gpu": 1000})], tasks, edf={"admit": False})
    late = any(end > task.deadline for task, end in zip(found.tasks, found.end_s, strict=True))
    assert late == (not any(_kept(order) for order in itertools.permutations(jobs)))
    admitted = run([Node("n", {"gpu": 1000})], tasks, edf={})
    kept = [(end, task) for task, end in zip(admitted.tasks, admitted.end_s, strict=True) if math.isfinite(end)]
    assert all(end <= task.deadline for end, task in kept)
    assert bool(admitted.rejections) == late


def _kept(order: tuple[tuple[int, int], ...]) -> bool:
    return all(end <= due for end, (_, due) in zip(itertools.accumulate(run for run, _ in order), order, strict=True))


def test_a_task_waits_for_a_faster_node_if_it_then_ends_earlier() -> None:
    """Looking ahead: a short wait for a fast node is taken, a long one is not."""
    nodes = [Node("fast", {"gpu": 1000}, {"type": "v100"}), Node("slow", {"gpu": 1000}, {"type": "t4"})]

    def place(wait: float) -> str:
        first = Task("first", {"gpu": 1000}, wait, run_on={"t4": 1000.0})
        then = Task("then", {"gpu": 1000}, 10.0, 1.0, run_on={"t4": 100.0})
        return places(run(nodes, [first, then], value={}))["then"]

    assert (place(20.0), place(200.0)) == ("fast", "slow")


@pytest.mark.parametrize(("by", "most"), [("job", 2), ("user", 3), ("", 4)])
def test_licences_are_never_exceeded(by: str, most: int) -> None:
    """No more than ``most`` tasks of a group run at any time, and all of them run in the end."""
    assert not run(cluster(), some_tasks(3), limit={"most": most, "by": by}).stuck


def test_a_stage_waits_until_the_previous_one_has_ended() -> None:
    """The next stage starts as the last task before it ends."""
    first = [replace(task, run=10.0 + index) for index, task in enumerate(job("map", 5))]
    found = run(cluster(), [*first, *job("reduce", 2, after=("map",))], barrier={})
    assert {at for name, at in starts(found).items() if name.startswith("reduce")} == {14.0}


@pytest.mark.parametrize("near", [True, False])
def test_parameter_servers_occupy_separate_nodes(near: bool) -> None:
    """One server a node; workers beside them, or where none is."""
    servers = [replace(task, role="server", size=6) for task in job("ps", 2, run=50)]
    workers = [replace(task, role="worker", name=f"ps-w{index}", size=6) for index, task in enumerate(job("ps", 4))]
    found = places(run(cluster(), [*workers, *servers], servers={"near": near}))
    homes = {found["ps-0"], found["ps-1"]}
    assert len(homes) == 2
    assert {found[f"ps-w{index}"] in homes for index in range(4)} == {near}


def test_tasks_run_on_their_node_types_only() -> None:
    """A task waits for a node of its types though others are free; one that names none runs anywhere."""
    nodes = [
        replace(node, labels={"model": kind})
        for node, kind in zip(cluster(3, gpu=1), ("t4", "v100", "a10"), strict=True)
    ]
    tasks = [*job("a", 2, types=("t4",)), *job("b", 2, at=1, types=("a10", "v100")), *job("c", 1, at=2)]
    found = run(nodes, tasks, types={"label": "model"})
    assert [places(found)[name] for name in ("a-0", "a-1", "c-0")] == ["n0", "n0", "n1"]
    assert {places(found)[name] for name in ("b-0", "b-1")} == {"n1", "n2"}
    assert [starts(found)[name] for name in ("a-0", "a-1", "b-0", "b-1", "c-0")] == [0, 10, 1, 1, 11]


def test_the_audit_finds_violations() -> None:
    """Each law complains about a replay that was made without its policy."""
    tasks = [*job("a", 6, at=1), *job("b", 14, run=50)]
    wrong = {
        "gang": (tasks, {}), "anti-affinity": (tasks, {}), "spread": (tasks, {}), "limit": (tasks, {"most": 3}),
        "affinity": (job("a", 1, follows="b"), {}), "barrier": (job("a", 1, after=("b",)), {}),
        "priority": ([*job("a", 16), *job("b", 1, at=1), *job("c", 1, at=2, priority=3)], {}),
        "avoid": ([*job("b", 1), *job("a", 1, at=1, avoids="b")], {}),
        "locality": (job("a", 1, data=("x",)), {}), "types": (job("a", 1, types=("t4",)), {}),
        "servers": ([replace(task, role="server") for task in job("a", 2)], {}),
        "quota": (job("a", 2), {"quotas": {"a": 1}, "borrow": False}),
    }  # fmt: skip
    for name, (work, options) in wrong.items():
        spec = policy(**{name: options})
        assert list(find_violations(simulate(cluster(), work), spec)), name
        assert build_policies(spec)


@pytest.mark.parametrize("order", ["drf", "hierarchy"])
def test_pod_slots_do_not_count_in_shares(order: str) -> None:
    """A user with many small tasks gets as much of the processors as one with few large ones, whatever nodes take."""
    small, large = ({"cpu": 320, PODS: MILLI}, {"cpu": 1600, PODS: MILLI})
    tasks = [replace(task, demand=small) for task in job("a", 40)] + [replace(t, demand=large) for t in job("b", 8)]
    found = run([Node("n0", {"cpu": 16_000, PODS: 32_000})], tasks, **{order: {}})
    first = Counter(name[0] for name, at in starts(found).items() if at == 0.0)
    assert first == {"a": 25, "b": 5}


def test_packing_ignores_pod_slots() -> None:
    """The node with the fewest free GPUs is filled first, not the one that takes the fewest pods."""
    nodes = [Node("n0", {"gpu": 4000, PODS: 10_000}), Node("n1", {"gpu": 2000, PODS: 20_000})]
    found = run(nodes, [Task("a", {"gpu": 1000, PODS: MILLI}, 10.0)], pack={})
    assert places(found) == {"a": "n1"}


def test_a_node_without_pod_slots_runs_no_task() -> None:
    """Free GPUs are not enough: of four tasks for four GPUs only as many run at once as the node takes pods."""
    node = Node("n0", {"gpu": 4000, PODS: 3000})
    found = run([node], [replace(task, demand={**task.demand, PODS: MILLI}) for task in job("a", 4)])
    assert sorted(starts(found).values()) == [0.0, 0.0, 0.0, 10.0]


def test_a_preempted_gang_restarts_without_its_ended_tasks() -> None:
    """Its quickest task is through before a more urgent job comes: only the other three run again, together."""
    tasks = [*job("a", 4, run=10.0), *job("b", 2, run=5.0, at=5.0, priority=5)]
    found = run(cluster(1), [replace(tasks[0], run=2.0), *tasks[1:]], gang={}, priority={})
    assert not found.stuck
    assert {name: at for name, at in starts(found).items() if at != 5.0} == {
        "a-0": 0.0,
        "a-1": 10.0,
        "a-2": 10.0,
        "a-3": 10.0,
    }


def test_a_gang_name_can_be_reused() -> None:
    """A job that comes again after its first gang is over starts as a whole, and not before it is there as a whole."""
    again = [
        replace(task, name=f"{task.name}-again", arrival=20.0 + at) for at, task in enumerate(job("a", 3, run=4.0))
    ]
    spec = policy(gang={})
    found = simulate(cluster(1), [*job("a", 3, run=4.0), *again], build_policies(spec))
    assert [at for name, at in starts(found).items() if name.endswith("again")] == [22.0] * 3
