"""The entry point of the plugin. It imports nothing heavy, as every command reads it to list the kinds."""

from __future__ import annotations

from collections.abc import Iterable

from unfoldkit.api import Kind, hookimpl


@hookimpl
def unfold_kinds() -> Iterable[Kind]:
    """Register the kind ``cascade``."""
    yield Kind(
        name="cascade",
        summary="runs cheap models first, expensive ones only where they are needed (UnfoldML)",
        spec="unfold_cascade.schema.cascade:CascadeSpec",
        profile="unfold_cascade.verbs:profile",
        train="unfold_cascade.verbs:train",
        plan="unfold_cascade.verbs:plan",
        validate="unfold_cascade.verbs:validate",
        serve="unfold_cascade.verbs:serve",
        examples="unfold_cascade:examples",
        extra="cascade",
        many=True,
        recalibrates=True,
        export="unfold_cascade.verbs.static:export_onnx",
        opens="unfold_cascade.verbs.check_inputs:check_inputs",
    )
