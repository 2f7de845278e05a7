"""Common autoscalers for comparison: the default rules of Ray Serve and Knative per stage, AutoScale for whole units.

Ray Serve and Knative count the queries in flight. The numbers are the defaults of their documentation (Ray Serve:
AutoscalingConfig; Knative: KPA). ``max_replicas`` caps them, because they read a backlog of seconds as demand.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from unfold_pipeline._types import CountArray
from unfold_pipeline.estimator.replica_schedule import TICK_S, hold_maximum
from unfold_pipeline.problem.pipeline import Plan
from unfold_pipeline.problem.sample import Sample
from unfold_pipeline.tuner.rules import list_decision_times


@dataclass(frozen=True, slots=True)
class RayServeDefaults:
    """Ray Serve: ongoing requests per replica, look-back period, and how long a demand must last, in seconds."""

    target_ongoing_requests: float = 2.0
    look_back_period_s: float = 30.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0


@dataclass(slots=True)
class _RayServeStage:
    in_flight_history: deque[int] = field(default_factory=deque)
    upscale_s: float = 0.0
    downscale_s: float = 0.0


@dataclass(slots=True)
class RayServeRule:
    """Ray Serve's default policy."""

    stages: list[_RayServeStage]
    max_replicas: int
    defaults: RayServeDefaults = field(default_factory=RayServeDefaults)

    def __call__(self, _now_s: float, in_flight: Sequence[int], ordered: Sequence[int]) -> list[int]:
        """Return the target replicas of each stage."""
        return [self._scale_stage(*state) for state in zip(self.stages, in_flight, ordered, strict=True)]

    def _scale_stage(self, stage: _RayServeStage, in_flight: int, ordered: int) -> int:
        history, defaults = stage.in_flight_history, self.defaults
        history.append(in_flight)
        while len(history) > defaults.look_back_period_s / TICK_S:
            history.popleft()
        mean = sum(history) / len(history)
        target = min(self.max_replicas, max(1, math.ceil(mean / defaults.target_ongoing_requests)))
        stage.upscale_s = stage.upscale_s + TICK_S if target > ordered else 0.0
        stage.downscale_s = stage.downscale_s + TICK_S if target < ordered else 0.0
        if stage.upscale_s > defaults.upscale_delay_s or stage.downscale_s > defaults.downscale_delay_s:
            stage.upscale_s = stage.downscale_s = 0.0
            return target
        return ordered


@dataclass(frozen=True, slots=True, kw_only=True)
class KnativeDefaults:
    """Knative's KPA: windows in seconds, panic threshold, target utilization, and rates of change."""

    stable_window_s: float = 60.0
    panic_window_s: float = 6.0
    panic_threshold: float = 2.0
    target_utilization: float = 0.7
    tick_s: float = 2.0
    max_scale_up_rate: float = 1000.0
    max_scale_down_rate: float = 2.0


@dataclass(slots=True)
class _KnativeStage:
    target_concurrency: float
    in_flight_history: deque[int] = field(default_factory=deque)
    panic_until_s: float = -1.0
    peak: int = 0


@dataclass(slots=True)
class KnativeRule:
    """Knative's default policy, with the planned batch as the concurrency of a container."""

    stages: list[_KnativeStage]
    max_replicas: int
    defaults: KnativeDefaults = field(default_factory=KnativeDefaults)

    def __call__(self, now_s: float, in_flight: Sequence[int], ordered: Sequence[int]) -> list[int]:
        """Return the target replicas of each stage."""
        return [self._scale_stage(now_s, *state) for state in zip(self.stages, in_flight, ordered, strict=True)]

    def _scale_stage(self, now_s: float, stage: _KnativeStage, in_flight: int, ordered: int) -> int:
        history, defaults = stage.in_flight_history, self.defaults
        history.append(in_flight)
        while len(history) > defaults.stable_window_s / TICK_S:
            history.popleft()
        if now_s % defaults.tick_s:
            return ordered
        recent = list(history)[-int(defaults.panic_window_s / TICK_S) :]
        stable = self._limit_target(sum(history) / len(history), stage, ordered)
        panic = self._limit_target(sum(recent) / len(recent), stage, ordered)
        if panic >= defaults.panic_threshold * ordered:
            stage.peak = ordered if now_s >= stage.panic_until_s else stage.peak
            stage.panic_until_s = now_s + defaults.stable_window_s
        if now_s >= stage.panic_until_s:
            return stable
        stage.peak = max(stage.peak, panic, stable)
        return stage.peak

    def _limit_target(self, concurrency: float, stage: _KnativeStage, ordered: int) -> int:
        target = math.ceil(concurrency / stage.target_concurrency - 1e-9)
        minimum = math.floor(ordered / self.defaults.max_scale_down_rate)
        maximum = math.ceil(ordered * self.defaults.max_scale_up_rate)
        return min(self.max_replicas, max(1, minimum, min(target, maximum)))


def build_ray_serve_rule(plan: Plan, max_replicas: int) -> RayServeRule:
    """Return Ray Serve's rule at the start of a trace."""
    return RayServeRule([_RayServeStage() for _ in plan], max_replicas)


def build_knative_rule(plan: Plan, max_replicas: int) -> KnativeRule:
    """Return Knative's rule at the start of a trace."""
    utilization = KnativeDefaults().target_utilization
    return KnativeRule([_KnativeStage(max(1.0, config.batch * utilization)) for config in plan], max_replicas)


def scale_pipeline_units(
    throughput: float,
    live: Sample,
    start: int,
    *,
    window_s: float,
    headroom: float,
    hold_s: float,
    max_units: int,
) -> CountArray:
    """Return the units of AutoScale's rule at each second, shape (ticks,).

    Source: Gandhi et al., "AutoScale" (ACM TOCS 2012), as InferLine applies it to coarse-grained units.

    Args:
        throughput: queries per second of a unit.
        live: the trace.
        start: units before the trace.
        window_s: the mean rate is taken over this period.
        headroom: factor on the rate.
        hold_s: units are removed after so many seconds of lower demand.
        max_units: maximum number of units.
    """
    now_s = list_decision_times(live)
    edges = np.searchsorted(live.arrivals, np.stack([now_s, now_s - window_s]), "right")
    observed_s = np.minimum(np.maximum(now_s, TICK_S), window_s)
    rate = (edges[0] - edges[1]) / observed_s
    required = np.maximum(1, np.ceil(rate * headroom / throughput - 1e-9)).astype(np.int64)
    return hold_maximum(np.minimum(required, max_units), hold_s, start)
