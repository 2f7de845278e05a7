"""The background loop of a service: start and stop the replicas, bill them, and apply the scaling rule each second."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np

from unfold_pipeline.estimator.replica_schedule import TICK_S
from unfold_pipeline.replay.load_generator import LiveTuner
from unfold_pipeline.runtime.local import PipelineRuntime
from unfold_pipeline.runtime.stage import read_clock
from unfold_pipeline.serving.dashboard import ServiceRecord
from unfold_pipeline.serving.inference import ServiceSettings
from unfoldkit.api import UnfoldError
from unfoldkit.serving.service import Receive, Send


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
    loop = asyncio.create_task(_run_loop(runtime, settings, record))
    try:
        yield
    finally:
        loop.cancel()
        await runtime.stop()


async def _run_loop(runtime: PipelineRuntime, settings: ServiceSettings, record: ServiceRecord) -> None:
    options = settings.planned.options if settings.planned else ()
    while True:
        await asyncio.sleep(TICK_S)
        if options:
            record.bill_replicas([stage["replicas"] for stage in runtime.list_status()], options)
        if settings.tuner is not None:
            await _apply_rule(runtime, settings.tuner, record)


async def _apply_rule(runtime: PipelineRuntime, tuner: LiveTuner, record: ServiceRecord) -> None:
    if not record.arrivals:
        return
    now_s = float(math.floor(read_clock() - record.start_s))
    try:
        # with a hundred thousand arrivals a rule takes tens of milliseconds, in which requests must not wait
        targets = await asyncio.to_thread(tuner.rule, np.array(record.arrivals), now_s)
        tuner.apply_targets(runtime, targets)
    except Exception:
        # the rule may succeed in the next second; ending here would freeze all replica counts
        logging.getLogger("unfoldkit").exception("the scaling rule failed; replica counts stay unchanged")
