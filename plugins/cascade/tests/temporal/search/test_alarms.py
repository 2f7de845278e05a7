"""The alarm search finds nearly the best cuts of each chain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unfold_cascade.temporal.data.features import PurchaseTerms
from unfold_cascade.temporal.data.table import Timeline, compute_hours_since, starts_from_sizes
from unfold_cascade.temporal.early_warning_metrics import compute_utility, locate_events
from unfold_cascade.temporal.evaluation.evaluate import Quality, evaluate_policy, measure_quality, tune_final_cut
from unfold_cascade.temporal.models.study import Cohort
from unfold_cascade.temporal.problem import GateOptions, Transitions
from unfold_cascade.temporal.search.alarms import AlarmCandidate, search_alarms
from unfold_cascade.temporal.search.candidates import CostBasis, StageHours
from unfold_cascade.temporal.search.compose import select_nearest
from unfold_cascade.temporal.search.planner import SearchResult
from unfold_cascade.temporal.simulation.cost import CallCosts
from unfold_cascade.temporal.simulation.policy import ALWAYS_EVALUATED, StagePolicy
from unfold_cascade.temporal.simulation.trajectories import ModelScores

RATE, CHAIN = 10.0, (0, 1)


def _draw_cohort(rng: np.random.Generator, noise: tuple[float, float], patients: int = 60) -> Cohort:
    """Draw patients of 40 hours, a third with an event, and scores of a cheap and an expensive model."""
    starts = starts_from_sizes(np.full(patients, 40))
    timeline = Timeline(starts, np.tile(np.arange(40.0), patients))
    onset = np.repeat(rng.integers(8, 30, patients), 40)
    label = (np.repeat(np.arange(patients) % 3 == 0, 40)) & (timeline.hour >= onset)
    p = [1 / (1 + np.exp(2.0 - 4 * label - sigma * rng.normal(size=len(label)))) for sigma in noise]
    since = compute_hours_since(label, timeline)
    purchase = PurchaseTerms(("expensive",), np.array([5.0]), np.array([0.0]))
    return Cohort(
        timeline=timeline,
        scores=ModelScores(np.array(p, dtype=np.float32), np.array([0, 1]), purchase),
        entered=label[:, None],
        since=since[:, None],
        highest=label.astype(np.int64),
        baseline_p={},
        utility=compute_utility(since),
        events=locate_events(since, starts),
    )


def _cost_basis() -> CostBasis:
    free = np.zeros(2)
    return CostBasis(CallCosts(free, np.ones(2), free, free), {"price": 5.0}, "price", Transitions())


def _search_chain(cohort: Cohort) -> list[AlarmCandidate]:
    hours = StageHours(cohort.timeline, cohort.scores, cohort.label, np.ones(len(cohort.label), dtype=np.bool_))
    alarms = search_alarms(cohort, hours, CHAIN, _cost_basis(), RATE, GateOptions())
    return [alarm for alarm in alarms if alarm.stage_policy.chain == CHAIN]


def _best_utility(cohort: Cohort, max_cost: float) -> float:
    """Find the highest utility of any cut of the chain within a cost, over all cuts between percentiles."""
    cuts = np.quantile(cohort.scores.p[0].astype(np.float64), np.linspace(0, 1, 101))
    utilities = [0.0]
    for cut in cuts:
        stage = StagePolicy(CHAIN, ((float(cut), float("inf")),), 0.5)
        policy = tune_final_cut(cohort, (stage,), ALWAYS_EVALUATED, Transitions(), RATE)
        assert policy is not None
        outcome = evaluate_policy(cohort, policy, ALWAYS_EVALUATED, Transitions(), _cost_basis().call_costs)
        quality = measure_quality(cohort, outcome)
        utilities += [quality.utility] if quality.bill["price"] / 5.0 <= max_cost else []
    return max(utilities)


@pytest.mark.e2e
@pytest.mark.parametrize("noise", [(0.5, 1.5), (1.0, 1.0), (1.5, 0.5)])
def test_alarms_of_a_chain_are_near_the_best_of_all_cuts(noise: tuple[float, float]) -> None:
    """At each cost some alarm reaches nearly the utility of any cut, also if the first model is the better one.

    Only the last model alerts. If the first one could alert too and is the better, the search would find only the
    alarm that never evaluates the second and therefore never alerts.
    """
    cohort = _draw_cohort(np.random.default_rng(4), noise)
    alarms = _search_chain(cohort)
    for max_cost in (0.3, 0.5, 0.8):
        utility = max([alarm.quality.utility for alarm in alarms if alarm.cost <= max_cost], default=0.0)
        assert utility >= 0.9 * _best_utility(cohort, max_cost)


def test_only_the_last_model_of_an_alarm_alerts(search: SearchResult) -> None:
    """Earlier models of the last stage rule an hour out or defer; none of them alerts."""
    chains = [alarm.stage_policy for alarm in search.front.alarms if len(alarm.stage_policy.chain) > 1]
    assert chains
    assert all(hi == np.inf for stage in chains for _, hi in stage.spans)


@pytest.mark.parametrize("baseline_utility", [-0.2, 0.0, 0.1])
def test_the_nearest_alarm_loses_least_for_any_baseline_utility(baseline_utility: float) -> None:
    """A worse alarm is never the nearest, even if the baseline's alerts gain nothing or lose."""
    base = Quality(loss=0.1, utility=baseline_utility, auprc=0.2, auroc=0.8, macro_f1=0.5, alerts=10.0, bill={})
    stage = StagePolicy((0,), (), 0.5)
    alarms = [
        AlarmCandidate(stage, replace(base, utility=baseline_utility - deficit, auprc=0.19), 1.0)
        for deficit in (0.3, 0.02, 0.6)
    ]
    assert select_nearest(alarms, base) == [alarms[1]]


def test_models_with_losing_alerts_still_give_alarms() -> None:
    """Where scores are worse than chance, as on few local patients, each model alone remains to compare with."""
    cohort = _draw_cohort(np.random.default_rng(4), (1.0, 1.0), patients=30)
    reversed_scores = replace(cohort.scores, p=1 - cohort.scores.p)
    cohort = replace(cohort, scores=reversed_scores)
    hours = StageHours(cohort.timeline, cohort.scores, cohort.label, np.ones(len(cohort.label), dtype=np.bool_))
    alarms = search_alarms(cohort, hours, CHAIN, _cost_basis(), RATE, GateOptions())
    singles = {alarm.stage_policy.chain for alarm in alarms if len(alarm.stage_policy.chain) == 1}
    assert singles == {(0,), (1,)}
    assert all(alarm.quality.utility < 0 for alarm in alarms)
