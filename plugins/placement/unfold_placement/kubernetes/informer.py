"""What happens on the server, told to a register: nodes with the names on them, and the pods of tasks."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from unfold_placement.core.types import ANYWHERE, MILLI, EphemeralResource
from unfold_placement.kubernetes import pods
from unfold_placement.kubernetes.api import GONE, Api, ApiError
from unfold_placement.kubernetes.codec import (
    Body,
    Scope,
    decode_node,
    decode_resources,
    decode_task,
    is_schedulable,
    parse_amount,
    parse_time,
    pod_demand,
    pod_requests,
)
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Record
from unfold_placement.live.state_store import StateStore
from unfoldkit.api import UnfoldError

NODES, PODS = "/api/v1/nodes", "/api/v1/pods"
PAUSE = 1.0
Key = tuple[str, str]


@dataclass(slots=True)
class Informer:
    """A register that follows the server. ``texts`` is what each node's annotation says, ``dirty`` where ours differs.

    ``bodies`` are the pods by name, ``asked`` the names that each asks for, ``current`` the pod of each task,
    ``others`` what pods of others hold by node.
    """

    api: Api
    scope: Scope
    store: StateStore
    origin: float
    nodes: dict[str, Body] = field(default_factory=dict)
    bodies: dict[str, Body] = field(default_factory=dict)
    current: dict[str, str] = field(default_factory=dict)
    requested: dict[str, dict[str, int]] = field(default_factory=dict)
    foreign_pods: dict[str, tuple[str, dict[str, int]]] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    dirty: set[str] = field(default_factory=set)
    drifted: set[str] = field(default_factory=set)
    opening: set[str] = field(default_factory=set)
    lost_tasks: list[str] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    foreign_changed: bool = False

    def start(self) -> None:
        """Read everything, and go on listening in two threads."""
        for path, hear in ((NODES, self.node), (PODS, self.pod)):
            version = self._list(path, hear)
            thread = threading.Thread(target=self._listen, args=(path, hear, version), daemon=True)
            self.threads.append(thread)
            thread.start()

    def node(self, body: Body, *, gone: bool = False) -> None:
        """Take a node as it is now."""
        name = body["metadata"]["name"]
        with self.store.changed:
            if not gone and not _newer(body, self.nodes.get(name)):
                return
            if gone:
                self.nodes.pop(name, None)
                self.annotations.pop(name, None)
            else:
                self.nodes[name] = body
                self.read_resources(name, body["metadata"].get("annotations", {}).get(self.scope.names_key, ""))
                self._compare(body)
            self._turn(name, up=not gone and is_schedulable(body))

    def read_resources(self, node: str, text: str) -> None:
        """Take the names of a node (or of the cluster) that somebody else wrote."""
        before = self.annotations.get(node)
        self.annotations[node] = text
        if text == before or node in self.dirty:
            return
        with self.store.changed:
            now = decode_resources(text or "{}", node, self.origin)
            known = {name: item for (name, place), item in self.store.resources.items() if place == node}
            for name in known.keys() - now.keys():
                self._forget((name, node))
            for item in now.values():
                self._learn(item, known.get(item.name))

    def _compare(self, body: Body) -> None:
        """Note a node that lost what its annotation promises: a kubelet that starts again may forget it."""
        there, name = extended_resources(body, self.scope), body["metadata"]["name"]
        here = [item for (_, node), item in self.store.resources.items() if node == name]
        if any(there.get(self.scope.resource(item.name), -1) < item.amount for item in here):
            self.drifted.add(name)

    def wanted_resources(self, places: Iterable[str]) -> dict[str, dict[str, int]]:
        """Return the extended resources that some nodes should have.

        Of a name that is deleted or shrunk while it is held, what is held stays, so that nothing new matches.
        """
        found: dict[str, dict[str, int]] = {place: {} for place in places}
        held: dict[str, dict[str, int]] = {place: {} for place in found}
        with self.store.changed:
            for (name, node), item in self.store.resources.items():
                if node in found:
                    found[node][self.scope.resource(name)] = item.amount
            for record in self.store.records.values():
                if record.state == kinds.RUNNING and record.node in held:
                    for name, much in self.requested.get(self.current.get(record.task.name, ""), {}).items():
                        held[record.node][name] = held[record.node].get(name, 0) + much
        return {
            node: names | {name: max(much, names.get(name, 0)) for name, much in held[node].items()}
            for node, names in found.items()
        }

    def restore(self, node: str, alive: Mapping[str, float]) -> None:
        """Take a node's names as they are written, each living at least as long as the Lease of its owner says."""
        if node in self.dirty:
            return
        for item in decode_resources(self.annotations.get(node) or "{}", node, self.origin).values():
            until = alive.get(item.owner, -math.inf) if math.isfinite(item.expires) else math.inf
            if (item.name, node) in self.store.resources or max(item.expires, until) > self.store.clock():
                self._learn(replace(item, expires=max(item.expires, until)), item)

    def pod(self, body: Body, *, gone: bool = False) -> None:
        """Take a pod as it is now."""
        with self.store.changed:
            if not pods.is_managed(body, self.scope) or (pods.task_state(body) == "" and not gone):
                self._other(body, gone=gone)
                return
            name = body["metadata"]["name"]
            if gone:
                self._vanished(body)
                # what was taken away is made again from its body, also where it has gone by then
                if not self._awaited(body):
                    self.bodies.pop(name, None)
                self.requested.pop(name, None)
            elif _newer(body, self.bodies.get(name)):
                self.bodies[name] = body
                self.requested.setdefault(name, pod_requests(body, self.scope))
                self._appeared(body)
                if body["spec"].get("nodeName"):
                    # whoever opens gates some at a time may go on
                    self.store.changed.notify_all()

    def body(self, task: str) -> Body | None:
        """Return a task's pod, as far as we have heard."""
        return self.bodies.get(self.current.get(task, ""))

    def is_bound(self, task: str) -> bool:
        """Return whether a task's pod has its node."""
        return bool((self.body(task) or {}).get("spec", {}).get("nodeName"))

    def revert_unwritten(self) -> None:
        """Take tasks that we meant to move to be where their pods are: whoever leads by now moves them."""
        with self.store.changed:
            tasks, self.opening = self.opening, set()
            for task in sorted(tasks):
                record, body = self.store.records.get(task), self.body(task)
                if record is not None and record.state == kinds.RUNNING:
                    self.store._regate(record, kinds.FAILED, "")  # noqa: SLF001 - one house
                if body is None:
                    self.store.withdraw(task)
                elif record is not None:
                    self._moved(body, self.store.records[task])

    def _appeared(self, body: Body) -> None:
        task, index = pods.task_name(body), pods.pod_index(body)
        known = self.bodies.get(self.current.get(task, ""))
        if known is not None and pods.pod_index(known) > index:
            return
        record = self.store.records.get(task)
        self.current[task] = body["metadata"]["name"]
        if record is None:
            self._new(body)
        elif body["metadata"].get("deletionTimestamp") and record.state in {kinds.WAITING, kinds.RUNNING}:
            self._vanished(body)
        elif task not in self.opening:
            self._moved(body, record)

    def _new(self, body: Body) -> None:
        try:
            task = decode_task(body, self.scope, self.origin)
        except UnfoldError:
            logging.getLogger("unfoldkit").warning("pod %s cannot be read as a task", body["metadata"]["name"])
            return
        record = replace(Record(task), attempt=pods.start_count(body))
        self.store.records[task.name] = record
        self.store.record_change(kinds.SUBMITTED, task=task.name)
        if body["metadata"].get("deletionTimestamp"):
            self._vanished(body)
        else:
            self._moved(body, record)

    def _moved(self, body: Body, record: Record) -> None:
        """Follow a task to where its pod is."""
        state, notes, name = pods.task_state(body), body["metadata"].get("annotations", {}), record.task.name
        by = notes.get(pods.BY, "")
        if state == kinds.WAITING and record.state == kinds.RUNNING:
            self.store._regate(record, notes.get(pods.AGAIN, kinds.FAILED), by)  # noqa: SLF001 - one house
        elif state == kinds.REFUSED:
            self.store.refuse(name, notes[pods.REFUSED], by=by)
        if state in {kinds.RUNNING, kinds.DONE} and record.state == kinds.WAITING:
            record = started_record(body, record, self.origin)
            self.store._record(record, kinds.STARTED, by)  # noqa: SLF001
        if state == kinds.DONE:
            self.store.end(name, record.attempt, pods.exit_reason(body))

    def _vanished(self, body: Body) -> None:
        task = pods.task_name(body)
        record = self.store.records.get(task)
        if record is None or self.current.get(task) != body["metadata"]["name"]:
            return
        if body.get("status", {}).get("phase") in pods.ENDED:
            self.store.end(task, record.attempt, pods.exit_reason(body))
        elif pods.is_disrupted(body):
            if self.store.fail(task, record.attempt, "taken away by the cluster"):
                self.bodies.setdefault(body["metadata"]["name"], body)
                self.lost_tasks.append(task)
        elif task not in self.opening:
            self.store.withdraw(task)

    def _awaited(self, body: Body) -> bool:
        task = pods.task_name(body)
        record = self.store.records.get(task)
        waits = record is not None and record.state == kinds.WAITING
        return waits and self.current.get(task) == body["metadata"]["name"] and pods.is_disrupted(body)

    def _other(self, body: Body, *, gone: bool) -> None:
        meta = body["metadata"]
        name, node = f"{meta['namespace']}/{meta['name']}", body["spec"].get("nodeName", "")
        over = gone or not node or body.get("status", {}).get("phase") in pods.ENDED
        before = self.foreign_pods.pop(name, None)
        after = None if over else (node, pod_demand(body, self.scope))
        if after is not None:
            self.foreign_pods[name] = after
        if before != after:
            for place in {before[0] if before else "", after[0] if after else ""} & self.store.nodes.keys():
                self.store.nodes[place] = decode_node(self.nodes[place], self.scope, self.used(place))
            self.foreign_changed = True

    def used(self, node: str) -> dict[str, int]:
        """Return what pods of others hold on a node, in thousandths."""
        total: dict[str, int] = {}
        for place, amounts in self.foreign_pods.values():
            for kind, much in amounts.items() if place == node else ():
                total[kind] = total.get(kind, 0) + much
        return total

    def _turn(self, name: str, *, up: bool) -> None:
        if up and name not in self.store.nodes:
            self.store.join(decode_node(self.nodes[name], self.scope, self.used(name)))
        elif not up and name in self.store.nodes:
            # what ran there is stopped by whoever leads
            del self.store.nodes[name]
            self.store.record_change(kinds.LEFT, node=name)

    def _learn(self, item: EphemeralResource, known: EphemeralResource | None) -> None:
        self.store.epoch = max(self.store.epoch, item.epoch)
        self.store.resources[item.name, item.node] = item
        if item.until:
            self.store.task_bound.setdefault(item.until, set()).add((item.name, item.node))
        if known is None or known.amount != item.amount:
            self.store.record_change(
                kinds.RESIZED if known else kinds.CREATED, node=item.node, name=item.name, by=item.owner
            )

    def _forget(self, where: Key) -> None:
        gone = self.store.resources.pop(where)
        self.store.task_bound.get(gone.until, set()).discard(where)
        self.store.record_change(kinds.DELETED, node=gone.node, name=gone.name, by=gone.owner)

    def _list(self, path: str, hear: Callable[..., None]) -> str:
        found = self.api.get(path)
        names = {(item["metadata"].get("namespace"), item["metadata"]["name"]) for item in found["items"]}
        for item in found["items"]:
            hear(item)
        for body in self._missing(path, names):
            hear(body, gone=True)
        return str(found["metadata"]["resourceVersion"])

    def _missing(self, path: str, names: set[tuple[str | None, str]]) -> list[Body]:
        """Return what we knew and the server does not name any more."""
        with self.store.changed:
            if path == NODES:
                return [body for name, body in self.nodes.items() if (None, name) not in names]
            gone = [body for name, body in self.bodies.items() if (self.scope.namespace, name) not in names]
            lost = [text.split("/", 1) for text in self.foreign_pods if tuple(text.split("/", 1)) not in names]
            return gone + [{"metadata": {"namespace": space, "name": name}, "spec": {}} for space, name in lost]

    def _listen(self, path: str, hear: Callable[..., None], version: str) -> None:
        """Follow a list for ever; read it again where the server has forgotten what we missed."""
        while not self.api.closed:
            try:
                version = version or self._list(path, hear)
                for change in self.api.watch(path, version):
                    version = change.item["metadata"]["resourceVersion"]
                    if change.kind != "BOOKMARK":
                        hear(change.item, gone=change.kind == "DELETED")
            except ApiError as refused:
                version = "" if refused.status == GONE else version
                self._rest()
            except Exception as error:  # noqa: BLE001 - a thread that ends would leave us blind
                if not self.api.closed:
                    logging.getLogger("unfoldkit").info("watch of %s was cut: %s", path, error)
                    self._rest()

    def _rest(self) -> None:
        with contextlib.suppress(RuntimeError):
            threading.Event().wait(PAUSE)


def extended_resources(body: Body, scope: Scope) -> dict[str, int]:
    """Return the extended resources of a scope that a node has for the scheduler, by name."""
    there = body.get("status", {}).get("allocatable", {})
    return {name: parse_amount(name, text) // MILLI for name, text in there.items() if name.startswith(scope.prefix)}


def started_record(body: Body, record: Record, origin: float) -> Record:
    """Return the record of a task whose pod says that it was started."""
    notes = body["metadata"]["annotations"]
    at = float(notes.get(pods.STARTED) or parse_time(body["metadata"]["creationTimestamp"])) - origin
    node = body["spec"].get("nodeName") or notes.get(pods.NODE, ANYWHERE)
    asks, attempt = pods.decode_asks(body), pods.start_count(body)
    return replace(record, state=kinds.RUNNING, node=node, asks=asks, started=at, attempt=attempt)


def _newer(body: Body, known: Body | None) -> bool:
    if known is None:
        return True
    return int(body["metadata"]["resourceVersion"]) > int(known["metadata"]["resourceVersion"])
