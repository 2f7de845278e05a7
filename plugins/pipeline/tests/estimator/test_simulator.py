"""Shedding of late queries: in simulation, on running replicas, over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.pipeline.tests.helpers import plan_stages
from unfold_pipeline.estimator.simulator import (
    SimulatedTrace,
    build_constant_targets,
    compute_min_remaining_times,
    compute_queueing_deadlines,
    simulate_reactive_rule,
    simulate_targets,
)
from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.problem.pipeline import Edge, HardwareOption, Pipeline, Stage, StageConfig, interpolate_latency
from unfold_pipeline.problem.sample import draw_sample
from unfold_pipeline.replay.load_generator import MeasuredTrace, replay_trace
from unfold_pipeline.report.plan_file import PlannedEnvelope
from unfold_pipeline.runtime.local import LocalRuntime
from unfold_pipeline.runtime.stage import StageRuntime
from unfold_pipeline.serving.app import build_app
from unfold_pipeline.serving.dashboard import PlannedService
from unfold_pipeline.serving.inference import ServiceSettings
from unfold_pipeline.tuner.autoscalers import build_knative_rule, build_ray_serve_rule
from unfoldkit.arrivals import processes
from unfoldkit.serving.batching.batcher import Limits

CODE = """import time

def nap(rows):
    time.sleep(0.05)
    return rows.sum(axis=1)
"""
CPU = HardwareOption("core", 0.05, interpolate_latency([(1, 0.05), (2, 0.05)]))
ALONE = Pipeline((Stage("a", (), (CPU,)),))
JOIN = Pipeline(
    (
        Stage("in", (), (CPU,)),
        Stage("left", (Edge(0, 0.7),), (CPU,)),
        Stage("right", (Edge(0, 0.6),), (CPU,)),
        Stage("join", (Edge(1), Edge(2)), (CPU,)),
    )
)
PLAN = (StageConfig(0, 2, 1),) * 4
LIMIT = 0.3


def overloaded(pipeline: Pipeline, seed: int) -> Any:
    """Traffic of half as much again as one replica a stage can serve."""
    rng = np.random.default_rng(seed)
    return draw_sample(pipeline, processes.gamma_arrivals(60.0, 20.0, rng), rng)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("pipeline", "gain"), [(ALONE, 0.5), (JOIN, 0.05)])
def test_shedding_keeps_other_queries_in_time(pipeline: Pipeline, gain: float, seed: int) -> None:
    """Under overload more queries are in time with shedding, and shed ones count as misses."""
    sample, plan = overloaded(pipeline, seed), PLAN[: len(pipeline.stages)]
    patience = compute_queueing_deadlines(pipeline, plan, LIMIT)
    targets = build_constant_targets(plan, sample)
    without = simulate_targets(pipeline, sample, plan, targets, 0.0)
    shed = simulate_targets(pipeline, sample, plan, targets, 0.0, deadlines_s=patience)
    assert shed.miss_rate(LIMIT) < without.miss_rate(LIMIT) - gain
    assert shed.miss_rate(LIMIT) >= shed.shed_rate > 0
    assert without.shed_rate == 0


@pytest.mark.parametrize("build_rule", [build_ray_serve_rule, build_knative_rule])
def test_hours_without_a_query_are_skipped(build_rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace with gaps gets the same answers, orders and price, without a decision in each second of the gaps."""
    rng = np.random.default_rng(5)
    starts_s = np.repeat([0.0, 9_000.3, 9_800.0, 20_001.0], 400)
    sample = draw_sample(JOIN, starts_s + np.tile(np.sort(rng.uniform(0, 20, 400)), 4), rng)
    calls: list[float] = []

    def simulate() -> SimulatedTrace:
        rule = build_rule(PLAN, 20, [1.0] * len(PLAN))

        def decide(now_s: float, in_flight: Sequence[int], ordered: Sequence[int]) -> Sequence[int]:
            calls.append(now_s)
            return list(rule(now_s, in_flight, ordered))

        return simulate_reactive_rule(JOIN, sample, PLAN, decide, 3.0)

    skipping = simulate()
    assert len(calls) < 5000
    monkeypatch.setattr("unfold_pipeline.estimator.simulator.REST_TICKS", 10**9)
    calls.clear()
    whole = simulate()
    assert len(calls) > 20_000
    assert np.array_equal(skipping.latencies, whole.latencies)
    assert skipping.hourly_cost == pytest.approx(whole.hourly_cost, rel=1e-12)
    assert [schedule.history for schedule in skipping.schedules] == [schedule.history for schedule in whole.schedules]


@pytest.mark.parametrize("seed", range(4))
def test_sliced_simulation_with_shedding_equals_the_complete_one(seed: int) -> None:
    """A reactive rule that changes nothing gives every query the outcome of the complete simulation."""
    sample = overloaded(JOIN, seed)
    patience = compute_queueing_deadlines(JOIN, PLAN, LIMIT)
    whole = simulate_targets(JOIN, sample, PLAN, build_constant_targets(PLAN, sample), 0.0, deadlines_s=patience)
    looked = simulate_reactive_rule(JOIN, sample, PLAN, lambda _now, _inside, ordered: ordered, 0.0, patience)
    assert np.array_equal(whole.latencies, looked.latencies)


FULL = HardwareOption("core", 0.05, interpolate_latency([(1, 0.01), (4, 0.04)]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("factor", [1.2, 2.0, 5.0])
def test_answers_under_overload_are_in_time(factor: float, seed: int) -> None:
    """At any load, nearly all answers are in time, about as many as the replicas sustain."""
    pipeline, plan = Pipeline((Stage("a", (), (FULL,)), Stage("b", (Edge(0),), (FULL,)))), (StageConfig(0, 4, 1),) * 2
    rng = np.random.default_rng(seed)
    sample = draw_sample(pipeline, processes.gamma_arrivals(factor * 100.0, 20.0, rng), rng)
    patience = compute_queueing_deadlines(pipeline, plan, 0.2)
    shed = simulate_targets(pipeline, sample, plan, build_constant_targets(plan, sample), 0.0, deadlines_s=patience)
    assert shed.miss_rate(0.2) - shed.shed_rate < 0.05 * (1 - shed.shed_rate)
    assert (1 - shed.miss_rate(0.2)) * sample.size > 0.85 * 100.0 * 20.0


def test_stage_learns_the_remaining_time() -> None:
    """The slack follows the 95th percentile of the time beyond the least, within its limit."""
    stage = StageRuntime(
        name="a", source=ModelSource(), max_batch=4, target_replicas=1, min_remaining_s=0.01, max_slack_s=0.1
    )
    rng = np.random.default_rng(0)
    for low, high in ((0.03, 0.05), (0.01, 0.02)):
        for seconds in rng.uniform(low, high, 2000):
            stage.learn_remaining_time(0.01 + float(seconds))
        assert low < stage.slack_s < high + 0.01
    for _ in range(500):
        stage.learn_remaining_time(9.0)
    assert stage.slack_s == 0.1


def test_idle_pipeline_sheds_nothing() -> None:
    """Without waiting no query is shed; a target below the service time sheds all."""
    sample = draw_sample(ALONE, np.arange(20.0), np.random.default_rng(0))
    for limit, share in ((0.06, 0.0), (0.04, 1.0)):
        patience = compute_queueing_deadlines(ALONE, PLAN[:1], limit)
        assert (
            simulate_targets(
                ALONE, sample, PLAN[:1], build_constant_targets(PLAN[:1], sample), 0.0, deadlines_s=patience
            ).shed_rate
            == share
        )


def runtime(folder: Path, need: float) -> LocalRuntime:
    """One replica of a model that takes 50 ms."""
    (folder / "served.py").write_text(CODE)
    source = ModelSource(code="served:nap", folder=str(folder))
    return LocalRuntime(plan_stages(["a"], [source], PLAN[:1], min_remaining_s=need))


SLOW = """import time

def nap(rows):
    time.sleep(0.01 + 0.01 * len(rows))
    return rows.sum(axis=1)
"""


@pytest.mark.slow
def test_running_pipeline_answers_in_time_under_overload(tmp_path: Path) -> None:
    """At three times the capacity, most answers after the first second are in time."""
    option = HardwareOption("core", 0.05, interpolate_latency([(1, 0.02), (4, 0.05)]))
    pipeline, plan, limit = Pipeline((Stage("a", (), (option,)),)), (StageConfig(0, 4, 1),), 0.3
    (tmp_path / "slow.py").write_text(SLOW)
    source = ModelSource(code="slow:nap", folder=str(tmp_path))
    need = compute_min_remaining_times(pipeline, plan)[0]

    async def scene() -> MeasuredTrace:
        running = LocalRuntime(plan_stages(["a"], [source], plan, min_remaining_s=need, max_slack_s=(limit - need) / 2))
        await running.start()
        sample = draw_sample(pipeline, np.arange(960) / 240.0, np.random.default_rng(0))
        rows = np.ones((3, 2), dtype=np.float32)
        measured = await replay_trace(running, pipeline, sample, rows, None, lambda *_: None, limit)
        await running.stop()
        return measured

    measured = asyncio.run(asyncio.wait_for(scene(), 120))
    later = measured.latencies[240:]
    answered = later[np.isfinite(later)]
    assert answered.size > 100
    assert (answered <= limit).mean() > 0.7
    assert measured.lost == 0


def test_running_pipeline_sheds_without_loss(tmp_path: Path) -> None:
    """Under overload each query is answered or shed, and shed queries do not count as lost."""

    async def scene() -> MeasuredTrace:
        running = runtime(tmp_path, 0.05)
        await running.start()
        sample = draw_sample(ALONE, np.arange(200) / 100.0, np.random.default_rng(0))
        rows = np.ones((3, 2), dtype=np.float32)
        measured = await replay_trace(running, ALONE, sample, rows, None, lambda *_: None, 0.3)
        await running.stop()
        return measured

    measured = asyncio.run(asyncio.wait_for(scene(), 120))
    assert measured.lost == 0
    assert 0 < measured.shed < 200
    assert np.isinf(measured.latencies).sum() == measured.shed


@pytest.mark.parametrize("shed", [True, False])
def test_server_limits_requests(tmp_path: Path, shed: bool) -> None:
    """Too large a body gets 413, too many rows 413 or 429, a missed deadline 503, everything else 200."""
    running = runtime(tmp_path, 0.05)
    nothing = np.empty(0)
    promise = PlannedService(10.0, 0.99, (), PlannedEnvelope(nothing, nothing.astype(np.int64)))
    limits = Limits(queue_rows=4, body_bytes=4096)
    app = build_app("pipe", ALONE, running, 2, ServiceSettings(0, None, promise, sheds=shed), limits=limits)

    async def ask(path: str, body: bytes, method: str = "POST") -> tuple[int, bytes, int]:
        sent: list[Any] = []

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await app({"type": "http", "method": method, "path": path, "headers": []}, receive, send)
        return sent[0]["status"], sent[1]["body"], int(dict(sent[0]["headers"]).get(b"retry-after", 0))

    def body(rows: int, **parameters: float) -> bytes:
        data = {"name": "x", "datatype": "FP32", "shape": [rows, 2], "data": [1.0] * (2 * rows)}
        return json.dumps({"inputs": [data], "parameters": parameters}).encode()

    async def scene() -> list[tuple[int, bytes, int]]:
        status, _, retry = await ask("/v2/health/ready", b"", "GET")
        assert (status, retry > 0) == (503, True)
        await running.start()
        infer = "/v2/models/pipe/infer"
        together = await asyncio.gather(ask(infer, body(3)), ask(infer, body(2)))
        found = [
            *together,
            await ask(infer, body(5)),
            await ask(infer, b" " * 5000),
            await ask(infer, body(1, deadline_ms=20)),
            await ask(infer, body(1, deadline_ms=5000)),
            await ask("/metrics", b"", "GET"),
        ]
        await running.stop()
        return found

    found = asyncio.run(asyncio.wait_for(scene(), 120))
    assert [code for code, *_ in found] == [200, 429, 413, 413, 503, 200, 200]
    assert b"shed" in found[4][1]
    # a client waits before it asks again, unless the request itself is at fault
    assert [retry > 0 for *_, retry in found] == [False, True, False, False, True, False, False]
    assert b'unfold_requests_total{code="429",model="pipe"} 1.0' in found[6][1]
