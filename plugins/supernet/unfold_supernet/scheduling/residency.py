"""Which members stay in memory when they do not all fit: pinned ones, and room in which the others take turns.

Evictions follow least recent use (LRU), least frequent use (LFU), or cost: GreedyDual-Size-Frequency (Cherkasova 1998)
keeps what is used often, takes long to load and needs little memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

Eviction = Literal["cost", "lru", "lfu"]


@dataclass(frozen=True, slots=True)
class MemberCost:
    """What a member needs: bytes of memory, and seconds to load it."""

    bytes: int
    load_s: float


@dataclass(slots=True, kw_only=True)
class Residency:
    """The members in memory.

    Attributes:
        costs: Memory and load time by member.
        budget_bytes: Memory for all members.
        pinned: Members that are never evicted.
        eviction: How a member is chosen for eviction.
        resident: Members in memory; replaced, never changed in place, so that other threads may read it.
        loads: Number of loads.
        load_s: Seconds of all loads, as measured beforehand.
        uses: Batches by member.
        last_use: Number of the last batch by member.
        priority: Of eviction by cost, by member.
        floor: Priority of the member that was evicted last.
        batches: Number of batches.
    """

    costs: tuple[MemberCost, ...]
    budget_bytes: int
    pinned: frozenset[int] = frozenset()
    eviction: Eviction = "cost"
    resident: frozenset[int] = frozenset()
    loads: int = 0
    load_s: float = 0.0
    uses: list[int] = field(init=False)
    last_use: list[int] = field(init=False)
    priority: list[float] = field(init=False)
    floor: float = 0.0
    batches: int = 0

    def __post_init__(self) -> None:
        """Start the counts at zero."""
        count = len(self.costs)
        self.uses, self.last_use, self.priority = [0] * count, [0] * count, [0.0] * count

    @property
    def holds_everything(self) -> bool:
        """Whether all members fit the memory."""
        return sum(cost.bytes for cost in self.costs) <= self.budget_bytes

    def can_hold(self, index: int) -> bool:
        """Whether a member fits beside the pinned ones."""
        pinned_bytes = sum(self.costs[other].bytes for other in self.pinned if other != index)
        return self.costs[index].bytes + pinned_bytes <= self.budget_bytes

    def acquire(self, index: int) -> tuple[int, ...]:
        """Count a batch of a member, and bring it into memory if it is not there.

        Returns:
            The members that were evicted.

        Raises:
            ValueError: It does not fit beside the pinned members.
        """
        self.batches += 1
        self.uses[index] += 1
        self.last_use[index] = self.batches
        cost = self.costs[index]
        evicted: list[int] = []
        if index not in self.resident:
            evicted = self._make_room(cost.bytes)
            self.resident = (self.resident - set(evicted)) | {index}
            self.loads += 1
            self.load_s += cost.load_s
        self.priority[index] = self.floor + self.uses[index] * cost.load_s / max(1, cost.bytes)
        return tuple(evicted)

    def _make_room(self, needed_bytes: int) -> list[int]:
        free = self.budget_bytes - sum(self.costs[index].bytes for index in self.resident)
        rank: Callable[[int], tuple[float, float]] = {
            "lru": lambda index: (self.last_use[index], 0.0),
            "lfu": lambda index: (self.uses[index], self.last_use[index]),
            "cost": lambda index: (self.priority[index], self.last_use[index]),
        }[self.eviction]
        evicted: list[int] = []
        for index in sorted(self.resident - self.pinned, key=rank):
            if free >= needed_bytes:
                break
            evicted.append(index)
            free += self.costs[index].bytes
            self.floor = max(self.floor, self.priority[index])
        if free < needed_bytes:
            message = f"a member of {needed_bytes:,} bytes does not fit beside the pinned ones"
            raise ValueError(message)
        return evicted


def fill_memory(costs: Sequence[MemberCost], budget_bytes: int, order: Sequence[int]) -> frozenset[int]:
    """Choose members in an order of preference, each that still fits."""
    chosen, free = set(), budget_bytes
    for index in order:
        if costs[index].bytes <= free:
            chosen.add(index)
            free -= costs[index].bytes
    return frozenset(chosen)
