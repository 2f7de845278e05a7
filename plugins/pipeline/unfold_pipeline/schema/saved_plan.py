"""A saved plan next to its spec: what an edit of the file may have broken, without the files that the spec names."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from unfold_pipeline.schema.engine import EngineSpec, list_degrees
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.schema.stages import FromRun, StageSpec
from unfoldkit.api import Diagnostic, did_you_mean, format_value

MAX_SAVED_REPLICAS = 1024
MISFIT = "the plan does not fit the spec"


@dataclass(frozen=True, slots=True)
class _Allowed:
    """What a spec offers for a stage: values of some keys, and the largest count of others."""

    choices: Mapping[str, Collection[Any]]
    counts: Mapping[str, float]


def find_plan_mistakes(spec: PipelineSpec, decision: Mapping[str, Any]) -> Iterator[Diagnostic]:
    """Yield where a plan differs from what its spec offers: stages, hardware, batch sizes, replicas and engines."""
    if isinstance(spec.stages, FromRun):
        # the run of a cascade has the stages
        return
    engine_stage, stages = spec.engine_stage, spec.stages_by_name
    if engine_stage is None:
        allowed = {name: _list_stage_options(stage, spec, "batch") for name, stage in stages.items()}
        yield from _compare("stages", decision.get("stages"), allowed)
        return
    engine = stages[engine_stage].engine
    assert engine is not None  # noqa: S101 - this is how the stage was found
    pooled = bool(decision.get("disaggregated"))
    if pooled and engine.disaggregated is None:
        key = f"stages.{engine_stage}.engine.disaggregated"
        yield Diagnostic("the plan has two pools, but the spec has none", key=key, hint="plan again")
        return
    yield from _compare("engines", decision.get("engines"), _list_engine_options(engine_stage, engine, pooled=pooled))
    around = {name: _list_stage_options(stage, spec, "max_batch") for name, stage in stages.items() if not stage.engine}
    if around:
        yield from _compare("stages_around", decision.get("stages_around"), around)


def _list_stage_options(stage: StageSpec, spec: PipelineSpec, batch_key: str) -> _Allowed:
    # what a model was measured on is known to its run
    names = spec.hardware if stage.model else {**stage.latency, **stage.perf_analyzer}
    return _Allowed({"hardware": tuple(names)}, {batch_key: stage.max_batch or math.inf, "replicas": math.inf})


def _list_engine_options(stage: str, engine: EngineSpec, *, pooled: bool) -> Mapping[str, _Allowed]:
    pools, degrees = engine.disaggregated, {stage: engine.tensor_parallel}
    if pooled:
        degrees = {
            f"{stage}-prefill": (pools and pools.prefill_tensor_parallel) or engine.tensor_parallel,
            f"{stage}-decode": (pools and pools.decode_tensor_parallel) or engine.tensor_parallel,
        }
    counts = {
        "replicas": MAX_SAVED_REPLICAS,
        "max_num_batched_tokens": max(list_degrees(engine.max_num_batched_tokens)),
        "max_num_seqs": max(list_degrees(engine.max_num_seqs)),
    }
    return {
        name: _Allowed({"hardware": tuple(engine.steps), "tensor_parallel": list_degrees(degree)}, counts)
        for name, degree in degrees.items()
    }


def _compare(key: str, saved: object, allowed: Mapping[str, _Allowed]) -> Iterator[Diagnostic]:
    rows = saved if isinstance(saved, Mapping) else {}
    for name in (*allowed, *(name for name in rows if name not in allowed)):
        path = f"decision.{key}.{name}"
        if name not in allowed:
            hint = did_you_mean(str(name), allowed)
            yield Diagnostic("the plan has other stages than the spec", key=path, hint=hint)
        elif name not in rows:
            message = f"the plan has other stages than the spec: {name} is missing"
            yield Diagnostic(message, key=path, hint="plan again")
        elif not isinstance(rows[name], Mapping):
            yield Diagnostic(f"{MISFIT}: {name} has no settings", key=path, hint="plan again")
        else:
            yield from _compare_settings(path, rows[name], allowed[name])


def _compare_settings(path: str, saved: Mapping[str, Any], allowed: _Allowed) -> Iterator[Diagnostic]:
    for key, choices in allowed.choices.items():
        if saved.get(key) not in choices:
            message = f"{MISFIT}: {format_value(saved.get(key))} is not offered"
            yield Diagnostic(message, key=f"{path}.{key}", hint=did_you_mean(str(saved.get(key)), map(str, choices)))
    for key, most in allowed.counts.items():
        count = saved.get(key)
        if type(count) is not int or not 1 <= count <= most:
            hint = "at least 1" if most == math.inf else f"1 to {most:,}"
            yield Diagnostic(f"{MISFIT}: expected a count, got {format_value(count)}", key=f"{path}.{key}", hint=hint)
