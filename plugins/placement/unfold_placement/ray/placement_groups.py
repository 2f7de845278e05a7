"""Placement groups of Ray, the only thing that names are made of there. Never ask Ray for a group's own resource names.

Ray kills the node whose group is removed while a task holds one of the names ``X_group_<id>`` by hand; tasks that run
inside a group are ended first. A group on a scarce resource costs a second where that was given back just before, so
names are carved from a budget that every node has plenty of, and reservations of finished tasks are used again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from unfold_placement.core.types import MILLI, Node, Task

BUDGET = "eph"
"""The resource that every node is started with, ``--resources='{"eph": 100000}'``."""
MAX_AMOUNT = 1000
"""What a name without a limit takes of a node's budget."""
NAME, DATA = "unfold-name", "unfold-data"
"""Labels of a Ray node that say its name here and, with dots between them, its blocks of data."""
KINDS = {"CPU": "cpu", "GPU": "gpu", "memory": "memory"}
MIB = 1 << 20
Shape = tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Reservation:
    """A group that reserves on one node what one task needs."""

    node: str
    shape: Shape
    group: Any


@dataclass(slots=True)
class PlacementGroups:
    """Makes and removes groups; ``ids`` are Ray's ids of the nodes. ``idle`` reservations wait for the next task."""

    ids: dict[str, str] = field(default_factory=dict)
    idle: dict[tuple[str, Shape], list[tuple[Reservation, float]]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def make(self, node: str, shape: Shape) -> Any:
        """Ask for a group on a node; it may not be there yet."""
        from ray.util.placement_group import placement_group

        return placement_group([dict(shape)], bundle_label_selector=[{"ray.io/node-id": self.ids[node]}])

    def remove(self, group: Any) -> None:
        """Remove a group; what runs inside is ended."""
        from ray.util.placement_group import remove_placement_group

        remove_placement_group(group)

    def reserve(self, wanted: Iterable[tuple[str, Shape]], seconds: float) -> list[Reservation] | None:
        """Reserve everything that is wanted, or nothing after so many seconds."""
        kept = [(node, shape, self._again(node, shape)) for node, shape in wanted]
        made = {
            at: Reservation(node, shape, self.make(node, shape))
            for at, (node, shape, slot) in enumerate(kept)
            if not slot
        }
        slots = [slot or made[at] for at, (_, _, slot) in enumerate(kept)]
        if all(slot.group.wait(seconds) for slot in made.values()):
            return slots
        for slot in slots:
            self.remove(slot.group)
        return None

    def keep(self, slot: Reservation, now: float) -> None:
        """Keep a reservation for the next task of its shape."""
        with self.lock:
            self.idle.setdefault((slot.node, slot.shape), []).append((slot, now))

    def prune(self, before: float = float("inf"), node: str | None = None) -> None:
        """Remove the reservations that nobody has used since a time, on one node or on all."""
        gone: list[Reservation] = []
        with self.lock:
            for key in [key for key in self.idle if node in {None, key[0]}]:
                gone += [slot for slot, since in self.idle[key] if since < before]
                self.idle[key] = [(slot, since) for slot, since in self.idle[key] if since >= before]
        for slot in gone:
            self.remove(slot.group)

    def ready(self, wanted: Iterable[tuple[str, Shape]]) -> bool:
        """Return whether idle reservations are all that is wanted."""
        need: dict[tuple[str, Shape], int] = {}
        for key in wanted:
            need[key] = need.get(key, 0) + 1
        return all(len(self.idle.get(key, ())) >= count for key, count in need.items())

    def _again(self, node: str, shape: Shape) -> Reservation | None:
        with self.lock:
            found = self.idle.get((node, shape))
            if found:
                return found.pop()[0]
        self.prune(node=node)
        return None

    def unused(self, groups: Iterable[Any]) -> list[Any]:
        """Return the groups in which nothing runs, as far as Ray's view of itself has come by now."""
        import ray

        free, all_ = ray.available_resources(), ray.cluster_resources()
        names = {f"{BUDGET}_group_{group.id.hex()}": group for group in groups}
        return [group for name, group in names.items() if free.get(name) == all_.get(name)]


def bundle_shape(task: Task, names: int) -> Shape:
    """Return the bundle of a task: its demand, and one of the budget for each name, in one conjunction."""
    own = {{"cpu": "CPU", "gpu": "GPU"}.get(kind, kind): amount / MILLI for kind, amount in task.demand.items()}
    if "memory" in own:
        own["memory"] *= MIB
    return tuple(sorted({**own, BUDGET: float(max(1, names))}.items()))


def task_options(shape: Shape, group: Any) -> dict[str, Any]:
    """Return the options of a Ray task that runs inside a group and takes all of it."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    amounts = dict(shape)
    memory = {"memory": int(amounts.pop("memory"))} if "memory" in amounts else {}
    return {
        "num_cpus": amounts.pop("CPU", 0), "num_gpus": amounts.pop("GPU", 0), **memory, "resources": amounts,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(group, 0), "max_retries": 0,
    }  # fmt: skip


def parse_node(told: Mapping[str, Any]) -> Node:
    """Return a node of Ray as policies see it: amounts in thousandths, memory in MiB."""
    labels = dict(told.get("Labels") or {})
    name = labels.pop(NAME, told["NodeID"][:12])
    data = frozenset(filter(None, labels.pop(DATA, "").split(".")))
    plain = {key: value for key, value in labels.items() if not key.startswith("ray.io/")}
    return Node(name, dict(_amounts(told["Resources"])), plain, data)


def _amounts(resources: Mapping[str, float]) -> Iterable[tuple[str, int]]:
    for kind, amount in resources.items():
        if kind in {BUDGET, "object_store_memory"} or ":" in kind:
            continue
        yield KINDS.get(kind, kind), round(amount / (MIB if kind == "memory" else 1) * MILLI)
