"""The verb ``plan`` for a pipeline that is an LLM engine: the cheapest GPUs that keep TTFT and TPOT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from unfold_pipeline.engine.autoscaling.autoscalers import (
    ScalingRule,
    build_hpa_rule,
    build_keda_rule,
    keep_replicas,
    limit_replicas,
)
from unfold_pipeline.engine.autoscaling.hindsight import find_cheapest_schedule, find_fixed_peak, simulate_slots
from unfold_pipeline.engine.autoscaling.replay import (
    AutoscaledRun,
    calibrate_envelope_rule,
    replay_rule,
)
from unfold_pipeline.engine.autoscaling.token_envelope import (
    ENVELOPE_MARGIN,
    TokenEnvelope,
    build_envelope_rule,
    build_token_envelope,
    count_trace_tokens,
)
from unfold_pipeline.engine.build import build_engine_problem, build_engine_stages, build_replay_requests
from unfold_pipeline.engine.planner.analysis import analyze_plan, scale_to_end
from unfold_pipeline.engine.planner.large_requests import measure_large_requests
from unfold_pipeline.engine.planner.problem import EngineProblem, EngineStages
from unfold_pipeline.engine.planner.search import EngineConfig, evaluate, explain_refusals, find_cheapest_engines
from unfold_pipeline.planner.confident_plan import measure_fresh_request_share
from unfold_pipeline.planner.surrounding_stages import JointSolution, attach_stages, find_cheapest_pipeline
from unfold_pipeline.report.engines.plan import (
    add_doubts,
    add_fresh_share,
    add_large_requests,
    add_left_out,
    add_stages,
    build_engine_report,
    build_no_engine_report,
    parse_engine_decision,
    recheck_engine_plan,
)
from unfold_pipeline.report.engines.pools import is_pool_decision, parse_pool_decision
from unfold_pipeline.report.engines.replay import build_engine_replay_report
from unfold_pipeline.report.engines.surrounding_stages import describe_stages, parse_stage_plans
from unfold_pipeline.schema.arrivals import Arrivals
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.verbs.plan_pools import (
    describe_pools_beside,
    find_least_price,
    find_pools,
    is_cheaper,
    measure_fresh_pools,
    price_engines,
    price_pool_plan,
    recheck_pool_plan,
    replay_pools,
    report_pools,
)
from unfold_pipeline.verbs.serve_surrounding_stages import choose_pipeline
from unfoldkit.api import Metric, Report, Run

HPA_UTILIZATION = 0.8
RULES = 5
SHORTEST_SLOT_S = 60.0


def plan_engine(spec: PipelineSpec, run: Run) -> Report:
    """Find the cheapest engines that meet the targets; with ``slo.confidence``, at the upper end of the interval."""
    problem = build_engine_problem(spec, run)
    stages = build_engine_stages(spec, run)
    if trace := run.options.get("replay"):
        return _replay_trace(spec, problem, stages, Path(trace), run)
    committed = (run.options.get("baseline_plan") or {}).get("decision", {})
    if committed and committed.get("trace_sha256") != problem.trace_sha256:
        report = _recheck_plan(problem, stages, committed)
    elif stages is None:
        report = _plan_alone(problem, run)
    else:
        report = _plan_with_stages(problem, stages, run)
    if isinstance(spec.arrivals, Arrivals) and spec.arrivals.trace is not None:
        report = add_doubts(report, problem.requests.arrival_s)
    return add_left_out(report, problem)


def _recheck_plan(problem: EngineProblem, stages: EngineStages | None, committed: Mapping[str, Any]) -> Report:
    """Return whether a committed plan meets the targets on the traffic of a problem."""
    if is_pool_decision(committed):
        return recheck_pool_plan(problem, committed)
    config = parse_engine_decision(committed, problem)
    if stages is not None:
        problem = attach_stages(problem, stages, parse_stage_plans(committed, stages))
    return recheck_engine_plan(problem, committed, evaluate(problem, config, complete=True))


def _plan_alone(problem: EngineProblem, run: Run) -> Report:
    """Find the cheapest engines, or pools of prefill and decode engines, that meet the targets."""
    start_s = run.clock()
    predicted = find_cheapest_engines(problem, run.progress)
    planning_seconds = Metric(run.clock() - start_s, "s", timed=True)
    low = find_cheapest_engines(scale_to_end(problem, high=False), run.progress)
    slow = scale_to_end(problem, high=True)
    high = find_cheapest_engines(slow, run.progress)
    planned, solution = (problem, predicted) if problem.confidence is None else (slow, high)
    pools = find_pools(problem, run.progress)

    def find_price(rest: EngineProblem, ceiling: float) -> float | None:
        return find_least_price(rest, run.progress, ceiling)

    if pools is not None and is_cheaper(problem, pools, solution):
        report = report_pools(problem, pools, solution, (low, high))
        price = price_pool_plan(problem, pools.choose(problem))
        report = add_large_requests(report, problem, measure_large_requests(planned, price, find_price))
        report = add_fresh_share(report, measure_fresh_pools(planned, pools, run.seed))
        return replace(report, metrics={**report.metrics, "planning_seconds": planning_seconds})
    alternatives = describe_pools_beside(problem, pools)
    large = measure_large_requests(planned, price_engines(problem, solution), find_price)
    solution = explain_refusals(planned, solution)
    if solution.config is None:
        return add_large_requests(build_no_engine_report(problem, solution, alternatives), problem, large)
    config = solution.config
    outcome = evaluate(problem, config, complete=True)
    analysis = analyze_plan(problem, outcome, (low, high), run.progress)
    report = build_engine_report(problem, solution, outcome, analysis, alternatives=alternatives)
    report = add_large_requests(report, problem, large)
    share = measure_fresh_request_share(planned, lambda sample: evaluate(sample, config).meets(sample), run.seed)
    report = add_fresh_share(report, share)
    return replace(report, metrics={**report.metrics, "planning_seconds": planning_seconds})


def _plan_with_stages(problem: EngineProblem, stages: EngineStages, run: Run) -> Report:
    """Find the cheapest engines and stages around them that meet the targets of the pipeline."""
    start_s = run.clock()
    predicted = find_cheapest_pipeline(problem, stages, run.progress)
    planning_seconds = Metric(run.clock() - start_s, "s", timed=True)
    slow = scale_to_end(problem, high=True)
    low = find_cheapest_pipeline(scale_to_end(problem, high=False), stages, run.progress)
    high = find_cheapest_pipeline(slow, stages, run.progress)
    planned, joint = (problem, predicted) if problem.confidence is None else (slow, high)
    plans = joint.plans

    def find_price(rest: EngineProblem, _ceiling: float) -> float | None:
        return _price_pipeline(rest, stages, find_cheapest_pipeline(rest, stages, run.progress))

    large = measure_large_requests(planned, _price_pipeline(planned, stages, joint), find_price)
    if plans is None:
        return add_large_requests(build_no_engine_report(problem, joint.solution), problem, large)
    solution = explain_refusals(attach_stages(planned, stages, plans), joint.solution)
    case = attach_stages(problem, stages, plans)
    config = solution.config
    assert config is not None  # noqa: S101 - there are plans
    outcome = evaluate(case, config, complete=True)
    analysis = analyze_plan(case, outcome, (low.solution, high.solution), run.progress)
    is_complete = predicted.is_complete and low.is_complete and high.is_complete
    arrival_s = problem.requests.arrival_s
    around = describe_stages(case, stages, plans, arrival_s, outcome, is_complete=is_complete)
    report = build_engine_report(case, solution, outcome, analysis, around)
    report = add_large_requests(report, problem, large)

    def meets_targets(sample: EngineProblem) -> bool:
        attached = attach_stages(sample, stages, plans)
        return evaluate(attached, config).meets(attached)

    report = add_fresh_share(report, measure_fresh_request_share(planned, meets_targets, run.seed))
    return replace(report, metrics={**report.metrics, "planning_seconds": planning_seconds})


def _price_pipeline(problem: EngineProblem, stages: EngineStages, joint: JointSolution) -> float | None:
    """Return the $/h of engines and the stages around them; ``None`` if there is no plan."""
    price, plans = price_engines(problem, joint.solution), joint.plans
    if price is None or plans is None:
        return None
    return price + stages.upstream.cost(plans.upstream) + stages.downstream.cost(plans.downstream)


def _replay_trace(
    spec: PipelineSpec, problem: EngineProblem, stages: EngineStages | None, trace: Path, run: Run
) -> Report:
    """Replay a trace under the saved plan, or under a new one, with engines that follow the traffic.

    The stages around the engines keep their replicas.
    """
    if stages is not None:
        return _replay_with_stages(spec, problem, stages, trace, run)
    saved = run.saved_decision
    if saved and is_pool_decision(saved):
        pool_config = parse_pool_decision(saved, problem)
        requests = build_replay_requests(spec, problem, pool_config.decode, trace, run)
        return replay_pools(replace(problem, requests=requests), pool_config, None)
    if saved:
        config = parse_engine_decision(saved, problem)
    else:
        planned = problem if problem.confidence is None else scale_to_end(problem, high=True)
        solution = find_cheapest_engines(planned, run.progress)
        pools = find_pools(problem, run.progress)
        if pools is not None and is_cheaper(problem, pools, solution):
            chosen = pools.choose(problem).outcome
            assert chosen is not None  # noqa: S101 - the pools are cheaper than another plan
            requests = build_replay_requests(spec, problem, chosen.config.decode, trace, run)
            return replay_pools(replace(problem, requests=requests), chosen.config, solution)
        if solution.config is None:
            return build_no_engine_report(problem, explain_refusals(planned, solution))
        config = solution.config
    live = replace(problem, requests=build_replay_requests(spec, problem, config, trace, run))
    return _replay_rules(spec, problem, live, config, run)


def _replay_with_stages(
    spec: PipelineSpec, problem: EngineProblem, stages: EngineStages, trace: Path, run: Run
) -> Report:
    """Replay a trace on engines that follow the traffic, behind and before stages of the saved plan or of a new one."""
    saved = run.saved_decision
    planned = choose_pipeline(problem, stages, saved, run)
    if planned is None:
        slow = problem if problem.confidence is None else scale_to_end(problem, high=True)
        return build_no_engine_report(problem, find_cheapest_pipeline(slow, stages, run.progress).solution)
    config, plans = planned.config, planned.plans
    live = replace(problem, requests=build_replay_requests(spec, problem, config, trace, run))
    case, live_case = (attach_stages(item, stages, plans) for item in (problem, live))
    report = _replay_rules(spec, case, live_case, config, run)
    arrival_s, outcome = live.requests.arrival_s, evaluate(live_case, config, complete=True)
    around = describe_stages(live_case, stages, plans, arrival_s, outcome, is_complete=True)
    return add_stages(report, around)


def _replay_rules(
    spec: PipelineSpec, problem: EngineProblem, live: EngineProblem, config: EngineConfig, run: Run
) -> Report:
    """Replay requests under each scaling rule.

    Args:
        spec: How engines are scaled.
        problem: With the traffic of the plan.
        live: With the requests to replay.
        config: The engines of the plan.
        run: Receives progress.
    """
    envelope = build_token_envelope(problem.requests, config.replicas, problem.settings.start_s)
    calibrated = None
    if spec.tuner.policy != "fixed":
        max_replicas = limit_replicas(problem, config)
        calibrated = calibrate_envelope_rule(problem, config, envelope, max_replicas=max_replicas)
    runs: list[AutoscaledRun] = []
    peak = find_fixed_peak(live, config)
    for autoscaled in _simulate_rules(problem, live, config, envelope, calibrated, peak.replicas):
        runs.append(autoscaled)
        run.progress("replay", len(runs), RULES)
    if calibrated is None:
        runs[:2] = runs[1::-1]
    slot_s = max(problem.settings.start_s, SHORTEST_SLOT_S)
    slots = simulate_slots(live, config, slot_s, limit_replicas(problem, config))
    bounds = [find_cheapest_schedule(slots, item.misses) for item in runs]
    report = build_engine_replay_report(live, config, runs, calibrated, bounds, float(slots.seconds[0]), peak)
    return add_left_out(report, live)


def _simulate_rules(
    problem: EngineProblem,
    live: EngineProblem,
    config: EngineConfig,
    envelope: TokenEnvelope,
    calibrated: tuple[float, float] | None,
    peak: int | None,
) -> Iterator[AutoscaledRun]:
    settings, max_replicas = problem.settings, limit_replicas(problem, config)
    peak_running = evaluate(problem, config, complete=True).run.peak_running
    margin, hold_s = calibrated or (ENVELOPE_MARGIN, settings.start_s)
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
