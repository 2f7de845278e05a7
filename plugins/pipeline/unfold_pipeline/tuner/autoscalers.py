"""What the usual autoscalers would have done: Ray Serve's and Knative's default rules, a stage at a time.

Both count the queries that wait or are being served. Numbers are the defaults of their documentation (Ray Serve:
AutoscalingConfig; Knative: KPA). ``most`` caps them, as they read a backlog of seconds as demand.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from unfold_pipeline.estimator.replica_schedule import TICK
from unfold_pipeline.problem.pipeline import Plan


@dataclass(frozen=True, slots=True)
class RayDefaults:
    """Ray Serve: ongoing requests a replica, look-back, and how long a need must last."""

    target: float = 2.0
    look_back: float = 30.0
    upscale_delay: float = 30.0
    downscale_delay: float = 600.0


@dataclass(slots=True)
class _RayStage:
    seen: deque[int] = field(default_factory=deque)
    above: float = 0.0
    below: float = 0.0


@dataclass(slots=True)
class RayRule:
    """Ray Serve's default policy."""

    stages: list[_RayStage]
    most: int
    defaults: RayDefaults = field(default_factory=RayDefaults)

    def __call__(self, _now: float, inside: Sequence[int], ordered: Sequence[int]) -> list[int]:
        """Return the wanted replicas of each stage."""
        return [self._one(*item) for item in zip(self.stages, inside, ordered, strict=True)]

    def _one(self, stage: _RayStage, inside: int, ordered: int) -> int:
        stage.seen.append(inside)
        while len(stage.seen) > self.defaults.look_back / TICK:
            stage.seen.popleft()
        mean = sum(stage.seen) / len(stage.seen)
        wanted = min(self.most, max(1, math.ceil(mean / self.defaults.target)))
        stage.above = stage.above + TICK if wanted > ordered else 0.0
        stage.below = stage.below + TICK if wanted < ordered else 0.0
        if stage.above > self.defaults.upscale_delay or stage.below > self.defaults.downscale_delay:
            stage.above = stage.below = 0.0
            return wanted
        return ordered


@dataclass(frozen=True, slots=True)
class KnativeDefaults:
    """Knative's KPA: windows, when panic begins, how much of a container's concurrency is aimed at, rates of change."""

    stable: float = 60.0
    panic: float = 6.0
    threshold: float = 2.0
    utilisation: float = 0.7
    tick: float = 2.0
    up: float = 1000.0
    down: float = 2.0


@dataclass(slots=True)
class _KnativeStage:
    target: float
    seen: deque[int] = field(default_factory=deque)
    panic_until: float = -1.0
    peak: int = 0


@dataclass(slots=True)
class KnativeRule:
    """Knative's default policy, with the planned batch as the concurrency of a container."""

    stages: list[_KnativeStage]
    most: int
    defaults: KnativeDefaults = field(default_factory=KnativeDefaults)

    def __call__(self, now: float, inside: Sequence[int], ordered: Sequence[int]) -> list[int]:
        """Return the wanted replicas of each stage."""
        return [self._one(now, *item) for item in zip(self.stages, inside, ordered, strict=True)]

    def _one(self, now: float, stage: _KnativeStage, inside: int, ordered: int) -> int:
        stage.seen.append(inside)
        while len(stage.seen) > self.defaults.stable / TICK:
            stage.seen.popleft()
        if now % self.defaults.tick:
            return ordered
        recent = list(stage.seen)[-int(self.defaults.panic / TICK) :]
        stable = self._wanted(sum(stage.seen) / len(stage.seen), stage, ordered)
        panic = self._wanted(sum(recent) / len(recent), stage, ordered)
        if panic >= self.defaults.threshold * ordered:
            stage.peak = ordered if now >= stage.panic_until else stage.peak
            stage.panic_until = now + self.defaults.stable
        if now >= stage.panic_until:
            return stable
        stage.peak = max(stage.peak, panic, stable)
        return stage.peak

    def _wanted(self, concurrency: float, stage: _KnativeStage, ordered: int) -> int:
        wanted = math.ceil(concurrency / stage.target - 1e-9)
        slowest = math.floor(ordered / self.defaults.down)
        return min(self.most, max(1, slowest, min(wanted, math.ceil(ordered * self.defaults.up))))


def ray(plan: Plan, most: int) -> RayRule:
    """Return Ray Serve's rule at the start of a trace."""
    return RayRule([_RayStage() for _ in plan], most)


def knative(plan: Plan, most: int) -> KnativeRule:
    """Return Knative's rule at the start of a trace."""
    utilisation = KnativeDefaults().utilisation
    return KnativeRule([_KnativeStage(max(1.0, choice.batch * utilisation)) for choice in plan], most)
