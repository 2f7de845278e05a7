"""What else a planner wants to know: what if the profile is wrong, what a minute more would save, a bad day on spot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_tuning.job.allocation import Plan
from unfold_tuning.job.profile import Profile, Spread
from unfold_tuning.planner.baselines import Goal, cheapest, greedy, static_scores
from unfold_tuning.planner.planner import Offer, best
from unfold_tuning.planner.replan import expected
from unfold_tuning.simulator.execution_model import Model, model, slower
from unfold_tuning.simulator.plan_cost import Score, score

CURVE_SAMPLES = 1000
CURVE_POINTS = 8


@dataclass(frozen=True, slots=True)
class Point:
    """The dollars of the exact plan at one deadline, and the greedy's plan (``None`` where there is none)."""

    deadline: float
    exact: float | None
    greedy: Score | None


def doubts(found: Model, plan: Plan, goal: Goal) -> list[tuple[str, float]]:
    """Return P(on time) of a plan if the truth differs from the profile, by name of the difference."""
    profile = found.profile
    wait = profile.provision
    changed = {
        "iterations 3 % slower": slower(profile, 1.03),
        "provisioning twice as long": replace(profile, provision=Spread(2 * wait.mean, 2 * wait.std)),
        "spread half as large again": _wider(profile),
    }
    return [(name, score(found.with_profile(item), plan).on_time(goal.deadline)) for name, item in changed.items()]


def lost_together(item: Offer, plan: Plan, goal: Goal) -> float:
    """Return P(on time) if all spot instances are lost at once, half-way through the longest stage."""
    profile, machine = item.model.profile, item.model.machine
    ends = score(item.model, plan).ends
    longest = int(np.diff(ends, axis=0, prepend=0.0).mean(axis=1).argmax())
    piece = min(machine.checkpoint_iters, max(item.model.stages[longest].lengths()))
    lost = expected(profile, plan[longest].gang, machine) * piece / 2
    extra = lost + profile.provision.mean + profile.startup.mean + profile.start.mean
    return float((ends[-1] + extra <= goal.deadline).mean())


def curve_points(offers: Sequence[Offer], goal: Goal, seed: int) -> list[Point]:
    """Return what both planners promise at deadlines from the soonest possible to where one instance is enough."""
    first = offers[0].model
    small = model(first.stages, first.profile, first.machine, min(CURVE_SAMPLES, first.samples), seed)
    soonest = min(float(item.promised.min()) for item in offers)
    latest = max(float(item.promised.max()) for item in offers)
    deadlines = np.geomspace(soonest * 1.001, max(latest, soonest * 1.01), CURVE_POINTS)
    models = [small.on(item.model.machine) for item in offers]
    statics = [static_scores(item) for item in models]
    return [_point(offers, models, statics, Goal(float(d), goal.share)) for d in deadlines]


def frontier(scores: Sequence[Score], share: float) -> list[tuple[float, float]]:
    """Return the deadlines from which on a plan is the cheapest that can be promised, with its dollars."""
    least: list[tuple[float, float]] = []
    for seconds, cost in sorted((item.promise(share), item.cost) for item in scores):
        if not least or cost < least[-1][1]:
            least.append((seconds, cost))
    return least


def _point(offers: Sequence[Offer], models: Sequence[Model], statics: Sequence[Sequence[Score]], goal: Goal) -> Point:
    exact = best(offers, goal.deadline)
    fixed = [cheapest(scores, goal).best for scores in statics]
    lowered = [greedy(item, goal, start).best for item, start in zip(models, fixed, strict=True)]
    # on the runs of the exact plan, so that the two can be compared to the cent
    scores = [score(item.model, low.plan) for item, low in zip(offers, lowered, strict=True) if low]
    return Point(goal.deadline, exact[1].cost if exact else None, min(scores, key=lambda low: low.cost, default=None))


def _wider(profile: Profile) -> Profile:
    spread = profile.iteration
    return replace(profile, iteration=Spread(spread.mean, 1.5 * spread.std), trial_cv=1.5 * profile.trial_cv)
