"""Who would be answered far too late is refused, and nobody else."""

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
    """Serve, first in, first out, whom a pace lets in; return when each came and how long it took, and the refused."""
    pace, busy, line, told, refused = (
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
            told.append((came := began[end].popleft(), end - came))
            serve(end)
            pace.record_completion(len(line) + len(busy), servers, end)
        if now == math.inf:
            break
        if pace.predict_excess_wait(len(line) + len(busy), servers, now):
            refused += 1
            continue
        line.append(now)
        serve(now)
    return np.array(told), refused


@pytest.mark.parametrize("load", [1.5, 5.0, 20.0])
@pytest.mark.parametrize("limit", [0.05, 0.3])
def test_overload_keeps_all_busy_and_waits_short(load: float, limit: float) -> None:
    """Under overload as many are answered as can be, and after a few seconds none waits longer than is worth it."""
    rng = np.random.default_rng(0)
    arrivals = np.cumsum(rng.exponential(1.0 / (load * 200.0), int(load * 200.0 * 60.0)))
    told, refused = admitted(arrivals, 0.01, 2, limit)
    assert len(told) >= 0.98 * 200.0 * 60.0
    assert refused > 0
    settled = told[told[:, 0] > 10 * compute_useful_wait(limit)]
    assert settled[:, 1].max() <= 1.3 * compute_useful_wait(limit)


@pytest.mark.parametrize("seed", range(3))
def test_who_would_be_answered_soon_is_never_refused(seed: int) -> None:
    """Traffic below capacity, and bursts that are over soon, are answered whole."""
    rng = np.random.default_rng(seed)
    steady = np.cumsum(rng.exponential(1.0 / 160.0, 160 * 60))
    bursts = np.concatenate([np.arange(20.0) + 1.0 / 3.0] * 80)
    assert admitted(steady, 0.01, 2, 0.3)[1] == 0
    assert admitted(np.sort(bursts), 0.01, 2, 0.3)[1] == 0
    assert admitted(np.sort(np.concatenate([bursts, np.arange(0, 20, 0.02)])), 0.01, 2, 0.3)[1] == 0


@pytest.mark.parametrize("load", [1.05, 1.5, 3.0])
def test_a_replay_knows_what_a_service_refuses(load: float) -> None:
    """Stages that drop what waited too long lose as many as the door of a service refuses, and as many are in time."""
    rng, limit = np.random.default_rng(1), 0.3
    pieces = [start + np.sort(rng.random(int(rate * 30.0))) * 30.0 for start, rate in ((0, 120), (30, load * 200))]
    arrivals = np.concatenate([*pieces, 60.0 + np.sort(rng.random(3600)) * 30.0])
    told, refused = admitted(arrivals, 0.01, 2, limit)
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
    assert found.shed_rate == pytest.approx(refused / arrivals.size, abs=0.01)
    assert 1 - found.miss_rate(limit) == pytest.approx((told[:, 1] <= limit).sum() / arrivals.size, abs=0.02)
    assert found.miss_rate(limit) < free.miss_rate(limit)


def test_nobody_is_sent_away_for_long() -> None:
    """After seconds in which next to nothing ended who comes is told to come back within a minute."""
    pace = CompletionRate(compute_useful_wait(0.1))
    pace.predict_excess_wait(500, 1, 0.0)
    pace.record_completion(499, 1, 0.1)
    assert 30.0 < pace.predict_excess_wait(499, 1, 9.0) <= 60.0


def test_without_a_target_nobody_is_refused() -> None:
    """Where no time is too long nobody is refused, however many wait."""
    assert admitted(np.linspace(0.0, 1.0, 5000), 0.01, 1, math.inf)[1] == 0


def test_server_refuses_what_would_wait_long_and_answers_the_rest(tmp_path: Path) -> None:
    """Who comes behind seconds of work is told when to come back, and then is answered, as all are who came before."""
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
        refused = await ask()
        found = await asyncio.gather(*before)
        after = await ask()
        await running.stop()
        return found, refused, after

    found, refused, after = asyncio.run(asyncio.wait_for(scene(), 120))
    assert {code for code, _ in [*found, after]} == {200}
    assert refused[0] == 429
    assert refused[1] >= 2
