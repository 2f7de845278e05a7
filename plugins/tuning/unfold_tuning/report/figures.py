"""Figures of a plan (the frontier, the cluster over time) and of a run (trials on nodes, learning curves)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from unfold_tuning.executor.execution import ExecutionConfig, RunOutcome
from unfold_tuning.job.problem import TrainableConfig
from unfold_tuning.planner.baselines import Goal, simulate_static_clusters
from unfold_tuning.planner.planner import Candidate, Selection
from unfold_tuning.planner.sensitivity import DeadlinePoint, build_cost_steps
from unfold_tuning.simulator.plan_cost import SimulatedPlan
from unfold_tuning.trial.ledger import Ledger
from unfoldkit.api import Figure, Series, format_percent, time_axis

MAX_NAMED_TRIALS = 6
"""Trials with their own learning curve; the colours do not distinguish more."""


def draw_frontier(
    candidates: Sequence[Candidate], selected: Selection, goal: Goal, points: Sequence[DeadlinePoint]
) -> Figure:
    """Draw the cost of the cheapest plan found, the greedy and the best static cluster by deadline."""
    confidence = goal.confidence
    found_steps = build_cost_steps([selected.plan, *(plan for item in candidates for plan in item.plans)], confidence)
    static = build_cost_steps(
        [plan for item in candidates for plan in simulate_static_clusters(item.model)], confidence
    )
    greedy = [
        (point.greedy.compute_guaranteed_seconds(confidence), point.greedy.mean_cost_usd)
        for point in points
        if point.greedy
    ]
    last_s = max(seconds for seconds, _ in (*found_steps, *static, *greedy))
    unit, unit_s = time_axis(last_s)
    series = (
        _build_series("best static", _extend_steps(static, last_s), "steps", unit_s),
        _build_series("greedy (RubberBand)", greedy, "points", unit_s),
        _build_series(
            "cheapest plan found",
            _extend_steps(found_steps, last_s),
            "steps",
            unit_s,
        ),
        _build_series("this plan, at its deadline", [(goal.deadline_s, selected.plan.mean_cost_usd)], "points", unit_s),
    )
    title = f"Cost by deadline, guaranteed with {format_percent(confidence)}"
    return Figure("curve", title, f"deadline {unit}", "cost $", series, log_x=True, log_y=True)


def _extend_steps(steps: Sequence[tuple[float, float]], last_s: float) -> list[tuple[float, float]]:
    return [*steps, (last_s, steps[-1][1])] if steps else []


def _build_series(
    name: str, points: Sequence[tuple[float, float]], style: Literal["steps", "points"], unit_s: float
) -> Series:
    return Series(name, tuple(x / unit_s for x, _ in points), tuple(y for _, y in points), style)


def draw_cluster(plan: SimulatedPlan) -> Figure:
    """Draw the instances that a plan holds over time."""
    ends = [0.0, *plan.ends.mean(axis=1).tolist()]
    instances = [float(allocation.instances) for allocation in plan.plan]
    unit, unit_s = time_axis(ends[-1])
    series = Series("instances", tuple(end / unit_s for end in ends), (*instances, instances[-1]), "steps")
    return Figure("cluster", "Instances held over time", unit, "instances", (series,))


def draw_gantt(config: ExecutionConfig, ledger: Ledger, outcome: RunOutcome) -> Figure:
    """Draw each trial's time on a node as bars: a lane per accelerator, a colour per stage."""
    accelerators = config.machine.accelerators
    first_lane = {lifetime.id: index * accelerators for index, lifetime in enumerate(ledger.list_lifetimes())}
    bars: dict[int, list[tuple[float, float, int]]] = {}
    free_at: dict[int, float] = {}
    for part in ledger.list_parts():
        lanes = range(first_lane[part.node], first_lane[part.node] + accelerators)
        for lane in _select_free_lanes(free_at, lanes, min(part.workers, accelerators), part.began):
            free_at[lane] = part.ended if part.ended is not None else outcome.ended
            bar = (part.began - outcome.began, free_at[lane] - outcome.began, lane + 1)
            bars.setdefault(part.stage, []).append(bar)
    series = tuple(_build_bars(f"stage {stage + 1}", rows) for stage, rows in sorted(bars.items()))
    y = "accelerator" if accelerators == 1 else f"accelerator, {accelerators} of each node"
    return Figure("gantt", "Trials on nodes, one bar each", "seconds", y, series, timed=True)


def _select_free_lanes(free_at: dict[int, float], lanes: Sequence[int], count: int, now: float) -> list[int]:
    """Select lanes of a node that are free by now, lowest first."""
    order = sorted(lanes, key=lambda lane: (free_at.get(lane, 0.0) > now + 1e-6, lane))
    return order[:count]


def _build_bars(name: str, rows: Sequence[tuple[float, float, int]]) -> Series:
    x = tuple(moment for began, ended, _ in rows for moment in (began, ended))
    return Series(name, x, tuple(float(lane) for _, _, lane in rows for _ in range(2)), "segments")


def draw_learning_curves(ledger: Ledger, trainable: TrainableConfig) -> Figure:
    """Draw the learning curves: those of the trials that ran furthest by name, the others together."""
    scores: dict[int, list[tuple[int, float]]] = {}
    for step in ledger.list_checkpoints():
        if not math.isinf(step.metric):
            scores.setdefault(step.trial, []).append((step.iters, step.metric))
    order = sorted(scores, key=lambda trial: (-scores[trial][-1][0], -scores[trial][-1][1], trial))
    curves = {trial: [(iters, trainable.display_metric(score)) for iters, score in scores[trial]] for trial in order}
    lines = [trial for trial in order if len(curves[trial]) > 1]
    series = [_build_curve(f"trial {trial}", curves[trial], "line") for trial in sorted(lines[:MAX_NAMED_TRIALS])]
    unnamed = [point for trial in sorted(lines[MAX_NAMED_TRIALS:]) for point in _to_segments(curves[trial])]
    single = [curves[trial][0] for trial in sorted(order) if len(curves[trial]) == 1]
    series += [_build_curve("others", unnamed, "segments")] if unnamed else []
    series += [_build_curve("stopped at their first checkpoint", single, "points")] if single else []
    return Figure("learning", "Learning curves", "iterations", trainable.metric_name, tuple(series))


def _build_curve(
    name: str, points: Sequence[tuple[int, float]], style: Literal["line", "points", "segments"]
) -> Series:
    return Series(name, tuple(float(iters) for iters, _ in points), tuple(metric for _, metric in points), style)


def _to_segments(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Convert a curve to the ends of its segments."""
    return [point for pair in pairwise(points) for point in pair]
