"""Placement groups of Ray, with which ephemeral resources and task reservations are implemented.

Never request a group's own resource names ``X_group_<id>`` by hand: Ray kills the node if such a group is removed while
a task holds them. Tasks that run inside a group are ended first. A group on a scarce resource takes a second if that
was released just before. Hence ephemeral resources are carved from a budget of which every node has plenty, and
reservations of finished tasks are reused.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unfold_placement.core.types import MILLI, Node, Task
from unfold_placement.live.state_store import ResourceKey

BUDGET = "eph"
"""The resource with which every node is started: ``--resources='{"eph": 100000}'``."""
MAX_AMOUNT = 1000
"""Budget that a resource without a limit occupies."""
NAME_LABEL, DATA_LABEL = "unfold-name", "unfold-data"
"""Labels of a Ray node: its name in the spec and, separated by dots, its blocks of data."""
KINDS = {"CPU": "cpu", "GPU": "gpu", "memory": "memory"}
MIB = 1 << 20
Shape = tuple[tuple[str, float], ...]
"""Amounts of a placement group by Ray's resource names, sorted."""
NodeShape = tuple[str, Shape]


@dataclass(frozen=True, slots=True)
class Reservation:
    """A group that reserves on one node what one task needs; ``node_id`` is Ray's id of the node."""

    node: str
    shape: Shape
    group: Any
    node_id: str = ""


@dataclass(slots=True)
class PlacementGroups:
    """Creates and removes groups.

    Attributes:
        node_ids: Ray's ids of nodes by name.
        idle: Unused reservations by node and shape, with the time (s) since which they are unused.
        lock: Guards ``idle``.
    """

    node_ids: dict[str, str] = field(default_factory=dict)
    idle: dict[NodeShape, list[tuple[Reservation, float]]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def create(self, node: str, shape: Shape) -> Any:
        """Request a group on a node; it may become ready later."""
        from ray.util.placement_group import placement_group

        return placement_group([dict(shape)], bundle_label_selector=[{"ray.io/node-id": self.node_ids[node]}])

    def remove(self, group: Any) -> None:
        """Remove a group; tasks inside are ended."""
        from ray.util.placement_group import remove_placement_group

        remove_placement_group(group)

    def take_idle_for(self, demands: Sequence[NodeShape]) -> list[Reservation] | None:
        """Take idle reservations for all demands at once, or none; another thread may remove idle ones meanwhile."""
        with self.lock:
            if any(len(self.idle.get(key, ())) < count for key, count in Counter(demands).items()):
                return None
            return [self.idle[key].pop()[0] for key in demands]

    def reserve(self, demands: Iterable[NodeShape], timeout_s: float) -> list[Reservation] | None:
        """Reserve all demands, reusing idle reservations; None if that takes too long, and then nothing is kept."""
        reused = [(node, shape, self._take_idle(node, shape)) for node, shape in demands]
        created = {
            index: Reservation(node, shape, self.create(node, shape), self.node_ids[node])
            for index, (node, shape, reservation) in enumerate(reused)
            if not reservation
        }
        reservations = [reservation or created[index] for index, (_, _, reservation) in enumerate(reused)]
        try:
            # one deadline for all of them
            deadline_s = time.monotonic() + timeout_s
            if all(item.group.wait(max(0.0, deadline_s - time.monotonic())) for item in created.values()):
                return reservations
        except Exception:
            self._remove_all(reservations)
            raise
        self._remove_all(reservations)
        return None

    def _remove_all(self, reservations: Iterable[Reservation]) -> None:
        for reservation in reservations:
            self.remove(reservation.group)

    def keep_idle(self, reservation: Reservation, now: float) -> None:
        """Keep a reservation for the next task of its shape; one of a node that has left is removed."""
        with self.lock:
            if is_present := self.node_ids.get(reservation.node) == reservation.node_id:
                self.idle.setdefault((reservation.node, reservation.shape), []).append((reservation, now))
        if not is_present:
            self.remove(reservation.group)

    def remove_idle(self, before: float = float("inf"), node: str | None = None) -> None:
        """Remove reservations that are unused since before a time (s), on one node or on all."""
        for group in self.take_idle(before, node):
            self.remove(group)

    def take_idle(self, before: float = float("inf"), node: str | None = None) -> list[Any]:
        """Forget reservations that are unused since before a time (s); the caller removes the returned groups."""
        removed: list[Reservation] = []
        with self.lock:
            for key in [key for key in self.idle if node in {None, key[0]}]:
                removed += [reservation for reservation, since in self.idle[key] if since < before]
                self.idle[key] = [(reservation, since) for reservation, since in self.idle[key] if since >= before]
        return [reservation.group for reservation in removed]

    def find_unused(self, groups: Iterable[Any]) -> list[Any]:
        """Return the groups in which nothing runs, according to Ray's delayed view."""
        import ray

        free, total = ray.available_resources(), ray.cluster_resources()
        names = {f"{BUDGET}_group_{group.id.hex()}": group for group in groups}
        return [group for name, group in names.items() if free.get(name) == total.get(name)]

    def _take_idle(self, node: str, shape: Shape) -> Reservation | None:
        with self.lock:
            reservations = self.idle.get((node, shape))
            if reservations:
                return reservations.pop()[0]
        self.remove_idle(node=node)
        return None


def bundle_shape(task: Task, requests: int) -> Shape:
    """Return the bundle of a task: its demand, and one unit of the budget for each requested resource."""
    names = {kind: name for name, kind in KINDS.items()}
    demand = {names.get(kind, kind): amount / MILLI for kind, amount in task.demand.items()}
    if "memory" in demand:
        demand["memory"] *= MIB
    return tuple(sorted({**demand, BUDGET: float(max(1, requests))}.items()))


def task_options(shape: Shape, group: Any) -> dict[str, Any]:
    """Return the options of a Ray task that runs inside a group and uses all of it."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    amounts = dict(shape)
    memory = {"memory": int(amounts.pop("memory"))} if "memory" in amounts else {}
    return {
        "num_cpus": amounts.pop("CPU", 0),
        "num_gpus": amounts.pop("GPU", 0),
        **memory,
        "resources": amounts,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(group, 0),
        "max_retries": 0,
    }


def parse_node(description: Mapping[str, Any]) -> Node:
    """Convert an entry of ``ray.nodes()``: amounts in thousandths, memory in MiB."""
    labels = dict(description.get("Labels") or {})
    name = labels.pop(NAME_LABEL, description["NodeID"][:12])
    data = frozenset(filter(None, labels.pop(DATA_LABEL, "").split(".")))
    own_labels = {key: value for key, value in labels.items() if not key.startswith("ray.io/")}
    return Node(name, dict(_parse_amounts(description["Resources"])), own_labels, data)


def _parse_amounts(resources: Mapping[str, float]) -> Iterable[tuple[str, int]]:
    for kind, amount in resources.items():
        if kind in {BUDGET, "object_store_memory"} or ":" in kind:
            continue
        yield KINDS.get(kind, kind), round(amount / (MIB if kind == "memory" else 1) * MILLI)


RAY_LAG_S = 3.0
"""How far (s) Ray's view of free resources may lag behind."""


@dataclass(slots=True)
class ResourceGroups:
    """The groups of ephemeral resources on nodes. Callers hold the coordinator's lock.

    Attributes:
        groups: Groups by resource.
        shared: Resources with groups that programs use, so that tasks may run inside.
        terminating: Groups of deleted resources in which tasks may still run.
        unused_since: When (s) terminating groups were first seen unused.
    """

    groups: dict[ResourceKey, list[Any]] = field(default_factory=dict)
    shared: set[ResourceKey] = field(default_factory=set)
    terminating: list[Any] = field(default_factory=list)
    unused_since: dict[Any, float] = field(default_factory=dict)

    def add(self, key: ResourceKey, groups: Iterable[Any]) -> None:
        """Add groups to a resource."""
        self.groups.setdefault(key, []).extend(groups)

    def share(self, key: ResourceKey) -> Any:
        """Return the first group of a resource for use by a program."""
        self.shared.add(key)
        return self.groups[key][0]

    def take_deleted(self, existing: Container[ResourceKey], *, force: bool = False) -> list[Any]:
        """Remove and return the groups of resources that no longer exist.

        Groups in which tasks may run become terminating instead, unless ``force`` is set.
        """
        removable: list[Any] = []
        for key in [key for key in self.groups if key not in existing]:
            can_remove = force or key not in self.shared
            (removable if can_remove else self.terminating).extend(self.groups.pop(key))
            self.shared.discard(key)
        return removable

    def take_unused(self, find_unused: Callable[[Iterable[Any]], list[Any]]) -> list[Any]:
        """Remove and return the terminating groups that were unused for longer than Ray's view lags."""
        now, unused = time.monotonic(), set(find_unused(self.terminating))
        self.unused_since = {group: self.unused_since.get(group, now) for group in self.terminating if group in unused}
        removable = [group for group, since in self.unused_since.items() if now - since > RAY_LAG_S]
        self.terminating = [group for group in self.terminating if group not in removable]
        return removable
