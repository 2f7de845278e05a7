"""The stages around LLM engines in the verb ``serve``: their plans, and their replicas on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_pipeline._types import RowArray
from unfold_pipeline.engine.planner.analysis import scale_to_end
from unfold_pipeline.engine.planner.problem import EngineProblem, EngineStages
from unfold_pipeline.engine.planner.search import EngineConfig
from unfold_pipeline.planner.surrounding_stages import StagePlans, find_cheapest_pipeline
from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.problem.pipeline import Pipeline, Plan
from unfold_pipeline.problem.routing import RouteDrawer
from unfold_pipeline.report.engines.plan import parse_engine_decision
from unfold_pipeline.report.engines.surrounding_stages import parse_stage_plans
from unfold_pipeline.runtime.deployment import list_planned_stages, resolve_models
from unfold_pipeline.runtime.engines.surrounding_stages import StageLine, StagesAround
from unfold_pipeline.runtime.local import LocalRuntime
from unfoldkit.api import Run, user_error


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPipeline:
    """Engines with the stages around them, and their plans."""

    config: EngineConfig
    stages: EngineStages
    plans: StagePlans

    def list_stages(self) -> list[str]:
        """List the stages by name, those before the engine first."""
        return [stage.name for line in (self.stages.upstream, self.stages.downstream) for stage in line.stages]


def choose_pipeline(problem: EngineProblem, stages: EngineStages, saved: Any, run: Run) -> PlannedPipeline | None:
    """Return the plan of a decision that was saved, or a new one; ``None`` if nothing meets the targets.

    Raises:
        UnfoldError: The decision has other engines or stages than the spec.
    """
    if isinstance(saved, Mapping) and saved:
        config, plans = parse_engine_decision(saved, problem), parse_stage_plans(saved, stages)
        return PlannedPipeline(config=config, stages=stages, plans=plans)
    planned = problem if problem.confidence is None else scale_to_end(problem, high=True)
    joint = find_cheapest_pipeline(planned, stages, run.progress)
    if joint.plans is None or joint.solution.config is None:
        return None
    return PlannedPipeline(config=joint.solution.config, stages=stages, plans=joint.plans)


def build_running_stages(planned: PlannedPipeline, sources: Mapping[str, ModelSource], seed: int) -> StagesAround:
    """Return the replicas of the stages around an engine as processes of this machine; nothing is started yet.

    Args:
        planned: The stages and their plans.
        sources: The model of each stage.
        seed: Of the routes.

    Raises:
        UnfoldError: The stages before and after the engine read rows of other lengths.
    """
    lines: list[StageLine] = []
    rows: list[RowArray] = []
    names: list[str] = []
    for index, (pipeline, plan) in enumerate(
        ((planned.stages.upstream, planned.plans.upstream), (planned.stages.downstream, planned.plans.downstream))
    ):
        if not pipeline.stages:
            lines.append(StageLine())
            continue
        names = [stage.name for stage in pipeline.stages]
        line, line_rows = _build_line(pipeline, plan, {name: sources[name] for name in names}, seed + index)
        lines.append(line)
        rows.append(line_rows)
    widths = {item.shape[1] for item in rows}
    if len(widths) > 1:
        message = f"the stages before the engine read {rows[0].shape[1]} numbers, those after it {rows[1].shape[1]}"
        raise user_error(message, key=f"stages.{names[-1]}.model", hint="model.columns: the numbers that a stage reads")
    return StagesAround(upstream=lines[0], downstream=lines[1], rows=rows[0], names=tuple(planned.list_stages()))


def _build_line(
    pipeline: Pipeline, plan: Plan, sources: Mapping[str, ModelSource], seed: int
) -> tuple[StageLine, RowArray]:
    models = resolve_models(pipeline, sources)
    runtime = LocalRuntime(list_planned_stages(pipeline, plan, models.sources), flow=models.flow)
    routes = RouteDrawer(pipeline, np.random.default_rng([seed, 7]))
    return StageLine(runtime=runtime, routes=routes), models.rows
