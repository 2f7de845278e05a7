"""Deadlines with a long backlog."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from plugins.placement.tests.cases import cluster, job, run, starts
from unfold_placement.core.cluster_view import Unit, View
from unfold_placement.core.policy import Policy
from unfold_placement.core.types import Task
from unfold_placement.live.recovery import end_task
from unfold_placement.policies.ordering.edf import Edf
from unfold_placement.policies.ordering.gang import Gang
from unfold_placement.policies.shared.admission_queue import AdmissionQueue
from unfold_placement.simulation.simulator import collect_result, prepare_simulation, run_simulation, simulate


def urgent(seed: int, count: int) -> list[Task]:
    """Return tasks that come within a minute, most with a deadline, of which the cluster takes long."""
    rng = np.random.default_rng(seed)
    return [
        Task(
            f"t{row}",
            {"gpu": int(rng.integers(1, 5)) * 1000, "cpu": int(rng.integers(0, 3)) * 8000},
            float(rng.integers(1, 100)),
            float(rng.integers(0, 60)),
            f"t{row}",
            deadline=math.inf if rng.random() < 0.2 else float(rng.integers(100, 3000)),
        )
        for row in range(count)
    ]


def first_overdue(view: View, tasks: list[Task]) -> float:
    """Return the first deadline before which the work due does not fit, task by task."""
    work = [(task.deadline, task, view.shortest_run_s(task)) for task in tasks]
    work += [(-math.inf, t, t.run_seconds(view.node(node)) + start - view.now) for t, node, start in view.running()]
    spent: dict[str, float] = {}
    for deadline, task, seconds in sorted(work, key=lambda item: item[0]):
        for kind, amount in task.demand.items():
            spent[kind] = spent.get(kind, 0.0) + amount * seconds
            if (
                amount
                and math.isfinite(deadline)
                and spent[kind] > view.total_capacity(kind) * (deadline - view.now) + 1e-6
            ):
                return deadline
    return 0.0


@pytest.mark.parametrize("seed", range(20))
def test_the_demand_test_equals_a_task_by_task_sum(seed: int) -> None:
    """At any time, the first deadline that cannot be met is the one that adding up task by task finds."""
    tasks = urgent(seed, 60)
    loop = run_simulation(prepare_simulation(cluster(), tasks, [Edf(admit=False)]), until=30.0 + 5 * seed)
    waiting = [task for task in loop.view.waiting() if math.isfinite(task.deadline)]
    assert loop.view.first_overload_s(waiting) == first_overdue(loop.view, waiting)


def test_the_next_unit_is_found_without_comparing_all() -> None:
    """Of hundreds of waiting units each is examined a few times; the order of starts is as if all were compared."""
    asked: list[str] = []

    def rank(unit: Unit) -> tuple[float, float]:
        asked.append(unit[0].name)
        return unit[0].deadline, unit[0].arrival

    tasks = urgent(0, 400)
    plain = simulate(cluster(), tasks, [Edf(admit=False, queue=AdmissionQueue("name"))])
    assert starts(simulate(cluster(), tasks, [Edf(admit=False, queue=AdmissionQueue("name", rank))])) == starts(plain)
    assert len(asked) < 10 * len(tasks)


@pytest.mark.parametrize("size", [1, 2])
def test_backfill_candidates_are_found_without_comparing_all(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``backfill`` units start as if each that waits were asked at every event; of those alike one is asked."""
    tasks = [replace(task, job=f"j{row // size}", size=size) for row, task in enumerate(urgent(0, 120))]
    gang: list[Policy] = [Gang()] if size > 1 else []
    plain = simulate(cluster(), tasks, [Edf(admit=False, backfill=True, queue=AdmissionQueue("name")), *gang])
    asked: list[str] = []
    room = View.room

    def counted(view: View, unit: Unit, phase: int) -> list[str] | None:
        asked.append(unit[0].name)
        return room(view, unit, phase)

    monkeypatch.setattr(View, "room", counted)
    gang = [Gang()] if size > 1 else []
    found = simulate(cluster(), tasks, [Edf(admit=False, backfill=True), *gang])
    assert (starts(found), found.node_rows.tolist()) == (starts(plain), plain.node_rows.tolist())
    assert len(asked) < 20 * len(tasks)


def test_a_late_stage_makes_its_dependents_late() -> None:
    """A task with a deadline before the earliest end of the stages that it comes after is refused on arrival."""
    first, second = job("a", 2, run=10), [replace(task, after=("a",)) for task in job("b", 1, run=5)]
    third = [
        replace(task, after=("b",), deadline=deadline) for task, deadline in zip(job("c", 1), (24.0,), strict=True)
    ]
    assert set(run(cluster(), [*first, *second, *third], edf={}, barrier={}).rejections) == {"c-0"}
    on_time = [replace(task, deadline=25.0) for task in third]
    assert starts(run(cluster(), [*first, *second, *on_time], edf={}, barrier={}))["c-0"] == 15.0
    assert starts(run(cluster(), [*first, *second, *third], edf={}))["c-0"] == 0.0


def test_withdrawn_tasks_are_not_due_work() -> None:
    """A task that was taken back as it waited leaves its time to whoever comes next."""
    tasks = [job(name, 1, run=run, at=at)[0] for name, run, at in (("x", 10, 0), ("w", 5, 0), ("y", 9, 0), ("z", 9, 2))]
    tasks = [replace(task, deadline=deadline) for task, deadline in zip(tasks, (25, 20, 25, 25), strict=True)]
    loop = run_simulation(prepare_simulation(cluster(1, gpu=1), tasks, [Edf()]), until=1.0)
    end_task(loop, "y-0", has_finished=False)
    loop.process_events()
    assert not collect_result(run_simulation(loop)).rejections


@pytest.mark.parametrize("gang", [{}, {"gang": {}}])
def test_dependents_of_a_rejected_job_are_rejected(gang: dict[str, Any]) -> None:
    """Whatever waits for the end of a job that never runs is refused with it, whether it came before or after."""
    late = [replace(task, deadline=6.0) for task in job("late", 2, at=5)]
    early = [replace(task, after=("late",)) for task in job("early", 2)]
    last = [replace(task, after=("early",)) for task in job("last", 1, at=9)]
    found = run(cluster(), [*late, *early, *last, *job("free", 1)], edf={}, barrier={}, **gang)
    assert set(found.rejections) == {"late-0", "late-1", "early-0", "early-1", "last-0"}
    assert not found.stuck
