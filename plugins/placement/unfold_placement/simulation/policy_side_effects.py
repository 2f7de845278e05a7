"""What makes the replay of a user's policy show nothing: changed tasks and nodes, and state that outlives a replay."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np

from unfold_placement.core import kernel
from unfold_placement.core.controller import Controller
from unfold_placement.core.policy import Policy, is_shipped, policy_error
from unfold_placement.core.resources import ResourceTable
from unfold_placement.core.types import Node, Task
from unfold_placement.policies.registry import CUSTOM, has_policy
from unfold_placement.simulation.problem import Problem
from unfold_placement.simulation.simulator import SimulationResult, collect_result, prepare_simulation, run_simulation
from unfoldkit.api import UnfoldError

HINT = "tasks and nodes are read-only; keep what the policy needs in the policy"
STATE_HINT = "a policy is built for each replay: its state belongs in its object, and its random numbers need a seed"
LIBRARY = __name__.partition(".")[0]
TOLERANCE = 1e-9
"""Relative error of times."""


@dataclass(frozen=True, slots=True)
class Change:
    """A field of a task or node that is no longer what it was: its object's name, and both values."""

    name: str
    field: str
    before: object
    after: object


def copy_inputs(problem: Problem) -> Problem:
    """Return a problem with tasks and nodes of its own, if it has a user's policy; else the problem itself."""
    if not has_policy(problem.rules, CUSTOM):
        return problem
    tasks, nodes = tuple(replace(task) for task in problem.tasks), tuple(replace(node) for node in problem.nodes)
    return replace(problem, tasks=tasks, nodes=nodes)


def check_inputs_unchanged(table: ResourceTable, original: Problem) -> None:
    """Check that a replay left the tasks and nodes as ``copy_inputs`` returned them before it.

    Raises:
        UnfoldError: It did not; the error names the policy that changed them, found by a second replay.
    """
    if not has_policy(original.rules, CUSTOM):
        return
    change = _find_change(table, original)
    if change is not None:
        raise _find_culprit(original, change)


def check_log(result: SimulationResult, original: Problem) -> None:
    """Check that the log of a whole replay agrees with the tasks: a user's policy can reach the arrays behind its view.

    Raises:
        UnfoldError: It does not.
    """
    if has_policy(original.rules, CUSTOM) and (fault := _find_log_fault(result)):
        own = next(policy for policy in original.new_policies() if not is_shipped(type(policy)))
        raise policy_error(own, "react", f"it changed the arrays of the cluster: {fault}", hint=HINT)


def check_reproduced(result: SimulationResult, controller: Controller, until_s: float) -> None:
    """Check that a second replay up to a time (s) went as the first: new policies know nothing of earlier replays.

    Raises:
        UnfoldError: It did not, because of a user's policy that keeps state elsewhere, or depends on chance.
    """
    own = next((policy for policy in controller.policies if not is_shipped(type(policy))), None)
    if own is None:
        return
    logs = [(log.times, log.kinds, log.tasks, log.nodes) for log in (result.log, collect_result(controller).log)]
    first, second = (np.array(columns)[:, columns[0] < until_s] for columns in logs)
    count = min(first.shape[1], second.shape[1])
    differing = np.flatnonzero((first[:, :count] != second[:, :count]).any(axis=0))
    if differing.size or first.shape[1] != second.shape[1]:
        at = int(differing[0]) if differing.size else count
        at_s = min(float(log[0, at]) for log in (first, second) if at < log.shape[1])
        message = f"two replays of the same workload differ from {at_s:g} s on"
        raise policy_error(own, "react", message, hint=STATE_HINT)


def _find_log_fault(result: SimulationResult) -> str:
    """Return what in the log cannot have happened; empty if all can."""
    log, began, last_s = result.log, dict[int, float](), 0.0
    columns = (array.tolist() for array in (log.times, log.kinds, log.tasks, log.nodes))
    for time_s, kind, row, node in zip(*columns, strict=True):
        if time_s < last_s:
            return f"the clock went back from {last_s:g} s to {time_s:g} s"
        last_s = time_s
        if kind == kernel.LOG_STARTED:
            began[row] = time_s
        elif kind in {kernel.LOG_ENDED, kernel.LOG_PREEMPTED}:
            task, ran_s = result.tasks[row], time_s - began.pop(row, math.inf)
            run_s = task.run_seconds(result.nodes[node])
            is_whole = kind == kernel.LOG_ENDED and not task.checkpoint_every
            if is_whole and not math.isclose(ran_s, run_s, rel_tol=TOLERANCE, abs_tol=TOLERANCE * time_s):
                return f"{task.name} ran for {ran_s:g} s, not for {run_s:g} s"
    return f"{result.tasks[min(began)].name} never ended" if began else ""


def _find_change(table: ResourceTable, original: Problem) -> Change | None:
    pairs: list[tuple[Task | Node, Task | Node]] = [
        *zip(original.tasks, table.tasks, strict=True),
        *zip(original.nodes, table.nodes, strict=True),
    ]
    for before, after in pairs:
        if before != after:
            values = ((field.name, getattr(before, field.name), getattr(after, field.name)) for field in fields(before))
            return next(Change(before.name, name, old, new) for name, old, new in values if old != new)
    return None


def _find_culprit(original: Problem, change: Change) -> UnfoldError:
    """Return the error of the policy that first changed tasks or nodes, found by a second replay step by step."""
    problem = copy_inputs(original)
    controller = prepare_simulation(problem.nodes, problem.tasks, problem.new_policies(), problem.node_changes)

    def inspect(policy: Policy, line: int) -> None:
        if (first := _find_change(controller.table, original)) is not None:
            raise _tampering_error(policy, "react", first, line)

    own = [policy for policy in controller.policies if not type(policy).__module__.startswith(LIBRARY)]
    if (first := _find_change(controller.table, original)) is not None:
        return _tampering_error(own[0], "request", first)
    controller.inspect = inspect
    try:
        run_simulation(controller)
    except UnfoldError as error:
        return error
    return _tampering_error(own[0], "react", change)


def _tampering_error(policy: Policy, method: str, change: Change, line: int = 0) -> UnfoldError:
    values = f"{str(change.before)[:60]} to {str(change.after)[:60]}"
    return policy_error(
        policy, method, f"it changed {change.field} of {change.name} from {values}", line=line, hint=HINT
    )
