"""Admission control rejects only queries that would be answered far too late."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unfold_pipeline.estimator.admission import CompletionRate, compute_useful_wait
from unfold_pipeline.estimator.simulator import build_constant_targets, compute_admission_deadlines, simulate_targets
from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.problem.pipeline import Edge, HardwareOption, Pipeline, Stage, StageConfig, interpolate_latency
from unfold_pipeline.problem.sample import draw_sample
from unfold_pipeline.report.plan_file import PlannedEnvelope
from unfold_pipeline.runtime.local import LocalRuntime
from unfold_pipeline.serving.app import build_app
from unfold_pipeline.serving.dashboard import PlannedService
from unfold_pipeline.serving.inference import ServiceSettings

Times = NDArray[np.float64]
CPU = HardwareOption("core", 0.05, interpolate_latency([(1, 0.05)]))


def admitted(arrivals: Times, seconds: float, servers: int, limit: float) -> tuple[Times, int]:
    """Serve admitted queries first in, first out; return arrivals with their delays, and the number rejected."""
    completion_rate, busy, line, served, rejected = (
        CompletionRate(compute_useful_wait(limit)),
        list[float](),
        deque[float](),
        list[tuple[float, float]](),
        0,
    )
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
            serve(end)
            completion_rate.record_completion(len(line) + len(busy), servers, end)
        if now == math.inf:
            break
        if completion_rate.predict_excess_wait(len(line) + len(busy), servers, now):
            rejected += 1
            continue
        line.append(now)
        serve(now)
    return np.array(served), rejected


@pytest.mark.parametrize("load", [1.5, 5.0, 20.0])
@pytest.mark.parametrize("limit", [0.05, 0.3])
def test_overload_keeps_replicas_busy_and_delays_short(load: float, limit: float) -> None:
    """Under overload the replicas stay busy, and after a few seconds no query waits longer than is useful."""
    rng = np.random.default_rng(0)
    arrivals = np.cumsum(rng.exponential(1.0 / (load * 200.0), int(load * 200.0 * 60.0)))
    served, rejected = admitted(arrivals, 0.01, 2, limit)
    assert len(served) >= 0.98 * 200.0 * 60.0
    assert rejected > 0
    settled = served[served[:, 0] > 10 * compute_useful_wait(limit)]
    assert settled[:, 1].max() <= 1.3 * compute_useful_wait(limit)


@pytest.mark.parametrize("seed", range(3))
def test_queries_that_will_be_answered_soon_are_admitted(seed: int) -> None:
    """Traffic below capacity and short bursts are answered completely."""
    rng = np.random.default_rng(seed)
    steady = np.cumsum(rng.exponential(1.0 / 160.0, 160 * 60))
    bursts = np.concatenate([np.arange(20.0) + 1.0 / 3.0] * 80)
    assert admitted(steady, 0.01, 2, 0.3)[1] == 0
    assert admitted(np.sort(bursts), 0.01, 2, 0.3)[1] == 0
    assert admitted(np.sort(np.concatenate([bursts, np.arange(0, 20, 0.02)])), 0.01, 2, 0.3)[1] == 0


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
        pipe, sample, plan, held, 0.0, deadlines_s=compute_admission_deadlines(pipe, plan, compute_useful_wait(limit))
    )
    assert found.shed_rate == pytest.approx(rejected / arrivals.size, abs=0.01)
    assert 1 - found.miss_rate(limit) == pytest.approx((served[:, 1] <= limit).sum() / arrivals.size, abs=0.02)
    assert found.miss_rate(limit) < free.miss_rate(limit)


def test_retry_delay_is_capped_at_a_minute() -> None:
    """After seconds with hardly any completion, a new query is asked to retry within a minute."""
    completion_rate = CompletionRate(compute_useful_wait(0.1))
    completion_rate.predict_excess_wait(500, 1, 0.0)
    completion_rate.record_completion(499, 1, 0.1)
    assert 30.0 < completion_rate.predict_excess_wait(499, 1, 9.0) <= 60.0


def test_without_a_target_all_queries_are_admitted() -> None:
    """With an infinite target no query is rejected, however many wait."""
    assert admitted(np.linspace(0.0, 1.0, 5000), 0.01, 1, math.inf)[1] == 0


def test_server_rejects_long_waits_and_answers_admitted_requests(tmp_path: Path) -> None:
    """A request behind seconds of work gets a retry time; all admitted requests are answered."""
    (tmp_path / "served.py").write_text("import time\n\ndef nap(rows):\n    time.sleep(0.05)\n    return rows\n")
    pipeline, plan = Pipeline((Stage("a", (), (CPU,)),)), (StageConfig(0, 1, 1),)
    running = LocalRuntime(["a"], [ModelSource(code="served:nap", folder=str(tmp_path))], plan)
    promise = PlannedService(0.1, 0.99, (), PlannedEnvelope(np.empty(0), np.empty(0, dtype=np.int64)))
    app = build_app("pipe", pipeline, running, 2, ServiceSettings(0, None, promise))

    async def ask() -> tuple[int, int]:
        sent: list[Any] = []
        body = b'{"inputs":[{"name":"x","datatype":"FP64","shape":[1,2],"data":[1,2]}]}'

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await app({"type": "http", "method": "POST", "path": "/v2/models/pipe/infer", "headers": []}, receive, send)
        return int(sent[0]["status"]), int(dict(sent[0]["headers"]).get(b"retry-after", 0))

    async def scene() -> tuple[list[tuple[int, int]], tuple[int, int], tuple[int, int]]:
        await running.start()
        before = [asyncio.create_task(ask()) for _ in range(80)]
        await asyncio.sleep(1.0)
        rejected = await ask()
        found = await asyncio.gather(*before)
        after = await ask()
        await running.stop()
        return found, rejected, after

    found, rejected, after = asyncio.run(asyncio.wait_for(scene(), 120))
    assert {code for code, _ in [*found, after]} == {200}
    assert rejected[0] == 429
    assert rejected[1] >= 2
