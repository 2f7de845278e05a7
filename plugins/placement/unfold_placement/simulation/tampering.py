"""Tasks and nodes that a user's policy changed, although they are read-only: their replay shows nothing."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from unfold_placement.core.policy import Policy, policy_error
from unfold_placement.core.resources import ResourceTable
from unfold_placement.core.types import Node, Task
from unfold_placement.policies.registry import CUSTOM, has_policy
from unfold_placement.simulation.problem import Problem
from unfold_placement.simulation.simulator import prepare_simulation, run_simulation
from unfoldkit.api import UnfoldError

HINT = "tasks and nodes are read-only; keep what the policy needs in the policy"
LIBRARY = __name__.partition(".")[0]


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
        UnfoldError: it did not; the error names the policy that changed them, found by a second replay.
    """
    if not has_policy(original.rules, CUSTOM):
        return
    change = _find_change(table, original)
    if change is not None:
        raise _find_culprit(original, change)


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
