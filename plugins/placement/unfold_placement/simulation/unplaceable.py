"""Tasks of a workload that can never run: told by name, and left out, so that the rest is replayed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from unfold_placement.core.types import Node, Task
from unfold_placement.schema.policies import GangOptions, PolicySpec, TypesOptions
from unfold_placement.simulation.deadlock_check import PolicyFactory, find_jobs_blocked_alone
from unfoldkit.api import did_you_mean

Reasons = dict[str, str]
"""Why a task can never run, by its name."""


def find_unplaceable(nodes: Sequence[Node], tasks: Sequence[Task], policy: PolicySpec, make: PolicyFactory) -> Reasons:
    """Return why tasks can never run: too large for any node, stuck alone on the empty cluster, or bound to such a one.

    The second is a bounded search, as in ``deadlock_check.py``: what it misses waits for ever in the replay.
    """
    found = _bound(tasks, policy, _too_large(nodes, tasks, _label(policy)))
    left = [task for task in tasks if task.name not in found]
    for blocked, names in find_jobs_blocked_alone(nodes, left, make):
        lacks = next((reason for reason in blocked.reasons if not reason.available_on), None)
        why = f"alone on the empty cluster it waits for {lacks.requirement if lacks else 'everything at one place'}"
        found |= {name: why for name in names if name not in found}
    told = _bound(tasks, policy, found)
    return {task.name: told[task.name] for task in tasks if task.name in told}


def _label(policy: PolicySpec) -> str:
    return next((options.label for _, options, _ in policy.parts() if isinstance(options, TypesOptions)), "")


def _too_large(nodes: Sequence[Node], tasks: Iterable[Task], label: str) -> Reasons:
    shapes: dict[tuple[object, ...], list[Task]] = defaultdict(list)
    for task in tasks:
        shapes[tuple(sorted(task.demand.items())), task.types if label else ()].append(task)
    told = {shape: _lacks(nodes, same[0], label) for shape, same in shapes.items()}
    return {task.name: told[shape] for shape, same in shapes.items() if told[shape] for task in same}


def _lacks(nodes: Sequence[Node], task: Task, label: str) -> str:
    """Return what no node has for a task, the empty text if one has all."""
    of_type = [node for node in nodes if not (label and task.types) or node.labels.get(label, "") in task.types]
    if any(_holds(node, task.demand) for node in of_type):
        return ""
    if not of_type:
        return f"no node is a {' or '.join(task.types)}"
    known = {kind for node in of_type for kind in node.capacity}
    for kind, amount in task.demand.items():
        if kind not in known:
            hint = did_you_mean(kind, known)
            return f"no node has any {kind}" + (f" ({hint})" if hint.startswith("did") else "")
        if not any(node.capacity.get(kind, 0) >= amount for node in of_type):
            return f"no node has {amount / 1000:g} {kind}"
    return "no node has " + " + ".join(f"{amount / 1000:g} {kind}" for kind, amount in task.demand.items())


def _holds(node: Node, demand: Mapping[str, int]) -> bool:
    return all(node.capacity.get(kind, 0) >= amount for kind, amount in demand.items())


def _bound(tasks: Sequence[Task], policy: PolicySpec, found: Reasons) -> Reasons:
    """Add who starts only with, or after, such a task."""
    told, before = dict(found), -1
    while before != len(told):
        before = len(told)
        told = {**dict(_with(tasks, policy, told)), **told}
    return told


def _with(tasks: Sequence[Task], policy: PolicySpec, found: Reasons) -> Iterator[tuple[str, str]]:
    out = Counter(task.job for task in tasks if task.name in found)
    whole = Counter(task.job for task in tasks)
    gangs = any(isinstance(options, GangOptions) for _, options, _ in policy.parts())
    names = {name for name, _, _ in policy.parts()}
    for task in tasks:
        if gangs and out[task.job]:
            yield task.name, f"{out[task.job]} of its gang {task.job} can never run"
        elif "barrier" in names and (job := next((job for job in task.after if out[job]), "")):
            yield task.name, f"it comes after {job}, which never ends"
        elif "affinity" in names and out[task.follows] and out[task.follows] == whole[task.follows]:
            yield task.name, f"it runs beside {task.follows}, which never runs"
