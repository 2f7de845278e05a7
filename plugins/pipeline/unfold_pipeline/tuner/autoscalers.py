"""Common autoscalers for comparison: the default rules of Ray Serve and Knative per stage, AutoScale for whole units.

Ray Serve and Knative count the queries in flight. The numbers are the defaults of their documentation (Ray Serve:
AutoscalingConfig; Knative: KPA). ``max_replicas`` caps them, because they read a backlog of seconds as demand. Both
start warm: their windows hold the queries that the planned traffic keeps in flight. A window that starts empty reads as
no demand, and would halve the plan at once.
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
from unfold_pipeline.tuner.envelope_rule import list_decision_times


@dataclass(frozen=True, slots=True)
class RayServeSettings:
    """Ray Serve: ongoing requests per replica, look-back period, and how long a demand must last, in seconds."""

    target_ongoing_requests: float = 2.0
    look_back_period_s: float = 30.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0


@dataclass(slots=True)
class _RayServeStage:
    in_flight_history: deque[float]
    upscale_s: float = 0.0
    downscale_s: float = 0.0


@dataclass(slots=True)
class RayServeRule:
    """Ray Serve's default policy."""

    stages: list[_RayServeStage]
    max_replicas: int
    settings: RayServeSettings = field(default_factory=RayServeSettings)

    def __call__(self, _now_s: float, in_flight: Sequence[int], ordered: Sequence[int]) -> list[int]:
        """Return the target replicas of each stage."""
        return [self._scale_stage(*state) for state in zip(self.stages, in_flight, ordered, strict=True)]

    def _scale_stage(self, stage: _RayServeStage, in_flight: int, ordered: int) -> int:
        history, settings = stage.in_flight_history, self.settings
        history.append(in_flight)
        mean = sum(history) / len(history)
        target = min(self.max_replicas, max(1, math.ceil(mean / settings.target_ongoing_requests)))
        stage.upscale_s = stage.upscale_s + TICK_S if target > ordered else 0.0
        stage.downscale_s = stage.downscale_s + TICK_S if target < ordered else 0.0
        if stage.upscale_s > settings.upscale_delay_s or stage.downscale_s > settings.downscale_delay_s:
            stage.upscale_s = stage.downscale_s = 0.0
            return target
        return ordered


@dataclass(frozen=True, slots=True, kw_only=True)
class KnativeSettings:
    """Knative's KPA: windows in seconds, panic threshold, target utilization, and rates of change."""

    stable_window_s: float = 60.0
    panic_window_s: float = 6.0
    panic_threshold: float = 2.0
    target_utilization: float = 0.7
    tick_s: float = 2.0
    max_scale_up_rate: float = 1000.0
    max_scale_down_rate: float = 2.0


@dataclass(slots=True, kw_only=True)
class KnativeScaler:
    """The decision of Knative's autoscaler for one stage, from the mean concurrency of its two windows.

    Source: knative.dev/serving, pkg/autoscaler/scaling/autoscaler.go, ``Scale``; a test compares the two.

    Attributes:
        target_concurrency: Queries in flight per replica.
        settings: Windows, threshold and rates of change.
        panic_s: When the panic threshold was last exceeded; ``None`` outside panic mode.
        max_panic: The most replicas demanded in this panic.
    """

    target_concurrency: float
    settings: KnativeSettings
    panic_s: float | None = None
    max_panic: int = 0

    def scale(self, now_s: float, stable: float, panic: float, ready: int) -> int:
        """Return the replicas that Knative demands, before its bounds.

        Args:
            now_s: The time in seconds.
            stable: Mean queries in flight of the stable window.
            panic: Mean queries in flight of the panic window.
            ready: Replicas that serve.
        """
        settings, current = self.settings, max(1, ready)
        maximum = math.ceil(settings.max_scale_up_rate * current)
        minimum = math.floor(current / settings.max_scale_down_rate)
        wanted_stable, wanted_panic = (math.ceil(value / self.target_concurrency) for value in (stable, panic))
        desired = min(max(wanted_stable, minimum), maximum)
        if wanted_panic / current >= settings.panic_threshold:
            self.panic_s = now_s
        elif self.panic_s is not None and self.panic_s + settings.stable_window_s < now_s:
            self.panic_s, self.max_panic = None, 0
        if self.panic_s is None:
            return desired
        self.max_panic = max(self.max_panic, desired, min(max(wanted_panic, minimum), maximum))
        return self.max_panic


@dataclass(slots=True)
class _KnativeStage:
    scaler: KnativeScaler
    in_flight_history: deque[float]


@dataclass(slots=True)
class KnativeRule:
    """Knative's default policy, with the planned batch as the concurrency of a container."""

    stages: list[_KnativeStage]
    max_replicas: int
    settings: KnativeSettings = field(default_factory=KnativeSettings)

    def __call__(self, now_s: float, in_flight: Sequence[int], ordered: Sequence[int]) -> list[int]:
        """Return the target replicas of each stage."""
        return [self._scale_stage(now_s, *state) for state in zip(self.stages, in_flight, ordered, strict=True)]

    def _scale_stage(self, now_s: float, stage: _KnativeStage, in_flight: int, ordered: int) -> int:
        history, settings = stage.in_flight_history, self.settings
        history.append(in_flight)
        if now_s % settings.tick_s:
            return ordered
        recent = list(history)[-int(settings.panic_window_s / TICK_S) :]
        desired = stage.scaler.scale(now_s, sum(history) / len(history), sum(recent) / len(recent), ordered)
        # the reconciler applies the bounds of the revision
        return min(self.max_replicas, max(1, desired))


RAY_SERVE_GRID = tuple(
    RayServeSettings(target_ongoing_requests=target, upscale_delay_s=delay_s, downscale_delay_s=60.0)
    for target in (0.5, 1.0, 2.0, 4.0, 8.0)
    for delay_s in (1.0, 30.0)
)
"""Settings of Ray Serve that a user with hindsight would try."""
KNATIVE_GRID = tuple(
    KnativeSettings(target_utilization=utilization, stable_window_s=window_s)
    for utilization in (0.2, 0.35, 0.5, 0.7, 1.0)
    for window_s in (30.0, 60.0)
)
"""Settings of Knative that a user with hindsight would try."""


def build_ray_serve_rule(
    plan: Plan, max_replicas: int, in_flight: Sequence[float], settings: RayServeSettings | None = None
) -> RayServeRule:
    """Return Ray Serve's rule at the start of a trace; ``in_flight`` are the queries that each stage had in flight."""
    settings = settings or RayServeSettings()
    ticks = int(settings.look_back_period_s / TICK_S)
    stages = [_RayServeStage(deque([queries] * ticks, ticks)) for queries, _ in zip(in_flight, plan, strict=True)]
    return RayServeRule(stages, max_replicas, settings)


def build_knative_rule(
    plan: Plan, max_replicas: int, in_flight: Sequence[float], settings: KnativeSettings | None = None
) -> KnativeRule:
    """Return Knative's rule at the start of a trace; ``in_flight`` are the queries that each stage had in flight."""
    settings = settings or KnativeSettings()
    ticks = int(settings.stable_window_s / TICK_S)
    stages = [
        _KnativeStage(
            KnativeScaler(target_concurrency=max(1.0, config.batch * settings.target_utilization), settings=settings),
            deque([queries] * ticks, ticks),
        )
        for config, queries in zip(plan, in_flight, strict=True)
    ]
    return KnativeRule(stages, max_replicas, settings)


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
        throughput: Queries per second of a unit.
        live: The trace.
        start: Units before the trace.
        window_s: The mean rate is taken over this period.
        headroom: Factor on the rate.
        hold_s: Units are removed after so many seconds of lower demand.
        max_units: Maximum number of units.
    """
    now_s = list_decision_times(live)
    edges = np.searchsorted(live.arrivals, np.stack([now_s, now_s - window_s]), "right")
    observed_s = np.minimum(np.maximum(now_s, TICK_S), window_s)
    rate = (edges[0] - edges[1]) / observed_s
    required = np.maximum(1, np.ceil(rate * headroom / throughput - 1e-9)).astype(np.int64)
    return hold_maximum(np.minimum(required, max_units), hold_s, start)
