"""The informer: records the server's nodes, their ephemeral resources, and the pods of tasks in a state store."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from unfold_placement.core.types import ANYWHERE, MILLI, EphemeralResource, Node
from unfold_placement.kubernetes.objects import pods
from unfold_placement.kubernetes.objects.codec import (
    Body,
    Scope,
    decode_node,
    decode_resources,
    drop_nulls,
    is_ready,
    parse_amount,
    parse_time,
    pod_requests,
)
from unfold_placement.kubernetes.objects.node_rules import pod_filter, repelling_filter
from unfold_placement.kubernetes.objects.requests import pod_demand
from unfold_placement.kubernetes.objects.tasks import decode_task
from unfold_placement.kubernetes.objects.volumes import STORAGE_LISTS, Volumes, list_claims
from unfold_placement.kubernetes.objects.workloads import POLICY, WORKLOAD_LISTS, Group, Owners, awaits_admission
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Record
from unfold_placement.live.state_store import ResourceKey, StateStore
from unfold_placement.policies.affinity.node_filter import NodeFilter, decode_filter
from unfoldkit.api import UnfoldError
from unfoldkit.kubernetes.api import Api
from unfoldkit.kubernetes.reflector import ObjectKey, Reflector

NODES, PODS = "/api/v1/nodes", "/api/v1/pods"
ABSENT_PAUSE_S = 30.0
"""Pause before a kind of workload that the cluster lacks, or the account may not read, is looked for again."""
GRACE_S = 30.0
"""The server's own grace period of a pod that is stopped."""
MAX_DELETED = 10_000
"""Deleted pods that are remembered."""
WorkloadKey = tuple[str, str]
"""Kind and name of a workload."""


@dataclass(frozen=True, slots=True)
class ForeignPod:
    """A pod that no policy manages.

    Attributes:
        node: Its node.
        demand: What it occupies there.
        labels: Its labels if it is in the namespace.
        repelling: Encoded anti-affinity and host ports; empty for none.
    """

    node: str
    demand: Mapping[str, int]
    labels: Mapping[str, str] | None = None
    repelling: str = ""


@dataclass(slots=True)
class Informer:
    """A state store that follows the server.

    Attributes:
        api: The server.
        scope: The policy's scope.
        store: The records.
        origin: Unix time from which the store's times count.
        nodes: Nodes by name.
        bodies: Pods of tasks by name.
        current: Name of the current pod of each task.
        uids: Identifier of the last pod of each name, also after its deletion.
        requested: Extended resources that each pod requests, by pod.
        foreign_pods: Pods of other programs on nodes, by namespace and name.
        foreign_on: Those on each node.
        annotations: The resources annotation of each node, and under ``ANYWHERE`` that of the cluster.
        dirty: Nodes where resources in the store differ from the annotation.
        drifted: Nodes that do not offer what their annotation says.
        opening: Tasks with pods that this process is changing.
        lost_tasks: Tasks that the cluster has disrupted.
        threads: The threads that follow the server.
        repelling: Those of them with anti-affinity to pods of the namespace.
        foreign_changed: Pods of other programs took or freed capacity since the last snapshot.
        nodes_changed: Labels, taints or capacity of a node changed since the last snapshot.
        suspended: Workloads that wait to be resumed, by kind and name.
        refused: Those that the server refused to resume, or has yet to answer.
        stopping: Pods of tasks that are being stopped and occupy their nodes still, by name, with what restricts them.
        stop_due_s: When each of them is to have ended, by the monotonic clock.
        overdue: Those that should have ended long ago: what they occupy counts as that of other programs.
        owners: Reads the owners of pods.
        volumes: Volume claims, volumes, storage classes and CSI drivers.
        volumes_changed: One of them changed since the waiting tasks were compared with them.
    """

    api: Api
    scope: Scope
    store: StateStore
    origin: float
    nodes: dict[str, Body] = field(default_factory=dict)
    bodies: dict[str, Body] = field(default_factory=dict)
    current: dict[str, str] = field(default_factory=dict)
    uids: dict[str, str] = field(default_factory=dict)
    requested: dict[str, dict[str, int]] = field(default_factory=dict)
    foreign_pods: dict[str, ForeignPod] = field(default_factory=dict)
    foreign_on: dict[str, dict[str, ForeignPod]] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    dirty: set[str] = field(default_factory=set)
    drifted: set[str] = field(default_factory=set)
    opening: set[str] = field(default_factory=set)
    lost_tasks: list[str] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    repelling: set[str] = field(default_factory=set)
    foreign_changed: bool = False
    nodes_changed: bool = False
    suspended: dict[WorkloadKey, Body] = field(default_factory=dict)
    refused: dict[WorkloadKey, Body] = field(default_factory=dict)
    owners: Owners | None = None
    stopping: dict[str, NodeFilter] = field(default_factory=dict)
    stop_due_s: dict[str, float] = field(default_factory=dict)
    overdue: set[str] = field(default_factory=set)
    volumes: Volumes = field(default_factory=Volumes)
    volumes_changed: bool = False

    def start(self) -> None:
        """Read nodes, volumes, pods and suspended workloads, and follow each in a thread."""
        self.owners = Owners(self.api)
        node_reflector = Reflector(self.api, NODES, self.handle_node, self._missing_nodes)
        pod_reflector = Reflector(self.api, PODS, self.handle_pod, self._missing_pods)
        self.threads.append(node_reflector.start())
        for path in STORAGE_LISTS:
            self._follow_volumes(path)
        self.threads.append(pod_reflector.start())
        for kind, path in WORKLOAD_LISTS.items():
            self._follow_workloads(kind, path.format(f"namespaces/{self.scope.namespace}"))

    def handle_node(self, body: Body, *, is_gone: bool = False) -> None:
        """Record the current state of a node."""
        body = drop_nulls(body)
        name = body["metadata"]["name"]
        with self.store.changed:
            if not is_gone and not _is_newer(body, self.nodes.get(name)):
                return
            if is_gone:
                self.nodes.pop(name, None)
                self.annotations.pop(name, None)
            else:
                self.nodes[name] = body
                notes = body["metadata"].get("annotations", {})
                self.read_resources(name, notes.get(self.scope.names_key, ""))
                self._detect_drift(body)
            self._update_membership(name, is_up=not is_gone and is_ready(body))

    def handle_workload(self, body: Body, *, is_gone: bool = False, kind: str) -> None:
        """Record whether a workload waits to be resumed."""
        key = kind, body["metadata"]["name"]
        with self.store.changed:
            if self.owners is not None:
                self.owners.follow(kind, body, is_gone=is_gone)
            self.refused.pop(key, None)
            if is_gone or not awaits_admission(kind, body, self.scope):
                self.suspended.pop(key, None)
            else:
                self.suspended[key] = body
                self.store.changed.notify_all()

    def handle_volume(self, body: Body, *, is_gone: bool = False, path: str) -> None:
        """Record the current state of an object that says where volumes may be."""
        with self.store.changed:
            affected = self.volumes.put(path, body, is_gone=is_gone)
            self._update_nodes(self.store.nodes if affected is None else affected & self.store.nodes.keys())
            self.volumes_changed = True
            self.store.changed.notify_all()

    def follow_volumes(self) -> None:
        """Let the waiting tasks go where their volumes are by now."""
        with self.store.changed:
            self.volumes_changed = False
            for record in list(self.store.records.values()):
                body = self.body(record.task.name)
                if body is not None and list_claims(body):
                    self._update_task(body)

    def read_resources(self, node: str, text: str) -> None:
        """Record the resources of a node (or of the cluster) that another process wrote."""
        before = self.annotations.get(node)
        self.annotations[node] = text
        if text == before or node in self.dirty:
            return
        with self.store.changed:
            written = decode_resources(text or "{}", node, self.origin)
            previous = {name: entry for (name, location), entry in self.store.resources.items() if location == node}
            for name in previous.keys() - written.keys():
                self._remove_resource((name, node))
            for entry in written.values():
                self._record_resource(entry, previous.get(entry.name))

    def wanted_resources(self, locations: Iterable[str]) -> dict[str, dict[str, int]]:
        """Return the extended resources that nodes should have, by node.

        Of a resource that was deleted or shrunk, the held amount remains, so that nothing new matches.
        """
        desired: dict[str, dict[str, int]] = {location: {} for location in locations}
        held: dict[str, dict[str, int]] = {location: {} for location in desired}
        with self.store.changed:
            for (name, node), entry in self.store.resources.items():
                if node in desired:
                    desired[node][self.scope.resource(name)] = entry.amount
            for record in self.store.records.values():
                if record.state == kinds.RUNNING and record.node in held:
                    requests = self.requested.get(self.current.get(record.task.name, ""), {})
                    for name, amount in requests.items():
                        held[record.node][name] = held[record.node].get(name, 0) + amount
        return {
            node: resources | {name: max(amount, resources.get(name, 0)) for name, amount in held[node].items()}
            for node, resources in desired.items()
        }

    def restore(self, node: str, alive_until: Mapping[str, float]) -> None:
        """Record a node's resources as annotated, each living at least as long as its owner's Lease.

        Args:
            node: The node, or ``ANYWHERE``.
            alive_until: End of each owner's Lease in the store's seconds.
        """
        if node in self.dirty:
            return
        written = decode_resources(self.annotations.get(node) or "{}", node, self.origin)
        for entry in written.values():
            lease_end = alive_until.get(entry.owner, -math.inf) if math.isfinite(entry.expires) else math.inf
            expires = max(entry.expires, lease_end)
            if (entry.name, node) in self.store.resources or expires > self.store.clock():
                self._record_resource(replace(entry, expires=expires), entry)

    def handle_pod(self, body: Body, *, is_gone: bool = False) -> None:
        """Record the current state of a pod."""
        body = drop_nulls(body)
        group = self._find_group(body) if not is_gone else None
        with self.store.changed:
            if not pods.is_managed(body, self.scope) or (pods.task_state(body) == "" and not is_gone):
                self._handle_foreign_pod(body, is_gone=is_gone)
                if pods.is_managed(body, self.scope):
                    self._release_task(body)
                return
            name = body["metadata"]["name"]
            is_open = not is_gone and not pods.has_ended(body) and not body["spec"].get("schedulingGates")
            self._follow_claims(body, is_open=is_open)
            if is_gone:
                self._handle_removal(body)
                # a disrupted pod is recreated from its body, even if it is gone by then
                if not self._awaits_recreation(body):
                    self.bodies.pop(name, None)
                self.requested.pop(name, None)
                self._follow_stop(body, is_gone=True)
            elif _is_newer(body, before := self.bodies.get(name)):
                self.bodies[name] = body
                if is_other_pod(body, self.uids.get(name)):
                    self.requested.pop(name, None)
                self.requested.setdefault(name, pod_requests(body, self.scope))
                self._follow_stop(body)
                self._handle_appearance(body, group)
                if before is not None and before["spec"] != body["spec"]:
                    # others may change a pod behind its gate
                    self._update_task(body)
                if body["spec"].get("nodeName"):
                    self._follow_binding(body)
                    # a waiting gate queue may open further pods
                    self.store.changed.notify_all()
        if is_gone:
            self._shrink_group(pods.task_name(body))

    def note_stops(self, tasks: Iterable[str]) -> None:
        """Record that this process stops the pods of tasks; others were promised their room after the grace period."""
        with self.store.changed:
            for body in filter(None, map(self.body, tasks)):
                if body["spec"].get("nodeName") and not pods.has_ended(body):
                    name, grace_s = body["metadata"]["name"], body["spec"].get("terminationGracePeriodSeconds", GRACE_S)
                    self.stopping[name] = decode_filter(pod_filter(body, self.scope))
                    self.stop_due_s[name] = time.monotonic() + grace_s

    def find_overdue(self, patience_s: float) -> set[str]:
        """Return the nodes with pods that became overdue, since they should have ended ``patience_s`` ago."""
        with self.store.changed:
            latest_s = time.monotonic() - patience_s
            late = {name for name, due_s in self.stop_due_s.items() if due_s < latest_s} - self.overdue
            self.overdue |= late
            nodes = {self.bodies[name]["spec"]["nodeName"] for name in late if name in self.bodies}
            self._update_nodes(nodes & self.store.nodes.keys())
            return nodes

    def body(self, task: str) -> Body | None:
        """Return a task's current pod, as far as it is known."""
        return self.bodies.get(self.current.get(task, ""))

    def is_bound(self, task: str) -> bool:
        """Return whether a task's pod has its node."""
        return bool((self.body(task) or {}).get("spec", {}).get("nodeName"))

    def is_binding(self, task: str) -> bool:
        """Return whether kube-scheduler has a node for a task's pod, and waits for volumes that are created there."""
        body = self.body(task)
        if body is None or pods.unschedulable_reason(body):
            return False
        return self.volumes.is_binding(body, body["metadata"].get("annotations", {}).get(pods.NODE, ""))

    def revert_unwritten(self) -> None:
        """Discard unwritten changes of tasks, since another process leads: record them as their pods are."""
        with self.store.changed:
            tasks, self.opening = self.opening, set()
            for name in list(self.stopping):
                if not self.bodies.get(name, {}).get("metadata", {}).get("deletionTimestamp"):
                    del self.stopping[name], self.stop_due_s[name]
            for task in sorted(tasks):
                record, body = self.store.records.get(task), self.body(task)
                if record is not None and record.state == kinds.RUNNING:
                    self.store.gate_again(record, kinds.FAILED, "")
                if body is None:
                    self.store.withdraw(task)
                elif record is not None:
                    self._follow_pod(body, self.store.records[task])

    def used(self, node: str) -> dict[str, int]:
        """Return what pods of other programs occupy on a node, in thousandths."""
        total: dict[str, int] = {}
        overdue = [body for body in map(self.bodies.get, self.overdue) if body and body["spec"]["nodeName"] == node]
        demands = [pod.demand for pod in self.foreign_on.get(node, {}).values()]
        for demand in [*demands, *map(self._read_demand, overdue)]:
            for kind, amount in demand.items():
                total[kind] = total.get(kind, 0) + amount
        return total

    def _read_demand(self, body: Body) -> dict[str, int]:
        return pod_demand(body, self.scope) | self.volumes.attachments(body)

    def node(self, name: str) -> Node:
        """Return a node as policies see it."""
        pods_there = self.foreign_on.get(name, {}).values()
        occupants = [pod.labels for pod in pods_there if pod.labels is not None]
        repelling = sorted({pod.repelling for pod in pods_there if pod.repelling})
        used = self.used(name)
        node = decode_node(self.nodes[name], self.scope, used, occupants, repelling)
        return replace(node, capacity={**node.capacity, **self.volumes.attachable(name, used)})

    def list_absent_nodes(self) -> tuple[Node, ...]:
        """Return the nodes that are not ready, on which pods may be."""
        with self.store.changed:
            return tuple(self.node(name) for name in self.nodes if name not in self.store.nodes)

    def _follow_stop(self, body: Body, *, is_gone: bool = False) -> None:
        """Record whether a pod is being stopped; one that waits for a place in the queue may go on when it is gone."""
        name = body["metadata"]["name"]
        if is_gone or pods.has_ended(body):
            self.stop_due_s.pop(name, None)
            if name in self.overdue:
                self.overdue.discard(name)
                self._update_nodes({body["spec"].get("nodeName", "")} & self.store.nodes.keys())
            if self.stopping.pop(name, None) is not None:
                self.store.changed.notify_all()
        elif body["metadata"].get("deletionTimestamp") and body["spec"].get("nodeName"):
            self.stopping[name] = decode_filter(pod_filter(body, self.scope))
            self.stop_due_s.setdefault(name, time.monotonic())

    def _detect_drift(self, body: Body) -> None:
        """Record a node that does not offer what its annotation says.

        A restarted kubelet may drop resources; one that was deleted while it was held, or by a write that failed, is
        still offered.
        """
        existing, name = extended_resources(body, self.scope), body["metadata"]["name"]
        expected = {
            self.scope.resource(entry.name): entry.amount
            for (_, node), entry in self.store.resources.items()
            if node == name
        }
        if existing.keys() - expected or any(existing.get(key, -1) < amount for key, amount in expected.items()):
            self.drifted.add(name)

    def _handle_appearance(self, body: Body, group: Group | None) -> None:
        task, index = pods.task_name(body), pods.pod_index(body)
        previous = self.bodies.get(self.current.get(task, ""))
        if previous is not None and pods.pod_index(previous) > index:
            return
        record, name = self.store.records.get(task), body["metadata"]["name"]
        is_next = self.current.get(task) not in {None, name} and "deletionTimestamp" not in body["metadata"]
        if is_next and task in self.lost_tasks:
            # another process created the pod that it needs
            self.lost_tasks.remove(task)
        self.current[task] = name
        is_other = is_other_pod(body, self.uids.get(name))
        self.uids[name] = body["metadata"].get("uid", "")
        if len(self.uids) > 2 * len(self.bodies) + MAX_DELETED:
            self.uids = {name: uid for name, uid in self.uids.items() if name in self.bodies}
        # the pod before may have been read when it was about to go
        if record is None or is_other or (is_next and record.state in {kinds.GONE, kinds.DONE}):
            self.store.withdraw(task)
            self._add_task(body, group)
        elif body["metadata"].get("deletionTimestamp") and record.state in {kinds.WAITING, kinds.RUNNING}:
            self._handle_removal(body)
        elif task not in self.opening:
            self._follow_pod(body, record)
        if is_next:
            self._update_task(body)

    def _update_task(self, body: Body) -> None:
        """Let a waiting task demand and go where its pod does by now; a controller considers one that differs anew.

        A pod may be resized behind its gate, and a webhook may give the next attempt other requests.
        """
        record = self.store.records.get(pods.task_name(body))
        if record is None or not self._waits_at_gate(record):
            return
        try:
            now = decode_task(body, self.scope, self.origin, volumes=self.volumes)
        except UnfoldError as error:
            logging.getLogger("unfoldkit").warning("%s; it is left as it was", error)
            return
        task = replace(record.task, demand=now.demand, node_filter=now.node_filter)
        if task != record.task:
            self.store.write_record(replace(record, task=task), kinds.SUBMITTED)

    def _update_nodes(self, names: Iterable[str]) -> None:
        """Let policies see what pods of other programs, or drivers, have changed of nodes."""
        for name in names:
            self.nodes_changed |= replace_node(self.store, self.node(name))

    def _follow_binding(self, body: Body) -> None:
        """Correct the node of a task that runs elsewhere: a webhook may replace the selector that pins its pod."""
        record, node = self.store.records.get(pods.task_name(body)), body["spec"]["nodeName"]
        is_current = record is not None and record.attempt == pods.start_count(body)
        if record is None or not is_current or record.state != kinds.RUNNING or record.node == node:
            return
        text = "%s runs on %s although it was opened for %s: something changed the selector of its pod"
        logging.getLogger("unfoldkit").warning(text, record.task.name, node, record.node)
        self.store.records[record.task.name] = replace(record, node=node)
        self.nodes_changed = True

    def _release_task(self, body: Body) -> None:
        """Withdraw a waiting task if others have removed its gate: kube-scheduler alone decides about its pod."""
        task, meta = pods.task_name(body), body["metadata"]
        record = self.store.records.get(task)
        is_current = self.current.get(task) == meta["name"] and not is_other_pod(body, self.uids.get(meta["name"]))
        if record is not None and record.state == kinds.WAITING and is_current:
            self.bodies.pop(meta["name"], None)
            self.store.withdraw(task)

    def _add_task(self, body: Body, group: Group | None) -> None:
        if group is not None:
            if (started := pods.read_started_group(body)) is not None:
                group = replace(group, job=started[0], size=started[1])
            else:
                group = self._narrow_group(group, body["metadata"]["name"])
                self._gather_parts(group)
            # it may have been scaled up while it waits
            self._resize_group(group, grows=True)
        try:
            task = decode_task(body, self.scope, self.origin, group, self.volumes)
        except UnfoldError as error:
            logging.getLogger("unfoldkit").warning("%s; it is left out", error)
            return
        record = replace(Record(task), attempt=pods.start_count(body))
        self.store.write_record(record, kinds.SUBMITTED)
        if not body["metadata"].get("deletionTimestamp"):
            self._follow_pod(body, record)
        elif pods.is_disrupted(body):
            # the process that was to create its next pod may have ended
            self.lost_tasks.append(task.name)
        else:
            self._handle_removal(body)

    def _follow_pod(self, body: Body, record: Record) -> None:
        """Record the state that a task's pod shows."""
        state, notes, name = pods.task_state(body), body["metadata"].get("annotations", {}), record.task.name
        by = notes.get(pods.BY, "")
        if state == kinds.WAITING and record.state == kinds.RUNNING:
            self.store.gate_again(record, notes.get(pods.AGAIN, kinds.FAILED), by)
        elif state == kinds.REFUSED:
            self.store.refuse(name, notes[pods.REFUSED], by=by)
        if state in {kinds.RUNNING, kinds.DONE} and record.state == kinds.WAITING:
            record = self.store.write_record(started_record(body, record, self.origin), kinds.STARTED, by)
        if state == kinds.DONE and not _is_later(record, body):
            self.store.end(name, record.attempt, pods.exit_reason(body))

    def _handle_removal(self, body: Body) -> None:
        """Record that a task's current pod was deleted: the task ended, is recreated, or is withdrawn."""
        task = pods.task_name(body)
        record = self.store.records.get(task)
        if record is None or self.current.get(task) != body["metadata"]["name"] or _is_later(record, body):
            return
        if pods.has_ended(body):
            self.store.end(task, record.attempt, pods.exit_reason(body))
        elif pods.is_disrupted(body):
            if self.store.fail(task, record.attempt, "removed by the cluster"):
                self.bodies.setdefault(body["metadata"]["name"], body)
                self.lost_tasks.append(task)
        elif task not in self.opening:
            self.store.withdraw(task)

    def _awaits_recreation(self, body: Body) -> bool:
        task = pods.task_name(body)
        record = self.store.records.get(task)
        is_waiting = record is not None and (record.state == kinds.WAITING or _is_later(record, body))
        return is_waiting and self.current.get(task) == body["metadata"]["name"] and pods.is_disrupted(body)

    def _handle_foreign_pod(self, body: Body, *, is_gone: bool) -> None:
        meta = body["metadata"]
        key, node = f"{meta['namespace']}/{meta['name']}", pods.promised_node(body)
        is_idle = is_gone or not node or pods.has_ended(body)
        before = self.foreign_pods.pop(key, None)
        if before is not None:
            del self.foreign_on[before.node][key]
        labels = (
            None if meta["namespace"] != self.scope.namespace or "deletionTimestamp" in meta else meta.get("labels", {})
        )
        after = None
        if not is_idle:
            after = ForeignPod(node, self._read_demand(body), labels, repelling_filter(body, self.scope))
            self.foreign_pods[key] = self.foreign_on.setdefault(node, {})[key] = after
        self.repelling.discard(key)
        if after is not None and after.repelling and decode_filter(after.repelling).limits:
            self.repelling.add(key)
        if before != after:
            changed = {before.node if before else "", after.node if after else ""}
            for name in changed & self.store.nodes.keys():
                self.store.nodes[name] = self.node(name)
            self.foreign_changed = True
        self._follow_claims(body, is_open=not is_idle)

    def _follow_claims(self, body: Body, *, is_open: bool) -> None:
        """Record whether a pod of the namespace uses its claims; others may wait for that."""
        if body["metadata"]["namespace"] == self.scope.namespace and self.volumes.follow_user(body, is_open=is_open):
            self.volumes_changed = True
            self.store.changed.notify_all()

    def _update_membership(self, name: str, *, is_up: bool) -> None:
        if is_up and name not in self.store.nodes:
            self.store.join(self.node(name))
        elif not is_up and name in self.store.nodes:
            # the leader stops what ran there
            del self.store.nodes[name]
            self.store.record_change(kinds.LEFT, node=name)
            # what stays on a node that is not ready counts in its domains
            pods_there = self.foreign_on.get(name, {}).values()
            self.nodes_changed |= any(pod.labels is not None or pod.repelling for pod in pods_there)
        elif is_up and self.store.nodes[name] != (node := self.node(name)):
            # labels, taints and capacity decide where tasks may go
            self.store.nodes[name] = node
            self.nodes_changed = True
            self.store.changed.notify_all()

    def _follow_workloads(self, kind: str, path: str) -> None:
        """Follow the workloads of a kind, once the cluster has it and the account may read it."""
        query = {"labelSelector": f"{POLICY}={self.scope.name}"}
        handle, missing = partial(self.handle_workload, kind=kind), partial(self._missing_workloads, kind)
        reflector = Reflector(self.api, path, handle, missing, query, absent_pause_s=ABSENT_PAUSE_S)
        self.threads.append(reflector.start_optional())

    def _follow_volumes(self, path: str) -> None:
        """Follow a list that says where volumes may be, if the account may read it."""
        handle, missing = partial(self.handle_volume, path=path), partial(self._missing_volumes, path)
        listed = path.format(f"namespaces/{self.scope.namespace}")
        self.threads.append(
            Reflector(self.api, listed, handle, missing, absent_pause_s=ABSENT_PAUSE_S).start_optional()
        )

    def _find_group(self, body: Body) -> Group | None:
        """Return the group of a pod that is not known yet."""
        name = body["metadata"]["name"]
        is_new = name not in self.bodies or is_other_pod(body, self.uids.get(name))
        is_new &= pods.is_managed(body, self.scope)
        return self.owners.find_group(body) if is_new and self.owners is not None else None

    def _narrow_group(self, group: Group, pod: str) -> Group:
        """Return with what a new pod of a group starts.

        One that replaces a pod of a group that runs starts alone. Where some have succeeded, and none runs or waits,
        those that replace the rest start together.
        """
        records = [record for record in self.store.records.values() if is_of(record.task.job, group.job)]
        running = [record.task for record in records if record.state == kinds.RUNNING]
        if running:
            # the pods of a group that is enlarged are more than it began with
            first_size = max((task.size for task in running if task.job == group.job), default=0)
            present = len(running) + sum(record.state == kinds.WAITING for record in records)
            return replace(group, job=f"{group.job}/{pod}", size=1, completes=present < first_size)
        mates = [record for record in records if record.task.job == group.job]
        if not group.total or any(map(self._waits_at_gate, mates)):
            return group
        # the server counts them late, and a workload of the same name may have been there before
        arrival = group.created_s - self.origin
        ended = sum(record.state == kinds.DONE and record.task.arrival == arrival for record in records)
        rest = max(1, min(group.size, group.total - max(ended, group.succeeded)))
        return group if rest == group.size else replace(group, job=f"{group.job}/last-{rest}", size=rest)

    def _shrink_group(self, removed: str) -> None:
        """Let the rest of a group wait for no more pods than its workload has by now: it may have been scaled down."""
        record = self.store.records.get(removed)
        if record is None or record.state != kinds.GONE or self.owners is None:
            return
        job = record.task.job
        with self.store.changed:
            mates = [mate for mate in self.store.records.values() if mate.task.job == job and self._waits_at_gate(mate)]
            body = self.body(mates[0].task.name) if 0 < len(mates) < record.task.size else None
        if body is None:
            return
        self.owners.bodies.clear()
        group = self.owners.find_group(body)
        if group is None or group.job != job:
            return
        with self.store.changed:
            self._resize_group(group, grows=False)

    def _resize_group(self, group: Group, *, grows: bool) -> None:
        """Let the waiting tasks of a group wait for as many as it has by now, more or less than before."""
        for mate in list(self.store.records.values()):
            is_outdated = group.size > mate.task.size if grows else group.size < mate.task.size
            if is_outdated and mate.task.job == group.job and self._waits_at_gate(mate):
                task = replace(mate.task, size=group.size)
                self.store.write_record(replace(mate, task=task), kinds.SUBMITTED)

    def _gather_parts(self, group: Group) -> None:
        """Let tasks that were to replace some of a group, of which nothing runs any more, start with it."""
        prefix = f"{group.job}/"
        for mate in list(self.store.records.values()) if group.size > 1 else ():
            if mate.task.job.startswith(prefix) and self._waits_at_gate(mate):
                task = replace(mate.task, job=group.job, size=group.size, completes=False)
                self.store.write_record(replace(mate, task=task), kinds.SUBMITTED)

    def _waits_at_gate(self, record: Record) -> bool:
        """Return whether a task waits in its present pod, not for another in place of one that is lost."""
        body = self.body(record.task.name)
        if record.state != kinds.WAITING or body is None or body["metadata"].get("deletionTimestamp"):
            return False
        return pods.task_state(body) == kinds.WAITING

    def _record_resource(self, entry: EphemeralResource, previous: EphemeralResource | None) -> None:
        self.store.epoch = max(self.store.epoch, entry.epoch)
        self.store.resources[entry.name, entry.node] = entry
        if entry.until:
            self.store.task_bound.setdefault(entry.until, set()).add((entry.name, entry.node))
        if previous is None or previous.amount != entry.amount:
            kind = kinds.RESIZED if previous else kinds.CREATED
            self.store.record_change(kind, node=entry.node, name=entry.name, by=entry.owner)

    def _remove_resource(self, key: ResourceKey) -> None:
        entry = self.store.resources.pop(key)
        self.store.task_bound.get(entry.until, set()).discard(key)
        self.store.record_change(kinds.DELETED, node=entry.node, name=entry.name, by=entry.owner)

    def _missing_nodes(self, existing: set[ObjectKey]) -> list[Body]:
        with self.store.changed:
            return [body for name, body in self.nodes.items() if (None, name) not in existing]

    def _missing_volumes(self, path: str, existing: set[ObjectKey]) -> list[Body]:
        with self.store.changed:
            self.volumes_changed = True
            return self.volumes.list_missing(path, {name for _, name in existing})

    def _missing_workloads(self, kind: str, existing: set[ObjectKey]) -> list[Body]:
        with self.store.changed:
            waiting = [body for (other, _), body in [*self.suspended.items(), *self.refused.items()] if other == kind]
        return [body for body in waiting if (self.scope.namespace, body["metadata"]["name"]) not in existing]

    def _missing_pods(self, existing: set[ObjectKey]) -> list[Body]:
        with self.store.changed:
            managed = [body for name, body in self.bodies.items() if (self.scope.namespace, name) not in existing]
            keys = [tuple(key.split("/", 1)) for key in self.foreign_pods]
            foreign = [key for key in keys if key not in existing]
        return managed + [{"metadata": {"namespace": space, "name": name}, "spec": {}} for space, name in foreign]


def extended_resources(body: Body, scope: Scope) -> dict[str, int]:
    """Return the extended resources of a scope that a node offers to the scheduler, by name."""
    allocatable = body.get("status", {}).get("allocatable", {})
    return {
        name: parse_amount(name, text) // MILLI for name, text in allocatable.items() if name.startswith(scope.prefix)
    }


def started_record(body: Body, record: Record, origin: float) -> Record:
    """Return the record of a task from its pod, which shows that it was started."""
    notes = body["metadata"]["annotations"]
    return replace(
        record,
        state=kinds.RUNNING,
        node=body["spec"].get("nodeName") or notes.get(pods.NODE, ANYWHERE),
        asks=pods.decode_asks(body),
        started=float(notes.get(pods.STARTED) or parse_time(body["metadata"]["creationTimestamp"])) - origin,
        attempt=pods.start_count(body),
    )


def update_node(
    store: StateStore, bodies: dict[str, Body], body: Body, decode: Callable[[str], Node], *, is_gone: bool
) -> bool:
    """Let a node join a store, leave it or change there; return whether it changed. The caller holds the lock.

    ``bodies`` holds the nodes that the server lists, from which ``decode`` makes the node of a name.
    """
    name = body["metadata"]["name"]
    if is_gone:
        bodies.pop(name, None)
    else:
        bodies[name] = body
    if is_gone or not is_ready(body):
        if name in store.nodes:
            store.leave(name)
        return False
    if name not in store.nodes:
        store.join(decode(name))
        return False
    return replace_node(store, decode(name))


def replace_node(store: StateStore, node: Node) -> bool:
    """Replace a node of a store by its current state; return whether it differs. The caller holds the lock."""
    if store.nodes[node.name] == node:
        return False
    store.nodes[node.name] = node
    store.changed.notify_all()
    return True


def is_of(job: str, group: str) -> bool:
    """Return whether a task's job is a group or a part of it that started later."""
    return job == group or job.startswith(f"{group}/")


def _is_later(record: Record, body: Body) -> bool:
    """Return whether a task was started again already: its pod is of an earlier attempt and is to be replaced."""
    return record.state == kinds.RUNNING and record.attempt != pods.start_count(body)


def is_other_pod(body: Body, uid: str | None) -> bool:
    """Return whether a pod has replaced the one with its name and a ``uid``; false without a ``uid``."""
    return uid is not None and body["metadata"].get("uid", "") != uid


def _is_newer(body: Body, previous: Body | None) -> bool:
    if previous is None:
        return True
    return int(body["metadata"]["resourceVersion"]) > int(previous["metadata"]["resourceVersion"])
