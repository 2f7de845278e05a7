"""The front of whole cascades over time: steps of every stage put together, and simulated together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from unfold_cascade._types import BoolArray
from unfold_cascade.gates.pareto import find_pareto_points
from unfold_cascade.schema.temporal import Alerts
from unfold_cascade.temporal.evaluation.baselines import Rivals
from unfold_cascade.temporal.evaluation.evaluate import Quality, at_rate, outcome, quality
from unfold_cascade.temporal.models.study import Study
from unfold_cascade.temporal.models.training import rows_in_stage
from unfold_cascade.temporal.search.alarms import Alarm, alarms
from unfold_cascade.temporal.search.candidates import Candidate, Yard, candidates, field
from unfold_cascade.temporal.simulation.cost import bill, relative
from unfold_cascade.temporal.simulation.policy import Policy, ladder
from unfold_cascade.temporal.simulation.trajectories import walk

PAIRS = 160
ALARMS = 3
POINTS = 96
# about one standard error of either on ten thousand patients
SLACK = Alerts(utility_margin=0.01, auprc_margin=0.005)


@dataclass(frozen=True, slots=True)
class Point:
    """A cascade, its loss, bill and utility on the tuning patients, and its cost as a share of the monolith's."""

    policy: Policy
    loss: float
    bill: dict[str, float]
    cost: float
    utility: float


@dataclass(frozen=True, slots=True)
class Front:
    """Cascades by ascending cost and descending loss; ``watch`` are the alarms that were tried, by cost.

    ``kept`` tells whether alarms were found that keep the monolith's utility and ranking on the tuning patients.
    ``loose`` are cascades whose alarm may be as much worse as chance alone can make it (``SLACK``): for the monolith
    without memory, against which the paper asks for the accuracy alone.
    """

    points: tuple[Point, ...]
    watch: tuple[Alarm, ...]
    kept: bool
    loose: tuple[Point, ...]


def parallel(study: Study) -> BoolArray:
    """Return (S,) which stages are asked at every hour."""
    return np.array([stage.parallel for stage in study.spec.stages])


def search(study: Study, rivals: Rivals, yard: Yard, alerts: Alerts) -> Front:
    """Return the front on the tuning patients: loss against relative cost, at a given rate of alerts.

    Each stage alone gives candidates. Of the last stage the cheapest steps stay that keep the monolith's utility and
    average precision. Pairs of steps are ranked by the sum of their costs, and simulated whole.
    """
    gates, part = study.spec.gates, study.train
    ladders = []
    for s in range(len(study.stages) - 1):
        where = field(part, s, _own(study, s))
        ladders.append(candidates(where, study.stages[s], yard, gates))
    last = field(part, 0, _own(study, len(study.stages) - 1))
    watch = alarms(part, last, study.stages[-1], yard, alerts.per_100h, gates)
    base = rivals.latched_quality
    good, near = adequate(watch, base, alerts), adequate(watch, base, SLACK)
    every = _points(study, ladders, cheapest(good or nearest(watch, base)), yard, alerts)
    kept = [point for point in every if keeps(study, point, yard, base, alerts)]
    loose = _points(study, ladders, cheapest(near), yard, alerts) if cheapest(near) != cheapest(good) else every
    points = _front(kept or every)
    near_enough = [point for point in loose if keeps(study, point, yard, base, SLACK)]
    return Front(points, tuple(watch), bool(good and kept), _front(near_enough or loose) or points)


def keeps(study: Study, point: Point, yard: Yard, base: Quality, alerts: Alerts) -> bool:
    """Whether a cascade loses no more utility and average precision than allowed, on the tuning patients.

    Watched at every hour, the last stage warns as its alarm alone, which was looked at; behind other stages it
    is not asked about the cases that they keep back.
    """
    flags, part = parallel(study), study.train
    if flags[-1]:
        return True
    if point.utility < base.utility - alerts.utility_margin:
        return False
    done = outcome(part, point.policy, flags, yard.moves, yard.rates)
    return quality(part, done).auprc >= base.auprc - alerts.auprc_margin


def _points(
    study: Study, ladders: Sequence[Sequence[Candidate]], chosen: Sequence[Alarm], yard: Yard, alerts: Alerts
) -> list[Point]:
    """Return the pairs of steps with some alarms."""
    found = [_point(study, steps, yard, alerts.per_100h) for steps in _pairs(ladders, chosen)]
    return [point for point in found if point is not None]


def _front(points: Sequence[Point]) -> tuple[Point, ...]:
    """Return those that no other is cheaper and better than."""
    best = find_pareto_points(np.array([point.loss for point in points]), np.array([point.cost for point in points]))
    return tuple(points[place] for place in best[:POINTS])


def adequate(watch: Sequence[Alarm], base: Quality, alerts: Alerts) -> list[Alarm]:
    """Return the alarms that lose no more utility and average precision than allowed, against the monolith."""
    utility, auprc = base.utility - alerts.utility_margin, base.auprc - alerts.auprc_margin
    return [one for one in watch if one.found.utility >= utility and one.found.auprc >= auprc]


def nearest(watch: Sequence[Alarm], base: Quality) -> list[Alarm]:
    """Return the alarm that loses least of either, as a share of what the monolith has, or of what chance can make."""

    def lost(one: Alarm) -> float:
        utility = (base.utility - one.found.utility) / max(abs(base.utility), SLACK.utility_margin)
        return max(utility, (base.auprc - one.found.auprc) / max(base.auprc, SLACK.auprc_margin))

    return [min(watch, key=lost)]


def cheapest(good: Sequence[Alarm]) -> list[Alarm]:
    """Return the cheapest alarms."""
    return sorted(good, key=lambda one: one.cost)[:ALARMS]


def _own(study: Study, s: int) -> BoolArray:
    stage, part = study.spec.stages[s], study.train
    return rows_in_stage(part.highest, part.since, s, parallel=stage.parallel, fresh=stage.fresh)


def _pairs(ladders: Sequence[Sequence[Candidate]], chosen: Sequence[Alarm]) -> list[Policy]:
    """Return the combinations to simulate, thinned evenly along cost where there are many."""
    every = [
        (sum(one.cost for one in steps) + alarm.cost, (*(one.step for one in steps), alarm.step))
        for steps, alarm in product(product(*ladders), chosen)
    ]
    every.sort(key=lambda item: item[0])
    wanted = np.unique(np.linspace(0, len(every) - 1, min(PAIRS, len(every))).round().astype(np.int64))
    return [every[place][1] for place in wanted]


def _point(study: Study, steps: Policy, yard: Yard, per_100h: float) -> Point | None:
    flags, part = parallel(study), study.train
    # watched at every hour, the last stage meets the rate already; gates for what is owned see what other stages bought
    settled = flags[-1] and not steps[-1].owned
    policy = steps if settled else at_rate(part, steps, flags, yard.moves, per_100h)
    if policy is None:
        return None
    went = walk(part.clock, part.zoo, ladder(policy, flags), yard.moves)
    paid = bill(went, part.zoo, yard.rates)
    utility = part.utility.normalised(went.answer == len(policy))
    loss = float((went.answer != part.highest).mean())
    return Point(policy, loss, paid, relative(paid, yard.base, yard.by), utility)
