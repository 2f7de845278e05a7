"""The background loop of a service: start and stop the replicas, bill them, and apply the scaling rule each second."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from unfold_pipeline.estimator.replica_schedule import TICK_S
from unfold_pipeline.report.sentences import describe_branch
from unfold_pipeline.runtime.live_tuner import LiveTuner, apply_state
from unfold_pipeline.runtime.local import PipelineRuntime
from unfold_pipeline.runtime.stage import read_clock
from unfold_pipeline.serving.dashboard import ServiceRecord
from unfold_pipeline.serving.inference import ServiceSettings
from unfoldkit.api import UnfoldError
from unfoldkit.serving.service import Receive, Send

EARLY_TICKS = 0.05


async def run_lifespan(
    receive: Receive, send: Send, runtime: PipelineRuntime, settings: ServiceSettings, record: ServiceRecord
) -> None:
    """Run the replicas between the startup and the shutdown message of ASGI's lifespan protocol."""
    await receive()
    try:
        async with _run_replicas(runtime, settings, record):
            await send({"type": "lifespan.startup.complete"})
            await receive()
    except UnfoldError as error:
        await send({"type": "lifespan.startup.failed", "message": str(error), "error": error})
        return
    await send({"type": "lifespan.shutdown.complete"})


@asynccontextmanager
async def _run_replicas(
    runtime: PipelineRuntime, settings: ServiceSettings, record: ServiceRecord
) -> AsyncIterator[None]:
    await runtime.start()
    record.billed_until_s = read_clock()
    _store_activation(runtime, settings)
    loop = asyncio.create_task(_run_loop(runtime, settings, record))
    try:
        yield
    finally:
        loop.cancel()
        _store_activation(runtime, settings)
        await runtime.stop()


def _store_activation(runtime: PipelineRuntime, settings: ServiceSettings) -> None:
    names = [stage["name"] for stage in runtime.list_status()]
    settings.store_activation(dict(zip(names, runtime.activation_times(), strict=True)))


async def _run_loop(runtime: PipelineRuntime, settings: ServiceSettings, record: ServiceRecord) -> None:
    options = settings.planned.options if settings.planned else ()
    reported = set[str]()
    while True:
        await asyncio.sleep(_compute_pause(record))
        _warn_of_branches(runtime, settings, reported)
        if options:
            record.bill_replicas([stage["replicas"] for stage in runtime.list_status()], options)
        if settings.tuner is not None and record.arrivals.total:
            await _apply_rule(runtime, settings.tuner, record)


def _warn_of_branches(runtime: PipelineRuntime, settings: ServiceSettings, reported: set[str]) -> None:
    """Warn once of each condition that lets through another fraction than planned: which plan and rule assume."""
    if settings.planned is None:
        return
    for branch in settings.planned.branches([stage["served"] for stage in runtime.list_status()]):
        if branch.deviates and branch.stage not in reported:
            reported.add(branch.stage)
            message = describe_branch(branch.stage, branch.planned, branch.measured)
            logging.getLogger("unfoldkit").warning("stages.%s", message)


def _compute_pause(record: ServiceRecord) -> float:
    """Return the seconds until the next whole second since the first query, as in a replay."""
    if not record.arrivals.total:
        return TICK_S
    return TICK_S - (read_clock() - record.start_s - record.arrivals.first_s) % TICK_S


async def _apply_rule(runtime: PipelineRuntime, tuner: LiveTuner, record: ServiceRecord) -> None:
    first_s = record.arrivals.first_s
    # a timer may fire a moment early
    now_s = math.floor((read_clock() - record.start_s - first_s) / TICK_S + EARLY_TICKS) * TICK_S
    if tuner.decisions and now_s <= tuner.decisions[-1][0]:
        return
    try:
        tuner.follow_activation(runtime)
        # with a hundred thousand arrivals a rule takes tens of milliseconds, in which requests must not wait
        state = await asyncio.to_thread(tuner.decide, record.arrivals.list_arrivals() - first_s, now_s)
        apply_state(runtime, state)
    except Exception:
        # the rule may succeed in the next second; ending here would freeze all replica counts
        logging.getLogger("unfoldkit").exception("the scaling rule failed; replica counts stay unchanged")
