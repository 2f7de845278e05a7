"""Patient bootstrap: 95 % intervals of the differences between cascade and baseline on the same resamples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.temporal.early_warning_metrics import compute_macro_f1, draw_bootstrap_weights, rank_scores
from unfold_cascade.temporal.evaluation.evaluate import Outcome
from unfold_cascade.temporal.models.study import Cohort
from unfold_cascade.temporal.simulation.cost import CallCosts, sum_costs

REPLICATES = 200
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """95 % intervals: differences cascade minus baseline, and savings (baseline divided by cascade)."""

    loss: Interval
    utility: Interval
    auprc: Interval
    auroc: Interval
    macro_f1: Interval
    price_saving: Interval
    flops_saving: Interval


def bootstrap_differences(
    cohort: Cohort, cascade: Outcome, baseline: Outcome, call_costs: CallCosts, seed: int
) -> Intervals:
    """Bootstrap all differences and savings by patient."""
    weights = draw_bootstrap_weights(cohort.clusters, REPLICATES, seed)
    cluster, classes = cohort.cluster, cohort.entered.shape[1] + 1
    extra_errors = (cascade.stage != cohort.highest).astype(np.float64) - (baseline.stage != cohort.highest)
    rankings = [rank_scores(outcome.score, cohort.label) for outcome in (cascade, baseline)]

    def measure_differences(weight: FloatArray) -> tuple[float, ...]:
        pairs = [
            [cohort.utility.normalize(outcome.alert, weight) for outcome in (cascade, baseline)],
            [ranking.auprc(weight) for ranking in rankings],
            [ranking.auroc(weight) for ranking in rankings],
            [compute_macro_f1(outcome.stage, cohort.highest, classes, weight) for outcome in (cascade, baseline)],
        ]
        loss = float((extra_errors * weight).sum() / weight.sum())
        return loss, *(cascade_value - baseline_value for cascade_value, baseline_value in pairs)

    samples = np.array([measure_differences(replicate[cluster].astype(np.float64)) for replicate in weights])
    loss, utility, auprc, auroc, macro_f1 = (_quantile_interval(column) for column in samples.T)
    return Intervals(
        loss=loss,
        utility=utility,
        auprc=auprc,
        auroc=auroc,
        macro_f1=macro_f1,
        price_saving=_bootstrap_saving(cohort, cascade, baseline, call_costs, "price", weights),
        flops_saving=_bootstrap_saving(cohort, cascade, baseline, call_costs, "flops", weights),
    )


def bootstrap_mean(values: FloatArray, clusters: IntArray, seed: int) -> Interval:
    """Bootstrap the mean of (J,) values by the (J,) clusters that they belong to; NaN without values."""
    if not values.size:
        return float("nan"), float("nan")
    cluster = np.unique(clusters, return_inverse=True)[1]
    sums, sizes = np.bincount(cluster, values), np.bincount(cluster)
    weights = draw_bootstrap_weights(len(sizes), REPLICATES, seed)
    return _quantile_interval(weights @ sums / (weights @ sizes))


def bootstrap_alert_rate(cohort: Cohort, alert: BoolArray, seed: int) -> Interval:
    """Bootstrap the alerts per 100 event-free hours by patient."""
    cluster, event_free = cohort.cluster, cohort.events.event_free
    hours = np.bincount(cluster, event_free, cohort.clusters)
    alerts = np.bincount(cluster, event_free & alert, cohort.clusters)
    weights = draw_bootstrap_weights(cohort.clusters, REPLICATES, seed)
    return _quantile_interval(100.0 * (weights @ alerts) / np.maximum(weights @ hours, 1e-300))


def _bootstrap_saving(
    cohort: Cohort, cascade: Outcome, baseline: Outcome, call_costs: CallCosts, currency: str, weights: IntArray
) -> Interval:
    costs = [
        weights @ cohort.timeline.sum_by_cluster(sum_costs(outcome.trajectories, cohort.scores, call_costs, currency))
        for outcome in (cascade, baseline)
    ]
    with np.errstate(divide="ignore"):
        return _quantile_interval(costs[1] / costs[0])


def _quantile_interval(values: FloatArray) -> Interval:
    low, high = np.nanquantile(values, (0.025, 0.975))
    return float(low), float(high)
