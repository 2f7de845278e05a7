"""Refit the thresholds of a plan on local cases: same models and baseline, new gates and a new certificate.

Updating a model at a new site with few parameters needs fewer cases than a new model (Steyerberg et al., Stat Med
2004). Half of the local cases tune the gates, a quarter certifies, a quarter is reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from unfold_cascade._types import IntArray
from unfold_cascade.data.dataset import (
    DatasetOptions,
    find_column_doubts,
    find_leaks,
    find_marks,
    group_rows,
    number_label_groups,
)
from unfold_cascade.data.splits import SplitRule
from unfold_cascade.data.table import Frame, Rows, TableSource, load_frame, split_clusters
from unfold_cascade.drift.static import extend_tables
from unfold_cascade.drift.static_validation import leave_out_known, observe_cases, read_new_labels
from unfold_cascade.planner.planner import FRONT_FILE, Solution, certify_fronts, search_fronts, write_fronts
from unfold_cascade.planner.policy import Policy
from unfold_cascade.planner.policy_search import search_policies
from unfold_cascade.report import sentences
from unfold_cascade.report.plan import build_plan_report
from unfold_cascade.serving.loader import LoadedPlan
from unfoldkit.api import Cell, Column, Report, Run, Table, fingerprint, user_error

MIN_UNITS = 24
SIZES = (25, 50, 100, 200, 500, 1000, 2000, 5000)


def recalibrate_cases(loaded: LoadedPlan, source: TableSource, run: Run) -> Report:
    """Refit the gates of a plan on the labelled cases of ``source``, store the front, and report the certificate.

    Raises:
        UnfoldError: The cases have no labels, an unknown one, or are too few.
    """
    frame, problem = load_frame(source), loaded.problem
    labels = read_new_labels(loaded, frame)
    if labels is None:
        raise user_error(f"{frame.name} has no labels to recalibrate on", key=problem.data.label_key)
    unlabelled, note = int((labels < 0).sum()), ""
    if not problem.is_recorded:
        labels, note = leave_out_known(loaded, frame, labels)
        if note == sentences.own_table(frame.name):
            raise user_error(note, key="data.path", file="", hint="give cases that the run has not seen")
    solution = _solve(loaded, replace(problem.data, source=source), frame, labels, unlabelled, run)
    run.directory.write(
        FRONT_FILE, write_fronts(solution.fronts), made_from=fingerprint(solution.problem.dataset.digest)
    )
    report = build_plan_report(solution, run.directory, "plan")
    count = sum(len(getattr(solution.problem.dataset.rows, part)) for part in ("train", "calibrate", "test"))
    decision = dict(report.decision or {}) | {"recalibrated": {"cases": count, "data": solution.problem.dataset.digest}}
    table = _tabulate_sizes(loaded, solution)
    units = sentences.changed_units(problem.dataset.find_changed_units(frame))
    return replace(
        report,
        tables=(table, *report.tables),
        lines=(*report.lines, ("recalibrated", sentences.RECALIBRATED)),
        notes=(*report.notes, *units, *filter(None, [note])),
        decision=decision,
        provenance={"inputs": {"data": solution.problem.dataset.digest}},
    )


def _solve(
    loaded: LoadedPlan, options: DatasetOptions, frame: Frame, labels: IntArray, unlabelled: int, run: Run
) -> Solution:
    """Search and certify on the rows of ``frame`` that have a (n,) label, -1 where there is none."""
    problem, known = loaded.problem, len(loaded.problem.dataset.labels)
    tables = extend_tables(loaded, frame, run)
    new = np.flatnonzero(labels >= 0)
    clusters, copies = group_rows(options, frame, problem.dataset.order, labels >= 0)
    units = np.arange(len(new)) if clusters is None else clusters
    count = int(units.max()) + 1
    if count < MIN_UNITS:
        what = "labelled cases" if clusters is None else "labelled groups or distinct rows"
        raise user_error(f"{frame.name} has {count} {what}; at least {MIN_UNITS} are needed", key="data.path")
    parts = split_clusters(labels[new], units, SplitRule(), run.seed)
    rows = Rows(*(known + new[part] for part in (parts.train, parts.calibrate, parts.test)))
    old_units = problem.dataset.clusters
    joined = None
    if old_units is not None or clusters is not None:
        before = np.arange(known) if old_units is None else old_units
        # rows without a label are in no part: each is a unit of its own
        all_units = count + np.arange(len(labels))
        all_units[new] = units
        joined = np.concatenate([before, int(before.max()) + 1 + all_units])
    order, is_labelled = problem.dataset.order, labels >= 0
    leaks = find_leaks(problem.data, frame, order, labels[new], is_labelled)
    dataset = replace(
        problem.dataset,
        rows=rows,
        labels=np.concatenate([problem.dataset.labels, np.maximum(labels, 0)]),
        clusters=joined,
        digest=frame.digest,
        source=frame.name,
        unlabelled=unlabelled,
        identical=copies.identical if copies else 0,
        near=copies.near if copies else 0,
        leaks=leaks,
        doubts=find_column_doubts(frame, order, is_labelled),
        marks=find_marks(problem.data, frame, order, labels[new], is_labelled, leaks),
    )
    problem, tables = replace(problem, dataset=dataset), replace(tables, clusters=joined)
    index = tables.candidates.models.index(loaded.baseline.name)
    baseline = replace(loaded.baseline, index=index, answer=tables.candidates.answer[:, index])
    return certify_fronts(problem, tables, search_fronts(problem, tables, baseline), baseline, run)


def _tabulate_sizes(loaded: LoadedPlan, solution: Solution) -> Table:
    """Tabulate what gates refitted on n local cases do on local test cases; 0 are the gates of the plan."""
    columns = (
        Column("local cases to tune"), Column("loss", "points", 2), Column("accuracy", "%", 1),
        Column("baseline", "%", 1), Column("saving", "x", 2),
    )  # fmt: skip
    return Table("what n local cases buy", columns, tuple(_list_sizes(loaded, solution)))


def _list_sizes(loaded: LoadedPlan, solution: Solution) -> Iterator[tuple[Cell, ...]]:
    train = np.random.default_rng([solution.problem.data.seed, 0x10CA]).permutation(solution.problem.dataset.rows.train)
    if loaded.is_cascade:
        yield 0, *_measure(loaded, solution, loaded.policy)
    for size in (*(size for size in SIZES if size < len(train)), len(train)):
        policy = _refit(solution, np.sort(train[:size]))
        if policy is not None:
            yield size, *_measure(loaded, solution, policy)


def _refit(solution: Solution, rows: IntArray) -> Policy | None:
    """Search gates on some rows; select the cheapest within the allowed loss there, or the best within the budget."""
    problem, tables, goal = solution.problem, solution.tables, solution.problem.goal
    labels = problem.dataset.labels
    groups = number_label_groups(problem.data.label_groups, problem.dataset.names)
    front = search_policies(tables, labels, groups, rows, problem.gates)
    if goal.budget is not None:
        affordable = np.flatnonzero(front.cost <= goal.budget)
        return front.policies[int(affordable[-1])] if len(affordable) else None
    loss = float(tables.error_costs.losses(solution.baseline.answer[rows], labels[rows]).mean())
    allowed = np.flatnonzero(front.loss <= loss + (goal.max_loss or 0.0))
    return front.policies[int(allowed[0])] if len(allowed) else front.policies[-1]


def _measure(loaded: LoadedPlan, solution: Solution, policy: Policy) -> tuple[Cell, ...]:
    rows, labels = solution.problem.dataset.rows.test, solution.problem.dataset.labels
    served = replace(loaded, policy=policy, is_cascade=True)
    cases = observe_cases(served, solution.tables, rows, labels[rows], None)
    cost = float(cases.cost.mean())
    return (
        100 * float(cases.extra_losses(solution.tables.error_costs).mean()),
        100 * float((cases.answer == cases.labels).mean()),
        100 * float((cases.baseline_answer == cases.labels).mean()),
        float(cases.baseline_cost.mean()) / cost if cost > 0 else None,
    )
