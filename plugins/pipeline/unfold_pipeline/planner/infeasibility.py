"""When nothing meets the target: which stage or quota stands in the way, and how little would help."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

from unfold_pipeline.estimator.slo import Judge
from unfold_pipeline.planner import greedy
from unfold_pipeline.planner.bounds import MOST, Bounds
from unfold_pipeline.planner.branch_and_bound import Search, cheapest
from unfold_pipeline.planner.greedy_init import start
from unfold_pipeline.problem.pipeline import Choice, Pipeline, Plan, counted, service_time

PLENTY = 4096
SHARE = 0.05
CLOSE, FINE = 0.01, 0.002
STEPS = (1.0, 1.01, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0, 4.0, 8.0, 16.0, 32.0)


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why there is no plan.

    ``stage`` takes most of the unavoidable time: ``own`` seconds of ``total`` for one query. ``quotas`` are hardware
    and the quota of it that would do: of one kind if that is enough, the one to be raised least. ``relaxed`` is a limit
    in seconds for which a plan costs ``cost``.
    """

    stage: int
    hardware: str
    own: float
    total: float
    quotas: tuple[tuple[str, int], ...] = ()
    relaxed: float | None = None
    cost: float | None = None


def explain(judge: Judge, most_items: float) -> Obstacle:
    """Return the obstacle for a judge whose limit no plan meets."""
    chosen = fastest(judge.pipeline)
    seconds = [float(s.options[c.option].latency[1]) for s, c in zip(judge.pipeline.stages, chosen, strict=True)]
    stage = max(range(len(seconds)), key=lambda index: (_on_path(judge, seconds, index), seconds[index]))
    hardware = judge.pipeline.stages[stage].options[chosen[stage].option].hardware
    found = Obstacle(stage, hardware, seconds[stage], judge.single(chosen))
    free = replace(judge, pipeline=replace(judge.pipeline, quotas=()))
    unbound = greedy.plan(free).plan if judge.pipeline.quotas else None
    if unbound is not None:
        found = replace(found, quotas=_enough(judge, unbound, most_items))
    return _relaxed(found, judge, chosen, most_items)


def fastest(pipeline: Pipeline) -> Plan:
    """Return batch 1 on the quickest hardware, with replicas in plenty."""
    return tuple(Choice(stage.quickest_option, 1, PLENTY) for stage in pipeline.stages)


def _on_path(judge: Judge, seconds: list[float], index: int) -> bool:
    without = [0.0 if place == index else item for place, item in enumerate(seconds)]
    return service_time(judge.pipeline, without) < service_time(judge.pipeline, seconds)


def _enough(judge: Judge, unbound: Plan, most_items: float) -> tuple[tuple[str, int], ...]:
    """Return the quota that must be raised least, others as they are, or those that ``unbound`` is above together."""
    quotas = judge.pipeline.quotas
    items = most_items * SHARE / len(quotas)
    wanted = [(name, most, _least(judge, name, most, items)) for name, most in quotas]
    raised = [(count - most, place) for place, (_, most, count) in enumerate(wanted) if count and count > most]
    if raised:
        name, _, count = wanted[min(raised)[1]]
        return ((name, count or 0),)
    return tuple((name, used) for name, used, _ in judge.pipeline.over_quotas(unbound))


def _least(judge: Judge, name: str, most: int, items: float) -> int | None:
    """Return the least quota of some hardware with which a plan is found, ``None`` if none does."""
    plan = greedy.plan(_allowing(judge, name, MOST)).plan
    if plan is None:
        return None
    low, high = most, counted(judge.pipeline.options(plan), [choice.replicas for choice in plan]).get(name, 0)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _planned(_allowing(judge, name, middle), items) else (middle, high)
    return high


def _planned(judge: Judge, items: float) -> bool:
    return (
        start(judge) is not None or _searched(judge, Bounds(judge.pipeline, judge.estimators), items, None) is not None
    )


def _allowing(judge: Judge, name: str, count: int) -> Judge:
    quotas = tuple((other, count if other == name else most) for other, most in judge.pipeline.quotas)
    return replace(judge, pipeline=replace(judge.pipeline, quotas=quotas))


def _relaxed(found: Obstacle, judge: Judge, chosen: Plan, most_items: float) -> Obstacle:
    """Try limits from the least that unlimited replicas reach upwards, until there is a plan."""
    free = replace(judge, pipeline=replace(judge.pipeline, quotas=()))
    least = max(free.tail(chosen), judge.limit)
    loose = [replace(judge, limit=math.ceil(least * factor * 1e3) / 1e3) for factor in STEPS]
    bounds = Bounds(judge.pipeline, judge.estimators)
    # greedy is quick, so the search looks for a limit only where greedy finds none
    for before, item in itertools.pairwise([judge, *loose]):
        if greedy.plan(item).plan is not None:
            near = _tighter(item, before.limit, most_items * SHARE)
            return _at(found, near, _searched(near, bounds, most_items, greedy.plan(near).plan))
    plans = ((item, _searched(item, bounds, most_items / len(loose), None)) for item in loose)
    return next((_at(found, item, plan) for item, plan in plans if plan is not None), found)


def _tighter(judge: Judge, low: float, items: float) -> Judge:
    """Return the judge of the least limit above ``low`` seconds with which a plan is found, to 1 % or 2 ms."""
    while judge.limit - low > max(CLOSE * judge.limit, FINE):
        middle = replace(judge, limit=math.ceil((low + judge.limit) / 2 * 1e3) / 1e3)
        low, judge = (low, middle) if _planned(middle, items) else (middle.limit, judge)
    return judge


def _at(found: Obstacle, judge: Judge, plan: Plan | None) -> Obstacle:
    return found if plan is None else replace(found, relaxed=judge.limit, cost=judge.pipeline.cost(plan))


def _searched(judge: Judge, bounds: Bounds, most_items: float, first: Plan | None) -> Plan | None:
    ceiling = math.inf if first is None else judge.pipeline.cost(first)
    return cheapest(Search(judge, bounds, ceiling), most_items=most_items).plan or first
