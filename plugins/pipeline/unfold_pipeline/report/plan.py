"""The report of a plan: its tables, figures, and what explains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_pipeline._types import FloatArray
from unfold_pipeline.estimator.estimator import DECIMALS
from unfold_pipeline.estimator.slo import SloChecker
from unfold_pipeline.estimator.uncertainty import (
    DRIFT_HURST,
    HEAVY_TAIL_INDEX,
    ConfidenceInterval,
    estimate_tail_index,
    measure_hurst,
)
from unfold_pipeline.planner.coarse_grained import CoarseBaselines
from unfold_pipeline.planner.confident_plan import ConfidentPlan
from unfold_pipeline.planner.diagnostics import RejectedSaving, StageTime
from unfold_pipeline.planner.frontier import FrontierPoint
from unfold_pipeline.planner.planner import Solution
from unfold_pipeline.problem.pipeline import Plan, count_by_hardware
from unfold_pipeline.problem.problem import Problem
from unfold_pipeline.problem.sample import count_rare_bursts, count_wandering_blocks
from unfold_pipeline.report import sentences
from unfold_pipeline.report.plan_file import format_decision, format_scaling, hash_samples
from unfold_pipeline.tuner.replica_table import ReplicaTable
from unfoldkit.api import Cell, Column, Edge, Figure, Graph, Metric, Node, Report, Series, Table, Verdict, format_count

GREEDY_STEPS_SHOWN = 3
MAX_STAGES_OF_TABLE = 2
LATENCY_POINTS, TAIL_LEVELS = 61, (0.97, 0.98, 0.99, 0.995, 0.999)
"""Levels of the distribution of latencies: evenly spaced ones, and more in the tail."""
FRESH_SHARE = "fresh samples that keep the target"
Lines = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanAnalysis:
    """What explains a solution.

    Attributes:
        frontier: The cheapest plan for other targets.
        baselines: Coarse-grained plans, if any meets the SLO.
        stage_times: Where the time of each stage goes.
        rejected_savings: Plans with one replica less.
        losses_s: Percentile after the loss of a replica by stage; ``None`` for its only one.
        interval: Confidence interval of the percentile.
        jitter_s: Percentile with measured service-time variability, if the plan uses profiles.
        table: Replicas by rate at the batch sizes of the plan, if the plan stores them.
    """

    frontier: tuple[FrontierPoint, ...]
    baselines: CoarseBaselines | None
    stage_times: Sequence[StageTime]
    rejected_savings: Sequence[RejectedSaving]
    losses_s: Sequence[float | None]
    interval: ConfidenceInterval
    jitter_s: float | None
    table: ReplicaTable | None = None


def build_plan_report(problem: Problem, confident: ConfidentPlan, analysis: PlanAnalysis) -> Report:
    """Return the report of a plan that meets the SLO on its sample, and on enough fresh ones if that is required."""
    solution = confident.solution
    checker, plan = solution.checker, solution.plan
    tail_s, doubts = checker.tail_latency(plan), list_doubts(problem.traces)
    return Report(
        kind="pipeline",
        verb="plan",
        name=problem.name,
        verdict=Verdict.YES if confident.is_reached else Verdict.NO,
        question=sentences.ask_for_plan(sentences.format_slo(problem.slo_s)),
        headline=_describe_verdict(problem, confident, doubts),
        subtitle=build_subtitle(problem),
        metrics={
            **build_metrics(solution, tail_s, analysis.baselines),
            **_build_share_metric(problem, confident),
        },
        tables=(
            build_stage_table(checker, plan, analysis.stage_times),
            build_plan_table(solution, tail_s, analysis.baselines),
        ),
        figures=(
            build_plan_graph(checker, plan, analysis.stage_times),
            build_latency_figure(checker, plan),
            _build_frontier_figure(analysis.frontier, solution),
            *_build_time_figures(analysis.stage_times, checker),
        ),
        lines=(
            *_list_share_lines(problem, confident, doubts),
            *_list_plan_lines(problem, solution, analysis, tail_s),
            *list_cascade_lines(problem),
        ),
        next="unfold plan SPEC --replay TRACE",
        decision={
            **format_decision(checker, plan, solution.hourly_cost, tail_s, problem.activation_s),
            **_format_table(problem, solution, analysis),
        },
        provenance={
            "inputs": {
                "sample_sha256": hash_samples(checker),
                "prices": {name: price.source for name, price in problem.prices.items()},
                **list_cascade_inputs(problem),
            }
        },
    )


def _describe_verdict(problem: Problem, confident: ConfidentPlan, doubts: Sequence[str]) -> str:
    cost, slo_s, share = confident.solution.hourly_cost, problem.slo_s, confident.share
    if share is None:
        return sentences.describe_plan(cost, slo_s)
    headline = sentences.describe_plan_on_samples(
        cost, slo_s, share.kept, share.draws, limit=share.limit, confidence=problem.confidence
    )
    return f"{headline}{sentences.MAY_BE_FEWER}" if doubts and problem.confidence is not None else headline


def _build_share_metric(problem: Problem, confident: ConfidentPlan) -> Mapping[str, Metric]:
    if confident.share is None:
        return {}
    if problem.confidence is None:
        return {"fresh_share": Metric(confident.share.share, label=FRESH_SHARE)}
    target = f"≥ {problem.confidence:g}"
    return {"fresh_share": Metric(confident.share.share, target=target, ok=confident.is_reached, label=FRESH_SHARE)}


def _list_share_lines(problem: Problem, confident: ConfidentPlan, doubts: Sequence[str]) -> Lines:
    share = confident.share
    if share is None:
        return ()
    counts = (share.kept, share.draws, share.lower_bound)
    text = sentences.describe_expected_share(*counts)
    if problem.confidence is not None:
        extra_cost = confident.solution.hourly_cost - confident.base_cost
        text = sentences.describe_confident_share(*counts, extra_cost, is_reached=confident.is_reached)
    return (("fresh samples", text), *(("caution", doubt) for doubt in doubts))


def list_doubts(traces: Sequence[FloatArray]) -> tuple[str, ...]:
    """Return why fresh traffic may differ from resamples of the traces by more than these do from each other."""
    drifting = [hurst for hurst in map(measure_hurst, traces) if hurst > DRIFT_HURST]
    blocks = [count for count in map(count_wandering_blocks, traces) if count]
    bursts = [count for count in map(count_rare_bursts, traces) if count]
    heavy = [index for index in map(estimate_tail_index, traces) if index < HEAVY_TAIL_INDEX]
    return (
        *((sentences.describe_wandering(min(blocks)),) if blocks else ()),
        *((sentences.describe_rare_bursts(min(bursts)),) if bursts else ()),
        *((sentences.describe_drift(max(drifting)),) if drifting else ()),
        *((sentences.describe_heavy_tail(min(heavy)),) if heavy else ()),
    )


def build_subtitle(problem: Problem) -> tuple[str, ...]:
    """Return the facts beside the title: stages, queries, traffic and target."""
    first = problem.samples[0]
    gaps = np.diff(first.arrivals)
    burstiness = (f"cv {gaps.std() / gaps.mean():.2g}",) if gaps.size > 1 else ()
    count = sum(sample.size for sample in problem.samples)
    traffic = format_count(len(problem.samples), "sample") if len(problem.samples) > 1 else f"{first.rate:.3g}/s"
    stages = sentences.describe_stages(len(problem.pipeline.stages))
    return stages, format_count(count, "query"), traffic, *burstiness, sentences.format_slo(problem.slo_s)


def list_cascade_lines(problem: Problem) -> Lines:
    """Return the lines on the cascade behind the stages; none if the spec holds its own stages."""
    cascade = problem.cascade
    if cascade is None:
        return ()
    lines = [("routes", sentences.describe_routes(cascade.cases, cascade.unit, cascade.run))]
    if cascade.idle_share:
        lines.append(("idle", sentences.describe_idle(cascade.idle_share, cascade.unit)))
    if cascade.estimated_stages:
        text = sentences.describe_cascade_latency(cascade.estimated_stages, cascade.stage_count, cascade.rows_per_call)
        lines.append(("latency", text))
    if cascade.unused_models:
        lines.append(("unused", sentences.describe_unused_models(cascade.unused_models, cascade.unit)))
    return tuple(lines)


def list_cascade_inputs(problem: Problem) -> Mapping[str, str]:
    """Return the hash of the cascade's exits that a plan was made from, for its provenance."""
    return {} if problem.cascade is None else {"exits_sha256": problem.cascade.exits_sha256}


def build_metrics(solution: Solution, tail_s: float, baselines: CoarseBaselines | None) -> Mapping[str, Metric]:
    """Return the figures of a plan."""
    cost, checker, greedy = solution.hourly_cost, solution.checker, solution.greedy.plan
    target = f"≤ {sentences.format_latency(checker.slo_s)}"
    greedy_cost = checker.pipeline.cost(greedy) if greedy else None
    peak_ratio = baselines.peak.hourly_cost / cost if baselines and cost else None
    return {
        "cost_per_hour": Metric(cost, "$/h"),
        "p99_ms": Metric(tail_s * 1e3, "ms", target=target, ok=tail_s <= checker.slo_s),
        "gap_percent": Metric(solution.gap * 100, "%", label="possible saving at most"),
        "greedy_excess_percent": Metric(
            (greedy_cost / cost - 1) * 100 if greedy_cost and cost else None, "%", label="greedy plan costs more by"
        ),
        "coarse_peak_ratio": Metric(peak_ratio, "x", label="the coarse-grained plan for the peak costs"),
    }


def build_stage_table(checker: SloChecker, plan: Plan, times: Sequence[StageTime]) -> Table:
    """Return a row per stage: its configuration, load, times and price."""
    # stages of a cascade may take microseconds, which would all round to 0.0 ms
    unit, per_second = ("ms", 1e3) if max(time.p99_s for time in times) >= 1e-3 else ("µs", 1e6)
    columns = (
        Column("stage"),
        Column("hardware"),
        Column("batch"),
        Column("replicas"),
        Column("load", "%", 0),
        Column("p99", unit, 1),
        Column("waiting", unit, 1),
        Column("price", "$/h", 2),
    )
    rows: list[tuple[Cell, ...]] = []
    prices = checker.pipeline.split_cost(plan)
    for stage, config, time, price in zip(checker.pipeline.stages, plan, times, prices, strict=True):
        configuration = (stage.options[config.option].hardware, config.batch, config.replicas)
        measures = (time.load * 100, time.p99_s * per_second, time.waiting_s * per_second, price)
        rows.append((stage.name, *configuration, *measures))
    return Table("stages", columns, tuple(rows))


def build_plan_table(solution: Solution, tail_s: float, baselines: CoarseBaselines | None) -> Table:
    """Return this plan with the greedy and coarse-grained ones and the proven bound."""
    checker, cost, greedy = solution.checker, solution.hourly_cost, solution.greedy.plan
    digits = 0 if tail_s >= 0.01 else 3
    columns = (Column("plan"), Column("price", "$/h", 2), Column("p99", "ms", digits), Column("against this plan"))
    rows: list[tuple[Cell, ...]] = [("this plan", cost, tail_s * 1e3, "")]
    if greedy is not None:
        greedy_cost = checker.pipeline.cost(greedy)
        relation = sentences.describe_relative_cost(greedy_cost, cost, misses_slo=False)
        rows.append(("greedy (InferLine)", greedy_cost, checker.tail_latency(greedy) * 1e3, relation))
    if baselines is not None:
        for name, baseline in (("peak", baselines.peak), ("mean", baselines.mean)):
            misses_slo = baseline.tail_s > checker.slo_s
            relation = sentences.describe_relative_cost(baseline.hourly_cost, cost, misses_slo=misses_slo)
            rows.append((f"coarse-grained, {name}", baseline.hourly_cost, baseline.tail_s * 1e3, relation))
    bound = sentences.describe_bound(solution.gap, is_optimal=solution.is_optimal)
    rows.append(("lower bound, proven", solution.bound, None, bound))
    return Table("plans", columns, tuple(rows), accent=0)


def describe_overload(checker: SloChecker, plan: Plan) -> str:
    """Return the stages with a mean load above their capacity, which the end of the sample hides; or nothing."""
    loads = [
        (
            checker.pipeline.stages[index].name,
            checker.stage_rate(index) / (config.replicas * option.max_throughput(config.batch)),
        )
        for index, (config, option) in enumerate(zip(plan, checker.pipeline.chosen_options(plan), strict=True))
    ]
    overloaded = [(name, load) for name, load in loads if load > 1]
    return sentences.describe_overload(overloaded) if overloaded else ""


def _list_plan_lines(problem: Problem, solution: Solution, analysis: PlanAnalysis, tail_s: float) -> Lines:
    checker, plan = solution.checker, solution.plan
    worst, interval = checker.find_worst_sample(plan), analysis.interval
    optimality = sentences.describe_optimality(
        solution.gap, is_optimal=solution.is_optimal, is_search_complete=solution.is_search_complete
    )
    frontier = [(point.slo_s, point.hourly_cost, point.is_exact) for point in analysis.frontier]
    lines = [
        ("overload", describe_overload(checker, plan)),
        ("slack", _describe_slack(checker, tail_s, analysis.stage_times)),
        ("next cheaper plan", _describe_rejected_saving(checker, plan, analysis.rejected_savings)),
        ("after losing a replica", _describe_losses(checker, plan, analysis.losses_s)),
        ("p99", sentences.describe_interval(interval.low_s, interval.high_s, worst + 1, len(checker.samples))),
        (
            "variability",
            "" if analysis.jitter_s is None else sentences.describe_jitter(analysis.jitter_s, checker.slo_s),
        ),
        ("optimality", optimality),
        ("cost–SLO", sentences.describe_frontier(frontier)),
        ("greedy", _describe_greedy(solution)),
        *_list_latency_lines(problem),
        ("prices", sentences.describe_prices([(n, p.usd_per_hour, p.source) for n, p in problem.prices.items()])),
        ("instances", _describe_instances(checker, plan)),
    ]
    return tuple((label, text) for label, text in lines if text)


def _list_latency_lines(problem: Problem) -> Lines:
    sources = problem.latency_sources
    lines = [
        ("measured", sentences.describe_measured(group.stages, sources.machine, group.processor))
        for group in sources.measured
    ]
    if sources.overridden:
        lines.append(("overridden", sentences.describe_overridden(sources.overridden, sources.machine)))
    return tuple(lines)


def _describe_slack(checker: SloChecker, tail_s: float, times: Sequence[StageTime]) -> str:
    critical = max(range(len(times)), key=lambda index: times[index].critical_share)
    name = checker.pipeline.stages[critical].name
    return sentences.describe_slack(checker.slo_s - tail_s, name, times[critical].critical_share)


def _describe_rejected_saving(checker: SloChecker, plan: Plan, savings: Sequence[RejectedSaving]) -> str:
    rejected = next((saving for saving in savings if saving.tail_s > checker.slo_s), None)
    if rejected is None:
        return sentences.NO_SAVING
    stage = checker.pipeline.stages[rejected.stage]
    hardware = stage.options[plan[rejected.stage].option].hardware
    return sentences.describe_rejected_saving(
        hardware, stage.name, rejected.tail_s, checker.slo_s, after_loss=checker.spares > 0
    )


def _describe_losses(checker: SloChecker, plan: Plan, losses_s: Sequence[float | None]) -> str:
    stages = checker.pipeline.stages
    single = [stages[index].name for index, tail_s in enumerate(losses_s) if tail_s is None]
    survived = {index: tail_s for index, tail_s in enumerate(losses_s) if tail_s is not None}
    parts = []
    if survived:
        worst = max(survived, key=lambda index: survived[index])
        hardware = stages[worst].options[plan[worst].option].hardware
        describe = sentences.describe_survival if checker.spares else sentences.describe_replica_loss
        parts.append(describe(hardware, stages[worst].name, survived[worst], checker.slo_s))
    if single:
        parts.append(sentences.describe_outage(single))
    return "; ".join(parts)


def _describe_greedy(solution: Solution) -> str:
    steps = solution.greedy.steps
    if not steps:
        return ""
    last_steps = [(step.stage, step.move, step.hourly_cost) for step in steps[-GREEDY_STEPS_SHOWN:]]
    return sentences.describe_greedy_steps(len(steps), last_steps)


def _describe_instances(checker: SloChecker, plan: Plan) -> str:
    """Return the instances to rent where several replicas share one; empty where none do."""
    options = checker.pipeline.chosen_options(plan)
    used = count_by_hardware(options, [config.replicas for config in plan])
    shared = {option.hardware: option for option in options if option.replicas_per_instance > 1}
    return sentences.describe_instances(
        [
            (option.count_instances(used[name]), name, used[name], option.replicas_per_instance)
            for name, option in shared.items()
        ]
    )


def _format_table(problem: Problem, solution: Solution, analysis: PlanAnalysis) -> dict[str, Any]:
    if analysis.table is None:
        return {}
    stay_s = [time.mean_s for time in analysis.stage_times]
    settings = problem.tuner.admit_plan(solution.plan)
    return {"scaling": format_scaling(solution.checker, analysis.table, stay_s, settings)}


def _build_frontier_figure(points: Sequence[FrontierPoint], solution: Solution) -> Figure:
    solved = [(point.slo_s * 1e3, point.hourly_cost) for point in points if point.hourly_cost is not None]
    name = "cheapest plan" if all(point.is_exact for point in points) else "cheapest plan found"
    frontier = Series(name, tuple(slo_ms for slo_ms, _ in solved), tuple(cost for _, cost in solved), "steps")
    plan = Series("this plan, at its target", (solution.checker.slo_s * 1e3,), (solution.hourly_cost,), "points")
    title = "Price of the cheapest plan by target"
    return Figure("frontier", title, "p99 target ms", "price $/h", (frontier, plan))


def build_latency_figure(checker: SloChecker, plan: Plan) -> Figure:
    """Return the distribution of the latencies on the sample with the largest percentile, beside the target."""
    estimator = checker.estimators[checker.find_worst_sample(plan)]
    seconds = estimator.compute_latencies(plan)
    levels = np.unique(np.concatenate((np.linspace(0.0, 1.0, LATENCY_POINTS), TAIL_LEVELS)))
    answered = np.sort(seconds[np.isfinite(seconds)]).round(DECIMALS)
    ranks = np.minimum((levels * seconds.size).astype(int), answered.size - 1)
    shares = (ranks + 1) / seconds.size
    simulated = Series("this plan, simulated", tuple(answered[ranks] * 1e3), tuple(100 * shares))
    slo_ms = checker.slo_s * 1e3
    target = Series("target", (slo_ms, slo_ms), (0.0, 100.0))
    percent = 100 * estimator.percentile
    tail = Series(f"p{percent:g}", (checker.tail_latency(plan) * 1e3,), (percent,), "points")
    return Figure("latencies", sentences.LATENCY_TITLE, "ms", "answered %", (simulated, target, tail))


def build_plan_graph(checker: SloChecker, plan: Plan, times: Sequence[StageTime]) -> Graph:
    """Return the stages with hardware, batch size, replicas, load and their part of the slowest queries."""
    stages = checker.pipeline.stages
    prices = checker.pipeline.split_cost(plan)
    nodes = tuple(
        Node(
            name=stage.name,
            facts=(sentences.describe_configuration(stage.options[config.option].hardware, config.batch, price),),
            count=config.replicas,
            load=time.load,
            share=time.critical_share,
        )
        for stage, config, time, price in zip(stages, plan, times, prices, strict=True)
    )
    edges = tuple(Edge(stages[edge.parent].name, stage.name, edge.share) for stage in stages for edge in stage.parents)
    return Graph(
        name="plan",
        title=sentences.GRAPH_TITLE,
        nodes=nodes,
        edges=edges,
        count="replicas",
        load="load",
        share=sentences.BOTTLENECK,
        weight=sentences.EDGE_WEIGHT,
    )


def _build_time_figures(times: Sequence[StageTime], checker: SloChecker) -> tuple[Figure, ...]:
    """Return where the time goes; nothing for one or two stages, where the table shows as much."""
    if len(times) <= MAX_STAGES_OF_TABLE:
        return ()
    names = tuple(stage.name for stage in checker.pipeline.stages)
    positions = tuple(float(index + 1) for index in range(len(times)))
    service_ms = tuple((time.mean_s - time.waiting_s) * 1e3 for time in times)
    service = Series("service", positions, service_ms, "bars")
    waiting = Series("waiting", positions, tuple(time.waiting_s * 1e3 for time in times), "bars")
    return (Figure("stages", "Where the time goes", "stage", "mean ms", (service, waiting), names=names),)
