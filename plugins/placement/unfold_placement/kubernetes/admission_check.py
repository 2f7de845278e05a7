"""Answers Kueue's admission checks: Kueue keeps the quota, the policies decide order and placement.

A workload with reserved quota waits for its check; each of its pods is a task, and all of them start together. Once the
policies have placed them, the check becomes ``Ready``. The answer carries the placement, and the labels by which the
pods are recognized. It is the only record: a controller that was killed reads it back, and an answer that was not
written was never given. Every answer is compared with the version of the workload that was read (optimistic locking).
Answers are written in the background: one that the server is slow to take holds up no other workload.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

import msgspec

from unfold_placement.core.policy import Policy
from unfold_placement.core.types import Node, Task
from unfold_placement.kubernetes.background import BackgroundWrites
from unfold_placement.kubernetes.informer import NODES, PODS, replace_node, update_node
from unfold_placement.kubernetes.objects import pods
from unfold_placement.kubernetes.objects.codec import (
    HOSTNAME,
    Body,
    Scope,
    annotation_key,
    decode_node,
    parse_time,
    shorten_name,
)
from unfold_placement.kubernetes.objects.node_rules import pod_filter
from unfold_placement.kubernetes.objects.requests import pod_demand
from unfold_placement.kubernetes.objects.selectors import parse_toleration
from unfold_placement.live.backend import Change, Record, Snapshot, Start
from unfold_placement.live.local import LocalBackend
from unfold_placement.live.postponed import Postponed, Postponement, postpone
from unfold_placement.live.state_store import StateStore
from unfold_placement.policies.affinity.node_filter import AcceptedNodes, NodeFilter, decode_filter, encode_filter
from unfoldkit.api import UnfoldError, format_names, user_error
from unfoldkit.kubernetes.api import MERGE, Api, ApiError
from unfoldkit.kubernetes.leader_election import LeaderElection
from unfoldkit.kubernetes.reflector import Handler, ObjectKey, Reflector

API = "/apis/kueue.x-k8s.io/v1beta2"
CHECKS, FLAVORS, WORKLOADS = f"{API}/admissionchecks", f"{API}/resourceflavors", f"{API}/workloads"
PENDING, READY, RETRY, REJECTED = "Pending", "Ready", "Retry", "Rejected"
WORKLOAD_LABEL = annotation_key("workload")
PLACEMENT = annotation_key("placement")
MAX_TRIES = 5
MAX_WATCH_S = 1.0
"""Late workloads are found within this time."""
MIN_TRY_S = 5.0
"""A new controller tries to place a workload for so long before it gives one up that has waited long enough."""
REFUSAL_DELAY_S = 0.5
"""Half of the first delay of a workload with an answer that the server refused twice."""
MAX_MESSAGE = 1000
MAX_NODES_SHOWN = 8


@dataclass(slots=True)
class CheckedWorkload:
    """A workload with reserved quota.

    Attributes:
        body: The workload as read last.
        reservation: Identifier of the reservation: the workload's UID and the time of its quota.
        tasks: Its tasks, one for each pod, by name.
        pod_sets: Pod set of each task.
        since_s: When its quota was reserved, by the store's clock, under any controller.
        seen_s: When this controller saw the reservation first.
        nodes: Nodes of its pods by the answer that was given or read back; empty while it waits.
        asked: The state that is being written last; empty for none.
        writing: Held while an answer is written: those of a workload follow one another.
    """

    body: Body
    reservation: tuple[str, str]
    tasks: dict[str, Task] = field(default_factory=dict)
    pod_sets: dict[str, str] = field(default_factory=dict)
    since_s: float = 0.0
    seen_s: float = 0.0
    nodes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    asked: str = ""
    writing: threading.Lock = field(default_factory=threading.Lock)


@dataclass(slots=True)
class AdmissionCheckBackend(LocalBackend):
    """Kueue's workloads as tasks; it writes nothing but the states of its admission checks.

    Attributes:
        api: The server.
        scope: Names of resources; its gate is the ``controllerName`` of the checks.
        patience_s: How long (s) a workload may hold its quota without a placement.
        wall_clock: Returns Unix seconds, with which times of the server are compared.
        election: The election by a Lease; one controller answers.
        checks: Names of the checks that belong to this controller.
        nodes: Nodes by name.
        flavors: ResourceFlavors by name.
        workloads: Workloads with reserved quota, by namespace and name.
        pods: Node, demand and workload label of pods that run, by namespace and name.
        nodes_changed: Labels, taints or free capacity of a node changed since the last snapshot.
        reservations: Number of reservations so far, which makes names of tasks unique.
        postponed: Tasks of workloads with answers that were not written, by name.
        background: The answers that are being written.
    """

    api: Api = field(kw_only=True)
    scope: Scope = field(kw_only=True)
    patience_s: float = 60.0
    wall_clock: Callable[[], float] = time.time
    election: LeaderElection | None = None
    checks: set[str] = field(default_factory=set)
    nodes: dict[str, Body] = field(default_factory=dict)
    flavors: dict[str, Body] = field(default_factory=dict)
    workloads: dict[str, CheckedWorkload] = field(default_factory=dict)
    pods: dict[ObjectKey, tuple[str, dict[str, int], str]] = field(default_factory=dict)
    nodes_changed: bool = False
    reservations: int = 0
    postponed: dict[str, Postponement] = field(default_factory=dict)
    background: BackgroundWrites = field(init=False)

    def __post_init__(self) -> None:
        """Begin without a write."""
        self.background = BackgroundWrites(self.store.notify)

    def open(self) -> None:
        """Read flavors, nodes, pods, workloads and checks, and follow them in threads."""
        sources: tuple[tuple[str, Handler, Iterable[object]], ...] = (
            (FLAVORS, self.handle_flavor, self.flavors),
            (NODES, self.handle_node, self.nodes),
            (PODS, self.handle_pod, self.pods),
            (WORKLOADS, self.handle_workload, self.workloads),
            (CHECKS, self.handle_check, self.checks),
        )
        for path, handle, known in sources:
            Reflector(self.api, path, handle, partial(_missing, known)).start()

    def close(self) -> None:
        """Stop following the server."""
        self.api.close()
        self.background.pool.shutdown(wait=False, cancel_futures=True)

    def describe_refusal(self) -> str:
        """Return the answer that the server has been slow to take."""
        return self.background.describe_slow()

    def describe_wait(self) -> str:
        """Return the request that has waited longest for an answer."""
        return self.api.describe_wait()

    def lead(self, holder: str, ttl: float) -> bool:
        """Become or stay the controller that answers."""
        if self.election is None:
            self.election = LeaderElection(self.api, shorten_name(f"unfold-{self.scope.name}-admission", 60))
        leads = self.election.lead(holder, ttl)
        if leads:
            LocalBackend.lead(self, holder, ttl)
        return leads

    def resign(self) -> None:
        """Let another controller answer."""
        self.background.settle()
        LocalBackend.resign(self)
        if self.election is not None:
            self.election.resign()

    def constraints(self, tasks: Sequence[Task]) -> Sequence[Policy]:
        """Return the policy for selectors, affinity and taints, to which flavors add, and that for refused answers."""
        postponed = {
            task.name: item for task in tasks if (item := self.postponed.get(task.name)) is not None and item.tries > 1
        }
        return [*([Postponed(postponed)] if postponed else []), AcceptedNodes()]

    def snapshot(self) -> Snapshot:
        """Give late workloads up, then return the cluster."""
        self.nodes_changed = False
        return LocalBackend.snapshot(self)

    def watch(self, after: int, timeout: float) -> Sequence[Change] | None:
        """Wait for changes; None also where nodes changed, or an answer appeared that this process did not give."""
        self.background.settle()
        changes = LocalBackend.watch(self, after, min(timeout, MAX_WATCH_S))
        return None if self.nodes_changed else changes

    def end_due_tasks(self) -> None:
        """Give up workloads that hold their quota too long without a placement: others may use it meanwhile."""
        now = self.now()
        with self.store.changed:
            late = [
                (name, item)
                for name, item in self.workloads.items()
                if item.tasks and not item.nodes and not item.asked and self._is_late(item, now)
            ]
        for name, item in late if self.term else ():
            message = f"no placement on {len(self.nodes)} nodes within {self.patience_s:g} s"
            self._give_up(name, item, message, math.ceil(self.patience_s))

    def _is_late(self, item: CheckedWorkload, now_s: float) -> bool:
        tried_s = now_s - item.seen_s
        return now_s - item.since_s > self.patience_s and tried_s > min(MIN_TRY_S, self.patience_s)

    def start(self, unit: Sequence[Start]) -> None:
        """Answer ``Ready`` once all pods of a workload are placed; where that fails, it waits again."""
        self.store.check_term(self.term)
        records = self.store.start(unit, by=self.holder)
        name = self._find_workload(unit[0].task) if records else ""
        item = self.workloads.get(name)
        if item is None:
            return
        if self._read_state(item.body) == READY and not item.asked:
            # no second placement can be given
            self._give_up(name, item, "a node of its placement has left", 1)
            return
        item.nodes = _count_nodes(unit, item)
        message = f"placed on {format_names(sorted({start.node for start in unit}), MAX_NODES_SHOWN)}"
        take_back = partial(self._take_back, name, item, records)
        if len(unit) == len(item.tasks):
            self._begin_answer(name, item, READY, message, take_back, updates=_build_updates(name, item.nodes))
        else:
            take_back("a part of its pods was placed")

    def preempt(self, task: str) -> None:
        """Ask Kueue to evict the workload of a task that the policies preempt."""
        self.store.check_term(self.term)
        name = self._find_workload(task)
        item = self.workloads.get(name)
        if item is not None:
            resubmit = partial(self._resubmit, name, item)
            self._begin_answer(name, item, RETRY, "preempted by the policies", resubmit, requeue_s=1)
        self.store.preempt(task, by=self.holder)

    def refuse(self, task: str, reason: str) -> None:
        """Reject the workload of a task for good; where that fails, it is given up once it is late."""
        self.store.check_term(self.term)
        name = self._find_workload(task)
        item = self.workloads.get(name)
        if item is not None:
            self._begin_answer(name, item, REJECTED, reason, lambda _failure: None)
        self.store.refuse(task, reason, by=self.holder)

    def handle_check(self, body: Body, *, is_gone: bool = False) -> None:
        """Take a check of this controller with the workloads that wait for it, and report it as active."""
        name = body["metadata"]["name"]
        if is_gone or body.get("spec", {}).get("controllerName") != self.scope.gate:
            self.checks.discard(name)
            with self.store.changed:
                for unchecked in [key for key, item in self.workloads.items() if not self._read_state(item.body)]:
                    self._withdraw(unchecked)
            return
        if name not in self.checks:
            waiting = self.api.get(WORKLOADS).get("items") or []
            self.checks.add(name)
            for workload in waiting:
                self.handle_workload(workload)
        conditions = body.get("status", {}).get("conditions") or ()
        if any(item["type"] == "Active" and item["status"] == "True" for item in conditions):
            return
        active = {
            "type": "Active", "status": "True", "reason": "Active", "lastTransitionTime": _now(),
            "message": f"{self.scope.gate} answers", "observedGeneration": body["metadata"].get("generation", 1),
        }  # fmt: skip
        self.api.patch(f"{CHECKS}/{name}/status", {"status": {"conditions": [active]}}, MERGE)

    def handle_flavor(self, body: Body, *, is_gone: bool = False) -> None:
        """Record a ResourceFlavor."""
        with self.store.changed:
            if is_gone:
                self.flavors.pop(body["metadata"]["name"], None)
            else:
                self.flavors[body["metadata"]["name"]] = body

    def handle_node(self, body: Body, *, is_gone: bool = False) -> None:
        """Record the current state of a node."""
        with self.store.changed:
            self.nodes_changed |= update_node(self.store, self.nodes, body, self._decode, is_gone=is_gone)

    def handle_pod(self, body: Body, *, is_gone: bool = False) -> None:
        """Count a pod where it runs; a pod of an answered workload counts through that workload."""
        meta, node = body["metadata"], pods.promised_node(body)
        key = meta["namespace"], meta["name"]
        is_idle = is_gone or not node or body.get("status", {}).get("phase") in pods.ENDED
        with self.store.changed:
            before = self.pods.pop(key, None)
            if not is_idle:
                label = (meta.get("labels") or {}).get(WORKLOAD_LABEL, "")
                self.pods[key] = node, pod_demand(body, self.scope), label
            self._refresh({node, before[0] if before else ""})

    def handle_workload(self, body: Body, *, is_gone: bool = False) -> None:
        """Record a workload: new reservations are submitted, those that ended are withdrawn."""
        meta = body["metadata"]
        name = f"{meta['namespace']}/{meta['name']}"
        with self.store.changed:
            known = self.workloads.get(name)
            state = "" if is_gone else self._read_state(body)
            reservation = meta.get("uid", ""), _reserved_at(body)
            if known is not None and _version(body) < _version(known.body) and not is_gone:
                return
            is_unknown_answer = known is not None and state == READY and not known.nodes
            if known is not None and (
                state not in {PENDING, READY} or known.reservation != reservation or is_unknown_answer
            ):
                self._withdraw(name)
                known = None
                # an answer of an earlier write or controller: continue from a snapshot with it
                self.nodes_changed = self.nodes_changed or is_unknown_answer
            if known is not None:
                known.body = body
            elif state in {PENDING, READY}:
                self._submit(name, body, reservation, state)

    def _submit(self, name: str, body: Body, reservation: tuple[str, str], state: str) -> None:
        self.reservations += 1
        now_s = self.now()
        item = CheckedWorkload(body, reservation, since_s=now_s - self._reservation_age_s(body), seen_s=now_s)
        self.workloads[name] = item
        try:
            for task, pod_set in self._build_tasks(name, body):
                item.tasks[task.name], item.pod_sets[task.name] = task, pod_set
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            logging.getLogger("unfoldkit").warning("workload %s: %r", name, error)
            item.tasks.clear()
            return
        for task in item.tasks.values():
            self.store.submit(task)
        if state == READY:
            item.nodes = self._read_placement(body)
            starts = list(_assign(item))
            if len(starts) == len(item.tasks) and all(start.node in self.store.nodes for start in starts):
                self.store.start(starts)

    def _reservation_age_s(self, body: Body) -> float:
        """Return for how long a workload has held its quota; 0 where that is unknown, or in the future."""
        try:
            reserved_s = parse_time(_reserved_at(body))
        except ValueError:
            return 0.0
        return max(0.0, self.wall_clock() - reserved_s)

    def _build_tasks(self, name: str, body: Body) -> Iterator[tuple[Task, str]]:
        """Yield the tasks of a workload with their pod sets: pods as the flavors of their quota restrict them."""
        assignments = {item["name"]: item for item in body["status"]["admission"]["podSetAssignments"]}
        sizes = {
            pod_set["name"]: int(assignments.get(pod_set["name"], {}).get("count") or pod_set["count"])
            for pod_set in body["spec"]["podSets"]
        }
        queue = f"{body['metadata']['namespace']}/{body['spec'].get('queueName', '')}"
        for pod_set in body["spec"]["podSets"]:
            flavors = dict.fromkeys((assignments.get(pod_set["name"], {}).get("flavors") or {}).values())
            pod = {"spec": pod_set["template"]["spec"], "metadata": {"namespace": body["metadata"]["namespace"]}}
            node_filter = self._restrict(decode_filter(pod_filter(pod, self.scope)), flavors)
            for index in range(sizes[pod_set["name"]]):
                yield (
                    Task(
                        name=f"{name}/{pod_set['name']}-{index}#{self.reservations}",
                        demand=pod_demand(pod, self.scope),
                        run=math.inf,
                        job=f"{name}#{self.reservations}",
                        user=queue,
                        role=pod_set["name"],
                        size=sum(sizes.values()),
                        priority=int(body["spec"].get("priority") or 0),
                        node_filter=encode_filter(node_filter),
                    ),
                    pod_set["name"],
                )

    def _restrict(self, node_filter: NodeFilter, flavors: Iterable[str]) -> NodeFilter:
        """Return a filter with the labels of the flavors' nodes, and the tolerations that Kueue adds for them."""
        specs = [self.flavors.get(flavor, {}).get("spec") or {} for flavor in flavors]
        labels = {key: value for spec in specs for key, value in (spec.get("nodeLabels") or {}).items()}
        added = [parse_toleration(item) for spec in specs for item in spec.get("tolerations") or ()]
        return msgspec.structs.replace(
            node_filter,
            selector={**node_filter.selector, **labels},
            tolerations=(*node_filter.tolerations, *added),
            limits=(),
        )

    def _withdraw(self, name: str) -> None:
        item = self.workloads.pop(name, None)
        for task in item.tasks if item is not None else ():
            self.postponed.pop(task, None)
            self.store.withdraw(task)

    def _give_up(self, name: str, item: CheckedWorkload, message: str, requeue_s: int) -> None:
        """Ask Kueue to take a workload's quota back; nothing starts it meanwhile."""
        for task in item.tasks:
            self.store.withdraw(task)
        self._begin_answer(name, item, RETRY, message, partial(self._resubmit, name, item), requeue_s=requeue_s)

    def _resubmit(self, name: str, item: CheckedWorkload, failure: str = "") -> None:
        """Take a workload up anew as it is on the server: it took an answer without a response, or did not take one."""
        del failure
        self._withdraw(name)
        if (state := self._read_state(item.body)) in {PENDING, READY}:
            self._submit(name, item.body, item.reservation, state)
            self.nodes_changed = True

    def _take_back(self, name: str, item: CheckedWorkload, records: Sequence[Record], failure: str) -> None:
        """Let a workload wait again, longer each time."""
        if self._read_state(item.body) == READY:
            self._resubmit(name, item)
            return
        # a new controller keeps its turn, and makes the policies keep back what is postponed
        item.nodes, self.nodes_changed = {}, True
        for record in records:
            task = record.task.name
            self.postponed[task] = postpone(self.postponed.get(task), failure, self.now(), REFUSAL_DELAY_S)
            self.store.fail(task, record.attempt, failure)

    def _begin_answer(
        self,
        name: str,
        item: CheckedWorkload,
        state: str,
        message: str,
        on_failure: Callable[[str], None],
        *,
        updates: Sequence[Body] = (),
        requeue_s: int | None = None,
    ) -> None:
        """Begin to write the state of a check; ``on_failure`` receives why it was not written."""
        if item.asked == state:
            return
        item.asked = state
        call = partial(self._try_answer, name, item, state, message, updates, requeue_s)
        self.background.begin({f"workload {name}"}, call, partial(self._finish_answer, name, item, state, on_failure))

    def _finish_answer(
        self, name: str, item: CheckedWorkload, state: str, on_failure: Callable[[str], None], failure: str
    ) -> None:
        with self.store.changed:
            if item.asked == state:
                item.asked = ""
            if self.workloads.get(name) is not item:
                return
            if failure:
                on_failure(failure)
            elif state == RETRY:
                self._withdraw(name)

    def _try_answer(
        self,
        name: str,
        item: CheckedWorkload,
        state: str,
        message: str,
        updates: Sequence[Body],
        requeue_s: int | None,
    ) -> str:
        """Write the state of a check; return why it was not written, empty where it was."""
        try:
            with item.writing:
                if self._answer(name, item, state, message, updates, requeue_s):
                    return ""
        except (ApiError, UnfoldError) as error:
            logging.getLogger("unfoldkit").warning("workload %s was not answered: %s", name, error)
            return f"its answer was not written: {error}"
        return "it changed meanwhile"

    def _read_state(self, body: Body) -> str:
        """Return the state of this controller's check where the workload holds quota and goes on; else empty."""
        status = body.get("status") or {}
        true = {item["type"] for item in status.get("conditions") or () if item["status"] == "True"}
        if "QuotaReserved" not in true or true & {"Finished", "Evicted"} or not status.get("admission"):
            return ""
        states = [item["state"] for item in status.get("admissionChecks") or () if item["name"] in self.checks]
        return states[0] if states else ""

    def _read_placement(self, body: Body) -> dict[str, dict[str, int]]:
        """Return the nodes of each pod set by the answer that was written; empty without one."""
        placement: dict[str, dict[str, int]] = {}
        for check in body["status"].get("admissionChecks") or ():
            for update in check.get("podSetUpdates") or () if check["name"] in self.checks else ():
                text = (update.get("annotations") or {}).get(PLACEMENT, "{}")
                placement[update["name"]] = {str(node): int(count) for node, count in json.loads(text).items()}
        return placement

    def _answer(
        self,
        name: str,
        item: CheckedWorkload,
        state: str,
        message: str,
        updates: Sequence[Body],
        requeue_s: int | None,
    ) -> bool:
        """Write the state of the check; return whether the workload still waited for it.

        A write that another one overtook is tried again on the newer version, as long as the reservation is the same.
        """
        namespace, _, own = name.partition("/")
        path = f"{API}/namespaces/{namespace}/workloads/{own}"
        body = item.body
        for _ in range(MAX_TRIES):
            if (body["metadata"].get("uid", ""), _reserved_at(body)) != item.reservation:
                return False
            if self._read_state(body) not in {PENDING, READY} - {state}:
                return False
            if self.election is not None and not self.election.is_leader:
                raise user_error("another controller leads now", hint="this one waits until it may lead again")
            try:
                written = self.api.patch(f"{path}/status", self._patch(body, state, message, updates, requeue_s), MERGE)
            except ApiError as error:
                if error.is_absent:
                    return False
                if not error.is_conflict:
                    raise
                newer = self._read(path)
                if newer is None:
                    return False
                body = newer
                continue
            with self.store.changed:
                item.body = max(item.body, written, key=_version)
            return True
        return False

    def _read(self, path: str) -> Body | None:
        try:
            return self.api.get(path)
        except ApiError as error:
            if error.is_absent:
                return None
            raise

    def _patch(self, body: Body, state: str, message: str, updates: Sequence[Body], requeue_s: int | None) -> Body:
        states = []
        for check in body["status"]["admissionChecks"]:
            if check["name"] not in self.checks:
                states.append(check)
                continue
            answer = {
                "name": check["name"], "state": state, "message": message[:MAX_MESSAGE], "lastTransitionTime": _now(),
            }  # fmt: skip
            answer |= {"podSetUpdates": list(updates)} if updates else {}
            answer |= {"requeueAfterSeconds": requeue_s} if requeue_s is not None else {}
            states.append(answer)
        return {
            "metadata": {"resourceVersion": body["metadata"]["resourceVersion"]},
            "status": {"admissionChecks": states},
        }

    def _find_workload(self, task: str) -> str:
        return next((name for name, item in self.workloads.items() if task in item.tasks), "")

    def _refresh(self, names: set[str]) -> None:
        for name in names & self.store.nodes.keys() & self.nodes.keys():
            self.nodes_changed |= replace_node(self.store, self._decode(name))

    def _decode(self, name: str) -> Node:
        """Return a node without what pods of other programs use there."""
        answered = {workload_label(workload) for workload in self.workloads}
        used = Counter[str]()
        for node, demand, label in self.pods.values():
            if node == name and label not in answered:
                used.update(demand)
        return decode_node(self.nodes[name], self.scope, used)


def open_admission_check(api: Api, scope: Scope, patience_s: float) -> AdmissionCheckBackend:
    """Open the backend that answers Kueue's admission checks; it follows the server until it is closed."""
    began_s = time.monotonic()
    store = StateStore(lambda: time.monotonic() - began_s)
    backend = AdmissionCheckBackend(store, api=api, scope=scope, patience_s=patience_s, wall_clock=api.now)
    backend.open()
    return backend


def _missing(known: Iterable[object], existing: set[ObjectKey]) -> list[Body]:
    """Return the bodies of objects that a handler knows and that no longer exist."""
    bodies: list[Body] = []
    for key in list(known):
        space, name = key if isinstance(key, tuple) else (None, str(key))
        if not isinstance(key, tuple) and "/" in name:
            space, _, name = name.partition("/")
        if (space, name) not in existing:
            bodies.append({"metadata": {"namespace": space, "name": name}, "spec": {}})
    return bodies


def _count_nodes(unit: Sequence[Start], item: CheckedWorkload) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for start in unit:
        counts.setdefault(item.pod_sets[start.task], Counter())[start.node] += 1
    return {pod_set: dict(sorted(nodes.items())) for pod_set, nodes in counts.items()}


def _build_updates(name: str, nodes: Mapping[str, Mapping[str, int]]) -> list[Body]:
    """Return what Kueue adds to the pods: the placement, a label, and the node where all of a pod set share one."""
    label = workload_label(name)
    return [
        {
            "name": pod_set,
            "labels": {WORKLOAD_LABEL: label},
            "annotations": {PLACEMENT: json.dumps(counts, separators=(",", ":"))},
            **({"nodeSelector": {HOSTNAME: next(iter(counts))}} if len(counts) == 1 else {}),
        }
        for pod_set, counts in nodes.items()
    ]


def workload_label(name: str) -> str:
    """Return the value of the label by which the pods of a workload are recognized."""
    return shorten_name(name.replace("/", "."), 63)


def _assign(item: CheckedWorkload) -> Iterator[Start]:
    """Yield the starts of the tasks on the nodes of an answer that was read back."""
    places = {
        pod_set: [node for node, count in counts.items() for _ in range(count)]
        for pod_set, counts in item.nodes.items()
    }
    for task, pod_set in item.pod_sets.items():
        if places.get(pod_set):
            yield Start(task, places[pod_set].pop())


def _reserved_at(body: Body) -> str:
    conditions = (body.get("status") or {}).get("conditions") or ()
    return next((str(item["lastTransitionTime"]) for item in conditions if item["type"] == "QuotaReserved"), "")


def _version(body: Body) -> int:
    text = str(body["metadata"].get("resourceVersion", "0"))
    return int(text) if text.isdecimal() else 0


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
