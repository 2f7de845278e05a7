"""The report of ``unfold profile``: measured latencies by stage and batch size."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from unfold_pipeline.problem.latency_profile import BatchTiming
from unfold_pipeline.report import sentences
from unfoldkit.api import Cell, Column, Figure, Metric, Report, Series, Table, Verdict, format_count

Profiles = Mapping[str, Sequence[BatchTiming]]
PERCENTILES = ("mean", "p50", "p90", "p99")


def build_profile_report(
    name: str, profiles: Profiles, fresh: int, hardware: str, folder: str, overridden: Sequence[str]
) -> Report:
    """Report the batch times of each stage, and whether plans use them.

    Args:
        name: Name of the spec.
        profiles: Timings by stage.
        fresh: Number of stages that were measured now.
        hardware: The hardware that this machine is in the spec.
        folder: Where the profiles are stored.
        overridden: Stages that plan with a latency of the spec instead.
    """
    batches = sum(len(timings) for timings in profiles.values())
    lines = [
        ("note", sentences.describe_faster_batch(stage, larger.batch))
        for stage, timings in profiles.items()
        if (larger := _find_faster_batch(timings)) is not None
    ]
    if overridden:
        lines.append(("overridden", sentences.describe_spec_latency(overridden, hardware)))
    return Report(
        kind="pipeline",
        verb="profile",
        name=name,
        verdict=Verdict.YES,
        headline=sentences.describe_profile(fresh, len(profiles), hardware, folder),
        subtitle=(format_count(len(profiles), "stage"), format_count(batches, "batch size")),
        metrics={f"{stage}_ms": Metric(timings[0].mean * 1e3, "ms", timed=True) for stage, timings in profiles.items()},
        tables=(_build_table(profiles),),
        figures=(_build_figure(profiles),),
        lines=tuple(lines),
        next="unfold plan SPEC",
    )


def _build_table(profiles: Profiles) -> Table:
    columns = (
        Column("stage"),
        Column("batch"),
        *(Column(name, "ms", 2, timed=True) for name in PERCENTILES),
        Column("throughput", "/s", 0, timed=True),
        Column("after idling", "ms", 2, timed=True),
    )
    rows: list[tuple[Cell, ...]] = [
        (
            stage,
            timing.batch,
            *(getattr(timing, name) * 1e3 for name in PERCENTILES),
            timing.batch / timing.mean,
            (timing.p50 + timing.wake) * 1e3 if timing.wake else None,
        )
        for stage, timings in profiles.items()
        for timing in timings
    ]
    return Table("latency", columns, tuple(rows))


def _find_faster_batch(timings: Sequence[BatchTiming]) -> BatchTiming | None:
    return next((larger for smaller, larger in itertools.pairwise(timings) if larger.p50 < smaller.p50), None)


def _build_figure(profiles: Profiles) -> Figure:
    series = tuple(
        Series(
            stage,
            tuple(float(timing.batch) for timing in timings),
            tuple(timing.mean * 1e3 for timing in timings),
        )
        for stage, timings in profiles.items()
    )
    return Figure("latency", "Latency by batch size", "batch", "mean ms", series, log_x=True, log_y=True, timed=True)
