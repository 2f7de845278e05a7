"""The cost-SLO frontier: what the cheapest plan costs for tighter and looser targets than the own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from unfold_pipeline.estimator.slo import Judge
from unfold_pipeline.planner import greedy, local_search
from unfold_pipeline.planner.bounds import Bounds
from unfold_pipeline.planner.branch_and_bound import CENT, Search, cheapest
from unfold_pipeline.planner.planner import Effort, Outcome, Progress, polished
from unfold_pipeline.problem.pipeline import Plan

AROUND = (0.6, 0.8, 1.0, 1.5, 2.0)
EASY = 0.2


@dataclass(frozen=True, slots=True)
class Point:
    """The cheapest plan that was found for a limit in seconds, ``None`` without one, and its $ an hour.

    ``exact`` says that the search came to its end: nothing is cheaper within the per-stage bounds.
    """

    limit: float
    plan: Plan | None
    cost: float | None
    exact: bool


@dataclass(slots=True)
class Ground:
    """What is known while the limits get tighter: plans for looser limits, and the least $ an hour that is left."""

    bounds: Bounds
    effort: Effort
    plans: list[Plan] = field(default_factory=list)
    floor: float = 0.0


def frontier(outcome: Outcome, limits: Sequence[float] | None, effort: Effort, progress: Progress) -> tuple[Point, ...]:
    """Return a point for each limit from tight to loose; never rising, and never above a plan that is known.

    Limits are taken from loose to tight: what no plan undercuts for a looser limit none undercuts for a tighter one.
    """
    own = outcome.judge.limit
    wanted = sorted({*(limits or [own * factor for factor in AROUND]), own}, reverse=True)
    ground = Ground(Bounds(outcome.judge.pipeline, outcome.judge.estimators), effort)
    ground.plans += [plan for plan in (outcome.plan, outcome.greedy.plan) if plan is not None]
    points: list[Point] = []
    for index, limit in enumerate(wanted):
        judge = replace(outcome.judge, limit=limit)
        point = _own(outcome, ground) if limit == own else _searched(judge, ground)
        points.append(point)
        ground.floor = (math.inf if point.cost is None else point.cost) if point.exact else ground.floor
        progress("frontier", index + 1, len(wanted))
    return tuple(itertools.accumulate(points[::-1], _lower))


def improved(outcome: Outcome, points: Sequence[Point]) -> Outcome:
    """Return the outcome with the plan of its own point, which a search for another limit may have made cheaper."""
    own = next((point.plan for point in points if point.limit == outcome.judge.limit), None)
    return outcome if own is None else replace(outcome, plan=own)


def _own(outcome: Outcome, ground: Ground) -> Point:
    plan = _best(outcome.judge, ground.plans) or outcome.plan
    plan = plan if outcome.judge.pipeline.cost(plan) < outcome.cost - CENT else outcome.plan
    return _point(outcome.judge, plan, exact=outcome.searched or outcome.proven)


def _searched(judge: Judge, ground: Ground) -> Point:
    best = _best(judge, ground.plans)
    if ground.floor == math.inf or (best is not None and judge.pipeline.cost(best) <= ground.floor + CENT):
        return _point(judge, best, exact=True)
    start = best or greedy.plan(judge).plan
    ceiling = math.inf if start is None else judge.pipeline.cost(start)
    effort = ground.effort
    found = cheapest(
        Search(judge, ground.bounds, ceiling),
        most_items=effort.most_items * EASY,
        # nodes of long pipelines cost much and simulate little
        most_nodes=effort.most_nodes * EASY,
    )
    # greedy is not waited for where the search makes it needless
    other = greedy.plan(judge).plan if best is not None and not found.complete else None
    best = _best(judge, [plan for plan in (found.plan, start, other) if plan is not None])
    if best is not None:
        best = best if found.complete else local_search.better(judge, best, effort.most_items * EASY)
        # of equal prices, the plan with the lowest percentile may do for the next, tighter limit
        best = polished(judge, best)
        ground.plans.append(best)
    return _point(judge, best, exact=found.complete)


def _best(judge: Judge, plans: Sequence[Plan]) -> Plan | None:
    return min((plan for plan in plans if judge.meets(plan)), key=judge.pipeline.cost, default=None)


def _point(judge: Judge, plan: Plan | None, *, exact: bool) -> Point:
    return Point(judge.limit, plan, None if plan is None else judge.pipeline.cost(plan), exact)


def _lower(tight: Point, loose: Point) -> Point:
    """Return the looser point, with the plan of the tighter one where that is cheaper."""
    if tight.cost is None or (loose.cost is not None and loose.cost <= tight.cost + CENT):
        return loose
    return replace(tight, limit=loose.limit, exact=False)
