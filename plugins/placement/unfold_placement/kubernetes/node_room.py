"""Room on nodes as kube-scheduler sees it: a pod that is being stopped occupies its node until it has ended."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from unfold_placement.core.types import Task
from unfold_placement.kubernetes import pods
from unfold_placement.kubernetes.codec import Body
from unfold_placement.kubernetes.informer import Informer
from unfold_placement.kubernetes.pod_spec import pod_demand
from unfold_placement.live.backend import Start
from unfold_placement.policies.affinity.node_filter import NodeFilter, decode_filter


def has_room(informer: Informer, unit: Iterable[Start]) -> bool:
    """Return whether kube-scheduler would accept a unit now, as far as stopping pods of the policy decide it."""
    stopping = [body for name in informer.stopping if (body := informer.bodies.get(name)) is not None]
    if not stopping:
        return True
    demands: dict[str, list[Task]] = {}
    for start in unit:
        record = informer.store.records.get(start.task)
        if record is not None:
            if any(_excludes(body, start, record.task, informer) for body in stopping):
                return False
            demands.setdefault(start.node, []).append(record.task)
    crowded = {body["spec"]["nodeName"] for body in stopping}
    return all(_fits(informer, node, tasks) for node, tasks in demands.items() if node in crowded)


def _fits(informer: Informer, node: str, tasks: Iterable[Task]) -> bool:
    """Return whether a node has room for further tasks, beside all pods that are on it or about to come."""
    if node not in informer.store.nodes:
        return True
    needed = [task.demand for task in tasks]
    needed += [pod_demand(body, informer.scope) for body in informer.bodies.values() if _occupied_node(body) == node]
    capacity = informer.store.nodes[node].capacity
    return all(sum(demand.get(kind, 0) for demand in needed) <= capacity.get(kind, 0) for kind in _kinds(needed))


def _kinds(demands: Iterable[Mapping[str, int]]) -> Collection[str]:
    return {kind for demand in demands for kind, amount in demand.items() if amount}


def _occupied_node(body: Body) -> str:
    """Return the node of a pod that is open and has not ended."""
    if body["spec"].get("schedulingGates") or pods.has_ended(body):
        return ""
    notes = body["metadata"].get("annotations", {})
    return str(body["spec"].get("nodeName") or notes.get(pods.NODE, ""))


def _excludes(body: Body, start: Start, task: Task, informer: Informer) -> bool:
    """Return whether a stopping pod keeps a task away otherwise: by a resource of the node, anti-affinity or a port."""
    name, node = body["metadata"]["name"], body["spec"]["nodeName"]
    own, other = decode_filter(task.node_filter), informer.stopping[name]
    here, there = (informer.nodes.get(place, {}).get("metadata", {}).get("labels", {}) for place in (start.node, node))
    if _repels(own, other, here, there) or _repels(other, own, here, there):
        return True
    held = informer.requested.get(name, {})
    return node == start.node and (
        any(informer.scope.resource(ask.name) in held for ask in start.asks if not ask.gated)
        or any(port.conflicts(taken) for port in own.ports for taken in other.ports)
    )


def _repels(one: NodeFilter, other: NodeFilter, here: Mapping[str, str], there: Mapping[str, str]) -> bool:
    """Return whether anti-affinity of one pod keeps another out of a domain that both nodes are in, by their labels."""
    return any(
        limit.max_skew == 0
        and limit.key in here
        and here[limit.key] == there.get(limit.key)
        and limit.selects(other.labels)
        for limit in one.limits
    )
