"""The report of a replay of Kueue's queues: when workloads start, and which of them a change of quotas moves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from statistics import fmean

from unfold_placement.kueue.comparison import (
    QueueProblem,
    StartChange,
    list_quota_changes,
    summarize_queues,
)
from unfold_placement.kueue.objects import Quota
from unfold_placement.report import sentences
from unfoldkit.api import Cell, Column, Metric, Report, Table, Verdict, format_count

QUEUE_COLUMNS = (
    Column("ClusterQueue"),
    Column("workloads"),
    Column("earlier"),
    Column("later"),
    Column("never"),
    Column("mean change", "s", 1),
    Column("old mean wait", "s", 1),
    Column("mean wait", "s", 1),
)
WORKLOAD_COLUMNS = (
    Column("workload"),
    Column("ClusterQueue"),
    Column("starts at"),
    Column("old start", "s", 1),
    Column("start", "s", 1),
    Column("change", "s", 1),
    Column("preemptions"),
)
OF_CHANGE = frozenset({"earlier", "later", "mean change", "old mean wait", "old start", "change"})
"""Columns that a replay without a change of quotas has no use for."""
MAX_ROWS = 50
"""Workloads that the report lists, those that change most; the file beside it has all."""
MAX_DECISIONS = 1000
"""The decision lists the starts of so many workloads."""


def queue_report(problem: QueueProblem, changes: Sequence[StartChange]) -> Report:
    """Build the report of a replay; starts are seconds from its beginning."""
    never = [change for change in changes if math.isinf(change.after.end_s)]
    queues, moved = summarize_queues(changes), _sort_by_change(changes, has_change=problem.has_change)
    queue_rows = tuple(
        (
            item.queue, item.workloads, item.earlier, item.later, item.never,
            item.shift_s, item.wait_before_s, item.wait_after_s,
        )
        for item in queues
    )  # fmt: skip
    rows = tuple(_row(problem, change) for change in moved[:MAX_ROWS])
    return Report(
        kind="placement",
        verb="plan",
        name=problem.name,
        verdict=Verdict.NO if never else Verdict.YES,
        question=sentences.ASK_FOR_CHANGE if problem.has_change else sentences.ASK_FOR_STARTS,
        headline=_headline(problem, changes),
        subtitle=(format_count(len(problem.after.queues), "ClusterQueue"), format_count(len(changes), "workload")),
        metrics=_metrics(changes),
        tables=tuple(_build_tables(queue_rows, rows, has_change=problem.has_change)),
        lines=tuple(_lines(problem, changes, never)),
        next="unfold plan SPEC --out report.html"
        if problem.has_change
        else "unfold plan SPEC --set policy.quota.NAME=16",
        decision=_decision(changes),
    )


def _build_tables(
    queue_rows: Sequence[tuple[Cell, ...]], rows: Sequence[tuple[Cell, ...]], *, has_change: bool
) -> Iterator[Table]:
    """Yield the tables of queues and of workloads; no columns of a change that there is none of, and no empty table."""
    title = "what changes most" if has_change else "starts"
    for name, columns, cells in (("by ClusterQueue", QUEUE_COLUMNS, queue_rows), (title, WORKLOAD_COLUMNS, rows)):
        kept = [index for index, column in enumerate(columns) if has_change or column.name not in OF_CHANGE]
        if cells:
            yield Table(name, tuple(columns[i] for i in kept), tuple(tuple(row[i] for i in kept) for row in cells))


def format_admissions(changes: Sequence[StartChange]) -> str:
    """Return all workloads as CSV; times are seconds from the beginning of the replay, empty for never."""
    lines = ["workload,cluster_queue,arrival_s,start_before_s,start_s,end_s,preemptions"]
    for change in changes:
        after = change.after
        times = [after.workload.arrival_s, change.before.start_s, after.start_s, after.end_s]
        cells = [f"{value:.3f}" if math.isfinite(value) else "" for value in times]
        lines.append(",".join([after.workload.name, after.workload.queue, *cells, str(after.preemptions)]))
    return "\n".join(lines) + "\n"


def _headline(problem: QueueProblem, changes: Sequence[StartChange]) -> str:
    never = sum(math.isinf(change.after.end_s) for change in changes)
    if not problem.has_change:
        starts_s = [change.after.start_s for change in changes if math.isfinite(change.after.start_s)]
        return sentences.starts_headline(len(changes), never, max(starts_s, default=0.0))
    earlier = sum(change.is_earlier for change in changes)
    later = sum(change.is_later for change in changes)
    newly_never = sum(math.isinf(item.after.end_s) and math.isfinite(item.before.end_s) for item in changes)
    return sentences.change_headline(earlier, later, len(changes) - earlier - later, newly_never)


def _metrics(changes: Sequence[StartChange]) -> dict[str, Metric]:
    before, after = [item.before for item in changes], [item.after for item in changes]
    never = sum(math.isinf(item.end_s) for item in after)
    return {
        "workloads": Metric(len(changes)),
        "earlier": Metric(sum(item.is_earlier for item in changes)),
        "later": Metric(sum(item.is_later for item in changes)),
        "never_start": Metric(never, target="0", ok=not never),
        "never_start_before": Metric(sum(math.isinf(item.end_s) for item in before)),
        "wait_mean_s": Metric(_mean([item.wait_s for item in after]), "s"),
        "wait_mean_before_s": Metric(_mean([item.wait_s for item in before]), "s"),
        "preemptions": Metric(sum(item.preemptions for item in after)),
        "preemptions_before": Metric(sum(item.preemptions for item in before)),
        "last_end_s": Metric(max((item.end_s for item in after if math.isfinite(item.end_s)), default=0.0), "s"),
    }


def _mean(values_s: Sequence[float]) -> float:
    finite = [value for value in values_s if math.isfinite(value)]
    return fmean(finite) if finite else 0.0


def _sort_by_change(changes: Sequence[StartChange], *, has_change: bool) -> list[StartChange]:
    if has_change:
        moved = [change for change in changes if change.is_earlier or change.is_later]
        return sorted(moved, key=lambda change: -abs(change.shift_s))
    return sorted(changes, key=lambda change: change.after.start_s)


def _row(problem: QueueProblem, change: StartChange) -> tuple[Cell, ...]:
    before, after = change.before, change.after
    return (
        after.workload.name,
        after.workload.queue,
        _format_time(problem.after.began_s + after.start_s),
        before.start_s if math.isfinite(before.start_s) else None,
        after.start_s if math.isfinite(after.start_s) else None,
        change.shift_s if math.isfinite(change.shift_s) else None,
        after.preemptions,
    )


def _format_time(epoch_s: float) -> str:
    if math.isinf(epoch_s):
        return "never"
    try:
        return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (OverflowError, ValueError):
        return "after the year 9999"


def _lines(
    problem: QueueProblem, changes: Sequence[StartChange], never: Sequence[StartChange]
) -> list[tuple[str, str]]:
    lines = [
        ("quota", sentences.quota_change_line(name, flavor, resource, *_format_quotas(resource, before, after)))
        for name, (flavor, resource), before, after in list_quota_changes(problem.before, problem.after)
    ]
    lines += [
        ("explained", _explain(problem, change))
        for change in changes
        if change.after.workload.name == problem.explained
    ]
    lines += [
        ("never starts", sentences.never_starts_line(change.after.workload.name, change.after.reason))
        for change in never[: sentences.MAX_REASONS]
    ]
    return [*lines, *(("input", note) for note in problem.notes)]


def _explain(problem: QueueProblem, change: StartChange) -> str:
    name, after = change.after.workload.name, change.after
    if math.isinf(after.start_s):
        return sentences.never_starts_line(name, after.reason)
    has_shift = problem.has_change and math.isfinite(change.shift_s)
    start = _format_time(problem.after.began_s + after.start_s)
    return sentences.start_line(name, start, change.shift_s if has_shift else None, after.preemptions)


def _format_quotas(resource: str, before: Quota, after: Quota) -> tuple[str, str]:
    return _format_quota(resource, before), _format_quota(resource, after)


def _format_quota(resource: str, quota: Quota) -> str:
    amounts = {
        "": quota.nominal, "borrowing at most": quota.borrowing_limit, "lending at most": quota.lending_limit,
    }  # fmt: skip
    scale = 1000 if resource == "cpu" else 1
    return ", ".join(f"{label} {amount / scale:g}".strip() for label, amount in amounts.items() if amount is not None)


def _decision(changes: Sequence[StartChange]) -> dict[str, object]:
    starts = [
        {"workload": change.after.workload.name, "start_s": round(change.after.start_s, 3)}
        for change in changes[:MAX_DECISIONS]
        if math.isfinite(change.after.start_s)
    ]
    return {"workloads": len(changes), "starts": starts}
