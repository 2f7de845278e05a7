"""Compose the candidates of all stages into cascades, simulate them, and keep the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from unfold_cascade._types import BoolArray
from unfold_cascade.gates.pareto import find_pareto_points
from unfold_cascade.temporal.evaluation.baselines import Baselines
from unfold_cascade.temporal.evaluation.evaluate import Quality, evaluate_policy, measure_quality, tune_final_cut
from unfold_cascade.temporal.models.study import Study
from unfold_cascade.temporal.models.training_sets import select_rows_in_stage
from unfold_cascade.temporal.problem import AlertBudget
from unfold_cascade.temporal.search.alarms import AlarmCandidate, search_alarms
from unfold_cascade.temporal.search.candidates import CostBasis, StageCandidate, search_stage, select_stage_hours
from unfold_cascade.temporal.simulation.cost import compute_bill
from unfold_cascade.temporal.simulation.policy import Policy, build_policy_arrays
from unfold_cascade.temporal.simulation.trajectories import simulate
from unfoldkit.api import Progress, ignore_progress

SEARCH_STEP = "gates"
"""What progress is reported of: each stage alone, and their combinations."""
MAX_COMBINATIONS = 160
MAX_ALARMS = 3
MAX_POINTS = 96
# about one standard error of utility and AUPRC on ten thousand patients
CHANCE_MARGINS = AlertBudget(utility_margin=0.01, auprc_margin=0.005)


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """A cascade on the tuning cohort: its loss, bill and utility, and its cost relative to the baseline."""

    policy: Policy
    loss: float
    bill: dict[str, float]
    cost: float
    utility: float


@dataclass(frozen=True, slots=True)
class CascadeFront:
    """The Pareto front of cascades on the tuning cohort.

    Attributes:
        points: Cascades by ascending cost and descending loss.
        alarms: The alarms that were searched, by cost.
        meets_margins: Whether some cascades keep the baseline's utility and AUPRC within the alert margins.
        relaxed_points: Cascades with an alarm that is worse by chance only (``CHANCE_MARGINS``). They are compared with
            the memoryless baseline, for which the paper requires accuracy alone.
    """

    points: tuple[FrontPoint, ...]
    alarms: tuple[AlarmCandidate, ...]
    meets_margins: bool
    relaxed_points: tuple[FrontPoint, ...]


def search_front(
    study: Study, baselines: Baselines, basis: CostBasis, progress: Progress = ignore_progress
) -> CascadeFront:
    """Search the front of loss and relative cost on the tuning cohort, at the alert rate of the problem.

    Every stage alone contributes candidates. For the last stage the cheapest alarms are kept that reach the baseline's
    utility and average precision. Combinations are ranked by the sum of their costs and simulated as complete cascades.
    """
    problem, cohort, base = study.problem, study.train, baselines.latched_quality
    alerts = problem.alerts
    last = len(study.stages) - 1
    stage_fronts = []
    for s in range(last):
        progress(SEARCH_STEP, s, last + 2)
        hours = select_stage_hours(cohort, s, _rows_in_stage(study, s))
        stage_fronts.append(search_stage(hours, study.stages[s], basis, problem.gates))
    progress(SEARCH_STEP, last, last + 2)
    final_hours = select_stage_hours(cohort, 0, _rows_in_stage(study, last))
    alarms = search_alarms(cohort, final_hours, study.stages[-1], basis, alerts.per_100h, problem.gates)
    progress(SEARCH_STEP, last + 1, last + 2)
    adequate, by_chance = select_adequate(alarms, base, alerts), select_adequate(alarms, base, CHANCE_MARGINS)
    cascades = _compose(study, stage_fronts, select_cheapest(adequate or select_nearest(alarms, base)), basis)
    within = [point for point in cascades if is_within_margins(study, point, basis, base, alerts)]
    relaxed = cascades
    if select_cheapest(by_chance) != select_cheapest(adequate):
        relaxed = _compose(study, stage_fronts, select_cheapest(by_chance), basis)
    relaxed_within = [point for point in relaxed if is_within_margins(study, point, basis, base, CHANCE_MARGINS)]
    points = _select_front(within or cascades)
    progress(SEARCH_STEP, last + 2, last + 2)
    return CascadeFront(
        points, tuple(alarms), bool(adequate and within), _select_front(relaxed_within or relaxed) or points
    )


def is_within_margins(study: Study, point: FrontPoint, basis: CostBasis, base: Quality, margins: AlertBudget) -> bool:
    """Check that a cascade loses no more utility and AUPRC than ``margins`` allow, on the tuning cohort.

    A parallel last stage alerts exactly as its alarm alone, which has been checked already. A gated one is not
    evaluated for entities that earlier stages retain, so the complete cascade is checked.
    """
    parallel, cohort = study.parallel, study.train
    if parallel[-1]:
        return True
    if point.utility < base.utility - margins.utility_margin:
        return False
    outcome = evaluate_policy(cohort, point.policy, parallel, basis.transitions, basis.call_costs)
    return measure_quality(cohort, outcome).auprc >= base.auprc - margins.auprc_margin


def select_adequate(alarms: Sequence[AlarmCandidate], base: Quality, margins: AlertBudget) -> list[AlarmCandidate]:
    """Select the alarms that lose no more utility and AUPRC against the baseline than ``margins`` allow."""
    utility, auprc = base.utility - margins.utility_margin, base.auprc - margins.auprc_margin
    return [alarm for alarm in alarms if alarm.quality.utility >= utility and alarm.quality.auprc >= auprc]


def select_nearest(alarms: Sequence[AlarmCandidate], base: Quality) -> list[AlarmCandidate]:
    """Select the alarm that loses least of utility or AUPRC, relative to the baseline or to the chance margins."""

    def relative_deficit(alarm: AlarmCandidate) -> float:
        utility = (base.utility - alarm.quality.utility) / max(abs(base.utility), CHANCE_MARGINS.utility_margin)
        auprc = (base.auprc - alarm.quality.auprc) / max(base.auprc, CHANCE_MARGINS.auprc_margin)
        return max(utility, auprc)

    return [min(alarms, key=relative_deficit)]


def select_cheapest(alarms: Sequence[AlarmCandidate]) -> list[AlarmCandidate]:
    """Select the few cheapest alarms."""
    return sorted(alarms, key=lambda alarm: alarm.cost)[:MAX_ALARMS]


def _rows_in_stage(study: Study, s: int) -> BoolArray:
    stage, cohort = study.problem.stages[s], study.train
    return select_rows_in_stage(cohort.highest, cohort.since, s, is_parallel=stage.is_parallel, fresh_h=stage.fresh_h)


def _compose(
    study: Study,
    stage_fronts: Sequence[Sequence[StageCandidate]],
    alarms: Sequence[AlarmCandidate],
    basis: CostBasis,
) -> list[FrontPoint]:
    """Simulate the combinations of stage candidates and alarms that meet the alert rate."""
    points = [_simulate_cascade(study, policy, basis) for policy in _combine(stage_fronts, alarms)]
    return [point for point in points if point is not None]


def _select_front(points: Sequence[FrontPoint]) -> tuple[FrontPoint, ...]:
    best = find_pareto_points(np.array([point.loss for point in points]), np.array([point.cost for point in points]))
    return tuple(points[index] for index in best[:MAX_POINTS])


def _combine(stage_fronts: Sequence[Sequence[StageCandidate]], alarms: Sequence[AlarmCandidate]) -> list[Policy]:
    """List the combinations to simulate, thinned evenly along cost if there are many."""
    combinations: list[tuple[float, Policy]] = [
        (
            sum(candidate.cost for candidate in candidates) + alarm.cost,
            (*(candidate.stage_policy for candidate in candidates), alarm.stage_policy),
        )
        for candidates, alarm in product(product(*stage_fronts), alarms)
    ]
    combinations.sort(key=lambda combination: combination[0])
    count = min(MAX_COMBINATIONS, len(combinations))
    selected = np.unique(np.linspace(0, len(combinations) - 1, count).round().astype(np.int64))
    return [combinations[index][1] for index in selected]


def _simulate_cascade(study: Study, policy: Policy, basis: CostBasis) -> FrontPoint | None:
    parallel, cohort = study.parallel, study.train
    # a parallel last stage meets the rate already, unless its gates depend on what other stages bought
    if not parallel[-1] or policy[-1].owned:
        tuned = tune_final_cut(cohort, policy, parallel, basis.transitions, study.problem.alerts.per_100h)
        if tuned is None:
            return None
        policy = tuned
    trajectories = simulate(cohort.timeline, cohort.scores, build_policy_arrays(policy, parallel), basis.transitions)
    bill = compute_bill(trajectories, cohort.scores, basis.call_costs)
    utility = cohort.utility.normalize(trajectories.stage == len(policy))
    loss = float((trajectories.stage != cohort.highest).mean())
    return FrontPoint(policy, loss, bill, basis.compare(bill), utility)
