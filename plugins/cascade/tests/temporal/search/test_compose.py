"""The front holds what its policies do, within the margins of utility and AUPRC."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from plugins.cascade.tests.runs import CONFIGS, run_in, spec_of
from unfold_cascade.temporal.build import build_temporal_problem
from unfold_cascade.temporal.evaluation.evaluate import evaluate_policy, measure_quality
from unfold_cascade.temporal.models.study import fit_study
from unfold_cascade.temporal.search.compose import CHANCE_MARGINS, select_adequate
from unfold_cascade.temporal.search.planner import SearchResult, search_cascades
from unfoldkit.api import Run

MARGIN = 0.2
GATED = ("stages[1].parallel=false", f"alerts.utility_margin={MARGIN}", f"alerts.auprc_margin={MARGIN}")


def test_front_points_equal_their_simulation(search: SearchResult) -> None:
    """Loss and bill of every point are those of its trajectories, and no point dominates another."""
    study, points = search.study, search.front.points
    for point in points:
        outcome = evaluate_policy(
            study.train, point.policy, study.parallel, search.problem.transitions, study.call_costs
        )
        assert point.loss == pytest.approx(float((outcome.stage != study.train.highest).mean()))
        assert point.bill == pytest.approx(outcome.bill)
    assert [point.cost for point in points] == sorted(point.cost for point in points)
    assert all(after.loss < before.loss for before, after in itertools.pairwise(points))


def test_relaxed_alarms_are_worse_by_chance_only(search: SearchResult) -> None:
    """Every alarm of the front is within the alert margins, those of the relaxed front within the chance margins."""
    base, front = search.baselines.latched_quality, search.front
    adequate = {alarm.stage_policy for alarm in select_adequate(front.alarms, base, search.problem.alerts)}
    by_chance = {alarm.stage_policy for alarm in select_adequate(front.alarms, base, CHANCE_MARGINS)}
    if front.meets_margins:
        assert {point.policy[-1] for point in front.points} <= adequate
    relaxed = {point.policy[-1] for point in front.relaxed_points}
    assert relaxed <= (by_chance or {point.policy[-1] for point in front.points})


@pytest.fixture(scope="module")
def gated_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_in(tmp_path_factory.mktemp("gated"))


@pytest.fixture(scope="module")
def gated(gated_run: Run) -> SearchResult:
    """Search the wards with a last stage that waits for the first."""
    return _search_wards(gated_run, *GATED)


def _search_wards(run: Run, *settings: str) -> SearchResult:
    problem = build_temporal_problem(spec_of(CONFIGS / "wards.yaml", *settings), run)
    return search_cascades(fit_study(problem, run))


def test_gated_cascades_stay_within_the_alert_margins(gated: SearchResult) -> None:
    """Complete cascades keep utility and AUPRC within the margins, including entities that earlier stages retain."""
    study, base = gated.study, gated.baselines.latched_quality
    assert gated.front.meets_margins
    for point in gated.front.points:
        gates = np.array([False, False])
        outcome = evaluate_policy(study.train, point.policy, gates, gated.problem.transitions, study.call_costs)
        quality = measure_quality(study.train, outcome)
        assert quality.utility == pytest.approx(point.utility)
        assert quality.utility >= base.utility - MARGIN
        assert quality.auprc >= base.auprc - MARGIN


def test_margins_that_only_the_alarm_alone_meets_are_not_met(gated: SearchResult, gated_run: Run) -> None:
    """Alarms within the margins when evaluated at every hour do not count for cascades that retain entities."""
    base = gated.baselines.latched_quality
    deficits = [
        max(base.utility - alarm.quality.utility, base.auprc - alarm.quality.auprc) for alarm in gated.front.alarms
    ]
    margin = min(deficits) + 1e-6
    margins = (f"alerts.utility_margin={margin}", f"alerts.auprc_margin={margin}")
    strict = _search_wards(gated_run, GATED[0], *margins)
    assert select_adequate(strict.front.alarms, base, strict.problem.alerts)
    assert not strict.front.meets_margins
    assert strict.front.points
