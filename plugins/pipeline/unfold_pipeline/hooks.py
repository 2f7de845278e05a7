"""What this plugin registers. Keep it light: it is imported to list the kinds."""

from __future__ import annotations

from collections.abc import Iterable

from unfoldkit.api import Kind, Renderer, hookimpl


@hookimpl
def unfold_kinds() -> Iterable[Kind]:
    """Register the kind ``pipeline``."""
    yield Kind(
        name="pipeline",
        summary="chooses hardware, batch size and replicas for each model of a serving pipeline, at least cost",
        spec="unfold_pipeline.schema.pipeline:PipelineSpec",
        profile="unfold_pipeline.verbs.profile:profile",
        plan="unfold_pipeline.verbs.plan:plan",
        serve="unfold_pipeline.verbs.serve:serve",
        examples="unfold_pipeline:examples",
        extra="pipeline",
        replay=True,
        targets=("kubernetes", "ray"),
        opens="unfold_pipeline.verbs.check_inputs:check_inputs",
        compares="unfold_pipeline.schema.saved_plan:find_plan_mistakes",
    )


@hookimpl
def unfold_renderers() -> Iterable[Renderer]:
    """Register the export of a plan to other serving systems."""
    yield Renderer(
        "ray-serve", "a pipeline's plan as Ray Serve config", "unfold_pipeline.report.export_ray_serve:export_ray_serve"
    )
    yield Renderer(
        "kserve", "a pipeline's plan as KServe resources", "unfold_pipeline.report.export_kserve:export_kserve"
    )
    yield Renderer(
        "keda", "a pipeline's plan as ScaledObjects of KEDA", "unfold_pipeline.report.export_autoscaling:export_keda"
    )
    yield Renderer(
        "knative",
        "a pipeline's plan as autoscaled Knative Services",
        "unfold_pipeline.report.export_autoscaling:export_knative",
    )
    yield Renderer(
        "triton", "a pipeline's plan as Triton models", "unfold_pipeline.report.export_triton:export_triton", (".zip",)
    )
    yield Renderer(
        "tuner-roles",
        "the rights of the tuner on Kubernetes",
        "unfold_pipeline.report.export_tuner_rbac:export_tuner_roles",
    )
    yield Renderer(
        "vllm", "a plan of LLM engines as vLLM commands", "unfold_pipeline.report.engines.exports:export_vllm", (".sh",)
    )
    yield Renderer(
        "kubernetes",
        "a plan of LLM engines as Kubernetes Deployments",
        "unfold_pipeline.report.engines.exports:export_kubernetes",
        kind="pipeline",
    )
