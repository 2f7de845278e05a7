"""Encoding of ephemeral resources, amounts, tasks and nodes in Kubernetes objects, and decoding."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from unfold_placement.core.types import MILLI, PODS, Ask, EphemeralResource, Node, Task
from unfoldkit.api import user_error

DOMAIN = "placement.unfoldkit"
HOSTNAME = "kubernetes.io/hostname"
GATES, DRA = "gates", "dra"
"""What represents a cluster-scoped resource: the gate alone, or also a device and claims on it."""
MIB = 1 << 20
MAX_AMOUNT = 1 << 53
"""Largest amount in thousandths; what a cluster states beyond it counts as this."""
MAX_NAME = 63
"""Characters of a label value, and of the name part of an extended resource."""
HASH_LENGTH = 12
UNITS = {"cpu": "cpu", "memory": "memory", "gpu": "nvidia.com/gpu"}
"""Kubernetes' names of a spec's resources; any other keeps its name."""
REQUIRED, PREFERRED = (f"{rule}DuringSchedulingIgnoredDuringExecution" for rule in ("required", "preferred"))
"""Fields of the terms of an affinity."""
CORDON = ("node.kubernetes.io/unschedulable", "", "NoSchedule")
"""Key, value and effect of the taint of a cordoned node."""
Body = dict[str, Any]
"""An object as decoded JSON."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The records of one policy on a cluster: its labels, annotations and gates.

    Attributes:
        name: Name of the policy's spec.
        namespace: Namespace of the pods.
        units: Kubernetes' names of resources.
        counters: ``gates`` or ``dra``.
    """

    name: str
    namespace: str
    units: Mapping[str, str] = field(default_factory=lambda: dict(UNITS))
    counters: str = GATES

    @property
    def gate(self) -> str:
        """The scheduling gate of pods that wait for admission."""
        return f"{DOMAIN}/{self.name}"

    @property
    def names_key(self) -> str:
        """The node annotation that lists the node's ephemeral resources."""
        return f"{DOMAIN}/{self.name}"

    @property
    def prefix(self) -> str:
        """The prefix of the policy's extended resources."""
        return f"{self.name}.{DOMAIN}/"

    @property
    def record(self) -> str:
        """The name of the leader's Lease, and of the ConfigMap with the cluster-scoped resources."""
        return f"unfold-{self.name}"

    def resource(self, name: str) -> str:
        """Return the extended resource of an ephemeral resource: its name, or a hash where that is not allowed."""
        return self.prefix + shorten_name(name, MAX_NAME)


def drop_nulls(body: Body) -> Body:
    """Return an object without null fields, at its top level and one below: null means absent in Kubernetes."""
    return {
        key: {name: part for name, part in value.items() if part is not None} if isinstance(value, dict) else value
        for key, value in body.items()
        if value is not None
    }


def annotation_key(name: str) -> str:
    """Return the key of a label or annotation of this program."""
    return f"{DOMAIN}/{name}"


def json_pointer(key: str) -> str:
    """Escape a key for a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")


def shorten_name(text: str, max_length: int) -> str:
    """Return a text as a valid label value: unchanged, or shortened with a hash that distinguishes it."""
    if len(text) <= max_length and re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?", text):
        return text
    stem_length = max_length - HASH_LENGTH - 1
    stem = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:stem_length].strip("-") or "x"
    return f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]}"


def pod_name(task: str, attempt: int) -> str:
    """Return the name of the pod of a task's attempt, in lower case as object names must be."""
    is_valid = re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", task)
    stem = task if is_valid and len(task) <= 50 else shorten_name(f"{task}\0", 50).lower()
    return f"{stem}-{attempt}"


def encode_resources(resources: Iterable[EphemeralResource], origin: float) -> str:
    """Encode resources for an annotation, sorted so that equal resources give equal texts."""
    rows = {
        resource.name: [
            resource.amount,
            resource.owner,
            resource.epoch,
            resource.since + origin,
            _finite_or_none(resource.expires + origin),
            resource.until,
        ]
        for resource in sorted(resources, key=lambda resource: resource.name)
    }
    return msgspec.json.encode(rows).decode()


def decode_resources(text: str, node: str, origin: float) -> dict[str, EphemeralResource]:
    """Decode the resources of an annotation; a malformed one is empty.

    Args:
        text: The annotation, with times in Unix seconds.
        node: The node.
        origin: Unix time from which the policy's times count.
    """
    try:
        rows = msgspec.json.decode(text, type=dict[str, tuple[int, str, int, float, float | None, str]])
    except msgspec.MsgspecError:
        return {}
    return {
        name: EphemeralResource(
            name, node, amount, owner, epoch, since - origin, _value_or_infinity(expires) - origin, until
        )
        for name, (amount, owner, epoch, since, expires, until) in rows.items()
    }


def encode_task(task: Task) -> str:
    """Encode a task for an annotation: only the fields that differ from their defaults."""
    defaults = asdict(Task(task.name, {}, 0.0))
    fields = {name: value for name, value in asdict(task).items() if value != defaults[name]}
    return msgspec.json.encode({name: fields[name] for name in fields if name not in {"name", "arrival"}}).decode()


def pod_requests(pod: Body, scope: Scope) -> dict[str, int]:
    """Return the ephemeral resources, as extended resources, that a pod requests, with their amounts."""
    first = pod["spec"].get("containers", [{}])[0].get("resources", {}).get("requests", {})
    return {name: int(text) for name, text in first.items() if name.startswith(scope.prefix)}


def container_requests(task: Task, asks: Iterable[Ask], scope: Scope) -> dict[str, str]:
    """Return a container's requests for a task: its demand, and resources on nodes as extended resources.

    Raises:
        UnfoldError: It demands a fraction of what Kubernetes allocates as a whole.
    """
    requests = {}
    for kind, amount in task.demand.items():
        if kind == PODS:
            continue
        cluster_name = scope.units.get(kind, kind)
        if cluster_name not in {"cpu", "memory"} and amount % MILLI:
            hint = "Kubernetes allocates whole units of it"
            raise user_error(f"task {task.name} demands {amount / MILLI:g} of {cluster_name}", hint=hint)
        is_cpu = cluster_name == "cpu"
        requests[cluster_name] = f"{amount}m" if is_cpu else str(math.ceil(amount * _unit_size(cluster_name) / MILLI))
    extended: dict[str, int] = {}
    for ask in asks:
        if not ask.gated:
            extended[scope.resource(ask.name)] = extended.get(scope.resource(ask.name), 0) + ask.amount
    return requests | {name: str(amount) for name, amount in extended.items()}


def parse_amount(cluster_name: str, text: str | int, *, is_demand: bool = False) -> int:
    """Return a Kubernetes quantity in thousandths (memory and storage in MiB), within bounds; demands are rounded up.

    Raises:
        ValueError: It is not a quantity.
    """
    from kubernetes.utils.quantity import parse_quantity

    exact = parse_quantity(text) * MILLI / _unit_size(cluster_name)
    return clamp_amount(math.ceil(exact) if is_demand else int(exact))


def clamp_amount(amount: int) -> int:
    """Return an amount in thousandths within the bounds of what is computed with."""
    return min(max(amount, 0), MAX_AMOUNT)


def decode_node(
    body: Body,
    scope: Scope,
    used: Mapping[str, int],
    occupants: Iterable[Mapping[str, str]] = (),
    repelling: Iterable[str] = (),
) -> Node:
    """Decode a node: its capacity without what pods of other programs use; its type is the instance type.

    Args:
        body: The node.
        scope: The policy's scope.
        used: What pods of other programs use, in thousandths.
        occupants: Labels of those pods that are in the policy's namespace.
        repelling: Encoded anti-affinity and host ports of those pods.
    """
    own_names = {cluster_name: name for name, cluster_name in scope.units.items()}
    labels = body["metadata"].get("labels", {})
    node_type = {"type": labels.get("type", labels.get("node.kubernetes.io/instance-type", ""))}
    blocks = body["metadata"].get("annotations", {}).get(annotation_key("data"), "")
    capacity = {
        own_names.get(cluster_name, cluster_name): parse_amount(cluster_name, text)
        for cluster_name, text in body.get("status", {}).get("allocatable", {}).items()
        if not cluster_name.partition("/")[0].endswith(DOMAIN)
    }
    remaining = {kind: max(0, total - used.get(kind, 0)) for kind, total in capacity.items() if total}
    data = frozenset(filter(None, blocks.split(",")))
    taints = _node_taints(body)
    labels = {**labels, **node_type}
    return Node(body["metadata"]["name"], remaining, labels, data, taints, tuple(occupants), tuple(repelling))


def is_ready(body: Body) -> bool:
    """Return whether a node is ready; taints and cordons concern single pods."""
    conditions = body.get("status", {}).get("conditions", ())
    return [condition["status"] for condition in conditions if condition["type"] == "Ready"] == ["True"]


def parse_time(text: str) -> float:
    """Return a Kubernetes timestamp in Unix seconds."""
    return datetime.fromisoformat(text).timestamp()


def _node_taints(body: Body) -> tuple[tuple[str, str, str], ...]:
    """Return the taints of a node; a cordoned one has the taint that kube-scheduler assumes."""
    spec = body.get("spec", {})
    taints = [(taint["key"], taint.get("value", ""), taint["effect"]) for taint in spec.get("taints") or ()]
    return (*taints, *([CORDON] if spec.get("unschedulable") and CORDON not in taints else []))


def _unit_size(cluster_name: str) -> int:
    return MIB if cluster_name in {"memory", "ephemeral-storage"} else 1


def _finite_or_none(time: float) -> float | None:
    return time if math.isfinite(time) else None


def _value_or_infinity(time: float | None) -> float:
    return math.inf if time is None else time
