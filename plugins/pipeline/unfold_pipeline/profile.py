"""The verb ``profile``: the latency of each stage's model on this machine, by batch size, through a serving process."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from unfold_pipeline import models, profiles
from unfold_pipeline.replica import Replica, launch
from unfold_pipeline.spec import PipelineSpec, StageSpec, machine, order
from unfoldkit.api import Cell, Column, Figure, Metric, Report, Run, Series, Table, Verdict, fail

LARGEST = 32
WARM_UP = 5
LEAST_CALLS = 20
MOST_CALLS = 400
SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Job:
    """A stage to profile: its model, rows to send, batch sizes."""

    stage: str
    source: models.Source
    rows: models.Rows
    batches: tuple[int, ...]
    made_from: str


def profile(spec: PipelineSpec, run: Run) -> Report:
    """Measure every stage that has a model and is not in the run yet, and store what was measured.

    Raises:
        UnfoldError: no stage has a model, or one cannot be loaded.
    """
    jobs = [_job(name, spec.stages[name], run) for name in order(spec.stages) if spec.stages[name].model]
    if not jobs:
        raise fail("no stage has a model to measure", key="stages", hint="model: {file: model.onnx}")
    fresh = 0
    for index, job in enumerate(jobs):
        if profiles.stored(job.stage, run, made_from=job.made_from) is None:
            profiles.store(job.stage, measure(job, run), job.made_from, run)
            fresh += 1
        run.progress("profile", index + 1, len(jobs))
    found = {job.stage: profiles.stored(job.stage, run) or [] for job in jobs}
    return _report(spec, found, fresh, run)


def measure(job: Job, run: Run) -> list[profiles.Point]:
    """Return a point for each batch size, each after a warm-up, in a process as ``serve`` starts it."""
    replica = launch(job.source)
    replica.ready()
    try:
        return [profiles.point(batch, _calls(replica, job.rows, batch, run)) for batch in job.batches]
    finally:
        replica.stop()


def batches_up_to(most: int) -> tuple[int, ...]:
    """Return the powers of two up to ``most``, and ``most``."""
    return tuple(sorted({*(1 << power for power in range(most.bit_length()) if 1 << power <= most), most}))


def _calls(replica: Replica, rows: models.Rows, batch: int, run: Run) -> list[float]:
    pick = np.random.default_rng([run.seed, batch])
    for _ in range(WARM_UP):
        replica.call(rows[pick.integers(0, len(rows), batch)])
    seconds: list[float] = []
    began = run.clock()
    while len(seconds) < MOST_CALLS and (len(seconds) < LEAST_CALLS or run.clock() - began < SECONDS):
        seconds.append(replica.call(rows[pick.integers(0, len(rows), batch)])[1])
    return seconds


def _job(name: str, stage: StageSpec, run: Run) -> Job:
    if stage.model is None:
        raise fail("has no model", key=f"stages.{name}")
    source = models.source_of(name, stage.model, run)
    rows = models.rows_for(stage.model, models.width_of(source))
    batches = batches_up_to(stage.max_batch or LARGEST)
    return Job(name, source, rows, batches, models.identity(source, stage.model))


def _report(spec: PipelineSpec, found: dict[str, list[profiles.Point]], fresh: int, run: Run) -> Report:
    columns = (
        Column("stage"),
        Column("batch"),
        *(Column(name, "ms", 2, timed=True) for name in ("mean", "p50", "p90", "p99")),
        Column("each a second", digits=0, timed=True),
    )
    rows: list[tuple[Cell, ...]] = [
        (name, p.batch, p.mean * 1e3, p.p50 * 1e3, p.p90 * 1e3, p.p99 * 1e3, p.batch / p.mean)
        for name, points in found.items()
        for p in points
    ]
    count = sum(len(points) for points in found.values())
    told = f"measured {fresh} of {len(found)} stages on this machine, which is {machine(spec)} in the spec"
    return Report(
        "pipeline",
        "profile",
        spec.name,
        Verdict.YES,
        f"{told} · saved in {run.directory.path}",
        (f"{len(found)} stages", f"{count} batch sizes"),
        {f"{name}_ms": Metric(points[0].mean * 1e3, "ms", timed=True) for name, points in found.items()},
        (Table("latency", columns, tuple(rows)),),
        (_figure(found),),
        lines=_falling(found),
        next=f"unfold plan {spec.name}.yaml",
    )


def _falling(found: dict[str, list[profiles.Point]]) -> tuple[tuple[str, str], ...]:
    lines = []
    for name, points in found.items():
        worse = [late.batch for early, late in itertools.pairwise(points) if late.p50 < early.p50]
        if worse:
            lines.append(("note", f"{name}: a batch of {worse[0]} was quicker than a smaller one: noise, or a cache"))
    return tuple(lines)


def _figure(found: dict[str, list[profiles.Point]]) -> Figure:
    series = tuple(
        Series(name, tuple(float(p.batch) for p in points), tuple(p.mean * 1e3 for p in points))
        for name, points in found.items()
    )
    return Figure("latency", "Latency by batch size", "batch", "mean ms", series, log_x=True, log_y=True, timed=True)
