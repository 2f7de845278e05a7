"""Scaling rules respect quotas over all stages; compiled loops equal plain Python."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from unfold_pipeline._types import CountArray, FloatArray
from unfold_pipeline.estimator.slo import build_slo_checker
from unfold_pipeline.problem import quotas
from unfold_pipeline.problem.pipeline import Edge, HardwareOption, Pipeline, Stage, StageConfig, interpolate_latency
from unfold_pipeline.problem.problem import TunerSettings
from unfold_pipeline.problem.sample import Sample, draw_sample
from unfold_pipeline.replay import simulated
from unfold_pipeline.tuner import envelope_rule
from unfold_pipeline.tuner.replica_table import ReplicaTable
from unfold_pipeline.tuner.table_rule import build_table_rule
from unfoldkit.arrivals import processes

GPU = HardwareOption("gpu", 1.0, interpolate_latency([(1, 0.03), (8, 0.1)]))
CPU = HardwareOption("cpu", 0.1, interpolate_latency([(1, 0.01), (8, 0.05)]))
GRAPH = Pipeline(
    (Stage("see", (), (GPU,)), Stage("cut", (Edge(0, 0.5),), (CPU,)), Stage("read", (Edge(0),), (GPU,))),
    quotas=(("gpu", 7), ("cpu", 40)),
)
PLAN = (StageConfig(0, 4, 2), StageConfig(0, 4, 1), StageConfig(0, 4, 2))
ONE, ALONE = Pipeline(GRAPH.stages[:1]), PLAN[:1]


def traffic(rates: list[float], seed: int = 0) -> Sample:
    """Traffic with a rate that changes every 10 s."""
    arrivals = processes.piecewise_arrivals(rates, 10.0, np.random.default_rng(seed))
    return draw_sample(GRAPH, arrivals, np.random.default_rng([seed, 1]))


def share(wanted: list[int], most: int, planned: list[int]) -> list[int]:
    """The rule in plain Python: the planned replicas, then one at a time to the neediest stage."""
    if sum(wanted) <= most:
        return wanted
    given = [min(pair) for pair in zip(wanted, planned, strict=True)]
    while sum(given) < most:
        open_stages = [index for index, count in enumerate(given) if count < wanted[index]]
        given[min(open_stages, key=lambda index: Fraction(given[index], wanted[index]))] += 1
    return given


@pytest.mark.parametrize("seed", range(20))
def test_stages_share_a_quota_by_demand(seed: int) -> None:
    """Stages get what they want if it fits, otherwise the whole quota, each at least as planned."""
    rng = np.random.default_rng(seed)
    wanted = rng.integers(1, 30, 5)
    planned = rng.integers(1, 4, 5)
    most = int(planned[[0, 2, 4]].sum() + rng.integers(0, 50))
    limits = quotas.QuotaLimits(np.array([0, -1, 0, 1, 0]), np.array([most, 4]), planned)
    got = limits.share_replicas(wanted.tolist())
    assert [got[0], got[2], got[4]] == share(wanted[[0, 2, 4]].tolist(), most, planned[[0, 2, 4]].tolist())
    assert got[1] == wanted[1]
    assert got[3] == min(wanted[3], 4)


def drain_plainly(
    wanted: CountArray, came: FloatArray, mu: FloatArray, start: CountArray, delay: int, bound_s: float
) -> CountArray:
    """The fluid queue of stages without quotas and at most 50 replicas, a stage at a time in plain Python."""
    result = wanted.copy()
    for stage in range(wanted.shape[1]):
        serving = np.full(len(wanted) + delay + 1, start[stage])
        backlog = 0.0
        for tick, (rate, work) in enumerate(zip(came[:, stage], mu[:, stage], strict=True)):
            most = bound_s * serving[tick] * work
            backlog = min(max(0.0, backlog + rate - serving[tick] * work), most)
            ahead = min(backlog + delay * (rate - serving[tick] * work) if backlog > work else 0.0, most)
            if ahead > work * wanted[tick, stage]:
                need = math.ceil(ahead / (2.0 * work) + rate / work)
                result[tick, stage] = min(50, max(wanted[tick, stage], need))
            if bound_s < math.inf:
                result[tick, stage] = max([result[tick, stage], *serving[tick + 1 : tick + delay]])
            serving[tick + delay] = result[tick, stage]
    return result


@pytest.mark.parametrize("bound_s", [math.inf, 3.0])
@pytest.mark.parametrize("seed", range(10))
def test_fluid_queues_equal_the_reference(seed: int, bound_s: float) -> None:
    """The compiled queues equal plain Python without a binding quota, in parts too, and respect a binding one."""
    rng = np.random.default_rng(seed)
    came = rng.gamma(0.5, 20.0, (200, 3))
    mu = rng.choice([3.0, 5.0, 9.0], (200, 3))
    start, delay = np.array([2, 1, 1]), int(rng.integers(1, 6))
    wanted = rng.integers(1, 4, (200, 3))
    free, quota = (quotas.build_quota_limits(graph, PLAN) for graph in (replace(GRAPH, quotas=()), GRAPH))
    expected = drain_plainly(wanted, came, mu, start, delay, bound_s)
    assert np.array_equal(
        quotas.build_fluid_queue(start, delay, 50, bound_s).raise_targets(wanted, came, mu, free), expected
    )
    parts, queue = np.split(np.arange(200), [1, 2, 60]), quotas.build_fluid_queue(start, delay, 50, bound_s)
    found = [queue.raise_targets(wanted[part], came[part], mu[part], free) for part in parts]
    assert np.array_equal(np.concatenate(found), expected)
    bound = quotas.build_fluid_queue(start, delay, 50, bound_s).raise_targets(wanted, came, mu, quota)
    assert (bound[:, 0] + bound[:, 2]).max() == 7


def test_changed_delay_keeps_what_was_ordered() -> None:
    """A longer delay holds the last order back, and a shorter one drops what lies beyond it."""
    queue = quotas.build_fluid_queue(np.array([1]), 2, 50)
    queue.raise_targets(np.array([[2], [3]]), np.zeros((2, 1)), np.ones((2, 1)), quotas.build_quota_limits(ONE, ALONE))
    assert queue.arriving_replicas[:, 0].tolist() == [2, 3]
    queue.set_delay(4)
    assert queue.arriving_replicas[:, 0].tolist() == [2, 3, 3, 3]
    queue.set_delay(1)
    assert queue.arriving_replicas[:, 0].tolist() == [2]


def test_table_looks_up_many_factors_at_once() -> None:
    """A factor uses its row; beyond the last row, replicas grow in proportion."""
    steps = ReplicaTable((1.0, 2.0, 4.0), ((1, 2), (2, 2), (3, 5)), ((1, 1), (1, 4), (2, 4)))
    assert steps.look_up_replicas(np.array([0.1, 1.0, 1.5, 4.0, 8.0])).tolist() == [
        [1, 2],
        [1, 2],
        [2, 2],
        [3, 5],
        [6, 10],
    ]
    assert steps.look_up_batches(np.array([0.1, 1.5, 8.0])).tolist() == [[1, 1], [1, 4], [2, 4]]


def test_no_rule_exceeds_a_quota() -> None:
    """In a surge beyond the quota, no scaling rule of a replay ever has more replicas."""
    checker = build_slo_checker(GRAPH, [traffic([40.0] * 3)], 0.5)
    live = traffic([40.0, 400.0, 400.0, 40.0], seed=3)
    entries = list(simulated.simulate_rules(checker, PLAN, live, TunerSettings(delay_s=2.0, hold_s=5.0)))
    assert len(entries) == simulated.RULES
    for entry in entries:
        pairs = list(zip(GRAPH.stages, entry.plan, entry.trace.schedules, strict=True))
        used = np.zeros(60)
        for stage, choice, ledger in pairs:
            if stage.options[0].hardware == "gpu":
                used += choice.replicas
                for time, change in ledger.changes:
                    used[math.ceil(time) :] += change
        assert used.max() <= 7, entry.name
    calibrated = next(entry for entry in entries if entry.name == "calibrated")
    assert calibrated.trace.orders > 0


def test_live_rule_respects_the_quota() -> None:
    """The targets of the table rule for a running service are limited by the quota."""
    sample = traffic([40.0] * 3)
    own = envelope_rule.build_scaling_context(GRAPH, PLAN, [sample], 0.5)
    steps = ReplicaTable((1.0, 8.0), ((2, 1, 2), (20, 10, 20)), ((4, 4, 4), (8, 4, 8)))
    busy = np.linspace(0.0, 10.0, 8000)
    free = replace(own, pipeline=replace(GRAPH, quotas=()))
    wanted = build_table_rule(free, TunerSettings(max_wait_s=1.0), steps)(busy, 10.0)
    assert min(wanted.replicas[::2]) >= 54
    assert wanted.batches == (8, 4, 8)
    assert build_table_rule(own, TunerSettings(max_wait_s=1.0), steps)(busy, 10.0).replicas[::2] == (4, 3)


def test_units_fit_into_the_quotas() -> None:
    """A unit with two stages on hardware with a quota of seven fits three times."""
    assert quotas.count_units_in_quotas(GRAPH, PLAN) == 3
    assert quotas.count_units_in_quotas(replace(GRAPH, quotas=()), PLAN) is None
