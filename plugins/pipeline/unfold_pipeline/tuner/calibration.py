"""Calibration of the table rule on the planned traffic, and the rule that a running service applies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from unfold_pipeline._types import FloatArray
from unfold_pipeline.estimator.replica_schedule import ScalingState
from unfold_pipeline.estimator.simulator import simulate_targets
from unfold_pipeline.problem.problem import TunerSettings
from unfold_pipeline.tuner.envelope_rule import EnvelopeTrigger, ScalingContext, build_trigger
from unfold_pipeline.tuner.replica_table import ReplicaTable
from unfold_pipeline.tuner.table_rule import TableRule, build_context_table, build_table_rule, compute_table_targets

MAX_MISS_RATE = 0.003
MARGINS = (1.0, 1.15, 1.3, 1.5)
HOLDS_S = (60.0, 120.0)
ScalingRule = Callable[[FloatArray, float], ScalingState]
"""Takes all arrivals so far and the current time, both in seconds; returns the targets of all stages."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """Settings with their largest miss rate and mean $/h on the samples."""

    miss_rate: float
    hourly_cost: float
    settings: TunerSettings


def calibrate_settings(context: ScalingContext, settings: TunerSettings, table: ReplicaTable) -> TunerSettings:
    """Return the cheapest settings with at most 0.3 % misses on each sample, or those with the fewest misses."""
    trials = [
        _try_settings(context, replace(settings, has_floor=has_floor, hold_s=hold_s, margin=margin), table)
        for has_floor in (False, True)
        for hold_s in HOLDS_S
        for margin in MARGINS
    ]
    accepted = [trial for trial in trials if trial.miss_rate <= MAX_MISS_RATE]
    if accepted:
        return min(accepted, key=lambda trial: trial.hourly_cost).settings
    return min(trials, key=lambda trial: (trial.miss_rate, trial.hourly_cost)).settings


def _try_settings(context: ScalingContext, settings: TunerSettings, table: ReplicaTable) -> _Trial:
    traces = [
        simulate_targets(
            context.pipeline,
            sample,
            context.plan,
            compute_table_targets(context, sample, settings, table),
            settings.delay_s,
        )
        for sample in context.samples
    ]
    miss_rate = max(trace.miss_rate(context.slo_s) for trace in traces)
    return _Trial(miss_rate, sum(trace.hourly_cost for trace in traces) / len(traces), settings)


def build_live_rule(
    policy: str, context: ScalingContext, settings: TunerSettings, table: ReplicaTable | None = None
) -> EnvelopeTrigger | TableRule:
    """Return a rule as a running service calls it.

    Args:
        policy: Its name in the spec, not ``fixed``.
        context: What the planner hands over.
        settings: Settings of the rules.
        table: Replicas by rate; by default one that changes batch sizes too.
    """
    if policy in ("paper", "ratio"):
        return build_trigger(context, settings, is_literal=policy == "paper")
    table = table or build_context_table(context, settings)
    if policy == "calibrated":
        settings = calibrate_settings(context, settings, table)
    return build_table_rule(context, settings, table)
