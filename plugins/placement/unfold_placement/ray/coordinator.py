"""The coordinator: the actor that keeps a Ray cluster's records and leader, and turns them into placement groups.

The actor is detached and outlives every controller. Its groups are its own: if it dies, Ray removes them all. It then
restarts without records. Clients submit their unfinished tasks again, and the controller adopts these.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from unfold_placement.core.types import ANYWHERE, EphemeralResource, Node, Task
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Change, Record, Snapshot, Start
from unfold_placement.live.state_store import build_state_store
from unfold_placement.ray.placement_groups import (
    BUDGET,
    MAX_AMOUNT,
    NodeShape,
    PlacementGroups,
    Reservation,
    ResourceGroups,
    Shape,
    bundle_shape,
    parse_node,
)
from unfold_placement.ray.sessions import CLIENT_TIMEOUT_S, Ended, Offer, Sessions
from unfoldkit.api import UnfoldError, user_error

RESERVATION_TIMEOUT_S = 5.0
"""How long a reservation may take before its unit waits again."""
IDLE_TIMEOUT_S = 1.0
"""How long an idle reservation is kept."""
REMOVAL_DELAY_S = 0.005
"""Delay of removals for which no caller waits: at once, they would delay the caller's response."""
MAINTENANCE_PERIOD_S = 0.25
BACKOFF_S = (0.05, 0.25)
"""Range of the random delay after a failed reservation, so that two units do not collide again."""
MAX_DEATHS = 3
"""Deaths of workers after which a task ends as failed."""
NODE_DEATH = "NodeDiedError"
"""Ray's error of a task that ended with its node; the task is not at fault."""
REMOVAL_THREADS = 16


class Coordinator:
    """See the module. Methods run in threads. ``lock`` is the store's; groups are created and removed without it."""

    def __init__(
        self,
        described: Sequence[Node] = (),
        clock: Callable[[], float] = time.monotonic,
        reservation_timeout_s: float = RESERVATION_TIMEOUT_S,
    ) -> None:
        """Start the coordinator and its maintenance thread.

        Args:
            described: Descriptions that Ray does not know; if there are any, only these nodes are used.
            clock: Seconds for tasks, leases and timers; clients and reservations use this machine's clock.
            reservation_timeout_s: How long a reservation may take.
        """
        self.described = {node.name: node for node in described}
        self.reservation_timeout_s = reservation_timeout_s
        origin = clock()
        self.store = build_state_store(lambda: clock() - origin)
        self.store.last_number = time.time_ns() // 1_000_000
        self.lock = self.store.changed
        self.placement_groups = PlacementGroups()
        self.resource_groups = ResourceGroups()
        self.reservations: dict[str, Reservation] = {}
        self.sessions = Sessions()
        self.deaths: Counter[str] = Counter()
        self.pool = ThreadPoolExecutor(REMOVAL_THREADS)
        self._update_nodes()
        threading.Thread(target=self._maintain, daemon=True).start()

    def now(self) -> float:
        """Return the seconds since this actor began."""
        return self.store.clock()

    def snapshot(self) -> Snapshot:
        """Return the cluster."""
        return self.store.snapshot()

    def has_node(self, name: str) -> bool:
        """Return whether a node is in the cluster."""
        return name in self.store.nodes

    def watch(self, after: int, timeout: float) -> Sequence[Change] | None:
        """Wait for changes."""
        return self.store.watch(after, timeout)

    def lead(self, holder: str, ttl: float) -> int:
        """Return the term of the new leader, or 0."""
        return self.store.lead(holder, ttl)

    def resign(self, term: int) -> None:
        """End a term's leadership."""
        self.store.resign(term)

    def create(
        self, term: int, name: str, node: str, amount: int, owner: str, ttl: float, until: str
    ) -> EphemeralResource:
        """Create a resource: on a node with a placement group, for the cluster as a record."""
        with self.lock:
            self.store.check_term(term)
            resource = self.store.create(name, node, amount, owner=owner, ttl=ttl, until=until)
        if node != ANYWHERE:
            self._create_group(resource)
        return resource

    def resize(self, term: int, name: str, node: str, amount: int, epoch: int | None) -> EphemeralResource:
        """Set the amount of a resource. Groups cannot be resized, so a new group replaces or joins the old one."""
        key = name, node
        with self.lock:
            self.store.check_term(term)
            resource = self.store.resize(name, node, amount, epoch=epoch)
            old = self.resource_groups.groups.pop(key, []) if node != ANYWHERE else []
            retained = old if key in self.resource_groups.shared else []
        if node != ANYWHERE:
            self._create_group(resource)
            with self.lock:
                self.resource_groups.add(key, retained)
        self._remove_groups([group for group in old if group not in retained])
        return resource

    def delete(self, term: int, holder: str, name: str, node: str, force: bool, epoch: int | None) -> tuple[str, ...]:
        """Delete a resource and its group; tasks that programs run inside the group end only with ``force``."""
        with self.lock:
            self.store.check_term(term)
            holders = self.store.delete(name, node, force=force, epoch=epoch, by=holder)
            groups = self.resource_groups.take_deleted(self.store.resources, force=force)
            freed = [self.reservations.pop(task) for task in holders if task in self.reservations]
        if force:
            self._remove_groups([*groups, *(reservation.group for reservation in freed)])
        else:
            # nothing runs in these groups, so no caller waits for their removal
            self.pool.submit(self._remove_groups, groups, REMOVAL_DELAY_S)
        return holders

    def renew(self, owner: str, ttl: float) -> int:
        """Extend the leases of an owner's resources."""
        return self.store.renew(owner, ttl)

    def share_group(self, name: str, node: str) -> Any:
        """Return the placement group of a resource, for a program's task that requests this resource alone."""
        with self.lock:
            if (name, node) not in self.resource_groups.groups:
                raise user_error(f"{name} does not exist on {node or 'the cluster'}")
            return self.resource_groups.share((name, node))

    def start(self, term: int, holder: str, unit: Sequence[Start]) -> None:
        """Start a unit once every task has a reservation."""
        with self.lock:
            self.store.check_term(term)
            records = self.store.start(unit, by=holder)
            # nothing may wait for Ray while the lock is held
            idle = self.placement_groups.take_idle_for(_demands(records)) if records else None
            if idle is not None:
                self._send_offers(records, idle)
                return
        if records:
            self.pool.submit(self._reserve_and_start, records)

    def preempt(self, term: int, holder: str, task: str) -> None:
        """Stop a task by removing its reservation, and gate it again."""
        with self.lock:
            self.store.check_term(term)
            self.store.preempt(task, by=holder)
        self._free_reservation(task)

    def refuse(self, term: int, holder: str, task: str, reason: str) -> None:
        """Reject a waiting task for good."""
        with self.lock:
            self.store.check_term(term)
            if self.store.refuse(task, reason, by=holder):
                self._close_task(task)

    def withdraw(self, task: str, reason: str = "") -> None:
        """Withdraw a task; if it runs, it is stopped."""
        with self.lock:
            if self.store.withdraw(task, reason):
                self._close_task(task)
        self._free_reservation(task)

    def report(self, client: str, tasks: Sequence[Task], ended: Sequence[Ended]) -> dict[str, str]:
        """Receive a client's new tasks and ended attempts; return why tasks were not accepted, by name."""
        failures: dict[str, str] = {}
        with self.lock:
            self.sessions.touch(client, time.monotonic())
            for message in ended:
                self._end_attempt(message)
            for task in tasks:
                try:
                    self.store.submit(task)
                    self.sessions.add_task(client, task.name)
                except UnfoldError as error:
                    failures[task.name] = error.diagnostics[0].message
        return failures

    def wait_for_offers(self, client: str, received: int, timeout: float) -> list[tuple[int, Offer | Record]]:
        """Wait for tasks that a client is to run, or for records of its tasks that will not run any more.

        Args:
            client: The client.
            received: Number of the last message that it received; those up to it are not sent again.
            timeout: Seconds to wait.

        Returns:
            The messages with their numbers.
        """
        with self.lock:
            session = self.sessions.touch(client, time.monotonic())
            session.acknowledge(received)
            self.lock.wait_for(lambda: session.has_messages, timeout)
            session.last_seen_s = time.monotonic()
            return session.list_messages()

    def leave(self, client: str) -> None:
        """End the waiting of a client that leaves; its tasks are withdrawn some seconds later."""
        with self.lock:
            self.sessions.touch(client, time.monotonic()).is_leaving = True
            self.lock.notify_all()

    def _close_task(self, task: str, *, notify: bool = True) -> None:
        self.sessions.close_task(self.store.records[task], notify=notify)
        if notify:
            self.lock.notify_all()

    def _end_attempt(self, message: Ended) -> None:
        task = message.task
        record = self.store.records.get(task)
        if record is None or record.state != kinds.RUNNING or record.attempt != message.attempt:
            return
        reservation = self.reservations.pop(task, None)
        self.deaths[task] += message.died and message.outcome != NODE_DEATH
        if message.died and reservation is not None:
            self.pool.submit(self._remove_groups, [reservation.group])
        elif reservation is not None:
            self.placement_groups.keep_idle(reservation, time.monotonic())
        if message.died and self.deaths[task] <= MAX_DEATHS:
            self.store.fail(task, message.attempt, message.outcome)
        else:
            self.store.end(task, message.attempt, message.outcome)
            self._close_task(task, notify=message.died)
            del self.deaths[task]

    def _create_group(self, resource: EphemeralResource) -> None:
        shape: Shape = ((BUDGET, float(max(1, min(resource.amount, MAX_AMOUNT)))),)
        group = self.placement_groups.create(resource.node, shape)
        if not group.wait(self.reservation_timeout_s):
            self.placement_groups.remove(group)
            with self.lock, contextlib.suppress(UnfoldError):
                self.store.delete(resource.name, resource.node)
            hint = "start the node with more"
            raise user_error(f"node {resource.node} has no {BUDGET!r} left for {resource.name}", hint=hint)
        with self.lock:
            self.resource_groups.add((resource.name, resource.node), [group])

    def _reserve_and_start(self, records: Sequence[Record]) -> None:
        """Reserve and offer a unit; whatever fails, its tasks wait again rather than for ever."""
        reason = "no room for all tasks of the unit"
        try:
            reservations = self.placement_groups.reserve(_demands(records), self.reservation_timeout_s)
            if reservations is not None:
                with self.lock:
                    self._send_offers(records, reservations)
                return
        except Exception as error:  # noqa: BLE001 - Ray has no narrower class for a group that is gone
            # a node may have left, or a group was removed, while it was awaited
            reason = f"the reservation failed: {error}"
            _logger().exception("no reservation for %s", records[0].task.name)
        time.sleep(random.uniform(*BACKOFF_S))  # noqa: S311
        with self.lock:
            for record in records:
                self.store.fail(record.task.name, record.attempt, f"{record.node}: {reason}")

    def _send_offers(self, records: Sequence[Record], reservations: Sequence[Reservation]) -> None:
        for record, reservation in zip(records, reservations, strict=True):
            name = record.task.name
            current, session = self.store.records.get(name), self.sessions.session_of(name)
            is_current = current is not None and (current.state, current.attempt) == (kinds.RUNNING, record.attempt)
            if session is None or not is_current:
                self.placement_groups.keep_idle(reservation, time.monotonic())
                continue
            self.reservations[name] = reservation
            session.add_message(Offer(name, record.attempt, reservation))
        self.lock.notify_all()

    def _free_reservation(self, task: str) -> None:
        with self.lock:
            reservation = self.reservations.pop(task, None)
        if reservation is not None:
            self.placement_groups.remove(reservation.group)

    def _remove_groups(self, groups: Sequence[Any], delay_s: float = 0.0) -> None:
        time.sleep(delay_s)
        for group in groups:
            try:
                self.placement_groups.remove(group)
            except Exception:  # noqa: BLE001 - the others must go anyway
                _logger().exception("placement group %s was not removed", group.id)

    def _maintain(self) -> None:
        """Keep leases, reservations and nodes up to date; an error of Ray must not end that for good."""
        while True:
            began_s = time.monotonic()
            time.sleep(MAINTENANCE_PERIOD_S)
            self._discount_own_pause(time.monotonic() - began_s - MAINTENANCE_PERIOD_S)
            for step in (self._expire, self._update_nodes, self._remove_unused):
                try:
                    step()
                except Exception:  # noqa: BLE001 - of any layer of Ray
                    _logger().exception("maintenance of the coordinator")

    def _discount_own_pause(self, pause_s: float) -> None:
        """Subtract the time for which this process itself did not run from the silence of every client."""
        if pause_s > MAINTENANCE_PERIOD_S:
            with self.lock:
                for session in self.sessions.clients.values():
                    session.last_seen_s += pause_s

    def _remove_unused(self) -> None:
        if self.resource_groups.terminating:
            self._remove_groups(self.resource_groups.take_unused(self.placement_groups.find_unused))

    def _expire(self) -> None:
        """Expire leases, idle reservations and silent clients."""
        with self.lock:
            self.store.expire_leases()
            now = time.monotonic()
            abandoned = self.sessions.list_abandoned(now)
            groups = self.resource_groups.take_deleted(self.store.resources)
        self.placement_groups.remove_idle(now - IDLE_TIMEOUT_S)
        for task in abandoned:
            self.withdraw(task, f"its client was silent for {CLIENT_TIMEOUT_S:g} s")
        self._remove_groups(groups)

    def _update_nodes(self) -> None:
        import ray

        alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get(BUDGET)]
        found = {parse_node(node).name: (parse_node(node), node["NodeID"]) for node in alive}
        usable = {name: entry for name, entry in found.items() if not self.described or name in self.described}
        with self.lock:
            ids = self.placement_groups.node_ids
            # a node that came back at once under its name has another id, and runs nothing of the old one
            for name in [name for name in self.store.nodes if name not in usable or usable[name][1] != ids.get(name)]:
                self._remove_node(name)
            for name in usable.keys() - self.store.nodes.keys():
                node, node_id = usable[name]
                self.placement_groups.node_ids[name] = node_id
                self.store.join(self._merge_description(node))

    def _merge_description(self, node: Node) -> Node:
        description = self.described.get(node.name, node)
        return replace(description, capacity=description.capacity or node.capacity)

    def _remove_node(self, name: str) -> None:
        tasks = [task for task, reservation in self.reservations.items() if reservation.node == name]
        groups = [self.reservations.pop(task).group for task in tasks]
        groups += self.placement_groups.take_idle(node=name)
        self.placement_groups.node_ids.pop(name, None)
        self.store.leave(name)
        deleted = self.resource_groups.take_deleted(self.store.resources)
        self.pool.submit(self._remove_groups, [*groups, *deleted])


def _logger() -> logging.Logger:
    return logging.getLogger("unfoldkit")


def _demands(records: Sequence[Record]) -> list[NodeShape]:
    return [(record.node, bundle_shape(record.task, len(record.asks))) for record in records]
