"""Savings and budgets over time are certified by patient, from sums that no policy of the same models exceeds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from plugins.cascade.tests.temporal.simulation.worlds import draw_scores, draw_stage, draw_timeline, draw_transitions
from unfold_cascade.planner.guarantees import compute_cost_tests
from unfold_cascade.planner.saving import BUDGET, CostSample, bound_saving, cost_guarantee, saving_guarantee
from unfold_cascade.planner.select import BUDGET_UNCERTAIN, NO_CHEAPER, REFUTED, SAVING_UNCERTAIN
from unfold_cascade.temporal.report.plan import build_plan_report
from unfold_cascade.temporal.search.planner import SearchResult, evaluate_solution
from unfold_cascade.temporal.search.select import retest_selection
from unfold_cascade.temporal.simulation.cost import CallCosts, build_cost_measure, follow_longest_path
from unfold_cascade.temporal.simulation.policy import build_policy_arrays
from unfold_cascade.temporal.simulation.trajectories import simulate
from unfoldkit.api import RunDir, UnfoldError, Verdict

DELTA = 0.05


@pytest.mark.parametrize("by", ["price", "price+flops"])
def test_no_patient_costs_more_than_the_longest_path(by: str) -> None:
    """Whatever the gates, the entry and the validity of purchases, every model at every hour costs at least as much."""
    bill = {"price": 3.0, "flops": 20.0}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        timeline = draw_timeline(rng)
        scores, transitions = draw_scores(rng, len(timeline.hour)), draw_transitions(rng)
        policy = tuple(draw_stage(rng, 5) for _ in range(3))
        measure = build_cost_measure(by, bill, CallCosts(*(rng.random((4, 5)))))
        arrays = build_policy_arrays(policy, rng.random(3) < 0.4)
        usual = measure.sum_by_patient(scores, simulate(timeline, scores, arrays, transitions))
        longest = measure.sum_by_patient(scores, follow_longest_path(timeline, scores, transitions, policy))
        assert (usual <= longest + 1e-9).all()


def _draw_sums(rng: np.random.Generator, patients: int, ratio: float) -> CostSample:
    """Draw patients of 5 to 200 hours; one in five pays for everything, so that the baseline costs ``ratio`` as much.

    The hours of a patient agree: a test that counted hours would pass far too often.
    """
    hours = np.minimum(5 + rng.exponential(30, patients), 200)
    is_costly = rng.random(patients) < 0.2
    rate = np.where(is_costly, 4.0, (5.0 / ratio - 4.0 * 0.2) / 0.8)
    return CostSample(hours * rate, 5.0 * hours, 6.0 * hours)


def test_a_saving_just_below_the_goal_is_certified_at_most_at_delta() -> None:
    """At the edge at most delta of 300 cohorts certify the saving or the budget, and twice the saving always passes."""
    rng, draws, passed = np.random.default_rng(5), 300, np.zeros(2)
    for _ in range(draws):
        tune, fresh = _draw_sums(rng, 200, 2.0), _draw_sums(rng, 100, 2.0)
        saving = saving_guarantee(2.0, [(tune, fresh)])
        limits = tune.over(tune.baseline / 2.0), fresh.over(fresh.baseline / 2.0)
        budget = cost_guarantee(BUDGET, [limits], 1.0)
        passed += [compute_cost_tests([each], 1, DELTA).certify[0] <= DELTA for each in (saving, budget)]
    assert (passed <= draws * DELTA + 3 * np.sqrt(draws * DELTA * (1 - DELTA))).all()
    tune, fresh = _draw_sums(rng, 200, 4.0), _draw_sums(rng, 100, 4.0)
    assert compute_cost_tests([saving_guarantee(2.0, [(tune, fresh)])], 1, DELTA).certify[0] <= DELTA
    assert 2.0 < bound_saving(tune, fresh, 0.95) < 4.5


def _with_goal(search: SearchResult, **changes: Any) -> SearchResult:
    problem = search.problem
    goal = replace(problem.goal, **changes)
    return replace(search, study=replace(search.study, problem=replace(problem, goal=goal)))


@pytest.mark.slow
def test_without_the_saving_the_answer_is_the_latched_baseline(search: SearchResult, tmp_path: Any) -> None:
    """A saving that no cascade has is refused, and the next command serves the baseline; a lower one is promised."""
    solution = evaluate_solution(_with_goal(search, min_saving=1e5))
    report = build_plan_report(solution, "plan", RunDir(tmp_path))
    assert (report.verdict, solution.selection.reason) == (Verdict.NO, NO_CHEAPER)
    assert report.headline.startswith("use the latched baseline alone: no cascade is 100000x cheaper")
    assert report.next.startswith("unfold serve")
    promised = evaluate_solution(_with_goal(search, min_saving=1.05))
    lines = dict(build_plan_report(promised, "plan", RunDir(tmp_path)).lines)
    assert "saving ≥ 1.05x" in lines["certificate"]
    assert "saving" not in lines["not promised"]
    bound = promised.selection.saving_bound
    assert bound is not None
    assert bound > 1.05


def test_few_patients_certify_no_saving_close_to_that_of_tuning(search: SearchResult) -> None:
    """A saving equal to that of the best cascade in tuning is uncertain, at a loss that any cascade keeps."""
    best = evaluate_solution(_with_goal(search, max_loss=0.9, min_saving=1.0)).selection.tuning_costs
    assert best is not None
    ratio = float(best.baseline.sum() / best.cascade.sum())
    selection = evaluate_solution(_with_goal(search, max_loss=0.9, min_saving=0.999 * ratio)).selection
    assert not selection.is_certified
    assert selection.reason == SAVING_UNCERTAIN


def test_a_budget_is_certified_on_patients_that_did_not_choose(search: SearchResult) -> None:
    """The cheapest cost of tuning is no budget to promise; twice of it is; less than any cascade costs is an error."""
    costs = [point.bill["flops"] for point in search.front.points]
    by_flops = replace(search.problem, cost=replace(search.problem.cost, by="flops"))
    search = replace(search, study=replace(search.study, problem=by_flops))
    tight = evaluate_solution(_with_goal(search, max_loss=None, min_saving=None, budget=1.0001 * min(costs)))
    wide = evaluate_solution(_with_goal(search, max_loss=None, min_saving=None, budget=2.0 * min(costs)))
    assert (tight.selection.is_certified, tight.selection.reason) == (False, BUDGET_UNCERTAIN)
    assert wide.selection.is_certified
    assert wide.cascade.quality.bill["flops"] <= 2.0 * min(costs)
    with pytest.raises(UnfoldError, match="no cascade costs so little"):
        evaluate_solution(_with_goal(search, max_loss=None, min_saving=None, budget=0.5 * min(costs)))


def test_unread_patients_can_refute_a_certificate(search: SearchResult) -> None:
    """A cascade that costs ten times as much on the test patients keeps no certificate."""
    wide = _with_goal(search, max_loss=0.9, min_saving=1.05)
    solution, study = evaluate_solution(wide), wide.study
    assert solution.selection.is_certified
    measure = build_cost_measure("flops", solution.latched.quality.bill, study.call_costs)
    cascade, latched = solution.cascade.outcome, solution.latched.outcome
    expensive = replace(cascade, trajectories=replace(cascade.trajectories, calls=100 * cascade.trajectories.calls))
    retested = retest_selection(study, solution.selection, expensive, latched, measure)
    assert (retested.is_certified, retested.reason) == (False, REFUTED)
