"""The report of a replay: a fixed plan and scaling rules on a trace, next to perfect knowledge."""

from __future__ import annotations

import math
from collections.abc import Sequence

from unfold_pipeline.engine.autoscaling.hindsight import FixedPeak, Hindsight
from unfold_pipeline.engine.autoscaling.replay import AutoscaledRun, meets_targets
from unfold_pipeline.engine.planner.problem import EngineProblem, percentile
from unfold_pipeline.engine.planner.search import EngineConfig
from unfold_pipeline.report.engines import sentences
from unfold_pipeline.report.engines.plan import build_subtitle
from unfold_pipeline.report.sentences import ask_for_replay
from unfoldkit.api import Column, Figure, Metric, Report, Series, Table, Verdict, time_axis

REQUIRED_ATTAINMENT = 0.99


def build_engine_replay_report(
    problem: EngineProblem,
    config: EngineConfig,
    runs: Sequence[AutoscaledRun],
    calibrated: tuple[float, float] | None,
    bounds: Sequence[Hindsight | None],
    slot_s: float,
    peak: FixedPeak,
) -> Report:
    """Return the report of a replay; the first run is the rule in charge.

    Args:
        problem: With the requests of the replay.
        config: The engines of the plan.
        runs: The trace under each rule.
        calibrated: Margin and hold of the token envelope; ``None`` if the plan's engines are kept.
        bounds: Perfect knowledge with no more misses than each rule; ``None`` if its engines are not enough.
        slot_s: Length of the slots of perfect knowledge.
        peak: The fewest constant engines for the trace, or why there are none.
    """
    margin, hold_s = calibrated or (None, None)
    targets = sentences.describe_targets(problem.targets.ttft_s, problem.targets.tpot_s, problem.targets.latency_s)
    ruling = runs[0]
    unit, unit_s = time_axis(float(ruling.time_s[-1]))
    times = tuple(float(time) for time in ruling.time_s / unit_s)
    series = tuple(Series(run.name, times, tuple(float(count) for count in run.engines), "steps") for run in runs)
    bound = bounds[0]
    hindsight = (
        []
        if bound is None
        else [
            (
                "perfect knowledge",
                sentences.describe_hindsight(bound.usd_per_hour, ruling.usd_per_hour, bound.engine_hours, slot_s),
            )
        ]
    )
    return Report(
        kind="pipeline",
        verb="plan",
        name=problem.name,
        verdict=Verdict.YES if meets_targets(problem, ruling.latencies) else Verdict.NO,
        question=ask_for_replay(targets),
        headline=sentences.describe_replay(ruling.attainment, targets, ruling.usd_per_hour, ruling.name),
        subtitle=build_subtitle(problem),
        metrics={
            "attainment": Metric(
                ruling.attainment * 100,
                "%",
                target=f"≥ {REQUIRED_ATTAINMENT * 100:.0f} %",
                ok=ruling.attainment >= REQUIRED_ATTAINMENT,
            ),
            "cost_per_hour": Metric(ruling.usd_per_hour, "$/h"),
            "engine_hours": Metric(ruling.engine_hours, "h"),
            "hindsight_cost_per_hour": Metric(None if bound is None else bound.usd_per_hour, "$/h"),
            "hindsight_engine_hours": Metric(None if bound is None else bound.engine_hours, "h"),
        },
        tables=(_build_rule_table(runs, bounds, problem.settings.tail),),
        figures=(Figure("engines", "Engines over time", f"time {unit}", "engines", series),),
        lines=(
            ("engines", _describe_config(problem, config)),
            ("rule", sentences.describe_calibration(margin, hold_s)),
            ("simulated", sentences.describe_autoscaling(problem.settings.start_s)),
            *hindsight,
            *_list_peak_lines(peak),
            ("prefix hits", _describe_hits(problem, ruling)),
        ),
        next="unfold plan SPEC",
    )


def _describe_config(problem: EngineProblem, config: EngineConfig) -> str:
    option = problem.options[config.option]
    return sentences.describe_replayed_engines(
        config.replicas, option.hardware, option.tensor_parallel, config.budget, config.max_seqs
    )


def _list_peak_lines(peak: FixedPeak) -> list[tuple[str, str]]:
    if peak.replicas is not None:
        return []
    return [("fixed peak", sentences.describe_no_fixed_peak(peak.most, peak.obstacle, peak.value_s))]


def _describe_hits(problem: EngineProblem, run: AutoscaledRun) -> str:
    return sentences.describe_prefix(run.hit_share) if problem.requests.is_shared else sentences.NO_PREFIX


def _build_rule_table(runs: Sequence[AutoscaledRun], bounds: Sequence[Hindsight | None], tail: float) -> Table:
    columns = (
        Column("rule"),
        Column("attained", "%", 2),
        Column("p99 TTFT", "ms", 0),
        Column("p99 TPOT", "ms", 1),
        Column("mean price", "$/h", 2),
        Column("engine-hours", "h", 2),
        Column("perfect knowledge", "$/h", 2),
        Column("most engines"),
    )
    rows = []
    for run, bound in zip(runs, bounds, strict=True):
        ttft_s, tpot_s = (percentile(item, 0.99, tail) for item in (run.latencies.ttft_s, run.latencies.tpot_s))
        cells = [value * 1e3 if math.isfinite(value) else None for value in (ttft_s, tpot_s)]
        bound_usd = None if bound is None else bound.usd_per_hour
        max_engines = int(run.paid.max())
        rows.append(
            (run.name, run.attainment * 100, *cells, run.usd_per_hour, run.engine_hours, bound_usd, max_engines)
        )
    return Table("rules", columns, tuple(rows), accent=0)
