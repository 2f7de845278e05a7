"""Laws of the alarms of the last stage: what the search of their gates counts is what they do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unfold_cascade.schema.parts import GateSpec
from unfold_cascade.schema.temporal import Moves
from unfold_cascade.temporal.data import warning_metrics
from unfold_cascade.temporal.data.features import Purchase
from unfold_cascade.temporal.data.table import hours_since, starts_of
from unfold_cascade.temporal.evaluation.evaluate import Quality, at_rate, outcome, quality
from unfold_cascade.temporal.models.study import Part
from unfold_cascade.temporal.search.alarms import Alarm, alarms
from unfold_cascade.temporal.search.candidates import Field, Yard
from unfold_cascade.temporal.search.compose import nearest
from unfold_cascade.temporal.simulation.cost import Rates
from unfold_cascade.temporal.simulation.policy import Step
from unfold_cascade.temporal.simulation.trajectories import Clock, Zoo

RATE, CHAIN = 10.0, (0, 1)
WATCHED = np.array([True])


def _part(rng: np.random.Generator, noise: tuple[float, float], patients: int = 60) -> Part:
    """Return patients of 40 hours, a third with an event, and what a cheap and a dear model say with so much noise."""
    starts = starts_of(np.full(patients, 40))
    hour = np.tile(np.arange(40.0), patients)
    label = (np.repeat(np.arange(patients) % 3 == 0, 40)) & (hour >= np.repeat(rng.integers(8, 30, patients), 40))
    said = [1 / (1 + np.exp(2.0 - 4 * label - each * rng.normal(size=len(label)))) for each in noise]
    since = hours_since(label, hour, starts)
    bought = Purchase(("dear",), np.array([5.0]), np.array([0.0]))
    zoo = Zoo(np.array(said, dtype=np.float32), np.array([0, 1]), bought)
    worth, coming = warning_metrics.utility(since), warning_metrics.events(since, starts)
    return Part(Clock(starts, hour), zoo, label[:, None], since[:, None], label.astype(np.int64), {}, worth, coming)


def _yard() -> Yard:
    nothing = np.zeros(2)
    return Yard(Rates(nothing, np.ones(2), nothing, nothing), {"price": 5.0}, "price", Moves())


def _found(part: Part) -> list[Alarm]:
    where = Field(part.clock, part.zoo, part.label, np.ones(len(part.label), dtype=np.bool_))
    every = alarms(part, where, CHAIN, _yard(), RATE, GateSpec())
    return [one for one in every if one.step.chain == CHAIN]


def _best(part: Part, most: float) -> float:
    """Return the most utility of any cut of the chain that costs no more, all cuts between hundredths tried."""
    cuts = np.quantile(part.zoo.p[0].astype(np.float64), np.linspace(0, 1, 101))
    utilities = [0.0]
    for cut in cuts:
        policy = at_rate(part, (Step(CHAIN, ((float(cut), float("inf")),), 0.5),), WATCHED, Moves(), RATE)
        assert policy is not None
        found = quality(part, outcome(part, policy, WATCHED, Moves(), _yard().rates))
        utilities += [found.utility] if found.bill["price"] / 5.0 <= most else []
    return max(utilities)


@pytest.mark.parametrize("noise", [(0.5, 1.5), (1.0, 1.0), (1.5, 0.5)])
def test_alarms_of_a_chain_are_near_the_best_of_all_cuts(noise: tuple[float, float]) -> None:
    """For each cost some alarm of the search has nearly the utility of any cut, also where the first model is better.

    Only the last model warns. A search that lets the first one warn too finds, where that one is the better, nothing
    but the alarm that never asks on, and so never warns.
    """
    part = _part(np.random.default_rng(4), noise)
    found = _found(part)
    for most in (0.3, 0.5, 0.8):
        own = max([one.found.utility for one in found if one.cost <= most], default=0.0)
        assert own >= 0.9 * _best(part, most)


@pytest.mark.parametrize("base", [-0.2, 0.0, 0.1])
def test_the_nearest_alarm_loses_least_whatever_the_monolith_gains(base: float) -> None:
    """Also where the monolith's warnings gain nothing, or lose, a worse alarm is not the nearest."""
    given = Quality(0.1, base, 0.2, 0.8, 0.5, 10.0, {})
    step = Step((0,), (), 0.5)
    watch = [Alarm(step, replace(given, utility=base - lost, auprc=0.19), 1.0) for lost in (0.3, 0.02, 0.6)]
    assert nearest(watch, given) == [watch[1]]
