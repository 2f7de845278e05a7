"""Coarse-grained baselines: the whole pipeline as one black box with one batch size, replicated as a unit.

The unit has one replica of each stage. Its hardware and batch size have the least price per throughput; a
batch takes no longer than the SLO on the longest path. Stages share central queues, which favours the baseline.
Source: the baselines CG-Mean and CG-Peak of InferLine (SoCC 2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from unfold_pipeline._types import FloatArray
from unfold_pipeline.estimator.slo import SloChecker
from unfold_pipeline.problem.pipeline import Plan, StageConfig, compute_longest_path, count_required_replicas
from unfold_pipeline.problem.quotas import count_units_in_quotas
from unfoldkit.arrivals.envelope import compute_envelope

RANK_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class PipelineUnit:
    """One copy of the pipeline with one replica per stage.

    Attributes:
        configs: Configuration of each stage.
        throughput: Queries per second of the unit.
        usd_per_hour: Price of the unit; where replicas share instances, its part of the units for the mean rate.
    """

    configs: Plan
    throughput: float
    usd_per_hour: float

    def replicate(self, count: int) -> Plan:
        """Return the plan of ``count`` units."""
        return tuple(replace(config, replicas=count) for config in self.configs)


@dataclass(frozen=True, slots=True)
class CoarseBaseline:
    """A coarse-grained plan of ``count`` units, its $/h and its percentile in seconds."""

    unit: PipelineUnit
    count: int
    hourly_cost: float
    tail_s: float


@dataclass(frozen=True, slots=True)
class CoarseBaselines:
    """The coarse-grained plans for the peak rate (CG-Peak) and the mean rate (CG-Mean)."""

    peak: CoarseBaseline
    mean: CoarseBaseline


def plan_coarse_baselines(checker: SloChecker) -> CoarseBaselines | None:
    """Return CG-Peak and CG-Mean, or ``None`` if no unit meets the SLO."""
    unit = find_cheapest_unit(checker)
    if unit is None:
        return None
    return CoarseBaselines(
        _build_baseline(checker, unit, count_peak_units(checker, unit)),
        _build_baseline(checker, unit, count_mean_units(checker, unit)),
    )


def find_cheapest_unit(checker: SloChecker) -> PipelineUnit | None:
    """Return the unit of least price per throughput.

    Units precede others if the quotas leave enough of them for the peak rate.

    Returns:
        ``None`` if no batch size meets the SLO on hardware where the quotas leave a replica of each stage.
    """
    sizes = sorted(
        {batch for stage in checker.pipeline.stages for option in stage.options for batch in option.batch_sizes}
    )
    search = _UnitSearch(checker, measure_peak_rate(checker))
    for size in sizes:
        search.explore(_collect_offers(checker, size), ())
    return search.unit


def limit_units(checker: SloChecker, unit: PipelineUnit) -> float:
    """Return the maximum number of units within the quotas; infinite without quotas."""
    count = count_units_in_quotas(checker.pipeline, unit.configs)
    return math.inf if count is None else count


def count_mean_units(checker: SloChecker, unit: PipelineUnit) -> int:
    """Return the units for the mean rate of the samples (CG-Mean), within the quotas."""
    required = count_required_replicas(checker.max_mean_rate, unit.throughput)
    return int(min(required, limit_units(checker, unit)))


def measure_peak_rate(checker: SloChecker) -> float:
    """Return the maximum queries per second in any window as long as the SLO."""
    window_s = np.array([checker.slo_s])
    counts = [int(compute_envelope(sample.arrivals, window_s)[0]) for sample in checker.samples]
    return max(counts) / checker.slo_s


def count_peak_units(checker: SloChecker, unit: PipelineUnit) -> int:
    """Return the units for the peak rate in windows as long as the SLO (CG-Peak), within the quotas."""
    required = count_required_replicas(measure_peak_rate(checker), unit.throughput)
    return int(min(required, limit_units(checker, unit)))


def _build_baseline(checker: SloChecker, unit: PipelineUnit, count: int) -> CoarseBaseline:
    plan = unit.replicate(count)
    return CoarseBaseline(unit, count, checker.pipeline.cost(plan), checker.tail_latency(plan))


@dataclass(frozen=True, slots=True)
class _UnitOffers:
    """What each stage can run on with one batch size.

    Attributes:
        batches: Batch size by stage and option.
        batch_s: Seconds of such a batch, by stage and option.
        query_rates: Queries of the pipeline per second, by stage and option.
        throughputs: The possible throughputs of a unit, shape (throughputs,).
        open_prices: ``open_prices[i, j]`` is the least $/h of the stages from ``i`` on that sustain throughput ``j``.
    """

    batches: tuple[tuple[int, ...], ...]
    batch_s: tuple[tuple[float, ...], ...]
    query_rates: tuple[tuple[float, ...], ...]
    throughputs: FloatArray
    open_prices: FloatArray


def _collect_offers(checker: SloChecker, size: int) -> _UnitOffers:
    """Return the offers; a stage that was not profiled with so large a batch uses the largest known one."""
    stage_options = [stage.options for stage in checker.pipeline.stages]
    batches = tuple(tuple(min(size, option.max_batch) for option in options) for options in stage_options)
    seconds, rates, prices = [], [], []
    for index, (options, sizes) in enumerate(zip(stage_options, batches, strict=True)):
        share = max(1e-12, *(sample.share(index) for sample in checker.samples))
        seconds.append(tuple(float(option.latency_s[b]) for option, b in zip(options, sizes, strict=True)))
        rates.append(tuple(option.throughput(b) / share for option, b in zip(options, sizes, strict=True)))
        prices.append(np.array([option.usd_per_hour for option in options]))
    throughputs = np.unique(np.concatenate(rates))
    is_sufficient = [np.array(stage_rates)[:, None] >= throughputs for stage_rates in rates]
    min_prices = [
        np.where(mask, stage_prices[:, None], math.inf).min(axis=0)
        for mask, stage_prices in zip(is_sufficient, prices, strict=True)
    ]
    min_prices.append(np.zeros(throughputs.size))
    open_prices = np.cumsum(min_prices[::-1], axis=0)[::-1]
    return _UnitOffers(batches, tuple(seconds), tuple(rates), throughputs, open_prices)


@dataclass(slots=True)
class _UnitSearch:
    """Depth-first search for the best unit, with its rank."""

    checker: SloChecker
    peak_rate: float
    unit: PipelineUnit | None = None
    rank: tuple[bool, float, float, tuple[int, ...]] | None = None

    def explore(self, offers: _UnitOffers, prefix: Plan) -> None:
        """Visit all units that begin with ``prefix`` and can improve on the best one."""
        stage = len(prefix)
        if stage == len(offers.batches):
            self._record(offers, prefix)
            return
        for option, batch in enumerate(offers.batches[stage]):
            longer = (*prefix, StageConfig(option, batch, 1))
            if not self._is_worse(offers, longer):
                self.explore(offers, longer)

    def _is_worse(self, offers: _UnitOffers, prefix: Plan) -> bool:
        """Return whether no unit that begins with ``prefix`` meets the SLO and improves on the best one."""
        pipeline = self.checker.pipeline
        fixed_s = [seconds[config.option] for seconds, config in zip(offers.batch_s, prefix, strict=False)]
        open_s = map(min, offers.batch_s[len(prefix) :])
        if compute_longest_path(pipeline, [*fixed_s, *open_s]) > self.checker.slo_s:
            return True
        if self.rank is None:
            return False
        rate = min(rates[config.option] for rates, config in zip(offers.query_rates, prefix, strict=False))
        is_reachable = offers.throughputs <= rate
        prices = pipeline.cost_lower_bound(prefix) + offers.open_prices[len(prefix)][is_reachable]
        price = np.min(prices / offers.throughputs[is_reachable])
        return (self._is_short(prefix, rate), price * (1 - RANK_TOLERANCE)) > self.rank[:2]

    def _is_short(self, prefix: Plan, rate: float) -> bool:
        """Return whether the quotas leave too few units that begin with ``prefix`` for the peak rate."""
        limit = count_units_in_quotas(self.checker.pipeline, prefix)
        return limit is not None and count_required_replicas(self.peak_rate, rate) > limit

    def _record(self, offers: _UnitOffers, configs: Plan) -> None:
        checker = self.checker
        rate = min(rates[config.option] for rates, config in zip(offers.query_rates, configs, strict=True))
        unit = _price_unit(checker, PipelineUnit(configs, rate, checker.pipeline.cost_lower_bound(configs)))
        options = tuple(config.option for config in configs)
        is_short = count_required_replicas(self.peak_rate, rate) > limit_units(checker, unit)
        rank = (is_short, unit.usd_per_hour / rate, unit.usd_per_hour, options)
        if limit_units(checker, unit) >= 1 and (self.rank is None or rank < self.rank):
            self.unit, self.rank = unit, rank


def _price_unit(checker: SloChecker, unit: PipelineUnit) -> PipelineUnit:
    if all(option.replicas_per_instance == 1 for option in checker.pipeline.chosen_options(unit.configs)):
        return unit
    count = max(1, count_mean_units(checker, unit))
    return replace(unit, usd_per_hour=checker.pipeline.cost(unit.replicate(count)) / count)
