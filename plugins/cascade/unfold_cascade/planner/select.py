"""From the Pareto front to one cascade: the goal, and the certificate that the cascade meets it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_cascade._types import FloatArray, IntArray
from unfold_cascade.data.case_order import are_sorted, average_in_order, find_late_break
from unfold_cascade.data.error_costs import EQUAL_COSTS, ErrorCosts
from unfold_cascade.gates.pareto import find_pareto_points
from unfold_cascade.planner import certificate
from unfold_cascade.planner.gate_scores import GateScorer, assign_folds
from unfold_cascade.planner.guarantees import (
    Guarantee,
    Relaxation,
    certify_points,
    compute_cost_tests,
    find_relaxations,
)
from unfold_cascade.planner.policy import Outcome, Policy, follow
from unfold_cascade.planner.policy_search import PolicyFront
from unfold_cascade.planner.problem import Goal
from unfold_cascade.planner.saving import (
    BUDGET,
    SAVING,
    CostSample,
    average_by_unit,
    bound_saving,
    budget_guarantee,
    is_saving_refuted,
    longest_path_costs,
    saving_guarantee,
)
from unfold_cascade.planner.score_tables import ScoreTables, find_best_candidate
from unfoldkit.api import did_you_mean, user_error

MAX_POINTS, MAX_CAUTIOUS_POINTS = 64, 32
WAGER_MARGIN = 0.01
LABEL_LOSS_KEY = "goal.max_loss_of"
NO_CHEAPER = "no cascade is cheaper"
SAVING_UNCERTAIN = "the cases do not certify the saving"
BASELINE_IS_BETTER = "the baseline is within the budget and more accurate"
NO_ADVANTAGE = "the cases certify neither a saving nor a gain in accuracy"
OVER_BUDGET = "every cascade exceeds the budget"
BUDGET_UNCERTAIN = "the cases certify no cascade within the budget"
LEAKED = "a column predicts the label on its own"
LOSS_DRIFTED = "its loss grows along the table: the last rows lose more than is allowed"
OUTCOME_DRIFTED = "an outcome of its goal grows worse along the table: the last rows break what is promised"
COST_DRIFTED = "its cost grows along the table: the last rows cost more than is allowed"
REFUTED = "the cases held back for evaluation contradict it"
BUDGET_MARGINS = (12.0, 6.0, 3.0, 1.5)
"""Standard errors between the tuned cost of a candidate and the budget, from safe to bold."""
ADVANTAGE_SAVING = 1.05
"""The saving that counts as an advantage over a baseline that is within the budget."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """The baseline model: the candidate of least loss on the training rows, and its (n,) answers."""

    index: int
    name: str
    answer: IntArray
    cost: float
    latency_us: float

    def costs(self, tables: ScoreTables, rows: IntArray) -> FloatArray:
        """Return the (n,) costs of some rows."""
        prices = tables.candidates.call_prices
        return np.full(len(rows), self.cost) if prices is None else prices[rows, self.index]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The selected point of the front and its certificate.

    Attributes:
        point: Index into the front; ``None`` if only the baseline meets the goal.
        certified_loss: The loss that is certified with ``confidence``.
        confidence: 1 - delta.
        units: Independent draws (cases, or clusters of them) of the certificate.
        min_certifiable_loss: The smallest loss that some point could be certified for.
        method: The test, or ``none``.
        has_rejections: Whether a cheaper point was tested and rejected.
        reason: Why no cascade was selected, other than for the lack of a certificate.
        relaxations: Minimal losses, any one of which would have to be allowed.
        saving_bound: A lower bound of the saving on the test rows, which nothing before has read.
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
    saving_bound: float | None = None


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


@dataclass(frozen=True, slots=True)
class PricedPolicies:
    """Cascades with their loss and cost as served, and the (n,) ``held_out`` answers of each to the tuning rows."""

    points: PolicyFront
    held_out: tuple[IntArray, ...]

    def drop_dominated(self) -> PricedPolicies:
        """Return the cascades that no other dominates in loss and cost, by ascending cost."""
        best = find_pareto_points(self.points.loss, self.points.cost)
        return PricedPolicies(self.points.take(best), tuple(self.held_out[point] for point in best))

    def append(self, other: PricedPolicies) -> PricedPolicies:
        """Return these cascades, followed by others."""
        first, second = self.points, other.points
        points = PolicyFront(
            np.concatenate((first.loss, second.loss)),
            np.concatenate((first.cost, second.cost)),
            first.policies + second.policies,
        )
        return PricedPolicies(points, self.held_out + other.held_out)


def price_as_served(tables: ScoreTables, front: PolicyFront, labels: IntArray, rows: IntArray) -> PricedPolicies:
    """Price the cascades of a front as they would be served: with the curves that were fitted on all tuning rows.

    The search scores each row by curves that have not seen it, so a cascade may cost and lose something else in
    service. The curves fit their own rows too well, so its loss is the larger of the two.
    """
    outcomes = [follow(tables, policy, rows) for policy in front.policies]
    answers = [each.answer for each in outcomes]
    held_out = _answer_held_out(tables, front.policies, answers, labels, rows)
    losses = [
        [float(tables.error_costs.losses(each, labels[rows]).mean()) for each in part] for part in (answers, held_out)
    ]
    cost = np.array([float(each.cost.mean()) for each in outcomes])
    return PricedPolicies(PolicyFront(np.max(losses, axis=0), cost, front.policies), tuple(held_out))


def _answer_held_out(
    tables: ScoreTables, policies: Sequence[Policy], served: Sequence[IntArray], labels: IntArray, rows: IntArray
) -> list[IntArray]:
    """Answer tuning rows with scores of curves that have not seen them; other cascades answer as ``served``."""
    loss = tables.error_costs.losses(tables.first_stage.answer[rows], labels[rows][:, None])
    scorer = GateScorer(tables.first_stage, rows, loss, True, assign_folds(rows, tables.clusters))
    return [
        scorer.answer_held_out(policy.first_stage) if policy.first_stage.curves and not policy.second_stage else answer
        for policy, answer in zip(policies, served, strict=True)
    ]


def select_cascade(
    tables: ScoreTables,
    front: PolicyFront,
    baseline: Baseline,
    labels: IntArray,
    tune: IntArray,
    certify: IntArray,
    goal: Goal,
    names: Sequence[str] = (),
    held_out: Sequence[IntArray] | None = None,
) -> Selection:
    """Select a point of ``front``: certified within ``goal.max_loss``, or the most accurate within ``goal.budget``.

    Costs are certified like losses: the saving ``goal.min_saving``, or the budget. If the baseline is within the
    budget and more accurate than any such cascade, no cascade is selected. The certificate is fixed-sequence testing
    (Angelopoulos et al. 2021, Learn then Test) on ``certify``, rows that took no part in the search. The order of
    the points and the test of each depend on ``tune`` only.

    Args:
        tables: The score tables of all n rows.
        front: The cascades, priced as served; for a budget, none dominates another.
        baseline: The baseline model.
        labels: (n,) true labels.
        tune: The rows that the front was searched on.
        certify: Rows of the certificate.
        goal: The loss or the budget, and the saving.
        names: (C,) labels, for ``goal.max_loss_of``.
        held_out: Answers of each cascade to ``tune`` by curves that have not seen them, see ``price_as_served``;
            ``None`` if there are no curves.
    """
    parts = _Parts(tables, baseline, labels, tune, certify)
    if goal.budget is not None:
        return _select_within_budget(parts, front, goal, goal.budget)
    points = np.flatnonzero(front.cost * (goal.min_saving or 1.0) <= baseline.cost)
    points = points[front.cost[points] < baseline.cost]
    if not len(points):
        return select_none(goal, count_units(tables, certify), NO_CHEAPER)
    outcomes = [parts.follow(front.policies[point]) for point in points]
    others = None if held_out is None else [held_out[int(point)] for point in points]
    guarantees = list(_list_guarantees(parts, outcomes, goal, names, held_out=others))
    if goal.min_saving is not None:
        samples = [
            parts.sample_costs(front.policies[point], each) for point, each in zip(points, outcomes, strict=True)
        ]
        guarantees.append(saving_guarantee(goal.min_saving, samples))
    return _select_within_loss(points, front.cost[points], guarantees, goal)


def retest_selection(
    tables: ScoreTables,
    front: PolicyFront,
    selection: Selection,
    baseline: Baseline,
    labels: IntArray,
    tune: IntArray,
    test: IntArray,
    goal: Goal,
    names: Sequence[str] = (),
) -> Selection:
    """Test the selected cascade once more on ``test``, rows that were used neither to fit nor to choose it.

    These rows bound its saving. If they show, with the confidence of the goal, that a promise is broken,
    such as after a change over time, no cascade is selected.
    """
    if selection.point is None:
        return selection
    parts, policy, delta = (
        _Parts(tables, baseline, labels, tune, test),
        front.policies[selection.point],
        1 - goal.confidence,
    )
    outcomes = parts.follow(policy)
    before, fresh = parts.sample_costs(policy, outcomes)
    losses = [] if goal.max_loss is None else list(_list_guarantees(parts, [outcomes], goal, names, is_retest=True))
    is_refuted = any(certificate.mixture_p_value(-each.certify[0], -each.epsilon) <= delta for each in losses)
    if goal.min_saving is not None:
        is_refuted |= is_saving_refuted(fresh, goal.min_saving, delta)
    if goal.budget is not None:
        is_refuted |= is_saving_refuted(fresh.over(goal.budget), 1.0, delta)
    if is_refuted:
        return replace(select_none(goal, selection.units, REFUTED), has_rejections=True)
    return replace(selection, saving_bound=bound_saving(before, fresh, goal.confidence))


def number_of_label(label: str, names: Sequence[str]) -> int:
    """Look up the number of a label of ``goal.max_loss_of``.

    Raises:
        UnfoldError: The data have no such label.
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
) -> FloatArray:
    """Compute the (m, n) losses of points minus that of the baseline, as shares of the most expensive error.

    With clusters there is one column per cluster, the mean of its rows.
    """
    answers = (follow(tables, front.policies[point], rows).answer for point in points)
    return np.array([_differences(tables, answer, baseline, labels, rows, tables.error_costs) for answer in answers])


def count_units(tables: ScoreTables, rows: IntArray) -> int:
    """Count the independent draws among some rows: cases, or clusters of them."""
    return len(rows) if tables.clusters is None else len(np.unique(tables.clusters[rows]))


def refuse_late_break(
    tables: ScoreTables,
    front: PolicyFront,
    selection: Selection,
    baseline: Baseline,
    labels: IntArray,
    rows: IntArray,
    goal: Goal,
    names: Sequence[str] = (),
) -> Selection:
    """Select no cascade if the last rows of the table break a promise that the earlier ones keep.

    Each promise is tested along the table: the loss, that within a label, the saving and the budget. A cascade that was
    tuned on some of the rows may do better there; as they are drawn at random, that is no growth. Tables that are
    sorted by label have no order in time.

    Args:
        tables: The score tables.
        front: The cascades.
        selection: The selected one.
        baseline: The baseline model.
        labels: (n,) true labels, in the order of the table.
        rows: The rows to test on, in the order of time: one random sample of the table or all of it.
        goal: What is promised.
        names: (C,) labels, for ``goal.max_loss_of``.
    """
    if selection.point is None or are_sorted(labels[rows]):
        return selection
    outcome = follow(tables, front.policies[selection.point], rows)
    broken = find_late_break(_list_excesses(tables, outcome, baseline, labels, rows, goal, names))
    if broken is None:
        return selection
    reason = COST_DRIFTED if broken in (SAVING, BUDGET) else LOSS_DRIFTED
    return replace(select_none(goal, selection.units, reason), has_rejections=True)


def _list_excesses(
    tables: ScoreTables,
    outcome: Outcome,
    baseline: Baseline,
    labels: IntArray,
    rows: IntArray,
    goal: Goal,
    names: Sequence[str],
) -> dict[str, FloatArray]:
    """List by promise how much each unit exceeds it, in the order of the table; the mean may not be positive."""
    costs, units, excesses = tables.error_costs, None if tables.clusters is None else tables.clusters[rows], {}
    if goal.max_loss is not None:
        losses = costs.losses(outcome.answer, labels[rows]) - costs.losses(baseline.answer[rows], labels[rows])
        excesses["loss"] = average_in_order(losses - goal.max_loss, units)
        wrong = (outcome.answer != labels[rows]).astype(np.float64) - (baseline.answer[rows] != labels[rows])
        for label, allowed in goal.max_loss_of.items():
            mask = labels[rows] == number_of_label(label, names)
            excesses[f"loss of {label}"] = average_in_order(
                wrong[mask] - allowed, None if units is None else units[mask]
            )
    if goal.min_saving is not None:
        excess = goal.min_saving * outcome.cost - baseline.costs(tables, rows)
        excesses[SAVING] = average_in_order(excess, units)
    if goal.budget is not None:
        excesses[BUDGET] = average_in_order(outcome.cost - goal.budget, units)
    return excesses


@dataclass(frozen=True, slots=True)
class _Parts:
    """The rows that a cascade is tuned on and those that it is tested on, with what is needed to compare it there."""

    tables: ScoreTables
    baseline: Baseline
    labels: IntArray
    tune: IntArray
    fresh: IntArray

    @property
    def both(self) -> tuple[IntArray, IntArray]:
        """Both parts of the rows."""
        return self.tune, self.fresh

    def follow(self, policy: Policy) -> tuple[Outcome, Outcome]:
        """Send both parts through a cascade."""
        return follow(self.tables, policy, self.tune), follow(self.tables, policy, self.fresh)

    def sample_costs(self, policy: Policy, outcomes: tuple[Outcome, Outcome]) -> tuple[CostSample, CostSample]:
        """Pair the costs of a cascade with those of the baseline, on both parts."""
        first, second = (
            CostSample(
                average_by_unit(outcome.cost, self._clusters(rows)),
                average_by_unit(self.baseline.costs(self.tables, rows), self._clusters(rows)),
                average_by_unit(longest_path_costs(self.tables, policy, rows), self._clusters(rows)),
            )
            for outcome, rows in zip(outcomes, self.both, strict=True)
        )
        return first, second

    def compare(self, answers: Sequence[IntArray], rows: IntArray, costs: ErrorCosts) -> FloatArray:
        """Compute the (m, n) loss differences of m cascades with (n,) ``answers`` to ``rows``."""
        return np.array([_differences(self.tables, each, self.baseline, self.labels, rows, costs) for each in answers])

    def _clusters(self, rows: IntArray) -> IntArray | None:
        return None if self.tables.clusters is None else self.tables.clusters[rows]


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
            min_certifiable_loss=dict(relaxations[0]).get("", max_loss) if relaxations else 1.0,
            method="none",
            has_rejections=True,
            reason="" if relaxations else SAVING_UNCERTAIN,
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
        has_rejections=bool(cost[best] > cost.min()),
    )


def _list_guarantees(
    parts: _Parts,
    outcomes: Sequence[tuple[Outcome, Outcome]],
    goal: Goal,
    names: Sequence[str],
    *,
    held_out: Sequence[IntArray] | None = None,
    is_retest: bool = False,
) -> Iterator[Guarantee]:
    """Yield the guarantees of a goal for m cascades: over all cases, and over the cases of some labels.

    ``held_out`` are m other answers to the tuning cases; for each cascade the answers that lose more count.
    """
    answers = [[pair[part].answer for pair in outcomes] for part in (0, 1)]
    answers.append(answers[0] if held_out is None else list(held_out))
    all_rows = (*parts.both, parts.tune)
    costs, labels = parts.tables.error_costs, parts.labels
    tune, fresh, other = (parts.compare(each, rows, costs) for each, rows in zip(answers, all_rows, strict=True))
    yield Guarantee("", goal.max_loss or 0.0, _take_larger_means(tune, other), fresh, costs.maximum)
    for label, allowed in goal.max_loss_of.items():
        number = number_of_label(label, names)
        masks = [labels[rows] == number for rows in all_rows]
        if not all(mask.any() for mask in masks):
            if is_retest:
                continue
            raise user_error(f'no case of the label "{label}" to tune or to certify on', key=LABEL_LOSS_KEY)
        tune, fresh, other = (
            parts.compare([answer[mask] for answer in each], rows[mask], EQUAL_COSTS)
            for each, rows, mask in zip(answers, all_rows, masks, strict=True)
        )
        yield Guarantee(label, allowed, _take_larger_means(tune, other), fresh)


def _take_larger_means(a: FloatArray, b: FloatArray) -> FloatArray:
    """Take each of m rows from the (m, n) array in which its mean is larger."""
    larger: FloatArray = np.where((a.mean(axis=1) >= b.mean(axis=1))[:, None], a, b)
    return larger


def _select_within_budget(parts: _Parts, front: PolicyFront, goal: Goal, budget: float) -> Selection:
    tables, baseline, labels = parts.tables, parts.baseline, parts.labels
    costs, units = tables.error_costs, count_units(tables, parts.fresh)
    baseline_loss = float(costs.losses(baseline.answer[parts.tune], labels[parts.tune]).mean())
    affordable = np.flatnonzero(front.cost <= budget)
    is_baseline_affordable = baseline.cost <= budget
    if is_baseline_affordable and (not len(affordable) or baseline_loss < front.loss[affordable[-1]]):
        return select_none(goal, units, BASELINE_IS_BETTER)
    if not len(affordable):
        return select_none(goal, units, OVER_BUDGET)
    outcomes = {int(point): parts.follow(front.policies[point]) for point in affordable}
    samples = {point: parts.sample_costs(front.policies[point], each) for point, each in outcomes.items()}
    candidates = _list_budget_candidates(samples, budget, units)
    delta = 1 - goal.confidence

    def p_value(point: int) -> float:
        guarantees = [budget_guarantee(budget, [samples[point]])]
        if goal.min_saving is not None:
            guarantees.append(saving_guarantee(goal.min_saving, [samples[point]]))
        largest = float(compute_cost_tests(guarantees, 1, delta).certify[0])
        return (
            max(largest, _advantage_p_value(parts, outcomes[point], samples[point], delta))
            if is_baseline_affordable
            else largest
        )

    passed = certificate.count_leading_passes(map(p_value, candidates), delta)
    if not passed:
        return select_none(goal, units, NO_ADVANTAGE if is_baseline_affordable else BUDGET_UNCERTAIN)
    point = candidates[passed - 1]
    tuning, differences = (
        parts.compare([outcome.answer], rows, costs)[0]
        for outcome, rows in zip(outcomes[point], parts.both, strict=True)
    )
    # a wager against a loss close to the observed one gains nothing
    level = delta / len(candidates)
    rule = certificate.choose_rule(tuning, max(float(tuning.mean()), 0.0) + WAGER_MARGIN, units, level)
    # the candidate was chosen on the same cases, so the bound holds for all of them together
    bound = certificate.upper_bound(differences, 1 - level, rule) * costs.maximum
    return Selection(
        point=point,
        certified_loss=bound,
        confidence=goal.confidence,
        units=len(differences),
        min_certifiable_loss=bound,
        method=rule.method,
        has_rejections=passed < len(candidates),
    )


def _list_budget_candidates(
    samples: Mapping[int, tuple[CostSample, CostSample]], budget: float, units: int
) -> list[int]:
    """List a few points by ascending cost, at several margins below the budget; the last is the most accurate.

    ``samples`` are by ascending cost and descending loss, so the last point within a margin is the most accurate.
    """
    upper = {
        point: [
            float(tune.cascade.mean()) + margin * float(tune.cascade.std()) / math.sqrt(units)
            for margin in BUDGET_MARGINS
        ]
        for point, (tune, _) in samples.items()
    }
    cheapest = next(iter(samples))
    by_margin = [
        max((point for point in samples if upper[point][index] <= budget), default=cheapest)
        for index in range(len(BUDGET_MARGINS))
    ]
    return sorted(set(by_margin))


def _advantage_p_value(
    parts: _Parts, outcomes: tuple[Outcome, Outcome], samples: tuple[CostSample, CostSample], delta: float
) -> float:
    """Compute the p-value that a cascade is neither more accurate nor cheaper than a baseline within the budget.

    ``delta`` is the p-value that is to be reached.
    """
    tables = parts.tables
    answers = [[outcome.answer] for outcome in outcomes]
    tune, fresh = (
        parts.compare(each, rows, tables.error_costs) for each, rows in zip(answers, parts.both, strict=True)
    )
    gain = Guarantee("", 0.0, tune, fresh, is_cost=True)
    single = [gain, saving_guarantee(ADVANTAGE_SAVING, [samples])]
    # twice the smaller one: either advantage is enough (Bonferroni)
    return 2.0 * min(float(compute_cost_tests([each], 1, delta / 2.0).certify[0]) for each in single)


def select_none(goal: Goal, units: int, reason: str) -> Selection:
    """Select no cascade, for a reason other than the lack of a certificate."""
    return Selection(
        point=None,
        certified_loss=0.0,
        confidence=goal.confidence,
        units=units,
        min_certifiable_loss=1.0,
        method="none",
        reason=reason,
    )


def _differences(
    tables: ScoreTables, answer: IntArray, baseline: Baseline, labels: IntArray, rows: IntArray, costs: ErrorCosts
) -> FloatArray:
    cascade = costs.losses(answer, labels[rows])
    reference = costs.losses(baseline.answer[rows], labels[rows])
    differences: FloatArray = (cascade - reference) / costs.maximum
    return differences if tables.clusters is None else certificate.per_cluster(differences, tables.clusters[rows])
