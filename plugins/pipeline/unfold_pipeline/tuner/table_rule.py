"""The table rule of this project: replicas and batch sizes from the rate-to-replica table, ahead of rising traffic."""

from __future__ import annotations

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray
from unfold_pipeline.estimator.replica_schedule import TICK_S, ScalingState, ScalingTargets, hold_maximum
from unfold_pipeline.problem.problem import TunerSettings
from unfold_pipeline.problem.quotas import FluidQueue, build_quota_limits
from unfold_pipeline.problem.sample import Sample
from unfold_pipeline.tuner.replica_table import ReplicaTable, build_replica_table
from unfold_pipeline.tuner.rules import ScalingContext, list_decision_times
from unfoldkit.arrivals import envelope

TREND_WINDOW_S = 10.0
TREND_MARGIN_S = 7.0
TREND_SIGMAS = 3


def build_context_table(context: ScalingContext, settings: TunerSettings) -> ReplicaTable:
    """Return the rate-to-replica table of a plan."""
    return build_replica_table(context.pipeline, context.plan, context.samples, context.slo_s, settings.max_replicas)


def compute_table_targets(
    context: ScalingContext, live: Sample, settings: TunerSettings, table: ReplicaTable | None = None
) -> ScalingTargets:
    """Return the targets of the table rule for a whole trace.

    Demand is the largest ratio of a live window to that of the sample, without a trigger. Where the rate rises, it is
    extrapolated to the time when an order would serve. Replicas and batch sizes come from the table, plus what empties
    the queue of a fluid model. Replicas are removed after ``hold_s`` of lower demand. Stages that want more of a
    hardware than its quota share it in proportion.
    """
    table = table or build_context_table(context, settings)
    demand = estimate_demand(context, live.arrivals, list_decision_times(live), settings)
    counts = _look_up_targets(context, table, demand, settings)
    batches = table.look_up_batches(hold_maximum(demand, settings.hold_s, 1.0))
    retained = [
        hold_maximum(stage_counts, settings.hold_s, config.replicas)
        for stage_counts, config in zip(counts.T, context.plan, strict=True)
    ]
    drained = _drain_queues(context, live, settings, np.stack(retained, axis=1), batches)
    return ScalingTargets(tuple(drained.T), tuple(batches.T))


def decide_table_state(
    context: ScalingContext, arrivals: FloatArray, now_s: float, settings: TunerSettings, table: ReplicaTable
) -> ScalingState:
    """Return the targets of the table rule at ``now_s`` from the arrivals so far.

    A running service calls this once a second. The fluid queue is left out, because a service observes its queues.
    """
    begin_s = now_s - max(1, round(settings.hold_s / TICK_S)) * TICK_S
    times_s = np.arange(max(-TICK_S, begin_s), now_s + TICK_S / 2, TICK_S)
    recent = arrivals[np.searchsorted(arrivals, begin_s - 2 * envelope.LONGEST_WINDOW_S) :]
    # a reading covers the time since the reading before, so the first one covers too much
    demand = estimate_demand(context, recent, times_s, settings)[1:].max(keepdims=True)
    counts = _look_up_targets(context, table, demand, settings)
    if begin_s < -TICK_S:
        counts, demand = np.maximum(counts, context.planned_replicas), np.maximum(demand, 1.0)
    return ScalingState(tuple(counts[0].tolist()), tuple(table.look_up_batches(demand)[0].tolist()))


def estimate_demand(
    context: ScalingContext, arrivals: FloatArray, times_s: FloatArray, settings: TunerSettings
) -> FloatArray:
    """Return the rate to prepare for at each time, as a multiple of the sample's, shape (times,)."""
    is_used = context.windows_s >= min(settings.min_window_s, float(context.windows_s[-1]))
    windows_s = context.windows_s[is_used]
    rates = envelope.trailing_envelope(arrivals, windows_s, times_s) / windows_s
    ratio = (rates / context.max_rates[is_used]).max(axis=1)
    demand: FloatArray = ratio * _estimate_growth(arrivals, times_s, settings.delay_s) * settings.margin
    return demand


def _look_up_targets(
    context: ScalingContext, table: ReplicaTable, demand: FloatArray, settings: TunerSettings
) -> CountArray:
    counts: CountArray = np.minimum(table.look_up_replicas(demand), settings.max_replicas)
    return np.maximum(counts, context.planned_replicas) if settings.has_floor else counts


def _estimate_growth(arrivals: FloatArray, times_s: FloatArray, delay_s: float) -> FloatArray:
    """Return the growth until ``delay_s`` + 7 s from now, where the last 10 s exceed the 10 s before by 3 sigma."""
    offsets_s = np.array([0.0, TREND_WINDOW_S, 2 * TREND_WINDOW_S])
    edges = np.searchsorted(arrivals, times_s[:, None] - offsets_s, "right")
    late, early = edges[:, 0] - edges[:, 1], edges[:, 1] - edges[:, 2]
    is_significant = (late - early > TREND_SIGMAS * np.sqrt(late + early)) & (times_s >= 2 * TREND_WINDOW_S)
    growth = 1 + (late - early) / np.maximum(late, 1) * (delay_s + TREND_MARGIN_S) / TREND_WINDOW_S
    result: FloatArray = np.where(is_significant, growth, 1.0)
    return result


def _drain_queues(
    context: ScalingContext, live: Sample, settings: TunerSettings, targets: CountArray, batches: CountArray
) -> CountArray:
    """Raise targets so that the fluid queues of the stages are empty two seconds after an order serves."""
    options = context.pipeline.chosen_options(context.plan)
    arrived = np.searchsorted(live.arrivals, np.arange(len(targets)) * TICK_S, "right")
    queue = FluidQueue(
        arrival_rates=np.diff(arrived, prepend=0)[:, None] * np.array(context.shares),
        service_rates=np.stack(
            [np.take(option.throughputs, sizes) for option, sizes in zip(options, batches.T, strict=True)], axis=1
        ),
        start_replicas=context.planned_replicas,
        delay_ticks=max(1, round(settings.delay_s / TICK_S)),
        max_replicas=settings.max_replicas,
    )
    return queue.raise_targets(targets, build_quota_limits(context.pipeline, context.plan))
