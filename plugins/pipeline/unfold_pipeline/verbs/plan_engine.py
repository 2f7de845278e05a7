"""The verb ``plan`` for a pipeline that is an LLM engine: the cheapest GPUs that keep TTFT and TPOT."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from unfold_pipeline.engine.autoscaling.hindsight import find_cheapest_schedule, find_fixed_peak, simulate_slots
from unfold_pipeline.engine.autoscaling.replay import (
    AutoscaledRun,
    calibrate_envelope_rule,
    replay_rule,
)
from unfold_pipeline.engine.autoscaling.rules import (
    ENVELOPE_MARGIN,
    ScalingRule,
    TokenEnvelope,
    build_envelope_rule,
    build_hpa_rule,
    build_keda_rule,
    build_token_envelope,
    count_trace_tokens,
    keep_replicas,
    limit_replicas,
)
from unfold_pipeline.engine.build import build_engine_problem, build_engine_stages, build_replay_requests
from unfold_pipeline.engine.planner.analysis import analyze_plan, scale_to_end
from unfold_pipeline.engine.planner.problem import EngineProblem
from unfold_pipeline.engine.planner.search import EngineConfig, evaluate, explain_refusals, find_cheapest_engines
from unfold_pipeline.planner.engine_pipeline import EngineStages, attach_stages, find_cheapest_pipeline
from unfold_pipeline.report.engines.plan import (
    build_engine_report,
    build_no_engine_report,
    parse_engine_decision,
    recheck_engine_plan,
)
from unfold_pipeline.report.engines.replay import build_engine_replay_report
from unfold_pipeline.report.engines.stages_around import describe_stages, parse_stage_plans
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfoldkit.api import Metric, Report, Run, user_error

HPA_UTILIZATION = 0.8
RULES = 5
SHORTEST_SLOT_S = 60.0


def plan_engine(spec: PipelineSpec, run: Run) -> Report:
    """Find the cheapest engines that meet the targets; with ``slo.confidence``, at the upper end of the interval."""
    problem = build_engine_problem(spec, run)
    stages = build_stages_around(spec, run)
    if trace := run.options.get("replay"):
        if stages is not None:
            reject_stages_around(spec, "--replay")
        return _replay_trace(spec, problem, Path(trace), run)
    committed = (run.options.get("baseline_plan") or {}).get("decision", {})
    if committed and committed.get("trace_sha256") != problem.trace_sha256:
        config = parse_engine_decision(committed, problem)
        if stages is not None:
            problem = attach_stages(problem, stages, parse_stage_plans(committed, stages))
        return recheck_engine_plan(problem, committed, evaluate(problem, config, complete=True))
    if stages is not None:
        return _plan_with_stages(problem, stages, run)
    start_s = run.clock()
    predicted = find_cheapest_engines(problem, run.progress)
    planning_seconds = Metric(run.clock() - start_s, "s", timed=True)
    low = find_cheapest_engines(scale_to_end(problem, high=False), run.progress)
    slow = scale_to_end(problem, high=True)
    high = find_cheapest_engines(slow, run.progress)
    planned, solution = (problem, predicted) if problem.confidence is None else (slow, high)
    solution = explain_refusals(planned, solution)
    if solution.config is None:
        return build_no_engine_report(problem, solution)
    outcome = evaluate(problem, solution.config, complete=True)
    analysis = analyze_plan(problem, outcome, (low, high), run.progress)
    report = build_engine_report(problem, solution, outcome, analysis)
    return replace(report, metrics={**report.metrics, "planning_seconds": planning_seconds})


def build_stages_around(spec: PipelineSpec, run: Run) -> EngineStages | None:
    """Return the stages around the engine of a spec; ``None`` if it stands alone.

    Raises:
        UnfoldError: a stage has no latency or no price.
    """
    pipelines = build_engine_stages(spec, run)
    if pipelines is None:
        return None
    upstream, downstream = pipelines
    return EngineStages(
        upstream=upstream, downstream=downstream, max_replicas=spec.tuner.most, max_requests=spec.search.limit
    )


def reject_stages_around(spec: PipelineSpec, verb: str) -> NoReturn:
    """Reject what is not built for an engine with other stages around it.

    Raises:
        UnfoldError: always.
    """
    other = next(name for name, stage in spec.stages_by_name.items() if stage.engine is None)
    hint = f"leave {other} out, with less time in the targets"
    raise user_error(f"{verb} takes an engine without other stages", key=f"stages.{other}", hint=hint)


def _plan_with_stages(problem: EngineProblem, stages: EngineStages, run: Run) -> Report:
    """Find the cheapest engines and stages around them that meet the targets of the pipeline."""
    start_s = run.clock()
    predicted = find_cheapest_pipeline(problem, stages, run.progress)
    planning_seconds = Metric(run.clock() - start_s, "s", timed=True)
    slow = scale_to_end(problem, high=True)
    low = find_cheapest_pipeline(scale_to_end(problem, high=False), stages, run.progress)
    high = find_cheapest_pipeline(slow, stages, run.progress)
    planned, joint = (problem, predicted) if problem.confidence is None else (slow, high)
    if joint.plans is None:
        return build_no_engine_report(problem, joint.solution)
    solution = explain_refusals(attach_stages(planned, stages, joint.plans), joint.solution)
    case = attach_stages(problem, stages, joint.plans)
    config = solution.config
    assert config is not None  # noqa: S101 - there are plans
    outcome = evaluate(case, config, complete=True)
    analysis = analyze_plan(case, outcome, (low.solution, high.solution), run.progress)
    is_complete = predicted.is_complete and low.is_complete and high.is_complete
    arrival_s = problem.requests.arrival_s
    around = describe_stages(case, stages, joint.plans, arrival_s, outcome, is_complete=is_complete)
    report = build_engine_report(case, solution, outcome, analysis, around)
    return replace(report, metrics={**report.metrics, "planning_seconds": planning_seconds})


def _replay_trace(spec: PipelineSpec, problem: EngineProblem, trace: Path, run: Run) -> Report:
    """Replay a trace under the saved plan, or under a new one, with engines that follow the traffic."""
    saved = (run.options.get("plan") or {}).get("decision")
    if saved:
        config = parse_engine_decision(saved, problem)
    else:
        planned = problem if problem.confidence is None else scale_to_end(problem, high=True)
        solution = find_cheapest_engines(planned, run.progress)
        if solution.config is None:
            return build_no_engine_report(problem, explain_refusals(planned, solution))
        config = solution.config
    live = replace(problem, requests=build_replay_requests(spec, problem, config, trace, run))
    envelope = build_token_envelope(problem.requests, config.replicas, problem.settings.start_s)
    calibrated = None
    if spec.tuner.policy != "fixed":
        max_replicas = limit_replicas(problem, config)
        calibrated = calibrate_envelope_rule(problem, config, envelope, max_replicas=max_replicas)
    runs: list[AutoscaledRun] = []
    for autoscaled in _simulate_rules(problem, live, config, envelope, calibrated):
        runs.append(autoscaled)
        run.progress("replay", len(runs), RULES)
    if calibrated is None:
        runs[:2] = runs[1::-1]
    slot_s = max(problem.settings.start_s, SHORTEST_SLOT_S)
    slots = simulate_slots(live, config, slot_s, limit_replicas(problem, config))
    bounds = [find_cheapest_schedule(slots, item.misses) for item in runs]
    return build_engine_replay_report(live, runs, calibrated, bounds, float(slots.seconds[0]))


def _simulate_rules(
    problem: EngineProblem,
    live: EngineProblem,
    config: EngineConfig,
    envelope: TokenEnvelope,
    calibrated: tuple[float, float] | None,
) -> Iterator[AutoscaledRun]:
    settings, max_replicas = problem.settings, limit_replicas(problem, config)
    peak_running = evaluate(problem, config, complete=True).run.peak_running
    margin, hold_s = calibrated or (ENVELOPE_MARGIN, settings.start_s)
    peak = find_fixed_peak(live, config)
    rules: tuple[tuple[str, ScalingRule], ...] = (
        (
            "token envelope",
            build_envelope_rule(envelope, count_trace_tokens(live.requests), hold_s=hold_s, margin=margin),
        ),
        ("fixed plan", keep_replicas(config.replicas)),
        *(() if peak is None else (("fixed peak", keep_replicas(peak)),)),
        ("HPA on requests inside", build_hpa_rule(HPA_UTILIZATION * peak_running)),
        ("KEDA on waiting requests", build_keda_rule()),
    )
    for name, rule in rules:
        # a fixed peak is there from the begin
        initial = replace(config, replicas=peak) if name == "fixed peak" and peak is not None else config
        yield replay_rule(name, live, initial, rule, max_replicas=max_replicas)
