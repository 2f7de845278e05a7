"""The coarse-grained baselines: the whole pipeline as one black box with one batch size, replicated as a unit.

The unit has one replica of each stage. Its hardware and batch are those of the least price per throughput whose batch
takes no longer than the limit on the longest path. Stages share central queues, which is generous to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unfold_pipeline.estimator.slo import Judge
from unfold_pipeline.problem import quotas
from unfold_pipeline.problem.pipeline import Choice, Plan, needed, service_time
from unfoldkit.arrivals.envelope import envelope

SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Unit:
    """One copy of the pipeline: a choice a stage with one replica, queries a second, $ an hour.

    Where replicas share instances, the price is its part of what the units for the mean rate rent.
    """

    choices: Plan
    throughput: float
    price: float

    def times(self, count: int) -> Plan:
        """Return the plan of ``count`` units."""
        return tuple(Choice(choice.option, choice.batch, count) for choice in self.choices)


def unit(judge: Judge) -> Unit | None:
    """Return the unit, or ``None`` if no batch keeps the limit on hardware of which the quotas leave one of each stage.

    One of which the quotas leave enough for the peak goes before others.
    """
    sizes = sorted({batch for stage in judge.pipeline.stages for option in stage.options for batch in option.batches})
    found = Cheapest(judge, peak_rate(judge))
    for size in sizes:
        _look(found, _offers(judge, size), ())
    return found.unit


def most(judge: Judge, item: Unit) -> float:
    """Return the most units that the quotas leave."""
    found = quotas.units(judge.pipeline, item.choices)
    return math.inf if found is None else found


def mean_count(judge: Judge, item: Unit) -> int:
    """Return the units for the mean rate of the samples (CG-Mean), as far as the quotas leave them."""
    rate = max(estimator.sample.rate for estimator in judge.estimators)
    return int(min(needed(rate, item.throughput), most(judge, item)))


def peak_rate(judge: Judge) -> float:
    """Return the most queries a second in any window as long as the limit."""
    length = np.array([judge.limit])
    counts = [int(envelope(estimator.sample.arrivals, length)[0]) for estimator in judge.estimators]
    return max(counts) / judge.limit


def peak_count(judge: Judge, item: Unit) -> int:
    """Return the units for the peak rate in windows as long as the limit (CG-Peak), as far as the quotas leave them."""
    return int(min(needed(peak_rate(judge), item.throughput), most(judge, item)))


@dataclass(frozen=True, slots=True)
class Offers:
    """What each stage can run on with one batch size: seconds, queries of the pipeline a second, and $ an hour.

    A unit's throughput is one of ``rates``; ``rest[i, j]`` is the least $ an hour of the stages from ``i`` on that
    carry ``rates[j]``, infinite if none do.
    """

    batches: tuple[tuple[int, ...], ...]
    seconds: tuple[tuple[float, ...], ...]
    carried: tuple[tuple[float, ...], ...]
    rates: NDArray[np.float64]
    rest: NDArray[np.float64]


def _offers(judge: Judge, size: int) -> Offers:
    """Return the offers; a stage that was not profiled with so large a batch takes the largest that it knows."""
    stages = [stage.options for stage in judge.pipeline.stages]
    batches = tuple(tuple(min(size, item.latency.size - 1) for item in here) for here in stages)
    seconds, carried, prices = [], [], []
    for index, (here, tops) in enumerate(zip(stages, batches, strict=True)):
        share = max(1e-12, *(e.sample.share(index) for e in judge.estimators))
        seconds.append(tuple(float(item.latency[top]) for item, top in zip(here, tops, strict=True)))
        carried.append(tuple(item.throughput(top) / share for item, top in zip(here, tops, strict=True)))
        prices.append(np.array([item.price for item in here]))
    rates = np.unique(np.concatenate(carried))
    able = [np.array(here)[:, None] >= rates for here in carried]
    least = [np.where(a, paid[:, None], math.inf).min(axis=0) for a, paid in zip(able, prices, strict=True)]
    least.append(np.zeros(rates.size))
    return Offers(batches, tuple(seconds), tuple(carried), rates, np.cumsum(least[::-1], axis=0)[::-1])


@dataclass(slots=True)
class Cheapest:
    """The best unit so far, with the rank that made it so."""

    judge: Judge
    peak: float
    unit: Unit | None = None
    rank: tuple[bool, float, float, tuple[int, ...]] | None = None


def _look(found: Cheapest, offers: Offers, head: Plan) -> None:
    """Look at all units that begin with ``head`` and can be better than what was found."""
    at = len(head)
    if at == len(offers.batches):
        _take(found, offers, head)
        return
    for option, batch in enumerate(offers.batches[at]):
        if not _worse(found, offers, more := (*head, Choice(option, batch, 1))):
            _look(found, offers, more)


def _worse(found: Cheapest, offers: Offers, head: Plan) -> bool:
    """Whether no unit that begins with ``head`` is in time, or none is better than what was found."""
    pipeline = found.judge.pipeline
    seconds = [here[c.option] for here, c in zip(offers.seconds, head, strict=False)]
    if service_time(pipeline, [*seconds, *map(min, offers.seconds[len(head) :])]) > found.judge.limit:
        return True
    if found.rank is None:
        return False
    rate = min(here[c.option] for here, c in zip(offers.carried, head, strict=False))
    able = offers.rates <= rate
    price = np.min((pipeline.floor(head) + offers.rest[len(head)][able]) / offers.rates[able])
    return (_short(found, head, rate), price * (1 - SLACK)) > found.rank[:2]


def _short(found: Cheapest, head: Plan, rate: float) -> bool:
    """Whether the quotas leave too few of what begins with ``head`` for the peak."""
    left = quotas.units(found.judge.pipeline, head)
    return left is not None and needed(found.peak, rate) > left


def _take(found: Cheapest, offers: Offers, choices: Plan) -> None:
    judge = found.judge
    rate = min(here[c.option] for here, c in zip(offers.carried, choices, strict=True))
    item = _priced(judge, Unit(choices, rate, judge.pipeline.floor(choices)))
    order = tuple(choice.option for choice in choices)
    rank = (needed(found.peak, rate) > most(judge, item), item.price / rate, item.price, order)
    if most(judge, item) >= 1 and (found.rank is None or rank < found.rank):
        found.unit, found.rank = item, rank


def _priced(judge: Judge, item: Unit) -> Unit:
    if all(option.shared == 1 for option in judge.pipeline.options(item.choices)):
        return item
    count = max(1, mean_count(judge, item))
    return replace(item, price=judge.pipeline.cost(item.times(count)) / count)
