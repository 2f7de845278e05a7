"""Pods of tasks: gated on submission, opened on admission, and recreated when they lose their place."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from unfold_placement.core.types import Ask, Task
from unfold_placement.kubernetes.objects import dra
from unfold_placement.kubernetes.objects.codec import (
    DRA,
    HOSTNAME,
    MAX_NAME,
    PREFERRED,
    REQUIRED,
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
from unfold_placement.live.backend import Record, Start

POLICY, TASK, ATTEMPT = annotation_key("policy"), annotation_key("task"), annotation_key("attempt")
"""Labels of a pod."""
STARTED, STARTS, ASKS, NODE, BY, REFUSED, AGAIN, PINNED, GROUP = map(
    annotation_key, ("started", "starts", "asks", "node", "by", "refused", "again", "pinned", "group")
)
"""Annotations of a pod: start, number of starts, requests, node, process, reason of rejection or of a new attempt,
whether its own selector names a host, and job and size of the gang with which it was started."""
PAUSE_IMAGE = "registry.k8s.io/pause:3.10"
ENDED = ("Succeeded", "Failed")
"""Phases of a pod that has ended."""
AWAITED = annotation_key("awaits-next-attempt")
"""Finalizer of a pod that has to end before the server accepts the pod of the next attempt."""
MADE_BY_SERVER = ("uid", "resourceVersion", "creationTimestamp", "managedFields", "deletionTimestamp", "generation",
                  "deletionGracePeriodSeconds", "selfLink")  # fmt: skip
"""Metadata that a new pod must not have."""


def gated_pod(
    task: Task, asks: Iterable[Ask], scope: Scope, arrival: float, template: Mapping[str, Any] | None = None
) -> Body:
    """Return the pod of a task behind the policy's gate; its first container requests the task's demand.

    Args:
        task: The task.
        asks: Ephemeral resources that it requests.
        scope: The policy's scope.
        arrival: Unix time of its submission.
        template: ``metadata`` and ``spec`` of the application's pod; without one, the pod pauses.
    """
    pod = copy.deepcopy(dict(template or {}))
    meta, spec = pod.setdefault("metadata", {}), pod.setdefault("spec", {})
    labels = {POLICY: scope.name, TASK: task_label(task.name), ATTEMPT: "0"}
    labels |= {annotation_key("job"): task_label(task.job)} if task.job else {}
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
    container = (spec.setdefault("containers", None) or _set_pause_container(spec))[0]
    asks = tuple(asks)
    requests = container_requests(task, asks, scope)
    sizes = container.setdefault("resources", {})
    sizes["requests"] = sizes.get("requests", {}) | requests
    # the server requires limits of extended resources to equal their requests
    sizes["limits"] = sizes.get("limits", {}) | {name: size for name, size in requests.items() if "/" in name}
    if scope.counters == DRA:
        dra.add_claim(pod, asks)
    return {"apiVersion": "v1", "kind": "Pod", **pod}


def opening_patch(pod: Body, start: Start, host: str, by: str, now: float, record: Record) -> list[Body]:
    """Return the JSON patch that opens a pod's gate and pins it to a node; it fails if the gate is open already."""
    gates = pod["spec"].get("schedulingGates", [])
    index = next((index for index, gate in enumerate(gates) if gate["name"] == _gate_name(pod)), 0)
    test = {"op": "test", "path": f"/spec/schedulingGates/{index}/name", "value": _gate_name(pod)}
    path = "/spec/schedulingGates" if len(gates) == 1 else f"/spec/schedulingGates/{index}"
    selector = {**pod["spec"].get("nodeSelector", {}), HOSTNAME: host}
    asks = msgspec.json.encode(start.asks).decode()
    group = msgspec.json.encode((record.task.job, record.task.size)).decode()
    notes = {STARTED: repr(now), STARTS: str(record.attempt), ASKS: asks, NODE: start.node, BY: by, GROUP: group}
    notes |= {PINNED: "true"} if HOSTNAME in pod["spec"].get("nodeSelector", {}) else {}
    return [
        test,
        {"op": "remove", "path": path},
        {"op": "add", "path": "/spec/nodeSelector", "value": selector},
        *([] if pod["metadata"].get("annotations") else [{"op": "add", "path": "/metadata/annotations", "value": {}}]),
        *(
            {"op": "add", "path": f"/metadata/annotations/{json_pointer(key)}", "value": value}
            for key, value in notes.items()
        ),
    ]


def rejection_patch(reason: str, by: str) -> Body:
    """Return the merge patch that keeps a pod gated for good and records the reason."""
    return {"metadata": {"annotations": {REFUSED: reason, BY: by}}}


def finalizers_patch(pod: Body, *, awaited: bool) -> Body:
    """Return the merge patch that adds the finalizer of a pod that has to end first, or removes it."""
    meta = pod["metadata"]
    others = [name for name in meta.get("finalizers", ()) if name != AWAITED]
    finalizers = [*others, AWAITED] if awaited else others
    return {"metadata": {"resourceVersion": meta["resourceVersion"], "finalizers": finalizers}}


def next_attempt_pod(pod: Body, gate: str, kind: str, by: str) -> Body:
    """Return the gated pod of the next attempt: a gate cannot be restored on the pod that lost its place."""
    body = copy.deepcopy(pod)
    body.pop("status", None)
    meta, spec = body["metadata"], body["spec"]
    for field in MADE_BY_SERVER:
        meta.pop(field, None)
    if AWAITED in meta.get("finalizers", ()):
        meta["finalizers"].remove(AWAITED)
    notes = meta.setdefault("annotations", {})
    for note in (STARTED, ASKS, NODE, BY, GROUP):
        notes.pop(note, None)
    name, index = task_name(pod), pod_index(pod) + 1
    notes |= {AGAIN: kind, BY: by}
    notes.setdefault(annotation_key("arrival"), repr(parse_time(pod["metadata"]["creationTimestamp"])))
    notes[annotation_key("name")] = name
    meta.update(name=pod_name(name, index))
    dra.rename_claim(body)
    meta["labels"] |= {ATTEMPT: str(index), TASK: task_label(name)}
    spec.pop("nodeName", None)
    if PINNED not in notes and spec.get("nodeSelector", {}).pop(HOSTNAME, None) and not spec["nodeSelector"]:
        del spec["nodeSelector"]
    gates = [item for item in spec.get("schedulingGates", ()) if item["name"] != gate]
    spec["schedulingGates"] = [*gates, {"name": gate}]
    _drop_added_fields(spec, meta["labels"])
    return {"apiVersion": "v1", "kind": "Pod", **body}


def _drop_added_fields(spec: Body, labels: Mapping[str, str]) -> None:
    """Remove from a spec what the server added on creation, and rejects or might compute anew for another pod."""
    # of kubectl debug
    spec.pop("ephemeralContainers", None)
    if spec.get("priorityClassName"):
        spec.pop("priority", None)
        spec.pop("preemptionPolicy", None)
    if spec.get("runtimeClassName"):
        spec.pop("overhead", None)
    affinity = spec.get("affinity") or {}
    selecting: list[Body] = list(spec.get("topologySpreadConstraints") or ())
    for part in (affinity.get("podAffinity") or {}, affinity.get("podAntiAffinity") or {}):
        selecting += part.get(REQUIRED) or ()
        selecting += [item["podAffinityTerm"] for item in part.get(PREFERRED) or ()]
    for term in selecting:
        merged = [
            {"key": key, "operator": operator, "values": [labels[key]]}
            for field, operator in (("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn"))
            for key in term.get(field) or ()
            if key in labels
        ]
        expressions = (term.get("labelSelector") or {}).get("matchExpressions")
        if merged and expressions:
            term["labelSelector"]["matchExpressions"] = [item for item in expressions if item not in merged]


def set_requests(pod: Body, scope: Scope, amounts: Mapping[str, int]) -> None:
    """Replace the extended resources of a policy that a new pod's first container requests."""
    sizes = pod["spec"]["containers"][0].setdefault("resources", {})
    for part in ("requests", "limits"):
        others = {name: text for name, text in sizes.get(part, {}).items() if not name.startswith(scope.prefix)}
        sizes[part] = others | {name: str(amount) for name, amount in amounts.items()}


def task_name(pod: Body) -> str:
    """Return the task of a pod: the name with which it was submitted, or the pod's own."""
    return str(pod["metadata"].get("annotations", {}).get(annotation_key("name"), pod["metadata"]["name"]))


def pod_index(pod: Body) -> int:
    """Return the number of a pod among the pods of its task, from 0."""
    return _parse_count(pod["metadata"].get("labels", {}).get(ATTEMPT, "0"))


def start_count(pod: Body) -> int:
    """Return how often the task of a pod was started."""
    return _parse_count(pod["metadata"].get("annotations", {}).get(STARTS, "0"))


def task_state(pod: Body) -> str:
    """Return the state of a pod's task; empty if the pod never had the policy's gate, or waits for other gates."""
    notes = pod["metadata"].get("annotations", {})
    if _is_gated(pod):
        if len(pod["spec"]["schedulingGates"]) > 1:
            return ""
        return kinds.REFUSED if REFUSED in notes else kinds.WAITING
    if STARTED not in notes:
        return ""
    return kinds.DONE if has_ended(pod) else kinds.RUNNING


def is_managed(pod: Body, scope: Scope) -> bool:
    """Return whether a pod belongs to the policy."""
    meta = pod["metadata"]
    return (meta.get("labels", {}).get(POLICY), meta.get("namespace")) == (scope.name, scope.namespace)


def is_disrupted(pod: Body) -> bool:
    """Return whether a removed pod is to be created again: it is drained, evicted or preempted, or was held for it."""
    if AWAITED in pod["metadata"].get("finalizers", ()):
        return True
    conditions = {item["type"]: item["status"] for item in pod.get("status", {}).get("conditions", ())}
    return str(conditions.get("DisruptionTarget")) == "True"


def has_ended(pod: Body) -> bool:
    """Return whether all containers of a pod have ended for good, so that it occupies nothing."""
    return pod.get("status", {}).get("phase") in ENDED


def promised_node(pod: Body) -> str:
    """Return the node of a pod, or the one that kube-scheduler clears for it by preemption; empty for none."""
    return str(pod["spec"].get("nodeName") or pod.get("status", {}).get("nominatedNodeName") or "")


def unschedulable_reason(pod: Body | None) -> str:
    """Return why kube-scheduler has no node for a pod, as far as it has said; empty where it found one."""
    conditions = (pod or {}).get("status", {}).get("conditions", ())
    # until kube-scheduler looks at an opened pod, the condition says that it is gated
    judged = (item for item in conditions if item["type"] == "PodScheduled" and item.get("reason") != "SchedulingGated")
    reasons = (item.get("message", "") for item in judged)
    is_bound = bool((pod or {}).get("spec", {}).get("nodeName"))
    return "" if is_bound else str(next(reasons, ""))


def is_over(pod: Body | None) -> bool:
    """Return whether a pod has ended, is being deleted, or does not exist."""
    if pod is None:
        return True
    return has_ended(pod) or "deletionTimestamp" in pod["metadata"]


def exit_reason(pod: Body) -> str:
    """Return how a pod ended; empty if it succeeded."""
    status = pod.get("status", {})
    return "" if status.get("phase") == "Succeeded" else str(status.get("reason") or status.get("message") or "failed")


def decode_asks(pod: Body) -> tuple[Ask, ...]:
    """Return the requests in a pod's annotation; a malformed one is empty."""
    try:
        return msgspec.json.decode(pod["metadata"].get("annotations", {}).get(ASKS, "[]"), type=tuple[Ask, ...])
    except msgspec.MsgspecError:
        return ()


def read_started_group(pod: Body) -> tuple[str, int] | None:
    """Return the job and size of the gang with which a pod was started; None without an annotation of that form."""
    text = pod["metadata"].get("annotations", {}).get(GROUP, "null")
    try:
        return msgspec.json.decode(text, type=tuple[str, int] | None)
    except msgspec.MsgspecError:
        return None


def task_label(task: str) -> str:
    """Return a task's name as a label value."""
    return shorten_name(task, MAX_NAME)


def _gate_name(pod: Body) -> str:
    return f"{POLICY.partition('/')[0]}/{pod['metadata']['labels'][POLICY]}"


def _is_gated(pod: Body) -> bool:
    return any(gate["name"] == _gate_name(pod) for gate in pod["spec"].get("schedulingGates", ()))


def _set_pause_container(spec: Body) -> list[Body]:
    containers: list[Body] = [{"name": "task", "image": PAUSE_IMAGE}]
    spec["containers"] = containers
    return containers


def _parse_count(text: str) -> int:
    return int(text) if text.isdigit() else 0
