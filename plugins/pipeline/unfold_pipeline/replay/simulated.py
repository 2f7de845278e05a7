"""A trace through a plan under every scaling rule, simulated: InferLine's, this project's, and common autoscalers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from unfold_pipeline.estimator.replica_schedule import ScalingTargets
from unfold_pipeline.estimator.simulator import (
    ReactiveRule,
    SimulatedTrace,
    build_constant_targets,
    compute_service_deadlines,
    simulate_reactive_rule,
    simulate_targets,
)
from unfold_pipeline.estimator.slo import SloChecker
from unfold_pipeline.planner.coarse_grained import (
    count_mean_units,
    count_peak_units,
    find_cheapest_unit,
    limit_units,
    measure_peak_rate,
)
from unfold_pipeline.planner.diagnostics import measure_stage_times
from unfold_pipeline.problem.pipeline import Pipeline, Plan
from unfold_pipeline.problem.problem import TunerSettings
from unfold_pipeline.problem.quotas import build_quota_limits
from unfold_pipeline.problem.sample import Sample
from unfold_pipeline.tuner.autoscalers import (
    KNATIVE_GRID,
    RAY_SERVE_GRID,
    KnativeSettings,
    RayServeSettings,
    build_knative_rule,
    build_ray_serve_rule,
    scale_pipeline_units,
)
from unfold_pipeline.tuner.calibration import calibrate_settings
from unfold_pipeline.tuner.envelope_rule import (
    ScalingContext,
    build_scaling_context,
    compute_paper_targets,
    compute_ratio_targets,
)
from unfold_pipeline.tuner.table_rule import build_context_table, compute_table_targets

UNIT_WINDOW_S = 5.0
UNIT_HOLD_S = 120.0
RULES = 11


@dataclass(frozen=True, slots=True)
class UnitSettings:
    """Settings of AutoScale's rule on coarse-grained units; times in seconds."""

    batch: int
    headroom: float
    window_s: float
    hold_s: float


@dataclass(frozen=True, slots=True)
class RuleTrace:
    """A scaling rule, the plan that it scales, the simulated trace, and its settings."""

    name: str
    plan: Plan
    trace: SimulatedTrace
    settings: TunerSettings | UnitSettings | RayServeSettings | KnativeSettings


def simulate_rules(checker: SloChecker, plan: Plan, live: Sample, settings: TunerSettings) -> Iterator[RuleTrace]:
    """Yield each rule with the trace under it.

    Args:
        checker: Pipeline, SLO and the traffic of the plan.
        plan: The plan to scale.
        live: The trace.
        settings: Settings in the spec; ``calibrated`` chooses its own margin, hold and floor.
    """
    context = build_scaling_context(checker.pipeline, plan, checker.samples, checker.slo_s, checker.spares)
    table = build_context_table(context, settings)
    yield _simulate_rule("fixed", context, live, build_constant_targets(plan, live), settings)
    for name, compute_targets in (("paper", compute_paper_targets), ("ratio", compute_ratio_targets)):
        yield _simulate_rule(name, context, live, compute_targets(context, live, settings), settings)
    yield _simulate_rule("table", context, live, compute_table_targets(context, live, settings, table), settings)
    calibrated = calibrate_settings(context, settings, table)
    targets = compute_table_targets(context, live, calibrated, table)
    tuned = _simulate_rule("calibrated", context, live, targets, calibrated)
    yield tuned
    yield from _simulate_units(checker, live, settings)
    yield from _simulate_autoscalers(checker, plan, live, settings, tuned.trace.miss_rate(checker.slo_s))


def _simulate_rule(
    name: str, context: ScalingContext, live: Sample, targets: ScalingTargets, settings: TunerSettings
) -> RuleTrace:
    pipeline, plan = context.pipeline, context.plan
    deadlines_s = compute_service_deadlines(pipeline, plan, context.slo_s, sheds=settings.sheds)
    trace = simulate_targets(pipeline, live, plan, targets, settings.delay_s, deadlines_s=deadlines_s)
    return RuleTrace(name, plan, trace, settings)


def _simulate_units(checker: SloChecker, live: Sample, settings: TunerSettings) -> Iterator[RuleTrace]:
    """Yield the coarse-grained plans with AutoScale's rule; that for the peak keeps the headroom of its plan."""
    unit = find_cheapest_unit(checker)
    if unit is None:
        return
    max_units = int(min(settings.max_replicas, limit_units(checker, unit)))
    for name, headroom, count in (
        ("coarse-grained, mean", 1.0, count_mean_units(checker, unit)),
        ("coarse-grained, peak", measure_peak_rate(checker) / checker.max_mean_rate, count_peak_units(checker, unit)),
    ):
        plan = unit.replicate(min(count, max_units))
        units = scale_pipeline_units(
            unit.throughput,
            live,
            plan[0].replicas,
            window_s=UNIT_WINDOW_S,
            headroom=headroom,
            hold_s=UNIT_HOLD_S,
            max_units=max_units,
        )
        targets = ScalingTargets(tuple(units for _ in plan))
        deadlines_s = compute_service_deadlines(checker.pipeline, plan, checker.slo_s, sheds=settings.sheds)
        trace = simulate_targets(checker.pipeline, live, plan, targets, settings.delay_s, deadlines_s=deadlines_s)
        yield RuleTrace(name, plan, trace, UnitSettings(plan[0].batch, headroom, UNIT_WINDOW_S, UNIT_HOLD_S))


def _simulate_autoscalers(
    checker: SloChecker, plan: Plan, live: Sample, settings: TunerSettings, max_miss_rate: float
) -> Iterator[RuleTrace]:
    """Yield each autoscaler twice: with the best of its settings for this trace, in hindsight, and with its defaults.

    The best are the cheapest with at most ``max_miss_rate``, or those with the fewest misses.
    """
    in_flight = estimate_in_flight(checker, plan)
    ray_rules = [
        (option, build_ray_serve_rule(plan, settings.max_replicas, in_flight, option))
        for option in (RayServeSettings(), *RAY_SERVE_GRID)
    ]
    knative_rules = [
        (option, build_knative_rule(plan, settings.max_replicas, in_flight, option))
        for option in (KnativeSettings(), *KNATIVE_GRID)
    ]
    for name, rules in (("Ray Serve", ray_rules), ("Knative", knative_rules)):
        traces = [
            RuleTrace(name, plan, _simulate_reactive(checker, plan, live, settings, rule), option)
            for option, rule in rules
        ]
        accepted = [trace for trace in traces if trace.trace.miss_rate(checker.slo_s) <= max_miss_rate]
        best = (
            min(accepted, key=lambda item: item.trace.hourly_cost)
            if accepted
            else min(traces, key=lambda item: (item.trace.miss_rate(checker.slo_s), item.trace.hourly_cost))
        )
        yield best
        yield replace(traces[0], name=f"{name}, defaults")


def estimate_in_flight(checker: SloChecker, plan: Plan) -> list[float]:
    """Return the mean queries in flight at each stage under the planned traffic: Little's law."""
    times = measure_stage_times(checker, plan)
    return [checker.stage_rate(index) * time.mean_s for index, time in enumerate(times)]


def _simulate_reactive(
    checker: SloChecker, plan: Plan, live: Sample, settings: TunerSettings, rule: ReactiveRule
) -> SimulatedTrace:
    pipeline = checker.pipeline
    deadlines_s = compute_service_deadlines(pipeline, plan, checker.slo_s, sheds=settings.sheds)
    limited = _apply_quotas(rule, pipeline, plan)
    return simulate_reactive_rule(pipeline, live, plan, limited, settings.delay_s, deadlines_s)


def _apply_quotas(rule: ReactiveRule, pipeline: Pipeline, plan: Plan) -> ReactiveRule:
    """Return a rule that shares the quotas among the stages."""
    limits = build_quota_limits(pipeline, plan)
    return lambda now_s, in_flight, ordered: limits.share_replicas(rule(now_s, in_flight, ordered))
