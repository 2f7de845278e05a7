"""The coarse-grained baselines: the whole pipeline as one black box with one batch size, replicated as a unit.

The unit has one replica of each stage. Its hardware and batch are those of the least price per throughput whose batch
takes no longer than the limit on the longest path. Stages share central queues, which is generous to it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from unfold_pipeline import quotas
from unfold_pipeline.graph import Choice, Pipeline, Plan, needed, service_time
from unfold_pipeline.judge import Judge
from unfoldkit.arrivals.envelope import envelope


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
    fitting = [item for item in _units(judge.pipeline, judge) if item is not None and most(judge, item) >= 1]
    rate = peak_rate(judge)
    return min(
        fitting,
        key=lambda item: (needed(rate, item.throughput) > most(judge, item), item.price / item.throughput, item.price),
        default=None,
    )


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


def _units(pipeline: Pipeline, judge: Judge) -> Iterator[Unit | None]:
    sizes = sorted({batch for stage in pipeline.stages for option in stage.options for batch in option.batches})
    for options in itertools.product(*(range(len(stage.options)) for stage in pipeline.stages)):
        for batch in sizes:
            yield _fitted(pipeline, judge, tuple(Choice(option, batch, 1) for option in options))


def _fitted(pipeline: Pipeline, judge: Judge, choices: Plan) -> Unit | None:
    """A stage that was not profiled with so large a batch takes the largest that it knows."""
    tops = [s.options[c.option].latency.size - 1 for s, c in zip(pipeline.stages, choices, strict=True)]
    fitted = tuple(Choice(c.option, min(c.batch, top), 1) for c, top in zip(choices, tops, strict=True))
    found = [stage.options[choice.option] for stage, choice in zip(pipeline.stages, fitted, strict=True)]
    seconds = [float(option.latency[choice.batch]) for option, choice in zip(found, fitted, strict=True)]
    if service_time(pipeline, seconds) > judge.limit:
        return None
    shares = [max(e.sample.share(index) for e in judge.estimators) for index in range(len(fitted))]
    rates = [
        option.throughput(choice.batch) / max(share, 1e-12)
        for option, choice, share in zip(found, fitted, shares, strict=True)
    ]
    return _priced(judge, Unit(fitted, min(rates), pipeline.floor(fitted)))


def _priced(judge: Judge, item: Unit) -> Unit:
    if all(option.shared == 1 for option in judge.pipeline.options(item.choices)):
        return item
    count = max(1, mean_count(judge, item))
    return replace(item, price=judge.pipeline.cost(item.times(count)) / count)
