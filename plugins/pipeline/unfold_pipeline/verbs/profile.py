"""The verb ``profile``: measure the latency of each stage's model on this machine, by batch size."""

from __future__ import annotations

from collections.abc import Sequence

from unfold_pipeline._types import Tensors
from unfold_pipeline.problem.build import (
    build_flows,
    build_placement,
    fingerprint_model,
    locate_model,
    resolve_stages,
)
from unfold_pipeline.problem.latency_profile import load_profile, store_profile
from unfold_pipeline.problem.model_source import ModelSource
from unfold_pipeline.problem.pipeline import Pipeline
from unfold_pipeline.report.profile import build_profile_report
from unfold_pipeline.runtime.models.model_loader import fit_rows, load_rows, read_width
from unfold_pipeline.runtime.profiler import DEFAULT_MAX_BATCH, ProfileJob, list_batch_sizes, profile_model
from unfold_pipeline.runtime.sample_inputs import list_upstream_readers, record_inputs
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.schema.stages import sort_stages
from unfold_pipeline.verbs.profile_engine import profile_engine
from unfoldkit.api import Report, Run, fingerprint, user_error


def profile(spec: PipelineSpec, run: Run) -> Report:
    """Measure every stage that has a model and no profile in the run, and store its profile.

    Raises:
        UnfoldError: No stage has a model, or a model cannot be loaded.
    """
    if spec.engine_stage is not None:
        return profile_engine(spec, run)
    jobs = build_jobs(resolve_stages(spec, run, check_profiles=False), run)
    fresh = 0
    for index, job in enumerate(jobs):
        if load_profile(job.stage, run, made_from=job.made_from) is None:
            store_profile(job.stage, profile_model(job, run.seed, run.clock), job.made_from, run)
            fresh += 1
        run.progress("profile", index + 1, len(jobs))
    profiles = {job.stage: load_profile(job.stage, run) or () for job in jobs}
    folder, hardware = str(run.directory.path), spec.local_hardware
    return build_profile_report(spec.name, profiles, fresh, hardware, folder, list_overridden_stages(spec))


def build_jobs(spec: PipelineSpec, run: Run) -> list[ProfileJob]:
    """Return a job for each stage with a model, in topological order.

    Raises:
        UnfoldError: No stage has a model, or a model cannot be loaded.
    """
    is_pinned = build_placement(spec.placement).is_pinned
    stages = {name: spec.stages_by_name[name] for name in sort_stages(spec.stages_by_name)}
    models = {name: stage.model for name, stage in stages.items() if stage.model is not None}
    if not models:
        raise user_error("no stage has a model to measure", key="stages", hint="model: {file: model.onnx}")
    sources = {name: locate_model(name, model, run) for name, model in models.items()}
    made_from = {name: fingerprint_model(sources[name], model, is_pinned=is_pinned) for name, model in models.items()}
    pipeline = Pipeline(build_flows(spec))
    readers = list_upstream_readers(pipeline, sources)
    for name, upstream in readers.items():
        # other models upstream, or other inputs, are other rows
        inputs = [str(pipeline.stages[index].inputs) for index, known in enumerate(stages) if known == name]
        made_from[name] = fingerprint(made_from[name], inputs, [made_from.get(other, "") for other in upstream])
    stale = [name for name in readers if load_profile(name, run, made_from=made_from[name]) is None]
    rows: dict[str, Sequence[Tensors]] = {name: _load_rows(name, sources[name]) for name in models.keys() - readers}
    rows |= record_inputs(pipeline, sources, stale) if stale else {}
    return [
        ProfileJob(
            stage=name,
            source=source,
            rows=rows.get(name, ()),
            batches=list_batch_sizes(stages[name].max_batch or DEFAULT_MAX_BATCH),
            made_from=made_from[name],
            is_pinned=is_pinned,
        )
        for name, source in sources.items()
    ]


def _load_rows(name: str, source: ModelSource) -> Sequence[Tensors]:
    return list(fit_rows(name, source, load_rows(source, read_width(name, source))))


def list_overridden_stages(spec: PipelineSpec) -> list[str]:
    """Return the stages with a model for which the spec gives a latency on this machine, which plans use instead."""
    return [
        name
        for name, stage in spec.stages_by_name.items()
        if stage.model and spec.local_hardware in {*stage.latency, *stage.perf_analyzer}
    ]
