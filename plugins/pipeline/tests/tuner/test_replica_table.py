"""The rate-to-replica table: monotone rows that meet the SLO and cost no more than with the plan's batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from unfold_pipeline.estimator.estimator import Estimator
from unfold_pipeline.estimator.replica_schedule import ScalingTargets
from unfold_pipeline.estimator.simulator import simulate_targets
from unfold_pipeline.problem.pipeline import (
    Edge,
    HardwareOption,
    Pipeline,
    Plan,
    Stage,
    StageConfig,
    interpolate_latency,
)
from unfold_pipeline.problem.sample import Sample, draw_sample
from unfold_pipeline.tuner.replica_table import ReplicaTable, TableBuilder, build_replica_table, find_busiest_minute
from unfoldkit.arrivals import processes

CPU = HardwareOption("cpu", 0.05, interpolate_latency([(1, 0.01), (8, 0.066)]))
GPU = HardwareOption("gpu", 0.65, interpolate_latency([(1, 0.054), (8, 0.185)]))
PIPE = Pipeline((Stage("first", (), (CPU,)), Stage("second", (Edge(0),), (GPU,))))
PLAN = (StageConfig(0, 2, 1), StageConfig(0, 4, 3))
LIMIT = 0.35


@pytest.fixture(scope="module")
def sample() -> Sample:
    """Steady traffic of 85 queries a second."""
    return draw_sample(PIPE, processes.gamma_arrivals(85.0, 120.0, np.random.default_rng(1)), np.random.default_rng(2))


@pytest.fixture(scope="module")
def steps(sample: Sample) -> ReplicaTable:
    """The ladder of the plan."""
    return build_replica_table(PIPE, PLAN, [sample], LIMIT, 100)


def rows(steps: ReplicaTable) -> Sequence[Plan]:
    """The rows of a ladder as plans."""
    pairs = zip(steps.replicas, steps.batches, strict=True)
    return [tuple(StageConfig(0, b, k) for b, k in zip(batches, counts, strict=True)) for counts, batches in pairs]


def faster(sample: Sample, factor: float) -> Sample:
    """The sample that comes so many times as fast."""
    visits = tuple(replace(item, origin_s=item.origin_s / factor) for item in sample.visits)
    return replace(sample, arrivals=sample.arrivals / factor, visits=visits)


def test_replicas_never_fall_with_the_rate(steps: ReplicaTable) -> None:
    """The replicas of a stage rise from row to row, and beyond the last row too."""
    counts = np.array(steps.look_up_replicas(np.linspace(0.2, 6.0, 40)))
    assert (np.diff(counts, axis=0) >= 0).all()


def test_every_row_meets_the_slo(sample: Sample, steps: ReplicaTable) -> None:
    """Each row, interpolated ones included, meets the SLO on the sample sped up by its factor."""
    for factor, plan in list(zip(steps.factors, rows(steps), strict=True))[::3]:
        assert Estimator(PIPE, faster(sample, factor)).tail_latency(plan) <= LIMIT


def test_row_uses_larger_batches_if_cheaper(sample: Sample, steps: ReplicaTable) -> None:
    """At three times the rate, larger batches save a replica of the expensive stage."""
    yard = TableBuilder(PIPE, PLAN, (sample,), LIMIT, 100)
    place = next(index for index, factor in enumerate(steps.factors) if factor >= 3.0)
    factor = steps.factors[place]
    found, planned = rows(steps)[place], yard.minimize_replicas(yard.build_checker(factor), factor)
    assert found[1].batch > PLAN[1].batch
    assert PIPE.cost(found) < PIPE.cost(planned)


def test_cheap_stage_does_not_saturate_first(steps: ReplicaTable) -> None:
    """In no row has the cheap stage less throughput than the expensive one."""
    for plan in rows(steps):
        cheap, dear = (o.throughput(c.batch) * c.replicas for o, c in zip((CPU, GPU), plan, strict=True))
        assert cheap >= dear * 0.999


def test_rows_are_capped(sample: Sample) -> None:
    """No stage of a row gets more than the maximum replicas."""
    assert max(max(row) for row in build_replica_table(PIPE, PLAN, [sample], LIMIT, 4).replicas) == 4


def test_larger_batches_absorb_a_surge(sample: Sample) -> None:
    """In a surge, growing batches leave fewer queries late than the same replicas without them."""
    surge = faster(sample, 2.2)
    seconds = int(surge.arrivals[-1]) + 1
    counts = tuple(np.full(seconds, count, dtype=np.int64) for count in (3, 6))
    sizes = (np.full(seconds, 4, dtype=np.int64), np.full(seconds, 8, dtype=np.int64))
    plain, longer = (simulate_targets(PIPE, surge, PLAN, ScalingTargets(counts, given), 5.0) for given in ((), sizes))
    assert longer.miss_rate(LIMIT) < 0.8 * plain.miss_rate(LIMIT)
    assert longer.hourly_cost == pytest.approx(plain.hourly_cost, rel=0.01)


def test_row_meets_the_slo_in_the_busiest_minute() -> None:
    """A row meets the SLO in the busiest minute of the sample too, as traffic may stay at that rate."""
    times = processes.piecewise_arrivals([12.0] * 20 + [40.0] + [12.0] * 20, 60.0, np.random.default_rng(1))
    sample = draw_sample(PIPE, times, np.random.default_rng(2))
    high = build_replica_table(PIPE, PLAN, [sample], LIMIT, 100)
    for factor, plan in list(zip(high.factors, rows(high), strict=True))[::4]:
        assert Estimator(PIPE, faster(sample, factor)).tail_latency(plan) <= LIMIT
        assert Estimator(PIPE, faster(find_busiest_minute(sample), factor)).tail_latency(plan) <= LIMIT


def test_idle_stages_get_no_replica() -> None:
    """At 0.1 queries per second, a stage with sixty times the capacity gets no second replica."""
    slow = replace(
        PIPE,
        stages=(Stage("first", (), (HardwareOption("cpu", 0.05, interpolate_latency([(1, 0.15)])),)), PIPE.stages[1]),
    )
    sample = draw_sample(
        slow, processes.gamma_arrivals(0.1, 2000.0, np.random.default_rng(1)), np.random.default_rng(2)
    )
    idle = build_replica_table(slow, (StageConfig(0, 1, 1), StageConfig(0, 1, 1)), [sample], LIMIT, 100)
    assert idle.look_up_replicas(np.array([1.0])).tolist() == [[1, 1]]
