"""InferLine's tuner: scale up when traffic exceeds the planned envelope, down slowly (InferLine, SoCC 2020).

The rules read arrivals only, so a whole trace is decided before it is simulated. ``paper`` is the literal formula;
``ratio`` gives the same replicas where only the mean rate changes. Comments mark the choices that the paper leaves
open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray
from unfold_pipeline.estimator.replica_schedule import TICK_S, ScalingState, ScalingTargets
from unfold_pipeline.estimator.simulator import get_trace_duration
from unfold_pipeline.problem.pipeline import Pipeline, Plan, compute_longest_path
from unfold_pipeline.problem.problem import TunerSettings
from unfold_pipeline.problem.quotas import build_quota_limits
from unfold_pipeline.problem.sample import Sample
from unfoldkit.arrivals import envelope

STEADY_S = 15.0
LOOK_BACK_S = 30
SUBWINDOW_S = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingContext:
    """What the planner hands to the tuner. Over several samples each figure is the largest.

    Attributes:
        pipeline: The stages.
        plan: The configuration to scale.
        samples: The traffic of the plan.
        slo_s: The target in seconds.
        windows_s: Window lengths of the envelope, shape (windows,).
        max_rates: Maximum queries per second in any window of each length, shape (windows,).
        shares: Items of each stage per query.
        throughputs: Items per second of a replica with full batches, by stage.
        loads: Planned load of each stage, with the mean rate.
        spares: Replicas that any stage may lose.
    """

    pipeline: Pipeline
    plan: Plan
    samples: tuple[Sample, ...]
    slo_s: float
    windows_s: FloatArray
    max_rates: FloatArray
    shares: tuple[float, ...]
    throughputs: tuple[float, ...]
    loads: tuple[float, ...]
    spares: int = 0

    @property
    def planned_replicas(self) -> CountArray:
        """Replicas of each stage in the plan, shape (stages,)."""
        return np.array([config.replicas for config in self.plan], dtype=np.int64)


def build_scaling_context(
    pipeline: Pipeline, plan: Plan, samples: Sequence[Sample], slo_s: float, spares: int = 0
) -> ScalingContext:
    """Return the context of a plan made for ``samples``, of which any stage may lose ``spares`` replicas."""
    options = pipeline.chosen_options(plan)
    windows_s = envelope.window_lengths(
        compute_longest_path(pipeline, [float(option.latency_s[1]) for option in options])
    )
    counts = [envelope.compute_envelope(sample.arrivals, windows_s) for sample in samples]
    throughputs = tuple(option.throughput(config.batch) for option, config in zip(options, plan, strict=True))
    rates = [max(sample.rate * sample.share(index) for sample in samples) for index in range(len(plan))]
    return ScalingContext(
        pipeline=pipeline,
        plan=plan,
        samples=tuple(samples),
        slo_s=slo_s,
        windows_s=windows_s,
        max_rates=np.max(counts, axis=0) / windows_s,
        shares=tuple(max(sample.share(index) for sample in samples) for index in range(len(plan))),
        throughputs=throughputs,
        loads=tuple(
            rate / (config.replicas * throughput)
            for rate, config, throughput in zip(rates, plan, throughputs, strict=True)
        ),
        spares=spares,
    )


def list_decision_times(sample: Sample) -> FloatArray:
    """Return the seconds at which a rule decides, shape (ticks,)."""
    return np.arange(int(get_trace_duration(sample) / TICK_S) + 1).astype(np.float64) * TICK_S


def compute_paper_targets(context: ScalingContext, live: Sample, settings: TunerSettings) -> ScalingTargets:
    """Return the targets of ``k = ceil(r_max s / (mu rho))``; r_max is the largest rate above the envelope."""
    return _compute_trigger_targets(context, live, settings, is_literal=True)


def compute_ratio_targets(context: ScalingContext, live: Sample, settings: TunerSettings) -> ScalingTargets:
    """Return the targets of ``k = ceil(k_plan max_i r_i(now) / r_i(sample))``."""
    return _compute_trigger_targets(context, live, settings, is_literal=False)


def _compute_trigger_targets(
    context: ScalingContext, live: Sample, settings: TunerSettings, *, is_literal: bool
) -> ScalingTargets:
    trigger = build_trigger(context, settings, is_literal=is_literal)
    counts = np.array(trigger.decide_all(live.arrivals, list_decision_times(live)), dtype=np.int64)
    limited = build_quota_limits(context.pipeline, context.plan).limit_counts(counts)
    return ScalingTargets(tuple(limited.T))


@dataclass(slots=True)
class TriggerState:
    """The target of a stage, and the second at which it changed last."""

    target: int
    changed_s: float = 0.0


class _TrafficSignal(NamedTuple):
    """The traffic at one second: excess over the envelope, and the largest rate of the last 30 s."""

    now_s: float
    excess: float
    recent_rate: float


@dataclass(frozen=True, slots=True)
class EnvelopeTrigger:
    """The rule ``paper`` (``is_literal``) or ``ratio``. It keeps state, so each trace or service needs its own."""

    context: ScalingContext
    settings: TunerSettings
    is_literal: bool
    states: tuple[TriggerState, ...]

    def __call__(self, arrivals: FloatArray, now_s: float) -> ScalingState:
        """Return the targets at ``now_s`` from the arrivals so far. A running service calls this once a second."""
        recent = arrivals[np.searchsorted(arrivals, now_s - 2 * envelope.LONGEST_WINDOW_S) :]
        # a reading covers the time since the reading before, so the first of the two is dropped
        signal = self._read_signals(recent, np.array([now_s - TICK_S, now_s]))[-1]
        return ScalingState(self._decide(signal), tuple(config.batch for config in self.context.plan))

    def set_delay(self, _delay_s: float) -> None:
        """Do nothing: InferLine's tuner does not look ahead."""

    def begin(self, replicas: CountArray) -> None:
        """Take charge of a deployment with ``replicas``, shape (stages,)."""
        for state, count in zip(self.states, replicas.tolist(), strict=True):
            state.target = count

    def observe(self, _serving: CountArray, _queued: FloatArray) -> None:
        """Do nothing: InferLine's tuner decides by arrivals alone."""

    def decide_all(self, arrivals: FloatArray, times_s: FloatArray) -> list[tuple[int, ...]]:
        """Return the target replicas of each stage at successive times."""
        return [self._decide(signal) for signal in self._read_signals(arrivals, times_s)]

    def _read_signals(self, arrivals: FloatArray, times_s: FloatArray) -> list[_TrafficSignal]:
        context = self.context
        rates = envelope.trailing_envelope(arrivals, context.windows_s, times_s) / context.windows_s
        measure = rates if self.is_literal else rates / context.max_rates
        excess = np.where(rates > context.max_rates, measure, 0.0).max(axis=1)
        recent = _measure_recent_rate(arrivals, times_s)
        return [
            _TrafficSignal(*values) for values in zip(times_s.tolist(), excess.tolist(), recent.tolist(), strict=True)
        ]

    def _decide(self, signal: _TrafficSignal) -> tuple[int, ...]:
        return tuple(self._decide_stage(index, signal) for index in range(len(self.states)))

    def _decide_stage(self, index: int, signal: _TrafficSignal) -> int:
        state, planned = self.states[index], self.context.plan[index].replicas
        replicas_per_rate = self.context.shares[index] / self.context.throughputs[index]
        if self.is_literal:
            upper = signal.excess * replicas_per_rate / max(self.context.loads[index], 1e-12)
        else:
            upper = signal.excess * planned
        min_load = max(min(self.context.loads), 1e-12)
        lower = max(1, math.ceil(signal.recent_rate * replicas_per_rate / min_load - 1e-9))
        target = state.target
        if upper > state.target:
            target = min(self.settings.max_replicas, math.ceil(upper - 1e-9))
        elif signal.now_s - state.changed_s >= STEADY_S and lower < state.target:
            target = max(planned if self.settings.has_floor else 1 + self.context.spares, lower)
        state.changed_s = signal.now_s if target != state.target else state.changed_s
        state.target = target
        return target


def build_trigger(context: ScalingContext, settings: TunerSettings, *, is_literal: bool) -> EnvelopeTrigger:
    """Return the rule at the start of a trace or service."""
    states = tuple(TriggerState(config.replicas) for config in context.plan)
    return EnvelopeTrigger(context, settings, is_literal, states)


def _measure_recent_rate(arrivals: FloatArray, times_s: FloatArray) -> FloatArray:
    """Return the largest rate of the 5-s windows of the last 30 s, per second."""
    edges = np.searchsorted(arrivals, times_s[:, None] - np.arange(0, LOOK_BACK_S + 1, SUBWINDOW_S), "right")
    rates = -np.diff(edges, axis=1) / SUBWINDOW_S
    # in the first 30 s, windows that began before the trace are empty and do not count as a lull
    result: FloatArray = rates.max(axis=1)
    return result
