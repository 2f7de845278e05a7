"""What this plugin offers. Imports nothing heavy: it is read to list the kinds."""

from __future__ import annotations

from collections.abc import Iterable

from unfoldkit.api import Kind, hookimpl


@hookimpl
def unfold_kinds() -> Iterable[Kind]:
    """Offer the kind ``cascade``."""
    yield Kind(
        name="cascade",
        summary="asks the cheap models first and the costly ones only where it must (UnfoldML)",
        spec="unfold_cascade.schema.models:CascadeSpec",
        profile="unfold_cascade.verbs.profile:profile",
        train="unfold_cascade.verbs.train:train",
        plan="unfold_cascade.verbs.plan:plan",
        serve="unfold_cascade.serving.service:serve",
        examples="unfold_cascade:examples",
        many=True,
        opens="unfold_cascade.verbs.check_inputs:opened",
    )
