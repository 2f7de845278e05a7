"""Check a plan over time on new data (``plan --check``): run its cascade on hours that it was not tuned on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from unfold_cascade._types import Float32, IntArray
from unfold_cascade.drift.report import CheckedData, build_drift_report
from unfold_cascade.drift.statistics import DriftSample, EntityCounts, count_by_entity, measure_changes
from unfold_cascade.models import onnx_runtime
from unfold_cascade.report.sentences import changed_units
from unfold_cascade.temporal.data.features import build_feature_matrix
from unfold_cascade.temporal.data.readers import read_table
from unfold_cascade.temporal.data.table import EntityTable, Timeline, select_rows
from unfold_cascade.temporal.evaluation.baselines import latch_stages
from unfold_cascade.temporal.problem import TemporalProblem
from unfold_cascade.temporal.serving.plan_loader import LoadedPlan, load_temporal_plan
from unfold_cascade.temporal.simulation.policy import ALWAYS_EVALUATED, build_policy_arrays
from unfold_cascade.temporal.simulation.trajectories import ModelScores, simulate
from unfoldkit.api import Report, Run


def check_drift(problem: TemporalProblem, planned: TemporalProblem, run: Run) -> Report:
    """Report whether new hours resemble those that no model of the plan was fitted or tuned on.

    Args:
        problem: The problem with the new data.
        planned: The problem of the plan.
        run: Stores the models of the plan, and holds the plan among its options.
    """
    baseline: Mapping[str, Any] = run.options.get("baseline_plan") or run.options["plan"]
    plan = load_temporal_plan(planned, run, baseline)
    table = read_table(problem.source, run)
    return compare_hours(problem, plan, table, sample_new(plan, table, run), run)


def compare_hours(problem: TemporalProblem, plan: LoadedPlan, table: EntityTable, new: DriftSample, run: Run) -> Report:
    """Compare the hours of a plan with those of a table, on which its models ran already."""
    planned_counts = _count_sample(
        plan, sample_planned(plan, np.concatenate([plan.study.rows.calibrate, plan.study.rows.test]))
    )
    new_counts = _count_sample(plan, new)
    changes = measure_changes(planned_counts, new_counts, plan.problem.drift, problem.seed)
    subtitle = f"{len(table.ids):,} new cases", f"{len(table):,} new hours"
    data = CheckedData(problem.name, len(table), "hours", subtitle, problem.source.path, table.digest)
    report = build_drift_report(data, changes, plan.problem.drift, run)
    return replace(report, notes=(*report.notes, *changed_units(plan.study.hours.find_changed_units(table))))


def _count_sample(plan: LoadedPlan, sample: DriftSample) -> list[EntityCounts]:
    models = [slot.place for slot in plan.slots]
    return list(count_by_entity(sample, plan.policy, plan.problem.stage_names, models))


def sample_planned(plan: LoadedPlan, entities: IntArray) -> DriftSample:
    """Sample some entities of the plan's own data, from stored predictions."""
    timeline = plan.study.hours.timeline
    rows = select_rows(timeline.starts, entities)
    p = np.array([prediction.p[rows, -1] for prediction in plan.predictions])
    return _build_sample(plan, timeline.select(entities), p, plan.predictions[-1].p[rows])


def sample_new(plan: LoadedPlan, table: EntityTable, run: Run) -> DriftSample:
    """Run the models of a plan on new entities."""
    run.log.info("running the plan's models on %d hours", len(table))
    run.progress("new data", 0, 1)
    x = build_feature_matrix(table, plan.features)
    p = np.zeros((len(plan.slots), len(table)), dtype=np.float32)
    for model in plan.policy_models:
        p[model] = predict_rows(plan, run, model, x)[:, -1]
    baseline_p = predict_rows(plan, run, len(plan.slots) - 1, x)
    p[-1] = baseline_p[:, -1]
    return _build_sample(plan, table.timeline, p, baseline_p)


def predict_rows(plan: LoadedPlan, run: Run, model: int, x: Float32) -> Float32:
    """Predict (n, C) probabilities of one model of a plan for (n, d) features."""
    slot = plan.slots[model]
    engine = onnx_runtime.shrink_engine(onnx_runtime.build_native_engine(run, slot, "a whole table", dtype=np.float32))
    return engine.predict(np.ascontiguousarray(x[:, slot.columns])).astype(np.float32)


def _build_sample(plan: LoadedPlan, timeline: Timeline, p: Float32, baseline_p: Float32) -> DriftSample:
    scores = ModelScores(p, plan.needs, plan.purchase)
    arrays = build_policy_arrays(plan.policy, plan.parallel)
    trajectories = simulate(timeline, scores, arrays, plan.problem.transitions)
    return DriftSample(timeline, scores, trajectories, _decode_baseline(plan, timeline, scores, baseline_p))


def _decode_baseline(plan: LoadedPlan, timeline: Timeline, scores: ModelScores, baseline_p: Float32) -> IntArray:
    rule = plan.baseline
    arrays = build_policy_arrays(rule.policy, ALWAYS_EVALUATED)
    alarm = simulate(timeline, scores, arrays, plan.problem.transitions).stage == 1
    stage = latch_stages(baseline_p, timeline.starts, rule.cuts or ())
    final = len(plan.problem.stages)
    return np.where(alarm, final, np.minimum(stage, final - 1)).astype(np.int64)
