"""The report of a replay on running replicas: measured latencies next to the predicted ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from unfold_pipeline._types import FloatArray
from unfold_pipeline.estimator.replica_schedule import ScalingState
from unfold_pipeline.replay.load_generator import MeasuredTrace
from unfold_pipeline.replay.prediction import (
    ReplaySetup,
    estimate_at_measured_speed,
    estimate_latencies,
    find_speed_deviations,
    measure_speeds,
)
from unfold_pipeline.report import sentences
from unfoldkit.api import Cell, Column, Figure, Metric, Report, Series, Table, Verdict

MIN_ATTAINMENT = 0.99
PERCENTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
FIGURE_POINTS = 200
ENGINE_NAMES = {True: "local processes", False: "Ray Serve"}


@dataclass(frozen=True, slots=True)
class LatencyComparison:
    """Seconds of each query: measured, estimated, and estimated at the measured speed of batches, if known."""

    measured: FloatArray
    estimated: FloatArray
    at_measured_speed: FloatArray | None
    slo_s: float

    @property
    def attainment(self) -> float:
        """Measured fraction of queries in time."""
        return float((self.measured <= self.slo_s).mean())

    @property
    def estimated_attainment(self) -> float:
        """Estimated fraction of queries in time."""
        return float((self.estimated <= self.slo_s).mean())


def build_measured_report(
    name: str, replay: ReplaySetup, trace: MeasuredTrace, slo_s: float, planned: ScalingState
) -> Report:
    """Return the report of a replay.

    Args:
        name: Name of the spec.
        replay: What was replayed.
        trace: What was measured.
        slo_s: The target in seconds.
        planned: Replicas and batch sizes of the plan.
    """
    speeds = measure_speeds(replay, trace.batches, is_contended=replay.is_contended)
    at_measured_speed = estimate_at_measured_speed(replay, speeds) if speeds else None
    comparison = LatencyComparison(trace.latencies, estimate_latencies(replay), at_measured_speed, slo_s)
    has_changed = any(state != planned for _, state in trace.timeline)
    # the estimate with pinned replicas ignores changes, so its error is not comparable
    is_fixed = replay.is_pinned and has_changed
    basis = sentences.PLANNED_REPLICAS if is_fixed else sentences.LIVE_REPLICAS
    deviations = find_speed_deviations(replay, speeds)
    busy, cores = replay.core_shortage
    conditional = [
        stage.name for stage in replay.pipeline.stages if any(edge.condition is not None for edge in stage.parents)
    ]
    size = replay.sample.size
    is_met = comparison.attainment >= MIN_ATTAINMENT and trace.lost == 0
    return Report(
        kind="pipeline",
        verb="serve",
        name=name,
        verdict=Verdict.YES if is_met else Verdict.NO,
        question=sentences.ASK_FOR_MEASUREMENT,
        headline=sentences.describe_measured_replay(
            size, ENGINE_NAMES[replay.is_local], comparison.attainment, slo_s, trace.lost
        ),
        subtitle=(f"{size:,} queries", f"{replay.sample.rate:.3g}/s", sentences.format_slo(slo_s)),
        metrics=_build_metrics(comparison, trace, sheds=replay.sheds),
        tables=(_build_table(comparison, is_fixed=is_fixed),),
        figures=(_build_latency_figure(comparison), _build_replica_figure(replay, trace)),
        lines=(
            ("replicas", _describe_replicas(replay, trace)),
            *((("estimate", basis),) if has_changed else ()),
            *((("cores", sentences.describe_core_shortage(busy, cores)),) if cores else ()),
            *((("routes", sentences.describe_drawn_routes(conditional)),) if conditional else ()),
            *((("speed", sentences.describe_speed(deviations)),) if deviations else ()),
        ),
        next="unfold plan SPEC --replay TRACE",
    )


def _build_metrics(comparison: LatencyComparison, trace: MeasuredTrace, *, sheds: bool) -> dict[str, Metric]:
    attainment = comparison.attainment
    p99_ms = _compute_quantile(comparison.measured, MIN_ATTAINMENT) * 1e3
    metrics = {
        "attainment": Metric(attainment, "", target="≥ 0.99", ok=attainment >= MIN_ATTAINMENT, timed=True),
        "estimated_attainment": Metric(comparison.estimated_attainment, "", timed=True),
        "p99_ms": Metric(p99_ms, "ms", timed=True),
        "estimated_p99_ms": Metric(_compute_quantile(comparison.estimated, MIN_ATTAINMENT) * 1e3, "ms", timed=True),
    }
    if comparison.at_measured_speed is not None:
        paced_ms = _compute_quantile(comparison.at_measured_speed, MIN_ATTAINMENT) * 1e3
        metrics["paced_p99_ms"] = Metric(paced_ms, "ms", timed=True)
    metrics["lost"] = Metric(trace.lost, "", target="0", ok=trace.lost == 0)
    name = "shed" if sheds else "refused"
    metrics[name] = Metric((trace.shed + trace.refused) / trace.latencies.size, timed=True)
    metrics[f"estimated_{name}"] = Metric(float(np.isinf(comparison.estimated).mean()), timed=True)
    metrics["replaced"] = Metric(trace.replaced, "replicas", timed=True)
    metrics["sender_lateness_ms"] = Metric(trace.sender_lateness_s * 1e3, "ms", timed=True)
    return metrics


def _build_table(comparison: LatencyComparison, *, is_fixed: bool) -> Table:
    columns = [
        Column("latency"),
        Column("measured", "ms", 1, timed=True),
        Column("estimated", "ms", 1, timed=True),
        Column("difference", timed=True),
    ]
    if comparison.at_measured_speed is not None:
        columns += [
            Column("at measured speed", "ms", 1, timed=True),
            Column("difference at that speed", timed=True),
        ]
    rows = tuple(_build_row(comparison, name, level, is_fixed=is_fixed) for name, level in PERCENTILES)
    return Table("fidelity", tuple(columns), rows)


def _build_row(comparison: LatencyComparison, name: str, level: float, *, is_fixed: bool) -> tuple[Cell, ...]:
    measured, estimated = _compute_quantile(comparison.measured, level), _compute_quantile(comparison.estimated, level)
    row: list[Cell] = [name, measured * 1e3, estimated * 1e3, _format_error(measured, estimated, is_fixed=is_fixed)]
    if comparison.at_measured_speed is not None:
        estimated = _compute_quantile(comparison.at_measured_speed, level)
        row += [estimated * 1e3, _format_error(measured, estimated, is_fixed=is_fixed)]
    return tuple(row)


def _format_error(measured: float, estimated: float, *, is_fixed: bool) -> str:
    is_comparable = estimated > 0 and math.isfinite(measured) and not is_fixed
    return f"{(measured / estimated - 1) * 100:+.0f} %" if is_comparable else "–"


def _describe_replicas(replay: ReplaySetup, trace: MeasuredTrace) -> str:
    stages = zip(replay.pipeline.stages, replay.plan, trace.final_replicas, strict=True)
    return sentences.describe_replicas([(stage.name, config.replicas, final) for stage, config, final in stages])


def _build_replica_figure(replay: ReplaySetup, trace: MeasuredTrace) -> Figure:
    times = tuple(time_s for time_s, _ in trace.timeline)
    series = tuple(
        Series(stage.name, times, tuple(float(state.replicas[index]) for _, state in trace.timeline), "steps")
        for index, stage in enumerate(replay.pipeline.stages)
    )
    return Figure("replicas", "Replicas that serve", "s", "replicas", series, timed=True)


def _build_latency_figure(comparison: LatencyComparison) -> Figure:
    levels = np.linspace(0.0, 1.0, FIGURE_POINTS)
    latencies = {"measured": comparison.measured, "estimated": comparison.estimated}
    if comparison.at_measured_speed is not None:
        latencies["at measured speed"] = comparison.at_measured_speed
    answered = {name: seconds[np.isfinite(seconds)] for name, seconds in latencies.items()}
    series = tuple(
        Series(name, tuple((np.quantile(seconds, levels) * 1e3).tolist()), tuple(levels.tolist()))
        for name, seconds in answered.items()
        if seconds.size
    )
    return Figure("latencies", "Fraction of queries answered within a time", "ms", "fraction", series, timed=True)


def _compute_quantile(seconds: FloatArray, level: float) -> float:
    answered = seconds[np.isfinite(seconds)]
    return float(np.quantile(answered, level)) if answered.size else math.inf
