"""The report of a replay against running processes: what was measured beside what was expected."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unfold_pipeline.estimator.replica_schedule import Step
from unfold_pipeline.replay import load_generator, prediction
from unfold_pipeline.replay.prediction import Replay
from unfold_pipeline.report import plan
from unfoldkit.api import Cell, Column, Figure, Metric, Report, Run, Series, Table, Verdict

Times = NDArray[np.float64]
ENOUGH = 0.99
SHARES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
PLACES = {"local": "local processes", "ray": "Ray Serve"}


@dataclass(frozen=True, slots=True)
class Beside:
    """The seconds of each query: as measured, as estimated, and by the simulator at the pace of the run, if known."""

    measured: Times
    estimated: Times
    paced: Times | None
    limit: float

    @property
    def attainment(self) -> tuple[float, float]:
        """The share of queries in time, as measured and as estimated."""
        return float((self.measured <= self.limit).mean()), float((self.estimated <= self.limit).mean())

    def quantiles(self, share: float) -> tuple[float, float, float | None]:
        """Return a percentile in s of what was answered: measured, estimated, at the pace of the run."""
        paced = None if self.paced is None else _quantile(self.paced, share)
        return _quantile(self.measured, share), _quantile(self.estimated, share), paced


def report(
    name: str, replay: Replay, measured: load_generator.Measured, limit: float, planned: Step, run: Run
) -> Report:
    """Return the report of a replay; ``planned`` are replicas and batches of the plan, ``limit`` its target in s."""
    speeds = prediction.speeds_of(replay, measured.batches, crowd=prediction.is_crowd(replay, run))
    paced = prediction.at_its_pace(replay, speeds, run) if speeds else None
    found = Beside(measured.latencies, prediction.estimate(replay, run), paced, limit)
    changed = any(step != planned for _, step in measured.timeline)
    fixed = replay.pinned and changed
    ok = found.attainment[0] >= ENOUGH and measured.lost == 0
    size = replay.sample.size
    return Report(
        "pipeline",
        "serve",
        name,
        Verdict.YES if ok else Verdict.NO,
        f"{size:,} queries replayed on {PLACES[run.engine.name]}, {found.attainment[0] * 100:.2f} % within "
        f"{plan.milliseconds(limit)}, {measured.lost} lost",
        (f"{size:,} queries", f"{replay.sample.rate:.3g}/s", f"p99 ≤ {plan.milliseconds(limit)}"),
        _metrics(found, measured, shed=replay.patience is not None),
        (_table(found, fixed=fixed),),
        (_figure(found), _timeline(replay, measured)),
        lines=(
            ("replicas", _replicas(replay, measured)),
            *((("estimate", _basis(fixed=fixed)),) if changed else ()),
            *((("pace", told),) if (told := prediction.slower(replay, speeds)) else ()),
        ),
        next="unfold plan SPEC --replay TRACE",
    )


def _metrics(found: Beside, measured: load_generator.Measured, *, shed: bool) -> dict[str, Metric]:
    (attained, thought), (p99, estimated, paced) = found.attainment, found.quantiles(ENOUGH)
    return {
        "attainment": Metric(attained, "", target="≥ 0.99", ok=attained >= ENOUGH, timed=True),
        "estimated_attainment": Metric(thought, "", timed=True),
        "p99_ms": Metric(p99 * 1e3, "ms", timed=True),
        "estimated_p99_ms": Metric(estimated * 1e3, "ms", timed=True),
        **({} if paced is None else {"paced_p99_ms": Metric(paced * 1e3, "ms", timed=True)}),
        "lost": Metric(measured.lost, "", target="0", ok=measured.lost == 0),
        **(_shed(found, measured) if shed else {}),
        "replaced": Metric(measured.replaced, "replicas", timed=True),
        "sender_lateness_ms": Metric(measured.lateness * 1e3, "ms", timed=True),
    }


def _shed(found: Beside, measured: load_generator.Measured) -> dict[str, Metric]:
    return {
        "shed": Metric(measured.shed / measured.latencies.size, timed=True),
        "estimated_shed": Metric(float(np.isinf(found.estimated).mean()), timed=True),
    }


def _basis(*, fixed: bool) -> str:
    """Say which replicas the estimate is of, where their number changed."""
    return "with the replicas of the plan" if fixed else "with the replicas and batches that served at each moment"


def _table(found: Beside, *, fixed: bool) -> Table:
    paced = (Column("at the run's pace", "ms", 1, timed=True), Column("measured is then", timed=True))
    columns = (
        Column("latency"),
        *(Column(name, "ms", 1, timed=True) for name in ("measured", "estimated")),
        Column("measured is", timed=True),
        *(() if found.paced is None else paced),
    )
    return Table("fidelity", columns, tuple(_row(found, name, share, fixed=fixed) for name, share in SHARES))


def _row(found: Beside, name: str, share: float, *, fixed: bool) -> tuple[Cell, ...]:
    seen, thought, paced = found.quantiles(share)
    rest: tuple[Cell, ...] = () if paced is None else (paced * 1e3, _off(seen, paced, fixed=fixed))
    return (name, seen * 1e3, thought * 1e3, _off(seen, thought, fixed=fixed), *rest)


def _off(seen: float, thought: float, *, fixed: bool) -> str:
    return f"{(seen / thought - 1) * 100:+.0f} % off" if thought and not fixed else "–"


def _replicas(replay: Replay, measured: load_generator.Measured) -> str:
    return " · ".join(
        f"{stage.name} {choice.replicas} planned, {count} at the end"
        for stage, choice, count in zip(replay.pipeline.stages, replay.plan, measured.last, strict=True)
    )


def _timeline(replay: Replay, measured: load_generator.Measured) -> Figure:
    times = tuple(time for time, _ in measured.timeline)
    series = tuple(
        Series(stage.name, times, tuple(float(step.counts[index]) for _, step in measured.timeline), "steps")
        for index, stage in enumerate(replay.pipeline.stages)
    )
    return Figure("replicas", "Replicas that serve", "s", "replicas", series, timed=True)


def _figure(found: Beside) -> Figure:
    shares = np.linspace(0.0, 1.0, 200)
    known = {"measured": found.measured, "estimated": found.estimated}
    if found.paced is not None:
        known["at the run's pace"] = found.paced
    series = tuple(
        Series(name, tuple((np.quantile(values[np.isfinite(values)], shares) * 1e3).tolist()), tuple(shares.tolist()))
        for name, values in known.items()
    )
    return Figure("latencies", "Share of queries answered within a time", "ms", "share", series, timed=True)


def _quantile(values: Times, share: float) -> float:
    known = values[np.isfinite(values)]
    return float(np.quantile(known, share)) if known.size else math.inf
