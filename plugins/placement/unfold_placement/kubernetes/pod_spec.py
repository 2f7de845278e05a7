"""Tasks of pods: what a pod requests, as kube-scheduler adds it up, and the nodes that its fields and volumes allow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import msgspec

from unfold_placement.core.types import MILLI, PODS, Task
from unfold_placement.kubernetes import dra
from unfold_placement.kubernetes.codec import (
    DOMAIN,
    DRA,
    HOSTNAME,
    REQUIRED,
    Body,
    Scope,
    annotation_key,
    clamp_amount,
    parse_amount,
    parse_time,
)
from unfold_placement.kubernetes.workloads import Group, parse_count
from unfold_placement.policies.affinity.node_filter import (
    DomainLimit,
    HostPort,
    NodeFilter,
    Requirement,
    Toleration,
    encode_filter,
)
from unfoldkit.api import user_error

ALWAYS = "Always"
"""Restart policy of a sidecar: an init container that keeps running."""
ANY_ADDRESS = "0.0.0.0"  # noqa: S104 - a pod's, and nothing is bound here
MAX_SIZE, MAX_PRIORITY = 1_000_000, 1 << 31
"""Tasks of a gang, and the highest priority of a pod."""
CLAIMS, VOLUMES, CLASSES = (
    "/api/v1/{}/persistentvolumeclaims",
    "/api/v1/persistentvolumes",
    "/apis/storage.k8s.io/v1/storageclasses",
)
"""Paths of the lists that say where a pod's volumes are; that of the claims within a namespace."""
BOUND, SELECTED_NODE = "pv.kubernetes.io/bind-completed", "volume.kubernetes.io/selected-node"
"""Annotations of a claim: it has its volume; the node for which kube-scheduler has one created."""
LATE_BINDING = "WaitForFirstConsumer"
NO_PROVISIONER = "kubernetes.io/no-provisioner"
NodeTerms = tuple[tuple[Requirement, ...], ...]
"""Terms of which one must hold on a node, all of its expressions together."""
VOLATILE_LABELS = frozenset(
    {
        "apps.kubernetes.io/pod-index",
        "batch.kubernetes.io/controller-uid",
        "batch.kubernetes.io/job-completion-index",
        "controller-uid",
        "jobset.sigs.k8s.io/job-global-index",
        "jobset.sigs.k8s.io/job-index",
        "jobset.sigs.k8s.io/job-key",
        "statefulset.kubernetes.io/pod-name",
    }
)
"""Labels that differ between pods alike."""


def pod_demand(pod: Body, scope: Scope) -> dict[str, int]:
    """Return what a pod occupies of a node, in thousandths, without ephemeral resources."""
    total = sum_pod_requests(pod["spec"], lambda texts: _amounts(texts, scope), pod.get("status"))
    return {kind: amount for kind, amount in total.items() if amount} | {PODS: MILLI}


def sum_pod_requests(
    spec: Body, parse: Callable[[Mapping[str, Any]], dict[str, int]], status: Body | None = None
) -> dict[str, int]:
    """Return what a pod requests.

    The sum of containers and sidecars, or an init container with the sidecars before it where that is more, plus the
    pod's overhead; requests of the pod itself replace the sum (KEP-753, KEP-688, KEP-2837). While a container is
    resized, what it still holds counts where that is more (KEP-1287).

    Args:
        spec: The pod's spec.
        parse: Returns the amounts of a list of resources.
        status: The pod's status, which has what its containers hold; None counts the spec alone.
    """
    held = _held_requests(status or {}, parse)
    is_infeasible = _is_resize_infeasible(status or {})

    def resized(container: Mapping[str, Any]) -> dict[str, int]:
        stated, current = _requests(container, parse), held.get(container.get("name", ""))
        return current if current and is_infeasible else _maximum(stated, current or {})

    running: dict[str, int] = {}
    for container in spec.get("containers") or ():
        running = _add(running, resized(container))
    sidecars: dict[str, int] = {}
    peak: dict[str, int] = {}
    for container in spec.get("initContainers") or ():
        if container.get("restartPolicy") == ALWAYS:
            sidecars = _add(sidecars, resized(container))
            peak = _maximum(peak, sidecars)
        else:
            peak = _maximum(peak, _add(sidecars, _requests(container, parse)))
    total = _maximum(_add(running, sidecars), peak)
    total |= _requests(spec, parse)
    return _add(total, parse(spec.get("overhead") or {}))


def _held_requests(status: Body, parse: Callable[[Mapping[str, Any]], dict[str, int]]) -> dict[str, dict[str, int]]:
    """Return what each container was granted and uses, by its name; nothing where the kubelet has not said so."""
    items = [*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())]
    return {
        item["name"]: _maximum(
            parse(item.get("allocatedResources") or {}), parse((item.get("resources") or {}).get("requests") or {})
        )
        for item in items
    }


def _is_resize_infeasible(status: Body) -> bool:
    """Return whether the node can never grant what the containers request by now."""
    pending = [item for item in status.get("conditions") or () if item.get("type") == "PodResizePending"]
    return any(item.get("status") == "True" and item.get("reason") == "Infeasible" for item in pending)


@dataclass(slots=True)
class Volumes:
    """Claims of a namespace, volumes and storage classes, as last seen.

    Attributes:
        bodies: Objects by name, for each list by its path; a list that may not be read is missing.
    """

    bodies: dict[str, dict[str, Body]] = field(default_factory=dict)

    def restrict(self, pod: Body) -> tuple[str, tuple[NodeTerms, ...]]:
        """Return what a pod's claims wait for, or where their volumes are or may be created; nothing if unknown."""
        if len(self.bodies) < len((CLAIMS, VOLUMES, CLASSES)):
            return "", ()
        found = [self._find_terms(name) for name in list_claims(pod)]
        awaited = next((awaits for awaits, _ in found if awaits), "")
        return awaited, tuple(terms for _, terms in found if terms)

    def is_binding(self, pod: Body, node: str) -> bool:
        """Return whether kube-scheduler has chosen a node for a pod, and waits until its claims have their volumes."""
        claims = [self.bodies.get(CLAIMS, {}).get(name) for name in list_claims(pod)]
        volumes = list(self.bodies.get(VOLUMES, {}).values())
        notes = [(claim, claim["metadata"].get("annotations") or {}) for claim in claims if claim is not None]
        return any(
            item.get(SELECTED_NODE) == node or any(map(partial(_is_kept_for, claim), volumes))
            for claim, item in notes
            if BOUND not in item
        )

    def _find_terms(self, name: str) -> tuple[str, NodeTerms]:
        """Return what a claim waits for, or the terms of the nodes that reach its volume; none where all do."""
        claim = self.bodies[CLAIMS].get(name)
        if claim is None:
            return f"volume claim {name}, which does not exist", ()
        if claim["metadata"].get("deletionTimestamp"):
            return f"volume claim {name}, which is being deleted", ()
        volume = claim["spec"].get("volumeName")
        if not volume or BOUND not in (claim["metadata"].get("annotations") or {}):
            return self._find_places(claim)
        body = self.bodies[VOLUMES].get(volume)
        return ("", _volume_terms(body)) if body else (f"volume {volume} of claim {name}, which does not exist", ())

    def _find_places(self, claim: Body) -> tuple[str, NodeTerms]:
        """Return the same for a claim without a volume."""
        meta, spec = claim["metadata"], claim["spec"]
        storage_class = self.bodies[CLASSES].get(spec.get("storageClassName") or "") or {}
        if spec.get("volumeName") or storage_class.get("volumeBindingMode") != LATE_BINDING:
            return f"volume claim {meta['name']}, which has no volume yet", ()
        node = (meta.get("annotations") or {}).get(SELECTED_NODE)
        if node is not None:
            return "", ((Requirement("metadata.name", "In", (node,), is_field=True),),)
        places = [_volume_terms(body) for body in self.bodies[VOLUMES].values() if _may_bind(claim, body)]
        if storage_class.get("provisioner") not in {None, "", NO_PROVISIONER}:
            places.append(_topology_terms(storage_class))
        if not places:
            return f"a volume of class {spec['storageClassName']} for claim {meta['name']}", ()
        return "", tuple(term for place in places for term in place) if all(places) else ()


def list_claims(pod: Body) -> list[str]:
    """Return the names of the volume claims of a pod; that of an ephemeral volume is made of pod and volume."""
    names = (
        (volume.get("persistentVolumeClaim") or {}).get("claimName")
        or ("ephemeral" in volume and f"{pod['metadata']['name']}-{volume['name']}")
        for volume in pod["spec"].get("volumes") or ()
    )
    return [name for name in names if name]


def _may_bind(claim: Body, volume: Body) -> bool:
    """Return whether kube-scheduler may bind a volume that exists to a claim."""
    asked, spec, meta = claim["spec"], volume["spec"], volume["metadata"]
    size = (spec.get("capacity") or {}).get("storage", 0)
    needed = ((asked.get("resources") or {}).get("requests") or {}).get("storage", 0)
    if (
        meta.get("deletionTimestamp")
        or parse_amount("storage", size) < parse_amount("storage", needed)
        or asked.get("volumeMode", "Filesystem") != spec.get("volumeMode", "Filesystem")
    ):
        return False
    if spec.get("claimRef"):
        return _is_kept_for(claim, volume)
    selector = _selector(asked["selector"]) if asked.get("selector") else ()
    return (
        (volume.get("status") or {}).get("phase") == "Available"
        and (spec.get("storageClassName") or "") == asked.get("storageClassName")
        and set(asked.get("accessModes") or ()) <= set(spec.get("accessModes") or ())
        and all(item.matches(meta.get("labels") or {}) for item in selector)
    )


def _is_kept_for(claim: Body, volume: Body) -> bool:
    """Return whether a volume names a claim as its own."""
    owner, own = volume["spec"].get("claimRef") or {}, claim["metadata"]
    is_named = (owner.get("namespace"), owner.get("name")) == (own["namespace"], own["name"])
    return is_named and owner.get("uid") in {None, "", own.get("uid")}


def _volume_terms(volume: Body) -> NodeTerms:
    """Return the terms of the nodes that reach a volume; none where all do."""
    return _affinity_terms({REQUIRED: (volume["spec"].get("nodeAffinity") or {}).get("required")})


def _topology_terms(storage_class: Body) -> NodeTerms:
    """Return the terms of the nodes for which a class creates volumes; none for all."""
    return tuple(
        tuple(Requirement(item["key"], "In", tuple(item["values"])) for item in term.get("matchLabelExpressions") or ())
        for term in storage_class.get("allowedTopologies") or ()
    )


def pod_filter(pod: Body, scope: Scope, volumes: Volumes | None = None) -> str:
    """Return the fields of a pod that restrict its nodes, encoded; a pod of this program's own pin is not one.

    Args:
        pod: The pod.
        scope: The policy's scope.
        volumes: Where its volumes are; None restricts nothing by them.
    """
    spec, labels = pod["spec"], pod["metadata"].get("labels") or {}
    affinity = spec.get("affinity") or {}
    selector = dict(spec.get("nodeSelector") or {})
    notes = pod["metadata"].get("annotations") or {}
    if annotation_key("started") in notes and annotation_key("pinned") not in notes:
        selector.pop(HOSTNAME, None)
    limits = [*_spread_limits(spec, labels), *_anti_affinity_limits(affinity, pod["metadata"].get("namespace", ""))]
    awaits, places = ("", ()) if volumes is None else volumes.restrict(pod)
    return encode_filter(
        NodeFilter(
            selector=selector,
            terms=_affinity_terms(affinity.get("nodeAffinity") or {}),
            tolerations=tuple(map(parse_toleration, spec.get("tolerations") or ())),
            limits=tuple(limits),
            labels={
                key: value
                for key, value in labels.items()
                if key not in VOLATILE_LABELS and not key.startswith(f"{DOMAIN}/")
            },
            ports=_host_ports(spec),
            unsupported=_find_unsupported(spec, affinity, scope, pod["metadata"].get("namespace", "")),
            volumes=places,
            awaits=awaits,
        )
    )


def repelling_filter(pod: Body, scope: Scope) -> str:
    """Return what of a pod keeps pods of the policy's namespace away, encoded: anti-affinity and host ports, or "".

    A selector of namespaces counts as one that selects the policy's.
    """
    terms = ((pod["spec"].get("affinity") or {}).get("podAntiAffinity") or {}).get(REQUIRED) or ()
    limits = [
        DomainLimit(term["topologyKey"], _selector(term.get("labelSelector")))
        for term in terms
        if term.get("namespaceSelector") is not None
        or scope.namespace in (term.get("namespaces") or (pod["metadata"].get("namespace"),))
    ]
    ports = _host_ports(pod["spec"])
    return encode_filter(NodeFilter(limits=tuple(limits), ports=ports)) if limits or ports else ""


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
        UnfoldError: the annotation is malformed.
    """
    meta = pod["metadata"]
    notes, labels = meta.get("annotations") or {}, meta.get("labels") or {}
    name = notes.get(annotation_key("name"), meta["name"])
    demand, created = pod_demand(pod, scope), parse_time(meta["creationTimestamp"])
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
    arrival = float(notes.get(annotation_key("arrival")) or group.created_s) - origin
    # rounding to whole units of Kubernetes may add a thousandth; sidecars of the template count
    stated = {kind: clamp_amount(amount) for kind, amount in task.demand.items() if demand.get(kind, 0) <= amount + 1}
    return replace(
        task,
        demand={**demand, **stated},
        node_filter=pod_filter(pod, scope, volumes),
        arrival=arrival,
        deadline=arrival + task.deadline,
    )


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


def _find_unsupported(spec: Body, affinity: Mapping[str, Any], scope: Scope, namespace: str) -> str:
    own_claims = {dra.ENTRY} if scope.counters == DRA else set()
    claims = [
        claim.get("name", "") for claim in spec.get("resourceClaims") or () if claim.get("name") not in own_claims
    ]
    if claims:
        return f"it has the resource claim {claims[0]}, and no policy sees devices"
    if (affinity.get("podAffinity") or {}).get(REQUIRED):
        return "it requires affinity to other pods, which no policy sees"
    for term in (affinity.get("podAntiAffinity") or {}).get(REQUIRED) or ():
        if term.get("namespaceSelector") is not None or set(term.get("namespaces") or ()) - {namespace}:
            return "its anti-affinity covers other namespaces"
    if spec.get("schedulingGroup"):
        return "it belongs to a PodGroup, which kube-scheduler places itself"
    return ""


def _host_ports(spec: Mapping[str, Any]) -> tuple[HostPort, ...]:
    """Return the ports of the node that containers and sidecars take; the server adds those of the host's network."""
    sidecars = [item for item in spec.get("initContainers") or () if item.get("restartPolicy") == ALWAYS]
    ports = {
        HostPort(
            port.get("protocol") or "TCP", int(port["hostPort"]), (port.get("hostIP") or "").replace(ANY_ADDRESS, "")
        )
        for container in [*(spec.get("containers") or ()), *sidecars]
        for port in container.get("ports") or ()
        if port.get("hostPort")
    }
    return tuple(sorted(ports, key=lambda port: (port.port, port.protocol, port.address)))


def _requests(container: Mapping[str, Any], parse: Callable[[Mapping[str, Any]], dict[str, int]]) -> dict[str, int]:
    resources = container.get("resources") or {}
    # the server copies limits to missing requests, except in manifests that it has not seen
    return parse({**(resources.get("limits") or {}), **(resources.get("requests") or {})})


def _amounts(texts: Mapping[str, Any], scope: Scope) -> dict[str, int]:
    own_names = {cluster_name: name for name, cluster_name in scope.units.items()}
    return {
        own_names.get(name, name): parse_amount(name, text, is_demand=True)
        for name, text in texts.items()
        if not name.partition("/")[0].endswith(DOMAIN)
    }


def _add(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    return {kind: left.get(kind, 0) + right.get(kind, 0) for kind in {**left, **right}}


def _maximum(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    return {kind: max(left.get(kind, 0), right.get(kind, 0)) for kind in {**left, **right}}


def _affinity_terms(node_affinity: Mapping[str, Any]) -> NodeTerms:
    required = node_affinity.get(REQUIRED) or {}
    return tuple(
        (
            *(_requirement(item) for item in term.get("matchExpressions") or ()),
            *(_requirement(item, is_field=True) for item in term.get("matchFields") or ()),
        )
        for term in required.get("nodeSelectorTerms") or ()
    )


def _requirement(item: Mapping[str, Any], *, is_field: bool = False) -> Requirement:
    return Requirement(item["key"], item["operator"], tuple(item.get("values") or ()), is_field)


def parse_toleration(item: Mapping[str, Any]) -> Toleration:
    """Return a toleration of a pod or flavor."""
    return Toleration(
        item.get("key") or "", item.get("operator") or "Equal", item.get("value") or "", item.get("effect") or ""
    )


def _selector(item: Mapping[str, Any] | None) -> tuple[Requirement, ...]:
    """Return the expressions of a label selector; none selects nothing, an empty one everything."""
    if item is None:
        return (Requirement("", "In"),)
    labels = [Requirement(key, "In", (value,)) for key, value in (item.get("matchLabels") or {}).items()]
    return (*labels, *map(_requirement, item.get("matchExpressions") or ()))


def _spread_limits(spec: Body, labels: Mapping[str, str]) -> Iterable[DomainLimit]:
    for item in spec.get("topologySpreadConstraints") or ():
        if item.get("whenUnsatisfiable") == "ScheduleAnyway":
            continue
        keys = [key for key in item.get("matchLabelKeys") or () if key in labels]
        yield DomainLimit(
            item["topologyKey"],
            (*_selector(item.get("labelSelector")), *(Requirement(key, "In", (labels[key],)) for key in keys)),
            int(item["maxSkew"]),
            int(item.get("minDomains") or 1),
            item.get("nodeAffinityPolicy", "Honor") == "Honor",
            item.get("nodeTaintsPolicy", "Ignore") == "Honor",
        )


def _anti_affinity_limits(affinity: Mapping[str, Any], namespace: str) -> Iterable[DomainLimit]:
    for term in (affinity.get("podAntiAffinity") or {}).get(REQUIRED) or ():
        if set(term.get("namespaces") or ()) <= {namespace}:
            yield DomainLimit(term["topologyKey"], _selector(term.get("labelSelector")))
