"""What happens on the server, told to a register: nodes with the names on them, and the pods of tasks."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from unfold_placement.core.types import ANYWHERE, MILLI, Resource
from unfold_placement.kubernetes import pods
from unfold_placement.kubernetes.api import GONE, Api, Refused
from unfold_placement.kubernetes.codec import (
    Body,
    Scope,
    amount,
    asked,
    demand,
    from_text,
    node_of,
    seconds,
    task_of,
    usable,
)
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Record
from unfold_placement.live.state_store import Register
from unfoldkit.api import UnfoldError

NODES, PODS = "/api/v1/nodes", "/api/v1/pods"
PAUSE = 1.0
Key = tuple[str, str]


@dataclass(slots=True)
class Mirror:
    """A register that follows the server. ``texts`` is what each node's annotation says, ``dirty`` where ours differs.

    ``bodies`` are the pods by name, ``asked`` the names that each asks for, ``current`` the pod of each task,
    ``others`` what pods of others hold by node.
    """

    api: Api
    scope: Scope
    register: Register
    origin: float
    nodes: dict[str, Body] = field(default_factory=dict)
    bodies: dict[str, Body] = field(default_factory=dict)
    current: dict[str, str] = field(default_factory=dict)
    asked: dict[str, dict[str, int]] = field(default_factory=dict)
    others: dict[str, tuple[str, dict[str, int]]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    dirty: set[str] = field(default_factory=set)
    drifted: set[str] = field(default_factory=set)
    opening: set[str] = field(default_factory=set)
    lost: list[str] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    shifted: bool = False

    def begin(self) -> None:
        """Read everything, and go on listening in two threads."""
        for path, hear in ((NODES, self.node), (PODS, self.pod)):
            version = self._list(path, hear)
            thread = threading.Thread(target=self._listen, args=(path, hear, version), daemon=True)
            self.threads.append(thread)
            thread.start()

    def node(self, body: Body, *, gone: bool = False) -> None:
        """Take a node as it is now."""
        name = body["metadata"]["name"]
        with self.register.changed:
            if not gone and not _newer(body, self.nodes.get(name)):
                return
            if gone:
                self.nodes.pop(name, None)
                self.texts.pop(name, None)
            else:
                self.nodes[name] = body
                self.reread(name, body["metadata"].get("annotations", {}).get(self.scope.names_key, ""))
                self._compare(body)
            self._turn(name, up=not gone and usable(body))

    def reread(self, node: str, text: str) -> None:
        """Take the names of a node (or of the cluster) that somebody else wrote."""
        before = self.texts.get(node)
        self.texts[node] = text
        if text == before or node in self.dirty:
            return
        with self.register.changed:
            now = from_text(text or "{}", node, self.origin)
            known = {name: item for (name, place), item in self.register.names.items() if place == node}
            for name in known.keys() - now.keys():
                self._forget((name, node))
            for item in now.values():
                self._learn(item, known.get(item.name))

    def _compare(self, body: Body) -> None:
        """Note a node that lost what its annotation promises: a kubelet that starts again may forget it."""
        there, name = resources(body, self.scope), body["metadata"]["name"]
        here = [item for (_, node), item in self.register.names.items() if node == name]
        if any(there.get(self.scope.resource(item.name), -1) < item.amount for item in here):
            self.drifted.add(name)

    def wanted(self, places: Iterable[str]) -> dict[str, dict[str, int]]:
        """Return the extended resources that some nodes should have.

        Of a name that is deleted or shrunk while it is held, what is held stays, so that nothing new matches.
        """
        found: dict[str, dict[str, int]] = {place: {} for place in places}
        held: dict[str, dict[str, int]] = {place: {} for place in found}
        with self.register.changed:
            for (name, node), item in self.register.names.items():
                if node in found:
                    found[node][self.scope.resource(name)] = item.amount
            for record in self.register.records.values():
                if record.state == kinds.RUNNING and record.node in held:
                    for name, much in self.asked.get(self.current.get(record.task.name, ""), {}).items():
                        held[record.node][name] = held[record.node].get(name, 0) + much
        return {
            node: names | {name: max(much, names.get(name, 0)) for name, much in held[node].items()}
            for node, names in found.items()
        }

    def restore(self, node: str, alive: Mapping[str, float]) -> None:
        """Take a node's names as they are written, each living at least as long as the Lease of its owner says."""
        if node in self.dirty:
            return
        for item in from_text(self.texts.get(node) or "{}", node, self.origin).values():
            until = alive.get(item.owner, -math.inf) if math.isfinite(item.expires) else math.inf
            if (item.name, node) in self.register.names or max(item.expires, until) > self.register.clock():
                self._learn(replace(item, expires=max(item.expires, until)), item)

    def pod(self, body: Body, *, gone: bool = False) -> None:
        """Take a pod as it is now."""
        with self.register.changed:
            if not pods.ours(body, self.scope) or (pods.state_of(body) == "" and not gone):
                self._other(body, gone=gone)
                return
            name = body["metadata"]["name"]
            if gone:
                self._vanished(body)
                # what was taken away is made again from its body, also where it has gone by then
                if not self._awaited(body):
                    self.bodies.pop(name, None)
                self.asked.pop(name, None)
            elif _newer(body, self.bodies.get(name)):
                self.bodies[name] = body
                self.asked.setdefault(name, asked(body, self.scope))
                self._appeared(body)
                if body["spec"].get("nodeName"):
                    # whoever opens gates some at a time may go on
                    self.register.changed.notify_all()

    def body(self, task: str) -> Body | None:
        """Return a task's pod, as far as we have heard."""
        return self.bodies.get(self.current.get(task, ""))

    def bound(self, task: str) -> bool:
        """Return whether a task's pod has its node."""
        return bool((self.body(task) or {}).get("spec", {}).get("nodeName"))

    def follow(self) -> None:
        """Take tasks that we meant to move to be where their pods are: whoever leads by now moves them."""
        with self.register.changed:
            tasks, self.opening = self.opening, set()
            for task in sorted(tasks):
                record, body = self.register.records.get(task), self.body(task)
                if record is not None and record.state == kinds.RUNNING:
                    self.register._regate(record, kinds.FAILED, "")  # noqa: SLF001 - one house
                if body is None:
                    self.register.withdraw(task)
                elif record is not None:
                    self._moved(body, self.register.records[task])

    def _appeared(self, body: Body) -> None:
        task, index = pods.name_of(body), pods.index_of(body)
        known = self.bodies.get(self.current.get(task, ""))
        if known is not None and pods.index_of(known) > index:
            return
        record = self.register.records.get(task)
        self.current[task] = body["metadata"]["name"]
        if record is None:
            self._new(body)
        elif body["metadata"].get("deletionTimestamp") and record.state in {kinds.WAITING, kinds.RUNNING}:
            self._vanished(body)
        elif task not in self.opening:
            self._moved(body, record)

    def _new(self, body: Body) -> None:
        try:
            task = task_of(body, self.scope, self.origin)
        except UnfoldError:
            logging.getLogger("unfoldkit").warning("pod %s cannot be read as a task", body["metadata"]["name"])
            return
        record = replace(Record(task), attempt=pods.starts_of(body))
        self.register.records[task.name] = record
        self.register.tell(kinds.SUBMITTED, task=task.name)
        if body["metadata"].get("deletionTimestamp"):
            self._vanished(body)
        else:
            self._moved(body, record)

    def _moved(self, body: Body, record: Record) -> None:
        """Follow a task to where its pod is."""
        state, notes, name = pods.state_of(body), body["metadata"].get("annotations", {}), record.task.name
        by = notes.get(pods.BY, "")
        if state == kinds.WAITING and record.state == kinds.RUNNING:
            self.register._regate(record, notes.get(pods.AGAIN, kinds.FAILED), by)  # noqa: SLF001 - one house
        elif state == kinds.REFUSED:
            self.register.refuse(name, notes[pods.REFUSED], by=by)
        if state in {kinds.RUNNING, kinds.DONE} and record.state == kinds.WAITING:
            record = started(body, record, self.origin)
            self.register._record(record, kinds.STARTED, by)  # noqa: SLF001
        if state == kinds.DONE:
            self.register.end(name, record.attempt, pods.outcome(body))

    def _vanished(self, body: Body) -> None:
        task = pods.name_of(body)
        record = self.register.records.get(task)
        if record is None or self.current.get(task) != body["metadata"]["name"]:
            return
        if body.get("status", {}).get("phase") in pods.ENDED:
            self.register.end(task, record.attempt, pods.outcome(body))
        elif pods.disrupted(body):
            if self.register.fail(task, record.attempt, "taken away by the cluster"):
                self.bodies.setdefault(body["metadata"]["name"], body)
                self.lost.append(task)
        elif task not in self.opening:
            self.register.withdraw(task)

    def _awaited(self, body: Body) -> bool:
        task = pods.name_of(body)
        record = self.register.records.get(task)
        waits = record is not None and record.state == kinds.WAITING
        return waits and self.current.get(task) == body["metadata"]["name"] and pods.disrupted(body)

    def _other(self, body: Body, *, gone: bool) -> None:
        meta = body["metadata"]
        name, node = f"{meta['namespace']}/{meta['name']}", body["spec"].get("nodeName", "")
        over = gone or not node or body.get("status", {}).get("phase") in pods.ENDED
        before = self.others.pop(name, None)
        after = None if over else (node, demand(body, self.scope))
        if after is not None:
            self.others[name] = after
        if before != after:
            for place in {before[0] if before else "", after[0] if after else ""} & self.register.nodes.keys():
                self.register.nodes[place] = node_of(self.nodes[place], self.scope, self.used(place))
            self.shifted = True

    def used(self, node: str) -> dict[str, int]:
        """Return what pods of others hold on a node, in thousandths."""
        total: dict[str, int] = {}
        for place, amounts in self.others.values():
            for kind, much in amounts.items() if place == node else ():
                total[kind] = total.get(kind, 0) + much
        return total

    def _turn(self, name: str, *, up: bool) -> None:
        if up and name not in self.register.nodes:
            self.register.join(node_of(self.nodes[name], self.scope, self.used(name)))
        elif not up and name in self.register.nodes:
            # what ran there is stopped by whoever leads
            del self.register.nodes[name]
            self.register.tell(kinds.LEFT, node=name)

    def _learn(self, item: Resource, known: Resource | None) -> None:
        self.register.epoch = max(self.register.epoch, item.epoch)
        self.register.names[item.name, item.node] = item
        if item.until:
            self.register.leases.setdefault(item.until, set()).add((item.name, item.node))
        if known is None or known.amount != item.amount:
            self.register.tell(kinds.RESIZED if known else kinds.CREATED, node=item.node, name=item.name, by=item.owner)

    def _forget(self, where: Key) -> None:
        gone = self.register.names.pop(where)
        self.register.leases.get(gone.until, set()).discard(where)
        self.register.tell(kinds.DELETED, node=gone.node, name=gone.name, by=gone.owner)

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
        with self.register.changed:
            if path == NODES:
                return [body for name, body in self.nodes.items() if (None, name) not in names]
            gone = [body for name, body in self.bodies.items() if (self.scope.namespace, name) not in names]
            lost = [text.split("/", 1) for text in self.others if tuple(text.split("/", 1)) not in names]
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
            except Refused as refused:
                version = "" if refused.status == GONE else version
                self._rest()
            except Exception as error:  # noqa: BLE001 - a thread that ends would leave us blind
                if not self.api.closed:
                    logging.getLogger("unfoldkit").info("watch of %s was cut: %s", path, error)
                    self._rest()

    def _rest(self) -> None:
        with contextlib.suppress(RuntimeError):
            threading.Event().wait(PAUSE)


def resources(body: Body, scope: Scope) -> dict[str, int]:
    """Return the extended resources of a scope that a node has for the scheduler, by name."""
    there = body.get("status", {}).get("allocatable", {})
    return {name: amount(name, text) // MILLI for name, text in there.items() if name.startswith(scope.prefix)}


def started(body: Body, record: Record, origin: float) -> Record:
    """Return the record of a task whose pod says that it was started."""
    notes = body["metadata"]["annotations"]
    at = float(notes.get(pods.STARTED) or seconds(body["metadata"]["creationTimestamp"])) - origin
    node = body["spec"].get("nodeName") or notes.get(pods.NODE, ANYWHERE)
    asks, attempt = pods.asks_of(body), pods.starts_of(body)
    return replace(record, state=kinds.RUNNING, node=node, asks=asks, started=at, attempt=attempt)


def _newer(body: Body, known: Body | None) -> bool:
    if known is None:
        return True
    return int(body["metadata"]["resourceVersion"]) > int(known["metadata"]["resourceVersion"])
