"""The queue in which requests wait for their batch: first come, first served, or earliest deadline first."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from unfoldkit.serving.model import Array, Call, PathChoice


# not frozen: one is made per request, and freezing would triple its cost
@dataclass(slots=True)
class QueuedRequest:
    """A request that waits for its batch.

    Args:
        inputs: Its arrays by name of the input.
        call: Its parameters.
        done: Receives the result.
        due: When the response is late, on the clock of the queue.
        level: The accuracy level that it requires, if the queue has levels.
    """

    inputs: Mapping[str, Array]
    call: Call
    done: Callable[[Any], None]
    due: float = math.inf
    level: int = 0


class RequestQueue(Protocol):
    """Waiting requests. Only the event loop uses it."""

    def add(self, item: QueuedRequest) -> None:
        """Queue a request."""

    def take(self, most: int) -> tuple[list[QueuedRequest], PathChoice | None]:
        """Remove the requests of the next batch: at most ``most`` rows, unless the first request alone has more."""


@dataclass(frozen=True, slots=True)
class FifoQueue:
    """First come, first served."""

    waiting: deque[QueuedRequest] = field(default_factory=deque)

    def add(self, item: QueuedRequest) -> None:
        """Queue a request behind the others."""
        self.waiting.append(item)

    def take(self, most: int) -> tuple[list[QueuedRequest], PathChoice | None]:
        """Remove the next requests; no execution path is chosen."""
        batch: list[QueuedRequest] = []
        rows = 0
        while self.waiting and (not batch or rows + self.waiting[0].call.rows <= most):
            batch.append(self.waiting.popleft())
            rows += batch[-1].call.rows
        return batch, None


PathPolicy = Callable[[float, int, int], tuple[int, int] | None]
"""Chooses an execution path and the rows of its batch.

It takes the seconds left to the most urgent request, the number of waiting rows of its accuracy level or above, and the
level. It returns ``None`` if no path of the level answers that request in time.
"""


def _lowest_level(_call: Call) -> int:
    return 0


@dataclass(frozen=True, slots=True)
class ExecutionPaths:
    """The execution paths of a model. The higher the accuracy level of a request, the fewer paths may answer it.

    Args:
        pick: Chooses a path.
        serves: By path, the highest level that it answers.
        hopeless: By level, the path for requests that cannot be answered in time.
        level: Returns the level of a request.
        pick_split: Chooses a path for a request with more rows than any batch, which the model computes in parts; it
            takes that request's rows. By default such a request counts as late.
        pick_late: Chooses, by level, the path for late requests at the moment; by default that of ``hopeless``.
    """

    pick: PathPolicy
    serves: tuple[int, ...]
    hopeless: tuple[int, ...] = (0,)
    level: Callable[[Call], int] = _lowest_level
    pick_split: PathPolicy | None = None
    pick_late: Callable[[int], int] | None = None


@dataclass(slots=True)
class DeadlineQueue:
    """Earliest deadline first; for each batch an execution path is chosen that answers its requests in time.

    A request that no path can answer in time is set aside, so that it delays no other. It is answered by the path
    ``hopeless`` of its level as soon as no request is waiting that can be in time. Requests that were set aside count
    toward the bound of the queue, so that they are answered under any load.

    Args:
        ways: The execution paths.
        seconds: The deadline of a request that has none of its own.
        clock: A clock in s.
        urgent: By level, a heap of (due, number, request).
        rows: By level, the number of waiting rows.
        late: Requests that were set aside.
        numbers: Orders requests with equal deadlines by their arrival.
    """

    ways: ExecutionPaths
    seconds: float
    clock: Callable[[], float] = time.perf_counter
    urgent: list[list[tuple[float, int, QueuedRequest]]] = field(init=False)
    rows: list[int] = field(init=False)
    late: deque[QueuedRequest] = field(default_factory=deque)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def used_parameters(self) -> tuple[str, ...]:
        """The parameters of a request which have an effect."""
        return ("deadline_ms",)

    def __post_init__(self) -> None:
        """Create a heap for each level."""
        self.urgent, self.rows = [[] for _ in self.ways.hopeless], [0] * len(self.ways.hopeless)

    def add(self, item: QueuedRequest) -> None:
        """Queue a request by its deadline."""
        deadline_s = self.seconds if item.call.deadline is None else item.call.deadline
        item.due, item.level = self.clock() + deadline_s, self.ways.level(item.call)
        heapq.heappush(self.urgent[item.level], (item.due, next(self.numbers), item))
        self.rows[item.level] += item.call.rows

    def take(self, most: int) -> tuple[list[QueuedRequest], PathChoice | None]:
        """Remove the most urgent requests, as many rows as the chosen path takes, with the path."""
        while (first := self._most_urgent(len(self.urgent) - 1)) is not None:
            now = self.clock()
            choice = self.ways.pick(first.due - now, sum(self.rows[first.level :]), first.level)
            if choice is not None and first.call.rows <= choice[1]:
                batch = self._take_urgent(first, self.ways.serves[choice[0]], min(choice[1], most))
                return batch, _path_choice(choice[0], batch, now)
            split = self.ways.pick_split and self.ways.pick_split(first.due - now, first.call.rows, first.level)
            if split:
                batch = [self._pop(first)]
                return batch, _path_choice(split[0], batch, now)
            self.late.append(self._pop(first))
        return self._take_late(most) if self.late else ([], None)

    def _most_urgent(self, max_level: int) -> QueuedRequest | None:
        heads = [heap[0] for heap in self.urgent[: max_level + 1] if heap]
        return min(heads)[2] if heads else None

    def _take_urgent(self, first: QueuedRequest, max_level: int, max_rows: int) -> list[QueuedRequest]:
        batch, rows = [self._pop(first)], first.call.rows
        while (item := self._most_urgent(max_level)) is not None and rows + item.call.rows <= max_rows:
            batch.append(self._pop(item))
            rows += item.call.rows
        return batch

    def _take_late(self, max_rows: int) -> tuple[list[QueuedRequest], PathChoice]:
        """Remove late requests in the order in which they were set aside, while the path of the first serves them."""
        level = self.late[0].level
        path = self.ways.hopeless[level] if self.ways.pick_late is None else self.ways.pick_late(level)
        batch = [self.late.popleft()]
        rows = batch[0].call.rows
        while self.late and self.late[0].level <= self.ways.serves[path] and rows + self.late[0].call.rows <= max_rows:
            batch.append(self.late.popleft())
            rows += batch[-1].call.rows
        return batch, _path_choice(path, batch, self.clock())

    def _pop(self, first: QueuedRequest) -> QueuedRequest:
        """Remove the most urgent request of its level."""
        heapq.heappop(self.urgent[first.level])
        self.rows[first.level] -= first.call.rows
        return first


def _path_choice(path: int, batch: list[QueuedRequest], now: float) -> PathChoice:
    return PathChoice(path, tuple(item.due for item in batch), now)
