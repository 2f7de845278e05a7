"""What the exact plan is measured against: the best static cluster, naive elasticity, and the paper's greedy.

Each keeps the same promise on the same sampled runs, so that a difference in dollars is one of planning. The greedy
follows the outline of RubberBand's planner as recalled (warm start from the best static cluster, then lower the stage
with the best marginal benefit); its details are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from unfold_tuning.job.allocation import Deal, Plan, at, slots
from unfold_tuning.simulator.allocation_table import ladders
from unfold_tuning.simulator.execution_model import Model
from unfold_tuning.simulator.plan_cost import Score, scores


@dataclass(frozen=True, slots=True)
class Goal:
    """On time means: at least ``share`` of the sampled runs end by ``deadline`` seconds."""

    deadline: float
    share: float

    def met(self, found: Score) -> bool:
        """Whether a plan keeps the promise."""
        return found.on_time(self.deadline) >= self.share - 1e-9


@dataclass(frozen=True, slots=True)
class Found:
    """A rival's plan (``None`` where it has none on time) and how many plans it looked at."""

    best: Score | None
    looked_at: int


def cheapest(scores: Sequence[Score], goal: Goal) -> Found:
    """Return the cheapest of some plans that keeps the promise."""
    kept = [found for found in scores if goal.met(found)]
    return Found(min(kept, key=lambda found: found.cost, default=None), len(scores))


def static_scores(model: Model) -> list[Score]:
    """Return every fixed cluster, smallest first."""
    best = ladders(model)
    counts = sorted({deal.instances for steps in best for deal in steps})
    counts = [count for count in counts if all(steps[0].instances <= count for steps in best)]
    return scores(model, [tuple(at(steps, count) for steps in best) for count in counts])


def naive_scores(model: Model) -> list[Score]:
    """Return the shrinking clusters that give every trial the same number of accelerators throughout."""
    return scores(model, list(_constant_gangs(model)))


def greedy(model: Model, goal: Goal, static: Score | None) -> Found:
    """Lower one stage at a time while that is on time and cheaper, by dollars saved per second lost."""
    if static is None:
        return Found(None, 0)
    steps, current, looked = ladders(model), static, 0
    while True:
        tried = scores(model, list(_lowered(current.plan, steps)))
        looked += len(tried)
        better = [found for found in tried if goal.met(found) and found.cost < current.cost - 1e-9]
        if not better:
            return Found(current, looked)
        base = current
        current = max(better, key=lambda found: _benefit(base, found))


def improved(model: Model, start: Score, goal: Goal) -> Score:
    """Return the cheapest plan on time that steps of one instance in one stage lead to.

    They lead from a plan, from where greedy ends that begins with it, or from where greedy ends as a rival.
    """
    steps = ladders(model)
    ends = (greedy(model, goal, begin).best for begin in (start, cheapest(static_scores(model), goal).best))
    best = min([start, *filter(None, ends)], key=_dear)
    while True:
        tried = scores(model, list(_beside(best.plan, steps, model.machine.limit)))
        found = min((item for item in tried if goal.met(item)), key=_dear, default=best)
        if _dear(found) >= _dear(best):
            return best
        best = found


def multi_start(model: Model, goal: Goal, statics: Sequence[Score]) -> Found:
    """Return the best of the greedy from every fixed cluster that is on time."""
    found = [greedy(model, goal, start) for start in statics if goal.met(start)]
    best = min((item.best for item in found if item.best), key=lambda item: item.cost, default=None)
    return Found(best, sum(item.looked_at for item in found))


def _benefit(base: Score, found: Score) -> float:
    later = found.mean_seconds - base.mean_seconds
    saved = base.cost - found.cost
    return saved / later if later > 1e-9 else float("inf")


def _dear(found: Score) -> tuple[float, float]:
    # bills by steps are often equal: the sooner plan is then the better one
    return round(found.cost, 6), round(found.mean_seconds, 3)


def _beside(plan: Plan, every: Sequence[Sequence[Deal]], limit: int) -> Iterator[Plan]:
    for index, steps in enumerate(every):
        for instances in (plan[index].instances - 1, plan[index].instances + 1):
            if steps[0].instances <= instances <= limit:
                yield (*plan[:index], at(steps, instances), *plan[index + 1 :])


def _lowered(plan: Plan, every: Sequence[Sequence[Deal]]) -> Iterator[Plan]:
    for index, steps in enumerate(every):
        smaller = [deal for deal in steps if deal.instances < plan[index].instances]
        if smaller:
            yield (*plan[:index], smaller[-1], *plan[index + 1 :])


def _constant_gangs(model: Model) -> Iterator[Plan]:
    each = model.machine.accelerators
    for gang in model.profile.fitting(each):
        hosts = -(-gang // each)
        if hosts > model.machine.limit:
            continue
        counts = [max(hosts, hosts * -(-stage.trials // max(1, each // gang))) for stage in model.stages]
        counts = [min(count, model.machine.limit) for count in counts]
        yield tuple(Deal(count, gang, max(1, slots(count, gang, each))) for count in counts)
