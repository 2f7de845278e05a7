"""Select one cascade of the front: the cheapest with a certified loss, or the most accurate within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.planner import certificate
from unfold_cascade.planner.certificate import Rule
from unfold_cascade.planner.guarantees import Guarantee, compute_cost_tests, measure_evidence, order_tests
from unfold_cascade.planner.saving import (
    BUDGET,
    SAVING,
    CostSample,
    bound_saving,
    cost_guarantee,
    is_saving_refuted,
    saving_guarantee,
)
from unfold_cascade.planner.select import BUDGET_UNCERTAIN, NO_CHEAPER, REFUTED, SAVING_UNCERTAIN
from unfold_cascade.temporal.evaluation.evaluate import Outcome
from unfold_cascade.temporal.models.study import Cohort, Study
from unfold_cascade.temporal.search.compose import FrontPoint
from unfold_cascade.temporal.search.outcome_guarantees import CohortConduct, Conduct, build_outcome_guarantees
from unfold_cascade.temporal.simulation.cost import CostMeasure, follow_longest_path
from unfold_cascade.temporal.simulation.policy import build_policy_arrays
from unfold_cascade.temporal.simulation.trajectories import Int8, Trajectories, simulate
from unfoldkit.api import format_amount, user_error


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A selected cascade and its certificate.

    Attributes:
        point: The cascade.
        is_certified: Whether the certificate for the target holds.
        certified_loss: The loss of the average patient that the cascade is certified for.
        cases: Number of patients in the certificate.
        method: Name of the statistical test.
        refused_outcomes: Outcomes of the goal that the patients do not certify for this cascade.
        reason: Why none is certified where the loss is not the reason: the saving, or the budget.
        tuning_costs: Costs of a certified cascade on the tuning patients.
        saving_bound: Lower confidence bound of its saving on the test patients.
    """

    point: FrontPoint
    is_certified: bool
    certified_loss: float
    cases: int
    method: str
    refused_outcomes: tuple[str, ...] = ()
    reason: str = ""
    tuning_costs: CostSample | None = None
    saving_bound: float | None = None


@dataclass(frozen=True, slots=True)
class BaselineOutcomes:
    """What a baseline does on the tuning and on the certifying cohort."""

    train: Outcome
    calibrate: Outcome


@dataclass(frozen=True, slots=True)
class TestSequence:
    """Fixed-sequence testing: points in test order, the test of each, and the position of the last that passed."""

    order: list[int]
    rules: list[Rule]
    last_certified: int | None


@dataclass(frozen=True, slots=True)
class CohortTrial:
    """What the baseline and m cascades do on one cohort, and what that costs by patient."""

    conduct: CohortConduct
    costs: tuple[CostSample, ...]

    def loss_differences(self) -> FloatArray:
        """Compute (m, P) how much more each cascade loses than the baseline, by patient."""
        cohort, base = self.conduct.cohort, self.conduct.baseline.stage
        return np.array(
            [average_by_patient(each.stage, base, cohort.highest, cohort.cluster) for each in self.conduct.cascades]
        )


def select_cascade(
    study: Study, points: tuple[FrontPoint, ...], baseline: BaselineOutcomes, measure: CostMeasure
) -> Selection:
    """Select the cheapest cascade certified within ``max_loss``, or the most accurate certified within ``budget``.

    The certificate is fixed-sequence testing (Learn then Test, Angelopoulos et al. 2021) on the certifying cohort,
    which took no part in the search. The order of the points and the test of each come from the tuning cohort. Each
    patient counts once: in a loss by the mean over its hours, in a saving or a budget by the sum of its costs. If
    nothing can be certified, ``is_certified`` is false. The result is then the cascade with the strongest evidence in
    tuning and the loss that it is certified for.

    Raises:
        UnfoldError: No cascade is within the budget.
    """
    goal = study.problem.goal
    if goal.budget is not None:
        return _select_within_budget(study, points, baseline, measure, goal.budget)
    epsilon, delta = goal.max_loss or 0.0, 1 - goal.confidence
    baseline_loss = float((baseline.train.stage != study.train.highest).mean())
    within = [point for point in points if point.loss <= baseline_loss + epsilon] or [
        min(points, key=lambda point: point.loss)
    ]
    tune, fresh = _try_points(study, within, baseline, measure)
    guarantees = build_outcome_guarantees(goal.outcomes, tune.conduct, fresh.conduct)
    if goal.min_saving is not None:
        guarantees.append(saving_guarantee(goal.min_saving, list(zip(tune.costs, fresh.costs, strict=True))))
    tuning, certifying = tune.loss_differences(), fresh.loss_differences()
    cost, others = np.array([point.cost for point in within]), compute_cost_tests(guarantees, len(within), delta)
    tests = certify_sequence(cost, tuning, certifying, epsilon, delta, guarantees)
    if tests.last_certified is not None:
        best = tests.order[tests.last_certified]
        return Selection(
            point=within[best],
            is_certified=True,
            certified_loss=epsilon,
            cases=certifying.shape[1],
            method=tests.rules[tests.last_certified].method,
            tuning_costs=tune.costs[best],
        )
    nearest = _find_nearest(tuning, epsilon, others.tune, delta, tests.order[0])
    refused = [each for each in guarantees if compute_cost_tests([each], len(within), delta).certify[nearest] > delta]
    bound = _bound_loss(study, within[nearest], tuning[nearest], certifying[nearest], is_certified=False)
    return replace(
        bound,
        refused_outcomes=tuple(each.label for each in refused if each.label != SAVING),
        reason=_refuse_saving(tune, goal.min_saving, is_uncertain=any(each.label == SAVING for each in refused)),
    )


def _find_nearest(tuning: FloatArray, epsilon: float, others: FloatArray, delta: float, first: int) -> int:
    """Find the point of strongest evidence for the loss among those that meet all other guarantees in tuning."""
    evidence = measure_evidence(tuning, epsilon, tuning.shape[1])
    met = np.flatnonzero(others <= delta)
    return int(met[np.argmax(evidence[met])]) if len(met) else first


def _refuse_saving(tune: CohortTrial, min_saving: float | None, *, is_uncertain: bool) -> str:
    """State why no saving is certified; empty if the saving is not what refuses the cascades."""
    if min_saving is None or not is_uncertain:
        return ""
    if all(float(each.excess(min_saving).sum()) > 0.0 for each in tune.costs):
        return NO_CHEAPER
    return SAVING_UNCERTAIN


def _try_points(
    study: Study, points: Sequence[FrontPoint], baseline: BaselineOutcomes, measure: CostMeasure
) -> tuple[CohortTrial, CohortTrial]:
    """Run points on the tuning and on the certifying cohort."""
    tune, fresh = (
        try_on_cohort(study, cohort, points, outcome, measure)
        for cohort, outcome in ((study.train, baseline.train), (study.calibrate, baseline.calibrate))
    )
    return tune, fresh


def try_on_cohort(
    study: Study, cohort: Cohort, points: Sequence[FrontPoint], baseline: Outcome, measure: CostMeasure
) -> CohortTrial:
    """Run points on one cohort, on which the baseline did what ``baseline`` states."""
    transitions, cascades, costs = study.problem.transitions, [], []
    sum_costs = partial(_sum_by_cluster, cohort, measure)
    longest: dict[tuple[tuple[int, ...], ...], FloatArray] = {}
    for point in points:
        arrays = build_policy_arrays(point.policy, study.parallel)
        trajectories = simulate(cohort.timeline, cohort.scores, arrays, transitions)
        cascades.append(Conduct(trajectories.stage, trajectories.stage == len(point.policy)))
        chains = tuple(stage.chain for stage in point.policy)
        if chains not in longest:
            path = follow_longest_path(cohort.timeline, cohort.scores, transitions, point.policy)
            longest[chains] = sum_costs(path)
        cost, base_cost = sum_costs(trajectories), sum_costs(baseline.trajectories)
        costs.append(CostSample(cascade=cost, baseline=base_cost, longest=longest[chains]))
    return CohortTrial(CohortConduct(cohort, Conduct(baseline.stage, baseline.alert), cascades), tuple(costs))


def _sum_by_cluster(cohort: Cohort, measure: CostMeasure, trajectories: Trajectories) -> FloatArray:
    """Sum the costs of each independent unit over its hours."""
    return cohort.timeline.sum_by_cluster(measure.sum_by_patient(cohort.scores, trajectories))


def count_hours(cohort: Cohort) -> FloatArray:
    """Count the hours of each independent unit."""
    return cohort.timeline.sum_by_cluster(np.diff(cohort.timeline.starts).astype(np.float64))


def certify_sequence(
    cost: FloatArray,
    tuning: FloatArray,
    certifying: FloatArray,
    epsilon: float,
    delta: float,
    others: Sequence[Guarantee] = (),
) -> TestSequence:
    """Certify points one after the other until the first fails.

    With probability 1 - ``delta`` the last point that passed loses at most ``epsilon``, because the order and the
    tests depend on ``tuning`` alone.

    Args:
        cost: (m,) costs of the points.
        tuning: (m, P) loss differences of the tuning patients.
        certifying: (m, Q) loss differences of the certifying patients.
        epsilon: Loss allowed.
        delta: Chance of a false certificate.
        others: Further guarantees, which must hold as well (intersection-union test, Berger 1982).
    """
    units, tests = certifying.shape[1], compute_cost_tests(others, len(cost), delta)
    order = order_tests(cost, np.minimum(measure_evidence(tuning, epsilon, units), tests.evidence))
    rules = [certificate.choose_rule(tuning[point], epsilon, units, delta) for point in order]
    p_values = (
        max(certificate.p_value(certifying[point], epsilon, rule), float(tests.certify[point]))
        for point, rule in zip(order, rules, strict=True)
    )
    passed = certificate.count_leading_passes(p_values, delta)
    return TestSequence(order, rules, passed - 1 if passed else None)


def _bound_loss(
    study: Study, point: FrontPoint, tuning: FloatArray, certifying: FloatArray, *, is_certified: bool
) -> Selection:
    rule = _build_bound_rule(tuning, len(certifying))
    bound = certificate.upper_bound(certifying, study.problem.goal.confidence, rule)
    return Selection(
        point=point, is_certified=is_certified, certified_loss=bound, cases=len(certifying), method=rule.method
    )


def _build_bound_rule(tuning: FloatArray, cases: int) -> Rule:
    """Build the betting test with the tightest expected bound: its wager is best slightly above the tuning mean."""
    standard_error = float(tuning.std()) / np.sqrt(cases)
    epsilon = min(max(float(tuning.mean()) + 2 * standard_error, 0.0) + 1e-6, 0.99)
    return Rule("betting", certificate.best_wager(tuning, epsilon))


def retest_selection(
    study: Study, selection: Selection, cascade: Outcome, baseline: Outcome, measure: CostMeasure
) -> Selection:
    """Test a certified cascade once more on the test cohort, and bound its saving there.

    If these patients show, with the confidence of the goal, that its loss, saving or budget is broken, such as after a
    change over time, it is not certified.

    Args:
        study: The study.
        selection: The selection.
        cascade: What the cascade does on the test cohort.
        baseline: What the baseline does there.
        measure: What costs are compared by.
    """
    if not selection.is_certified or selection.tuning_costs is None:
        return selection
    goal, test = study.problem.goal, study.test
    delta = 1 - goal.confidence
    difference = average_by_patient(cascade.stage, baseline.stage, test.highest, test.cluster)
    costs, base_costs = (_sum_by_cluster(test, measure, each.trajectories) for each in (cascade, baseline))
    sample = CostSample(costs, base_costs, costs)
    is_refuted = goal.max_loss is not None and certificate.mixture_p_value(-difference, -goal.max_loss) <= delta
    if goal.min_saving is not None:
        is_refuted |= is_saving_refuted(sample, goal.min_saving, delta)
    if goal.budget is not None:
        is_refuted |= is_saving_refuted(sample.over(goal.budget * count_hours(test)), 1.0, delta)
    if is_refuted:
        return replace(selection, is_certified=False, reason=REFUTED)
    return replace(selection, saving_bound=bound_saving(selection.tuning_costs, sample, goal.confidence))


def _select_within_budget(
    study: Study, points: tuple[FrontPoint, ...], baseline: BaselineOutcomes, measure: CostMeasure, budget: float
) -> Selection:
    by, goal = study.problem.cost.by, study.problem.goal
    affordable = [point for point in points if _hourly_cost(point, by) <= budget]
    if not affordable:
        minimum = min(_hourly_cost(point, by) for point in points)
        hint = f"goal: {{budget: {np.ceil(minimum * 100) / 100:g} per case-hour}}"
        message = f"no cascade costs so little; the cheapest needs {format_amount(minimum)} per case-hour"
        raise user_error(message, key="goal.budget", hint=hint)
    affordable.sort(key=lambda point: -point.loss)
    tune, fresh = _try_points(study, affordable, baseline, measure)
    bounded = [
        tuple(sample.over(budget * count_hours(trial.conduct.cohort)) for sample in trial.costs)
        for trial in (tune, fresh)
    ]
    guarantees = [cost_guarantee(BUDGET, list(zip(*bounded, strict=True)), 1.0)]
    if goal.min_saving is not None:
        guarantees.append(saving_guarantee(goal.min_saving, list(zip(tune.costs, fresh.costs, strict=True))))
    delta = 1 - goal.confidence
    tests = compute_cost_tests(guarantees, len(affordable), delta)
    candidates = _list_budget_candidates(tests.tune)
    passed = certificate.count_leading_passes((float(tests.certify[each]) for each in candidates), delta)
    best = candidates[max(passed - 1, 0)]
    tuning, certifying = (trial.loss_differences()[best] for trial in (tune, fresh))
    bound = _bound_loss(study, affordable[best], tuning, certifying, is_certified=passed > 0)
    return replace(bound, tuning_costs=tune.costs[best], reason="" if passed else BUDGET_UNCERTAIN)


def _list_budget_candidates(tuning: FloatArray) -> list[int]:
    """List points to test for a budget, from strong evidence to weak, each more accurate than the one before.

    Args:
        tuning: (m,) p-values on the tuning cohort, of points by descending loss.
    """
    order = np.lexsort((np.arange(len(tuning)), tuning))
    latest = np.maximum.accumulate(order)
    is_better = np.concatenate(([True], order[1:] > latest[:-1]))
    return [int(point) for point in order[is_better]]


def _hourly_cost(point: FrontPoint, by: str) -> float:
    return point.cost if "+" in by else point.bill[by]


def average_by_patient(
    stage: IntArray | Int8, baseline_stage: IntArray | Int8, truth: IntArray, entity: IntArray
) -> FloatArray:
    """Average (P,) the differences of two losses over the hours of each patient, in [-1, 1]."""
    difference = (stage != truth).astype(np.float64) - (baseline_stage != truth)
    return certificate.per_cluster(difference, entity)
