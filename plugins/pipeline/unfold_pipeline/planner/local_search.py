"""Local search: trades of time between two stages, which no single step makes, and the batch of least percentile."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

from unfold_pipeline.estimator.slo import SloChecker
from unfold_pipeline.problem.pipeline import COST_TOLERANCE, Plan, StageConfig, replace_config


def trade_between_stages(checker: SloChecker, plan: Plan, max_simulated_queries: float) -> Plan:
    """Return the plan after all trades between two stages that make it cheaper, or until the budget is spent.

    Each of the two stages takes other hardware, batch size and about the replicas that sustain the same load; the
    cheapest trade is tried first.
    """
    max_items = checker.simulated_items + max_simulated_queries
    while (cheaper := _find_cheaper_trade(checker, plan, max_items)) is not None:
        plan = cheaper
    return plan


def minimize_tail_latency(checker: SloChecker, plan: Plan) -> Plan:
    """Return the plan of equal price with a percentile that no other batch size of a single stage lowers."""
    best, tail_s = plan, checker.tail_latency(plan)
    for index, config in enumerate(plan):
        for batch in checker.pipeline.stages[index].options[config.option].batch_sizes:
            candidate = replace_config(best, index, replace(config, batch=batch))
            candidate_s = checker.tail_latency(candidate)
            if candidate_s < tail_s - COST_TOLERANCE and checker.meets_slo(candidate):
                best, tail_s = candidate, candidate_s
    return best


def _find_cheaper_trade(checker: SloChecker, plan: Plan, max_items: float) -> Plan | None:
    for candidate in _rank_trades(checker, plan):
        if checker.simulated_items > max_items:
            return None
        if checker.meets_slo(candidate):
            return candidate
    return None


def _rank_trades(checker: SloChecker, plan: Plan) -> list[Plan]:
    """Return the cheaper plans that differ at two stages at most, the cheapest first."""
    offers = [tuple(_list_configs(checker, index, config)) for index, config in enumerate(plan)]
    max_cost = checker.pipeline.cost(plan) - COST_TOLERANCE
    costs: dict[Plan, float] = {}
    for left, right in itertools.combinations(range(len(plan)), 2):
        for left_config, right_config in itertools.product(offers[left], offers[right]):
            candidate = replace_config(replace_config(plan, left, left_config), right, right_config)
            if (cost := checker.pipeline.cost(candidate)) < max_cost:
                costs[candidate] = cost
    return sorted(costs, key=lambda candidate: costs[candidate])


def _list_configs(checker: SloChecker, index: int, config: StageConfig) -> Iterator[StageConfig]:
    """Yield the configuration, and others of a stage that can sustain its mean load."""
    options = checker.pipeline.stages[index].options
    throughput = config.replicas * options[config.option].throughput(config.batch)
    yield config
    for number, option in enumerate(options):
        for batch in option.batch_sizes:
            equivalent = round(throughput / option.throughput(batch))
            required = math.ceil(checker.stage_rate(index) / option.max_throughput(batch))
            counts = range(max(1, equivalent - 1, required), max(1, equivalent) + 2)
            yield from (StageConfig(number, batch, count) for count in counts)
