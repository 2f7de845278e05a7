"""How good a policy is on a part of the patients, next to the monolith at the same alert rate."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.schema.temporal import Moves
from unfold_cascade.temporal.data import warning_metrics
from unfold_cascade.temporal.models.study import Part
from unfold_cascade.temporal.simulation.cost import Rates, bill
from unfold_cascade.temporal.simulation.policy import Policy, Step, ladder
from unfold_cascade.temporal.simulation.trajectories import Walk, walk

KNOTS = 1024


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy did on a part: (n,) stage of each hour, (n,) alarms, (n,) score of the last stage, and the bill."""

    answer: IntArray
    alert: BoolArray
    score: FloatArray
    bill: dict[str, float]
    walk: Walk


@dataclass(frozen=True, slots=True)
class Quality:
    """The figures of an outcome: share of hours with a wrong stage, utility, ranking, alerts per 100 free hours."""

    loss: float
    utility: float
    auprc: float
    auroc: float
    macro_f1: float
    alerts: float
    bill: dict[str, float]


@dataclass(frozen=True, slots=True)
class Scale:
    """For each model of the last chain, (x, y) knots: from its probability to the chance of the event."""

    knots: tuple[tuple[FloatArray, FloatArray], ...]

    def scores(self, part: Part, chain: tuple[int, ...], asked: IntArray) -> FloatArray:
        """Return (n,) the chance of the event by the model that answered; -1 where none was asked."""
        score = np.full(len(asked), -1.0)
        for position, (x, y) in enumerate(self.knots):
            here = asked == position + 1
            p = part.zoo.p[chain[position], here].astype(np.float64)
            # ties of the step function keep the order of the model itself
            score[here] = np.interp(p, x, y) + 1e-7 * p
        return score


def scale(part: Part, chain: tuple[int, ...], asked: IntArray) -> Scale:
    """Fit the maps by isotonic regression on a part that is not used for figures."""
    from sklearn.isotonic import IsotonicRegression

    knots = []
    for position in range(len(chain)):
        here = asked == position + 1
        p, y = part.zoo.p[chain[position], here].astype(np.float64), part.label[here].astype(np.float64)
        if p.size < 2 or np.ptp(p) == 0.0:
            knots.append((np.array([0.0, 1.0]), np.full(2, y.mean() if y.size else 0.0)))
            continue
        fitted = IsotonicRegression(out_of_bounds="clip").fit(*_pooled(p, y))
        knots.append((np.asarray(fitted.X_thresholds_), np.asarray(fitted.y_thresholds_)))
    return Scale(tuple(knots))


def _pooled(p: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return means of (n,) pairs over at most ``KNOTS`` groups of like rank, and their sizes: as good, and quicker."""
    order = np.argsort(p)
    first = np.unique(np.linspace(0, len(p), KNOTS + 1).astype(np.int64))[:-1]
    size = np.diff(np.append(first, len(p)))
    means = [np.add.reduceat(values[order], first) / size for values in (p, y)]
    return means[0], means[1], size.astype(np.float64)


def outcome(
    part: Part, policy: Policy, parallel: BoolArray, moves: Moves, rates: Rates, scaling: Scale | None = None
) -> Outcome:
    """Send a part through a policy; without a ``scaling`` one is fitted on the same part."""
    went = walk(part.clock, part.zoo, ladder(policy, parallel), moves)
    asked = went.asked[:, -1].astype(np.int64)
    known = scaling or scale(part, policy[-1].chain, asked)
    score = known.scores(part, policy[-1].chain, asked)
    answer = went.answer.astype(np.int64)
    return Outcome(answer, answer == len(policy), score, bill(went, part.zoo, rates), went)


def quality(part: Part, done: Outcome) -> Quality:
    """Return the figures of an outcome."""
    ranked = warning_metrics.ranking(done.score, part.label)
    classes = part.on.shape[1] + 1
    return Quality(
        float((done.answer != part.highest).mean()),
        part.utility.normalised(done.alert),
        ranked.auprc(),
        ranked.auroc(),
        warning_metrics.macro_f1(done.answer, part.highest, classes),
        warning_metrics.alerts_per_100h(done.alert, part.events),
        done.bill,
    )


def at_rate(part: Part, policy: Policy, parallel: BoolArray, moves: Moves, per_100h: float) -> Policy | None:
    """Return the policy with the final cut that warns at most ``per_100h``; ``None`` if its gates alone warn more.

    Without confirmation the cut is read from the sorted scores; with it, it is found by bisection on trajectories.
    """
    silent = _with_last_cut(policy, np.inf)
    went = walk(part.clock, part.zoo, ladder(silent, parallel), moves)
    done = went.answer == len(policy)
    allowed = per_100h / 100.0 * part.events.free.sum() - done[part.events.free].sum()
    if allowed < 0:
        return None
    last = went.asked[:, -1] == len(policy[-1].chain)
    score = part.zoo.p[policy[-1].chain[-1]].astype(np.float64)
    if moves.confirm == 1 and moves.alarm == "hourly":
        open_ = part.events.free & last & ~done
        rate = 100.0 * float(allowed) / max(int(open_.sum()), 1)
        return _with_last_cut(policy, warning_metrics.cut_at_rate(score, open_, rate) if rate < 100.0 else 0.0)
    return _bisected(part, policy, parallel, moves, per_100h, np.unique(score[last]))


def _bisected(
    part: Part, policy: Policy, parallel: BoolArray, moves: Moves, per_100h: float, cuts: FloatArray
) -> Policy:
    low, high = 0, len(cuts)
    while low < high:
        middle = (low + high) // 2
        tried = _with_last_cut(policy, float(cuts[middle]))
        went = walk(part.clock, part.zoo, ladder(tried, parallel), moves)
        many = warning_metrics.alerts_per_100h(went.answer == len(policy), part.events) > per_100h
        low, high = (middle + 1, high) if many else (low, middle)
    return _with_last_cut(policy, float(cuts[low]) if low < len(cuts) else np.inf)


def _with_last_cut(policy: Policy, cut: float) -> Policy:
    return (*policy[:-1], replace(policy[-1], cut=cut))


def single(model: int, cut: float = np.inf) -> Policy:
    """Return the policy that asks one model at every hour."""
    return (Step((model,), (), cut),)
