"""Evaluation on the test cohort: swapped cohorts, other baselines and alert intervals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from plugins.cascade.tests.runs import CONFIGS, run_in, spec_of
from plugins.cascade.tests.temporal.conftest import TrainedWards
from unfold_cascade.temporal.build import build_temporal_problem
from unfold_cascade.temporal.models.study import fit_study, load_study
from unfold_cascade.temporal.report.plan import build_plan_report
from unfold_cascade.temporal.search.planner import SearchResult, evaluate_solution, solve
from unfold_cascade.verbs import temporal
from unfoldkit.api import format_amount

OTHER = "{name: small, estimator: xgboost, features: [bedside], params: {n_estimators: 9, max_depth: 2}}"
BASELINE = f"baseline={{estimator: xgboost, params: {{n_estimators: 80, max_depth: 4}}, rivals: [{OTHER}]}}"


def test_swapped_parts_evaluate_other_patients(search: SearchResult) -> None:
    """With certifying and test cohort swapped, the front stays and other patients are evaluated."""
    swapped = replace(search, study=replace(search.study, calibrate=search.study.test, test=search.study.calibrate))
    assert swapped.front is search.front
    assert swapped.study.test is search.study.calibrate
    assert evaluate_solution(swapped).latched.quality.bill != evaluate_solution(search).latched.quality.bill


@pytest.mark.e2e
def test_other_baselines_are_reported_and_change_nothing(wards: TrainedWards, tmp_path: Path) -> None:
    """With another baseline the decision is bit-identical, and its metrics are in the report."""
    spec, run = spec_of(CONFIGS / "wards.yaml", BASELINE), run_in(tmp_path / "run")
    report = temporal.train(spec, run)
    assert report.decision == wards.report.decision
    # measured times, and with them latency_saving, differ between runs
    names = [name for name in wards.report.metrics if name != "latency_saving"]
    assert {name: report.metrics[name].value for name in names} == {
        name: wards.report.metrics[name].value for name in names
    }
    problem = build_temporal_problem(spec, run)
    solution = solve(fit_study(problem, run))
    (other,) = solution.other_baselines
    loss_points = 100 * (solution.cascade.quality.loss - other.quality.loss)
    assert report.metrics["small_loss_points"].value == pytest.approx(loss_points)
    assert [slot.model for slot in load_study(problem, run).slots][-2:] == ["small", "monolith"]
    rows = {row[0]: row for table in build_plan_report(solution, "plan", run.directory).tables for row in table.rows}
    assert "baseline, latched: small" in rows


def test_the_price_of_an_hour_is_reported(wards: TrainedWards, search: SearchResult) -> None:
    """Ratios do not pay a bill: the report states what an hour costs with the cascade and with the baseline."""
    solution = evaluate_solution(search)
    price, base = (policy.quality.bill["price"] for policy in (solution.cascade, solution.latched))
    line = dict(wards.report.lines)["price"]
    assert line == f"{format_amount(price)} per case-hour; the latched baseline costs {format_amount(base)}"


def test_alert_intervals_contain_the_rate(wards: TrainedWards, search: SearchResult) -> None:
    """Each policy's alert rate lies in its interval, and all lead times are of the same patients."""
    solution = evaluate_solution(search)
    for policy in (solution.cascade, solution.latched, solution.single_model, solution.single_stage):
        low, high = policy.alerts.rate_interval
        assert low <= policy.quality.alerts <= high
        assert policy.alerts.lead_h.shape == solution.latched.alerts.lead_h.shape
    for name in ("alerts_per_100h", "alerts_per_100h_baseline"):
        low, high = (wards.report.metrics[f"{name}_{end}"].value for end in ("low", "high"))
        assert low is not None
        assert high is not None
        assert low <= (wards.report.metrics[name].value or 0.0) <= high
