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
from unfold_pipeline.problem.quotas import QuotaLimits
from unfold_pipeline.problem.routing import build_routes
from unfold_pipeline.problem.sample import Sample
from unfold_pipeline.runtime.affinity import shorten_time_slice
from unfold_pipeline.runtime.local import PipelineRuntime
from unfold_pipeline.runtime.stage import CompletedBatch, Query, read_clock
from unfold_pipeline.tuner.calibration import ScalingRule

POLL_INTERVAL_S = 0.1
START_DELAY_S = 0.05
QUERIES_PER_PROGRESS = 64
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class LiveTuner:
    """The scaling rule in charge, and the quotas that limit it."""

    rule: ScalingRule
    limits: QuotaLimits

    def adjust(self, runtime: PipelineRuntime, arrivals: FloatArray, now_s: float) -> None:
        """Let the rule change replicas and batch sizes; ``arrivals`` are all until ``now_s``, in seconds."""
        if arrivals.size:
            self.apply_targets(runtime, self.rule(arrivals, float(math.floor(now_s))))

    def apply_targets(self, runtime: PipelineRuntime, targets: ScalingState) -> None:
        """Set the targets of a rule, within the quotas."""
        for stage, count in enumerate(self.limits.share_replicas(targets.replicas)):
            runtime.set_target(stage, count, targets.batches[stage])


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredTrace:
    """A trace that was replayed on running replicas.

    Attributes:
        latencies: seconds of each query from its arrival in the trace; infinite without an answer.
        sender_lateness_s: the greatest delay of the load generator.
        replaced: replicas that died and were replaced.
        final_replicas: replicas of each stage at the end.
        timeline: replicas and batch sizes that serve, each second and when they change.
        shed: number of queries that were shed.
        batches: answered batches, their start relative to the trace; empty if the engine does not report them.
    """

    latencies: FloatArray
    sender_lateness_s: float
    replaced: int
    final_replicas: tuple[int, ...]
    timeline: tuple[tuple[float, ScalingState], ...] = ()
    shed: int = 0
    batches: tuple[CompletedBatch, ...] = ()

    @property
    def lost(self) -> int:
        """Queries without an answer that were not shed."""
        return int(np.isinf(self.latencies).sum()) - self.shed


async def replay_trace(
    runtime: PipelineRuntime,
    pipeline: Pipeline,
    sample: Sample,
    rows: RowArray,
    tuner: LiveTuner | None,
    progress: Progress,
    deadline_s: float = math.inf,
) -> MeasuredTrace:
    """Send each query at its time, whatever became of those before, and wait for all answers.

    Latency counts from the arrival in the trace, so a late sender hides nothing.

    Args:
        runtime: the running pipeline.
        pipeline: its stages.
        sample: arrivals and routes.
        rows: inputs, which queries use in turn; shape (rows, features).
        tuner: the rule that changes replicas, if any.
        progress: receives the number of queries sent.
        deadline_s: a query that cannot be answered within this time is shed.
    """
    session = _TraceReplay(runtime, pipeline, sample, rows, progress, deadline_s)
    return await session.run(tuner)


# not frozen: answers arrive over time
@dataclass(slots=True)
class _TraceReplay:
    runtime: PipelineRuntime
    pipeline: Pipeline
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
        routes = build_routes(self.pipeline, self.sample)
        self.start_s = read_clock() + START_DELAY_S
        batches: list[CompletedBatch] = []
        self.runtime.subscribe(batches.append)
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
            self.runtime.submit(query)
            if number % QUERIES_PER_PROGRESS == 0:
                self.progress("replay", number, self.sample.size)

        def schedule_send(number: int) -> None:
            loop.call_soon_threadsafe(send_query, number)

        lateness_s = await asyncio.to_thread(_keep_time, self.start_s + self.sample.arrivals, schedule_send)
        await finished
        monitor.cancel()
        # if the rule failed, it was not in charge until the end, and the figures do not describe it
        with contextlib.suppress(asyncio.CancelledError):
            await monitor
        return MeasuredTrace(
            latencies=self.latencies,
            sender_lateness_s=lateness_s,
            replaced=self.runtime.count_replaced(),
            final_replicas=self.runtime.serving_replicas(),
            timeline=tuple(self.timeline),
            shed=self.shed,
            batches=tuple(replace(batch, start_s=batch.start_s - self.start_s) for batch in batches),
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
            state = ScalingState(self.runtime.serving_replicas(), self.runtime.batch_sizes())
            if not self.timeline or self.timeline[-1][1] != state or now_s - self.timeline[-1][0] >= TICK_S:
                self.timeline.append((now_s, state))
            if tuner is not None and math.floor(now_s) > last_decision_s:
                last_decision_s = math.floor(now_s)
                tuner.adjust(self.runtime, arrivals[: int(np.searchsorted(arrivals, now_s))], now_s)
            await asyncio.sleep(POLL_INTERVAL_S)


def _keep_time(moments_s: FloatArray, schedule_send: Callable[[int], object]) -> float:
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
