"""The pipeline as the algorithms see it: a DAG of stages, their hardware options, prices and quotas."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_pipeline._types import FloatArray
from unfold_pipeline.flow_syntax import REQUEST, Condition, parse_condition, split_source

COST_TOLERANCE = 1e-9
"""$/h below which two plans cost the same."""


@dataclass(frozen=True, slots=True)
class HardwareOption:
    """A kind of hardware on which a stage can run.

    Attributes:
        hardware: Its name in the spec.
        usd_per_hour: Price of a replica, on a full instance where several share one.
        latency_s: ``latency_s[b]`` is the time of a batch of ``b`` queries; index 0 is 0.
        wake_s: Extra time of the first batch on a replica that was idle.
        replicas_per_instance: Replicas, of any stages, that share one rented instance.
    """

    hardware: str
    usd_per_hour: float
    latency_s: FloatArray
    wake_s: float = 0.0
    replicas_per_instance: int = 1

    def count_instances(self, replicas: int) -> int:
        """Return how many instances must be rented for ``replicas``."""
        return -(-replicas // self.replicas_per_instance)

    @property
    def max_batch(self) -> int:
        """The largest batch with a known latency."""
        return self.latency_s.size - 1

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The maximum batch sizes that a plan may choose: powers of two, and the largest known one."""
        top = self.max_batch
        return tuple(sorted({*(1 << power for power in range(top.bit_length()) if 1 << power <= top), top}))

    @property
    def min_latency_s(self) -> float:
        """The least time of any batch."""
        return float(self.latency_s[1:].min())

    @property
    def throughputs(self) -> FloatArray:
        """Queries per second of one replica with full batches, by batch size; 0 at index 0."""
        rates: FloatArray = np.zeros(self.latency_s.size)
        rates[1:] = np.arange(1, self.latency_s.size) / self.latency_s[1:]
        return rates

    def throughput(self, batch: int) -> float:
        """Return queries per second of one replica with full batches of ``batch``."""
        return batch / float(self.latency_s[batch])

    def max_throughput(self, batch: int) -> float:
        """Return the maximum queries per second of one replica with any batch up to ``batch``."""
        return float(np.max(np.arange(1, batch + 1) / self.latency_s[1 : batch + 1]))


@dataclass(frozen=True, slots=True)
class Edge:
    """A flow from the stage with index ``parent``; a query continues here with probability ``share``.

    A service tests ``condition`` on the output of the parent instead, if there is one.
    """

    parent: int
    share: float = 1.0
    condition: Condition | None = None


@dataclass(frozen=True, slots=True)
class TensorSource:
    """What a stage reads: the row of the request if ``stage`` is ``None``, else an upstream output, or a tensor of it.

    The tensor is empty for the whole output.
    """

    stage: int | None
    tensor: str = ""


@dataclass(frozen=True, slots=True)
class TensorInput:
    """An input of a model, and what is joined into it."""

    name: str
    sources: tuple[TensorSource, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """A model of the pipeline: the origin of its queries and the hardware that can serve it.

    Attributes:
        name: Its name in the spec.
        parents: Flows from upstream stages; empty for an entry stage.
        options: Hardware that can serve it.
        share: Fraction of all queries that enter here, for an entry stage.
        fan_out: Mean number of items made of one query of the parent.
        max_wait_s: How long a batch that is not full may be delayed.
        inputs: What its model reads; empty for all that its parents return, or for the row of the request at an entry.
        missing: Stands for each value of a parent that was skipped.
    """

    name: str
    parents: tuple[Edge, ...]
    options: tuple[HardwareOption, ...]
    share: float = 1.0
    fan_out: float = 1.0
    max_wait_s: float = 0.0
    inputs: tuple[TensorInput, ...] = ()
    missing: float = math.nan

    @property
    def fastest_option(self) -> int:
        """Index of the hardware with the lowest latency for a single query; the cheapest of equals."""
        ranks = [
            (float(option.latency_s[1]), option.usd_per_hour * option.replicas_per_instance, index)
            for index, option in enumerate(self.options)
        ]
        return min(ranks)[2]

    def is_certain(self, edge: Edge) -> bool:
        """Return whether every item of the parent reaches this stage; a fan-out below 1 or a condition drops some."""
        return edge.share >= 1 and self.fan_out >= 1 and edge.condition is None


@dataclass(frozen=True, slots=True)
class StageConfig:
    """The configuration of one stage: index of its hardware option, maximum batch size, and replicas."""

    option: int
    batch: int
    replicas: int


Plan = tuple[StageConfig, ...]
"""A configuration for each stage, in topological order."""


@dataclass(frozen=True, slots=True)
class QuotaViolation:
    """Hardware that a plan uses beyond its quota, both in replicas over all stages."""

    hardware: str
    used: int
    quota: int


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Stages in topological order; ``quotas`` limit the replicas on a hardware over all stages."""

    stages: tuple[Stage, ...]
    quotas: tuple[tuple[str, int], ...] = ()

    def children(self, index: int) -> tuple[int, ...]:
        """Return the stages that receive from stage ``index``."""
        return tuple(
            child for child, stage in enumerate(self.stages) if any(edge.parent == index for edge in stage.parents)
        )

    def ancestors(self, index: int) -> tuple[int, ...]:
        """Return stage ``index`` and all stages upstream of it, in topological order."""
        members = {index}
        for stage in range(index, -1, -1):
            if stage in members:
                members |= {edge.parent for edge in self.stages[stage].parents}
        return tuple(sorted(members))

    def stage_price(self, index: int, config: StageConfig) -> float:
        """Return the $/h of one stage on full instances, the least that it can cost."""
        return config.replicas * self.stages[index].options[config.option].usd_per_hour

    def cost(self, plan: Sequence[StageConfig]) -> float:
        """Return the $/h of a plan, or of its first stages: whole instances, shared by the stages."""
        return compute_hourly_cost(self.chosen_options(plan), [config.replicas for config in plan])

    def cost_lower_bound(self, plan: Sequence[StageConfig]) -> float:
        """Return the $/h of a plan on full instances only: additive over stages and never above its cost."""
        return sum(self.stage_price(index, config) for index, config in enumerate(plan))

    def chosen_options(self, plan: Sequence[StageConfig]) -> tuple[HardwareOption, ...]:
        """Return the hardware option of each stage of a plan."""
        return tuple([self.stages[index].options[config.option] for index, config in enumerate(plan)])

    def split_cost(self, plan: Sequence[StageConfig]) -> tuple[float, ...]:
        """Return the $/h of each stage; stages on shared instances split the unused capacity."""
        options = self.chosen_options(plan)
        used = count_by_hardware(options, [config.replicas for config in plan])
        prices = []
        for index, (config, option) in enumerate(zip(plan, options, strict=True)):
            price, size = self.stage_price(index, config), option.replicas_per_instance
            if size > 1:
                price = price * option.count_instances(used[option.hardware]) * size / used[option.hardware]
            prices.append(price)
        return tuple(prices)

    def is_within_quotas(self, plan: Sequence[StageConfig]) -> bool:
        """Return whether the first ``len(plan)`` stages respect the quotas."""
        return not self.quotas or not self.find_quota_violations(plan)

    def find_quota_violations(self, plan: Sequence[StageConfig]) -> tuple[QuotaViolation, ...]:
        """Return the hardware on which the first ``len(plan)`` stages exceed the quota."""
        used = count_by_hardware(self.chosen_options(plan), [config.replicas for config in plan])
        return tuple(
            [QuotaViolation(name, used[name], quota) for name, quota in self.quotas if used.get(name, 0) > quota]
        )


def replace_config(plan: Plan, index: int, config: StageConfig) -> Plan:
    """Return the plan with another configuration of stage ``index``."""
    return (*plan[:index], config, *plan[index + 1 :])


def remove_replica(plan: Plan, index: int) -> Plan:
    """Return the plan with a replica less at stage ``index``."""
    return replace_config(plan, index, replace(plan[index], replicas=plan[index].replicas - 1))


def count_by_hardware(options: Sequence[HardwareOption], replicas: Sequence[int]) -> dict[str, int]:
    """Return the number of replicas on each hardware."""
    used: dict[str, int] = {}
    for option, count in zip(options, replicas, strict=True):
        used[option.hardware] = used.get(option.hardware, 0) + count
    return used


def compute_hourly_cost(options: Sequence[HardwareOption], replicas: Sequence[int]) -> float:
    """Return the $/h of replicas by stage: whole instances, which replicas of any stage share."""
    used: dict[str, int] = {}
    total = 0.0
    for option, count in zip(options, replicas, strict=True):
        if option.replicas_per_instance == 1:  # the usual case, evaluated for each node of a search
            total += count * option.usd_per_hour
            continue
        previous = used.get(option.hardware, 0)
        used[option.hardware] = previous + count
        added = option.count_instances(previous + count) - option.count_instances(previous)
        total += added * option.replicas_per_instance * option.usd_per_hour
    return total


def build_edges(
    after: Mapping[str, float], conditions: Mapping[str, str], positions: Mapping[str, int]
) -> tuple[Edge, ...]:
    """Return the flows into a stage.

    Args:
        after: By upstream stage, the fraction of its queries that continues; 0 for no flow.
        conditions: By upstream stage, the condition on its output, if there is one.
        positions: Index of each stage.
    """
    return tuple(
        Edge(positions[parent], share, parse_condition(conditions[parent]) if parent in conditions else None)
        for parent, share in after.items()
        if share > 0
    )


def build_inputs(inputs: Mapping[str, Sequence[str]], positions: Mapping[str, int]) -> tuple[TensorInput, ...]:
    """Return what the model of a stage reads, from the sources of each input; ``positions`` index the stages."""
    return tuple(
        TensorInput(
            tensor,
            tuple(
                TensorSource(positions.get(stage), name)
                for stage, name in (split_source(source, {*positions, REQUEST}) for source in sources)
            ),
        )
        for tensor, sources in inputs.items()
    )


@dataclass(frozen=True, slots=True)
class UnavoidableTime:
    """Seconds that a query cannot avoid before (``upstream_s``) and after (``downstream_s``) each stage."""

    upstream_s: tuple[float, ...]
    downstream_s: tuple[float, ...]


def compute_unavoidable_time(pipeline: Pipeline, stage_s: Sequence[float]) -> UnavoidableTime:
    """Bound the time around each stage, if stage ``i`` takes at least ``stage_s[i]`` seconds.

    Downstream, a flow that a query may skip counts as nothing. Upstream, the shortest path to the stage counts, unless
    every query takes a longer one.
    """
    upstream = [0.0] * len(stage_s)
    downstream = [0.0] * len(stage_s)
    visits_all: list[bool] = []
    for index, stage in enumerate(pipeline.stages):
        paths = [
            (upstream[edge.parent] + stage_s[edge.parent], visits_all[edge.parent] and stage.is_certain(edge))
            for edge in stage.parents
        ]
        certain_paths = [seconds for seconds, is_certain in paths if is_certain]
        upstream[index] = max(certain_paths) if certain_paths else min((seconds for seconds, _ in paths), default=0.0)
        visits_all.append(bool(certain_paths) or (not paths and stage.share >= 1))
    for index in range(len(stage_s) - 1, -1, -1):
        stage = pipeline.stages[index]
        for edge in stage.parents:
            if stage.is_certain(edge):
                downstream[edge.parent] = max(downstream[edge.parent], stage_s[index] + downstream[index])
    return UnavoidableTime(tuple(upstream), tuple(downstream))


def compute_longest_path(pipeline: Pipeline, stage_s: Sequence[float]) -> float:
    """Return the seconds of the longest path if stage ``i`` takes ``stage_s[i]`` and every flow is taken."""
    ends: list[float] = []
    for index, stage in enumerate(pipeline.stages):
        ends.append(max((ends[edge.parent] for edge in stage.parents), default=0.0) + stage_s[index])
    return max(ends)


def interpolate_latency(points: Sequence[tuple[int, float]]) -> FloatArray:
    """Return seconds by batch size, piecewise linear between measured points; the first must be batch 1."""
    sizes, seconds = zip(*sorted(points), strict=True)
    latency_s: FloatArray = np.interp(np.arange(sizes[-1] + 1), sizes, seconds)
    latency_s[0] = 0.0
    return latency_s


def count_required_replicas(rate: float, throughput: float) -> int:
    """Return the least replicas that serve ``rate`` queries per second."""
    return max(1, math.ceil(rate / throughput - 1e-9))
