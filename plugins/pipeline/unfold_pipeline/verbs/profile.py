"""The verb ``profile``: measure the latency of each stage's model on this machine, by batch size."""

from __future__ import annotations

from unfold_pipeline.problem.build import build_placement, fingerprint_model, locate_model, resolve_stages
from unfold_pipeline.problem.latency_profile import load_profile, store_profile
from unfold_pipeline.report.profile import build_profile_report
from unfold_pipeline.runtime.models.model_loader import check_rows, load_rows, read_width
from unfold_pipeline.runtime.profiler import DEFAULT_MAX_BATCH, ProfileJob, list_batch_sizes, profile_model
from unfold_pipeline.schema.pipeline import PipelineSpec
from unfold_pipeline.schema.stages import sort_stages
from unfold_pipeline.verbs.profile_engine import profile_engine
from unfoldkit.api import Report, Run, user_error


def profile(spec: PipelineSpec, run: Run) -> Report:
    """Measure every stage that has a model and no profile in the run, and store its profile.

    Raises:
        UnfoldError: no stage has a model, or a model cannot be loaded.
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
        UnfoldError: no stage has a model, or a model cannot be loaded.
    """
    is_pinned = build_placement(spec.placement).is_pinned
    jobs = []
    for name in sort_stages(spec.stages_by_name):
        stage = spec.stages_by_name[name]
        if stage.model is None:
            continue
        source = locate_model(name, stage.model, run)
        rows = load_rows(source, read_width(name, source))
        check_rows(name, source, rows)
        jobs.append(
            ProfileJob(
                stage=name,
                source=source,
                rows=rows,
                batches=list_batch_sizes(stage.max_batch or DEFAULT_MAX_BATCH),
                made_from=fingerprint_model(source, stage.model, is_pinned=is_pinned),
                is_pinned=is_pinned,
            )
        )
    if not jobs:
        raise user_error("no stage has a model to measure", key="stages", hint="model: {file: model.onnx}")
    return jobs


def list_overridden_stages(spec: PipelineSpec) -> list[str]:
    """Return the stages with a model for which the spec gives a latency on this machine, which plans use instead."""
    return [
        name
        for name, stage in spec.stages_by_name.items()
        if stage.model and spec.local_hardware in {*stage.latency, *stage.perf_analyzer}
    ]
