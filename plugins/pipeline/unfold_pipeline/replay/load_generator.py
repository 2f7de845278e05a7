"""An open-loop load generator: replay a trace on the running pipeline and measure the latency of each query."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from unfold_pipeline._types import FloatArray, RowArray
from unfold_pipeline.estimator.replica_schedule import TICK_S, ScalingState
from unfold_pipeline.problem.pipeline import Pipeline
from unfold_pipeline.problem.routing import build_routes
from unfold_pipeline.problem.sample import Sample
from unfold_pipeline.runtime.affinity import shorten_time_slice
from unfold_pipeline.runtime.live_tuner import LiveTuner, apply_state
from unfold_pipeline.runtime.local import PipelineRuntime
from unfold_pipeline.runtime.query_admission import QueryGate
from unfold_pipeline.runtime.stage import CompletedBatch, Query, read_clock

POLL_INTERVAL_S = 0.1
START_DELAY_S = 0.05
QUERIES_PER_PROGRESS = 64
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredTrace:
    """A trace that was replayed on running replicas.

    Attributes:
        latencies: Seconds of each query from its arrival in the trace; infinite without an answer.
        sender_lateness_s: The greatest delay of the load generator.
        replaced: Replicas that died and were replaced.
        final_replicas: Replicas of each stage at the end.
        timeline: Replicas and batch sizes that serve, each second and when they change.
        shed: Number of queries that were shed.
        batches: Answered batches, their start relative to the trace; empty if the engine does not report them.
        refused: Number of queries that admission control refused.
    """

    latencies: FloatArray
    sender_lateness_s: float
    replaced: int
    final_replicas: tuple[int, ...]
    timeline: tuple[tuple[float, ScalingState], ...] = ()
    shed: int = 0
    batches: tuple[CompletedBatch, ...] = ()
    refused: int = 0

    @property
    def lost(self) -> int:
        """Admitted queries without an answer that were not shed."""
        return int(np.isinf(self.latencies).sum()) - self.shed - self.refused


async def replay_trace(
    runtime: PipelineRuntime,
    pipeline: Pipeline,
    sample: Sample,
    rows: RowArray,
    tuner: LiveTuner | None,
    progress: Progress,
    deadline_s: float = math.inf,
    max_wait_s: float = math.inf,
) -> MeasuredTrace:
    """Send each query at its time, whatever became of those before, and wait for all answers.

    Latency counts from the arrival in the trace, so a late sender hides nothing.

    Args:
        runtime: The running pipeline.
        pipeline: Its stages.
        sample: Arrivals and routes.
        rows: Inputs, which queries use in turn; shape (rows, features).
        tuner: The rule that changes replicas, if any.
        progress: Receives the number of queries sent.
        deadline_s: A query that cannot be answered within this time is shed.
        max_wait_s: A query that would be answered later is refused, as by the service.
    """
    gate = QueryGate(pipeline=pipeline, runtime=runtime, max_wait_s=max_wait_s)
    session = _TraceReplay(gate, sample, rows, progress, deadline_s)
    return await session.run(tuner)


# not frozen: answers arrive over time
@dataclass(slots=True)
class _TraceReplay:
    gate: QueryGate
    sample: Sample
    rows: RowArray
    progress: Progress
    deadline_s: float
    start_s: float = 0.0
    latencies: FloatArray = field(init=False)
    open_queries: int = field(init=False)
    shed: int = 0
    in_flight: dict[int, Query] = field(default_factory=dict)
    timeline: list[tuple[float, ScalingState]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.latencies = np.full(self.sample.size, np.inf)
        self.open_queries = self.sample.size

    async def run(self, tuner: LiveTuner | None) -> MeasuredTrace:
        loop = asyncio.get_running_loop()
        finished = loop.create_future()
        routes = build_routes(self.gate.pipeline, self.sample)
        self.start_s = read_clock() + START_DELAY_S
        batches: list[CompletedBatch] = []
        self.gate.runtime.subscribe(batches.append)
        monitor = asyncio.create_task(self._monitor_replicas(tuner))

        def send_query(number: int) -> None:
            query = Query(
                self.rows[number % len(self.rows)],
                routes,
                number,
                functools.partial(self._record_answer, finished, number),
                due_s=self.start_s + self.sample.arrivals[number] + self.deadline_s,
            )
            self.in_flight[number] = query
            if self.gate.compute_retry_delay():
                self.gate.refuse()
                self._record_answer(finished, number, None)
            else:
                self.gate.submit(query)
            if number % QUERIES_PER_PROGRESS == 0:
                self.progress("replay", number, self.sample.size)

        def schedule_send(number: int) -> None:
            loop.call_soon_threadsafe(send_query, number)

        lateness_s = await asyncio.to_thread(_send_on_schedule, self.start_s + self.sample.arrivals, schedule_send)
        await finished
        monitor.cancel()
        # if the rule failed, it was not in charge until the end, and the figures do not describe it
        with contextlib.suppress(asyncio.CancelledError):
            await monitor
        return MeasuredTrace(
            latencies=self.latencies,
            sender_lateness_s=lateness_s,
            replaced=self.gate.runtime.count_replaced(),
            final_replicas=self.gate.runtime.serving_replicas(),
            timeline=tuple(self.timeline),
            shed=self.shed,
            batches=tuple(replace(batch, start_s=batch.start_s - self.start_s) for batch in batches),
            refused=self.gate.refused,
        )

    def _record_answer(self, finished: asyncio.Future[None], number: int, answers: dict[str, object] | None) -> None:
        query = self.in_flight.pop(number, None)
        if query is None:
            return
        if answers is not None:
            self.latencies[number] = read_clock() - self.start_s - self.sample.arrivals[number]
        self.open_queries, self.shed = self.open_queries - 1, self.shed + query.is_shed
        if self.open_queries == 0:
            finished.set_result(None)

    async def _monitor_replicas(self, tuner: LiveTuner | None) -> None:
        """Record how many replicas serve with which batch sizes, and let the rule change them each second."""
        last_decision_s = -math.inf
        arrivals = self.sample.arrivals
        while True:
            now_s = read_clock() - self.start_s
            state = ScalingState(self.gate.runtime.serving_replicas(), self.gate.runtime.batch_sizes())
            if not self.timeline or self.timeline[-1][1] != state or now_s - self.timeline[-1][0] >= TICK_S:
                self.timeline.append((now_s, state))
            if tuner is not None and math.floor(now_s) > last_decision_s:
                last_decision_s = math.floor(now_s)
                if last_decision_s >= 0:
                    tuner.follow_activation(self.gate.runtime)
                    apply_state(self.gate.runtime, tuner.decide(arrivals, float(last_decision_s)))
            await asyncio.sleep(POLL_INTERVAL_S)


def _send_on_schedule(moments_s: FloatArray, schedule_send: Callable[[int], object]) -> float:
    """Call ``schedule_send`` with the number of each moment when it comes; return the greatest delay in seconds.

    It runs in its own thread, because the timers of an event loop are coarser than a millisecond.
    """
    shorten_time_slice()
    lateness_s = 0.0
    for number, moment_s in enumerate(moments_s.tolist()):
        time.sleep(max(0.0, moment_s - read_clock()))
        lateness_s = max(lateness_s, read_clock() - moment_s)
        schedule_send(number)
    return lateness_s
