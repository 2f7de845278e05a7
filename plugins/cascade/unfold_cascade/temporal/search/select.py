"""Select one cascade of the front: the cheapest with a certified loss, or the most accurate within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_cascade._types import BoolArray, FloatArray, IntArray
from unfold_cascade.planner import certificate
from unfold_cascade.planner.certificate import Rule
from unfold_cascade.planner.guarantees import Guarantee, compute_cost_tests
from unfold_cascade.temporal.models.study import Cohort, Study
from unfold_cascade.temporal.search.compose import FrontPoint
from unfold_cascade.temporal.search.outcomes import CohortConduct, Conduct, build_outcome_guarantees
from unfold_cascade.temporal.simulation.policy import Policy, build_policy_arrays
from unfold_cascade.temporal.simulation.trajectories import simulate
from unfoldkit.api import user_error

PLAUSIBLE = 0.5
"""Largest p-value of the outcomes on tuning patients at which a cascade is still tested."""


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
    """

    point: FrontPoint
    is_certified: bool
    certified_loss: float
    cases: int
    method: str
    refused_outcomes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BaselineStages:
    """A baseline's (n,) stages and (n,) alerts on the tuning and the certifying cohort."""

    train: IntArray
    calibrate: IntArray
    train_alert: BoolArray
    calibrate_alert: BoolArray


@dataclass(frozen=True, slots=True)
class TestSequence:
    """Fixed-sequence testing: points in test order, the test of each, and the position of the last that passed."""

    order: list[int]
    rules: list[Rule]
    last_certified: int | None


def select_cascade(study: Study, points: tuple[FrontPoint, ...], baseline: BaselineStages) -> Selection:
    """Select the cheapest cascade certified within ``max_loss``, or the most accurate within ``budget``.

    The certificate is fixed-sequence testing (Learn then Test, Angelopoulos et al. 2021) on the certifying cohort,
    which took no part in the search. The order of the points and the test of each come from the tuning cohort. Each
    patient counts once, by the mean over its hours. If nothing can be certified, ``is_certified`` is false. The
    result is then the cascade with the strongest evidence in tuning and the loss that it is certified for.

    Raises:
        UnfoldError: No cascade is within the budget.
    """
    target = study.problem.goal
    if target.budget is not None:
        return _select_within_budget(study, points, baseline, target.budget)
    epsilon = target.max_loss or 0.0
    baseline_loss = float((baseline.train != study.train.highest).mean())
    within = [point for point in points if point.loss <= baseline_loss + epsilon] or [
        min(points, key=lambda point: point.loss)
    ]
    delta = 1 - target.confidence
    outcomes = _build_outcomes(study, within, baseline)
    if outcomes:
        plausible = compute_cost_tests(outcomes, len(within)).tune
        kept = np.flatnonzero(plausible <= max(PLAUSIBLE, float(plausible.min())))
        within = [within[index] for index in kept]
        outcomes = [replace(each, tune=each.tune[kept], certify=each.certify[kept]) for each in outcomes]
    tuning = np.array([compare_on_cohort(study, study.train, point.policy, baseline.train) for point in within])
    certifying = np.array(
        [compare_on_cohort(study, study.calibrate, point.policy, baseline.calibrate) for point in within]
    )
    cost = np.array([point.cost for point in within])
    others = compute_cost_tests(outcomes, len(within)).certify
    tests = certify_sequence(cost, tuning, certifying, epsilon, delta, others)
    if tests.last_certified is not None:
        return Selection(
            point=within[tests.order[tests.last_certified]],
            is_certified=True,
            certified_loss=epsilon,
            cases=certifying.shape[1],
            method=tests.rules[tests.last_certified].method,
        )
    strongest = tests.order[0]
    refused = [each.label for each in outcomes if compute_cost_tests([each], len(within)).certify[strongest] > delta]
    bound = _bound_loss(study, within[strongest], tuning[strongest], certifying[strongest], is_certified=False)
    return replace(bound, refused_outcomes=tuple(refused))


def _build_outcomes(study: Study, points: Sequence[FrontPoint], baseline: BaselineStages) -> list[Guarantee]:
    """Build the guarantees on outcomes over some points; none without outcomes in the goal."""
    goals = study.problem.goal.outcomes
    if not goals:
        return []
    parts = (
        (study.train, Conduct(baseline.train, baseline.train_alert)),
        (study.calibrate, Conduct(baseline.calibrate, baseline.calibrate_alert)),
    )
    tune, fresh = (
        CohortConduct(cohort, conduct, [_follow(study, cohort, point.policy) for point in points])
        for cohort, conduct in parts
    )
    return build_outcome_guarantees(goals, tune, fresh)


def _follow(study: Study, cohort: Cohort, policy: Policy) -> Conduct:
    arrays = build_policy_arrays(policy, study.parallel)
    stage = simulate(cohort.timeline, cohort.scores, arrays, study.problem.transitions).stage.astype(np.int64)
    return Conduct(stage, stage == len(policy))


def certify_sequence(
    cost: FloatArray,
    tuning: FloatArray,
    certifying: FloatArray,
    epsilon: float,
    delta: float,
    others: FloatArray | None = None,
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
        others: (m,) largest p-values of further guarantees on the certifying patients, which must hold as well
            (intersection-union test, Berger 1982).
    """
    order = order_tests(cost, tuning, epsilon)
    rules = [certificate.choose_rule(tuning[point], epsilon, certifying.shape[1]) for point in order]
    p_values = (
        max(certificate.p_value(certifying[point], epsilon, rule), 0.0 if others is None else float(others[point]))
        for point, rule in zip(order, rules, strict=True)
    )
    passed = certificate.count_leading_passes(p_values, delta)
    return TestSequence(order, rules, passed - 1 if passed else None)


def order_tests(cost: FloatArray, tuning: FloatArray, epsilon: float) -> list[int]:
    """Order the points by falling evidence on the tuning cohort, each cheaper than the one before.

    A point that costs more than one with stronger evidence is left out: it could only end the sequence early.

    Args:
        cost: (m,) costs of the points.
        tuning: (m, P) loss differences of the tuning patients.
        epsilon: Loss allowed.
    """
    evidence = (epsilon - tuning.mean(axis=1)) / np.maximum(tuning.std(axis=1), 1e-9)
    order = np.lexsort((cost, -evidence))
    lowest = np.minimum.accumulate(cost[order])
    is_cheaper = np.concatenate(([True], cost[order][1:] < lowest[:-1]))
    return [int(point) for point in order[is_cheaper]]


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


def _select_within_budget(
    study: Study, points: tuple[FrontPoint, ...], baseline: BaselineStages, budget: float
) -> Selection:
    by = study.problem.cost.by
    affordable = [point for point in points if _hourly_cost(point, by) <= budget]
    if not affordable:
        minimum = min(_hourly_cost(point, by) for point in points)
        hint = f"goal: {{budget: {np.ceil(minimum * 100) / 100:g} per case-hour}}"
        message = f"no cascade costs so little; the cheapest needs {minimum:.4g} per case-hour"
        raise user_error(message, key="goal.budget", hint=hint)
    point = min(affordable, key=lambda candidate: candidate.loss)
    tuning = compare_on_cohort(study, study.train, point.policy, baseline.train)
    certifying = compare_on_cohort(study, study.calibrate, point.policy, baseline.calibrate)
    return _bound_loss(study, point, tuning, certifying, is_certified=True)


def _hourly_cost(point: FrontPoint, by: str) -> float:
    return point.cost if "+" in by else point.bill[by]


def compare_on_cohort(study: Study, cohort: Cohort, policy: Policy, baseline_stage: IntArray) -> FloatArray:
    """Compute (P,) how much more a policy loses than a baseline with (n,) stages, by patient of a cohort."""
    arrays = build_policy_arrays(policy, study.parallel)
    trajectories = simulate(cohort.timeline, cohort.scores, arrays, study.problem.transitions)
    return average_by_patient(trajectories.stage.astype(np.int64), baseline_stage, cohort.highest, cohort.entity)


def average_by_patient(stage: IntArray, baseline_stage: IntArray, truth: IntArray, entity: IntArray) -> FloatArray:
    """Average (P,) the differences of two losses over the hours of each patient, in [-1, 1]."""
    difference = (stage != truth).astype(np.float64) - (baseline_stage != truth)
    return certificate.per_cluster(difference, entity)
