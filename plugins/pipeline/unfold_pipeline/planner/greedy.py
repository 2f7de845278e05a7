"""The greedy planner of InferLine (SoCC 2020): initialize for latency, then take the cheapest feasible step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from unfold_pipeline.estimator.slo import SloChecker
from unfold_pipeline.planner.bounds import MAX_REPLICAS
from unfold_pipeline.planner.greedy_init import find_initial_plan
from unfold_pipeline.problem.pipeline import COST_TOLERANCE, Plan, StageConfig, count_by_hardware, replace_config


@dataclass(frozen=True, slots=True)
class GreedyStep:
    """A step of the greedy planner: its stage, its kind, and the $/h of the plan after it."""

    stage: str
    move: str
    hourly_cost: float


@dataclass(frozen=True, slots=True)
class GreedySolution:
    """The end of the greedy planner: the plan (``None``: none meets the SLO) and the steps that led to it."""

    plan: Plan | None
    steps: tuple[GreedyStep, ...] = ()


class _Move(NamedTuple):
    """A candidate step: its kind, the plan after it, and the saving that a doubled batch makes possible."""

    kind: str
    plan: Plan
    gain: float = 0.0


class _ChosenMove(NamedTuple):
    stage: int
    kind: str
    plan: Plan


def plan_greedily(checker: SloChecker, *, compound: bool = False) -> GreedySolution:
    """Return the greedy plan.

    Args:
        checker: Pipeline, samples and SLO.
        compound: Also try to double a batch and remove replicas in one step.
    """
    plan = find_initial_plan(checker)
    if plan is None:
        return GreedySolution(None)
    steps: list[GreedyStep] = []
    while True:
        move = _find_best_move(checker, plan, compound=compound)
        if move is None:
            return GreedySolution(plan, tuple(steps))
        plans = [move.plan]
        if move.kind == "replica":
            plans += _repeat_removal(checker, move.plan, move.stage)
        name = checker.pipeline.stages[move.stage].name
        steps += [GreedyStep(name, move.kind, checker.pipeline.cost(after)) for after in plans]
        plan = plans[-1]


def _repeat_removal(checker: SloChecker, plan: Plan, index: int) -> Iterator[Plan]:
    """Yield the plans of further removals of a replica at the same stage.

    No other step becomes cheaper by a removal, so the same one would be chosen again; bisection finds how often.
    """
    config = plan[index]
    is_dedicated = checker.pipeline.chosen_options(plan)[index].replicas_per_instance == 1
    is_priced = is_dedicated and checker.pipeline.stage_price(index, config)
    count = _find_least_replicas(checker, plan, index, config) if is_priced else None
    for replicas in range(config.replicas - 1, (count or config.replicas) - 1, -1):
        yield replace_config(plan, index, replace(config, replicas=replicas))


def _find_best_move(checker: SloChecker, plan: Plan, *, compound: bool) -> _ChosenMove | None:
    """Return the feasible step of least cost, or the doubled batch of equal cost that gains most."""
    current_price = _price_plan(checker, plan)
    best: _ChosenMove | None = None
    best_rank: tuple[float, float, float, int] | None = None
    for index in range(len(plan)):
        for move in _list_moves(checker, plan, index, compound=compound):
            price = _price_plan(checker, move.plan)
            is_better = price < current_price or (move.kind == "batch" and price == current_price)
            rank = (*price, -move.gain, index)
            if is_better and (best_rank is None or rank < best_rank) and checker.meets_slo(move.plan):
                best_rank, best = rank, _ChosenMove(index, move.kind, move.plan)
    return best


def _price_plan(checker: SloChecker, plan: Plan) -> tuple[float, float]:
    """Return the $/h, then the $/h on full instances: removing a replica may lead to one instance less later."""
    return round(checker.pipeline.cost(plan), 9), round(checker.pipeline.cost_lower_bound(plan), 9)


def _list_moves(checker: SloChecker, plan: Plan, index: int, *, compound: bool) -> Iterator[_Move]:
    config = plan[index]
    options = checker.pipeline.stages[index].options
    option = options[config.option]
    if config.replicas > 1:
        yield _Move("replica", replace_config(plan, index, replace(config, replicas=config.replicas - 1)))
    larger = [batch for batch in option.batch_sizes if batch > config.batch]
    if larger:
        speedup = option.throughput(config.batch) / option.throughput(larger[0])
        gain = option.usd_per_hour * config.replicas * (1 - speedup)
        for fewer in (0, 1, 2) if compound else (0,):
            if config.replicas > fewer:
                changed = StageConfig(config.option, larger[0], config.replicas - fewer)
                yield _Move("batch and replica" if fewer else "batch", replace_config(plan, index, changed), gain)
    instance_price = option.usd_per_hour * option.replicas_per_instance
    for number, candidate in enumerate(options):
        is_cheaper = candidate.usd_per_hour < option.usd_per_hour
        if is_cheaper or candidate.usd_per_hour * candidate.replicas_per_instance < instance_price:
            downgraded = _downgrade_hardware(checker, plan, index, number)
            if downgraded is not None:
                yield _Move(f"hardware {candidate.hardware}", downgraded)


def _downgrade_hardware(checker: SloChecker, plan: Plan, index: int, option: int) -> Plan | None:
    """Return the plan with one stage on cheaper hardware, its batch and replicas optimized, if it is cheaper."""
    max_replicas = _count_affordable_replicas(checker, plan, index, option)
    best: Plan | None = None
    for batch in checker.pipeline.stages[index].options[option].batch_sizes:
        count = _find_least_replicas(checker, plan, index, StageConfig(option, batch, max_replicas))
        if count is not None:
            best, max_replicas = replace_config(plan, index, StageConfig(option, batch, count)), count - 1
    return best


def _count_affordable_replicas(checker: SloChecker, plan: Plan, index: int, option: int) -> int:
    """Return the maximum replicas of a stage on other hardware with which the plan is cheaper than now."""
    pipeline = checker.pipeline
    hardware = pipeline.stages[index].options[option]
    if not hardware.usd_per_hour:
        return MAX_REPLICAS
    size = hardware.replicas_per_instance
    without = replace_config(plan, index, StageConfig(option, 1, 0))
    used = count_by_hardware(pipeline.chosen_options(without), [config.replicas for config in without])
    instances = (pipeline.cost(plan) - pipeline.cost(without)) / (hardware.usd_per_hour * size)
    return min(MAX_REPLICAS, int(instances - COST_TOLERANCE) * size + -used[hardware.hardware] % size)


def _find_least_replicas(checker: SloChecker, plan: Plan, index: int, largest: StageConfig) -> int | None:
    """Return the least replicas, up to those of ``largest``, with which the plan meets the SLO."""
    if largest.replicas < 1 or not checker.meets_slo(replace_config(plan, index, largest)):
        return None
    low, high = 0, largest.replicas
    while high - low > 1:
        middle = (low + high) // 2
        meets_slo = checker.meets_slo(replace_config(plan, index, replace(largest, replicas=middle)))
        low, high = (low, middle) if meets_slo else (middle, high)
    return high
