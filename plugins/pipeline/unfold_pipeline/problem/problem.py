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
        max_simulated_queries: queries of a stage that may be simulated.
        max_nodes: search nodes that the proof may expand.
        prove: whether to prove that no plan is cheaper.
        compound: whether greedy may combine two steps.
    """

    max_simulated_queries: float = 2.5e8
    max_nodes: int = 25_000
    prove: bool = True
    compound: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TunerSettings:
    """Settings of the scaling rules.

    Attributes:
        delay_s: from ordering a replica until it serves.
        delay_source: where that time comes from.
        has_floor: whether replica counts never fall below the plan.
        margin: factor on the demand.
        hold_s: how long demand must be lower before replicas are removed.
        max_replicas: maximum replicas of a stage.
        sheds: whether queries that cannot meet their deadline are dropped in a replay.
        min_window_s: windows of the envelope below this length are ignored by the table rule.
        max_wait_s: the waiting bound of the service; what would wait for longer is refused and never queues.
        stores_table: whether the plan holds replicas by rate, for autoscalers of other systems.
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
        has_gangs: whether the replicas of a stage start together on Ray Serve.
        strategy: how Ray Serve places gangs, ``PACK`` or ``SPREAD``.
        max_per_node: maximum replicas of a stage on a node of Ray Serve.
        is_pinned: whether each local replica is pinned to a core.
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
        machine: the hardware that this machine is in the spec.
        profiles: timings of each stage with a stored profile.
        measured: stages that are planned by their profile, by processor.
        overridden: stages with a profile that the latencies of the spec override.
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
        name: name of the spec.
        pipeline: stages, hardware options and quotas.
        samples: traffic that the plan must serve within the SLO, each.
        slo_s: the p99 target in seconds.
        sheds: whether queries are dropped when they can no longer meet the SLO.
        seed: seed of all random streams.
        budget: effort of the search.
        frontier_slos_s: targets of the cost-SLO frontier; ``None`` for the default ones.
        prices: price of a replica by hardware.
        latency_sources: origin of the latencies on this machine.
        tuner_policy: name of the scaling rule in charge.
        tuner: settings of the scaling rules.
        placement: where replicas run.
        recorded_visits: visits of recorded queries, shape (rows, stages), if routes are recorded.
        cascade: the cascade behind the stages, if they come from its run.
        serve_command: command that serves a plan; empty if the stages cannot be served.
        activation_s: measured seconds from ordering a replica until it serves, by stage.
        samplers: draw a fresh sample of each traffic.
        traces: arrivals of each traffic that is recorded; its fresh samples are resamples.
        confidence: share of fresh samples on which a plan must meet the SLO; ``None`` for the sample only.
        spares: replicas that any stage may lose while the plan still meets the SLO.
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
