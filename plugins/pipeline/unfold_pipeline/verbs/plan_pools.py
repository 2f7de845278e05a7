"""Separate pools of prefill and decode engines in the verb ``plan``: planned next to engines that do both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unfold_pipeline.engine.planner.analysis import compare_ends, scale_to_end
from unfold_pipeline.engine.planner.disaggregation import (
    PoolConfig,
    PoolOutcome,
    PoolSolution,
    evaluate_pools,
    find_cheapest_pools,
    price_pools,
)
from unfold_pipeline.engine.planner.problem import Disaggregation, EngineProblem
from unfold_pipeline.engine.planner.search import (
    COST_TOLERANCE,
    EngineSolution,
    Progress,
    evaluate,
    find_cheapest_engines,
)
from unfold_pipeline.estimator.slo_on_fresh_samples import FreshShare
from unfold_pipeline.planner.confident_plan import measure_fresh_request_share
from unfold_pipeline.report.engines.plan import add_left_out
from unfold_pipeline.report.engines.pools import (
    build_pool_replay_report,
    build_pool_report,
    describe_pool_alternative,
    parse_pool_decision,
    recheck_pools,
)
from unfoldkit.api import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlans:
    """The cheapest pools at the lower end, as predicted, and at the upper end of the interval.

    Attributes:
        disaggregation: Links and pairs.
        low: The pools if steps are as fast as the interval allows.
        predicted: The pools with predicted steps.
        high: The pools if steps are as slow.
    """

    disaggregation: Disaggregation
    low: PoolSolution
    predicted: PoolSolution
    high: PoolSolution

    def choose(self, problem: EngineProblem) -> PoolSolution:
        """Return the pools that the plan is for: at the upper end where a confidence is stated."""
        return self.predicted if problem.confidence is None else self.high


def find_pools(problem: EngineProblem, progress: Progress) -> PoolPlans | None:
    """Return the cheapest pools at both ends of the interval; ``None`` if the spec has none."""
    disaggregation = problem.disaggregation
    if disaggregation is None:
        return None
    low, predicted, high = (
        find_cheapest_pools(case, disaggregation, progress)
        for case in (scale_to_end(problem, high=False), problem, scale_to_end(problem, high=True))
    )
    return PoolPlans(disaggregation=disaggregation, low=low, predicted=predicted, high=high)


def is_cheaper(problem: EngineProblem, pools: PoolPlans, solution: EngineSolution) -> bool:
    """Return whether two pools cost less than engines that do both."""
    cost = price_pool_plan(problem, pools.choose(problem))
    if cost is None:
        return False
    config = solution.config
    return config is None or cost < problem.cost(config.option, config.replicas) - COST_TOLERANCE


def find_least_price(problem: EngineProblem, progress: Progress, ceiling_usd_per_hour: float) -> float | None:
    """Return the $/h of the cheapest engines, or pools if the spec has some; ``None`` if nothing meets the targets."""
    prices = [price_engines(problem, find_cheapest_engines(problem, progress, ceiling_usd_per_hour))]
    if problem.disaggregation is not None:
        prices.append(price_pool_plan(problem, find_cheapest_pools(problem, problem.disaggregation, progress)))
    return min((price for price in prices if price is not None), default=None)


def report_pools(
    problem: EngineProblem, pools: PoolPlans, solution: EngineSolution, ends: tuple[EngineSolution, EngineSolution]
) -> Report:
    """Return the report of pools that cost less.

    Args:
        problem: With the predicted step times.
        pools: The cheapest pools.
        solution: The cheapest engines that do both.
        ends: Those at the lower and at the upper end.
    """
    chosen = pools.choose(problem).outcome
    assert chosen is not None  # noqa: S101 - the pools are cheaper than another plan
    low, predicted, high = (
        evaluate_pools(case, pools.disaggregation, chosen.config)
        for case in (scale_to_end(problem, high=False), problem, scale_to_end(problem, high=True))
    )
    measures = compare_ends(problem, (low.run, predicted.run, high.run))
    prices = tuple(
        min((cost for cost in costs if cost is not None), default=None)
        for costs in (
            (price_pool_plan(problem, pools.low), price_engines(problem, ends[0])),
            (price_pool_plan(problem, pools.high), price_engines(problem, ends[1])),
        )
    )
    aggregated = None if solution.config is None else evaluate(problem, solution.config, complete=True)
    return build_pool_report(problem, pools.disaggregation, predicted, measures, (prices[0], prices[1]), aggregated)


def measure_fresh_pools(problem: EngineProblem, pools: PoolPlans, seed: int) -> FreshShare | None:
    """Return on how many fresh samples of the requests of a problem the chosen pools meet its targets."""
    chosen = pools.choose(problem).outcome
    assert chosen is not None  # noqa: S101 - the pools are cheaper than another plan
    config, links = chosen.config, pools.disaggregation
    return measure_fresh_request_share(
        problem, lambda sample: evaluate_pools(sample, links, config).meets(sample), seed
    )


def describe_pools_beside(problem: EngineProblem, pools: PoolPlans | None) -> tuple[tuple[str, str], ...]:
    """Return the line on the pools beside a plan without them; none if the spec has no pools."""
    if pools is None:
        return ()
    solution = pools.choose(problem)
    outcome = solution.outcome
    complete = None if outcome is None else evaluate_pools(problem, pools.disaggregation, outcome.config)
    return describe_pool_alternative(problem, solution, complete)


def recheck_pool_plan(problem: EngineProblem, committed: Mapping[str, Any]) -> Report:
    """Return whether committed pools meet their targets on other traffic.

    Raises:
        UnfoldError: The plan has other engines than the spec.
    """
    config = parse_pool_decision(committed, problem)
    return recheck_pools(problem, committed, _evaluate(problem, config))


def replay_pools(problem: EngineProblem, config: PoolConfig, solution: EngineSolution | None) -> Report:
    """Replay the requests of a problem on pools of constant size, next to the cheapest engines that do both."""
    aggregated = solution.config if solution is not None else None
    beside = None if aggregated is None else evaluate(problem, aggregated, complete=True)
    return add_left_out(build_pool_replay_report(problem, _evaluate(problem, config), beside), problem)


def _evaluate(problem: EngineProblem, config: PoolConfig) -> PoolOutcome:
    assert problem.disaggregation is not None  # noqa: S101 - the pools were planned or parsed
    return evaluate_pools(problem, problem.disaggregation, config)


def price_pool_plan(problem: EngineProblem, solution: PoolSolution) -> float | None:
    """Return the $/h of pools; ``None`` if there are none."""
    return None if solution.outcome is None else price_pools(problem, solution.outcome.config)


def price_engines(problem: EngineProblem, solution: EngineSolution) -> float | None:
    """Return the $/h of engines; ``None`` if there are none."""
    config = solution.config
    return None if config is None else problem.cost(config.option, config.replicas)
