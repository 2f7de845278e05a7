"""The report of a simulated replay: the rule in charge compared with every other rule on the same trace."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unfold_pipeline._types import FloatArray
from unfold_pipeline.estimator.replica_schedule import list_serving_counts
from unfold_pipeline.estimator.simulator import get_trace_duration
from unfold_pipeline.problem.problem import Problem, compute_wait_bound
from unfold_pipeline.problem.sample import Sample
from unfold_pipeline.replay.simulated import RuleTrace, UnitSettings
from unfold_pipeline.report import sentences
from unfold_pipeline.report.plan import Lines
from unfold_pipeline.tuner.autoscalers import KnativeSettings, RayServeSettings
from unfoldkit.api import Cell, Column, Metric, Panel, Report, Series, StepArea, Table, Verdict

TRAFFIC_BINS = 400
MIN_ATTAINMENT = 0.99
DRAWN_RULES = ("coarse-grained, peak", "Ray Serve", "Knative")
"""Baselines with tuned settings; the figure shows their replicas."""
COMPARED_RULES = (
    "coarse-grained, mean",
    "coarse-grained, peak",
    "Ray Serve",
    "Ray Serve, defaults",
    "Knative",
    "Knative, defaults",
)


def build_replay_report(problem: Problem, live: Sample, rules: Sequence[RuleTrace]) -> Report:
    """Return the report of a trace under the rule in charge.

    Args:
        problem: Names the rule in charge.
        live: The trace.
        rules: Every rule with the trace under it.
    """
    chosen = next(rule for rule in rules if rule.name == problem.tuner_policy)
    slo_s, trace = problem.slo_s, chosen.trace
    attainment, tail_s = 1 - trace.miss_rate(slo_s), trace.tail_latency()
    is_met = tail_s <= slo_s and attainment >= MIN_ATTAINMENT
    target = f"≤ {sentences.format_latency(slo_s)}"
    _, counts = _sum_replicas(chosen, get_trace_duration(live))
    replicas = int(min(counts)), int(max(counts))
    return Report(
        kind="pipeline",
        verb="plan",
        name=problem.name,
        verdict=Verdict.YES if is_met else Verdict.NO,
        question=sentences.ask_for_replay(sentences.format_slo(slo_s)),
        headline=sentences.describe_attainment(attainment, slo_s, trace.hourly_cost, chosen.name, replicas),
        subtitle=_build_subtitle(problem, live),
        metrics={
            "attainment": Metric(attainment, "", target="≥ 0.99", ok=is_met),
            "cost_per_hour": Metric(trace.hourly_cost, "$/h"),
            "p99_ms": Metric(tail_s * 1e3, "ms", target=target, ok=tail_s <= slo_s),
            "shed" if problem.sheds else "refused": Metric(trace.shed_rate),
        },
        tables=(_build_table(rules, slo_s, chosen.name),),
        figures=(_build_replay_figure(problem, rules, chosen, live),),
        lines=(
            *_list_overload(problem, chosen),
            *_list_quotas(problem, chosen),
            *_list_comparisons(rules, chosen, slo_s),
        ),
        next=problem.serve_command,
    )


def describe_rule_settings(rule: RuleTrace) -> str:
    """Describe what a scaling rule was set to in a replay; empty for the rule ``fixed``, which has no settings."""
    settings = rule.settings
    if isinstance(settings, UnitSettings):
        return sentences.describe_unit_settings(settings.batch, settings.headroom, settings.window_s, settings.hold_s)
    if isinstance(settings, RayServeSettings):
        return sentences.describe_ray_serve_settings(
            settings.target_ongoing_requests, settings.upscale_delay_s, settings.downscale_delay_s
        )
    if isinstance(settings, KnativeSettings):
        return sentences.describe_knative_settings(settings.target_utilization, settings.stable_window_s)
    if rule.name == "fixed":
        return ""
    if rule.name in ("paper", "ratio"):
        return sentences.describe_floor(has_floor=settings.has_floor)
    return sentences.describe_settings(settings.margin, settings.hold_s, has_floor=settings.has_floor)


def _build_subtitle(problem: Problem, live: Sample) -> tuple[str, ...]:
    return (
        f"{live.size:,} queries",
        f"{get_trace_duration(live):,.0f} s",
        f"{live.rate:.3g}/s",
        sentences.describe_activation(problem.tuner.delay_s, problem.tuner.delay_source),
        *((sentences.describe_shedding(),) if problem.sheds else ()),
    )


def _build_table(rules: Sequence[RuleTrace], slo_s: float, chosen: str) -> Table:
    columns = (
        Column("rule"),
        Column("misses", "%", 3),
        Column("price", "$/h", 2),
        Column("p99", "ms", 0),
        Column("changes"),
        Column("settings"),
    )
    rows: list[tuple[Cell, ...]] = [
        (
            rule.name,
            rule.trace.miss_rate(slo_s) * 100,
            rule.trace.hourly_cost,
            rule.trace.tail_latency() * 1e3,
            rule.trace.orders,
            describe_rule_settings(rule),
        )
        for rule in rules
    ]
    accent = next(index for index, rule in enumerate(rules) if rule.name == chosen)
    return Table("rules", columns, tuple(rows), accent=accent)


def _list_quotas(problem: Problem, chosen: RuleTrace) -> Lines:
    used = {option.hardware for option in problem.pipeline.chosen_options(chosen.plan)}
    quotas = [(name, quota) for name, quota in problem.pipeline.quotas if name in used]
    return (("quota", sentences.describe_shared_quotas(quotas)),) if quotas else ()


def _list_overload(problem: Problem, chosen: RuleTrace) -> Lines:
    """Return what a service refuses where queues would grow too long; nothing where they do not."""
    if problem.sheds or not chosen.trace.shed_rate:
        return ()
    return (("overload", sentences.describe_refusals(chosen.trace.shed_rate, compute_wait_bound(problem.slo_s))),)


def _list_comparisons(rules: Sequence[RuleTrace], chosen: RuleTrace, slo_s: float) -> Lines:
    miss_rate, cost = chosen.trace.miss_rate(slo_s), chosen.trace.hourly_cost
    return tuple(
        (
            f"against {rule.name}",
            sentences.describe_comparison(miss_rate, rule.trace.miss_rate(slo_s), cost / rule.trace.hourly_cost),
        )
        for rule in rules
        if rule.name in COMPARED_RULES
    )


def _build_replay_figure(problem: Problem, rules: Sequence[RuleTrace], chosen: RuleTrace, live: Sample) -> StepArea:
    """Show arrivals, replicas and misses on one time axis, beside those of the tuned baselines."""
    end_s = get_trace_duration(live)
    compared = [chosen, *(rule for rule in rules if rule.name in DRAWN_RULES and rule is not chosen)]
    stages = zip(problem.pipeline.stages, chosen.plan, chosen.trace.schedules, strict=True)
    by_stage = tuple(
        _build_steps(stage.name, *list_serving_counts(config.replicas, schedule, end_s))
        for stage, config, schedule in stages
    )
    misses = tuple(
        _build_rate(rule.name, live.arrivals[rule.trace.latencies > problem.slo_s], end_s) for rule in compared
    )
    return StepArea(
        name="replay",
        title=sentences.describe_replay_figure(chosen.name),
        unit="s",
        panels=(
            Panel("queries/s", (_build_rate("queries/s", live.arrivals, end_s),)),
            Panel("replicas", tuple(_build_steps(rule.name, *_sum_replicas(rule, end_s)) for rule in compared)),
            *((Panel("by stage", by_stage),) if len(by_stage) > 1 else ()),
            Panel("misses/s", misses),
        ),
    )


def _sum_replicas(rule: RuleTrace, end_s: float) -> tuple[list[float], list[float]]:
    """Return the times at which the replicas of all stages change, and their number from then on."""
    changes = sorted(change for schedule in rule.trace.schedules for change in schedule.changes if change[0] <= end_s)
    times, counts = [0.0], [float(sum(config.replicas for config in rule.plan))]
    for time_s, change in changes:
        times.append(time_s)
        counts.append(counts[-1] + change)
    return [*times, end_s], [*counts, counts[-1]]


def _build_steps(name: str, times_s: Sequence[float], counts: Sequence[float]) -> Series:
    return Series(name, tuple(times_s), tuple(counts), "steps")


def _build_rate(name: str, moments_s: FloatArray, end_s: float) -> Series:
    width_s = max(1.0, end_s / TRAFFIC_BINS)
    edges = np.arange(0.0, end_s + width_s, width_s)
    rates = np.histogram(moments_s, edges)[0] / width_s
    return Series(name, (*edges[:-1].tolist(), end_s), (*rates.tolist(), float(rates[-1])), "steps")
