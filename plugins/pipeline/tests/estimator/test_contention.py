"""Replicas that share the cores of one machine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unfold_pipeline.estimator.contention import ReplicaChange, simulate_contention
from unfold_pipeline.estimator.estimator import build_server
from unfold_pipeline.estimator.replica_schedule import ScalingState, build_observed_schedule
from unfold_pipeline.estimator.simulator import (
    build_constant_targets,
    build_scaled_server,
    compute_queueing_deadlines,
    simulate_schedules,
    simulate_targets,
)
from unfold_pipeline.problem.pipeline import Edge, HardwareOption, Pipeline, Stage, StageConfig, interpolate_latency
from unfold_pipeline.problem.sample import draw_sample
from unfold_pipeline.runtime.affinity import assign_cores
from unfoldkit.arrivals import processes

CPU = HardwareOption("core", 0.05, interpolate_latency([(1, 0.05), (4, 0.11)]), wake_s=0.002)
JOIN = Pipeline(
    (
        Stage("in", (), (CPU,)),
        Stage("left", (Edge(0, 0.7),), (CPU,)),
        Stage("right", (Edge(0, 0.6),), (CPU,)),
        Stage("join", (Edge(1), Edge(2)), (CPU,)),
    )
)
PLAN = (StageConfig(0, 4, 2), StageConfig(0, 4, 1), StageConfig(0, 4, 1), StageConfig(0, 4, 1))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("wait", [0.0, 0.08])
@pytest.mark.parametrize("shed", [False, True])
def test_without_contention_latencies_equal_the_simulator(seed: int, wait: float, *, shed: bool) -> None:
    """If every replica has its own core, each query takes as long as in the stage-by-stage simulator."""
    rng = np.random.default_rng(seed)
    sample = draw_sample(JOIN, processes.gamma_arrivals(40.0, 20.0, rng), rng)
    factors = [rng.choice([0.8, 1.0, 1.3], 64) for _ in PLAN]
    patience = compute_queueing_deadlines(JOIN, PLAN, 0.35) if shed else (np.inf,) * 4
    held = replace(JOIN, stages=tuple(replace(stage, max_wait_s=wait) for stage in JOIN.stages))
    expected = simulate_targets(
        held, sample, PLAN, build_constant_targets(PLAN, sample), 0.0, factors, patience if shed else None
    ).latencies
    servers = [
        replace(build_server(held, index, choice), factor=factors[index], patience=patience[index])
        for index, choice in enumerate(PLAN)
    ]
    found = simulate_contention(held, sample, servers, [1.0] * 4, 5)
    assert np.array_equal(np.isinf(found), np.isinf(expected))
    known = np.isfinite(expected)
    assert found[known] == pytest.approx(expected[known], abs=1e-9)


def test_two_batches_on_one_core_take_twice_as_long() -> None:
    """Two queries that start together on one core end after twice their service time if it is all computation."""
    pair = Pipeline((Stage("a", (), (CPU,)), Stage("b", (), (CPU,))))
    sample = draw_sample(pair, np.zeros(1), np.random.default_rng(0))
    plan = (StageConfig(0, 1, 1), StageConfig(0, 1, 1))
    servers = [replace(build_server(pair, index, choice), wake=0.0) for index, choice in enumerate(plan)]
    for share, cores, seconds in ((1.0, 1, 0.1), (1.0, 2, 0.05), (0.0, 1, 0.05), (0.5, 1, 0.05)):
        assert simulate_contention(pair, sample, servers, [share] * 2, cores)[0] == pytest.approx(seconds)


def test_batch_moves_to_an_idle_core() -> None:
    """Of three batches on two cores, one of the pair moves to the other core when that becomes idle."""
    three = Pipeline(tuple(Stage(name, (), (CPU,)) for name in "abc"))
    sample = draw_sample(three, np.zeros(1), np.random.default_rng(0))
    servers = [replace(build_server(three, index, StageConfig(0, 1, 1)), wake=0.0) for index in range(3)]
    # 50 ms alone; the pair has done 25 ms each by then, and ends 25 ms later, each on a core
    assert simulate_contention(three, sample, servers, [1.0] * 3, 2)[0] == pytest.approx(0.075)


def test_pinned_replicas_share_a_core_although_another_is_idle() -> None:
    """Two batches pinned to one core take twice as long; on separate cores they do not."""
    pair = Pipeline((Stage("a", (), (CPU,)), Stage("b", (), (CPU,))))
    sample = draw_sample(pair, np.zeros(1), np.random.default_rng(0))
    servers = [replace(build_server(pair, index, StageConfig(0, 1, 1)), wake=0.0) for index in range(2)]
    for kept, seconds in (([(0,), (0,)], 0.1), ([(0,), (1,)], 0.05)):
        assert simulate_contention(pair, sample, servers, [1.0] * 2, 2, kept)[0] == pytest.approx(seconds)


def test_pinned_batch_does_not_move_to_an_idle_core() -> None:
    """Of three pinned batches on two cores, the pair keeps sharing its core when the other becomes idle."""
    three = Pipeline(tuple(Stage(name, (), (CPU,)) for name in "abc"))
    sample = draw_sample(three, np.zeros(1), np.random.default_rng(0))
    servers = [replace(build_server(three, index, StageConfig(0, 1, 1)), wake=0.0) for index in range(3)]
    assert simulate_contention(three, sample, servers, [1.0] * 3, 2, assign_cores([1, 1, 1], 2))[0] == pytest.approx(
        0.1
    )


@pytest.mark.parametrize("wait", [0.0, 0.08])
@pytest.mark.parametrize("seed", range(3))
def test_scheduled_replicas_without_contention_equal_the_simulator(seed: int, wait: float) -> None:
    """If replicas come and go and each has a core, latencies equal those of the other simulator."""
    rng = np.random.default_rng(seed)
    sample = draw_sample(JOIN, processes.gamma_arrivals(40.0, 20.0, rng), rng)
    held = replace(JOIN, stages=tuple(replace(stage, max_wait_s=wait) for stage in JOIN.stages))
    drawn = [(rng.integers(1, 4, 4), rng.integers(1, 5, 4)) for _ in range(12)]
    steps = [ScalingState(tuple(counts.tolist()), tuple(batches.tolist())) for counts, batches in drawn]
    seen = list(zip(np.sort(rng.random(12) * 20.0).tolist(), steps, strict=True))
    ledgers = [build_observed_schedule(choice.replicas, seen, index, 20.0) for index, choice in enumerate(PLAN)]
    expected = simulate_schedules(held, sample, PLAN, ledgers).latencies
    servers = [build_scaled_server(held, index, choice, ledgers[index]) for index, choice in enumerate(PLAN)]
    rows = sorted((when, at, more, size) for at, item in enumerate(ledgers) for when, more, size in item.list_changes())
    changes = [ReplicaChange(*row) for row in rows]
    found = simulate_contention(held, sample, servers, [1.0] * 4, 20, changes=changes)
    assert found == pytest.approx(expected, abs=1e-9)
    assert not np.allclose(found, simulate_contention(held, sample, servers, [1.0] * 4, 20))
