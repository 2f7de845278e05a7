"""A workload replayed under its policy: its figures, what is wrong with it, and why a task waits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from unfold_placement.core.explain import Reason, explain_wait, record_history
from unfold_placement.core.policy import Policy
from unfold_placement.core.types import Node, Task
from unfold_placement.schema.models import PlacementSpec
from unfold_placement.simulation.audit import find_violations
from unfold_placement.simulation.metrics import ReplayMetrics, compute_metrics
from unfold_placement.simulation.simulator import SimulationResult, collect_result, prepare_simulation, run_simulation
from unfoldkit.api import Run, did_you_mean, fail

Make = Callable[[], Sequence[Policy]]


@dataclass(frozen=True, slots=True)
class Replay:
    """A replay with its figures, what is wrong with it, and the seconds that it took by the clock."""

    result: SimulationResult
    metrics: ReplayMetrics
    violations: tuple[str, ...]
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Explained:
    """A task that waits, the time (s) at which it was looked at, and what it needs."""

    task: Task
    at: float
    reasons: tuple[Reason, ...]


def replay(spec: PlacementSpec, nodes: Sequence[Node], tasks: Sequence[Task], make: Make, run: Run) -> Replay:
    """Replay a workload and audit it."""
    loop = prepare_simulation(nodes, tasks, make())
    began = run.clock()
    step = "replay" if loop.policies else "replay without policy"
    found = collect_result(run_simulation(loop, on_step=lambda placed: run.progress(step, placed, len(tasks))))
    seconds = run.clock() - began
    return Replay(found, compute_metrics(found), tuple(find_violations(found, spec.policy)), seconds)


def why(
    spec: PlacementSpec,
    nodes: Sequence[Node],
    tasks: Sequence[Task],
    make: Make,
    found: SimulationResult,
    run: Run,
    never: Mapping[str, str] = MappingProxyType({}),
) -> Explained | None:
    """Explain the task that the spec names, or the one that waited longest, in the middle of its wait.

    Raises:
        UnfoldError: there is no such task, or it is one of those that can ``never`` run, for the reason given.
    """
    if spec.explain is not None and spec.explain.task in never:
        raise fail(f"{spec.explain.task} can never run: {never[spec.explain.task]}", key="explain.task")
    picked = _picked(spec, tasks, found)
    if picked is None:
        return None
    task, at = picked
    loop = prepare_simulation(nodes, tasks, make())
    history = record_history(loop)
    run_simulation(loop, until=at, on_step=lambda placed: run.progress("explain", placed, len(tasks)))
    return Explained(task, at, tuple(explain_wait(loop, task, history)))


def _picked(spec: PlacementSpec, tasks: Sequence[Task], found: SimulationResult) -> tuple[Task, float] | None:
    rows = {task.name: row for row, task in enumerate(tasks)}
    if spec.explain is not None and spec.explain.task not in rows:
        hint = did_you_mean(spec.explain.task, rows)
        raise fail(f"no such task: {spec.explain.task}", key="explain.task", hint=hint)
    ends = [start if math.isfinite(start) else float(found.table.now) for start in found.start_s.tolist()]
    waits = [end - task.arrival for task, end in zip(tasks, ends, strict=True)]
    row = rows[spec.explain.task] if spec.explain is not None else max(range(len(tasks)), key=waits.__getitem__)
    if spec.explain is not None and spec.explain.at is not None:
        return tasks[row], spec.explain.at
    return (tasks[row], tasks[row].arrival + waits[row] / 2) if waits[row] > 0 else None
