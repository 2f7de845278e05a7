"""``plan --replay``: a trace through the plan and its tuner, simulated, beside what the usual autoscalers do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unfold_pipeline.estimator.admission import worth
from unfold_pipeline.estimator.replica_schedule import Targets, timeline
from unfold_pipeline.estimator.simulator import Look, Played, carried, follow, length, patience_of, play, refusals_of
from unfold_pipeline.estimator.slo import Judge
from unfold_pipeline.planner import coarse_grained
from unfold_pipeline.problem import build, quotas
from unfold_pipeline.problem.pipeline import Pipeline, Plan
from unfold_pipeline.problem.sample import Sample, draw
from unfold_pipeline.report import plan as tables
from unfold_pipeline.report.plan_file import plan_of
from unfold_pipeline.schema.models import Arrivals, PipelineSpec, traffic
from unfold_pipeline.tuner import autoscalers
from unfold_pipeline.tuner import rules as policies
from unfold_pipeline.tuner.rules import Brief, Setting
from unfoldkit.api import Cell, Column, Figure, Metric, Report, Run, Series, Table, Verdict

CG_WINDOW_S = 5.0
CG_HOLD_S = 120.0
POINTS = 400
WANTED = 0.99


@dataclass(frozen=True, slots=True)
class Entry:
    """A rule and how the trace went under it; ``told`` is how it was set."""

    name: str
    plan: Plan
    played: Played
    told: str = ""


def replay(spec: PipelineSpec, judge: Judge, plan: Plan, run: Run) -> Report:
    """Return the report of a trace under the rule of the spec, with every other rule beside it."""
    live = live_sample(spec, judge.pipeline, Path(run.options["replay"]), run)
    setting = setting_of(spec)
    entries = []
    for entry in all_rules(judge, plan, live, setting):
        entries.append(entry)
        run.progress("replay", len(entries), 9)
    return _report(spec, judge, live, entries)


def live_sample(spec: PipelineSpec, pipeline: Pipeline, trace: Path, run: Run) -> Sample:
    """Return a trace as live traffic, read as the spec reads its own (columns, match), its routes drawn anew."""
    match = next((item.match for item in traffic(spec) if item.match and _csv(str(item.trace)) == _csv(trace)), None)
    given, rng = Arrivals(trace=str(trace.absolute()), match=match), np.random.default_rng([run.seed, 4])
    column = next((item.column for item in traffic(spec) if item.column), None)
    counts = next((item.counts for item in traffic(spec) if item.counts is not None), None)
    rates = next((item.rates for item in traffic(spec) if item.rates), None)
    likely = Arrivals(column=column, counts=counts, rates=rates)
    times = build.arrivals(given, run, rng, key="--replay", likely=likely)
    table = build.recorded(run.path(spec.visits, key="visits"), pipeline.stages) if spec.visits else None
    return draw(pipeline, times, np.random.default_rng([run.seed, 5]), table)


def _csv(trace: str | Path) -> bool:
    """Say whether a trace is a table by its name: what the lines of a log hold, no row of a table does."""
    return ".csv" in Path(trace).suffixes


def setting_of(spec: PipelineSpec) -> Setting:
    """Return the setting of the rules that a spec asks for."""
    tuner = spec.tuner
    return Setting(tuner.activation, tuner.floor, tuner.margin, tuner.hold, tuner.most, spec.slo.shed)


def saved_plan(judge: Judge, run: Run) -> Plan | None:
    """Return the plan of the file that the command named, or ``None`` if it named a spec."""
    saved: Mapping[str, Any] = run.options.get("plan") or {}
    return plan_of(saved["decision"], judge.pipeline) if saved.get("decision") else None


def all_rules(judge: Judge, plan: Plan, live: Sample, setting: Setting) -> Iterator[Entry]:
    """Yield each rule with how the trace went under it."""
    own = policies.brief(judge.pipeline, plan, [item.sample for item in judge.estimators], judge.limit)
    steps = policies.climbed(own, setting)
    yield _own("fixed", own, live, policies.fixed(own, live, setting), setting)
    for name, rule in (("paper", policies.paper), ("ratio", policies.ratio)):
        yield _own(name, own, live, rule(own, live, setting), setting, "floor" if setting.floor else "no floor")
    yield _own("table", own, live, policies.table(own, live, setting, steps), setting, _told(setting))
    best = policies.calibrate(own, setting, steps)
    yield _own("calibrated", own, live, policies.table(own, live, best, steps), setting, _told(best))
    yield from _coarse(judge, live, setting)
    yield from _looking(judge, plan, live, setting)


def _told(setting: Setting) -> str:
    floor = "floor" if setting.floor else "no floor"
    return f"margin {setting.margin:g}, hold {setting.hold:g} s, {floor}"


def _own(name: str, own: Brief, live: Sample, targets: Targets, setting: Setting, told: str = "") -> Entry:
    patience = patience_of(own.pipeline, own.plan, own.limit) if setting.shed else None
    return Entry(name, own.plan, play(own.pipeline, live, own.plan, targets, setting.delay, patience=patience), told)


def _coarse(judge: Judge, live: Sample, setting: Setting) -> Iterator[Entry]:
    """CG-Mean and CG-Peak with AutoScale's rule; CG-Peak keeps the head-room of its plan."""
    unit = coarse_grained.unit(judge)
    if unit is None:
        return
    most = int(min(setting.most, coarse_grained.most(judge, unit)))
    mean = max(estimator.sample.rate for estimator in judge.estimators)
    for name, headroom, count in (
        ("CG-Mean", 1.0, coarse_grained.mean_count(judge, unit)),
        ("CG-Peak", coarse_grained.peak_rate(judge) / mean, coarse_grained.peak_count(judge, unit)),
    ):
        plan = unit.times(min(count, most))
        targets = policies.units(
            unit.throughput, live, plan[0].replicas, window=CG_WINDOW_S, headroom=headroom, hold=CG_HOLD_S, most=most
        )
        patience = patience_of(judge.pipeline, plan, judge.limit) if setting.shed else None
        played = play(judge.pipeline, live, plan, policies.same(targets, plan), setting.delay, patience=patience)
        told = f"batch {plan[0].batch}, head-room {headroom:.2f}, window {CG_WINDOW_S:g} s, hold {CG_HOLD_S:g} s"
        yield Entry(name, plan, played, told)


def _looking(judge: Judge, plan: Plan, live: Sample, setting: Setting) -> Iterator[Entry]:
    pipeline = judge.pipeline
    patience = patience_of(pipeline, plan, judge.limit) if setting.shed else None
    told = f"defaults, at most {setting.most} a stage"
    rules: tuple[tuple[str, Look], ...] = (
        ("Ray Serve", autoscalers.ray(plan, setting.most)),
        ("Knative", autoscalers.knative(plan, setting.most)),
    )
    for name, rule in rules:
        yield Entry(
            name, plan, follow(pipeline, live, plan, _held(rule, pipeline, plan), setting.delay, patience), told
        )


def _held(rule: Look, pipeline: Pipeline, plan: Plan) -> Look:
    """Return a rule whose stages share what the quotas allow."""
    most = quotas.limits(pipeline, plan)
    return lambda now, inside, ordered: most.shared(rule(now, inside, ordered))


def _report(spec: PipelineSpec, judge: Judge, live: Sample, entries: list[Entry]) -> Report:
    mine = next(entry for entry in entries if entry.name == spec.tuner.policy)
    attainment = 1 - mine.played.missed(judge.limit)
    ok = mine.played.tail() <= judge.limit and (not spec.slo.shed or attainment >= WANTED)
    cost = mine.played.cost
    target = f"≤ {tables.milliseconds(judge.limit)}"
    return Report(
        "pipeline",
        "plan",
        spec.name,
        Verdict.YES if ok else Verdict.NO,
        f"{attainment * 100:.2f} % within {tables.milliseconds(judge.limit)} at ${cost:,.2f}/h under {mine.name}",
        _subtitle(live, spec),
        {
            "attainment": Metric(attainment, "", target="≥ 0.99", ok=ok),
            "cost_per_hour": Metric(cost, "$/h"),
            "p99_ms": Metric(mine.played.tail() * 1e3, "ms", target=target, ok=mine.played.tail() <= judge.limit),
            **({"shed": Metric(mine.played.shed)} if spec.slo.shed else {}),
        },
        (_table(entries, judge.limit, mine.name),),
        (_timeline(judge.pipeline, mine, live), _traffic(live)),
        (
            *_overload(judge, live, mine),
            *_quota_lines(judge.pipeline, mine.plan),
            *_lines(entries, mine, judge.limit),
        ),
    )


def _subtitle(live: Sample, spec: PipelineSpec) -> tuple[str, ...]:
    sheds = ("queries that cannot be in time are shed",) if spec.slo.shed else ()
    return (
        f"{live.size:,} queries",
        f"{length(live):,.0f} s",
        f"{live.rate:.3g}/s",
        f"replicas serve {spec.tuner.activation:g} s after the order",
        *sheds,
    )


def _table(entries: list[Entry], limit: float, mine: str) -> Table:
    columns = (
        Column("rule"),
        Column("misses", "%", 3),
        Column("price", "$/h", 2),
        Column("p99", "ms", 0),
        Column("changes"),
        Column("set to"),
    )
    rows: list[tuple[Cell, ...]] = [
        (e.name, e.played.missed(limit) * 100, e.played.cost, e.played.tail() * 1e3, e.played.orders, e.told)
        for e in entries
    ]
    return Table("rules", columns, tuple(rows), accent=next(i for i, e in enumerate(entries) if e.name == mine))


def _quota_lines(pipeline: Pipeline, plan: Plan) -> tuple[tuple[str, str], ...]:
    names = {stage.options[choice.option].hardware for stage, choice in zip(pipeline.stages, plan, strict=True)}
    told = " · ".join(f"{name} {most}" for name, most in pipeline.quotas if name in names)
    return (("quota", f"{told} over all stages, whatever a rule wants; they share by what they want"),) if told else ()


def _overload(judge: Judge, live: Sample, mine: Entry) -> tuple[tuple[str, str], ...]:
    """Return what a service would do where queues grow so long that it refuses queries; nothing where they do not."""
    limit = worth(judge.limit)
    waited = np.isfinite(mine.played.latencies) & (mine.played.latencies > limit)
    if not waited.any():
        return ()
    patience = refusals_of(judge.pipeline, mine.plan, limit)
    served = carried(judge.pipeline, live, mine.plan, mine.played.ledgers, None, patience)
    told = (
        f"{waited.mean() * 100:.3g} % take longer than {tables.milliseconds(limit)}; a service would refuse about "
        f"{served.shed * 100:.3g} % (429), and answer {(1 - served.missed(judge.limit)) * 100:.3g} % in time"
    )
    return (("overload", told),)


def _lines(entries: list[Entry], mine: Entry, limit: float) -> tuple[tuple[str, str], ...]:
    others = [e for e in entries if e.name in {"CG-Mean", "CG-Peak", "Ray Serve", "Knative"}]
    own = mine.played.missed(limit)
    return tuple((f"against {e.name}", _against(e, mine, own, e.played.missed(limit))) for e in others)


def _against(other: Entry, mine: Entry, own: float, theirs: float) -> str:
    """Both sides' misses and cost, as a ratio of misses alone says nothing."""
    cost = mine.played.cost / other.played.cost
    return f"misses {own * 100:.3f} % against {theirs * 100:.3f} %, at {cost:.2f} of its price"


def _timeline(pipeline: Pipeline, mine: Entry, live: Sample) -> Figure:
    series = []
    for stage, choice, ledger in zip(pipeline.stages, mine.plan, mine.played.ledgers, strict=True):
        times, counts = timeline(choice.replicas, ledger, length(live))
        series.append(Series(stage.name, tuple(times), tuple(counts), "steps"))
    return Figure("replicas", f"Replicas that serve, under {mine.name}", "s", "replicas", tuple(series))


def _traffic(live: Sample) -> Figure:
    width = max(1.0, length(live) / POINTS)
    edges = np.arange(0.0, length(live) + width, width)
    counts = np.histogram(live.arrivals, edges)[0] / width
    series = Series("queries a second", tuple(edges[:-1].tolist()), tuple(counts.tolist()), "steps")
    return Figure("traffic", "Traffic", "s", "queries a second", (series,))
