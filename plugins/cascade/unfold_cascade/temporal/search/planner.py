"""The planner: search on the tuning cohort, certify on the calibration cohort, evaluate on the unseen test cohort.

With sites left out in turn, it does so once more without each of them, and evaluates on the patients of that site.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_cascade.data.splits import leave_out
from unfold_cascade.planner.leave_one_site_out import SiteResult, open_site_run
from unfold_cascade.planner.ledger import Attempt, AttemptCount, identify_attempt, record_attempt
from unfold_cascade.temporal.data.labels import load_hours
from unfold_cascade.temporal.evaluation.alert_summary import AlertSummary, summarize_alerts
from unfold_cascade.temporal.evaluation.baselines import (
    BaselineRule,
    Baselines,
    calibrate_baseline,
    decode_baseline,
    tune_baselines,
    tune_latched,
)
from unfold_cascade.temporal.evaluation.bootstrap import Interval, Intervals, bootstrap_differences, bootstrap_mean
from unfold_cascade.temporal.evaluation.evaluate import (
    Outcome,
    Quality,
    evaluate_policy,
    fit_calibration,
    measure_quality,
    tune_final_cut,
)
from unfold_cascade.temporal.models.study import Study, fit_study
from unfold_cascade.temporal.problem import TemporalProblem
from unfold_cascade.temporal.search.candidates import CostBasis
from unfold_cascade.temporal.search.compose import (
    CascadeFront,
    FrontPoint,
    search_front,
    select_adequate,
    select_cheapest,
    select_nearest,
)
from unfold_cascade.temporal.search.late_break import refuse_late_break
from unfold_cascade.temporal.search.select import BaselineOutcomes, Selection, retest_selection, select_cascade
from unfold_cascade.temporal.simulation.cost import build_cost_measure
from unfold_cascade.temporal.simulation.policy import ALWAYS_EVALUATED, Policy
from unfoldkit.api import Progress, Run, ignore_progress


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyEvaluation:
    """A policy on the test cohort: what it did, its metrics, and how it alerts."""

    name: str
    policy: Policy
    outcome: Outcome
    quality: Quality
    alerts: AlertSummary


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What the search found on the tuning cohort: the baselines to compare with, and the front of cascades."""

    study: Study
    baselines: Baselines
    front: CascadeFront

    @property
    def problem(self) -> TemporalProblem:
        """The problem of the study."""
        return self.study.problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The selected cascade and everything it is compared with, evaluated on the test cohort.

    Attributes:
        study: The study.
        front: The front it was selected from.
        rule: The latched baseline.
        selection: The cascade selected against the latched baseline.
        argmax_selection: Another one, selected against the memoryless baseline.
        cascade: Evaluation of ``selection``.
        argmax_cascade: Evaluation of ``argmax_selection``.
        tuned_only: The cheapest cascade within the loss on the tuning cohort, without a certificate.
        latched: The latched baseline.
        argmax: The memoryless baseline.
        single_model: The cheapest single model that alerts well enough.
        single_stage: The cheapest chain of the last stage that does.
        other_baselines: The baselines that are only reported.
        intervals: Intervals of the differences to the latched baseline.
        lead_gain_h: Interval of the gain in lead time.
    """

    study: Study
    front: CascadeFront
    rule: BaselineRule
    selection: Selection
    argmax_selection: Selection
    cascade: PolicyEvaluation
    argmax_cascade: PolicyEvaluation
    tuned_only: PolicyEvaluation
    latched: PolicyEvaluation
    argmax: PolicyEvaluation
    single_model: PolicyEvaluation
    single_stage: PolicyEvaluation
    other_baselines: tuple[PolicyEvaluation, ...]
    intervals: Intervals
    lead_gain_h: Interval

    @property
    def problem(self) -> TemporalProblem:
        """The problem of the study."""
        return self.study.problem


def solve(study: Study, progress: Progress = ignore_progress) -> Solution:
    """Search on the tuning cohort, certify on the calibration cohort, and evaluate on the test cohort."""
    search = search_cascades(study, progress)
    progress("evaluation", 0, 1)
    solution = evaluate_solution(search)
    progress("evaluation", 1, 1)
    return solution


def record_certificate(solution: Solution, run: Run) -> AttemptCount:
    """Record the certificate, issued or refused, as an attempt on the data of the study."""
    problem, selection, digest = solution.problem, solution.selection, solution.study.digest
    key = identify_attempt(problem.documents.spec, problem.seed, digest)
    attempt = Attempt(key, problem.goal.confidence, problem.name, selection.is_certified)
    return record_attempt(attempt, digest, problem.goal.attempts, run)


def search_cascades(study: Study, progress: Progress = ignore_progress) -> SearchResult:
    """Search the front of cascades on the tuning cohort."""
    baselines = tune_baselines(study)
    problem = study.problem
    basis = CostBasis(study.call_costs, baselines.latched_quality.bill, problem.cost.by, problem.transitions)
    return SearchResult(study, baselines, search_front(study, baselines, basis, progress))


def evaluate_solution(search: SearchResult) -> Solution:
    """Select and certify a cascade against each baseline, and evaluate all policies on the test cohort."""
    study, baselines, seed = search.study, search.baselines, search.problem.seed
    latched_outcomes, argmax_outcomes = (
        BaselineOutcomes(train, calibrate)
        for train, calibrate in zip(
            baselines.decode_both(study.train, study), baselines.decode_both(study.calibrate, study), strict=True
        )
    )
    measure = build_cost_measure(search.problem.cost.by, baselines.latched_quality.bill, study.call_costs)
    selection = select_cascade(study, search.front.points, latched_outcomes, measure)
    argmax_selection = select_cascade(study, search.front.relaxed_points, argmax_outcomes, measure)
    cascade = _evaluate_cascade(study, "cascade", selection.point.policy)
    latched = _evaluate_baseline(study, "baseline, latched", baselines.latched)
    selection = retest_selection(study, selection, cascade.outcome, latched.outcome, measure)
    cohorts = [
        (study.train, latched_outcomes.train),
        (study.calibrate, latched_outcomes.calibrate),
        (study.test, latched.outcome),
    ]
    # parts in the order of time or by site differ by more than chance: what the cascade was tuned on is left out
    is_random = search.problem.split.kind in ("random", "leave-out")
    selection = refuse_late_break(study, selection, cohorts if is_random else cohorts[1:], measure)
    with_lead = study.test.timeline.cluster[study.test.events.has_lead_time]
    return Solution(
        study=study,
        front=search.front,
        rule=baselines.latched,
        selection=selection,
        argmax_selection=argmax_selection,
        cascade=cascade,
        argmax_cascade=_evaluate_cascade(study, "cascade", argmax_selection.point.policy),
        tuned_only=_evaluate_cascade(study, "cascade", find_cheapest_within_loss(search).policy),
        latched=latched,
        argmax=_evaluate_baseline(study, "baseline, argmax", baselines.argmax),
        single_model=_evaluate_alarm(search, max_models=1),
        single_stage=_evaluate_alarm(search, max_models=99),
        other_baselines=tuple(_evaluate_other_baseline(study, model) for model in study.other_baselines),
        intervals=bootstrap_differences(study.test, cascade.outcome, latched.outcome, study.call_costs, seed),
        lead_gain_h=bootstrap_mean(cascade.alerts.lead_h - latched.alerts.lead_h, with_lead, seed),
    )


def find_cheapest_within_loss(search: SearchResult) -> FrontPoint:
    """Find the cheapest cascade within the loss allowed on the tuning cohort: what one would deploy without a test."""
    allowed = search.baselines.latched_quality.loss + (search.problem.goal.max_loss or 0.0)
    within = [point for point in search.front.points if point.loss <= allowed]
    return min(within, key=lambda point: point.cost) if within else search.front.points[-1]


def evaluate_patient_sites(problem: TemporalProblem, run: Run) -> tuple[SiteResult, ...]:
    """Fit and certify without each site in turn, and evaluate on its patients; empty unless the split asks for it."""
    if problem.split.kind != "leave-out":
        return ()
    sites: Sequence[str] = load_hours(run).sites
    results = []
    for number, site in enumerate(sites):
        run.log.info("leaving out %s", site)
        run.progress("sites left out", number, len(sites))
        without = replace(problem, split=leave_out(problem.split, site))
        results.append(_measure_at_site(site, solve(fit_study(without, open_site_run(run, number)))))
    return tuple(results)


def _evaluate_other_baseline(study: Study, model: int) -> PolicyEvaluation:
    """Evaluate another latched baseline, tuned like the one that cascades are compared with."""
    problem = study.problem
    rule = tune_latched(study.train, model, problem.transitions, study.call_costs, problem.alerts.per_100h)
    return _evaluate_baseline(study, study.model_name(model), rule)


def _evaluate_baseline(study: Study, name: str, rule: BaselineRule) -> PolicyEvaluation:
    transitions, test = study.problem.transitions, study.test
    calibration = calibrate_baseline(study, rule)
    outcome = decode_baseline(test, rule, transitions, study.call_costs, calibration)
    per_100h = study.problem.alerts.per_100h
    exact = tune_final_cut(test, rule.policy, ALWAYS_EVALUATED, transitions, per_100h) or rule.policy
    at_rate = decode_baseline(test, replace(rule, policy=exact), transitions, study.call_costs, calibration)
    return PolicyEvaluation(
        name=name,
        policy=rule.policy,
        outcome=outcome,
        quality=measure_quality(test, outcome),
        alerts=summarize_alerts(test, outcome.alert, at_rate.alert, study.problem.seed),
    )


def _evaluate_cascade(study: Study, name: str, policy: Policy, *, is_alarm: bool = False) -> PolicyEvaluation:
    """Evaluate a policy on the test cohort; its scores are calibrated on the tuning cohort.

    ``is_alarm``: the policy is the last stage alone, evaluated at every hour.
    """
    transitions, test, costs = study.problem.transitions, study.test, study.call_costs
    parallel = ALWAYS_EVALUATED if is_alarm else study.parallel
    evaluated = evaluate_policy(study.train, policy, parallel, transitions, costs).trajectories.evaluated[:, -1]
    calibration = fit_calibration(study.train, policy[-1].chain, evaluated.astype(np.int64))
    outcome = evaluate_policy(test, policy, parallel, transitions, costs, calibration)
    exact = tune_final_cut(test, policy, parallel, transitions, study.problem.alerts.per_100h) or policy
    at_rate = evaluate_policy(test, exact, parallel, transitions, costs, calibration)
    return PolicyEvaluation(
        name=name,
        policy=policy,
        outcome=outcome,
        quality=measure_quality(test, outcome),
        alerts=summarize_alerts(test, outcome.alert, at_rate.alert, study.problem.seed),
    )


def _evaluate_alarm(search: SearchResult, *, max_models: int) -> PolicyEvaluation:
    """Evaluate the cheapest alarm without earlier stages: a single model, or a chain of the last stage."""
    study, base, alerts = search.study, search.baselines.latched_quality, search.problem.alerts
    alarms = [alarm for alarm in search.front.alarms if len(alarm.stage_policy.chain) <= max_models]
    cheapest = select_cheapest(select_adequate(alarms, base, alerts) or select_nearest(alarms, base))[0]
    names = " → ".join(study.models[model] for model in cheapest.stage_policy.chain)
    return _evaluate_cascade(study, names, (cheapest.stage_policy,), is_alarm=True)


def _measure_at_site(site: str, solution: Solution) -> SiteResult:
    is_certified, latched = solution.selection.is_certified, solution.latched.quality
    served = solution.cascade.quality if is_certified else latched
    currency = solution.problem.cost.currency
    cost = served.bill[currency]
    return SiteResult(
        site=site,
        units=solution.study.test.clusters,
        loss=served.loss - latched.loss,
        saving=latched.bill[currency] / cost if cost > 0 else None,
        is_certified=is_certified,
        utility=served.utility,
        baseline_utility=latched.utility,
        alerts_per_100h=served.alerts,
    )
