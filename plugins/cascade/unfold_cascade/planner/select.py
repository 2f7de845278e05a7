"""From the Pareto front to one cascade: the goal, and the certificate that the cascade meets it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.data.error_costs import EQUAL_COSTS, ErrorCosts
from unfold_cascade.planner import certificate
from unfold_cascade.planner.compose import PolicyFront
from unfold_cascade.planner.guarantees import Guarantee, Relaxation, certify_points, find_relaxations
from unfold_cascade.planner.policy import Policy, follow
from unfold_cascade.planner.problem import Goal
from unfold_cascade.planner.score_tables import ScoreTables, find_best_candidate
from unfoldkit.api import did_you_mean, user_error

MAX_POINTS = 64
WAGER_MARGIN = 0.01
LABEL_LOSS_KEY = "goal.max_loss_of"
NO_CHEAPER = "no cascade is cheaper"
BASELINE_IS_BETTER = "the baseline is within the budget and more accurate"
OVER_BUDGET = "every cascade exceeds the budget"


@dataclass(frozen=True, slots=True)
class Baseline:
    """The baseline model: the candidate of least loss on the training rows, and its (n,) answers."""

    index: int
    name: str
    answer: IntArray
    cost: float
    latency_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The selected point of the front and its certificate.

    Attributes:
        point: index into the front; ``None`` if only the baseline meets the goal.
        certified_loss: the loss that is certified with ``confidence``.
        confidence: 1 - delta.
        units: independent draws (cases, or clusters of them) of the certificate.
        min_certifiable_loss: the smallest loss that some point could be certified for.
        method: the test, or ``none``.
        has_rejections: whether a cheaper point was tested and rejected.
        reason: why no cascade was selected, other than for the lack of a certificate.
        relaxations: minimal losses, any one of which would have to be allowed.
    """

    point: int | None
    certified_loss: float
    confidence: float
    units: int
    min_certifiable_loss: float
    method: str
    has_rejections: bool = False
    reason: str = ""
    relaxations: tuple[Relaxation, ...] = ()


def select_baseline(tables: ScoreTables, labels: IntArray, rows: IntArray) -> Baseline:
    """Select the candidate of least loss on ``rows``, out of fold if it was fitted on them; of ties the cheapest."""
    table = tables.candidates
    best = find_best_candidate(table, tables.shared_prices, tables.error_costs, labels, rows)
    cost = float(table.price[best]) + tables.sum_prices(table.feature_groups[best])
    return Baseline(best, table.models[best], table.answer[:, best], cost, float(table.latency_us[best]))


def shortlist_points(front: PolicyFront, limit: int = MAX_POINTS) -> PolicyFront:
    """Thin a front to at most ``limit`` points, evenly by loss, with both ends."""
    if len(front.policies) <= limit:
        return front
    targets = np.linspace(front.loss[0], front.loss[-1], limit)
    return front.take(np.unique([int(np.abs(front.loss - loss).argmin()) for loss in targets]))


def select_cascade(
    tables: ScoreTables,
    front: PolicyFront,
    baseline: Baseline,
    labels: IntArray,
    tune: IntArray,
    certify: IntArray,
    goal: Goal,
    names: Sequence[str] = (),
) -> Selection:
    """Select a point of ``front``: certified within ``goal.max_loss``, or the most accurate within ``goal.budget``.

    If the baseline is within the budget and more accurate than any such cascade, no cascade is selected. The
    certificate is fixed-sequence testing (Angelopoulos et al. 2021, Learn then Test) on ``certify``, rows that took no
    part in the search. The order of the points and the test of each depend on ``tune`` only.

    Args:
        tables: the score tables of all n rows.
        front: the cascades.
        baseline: the baseline model.
        labels: (n,) true labels.
        tune: the rows that the front was searched on.
        certify: rows of the certificate.
        goal: the loss or the budget.
        names: (C,) labels, for ``goal.max_loss_of``.
    """
    if goal.budget is not None:
        return _select_within_budget(tables, front, baseline, labels, tune, certify, goal, goal.budget)
    points = np.flatnonzero(front.cost < baseline.cost)
    if not len(points):
        return _select_none(goal, count_units(tables, certify), NO_CHEAPER)
    guarantees = list(_list_guarantees(tables, front, points, baseline, labels, (tune, certify), goal, names))
    return _select_within_loss(points, front.cost[points], guarantees, goal)


def number_of_label(label: str, names: Sequence[str]) -> int:
    """Look up the number of a label of ``goal.max_loss_of``.

    Raises:
        UnfoldError: the data have no such label.
    """
    if label not in names:
        raise user_error(f'the data have no label "{label}"', key=LABEL_LOSS_KEY, hint=did_you_mean(label, names))
    return list(names).index(label)


def paired_differences(
    tables: ScoreTables,
    front: PolicyFront,
    points: IntArray,
    baseline: Baseline,
    labels: IntArray,
    rows: IntArray,
    error_costs: ErrorCosts | None = None,
) -> FloatArray:
    """Compute the (m, n) losses of points minus that of the baseline, as shares of the most expensive error.

    With clusters there is one column per cluster, the mean of its rows. ``error_costs`` replace those of the tables.
    """
    costs = tables.error_costs if error_costs is None else error_costs
    policies = (front.policies[point] for point in points)
    return np.array([_policy_differences(tables, policy, baseline, labels, rows, costs) for policy in policies])


def count_units(tables: ScoreTables, rows: IntArray) -> int:
    """Count the independent draws among some rows: cases, or clusters of them."""
    return len(rows) if tables.clusters is None else len(np.unique(tables.clusters[rows]))


def _select_within_loss(points: IntArray, cost: FloatArray, guarantees: Sequence[Guarantee], goal: Goal) -> Selection:
    """Select among (m,) points with their costs."""
    delta, max_loss = 1 - goal.confidence, goal.max_loss or 0.0
    certified = certify_points(cost, guarantees, delta)
    if not certified:
        relaxations = find_relaxations(cost, guarantees, delta)
        return Selection(
            point=None,
            certified_loss=0.0,
            confidence=goal.confidence,
            units=guarantees[0].units,
            min_certifiable_loss=dict(relaxations[0]).get("", max_loss),
            method="none",
            has_rejections=True,
            relaxations=relaxations,
        )
    # all certified points hold together, so the cheapest of them may be selected
    best, rule = min(certified, key=lambda point: cost[point[0]])
    return Selection(
        point=int(points[best]),
        certified_loss=max_loss,
        confidence=goal.confidence,
        units=guarantees[0].units,
        min_certifiable_loss=max_loss,
        method=rule.method,
        has_rejections=len(certified) < len(points),
    )


def _list_guarantees(
    tables: ScoreTables,
    front: PolicyFront,
    points: IntArray,
    baseline: Baseline,
    labels: IntArray,
    parts: tuple[IntArray, IntArray],
    goal: Goal,
    names: Sequence[str],
) -> Iterator[Guarantee]:
    """Yield the guarantees of a goal: over all cases, and over the cases of some labels. ``parts``: tune, certify."""
    tune, certify = (paired_differences(tables, front, points, baseline, labels, rows) for rows in parts)
    yield Guarantee("", goal.max_loss or 0.0, tune, certify, tables.error_costs.maximum)
    for label, allowed in goal.max_loss_of.items():
        number = number_of_label(label, names)
        label_rows = [rows[labels[rows] == number] for rows in parts]
        if not all(map(len, label_rows)):
            raise user_error(f'no case of the label "{label}" to tune or to certify on', key=LABEL_LOSS_KEY)
        tune, certify = (
            paired_differences(tables, front, points, baseline, labels, rows, EQUAL_COSTS) for rows in label_rows
        )
        yield Guarantee(label, allowed, tune, certify)


def _select_within_budget(
    tables: ScoreTables,
    front: PolicyFront,
    baseline: Baseline,
    labels: IntArray,
    tune: IntArray,
    certify: IntArray,
    goal: Goal,
    budget: float,
) -> Selection:
    costs = tables.error_costs
    affordable = np.flatnonzero(front.cost <= budget)
    point = int(affordable[-1]) if len(affordable) else None
    baseline_loss = float(costs.losses(baseline.answer[tune], labels[tune]).mean())
    units = count_units(tables, certify)
    if baseline.cost <= budget and (point is None or baseline_loss < front.loss[point]):
        return _select_none(goal, units, BASELINE_IS_BETTER)
    if point is None:
        return _select_none(goal, units, OVER_BUDGET)
    tuning = _policy_differences(tables, front.policies[point], baseline, labels, tune, costs)
    # a wager against a loss close to the observed one gains nothing
    rule = certificate.choose_rule(tuning, max(float(tuning.mean()), 0.0) + WAGER_MARGIN, units)
    differences = _policy_differences(tables, front.policies[point], baseline, labels, certify, costs)
    bound = certificate.upper_bound(differences, goal.confidence, rule) * costs.maximum
    return Selection(
        point=point,
        certified_loss=bound,
        confidence=goal.confidence,
        units=len(differences),
        min_certifiable_loss=bound,
        method=rule.method,
    )


def _select_none(goal: Goal, units: int, reason: str) -> Selection:
    return Selection(
        point=None,
        certified_loss=0.0,
        confidence=goal.confidence,
        units=units,
        min_certifiable_loss=1.0,
        method="none",
        reason=reason,
    )


def _policy_differences(
    tables: ScoreTables, policy: Policy, baseline: Baseline, labels: IntArray, rows: IntArray, costs: ErrorCosts
) -> FloatArray:
    cascade = costs.losses(follow(tables, policy, rows).answer, labels[rows])
    reference = costs.losses(baseline.answer[rows], labels[rows])
    differences: FloatArray = (cascade - reference) / costs.maximum
    return differences if tables.clusters is None else certificate.per_cluster(differences, tables.clusters[rows])
