"""The report of a plan of LLM engines: chosen engines, latencies with their interval, and why nothing is cheaper."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from unfold_pipeline._types import FloatArray
from unfold_pipeline.engine.autoscaling.token_envelope import count_most_tokens
from unfold_pipeline.engine.hardware.gpu import BLOCK_TOKENS, KvCache
from unfold_pipeline.engine.planner.analysis import QUANTILES, EngineAnalysis, LoadSeries, Percentiles
from unfold_pipeline.engine.planner.disaggregation import PoolOutcome
from unfold_pipeline.engine.planner.large_requests import LargeRequests
from unfold_pipeline.engine.planner.problem import EngineOption, EngineProblem
from unfold_pipeline.engine.planner.search import EngineConfig, EngineSolution, Outcome
from unfold_pipeline.engine.step_times.interval import CONFIDENCE
from unfold_pipeline.estimator.slo_on_fresh_samples import FreshShare
from unfold_pipeline.report.engines import sentences
from unfold_pipeline.report.engines.surrounding_stages import PlannedStages
from unfold_pipeline.report.plan import FRESH_SHARE, list_doubts
from unfold_pipeline.report.sentences import USUAL_CONFIDENCE, ask_for_plan
from unfold_pipeline.schema.saved_plan import MAX_SAVED_REPLICAS
from unfoldkit.api import (
    Cell,
    Column,
    Figure,
    Metric,
    Panel,
    Report,
    Series,
    StepArea,
    Table,
    Verdict,
    format_count,
    time_axis,
    user_error,
)
from unfoldkit.arrivals.envelope import window_lengths

LOOSER = 1.25
"""Factor on what was missed least: a suggested target."""
MAX_REFUSALS = 8
KV_MARGIN = 0.1
"""Part of an estimated KV cache that the longest request must not need: vLLM refuses to start with a smaller one."""


def build_engine_report(
    problem: EngineProblem,
    solution: EngineSolution,
    outcome: Outcome,
    analysis: EngineAnalysis,
    around: PlannedStages | None = None,
    alternatives: tuple[tuple[str, str], ...] = (),
) -> Report:
    """Return the report of a plan that meets the targets.

    Args:
        problem: With the predicted step times, and with the stages around the engine under their plan.
        solution: What the search found.
        outcome: The plan on the trace.
        analysis: What explains it.
        around: The stages around the engine; ``None`` if there are none.
        alternatives: Lines on plans of another kind.
    """
    config = outcome.config
    option = problem.options[config.option]
    gpus = config.replicas * option.tensor_parallel
    return Report(
        kind="pipeline",
        verb="plan",
        name=problem.name,
        verdict=Verdict.YES,
        question=ask_for_plan(_format_targets(problem)),
        headline=sentences.describe_plan(
            problem.cost(config.option, config.replicas),
            config.replicas,
            gpus,
            option.hardware,
            0 if around is None else len(around.rows),
        ),
        subtitle=build_subtitle(problem),
        metrics=build_metrics(problem, outcome, analysis),
        tables=(
            _build_engine_table(problem, config),
            *(() if around is None else (_build_stage_table(around),)),
            build_latency_table((analysis.ttft, analysis.tpot, analysis.latency)),
            _build_neighbor_table(problem, config, analysis),
        ),
        figures=(_build_neighbor_figure(problem, config, analysis), _build_load_figure(analysis.load)),
        lines=(*_list_around_lines(around), *alternatives, *_list_lines(problem, solution, outcome, analysis)),
        next="unfold plan SPEC --replay TRACE",
        decision=format_decision(problem, config, outcome, around),
        provenance=build_provenance(problem),
    )


def add_stages(report: Report, around: PlannedStages) -> Report:
    """Return a replay with the table and the times of the stages around its engines, under the engines of the plan."""
    tables = (*report.tables, _build_stage_table(around))
    return replace(report, tables=tables, lines=(*_list_around_lines(around), *report.lines))


def build_provenance(problem: EngineProblem) -> dict[str, Any]:
    """Return what a plan was made from."""
    return {
        "inputs": {
            "trace_sha256": problem.trace_sha256,
            "prices": dict(problem.price_sources),
            "step_times": {item.hardware: list(item.interval.files) or "data sheet" for item in problem.options},
        }
    }


def build_no_engine_report(
    problem: EngineProblem, solution: EngineSolution, alternatives: tuple[tuple[str, str], ...] = ()
) -> Report:
    """Return the report of a problem without a plan: which target each option misses."""
    targets = _format_targets(problem)
    headline = (
        sentences.describe_no_plan(targets)
        if problem.confidence is None
        else sentences.describe_no_sure_plan(targets, problem.confidence)
    )
    return Report(
        kind="pipeline",
        verb="plan",
        name=problem.name,
        verdict=Verdict.NO,
        question=ask_for_plan(_format_targets(problem)),
        headline=headline,
        subtitle=build_subtitle(problem),
        metrics={"simulations": Metric(solution.simulations)},
        lines=(*alternatives, *_list_refusals(problem, solution)),
        next=_suggest_target(problem, solution),
    )


def _suggest_target(problem: EngineProblem, solution: EngineSolution) -> str:
    """Return the command with a looser target, that which is missed least; empty if memory is the obstacle."""
    targets = problem.targets
    limits = {"ttft": targets.ttft_s, "tpot": targets.tpot_s, "latency": targets.latency_s}
    misses = [(bound.obstacle, bound.value_s) for bounds in solution.bounds for bound in bounds if bound.obstacle]
    misses += [(refusal.obstacle, refusal.value_s) for refusal in solution.refusals]
    if not misses:
        return ""
    obstacle, value_s = min(misses, key=lambda miss: miss[1] / limits[miss[0]])
    key = "p99" if obstacle == "latency" else f"{obstacle}_p99"
    return f"unfold plan SPEC --set 'slo.{key}={math.ceil(LOOSER * max(value_s, limits[obstacle]) * 1e3)} ms'"


def build_subtitle(problem: EngineProblem) -> tuple[str, ...]:
    """Return the facts beside the title."""
    requests = problem.requests
    span = float(requests.arrival_s[-1] - requests.arrival_s[0])
    rate = f"{len(requests) / span:.3g}/s" if span else "at one instant"
    tokens = f"{requests.input_tokens.mean():,.0f} in, {requests.output_tokens.mean():,.0f} out"
    return format_count(len(requests), "request"), rate, tokens, _format_targets(problem)


def add_left_out(report: Report, problem: EngineProblem) -> Report:
    """Return a report with the requests that the trace has and the report leaves out, if there are any."""
    requests = problem.requests
    if not requests.left_out:
        return report
    metrics = {**report.metrics, "requests_left_out": Metric(requests.left_out, label=sentences.LEFT_OUT)}
    line = ("left out", sentences.describe_left_out(requests.left_out, len(requests)))
    return replace(report, metrics=metrics, lines=(line, *report.lines))


def add_large_requests(report: Report, problem: EngineProblem, large: LargeRequests | None) -> Report:
    """Return the report of a plan with the few large requests that drive its price, if there are any."""
    if large is None:
        return report
    text = sentences.describe_large_requests(
        large.count,
        len(problem.requests),
        large.tokens,
        large.token_share,
        (large.usd_per_hour, large.usd_per_hour_without),
    )
    return replace(report, lines=(("large requests", text), *report.lines))


def add_fresh_share(report: Report, share: FreshShare | None) -> Report:
    """Return the report of a plan with the share of fresh samples on which it meets its targets."""
    if share is None:
        return report
    line = ("fresh samples", sentences.describe_fresh_share(share.kept, share.draws, share.lower_bound))
    headline = report.headline
    if share.share < USUAL_CONFIDENCE:
        headline = sentences.describe_low_share(headline, share.kept, share.draws)
    metrics = {**report.metrics, "fresh_share": Metric(share.share, label=FRESH_SHARE)}
    return replace(report, headline=headline, metrics=metrics, lines=(line, *report.lines))


def add_doubts(report: Report, arrival_s: FloatArray) -> Report:
    """Return the report of a plan for a recorded trace with why fresh traffic may differ from its fresh samples."""
    if "fresh_share" not in report.metrics:
        return report
    after = next(index for index, (label, _) in enumerate(report.lines, 1) if label == "fresh samples")
    doubts = (("caution", doubt) for doubt in list_doubts([arrival_s]))
    return replace(report, lines=(*report.lines[:after], *doubts, *report.lines[after:]))


def build_metrics(problem: EngineProblem, outcome: Outcome, analysis: EngineAnalysis) -> Mapping[str, Metric]:
    """Return the figures of a plan."""
    config = outcome.config
    option = problem.options[config.option]
    return {
        "cost_per_hour": Metric(problem.cost(config.option, config.replicas), "$/h"),
        "cost_per_hour_low": Metric(_cost(problem, analysis.low), "$/h", label=sentences.PRICE_LOW),
        "cost_per_hour_high": Metric(_cost(problem, analysis.high), "$/h", label=sentences.PRICE_HIGH),
        "gpus": Metric(config.replicas * option.tensor_parallel),
        "replicas": Metric(config.replicas),
        **build_latency_metrics(problem, (analysis.ttft, analysis.tpot, analysis.latency)),
    }


def build_latency_metrics(
    problem: EngineProblem, measures: tuple[Percentiles, Percentiles, Percentiles]
) -> dict[str, Metric]:
    """Return p99 TTFT, TPOT and latency beside their targets: at the upper end if the plan is for it."""
    targets, metrics = problem.targets, {}
    limits = (targets.ttft_s, targets.tpot_s, targets.latency_s)
    for name, item, target_s in zip(("ttft", "tpot", "latency"), measures, limits, strict=True):
        value_s = (item.predicted if problem.confidence is None else item.high)[-1]
        has_target = math.isfinite(target_s)
        metrics[f"{name}_p99_ms"] = Metric(
            value_s * 1e3,
            "ms",
            target=f"≤ {sentences.format_seconds(target_s)}" if has_target else None,
            ok=value_s <= target_s if has_target else None,
            label=sentences.LATENCY_LABELS[name],
        )
    return metrics


def format_decision(
    problem: EngineProblem, config: EngineConfig, outcome: Outcome, around: PlannedStages | None = None
) -> dict[str, Any]:
    """Return a plan as plain data, with the envelopes of the tokens that it was made for."""
    max_model_len = choose_model_length(problem, [problem.options[config.option].kv_cache])
    return {
        "cost_per_hour": round(problem.cost(config.option, config.replicas), 9),
        "ttft_p99_ms": _round_ms(outcome.ttft_s),
        "tpot_p99_ms": _round_ms(outcome.tpot_s),
        "latency_p99_ms": _round_ms(outcome.latency_s),
        "engines": {problem.stage: format_engine(problem, config, max_model_len)},
        **format_traffic(problem),
        **({} if around is None else {"stages_around": {row.stage: row.format_decision() for row in around.rows}}),
    }


def format_engine(problem: EngineProblem, config: EngineConfig, max_model_len: int) -> dict[str, Any]:
    """Return the engines of a pool as plain data."""
    option, settings = problem.options[config.option], problem.settings
    return {
        "hardware": option.hardware,
        "gpu": option.gpu,
        "tensor_parallel": option.tensor_parallel,
        "replicas": config.replicas,
        "nodes": option.count_nodes(config.replicas),
        "max_num_batched_tokens": config.budget,
        "max_num_seqs": config.max_seqs,
        "routing": settings.routing,
        "precision": problem.precision,
        "kv_precision": problem.kv_precision,
        **({"is_quantized": True} if problem.is_quantized else {}),
        "prefix_cache": settings.prefix_cache,
        "async_scheduling": settings.async_scheduling,
        "gpu_memory_utilization": settings.utilization,
        "max_model_len": max_model_len,
        **({"max_context": problem.max_context} if problem.max_context else {}),
        "model": problem.model,
        "model_name": problem.model_name,
    }


def format_traffic(problem: EngineProblem) -> dict[str, Any]:
    """Return the envelopes of the tokens that a plan is for, and the hash of its trace."""
    windows_s, prompt, total = compute_token_envelope(problem)
    envelope = {"windows_s": windows_s, "input_tokens": prompt, "all_tokens": total}
    return {"envelope": envelope, "trace_sha256": problem.trace_sha256}


def choose_model_length(problem: EngineProblem, caches: Sequence[KvCache]) -> int:
    """Return the context of the model as far as every KV cache holds it, for requests longer than those of the trace.

    Without a known context it is the power of two above the longest request: vLLM refuses to start beyond the model's.
    """
    longest = int((problem.requests.input_tokens + problem.requests.output_tokens).max())
    context = problem.max_context or 1 << (longest - 1).bit_length()
    budget = max(problem.settings.budgets)
    return min(context, *(_find_safe_length(cache, longest, budget) for cache in caches))


def _find_safe_length(cache: KvCache, longest: int, budget: int) -> int:
    """Return the tokens of a request that fits even if an estimated KV cache turns out somewhat smaller."""
    fits = cache.find_longest_request(budget)
    if cache.is_measured:
        return fits
    return max(min(fits, longest), int(fits * (1 - KV_MARGIN)) // BLOCK_TOKENS * BLOCK_TOKENS)


def parse_engine_decision(decision: Mapping[str, Any], problem: EngineProblem) -> EngineConfig:
    """Return the plan that :func:`format_decision` wrote.

    Raises:
        UnfoldError: The plan has another engine than the spec offers.
    """
    engines = decision.get("engines") if isinstance(decision, Mapping) else None
    return parse_engine(engines.get(problem.stage) if isinstance(engines, Mapping) else None, problem)


def parse_engine(saved: Any, problem: EngineProblem) -> EngineConfig:
    """Return the engines that :func:`format_engine` wrote.

    Raises:
        UnfoldError: The spec offers no such engine.
    """
    try:
        index = next(
            position
            for position, option in enumerate(problem.options)
            if (option.hardware, option.tensor_parallel) == (saved["hardware"], saved["tensor_parallel"])
        )
        config = EngineConfig(
            option=index,
            replicas=int(saved["replicas"]),
            budget=int(saved["max_num_batched_tokens"]),
            max_seqs=int(saved["max_num_seqs"]),
        )
    except (KeyError, ValueError, TypeError, OverflowError, StopIteration) as error:
        message = "the plan has another engine than the spec"
        raise user_error(message, key=f"stages.{problem.stage}", hint="plan again") from error
    settings = problem.settings
    limits = (
        (config.replicas, MAX_SAVED_REPLICAS),
        (config.budget, max(settings.budgets)),
        (config.max_seqs, max(settings.max_seqs)),
    )
    if any(not 1 <= value <= limit for value, limit in limits):
        raise user_error("the plan does not fit the spec", key=f"stages.{problem.stage}", hint="plan again")
    return config


def compute_token_envelope(problem: EngineProblem) -> tuple[list[float], list[int], list[int]]:
    """Return window lengths in seconds, and the maximum prompt tokens and all tokens that arrive in any such window."""
    requests = problem.requests
    windows = [float(length) for length in window_lengths(min(1.0, problem.targets.ttft_s))]
    prompt = [count_most_tokens(requests.arrival_s, requests.input_tokens, length) for length in windows]
    total = requests.input_tokens + requests.output_tokens
    return windows, prompt, [count_most_tokens(requests.arrival_s, total, length) for length in windows]


def recheck_engine_plan(problem: EngineProblem, decision: Mapping[str, Any], outcome: Outcome) -> Report:
    """Return whether a committed plan still meets its targets on new traffic."""
    config = outcome.config
    return build_recheck_report(
        problem, decision, outcome, problem.cost(config.option, config.replicas), meets=outcome.meets(problem)
    )


def build_recheck_report(
    problem: EngineProblem,
    decision: Mapping[str, Any],
    outcome: Outcome | PoolOutcome,
    usd_per_hour: float,
    *,
    meets: bool,
) -> Report:
    """Return the report of a committed plan on new traffic."""
    targets = _format_targets(problem)
    excess = _find_token_excess(problem, decision.get("envelope", {}))
    return Report(
        kind="pipeline",
        verb="plan",
        name=problem.name,
        verdict=Verdict.YES if meets and not excess else Verdict.NO,
        headline=sentences.describe_recheck(targets, meets=meets, excess=excess),
        subtitle=build_subtitle(problem),
        metrics={
            "ttft_p99_ms": Metric(outcome.ttft_s * 1e3, "ms"),
            "tpot_p99_ms": Metric(outcome.tpot_s * 1e3, "ms"),
            "latency_p99_ms": Metric(outcome.latency_s * 1e3, "ms"),
            "cost_per_hour": Metric(usd_per_hour, "$/h"),
        },
        lines=(("envelope", excess),) if excess else (),
        next="unfold plan SPEC",
        decision=decision,
    )


def _find_token_excess(problem: EngineProblem, saved: Mapping[str, Any]) -> str:
    windows = [float(length) for length in saved.get("windows_s", [])]
    requests = problem.requests
    total = requests.input_tokens + requests.output_tokens
    for kind, key, tokens in (("input", "input_tokens", requests.input_tokens), ("KV", "all_tokens", total)):
        for length, planned in zip(windows, saved.get(key, []), strict=False):
            arrived = count_most_tokens(requests.arrival_s, tokens, length)
            if arrived > int(planned):
                return sentences.describe_token_excess(kind, length, arrived, int(planned))
    return ""


def _format_targets(problem: EngineProblem) -> str:
    targets = problem.targets
    return sentences.describe_targets(targets.ttft_s, targets.tpot_s, targets.latency_s)


def _round_ms(seconds: float) -> float:
    return round(seconds * 1e3, 6)


def _cost(problem: EngineProblem, solution: EngineSolution) -> float | None:
    config = solution.config
    if config is None:
        return None
    return problem.options[config.option].cost(config.replicas) + solution.around_usd_per_hour


def _build_engine_table(problem: EngineProblem, config: EngineConfig) -> Table:
    option = problem.options[config.option]
    columns = (
        Column("stage"),
        Column("hardware"),
        Column("tp"),
        Column("engines"),
        Column("nodes" if option.gpus_per_node > 1 else "GPUs"),
        Column("max_num_batched_tokens"),
        Column("max_num_seqs"),
        Column("price", "$/h", 2),
    )
    row: tuple[Cell, ...] = (
        problem.stage,
        option.hardware,
        option.tensor_parallel,
        config.replicas,
        option.count_nodes(config.replicas),
        config.budget,
        config.max_seqs,
        option.cost(config.replicas),
    )
    return Table("engines", columns, (row,))


def _build_stage_table(around: PlannedStages) -> Table:
    columns = (
        Column("stage"),
        Column("hardware"),
        Column("max batch"),
        Column("replicas"),
        Column("p50 time", "ms", 1),
        Column("p99 time", "ms", 1),
        Column("price", "$/h", 2),
    )
    rows = tuple(
        (
            row.stage,
            row.hardware,
            row.config.batch,
            row.config.replicas,
            row.p50_s * 1e3,
            row.p99_s * 1e3,
            row.usd_per_hour,
        )
        for row in around.rows
    )
    return Table("stages around the engine", columns, rows)


def _list_around_lines(around: PlannedStages | None) -> Iterator[tuple[str, str]]:
    if around is None:
        return
    yield "stages", sentences.describe_split(around.before_p99_s, around.engine_p99_s, around.after_p99_s)
    if not around.is_complete:
        yield "stages", sentences.UNPROVEN


def build_latency_table(measures: tuple[Percentiles, Percentiles, Percentiles]) -> Table:
    """Return the percentiles of TTFT, TPOT and latency with both ends of their interval."""
    names = [f"p{round(quantile * 100)}" for quantile in QUANTILES]
    columns = [Column("measure")]
    for name in names:
        columns += [Column(name, "ms", 1), Column(f"{name} low", "ms", 1), Column(f"{name} high", "ms", 1)]
    rows = []
    for name, item in zip(("TTFT", "TPOT", "latency"), measures, strict=True):
        rows.append((name, *_list_cells(item)))
    return Table("latencies", tuple(columns), tuple(rows))


def _list_cells(item: Percentiles) -> Iterator[Cell]:
    for predicted, low, high in zip(item.predicted, item.low, item.high, strict=True):
        yield from (value * 1e3 if math.isfinite(value) else None for value in (predicted, low, high))


def _build_neighbor_table(problem: EngineProblem, config: EngineConfig, analysis: EngineAnalysis) -> Table:
    columns = (
        Column("engines"),
        Column("price", "$/h", 2),
        Column("p99 TTFT", "ms", 1),
        Column("p99 TPOT", "ms", 1),
        Column("p99 latency", "ms", 0),
        Column("preemptions"),
    )
    rows = tuple(
        (
            item.config.replicas,
            problem.cost(config.option, item.config.replicas),
            item.ttft_s * 1e3,
            item.tpot_s * 1e3,
            item.latency_s * 1e3,
            item.run.preemptions,
        )
        for item in analysis.neighbors
    )
    planned = [item.config.replicas for item in analysis.neighbors].index(config.replicas)
    return Table("engines of this kind", columns, rows, accent=planned)


def _build_neighbor_figure(problem: EngineProblem, config: EngineConfig, analysis: EngineAnalysis) -> Figure:
    """Draw the latencies of the plan and of its neighbors against the targets, and mark the plan."""
    counts = tuple(float(item.config.replicas) for item in analysis.neighbors)
    series = [
        Series("p99 TTFT", counts, tuple(item.ttft_s * 1e3 for item in analysis.neighbors), "line"),
        Series("p99 TPOT", counts, tuple(item.tpot_s * 1e3 for item in analysis.neighbors), "line"),
    ]
    for name, target_s in (("TTFT target", problem.targets.ttft_s), ("TPOT target", problem.targets.tpot_s)):
        if math.isfinite(target_s) and len(counts) > 1:
            series.append(Series(name, (counts[0], counts[-1]), (target_s * 1e3,) * 2, "line"))
    planned = [item for item in analysis.neighbors if item.config.replicas == config.replicas]
    marks = [latency_s * 1e3 for item in planned for latency_s in (item.ttft_s, item.tpot_s)]
    series.append(Series("this plan", (float(config.replicas),) * len(marks), tuple(marks), "points"))
    return Figure("replicas", "Latency by number of engines", "engines", "ms", tuple(series), log_y=True)


def _build_load_figure(load: LoadSeries) -> StepArea:
    """Draw what the engines hold over time: the share of the KV cache in use, and running and waiting requests."""
    unit, unit_s = time_axis(float(load.time_s[-1]))
    times = tuple(float(time) for time in load.time_s / unit_s)
    kv = Series("KV cache", times, tuple(float(share) * 100 for share in load.kv_share), "steps")
    running = Series("running", times, tuple(float(count) for count in load.running), "steps")
    waiting = Series("waiting", times, tuple(float(count) for count in load.waiting), "steps")
    panels = (Panel("KV cache in use %", (kv,)), Panel("requests", (running, waiting)))
    return StepArea(name="load", title="What all engines hold over time", unit=unit, panels=panels)


def _list_lines(
    problem: EngineProblem, solution: EngineSolution, outcome: Outcome, analysis: EngineAnalysis
) -> Iterator[tuple[str, str]]:
    config, run = outcome.config, outcome.run
    option = problem.options[config.option]
    used = config.replicas * option.tensor_parallel
    if option.gpus_per_node > 1:
        nodes = option.count_nodes(config.replicas)
        spare = (nodes * option.gpus_per_node - used) // option.tensor_parallel
        yield "nodes", sentences.describe_nodes(nodes, option.hardware, option.gpus_per_node, used, spare)
    yield from _list_by_gpu(problem, analysis)
    interval, confidence = option.interval, problem.confidence or CONFIDENCE
    yield (
        "interval",
        sentences.describe_interval(
            interval.source, interval.groups, interval.low, interval.high, confidence, problem.precision
        ),
    )
    peak_tokens = run.peak_blocks // option.kv_cache.layout.groups * BLOCK_TOKENS
    if beyond := sentences.describe_table_ends(interval, peak_tokens, run.peak_running):
        yield "beyond tables", beyond
    if math.isinf(problem.targets.ttft_s) and math.isinf(problem.targets.latency_s):
        yield "wait", sentences.describe_unbounded_wait(outcome.ttft_s)
    if problem.window:
        yield "sliding window", sentences.describe_window(problem.window, problem.window_layers, problem.layers)
    low, high = _cost(problem, analysis.low), _cost(problem, analysis.high)
    yield "price range", sentences.describe_price_range(low, high)
    yield "a profile", sentences.describe_profile_value(low, high, is_measured=interval.source in ("runs", "endpoint"))
    peak = run.peak_blocks / option.kv_cache.num_blocks
    yield (
        "KV cache",
        sentences.describe_kv(peak, run.preemptions, option.kv_cache.tokens, is_measured=option.kv_cache.is_measured),
    )
    yield "prefix hits", _describe_prefix(problem, outcome)
    yield "steps", sentences.describe_steps(run.prefill_steps / max(run.steps, 1), run.peak_running)
    yield "front end", sentences.describe_front(problem.settings.front_s, problem.settings.tail)
    yield from _list_refusals(problem, solution)
    yield "search", sentences.describe_search(solution.simulations, solution.simulated_requests)
    yield "not predicted", sentences.UNPREDICTED


def _list_by_gpu(problem: EngineProblem, analysis: EngineAnalysis) -> Iterator[tuple[str, str]]:
    solution = analysis.by_gpu
    if solution is None or solution.config is None:
        return
    option: EngineOption = problem.options[solution.config.option]
    replicas = solution.config.replicas
    cost = option.cost_by_gpu(replicas) + solution.around_usd_per_hour
    yield "by GPU", sentences.describe_by_gpu(cost, option.hardware, replicas, option.tensor_parallel)


def _describe_prefix(problem: EngineProblem, outcome: Outcome) -> str:
    if not problem.requests.is_shared:
        return sentences.NO_PREFIX
    return sentences.describe_prefix(outcome.run.hit_tokens / float(problem.requests.input_tokens.sum()))


def _list_refusals(problem: EngineProblem, solution: EngineSolution) -> Iterator[tuple[str, str]]:
    for refusal in solution.refusals[:MAX_REFUSALS]:
        option = problem.options[refusal.config.option]
        yield (
            "refused",
            sentences.describe_refusal(
                option.hardware,
                option.tensor_parallel,
                refusal.config.replicas,
                refusal.obstacle,
                refusal.value_s,
                refusal.config.budget if len(problem.settings.budgets) > 1 else None,
            ),
        )
    for option, bounds in zip(problem.options, solution.bounds, strict=True):
        if all(bound.obstacle for bound in bounds):
            bound = min(bounds, key=lambda item: item.value_s)
            yield (
                "excluded",
                sentences.describe_excluded(option.hardware, option.tensor_parallel, bound.obstacle, bound.value_s),
            )
    if problem.too_small:
        yield "too small", sentences.describe_too_small(problem.too_small)
