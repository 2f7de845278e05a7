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
    """A request that waits for its batch; ``due`` is when its answer is late, on the line's clock."""

    inputs: Mapping[str, Array]
    call: Call
    done: Callable[[Any], None]
    due: float = math.inf


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


Pick = Callable[[float, int], tuple[int, int] | None]
"""From the seconds left to the most urgent request and the rows that wait, to a way and how many rows it takes.

``None`` where no way answers that request in time.
"""


@dataclass(slots=True)
class Deadlines:
    """The earliest deadline first, by the way that ``pick`` names each time.

    A request that no way answers in time steps aside, so that it makes no other late, and is answered by the way
    ``hopeless`` once nobody waits who can be in time. Those aside count in the queue's bound, so they get their turn
    under any load. ``seconds`` is what a request has that brings no deadline of its own.
    """

    pick: Pick
    seconds: float
    hopeless: int = 0
    clock: Callable[[], float] = time.perf_counter
    urgent: list[tuple[float, int, Waiting]] = field(default_factory=list)
    aside: Arrivals = field(default_factory=Arrivals)
    rows: int = 0
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def add(self, item: Waiting) -> None:
        """Let a request wait where its deadline places it; those of one deadline in the order in which they came."""
        limit = self.seconds if item.call.deadline is None else item.call.deadline
        item.due = self.clock() + limit
        heapq.heappush(self.urgent, (item.due, next(self.numbers), item))
        self.rows += item.call.rows

    def take(self, most: int) -> tuple[list[Waiting], Turn | None]:
        """Take the most urgent requests out, as many rows as were picked, and tell the way."""
        while self.urgent:
            due, _, first = self.urgent[0]
            now = self.clock()
            picked = self.pick(due - now, self.rows)
            if picked is not None and first.call.rows <= picked[1]:
                taken = self._urgent(min(picked[1], most))
                return taken, _turn(picked[0], taken, now)
            self.aside.add(self._pop())
        taken, _ = self.aside.take(most)
        return taken, _turn(self.hopeless, taken, self.clock())

    def _urgent(self, most: int) -> list[Waiting]:
        taken = [self._pop()]
        rows = taken[0].call.rows
        while self.urgent and rows + self.urgent[0][2].call.rows <= most:
            taken.append(self._pop())
            rows += taken[-1].call.rows
        return taken

    def _pop(self) -> Waiting:
        item = heapq.heappop(self.urgent)[2]
        self.rows -= item.call.rows
        return item


def _turn(way: int, taken: list[Waiting], now: float) -> Turn:
    return Turn(way, tuple(item.due for item in taken), now)
