"""The cheapest engines that meet the targets: uniform-cost search over exact simulations.

Every candidate below the price of the plan is simulated or excluded by a proof, so the plan is the cheapest of the
choices. A simulation ends once a target is missed too often; limits of running requests above the peak of a run without
them change nothing and are skipped, as are those below a limit that meets the targets at the same price.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from unfold_pipeline._types import FloatArray
from unfold_pipeline.engine.planner.bounds import ReplicaBound, bound_replicas, measure_peak_work
from unfold_pipeline.engine.planner.busy_engines import estimate_step_times
from unfold_pipeline.engine.planner.problem import (
    EngineOption,
    EngineProblem,
    Latencies,
    build_abort_targets,
    measure_latencies,
    percentile,
)
from unfold_pipeline.engine.simulation.cluster import EngineRun, simulate
from unfold_pipeline.engine.simulation.engine_inputs import EngineLimits

COST_TOLERANCE = 1e-9
DEFAULT_BUDGET = 2048
"""vLLM's token budget for online serving on most GPUs; plans that tie take it."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Engines of one kind: index of the option, engines, and the limits that were chosen."""

    option: int
    replicas: int
    budget: int
    max_seqs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a configuration does on the trace.

    Attributes:
        config: The configuration.
        run: Its simulation.
        ttft_s: p99 time to first token.
        tpot_s: p99 time per later token.
        latency_s: p99 time to the last token.
    """

    config: EngineConfig
    run: EngineRun
    ttft_s: float
    tpot_s: float
    latency_s: float

    def meets(self, problem: EngineProblem) -> bool:
        """Return whether every target is met."""
        return not self.run.aborted and problem.targets.are_met(self.ttft_s, self.tpot_s, self.latency_s)

    def margin(self, problem: EngineProblem) -> float:
        """Return the least fraction of a target that is left."""
        pairs = (
            (self.ttft_s, problem.targets.ttft_s),
            (self.tpot_s, problem.targets.tpot_s),
            (self.latency_s, problem.targets.latency_s),
        )
        return min((1 - value / target for value, target in pairs if math.isfinite(target)), default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The best that an option does below the price of the plan, and which target it misses."""

    config: EngineConfig
    obstacle: str
    value_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSolution:
    """The cheapest plan, or none.

    Attributes:
        outcome: The plan on the trace; ``None`` if no choice meets the targets.
        simulations: Simulations.
        simulated_requests: Requests that were simulated to their end.
        bounds: Least engines of each option and budget, or the proof against it.
        refused: For each option, its configurations that miss with the most engines, one a token budget.
        refusals: What each of them misses, once :func:`explain_refusals` simulated it to its end.
        around_usd_per_hour: Price of the stages around the engines.
    """

    outcome: Outcome | None
    simulations: int
    simulated_requests: int
    bounds: tuple[tuple[ReplicaBound, ...], ...]
    refused: tuple[tuple[EngineConfig, ...], ...]
    refusals: tuple[Refusal, ...] = ()
    around_usd_per_hour: float = 0.0

    @property
    def config(self) -> EngineConfig | None:
        """The configuration of the plan."""
        return None if self.outcome is None else self.outcome.config


def build_limits(problem: EngineProblem, option: EngineOption, budget: int, max_seqs: int) -> EngineLimits:
    """Return the arguments of an engine."""
    settings = problem.settings
    return EngineLimits(
        num_blocks=option.kv_cache.num_blocks,
        max_num_batched_tokens=budget,
        max_num_seqs=max_seqs,
        prefix_cache=settings.prefix_cache,
        reserve_full_isl=settings.reserve_full_isl,
        async_scheduling=settings.async_scheduling,
        full_groups=option.kv_cache.layout.full_groups,
        window_groups=option.kv_cache.layout.window_groups,
        window=option.kv_cache.layout.window,
    )


def evaluate(problem: EngineProblem, config: EngineConfig, *, complete: bool = False) -> Outcome:
    """Simulate a configuration; unless ``complete``, only until a target is missed too often."""
    option = problem.options[config.option]
    limits = build_limits(problem, option, config.budget, config.max_seqs)
    run = simulate(
        problem.requests,
        limits,
        estimate_step_times(problem, option, limits, config.replicas),
        None if complete else build_abort_targets(problem),
        engines=config.replicas,
        routing=problem.settings.routing,
    )
    return describe_run(problem, config, run)


def describe_run(problem: EngineProblem, config: EngineConfig, run: EngineRun) -> Outcome:
    """Compute p99 TTFT, TPOT and latency (s) of a simulated run; infinite if the simulation was aborted."""
    if run.aborted:
        return Outcome(config=config, run=run, ttft_s=math.inf, tpot_s=math.inf, latency_s=math.inf)
    latencies, tail = (
        measure_latencies(problem.requests, run, problem.settings.front_s, problem.surroundings),
        problem.settings.tail,
    )
    ttft_s, tpot_s, latency_s = (percentile(values, 0.99, tail) for values in list_latencies(latencies))
    return Outcome(config=config, run=run, ttft_s=ttft_s, tpot_s=tpot_s, latency_s=latency_s)


def list_latencies(latencies: Latencies) -> Iterator[FloatArray]:
    """Yield TTFT, TPOT and latency."""
    yield from (latencies.ttft_s, latencies.tpot_s, latencies.latency_s)


def scale_problem(problem: EngineProblem, factors: tuple[float, ...]) -> EngineProblem:
    """Return the problem with the step times of each option multiplied by a factor."""
    options = tuple(
        replace(
            option,
            times=option.times.calibrated(overhead=option.times.overhead * factor, scale=option.times.scale * factor),
        )
        for option, factor in zip(problem.options, factors, strict=True)
    )
    return replace(problem, options=options)


def find_cheapest_engines(
    problem: EngineProblem, progress: Progress | None = None, ceiling_usd_per_hour: float = math.inf
) -> EngineSolution:
    """Return the cheapest engines that meet the targets; of equal price, the fewest GPUs, then the largest margin.

    Args:
        problem: What to plan.
        progress: Receives progress.
        ceiling_usd_per_hour: Price of the engines from which on no plan is of interest.
    """
    budgets = problem.settings.budgets
    peak = measure_peak_work(problem)
    bounds = tuple(
        tuple(bound_replicas(problem, option, budget, peak) for budget in budgets) for option in problem.options
    )
    queue: list[tuple[float, int, int, int, int]] = []
    for index, option_bounds in enumerate(bounds):
        for position, bound in enumerate(option_bounds):
            if not bound.obstacle:
                _push(queue, problem, index, bound.replicas, position)
    best: Outcome | None = None
    refused: dict[int, list[EngineConfig]] = {}
    simulations = simulated_requests = 0
    while queue:
        cost, gpus, replicas, index, position = heapq.heappop(queue)
        if cost >= ceiling_usd_per_hour or (best is not None and _is_beyond(problem, best, cost, gpus)):
            break
        outcomes = list(_try_limits(problem, index, replicas, budgets[position]))
        simulations += len(outcomes)
        simulated_requests += sum(outcome.run.finished for outcome in outcomes)
        feasible = [outcome for outcome in outcomes if outcome.meets(problem)]
        for outcome in feasible:
            best = outcome if best is None else _better(problem, best, outcome)
        if not feasible:
            largest = refused.setdefault(index, [])
            if largest and largest[0].replicas < replicas:
                largest.clear()
            largest.append(outcomes[0].config)
            _push(queue, problem, index, replicas + 1, position)
        if progress is not None:
            progress("engines", simulations, 0)
    return EngineSolution(
        outcome=best,
        simulations=simulations,
        simulated_requests=simulated_requests,
        bounds=bounds,
        refused=tuple(tuple(refused[index]) for index in sorted(refused)),
    )


def explain_refusals(problem: EngineProblem, solution: EngineSolution) -> EngineSolution:
    """Return the solution with what its refused configurations miss; ``problem`` is the one that was solved."""
    return replace(solution, refusals=tuple(_describe_refusal(problem, configs) for configs in solution.refused))


def _push(
    queue: list[tuple[float, int, int, int, int]], problem: EngineProblem, index: int, replicas: int, position: int
) -> None:
    option = problem.options[index]
    if replicas <= option.max_replicas(problem.settings.max_replicas):
        gpus = replicas * option.tensor_parallel
        heapq.heappush(queue, (option.cost(replicas), gpus, replicas, index, position))


def _is_beyond(problem: EngineProblem, best: Outcome, cost: float, gpus: int) -> bool:
    """Return whether a candidate cannot be better than the plan: it costs more, or as much with more GPUs."""
    option = problem.options[best.config.option]
    best_cost = option.cost(best.config.replicas)
    if cost > best_cost + COST_TOLERANCE:
        return True
    return cost >= best_cost - COST_TOLERANCE and gpus > best.config.replicas * option.tensor_parallel


def _try_limits(problem: EngineProblem, index: int, replicas: int, budget: int) -> Iterator[Outcome]:
    """Yield the outcomes of each limit of running requests, from the largest; those above the last peak are equal.

    A smaller limit costs as much, so it is tried only where the larger one misses a target.
    """
    peak = math.inf
    for max_seqs in sorted(problem.settings.max_seqs, reverse=True):
        if max_seqs >= peak:
            continue
        config = EngineConfig(option=index, replicas=replicas, budget=budget, max_seqs=max_seqs)
        outcome = evaluate(problem, config)
        peak = outcome.run.peak_running
        yield outcome
        if outcome.meets(problem):
            return


def _better(problem: EngineProblem, best: Outcome, outcome: Outcome) -> Outcome:
    """Return the outcome with the largest margin; within a hundredth, the engine's default budget."""
    first, second = best.margin(problem), outcome.margin(problem)
    if abs(first - second) <= 0.01:
        return outcome if outcome.config.budget == DEFAULT_BUDGET != best.config.budget else best
    return outcome if second > first else best


def _describe_refusal(problem: EngineProblem, configs: tuple[EngineConfig, ...]) -> Refusal:
    """Return which target configurations miss, by the complete run of that which misses least."""
    outcome = max((evaluate(problem, config, complete=True) for config in configs), key=lambda run: run.margin(problem))
    pairs = (
        ("ttft", outcome.ttft_s, problem.targets.ttft_s),
        ("tpot", outcome.tpot_s, problem.targets.tpot_s),
        ("latency", outcome.latency_s, problem.targets.latency_s),
    )
    obstacle, value_s, _ = max(pairs, key=lambda item: item[1] / item[2])
    return Refusal(config=outcome.config, obstacle=obstacle, value_s=value_s)
