"""The verb ``profile``: the latency of each stage's model on this machine, by batch size, through a serving process."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from unfold_pipeline.problem import latency_profile
from unfold_pipeline.problem.from_cascade import resolved
from unfold_pipeline.problem.pipeline import Choice, Option, Pipeline, Stage, table
from unfold_pipeline.problem.routing import routes
from unfold_pipeline.problem.sample import draw
from unfold_pipeline.runtime import model_loader
from unfold_pipeline.runtime.affinity import keep_to, of_this_machine
from unfold_pipeline.runtime.local import Runtime
from unfold_pipeline.runtime.stage import Query
from unfold_pipeline.schema.models import PipelineSpec, StageSpec, machine, order
from unfoldkit.api import Cell, Column, Figure, Metric, Report, Run, Series, Table, Verdict, fail

LARGEST = 32
WARM_UP = 5
LEAST_CALLS = 20
MOST_CALLS = 400
SECONDS = 0.25
TURNS = 8
PAUSES = 40
PAUSE_S = 0.01
ALONE = Pipeline((Stage("alone", (), (Option("", 0.0, table([(1, 1.0)])),)),))


@dataclass(frozen=True, slots=True)
class Job:
    """A stage to profile: its model, rows to send, batch sizes, whether its replica keeps to a core."""

    stage: str
    source: model_loader.Source
    rows: model_loader.Rows
    batches: tuple[int, ...]
    made_from: str
    pinned: bool = False


# not frozen: calls come in over time
@dataclass(slots=True)
class Calls:
    """What was measured of one batch size: the seconds of each call, of each after a pause, and those in the model.

    Of the seconds in the model, ``busy``, a core ``worked`` some.
    """

    batch: int
    pick: np.random.Generator
    seconds: list[float] = field(default_factory=list)
    paused: list[float] = field(default_factory=list)
    busy: float = 0.0
    worked: float = 0.0

    @property
    def cpu(self) -> float:
        """The share of the time in the model in which a core was busy."""
        return min(1.0, self.worked / max(self.busy, 1e-9))

    def some(self, rows: model_loader.Rows) -> model_loader.Rows:
        """Return a batch of rows, drawn."""
        return rows[self.pick.integers(0, len(rows), self.batch)]

    def due(self) -> tuple[float, float, float]:
        """Return how many calls are due at least and at most, and for how many seconds."""
        done = len(self.seconds)
        return LEAST_CALLS - done, MOST_CALLS - done, SECONDS - sum(self.seconds)


def profile(spec: PipelineSpec, run: Run) -> Report:
    """Measure every stage that has a model and is not in the run yet, and store what was measured.

    Raises:
        UnfoldError: no stage has a model, or one cannot be loaded.
    """
    written, spec = spec.named, resolved(spec, run, fresh=False)
    jobs = [_job(name, spec, run) for name in order(spec.named) if spec.named[name].model]
    if not jobs:
        raise fail("no stage has a model to measure", key="stages", hint="model: {file: model.onnx}")
    fresh = 0
    for index, job in enumerate(jobs):
        if latency_profile.stored(job.stage, run, made_from=job.made_from) is None:
            latency_profile.store(job.stage, measure(job, run), job.made_from, run)
            fresh += 1
        run.progress("profile", index + 1, len(jobs))
    found = {job.stage: latency_profile.stored(job.stage, run) or [] for job in jobs}
    report = _report(spec, found, fresh, run)
    return replace(report, lines=(*report.lines, *_given(written, machine(spec))))


def measure(job: Job, run: Run) -> list[latency_profile.Point]:
    """Return a point for each batch size, after a warm-up, by queue, pipe and process as ``serve`` uses them.

    All sizes are measured in turn, several times over, and a replica that is to keep to a core on several of them: the
    pace of a core changes with what its neighbours do, from one second to the next.
    """
    return asyncio.run(_measured(job, run))


def batches_up_to(most: int) -> tuple[int, ...]:
    """Return the powers of two up to ``most``, and ``most``."""
    return tuple(sorted({*(1 << power for power in range(most.bit_length()) if 1 << power <= most), most}))


async def _measured(job: Job, run: Run) -> list[latency_profile.Point]:
    cores = of_this_machine() if job.pinned else None
    runtime = Runtime([job.stage], [job.source], (Choice(0, 1, 1),), cores=cores)
    calls = [Calls(batch, np.random.default_rng([run.seed, batch])) for batch in job.batches]
    try:
        await runtime.start()
        for turn in range(TURNS):
            if cores:
                _move(runtime, cores.numbers[:: max(1, len(cores.numbers) // TURNS)], turn)
            for each in calls:
                await _turn(runtime, job.rows, each, 1 / (TURNS - turn), run)
        await _pauses(runtime, job.rows, calls[0], run)
        return [latency_profile.point(each.batch, each.seconds, each.paused, each.cpu) for each in calls]
    finally:
        await runtime.stop()


def _move(runtime: Runtime, cores: Sequence[int], turn: int) -> None:
    for worker in runtime.stages[0].workers:
        keep_to(worker.replica.process.pid, cores[turn % len(cores)])


async def _turn(runtime: Runtime, rows: model_loader.Rows, calls: Calls, part: float, run: Run) -> None:
    """Measure ``part`` of what is still due of a batch size, after a warm-up."""
    stage = runtime.stages[0]
    stage.batch = calls.batch
    for _ in range(1 if calls.seconds else WARM_UP):
        await _call(runtime, calls.some(rows), run)
    stage.seconds = stage.worked = 0.0
    least, most, long = (max(part * due, 0.0) for due in calls.due())
    began, before = run.clock(), len(calls.seconds)
    while (done := len(calls.seconds) - before) < most and (done < least or run.clock() - began < long):
        calls.seconds.append(await _call(runtime, calls.some(rows), run))
    calls.busy, calls.worked = calls.busy + stage.seconds, calls.worked + stage.worked


async def _pauses(runtime: Runtime, rows: model_loader.Rows, calls: Calls, run: Run) -> None:
    runtime.stages[0].batch = calls.batch
    for _ in range(PAUSES):
        await asyncio.sleep(PAUSE_S)
        calls.paused.append(await _call(runtime, calls.some(rows), run))


async def _call(runtime: Runtime, rows: model_loader.Rows, run: Run) -> float:
    """Return the seconds from the arrival of a batch of queries to the last of its answers."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    way = routes(ALONE, draw(ALONE, np.zeros(len(rows)), np.random.default_rng(0)))
    open_queries, stage = len(rows), runtime.stages[0]

    def finished(answers: dict[str, object] | None) -> None:
        nonlocal open_queries
        open_queries -= 1
        if (answers is None or stage.problem) and not done.done():
            why = f": {stage.problem}" if stage.problem else " and ends its process"
            message, key = f"the model fails on a batch of {len(rows)}{why}", f"stages.{stage.name}.model"
            done.set_exception(fail(message, key=key, hint="does it answer a batch of such rows? max_batch limits it"))
        elif open_queries == 0 and not done.done():
            done.set_result(None)

    began = run.clock()
    for number, row in enumerate(rows):
        runtime.submit(Query(row, way, number, finished))
    await done
    return run.clock() - began


def _job(name: str, spec: PipelineSpec, run: Run) -> Job:
    stage, pinned = spec.named[name], spec.placement.pinned
    if stage.model is None:
        raise fail("has no model", key=f"stages.{name}")
    source = model_loader.source_of(name, stage.model, run)
    rows = model_loader.rows_for(stage.model, model_loader.width_of(name, source), run)
    model_loader.check_rows(name, source, rows)
    batches = batches_up_to(stage.max_batch or LARGEST)
    return Job(name, source, rows, batches, model_loader.identity(source, stage.model, pinned), pinned)


def _report(spec: PipelineSpec, found: dict[str, list[latency_profile.Point]], fresh: int, run: Run) -> Report:
    columns = (
        Column("stage"),
        Column("batch"),
        *(Column(name, "ms", 2, timed=True) for name in ("mean", "p50", "p90", "p99")),
        Column("each a second", digits=0, timed=True),
        Column("after a pause", "ms", 2, timed=True),
    )
    rows: list[tuple[Cell, ...]] = [
        (name, p.batch, p.mean * 1e3, p.p50 * 1e3, p.p90 * 1e3, p.p99 * 1e3, p.batch / p.mean, _paused(p))
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
        next="unfold plan SPEC",
    )


def _paused(point: latency_profile.Point) -> float | None:
    return (point.p50 + point.wake) * 1e3 if point.wake else None


def _falling(found: dict[str, list[latency_profile.Point]]) -> tuple[tuple[str, str], ...]:
    lines = []
    for name, points in found.items():
        worse = [late.batch for early, late in itertools.pairwise(points) if late.p50 < early.p50]
        if worse:
            lines.append(("note", f"{name}: a batch of {worse[0]} was quicker than a smaller one: noise, or a cache"))
    return tuple(lines)


def _given(stages: Mapping[str, StageSpec], here: str) -> tuple[tuple[str, str], ...]:
    names = [name for name, stage in stages.items() if stage.model and here in {*stage.latency, *stage.perf_analyzer}]
    told = f"the spec gives a latency on {here}, which plans take; leave it out to plan by what was measured"
    return (("given", f"{', '.join(names)}: {told}"),) if names else ()


def _figure(found: dict[str, list[latency_profile.Point]]) -> Figure:
    series = tuple(
        Series(name, tuple(float(p.batch) for p in points), tuple(p.mean * 1e3 for p in points))
        for name, points in found.items()
    )
    return Figure("latency", "Latency by batch size", "batch", "mean ms", series, log_x=True, log_y=True, timed=True)
