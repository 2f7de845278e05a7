"""What this plugin offers. Keep it light: it is imported to list the kinds."""

from __future__ import annotations

from collections.abc import Iterable

from unfoldkit.api import Check, Kind, hookimpl


@hookimpl
def unfold_kinds() -> Iterable[Kind]:
    """Offer the kind ``tuning``."""
    yield Kind(
        name="tuning",
        summary="sizes the cluster of a tuning job stage by stage: on time and cheap",
        spec="unfold_tuning.schema.models:TuningSpec",
        profile="unfold_tuning.verbs.profile:profile",
        train="unfold_tuning.verbs.train:train",
        plan="unfold_tuning.verbs.plan:plan",
        examples="unfold_tuning:examples",
        carries=True,
        opens="unfold_tuning.verbs.check_inputs:opened",
    )


@hookimpl
def unfold_checks() -> Iterable[Check]:
    """Offer a health check for ``unfold doctor``: instances that nobody holds any more."""
    yield Check(
        name="rented", summary="no instance is left running", action="unfold_tuning.cluster.orphans:left_running"
    )
