"""Resolves a spec: nodes, tasks, policies and cluster access. Nothing below this module reads a spec."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType

import numpy as np

from unfold_placement.core.types import MILLI, PODS, UP, Node, NodeChange, Task
from unfold_placement.kubernetes.connection import ClusterAccess, read_nodes
from unfold_placement.kubernetes.objects.codec import UNITS
from unfold_placement.kueue.comparison import QueueProblem, change_quotas, sum_nominal
from unfold_placement.kueue.objects import QueueSnapshot
from unfold_placement.policies.registry import CUSTOM, PolicyRule, has_policy
from unfold_placement.report import sentences
from unfold_placement.schema.placement import (
    ClusterSpec,
    KubernetesSpec,
    ManySpec,
    NodeSpec,
    PlacementSpec,
    TaskSpec,
    TraceSpec,
    WorkloadSpec,
)
from unfold_placement.schema.policies import PackOptions, PolicySpec, QuotaOptions, check_pack_levels
from unfold_placement.simulation.problem import Problem
from unfold_placement.workload.json_stream import Warn
from unfold_placement.workload.kubectl import OWN_NAMES, build_listed_nodes, kubectl_nodes, kubectl_tasks
from unfold_placement.workload.kueue_objects import read_queue_snapshot
from unfold_placement.workload.log_formats import add_format_hint
from unfold_placement.workload.manifests import read_manifests
from unfold_placement.workload.node_events import read_node_changes
from unfold_placement.workload.philly import philly_nodes, philly_tasks
from unfold_placement.workload.ray_state import ray_nodes, ray_tasks
from unfold_placement.workload.swf import swf_nodes, swf_tasks
from unfold_placement.workload.tables import csv_nodes, csv_tasks, openb_nodes, openb_tasks
from unfoldkit.api import Run, UnfoldError, did_you_mean, user_error

MIB = 1 << 20
KUBECTL = "kubectl"
FIELD_READERS = {"after": "barrier", "types": "types", "data": "locality", "avoids": "avoid"}
"""Fields of tasks that one policy alone reads."""
KUEUE_VERSION = "0.17"
"""The replay follows the rules of this version."""
AMOUNT_TOLERANCE = 1e-6
SPACING_TOLERANCE = 1e-9
NODE_READERS: Mapping[str, Callable[[Path], Iterable[Node]]] = {
    "openb": openb_nodes,
    "kubectl": kubectl_nodes,
    "ray": ray_nodes,
    "swf": swf_nodes,
    "philly": philly_nodes,
}
"""Readers of nodes by trace format; any other format is a CSV table."""
TASK_READERS: Mapping[str, Callable[..., Iterable[Task]]] = {
    "kubectl": kubectl_tasks,
    "ray": ray_tasks,
    "swf": swf_tasks,
    "philly": philly_tasks,
}
"""Readers of tasks by trace format, except openb, which has other options; any other format is a CSV table."""


def build_problem(spec: PlacementSpec, run: Run) -> Problem:
    """Resolve a spec into a placement problem.

    Raises:
        UnfoldError: Nodes or tasks are missing, a file is unreadable, or tasks are packed by an unknown label.
    """
    notes: list[str] = []
    nodes, tasks = build_nodes(spec.cluster, run), build_tasks(spec.workload, run, notes.append)
    if not nodes and spec.cluster.kubernetes is not None:
        nodes = read_nodes(spec.name, cluster_access(spec.cluster.kubernetes))
    if spec.cluster.kubernetes is not None or spec.cluster.trace == "kubectl":
        tasks = add_pod_slots(nodes, tasks)
    if not nodes:
        raise user_error(
            "a plan needs to know the nodes", key="cluster", hint="write nodes beside ray, or unfold serve"
        )
    check_pack_levels(spec.policy, nodes)
    rules = policy_rules(spec.policy)
    notes += [sentences.ignored_field_line(field, policy) for field, policy in find_ignored_fields(tasks, rules)]
    return Problem(
        name=spec.name,
        nodes=tuple(protect_nodes(nodes, rules)),
        tasks=tuple(protect_tasks(tasks, rules)),
        rules=rules,
        allow_code=run.allow_code,
        is_recorded=not spec.workload.tasks,
        explained_task=spec.explain.task if spec.explain is not None else "",
        explained_at_s=spec.explain.at if spec.explain is not None else None,
        notes=tuple(notes),
        node_changes=build_node_changes(spec.cluster, nodes, run),
    )


def find_ignored_fields(tasks: Sequence[Task], rules: Sequence[PolicyRule]) -> list[tuple[str, str]]:
    """Return the fields of tasks that no configured policy reads, each with the policy that does."""
    if has_policy(rules, CUSTOM):
        return []
    ignored = [(field, name) for field, name in FIELD_READERS.items() if not has_policy(rules, name)]
    return [(field, name) for field, name in ignored if any(getattr(task, field) for task in tasks)]


def protect_tasks(tasks: Sequence[Task], rules: Sequence[PolicyRule]) -> Sequence[Task]:
    """Return tasks with mappings that a policy of the user cannot change, as the report counts what stands there."""
    if not has_policy(rules, CUSTOM):
        return tasks
    return [
        replace(task, demand=MappingProxyType(dict(task.demand)), run_on=MappingProxyType(dict(task.run_on)))
        for task in tasks
    ]


def protect_nodes(nodes: Sequence[Node], rules: Sequence[PolicyRule]) -> Sequence[Node]:
    """Return nodes with capacities and labels that a policy of the user cannot change."""
    if not has_policy(rules, CUSTOM):
        return nodes
    return [
        replace(node, capacity=MappingProxyType(dict(node.capacity)), labels=MappingProxyType(dict(node.labels)))
        for node in nodes
    ]


def build_queue_problem(spec: PlacementSpec, run: Run) -> QueueProblem | None:
    """Resolve a spec with a workload of Kueue's objects; None for every other spec.

    Raises:
        UnfoldError: The file is malformed, or the spec has keys that say nothing about Kueue's queues.
    """
    trace = spec.workload.replay
    if trace is None or trace.trace != KUBECTL:
        return None
    path = run.path(trace.path, key="workload.replay.path")
    before = read_queue_snapshot(path, trace.run)
    if before is None:
        if trace.run is not None or trace.apply is not None:
            key = "workload.replay.run" if trace.run is not None else "workload.replay.apply"
            raise user_error(f"{path.name} has no ClusterQueue, and this applies to Kueue's objects only", key=key)
        return None
    _check_queue_keys(spec, trace)
    after = before
    if trace.apply is not None:
        changed = read_queue_snapshot(path, trace.run, run.path(trace.apply, key="workload.replay.apply"))
        after = before if changed is None else replace(changed, began_s=before.began_s)
    if spec.policy.quota is not None:
        after = _apply_quotas(after, spec.policy.quota)
    notes = [sentences.admission_only_line(), sentences.manager_settings_line(KUEUE_VERSION), *after.notes]
    notes += _compare_with_nodes(after, _read_nodes_beside_queues(spec, run))
    name = spec.explain.task if spec.explain is not None else ""
    names = {workload.name for workload in after.workloads}
    if name and name not in names:
        raise user_error(f"no such workload: {name}", key="explain.task", hint=did_you_mean(name, names))
    return QueueProblem(name=spec.name, before=before, after=after, explained=name, notes=tuple(notes))


def build_nodes(cluster: ClusterSpec, run: Run) -> list[Node]:
    """Build the nodes of a spec, written or read from a file; a live cluster has none here.

    Raises:
        UnfoldError: The file is missing or malformed, or two nodes have one name.
    """
    if cluster.trace:
        nodes = _read_node_file(cluster, run)
    else:
        counts = Counter[str]()
        nodes = [node for group in cluster.nodes for node in _expand_nodes(group, counts)]
    for name, count in Counter(node.name for node in nodes).most_common(1):
        if count > 1:
            key = "cluster.path" if cluster.trace else "cluster.nodes"
            raise user_error(f"{count} nodes have the name {name}", key=key, hint="names must be unique")
    return nodes


def build_node_changes(cluster: ClusterSpec, nodes: Sequence[Node], run: Run) -> tuple[NodeChange, ...]:
    """Build the changes of nodes of a spec, written and read from its file, in order of time.

    Raises:
        UnfoldError: The file is missing or malformed, or a node does not exist.
    """
    names = [node.name for node in nodes]
    changes = []
    for index, event in enumerate(cluster.events):
        for name in event.nodes:
            if name not in names:
                key = f"cluster.events.{index}.nodes"
                raise user_error(f"no such node: {name}", key=key, hint=did_you_mean(name, names))
            changes.append(NodeChange(event.at, name, event.change))
            changes += [NodeChange(event.at + event.lasts, name, UP)] if event.lasts is not None else []
    if cluster.churn is not None:
        # of a part of a trace's nodes, the events of the others do not matter
        changes += read_node_changes(run.path(cluster.churn, key="cluster.churn"), names, skips=cluster.part < 1)
    return tuple(sorted(changes, key=lambda change: change.at))


def build_tasks(workload: WorkloadSpec, run: Run, warn: Warn | None = None) -> list[Task]:
    """Build the tasks of a spec, in the order of the spec or file.

    Args:
        workload: The workload.
        run: The run.
        warn: Receives how many rows used which default, and how many are left out; the log by default.

    Raises:
        UnfoldError: There are none, or a file is missing or malformed.
    """
    if workload.replay:
        return _read_task_file(workload.replay, run, warn or run.log.warning)
    if workload.made:
        return _generate_tasks(workload.made, np.random.default_rng(run.seed))
    if not workload.tasks:
        raise user_error(
            "a plan needs tasks", key="workload", hint="write tasks: [{job: a, count: 8, cpu: 1, run: 10 min}]"
        )
    return _expand_tasks(workload.tasks)


def add_pod_slots(nodes: Sequence[Node], tasks: Sequence[Task]) -> list[Task]:
    """Let each task occupy one pod slot if all nodes limit their pods; else return the tasks unchanged."""
    has_slots = bool(nodes) and all(PODS in node.capacity for node in nodes)
    return [replace(task, demand={PODS: MILLI, **task.demand}) for task in tasks] if has_slots else list(tasks)


def policy_rules(policy: PolicySpec) -> tuple[PolicyRule, ...]:
    """Return the configured policies with the arguments of their classes."""
    rules = []
    for name, options, _ in policy.parts():
        arguments = {key: getattr(options, key) for key in type(options).model_fields}
        if isinstance(options, PackOptions):
            arguments["fallback"] = dict(options.fallback)
        rules.append(PolicyRule(name, arguments))
    return tuple(rules)


def cluster_access(kubernetes: KubernetesSpec) -> ClusterAccess:
    """Return how to reach and use a Kubernetes cluster."""
    return ClusterAccess(
        context=kubernetes.context,
        kubeconfig=kubernetes.kubeconfig,
        namespace=kubernetes.namespace,
        resource_names=kubernetes.resources,
        bind_timeout_s=kubernetes.patience,
        max_in_flight=kubernetes.in_flight,
        counters=kubernetes.counters,
    )


def _read_node_file(cluster: ClusterSpec, run: Run) -> list[Node]:
    path = run.path(cluster.path or "", key="cluster.path")
    read = NODE_READERS.get(cluster.trace or "", partial(csv_nodes, columns=cluster.table.as_columns))
    nodes = list(read(path))
    if not nodes:
        raise user_error("no nodes", file=str(path), key="cluster.path")
    # evenly spaced; the tolerance keeps 3 / 0.1 from being less than 30
    count = max(1, round(cluster.part * len(nodes)))
    return [nodes[int(index / cluster.part + SPACING_TOLERANCE)] for index in range(count)]


def _expand_nodes(group: NodeSpec, counts: Counter[str]) -> Iterator[Node]:
    stem = group.name or "node"
    labels = {**group.labels, **({"type": group.type} if group.type else {})}
    for _ in range(group.count):
        name = stem if group.name and group.count == 1 else f"{stem}-{counts[stem]}"
        counts[stem] += 1
        yield Node(name, _amounts(group), labels, frozenset(group.data))


def _amounts(group: NodeSpec | TaskSpec) -> dict[str, int]:
    amounts = {"cpu": group.cpu, "gpu": group.gpu, "memory": group.memory / MIB, **group.resources}
    return {kind: math.ceil(amount * MILLI - AMOUNT_TOLERANCE) for kind, amount in amounts.items() if amount}


def _expand_tasks(groups: Sequence[TaskSpec]) -> list[Task]:
    sizes = Counter[str]()
    for group in groups:
        sizes[group.job] += group.count
    numbers = Counter[str]()
    tasks = []
    for group in groups:
        for index in range(group.count):
            arrival_s = group.at + index * group.every
            tasks.append(_build_task(group, arrival_s, numbers[group.job], sizes[group.job]))
            numbers[group.job] += 1
    return tasks


def _build_task(group: TaskSpec, arrival_s: float, number: int, size: int) -> Task:
    return Task(
        name=f"{group.job}-{number}",
        demand=_amounts(group),
        run=group.run,
        arrival=arrival_s,
        job=group.job,
        user=group.user,
        role=group.role,
        size=size,
        priority=group.priority,
        deadline=math.inf if group.deadline is None else arrival_s + group.deadline,
        follows=group.follows,
        avoids=group.avoids,
        after=group.after,
        data=group.data,
        run_on=group.run_on,
        types=group.types,
        checkpoint_every=group.checkpoint_every,
    )


def _generate_tasks(workload: ManySpec, rng: np.random.Generator) -> list[Task]:
    count = workload.random
    arrivals_s = np.cumsum(rng.exponential(1 / workload.rate, count))
    runs_s = workload.run * np.exp(workload.spread * rng.standard_normal(count) - workload.spread**2 / 2)
    users, demands = rng.integers(workload.users, size=count), rng.integers(len(workload.demands), size=count)
    amounts = [{kind: math.ceil(amount * MILLI) for kind, amount in demand.items()} for demand in workload.demands]
    return [
        Task(
            name=f"t{row}",
            demand=amounts[demands[row]],
            run=float(runs_s[row]),
            arrival=float(arrivals_s[row]),
            job=f"t{row}",
            user=f"u{users[row]}",
        )
        for row in range(count)
    ]


def _read_task_file(trace: TraceSpec, run: Run, warn: Warn) -> list[Task]:
    path = run.path(trace.path, key="workload.replay.path")
    if trace.trace == "openb":
        tasks = list(islice(openb_tasks(path, trace.user, trace.faster), trace.first))
    else:
        read = TASK_READERS.get(trace.trace, partial(csv_tasks, columns=trace.table.as_columns))
        try:
            tasks = list(read(path, trace.faster, trace.first, warn=warn))
        except UnfoldError as error:
            raise (add_format_hint(error, path) if read not in TASK_READERS.values() else error) from error
    if not tasks:
        raise user_error("no tasks", file=str(path), key="workload.replay.path")
    if len({task.name for task in tasks}) < len(tasks):
        name, count = Counter(task.name for task in tasks).most_common(1)[0]
        hint = "the tasks of one row are numbered: rename a row"
        raise user_error(f"{count} tasks have the name {name}", file=str(path), key="workload.replay.path", hint=hint)
    return tasks


def _check_queue_keys(spec: PlacementSpec, trace: TraceSpec) -> None:
    """Reject keys without a meaning for Kueue's queues.

    Raises:
        UnfoldError: There is one.
    """
    for name, options, path in spec.policy.parts():
        key = ".".join(map(str, path))
        if name != "quota":
            hint = "Kueue's own rules apply; change its objects with workload.replay.apply"
            raise user_error("Kueue's queues have only the policy quota", key=key, hint=hint)
        extra = sorted(options.model_fields_set - {"quotas", "resource"})
        if extra:
            hint = "a ClusterQueue's own preemption and borrowing apply; workload.replay.apply changes them"
            raise user_error("it does not apply to Kueue's queues", key=f"{key}.{extra[0]}", hint=hint)
    unused = {
        "workload.replay.faster": trace.faster != 1,
        "workload.replay.first": trace.first is not None,
        "cluster.events": bool(spec.cluster.events),
        "cluster.churn": spec.cluster.churn is not None,
        "cluster.kubernetes": spec.cluster.kubernetes is not None,
        "cluster.ray": spec.cluster.ray is not None,
    }
    for key, is_set in unused.items():
        if is_set:
            raise user_error("it does not apply to a replay of Kueue's queues", key=key, hint="leave it out")


def _apply_quotas(snapshot: QueueSnapshot, options: QuotaOptions) -> QueueSnapshot:
    resource = UNITS.get(options.resource, options.resource)
    amounts = {name: to_kueue_units(amount, resource) for name, amount in options.quotas.items()}
    for name, amount in amounts.items():
        if not amount.is_integer():
            key, unit = f"policy.quota.{name}", "a byte" if resource == "memory" else f"a unit of {resource}"
            raise user_error(f"{options.quotas[name]:g} is a fraction of {unit}", key=key, hint="write a whole number")
    return change_quotas(snapshot, {name: int(amount) for name, amount in amounts.items()}, resource)


def to_kueue_units(amount: float, resource: str) -> float:
    """Return an amount of a spec (cores, MiB, units) in Kueue's units: thousandths of a core, bytes, units."""
    factor = {"cpu": MILLI, "memory": MIB}.get(resource, 1)
    return round(amount * factor, 6)


def _read_nodes_beside_queues(spec: PlacementSpec, run: Run) -> list[Node]:
    cluster = spec.cluster
    if cluster.trace != KUBECTL:
        return build_nodes(cluster, run)
    path = run.path(cluster.path or "", key="cluster.path")
    bodies = [item.body for item in read_manifests(path) if item.kind == "Node"]
    return build_listed_nodes(bodies, path)


def _compare_with_nodes(snapshot: QueueSnapshot, nodes: list[Node]) -> Iterator[str]:
    """Yield a line for each resource if the quotas promise more of it than the nodes offer."""
    if not nodes:
        return
    for resource, quota in sum_nominal(snapshot).items():
        kind = OWN_NAMES.get(resource, resource)
        offered = sum(node.capacity.get(kind, 0) for node in nodes) / MILLI
        promised = quota / to_kueue_units(1, resource)
        if promised > offered:
            yield sentences.quota_above_nodes_line(resource, f"{promised:g}", f"{offered:g}")
