"""The table rule of this project: replicas and batch sizes from the rate-to-replica table, ahead of rising traffic."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray
from unfold_pipeline.estimator.replica_schedule import TICK_S, ScalingState, ScalingTargets
from unfold_pipeline.problem.problem import TunerSettings
from unfold_pipeline.problem.quotas import FluidQueue, QuotaLimits, build_fluid_queue, build_quota_limits
from unfold_pipeline.problem.sample import Sample
from unfold_pipeline.tuner.envelope_rule import ScalingContext, list_decision_times
from unfold_pipeline.tuner.replica_table import ReplicaTable, build_replica_table
from unfoldkit.arrivals import envelope

TREND_WINDOW_S = 10.0
TREND_MARGIN_S = 7.0
TREND_SIGMAS = 3


def build_context_table(context: ScalingContext, settings: TunerSettings) -> ReplicaTable:
    """Return the rate-to-replica table of a plan."""
    return build_replica_table(
        context.pipeline, context.plan, context.samples, context.slo_s, settings.max_replicas, context.spares
    )


@dataclass(slots=True, kw_only=True)
class TableRule:
    """The table rule and its state: each trace or service needs its own.

    Demand is the largest ratio of a live window to that of the sample, without a trigger. Where the rate rises, it is
    extrapolated to the time when an order would serve. Replicas and batch sizes come from the table, plus what empties
    the queue of a fluid model. Replicas are removed after ``hold_s`` of lower demand. Stages that want more of a
    hardware than its quota share it in proportion.

    Attributes:
        context: What the planner hands over.
        settings: Settings of the rule.
        table: Replicas and batch sizes by demand.
        limits: The quotas.
        queue: The fluid queues of the stages.
        recent_counts: Replicas that the last seconds needed, shape (hold - 1, stages).
        recent_demand: Demand of the last seconds, shape (hold - 1,).
        next_s: The next second to decide.
    """

    context: ScalingContext
    settings: TunerSettings
    table: ReplicaTable
    limits: QuotaLimits
    queue: FluidQueue
    recent_counts: CountArray
    recent_demand: FloatArray
    next_s: float = 0.0

    def __call__(self, arrivals: FloatArray, now_s: float) -> ScalingState:
        """Return the targets at ``now_s`` from the arrivals so far. A running service calls this once a second.

        Seconds since the call before are decided too, so a service that was busy decides as one that was not.
        """
        times_s = np.arange(min(self.next_s, now_s), now_s + TICK_S / 2, TICK_S)
        recent = arrivals[np.searchsorted(arrivals, times_s[0] - 2 * envelope.LONGEST_WINDOW_S) :]
        counts, batches = self.decide_all(recent, times_s)
        return ScalingState(tuple(counts[-1].tolist()), tuple(batches[-1].tolist()))

    def decide_all(self, arrivals: FloatArray, times_s: FloatArray) -> tuple[CountArray, CountArray]:
        """Return replicas and batch sizes at successive seconds, each of shape (seconds, stages)."""
        context, settings, table = self.context, self.settings, self.table
        # a reading covers the time since the reading before, so one that precedes the first is dropped
        demand = estimate_demand(context, arrivals, np.append(times_s[0] - TICK_S, times_s), settings)[1:]
        needed = np.concatenate([self.recent_counts, _look_up_targets(context, table, demand, settings)])
        held_demand = np.concatenate([self.recent_demand, demand])
        width = len(self.recent_demand) + 1
        counts = np.lib.stride_tricks.sliding_window_view(needed, width, axis=0).max(axis=2)
        batches = table.look_up_batches(np.lib.stride_tricks.sliding_window_view(held_demand, width).max(axis=1))
        self.recent_counts, self.recent_demand = needed[len(demand) :], held_demand[len(demand) :]
        self.next_s = float(times_s[-1]) + TICK_S
        return self._drain_queues(arrivals, times_s, counts, batches), batches

    def set_delay(self, delay_s: float) -> None:
        """Expect ordered replicas to serve after ``delay_s`` from now on."""
        self.settings = replace(self.settings, delay_s=delay_s)
        self.queue.set_delay(_count_delay_ticks(delay_s))

    def begin(self, replicas: CountArray) -> None:
        """Take charge of a deployment with ``replicas``, shape (stages,), as if the last seconds had needed them."""
        self.recent_counts = np.tile(replicas, (len(self.recent_counts), 1))
        self.queue.begin(replicas)

    def observe(self, serving: CountArray, queued: FloatArray) -> None:
        """Replace the estimate of replicas and queues by what was measured; NaN where a queue is unknown."""
        self.queue.observe(serving, queued)

    def _drain_queues(
        self, arrivals: FloatArray, times_s: FloatArray, targets: CountArray, batches: CountArray
    ) -> CountArray:
        """Raise targets so that the fluid queues of the stages are empty two seconds after an order serves."""
        options = self.context.pipeline.chosen_options(self.context.plan)
        arrived = np.diff(np.searchsorted(arrivals, np.append(times_s[0] - TICK_S, times_s), "right"))
        service_rates = [
            # a table may name larger batches than the option was measured with
            np.take(option.throughputs, np.minimum(sizes, len(option.throughputs) - 1))
            for option, sizes in zip(options, batches.T, strict=True)
        ]
        return self.queue.raise_targets(
            targets, arrived[:, None] * np.array(self.context.shares), np.stack(service_rates, axis=1), self.limits
        )


def build_table_rule(context: ScalingContext, settings: TunerSettings, table: ReplicaTable) -> TableRule:
    """Return the table rule at the start of a trace or service."""
    planned = context.planned_replicas
    width = max(1, round(settings.hold_s / TICK_S))
    return TableRule(
        context=context,
        settings=settings,
        table=table,
        limits=build_quota_limits(context.pipeline, context.plan),
        queue=build_fluid_queue(
            planned, _count_delay_ticks(settings.delay_s), settings.max_replicas, settings.max_wait_s
        ),
        # before the first second the rule has observed nothing, and the plan stays
        recent_counts=np.tile(planned, (width - 1, 1)),
        recent_demand=np.ones(width - 1),
    )


def compute_table_targets(
    context: ScalingContext, live: Sample, settings: TunerSettings, table: ReplicaTable | None = None
) -> ScalingTargets:
    """Return the targets of the table rule for a whole trace: what a service decides that sees its arrivals."""
    rule = build_table_rule(context, settings, table or build_context_table(context, settings))
    counts, batches = rule.decide_all(live.arrivals, list_decision_times(live))
    return ScalingTargets(tuple(counts.T), tuple(batches.T))


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


def _count_delay_ticks(delay_s: float) -> int:
    return max(1, round(delay_s / TICK_S))
