"""The report of a plan: metrics, tables, figures and decision of the replay under the policies and without any."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from unfold_placement.core.types import DOWN, UP, NodeChange, Task
from unfold_placement.report import sentences
from unfold_placement.simulation.metrics import (
    NodeLosses,
    Piece,
    count_running,
    count_waiting,
    list_pieces,
    waited_seconds,
)
from unfold_placement.simulation.replay import Replay, Screening, Solution, WaitExplanation
from unfold_placement.simulation.simulator import SimulationResult
from unfold_placement.simulation.starvation import Starvation
from unfoldkit.api import (
    Bar,
    Cell,
    Column,
    Figure,
    Marker,
    Metric,
    Panel,
    Report,
    Series,
    StepArea,
    Table,
    Timeline,
    Verdict,
    format_count,
    time_axis,
)
from unfoldkit.io.tables import escape_formula

REPLAY_COLUMNS = (
    Column("policy"),
    Column("makespan", "s", 1),
    Column("mean wait", "s", 1),
    Column("p95 wait", "s", 1),
    Column("fairness", "", 3),
    Column("utilisation", "%", 1),
    Column("fragmentation", "%", 1),
    Column("violations"),
)
EXPLANATION_COLUMNS = (
    Column("requirement"),
    Column("set by"),
    Column("available on"),
    Column("missing on"),
    Column("since", "s", 1),
)
BASELINE = "FIFO, no policy"
MAX_SERIES = 6
"""Groups of tasks that the timeline distinguishes."""
MAX_PLACEMENTS = 200
"""The decision lists the placements of so many tasks; more are counted by node."""
MAX_BARS = 2000
"""Runs of tasks of a timeline; a report with more would be too large to open."""
MAX_JOBS = 24
"""Jobs that have a lane of their own."""
MAX_WAITS = 8
"""Tasks that never start; a timeline shows how long so many of them wait."""
QUANTILES = 100
"""Steps of the distribution of waits."""


def plan_report(screening: Screening, solution: Solution) -> Report:
    """Report a replay under the policies next to one without; a broken rule or a task that never runs means no."""
    policy, baseline = solution.policy, solution.baseline
    problem = screening.problem
    starvation = solution.starvation
    starves = starvation is not None and not starvation.is_by_design
    is_good = not policy.result.stuck and not policy.violations and not screening.reasons and not starves
    rows = (_replay_row(problem.policy_names, policy), _replay_row(BASELINE, baseline))
    tables = [Table("replay", REPLAY_COLUMNS, rows, accent=0)]
    if solution.explanation and solution.explanation.reasons:
        tables.append(_explanation_table(solution.explanation))
    return Report(
        kind="placement",
        verb="plan",
        name=problem.name,
        verdict=Verdict.YES if is_good else Verdict.NO,
        question=sentences.ASK_FOR_PLAN,
        headline=_headline(policy, baseline, screening.reasons, starvation if starves else None),
        subtitle=_subtitle(problem.policy_names, policy.result),
        metrics={**plan_metrics(policy, baseline, screening.reasons), "starving": Metric(int(starves), ok=not starves)},
        tables=tuple(tables),
        figures=(
            *gantt_figures(
                policy.result,
                starvation.task if starves and starvation is not None else None,
                policy.result.node_changes,
            ),
            *draw_jobs(policy.result),
            draw_queue(policy.result, baseline.result),
            wait_figure(policy.result, baseline.result),
        ),
        lines=_lines(screening, solution),
        next="unfold plan SPEC --out report.html",
        decision=_decision(policy.result),
    )


def plan_metrics(policy: Replay, baseline: Replay, reasons: Mapping[str, str]) -> dict[str, Metric]:
    """Return the metrics of a replay, and under ``fifo_`` those of the same workload without policies.

    Args:
        policy: The replay under the policies.
        baseline: The replay without policies.
        reasons: Why tasks that were left out can never run, by name.
    """
    figures, result = policy.metrics, policy.result
    return {
        "violations": Metric(len(policy.violations), target="0", ok=not policy.violations),
        "waiting_for_ever": Metric(len(result.stuck), target="0", ok=not result.stuck),
        "unplaceable": Metric(len(reasons), target="0", ok=not reasons),
        "makespan_s": Metric(figures.makespan_s, "s"),
        "wait_mean_s": Metric(figures.wait_mean_s, "s"),
        "wait_p95_s": Metric(figures.wait_p95_s, "s"),
        "fairness": Metric(figures.fairness, label="fairness (Jain's index, at most 1)"),
        "utilisation": Metric(figures.utilisation, label=f"{figures.bottleneck} in use until the last start"),
        "fragmentation": Metric(figures.fragmentation, label=f"free {figures.bottleneck} that no typical task can use"),
        "preemptions": Metric(figures.preemptions),
        "restarts": Metric(figures.restarts),
        "lost_gpu_hours": Metric(figures.lost_hours.get("gpu", 0.0), "h", label="GPU time lost"),
        "lost_cpu_hours": Metric(figures.lost_hours.get("cpu", 0.0), "h", label="CPU time lost"),
        **_node_loss_metrics(figures.node_losses),
        "refused": Metric(len(result.rejections)),
        "deadlines_missed": Metric(figures.missed_deadlines),
        "fifo_makespan_s": Metric(baseline.metrics.makespan_s, "s"),
        "fifo_wait_mean_s": Metric(baseline.metrics.wait_mean_s, "s"),
        "fifo_violations": Metric(len(baseline.violations)),
        "fifo_fairness": Metric(baseline.metrics.fairness),
        "decisions": Metric(result.decisions),
        "decisions_per_second": Metric(result.decisions / max(policy.elapsed_s, 1e-9), "/s", timed=True),
        "replay_seconds": Metric(policy.elapsed_s, "s", timed=True),
    }


def _node_loss_metrics(losses: NodeLosses | None) -> dict[str, Metric]:
    if losses is None:
        return {}
    return {
        "node_losses": Metric(losses.count),
        "stopped_by_node_loss": Metric(losses.stopped),
        "node_loss_gpu_hours": Metric(losses.lost_hours.get("gpu", 0.0), "h"),
        "node_loss_cpu_hours": Metric(losses.lost_hours.get("cpu", 0.0), "h"),
    }


def format_placements(result: SimulationResult, excluded: Sequence[Task] = ()) -> str:
    """Return the placements as CSV: task, node, arrival, start and end in seconds; empty where a task never ran.

    Tasks that were ``excluded`` from the replay come last.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("task", "node", "arrival_s", "start_s", "end_s"))
    for task, node_row, start, end in zip(result.tasks, result.node_rows, result.start_s, result.end_s, strict=True):
        times = [f"{value:.6f}" if math.isfinite(value) else "" for value in (task.arrival, start, end)]
        node = result.nodes[node_row].name if node_row >= 0 else ""
        writer.writerow((escape_formula(task.name), escape_formula(node), *times))
    writer.writerows((escape_formula(task.name), "", f"{task.arrival:.6f}", "", "") for task in excluded)
    return stream.getvalue()


def gantt_figures(
    result: SimulationResult,
    starving: Task | None = None,
    changes: Sequence[NodeChange] = (),
    groups: Mapping[str, str] | None = None,
) -> tuple[Timeline, ...]:
    """Show which tasks run on which node and when, in the colours of their jobs; nothing for thousands of tasks.

    A task has a bar for each run, also for those that were stopped. A lane above the nodes shows the waits of tasks
    that never start and of the ``starving`` one, with a mark where it still waits as the last other task arrives.
    Markers show when nodes are away by ``changes``. ``groups`` names the colour of each task instead.
    """
    pieces = list_pieces(result)
    if max(len(pieces), len(result.tasks)) > MAX_BARS:
        return ()
    ends = [end for end in result.end_s.tolist() if math.isfinite(end)]
    unit, unit_s = time_axis(max(ends, default=0.0))
    group_of = groups or {task.name: name for name, tasks in _group_tasks(result.tasks).items() for task in tasks}
    bars = tuple(
        Bar(
            lane=result.nodes[piece.node_row].name,
            start=piece.start_s / unit_s,
            end=piece.end_s / unit_s,
            group=group_of[result.tasks[piece.row].name],
            name=result.tasks[piece.row].name,
        )
        for piece in sorted(pieces, key=lambda piece: piece.row)
    )
    lanes = tuple(dict.fromkeys(node.name for node in result.nodes))
    last_s = max([*ends, *(task.arrival for task in result.stuck)], default=0.0)
    waits = {task.name: (task, last_s, last_s, sentences.NEVER_STARTS) for task in result.stuck[:MAX_WAITS]}
    if starving is not None:
        started_s = dict(zip([task.name for task in result.tasks], result.start_s.tolist(), strict=True))[starving.name]
        until_s = min(started_s, last_s)
        latest_s = max((task.arrival for task in result.tasks if task is not starving), default=until_s)
        mark_s = latest_s if starving.arrival < latest_s < until_s else until_s
        waits.setdefault(starving.name, (starving, until_s, mark_s, sentences.STARVES))
    # no node has this name
    lane = sentences.WAITING + " " * lanes.count(sentences.WAITING)
    waiting = [
        Bar(lane=lane, start=start_s / unit_s, end=end_s / unit_s, group=group_of[task.name], name=name)
        for task, until_s, mark_s, _ in waits.values()
        # the name stands before the mark
        for start_s, end_s, name in ((task.arrival, mark_s, task.name), (mark_s, until_s, ""))
        if start_s < end_s or name
    ]
    return (
        Timeline(
            name="gantt",
            title=sentences.GANTT_TITLE,
            unit=unit,
            lanes=(lane, *lanes) if waits else lanes,
            bars=(*waiting, *bars),
            markers=(
                *(Marker(word, mark_s / unit_s, lane=lane) for _, _, mark_s, word in waits.values()),
                *_mark_lost_nodes(changes, unit_s),
            ),
        ),
    )


def _mark_lost_nodes(changes: Sequence[NodeChange], unit_s: float) -> Iterator[Marker]:
    for change in changes:
        if change.change == DOWN:
            returns = [other.at for other in changes if (other.node, other.change) == (change.node, UP)]
            back_s = min((at_s for at_s in returns if at_s > change.at), default=None)
            end = back_s / unit_s if back_s is not None else None
            yield Marker(sentences.NODE_LOST, change.at / unit_s, end, lane=change.node)


def draw_jobs(result: SimulationResult) -> tuple[Timeline, ...]:
    """Show when each job waits and when it runs; nothing for one job, or for many.

    A job runs from the start of its first task to the end of its last one, and waits in between while preemptions have
    stopped all of it. A job that never starts waits until the last event.
    """
    jobs: dict[str, list[int]] = {}
    for row, task in enumerate(result.tasks):
        jobs.setdefault(task.job or task.name, []).append(row)
    pieces: dict[int, list[Piece]] = {}
    for piece in list_pieces(result):
        pieces.setdefault(piece.row, []).append(piece)
    if not 1 < len(jobs) <= MAX_JOBS:
        return ()
    ends = [end for end in result.end_s.tolist() if math.isfinite(end)]
    last_s = max([*ends, *(task.arrival for task in result.tasks)], default=0.0)
    unit, unit_s = time_axis(last_s)
    waits, runs = [], []
    for job, rows in jobs.items():
        arrival_s = min(result.tasks[row].arrival for row in rows)
        spans = _running_spans([piece for row in rows for piece in pieces.get(row, ())])
        edges_s = [arrival_s, *(time_s for span in spans for time_s in span)] if spans else [arrival_s, last_s]
        for start_s, end_s in zip(edges_s[::2], edges_s[1::2], strict=False):
            if end_s > start_s:
                waits.append(Bar(lane=job, start=start_s / unit_s, end=end_s / unit_s, group=sentences.WAITS))
        runs += [Bar(lane=job, start=a / unit_s, end=b / unit_s, group=sentences.RUNS) for a, b in spans]
    return (Timeline(name="jobs", title=sentences.JOBS_TITLE, unit=unit, lanes=tuple(jobs), bars=(*runs, *waits)),)


def _running_spans(pieces: Sequence[Piece]) -> list[tuple[float, float]]:
    """Return from when to when (s) a job runs: gaps in which no task of it awaits another run do not count."""
    spans: list[tuple[float, float]] = []
    was_stopped, latest_s = False, -math.inf
    for piece in sorted(pieces, key=lambda piece: piece.start_s):
        if spans and (piece.start_s <= spans[-1][1] or not was_stopped):
            spans[-1] = spans[-1][0], max(spans[-1][1], piece.end_s)
        else:
            spans.append((piece.start_s, piece.end_s))
        # of those that end last at one instant, one that was stopped is enough
        if piece.end_s == spans[-1][1]:
            was_stopped = not piece.has_ended or (was_stopped and piece.end_s == latest_s)
            latest_s = piece.end_s
    return spans


def draw_queue(policy: SimulationResult, baseline: SimulationResult) -> StepArea:
    """Draw the waiting tasks over time with and without the policies, and the running ones.

    Running tasks are those of each job, or of each user or role where there are many jobs.
    """
    waiting = {"policy": count_waiting(policy), BASELINE: count_waiting(baseline)}
    running = {name: count_running(policy, tasks) for name, tasks in _group_tasks(policy.tasks).items()}
    unit, unit_s = time_axis(max(times[-1] for times, _ in (*waiting.values(), *running.values())))
    return StepArea(
        name="timeline",
        title=sentences.QUEUE_TITLE,
        unit=unit,
        panels=(
            Panel("waiting tasks", _build_levels(waiting, unit_s)),
            Panel("running tasks", _build_levels(running, unit_s)),
        ),
    )


def _build_levels(counts: Mapping[str, tuple[Sequence[float], Sequence[float]]], unit_s: float) -> tuple[Series, ...]:
    return tuple(
        Series(name, tuple(time / unit_s for time in times), tuple(levels), "steps")
        for name, (times, levels) in counts.items()
    )


def wait_figure(policy: SimulationResult, baseline: SimulationResult) -> Figure:
    """Draw the distribution of waits under the policies and without any."""
    waits = (("policy", _sorted_waits(policy)), (BASELINE, _sorted_waits(baseline)))
    unit, unit_s = time_axis(max((waits_s[-1] for _, waits_s in waits if waits_s), default=0.0))
    series = tuple(_distribution_series(name, waits_s, unit_s) for name, waits_s in waits)
    return Figure("waits", "Share of tasks that waited no longer than this", f"wait {unit}", "share", series)


def _sorted_waits(result: SimulationResult) -> list[float]:
    waits_s = waited_seconds(result, list_pieces(result))
    return sorted(waits_s[np.isfinite(result.end_s)].tolist())


def _distribution_series(name: str, waits_s: Sequence[float], unit_s: float) -> Series:
    steps = range(QUANTILES + 1) if waits_s else ()
    indices = sorted({round(step * (len(waits_s) - 1) / QUANTILES) for step in steps})
    times = tuple(waits_s[index] / unit_s for index in indices)
    return Series(name, times, tuple((index + 1) / len(waits_s) for index in indices), "steps")


def _group_tasks(tasks: Sequence[Task]) -> dict[str, list[Task]]:
    for field in ("job", "user", "role"):
        groups = dict.fromkeys(task.key(field) for task in tasks)
        if len(groups) <= MAX_SERIES:
            return {name or "tasks": [task for task in tasks if task.key(field) == name] for name in groups}
    return {"tasks": list(tasks)}


def _replay_row(name: str, replay: Replay) -> tuple[Cell, ...]:
    metrics = replay.metrics
    return (
        name,
        metrics.makespan_s,
        metrics.wait_mean_s,
        metrics.wait_p95_s,
        metrics.fairness,
        metrics.utilisation * 100,
        metrics.fragmentation * 100,
        len(replay.violations),
    )


def _subtitle(policy_names: str, result: SimulationResult) -> tuple[str, ...]:
    jobs = len({task.job for task in result.tasks})
    counts = ((len(result.nodes), "node"), (len(result.tasks), "task"), (jobs, "job"))
    return (*(format_count(count, noun) for count, noun in counts), policy_names)


def _headline(policy: Replay, baseline: Replay, reasons: Mapping[str, str], starvation: Starvation | None) -> str:
    stuck = policy.result.stuck
    if stuck:
        return sentences.stuck_headline(len(stuck), stuck[0].name)
    if policy.violations:
        return sentences.violation_headline(len(policy.violations), policy.violations[0])
    if starvation is not None:
        return sentences.starvation_headline(starvation.task.name)
    placed = len(policy.result.tasks) - len(policy.result.rejections)
    makespan_s = policy.metrics.makespan_s
    if reasons:
        return sentences.unplaceable_headline(len(reasons), next(iter(reasons)), placed, makespan_s)
    violations, rejected = len(baseline.violations), len(policy.result.rejections)
    return sentences.success_headline(placed, makespan_s, violations, baseline.metrics.makespan_s, rejected)


def _lines(screening: Screening, solution: Solution) -> tuple[tuple[str, str], ...]:
    policy, baseline = solution.policy, solution.baseline
    lines = [
        ("bottleneck", sentences.bottleneck_line(policy.metrics.bottleneck, policy.metrics.utilisation)),
        ("no policy", sentences.baseline_line(baseline.violations[0] if baseline.violations else "")),
    ]
    if solution.starvation is not None:
        lines.append(("starvation", _starvation_line(solution.starvation)))
    if policy.metrics.preemptions:
        lost = policy.metrics.lost_hours
        if policy.metrics.node_losses is not None:
            by_nodes = policy.metrics.node_losses.lost_hours
            lost = {kind: hours - by_nodes.get(kind, 0.0) for kind, hours in lost.items()}
        lines.append(("preemptions", sentences.preemption_line(policy.metrics.preemptions, lost)))
    if losses := policy.metrics.node_losses:
        lines.append(("node loss", sentences.node_loss_line(losses.count, losses.stopped, losses.lost_hours)))
    if policy.unaudited:
        lines.append(("not audited", sentences.unaudited_line(policy.unaudited)))
    lines += [("input", note) for note in screening.problem.notes]
    lines += [("never runs", line) for line in sentences.unplaceable_lines(screening.reasons)]
    rejections = policy.result.rejections
    if rejections:
        name, reason = next(iter(rejections.items()))
        lines.append(("rejected", sentences.rejection_line(len(rejections), name, reason)))
    if solution.explanation:
        task, dominant = solution.explanation.task.name, solution.explanation.dominant
        lines.append(("explained", sentences.explanation_line(task, solution.explanation.at_s, dominant)))
    return tuple(lines)


def _starvation_line(starvation: Starvation) -> str:
    if starvation.is_by_design:
        return sentences.class_starvation_line(starvation.task.name)
    waits = tuple(zip(starvation.waits_s, starvation.lengths_s, strict=True))
    return sentences.starvation_line(starvation.task.name, waits[0], waits[-1])


def _explanation_table(explanation: WaitExplanation) -> Table:
    rows = tuple(
        (reason.requirement, reason.set_by, reason.available_on or "nowhere", reason.missing_on, reason.since_s)
        for reason in explanation.reasons
    )
    title = sentences.explanation_title(explanation.task.name, explanation.at_s)
    return Table(title, EXPLANATION_COLUMNS, rows)


def _decision(result: SimulationResult) -> dict[str, object]:
    count = len(result.tasks)
    if count > MAX_PLACEMENTS:
        nodes = Counter(result.nodes[node_row].name for node_row in result.node_rows if node_row >= 0)
        return {"tasks": count, "by_node": dict(nodes)}
    placements = [
        {"task": task.name, "node": result.nodes[node_row].name, "start_s": round(float(start), 6)}
        for task, node_row, start in zip(result.tasks, result.node_rows, result.start_s, strict=True)
        if node_row >= 0
    ]
    return {"tasks": count, "placements": placements}
