"""Play a trace, open loop, against the running pipeline, and lay what was measured beside the estimate."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unfold_pipeline.estimator.replica_schedule import TICK, Step
from unfold_pipeline.problem.pipeline import Pipeline
from unfold_pipeline.problem.quotas import Limits
from unfold_pipeline.problem.routing import routes
from unfold_pipeline.problem.sample import Sample
from unfold_pipeline.runtime.local import Running
from unfold_pipeline.runtime.model_loader import Rows
from unfold_pipeline.runtime.scheduler_priority import prompt
from unfold_pipeline.runtime.stage import Batch, Query, clock

Times = NDArray[np.float64]
LOOK_S = 0.1
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Tuner:
    """The rule in charge of replicas and batches, told all arrivals until a second, and the quotas it is held to."""

    rule: Callable[[Times, float], Step]
    limits: Limits


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of each query from its arrival in the trace (inf: no answer), and what the stages counted.

    ``timeline`` holds the time in s and the replicas of each stage that serve, with their largest batch: each second,
    and when they change. ``batches`` are those that were served, from the first arrival's clock on, where the engine
    tells of them.
    """

    latencies: Times
    lateness: float
    replaced: int
    last: tuple[int, ...]
    timeline: tuple[tuple[float, Step], ...] = ()
    shed: int = 0
    batches: tuple[Batch, ...] = ()

    @property
    def lost(self) -> int:
        """Queries that were never answered, though nobody refused them."""
        return int(np.isinf(self.latencies).sum()) - self.shed


async def drive(
    runtime: Running,
    pipeline: Pipeline,
    sample: Sample,
    rows: Rows,
    tuner: Tuner | None,
    progress: Progress,
    patience: float = math.inf,
) -> Measured:
    """Send each query at its time, whatever became of those before, and wait for all answers.

    Latency counts from the arrival in the trace, so that a sender that is late itself hides nothing. A query that
    cannot be answered within ``patience`` seconds of it is shed.
    """
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    latencies = np.full(sample.size, np.inf)
    left, shed = sample.size, 0
    waiting: dict[int, Query] = {}
    way = routes(pipeline, sample)
    began = clock() + 0.05
    batches: list[Batch] = []
    runtime.listen(batches.append)

    def finished(number: int, answers: dict[str, object] | None) -> None:
        nonlocal left, shed
        query = waiting.pop(number, None)
        if query is None:
            return
        if answers is not None:
            latencies[number] = clock() - began - sample.arrivals[number]
        left, shed = left - 1, shed + query.shed
        if left == 0:
            done.set_result(None)

    seen: list[tuple[float, Step]] = []
    watch = asyncio.create_task(_watch(runtime, tuner, sample.arrivals, began, seen))

    def send(number: int) -> None:
        due = began + sample.arrivals[number] + patience
        query = Query(rows[number % len(rows)], way, number, functools.partial(finished, number), due=due)
        waiting[number] = query
        runtime.submit(query)
        if number % 64 == 0:
            progress("replay", number, sample.size)

    def tell(number: int) -> None:
        loop.call_soon_threadsafe(send, number)

    late = await asyncio.to_thread(_keep_time, began + sample.arrivals, tell)
    await done
    watch.cancel()
    # a rule that failed on the way was not in charge to the end, and the figures are not its own
    with contextlib.suppress(asyncio.CancelledError):
        await watch
    heard = tuple(replace(batch, began=batch.began - began) for batch in batches)
    return Measured(latencies, late, runtime.replaced(), runtime.serving(), tuple(seen), shed, heard)


def _keep_time(moments: Times, tell: Callable[[int], object]) -> float:
    """Tell the number of each moment when it has come; return the greatest delay in seconds.

    In a thread of its own: the timers of an event loop are coarser than a millisecond.
    """
    prompt()
    late = 0.0
    for number, moment in enumerate(moments.tolist()):
        time.sleep(max(0.0, moment - clock()))
        late = max(late, clock() - moment)
        tell(number)
    return late


async def _watch(
    runtime: Running,
    tuner: Tuner | None,
    arrivals: Times,
    began: float,
    seen: list[tuple[float, Step]],
) -> None:
    """Note how many replicas serve, in which batches, and let the rule change each second how many there should be."""
    second = -math.inf
    while True:
        now, step = clock() - began, Step(runtime.serving(), runtime.batches())
        if not seen or seen[-1][1] != step or now - seen[-1][0] >= TICK:
            seen.append((now, step))
        if tuner is not None and math.floor(now) > second:
            second = math.floor(now)
            tune(runtime, tuner, arrivals[: int(np.searchsorted(arrivals, now))], now)
        await asyncio.sleep(LOOK_S)


def tune(runtime: Running, tuner: Tuner, past: Times, now: float) -> None:
    """Let the rule change replicas and largest batches; ``past`` are all arrivals until ``now``, in s."""
    if past.size:
        order(runtime, tuner.limits, tuner.rule(past, float(math.floor(now))))


def order(runtime: Running, limits: Limits, wanted: Step) -> None:
    """Have a pipeline take on what a rule wants, within the quotas."""
    for index, count in enumerate(limits.shared(wanted.counts)):
        runtime.want(index, count, wanted.batches[index])
