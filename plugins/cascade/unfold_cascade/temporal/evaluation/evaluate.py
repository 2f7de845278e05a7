"""Evaluate a policy on one part of the split: its stages, alerts, score and bill, and the metrics made of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.temporal.early_warning_metrics import (
    compute_alert_rate,
    compute_macro_f1,
    find_cut_at_rate,
    rank_scores,
)
from unfold_cascade.temporal.models.study import Cohort
from unfold_cascade.temporal.problem import Transitions
from unfold_cascade.temporal.simulation.cost import CallCosts, compute_bill
from unfold_cascade.temporal.simulation.policy import Policy, build_policy_arrays
from unfold_cascade.temporal.simulation.trajectories import Trajectories, simulate

POOL_SIZE = 1024


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy did on a cohort: (n,) stages, (n,) alerts, (n,) scores of the last stage, bill and trajectories."""

    stage: IntArray
    alert: BoolArray
    score: FloatArray
    bill: dict[str, float]
    trajectories: Trajectories


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Metrics of an outcome; ``loss`` is the share of hours with a wrong stage, ``alerts`` per 100 event-free hours."""

    loss: float
    utility: float
    auprc: float
    auroc: float
    macro_f1: float
    alerts: float
    bill: dict[str, float]


@dataclass(frozen=True, slots=True)
class ScoreCalibration:
    """Maps the probability of each model of the last chain to the chance of the event, as (x, y) knots."""

    knots: tuple[tuple[FloatArray, FloatArray], ...]

    def calibrate(self, cohort: Cohort, chain: tuple[int, ...], evaluated: IntArray) -> FloatArray:
        """Compute (n,) the chance of the event by the model that decided; -1 where none was evaluated.

        Args:
            cohort: The cohort.
            chain: Model numbers of the last stage.
            evaluated: (n,) number of its models evaluated.
        """
        score = np.full(len(evaluated), -1.0)
        for position, (x, y) in enumerate(self.knots):
            decided = evaluated == position + 1
            p = cohort.scores.p[chain[position], decided].astype(np.float64)
            # ties of the step function keep the order of the model itself
            score[decided] = np.interp(p, x, y) + 1e-7 * p
        return score


def fit_calibration(cohort: Cohort, chain: tuple[int, ...], evaluated: IntArray) -> ScoreCalibration:
    """Fit the maps by isotonic regression, on another cohort than the reported one. Arguments as in ``calibrate``."""
    from sklearn.isotonic import IsotonicRegression

    knots = []
    for position in range(len(chain)):
        decided = evaluated == position + 1
        p = cohort.scores.p[chain[position], decided].astype(np.float64)
        y = cohort.label[decided].astype(np.float64)
        if p.size < 2 or np.ptp(p) == 0.0:
            knots.append((np.array([0.0, 1.0]), np.full(2, y.mean() if y.size else 0.0)))
            continue
        fitted = IsotonicRegression(out_of_bounds="clip").fit(*_pool_pairs(p, y))
        knots.append((np.asarray(fitted.X_thresholds_), np.asarray(fitted.y_thresholds_)))
    return ScoreCalibration(tuple(knots))


def _pool_pairs(p: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Average (n,) pairs over at most ``POOL_SIZE`` groups of similar rank, for speed; also returns the group sizes."""
    order = np.argsort(p)
    begin = np.unique(np.linspace(0, len(p), POOL_SIZE + 1).astype(np.int64))[:-1]
    size = np.diff(np.append(begin, len(p)))
    means = [np.add.reduceat(values[order], begin) / size for values in (p, y)]
    return means[0], means[1], size.astype(np.float64)


def evaluate_policy(
    cohort: Cohort,
    policy: Policy,
    parallel: BoolArray,
    transitions: Transitions,
    call_costs: CallCosts,
    calibration: ScoreCalibration | None = None,
) -> Outcome:
    """Simulate a policy on a cohort; without a ``calibration`` one is fitted on the same cohort."""
    trajectories = simulate(cohort.timeline, cohort.scores, build_policy_arrays(policy, parallel), transitions)
    evaluated = trajectories.evaluated[:, -1].astype(np.int64)
    chain = policy[-1].chain
    score = (calibration or fit_calibration(cohort, chain, evaluated)).calibrate(cohort, chain, evaluated)
    stage = trajectories.stage.astype(np.int64)
    bill = compute_bill(trajectories, cohort.scores, call_costs)
    return Outcome(stage, stage == len(policy), score, bill, trajectories)


def measure_quality(cohort: Cohort, outcome: Outcome) -> Quality:
    """Compute the metrics of an outcome."""
    ranking = rank_scores(outcome.score, cohort.label)
    classes = cohort.entered.shape[1] + 1
    return Quality(
        loss=float((outcome.stage != cohort.highest).mean()),
        utility=cohort.utility.normalize(outcome.alert),
        auprc=ranking.auprc(),
        auroc=ranking.auroc(),
        macro_f1=compute_macro_f1(outcome.stage, cohort.highest, classes),
        alerts=compute_alert_rate(outcome.alert, cohort.events),
        bill=outcome.bill,
    )


def tune_final_cut(
    cohort: Cohort, policy: Policy, parallel: BoolArray, transitions: Transitions, per_100h: float
) -> Policy | None:
    """Set the final cut so that the policy alerts at most ``per_100h``; ``None`` if its gates alone alert more often.

    Without confirmation the cut follows from the sorted scores; with it, it is found by bisection on trajectories.
    """
    silent = _replace_final_cut(policy, np.inf)
    trajectories = simulate(cohort.timeline, cohort.scores, build_policy_arrays(silent, parallel), transitions)
    alerted = trajectories.stage == len(policy)
    event_free = cohort.events.event_free
    allowed = per_100h / 100.0 * event_free.sum() - alerted[event_free].sum()
    if allowed < 0:
        return None
    reaches_final = trajectories.evaluated[:, -1] == len(policy[-1].chain)
    score = cohort.scores.p[policy[-1].chain[-1]].astype(np.float64)
    if transitions.confirm == 1 and transitions.alarm == "hourly":
        undecided = event_free & reaches_final & ~alerted
        rate = 100.0 * float(allowed) / max(int(undecided.sum()), 1)
        return _replace_final_cut(policy, find_cut_at_rate(score, undecided, rate) if rate < 100.0 else 0.0)
    return _bisect_final_cut(cohort, policy, parallel, transitions, per_100h, np.unique(score[reaches_final]))


def _bisect_final_cut(
    cohort: Cohort,
    policy: Policy,
    parallel: BoolArray,
    transitions: Transitions,
    per_100h: float,
    cuts: FloatArray,
) -> Policy:
    low, high = 0, len(cuts)
    while low < high:
        middle = (low + high) // 2
        arrays = build_policy_arrays(_replace_final_cut(policy, float(cuts[middle])), parallel)
        trajectories = simulate(cohort.timeline, cohort.scores, arrays, transitions)
        alerts_too_often = compute_alert_rate(trajectories.stage == len(policy), cohort.events) > per_100h
        low, high = (middle + 1, high) if alerts_too_often else (low, middle)
    return _replace_final_cut(policy, float(cuts[low]) if low < len(cuts) else np.inf)


def _replace_final_cut(policy: Policy, cut: float) -> Policy:
    return (*policy[:-1], replace(policy[-1], cut=cut))
