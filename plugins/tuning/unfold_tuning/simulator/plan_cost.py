"""What a plan takes and costs in every sampled run, by the true rules of the bill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from unfold_tuning.job.allocation import Deal, Plan
from unfold_tuning.job.profile import Machine
from unfold_tuning.simulator.execution_model import Floats, Model
from unfold_tuning.simulator.preemption import replacing


@dataclass(frozen=True, slots=True)
class Score:
    """A plan's sampled runs: ``seconds`` and ``dollars`` are [samples], ``clocks`` the end of each stage."""

    plan: Plan
    seconds: Floats
    dollars: Floats
    clocks: tuple[Floats, ...]

    @property
    def ends(self) -> Floats:
        """When each stage ends: [stages, samples] seconds."""
        return np.array(self.clocks)

    @property
    def mean_seconds(self) -> float:
        """The expected completion time."""
        return float(self.seconds.mean())

    @property
    def cost(self) -> float:
        """The expected cost in dollars."""
        return float(self.dollars.mean())

    def on_time(self, deadline: float) -> float:
        """The share of the sampled runs that end by the deadline; rounding of a microsecond is not late."""
        return float((self.seconds <= deadline + 1e-6).mean())

    def within(self, budget: float) -> float:
        """The share of the sampled runs that cost no more than the budget."""
        return float((self.dollars <= budget + 1e-9).mean())

    def promise(self, share: float) -> float:
        """The time by which at least ``share`` of the sampled runs have ended."""
        return quantile(self.seconds, share)


@dataclass(frozen=True, slots=True)
class Holding:
    """Instances that began to be billed together; ``since`` is [samples] seconds after the start of the run.

    ``old`` ones are past their minimum: they were there before.
    """

    count: int
    since: Floats
    old: bool = False


@dataclass(frozen=True, slots=True)
class _Played:
    """Runs up to the end of a stage: the time, the dollars of what was given back, and what is held."""

    clock: Floats
    dollars: Floats
    held: tuple[Holding, ...]


def quantile(values: Floats, share: float) -> float:
    """Return the smallest of the values that at least ``share`` of them do not exceed."""
    rank = min(len(values) - 1, int(np.ceil(share * len(values) - 1e-9)) - 1)
    return float(np.partition(values, max(rank, 0))[max(rank, 0)])


def score(model: Model, plan: Plan) -> Score:
    """Play a plan in every sampled run."""
    return scores(model, [plan])[0]


def scores(model: Model, plans: Sequence[Plan]) -> list[Score]:
    """Play plans in every sampled run; those that begin alike are one until they part."""
    found: dict[int, Score] = {}
    path: list[_Played] = [_begun(model)]
    before: Plan = ()
    for place in sorted(range(len(plans)), key=lambda place: plans[place]):
        plan = plans[place]
        alike = next((i for i, (one, other) in enumerate(zip(before, plan, strict=False)) if one != other), len(before))
        path, before = path[: alike + 1], plan
        for index in range(alike, len(plan)):
            path.append(_next(model, path[-1], index, plan[index]))
        found[place] = _ended(model, plan, path[1:])
    return [found[place] for place in range(len(plans))]


def _begun(model: Model) -> _Played:
    clock = np.zeros(model.samples)
    return _Played(clock, clock, (Holding(model.held, clock, old=True),) if model.held else ())


def _next(model: Model, so_far: _Played, index: int, deal: Deal) -> _Played:
    clock, dollars, held = so_far.clock, so_far.dollars, list(so_far.held)
    new = deal.instances - sum(holding.count for holding in held)
    if new < 0:
        held, paid = release(held, -new, clock, model.machine)
        dollars = dollars + paid
    elif new > 0:
        running = clock + model.provision(index)
        held = [*held, Holding(new, running)]
        clock = running + model.startup(index, new)
        dollars = dollars + new * model.machine.ingress
    return _Played(clock + model.seconds(index, deal), dollars, tuple(held))


def _ended(model: Model, plan: Plan, path: Sequence[_Played]) -> Score:
    clock, held = path[-1].clock, list(path[-1].held)
    if model.machine.billing.per == "function":
        dollars = _by_function(model, plan, clock)
    else:
        dollars = path[-1].dollars + release(held, sum(item.count for item in held), clock, model.machine)[1]
        dollars = dollars + clock * (model.machine.head / 3600.0)
    dollars = dollars + _replaced(model, plan) if model.machine.hazard else dollars
    return Score(plan, clock, dollars, tuple(item.clock for item in path))


def _replaced(model: Model, plan: Plan) -> Floats:
    """What the instances that replace lost ones add to the bill, in expectation over the time that they are held."""
    each = replacing(model.machine, model.profile)
    held = sum((deal.instances * model.seconds(index, deal) for index, deal in enumerate(plan)), np.zeros(1))
    return np.asarray(each * held)


def release(held: list[Holding], count: int, now: Floats, machine: Machine) -> tuple[list[Holding], Floats]:
    """Give back ``count`` instances, oldest first, and return what is left and the bill of what went.

    Oldest first is best: the charge is convex in the life, and only the young are below the minimum.
    """
    left: list[Holding] = []
    paid = np.zeros_like(now)
    for holding in held:
        gone = min(count, holding.count)
        count -= gone
        if gone:
            life = now - holding.since
            paid += gone * (life * machine.per_second if holding.old else machine.billing.cost(life, machine.price))
        if holding.count > gone:
            left.append(replace(holding, count=holding.count - gone))
    return left, paid


def _by_function(model: Model, plan: Plan, clock: Floats) -> Floats:
    each = model.machine.per_second / model.machine.accelerators
    work = sum((model.busy(index, deal) for index, deal in enumerate(plan)), np.zeros_like(clock))
    grown = max(0, plan[0].instances - model.held) + sum(
        max(0, after.instances - before.instances) for before, after in pairwise(plan)
    )
    return np.asarray(work * each + grown * model.machine.ingress + clock * (model.machine.head / 3600.0))
