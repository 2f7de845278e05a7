"""A plan with the models of its stages, ready to run on an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unfold_pipeline._types import RowArray
from unfold_pipeline.estimator.replica_schedule import ScalingState
from unfold_pipeline.estimator.simulator import compute_min_remaining_times, compute_service_deadlines
from unfold_pipeline.problem.model_source import ModelSource, hash_source
from unfold_pipeline.problem.pipeline import Pipeline, Plan
from unfold_pipeline.problem.problem import Problem
from unfold_pipeline.runtime.affinity import list_local_cores
from unfold_pipeline.runtime.local import LocalRuntime, PipelineRuntime
from unfold_pipeline.runtime.models.data_flow import DataFlow
from unfold_pipeline.runtime.models.flow_resolution import (
    check_request_width,
    reads_request,
    request_tensors,
    resolve_data_flow,
)
from unfold_pipeline.runtime.models.model_loader import fit_rows, load_rows, read_width
from unfold_pipeline.runtime.ray_serve import RayRuntime
from unfold_pipeline.runtime.stage import PlannedStage
from unfoldkit.api import Engine, user_error
from unfoldkit.engines.ray import RayEngine

MIN_HANG_TIMEOUT_S = 30.0
HANG_FACTOR = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What is needed to run a plan.

    Attributes:
        problem: Pipeline, SLO and placement.
        plan: Configuration of each stage.
        sources: Model of each stage.
        rows: Queries to send in a replay, shape (rows, features).
        flow: What each model reads.
    """

    problem: Problem
    plan: Plan
    sources: tuple[ModelSource, ...]
    rows: RowArray
    flow: DataFlow

    @property
    def planned_state(self) -> ScalingState:
        """Replicas and maximum batch sizes of the plan."""
        return ScalingState(tuple(config.replicas for config in self.plan), tuple(config.batch for config in self.plan))

    @property
    def queueing_deadlines_s(self) -> tuple[float, ...]:
        """Time since arrival after which a query is dropped at each stage, or would not have been admitted."""
        problem = self.problem
        return compute_service_deadlines(problem.pipeline, self.plan, problem.slo_s, sheds=problem.sheds)

    def build_runtime(self, engine: Engine) -> PipelineRuntime:
        """Return the plan on an engine, not started yet."""
        placement = self.problem.placement
        stages = list_planned_stages(self.problem.pipeline, self.plan, self.sources, self.problem.slo_s)
        if isinstance(engine, RayEngine):
            return RayRuntime(stages, engine.address, placement=placement, flow=self.flow)
        return LocalRuntime(stages, cores=list_local_cores() if placement.is_pinned else None, flow=self.flow)


def list_planned_stages(
    pipeline: Pipeline, plan: Plan, sources: Sequence[ModelSource], slo_s: float | None = None
) -> list[PlannedStage]:
    """Return how each stage of a plan runs.

    A replica that keeps a batch for far longer than it should take counts as hung.

    Args:
        pipeline: Stages and the latencies of their options.
        plan: Configuration of each stage.
        sources: Model of each stage.
        slo_s: Target of the whole pipeline, which queries may use up; ``None`` if other stages share it.
    """
    parts = zip(
        pipeline.stages,
        sources,
        plan,
        compute_min_remaining_times(pipeline, plan),
        pipeline.chosen_options(plan),
        strict=True,
    )
    return [
        PlannedStage(
            name=stage.name,
            source=source,
            config=config,
            min_remaining_s=remaining_s,
            max_slack_s=0.0 if slo_s is None else (slo_s - remaining_s) / 2,
            max_wait_s=stage.max_wait_s,
            hang_timeout_s=max(MIN_HANG_TIMEOUT_S, HANG_FACTOR * float(option.latency_s[-1])),
            latency_s=option.latency_s,
        )
        for stage, source, config, remaining_s, option in parts
    ]


def build_deployment(problem: Problem, plan: Plan, sources: Mapping[str, ModelSource]) -> Deployment:
    """Return a plan with its models.

    Args:
        problem: Pipeline, SLO and placement.
        plan: Configuration of each stage.
        sources: Model by stage.

    Raises:
        UnfoldError: A model is damaged, or reads other tensors than queries and the stages before it have.
    """
    models = resolve_models(problem.pipeline, sources)
    return Deployment(problem=problem, plan=plan, sources=models.sources, rows=models.rows, flow=models.flow)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModels:
    """The models of a pipeline, compared with each other.

    Attributes:
        sources: Model of each stage.
        rows: Queries to send in a replay, shape (rows, features).
        flow: What each model reads.
    """

    sources: tuple[ModelSource, ...]
    rows: RowArray
    flow: DataFlow


def resolve_models(pipeline: Pipeline, sources: Mapping[str, ModelSource]) -> ResolvedModels:
    """Return the models of a pipeline; queries have the numbers that the first stage that reads them takes.

    Raises:
        UnfoldError: A model is damaged, or reads other tensors than queries and the stages before it have.
    """
    rows = None
    ordered = request_tensors(pipeline, [sources[stage.name] for stage in pipeline.stages])
    for stage, source in zip(pipeline.stages, ordered, strict=True):
        if not reads_request(stage):
            continue
        width = read_width(stage.name, source)
        rows = load_rows(source, width) if rows is None else rows
        check_request_width(stage.name, source, width, rows.shape[1])
        rows = fit_rows(stage.name, source, rows)
    if rows is None:
        raise user_error("no stage to serve", key="stages")
    flow = resolve_data_flow(pipeline, ordered, rows.shape[1])
    # replicas that are added later must answer as the first ones do
    hashed = tuple(replace(source, sha256=hash_source(source)) for source in ordered)
    return ResolvedModels(sources=hashed, rows=rows, flow=flow)
