"""The gate queue: units that wait for the opening of their gates, a limited number of pods at a time.

If a thousand pods were opened at once, kube-scheduler would need longer than the bind timeout of a single pod.
The functions below repair what a controller left half done, and check the room on nodes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from unfold_placement.core.types import Task
from unfold_placement.kubernetes import pods
from unfold_placement.kubernetes.codec import Body
from unfold_placement.kubernetes.informer import Informer
from unfold_placement.kubernetes.pod_spec import pod_demand
from unfold_placement.kubernetes.writer import OpeningUnits, Writer
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Record, Start
from unfold_placement.live.state_store import ALIVE, StateStore
from unfold_placement.policies.affinity.node_filter import NodeFilter, decode_filter

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
        opened_at_s: When the gates of each opened unit were opened, in seconds.
        queue: Units with closed gates.
    """

    informer: Informer
    max_in_flight: int = MAX_IN_FLIGHT
    units: OpeningUnits = field(default_factory=dict)
    opened_at_s: dict[str, float] = field(default_factory=dict)
    queue: deque[GateRequest] = field(default_factory=deque)

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
                ready.append(replace(request, unit=unit))
            else:
                self._drop_attempts(request)
        return ready

    def mark_opened(self, requests: Sequence[GateRequest], now: float) -> None:
        """Record that the gates of units were opened."""
        self.informer.opening.difference_update(start.task for request in requests for start in request.unit)
        self.opened_at_s.update((request.first_task, now) for request in requests)

    def has_ready(self) -> bool:
        """Return whether the next unit may be opened."""
        return next(self._iterate_ready(), None) is not None

    def count_in_flight(self) -> int:
        """Count opened pods without a node; units that are complete are removed."""
        count = 0
        for first_task in list(self.opened_at_s):
            unsettled = sum(not self._is_settled(*attempt) for attempt in self.units.get(first_task, {}).items())
            if not unsettled:
                self.drop(first_task)
            count += unsettled
        return count

    def find_late(self, before: float) -> list[str]:
        """Return the incomplete units that were opened before a time (s)."""
        self.count_in_flight()
        return [first_task for first_task, opened_at_s in self.opened_at_s.items() if opened_at_s < before]

    def drop(self, first_task: str) -> Mapping[str, int]:
        """Remove a unit, and return its tasks with their attempts."""
        self.opened_at_s.pop(first_task, None)
        return self.units.pop(first_task, {})

    def _drop_attempts(self, request: GateRequest) -> None:
        """Remove a unit that is not opened, unless its first task has started again in another."""
        if self.units.get(request.first_task) == request.attempts:
            self.drop(request.first_task)

    def clear(self) -> None:
        """Remove all units."""
        self.units, self.opened_at_s = {}, {}
        self.queue.clear()

    def list_gangs(self) -> OpeningUnits:
        """Return the units with several tasks."""
        return {first_task: members for first_task, members in self.units.items() if len(members) > 1}

    def _iterate_ready(self) -> Iterator[GateRequest]:
        """Yield the units that may be opened, in order; one with nodes that are not free yet lets others pass."""
        in_flight = self.count_in_flight() if self.queue else 0
        ready: list[Start] = []
        for request in self.queue:
            unit = self._list_unsettled(request)
            if (in_flight or ready) and in_flight + len(ready) + len(unit) > self.max_in_flight:
                return
            if _has_room(self.informer, [*ready, *unit]):
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
    """Return the units with a gate that was not opened, by their first task."""
    half_opened = []
    for first_task, attempts in units.items():
        records = [store.records.get(task) for task in attempts]
        waiting = [record for record in records if record is not None and record.state == kinds.WAITING]
        if any(record.attempt < attempts[record.task.name] for record in waiting):
            half_opened.append(first_task)
    return half_opened


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


def _has_room(informer: Informer, unit: Iterable[Start]) -> bool:
    """Return whether kube-scheduler would accept a unit now, as far as stopping pods of the policy decide it."""
    # the threads that follow the server change what is read here
    with informer.store.changed:
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
