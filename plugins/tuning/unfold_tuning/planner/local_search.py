"""Cheaper plans beside one: the curve is that of expected times, and a promise is not.

Where trials vary much the deal with the least mean has not the shortest tail, so that a plan beside the curve may keep
the promise for less. What is cheaper in expectation is looked at, cheapest first, with other deals in up to two stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations, product

from unfold_tuning.job.allocation import Deal, Plan, slots
from unfold_tuning.planner.baselines import Goal
from unfold_tuning.simulator.execution_model import Model, mean_startup
from unfold_tuning.simulator.plan_cost import Score, scores
from unfold_tuning.simulator.preemption import replacing

AT_ONCE = 20
MOST = 400
"""So many plans are played in one step at most."""
PAIRED = 12
"""Of more stages only one at a time is given another deal: pairs of them are too many."""
CHEAPER = 1e-6


def refined(model: Model, start: Score, goal: Goal) -> Score:
    """Return the cheapest plan on time that steps beside a plan on time lead to; it may be the plan itself."""
    if not model.varies or model.machine.billing.per != "instance":
        return start
    expected, best = Expected(model), start
    while (found := _cheaper(model, best, goal, expected)) is not None:
        best = found
    return best


@dataclass(frozen=True, slots=True)
class Expected:
    """What plans take and cost in expectation, minimum and increments of the bill left out."""

    model: Model
    means: dict[tuple[int, Deal], float] = field(default_factory=dict)
    startups: dict[int, float] = field(default_factory=dict)

    def of(self, plan: Plan) -> tuple[float, float]:
        """Return dollars and seconds."""
        machine, seconds, dollars, held = self.model.machine, 0.0, 0.0, self.model.held
        rate = machine.per_second + replacing(machine, self.model.profile)
        for index, deal in enumerate(plan):
            if deal.instances > held:
                wait = self.model.profile.provision.mean
                ready = self._startup(deal.instances - held)
                seconds += wait + ready
                dollars += machine.per_second * (held * wait + deal.instances * ready)
                dollars += machine.ingress * (deal.instances - held)
            took = self._mean(index, deal)
            seconds, dollars, held = seconds + took, dollars + rate * deal.instances * took, deal.instances
        return dollars + seconds * machine.head / 3600.0, seconds

    def _mean(self, index: int, deal: Deal) -> float:
        if (index, deal) not in self.means:
            self.means[index, deal] = float(self.model.seconds(index, deal).mean())
        return self.means[index, deal]

    def _startup(self, new: int) -> float:
        if new not in self.startups:
            self.startups[new] = mean_startup(self.model.profile, new)
        return self.startups[new]


def _cheaper(model: Model, best: Score, goal: Goal, expected: Expected) -> Score | None:
    plans = {plan: expected.of(plan) for plan in _variants(model, best.plan)}
    worth = sorted(
        (dollars, seconds, plan)
        for plan, (dollars, seconds) in plans.items()
        if dollars < best.cost * (1 - CHEAPER) and seconds <= goal.deadline
    )
    for first in range(0, min(len(worth), MOST), AT_ONCE):
        tried = scores(model, [plan for _, _, plan in worth[first : first + AT_ONCE]])
        kept = [item for item in tried if goal.met(item) and item.cost < best.cost * (1 - CHEAPER)]
        if kept:
            return min(kept, key=lambda item: (item.cost, item.plan))
    return None


def _variants(model: Model, plan: Plan) -> Iterator[Plan]:
    beside = [_beside(model, deal) for deal in plan]
    stages = range(len(plan))
    pairs = combinations(stages, 2) if len(plan) <= PAIRED else ()
    for changed in chain(((index,) for index in stages), pairs):
        for deals in product(*(beside[index] for index in changed)):
            other = list(plan)
            for index, deal in zip(changed, deals, strict=True):
                other[index] = deal
            yield tuple(other)


def _beside(model: Model, deal: Deal) -> Sequence[Deal]:
    each = model.machine.accelerators
    counts = (deal.instances - 1, deal.instances, deal.instances + 1)
    # one size of a trial after the other: only the last few sampled times are kept
    pairs = product(model.profile.fitting(each), (count for count in counts if 1 <= count <= model.machine.limit))
    deals = (Deal(count, gang, slots(count, gang, each)) for gang, count in pairs)
    return [item for item in deals if item.slots and item != deal]
