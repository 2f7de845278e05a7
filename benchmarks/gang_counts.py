"""Gangs seen in part, and gates and names that are left: counted from what a watch of the server shows."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from unfold_placement.kubernetes.objects.codec import Scope

Body = dict[str, Any]
GATED, OPEN, BOUND, ENDED, ALONE = "gated", "open", "bound", "ended", "alone"
"""States of a pod: behind the policy's gate, past it without a node, on a node, succeeded with its gang, or without."""
TORN = frozenset({OPEN, BOUND, ALONE})
"""States that a gang may not have while others of it wait: what has ended with it need not start again."""
STARTED = TORN | {ENDED}
GRACE_S = 5.0
"""So long after a pod was lost the others may still succeed as parts of the gang."""


@dataclass(slots=True)
class GangLog:
    """Follows the pods of gangs.

    A gang is in part while some of its pods run, or have run without the others, and others have not started.

    Attributes:
        gate: The policy's gate.
        sizes: Number of pods of each gang that is expected and not closed.
        states: State of each pod, by gang and name; pods that go, or failed, are left out.
        part_since_s: When each gang that is in part came to be so.
        longest_part_s: How long each gang was in part at most; without those that never were.
        placed_s: When all pods of each gang were first on nodes.
        whole_s: When all pods of each gang had last started.
    """

    gate: str
    sizes: dict[str, int] = field(default_factory=dict)
    states: dict[str, dict[str, str]] = field(default_factory=dict)
    part_since_s: dict[str, float] = field(default_factory=dict)
    longest_part_s: dict[str, float] = field(default_factory=dict)
    placed_s: dict[str, float] = field(default_factory=dict)
    whole_s: dict[str, float] = field(default_factory=dict)

    def expect(self, gang: str, size: int) -> None:
        """Follow a gang from now on."""
        self.sizes[gang] = size
        self.states[gang] = {}

    def note(self, pod: Body, now_s: float, *, is_gone: bool = False) -> None:
        """Record the state of a pod; one of an unknown or closed gang is ignored."""
        gang = gang_of(pod)
        if gang not in self.sizes:
            return
        states, name = self.states[gang], pod["metadata"]["name"]
        self._note_whole(gang, now_s)
        state = "" if is_gone else pod_state(pod, self.gate)
        if states.get(name) in {ENDED, ALONE}:
            # one that has succeeded may be collected before its gang is deleted
            return
        if state == ENDED and now_s - self.whole_s.get(gang, -math.inf) > GRACE_S:
            state = ALONE
        if state:
            states[name] = state
        else:
            states.pop(name, None)
        self._note_whole(gang, now_s)
        if TORN & {*states.values()} and not self._is_whole(gang):
            self.part_since_s.setdefault(gang, now_s)
        else:
            self._end_part(gang, now_s)
        if self._count(gang, STARTED - {OPEN}) >= self.sizes[gang]:
            self.placed_s.setdefault(gang, now_s)

    def has_ended(self, gang: str) -> bool:
        """Return whether all pods of a gang have succeeded."""
        return self._count(gang, {ENDED, ALONE}) >= self.sizes[gang]

    def close(self, gang: str, now_s: float) -> None:
        """Follow a gang no longer: it is deleted next."""
        self._end_part(gang, now_s)
        del self.sizes[gang], self.states[gang]

    def partial(self, limit_s: float) -> list[str]:
        """Return the gangs that were in part for longer than a limit, or are now."""
        return sorted({gang for gang, part_s in self.longest_part_s.items() if part_s > limit_s} | {*self.part_since_s})

    def _count(self, gang: str, kinds: Collection[str]) -> int:
        return sum(state in kinds for state in self.states[gang].values())

    def _is_whole(self, gang: str) -> bool:
        return self._count(gang, STARTED) >= self.sizes[gang]

    def _note_whole(self, gang: str, now_s: float) -> None:
        if self._is_whole(gang):
            self.whole_s[gang] = now_s

    def _end_part(self, gang: str, now_s: float) -> None:
        if gang in self.part_since_s:
            part_s = now_s - self.part_since_s.pop(gang)
            self.longest_part_s[gang] = max(part_s, self.longest_part_s.get(gang, 0.0))


def gang_of(pod: Body) -> str:
    """Return the JobSet or else the Job of a pod; empty for none."""
    labels = pod["metadata"].get("labels", {})
    return str(labels.get("jobset.sigs.k8s.io/jobset-name") or labels.get("batch.kubernetes.io/job-name", ""))


def pod_state(pod: Body, gate: str) -> str:
    """Return the state of a pod; empty if it is going, or failed."""
    phase = pod.get("status", {}).get("phase")
    if phase == "Succeeded":
        return ENDED
    if pod["metadata"].get("deletionTimestamp") or phase == "Failed":
        return ""
    if has_gate(pod, gate):
        return GATED
    return BOUND if pod.get("spec", {}).get("nodeName") else OPEN


def has_gate(pod: Body, gate: str) -> bool:
    """Return whether a pod waits behind a gate."""
    return any(item["name"] == gate for item in pod.get("spec", {}).get("schedulingGates") or ())


def leaked_gates(pods: Iterable[Body], gate: str, waiting: Collection[str]) -> list[str]:
    """Return the pods that are behind a gate although their gang is not among those that still wait."""
    return sorted(pod["metadata"]["name"] for pod in pods if has_gate(pod, gate) and gang_of(pod) not in waiting)


def leaked_names(
    scope: Scope, nodes: Iterable[Body], config: Body, leases: Iterable[Body], tasks: Collection[str]
) -> list[str]:
    """Return what a controller left and no living task or owner holds: resources, records of units, and Leases.

    Args:
        scope: The policy's scope.
        nodes: The nodes, with extended resources and the annotation that lists them.
        config: The policy's ConfigMap.
        leases: Leases of owners of resources.
        tasks: Tasks that live.
    """
    data = config.get("data", {})
    found = [f"lease {body['metadata']['name']}" for body in leases]
    found += [f"cluster: {name}" for name, row in json.loads(data.get("names", "{}")).items() if _is_orphan(row, tasks)]
    units: Mapping[str, Mapping[str, int]] = json.loads(data.get("units", "{}"))
    found += [f"unit: {first}" for first, members in units.items() if not {*members} <= {*tasks}]
    for node in nodes:
        name, status = node["metadata"]["name"], node.get("status", {})
        rows = json.loads(node["metadata"].get("annotations", {}).get(scope.names_key) or "{}")
        # a resource bound to no task is a slot of a gang, and the gang's policy deletes it with its last task
        living = {scope.resource(resource) for resource, row in rows.items() if tasks and not _is_orphan(row, tasks)}
        offered = {key for part in ("capacity", "allocatable") for key in status.get(part, {})}
        listed = {scope.resource(resource) for resource in rows}
        found += [f"{name}: {key}" for key in (offered | listed) - living if key.startswith(scope.prefix)]
    return sorted(found)


def _is_orphan(row: list[Any], tasks: Collection[str]) -> bool:
    """Return whether a resource is bound to the end of a task that is not there; the last field names it."""
    return bool(row[-1]) and row[-1] not in tasks
