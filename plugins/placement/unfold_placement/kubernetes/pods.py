"""Pods of tasks: gated when they come, opened when it is their turn, made again when they lose their place."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from unfold_placement.core.types import Ask, Task
from unfold_placement.kubernetes import dra
from unfold_placement.kubernetes.codec import (
    DRA,
    HOSTNAME,
    Body,
    Scope,
    annotation_key,
    container_requests,
    encode_task,
    json_pointer,
    parse_time,
    pod_name,
    shorten_name,
)
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Start

POLICY, TASK, ATTEMPT = annotation_key("policy"), annotation_key("task"), annotation_key("attempt")
STARTED, STARTS, ASKS, NODE, BY, REFUSED, AGAIN = map(
    annotation_key, ("started", "starts", "asks", "node", "by", "refused", "again")
)
PAUSE = "registry.k8s.io/pause:3.10"
ENDED = ("Succeeded", "Failed")
MADE_BY_SERVER = ("uid", "resourceVersion", "creationTimestamp", "managedFields", "deletionTimestamp", "generation",
                  "deletionGracePeriodSeconds", "selfLink")  # fmt: skip


def gated_pod(
    task: Task, asks: Iterable[Ask], scope: Scope, arrival: float, template: Mapping[str, Any] | None = None
) -> Body:
    """Return the pod of a task behind the gate of its policy; its first container asks for what the task does.

    ``template`` is a pod of the application's own (``metadata`` and ``spec``); without one, it pauses.
    """
    pod = copy.deepcopy(dict(template or {}))
    meta, spec = pod.setdefault("metadata", {}), pod.setdefault("spec", {})
    labels = {POLICY: scope.name, TASK: shorten_name(task.name, 63), ATTEMPT: "0"}
    labels |= {annotation_key("job"): shorten_name(task.job, 63)} if task.job else {}
    notes = {
        annotation_key("name"): task.name,
        annotation_key("task"): encode_task(task),
        annotation_key("arrival"): repr(arrival),
    }
    meta.update(name=pod_name(task.name, 0), namespace=scope.namespace)
    meta["labels"] = meta.get("labels", {}) | labels
    meta["annotations"] = meta.get("annotations", {}) | notes
    spec.setdefault("restartPolicy", "Never")
    spec["schedulingGates"] = [*spec.get("schedulingGates", ()), {"name": scope.gate}]
    first = (spec.setdefault("containers", None) or _pausing(spec))[0]
    names = tuple(asks)
    wanted = container_requests(task, names, scope)
    sizes = first.setdefault("resources", {})
    sizes["requests"] = sizes.get("requests", {}) | wanted
    # extended resources are given whole: the server wants the limit to be the request
    sizes["limits"] = sizes.get("limits", {}) | {k: v for k, v in wanted.items() if "/" in k}
    if scope.counters == DRA:
        dra.add_claim(pod, names)
    return {"apiVersion": "v1", "kind": "Pod", **pod}


def opening_patch(pod: Body, item: Start, host: str, by: str, now: float, attempt: int) -> list[Body]:
    """Return the JSON patch that opens a pod's gate and pins it to a node; it fails if the gate is open already."""
    gates = pod["spec"].get("schedulingGates", [])
    ours = next((place for place, gate in enumerate(gates) if gate["name"] == _gate(pod)), 0)
    test = {"op": "test", "path": f"/spec/schedulingGates/{ours}/name", "value": _gate(pod)}
    path = "/spec/schedulingGates" if len(gates) == 1 else f"/spec/schedulingGates/{ours}"
    pinned = {**pod["spec"].get("nodeSelector", {}), HOSTNAME: host}
    asks = msgspec.json.encode(item.asks).decode()
    notes = {STARTED: repr(now), STARTS: str(attempt), ASKS: asks, NODE: item.node, BY: by}
    return [
        test,
        {"op": "remove", "path": path},
        {"op": "add", "path": "/spec/nodeSelector", "value": pinned},
        *({"op": "add", "path": f"/metadata/annotations/{json_pointer(k)}", "value": v} for k, v in notes.items()),
    ]


def rejection_patch(reason: str, by: str) -> Body:
    """Return the merge patch that keeps a pod behind its gate for good, and says why."""
    return {"metadata": {"annotations": {REFUSED: reason, BY: by}}}


def next_attempt_pod(pod: Body, gate: str, kind: str, by: str) -> Body:
    """Return the pod of the next attempt, gated: a gate cannot be put back on the pod that lost its place."""
    made = copy.deepcopy(pod)
    made.pop("status", None)
    meta, spec = made["metadata"], made["spec"]
    for field in MADE_BY_SERVER:
        meta.pop(field, None)
    notes = meta["annotations"]
    for note in (STARTED, ASKS, NODE, BY):
        notes.pop(note, None)
    number = pod_index(pod) + 1
    notes |= {AGAIN: kind, BY: by}
    notes.setdefault(annotation_key("arrival"), repr(parse_time(pod["metadata"]["creationTimestamp"])))
    notes[annotation_key("name")] = task_name(pod)
    meta.update(name=pod_name(task_name(pod), number))
    dra.rename_claim(made)
    meta["labels"] |= {ATTEMPT: str(number), TASK: shorten_name(task_name(pod), 63)}
    spec.pop("nodeName", None)
    if spec.get("nodeSelector", {}).pop(HOSTNAME, None) and not spec["nodeSelector"]:
        del spec["nodeSelector"]
    spec["schedulingGates"] = [*spec.get("schedulingGates", ()), {"name": gate}]
    return {"apiVersion": "v1", "kind": "Pod", **made}


def task_name(pod: Body) -> str:
    """Return the task of a pod: the one that it was submitted as, or its own name."""
    return str(pod["metadata"].get("annotations", {}).get(annotation_key("name"), pod["metadata"]["name"]))


def pod_index(pod: Body) -> int:
    """Return which of its task's pods a pod is, from 0."""
    return _whole(pod["metadata"].get("labels", {}).get(ATTEMPT, "0"))


def start_count(pod: Body) -> int:
    """Return how often the task of a pod was started."""
    return _whole(pod["metadata"].get("annotations", {}).get(STARTS, "0"))


def task_state(pod: Body) -> str:
    """Return the state of a pod's task; empty if nobody ever gated it, so that it is none of ours."""
    notes = pod["metadata"].get("annotations", {})
    if _gated(pod):
        return kinds.REFUSED if REFUSED in notes else kinds.WAITING
    if STARTED not in notes:
        return ""
    return kinds.DONE if pod.get("status", {}).get("phase") in ENDED else kinds.RUNNING


def is_managed(pod: Body, scope: Scope) -> bool:
    """Return whether a pod is under our policy."""
    meta = pod["metadata"]
    return (meta.get("labels", {}).get(POLICY), meta.get("namespace")) == (scope.name, scope.namespace)


def is_disrupted(pod: Body) -> bool:
    """Return whether a pod is taken away by the cluster: drained, evicted, preempted by a higher class."""
    found = {item["type"]: item["status"] for item in pod.get("status", {}).get("conditions", ())}
    return str(found.get("DisruptionTarget")) == "True"


def is_over(pod: Body | None) -> bool:
    """Return whether a pod has ended, is ending, or is not there."""
    if pod is None:
        return True
    return pod.get("status", {}).get("phase") in ENDED or "deletionTimestamp" in pod["metadata"]


def exit_reason(pod: Body) -> str:
    """Return how a pod ended, where there is something to say."""
    status = pod.get("status", {})
    return "" if status.get("phase") == "Succeeded" else str(status.get("reason") or status.get("message") or "failed")


def _gate(pod: Body) -> str:
    return f"{POLICY.partition('/')[0]}/{pod['metadata']['labels'][POLICY]}"


def _gated(pod: Body) -> bool:
    return any(gate["name"] == _gate(pod) for gate in pod["spec"].get("schedulingGates", ()))


def _pausing(spec: Body) -> list[Body]:
    spec["containers"] = [{"name": "task", "image": PAUSE}]
    found: list[Body] = spec["containers"]
    return found


def decode_asks(pod: Body) -> tuple[Ask, ...]:
    """Return what a pod's note says that its task asks for; a damaged note says nothing."""
    try:
        return msgspec.json.decode(pod["metadata"].get("annotations", {}).get(ASKS, "[]"), type=tuple[Ask, ...])
    except msgspec.MsgspecError:
        return ()


def _whole(text: str) -> int:
    return int(text) if text.isdigit() else 0


def task_label(task: str) -> str:
    """Return the label by which the pods of a task are found."""
    return shorten_name(task, 63)
