"""Nodes that are lost, cordoned and come back while a workload is replayed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.placement.tests.cases import cluster, job, places, policy, some_tasks, starts
from unfold_placement.core import kernel
from unfold_placement.core.types import MILLI, NodeChange, Task
from unfold_placement.policies.registry import build_policies
from unfold_placement.simulation.audit import find_violations
from unfold_placement.simulation.metrics import compute_metrics
from unfold_placement.simulation.simulator import SimulationResult, simulate
from unfold_placement.workload.node_events import read_node_changes
from unfoldkit.api import UnfoldError


def test_tasks_of_a_lost_node_restart_from_their_checkpoint() -> None:
    """Lost after 25 s with a checkpoint each 10 s: 5 s of two GPUs are lost, and 20 s less are left to do."""
    tasks = job("a", 2, run=100.0, checkpoint_every=10.0)
    result = simulate(cluster(2, gpu=2), tasks, (), [NodeChange(25.0, "n0", "down")])
    assert result.end_s.tolist() == [105.0, 105.0]
    losses = compute_metrics(result).node_losses
    assert losses is not None
    assert (losses.count, losses.stopped) == (1, 2)
    assert losses.lost_hours["gpu"] == pytest.approx(2 * 5 / 3600)
    assert compute_metrics(result).preemptions == 0


def test_a_cordoned_node_finishes_its_tasks_and_takes_no_more() -> None:
    """What runs there ends in time; what arrives goes elsewhere until the node is up."""
    tasks = [*job("a", 1, run=50.0), *job("b", 1, at=20.0), *job("c", 1, at=70.0)]
    changes = [NodeChange(10.0, "n0", "cordon"), NodeChange(60.0, "n0", "up")]
    result = simulate(cluster(2), tasks, (), changes)
    assert places(result) == {"a-0": "n0", "b-0": "n1", "c-0": "n0"}
    assert (result.log.kinds == kernel.LOG_PREEMPTED).sum() == 0


def test_ends_come_before_a_loss_and_arrivals_after_it() -> None:
    """A task that ends as its node is lost has ended; one that arrives then never starts there."""
    tasks = [*job("a", 1, run=10.0), *job("b", 1, at=10.0)]
    result = simulate(cluster(2), tasks, (), [NodeChange(10.0, "n0", "down")])
    assert (places(result), starts(result)) == ({"a-0": "n0", "b-0": "n1"}, {"a-0": 0.0, "b-0": 10.0})


def test_a_node_that_returns_takes_the_most_urgent_task_of_the_instant() -> None:
    """Policies decide once they know all of an instant: one that arrives as the node returns goes before older ones."""
    tasks = [*job("old", 1, run=10.0, at=20.0), *job("urgent", 1, run=10.0, at=30.0, priority=1)]
    changes = [NodeChange(0.0, "n0", "down"), NodeChange(30.0, "n0", "up")]
    for parts in ({"preempt": False}, {"preempt": False, "backfill": True}, {}):
        result = simulate(cluster(1, gpu=1), tasks, build_policies(policy(priority=parts)), changes)
        assert starts(result) == {"old-0": 40.0, "urgent-0": 30.0}
        assert (result.log.kinds == kernel.LOG_PREEMPTED).sum() == 0


def test_as_many_tasks_as_there_are_may_arrive_as_a_node_is_lost() -> None:
    """The log has room for all of them."""
    tasks = [*job("a", 1, run=1.0), *job("b", 3000, run=1.0, at=5.0)]
    result = simulate(cluster(2), tasks, (), [NodeChange(5.0, "n0", "down")])
    assert (result.log.kinds == kernel.LOG_ENDED).sum() == 3001


def test_nodes_that_are_lost_together_stop_a_task_once() -> None:
    """A rack fails: its tasks wait once for the third node, and never start on the second."""
    changes = [NodeChange(5.0, name, "down") for name in ("n0", "n1")]
    result = simulate(cluster(3, gpu=1), job("a", 1, run=20.0), (), changes)
    assert starts(result) == {"a-0": 5.0}
    assert (result.log.kinds == kernel.LOG_STARTED).sum() == 2


def test_a_cluster_that_is_away_waits_for_its_return() -> None:
    """While no node is up everything waits, a gang too, and it goes on as nodes come back; never without them."""
    changes = [*(NodeChange(0.0, f"n{index}", "down") for index in range(2)), NodeChange(90.0, "n1", "up")]
    compositions: list[dict[str, Any]] = [{}, {"gang": {}}, {"drf": {}}]
    for parts in compositions:
        result = simulate(cluster(2), job("a", 3), build_policies(policy(**parts)), changes)
        assert set(starts(result).values()) == {90.0}
        assert len(simulate(cluster(2), job("a", 3), build_policies(policy(**parts)), changes[:2]).stuck) == 3


def test_the_audit_sees_a_task_that_outlives_its_node() -> None:
    """A log in which a task runs on after the loss, or starts meanwhile, violates the rules."""
    result = simulate(cluster(1), [*job("a", 1, run=30.0), *job("b", 1, at=15.0)])
    tampered = {field: getattr(result, field) for field in SimulationResult.__slots__}
    tampered["node_changes"] = (NodeChange(10.0, "n0", "down"),)
    found = list(find_violations(SimulationResult(**tampered), ()))
    assert found[0] == "15 s: b-0 starts on n0, which takes no tasks"
    assert "30 s: a-0 runs on n0, which was lost at 10 s" in found


COMPOSITIONS: list[dict[str, Any]] = [
    {},
    {"gang": {}},
    {"drf": {"backfill": True}, "gang": {}},
    {"priority": {}, "gang": {}, "pack": {"level": "rack"}},
    {"quota": {"quotas": {"u0": 4, "u1": 2, "u2": 2}}, "gang": {}},
    {"wfq": {}, "anti-affinity": {"density": 2}},
    {"fifo": {}, "spread": {"skew": 2}, "limit": {"most": 6}},
    {"edf": {}, "gang": {}},
]


@pytest.mark.parametrize("parts", COMPOSITIONS, ids=str)
def test_random_churn_breaks_no_rule(parts: dict[str, Any]) -> None:
    """Under every composition: no node runs more than it has, none runs anything while it is away, gangs stay whole."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        tasks = some_tasks(seed, checkpoint_every=float(rng.integers(0, 5)))
        changes = churn(rng, 4)
        rules = policy(**parts)
        result = simulate(cluster(4, gpu=3), tasks, build_policies(rules), changes)
        assert list(find_violations(result, rules)) == []
        check_log(result, changes)
        finished = set(starts(result)) - {task.name for task in result.stuck} - result.rejections.keys()
        assert finished == {task.name for task in tasks} - result.rejections.keys()
        if "gang" in parts:
            check_gangs(result)


def churn(rng: np.random.Generator, count: int) -> list[NodeChange]:
    """Return losses, cordons and returns of nodes, all of which are up at the end."""
    moments = np.sort(rng.integers(0, 60, 12)).tolist()
    kinds = rng.choice(["down", "cordon", "up"], 12).tolist()
    changes = [NodeChange(float(at), f"n{rng.integers(count)}", kind) for at, kind in zip(moments, kinds, strict=True)]
    return [*changes, *(NodeChange(100.0, f"n{index}", "up") for index in range(count))]


def check_log(result: SimulationResult, changes: list[NodeChange]) -> None:
    """Replay the log second by second of its events, on counters that know nothing of the simulator."""
    columns = (result.log.times, result.log.kinds, result.log.tasks, result.log.nodes)
    used, where, begun = Counter[tuple[str, str]](), dict[int, str](), dict[int, float]()
    for time, kind, row, node_row in zip(*(column.tolist() for column in columns), strict=True):
        task: Task = result.tasks[row]
        if kind == kernel.LOG_STARTED:
            node = where[row] = result.nodes[node_row].name
            begun[row] = time
            past = [change.change for change in changes if change.node == node and change.at <= time]
            assert not past or past[-1] == "up", (task.name, node, time)
        elif kind in {kernel.LOG_ENDED, kernel.LOG_PREEMPTED}:
            node = where.pop(row)
            lost = [change.at for change in changes if change.node == node and change.change == "down"]
            assert not any(begun[row] < at < time for at in lost), (task.name, node, time)
        else:
            continue
        for amount_kind, amount in task.demand.items():
            used[node, amount_kind] += amount if kind == kernel.LOG_STARTED else -amount
            capacity = next(item.capacity.get(amount_kind, 0) for item in result.nodes if item.name == node)
            assert 0 <= used[node, amount_kind] <= capacity, (node, time, used[node, amount_kind] / MILLI)


def check_gangs(result: SimulationResult) -> None:
    """Check after each instant that of every gang all unfinished tasks run, or none."""
    running, done = set[int](), set[int]()
    members: dict[str, list[int]] = {}
    for row, task in enumerate(result.tasks):
        members.setdefault(task.job, []).append(row)
    times = result.log.times.tolist()
    for index, (time, kind, row) in enumerate(
        zip(times, result.log.kinds.tolist(), result.log.tasks.tolist(), strict=True)
    ):
        running.add(row) if kind == kernel.LOG_STARTED else running.discard(row)
        done |= {row} if kind == kernel.LOG_ENDED else set()
        if index + 1 < len(times) and times[index + 1] == time:
            continue
        for job_name, rows in members.items():
            left = [member for member in rows if member not in done]
            assert len(running.intersection(left)) in {0, len(left)}, (job_name, time)


def test_a_file_of_events_is_read_in_the_words_of_logs(tmp_path: Path) -> None:
    """Down, cordon and up under several names; what is wrong is reported with its line."""
    path = tmp_path / "churn.csv"
    path.write_text("time,node,change\n60,n0,NotReady\n30,n1,drain\n90,n0,join\n", encoding="utf-8")
    changes = read_node_changes(path, ["n0", "n1"])
    assert [(change.at, change.node, change.change) for change in changes] == [
        (60.0, "n0", "down"),
        (30.0, "n1", "cordon"),
        (90.0, "n0", "up"),
    ]
    for row, message in (
        ("1,n7,down", "no such node: n7"),
        ("-1,n0,down", "-1"),
        ("nan,n0,down", "nan"),
        ("1700000000,n0,down", "Unix time"),
        ("1,n0,explode", "not a change of a node"),
    ):
        path.write_text(f"time,node,change\n{row}\n", encoding="utf-8")
        with pytest.raises(UnfoldError, match=message) as error:
            read_node_changes(path, ["n0", "n1"])
        assert error.value.diagnostics[0].line == 2
    path.write_text("time,node,change\n1,n7,down\n", encoding="utf-8")
    with pytest.raises(UnfoldError, match="no events"):
        read_node_changes(path, ["n0", "n1"], skips=True)
