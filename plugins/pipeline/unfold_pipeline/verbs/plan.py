"""The verb ``plan``: the cheapest plan, what it gives up and how sure it is; or why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from unfold_pipeline.estimator import batch_jitter
from unfold_pipeline.estimator.slo import Judge
from unfold_pipeline.planner import diagnostics, infeasibility
from unfold_pipeline.planner.frontier import frontier, improved
from unfold_pipeline.planner.planner import Baseline, Outcome, Unmet, baselines, judge_of, seek
from unfold_pipeline.problem import build
from unfold_pipeline.problem.from_cascade import inputs, resolved, told
from unfold_pipeline.problem.pipeline import Plan
from unfold_pipeline.problem.pricing import line, prices
from unfold_pipeline.replay.simulated import replay, saved_plan
from unfold_pipeline.report import plan as tables
from unfold_pipeline.report.plan_file import decision_of, recheck, sample_hash
from unfold_pipeline.schema.models import FromRun, PipelineSpec, traffic
from unfoldkit.api import Metric, Report, Run, Verdict


def plan(spec: PipelineSpec, run: Run) -> Report:
    """Return the report of the cheapest plan; with a replay, of a trace under the plan and its tuner."""
    began = run.clock()
    given, spec = spec, resolved(spec, run)
    judge = judge_for(spec, run)
    if run.options.get("replay"):
        return _replayed(given, spec, judge, run)
    kept = recheck(spec, judge, run.options.get("baseline_plan"))
    if kept is not None:
        return kept
    found = seek(judge, build.effort(spec), run.progress)
    seconds = run.clock() - began
    report = _no(spec, judge, found) if isinstance(found, Unmet) else _yes(spec, run, found)
    timed = Metric(seconds, "s", timed=True)
    report = replace(report, metrics={**report.metrics, "planning_seconds": timed})
    return report if given is spec else _with_source(report, given, spec, run)


def _with_source(report: Report, given: PipelineSpec, spec: PipelineSpec, run: Run) -> Report:
    """Return a report that says from which run its stages are."""
    known = {**report.provenance.get("inputs", {}), **inputs(given, run)}
    lines = (*report.lines, *told(given, spec, run))
    return replace(report, lines=lines, provenance={**report.provenance, "inputs": known})


def judge_for(spec: PipelineSpec, run: Run) -> Judge:
    """Return the judge of plans for a spec: its pipeline, samples and limit."""
    built = build.pipeline(spec, run)
    return judge_of(built, build.samples(spec, built, run), spec.slo.p99)


def _replayed(given: PipelineSpec, spec: PipelineSpec, judge: Judge, run: Run) -> Report:
    chosen = saved_plan(judge, run)
    if chosen is None:
        found = seek(judge, build.effort(spec), run.progress)
        if isinstance(found, Unmet):
            return _no(spec, judge, found)
        chosen = found.plan
    return replace(replay(spec, judge, chosen, run), next=_served(given))


def _served(given: PipelineSpec) -> str:
    """Return the command that runs the plan, if its stages can be run: a cascade's models under a trace only."""
    if isinstance(given.stages, FromRun):
        return "unfold serve SPEC --replay TRACE"
    return "unfold serve SPEC" if all(stage.model for stage in given.named.values()) else ""


def subtitle(spec: PipelineSpec, judge: Judge) -> tuple[str, ...]:
    """Return the facts beside the title."""
    sample = judge.estimators[0].sample
    gaps = np.diff(sample.arrivals)
    burst = f"cv {gaps.std() / gaps.mean():.2g}" if gaps.size > 1 else "one query"
    count = sum(estimator.sample.size for estimator in judge.estimators)
    many = f"{len(traffic(spec))} samples" if len(traffic(spec)) > 1 else f"{sample.rate:.3g}/s"
    stages = f"{len(spec.named)} stage{'s' if len(spec.named) > 1 else ''}"
    return stages, f"{count:,} queries", many, burst, f"p99 ≤ {tables.milliseconds(spec.slo.p99)}"


def _yes(spec: PipelineSpec, run: Run, outcome: Outcome) -> Report:
    points = frontier(outcome, spec.search.frontier, build.effort(spec), run.progress)
    outcome = improved(outcome, points)
    judge, chosen = outcome.judge, outcome.plan
    paid = prices(spec, run)
    tail = judge.tail(chosen)
    coarse = baselines(judge)
    times = diagnostics.stage_times(judge, chosen)
    lines = (
        *([("overload", told)] if (told := tables.overload_line(judge, chosen)) else []),
        ("slack", tables.slack_line(judge, tail, times)),
        ("cheaper", tables.refused_line(judge, chosen, diagnostics.refusals(judge, chosen))),
        ("one lost", tables.loss_line(judge, chosen, diagnostics.losses(judge, chosen))),
        ("p99", _confidence(judge, chosen, np.random.default_rng([run.seed, 3]))),
        *batch_jitter.line(judge, chosen, spec, run),
        ("certainty", tables.certainty(outcome)),
        ("cost–SLO", f"{tables.frontier_line(points)}   plot: --out plan.html"),
        *_greedy_lines(outcome),
        *build.sources(spec, run),
        ("prices", line(paid)),
        *([("instances", rented)] if (rented := tables.instances_line(judge, chosen)) else []),
    )
    return Report(
        "pipeline",
        "plan",
        spec.name,
        Verdict.YES,
        f"${outcome.cost:,.2f}/h meets p99 ≤ {tables.milliseconds(judge.limit)}",
        subtitle(spec, judge),
        metrics(outcome, tail, coarse),
        (tables.stage_table(judge, chosen, times), tables.plan_table(outcome, tail, coarse)),
        (
            tables.frontier_figure(points, outcome),
            *tables.stage_figures(judge, times, chosen),
        ),
        lines,
        next="unfold plan SPEC --replay TRACE",
        decision=decision_of(judge, chosen, outcome.cost, tail),
        provenance={"inputs": {"sample_sha256": sample_hash(judge), "prices": {n: p.source for n, p in paid.items()}}},
    )


def _confidence(judge: Judge, chosen: Plan, rng: np.random.Generator) -> str:
    """Return the interval of the percentile; of several samples, that of the worst, which the target is kept on."""
    worst = judge.worst(chosen)
    low, high = diagnostics.interval(judge.estimators[worst], chosen, rng)
    count = len(judge.estimators)
    which = f", on sample {worst + 1} of {count}, the worst, as in the table" if count > 1 else ""
    found = f"between {tables.milliseconds(low)} and {tables.milliseconds(high)}"
    return f"{found}, 95 % sure if other samples vary as the parts of this one{which}"


def _greedy_lines(outcome: Outcome) -> tuple[tuple[str, str], ...]:
    steps = outcome.greedy.steps
    if not steps:
        return ()
    shown = " · ".join(f"{step.stage}: {step.move} → ${step.cost:,.2f}" for step in steps[-3:])
    return (("greedy", f"{len(steps)} steps, the last: {shown}"),)


def metrics(outcome: Outcome, tail: float, coarse: tuple[Baseline, Baseline] | None) -> Mapping[str, Metric]:
    """Return the figures of a plan."""
    cost = outcome.cost
    target = f"≤ {tables.milliseconds(outcome.judge.limit)}"
    greedy = outcome.judge.pipeline.cost(outcome.greedy.plan) if outcome.greedy.plan else None
    peak = coarse[0].cost / cost if coarse and cost else None
    return {
        "cost_per_hour": Metric(cost, "$/h"),
        "p99_ms": Metric(tail * 1e3, "ms", target=target, ok=tail <= outcome.judge.limit),
        "gap_percent": Metric(outcome.gap * 100, "%"),
        "greedy_excess_percent": Metric((greedy / cost - 1) * 100 if greedy and cost else None, "%"),
        "coarse_peak_ratio": Metric(peak, "x"),
    }


def _no(spec: PipelineSpec, judge: Judge, unmet: Unmet) -> Report:
    found = infeasibility.explain(judge, spec.search.limit)
    told = "no plan meets" if unmet.searched else "no plan found within search.limit for"
    return Report(
        "pipeline",
        "plan",
        spec.name,
        Verdict.NO,
        f"{told} p99 ≤ {tables.milliseconds(judge.limit)}",
        subtitle(spec, judge),
        _no_metrics(found),
        lines=_obstacles(found, judge) if unmet.searched else _unsure(spec, found),
        next=_onwards(spec, found, unmet),
    )


def _obstacles(found: infeasibility.Obstacle, judge: Judge) -> tuple[tuple[str, str], ...]:
    name = judge.pipeline.stages[found.stage].name
    return ("binding", _binding(found, name)), ("smallest relaxation", _relaxation(found, judge, name))


def _binding(found: infeasibility.Obstacle, name: str) -> str:
    if found.quotas:
        many = "quotas" if len(found.quotas) > 1 else "quota"
        wanted = " and ".join(f"{count}" for _, count in found.quotas)
        return f"the {many} of {' and '.join(name for name, _ in found.quotas)}: {wanted} would be needed"
    rest, own = tables.milliseconds(found.total - found.own), tables.milliseconds(found.own)
    return f"{name}: {own} for one query on its fastest hardware ({found.hardware}); the other stages need {rest}"


def _unsure(spec: PipelineSpec, found: infeasibility.Obstacle) -> tuple[tuple[str, str], ...]:
    """Return what is said where the search was stopped: nothing stands in the way for sure."""
    told = f"stopped after {spec.search.limit:,.0f} simulated queries; a higher search.limit may find a plan"
    if found.relaxed is None or found.cost is None:
        return (("search", told),)
    known = f"for p99 ≤ {tables.milliseconds(found.relaxed)}: ${found.cost:,.2f}/h"
    return ("search", told), ("plan known", known)


def _onwards(spec: PipelineSpec, found: infeasibility.Obstacle, unmet: Unmet) -> str:
    """Return the command that would bring a plan, or nothing if none is known."""
    if not unmet.searched:
        return f"unfold plan SPEC --set search.limit={max(1.0, spec.search.limit) * 10:.0f}"
    if found.relaxed is not None:
        return f"unfold plan SPEC --set 'slo.p99={found.relaxed * 1e3:.0f} ms'"
    options = "".join(f" --set hardware.{name}.quota={count}" for name, count in found.quotas)
    return f"unfold plan SPEC{options}" if options else ""


def _no_metrics(found: infeasibility.Obstacle) -> dict[str, Metric]:
    relaxed = found.relaxed * 1e3 if found.relaxed is not None else None
    return {"relaxed_p99_ms": Metric(relaxed, "ms"), "relaxed_cost_per_hour": Metric(found.cost, "$/h")}


def _relaxation(found: infeasibility.Obstacle, judge: Judge, name: str) -> str:
    parts = []
    if found.relaxed is not None and found.cost is not None:
        parts.append(f"p99 ≤ {tables.milliseconds(found.relaxed)} for ${found.cost:,.2f}/h")
    if found.quotas:
        parts.append(" and ".join(f"a quota of {count} {name}" for name, count in found.quotas))
    else:
        room = judge.limit - (found.total - found.own)
        parts.append(f"{name} faster than {tables.milliseconds(room)}" if room > 0 else "faster stages all along")
    return ", or ".join(parts)
