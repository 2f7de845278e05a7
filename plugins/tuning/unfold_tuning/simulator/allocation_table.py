"""The deal that a stage is given at each number of instances, chosen by its expected time on sampled runs.

With equal trials a stage is as long as its waves are many. Where trials differ, the slowest of them decides: more
accelerators for each trial may then be faster than fewer waves, and more places help between two numbers of waves. So
deals are compared by their means on some of the sampled runs; without chance these are the times of the mean model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from unfold_tuning.job.allocation import Deal, at, ladder, levels, slots
from unfold_tuning.simulator.execution_model import Model

FEW = 200
STEP = 0.01
"""Between the steps of the mean model a number of instances counts that is faster by so much."""
APART = 1.1
"""The ratio of the numbers that are tried there."""

Ladder = tuple[Deal, ...]


def ladders(model: Model) -> tuple[Ladder, ...]:
    """Return each stage's deals by instances, only those where more instances make it faster."""
    return _kept(model, model.profile.fitting(model.machine.accelerators))


def choices(model: Model) -> tuple[list[int], tuple[Ladder, ...]]:
    """Return the numbers of instances worth a look, ascending, and each stage's deals at them.

    Where idle accelerators are not paid, the fastest deal may be dearer than a slower one: a number then stands there
    once for each size of a trial.
    """
    machine, best = model.machine, ladders(model)
    if machine.billing.per == "instance":
        counts = levels(best, machine, model.held)
        return counts, tuple(tuple(at(steps, count) for count in counts) for steps in best)
    by_gang = [_kept(model, (gang,)) for gang in model.profile.fitting(machine.accelerators)]
    every = [tuple(deal for rows in by_gang for deal in rows[index]) for index in range(len(model.stages))]
    least = max(steps[0].instances for steps in best)
    held = {model.held} if machine.ingress > 0 and least <= model.held <= machine.limit else set()
    counts = sorted({least} | held | {deal.instances for row in every for deal in row if deal.instances >= least})
    pairs = [(count, rows) for count in counts for rows in by_gang]
    deals = tuple(
        tuple(at(_first(rows[index], steps, count), count) for count, rows in pairs) for index, steps in enumerate(best)
    )
    return [count for count, _ in pairs], deals


def _first(steps: Ladder, otherwise: Ladder, count: int) -> Ladder:
    return steps if steps and steps[0].instances <= count else otherwise


def _kept(model: Model, gangs: Sequence[int]) -> tuple[Ladder, ...]:
    key = (model.machine.limit, tuple(gangs))
    if key not in model.ladders:
        few = model.first(FEW)
        model.ladders[key] = tuple(_ladder(few, index, gangs) for index in range(len(model.stages)))
    return model.ladders[key]


def _ladder(few: Model, index: int, gangs: Sequence[int]) -> Ladder:
    stage, limit = few.stages[index], few.machine.limit
    plain = ladder(stage, few.profile, few.machine, tuple(gangs))
    if not few.varies:
        return plain
    jumps = {deal.instances for deal in plain}
    found = _fastest(few, index, gangs, sorted(jumps | set(_apart(limit))))
    steps: list[Deal] = []
    last = float("inf")
    for count, (seconds, gang) in sorted(found.items()):
        if seconds < last * (1 - (1e-12 if count in jumps else STEP)):
            steps.append(Deal(count, gang, slots(count, gang, few.machine.accelerators)))
            last = seconds
    return tuple(steps)


def _fastest(few: Model, index: int, gangs: Sequence[int], counts: Sequence[int]) -> dict[int, tuple[float, int]]:
    """Return the least expected seconds at each number of instances, and the size of a trial that gives them."""
    found: dict[int, tuple[float, int]] = {}
    for gang in gangs:
        trials = few.trials(index, gang)
        longest, work = float(trials.max(axis=1).mean()), float(trials.sum(axis=1).mean())
        for count in counts:
            places = slots(count, gang, few.machine.accelerators)
            # no order of the trials is faster than the longest of them, or than all places busy throughout
            if places and max(longest, work / places) < found.get(count, (float("inf"), 0))[0]:
                seconds = float(few.seconds(index, Deal(count, gang, places)).mean())
                found[count] = min(found.get(count, (float("inf"), 0)), (seconds, gang))
    return found


def _apart(limit: int) -> Iterator[int]:
    count = 1.0
    while count <= limit:
        yield round(count)
        count = max(count * APART, count + 1)
