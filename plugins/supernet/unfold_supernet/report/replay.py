"""The reports of ``unfold plan --replay`` and ``unfold serve --replay``: one shape, simulated or measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from unfold_supernet._types import BoolArray, Task
from unfold_supernet.replay.baselines import FIXED_PREFIXES, FixedComparison, PolicyResult, compare_with_fixed
from unfold_supernet.replay.load import WINDOW_SLOS
from unfold_supernet.replay.problem import MeasuredReplay, ReplayProblem
from unfold_supernet.replay.simulated import SimulatedReplay
from unfold_supernet.report import sentences
from unfold_supernet.report.tables import describe_engine_plan, note_busy_measurement, note_delayed_members
from unfold_supernet.training.accuracy import compute_percentiles
from unfoldkit.api import Cell, Column, Figure, Metric, Report, Series, Table, Verdict, format_count, time_axis

WINDOWS = 60
"""Windows of the picture of a replay."""
MAX_MEMBERS = 5
"""Members with a line of their own."""


def build_simulated_report(replayed: SimulatedReplay) -> Report:
    """Build the report of a simulated trace, with the decision: the subnets that it needs, and the cached subgraph."""
    problem, reduced = replayed.problem, replayed.reduced
    report = _build_report(problem, "plan", replayed.results)
    decision: dict[str, Any] = {
        "policy": problem.options.policy,
        "slo_ms": problem.options.slo_s * 1e3,
        "on": problem.options.backend,
        "nets": replayed.needed,
        "attainment": reduced.outcome.attainment,
        "accuracy_served": reduced.accuracy,
    }
    lines = (*report.lines, ("subnets", sentences.state_needed_subnets(replayed.needed, reduced.outcome.attainment)))
    accelerated = replayed.accelerated
    if replayed.residency is not None:
        return _add_residency(replace(report, decision=decision, lines=report.lines), replayed)
    if accelerated is None:
        return replace(report, decision=decision, lines=lines)
    millijoules = accelerated.estimate_millijoules(replayed.results[0].outcome)
    text = sentences.state_accelerator_energy(
        millijoules, accelerated.decision["bytes"], accelerated.largest_bytes, accelerated.machine_name
    )
    return replace(
        report,
        decision=decision | {"buffer": accelerated.decision},
        metrics={**report.metrics, "energy_mj": Metric(millijoules, "mJ")},
        lines=(*lines, ("accelerator", text)),
    )


def _add_residency(report: Report, replayed: SimulatedReplay) -> Report:
    """Add which members stay in memory to the report of a replay."""
    problem, plan = replayed.problem, replayed.residency
    assert plan is not None and problem.memory_bytes is not None  # noqa: S101, PT018 - the caller checks
    names = [profile.name for profile in problem.profiles]
    pinned = [names[index] for index in plan.pinned]
    unused = [name for index, name in enumerate(names) if index not in plan.usable]
    planned = replayed.results[0]
    needed_bytes = sum(cost.bytes for cost in problem.costs)
    return replace(
        report,
        decision={**(report.decision or {}), "memory_bytes": problem.memory_bytes, "pinned": pinned, "unused": unused},
        metrics={**report.metrics, "loads": Metric(planned.loads or 0)},
        tables=(*report.tables, _tabulate_residency(replayed)),
        lines=(
            *report.lines,
            ("memory", sentences.state_memory_limit(needed_bytes, problem.memory_bytes)),
            ("residency", sentences.state_residency(pinned, unused, planned.loads or 0)),
        ),
    )


def _tabulate_residency(replayed: SimulatedReplay) -> Table:
    problem, plan = replayed.problem, replayed.residency
    assert plan is not None  # noqa: S101 - the caller checks
    usage = replayed.results[0].outcome.count_usage(problem.profiles)
    columns = (
        Column("member"),
        Column("memory", "MB", 1),
        Column("load", "ms", 1),
        Column("requests", "%", 1),
        Column("residency"),
    )
    rows: list[tuple[Cell, ...]] = []
    for index, (profile, cost) in enumerate(zip(problem.profiles, problem.costs, strict=True)):
        role = "pinned" if index in plan.pinned else "on demand" if index in plan.usable else "not used"
        share = usage.get(profile.name, 0.0) * 100
        rows.append((profile.name, cost.bytes / 1e6, cost.load_s * 1e3, share, role))
    return Table("residency", columns, tuple(rows))


def build_measured_report(replayed: MeasuredReplay) -> Report:
    """Build the report of a trace in real time, with the prediction and the slowdown of batches."""
    predicted, task = replayed.predicted, replayed.problem.task
    report = _build_report(replayed.problem, "serve", replayed.results)
    median, p99 = compute_percentiles(np.array(replayed.slowdowns or [1.0]))
    metrics = {
        "attainment_predicted": Metric(predicted.outcome.attainment),
        "accuracy_served_predicted": Metric(predicted.accuracy, "%"),
        "pace": Metric(median, "x", timed=True),
        "pace_p99": Metric(p99, "x", timed=True),
    }
    lines = (
        *report.lines,
        ("predicted", sentences.state_prediction(task, predicted.outcome.attainment, predicted.accuracy)),
        ("slowdown", sentences.state_slowdown(median, p99)),
    )
    return replace(report, metrics={**report.metrics, **metrics}, lines=lines)


def _build_report(problem: ReplayProblem, verb: str, results: Sequence[PolicyResult]) -> Report:
    spec_result, measured = results[0], verb == "serve"
    outcome, options = spec_result.outcome, problem.options
    fixed = [result for result in results if result.name.startswith(FIXED_PREFIXES)]
    comparison = compare_with_fixed(spec_result, fixed)
    is_met = outcome.attainment >= options.min_attainment
    count = len(problem.arrivals)
    rate = count / float(problem.arrivals[-1] - problem.arrivals[0])
    rate_text = sentences.describe_rate(rate, None if options.load is None else problem.rate_factor)
    return Report(
        kind="supernet",
        verb=verb,
        name=problem.name,
        verdict=Verdict.YES if is_met else Verdict.NO,
        question=sentences.ASK_FOR_REPLAY,
        headline=sentences.state_replay(problem.task, outcome.attainment, spec_result.accuracy, measured=measured),
        subtitle=(format_count(count, "request"), rate_text, _describe_deadlines(problem), spec_result.name),
        metrics=_collect_metrics(problem, results, comparison, timed=measured),
        tables=(_tabulate_policies(problem.task, results, timed=measured),),
        figures=(draw_members(problem, spec_result, timed=measured),),
        lines=_write_lines(problem, spec_result, comparison),
        notes=(*note_busy_measurement(problem.engines), *note_delayed_members(problem.delayed)),
        next="" if measured else "unfold serve SPEC --replay TRACE",
    )


def draw_members(problem: ReplayProblem, result: PolicyResult, *, timed: bool) -> Figure:
    """Draw how many requests a second each member answers over the trace, by arrival, and how many are too late."""
    outcome, arrivals = result.outcome, problem.arrivals - problem.arrivals[0]
    unit, unit_s = time_axis(float(arrivals[-1]))
    edges = np.linspace(0.0, float(arrivals[-1]) or 1.0, WINDOWS + 1)
    names = np.array([profile.name for profile in problem.profiles])
    counts = np.bincount(outcome.subnet[outcome.subnet >= 0], minlength=len(names))
    shown = [int(index) for index in np.argsort(-counts, kind="stable")[:MAX_MEMBERS] if counts[index]]
    masks = {str(names[index]): outcome.subnet == index for index in sorted(shown)}
    others = (outcome.subnet >= 0) & ~np.isin(outcome.subnet, shown)
    if others.any():
        masks[sentences.OTHER_MEMBERS] = others
    if not outcome.in_time.all():
        masks[sentences.TOO_LATE] = ~outcome.in_time
    starts = tuple((edges[:-1] / unit_s).tolist())

    def count_rate(mask: BoolArray) -> tuple[float, ...]:
        return tuple((np.histogram(arrivals[mask], edges)[0] / (edges[1] - edges[0])).tolist())

    series = tuple(Series(name, starts, count_rate(mask), "steps") for name, mask in masks.items())
    return Figure("members", sentences.MEMBERS_TITLE, unit, "requests/s", series, timed=timed)


def _collect_metrics(
    problem: ReplayProblem, results: Sequence[PolicyResult], comparison: FixedComparison, *, timed: bool
) -> dict[str, Metric]:
    spec_result, required = results[0], problem.options.min_attainment
    outcome = spec_result.outcome
    is_met = outcome.attainment >= required
    metrics = {"attainment": Metric(outcome.attainment, target=f"≥ {required:g}", ok=is_met, timed=timed)}
    if outcome.accurate_enough is not None:
        metrics["both_targets"] = Metric(outcome.satisfied_fraction, timed=timed)
    metrics |= {
        "accuracy_served": Metric(spec_result.accuracy, "%", timed=timed),
        "accuracy_gain_points": Metric(comparison.gain_points, "points", timed=timed),
        "attainment_ratio": Metric(comparison.attainment_ratio, "x", timed=timed),
    }
    for result in results[1:]:
        label = result.name.replace(" ", "_")
        if outcome.accurate_enough is not None and result.loads is not None:
            metrics[f"both_targets_{label}"] = Metric(result.outcome.satisfied_fraction, timed=timed)
        metrics[f"attainment_{label}"] = Metric(result.outcome.attainment, timed=timed)
        metrics[f"accuracy_served_{label}"] = Metric(result.accuracy, "%", timed=timed)
    return metrics


def _tabulate_policies(task: Task, results: Sequence[PolicyResult], *, timed: bool) -> Table:
    has_targets = results[0].outcome.accurate_enough is not None
    has_loads = any(result.loads is not None for result in results)
    columns = (
        Column("policy"),
        Column("in time", "%", 2, timed=timed),
        *((Column("in time and accurate enough", "%", 2, timed=timed),) if has_targets else ()),
        Column(f"mean {sentences.name_score(task)}", "%", 2, timed=timed),
        *(() if has_targets else (Column("dropped", "%", 2, timed=timed),)),
        Column("mean batch", "", 1, timed=timed),
        Column("model switches", timed=timed),
        *((Column("loads", timed=timed),) if has_loads else ()),
    )
    rows: list[tuple[Cell, ...]] = []
    for result in results:
        outcome = result.outcome
        served = int((outcome.subnet >= 0).sum())
        dropped = 100 - served / outcome.subnet.size * 100
        batch = served / max(1, outcome.batches)
        quality = (outcome.satisfied_fraction * 100, result.accuracy) if has_targets else (result.accuracy, dropped)
        loads = (result.loads,) if has_loads else ()
        rows.append((result.name, outcome.attainment * 100, *quality, batch, int(outcome.switches), *loads))
    return Table("policies", columns, tuple(rows), accent=0)


def _describe_deadlines(problem: ReplayProblem) -> str:
    if problem.targets is None:
        slo_ms = problem.options.slo_s * 1e3
        return sentences.describe_deadlines(slo_ms, slo_ms)
    deadlines = problem.targets.deadlines_s
    return sentences.describe_deadlines(float(deadlines.min()) * 1e3, float(deadlines.max()) * 1e3)


def _write_lines(
    problem: ReplayProblem, spec_result: PolicyResult, comparison: FixedComparison
) -> tuple[tuple[str, str], ...]:
    options = problem.options
    lines = [
        ("equal attainment", sentences.state_gain_at_equal_attainment(comparison.gain_points)),
        ("equal accuracy", sentences.state_ratio_at_equal_accuracy(comparison.attainment_ratio)),
    ]
    if problem.targets is not None:
        best = max(profile.accuracy_fraction for profile in problem.profiles)
        above_best = float((problem.targets.min_accuracies > best).mean())
        text = sentences.state_targets(spec_result.outcome.satisfied_fraction, above_best, best)
        lines.append(("targets", text))
    if options.load is not None:
        text = sentences.state_load(problem.rate_factor, options.load, WINDOW_SLOS * options.slo_s * 1e3)
        lines.append(("load", text))
    if problem.engines is not None:
        lines += describe_engine_plan(problem.engines)
    return tuple(lines)
