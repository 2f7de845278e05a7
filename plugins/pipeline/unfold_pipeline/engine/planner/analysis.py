"""What explains a plan of engines: percentiles at both ends of the interval, other replica counts, load over time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from unfold_pipeline._types import FloatArray
from unfold_pipeline.engine.planner.busy_engines import estimate_step_times
from unfold_pipeline.engine.planner.problem import EngineProblem, measure_latencies, percentile
from unfold_pipeline.engine.planner.search import (
    EngineSolution,
    Outcome,
    Progress,
    build_limits,
    evaluate,
    find_cheapest_engines,
    list_latencies,
    scale_problem,
)
from unfold_pipeline.engine.simulation.cluster import EngineCluster, TokenTimes

QUANTILES = (0.5, 0.9, 0.99)
SLICES = 240
MAX_NEIGHBORS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Percentiles of one measure in seconds: by quantile, at the lower end, predicted, and at the upper end."""

    low: tuple[float, ...]
    predicted: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSeries:
    """What the engines hold over time.

    Attributes:
        time_s: (slices,) moments.
        kv_share: (slices,) fraction of all KV blocks in use.
        running: (slices,) running requests.
        waiting: (slices,) waiting requests.
    """

    time_s: FloatArray
    kv_share: FloatArray
    running: FloatArray
    waiting: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAnalysis:
    """What explains a plan.

    Attributes:
        ttft: Percentiles of the time to first token.
        tpot: Percentiles of the time per later token.
        latency: Percentiles of the time to the last token.
        low: The plan if steps are as fast as the interval allows.
        high: The plan if they are as slow; without an outcome if none exists.
        by_gpu: The plan if GPUs could be rented one by one; ``None`` where they are.
        neighbors: Complete outcomes by replica count around the plan.
        load: Load over time.
    """

    ttft: Percentiles
    tpot: Percentiles
    latency: Percentiles
    low: EngineSolution
    high: EngineSolution
    by_gpu: EngineSolution | None
    neighbors: tuple[Outcome, ...]
    load: LoadSeries


def scale_to_end(problem: EngineProblem, *, high: bool) -> EngineProblem:
    """Return the problem at one end of the interval of its step times."""
    ends = tuple(option.interval.high if high else option.interval.low for option in problem.options)
    return scale_problem(problem, ends)


def analyze_plan(
    problem: EngineProblem, outcome: Outcome, solutions: tuple[EngineSolution, EngineSolution], progress: Progress
) -> EngineAnalysis:
    """Return what explains a plan.

    Args:
        problem: With the predicted step times.
        outcome: The complete outcome of the plan.
        solutions: The plans at the lower and at the upper end.
        progress: Receives progress.
    """
    low, high = (
        evaluate(scale_to_end(problem, high=is_high), outcome.config, complete=True) for is_high in (False, True)
    )
    ttft, tpot, latency = compare_ends(problem, (low.run, outcome.run, high.run))
    by_gpu = None
    if any(option.gpus_per_node > 1 for option in problem.options):
        options = tuple(replace(option, gpus_per_node=1) for option in problem.options)
        by_gpu = find_cheapest_engines(replace(problem, options=options), progress)
        if problem.surroundings is not None:
            by_gpu = replace(by_gpu, around_usd_per_hour=problem.surroundings.usd_per_hour)
    return EngineAnalysis(
        ttft=ttft,
        tpot=tpot,
        latency=latency,
        low=solutions[0],
        high=solutions[1],
        by_gpu=by_gpu,
        neighbors=_simulate_neighbors(problem, outcome),
        load=record_load(problem, outcome),
    )


def compare_ends(
    problem: EngineProblem, runs: tuple[TokenTimes, TokenTimes, TokenTimes]
) -> tuple[Percentiles, Percentiles, Percentiles]:
    """Return TTFT, TPOT and latency of complete runs at the lower end, as predicted, and at the upper end."""
    values = [_list_percentiles(problem, item) for item in runs]
    ttft, tpot, latency = (
        Percentiles(low=values[0][kind], predicted=values[1][kind], high=values[2][kind]) for kind in range(3)
    )
    return ttft, tpot, latency


def _list_percentiles(problem: EngineProblem, run: TokenTimes) -> list[tuple[float, ...]]:
    latencies = measure_latencies(problem.requests, run, problem.settings.front_s, problem.surroundings)
    return [
        tuple(percentile(values, quantile, problem.settings.tail) for quantile in QUANTILES)
        for values in list_latencies(latencies)
    ]


def _simulate_neighbors(problem: EngineProblem, outcome: Outcome) -> tuple[Outcome, ...]:
    config = outcome.config
    limit = problem.options[config.option].max_replicas(problem.settings.max_replicas)
    first, last = max(1, config.replicas - MAX_NEIGHBORS), min(config.replicas + MAX_NEIGHBORS, limit)
    return tuple(
        outcome if count == config.replicas else evaluate(problem, replace(config, replicas=count), complete=True)
        for count in range(first, last + 1)
    )


def record_load(problem: EngineProblem, outcome: Outcome) -> LoadSeries:
    """Simulate a plan in slices and record KV cache, running and waiting requests at the end of each.

    Slices end with the last arrival, or with the last token of a batch which arrives at one instant.
    """
    config = outcome.config
    option, arrivals = problem.options[config.option], problem.requests.arrival_s
    limits = build_limits(problem, option, config.budget, config.max_seqs)
    if not problem.requests.is_shared and not outcome.run.preemptions:
        # nothing is found in a prefix cache, and its blocks would cost time
        limits = replace(limits, prefix_cache=False)
    cluster = EngineCluster(
        problem.requests,
        limits,
        estimate_step_times(problem, option, limits, config.replicas),
        engines=config.replicas,
        routing=problem.settings.routing,
    )
    end_s = float(arrivals[-1] if arrivals[-1] > arrivals[0] else np.nanmax(outcome.run.last_token_s))
    moments = np.linspace(0.0, end_s, SLICES + 1)[1:]
    rows = []
    for moment in moments:
        cluster.route(int(np.searchsorted(arrivals, moment, side="right")))
        cluster.advance(math.nextafter(float(moment), math.inf))
        load = cluster.load()
        blocks = float(load.blocks.sum()) / (option.kv_cache.num_blocks * config.replicas)
        rows.append((blocks, float(load.running.sum()), float(load.waiting.sum())))
    columns = np.array(rows).T
    return LoadSeries(time_s=moments, kv_share=columns[0], running=columns[1], waiting=columns[2])
