"""The verb ``serve``: the plan as running processes, behind the Open Inference Protocol or under a replayed trace."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from pathlib import Path

from unfold_pipeline.estimator.replica_schedule import Step
from unfold_pipeline.estimator.simulator import needs_of, patience_of
from unfold_pipeline.estimator.slo import Judge
from unfold_pipeline.planner.planner import Unmet, seek
from unfold_pipeline.problem import build
from unfold_pipeline.problem.from_cascade import resolved
from unfold_pipeline.problem.pipeline import Plan
from unfold_pipeline.problem.quotas import limits
from unfold_pipeline.problem.sample import Sample
from unfold_pipeline.replay import load_generator, report
from unfold_pipeline.replay.prediction import Replay, Seen
from unfold_pipeline.replay.simulated import live_sample, saved_plan, setting_of
from unfold_pipeline.report import plan as tables
from unfold_pipeline.runtime import model_loader
from unfold_pipeline.runtime.affinity import of_this_machine
from unfold_pipeline.runtime.local import Running, Runtime
from unfold_pipeline.runtime.ray_serve import RayRuntime
from unfold_pipeline.runtime.stage import clock
from unfold_pipeline.schema.models import FromRun, PipelineSpec
from unfold_pipeline.schema.placement import Placing
from unfold_pipeline.serving import dashboard
from unfold_pipeline.tuner import rules
from unfold_pipeline.verbs.plan import judge_for
from unfoldkit.api import (
    Engine,
    Report,
    Run,
    Service,
    UnfoldError,
    fail,
)
from unfoldkit.engines.local import available_cores
from unfoldkit.engines.ray import RayEngine

HUNG_S = 30.0
SLOWER = 10.0


@dataclass(frozen=True, slots=True)
class Ready:
    """What is needed to run: plan, models, rows to send, whether hopeless queries are shed, and where replicas go."""

    judge: Judge
    plan: Plan
    sources: tuple[model_loader.Source, ...]
    rows: model_loader.Rows
    shed: bool = False
    placing: Placing = field(default_factory=Placing)

    @property
    def planned(self) -> Step:
        """Replicas and largest batches as planned."""
        return Step(tuple(choice.replicas for choice in self.plan), tuple(choice.batch for choice in self.plan))

    @property
    def patience(self) -> tuple[float, ...]:
        """How long after its arrival a query may be taken at each stage, in s."""
        return patience_of(self.judge.pipeline, self.plan, self.judge.limit)

    @property
    def longest(self) -> tuple[float, ...]:
        """After how many seconds a replica that keeps a batch is taken for hung: far more than a batch should take."""
        options = self.judge.pipeline.options(self.plan)
        return tuple(max(HUNG_S, SLOWER * float(option.latency[-1])) for option in options)

    def replay(self, sample: Sample, seen: Seen = ()) -> Replay:
        """Return what the simulator needs to play a sample with the plan, or the replicas ``seen`` to serve."""
        patience = self.patience if self.shed else None
        return Replay(self.judge.pipeline, self.plan, sample, patience, self.placing.pinned, seen)

    def runtime(self, engine: Engine) -> Running:
        """Return the plan on an engine, not started yet."""
        stages = self.judge.pipeline.stages
        names = [stage.name for stage in stages]
        needs = needs_of(self.judge.pipeline, self.plan)
        waits = [stage.wait for stage in stages]
        if isinstance(engine, RayEngine):
            return RayRuntime(names, self.sources, self.plan, waits, engine.address, needs, self.placing, self.longest)
        cores = of_this_machine() if self.placing.pinned else None
        rooms = [(self.judge.limit - need) / 2 for need in needs]
        return Runtime(names, self.sources, self.plan, needs, cores, waits, self.longest, rooms)


def serve(spec: PipelineSpec, run: Run) -> Service | Report:
    """Return the service; with a replay, the report of a trace that was played against it.

    Raises:
        UnfoldError: a stage has no model, or nothing meets the target.
    """
    if isinstance(spec.stages, FromRun) and not run.options.get("replay"):
        message = "a cascade's queries go where its gates say; here they would go where chance says"
        raise fail(message, key="stages.from", hint=f"unfold serve {spec.stages.run}, or --replay TRACE to measure")
    ready = prepare(spec, run)
    _warn(spec, ready, run)
    if run.options.get("replay"):
        return _replayed(spec, run, ready)
    from unfold_pipeline.serving.app import Given, application, paths

    runtime, promise = ready.runtime(run.engine), dashboard.promise(ready.judge, ready.plan)
    diary = dashboard.Diary(clock(), dashboard.bounds(promise.limit))
    given = Given(run.seed, _tuner(spec, ready), promise, spec.slo.shed)
    app = application(spec.name, ready.judge.pipeline, runtime, ready.rows.shape[1], given, diary)
    posts, gates, most = app.app.answers, app.app.gates, app.app.body_bytes
    watch = dashboard.watch(spec.name, runtime, diary, promise, app.entrance.metrics.requests)
    return Service(spec.name, app, paths(spec.name), posts, most, watch=watch, gates=gates)


def _warn(spec: PipelineSpec, ready: Ready, run: Run) -> None:
    """Say that the rule in charge may start more processes than this machine carries, where no quota bounds them."""
    pipeline, cores = ready.judge.pipeline, available_cores()
    bounded = {name for name, _ in pipeline.quotas}
    free = [option.hardware for option in pipeline.options(ready.plan) if option.hardware not in bounded]
    if free and run.engine.name == "local" and spec.tuner.policy != "fixed" and spec.tuner.most > cores:
        told = "hardware.%s: no quota; the rule in charge may start %d replicas of a stage, on %d cores"
        run.log.warning(told, free[0], spec.tuner.most, cores)


def prepare(spec: PipelineSpec, run: Run) -> Ready:
    """Return the plan of the file that was named, or a new one, with the models of its stages."""
    spec = resolved(spec, run)
    judge = judge_for(spec, run)
    chosen = saved_plan(judge, run)
    if chosen is None:
        found = seek(judge, build.effort(spec), run.progress)
        if isinstance(found, Unmet):
            raise _unplanned(spec, found)
        chosen = found.plan
    sources = []
    rows: model_loader.Rows | None = None
    for stage in judge.pipeline.stages:
        model = spec.named[stage.name].model
        if model is None:
            raise fail("has no model to serve", key=f"stages.{stage.name}", hint="model: {file: model.onnx}")
        sources.append(model_loader.source_of(stage.name, model, run))
        width = model_loader.width_of(stage.name, sources[-1])
        rows = model_loader.rows_for(model, width, run) if rows is None else rows
        _fits(stage.name, sources[-1], width, rows.shape[1])
        model_loader.check_rows(stage.name, sources[-1], rows)
    if rows is None:
        raise fail("no stage to serve", key="stages")
    return Ready(judge, chosen, tuple(sources), rows, spec.slo.shed, spec.placement)


def _unplanned(spec: PipelineSpec, found: Unmet) -> UnfoldError:
    if not found.searched:
        return fail("no plan found within search.limit", key="search.limit", hint="raise it")
    return fail(f"no plan meets p99 ≤ {tables.milliseconds(spec.slo.p99)}", hint="unfold plan SPEC says why")


def _fits(stage: str, source: model_loader.Source, width: int | None, given: int) -> None:
    """Refuse a stage whose model reads other rows than the queries, which are those of the first stage."""
    needs = max(source.columns) + 1 if source.columns else width
    if needs is None or needs == given or (source.columns and needs < given):
        return
    hint = f"stages.{stage}.model.columns names those of the query that it reads"
    raise fail(f"reads {needs} numbers a row, and queries have {given}", key=f"stages.{stage}.model", hint=hint)


def _replayed(spec: PipelineSpec, run: Run, ready: Ready) -> Report:
    sample = live_sample(resolved(spec, run), ready.judge.pipeline, Path(str(run.options["replay"])), run)
    tuner = _tuner(spec, ready)
    measured = asyncio.run(_driven(ready, sample, tuner, run))
    replay = ready.replay(sample, measured.timeline)
    return report.report(spec.name, replay, measured, ready.judge.limit, ready.planned, run)


async def _driven(
    ready: Ready, sample: Sample, tuner: load_generator.Tuner | None, run: Run
) -> load_generator.Measured:
    runtime = ready.runtime(run.engine)
    try:
        await runtime.start()
        patience = ready.judge.limit if ready.shed else math.inf
        return await load_generator.drive(
            runtime, ready.judge.pipeline, sample, ready.rows, tuner, run.progress, patience
        )
    finally:
        await runtime.stop()


def _tuner(spec: PipelineSpec, ready: Ready) -> load_generator.Tuner | None:
    """Return the rule of the spec, in charge of running replicas; the same as in ``plan --replay``."""
    policy, pipeline = spec.tuner.policy, ready.judge.pipeline
    if policy == "fixed":
        return None
    samples = [item.sample for item in ready.judge.estimators]
    brief = rules.brief(pipeline, ready.plan, samples, ready.judge.limit)
    rule = rules.in_charge(policy, brief, setting_of(spec))
    return load_generator.Tuner(rule, limits(pipeline, ready.plan))
