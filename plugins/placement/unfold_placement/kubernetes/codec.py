"""How names, amounts, tasks and nodes are written in the words of Kubernetes, and read again."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from unfold_placement.core.types import MILLI, PODS, Ask, EphemeralResource, Node, Task
from unfoldkit.api import fail

DOMAIN = "placement.unfoldkit"
HOSTNAME = "kubernetes.io/hostname"
GATES, DRA = "gates", "dra"
"""What stands for a name that is counted for the cluster: the gate alone, or a device and claims on it as well."""
MIB = 1 << 20
UNITS = {"cpu": "cpu", "memory": "memory", "gpu": "nvidia.com/gpu"}
"""Resources of a spec, and what Kubernetes calls them; any other keeps its name."""
Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scope:
    """One bookkeeping on a cluster, named as its spec: what it labels, annotates and gates pods with."""

    name: str
    namespace: str
    units: Mapping[str, str] = field(default_factory=lambda: dict(UNITS))
    counters: str = GATES

    @property
    def gate(self) -> str:
        """The scheduling gate behind which a pod waits for its turn."""
        return f"{DOMAIN}/{self.name}"

    @property
    def names_key(self) -> str:
        """The annotation of a node that says whose names are there."""
        return f"{DOMAIN}/{self.name}"

    @property
    def prefix(self) -> str:
        """What the extended resources of this scope begin with."""
        return f"{self.name}.{DOMAIN}/"

    @property
    def record(self) -> str:
        """The Lease of who leads, and the ConfigMap of the cluster's names."""
        return f"unfold-{self.name}"

    def resource(self, name: str) -> str:
        """Return the extended resource of a name: the name itself where it may be one, else with a hash."""
        return self.prefix + shorten_name(name, 63)


def annotation_key(name: str) -> str:
    """Return a label or annotation of ours."""
    return f"{DOMAIN}/{name}"


def json_pointer(text: str) -> str:
    """Return a key as part of a JSON pointer (RFC 6901)."""
    return text.replace("~", "~0").replace("/", "~1")


def shorten_name(text: str, most: int) -> str:
    """Return a text as it may stand in a label: as it is, or shortened and with a hash that tells it from others."""
    if len(text) <= most and re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?", text):
        return text
    stem = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[: most - 13].strip("-") or "x"
    return f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def pod_name(task: str, attempt: int) -> str:
    """Return the name of the pod of a task's attempt: lower case, as names of objects are."""
    plain = re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", task)
    stem = task if plain and len(task) <= 50 else shorten_name(f"{task}\0", 50).lower()
    return f"{stem}-{attempt}"


def encode_resources(resources: Iterable[EphemeralResource], origin: float) -> str:
    """Return names as they are kept in an annotation: sorted, so that equal ones are equal texts."""
    rows = {
        item.name: [
            item.amount, item.owner, item.epoch, item.since + origin, _or_null(item.expires + origin), item.until,
        ]
        for item in sorted(resources, key=lambda item: item.name)
    }  # fmt: skip
    return msgspec.json.encode(rows).decode()


def decode_resources(text: str, node: str, origin: float) -> dict[str, EphemeralResource]:
    """Return the names of an annotation; its times are of the day, ours since ``origin``. A damaged one is empty."""
    try:
        rows = msgspec.json.decode(text, type=dict[str, tuple[int, str, int, float, float | None, str]])
    except msgspec.MsgspecError:
        return {}
    return {
        name: EphemeralResource(name, node, amount, owner, epoch, since - origin, _or_never(expires) - origin, until)
        for name, (amount, owner, epoch, since, expires, until) in rows.items()
    }


def encode_task(task: Task) -> str:
    """Return a task as it is kept in an annotation: only what differs from a task that says nothing."""
    plain = asdict(Task(task.name, {}, 0.0))
    said = {name: value for name, value in asdict(task).items() if value != plain[name]}
    said = {name: value for name, value in said.items() if name not in {"name", "arrival"}}
    return msgspec.json.encode(said).decode()


def decode_task(pod: Body, scope: Scope, origin: float) -> Task:
    """Return the task of a pod: what was submitted, or for a pod that somebody else made, what can be seen on it."""
    notes, labels = pod["metadata"].get("annotations", {}), pod["metadata"].get("labels", {})
    name = notes.get(annotation_key("name"), pod["metadata"]["name"])
    seen: Body = {"demand": pod_demand(pod, scope), "run": 0.0, "job": labels.get(annotation_key("job"), name)}
    try:
        said = msgspec.json.decode(notes.get(annotation_key("task"), "{}"), type=dict[str, Any])
        task = msgspec.convert({**seen, **said, "name": name}, Task)
    except msgspec.MsgspecError as error:
        raise fail(f"pod {pod['metadata']['name']}: {annotation_key('task')} says nothing: {error}") from error
    arrival = float(notes.get(annotation_key("arrival")) or parse_time(pod["metadata"]["creationTimestamp"])) - origin
    return replace(task, demand=_seated(task.demand), arrival=arrival, deadline=arrival + task.deadline)


def pod_demand(pod: Body, scope: Scope) -> dict[str, int]:
    """Return what a pod takes of a node, in thousandths of our units; names of ours are not part of it."""
    back = {theirs: ours for ours, theirs in scope.units.items()}
    total = _seated({})
    for container in pod["spec"].get("containers", ()):
        for theirs, text in container.get("resources", {}).get("requests", {}).items():
            if not theirs.partition("/")[0].endswith(DOMAIN):
                ours = back.get(theirs, theirs)
                total[ours] = total.get(ours, 0) + parse_amount(theirs, text)
    return total


def pod_requests(pod: Body, scope: Scope) -> dict[str, int]:
    """Return the names, as extended resources, that a pod asks for, and how much of each."""
    first = pod["spec"].get("containers", [{}])[0].get("resources", {}).get("requests", {})
    return {name: int(text) for name, text in first.items() if name.startswith(scope.prefix)}


def container_requests(task: Task, asks: Iterable[Ask], scope: Scope) -> dict[str, str]:
    """Return a container's requests for a task: its own demand, and names of nodes as extended resources.

    Raises:
        UnfoldError: it asks for a part of what Kubernetes gives whole.
    """
    found = {}
    for ours, milli in task.demand.items():
        if ours == PODS:
            continue
        theirs = scope.units.get(ours, ours)
        if theirs not in {"cpu", "memory"} and milli % MILLI:
            raise fail(f"task {task.name} asks for {milli / MILLI:g} of {theirs}", hint="Kubernetes gives it whole")
        found[theirs] = f"{milli}m" if theirs == "cpu" else str(math.ceil(milli * _size(theirs) / MILLI))
    names: dict[str, int] = {}
    for ask in asks:
        if not ask.gated:
            names[scope.resource(ask.name)] = names.get(scope.resource(ask.name), 0) + ask.amount
    return found | {name: str(much) for name, much in names.items()}


def parse_amount(theirs: str, text: str | int) -> int:
    """Return a quantity in thousandths of our unit (memory in MiB)."""
    from kubernetes.utils.quantity import parse_quantity

    return int(parse_quantity(text) * MILLI / _size(theirs))


def decode_node(body: Body, scope: Scope, used: Mapping[str, int]) -> Node:
    """Return a node: what of it is not used by others, and its labels; its type is that of the instance."""
    back = {theirs: ours for ours, theirs in scope.units.items()}
    labels = body["metadata"].get("labels", {})
    kinds = {"type": labels.get("type", labels.get("node.kubernetes.io/instance-type", ""))}
    data = frozenset(filter(None, body["metadata"].get("annotations", {}).get(annotation_key("data"), "").split(",")))
    capacity = {
        back.get(theirs, theirs): parse_amount(theirs, text)
        for theirs, text in body.get("status", {}).get("allocatable", {}).items()
        if not theirs.partition("/")[0].endswith(DOMAIN) and theirs != "ephemeral-storage"
    }
    left = {kind: max(0, total - used.get(kind, 0)) for kind, total in capacity.items() if total}
    return Node(body["metadata"]["name"], left, {**labels, **kinds}, data)


def is_schedulable(body: Body) -> bool:
    """Return whether a node is ready and may be given pods."""
    ready = [item["status"] for item in body.get("status", {}).get("conditions", ()) if item["type"] == "Ready"]
    hard = [item for item in body["spec"].get("taints", ()) if item["effect"] in {"NoSchedule", "NoExecute"}]
    return ready == ["True"] and not body["spec"].get("unschedulable") and not hard


def parse_time(text: str) -> float:
    """Return a time of Kubernetes as seconds of the day's clock (Unix)."""
    return datetime.fromisoformat(text).timestamp()


def format_time(time: float) -> str:
    """Return a time as Kubernetes writes it, with microseconds."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _seated(taken: Mapping[str, int]) -> dict[str, int]:
    """Return what a pod takes, with the one place that it needs: a kubelet runs no more pods than it says."""
    return {**taken, PODS: MILLI}


def _size(theirs: str) -> int:
    return MIB if theirs == "memory" else 1


def _or_null(time: float) -> float | None:
    return time if math.isfinite(time) else None


def _or_never(time: float | None) -> float:
    return math.inf if time is None else time
