"""The gate queue: units that wait for the opening of their gates, a limited number of pods at a time.

If a thousand pods were opened at once, kube-scheduler would need longer than the bind timeout of a single pod.
The functions below repair what a controller left half done, and check the room on nodes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from unfold_placement.core.types import Task
from unfold_placement.kubernetes.background import QUICK_S
from unfold_placement.kubernetes.informer import Informer, is_of
from unfold_placement.kubernetes.objects import pods
from unfold_placement.kubernetes.objects.codec import Body
from unfold_placement.kubernetes.objects.requests import pod_demand
from unfold_placement.kubernetes.writer import OpeningUnits, Writer
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Record, Start
from unfold_placement.live.state_store import ALIVE, StateStore
from unfold_placement.policies.affinity.node_filter import DomainLimit, NodeFilter, decode_filter

MAX_IN_FLIGHT = 64
"""Default number of opened pods that may be without a node."""


@dataclass(frozen=True, slots=True)
class GateRequest:
    """A unit that waits for the opening of its gates.

    Attributes:
        first_task: Its first task, by which the unit is known.
        unit: The starts of its tasks.
        attempts: The attempt that each task is to become.
    """

    first_task: str
    unit: Sequence[Start]
    attempts: Mapping[str, int]


@dataclass(slots=True)
class GateQueue:
    """Started units until all their pods are on nodes.

    Attributes:
        informer: The pods.
        max_in_flight: Opened pods that may be without a node at a time.
        units: Attempts of the tasks of each unit, by its first task.
        taken_at_s: When the opening of each unit began that is being opened, by the monotonic clock.
        opened_at_s: When the gates of each opened unit were opened, in seconds.
        queue: Units with closed gates.
        held: Tasks with a pod that is being changed, or was stopped and is not created again yet: theirs is an earlier
            attempt.
    """

    informer: Informer
    max_in_flight: int = MAX_IN_FLIGHT
    units: OpeningUnits = field(default_factory=dict)
    taken_at_s: dict[str, float] = field(default_factory=dict)
    opened_at_s: dict[str, float] = field(default_factory=dict)
    queue: deque[GateRequest] = field(default_factory=deque)
    held: frozenset[str] = frozenset()

    def add(self, unit: Sequence[Start], records: Sequence[Record]) -> None:
        """Enqueue a started unit."""
        attempts = {record.task.name: record.attempt for record in records}
        self.units[unit[0].task] = dict(attempts)
        self.queue.append(GateRequest(unit[0].task, unit, attempts))

    def list_ready(self) -> list[GateRequest]:
        """Return the units that may be opened now; they stay in the queue."""
        return list(self._iterate_ready())

    def take_ready(self) -> list[GateRequest]:
        """Remove and return the units to open now, without tasks that were stopped or withdrawn meanwhile."""
        ready: list[GateRequest] = []
        for request in self.list_ready():
            self.queue.remove(request)
            if unit := self._list_unsettled(request):
                self.taken_at_s[request.first_task] = time.monotonic()
                ready.append(replace(request, unit=unit))
            else:
                self._drop_attempts(request)
        return ready

    def mark_opened(self, requests: Sequence[GateRequest], now: float) -> None:
        """Record that the gates of units were opened."""
        for request in requests:
            self.informer.opening.difference_update(start.task for start in request.unit)
            self.taken_at_s.pop(request.first_task, None)
            self.opened_at_s[request.first_task] = now

    def has_ready(self) -> bool:
        """Return whether the next unit may be opened."""
        return next(self._iterate_ready(), None) is not None

    def count_in_flight(self) -> int:
        """Count opened pods without a node; units that are complete are removed.

        Those that are being opened count, too, but for slow ones: what holds these up is not kube-scheduler.
        """
        quick_since_s = time.monotonic() - QUICK_S
        quick = [first_task for first_task, taken_s in self.taken_at_s.items() if taken_s > quick_since_s]
        count = sum(len(self.units.get(first_task, ())) for first_task in quick)
        for first_task in list(self.opened_at_s):
            unsettled = sum(not self._is_settled(*attempt) for attempt in self.units.get(first_task, {}).items())
            if not unsettled:
                self.drop(first_task)
            count += unsettled
        return count

    def find_late(self, now: float, patience_s: float) -> list[str]:
        """Return the incomplete units that were opened too long ago (s).

        The time of a unit begins anew while only volumes that are being created hold it up.
        """
        self.count_in_flight()
        self.opened_at_s.update(
            (first_task, now) for first_task in list(self.opened_at_s) if self._is_binding(first_task)
        )
        return [first_task for first_task, opened_at_s in self.opened_at_s.items() if opened_at_s < now - patience_s]

    def list_waiting_for(self, nodes: Collection[str]) -> list[str]:
        """Return the units that wait for their opening and have a task for one of some nodes, by their first task."""
        return [request.first_task for request in self.queue if any(start.node in nodes for start in request.unit)]

    def _is_binding(self, first_task: str) -> bool:
        """Return whether kube-scheduler has chosen nodes for the rest of a unit, and waits for volumes there."""
        rest = [task for task, attempt in self.units.get(first_task, {}).items() if not self._is_settled(task, attempt)]
        return all(map(self.informer.is_binding, rest))

    def drop(self, first_task: str) -> Mapping[str, int]:
        """Remove a unit, and return its tasks with their attempts."""
        self.taken_at_s.pop(first_task, None)
        self.opened_at_s.pop(first_task, None)
        return self.units.pop(first_task, {})

    def _drop_attempts(self, request: GateRequest) -> None:
        """Remove a unit that is not opened, unless its first task has started again in another."""
        if self.units.get(request.first_task) == request.attempts:
            self.drop(request.first_task)

    def clear(self) -> None:
        """Remove all units."""
        self.units, self.taken_at_s, self.opened_at_s = {}, {}, {}
        self.queue.clear()

    def list_gangs(self) -> OpeningUnits:
        """Return the units with several tasks."""
        return {first_task: members for first_task, members in self.units.items() if len(members) > 1}

    def _iterate_ready(self) -> Iterator[GateRequest]:
        """Yield the units that may be opened, in order; one with nodes that are not free yet lets others pass."""
        if not self.queue:
            return
        in_flight = self.count_in_flight()
        ready: list[Start] = []
        # the threads that follow the server change what is read here
        with self.informer.store.changed:
            stopping = list_stopping(self.informer)
        for request in self.queue:
            if not self.held.isdisjoint(request.attempts):
                continue
            unit = self._list_unsettled(request)
            if (in_flight or ready) and in_flight + len(ready) + len(unit) > self.max_in_flight:
                return
            with self.informer.store.changed:
                has_room = stopping.has_room([*ready, *unit])
            if has_room:
                ready += unit
                yield request

    def _list_unsettled(self, request: GateRequest) -> list[Start]:
        return [start for start in request.unit if not self._is_settled(start.task, request.attempts[start.task])]

    def _is_settled(self, task: str, attempt: int) -> bool:
        """Return whether an attempt is on its node, or no longer runs."""
        record = self.informer.store.records.get(task)
        is_running = record is not None and record.state == kinds.RUNNING and record.attempt == attempt
        return not is_running or self.informer.is_bound(task)


def find_half_opened(units: OpeningUnits, store: StateStore) -> list[str]:
    """Return the units with a gate that was not opened, or that were being taken back, by their first task."""
    half_opened = []
    for first_task, attempts in units.items():
        records = [store.records.get(task) for task in attempts]
        waiting = [record for record in records if record is not None and record.state == kinds.WAITING]
        # in place of a pod that was taken back, its owner has created another
        is_replaced = None in records and bool(_list_waiting(attempts, store))
        if is_replaced or any(record.attempt < attempts[record.task.name] for record in waiting):
            half_opened.append(first_task)
    return half_opened


def regroup_waiting(attempts: Mapping[str, int], store: StateStore) -> None:
    """Let tasks that wait start with a half-opened unit: a new process takes them for replacements of its tasks."""
    with store.changed:
        for record, started in _list_waiting(attempts, store):
            task = replace(record.task, job=started.job, size=started.size, completes=False)
            store.write_record(replace(record, task=task), kinds.SUBMITTED)


def _list_waiting(attempts: Mapping[str, int], store: StateStore) -> list[tuple[Record, Task]]:
    """Return the waiting tasks of a unit and of its workload, each with a task of the unit that runs."""
    records = [store.records[task] for task in attempts if task in store.records]
    started = next((record.task for record in records if record.state == kinds.RUNNING), None)
    if started is None:
        return []
    return [
        (record, started)
        for record in store.records.values()
        if record.state == kinds.WAITING and (record.task.name in attempts or is_of(record.task.job, started.job))
    ]


def delete_orphaned_resources(store: StateStore) -> None:
    """Delete the resources bound to tasks that neither wait nor run."""
    alive = {name for name, record in store.records.items() if record.state in ALIVE}
    with store.changed:
        for key, entry in list(store.resources.items()):
            if entry.until and entry.until not in alive:
                store.delete(*key)


def track_unbound_pods(gate_queue: GateQueue, store: StateStore) -> None:
    """Add running tasks to the gate queue if their pods have no node, each as a unit of its own."""
    tracked = {task for attempts in gate_queue.units.values() for task in attempts}
    for name, record in store.records.items():
        if record.state == kinds.RUNNING and name not in tracked and not gate_queue.informer.is_bound(name):
            gate_queue.units[name] = {name: record.attempt}


def delete_replaced_pods(informer: Informer, writer: Writer) -> None:
    """Delete the pods of attempts that a later attempt has replaced."""
    for name, body in list(informer.bodies.items()):
        if informer.current.get(pods.task_name(body)) != name and not pods.is_over(body):
            writer.delete_pod(name)


# Room on nodes as kube-scheduler sees it: a pod that is being stopped occupies its node until it has ended.

Domain = tuple[str, str]
"""Key and value of a label that nodes share."""


@dataclass(frozen=True, slots=True)
class StoppingPods:
    """The pods that are being stopped, by what they keep further pods from.

    Attributes:
        informer: The pods.
        by_node: Names of those on each node.
        in_domain: What restricts those on the nodes with a label.
        repelling: Their own anti-affinity, by the label of their nodes that it concerns.
        occupants: Open pods on these nodes, by node.
    """

    informer: Informer
    by_node: dict[str, list[str]] = field(default_factory=dict)
    in_domain: dict[Domain, list[NodeFilter]] = field(default_factory=dict)
    repelling: dict[Domain, list[DomainLimit]] = field(default_factory=dict)
    occupants: dict[str, list[Body]] = field(default_factory=dict)

    def has_room(self, unit: Iterable[Start]) -> bool:
        """Return whether kube-scheduler would accept a unit now, as far as these pods decide it."""
        demands: dict[str, list[Task]] = {}
        for start in unit:
            record = self.informer.store.records.get(start.task)
            if record is not None:
                if self._excludes(start, record.task):
                    return False
                demands.setdefault(start.node, []).append(record.task)
        return all(self._fits(node, tasks) for node, tasks in demands.items() if node in self.by_node)

    def _fits(self, node: str, tasks: Iterable[Task]) -> bool:
        """Return whether a node has room for further tasks, beside all pods that are on it or about to come."""
        if node not in self.informer.store.nodes:
            return True
        needed = [task.demand for task in tasks]
        needed += [pod_demand(body, self.informer.scope) for body in self.occupants.get(node, ())]
        capacity = self.informer.store.nodes[node].capacity
        return all(sum(demand.get(kind, 0) for demand in needed) <= capacity.get(kind, 0) for kind in _kinds(needed))

    def _excludes(self, start: Start, task: Task) -> bool:
        """Return whether they keep a task away otherwise: by a resource of the node, anti-affinity or a port."""
        informer, own = self.informer, decode_filter(task.node_filter)
        labels = _node_labels(informer, start.node)
        if any(
            limit.selects(other.labels)
            for limit in own.limits
            if limit.max_skew == 0 and limit.key in labels
            for other in self.in_domain.get((limit.key, labels[limit.key]), ())
        ):
            return True
        if any(
            limit.selects(own.labels)
            for (key, value), limits in self.repelling.items()
            if key in labels and labels[key] == value
            for limit in limits
        ):
            return True
        asked = {informer.scope.resource(ask.name) for ask in start.asks if not ask.gated}
        return any(
            not asked.isdisjoint(informer.requested.get(name, ()))
            or any(port.conflicts(taken) for port in own.ports for taken in informer.stopping[name].ports)
            for name in self.by_node.get(start.node, ())
            if name in informer.stopping
        )


def list_stopping(informer: Informer) -> StoppingPods:
    """Index the pods that are being stopped; the caller holds the lock of the store."""
    stopping = StoppingPods(informer)
    for name, restrictions in informer.stopping.items():
        if name not in informer.bodies:
            continue
        node = informer.bodies[name]["spec"]["nodeName"]
        stopping.by_node.setdefault(node, []).append(name)
        labels = _node_labels(informer, node)
        for domain in labels.items():
            stopping.in_domain.setdefault(domain, []).append(restrictions)
        for limit in restrictions.limits:
            if limit.max_skew == 0 and limit.key in labels:
                stopping.repelling.setdefault((limit.key, labels[limit.key]), []).append(limit)
    if stopping.by_node:
        for name, body in informer.bodies.items():
            node = _occupied_node(body)
            # what is overdue is no part of the node's capacity
            if node in stopping.by_node and name not in informer.overdue:
                stopping.occupants.setdefault(node, []).append(body)
    return stopping


def _node_labels(informer: Informer, node: str) -> Mapping[str, str]:
    labels: Mapping[str, str] = informer.nodes.get(node, {}).get("metadata", {}).get("labels", {})
    return labels


def _kinds(demands: Iterable[Mapping[str, int]]) -> Collection[str]:
    return {kind for demand in demands for kind, amount in demand.items() if amount}


def _occupied_node(body: Body) -> str:
    """Return the node of a pod that is open and has not ended."""
    if body["spec"].get("schedulingGates") or pods.has_ended(body):
        return ""
    notes = body["metadata"].get("annotations", {})
    return str(body["spec"].get("nodeName") or notes.get(pods.NODE, ""))
