"""The Kubernetes backend: writes decisions as resources and gates, and reports what happens on the server."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from unfold_placement.core.policy import Policy
from unfold_placement.core.types import ANYWHERE, Ask, EphemeralResource, Task
from unfold_placement.kubernetes.background import BackgroundWrites
from unfold_placement.kubernetes.gate_queue import (
    MAX_IN_FLIGHT,
    GateQueue,
    GateRequest,
    delete_orphaned_resources,
    delete_replaced_pods,
    find_half_opened,
    regroup_waiting,
    track_unbound_pods,
)
from unfold_placement.kubernetes.informer import Informer
from unfold_placement.kubernetes.objects import pods
from unfold_placement.kubernetes.objects.codec import DRA, GATES, UNITS, Scope, annotation_key, parse_time, shorten_name
from unfold_placement.kubernetes.objects.dra import Counters
from unfold_placement.kubernetes.writer import Errors, LostTask, Writer
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Change, Snapshot, Start
from unfold_placement.live.postponed import Postponed, Postponement, postpone
from unfold_placement.live.state_store import ALIVE, StateStore
from unfold_placement.policies.affinity.node_filter import AcceptedNodes, DomainLimits, has_domain_limits
from unfoldkit.api import UnfoldError, user_error
from unfoldkit.kubernetes.api import FIRST_CLIENT_ERROR, GONE, KEY, MERGE, NOT_FOUND, UNAUTHORIZED, Api, ApiError
from unfoldkit.kubernetes.leader_election import LeaderElection, lease_body, leases_path, read_duration_s

ROLES_HINT = "unfold plan SPEC --format kubernetes writes the roles that are needed"
BIND_TIMEOUT_S = 10.0
REFUSAL_DELAY_S = 0.5
"""Half of the first delay of a task that the server refused to open twice."""
SNAPSHOT_PERIOD_S = 5.0
"""Least time between snapshots that pods of other programs cause."""
SETTLE_S = 0.002
"""Changes within this time of one another are reported together. Those that come during a decision are in any case."""
MAX_SETTLE_PERIODS = 50
RESOURCE_CHANGES = {kinds.CREATED, kinds.RESIZED, kinds.DELETED, kinds.EXPIRED}
OWNER = annotation_key("owner")
"""Label of the Leases of owners of ephemeral resources."""
RELEASING_CHANGES = {kinds.ENDED, kinds.FAILED, kinds.PREEMPTED, kinds.WITHDRAWN}
"""Changes of tasks that release resources."""


def _no_requests(_task: Task) -> Iterable[Ask]:
    return ()


@dataclass(slots=True)
class KubernetesBackend:
    """One controller's or client's handle on a scope. A leader's decisions are written before it watches again.

    Attributes:
        api: The server.
        scope: The policy's scope.
        store: The records.
        informer: Follows the server.
        writer: Writes to the server.
        election: Leader election.
        gate_queue: Units that wait for the opening of their gates.
        asks: Resources that a submitted task's pod requests as extended resources.
        bind_timeout_s: How long an opened pod may stay without a node before its unit is gated again.
        settle_s: Changes within this time of one another are reported together.
        holder: Name of this process once it stood for election.
        is_leader: Whether this process leads.
        was_leader: Whether it ever led; if so, it writes only while it leads.
        read_number: Number of the last change that was considered for writing.
        unwritten: Locations that changed and are not written yet.
        has_gangs: Units of several tasks were started since the last flush, or the records of all have become outdated.
        lost_tasks: Tasks that need a new pod.
        refused_pods: Why the server refused new pods since this was logged, by task.
        next_snapshot_s: When pods of other programs may next cause a snapshot, by the monotonic clock.
        postponed: Tasks that kube-scheduler had no node for, or that the server refused to open, by name.
    """

    api: Api
    scope: Scope
    store: StateStore
    informer: Informer
    writer: Writer
    election: LeaderElection
    gate_queue: GateQueue
    asks: Callable[[Task], Iterable[Ask]] = _no_requests
    bind_timeout_s: float = BIND_TIMEOUT_S
    settle_s: float = SETTLE_S
    holder: str = ""
    is_leader: bool = False
    was_leader: bool = False
    read_number: int = 0
    unwritten: set[str] = field(default_factory=set)
    has_gangs: bool = False
    lost_tasks: list[LostTask] = field(default_factory=list)
    refused_pods: dict[str, ApiError] = field(default_factory=dict)
    next_snapshot_s: float = 0.0
    postponed: dict[str, Postponement] = field(default_factory=dict)

    def now(self) -> float:
        """Return the seconds since the scope's ConfigMap was created."""
        return self.store.clock()

    def describe_wait(self) -> str:
        """Return the request that has waited longest for an answer."""
        return self.api.describe_wait()

    def describe_refusal(self) -> str:
        """Return the write that the server refused last, while it is tried again, or has not answered for long."""
        return self.writer.recent_refusal() or self.writer.background.describe_slow()

    def constraints(self, tasks: Sequence[Task]) -> Sequence[Policy]:
        """Return the policies for kube-scheduler's own rules; limits of domains only where a pod has any."""
        has_limits = bool(self.informer.repelling) or any(map(has_domain_limits, tasks))
        limits = [DomainLimits(absent=self.informer.list_absent_nodes())] if has_limits else []
        names = {task.name for task in tasks}
        postponed = {name: item for name, item in self._list_postponed().items() if name in names}
        return [*([Postponed(postponed)] if postponed else []), AcceptedNodes(), *limits]

    def snapshot(self) -> Snapshot:
        """Write what is pending, read leases unless this process leads, and return nodes, resources and tasks."""
        self.flush()
        if not self.is_leader:
            self.read_leases()
        self.informer.foreign_changed, self.next_snapshot_s = False, time.monotonic() + SNAPSHOT_PERIOD_S
        self.informer.nodes_changed = False
        return self.store.snapshot()

    def has_node(self, name: str) -> bool:
        """Return whether a node is ready."""
        return name in self.store.nodes

    def watch(self, after: int, timeout: float) -> Sequence[Change] | None:
        """Write decisions, then wait for changes; None also if pods of other programs took or freed capacity."""
        deadline_s = time.monotonic() + timeout
        while True:
            self.flush()
            if self.informer.volumes_changed:
                self.informer.follow_volumes()
            if self.is_leader:
                self.check_openings()
            is_due = self.informer.foreign_changed and time.monotonic() > self.next_snapshot_s
            if is_due or self.informer.nodes_changed:
                return None
            changes = self._wait_for_changes(after, deadline_s)
            if changes is None or changes or time.monotonic() >= deadline_s:
                return self._await_quiet(changes)

    def lead(self, holder: str, ttl: float) -> bool:
        """Become or stay leader; a new leader repairs what its predecessor left half done."""
        leads = self.election.lead(holder, ttl)
        self.holder = holder
        if leads != self.is_leader:
            self._discard_unwritten()
        if leads and not self.is_leader:
            self.was_leader = True
            self.read_leases()
            self.repair()
        # it leads once nothing is left to repair
        self.is_leader = leads
        return leads

    def resign(self) -> None:
        """Give up leadership."""
        self.flush()
        self.is_leader = False
        self._discard_unwritten()
        self.election.resign()

    def create(
        self, name: str, node: str = ANYWHERE, amount: int = 1, *, owner: str = "", ttl: float = math.inf,
        until: str = "",
    ) -> EphemeralResource:  # fmt: skip
        """Create a resource."""
        self._prepare_write(node)
        resource = self.store.create(name, node, amount, owner=owner, ttl=ttl, until=until)
        self._resource_changed(node)
        return resource

    def resize(
        self, name: str, node: str = ANYWHERE, amount: int = 1, *, epoch: int | None = None
    ) -> EphemeralResource:
        """Set the amount of a resource."""
        self._prepare_write(node)
        resource = self.store.resize(name, node, amount, epoch=epoch)
        self._resource_changed(node)
        return resource

    def delete(
        self, name: str, node: str = ANYWHERE, *, force: bool = False, epoch: int | None = None
    ) -> tuple[str, ...]:
        """Delete a resource."""
        self._prepare_write(node)
        holders = self.store.delete(name, node, force=force, epoch=epoch, by=self.holder)
        self._add_lost(holders, kinds.PREEMPTED)
        self._resource_changed(node)
        return holders

    def renew(self, owner: str, ttl: float) -> int:
        """Extend the lifetime of an owner's resources by one Lease for all of them."""
        count = self.store.renew(owner, ttl)
        if count:
            renew_owner(self.api, self.scope, owner, ttl)
        return count

    def submit(self, task: Task) -> None:
        """Create the gated pod of a task."""
        exists_error = user_error(f"task {task.name} already exists", hint="task names must be unique")
        if task.name in self.store.records:
            raise exists_error
        body = pods.gated_pod(task, self.asks(task), self.scope, self.api.now())
        try:
            self.informer.handle_pod(self.api.post(f"/api/v1/namespaces/{self.api.namespace}/pods", body))
        except ApiError as error:
            if error.is_conflict and error.reason == "AlreadyExists":
                raise exists_error from error
            raise user_error(f"the cluster rejects task {task.name}: {error.message}", key="workload") from error

    def start(self, unit: Sequence[Start]) -> None:
        """Start a unit: when the gate queue admits it, all its gates are opened together."""
        self.check_leadership()
        records = self.store.start(unit, by=self.holder)
        if not records:
            return
        self.informer.opening.update(start.task for start in unit)
        self.gate_queue.add(unit, records)
        self.has_gangs |= len(unit) > 1
        self._flush_unless_leader()

    def preempt(self, task: str) -> None:
        """Stop a running task and gate it again."""
        self.check_leadership()
        bound_nodes = {node for _, node in self.store.task_bound.get(task, ())}
        if self.store.preempt(task, by=self.holder):
            self.informer.dirty.update(bound_nodes)
            self._add_lost((task,), kinds.PREEMPTED)
            self._flush_unless_leader()

    def refuse(self, task: str, reason: str) -> None:
        """Reject a task for good; its pod stays gated and shows the reason."""
        self.check_leadership()
        if self.store.refuse(task, reason, by=self.holder):
            self.writer.refuse(task, reason, self.holder)
            self._flush_unless_leader()

    def withdraw(self, task: str) -> None:
        """Withdraw a task: its pod is deleted."""
        if self.store.withdraw(task):
            self.informer.note_stops((task,))
            self.informer.opening.discard(task)
            self.writer.delete_pod(self.informer.current[task])
            self._flush_unless_leader()

    def flush(self) -> None:
        """Write decisions: lost places, then resources, then as many gates as may be open at a time.

        Raises:
            UnfoldError: Another controller leads, or changed resources that this one is writing.
        """
        with self.store.changed:
            # a write that fails must not lose them
            self.unwritten |= self._changed_locations()
            locations = set(self.unwritten)
            if self.is_leader:
                self.lost_tasks += [(task, kinds.FAILED) for task in self.informer.lost_tasks]
                self.informer.lost_tasks = []
        self._settle()
        if self.is_leader:
            self.writer.retry_workloads()
        is_resuming = self.is_leader and bool(self.informer.suspended)
        has_work = locations or self.gate_queue.queue or self.lost_tasks or self.writer.replaced or self.has_gangs
        if not (has_work or is_resuming) or (self.was_leader and not self.is_leader):
            return
        self.check_leadership()
        with self.election.keep() if self.is_leader else contextlib.nullcontext():
            self._write(locations)

    def _write(self, locations: set[str]) -> None:
        if self.is_leader:
            self.writer.resume_workloads(self.holder)
        self._recreate_lost()
        gang_location = {ANYWHERE} if self.has_gangs else set()
        self.writer.write_resources(locations | gang_location, self.gate_queue.list_gangs())
        self.unwritten -= locations
        self.has_gangs = False
        for request in self.gate_queue.take_ready():
            opens = partial(self.writer.open_unit, request.unit, self.holder, partial(self._is_current, request))
            self.writer.background.begin(request.attempts, opens, partial(self._finish_opening, request))
        self._settle()
        # what was opened of a refused unit is taken back at once
        self._recreate_lost()

    def _settle(self) -> None:
        """Take up what became of writes, and hold back what is still being written."""
        self.writer.background.settle()
        if self.refused_pods:
            error, count = next(iter(self.refused_pods.values())), len(self.refused_pods)
            self.writer.log_refusal(f"{count} stopped pods were not created again, the first because of {error}")
            self.refused_pods = {}
        self.gate_queue.held = frozenset(task for task, _ in self.lost_tasks) | self.writer.background.busy

    def check_openings(self) -> None:
        """Release claims of ended pods, and gate units again if their pods stay without a node for too long."""
        self.writer.release_claims()
        for first_task in self.gate_queue.find_late(self.now(), self.bind_timeout_s):
            self._postpone_unbound(first_task)
            self._gate_unit_again(first_task, "the scheduler found no room")
        if nodes := self.informer.find_overdue(self.bind_timeout_s):
            for first_task in self.gate_queue.list_waiting_for(nodes):
                self._gate_unit_again(first_task, "a pod on its node does not end")
        self._forget_postponed()
        # each gang replaces the records of those before it; nothing replaces the last
        self.has_gangs |= not self.gate_queue.units and self.writer.has_units

    def _postpone_unbound(self, first_task: str) -> None:
        """Postpone the tasks of a unit that kube-scheduler has no node for, and log each reason once for all of them.

        A volume claim that does not exist never leaves it: its unit would take the room of others, over and over.
        """
        unreported: dict[str, list[str]] = {}
        for task in self.gate_queue.units.get(first_task, ()):
            body = self.informer.body(task)
            reason, previous = pods.unschedulable_reason(body), self.postponed.get(task)
            if body is None or body["spec"].get("nodeName"):
                continue
            reason = reason or f"{body['spec'].get('schedulerName', 'it')} has not looked at it"
            said = f"kube-scheduler had no node: {reason}"
            self._postpone(task, said, self.bind_timeout_s)
            if previous is None or previous.reason != said:
                unreported.setdefault(reason, []).append(task)
        for reason, tasks in unreported.items():
            units = f"{tasks[0]} has" if len(tasks) == 1 else f"{tasks[0]} and {len(tasks) - 1} more of its gang have"
            is_again = "is gated again" if len(tasks) == 1 else "are gated again"
            text = "%s stayed without a node for %g s and %s; kube-scheduler: %s"
            logging.getLogger("unfoldkit").warning(text, units, self.bind_timeout_s, is_again, reason)

    def _postpone(self, task: str, reason: str, delay_s: float) -> None:
        self.postponed[task] = postpone(self.postponed.get(task), reason, self.now(), delay_s)
        # a new controller makes its policies keep back what is postponed
        self.informer.nodes_changed |= bool(self._list_postponed())

    def _list_postponed(self) -> dict[str, Postponement]:
        """Return the tasks that are not to be tried yet, or that were postponed before."""
        return {name: item for name, item in self.postponed.items() if item.tries > 1}

    def _forget_postponed(self) -> None:
        """Forget the postponed tasks that have a node, or have gone."""
        for task in list(self.postponed):
            record = self.store.records.get(task)
            if record is None or record.state not in ALIVE or self.informer.is_bound(task):
                del self.postponed[task]

    def repair(self) -> None:
        """Continue from what another controller left."""
        self.gate_queue.units = self.writer.opening_units()
        for first_task in find_half_opened(self.gate_queue.units, self.store):
            regroup_waiting(self.gate_queue.units[first_task], self.store)
            self._gate_unit_again(first_task, "its controller ended while it was being opened")
        delete_orphaned_resources(self.store)
        if self.writer.counters is not None:
            self.writer.counters.read()
            self.informer.dirty.add(ANYWHERE)
        track_unbound_pods(self.gate_queue, self.store)
        self.gate_queue.opened_at_s = dict.fromkeys(self.gate_queue.units, self.now())
        delete_replaced_pods(self.informer, self.writer)

    def read_leases(self) -> None:
        """Read the cluster's resources; leased ones live as long as the Leases of their owners say."""
        self.informer.read_resources(ANYWHERE, self.writer.read_config().get("data", {}).get("names", ""))
        owners = read_owners(self.api, self.scope)
        alive_until = {owner: until - self.informer.origin for owner, until in owners.items()}
        with self.store.changed:
            for location in [*self.informer.nodes, ANYWHERE]:
                self.informer.restore(location, alive_until)

    def check_leadership(self) -> None:
        """Check that this process still leads, if it ever did.

        Raises:
            UnfoldError: Its leadership has ended.
        """
        if self.was_leader and not (self.is_leader and self.election.is_leader):
            self.is_leader = False
            self._discard_unwritten()
            reason = "another controller leads now" if self.election.has_lost else "its Lease expired without renewal"
            raise user_error(f"leadership is lost: {reason}", hint="this one waits until it may lead again")

    def close(self) -> None:
        """Stop following the server."""
        self.api.close()
        self.writer.background.pool.shutdown(wait=False, cancel_futures=True)

    def _wait_for_changes(self, after: int, deadline_s: float) -> Sequence[Change] | None:
        """Wait for changes, or until the gate queue may open a unit."""
        with self.store.changed:
            remaining_s = max(0.0, deadline_s - time.monotonic())
            self.store.changed.wait_for(
                lambda: self.store.last_number > after or self.gate_queue.has_ready() or self._must_act(),
                remaining_s,
            )
        return self.store.watch(after, 0.0)

    def _must_act(self) -> bool:
        has_changed = self.informer.nodes_changed or self.informer.volumes_changed
        return has_changed or self.writer.background.has_ended or (self.is_leader and bool(self.informer.suspended))

    def _await_quiet(self, changes: Sequence[Change] | None) -> Sequence[Change] | None:
        """Wait briefly for changes of the same moment, as the server reports pods one by one, until gangs are whole."""
        deadline_s = time.monotonic() + MAX_SETTLE_PERIODS * self.settle_s
        while changes and not _are_whole_gangs(changes) and time.monotonic() < deadline_s:
            more = self.store.watch(changes[-1].number, self.settle_s)
            if more is None:
                return None
            if not more:
                break
            changes = [*changes, *more]
        return changes

    def _changed_locations(self) -> set[str]:
        """Return the nodes to write: for a leader, all with resources that changed since the last time."""
        locations = set(self.informer.dirty)
        if self.is_leader:
            log = self.store.log
            count = min(self.store.last_number - self.read_number, len(log))
            recent = [log[len(log) - 1 - offset] for offset in range(count)]
            locations |= {change.node for change in recent if change.kind in RESOURCE_CHANGES | RELEASING_CHANGES}
            locations |= self.informer.drifted
        self.read_number = self.store.last_number
        return locations

    def _prepare_write(self, node: str) -> None:
        """Check leadership; a process that never led reads the location first, since others write too."""
        self.check_leadership()
        if self.is_leader:
            return
        if node == ANYWHERE or node in self.informer.nodes:
            self.writer.reread(node)

    def _resource_changed(self, node: str) -> None:
        self.informer.dirty.add(node)
        self._flush_unless_leader()

    def _flush_unless_leader(self) -> None:
        """Write at once, except as leader: then all decisions of a round are written together."""
        if not self.is_leader:
            self.flush()

    def _add_lost(self, tasks: Sequence[str], kind: str) -> None:
        self.informer.opening.update(tasks)
        self.informer.note_stops(tasks)
        self.lost_tasks += [(task, kind) for task in tasks]

    def _recreate_lost(self) -> None:
        """Recreate the pods of tasks that lost their place; refused ones are tried again with the next flush."""
        busy = set(self.writer.background.busy)
        for entry in self.lost_tasks:
            if entry[0] not in busy:
                busy.add(entry[0])
                call = partial(self.writer.recreate_pod, *entry, self.holder)
                self.writer.background.begin({entry[0]}, call, partial(self._finish_recreation, entry))
        self._settle()
        self.writer.delete_replaced()
        self._settle()

    def _finish_recreation(self, entry: LostTask, error: ApiError | None) -> None:
        if error is not None:
            self.refused_pods[entry[0]] = error
        elif entry in self.lost_tasks:
            self.lost_tasks.remove(entry)
            self.informer.opening.discard(entry[0])

    def _is_current(self, request: GateRequest) -> bool:
        """Return whether a unit is still to be opened: its leader leads, and none of its tasks was stopped."""
        leads = self.election.is_leader if self.was_leader else True
        records = [self.store.records.get(start.task) for start in request.unit]
        return leads and all(
            record is not None and (record.state, record.attempt) == (kinds.RUNNING, request.attempts[record.task.name])
            for record in records
        )

    def _finish_opening(self, request: GateRequest, errors: Errors) -> None:
        """Record that a unit is open; if one gate of it could not be opened, the unit is gated again."""
        if self.gate_queue.units.get(request.first_task) != request.attempts:
            # another process leads, or its tasks were stopped: each is followed by itself
            return
        self.gate_queue.mark_opened([request], self.now())
        if errors:
            self._postpone_refused(errors)
            self._gate_unit_again(request.first_task, "its pod could not be opened")

    def _postpone_refused(self, errors: Errors) -> None:
        """Postpone the tasks that the server refused to open; a pod that has gone is no refusal."""
        refused = {
            task: error
            for task, error in errors.items()
            if not (isinstance(error, ApiError) and error.status in {NOT_FOUND, GONE})
        }
        for task, error in refused.items():
            self._postpone(task, f"its gate was not opened: {error}", REFUSAL_DELAY_S)
        if refused:
            first = next(iter(refused.values()))
            self.writer.log_refusal(f"{len(refused)} pods were not opened, the first because of {first}")

    def _gate_unit_again(self, first_task: str, reason: str) -> None:
        """Let all tasks of a unit wait again."""
        for task, attempt in self.gate_queue.drop(first_task).items():
            if self.store.fail(task, attempt, reason):
                self._add_lost((task,), kinds.FAILED)

    def _discard_unwritten(self) -> None:
        """Discard unwritten decisions: the pods show where tasks are."""
        self.gate_queue.clear()
        self.lost_tasks, self.has_gangs = [], False
        self.gate_queue.held = frozenset()
        self.informer.revert_unwritten()


def _are_whole_gangs(changes: Sequence[Change]) -> bool:
    """Return whether changes submit gangs of pods, each with all its tasks, and nothing else."""
    tasks = [change.record.task for change in changes if change.kind == kinds.SUBMITTED and change.record is not None]
    widths = Counter(task.job for task in tasks)
    return len(tasks) == len(changes) and all(task.size == widths[task.job] > 1 for task in tasks)


def open_backend(
    api: Api,
    name: str,
    *,
    asks: Callable[[Task], Iterable[Ask]] = _no_requests,
    units: Mapping[str, str] | None = None,
    bind_timeout_s: float = BIND_TIMEOUT_S,
    max_in_flight: int = MAX_IN_FLIGHT,
    counters: str = GATES,
) -> KubernetesBackend:
    """Open a handle on the scope ``name`` of a cluster; it follows the server until it is closed.

    Args:
        api: The server.
        name: Name of the policy's spec.
        asks: Returns the resources that a submitted task requests.
        units: Kubernetes' names of resources.
        bind_timeout_s: How long an opened pod may stay without a node.
        max_in_flight: Opened pods that may be without a node at a time.
        counters: ``gates`` or ``dra``.

    Raises:
        UnfoldError: The server denies access, or does not answer.
    """
    scope = Scope(name, api.namespace, UNITS if units is None else units, counters)
    store = StateStore(lambda: api.now() - informer.origin)
    informer = Informer(api, scope, store, 0.0)
    writer = Writer(
        api, scope, informer, BackgroundWrites(store.notify), Counters(api, scope) if counters == DRA else None
    )
    try:
        writer.read_config()
        if writer.counters is not None:
            writer.counters.start()
        informer.origin = writer.origin
        informer.start()
    except ApiError as error:
        raise access_error(error, ROLES_HINT) from error
    return KubernetesBackend(
        api,
        scope,
        store,
        informer,
        writer,
        LeaderElection(api, scope.record),
        GateQueue(informer, max_in_flight),
        asks,
        bind_timeout_s,
    )


def access_error(error: ApiError, hint: str) -> UnfoldError:
    """Build the error of a refused connection, with what a permitted user lacks as its ``hint``."""
    fault = "denies access"
    if error.status == UNAUTHORIZED:
        hint = "the token or certificate has expired or is unknown; kubectl auth whoami shows the same"
    elif error.is_absent:
        fault = "lacks what is needed"
    elif error.is_temporary:
        fault, hint = f"fails for now ({error.status})", "kubectl get --raw /readyz shows whether it is healthy"
    elif error.status < FIRST_CLIENT_ERROR:
        fault, hint = f"is not at this address ({error.status})", "a proxy redirects to another"
    return user_error(f"the cluster {fault}: {error.message or error.reason or error.status}", key=KEY, hint=hint)


def renew_owner(api: Api, scope: Scope, owner: str, ttl: float) -> None:
    """Extend the lifetime of an owner's resources to ``ttl`` seconds from now."""
    name = shorten_name(f"{scope.name}.{owner}", 60).lower()
    lease = lease_body(api, name, owner, ttl, {})
    lease["metadata"]["labels"] = {OWNER: scope.name}
    try:
        api.patch(f"{leases_path(api)}/{name}", lease, MERGE)
    except ApiError as error:
        if not error.is_absent:
            raise
        api.post(leases_path(api), lease)


def read_owners(api: Api, scope: Scope) -> dict[str, float]:
    """Return until when (Unix seconds) the resources of each owner live."""
    leases = api.get(leases_path(api), labelSelector=f"{OWNER}={scope.name}")["items"]
    return {
        lease["spec"]["holderIdentity"]: parse_time(lease["spec"]["renewTime"]) + read_duration_s(lease)
        for lease in leases
    }
