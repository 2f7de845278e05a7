"""What a plan takes and costs in every sampled run, by the true rules of the bill."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from unfold_tuning.deals import Plan
from unfold_tuning.facts import Machine
from unfold_tuning.losses import replacing
from unfold_tuning.tables import Floats, Model


@dataclass(frozen=True, slots=True)
class Score:
    """A plan's sampled runs: ``seconds`` and ``dollars`` are [samples]; ``ends`` is [stages, samples]."""

    plan: Plan
    seconds: Floats
    dollars: Floats
    ends: Floats

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


def quantile(values: Floats, share: float) -> float:
    """Return the smallest of the values that at least ``share`` of them do not exceed."""
    rank = min(len(values) - 1, int(np.ceil(share * len(values) - 1e-9)) - 1)
    return float(np.partition(values, max(rank, 0))[max(rank, 0)])


def score(model: Model, plan: Plan) -> Score:
    """Play a plan in every sampled run."""
    clock = np.zeros(model.samples)
    held = [Holding(model.held, clock, old=True)] if model.held else []
    dollars = np.zeros(model.samples)
    ends = []
    for index, deal in enumerate(plan):
        new = deal.instances - sum(holding.count for holding in held)
        if new < 0:
            held, paid = release(held, -new, clock, model.machine)
            dollars += paid
        elif new > 0:
            running = clock + model.provision(index)
            held = [*held, Holding(new, running)]
            clock = running + model.startup(index, new)
            dollars += new * model.machine.ingress
        clock = clock + model.seconds(index, deal)
        ends.append(clock)
    dollars += release(held, sum(holding.count for holding in held), clock, model.machine)[1]
    dollars += clock * (model.machine.head / 3600.0)
    if model.machine.billing.per == "function":
        dollars = _by_function(model, plan, clock)
    return Score(plan, clock, dollars + _replaced(model, plan) if model.machine.hazard else dollars, np.array(ends))


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
