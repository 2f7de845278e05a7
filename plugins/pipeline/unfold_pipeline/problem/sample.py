"""A sample of the traffic: arrival times, and the stages that every query visits, fixed once for all plans."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_pipeline._types import BoolArray, CountArray, FloatArray, IndexArray
from unfold_pipeline.problem.pipeline import Pipeline, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Visits:
    """The items of one stage, numbered by query and, within a query, by parent item.

    Attributes:
        query: Query of each item, shape (items,).
        origin_s: Arrival time of each item's query, shape (items,).
        first_child: By parent stage: first item here of each parent item, shape (parent items,).
        child_count: By parent stage: items here of each parent item, shape (parent items,).
        matches_parent: Whether the items are those of the only parent, one to one.
        is_unique: Whether no query has two items here.
    """

    query: IndexArray
    origin_s: FloatArray
    first_child: Mapping[int, IndexArray]
    child_count: Mapping[int, IndexArray]
    matches_parent: bool = False
    is_unique: bool = True


@dataclass(frozen=True, slots=True)
class Sample:
    """Sorted arrival times in seconds, and the visits of each stage."""

    arrivals: FloatArray
    visits: tuple[Visits, ...]

    @property
    def size(self) -> int:
        """The number of queries."""
        return int(self.arrivals.size)

    @property
    def rate(self) -> float:
        """Queries per second over the span of the sample."""
        return self.size / max(float(self.arrivals[-1] - self.arrivals[0]), 1e-9)

    def share(self, stage: int) -> float:
        """Return the items of a stage per query of the pipeline: the scale factor of InferLine."""
        return float(self.visits[stage].query.size) / self.size


WINDOWS = 4
"""Windows in each block of a trace: their queries show how the rate varies."""
FAR_LAG = 16
"""Windows after which a rate that wanders is compared with itself."""
NOISE_FACTOR = 1.5
"""Independent windows rarely show more than this multiple of the noise of their neighbours."""
MEDIAN_SQUARE = 0.4549
"""Median of the square of a standard normal variable."""
NORMAL_UPPER_EXCESS = 0.597
"""By how many standard deviations the upper quarter of a normal variable exceeds its quartile, on average."""
BURST_WINDOWS, FINE_WINDOWS = 8, 64
"""Windows in each block in which rare bursts are found, and in which lesser ones of the same kind are."""
BURST_FACTOR, BURST_NOISES, CLEAR_NOISES = 1.5, 4.0, 7.0
"""A burst exceeds the usual queries of a window by this factor and multiple of their noise, and a clear one by more."""
LEAST_BURST_SHARE, MOST_BURST_SHARE = 0.0025, 1 / 3
"""Bursts that add a quarter of the queries that p99 lets be late seldom decide it; busy times with many are usual."""
MANY_BURSTS, MORE_BURSTS = 10, 1.5
"""So many bursts in fine windows, and so many times more, are a tail of bursts of all sizes, which a resample shows."""
Sampler = Callable[[np.random.Generator], Sample]
"""Draws a fresh sample of one traffic."""


def draw_sample(
    pipeline: Pipeline, arrivals: FloatArray, rng: np.random.Generator, recorded: CountArray | None = None
) -> Sample:
    """Return a sample with random or recorded routes.

    Args:
        pipeline: Its edges give the routing probabilities.
        arrivals: Sorted arrival times in seconds, shape (queries,).
        rng: Source of the routes that are not recorded.
        recorded: Items per query and stage, shape (rows, stages); rows repeat from the top where queries are more.
    """
    visits: list[Visits] = []
    for index, stage in enumerate(pipeline.stages):
        counts = None if recorded is None else np.resize(recorded[:, index], arrivals.size)
        stage_visits = _draw_visits(stage, arrivals, visits, rng, counts)
        visits.append(replace(stage_visits, is_unique=bool((np.diff(stage_visits.query) > 0).all())))
    return Sample(arrivals, tuple(visits))


def slice_sample(sample: Sample, start: int, stop: int) -> Sample:
    """Return queries ``start`` to ``stop`` (exclusive) with their times and routes."""
    bounds = [np.searchsorted(visits.query, [start, stop]) for visits in sample.visits]
    return Sample(
        sample.arrivals[start:stop],
        tuple(_slice_visits(visits, index, bounds, start) for index, visits in enumerate(sample.visits)),
    )


def _slice_visits(visits: Visits, index: int, bounds: Sequence[CountArray], start: int) -> Visits:
    items = slice(*bounds[index])
    parents = {parent: slice(*bounds[parent]) for parent in visits.first_child}
    return replace(
        visits,
        query=visits.query[items] - np.int32(start),
        origin_s=visits.origin_s[items],
        first_child={p: visits.first_child[p][kept] - np.int32(items.start) for p, kept in parents.items()},
        child_count={p: visits.child_count[p][kept] for p, kept in parents.items()},
    )


def resample_block_rows(arrivals: FloatArray, rng: np.random.Generator) -> tuple[IndexArray, FloatArray]:
    """Return queries and their arrivals over the same span, each block of them from the neighbourhood of its place.

    The local block bootstrap of Paparoditis and Politis (Journal of Time Series Analysis, 2002) keeps bursts within a
    block, and the shape of the day.

    Args:
        arrivals: Sorted times in seconds from 0 on, shape (queries,).
        rng: Source of randomness.
    """
    span_s, blocks = float(arrivals[-1]), _count_blocks(arrivals)
    length_s, reach_s = span_s / blocks, span_s / 4
    rows, parts = [], []
    for index in range(blocks):
        begin_s = index * length_s
        low_s, high_s = max(0.0, begin_s - reach_s), min(span_s - length_s, begin_s + reach_s)
        source_s = rng.uniform(low_s, max(low_s, high_s))
        start, stop = np.searchsorted(arrivals, [source_s, source_s + length_s])
        rows.append(np.arange(start, stop))
        parts.append(arrivals[start:stop] - source_s + begin_s)
    times = np.concatenate(parts)
    order = np.argsort(times, kind="stable")
    times = times[order]
    if times.size < 2 or times[-1] <= times[0]:
        return np.arange(arrivals.size, dtype=np.int32), arrivals
    return np.concatenate(rows)[order].astype(np.int32), times - times[0]


def draw_fresh_arrivals(arrivals: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Return arrivals of fresh traffic like that of a trace: :func:`draw_fresh_rows`."""
    return draw_fresh_rows(arrivals, rng)[1]


def draw_fresh_rows(arrivals: FloatArray, rng: np.random.Generator) -> tuple[IndexArray, FloatArray]:
    """Return queries and arrivals that vary from those of a trace as two draws of its traffic vary from each other.

    The trace is a draw itself, so it is resampled twice. As a resample holds no burst that the trace lacks, the queries
    of each block are also scaled by a random factor: a smoothed bootstrap (Silverman and Young, Biometrika, 1987).
    """
    first, times = resample_block_rows(arrivals, rng)
    second, times = resample_block_rows(times, rng)
    third, times = scale_block_rows(times, measure_block_variance(arrivals), rng)
    return first[second[third]], times


def measure_block_variance(arrivals: FloatArray) -> float:
    """Return the squared bandwidth of the queries per block relative to their mean: Silverman's, of their variance.

    Second differences between windows, quarters of blocks, give the variance: the shape of the day adds little to them.
    Those of neighbours average out over a block. A rate that wanders has fewer independent stretches than blocks.
    """
    blocks, counts = _count_blocks(arrivals), _count_windows(arrivals)
    fast = float((np.diff(counts, 2) ** 2).mean()) / 6 / counts.mean() ** 2
    wandering = measure_wandering(counts)
    return float(fast / WINDOWS * blocks**-0.4 + wandering * (blocks / FAR_LAG) ** -0.4)


def measure_wandering(counts: CountArray) -> float:
    """Return the variance of the logarithm of a rate that wanders, by which distant windows exceed their neighbours.

    Medians ignore single steps and spikes. A random walk doubles with the lag, and a shape of the day grows faster. The
    upper windows limit all: traffic that switches on and off shows its peak rate.

    Args:
        counts: Queries in windows of equal length, shape (windows,).
    """
    logs = np.log(np.maximum(counts, 1))
    near, far = (_square_differences(logs, lag) for lag in (FAR_LAG // 2, FAR_LAG))
    noise = float(_square_differences(logs, 1).mean())
    near_variance, far_variance = (float(np.median(squares)) / MEDIAN_SQUARE for squares in (near, far))
    upper = np.sort(logs)[-(logs.size // 4) - 1 :]
    upper_variance = float(((upper[1:].mean() - upper[0]) / NORMAL_UPPER_EXCESS) ** 2)
    return max(0.0, min(far_variance, 2 * near_variance - noise, upper_variance) - NOISE_FACTOR * noise)


def bound_fresh_share(arrivals: FloatArray) -> float:
    """Return the largest share of fresh samples that a trace supports: ``n`` of ``n + 1`` with ``n`` independent parts.

    This is Laplace's rule of succession. The parts are the blocks of a rate that wanders, or the rare bursts. Other
    traffic has independent windows, and supports any share.
    """
    parts = (count_wandering_blocks(arrivals), count_rare_bursts(arrivals))
    return min(count / (count + 1) if count else 1.0 for count in parts)


def count_wandering_blocks(arrivals: FloatArray) -> int:
    """Return the blocks of a trace with a rate that wanders; 0 if it does not."""
    return _count_blocks(arrivals) if measure_wandering(_count_windows(arrivals)) > 0 else 0


def count_rare_bursts(arrivals: FloatArray) -> int:
    """Return the bursts far above the usual rate of a trace: so few that fresh ones may be more, larger or longer.

    A burst that stays below the highest usual rate is none: a plan has replicas for it. Neither are large batches
    among many lesser ones, which fine windows show, nor the busy times of traffic that switches on and off.
    """
    usual, counts, noises = _compare_with_usual(arrivals, BURST_WINDOWS)
    is_burst = (noises > BURST_NOISES) & (counts > BURST_FACTOR * usual)
    is_clear = is_burst & (noises > CLEAR_NOISES) & (counts > usual.max())
    if not is_clear.any():
        return 0
    excess = (counts - usual)[is_burst].sum()
    busy = counts[counts > np.median(usual[is_burst] + counts[is_burst]) / 2].sum()
    if excess < LEAST_BURST_SHARE * arrivals.size or busy > MOST_BURST_SHARE * arrivals.size:
        return 0
    bursts = _count_runs(is_burst, BURST_WINDOWS // 2)
    fine_usual, fine_counts, fine_noises = _compare_with_usual(arrivals, FINE_WINDOWS)
    is_fine_burst = (fine_noises > BURST_NOISES) & (fine_counts > BURST_FACTOR * fine_usual)
    fine_bursts = _count_runs(is_fine_burst, FINE_WINDOWS // 2)
    return 0 if fine_bursts >= max(MANY_BURSTS, MORE_BURSTS * bursts) else bursts


def _compare_with_usual(arrivals: FloatArray, windows: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the usual queries of each window, its queries, and the excess in multiples of their noise.

    The usual ones are the median of two blocks before and after. Their noise is at least that of Poisson's process.
    """
    reach, total = 2 * windows, windows * _count_blocks(arrivals)
    counts = np.bincount(_number_blocks(arrivals, total), minlength=total).astype(np.float64)
    padded = np.pad(counts, reach, mode="reflect")
    usual = np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1), axis=1)
    excess = (counts - usual) / np.sqrt(np.maximum(usual, 1.0))
    noise = max(1.0, math.sqrt(float(np.median(excess**2)) / MEDIAN_SQUARE))
    return usual, counts, excess / noise


def _count_runs(flags: BoolArray, gap: int) -> int:
    """Return the groups of flags that at most ``gap`` windows separate."""
    flagged = np.flatnonzero(flags)
    return int((np.diff(flagged) > gap).sum()) + 1 if flagged.size else 0


def _count_windows(arrivals: FloatArray) -> CountArray:
    windows = WINDOWS * _count_blocks(arrivals)
    return np.bincount(_number_blocks(arrivals, windows), minlength=windows)


def _square_differences(values: FloatArray, lag: int) -> FloatArray:
    """Return squared second differences at a lag, with the variance of independent values as their mean."""
    squares: FloatArray = (values[2 * lag :] - 2 * values[lag:-lag] + values[: -2 * lag]) ** 2 / 6
    return squares


def scale_block_rows(arrivals: FloatArray, variance: float, rng: np.random.Generator) -> tuple[IndexArray, FloatArray]:
    """Return queries and their arrivals, of which each block keeps or repeats its queries by a gamma factor of mean 1.

    A repeated query comes at a random moment before the next one.
    """
    unchanged = np.arange(arrivals.size, dtype=np.int32), arrivals
    if variance == 0.0:
        return unchanged
    blocks = _count_blocks(arrivals)
    factors = rng.gamma(1 / variance, variance, blocks)[_number_blocks(arrivals, blocks)]
    copies = np.floor(factors + rng.random(arrivals.size)).astype(np.int64)
    source = np.repeat(np.arange(arrivals.size, dtype=np.int32), copies)
    is_repeated = np.diff(source, prepend=-1) == 0
    gaps = np.diff(arrivals, append=arrivals[-1])
    times = arrivals[source] + np.where(is_repeated, gaps[source] * rng.random(source.size), 0.0)
    order = np.argsort(times, kind="stable")
    times = times[order]
    return (source[order], times - times[0]) if times.size > 1 and times[-1] > times[0] else unchanged


def _count_blocks(arrivals: FloatArray) -> int:
    """Return about the cube root of the sample, as is usual, and at least ten."""
    return max(10, round(math.cbrt(arrivals.size)))


def _number_blocks(arrivals: FloatArray, blocks: int) -> IndexArray:
    """Return the block of each query."""
    numbers: IndexArray = np.minimum(arrivals / arrivals[-1] * blocks, blocks - 1).astype(np.int32)
    return numbers


def cap_shares(pipeline: Pipeline, recorded: CountArray) -> Pipeline:
    """Return the pipeline with no share above that in recorded visits, shape (rows, stages).

    A share of 1, the default, would otherwise let the planner assume that every query needs the stage.
    """
    return replace(
        pipeline, stages=tuple(_cap_stage(stage, index, recorded) for index, stage in enumerate(pipeline.stages))
    )


def _cap_stage(stage: Stage, index: int, recorded: CountArray) -> Stage:
    counts = recorded[:, index]
    if not stage.parents:
        return replace(stage, share=min(stage.share, float((counts > 0).mean())))
    is_join = len(stage.parents) > 1
    shares = [
        min(edge.share, _measure_share(recorded[:, edge.parent], counts, is_join=is_join)) for edge in stage.parents
    ]
    edges = tuple(replace(edge, share=share) for edge, share in zip(stage.parents, shares, strict=True))
    return replace(stage, parents=edges)


def _measure_share(parent_counts: CountArray, counts: CountArray, *, is_join: bool) -> float:
    """Return the fraction of parent items with an item here; at a join, all items of a query make one."""
    passed = np.where(counts > 0, parent_counts, 0) if is_join else np.minimum(parent_counts, counts)
    return float(passed.sum() / max(1, parent_counts.sum()))


def _draw_visits(
    stage: Stage, arrivals: FloatArray, visits: list[Visits], rng: np.random.Generator, counts: CountArray | None
) -> Visits:
    if not stage.parents:
        return _draw_entries(stage, arrivals, rng, counts)
    if len(stage.parents) == 1:
        edge = stage.parents[0]
        copies = _draw_copies(stage, edge.share, visits[edge.parent], rng, counts)
        return _follow_parent(edge.parent, copies, visits[edge.parent], arrivals)
    return _join_flows(stage, arrivals, visits, rng, counts)


def _draw_entries(stage: Stage, arrivals: FloatArray, rng: np.random.Generator, counts: CountArray | None) -> Visits:
    enters = rng.random(arrivals.size) < stage.share if counts is None else counts > 0
    copies = np.where(enters, 1 if counts is None else counts, 0)
    query = np.repeat(np.arange(arrivals.size, dtype=np.int32), copies)
    return Visits(
        query=query,
        origin_s=arrivals[query],
        first_child={},
        child_count={},
        matches_parent=query.size == arrivals.size,
    )


def _draw_copies(
    stage: Stage, share: float, parent: Visits, rng: np.random.Generator, counts: CountArray | None
) -> IndexArray:
    if counts is not None:
        return _distribute_items(parent.query, counts)
    continues = rng.random(parent.query.size) < share
    copies = np.floor(stage.fan_out + rng.random(parent.query.size)) if stage.fan_out != 1 else 1
    return np.where(continues, copies, 0).astype(np.int32)


def _distribute_items(query: IndexArray, counts: CountArray) -> IndexArray:
    """Distribute the items of each query evenly over its parent items; the first ones take the remainder."""
    per_query = np.bincount(query, minlength=counts.size)
    rank = np.arange(query.size) - np.repeat(np.cumsum(per_query) - per_query, per_query)
    quotient, remainder = np.divmod(counts[query], per_query[query])
    return (quotient + (rank < remainder)).astype(np.int32)


def _follow_parent(parent: int, copies: IndexArray, parent_visits: Visits, arrivals: FloatArray) -> Visits:
    query = np.repeat(parent_visits.query, copies)
    return Visits(
        query=query,
        origin_s=arrivals[query],
        first_child={parent: (np.cumsum(copies) - copies).astype(np.int32)},
        child_count={parent: copies},
        matches_parent=bool((copies == 1).all()),
    )


def _join_flows(
    stage: Stage, arrivals: FloatArray, visits: list[Visits], rng: np.random.Generator, counts: CountArray | None
) -> Visits:
    """A query reaches a join if any of its flows leads there, and waits for all that do."""
    flows = {
        edge.parent: _draw_flow(edge.share, visits[edge.parent], arrivals.size, rng, counts) for edge in stage.parents
    }
    reaches = np.any(list(flows.values()), axis=0)
    query = np.flatnonzero(reaches).astype(np.int32)
    number = np.cumsum(reaches) - 1
    return Visits(
        query=query,
        origin_s=arrivals[query],
        first_child={parent: number[visits[parent].query].astype(np.int32) for parent in flows},
        child_count={parent: flow[visits[parent].query].astype(np.int32) for parent, flow in flows.items()},
    )


def _draw_flow(
    share: float, parent: Visits, queries: int, rng: np.random.Generator, counts: CountArray | None
) -> BoolArray:
    flow = np.zeros(queries, dtype=np.bool_)
    flow[parent.query] = rng.random(parent.query.size) < share if counts is None else counts[parent.query] > 0
    return flow
