"""The entrance of a running pipeline: it logs all demand, refuses what would be answered too late, and keeps the bound.

Requests over HTTP and a replayed trace pass the same gate, so that both are served alike. Demand is everything that
arrives, refused queries included: the scaling rule must observe what is wanted, not what was admitted.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field

import numpy as np

from unfold_pipeline._types import FloatArray
from unfold_pipeline.estimator.admission import ADMITTED_FRACTION, compute_retry_delay
from unfold_pipeline.problem.pipeline import Pipeline
from unfold_pipeline.runtime.local import PipelineRuntime
from unfold_pipeline.runtime.stage import Query, read_clock

LOGGED_S = 600.0
MIN_LOG_SIZE = 4096
# on a busy machine a request waits for the event loop before it is admitted, and its response afterwards
EXPIRY_FRACTION = 0.85


@dataclass(slots=True)
class ArrivalLog:
    """The arrivals of at least the last ten minutes, in seconds since ``start_s`` on :func:`read_clock`."""

    start_s: float
    times_s: FloatArray = field(default_factory=lambda: np.empty(MIN_LOG_SIZE))
    size: int = 0
    total: int = 0
    first_s: float = math.inf

    def record(self, count: int = 1) -> None:
        """Record that so many queries arrive now."""
        now_s = read_clock() - self.start_s
        if self.size + count > self.times_s.size:
            self._make_room(now_s, count)
        self.times_s[self.size : self.size + count] = now_s
        self.size, self.total, self.first_s = self.size + count, self.total + count, min(self.first_s, now_s)

    def list_arrivals(self, since_s: float = -math.inf) -> FloatArray:
        """Return a copy of the arrivals from ``since_s`` on, in order."""
        logged = self.times_s[: self.size]
        return logged[np.searchsorted(logged, since_s) :].copy()

    def _make_room(self, now_s: float, count: int) -> None:
        recent = self.list_arrivals(now_s - LOGGED_S)
        # twice what is needed, so that copying costs little per arrival
        self.times_s = np.empty(max(MIN_LOG_SIZE, 2 * (recent.size + count)))
        self.times_s[: recent.size] = recent
        self.size = recent.size


@dataclass(slots=True, kw_only=True)
class QueryGate:
    """Admits queries to a running pipeline.

    Attributes:
        pipeline, runtime: The stages and their replicas.
        max_wait_s: The waiting bound: no admitted query is answered later, unless a replica was lost with it.
        arrivals: All demand.
        in_flight: Admitted queries that have not ended.
        refused: Number of refused queries.
    """

    pipeline: Pipeline
    runtime: PipelineRuntime
    max_wait_s: float = math.inf
    arrivals: ArrivalLog = field(default_factory=lambda: ArrivalLog(read_clock()))
    in_flight: int = 0
    refused: int = 0

    def compute_retry_delay(self, rows: int = 1) -> float:
        """Return 0 if so many queries are admitted now, else the seconds after which to try again."""
        if self.max_wait_s == math.inf:
            return 0.0
        loads, admitted_s = self.runtime.measure_loads(), ADMITTED_FRACTION * self.max_wait_s
        return compute_retry_delay(self.pipeline, loads, self.in_flight, admitted_s, rows)

    def refuse(self, rows: int = 1) -> None:
        """Record queries that arrived and were refused."""
        self.arrivals.record(rows)
        self.refused += rows

    def submit(self, query: Query) -> None:
        """Pass an admitted query on; it ends at the waiting bound at the latest."""
        self.arrivals.record()
        self.in_flight += 1
        expiry_s = EXPIRY_FRACTION * self.max_wait_s
        notify, has_ended, start_s = query.on_finished, False, read_clock()
        replaced = self.runtime.count_replaced()
        timer: asyncio.TimerHandle | None = None

        def finish(answers: dict[str, object] | None) -> None:
            nonlocal has_ended
            if has_ended:
                return
            has_ended = True
            self.in_flight -= 1
            if timer is not None:
                timer.cancel()
            if answers is not None and not query.has_lost_replica and read_clock() - start_s > expiry_s:
                # the timer of a busy event loop is late, and so is this answer
                query.is_shed, answers = True, None
            notify(answers)

        def expire() -> None:
            # what a lost replica has delayed is answered when another one serves: it was admitted in good faith
            query.has_lost_replica |= self._has_lost_stage(replaced)
            if not query.has_lost_replica:
                query.shed()

        query.on_finished = finish
        if expiry_s < math.inf:
            timer = asyncio.get_running_loop().call_later(expiry_s, expire)
        self.runtime.submit(query)

    def _has_lost_stage(self, replaced: int) -> bool:
        """Return whether a stage has no replica, or may have had none since so many were replaced."""
        serving = self.runtime.serving_replicas()
        return self.runtime.count_replaced() - replaced >= max(1, min(serving)) or not all(serving)
