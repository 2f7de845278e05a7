"""Devices: a fraction of a GPU is a share of one device, so that three tasks of 0.6 do not fit on two GPUs.

A demand of 1.6 takes one free device and a share of 0.6. A share goes to the fullest device that has room (best fit),
as with Ray, else to a free one. It never moves while its task runs.

The matcher needs this only where a task demands a fraction. Then the arrays get one more column for each kind of
device: the *device room* of a node, and what a task needs of it. A room orders nodes by their free devices, and by the
largest free share of a device in use among equals. A demand fits exactly where the room is at least the need.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from unfold_placement._types import Int64Array
from unfold_placement.core.state import StateArrays, build_max_tree
from unfold_placement.core.types import MILLI, ROOM_OF_DEVICE, Node, Task

DEVICES = frozenset({"gpu", "hpu", "npu", "tpu", "xpu"})
"""Kinds that are devices, also with a vendor in front: ``nvidia.com/gpu``."""
MAX_DEVICES = 1024
"""If a node has more units of a kind, the kind is an amount."""


def is_device(kind: str) -> bool:
    """Return whether units of a kind are devices: a fraction is then a share of one device."""
    return kind.rpartition("/")[2].lower() in DEVICES


def has_shares(task: Task) -> bool:
    """Return whether a task demands a fraction of a device."""
    return any(amount % MILLI and is_device(kind) for kind, amount in task.demand.items())


def list_device_kinds(nodes: Sequence[Node], kinds: Sequence[str]) -> list[str]:
    """Return the kinds of device that nodes have."""
    most = MAX_DEVICES * MILLI
    return [kind for kind in kinds if is_device(kind) and all(node.capacity.get(kind, 0) <= most for node in nodes)]


def track_devices(state: StateArrays, nodes: Sequence[Node], resource_kinds: Sequence[str]) -> StateArrays:
    """Return arrays that account for each device; no task may hold a share yet."""
    kinds = list_device_kinds(nodes, resource_kinds)
    columns, used = [resource_kinds.index(kind) for kind in kinds], list_unusable(nodes, kinds)
    demand = state.demand
    tracked = state._replace(
        demand=np.column_stack([demand, device_need(demand[:, columns])]),
        free=np.column_stack([state.free, measure_room(state.free[:, columns], used)]),
        device_kinds=np.array(columns, np.int64),
        device_used=used,
        device=np.full((len(demand), len(columns)), -1, np.int32),
    )
    return tracked._replace(free_tree=build_max_tree(tracked.free))


def device_need(demand: Int64Array) -> Int64Array:
    """Return the device room that demands of devices need; both are [tasks, device kinds], demand in thousandths."""
    return np.asarray(demand // MILLI * ROOM_OF_DEVICE + demand % MILLI)


def list_unusable(nodes: Sequence[Node], kinds: Sequence[str]) -> Int64Array:
    """Return the [nodes, kinds, devices] part of each device that does not exist, in thousandths.

    A node with 2.5 units has two whole devices and half of one.
    """
    capacity = np.array([[node.capacity.get(kind, 0) for kind in kinds] for node in nodes], np.int64)
    capacity = capacity.reshape(len(nodes), len(kinds), 1)
    slots = -(-int(capacity.max(initial=MILLI)) // MILLI)
    return np.asarray(MILLI - np.clip(capacity - MILLI * np.arange(slots), 0, MILLI))


def measure_room(free: Int64Array, used: Int64Array) -> Int64Array:
    """Return the [nodes, device kinds] device room.

    Args:
        free: [nodes, device kinds] free amounts in thousandths.
        used: [nodes, device kinds, devices] amounts held in shares, or missing, of each device, in thousandths.
    """
    shares = np.where(used > 0, MILLI - used, 0)
    whole = np.maximum(free - shares.sum(axis=2), 0) // MILLI
    return np.asarray(whole * ROOM_OF_DEVICE + shares.max(axis=2, initial=0))


@dataclass(slots=True)
class DeviceLedger:
    """The devices of one node in plain Python, by which the matcher is checked.

    Attributes:
        used: Part of each device that shares hold, or that does not exist, by kind and in thousandths. Which of the
            other devices are held whole does not matter.
        whole: Number of devices held whole by kind.
        held: What each task holds by kind: devices, the device of its share (-1 for none) and the share.
    """

    used: dict[str, list[int]]
    whole: Counter[str] = field(default_factory=Counter)
    held: dict[str, dict[str, tuple[int, int, int]]] = field(default_factory=dict)

    def find(self, demand: Mapping[str, int]) -> dict[str, tuple[int, int, int]] | None:
        """Return what a demand would hold by kind; None where it does not fit."""
        found: dict[str, tuple[int, int, int]] = {}
        for kind, amount in demand.items():
            if kind in self.used:
                whole, share = divmod(amount, MILLI)
                free = self._count_free(kind) - whole
                device = self._choose_device(kind, share, has_free=free > 0) if share else -1
                if device is None or free < 0:
                    return None
                found[kind] = whole, device, share
        return found

    def take(self, task: Task) -> bool:
        """Hold the devices of a task; return whether it fits."""
        found = self.find(task.demand)
        self.held[task.name] = found or {}
        self._shift(self.held[task.name], 1)
        return found is not None

    def give_back(self, task: Task) -> None:
        """Return the devices of a task that ended."""
        self._shift(self.held.pop(task.name, {}), -1)

    def room(self, kinds: Sequence[str]) -> list[int]:
        """Return the device room of each kind."""
        return [
            self._count_free(kind) * ROOM_OF_DEVICE
            + max((MILLI - used for used in self.used.get(kind, ()) if used), default=0)
            for kind in kinds
        ]

    def _count_free(self, kind: str) -> int:
        return self.used[kind].count(0) - self.whole[kind] if kind in self.used else 0

    def _choose_device(self, kind: str, share: int, *, has_free: bool) -> int | None:
        """Return the fullest device with room for a share, else a free one."""
        used = self.used[kind]
        shared = [device for device, amount in enumerate(used) if amount and amount + share <= MILLI]
        free = [used.index(0)] if has_free else []
        return max([*shared, *free], key=lambda device: used[device], default=None)

    def _shift(self, held: Mapping[str, tuple[int, int, int]], sign: int) -> None:
        for kind, (whole, device, share) in held.items():
            self.whole[kind] += sign * whole
            if device >= 0:
                self.used[kind][device] += sign * share


def open_ledgers(nodes: Sequence[Node]) -> dict[str, DeviceLedger]:
    """Open the ledgers of nodes on which nothing runs, by name."""
    kinds = list_device_kinds(nodes, sorted({kind for node in nodes for kind in node.capacity}))
    return {
        node.name: DeviceLedger(
            {
                kind: [MILLI - min(MILLI, capacity - begin) for begin in range(0, capacity, MILLI)]
                for kind in kinds
                if (capacity := node.capacity.get(kind, 0))
            }
        )
        for node in nodes
    }
