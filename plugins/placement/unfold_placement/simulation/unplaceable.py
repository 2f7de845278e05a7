"""Tasks of a workload that can never run. They are reported by name and left out of the replay."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from unfold_placement.core.types import MILLI, Node, Task
from unfold_placement.policies.registry import PolicyRule, has_policy
from unfold_placement.simulation.deadlock_check import Counterexample, find_jobs_blocked_alone
from unfold_placement.simulation.problem import Problem
from unfoldkit.api import did_you_mean

Reasons = dict[str, str]
"""Why a task can never run, by its name."""
DEMAND = "task"
"""What sets the requirements that are a task's own demand, in place of a policy."""


def find_unplaceable(problem: Problem) -> Reasons:
    """Return why tasks can never run.

    A task cannot run if it exceeds every node, is stuck alone on the empty cluster, or depends on such a task. The
    second check is bounded like ``deadlock_check.py``: tasks that it misses wait forever in the replay.
    """
    nodes, tasks, rules = problem.nodes, problem.tasks, problem.rules
    reasons = _add_dependents(tasks, rules, _find_too_large(nodes, tasks, _type_label(rules)))
    remaining = [task for task in tasks if task.name not in reasons]
    has_gangs = has_policy(rules, "gang")
    for counterexample, names in find_jobs_blocked_alone(nodes, remaining, problem.new_policies):
        reason = _missing_sum(nodes, remaining, counterexample) if has_gangs else ""
        reason = reason or _missing_requirement(counterexample)
        reasons |= {name: reason for name in names if name not in reasons}
    reasons = _add_dependents(tasks, rules, reasons)
    return {task.name: reasons[task.name] for task in tasks if task.name in reasons}


def _missing_sum(nodes: Sequence[Node], tasks: Iterable[Task], counterexample: Counterexample) -> str:
    """Return what a gang needs of some resource beyond all nodes together; empty if their sum suffices."""
    job = counterexample.jobs[0]
    members = [task for task in tasks if task.job == job]
    for kind in {kind: None for task in members for kind in task.demand}:
        needed = sum(task.demand.get(kind, 0) for task in members)
        offered = sum(node.capacity.get(kind, 0) for node in nodes)
        if needed > offered:
            amounts = f"{needed / MILLI:g} {kind}; all nodes together have {offered / MILLI:g}"
            return f"the {len(members)} tasks of its gang start together and need {amounts}"
    return ""


def _missing_requirement(counterexample: Counterexample) -> str:
    """Return what a task lacks alone on the empty cluster, and the policy that would create it."""
    missing = next((reason for reason in counterexample.reasons if not reason.available_on), None)
    requirement = missing.requirement if missing else "all requirements on one node"
    if missing is not None and missing.set_by != DEMAND:
        requirement = f"{missing.set_by} to create {requirement}"
    return f"alone on the empty cluster it waits for {requirement}"


def _type_label(rules: Sequence[PolicyRule]) -> str:
    return next((str(rule.options["label"]) for rule in rules if rule.name == "types"), "")


def _find_too_large(nodes: Sequence[Node], tasks: Iterable[Task], label: str) -> Reasons:
    alike: dict[tuple[object, ...], list[Task]] = defaultdict(list)
    for task in tasks:
        alike[tuple(sorted(task.demand.items())), task.types if label else ()].append(task)
    reasons = {shape: _missing_capacity(nodes, members[0], label) for shape, members in alike.items()}
    return {task.name: reasons[shape] for shape, members in alike.items() if reasons[shape] for task in members}


def _missing_capacity(nodes: Sequence[Node], task: Task, label: str) -> str:
    """Return what no node has for a task; empty if some node has everything."""
    allowed = [node for node in nodes if not (label and task.types) or node.labels.get(label, "") in task.types]
    if any(_covers(node, task.demand) for node in allowed):
        return ""
    if not allowed:
        return f"no node is a {' or '.join(task.types)}"
    kinds = {kind for node in allowed for kind in node.capacity}
    for kind, amount in task.demand.items():
        if kind not in kinds:
            hint = did_you_mean(kind, kinds)
            return f"no node has any {kind}" + (f" ({hint})" if hint.startswith("did") else "")
        if not any(node.capacity.get(kind, 0) >= amount for node in allowed):
            return f"no node has {amount / MILLI:g} {kind}"
    return "no node has " + " + ".join(f"{amount / MILLI:g} {kind}" for kind, amount in task.demand.items())


def _covers(node: Node, demand: Mapping[str, int]) -> bool:
    return all(node.capacity.get(kind, 0) >= amount for kind, amount in demand.items())


def _add_dependents(tasks: Sequence[Task], rules: Sequence[PolicyRule], reasons: Reasons) -> Reasons:
    """Add the tasks that start only with or after a task that cannot run."""
    closure, size = dict(reasons), -1
    while size != len(closure):
        size = len(closure)
        closure = {**dict(_find_dependents(tasks, rules, closure)), **closure}
    return closure


def _find_dependents(tasks: Sequence[Task], rules: Sequence[PolicyRule], reasons: Reasons) -> Iterator[tuple[str, str]]:
    impossible = Counter(task.job for task in tasks if task.name in reasons)
    sizes = Counter(task.job for task in tasks)
    has_gangs, has_barriers = has_policy(rules, "gang"), has_policy(rules, "barrier")
    has_affinity = has_policy(rules, "affinity")
    for task in tasks:
        if has_gangs and impossible[task.job]:
            yield task.name, f"{impossible[task.job]} of its gang {task.job} can never run"
        elif has_barriers and (job := next((job for job in task.after if impossible[job]), "")):
            yield task.name, f"it comes after {job}, which never ends"
        elif has_affinity and impossible[task.follows] and impossible[task.follows] == sizes[task.follows]:
            yield task.name, f"it runs beside {task.follows}, which never runs"
