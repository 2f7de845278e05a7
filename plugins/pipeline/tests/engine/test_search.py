"""The search finds what enumeration finds, and its bounds exclude nothing that meets the targets."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from plugins.pipeline.tests.engine.test_cluster import step_times
from unfold_pipeline.engine.hardware.gpu import KvCache
from unfold_pipeline.engine.planner import analysis
from unfold_pipeline.engine.planner.bounds import bound_replicas, measure_peak_work
from unfold_pipeline.engine.planner.problem import (
    EngineOption,
    EngineProblem,
    EngineSettings,
    Targets,
    count_allowed_misses,
    percentile,
)
from unfold_pipeline.engine.planner.search import EngineConfig, evaluate, find_cheapest_engines
from unfold_pipeline.engine.simulation.cluster import EngineCluster
from unfold_pipeline.engine.simulation.engine_inputs import EngineLimits
from unfold_pipeline.engine.simulation.workload import EngineRequests, build_requests
from unfold_pipeline.engine.step_times.interval import CalibrationGroup, StepInterval, compute_interval

INTERVAL = StepInterval(source="tables", groups=4, low=0.8, high=1.2)


def draw_problem(seed: int) -> EngineProblem:
    """Draw a small problem: two GPU types, nodes or single GPUs, quotas, and targets that bind."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(20, 150))
    shared_with = np.r_[-1, rng.integers(-1, np.arange(1, count))] if rng.random() < 0.3 else None
    requests = build_requests(
        np.sort(rng.random(count) * rng.uniform(0.05, 1.0)),
        rng.integers(1, 200, count),
        rng.integers(1, 40, count),
        block_tokens=4,
        shared_tokens=None if shared_with is None else rng.integers(0, 60, count),
        shared_with=shared_with,
    )
    options = tuple(
        EngineOption(
            hardware=f"gpu{index}",
            gpu=f"gpu{index}",
            tensor_parallel=parallel,
            usd_per_gpu_hour=float(rng.uniform(1, 4)),
            gpus_per_node=int(rng.choice([1, 4])),
            quota=int(rng.integers(2, 9)) if rng.random() < 0.3 else None,
            kv_cache=KvCache(num_blocks=int(rng.integers(70, 200)), is_measured=False),
            times=step_times().calibrated(overhead=float(rng.uniform(0, 2e-3)), scale=float(rng.uniform(0.3, 2))),
            interval=INTERVAL,
        )
        for index, parallel in enumerate((1, 2, 4)[: int(rng.integers(1, 4))])
    )
    return EngineProblem(
        name="drawn",
        stage="chat",
        requests=requests,
        options=options,
        too_small=(),
        settings=EngineSettings(
            budgets=(16, 64),
            max_seqs=(2, 8, 32),
            routing="least_tokens" if rng.random() < 0.5 else "round_robin",
            max_replicas=5,
            front_s=float(rng.choice([0.0, 2e-3])),
            tail=float(rng.choice([1.0, 1.3])),
        ),
        targets=Targets(
            ttft_s=float(rng.uniform(0.01, 0.3)),
            tpot_s=float(rng.uniform(0.004, 0.03)),
            latency_s=float(rng.choice([np.inf, 0.5])),
        ),
        confidence=None,
        price_sources={},
        trace_sha256="",
        model="drawn",
    )


def enumerate_cost(problem: EngineProblem) -> float | None:
    """Return the least price over every choice, by complete simulations."""
    costs = []
    for index, option in enumerate(problem.options):
        counts = range(1, option.max_replicas(problem.settings.max_replicas) + 1)
        for count, budget, seqs in itertools.product(counts, problem.settings.budgets, problem.settings.max_seqs):
            config = EngineConfig(option=index, replicas=count, budget=budget, max_seqs=seqs)
            if evaluate(problem, config, complete=True).meets(problem):
                costs.append(option.cost(count))
    return min(costs, default=None)


@pytest.mark.parametrize("seed", range(12))
def test_the_plan_costs_what_enumeration_finds(seed: int) -> None:
    """Bounds, early abort and skipped limits never lose the cheapest choice, nor accept one that misses."""
    problem = draw_problem(seed)
    solution, cost = find_cheapest_engines(problem), enumerate_cost(problem)
    if solution.config is None:
        assert cost is None
        return
    option = problem.options[solution.config.option]
    assert option.cost(solution.config.replicas) == pytest.approx(cost)
    assert evaluate(problem, solution.config, complete=True).meets(problem)


@pytest.mark.parametrize("seed", range(20, 32))
def test_bounds_lie_below_every_choice_that_meets_the_targets(seed: int) -> None:
    """No count below the bound meets the targets, and an obstacle holds for every count."""
    problem = draw_problem(seed)
    for index, option in enumerate(problem.options):
        for budget in problem.settings.budgets:
            bound = bound_replicas(problem, option, budget, measure_peak_work(problem))
            last = problem.settings.max_replicas if bound.obstacle else bound.replicas - 1
            for count in range(1, last + 1):
                config = EngineConfig(option=index, replicas=count, budget=budget, max_seqs=32)
                assert not evaluate(problem, config, complete=True).meets(problem)


def test_a_percentile_allows_exactly_its_misses() -> None:
    """Of 1,000 values the p99 leaves ten above; a request that never ends counts as endless."""
    values = np.arange(1000.0)
    assert percentile(values, 0.99) == 989.0
    assert count_allowed_misses(99) == 0
    assert percentile(np.r_[values, [np.nan] * 11], 0.99) == np.inf


def test_whole_nodes_are_paid() -> None:
    """Three engines of two GPUs on nodes of four need two nodes."""
    option = EngineOption(
        hardware="g", gpu="g", tensor_parallel=2, usd_per_gpu_hour=1.0, gpus_per_node=4, quota=None,
        kv_cache=KvCache(num_blocks=1, is_measured=False), times=step_times(), interval=INTERVAL,
    )  # fmt: skip
    assert (option.count_nodes(3), option.cost(3), option.cost_by_gpu(3)) == (2, 8.0, 6.0)


def test_the_interval_widens_with_the_spread_between_groups() -> None:
    """Equal groups leave the part within; groups that differ widen the interval by Student's factor."""
    alike = [CalibrationGroup(name=str(i), rows=50, bias=1.0, within=0.1) for i in range(4)]
    apart = [
        CalibrationGroup(name=str(i), rows=50, bias=bias, within=0.1) for i, bias in enumerate((0.8, 0.9, 1.1, 1.3))
    ]
    low, high = compute_interval(alike)
    assert (low, high) == (pytest.approx(np.exp(-0.1)), pytest.approx(np.exp(0.1)))
    assert compute_interval(apart)[1] > 1.4 > high
    assert compute_interval(apart, 0.99)[1] > compute_interval(apart)[1]


@pytest.mark.parametrize("seed", range(40, 52))
def test_load_is_recorded_without_a_prefix_cache_that_finds_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The load equals that with the prefix cache, and time does not grow with the blocks of prompts."""
    problem, caches = draw_problem(seed), []

    def build_cluster(requests: EngineRequests, limits: EngineLimits, *args: Any, **kinds: Any) -> EngineCluster:
        caches.append(limits.prefix_cache)
        return EngineCluster(requests, replace(limits, prefix_cache=True), *args, **kinds)

    outcome = evaluate(problem, EngineConfig(option=0, replicas=2, budget=64, max_seqs=32), complete=True)
    load = analysis.record_load(problem, outcome)
    monkeypatch.setattr(analysis, "EngineCluster", build_cluster)
    cached = analysis.record_load(problem, outcome)
    assert caches == [problem.requests.is_shared or outcome.run.preemptions > 0]
    for name in ("kv_share", "running", "waiting"):
        np.testing.assert_array_equal(getattr(load, name), getattr(cached, name))
