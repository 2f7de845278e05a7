"""The planning problem: a spec resolved into arrays and frozen values, which every later stage of the work takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from unfold_pipeline._types import CountArray, FloatArray
from unfold_pipeline.problem.from_cascade import CascadeSummary
from unfold_pipeline.problem.latency_profile import BatchTiming
from unfold_pipeline.problem.pipeline import Pipeline, Plan
from unfold_pipeline.problem.pricing import ReplicaPrice
from unfold_pipeline.problem.sample import Sample, Sampler, bound_fresh_share

WAIT_BOUND_MULTIPLE = 4.0
DEFAULT_ACTIVATION_S = 5.0


def compute_wait_bound(slo_s: float) -> float:
    """Return the seconds after which an answer with target ``slo_s`` is useless: a service answers none later."""
    return WAIT_BOUND_MULTIPLE * slo_s


@dataclass(frozen=True, slots=True)
class SearchBudget:
    """Effort of the search for the cheapest plan.

    Attributes:
        max_simulated_queries: Queries of a stage that may be simulated.
        max_nodes: Search nodes that the proof may expand.
        prove: Whether to prove that no plan is cheaper.
        compound: Whether greedy may combine two steps.
    """

    max_simulated_queries: float = 2.5e8
    max_nodes: int = 25_000
    prove: bool = True
    compound: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TunerSettings:
    """Settings of the scaling rules.

    Attributes:
        delay_s: From ordering a replica until it serves.
        delay_source: Where that time comes from.
        has_floor: Whether replica counts never fall below the plan.
        margin: Factor on the demand.
        hold_s: How long demand must be lower before replicas are removed.
        max_replicas: Maximum replicas of a stage.
        sheds: Whether queries that cannot meet their deadline are dropped in a replay.
        min_window_s: Windows of the envelope below this length are ignored by the table rule.
        max_wait_s: The waiting bound of the service; what would wait for longer is refused and never queues.
        stores_table: Whether the plan holds replicas by rate, for autoscalers of other systems.
    """

    delay_s: float = DEFAULT_ACTIVATION_S
    delay_source: Literal["spec", "measured", "default"] = "default"
    has_floor: bool = True
    margin: float = 1.15
    hold_s: float = 60.0
    max_replicas: int = 100
    sheds: bool = False
    min_window_s: float = 0.0
    max_wait_s: float = math.inf
    stores_table: bool = False

    def admit_plan(self, plan: Plan) -> TunerSettings:
        """Return the settings with a maximum that no stage of the plan exceeds."""
        return replace(self, max_replicas=max([self.max_replicas, *(config.replicas for config in plan)]))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementPolicy:
    """Where replicas run.

    Attributes:
        has_gangs: Whether the replicas of a stage start together on Ray Serve.
        strategy: How Ray Serve places gangs, ``PACK`` or ``SPREAD``.
        max_per_node: Maximum replicas of a stage on a node of Ray Serve.
        is_pinned: Whether each local replica is pinned to a core.
    """

    has_gangs: bool = False
    strategy: str = "PACK"
    max_per_node: int | None = None
    is_pinned: bool = False

    def round_up_replicas(self, count: int, gang_size: int) -> int:
        """Return the least number of replicas, at least ``count``, that can be placed: whole gangs if there are any."""
        return -(-count // gang_size) * gang_size if self.has_gangs else count

    def build_ray_options(self, replicas: int) -> dict[str, Any]:
        """Return the policy as options of a Ray Serve deployment with ``replicas`` planned; empty for Ray's default.

        Source: Ray Serve's ``gang_scheduling_config`` and ``max_replicas_per_node``.
        """
        if self.has_gangs:
            return {"gang_scheduling_config": {"gang_size": replicas, "gang_placement_strategy": self.strategy}}
        return {} if self.max_per_node is None else {"max_replicas_per_node": self.max_per_node}


@dataclass(frozen=True, slots=True)
class MeasuredStages:
    """Stages with a latency from ``unfold profile``, and the processor that measured them, in words."""

    stages: tuple[str, ...]
    processor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySources:
    """The origin of the latencies on this machine.

    Attributes:
        machine: The hardware that this machine is in the spec.
        profiles: Timings of each stage with a stored profile.
        measured: Stages that are planned by their profile, by processor.
        overridden: Stages with a profile that the latencies of the spec override.
    """

    machine: str
    profiles: Mapping[str, tuple[BatchTiming, ...]] = field(default_factory=dict)
    measured: tuple[MeasuredStages, ...] = ()
    overridden: tuple[str, ...] = ()

    @property
    def measured_stages(self) -> frozenset[str]:
        """All stages that are planned by their profile."""
        return frozenset(stage for group in self.measured for stage in group.stages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What to plan: a pipeline, samples of its traffic, and the SLO.

    Attributes:
        name: Name of the spec.
        pipeline: Stages, hardware options and quotas.
        samples: Traffic that the plan must serve within the SLO, each.
        slo_s: The p99 target in seconds.
        sheds: Whether queries are dropped when they can no longer meet the SLO.
        seed: Seed of all random streams.
        budget: Effort of the search.
        frontier_slos_s: Targets of the cost-SLO frontier; ``None`` for the default ones.
        prices: Price of a replica by hardware.
        latency_sources: Origin of the latencies on this machine.
        tuner_policy: Name of the scaling rule in charge.
        tuner: Settings of the scaling rules.
        placement: Where replicas run.
        recorded_visits: Visits of recorded queries, shape (rows, stages), if routes are recorded.
        cascade: The cascade behind the stages, if they come from its run.
        serve_command: Command that serves a plan; empty if the stages cannot be served.
        activation_s: Measured seconds from ordering a replica until it serves, by stage.
        samplers: Draw a fresh sample of each traffic.
        traces: Arrivals of each traffic that is recorded; its fresh samples are resamples.
        confidence: Share of fresh samples on which a plan must meet the SLO; ``None`` for the sample only.
        spares: Replicas that any stage may lose while the plan still meets the SLO.
    """

    name: str
    pipeline: Pipeline
    samples: tuple[Sample, ...]
    slo_s: float
    sheds: bool
    seed: int
    budget: SearchBudget
    frontier_slos_s: tuple[float, ...] | None
    prices: Mapping[str, ReplicaPrice]
    latency_sources: LatencySources
    tuner_policy: str
    tuner: TunerSettings
    placement: PlacementPolicy
    recorded_visits: CountArray | None
    cascade: CascadeSummary | None
    serve_command: str
    activation_s: Mapping[str, float] = field(default_factory=dict)
    samplers: tuple[Sampler, ...] = ()
    traces: tuple[FloatArray, ...] = ()
    confidence: float | None = None
    spares: int = 0

    @property
    def max_fresh_share(self) -> float:
        """The largest share of fresh samples that the traces support."""
        return min(map(bound_fresh_share, self.traces), default=1.0)
