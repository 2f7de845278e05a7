"""Predicted latencies of a replay at the measured speed of its batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unfold_pipeline.estimator.contention import SpeedTrace
from unfold_pipeline.problem.pipeline import Edge, HardwareOption, Pipeline, Stage, StageConfig, interpolate_latency
from unfold_pipeline.problem.sample import draw_sample
from unfold_pipeline.replay import prediction
from unfold_pipeline.replay.prediction import (
    ReplaySetup,
    estimate_at_measured_speed,
    estimate_latencies,
    find_speed_deviations,
    measure_cpu_fractions,
    measure_speeds,
)
from unfold_pipeline.runtime.stage import CompletedBatch
from unfoldkit.arrivals import processes

CORE = HardwareOption("core", 0.05, interpolate_latency([(1, 0.02), (4, 0.05)]), wake_s=0.004)
CHAIN = Pipeline((Stage("a", (), (CORE,)), Stage("b", (Edge(0),), (CORE,))))
PLAN = (StageConfig(0, 4, 1), StageConfig(0, 4, 1))


@pytest.fixture
def replay() -> ReplaySetup:
    """400 queries through two stages with a replica each."""
    rng = np.random.default_rng(5)
    sample = draw_sample(CHAIN, processes.gamma_arrivals(20.0, 20.0, rng), rng)
    return ReplaySetup(pipeline=CHAIN, plan=PLAN, sample=sample)


def batches(factor: float, waited_s: float = 0.0, cpu: float = 1.0) -> list[CompletedBatch]:
    """Single-query batches each 0.1 s at both stages: ``factor`` times their latency, plus a wait for a core."""
    model_s = 0.02 * factor
    return [
        CompletedBatch(
            stage=name,
            rows=1,
            start_s=0.1 * number,
            total_s=model_s + waited_s,
            model_s=model_s,
            waited_s=waited_s,
            cpu_s=cpu * model_s,
        )
        for name in ("a", "b")
        for number in range(200)
    ]


def test_speed_at_a_time_is_that_of_the_nearest_batch() -> None:
    """The factor at a moment is that of the batch that started nearest to it, at the ends the first and the last."""
    speed = SpeedTrace(np.array([1.0, 2.0, 4.0]), np.array([1.1, 1.2, 1.4]))
    assert [speed.factor_at(now) for now in (-5.0, 1.4, 1.6, 2.9, 3.1, 99.0)] == [1.1, 1.1, 1.2, 1.2, 1.4, 1.4]


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.5])
def test_estimate_at_measured_speed_equals_scaled_latencies(replay: ReplaySetup, factor: float) -> None:
    """If all batches took longer by a factor, the estimate is that of a pipeline with latencies longer by it."""
    speeds = measure_speeds(replay, batches(factor), is_contended=False)
    latencies = estimate_at_measured_speed(replay, speeds)
    slow = HardwareOption("core", 0.05, interpolate_latency([(1, 0.02 * factor), (4, 0.05 * factor)]))
    scaled = Pipeline(tuple(Stage(stage.name, stage.parents, (slow,)) for stage in CHAIN.stages))
    expected = estimate_latencies(ReplaySetup(pipeline=scaled, plan=PLAN, sample=replay.sample))
    assert latencies == pytest.approx(expected, abs=1e-9)
    deviations = dict(find_speed_deviations(replay, speeds))
    assert deviations == ({} if factor == 1.0 else pytest.approx({"a": factor, "b": factor}))


def test_waiting_for_a_core_counts_as_service_time_only_without_contention(replay: ReplaySetup) -> None:
    """Under contention the wait for a core is simulated; otherwise it is part of the measured time."""
    for is_contended, factor in ((True, 1.0), (False, 1.5)):
        speeds = measure_speeds(replay, batches(1.0, waited_s=0.01), is_contended=is_contended)
        assert speeds
        assert all(speed.factor == pytest.approx(factor) for speed in speeds)


def test_engine_without_batch_reports_has_no_speed(replay: ReplaySetup) -> None:
    """If no batch was reported, no speed is measured."""
    assert measure_speeds(replay, [], is_contended=False) == []
    assert find_speed_deviations(replay, []) == []


def test_stage_without_queries_keeps_its_planned_latency(replay: ReplaySetup) -> None:
    """A stage that no query visited has factor 1, and the others have theirs."""
    speeds = measure_speeds(replay, [batch for batch in batches(1.5) if batch.stage == "a"], is_contended=False)
    assert [float(speed.factor.mean()) for speed in speeds] == pytest.approx([1.5, 1.0])


def test_replicas_that_wait_take_no_core_in_the_estimate(replay: ReplaySetup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a profile, the run shows how much of a core each stage keeps busy; a profile says it otherwise."""
    monkeypatch.setattr(prediction, "available_cores", lambda: 1)
    measured = measure_cpu_fractions(batches(1.0, waited_s=0.01, cpu=0.2))
    assert measured == pytest.approx({"a": 0.2, "b": 0.2})
    plan = (StageConfig(0, 1, 2), StageConfig(0, 1, 2))
    crowded = replace(replay, plan=plan)
    assert crowded.is_contended
    busy, idle = (estimate_latencies(replace(crowded, measured_cpu=cpu)) for cpu in ({}, {"a": 0.0, "b": 0.0}))
    free = estimate_latencies(replace(crowded, is_local=False))
    assert idle == pytest.approx(free)
    assert busy.mean() > 1.1 * free.mean()
    assert crowded.core_shortage == (4.0, 1)
    assert replace(crowded, measured_cpu=measured).core_shortage == (0.0, 0)
