"""Nodes and pods as ``kubectl get nodes -o json`` and ``kubectl get pods -A -o json`` print them, or in YAML."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from unfold_placement.core.types import MILLI, Node, Task
from unfold_placement.kubernetes.objects.codec import MIB, UNITS, parse_time
from unfold_placement.kubernetes.objects.requests import sum_pod_requests
from unfold_placement.report.sentences import resource_claims_line
from unfold_placement.workload.json_stream import (
    Body,
    ItemFormat,
    Span,
    Timeline,
    Warn,
    build_tasks,
    parse_items,
    read_items,
)
from unfoldkit.api import user_error

S = TypeVar("S")
T = TypeVar("T")
OWN_NAMES = {cluster_name: name for name, cluster_name in UNITS.items()}
IGNORED_KINDS = frozenset({"ephemeral-storage"})
"""Node resources by which no policy places."""
BOUND_OWNERS = frozenset({"DaemonSet", "Node"})
"""Owners that bind their pods to nodes, so that these are not placed."""
UNSCHEDULABLE_EFFECTS = frozenset({"NoSchedule", "NoExecute"})
SYSTEM_TAINTS = frozenset({"node-role.kubernetes.io", "node.kubernetes.io"})
SUFFIXES = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3} | {
    prefix + binary: base ** (power + 1)
    for binary, base in (("", 1000), ("i", 1024))
    for power, prefix in enumerate("KMGTPE")
}
_QUANTITY = re.compile(r"([\d.]+(?:[eE][-+]?\d+)?)([numk]?|[KMGTPE]i?)")


def kubectl_nodes(path: Path) -> list[Node]:
    """Return the nodes that are ready and accept pods: their allocatable capacity, labels and instance type.

    Raises:
        UnfoldError: The file does not have this form.
    """
    bodies = _read_kind(path, "Node")
    nodes = build_listed_nodes(bodies, path)
    if not nodes:
        hint = "ready, not cordoned, and without the taints of a control plane"
        raise user_error(f"none of its {len(bodies)} nodes accepts pods", file=str(path), hint=hint)
    return nodes


def build_listed_nodes(bodies: Sequence[Body], path: Path) -> list[Node]:
    """Build the nodes among some objects that are ready and accept pods.

    Raises:
        UnfoldError: A node does not have this form.
    """
    nodes = _parse(bodies, path, lambda body: _build_node(body) if _accepts_pods(body) else None)
    return [node for node in nodes if node is not None]


def kubectl_tasks(path: Path, speedup: float = 1.0, max_tasks: int | None = None, warn: Warn = str) -> list[Task]:
    """Return the pods that ran as tasks.

    A task arrives when its pod was created, counted from the earliest, and runs from start to end of the pod. The job
    is the pod's owner, the user its namespace. Running pods end with the last time of the file. Pods of daemons and
    pods that never started are left out.

    Args:
        path: The file.
        speedup: Factor that accelerates arrivals.
        max_tasks: Use only so many pods.
        warn: Receives how many pods are left out.

    Raises:
        UnfoldError: The file does not have this form.
    """
    pods = _read_kind(path, "Pod")
    owner_kinds = _parse(pods, path, lambda body: _owners(body, "kind"))
    placed = [body for body, kinds in zip(pods, owner_kinds, strict=True) if not BOUND_OWNERS.intersection(kinds)]
    if count := sum(_parse(placed, path, lambda body: bool(body["spec"].get("resourceClaims")))):
        warn(resource_claims_line(path.name, count))
    form = ItemFormat("kubectl", "pods", "pods of daemons", _read_span, _build_task)
    return build_tasks(
        placed, path, form, skipped=len(pods) - len(placed), max_tasks=max_tasks, speedup=speedup, warn=warn
    )


def _read_kind(path: Path, kind: str) -> list[Body]:
    command = f"kubectl get {kind.lower()}s -o json"
    items = read_items(path, command)
    bodies = _keep_latest([body for body in items if body.get("kind", kind) == kind])
    if not bodies:
        kinds = Counter(str(body["kind"])[:60] for body in items)
        found = ", ".join(f"{count:,} {name}" for name, count in kinds.most_common(3))
        message = f"no {kind} in it" + (f" but {found}" if found else "")
        raise user_error(message, file=str(path), hint=command)
    return bodies


def _keep_latest(bodies: Sequence[Body]) -> list[Body]:
    """Keep the last state of each object: ``kubectl get -w`` prints an object at every change."""
    latest: dict[object, Body] = {}
    for index, body in enumerate(bodies):
        meta = body.get("metadata")
        uid = meta.get("uid") if isinstance(meta, dict) else None
        latest[uid if isinstance(uid, str) else index] = body
    return list(latest.values())


def _parse(items: Sequence[S], path: Path, parse: Callable[[S], T]) -> list[T]:
    return parse_items(items, path, "kubectl", parse)


def _accepts_pods(body: Body) -> bool:
    spec, conditions = body.get("spec") or {}, body["status"].get("conditions") or ()
    ready = [condition["status"] for condition in conditions if condition["type"] == "Ready"]
    taints = [taint for taint in spec.get("taints") or () if taint["effect"] in UNSCHEDULABLE_EFFECTS]
    has_system_taint = any(taint["key"].partition("/")[0] in SYSTEM_TAINTS for taint in taints)
    return ready in (["True"], []) and not spec.get("unschedulable") and not has_system_taint


def _build_node(body: Body) -> Node:
    labels = body["metadata"].get("labels") or {}
    node_type = labels.get("type", labels.get("node.kubernetes.io/instance-type", ""))
    amounts = _parse_amounts(body["status"]["allocatable"], math.floor)
    return Node(body["metadata"]["name"], amounts, {**labels, "type": node_type})


def _build_task(body: Body, span: Span, timeline: Timeline) -> Task:
    namespace = body["metadata"].get("namespace", "default")
    name = f"{namespace}/{body['metadata']['name']}"
    requests = sum_pod_requests(body["spec"], lambda texts: _parse_amounts(texts, math.ceil))
    return Task(
        name=name,
        demand={kind: amount for kind, amount in requests.items() if amount},
        run=span.run_s(timeline.end_s),
        arrival=timeline.arrival_s(span),
        # owners of two namespaces may have one name
        job=next((f"{namespace}/{owner}" for owner in _owners(body, "name")), name),
        user=namespace,
        priority=int(body["spec"].get("priority") or 0),
        preempts=body["spec"].get("preemptionPolicy") != "Never",
    )


def _owners(body: Body, key: str) -> list[str]:
    return [owner[key] for owner in body["metadata"].get("ownerReferences") or ()]


def _read_span(body: Body) -> Span:
    status = body.get("status") or {}
    containers = [*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())]
    states = [container.get("state") or {} for container in containers]
    ends = [end for state in states if (end := (state.get("terminated") or {}).get("finishedAt"))]
    starts = [start for state in states if (start := (state.get("running") or {}).get("startedAt"))]
    # an evicted pod has no containers, but conditions
    changes = [end for item in status.get("conditions") or () if (end := item.get("lastTransitionTime"))]
    has_ended = status.get("phase") in {"Succeeded", "Failed"} and (ends or changes)
    start = status.get("startTime")
    return Span(
        parse_time(body["metadata"]["creationTimestamp"]),
        parse_time(start) if start else None,
        max(map(parse_time, ends or changes)) if has_ended else None,
        max(map(parse_time, [*ends, *starts, *changes]), default=None),
    )


def _parse_amounts(amounts: Mapping[str, object], round_to: Callable[[float], int]) -> dict[str, int]:
    return dict(_parse_amount(name, str(text), round_to) for name, text in amounts.items() if name not in IGNORED_KINDS)


def _parse_amount(cluster_name: str, text: str, round_to: Callable[[float], int]) -> tuple[str, int]:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not an amount of {cluster_name}")
    exact = float(match[1]) * SUFFIXES[match[2]] * MILLI / (MIB if cluster_name == "memory" else 1)
    return OWN_NAMES.get(cluster_name, cluster_name), round_to(round(exact, 6))
