"""The stages around an engine as a plan states them: configuration, price, and the time that requests spend there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfold_pipeline._types import FloatArray
from unfold_pipeline.engine.planner.problem import EngineProblem, EngineStages, percentile
from unfold_pipeline.engine.planner.search import Outcome
from unfold_pipeline.planner.surrounding_stages import StagePlans, pass_stages
from unfold_pipeline.problem.pipeline import Pipeline, Plan, StageConfig
from unfold_pipeline.schema.saved_plan import MAX_SAVED_REPLICAS
from unfoldkit.api import user_error


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRow:
    """A stage under a plan; times are those of a request in it, with its queue."""

    stage: str
    hardware: str
    config: StageConfig
    usd_per_hour: float
    p50_s: float
    p99_s: float

    def format_decision(self) -> dict[str, Any]:
        """Return the configuration as plain data."""
        return {"hardware": self.hardware, "max_batch": self.config.batch, "replicas": self.config.replicas}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStages:
    """The stages around an engine, and how the latency is split.

    Attributes:
        rows: The stages in order.
        before_p99_s: p99 time before the engine.
        engine_p99_s: p99 time from the engine's queue to the first token.
        after_p99_s: p99 time after the last token.
        is_complete: Whether no plan is cheaper.
    """

    rows: tuple[StageRow, ...]
    before_p99_s: float
    engine_p99_s: float
    after_p99_s: float
    is_complete: bool


def describe_stages(
    problem: EngineProblem,
    stages: EngineStages,
    plans: StagePlans,
    arrival_s: FloatArray,
    outcome: Outcome,
    *,
    is_complete: bool,
) -> PlannedStages:
    """Return what the stages of a plan do.

    Args:
        problem: The engine between the stages.
        stages: The stages.
        plans: Their plans.
        arrival_s: (n,) arrivals at the pipeline.
        outcome: The engine on the trace.
        is_complete: Whether no plan is cheaper.
    """
    run, around = outcome.run, problem.surroundings
    upstream_s = around.before_s if around is not None else np.zeros(len(problem.requests))
    rows, _ = _list_rows(stages.upstream, plans.upstream, arrival_s)
    later_rows, downstream_s = _list_rows(stages.downstream, plans.downstream, np.sort(run.last_token_s))
    return PlannedStages(
        rows=(*rows, *later_rows),
        before_p99_s=percentile(upstream_s, 0.99),
        engine_p99_s=percentile(run.first_token_s - run.arrival_s, 0.99),
        after_p99_s=percentile(downstream_s, 0.99),
        is_complete=is_complete,
    )


def _list_rows(pipeline: Pipeline, plan: Plan, arrival_s: FloatArray) -> tuple[list[StageRow], FloatArray]:
    """Return a row for each stage, and the time (n,) of each request in all of them."""
    rows, entered_s = [], arrival_s
    for index, (stage, config) in enumerate(zip(pipeline.stages, plan, strict=True)):
        done = pass_stages(pipeline, plan[: index + 1], arrival_s)
        left_s = np.empty_like(arrival_s)
        left_s[done.request] = done.time_s
        spent_s, entered_s = left_s - entered_s, left_s
        rows.append(
            StageRow(
                stage=stage.name,
                hardware=stage.options[config.option].hardware,
                config=config,
                usd_per_hour=pipeline.split_cost(plan)[index],
                p50_s=percentile(spent_s, 0.5),
                p99_s=percentile(spent_s, 0.99),
            )
        )
    return rows, entered_s - arrival_s


def parse_stage_plans(decision: Mapping[str, Any], stages: EngineStages) -> StagePlans:
    """Return the plans of the stages in a saved decision.

    Raises:
        UnfoldError: The decision has other stages than the spec.
    """
    saved = decision.get("stages_around")
    try:
        plans = [
            tuple(_parse_config(pipeline, index, saved) for index in range(len(pipeline.stages)))  # type: ignore[arg-type]
            for pipeline in (stages.upstream, stages.downstream)
        ]
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise user_error("the plan has other stages than the spec", key="stages", hint="plan again") from error
    return StagePlans(upstream=plans[0], downstream=plans[1])


def _parse_config(pipeline: Pipeline, index: int, saved: Mapping[str, Any]) -> StageConfig:
    stage = pipeline.stages[index]
    row = saved[stage.name]
    names = [option.hardware for option in stage.options]
    option, batch, replicas = names.index(row["hardware"]), int(row["max_batch"]), int(row["replicas"])
    if not (1 <= batch <= stage.options[option].max_batch and 1 <= replicas <= MAX_SAVED_REPLICAS):
        raise ValueError(stage.name)
    return StageConfig(option, batch, replicas)
