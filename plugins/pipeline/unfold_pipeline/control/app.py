"""The controller as a service: its two background loops, and its health, status and metrics over HTTP."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from unfold_pipeline.control.controller import DeploymentController
from unfoldkit.api import UnfoldError
from unfoldkit.kubernetes.api import ApiError
from unfoldkit.serving.service import ASGIApp

RENEWALS_PER_LEASE = 3
STOP_TIMEOUT_S = 20.0
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PATHS = ("/v2/health/ready", "/status", "/metrics")


@dataclass(frozen=True, slots=True, eq=False)
class ControlCollector:
    """Reports the state of a controller at each scrape: a ``Collector`` of prometheus_client by structure."""

    controller: DeploymentController

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the controller."""
        controller, record = self.controller, self.controller.record
        yield GaugeMetricFamily(
            "unfold_tuner_leader", "Whether this process scales", float(controller.role == "leader")
        )
        for name, text, value in (
            ("unfold_tuner_arrivals_per_second", "Demand of the last 30 s", record.rate),
            ("unfold_tuner_signal_age_seconds", "Age of the demand at the last reading", record.age_s),
        ):
            if not math.isnan(value):
                yield GaugeMetricFamily(name, text, value)
        failures = CounterMetricFamily("unfold_tuner_signal_failures", "Readings that failed", labels=("reason",))
        for reason, count in record.failures.items():
            failures.add_metric((reason,), count)
        changes = CounterMetricFamily(
            "unfold_tuner_replica_changes", "Replicas added and removed", labels=("stage", "direction")
        )
        for labels, count in record.changes.items():
            changes.add_metric(labels, count)
        replicas = GaugeMetricFamily("unfold_tuner_replicas", "Replicas of a stage", labels=("stage", "state"))
        for step in record.steps:
            replicas.add_metric((step.stage, "demanded"), step.next)
            replicas.add_metric((step.stage, "existing"), step.existing)
            replicas.add_metric((step.stage, "wanted"), step.wanted)
        yield from (failures, changes, replicas)


def build_control_app(name: str, controller: DeploymentController, every_s: float) -> ASGIApp:
    """Return the application; its lifespan runs the controller, and gives the lease up at the end.

    Args:
        name: Name of the spec.
        controller: What it runs.
        every_s: Time between two decisions.
    """
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    registry = CollectorRegistry()
    registry.register(ControlCollector(controller))

    async def get_live(_request: Request) -> JSONResponse:
        return JSONResponse({"live": True})

    async def get_ready(_request: Request) -> JSONResponse:
        return JSONResponse({"ready": controller.record.is_ready}, 200 if controller.record.is_ready else 503)

    async def get_status(_request: Request) -> JSONResponse:
        return JSONResponse({"name": name, **describe_control(controller)})

    async def get_metrics(_request: Request) -> Response:
        return Response(generate_latest(registry), media_type=METRICS_TYPE)

    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        async with _running(controller, every_s):
            yield

    routes = [
        Route("/v2/health/live", get_live),
        Route("/v2/health/ready", get_ready),
        Route("/status", get_status),
        Route("/metrics", get_metrics),
    ]
    return Starlette(lifespan=lifespan, routes=routes)


def describe_control(controller: DeploymentController) -> dict[str, Any]:
    """Return role, demand, last decision and errors of a controller as plain data."""
    record = controller.record
    demand = {
        "source": controller.source.location,
        "queries_per_second": None if math.isnan(record.rate) else round(record.rate, 3),
        "age_s": None if math.isnan(record.age_s) else round(record.age_s, 3),
        "error": record.signal_error,
        "failures": dict(record.failures),
    }
    return {
        "role": controller.role,
        "target": controller.target.location,
        "error": record.error,
        "demand": demand,
        "stages": [asdict(step) for step in record.steps],
    }


@asynccontextmanager
async def _running(controller: DeploymentController, every_s: float) -> AsyncIterator[None]:
    stopping = asyncio.Event()
    await asyncio.to_thread(controller.renew)
    # a slow query must not cost the lease, so that each has a loop of its own
    loops = [
        asyncio.create_task(_repeat(controller.renew, controller.target.lease_s / RENEWALS_PER_LEASE, stopping)),
        asyncio.create_task(_repeat(controller.step, every_s, stopping)),
    ]
    try:
        yield
    finally:
        stopping.set()
        await asyncio.wait(loops, timeout=STOP_TIMEOUT_S)
        await asyncio.to_thread(_release, controller)


def _release(controller: DeploymentController) -> None:
    try:
        controller.target.release()
    except (UnfoldError, ApiError) as error:
        logging.getLogger("unfoldkit").warning("the lease is not released, and ends by itself: %s", error)


async def _repeat(act: Callable[[], None], pause_s: float, stopping: asyncio.Event) -> None:
    while not stopping.is_set():
        try:
            await asyncio.to_thread(act)
        except Exception:
            # the next attempt may succeed; ending here would freeze all replica counts
            logging.getLogger("unfoldkit").exception("the controller failed; replica counts stay as they are")
        try:
            await asyncio.wait_for(stopping.wait(), pause_s)
        except TimeoutError:
            continue
