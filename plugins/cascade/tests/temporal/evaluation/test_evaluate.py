"""Final cuts meet the alert rate on the cohort where they were tuned."""

from __future__ import annotations

import numpy as np

from unfold_cascade.temporal.early_warning_metrics import compute_alert_rate
from unfold_cascade.temporal.evaluation.evaluate import evaluate_policy, tune_final_cut
from unfold_cascade.temporal.problem import Transitions
from unfold_cascade.temporal.search.planner import SearchResult
from unfold_cascade.temporal.simulation.policy import StagePolicy

RULES = (
    Transitions(),
    Transitions(confirm=2),
    Transitions(confirm=3, entry="sticky"),
    Transitions(alarm="latched"),
)


def test_tuned_cuts_meet_the_alert_rate(search: SearchResult) -> None:
    """The tuned cut alerts at most at the rate, with and without confirmation, and a lower cut alerts more."""
    study, flags = search.study, np.array([True])
    for rules in RULES:
        for stage in (StagePolicy((2,), (), 0.5), StagePolicy((2, 4), ((0.2, 0.9),), 0.5)):
            policy = tune_final_cut(study.train, (stage,), flags, rules, 10.0)
            if policy is None:
                continue
            cut = policy[-1].cut
            outcomes = [
                evaluate_policy(study.train, (stage.with_cut(c),), flags, rules, study.call_costs)
                for c in (cut, cut * 0.7)
            ]
            rates = [compute_alert_rate(outcome.alert, study.train.events) for outcome in outcomes]
            assert rates[0] <= 10.0
            assert rates[1] >= rates[0]
