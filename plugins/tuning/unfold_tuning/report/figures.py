"""Figures of a plan (the frontier, the cluster over time) and of a run (trials on nodes, learning curves)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

from unfold_tuning.executor.inputs_and_outcome import ExecutionConfig
from unfold_tuning.job.problem import TrainableConfig
from unfold_tuning.job.schedule import Stage
from unfold_tuning.planner.baselines import Goal, simulate_static_clusters
from unfold_tuning.planner.planner import Candidate, Selection
from unfold_tuning.planner.sensitivity import DeadlinePoint, build_cost_steps
from unfold_tuning.report.sentences import describe_stage
from unfold_tuning.simulator.plan_cost import SimulatedPlan, compute_quantile
from unfold_tuning.trial.ledger import Ledger
from unfoldkit.api import Bar, Figure, Marker, Panel, Series, StepArea, Timeline, format_percent, time_axis

MAX_BARS = 2000
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
        _build_series("cheapest plan found", _extend_steps(found_steps, last_s), "steps", unit_s),
        _build_series("greedy (RubberBand)", greedy, "points", unit_s),
        _build_series("best static", _extend_steps(static, last_s), "steps", unit_s),
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


def draw_cluster(plan: SimulatedPlan, goal: Goal) -> StepArea:
    """Draw the instances that a plan holds over time, with the deadline and when most runs end."""
    ends = [0.0, *plan.ends.mean(axis=1).tolist()]
    instances = [float(allocation.instances) for allocation in plan.plan]
    unit, unit_s = _select_axis(plan, goal)
    series = Series("instances", tuple(end / unit_s for end in ends), (*instances, instances[-1]), "steps")
    return StepArea(
        name="cluster",
        title="Instances held over time",
        unit=unit,
        panels=(Panel("instances", (series,)),),
        markers=_mark_end(plan, goal.deadline_s, unit_s),
    )


def draw_held_instances(
    config: ExecutionConfig, ledger: Ledger, predicted: SimulatedPlan, began: float, ended: float
) -> StepArea:
    """Draw the instances that a run holds over time, beside those of its plan, which has the deadline and the end.

    Args:
        config: The run.
        ledger: Its ledger.
        predicted: The simulated runs of its plan.
        began: Wall time of the start.
        ended: Wall time up to which the run is drawn.
    """
    deadline_s = math.inf if config.deadline_s is None else config.deadline_s
    ends = [0.0, *predicted.ends.mean(axis=1).tolist()]
    known = [ended - began, ends[-1], *([deadline_s] if math.isfinite(deadline_s) else [])]
    unit, unit_s = time_axis(max(known))
    held = list(_count_instances(ledger, began, ended))
    planned = [float(allocation.instances) for allocation in predicted.plan]
    series = (
        _build_series("held", held, "steps", unit_s),
        _build_series("planned", list(zip(ends, [*planned, planned[-1]], strict=True)), "steps", unit_s),
    )
    return StepArea(
        name="cluster",
        title="Instances held over time",
        unit=unit,
        panels=(Panel("instances", series),),
        markers=_mark_end(predicted, deadline_s, unit_s, "plan: "),
        timed=True,
    )


def _count_instances(ledger: Ledger, began: float, ended: float) -> Iterator[tuple[float, float]]:
    """Yield the seconds since the start at which the number of instances changes, and the number from then on."""
    changes = {0.0: 0, ended - began: 0}
    for lifetime in ledger.list_lifetimes():
        for moment, change in ((lifetime.since, 1), (lifetime.until, -1)):
            if moment is not None and moment <= ended:
                second = max(0.0, moment - began)
                changes[second] = changes.get(second, 0) + change
    count = 0
    for second, change in sorted(changes.items()):
        count += change
        yield second, float(count)


def draw_trials(plan: SimulatedPlan, stages: Sequence[Stage], goal: Goal) -> tuple[Timeline, ...]:
    """Draw the trials of each stage in lanes, one per trial that runs at a time, by the mean times of the plan.

    A job of thousands of trials has no such figure, which would be too large to open.
    """
    if sum(stage.trials for stage in stages) > MAX_BARS:
        return ()
    unit, unit_s = _select_axis(plan, goal)
    ends = [0.0, *(plan.ends.mean(axis=1) / unit_s).tolist()]
    bars = []
    for index, (stage, allocation) in enumerate(zip(stages, plan.plan, strict=True)):
        waves = allocation.count_waves(stage.trials)
        length = (ends[index + 1] - ends[index]) / waves
        group = describe_stage(index + 1, stage.trials, allocation.workers)
        for trial in range(stage.trials):
            wave, lane = divmod(trial, allocation.slots)
            start = ends[index] + wave * length
            bars.append(Bar(lane=f"slot {lane + 1}", start=start, end=start + length, group=group))
    count = max((min(stage.trials, item.slots) for stage, item in zip(stages, plan.plan, strict=True)), default=0)
    timeline = Timeline(
        name="trials",
        title="Trials that run at a time, stage by stage",
        unit=unit,
        lanes=tuple(f"slot {lane + 1}" for lane in range(count)),
        bars=tuple(bars),
        markers=_mark_end(plan, goal.deadline_s, unit_s),
    )
    return (timeline,)


def _select_axis(plan: SimulatedPlan, goal: Goal) -> tuple[str, float]:
    return time_axis(max(float(plan.ends.mean(axis=1)[-1]), goal.deadline_s if math.isfinite(goal.deadline_s) else 0.0))


def _mark_end(plan: SimulatedPlan, deadline_s: float, unit_s: float, origin: str = "") -> tuple[Marker, ...]:
    """Mark the deadline, and the interval between the quantiles of the end of a run that leave 5 % on each side."""
    early, late = (compute_quantile(plan.seconds, level) / unit_s for level in (0.05, 0.95))
    end = Marker(f"{origin}90 % of runs end here", early, late)
    return (Marker("deadline", deadline_s / unit_s), end) if math.isfinite(deadline_s) else (end,)


def draw_gantt(config: ExecutionConfig, ledger: Ledger, began: float, ended: float) -> Timeline:
    """Draw each trial's time on a node as bars: a lane per accelerator, a colour per stage.

    Args:
        config: The run.
        ledger: Its ledger.
        began: Wall time of the start.
        ended: Wall time up to which the run is drawn.
    """
    accelerators = config.machine.accelerators
    first_lane = {lifetime.id: index * accelerators for index, lifetime in enumerate(ledger.list_lifetimes())}
    bars: list[Bar] = []
    free_at: dict[int, float] = {}
    for part in ledger.list_parts():
        lanes = range(first_lane[part.node], first_lane[part.node] + accelerators)
        for lane in _select_free_lanes(free_at, lanes, min(part.workers, accelerators), part.began):
            free_at[lane] = part.ended if part.ended is not None else ended
            bars.append(
                Bar(
                    lane=_name_lane(lane, accelerators),
                    start=part.began - began,
                    end=free_at[lane] - began,
                    group=f"stage {part.stage + 1}",
                    name=f"trial {part.trial}",
                )
            )
    count = len(first_lane) * accelerators
    return Timeline(
        name="gantt",
        title="Trials on nodes, one bar each",
        unit="s",
        lanes=tuple(_name_lane(lane, accelerators) for lane in range(count)),
        bars=tuple(bars),
        timed=True,
    )


def _name_lane(lane: int, accelerators: int) -> str:
    node, accelerator = divmod(lane, accelerators)
    return f"node {node + 1}" if accelerators == 1 else f"node {node + 1}, accel. {accelerator + 1}"


def _select_free_lanes(free_at: dict[int, float], lanes: Sequence[int], count: int, now: float) -> list[int]:
    """Select lanes of a node that are free by now, lowest first."""
    order = sorted(lanes, key=lambda lane: (free_at.get(lane, 0.0) > now + 1e-6, lane))
    return order[:count]


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
