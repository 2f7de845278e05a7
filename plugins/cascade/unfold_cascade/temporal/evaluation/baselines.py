"""The baseline model, decoded in two ways: memoryless, by the largest class of each hour, and latched."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from unfold_cascade._types import BoolArray, Float32, FloatArray, IntArray
from unfold_cascade.temporal.evaluation.evaluate import (
    Outcome,
    Quality,
    ScoreCalibration,
    evaluate_policy,
    fit_calibration,
    measure_quality,
    tune_final_cut,
)
from unfold_cascade.temporal.models.study import Cohort, Study
from unfold_cascade.temporal.problem import Transitions
from unfold_cascade.temporal.simulation.cost import CallCosts
from unfold_cascade.temporal.simulation.policy import ALWAYS_EVALUATED, Policy, single_model_policy

CUT_GRID = 64


@dataclass(frozen=True, slots=True)
class BaselineRule:
    """How a baseline model decides.

    Attributes:
        policy: The alarm of its last class.
        cuts: (S-1,) chance of at least stage s that must be reached once. ``None``: no memory, each hour gets its
            largest class.
    """

    policy: Policy
    cuts: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Baselines:
    """The latched and the memoryless (argmax) baseline, and how they do on the tuning cohort."""

    latched: BaselineRule
    argmax: BaselineRule
    calibration: ScoreCalibration
    latched_quality: Quality

    def decode_both(self, cohort: Cohort, study: Study) -> tuple[Outcome, Outcome]:
        """Decode the latched and the argmax baseline on a cohort."""
        latched = decode_baseline(cohort, self.latched, study.problem.transitions, study.call_costs, self.calibration)
        argmax = decode_baseline(cohort, self.argmax, study.problem.transitions, study.call_costs, self.calibration)
        return latched, argmax


def tune_baselines(study: Study) -> Baselines:
    """Tune both decodings of the baseline model on the tuning cohort."""
    problem, cohort = study.problem, study.train
    latched = tune_latched(cohort, study.baseline, problem.transitions, study.call_costs, problem.alerts.per_100h)
    argmax = replace(latched, cuts=None)
    quality = measure_quality(cohort, decode_baseline(cohort, latched, problem.transitions, study.call_costs))
    return Baselines(latched, argmax, calibrate_baseline(study, latched), quality)


def calibrate_baseline(study: Study, rule: BaselineRule) -> ScoreCalibration:
    """Fit the map from a baseline's probability to the chance of the event, on the tuning cohort."""
    outcome = decode_baseline(study.train, rule, study.problem.transitions, study.call_costs)
    evaluated = outcome.trajectories.evaluated[:, -1].astype(np.int64)
    return fit_calibration(study.train, rule.policy[-1].chain, evaluated)


def tune_latched(
    cohort: Cohort, model: int, transitions: Transitions, call_costs: CallCosts, per_100h: float
) -> BaselineRule:
    """Tune the cuts of a latched baseline one after the other for accuracy on ``cohort``."""
    policy = tune_final_cut(cohort, single_model_policy(model), ALWAYS_EVALUATED, transitions, per_100h)
    if policy is None:
        raise ValueError("a single model always meets an alert rate")
    alert = evaluate_policy(cohort, policy, ALWAYS_EVALUATED, transitions, call_costs).alert
    cuts: tuple[float, ...] = ()
    for s in range(1, cohort.entered.shape[1]):
        chance = _running_max(chance_of_stage(cohort.baseline_p[model], s), cohort.timeline.starts)
        cuts = (*cuts, _find_best_cut(cohort, chance, s, alert))
    return BaselineRule(policy, cuts)


def _find_best_cut(cohort: Cohort, chance: FloatArray, s: int, alert: BoolArray) -> float:
    candidates = np.quantile(chance, np.linspace(0.0, 1.0, CUT_GRID + 1))
    truth, undecided = cohort.highest >= s, ~alert
    accuracy = [float(((chance >= cut) == truth)[undecided].mean()) for cut in candidates]
    return float(candidates[int(np.argmax(accuracy))])


def chance_of_stage(p: Float32, s: int) -> FloatArray:
    """Sum (n,) the chance of stage s or a later one from (n, S+1) probabilities."""
    chance: FloatArray = p[:, s:].astype(np.float64).sum(axis=1)
    return chance


def decode_baseline(
    cohort: Cohort,
    rule: BaselineRule,
    transitions: Transitions,
    call_costs: CallCosts,
    calibration: ScoreCalibration | None = None,
) -> Outcome:
    """Decode the stages of a baseline model, which is paid for at every hour at which it is evaluated."""
    outcome = evaluate_policy(cohort, rule.policy, ALWAYS_EVALUATED, transitions, call_costs, calibration)
    final = cohort.entered.shape[1]
    p = cohort.baseline_p[rule.policy[-1].chain[0]]
    stage = _largest_class(p) if rule.cuts is None else latch_stages(p, cohort.timeline.starts, rule.cuts)
    return replace(outcome, stage=np.where(outcome.alert, final, np.minimum(stage, final - 1)))


def _largest_class(probabilities: Float32) -> IntArray:
    """Select the largest class; the last class counts towards the one before, because a cut decides alarms."""
    p = probabilities[:, :-1].astype(np.float64)
    p[:, -1] += probabilities[:, -1]
    stage: IntArray = p.argmax(axis=1)
    return stage


def latch_stages(p: Float32, starts: IntArray, cuts: tuple[float, ...]) -> IntArray:
    """Compute (n,) the stage that each entity has reached so far, from (n, S+1) probabilities."""
    stage = np.zeros(len(p), dtype=np.int64)
    for s, cut in enumerate(cuts, 1):
        stage = np.where(_running_max(chance_of_stage(p, s), starts) >= cut, s, stage)
    return stage


def _running_max(values: FloatArray, starts: IntArray) -> FloatArray:
    """Compute (n,) the maximum of each entity so far."""
    distinct, rank = np.unique(values, return_inverse=True)
    # ranks instead of values: an offset per entity would round the values
    offset = np.repeat(np.arange(len(starts) - 1) * len(distinct), np.diff(starts))
    maximum: FloatArray = distinct[np.maximum.accumulate(rank + offset) - offset]
    return maximum
