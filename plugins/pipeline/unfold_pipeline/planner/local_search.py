"""Two stages at once: a trade of time between them, which no single step makes, where the whole search was too long."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from unfold_pipeline.estimator.slo import Judge
from unfold_pipeline.problem.pipeline import Choice, Plan

CENT = 1e-9


def better(judge: Judge, plan: Plan, most_items: float) -> Plan:
    """Return the plan after all trades between two stages that make it cheaper, or as far as so many queries lead.

    Each stage takes other hardware, batches and about the replicas that carry as much; the cheapest trade goes first.
    """
    end = judge.items + most_items
    while (found := _cheaper(judge, plan, end)) is not None:
        plan = found
    return plan


def _cheaper(judge: Judge, plan: Plan, end: float) -> Plan | None:
    for other in _trades(judge, plan):
        if judge.items > end:
            return None
        if judge.meets(other):
            return other
    return None


def _trades(judge: Judge, plan: Plan) -> list[Plan]:
    """Return the cheaper plans that differ at two stages at most, the cheapest first."""
    offers = [tuple(_offers(judge, index, choice)) for index, choice in enumerate(plan)]
    most = judge.pipeline.cost(plan) - CENT
    prices: dict[Plan, float] = {}
    for one, two in itertools.combinations(range(len(plan)), 2):
        for first, second in itertools.product(offers[one], offers[two]):
            other = (*plan[:one], first, *plan[one + 1 : two], second, *plan[two + 1 :])
            if (price := judge.pipeline.cost(other)) < most:
                prices[other] = price
    return sorted(prices, key=lambda item: prices[item])


def _offers(judge: Judge, index: int, choice: Choice) -> Iterator[Choice]:
    """Yield the choice, and others of a stage that can carry its mean load."""
    options = judge.pipeline.stages[index].options
    now = choice.replicas * options[choice.option].throughput(choice.batch)
    yield choice
    for place, option in enumerate(options):
        for batch in option.batches:
            middle = round(now / option.throughput(batch))
            least = max(1, middle - 1, math.ceil(judge.load(index) / option.best_throughput(batch)))
            yield from (Choice(place, batch, count) for count in range(least, max(1, middle) + 2))
