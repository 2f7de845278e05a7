"""What this plugin offers. Keep it light: it is imported to list the kinds."""

from __future__ import annotations

from collections.abc import Iterable

from unfoldkit.api import Kind, Renderer, hookimpl


@hookimpl
def unfold_kinds() -> Iterable[Kind]:
    """Offer the kind ``pipeline``."""
    yield Kind(
        name="pipeline",
        summary="hardware, batch size and replicas for each model of a serving pipeline, at least cost",
        spec="unfold_pipeline.schema.models:PipelineSpec",
        profile="unfold_pipeline.verbs.profile:profile",
        plan="unfold_pipeline.verbs.plan:plan",
        serve="unfold_pipeline.verbs.serve:serve",
        examples="unfold_pipeline:examples",
        replay=True,
        opens="unfold_pipeline.verbs.check_inputs:opened",
    )


@hookimpl
def unfold_renderers() -> Iterable[Renderer]:
    """Offer a plan in the words of other servers."""
    yield Renderer("ray-serve", "a pipeline's plan as Ray Serve config", "unfold_pipeline.report.exports:ray_serve")
    yield Renderer("kserve", "a pipeline's plan as KServe resources", "unfold_pipeline.report.exports:kserve")
    yield Renderer("triton", "a pipeline's plan as Triton models", "unfold_pipeline.report.exports:triton", (".zip",))
