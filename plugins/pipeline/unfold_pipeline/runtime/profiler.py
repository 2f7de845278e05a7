"""Profile a model: the time of batches of each size through the queue, pipe and process that serve it later."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from unfold_pipeline._types import Tensors
from unfold_pipeline.problem.latency_profile import BatchTiming, summarize_timings
from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.problem.pipeline import HardwareOption, Pipeline, Stage, StageConfig, interpolate_latency
from unfold_pipeline.problem.routing import build_routes
from unfold_pipeline.problem.sample import draw_sample
from unfold_pipeline.runtime.affinity import list_local_cores, pin_process
from unfold_pipeline.runtime.local import LocalRuntime
from unfold_pipeline.runtime.stage import PlannedStage, Query, build_hang_error
from unfoldkit.api import user_error

DEFAULT_MAX_BATCH = 32
WARM_UP_CALLS = 5
MIN_CALLS = 20
MAX_CALLS = 400
MEASURED_S = 0.25
ROUNDS = 8
PAUSES = 40
PAUSE_S = 0.01
MIN_DRIFT = 2.0
"""The load of other processes changes the times of batches by less in most measurements."""
SINGLE_STAGE = Pipeline((Stage("alone", (), (HardwareOption("", 0.0, interpolate_latency([(1, 1.0)])),)),))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileJob:
    """A stage to profile.

    Attributes:
        stage: Its name.
        source: Its model.
        rows: What the model reads for each of some queries: rows of numbers, or tensors by name.
        batches: Batch sizes to measure.
        made_from: Fingerprint of the model.
        is_pinned: Whether its replicas are pinned to a core.
    """

    stage: str
    source: ModelSource
    rows: Sequence[Tensors]
    batches: tuple[int, ...]
    made_from: str
    is_pinned: bool = False


def list_batch_sizes(max_batch: int) -> tuple[int, ...]:
    """Return the powers of two up to ``max_batch``, and ``max_batch``."""
    return tuple(
        sorted({*(1 << power for power in range(max_batch.bit_length()) if 1 << power <= max_batch), max_batch})
    )


def profile_model(job: ProfileJob, seed: int, clock: Callable[[], float]) -> list[BatchTiming]:
    """Return a timing for each batch size, after a warm-up.

    All sizes are measured in turn, several times, and a pinned replica on several cores: the speed of a core changes
    from second to second with the load of its neighbours.
    """
    return asyncio.run(_Profiler(job, clock).run(seed))


def measure_drift(seconds: Sequence[Sequence[float]]) -> float:
    """Return how many times as long as the first third of the calls the last third took, at each batch size at least.

    Sizes are measured in turn. Only what all of them share is a drift of the model; 1 is none.

    Args:
        seconds: Of each call in order, by batch size; none is empty.
    """
    thirds = [np.array_split(np.asarray(calls), 3) for calls in seconds if len(calls) >= MIN_CALLS]
    ratios = [float(np.median(last) / max(np.median(first), 1e-9)) for first, _, last in thirds]
    if not ratios:
        return 1.0
    return max(1.0, min(ratios)) if min(ratios) > 1 else min(1.0, max(ratios))


# not frozen: calls arrive over time
@dataclass(slots=True)
class _BatchCalls:
    """Measured seconds of one batch size, of each call and of each call after a pause."""

    batch: int
    rng: np.random.Generator
    seconds: list[float] = field(default_factory=list)
    idle_seconds: list[float] = field(default_factory=list)
    model_s: float = 0.0
    cpu_s: float = 0.0

    @property
    def cpu_fraction(self) -> float:
        """Fraction of the time in the model in which a core was busy."""
        return min(1.0, self.cpu_s / max(self.model_s, 1e-9))

    def draw_rows(self, rows: Sequence[Tensors]) -> list[Tensors]:
        """Return a batch of random rows."""
        return [rows[index] for index in self.rng.integers(0, len(rows), self.batch)]


@dataclass(slots=True)
class _Profiler:
    """Runs a job on one replica."""

    job: ProfileJob
    clock: Callable[[], float]
    runtime: LocalRuntime = field(init=False)

    async def run(self, seed: int) -> list[BatchTiming]:
        """Measure all batch sizes."""
        allocator = list_local_cores() if self.job.is_pinned else None
        stage = PlannedStage(name=self.job.stage, source=self.job.source, config=StageConfig(0, 1, 1))
        self.runtime = LocalRuntime([stage], cores=allocator)
        calls = [_BatchCalls(batch, np.random.default_rng([seed, batch])) for batch in self.job.batches]
        try:
            await self.runtime.start()
            for turn in range(ROUNDS):
                if allocator:
                    self._move_replica(allocator.cores[:: max(1, len(allocator.cores) // ROUNDS)], turn)
                for batch_calls in calls:
                    await self._measure(batch_calls, 1 / (ROUNDS - turn))
            await self._measure_after_pauses(calls[0])
        finally:
            await self.runtime.stop()
        self._warn_of_drift([measured.seconds for measured in calls])
        return [
            summarize_timings(measured.batch, measured.seconds, measured.idle_seconds, measured.cpu_fraction)
            for measured in calls
        ]

    def _warn_of_drift(self, seconds: Sequence[Sequence[float]]) -> None:
        drift = measure_drift(seconds)
        if not 1 / MIN_DRIFT < drift < MIN_DRIFT:
            text = "%s: at the end of the measurement batches took %.2g times as long as at its beginning: %s"
            reason = (
                "does the model keep data?" if drift > 1 else "the model still warmed up, and is faster than measured"
            )
            logging.getLogger("unfoldkit").warning(text, self.job.stage, drift, reason)

    def _move_replica(self, cores: Sequence[int], turn: int) -> None:
        for worker in self.runtime.stages[0].workers:
            pin_process(worker.replica.process.pid, cores[turn % len(cores)])

    async def _measure(self, calls: _BatchCalls, fraction: float) -> None:
        """Measure a fraction of the calls that a batch size still needs, after a warm-up."""
        stage = self.runtime.stages[0]
        stage.max_batch = calls.batch
        for _ in range(1 if calls.seconds else WARM_UP_CALLS):
            await self._call(calls)
        stage.model_s = stage.cpu_s = 0.0
        done = len(calls.seconds)
        needed = (MIN_CALLS - done, MAX_CALLS - done, MEASURED_S - sum(calls.seconds))
        min_calls, max_calls, seconds = (max(fraction * amount, 0.0) for amount in needed)
        start_s = self.clock()
        while (count := len(calls.seconds) - done) < max_calls and (
            count < min_calls or self.clock() - start_s < seconds
        ):
            calls.seconds.append(await self._call(calls))
        calls.model_s, calls.cpu_s = calls.model_s + stage.model_s, calls.cpu_s + stage.cpu_s

    async def _measure_after_pauses(self, calls: _BatchCalls) -> None:
        self.runtime.stages[0].max_batch = calls.batch
        for _ in range(PAUSES):
            await asyncio.sleep(PAUSE_S)
            calls.idle_seconds.append(await self._call(calls))

    async def _call(self, calls: _BatchCalls) -> float:
        """Return the seconds from the arrival of a batch of queries to the last of their answers."""
        rows = calls.draw_rows(self.job.rows)
        finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sample = draw_sample(SINGLE_STAGE, np.zeros(len(rows)), np.random.default_rng(0))
        routes = build_routes(SINGLE_STAGE, sample)
        open_queries, stage = len(rows), self.runtime.stages[0]

        def finish_query(answers: dict[str, object] | None) -> None:
            nonlocal open_queries
            open_queries -= 1
            if (answers is None or stage.last_error) and not finished.done():
                reason = f": {stage.last_error}" if stage.last_error else " and ends its process"
                message = f"the model fails on a batch of {len(rows)}{reason}"
                hint = "can it answer a batch of such rows? max_batch limits it"
                finished.set_exception(user_error(message, key=f"stages.{stage.name}.model", hint=hint))
            elif open_queries == 0 and not finished.done():
                finished.set_result(None)

        start_s = self.clock()
        for number, row in enumerate(rows):
            self.runtime.submit(Query(row, routes, number, finish_query))
        try:
            await asyncio.wait_for(finished, self.job.source.start_s)
        except TimeoutError as error:
            raise build_hang_error(stage.name, f"a batch of {len(rows)}", self.job.source.start_s) from error
        return self.clock() - start_s
