"""How sure the figures are: patients drawn again and again, cascade and monolith on the same draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unfold_cascade.arrays import FloatArray, IntArray
from unfold_cascade.time import measures
from unfold_cascade.time.cost import Rates, totals
from unfold_cascade.time.judge import Outcome
from unfold_cascade.time.study import Part

REPLICATES = 200
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Intervals:
    """95 % intervals of the differences cascade minus monolith, and of the savings."""

    loss: Interval
    utility: Interval
    auprc: Interval
    price_saving: Interval
    flops_saving: Interval


def intervals(part: Part, own: Outcome, base: Outcome, rates: Rates, seed: int) -> Intervals:
    """Return the intervals by patient bootstrap."""
    drawn = measures.bootstrap_weights(len(part.clock.starts) - 1, REPLICATES, seed)
    entity = part.entity
    wrong = (own.answer != part.highest).astype(np.float64) - (base.answer != part.highest)
    ranks = [measures.ranking(done.score, part.label) for done in (own, base)]

    def figures(weight: FloatArray) -> tuple[float, float, float]:
        useful = [part.utility.normalised(done.alert, weight) for done in (own, base)]
        ranked = [one.auprc(weight) for one in ranks]
        return float((wrong * weight).sum() / weight.sum()), useful[0] - useful[1], ranked[0] - ranked[1]

    found = np.array([figures(weights[entity].astype(np.float64)) for weights in drawn])
    savings = [_saving(part, own, base, rates, notion, drawn) for notion in ("price", "flops")]
    return Intervals(*(_bounds(column) for column in found.T), *savings)


def lead_interval(gain: FloatArray, seed: int) -> Interval:
    """Return the 95 % interval of the mean of (J,) gains, one a patient."""
    if not gain.size:
        return float("nan"), float("nan")
    drawn = measures.bootstrap_weights(len(gain), REPLICATES, seed)
    return _bounds(drawn @ gain / len(gain))


def _saving(part: Part, own: Outcome, base: Outcome, rates: Rates, notion: str, drawn: IntArray) -> Interval:
    paid = [drawn @ totals(done.walk, part.zoo, rates, notion) for done in (own, base)]
    with np.errstate(divide="ignore"):
        return _bounds(paid[1] / paid[0])


def _bounds(values: FloatArray) -> Interval:
    low, high = np.nanquantile(values, (0.025, 0.975))
    return float(low), float(high)
