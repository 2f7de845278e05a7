"""Strategies that save weight traffic, compared on one query stream: a static cache, adaptive caches, batching."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from unfold_supernet.accelerator.cost_model import build_work
from unfold_supernet.accelerator.latency_table import LatencyTable, build_latency_table
from unfold_supernet.accelerator.layers import Family, count_weights
from unfold_supernet.accelerator.queries import QueryStream, QueryTargets
from unfold_supernet.accelerator.scheduler import StreamOutcome, run_queries
from unfold_supernet.study.sweep import CacheSetup, build_setup, restrict_order

DEFAULT_EVERY = 16
"""Queries between two choices of the cache that is refilled in passing."""


class Strategy(Enum):
    """A strategy; the values of cache choices are the words of the spec's key ``queries.keep``."""

    EMPTY = "empty"
    STATIC = "fixed"
    AVGNET = "avgnet"
    LEAST_LATENCY = "least-latency"
    AVGNET_ALL_ORDERS = "avgnet of all orders"
    LEAST_LATENCY_PASSING = "least-latency in passing"
    EMPTY_BATCHED = "empty, batched"
    STATIC_BATCHED = "fixed, batched"
    ENTIRE_CORE = "entire core"


@dataclass(frozen=True, slots=True)
class StrategyOutcome:
    """Outcome of a strategy per query.

    Attributes:
        strategy: Which one.
        layered: With prefetch within layers.
        deep: With prefetch through layers.
    """

    strategy: Strategy
    layered: StreamOutcome
    deep: StreamOutcome


@dataclass(frozen=True, slots=True)
class _Targets:
    layered: QueryTargets
    deep: QueryTargets


def compare_strategies(
    setup: CacheSetup, stream: QueryStream, policy: str, every: int, batch: int
) -> Iterator[StrategyOutcome]:
    """Yield the outcome of every strategy on the same targets: those of the accelerator that caches nothing.

    A query of a batch completes with the batch; its deadline is not extended.

    Args:
        setup: The family on the accelerator.
        stream: The queries.
        policy: The target that the scheduler enforces.
        every: Queries between two choices of an adaptive cache.
        batch: Queries of one subnet in a batch.
    """
    targets = _Targets(stream.scale_targets(setup.layered, policy), stream.scale_targets(setup.deep, policy))
    order = setup.cached.order
    one_order, batched = restrict_order(setup, order), _batch_queries(setup, batch)
    larger = replace(setup.machine, persistent_bytes=count_core_bytes(setup))
    roomy = build_setup(_rebuild_family(setup), larger, (order,))
    run = _Runner(targets, policy)
    yield run(Strategy.EMPTY, setup, column=0)
    yield run(Strategy.STATIC, setup)
    yield run(Strategy.AVGNET, one_order, cache="avgnet", every=every)
    yield run(Strategy.LEAST_LATENCY, one_order, cache="least-latency", every=every)
    yield run(Strategy.AVGNET_ALL_ORDERS, setup, cache="avgnet", every=every)
    yield run(Strategy.LEAST_LATENCY_PASSING, one_order, cache="least-latency", passing=True)
    yield run(Strategy.EMPTY_BATCHED, batched, column=0, batch=batch)
    yield run(Strategy.STATIC_BATCHED, batched, batch=batch)
    yield run(Strategy.ENTIRE_CORE, roomy)


def count_core_bytes(setup: CacheSetup) -> int:
    """Count the bytes of the weights that every subnet uses."""
    return int(count_weights(_rebuild_family(setup).core).sum()) * setup.machine.weight_bytes


@dataclass(frozen=True, slots=True)
class _Runner:
    """Runs the stream under one strategy after the other."""

    targets: _Targets
    policy: str

    def __call__(
        self,
        strategy: Strategy,
        setup: CacheSetup,
        *,
        column: int | None = None,
        batch: int = 1,
        cache: str = "fixed",
        every: int = DEFAULT_EVERY,
        passing: bool = False,
    ) -> StrategyOutcome:
        def run(targets: QueryTargets, table: LatencyTable) -> StreamOutcome:
            outcome = run_queries(
                targets.enforced,
                table,
                setup.machine.bandwidth,
                policy=self.policy,
                cache=cache,
                column=setup.static_column if column is None else column,
                every=every,
                passing=passing,
                other_targets=targets.other,
            )
            return replace(outcome, seconds=outcome.seconds / batch, bytes=outcome.bytes / batch)

        return StrategyOutcome(strategy, run(self.targets.layered, setup.layered), run(self.targets.deep, setup.deep))


def _batch_queries(setup: CacheSetup, batch: int) -> CacheSetup:
    """Send ``batch`` queries of one subnet together, their weights loaded once."""
    works = tuple(build_work(work.subnet, setup.machine, batch) for work in setup.works)
    layered, deep = (
        build_latency_table(works, setup.candidates, setup.machine, deep=is_deep) for is_deep in (False, True)
    )
    return replace(setup, works=works, layered=layered, deep=deep)


def _rebuild_family(setup: CacheSetup) -> Family:
    subnets = tuple(work.subnet for work in setup.works)
    layer_names = tuple(str(index) for index in np.arange(subnets[0].table.shape[0]))
    return Family("", layer_names, subnets)
