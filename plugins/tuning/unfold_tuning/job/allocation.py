"""How the trials of a stage share a number of instances, and which numbers are worth a look."""

from __future__ import annotations

import functools
import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from unfold_tuning.job.profile import Machine, Profile
from unfold_tuning.job.schedule import Stage


@dataclass(frozen=True, slots=True, order=True)
class Deal:
    """A stage's part of a plan: ``instances``, each trial on ``gang`` accelerators, ``slots`` trials at a time."""

    instances: int
    gang: int
    slots: int

    def waves(self, trials: int) -> int:
        """How many rounds of trials the stage takes."""
        return -(-trials // self.slots)


Plan = tuple[Deal, ...]


def slots(instances: int, gang: int, accelerators: int) -> int:
    """Return how many trials of ``gang`` accelerators fit at a time; none straddles instances that it could avoid."""
    if gang <= accelerators:
        return instances * (accelerators // gang)
    return instances // -(-gang // accelerators)


def expected_seconds(stage: Stage, gang: int, places: int, profile: Profile, machine: Machine) -> float:
    """Return the time of a stage without any spread: list scheduling of its trials, longest first."""
    per_iteration = profile.iteration.mean / (profile.gain(gang, machine.accelerators) * machine.speed)
    if len(stage.groups) == 1:
        waves = -(-stage.trials // places)
        return waves * (profile.start.mean + stage.groups[0].iters * per_iteration)
    return makespan([profile.start.mean + iters * per_iteration for iters in stage.lengths()], places)


def makespan(lengths: Sequence[float], places: int) -> float:
    """Return the end of the last job when each goes, in order, to the place that is free first."""
    free = [0.0] * min(places, len(lengths))
    for length in lengths:
        heapq.heapreplace(free, free[0] + length)
    return max(free)


def best_deal(
    stage: Stage, instances: int, profile: Profile, machine: Machine, gangs: Sequence[int] = ()
) -> Deal | None:
    """Return the gang size, of ``gangs`` or all, that ends the stage first on ``instances``, if any fits.

    Of equals it is the smaller one.
    """
    found: tuple[float, int] | None = None
    for gang in gangs or profile.fitting(machine.accelerators):
        places = slots(instances, gang, machine.accelerators)
        if places:
            seconds = expected_seconds(stage, gang, places, profile, machine)
            if found is None or seconds < found[0] * (1 - 1e-12):
                found = (seconds, gang)
    if found is None:
        return None
    return Deal(instances, found[1], slots(instances, found[1], machine.accelerators))


@functools.lru_cache(maxsize=4096)
def ladder(stage: Stage, profile: Profile, machine: Machine, gangs: tuple[int, ...] = ()) -> tuple[Deal, ...]:
    """Return the deals of a stage by instances, only those where one instance more made it faster, without chance."""
    steps: list[Deal] = []
    last = float("inf")
    for instances in range(1, machine.limit + 1):
        deal = best_deal(stage, instances, profile, machine, gangs)
        if deal is not None:
            seconds = expected_seconds(stage, deal.gang, deal.slots, profile, machine)
            if seconds < last * (1 - 1e-12):
                steps.append(deal)
                last = seconds
    return tuple(steps)


def at(steps: Sequence[Deal], instances: int) -> Deal:
    """Return the deal of a stage that holds ``instances``: the fastest one that fits, with the rest idle."""
    step = [deal for deal in steps if deal.instances <= instances][-1]
    return Deal(instances, step.gang, step.slots)


def levels(ladders: Sequence[Sequence[Deal]], machine: Machine, held: int = 0) -> list[int]:
    """Return the numbers of instances that an optimal plan needs to consider.

    Only those at which some stage becomes faster, and the number that is held: lowering a run of equal numbers to the
    next such number changes no stage's time and adds no growth. With a charge per new instance it may add one, but
    between two such numbers and those of the runs beside it the cost is linear, so that one end is as good: a run
    moves to a level, or joins a neighbour and moves with it. (A spread of start-up times, which makes the slowest of
    more instances a little later, is left out of both.)
    """
    smallest = max(steps[0].instances for steps in ladders)
    useful = {deal.instances for steps in ladders for deal in steps if deal.instances >= smallest}
    kept = {held} if machine.ingress > 0 and smallest <= held <= machine.limit else set()
    return sorted(useful | {smallest} | kept)
