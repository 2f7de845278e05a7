"""The coarse-grained unit is the best over all hardware and batch sizes, found without enumeration."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from plugins.pipeline.tests.helpers import build_checker, chain, option
from unfold_pipeline.estimator.slo import SloChecker
from unfold_pipeline.planner import coarse_grained
from unfold_pipeline.problem.pipeline import Edge, Pipeline, StageConfig, compute_longest_path, count_required_replicas


def drawn(seed: int, stages: int, kinds: int) -> Pipeline:
    """Stages with random latencies; where the seed says so with quotas, instances that are shared, and a diamond."""
    rng = np.random.default_rng(seed)
    offered = [
        tuple(option(f"h{k}", 0.3 * (k + 1), *rng.uniform(0.002, 0.03, 2), rng.integers(3, 9)) for k in range(kinds))
        for _ in range(stages)
    ]
    if seed % 2:
        offered = [(replace(here[0], replicas_per_instance=3), *here[1:]) for here in offered]
    found = chain(*offered)
    if seed % 3 == 0:
        found = replace(found, quotas=(("h0", 2), ("h1", 3)))
    if seed % 4 == 0:
        first, second, third, *rest = found.stages
        found = replace(found, stages=(first, second, replace(third, parents=(Edge(0, 0.4),)), *rest))
    return found


def every(checker: SloChecker) -> list[tuple[bool, float, float]]:
    """Return the rank of each unit that is in time, of all batches and all hardware."""
    stages, found = checker.pipeline.stages, []
    sizes = {batch for stage in stages for item in stage.options for batch in item.batch_sizes}
    for options in itertools.product(*(range(len(stage.options)) for stage in stages)):
        for size in sizes:
            here = [stage.options[place] for stage, place in zip(stages, options, strict=True)]
            plan = tuple(StageConfig(p, min(size, o.latency_s.size - 1), 1) for p, o in zip(options, here, strict=True))
            seconds = [float(o.latency_s[c.batch]) for o, c in zip(here, plan, strict=True)]
            shares = [checker.estimators[0].sample.share(index) for index in range(len(stages))]
            rate = min(o.throughput(c.batch) / share for o, c, share in zip(here, plan, shares, strict=True))
            item = coarse_grained.PipelineUnit(plan, rate, 0.0)
            if (
                compute_longest_path(checker.pipeline, seconds) <= checker.slo_s
                and coarse_grained.limit_units(checker, item) >= 1
            ):
                count = max(1, coarse_grained.count_mean_units(checker, item))
                price = checker.pipeline.cost(item.replicate(count)) / count
                short = count_required_replicas(
                    coarse_grained.measure_peak_rate(checker), rate
                ) > coarse_grained.limit_units(checker, item)
                found.append((short, price / rate, price))
    return found


@pytest.mark.parametrize("seed", range(12))
def test_unit_is_the_cheapest_of_all(seed: int) -> None:
    """No unit of any hardware and batch size is cheaper per throughput, with or without quotas and shared instances."""
    for limit in (0.08, 0.15, 0.4):
        checker = build_checker(drawn(seed, 3, 3), limit, seconds=4.0, seed=seed)
        found, units = coarse_grained.find_cheapest_unit(checker), every(checker)
        if found is None:
            assert not units
            continue
        short, ratio, price = min(units)
        assert found.usd_per_hour / found.throughput == pytest.approx(ratio)
        assert found.usd_per_hour == pytest.approx(price)
        assert (
            count_required_replicas(coarse_grained.measure_peak_rate(checker), found.throughput)
            > coarse_grained.limit_units(checker, found)
        ) == short


def test_unit_of_a_long_pipeline_is_found_without_enumeration() -> None:
    """The hundreds of millions of units of twelve stages on five kinds of hardware are not enumerated."""
    checker = build_checker(drawn(1, 12, 5), 1.5, seconds=2.0)
    found = coarse_grained.find_cheapest_unit(checker)
    assert found is not None
    assert checker.single_query_latency(found.configs) <= checker.slo_s
