"""The rate-to-replica table: the cheapest replicas and batch sizes at every rate, on the hardware of a plan.

Replicas in proportion to the rate ignore two effects: a small plan needs much slack and a large one little, and large
batches pay only where many queries arrive.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_pipeline._types import CountArray, FloatArray
from unfold_pipeline.estimator.slo import SloChecker, build_slo_checker
from unfold_pipeline.planner.bounds import find_least_count
from unfold_pipeline.problem.pipeline import COST_TOLERANCE, Pipeline, Plan, replace_config
from unfold_pipeline.problem.sample import Sample, slice_sample
from unfoldkit.arrivals.envelope import LONGEST_WINDOW_S

RATE_FACTORS = tuple(float(factor) for factor in np.geomspace(0.25, 4.0, 65))
STRIDE = 4
MIN_QUERIES = 100
"""With so many queries one may be late: fewer say nothing about a percentile."""


@dataclass(frozen=True, slots=True)
class ReplicaTable:
    """A row for each rate factor: replicas and batch sizes that meet the SLO if the sample arrives so much faster."""

    factors: tuple[float, ...]
    replicas: tuple[tuple[int, ...], ...]
    batches: tuple[tuple[int, ...], ...]

    def look_up_replicas(self, factors: FloatArray) -> CountArray:
        """Return the replicas for each rate factor, shape (factors, stages); proportional beyond the last row."""
        counts = np.array(self.replicas, dtype=np.int64)[self._find_rows(factors)]
        is_beyond = factors > self.factors[-1] + 1e-9
        counts[is_beyond] = np.ceil(counts[is_beyond] * factors[is_beyond, None] / self.factors[-1]).astype(np.int64)
        return counts

    def look_up_batches(self, factors: FloatArray) -> CountArray:
        """Return the maximum batch sizes for each rate factor, shape (factors, stages)."""
        return np.array(self.batches, dtype=np.int64)[self._find_rows(factors)]

    def _find_rows(self, factors: FloatArray) -> CountArray:
        rows: CountArray = np.minimum(np.searchsorted(self.factors, factors - 1e-9), len(self.factors) - 1)
        return rows


def build_replica_table(
    pipeline: Pipeline, plan: Plan, samples: Sequence[Sample], slo_s: float, max_replicas: int, spares: int = 0
) -> ReplicaTable:
    """Return the table of a plan.

    Args:
        pipeline: The stages; quotas do not limit the rows.
        plan: Hardware, and the batch sizes to start with.
        samples: Traffic at factor 1. Rows meet the SLO on each, and in the busiest minute of each with at least a
            hundred queries.
        slo_s: The target in seconds.
        max_replicas: Maximum replicas of a stage.
        spares: Replicas that any stage may lose while a row still meets the SLO.
    """
    # traffic may stay at a rate that the sample had for so short a time that all of its queries could be late
    busy = [minute for sample in samples if MIN_QUERIES <= (minute := find_busiest_minute(sample)).size < sample.size]
    builder = TableBuilder(replace(pipeline, quotas=()), plan, (*samples, *busy), slo_s, max_replicas, spares)
    coarse_factors = RATE_FACTORS[::STRIDE]
    rough = [builder.build_rough_row(factor) for factor in coarse_factors]
    rows = [
        builder.choose_row(builder.build_checker(factor), factor, row, rough)
        for factor, row in zip(coarse_factors, rough, strict=True)
    ]
    all_rows: list[Plan] = []
    for index, (low, high) in enumerate(itertools.pairwise(rows)):
        between = RATE_FACTORS[index * STRIDE + 1 : (index + 1) * STRIDE]
        # where both ends need the same, so does what lies between
        all_rows += [low, *(low if low == high else builder.interpolate_row(factor, low, high) for factor in between)]
    return _build_monotone_table([*all_rows, rows[-1]])


def build_fixed_batch_table(checker: SloChecker, plan: Plan, max_replicas: int) -> ReplicaTable:
    """Return the table of a plan with constant batch sizes, as those of other systems; spares are on top.

    Args:
        checker: Pipeline, samples, SLO and spares; quotas do not limit the rows.
        plan: Hardware and batch sizes.
        max_replicas: Maximum replicas of a stage.
    """
    pipeline = replace(checker.pipeline, quotas=())
    builder = TableBuilder(pipeline, plan, checker.samples, checker.slo_s, max_replicas, checker.spares)
    factors = RATE_FACTORS[::STRIDE]
    table = _build_monotone_table([builder.minimize_replicas(builder.build_checker(at), at) for at in factors])
    return replace(table, factors=factors)


@dataclass(frozen=True, slots=True)
class TableBuilder:
    """Finds the rows of a table.

    Attributes:
        pipeline: The stages, without quotas.
        plan: The plan to scale.
        samples: Its traffic.
        slo_s: The target in seconds.
        max_replicas: Maximum replicas of a stage.
        spares: Replicas that any stage may lose.
    """

    pipeline: Pipeline
    plan: Plan
    samples: tuple[Sample, ...]
    slo_s: float
    max_replicas: int
    spares: int = 0

    def build_checker(self, factor: float) -> SloChecker:
        """Return the SLO checker of the samples sped up by ``factor``."""
        samples = [_speed_up(sample, factor) for sample in self.samples]
        return build_slo_checker(self.pipeline, samples, self.slo_s, self.spares)

    def build_rough_row(self, factor: float) -> Plan:
        """Return the least replicas, with the batch sizes of the plan or others of single stages."""
        checker = self.build_checker(factor)
        return _swap_batches(checker, self.minimize_replicas(checker, factor))

    def minimize_replicas(self, checker: SloChecker, factor: float) -> Plan:
        """Scale the plan up in proportion until it meets the SLO, then remove spare replicas."""

        def scale_plan(tenths: int) -> Plan:
            return tuple(
                replace(config, replicas=max(1, math.ceil(config.replicas * factor * tenths / 10)))
                for config in self.plan
            )

        sufficient = find_least_count(lambda tenths: checker.meets_slo(scale_plan(tenths)), 10)
        thin = _remove_spare_replicas(checker, scale_plan(min(sufficient, 10 * self.max_replicas)))
        return tuple(replace(config, replicas=min(self.max_replicas, config.replicas)) for config in thin)

    def interpolate_row(self, factor: float, low: Plan, high: Plan) -> Plan:
        """Return the row between two others."""
        checker = self.build_checker(factor)
        if checker.meets_slo(high):
            row = _remove_spare_replicas(checker, high)
        else:
            row = self.minimize_replicas(checker, factor)
        return self.choose_row(checker, factor, row, (low, high))

    def choose_row(self, checker: SloChecker, factor: float, row: Plan, neighbours: Sequence[Plan]) -> Plan:
        """Return the cheapest of a row and its variants with the batch sizes of ``neighbours``.

        Of equal costs the row wins that sustains the highest rate.
        """
        candidates = [row]
        for batches in dict.fromkeys(tuple(config.batch for config in plan) for plan in neighbours):
            variant = tuple(replace(config, batch=size) for config, size in zip(row, batches, strict=True))
            if variant != row and checker.meets_slo(variant):
                candidates.append(_remove_spare_replicas(checker, variant))
        max_cost = min(map(self.pipeline.cost, candidates)) + COST_TOLERANCE
        cheapest = [plan for plan in candidates if self.pipeline.cost(plan) <= max_cost]
        if len(cheapest) == 1:
            return self._balance_stages(cheapest[0], factor)
        return self._balance_stages(max(cheapest, key=lambda plan: self._find_max_factor(plan, factor)), factor)

    def _find_max_factor(self, plan: Plan, factor: float) -> float:
        """Return approximately the largest factor up to which a plan that suffices at ``factor`` meets the SLO."""
        low, high = factor, 2 * factor
        for _ in range(4):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.build_checker(middle).meets_slo(plan) else (low, middle)
        return low

    def _balance_stages(self, plan: Plan, factor: float) -> Plan:
        """Add replicas so that no stage saturates before the most expensive one, as long as they pay off.

        A stage that sustains a surge to the end of the table needs no more.
        """
        surge = RATE_FACTORS[-1] * factor * max(sample.rate for sample in self.samples)
        stages = range(len(plan))
        costliest = max(stages, key=lambda index: self.pipeline.stage_price(index, plan[index]))
        while (tightest := min(stages, key=lambda index: self._sustained_rate(index, plan))) != costliest:
            wider = replace(plan[tightest], replicas=plan[tightest].replicas + 1)
            candidate = replace_config(plan, tightest, wider)
            rate = self._sustained_rate(tightest, plan)
            gain = min(self._sustained_rate(index, candidate) for index in stages) / rate
            cost_ratio = self.pipeline.cost(candidate) / self.pipeline.cost(plan)
            if gain <= cost_ratio or wider.replicas > self.max_replicas or rate >= surge:
                break
            plan = candidate
        return plan

    def _sustained_rate(self, index: int, plan: Plan) -> float:
        """Return the queries per second that full batches of a stage sustain."""
        config = plan[index]
        option = self.pipeline.stages[index].options[config.option]
        share = max(sample.share(index) for sample in self.samples)
        return config.replicas * option.throughput(config.batch) / max(share, 1e-12)


def find_busiest_minute(sample: Sample) -> Sample:
    """Return the queries of the envelope's longest window at the time when most arrived."""
    ends = np.searchsorted(sample.arrivals, sample.arrivals + LONGEST_WINDOW_S)
    start = int(np.argmax(ends - np.arange(sample.size)))
    return slice_sample(sample, start, int(ends[start]))


def _speed_up(sample: Sample, factor: float) -> Sample:
    visits = tuple(replace(stage, origin_s=stage.origin_s / factor) for stage in sample.visits)
    return replace(sample, arrivals=sample.arrivals / factor, visits=visits)


def _swap_batches(checker: SloChecker, plan: Plan) -> Plan:
    """Change the batch size of one stage after the other where the plan then gets by with cheaper replicas."""
    best = plan
    for index, config in enumerate(plan):
        for batch in checker.pipeline.stages[index].options[config.option].batch_sizes:
            candidate = replace_config(best, index, replace(best[index], batch=batch))
            if batch != best[index].batch and checker.meets_slo(candidate):
                best = min(best, _remove_spare_replicas(checker, candidate), key=checker.pipeline.cost)
    return best


def _remove_spare_replicas(checker: SloChecker, plan: Plan) -> Plan:
    """Remove replicas that the SLO does not need, at the most expensive stages first."""
    for index in sorted(range(len(plan)), key=lambda stage: -checker.pipeline.stage_price(stage, plan[stage])):
        while plan[index].replicas > 1:
            smaller = replace_config(plan, index, replace(plan[index], replicas=plan[index].replicas - 1))
            if not checker.meets_slo(smaller):
                break
            plan = smaller
    return plan


def _build_monotone_table(rows: Sequence[Plan]) -> ReplicaTable:
    """Return a table in which each row has at least the replicas of the rows before."""
    counts = np.maximum.accumulate([[config.replicas for config in row] for row in rows], axis=0)
    batches = tuple(tuple(config.batch for config in row) for row in rows)
    return ReplicaTable(RATE_FACTORS, tuple(tuple(row) for row in counts.tolist()), batches)
