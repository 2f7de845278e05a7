"""What a controller decided, written to the server: names by node, then pods, many at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from unfold_placement.core.types import ANYWHERE, MANY
from unfold_placement.kubernetes import pods
from unfold_placement.kubernetes.api import GONE, MERGE, Api, ApiError, call_all
from unfold_placement.kubernetes.codec import HOSTNAME, Body, Scope, encode_resources, json_pointer, parse_time
from unfold_placement.kubernetes.dra import Counters
from unfold_placement.kubernetes.informer import NODES, Informer, extended_resources
from unfold_placement.live import backend as kinds
from unfold_placement.live.backend import Start
from unfoldkit.api import fail

TRIES = 4
OpeningUnits = dict[str, dict[str, int]]
"""Units that are being opened: by the first of their tasks, each task with the attempt that it is to become."""


@dataclass(slots=True)
class Writer:
    """Writes for one mirror. ``config`` is the ConfigMap as it was seen last."""

    api: Api
    scope: Scope
    informer: Informer
    counters: Counters | None = None
    config: Body = field(default_factory=dict)

    def write_resources(self, places: Iterable[str], units: OpeningUnits) -> None:
        """Write the names of some nodes and of the cluster.

        Raises:
            UnfoldError: somebody else wrote them meanwhile.
        """
        chosen = sorted(place for place in set(places) if place == ANYWHERE or place in self.informer.nodes)
        wanted = self.informer.wanted_resources(chosen)
        calls = [lambda place=place: self._place(place, units, wanted[place]) for place in chosen]
        # the watch may tell of our own write before its answer is here
        self.informer.dirty.update(chosen)
        answers = call_all(calls) if chosen else []
        self.informer.dirty.difference_update(chosen)
        self.informer.drifted.difference_update(chosen)
        taken = [
            p for p, answer in zip(chosen, answers, strict=True) if isinstance(answer, ApiError) and answer.is_conflict
        ]
        for place in taken:
            self.reread(place)
        if taken:
            where = ", ".join(place or "the cluster" for place in taken)
            raise fail(f"the names of {where} were changed by another", hint="a snapshot tells what is there now")

    def reread(self, place: str) -> None:
        """Take the names of a place as they are on the server now."""
        if place == ANYWHERE:
            text = self.read_config().get("data", {}).get("names", "")
        else:
            body = self.informer.nodes[place] = self.api.get(f"{NODES}/{place}")
            text = body["metadata"].get("annotations", {}).get(self.scope.names_key, "")
        self.informer.annotations.pop(place, None)
        self.informer.read_resources(place, text)

    def open_gates(self, units: Sequence[Sequence[Start]], by: str) -> list[int]:
        """Open the gates of all tasks of some units; return which units have a task that could not be opened."""
        flat = [(place, item) for place, unit in enumerate(units) for item in unit]
        answers = call_all([lambda item=item: self._open(item, by) for _, item in flat]) if flat else []
        return sorted({place for (place, _), told in zip(flat, answers, strict=True) if isinstance(told, ApiError)})

    def recreate_pods(self, lost: Sequence[tuple[str, str]], by: str) -> list[tuple[str, str]]:
        """Make the pods of tasks that lost their place again, gated, and only then delete the old ones.

        Returns:
            Those that the server refused: their old pods are still there.
        """
        if not lost:
            return []
        answers = call_all([lambda task=task, kind=kind: self._again(task, kind, by) for task, kind in lost])
        return [item for item, told in zip(lost, answers, strict=True) if isinstance(told, ApiError)]

    def read_config(self) -> Body:
        """Return the ConfigMap of this scope, made if nobody did yet."""
        path = f"/api/v1/namespaces/{self.api.namespace}/configmaps"
        try:
            self.config = self.api.get(f"{path}/{self.scope.record}")
        except ApiError as refused:
            if not refused.is_absent:
                raise
            made = {"metadata": {"name": self.scope.record}, "data": {"names": "{}", "units": "{}"}}
            try:
                self.config = self.api.post(path, {"apiVersion": "v1", "kind": "ConfigMap", **made})
            except ApiError as late:
                if not late.is_conflict:
                    raise
                self.config = self.api.get(f"{path}/{self.scope.record}")
        return self.config

    @property
    def origin(self) -> float:
        """When the bookkeeping of this scope began, in seconds of the day's clock."""
        return parse_time(self.config["metadata"]["creationTimestamp"])

    def opening_units(self) -> OpeningUnits:
        """Return the units that somebody was opening."""
        return msgspec.json.decode(self.config.get("data", {}).get("units", "{}"), type=OpeningUnits)

    def _place(self, place: str, units: OpeningUnits, wanted: Mapping[str, int]) -> Body | None:
        return self._cluster(units) if place == ANYWHERE else self._node(place, wanted)

    def _cluster(self, units: OpeningUnits) -> Body:
        data = {"names": self._text(ANYWHERE), "units": msgspec.json.encode(units).decode()}
        if data != self.config.get("data"):
            self._books(data)
        if self.counters is not None:
            self.counters.publish(self._counted())
        return self.config

    def _books(self, data: Mapping[str, str]) -> None:
        path = f"/api/v1/namespaces/{self.api.namespace}/configmaps/{self.scope.record}"
        # the version makes it a compare and set
        meta = {"resourceVersion": self.config["metadata"]["resourceVersion"]}
        self.config = self.api.patch(path, {"metadata": meta, "data": data}, MERGE)
        self.informer.annotations[ANYWHERE] = data["names"]

    def _counted(self) -> dict[str, int]:
        """Return the cluster's names of which there is so much and no more."""
        with self.informer.store.changed:
            there = [item for (_, node), item in self.informer.store.resources.items() if node == ANYWHERE]
        return {item.name: item.amount for item in there if not item.until and item.amount < MANY}

    def _node(self, name: str, wanted: Mapping[str, int]) -> Body | None:
        """Write one node's names, again where only something else of the node had changed.

        Raises:
            Refused: the names themselves were changed by another.
        """
        for attempt in range(TRIES):
            body, before = self.informer.nodes[name], self.informer.annotations.get(name, "")
            text = self._text(name)
            patch = node_patch(body, self.scope, before, text, wanted)
            if not patch:
                return None
            try:
                answer = self.api.patch(f"{NODES}/{name}/status", patch)
            except ApiError as refused:
                if not refused.is_conflict or attempt == TRIES - 1:
                    raise
                fresh = self.api.get(f"{NODES}/{name}")
                if fresh["metadata"].get("annotations", {}).get(self.scope.names_key, "") != before:
                    raise
                self.informer.nodes[name] = fresh
                continue
            self.informer.annotations[name] = text
            self.informer.node(answer)
            return answer
        return None

    def _text(self, place: str) -> str:
        with self.informer.store.changed:
            there = [item for (_, node), item in self.informer.store.resources.items() if node == place]
            return encode_resources(there, self.informer.origin)

    def _open(self, item: Start, by: str) -> Body:
        body = self.informer.body(item.task)
        if body is None:
            raise ApiError(GONE, "Gone", f"the pod of {item.task} was deleted")
        if self.counters is not None:
            self.counters.claim(body)
        labels = self.informer.nodes.get(item.node, {}).get("metadata", {}).get("labels", {})
        record = self.informer.store.records[item.task]
        since = record.started + self.informer.origin
        patch = pods.opening_patch(body, item, labels.get(HOSTNAME, item.node), by, since, record.attempt)
        answer = self.api.patch(_pod(self.api, body["metadata"]["name"]), patch)
        self.informer.pod(answer)
        return answer

    def _again(self, task: str, kind: str, by: str) -> None:
        record = self.informer.store.records.get(task)
        if record is None or record.state == kinds.GONE:
            return
        body = self._now(task)
        if body is None:
            # whoever submitted it deleted the pod meanwhile
            self.informer.store.withdraw(task)
            return
        if pods.task_state(body) == kinds.WAITING:
            # its gate was never opened: it waits as it is
            return
        made = pods.next_attempt_pod(body, self.scope.gate, kind, by)
        try:
            self.informer.pod(self.api.post(_pod(self.api), made))
        except ApiError as refused:
            # somebody else made it already
            if refused.reason != "AlreadyExists":
                raise
        self.remove(body["metadata"]["name"])

    def _now(self, task: str) -> Body | None:
        """Return a task's pod; one whose gate seems shut as the server has it, as we may not have heard of it yet."""
        body = self.informer.body(task)
        if body is None or pods.task_state(body) != kinds.WAITING:
            return body
        try:
            return self.api.get(_pod(self.api, body["metadata"]["name"]))
        except ApiError as refused:
            if refused.is_absent:
                return None
            raise

    def release(self) -> None:
        """Delete the claims of pods that have ended."""
        if self.counters is not None:
            self.counters.release(lambda name: pods.is_over(self.informer.bodies.get(name)))

    def remove(self, name: str) -> None:
        """Delete a pod, if it is there."""
        try:
            self.api.delete(_pod(self.api, name))
        except ApiError as refused:
            if not refused.is_absent:
                raise


def node_patch(body: Body, scope: Scope, before: str, text: str, wanted: Mapping[str, int]) -> list[Body]:
    """Return the JSON patch that makes a node's names ``wanted``, if its annotation still says ``before``."""
    there = extended_resources(body, scope)
    if text == before and there == wanted:
        return []
    ops: list[dict[str, Any]] = []
    for part in ("capacity", "allocatable"):
        known = body.get("status", {}).get(part, {})
        ops += [
            {"op": "remove", "path": f"/status/{part}/{json_pointer(name)}"}
            for name in known
            if name.startswith(scope.prefix) and name not in wanted
        ]
        ops += [
            {"op": "add", "path": f"/status/{part}/{json_pointer(name)}", "value": str(amount)}
            for name, amount in wanted.items()
            if there.get(name) != amount or name not in known
        ]
    return [*_annotate(body, scope.names_key, before, text), *ops]


def _annotate(body: Body, name: str, before: str, text: str) -> list[Body]:
    notes = body["metadata"].get("annotations")
    path = f"/metadata/annotations/{json_pointer(name)}"
    if notes and name in notes:
        return [{"op": "test", "path": path, "value": before}, {"op": "replace", "path": path, "value": text}]
    same = {"op": "test", "path": "/metadata/resourceVersion", "value": body["metadata"]["resourceVersion"]}
    if notes:
        return [same, {"op": "add", "path": path, "value": text}]
    return [same, {"op": "add", "path": "/metadata/annotations", "value": {name: text}}]


def _pod(api: Api, name: str = "") -> str:
    path = f"/api/v1/namespaces/{api.namespace}/pods"
    return f"{path}/{name}" if name else path
