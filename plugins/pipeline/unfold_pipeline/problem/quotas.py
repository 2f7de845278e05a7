"""Quotas over time: replica counts of all stages within the quotas, and the fluid queue that raises them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray
from unfold_pipeline.problem.pipeline import Pipeline, Plan
from unfoldkit.jit import compiled


@dataclass(frozen=True, slots=True)
class QuotaLimits:
    """The quotas that the stages of a plan compete for.

    Attributes:
        group: Index of the quota of each stage, -1 for none; shape (stages,).
        quota: Maximum replicas of each quota; shape (quotas,).
        planned: Replicas of each stage in the plan, which are within the quotas; no stage that wants them gets fewer.
    """

    group: CountArray
    quota: CountArray
    planned: CountArray

    def share_replicas(self, wanted: Sequence[int]) -> tuple[int, ...]:
        """Return what each stage gets: its planned replicas, then more where the smallest fraction is met."""
        return tuple(int(count) for count in self.limit_counts(np.array([wanted], dtype=np.int64))[0])

    def limit_counts(self, wanted: CountArray) -> CountArray:
        """Return what each stage gets at each second, shape (seconds, stages)."""
        result = np.ascontiguousarray(wanted).copy()
        if self.quota.size:
            _limit_counts(result, self.group, self.quota, self.planned)
        return result


@dataclass(slots=True, kw_only=True)
class FluidQueue:
    """A fluid queue per stage, which remembers its backlog and the replicas on their way between calls.

    Attributes:
        arriving_replicas: Replicas that serve in each of the next seconds, shape (delay, stages).
        backlog: Items that wait, shape (stages,).
        max_replicas: Maximum replicas of a stage.
        max_wait_s: Items that would wait for longer are refused and never queue.
    """

    arriving_replicas: CountArray
    backlog: FloatArray
    max_replicas: int
    max_wait_s: float = math.inf

    def raise_targets(
        self, targets: CountArray, arrival_rates: FloatArray, service_rates: FloatArray, limits: QuotaLimits
    ) -> CountArray:
        """Return targets, within the quotas, that empty the queues two seconds after an order serves.

        Args:
            targets: Replicas at successive seconds, shape (seconds, stages).
            arrival_rates: Items that arrive per second, shape (seconds, stages).
            service_rates: Items per second that one replica serves, shape (seconds, stages).
            limits: The quotas.
        """
        result = np.ascontiguousarray(targets).copy()
        delay_ticks = len(self.arriving_replicas)
        serving = np.empty((len(result) + delay_ticks, result.shape[1]), dtype=np.int64)
        serving[:delay_ticks] = self.arriving_replicas
        _raise_targets(
            result, np.ascontiguousarray(arrival_rates), np.ascontiguousarray(service_rates), serving, self.backlog,
            self.max_replicas, self.max_wait_s, limits.group, limits.quota, limits.planned,
        )  # fmt: skip
        self.arriving_replicas = serving[len(result) :].copy()
        return result

    def set_delay(self, delay_ticks: int) -> None:
        """Let orders serve after so many seconds from now on; what was ordered last serves as long as need be."""
        rows = np.minimum(np.arange(delay_ticks), len(self.arriving_replicas) - 1)
        self.arriving_replicas = self.arriving_replicas[rows]

    def begin(self, replicas: CountArray) -> None:
        """Let ``replicas`` serve from now on, shape (stages,), with nothing on its way."""
        self.arriving_replicas = np.tile(replicas, (len(self.arriving_replicas), 1))

    def observe(self, serving: CountArray, queued: FloatArray) -> None:
        """Replace the estimate of the present by what was measured.

        Args:
            serving: Replicas that exist, shape (stages,); no more can serve.
            queued: Items that wait, NaN where that is unknown, shape (stages,).
        """
        self.arriving_replicas[0] = np.minimum(self.arriving_replicas[0], serving)
        self.backlog = np.where(np.isnan(queued), self.backlog, queued)


def build_fluid_queue(
    start_replicas: CountArray, delay_ticks: int, max_replicas: int, max_wait_s: float = math.inf
) -> FluidQueue:
    """Return empty queues before the first second.

    Args:
        start_replicas: Replicas that serve, shape (stages,).
        delay_ticks: Seconds from ordering a replica until it serves.
        max_replicas: Maximum replicas of a stage.
        max_wait_s: The waiting bound of the service.
    """
    arriving = np.tile(np.asarray(start_replicas, dtype=np.int64), (max(1, delay_ticks), 1))
    return FluidQueue(
        arriving_replicas=arriving,
        backlog=np.zeros(arriving.shape[1]),
        max_replicas=max_replicas,
        max_wait_s=max_wait_s,
    )


def build_quota_limits(pipeline: Pipeline, plan: Plan) -> QuotaLimits:
    """Return the quotas that apply to the stages of a plan, or to its first stages."""
    names = [option.hardware for option in pipeline.chosen_options(plan)]
    indices = {name: index for index, (name, _) in enumerate(pipeline.quotas)}
    group = np.array([indices.get(name, -1) for name in names], dtype=np.int64)
    planned = np.array([config.replicas for config in plan], dtype=np.int64)
    return QuotaLimits(group, np.array([quota for _, quota in pipeline.quotas], dtype=np.int64), planned)


def count_units_in_quotas(pipeline: Pipeline, plan: Plan) -> int | None:
    """Return how often one replica of each stage fits into the quotas; ``None`` where no quota applies."""
    limits = build_quota_limits(pipeline, plan)
    stages = np.bincount(limits.group[limits.group >= 0], minlength=limits.quota.size)
    return min((int(quota // count) for quota, count in zip(limits.quota, stages, strict=True) if count), default=None)


@compiled
def _share_replicas(row: CountArray, group: CountArray, quota: CountArray, planned: CountArray) -> None:
    for number in range(quota.size):
        wanted = np.where(group == number, row, 0)
        if wanted.sum() <= quota[number]:
            continue
        remaining = quota[number]
        for stage in range(row.size):
            if group[stage] == number:
                row[stage] = min(row[stage], planned[stage])
                remaining -= row[stage]
        while remaining > 0:
            min_fraction, neediest = math.inf, -1
            for stage in range(row.size):
                if group[stage] == number and row[stage] < wanted[stage] and row[stage] / wanted[stage] < min_fraction:
                    min_fraction, neediest = row[stage] / wanted[stage], stage
            row[neediest] += 1
            remaining -= 1


@compiled
def _limit_counts(counts: CountArray, group: CountArray, quota: CountArray, planned: CountArray) -> None:
    for tick in range(counts.shape[0]):
        _share_replicas(counts[tick], group, quota, planned)


@compiled
def _raise_targets(
    targets: CountArray,
    arrival_rates: FloatArray,
    service_rates: FloatArray,
    serving: CountArray,
    backlog: FloatArray,
    max_replicas: int,
    max_wait_s: float,
    group: CountArray,
    quota: CountArray,
    planned: CountArray,
) -> None:
    ticks, stages = targets.shape
    delay_ticks = serving.shape[0] - ticks
    for tick in range(ticks):
        for stage in range(stages):
            rate, work = arrival_rates[tick, stage], service_rates[tick, stage]
            capacity = serving[tick, stage] * work
            growth = rate - capacity
            backlog[stage] = min(max(0.0, backlog[stage] + rate - capacity), max_wait_s * capacity)
            expected = backlog[stage] + delay_ticks * growth if backlog[stage] > work else 0.0
            expected = min(expected, max_wait_s * capacity)
            if expected > work * targets[tick, stage]:
                required = math.ceil(expected / (2.0 * work) + rate / work)
                targets[tick, stage] = min(max_replicas, max(targets[tick, stage], required))
            if max_wait_s < math.inf:
                # the backlog of a service that refuses comes and goes: what is starting for it is not cancelled
                for ordered in range(tick + 1, tick + delay_ticks):
                    targets[tick, stage] = max(targets[tick, stage], serving[ordered, stage])
        _share_replicas(targets[tick], group, quota, planned)
        serving[tick + delay_ticks] = targets[tick]
