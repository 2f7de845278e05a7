"""Scaling rules respect quotas over all stages; compiled loops equal plain Python."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from unfold_pipeline._types import CountArray
from unfold_pipeline.estimator.slo import build_slo_checker
from unfold_pipeline.problem import quotas
from unfold_pipeline.problem.pipeline import Edge, HardwareOption, Pipeline, Stage, StageConfig, interpolate_latency
from unfold_pipeline.problem.problem import TunerSettings
from unfold_pipeline.problem.sample import Sample, draw_sample
from unfold_pipeline.replay import simulated
from unfold_pipeline.tuner import rules
from unfold_pipeline.tuner.replica_table import ReplicaTable
from unfold_pipeline.tuner.table_rule import decide_table_state
from unfoldkit.arrivals import processes

GPU = HardwareOption("gpu", 1.0, interpolate_latency([(1, 0.03), (8, 0.1)]))
CPU = HardwareOption("cpu", 0.1, interpolate_latency([(1, 0.01), (8, 0.05)]))
GRAPH = Pipeline(
    (Stage("see", (), (GPU,)), Stage("cut", (Edge(0, 0.5),), (CPU,)), Stage("read", (Edge(0),), (GPU,))),
    quotas=(("gpu", 7), ("cpu", 40)),
)
PLAN = (StageConfig(0, 4, 2), StageConfig(0, 4, 1), StageConfig(0, 4, 2))


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


def plainly(fluid: quotas.FluidQueue, wanted: CountArray) -> CountArray:
    """The fluid queue of stages without quotas, a stage at a time in plain Python."""
    result = wanted.copy()
    for stage in range(wanted.shape[1]):
        given = np.full(len(wanted) + fluid.delay_ticks + 1, fluid.start_replicas[stage])
        backlog = 0.0
        for tick, (came, mu) in enumerate(
            zip(fluid.arrival_rates[:, stage], fluid.service_rates[:, stage], strict=True)
        ):
            backlog = max(0.0, backlog + came - given[tick] * mu)
            ahead = backlog + fluid.delay_ticks * (came - given[tick] * mu) if backlog > mu else 0.0
            if ahead > mu * wanted[tick, stage]:
                need = math.ceil(ahead / (2.0 * mu) + came / mu)
                result[tick, stage] = min(fluid.max_replicas, max(wanted[tick, stage], need))
            given[tick + fluid.delay_ticks] = result[tick, stage]
    return result


@pytest.mark.parametrize("seed", range(10))
def test_fluid_queues_equal_the_reference(seed: int) -> None:
    """The compiled queues equal plain Python without a binding quota, and respect a binding one."""
    rng = np.random.default_rng(seed)
    came = rng.gamma(0.5, 20.0, (200, 3))
    mu = rng.choice([3.0, 5.0, 9.0], (200, 3))
    fluid = quotas.FluidQueue(
        arrival_rates=came,
        service_rates=mu,
        start_replicas=np.array([2, 1, 1]),
        delay_ticks=int(rng.integers(1, 6)),
        max_replicas=50,
    )
    wanted = rng.integers(1, 4, (200, 3))
    assert np.array_equal(
        fluid.raise_targets(wanted, quotas.build_quota_limits(replace(GRAPH, quotas=()), PLAN)), plainly(fluid, wanted)
    )
    bound = fluid.raise_targets(wanted, quotas.build_quota_limits(GRAPH, PLAN))
    assert (bound[:, 0] + bound[:, 2]).max() == 7


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
    assert len(entries) == 9
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
    own = rules.build_scaling_context(GRAPH, PLAN, [sample], 0.5)
    steps = ReplicaTable((1.0, 8.0), ((2, 1, 2), (20, 10, 20)), ((4, 4, 4), (8, 4, 8)))
    busy = np.linspace(0.0, 10.0, 8000)
    wanted = decide_table_state(own, busy, 10.0, TunerSettings(), steps)
    assert wanted.replicas[::2] == (54, 54)
    assert wanted.batches == (8, 4, 8)
    assert quotas.build_quota_limits(GRAPH, PLAN).share_replicas(wanted.replicas)[::2] == (4, 3)


def test_units_fit_into_the_quotas() -> None:
    """A unit with two stages on hardware with a quota of seven fits three times."""
    assert quotas.count_units_in_quotas(GRAPH, PLAN) == 3
    assert quotas.count_units_in_quotas(replace(GRAPH, quotas=()), PLAN) is None
