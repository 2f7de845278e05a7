"""Shadow mode: the policies decide about the pods of a namespace beside kube-scheduler, and nothing is written.

Nodes and pods are read from the server. Everything else exists in this process alone: a pod of the namespace is a task
from the moment at which kube-scheduler may place it, runs on the node that the policies choose, and runs there for as
long as it really ran. So queues and rooms are those that the policies would have made.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from unfold_placement.core.policy import Policy
from unfold_placement.core.shadow_agreement import Agreement, Placement
from unfold_placement.core.types import Node, Task
from unfold_placement.kubernetes.informer import ABSENT_PAUSE_S, NODES, PODS, replace_node, update_node
from unfold_placement.kubernetes.objects import pods
from unfold_placement.kubernetes.objects.codec import Body, Scope, annotation_key, decode_node
from unfold_placement.kubernetes.objects.requests import pod_demand
from unfold_placement.kubernetes.objects.tasks import decode_task
from unfold_placement.kubernetes.objects.volumes import STORAGE_LISTS, Volumes, list_claims
from unfold_placement.kubernetes.objects.workloads import Owners
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Change, Snapshot, Start
from unfold_placement.live.local import LocalBackend
from unfold_placement.live.state_store import StateStore
from unfold_placement.policies.affinity.node_filter import AcceptedNodes, DomainLimits, has_domain_limits
from unfoldkit.api import UnfoldError
from unfoldkit.kubernetes.api import Api
from unfoldkit.kubernetes.reflector import ObjectKey, Reflector

MAX_FORGOTTEN = 10_000
"""Pods that have gone and are still counted in the agreement."""


@dataclass(slots=True)
class Sighting:
    """What the server has shown of a pod. Times are seconds of the store's clock.

    Attributes:
        uid: Identifier of the pod; another pod of its name is another task.
        bound_s: When it was seen on a node, infinity before.
        ended_s: When it was seen to have ended or to be gone, infinity before.
    """

    uid: str
    bound_s: float = math.inf
    ended_s: float = math.inf

    @property
    def run_s(self) -> float:
        """How long it ran, infinity while it runs."""
        return self.ended_s - self.bound_s if math.isfinite(self.bound_s) else math.inf


@dataclass(slots=True)
class ShadowBackend(LocalBackend):
    """A cluster of this process that follows a real one; it has no method that writes to the server.

    Attributes:
        api: The server, which is only read.
        scope: Namespace and names of resources.
        agreement: The decisions next to those of kube-scheduler.
        nodes: Nodes by name.
        sightings: Pods of the namespace by name.
        foreign: Node and demand of pods of other namespaces, by namespace and name.
        owners: Reads the owners of pods.
        volumes: Volume claims, volumes, storage classes and CSI drivers.
        waiting: Pods with volume claims that wait, by name.
        volumes_changed: Something changed that says where volumes may be.
        has_begun: The first lists were read: what comes now is compared.
        nodes_changed: A node changed since the last snapshot.
        threads: The threads that follow the server.
    """

    api: Api = field(kw_only=True)
    scope: Scope = field(kw_only=True)
    agreement: Agreement = field(default_factory=Agreement)
    nodes: dict[str, Body] = field(default_factory=dict)
    sightings: dict[str, Sighting] = field(default_factory=dict)
    foreign: dict[ObjectKey, tuple[str, dict[str, int]]] = field(default_factory=dict)
    owners: Owners | None = None
    volumes: Volumes = field(default_factory=Volumes)
    waiting: dict[str, Body] = field(default_factory=dict)
    volumes_changed: bool = False
    has_begun: bool = False
    nodes_changed: bool = False
    threads: list[threading.Thread] = field(default_factory=list)

    def open(self) -> None:
        """Read nodes, volumes and pods, and follow each in a thread."""
        self.owners = Owners(self.api)
        self.threads.append(Reflector(self.api, NODES, self.handle_node, self._missing_nodes).start())
        for path in STORAGE_LISTS:
            handle, missing = partial(self.handle_volume, path=path), partial(self._missing_volumes, path)
            listed = path.format(f"namespaces/{self.scope.namespace}")
            reflector = Reflector(self.api, listed, handle, missing, absent_pause_s=ABSENT_PAUSE_S)
            self.threads.append(reflector.start_optional())
        self.threads.append(Reflector(self.api, PODS, self.handle_pod, self._missing_pods).start())
        self.has_begun = True

    def close(self) -> None:
        """Stop following the server."""
        self.api.close()

    def constraints(self, tasks: Sequence[Task]) -> Sequence[Policy]:
        """Return the policies for kube-scheduler's own rules, as the Kubernetes backend does; it pins no pod."""
        return [AcceptedNodes(), *([DomainLimits(pins=False)] if any(map(has_domain_limits, tasks)) else [])]

    def snapshot(self) -> Snapshot:
        """End due tasks, then return the cluster."""
        self.nodes_changed = False
        return LocalBackend.snapshot(self)

    def watch(self, after: int, timeout: float) -> Sequence[Change] | None:
        """Wait for changes; None also where labels, taints or capacity of a node changed."""
        if self.volumes_changed:
            self._follow_volumes()
        changes = LocalBackend.watch(self, after, min(timeout, self._seconds_to_next_end()))
        return None if self.nodes_changed else changes

    def start(self, unit: Sequence[Start]) -> None:
        """Record where the policies place a unit."""
        self.store.check_term(self.term)
        for record in self.store.start(unit, by=self.holder):
            self.agreement.record_decision(record.task.name, record.node, record.started)

    def end_due_tasks(self) -> None:
        """End the tasks that have run here for as long as their pods really ran."""
        with self.store.changed:
            now = self.now()
            for record in list(self.store.records.values()):
                sighting = self.sightings.get(record.task.name)
                if record.state == kinds.RUNNING and sighting and record.started + sighting.run_s <= now:
                    self.store.end(record.task.name, record.attempt)
                elif sighting and math.isfinite(sighting.ended_s) and not math.isfinite(sighting.bound_s):
                    self.store.withdraw(record.task.name)

    def handle_node(self, body: Body, *, is_gone: bool = False) -> None:
        """Record a node as the watch reports it, or that it is gone."""
        with self.store.changed:
            self.nodes_changed |= update_node(self.store, self.nodes, body, self._decode, is_gone=is_gone)

    def handle_volume(self, body: Body, *, is_gone: bool = False, path: str) -> None:
        """Record the current state of an object that says where volumes may be."""
        with self.store.changed:
            affected = self.volumes.put(path, body, is_gone=is_gone)
            for name in self.store.nodes if affected is None else affected & self.store.nodes.keys():
                self.nodes_changed |= replace_node(self.store, self._decode(name))
            self.volumes_changed = True
            self.store.changed.notify_all()

    def _follow_volumes(self) -> None:
        """Let the waiting tasks go where their volumes are by now."""
        with self.store.changed:
            self.volumes_changed = False
            for name, body in list(self.waiting.items()):
                record = self.store.records.get(name)
                if record is None or record.state != kinds.WAITING:
                    del self.waiting[name]
                    continue
                now = decode_task(body, self.scope, 0.0, volumes=self.volumes)
                task = replace(record.task, demand=now.demand, node_filter=now.node_filter)
                if task != record.task:
                    self.store.write_record(replace(record, task=task), kinds.SUBMITTED)

    def handle_pod(self, body: Body, *, is_gone: bool = False) -> None:
        """Record a pod as the watch reports it: a task in the namespace, used capacity elsewhere."""
        if body["metadata"].get("namespace") != self.scope.namespace:
            self._handle_foreign(body, is_gone=is_gone)
            return
        name, uid = body["metadata"]["name"], body["metadata"].get("uid", "")
        known = self.sightings.get(name)
        # as that of a StatefulSet, which comes again under its name
        is_new = known is None or (known.uid != uid and not is_gone)
        group = self.owners.find_group(body) if is_new and self.owners is not None and not is_gone else None
        has_ended = is_gone or body.get("status", {}).get("phase") in pods.ENDED
        with self.store.changed:
            if is_new and known is not None:
                # the watch may have missed that it went
                known.ended_s = min(known.ended_s, self.now())
            if is_new and (has_ended or body["spec"].get("schedulingGates")):
                # it is over, or kube-scheduler may not place it yet
                return
            if is_new:
                try:
                    task = decode_task(body, self.scope, 0.0, group, self.volumes)
                except UnfoldError as error:
                    logging.getLogger("unfoldkit").warning("%s", error.diagnostics[0].message)
                    return
                self._submit_pod(name, uid, task)
                if list_claims(body):
                    self.waiting[task.name] = body
            self._follow(name, body, has_ended=has_ended)
            if is_gone:
                self._forget(name)

    def _submit_pod(self, name: str, uid: str, task: Task) -> None:
        self.store.withdraw(task.name)
        self.store.records.pop(task.name, None)
        self.sightings[name] = Sighting(uid)
        if task.name != name:
            # a pod of this program's own client has its task's name
            self.sightings[task.name] = self.sightings[name]
        # the store counts deadlines from the submission
        self.store.submit(replace(task, deadline=task.deadline - task.arrival))
        if self.has_begun:
            self.agreement.add(Placement(task=task.name, job=task.job, submitted_s=self.now()))

    def _follow(self, name: str, body: Body, *, has_ended: bool) -> None:
        sighting, node, now = self.sightings[name], body["spec"].get("nodeName", ""), self.now()
        task = body["metadata"].get("annotations", {}).get(annotation_key("name"), name)
        if node and not math.isfinite(sighting.bound_s):
            sighting.bound_s = now
            self.agreement.record_binding(task, node, now)
            if not self.has_begun and node in self.store.nodes:
                # it ran before the shadow began, so it runs where it is
                self.store.start([Start(task, node)])
        if has_ended and not math.isfinite(sighting.ended_s):
            sighting.ended_s = now
            self.store.changed.notify_all()

    def _forget(self, name: str) -> None:
        """Forget a pod that is gone once its task has ended here too, or where there are too many."""
        done = [other for other, sighting in self.sightings.items() if math.isfinite(sighting.ended_s)]
        for other in done[: max(0, len(done) - MAX_FORGOTTEN)]:
            if other != name:
                self.store.withdraw(other)
                del self.sightings[other]

    def _handle_foreign(self, body: Body, *, is_gone: bool) -> None:
        meta, node = body["metadata"], body["spec"].get("nodeName", "")
        key = meta["namespace"], meta["name"]
        is_idle = is_gone or not node or body.get("status", {}).get("phase") in pods.ENDED
        with self.store.changed:
            before = self.foreign.pop(key, None)
            if not is_idle:
                self.foreign[key] = node, pod_demand(body, self.scope) | self.volumes.attachments(body)
            for name in {node, before[0] if before else ""} & self.store.nodes.keys():
                self.nodes_changed |= replace_node(self.store, self._decode(name))

    def _decode(self, name: str) -> Node:
        used = Counter[str]()
        for place, demand in self.foreign.values():
            used.update(demand if place == name else {})
        node = decode_node(self.nodes[name], self.scope, used)
        return replace(node, capacity={**node.capacity, **self.volumes.attachable(name, used)})

    def _seconds_to_next_end(self) -> float:
        with self.store.changed:
            running = [record for record in self.store.records.values() if record.state == kinds.RUNNING]
            known = [(record, self.sightings.get(record.task.name)) for record in running]
            ends_s = [record.started + sighting.run_s for record, sighting in known if sighting is not None]
            return max(0.0, min(ends_s, default=math.inf) - self.now())

    def _missing_volumes(self, path: str, existing: set[ObjectKey]) -> list[Body]:
        with self.store.changed:
            self.volumes_changed = True
            return self.volumes.list_missing(path, {name for _, name in existing})

    def _missing_nodes(self, existing: set[ObjectKey]) -> list[Body]:
        with self.store.changed:
            return [body for name, body in self.nodes.items() if (None, name) not in existing]

    def _missing_pods(self, existing: set[ObjectKey]) -> list[Body]:
        with self.store.changed:
            own = [(self.scope.namespace, name) for name in self.sightings]
            gone = [key for key in [*own, *self.foreign] if key not in existing]
        return [{"metadata": {"namespace": space, "name": name}, "spec": {}} for space, name in gone]


def open_shadow(api: Api, scope: Scope) -> ShadowBackend:
    """Open a shadow of a namespace; it follows the server until it is closed."""
    began_s = time.monotonic()
    backend = ShadowBackend(StateStore(lambda: time.monotonic() - began_s), api=api, scope=scope)
    backend.open()
    return backend
