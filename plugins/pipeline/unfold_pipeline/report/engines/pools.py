"""The report of a plan with prefill and decode in separate pools, and of the plan of the other kind beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from unfold_pipeline.engine.autoscaling.hindsight import find_met_requests
from unfold_pipeline.engine.hardware.gpu import BLOCK_TOKENS
from unfold_pipeline.engine.planner.analysis import Percentiles
from unfold_pipeline.engine.planner.disaggregation import (
    PoolConfig,
    PoolOutcome,
    PoolSolution,
    count_pool_gpus,
    price_pools,
)
from unfold_pipeline.engine.planner.problem import Disaggregation, EngineOption, EngineProblem, measure_latencies
from unfold_pipeline.engine.planner.search import EngineConfig, Outcome
from unfold_pipeline.engine.simulation.cluster import TokenTimes
from unfold_pipeline.engine.step_times.interval import CONFIDENCE
from unfold_pipeline.report.engines import sentences
from unfold_pipeline.report.engines.plan import (
    build_latency_metrics,
    build_latency_table,
    build_provenance,
    build_recheck_report,
    build_subtitle,
    choose_model_length,
    format_engine,
    format_traffic,
    parse_engine,
)
from unfold_pipeline.report.engines.replay import REQUIRED_ATTAINMENT
from unfold_pipeline.report.sentences import ask_for_plan, ask_for_replay
from unfoldkit.api import Cell, Column, Metric, Report, Table, Verdict, user_error

ROLES = ("prefill", "decode")


def build_pool_report(
    problem: EngineProblem,
    disaggregation: Disaggregation,
    outcome: PoolOutcome,
    measures: tuple[Percentiles, Percentiles, Percentiles],
    ends_usd_per_hour: tuple[float | None, float | None],
    aggregated: Outcome | None,
) -> Report:
    """Return the report of two pools that meet the targets for less than engines that do both.

    Args:
        problem: With the predicted step times.
        disaggregation: Links and pairs.
        outcome: The pools on the trace, to its end.
        measures: TTFT, TPOT and latency with their interval.
        ends_usd_per_hour: Price of the cheapest plan at the lower and at the upper end; ``None`` for none.
        aggregated: The cheapest engines that do both, to the end of the trace; ``None`` if none meet the targets.
    """
    config = outcome.config
    cost = price_pools(problem, config)
    low, high = ends_usd_per_hour
    return Report(
        kind="pipeline",
        verb="plan",
        name=problem.name,
        verdict=Verdict.YES,
        question=ask_for_plan(
            sentences.describe_targets(problem.targets.ttft_s, problem.targets.tpot_s, problem.targets.latency_s)
        ),
        headline=sentences.describe_pools(
            cost, config.prefill.replicas, config.decode.replicas, count_pool_gpus(problem, config)
        ),
        subtitle=build_subtitle(problem),
        metrics={
            "cost_per_hour": Metric(cost, "$/h"),
            "cost_per_hour_low": Metric(low, "$/h", label=sentences.PRICE_LOW),
            "cost_per_hour_high": Metric(high, "$/h", label=sentences.PRICE_HIGH),
            "gpus": Metric(float(count_pool_gpus(problem, config))),
            "prefill_engines": Metric(float(config.prefill.replicas)),
            "decode_engines": Metric(float(config.decode.replicas)),
            "transfer_p99_ms": Metric(outcome.transfer_p99_s * 1e3, "ms"),
            **build_latency_metrics(problem, measures),
        },
        tables=(_build_pool_table(problem, outcome), build_latency_table(measures)),
        lines=tuple(_list_lines(problem, disaggregation, outcome, ends_usd_per_hour, aggregated)),
        next="unfold plan SPEC --replay TRACE",
        decision=format_pool_decision(problem, disaggregation, outcome),
        provenance=build_provenance(problem),
    )


def describe_pool_alternative(
    problem: EngineProblem, solution: PoolSolution, outcome: PoolOutcome | None
) -> tuple[tuple[str, str], ...]:
    """Return the line on the cheapest pools beside a plan of engines that do both, or beside none.

    Args:
        problem: With the predicted step times.
        solution: What the search for pools returned.
        outcome: Its pools on the trace, with the predicted step times; ``None`` for none.
    """
    if outcome is None:
        return (("disaggregated", sentences.describe_no_pools(is_complete=solution.is_complete)),)
    engines = " and ".join(
        _describe_engines(problem, config, role) for config, role in zip(_list_pools(outcome), ROLES, strict=True)
    )
    cost = price_pools(problem, outcome.config)
    return (("disaggregated", sentences.describe_other_plan(cost, engines, outcome.ttft_s, outcome.tpot_s)),)


def format_pool_decision(
    problem: EngineProblem, disaggregation: Disaggregation, outcome: PoolOutcome
) -> dict[str, Any]:
    """Return a plan of two pools as plain data."""
    pools = _list_pools(outcome)
    # a connector keeps the whole context, and a request must fit both pools
    caches = [problem.options[pool.option].kv_cache.keep_whole_context() for pool in pools]
    max_model_len = choose_model_length(problem, caches)
    return {
        "cost_per_hour": round(price_pools(problem, outcome.config), 9),
        "ttft_p99_ms": round(outcome.ttft_s * 1e3, 6),
        "tpot_p99_ms": round(outcome.tpot_s * 1e3, 6),
        "latency_p99_ms": round(outcome.latency_s * 1e3, 6),
        "engines": {
            f"{problem.stage}-{role}": {**format_engine(problem, config, max_model_len), "role": role}
            for role, config in zip(ROLES, pools, strict=True)
        },
        "disaggregated": {
            "stage": problem.stage,
            "bytes_per_s": disaggregation.bytes_per_s,
            "latency_s": disaggregation.latency_s,
        },
        **format_traffic(problem),
    }


def is_pool_decision(decision: Any) -> bool:
    """Return whether a plan has two pools."""
    return isinstance(decision, Mapping) and bool(decision.get("disaggregated"))


def parse_pool_decision(decision: Mapping[str, Any], problem: EngineProblem) -> PoolConfig:
    """Return the pools that :func:`format_pool_decision` wrote.

    Raises:
        UnfoldError: The plan has other engines than the spec offers.
    """
    engines, disaggregation = decision.get("engines"), problem.disaggregation
    saved = engines if isinstance(engines, Mapping) else {}
    prefill, decode = (parse_engine(saved.get(f"{problem.stage}-{role}"), problem) for role in ROLES)
    if disaggregation is None or (prefill.option, decode.option) not in disaggregation.pairs:
        message = "the plan has two pools, but the spec has none"
        key = f"stages.{problem.stage}.engine.disaggregated"
        raise user_error(message, key=key, hint="plan again")
    return PoolConfig(prefill=prefill, decode=decode)


def recheck_pools(problem: EngineProblem, decision: Mapping[str, Any], outcome: PoolOutcome) -> Report:
    """Return whether committed pools still meet their targets on new traffic."""
    cost = price_pools(problem, outcome.config)
    return build_recheck_report(problem, decision, outcome, cost, meets=outcome.meets(problem))


def build_pool_replay_report(problem: EngineProblem, outcome: PoolOutcome, aggregated: Outcome | None) -> Report:
    """Return the report of a trace on pools of constant size, next to engines that do both.

    Args:
        problem: With the requests of the replay.
        outcome: The pools on them.
        aggregated: Engines that do both on them; ``None`` for none.
    """
    cost = price_pools(problem, outcome.config)
    names = " and ".join(
        _describe_engines(problem, config, role) for config, role in zip(_list_pools(outcome), ROLES, strict=True)
    )
    attainment = _measure_attainment(problem, outcome.run)
    rows: list[tuple[Cell, ...]] = [(names, attainment * 100, outcome.ttft_s * 1e3, outcome.tpot_s * 1e3, cost)]
    if aggregated is not None:
        config = aggregated.config
        attained, usd = _measure_attainment(problem, aggregated.run), problem.cost(config.option, config.replicas)
        latencies = aggregated.ttft_s * 1e3, aggregated.tpot_s * 1e3
        rows.append((_describe_engines(problem, config), attained * 100, *latencies, usd))
    columns = (
        Column("engines"),
        Column("attained", "%", 2),
        Column("p99 TTFT", "ms", 0),
        Column("p99 TPOT", "ms", 1),
        Column("price", "$/h", 2),
    )
    targets = sentences.describe_targets(problem.targets.ttft_s, problem.targets.tpot_s, problem.targets.latency_s)
    return Report(
        kind="pipeline",
        verb="plan",
        name=problem.name,
        verdict=Verdict.YES if outcome.meets(problem) else Verdict.NO,
        question=ask_for_replay(targets),
        headline=sentences.describe_pool_replay(attainment, targets, cost),
        subtitle=build_subtitle(problem),
        metrics={
            "attainment": Metric(
                attainment * 100,
                "%",
                target=f"≥ {REQUIRED_ATTAINMENT * 100:.0f} %",
                ok=attainment >= REQUIRED_ATTAINMENT,
            ),
            "cost_per_hour": Metric(cost, "$/h"),
            "transfer_p99_ms": Metric(outcome.transfer_p99_s * 1e3, "ms"),
        },
        tables=(Table("replay", columns, tuple(rows), accent=0),),
        lines=(("prefix hits", _describe_hits(problem, outcome)), ("not simulated", sentences.describe_pool_limits())),
        next="unfold plan SPEC",
    )


def _measure_attainment(problem: EngineProblem, run: TokenTimes) -> float:
    latencies = measure_latencies(problem.requests, run, problem.settings.front_s, problem.surroundings)
    return float(find_met_requests(problem, latencies).mean())


def _list_pools(outcome: PoolOutcome) -> tuple[EngineConfig, EngineConfig]:
    return outcome.config.prefill, outcome.config.decode


def _describe_engines(problem: EngineProblem, config: EngineConfig, role: str = "") -> str:
    option = problem.options[config.option]
    return sentences.describe_engines(config.replicas, option.hardware, option.tensor_parallel, role)


def _build_pool_table(problem: EngineProblem, outcome: PoolOutcome) -> Table:
    columns = (
        Column("pool"),
        Column("hardware"),
        Column("tp"),
        Column("engines"),
        Column("max_num_batched_tokens"),
        Column("max_num_seqs"),
        Column("peak running"),
        Column("KV peak", "%", 0),
        Column("preemptions"),
    )
    rows: list[tuple[Cell, ...]] = []
    runs = (outcome.run.prefill, outcome.run.decode)
    for role, config, run in zip(ROLES, _list_pools(outcome), runs, strict=True):
        option = problem.options[config.option]
        kv_peak = run.peak_blocks / option.kv_cache.keep_whole_context().num_blocks * 100
        limits = (config.budget, config.max_seqs, run.peak_running, kv_peak, run.preemptions)
        rows.append((role, option.hardware, option.tensor_parallel, config.replicas, *limits))
    return Table("pools", columns, tuple(rows))


def _list_lines(
    problem: EngineProblem,
    disaggregation: Disaggregation,
    outcome: PoolOutcome,
    ends_usd_per_hour: tuple[float | None, float | None],
    aggregated: Outcome | None,
) -> Iterator[tuple[str, str]]:
    token_bytes = disaggregation.kv_bytes[outcome.config.decode.option]
    decode = problem.options[outcome.config.decode.option]
    yield (
        "transfer",
        sentences.describe_pool_transfer(
            outcome.transfer_p99_s,
            disaggregation.bytes_per_s,
            disaggregation.latency_s,
            float(token_bytes * decode.tensor_parallel),
        ),
    )
    yield "aggregated", _describe_aggregated(problem, aggregated)
    runs = (outcome.run.prefill, outcome.run.decode)
    for config, run, role in zip(_list_pools(outcome), runs, ROLES, strict=True):
        option = problem.options[config.option]
        yield f"{role} interval", _describe_interval(problem, option)
        if beyond := sentences.describe_table_ends(option.interval, run.peak_blocks * BLOCK_TOKENS, run.peak_running):
            yield f"{role} beyond tables", beyond
    if problem.window:
        window = sentences.describe_window(problem.window, problem.window_layers, problem.layers, is_pool=True)
        yield "sliding window", window
    low, high = ends_usd_per_hour
    yield "price range", sentences.describe_price_range(low, high)
    yield "prefix hits", _describe_hits(problem, outcome)
    yield "front end", sentences.describe_front(problem.settings.front_s, problem.settings.tail)
    yield "not simulated", sentences.describe_pool_limits()
    yield "not predicted", sentences.UNPREDICTED


def _describe_hits(problem: EngineProblem, outcome: PoolOutcome) -> str:
    if not problem.requests.is_shared:
        return sentences.NO_PREFIX
    return sentences.describe_prefix(outcome.run.prefill.hit_tokens / float(problem.requests.input_tokens.sum()))


def _describe_aggregated(problem: EngineProblem, aggregated: Outcome | None) -> str:
    if aggregated is None:
        return sentences.describe_no_plan(
            sentences.describe_targets(problem.targets.ttft_s, problem.targets.tpot_s, problem.targets.latency_s)
        )
    config = aggregated.config
    cost = problem.cost(config.option, config.replicas)
    engines = _describe_engines(problem, config)
    return sentences.describe_other_plan(cost, engines, aggregated.ttft_s, aggregated.tpot_s)


def _describe_interval(problem: EngineProblem, option: EngineOption) -> str:
    interval, confidence = option.interval, problem.confidence or CONFIDENCE
    return sentences.describe_interval(
        interval.source, interval.groups, interval.low, interval.high, confidence, problem.precision
    )
