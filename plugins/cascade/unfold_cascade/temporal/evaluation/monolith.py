"""The monolith, decoded in two ways: the largest class of each hour, and with a memory of the stage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import BoolArray, Float32, FloatArray, IntArray
from unfold_cascade.schema.temporal import Moves
from unfold_cascade.temporal.evaluation.evaluate import Outcome, Scale, at_rate, outcome, single
from unfold_cascade.temporal.models.study import Part
from unfold_cascade.temporal.simulation.cost import Rates
from unfold_cascade.temporal.simulation.policy import Policy

GRID = 64


@dataclass(frozen=True, slots=True)
class Monolith:
    """``policy`` is the alarm of its last class; ``cuts`` (S-1,) what the chance of at least stage s must reach once.

    Without cuts (``None``) it has no memory: each hour gets its largest class.
    """

    policy: Policy
    cuts: tuple[float, ...] | None


def tuned(part: Part, model: int, moves: Moves, rates: Rates, per_100h: float) -> Monolith:
    """Return the monolith with a memory, its cuts tuned one after the other for accuracy on ``part``."""
    policy = at_rate(part, single(model), np.array([True]), moves, per_100h)
    if policy is None:
        raise ValueError("one model alone always meets a rate of alerts")
    alert = outcome(part, policy, np.array([True]), moves, rates).alert
    cuts: tuple[float, ...] = ()
    for s in range(1, part.on.shape[1]):
        best = _best_cut(part, _running_max(at_least(part.bases[model], s), part.clock.starts), s, alert)
        cuts = (*cuts, best)
    return Monolith(policy, cuts)


def _best_cut(part: Part, chance: FloatArray, s: int, alert: BoolArray) -> float:
    tried = np.quantile(chance, np.linspace(0.0, 1.0, GRID + 1))
    truth, open_ = part.highest >= s, ~alert
    right = [float(((chance >= cut) == truth)[open_].mean()) for cut in tried]
    return float(tried[int(np.argmax(right))])


def at_least(p: Float32, s: int) -> FloatArray:
    """Return (n,) the chance that the case is in stage s or a later one, from (n, S+1) probabilities."""
    result: FloatArray = p[:, s:].astype(np.float64).sum(axis=1)
    return result


def decoded(part: Part, base: Monolith, moves: Moves, rates: Rates, scaling: Scale | None = None) -> Outcome:
    """Return what the monolith answers; it is paid at every hour in which it is asked."""
    done = outcome(part, base.policy, np.array([True]), moves, rates, scaling)
    last = part.on.shape[1]
    p = part.bases[base.policy[-1].chain[0]]
    stage = _largest(p) if base.cuts is None else latched(p, part.clock.starts, base.cuts)
    answer = np.where(done.alert, last, np.minimum(stage, last - 1))
    return Outcome(answer, done.alert, done.score, done.bill, done.walk)


def _largest(base: Float32) -> IntArray:
    """Return the largest class; the chance of the last goes to the one before, as alarms are decided by a cut."""
    p = base[:, :-1].astype(np.float64)
    p[:, -1] += base[:, -1]
    stage: IntArray = p.argmax(axis=1)
    return stage


def latched(p: Float32, starts: IntArray, cuts: tuple[float, ...]) -> IntArray:
    """Return (n,) the stage that each case has reached, from the (n, S+1) probabilities of the hours."""
    stage = np.zeros(len(p), dtype=np.int64)
    for s, cut in enumerate(cuts, 1):
        stage = np.where(_running_max(at_least(p, s), starts) >= cut, s, stage)
    return stage


def _running_max(values: FloatArray, starts: IntArray) -> FloatArray:
    """Return (n,) the largest value of the entity so far."""
    known, rank = np.unique(values, return_inverse=True)
    # ranks, not the values themselves: lifted apart by entity, these would be rounded
    lift = np.repeat(np.arange(len(starts) - 1) * len(known), np.diff(starts))
    found: FloatArray = known[np.maximum.accumulate(rank + lift) - lift]
    return found
