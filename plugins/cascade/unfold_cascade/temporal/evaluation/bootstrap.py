"""How sure the figures are: patients drawn again and again, cascade and monolith on the same draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.temporal.data import warning_metrics
from unfold_cascade.temporal.evaluation.evaluate import Outcome
from unfold_cascade.temporal.models.study import Part
from unfold_cascade.temporal.simulation.cost import Rates, totals

REPLICATES = 200
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Intervals:
    """95 % intervals of the differences cascade minus monolith, and of the savings."""

    loss: Interval
    utility: Interval
    auprc: Interval
    auroc: Interval
    macro_f1: Interval
    price_saving: Interval
    flops_saving: Interval


def intervals(part: Part, own: Outcome, base: Outcome, rates: Rates, seed: int) -> Intervals:
    """Return the intervals by patient bootstrap."""
    drawn = warning_metrics.bootstrap_weights(len(part.clock.starts) - 1, REPLICATES, seed)
    entity = part.entity
    wrong = (own.answer != part.highest).astype(np.float64) - (base.answer != part.highest)
    classes = part.on.shape[1] + 1
    ranks = [warning_metrics.ranking(done.score, part.label) for done in (own, base)]

    def figures(weight: FloatArray) -> tuple[float, ...]:
        pairs = [
            [part.utility.normalised(done.alert, weight) for done in (own, base)],
            [one.auprc(weight) for one in ranks],
            [one.auroc(weight) for one in ranks],
            [warning_metrics.macro_f1(done.answer, part.highest, classes, weight) for done in (own, base)],
        ]
        return float((wrong * weight).sum() / weight.sum()), *(first - second for first, second in pairs)

    found = np.array([figures(weights[entity].astype(np.float64)) for weights in drawn])
    savings = [_saving(part, own, base, rates, notion, drawn) for notion in ("price", "flops")]
    return Intervals(*(_bounds(column) for column in found.T), *savings)


def mean_interval(values: FloatArray, seed: int) -> Interval:
    """Return the 95 % interval of the mean of (J,) values, one a patient."""
    if not values.size:
        return float("nan"), float("nan")
    drawn = warning_metrics.bootstrap_weights(len(values), REPLICATES, seed)
    return _bounds(drawn @ values / len(values))


def alert_interval(part: Part, alert: BoolArray, seed: int) -> Interval:
    """Return the 95 % interval of the warned hours among 100 hours without the event."""
    entities, entity = len(part.clock.starts) - 1, part.entity
    free = np.bincount(entity, part.events.free, entities)
    warned = np.bincount(entity, part.events.free & alert, entities)
    drawn = warning_metrics.bootstrap_weights(entities, REPLICATES, seed)
    return _bounds(100.0 * (drawn @ warned) / np.maximum(drawn @ free, 1e-300))


def _saving(part: Part, own: Outcome, base: Outcome, rates: Rates, notion: str, drawn: IntArray) -> Interval:
    paid = [drawn @ totals(done.walk, part.zoo, rates, notion) for done in (own, base)]
    with np.errstate(divide="ignore"):
        return _bounds(paid[1] / paid[0])


def _bounds(values: FloatArray) -> Interval:
    low, high = np.nanquantile(values, (0.025, 0.975))
    return float(low), float(high)
