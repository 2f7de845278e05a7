"""Refit the thresholds of a plan over time on local patients; the baseline is tuned on them in the same way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from unfold_cascade.data.splits import SplitRule
from unfold_cascade.drift.temporal import predict_rows
from unfold_cascade.drift.temporal_validation import leave_out_known
from unfold_cascade.report.sentences import RECALIBRATED, changed_units
from unfold_cascade.temporal.data.features import build_feature_matrix
from unfold_cascade.temporal.data.labels import label_table
from unfold_cascade.temporal.data.readers import read_table
from unfold_cascade.temporal.data.splits import split_entities
from unfold_cascade.temporal.data.table import EntityTable
from unfold_cascade.temporal.evaluation.baselines import decode_baseline
from unfold_cascade.temporal.evaluation.evaluate import Quality, evaluate_policy, measure_quality
from unfold_cascade.temporal.handoff import write_exits
from unfold_cascade.temporal.models.study import Study, assemble_study
from unfold_cascade.temporal.problem import TemporalProblem
from unfold_cascade.temporal.report.plan import build_plan_report
from unfold_cascade.temporal.search.planner import (
    Solution,
    find_cheapest_within_loss,
    record_certificate,
    search_cascades,
    solve,
)
from unfold_cascade.temporal.serving.plan_loader import LoadedPlan, load_temporal_plan
from unfoldkit.api import Cell, Column, Report, Run, Table, user_error

RANDOM_SPLIT = SplitRule()
SIZES = (100, 200, 500, 1000, 2000, 5000)


def recalibrate_hours(problem: TemporalProblem, planned: TemporalProblem, run: Run) -> Report:
    """Refit gates, cuts and baseline of a plan on the patients of ``problem``, and certify again.

    Args:
        problem: The problem with the local patients.
        planned: The problem of the plan.
        run: Holds the plan among its options.

    Raises:
        UnfoldError: A column is missing, there are too few patients or events, or all are patients of the run.
    """
    plan = load_temporal_plan(planned, run, run.options["plan"])
    table = read_table(problem.source, run)
    new, notes = leave_out_known(plan, table)
    if notes and len(new.ids) == len(table.ids):
        hint = "give patients that the run has not seen"
        raise user_error(notes[0], key="data.path", file="", hint=hint)
    study = build_local_study(problem, plan, run, new)
    solution = solve(study)
    write_exits(solution, run)
    report = build_plan_report(solution, "plan", run.directory, record_certificate(solution, run))
    entities = study.train.entities + study.calibrate.entities + study.test.entities
    decision = dict(report.decision or {}) | {"recalibrated": {"patients": entities, "data": study.digest}}
    return replace(
        report,
        tables=(_tabulate_sizes(plan, solution), *report.tables),
        lines=(*report.lines, ("recalibrated", RECALIBRATED)),
        notes=(*report.notes, *changed_units(plan.study.hours.find_changed_units(new)), *notes),
        decision=decision,
    )


def build_local_study(
    problem: TemporalProblem, plan: LoadedPlan, run: Run, table: EntityTable, split: SplitRule = RANDOM_SPLIT
) -> Study:
    """Split the patients of ``table`` and predict their hours with the models of a plan."""
    local = replace(plan.problem, split=split, seed=run.seed)
    # the features stay those of the plan, whatever further columns the table has
    hours = replace(label_table(replace(problem, split=split), table), columns=plan.study.hours.columns)
    x = build_feature_matrix(table, plan.features)
    run.log.info("running the plan's models on %d hours", len(table))
    predictions = [
        replace(prediction, p=predict_rows(plan, run, model, x)) for model, prediction in enumerate(plan.predictions)
    ]
    return assemble_study(local, hours, split_entities(local, hours), plan.slots, predictions)


def _tabulate_sizes(plan: LoadedPlan, solution: Solution) -> Table:
    """Tabulate gates and baseline refitted on n local patients, on local test patients; 0 are those of the plan."""
    columns = (
        Column("local patients to tune"), Column("loss", "points", 2), Column("utility", "", 3),
        Column("alerts", "/100 h", 1), Column("baseline utility", "", 3), Column("saving", "x", 2),
    )  # fmt: skip
    return Table("what n local patients buy", columns, tuple(list_sizes(plan, solution)))


def list_sizes(plan: LoadedPlan, solution: Solution) -> Iterator[tuple[Cell, ...]]:
    """Yield the rows of the table: first the plan as it is, then refitted on more and more of the tuning patients."""
    study, transitions = solution.study, solution.problem.transitions
    currency = solution.problem.cost.currency
    cascade = evaluate_policy(study.test, plan.policy, plan.parallel, transitions, study.call_costs)
    baseline = decode_baseline(study.test, plan.baseline, transitions, study.call_costs)
    yield 0, *_row(measure_quality(study.test, cascade), measure_quality(study.test, baseline), currency)
    for size in (*(size for size in SIZES if size < study.train.entities), study.train.entities):
        policy, rule = solution.tuned_only.policy, solution.rule
        if size < study.train.entities:
            # nothing is certified here, so the search alone is enough
            search = search_cascades(replace(study, train=study.train.take(size)))
            policy, rule = find_cheapest_within_loss(search).policy, search.baselines.latched
        cascade = evaluate_policy(study.test, policy, study.parallel, transitions, study.call_costs)
        baseline = decode_baseline(study.test, rule, transitions, study.call_costs)
        yield size, *_row(measure_quality(study.test, cascade), measure_quality(study.test, baseline), currency)


def _row(cascade: Quality, baseline: Quality, currency: str) -> tuple[Cell, ...]:
    cost = cascade.bill[currency]
    saving = baseline.bill[currency] / cost if cost > 0 else None
    return 100 * (cascade.loss - baseline.loss), cascade.utility, cascade.alerts, baseline.utility, saving
