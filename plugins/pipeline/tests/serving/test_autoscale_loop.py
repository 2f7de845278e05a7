"""Stopped replicas and slow or failing scaling rules block nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from plugins.pipeline.tests.helpers import plan_stages
from unfold_pipeline.estimator.replica_schedule import ScalingState
from unfold_pipeline.flow_syntax import parse_condition
from unfold_pipeline.problem.branches import measure_branches
from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.problem.pipeline import Edge, HardwareOption, Pipeline, Stage, StageConfig, interpolate_latency
from unfold_pipeline.problem.quotas import QuotaLimits
from unfold_pipeline.problem.routing import build_routes
from unfold_pipeline.problem.sample import draw_sample
from unfold_pipeline.replay.load_generator import replay_trace
from unfold_pipeline.report.plan_file import PlannedEnvelope
from unfold_pipeline.runtime.live_tuner import LiveTuner
from unfold_pipeline.runtime.local import LocalRuntime
from unfold_pipeline.runtime.stage import Query
from unfold_pipeline.serving.app import build_app
from unfold_pipeline.serving.autoscale_loop import _run_loop as run_loop
from unfold_pipeline.serving.dashboard import PlannedService, ServiceRecord
from unfold_pipeline.serving.inference import ServiceSettings

pytestmark = pytest.mark.timed

CPU = HardwareOption("core", 0.05, interpolate_latency([(1, 0.05)]))
ONE = Pipeline((Stage("a", (), (CPU,)),))
WIDE = 1 << 20


def test_stopped_replica_with_large_rows_is_replaced(tmp_path: Path) -> None:
    """Megabyte rows for a stopped replica do not block the event loop; the next replica answers them."""
    (tmp_path / "served.py").write_text("def first(rows):\n    return rows[:, 0]\n")
    source = ModelSource(code="served:first", folder=str(tmp_path))
    running = LocalRuntime(plan_stages(["a"], [source], (StageConfig(0, 1, 1),), hang_timeout_s=3.0))

    async def scene() -> tuple[Any, int]:
        await running.start()
        pid = running.stages[0].workers[0].replica.process.pid or 0
        try:
            os.kill(pid, signal.SIGSTOP)
            futures: list[asyncio.Future[Any]] = [asyncio.get_running_loop().create_future() for _ in range(2)]
            way = build_routes(ONE, draw_sample(ONE, np.zeros(2), np.random.default_rng(0)))
            for number, future in enumerate(futures):
                row = np.full(WIDE, number, dtype=np.float32)
                query = Query(row, way, number, future.set_result)
                running.submit(query)
            ticks = 0
            while not futures[1].done():
                await asyncio.sleep(0.05)
                ticks += 1
            return await futures[1], ticks
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            await running.stop()

    found, ticks = asyncio.run(asyncio.wait_for(scene(), 60))
    assert found == {"a": 1.0}
    assert ticks > 10


@pytest.mark.slow
def test_slow_rule_delays_no_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the scaling rule computes, the event loop keeps running."""
    monkeypatch.setattr("unfold_pipeline.serving.autoscale_loop.TICK_S", 0.05)
    (tmp_path / "served.py").write_text("def first(rows):\n    return rows[:, 0]\n")
    running, diary = (
        LocalRuntime(
            plan_stages(["a"], [ModelSource(code="served:first", folder=str(tmp_path))], (StageConfig(0, 1, 1),))
        ),
        ServiceRecord(0.0),
    )

    def rule(_past: object, _now: float) -> ScalingState:
        time.sleep(3.0)
        return ScalingState((2,), (1,))

    tuner = LiveTuner(rule=rule, limits=QuotaLimits(*[np.zeros(0, np.int64)] * 3))
    app = build_app("pipe", ONE, running, 2, ServiceSettings(0, tuner), diary)
    ticks = list[int]()

    async def receive() -> dict[str, object]:
        if diary.arrivals.total:
            while running.serving_replicas() != (2,):
                await asyncio.sleep(0.05)
                ticks.append(1)
        return {"type": "lifespan"}

    async def send(_message: object) -> None:
        diary.arrivals.record()

    asyncio.run(asyncio.wait_for(app({"type": "lifespan"}, receive, send), 60))
    assert len(ticks) > 20


def test_replay_with_a_failing_rule_fails(tmp_path: Path) -> None:
    """A rule that raises an error during a replay ends the replay with the error."""
    (tmp_path / "served.py").write_text("def first(rows):\n    return rows[:, 0]\n")
    running = LocalRuntime(
        plan_stages(["a"], [ModelSource(code="served:first", folder=str(tmp_path))], (StageConfig(0, 1, 1),))
    )

    def rule(_past: object, _now: float) -> ScalingState:
        raise ValueError("no rule for that")

    async def scene() -> None:
        await running.start()
        sample = draw_sample(ONE, np.arange(8.0) / 4.0, np.random.default_rng(0))
        try:
            tuner = LiveTuner(rule=rule, limits=QuotaLimits(*[np.zeros(0, np.int64)] * 3))
            await replay_trace(running, ONE, sample, np.ones((1, 2), np.float32), tuner, lambda *_progress: None)
        finally:
            await running.stop()

    with pytest.raises(ValueError, match="no rule for that"):
        asyncio.run(asyncio.wait_for(scene(), 60))


@dataclass(slots=True)
class CountingRuntime:
    """Stands for a runtime of two stages that have served 400 queries, and 300 of these."""

    def list_status(self) -> list[dict[str, Any]]:
        """Return the counters."""
        return [{"name": "a", "served": 400, "replicas": 1}, {"name": "b", "served": 300, "replicas": 1}]


def test_a_condition_that_lets_through_more_than_planned_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning has both fractions, and does not return each second."""
    monkeypatch.setattr("unfold_pipeline.serving.autoscale_loop.TICK_S", 0.01)
    graph = Pipeline((*ONE.stages, Stage("b", (Edge(0, 0.3, parse_condition("output > 1")),), (CPU,))))
    nothing = PlannedEnvelope(np.empty(0), np.empty(0, dtype=np.int64))
    planned = PlannedService(1.0, 0.99, (), nothing, functools.partial(measure_branches, graph, [1.0, 0.3]))

    async def scene() -> None:
        runtime, settings = cast("LocalRuntime", CountingRuntime()), ServiceSettings(0, planned=planned)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(run_loop(runtime, settings, ServiceRecord(0.0)), 0.3)

    asyncio.run(scene())
    [message] = [record.getMessage() for record in caplog.records]
    assert message.startswith("stages.b: its condition lets through 75 % of the queries, but the plan assumes 30 %")
