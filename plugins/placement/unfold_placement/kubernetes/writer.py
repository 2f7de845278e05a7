"""Writes a controller's decisions to the server: resources by node, then pods, many requests at once."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from unfold_placement.core.types import ANYWHERE, MANY
from unfold_placement.kubernetes.background import BackgroundWrites
from unfold_placement.kubernetes.informer import NODES, Informer, WorkloadKey, extended_resources, is_other_pod
from unfold_placement.kubernetes.objects import pods
from unfold_placement.kubernetes.objects.codec import (
    HOSTNAME,
    Body,
    Scope,
    encode_resources,
    json_pointer,
    parse_time,
    pod_requests,
)
from unfold_placement.kubernetes.objects.dra import Counters
from unfold_placement.kubernetes.objects.workloads import controller_of, resume_workload, suspend_workload
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Start
from unfoldkit.api import user_error
from unfoldkit.kubernetes.api import BAD_GATEWAY, GONE, MERGE, Api, ApiError, UnreachableError, call_all

MAX_TRIES = 4
WORKLOAD_RETRY_S = 5.0
"""Pause before a workload that the server refused to resume is tried again."""
REFUSAL_SHOWN_S = 2 * WORKLOAD_RETRY_S
"""A refusal that was not repeated for so long is over: every refused write is tried again sooner."""
RETRY_S = 0.05
"""Pause before a failed opening is sent again, doubled from one to the next."""
RETRY_WINDOW_S = 2.0
"""Time in which a failed opening is sent again at once; later its whole unit is tried again."""
NO_REHEARSAL = "does not support dry run"
"""In the message of a server that has a webhook with side effects."""
FULL_QUOTA = "exceeded quota"
"""In the message of a server that creates no further pod in the namespace."""
DENIED = frozenset({401, 403})
OpeningUnits = dict[str, dict[str, int]]
"""Units that are being opened: the attempt that each task is to become, by the unit's first task."""
Errors = Mapping[str, Exception]
"""Why the gates of tasks were not opened."""
LostTask = tuple[str, str]
"""A task that lost its place, and the kind of change: ``failed`` or ``preempted``."""


@dataclass(slots=True)
class Writer:
    """Writes for one informer.

    Attributes:
        api: The server.
        scope: The policy's scope.
        informer: The known state of the server.
        background: Writes that may take long.
        counters: Counted resources, if the scope uses them.
        config: The ConfigMap as last seen.
        last_refusal: The last error of a write that was logged.
        refused_at_s: When it was repeated last, by the monotonic clock.
        replaced: Tasks of pods that others have replaced or are about to, by the pod's name, until it is deleted.
        next_retry_s: When refused workloads are tried again, by the monotonic clock.
    """

    api: Api
    scope: Scope
    informer: Informer
    background: BackgroundWrites
    counters: Counters | None = None
    config: Body = field(default_factory=dict)
    last_refusal: str = ""
    refused_at_s: float = -math.inf
    replaced: dict[str, str] = field(default_factory=dict)
    next_retry_s: float = 0.0

    def write_resources(self, locations: Iterable[str], units: OpeningUnits) -> None:
        """Write the resources of nodes and of the cluster.

        Args:
            locations: Nodes, and ``ANYWHERE`` for the cluster.
            units: Units that are being opened, which are stored with the cluster's resources.

        Raises:
            UnfoldError: Another process wrote them meanwhile, or the account may not write them.
        """
        written = sorted(
            location for location in set(locations) if location == ANYWHERE or location in self.informer.nodes
        )
        desired = self.informer.wanted_resources(written)
        calls = [partial(self._write_location, location, units, desired[location]) for location in written]
        # the watch may report a write before its response arrives
        self.informer.dirty.update(written)
        results = call_all(calls) if written else []
        self.informer.dirty.difference_update(written)
        self.informer.drifted.difference_update(written)
        errors = {
            location: result for location, result in zip(written, results, strict=True) if isinstance(result, ApiError)
        }
        conflicts = [location for location, error in errors.items() if error.is_conflict]
        self._keep_refused({at: error for at, error in errors.items() if not (error.is_conflict or error.is_absent)})
        for location in conflicts:
            self.reread(location)
        if conflicts:
            locations_text = ", ".join(location or "the cluster" for location in conflicts)
            hint = "a snapshot shows the current ones"
            raise user_error(f"the resources of {locations_text} changed meanwhile", hint=hint)

    def reread(self, location: str) -> None:
        """Read the resources of a node or of the cluster from the server."""
        if location == ANYWHERE:
            text = self.read_config().get("data", {}).get("names", "")
        else:
            body = self.informer.nodes[location] = self.api.get(f"{NODES}/{location}")
            text = body["metadata"].get("annotations", {}).get(self.scope.names_key, "")
        self.informer.annotations.pop(location, None)
        self.informer.read_resources(location, text)

    def open_unit(self, unit: Sequence[Start], by: str, is_current: Callable[[], bool]) -> Errors:
        """Open the gates of all tasks of a unit; return the errors, none where all are open.

        A gate cannot be closed again: the server checks all openings of a gang first (``dryRun``), and none of it is
        opened if it would refuse one.

        Args:
            unit: Tasks that start together.
            by: The controller.
            is_current: Returns whether the unit is still to be opened.
        """
        try:
            errors = _collect_errors(unit, partial(self._rehearse, by=by)) if len(unit) > 1 else {}
            if not errors and not is_current():
                return {unit[0].task: ApiError(GONE, "Gone", "a task of its unit was stopped meanwhile")}
            if errors:
                return errors
            return _collect_errors(unit, partial(self._open_gate, by=by))
        except Exception as error:  # noqa: BLE001 - a unit without an outcome would hold its room for ever
            return {unit[0].task: error}

    def recent_refusal(self) -> str:
        """Return the last error of a write that is still tried again; empty for none."""
        return self.last_refusal if time.monotonic() - self.refused_at_s < REFUSAL_SHOWN_S else ""

    def recreate_pod(self, task: str, kind: str, by: str) -> ApiError | None:
        """Create the gated pod of a task that lost its place; return why the server refused it: its old pod exists."""
        return _call(partial(self._recreate_pod, task, kind, by))

    def refuse(self, task: str, reason: str, by: str) -> None:
        """Write into the pod of a rejected task why it stays gated."""
        path = _pods_path(self.api, self.informer.current[task])
        call = partial(self.api.patch, path, pods.rejection_patch(reason, by), MERGE)
        self.background.begin({task}, partial(_call, call), self._log_unless_gone)

    def resume_workloads(self, by: str) -> None:
        """Let suspended workloads create their pods behind the gate; those that the server refuses are tried again."""
        informer = self.informer
        with informer.store.changed:
            suspended, informer.suspended = informer.suspended, {}
            informer.refused |= suspended
        for (kind, name), body in suspended.items():
            if (key := f"{kind} {name}") not in self.background.busy:
                call = partial(_call, partial(resume_workload, self.api, kind, body, self.scope, by))
                self.background.begin({key}, call, partial(self._finish_resumption, (kind, name)))

    def _finish_resumption(self, key: WorkloadKey, error: ApiError | None) -> None:
        """Forget a workload that was resumed; one that changed meanwhile is reported again."""
        if error is None or error.is_conflict or error.is_absent:
            self.informer.refused.pop(key, None)
        else:
            self.log_refusal(f"a workload was not admitted, {' '.join(key)}: {error}")

    def retry_workloads(self) -> None:
        """Let workloads that the server refused to resume be tried again, every few seconds."""
        if time.monotonic() >= self.next_retry_s:
            self.next_retry_s = time.monotonic() + WORKLOAD_RETRY_S
            with self.informer.store.changed:
                self.informer.suspended = self.informer.refused | self.informer.suspended
                self.informer.refused = {}

    def read_config(self) -> Body:
        """Read the scope's ConfigMap, and create it if it does not exist."""
        path = f"/api/v1/namespaces/{self.api.namespace}/configmaps"
        try:
            self.config = self.api.get(f"{path}/{self.scope.record}")
        except ApiError as error:
            if not error.is_absent:
                raise
            content = {"metadata": {"name": self.scope.record}, "data": {"names": "{}", "units": "{}"}}
            self.config = self.api.ensure(path, {"apiVersion": "v1", "kind": "ConfigMap", **content})
        return self.config

    @property
    def origin(self) -> float:
        """Unix time of the scope's creation."""
        return parse_time(self.config["metadata"]["creationTimestamp"])

    @property
    def has_units(self) -> bool:
        """Whether the ConfigMap, as last seen, holds units that a process was opening."""
        return bool(self.opening_units())

    def opening_units(self) -> OpeningUnits:
        """Return the units that a process was opening, from the ConfigMap."""
        return msgspec.json.decode(self.config.get("data", {}).get("units", "{}"), type=OpeningUnits)

    def release_claims(self) -> None:
        """Delete the claims of ended pods."""
        if self.counters is not None:
            self.counters.release(lambda name: pods.is_over(self.informer.bodies.get(name)))

    def delete_pod(self, name: str) -> None:
        """Delete a pod, if it exists; one that was kept for its next attempt may go."""
        path = _pods_path(self.api, name)
        try:
            body = self.api.delete(path)
            if pods.AWAITED in body.get("metadata", {}).get("finalizers", ()):
                self.api.patch(path, pods.finalizers_patch(body, awaited=False), MERGE)
        except ApiError as error:
            if not error.is_absent:
                raise

    def _write_location(self, location: str, units: OpeningUnits, desired: Mapping[str, int]) -> Body | None:
        return self._write_cluster(units) if location == ANYWHERE else self._write_node(location, desired)

    def _write_cluster(self, units: OpeningUnits) -> Body:
        data = {"names": self._encoded_resources(ANYWHERE), "units": msgspec.json.encode(units).decode()}
        if data != self.config.get("data"):
            self._write_config(data)
        if self.counters is not None:
            self.counters.publish(self._counted_amounts())
        return self.config

    def _write_config(self, data: Mapping[str, str]) -> None:
        try:
            self._patch_config(data)
        except ApiError as error:
            if not error.is_absent:
                raise
            # it was deleted meanwhile
            self.read_config()
            self._patch_config(data)
        self.informer.annotations[ANYWHERE] = data["names"]

    def _patch_config(self, data: Mapping[str, str]) -> None:
        path = f"/api/v1/namespaces/{self.api.namespace}/configmaps/{self.scope.record}"
        # the version makes this a compare-and-set
        meta = {"resourceVersion": self.config["metadata"]["resourceVersion"]}
        self.config = self.api.patch(path, {"metadata": meta, "data": data}, MERGE)

    def _counted_amounts(self) -> dict[str, int]:
        """Return the cluster-scoped resources that are limits, with their amounts."""
        store = self.informer.store
        with store.changed:
            entries = [entry for (_, node), entry in store.resources.items() if node == ANYWHERE]
        return {entry.name: entry.amount for entry in entries if not entry.until and entry.amount < MANY}

    def _write_node(self, name: str, desired: Mapping[str, int]) -> Body | None:
        """Write one node's resources, again where only other parts of the node had changed.

        Raises:
            ApiError: Another process changed the resources.
        """
        for attempt in range(MAX_TRIES):
            body, before = self.informer.nodes.get(name), self.informer.annotations.get(name, "")
            if body is None:
                # it left meanwhile, with its resources
                return None
            text = self._encoded_resources(name)
            patch = node_patch(body, self.scope, before, text, desired)
            if not patch:
                return None
            try:
                written = self.api.patch(f"{NODES}/{name}/status", patch)
            except ApiError as error:
                if not error.is_conflict or attempt == MAX_TRIES - 1:
                    raise
                current = self.api.get(f"{NODES}/{name}")
                if current["metadata"].get("annotations", {}).get(self.scope.names_key, "") != before:
                    raise
                self.informer.nodes[name] = current
                continue
            self.informer.annotations[name] = text
            self.informer.handle_node(written)
            return written
        return None

    def _encoded_resources(self, location: str) -> str:
        store = self.informer.store
        with store.changed:
            entries = [entry for (_, node), entry in store.resources.items() if node == location]
            return encode_resources(entries, self.informer.origin)

    def _open_gate(self, start: Start, by: str) -> Body:
        body = self._replace_outdated(self._waiting_pod(start), start, by)
        if self.counters is not None:
            self.counters.claim(body)
        path, patch = _pods_path(self.api, body["metadata"]["name"]), self._opening_patch(body, start, by)
        began_s = time.monotonic()
        for attempt in range(MAX_TRIES):
            try:
                opened = self.api.patch(path, patch)
                break
            except (ApiError, UnreachableError) as error:
                # the others of a gang may be open: what passes is tried again at once
                is_temporary = isinstance(error, UnreachableError) or error.is_temporary
                is_late = attempt == MAX_TRIES - 1 or time.monotonic() - began_s > RETRY_WINDOW_S
                if (attempt or (is_temporary and is_late)) and (found := self._find_opened(path, start, by)):
                    # the answer to this or an earlier try was lost
                    opened = found
                    break
                if not is_temporary or is_late:
                    raise
                time.sleep(RETRY_S * 2**attempt)
        self.informer.handle_pod(opened)
        return opened

    def _find_opened(self, path: str, start: Start, by: str) -> Body | None:
        """Return a pod if this process has opened it for this start."""
        body = self.api.get(path)
        notes = body["metadata"].get("annotations", {})
        attempt = self.informer.store.records[start.task].attempt
        is_open = pods.task_state(body) not in {kinds.WAITING, kinds.REFUSED, ""}
        return body if is_open and notes.get(pods.BY) == by and pods.start_count(body) == attempt else None

    def _rehearse(self, start: Start, by: str) -> Body:
        """Let the server check the opening of a gate, without an effect."""
        body = self._waiting_pod(start)
        path = f"{_pods_path(self.api, body['metadata']['name'])}?dryRun=All"
        try:
            return self.api.patch(path, self._opening_patch(body, start, by))
        except ApiError as error:
            if NO_REHEARSAL in error.message:
                # a webhook with side effects: only the opening itself shows what it says
                return body
            raise

    def _waiting_pod(self, start: Start) -> Body:
        body = self.informer.body(start.task)
        if body is None:
            raise ApiError(GONE, "Gone", f"the pod of {start.task} was deleted")
        return body

    def _opening_patch(self, body: Body, start: Start, by: str) -> list[Body]:
        labels = self.informer.nodes.get(start.node, {}).get("metadata", {}).get("labels", {})
        record = self.informer.store.records[start.task]
        started = record.started + self.informer.origin
        return pods.opening_patch(body, start, labels.get(HOSTNAME, start.node), by, started, record)

    def _keep_refused(self, errors: Mapping[str, ApiError]) -> None:
        """Keep resources that the server refused to write, to write them again.

        Raises:
            UnfoldError: The account may not write them.
        """
        self.informer.dirty.update(errors)
        for location, error in errors.items():
            place = location or "the cluster"
            if error.status in DENIED:
                hint = "unfold plan SPEC --format kubernetes writes the roles that are needed"
                raise user_error(f"the resources of {place} cannot be written: {error.message}", hint=hint)
            self.log_refusal(f"the resources of {place} were not written: {error}")

    def _log_unless_gone(self, error: ApiError | None) -> None:
        if error is not None and not error.is_absent:
            self.log_refusal(str(error))

    def log_refusal(self, text: str) -> None:
        """Log why the server refused a write, unless it was the last that was logged, and show it in the status."""
        if text != self.last_refusal:
            logging.getLogger("unfoldkit").warning("%s", text)
        self.last_refusal, self.refused_at_s = text, time.monotonic()

    def _replace_outdated(self, body: Body, start: Start, by: str) -> Body:
        """Create a pod again that requests what an earlier policy offered; requests of a pod cannot be changed."""
        desired: dict[str, int] = {}
        for ask in start.asks:
            if not ask.gated:
                name = self.scope.resource(ask.name)
                desired[name] = desired.get(name, 0) + ask.amount
        requested = pod_requests(body, self.scope)
        if controller_of(body) is not None or all(desired.get(name) == amount for name, amount in requested.items()):
            return body
        pod = pods.next_attempt_pod(body, self.scope.gate, kinds.FAILED, by)
        pods.set_requests(pod, self.scope, desired)
        self.replaced[body["metadata"]["name"]] = start.task
        created = self.api.post(_pods_path(self.api), pod)
        self.informer.handle_pod(created)
        return created

    def _recreate_pod(self, task: str, kind: str, by: str) -> None:
        record = self.informer.store.records.get(task)
        if record is None or record.state == kinds.GONE:
            return
        body = self._current_pod(task)
        if body is None:
            # its submitter deleted the pod meanwhile
            self.informer.store.withdraw(task)
            return
        if pods.task_state(body) == kinds.WAITING:
            # its gate was never opened, so the pod can wait as it is
            return
        if controller_of(body) is not None:
            if kind == kinds.PREEMPTED and self.informer.owners is not None:
                admitted = self.informer.owners.find_admitted(body)
                if admitted is not None:
                    suspend_workload(self.api, *admitted)
            self._evict(body)
            self._withdraw_evicted(task, body)
            return
        pod = pods.next_attempt_pod(body, self.scope.gate, kind, by)
        self.replaced[body["metadata"]["name"]] = task
        try:
            self.informer.handle_pod(self.api.post(_pods_path(self.api), pod))
        except ApiError as error:
            # another process may have created it already
            if error.reason == "AlreadyExists":
                return
            if FULL_QUOTA in error.message:
                self._end_first(body)
            raise

    def _end_first(self, body: Body) -> None:
        """Stop a pod before its next attempt exists, and keep it until then: no crash of this process loses the task.

        A pod that has ended no longer counts for the namespace's quota.
        """
        if not body["metadata"].get("deletionTimestamp"):
            path = _pods_path(self.api, body["metadata"]["name"])
            self.informer.handle_pod(self.api.patch(path, pods.finalizers_patch(body, awaited=True), MERGE))
            self.api.delete(path)

    def delete_replaced(self) -> None:
        """Delete the pods that others have replaced; those that the server keeps are tried again."""
        busy = self.background.busy
        for name, task in list(self.replaced.items()):
            if self.informer.current.get(task) != name and (key := f"pod {name}") not in busy:
                call = partial(_call, partial(self.delete_pod, name))
                self.background.begin({key}, call, partial(self._finish_deletion, name))

    def _finish_deletion(self, name: str, error: ApiError | None) -> None:
        if error is None:
            self.replaced.pop(name, None)

    def _evict(self, body: Body) -> None:
        """Evict a pod that its controller creates again; one that a disruption budget protects is deleted."""
        meta = body["metadata"]
        name = {"name": meta["name"], "namespace": meta["namespace"]}
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": name}
        try:
            self.api.call("POST", f"{_pods_path(self.api, meta['name'])}/eviction", eviction, tries=1)
        except ApiError as error:
            if error.is_absent:
                return
            self.delete_pod(meta["name"])

    def _withdraw_evicted(self, task: str, body: Body) -> None:
        """Withdraw a task as one that waits: its gang must not count it as ended if a policy started it meanwhile.

        Its controller may have created another pod of its name by now, which is a new task.
        """
        store = self.informer.store
        with store.changed:
            if is_other_pod(body, self.informer.uids.get(body["metadata"]["name"])):
                return
            if (record := store.records.get(task)) is not None:
                store.fail(task, record.attempt, "evicted")
            store.withdraw(task)

    def _current_pod(self, task: str) -> Body | None:
        """Return a task's pod. If its gate seems closed, read it again: the opening may not be reported yet."""
        body = self.informer.body(task)
        if body is None or pods.task_state(body) != kinds.WAITING:
            return body
        try:
            return self.api.get(_pods_path(self.api, body["metadata"]["name"]))
        except ApiError as error:
            if error.is_absent:
                return None
            raise


def _call(call: Callable[[], Any]) -> ApiError | None:
    """Make a call; return why the server refused it, or that it did not answer."""
    try:
        call()
    except ApiError as error:
        return error
    except UnreachableError as error:
        return ApiError(BAD_GATEWAY, "Unreachable", str(error))
    return None


def _collect_errors(unit: Sequence[Start], write: Callable[[Start], Any]) -> Errors:
    """Make a write for each task of a unit, and return their errors: one without an answer does not end the others."""
    results = call_all([partial(_call, partial(write, start)) for start in unit])
    return {start.task: error for start, error in zip(unit, results, strict=True) if error is not None}


def node_patch(body: Body, scope: Scope, before: str, text: str, desired: Mapping[str, int]) -> list[Body]:
    """Return the JSON patch that sets a node's extended resources; empty if nothing changes.

    Args:
        body: The node.
        scope: The policy's scope.
        before: The annotation that the node must still have.
        text: The new annotation.
        desired: The extended resources that the node should have.
    """
    existing = extended_resources(body, scope)
    if text == before and existing == desired:
        return []
    operations: list[dict[str, Any]] = []
    for part in ("capacity", "allocatable"):
        known = body.get("status", {}).get(part, {})
        operations += [
            {"op": "remove", "path": f"/status/{part}/{json_pointer(name)}"}
            for name in known
            if name.startswith(scope.prefix) and name not in desired
        ]
        operations += [
            {"op": "add", "path": f"/status/{part}/{json_pointer(name)}", "value": str(amount)}
            for name, amount in desired.items()
            if existing.get(name) != amount or name not in known
        ]
    return [*_annotation_patch(body, scope.names_key, before, text), *operations]


def _annotation_patch(body: Body, name: str, before: str, text: str) -> list[Body]:
    notes = body["metadata"].get("annotations")
    path = f"/metadata/annotations/{json_pointer(name)}"
    if notes and name in notes:
        return [{"op": "test", "path": path, "value": before}, {"op": "replace", "path": path, "value": text}]
    test = {"op": "test", "path": "/metadata/resourceVersion", "value": body["metadata"]["resourceVersion"]}
    if notes:
        return [test, {"op": "add", "path": path, "value": text}]
    return [test, {"op": "add", "path": "/metadata/annotations", "value": {name: text}}]


def _pods_path(api: Api, name: str = "") -> str:
    path = f"/api/v1/namespaces/{api.namespace}/pods"
    return f"{path}/{name}" if name else path
