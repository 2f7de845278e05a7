"""Predicted latencies of a replay on running replicas: with profiled batch times, and with those that were measured."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from unfold_pipeline._types import FloatArray
from unfold_pipeline.estimator.contention import ReplicaChange, SpeedTrace, simulate_contention
from unfold_pipeline.estimator.replica_schedule import ReplicaSchedule, ScalingState, build_observed_schedule
from unfold_pipeline.estimator.simulator import build_scaled_server, get_trace_duration, simulate_schedules
from unfold_pipeline.estimator.uncertainty import draw_service_factors
from unfold_pipeline.problem.latency_profile import BatchTiming
from unfold_pipeline.problem.pipeline import Pipeline, Plan
from unfold_pipeline.problem.sample import Sample
from unfold_pipeline.runtime.affinity import assign_cores
from unfold_pipeline.runtime.stage import CompletedBatch
from unfoldkit.engines.local import available_cores
from unfoldkit.queueing.stage import STEADY, Server

SPEED_TOLERANCE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySetup:
    """What was replayed.

    Attributes:
        pipeline, plan, sample: The stages, their configuration and the trace.
        deadlines_s: Time since arrival after which a query is dropped at each stage; ``None`` if none is dropped.
        sheds: Whether queries are dropped when they can no longer meet the SLO.
        is_pinned: Whether local replicas are pinned to cores.
        is_local: Whether all replicas run on this machine.
        profiles: Measured timings by stage.
        seed: Seed of the service-time variability.
        observed: Replicas and batch sizes that served from each time on; empty if those of the plan did.
        measured_cpu: Fraction of its time in which each stage kept a core busy during the run, by name.
    """

    pipeline: Pipeline
    plan: Plan
    sample: Sample
    deadlines_s: tuple[float, ...] | None = None
    sheds: bool = False
    is_pinned: bool = False
    is_local: bool = True
    profiles: Mapping[str, tuple[BatchTiming, ...]] = field(default_factory=dict)
    seed: int = 0
    observed: Sequence[tuple[float, ScalingState]] = ()
    measured_cpu: Mapping[str, float] = field(default_factory=dict)

    @property
    def max_replicas(self) -> int:
        """The maximum number of replicas that served at a time."""
        planned = sum(config.replicas for config in self.plan)
        return max([planned, *(sum(state.replicas) for _, state in self.observed)])

    @property
    def is_contended(self) -> bool:
        """Whether more replicas served on this machine than it has cores."""
        return self.is_local and self.max_replicas > available_cores()

    @property
    def core_shortage(self) -> tuple[float, int]:
        """The most cores that replicas on this machine kept busy at a time, and its cores; (0, 0) if they suffice."""
        states = [tuple(config.replicas for config in self.plan), *(state.replicas for _, state in self.observed)]
        busy = max(float(np.dot(replicas, self.cpu_fractions)) for replicas in states)
        return (busy, available_cores()) if self.is_local and busy > available_cores() else (0.0, 0)

    @property
    def schedules(self) -> list[ReplicaSchedule]:
        """The replicas and batch sizes of each stage over time."""
        end_s = get_trace_duration(self.sample)
        return [
            build_observed_schedule(config.replicas, self.observed, index, end_s)
            for index, config in enumerate(self.plan)
        ]

    @property
    def cpu_fractions(self) -> list[float]:
        """Fraction of its time in which each stage keeps a core busy, as profiled, or else as measured."""
        timings = {stage.name: self.profiles.get(stage.name) for stage in self.pipeline.stages}
        return [profile[0].cpu if profile else self.measured_cpu.get(name, 1.0) for name, profile in timings.items()]


def estimate_latencies(replay: ReplaySetup) -> FloatArray:
    """Return the simulated seconds of each query.

    Batches vary as profiled. If there are more local replicas than cores, they share the cores as their profiles say.
    """
    factors = [
        draw_service_factors(replay.profiles.get(stage.name), index, replay.seed)
        for index, stage in enumerate(replay.pipeline.stages)
    ]
    if replay.is_contended:
        return _simulate_on_cores(
            replay, _build_servers(replay, factors), replay.cpu_fractions, available_cores(), is_pinned=replay.is_pinned
        )
    return simulate_schedules(
        replay.pipeline, replay.sample, replay.plan, replay.schedules, factors, replay.deadlines_s
    ).latencies


def estimate_at_measured_speed(replay: ReplaySetup, speeds: Sequence[SpeedTrace]) -> FloatArray:
    """Return the simulated seconds of each query with batches that take as long as those of the run did.

    Its distance to the measurement is the error of the simulator, its distance to the estimate that of the profiles.
    """
    # the measured times include the wake-up of idle replicas
    servers = [replace(server, wake=0.0) for server in _build_servers(replay, [STEADY] * len(replay.plan))]
    if replay.is_contended:
        return _simulate_on_cores(
            replay, servers, replay.cpu_fractions, available_cores(), speeds, is_pinned=replay.is_pinned
        )
    # a core for each replica, so that none waits for one
    return _simulate_on_cores(replay, servers, [0.0] * len(replay.plan), replay.max_replicas, speeds, is_pinned=False)


def measure_speeds(replay: ReplaySetup, batches: Sequence[CompletedBatch], *, is_contended: bool) -> list[SpeedTrace]:
    """Return the measured over the planned time of each batch, by stage; empty if no batch was reported.

    A stage without a query keeps its planned latency. Under contention, the time in which a replica waited for a core
    is excluded, because it is simulated.
    """
    if not batches:
        return []
    speeds = []
    for stage, option in zip(replay.pipeline.stages, replay.pipeline.chosen_options(replay.plan), strict=True):
        served = sorted((batch for batch in batches if batch.stage == stage.name), key=lambda batch: batch.start_s)
        if not served:
            speeds.append(SpeedTrace(np.zeros(1), np.ones(1)))
            continue
        seconds = [batch.total_s - (batch.waited_s if is_contended else 0.0) for batch in served]
        planned = [float(option.latency_s[min(batch.rows, option.max_batch)]) for batch in served]
        speeds.append(SpeedTrace(np.array([batch.start_s for batch in served]), np.array(seconds) / np.array(planned)))
    return speeds


def measure_cpu_fractions(batches: Sequence[CompletedBatch]) -> dict[str, float]:
    """Return the fraction of its time, waits for a core excluded, in which each stage kept a core busy."""
    busy_s, total_s = defaultdict[str, float](float), defaultdict[str, float](float)
    for batch in batches:
        busy_s[batch.stage] += batch.cpu_s
        total_s[batch.stage] += batch.total_s - batch.waited_s
    return {stage: min(1.0, busy_s[stage] / seconds) for stage, seconds in total_s.items() if seconds > 0}


def find_speed_deviations(replay: ReplaySetup, speeds: Sequence[SpeedTrace]) -> list[tuple[str, float]]:
    """Return the mean speed factor of each stage; empty if all are within 5 % of the plan."""
    factors = [float(speed.factor.mean()) for speed in speeds]
    if all(abs(factor - 1) <= SPEED_TOLERANCE for factor in factors):
        return []
    return [(stage.name, factor) for stage, factor in zip(replay.pipeline.stages, factors, strict=True)]


def _build_servers(replay: ReplaySetup, factors: Sequence[FloatArray]) -> list[Server]:
    """Return each stage as the queueing model takes it, with the given service-time factors."""
    deadlines_s = replay.deadlines_s or [math.inf] * len(replay.plan)
    return [
        replace(build_scaled_server(replay.pipeline, index, config, schedule), factor=factor, patience=deadline_s)
        for index, (config, schedule, factor, deadline_s) in enumerate(
            zip(replay.plan, replay.schedules, factors, deadlines_s, strict=True)
        )
    ]


def _simulate_on_cores(
    replay: ReplaySetup,
    servers: Sequence[Server],
    cpu_fractions: Sequence[float],
    cores: int,
    speeds: Sequence[SpeedTrace] = (),
    *,
    is_pinned: bool,
) -> FloatArray:
    pinned_cores = assign_cores([config.replicas for config in replay.plan], cores) if is_pinned else None
    changes = sorted(
        (change.time_s, stage, change.added, change.max_batch)
        for stage, schedule in enumerate(replay.schedules)
        for change in schedule.list_changes()
    )
    return simulate_contention(
        replay.pipeline,
        replay.sample,
        servers,
        cpu_fractions,
        cores,
        pinned_cores,
        changes=() if is_pinned else [ReplicaChange(*change) for change in changes],
        speeds=speeds,
    )
