"""Admission control rejects only queries that would be answered far too late."""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from plugins.pipeline.tests.helpers import plan_stages
from unfold_pipeline.estimator.admission import (
    ADMITTED_FRACTION,
    BatchSpeed,
    StageLoad,
    compute_retry_delay,
    predict_response_time,
)
from unfold_pipeline.estimator.simulator import build_constant_targets, compute_admission_deadlines, simulate_targets
from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.problem.pipeline import Edge, HardwareOption, Pipeline, Stage, StageConfig, interpolate_latency
from unfold_pipeline.problem.problem import compute_wait_bound
from unfold_pipeline.problem.routing import build_routes
from unfold_pipeline.problem.sample import draw_sample
from unfold_pipeline.report.plan_file import PlannedEnvelope
from unfold_pipeline.runtime.local import LocalRuntime
from unfold_pipeline.runtime.query_admission import QueryGate
from unfold_pipeline.runtime.stage import Query
from unfold_pipeline.serving.app import PipelineApp, build_app
from unfold_pipeline.serving.dashboard import PlannedService
from unfold_pipeline.serving.inference import ServiceSettings

Times = NDArray[np.float64]
CPU = HardwareOption("core", 0.05, interpolate_latency([(1, 0.05)]))
ALONE = Pipeline((Stage("a", (), (CPU,)),))


def admitted(arrivals: Times, seconds: float, servers: int, limit: float) -> tuple[Times, int]:
    """Serve admitted queries first in, first out; return arrivals with their delays, and the number rejected.

    The plan promises batches of half the time that they take.
    """
    busy, line, served, rejected = list[float](), deque[float](), list[tuple[float, float]](), 0
    speed = BatchSpeed(np.array([0.0, seconds / 2]))
    began: dict[float, deque[float]] = {}

    def serve(now: float) -> None:
        while line and len(busy) < servers:
            came = line.popleft()
            heapq.heappush(busy, now + seconds)
            began.setdefault(now + seconds, deque()).append(came)

    for now in [*arrivals.tolist(), math.inf]:
        while busy and busy[0] <= now:
            end = heapq.heappop(busy)
            served.append((came := began[end].popleft(), end - came))
            speed.observe(1, seconds)
            serve(end)
        if now == math.inf:
            break
        inside = len(line) + len(busy)
        load = StageLoad(items=inside, replicas=servers, max_batch=1, speed=speed)
        if compute_retry_delay(ALONE, [load], inside, ADMITTED_FRACTION * compute_wait_bound(limit)):
            rejected += 1
            continue
        line.append(now)
        serve(now)
    return np.array(served), rejected


@pytest.mark.slow
@pytest.mark.parametrize("load", [1.5, 5.0, 20.0])
@pytest.mark.parametrize("limit", [0.05, 0.3])
def test_overload_keeps_replicas_busy_and_delays_short(load: float, limit: float) -> None:
    """Under overload the replicas stay busy, and no query waits beyond the bound once the speed is known."""
    rng = np.random.default_rng(0)
    arrivals = np.cumsum(rng.exponential(1.0 / (load * 200.0), int(load * 200.0 * 60.0)))
    served, rejected = admitted(arrivals, 0.01, 2, limit)
    assert len(served) >= 0.98 * 200.0 * 60.0
    assert rejected > 0
    settled = served[served[:, 0] > 1.0]
    assert settled[:, 1].max() <= compute_wait_bound(limit)


@pytest.mark.parametrize("seed", range(3))
def test_queries_that_will_be_answered_soon_are_admitted(seed: int) -> None:
    """Traffic below capacity and short bursts are answered completely."""
    rng = np.random.default_rng(seed)
    steady = np.cumsum(rng.exponential(1.0 / 160.0, 160 * 60))
    bursts = np.concatenate([np.arange(20.0) + 1.0 / 3.0] * 80)
    assert admitted(steady, 0.01, 2, 0.3)[1] == 0
    assert admitted(np.sort(bursts), 0.01, 2, 0.3)[1] == 0
    assert admitted(np.sort(np.concatenate([bursts, np.arange(0, 20, 0.02)])), 0.01, 2, 0.3)[1] == 0


def test_prediction_follows_the_bottleneck() -> None:
    """What waits upstream counts at a slow stage with the probability of its edge, and service is added."""
    pipe = Pipeline((Stage("a", (), (CPU,)), Stage("b", (Edge(0, 0.5),), (CPU,))))
    quick, slow = BatchSpeed(np.array([0.0, 0.01])), BatchSpeed(np.array([0.0, 0.1, 0.1]))
    loads = [
        StageLoad(items=40, replicas=1, max_batch=1, speed=quick),
        StageLoad(items=10, replicas=1, max_batch=2, speed=slow),
    ]
    # (10 + 40 / 2) items in pairs of 0.1 s
    assert predict_response_time(pipe, loads, 50) == pytest.approx(1.5 + 0.01 + 0.1)
    # with 20 more rows, 10 of which visit the second stage
    assert predict_response_time(pipe, loads, 50, 21) == pytest.approx(2.0 + 0.01 + 0.1)


def test_without_replicas_queries_wait_for_one() -> None:
    """A stage without a replica admits what can be answered after its restart, and nothing else."""
    speed = BatchSpeed(np.array([0.0, 0.1]))
    load = StageLoad(items=1, replicas=0, max_batch=1, speed=speed, restart_s=3.0)
    assert compute_retry_delay(ALONE, [load], 1, 4.0) == 0.0
    assert compute_retry_delay(ALONE, [load], 1, 2.0) == pytest.approx(1.2)


@pytest.mark.parametrize("load", [1.05, 1.5, 3.0])
def test_simulated_admission_matches_the_service(load: float) -> None:
    """Stages with admission deadlines shed as many queries as the service rejects, with the same attainment."""
    rng, limit = np.random.default_rng(1), 0.3
    pieces = [start + np.sort(rng.random(int(rate * 30.0))) * 30.0 for start, rate in ((0, 120), (30, load * 200))]
    arrivals = np.concatenate([*pieces, 60.0 + np.sort(rng.random(3600)) * 30.0])
    served, rejected = admitted(arrivals, 0.01, 2, limit)
    quick = HardwareOption("core", 0.05, interpolate_latency([(1, 0.001)]))
    slow = HardwareOption("core", 0.05, interpolate_latency([(1, 0.01)]))
    pipe = Pipeline((Stage("a", (), (quick,)), Stage("b", (Edge(0),), (slow,)), Stage("c", (Edge(1),), (quick,))))
    plan = (StageConfig(0, 1, 1), StageConfig(0, 1, 2), StageConfig(0, 1, 1))
    sample = draw_sample(pipe, arrivals - arrivals[0], rng)
    held = build_constant_targets(plan, sample)
    free = simulate_targets(pipe, sample, plan, held, 0.0)
    found = simulate_targets(
        pipe, sample, plan, held, 0.0, deadlines_s=compute_admission_deadlines(pipe, plan, compute_wait_bound(limit))
    )
    assert found.shed_rate == pytest.approx(rejected / arrivals.size, abs=0.01)
    assert 1 - found.miss_rate(limit) == pytest.approx((served[:, 1] <= limit).sum() / arrivals.size, abs=0.02)
    assert found.miss_rate(limit) < free.miss_rate(limit)


def test_retry_delay_is_capped_at_a_minute() -> None:
    """However much waits, a new query is asked to retry within a minute."""
    load = StageLoad(items=5000, replicas=1, max_batch=1, speed=BatchSpeed(np.array([0.0, 1.0])))
    assert compute_retry_delay(ALONE, [load], 5000, 0.4) == 60.0


def test_slow_batches_do_not_end_the_traffic() -> None:
    """An idle replica admits a query although its last batches took longer than the bound."""
    speed = BatchSpeed(np.array([0.0, 0.1]))
    for _ in range(100):
        speed.observe(1, 5.0)
    idle = StageLoad(items=0, replicas=1, max_batch=1, speed=speed)
    assert compute_retry_delay(ALONE, [idle], 0, 0.4) == 0.0
    assert compute_retry_delay(ALONE, [replace(idle, items=1)], 1, 0.4) > 0.0


def test_without_a_target_all_queries_are_admitted() -> None:
    """With an infinite target no query is rejected, however many wait."""
    assert admitted(np.linspace(0.0, 1.0, 5000), 0.01, 1, math.inf)[1] == 0


def build_napping_app(folder: Path) -> tuple[PipelineApp, LocalRuntime]:
    """Return a pipeline of one stage that takes 50 ms, with a target of 200 ms, and its replicas."""
    (folder / "served.py").write_text("import time\n\ndef nap(rows):\n    time.sleep(0.05)\n    return rows\n")
    running = LocalRuntime(
        plan_stages(["a"], [ModelSource(code="served:nap", folder=str(folder))], (StageConfig(0, 1, 1),))
    )
    promise = PlannedService(0.2, 0.99, (), PlannedEnvelope(np.empty(0), np.empty(0, dtype=np.int64)))
    running.stages[0].speed.mean_s = 0.05
    return build_app("pipe", ALONE, running, 2, ServiceSettings(0, None, promise)), running


async def send_query(app: PipelineApp) -> tuple[int, int, float]:
    """Send a request; return its status, ``Retry-After`` (0: none), and the seconds until the response."""
    sent: list[Any] = []
    body = b'{"inputs":[{"name":"x","datatype":"FP64","shape":[1,2],"data":[1,2]}]}'
    began_s = time.perf_counter()

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "http", "method": "POST", "path": "/v2/models/pipe/infer", "headers": []}, receive, send)
    retry = int(dict(sent[0]["headers"]).get(b"retry-after", 0))
    return int(sent[0]["status"]), retry, time.perf_counter() - began_s


@pytest.mark.timed
def test_server_keeps_the_waiting_bound(tmp_path: Path) -> None:
    """Of 80 requests at once, those that fit into the bound are answered; the others get a retry time at once."""
    app, running = build_napping_app(tmp_path)

    async def scene() -> tuple[list[tuple[int, int, float]], int]:
        await running.start()
        found = await asyncio.gather(*(send_query(app) for _ in range(80)))
        after = 1
        # a query that ended at the bound may still occupy the replica
        while (await send_query(app))[0] != 200:
            await asyncio.sleep(0.2)
            after += 1
        await running.stop()
        return list(found), after

    found, after = asyncio.run(asyncio.wait_for(scene(), 120))
    answered = [seconds for code, _, seconds in found if code == 200]
    refused = [(retry, seconds) for code, retry, seconds in found if code == 429]
    assert len(answered) >= 8
    assert max(answered) <= 0.8
    assert len(refused) >= 60
    assert min(retry for retry, _ in refused) >= 1
    assert app.gateway.record.arrivals.total == 80 + after
    assert app.gateway.record.outcomes["refused"] == len(refused) + after - 1


def test_stopped_stage_is_unavailable(tmp_path: Path) -> None:
    """While no replica of a stage serves, queries which cannot wait for the next one get 503, not 429."""
    app, running = build_napping_app(tmp_path)

    async def scene() -> list[tuple[int, int]]:
        await running.start()
        stage = running.stages[0]
        stage.activation.seconds, stage.workers[0].is_ready = 7.0, False
        stopped = await send_query(app)
        stage.workers[0].is_ready = True
        served = await send_query(app)
        await running.stop()
        return [stopped[:2], served[:2]]

    assert asyncio.run(asyncio.wait_for(scene(), 60)) == [(503, 7), (200, 0)]
    assert app.gateway.record.outcomes["refused"] == 1


@pytest.mark.timed
def test_query_ends_at_the_bound(tmp_path: Path) -> None:
    """A query that was admitted and then takes too long ends with a refusal at the bound."""
    (tmp_path / "served.py").write_text("import time\n\ndef nap(rows):\n    time.sleep(1.5)\n    return rows\n")
    running = LocalRuntime(
        plan_stages(["a"], [ModelSource(code="served:nap", folder=str(tmp_path))], (StageConfig(0, 1, 1),))
    )
    gate = QueryGate(pipeline=ALONE, runtime=running, max_wait_s=0.4)
    routes = build_routes(ALONE, draw_sample(ALONE, np.zeros(1), np.random.default_rng(0)))

    async def scene() -> tuple[object, float, Query]:
        await running.start()
        ended: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        query = Query(np.zeros(2, np.float32), routes, 0, ended.set_result)
        began_s = time.perf_counter()
        gate.submit(query)
        answer = await ended
        seconds = time.perf_counter() - began_s
        await running.stop()
        return answer, seconds, query

    answer, seconds, query = asyncio.run(asyncio.wait_for(scene(), 60))
    assert answer is None
    assert query.is_shed
    assert 0.3 < seconds < 1.0
    assert gate.in_flight == 0


@dataclass(slots=True)
class ReplacedReplica:
    """Stands for a runtime with replicas that are lost and replaced while it holds a query."""

    serving: int
    replaced: int = 0

    def submit(self, query: Query) -> None:
        """Hold a query."""

    def serving_replicas(self) -> tuple[int, ...]:
        """Return how many replicas serve."""
        return (self.serving,)

    def count_replaced(self) -> int:
        """Return how many were replaced."""
        return self.replaced


@pytest.mark.parametrize(("serving", "lost", "is_shed"), [(1, 0, True), (1, 1, False), (10, 1, True), (2, 2, False)])
def test_a_query_outlives_the_loss_of_all_replicas(serving: int, lost: int, is_shed: bool) -> None:
    """A query which waited for a replica that was replaced is not shed, although another one serves by then."""
    runtime = ReplacedReplica(serving)
    gate = QueryGate(pipeline=ALONE, runtime=cast("Any", runtime), max_wait_s=0.1)
    routes = build_routes(ALONE, draw_sample(ALONE, np.zeros(1), np.random.default_rng(0)))

    async def scene() -> Query:
        query = Query(np.zeros(2, np.float32), routes, 0, lambda _answers: None)
        gate.submit(query)
        runtime.replaced = lost
        await asyncio.sleep(0.15)
        return query

    query = asyncio.run(scene())
    assert (query.is_shed, query.has_lost_replica) == (is_shed, not is_shed)
