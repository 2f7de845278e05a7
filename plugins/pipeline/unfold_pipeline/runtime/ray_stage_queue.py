"""The queue in front of the replicas of a stage on Ray Serve, which has none of its own.

Ray Serve asks a busy replica again only after a pause, which doubles up to half a second: with more queries than its
replicas take, they idle between two of them. So it gets no more than they take, and the others wait here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from unfold_pipeline.runtime.stage import Query, read_clock


@dataclass(slots=True)
class RequestSlots:
    """Limits how many queries the replicas have at once; the others wait, first come, first served.

    Attributes:
        limit: Queries that the replicas take at once.
        taken: Queries that they have.
        waiting: Queries that wait; a result of false ends the wait of one that was shed.
        starts_s: By the clock of the queries, when those that are not answered yet got their slots.
    """

    limit: int
    taken: int = 0
    waiting: deque[asyncio.Future[bool]] = field(default_factory=deque)
    starts_s: list[float] = field(default_factory=list)

    @property
    def silent_s(self) -> float:
        """For how many seconds the replicas have not answered the query that they have had longest; 0 if none."""
        return read_clock() - min(self.starts_s) if self.starts_s else 0.0

    @asynccontextmanager
    async def take(self, query: Query) -> AsyncIterator[bool]:
        """Wait for a slot and keep it; yield whether there is one, which a query does not get after it was shed."""
        if not await self._wait(query):
            yield False
            return
        start_s = read_clock()
        self.starts_s.append(start_s)
        try:
            yield not query.is_shed
        finally:
            self.starts_s.remove(start_s)
            self.taken -= 1
            self._admit_next()

    def set_limit(self, limit: int) -> None:
        """Admit more or fewer queries at once; those that have a slot keep it."""
        self.limit = limit
        self._admit_next()

    async def _wait(self, query: Query) -> bool:
        if self.taken < self.limit:
            self.taken += 1
            return True
        slot: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.waiting.append(slot)
        query.on_shed.append(partial(_end_wait, slot))
        return await slot

    def _admit_next(self) -> None:
        while self.waiting and self.taken < self.limit:
            slot = self.waiting.popleft()
            if not slot.done():
                self.taken += 1
                slot.set_result(True)


def _end_wait(slot: asyncio.Future[bool]) -> None:
    if not slot.done():
        slot.set_result(False)
