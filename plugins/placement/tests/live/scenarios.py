"""One scenario for each policy: what comes when, under which policy. Times are seconds of a scenario.

Starts and ends are at least a second apart where their order matters, so that a live cluster sees them in this order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from plugins.placement.tests.cases import cluster, job
from unfold_placement.core.types import Node, Task


@dataclass(frozen=True, slots=True)
class Scenario:
    """A workload, the policies that it runs under, and where."""

    tasks: Sequence[Task]
    policy: Mapping[str, Any]
    nodes: Sequence[Node]


def seconds(value: float) -> str:
    """Return a time as it is written in a spec."""
    return f"{value:g} s"


def cases(pace: float) -> dict[str, Scenario]:
    """Return the scenarios, with every time of policies and tasks ``pace`` times as long as written."""
    return {
        name: Scenario([slow(task, pace) for task in tasks], policy(pace), list(nodes))
        for name, (tasks, policy, nodes) in _written().items()
    }


def slow(task: Task, pace: float) -> Task:
    """Return a task that takes ``pace`` times as long."""
    run_on = {kind: run * pace for kind, run in task.run_on.items()}
    deadline = task.deadline * pace
    return replace(task, run=task.run * pace, arrival=task.arrival * pace, deadline=deadline, run_on=run_on)


Policy = Callable[[float], Mapping[str, Any]]
Written = tuple[Sequence[Task], Policy, Sequence[Node]]


def _fixed(**parts: Any) -> Policy:
    return lambda _pace: parts


def _written() -> dict[str, Written]:
    four = cluster(3)
    typed = [Node("n0", {"gpu": 1000}, {"type": "v100"}), Node("n1", {"gpu": 1000}, {"type": "t4"})]
    where = [replace(node, data=frozenset({"x"}) if node.name == "n1" else frozenset()) for node in cluster(4)]
    users = [*job("a", 4, run=4), *job("b", 4, run=4, at=1), *job("c", 4, run=4, at=2)]
    servers = [replace(task, role="server", size=4) for task in job("ps", 2, run=8)]
    workers = [
        replace(task, role="worker", name=f"ps-w{i}", size=4) for i, task in enumerate(job("ps", 2, at=1, run=3))
    ]
    fast = Task("first", {"gpu": 1000}, 4.0, job="first", run_on={"t4": 900.0})
    then = Task("then", {"gpu": 1000}, 3.0, 1.0, job="then", run_on={"t4": 90.0})
    full = [*job("x", 3, run=12), *job("z", 3, run=12, at=1), *job("y", 4, run=3, at=2)]
    return {
        "none": (job("a", 5, run=3), _fixed(), four),
        "spread": (job("a", 6, run=4), _fixed(spread={"skew": 1}), four),
        "affinity": ([*job("b", 2, run=3, follows="a"), *job("a", 1, run=8, at=2)], _fixed(affinity={}), four),
        "anti-affinity": (job("a", 4, run=3), _fixed(**{"anti-affinity": {}}), four),
        "anti-affinity density": (job("a", 7, run=3), _fixed(**{"anti-affinity": {"density": 2}}), four),
        "avoid": ([*job("a", 1, run=8), *job("b", 3, run=3, at=1, avoids="a")], _fixed(avoid={}), four),
        "types": (
            [*job("a", 3, run=3, types=("t4",)), *job("b", 2, run=3, at=1, types=("v100", "t4")),
             *job("c", 1, at=1, run=3)],
            _fixed(types={}), typed,
        ),
        "locality": (
            job("a", 9, run=30, data=("x",)),
            lambda pace: {"locality": {"rack_after": seconds(3 * pace), "any_after": seconds(6 * pace)}}, where,
        ),
        "servers": ([*servers, *workers], _fixed(servers={"near": True}), four),
        "barrier": ([*job("map", 3, run=3), *job("reduce", 2, run=2, after=("map",))], _fixed(barrier={}), four),
        "limit": (job("a", 5, run=3), _fixed(limit={"most": 2}), four),
        "priority": ([*job("low", 12, run=9), *job("high", 2, run=3, at=2, priority=5)], _fixed(priority={}), four),
        "wfq": (users, _fixed(wfq={"weights": {"a": 2.0}}), cluster(1)),
        "fifo": (users, _fixed(fifo={}), cluster(1)),
        "drf": (users, _fixed(drf={}), cluster(1)),
        "hierarchy": (
            [replace(task, user=f"{'x' if task.job == 'a' else 'y'}/{task.job}") for task in users],
            _fixed(hierarchy={}), cluster(1),
        ),
        "history": (
            [*job("a", 4, run=4), *job("a2", 4, at=2, run=3, user="a"), *job("b", 4, at=3, run=3)],
            lambda pace: {"history": {"half_life": seconds(50 * pace)}}, cluster(1),
        ),
        "quota": (
            [*job("a", 8, run=12), *job("b", 4, at=2, run=3)], _fixed(quota={"quotas": {"a": 4, "b": 4}}), cluster(2),
        ),
        "edf": (
            [*job("a", 4, run=3, deadline=20.0), *job("b", 2, run=3, at=1, deadline=60.0),
             *job("c", 2, run=3, at=2, deadline=10.0), *job("d", 1, run=30, at=2, deadline=12.0)],
            _fixed(edf={}), cluster(1),
        ),
        "pack": (
            [*job("a", 1, run=9), *job("b", 1, run=9, at=1), Task("big", {"gpu": 4000}, 3.0, 2.0, "big")],
            _fixed(pack={}), cluster(2),
        ),
        "value": ([fast, then], _fixed(value={}), typed),
        "gang": ([*job("a", 8, run=4), *job("b", 8, run=4, at=1), *job("c", 3, run=3, at=2)], _fixed(gang={}), four),
        "gang, anti-affinity": (
            [*job("a", 3, run=4), *job("b", 3, run=4, at=1)], _fixed(**{"gang": {}, "anti-affinity": {}}), four,
        ),
        "gang, pack, fallback": (
            full, lambda pace: {"gang": {}, "pack": {"level": "node", "fallback": [f"any after {seconds(3 * pace)}"]}},
            cluster(2),
        ),
        "all": (
            [*job("a", 4, run=4), *job("b", 4, run=4, at=1)],
            _fixed(all=[{"gang": {}}, {"limit": {"most": 4, "by": ""}}, {"wfq": {}}]), four,
        ),
    }  # fmt: skip
