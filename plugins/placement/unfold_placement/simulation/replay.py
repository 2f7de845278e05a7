"""Solving a placement problem: tasks that can run, replays with and without the policies, and one explained wait."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from unfold_placement.core import kernel
from unfold_placement.core.controller import Controller
from unfold_placement.core.explain import Reason, describe_wait, explain_wait, format_wait, record_history
from unfold_placement.core.types import Task
from unfold_placement.policies.registry import PolicyRule
from unfold_placement.simulation.audit import find_own_violations, find_violations, list_unaudited
from unfold_placement.simulation.deadlock_check import Counterexample, find_blocking_pair, find_counterexample
from unfold_placement.simulation.metrics import ReplayMetrics, compute_metrics, list_longest_waits
from unfold_placement.simulation.policy_side_effects import (
    check_inputs_unchanged,
    check_log,
    check_reproduced,
    copy_inputs,
)
from unfold_placement.simulation.problem import Problem
from unfold_placement.simulation.simulator import (
    SimulationResult,
    collect_result,
    prepare_simulation,
    run_simulation,
)
from unfold_placement.simulation.starvation import Starvation, find_starvation
from unfold_placement.simulation.unplaceable import find_unplaceable
from unfoldkit.api import did_you_mean, user_error


@dataclass(frozen=True, slots=True)
class Monitor:
    """How a long computation measures its time and reports progress.

    Attributes:
        clock: Returns seconds.
        progress: Called with the step, the starts so far and the number of tasks.
    """

    clock: Callable[[], float]
    progress: Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Screening:
    """The tasks that can run and those that cannot.

    Attributes:
        problem: The problem with the tasks that can run.
        excluded: Tasks that can never run.
        reasons: Why, by name.
        counterexample: Jobs among the remaining tasks that deadlock, or None.
    """

    problem: Problem
    excluded: tuple[Task, ...]
    reasons: Mapping[str, str]
    counterexample: Counterexample | None


@dataclass(frozen=True, slots=True)
class Replay:
    """A simulated workload.

    Attributes:
        result: The result.
        metrics: Its metrics.
        violations: Its violations of the policies.
        elapsed_s: Seconds that the replay took.
        unaudited: Policies that no audit covers.
    """

    result: SimulationResult
    metrics: ReplayMetrics
    violations: tuple[str, ...]
    elapsed_s: float
    unaudited: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WaitExplanation:
    """Why a task waits at a time (s): the dominant reason, and each of its requirements."""

    task: Task
    at_s: float
    reasons: tuple[Reason, ...]
    dominant: str


@dataclass(frozen=True, slots=True)
class Solution:
    """The replay under the policies, the one without any, the explained wait, and a task that starves."""

    policy: Replay
    baseline: Replay
    explanation: WaitExplanation | None
    starvation: Starvation | None = None


def screen_tasks(problem: Problem) -> Screening:
    """Separate tasks that can never run, and check the others for deadlocks.

    In a written workload no task is excluded: a task that cannot run is a counterexample.
    """
    # what a user's policy does to the copies here does not reach the replay, which would take it for the input
    copied = copy_inputs(problem)
    reasons = find_unplaceable(copied) if problem.is_recorded else {}
    excluded = tuple(task for task in problem.tasks if task.name in reasons)
    remaining = tuple(task for task in problem.tasks if task.name not in reasons)
    check = find_blocking_pair if problem.is_recorded else find_counterexample
    counterexample = check(copied.nodes, remaining, problem.new_policies) if remaining else None
    return Screening(replace(problem, tasks=remaining), excluded, reasons, counterexample)


def solve_problem(screening: Screening, monitor: Monitor) -> Solution:
    """Replay the tasks that can run with and without the policies, and explain one wait.

    Raises:
        UnfoldError: The task to explain does not exist, or can never run, or a policy misbehaves.
    """
    problem = screening.problem
    policy = replay_workload(problem, monitor)
    baseline = replay_workload(replace(problem, rules=()), monitor, audited_rules=problem.rules)
    if problem.explained_task in screening.reasons:
        reason = screening.reasons[problem.explained_task]
        raise user_error(f"{problem.explained_task} can never run: {reason}", key="explain.task")
    starvation = find_starvation(problem.nodes, policy.result, problem.new_policies)
    return Solution(policy, baseline, explain_task(problem, policy.result, monitor), starvation)


def replay_workload(problem: Problem, monitor: Monitor, audited_rules: tuple[PolicyRule, ...] | None = None) -> Replay:
    """Replay a workload, and audit it against its policies or against ``audited_rules``.

    Raises:
        UnfoldError: A policy misbehaves, or changed a task or node.
    """
    original = copy_inputs(problem)
    controller = prepare_simulation(problem.nodes, problem.tasks, problem.new_policies(), problem.node_changes)
    began_s = monitor.clock()
    step = "replay" if controller.policies else "replay without policy"
    count = len(problem.tasks)
    try:
        run_simulation(controller, on_step=lambda starts: monitor.progress(step, starts, count))
    finally:
        check_inputs_unchanged(controller.table, original)
    result = collect_result(controller)
    check_log(result, original)
    elapsed_s = monitor.clock() - began_s
    rules = problem.rules if audited_rules is None else audited_rules
    violations = [*find_violations(result, rules), *find_own_violations(result, controller.policies)]
    unaudited = tuple(list_unaudited(rules, controller.policies))
    return Replay(result, compute_metrics(result), tuple(violations), elapsed_s, unaudited)


def explain_task(problem: Problem, result: SimulationResult, monitor: Monitor) -> WaitExplanation | None:
    """Explain the wait of the requested task, or of the one that waited longest; None if no task waited.

    Raises:
        UnfoldError: The requested task does not exist, or the replay cannot be repeated.
    """
    selection = _select_explained(problem, result)
    if selection is None:
        return None
    task, at_s = selection
    controller = prepare_simulation(problem.nodes, problem.tasks, problem.new_policies(), problem.node_changes)
    history = record_history(controller)
    count = len(problem.tasks)
    run_simulation(controller, until=at_s, on_step=lambda starts: monitor.progress("explain", starts, count))
    check_reproduced(result, controller, at_s)
    if other := _describe_other_state(controller, task):
        return WaitExplanation(task, at_s, (), other)
    dominant = format_wait(describe_wait(controller, task))
    return WaitExplanation(task, at_s, tuple(explain_wait(controller, task, history)), dominant)


def _describe_other_state(controller: Controller, task: Task) -> str:
    """Return what a task does instead of waiting; empty if it waits."""
    status = controller.table.state.status[controller.table.task_rows[task.name]]
    node = next((node for running, node, _ in controller.view.running() if running.name == task.name), "")
    states = {
        kernel.NOT_SUBMITTED: "has not arrived",
        kernel.RUNNING: f"runs on {node}",
        kernel.DONE: "has ended",
        kernel.REFUSED: "was rejected",
    }
    return states.get(int(status), "")


def _select_explained(problem: Problem, result: SimulationResult) -> tuple[Task, float] | None:
    tasks, name = problem.tasks, problem.explained_task
    rows = {task.name: row for row, task in enumerate(tasks)}
    if name and name not in rows:
        raise user_error(f"no such task: {name}", key="explain.task", hint=did_you_mean(name, rows))
    waits = list_longest_waits(result)
    # a rejected task waits for nothing
    candidates = [row for row, task in enumerate(tasks) if task.name not in result.rejections]
    if not name and not candidates:
        return None
    row = rows[name] if name else max(candidates, key=lambda row: waits[row][1] - waits[row][0])
    if name and problem.explained_at_s is not None:
        return tasks[row], problem.explained_at_s
    begin_s, end_s = waits[row]
    return (tasks[row], (begin_s + end_s) / 2) if end_s > begin_s else None
