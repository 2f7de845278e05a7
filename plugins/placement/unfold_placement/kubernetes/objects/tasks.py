"""The task of a pod: from its annotation, or from what its spec shows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import msgspec

from unfold_placement.core.types import Task
from unfold_placement.kubernetes.objects.codec import Body, Scope, annotation_key, clamp_amount, parse_time
from unfold_placement.kubernetes.objects.node_rules import pod_filter
from unfold_placement.kubernetes.objects.requests import pod_demand
from unfold_placement.kubernetes.objects.volumes import Volumes
from unfold_placement.kubernetes.objects.workloads import Group, parse_count
from unfoldkit.api import user_error

MAX_SIZE, MAX_PRIORITY = 1_000_000, 1 << 31
"""Tasks of a gang, and the highest priority of a pod."""


def decode_task(
    pod: Body, scope: Scope, origin: float, group: Group | None = None, volumes: Volumes | None = None
) -> Task:
    """Decode the task of a pod; for a pod made by other programs, from what its spec shows.

    Args:
        pod: The pod.
        scope: The policy's scope.
        origin: Unix time from which the policy's times count.
        group: The workload to which the pod belongs, if its owner forms one.
        volumes: Where its volumes are; None restricts nothing by them.

    Raises:
        UnfoldError: The annotation is malformed.
    """
    meta = pod["metadata"]
    notes, labels = meta.get("annotations") or {}, meta.get("labels") or {}
    name = notes.get(annotation_key("name"), meta["name"])
    demand, created = pod_demand(pod, scope), parse_time(meta["creationTimestamp"])
    demand |= volumes.attachments(pod) if volumes is not None else {}
    group = group or Group(
        labels.get(annotation_key("job"), name), max(1, parse_count(notes, "size")), created_s=created
    )
    visible: Body = {
        "run": 0.0,
        "job": group.job,
        "size": group.size,
        "completes": group.completes,
        "role": labels.get(annotation_key("role"), group.role),
        "user": labels.get(annotation_key("user"), ""),
        "priority": int(pod["spec"].get("priority") or 0),
        "preempts": pod["spec"].get("preemptionPolicy") != "Never",
    }
    try:
        annotated = msgspec.json.decode(notes.get(annotation_key("task"), "{}"), type=dict[str, Any])
        task = msgspec.convert({**visible, "demand": {}, **annotated, "name": name}, Task)
    except msgspec.MsgspecError as error:
        raise user_error(f"pod {meta['name']}: {annotation_key('task')} is malformed: {error}") from error
    if fault := _find_task_fault(task):
        raise user_error(f"pod {meta['name']}: {annotation_key('task')} has {fault}")
    arrival = _read_arrival(meta["name"], notes.get(annotation_key("arrival")), group.created_s) - origin
    # rounding to whole units of Kubernetes may add a thousandth; sidecars of the template count
    stated = {kind: clamp_amount(amount) for kind, amount in task.demand.items() if demand.get(kind, 0) <= amount + 1}
    return replace(
        task,
        demand={**demand, **stated},
        node_filter=pod_filter(pod, scope, volumes),
        arrival=arrival,
        deadline=arrival + task.deadline,
    )


def _read_arrival(pod: str, text: str | None, created_s: float) -> float:
    """Return the Unix time in an annotation, by default that of the creation; queues cannot be sorted by any other."""
    try:
        arrival = float(text or created_s)
    except ValueError:
        arrival = math.nan
    if not math.isfinite(arrival):
        raise user_error(f"pod {pod}: {annotation_key('arrival')} is {text!r}, not a time", hint="Unix seconds")
    return arrival


def _find_task_fault(task: Task) -> str:
    """Return the field of an annotation that is out of range; empty for none."""
    times = {"run": task.run, "checkpoint_every": task.checkpoint_every, **task.run_on}
    wrong_times = [name for name, value in times.items() if not (0 <= value < math.inf)]
    if wrong_times:
        return f"a {wrong_times[0]} that is not a time"
    if math.isnan(task.deadline):
        return "a deadline that is not a time"
    if not 1 <= task.size <= MAX_SIZE:
        return f"a size of {task.size}"
    return f"a priority of {task.priority}" if abs(task.priority) > MAX_PRIORITY else ""
