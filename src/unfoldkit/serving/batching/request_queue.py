"""How requests wait for their batch: in the order in which they came, or the most urgent first."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from unfoldkit.serving.model import Array, Call, Turn


# not frozen: one is made for every request, and freezing makes that three times as dear
@dataclass(slots=True)
class Waiting:
    """A request that waits for its batch; ``due`` is when its answer is late, on the line's clock.

    ``level`` is how much it asks for, where the line has levels.
    """

    inputs: Mapping[str, Array]
    call: Call
    done: Callable[[Any], None]
    due: float = math.inf
    level: int = 0


class Line(Protocol):
    """Requests that wait. It lives in the event loop."""

    def add(self, item: Waiting) -> None:
        """Let a request wait."""

    def take(self, most: int) -> tuple[list[Waiting], Turn | None]:
        """Take the requests of the next batch out, at most ``most`` rows unless the first alone has more."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """First come, first answered."""

    waiting: deque[Waiting] = field(default_factory=deque)

    def add(self, item: Waiting) -> None:
        """Let a request wait behind the others."""
        self.waiting.append(item)

    def take(self, most: int) -> tuple[list[Waiting], Turn | None]:
        """Take the next requests; nothing is picked."""
        taken: list[Waiting] = []
        rows = 0
        while self.waiting and (not taken or rows + self.waiting[0].call.rows <= most):
            taken.append(self.waiting.popleft())
            rows += taken[-1].call.rows
        return taken, None


Pick = Callable[[float, int, int], tuple[int, int] | None]
"""From the seconds left to the most urgent request, the rows that wait, and its level to a way and the rows it takes.

The rows that wait are those of its level or above. ``None`` where no way of the level answers that request in time.
"""


def _alike(_call: Call) -> int:
    return 0


@dataclass(frozen=True, slots=True)
class Ways:
    """The ways of a model: the more a request asks for, which is its level, the fewer of them may answer it.

    ``serves`` is by way the highest level that it answers, ``hopeless`` by level who answers what cannot be in time.
    """

    pick: Pick
    serves: tuple[int, ...]
    hopeless: tuple[int, ...] = (0,)
    level: Callable[[Call], int] = _alike


@dataclass(slots=True)
class Deadlines:
    """The earliest deadline first, by the way that is picked each time; none answers who asks for more than it serves.

    A request that no way answers in time steps aside, so that it makes no other late, and is answered by the way
    ``hopeless`` of its level once nobody waits who can be in time. Those aside count in the queue's bound, so they get
    their turn under any load. ``seconds`` is what a request has that brings no deadline of its own; ``urgent`` and
    ``rows`` are by level.
    """

    ways: Ways
    seconds: float
    clock: Callable[[], float] = time.perf_counter
    urgent: list[list[tuple[float, int, Waiting]]] = field(init=False)
    rows: list[int] = field(init=False)
    aside: deque[Waiting] = field(default_factory=deque)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        """Make room for each level."""
        self.urgent, self.rows = [[] for _ in self.ways.hopeless], [0] * len(self.ways.hopeless)

    def add(self, item: Waiting) -> None:
        """Let a request wait where its deadline places it; those of one deadline in the order in which they came."""
        limit = self.seconds if item.call.deadline is None else item.call.deadline
        item.due, item.level = self.clock() + limit, self.ways.level(item.call)
        heapq.heappush(self.urgent[item.level], (item.due, next(self.numbers), item))
        self.rows[item.level] += item.call.rows

    def take(self, most: int) -> tuple[list[Waiting], Turn | None]:
        """Take the most urgent requests out, as many rows as were picked, and tell the way."""
        while (first := self._first(len(self.urgent) - 1)) is not None:
            now = self.clock()
            picked = self.ways.pick(first.due - now, sum(self.rows[first.level :]), first.level)
            if picked is not None and first.call.rows <= picked[1]:
                taken = self._urgent(first, self.ways.serves[picked[0]], min(picked[1], most))
                return taken, _turn(picked[0], taken, now)
            self.aside.append(self._pop(first))
        return self._late(most) if self.aside else ([], None)

    def _first(self, level: int) -> Waiting | None:
        """Return the most urgent request of a level or below."""
        heads = [heap[0] for heap in self.urgent[: level + 1] if heap]
        return min(heads)[2] if heads else None

    def _urgent(self, first: Waiting, level: int, most: int) -> list[Waiting]:
        taken, rows = [self._pop(first)], first.call.rows
        while (item := self._first(level)) is not None and rows + item.call.rows <= most:
            taken.append(self._pop(item))
            rows += item.call.rows
        return taken

    def _late(self, most: int) -> tuple[list[Waiting], Turn]:
        """Take those aside in the order in which they came there, as long as the way of the first answers them."""
        way = self.ways.hopeless[self.aside[0].level]
        taken = [self.aside.popleft()]
        rows = taken[0].call.rows
        while self.aside and self.aside[0].level <= self.ways.serves[way] and rows + self.aside[0].call.rows <= most:
            taken.append(self.aside.popleft())
            rows += taken[-1].call.rows
        return taken, _turn(way, taken, self.clock())

    def _pop(self, first: Waiting) -> Waiting:
        """Take out the most urgent request of its level."""
        heapq.heappop(self.urgent[first.level])
        self.rows[first.level] -= first.call.rows
        return first


def _turn(way: int, taken: list[Waiting], now: float) -> Turn:
    return Turn(way, tuple(item.due for item in taken), now)
