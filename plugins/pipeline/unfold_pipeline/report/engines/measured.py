"""The report of a trace that was replayed on running engines: measured next to estimated."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unfold_pipeline._types import FloatArray
from unfold_pipeline.engine.autoscaling.autoscalers import Observation
from unfold_pipeline.engine.autoscaling.replay import replay_rule
from unfold_pipeline.engine.endpoint.replay import ReplayedRequests
from unfold_pipeline.engine.planner.analysis import scale_to_end
from unfold_pipeline.engine.planner.busy_engines import estimate_step_times
from unfold_pipeline.engine.planner.disaggregation import PoolConfig, evaluate_pools
from unfold_pipeline.engine.planner.problem import (
    EngineProblem,
    Latencies,
    count_allowed_misses,
    measure_latencies,
    percentile,
)
from unfold_pipeline.engine.planner.search import EngineConfig, build_limits
from unfold_pipeline.engine.simulation.cluster import simulate
from unfold_pipeline.engine.simulation.workload import build_requests
from unfold_pipeline.report.engines import sentences
from unfold_pipeline.report.engines.plan import build_subtitle
from unfold_pipeline.report.engines.pools import ROLES
from unfoldkit.api import Cell, Column, Figure, Metric, Report, Series, Table, Verdict, user_error

QUANTILES = (0.5, 0.9, 0.99)
REQUIRED_ATTAINMENT = 0.99
MAX_FAILURES_SHOWN = 5
FIGURE_POINTS = 101


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFacts:
    """What happened to engines that were started for a replay.

    Attributes:
        count_engines: Takes seconds since the trace began; returns the engines that took requests then.
        max_engines: Engines that could have run at a time.
        start_s: The longest start.
        replaced: Processes that died and were replaced.
        is_scaled: Whether a rule changed their number.
    """

    count_engines: Callable[[float], int]
    max_engines: int
    start_s: float
    replaced: int
    is_scaled: bool


AttachStages = Callable[[EngineProblem], EngineProblem]
"""Returns a problem with the stages around its engines."""


def build_measured_engine_report(
    problem: EngineProblem,
    config: EngineConfig,
    replayed: ReplayedRequests,
    engines: int,
    local: LocalFacts | None = None,
    attach: AttachStages | None = None,
    pools: PoolConfig | None = None,
) -> Report:
    """Return the report of a replay.

    Args:
        problem: With the requests of the trace.
        config: The engine that runs.
        replayed: What was measured.
        engines: Running engines, or the most of them.
        local: What happened to local engines.
        attach: Puts the stages around the engines into a problem; ``None`` if there are none.
        pools: The prefill and decode engines that run, where ``config`` is of the latter; ``None`` if engines do both.

    Raises:
        UnfoldError: No request was completed.
    """
    failed = sum(replayed.failures.values())
    if not replayed.completed.size:
        message = next(iter(replayed.failures), "no request was completed")
        raise user_error(message, key=f"stages.{problem.stage}.engine.urls", hint="are the engines running?")
    measured = measure_replay(replayed)
    estimated, low, high = (
        estimate_replay(case, config, replayed, engines, local, attach, pools)
        for case in (problem, scale_to_end(problem, high=False), scale_to_end(problem, high=True))
    )
    rows = _list_statistics(measured, estimated, low, high)
    option = problem.options[config.option]
    attainment = _measure_attainment(problem, measured, replayed)
    targets = sentences.describe_targets(problem.targets.ttft_s, problem.targets.tpot_s, problem.targets.latency_s)
    is_met = not failed and _meets_targets(problem, measured)
    return Report(
        kind="pipeline",
        verb="serve",
        name=problem.name,
        verdict=Verdict.YES if is_met else Verdict.NO,
        headline=sentences.describe_measured_replay(
            attainment, targets, engines, failed, 0 if pools is None else pools.prefill.replicas
        ),
        subtitle=build_subtitle(problem),
        metrics=_build_metrics(measured, estimated, attainment, failed),
        tables=(_build_table(rows), _build_engine_table(replayed, engines)),
        figures=(_build_figure(measured, estimated),),
        lines=(
            _describe_estimate(problem, config, engines, local, pools),
            (
                "interval",
                sentences.describe_measured_interval(
                    option.interval.low, option.interval.high, sum(row.is_within for row in rows), len(rows)
                ),
            ),
            *_describe_local(config, local),
            # a decode engine counts a KV cache that it read as cached
            ("prompts", sentences.describe_prompts(replayed.lateness_s, 0.0 if pools else replayed.cached_share)),
            *_list_local_prompts(replayed, pools),
        ),
        notes=tuple(f"{count:,} × {text}" for text, count in replayed.failures.most_common(MAX_FAILURES_SHOWN)),
        next="unfold plan SPEC",
    )


def measure_replay(replayed: ReplayedRequests) -> Latencies:
    """Return the measured latencies of the requests that were completed."""
    rows = replayed.completed
    ttft_s, last_s, output = replayed.ttft_s[rows], replayed.last_token_s[rows], replayed.output_tokens[rows]
    several = output > 1
    tpot_s = (last_s - ttft_s)[several] / (output[several] - 1)
    return Latencies(ttft_s=ttft_s, tpot_s=tpot_s, latency_s=replayed.latency_s[rows])


def _describe_estimate(
    problem: EngineProblem, config: EngineConfig, engines: int, local: LocalFacts | None, pools: PoolConfig | None
) -> tuple[str, str]:
    if pools is not None:
        names = [
            sentences.describe_engines(
                part.replicas, problem.options[part.option].hardware, problem.options[part.option].tensor_parallel, role
            )
            for part, role in zip((pools.prefill, pools.decode), ROLES, strict=True)
        ]
        return "estimate", sentences.describe_pool_estimate(*names)
    if local is not None and local.is_scaled:
        return "estimate", sentences.describe_scaled_estimate()
    option = problem.options[config.option]
    text = sentences.describe_estimate(config.replicas, engines, option.hardware, option.tensor_parallel)
    return "estimate", text


def _list_local_prompts(replayed: ReplayedRequests, pools: PoolConfig | None) -> list[tuple[str, str]]:
    if pools is None:
        return []
    return [("hand-over", sentences.describe_hand_over(replayed.local_prompts, replayed.arrival_s.size))]


def _describe_local(config: EngineConfig, local: LocalFacts | None) -> list[tuple[str, str]]:
    if local is None:
        return []
    return [("processes", sentences.describe_local_engines(config.replicas, local.start_s, local.replaced))]


def estimate_replay(
    problem: EngineProblem,
    config: EngineConfig,
    replayed: ReplayedRequests,
    engines: int,
    local: LocalFacts | None = None,
    attach: AttachStages | None = None,
    pools: PoolConfig | None = None,
) -> Latencies:
    """Simulate the completed requests, with the tokens that the engines counted, on as many engines as ran."""
    rows, option = replayed.completed, problem.options[config.option]
    requests = build_requests(replayed.arrival_s[rows], replayed.input_tokens[rows], replayed.output_tokens[rows])
    problem = replace(problem, requests=requests)
    if pools is not None:
        assert problem.disaggregation is not None  # noqa: S101 - the pools were planned or parsed
        both = evaluate_pools(problem, problem.disaggregation, pools).run
        return measure_latencies(problem.requests, both, problem.settings.front_s)
    if attach is not None:
        problem = attach(problem)
    if local is not None and local.is_scaled:
        # engines take requests when they were observed to
        settings = replace(problem.settings, start_s=0.0)
        case = replace(problem, settings=settings)

        def count_observed(seen: Observation) -> int:
            return local.count_engines(seen.now_s)

        return replay_rule("observed", case, config, count_observed, max_replicas=local.max_engines).latencies
    limits = build_limits(problem, option, config.budget, config.max_seqs)
    run = simulate(
        problem.requests,
        limits,
        estimate_step_times(problem, option, limits, engines),
        engines=engines,
        routing=problem.settings.routing,
    )
    return measure_latencies(problem.requests, run, problem.settings.front_s, problem.surroundings)


def _list_pairs(measured: Latencies, estimated: Latencies) -> Mapping[str, tuple[FloatArray, FloatArray]]:
    return {
        "TTFT": (measured.ttft_s, estimated.ttft_s),
        "TPOT": (measured.tpot_s, estimated.tpot_s),
        "latency": (measured.latency_s, estimated.latency_s),
    }


def _measure_attainment(problem: EngineProblem, measured: Latencies, replayed: ReplayedRequests) -> float:
    """Return the fraction of all requests that met every target; failed requests met none."""
    targets = problem.targets
    rows = replayed.completed
    tpot_s = np.zeros(rows.size)
    tpot_s[replayed.output_tokens[rows] > 1] = measured.tpot_s
    met = (measured.ttft_s <= targets.ttft_s) & (tpot_s <= targets.tpot_s) & (measured.latency_s <= targets.latency_s)
    return float(met.sum()) / replayed.arrival_s.size


def _meets_targets(problem: EngineProblem, measured: Latencies) -> bool:
    targets = problem.targets
    pairs = (
        (measured.ttft_s, targets.ttft_s),
        (measured.tpot_s, targets.tpot_s),
        (measured.latency_s, targets.latency_s),
    )
    return all(int((values > target).sum()) <= count_allowed_misses(values.size) for values, target in pairs)


def _build_metrics(measured: Latencies, estimated: Latencies, attainment: float, failed: int) -> Mapping[str, Metric]:
    metrics = {
        "attainment": Metric(
            attainment * 100,
            "%",
            target=f"≥ {REQUIRED_ATTAINMENT * 100:.0f} %",
            ok=attainment >= REQUIRED_ATTAINMENT,
            timed=True,
        ),
        "failed": Metric(float(failed), timed=True),
    }
    for name, pair in _list_pairs(measured, estimated).items():
        if not pair[0].size:
            continue
        key = name.lower()
        for statistic, values in (("mean", [float(item.mean()) for item in pair]), *_list_percentiles(pair)):
            metrics[f"{key}_{statistic}_ms"] = Metric(values[0] * 1e3, "ms", timed=True)
            metrics[f"{key}_{statistic}_estimate_ms"] = Metric(values[1] * 1e3, "ms", timed=True)
    return metrics


def _list_percentiles(pair: tuple[FloatArray, FloatArray]) -> list[tuple[str, list[float]]]:
    return [(f"p{round(level * 100)}", [percentile(values, level) for values in pair]) for level in QUANTILES]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Statistic:
    """A statistic of a measure in seconds: measured, estimated, and estimated at both ends of the interval."""

    measure: str
    name: str
    measured_s: float
    estimated_s: float
    low_s: float
    high_s: float

    @property
    def is_within(self) -> bool:
        """Whether the measured value lies between both ends."""
        return self.low_s <= self.measured_s <= self.high_s


def _list_statistics(measured: Latencies, estimated: Latencies, low: Latencies, high: Latencies) -> list[_Statistic]:
    """Return mean and percentiles of every measure that was measured."""
    statistics = []
    ends = zip(_list_pairs(measured, estimated).items(), _list_pairs(low, high).values(), strict=True)
    for (measure, pair), end_pair in ends:
        if not pair[0].size:
            continue
        values = [("mean", [float(item.mean()) for item in (*pair, *end_pair)])]
        values += [(f"p{round(q * 100)}", [percentile(item, q) for item in (*pair, *end_pair)]) for q in QUANTILES]
        for name, (measured_s, estimated_s, low_s, high_s) in values:
            statistics.append(
                _Statistic(
                    measure=measure,
                    name=name,
                    measured_s=measured_s,
                    estimated_s=estimated_s,
                    low_s=low_s,
                    high_s=high_s,
                )
            )
    return statistics


def _build_table(statistics: Sequence[_Statistic]) -> Table:
    columns = (
        Column("measure"),
        Column("statistic"),
        Column("measured", "ms", 1, timed=True),
        Column("estimated", "ms", 1, timed=True),
        Column("low", "ms", 1, timed=True),
        Column("high", "ms", 1, timed=True),
        Column("error", "%", 1, timed=True),
    )
    rows: list[tuple[Cell, ...]] = []
    for row in statistics:
        is_known = row.measured_s > 0 and math.isfinite(row.estimated_s)
        error = (row.estimated_s / row.measured_s - 1) * 100 if is_known else None
        times_ms = [seconds * 1e3 for seconds in (row.measured_s, row.estimated_s, row.low_s, row.high_s)]
        rows.append((row.measure, row.name, *times_ms, error))
    return Table("measured and estimated", columns, tuple(rows))


def _build_engine_table(replayed: ReplayedRequests, engines: int) -> Table:
    columns = (Column("engine"), Column("requests"), Column("output tokens"))
    rows: list[tuple[Cell, ...]] = []
    for index in range(engines):
        chosen = replayed.completed[replayed.engine[replayed.completed] == index]
        rows.append((index + 1, int(chosen.size), int(replayed.output_tokens[chosen].sum())))
    return Table("engines", columns, tuple(rows))


def _build_figure(measured: Latencies, estimated: Latencies) -> Figure:
    levels = np.linspace(0, 1, FIGURE_POINTS)
    series = tuple(
        Series(
            name,
            tuple(float(value) * 1e3 for value in np.quantile(values, levels)),
            tuple(float(level) * 100 for level in levels),
            "line",
        )
        for name, values in (("measured", measured.ttft_s), ("estimated", estimated.ttft_s))
    )
    return Figure("ttft", "Time to first token", "ms", "% of requests", series, timed=True)
